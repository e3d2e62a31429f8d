"""How near is near enough: computed error bounds, finite differences, the adjoint identity.

A sum of n products computed in any order is wrong by at most about n · u · Σ|a||b|, where u is the unit roundoff
(Higham, Accuracy and Stability of Numerical Algorithms, §3.1). Every tolerance of the tests is such a product; none is
tuned.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gpucnn
from gpucnn import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


def unit_roundoff(dtype: Any) -> float:
    return float(np.finfo(dtype).eps) / 2


def off_boundary(array: Array) -> Array:
    """A copy of a float32 array that begins 4 bytes behind a multiple of 16."""
    memory = np.empty(array.size + 4, np.float32)
    start = (-memory.ctypes.data % 16) // 4 + 1
    moved = memory[start : start + array.size].reshape(array.shape)
    moved[...] = array
    assert moved.ctypes.data % 16 == 4
    return moved


def assert_within(actual: Array, expected: Array, bound: Array | float) -> None:
    """|actual − expected| <= bound everywhere; NaN and infinities must be in the same places."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    actual = actual.astype(np.float64)
    bound = np.broadcast_to(bound, expected.shape)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        wrong = ~same & ~(np.abs(actual - expected) <= bound)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.size} values are off; the first, at {place}, is {actual[place]!r}, expected "
            f"{expected[place]!r} within {bound[place]:.2g}"
        )


def value_and_gradients(
    function: Callable[..., Tensor], arrays: Sequence[Array], backend: str
) -> tuple[Array, Array, list[Array]]:
    """y of `function`, a fixed random cotangent u of its shape, and the gradients of <u, y> for every array."""
    tensors = [gpucnn.tensor(array, requires_grad=True, backend=backend) for array in arrays]
    y = function(*tensors)
    u = np.random.default_rng(7).standard_normal(y.shape).astype(arrays[0].dtype)
    y.backward(gpucnn.tensor(u, backend=backend))
    gradients = []
    for tensor, array in zip(tensors, arrays, strict=True):
        assert tensor.grad is not None, f"no gradient for the input of shape {array.shape}"
        assert tensor.grad.shape == array.shape
        assert tensor.grad.dtype == array.dtype
        gradients.append(tensor.grad.numpy())
    return y.numpy(), u, gradients


def check_gradients(function: Callable[..., Tensor], arrays: Sequence[Array], backend: str, most: int = 24) -> None:
    """The gradient of <u, function(*arrays)> against central differences, at `most` places of each array.

    Differences are taken with h and h/2: what they disagree by bounds the truncation error, and the rounding of the two
    values divided by h bounds the rest. Together they must stay far below the gradient, or the check would be empty.
    """
    assert all(array.dtype == np.float64 for array in arrays)
    y, u, gradients = value_and_gradients(function, arrays, backend)
    step = 2.0**-16
    rounding = 32 * unit_roundoff(np.float64) * float(np.sum(np.abs(u * y))) / step

    def value(position: int, place: int, change: float) -> float:
        changed = [array.copy() for array in arrays]
        changed[position].flat[place] += change
        with gpucnn.no_grad():
            return float(np.sum(u * function(*(gpucnn.tensor(a, backend=backend) for a in changed)).numpy()))

    generator = np.random.default_rng(11)
    for position, array in enumerate(arrays):
        for place in sorted(generator.permutation(array.size)[:most]):
            coarse = (value(position, place, step) - value(position, place, -step)) / (2 * step)
            fine = (value(position, place, step / 2) - value(position, place, -step / 2)) / step
            tolerance = abs(coarse - fine) + rounding
            assert tolerance < 1e-3 * max(1.0, abs(fine)), (
                f"input {position}, place {place}: a kink; choose another input"
            )
            actual = gradients[position].flat[place]
            assert abs(actual - fine) <= tolerance, (
                f"input {position}, place {np.unravel_index(place, array.shape)}: gradient {actual!r}, "
                f"by differences {fine!r} within {tolerance:.2g}"
            )


def check_adjoint(function: Callable[[Tensor], Tensor], x: Array, magnitude: Array, terms: int, backend: str) -> None:
    """<u, op x> = <opᵀu, x> for a linear op; `magnitude` is |op| of |x|, `terms` the longest sum of both ways."""
    y, u, (gradient,) = value_and_gradients(function, [x], backend)
    forward = math.fsum((u.astype(np.float64) * y.astype(np.float64)).ravel())
    backward = math.fsum((gradient.astype(np.float64) * x.astype(np.float64)).ravel())
    bound = 2 * terms * unit_roundoff(x.dtype) * float(np.sum(np.abs(u) * magnitude))
    assert abs(forward - backward) <= bound, f"<u, op x> = {forward!r}, <opᵀu, x> = {backward!r}, within {bound:.2g}"
