"""ONNX's operators on planes: convolutions, poolings, padding, resizing. See `operators`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gpucnn import functional as F
from gpucnn.functional import validate
from gpucnn.geometry import Window
from gpucnn.onnx.read import Array, Node
from gpucnn.tensor import Tensor

Function = Callable[..., Any]

MOST_BYTES = 2**31  # of a tensor whose shape the file tells: as much as a file can hold


def affordable(shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """The shape. Raises ValueError, before memory is taken, for a tensor that is too large, or none."""
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > MOST_BYTES:
        raise ValueError(f"a tensor of shape {tuple(shape)} can't be made: it has a negative length, or is over 2 GiB")
    return tuple(shape)


def take(x: Tensor, places: Array, axis: int) -> Tensor:
    """The elements at some places along an axis."""
    return F.index(x, (slice(None),) * axis + (places,))


# -- windows ---------------------------------------------------------------------------------------

AUTO_PAD = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
Pair = tuple[int, int]


def in_one_row(make: Callable[[Node], Function]) -> Callable[[Node], Function]:
    """The operator for signals [N, C, L] too: with them, and their weights, as images of one row."""

    def made(node: Node) -> Function:
        function = make(node)
        of_signals = node.one_axis

        def run(x: Tensor, *others: Tensor | None) -> Any:
            if of_signals and x.ndim != 3:
                raise ValueError(f"its attributes are for signals [N, C, L], got the shape {x.shape}")
            if x.ndim != 3:
                return function(x, *others)
            rows = (t if t is None or t.ndim != 3 else F.unsqueeze(t, 2) for t in (x, *others))
            return F.squeeze(function(*rows), 2)

        return run

    return made


def _pads(node: Node) -> tuple[int, int, int, int]:
    """Explicit padding as (top, bottom, left, right); ONNX's is (top, left, bottom, right)."""
    pads = node.ints("pads", (0, 0, 0, 0))
    if len(pads) == 2:
        node.one_axis, pads = True, (0, pads[0], 0, pads[1])
    if len(pads) != 4 or min(pads) < 0:
        raise ValueError(
            f"pads {list(pads)}: there must be two or four, none negative; only one or two spatial axes are supported"
        )
    top, left, bottom, right = pads
    return top, bottom, left, right


def _window(node: Node, ceil_mode: bool = False) -> Callable[[Tensor, Pair], Window]:
    """How a window moves, as a function of the input and the kernel's size."""
    mode, pads = node.text("auto_pad", "NOTSET", AUTO_PAD), _pads(node)
    stride, dilation = node.pair("strides", (1, 1)), node.pair("dilations", (1, 1))
    if mode == "VALID" and ceil_mode:
        raise ValueError("auto_pad VALID with ceil_mode: ONNX's definition and onnxruntime differ")

    def window(x: Tensor, kernel: Pair) -> Window:
        validate.rank(node.op, "input", x, 4, "[N, C, H, W]")
        if mode == "NOTSET":
            return Window.of(kernel, stride, pads, dilation, ceil_mode)
        same = Window.of(kernel, stride, "valid" if mode == "VALID" else "same", dilation, size=x.shape[2:])  # type: ignore[arg-type]
        top, bottom, left, right = same.padding
        return replace(same, padding=(bottom, top, right, left)) if mode == "SAME_LOWER" else same

    return window


def _kernel(weight: Tensor, given: tuple[int, ...] | None) -> Pair:
    if weight.ndim != 4 or given not in (None, weight.shape[2:]):
        raise ValueError(f"a weight of shape {weight.shape} is no filter with kernel_shape {given}")
    return weight.shape[2], weight.shape[3]


@in_one_row
def conv(node: Node) -> Function:
    window_of, groups, given = _window(node), node.int("group", 1), node.pair("kernel_shape", None)

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        window = window_of(x, _kernel(w, given))
        return F.conv2d(x, w, b, window.stride, window.padding, window.dilation, groups)

    return run


@in_one_row
def conv_transpose(node: Node) -> Function:
    mode, pads = node.text("auto_pad", "NOTSET", AUTO_PAD), _pads(node)
    stride, dilation = node.pair("strides", (1, 1)), node.pair("dilations", (1, 1))
    extra, goal = node.pair("output_padding", (0, 0), 0), node.pair("output_shape", None)
    groups, given = node.int("group", 1), node.pair("kernel_shape", None)

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        validate.rank(node.op, "input", x, 4, "[N, C, H, W]")
        kernel, sides, wanted = _kernel(w, given), pads, goal
        if wanted is None and mode.startswith("SAME"):
            wanted = (x.shape[2] * stride[0], x.shape[3] * stride[1])
        if mode == "VALID":
            sides = (0, 0, 0, 0)
        more = extra
        if wanted is not None:
            reached = Window.of(kernel, stride, 0, dilation).transposed_size((x.shape[2], x.shape[3]), extra)
            h, q = (n - m for n, m in zip(reached, wanted, strict=True))
            more = (extra[0] - min(h, 0), extra[1] - min(q, 0))  # rows and columns that no window reaches
            h, q = max(h, 0), max(q, 0)
            small = (h // 2, h - h // 2, q // 2, q - q // 2)
            sides = small if mode == "SAME_UPPER" else (small[1], small[0], small[3], small[2])
        return F.conv_transpose2d(x, w, b, stride, sides, more, groups, dilation)

    return run


def _pool_window(node: Node) -> Callable[[Tensor], Window]:
    kernel, ceil_mode = node.pair("kernel_shape"), bool(node.int("ceil_mode", 0))
    window_of = _window(node, ceil_mode)
    return lambda x: window_of(x, kernel)


def _is_narrow(window: Window) -> bool:
    """Whether the padding is at most half the kernel, as functional's poolings want it."""
    (top, bottom, left, right), (r, s) = window.padding, window.kernel
    return max(top, bottom) <= r // 2 and max(left, right) <= s // 2


def _pooled(function: Function, x: Tensor, window: Window, filler: float, **arguments: Any) -> Tensor:
    """A pooling of the input with its padding made first, as wide as it may be."""
    top, bottom, left, right = window.padding
    p, q = window.output_size((x.shape[2], x.shape[3]))
    padded = F.pad(x, (left, right, top, bottom), value=filler)
    y = function(padded, window.kernel, window.stride, ceil_mode=window.ceil_mode, **arguments)
    return F.index(y, (slice(None), slice(None), slice(p), slice(q)))


@in_one_row
def max_pool(node: Node) -> Function:
    window_of = _pool_window(node)
    node.int("storage_order", 0)  # of the indices, which are not computed

    def run(x: Tensor) -> Any:
        window = window_of(x)
        if not _is_narrow(window):
            return _pooled(F.max_pool2d, x, window, -math.inf, dilation=window.dilation)
        return F.max_pool2d(x, window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode)

    return run


@in_one_row
def average_pool(node: Node) -> Function:
    include = bool(node.int("count_include_pad", 0))
    if node.pair("dilations", (1, 1)) != (1, 1):
        raise ValueError("averages with a dilation are not supported")
    window_of = _pool_window(node)

    def run(x: Tensor) -> Tensor:
        window = window_of(x)
        if _is_narrow(window):
            return F.avg_pool2d(x, window.kernel, window.stride, window.padding, window.ceil_mode, include)
        if include:
            return _pooled(F.avg_pool2d, x, window, 0.0)
        ones = Tensor(x.backend.asarray(np.ones((1, 1, *x.shape[2:]), x.dtype)), x.backend)
        return _pooled(F.sum_pool2d, x, window, 0.0) / _pooled(F.sum_pool2d, ones, window, 0.0)

    return run


# -- padding and blocks ----------------------------------------------------------------------------


def pad(node: Node) -> Function:
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = modes[node.text("mode", "constant", list(modes))]
    fixed, filler = node.ints("pads", None), node.float("value", 0.0)

    def run(x: Tensor, pads: Array | None = None, value: Array | None = None, axes: Array | None = None) -> Tensor:
        amounts = fixed if pads is None else pads.tolist()
        chosen = range(x.ndim) if axes is None else [validate.axis(node.op, axis, x.ndim) for axis in axes.tolist()]
        if amounts is None or len(amounts) != 2 * len(chosen):
            raise ValueError(f"pads {amounts} must have a beginning and an end for each of {len(chosen)} axes")
        sides = [(0, 0)] * x.ndim
        for i, axis in enumerate(chosen):
            sides[axis] = (amounts[i], amounts[i + len(chosen)])
        affordable([n + max(sum(side), 0) for n, side in zip(x.shape, sides, strict=True)], x.dtype)
        flat = [n for side in reversed(sides) for n in side]
        return F.pad(x, flat, mode, filler if value is None else value.item())

    return run


def depth_to_space(node: Node) -> Function:
    size, mode = node.int("blocksize"), node.text("mode", "DCR", ("DCR", "CRD"))

    def run(x: Tensor) -> Tensor:
        validate.rank(node.op, "input", x, 4, "[N, C, H, W]")
        n, c, h, w = x.shape
        depth = c // size**2
        if mode == "DCR":
            y = x.reshape(n, size, size, depth, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            y = x.reshape(n, depth, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
        return y.reshape(n, depth, h * size, w * size)

    return run


def space_to_depth(node: Node) -> Function:
    size, mode = node.int("blocksize"), node.text("mode", "DCR", ("DCR", "CRD"))

    def run(x: Tensor) -> Tensor:
        validate.rank(node.op, "input", x, 4, "[N, C, H, W]")
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // size, size, w // size, size)
        y = y.permute(*((0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)))
        return y.reshape(n, c * size**2, h // size, w // size)

    return run


# -- resizing --------------------------------------------------------------------------------------

# Where, in the input, the centre of output pixel i lies, for a scale of output to input and the two lengths.
POSITIONS: dict[str, Callable[[Array, float, int, int], Array]] = {
    "half_pixel": lambda i, scale, length, count: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, length, count: (i + 0.5) / scale - 0.5 if count > 1 else i,
    "half_pixel_symmetric": lambda i, scale, length, count: (
        length / 2 * (1 - count / (length * scale)) + (i + 0.5) / scale - 0.5
    ),
    "align_corners": lambda i, scale, length, count: i * ((length - 1) / max(count - 1, 1)),
    "asymmetric": lambda i, scale, length, count: i / scale,
}
ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
STRETCHED = ("half_pixel", "half_pixel_symmetric", "asymmetric")  # defined for a fraction of a pixel too
LINEAR = ("half_pixel", "pytorch_half_pixel", "align_corners")  # what functional.interpolate computes


def resize(node: Node) -> Function:
    mode, old = node.text("mode", "nearest", ("nearest", "linear")), node.opset < 11
    where = node.text("coordinate_transformation_mode", "asymmetric" if old else "half_pixel", list(POSITIONS))
    rounding = node.text("nearest_mode", "floor" if old else "round_prefer_floor", list(ROUNDINGS))
    for name in ("cubic_coeff_a", "extrapolation_value"):
        node.float(name, 0.0)  # of modes that were refused above
    if mode == "linear" and where not in LINEAR:
        raise ValueError(f"linear resizing with {where} coordinates is not supported, only {', '.join(LINEAR)}")
    if node.int("antialias", 0) or node.int("exclude_outside", 0):
        raise ValueError("antialias and exclude_outside are not supported")
    node.text("keep_aspect_ratio_policy", "stretch", ("stretch",))
    axes = node.ints("axes", None)
    fixed = node.floats("scales", None) if node.op == "Upsample" and node.opset < 9 else None

    def nearest(x: Tensor, counts: list[int], by: list[float]) -> Tensor:
        for axis, (length, count, scale) in enumerate(zip(x.shape, counts, by, strict=True)):
            if scale == 1:
                continue
            position = POSITIONS[where](np.arange(count, dtype=np.float64), scale, length, count)
            if old and scale < 1 and (position % 1).any():
                raise ValueError(f"which pixel is nearest at scale {scale:g} is not defined before opset 11")
            places = np.clip(ROUNDINGS[rounding](position), 0, length - 1)
            x = take(x, places.astype(np.intp), axis)
        return x

    def linear(x: Tensor, counts: list[int], by: list[float]) -> Tensor:
        if x.ndim == 3 and by[:2] == [1.0, 1.0]:
            return F.squeeze(linear(F.unsqueeze(x, 2), [*counts[:2], 1, counts[2]], [*by[:2], 1.0, by[2]]), 2)
        if x.ndim != 4 or by[:2] != [1.0, 1.0]:
            raise ValueError(f"linear resizing of {x.shape} to {tuple(counts)}: only height and width can be resized")
        for axis in (2, 3):
            if where == "pytorch_half_pixel" and counts[axis] == 1:
                x = take(x, np.zeros(1, np.intp), axis)
                continue
            size, scale = list(x.shape[2:]), [1.0, 1.0]
            size[axis - 2], scale[axis - 2] = counts[axis], by[axis]
            whole = by[axis] == counts[axis] / x.shape[axis]
            sizes: dict[str, Any] = {"size": size} if whole else {"scale_factor": scale}
            x = F.interpolate(x, mode="bilinear", align_corners=where == "align_corners", **sizes)
        return x

    def run(x: Tensor, roi: Any = None, scales: Array | None = None, sizes: Array | None = None) -> Tensor:
        chosen = range(x.ndim) if axes is None else [validate.axis(node.op, axis, x.ndim) for axis in axes]
        factors = fixed if scales is None or not scales.size else [float(s) for s in scales]
        goal = None if sizes is None or not sizes.size else sizes.tolist()
        given = factors if goal is None else goal
        if given is None or len(given) != len(chosen) or min(given) <= 0 or 0 in x.shape:
            raise ValueError(f"shape {x.shape} can't be resized by scales {factors} to sizes {goal}")
        counts, by = list(x.shape), [1.0] * x.ndim
        for axis, value in zip(chosen, given, strict=True):
            exact = float(np.float32(x.shape[axis]) * np.float32(value)) if goal is None else value
            counts[axis] = math.floor(exact)  # in float32, where 10 · 0.7 is 7
            by[axis] = value if counts[axis] < exact else counts[axis] / x.shape[axis]
            whole = by[axis] == counts[axis] / x.shape[axis]
            if counts[axis] < 1 or not (whole or where in STRETCHED or (where == "pytorch_half_pixel" and exact >= 2)):
                raise ValueError(f"{where} by {value:g} makes {exact:g} pixels of {x.shape[axis]}; give sizes instead")
        affordable(counts, x.dtype)
        return nearest(x, counts, by) if mode == "nearest" else linear(x, counts, by)

    return (lambda x, scales=None: run(x, None, scales)) if old else run
