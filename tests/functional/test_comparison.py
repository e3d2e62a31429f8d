"""Comparisons, logic, any and all: NumPy is their definition."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpucnn
from functional.cases import random
from functional.test_arithmetic import SHAPES
from gpucnn import functional as F

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal
}  # fmt: skip
SPECIAL = np.array([[0.0, -0.0, 1.5, -2.0], [np.nan, np.inf, -np.inf, 1e-30]], np.float32)


def bools(*shape: int, seed: int = 0) -> Any:
    return np.asarray(random(*shape, seed=seed)) > 0


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("op", COMPARISONS)
def test_comparisons_by_name_are_numpys(op: str, left: Any, right: Any, backend: str) -> None:
    a, b = np.rint(random(*left)), np.rint(random(*right, seed=1))
    result = getattr(F, op)(*(gpucnn.tensor(v, backend=backend) for v in (a, b)))
    assert result.dtype == np.bool_
    np.testing.assert_array_equal(result.numpy(), COMPARISONS[op](a, b))
    method = getattr(gpucnn.tensor(a, backend=backend), op)(1.0)
    np.testing.assert_array_equal(method.numpy(), COMPARISONS[op](a, 1.0))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "bool"])
@pytest.mark.parametrize("op", ["isnan", "isinf", "isfinite", "logical_not"])
def test_each_element_is_looked_at_as_numpy_does(op: str, dtype: str, backend: str) -> None:
    values = SPECIAL if dtype not in ("int64", "bool") else np.array([[0, 1], [3, 0]])
    x = gpucnn.tensor(values, dtype, backend=backend)
    np.testing.assert_array_equal(getattr(x, op)().numpy(), getattr(np, op)(x.numpy().astype(np.float64)))


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("op", ["and", "or", "xor"])
def test_logic_takes_whatever_is_not_zero_for_true(op: str, left: Any, right: Any, backend: str) -> None:
    a, b = np.rint(random(*left)), np.rint(random(*right, seed=1)).astype(np.int64)
    expected = getattr(np, f"logical_{op}")(a, b)
    result = getattr(F, f"logical_{op}")(*(gpucnn.tensor(v, backend=backend) for v in (a, b)))
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize("op", ["and", "or", "xor"])
def test_operators_of_masks_and_of_integers_are_numpys(op: str, backend: str) -> None:
    function = getattr(np, f"bitwise_{op}")
    for a, b in (
        (bools(2, 3, 5, 4), bools(3, 1, 1, seed=1)),
        (np.arange(12).reshape(3, 4), np.arange(4)),
        (np.arange(12, dtype=np.uint8), 6),
        (bools(7), True),
    ):
        x = gpucnn.tensor(a, backend=backend)
        y = gpucnn.tensor(b, backend=backend) if isinstance(b, np.ndarray) else b
        for result in (getattr(x, f"__{op}__")(y), getattr(x, f"__r{op}__")(y), getattr(F, f"bitwise_{op}")(x, y)):
            np.testing.assert_array_equal(result.numpy(), function(a, b))
            assert result.dtype == function(a, b).dtype


def test_not_turns_masks_and_bits_around(backend: str) -> None:
    for values in (bools(2, 3, 5, 4), np.arange(-3, 4), np.arange(5, dtype=np.uint8)):
        result = ~gpucnn.tensor(values, backend=backend)
        np.testing.assert_array_equal(result.numpy(), ~values)


@pytest.mark.parametrize("call", [lambda x, m: x & m, lambda x, m: m | x, lambda x, m: m ^ 0.5, lambda x, m: ~x])
def test_bits_of_floats_are_refused_with_the_remedy(call: Any, backend: str) -> None:
    x = gpucnn.tensor([1.0, 2.0], backend=backend)
    with pytest.raises(TypeError, match=r"takes bool and integer tensors, got .*; compare it first, as in x > 0"):
        call(x, x > 1)


@pytest.mark.parametrize("dim", [None, 0, -1, (1, 2), (0, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("op", ["any", "all"])
def test_any_and_all_over_axes_are_numpys(op: str, dim: Any, keepdim: bool, backend: str) -> None:
    for values in (bools(2, 3, 5, 4), np.rint(random(2, 3, 5, 4)), bools(2, 0, 5, 4)):
        result = getattr(gpucnn.tensor(values, backend=backend), op)(dim, keepdim)
        np.testing.assert_array_equal(result.numpy(), getattr(np, op)(values, axis=dim, keepdims=keepdim))
        assert result.dtype == np.bool_


@pytest.mark.parametrize("equal_nan", [False, True])
def test_close_elements_are_numpys(equal_nan: bool, backend: str) -> None:
    a = np.array([1.0, 1.0, 0.0, np.nan, np.inf, np.inf, -np.inf, 1e4])
    b = np.array([1.0 + 9e-6, 1.0 + 2e-5, 5e-9, np.nan, np.inf, 1.0, np.inf, 1e4 + 0.09])
    x, y = (gpucnn.tensor(v, backend=backend) for v in (a, b))
    np.testing.assert_array_equal(F.isclose(x, y, equal_nan=equal_nan).numpy(), np.isclose(a, b, equal_nan=equal_nan))
    assert F.allclose(x[:1], y[:1])
    assert F.allclose(x[:3], y[:3], rtol=1e-4)
    assert not F.allclose(x[:3], y[:3])
    with pytest.raises(ValueError, match=r"rtol and atol must not be negative, got -1.0 and 0.0"):
        F.isclose(x, y, -1, 0)


def test_equal_is_one_shape_and_the_same_elements(backend: str) -> None:
    x = gpucnn.tensor([[1.0, 2.0]], backend=backend)
    assert x.equal(x.clone())
    assert not x.equal(x + 1)
    assert not x.equal(x[0])
    assert not F.equal(x * np.nan, x * np.nan)


def test_shapes_that_do_not_broadcast_are_shown(backend: str) -> None:
    x, y = (gpucnn.zeros(n, backend=backend) for n in (2, 3))
    for op in ("eq", "logical_and", "isclose"):
        with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\) do not broadcast"):
            getattr(F, op)(x, y)


def test_a_count_of_right_answers_reads_as_in_pytorchs_examples(backend: str) -> None:
    scores = gpucnn.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5]], backend=backend)
    target = gpucnn.tensor([1, 2, 2], backend=backend)
    assert scores.argmax(dim=1, keepdim=True).eq(target.view(-1, 1)).sum().item() == 2
    best = scores.topk(2, 1, True, True).indices.t()
    correct = best.eq(target.view(1, -1).expand_as(best))
    assert [correct[:k].reshape(-1).float().sum(0).item() for k in (1, 2)] == [2.0, 3.0]
