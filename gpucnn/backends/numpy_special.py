"""What NumPy lacks: the error function, and Philox4x32-10 random words."""

from __future__ import annotations

import numpy as np

from gpucnn.backends.base import Array

# W. J. Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23 (1969), as in CALERF.
_A = (3.16112374387056560e00, 1.13864154151050156e02, 3.77485237685302021e02, 3.20937758913846947e03)
_A4 = 1.85777706184603153e-1
_B = (2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03, 2.84423683343917062e03)
_C = (
    5.64188496988670089e-1,
    8.88314979438837594e0,
    6.61191906371416295e01,
    2.98635138197400131e02,
    8.81952221241769090e02,
    1.71204761263407058e03,
    2.05107837782607147e03,
    1.23033935479799725e03,
)
_C8 = 2.15311535474403846e-8
_D = (
    1.57449261107098347e01,
    1.17693950891312499e02,
    5.37181101862009858e02,
    1.62138957456669019e03,
    3.29079923573345963e03,
    4.36261909014324716e03,
    3.43936767414372164e03,
    1.23033935480374942e03,
)


def erf(x: Array) -> Array:
    """erf(x) elementwise, within 1e-15 relative in float64."""
    wide = x.astype(np.float64)
    magnitude = np.abs(wide)
    square = np.minimum(magnitude, 0.5) ** 2
    numerator, denominator = _A4 * square, square.copy()
    for a, b in zip(_A[:3], _B[:3], strict=True):
        numerator = (numerator + a) * square
        denominator = (denominator + b) * square
    near = wide * (numerator + _A[3]) / (denominator + _B[3])
    # erfc beyond 0.46875; at 6 and above erf is 1 to the last bit.
    far = np.clip(magnitude, 0.46875, 6.0)
    numerator, denominator = _C8 * far, far.copy()
    for c, d in zip(_C[:7], _D[:7], strict=True):
        numerator = (numerator + c) * far
        denominator = (denominator + d) * far
    erfc = np.exp(-far * far) * (numerator + _C[7]) / (denominator + _D[7])
    y = np.where(magnitude <= 0.46875, near, np.copysign(1.0 - erfc, wide))
    return y.astype(x.dtype)


def philox_words(count: int, seed: int, offset: int) -> Array:
    """The first `count` uint32 words of Philox4x32-10: lanes 0…3 of counter offset, offset + 1, …

    J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11; key (seed mod 2³², seed >> 32).
    """
    low32, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    counter = np.uint64(offset) + np.arange(-(-count // 4), dtype=np.uint64)
    c0, c1 = counter & low32, counter >> shift
    c2, c3 = np.zeros_like(c0), np.zeros_like(c0)
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0 = (product1 >> shift) ^ c1 ^ np.uint64(key0)
        c2 = (product0 >> shift) ^ c3 ^ np.uint64(key1)
        c1, c3 = product1 & low32, product0 & low32
        key0, key1 = key0 + 0x9E3779B9 & 0xFFFFFFFF, key1 + 0xBB67AE85 & 0xFFFFFFFF
    words = np.empty((c0.size, 4), np.uint32)
    for lane, value in enumerate((c0, c1, c2, c3)):
        words[:, lane] = value
    return words.reshape(-1)[:count]
