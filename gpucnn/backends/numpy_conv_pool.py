"""Convolution, ReLU and max pooling in one pass over blocks of images, for filters of few channels.

Where the pooling's windows do not overlap, this is a convolution of larger stride with T times as many filters: one for
each of the T taps of a pooling window, the filter shifted to where that tap's output reads. Their products are T dense
arrays of the pooled output's shape, whose largest elements are taken without gathering anything; and the gradients are
T such arrays with dy where that tap has won.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_columns import Columns, all_finite, channels_last
from gpucnn.backends.numpy_elementwise import ones, pixels, select
from gpucnn.backends.numpy_parallel import cut, scratch, workers
from gpucnn.backends.numpy_pool import first_best
from gpucnn.backends.numpy_product import product, product_over_rows
from gpucnn.geometry import Size, Window

# With more channels the taps' shares of inputs that no two of them have in common cost more than a pass over memory.
MOST_CHANNELS = 8
# Multiply-adds of a block: beside them there is as much other work again.
BLOCK_WORK = 7_000_000


def pays(x: Array, w: Array, window: Window, groups: int, pool: Window) -> bool:
    """Whether it is right here, and faster than the convolution and the pooling."""
    rows, columns = window.output_size((x.shape[2], x.shape[3]))
    p, q = pool.output_size((rows, columns))
    return (
        len(x) > 0
        and x.dtype in (np.float32, np.float64)
        and groups == 1 < window.taps * pool.taps
        and w.shape[1] <= MOST_CHANNELS
        and window.dilation == (1, 1)
        and (pool.stride, pool.dilation, pool.padding) == (pool.kernel, (1, 1), (0, 0, 0, 0))
        and p * pool.kernel[0] <= rows
        and q * pool.kernel[1] <= columns
    )


def columns_of(x: Array, w: Array, window: Window, pool: Window, out: Size) -> Columns:
    """The im2col matrix of x [N,H,W,C] for the filters of all taps."""
    (r, s), (th, tw), (ph, pw) = window.kernel, window.stride, pool.kernel
    wide = Window((r + (ph - 1) * th, s + (pw - 1) * tw), (ph * th, pw * tw), window.padding)
    columns = Columns(x, wide, out, pool.taps * len(w), 1)
    columns.blocks = columns.cut(BLOCK_WORK)
    return columns


def wide_filters(w: Array, window: Window, pool: Window) -> Array:
    """The filters [T·K,C,R',S'] of all taps."""
    (r, s), (th, tw), (ph, pw) = window.kernel, window.stride, pool.kernel
    wide = np.zeros((pool.taps, *w.shape[:2], r + (ph - 1) * th, s + (pw - 1) * tw), w.dtype)
    for part in shifted(wide, window, pool):
        part[...] = w
    return wide.reshape(-1, *wide.shape[2:])


def shifted(wide: Array, window: Window, pool: Window) -> list[Array]:
    """Of filters [T,K,C,R',S'] of all taps the part of each that is the filter."""
    (r, s), (th, tw) = window.kernel, window.stride
    taps = [divmod(t, pool.kernel[1]) for t in range(pool.taps)]
    return [wide[t, :, :, i * th : i * th + r, j * tw : j * tw + s] for t, (i, j) in enumerate(taps)]


def forward(
    x: Array, w: Array, b: Array | None, window: Window, pool: Window, activation: str | None, need_tap: bool
) -> tuple[Array, Array | None] | None:
    """(y [N,K,P',Q'], tap). None if not all results are finite: another may be wrong then, or have another tap."""
    n, k = len(x), len(w)
    out = pool.output_size(window.output_size((x.shape[2], x.shape[3])))
    columns = columns_of(channels_last(x), w, window, pool, out)
    depth, side = columns.depth, columns.side
    bands = np.empty((pool.taps, depth + (b is not None), side, k), w.dtype)
    filters = columns.banded(wide_filters(w, window, pool)).reshape(depth, side, pool.taps, k)
    bands[:, :depth] = filters.transpose(2, 0, 1, 3)
    if b is not None:
        bands[:, depth] = b  # as one more term of each sum
    y = np.empty((n, *out, k), x.dtype)
    tap = np.empty(y.shape, np.uint8) if need_tap else None
    best_of = np.maximum.reduce if activation is None else partial(np.maximum.reduce, initial=0)
    finite: list[bool] = []

    def job(i: int) -> None:
        n0, n1, p0, p1 = columns.blocks[i]
        best, won = y[n0:n1, p0:p1], None if tap is None else tap[n0:n1, p0:p1]
        matrix = columns.matrix(columns.blocks[i], b is not None)
        taps = scratch("taps", (pool.taps, matrix.shape[1], side * k), y.dtype)
        product(matrix, bands.reshape(pool.taps, -1, side * k), taps)
        first_best(taps.reshape(pool.taps, *best.shape), best_of, best, won)
        if activation is not None and won is not None:
            np.bitwise_or(won, (best > 0).view(np.uint8) - 1, out=won)  # with 0, or with NO_TAP
        finite.append(all_finite(best))

    workers.run(job, len(columns.blocks))
    if not all(finite):
        return None
    return y.transpose(0, 3, 1, 2), None if tap is None else tap.transpose(0, 3, 1, 2)


def backward(
    dy: Array, tap: Array, x: Array, w: Array, window: Window, pool: Window, needed: tuple[bool, bool, bool]
) -> tuple[Array | None, Array | None, Array | None]:
    n, k, p, q = dy.shape
    c, size = x.shape[1], (x.shape[2], x.shape[3])
    dy, tap = channels_last(dy), channels_last(tap)
    columns = columns_of(channels_last(x), w, window, pool, (p, q))
    side, depth = columns.side, columns.depth
    # The two gradients are jobs of their own, of larger blocks instead: so a thread makes fewer NumPy calls.
    blocks = cut(n, len(columns.blocks) // (2 if needed[0] and any(needed[1:]) else 1))
    of_bands = np.empty((len(blocks), pool.taps, side * k, depth), dy.dtype)
    sums = np.empty((len(blocks), side * k), dy.dtype)
    dx = np.empty((n, *size, c), dy.dtype) if needed[0] else None
    cells = Cells(wide_filters(w, window, pool), columns.window) if needed[0] else None
    numbers = np.arange(pool.taps, dtype=np.uint8).reshape(-1, 1, 1, 1, 1)

    def shares_of(block: slice) -> Array:
        """[T,n,P,Q,K]: dy where that tap has won, else 0."""
        shares = scratch("shares", (pool.taps, *dy[block].shape), dy.dtype)
        select(tap[block] == numbers, dy[block], shares)
        return shares

    def input_gradient(cells: Cells, block: slice, dx: Array) -> None:
        shares = shares_of(block)
        rows = scratch("rows", (*shares.shape[1:4], pool.taps, k), dy.dtype)
        np.copyto(pixels(rows), pixels(shares).transpose(1, 2, 3, 0))
        cells.scatter(rows.reshape(*shares.shape[1:4], -1), dx)

    def filter_gradient(block: slice, of_bands: Array, sums: Array) -> None:
        lines = shares_of(block).reshape(pool.taps, -1, side * k)
        if needed[1]:
            product_over_rows(lines, columns.matrix((block.start, block.stop, 0, p)), of_bands)
        if needed[2]:
            np.matmul(ones(lines.size // (side * k), dy.dtype), lines.reshape(-1, side * k), out=sums)

    jobs: list[Callable[[], None]] = []
    for i, block in enumerate(blocks):
        if dx is not None and cells is not None:
            jobs.append(partial(input_gradient, cells, block, dx[block]))
        if any(needed[1:]):
            jobs.append(partial(filter_gradient, block, of_bands[i], sums[i]))
    parts = cut(len(jobs), len(columns.blocks))

    def run(part: int) -> None:
        for job in jobs[parts[part]]:
            job()

    workers.run(run, len(parts))
    dw = None
    if needed[1]:
        bands = of_bands.sum(axis=0).reshape(pool.taps, side, k, depth).swapaxes(0, 1)
        wide = columns.unbanded(bands.reshape(1, -1, depth)).reshape(pool.taps, k, c, *columns.window.kernel)
        dw = sum(shifted(wide, window, pool))
    db = sums.reshape(-1, k).sum(axis=0) if needed[2] else None
    return None if dx is None else dx.transpose(0, 3, 1, 2), dw, db


class Cells:
    """The transpose of a convolution as a function of its input, by cells of stride·stride pixels.

    A window covers A·B cells, and each cell is under the window of one output at each of these places: so dx is the sum
    of A·B products, each a dense array of cells.
    """

    def __init__(self, w: Array, window: Window) -> None:
        k, c, r, s = w.shape
        (th, tw), self.padding = window.stride, window.padding
        self.stride, self.counts = window.stride, (-(-r // th), -(-s // tw))
        filters = np.zeros((k, c, self.counts[0] * th, self.counts[1] * tw), w.dtype)
        filters[:, :, :r, :s] = w
        filters = filters.reshape(k, c, self.counts[0], th, self.counts[1], tw)
        self.filters = filters.transpose(2, 4, 0, 3, 5, 1).reshape(-1, k, th * tw * c)

    def scatter(self, dy: Array, dx: Array) -> None:
        """dx [n,H,W,C] of dy [n,P,Q,K]."""
        (n, p, q, k), (_, h, w, c), (th, tw), (a, b) = dy.shape, dx.shape, self.stride, self.counts
        top, left = self.padding[0], self.padding[2]
        shares = scratch("cell shares", (a * b, n, p, q, th * tw * c), dx.dtype)
        product(dy.reshape(1, -1, k), self.filters, shares.reshape(a * b, n * p * q, -1))
        rows, columns = max(p + a - 1, -(-(top + h) // th)), max(q + b - 1, -(-(left + w) // tw))
        cells = scratch("cells", (n, rows, columns, th, tw, c), dx.dtype)
        cells.fill(0)
        for place, share in enumerate(shares):
            i, j = divmod(place, b)
            target = cells[:, i : i + p, j : j + q].reshape(n, p, -1)
            target += share.reshape(n, p, -1)
        fits = dx.shape[1:3] == (rows * th, columns * tw)
        plane = dx if fits else scratch("plane", (n, rows * th, columns * tw, c), dx.dtype)
        lines = plane.reshape(n, rows, th, columns, tw * c)
        np.copyto(pixels(lines), pixels(cells.reshape(n, rows, columns, th, tw * c)).transpose(0, 1, 3, 2))
        if not fits:
            np.copyto(dx, plane[:, top : top + h, left : left + w])
