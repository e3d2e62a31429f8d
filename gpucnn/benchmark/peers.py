"""Peers without PyTorch's modules: JAX, tinygrad, and what CuPy has by itself.

A network is walked layer by layer, on the weights of ours; each library compiles the whole step, as its users do.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.benchmark.providers import Provider, Unsupported, Work
from gpucnn.benchmark.reference import LR, MOMENTUM, NetworkProblem, OpProblem, flat
from gpucnn.geometry import pair
from gpucnn.nn import Module, layers, models
from gpucnn.testing import Array


class Functional(Provider):
    """A provider that takes functions of arrays."""

    def forward(self, module: Module, x: Any, weights: dict[str, Any], updates: dict[str, Any], name: str = "") -> Any:
        """The output of one of our modules on `x`; batch norm's new statistics are put into `updates`."""

        def child(attribute: str, x: Any) -> Any:
            place = f"{name}.{attribute}" if name else attribute
            return self.forward(getattr(module, attribute), x, weights, updates, place)

        match module:
            case models.ResNet():
                y = child("maxpool", self.relu(child("bn1", child("conv1", x))))
                for stage in range(1, module.stages + 1):
                    y = child(f"layer{stage}", y)
                return child("fc", self.flatten(child("avgpool", y)))
            case models.BasicBlock() | models.Bottleneck():
                y = child("bn2", child("conv2", self.relu(child("bn1", child("conv1", x)))))
                if isinstance(module, models.Bottleneck):
                    y = child("bn3", child("conv3", self.relu(y)))
                return self.relu(y + (x if module.downsample is None else child("downsample", x)))
            case nn.Sequential():
                for attribute, _ in module.named_children():
                    x = child(attribute, x)
                return x
            case layers.Conv2d():
                return self.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), module)
            case layers.BatchNorm2d():
                return self.batch_norm(x, weights, updates, name, module)
            case layers.Linear():
                return self.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
            case layers.ReLU():
                return self.relu(x)
            case layers.MaxPool2d():
                return self.max_pool2d(x, module.kernel_size, module.stride, module.padding)
            case layers.AdaptiveAvgPool2d():
                return self.mean_of_planes(x)
            case layers.Flatten():
                return self.flatten(x)
            case layers.Identity():
                return x
            case models.PadShortcut():
                return self.pad_shortcut(x, module.stride, module.extra)
        raise Unsupported(f"{self.name}: no twin of {type(module).__name__}")

    # What a subclass defines: the layers, on its arrays.
    conv2d: Callable[..., Any]
    batch_norm: Callable[..., Any]
    linear: Callable[..., Any]
    relu: Callable[..., Any]
    max_pool2d: Callable[..., Any]
    mean_of_planes: Callable[..., Any]
    flatten: Callable[..., Any]
    pad_shortcut: Callable[..., Any]


# -- JAX ---------------------------------------------------------------------------------------------


class Jax(Functional):
    """JAX, compiled by jit, with arrays [N, H, W, C] and filters [R, S, C/groups, K] as its libraries have them.

    A run waits for its end, so on a GPU its times hold the dispatch too.
    """

    name = "jax"
    precisions = ("fp32", "tf32")

    def __init__(self, precision: str) -> None:
        jax = self.jax = import_module("jax")
        self.version = f"JAX {jax.__version__}"
        self.device = "gpu" if jax.default_backend() == "gpu" else "cpu"
        jax.config.update("jax_default_matmul_precision", "highest" if precision == "fp32" else "tensorfloat32")

    def op(self, problem: OpProblem, part: str) -> Work:
        jax, case = self.jax, problem.case
        inputs = [_to_jax(v, i == 1 and case.op == "conv2d") if isinstance(v, np.ndarray) else v
                  for i, v in enumerate(problem.inputs)]  # fmt: skip
        arrays = {i: jax.numpy.asarray(v) for i, v in enumerate(inputs) if isinstance(v, np.ndarray)}
        wanted = problem.gradients_of(part)

        def op(given: dict[int, Any]) -> Any:
            return _JAX_OPS[case.op](self, *(given.get(i, v) for i, v in enumerate(inputs)), **case.arguments)

        if not wanted:
            forward = jax.jit(op)
            return Work(lambda: jax.block_until_ready(forward(arrays)), lambda y: [_from_jax(y)])
        rest = {i: array for i, array in arrays.items() if i not in wanted}
        _, pull = jax.vjp(jax.jit(lambda leaves: op(rest | leaves)), {i: arrays[i] for i in wanted})
        backward = jax.jit(lambda pull, u: pull(u)[0])
        u = jax.numpy.asarray(_to_jax(problem.cotangent))
        return Work(
            lambda: jax.block_until_ready(backward(pull, u)),
            lambda gradients: [_from_jax(gradients[i], i == 1 and case.op == "conv2d") for i in wanted],
        )

    def network(self, problem: NetworkProblem) -> Work:
        jax, module = self.jax, problem.module()
        filters = {name for name, value in problem.weights.items() if value.ndim == 4}
        weights = {n: jax.numpy.asarray(_to_jax(value, n in filters)) for n, value in problem.weights.items()}
        learned = [name for name, _ in module.named_parameters()]
        x, labels = jax.numpy.asarray(_to_jax(problem.images)), jax.numpy.asarray(problem.labels)
        if not problem.training:
            infer = jax.jit(lambda weights, x: self.forward(module, x, weights, {}))
            return Work(lambda: jax.block_until_ready(infer(weights, x)), lambda y: [np.asarray(y)])

        def loss(parameters: dict[str, Any], rest: dict[str, Any], x: Any) -> Any:
            updates: dict[str, Any] = {}
            logits = self.forward(module, x, rest | parameters, updates)
            return self.cross_entropy(logits, labels), updates

        def update(parameters: Any, rest: Any, moments: Any, x: Any) -> Any:
            (value, updates), gradients = jax.value_and_grad(loss, has_aux=True)(parameters, rest, x)
            moments = {n: MOMENTUM * moments[n] + gradients[n] for n in moments}
            return value, {n: p - LR * moments[n] for n, p in parameters.items()}, rest | updates, moments

        parameters = {n: weights[n] for n in learned}
        state = [parameters, {n: v for n, v in weights.items() if n not in parameters},
                 {n: jax.numpy.zeros_like(p) for n, p in parameters.items()}]  # fmt: skip
        step = jax.jit(update, donate_argnums=(0, 1, 2))

        def run() -> Any:
            value, *state[:] = step(*state, x)
            return jax.block_until_ready(value)

        def results(value: Any) -> list[Array]:
            moments, now = (  # after one step the moments are the gradients
                flat(_from_jax(of[n], n in filters) if of[n].ndim == 4 else of[n] for n in learned)
                for of in (state[2], state[0])
            )
            return [np.asarray(value), moments, now]

        return Work(run, results)

    # -- layers, on arrays [N, H, W, C]

    def conv2d(self, x: Any, w: Any, b: Any, layer: Any) -> Any:
        y = self._convolved(x, w, layer.stride, layer.padding, layer.dilation, layer.groups)
        return y if b is None else y + b

    def _convolved(self, x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
        sides = [(p, p) for p in pair(padding, "padding", 0)]
        return self.jax.lax.conv_general_dilated(
            x, w, pair(stride, "stride", 1), sides, rhs_dilation=pair(dilation, "dilation", 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    def batch_norm(self, x: Any, weights: Any, updates: Any, name: str, layer: Any) -> Any:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        if layer.training:
            old, m, n = (mean, variance), layer.momentum, x.size // x.shape[-1]
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            updates[f"{name}.running_mean"] = (1 - m) * old[0] + m * mean
            updates[f"{name}.running_var"] = (1 - m) * old[1] + m * variance * (n / (n - 1))
        return self._normalised(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"], layer.eps)

    def _normalised(self, x: Any, mean: Any, variance: Any, weight: Any, bias: Any, eps: float) -> Any:
        return (x - mean) * (self.jax.lax.rsqrt(variance + eps) * weight) + bias

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        return x @ w.T + b

    def relu(self, x: Any) -> Any:
        return self.jax.nn.relu(x)

    def max_pool2d(self, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Any:
        return self._pooled(x, -np.inf, self.jax.lax.max, kernel_size, stride, padding)

    def _pooled(self, x: Any, start: float, function: Any, kernel_size: Any, stride: Any, padding: Any = 0) -> Any:
        kernel, sides = pair(kernel_size, "kernel_size", 1), [(p, p) for p in pair(padding, "padding", 0)]
        strides = kernel if stride is None else pair(stride, "stride", 1)
        every = ((0, 0), *sides, (0, 0))
        return self.jax.lax.reduce_window(x, start, function, (1, *kernel, 1), (1, *strides, 1), every)

    def avg_pool2d(self, x: Any, kernel_size: int, stride: Any = None) -> Any:
        return self._pooled(x, 0.0, self.jax.lax.add, kernel_size, stride) / kernel_size**2

    def mean_of_planes(self, x: Any) -> Any:
        return x.mean((1, 2), keepdims=True)

    def flatten(self, x: Any) -> Any:
        return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)

    def pad_shortcut(self, x: Any, stride: int, extra: int) -> Any:
        return self.jax.numpy.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, extra)))

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        chosen = self.jax.nn.log_softmax(logits)[self.jax.numpy.arange(len(labels)), labels]
        return -chosen.mean()


_JAX_OPS: dict[str, Callable[..., Any]] = {
    "conv2d": lambda self, x, w, b=None, stride=1, padding=0, dilation=1, groups=1: (
        self._convolved(x, w, stride, padding, dilation, groups) + (0 if b is None else b)
    ),
    "max_pool2d": Jax.max_pool2d,
    "avg_pool2d": Jax.avg_pool2d,
    "relu": Jax.relu,
    "batch_norm": lambda self, x, mean, variance, weight, bias, training: self._normalised(
        x, x.mean((0, 1, 2)), x.var((0, 1, 2)), weight, bias, 1e-5
    ),
    "linear": Jax.linear,
    "cross_entropy": Jax.cross_entropy,
}


def _to_jax(array: Array, filters: bool = False) -> Array:
    if array.ndim != 4:
        return array
    return np.ascontiguousarray(array.transpose((2, 3, 1, 0) if filters else (0, 2, 3, 1)))


def _from_jax(array: Any, filters: bool = False) -> Array:
    host: Array = np.asarray(array)
    return host.transpose((3, 2, 0, 1) if filters else (0, 3, 1, 2)) if host.ndim == 4 else host


# -- tinygrad ----------------------------------------------------------------------------------------


class Tinygrad(Functional):
    """tinygrad, each step captured by TinyJit."""

    name = "tinygrad"

    def __init__(self, precision: str) -> None:
        tinygrad = self.tinygrad = import_module("tinygrad")
        try:
            where = tinygrad.Device.DEFAULT
        except RuntimeError as error:
            raise RuntimeError(f"tinygrad finds nothing to compute on ({error}); on a CPU it needs clang") from error
        self.version = f"tinygrad {version('tinygrad')} on {where}"
        self.device = "cpu" if where in ("CPU", "LLVM", "CLANG") else "gpu"

    def _tensor(self, array: Array) -> Any:
        return self.tinygrad.Tensor(np.ascontiguousarray(array)).realize()

    def op(self, problem: OpProblem, part: str) -> Work:
        case = problem.case
        inputs = [self._tensor(v) if isinstance(v, np.ndarray) else v for v in problem.inputs]
        wanted = problem.gradients_of(part)
        given = {str(i): v for i, v in enumerate(inputs) if isinstance(v, self.tinygrad.Tensor)}
        u = self._tensor(problem.cotangent)

        def op(tensors: dict[str, Any]) -> Any:
            return _TINYGRAD_OPS[case.op](*(tensors.get(str(i), v) for i, v in enumerate(inputs)), **case.arguments)

        def compute(u: Any, **tensors: Any) -> Any:
            leaves = [tensors[str(i)] for i in wanted]
            found = op(tensors).gradient(*leaves, gradient=u) if wanted else [op(tensors)]
            return [y.contiguous().realize() for y in found]

        jitted = self.tinygrad.TinyJit(compute)
        return Work(self._waited(lambda: jitted(u, **given)), lambda found: [y.numpy() for y in found])

    def _waited(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """A run that lasts until it is done."""
        device = self.tinygrad.Device[self.tinygrad.Device.DEFAULT]

        def waited() -> Any:
            found = run()
            device.synchronize()
            return found

        return waited

    def network(self, problem: NetworkProblem) -> Work:
        module = problem.module()
        weights = {name: self._tensor(value) for name, value in problem.weights.items()}
        x, labels = self._tensor(problem.images), self._tensor(problem.labels.astype(np.int32))
        if not problem.training:
            infer = self.tinygrad.TinyJit(lambda x: self.forward(module, x, weights, {}).realize())
            return Work(self._waited(lambda: infer(x)), lambda y: [y.numpy()])
        learned = [weights[name] for name, _ in module.named_parameters()]
        moments = [self._tensor(np.zeros(p.shape, np.float32)) for p in learned]

        def update(x: Any, labels: Any) -> Any:
            updates: dict[str, Any] = {}
            loss = self.forward(module, x, weights, updates).sparse_categorical_crossentropy(labels)
            assigned = [weights[name].assign(value) for name, value in updates.items()]
            for p, m, gradient in zip(learned, moments, loss.gradient(*learned), strict=True):
                assigned += [m.assign(MOMENTUM * m + gradient), p.assign(p - LR * m)]
            return loss.realize(*assigned)

        step = self.tinygrad.TinyJit(update)

        def results(loss: Any) -> list[Array]:  # after one step the moments are the gradients
            return [loss.numpy(), flat(m.numpy() for m in moments), flat(p.numpy() for p in learned)]

        return Work(self._waited(lambda: step(x, labels)), results)

    # -- layers, on tensors [N, C, H, W]

    def conv2d(self, x: Any, w: Any, b: Any, layer: Any) -> Any:
        return x.conv2d(w, b, layer.groups, layer.stride, layer.dilation, layer.padding)

    def batch_norm(self, x: Any, weights: Any, updates: Any, name: str, layer: Any) -> Any:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        if layer.training:
            old, m, n = (mean, variance), layer.momentum, x.numel() // x.shape[1]
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            updates[f"{name}.running_mean"] = (1 - m) * old[0] + m * mean.detach()
            updates[f"{name}.running_var"] = (1 - m) * old[1] + m * (n / (n - 1)) * variance.detach()
        return x.batchnorm(weights[f"{name}.weight"], weights[f"{name}.bias"], mean, (variance + layer.eps).rsqrt())

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        return x.linear(w.transpose(), b)

    def relu(self, x: Any) -> Any:
        return x.relu()

    def max_pool2d(self, x: Any, kernel_size: Any, stride: Any, padding: Any) -> Any:
        return x.max_pool2d(pair(kernel_size, "kernel_size", 1), stride, 1, padding)

    def mean_of_planes(self, x: Any) -> Any:
        return x.mean((2, 3), keepdim=True)

    def flatten(self, x: Any) -> Any:
        return x.flatten(1)

    def pad_shortcut(self, x: Any, stride: int, extra: int) -> Any:
        return x[:, :, ::stride, ::stride].pad(((0, 0), (0, extra), (0, 0), (0, 0)))


def _tinygrad_batch_norm(x: Any, mean: Any, variance: Any, weight: Any, bias: Any, training: bool) -> Any:
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    return x.batchnorm(weight, bias, mean, (variance + 1e-5).rsqrt())


_TINYGRAD_OPS: dict[str, Callable[..., Any]] = {
    "conv2d": lambda x, w, b=None, stride=1, padding=0, dilation=1, groups=1: x.conv2d(
        w, b, groups, stride, dilation, padding
    ),
    "max_pool2d": lambda x, kernel_size, stride=None, padding=0: x.max_pool2d((kernel_size,) * 2, stride, 1, padding),
    "avg_pool2d": lambda x, kernel_size: x.avg_pool2d((kernel_size,) * 2),
    "relu": lambda x: x.relu(),
    "batch_norm": _tinygrad_batch_norm,
    "linear": lambda x, w, b: x.linear(w.transpose(), b),
    "cross_entropy": lambda logits, labels: logits.sparse_categorical_crossentropy(labels),
}


# -- CuPy --------------------------------------------------------------------------------------------


class Cupy(Provider):
    """What CuPy computes by itself: ReLU, and products by cuBLAS, which 1×1 convolutions are too."""

    name = "cupy"
    device = "gpu"

    def __init__(self, precision: str) -> None:
        from gpucnn.benchmark.providers import cupy_clock
        from gpucnn.devices.cuda import usable_cupy

        self.cupy = usable_cupy()
        self.version = f"CuPy {self.cupy.__version__}"
        self._clock = cupy_clock(self.cupy)

    def op(self, problem: OpProblem, part: str) -> Work:
        case, xp = problem.case, self.cupy
        if part != "forward":
            raise Unsupported("CuPy has no gradients")
        x, *others = (xp.asarray(v) for v in problem.inputs if isinstance(v, np.ndarray))
        if case.op == "relu":
            return Work(lambda: xp.maximum(x, 0), lambda y: [xp.asnumpy(y)])
        if case.op == "linear":
            w, b = others
            return Work(lambda: x @ w.T + b, lambda y: [xp.asnumpy(y)])
        if case.op == "conv2d" and others[0].shape[2:] == (1, 1) and not case.arguments:
            rows = xp.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(-1, x.shape[1])
            w, (n, _, h, v) = others[0].reshape(others[0].shape[:2]), x.shape
            return Work(lambda: rows @ w.T, lambda y: [xp.asnumpy(y).reshape(n, h, v, -1).transpose(0, 3, 1, 2)])
        raise Unsupported(f"CuPy has no {case.op} like this")

    def network(self, problem: NetworkProblem) -> Work:
        raise Unsupported("CuPy has no networks")

    def synchronize(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def cold_seconds(self, run: Callable[[], Any], host_seconds: float) -> float:
        return self._clock.cold_seconds(run, host_seconds)
