"""save: a model as an ONNX file, from what its forward() does with gpucnn.functional.

WRITERS has one function for each function of gpucnn.functional that ONNX can say as exactly; the others are written as
what they themselves call. What ONNX's own definitions leave open, or runtimes do differently (ceil mode, "same", even
windows of channels, resizing by odd factors), is written with operators of which there are no two opinions.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gpucnn import functional as F
from gpucnn.atomic import write_atomically
from gpucnn.checkpoint import classes_and_normalise
from gpucnn.data import Normalize
from gpucnn.functional import arithmetic, pooling
from gpucnn.geometry import Size, Window
from gpucnn.nn.module import Module
from gpucnn.onnx.graph import load
from gpucnn.onnx.read import METADATA, Array
from gpucnn.onnx.trace import Recorder, Recording, Step, key, record, shape_of, steps, tensors
from gpucnn.tensor import Tensor, no_grad

OPSET, IR_VERSION = 20, 9
BATCHES = (2, 5)  # a model is recorded with two batch sizes: what differs depends on the batch
MOST_BYTES = 2**31 - 2**20  # a file can hold 2 GiB in all

# By name; the last two are what all poolings end in, with a Window and the way to divide settled.
FUNCTIONS: dict[str, Any] = {
    **{name: getattr(F, name) for name in F.__all__},
    "_mean_pool2d": pooling._mean_pool2d,
    "_extreme_pool2d": pooling._extreme_pool2d,
    "_root": arithmetic._root,
}


class Writer:
    """The nodes and constants of a file in the making. Values have names; `name` tells that of a tensor."""

    def __init__(self, named: dict[str, Tensor]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self._parameters = {key(tensor): (name, tensor) for name, tensor in named.items()}
        self._reserved = set(named)
        self._names: dict[int, str] = {}
        self._kept: list[Tensor] = []  # so that no other tensor gets the identity of one that has a name

    def call(self, tensor: Tensor, name: str) -> None:
        """A name for a tensor that is made by nodes, or is an input."""
        self._names[key(tensor)] = name
        self._kept.append(tensor)

    def name(self, value: Any, like: Tensor | None = None) -> str:
        """The name of a tensor; what no node makes is a constant of the file. Numbers take the dtype of `like`."""
        if not isinstance(value, Tensor):
            return self.constant(np.asarray(value, np.float32 if like is None else like.dtype))
        if key(value) not in self._names:
            name = self._parameters.get(key(value), (None, None))[0]
            self.call(value, self.constant(value.numpy(), name))
        return self._names[key(value)]

    def constant(self, array: Array, name: str | None = None) -> str:
        """A constant of the file."""
        name = name or self.free(f"constant_{i}" for i in itertools.count(len(self.constants)))
        self.constants[name] = np.ascontiguousarray(array).reshape(array.shape)
        return name

    def free(self, names: Iterable[str]) -> str:
        """The first of these names that nothing else has yet; it is taken then."""
        name = next(name for name in names if name not in self._reserved)
        self._reserved.add(name)
        return name

    def ints(self, *values: int) -> str:
        """A constant of whole numbers: a shape, axes and the like."""
        return self.constant(np.array(values, np.int64))

    def node(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """One node; inputs are tensors, or names. Returns the name of what it makes."""
        number = len(self.nodes)
        names = [value if isinstance(value, str) else self.name(value) for value in inputs]
        output = self.free(_numbered(f"{op}_{number}_output"))
        self.nodes.append(helper.make_node(op, names, [output], f"{op}_{number}", **attributes))
        return output


Write = Callable[[Writer, Step], str]


# -- convolution, pooling --------------------------------------------------------------------------


def _pads(window: Window) -> list[int]:
    top, bottom, left, right = window.padding
    return [top, left, bottom, right]


def _window(s: Step) -> Window:
    return Window.of(s["weight"].shape[2:], s["stride"], s["padding"], s["dilation"], size=s["input"].shape[2:])


def _convolved(w: Writer, s: Step, weight: Any) -> str:
    window, bias = _window(s), s["bias"]
    return w.node(
        "Conv", s["input"], weight, *([] if bias is None else [bias]),
        kernel_shape=window.kernel, strides=window.stride, dilations=window.dilation, pads=_pads(window),
        group=s["groups"],
    )  # fmt: skip


def conv2d(w: Writer, s: Step) -> str:
    weight = s["weight"]
    if s["scale"] is not None:
        weight = w.node("Mul", weight, w.node("Reshape", s["scale"], w.ints(-1, 1, 1, 1)))
    return _finished(w, s, _convolved(w, s, weight))


def conv2d_max_pool2d(w: Writer, s: Step) -> str:
    size = _window(s).output_size(s["input"].shape[2:])
    window = pooling.extreme_window("max_pool2d", size, **s["max_pool"])
    y = _max_pool(w, s, _convolved(w, s, s["weight"]), window, size)
    return y if s["activation"] is None else w.node("Relu", y)


def _finished(w: Writer, s: Step, y: str) -> str:
    """y + residual, activated."""
    if s["residual"] is not None:
        y = w.node("Add", y, s["residual"])
    fused = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
    if s["activation"] == "relu6":
        return w.node("Clip", y, w.name(0.0, s["input"]), w.name(6.0, s["input"]))
    return y if s["activation"] is None else w.node(fused[s["activation"]], y)


def conv_transpose2d(w: Writer, s: Step) -> str:
    weight, bias = s["weight"], s["bias"]
    window = Window.of(weight.shape[2:], s["stride"], s["padding"], s["dilation"])
    extra = s["output_padding"]
    return w.node(
        "ConvTranspose", s["input"], weight, *([] if bias is None else [bias]),
        kernel_shape=window.kernel, strides=window.stride, dilations=window.dilation, pads=_pads(window),
        output_padding=[extra, extra] if isinstance(extra, int) else list(extra), group=s["groups"],
    )  # fmt: skip


def _beyond(window: Window, size: tuple[int, int]) -> list[int]:
    """The padding [top, left, bottom, right] with which the same windows come without ceil mode."""
    top, left, bottom, right = _pads(window)
    ends = [
        (count - 1) * stride + extent - length - before
        for count, stride, extent, length, before in zip(
            window.output_size(size), window.stride, window.extent, size, (top, left), strict=True
        )
    ]
    return [top, left, max(ends[0], bottom), max(ends[1], right)]


def extreme_pool(w: Writer, s: Step) -> str:
    window, size = s["window"], s["input"].shape[2:]
    y = _max_pool(w, s, s["input"] if s["mode"] == "max" else w.node("Neg", s["input"]), window, size)
    return y if s["mode"] == "max" else w.node("Neg", y)


def _max_pool(w: Writer, s: Step, x: Any, window: Window, size: Size) -> str:
    """x, of planes of that size and the dtype of the input, pooled."""
    if window.kernel == size and not any(window.padding):
        return w.node("GlobalMaxPool", x)
    pads = _beyond(window, size)
    if any(p >= k for p, k in zip(pads, window.kernel * 2, strict=True)):  # a dilated window reaches that far
        x = w.node("Pad", x, w.ints(0, 0, *pads[:2], 0, 0, *pads[2:]), w.name(-np.inf, s["input"]))
        pads = [0, 0, 0, 0]
    return w.node("MaxPool", x, kernel_shape=window.kernel, strides=window.stride, dilations=window.dilation, pads=pads)


def mean_pool(w: Writer, s: Step) -> str:
    window, size, divisor, x = s["window"], s["input"].shape[2:], s["divisor"], s["input"]
    pads, beyond = _pads(window), _beyond(window, size)
    shape = {"kernel_shape": window.kernel, "strides": window.stride}
    if divisor in ("window", "real") and window.kernel == size and not any(window.padding):
        return w.node("GlobalAveragePool", x)
    if divisor == "real":
        return w.node("AveragePool", x, **shape, pads=beyond, count_include_pad=0)
    if divisor == "window" and pads == beyond:
        return w.node("AveragePool", x, **shape, pads=pads, count_include_pad=1)
    if divisor == "window":  # a window that ends beyond the padding counts what lies within it
        padded = w.node("Pad", x, w.ints(0, 0, *pads[:2], 0, 0, *pads[2:]))
        rest = [after - before for after, before in zip(beyond, pads, strict=True)]
        return w.node("AveragePool", padded, **shape, pads=rest, count_include_pad=0)
    mean = w.node("AveragePool", x, **shape, pads=beyond, count_include_pad=1)
    return w.node("Mul", mean, w.name(window.taps / divisor, x))


# -- normalisation ---------------------------------------------------------------------------------


def batch_norm(w: Writer, s: Step) -> str:
    if s["training"]:
        raise ValueError(
            "it uses the statistics of the batch, in evaluation mode too; track_running_stats=True has others"
        )
    mean, var = s["running_mean"], s["running_var"]
    weight = w.constant(np.ones(mean.shape, mean.dtype)) if s["weight"] is None else s["weight"]
    bias = w.constant(np.zeros(mean.shape, mean.dtype)) if s["bias"] is None else s["bias"]
    y = w.node("BatchNormalization", s["input"], weight, bias, mean, var, epsilon=s["eps"],
               momentum=1 - s["momentum"])  # fmt: skip
    return _finished(w, s, y)


def instance_norm(w: Writer, s: Step) -> str:
    x, of_channels = s["input"], s["input"].shape[1]
    weight = w.constant(np.ones(of_channels, x.dtype)) if s["weight"] is None else s["weight"]
    bias = w.constant(np.zeros(of_channels, x.dtype)) if s["bias"] is None else s["bias"]
    return w.node("InstanceNormalization", x, weight, bias, epsilon=s["eps"])


def layer_norm(w: Writer, s: Step) -> str:
    shape = s["normalized_shape"]
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    weight = w.constant(np.ones(shape, s.result.dtype)) if s["weight"] is None else s["weight"]
    bias = [] if s["bias"] is None else [s["bias"]]
    return w.node("LayerNormalization", s["input"], weight, *bias, axis=-len(shape), epsilon=s["eps"])


def local_response_norm(w: Writer, s: Step) -> str:
    return w.node("LRN", s["input"], size=s["size"], alpha=s["alpha"], beta=s["beta"], bias=s["k"])


# -- arithmetic ------------------------------------------------------------------------------------


def _binary(op: str) -> Write:
    def write(w: Writer, s: Step) -> str:
        a, b = list(s.arguments.values())[:2]
        like = a if isinstance(a, Tensor) else b
        return w.node(op, w.name(a, like), w.name(b, like))

    return write


def _unary(op: str, **attributes: Any) -> Write:
    return lambda w, s: w.node(op, s["input"], **attributes)


def _reduction(op: str) -> Write:
    def write(w: Writer, s: Step) -> str:
        axes = [] if s["dim"] is None else [w.ints(*([s["dim"]] if isinstance(s["dim"], int) else s["dim"]))]
        return w.node(op, s["input"], *axes, keepdims=int(s["keepdim"]))

    return write


def clamp(w: Writer, s: Step) -> str:
    low, high = ("" if s[n] is None else w.name(s[n], s["input"]) for n in ("min", "max"))
    return w.node("Clip", s["input"], low, *([high] if high else []))


def hardtanh(w: Writer, s: Step) -> str:
    return w.node("Clip", s["input"], w.name(s["min_val"], s["input"]), w.name(s["max_val"], s["input"]))


def relu6(w: Writer, s: Step) -> str:
    return w.node("Clip", s["input"], w.name(0.0, s["input"]), w.name(6.0, s["input"]))


def silu(w: Writer, s: Step) -> str:
    return w.node("Mul", s["input"], w.node("Sigmoid", s["input"]))


def softplus(w: Writer, s: Step) -> str:
    x, beta = s["input"], s["beta"]
    if beta == 1:
        return w.node("Softplus", x)
    return w.node("Div", w.node("Softplus", w.node("Mul", x, w.name(beta, x))), w.name(beta, x))


def prelu(w: Writer, s: Step) -> str:
    x, weight = s["input"], s["weight"]
    across = w.node("Reshape", weight, w.ints(-1, *(1,) * max(x.ndim - 2, 0)))
    return w.node("PRelu", x, across)


def compare(w: Writer, s: Step) -> str:
    ops = {
        "equal": "Equal", "not_equal": "Equal", "less": "Less", "less_equal": "LessOrEqual", "greater": "Greater",
        "greater_equal": "GreaterOrEqual",
    }  # fmt: skip
    a, b = s["input"], s["other"]
    like = a if isinstance(a, Tensor) else b
    y = w.node(ops[s["function"]], w.name(a, like), w.name(b, like))
    return w.node("Not", y) if s["function"] == "not_equal" else y


def _of_bools(op: str) -> Write:
    def write(w: Writer, s: Step) -> str:
        numbers = [t for t in s.arguments.values() if not isinstance(t, Tensor) or t.dtype != np.bool_]
        if numbers:
            raise ValueError(f"{op} is of bool tensors there; compare numbers first, as in x != 0")
        return w.node(op, *s.arguments.values())

    return write


def where(w: Writer, s: Step) -> str:
    a, b = s["input"], s["other"]
    like = next((value for value in (a, b) if isinstance(value, Tensor)), s.result)
    return w.node("Where", s["condition"], w.name(a, like), w.name(b, like))


def argmax(w: Writer, s: Step) -> str:
    x = s["input"] if s["dim"] is not None else w.node("Reshape", s["input"], w.ints(-1))
    y = w.node("ArgMax", x, axis=s["dim"] or 0, keepdims=int(s["keepdim"]))
    return y if s["dim"] is not None or not s["keepdim"] else w.node("Reshape", y, w.ints(*[1] * s["input"].ndim))


def linear(w: Writer, s: Step) -> str:
    x, bias = s["input"], s["bias"]
    if x.ndim == 2:
        return w.node("Gemm", x, s["weight"], *([] if bias is None else [bias]), transB=1)
    y = w.node("MatMul", x, w.node("Transpose", s["weight"], perm=[1, 0]))
    return y if bias is None else w.node("Add", y, bias)


def to(w: Writer, s: Step) -> str:
    return w.node("Cast", s["input"], to=helper.np_dtype_to_tensor_dtype(s.result.dtype))


# -- shapes ----------------------------------------------------------------------------------------


def reshape(w: Writer, s: Step) -> str:
    if s.shape.count(-1) > 1:
        raise ValueError(f"the shape {s.shape} depends on the batch in more than one place (−1)")
    if s.shape.count(-1) == 1 and 0 in s.shape:
        raise ValueError(f"the shape {s.shape} is empty")
    return w.node("Reshape", s["input"], w.ints(*s.shape))


def expand(w: Writer, s: Step) -> str:
    before = s["input"].shape
    kept = (1,) * (len(s.shape) - len(before)) + before
    if any(n == -1 and m == 1 for n, m in zip(s.shape, kept, strict=True)):
        raise ValueError(f"an axis is repeated as often as there are images, to {s.shape}")
    return w.node("Expand", s["input"], w.ints(*(1 if n == -1 else n for n in s.shape)))


def permute(w: Writer, s: Step) -> str:
    return w.node("Transpose", s["input"], perm=[d % s["input"].ndim for d in s["dims"]])


def cat(w: Writer, s: Step) -> str:
    return w.node("Concat", *s["tensors"], axis=s["dim"])


def index(w: Writer, s: Step) -> str:
    """Slices as one Slice; then each int or array as a Gather, from the last axis on; then new axes."""
    x, where = s["input"], F.host_index(s["index"])
    parts = list(where) if isinstance(where, tuple) else [where]
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    parts[at : at + 1] = [slice(None)] * (x.ndim - taken)
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    ints = [part for part in parts if isinstance(part, int | np.integer)]
    if any(array.dtype.kind == "b" for array in arrays) or len(arrays) > 1 or (arrays and ints):
        raise ValueError(f"the index {s['index']!r} has a bool array, or several arrays")
    axes = [part for part in parts if part is not None]
    name = w.name(x)
    sliced = {i: part for i, part in enumerate(axes) if isinstance(part, slice) and part != slice(None)}
    if sliced:
        steps = {i: 1 if part.step is None else part.step for i, part in sliced.items()}
        most = np.iinfo(np.int64).max
        starts = [(0 if steps[i] > 0 else most) if p.start is None else p.start for i, p in sliced.items()]
        ends = [(most if steps[i] > 0 else -most) if p.stop is None else p.stop for i, p in sliced.items()]
        name = w.node("Slice", name, w.ints(*starts), w.ints(*ends), w.ints(*sliced), w.ints(*steps.values()))
    for i, part in reversed(list(enumerate(axes))):
        if not isinstance(part, slice):
            name = w.node("Gather", name, w.constant(np.asarray(part, np.int64)), axis=i)
    new: list[int] = []
    place = 0
    for part in parts:
        new += [place] if part is None else []
        place += part.ndim if isinstance(part, np.ndarray) else not isinstance(part, int | np.integer)
    return w.node("Unsqueeze", name, w.ints(*new)) if new else name


def pad(w: Writer, s: Step) -> str:
    x, amounts, modes = s["input"], s["pad"], {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    sides = [(0, 0)] * (x.ndim - len(amounts) // 2)
    sides += [(amounts[i], amounts[i + 1]) for i in range(len(amounts) - 2, -1, -2)]
    pads = w.ints(*(before for before, _ in sides), *(after for _, after in sides))
    filler = [w.name(s["value"], x)] if s["mode"] == "constant" else []
    return w.node("Pad", x, pads, *filler, mode=modes[s["mode"]])


def interpolate(w: Writer, s: Step) -> str:
    x, size = s["input"], s.result.shape[2:]
    if s["mode"] == "nearest":
        factors = [n / m for n, m in zip(size, x.shape[2:], strict=True)]
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return w.node("Resize", x, "", w.constant(np.array([1, 1, *factors], np.float32)), **how)
    where, axes = "align_corners" if s["align_corners"] else "half_pixel", list(range(2, x.ndim))
    return w.node("Resize", x, "", "", w.ints(*size), mode="linear", coordinate_transformation_mode=where, axes=axes)


def _whole(function: str, arguments: dict[str, Any]) -> bool:
    """Whether ONNX has an operator that computes just this; if not, what the function itself calls is written."""
    if function == "local_response_norm":
        return bool(arguments["size"] % 2)
    if function == "instance_norm":
        return bool(arguments["use_input_stats"])  # if not, it is batch_norm
    if function == "norm":
        return arguments["p"] in ("fro", 1, 2)
    if function == "interpolate":
        return _resizable(**arguments)
    return function in WRITERS


def _resizable(input: Tensor, size: Any, scale_factor: Any, mode: str, align_corners: bool | None) -> bool:
    """Nearest by whole factors: runtimes round others differently. Linear where the factor is that of the sizes."""
    before = np.array(input.shape[2:])
    goal = np.array(before * scale_factor if size is None else [size] * len(before) if isinstance(size, int) else size)
    after = np.floor(goal)
    if mode == "nearest":
        return not (after % before).any()
    return bool(align_corners) or bool((after == goal).all())


WRITERS: dict[str, Write] = {
    "_extreme_pool2d": extreme_pool,
    "_mean_pool2d": mean_pool,
    "_root": _unary("Sqrt"),
    "abs": _unary("Abs"),
    "add": _binary("Add"),
    "amax": _reduction("ReduceMax"),
    "amin": _reduction("ReduceMin"),
    "argmax": argmax,
    "batch_norm": batch_norm,
    "bitwise_and": _of_bools("And"),
    "bitwise_not": _of_bools("Not"),
    "bitwise_or": _of_bools("Or"),
    "bitwise_xor": _of_bools("Xor"),
    "cat": cat,
    "ceil": _unary("Ceil"),
    "clamp": clamp,
    "clone": _unary("Identity"),
    "compare": compare,
    "conv2d": conv2d,
    "conv2d_max_pool2d": conv2d_max_pool2d,
    "conv_transpose2d": conv_transpose2d,
    "cos": _unary("Cos"),
    "div": _binary("Div"),
    "elu": lambda w, s: w.node("Elu", s["input"], alpha=s["alpha"]),
    "exp": _unary("Exp"),
    "expand": expand,
    "flatten": reshape,
    "floor": _unary("Floor"),
    "gather": lambda w, s: w.node("GatherElements", s["input"], s["index"], axis=s["dim"]),
    "gelu": lambda w, s: w.node("Gelu", s["input"], approximate=s["approximate"]),
    "hardsigmoid": _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hardswish": _unary("HardSwish"),
    "hardtanh": hardtanh,
    "index": index,
    "index_select": lambda w, s: w.node("Gather", s["input"], s["index"], axis=s["dim"]),
    "instance_norm": instance_norm,
    "interpolate": interpolate,
    "isinf": _unary("IsInf"),
    "isnan": _unary("IsNaN"),
    "layer_norm": layer_norm,
    "leaky_relu": lambda w, s: w.node("LeakyRelu", s["input"], alpha=s["negative_slope"]),
    "linear": linear,
    "local_response_norm": local_response_norm,
    "log": _unary("Log"),
    "log_softmax": lambda w, s: w.node("LogSoftmax", s["input"], axis=s["dim"]),
    "logical_and": _of_bools("And"),
    "logical_not": _of_bools("Not"),
    "logical_or": _of_bools("Or"),
    "logical_xor": _of_bools("Xor"),
    "matmul": _binary("MatMul"),
    "maximum": _binary("Max"),
    "mean": _reduction("ReduceMean"),
    "minimum": _binary("Min"),
    "mish": _unary("Mish"),
    "mul": _binary("Mul"),
    "neg": _unary("Neg"),
    "norm": lambda w, s: _reduction("ReduceL1" if s["p"] == 1 else "ReduceL2")(w, s),
    "pad": pad,
    "permute": permute,
    "pow": _binary("Pow"),
    "prelu": prelu,
    "relu": _unary("Relu"),
    "relu6": relu6,
    "reshape": reshape,
    "round": _unary("Round"),
    "sigmoid": _unary("Sigmoid"),
    "sign": _unary("Sign"),
    "silu": silu,
    "sin": _unary("Sin"),
    "softmax": lambda w, s: w.node("Softmax", s["input"], axis=s["dim"]),
    "softplus": softplus,
    "softsign": _unary("Softsign"),
    "sqrt": _unary("Sqrt"),
    "sub": _binary("Sub"),
    "sum": _reduction("ReduceSum"),
    "tanh": _unary("Tanh"),
    "to": to,
    "where": where,
}


# -- the file --------------------------------------------------------------------------------------


def save(
    model: Module,
    path: str | Path,
    input_shape: Sequence[int] | Sequence[Sequence[int]],
    *,
    classes: Sequence[str] | None = None,
    normalise: Normalize | tuple[Any, Any] | None = None,
) -> None:
    """Write a model as ONNX: opset 20, for any number of images, in evaluation mode.

    input_shape is [C, H, W], without the batch axis as for `Module.summary`, or several such for a model with several
    inputs. The weights keep their names. classes and normalise are kept in the file's metadata for `gpucnn predict`.

    forward() is run with two batch sizes to see what it does; the finished file is read back and must compute the same
    before it takes its place. Raises ValueError, naming all that ONNX can't say, for what can't be written exactly.
    """
    path = Path(path)
    shapes = [(n,) if isinstance(n, int) else tuple(n) for n in input_shape]
    if all(isinstance(n, int) for n in input_shape):
        shapes = [sum(shapes, ())]
    was_training = {id(module): module.training for module in model.modules()}
    try:
        model.eval()
        first, second = (record(model, shapes, batch, Recorder(FUNCTIONS, _whole)) for batch in BATCHES)
        proto = _file(model.state_dict(), first, second)
        helper.set_model_props(proto, {METADATA: json.dumps(classes_and_normalise(classes, normalise))})
        _check(proto)
        write_atomically(path, lambda temporary: _write(proto, temporary, model, shapes, first))
    finally:
        for module in model.modules():
            module.training = was_training[id(module)]


def _file(named: dict[str, Tensor], first: Recording, second: Recording) -> onnx.ModelProto:
    """The whole file. Raises ValueError that names everything which can't be written."""
    w = Writer(named)
    problems: list[str] = []
    names = [w.free(_numbered("input")) for _ in first.inputs]
    for name, tensor in zip(names, first.inputs, strict=True):
        w.call(tensor, name)
    for step in steps(first, second, problems):
        write = WRITERS.get(step.function)
        try:
            if write is None:
                raise ValueError("ONNX has no operator that computes just this")
            w.call(step.result, write(w, step))
        except ValueError as error:
            problems.append(f"{step.part_of}: {error}")
            w.call(step.result, "nothing")
    if problems:
        raise ValueError(f"this model can't be written as ONNX: {'; '.join(dict.fromkeys(problems))}")
    outputs = [
        _value(_output(w, tensor, w.free(_numbered("output"))), tensor, again)
        for tensor, again in zip(first.outputs, second.outputs, strict=True)
    ]
    inputs = [_value(name, t, u) for name, t, u in zip(names, first.inputs, second.inputs, strict=True)]
    size = sum(array.nbytes for array in w.constants.values())
    if size > MOST_BYTES:
        raise ValueError(f"an ONNX file holds 2 GiB, the weights have {size:,} bytes")
    constants = [numpy_helper.from_array(array, name) for name, array in w.constants.items()]
    graph = helper.make_graph(w.nodes, "gpucnn", inputs, outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="gpucnn")
    proto.ir_version = IR_VERSION
    return proto


def _numbered(name: str) -> Iterator[str]:
    """name, name_1, name_2 and so on."""
    return itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))


def _output(w: Writer, tensor: Tensor, name: str) -> str:
    """Give an output its name: that of the node that makes it, or an Identity of an input, constant or other output."""
    current = w.name(tensor)
    maker = next((node for node in w.nodes if current in node.output and not current.startswith("output")), None)
    if maker is None:
        w.nodes.append(helper.make_node("Identity", [current], [name], f"Identity_{len(w.nodes)}"))
        return name
    for node in w.nodes:
        for names in (node.input, node.output):
            for i, used in enumerate(names):
                names[i] = name if used == current else used
    w.call(tensor, name)
    return name


def _value(name: str, first: Tensor, second: Tensor) -> onnx.ValueInfoProto:
    shape = ["N" if n == -1 else n for n in shape_of(first, second)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(first.dtype), shape)


def _check(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"this model can't be written as ONNX: {error}") from error


def _write(
    proto: onnx.ModelProto, file: Path, model: Module, shapes: Sequence[tuple[int, ...]], recording: Recording
) -> None:
    """Write the file, and read it back: for one other image it must compute what the model does."""
    file.write_bytes(proto.SerializeToString())
    backend = recording.inputs[0].backend
    rng = np.random.default_rng(1)
    inputs = [
        Tensor(backend.asarray(rng.random((1, *shape)).astype(t.dtype)), backend)
        for shape, t in zip(shapes, recording.inputs, strict=True)
    ]
    with no_grad():
        wanted, found = model(*inputs), load(file, backend)(*inputs)
    for ours, theirs in zip(tensors(wanted), tensors(found), strict=True):
        a, b = ours.numpy(), theirs.numpy()
        scale = float(np.abs(a[np.isfinite(a)]).max(initial=1e-30)) if a.dtype.kind == "f" else 0.0
        if a.shape != b.shape or not np.allclose(a, b, rtol=0, atol=1e-3 * scale, equal_nan=True):
            raise ValueError(
                "the recorded graph does not compute what the model does, so nothing was written: forward() must "
                "depend on its inputs through gpucnn.functional alone"
            )
