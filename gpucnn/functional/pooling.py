"""Max, min, average and sum pooling; adaptive and global pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from gpucnn.backends import Array, Divisor
from gpucnn.functional import validate
from gpucnn.functional.casting import through_float32
from gpucnn.functional.shape import _take, pad
from gpucnn.geometry import MOST, Padding, Size, Window, pair
from gpucnn.tensor import Tensor, record

Pair = int | Sequence[int]


def _plane(input: Tensor) -> Size:
    return input.shape[2], input.shape[3]


def extreme_window(
    op: str,
    size: Size,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Window:
    """The window that the arguments of max_pool2d name, on a plane of that size. Raises ValueError as that does."""
    window = Window.of(kernel_size, stride, padding, dilation, ceil_mode, size)
    (top, bottom, left, right), (r, s) = window.padding, window.kernel
    if padding != "same" and (max(top, bottom) > r // 2 or max(left, right) > s // 2):
        raise ValueError(
            f"{op}: padding {window.padding} must be at most half the kernel {window.kernel}, "
            "or a window could lie wholly in the padding"
        )
    window.output_size(size)
    return window


def _window(
    op: str, input: Tensor, kernel_size: Pair, stride: Pair | None, padding: Padding, dilation: Pair, ceil_mode: bool
) -> Window:
    validate.floating(op, input=input)
    validate.rank(op, "input", input, 4, "[N, C, H, W]")
    return extreme_window(op, _plane(input), kernel_size, stride, padding, dilation, ceil_mode)


def _extreme_pool2d(
    input: Tensor, window: Window, mode: Literal["max", "min"], return_indices: bool
) -> tuple[Tensor, Array | None]:
    backend, x = input.backend, input.array
    y, tap = backend.max_pool2d_forward(x, window, mode, need_tap=return_indices or input.requires_grad)
    size = x.shape[2:]
    result = record(backend, y, (input, lambda dy: backend.max_pool2d_backward(dy, tap, window, size)))
    return result, tap


def _rows_and_columns(input: Tensor, tap: Array, window: Window) -> tuple[Array, Array]:
    """Row and column, in the input plane, of each window's chosen tap."""
    xp = input.backend.xp
    tap = tap.astype(np.int64)
    p, q = tap.shape[2:]
    row = (
        xp.arange(p).reshape(-1, 1) * window.stride[0]
        - window.padding[0]
        + tap // window.kernel[1] * window.dilation[0]
    )
    column = xp.arange(q) * window.stride[1] - window.padding[2] + tap % window.kernel[1] * window.dilation[1]
    return row, column


def _with_indices(
    input: Tensor, window: Window, mode: Literal["max", "min"], return_indices: bool
) -> Tensor | tuple[Tensor, Tensor]:
    y, tap = _extreme_pool2d(input, window, mode, return_indices)
    if not return_indices:
        return y
    row, column = _rows_and_columns(input, tap, window)
    h, w = _plane(input)
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    return y, Tensor(input.backend.xp.where(inside, row * w + column, -1), input.backend)


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest element of each window: [N, C, H, W] -> [N, C, P, Q]; stride defaults to the kernel.

    ceil_mode keeps partial windows at the end. Of equal elements the first in row-major order gets the gradient; NaN
    wins over every number. With return_indices also the int64 index h·W + w of each maximum. A window that dilation has
    put wholly into the padding gives −inf, and the index −1.

    Raises ValueError if a window is larger than the padded input, or padded by more than half its size.
    """
    window = _window("max_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode)
    return _with_indices(input, window, "max", return_indices)


def min_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The smallest element of each window; everything else as in max_pool2d. (PyTorch has no such function.)"""
    window = _window("min_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode)
    return _with_indices(input, window, "min", return_indices)


def _mean_pool2d(input: Tensor, window: Window, divisor: Divisor) -> Tensor:
    backend, size = input.backend, _plane(input)
    return record(
        backend,
        backend.avg_pool2d_forward(input.array, window, divisor),
        (input, lambda dy: backend.avg_pool2d_backward(dy, window, divisor, size)),
    )


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window: [N, C, H, W] -> [N, C, P, Q]; stride defaults to the kernel.

    The divisor is the window clipped to the padded input (count_include_pad=True), the real elements in it (False), or
    divisor_override. Raises ValueError as max_pool2d does, and for a divisor_override of 0.
    """
    window = _window("avg_pool2d", input, kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override is not None:
        divisor_override = validate.integer("avg_pool2d", "divisor_override", divisor_override)
        if not 0 < abs(divisor_override) <= MOST:
            raise ValueError(f"avg_pool2d: divisor_override must not be 0 nor beyond ±{MOST}, got {divisor_override}")
    divisor: Divisor = ("window" if count_include_pad else "real") if divisor_override is None else divisor_override
    return _mean_pool2d(input, window, divisor)


def sum_pool2d(
    input: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Padding = 0, ceil_mode: bool = False
) -> Tensor:
    """The sum of each window; arguments as in avg_pool2d. (PyTorch: avg_pool2d with divisor_override=1.)"""
    return _mean_pool2d(input, _window("sum_pool2d", input, kernel_size, stride, padding, 1, ceil_mode), 1)


# -- adaptive --------------------------------------------------------------------------------------


def _adaptive(op: str, input: Tensor, output_size: int | None | Sequence[int | None]) -> tuple[Size, Window | None]:
    """The output size, and the plain window that does it if the input's size is a multiple of it."""
    validate.floating(op, input=input)
    validate.rank(op, "input", input, 4, "[N, C, H, W]")
    size = _plane(input)
    given = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
    if len(given) == 2:
        given = tuple(n if g is None else g for g, n in zip(given, size, strict=True))
    goal = pair(given, "output_size", 1)  # type: ignore[arg-type]
    if 0 in size:
        raise ValueError(f"{op}: an empty plane {size} has nothing to pool")
    if size[0] % goal[0] or size[1] % goal[1]:
        return goal, None
    return goal, Window.of((size[0] // goal[0], size[1] // goal[1]), None, 0)


def _spread(length: int, count: int, filler: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Adaptive windows ⌊i·H/P⌋ … ⌈(i+1)·H/P⌉ − 1 as equal ones: (places [count, longest], true lengths [count]).

    A window shorter than the longest ends in `filler`, or in its own last element if that is None.
    """
    i = np.arange(count)
    start, end = i * length // count, -(-(i + 1) * length // count)
    lengths = end - start
    offset = np.arange(lengths.max())
    inside = offset < lengths[:, None]
    places = np.where(inside, start[:, None] + offset, (end - 1)[:, None] if filler is None else filler)
    return places, lengths


def adaptive_avg_pool2d(input: Tensor, output_size: int | None | Sequence[int | None]) -> Tensor:
    """The means of P×Q windows that divide the plane as evenly as it goes; output_size 1 is global pooling.

    Window i covers rows ⌊i·H/P⌋ … ⌈(i+1)·H/P⌉ − 1, as in PyTorch. None keeps an axis' length.
    """
    goal, window = _adaptive("adaptive_avg_pool2d", input, output_size)
    if window is not None:
        return _mean_pool2d(input, window, "window")
    return _uneven_means(input, goal)


@through_float32
def _uneven_means(input: Tensor, goal: Size) -> Tensor:
    h, w = input.shape[2:]
    rows, row_counts = _spread(h, goal[0], filler=h)  # row h and column w are zeros, appended for the purpose
    columns, column_counts = _spread(w, goal[1], filler=w)
    spread = _take(_take(pad(input, (0, 1, 0, 1)), rows.ravel(), 2), columns.ravel(), 3)
    sums = _mean_pool2d(spread, Window.of((rows.shape[1], columns.shape[1]), None, 0), 1)
    backend = input.backend
    counts = backend.asarray(np.outer(row_counts, column_counts).astype(input.dtype))
    return sums / Tensor(counts, backend)


def adaptive_max_pool2d(
    input: Tensor, output_size: int | None | Sequence[int | None], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maxima of adaptive_avg_pool2d's windows; with return_indices also h·W + w of each."""
    goal, window = _adaptive("adaptive_max_pool2d", input, output_size)
    if window is not None:
        return _with_indices(input, window, "max", return_indices)
    h, w = input.shape[2:]
    rows, _ = _spread(h, goal[0], filler=None)  # an element that appears twice in its window changes no maximum
    columns, _ = _spread(w, goal[1], filler=None)
    spread = _take(_take(input, rows.ravel(), 2), columns.ravel(), 3)
    window = Window.of((rows.shape[1], columns.shape[1]), None, 0)
    y, tap = _extreme_pool2d(spread, window, "max", return_indices)
    if not return_indices:
        return y
    row, column = _rows_and_columns(spread, tap, window)
    backend = input.backend
    chosen = backend.asarray(rows.ravel())[row] * w + backend.asarray(columns.ravel())[column]
    return y, Tensor(chosen, backend)
