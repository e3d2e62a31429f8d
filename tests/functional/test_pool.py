"""Pooling: sizes, divisors, ties, NaN, padding, order. Values and gradients of every case are in test_every_op.py."""

from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import Array, assert_within, unit_roundoff

import gpucnn
from functional.cases import distinct, random
from gpucnn import functional as F

POOLS = ["max_pool2d", "min_pool2d", "avg_pool2d", "sum_pool2d"]
NINE = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
SIXTEEN = np.arange(1.0, 17.0).reshape(1, 1, 4, 4)


def pooled(op: str, x: Array, backend: str, *arguments: Any, **keywords: Any) -> Array:
    y = getattr(F, op)(gpucnn.tensor(x, backend=backend), *arguments, **keywords).numpy()
    assert isinstance(y, np.ndarray)
    return y


def gradient(op: str, x: Array, dy: Array, backend: str, *arguments: Any, **keywords: Any) -> Array:
    tensor = gpucnn.tensor(x, requires_grad=True, backend=backend)
    getattr(F, op)(tensor, *arguments, **keywords).backward(gpucnn.tensor(dy, backend=backend))
    assert tensor.grad is not None
    return tensor.grad.numpy()


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", POOLS)
@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "outputs"), reference.CEIL_SIZES)
def test_ceil_mode_keeps_partial_windows_that_start_inside(
    op: str, size: int, kernel: int, stride: int, padding: int, outputs: int, backend: str
) -> None:
    window = {"ceil_mode": True, "kernel_size": (kernel, 1), "stride": (stride, 1), "padding": (padding, 0)}
    assert pooled(op, random(1, 1, size, 2), backend, **window).shape == (1, 1, outputs, 2)
    turned = {"ceil_mode": True, "kernel_size": (1, kernel), "stride": (1, stride), "padding": (0, padding)}
    assert pooled(op, random(1, 1, 2, size), backend, **turned).shape == (1, 1, 2, outputs)


@pytest.mark.parametrize("op", POOLS)
def test_stride_is_the_window_unless_given(op: str, backend: str) -> None:
    assert pooled(op, random(1, 2, 9, 8), backend, (3, 2)).shape == (1, 2, 3, 4)


@pytest.mark.parametrize("size", [(32, 32), (40, 28), (7, 9)])
@pytest.mark.parametrize("op", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
def test_global_pooling_takes_any_size(op: str, size: tuple[int, int], backend: str) -> None:
    x = random(2, 3, *size)
    y = pooled(op, x, backend, 1)
    expected = x.mean((2, 3), keepdims=True) if op == "adaptive_avg_pool2d" else x.max((2, 3), keepdims=True)
    assert_within(y, expected, 1e-13)


# --- the introductions' numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "arguments", "expected"),
    [
        ("max_pool2d", {}, [5, 6, 8, 9]),
        ("avg_pool2d", {"count_include_pad": False}, [3, 4.5, 7.5, 9]),
        ("sum_pool2d", {}, [12, 9, 15, 9]),
        ("min_pool2d", {}, [1, 3, 7, 9]),
    ],
)
def test_partial_windows_of_one_to_nine(op: str, arguments: Any, expected: Any, backend: str) -> None:
    np.testing.assert_array_equal(pooled(op, NINE, backend, 2, ceil_mode=True, **arguments).ravel(), expected)


AVERAGES = [
    ({}, [14 / 9, 10 / 3, 2, 19 / 3, 11, 6, 4.5, 7.5, 4]),
    ({"count_include_pad": False}, [3.5, 5, 6, 9.5, 11, 12, 13.5, 15, 16]),
    ({"divisor_override": 2}, [7, 15, 6, 28.5, 49.5, 18, 13.5, 22.5, 8]),
]


@pytest.mark.parametrize(("arguments", "expected"), AVERAGES)
def test_average_divides_by_the_window_by_the_real_elements_or_by_a_number(
    arguments: Any, expected: Any, backend: str
) -> None:
    y = pooled("avg_pool2d", SIXTEEN, backend, 3, 2, 1, True, **arguments)
    assert_within(y.ravel(), np.array(expected, dtype=float), 8 * unit_roundoff("float64") * 16)


@pytest.mark.parametrize(
    ("arguments", "lengths"),
    [({}, [3, 3, 2]), ({"count_include_pad": False}, [2, 3, 1]), ({"divisor_override": 25}, [5, 5, 5])],
)
def test_gradient_of_an_average_uses_the_divisor_of_the_forward_pass(
    arguments: Any, lengths: list[int], backend: str
) -> None:
    """A window that counts P rows and Q columns gives 1/PQ to each element; rows 1 and 3 are in two windows each."""
    dx = gradient("avg_pool2d", SIXTEEN, np.ones((1, 1, 3, 3)), backend, 3, 2, 1, True, **arguments)
    first, second, third = (1 / length for length in lengths)
    shares = np.array([first, first + second, second, second + third])
    assert_within(dx[0, 0], np.outer(shares, shares), 16 * unit_roundoff("float64"))


def test_a_small_shift_inside_the_windows_is_hidden(backend: str) -> None:
    images = np.zeros((2, 1, 4, 6))
    images[0, 0, [0, 3], [0, 4]] = images[1, 0, [1, 2], [1, 5]] = 7
    first, second = pooled("max_pool2d", images, backend, 2)
    np.testing.assert_array_equal(first, second)
    assert first.sum() == 14


# --- ties and indices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["max_pool2d", "min_pool2d"])
def test_first_of_equal_elements_takes_the_whole_gradient(op: str, backend: str) -> None:
    dx = gradient(op, np.zeros((1, 2, 4, 6)), np.full((1, 2, 2, 2), 5.0), backend, (2, 3))
    expected = np.zeros((1, 2, 4, 6))
    expected[:, :, ::2, ::3] = 5
    np.testing.assert_array_equal(dx, expected)


@pytest.mark.parametrize("op", ["max_pool2d", "min_pool2d"])
def test_first_in_row_major_order_is_the_one_above_not_the_one_to_the_left(op: str, backend: str) -> None:
    x = np.array([[[[0.0, 1, 0], [1, 0, 0]]]]) * (1 if op == "max_pool2d" else -1)
    np.testing.assert_array_equal(gradient(op, x, np.ones((1, 1, 1, 1)), backend, (2, 3)), [[[[0, 1, 0], [0, 0, 0]]]])


def test_equal_elements_of_an_adaptive_window_give_the_first_the_whole_gradient(backend: str) -> None:
    """Rows 0–2 and 2–4, columns 0–1 and 1–2 of 5×3: row 2 and column 1 are in two windows."""
    dx = gradient("adaptive_max_pool2d", np.zeros((1, 1, 5, 3)), np.ones((1, 1, 2, 2)), backend, 2)
    expected = np.zeros((1, 1, 5, 3))
    expected[0, 0, [0, 0, 2, 2], [0, 1, 0, 1]] = 1
    np.testing.assert_array_equal(dx, expected)


@pytest.mark.parametrize("op", ["max_pool2d", "min_pool2d"])
def test_zero_and_minus_zero_are_equal(op: str, backend: str) -> None:
    dx = gradient(op, np.array([[[[-0.0, 0.0, -0.0]]]]), np.ones((1, 1, 1, 1)), backend, (1, 3))
    np.testing.assert_array_equal(dx, [[[[1, 0, 0]]]])


@st.composite
def poolings(draw: st.DrawFn) -> tuple[Array, dict[str, Any]]:
    """Small integers, full of ties, under a window that fits."""
    size, window = [], {"kernel_size": [], "stride": [], "padding": [], "dilation": []}
    for _ in range(2):
        kernel, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
        padding = draw(st.integers(0, kernel // 2))
        extent = dilation * (kernel - 1) + 1
        size.append(draw(st.integers(max(extent - 2 * padding, padding * dilation, 1), extent + 5)))
        for name, value in zip(window, (kernel, stride, padding, dilation), strict=True):
            window[name].append(value)
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 3)), *size)
    x = np.random.default_rng(draw(st.integers(0, 99))).integers(-2, 3, shape).astype(np.float64)
    return x, {**{name: tuple(value) for name, value in window.items()}, "ceil_mode": draw(st.booleans())}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(pooling=poolings())
@pytest.mark.parametrize("op", ["max_pool2d", "min_pool2d"])
def test_extremes_and_their_places_are_the_scalar_loops(op: str, pooling: tuple[Array, Any], backend: str) -> None:
    x, window = pooling
    y, indices = getattr(F, op)(gpucnn.tensor(x, backend=backend), **window, return_indices=True)
    expected, places = getattr(reference, op)(x, **window, return_indices=True)
    np.testing.assert_array_equal(y.numpy(), expected)
    np.testing.assert_array_equal(indices.numpy(), places)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(pooled(op, x, backend, **window), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pooling=poolings())
def test_gradient_of_max_pooling_goes_where_the_indices_point(pooling: tuple[Array, Any], backend: str) -> None:
    x, window = pooling
    _, places = reference.max_pool2d(x, **window, return_indices=True)
    dy = np.random.default_rng(0).integers(-9, 10, places.shape).astype(np.float64)
    expected = np.zeros((*x.shape[:2], x.shape[2] * x.shape[3]))
    for n, c, p, q in np.ndindex(*places.shape):
        expected[n, c, places[n, c, p, q]] += dy[n, c, p, q]
    np.testing.assert_array_equal(gradient("max_pool2d", x, dy, backend, **window), expected.reshape(x.shape))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(pooling=poolings(), include=st.booleans())
def test_averages_of_any_window_are_the_scalar_loops(pooling: tuple[Array, Any], include: bool, backend: str) -> None:
    x, window = pooling
    del window["dilation"]
    y = pooled("avg_pool2d", x, backend, **window, count_include_pad=include)
    assert_within(y, reference.avg_pool2d(x, **window, count_include_pad=include), 4 * unit_roundoff("float64"))
    np.testing.assert_array_equal(pooled("sum_pool2d", x, backend, **window), reference.sum_pool2d(x, **window))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.tuples(*[st.integers(1, 9)] * 2), goal=st.tuples(*[st.integers(1, 11)] * 2), seed=st.integers(0, 9))
def test_adaptive_windows_of_any_size_are_the_scalar_loops(size: Any, goal: Any, seed: int, backend: str) -> None:
    x = np.random.default_rng(seed).integers(-2, 3, (2, 2, *size)).astype(np.float64)
    y = pooled("adaptive_avg_pool2d", x, backend, goal)
    assert_within(y, reference.adaptive_avg_pool2d(x, goal), 4 * unit_roundoff("float64"))
    y, indices = F.adaptive_max_pool2d(gpucnn.tensor(x, backend=backend), goal, return_indices=True)
    expected, places = reference.adaptive_max_pool2d(x, goal, return_indices=True)
    np.testing.assert_array_equal(y.numpy(), expected)
    np.testing.assert_array_equal(indices.numpy(), places)


@pytest.mark.parametrize("place", [0, 255, 256, 288])
def test_tap_beyond_what_a_byte_holds_is_exact(place: int, backend: str) -> None:
    x = np.zeros((1, 1, 17, 17))
    x.flat[place] = 1
    y, indices = F.max_pool2d(gpucnn.tensor(x, backend=backend), 17, return_indices=True)
    assert (y.item(), indices.item()) == (1, place)
    np.testing.assert_array_equal(gradient("max_pool2d", x, np.ones((1, 1, 1, 1)), backend, 17), x)


def test_index_beyond_what_a_float_holds_is_exact(backend: str) -> None:
    """2²⁴ + 1 is the first integer that float32 cannot hold."""
    x = np.zeros((1, 1, 1, 2**24 + 3), np.float32)
    x[..., 2**24 + 1] = 1
    tensor = gpucnn.tensor(x, requires_grad=True, backend=backend)
    y, indices = F.max_pool2d(tensor, (1, 3), (1, 2**23), return_indices=True)
    np.testing.assert_array_equal(indices.numpy().ravel(), [0, 2**23, 2**24 + 1])
    y.backward(gpucnn.tensor(np.array([[[[2.0, 3, 4]]]], np.float32), backend=backend))
    assert tensor.grad is not None
    dx = tensor.grad.numpy().ravel()
    np.testing.assert_array_equal(np.flatnonzero(dx), [0, 2**23, 2**24 + 1])
    np.testing.assert_array_equal(dx[dx != 0], [2, 3, 4])


# --- NaN, infinity, padding, order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", POOLS)
@pytest.mark.parametrize("place", [(0, 0), (1, 2), (3, 4)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_nan_reaches_every_window_that_covers_it_and_no_other(
    op: str, place: tuple[int, int], requires_grad: bool, backend: str
) -> None:
    x = random(2, 3, 5, 6)
    x[1, 2, *place] = np.nan
    tensor = gpucnn.tensor(x, requires_grad=requires_grad, backend=backend)
    y = getattr(F, op)(tensor, (3, 2), 1).numpy()
    covered = np.zeros(y.shape, bool)
    covered[1, 2, max(place[0] - 2, 0) : place[0] + 1, max(place[1] - 1, 0) : place[1] + 1] = True
    np.testing.assert_array_equal(np.isnan(y), covered)


@pytest.mark.parametrize("op", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
def test_nan_reaches_the_adaptive_windows_that_cover_it(op: str, backend: str) -> None:
    x = random(1, 2, 5, 3)
    x[0, 1, 2, 0] = np.nan
    np.testing.assert_array_equal(
        np.isnan(pooled(op, x, backend, 2)), [[[[False, False], [False, False]], [[True, False], [True, False]]]]
    )


@pytest.mark.parametrize("op", ["max_pool2d", "min_pool2d"])
def test_gradient_of_a_window_with_nan_goes_to_the_first_nan(op: str, backend: str) -> None:
    x = np.array([[[[3.0, np.nan, -9.0, np.nan]]]])
    np.testing.assert_array_equal(gradient(op, x, np.ones((1, 1, 1, 1)), backend, (1, 4)), [[[[0, 1, 0, 0]]]])


@pytest.mark.parametrize(("op", "sign"), [("max_pool2d", -1), ("min_pool2d", 1)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_padding_never_wins(op: str, sign: int, requires_grad: bool, backend: str) -> None:
    tensor = gpucnn.tensor(np.full((1, 1, 3, 4), sign * 5.0), requires_grad=requires_grad, backend=backend)
    np.testing.assert_array_equal(getattr(F, op)(tensor, 3, 1, 1).numpy(), np.full((1, 1, 3, 4), sign * 5.0))


@pytest.mark.parametrize(("op", "worst"), [("max_pool2d", -np.inf), ("min_pool2d", np.inf)])
def test_infinite_element_keeps_its_gradient_from_the_padding(op: str, worst: float, backend: str) -> None:
    x = np.full((1, 1, 2, 2), worst)
    np.testing.assert_array_equal(pooled(op, x, backend, 2, 2, 1), np.full((1, 1, 2, 2), worst))
    np.testing.assert_array_equal(gradient(op, x, SIXTEEN[..., :2, :2], backend, 2, 2, 1), SIXTEEN[..., :2, :2])


def test_overlapping_windows_add_their_gradients_in_row_major_order(backend: str) -> None:
    a, b, c = np.float32(-0.00055786536540836), np.float32(0.00075417151674628), np.float32(-0.00029314149287529)
    assert (a + b) + c != b + (c + a)
    for shape, kernel in [((1, 1, 1, 5), (1, 3)), ((1, 1, 5, 1), (3, 1))]:
        x = np.array([0, 0, 1, 0, 0], np.float32).reshape(shape)
        size = tuple(n - k + 1 for n, k in zip(shape[2:], kernel, strict=True))
        dx = gradient("max_pool2d", x, np.array([a, b, c]).reshape(1, 1, *size), backend, kernel, 1)
        np.testing.assert_array_equal(dx.ravel(), np.array([0, 0, (a + b) + c, 0, 0], np.float32))
        assert float(dx.ravel()[2]) == pytest.approx(-9.683534e-05, abs=5e-12)


def test_overlapping_windows_of_two_rows_add_the_upper_row_first(backend: str) -> None:
    """float32 loses a 1 that meets 2²⁵, so the order of the four windows around the middle shows in the sum."""
    x = np.zeros((1, 1, 3, 3), np.float32)
    x[0, 0, 1, 1] = 1
    large = 2.0**25
    for dy, row_by_row in [([[large, 1], [-large, 1]], 1), ([[large, -large], [1, 1]], 2)]:
        dx = gradient("max_pool2d", x, np.array([[dy]], np.float32), backend, 2, 1)
        assert dx[0, 0, 1, 1] == row_by_row


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", POOLS)
@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((3, 7, 5), (2,), r"input .*\(3, 7, 5\).*unsqueeze"),
        ((1, 3, 7, 5), (8, 1), r"7 \+ 0 - 8.*/ 1 \+ 1"),
        ((1, 3, 7, 5), ((2, 8), 3, (0, 1)), r"5 \+ 2 - 8.*/ 3 \+ 1"),
        ((1, 3, 7, 5), (3, 2, (2, 0)), r"padding.*2.*half.*\(3, 3\)"),
        ((1, 3, 7, 5), ((4, 1), 2, (2, 1)), r"padding.*1.*half.*\(4, 1\)"),
        ((1, 3, 7, 5), (0,), r"kernel_size.*0"),
        ((1, 3, 7, 5), ((2, 2, 2),), r"kernel_size.*\(2, 2, 2\)"),
        ((1, 3, 7, 5), (2, 0), r"stride.*0"),
        ((1, 3, 7, 5), (2, 1, -1), r"padding.*-1"),
        ((1, 3, 7, 5), (2, 1, (1, 0, 1)), r"padding.*\(1, 0, 1\)"),
    ],
)
def test_wrong_windows_are_shown(op: str, shape: Any, arguments: Any, message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        pooled(op, distinct(*shape), backend, *arguments)


@pytest.mark.parametrize("op", POOLS)
def test_integers_are_not_pooled(op: str, backend: str) -> None:
    with pytest.raises(TypeError, match=rf"{op}: input .*int64.*float"):
        pooled(op, np.ones((1, 1, 2, 3), np.int64), backend, 2)


def test_divisor_of_zero_is_an_error(backend: str) -> None:
    with pytest.raises(ValueError, match=r"divisor_override.*0"):
        pooled("avg_pool2d", SIXTEEN, backend, 2, divisor_override=0)


@pytest.mark.parametrize("op", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((1, 3, 7, 5), 0, r"output_size.*0"),
        ((1, 3, 7, 5), (1, 2, 3), r"output_size.*\(1, 2, 3\)"),
        ((1, 3, 0, 5), 1, r"empty.*\(0, 5\)"),
        ((3, 7, 5), 1, r"input .*\(3, 7, 5\)"),
    ],
)
def test_wrong_adaptive_sizes_are_shown(op: str, shape: Any, size: Any, message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        pooled(op, random(*shape), backend, size)


@pytest.mark.parametrize("size", [(4, 6), (16, 16), (17, 16), (1, 300)])
@pytest.mark.parametrize("op", ["max_pool2d", "min_pool2d"])
def test_one_window_over_the_plane_takes_the_first_of_equals_and_of_nans(
    op: str, size: tuple[int, int], backend: str
) -> None:
    rng, sign = np.random.default_rng(0), 1 if op == "max_pool2d" else -1
    x = rng.standard_normal((3, 4, *size))
    flat = x.reshape(3, 4, -1)
    flat[0, 0, [5, 9]] = np.nan
    flat[0, 1] = -sign * np.inf
    flat[0, 2, [7, 11]] = 9 * sign
    flat[0, 3, [3, 20]] = sign * np.inf
    flat[1, :, -1] = 10 * sign
    tensor = gpucnn.tensor(x, requires_grad=True, backend=backend)
    y, places = getattr(F, op)(tensor, size, return_indices=True)
    wanted = flat.argmax(2) if sign == 1 else flat.argmin(2)
    np.testing.assert_array_equal(places.numpy()[..., 0, 0], wanted)
    assert places.numpy()[0, :, 0, 0].tolist() == [5, 0, 7, 3]
    np.testing.assert_array_equal(y.numpy()[..., 0, 0], np.take_along_axis(flat, wanted[..., None], 2)[..., 0])
    dy = rng.standard_normal((3, 4, 1, 1))
    y.backward(gpucnn.tensor(dy, backend=backend))
    expected = np.zeros_like(flat)
    np.put_along_axis(expected, wanted[..., None], dy[..., 0], 2)
    np.testing.assert_array_equal(tensor.grad.numpy().reshape(flat.shape), expected)
