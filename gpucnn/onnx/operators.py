"""ONNX's operators, each as a function of the tensors it takes, made of gpucnn.functional.

An operator is looked up in OPERATORS by its ONNX name. Its `make` reads a node's attributes, which differ between
opsets, and returns what computes the node; it raises ValueError for what can't be computed exactly. Inputs are named:
those in NUMBERS arrive as host arrays, all others as tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from gpucnn import functional as F
from gpucnn.backends import get_backend
from gpucnn.backends.numpy_special import erf
from gpucnn.functional import validate
from gpucnn.onnx.read import Array, Node, dtype_of
from gpucnn.onnx.spatial import (
    Function,
    affordable,
    average_pool,
    conv,
    conv_transpose,
    depth_to_space,
    in_one_row,
    max_pool,
    pad,
    resize,
    space_to_depth,
    take,
)
from gpucnn.tensor import Tensor, in_storage_order, record, tensor

Make = Callable[[Node], Function]

# Inputs that say how to compute and are no data: shapes, axes, bounds.
NUMBERS = {
    "axes", "ends", "highest", "indices", "lowest", "pads", "ratio", "repeats", "roi", "scales", "shape", "sizes",
    "split", "starts", "steps", "training_mode", "value",
}  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """How a node is made; the names of its inputs, the first `required` of which it must have.

    `variadic`: the last input may be repeated. `modal`: it computes another thing in training mode, and is told.
    """

    make: Make
    inputs: tuple[str, ...] = ("input",)
    required: int = 1
    variadic: bool = False
    modal: bool = False

    def name_of(self, position: int) -> str:
        """The name of the input at a position."""
        return self.inputs[min(position, len(self.inputs) - 1)]


def host(values: Array) -> Tensor:
    """A tensor on the host, where shapes are computed."""
    return Tensor(values, get_backend("numpy"))


def _plain(function: Function) -> Make:
    """An operator without attributes."""
    return lambda node: function


# -- normalisation ---------------------------------------------------------------------------------


def batch_norm(node: Node) -> Function:
    eps, momentum = node.float("epsilon", 1e-5), node.float("momentum", 0.9)
    if node.int("training_mode", 0):
        raise ValueError("it is in training mode; export the model in evaluation mode")
    if node.int("spatial", 1) != 1:
        raise ValueError("spatial 0, statistics of each pixel, is not supported")

    def run(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, training: bool) -> Tensor:
        plane = x if x.ndim in (2, 4) else x.reshape(*x.shape[:2], -1, 1)
        return F.batch_norm(plane, mean, var, weight, bias, training, 1 - momentum, eps).reshape(x.shape)

    return run


def instance_norm(node: Node) -> Function:
    eps = node.float("epsilon", 1e-5)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if math.prod(x.shape[2:]) == 1:  # ONNX gives the bias, PyTorch and instance_norm an error
            return F.group_norm(x, x.shape[1], weight, bias, eps)
        return F.instance_norm(x, weight=weight, bias=bias, eps=eps)

    return run


def group_norm(node: Node) -> Function:
    groups, eps, per_group = node.int("num_groups"), node.float("epsilon", 1e-5), node.opset < 21
    node.int("stash_type", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if per_group:  # until opset 20 the scale and bias are one a group
            each = x.shape[1] // groups
            weight, bias = (t.reshape(groups, 1).expand(groups, each).reshape(-1) for t in (weight, bias))
        return F.group_norm(x, groups, weight, bias, eps)

    return run


def layer_norm(node: Node) -> Function:
    axis, eps = node.int("axis", -1), node.float("epsilon", 1e-5)
    node.int("stash_type", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = F.layer_norm(x, x.shape[axis:], eps=eps) * weight
        return y if bias is None else y + bias

    return run


def local_response_norm(node: Node) -> Function:
    size = node.int("size")
    alpha, beta, k = node.float("alpha", 1e-4), node.float("beta", 0.75), node.float("bias", 1.0)
    if size % 2 == 0:
        raise ValueError(f"size {size}: windows of an even number of channels lie one channel off functional's")
    return lambda x: F.local_response_norm(x, size, alpha, beta, k)


# -- products --------------------------------------------------------------------------------------


def gemm(node: Node) -> Function:
    alpha, beta = node.float("alpha", 1.0), node.float("beta", 1.0)
    trans_a, trans_b = node.int("transA", 0), node.int("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        validate.rank(node.op, "input", a, 2, "[M, K]")
        validate.rank(node.op, "weight", b, 2, "[K, N]")
        a = a.transpose(0, 1) if trans_a else a
        if trans_b and alpha == 1 and (c is None or (beta == 1 and c.shape == (b.shape[0],))):
            return F.linear(a, b, c)
        y = a @ (b.transpose(0, 1) if trans_b else b)
        y = y if alpha == 1 else y * alpha
        return y if c is None else y + (c if beta == 1 else c * beta)

    return run


# -- activations -----------------------------------------------------------------------------------


def hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.float("alpha", 0.2), node.float("beta", 0.5)
    return lambda x: F.clamp(x * alpha + beta, 0.0, 1.0)


def elu(node: Node) -> Function:
    return partial(F.elu, alpha=node.float("alpha", 1.0))


def selu(node: Node) -> Function:
    alpha, gamma = node.float("alpha", 1.67326319217681884765625), node.float("gamma", 1.05070102214813232421875)
    return lambda x: F.elu(x, alpha) * gamma


def celu(node: Node) -> Function:
    alpha = node.float("alpha", 1.0)
    return lambda x: F.elu(x / alpha) * alpha


def leaky_relu(node: Node) -> Function:
    return partial(F.leaky_relu, negative_slope=node.float("alpha", 0.01))


def prelu(node: Node) -> Function:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        if weight.numel() == 1 or (x.ndim > 1 and weight.shape == (x.shape[1], *(1,) * (x.ndim - 2))):
            return F.prelu(x, weight.reshape(-1))
        return F.relu(x) - weight * F.relu(-x)

    return run


def gelu(node: Node) -> Function:
    return partial(F.gelu, approximate=node.text("approximate", "none", ("none", "tanh")))


def swish(node: Node) -> Function:
    alpha = node.float("alpha", 1.0)
    return F.silu if alpha == 1 else lambda x: x * F.sigmoid(x * alpha)


def _softmax(function: Function) -> Make:
    def make(node: Node) -> Function:
        if node.opset >= 13:
            return partial(function, dim=node.int("axis", -1))
        axis = node.int("axis", 1)
        return lambda x: function(_two_axes(x, axis), 1).reshape(x.shape)

    return make


def clip(node: Node) -> Function:
    bounds = (node.float("min", None), node.float("max", None)) if node.opset < 11 else (None, None)

    def run(x: Tensor, lowest: Array | None = None, highest: Array | None = None) -> Tensor:
        low, high = (g if n is None else n.item() for n, g in zip((lowest, highest), bounds, strict=True))
        return x if low is None and high is None else F.clamp(x, low, high)

    return run


def dropout(node: Node) -> Function:
    fixed = node.float("ratio", 0.5) if node.opset < 12 else 0.5
    node.int("seed", 0)

    def run(x: Tensor, ratio: Array | None = None, training_mode: Any = None, *, training: bool) -> Tensor:
        return F.dropout(x, fixed if ratio is None else ratio.item(), training)

    return run


# -- arithmetic ------------------------------------------------------------------------------------


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """x / y; of whole numbers rounded towards zero."""
    if x.dtype.kind == "f":
        return x / y
    if not y.numpy().all():
        raise ValueError("division of whole numbers by zero")
    xp = x.backend.xp
    signs = xp.sign(x.array) * xp.sign(y.array) if x.dtype.kind == "i" else 1
    return Tensor((xp.abs(x.array) // xp.abs(y.array) * signs).astype(x.dtype), x.backend)


def _erf(x: Tensor) -> Tensor:
    """The error function, of which GELU is made where it is no operator of its own (before opset 20)."""
    backend, values, slope = validate.floating("Erf", input=x), x.array, 2 / math.sqrt(math.pi)

    def share(dy: Array, v: Array) -> Any:
        return dy * (slope * backend.xp.exp(-v * v))

    return record(backend, in_storage_order(erf, values), (x, lambda dy: in_storage_order(share, dy, values)))


def _power(x: Tensor, y: Tensor) -> Tensor:
    return F.pow(x, y).to(x.dtype)


def _mean(*tensors: Tensor) -> Tensor:
    return reduce(F.add, tensors) / len(tensors)


def _all(function: Function) -> Function:
    """A function of two as one of any number of tensors."""
    return lambda *tensors: reduce(function, tensors)


def _comparison(name: str) -> Make:
    return lambda node: partial(F.compare, name)


def isinf(node: Node) -> Function:
    signs = [sign for sign, name in ((1, "detect_positive"), (-1, "detect_negative")) if node.int(name, 1)]
    return lambda x: F.isinf(x) & (x * sum(signs) > 0 if len(signs) == 1 else bool(signs))


def _reduction(function: Function) -> Make:
    def make(node: Node) -> Function:
        keep, fixed = bool(node.int("keepdims", 1)), node.ints("axes", None)
        noop = node.int("noop_with_empty_axes", 0)

        def run(x: Tensor, axes: Array | None = None) -> Tensor:
            chosen = fixed if axes is None else axes.tolist()
            if not chosen and noop:
                return x
            y: Tensor = function(x, chosen or None, keep)
            return y.to(x.dtype)

        return run

    return make


def argmax(node: Node) -> Function:
    axis, keep = node.int("axis", 0), node.int("keepdims", 1)
    if node.int("select_last_index", 0):
        raise ValueError("select_last_index is not supported")
    return lambda x: F.argmax(x, axis, keepdim=bool(keep))


# -- shapes ----------------------------------------------------------------------------------------


def _two_axes(x: Tensor, axis: int) -> Tensor:
    """All axes before `axis` as one, and the others as another."""
    if not -x.ndim <= axis <= x.ndim:
        raise ValueError(f"axis {axis} is none of shape {x.shape}")
    at = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


def constant(node: Node) -> Function:
    value = node.tensor("value")
    for name, read in (("value_float", node.float), ("value_floats", node.floats)):
        given = read(name, None)
        value = value if given is None else np.array(given, np.float32)
    for name, read in (("value_int", node.int), ("value_ints", node.ints)):
        given = read(name, None)
        value = value if given is None else np.array(given, np.int64)
    if value is None:
        raise ValueError("it has no value that is a tensor of numbers")
    return lambda: host(value)


def constant_of_shape(node: Node) -> Function:
    given = node.tensor("value")
    value = np.zeros(1, np.float32) if given is None else given
    if value.size != 1:
        raise ValueError(f"its value must be one number, got shape {value.shape}")
    return lambda shape: host(np.full(affordable(shape.tolist(), value.dtype), value.item(), value.dtype))


def expand(node: Node) -> Function:
    def run(x: Tensor, shape: Array) -> Tensor:
        return F.expand(x, affordable(np.broadcast_shapes(x.shape, tuple(shape.tolist())), x.dtype))

    return run


def tile(node: Node) -> Function:
    def run(x: Tensor, repeats: Array) -> Tensor:
        affordable([n * r for n, r in zip(x.shape, repeats.tolist(), strict=True)], x.dtype)
        for axis, times in enumerate(repeats.tolist()):
            if times != 1:
                x = take(x, np.tile(np.arange(x.shape[axis]), times), axis)
        return x

    return run


def shape(node: Node) -> Function:
    part = slice(node.int("start", 0), node.int("end", None))
    return lambda x: host(np.array(x.shape[part], np.int64))


def cast(node: Node) -> Function:
    dtype = dtype_of(node.int("to"))
    node.int("saturate", 1)  # of 8-bit floats, as is round_mode
    node.text("round_mode", "up", ("up", "down", "nearest"))
    return lambda x: x.to(dtype)


def reshape(node: Node) -> Function:
    allow_zero = node.int("allowzero", 0)

    def run(x: Tensor, shape: Array) -> Tensor:
        wanted = shape.tolist()
        if not allow_zero:
            wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
        return x.reshape(wanted)

    return run


def flatten(node: Node) -> Function:
    axis = node.int("axis", 1)
    return lambda x: _two_axes(x, axis)


def transpose(node: Node) -> Function:
    order = node.ints("perm", None)
    return lambda x: x.permute(range(x.ndim)[::-1] if order is None else order)


def squeeze(node: Node) -> Function:
    fixed = node.ints("axes", None)

    def run(x: Tensor, axes: Array | None = None) -> Tensor:
        chosen = fixed if axes is None else axes.tolist()
        if chosen is None:
            return x.squeeze()
        drop = {validate.axis(node.op, axis, x.ndim) for axis in chosen}
        if any(x.shape[axis] != 1 for axis in drop):
            raise ValueError(f"axes {sorted(drop)} of shape {x.shape} are not all of length 1")
        return x.reshape([n for axis, n in enumerate(x.shape) if axis not in drop])

    return run


def unsqueeze(node: Node) -> Function:
    fixed = node.ints("axes", None)

    def run(x: Tensor, axes: Array | None = None) -> Tensor:
        chosen = fixed if axes is None else axes.tolist()
        rank = x.ndim + len(chosen)
        for axis in sorted(validate.axis(node.op, axis, rank) for axis in chosen):
            x = x.unsqueeze(axis)
        return x

    return run


def concat(node: Node) -> Function:
    axis = node.int("axis")
    return lambda *tensors: F.cat(tensors, axis)


def split(node: Node) -> Function:
    axis, fixed, count = node.int("axis", 0), node.ints("split", None), len(node.outputs)
    if node.int("num_outputs", count) != count:
        raise ValueError(f"num_outputs is not the number of its outputs, {count}")

    def run(x: Tensor, split: Array | None = None) -> tuple[Tensor, ...]:
        at = validate.axis(node.op, axis, x.ndim)
        length, each = x.shape[at], -(-x.shape[at] // count)
        even = [max(min(each, length - i * each), 0) for i in range(count)]
        sizes = even if split is None and fixed is None else list(fixed if split is None else split.tolist())
        if len(sizes) != count or sum(sizes) != length or min(sizes) < 0:
            raise ValueError(f"an axis of {length} can't be split into {count} parts of {sizes}")
        ends = np.cumsum(sizes).tolist()
        return tuple(
            F.index(x, (slice(None),) * at + (slice(end - size, end),)) for end, size in zip(ends, sizes, strict=True)
        )

    return run


def slice_(node: Node) -> Function:
    fixed = [node.ints(name, None) for name in ("starts", "ends", "axes")]

    def run(x: Tensor, *given: Array | None) -> Tensor:
        parts = [None if part is None else part.tolist() for part in given] or fixed
        starts, ends, axes, steps = [*parts, None, None][:4]
        if starts is None or ends is None or len(starts) != len(ends):
            raise ValueError(f"starts {starts} and ends {ends} must be as many")
        chosen = [slice(None)] * x.ndim
        for start, end, axis, step in zip(
            starts, ends, range(len(starts)) if axes is None else axes, steps or [1] * len(starts), strict=True
        ):
            axis = validate.axis(node.op, axis, x.ndim)
            if step < 0:  # what begins before the first element begins with it, where Python takes nothing
                start = max(start, -x.shape[axis])
            chosen[axis] = slice(start, end, step)
        return F.index(x, tuple(chosen))

    return run


def gather(node: Node) -> Function:
    axis = node.int("axis", 0)

    def run(x: Tensor, indices: Array) -> Tensor:
        at = validate.axis(node.op, axis, x.ndim)
        affordable((*x.shape[:at], *indices.shape, *x.shape[at + 1 :]), x.dtype)
        return take(x, indices.astype(np.intp), at)

    return run


def gather_elements(node: Node) -> Function:
    axis = node.int("axis", 0)

    def run(x: Tensor, indices: Array) -> Tensor:
        length = x.shape[validate.axis(node.op, axis, x.ndim)]
        return F.gather(x, axis, tensor(np.where(indices < 0, indices + length, indices), backend=x.backend))

    return run


# -- the table -------------------------------------------------------------------------------------

_TWO = ("input", "other")

OPERATORS: dict[str, Operator] = {
    "Abs": Operator(_plain(F.abs)),
    "Add": Operator(_plain(F.add), _TWO, 2),
    "And": Operator(_plain(F.logical_and), _TWO, 2),
    "ArgMax": Operator(argmax),
    "AveragePool": Operator(average_pool),
    "BatchNormalization": Operator(
        batch_norm, ("input", "weight", "bias", "running_mean", "running_var"), 5, modal=True
    ),
    "Cast": Operator(cast),
    "Ceil": Operator(_plain(F.ceil)),
    "Celu": Operator(celu),
    "Clip": Operator(clip, ("input", "lowest", "highest")),
    "Concat": Operator(concat, variadic=True),
    "Constant": Operator(constant, (), 0),
    "ConstantOfShape": Operator(constant_of_shape, ("shape",)),
    "Conv": Operator(conv, ("input", "weight", "bias"), 2),
    "ConvTranspose": Operator(conv_transpose, ("input", "weight", "bias"), 2),
    "DepthToSpace": Operator(depth_to_space),
    "Div": Operator(_plain(_divide), _TWO, 2),
    "Dropout": Operator(dropout, ("input", "ratio", "training_mode"), modal=True),
    "Elu": Operator(elu),
    "Equal": Operator(_comparison("equal"), _TWO, 2),
    "Erf": Operator(_plain(_erf)),
    "Cos": Operator(_plain(F.cos)),
    "Exp": Operator(_plain(F.exp)),
    "Expand": Operator(expand, ("input", "shape"), 2),
    "Flatten": Operator(flatten),
    "Floor": Operator(_plain(F.floor)),
    "Gather": Operator(gather, ("input", "indices"), 2),
    "GatherElements": Operator(gather_elements, ("input", "indices"), 2),
    "Gelu": Operator(gelu),
    "Gemm": Operator(gemm, ("input", "weight", "bias"), 2),
    "GlobalAveragePool": Operator(in_one_row(_plain(partial(F.adaptive_avg_pool2d, output_size=1)))),
    "GlobalMaxPool": Operator(in_one_row(_plain(partial(F.adaptive_max_pool2d, output_size=1)))),
    "Greater": Operator(_comparison("greater"), _TWO, 2),
    "GreaterOrEqual": Operator(_comparison("greater_equal"), _TWO, 2),
    "GroupNormalization": Operator(group_norm, ("input", "weight", "bias"), 3),
    "HardSigmoid": Operator(hard_sigmoid),
    "HardSwish": Operator(_plain(F.hardswish)),
    "Identity": Operator(_plain(lambda x: x)),
    "InstanceNormalization": Operator(instance_norm, ("input", "weight", "bias"), 3),
    "IsInf": Operator(isinf),
    "IsNaN": Operator(_plain(F.isnan)),
    "LRN": Operator(local_response_norm),
    "LayerNormalization": Operator(layer_norm, ("input", "weight", "bias"), 2),
    "LeakyRelu": Operator(leaky_relu),
    "Less": Operator(_comparison("less"), _TWO, 2),
    "LessOrEqual": Operator(_comparison("less_equal"), _TWO, 2),
    "Log": Operator(_plain(F.log)),
    "LogSoftmax": Operator(_softmax(F.log_softmax)),
    "MatMul": Operator(_plain(F.matmul), _TWO, 2),
    "Max": Operator(_plain(_all(F.maximum)), variadic=True),
    "MaxPool": Operator(max_pool),
    "Mean": Operator(_plain(_mean), variadic=True),
    "Min": Operator(_plain(_all(F.minimum)), variadic=True),
    "Mish": Operator(_plain(F.mish)),
    "Mul": Operator(_plain(F.mul), _TWO, 2),
    "Neg": Operator(_plain(F.neg)),
    "Not": Operator(_plain(F.logical_not)),
    "Or": Operator(_plain(F.logical_or), _TWO, 2),
    "PRelu": Operator(prelu, ("input", "weight"), 2),
    "Pad": Operator(pad, ("input", "pads", "value", "axes")),
    "Pow": Operator(_plain(_power), _TWO, 2),
    "Reciprocal": Operator(_plain(F.reciprocal)),
    "ReduceL1": Operator(_reduction(lambda x, dim, keep: F.norm(x, 1, dim, keep)), ("input", "axes")),
    "ReduceL2": Operator(_reduction(lambda x, dim, keep: F.norm(x, 2, dim, keep)), ("input", "axes")),
    "ReduceMax": Operator(_reduction(F.amax), ("input", "axes")),
    "ReduceMean": Operator(_reduction(F.mean), ("input", "axes")),
    "ReduceMin": Operator(_reduction(F.amin), ("input", "axes")),
    "ReduceSum": Operator(_reduction(F.sum), ("input", "axes")),
    "Relu": Operator(_plain(F.relu)),
    "Reshape": Operator(reshape, ("input", "shape"), 2),
    "Resize": Operator(resize, ("input", "roi", "scales", "sizes")),
    "Round": Operator(_plain(F.round)),
    "Selu": Operator(selu),
    "Shape": Operator(shape),
    "Sigmoid": Operator(_plain(F.sigmoid)),
    "Sign": Operator(_plain(F.sign)),
    "Slice": Operator(slice_, ("input", "starts", "ends", "axes", "steps")),
    "Softmax": Operator(_softmax(F.softmax)),
    "Softplus": Operator(_plain(F.softplus)),
    "Softsign": Operator(_plain(F.softsign)),
    "SpaceToDepth": Operator(space_to_depth),
    "Split": Operator(split, ("input", "split")),
    "Sin": Operator(_plain(F.sin)),
    "Sqrt": Operator(_plain(F.sqrt)),
    "Squeeze": Operator(squeeze, ("input", "axes")),
    "Sub": Operator(_plain(F.sub), _TWO, 2),
    "Sum": Operator(_plain(_all(F.add)), variadic=True),
    "Swish": Operator(swish),
    "Tanh": Operator(_plain(F.tanh)),
    "Tile": Operator(tile, ("input", "repeats"), 2),
    "Transpose": Operator(transpose),
    "Unsqueeze": Operator(unsqueeze, ("input", "axes")),
    "Upsample": Operator(resize, ("input", "scales")),
    "Where": Operator(_plain(F.where), ("condition", "chosen", "otherwise"), 3),
    "Xor": Operator(_plain(F.logical_xor), _TWO, 2),
}
