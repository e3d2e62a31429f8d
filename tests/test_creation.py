"""Tensors of a shape, of numbers at equal distances, and of random integers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpucnn

RANGES = [(5,), (2, 5), (1, 10, 3), (10, 1, -4), (3, 3), (0,), (2**40, 2**40 + 3)]
REAL_RANGES = [(5.0,), (0.0, 1, 0.1), (1, 2, 0.3), (2.5, -1, -0.5), (0, 1.0)]


@pytest.mark.parametrize("arguments", RANGES)
def test_range_of_ints_is_int64_and_pythons(arguments: Any, backend: str) -> None:
    x = gpucnn.arange(*arguments, backend=backend)
    assert (x.tolist(), x.dtype, x.backend.name) == (list(range(*arguments)), gpucnn.int64, backend)


@pytest.mark.parametrize("arguments", REAL_RANGES)
def test_range_of_floats_is_float32_and_ends_before_the_end(arguments: Any, backend: str) -> None:
    x = gpucnn.arange(*arguments, backend=backend)
    start, end, step = (0, *arguments, 1) if len(arguments) == 1 else (*arguments, 1)[:3]
    count = int(np.ceil((end - start) / step))
    np.testing.assert_array_equal(x.numpy(), [np.float32(start + i * step) for i in range(count)])
    assert x.dtype == gpucnn.float32


def test_range_takes_a_type(backend: str) -> None:
    assert gpucnn.arange(3, dtype="float64", backend=backend).dtype == np.float64
    assert gpucnn.arange(0.0, 3.0, dtype=gpucnn.int32, backend=backend).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("start", "end", "steps"), [(0, 1, 5), (3, -3, 4), (2, 9, 1), (0, 1, 0)])
def test_line_has_both_its_ends(start: float, end: float, steps: int, backend: str) -> None:
    x = gpucnn.linspace(start, end, steps, backend=backend)
    np.testing.assert_array_equal(x.numpy(), np.linspace(start, end, steps).astype(np.float32))


@pytest.mark.parametrize("shape", [(3,), (2, 4), (4, 2), (0,)])
def test_identity_has_ones_on_its_diagonal(shape: Any, backend: str) -> None:
    np.testing.assert_array_equal(gpucnn.eye(*shape, backend=backend).numpy(), np.eye(*shape))
    w = gpucnn.eye(*shape, requires_grad=True, backend=backend)
    assert w.is_leaf
    assert w.requires_grad


def test_empty_tensors_have_their_shape_type_and_backend(backend: str) -> None:
    x = gpucnn.empty(2, 3, dtype="float64", backend=backend)
    assert (x.shape, x.dtype, x.backend.name) == ((2, 3), np.float64, backend)
    assert gpucnn.empty_like(x).shape == (2, 3)


def test_random_integers_are_all_in_range_and_come_again_from_their_seed(backend: str) -> None:
    def drawn() -> Any:
        return gpucnn.randint(2, 5, (300,), generator=gpucnn.Generator(7), backend=backend)

    x = drawn()
    assert (x.dtype, set(x.tolist()), x.tolist()) == (gpucnn.int64, {2, 3, 4}, drawn().tolist())
    assert set(gpucnn.randint(2, (50, 2), backend=backend).numpy().ravel()) == {0, 1}
    assert gpucnn.randint(9, (2,), dtype="float32", backend=backend).dtype == np.float32


def test_random_order_holds_each_number_once(backend: str) -> None:
    x = gpucnn.randperm(50, generator=gpucnn.Generator(1), backend=backend)
    assert sorted(x.tolist()) == list(range(50)) != x.tolist()


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: gpucnn.arange(3, 1), ValueError, "arange: no steps of 1 lead from 3 to 1"),
    (lambda: gpucnn.arange(0, 1, 0), ValueError, "arange: no steps of 0 lead from 0 to 1"),
    (lambda: gpucnn.arange(np.nan), ValueError, "arange: no steps of 1.0 lead from 0.0 to nan"),
    (lambda: gpucnn.arange("3"), TypeError, "arange: end must be a number, got '3'"),
    (lambda: gpucnn.linspace(0, 1, -1), ValueError, "linspace: steps must be at least 0, got -1"),
    (lambda: gpucnn.eye(-1), ValueError, "negative length"),
    (lambda: gpucnn.randint(3, 3, (2,)), ValueError, "high must be above low .*, got low=3 and high=3"),
    (lambda: gpucnn.randint(3), TypeError, r"randint: it needs a size, such as randint\(3, \(2, 3\)\)"),
    (lambda: gpucnn.randperm(2.5), TypeError, "randperm: n must be an int, got 2.5"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_arguments_are_shown(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_types_have_pytorchs_names(backend: str) -> None:
    x = gpucnn.tensor([0.0, 2.5], backend=backend)
    for name, dtype in (
        ("long", "int64"),
        ("int", "int32"),
        ("half", "float16"),
        ("double", "float64"),
        ("bool", "bool"),
    ):
        assert getattr(gpucnn, name) == np.dtype(dtype)
        assert x.type(getattr(gpucnn, name)).dtype == getattr(x, name)().dtype == dtype
    with pytest.raises(TypeError, match="'numpy' is no element type"):
        x.type("numpy")


def test_new_tensors_have_the_type_and_the_backend_of_the_one_that_makes_them(backend: str) -> None:
    x = gpucnn.tensor([1.5], dtype="float64", backend=backend)
    made = [
        x.new_zeros(2, 3),
        x.new_ones((2, 3)),
        x.new_empty(2, 3),
        x.new_full((2, 3), 7),
        x.new_tensor([[0, 1, 2]] * 2),
    ]
    for y in made:
        assert (y.shape, y.dtype, y.backend) == ((2, 3), np.float64, x.backend)
    assert [y.sum().item() for y in made] == [0, 6, 0, 42, 6]
    assert x.new_zeros(1, dtype=gpucnn.long).dtype == np.int64


def test_what_gpucnn_has_under_another_name_is_said() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'device'; a backend takes its place: \.to\('cuda'\)"):
        _ = gpucnn.device
    with pytest.raises(AttributeError, match=r"no attribute 'abacus'$"):
        _ = gpucnn.abacus
