"""Initialisers: bounds, moments and fans against PyTorch's formulas, and the same numbers for the same seed."""

import math
from collections.abc import Callable
from statistics import NormalDist
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Generator, Tensor
from gpucnn.nn import init

SHAPE = (60, 50, 3, 5)  # fan in 750, fan out 900, 45,000 values


def test_fans_count_what_an_output_sums_and_what_an_input_feeds() -> None:
    assert init.fans(gpucnn.zeros(7, 3)) == (3, 7)
    assert init.fans(gpucnn.zeros(8, 2, 3, 5)) == (2 * 15, 8 * 15)
    with pytest.raises(ValueError, match=r"at least 2 axes, got shape \(7,\)"):
        init.fans(gpucnn.zeros(7))


def leaky(a: float) -> float:
    return math.sqrt(2 / (1 + a * a))


# how it is called, and the standard deviation that the papers ask for
CASES: dict[str, tuple[Callable[[Tensor, Generator], Tensor], float]] = {
    "xavier-uniform": (lambda t, g: init.xavier_uniform_(t, 2.0, generator=g), 2 * math.sqrt(2 / 1650)),
    "xavier-normal": (lambda t, g: init.xavier_normal_(t, generator=g), math.sqrt(2 / 1650)),
    "kaiming-uniform": (lambda t, g: init.kaiming_uniform_(t, math.sqrt(5), generator=g), leaky(5**0.5) / 750**0.5),
    "kaiming-uniform-default": (lambda t, g: init.kaiming_uniform_(t, generator=g), math.sqrt(2 / 750)),
    "kaiming-normal": (
        lambda t, g: init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu", generator=g),
        math.sqrt(2 / 900),
    ),
    "kaiming-normal-tanh": (
        lambda t, g: init.kaiming_normal_(t, nonlinearity="tanh", generator=g),
        5 / 3 / math.sqrt(750),
    ),
    "uniform": (lambda t, g: init.uniform_(t, -3, 3, generator=g), math.sqrt(3)),
    "normal": (lambda t, g: init.normal_(t, std=0.2, generator=g), 0.2),
}
every_case = pytest.mark.parametrize(("call", "deviation"), CASES.values(), ids=list(CASES))


@every_case
def test_values_have_the_deviation_and_the_bounds_of_their_distribution(call: Any, deviation: float) -> None:
    tensor = gpucnn.zeros(*SHAPE)
    assert call(tensor, Generator(1)) is tensor
    values = tensor.numpy().astype(np.float64)
    count = values.size
    assert abs(values.mean()) < 5 * deviation / math.sqrt(count)
    # the relative standard error of a variance is √((kurtosis − 1) / n): kurtosis 9/5 for uniform, 3 for normal
    assert abs(values.var() / deviation**2 - 1) < 5 * math.sqrt(2 / count)
    largest, root3 = np.abs(values).max() / deviation, math.sqrt(3)
    if np.mean(np.abs(values) < root3 * deviation) > 0.99:  # a normal distribution has 92 % there
        assert 0.999 * root3 < largest <= root3 * (1 + 1e-6)
    else:
        assert 3.5 < largest < 6


@every_case
def test_same_seed_gives_the_same_weights_and_the_next_draw_others(call: Any, deviation: float) -> None:
    generator = Generator(7)
    first, second = (call(gpucnn.zeros(3, 4), generator).tolist() for _ in range(2))
    assert call(gpucnn.zeros(3, 4), Generator(7)).tolist() == first
    assert first != second
    gpucnn.manual_seed(7)
    assert call(gpucnn.zeros(3, 4), None).tolist() == first


def test_float64_and_float32_weights_come_from_the_same_numbers() -> None:
    single, double = (init.normal_(gpucnn.zeros(50, dtype=d), generator=Generator(2)) for d in ("float32", "float64"))
    np.testing.assert_array_equal(single.numpy(), double.numpy().astype(np.float32))
    assert (double.numpy() != single.numpy()).any()


def test_uniform_and_normal_are_placed_where_they_are_told() -> None:
    values = init.uniform_(gpucnn.zeros(1000), 2, 3, generator=Generator(0)).numpy()
    assert 2 <= values.min() < 2.01
    assert 2.99 < values.max() <= 3
    values = init.normal_(gpucnn.zeros(1000), 5.0, 0.1, generator=Generator(0)).numpy()
    assert abs(values.mean() - 5) < 5 * 0.1 / math.sqrt(1000)
    assert init.uniform_(gpucnn.zeros(1000)).numpy().min() >= 0


def test_constants() -> None:
    assert init.zeros_(gpucnn.ones(2)).tolist() == [0, 0]
    assert init.ones_(gpucnn.zeros(2)).tolist() == [1, 1]
    assert init.constant_(gpucnn.zeros(2, dtype="float64"), 0.1).tolist() == [0.1, 0.1]


def test_weight_of_a_layer_is_filled_in_place_and_still_learns() -> None:
    layer = gpucnn.nn.Conv2d(1, 2, 3)
    array = layer.weight.array
    init.ones_(layer.weight)
    assert layer.weight.array is array
    assert layer.weight.requires_grad
    assert layer.weight.is_leaf
    assert layer(gpucnn.ones(1, 1, 3, 3)).requires_grad


@pytest.mark.parametrize(
    "arguments",
    [("linear",), ("conv2d",), ("sigmoid",), ("tanh",), ("relu",), ("selu",), ("leaky_relu",), ("leaky_relu", 0.3)],
)
def test_gains_are_pytorchs(arguments: Any, torch: ModuleType) -> None:
    assert init.calculate_gain(*arguments) == pytest.approx(torch.nn.init.calculate_gain(*arguments), rel=1e-15)


@pytest.mark.parametrize(
    "name", ["uniform_", "normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"]
)
def test_spread_is_pytorchs(name: str, torch: ModuleType) -> None:
    theirs = getattr(torch.nn.init, name)(torch.empty(SHAPE), generator=torch.Generator().manual_seed(0)).numpy()
    ours = getattr(init, name)(gpucnn.zeros(*SHAPE), generator=Generator(0)).numpy()
    # two estimates of one deviation, each with a relative standard error of at most 1/√(2n)
    assert abs(ours.std() / theirs.std() - 1) < 5 / math.sqrt(ours.size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: init.kaiming_normal_(t, mode="fan"), "mode must be one of 'fan_in', 'fan_out', got 'fan'"),
        (lambda t: init.kaiming_uniform_(t, nonlinearity="swish"), "'relu', 'selu', 'leaky_relu', got 'swish'"),
        (lambda t: init.xavier_uniform_(t[0]), r"at least 2 axes, got shape \(3,\)"),
    ],
)
def test_unknown_choices_are_shown(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(gpucnn.zeros(2, 3))


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"), [(0.0, 1.0, -2.0, 2.0), (0.0, 0.02, -2.0, 2.0), (1.0, 0.5, 1.2, 3.0)]
)
def test_truncated_normal_numbers_lie_between_their_ends_as_their_distribution_has_them(
    mean: float, std: float, a: float, b: float
) -> None:
    values = np.sort(init.trunc_normal_(gpucnn.zeros(200, 100), mean, std, a, b, gpucnn.Generator(3)).numpy().ravel())
    assert a <= values[0] <= values[-1] <= b
    normal = NormalDist(mean, std)
    low, high = normal.cdf(a), normal.cdf(b)
    expected = [(normal.cdf(float(v)) - low) / (high - low) for v in values]
    assert np.abs(np.array(expected) - (np.arange(20_000) + 0.5) / 20_000).max() < 1.9 / math.sqrt(20_000)  # Kolmogorov


@pytest.mark.parametrize("shape", [(5, 5), (3, 2, 3, 3), (40, 3, 2, 2)])
def test_orthogonal_weights_have_rows_or_columns_of_one_length_at_right_angles(shape: tuple[int, ...]) -> None:
    w = init.orthogonal_(gpucnn.zeros(*shape, dtype="float64"), gain=2.0).numpy().reshape(shape[0], -1)
    product = w @ w.T if len(w) <= w.shape[1] else w.T @ w
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-12)


def test_wrong_ends_and_too_few_axes_are_shown() -> None:
    with pytest.raises(ValueError, match=r"trunc_normal_: a must be at most b, got 2.0 and -2.0"):
        init.trunc_normal_(gpucnn.zeros(2), a=2.0, b=-2.0)
    with pytest.raises(ValueError, match=r"at least 2 axes, got shape \(3,\)"):
        init.orthogonal_(gpucnn.zeros(3))
