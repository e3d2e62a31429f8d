"""Sizes at which a backend cuts its work into blocks, threads and special cases, which the small shapes never reach.

The scalar loops would take minutes here. The second opinion is shift-and-add: one product for each tap of the filter,
one comparison for each tap of the window, in float64. It agrees with the scalar loops on small shapes (tested below).
"""

import functools
from typing import Any

import numpy as np
import pytest
import reference
from numerics import Array, assert_within, unit_roundoff, value_and_gradients

import gpucnn
from functional.cases import random
from functional.test_activation import ACTIVATIONS
from gpucnn import functional as F

CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((34, 16, 40, 37), (24, 16, 3, 3), {"padding": (1, 1, 1, 1)}),
    ((1, 32, 120, 111), (16, 32, 3, 3), {"padding": (1, 1, 1, 1)}),
    ((120, 3, 24, 21), (16, 3, 5, 4), {"stride": (2, 1), "padding": (2, 2, 1, 1)}),
    ((40, 1, 64, 60), (8, 1, 5, 5), {"padding": (2, 2, 2, 2)}),
    ((2, 128, 6, 5), (192, 128, 3, 3), {"padding": (1, 1, 1, 1)}),
    ((12, 24, 30, 29), (36, 8, 3, 3), {"groups": 3, "stride": (2, 1)}),
    ((6, 48, 40, 33), (48, 1, 3, 5), {"groups": 48, "stride": (1, 2), "padding": (1, 1, 2, 2)}),
    ((15, 32, 28, 27), (64, 32, 1, 1), {}),
    ((5, 32, 57, 55), (64, 32, 1, 1), {"stride": (2, 2)}),
    ((40, 16, 14, 13), (64, 16, 14, 13), {}),
    ((8, 16, 40, 41), (16, 16, 3, 3), {"dilation": (3, 2), "padding": (2, 3, 1, 4)}),
    ((9, 8, 50, 47), (12, 8, 4, 3), {"stride": (4, 3), "dilation": (2, 3), "padding": (3, 0, 0, 2)}),
]
SMALL: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 4, 7, 6), (6, 2, 3, 2), {"groups": 2, "stride": (2, 1), "padding": (1, 2, 0, 3), "dilation": (1, 2)}),
    ((1, 3, 5, 4), (2, 3, 2, 3), {}),
]


def grouped(array: Array, groups: int, axis: int) -> Array:
    shape = array.shape
    return array.astype(np.float64).reshape(*shape[:axis], groups, -1, *shape[axis + 1 :])


def shift_and_add(
    x: Array,
    w: Array,
    dy: Array | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    """(y, dx, dw) of a convolution, tap by tap; the gradients are those of <dy, y>, of Σ y where dy is None."""
    top, bottom, left, right = padding
    frame = grouped(np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right))), groups, 1)
    filters = grouped(w, groups, 0)
    rows, columns = w.shape[2:]
    p = (frame.shape[3] - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    q = (frame.shape[4] - dilation[1] * (columns - 1) - 1) // stride[1] + 1
    y = np.zeros((x.shape[0], groups, filters.shape[1], p, q))
    u = np.ones_like(y) if dy is None else grouped(dy, groups, 1)
    dframe, dfilters = np.zeros_like(frame), np.zeros_like(filters)
    for r, s in np.ndindex(rows, columns):
        under = (..., slice(r * dilation[0], None, stride[0]), slice(s * dilation[1], None, stride[1]))
        pixels, dpixels = frame[under][..., :p, :q], dframe[under][..., :p, :q]
        y += np.einsum("ngchw,gkc->ngkhw", pixels, filters[..., r, s], optimize=True)
        dpixels += np.einsum("ngkhw,gkc->ngchw", u, filters[..., r, s], optimize=True)
        dfilters[..., r, s] = np.einsum("ngkhw,ngchw->gkc", u, pixels, optimize=True)
    plane = dframe.reshape(x.shape[0], x.shape[1], *frame.shape[3:])
    dx = plane[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return y.reshape(x.shape[0], w.shape[0], p, q), dx, dfilters.reshape(w.shape)


@pytest.mark.parametrize(("x", "w", "arguments"), SMALL)
def test_shift_and_add_is_the_scalar_loops_and_their_transpose(x: Any, w: Any, arguments: dict[str, Any]) -> None:
    image, filters = random(*x), random(*w, seed=1)
    expected = reference.conv2d(image, filters, **arguments)
    dy = random(*expected.shape, seed=2)
    y, dx, dw = shift_and_add(image, filters, dy, **arguments)
    assert_within(y, expected, 1e-13)
    for i in range(5):
        v = random(*x, seed=10 + i)
        assert np.vdot(dx, v) == pytest.approx(np.vdot(dy, reference.conv2d(v, filters, **arguments)), abs=1e-11)
        v = random(*w, seed=20 + i)
        assert np.vdot(dw, v) == pytest.approx(np.vdot(dy, reference.conv2d(image, v, **arguments)), abs=1e-11)


def convolved(number: int, dtype: str, backend: str) -> tuple[list[Array], Array, list[Array]]:
    """CONVOLUTIONS[number] forward and backward: [y, dx, dw, db], the cotangent of y, and the arrays."""
    x, w, arguments = CONVOLUTIONS[number]
    arrays = [random(*x).astype(dtype), random(*w, seed=1).astype(dtype), random(w[0], seed=2).astype(dtype)]
    y, u, gradients = value_and_gradients(lambda *t: F.conv2d(*t, **arguments), arrays, backend)
    return [y, *gradients], u, arrays


kept = functools.cache(convolved)
every_convolution = pytest.mark.parametrize("number", range(len(CONVOLUTIONS)), ids=[f"{c[0]}" for c in CONVOLUTIONS])


@every_convolution
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_convolution_and_its_gradients_are_shift_and_add(number: int, dtype: str, backend: str) -> None:
    (y, *gradients), u, arrays = (kept if dtype == "float32" else convolved)(number, dtype, backend)
    arguments = CONVOLUTIONS[number][2]
    x, w, b = (array.astype(np.float64) for array in arrays)
    bias = b[:, None, None]
    expected, dx, dw = shift_and_add(x, w, u, **arguments)
    sizes, dx_sizes, dw_sizes = shift_and_add(np.abs(x), np.abs(w), np.abs(u), **arguments)
    unit, outputs = unit_roundoff(dtype), y.shape[0] * y.shape[2] * y.shape[3]
    assert_within(y, expected + bias, (np.prod(w.shape[1:]) + 2) * unit * (sizes + np.abs(bias)))
    assert_within(gradients[0], dx, (w.shape[0] * w.shape[2] * w.shape[3] + 2) * unit * dx_sizes)
    assert_within(gradients[1], dw, (outputs + 2) * unit * dw_sizes)
    db, db_sizes = u.astype(np.float64).sum((0, 2, 3)), np.abs(u).sum((0, 2, 3), dtype=np.float64)
    assert_within(gradients[2], db, (outputs + 2) * unit * db_sizes)


@every_convolution
def test_large_convolution_gives_equal_bits_twice(number: int, backend: str) -> None:
    for ours, theirs in zip(convolved(number, "float32", backend)[0], kept(number, "float32", backend)[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


POOLINGS = [((2, 2), (2, 2), (0, 0)), ((3, 2), (2, 1), (1, 1)), ((4, 5), (3, 6), (2, 0))]


def windows(x: Array, kernel: Any, stride: Any, padding: Any, fill: float) -> Array:
    """[N, C, P, Q, R·S]: the elements under each window."""
    frame = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2), constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(frame, kernel, (2, 3))[:, :, :: stride[0], :: stride[1]]
    return views.reshape(*views.shape[:4], -1)


@pytest.mark.parametrize(("kernel", "stride", "padding"), POOLINGS)
@pytest.mark.parametrize(("op", "worst"), [("max_pool2d", -np.inf), ("min_pool2d", np.inf)])
@pytest.mark.parametrize("special", [None, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(5, 16, 64, 61), (2, 16, 261, 129)])
def test_large_extremes_and_their_gradients(
    shape: Any, kernel: Any, stride: Any, padding: Any, op: str, worst: float, special: float | None, backend: str
) -> None:
    """Small integers are full of ties; `special` is one element of the last image."""
    x = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)
    if special is not None:
        x[-1, 7, 31, 9] = special
    under = windows(x, kernel, stride, padding, worst)
    with np.errstate(invalid="ignore"):
        taps = under.argmax(-1) if op == "max_pool2d" else under.argmin(-1)
    expected = np.take_along_axis(under, taps[..., None], -1)[..., 0]
    y, u, (dx,) = value_and_gradients(lambda t: getattr(F, op)(t, kernel, stride, padding), [x], backend)
    assert_within(y, expected.astype(np.float64), 0.0)
    n, c, p, q = np.indices(taps.shape)
    rows, columns = p * stride[0] + taps // kernel[1], q * stride[1] + taps % kernel[1]
    frame = np.zeros((*shape[:2], shape[2] + 2 * padding[0], shape[3] + 2 * padding[1]), np.float32)
    np.add.at(frame, (n, c, rows, columns), u)
    inside = frame[:, :, padding[0] : padding[0] + shape[2], padding[1] : padding[1] + shape[3]]
    np.testing.assert_array_equal(dx, inside)
    without_tape = getattr(F, op)(gpucnn.tensor(x, backend=backend), kernel, stride, padding)
    np.testing.assert_array_equal(without_tape.numpy(), y)


@pytest.mark.parametrize(("kernel", "stride", "padding"), POOLINGS)
@pytest.mark.parametrize("include", [True, False])
def test_large_averages_and_their_gradients(
    kernel: Any, stride: Any, padding: Any, include: bool, backend: str
) -> None:
    x = random(5, 16, 64, 61)
    under = windows(x, kernel, stride, padding, 0.0)
    real = windows(np.ones((1, 1, 64, 61)), kernel, stride, padding, 0.0).sum(-1)
    divisor = np.full_like(real, under.shape[-1]) if include else real
    y, u, (dx,) = value_and_gradients(
        lambda t: F.avg_pool2d(t, kernel, stride, padding, count_include_pad=include), [x], backend
    )
    bound = (under.shape[-1] + 2) * unit_roundoff("float64")
    assert_within(y, under.sum(-1) / divisor, bound * np.abs(under).sum(-1) / divisor)
    v = random(*x.shape, seed=4)
    expected = np.sum(u * windows(v, kernel, stride, padding, 0.0).sum(-1) / divisor)
    assert np.vdot(dx, v) == pytest.approx(
        expected, abs=x.size * unit_roundoff("float64") * float(np.abs(dx * v).sum())
    )


@pytest.mark.parametrize("op", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(7, 30011), (3, 5, 130, 107)])
def test_large_activation_is_the_activation_of_its_pieces(op: str, shape: Any, backend: str) -> None:
    x = 3 * random(*shape).astype(np.float32)
    x.flat[-1] = np.nan

    def activated(t: Any) -> Any:
        return getattr(F, op)(t, **ACTIVATIONS[op])

    y, u, (dx,) = value_and_gradients(activated, [x], backend)
    for i in range(shape[0]):
        piece = gpucnn.tensor(x[i, ..., :100], requires_grad=True, backend=backend)
        result = activated(piece)
        result.backward(gpucnn.tensor(u[i, ..., :100], backend=backend))
        assert piece.grad is not None
        bound = 8 * unit_roundoff("float32") * 16
        assert_within(y[i, ..., :100], result.numpy().astype(np.float64), bound)
        assert_within(dx[i, ..., :100], piece.grad.numpy().astype(np.float64), 4 * bound)
    assert np.isnan(y.flat[-1])
    assert np.isnan(y).sum() == 1


@pytest.mark.parametrize("shape", [(6, 5, 70, 61), (2, 1, 301, 311), (90001, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_large_batch_norm_and_its_gradients(shape: tuple[int, ...], training: bool, backend: str) -> None:
    x, axes = random(*shape), tuple(i for i in range(len(shape)) if i != 1)
    across = (-1, *(1,) * (len(shape) - 2))
    weight, bias = random(shape[1], seed=1), random(shape[1], seed=2)
    mean, variance = random(shape[1], seed=3), np.abs(random(shape[1], seed=4)) + 0.5
    statistics = [gpucnn.tensor(array, backend=backend) for array in (mean, variance)]
    y, u, (dx, dw, db) = value_and_gradients(
        lambda t, w, b: F.batch_norm(t, *statistics, w, b, training, eps=0.0), [x, weight, bias], backend
    )
    if training:
        mean, variance = x.mean(axes), x.var(axes)
    normal = (x - mean.reshape(across)) / np.sqrt(variance).reshape(across)
    du = u * weight.reshape(across) / np.sqrt(variance).reshape(across)
    if training:
        du -= du.mean(axes, keepdims=True) + normal * (du * normal).mean(axes, keepdims=True)
    bound = x.size * unit_roundoff("float64")
    assert_within(y, normal * weight.reshape(across) + bias.reshape(across), bound * 8)
    assert_within(dx, du, bound * 64)
    assert_within(dw, (u * normal).sum(axes), bound * np.abs(u * normal).sum(axes))
    assert_within(db, u.sum(axes), bound * np.abs(u).sum(axes))
