"""The scalar reference is itself checked: by worked numbers, and against PyTorch in float64 where that is installed."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import reference


@pytest.fixture(scope="module")
def torch() -> ModuleType:
    return pytest.importorskip("torch", reason="PyTorch is not installed: the reference has no second opinion here")


def random(*shape: int, seed: int = 0) -> reference.Array:
    return np.random.default_rng(seed).standard_normal(shape)


def probabilities(*shape: int, seed: int = 0) -> reference.Array:
    return np.random.default_rng(seed).uniform(0.02, 0.98, shape)


def labels(*shape: int, classes: int, seed: int = 0) -> reference.Array:
    return np.random.default_rng(seed).integers(0, classes, shape)


X = random(2, 6, 7, 5)
TALL = random(1, 2, 9, 4, seed=1)
LABELS = labels(6, classes=5)
SCORES = random(6, 5)
MAP_LABELS = np.where(labels(2, 3, 4, classes=3) == 1, -100, labels(2, 3, 4, classes=3, seed=1))
CLASS_TARGETS = np.exp(reference.log_softmax(random(6, 5, seed=2), 1))

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("conv2d", (X, random(4, 6, 3, 2)), {}),
    ("conv2d", (X, random(4, 6, 3, 2), random(4)), {"stride": (2, 1), "padding": (1, 2)}),
    ("conv2d", (X, random(9, 2, 2, 3), random(9)), {"stride": 2, "padding": 1, "groups": 3}),
    ("conv2d", (X, random(6, 1, 3, 3)), {"groups": 6, "dilation": (2, 1), "padding": "same"}),
    ("conv2d", (X, random(4, 6, 4, 2)), {"padding": "same", "dilation": (1, 3)}),
    ("conv2d", (X, random(5, 6, 1, 1)), {"stride": 2}),
    ("conv2d", (X, random(5, 6, 7, 5)), {"padding": "valid"}),
    ("conv2d", (random(0, 6, 7, 5), random(5, 6, 2, 2)), {}),
    ("conv_transpose2d", (X, random(6, 4, 3, 2), random(4)), {}),
    ("conv_transpose2d", (X, random(6, 4, 3, 2)), {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2)}),
    ("conv_transpose2d", (X, random(6, 3, 3, 2), random(6)), {"groups": 2, "stride": 2, "dilation": (2, 1)}),
    ("max_pool2d", (X, 2), {}),
    ("max_pool2d", (X, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "ceil_mode": True}),
    ("max_pool2d", (X, 2), {"stride": 3, "return_indices": True}),
    ("max_pool2d", (np.round(X), 3), {"stride": 1, "padding": 1, "return_indices": True}),
    ("avg_pool2d", (X, 3), {"stride": 2, "padding": 1, "ceil_mode": True}),
    ("avg_pool2d", (X, 3), {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
    ("avg_pool2d", (X, (3, 2)), {"padding": (1, 0), "divisor_override": 7}),
    ("avg_pool2d", (TALL, 4), {"stride": 4, "padding": 2, "ceil_mode": True}),
    ("adaptive_avg_pool2d", (X, 1), {}),
    ("adaptive_avg_pool2d", (X, (3, None)), {}),
    ("adaptive_avg_pool2d", (X, (5, 8)), {}),
    ("adaptive_max_pool2d", (X, (4, 2)), {"return_indices": True}),
    ("relu", (X,), {}),
    ("relu6", (4 * X,), {}),
    ("leaky_relu", (X,), {"negative_slope": 0.2}),
    ("prelu", (X, np.array([0.25])), {}),
    ("prelu", (X, random(6)), {}),
    ("elu", (X,), {"alpha": 0.7}),
    ("selu", (X,), {}),
    ("gelu", (X,), {}),
    ("gelu", (X,), {"approximate": "tanh"}),
    ("silu", (X,), {}),
    ("mish", (9 * X,), {}),
    ("hardswish", (3 * X,), {}),
    ("hardsigmoid", (3 * X,), {}),
    ("hardtanh", (X,), {}),
    ("hardtanh", (X,), {"min_val": -0.3, "max_val": 2.0}),
    ("softsign", (9 * X,), {}),
    ("softplus", (X,), {}),
    ("softplus", (9 * X,), {"beta": 2.0, "threshold": 5.0}),
    ("sigmoid", (9 * X,), {}),
    ("logsigmoid", (9 * X,), {}),
    ("tanh", (X,), {}),
    ("softmax", (X, 1), {}),
    ("softmax", (9 * X, -1), {}),
    ("log_softmax", (1e4 * X, 2), {}),
    ("instance_norm", (X, None, None, random(6), random(6, seed=1)), {"eps": 1e-3}),
    ("group_norm", (X, 3, random(6), random(6, seed=1)), {}),
    ("layer_norm", (X, (7, 5), random(7, 5), random(7, 5, seed=1)), {"eps": 1e-3}),
    ("local_response_norm", (X, 3), {"alpha": 0.5, "beta": 0.6, "k": 2.0}),
    ("local_response_norm", (X, 4), {"alpha": 0.5}),
    ("linear", (X, random(3, 5), random(3)), {}),
    ("linear", (random(4, 5), random(3, 5)), {}),
    ("pad", (X, (1, 2, 3, 0)), {"value": 1.5}),
    ("pad", (X, (-1, 2, 0, -3)), {}),
    ("pad", (X, (1, 2, 3, 0)), {"mode": "reflect"}),
    ("pad", (X, (1, 2, 3, 0)), {"mode": "replicate"}),
    ("pad", (X, (1, 2, 0, 0, 2, 1)), {}),
    ("interpolate", (X,), {"size": (10, 3)}),
    ("interpolate", (X,), {"scale_factor": 2}),
    ("interpolate", (X,), {"scale_factor": (1.7, 0.6)}),
    ("interpolate", (X,), {"size": (11, 3), "mode": "bilinear"}),
    ("interpolate", (X,), {"size": (11, 1), "mode": "bilinear", "align_corners": True}),
    ("interpolate", (X,), {"scale_factor": 1.7, "mode": "bilinear"}),
    ("cross_entropy", (SCORES, LABELS), {}),
    ("cross_entropy", (SCORES, LABELS), {"reduction": "none", "label_smoothing": 0.2}),
    ("cross_entropy", (SCORES, LABELS, probabilities(5)), {"label_smoothing": 0.1}),
    ("cross_entropy", (SCORES, LABELS, probabilities(5)), {"reduction": "sum"}),
    ("cross_entropy", (SCORES, LABELS, probabilities(5)), {"ignore_index": 2, "label_smoothing": 0.1}),
    ("cross_entropy", (random(2, 3, 3, 4), MAP_LABELS), {}),
    ("cross_entropy", (random(2, 3, 3, 4), MAP_LABELS), {"reduction": "none"}),
    ("cross_entropy", (SCORES, CLASS_TARGETS, probabilities(5)), {"label_smoothing": 0.1}),
    ("cross_entropy", (SCORES, CLASS_TARGETS), {"reduction": "none"}),
    ("nll_loss", (reference.log_softmax(SCORES, 1), LABELS, probabilities(5)), {}),
    ("nll_loss", (reference.log_softmax(SCORES, 1), LABELS), {"ignore_index": 1}),
    ("binary_cross_entropy", (probabilities(3, 4), probabilities(3, 4, seed=1)), {}),
    ("binary_cross_entropy", (np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0])), {"reduction": "none"}),
    ("binary_cross_entropy", (probabilities(3, 4), probabilities(3, 4, seed=1), probabilities(4)), {}),
    ("binary_cross_entropy_with_logits", (1e4 * random(3, 4), probabilities(3, 4)), {}),
    (
        "binary_cross_entropy_with_logits",
        (random(3, 4), probabilities(3, 4), probabilities(4)),
        {"pos_weight": np.arange(1.0, 5.0), "reduction": "sum"},
    ),
    ("mse_loss", (SCORES, random(6, 5, seed=1)), {}),
    ("l1_loss", (SCORES, random(6, 5, seed=1)), {"reduction": "sum"}),
    ("smooth_l1_loss", (SCORES, random(6, 5, seed=1)), {"beta": 0.5, "reduction": "none"}),
    ("smooth_l1_loss", (SCORES, random(6, 5, seed=1)), {"beta": 0.0}),
    ("huber_loss", (SCORES, random(6, 5, seed=1)), {"delta": 0.5, "reduction": "none"}),
    ("huber_loss", (SCORES, random(6, 5, seed=1)), {"delta": 2.0}),
    ("kl_div", (SCORES, CLASS_TARGETS), {"reduction": "batchmean"}),
    ("kl_div", (SCORES, np.eye(6, 5)), {"reduction": "none"}),
    ("kl_div", (SCORES, random(6, 5, seed=1)), {"reduction": "sum", "log_target": True}),
]


def names(cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> list[str]:
    return [
        "-".join([name, *(f"{key}={value}" for key, value in arguments.items() if np.ndim(value) < 1)])
        for name, _, arguments in cases
    ]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("name", "inputs", "arguments"), CASES, ids=names(CASES))
def test_reference_agrees_with_pytorch(
    torch: ModuleType, name: str, inputs: tuple[Any, ...], arguments: dict[str, Any]
) -> None:
    def tensor(value: Any) -> Any:
        return torch.tensor(value) if isinstance(value, np.ndarray) else value

    actual = getattr(reference, name)(*inputs, **arguments)
    keywords = {key: tensor(value) for key, value in arguments.items()}
    expected = getattr(torch.nn.functional, name)(*map(tensor, inputs), **keywords)
    if name == "instance_norm":
        actual = actual[0]  # the running statistics, which have a test of their own, are None
    for ours, theirs in zip(*map(as_tuple, (actual, expected)), strict=True):
        assert ours.shape == tuple(theirs.shape)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-13, atol=1e-13)


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4, 5, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_reference_batch_norm_agrees_with_pytorch(torch: ModuleType, shape: tuple[int, ...], training: bool) -> None:
    x, channels = random(*shape), shape[1]
    weight, bias, mean, variance = random(channels), random(channels, seed=1), random(channels), probabilities(channels)
    running_mean, running_var = torch.tensor(mean), torch.tensor(variance)
    expected = torch.nn.functional.batch_norm(
        torch.tensor(x), running_mean, running_var, torch.tensor(weight), torch.tensor(bias), training, 0.3, 1e-3
    )
    y, new_mean, new_var = reference.batch_norm(x, mean, variance, weight, bias, training, 0.3, 1e-3)
    for ours, theirs in ((y, expected), (new_mean, running_mean), (new_var, running_var)):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("own", [True, False])
def test_reference_instance_norm_agrees_with_pytorch(torch: ModuleType, own: bool) -> None:
    x, weight, bias, mean, variance = random(3, 4, 5, 2), random(4), random(4, seed=1), random(4), probabilities(4)
    running_mean, running_var = torch.tensor(mean), torch.tensor(variance)
    expected = torch.nn.functional.instance_norm(
        torch.tensor(x), running_mean, running_var, torch.tensor(weight), torch.tensor(bias), own, 0.3, 1e-3
    )
    y, new_mean, new_var = reference.instance_norm(x, mean, variance, weight, bias, own, 0.3, 1e-3)
    for ours, theirs in ((y, expected), (new_mean, running_mean), (new_var, running_var)):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 4), (4, 2)), ((2, 1, 3, 4), (5, 4, 2)), ((1, 3, 4), (6, 4, 1))], ids=["flat", "lead", "one"]
)
def test_reference_matmul_agrees_with_numpy(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    left, right = random(*a), random(*b, seed=1)
    np.testing.assert_allclose(reference.matmul(left, right), left @ right, rtol=1e-13, atol=1e-13)


def test_reference_min_pool_is_the_max_pool_of_the_negation() -> None:
    y, places = reference.min_pool2d(X, (3, 2), (2, 1), (1, 0), (1, 2), True, True)
    mirrored, same_places = reference.max_pool2d(-X, (3, 2), (2, 1), (1, 0), (1, 2), True, True)
    np.testing.assert_array_equal(y, -mirrored)
    np.testing.assert_array_equal(places, same_places)


def test_reference_sum_pool_is_the_average_without_its_divisor() -> None:
    window = {"stride": 2, "padding": 1, "ceil_mode": True}
    summed = reference.sum_pool2d(X, 3, **window)
    np.testing.assert_array_equal(summed, reference.avg_pool2d(X, 3, **window, divisor_override=1))


def test_reference_pads_the_four_sides_apart() -> None:
    padded = reference.pad(X, (3, 0, 1, 2))
    weight = random(2, 6, 3, 2)
    np.testing.assert_array_equal(
        reference.conv2d(X, weight, padding=(1, 2, 3, 0)), reference.conv2d(padded, weight, padding="valid")
    )


@pytest.mark.parametrize(("size", "kernel", "stride", "outputs"), [(5, 2, 1, 5), (7, 3, 2, 4), (4, 1, 3, 2)])
def test_reference_same_padding_gives_the_size_over_the_stride_rounded_up(
    size: int, kernel: int, stride: int, outputs: int
) -> None:
    y = reference.conv2d(random(1, 1, size, 3), random(1, 1, kernel, 1), stride=(stride, 1), padding="same")
    assert y.shape == (1, 1, outputs, 3)


def test_reference_same_padding_puts_the_odd_pixel_at_the_end() -> None:
    y = reference.conv2d(np.array([[[[1.0, 10.0, 100.0]]]]), np.ones((1, 1, 1, 2)), padding="same")
    np.testing.assert_array_equal(y.ravel(), [11.0, 110.0, 100.0])


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "outputs"), reference.CEIL_SIZES)
def test_reference_ceil_mode_sizes(size: int, kernel: int, stride: int, padding: int, outputs: int) -> None:
    assert reference.output_size(size, kernel, stride, padding, padding, ceil_mode=True) == outputs
