"""Elementwise work, sums over channels and batch normalisation in NumPy, in cache-sized blocks over the cores.

A vector over the channels is repeated to a tile of a few thousand elements, so that NumPy's inner loops are long even
where there are few channels: x [M, C] is read as [M / t, t·C].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_parallel import scratch, workers

# Elements of a block: a few arrays of this size fit L2, and one NumPy call on it outlasts a switch of threads.
BLOCK = 1 << 18
TILE = 1 << 13
# Multiply-adds of one part of a matrix product.
PRODUCT = 1 << 21


def in_blocks(job: Callable[..., None], *arrays: Array) -> None:
    """job(*parts) for matching flat parts of dense arrays of one size."""
    size = arrays[0].size
    flat = [array.reshape(-1) for array in arrays]
    if size <= 2 * BLOCK:
        with np.errstate(all="ignore"):
            job(*flat)
        return

    def run(i: int) -> None:
        job(*(array[i * BLOCK : (i + 1) * BLOCK] for array in flat))

    workers.run(run, -(-size // BLOCK))


def pixels(x: Array) -> Array:
    """A view of x [..., C] with each run of C as one element: NumPy copies that faster than a loop of C floats."""
    return x.view(np.dtype((np.void, x.shape[-1] * x.itemsize)))[..., 0]


def select(keep: Array, dy: Array, out: Array) -> None:
    """out = dy where `keep` (bool) else exactly 0, also for an infinite dy. By bits: np.where is several times slower."""
    integer = np.int32 if dy.itemsize == 4 else np.int64
    mask = scratch("mask", keep.shape, integer)
    np.negative(keep.view(np.int8), out=mask)  # 0 or −1: no bits or all
    np.bitwise_and(dy.view(integer), mask, out=out.view(integer))


# -- sums over all axes but the last -----------------------------------------------------------------------------------


class Channels:
    """Dense arrays [..., C] of one shape, read as rows of t·C elements in blocks."""

    def __init__(self, x: Array) -> None:
        self.c = x.shape[-1]
        self.count = x.size // self.c
        self.repeat = largest_divisor(self.count, max(TILE // self.c, 1))
        lines = self.count // self.repeat if self.count else 0
        self.height = max(BLOCK // (self.repeat * self.c), 1)
        self.blocks = -(-lines // self.height)

    def part(self, x: Array, i: int) -> Array:
        """Block i of x, [lines, t·C]."""
        return x.reshape(-1, self.repeat * self.c)[i * self.height : (i + 1) * self.height]

    def tile(self, vector: Array) -> Array:
        return np.tile(vector, self.repeat)

    def sum(self, part: Array) -> Array:
        """[C]: the sum of one block over all but the channels."""
        lines = np.matmul(np.ones(len(part), part.dtype), part)
        return np.matmul(np.ones(self.repeat, part.dtype), lines.reshape(self.repeat, self.c))

    def partial_sums(self, dtype: np.dtype) -> Array:
        return np.zeros((self.blocks, self.c), dtype)


def largest_divisor(number: int, limit: int) -> int:
    return next((d for d in range(min(limit, number), 0, -1) if number % d == 0), 1)


def channel_sums(x: Array) -> Array:
    """[C] of a dense x [..., C]."""
    channels = Channels(x)
    sums = channels.partial_sums(x.dtype)

    def job(i: int) -> None:
        sums[i] = channels.sum(channels.part(x, i))

    workers.run(job, channels.blocks)
    return sums.sum(axis=0)


# -- batch normalisation -----------------------------------------------------------------------------------------------


def batch_norm_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and variance of each block by two passes, combined by the formula of Chan, Golub and LeVeque (1979)."""
    channels = Channels(x)
    means, squares = channels.partial_sums(x.dtype), channels.partial_sums(x.dtype)
    counts = np.zeros((channels.blocks, 1))

    def job(i: int) -> None:
        part = channels.part(x, i)
        counts[i] = part.size // channels.c
        means[i] = channels.sum(part) / x.dtype.type(counts[i, 0])
        deviation = np.subtract(part, channels.tile(means[i]), out=scratch("deviation", part.shape, x.dtype))
        # The sum that made the mean was rounded; what the deviations still add up to corrects it.
        shift = channels.sum(deviation) / x.dtype.type(counts[i, 0])
        np.square(deviation, out=deviation)
        squares[i] = channels.sum(deviation) - x.dtype.type(counts[i, 0]) * np.square(shift)
        means[i] += shift

    workers.run(job, channels.blocks)
    count = max(channels.count, 1)
    mean = (means * counts).sum(axis=0) / count
    variance = (squares + np.square(means - mean) * counts).sum(axis=0) / count
    return mean.astype(x.dtype), variance.astype(x.dtype)


def batch_norm_forward(x: Array, mean: Array, invstd: Array, weight: Array | None, bias: Array | None) -> Array:
    channels = Channels(x)
    y = np.empty_like(x)
    center, scale = channels.tile(mean), channels.tile(invstd if weight is None else invstd * weight)
    shift = None if bias is None else channels.tile(bias)

    def job(i: int) -> None:
        part = np.subtract(channels.part(x, i), center, out=channels.part(y, i))
        part *= scale
        if shift is not None:
            part += shift

    workers.run(job, channels.blocks)
    return y


def batch_norm_backward(
    dy: Array, x: Array, mean: Array, invstd: Array, weight: Array | None, training: bool
) -> tuple[Array, Array, Array]:
    channels = Channels(x)
    sums, products = channels.partial_sums(x.dtype), channels.partial_sums(x.dtype)
    center = channels.tile(mean)

    def reduce(i: int) -> None:
        part = channels.part(dy, i)
        sums[i] = channels.sum(part)
        product = np.subtract(channels.part(x, i), center, out=scratch("deviation", part.shape, x.dtype))
        product *= part
        products[i] = channels.sum(product)

    workers.run(reduce, channels.blocks)
    dbias = sums.sum(axis=0)
    dweight = products.sum(axis=0) * invstd
    factor = invstd if weight is None else invstd * weight
    # dx = factor · dy − (x − mean) · slope − shift
    count = max(channels.count, 1)
    scale = channels.tile(factor)
    slope, shift = channels.tile(factor * invstd * dweight / count), channels.tile(factor * dbias / count)
    dx = np.empty_like(dy)

    def spread(i: int) -> None:
        part = np.multiply(channels.part(dy, i), scale, out=channels.part(dx, i))
        if training:
            deviation = np.subtract(channels.part(x, i), center, out=scratch("deviation", part.shape, x.dtype))
            deviation *= slope
            part -= deviation
            part -= shift

    workers.run(spread, channels.blocks)
    return dx, dweight, dbias


# -- products ----------------------------------------------------------------------------------------------------------


def matmul(a: Array, b: Array) -> Array:
    """a @ b, the larger side of the result in parts where that is worth it."""
    rows, columns = a.shape[-2], b.shape[-1]
    y = np.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), rows, columns), a.dtype)
    parts = min(max(y.size * a.shape[-1] // PRODUCT, 1), 16, max(rows, columns) // 16 + 1)

    def job(i: int) -> None:
        if rows >= columns:
            part = slice(rows * i // parts, rows * (i + 1) // parts)
            np.matmul(a[..., part, :], b, out=y[..., part, :])
        else:
            part = slice(columns * i // parts, columns * (i + 1) // parts)
            np.matmul(a, b[..., part], out=y[..., part])

    workers.run(job, parts)
    return y
