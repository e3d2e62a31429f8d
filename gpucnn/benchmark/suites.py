"""What is measured: the ops at the sizes of known networks, and the networks themselves.

An op is a `gpucnn.testing.Case`, so its inputs, operations and error bounds come from the one case table's machinery.
Its passes are measured apart: "forward", and the gradients that a training step asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from gpucnn import nn, testing
from gpucnn.nn import models
from gpucnn.testing import Case, Shape, Values, conv, dense, integers, normal, selected

PASSES = ("forward", "input-gradient", "weight-gradient", "backward", "inference", "training")
SUITES = ("ops", "networks", "startup", "memory")
ITEM_SIZE = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Op:
    """An op at one size: `make(n)` is its case for n images."""

    name: str
    make: Callable[[int], Case]

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes that are measured: with a weight, each gradient; batch norm's gradients come from one pass."""
        op = self.name.partition(".")[0]
        if op in ("conv2d", "linear"):
            return "forward", "input-gradient", "weight-gradient"
        return ("forward", "backward") if op == "batch_norm" else ("forward", "input-gradient")

    @cached_property
    def _shape_of_one(self) -> Shape:
        return self.make(1).output_shape

    def output_shape(self, batch: int) -> Shape:
        """The shape of the output for that many images; a loss is a single number."""
        return (batch, *self._shape_of_one[1:]) if self._shape_of_one else ()


def _conv(where: str, x: tuple[int, int, int], w: tuple[int, int, int], bias: bool = False, **arguments: Any) -> Op:
    """Filters (K, R, S) over images (C, H, W)."""
    (c, h, _), (k, r, s) = x, w
    filters = (k, c // arguments.get("groups", 1), r, s)
    return Op(f"conv2d.{where}.{r}x{s}.{c}-{k}.{h}", lambda n: conv((n, *x), filters, bias, **arguments))


def _bottleneck(stage: int, width: int, size: int) -> Iterable[Op]:
    """The three convolutions of a block that a stage of ResNet-50 repeats."""
    where, wide = f"resnet50.stage{stage}", 4 * width
    yield _conv(where, (wide, size, size), (width, 1, 1))
    yield _conv(where, (width, size, size), (width, 3, 3), padding=1)
    yield _conv(where, (width, size, size), (wide, 1, 1))


def _pool(where: str, x: tuple[int, int, int], kernel: int, **arguments: Any) -> Op:
    op, name = where.partition(".")[0], f"{where}.{kernel}x{kernel}.{x[0]}.{x[1]}"
    return Op(name, lambda n: testing.pooled(op, (n, *x), kernel_size=kernel, **arguments))


OPS = (
    *(op for stage in range(4) for op in _bottleneck(stage + 1, 64 << stage, 56 >> stage)),
    _conv("resnet50.stem", (3, 224, 224), (64, 7, 7), stride=2, padding=3),
    _conv("resnet50.strided", (128, 56, 56), (128, 3, 3), stride=2, padding=1),
    _conv("resnet50.shortcut", (256, 56, 56), (512, 1, 1), stride=2),
    _conv("lenet5.stem", (1, 28, 28), (6, 5, 5), bias=True, padding=2),
    _conv("lenet5.second", (6, 14, 14), (16, 5, 5), bias=True),
    _conv("vgg.stem", (3, 224, 224), (64, 3, 3), bias=True, padding=1),
    _conv("mobilenetv2.depthwise", (144, 56, 56), (144, 3, 3), padding=1, groups=144),
    _conv("mobilenetv2.strided", (144, 56, 56), (144, 3, 3), stride=2, padding=1, groups=144),
    _conv("mobilenetv2.project", (144, 56, 56), (24, 1, 1)),
    _conv("mobilenetv2.expand", (24, 56, 56), (144, 1, 1)),
    _conv("deeplab.dilated", (256, 28, 28), (256, 3, 3), padding=2, dilation=2),
    _pool("max_pool2d.lenet5", (6, 28, 28), 2),
    _pool("max_pool2d.resnet50", (64, 112, 112), 3, stride=2, padding=1),
    _pool("avg_pool2d.densenet", (128, 56, 56), 2),
    _pool("avg_pool2d.resnet50", (2048, 7, 7), 7),
    Op("relu.resnet50.256.56", lambda n: Case("relu", (normal(n, 256, 56, 56),), selected)),
    Op("batch_norm.resnet50.256.56", lambda n: testing.batch_normalized((n, 256, 56, 56))),
    Op("linear.lenet5.400-120", lambda n: dense("linear", (n, 400), (120, 400), (120,))),
    Op("linear.resnet50.2048-1000", lambda n: dense("linear", (n, 2048), (1000, 2048), (1000,))),
    Op(
        "cross_entropy.imagenet.1000",
        lambda n: testing.loss("cross_entropy", normal(n, 1000), integers(n, classes=1000)),
    ),
)


@dataclass(frozen=True)
class Network:
    """A network of `gpucnn.nn.models`, by what `gpucnn train` calls it, and what it takes: [C, H, W] and classes."""

    name: str
    make: Callable[[], nn.Module]
    image: tuple[int, int, int]
    classes: int

    @cached_property
    def _summary(self) -> nn.module.Summary:
        return self.make().summary(*self.image)

    def flops(self, training: bool) -> int:
        """Operations for one image. Training adds both gradients of each product, but for the first layer's input."""
        forward = 2 * self._summary.multiply_adds
        return 3 * forward - 2 * self._summary.rows[0].multiply_adds if training else forward

    def activations(self) -> int:
        """Elements of all layers' outputs, for one image."""
        return sum(math.prod(row.output_shape) for row in self._summary.rows)

    def longest_sum(self, batch: int) -> int:
        """The terms of the longest sum in a step: over a batch's pixels, or over a layer's inputs."""
        pixels = max(math.prod(row.output_shape[1:]) for row in self._summary.rows)
        return max(batch * pixels, 9 * max(row.output_shape[0] for row in self._summary.rows))


NETWORKS = (
    Network("lenet5", models.LeNet5, (1, 28, 28), 10),
    Network("resnet20", models.resnet20, (3, 32, 32), 10),
    Network("resnet18", models.resnet18, (3, 224, 224), 1000),
    Network("resnet50", models.resnet50, (3, 224, 224), 1000),
)
NETWORK_BATCHES = (1, 8, 64, 256)


@dataclass(frozen=True)
class Task:
    """One thing to measure: an op's pass or a network's step, at a batch size. `what` is None for other suites."""

    suite: str
    name: str
    part: str
    batch: int
    what: Op | Network | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.part}" + (f", batch {self.batch}" if self.batch else "")

    @property
    def flops(self) -> int:
        """Operations of one run."""
        if isinstance(self.what, Op):
            return self.what.make(self.batch).flops
        return self.batch * self.what.flops(self.part == "training") if self.what else 0

    def bytes(self, precision: str = "fp32") -> int:
        """What an op's pass must at least read and write, each array once; 0 for a network: layers may be fused."""
        if not isinstance(self.what, Op):
            return 0
        case = self.what.make(self.batch)
        sizes = [math.prod(v.shape) for v in case.inputs if isinstance(v, Values) and not v.integer]
        labels = sum(8 * math.prod(v.shape) for v in case.inputs if isinstance(v, Values) and v.integer)
        x, y, rest = sizes[0], math.prod(self.what.output_shape(self.batch)), sum(sizes[1:])
        if self.part == "forward":
            elements = x + rest + y
        elif self.part == "weight-gradient":
            elements = y + x + sizes[1]
        elif case.op in ("conv2d", "linear"):
            elements = y + sizes[1] + x
        elif case.op == "avg_pool2d":
            elements = y + x
        elif case.op == "max_pool2d":  # which tap won takes a byte
            return ITEM_SIZE[precision] * (y + x) + y
        elif case.op == "relu":  # so does no less than a bit for its sign
            return ITEM_SIZE[precision] * 2 * x + x // 8
        else:
            elements = (y if y == x else 0) + 2 * x + 2 * rest
        return ITEM_SIZE[precision] * elements + labels


def tasks(
    suite: str,
    batches: tuple[int, ...] | None = None,
    pattern: str | None = None,
    passes: tuple[str, ...] | None = None,
    usual_batch: int = 8,
) -> list[Task]:
    """What a suite measures, filtered. `usual_batch` is the ops' one where none is asked for."""
    if suite == "ops":
        found = [
            Task(suite, op.name, part, n, op) for op in OPS for n in batches or (usual_batch,) for part in op.passes
        ]
        found.sort(
            key=lambda task: task.flops
        )  # what does not fit into the time comes last; an op's passes stay together
    elif suite == "networks":
        found = [
            Task(suite, network.name, part, n, network)
            for network in NETWORKS
            for part in ("inference", "training")
            for n in batches or NETWORK_BATCHES
        ]
        found.sort(key=lambda task: task.flops)
    elif suite == "startup":
        found = [Task(suite, name, "start", 0) for name in ("import", "first-step", "first-step-compiling")]
    else:
        found = [
            Task(suite, network.name, "training", n, network) for network in NETWORKS[:2] for n in batches or (64,)
        ]
    return [
        task
        for task in found
        if (pattern is None or _matches(task.name, pattern)) and (passes is None or task.part in passes)
    ]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) if any(c in pattern for c in "*?[") else pattern in name
