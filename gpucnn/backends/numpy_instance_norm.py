"""Instance normalisation in NumPy: each block of images is finished while it is in a cache.

Arrays are dense, [N, H, W, C]; what an image's channel has one of is [N, C].
"""

from __future__ import annotations

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_elementwise import BLOCK, TILE, largest_divisor, ones
from gpucnn.backends.numpy_parallel import cut, scratch, workers


class Images:
    """Dense arrays [N, H, W, C] of one shape, read as N times rows of t·C elements, in blocks of whole images."""

    def __init__(self, x: Array) -> None:
        self.n, self.c = len(x), x.shape[-1]
        self.count = x.shape[1] * x.shape[2]
        self.repeat = largest_divisor(self.count, max(TILE // max(self.c, 1), 1))
        self.blocks = cut(self.n, x.size // BLOCK)

    def part(self, x: Array, i: int) -> Array:
        """Block i of x, [images, lines, t·C]."""
        return x.reshape(self.n, self.count // self.repeat, self.repeat * self.c)[self.blocks[i]]

    def tile(self, values: Array) -> Array:
        """Values [images, C] of a block as [images, 1, t·C]."""
        tiles = np.empty((len(values), self.repeat, self.c), values.dtype)
        tiles[...] = values[:, None]
        return tiles.reshape(len(values), 1, self.repeat * self.c)

    def sum(self, part: Array) -> Array:
        """[images, C]: the sum of each image of a block over all but the channels."""
        lines = np.matmul(ones(part.shape[1], part.dtype), part)
        return np.matmul(ones(self.repeat, part.dtype), lines.reshape(len(part), self.repeat, self.c))


def statistics(x: Array) -> tuple[Array, Array]:
    """Mean and variance of each image by two passes."""
    images = Images(x)
    mean, variance = np.zeros((2, images.n, images.c), x.dtype)

    def job(i: int) -> None:
        part, of = images.part(x, i), images.blocks[i]
        mean[of] = images.sum(part) / x.dtype.type(images.count)
        deviation = np.subtract(part, images.tile(mean[of]), out=scratch("deviation", part.shape, x.dtype))
        # The sum that made the mean was rounded; what the deviations still add up to corrects it.
        shift = images.sum(deviation) / x.dtype.type(images.count)
        np.square(deviation, out=deviation)
        variance[of] = images.sum(deviation) / x.dtype.type(images.count) - np.square(shift)
        mean[of] += shift

    workers.run(job, len(images.blocks))
    return mean, variance


def forward(x: Array, mean: Array, invstd: Array, weight: Array | None, bias: Array | None) -> Array:
    images = Images(x)
    y = np.empty_like(x)
    scale = invstd if weight is None else invstd * weight
    shift = None if bias is None else np.broadcast_to(bias, mean.shape)

    def job(i: int) -> None:
        of = images.blocks[i]
        part = np.subtract(images.part(x, i), images.tile(mean[of]), out=images.part(y, i))
        part *= images.tile(scale[of])
        if shift is not None:
            part += images.tile(shift[of])

    workers.run(job, len(images.blocks))
    return y


def backward(dy: Array, x: Array, mean: Array, invstd: Array, weight: Array | None) -> tuple[Array, Array, Array]:
    """(dx, dweight, dbias)."""
    images = Images(x)
    dweights, dbiases = np.zeros((2, images.n, images.c), x.dtype)
    dx = np.empty_like(dy)
    scale = invstd if weight is None else invstd * weight

    def job(i: int) -> None:
        of, gradient = images.blocks[i], images.part(dy, i)
        deviation = scratch("deviation", gradient.shape, x.dtype)
        np.subtract(images.part(x, i), images.tile(mean[of]), out=deviation)
        part = np.multiply(gradient, deviation, out=images.part(dx, i))
        dbiases[of] = images.sum(gradient)
        dweights[of] = images.sum(part) * invstd[of]
        # dx = scale · (dy − ((x − mean) · invstd · dweight + dbias) / count)
        count = x.dtype.type(max(images.count, 1))
        deviation *= images.tile(invstd[of] * dweights[of] / count)
        np.subtract(gradient, deviation, out=part)
        part -= images.tile(dbiases[of] / count)
        part *= images.tile(scale[of])

    workers.run(job, len(images.blocks))
    return dx, dweights.sum(axis=0), dbiases.sum(axis=0)
