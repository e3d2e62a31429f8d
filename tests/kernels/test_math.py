"""kernels/math.cuh against float64 NumPy, over the whole float range."""

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special

from gpucnn.devices.base import kernel_folder
from gpucnn.devices.emulator import EmulatorDevice

SOURCE = Path(__file__).parent / "math.cu"
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "erf": special.erf,
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
INF, NAN = np.inf, np.nan


@cache
def device() -> EmulatorDevice:
    return EmulatorDevice(watch=False)


def computed(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    y = np.empty_like(x)
    headers = b"".join((kernel_folder() / header).read_bytes() for header in ("common.cuh", "math.cuh"))
    scalar = "double" if x.dtype == np.float64 else "float"
    constants = {"SCALAR": scalar, "FUNCTION": f"scalar_{name}", "HEADERS": zlib.crc32(headers)}
    device().launch(str(SOURCE), "math", constants, (1, 1, 1), (1, 1, 1), x, y, x.size)
    return y


def exact(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with np.errstate(all="ignore"):
        return FUNCTIONS[name](np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(0, x), x).astype(np.float64))


def floats(step: int) -> np.ndarray[Any, Any]:
    """Every `step`-th of all 2³² floats: every sign and exponent, denormal numbers, infinities and NaN among them."""
    return np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def error_in_ulp(y: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """0 where a result below the normal numbers, or up to two ulp above their end, has become 0."""
    with np.errstate(over="ignore"):
        rounded = expected.astype(np.float32)
    ulp = np.where(np.isfinite(rounded), np.spacing(np.abs(rounded)), np.float32(2.0**104)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(y - expected) / ulp
    flushed = (y == 0) & (np.abs(expected) < (1 + 2.0**-22) * np.finfo(np.float32).tiny)
    return np.where((y == rounded) | (np.isnan(y) & np.isnan(rounded)) | flushed, 0, error)


@every_function
def test_is_within_two_ulp_over_the_whole_float_range(name: str) -> None:
    x = floats(1009)
    assert x.size > 4_000_000
    error = error_in_ulp(computed(name, x), exact(name, x))
    worst = int(np.nanargmax(error))
    assert not np.isnan(error).any(), f"{name}({x[np.isnan(error)][0]!r}) is NaN on one side alone"
    assert error[worst] <= 2, f"{name}({x[worst]!r}) is off by {error[worst]:.2f} ulp"


@every_function
def test_is_within_two_ulp_where_the_branches_meet(name: str) -> None:
    places = [0.6, 0.925, 4.0, 1 / 3, 2 / 3, 4 / 3, 1.0, 88.72284, 89.0, 80.0, 20.0, 87.33655, 103.98, 0.34657359]
    near = np.concatenate([np.float32(p) + np.arange(-3000, 3000) * np.spacing(np.float32(p)) for p in places])
    x = np.concatenate([near, -near, near - 1]).astype(np.float32)
    error = error_in_ulp(computed(name, x), exact(name, x))
    assert error.max() <= 2


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("exp", [-INF, -200, -104.1, 0, 89, INF, NAN], [0, 0, 0, 1, INF, INF, NAN]),
        ("expm1", [-INF, -200, 0, 89, INF, NAN], [-1, -1, 0, INF, INF, NAN]),
        ("log", [0, -0.0, 1, INF, -1, -INF, NAN], [-INF, -INF, 0, INF, NAN, NAN, NAN]),
        ("log1p", [-1, 0, INF, -1.5, -INF, NAN], [-INF, 0, INF, NAN, NAN, NAN]),
        ("tanh", [-INF, -20, 0, 20, INF, NAN], [-1, -1, 0, 1, 1, NAN]),
        ("erf", [-INF, -7, 0, 7, INF, NAN], [-1, -1, 0, 1, 1, NAN]),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ends_zeros_infinities_and_nan(name: str, x: list[float], y: list[float], dtype: str) -> None:
    if dtype == "float64":  # its range ends elsewhere
        kept = [i for i, value in enumerate(x) if abs(value) not in (89, 104.1, 200)]
        x, y = [x[i] for i in kept], [y[i] for i in kept]
    np.testing.assert_array_equal(computed(name, np.array(x, dtype)), np.array(y, dtype))


@every_function
def test_is_monotone_to_two_ulp(name: str) -> None:
    x = np.sort(floats(4999))
    x = x[np.isfinite(x) & (x > (0 if name.startswith("log") else -INF))]
    y = computed(name, x)
    y = y[np.isfinite(y)]
    assert (y[:-1].astype(np.float64) - y[1:] <= 2 * np.spacing(np.abs(y[:-1]))).all()
    if name in ("tanh", "erf"):
        assert np.abs(y).max() == 1


@every_function
def test_double_is_the_libraries_own(name: str) -> None:
    x = np.random.default_rng(0).standard_normal(1000) * 5
    x = np.abs(x) if name.startswith("log") else x
    np.testing.assert_allclose(computed(name, x), exact(name, x), rtol=2.0**-51, atol=0)
