"""Networks: LeNet-5, the nets of the introductions, a small VGG, and ResNets with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from gpucnn import functional as F
from gpucnn.functional import validate
from gpucnn.nn import init
from gpucnn.nn.containers import Sequential
from gpucnn.nn.fusion import conv_norm
from gpucnn.nn.layers import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Identity,
    Linear,
    MaxPool2d,
    ReLU,
    Sigmoid,
    Unflatten,
)
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor


class LeNet5(Sequential):
    """LeNet-5 (LeCun et al. 1998) as it is built today: ReLU and max pooling, 61,706 parameters for 28×28 gray.

    Two 5×5 convolutions (6 and 16 filters), each with ReLU and 2×2 max pooling, then dense layers of 120, 84 and
    num_classes. batch_norm puts a BatchNorm2d behind each convolution.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: Sequence[int] = (28, 28),
        batch_norm: bool = False,
    ) -> None:
        size = validate.integers("LeNet5", "image_size", image_size)
        if len(size) != 2 or min(size) < 12:
            raise ValueError(f"LeNet5 needs images of at least 12×12, got {'×'.join(map(str, size))}")
        h, w = ((n // 2 - 4) // 2 for n in size)

        def block(channels: int, filters: int, padding: int) -> list[Module]:
            norm: list[Module] = [BatchNorm2d(filters)] if batch_norm else []
            return [Conv2d(channels, filters, 5, padding=padding), *norm, ReLU(), MaxPool2d(2)]

        super().__init__(
            *block(in_channels, 6, 2),
            *block(6, 16, 0),
            Flatten(),
            Linear(16 * h * w, 120),
            ReLU(),
            Linear(120, 84),
            ReLU(),
            Linear(84, num_classes),
        )


def x_or_not_x() -> Sequential:
    """The walk-through "X or not X": 5×5 -> four 3×3 filters -> 2×2 pooling with partial windows -> 16 -> 3 -> 1.

    95 parameters; the output is a probability.
    """
    return Sequential(
        Conv2d(1, 4, 3),
        ReLU(),
        MaxPool2d(2, ceil_mode=True),
        Flatten(),
        Linear(16, 3),
        ReLU(),
        Linear(3, 1),
        Sigmoid(),
    )


def beginners_guide(num_classes: int = 10) -> Sequential:
    """The classic stack of the beginner's guide, on 32×32 RGB: conv, ReLU, conv, ReLU, pool, ReLU, conv, ReLU, pool,
    dense."""
    return Sequential(
        Conv2d(3, 16, 5),
        ReLU(),
        Conv2d(16, 16, 3),
        ReLU(),
        MaxPool2d(2),
        ReLU(),
        Conv2d(16, 32, 3),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(32 * 5 * 5, num_classes),
    )


def friendly_introduction(num_classes: int = 2) -> Sequential:
    """The free order of layers of the friendly introduction, on 10×10 gray: a convolution after a dense layer too.

    conv > relu > pool > conv > pool > dense > conv > dense.
    """
    return Sequential(
        Conv2d(1, 4, 3),
        ReLU(),
        MaxPool2d(2),
        Conv2d(4, 8, 2),
        MaxPool2d(2, ceil_mode=True),
        Flatten(),
        Linear(8 * 2 * 2, 16),
        Unflatten(1, (1, 4, 4)),
        Conv2d(1, 4, 2),
        Flatten(),
        Linear(4 * 3 * 3, num_classes),
    )


class VGGSmall(Sequential):
    """A VGG (Simonyan & Zisserman 2014) for small images: pairs of 3×3 convolutions with batch norm, then pooling.

    widths are the filters of each pair; each pooling halves the image. Global average pooling ends it, so any image of
    at least 2 ** len(widths) pixels fits.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 64, 128),
        dropout: float = 0.3,
    ) -> None:
        layers: list[Module] = []
        channels = in_channels
        for width in validate.integers("VGGSmall", "widths", widths):
            for _ in range(2):
                layers += [Conv2d(channels, width, 3, padding=1, bias=False), BatchNorm2d(width), ReLU()]
                channels = width
            layers.append(MaxPool2d(2))
        super().__init__(*layers, AdaptiveAvgPool2d(1), Flatten(), Dropout(dropout), Linear(channels, num_classes))


# -- ResNets: He et al. 2015 -----------------------------------------------------------------------


class PadShortcut(Module):
    """The shortcut without parameters ("option A"): every stride-th pixel, new channels are zero."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        given = {"in_channels": in_channels, "out_channels": out_channels, "stride": stride}
        before, after, self.stride = (validate.integer("PadShortcut", n, value, least=1) for n, value in given.items())
        if after < before:
            raise ValueError(f"PadShortcut: out_channels={after} must not be fewer than in_channels={before}")
        self.extra = after - before

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def _projection(in_channels: int, out_channels: int, stride: int) -> Module:
    """The 1×1 shortcut ("option B") of torchvision's ResNets."""
    return Sequential(Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm2d(out_channels))


def _shortcut(downsample: Module | None) -> Module | None:
    if downsample is not None and not isinstance(downsample, Module):
        raise TypeError(f"downsample must be a Module or None, got {type(downsample).__name__}")
    return downsample


class BasicBlock(Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, downsample: Module | None) -> None:
        self.conv1 = Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.downsample = _shortcut(downsample)

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        y = conv_norm(self.conv1, self.bn1, input, "relu")
        return conv_norm(self.conv2, self.bn2, y, "relu", shortcut)


class Bottleneck(Module):
    """1×1, 3×3 and 1×1 convolution and a shortcut; the stride is in the 3×3, as in torchvision ("v1.5")."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, downsample: Module | None) -> None:
        self.conv1 = Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(downsample)

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        y = conv_norm(self.conv1, self.bn1, input, "relu")
        y = conv_norm(self.conv2, self.bn2, y, "relu")
        return conv_norm(self.conv3, self.bn3, y, "relu", shortcut)


class ResNet(Module):
    """A residual network; resnet20, resnet18 and resnet50 make the usual ones.

    block: "basic" or "bottleneck"; layers: blocks per stage; widths: filters per stage. stem "imagenet" is a 7×7
    convolution with stride 2 and a max pooling, "cifar" a 3×3 convolution. shortcut "projection" (1×1 convolution) or
    "pad" (no parameters).
    """

    def __init__(
        self,
        block: Literal["basic", "bottleneck"],
        layers: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        shortcut: Literal["projection", "pad"] = "projection",
    ) -> None:
        validate.choice("ResNet", "block", block, ("basic", "bottleneck"))
        validate.choice("ResNet", "stem", stem, ("imagenet", "cifar"))
        validate.choice("ResNet", "shortcut", shortcut, ("projection", "pad"))
        layers, widths = (validate.integers("ResNet", *given) for given in (("layers", layers), ("widths", widths)))
        if not layers or len(layers) != len(widths):
            raise ValueError(f"ResNet: layers {layers} and widths {widths} must name the same stages")
        kind: type[BasicBlock | Bottleneck] = {"basic": BasicBlock, "bottleneck": Bottleneck}[block]  # type: ignore[assignment]
        make_shortcut: Callable[[int, int, int], Module] = {"projection": _projection, "pad": PadShortcut}[shortcut]
        channels = widths[0]
        large = stem == "imagenet"
        self.conv1 = Conv2d(in_channels, channels, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.maxpool = MaxPool2d(3, 2, 1) if large else Identity()
        self.stages = len(layers)
        for stage, (count, width) in enumerate(zip(layers, widths, strict=True), start=1):
            blocks = []
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                out = width * kind.expansion
                downsample = make_shortcut(channels, out, stride) if stride > 1 or channels != out else None
                blocks.append(kind(channels, width, stride, downsample))
                channels = out
            setattr(self, f"layer{stage}", Sequential(*blocks))
        self.avgpool = AdaptiveAvgPool2d(1)
        self.fc = Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input: Tensor) -> Tensor:
        y = self.maxpool(conv_norm(self.conv1, self.bn1, input, "relu"))
        for stage in range(1, self.stages + 1):
            y = getattr(self, f"layer{stage}")(y)
        logits: Tensor = self.fc(self.avgpool(y).flatten(1))
        return logits


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20 for CIFAR: three stages of 16, 32 and 64 filters, shortcuts without parameters; 0.27 M parameters."""
    return ResNet("basic", (3, 3, 3), (16, 32, 64), num_classes, in_channels, stem="cifar", shortcut="pad")


def resnet18(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-18 with torchvision's parameter names; 11.7 M parameters."""
    return ResNet("basic", (2, 2, 2, 2), num_classes=num_classes, in_channels=in_channels)


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-50 with torchvision's parameter names; 25.6 M parameters."""
    return ResNet("bottleneck", (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels)
