"""Pooling in NumPy, in blocks of images over the cores, or of rows. No loop runs over pixels: each tap of the window is
one strided view of the plane, and sums and maxima go first down the columns, in long runs, then along the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from gpucnn.backends.base import Array, Divisor
from gpucnn.backends.numpy_columns import channels_last, even
from gpucnn.backends.numpy_elementwise import ones, pixels, select
from gpucnn.backends.numpy_parallel import cut, scratch, workers
from gpucnn.geometry import Size, Window

# Elements of the planes of one block.
BLOCK = 1 << 18


class Frames:
    """Planes [N,H,W,C] in blocks of images, each laid in a frame that holds every window, also those that stick out."""

    def __init__(self, window: Window, size: Size, out: Size, n: int, c: int) -> None:
        (top, _, left, _), (th, tw), (eh, ew) = window.padding, window.stride, window.extent
        self.window, self.size, self.out, self.c = window, size, out, c
        self.height = max(top + size[0], (out[0] - 1) * th + eh)
        self.width = max(left + size[1], (out[1] - 1) * tw + ew)
        self.blocks = cut(n, n * self.height * self.width * c // BLOCK)

    def plane(self, frame: Array) -> Array:
        """The part of a frame that is the plane."""
        top, _, left, _ = self.window.padding
        return frame[:, top : top + self.size[0], left : left + self.size[1]]

    def laid(self, x: Array, fill: float) -> Array:
        """The images x in a frame of `fill`, which this thread's next call overwrites; x itself if large enough."""
        if (self.height, self.width) == x.shape[1:3]:
            return x
        frame = scratch("frame", (len(x), self.height, self.width, self.c), x.dtype)
        frame.fill(fill)
        self.plane(frame)[...] = x
        return frame

    def tiled(self) -> bool:
        """Whether each element of a frame is under exactly one tap of one window."""
        (p, q), (r, s) = self.out, self.window.kernel
        return self.window.stride == (r, s) and self.window.dilation == (1, 1) and (p * r, q * s) == (
            self.height, self.width
        )  # fmt: skip

    def one_window(self) -> bool:
        """Whether there is a single window, and it is the plane: global pooling."""
        return self.out == (1, 1) and self.window.kernel == self.size == (self.height, self.width)

    def flat(self, plane: Array) -> Array:
        """A dense array [n,H,W,C] as [n,H·W,C]."""
        return plane.reshape(len(plane), self.size[0] * self.size[1], self.c)

    def rows(self, r: int) -> slice:
        """Of a frame: the rows under tap row r."""
        first, stride = r * self.window.dilation[0], self.window.stride[0]
        return slice(first, first + (self.out[0] - 1) * stride + 1, stride)

    def columns(self, s: int) -> slice:
        """Of a frame: the columns under tap column s."""
        first, stride = s * self.window.dilation[1], self.window.stride[1]
        return slice(first, first + (self.out[1] - 1) * stride + 1, stride)

    def windows(self, frame: Array) -> Array:
        """The view [R,S,n,P,Q] of a frame [n,·,·]."""
        (dh, dw), (th, tw), (sn, sh, sw) = self.window.dilation, self.window.stride, frame.strides
        shape = (*self.window.kernel, len(frame), *self.out)
        return np.ndarray(shape, frame.dtype, frame, 0, (dh * sh, dw * sw, sn, th * sh, tw * sw))

    def reduce(self, frame: Array, ufunc: Any, y: Array) -> None:
        """y [n,P,Q,C]: each window's elements folded by ufunc."""
        r, s = self.window.kernel
        if self.one_window():
            if ufunc is np.add:  # BLAS adds faster
                np.matmul(ones(r * s, frame.dtype), self.flat(frame), out=y[:, 0, 0])
            else:
                ufunc.reduce(self.flat(frame), axis=1, out=y[:, 0, 0])
            return
        lines = frame[:, self.rows(0)]
        if r > 1:
            lines = scratch("lines", lines.shape, y.dtype)
            np.copyto(lines, frame[:, self.rows(0)])
            for i in range(1, r):
                ufunc(lines, frame[:, self.rows(i)], out=lines)
        np.copyto(pixels(y), pixels(lines[:, :, self.columns(0)]))
        for i in range(1, s):
            ufunc(y, lines[:, :, self.columns(i)], out=y)


def strips(window: Window, size: Size, out: Size, n: int, c: int) -> Iterator[tuple[slice, slice, slice, Frames]]:
    """(images, rows of x, rows of y, their frames): blocks of images, or strips of each where an image is large."""
    whole = Frames(window, size, out, n, c)
    parts = cut(out[0], even(whole.height * whole.width * c // BLOCK))
    if len(parts) <= 1:
        for block in whole.blocks:
            yield block, slice(0, size[0]), slice(0, out[0]), whole
        return
    top, _, left, right = window.padding
    for i in range(n):
        for rows in parts:
            first = rows.start * window.stride[0] - top
            end = (rows.stop - 1) * window.stride[0] + window.extent[0] - top
            inside = slice(min(max(first, 0), size[0]), max(min(end, size[0]), 0))
            strip = replace(window, padding=(max(-first, 0), max(end - size[0], 0), left, right))
            frames = Frames(strip, (inside.stop - inside.start, size[1]), (rows.stop - rows.start, out[1]), 1, c)
            yield slice(i, i + 1), inside, rows, frames


# -- max and min -------------------------------------------------------------------------------------------------------


def max_pool2d_forward(
    x: Array, window: Window, mode: Literal["max", "min"], need_tap: bool
) -> tuple[Array, Array | None]:
    n, c, h, w = x.shape
    out = window.output_size((h, w))
    x = channels_last(x)
    blocks = list(strips(window, (h, w), out, n, c))
    y = np.empty((n, *out, c), x.dtype)
    tap = np.empty(y.shape, np.uint8 if window.taps <= 256 else np.int32) if need_tap else None
    worst, best = (-np.inf, np.maximum) if mode == "max" else (np.inf, np.minimum)

    def job(i: int) -> None:
        images, inside, rows, frames = blocks[i]
        frame = frames.laid(x[images, inside], worst)
        if tap is None:
            frames.reduce(frame, best, y[images, rows])
        else:
            winners(frames, frame, mode, y[images, rows], tap[images, rows])

    workers.run(job, len(blocks))
    return y.transpose(0, 3, 1, 2), None if tap is None else tap.transpose(0, 3, 1, 2)


def winners(frames: Frames, frame: Array, mode: str, y: Array, tap: Array) -> None:
    """The best element of each window and which tap it is. First each tap's elements are laid in a dense array."""
    r, s = frames.window.kernel
    if frames.one_window():  # NumPy's rule is ours: NaN wins, and of equal elements the first
        plane = frames.flat(frame)
        place = (plane.argmax if mode == "max" else plane.argmin)(axis=1, keepdims=True)
        tap[:, 0], y[:, 0] = place, np.take_along_axis(plane, place, 1)
        return
    best = np.maximum if mode == "max" else np.minimum
    taps = scratch("taps", (r * s, *y.shape), y.dtype)
    np.copyto(pixels(taps).reshape(r, s, *y.shape[:3]), frames.windows(pixels(frame)))
    first_best(taps, best.reduce, y, tap)
    if not np.isfinite(y).all():
        exact_winners(frames, taps, mode, y, tap)


def first_best(taps: Array, best_of: Any, y: Array, tap: Array | None) -> None:
    """y = the best of taps [T, ...], none of them NaN, and the number of the first one that equals it."""
    best_of(taps, axis=0, out=y)
    if tap is None:
        return
    # The number of the winner is the count of those before it, none of which equals y.
    differs = scratch("differs", (len(taps) - 1, *y.shape), np.bool_)
    np.not_equal(taps[:-1], y, out=differs)
    np.copyto(tap, differs[-1] if len(differs) else 0)
    for before in differs.view(np.uint8)[-2::-1]:
        tap += 1
        tap *= before


def exact_winners(frames: Frames, taps: Array, mode: str, y: Array, tap: Array) -> None:
    """The same where NaN or infinities are among the elements: a NaN wins, and padding never does."""
    worst, better = (-np.inf, np.greater) if mode == "max" else (np.inf, np.less)
    window = frames.window
    # The first tap in the plane wins where all elements are as bad as padding.
    first = [
        np.maximum(-(-(window.padding[2 * axis] - np.arange(frames.out[axis]) * window.stride[axis]) // dilation), 0)
        for axis, dilation in enumerate(window.dilation)
    ]
    tap[...] = (first[0][:, None] * window.kernel[1] + first[1])[..., None]
    y.fill(worst)
    for t, values in enumerate(taps):
        wins = better(values, y) | (np.isnan(values) & ~np.isnan(y))
        np.copyto(y, values, where=wins)
        tap[wins] = t


def max_pool2d_backward(dy: Array, tap: Array, window: Window, size: Size) -> Array:
    n, c, p, q = dy.shape
    dy, tap = channels_last(dy), channels_last(tap)
    frames = Frames(window, size, (p, q), n, c)
    dx = np.empty((n, *size, c), dy.dtype)
    r, s = window.kernel
    codes = np.arange(r * s, dtype=tap.dtype).reshape(r, s, 1, 1, 1, 1)
    overlap = any(
        k > 1 and s < (k - 1) * d + 1 for k, s, d in zip(window.kernel, window.stride, window.dilation, strict=True)
    )

    def job(i: int) -> None:
        block = frames.blocks[i]
        mine = dx[block]
        if frames.one_window():
            mine.fill(0)
            place = tap[block][:, 0].astype(np.intp)
            chosen = place < r * s  # a fused ReLU has let none pass where it is not
            np.put_along_axis(frames.flat(mine), place * chosen, np.where(chosen, dy[block][:, 0], 0), 1)
            return
        fits = mine.shape[1:3] == (frames.height, frames.width)
        frame = mine if fits else scratch("frame", (len(mine), frames.height, frames.width, c), dy.dtype)
        if not frames.tiled():
            frame.fill(0)
        share = scratch("share", (s, *dy[block].shape), dy.dtype)
        # The last tap first: it belongs to the first window in row-major order that covers a pixel.
        for i in reversed(range(r)):
            select(tap[block] == codes[i], dy[block], share)
            for j in reversed(range(s)):
                target = frame[:, frames.rows(i), frames.columns(j)]
                if overlap:
                    target += share[j]
                else:
                    np.copyto(pixels(target), pixels(share[j]))
        if not fits:
            np.copyto(mine, frames.plane(frame))

    workers.run(job, len(frames.blocks))
    return dx.transpose(0, 3, 1, 2)


# -- average and sum ---------------------------------------------------------------------------------------------------


def avg_pool2d_forward(x: Array, window: Window, divisor: Divisor) -> Array:
    n, c, h, w = x.shape
    out = window.output_size((h, w))
    x = channels_last(x)
    frames = Frames(window, (h, w), out, n, c)
    y = np.empty((n, *out, c), x.dtype)
    counts = divisors(window, divisor, (h, w), out, x.dtype)

    def job(i: int) -> None:
        block = frames.blocks[i]
        frames.reduce(frames.laid(x[block], 0), np.add, y[block])
        np.divide(y[block], counts, out=y[block])

    workers.run(job, len(frames.blocks))
    return y.transpose(0, 3, 1, 2)


def avg_pool2d_backward(dy: Array, window: Window, divisor: Divisor, size: Size) -> Array:
    n, c, p, q = dy.shape
    dy = channels_last(dy)
    frames = Frames(window, size, (p, q), n, c)
    dx = np.empty((n, *size, c), dy.dtype)
    counts = divisors(window, divisor, size, (p, q), dy.dtype)

    def job(i: int) -> None:
        block = frames.blocks[i]
        share = dy[block] / counts
        if frames.one_window():
            dx[block] = share
            return
        lines = np.zeros((len(share), p, frames.width, c), dy.dtype)
        for s in range(window.kernel[1]):
            lines[:, :, frames.columns(s)] += share
        frame = np.zeros((len(share), frames.height, frames.width, c), dy.dtype)
        for r in range(window.kernel[0]):
            frame[:, frames.rows(r)] += lines
        np.copyto(dx[block], frames.plane(frame))

    workers.run(job, len(frames.blocks))
    return dx.transpose(0, 3, 1, 2)


def divisors(window: Window, divisor: Divisor, size: Size, out: Size, dtype: np.dtype[Any]) -> Array:
    """What each window's sum is divided by: [P,Q,1], or one number."""
    if isinstance(divisor, int):
        return dtype.type(divisor)
    counts = []
    for axis in range(2):
        before, after = window.padding[2 * axis : 2 * axis + 2]
        first = np.arange(out[axis])[:, None] * window.stride[axis] - before
        at = first + np.arange(window.kernel[axis]) * window.dilation[axis]
        inside = at < size[axis] + after if divisor == "window" else (at >= 0) & (at < size[axis])
        counts.append(inside.sum(axis=1))
    # A window that holds no element at all has the sum 0.
    return np.maximum(counts[0][:, None, None] * counts[1][:, None], 1).astype(dtype)
