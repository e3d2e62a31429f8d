"""3×3 convolution by Winograd's F(2×2, 3×3): a tile of 4×4 inputs and a filter become 16 numbers each by a linear map,
their products another 16, and these 2×2 outputs. That takes 16 multiplications in place of 36, by 16 matrix products
over the channels. A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.

The maps are matrix products too, of all 16 numbers of a tile at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_columns import Columns, all_finite
from gpucnn.backends.numpy_elementwise import pixels, run_of
from gpucnn.backends.numpy_parallel import cut, scratch, workers
from gpucnn.backends.numpy_product import product, product_over_rows, wide_product
from gpucnn.geometry import Size, Window

if TYPE_CHECKING:
    from gpucnn.backends.numpy_conv import Epilogue

# In one dimension; for a plane the Kronecker product with itself.
_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_FILTER = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))
INPUT, FILTER, OUTPUT = (np.kron(m, m).astype(np.float32) for m in (_INPUT, _FILTER, _OUTPUT))

# The partial weight gradients of all blocks take no more than this.
PARTIAL_BYTES = 1 << 24
# Filters (channels times) that are mapped by one job.
FILTERS = 1 << 13
# With fewer channels or filters the maps cost more than the products save.
LEAST_CHANNELS = 64
# Multiply-adds: with fewer, threads lose more between the many small steps of a block than there is to win.
LEAST_WORK = 40_000_000
# With fewer tiles mapping the filters costs more than the products save.
LEAST_TILES = 128
# Multiply-adds and tiles of a block, at least.
BLOCK_WORK = 20_000_000
BLOCK_TILES = 64


def pays(x: Array, filters: Size, window: Window, groups: int, out: Size) -> bool:
    """Whether it is faster than im2col for x [N,H,W,C] and filters [K,C]. float64, a reference, is left alone."""
    rows, columns = grid_of(out)
    return (
        x.dtype == np.float32
        and (groups, window.kernel, window.stride, window.dilation) == (1, (3, 3), (1, 1), (1, 1))
        and min(filters) >= LEAST_CHANNELS
        and len(x) * rows * columns >= LEAST_TILES
        and 16 * len(x) * rows * columns * math.prod(filters) >= LEAST_WORK
        and 4 * rows * columns <= 1.2 * math.prod(out)
    )


def grid_of(out: Size) -> Size:
    """Rows and columns of tiles, each of 2×2 outputs; the last ones may stick out."""
    return -(-out[0] // 2), -(-out[1] // 2)


def correlate(x: Array, w: Array, epilogue: Epilogue, window: Window, y: Array) -> bool:
    """y [N,P,Q,K] becomes x [N,H,W,C] correlated with w [K,C,3,3], and what follows. False if a result is not finite:
    then others may be wrong, since a tile mixes its outputs."""
    _, p, q, k = y.shape
    grid = grid_of((p, q))
    inputs = Columns(x, Window((4, 4), (2, 2), window.padding), grid, k, 1, tiles=True)
    inputs.blocks = inputs.cut(BLOCK_WORK, BLOCK_TILES)
    filters = mapped_filters(w)
    epilogue = epilogue.of(slice(None), q)
    finite: list[bool] = []

    def job(i: int) -> None:
        n0, n1, row0, row1 = inputs.blocks[i]
        maps = mapped(INPUT, inputs, i)
        products = planes("products", 16, maps.shape[1], k)
        product(maps, filters, products)
        outputs = planes("outputs", 4, maps.shape[1], k)
        wide_product(OUTPUT, flat(products), flat(outputs))
        block = pixels(outputs).reshape(2, 2, n1 - n0, row1 - row0, grid[1])
        target = y[n0:n1, 2 * row0 : 2 * row1]
        if target.shape[1] % 2 == q % 2 == 0:
            pairs = pixels(target).reshape(n1 - n0, row1 - row0, 2, grid[1], 2)
            np.copyto(pairs.transpose(2, 4, 0, 1, 3), block)
        else:
            for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
                part = pixels(target)[:, row::2, column::2]
                np.copyto(part, block[row, column, :, : part.shape[1], : part.shape[2]])
        finite.append(all_finite(target))
        epilogue.apply(target, slice(n0, n1), slice(2 * row0, 2 * row1))

    workers.run(job, len(inputs.blocks))
    return all(finite)


def backward_weight(dy: Array, x: Array, window: Window) -> Array:
    """dw [K,C,3,3] for dy [N,P,Q,K] and x [N,H,W,C]. If those are not all finite, neither is dw, perhaps elsewhere than
    it should be."""
    (_, p, q, k), c = dy.shape, x.shape[3]
    grid = grid_of((p, q))
    inputs = Columns(x, Window((4, 4), (2, 2), window.padding), grid, k, 1, tiles=True)
    outputs = Columns(dy, Window((2, 2), (2, 2)), grid, c, 1, tiles=True)
    outputs.blocks = inputs.blocks
    # Each job sums several blocks, so that few partial gradients are kept; in which order depends on shapes alone.
    shares = cut(len(inputs.blocks), max(2, min(16, PARTIAL_BYTES // (64 * k * c))))
    partial = np.empty((len(shares), 16, k, c), dy.dtype)

    def job(i: int) -> None:
        for number, block in enumerate(range(len(inputs.blocks))[shares[i]]):
            gradients = mapped(OUTPUT.T, outputs, block)
            target = partial[i] if number == 0 else scratch("partial", partial.shape[1:], dy.dtype)
            product_over_rows(gradients, mapped(INPUT, inputs, block), target)
            if number:
                partial[i] += target

    workers.run(job, len(shares))
    dw = np.empty((k, 3, 3, c), dy.dtype)
    parts = cut(k, k * c // FILTERS)

    def unmap(i: int) -> None:
        total = partial[:, :, parts[i]].sum(axis=0)
        taps = np.matmul(FILTER.T, flat(total)).reshape(3, 3, -1, c)
        np.copyto(dw[parts[i]], taps.transpose(2, 0, 1, 3))

    workers.run(unmap, len(parts))
    return dw.transpose(0, 3, 1, 2)


def mapped_filters(w: Array) -> Array:
    """[16,C,K] of the filters w [K,C,3,3]."""
    k, c = w.shape[:2]
    filters = np.empty((16, c, k), w.dtype)
    parts = cut(c, k * c // FILTERS)

    def job(i: int) -> None:
        taps = np.ascontiguousarray(w[:, parts[i]].transpose(2, 3, 1, 0)).reshape(9, -1)
        wide_product(FILTER, taps, flat(filters)[:, parts[i].start * k : parts[i].stop * k])

    workers.run(job, len(parts))
    return filters


def mapped(matrix: Array, tiles: Columns, i: int) -> Array:
    """[len(matrix), tiles, C]: `matrix` times the pixels of each tile of block i."""
    n0, n1, row0, row1 = tiles.blocks[i]
    frame = tiles.frame(tiles.blocks[i])
    (r, s), stride, c = tiles.window.kernel, tiles.window.stride, frame.shape[3]
    grid = (n1 - n0, row1 - row0, tiles.out[1])
    gathered = planes("gathered", r * s, math.prod(grid), c)
    sn, sh, sw, _ = frame.strides
    dense = frame if frame.flags.c_contiguous else tiles.x
    offset = frame.__array_interface__["data"][0] - dense.__array_interface__["data"][0]
    view = (r, s, *grid), (sh, sw, sn, stride[0] * sh, stride[1] * sw)
    run = run_of(c * frame.itemsize)
    np.copyto(pixels(gathered).reshape(view[0]), np.ndarray(view[0], run, dense, offset, view[1]))
    maps = planes(f"maps {len(matrix)} {r}", len(matrix), math.prod(grid), c)
    wide_product(matrix, flat(gathered), flat(maps))
    return maps


def planes(name: str, count: int, tiles: int, channels: int) -> Array:
    """Scratch [count, tiles, channels]. Planes a power of two apart would contend for the same lines of a cache."""
    return scratch(name, (count, tiles * channels + 16), np.float32)[:, :-16].reshape(count, tiles, channels)


def flat(x: Array) -> Array:
    return x.reshape(len(x), -1)
