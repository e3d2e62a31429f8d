"""Numbers below 2⁻¹²⁶: float kernels take them for zeros, as CuPy's -ftz=true has it, double kernels do not."""

import re
from typing import Any

import numpy as np
import pytest

from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.base import kernel_folder
from gpucnn.geometry import Window

Array = np.ndarray[Any, np.dtype[Any]]
TINY = 2.0**-126  # the smallest normal float


def halves(kernels: KernelBackend, x: Array, factor: float) -> Array:
    """x · factor, for x <= 0."""
    return np.asarray(kernels.to_numpy(kernels.activation_forward(kernels.asarray(x), "leaky_relu", factor)))


def product(kernels: KernelBackend, a: list[float], b: list[float]) -> float:
    rows, columns = np.array([a], np.float32), np.array([b], np.float32).T
    return float(kernels.to_numpy(kernels.matmul(kernels.asarray(rows), kernels.asarray(columns))).item())


def test_a_result_below_the_normal_numbers_is_a_zero_of_its_sign(kernels: KernelBackend) -> None:
    y = halves(kernels, np.array([-TINY, -1.5 * TINY, -2 * TINY], np.float32), 0.5)
    np.testing.assert_array_equal(y, [0, 0, -TINY])
    assert np.signbit(y).all()


def test_an_argument_below_the_normal_numbers_is_a_zero_of_its_sign(kernels: KernelBackend) -> None:
    y = halves(kernels, np.array([-TINY / 2, -TINY], np.float32), 4.0)
    np.testing.assert_array_equal(y, [0, -4 * TINY])
    assert np.signbit(y).all()


def test_each_multiply_add_is_flushed_by_its_own_result_not_by_its_product(kernels: KernelBackend) -> None:
    assert product(kernels, [2.0**-70, 1], [2.0**-60, TINY]) == TINY
    assert product(kernels, [1, 2.0**-70], [TINY, 2.0**-60]) == TINY * (1 + 2.0**-4)


def test_a_comparison_takes_them_for_equal_and_the_choice_is_copied_as_it_is(kernels: KernelBackend) -> None:
    x = np.array([TINY / 4, TINY / 2, -TINY / 2, 0], np.float32).reshape(1, 1, 2, 2)
    y, tap = kernels.max_pool2d_forward(kernels.asarray(x), Window((2, 2)), "max", True)
    assert (kernels.to_numpy(y).item(), kernels.to_numpy(tap).item()) == (TINY / 4, 0)


def test_relu_of_them_is_zero_and_lets_no_gradient_through(kernels: KernelBackend) -> None:
    x, dy = kernels.asarray(np.array([TINY / 2, TINY], np.float32)), kernels.asarray(np.ones(2, np.float32))
    y = kernels.activation_forward(x, "relu", 0.0)
    np.testing.assert_array_equal(kernels.to_numpy(y), [0, TINY])
    np.testing.assert_array_equal(kernels.to_numpy(kernels.activation_backward(dy, y, "relu", 0.0)), [0, 1])


def test_double_kernels_keep_them(kernels: KernelBackend) -> None:
    x = np.array([-TINY, -(2.0**-1022), -(2.0**-1074)])
    np.testing.assert_array_equal(halves(kernels, x, 0.5), [-TINY / 2, -(2.0**-1023), 0])
    np.testing.assert_array_equal(halves(kernels, x, 2.0), 2 * x)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1, 1)])
def test_a_float_that_becomes_double_is_flushed_and_a_double_that_becomes_float_too(
    shape: tuple[int, ...], kernels: KernelBackend
) -> None:
    x = np.array([TINY / 2, TINY, -TINY / 4, 3 * TINY]).reshape(shape)
    flushed = np.array([0, TINY, 0, 3 * TINY]).reshape(shape)
    for source, target in (("float32", "float64"), ("float64", "float32")):
        y = kernels.to_numpy(kernels.asarray(x.astype(source), target))
        assert y.dtype == target
        np.testing.assert_array_equal(y, flushed)
        np.testing.assert_array_equal(np.signbit(y), np.signbit(x))
        kept = kernels.to_numpy(kernels.asarray(x.astype(source), source))
        np.testing.assert_array_equal(kept, x)


def test_float_kernels_have_no_double_operations() -> None:
    """The emulator's processor would flush those too, a GPU would not."""
    for path in sorted(kernel_folder().glob("*.cu*")):
        code = re.sub(r"//[^\n]*|\"[^\"\n]*\"", "", path.read_text("utf-8"))
        code = re.sub(r"double \w+\((double \w+,? ?)+\) \{[^}]*\}", "", code)  # overloads, for SCALAR=double
        assert "double" not in code, f"{path.name} computes in double"
        numbers = re.findall(r"(?<![\w.])(\d+\.\d*(?:e[-+]?\d+)?)(\w*)", re.sub(r"Scalar\([^()]*\)", "", code))
        bare = [number for number, suffix in numbers if suffix != "f"]
        assert not bare, f"{path.name}: {bare} are double; write Scalar(…), or f behind them"


@pytest.mark.parametrize("line", ["const double x = 1;", "y = 0.5 * x;", "if (x > 2.) y = 1.0e-3;"])
def test_a_double_operation_would_be_found(line: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.cu").write_text(line)
    monkeypatch.setattr(f"{__name__}.kernel_folder", lambda: tmp_path)
    with pytest.raises(AssertionError, match=r"bad\.cu"):
        test_float_kernels_have_no_double_operations()
