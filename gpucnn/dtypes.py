"""The element types of a tensor: NumPy's, and bfloat16 of ml_dtypes, which is imported when it is first asked for."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

DType = np.dtype[Any]

float16: DType = np.dtype(np.float16)
float32: DType = np.dtype(np.float32)
float64: DType = np.dtype(np.float64)
int8: DType = np.dtype(np.int8)
int16: DType = np.dtype(np.int16)
int32: DType = np.dtype(np.int32)
int64: DType = np.dtype(np.int64)
uint8: DType = np.dtype(np.uint8)
boolean: DType = np.dtype(np.bool_)

HALVES = ("float16", "bfloat16")


@cache
def bfloat16() -> DType:
    """The 8 bits of exponent of float32, and 8 of its 24 bits of significand. Raises ImportError without ml_dtypes."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError('bfloat16 needs the package ml_dtypes: pip install "gpucnn[half]"') from error
    dtype: DType = np.dtype(ml_dtypes.bfloat16)
    return dtype


def is_half(dtype: DType) -> bool:
    """Whether it is float16 or bfloat16 (which to NumPy is of no known kind)."""
    return dtype.itemsize == 2 and dtype.kind in "fV"


def is_floating(dtype: DType) -> bool:
    """Whether it is float16, bfloat16, float32 or float64."""
    return dtype in (float32, float64) or is_half(dtype)


def named(dtype: Any) -> DType:
    """The numpy.dtype of a name ("float32", "bfloat16"), a type or a dtype. Raises TypeError for what is none."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        return bfloat16()
    try:
        if dtype is not None:  # which is float64 to NumPy
            found: DType = np.dtype(dtype)
            return found
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{dtype!r:.100} is no element type; use one such as 'float32', numpy.float32 or 'bfloat16'")


def unit_roundoff(dtype: Any) -> float:
    """The largest relative error of a number that is rounded to the nearest of this type."""
    dtype = named(dtype)
    return 2.0**-8 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps) / 2


def smallest(dtype: Any) -> float:
    """The smallest positive number of this type, a denormal one."""
    dtype = named(dtype)
    return 2.0**-133 if dtype.name == "bfloat16" else float(np.finfo(dtype).smallest_subnormal)
