"""Tensors of a shape: filled with a number, or with numbers at equal distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import Any

import numpy as np

from gpucnn.backends import Backend, get_backend
from gpucnn.dtypes import float32, named
from gpucnn.functional import validate
from gpucnn.tensor import Tensor, _size, checked_dtype, checked_shape, tensor


def full(
    size: Sequence[int],
    fill_value: float,
    *,
    dtype: Any = np.float32,
    requires_grad: bool = False,
    backend: str | Backend | None = None,
) -> Tensor:
    """A tensor of that shape, every element `fill_value`."""
    size = checked_shape(size)
    dtype = checked_dtype(named(float32 if dtype is None else dtype))
    left = _elements_left.get()
    if left is not None:
        left[0] -= math.prod(size)
        if left[0] < 0:
            raise ValueError(f"it would take more numbers than allowed, the last ones for the shape {size}")
    value = fill_value.item() if isinstance(fill_value, Tensor) else np.asarray(fill_value)
    if isinstance(value, np.ndarray) and (value.ndim or value.dtype.kind not in "iubfV"):
        raise TypeError(f"full: fill_value must be a number, got {fill_value!r:.100}")
    try:
        with np.errstate(all="ignore"):
            values = np.full(size, value, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"full: {fill_value!r:.100} is no {dtype}, or {size} no shape: {error}") from None
    return tensor(values, requires_grad=requires_grad, backend=backend)


_elements_left: ContextVar[list[int] | None] = ContextVar("_elements_left", default=None)


@contextmanager
def at_most(elements: int) -> Iterator[None]:
    """In this block `full`, `zeros` and `ones` make so many elements in all; more are a ValueError and take no memory.

    For making a model after a description that may lie.
    """
    token = _elements_left.set([elements])
    try:
        yield
    finally:
        _elements_left.reset(token)


def zeros(*size: Any, **options: Any) -> Tensor:
    """A tensor of zeros: zeros(2, 3) or zeros((2, 3)); options as in `full`."""
    return full(_size(size), 0, **options)


def ones(*size: Any, **options: Any) -> Tensor:
    """A tensor of ones; options as in `full`."""
    return full(_size(size), 1, **options)


def empty(*size: Any, **options: Any) -> Tensor:
    """A tensor whose values are still to come; until then they are zeros. Options as in `full`."""
    return full(_size(size), 0, **options)


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: Any = np.float32,
    requires_grad: bool = False,
    backend: str | Backend | None = None,
) -> Tensor:
    """[n, m] (m: n) with 1 on the diagonal and 0 elsewhere."""
    rows, columns = checked_shape((n, n if m is None else m))
    return _numbers(lambda: np.eye(rows, columns), dtype, requires_grad, backend)


def arange(
    start: float,
    end: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    requires_grad: bool = False,
    backend: str | Backend | None = None,
) -> Tensor:
    """start, start + step, … below `end`; arange(end) starts at 0. Of ints int64, of floats float32 unless `dtype` says
    another. Raises ValueError for a step of 0 or away from the end."""
    first, last = (0, start) if end is None else (start, end)
    numbers = {"start": first, "end": last, "step": step}
    whole = all(isinstance(value, Integral) for value in numbers.values())
    first, last, step = (
        validate.integer("arange", name, value) if whole else validate.number("arange", name, value)
        for name, value in numbers.items()
    )
    if not (step and (last - first) / step >= 0 and math.isfinite((last - first) / step)):
        raise ValueError(f"arange: no steps of {step} lead from {first} to {last}")
    (count,) = checked_shape([-((first - last) // step) if whole else math.ceil((last - first) / step)])
    if dtype is None:
        dtype = np.int64 if whole else np.float32
    return _numbers(lambda: first + np.arange(count) * step, dtype, requires_grad, backend)


def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: Any = np.float32,
    requires_grad: bool = False,
    backend: str | Backend | None = None,
) -> Tensor:
    """So many numbers from `start` to `end`, both included, at equal distances."""
    first, last = validate.number("linspace", "start", start), validate.number("linspace", "end", end)
    (count,) = checked_shape([validate.integer("linspace", "steps", steps, 0)])
    return _numbers(lambda: np.linspace(first, last, count), dtype, requires_grad, backend)


def _numbers(
    made: Callable[[], np.ndarray[Any, Any]], dtype: Any, requires_grad: bool, backend: str | Backend | None
) -> Tensor:
    dtype = checked_dtype(named(dtype))
    try:
        with np.errstate(all="ignore"):
            values = made().astype(dtype)
    except MemoryError as error:
        from gpucnn.memory import out_of_memory  # it knows modules

        raise out_of_memory(error, "making of a tensor", get_backend(backend)) from None
    return tensor(values, requires_grad=requires_grad, backend=backend)


def full_like(input: Tensor, fill_value: float, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of the shape and on the backend of `input`, and of its dtype unless another is given."""
    validate.one_backend("full_like", input=input)
    dtype = input.dtype if dtype is None else dtype
    return full(input.shape, fill_value, dtype=dtype, requires_grad=requires_grad, backend=input.backend)


def zeros_like(input: Tensor, **options: Any) -> Tensor:
    """Zeros in the shape of `input`; options as in `full_like`."""
    return full_like(input, 0, **options)


def ones_like(input: Tensor, **options: Any) -> Tensor:
    """Ones in the shape of `input`; options as in `full_like`."""
    return full_like(input, 1, **options)


def empty_like(input: Tensor, **options: Any) -> Tensor:
    """`empty` in the shape of `input`; options as in `full_like`."""
    return full_like(input, 0, **options)
