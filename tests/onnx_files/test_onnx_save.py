"""save: what a model computes, as onnxruntime computes it from the file; what ONNX can't say is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numerics import Array, assert_within, unit_roundoff
from onnx_graphs import by_gpucnn, by_onnxruntime

import gpucnn
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.nn import models
from gpucnn.testing import WINDOWS

U = unit_roundoff("float32")


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def settled(model: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics and weights that are not those of a new model."""
    rng = np.random.default_rng(5)
    for name, value in model.state_dict().items():
        if value.dtype.kind == "f":
            value.detach().copy_(value.numpy() + (0.1 * rng.random(value.shape)).astype(value.dtype))
        assert name
    return model.eval()


def check(
    model: nn.Module, folder: Path, backend: str, *shapes: tuple[int, ...], x: Any = None, scale: float = 256
) -> Any:
    """Save, compute with onnxruntime and with the file read back, for three batch sizes; returns the file's model."""
    path = folder / "model.onnx"
    gpucnn.onnx.save(model, path, shapes[0] if len(shapes) == 1 else shapes)
    graph = gpucnn.onnx.load(path)
    for batch in (1, 2, 5):
        arrays = [random(batch, *shape, seed=i) if x is None else x(batch) for i, shape in enumerate(shapes)]
        wanted = by_gpucnn(model, *arrays, backend=backend)  # type: ignore[arg-type]
        for found in (by_onnxruntime(path, *arrays), by_gpucnn(graph, *arrays, backend=backend)):
            for ours, theirs in zip(wanted, found, strict=True):
                assert ours.dtype == theirs.dtype
                assert_within(theirs, ours.astype(float), scale * U * max(1.0, float(np.abs(ours).max(initial=0))))
    return onnx.load(path)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# -- the models ------------------------------------------------------------------------------------

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "LeNet5": (lambda: models.LeNet5(3, 2, (31, 17), batch_norm=True), (2, 31, 17)),
    "x_or_not_x": (models.x_or_not_x, (1, 5, 5)),
    "beginners_guide": (models.beginners_guide, (3, 32, 32)),
    "friendly_introduction": (lambda: models.friendly_introduction(4), (1, 10, 10)),
    "VGGSmall": (lambda: models.VGGSmall(7, 1, (4, 6), 0.1), (1, 13, 9)),
    "resnet20": (models.resnet20, (3, 19, 27)),
    "resnet18": (lambda: models.resnet18(5, 1), (1, 45, 33)),
    "bottlenecks": (lambda: models.ResNet("bottleneck", (1, 2), (4, 6), 5, 2, "cifar"), (2, 9, 7)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_written_with_its_weights_under_their_names(name: str, tmp_path: Path, backend: str) -> None:
    gpucnn.manual_seed(0)
    make, image = MODELS[name]
    model = settled(make())
    check(model, tmp_path, backend, image, scale=4096)
    graph = gpucnn.onnx.load(tmp_path / "model.onnx")
    ours = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    theirs = graph.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(theirs[key].numpy(), value.numpy())
    assert {n for n, _ in graph.named_parameters()} == {n for n, _ in model.named_parameters()}


def test_resnet50_is_written(tmp_path: Path, backend: str) -> None:
    gpucnn.manual_seed(0)
    model, path = settled(models.resnet50()), tmp_path / "resnet50.onnx"
    gpucnn.onnx.save(model, path, (3, 33, 40))
    x = random(2, 3, 33, 40)
    (ours,), (theirs,) = by_gpucnn(model, x, backend=backend), by_onnxruntime(path, x)  # type: ignore[arg-type]
    assert_within(theirs, ours.astype(float), 8192 * U * float(np.abs(ours).max()))
    assert len(onnx.load(path).graph.node) > 120


def test_graph_is_what_an_exporter_would_write(tmp_path: Path, backend: str) -> None:
    written = check(models.LeNet5(), tmp_path, backend, (1, 28, 28))
    assert operators(written) == [
        "Conv", "MaxPool", "Relu", "Conv", "MaxPool", "Relu", "Reshape", "Gemm", "Relu", "Gemm", "Relu", "Gemm",
    ]  # fmt: skip
    (entry,) = written.graph.input
    assert [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] == ["N", 1, 28, 28]
    (entry,) = written.graph.output
    assert [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] == ["N", 10]
    assert written.opset_import[0].version == 20
    assert written.producer_name == "gpucnn"


# -- layers and functions --------------------------------------------------------------------------

PLANE = (4, 9, 7)
ROW = (4, 9)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), 2), PLANE),
    "Conv2d-same": (lambda: nn.Conv2d(4, 6, (4, 3), 2, "same", bias=False), PLANE),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), 1, (1, 0), 2), PLANE),
    "ConvTranspose2d-dilated": (lambda: nn.ConvTranspose2d(4, 3, 3, 2, 0, 1, dilation=2, bias=False), PLANE),
    "Linear": (lambda: nn.Linear(7, 5), (7,)),
    "Linear-of-rows": (lambda: nn.Linear(7, 5), PLANE),
    "Linear-of-rows-without-bias": (lambda: nn.Linear(7, 5, bias=False), PLANE),
    "MinPool2d": (lambda: nn.MinPool2d(3, 2, 1), PLANE),
    "MaxPool2d-dilated": (lambda: nn.MaxPool2d(3, 2, 1, 3, ceil_mode=True), PLANE),
    "MaxPool2d-far": (lambda: nn.MaxPool2d(2, 3, 0, 4, ceil_mode=True), PLANE),
    "MaxPool2d-same": (lambda: nn.MaxPool2d(3, 2, "same"), PLANE),
    "AvgPool2d-ceil-counted": (lambda: nn.AvgPool2d((2, 3), 2, (1, 0), ceil_mode=True), PLANE),
    "AvgPool2d-ceil": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), PLANE),
    "AvgPool2d-divided": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5), PLANE),
    "AvgPool2d-same": (lambda: nn.AvgPool2d(4, 3, "same"), PLANE),
    "SumPool2d": (lambda: nn.SumPool2d((2, 3), 2, ceil_mode=True), PLANE),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((4, 3)), PLANE),
    "AdaptiveAvgPool2d-even": (lambda: nn.AdaptiveAvgPool2d((3, 7)), PLANE),
    "AdaptiveAvgPool2d-global": (lambda: nn.AdaptiveAvgPool2d(1), PLANE),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d((4, 3)), PLANE),
    "AdaptiveMaxPool2d-global": (lambda: nn.AdaptiveMaxPool2d(1), PLANE),
    "ReLU": (nn.ReLU, PLANE),
    "ReLU6": (nn.ReLU6, PLANE),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2), PLANE),
    "PReLU": (nn.PReLU, PLANE),
    "PReLU-channels": (lambda: nn.PReLU(4), PLANE),
    "PReLU-flat": (lambda: nn.PReLU(7), (7,)),
    "ELU": (lambda: nn.ELU(0.7), PLANE),
    "SELU": (nn.SELU, PLANE),
    "GELU": (nn.GELU, PLANE),
    "GELU-tanh": (lambda: nn.GELU("tanh"), PLANE),
    "SiLU": (nn.SiLU, PLANE),
    "Mish": (nn.Mish, PLANE),
    "Hardswish": (nn.Hardswish, PLANE),
    "Hardsigmoid": (nn.Hardsigmoid, PLANE),
    "Hardtanh": (lambda: nn.Hardtanh(-0.3, 0.7), PLANE),
    "Softplus": (nn.Softplus, PLANE),
    "Softplus-steep": (lambda: nn.Softplus(3.0), PLANE),
    "Sigmoid": (nn.Sigmoid, PLANE),
    "LogSigmoid": (nn.LogSigmoid, PLANE),
    "Softsign": (nn.Softsign, PLANE),
    "Tanh": (nn.Tanh, PLANE),
    "Softmax": (lambda: nn.Softmax(1), PLANE),
    "LogSoftmax": (lambda: nn.LogSoftmax(-1), PLANE),
    "Dropout": (nn.Dropout, PLANE),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(7), (7,)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4, momentum=None), PLANE),
    "BatchNorm2d-plain": (lambda: nn.BatchNorm2d(4, affine=False), PLANE),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), PLANE),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), PLANE),
    "InstanceNorm2d-plain": (lambda: nn.InstanceNorm2d(4, eps=0.1), PLANE),
    "InstanceNorm2d-tracked": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), PLANE),
    "LayerNorm": (lambda: nn.LayerNorm((9, 7)), PLANE),
    "LayerNorm-plain": (lambda: nn.LayerNorm(7, elementwise_affine=False), PLANE),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3, 0.5), PLANE),
    "LocalResponseNorm-even": (lambda: nn.LocalResponseNorm(2, 0.5), PLANE),
    "Identity": (nn.Identity, PLANE),
    "Flatten": (nn.Flatten, PLANE),
    "Flatten-the-batch-too": (lambda: nn.Flatten(0, 2), PLANE),
    "Unflatten": (lambda: nn.Unflatten(1, (2, -1)), PLANE),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((1, 2, 0, 3)), PLANE),
    "ZeroPad2d-cutting": (lambda: nn.ZeroPad2d((-1, 2, 0, -3)), PLANE),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d((1, 2, 0, 3)), PLANE),
    "ReplicationPad2d": (lambda: nn.ReplicationPad2d(2), PLANE),
    "Upsample": (lambda: nn.Upsample(scale_factor=(2, 3)), PLANE),
    "Upsample-by-fractions": (lambda: nn.Upsample((13, 5)), PLANE),
    "Dropout2d": (lambda: nn.Dropout2d(0.3), PLANE),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), (8, 3, 5)),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(3), (2, 6, 9)),
    "Upsample-one-number": (lambda: nn.Upsample(18), (4, 9, 6)),
    "Upsample-bilinear": (lambda: nn.Upsample((13, 5), mode="bilinear"), PLANE),
    "Upsample-bilinear-scale": (lambda: nn.Upsample(scale_factor=1.7, mode="bilinear"), PLANE),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, (2, 0), 2, 2), ROW),
    "Conv1d-same": (lambda: nn.Conv1d(4, 6, 4, 2, "same", bias=False), ROW),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 3, 1, 2, 2), ROW),
    "MaxPool1d": (lambda: nn.MaxPool1d(3, 2, 1, 2, ceil_mode=True), ROW),
    "AvgPool1d": (lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), ROW),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(4), ROW),
    "AdaptiveAvgPool1d-global": (lambda: nn.AdaptiveAvgPool1d(1), ROW),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(4), ROW),
    "BatchNorm1d-of-signals": (lambda: nn.BatchNorm1d(4), ROW),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4, affine=True), ROW),
    "Dropout1d": (nn.Dropout1d, ROW),
    "ConstantPad1d": (lambda: nn.ConstantPad1d((1, 2), 0.5), ROW),
    "ConstantPad2d": (lambda: nn.ConstantPad2d((1, 2, 0, 3), -2.0), PLANE),
    "ZeroPad1d": (lambda: nn.ZeroPad1d((1, 2)), ROW),
    "ReflectionPad1d": (lambda: nn.ReflectionPad1d((1, 2)), ROW),
    "ReplicationPad1d": (lambda: nn.ReplicationPad1d(2), ROW),
    "Upsample-of-signals": (lambda: nn.Upsample(scale_factor=2), ROW),
    "Upsample-linear": (lambda: nn.Upsample(13, mode="linear"), ROW),
    "Upsample-linear-corners": (lambda: nn.Upsample(13, mode="linear", align_corners=True), ROW),
    "Upsample-bilinear-corners": (lambda: nn.Upsample(scale_factor=1.7, mode="bilinear", align_corners=True), PLANE),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_written(name: str, tmp_path: Path, backend: str) -> None:
    gpucnn.manual_seed(0)
    make, shape = LAYERS[name]
    check(settled(make()), tmp_path, backend, shape)


def test_every_layer_that_is_no_loss_is_among_these() -> None:
    layers = {
        name for name in nn.__all__ if isinstance(getattr(nn, name), type) and issubclass(getattr(nn, name), nn.Module)
    }
    losses = {name for name in layers if name.endswith(("Loss", "Error"))}
    lazy = {name for name in layers if name.startswith("Lazy")}  # they become others of these
    called = layers - losses - lazy - {"Module", "ModuleList", "ModuleDict", "ParameterList", "Sequential"}
    assert called - {"MaxPool2d", "AvgPool2d"} <= {name.split("-")[0] for name in LAYERS}, (
        "add it to LAYERS; if ONNX has the operator, a writer to gpucnn/onnx/write.py"
    )


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


@pytest.mark.parametrize(
    ("shape", "window"), [case for case in WINDOWS if case[0][0]], ids=lambda value: str(value).replace(" ", "")
)
def test_every_window_is_written(shape: tuple[int, ...], window: dict[str, Any], tmp_path: Path, backend: str) -> None:
    pooled = [
        lambda x: F.max_pool2d(x, **window),
        lambda x: F.avg_pool2d(x, **window),
        lambda x: F.avg_pool2d(x, **window, count_include_pad=False),
        lambda x: F.sum_pool2d(x, **window),
    ]
    model = Applied(lambda x: tuple(pool(x) for pool in pooled))
    check(model, tmp_path, backend, shape[1:], x=lambda batch: random(batch, *shape[1:]))


W = random(4, 1, 7)
FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "operators": lambda x: (2 - x) * 3 / (x * x + 0.5) - (-x) ** 2 + abs(x) + x.exp() + (x * x + 1).log(),
    "sqrt of a sum": lambda x: (x * x).sum((2, 3), keepdim=True).sqrt(),
    "mean of all": lambda x: x.mean(),
    "reductions": lambda x: x.mean(1) + x.amax(1) - x.amin(dim=(1,)) + x.sum(1),
    "argmax": lambda x: x.argmax(1),
    "argmax of all": lambda x: x.argmax(),
    "argmax that keeps its axis": lambda x: x.argmax(1, keepdim=True),
    "argmax of all that keeps the axes": lambda x: x.argmax(keepdim=True),
    "clamps": lambda x: x.clamp(-0.5) + x.clamp(max=0.5) + x.clamp(-1, 1),
    "where": lambda x: F.where(x > 0, x, -0.1) + F.where(x <= 0.5, 1.0, x),
    "comparisons": lambda x: ((x == x).float() + (x != x).float() + (x < 0).float() + (x >= 1).float()),
    "logic": lambda x: ((x > 0) & (x < 0.5) | ~(x > -0.5) ^ F.logical_not(x <= 0.25)),
    "steps": lambda x: x.floor() + 2 * (3 * x).ceil() + 5 * (4 * x).round() + x.sign(),
    "not numbers": lambda x: ((x / (x - x)).isnan(), (x / 0).isinf()),
    "norms": lambda x: x.norm() + x.norm(1, 2, True) + x.norm(np.inf, 1, True) + F.normalize(x).sum((0, 1, 2)),
    "statistics": lambda x: x.var(1, keepdim=True) + x.std((2, 3), correction=0, keepdim=True),
    "exponentials": lambda x: x.logsumexp(1),
    "places": lambda x: x.gather(1, (x > 0).long()) + F.where(x > 0, 1.0, 0.0),
    "chosen": lambda x: x.index_select(2, (x.mean((0, 1, 3)) > -9).long() * 2),
    "flips": lambda x: x.flip(1, 3).tile(2, 1).repeat(1, 1, 2, 1),
    "maximum": lambda x: F.maximum(x, -x) - F.minimum(x, x * 2),
    "constant": lambda x: x * gpucnn.tensor(W, backend=x.backend),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "views": lambda x: x.permute(0, 2, 3, 1).unsqueeze(1).squeeze(1).reshape(x.shape[0], 9, -1),
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1),
    "stack": lambda x: gpucnn.stack([x, x * 2], 1),
    "cat": lambda x: gpucnn.cat([x, x[:, :1]], -3),
    "slices": lambda x: x[:, 1:, ::2, ::-1],
    "slices from the end": lambda x: x[..., -3:-1],
    "slices back": lambda x: x[:, :, 7:1:-3],
    "ints": lambda x: x[:, 2, :, -1],
    "int of the batch": lambda x: x[0],
    "list": lambda x: x[:, [2, 0, 0]],
    "matrix of places": lambda x: x[:, :, [[2, 0], [1, 1]]],
    "new axes": lambda x: x[:, None, 1, ..., None],
    "fused": lambda x: F.conv2d(x, gpucnn.ones(3, 4, 2, 2, backend=x.backend) * 0.2, activation="relu6"),
    "fused sigmoid": lambda x: F.conv2d(x, gpucnn.ones(3, 4, 2, 2, backend=x.backend), activation="sigmoid"),
    "fused scale": lambda x: F.conv2d(
        x, gpucnn.ones(3, 4, 2, 2, backend=x.backend), activation="tanh",
        scale=gpucnn.tensor([0.1, 0.2, 0.3], backend=x.backend)
    ),
    "detached": lambda x: x * x.detach().mean((1, 2, 3), keepdim=True),
    "input back": lambda x: (x, x * 2, x),
    "padded with sevens": lambda x: F.pad(x, (1, 0), value=7.0),
    "nothing at all": lambda x: (x, gpucnn.tensor(W, backend=x.backend)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_whatever_forward_does_with_functions_is_written(name: str, tmp_path: Path, backend: str) -> None:
    check(Applied(FUNCTIONS[name]), tmp_path, backend, PLANE)


class TwoInputs(nn.Module):
    """Residuals, a branch and two inputs, as someone might write it."""

    def __init__(self) -> None:
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.shift = nn.Parameter(gpucnn.randn(4))
        self.head = nn.Linear(4 + 5, 2)

    def forward(self, image: Tensor, extra: Tensor) -> Any:
        y = F.relu(self.first(image))
        y = F.relu(self.second(y) + y) + self.shift.reshape(4, 1, 1)
        y = y.mean((2, 3))
        return self.head(gpucnn.cat([y, extra], 1)), y


def test_a_module_of_ones_own_with_several_inputs_and_outputs(tmp_path: Path, backend: str) -> None:
    gpucnn.manual_seed(0)
    written = check(TwoInputs(), tmp_path, backend, (3, 8, 6), (5,))
    assert [entry.name for entry in written.graph.input] == ["input", "input_1"]
    assert [entry.name for entry in written.graph.output] == ["output", "output_1"]
    assert "shift" in {tensor.name for tensor in written.graph.initializer}


class NamesOfItsOwn(nn.Module):
    """Parameters that are called as the file would call its inputs, outputs and what nodes make."""

    def __init__(self) -> None:
        for name in ("input", "input_1", "output", "constant_0", "Add_0_output", "Add_1_output"):
            setattr(self, name, nn.Parameter(gpucnn.randn(3)))

    def forward(self, x: Tensor, y: Tensor) -> Any:
        total = x + y
        for _, parameter in self.named_parameters():
            total = total + parameter
        return total, total * 3.0


def test_names_that_parameters_have_are_no_names_of_inputs_and_outputs(tmp_path: Path, backend: str) -> None:
    gpucnn.manual_seed(0)
    model = NamesOfItsOwn()
    written = check(model, tmp_path, backend, (3,), (3,))
    assert [entry.name for entry in written.graph.input] == ["input_2", "input_3"]
    assert [entry.name for entry in written.graph.output] == ["output_1", "output_2"]
    assert {name for name, _ in model.named_parameters()} < {tensor.name for tensor in written.graph.initializer}


def test_momentum_of_the_running_statistics_is_kept(tmp_path: Path, backend: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, momentum=0.3))
    gpucnn.onnx.save(model, tmp_path / "model.onnx", PLANE)
    graph = gpucnn.onnx.load(tmp_path / "model.onnx").train()
    x = gpucnn.tensor(random(3, *PLANE), backend=backend)
    graph(x)
    model(x)
    moved = graph.state_dict()["0.running_mean"].numpy()
    assert_within(moved, model.state_dict()["0.running_mean"].numpy().astype(float), 4 * U)


def test_float64_is_kept(tmp_path: Path, backend: str) -> None:
    if backend != "numpy":
        pytest.skip("float64 is for the numpy backend")
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to("float64")
    gpucnn.onnx.save(model, tmp_path / "model.onnx", (3,))
    x = random(2, 3).astype(np.float64)
    (y,) = by_onnxruntime(tmp_path / "model.onnx", x)
    assert y.dtype == np.float64
    assert_within(y, model(gpucnn.tensor(x)).numpy(), 1e-14)


def test_training_mode_and_the_recording_leave_no_trace(tmp_path: Path, backend: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train()
    model[2].eval()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    gpucnn.onnx.save(model, tmp_path / "model.onnx", (1, 5, 6))
    assert [module.training for module in model.modules()] == [True, True, True, False]
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_norms_taken_into_convolutions_are_written_too(tmp_path: Path, backend: str) -> None:
    """Inside no_grad, layers that are neighbours compute as one."""
    gpucnn.manual_seed(0)
    model = settled(nn.Sequential(nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3), nn.ReLU()))
    with gpucnn.no_grad():
        check(model, tmp_path, backend, PLANE)


def test_classes_and_normalisation_are_kept_for_predict(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    gpucnn.onnx.save(nn.Linear(3, 2), path, (3,), classes=["cat", "dog"], normalise=(0.5, [0.25]))
    assert gpucnn.onnx.load(path).metadata == {"classes": ["cat", "dog"], "normalise": [0.5, [0.25]]}
    gpucnn.onnx.save(nn.Linear(3, 2), path, (3,), normalise=gpucnn.data.Normalize([0.1, 0.2], [1, 2]))
    assert gpucnn.onnx.load(path).metadata == {"normalise": [[0.1, 0.2], [1.0, 2.0]]}
    gpucnn.onnx.save(nn.Linear(3, 2), path, (3,))
    assert gpucnn.onnx.load(path).metadata == {}


# -- what is refused -------------------------------------------------------------------------------


def test_everything_that_can_not_be_written_is_named_at_once(tmp_path: Path) -> None:
    def forward(x: Tensor) -> Any:
        y = F.cross_entropy(x, np.zeros(len(x), int)) + x[x > 0].sum()
        return y + F.batch_norm(x, None, None, training=True).sum()

    with pytest.raises(ValueError, match="can't be written as ONNX") as found:
        gpucnn.onnx.save(Applied(forward), tmp_path / "model.onnx", (3,))
    for part in ("cross_entropy", "index: ", "batch_norm: it uses the statistics of the batch"):
        assert part in str(found.value)
    assert os.listdir(tmp_path) == []


def of_numpy(x: Tensor) -> Tensor:
    return gpucnn.tensor(np.sin(x.numpy()), backend=x.backend) + x


REFUSED: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "numpy": (of_numpy, ValueError, "add: the argument input depends on the input or on the batch size"),
    "a number of the input": (lambda x: x * float(x.numpy().mean()), ValueError, "mul: the argument other depends on"),
    "noise": (lambda x: x + gpucnn.randn(9, 7, backend=x.backend), ValueError, "add: the argument other depends on"),
    "ones of the batch": (lambda x: x + gpucnn.ones(*x.shape, backend=x.backend), ValueError, "the argument other"),
    "half the batch": (lambda x: x[: len(x) // 2], ValueError, "index: the argument index depends on"),
    "other things": (lambda x: x.relu() if len(x) == 2 else x.tanh(), ValueError, "other things for another batch"),
    "places": (lambda x: F.max_pool2d(x, 2, return_indices=True), ValueError, "returns a tensor that was not made by"),
    "computed index": (lambda x: x[x.argmax() * 0], ValueError, "an index that is computed from the input"),
    "mask": (lambda x: x[:, [True, False, True, True]], ValueError, r"index: the index .* has a bool array"),
    "batch twice": (
        lambda x: x.reshape(len(x), 1, 4, 63).expand(-1, len(x), -1, -1), ValueError,
        "expand: an axis is repeated as often as there are images"),
    "dropout": (lambda x: F.dropout(x, training=True), ValueError, "dropout: ONNX has no operator that computes just"),
    "empty": (lambda x: x[:, :0].flatten(2), ValueError, r"flatten: the shape \(-1, 0, 63\) is empty"),
    "no tensor": (lambda x: {"y": x}, TypeError, "forward\\(\\) must return a tensor or several, got dict"),
    "nothing": (lambda x: (), TypeError, "got tuple"),
    "secret": (lambda x: Tensor(x.array * 2, x.backend), ValueError, "returns a tensor that was not made by"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_recorded_is_refused_and_nothing_written(name: str, tmp_path: Path, backend: str) -> None:
    function, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        gpucnn.onnx.save(Applied(function), tmp_path / "model.onnx", PLANE)
    assert os.listdir(tmp_path) == []


def test_a_batch_in_two_axes_is_refused(tmp_path: Path, backend: str) -> None:
    def forward(x: Tensor) -> Tensor:
        pairs = x @ x.transpose(0, 1)  # every image with every other
        return pairs.unsqueeze(0)

    with pytest.raises(
        ValueError, match=r"unsqueeze: the shape \(1, -1, -1\) depends on the batch in more than one place"
    ):
        gpucnn.onnx.save(Applied(forward), tmp_path / "model.onnx", (3,))


def test_a_file_that_would_compute_another_thing_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is read back before it takes its place: here a writer that is wrong."""
    from gpucnn.onnx import write

    (tmp_path / "model.onnx").write_text("an older model")
    monkeypatch.setitem(write.WRITERS, "relu", write.WRITERS["tanh"])
    with pytest.raises(ValueError, match="does not compute what the model does, so nothing was written"):
        gpucnn.onnx.save(nn.ReLU(), tmp_path / "model.onnx", (3,))
    assert (tmp_path / "model.onnx").read_text() == "an older model"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_graph_that_the_checker_refuses_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpucnn.onnx import write

    monkeypatch.setitem(write.WRITERS, "relu", lambda w, s: w.node("Nonsense", s["input"]))
    with pytest.raises(ValueError, match=r"can't be written as ONNX: .*Nonsense"):
        gpucnn.onnx.save(nn.ReLU(), tmp_path / "model.onnx", (3,))
    assert os.listdir(tmp_path) == []


def test_more_weights_than_a_file_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpucnn.onnx import write

    monkeypatch.setattr(write, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="an ONNX file holds 2 GiB, the weights have 160 bytes"):
        gpucnn.onnx.save(nn.Linear(3, 10), tmp_path / "model.onnx", (3,))


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        gpucnn.onnx.save(nn.ReLU(), tmp_path / "nix" / "model.onnx", (3,))


def test_a_profiler_that_was_at_work_stays_at_work(tmp_path: Path) -> None:
    import sys

    def profiler(*event: Any) -> None: ...

    sys.setprofile(profiler)
    try:
        gpucnn.onnx.save(nn.ReLU(), tmp_path / "model.onnx", (3,))
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
