"""Comparisons and logic: bool tensors, which have no gradient. They are the array library's own operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpucnn.backends import Array, Backend
from gpucnn.dtypes import is_floating
from gpucnn.functional import validate
from gpucnn.functional.arithmetic import Operand, broadcast, operands, promoted_arrays
from gpucnn.tensor import Tensor, in_storage_order


def compare(function: str, input: Any, other: Any) -> Tensor:
    """A bool tensor: equal, not_equal, less, less_equal, greater or greater_equal, elementwise."""
    input, other = promoted_arrays(input, other)
    backend, x, y = operands(function, input, other)
    return _made(backend, broadcast(function, getattr(backend.xp, function), x, y))


def eq(input: Tensor, other: Operand) -> Tensor:
    """input == other, elementwise with broadcasting."""
    return compare("equal", input, other)


def ne(input: Tensor, other: Operand) -> Tensor:
    """input != other; see eq."""
    return compare("not_equal", input, other)


def lt(input: Tensor, other: Operand) -> Tensor:
    """input < other; see eq."""
    return compare("less", input, other)


def le(input: Tensor, other: Operand) -> Tensor:
    """input <= other; see eq."""
    return compare("less_equal", input, other)


def gt(input: Tensor, other: Operand) -> Tensor:
    """input > other; see eq."""
    return compare("greater", input, other)


def ge(input: Tensor, other: Operand) -> Tensor:
    """input >= other; see eq."""
    return compare("greater_equal", input, other)


def isnan(input: Tensor) -> Tensor:
    """Whether each element is NaN."""
    return _each("isnan", input)


def isinf(input: Tensor) -> Tensor:
    """Whether each element is infinite."""
    return _each("isinf", input)


def isfinite(input: Tensor) -> Tensor:
    """Whether each element is neither infinite nor NaN."""
    return _each("isfinite", input)


def isclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Tensor:
    """|input − other| <= atol + rtol · |other|, elementwise; equal infinities are close."""
    rtol, atol = validate.number("isclose", "rtol", rtol), validate.number("isclose", "atol", atol)
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"isclose: rtol and atol must not be negative, got {rtol} and {atol}")
    input, other = promoted_arrays(input, other)
    backend, x, y = operands("isclose", input, other)
    return _made(backend, broadcast("isclose", lambda a, b: backend.xp.isclose(a, b, rtol, atol, equal_nan), x, y))


def allclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    """Whether all elements are close: see isclose."""
    return bool(isclose(input, other, rtol, atol, equal_nan).array.all())


def equal(input: Tensor, other: Tensor) -> bool:
    """Whether both have one shape and equal elements."""
    validate.one_backend("equal", input=input, other=other)
    return input.shape == other.shape and bool(eq(input, other).array.all())


# -- logic -------------------------------------------------------------------------------------------------------------


def logical_and(input: Tensor, other: Tensor) -> Tensor:
    """Whether both elements are other than 0, with broadcasting."""
    return _logic("logical_and", input, other)


def logical_or(input: Tensor, other: Tensor) -> Tensor:
    """Whether one of the elements is other than 0; see logical_and."""
    return _logic("logical_or", input, other)


def logical_xor(input: Tensor, other: Tensor) -> Tensor:
    """Whether exactly one of the elements is other than 0; see logical_and."""
    return _logic("logical_xor", input, other)


def logical_not(input: Tensor) -> Tensor:
    """Whether each element is 0."""
    backend = validate.one_backend("logical_not", input=input)
    return _made(backend, in_storage_order(backend.xp.equal, input.array, 0))


def bitwise_and(input: Operand, other: Operand) -> Tensor:
    """input & other of bools or integers, with broadcasting. Raises TypeError for floating tensors."""
    return _bitwise("bitwise_and", input, other)


def bitwise_or(input: Operand, other: Operand) -> Tensor:
    """input | other; see bitwise_and."""
    return _bitwise("bitwise_or", input, other)


def bitwise_xor(input: Operand, other: Operand) -> Tensor:
    """input ^ other; see bitwise_and."""
    return _bitwise("bitwise_xor", input, other)


def bitwise_not(input: Tensor) -> Tensor:
    """~input of bools or integers."""
    backend = validate.one_backend("bitwise_not", input=input)
    _whole("bitwise_not", input)
    return Tensor(~input.array, backend)


# -- over axes ---------------------------------------------------------------------------------------------------------


def any(input: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Whether an element over one axis, several, or all is other than 0; of none, False."""
    return _over_axes("any", input, dim, keepdim)


def all(input: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Whether all elements over one axis, several, or all are other than 0; of none, True."""
    return _over_axes("all", input, dim, keepdim)


def _made(backend: Backend, values: Array) -> Tensor:
    return Tensor(backend.xp.asarray(values), backend)


def _truth(backend: Backend, x: Array) -> Array:
    return x if x.dtype == np.bool_ else in_storage_order(backend.xp.not_equal, x, 0)


def _each(op: str, input: Tensor) -> Tensor:
    backend = validate.one_backend(op, input=input)
    decide: Callable[[Array], Array] = getattr(backend.xp, op)
    return _made(backend, in_storage_order(lambda a: decide(a), input.array))  # no ufunc: of a half type as float32


def _logic(op: str, input: Tensor, other: Tensor) -> Tensor:
    backend = validate.one_backend(op, input=input, other=other)
    x, y = _truth(backend, input.array), _truth(backend, other.array)
    return _made(backend, broadcast(op, getattr(backend.xp, op), x, y))


def _bitwise(op: str, input: Operand, other: Operand) -> Tensor:
    input, other = promoted_arrays(input, other)
    for value in (input, other):
        _whole(op, value)
    backend, x, y = operands(op, input, other)
    return _made(backend, broadcast(op, getattr(backend.xp, op), x, y))


def _whole(op: str, value: Any) -> None:
    is_float = is_floating(value.dtype) if isinstance(value, Tensor) else isinstance(value, float | np.floating)
    if is_float:
        shown = value.dtype if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{op}: takes bool and integer tensors, got {shown}; compare it first, as in x > 0")


def _over_axes(op: str, input: Tensor, dim: int | Sequence[int] | None, keepdim: bool) -> Tensor:
    backend = validate.one_backend(op, input=input)
    chosen = validate.axes(op, dim, input.ndim)
    return _made(backend, getattr(_truth(backend, input.array), op)(axis=chosen, keepdims=keepdim))
