"""What holds for every op: right values in float32 and float64, right gradients, whatever the arrays' strides."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numerics import Array, assert_within, check_gradients, unit_roundoff, value_and_gradients

import gpucnn
from functional.cases import REFERENCED, arrays, reference_result
from gpucnn import Tensor
from gpucnn.testing import CASES, NOT_A_NUMBER, SMALL, Case, evaluate

FINITE = [case for case in CASES if case not in NOT_A_NUMBER]
every_case = pytest.mark.parametrize("case", FINITE, ids=str)
DTYPES = ["float32", "float64"]

# Two ways to sum some hundred float64 terms of the size of the result: far above their rounding, far below an error.
ROUNDING = 2**12 * unit_roundoff("float64")


def largest(array: Array) -> float:
    return float(np.abs(array).max(initial=1.0))


def function(case: Case, dtype: str, backend: str) -> Callable[..., Tensor]:
    """The op as a function of its differentiable inputs; its other arrays become tensors without gradient."""
    inputs = case.made_inputs(dtype)

    def call(*floats: Tensor) -> Tensor:
        for i, value in zip(case.differentiable, floats, strict=True):
            inputs[i] = value
        return case.apply(backend, inputs, case.made_arguments(dtype))

    return call


@pytest.mark.emulated
@pytest.mark.parametrize("position", range(len(REFERENCED)), ids=map(str, REFERENCED))
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_agrees_with_the_scalar_reference(position: int, dtype: str, backend: str) -> None:
    case = REFERENCED[position]
    y = function(case, dtype, backend)(*(gpucnn.tensor(array, backend=backend) for array in arrays(case, dtype)))
    bound = case.bounds(evaluate(case, "numpy", dtype, precision="float64"))[0]
    assert y.dtype == dtype
    assert y.backend.name == backend
    assert_within(y.numpy(), reference_result(position, dtype), unit_roundoff(dtype) * np.asarray(bound))


@pytest.mark.parametrize("case", [case for case in FINITE if case not in SMALL], ids=str)  # no step is small to those
def test_gradients_agree_with_finite_differences(case: Case, backend: str) -> None:
    check_gradients(function(case, "float64", backend), arrays(case, "float64"), backend)


@pytest.mark.emulated
@every_case
def test_float32_gradients_agree_with_float64(case: Case, backend: str) -> None:
    exact = evaluate(case, "numpy", "float32", precision="float64")
    bounds, ours = case.bounds(exact), evaluate(case, backend, "float32")
    for result, expected, bound in zip(ours.results[1:], exact.results[1:], bounds[1:], strict=True):
        assert result.dtype == np.float32
        assert_within(result, expected, unit_roundoff("float32") * np.asarray(bound))


def in_rows(xp: Any, array: Any) -> Any:
    return xp.array(array, order="C")


def in_columns(xp: Any, array: Any) -> Any:
    return xp.array(array, order="F")


def every_second(xp: Any, array: Any) -> Any:
    """A view, from an offset, of every second element of a larger array of NaN."""
    larger = xp.full([2 * length + 3 for length in array.shape], np.nan, array.dtype)
    view = larger[(..., *(slice(1, 1 + 2 * length, 2) for length in array.shape))]
    view[...] = array
    return view


def backwards(xp: Any, array: Any) -> Any:
    """A view with negative strides."""
    flip = (slice(None, None, -1),) * array.ndim
    return xp.array(array[flip], order="C")[flip]


@pytest.mark.emulated
@every_case
def test_strides_of_the_input_change_no_result(case: Case, backend: str) -> None:
    """A tensor is made straight around the backend's array, so that the op itself meets the strides. Kernels meet none:
    for them arrays are copied, images in rows by a kernel and all others by the array library."""
    plain = [gpucnn.tensor(array, requires_grad=True, backend=backend) for array in arrays(case, "float64")]
    call = function(case, "float64", backend)
    expected = call(*plain)
    u = gpucnn.tensor(np.random.default_rng(5).standard_normal(expected.shape), backend=backend)
    expected.backward(u)
    engine = expected.backend
    for layout in (in_rows, in_columns, every_second, backwards) if backend == "numpy" else (in_rows, every_second):
        odd = [Tensor(layout(engine.xp, tensor.array), engine, requires_grad=True) for tensor in plain]
        y = call(*odd)
        y.backward(Tensor(layout(engine.xp, u.array), engine))
        assert_within(y.numpy(), expected.numpy(), ROUNDING * largest(expected.numpy()))
        for ours, theirs in zip(odd, plain, strict=True):
            assert ours.grad is not None
            assert theirs.grad is not None
            assert_within(ours.grad.numpy(), theirs.grad.numpy(), ROUNDING * largest(theirs.grad.numpy()))


@pytest.mark.emulated
@every_case
def test_inputs_are_left_as_they_were(case: Case, backend: str) -> None:
    tensors = [gpucnn.tensor(array, requires_grad=True, backend=backend) for array in arrays(case, "float64")]
    y = function(case, "float64", backend)(*tensors)
    kept = y.numpy().copy()
    u = gpucnn.tensor(np.ones(y.shape), backend=backend)
    y.backward(u)
    assert_within(y.numpy(), kept, 0.0)
    assert_within(u.numpy(), np.ones(y.shape), 0.0)
    for tensor, array in zip(tensors, arrays(case, "float64"), strict=True):
        assert_within(tensor.numpy(), array, 0.0)


@every_case
def test_two_runs_give_equal_bits(case: Case, backend: str) -> None:
    first, second = (
        value_and_gradients(function(case, "float32", backend), arrays(case, "float32"), backend) for _ in range(2)
    )
    np.testing.assert_array_equal(first[0], second[0])
    for ours, theirs in zip(first[2], second[2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- against PyTorch --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> ModuleType:
    return pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare values and gradients with")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss by both:UserWarning")
@pytest.mark.parametrize("case", [case for case in FINITE if case.pytorch], ids=str)
def test_values_and_gradients_agree_with_pytorch(case: Case, torch: ModuleType, backend: str) -> None:
    def tensor(value: Any, requires_grad: bool = False) -> Any:
        return torch.tensor(value, requires_grad=requires_grad) if isinstance(value, np.ndarray) else value

    y, u, gradients = value_and_gradients(function(case, "float64", backend), arrays(case, "float64"), backend)
    inputs = [tensor(value, i in case.differentiable) for i, value in enumerate(case.made_inputs())]
    arguments = {name: tensor(value) for name, value in case.made_arguments().items()}
    owner = next(home for home in (torch.nn.functional, torch, torch.Tensor) if hasattr(home, case.op))
    expected = getattr(owner, case.op)(*inputs, **arguments)
    expected.backward(torch.tensor(u))
    pairs = [(y, expected.detach()), *zip(gradients, (inputs[i].grad for i in case.differentiable), strict=True)]
    for ours, theirs in pairs:
        assert_within(ours, theirs.numpy(), ROUNDING * largest(theirs.numpy()))
