"""The networks: sizes, names, counts against independent formulas, any image size, gradients everywhere."""

import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.nn import models

# how it is made, [C, H, W] of its image, classes
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "LeNet5": (models.LeNet5, (1, 28, 28), 10),
    "LeNet5-odd": (lambda: models.LeNet5(3, 2, (31, 17), batch_norm=True), (2, 31, 17), 3),
    "LeNet5-smallest": (lambda: models.LeNet5(2, 1, (12, 13)), (1, 12, 13), 2),
    "x_or_not_x": (models.x_or_not_x, (1, 5, 5), 1),
    "beginners_guide": (models.beginners_guide, (3, 32, 32), 10),
    "friendly_introduction": (lambda: models.friendly_introduction(4), (1, 10, 10), 4),
    "VGGSmall": (lambda: models.VGGSmall(7, 1, (4, 6), 0.1), (1, 13, 9), 7),
    "VGGSmall-smallest": (lambda: models.VGGSmall(widths=(4, 5, 6)), (3, 8, 8), 10),
    "resnet20": (models.resnet20, (3, 19, 27), 10),
    "resnet18": (lambda: models.resnet18(5, 1), (1, 45, 33), 5),
    "bottlenecks": (lambda: models.ResNet("bottleneck", (1, 2), (4, 6), 5, 2, "cifar"), (2, 9, 7), 5),
    "bottlenecks-without-projection": (
        lambda: models.ResNet("bottleneck", (1, 2), (4, 6), 5, 2, "cifar", "pad"),
        (2, 9, 7),
        5,
    ),
}
every_model = pytest.mark.parametrize(("make", "image", "classes"), MODELS.values(), ids=list(MODELS))


@every_model
def test_output_has_a_row_for_each_image_and_a_column_for_each_class(make: Any, image: Any, classes: int) -> None:
    model = make().eval()
    for batch in (1, 3):
        y = model(gpucnn.rand(batch, *image))
        assert y.shape == (batch, classes)
        assert np.isfinite(y.numpy()).all()


@every_model
def test_gradient_flows_to_every_parameter(make: Any, image: Any, classes: int) -> None:
    gpucnn.manual_seed(0)
    model = make()
    (model(gpucnn.rand(4, *image)) * gpucnn.randn(4, classes)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        values = parameter.grad.numpy()
        assert values.shape == parameter.shape
        assert np.isfinite(values).all(), name
        assert values.any(), name


@every_model
def test_same_seed_gives_the_same_network(make: Any, image: Any, classes: int) -> None:
    weights = []
    for seed in (1, 1, 2):
        gpucnn.manual_seed(seed)
        weights.append([p.numpy().tobytes() for p in make().parameters()])
    assert weights[0] == weights[1] != weights[2]


def test_images_do_not_see_each_other_in_evaluation() -> None:
    model = models.ResNet("basic", (1, 1), (3, 4), 5, 1, "cifar").eval()
    x = gpucnn.rand(3, 1, 9, 7)
    together = model(x).numpy()
    for i in range(3):
        np.testing.assert_allclose(model(x[i : i + 1]).numpy()[0], together[i], rtol=0, atol=1e-6)


# -- counts --------------------------------------------------------------------------------------------


def test_lenet_has_61706_parameters_and_416520_multiply_adds() -> None:
    summary = models.LeNet5().summary(1, 28, 28)
    assert (summary.parameters, summary.multiply_adds) == (61_706, 416_520)


def test_x_or_not_x_has_95_parameters() -> None:
    model = models.x_or_not_x()
    by_layer = [sum(p.numel() for p in layer.parameters()) for layer in model]
    assert [n for n in by_layer if n] == [40, 51, 4]
    summary = model.summary(1, 5, 5)
    assert summary.parameters == 95
    assert summary.multiply_adds == 9 * 4 * 9 + 16 * 3 + 3


def test_beginners_guide_has_the_layers_in_the_order_of_the_guide() -> None:
    kinds = [type(layer).__name__ for layer in models.beginners_guide()]
    assert kinds == [
        "Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Flatten", "Linear",
    ]  # fmt: skip
    shapes = [row.output_shape for row in models.beginners_guide().summary(3, 32, 32).rows]
    assert shapes[0] == (16, 28, 28)
    assert shapes[-1] == (10,)


def test_friendly_introduction_has_a_convolution_after_a_dense_layer() -> None:
    kinds = [type(layer).__name__ for layer in models.friendly_introduction()]
    assert kinds.index("Linear") < kinds.index("Unflatten") < len(kinds) - 1 - kinds[::-1].index("Conv2d")


def test_vgg_has_two_convolutions_a_width() -> None:
    widths, channels, total = (5, 7, 11), 2, 0
    for width in widths:
        total += 9 * channels * width + 2 * width + 9 * width * width + 2 * width
        channels = width
    summary = models.VGGSmall(4, 2, widths).summary(2, 17, 24)
    assert summary.parameters == total + 11 * 4 + 4
    assert [row.output_shape for row in summary.rows if row.kind == "MaxPool2d"] == [(5, 8, 12), (7, 4, 6), (11, 2, 3)]


# -- residual networks ---------------------------------------------------------------------------------


def torchvision_state(bottleneck: bool, blocks: list[int], classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Key and shape of every entry of torchvision's ResNet state, in its order, from its published naming."""

    def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (channels,)
        yield f"{name}.num_batches_tracked", ()

    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    c = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        out = width * 4 if bottleneck else width
        for block in range(count):
            at = f"layer{stage + 1}.{block}"
            shapes = (
                [(width, c, 1), (width, width, 3), (out, width, 1)] if bottleneck else [(width, c, 3), (out, width, 3)]
            )
            for i, (k, into, r) in enumerate(shapes, start=1):
                yield f"{at}.conv{i}.weight", (k, into, r, r)
                yield from norm(f"{at}.bn{i}", k)
            if block == 0 and c != out:
                yield f"{at}.downsample.0.weight", (out, c, 1, 1)
                yield from norm(f"{at}.downsample.1", out)
            c = out
    yield "fc.weight", (classes, c)
    yield "fc.bias", (classes,)


@pytest.mark.parametrize(
    ("make", "bottleneck", "blocks", "entries", "parameters"),
    [
        (models.resnet18, False, [2, 2, 2, 2], 122, 11_689_512),
        (models.resnet50, True, [3, 4, 6, 3], 320, 25_557_032),
    ],
)
def test_resnets_have_torchvisions_names_and_shapes(
    make: Any, bottleneck: bool, blocks: list[int], entries: int, parameters: int
) -> None:
    """The number of entries and of parameters are those that torchvision publishes for its weights."""
    model = make()
    state = [(name, value.shape) for name, value in model.state_dict().items()]
    assert state == list(torchvision_state(bottleneck, blocks, 1000))
    assert len(state) == entries
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_resnet18_spends_what_its_shapes_say() -> None:
    """Counted from the shapes of the state: a weight meets each output place of its layer once."""
    h, w = 61, 45
    model = models.resnet18(7)
    half = [(h, w)]
    for _ in range(5):  # the stem, its pooling and three stages halve, rounding up
        half.append(tuple(-(-n // 2) for n in half[-1]))
    total = 0
    for name, shape in torchvision_state(False, [2, 2, 2, 2], 7):
        if name == "conv1.weight":
            total += math.prod(shape) * math.prod(half[1])
        elif name == "fc.weight":
            total += math.prod(shape)
        elif len(shape) == 4:
            stage = int(name[len("layer")])
            total += math.prod(shape) * math.prod(half[stage + 1])
    summary = model.summary(3, h, w)
    assert summary.multiply_adds == total
    shapes = [row.output_shape for row in summary.rows if row.name.endswith("bn2")]
    assert shapes == [(64 * 2**s, *half[s + 2]) for s in range(4) for _ in range(2)]


def test_resnet20_has_no_parameters_in_its_shortcuts() -> None:
    """He et al., section 4.2: 6n + 2 layers of 16, 32 and 64 filters; 0.27 million parameters for n = 3."""
    n, total, channels = 3, 9 * 3 * 16 + 32, 16
    for width in (16, 32, 64):
        total += 9 * channels * width + (2 * n - 1) * 9 * width * width + 2 * n * 2 * width
        channels = width
    total += 64 * 10 + 10
    model = models.resnet20()
    assert sum(p.numel() for p in model.parameters()) == total == 269_722
    assert not any("downsample" in name for name in model.state_dict())
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) + 1 == 6 * n + 2


def test_shortcut_without_parameters_takes_every_second_pixel_and_pads_with_zero_channels() -> None:
    x = gpucnn.rand(2, 3, 5, 4)
    y = models.PadShortcut(3, 5, 2)(x).numpy()
    assert y.shape == (2, 5, 3, 2)
    np.testing.assert_array_equal(y[:, :3], x.numpy()[:, :, ::2, ::2])
    assert not y[:, 3:].any()


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_block_whose_branch_gives_nothing_is_its_shortcut(block: Any) -> None:
    """With the last normalisation's weight at 0 a residual block is relu(input)."""
    model = models.ResNet(block, (2,), (4,), 3, 2, "cifar")
    last = model.layer1[1]
    norm = last.bn2 if block == "basic" else last.bn3
    nn.init.zeros_(norm.weight)
    x = gpucnn.randn(2, 4 * last.expansion, 3, 5)
    np.testing.assert_array_equal(last(x).numpy(), F.relu(x).numpy())


def test_convolutions_of_a_resnet_start_with_the_deviation_for_fan_out() -> None:
    weight = models.resnet18(5).layer4[0].conv1.weight
    assert weight.shape == (512, 256, 3, 3)
    expected = math.sqrt(2 / (512 * 9))
    assert abs(weight.numpy().std() / expected - 1) < 5 / math.sqrt(2 * weight.numel())


def test_residual_network_with_pytorchs_weights_gives_pytorchs_outputs(torch: ModuleType) -> None:
    """ResNet-18's blocks, written in PyTorch as torchvision does, with the weights of ours."""
    t = torch.nn

    class Block(t.Module):
        def __init__(self, into: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = t.Conv2d(into, width, 3, stride, 1, bias=False), t.BatchNorm2d(width)
            self.conv2, self.bn2 = t.Conv2d(width, width, 3, 1, 1, bias=False), t.BatchNorm2d(width)
            self.downsample = None
            if stride > 1 or into != width:
                self.downsample = t.Sequential(t.Conv2d(into, width, 1, stride, bias=False), t.BatchNorm2d(width))

        def forward(self, x: Any) -> Any:
            shortcut = x if self.downsample is None else self.downsample(x)
            return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + shortcut)

    class Network(t.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = t.Conv2d(3, 6, 7, 2, 3, bias=False), t.BatchNorm2d(6)
            self.maxpool = t.MaxPool2d(3, 2, 1)
            self.layer1 = t.Sequential(Block(6, 6, 1), Block(6, 6, 1))
            self.layer2 = t.Sequential(Block(6, 10, 2))
            self.fc = t.Linear(10, 5)

        def forward(self, x: Any) -> Any:
            y = self.layer2(self.layer1(self.maxpool(torch.relu(self.bn1(self.conv1(x))))))
            return self.fc(y.mean((2, 3)))

    theirs, ours = Network().double(), models.ResNet("basic", (2, 1), (6, 10), 5).to("float64")
    theirs.load_state_dict({name: torch.tensor(value.numpy()) for name, value in ours.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((3, 3, 37, 29))
    a = gpucnn.tensor(x, requires_grad=True)
    b = torch.tensor(x, requires_grad=True)
    y, expected = ours(a), theirs(b)
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=0, atol=1e-12)
    (y * y).sum().backward()
    (expected * expected).sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p.grad is not None
        scale = float(q.grad.abs().max())
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=0, atol=1e-11 * max(scale, 1), err_msg=name)
    assert a.grad is not None
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=0, atol=1e-11 * float(b.grad.abs().max()))
    assert {n: v.item() for n, v in ours.state_dict().items() if n.endswith("tracked")} == {
        n: v.item() for n, v in theirs.state_dict().items() if n.endswith("tracked")
    }


# -- training and errors -------------------------------------------------------------------------------


def test_x_or_not_x_learns_its_pictures() -> None:
    """Every picture of the generator, shifted, shrunk and with a pixel off, and as many that are not an X."""
    gpucnn.manual_seed(1)
    dataset = gpucnn.data.x_or_not_x(200, seed=3)
    x = gpucnn.tensor(gpucnn.data.to_float(dataset.images))
    target = gpucnn.tensor(dataset.labels.astype(np.float32).reshape(-1, 1))
    model = models.x_or_not_x()
    optimizer = gpucnn.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        F.binary_cross_entropy(model(x), target).backward()
        optimizer.step()
    decided: Tensor = model(x) > 0.5
    assert (decided.numpy() == (target.numpy() == 1)).mean() > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.LeNet5(image_size=(28, 11)), "at least 12×12, got 28×11"),
        (lambda: models.ResNet("wide", (1,), (4,)), "block must be one of 'basic', 'bottleneck', got 'wide'"),  # type: ignore[arg-type]
        (lambda: models.ResNet("basic", (1,), (4,), stem="small"), "stem must be one of 'imagenet', 'cifar'"),  # type: ignore[arg-type]
        (lambda: models.ResNet("basic", (1,), (4,), shortcut="A"), "shortcut must be one of 'projection', 'pad'"),  # type: ignore[arg-type]
        (lambda: models.ResNet("basic", (1, 1), (4,)), r"layers \(1, 1\) and widths \(4,\) must name the same stages"),
    ],
)
def test_network_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_image_too_small_for_the_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="a window of height 2 does not fit"):
        models.VGGSmall(widths=(2, 2, 2)).eval()(gpucnn.rand(1, 3, 7, 9))


# -- residual blocks, computed as one --------------------------------------------------------------


def _one_by_one(block: nn.Module, x: Tensor) -> Tensor:
    """Each layer by itself."""
    pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if hasattr(block, "conv3"):
        pairs.append((block.conv3, block.bn3))
    y = x
    for i, (conv, norm) in enumerate(pairs):
        y = F.relu(norm(conv(y))) if i + 1 < len(pairs) else norm(conv(y))
    shortcut = x
    for layer in () if block.downsample is None else list(block.downsample.children()) or [block.downsample]:
        shortcut = layer(shortcut)
    return F.relu(y + shortcut)


def _block(kind: str, shortcut: str, place: str, backend: str) -> nn.Module:
    gpucnn.manual_seed(4)
    net = models.ResNet(kind, (1, 1), (3, 5), 2, 3, "cifar", shortcut)
    block = (net.layer1 if place == "first" else net.layer2)[0].to(np.dtype("float64")).to(backend)
    rng = np.random.default_rng(7)
    for norm in (module for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.detach().copy_(gpucnn.tensor(rng.uniform(0.5, 2, tensor.shape), backend=backend))
    return block


BLOCKS = [("basic", "projection", "second"), ("basic", "pad", "second"), ("bottleneck", "projection", "first")]


def _forbid(patch: pytest.MonkeyPatch, x: Tensor, *primitives: str) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a pass over memory of its own")

    for primitive in primitives:
        patch.setattr(type(x.backend), primitive, forbidden)


@pytest.mark.parametrize(("kind", "shortcut", "place"), BLOCKS)
def test_a_block_that_learns_has_the_bits_of_its_layers_one_by_one(
    kind: str, shortcut: str, place: str, backend: str
) -> None:
    block = _block(kind, shortcut, place, backend)
    channels = block.conv1.weight.shape[1]
    rng = np.random.default_rng(8)
    values = rng.standard_normal((2, channels, 7, 6))

    def run(forward: Callable[[Tensor], Tensor]) -> list[Any]:
        x = gpucnn.tensor(values, backend=backend, requires_grad=True)
        block.zero_grad()
        y = forward(x)
        y.backward(gpucnn.tensor(np.random.default_rng(9).standard_normal(y.shape), backend=backend))
        return [t.numpy() for t in (y, x.grad, *(p.grad for p in block.parameters()))]

    apart = run(lambda x: _one_by_one(block, x))
    with pytest.MonkeyPatch.context() as patch:
        _forbid(patch, next(block.parameters()), "activation_forward", "activation_backward")
        together = run(block)
    for ours, theirs in zip(together, apart, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("kind", "shortcut", "place"), BLOCKS)
def test_a_block_at_rest_is_as_many_convolutions_and_nothing_else(
    kind: str, shortcut: str, place: str, backend: str
) -> None:
    block = _block(kind, shortcut, place, backend).eval()
    x = gpucnn.tensor(np.random.default_rng(8).standard_normal((2, block.conv1.weight.shape[1], 7, 6)), backend=backend)
    with gpucnn.no_grad():
        apart = _one_by_one(block, x).numpy()
        with pytest.MonkeyPatch.context() as patch:
            _forbid(patch, x, "activation_forward", "batch_norm_forward")
            together = block(x).numpy()
    np.testing.assert_allclose(together, apart, rtol=1e-12, atol=1e-12 * np.abs(apart).max())


@pytest.mark.parametrize("learns", [True, False])
def test_a_hook_in_a_block_sees_what_its_layer_gives(learns: bool, backend: str) -> None:
    block = _block("basic", "projection", "second", backend).train(learns)
    x = gpucnn.tensor(np.random.default_rng(8).standard_normal((2, 3, 7, 6)), backend=backend)
    with gpucnn.no_grad():
        expected = block(x).numpy()
        seen: list[Tensor] = []
        block.bn2.register_forward_hook(lambda module, inputs, output: seen.append(output))
        y = block(x).numpy()
    assert (seen[0].numpy() < 0).any()  # neither shortcut nor ReLU
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
