"""Convolution: what it means, seen from several sides. Values and gradients of every case are in test_every_op.py."""

from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numerics import Array, assert_within, unit_roundoff

import gpucnn
from functional.cases import random
from gpucnn import functional as F

U = unit_roundoff("float64")


@pytest.fixture
def conv(backend: str) -> Any:
    """conv2d from arrays to an array."""

    def run(x: Array, w: Array, b: Array | None = None, **arguments: Any) -> Array:
        tensors = [None if a is None else gpucnn.tensor(a, backend=backend) for a in (x, w, b)]
        return F.conv2d(*tensors, **arguments).numpy()

    return run


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "outputs"),
    [
        (32, 5, 1, 0, 28),
        (10, 2, 1, 0, 9),
        (10, 2, 2, 0, 5),
        (5, 3, 1, 0, 3),
        (5, 3, 2, 0, 2),
        (4, 2, 2, 0, 2),
        (5, 3, 1, 1, 5),
    ],
)
def test_output_size_is_the_introductions(
    size: int, kernel: int, stride: int, padding: int, outputs: int, conv: Any
) -> None:
    y = conv(random(1, 3, size, size + 1), random(2, 3, kernel, kernel + 1), stride=stride, padding=padding)
    assert y.shape[:3] == (1, 2, outputs)


def test_each_axis_has_its_own_filter_padding_and_stride(conv: Any) -> None:
    assert conv(random(1, 1, 9, 14), random(1, 1, 2, 5), stride=(3, 2), padding=(1, 4)).shape == (1, 1, 4, 9)


@pytest.mark.parametrize("stride", [1, 2, 3, (2, 5)])
def test_same_padding_gives_the_size_over_the_stride_rounded_up(stride: Any, conv: Any) -> None:
    down, across = reference.pair(stride)
    y = conv(random(1, 2, 11, 7), random(1, 2, 4, 3), stride=stride, padding="same")
    assert y.shape[2:] == (-(-11 // down), -(-7 // across))


def test_same_padding_puts_the_odd_pixel_at_the_end(conv: Any) -> None:
    y = conv(np.array([[[[1.0, 10.0, 100.0]]]]), np.ones((1, 1, 1, 2)), padding="same")
    np.testing.assert_array_equal(y.ravel(), [11.0, 110.0, 100.0])


# --- meaning ----------------------------------------------------------------------------------------------------------


def test_filter_is_not_flipped(conv: Any) -> None:
    signal = pytest.importorskip("scipy.signal", reason="SciPy is not installed: no other cross-correlation here")
    x, w = random(7, 9), random(3, 4)
    y = conv(x[None, None], w[None, None])[0, 0]
    bound = 14 * U * signal.correlate2d(np.abs(x), np.abs(w), "valid")
    assert_within(y, signal.correlate2d(x, w, "valid"), bound)
    assert (np.abs(y - signal.convolve2d(x, w, "valid")) > bound).all()


def test_sum_of_a_filter_of_ones_counts_a_pixel_less_at_the_corner(backend: str) -> None:
    for padding, corner in [(0, [[1, 2, 3], [2, 4, 6], [3, 6, 9]]), (1, [[4, 6, 6], [6, 9, 9], [6, 9, 9]])]:
        x = gpucnn.tensor(np.ones((1, 1, 5, 5)), requires_grad=True, backend=backend)
        F.conv2d(x, gpucnn.tensor(np.ones((1, 1, 3, 3)), backend=backend), padding=padding).sum().backward()
        assert x.grad is not None
        counts = x.grad.numpy()[0, 0]
        np.testing.assert_array_equal(counts[:3, :3], corner)
        np.testing.assert_array_equal(counts, counts[::-1, ::-1])


def test_convolution_is_linear_exactly_on_small_integers(conv: Any) -> None:
    generator = np.random.default_rng(0)
    x, y = (generator.integers(-9, 10, (2, 3, 6, 5)).astype("float32") for _ in range(2))
    w = generator.integers(-9, 10, (4, 3, 3, 2)).astype("float32")
    np.testing.assert_array_equal(conv(3 * x - 2 * y, w), 3 * conv(x, w) - 2 * conv(y, w))


def test_convolution_of_a_shifted_image_is_the_shifted_convolution_exactly_on_small_integers(conv: Any) -> None:
    generator = np.random.default_rng(1)
    x = generator.integers(-9, 10, (1, 3, 9, 8)).astype("float32")
    w = generator.integers(-9, 10, (5, 3, 3, 2)).astype("float32")
    shifted = np.roll(x, (2, 1), axis=(2, 3))
    np.testing.assert_array_equal(conv(shifted, w)[:, :, 2:, 1:], conv(x, w)[:, :, :-2, :-1])


def test_line_filter_answers_to_its_line(conv: Any) -> None:
    one = np.zeros((1, 1, 4, 4))
    one[..., 1] = 1
    np.testing.assert_array_equal(conv(one, np.array([[[[-1.0, 2.0, -1.0]] * 3]])), [[[[6, -3], [6, -3]]]])


def test_laplace_filter_is_zero_on_a_constant_and_marks_a_step(conv: Any) -> None:
    laplace = np.array([[[[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]]])
    assert not conv(np.full((1, 1, 5, 7), 3.0), laplace).any()
    step = np.zeros((1, 1, 5, 5))
    step[..., :, 2:] = 1
    np.testing.assert_array_equal(conv(step, laplace)[0, 0], [[1, -1, 0]] * 3)


def test_curve_detector_gives_6600_on_its_curve_and_nothing_elsewhere(conv: Any) -> None:
    curve = np.zeros((1, 1, 7, 7))
    curve[0, 0, [1, 2, 3, 4, 5], [5, 4, 3, 3, 3]] = 30
    image = np.zeros((1, 1, 32, 32))
    image[0, 0, [11, 12, 13, 14], [15, 14, 13, 13]] = 50
    image[0, 0, 15, 13] = 20
    y = conv(image, curve)
    assert y.shape == (1, 1, 26, 26)
    assert y[0, 0, 10, 10] == y.max() == 4 * 50 * 30 + 20 * 30
    assert not y[0, 0, :4].any()


def test_x_is_found_in_the_cross_of_the_introduction(backend: str) -> None:
    cross = np.eye(5) + np.eye(5)[::-1]
    cross[2, 2] = 1
    corners = gpucnn.tensor([[[[1.0, 0, 1], [0, 1, 0], [1, 0, 1]]]], backend=backend)
    y = F.conv2d(gpucnn.tensor(cross[None, None].astype("float32"), backend=backend), corners)
    np.testing.assert_array_equal(y.numpy()[0, 0], [[3, 0, 3], [0, 5, 0], [3, 0, 3]])
    y = F.relu(y - 3)
    np.testing.assert_array_equal(y.numpy()[0, 0], [[0, 0, 0], [0, 2, 0], [0, 0, 0]])
    for pooled, expected in [
        (F.max_pool2d(y, 2, ceil_mode=True), 2.0),
        (F.avg_pool2d(y, 2, ceil_mode=True, count_include_pad=False), 0.5),
        (F.sum_pool2d(y, 2, ceil_mode=True), 2.0),
    ]:
        np.testing.assert_array_equal(pooled.numpy()[0, 0], [[expected, 0], [0, 0]])


# --- identities, any shape --------------------------------------------------------------------------------------------


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes and arguments of a convolution whose window fits its padded input."""
    groups = draw(st.integers(1, 3))
    geometry: dict[str, Any] = {"groups": groups}
    size, kernel, strides, dilations, sides = [], [], [], [], []
    for _ in range(2):
        k, d, before, after = (draw(st.integers(*limits)) for limits in [(1, 4), (1, 3), (0, 3), (0, 3)])
        extent = d * (k - 1) + 1
        size.append(draw(st.integers(max(1, extent - before - after), extent + 4)))
        kernel.append(k)
        strides.append(draw(st.integers(1, 4)))
        dilations.append(d)
        sides += [before, after]
    geometry["x"] = (draw(st.integers(0, 2)), groups * draw(st.integers(1, 3)), *size)
    geometry["w"] = (groups * draw(st.integers(1, 2)), geometry["x"][1] // groups, *kernel)
    geometry |= {"stride": tuple(strides), "dilation": tuple(dilations), "padding": tuple(sides)}
    return geometry


def drawn(geometry: dict[str, Any]) -> tuple[Array, Array, dict[str, Any]]:
    arguments = dict(geometry)
    return random(*arguments.pop("x")), random(*arguments.pop("w"), seed=1), arguments


@settings(max_examples=60, deadline=None, derandomize=True)
@given(geometry=geometries())
def test_convolution_of_any_shape_is_the_scalar_loops(geometry: dict[str, Any], backend: str) -> None:
    x, w, arguments = drawn(geometry)
    y = F.conv2d(gpucnn.tensor(x, backend=backend), gpucnn.tensor(w, backend=backend), **arguments)
    bound = (w[0].size + 2) * U * reference.conv2d(np.abs(x), np.abs(w), **arguments)
    assert_within(y.numpy(), reference.conv2d(x, w, **arguments), bound)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(geometry=geometries())
def test_padding_on_four_sides_is_a_padded_input(geometry: dict[str, Any], backend: str) -> None:
    x, w, arguments = drawn(geometry)
    top, bottom, left, right = arguments.pop("padding")
    tensor, weight = gpucnn.tensor(x, backend=backend), gpucnn.tensor(w, backend=backend)
    y = F.conv2d(tensor, weight, padding=(top, bottom, left, right), **arguments)
    padded = F.conv2d(F.pad(tensor, (left, right, top, bottom)), weight, padding="valid", **arguments)
    assert_within(y.numpy(), padded.numpy(), 64 * U * w.size * float(np.abs(x).max(initial=0) * np.abs(w).max()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(geometry=geometries(), data=st.data())
def test_transposed_convolution_is_the_gradient_of_convolution(
    geometry: dict[str, Any], data: st.DataObject, backend: str
) -> None:
    """conv_transpose2d(u, w) = d<u, conv2d(x, w)>/dx; output_padding restores the rows that the stride left over."""
    x, w, arguments = drawn(geometry)
    extents = [reference.dilated(k, d) for k, d in zip(w.shape[2:], arguments["dilation"], strict=True)]
    arguments["padding"] = tuple(data.draw(st.integers(0, 3)) for _ in "hw")
    rooms = [n + 2 * p - e for n, p, e in zip(x.shape[2:], arguments["padding"], extents, strict=True)]
    assume(min(rooms) >= 0)
    tensor = gpucnn.tensor(x, requires_grad=True, backend=backend)
    weight = gpucnn.tensor(w, backend=backend)
    y = F.conv2d(tensor, weight, **arguments)
    u = gpucnn.tensor(random(*y.shape, seed=3), backend=backend)
    y.backward(u)
    left_over = tuple(room % s for room, s in zip(rooms, arguments["stride"], strict=True))
    back = F.conv_transpose2d(u, weight, output_padding=left_over, **arguments)
    assert tensor.grad is not None
    bound = 4 * U * w.size * float(np.abs(u.numpy()).max(initial=0) * np.abs(w).max())
    assert_within(back.numpy(), tensor.grad.numpy(), bound)


def test_groups_are_separate_convolutions_side_by_side(conv: Any) -> None:
    x, w = random(2, 6, 7, 5), random(9, 2, 3, 2)
    apart = [conv(x[:, 2 * g : 2 * g + 2], w[3 * g : 3 * g + 3], stride=2) for g in range(3)]
    assert_within(conv(x, w, groups=3, stride=2), np.concatenate(apart, axis=1), 1e-13)
    np.testing.assert_array_equal(conv(x, w, groups=np.int64(3), stride=2), conv(x, w, groups=3, stride=2))


def test_dilation_is_a_filter_with_holes(conv: Any) -> None:
    x, w = random(1, 2, 9, 8), random(3, 2, 3, 2)
    holes = np.zeros((3, 2, 5, 4))
    holes[:, :, ::2, ::3] = w
    assert_within(conv(x, w, dilation=(2, 3)), conv(x, holes), 1e-13)


def test_stride_takes_every_so_manieth_output(conv: Any) -> None:
    x, w = random(1, 2, 9, 8), random(3, 2, 3, 2)
    assert_within(conv(x, w, stride=(2, 3)), conv(x, w)[:, :, ::2, ::3], 1e-13)


def test_nan_in_one_channel_reaches_only_what_reads_that_channel(conv: Any) -> None:
    x = random(2, 4, 5, 4)
    x[1, 3, 2, 2] = np.nan
    y = conv(x, random(4, 2, 2, 2), groups=2)
    assert np.isnan(y[1, 2:, 1:3, 1:3]).all()
    assert np.isnan(y).sum() == 2 * 4


def test_rows_that_no_window_reads_get_no_gradient(backend: str) -> None:
    x = gpucnn.tensor(random(1, 2, 8, 7), requires_grad=True, backend=backend)
    F.conv2d(x, gpucnn.tensor(np.ones((1, 2, 3, 2)), backend=backend), stride=3).sum().backward()
    assert x.grad is not None
    expected = np.zeros((1, 2, 8, 7))
    expected[:, :, :6, [0, 1, 3, 4]] = 1
    np.testing.assert_array_equal(x.grad.numpy(), expected)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "w", "b", "arguments", "error", "message"),
    [
        ((3, 7, 5), (4, 3, 3, 2), None, {}, ValueError, r"input .*\(3, 7, 5\).*unsqueeze"),
        ((1, 3, 7, 5), (3, 3, 2), None, {}, ValueError, r"weight .*\(3, 3, 2\)"),
        ((1, 3, 7, 5), (4, 5, 3, 2), None, {}, ValueError, r"3 .*5|5 .*3"),
        ((1, 6, 7, 5), (4, 6, 3, 2), None, {"groups": 3}, ValueError, "6"),
        ((1, 5, 7, 5), (4, 2, 3, 2), None, {"groups": 2}, ValueError, r"groups.*2"),
        ((1, 6, 7, 5), (4, 2, 3, 2), None, {"groups": 3}, ValueError, r"4"),
        ((1, 3, 7, 5), (4, 3, 3, 2), None, {"groups": 0}, ValueError, r"groups.*0"),
        ((1, 3, 7, 5), (4, 3, 3, 2), (3,), {}, ValueError, r"bias .*\(4,\).*\(3,\)"),
        ((1, 3, 7, 5), (4, 3, 8, 2), None, {}, ValueError, r"8.*7 \+ 0 - 8.*/ 1 \+ 1"),
        ((1, 3, 7, 5), (4, 3, 3, 4), None, {"dilation": 2, "padding": (0, 0, 1, 0)}, ValueError, r"5 \+ 1 - 7"),
        ((1, 3, 7, 5), (4, 3, 3, 2), None, {"stride": 0}, ValueError, r"stride.*0"),
        ((1, 3, 7, 5), (4, 3, 3, 2), None, {"stride": (1, 2, 3)}, ValueError, r"stride.*\(1, 2, 3\)"),
        ((1, 3, 7, 5), (4, 3, 3, 2), None, {"dilation": (1, 0)}, ValueError, r"dilation.*\(1, 0\)"),
        ((1, 3, 7, 5), (4, 3, 3, 2), None, {"padding": -1}, ValueError, r"padding.*-1"),
        ((1, 3, 7, 5), (4, 3, 3, 2), None, {"padding": (1, 2, 3)}, ValueError, r"padding.*\(1, 2, 3\)"),
        ((1, 3, 7, 5), (4, 3, 3, 2), None, {"padding": (1, 2, 3, -4)}, ValueError, r"padding.*-4"),
        ((1, 3, 7, 5), (4, 3, 3, 2), None, {"padding": "some"}, ValueError, r"padding.*same.*valid.*some"),
        ((1, 3, 7, 5), (4, 3, 3, 2), None, {"padding": 1.5}, (ValueError, TypeError), r"padding.*1\.5"),
        ((1, 3, 7, 5), (4, 3, 3, 2), None, {"stride": 2.5}, (ValueError, TypeError), r"stride.*2\.5"),
    ],
)
def test_wrong_arguments_are_shown(x: Any, w: Any, b: Any, arguments: Any, error: Any, message: str, conv: Any) -> None:
    with pytest.raises(error, match=message):
        conv(random(*x), random(*w), None if b is None else random(*b), **arguments)


def test_strides_may_be_numpy_integers(conv: Any) -> None:
    x, w = random(1, 2, 7, 5), random(3, 2, 3, 2)
    np.testing.assert_array_equal(conv(x, w, stride=np.int64(2), padding=np.int64(1)), conv(x, w, stride=2, padding=1))


def test_two_precisions_in_one_convolution_are_an_error(conv: Any) -> None:
    with pytest.raises(TypeError, match=r"input float64.*weight float32"):
        conv(random(1, 3, 7, 5), random(4, 3, 3, 2).astype("float32"))


def test_integer_image_is_an_error_that_says_how_to_convert(conv: Any) -> None:
    with pytest.raises(TypeError, match=r"input .*uint8.*float"):
        conv(np.zeros((1, 3, 7, 5), np.uint8), random(4, 3, 3, 2))


def test_array_in_place_of_a_tensor_is_an_error(backend: str) -> None:
    with pytest.raises(TypeError, match=r"input .*Tensor.*ndarray"):
        F.conv2d(random(1, 3, 7, 5), gpucnn.tensor(random(4, 3, 3, 2), backend=backend))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "w", "b", "arguments", "error", "message"),
    [
        ((3, 4, 3), (3, 2, 3, 2), None, {}, ValueError, r"input .*\(3, 4, 3\)"),
        ((1, 3, 4, 3), (4, 2, 3, 2), None, {}, ValueError, r"3.*4|4.*3"),
        ((1, 4, 4, 3), (4, 2, 3, 2), None, {"groups": 3}, ValueError, r"groups.*3|4"),
        ((1, 3, 4, 3), (3, 2, 3, 2), (3,), {}, ValueError, r"bias .*\(2,\).*\(3,\)"),
        ((1, 3, 4, 3), (3, 2, 3, 2), None, {"output_padding": 1}, ValueError, r"output_padding.*1"),
        ((1, 3, 4, 3), (3, 2, 3, 2), None, {"stride": 2, "output_padding": -1}, ValueError, r"output_padding.*-1"),
        ((1, 3, 1, 1), (3, 2, 2, 2), None, {"padding": 1}, ValueError, r"padding"),
        ((1, 3, 4, 3), (3, 2, 3, 2), None, {"stride": 0}, ValueError, r"stride.*0"),
    ],
)
def test_wrong_arguments_of_a_transposed_convolution_are_shown(
    x: Any, w: Any, b: Any, arguments: Any, error: Any, message: str, backend: str
) -> None:
    tensors = [None if shape is None else gpucnn.tensor(random(*shape), backend=backend) for shape in (x, w, b)]
    with pytest.raises(error, match=message):
        F.conv_transpose2d(*tensors, **arguments)


# --- the activation that a convolution applies ------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "relu6", "sigmoid", "tanh"])
@pytest.mark.parametrize(
    ("x", "w", "arguments"),
    [
        ((2, 6, 5, 7), (5, 6, 3, 2), {"padding": 1}),
        ((2, 3, 7, 5), (4, 3, 1, 3), {"stride": 2}),
        ((1, 5, 6, 7), (5, 1, 3, 2), {"groups": 5}),
        ((2, 10, 4, 5), (4, 5, 2, 2), {"groups": 2}),
        ((1, 7, 4, 3), (3, 7, 1, 1), {}),
    ],
)
def test_an_activation_inside_gives_the_bits_of_the_activation_afterwards(
    x: tuple[int, ...], w: tuple[int, ...], arguments: dict[str, Any], activation: str, backend: str
) -> None:
    def run(inside: bool) -> list[bytes]:
        leaves = [
            gpucnn.tensor(2 * random(*shape), backend=backend, dtype="float32", requires_grad=True)
            for shape in (x, w, w[:1])
        ]
        y = F.conv2d(*leaves, **arguments, activation=activation if inside else None)
        y = y if inside else getattr(F, activation)(y)
        y.backward(gpucnn.tensor(random(*y.shape), backend=backend, dtype="float32"))
        return [np.ascontiguousarray(t.numpy()).tobytes() for t in (y, *(leaf.grad for leaf in leaves))]

    assert run(inside=True) == run(inside=False)


def test_an_activation_that_needs_its_input_is_refused_by_name(conv: Any) -> None:
    with pytest.raises(ValueError, match=r"activation must be one of 'relu', 'relu6', 'sigmoid', 'tanh', got 'gelu'"):
        conv(random(1, 1, 3, 3), random(1, 1, 2, 2), activation="gelu")


# --- the scale --------------------------------------------------------------------------------------------------------

SCALED = [((2, 6, 5, 7), (5, 6, 3, 2), 1), ((1, 5, 6, 7), (5, 1, 3, 2), 5), ((1, 7, 4, 3), (3, 7, 1, 1), 1)]


@pytest.mark.parametrize(("x", "w", "groups"), SCALED)
@pytest.mark.parametrize("bias", [True, False])
def test_a_scale_multiplies_the_sums_before_the_bias(
    x: tuple[int, ...], w: tuple[int, ...], groups: int, bias: bool, conv: Any, backend: str
) -> None:
    image, filters, shift, scale = random(*x), random(*w), random(w[0]) if bias else None, random(w[0], seed=5)
    got = conv(image, filters, shift, groups=groups, scale=gpucnn.tensor(scale, backend=backend))
    sums = conv(image, filters, groups=groups)
    expected = sums * scale[:, None, None] + (0 if shift is None else shift[:, None, None])
    assert_within(got, expected, 3 * U * (np.abs(sums * scale[:, None, None]) + 1))


def test_a_scale_is_learned_too(backend: str) -> None:
    leaves = [
        gpucnn.tensor(random(*s), backend=backend, requires_grad=True) for s in ((2, 3, 5, 4), (4, 3, 2, 2), (4,))
    ]
    x, w, scale = leaves
    dy = gpucnn.tensor(random(2, 4, 4, 3), backend=backend)
    F.conv2d(x, w, scale=scale).backward(dy)
    sums = F.conv2d(x.detach(), w.detach()).numpy()
    np.testing.assert_allclose(scale.grad.numpy(), (sums * dy.numpy()).sum(axis=(0, 2, 3)), rtol=1e-12)


def test_a_residual_of_another_shape_or_type_is_refused() -> None:
    x, w = gpucnn.tensor(random(1, 1, 3, 4)), gpucnn.tensor(random(2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"residual must have shape \(1, 2, 2, 3\) \(the output's\), got \(2, 1, 1\)"):
        F.conv2d(x, w, residual=gpucnn.tensor(random(2, 1, 1)))
    with pytest.raises(TypeError, match="input float64, residual float32"):
        F.conv2d(x, w, residual=gpucnn.tensor(random(1, 2, 2, 3)).float())


def test_a_scale_of_another_length_is_refused() -> None:
    x, w = gpucnn.tensor(random(1, 1, 3, 3)), gpucnn.tensor(random(2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"scale must have shape \(2,\) \(one per filter\), got \(3,\)"):
        F.conv2d(x, w, scale=gpucnn.tensor(random(3)))


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        ((3, 3), {"activation": "tanh", "max_pool": {"kernel_size": 2}}, r"must be one of 'relu', got 'tanh'"),
        ((3, 3), {"max_pool": {"kernel_size": 16}}, r"window \(16, 16\) may have 255 elements at most.*after conv2d"),
        ((46, 45), {"max_pool": {"kernel_size": 1}}, r"a filter \(2, 46, 45\) 4096; use max_pool2d after conv2d"),
        ((3, 3), {"max_pool": {"kernel_size": 2, "padding": 2}}, r"max_pool2d: padding .* must be at most half"),
        ((3, 3), {"max_pool": {"kernel_size": (49, 2)}}, r"a window of height 49 does not fit"),
        ((60, 3), {"max_pool": {"kernel_size": 2}}, r"a window of height 60 does not fit"),
    ],
)
def test_a_pooled_convolution_that_cannot_be_is_refused(
    kernel: tuple[int, int], arguments: dict[str, Any], message: str, backend: str
) -> None:
    x, w = gpucnn.zeros(1, 2, 50, 51).to(backend), gpucnn.zeros(3, 2, *kernel).to(backend)
    with pytest.raises(ValueError, match=message):
        F.conv2d_max_pool2d(x, w, **arguments)
