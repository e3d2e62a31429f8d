"""Convolution and pooling of signals: of images of one row, whose own tests are elsewhere, and NumPy's own formulas."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numerics import check_gradients

import gpucnn
from functional.cases import random
from gpucnn import Tensor, nn
from gpucnn import functional as F

Array = np.ndarray[Any, Any]
# Arguments, and the shapes of input and weight; for the transpose those of the output and the same weight.
CONVOLUTIONS: list[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = [
    ({}, (2, 3, 9), (4, 3, 3)),
    ({"stride": 2, "padding": 2, "dilation": 2}, (2, 3, 9), (4, 3, 3)),
    ({"stride": (3,), "padding": (1,), "groups": 2}, (1, 4, 10), (6, 2, 4)),
    ({"padding": (4, 0), "dilation": (2,)}, (2, 3, 7), (2, 3, 3)),
    ({"padding": "same"}, (2, 1, 6), (1, 1, 4)),
    ({"padding": "valid"}, (1, 1, 3), (1, 1, 3)),
    ({}, (0, 2, 5), (3, 2, 2)),
]


def summed(x: Array, w: Array, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Array:
    """Convolution by its definition: for each output the sum over the window."""
    (stride, dilation), taps = (v[0] if isinstance(v, tuple) else v for v in (stride, dilation)), w.shape[2]
    if isinstance(padding, str):
        missing = dilation * (taps - 1) if padding == "same" else 0
        padding = (missing // 2, missing - missing // 2)
    sides = padding if isinstance(padding, tuple) and len(padding) == 2 else (np.ravel(padding)[0],) * 2
    x = np.pad(x, ((0, 0), (0, 0), sides))
    count, depth = (x.shape[2] - dilation * (taps - 1) - 1) // stride + 1, w.shape[1]
    y = np.zeros((len(x), len(w), count))
    for k in range(len(w)):
        first = k // (len(w) // groups) * depth
        for q in range(count):
            places = q * stride + dilation * np.arange(taps)
            y[:, k, q] = (x[:, first : first + depth, places] * w[k]).sum((1, 2))
    return y


@pytest.mark.parametrize(("arguments", "shape", "weight"), CONVOLUTIONS)
def test_conv1d_is_its_definition(arguments: Any, shape: Any, weight: Any, backend: str) -> None:
    x, w, b = random(*shape), random(*weight, seed=1), random(weight[0], seed=2)
    y = F.conv1d(*(gpucnn.tensor(v, backend=backend) for v in (x, w, b)), **arguments)
    np.testing.assert_allclose(y.numpy(), summed(x, w, **arguments) + b[:, None], rtol=1e-12, atol=1e-12)
    assert y.backend.name == backend


@pytest.mark.parametrize(("arguments", "shape", "weight"), CONVOLUTIONS[:3])
def test_conv1d_has_the_gradients_of_its_definition(arguments: Any, shape: Any, weight: Any, backend: str) -> None:
    arrays = [random(*shape), random(*weight, seed=1), random(weight[0], seed=2)]
    check_gradients(lambda x, w, b: F.conv1d(x, w, b, **arguments), arrays, backend)


def test_a_causal_convolution_sees_no_later_element(backend: str) -> None:
    x, w = random(1, 2, 8), random(3, 2, 3)
    y, later = (F.conv1d(gpucnn.tensor(v, backend=backend), gpucnn.tensor(w, backend=backend), padding=(2, 0))
                for v in (x, np.where(np.arange(8) > 4, 9.0, x)))  # fmt: skip
    np.testing.assert_array_equal(y[:, :, :5].numpy(), later[:, :, :5].numpy())
    assert (y[:, :, 5:].numpy() != later[:, :, 5:].numpy()).all()


@pytest.mark.parametrize(
    "arguments",
    [{}, {"stride": 3, "padding": (1,), "output_padding": 2}, {"stride": (2,), "dilation": 2, "groups": 2}],
)
def test_conv_transpose1d_is_the_adjoint_of_conv1d(arguments: Any, backend: str) -> None:
    """<conv1d(x), y> = <x, conv_transpose1d(y)>."""
    w, y = random(4, 4 // arguments.get("groups", 1), 3), random(2, 4, 5, seed=1)
    back = F.conv_transpose1d(gpucnn.tensor(y, backend=backend), gpucnn.tensor(w, backend=backend), **arguments)
    x = random(*back.shape, seed=2)
    forward = summed(x, w, **{name: value for name, value in arguments.items() if name != "output_padding"})
    np.testing.assert_allclose((forward * y).sum(), (x * back.numpy()).sum(), rtol=1e-12)


def test_conv_transpose1d_has_a_bias_and_gradients(backend: str) -> None:
    arrays = [random(2, 4, 5), random(4, 2, 3, seed=1), random(4, seed=2)]
    y = F.conv_transpose1d(*(gpucnn.tensor(v, backend=backend) for v in arrays), 2, groups=2)
    plain = F.conv_transpose1d(*(gpucnn.tensor(v, backend=backend) for v in arrays[:2]), None, 2, groups=2)
    np.testing.assert_allclose(y.numpy() - plain.numpy(), np.tile(arrays[2][:, None], (2, 1, 11)), atol=1e-12)
    check_gradients(lambda x, w, b: F.conv_transpose1d(x, w, b, 2, 1, 1, 2), arrays, backend)


def windows(x: Array, size: int, stride: int, padding: int, filler: float) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding)), constant_values=filler)
    return np.lib.stride_tricks.sliding_window_view(padded, size, 2)[:, :, ::stride]


def test_max_pool1d_gives_the_largest_of_each_window_and_its_place(backend: str) -> None:
    x = random(2, 3, 11)
    y, places = F.max_pool1d(gpucnn.tensor(x, backend=backend), 3, 2, 1, return_indices=True)
    np.testing.assert_array_equal(y.numpy(), windows(x, 3, 2, 1, -np.inf).max(3))
    np.testing.assert_array_equal(np.take_along_axis(x, places.numpy(), 2), y.numpy())
    np.testing.assert_array_equal(
        F.max_pool1d(gpucnn.tensor(x, backend=backend), (2,), dilation=(3,)).numpy(),
        np.maximum(x[:, :, :-3], x[:, :, 3:])[:, :, ::2],
    )


def test_avg_pool1d_divides_by_the_window_or_by_what_is_real(backend: str) -> None:
    x = random(2, 3, 11)
    sums = windows(x, 3, 2, 1, 0).sum(3)
    real = windows(np.ones_like(x), 3, 2, 1, 0).sum(3)
    t = gpucnn.tensor(x, backend=backend)
    np.testing.assert_allclose(F.avg_pool1d(t, 3, 2, 1).numpy(), sums / 3, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(F.avg_pool1d(t, 3, 2, 1, False, False).numpy(), sums / real, rtol=1e-12, atol=1e-15)
    assert F.avg_pool1d(t, 2, 2).shape == (2, 3, 5)
    assert F.avg_pool1d(t, 2, 2, ceil_mode=True).shape == (2, 3, 6)


@pytest.mark.parametrize("length", [1, 4, 5, 11])
def test_adaptive_pools_divide_a_signal_evenly(length: int, backend: str) -> None:
    x = random(2, 3, 11)
    t = gpucnn.tensor(x, backend=backend)
    parts = [x[:, :, i * 11 // length : -(-(i + 1) * 11 // length)] for i in range(length)]
    means, (largest, places) = F.adaptive_avg_pool1d(t, length), F.adaptive_max_pool1d(t, length, True)
    np.testing.assert_allclose(means.numpy(), np.stack([p.mean(2) for p in parts], 2), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(largest.numpy(), np.stack([p.max(2) for p in parts], 2))
    np.testing.assert_array_equal(np.take_along_axis(x, places.numpy(), 2), largest.numpy())


POOLS: dict[str, Callable[[Tensor], Any]] = {
    "max": lambda x: F.max_pool1d(x, 3, 2, 1),
    "avg": lambda x: F.avg_pool1d(x, 3, 2, 1, True, False),
    "adaptive_avg": lambda x: F.adaptive_avg_pool1d(x, 4),
    "adaptive_max": lambda x: F.adaptive_max_pool1d(x, 4),
    "batch_norm": lambda x: F.batch_norm(x, None, None, gpucnn.tensor([1.0, 2, 3], "float64"), None, True),
    "linear": lambda x: F.interpolate(x, 7, mode="linear"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
}


@pytest.mark.parametrize("name", POOLS)
def test_their_gradients_are_the_slopes(name: str, backend: str) -> None:
    with gpucnn.use_backend(backend):
        check_gradients(POOLS[name], [random(2, 3, 11)], backend)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_signals_is_that_of_all_their_elements(training: bool, backend: str) -> None:
    x, weight, bias = random(4, 3, 5), random(3, seed=1), random(3, seed=2)
    norm = nn.BatchNorm1d(3).to("float64").to(backend)
    norm.weight.detach().copy_(weight)
    norm.bias.detach().copy_(bias)
    norm.train(training)
    y = norm(gpucnn.tensor(x, backend=backend)).numpy()
    mean, variance = x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-5) if training else x / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(y, expected * weight[:, None] + bias[:, None], rtol=1e-10, atol=1e-10)
    moved = 0.1 * mean.ravel() if training else np.zeros(3)
    np.testing.assert_allclose(norm.running_mean.numpy(), moved, rtol=1e-10, atol=1e-12)


def test_batch_norm_adds_a_residual_to_signals_and_activates(backend: str) -> None:
    x, r = (gpucnn.tensor(random(4, 3, 5, seed=s), backend=backend) for s in (0, 1))
    y = F.batch_norm(x, None, None, training=True, residual=r, activation="relu")
    np.testing.assert_array_equal(y.numpy(), F.relu(F.batch_norm(x, None, None, training=True) + r).numpy())


def test_dropout1d_drops_whole_channels(backend: str) -> None:
    x = gpucnn.ones(40, 30, 7, backend=backend)
    y = F.dropout1d(x, 0.4, generator=gpucnn.Generator(5)).numpy()
    assert ((y == y[:, :, :1]).all(), set(np.unique(y)) == {0, np.float32(1 / 0.6)}) == (True, True)
    assert abs((y[:, :, 0] == 0).mean() - 0.4) < 0.05
    assert F.dropout1d(x, 0.4, training=False) is x
    with pytest.raises(ValueError, match=r"dropout1d: input must have 3 axes \[N, C, L\], got shape \(2, 3\)"):
        F.dropout1d(gpucnn.ones(2, 3))


def test_a_network_of_signals_learns(backend: str) -> None:
    """Which of two frequencies a noisy wave has."""
    gpucnn.manual_seed(0)
    rng, at = np.random.default_rng(0), np.arange(32)
    labels = np.arange(48) % 2
    waves = np.sin(at * (0.4 + 0.5 * labels[:, None]) + rng.uniform(0, 6, (48, 1))) + 0.3 * rng.standard_normal(
        (48, 32)
    )
    x = gpucnn.tensor(waves[:, None].astype(np.float32), backend=backend)
    model = nn.Sequential(
        nn.Conv1d(1, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2),
    ).to(backend)  # fmt: skip
    optimizer = gpucnn.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    assert (model.eval()(x).argmax(1).numpy() == labels).mean() > 0.95
    assert model.summary(1, 32).multiply_adds == 32 * 8 * 5 + 14 * 8 * 8 * 3 + 16


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.conv1d(gpucnn.zeros(3, 9), gpucnn.zeros(4, 3, 3)), ValueError,
         r"conv1d: input must have 3 axes \[N, C, L\], got shape \(3, 9\)"),
        (lambda: F.conv1d(gpucnn.zeros(1, 3, 9), gpucnn.zeros(4, 3)), ValueError,
         r"conv1d: weight must have 3 axes \[K, C/groups, S\], got shape \(4, 3\)"),
        (lambda: F.conv1d(gpucnn.zeros(1, 3, 9), gpucnn.zeros(4, 3, 3), stride=(1, 2)), ValueError,
         r"conv1d: stride must be one int, signals have one axis, got \(1, 2\)"),
        (lambda: F.max_pool1d(gpucnn.zeros(1, 3, 9), 2.5), TypeError, "max_pool1d: kernel_size must be"),
        (lambda: nn.Conv1d(2, 3, 0), ValueError, "Conv1d: kernel_size must be at least 1, got 0"),
        (lambda: nn.Conv1d(2, 3, 2, groups=2), ValueError,
         "Conv1d: groups=2 must divide in_channels=2 and out_channels=3"),
        (lambda: nn.ConvTranspose1d(2, 3, 2, padding=(1, 1)), ValueError, "ConvTranspose1d: padding must be one int"),
        (lambda: nn.BatchNorm1d(2)(gpucnn.zeros(1, 2, 3, 4)), ValueError,
         r"BatchNorm1d: input must have 3 axes \[N, C, L\], got shape \(1, 2, 3, 4\)"),
        (lambda: nn.InstanceNorm1d(2)(gpucnn.zeros(1, 3, 4)), ValueError,
         r"InstanceNorm1d: input must have num_features=2 channels, got shape \(1, 3, 4\)"),
        (lambda: nn.ZeroPad1d((1, 2, 3)), ValueError, r"ZeroPad1d: padding must be an int or \(left, right\)"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_shown(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_an_error_of_the_operation_on_images_says_that_these_are_signals() -> None:
    with pytest.raises(ValueError, match="their depths must agree") as caught:
        F.conv1d(gpucnn.zeros(1, 3, 9), gpucnn.zeros(4, 2, 3))
    assert caught.value.__notes__ == ["conv1d computes with signals [N, C, L] as images of one row, [N, C, 1, L]"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Conv1d", (4, 6, 3, 2, 1, 2, 2)), ("ConvTranspose1d", (4, 6, 3, 2, 1, 1, 2, True, 2)), ("BatchNorm1d", (4,)),
        ("InstanceNorm1d", (4,)), ("MaxPool1d", (3, 2, 1)), ("AvgPool1d", (3, 2, 1)), ("AdaptiveAvgPool1d", (3,)),
        ("AdaptiveMaxPool1d", (3,)), ("ReflectionPad1d", ((1, 2),)), ("ConstantPad1d", (1, 2.5)),
        ("Upsample", (None, 2.0, "linear")),
    ],
)  # fmt: skip
def test_layers_compute_and_learn_as_pytorchs(name: str, arguments: Any, torch: ModuleType) -> None:
    ours, theirs = getattr(nn, name)(*arguments).to("float64"), getattr(torch.nn, name)(*arguments).double()
    theirs.load_state_dict({key: torch.tensor(value.numpy()) for key, value in ours.state_dict().items()})
    x = random(3, 4, 9)
    a, b = gpucnn.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a), theirs(b)
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-9, atol=1e-12)
    (y * y).sum().backward()
    (z * z).sum().backward()
    for mine, other in zip([a, *ours.parameters()], [b, *theirs.parameters()], strict=True):
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-8, atol=1e-11)
