"""Operators, elementwise functions, reductions, conversions: NumPy is their definition."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numerics import Array, assert_within, check_gradients, unit_roundoff

import gpucnn
from functional.cases import distinct, random, uniform
from gpucnn import Tensor
from gpucnn import functional as F
from gpucnn.backends.numpy_backend import NumpyBackend

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
}
SHAPES = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((4, 1), (1, 3)),
    ((2, 3, 5, 4), (2, 3, 5, 4)),
    ((2, 3, 5, 4), (3, 1, 1)),
    ((2, 3, 5, 4), (2, 1, 5, 1)),
    ((5, 4), (2, 3, 1, 1)),
    ((), (2, 3)),
    ((2, 3, 5, 4), ()),
    ((0, 3), (1, 3)),
]


def named(backend: str, **arrays: Array) -> list[Tensor]:
    return [gpucnn.tensor(array, backend=backend) for array in arrays.values()]


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("op", BINARY)
def test_operators_broadcast_as_numpy_does(op: str, left: Any, right: Any, backend: str) -> None:
    a, b = uniform(*left, high=2.0), uniform(*right, high=2.0, seed=1)
    for x, y in ((a, b), (b, a)):
        for dtype in ("float32", "float64"):
            p, q = x.astype(dtype), y.astype(dtype)
            result = BINARY[op](*named(backend, p=p, q=q))
            expected = BINARY[op](p, q)
            assert result.dtype == dtype
            assert_within(result.numpy(), expected.astype(float), 4 * unit_roundoff(dtype) * np.abs(expected))
        check_gradients(BINARY[op], [x, y], backend, most=10)
        check_gradients(getattr(F, op), [x, y], backend, most=2)


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("op", ["maximum", "minimum"])
def test_larger_and_smaller_elements_broadcast_as_numpy_does(op: str, left: Any, right: Any, backend: str) -> None:
    a, b = distinct(*left), np.asarray(distinct(*right, seed=1) + 1 / 16)
    result = getattr(F, op)(*named(backend, a=a, b=b))
    np.testing.assert_array_equal(result.numpy(), getattr(np, op)(a, b))
    check_gradients(getattr(F, op), [a, b], backend, most=10)


@pytest.mark.parametrize("op", ["maximum", "minimum"])
def test_equal_elements_share_the_gradient_and_nan_wins(op: str, backend: str) -> None:
    a, b = (gpucnn.tensor(v, requires_grad=True, backend=backend) for v in ([2.0, 1.0, np.nan], [2.0, np.nan, 1.0]))
    y = getattr(F, op)(a, b)
    y[:1].sum().backward()
    np.testing.assert_array_equal(y.numpy(), [2.0, np.nan, np.nan])
    assert [t.grad.numpy().tolist() for t in (a, b)] == [[0.5, 0.0, 0.0]] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_where_chooses_and_broadcasts_as_numpy_does(left: Any, right: Any, backend: str) -> None:
    a, b = np.asarray(random(*left)), np.asarray(random(*right, seed=1))
    for mask in (a > 0.3, b > 0.3):
        chosen = gpucnn.tensor(mask, backend=backend)
        result = F.where(chosen, *named(backend, a=a, b=b))
        np.testing.assert_array_equal(result.numpy(), np.where(mask, a, b))
        check_gradients(lambda x, y, chosen=chosen: F.where(chosen, x, y), [a, b], backend, most=10)


def test_where_takes_a_number_and_what_is_not_chosen_does_no_harm(backend: str) -> None:
    x = gpucnn.tensor([-1.0, 4.0], requires_grad=True, backend=backend)
    y = F.where(x > 0, x.sqrt(), 0.5)
    assert y.dtype == np.float32
    y.sum().backward()
    assert y.tolist() == [0.5, 2.0]
    assert F.where(x > 0, 1.0, x).tolist() == [-1.0, 1.0]
    for numbers, dtype in (((1.0, 0.0), "float32"), ((1, 0), "int64"), ((1, 0.0), "float32"), ((True, False), "bool")):
        z = F.where(x > 0, *numbers)
        assert (z.tolist(), z.dtype, z.backend) == ([0, 1], dtype, x.backend)


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("number", [2, 0.5, np.float64(0.5), np.int64(3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_operators_take_numbers_on_both_sides_and_keep_the_dtype(
    op: str, number: Any, dtype: str, backend: str
) -> None:
    x = uniform(2, 3, 4, 5, high=2.0).astype(dtype)
    (tensor,) = named(backend, x=x)
    for result, expected in (
        (BINARY[op](tensor, number), BINARY[op](x, float(number))),
        (BINARY[op](number, tensor), BINARY[op](float(number), x)),
    ):
        assert result.dtype == dtype
        assert_within(result.numpy(), expected.astype(float), 4 * unit_roundoff(dtype) * np.abs(expected))
    check_gradients(lambda t: BINARY[op](t, number), [x.astype(float)], backend, most=5)
    check_gradients(lambda t: BINARY[op](number, t), [x.astype(float)], backend, most=5)


def test_minus_and_absolute_value(backend: str) -> None:
    x = distinct(2, 3, 4, 5)
    (tensor,) = named(backend, x=x)
    np.testing.assert_array_equal((-tensor).numpy(), -x)
    np.testing.assert_array_equal(abs(tensor).numpy(), np.abs(x))
    check_gradients(lambda t: -t, [x], backend, most=5)
    check_gradients(abs, [x], backend, most=20)


def test_slope_of_the_absolute_value_at_zero_is_zero(backend: str) -> None:
    x = gpucnn.tensor(np.array([0.0, -0.0]), requires_grad=True, backend=backend)
    abs(x).sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0])


@pytest.mark.parametrize("name", ["exp", "log", "sqrt"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5, 4), ()])
def test_elementwise_functions_are_numpys(name: str, shape: Any, backend: str) -> None:
    x = uniform(*shape, high=3.0)
    for dtype in ("float32", "float64"):
        (tensor,) = named(backend, x=x.astype(dtype))
        y = getattr(tensor, name)()
        assert y.dtype == dtype
        expected = getattr(np, name)(x.astype(dtype).astype(float))
        assert_within(y.numpy(), expected, 4 * unit_roundoff(dtype) * np.abs(expected))
    check_gradients(lambda t: getattr(t, name)(), [x], backend, most=10)
    check_gradients(getattr(F, name), [x], backend, most=2)


def test_logarithm_and_root_outside_their_domain_are_quiet_as_in_pytorch(backend: str) -> None:
    (tensor,) = named(backend, x=np.array([0.0, -1.0]))
    np.testing.assert_array_equal(tensor.log().numpy(), [-np.inf, np.nan])
    np.testing.assert_array_equal(tensor.sqrt().numpy(), [0, np.nan])


def test_division_by_zero_and_overflow_are_quiet_as_in_pytorch(backend: str) -> None:
    one, zero = named(backend, one=np.array([1.0, 0.0, -1.0]), zero=np.zeros(3))
    np.testing.assert_array_equal((one / zero).numpy(), [np.inf, np.nan, -np.inf])
    np.testing.assert_array_equal((one * 1e4).exp().numpy(), [np.inf, 1, 0])


def test_power_of_zero_has_pytorchs_slopes(backend: str) -> None:
    x = gpucnn.tensor(np.array([0.0, 0.0, 2.0, np.inf]), requires_grad=True, backend=backend)
    exponent = gpucnn.tensor(np.array([0.0, 2.0, 0.0, 0.0]), requires_grad=True, backend=backend)
    (x**exponent).sum().backward()
    assert x.grad is not None
    assert exponent.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 0, 0])
    assert_within(exponent.grad.numpy(), np.array([0, 0, np.log(2), np.inf]), 1e-15)


def test_square_of_a_negative_number_has_a_slope(backend: str) -> None:
    check_gradients(lambda t: t**2, [distinct(3, 4)], backend)
    check_gradients(lambda t: t**-1, [distinct(3, 4)], backend)
    check_gradients(lambda t: t**3.0, [distinct(3, 4)], backend)


@pytest.mark.parametrize("limits", [(-0.5, 0.5), (None, 0.5), (-0.5, None)])
def test_clamp_passes_the_gradient_between_its_limits(limits: Any, backend: str) -> None:
    x = distinct(2, 3, 4, 5)
    (tensor,) = named(backend, x=x)
    np.testing.assert_array_equal(tensor.clamp(*limits).numpy(), np.clip(x, *limits))
    check_gradients(lambda t: t.clamp(*limits), [x], backend)
    corner = gpucnn.tensor(np.array([-0.5, 0.5]), requires_grad=True, backend=backend)
    corner.clamp(*limits).sum().backward()
    assert corner.grad is not None
    np.testing.assert_array_equal(corner.grad.numpy(), [1, 1])
    assert np.isnan(gpucnn.tensor(np.array([np.nan]), backend=backend).clamp(*limits).numpy()).all()


# --- reductions -------------------------------------------------------------------------------------------------------

AXES: list[tuple[tuple[int, ...], Any]] = [
    ((2, 3, 5, 4), None),
    ((2, 3, 5, 4), 1),
    ((2, 3, 5, 4), -1),
    ((2, 3, 5, 4), (0, 2, 3)),
    ((2, 3, 5, 4), (-1, 0)),
    ((3, 4), 0),
    ((7,), 0),
    ((3, 1), 1),
    ((), None),
]


@pytest.mark.parametrize(("shape", "dim"), AXES)
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
def test_reductions_are_numpys(name: str, shape: Any, dim: Any, keepdim: bool, backend: str) -> None:
    x = distinct(*shape)
    (tensor,) = named(backend, x=x)
    y = getattr(tensor, name)(dim, keepdim)
    expected = np.asarray(getattr(np, name)(x, axis=dim, keepdims=keepdim))
    assert_within(y.numpy(), expected, x.size * unit_roundoff("float64") * float(np.abs(x).sum()))
    check_gradients(lambda t: getattr(t, name)(dim=dim, keepdim=keepdim), [x], backend, most=20)


@pytest.mark.parametrize("name", ["amax", "amin"])
def test_equal_extremes_share_the_gradient_evenly_as_in_pytorch(name: str, backend: str) -> None:
    peaks = np.array([[7.0, 7.0, 1.0], [1.0, 7.0, 1.0]]) * (1 if name == "amax" else -1)
    x = gpucnn.tensor(peaks, requires_grad=True, backend=backend)
    getattr(x, name)(1).backward(gpucnn.tensor(np.array([4.0, 3.0]), backend=backend))
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [[2, 2, 0], [0, 3, 0]])


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
def test_nan_stays_nan_in_a_reduction(name: str, backend: str) -> None:
    x = gpucnn.tensor(np.array([[1.0, np.nan], [2.0, 3.0]]), requires_grad=True, backend=backend)
    y = getattr(x, name)(1)
    np.testing.assert_array_equal(np.isnan(y.numpy()), [True, False])
    y.sum().backward()
    assert x.grad is not None
    assert np.isfinite(x.grad.numpy()[1]).all()


def test_sum_of_nothing_is_zero(backend: str) -> None:
    np.testing.assert_array_equal(gpucnn.tensor(np.ones((0, 3)), backend=backend).sum(0).numpy(), [0, 0, 0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "bool"])
def test_sum_of_integers_is_int64(dtype: str, backend: str) -> None:
    x = gpucnn.tensor(np.full((2, 3), 200).astype(dtype), backend=backend)
    total = int(x.numpy().astype(np.int64).sum())
    assert (x.sum().dtype, x.sum().item(), x.sum(0).dtype) == (np.int64, total, np.int64)


def test_argmax_is_the_first_largest(backend: str) -> None:
    x = np.array([[1.0, 5, 5], [9, 0, 9]])
    (tensor,) = named(backend, x=x)
    assert tensor.argmax().item() == 3
    np.testing.assert_array_equal(tensor.argmax(1).numpy(), [1, 0])
    np.testing.assert_array_equal(tensor.argmax(-2).numpy(), [1, 0, 1])
    assert tensor.argmax(1, keepdim=True).tolist() == [[1], [0]]
    assert tensor.argmax(keepdim=True).tolist() == [[3]]
    assert tensor.argmax(1).dtype == np.int64
    guess = gpucnn.tensor(np.array([0, 0.1, 0.1, 0.75, 0, 0, 0, 0, 0, 0.05]), backend=backend)
    assert guess.argmax().item() == 3


def test_comparisons_are_numpys(backend: str) -> None:
    a, b = np.array([1.0, 2, 3]), np.array([3.0, 2, 1])
    x, y = named(backend, a=a, b=b)
    for left, right, plain in ((x, y, b), (x, 2.0, 2.0)):
        np.testing.assert_array_equal((left == right).numpy(), a == plain)
        np.testing.assert_array_equal((left != right).numpy(), a != plain)
        np.testing.assert_array_equal((left < right).numpy(), a < plain)
        np.testing.assert_array_equal((left <= right).numpy(), a <= plain)
        np.testing.assert_array_equal((left > right).numpy(), a > plain)
        np.testing.assert_array_equal((left >= right).numpy(), a >= plain)
        assert (left < right).dtype == np.bool_


# --- dtypes and backends ----------------------------------------------------------------------------------------------


def test_conversion_carries_the_gradient_back_in_the_first_dtype(backend: str) -> None:
    x = gpucnn.tensor(np.array([1.0, 2.0], np.float32), requires_grad=True, backend=backend)
    y = x.double() * 3
    assert y.dtype == np.float64
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad.numpy(), [3, 3])
    assert x.to("int64").numpy().tolist() == [1, 2]


def test_integers_become_floats_where_they_meet_floats(backend: str) -> None:
    whole, half = named(backend, whole=np.array([1, 3]), half=np.array([0.5, 0.5]))
    np.testing.assert_array_equal((whole * half).numpy(), [0.5, 1.5])
    assert (whole * half).dtype == np.float64
    assert (whole / 2).dtype == np.float32
    assert (whole + 1).dtype == np.int64


@pytest.mark.parametrize("op", [*BINARY, "matmul", "mse_loss"])
def test_two_precisions_in_one_op_are_an_error_that_names_both(op: str, backend: str) -> None:
    a, b = named(backend, a=np.ones((2, 2)), b=np.ones((2, 2), np.float32))
    with pytest.raises(TypeError, match=rf"{op}: .*float64.*float32.*\.float\(\) or \.double\(\)"):
        getattr(F, op)(a, b)


class OtherBackend(NumpyBackend):
    name = "other"


@pytest.mark.parametrize("op", ["add", "matmul", "mse_loss", "linear"])
def test_two_backends_in_one_op_are_an_error_that_names_both_and_the_remedy(op: str, backend: str) -> None:
    a = gpucnn.tensor(np.ones((2, 2)), backend=backend)
    b = gpucnn.tensor(np.ones((2, 2)), backend=OtherBackend())
    with pytest.raises(ValueError, match=rf"{op}: .* on {backend}, .* on other; .*\.to\('{backend}'\)"):
        getattr(F, op)(a, b)


def test_a_tensor_moves_to_another_backend_and_its_gradient_back(backend: str) -> None:
    other = OtherBackend()
    x = gpucnn.tensor(random(2, 3, 4, 5), requires_grad=True, backend=backend)
    y = x.to(other) * gpucnn.tensor(2.0, dtype="float64", backend=other)
    assert y.backend is other
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.backend.name == backend
    np.testing.assert_array_equal(x.grad.numpy(), np.full((2, 3, 4, 5), 2.0))


def ones(*shape: int) -> Tensor:
    return gpucnn.tensor(np.ones(shape))


WRONG: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("broadcast", lambda: ones(2, 3) + ones(2), ValueError, r"add: shapes \(2, 3\) and \(2,\)"),
    ("compare", lambda: ones(2, 3) < ones(2), ValueError, r"\(2, 3\) and \(2,\)"),
    ("list", lambda: ones(2) * [1, 2], TypeError, "mul: other .*number.*list"),
    ("string", lambda: "a" + ones(2), TypeError, "add: .*number.*str"),
    ("where", lambda: F.where(ones(2), ones(2), 0.0), TypeError, "bool tensor, such as x > 0, got float64"),
    ("where", lambda: F.where(ones(2) > 0, ones(3), 0.0), ValueError, r"shapes \(2,\), \(3,\) and \(\) do not"),
    ("clamp", lambda: ones(2).clamp(), ValueError, "min, max"),
    ("axis", lambda: ones(2, 3).sum(2), IndexError, "sum: dim 2 .*2 axes"),
    ("axis-twice", lambda: ones(2, 3).sum((0, -2)), ValueError, r"twice.*\(0, -2\)"),
    ("mean-of-nothing", lambda: ones(0, 3).mean(), ValueError, r"mean: .*\(0, 3\)"),
    ("largest-of-nothing", lambda: ones(0, 3).amax(0), ValueError, r"amax: .*\(0, 3\)"),
    ("argmax-of-nothing", lambda: ones(0).argmax(), ValueError, r"argmax: .*\(0,\)"),
    ("mean-of-integers", lambda: gpucnn.tensor([1, 2]).mean(), TypeError, r"mean: input .*int64.*float"),
    ("integer-power", lambda: gpucnn.tensor([2, 3]) ** -1, ValueError, r"negative integer powers .* -1; .*\.float\(\)"),
    ("integer-powers", lambda: 2 ** gpucnn.tensor([1, -2]), ValueError, r"pow: .*tensor\(\[ 1, -2\]"),
    ("complex", lambda: ones(2).to("complex64"), TypeError, "complex64.*float16, bfloat16, float32 and float64"),
    ("no-backend", lambda: ones(2).to("abacus"), ValueError, "abacus.*numpy"),
    ("variance-of-one", lambda: ones(2, 1).var(1), ValueError, r"\(2, 1\) .* more than correction=1"),
    ("variance-of-integers", lambda: gpucnn.tensor([1, 2]).var(), TypeError, r"var: input .*int64.*float"),
    ("norm-p", lambda: ones(2).norm(0), ValueError, 'p must be "fro" or a number above 0, got 0'),
    ("norm-name", lambda: ones(2).norm("nuc"), TypeError, "norm: p must be a number, got 'nuc'"),
    ("mm", lambda: ones(2, 3).mm(ones(3)), ValueError, r"mm: mat2 must have 2 axes \[K, N\], got shape \(3,\)"),
    ("bmm", lambda: ones(2, 3, 4).bmm(ones(1, 4, 5)), ValueError, "bmm: input has 2 matrices, mat2 1"),
    ("floor", lambda: gpucnn.tensor([1]).floor(), TypeError, "floor: input must be .* got int64"),
]


@pytest.mark.parametrize(("call", "error", "message"), [pytest.param(*rest, id=name) for name, *rest in WRONG])
def test_wrong_arguments_are_shown(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("keepdim", [True, False])
def test_max_and_min_along_an_axis_give_values_and_indices_as_in_pytorch(
    name: str, keepdim: bool, backend: str, torch: Any
) -> None:
    a = distinct(2, 3, 5, 4)
    ours = getattr(gpucnn.tensor(a, backend=backend), name)(1, keepdim)
    theirs = getattr(torch.tensor(a), name)(1, keepdim)
    assert ours.values.tolist() == theirs.values.tolist()
    assert ours.indices.tolist() == theirs.indices.tolist()
    _, places = ours
    assert places.dtype == np.int64
    assert getattr(gpucnn.tensor(a, backend=backend), name)().item() == getattr(torch.tensor(a), name)().item()


@pytest.mark.parametrize("name", ["amax", "amin", "max", "min", "argmax", "argmin"])
def test_extremes_of_integers_are_exact(name: str, backend: str) -> None:
    a = np.array([[2**53 + 1, 5], [-3, 2**53]])
    expected = getattr(a, name.removeprefix("a") if name in ("amax", "amin") else name)()
    found = getattr(gpucnn.tensor(a, backend=backend), name)()
    assert (found.item(), found.dtype) == (expected, np.int64)


def test_the_gradient_of_a_maximum_along_an_axis_goes_to_its_place(backend: str) -> None:
    x = gpucnn.tensor(np.array([[1.0, 7, 3], [9, 2, 4]]), requires_grad=True, backend=backend)
    x.max(1).values.backward(gpucnn.tensor(np.array([2.0, 5]), backend=backend))
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 2, 0], [5, 0, 0]]


# --- steps, roots and statistics --------------------------------------------------------------------------------------

STEPS: dict[str, Callable[[Any], Any]] = {
    "sign": lambda a: np.where(np.isnan(a), 0, np.sign(a)),
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("op", STEPS)
def test_steps_are_numpys_and_have_no_slope(op: str, dtype: str, backend: str) -> None:
    values = np.array([[-2.5, -0.5, -0.0, 0.5, 1.5, 2.0], [np.nan, np.inf, -np.inf, 1e-5, -1e-5, 3.75]])
    x = gpucnn.tensor(values, dtype, requires_grad=True, backend=backend)
    y = getattr(x, op)()
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.numpy().astype(float), STEPS[op](x.numpy().astype(float)))
    y.backward(gpucnn.full((2, 6), np.inf, dtype=dtype, backend=backend))
    assert not x.grad.numpy().any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("op", "formula"),
    [("square", np.square), ("reciprocal", lambda a: 1 / a), ("rsqrt", lambda a: 1 / np.sqrt(a))],
)
def test_squares_and_reciprocals_are_numpys(op: str, formula: Any, backend: str) -> None:
    x = uniform(2, 3, 4, 5, low=0.2, high=3.0)
    (tensor,) = named(backend, x=x)
    assert_within(getattr(tensor, op)().numpy(), formula(x), 4 * unit_roundoff("float64") * formula(x))
    check_gradients(getattr(F, op), [x], backend, most=5)


def test_reciprocal_of_integers_is_float32(backend: str) -> None:
    y = gpucnn.tensor([1, 4], backend=backend).reciprocal()
    assert (y.dtype, y.tolist()) == (np.float32, [1.0, 0.25])


@pytest.mark.parametrize(("shape", "dim"), AXES)
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("name", ["var", "std"])
def test_variance_and_deviation_are_numpys(
    name: str, correction: int, shape: Any, dim: Any, keepdim: bool, backend: str
) -> None:
    x = distinct(*shape) + 50
    axes = tuple(range(x.ndim)) if dim is None else dim if isinstance(dim, tuple) else (dim,)
    (tensor,) = named(backend, x=x)
    if np.prod([shape[i] for i in axes]) <= correction:
        with pytest.raises(ValueError, match="more than correction=1 elements"):
            getattr(tensor, name)(dim, correction=correction)
        return
    y = getattr(tensor, name)(dim, correction=correction, keepdim=keepdim)
    expected = np.asarray(getattr(np, name)(x, axis=dim, ddof=correction, keepdims=keepdim))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12)
    check_gradients(lambda t: getattr(t, name)(dim, correction=correction, keepdim=keepdim), [x], backend, most=10)


def test_equal_elements_deviate_by_nothing_and_the_slope_is_zero_as_in_pytorch(backend: str) -> None:
    x = gpucnn.full((3, 4), 2.5, dtype="float64", requires_grad=True, backend=backend)
    y = x.std(1)
    assert y.tolist() == [0, 0, 0]
    y.sum().backward()
    assert not x.grad.numpy().any()  # type: ignore[union-attr]


@pytest.mark.parametrize(("shape", "dim"), AXES)
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("p", ["fro", 1, 2.0, 3, 0.5, np.inf])
def test_norms_are_their_formula(p: Any, shape: Any, dim: Any, keepdim: bool, backend: str) -> None:
    x = np.asarray(distinct(*shape) + 1 / 32)  # none is 0, where a slope has no limit
    (tensor,) = named(backend, x=x)
    n = 2.0 if p == "fro" else float(p)
    a = np.abs(x)
    expected = a.max(dim, keepdims=keepdim) if n == np.inf else (a**n).sum(dim, keepdims=keepdim) ** (1 / n)
    y = tensor.norm(p, dim, keepdim)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12)
    check_gradients(lambda t: t.norm(p, dim, keepdim), [x], backend, most=10)


@pytest.mark.parametrize("p", [0.5, 1, 1.5, 2, 3, np.inf])
def test_zeros_have_no_slope_in_a_norm_as_in_pytorch(p: float, backend: str) -> None:
    x = gpucnn.tensor(np.array([[0.0, 0.0], [0.0, 3.0]]), requires_grad=True, backend=backend)
    x.norm(p, 1).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [[0, 0], [0, 1]], rtol=1e-14)  # type: ignore[union-attr]


def test_the_slope_of_a_norm_does_not_overflow_where_the_norm_does_not(backend: str) -> None:
    x = gpucnn.tensor([3e18, 4e18], requires_grad=True, backend=backend)
    y = x.norm(2)
    y.backward()
    np.testing.assert_allclose([y.item(), *x.grad.tolist()], [5e18, 0.6, 0.8], rtol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("dim", [0, -1, (1, 2)])
@pytest.mark.parametrize("keepdim", [True, False])
def test_logarithm_of_sums_of_exponentials_does_not_overflow(dim: Any, keepdim: bool, backend: str) -> None:
    x = 400 * distinct(3, 4, 5)
    (tensor,) = named(backend, x=x)
    peak = x.max(dim, keepdims=True)
    expected = np.log(np.exp(x - peak).sum(dim, keepdims=True)) + peak
    np.testing.assert_allclose(
        tensor.logsumexp(dim, keepdim).numpy(), expected if keepdim else expected.squeeze(dim), rtol=1e-12
    )
    check_gradients(lambda t: t.logsumexp(dim, keepdim), [x / 400], backend, most=10)


def test_infinite_terms_make_the_sum_of_exponentials_what_they_are(backend: str) -> None:
    x = gpucnn.tensor(
        [[-np.inf, -np.inf], [np.inf, 0.0], [np.inf, np.inf], [np.nan, 1.0], [-np.inf, 3.0]], backend=backend
    )
    np.testing.assert_array_equal(x.logsumexp(1).numpy(), [-np.inf, np.inf, np.inf, np.nan, 3.0])


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("dim", [1, -1])
def test_normalised_vectors_have_the_length_of_one(p: float, dim: int, backend: str) -> None:
    x = distinct(3, 4, 5) + 1 / 32
    (tensor,) = named(backend, x=x)
    np.testing.assert_allclose(F.normalize(tensor, p, dim).norm(p, dim).numpy(), 1.0, rtol=1e-12)
    check_gradients(lambda t: F.normalize(t, p, dim), [x], backend, most=10)
    assert F.normalize(gpucnn.zeros(2, 3, backend=backend)).tolist() == [[0, 0, 0]] * 2


def test_cosine_of_the_angle_between_vectors(backend: str) -> None:
    a, b = random(3, 4), random(3, 4, seed=1)
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(F.cosine_similarity(*named(backend, a=a, b=b)).numpy(), expected, rtol=1e-12)
    check_gradients(F.cosine_similarity, [a, b], backend, most=10)


def test_products_of_matrices_and_of_stacks_of_them(backend: str) -> None:
    a, b = random(2, 3, 4), random(2, 4, 5, seed=1)
    x, y = named(backend, a=a, b=b)
    np.testing.assert_allclose(x.bmm(y).numpy(), a @ b, rtol=1e-12)
    np.testing.assert_allclose(x[0].mm(y[0]).numpy(), a[0] @ b[0], rtol=1e-12)


SLOPED: dict[str, tuple[Any, float, float]] = {  # and where from and to they are tried
    "sin": (np.sin, -9, 9), "cos": (np.cos, -9, 9), "log1p": (np.log1p, -0.9, 5), "log2": (np.log2, 0.1, 9),
    "log10": (np.log10, 0.1, 9), "expm1": (np.expm1, -5, 5),
}  # fmt: skip


@pytest.mark.parametrize("op", SLOPED)
def test_elementary_functions_are_numpys(op: str, backend: str) -> None:
    formula, low, high = SLOPED[op]
    x = uniform(2, 3, 4, 5) * (high - low) + low
    (tensor,) = named(backend, x=x)
    y = getattr(tensor, op)()
    np.testing.assert_allclose(y.numpy(), formula(x), rtol=1e-13, atol=1e-15)
    check_gradients(getattr(F, op), [x], backend, most=5)
    half = getattr(F, op)(tensor.half())
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.numpy(), formula(tensor.half().numpy().astype(float)), rtol=2e-3, atol=1e-6)


def test_log1p_and_expm1_are_exact_for_small_numbers(backend: str) -> None:
    x = gpucnn.tensor([1e-12, -1e-12], "float64", backend=backend)
    for op in ("log1p", "expm1"):
        np.testing.assert_allclose(getattr(x, op)().numpy(), [1e-12, -1e-12], rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int16"])
def test_remainder_has_the_sign_of_what_divides_and_floor_divide_rounds_down(dtype: str, backend: str) -> None:
    a, b = np.arange(-6, 6).reshape(3, 4).astype(dtype), np.array([3, -4, 2, -5]).astype(dtype)
    x, y = (gpucnn.tensor(v, backend=backend) for v in (a, b))
    for mine, numpys in (
        (x % y, a % b),
        (x // y, a // b),
        (x % 4, a % 4),
        (x // -4, a // -4),
        (7 % y, 7 % b),
        (7 // y, 7 // b),
    ):
        assert mine.dtype == dtype
        np.testing.assert_array_equal(mine.numpy(), numpys)


def test_remainder_of_whole_numbers_by_a_fraction_is_float32(backend: str) -> None:
    y = gpucnn.tensor([7, -7], backend=backend) % 2.5
    assert (y.dtype, y.tolist()) == (np.float32, [2.0, 0.5])


def test_the_gradient_of_remainder_is_one_and_minus_the_quotient_and_of_floor_divide_none(backend: str) -> None:
    x, y = (v.requires_grad_() for v in named(backend, x=np.array([[7.3, -7.3]]), y=np.array([2.0, -3.0])))
    (x % y).sum().backward()
    assert x.grad.tolist() == [[1, 1]]
    assert y.grad.tolist() == [-3, -2]
    x.grad = y.grad = None
    (x // y).sum().backward()
    assert (x.grad.tolist(), y.grad.tolist()) == ([[0, 0]], [0, 0])


def test_whole_numbers_are_not_divided_by_the_number_0(backend: str) -> None:
    x = gpucnn.tensor([1, 2], backend=backend)
    for op in (lambda: x % 0, lambda: x // 0):
        with pytest.raises(ValueError, match=r"whole numbers can't be divided by 0; convert .*\.float\(\)"):
            op()
    assert np.isnan((x.float() % 0).numpy()).all()
    assert np.isinf((x.float() // 0).numpy()).all()


def test_lerp_goes_from_one_to_the_other_and_meets_both(backend: str) -> None:
    a, b = random(2, 3, 4, 5), random(4, 1, seed=1) * 1e9
    x, y = named(backend, a=a, b=b)
    for weight in (0.0, 0.3, 0.7, 1.0):
        np.testing.assert_allclose(x.lerp(y, weight).numpy(), a + weight * (b - a), rtol=1e-12, atol=1e-6)
        t = gpucnn.full((5,), weight, dtype="float64", backend=backend)
        np.testing.assert_array_equal(x.lerp(y, t).numpy(), x.lerp(y, weight).numpy())
    np.testing.assert_array_equal(x.lerp(y, 0.0).numpy(), np.broadcast_to(a, a.shape))
    np.testing.assert_array_equal(x.lerp(y, 1.0).numpy(), np.broadcast_to(b, a.shape))
    arrays = [random(3, 4), random(3, 4, seed=1), uniform(3, 4)]
    check_gradients(lambda x, y, w: F.lerp(x, y, w), arrays, backend)


def test_outer_is_every_product(backend: str) -> None:
    a, b = random(3), random(4, seed=1)
    x, y = named(backend, a=a, b=b)
    np.testing.assert_array_equal(x.outer(y).numpy(), np.outer(a, b))
    check_gradients(F.outer, [a, b], backend)
    with pytest.raises(ValueError, match=r"outer: vec2 must have 1 axes \[N\], got shape \(1, 4\)"):
        x.outer(y.unsqueeze(0))


@pytest.mark.parametrize("dim", [0, 1, -1, 2])
def test_cumsum_and_prod_are_numpys(dim: int, backend: str) -> None:
    x = random(2, 3, 4, 5)
    (tensor,) = named(backend, x=x)
    np.testing.assert_allclose(tensor.cumsum(dim).numpy(), x.cumsum(dim), rtol=1e-12, atol=1e-12)
    for keepdim in (True, False):
        y = tensor.prod(dim, keepdim)
        np.testing.assert_allclose(y.numpy(), x.prod(dim, keepdims=keepdim), rtol=1e-12, atol=1e-12)
    for op in (F.cumsum, F.prod):
        check_gradients(lambda x, op=op: op(x, dim), [x], backend, most=6)  # type: ignore[misc]


def test_prod_of_all_and_of_zeros_has_the_products_of_the_others_as_slopes(backend: str) -> None:
    x = gpucnn.tensor([[2.0, 0.0, 3.0], [0.0, 0.0, 5.0]], requires_grad=True, backend=backend)
    x.prod(1).sum().backward()
    assert x.grad.tolist() == [[0, 6, 0], [0, 0, 0]]
    y = gpucnn.tensor([2.0, 3.0, 4.0], requires_grad=True, backend=backend)
    y.prod().backward()
    assert (y.prod().item(), y.grad.tolist()) == (24, [12, 8, 6])


def test_sums_and_products_of_integers_are_int64(backend: str) -> None:
    x = gpucnn.tensor(np.array([[100, 100], [3, 2]], np.uint8), backend=backend)
    assert (x.cumsum(1).dtype, x.cumsum(1).tolist()) == (np.int64, [[100, 200], [3, 5]])
    assert (x.prod(1).dtype, x.prod(1).tolist(), x.prod().item()) == (np.int64, [10000, 6], 60000)
    assert gpucnn.tensor(np.ones((0, 3)), backend=backend).prod(0).tolist() == [1, 1, 1]
