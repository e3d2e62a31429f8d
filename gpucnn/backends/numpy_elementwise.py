"""Elementwise work, sums over channels and batch normalisation in NumPy, in cache-sized blocks over the cores.

A vector over the channels is repeated to a tile of a few thousand elements, so that NumPy's inner loops are long even
where there are few channels: x [M, C] is read as [M / t, t·C].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_parallel import cut, scratch, workers
from gpucnn.backends.numpy_special import philox_words

# Elements of a block. Threads meet at the interpreter lock between NumPy calls, so these must take far longer.
BLOCK = 1 << 19
TILE = 1 << 13
# A multiple of 4, the words of one Philox counter.
DROPOUT_BLOCK = 1 << 16
# Multiply-adds of one part of a matrix product.
PRODUCT = 1 << 21


def in_blocks(job: Callable[..., None], *arrays: Array) -> None:
    """job(*parts) for matching flat parts of dense arrays of one size."""
    flat = [array.reshape(-1) for array in arrays]
    parts = cut(flat[0].size, flat[0].size // BLOCK)
    if len(parts) == 1:
        with np.errstate(all="ignore"):
            job(*flat)
    else:
        workers.run(lambda i: job(*(array[parts[i]] for array in flat)), len(parts))


def pixels(x: Array) -> Array:
    """A view of x [..., C] with each run of C as one element: NumPy copies that faster than a loop of C floats."""
    return x.view(np.dtype((np.void, x.shape[-1] * x.itemsize)))[..., 0]


def select(keep: Array, dy: Array, out: Array) -> None:
    """out = dy where `keep` (bool), else exactly 0, even if dy is infinite. By bits: np.where takes far longer."""
    integer = np.int32 if dy.itemsize == 4 else np.int64
    mask = scratch("mask", keep.shape, integer)
    np.negative(keep.view(np.int8), out=mask)  # 0 or −1: no bits or all
    np.bitwise_and(dy.view(integer), mask, out=out.view(integer))


def dropout(x: Array, p: float, seed: int, offset: int) -> Array:
    """x / (1 − p) where the element's random number is p or more, else 0."""
    y = np.zeros_like(x)
    if p == 1:
        return y
    flat, out = x.reshape(-1), y.reshape(-1)
    threshold = math.ceil(p * 2**24)  # u >= p exactly where word >> 8 is at least this

    def job(i: int) -> None:
        part = slice(i * DROPOUT_BLOCK, (i + 1) * DROPOUT_BLOCK)
        words = philox_words(flat[part].size, seed, offset + i * DROPOUT_BLOCK // 4)
        select(words >> 8 >= threshold, flat[part] / x.dtype.type(1 - p), out[part])

    workers.run(job, -(-flat.size // DROPOUT_BLOCK))
    return y


# -- sums over all axes but the last -----------------------------------------------------------------------------------


class Channels:
    """Dense arrays [..., C] of one shape, read as rows of t·C elements in blocks."""

    def __init__(self, x: Array) -> None:
        self.c = x.shape[-1]
        self.count = x.size // self.c
        self.repeat = largest_divisor(self.count, max(TILE // self.c, 1))
        self.blocks = cut(self.count // self.repeat, x.size // BLOCK)

    def part(self, x: Array, i: int) -> Array:
        """Block i of x, [lines, t·C]."""
        return x.reshape(-1, self.repeat * self.c)[self.blocks[i]]

    def tile(self, vector: Array) -> Array:
        return np.tile(vector, self.repeat)

    def sum(self, part: Array) -> Array:
        """[C]: the sum of one block over all but the channels."""
        lines = np.matmul(np.ones(len(part), part.dtype), part)
        return np.matmul(np.ones(self.repeat, part.dtype), lines.reshape(self.repeat, self.c))

    def partial_sums(self, dtype: np.dtype) -> Array:
        return np.zeros((len(self.blocks), self.c), dtype)


@cache
def largest_divisor(number: int, limit: int) -> int:
    return next((d for d in range(min(limit, number), 0, -1) if number % d == 0), 1)


def channel_sums(x: Array) -> Array:
    """[C] of a dense x [..., C]."""
    if x.size <= TILE:
        rows = x.reshape(-1, x.shape[-1])
        with np.errstate(all="ignore"):
            return np.matmul(np.ones(len(rows), x.dtype), rows)
    channels = Channels(x)
    sums = channels.partial_sums(x.dtype)

    def job(i: int) -> None:
        sums[i] = channels.sum(channels.part(x, i))

    workers.run(job, len(channels.blocks))
    return sums.sum(axis=0)


# -- batch normalisation -----------------------------------------------------------------------------------------------


def batch_norm_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and variance of each block by two passes, combined by the formula of Chan, Golub and LeVeque (1979)."""
    channels = Channels(x)
    means, squares = channels.partial_sums(x.dtype), channels.partial_sums(x.dtype)
    counts = np.zeros((len(channels.blocks), 1))

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

    workers.run(job, len(channels.blocks))
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

    workers.run(job, len(channels.blocks))
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

    workers.run(reduce, len(channels.blocks))
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

    workers.run(spread, len(channels.blocks))
    return dx, dweight, dbias


# -- products ----------------------------------------------------------------------------------------------------------


def matmul(a: Array, b: Array) -> Array:
    """a @ b, the larger side of the result in parts where that is worth it."""
    rows, columns = a.shape[-2], b.shape[-1]
    batch = () if a.ndim == b.ndim == 2 else np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = np.empty((*batch, rows, columns), a.dtype)
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
