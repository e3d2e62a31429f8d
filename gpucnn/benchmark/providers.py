"""By whose code: our backends, and what a user would use instead, where it is installed.

A provider makes a `Work` of a problem: something to run again and again, and a way to bring its results to the host.
It runs ops by automatic differentiation as a user does; a gradient's forward pass is done beforehand where the
provider can keep it. Nothing is imported before its provider is asked for.
"""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

import gpucnn
from gpucnn import functional as F
from gpucnn.backends import get_backend
from gpucnn.backends.precision import PRECISIONS
from gpucnn.benchmark.reference import LR, MOMENTUM, NetworkProblem, OpProblem, flat
from gpucnn.dtypes import named
from gpucnn.nn import Module, models
from gpucnn.testing import Array

NAMES = (
    "numpy", "cuda", "cuda-graph", "torch-cpu", "torch-cpu-channels-last", "torch-cuda", "torch-cuda-channels-last",
    "torch-cuda-compile", "jax", "tinygrad", "cupy",
)  # fmt: skip
OURS = ("numpy", "cuda", "cuda-graph")


class Unsupported(Exception):
    """A provider does not have such an op, network or precision: no failure, there is nothing to time."""


@dataclass(frozen=True)
class Work:
    """`run` does it once and may return before a GPU is done; `results` are the host arrays of what a run returned."""

    run: Callable[[], Any]
    results: Callable[[Any], list[Array]]


class Provider(ABC):
    """Whose code computes, and where: device "cpu" or "gpu". `version` is what a report says of it."""

    name: str
    version: str
    device: Literal["cpu", "gpu"] = "cpu"
    precisions: tuple[str, ...] = ("fp32",)

    def work(self, problem: OpProblem | NetworkProblem, part: str, precision: str) -> Work:
        """What to run for a problem. Raises Unsupported."""
        if precision not in self.precisions:
            raise Unsupported(f"{self.name} has no {precision}")
        return self.op(problem, part) if isinstance(problem, OpProblem) else self.network(problem)

    @abstractmethod
    def op(self, problem: OpProblem, part: str) -> Work:
        """A pass of an op."""

    @abstractmethod
    def network(self, problem: NetworkProblem) -> Work:
        """Inference, or a step of training with SGD."""

    def synchronize(self) -> None:  # noqa: B027  (on a CPU, what returned is done)
        """Wait until what was run is done."""

    def peak_memory(self) -> int:
        """The peak so far, in bytes: of the GPU's memory in the provider's hands, or of this whole process."""
        return process_peak()

    def cold_seconds(self, run: Callable[[], Any], host_seconds: float) -> float:
        """Seconds of a run on the device, with nothing of it in its L2 cache; on a CPU, just the seconds of a run.

        host_seconds: what it takes to enqueue it; the GPU is kept busy for so long, or it would be timed waiting.
        """
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - start


def process_peak() -> int:
    """Peak bytes of this process, libraries included."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage counts what the parent used before it started this process
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -- gpucnn ------------------------------------------------------------------------------------------


class Gpucnn(Provider):
    """One of our backends; "cuda-graph" is cuda with each step of a network captured and launched as a whole."""

    def __init__(self, name: str, precision: str = "fp32") -> None:
        backend, _, self.variant = name.partition("-")
        self.backend = get_backend(backend)
        self.name, self.version = name, gpucnn.__version__
        self.precision, self.dtype = precision, PRECISIONS[precision]
        self.precisions = ("fp32", "bf16", "fp16") if backend == "numpy" else tuple(PRECISIONS)
        if backend == "cuda":
            self.device = "gpu"
            self._clock = cupy_clock(self.backend.xp)

    def op(self, problem: OpProblem, part: str) -> Work:
        if self.variant == "graph":
            raise Unsupported("graphs are for networks: a single op is a launch or two anyway")
        wanted = problem.gradients_of(part)
        inputs = [
            gpucnn.tensor(value, named(self.dtype), requires_grad=i in wanted, backend=self.backend)
            if isinstance(value, np.ndarray) and value.dtype.kind == "f"
            else value
            for i, value in enumerate(problem.inputs)
        ]
        arguments = problem.case.arguments
        op = getattr(F, problem.case.op)

        def forward() -> Any:
            with self._multiplied():
                return op(*inputs, **arguments)

        if not wanted:
            return Work(forward, lambda y: [_of_ours(y)])
        leaves, y = [inputs[i] for i in wanted], forward()
        u = gpucnn.tensor(problem.cotangent, y.dtype, backend=self.backend)

        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            with self._multiplied():
                y.backward(u, retain_graph=True)

        return Work(run, lambda _: [_of_ours(leaf.grad) for leaf in leaves if leaf.grad is not None])

    def _multiplied(self) -> AbstractContextManager[None]:
        """Where products of float32 are in TF32, if they are to be."""
        return gpucnn.precision(self.precision if self.precision == "tf32" else "fp32")

    def _mixed(self) -> AbstractContextManager[None]:
        """For the forward pass of a network, as `Torch` does it."""
        return gpucnn.autocast(self.dtype) if self.dtype != "float32" else nullcontext()

    def network(self, problem: NetworkProblem) -> Work:
        module = problem.module().to(self.backend)
        x = gpucnn.tensor(problem.images, backend=self.backend)
        if not problem.training:

            def infer(x: gpucnn.Tensor) -> Any:
                with gpucnn.no_grad(), self._mixed():
                    return module(x)

            return self._launched(infer, (x,), lambda y: [_of_ours(y)])
        parameters = list(module.parameters())
        optimizer = gpucnn.optim.SGD(parameters, lr=LR, momentum=MOMENTUM)

        def step(x: gpucnn.Tensor, labels: Any) -> Any:
            optimizer.zero_grad()
            with self._mixed():
                loss = F.cross_entropy(module(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        def results(loss: Any) -> list[Array]:
            return [
                loss.numpy(),
                flat(p.grad.numpy() for p in parameters if p.grad is not None),
                flat(p.numpy() for p in parameters),
            ]

        labels = gpucnn.tensor(problem.labels, backend=self.backend) if self.variant == "graph" else problem.labels
        return self._launched(step, (x, labels), results)

    def _launched(
        self, step: Callable[..., Any], arguments: tuple[Any, ...], results: Callable[[Any], list[Array]]
    ) -> Work:
        launch = gpucnn.compile(step) if self.variant == "graph" else step

        def run() -> Any:
            with self._multiplied():
                return launch(*arguments)

        return Work(run, results)

    def synchronize(self) -> None:
        self.backend.synchronize()

    def peak_memory(self) -> int:
        held: dict[str, int] = self.backend.device.memory_report() if self.device == "gpu" else {}  # type: ignore[attr-defined]
        return held.get("held") or process_peak()

    def cold_seconds(self, run: Callable[[], Any], host_seconds: float) -> float:
        if self.device == "cpu":
            return super().cold_seconds(run, host_seconds)
        return self._clock.cold_seconds(run, host_seconds)


def _of_ours(tensor: gpucnn.Tensor) -> Array:
    return np.asarray(tensor.detach().float().numpy())


class ColdClock:
    """Times on a GPU, between two events, after its L2 cache was overwritten.

    make_flush: allocates, when it is first needed, what overwrites the cache. Events have record() and synchronize().
    """

    def __init__(
        self,
        make_flush: Callable[[], Callable[[], Any]],
        event: Callable[[], Any],
        milliseconds: Callable[[Any, Any], float],
        synchronize: Callable[[], Any],
    ) -> None:
        self._make_flush, self._event = make_flush, event
        self._milliseconds, self._synchronize = milliseconds, synchronize
        self._flush: Callable[[], Any] | None = None
        self._flush_seconds = 0.0

    def cold_seconds(self, run: Callable[[], Any], host_seconds: float) -> float:
        """As `Provider.cold_seconds`."""
        if self._flush is None:
            self._flush = self._make_flush()
            self._flush_seconds = _seconds_of(self._flush, self._synchronize)
        for _ in range(_times(host_seconds, self._flush_seconds)):
            self._flush()
        start, end = self._event(), self._event()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(self._milliseconds(start, end)) / 1000


def cupy_clock(cupy: Any) -> ColdClock:
    """A clock of CuPy's events."""

    def make_flush() -> Callable[[], Any]:
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
        buffer = cupy.empty(_flushed(int(properties["l2CacheSize"])), np.uint8)
        return lambda: buffer.fill(0)

    cuda = cupy.cuda
    return ColdClock(make_flush, cuda.Event, cuda.get_elapsed_time, lambda: cuda.get_current_stream().synchronize())


def torch_clock(torch: Any) -> ColdClock:
    """A clock of PyTorch's events."""

    def make_flush() -> Callable[[], Any]:
        cache = int(torch.cuda.get_device_properties(0).L2_cache_size)
        buffer = torch.empty(_flushed(cache), dtype=torch.uint8, device="cuda")
        return lambda: buffer.zero_()

    def event() -> Any:
        return torch.cuda.Event(enable_timing=True)

    return ColdClock(make_flush, event, lambda start, end: start.elapsed_time(end), torch.cuda.synchronize)


def _flushed(cache: int) -> int:
    """Bytes to overwrite a cache of so many: enough to keep the GPU busy for some 20 µs, too."""
    return max(2 * cache, 1 << 26)


def _times(seconds: float, each: float) -> int:
    """How many writes of `each` seconds last 1.5 times as long; at least one, at most 1000."""
    return min(1 + int(1.5 * seconds / each), 1000)


def _seconds_of(function: Callable[[], Any], synchronize: Callable[[], Any]) -> float:
    """Of one of ten runs in a row."""
    function()
    synchronize()
    start = time.perf_counter()
    for _ in range(10):
        function()
    synchronize()
    return max((time.perf_counter() - start) / 10, 1e-6)


# -- PyTorch -----------------------------------------------------------------------------------------


class Torch(Provider):
    """PyTorch: eager; with channels_last tensors, and cudnn.benchmark on a GPU; or torch.compile with CUDA graphs."""

    def __init__(self, device: Literal["cpu", "cuda"], precision: str, threads: int, variant: str = "") -> None:
        torch: Any = import_module("torch")
        self.torch, self.where, self.variant, self.precision = torch, device, variant, precision
        if device == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("PyTorch finds no GPU it can use")
            self.device = "gpu"
            self._clock = torch_clock(torch)
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self.name = f"torch-{device}" + (f"-{variant}" if variant else "")
        self.version = f"PyTorch {torch.__version__}"
        self.precisions = ("fp32", "bf16") if device == "cpu" else ("fp32", "tf32", "bf16", "fp16")

    def _tensor(self, array: Array, dtype: Any = None) -> Any:
        tensor = self.torch.tensor(array, device=self.where)
        if tensor.is_floating_point():
            tensor = tensor.to(getattr(self.torch, dtype or PRECISIONS[self.precision]))
        if self.variant == "channels-last" and tensor.ndim == 4:
            tensor = tensor.to(memory_format=self.torch.channels_last)
        return tensor

    def _set_up(self) -> None:
        """What is of the whole process, and may be another variant's."""
        self.torch.backends.cudnn.benchmark = self.variant == "channels-last"

    def op(self, problem: OpProblem, part: str) -> Work:
        if self.variant == "compile":
            raise Unsupported("torch.compile is for networks: a single op gains nothing by it")
        self._set_up()
        inputs = [self._tensor(v) if isinstance(v, np.ndarray) else v for v in problem.inputs]
        op, arguments = getattr(self.torch.nn.functional, problem.case.op), problem.case.arguments
        wanted = problem.gradients_of(part)
        if not wanted:
            return Work(lambda: op(*inputs, **arguments), lambda y: [_of_torch(y)])
        leaves = [inputs[i].requires_grad_() for i in wanted]
        y = op(*inputs, **arguments)
        u = self._tensor(problem.cotangent)

        def run() -> Any:
            return self.torch.autograd.grad(y, leaves, u, retain_graph=True)

        return Work(run, lambda gradients: [_of_torch(g) for g in gradients])

    def network(self, problem: NetworkProblem) -> Work:
        torch = self.torch
        self._set_up()
        module = torch_twin(problem.module()).to(self.where).train(problem.training)
        parameters = list(module.parameters())  # before torch.compile, with our order
        x, labels = self._tensor(problem.images, "float32"), self._tensor(problem.labels)
        if self.variant == "channels-last":
            module = module.to(memory_format=torch.channels_last)
        if self.variant == "compile":
            module = torch.compile(module, mode="reduce-overhead")
        half = getattr(torch, PRECISIONS[self.precision])
        mixed = torch.autocast(self.where, half, enabled=half != torch.float32)
        if not problem.training:

            def infer() -> Any:
                with torch.inference_mode(), mixed:
                    return module(x)

            return Work(infer, lambda y: [_of_torch(y)])
        optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM)

        def step() -> Any:
            optimizer.zero_grad()
            with mixed:
                loss = torch.nn.functional.cross_entropy(module(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        def results(loss: Any) -> list[Array]:
            gradients = flat(_of_torch(p.grad) for p in parameters)
            return [_of_torch(loss), gradients, flat(_of_torch(p) for p in parameters)]

        return Work(step, results)

    def synchronize(self) -> None:
        if self.device == "gpu":
            self.torch.cuda.synchronize()

    def peak_memory(self) -> int:
        return int(self.torch.cuda.max_memory_reserved()) if self.device == "gpu" else process_peak()

    def cold_seconds(self, run: Callable[[], Any], host_seconds: float) -> float:
        if self.device == "cpu":
            return super().cold_seconds(run, host_seconds)
        return self._clock.cold_seconds(run, host_seconds)


def _of_torch(tensor: Any) -> Array:
    array: Array = tensor.detach().float().cpu().numpy()
    return array


def torch_twin(module: Module) -> Any:
    """The same network as a torch.nn.Module with the same weights: our layers have PyTorch's names and arguments."""
    torch: Any = import_module("torch")

    class Residual(torch.nn.Module):  # type: ignore[misc]
        """A block of two or three convolutions, or a whole ResNet."""

        def __init__(self, ours: Module) -> None:
            super().__init__()
            self.whole = isinstance(ours, models.ResNet)
            for name, value in vars(ours).items():
                if isinstance(value, Module):
                    setattr(self, name, convert(value))

        def forward(self, x: Any) -> Any:
            relu = torch.nn.functional.relu
            y = relu(self.bn1(self.conv1(x)))
            if self.whole:
                y = self.maxpool(y)
                for name, child in self.named_children():
                    y = child(y) if name.startswith("layer") else y
                return self.fc(self.avgpool(y).flatten(1))
            y = self.bn2(self.conv2(y))
            if hasattr(self, "conv3"):
                y = self.bn3(self.conv3(relu(y)))
            return relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))

    class Pad(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, ours: models.PadShortcut) -> None:
            super().__init__()
            self.extra, self.stride = ours.extra, ours.stride

        def forward(self, x: Any) -> Any:
            sides = (0, 0, 0, 0, 0, self.extra)
            return torch.nn.functional.pad(x[:, :, :: self.stride, :: self.stride], sides)

    def convert(ours: Module) -> Any:
        if isinstance(ours, models.ResNet | models.BasicBlock | models.Bottleneck):
            return Residual(ours)
        if isinstance(ours, models.PadShortcut):
            return Pad(ours)
        if isinstance(ours, gpucnn.nn.Sequential):
            return torch.nn.Sequential(*map(convert, ours.children()))
        args, kwargs = ours._arguments
        return getattr(torch.nn, type(ours).__name__)(*args, **kwargs)

    twin = convert(module)
    values = {name: torch.from_numpy(np.array(value.numpy(), order="C")) for name, value in module.state_dict().items()}
    twin.load_state_dict(values, strict=False)  # PyTorch's batch norm counts batches too
    return twin


# -- choosing ----------------------------------------------------------------------------------------


def make(name: str, precision: str, threads: int) -> Provider:
    """The provider of that name. Raises RuntimeError, saying what is missing, where it can't run."""
    if name in OURS:
        return Gpucnn(name, precision)
    package = name.partition("-")[0]
    if find_spec(package) is None:
        raise RuntimeError(f"{package} is not installed")
    if package == "torch":
        _, device, variant = (*name.split("-", 2), "")[:3]
        return Torch("cuda" if device == "cuda" else "cpu", precision, threads, variant)
    from gpucnn.benchmark import peers

    kinds: dict[str, Callable[[str], Provider]] = {"jax": peers.Jax, "tinygrad": peers.Tinygrad, "cupy": peers.Cupy}
    return kinds[package](precision)


def limit_threads(threads: int) -> None:
    """For every library that is not loaded yet, and NumPy's BLAS, which is."""
    from threadpoolctl import threadpool_limits

    for variable in (
        "GPUCNN_THREADS",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NPROC",
        "CPU_COUNT",
    ):
        os.environ[variable] = str(threads)  # NPROC is JAX's, CPU_COUNT tinygrad's
    threadpool_limits(threads, "blas")
    from gpucnn.backends.numpy_parallel import workers

    if workers.threads != threads:
        raise RuntimeError(
            f"the numpy backend already runs with {workers.threads} threads; for {threads}, start Python with "
            f"GPUCNN_THREADS={threads}, or give --threads {workers.threads}"
        )
