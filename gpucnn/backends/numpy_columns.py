"""The im2col matrix of a convolution, made block by block.

The output is cut into blocks. The rows of a block's im2col matrix are output pixels, each with the R·S·C inputs under
the filter, copied in runs of S·C floats; times the filters it is the block of y, in place.

With few channels those runs are short and the product is narrow. Then a row serves `side` neighbouring output pixels at
once: it holds the R·span·C inputs under all of them, and the filters become a banded matrix that yields side·K outputs.
That copies less and multiplies more; `best_side` weighs the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_elementwise import run_of
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


def channels_last(x: Array) -> Array:
    """The dense [N,H,W,C] array that holds x [N,C,H,W]: a view where x is stored channels-last, else a copy."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def all_finite(x: Array) -> bool:
    """False if x holds an infinity or NaN (or if its square is one): the zeros of a banded matrix would spread it."""
    flat = x.reshape(-1)
    with workers.in_a_row():
        return math.isfinite(np.dot(flat, flat))


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

    def __init__(self, x: Array, window: Window, out: Size, filters: int, groups: int, tiles: bool = False) -> None:
        n, _, w, c = x.shape
        self.x, self.window, self.out, self.filters, self.groups = x, window, out, filters, groups
        # The columns of x that a row of the matrix for `side` outputs reads; of a whole line, only those that exist.
        self.side, self.first, self.span = 1, -window.padding[2], window.kernel[1]
        if w and not tiles and groups == 1 and window.dilation[1] == 1 and window.taps > 1:
            side, first, span = best_side(window, w, out[1], c, filters, x.itemsize)
            if side == 1 or all_finite(x):
                self.side, self.first, self.span = side, first, span
        self.depth = window.kernel[0] * self.span * c // groups
        self.work = n * out[0] * out[1] * self.depth * filters // groups
        self.blocks = self.cut(BLOCK_WORK)
        # A 1×1 filter reads the pixels as they are.
        self.copies = not window.taps == self.side == groups == window.stride[0] == window.stride[1] == 1
        self.origin = (0, 0)  # the place of the first pixel in self.x
        if n and x.nbytes <= PADDED_BYTES:
            # Padded all at once: the fewer calls a block makes, the less its thread waits for the interpreter lock.
            frame = self.frame((0, n, 0, out[0]), np.empty)
            if frame.flags.owndata:
                self.x, self.origin = frame, (window.padding[0], -self.first)

    def cut(self, work: int, pixels: int = BLOCK_PIXELS) -> list[tuple[int, int, int, int]]:
        """Blocks of at least so many multiply-adds: whole images, or strips of rows of one where there are too few."""
        n, (p, q) = len(self.x), self.out
        if not n:
            return []
        depthwise = self.groups == self.filters == self.x.shape[3] > 1  # makes no matrix, but a few arrays like y
        inputs = (min(self.depth, 4) if depthwise else self.depth) * self.groups
        by_size = -(-n * p * (q // self.side) * inputs * self.x.itemsize // BLOCK_BYTES)
        # Each product copies the filters into OpenBLAS's own layout: a block of fewer pixels is not worth it.
        by_work = min(self.work // work, n * p * q // pixels, 8)
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
        run = run_of(together * c * frame.itemsize)
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
        inside = x[:, max(h0, 0) : max(h1, 0), max(w0, 0) : max(w1, 0)]
        row, column = max(-h0, 0), max(-w0, 0)
        end, last = row + inside.shape[1], column + inside.shape[2]
        frame[:, row:end, column:last] = inside
        for border in (frame[:, :row], frame[:, end:], frame[:, row:end, :column], frame[:, row:end, last:]):
            border.fill(0)
        return frame

    def banded(self, w: Array) -> Array:
        """The filters [K,C/G,R,S] as the matrices [G, R·span·C/G, side·K/G] that belong to `matrix`."""
        k, c, r, s = w.shape
        if self.side == 1 and self.span == s:
            many = len(self.x) * self.out[0] * self.out[1] > 1000
            if self.groups == 1 and (many or w.strides[0] == w.itemsize):
                # Filters in rows of K multiply a tenth faster: worth a copy that is fast, or that meets many pixels.
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

    A run costs 3 ns and then copies at 40 bytes/ns; a product does 224 bytes' worth of multiply-adds a ns, where
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
        return (3 + run * itemsize / 40 + run * outputs * itemsize / 224) / side

    side = min((side for side in range(1, q + 1) if q % side == 0), key=cost)
    first, end = columns(side)
    return side, first, end - first
