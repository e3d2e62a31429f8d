"""Matrix products in pieces that OpenBLAS multiplies where they lie.

It copies the operands of a larger one into a layout of its own first. On processors with AVX-512 it does not for up to
10⁶ multiply-adds, and then runs at 96 to 116 GFLOP/s on a core that gets to 50 to 100 with the whole (EPYC 9004); that
matters most where the matrices are narrow.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_parallel import blas_libraries

# Multiply-adds of a piece.
AVX512 = ("SkylakeX", "Cooperlake", "SapphireRapids")
PIECE = 1_000_000 if any(getattr(library, "architecture", "") in AVX512 for library in blas_libraries()) else 0


def product(a: Array, b: Array, out: Array) -> None:
    """out [..., M, N] = a [..., M, K] @ b [..., K, N], some rows at a time."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    rows = piece(m, PIECE // max(k * n, 1))
    if rows < 4 or b.strides[-1] != b.itemsize:
        np.matmul(a, b, out=out)
        return
    whole = m // rows * rows
    np.matmul(by_rows(a[..., :whole, :], rows), b[..., None, :, :], out=by_rows(out[..., :whole, :], rows))
    if whole < m:
        np.matmul(a[..., whole:, :], b, out=out[..., whole:, :])


def product_over_rows(a: Array, b: Array, out: Array) -> None:
    """out [..., K, N] = aᵀ @ b for a [..., M, K] and b [..., M, N]: the sum of products of some rows each."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    rows = piece(m, PIECE // max(k * n, 1))
    if not 64 <= rows < m:
        np.matmul(a.swapaxes(-1, -2), b, out=out)
        return
    if k < n:
        a, b, out = b, a, out.swapaxes(-1, -2)  # a tenth to a half faster with the longer side first
    whole = m // rows * rows
    parts = np.matmul(by_rows(a[..., :whole, :], rows).swapaxes(-1, -2), by_rows(b[..., :whole, :], rows))
    out[...] = np.add.reduce(parts, axis=-3)
    if whole < m:
        out += np.matmul(a[..., whole:, :].swapaxes(-1, -2), b[..., whole:, :])


def wide_product(a: Array, b: Array, out: Array) -> None:
    """out [M, N] = a [M, K] @ b [K, N] for small M and K, some columns at a time."""
    n = b.shape[1]
    columns = piece(n, min(PIECE // a.size, 2048))
    whole = n // columns * columns if columns else 0
    if whole:
        np.matmul(a, by_columns(b[:, :whole], columns), out=by_columns(out[:, :whole], columns))
    if whole < n:
        np.matmul(a, b[:, whole:], out=out[:, whole:])


@cache
def piece(length: int, most: int) -> int:
    """The length of equal pieces: a multiple of 4 that leaves no rest, unless that is far below `most`."""
    if length <= most:
        return length
    dividing = next((size for size in range(most // 4 * 4, most // 3, -4) if length % size == 0), 0)
    return dividing or most // 4 * 4


def by_rows(x: Array, rows: int) -> Array:
    """The view [..., M / rows, rows, K] of x [..., M, K]."""
    return x.reshape(*x.shape[:-2], -1, rows, x.shape[-1])


def by_columns(x: Array, columns: int) -> Array:
    """The view [N / columns, M, columns] of x [M, N]."""
    return x.reshape(len(x), -1, columns).transpose(1, 0, 2)
