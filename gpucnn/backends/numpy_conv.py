"""Convolution in NumPy: blocks of im2col (`numpy_columns`) and GEMM on channels-last arrays."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from gpucnn.backends import numpy_winograd
from gpucnn.backends.base import Array
from gpucnn.backends.numpy_activation import activate
from gpucnn.backends.numpy_columns import BLOCK_BYTES, BLOCK_WORK, Columns, all_finite, channels_last, even
from gpucnn.backends.numpy_elementwise import pixels, repeated
from gpucnn.backends.numpy_parallel import cut, scratch, workers
from gpucnn.backends.numpy_product import product, product_over_rows
from gpucnn.geometry import Size, Window

# The partial weight gradients of all blocks take no more than this.
PARTIAL_BYTES = 1 << 24
# The bytes of a vector register: with fewer in a pixel of dx a product is narrower.
NARROW = 64


# -- the three products ------------------------------------------------------------------------------------------------


class Epilogue(NamedTuple):
    """What becomes of a convolution's sums: times the filter's scale, plus its bias, plus the residual, activated."""

    b: Array | None = None
    scale: Array | None = None
    activation: str | None = None
    residual: Array | None = None  # [N,P,Q,K]

    def of(self, filters: slice, q: int) -> Epilogue:
        """That of some filters; its vectors are repeated for lines of q outputs, so that NumPy's loops are long."""
        b, scale = (None if v is None else repeated(v[filters], q) for v in (self.b, self.scale))
        return Epilogue(b, scale, self.activation, None if self.residual is None else self.residual[..., filters])

    def apply(self, block: Array, images: slice, rows: slice) -> None:
        """What `of` returned, to the dense sums [.,.,Q,.] of these images and rows of outputs, in place."""
        lines = block.reshape(-1, block.shape[-2] * block.shape[-1])
        if self.scale is not None:
            lines *= self.scale
        if self.b is not None:
            lines += self.b
        if self.residual is not None:
            block += self.residual[images, rows]
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
    maps = numpy_winograd.pays(x, w.shape[:2], window, groups, (p, q))
    if maps and numpy_winograd.correlate(x, w, epilogue, window, y):
        return
    columns = Columns(x, window, (p, q), k, groups)
    filters = columns.banded(w)
    ones = False
    if groups == 1 and filters.size <= y.size:  # what is done to the filters then takes less than doing it to y
        if epilogue.scale is not None:
            filters = filters * repeated(epilogue.scale, columns.side)
            epilogue = epilogue._replace(scale=None)
        ones = columns.copies and epilogue.b is not None
    if ones:  # the bias as one more term of each sum
        filters = np.concatenate([filters, repeated(epilogue.b, columns.side)[None, None]], axis=1)
        epilogue = epilogue._replace(b=None)
    # Where many filters meet few pixels, each part of the filters is a job of its own.
    few = len(columns.blocks) < 4 and columns.work >= 4 * BLOCK_WORK
    parts = cut(k, 4 // len(columns.blocks) if few and groups == columns.side == 1 and k >= 64 else 1)
    epilogues = [epilogue.of(part, q) for part in parts]
    shared = columns.matrix(columns.blocks[0], ones) if len(columns.blocks) == 1 < len(parts) else None

    def job(i: int) -> None:
        (n0, n1, p0, p1), part = columns.blocks[i // len(parts)], i % len(parts)
        target = y[n0:n1, p0:p1, :, parts[part]]
        dense = target if groups == 1 and target.flags.c_contiguous else scratch("outputs", target.shape, y.dtype)
        matrix = columns.matrix((n0, n1, p0, p1), ones) if shared is None else shared
        if groups == 1:
            band = filters[0] if len(parts) == 1 else filters[0, :, parts[part]]
            product(matrix[0], band, dense.reshape(matrix.shape[1], band.shape[1]))
        else:
            dense.reshape(-1, groups, k // groups)[...] = np.matmul(matrix, filters).transpose(1, 0, 2)
        epilogues[part].apply(dense, slice(n0, n1), slice(p0, p1))
        if dense is not target:
            np.copyto(pixels(target), pixels(dense))

    workers.run(job, len(columns.blocks) * len(parts))


def conv2d_backward_weight(dy: Array, x: Array, window: Window, groups: int) -> Array:
    n, k, p, q = dy.shape
    c = x.shape[1]
    if n == 0:
        return np.zeros((k, *window.kernel, c // groups), dy.dtype).transpose(0, 3, 1, 2)
    dy, x = channels_last(dy), channels_last(x)
    if groups == k == c > 1:
        return depthwise_weight(dy, x, window)
    if numpy_winograd.pays(x, (k, c), window, groups, (p, q)):
        dw = numpy_winograd.backward_weight(dy, x, window)
        if all_finite(dw):
            return dw
    columns = Columns(x, window, (p, q), k, groups)
    shape = (groups, columns.side * k // groups, columns.depth)
    shares = cut(len(columns.blocks), most_partials(math.prod(shape) * dy.itemsize))
    partial = np.empty((len(shares), *shape), dy.dtype)

    def job(i: int) -> None:
        blocks = columns.blocks[shares[i]]
        for number, block in enumerate(blocks):
            n0, n1, p0, p1 = block
            matrix = columns.matrix(block)
            dy_rows = dy[n0:n1, p0:p1].reshape(matrix.shape[1], groups, shape[1]).transpose(1, 0, 2)
            if number == 0:
                product_over_rows(dy_rows, matrix, partial[i])
            else:
                more = scratch("partial", shape, dy.dtype)
                product_over_rows(dy_rows, matrix, more)
                partial[i] += more

    workers.run(job, len(shares))
    return columns.unbanded(partial.sum(axis=0))


def shares_columns(dy: Array, x: Array, w: Array, window: Window, groups: int) -> bool:
    """Whether the im2col matrix of dy, which dx takes, should make dw as well: where neither has a faster way."""
    _, c, h, width = x.shape
    return (
        len(x) > 0
        and x.dtype in (np.float32, np.float64)
        and groups == window.stride[0] == window.stride[1] == 1 < window.taps
        and c * w.itemsize >= NARROW
        and not numpy_winograd.pays(channels_last(dy), (c, len(w)), window, 1, (h, width))
    )


def conv2d_backward(dy: Array, x: Array, w: Array, window: Window) -> tuple[Array, Array] | None:
    """(dx, dw) for a stride of 1. None if dw is not all finite: it would be so elsewhere than it should be.

    dx is the correlation of dy with the flipped filters, dw that of dy with x, flipped: so both take one im2col matrix.
    """
    n, c, h, width = x.shape
    dy, x = channels_last(dy), channels_last(x)
    (_, dilation_h, top), (_, dilation_w, left) = phase(0, window, 0), phase(0, window, 1)
    reverse = Window(window.kernel, (1, 1), (top, 0, left, 0), (dilation_h, dilation_w))
    columns = Columns(dy, reverse, (h, width), c, 1)
    flipped = columns.banded(w.swapaxes(0, 1)[:, :, ::-1, ::-1])[0]
    dx = np.empty((n, h, width, c), dy.dtype)
    shares = cut(len(columns.blocks), most_partials(flipped.nbytes))
    partial = np.empty((len(shares), columns.side * c, columns.depth), dy.dtype)

    def job(i: int) -> None:
        for number, block in enumerate(columns.blocks[shares[i]]):
            n0, n1, p0, p1 = block
            matrix = columns.matrix(block)[0]
            product(matrix, flipped, dx[n0:n1, p0:p1].reshape(len(matrix), -1))
            target = partial[i] if number == 0 else scratch("partial", partial.shape[1:], dy.dtype)
            product_over_rows(x[n0:n1, p0:p1].reshape(len(matrix), -1), matrix, target)
            if number:
                partial[i] += target

    workers.run(job, len(shares))
    total = partial.sum(axis=0)
    if not all_finite(total):
        return None
    dw = columns.unbanded(total[None])
    return dx.transpose(0, 3, 1, 2), dw.swapaxes(0, 1)[:, :, ::-1, ::-1]


def most_partials(size: int) -> int:
    """How many partial gradients of so many bytes are kept: so each job sums several blocks, as shapes alone decide."""
    return max(2, min(16, PARTIAL_BYTES // size))


def conv2d_backward_input(dy: Array, w: Array, window: Window, groups: int, size: Size) -> Array:
    """A correlation of dy with the flipped filters, for each phase of the stride.

    The rows h of x with one remainder by the stride are reached by the same taps r, every (stride / g)-th, and by rows
    of dy that lie dilation / g apart, where g = gcd(stride, dilation). So they are a correlation of dy with these taps
    in reverse. The same holds for columns.
    """
    n, k, p, q = dy.shape
    few_windows = size[0] * size[1] > 4 * p * q * window.stride[0] * window.stride[1]
    narrow = groups == 1 and w.shape[1] * w.itemsize < NARROW
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
    common = math.gcd(stride, dilation)
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
        shares = scratch("shares", (groups, rows.shape[1], band.shape[2]), dy.dtype)
        product(rows, band, shares)
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
    epilogue = epilogue.of(slice(None), q)
    taps = [(r, s, repeated(w[:, 0, r, s], q)) for r in range(window.kernel[0]) for s in range(window.kernel[1])]

    def job(i: int) -> None:
        block = columns.blocks[i]
        n0, n1, p0, p1 = block
        frame = columns.frame(block)
        target = y[n0:n1, p0:p1]
        total = target if target.flags.c_contiguous else scratch("outputs", target.shape, y.dtype)
        share = scratch("share", total.shape, y.dtype)
        for number, (r, s, filters) in enumerate(taps):
            view = frame[:, r * dh : r * dh + (p1 - p0 - 1) * th + 1 : th, s * dw : s * dw + (q - 1) * tw + 1 : tw]
            np.multiply(view, filters.reshape(q, k), out=share if number else total)
            if number:
                total += share
        epilogue.apply(total, slice(n0, n1), slice(p0, p1))
        if total is not target:
            np.copyto(target, total)

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
