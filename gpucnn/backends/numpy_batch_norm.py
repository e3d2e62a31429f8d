"""Batch normalisation in NumPy, and what follows it: each block is finished while it is in a cache.

Arrays are dense, [..., C].
"""

from __future__ import annotations

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_activation import activate, share
from gpucnn.backends.numpy_elementwise import Channels
from gpucnn.backends.numpy_parallel import scratch, workers


def statistics(x: Array) -> tuple[Array, Array]:
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


def forward(
    x: Array,
    mean: Array,
    invstd: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None,
    activation: str | None,
) -> Array:
    channels = Channels(x)
    y = np.empty_like(x)
    center, scale = channels.tile(mean), channels.tile(invstd if weight is None else invstd * weight)
    shift = None if bias is None else channels.tile(bias)

    def job(i: int) -> None:
        part = np.subtract(channels.part(x, i), center, out=channels.part(y, i))
        part *= scale
        if shift is not None:
            part += shift
        if residual is not None:
            part += channels.part(residual, i)
        if activation is not None:
            activate(part, activation)

    workers.run(job, len(channels.blocks))
    return y


def backward(
    dy: Array,
    x: Array,
    mean: Array,
    invstd: Array,
    weight: Array | None,
    training: bool,
    y: Array | None,
    activation: str | None,
    residual: bool,
) -> tuple[Array, Array, Array, Array]:
    """(dx, dweight, dbias, dr); dr is dx's memory unless there was a residual."""
    channels = Channels(x)
    sums, products = channels.partial_sums(x.dtype), channels.partial_sums(x.dtype)
    center = channels.tile(mean)
    dr = dy if activation is None else np.empty_like(dy)
    dx = np.empty_like(dy) if residual or activation is None else dr

    def reduce(i: int) -> None:
        part = channels.part(dr, i)
        if activation is not None:
            share(channels.part(dy, i), channels.part(y, i), activation, 0, part)
        sums[i] = channels.sum(part)
        product = np.subtract(channels.part(x, i), center, out=scratch("deviation", part.shape, x.dtype))
        product *= part
        products[i] = channels.sum(product)

    workers.run(reduce, len(channels.blocks))
    dbias = sums.sum(axis=0)
    dweight = products.sum(axis=0) * invstd
    factor = invstd if weight is None else invstd * weight
    # dx = factor · dr − (x − mean) · slope − shift
    count = max(channels.count, 1)
    scale = channels.tile(factor)
    slope, shift = channels.tile(factor * invstd * dweight / count), channels.tile(factor * dbias / count)

    def spread(i: int) -> None:
        part = np.multiply(channels.part(dr, i), scale, out=channels.part(dx, i))
        if training:
            deviation = np.subtract(channels.part(x, i), center, out=scratch("deviation", part.shape, x.dtype))
            deviation *= slope
            part -= deviation
            part -= shift

    workers.run(spread, len(channels.blocks))
    return dx, dweight, dbias, dr
