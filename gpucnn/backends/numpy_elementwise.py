"""Elementwise work, sums over channels and matrix products in NumPy, in cache-sized blocks over the cores.

A vector over the channels is repeated to a tile of a few thousand elements, so that NumPy's inner loops are long even
where there are few channels: x [M, C] is read as [M / t, t·C].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_parallel import cut, workers
from gpucnn.backends.numpy_special import philox_words

# Elements of a block. Threads meet at the interpreter lock between NumPy calls, so these must take far longer.
BLOCK = 1 << 18
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
    if not x.shape[-1]:
        return np.empty(x.shape[:-1], np.bool_)  # there is nothing to copy
    return x.view(run_of(x.shape[-1] * x.itemsize))[..., 0]


@cache
def run_of(size: int) -> np.dtype:
    """The type of an element of so many bytes."""
    return np.dtype((np.void, size))


def select(keep: Array, dy: Array, out: Array) -> None:
    """out = dy where `keep` (bool), else exactly 0, even if dy is infinite. By bits: np.where takes far longer."""
    integer = np.int32 if dy.itemsize == 4 else np.int64
    bits = out.view(integer)
    np.negative(keep.view(np.int8), out=bits)  # 0 or −1: no bits or all
    np.bitwise_and(dy.view(integer), bits, out=bits)


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
        self.count = x.size // max(self.c, 1)
        self.repeat = largest_divisor(self.count, max(TILE // max(self.c, 1), 1))
        self.blocks = cut(self.count // self.repeat, x.size // BLOCK)

    def part(self, x: Array, i: int) -> Array:
        """Block i of x, [lines, t·C]."""
        return x.reshape(self.count // self.repeat, self.repeat * self.c)[self.blocks[i]]

    def tile(self, vector: Array) -> Array:
        return repeated(vector, self.repeat)

    def sum(self, part: Array) -> Array:
        """[C]: the sum of one block over all but the channels."""
        lines = np.matmul(ones(len(part), part.dtype), part)
        return np.matmul(ones(self.repeat, part.dtype), lines.reshape(self.repeat, self.c))

    def partial_sums(self, dtype: np.dtype) -> Array:
        return np.zeros((len(self.blocks), self.c), dtype)


def repeated(vector: Array, times: int) -> Array:
    """np.tile(vector, times), which takes longer to think than to copy."""
    tiles = np.empty((times, len(vector)), vector.dtype)
    tiles[...] = vector
    return tiles.reshape(-1)


@lru_cache(256)
def ones(length: int, dtype: np.dtype) -> Array:
    return np.ones(length, dtype)


@cache
def largest_divisor(number: int, limit: int) -> int:
    return next((d for d in range(min(limit, number), 0, -1) if number % d == 0), 1)


def channel_sums(x: Array) -> Array:
    """[C] of a dense x [..., C]."""
    if x.size <= TILE:
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        with workers.in_a_row():
            return np.matmul(ones(len(rows), x.dtype), rows)
    channels = Channels(x)
    sums = channels.partial_sums(x.dtype)

    def job(i: int) -> None:
        sums[i] = channels.sum(channels.part(x, i))

    workers.run(job, len(channels.blocks))
    return sums.sum(axis=0)


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
