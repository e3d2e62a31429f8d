"""Convolution in NumPy: blocks of im2col and GEMM on channels-last arrays.

The output is cut into blocks. The rows of a block's im2col matrix are output pixels, each with the R·S·C inputs under
the filter, copied in runs of S·C floats; times the filters it is the block of y, in place.

With few channels those runs are short and the product is narrow. Then a row serves `side` neighbouring output pixels at
once: it holds the R·span·C inputs under all of them, and the filters become a banded matrix that yields side·K outputs.
That copies less and multiplies more; `best_side` weighs the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_activation import activate
from gpucnn.backends.numpy_elementwise import pixels
from gpucnn.backends.numpy_parallel import cut, scratch, workers
from gpucnn.geometry import Size, Window

# The im2col matrix of a block: three times L2, a tenth of L3.
BLOCK_BYTES = 3 << 20
BLOCK_PIXELS = 128
# Up to this size images are padded before they are cut into blocks.
PADDED_BYTES = 1 << 19
# Multiply-adds of a block, some 200 µs: with fewer, another thread costs more than it saves. Threads meet at the
# interpreter lock between NumPy calls, and waking one takes up to 50 µs.
BLOCK_WORK = 8_000_000
# The partial weight gradients of all blocks take no more than this.
PARTIAL_BYTES = 1 << 24


def channels_last(x: Array) -> Array:
    """The dense [N,H,W,C] array that holds x [N,C,H,W]: a view where x is stored channels-last, else a copy."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def all_finite(x: Array) -> bool:
    """False if x holds an infinity or NaN (or its sum is one): the zeros of a banded matrix would spread it."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(x.sum()))


# -- im2col ------------------------------------------------------------------------------------------------------------


def even(blocks: int) -> int:
    """An even number of blocks, so that two or four threads get equal shares; one block stays one."""
    return blocks + blocks % 2 if blocks > 3 else min(blocks, 2)


def scratch_frame(shape: tuple[int, ...], dtype: Any) -> Array:
    return scratch("frame", shape, dtype)


class Columns:
    """The im2col matrix of x [N,H,W,C] for [N,P,Q,K] outputs, made block by block.

    The padding of `window` says where the first window starts and may be negative; where the last one ends follows from
    `out`. A block is (first image, end, first row of outputs, end).
    """

    def __init__(self, x: Array, window: Window, out: Size, filters: int, groups: int) -> None:
        n, _, w, c = x.shape
        self.x, self.window, self.out, self.filters, self.groups = x, window, out, filters, groups
        # The columns of x that a row of the matrix for `side` outputs reads; of a whole line, only those that exist.
        self.side, self.first, self.span = 1, -window.padding[2], window.kernel[1]
        if groups == 1 and window.dilation[1] == 1 and window.taps > 1:
            side, first, span = best_side(window, w, out[1], c, filters, x.itemsize)
            if side == 1 or all_finite(x):
                self.side, self.first, self.span = side, first, span
        self.depth = window.kernel[0] * self.span * c // groups
        self.work = n * out[0] * out[1] * self.depth * filters // groups
        self.blocks = self._cut(n) if n else []
        # A 1×1 filter reads the pixels as they are.
        self.copies = not window.taps == self.side == groups == window.stride[0] == window.stride[1] == 1
        self.origin = (0, 0)  # the place of the first pixel in self.x
        if n and x.nbytes <= PADDED_BYTES:
            # Padded all at once: the fewer calls a block makes, the less its thread waits for the interpreter lock.
            frame = self.frame((0, n, 0, out[0]), np.empty)
            if frame.flags.owndata:
                self.x, self.origin = frame, (window.padding[0], -self.first)

    def _cut(self, n: int) -> list[tuple[int, int, int, int]]:
        """Whole images, or strips of rows of one image where there are too few."""
        p, q = self.out
        row_bytes = q // self.side * self.depth * self.groups * self.x.itemsize
        by_size = -(-n * p * row_bytes // BLOCK_BYTES)
        # Each product copies the filters into OpenBLAS's own layout: a block of fewer pixels than this is not worth it.
        by_work = min(self.work // BLOCK_WORK, n * p * q // BLOCK_PIXELS, 8)
        blocks = even(max(by_size, by_work))
        if blocks <= n:
            return [(part.start, part.stop, 0, p) for part in cut(n, blocks)]
        return [(i, i + 1, strip.start, strip.stop) for i in range(n) for strip in cut(p, -(-blocks // n))]

    def matrix(self, block: tuple[int, int, int, int], ones: bool = False) -> Array:
        """The block's im2col matrices [G, rows, R·span·C/G], with a last column of ones if that is asked for.

        The next call of this thread overwrites them.
        """
        n0, n1, p0, p1 = block
        r, (th, tw), (dh, dw), g = self.window.kernel[0], self.window.stride, self.window.dilation, self.groups
        frame = self.frame(block)
        sn, sh, sw, _ = frame.strides
        c, q = frame.shape[3] // g, self.out[1] // self.side
        rows = (n1 - n0) * (p1 - p0) * q
        if not self.copies:
            return frame.reshape(1, rows, c)
        # What lies side by side in memory is one element: NumPy copies that faster than a loop of floats.
        together = self.span if g == dw == 1 else 1
        run = np.dtype((np.void, together * c * frame.itemsize))
        columns = scratch("columns", (g, rows, self.depth + ones), frame.dtype)
        if ones:
            columns[..., -1] = 1
        line, pixel = columns.shape[2] * frame.itemsize, c * frame.itemsize
        shape = (g, n1 - n0, p1 - p0, q, r, self.span // together)
        to = (rows * line, (p1 - p0) * q * line, q * line, line, self.span * pixel, pixel)
        strides = (pixel, sn, th * sh, self.side * tw * sw, dh * sh, dw * sw)
        # np.ndarray wants dense memory: a frame that is not is a part of x.
        dense = frame if frame.flags.c_contiguous else self.x
        offset = frame.__array_interface__["data"][0] - dense.__array_interface__["data"][0]
        np.copyto(np.ndarray(shape, run, columns, 0, to), np.ndarray(shape, run, dense, offset, strides))
        return columns

    def frame(self, block: tuple[int, int, int, int], empty: Callable[..., Array] = scratch_frame) -> Array:
        """All input pixels that the block's windows cover, with 0 for those outside of the plane."""
        n0, n1, p0, p1 = block
        x = self.x[n0:n1]
        stride, extent = self.window.stride, self.window.extent[0]
        h0, w0 = self.origin[0] - self.window.padding[0] + p0 * stride[0], self.origin[1] + self.first
        h1 = h0 + (p1 - p0 - 1) * stride[0] + extent
        w1 = w0 + (self.out[1] - self.side) * stride[1] + (self.span - 1) * self.window.dilation[1] + 1
        _, h, w, c = x.shape
        if h0 >= 0 and w0 >= 0 and h1 <= h and w1 <= w:
            return x[:, h0:h1, w0:w1]
        frame = empty((n1 - n0, h1 - h0, w1 - w0, c), x.dtype)
        frame.fill(0)
        inside = x[:, max(h0, 0) : max(h1, 0), max(w0, 0) : max(w1, 0)]
        row, column = max(-h0, 0), max(-w0, 0)
        frame[:, row : row + inside.shape[1], column : column + inside.shape[2]] = inside
        return frame

    def banded(self, w: Array) -> Array:
        """The filters [K,C/G,R,S] as the matrices [G, R·span·C/G, side·K/G] that belong to `matrix`."""
        k, c, r, s = w.shape
        if self.side == 1 and self.span == s:
            if self.groups == 1 and len(self.x) * self.out[0] * self.out[1] > 1000:
                # Filters in rows of K multiply a tenth faster: worth a copy unless they meet few pixels.
                return np.ascontiguousarray(w.transpose(2, 3, 1, 0)).reshape(1, self.depth, k)
            by_group = np.ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(self.groups, k // self.groups, r * s * c)
            return by_group.transpose(0, 2, 1)
        band = np.zeros((r, self.span, c, self.side, k), w.dtype)
        for j, taps, columns in self._bands():
            band[:, columns, :, j] = w[:, :, :, taps].transpose(2, 3, 1, 0)
        return band.reshape(1, self.depth, self.side * k)

    def unbanded(self, dband: Array) -> Array:
        """The gradient of `banded`, given transposed: dw [K,C/G,R,S] from [G, side·K/G, R·span·C/G]."""
        r, s = self.window.kernel
        bands = dband.reshape(self.side, self.filters, r, self.span, -1)
        dw = np.zeros((self.filters, r, s, bands.shape[-1]), dband.dtype)
        for j, taps, columns in self._bands():
            dw[:, :, taps] += bands[j][:, :, columns]
        return dw.transpose(0, 3, 1, 2)

    def _bands(self) -> Iterator[tuple[int, slice, slice]]:
        """For each of the `side` outputs: (its number, the taps within the span, their columns in the span)."""
        for j in range(self.side):
            start = j * self.window.stride[1] - self.window.padding[2] - self.first
            first = max(-start, 0)
            end = max(min(self.span - start, self.window.kernel[1]), first)
            yield j, slice(first, end), slice(start + first, start + end)


@cache
def best_side(window: Window, width: int, q: int, channels: int, filters: int, itemsize: int) -> tuple[int, int, int]:
    """How many neighbouring outputs a row of the im2col matrix serves, a divisor of Q; and its first column and width.

    A run costs 3 ns and then copies at 40 bytes/ns; a product does 208 bytes' worth of multiply-adds a ns, where
    OpenBLAS works on 64 bytes of outputs at a time. Measured on one core of an EPYC 9004; only the ratios matter.
    """

    def columns(side: int) -> tuple[int, int]:
        first = -window.padding[2]
        end = first + (side - 1) * window.stride[1] + window.kernel[1]
        return (max(first, 0), min(end, width)) if side == q and end > 0 else (first, end)

    def cost(side: int) -> float:
        first, end = columns(side)
        run = (end - first) * channels
        outputs = -(-side * filters * itemsize // 64) * 64 // itemsize
        return (3 + run * itemsize / 40 + run * (outputs + 4) * itemsize / 208) / side

    side = min((side for side in range(1, q + 1) if q % side == 0), key=cost)
    first, end = columns(side)
    return side, first, end - first


# -- the three products ------------------------------------------------------------------------------------------------


class Epilogue(NamedTuple):
    """What becomes of a convolution's sums: times the filter's scale, plus its bias, activated."""

    b: Array | None = None
    scale: Array | None = None
    activation: str | None = None

    def apply(self, block: Array, filters: slice = slice(None)) -> None:
        """To a dense block [..., Q, K] of the sums of these filters, in place."""
        lines = block.reshape(-1, block.shape[-2] * block.shape[-1])
        if self.scale is not None:
            lines *= np.tile(self.scale[filters], block.shape[-2])
        if self.b is not None:
            lines += np.tile(self.b[filters], block.shape[-2])
        if self.activation:
            activate(block, self.activation)


def conv2d_forward(x: Array, w: Array, epilogue: Epilogue, window: Window, groups: int) -> Array:
    out = window.output_size(x.shape[2:])
    y = np.empty((x.shape[0], *out, w.shape[0]), x.dtype)
    correlate(channels_last(x), w, epilogue, window, groups, y)
    return y.transpose(0, 3, 1, 2)


def correlate(x: Array, w: Array, epilogue: Epilogue, window: Window, groups: int, y: Array) -> None:
    """y [N,P,Q,K], which may be strided, becomes x [N,H,W,C] correlated with w [K,C/G,R,S], and what follows."""
    _, p, q, k = y.shape
    if groups == k == x.shape[3] > 1:
        depthwise(x, w, epilogue, window, y)
        return
    columns = Columns(x, window, (p, q), k, groups)
    filters = columns.banded(w)
    ones = False
    if columns.copies and groups == 1 and epilogue.b is not None and epilogue.scale is None:
        ones = True  # the bias as one more term of each sum
        filters = np.concatenate([filters, np.tile(epilogue.b, columns.side)[None, None]], axis=1)
        epilogue = epilogue._replace(b=None)
    # Where many filters meet few pixels, each part of the filters is a job of its own.
    few = len(columns.blocks) < 4 and columns.work >= 4 * BLOCK_WORK
    parts = 4 if few and groups == columns.side == 1 and k >= 64 else 1

    def job(i: int) -> None:
        block, part = columns.blocks[i // parts], i % parts
        n0, n1, p0, p1 = block
        mine = slice(part * k // parts, (part + 1) * k // parts)
        target = y[n0:n1, p0:p1, :, mine]
        dense = target if groups == 1 and target.flags.c_contiguous else scratch("outputs", target.shape, y.dtype)
        matrix = columns.matrix(block, ones)
        band = filters if parts == 1 else filters[:, :, mine]
        if groups == 1:
            np.matmul(matrix[0], band[0], out=dense.reshape(matrix.shape[1], band.shape[2]))
        else:
            dense.reshape(-1, groups, k // groups)[...] = np.matmul(matrix, band).transpose(1, 0, 2)
        epilogue.apply(dense, mine)
        if dense is not target:
            np.copyto(pixels(target), pixels(dense))

    workers.run(job, len(columns.blocks) * parts)


def conv2d_backward_weight(dy: Array, x: Array, window: Window, groups: int) -> Array:
    n, k, p, q = dy.shape
    c = x.shape[1]
    if n == 0:
        return np.zeros((k, *window.kernel, c // groups), dy.dtype).transpose(0, 3, 1, 2)
    dy, x = channels_last(dy), channels_last(x)
    if groups == k == c > 1:
        return depthwise_weight(dy, x, window)
    columns = Columns(x, window, (p, q), k, groups)
    shape = (groups, columns.side * k // groups, columns.depth)
    # Each job sums several blocks, so that few partial gradients are kept; in which order depends on shapes alone.
    most = max(2, min(16, PARTIAL_BYTES // (shape[1] * columns.depth * groups * dy.itemsize)))
    shares = cut(len(columns.blocks), most)
    partial = np.empty((len(shares), *shape), dy.dtype)

    def job(i: int) -> None:
        blocks = columns.blocks[shares[i]]
        for number, block in enumerate(blocks):
            n0, n1, p0, p1 = block
            matrix = columns.matrix(block)
            dy_rows = dy[n0:n1, p0:p1].reshape(matrix.shape[1], groups, shape[1]).transpose(1, 2, 0)
            if number == 0:
                np.matmul(dy_rows, matrix, out=partial[i])
            else:
                partial[i] += np.matmul(dy_rows, matrix, out=scratch("partial", shape, dy.dtype))

    workers.run(job, len(shares))
    return columns.unbanded(partial.sum(axis=0))


def conv2d_backward_input(dy: Array, w: Array, window: Window, groups: int, size: Size) -> Array:
    """A correlation of dy with the flipped filters, for each phase of the stride.

    The rows h of x with one remainder by the stride are reached by the same taps r, every (stride / g)-th, and by rows
    of dy that lie dilation / g apart, where g = gcd(stride, dilation). So they are a correlation of dy with these taps
    in reverse. The same holds for columns.
    """
    n, k, p, q = dy.shape
    few_windows = size[0] * size[1] > 4 * p * q * window.stride[0] * window.stride[1]
    # A product is narrower than a vector register where dx has few channels.
    narrow = groups == 1 and w.shape[1] * w.itemsize < 64
    dy = channels_last(dy)
    if (few_windows or narrow) and all_finite(dy):
        return scatter_input(dy, w, window, groups, size)
    channels = groups * w.shape[1]
    # [C, K/G, R, S]: the roles of C and K swap inside each group.
    swapped = w.reshape(groups, k // groups, *w.shape[1:]).swapaxes(1, 2).reshape(channels, k // groups, *window.kernel)
    dx = np.empty((n, *size, channels), dy.dtype)
    for row in range(window.stride[0]):
        rows, dilation_h, top = phase(row, window, 0)
        for column in range(window.stride[1]):
            columns, dilation_w, left = phase(column, window, 1)
            part = dx[:, row :: window.stride[0], column :: window.stride[1]]
            taps = swapped[:, :, rows, columns][:, :, ::-1, ::-1]
            if taps.size and part.size:
                reverse = Window(taps.shape[2:], (1, 1), (top, 0, left, 0), (dilation_h, dilation_w))
                correlate(dy, taps, Epilogue(), reverse, groups, part)
            else:
                part[...] = 0
    return dx.transpose(0, 3, 1, 2)


def phase(remainder: int, window: Window, axis: int) -> tuple[slice, int, int]:
    """(taps, dilation, padding) of the correlation of dy that yields the rows h = remainder + stride·i of dx."""
    kernel, stride, dilation = window.kernel[axis], window.stride[axis], window.dilation[axis]
    common = gcd(stride, dilation)
    for tap in range(min(kernel, stride)):
        # The row of dy that meets this tap at i = 0.
        first, rest = divmod(remainder + window.padding[2 * axis] - tap * dilation, stride)
        if rest == 0:
            taps = slice(tap, kernel, stride // common)
            last = len(range(kernel)[taps]) - 1
            return taps, dilation // common, last * (dilation // common) - first
    return slice(0, 0), 1, 0


def scatter_input(dy: Array, w: Array, window: Window, groups: int, size: Size) -> Array:
    """dx as sums of what each output gives back: for few windows on a large plane, and for a dx of few channels.

    As in `Columns`, a row of the product serves `side` neighbouring outputs: their dy times the banded filters is what
    they give to the R·span·C/G inputs under all of them, added in runs of span·C/G floats.
    """
    n, p, q, k = dy.shape
    c = w.shape[1]
    (dh, dw), (th, tw), (top, _, left, _) = window.dilation, window.stride, window.padding
    side = scatter_side(window, q, k // groups, c)
    span = (side - 1) * tw + window.extent[1]
    band = np.zeros((groups, side, k // groups, window.kernel[0], span, c), dy.dtype)
    filters = w.transpose(0, 2, 3, 1).reshape(groups, k // groups, *window.kernel, c)
    for j in range(side):
        band[:, j, :, :, j * tw : j * tw + window.extent[1] : dw] = filters
    band = band.reshape(groups, side * k // groups, -1)
    frame = np.zeros(
        (n, max((p - 1) * th + window.extent[0], top + size[0]), max((q - 1) * tw + window.extent[1], left + size[1]),
         groups, c), dy.dtype
    )  # fmt: skip
    rows = n * p * q // side
    by_size = -(-rows * band[0, 0].size * groups * dy.itemsize // BLOCK_BYTES)
    blocks = cut(n, even(max(by_size, min(rows * band.size // BLOCK_WORK, 8))))

    def job(i: int) -> None:
        mine, target = dy[blocks[i]], frame[blocks[i]]
        rows = mine.reshape(-1, side, groups, k // groups).transpose(2, 0, 1, 3).reshape(groups, -1, band.shape[1])
        shares = np.matmul(rows, band, out=scratch("shares", (groups, rows.shape[1], band.shape[2]), dy.dtype))
        shares = shares.reshape(groups, len(mine), p, q // side, window.kernel[0], span, c)
        for j in range(q // side):
            for r in range(window.kernel[0]):
                at = target[:, r * dh : r * dh + (p - 1) * th + 1 : th, j * side * tw : j * side * tw + span]
                at += shares[:, :, :, j, r].transpose(1, 2, 3, 0, 4)

    workers.run(job, len(blocks))
    dx = np.ascontiguousarray(frame[:, top : top + size[0], left : left + size[1]])
    return dx.reshape(n, *size, groups * c).transpose(0, 3, 1, 2)


@cache
def scatter_side(window: Window, q: int, filters: int, channels: int) -> int:
    """How many neighbouring outputs a row of `scatter_input` serves, a divisor of Q: the cheapest.

    A multiply-add costs 1/52 ns, an addition to dx 1/4 ns, and each run of additions 20 ns more. Measured as
    `best_side` was.
    """

    def cost(side: int) -> float:
        run = ((side - 1) * window.stride[1] + window.extent[1]) * channels
        return (run * side * filters / 52 + run / 4 + 20) / side

    return min((side for side in range(1, q + 1) if q % side == 0), key=cost, default=1)


# -- depthwise: one filter a channel, so no product; tap by tap over all channels at once ------------------------------


def depthwise(x: Array, w: Array, epilogue: Epilogue, window: Window, y: Array) -> None:
    _, p, q, k = y.shape
    (dh, dw), (th, tw) = window.dilation, window.stride
    columns = Columns(x, window, (p, q), k, k)
    taps = [(r, s, np.tile(w[:, 0, r, s], q)) for r in range(window.kernel[0]) for s in range(window.kernel[1])]

    def job(i: int) -> None:
        block = columns.blocks[i]
        n0, n1, p0, p1 = block
        frame = columns.frame(block)
        total = scratch("outputs", (n1 - n0, p1 - p0, q, k), y.dtype)
        total.fill(0)
        share = scratch("share", total.shape, y.dtype)
        for r, s, filters in taps:
            view = frame[:, r * dh : r * dh + (p1 - p0 - 1) * th + 1 : th, s * dw : s * dw + (q - 1) * tw + 1 : tw]
            np.multiply(view, filters.reshape(q, k), out=share)
            total += share
        epilogue.apply(total)
        np.copyto(y[n0:n1, p0:p1], total)

    workers.run(job, len(columns.blocks))


def depthwise_weight(dy: Array, x: Array, window: Window) -> Array:
    _, p, q, k = dy.shape
    (dh, dw), (th, tw) = window.dilation, window.stride
    columns = Columns(x, window, (p, q), k, k)
    partial = np.empty((len(columns.blocks), *window.kernel, k), dy.dtype)

    def job(i: int) -> None:
        block = columns.blocks[i]
        n0, n1, p0, p1 = block
        frame, mine = columns.frame(block), dy[n0:n1, p0:p1]
        share = scratch("share", mine.shape, dy.dtype)
        ones = np.ones(mine.size // k, dy.dtype)
        for r in range(window.kernel[0]):
            for s in range(window.kernel[1]):
                view = frame[:, r * dh : r * dh + (p1 - p0 - 1) * th + 1 : th, s * dw : s * dw + (q - 1) * tw + 1 : tw]
                np.multiply(view, mine, out=share)
                np.matmul(ones, share.reshape(-1, k), out=partial[i, r, s])

    workers.run(job, len(columns.blocks))
    return np.ascontiguousarray(partial.sum(axis=0).transpose(2, 0, 1))[:, None]
