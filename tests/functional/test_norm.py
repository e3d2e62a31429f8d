"""Normalisation. Group, layer and local response norm of every case are in test_every_op.py, as is instance norm; what
batch norm and running statistics do is here."""

from typing import Any

import numpy as np
import pytest
import reference
from numerics import Array, assert_within, check_gradients, unit_roundoff

import gpucnn
from functional.cases import random, uniform
from gpucnn import Tensor
from gpucnn import functional as F

SHAPES = [(4, 3), (3, 4, 5, 2), (2, 1, 3, 4), (1, 5, 1, 7), (7, 17), (2, 3, 1, 1)]


def statistics(channels: int) -> tuple[Array, Array]:
    return random(channels, seed=3), uniform(channels, low=0.5, high=2.0, seed=4)


def parameters(channels: int) -> tuple[Array, Array]:
    return random(channels, seed=1), random(channels, seed=2)


def tensors(backend: str, *arrays: Array | None) -> list[Tensor | None]:
    return [None if array is None else gpucnn.tensor(array, backend=backend) for array in arrays]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_norm_and_its_running_statistics_are_the_scalar_loops(
    shape: tuple[int, ...], training: bool, affine: bool, dtype: str, backend: str
) -> None:
    x = (random(*shape) + 0.5).astype(dtype)
    arrays = [a.astype(dtype) for a in statistics(shape[1])]
    arrays += [a.astype(dtype) for a in parameters(shape[1])] if affine else []
    y, mean, variance = reference.batch_norm(x, *arrays, training=training, momentum=0.3, eps=1e-3)
    given = tensors(backend, *arrays) + ([] if affine else [None, None])
    result = F.batch_norm(gpucnn.tensor(x, backend=backend), *given, training=training, momentum=0.3, eps=1e-3)
    assert mean is not None
    assert variance is not None
    assert given[0] is not None
    assert given[1] is not None
    count = x.size // shape[1]
    axes = tuple(i for i in range(x.ndim) if i != 1)
    deviation = np.sqrt((x.astype(float).var(axes) if training else arrays[1]) + 1e-3)
    largest = float(np.max((2 * np.abs(x).max(axes) + np.abs(arrays[0])) / deviation))
    scale = largest * float(np.abs(arrays[2]).max()) + float(np.abs(arrays[3]).max()) if affine else largest
    # x − mean is off by count · u · max|x|; where a channel varies little that weighs more in the deviation, too.
    amplified = 1 + float(np.max(np.abs(x).max(axes) / deviation))
    assert result.dtype == dtype
    assert_within(result.numpy(), y, (count + 16) * unit_roundoff(dtype) * scale * amplified)
    for ours, theirs in ((given[0], mean), (given[1], variance)):
        assert_within(ours.numpy(), theirs, (count + 16) * unit_roundoff(dtype) * float(np.abs(x).max() + 1) ** 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_of_batch_norm_agree_with_finite_differences(
    shape: tuple[int, ...], training: bool, affine: bool, backend: str
) -> None:
    mean, variance = statistics(shape[1])

    def batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return F.batch_norm(x, *tensors(backend, mean, variance), weight, bias, training, eps=1e-2)

    check_gradients(batch_norm, [random(*shape), *(parameters(shape[1]) if affine else ())], backend)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_agrees_with_pytorch(shape: tuple[int, ...], training: bool, backend: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare batch norm with")
    arrays = [random(*shape), *statistics(shape[1]), *parameters(shape[1])]
    u = random(*shape, seed=9)
    theirs = [torch.tensor(array, requires_grad=i in (0, 3, 4)) for i, array in enumerate(arrays)]
    expected = torch.nn.functional.batch_norm(*theirs, training=training)
    expected.backward(torch.tensor(u))
    ours = [gpucnn.tensor(array, requires_grad=i in (0, 3, 4), backend=backend) for i, array in enumerate(arrays)]
    y = F.batch_norm(*ours, training=training)
    y.backward(gpucnn.tensor(u, backend=backend))
    pairs: list[tuple[Any, Any]] = [(y, expected.detach()), (ours[1], theirs[1]), (ours[2], theirs[2])]
    pairs += [(ours[i].grad, theirs[i].grad) for i in (0, 3, 4)]
    for mine, other in pairs:
        assert_within(
            mine.numpy(), other.numpy(), 2**12 * unit_roundoff("float64") * float(np.abs(arrays[0]).max() + 1)
        )


def test_statistics_given_for_evaluation_may_change_before_the_backward_pass(backend: str) -> None:
    """A training step between forward and backward moves the running statistics in place."""
    mean, variance = tensors(backend, np.array([1.0]), np.array([4.0]))
    x = gpucnn.tensor(np.array([[3.0], [5.0]]), requires_grad=True, backend=backend)
    y = F.batch_norm(x, mean, variance, eps=0.0)
    F.batch_norm(gpucnn.tensor(np.array([[100.0], [900.0]]), backend=backend), mean, variance, training=True)
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [[0.5], [0.5]])


def test_weight_gradient_in_evaluation_uses_the_mean_of_the_forward_pass(backend: str) -> None:
    mean, variance = tensors(backend, np.array([1.0]), np.array([4.0]))
    weight = gpucnn.tensor(np.array([1.0]), requires_grad=True, backend=backend)
    y = F.batch_norm(gpucnn.tensor(np.array([[3.0], [7.0]]), backend=backend), mean, variance, weight, eps=0.0)
    F.batch_norm(gpucnn.tensor(np.array([[100.0], [900.0]]), backend=backend), mean, variance, training=True)
    y.sum().backward()
    assert weight.grad is not None
    np.testing.assert_array_equal(weight.grad.numpy(), [4.0])


def test_normalised_channels_have_mean_zero_and_variance_one(backend: str) -> None:
    y = F.batch_norm(gpucnn.tensor(random(4, 3, 5, 7), backend=backend), None, None, training=True, eps=0.0).numpy()
    assert_within(y.mean((0, 2, 3)), np.zeros(3), 1e-14)
    assert_within(y.var((0, 2, 3)), np.ones(3), 1e-14)


def test_float32_batch_norm_is_sound_where_the_mean_dwarfs_the_deviation(backend: str) -> None:
    """The mean, rounded to float32, is off by u · 1000; what else is rounded has the size of the deviation, 1."""
    x = (1000 + random(8, 2, 31, 33)).astype(np.float32)
    y = F.batch_norm(gpucnn.tensor(x, backend=backend), None, None, training=True).numpy()
    wide = x.astype(np.float64)
    expected = (wide - wide.mean((0, 2, 3), keepdims=True)) / np.sqrt(wide.var((0, 2, 3), keepdims=True) + 1e-5)
    assert_within(y, expected, 4 * unit_roundoff("float32") * 1000)


def test_constant_channel_becomes_its_bias(backend: str) -> None:
    x = np.full((2, 3, 4, 5), 7.0, np.float32)
    arrays = tensors(backend, None, None, np.ones(3, np.float32), np.array([1, 2, 3], np.float32))
    y = F.batch_norm(gpucnn.tensor(x, backend=backend), *arrays, training=True)
    np.testing.assert_array_equal(y.numpy(), np.broadcast_to(np.array([1, 2, 3.0])[:, None, None], x.shape))


def test_nan_in_one_channel_stays_in_that_channel(backend: str) -> None:
    x = random(2, 3, 4, 5)
    x[0, 1, 2, 3] = np.nan
    tensor = gpucnn.tensor(x, requires_grad=True, backend=backend)
    y = F.batch_norm(tensor, None, None, training=True)
    y.sum().backward()
    assert tensor.grad is not None
    for array in (y.numpy(), tensor.grad.numpy()):
        assert np.isnan(array[:, 1]).all()
        assert np.isfinite(array[:, [0, 2]]).all()


def test_evaluation_leaves_the_running_statistics_alone(backend: str) -> None:
    mean, variance = tensors(backend, *statistics(3))
    F.batch_norm(gpucnn.tensor(random(4, 3, 2, 2), backend=backend), mean, variance)
    assert mean is not None
    assert variance is not None
    np.testing.assert_array_equal(mean.numpy(), statistics(3)[0])
    np.testing.assert_array_equal(variance.numpy(), statistics(3)[1])


def test_evaluation_of_no_images_gives_no_images(backend: str) -> None:
    y = F.batch_norm(gpucnn.tensor(random(0, 3, 2, 2), backend=backend), *tensors(backend, *statistics(3)))
    assert y.shape == (0, 3, 2, 2)


PLANES = [(3, 4, 5, 2), (1, 5, 1, 7), (4, 3, 6)]


@pytest.mark.parametrize("shape", PLANES)
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_running_statistics_of_instance_norm_are_the_scalar_loops(
    shape: tuple[int, ...], own: bool, dtype: str, backend: str
) -> None:
    x = (random(*shape) + 0.5).astype(dtype)
    arrays = [a.astype(dtype) for a in (*statistics(shape[1]), *parameters(shape[1]))]
    _, mean, variance = reference.instance_norm(x, *arrays, own, 0.3)
    given = tensors(backend, *arrays)
    F.instance_norm(gpucnn.tensor(x, backend=backend), *given, own, 0.3)
    for ours, theirs in ((given[0], mean), (given[1], variance)):
        assert ours is not None
        assert theirs is not None
        terms = x.size // shape[1] + 16
        assert_within(ours.numpy(), theirs, terms * unit_roundoff(dtype) * float(np.abs(x).max() + 1) ** 2)


@pytest.mark.parametrize("shape", PLANES)
@pytest.mark.parametrize("own", [True, False])
def test_instance_norm_agrees_with_pytorch(shape: tuple[int, ...], own: bool, backend: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare instance norm with")
    arrays = [random(*shape), *statistics(shape[1]), *parameters(shape[1])]
    u = random(*shape, seed=9)
    theirs = [torch.tensor(array, requires_grad=i in (0, 3, 4)) for i, array in enumerate(arrays)]
    expected = torch.nn.functional.instance_norm(*theirs, use_input_stats=own)
    expected.backward(torch.tensor(u))
    ours = [gpucnn.tensor(array, requires_grad=i in (0, 3, 4), backend=backend) for i, array in enumerate(arrays)]
    y = F.instance_norm(*ours, use_input_stats=own)
    y.backward(gpucnn.tensor(u, backend=backend))
    pairs: list[tuple[Any, Any]] = [(y, expected.detach()), (ours[1], theirs[1]), (ours[2], theirs[2])]
    pairs += [(ours[i].grad, theirs[i].grad) for i in (0, 3, 4)]
    for mine, other in pairs:
        assert_within(
            mine.numpy(), other.numpy(), 2**12 * unit_roundoff("float64") * float(np.abs(arrays[0]).max() + 1)
        )


def test_instance_norm_of_one_image_is_its_batch_norm(backend: str) -> None:
    x = gpucnn.tensor(random(1, 4, 3, 5), backend=backend)
    expected = F.batch_norm(x, None, None, training=True).numpy()
    assert_within(F.instance_norm(x).numpy(), expected, 1e-13)


def test_no_images_leave_the_running_statistics_alone(backend: str) -> None:
    mean, variance = tensors(backend, *statistics(3))
    y = F.instance_norm(gpucnn.tensor(random(0, 3, 4, 2), backend=backend), mean, variance)
    assert y.shape == (0, 3, 4, 2)
    assert mean is not None
    assert variance is not None
    np.testing.assert_array_equal([mean.numpy(), variance.numpy()], statistics(3))


def test_float32_instance_norm_is_sound_where_the_mean_dwarfs_the_deviation(backend: str) -> None:
    """The mean, rounded to float32, is off by u · 1000; what else is rounded has the size of the deviation, 1."""
    x = (1000 + random(2, 3, 31, 33)).astype(np.float32)
    y = F.instance_norm(gpucnn.tensor(x, backend=backend)).numpy()
    wide = x.astype(np.float64)
    expected = (wide - wide.mean((2, 3), keepdims=True)) / np.sqrt(wide.var((2, 3), keepdims=True) + 1e-5)
    assert_within(y, expected, 4 * unit_roundoff("float32") * 1000)


def test_nan_in_one_channel_of_an_image_stays_there(backend: str) -> None:
    x = random(2, 3, 4, 5)
    x[0, 1, 2, 3] = np.nan
    tensor = gpucnn.tensor(x, requires_grad=True, backend=backend)
    y = F.instance_norm(tensor)
    y.sum().backward()
    assert tensor.grad is not None
    expected = np.zeros(x.shape, bool)
    expected[0, 1] = True
    for array in (y.numpy(), tensor.grad.numpy()):
        np.testing.assert_array_equal(np.isnan(array), expected)


def test_group_norm_of_one_group_is_layer_norm_of_the_image(backend: str) -> None:
    x = gpucnn.tensor(random(2, 4, 3, 5), backend=backend)
    assert_within(F.group_norm(x, 1).numpy(), F.layer_norm(x, (4, 3, 5)).numpy(), 1e-13)


def test_local_response_norm_of_a_hand_made_pixel(backend: str) -> None:
    """size 2 looks one channel back and none ahead: 1 + 2·(0 + 3²)/2 = 10 and 1 + 2·(3² + 4²)/2 = 26."""
    x = gpucnn.tensor(np.array([3.0, 4.0]).reshape(1, 2, 1, 1), backend=backend)
    y = F.local_response_norm(x, 2, alpha=2.0, beta=1.0, k=1.0)
    assert_within(y.numpy().ravel(), np.array([3 / 10, 4 / 26]), 1e-15)


@pytest.mark.parametrize(
    ("op", "shape", "arguments", "error", "message"),
    [
        (
            "batch_norm",
            (2, 3, 4, 5, 6),
            (None, None, None, None, True),
            ValueError,
            r"\[N, C, H, W\].*\(2, 3, 4, 5, 6\)",
        ),
        (
            "batch_norm",
            (1, 3, 1, 1),
            (None, None, None, None, True),
            ValueError,
            r"more than one value.*\(1, 3, 1, 1\)",
        ),
        ("batch_norm", (1, 3), (None, None, None, None, True), ValueError, r"more than one value.*\(1, 3\)"),
        ("batch_norm", (2, 3), (None, None), ValueError, r"running_mean.*running_var"),
        ("batch_norm", (2, 3), ((4,), (3,)), ValueError, r"running_mean .*\(3,\).*\(4,\)"),
        ("batch_norm", (2, 3), ((3,), (3,), (1, 3)), ValueError, r"weight .*\(3,\).*\(1, 3\)"),
        (
            "batch_norm",
            (2, 3),
            (None, None, None, None, True, 0.1, 1e-5, (2, 4)),
            ValueError,
            r"residual must have shape \(2, 3\) \(the input's\), got \(2, 4\)",
        ),
        (
            "batch_norm",
            (2, 3),
            (None, None, None, None, True, 0.1, 1e-5, None, "gelu"),
            ValueError,
            r"activation must be one of 'relu', 'relu6', 'sigmoid', 'tanh', got 'gelu'",
        ),
        ("instance_norm", (2, 3), (), ValueError, r"at least 3 axes.*\(2, 3\)"),
        ("instance_norm", (2, 3, 1, 1), (), ValueError, r"more than one value.*\(2, 3, 1, 1\)"),
        ("instance_norm", (2, 3, 4), ((3,), None), ValueError, r"running_mean and running_var must be given together"),
        (
            "instance_norm",
            (2, 3, 4),
            (None, None, None, None, False),
            ValueError,
            r"use_input_stats=False, running_mean.*running_var",
        ),
        ("instance_norm", (2, 3, 4), (None, None, (1, 3)), ValueError, r"weight .*\(3,\).*\(1, 3\)"),
        ("group_norm", (2, 6, 3), (4,), ValueError, r"num_groups=4.*6"),
        ("group_norm", (2, 6, 3), (0,), ValueError, r"num_groups=0.*6"),
        ("group_norm", (6,), (2,), ValueError, r"\(6,\)"),
        ("group_norm", (2, 6, 3), (2, (3,)), ValueError, r"weight .*\(6,\).*\(3,\)"),
        ("layer_norm", (2, 6, 3), ([6],), ValueError, r"\(6,\).*\(2, 6, 3\)"),
        ("layer_norm", (2, 6, 3), ([],), ValueError, r"normalized_shape \(\)"),
        ("layer_norm", (2, 6, 3), ([3], (6,)), ValueError, r"weight .*\(3,\).*\(6,\)"),
        ("local_response_norm", (2, 6), (3,), ValueError, r"\(2, 6\)"),
        ("local_response_norm", (2, 6, 3), (0,), ValueError, r"size.*0"),
    ],
)
def test_wrong_arguments_are_shown(
    op: str, shape: Any, arguments: Any, error: type[Exception], message: str, backend: str
) -> None:
    given = [gpucnn.tensor(np.ones(a), backend=backend) if isinstance(a, tuple) else a for a in arguments]
    with pytest.raises(error, match=message):
        getattr(F, op)(gpucnn.tensor(random(*shape), backend=backend), *given)


def test_float64_statistics_for_a_float32_image_are_an_error(backend: str) -> None:
    x = gpucnn.tensor(random(2, 3).astype(np.float32), backend=backend)
    with pytest.raises(TypeError, match=r"input float32.*running_mean float64"):
        F.batch_norm(x, *tensors(backend, *statistics(3)))
