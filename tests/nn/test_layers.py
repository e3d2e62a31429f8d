"""Layers: each is its function with the arguments it was made with, and starts from PyTorch's parameters."""

import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, nn
from gpucnn import functional as F

Layer = tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Any, Tensor], Any]]

# how the layer is made, the shape of its input, and the call of the function that it must equal, with all arguments
# at values that are not the defaults
LAYERS: dict[str, Layer] = {
    "Conv2d": (
        lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2),
        (2, 4, 7, 6),
        lambda m, x: F.conv2d(x, m.weight, m.bias, (2, 1), (1, 0), (1, 2), 2),
    ),
    "Conv2d-same-without-bias": (
        lambda: nn.Conv2d(1, 2, 2, padding="same", bias=False),
        (1, 1, 4, 5),
        lambda m, x: F.conv2d(x, m.weight, None, 1, (0, 1, 0, 1)),
    ),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), (3, 2), (1, 0), (1, 0), 2, True, (1, 2)),
        (2, 4, 3, 5),
        lambda m, x: F.conv_transpose2d(x, m.weight, m.bias, (3, 2), (1, 0), (1, 0), 2, (1, 2)),
    ),
    "Conv1d": (
        lambda: nn.Conv1d(4, 6, 3, 2, (2, 0), 2, 2),
        (2, 4, 9),
        lambda m, x: F.conv1d(x, m.weight, m.bias, 2, (2, 0), 2, 2),
    ),
    "ConvTranspose1d": (
        lambda: nn.ConvTranspose1d(4, 6, (3,), 3, 1, 2, 2, False, 2),
        (2, 4, 5),
        lambda m, x: F.conv_transpose1d(x, m.weight, None, 3, 1, 2, 2, 2),
    ),
    "MaxPool1d": (
        lambda: nn.MaxPool1d(3, 2, 1, 2, True, True),
        (1, 2, 8),
        lambda m, x: F.max_pool1d(x, 3, 2, 1, 2, True, True),
    ),
    "AvgPool1d": (
        lambda: nn.AvgPool1d(3, 2, 1, True, False), (1, 2, 8), lambda m, x: F.avg_pool1d(x, 3, 2, 1, True, False)
    ),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(3), (1, 2, 8), lambda m, x: F.adaptive_avg_pool1d(x, 3)),
    "AdaptiveMaxPool1d": (
        lambda: nn.AdaptiveMaxPool1d(3, True), (1, 2, 8), lambda m, x: F.adaptive_max_pool1d(x, 3, True)
    ),
    "Linear": (lambda: nn.Linear(5, 3), (2, 5), lambda m, x: F.linear(x, m.weight, m.bias)),
    "LazyConv2d": (
        lambda: nn.LazyConv2d(6, (3, 2), (2, 1), groups=2),
        (2, 4, 7, 6),
        lambda m, x: F.conv2d(x, m.weight, m.bias, (2, 1), groups=2),
    ),
    "LazyConvTranspose2d": (
        lambda: nn.LazyConvTranspose2d(6, 3, bias=False), (2, 4, 3, 5), lambda m, x: F.conv_transpose2d(x, m.weight)
    ),
    "LazyConv1d": (lambda: nn.LazyConv1d(6, 3, 2), (2, 4, 9), lambda m, x: F.conv1d(x, m.weight, m.bias, 2)),
    "LazyConvTranspose1d": (
        lambda: nn.LazyConvTranspose1d(6, 3, 2), (2, 4, 9), lambda m, x: F.conv_transpose1d(x, m.weight, m.bias, 2)
    ),
    "LazyLinear": (lambda: nn.LazyLinear(3), (2, 4, 5), lambda m, x: F.linear(x, m.weight, m.bias)),
    "LazyBatchNorm1d": (
        lambda: nn.LazyBatchNorm1d(0.1), (4, 3), lambda m, x: F.batch_norm(x, None, None, None, None, True, eps=0.1)
    ),
    "LazyBatchNorm2d": (
        lambda: nn.LazyBatchNorm2d(0.1),
        (2, 3, 4, 2),
        lambda m, x: F.batch_norm(x, None, None, None, None, True, eps=0.1),
    ),
    "Linear-without-bias": (lambda: nn.Linear(5, 3, False), (2, 5), lambda m, x: F.linear(x, m.weight)),
    "MaxPool2d": (
        lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2), ceil_mode=True),
        (1, 2, 8, 7),
        lambda m, x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0), (1, 2), True),
    ),
    "MaxPool2d-with-indices": (
        lambda: nn.MaxPool2d(2, return_indices=True),
        (1, 2, 4, 6),
        lambda m, x: F.max_pool2d(x, 2, return_indices=True),
    ),
    "MinPool2d": (
        lambda: nn.MinPool2d((3, 2), (2, 1), (1, 0), (1, 2), ceil_mode=True),
        (1, 2, 8, 7),
        lambda m, x: F.min_pool2d(x, (3, 2), (2, 1), (1, 0), (1, 2), True),
    ),
    "AvgPool2d": (
        lambda: nn.AvgPool2d((3, 2), (2, 1), (1, 1), True, False),
        (1, 2, 8, 7),
        lambda m, x: F.avg_pool2d(x, (3, 2), (2, 1), (1, 1), True, False),
    ),
    "AvgPool2d-with-divisor": (
        lambda: nn.AvgPool2d(2, divisor_override=3),
        (1, 2, 4, 6),
        lambda m, x: F.avg_pool2d(x, 2, divisor_override=3),
    ),
    "SumPool2d": (
        lambda: nn.SumPool2d((3, 2), (2, 1), (1, 0), True),
        (1, 2, 8, 7),
        lambda m, x: F.sum_pool2d(x, (3, 2), (2, 1), (1, 0), True),
    ),
    "AdaptiveAvgPool2d": (
        lambda: nn.AdaptiveAvgPool2d((2, None)),
        (1, 2, 5, 3),
        lambda m, x: F.adaptive_avg_pool2d(x, (2, 3)),
    ),
    "AdaptiveMaxPool2d": (
        lambda: nn.AdaptiveMaxPool2d((2, 3), return_indices=True),
        (1, 2, 5, 4),
        lambda m, x: F.adaptive_max_pool2d(x, (2, 3), True),
    ),
    "ReLU": (nn.ReLU, (2, 3), lambda m, x: F.relu(x)),
    "ReLU6": (nn.ReLU6, (2, 3), lambda m, x: F.relu6(x)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.3), (2, 3), lambda m, x: F.leaky_relu(x, 0.3)),
    "PReLU": (lambda: nn.PReLU(3, 0.1), (2, 3, 2, 2), lambda m, x: F.prelu(x, gpucnn.full((3,), 0.1))),
    "ELU": (lambda: nn.ELU(0.7), (2, 3), lambda m, x: F.elu(x, 0.7)),
    "SELU": (nn.SELU, (2, 3), lambda m, x: F.selu(x)),
    "GELU": (lambda: nn.GELU("tanh"), (2, 3), lambda m, x: F.gelu(x, "tanh")),
    "SiLU": (nn.SiLU, (2, 3), lambda m, x: F.silu(x)),
    "Mish": (nn.Mish, (2, 3), lambda m, x: F.mish(x)),
    "Hardswish": (nn.Hardswish, (2, 3), lambda m, x: F.hardswish(x)),
    "Hardsigmoid": (nn.Hardsigmoid, (2, 3), lambda m, x: F.hardsigmoid(x)),
    "Hardtanh": (lambda: nn.Hardtanh(-0.3, 0.7), (2, 3), lambda m, x: F.hardtanh(x, -0.3, 0.7)),
    "Softplus": (lambda: nn.Softplus(2.0), (2, 3), lambda m, x: F.softplus(x, 2.0)),
    "Sigmoid": (nn.Sigmoid, (2, 3), lambda m, x: F.sigmoid(x)),
    "LogSigmoid": (nn.LogSigmoid, (2, 3), lambda m, x: F.logsigmoid(x)),
    "Softsign": (nn.Softsign, (2, 3), lambda m, x: F.softsign(x)),
    "Tanh": (nn.Tanh, (2, 3), lambda m, x: F.tanh(x)),
    "Softmax": (lambda: nn.Softmax(0), (2, 3), lambda m, x: F.softmax(x, 0)),
    "LogSoftmax": (lambda: nn.LogSoftmax(0), (2, 3), lambda m, x: F.log_softmax(x, 0)),
    "Dropout": (lambda: nn.Dropout(0.3), (4, 9), lambda m, x: F.dropout(x, 0.3)),
    "BatchNorm1d": (
        lambda: nn.BatchNorm1d(3, 0.1),
        (4, 3),
        lambda m, x: F.batch_norm(x, None, None, None, None, True, eps=0.1),
    ),
    "BatchNorm1d-of-signals": (
        lambda: nn.BatchNorm1d(3, 0.1),
        (4, 3, 5),
        lambda m, x: F.batch_norm(x, None, None, None, None, True, eps=0.1),
    ),
    "BatchNorm2d": (
        lambda: nn.BatchNorm2d(3, 0.1),
        (2, 3, 4, 2),
        lambda m, x: F.batch_norm(x, None, None, None, None, True, eps=0.1),
    ),
    "InstanceNorm1d": (
        lambda: nn.InstanceNorm1d(3, 0.1), (2, 3, 4), lambda m, x: F.instance_norm(x, eps=0.1)
    ),
    "InstanceNorm2d": (
        lambda: nn.InstanceNorm2d(3, 0.1),
        (2, 3, 4, 2),
        lambda m, x: F.instance_norm(x, eps=0.1),
    ),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4, 0.1), (2, 4, 3, 2), lambda m, x: F.group_norm(x, 2, eps=0.1)),
    "LayerNorm": (lambda: nn.LayerNorm((3, 2), 0.1), (4, 3, 2), lambda m, x: F.layer_norm(x, (3, 2), eps=0.1)),
    "LocalResponseNorm": (
        lambda: nn.LocalResponseNorm(3, 0.2, 0.5, 2.0),
        (2, 5, 3, 2),
        lambda m, x: F.local_response_norm(x, 3, 0.2, 0.5, 2.0),
    ),
    "Identity": (nn.Identity, (2, 3), lambda m, x: x),
    "Flatten": (lambda: nn.Flatten(1, 2), (2, 3, 4, 5), lambda m, x: F.flatten(x, 1, 2)),
    "Unflatten": (lambda: nn.Unflatten(1, (3, 4)), (2, 12), lambda m, x: F.unflatten(x, 1, (3, 4))),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((1, 0, 2, 3)), (1, 2, 3, 4), lambda m, x: F.pad(x, (1, 0, 2, 3))),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(2), (1, 2, 3, 4), lambda m, x: F.pad(x, (2, 2, 2, 2), "reflect")),
    "ReplicationPad2d": (
        lambda: nn.ReplicationPad2d((1, 0, 2, 3)),
        (1, 2, 3, 4),
        lambda m, x: F.pad(x, (1, 0, 2, 3), "replicate"),
    ),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), (2, 8, 3, 5), lambda m, x: F.pixel_shuffle(x, 2)),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(3), (2, 1, 6, 3), lambda m, x: F.pixel_unshuffle(x, 3)),
    "Dropout1d": (lambda: nn.Dropout1d(0.3), (4, 5, 2), lambda m, x: F.dropout1d(x, 0.3)),
    "ConstantPad1d": (lambda: nn.ConstantPad1d((2, 1), 3.0), (1, 2, 4), lambda m, x: F.pad(x, (2, 1), value=3.0)),
    "ConstantPad2d": (lambda: nn.ConstantPad2d(2, 3.0), (1, 2, 4, 3), lambda m, x: F.pad(x, (2,) * 4, value=3.0)),
    "ZeroPad1d": (lambda: nn.ZeroPad1d((2, 1)), (1, 2, 4), lambda m, x: F.pad(x, (2, 1))),
    "ReflectionPad1d": (lambda: nn.ReflectionPad1d((2, 1)), (1, 2, 4), lambda m, x: F.pad(x, (2, 1), "reflect")),
    "ReplicationPad1d": (lambda: nn.ReplicationPad1d(2), (1, 2, 4), lambda m, x: F.pad(x, (2, 2), "replicate")),
    "Dropout2d": (lambda: nn.Dropout2d(0.3), (4, 5, 2, 3), lambda m, x: F.dropout2d(x, 0.3)),
    "Upsample": (
        lambda: nn.Upsample((5, 7), None, "bilinear", True),
        (1, 2, 3, 4),
        lambda m, x: F.interpolate(x, (5, 7), mode="bilinear", align_corners=True),
    ),
    "Upsample-by-a-factor": (
        lambda: nn.Upsample(scale_factor=(2, 3)),
        (1, 2, 3, 4),
        lambda m, x: F.interpolate(x, scale_factor=(2, 3)),
    ),
}  # fmt: skip

LABELS = np.array([0, 2, -1])
HALVES = (3, 4)
LOSSES: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    "CrossEntropyLoss": (
        lambda: nn.CrossEntropyLoss(gpucnn.tensor([1.0, 2, 3, 4]), -1, "sum", 0.2),
        lambda x, t: F.cross_entropy(x, LABELS, gpucnn.tensor([1.0, 2, 3, 4]), -1, "sum", 0.2),
    ),
    "NLLLoss": (
        lambda: nn.NLLLoss(gpucnn.tensor([1.0, 2, 3, 4]), -1, "sum"),
        lambda x, t: F.nll_loss(x, LABELS, gpucnn.tensor([1.0, 2, 3, 4]), -1, "sum"),
    ),
    "BCELoss": (
        lambda: nn.BCELoss(gpucnn.full(HALVES, 2.0), "sum"),
        lambda x, t: F.binary_cross_entropy(x, t, gpucnn.full(HALVES, 2.0), "sum"),
    ),
    "BCEWithLogitsLoss": (
        lambda: nn.BCEWithLogitsLoss(gpucnn.full(HALVES, 2.0), "sum", gpucnn.full((4,), 3.0)),
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, gpucnn.full(HALVES, 2.0), "sum", gpucnn.full((4,), 3.0)),
    ),
    "KLDivLoss": (lambda: nn.KLDivLoss("batchmean", True), lambda x, t: F.kl_div(x, t, "batchmean", True)),
    "MSELoss": (lambda: nn.MSELoss("sum"), lambda x, t: F.mse_loss(x, t, "sum")),
    "HalfSquaredError": (nn.HalfSquaredError, F.half_squared_error),
    "L1Loss": (lambda: nn.L1Loss("none"), lambda x, t: F.l1_loss(x, t, "none")),
    "SmoothL1Loss": (lambda: nn.SmoothL1Loss("sum", 0.3), lambda x, t: F.smooth_l1_loss(x, t, "sum", 0.3)),
    "HuberLoss": (lambda: nn.HuberLoss("sum", 0.3), lambda x, t: F.huber_loss(x, t, "sum", 0.3)),
}


CONTAINERS = {"Sequential", "ModuleList", "ModuleDict", "ParameterList"}
NAMES = sorted(set(nn.__all__) - CONTAINERS - {"Module", "Parameter", "Buffer", "Summary", "init", "models"})


def test_every_layer_is_tested_here() -> None:
    assert {name.partition("-")[0] for name in [*LAYERS, *LOSSES]} == set(NAMES), "add it to LAYERS or LOSSES"


@pytest.mark.parametrize(("make", "shape", "function"), LAYERS.values(), ids=list(LAYERS))
def test_layer_is_its_function_with_its_arguments(make: Any, shape: tuple[int, ...], function: Any) -> None:
    layer = make()
    x = gpucnn.randn(*shape)
    if type(layer).__name__.startswith("Lazy"):
        layer(x)  # which makes its weights
    for parameter in layer.parameters():  # normalisation starts with weights of 1, which would hide their absence
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            parameter.detach().copy_(gpucnn.randn(*parameter.shape))
    gpucnn.manual_seed(3)
    actual = layer(x)
    gpucnn.manual_seed(3)
    expected = function(layer, x)
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (actual, expected)), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize(("make", "function"), LOSSES.values(), ids=list(LOSSES))
def test_loss_is_its_function_with_its_arguments(make: Any, function: Any) -> None:
    x, t = gpucnn.rand(*HALVES), gpucnn.rand(*HALVES)
    loss = make()
    target = LABELS if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) else t
    np.testing.assert_array_equal(loss(x, target).numpy(), function(x, t).numpy())


def test_weight_of_a_loss_moves_with_it() -> None:
    loss = nn.CrossEntropyLoss(gpucnn.ones(3)).to("float64")
    assert loss(gpucnn.zeros(2, 3, dtype="float64"), [0, 1]).item() == pytest.approx(math.log(3), rel=1e-15)
    assert list(loss.parameters()) == []


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_defaults_are_pytorchs(name: str, torch: ModuleType) -> None:
    """In PyTorch's order; what it has beyond ours comes after ours or is left out in the middle."""
    if not hasattr(torch.nn, name):
        assert name in ("MinPool2d", "SumPool2d", "HalfSquaredError")
        return
    theirs = list(inspect.signature(getattr(torch.nn, name)).parameters.values())
    ours = list(inspect.signature(getattr(nn, name)).parameters.values())
    if name == "Identity":
        return
    left = iter(theirs)
    for parameter in ours:
        match = next((other for other in left if other.name == parameter.name), None)
        assert match is not None, f"{name}({parameter.name}) is not in PyTorch's order {[p.name for p in theirs]}"
        required = parameter.default is inspect.Parameter.empty
        if required and name in ("Softmax", "LogSoftmax"):
            continue  # PyTorch guesses dim, with a warning
        assert required == (match.default is inspect.Parameter.empty), parameter.name
        if not required:
            assert parameter.default == match.default, f"{name}({parameter.name})"


@pytest.mark.parametrize(("name", "arguments"), [
    ("Conv2d", (4, 6, (3, 2), 2, 1, (1, 2), 2)), ("Conv2d", (3, 5, 3)), ("Conv2d", (3, 5, 3, 1, "same")),
    ("ConvTranspose2d", (4, 6, 3, (2, 1), 1, (1, 0), 2)), ("Linear", (5, 3)), ("BatchNorm2d", (4,)),
    ("BatchNorm1d", (4, 0.1, None, False, False)), ("GroupNorm", (2, 4)), ("LayerNorm", ((4, 3),)),
    ("ReLU", (True,)), ("LeakyReLU", (0.2, True)), ("ELU", (0.5, True)), ("Dropout2d", (0.3, True)),
    ("PixelShuffle", (3,)), ("InstanceNorm2d", (4, 0.1, 0.2, True, True)), ("Hardtanh", (-0.5, 2.0, True)),
    ("Mish", (True,)),
])  # fmt: skip
def test_a_layer_tells_what_it_was_made_with_as_pytorchs_does(name: str, arguments: Any, torch: ModuleType) -> None:
    """As `nn.Linear(model.fc.in_features, 2)` asks for it."""
    ours, theirs = getattr(nn, name)(*arguments), getattr(torch.nn, name)(*arguments)
    left_out = ("training", "padding_mode", "elementwise_affine", "transposed")
    told = {
        attribute: value
        for attribute, value in vars(theirs).items()
        if not attribute.startswith("_") and attribute not in left_out and hasattr(ours, attribute)
    }
    assert set(inspect.signature(type(ours)).parameters) & set(vars(theirs)) - set(left_out) <= set(told)
    assert {attribute: getattr(ours, attribute) for attribute in told} == told


def test_parameters_start_uniform_within_one_over_the_root_of_the_fan_in() -> None:
    """A convolution of 6/2 channels and 5×2 taps sums 30 inputs; a transposed one counts its filters' second axis."""
    for layer, fan_in in [
        (nn.Conv2d(6, 400, (5, 2), groups=2), 30),
        (nn.ConvTranspose2d(40, 60, (5, 2), groups=2), 300),
        (nn.Linear(50, 400), 50),
    ]:
        bound = 1 / math.sqrt(fan_in)
        for parameter in layer.parameters():
            values = parameter.numpy()
            assert np.abs(values).max() <= np.float32(bound)
            assert np.abs(values).max() > 0.8 * bound
            # the mean and the second moment of a uniform distribution, within five standard deviations
            assert abs(values.mean()) < 5 * bound / math.sqrt(3 * values.size)
            assert abs((values**2).mean() - bound**2 / 3) < 5 * bound**2 * math.sqrt(4 / 45 / values.size)


def test_initial_bounds_are_pytorchs(torch: ModuleType) -> None:
    """What PyTorch draws stays within our bound and comes near it, for an unequal number of channels in and out."""
    for layer, fan_in in [
        (torch.nn.Conv2d(6, 400, (5, 2), groups=2), 30),
        (torch.nn.ConvTranspose2d(40, 60, (5, 2), groups=2), 300),
        (torch.nn.Linear(50, 400), 50),
    ]:
        for parameter in layer.parameters():
            assert 0.8 / math.sqrt(fan_in) < parameter.abs().max().item() <= 1 / math.sqrt(fan_in) * (1 + 1e-6)


def test_normalisation_starts_with_ones_and_zeros_and_prelu_with_a_quarter() -> None:
    for layer in (
        nn.BatchNorm2d(3),
        nn.BatchNorm1d(3),
        nn.InstanceNorm2d(3, affine=True),
        nn.GroupNorm(3, 3),
        nn.LayerNorm(3),
    ):
        assert (layer.weight.tolist(), layer.bias.tolist()) == ([1, 1, 1], [0, 0, 0])
    norm = nn.BatchNorm2d(2)
    assert [b.tolist() for b in norm.buffers()] == [[0, 0], [1, 1], 0]
    assert nn.PReLU().weight.tolist() == [0.25]
    assert nn.PReLU(2).weight.is_leaf


def test_affine_parameters_may_be_left_out() -> None:
    assert list(nn.BatchNorm2d(3, affine=False).parameters()) == []
    assert list(nn.InstanceNorm2d(3).parameters()) == list(nn.InstanceNorm2d(3).buffers()) == []
    assert list(nn.GroupNorm(3, 3, affine=False).parameters()) == []
    assert list(nn.LayerNorm(3, elementwise_affine=False).parameters()) == []
    assert [name for name, _ in nn.LayerNorm(3, bias=False).named_parameters()] == ["weight"]


def test_instance_norm_tracks_in_training_and_uses_what_it_tracked_in_evaluation() -> None:
    x, norm = gpucnn.randn(2, 3, 4, 5), nn.InstanceNorm2d(3, eps=0.1, momentum=0.3, track_running_stats=True)
    mean, variance = gpucnn.zeros(3), gpucnn.ones(3)
    expected = F.instance_norm(x, mean, variance, momentum=0.3, eps=0.1)
    np.testing.assert_array_equal(norm(x).numpy(), expected.numpy())
    assert [b.tolist() for b in norm.buffers()] == [mean.tolist(), variance.tolist(), 0]  # 0 as in PyTorch
    expected = F.batch_norm(x, mean, variance, eps=0.1)
    np.testing.assert_array_equal(norm.eval()(x).numpy(), expected.numpy())
    norm = nn.InstanceNorm2d(3, momentum=None, track_running_stats=True)
    norm(x)
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0, 0]


def test_instance_norm_of_other_channels_or_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"InstanceNorm2d: input must have num_features=3 channels.*\(2, 4, 5, 6\)"):
        nn.InstanceNorm2d(3)(gpucnn.zeros(2, 4, 5, 6))
    with pytest.raises(ValueError, match=r"InstanceNorm2d: input must have 4 axes \[N, C, H, W\].*unsqueeze"):
        nn.InstanceNorm2d(3)(gpucnn.zeros(3, 5, 6))


def test_affine_parameters_scale_and_shift_each_channel() -> None:
    x = gpucnn.randn(4, 6, 3, 2)
    weight, bias = np.arange(1, 7, dtype=np.float32), np.arange(6, dtype=np.float32)
    for layer in (nn.BatchNorm2d(6), nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(2, 6)):
        plain = layer(x).numpy()
        layer.load_state_dict({"weight": weight, "bias": bias}, strict=False)
        expected = plain * weight.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
        np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_prelu_learns_its_slope() -> None:
    layer = nn.PReLU(2)
    layer(gpucnn.tensor([[-2.0, -3], [4, -5]])).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [-2, -8]


# -- batch norm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_running_statistics_over_ten_batches_are_pytorchs(momentum: float | None, torch: ModuleType) -> None:
    generator = np.random.default_rng(2)
    theirs = torch.nn.BatchNorm2d(3, momentum=momentum).double()
    ours = nn.BatchNorm2d(3, momentum=momentum).to("float64")
    for batch in range(1, 11):
        x = generator.standard_normal((batch, 3, 5, 4)) * 3 + 1
        y, expected = ours(gpucnn.tensor(x)), theirs(torch.tensor(x))
        np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=0, atol=1e-13)
    assert ours.num_batches_tracked.item() == theirs.num_batches_tracked.item() == 10
    np.testing.assert_allclose(ours.running_mean.numpy(), theirs.running_mean.numpy(), rtol=1e-13)
    np.testing.assert_allclose(ours.running_var.numpy(), theirs.running_var.numpy(), rtol=1e-13)
    x = generator.standard_normal((2, 3, 5, 4))
    y, expected = ours.eval()(gpucnn.tensor(x)), theirs.eval()(torch.tensor(x))
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=0, atol=1e-13)
    assert ours.num_batches_tracked.item() == 10


def test_running_statistics_move_by_the_momentum_towards_mean_and_unbiased_variance() -> None:
    norm = nn.BatchNorm1d(1, momentum=0.25)
    norm(gpucnn.tensor([[1.0], [3], [8]]))
    assert norm.running_mean.tolist() == [0.25 * 4]
    assert norm.running_var.tolist() == [0.75 + 0.25 * (9 + 1 + 16) / 2]


def test_evaluation_does_not_depend_on_the_rest_of_the_batch() -> None:
    norm, x = nn.BatchNorm2d(3), gpucnn.randn(4, 3, 2, 5)
    norm(x)
    norm.eval()
    np.testing.assert_array_equal(norm(x).numpy()[1:2], norm(x[1:2]).numpy())


def test_without_running_statistics_the_batch_counts_also_in_evaluation() -> None:
    norm, x = nn.BatchNorm2d(3, track_running_stats=False).eval(), gpucnn.randn(4, 3, 2, 5)
    assert np.abs(norm(x).numpy().mean((0, 2, 3))).max() < 1e-6
    assert norm.state_dict().keys() == {"weight", "bias"}


def test_failed_batch_is_not_counted() -> None:
    norm = nn.BatchNorm2d(3)
    for wrong, message in [
        ((1, 3, 1, 1), "more than one value per channel"),
        ((2, 4, 3, 3), r"\(4,\)"),
        ((2, 3), "4 axes"),
    ]:
        with pytest.raises(ValueError, match=message):
            norm(gpucnn.ones(*wrong))
    assert norm.num_batches_tracked.item() == 0
    assert norm.running_mean.tolist() == [0, 0, 0]


# -- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(0, 4, 3), "Conv2d: in_channels must be a positive int, got 0"),
        (lambda: nn.Conv2d(3, 4.0, 3), r"Conv2d: out_channels must be a positive int, got 4\.0"),  # type: ignore[arg-type]
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size must be an int >= 1.*got 0"),
        (lambda: nn.Conv2d(4, 6, 3, groups=4), "groups=4 must divide in_channels=4 and out_channels=6"),
        (lambda: nn.ConvTranspose2d(4, 6, 3, groups=4), "groups=4 must divide in_channels=4 and out_channels=6"),
        (lambda: nn.Linear(3, -1), "Linear: out_features must be a positive int, got -1"),
        (lambda: nn.BatchNorm2d(0), "BatchNorm2d: num_features"),
        (lambda: nn.InstanceNorm2d(0), "InstanceNorm2d: num_features"),
        (lambda: nn.GroupNorm(3, 4), "num_groups=3 must divide num_channels=4"),
        (lambda: nn.PReLU(0), "PReLU: num_parameters"),
        (lambda: nn.Dropout(1.5), r"Dropout: p is the probability.*1\.5"),
        (
            lambda: nn.ZeroPad2d((1, 2)),
            r"ZeroPad2d: padding must be an int or \(left, right, top, bottom\), got \(1, 2\)",
        ),
    ],
)
def test_layer_that_cannot_be_is_refused_when_it_is_made(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_counts_may_be_numpy_integers() -> None:
    layer = nn.Linear(np.int64(3), np.int64(2))  # type: ignore[arg-type]
    assert layer(gpucnn.ones(1, 3)).shape == (1, 2)
    assert nn.Conv2d(np.int64(3), np.int64(2), np.int64(3)).weight.shape == (2, 3, 3, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3), (1, 2, 5, 5), r"takes 3 channels .* input has 2"),
        (lambda: nn.Linear(3, 4), (1, 2), r"input has 2 features .* weight takes 3"),
        (lambda: nn.Conv2d(3, 4, 3), (3, 5, 5), r"4 axes .*\(3, 5, 5\).*unsqueeze\(0\)"),
    ],
)
def test_input_that_does_not_fit_the_layer_names_both(layer: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer()(gpucnn.ones(*shape))
