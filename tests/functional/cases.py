"""One table of unkind cases for every op that has a scalar reference. `test_every_op.py` runs all of it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import reference
from numerics import Array

# The error bound in unit roundoffs, elementwise or for all, given the inputs in float64 and the expected result.
Bound = Callable[[tuple[Any, ...], Array], Array | float]


@dataclass(frozen=True)
class Case:
    """`functional.<op>(*inputs, **arguments)`; float arrays become tensors that need gradients, integer ones labels."""

    op: str
    inputs: tuple[Any, ...]
    bound: Bound = field(repr=False)
    arguments: dict[str, Any] = field(default_factory=dict)
    constants: tuple[int, ...] = ()  # float inputs that have no gradient: targets, class weights
    pytorch: bool = True  # False: PyTorch has no such op or argument

    def __str__(self) -> str:
        def shown(value: Any) -> str:
            return "x".join(map(str, value.shape)) if isinstance(value, np.ndarray) else str(value)

        arguments = [f"{name}={shown(value)}" for name, value in self.arguments.items()]
        return "-".join([self.op, *map(shown, self.inputs), *arguments])

    @property
    def differentiable(self) -> list[int]:
        return [
            i
            for i, value in enumerate(self.inputs)
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and i not in self.constants
        ]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def distinct(*shape: int, seed: int = 0) -> Array:
    """Values 1/8 apart in random order: no ties, and no two so near that a finite difference would swap them."""
    size = int(np.prod(shape))
    return ((np.random.default_rng([seed, *shape]).permutation(size) - size // 2) / 8 + 1 / 32).reshape(shape)


def uniform(*shape: int, low: float = 0.05, high: float = 0.95, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape)


def integers(*shape: int, classes: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).integers(0, classes, shape)


def exact(inputs: tuple[Any, ...], expected: Array) -> float:
    return 0.0


# --- convolution: terms · Σ|x||w| -------------------------------------------------------------------------------------


def conv(x: tuple[int, ...], w: tuple[int, ...], bias: bool = False, pytorch: bool = True, **arguments: Any) -> Case:
    def bound(inputs: tuple[Any, ...], expected: Array) -> Array:
        terms = int(np.prod(w[1:])) + 2
        return terms * reference.conv2d(*(np.abs(value) for value in inputs), **arguments)

    inputs = (random(*x), random(*w, seed=1), *([random(w[0], seed=2)] if bias else []))
    return Case("conv2d", inputs, bound, arguments, pytorch=pytorch)


CONV2D = [
    conv((2, 3, 7, 5), (4, 3, 3, 2), bias=True),
    conv((1, 1, 5, 4), (1, 1, 2, 3), bias=True),
    conv((2, 5, 4, 7), (3, 5, 3, 3), padding=1),
    conv((1, 17, 3, 5), (5, 17, 2, 1), bias=True),
    conv((1, 3, 5, 3), (17, 3, 1, 2), stride=(1, 2)),
    conv((2, 3, 7, 5), (5, 3, 1, 1), bias=True, stride=2),
    conv((1, 4, 6, 3), (2, 4, 1, 1)),
    conv((2, 3, 5, 4), (4, 3, 5, 4), bias=True),
    conv((1, 2, 3, 4), (3, 2, 5, 6), padding=1),
    conv((1, 2, 11, 8), (3, 2, 2, 3), bias=True, stride=(5, 4)),
    conv((1, 2, 8, 7), (3, 2, 3, 3), stride=3),
    conv((2, 3, 5, 6), (2, 3, 3, 2), stride=(1, 3), padding=(2, 1)),
    conv((1, 2, 3, 2), (3, 2, 2, 2), bias=True, padding=3),
    conv((2, 5, 6, 7), (5, 1, 3, 2), bias=True, groups=5, stride=(1, 2), padding=(1, 0)),
    conv((1, 3, 7, 5), (6, 1, 3, 3), groups=3, stride=2, padding=1),
    conv((2, 4, 7, 8), (6, 2, 3, 2), bias=True, groups=2, stride=(2, 3)),
    conv((1, 6, 9, 7), (3, 2, 2, 3), groups=3, stride=2, dilation=(3, 2), padding=(1, 2)),
    conv((2, 6, 5, 3), (6, 3, 1, 1), groups=2, stride=2),
    conv((1, 2, 7, 6), (3, 2, 3, 2), bias=True, dilation=(2, 3)),
    conv((1, 2, 7, 5), (3, 2, 3, 2), pytorch=False, dilation=(2, 1), padding=(1, 2, 3, 0)),
    conv((2, 4, 5, 6), (4, 2, 2, 3), bias=True, pytorch=False, groups=2, stride=(2, 1), padding=(0, 3, 2, 1)),
    conv((1, 2, 5, 4), (3, 2, 4, 2), padding="same"),
    conv((1, 2, 6, 5), (3, 2, 2, 3), padding="same", dilation=(3, 2)),
    conv((1, 2, 7, 6), (3, 2, 3, 2), bias=True, pytorch=False, padding="same", stride=(2, 3)),
    conv((1, 2, 7, 5), (3, 2, 1, 1), pytorch=False, padding="same", stride=3),
    conv((1, 2, 7, 5), (3, 2, 2, 3), padding="valid", stride=2),
    conv((3, 4, 1, 1), (2, 4, 1, 1), bias=True),
    conv((0, 3, 5, 4), (4, 3, 3, 2), bias=True),
    conv((0, 4, 5, 4), (4, 2, 3, 2), stride=2, groups=2),
]


def transposed(x: tuple[int, ...], w: tuple[int, ...], bias: bool = False, **arguments: Any) -> Case:
    groups = arguments.get("groups", 1)

    def bound(inputs: tuple[Any, ...], expected: Array) -> Array:
        terms = w[0] // groups * w[2] * w[3] + 2
        return terms * reference.conv_transpose2d(*(np.abs(value) for value in inputs), **arguments)

    inputs = (random(*x), random(*w, seed=1), *([random(w[1] * groups, seed=2)] if bias else []))
    return Case("conv_transpose2d", inputs, bound, arguments)


CONV_TRANSPOSE2D = [
    transposed((2, 3, 4, 3), (3, 2, 3, 2), bias=True),
    transposed((1, 1, 3, 2), (1, 1, 2, 3)),
    transposed((2, 3, 4, 3), (3, 5, 3, 2), bias=True, stride=(2, 3), padding=(1, 0), output_padding=(1, 2)),
    transposed((1, 4, 3, 4), (4, 3, 2, 3), bias=True, groups=2, stride=2),
    transposed((1, 6, 3, 2), (6, 1, 3, 2), groups=6, stride=(3, 2), padding=(1, 1)),
    transposed((1, 2, 4, 3), (2, 3, 2, 3), dilation=(3, 2), padding=(2, 1)),
    transposed((1, 2, 3, 2), (2, 3, 2, 2), stride=(5, 3)),
    transposed((1, 17, 2, 3), (17, 1, 1, 1), bias=True, stride=2, output_padding=1),
    transposed((0, 3, 4, 3), (3, 2, 3, 2), bias=True, stride=2),
]

# --- pooling: exact for extremes, elements of the window · Σ|x| for sums ----------------------------------------------

WINDOWS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 7, 5), {"kernel_size": 2}),
    ((2, 3, 7, 5), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}),
    ((1, 5, 7, 8), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 17, 4, 4), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 1, 5, 9), {"kernel_size": (3, 4), "stride": (1, 2), "padding": (1, 2)}),
    ((2, 1, 7, 5), {"kernel_size": 1, "stride": 2}),
    ((1, 3, 6, 7), {"kernel_size": 1, "stride": 2, "ceil_mode": True}),
    ((1, 2, 11, 8), {"kernel_size": (2, 3), "stride": (5, 4)}),
    ((2, 3, 7, 5), {"kernel_size": (7, 5)}),
    ((1, 2, 4, 9), {"kernel_size": (3, 4), "stride": (3, 4), "padding": (0, 2), "ceil_mode": True}),
    ((1, 1, 17, 2), {"kernel_size": (2, 3), "stride": (2, 3), "padding": 1, "ceil_mode": True}),
    ((1, 2, 9, 5), {"kernel_size": (4, 2), "stride": 2, "ceil_mode": True}),
    ((1, 1, 32, 3), {"kernel_size": (8, 3), "stride": (4, 1), "ceil_mode": True}),
    ((3, 2, 1, 1), {"kernel_size": 1}),
    ((0, 3, 7, 5), {"kernel_size": 3, "stride": 2, "padding": 1}),
]
FOR_EXTREMES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 2, 9, 7), {"kernel_size": 3, "stride": (1, 2), "padding": 1, "dilation": (3, 2)}),
    ((2, 1, 8, 7), {"kernel_size": (2, 3), "stride": 3, "dilation": (4, 2), "ceil_mode": True}),
    ((1, 1, 20, 19), {"kernel_size": 17, "stride": (2, 1), "padding": (1, 0)}),
    ((1, 2, 9, 8), {"kernel_size": 2, "stride": 2, "dilation": 2}),  # windows that share an element though stride >= 2
]


def total(shape: tuple[int, ...], op: str, pytorch: bool, **arguments: Any) -> Case:
    rows, columns = reference.pair(arguments["kernel_size"])

    def bound(inputs: tuple[Any, ...], expected: Array) -> Array:
        return (rows * columns + 1) * getattr(reference, op)(np.abs(inputs[0]), **arguments)

    return Case(op, (random(*shape),), bound, arguments, pytorch=pytorch)


POOL = [
    *(Case("max_pool2d", (distinct(*shape),), exact, window) for shape, window in WINDOWS + FOR_EXTREMES),
    *(
        Case("min_pool2d", (distinct(*shape),), exact, window, pytorch=False)
        for shape, window in WINDOWS + FOR_EXTREMES
    ),
    *(total(shape, "avg_pool2d", True, **window) for shape, window in WINDOWS),
    *(total(shape, "avg_pool2d", True, **window, count_include_pad=False) for shape, window in WINDOWS),
    *(total(shape, "avg_pool2d", True, **window, divisor_override=7) for shape, window in WINDOWS[1:4]),
    *(total(shape, "sum_pool2d", False, **window) for shape, window in WINDOWS),
]

ADAPTIVE_SIZES: list[Any] = [1, (3, None), (None, 1), (5, 8), (7, 5), (4, 2)]
ADAPTIVE_POOL = [
    *(
        Case(
            "adaptive_avg_pool2d",
            (random(*shape), size),
            lambda inputs, expected: 37 * reference.adaptive_avg_pool2d(np.abs(inputs[0]), inputs[1]),
        )
        for shape in [(2, 3, 7, 5), (0, 3, 4, 5)]
        for size in ADAPTIVE_SIZES
    ),
    *(
        Case("adaptive_max_pool2d", (distinct(*shape), size), exact)
        for shape in [(2, 3, 7, 5), (0, 3, 4, 5)]
        for size in ADAPTIVE_SIZES
    ),
]

# --- activations: each has at most 16 roundings, of intermediate values no larger than 1 or |x| -----------------------


def roundings(inputs: tuple[Any, ...], expected: Array) -> Array:
    return 16 * np.maximum(1.0, np.abs(inputs[0]))


# From −7 to 7 in steps of 0.17, in random order, clear of the corners at 0, ±3 and 6.
WAVE = np.random.default_rng(3).permutation(np.linspace(-7.03, 7.01, 84)).reshape(2, 3, 7, 2)

ACTIVATION = [
    Case("relu", (WAVE,), exact),
    Case("relu6", (WAVE,), exact),
    Case("leaky_relu", (WAVE,), roundings),
    Case("leaky_relu", (WAVE,), roundings, {"negative_slope": 0.3}),
    Case("prelu", (WAVE, np.array([0.25])), roundings),
    Case("prelu", (WAVE, random(3)), roundings),
    Case("prelu", (WAVE.reshape(28, 3), random(3)), roundings),
    Case("elu", (WAVE,), roundings),
    Case("elu", (WAVE,), roundings, {"alpha": 0.7}),
    Case("gelu", (WAVE,), roundings),
    Case("gelu", (WAVE,), roundings, {"approximate": "tanh"}),
    Case("silu", (WAVE,), roundings),
    Case("hardswish", (WAVE,), roundings),
    Case("hardsigmoid", (WAVE,), roundings, pytorch=False),  # PyTorch's float64 slope is 1/6 rounded to float32
    Case("softplus", (WAVE,), roundings),
    Case("softplus", (WAVE,), roundings, {"beta": 2.0, "threshold": np.inf}),
    Case("softplus", (9 * WAVE,), roundings, {"beta": 0.5, "threshold": np.inf}),
    Case("sigmoid", (WAVE,), roundings),
    Case("sigmoid", (random(5),), roundings),
    Case("tanh", (WAVE,), roundings),
    Case("relu", (random(0, 3, 4, 2),), exact),
    Case("gelu", (random(0, 7),), roundings),
]


def soft(op: str, x: Array, dim: int) -> Case:
    def bound(inputs: tuple[Any, ...], expected: Array) -> Array:
        """The exponent is wrong by u · its size, the sum by u · terms; both are relative errors of the softmax."""
        relative = 4 * (np.ptp(inputs[0]) if inputs[0].size else 0.0) + inputs[0].shape[dim] + 8
        return relative * (expected if op == "softmax" else np.ones_like(expected))

    return Case(op, (x, dim), bound)


ACTIVATION += [
    soft(op, x, dim)
    for op in ("softmax", "log_softmax")
    for x, dim in [
        (random(4, 10), 1),
        (random(3, 5), 0),
        (3 * random(2, 5, 4, 3), 1),
        (random(2, 5, 4, 3), -1),
        (random(2, 3, 4), 1),
        (random(3, 1), 1),
        (random(7), 0),
        (random(0, 5), 1),
    ]
]

# --- normalisation: M + 16 roundings of the largest normalised value --------------------------------------------------


def normalised(axes: Callable[[Array], Array], weight: int | None, bias: int | None) -> Bound:
    """`axes` reshapes x so that its last axis is what is normalised together."""

    def bound(inputs: tuple[Any, ...], expected: Array) -> float:
        together = axes(inputs[0])
        if not together.size:
            return 0.0
        largest = np.max(2 * np.abs(together).max(-1) / together.std(-1))
        scale = 1.0 if weight is None else np.max(np.abs(inputs[weight]))
        shift = 0.0 if bias is None else np.max(np.abs(inputs[bias]))
        return float((together.shape[-1] + 16) * (largest * scale + shift))

    return bound


def _group_norm(shape: tuple[int, ...], groups: int, affine: bool = True, **arguments: Any) -> Case:
    affines = (random(shape[1], seed=1), random(shape[1], seed=2)) if affine else ()
    count = shape[0] * groups
    bound = normalised(
        lambda x: x.reshape(count, int(np.prod(shape[1:])) // groups), *((2, 3) if affine else (None, None))
    )
    return Case("group_norm", (random(*shape) + 0.5, groups, *affines), bound, arguments)


def _layer_norm(shape: tuple[int, ...], normalized: tuple[int, ...], affine: bool = True, **arguments: Any) -> Case:
    affines = (random(*normalized, seed=1), random(*normalized, seed=2)) if affine else ()
    bound = normalised(lambda x: x.reshape(-1, int(np.prod(normalized))), *((2, 3) if affine else (None, None)))
    return Case("layer_norm", (random(*shape) + 0.5, normalized, *affines), bound, arguments)


def _local_response_norm(shape: tuple[int, ...], size: int, **arguments: Any) -> Case:
    def bound(inputs: tuple[Any, ...], expected: Array) -> Array:
        """The sum of squares has only positive terms; a power multiplies its relative error by beta < 1."""
        return (size + 16) * np.abs(expected)

    return Case("local_response_norm", (2 * random(*shape), size), bound, arguments)


NORM = [
    _group_norm((2, 6, 3, 5), 3),
    _group_norm((2, 6, 3, 5), 6, affine=False, eps=1e-3),
    _group_norm((3, 4, 5, 2), 1),
    _group_norm((2, 6, 7), 2),
    _group_norm((0, 6, 3, 5), 3),
    _layer_norm((4, 7), (7,)),
    _layer_norm((2, 3, 5, 4), (5, 4), eps=1e-3),
    _layer_norm((2, 3, 5, 4), (3, 5, 4), affine=False),
    _layer_norm((0, 7), (7,)),
    _local_response_norm((2, 7, 3, 5), 3, alpha=0.5, beta=0.6, k=2.0),
    _local_response_norm((1, 5, 4, 2), 4, alpha=0.5),
    _local_response_norm((1, 3, 2, 5), 9),
    _local_response_norm((1, 1, 4, 3), 1, alpha=1.0),
    _local_response_norm((0, 3, 4, 3), 2),
]

# --- dense and shapes -------------------------------------------------------------------------------------------------


def _dense(op: str, *shapes: tuple[int, ...]) -> Case:
    def bound(inputs: tuple[Any, ...], expected: Array) -> Array:
        terms = shapes[0][-1] + 2
        return terms * getattr(reference, op)(*map(np.abs, inputs))

    return Case(op, tuple(random(*shape, seed=i) for i, shape in enumerate(shapes)), bound)


DENSE = [
    _dense("linear", (4, 7), (3, 7), (3,)),
    _dense("linear", (4, 7), (3, 7)),
    _dense("linear", (5,), (3, 5), (3,)),
    _dense("linear", (2, 3, 4, 5), (6, 5), (6,)),
    _dense("linear", (2, 3, 5), (1, 5)),
    _dense("linear", (0, 7), (3, 7), (3,)),
    _dense("linear", (1, 17), (17, 17)),
    _dense("matmul", (3, 5), (5, 2)),
    _dense("matmul", (2, 3, 5), (2, 5, 4)),
    _dense("matmul", (2, 3, 5), (5, 4)),
    _dense("matmul", (3, 5), (2, 5, 4)),
    _dense("matmul", (2, 1, 3, 5), (4, 5, 2)),
    _dense("matmul", (0, 5), (5, 2)),
]


def _resized(shape: tuple[int, ...], **arguments: Any) -> Case:
    nearest = arguments.get("mode", "nearest") == "nearest"

    def bound(inputs: tuple[Any, ...], expected: Array) -> Array | float:
        """Positions up to the size are rounded, so fractions are off by size · u; then six roundings of the values."""
        return 0.0 if nearest else (8 * max(shape) + 8) * float(np.abs(inputs[0]).max(initial=0.0))

    return Case("interpolate", (random(*shape),), bound, arguments)


SHAPE = [
    *(
        Case("pad", (random(2, 3, 5, 4), sides), exact, arguments)
        for sides, arguments in [
            ((1, 2, 3, 0), {}),
            ((1, 2, 3, 0), {"value": 1.5}),
            ((2, 0), {}),
            ((1, 3, 4, 2), {"mode": "reflect"}),
            ((0, 1, 0, 0), {"mode": "reflect"}),
            ((6, 2, 0, 7), {"mode": "replicate"}),
            ((0, 0, 0, 0), {}),
        ]
    ),
    Case("pad", (random(0, 3, 5, 4), (1, 2, 3, 0)), exact),
    _resized((2, 3, 5, 4), size=(10, 3)),
    _resized((2, 3, 5, 4), size=(5, 4)),
    _resized((2, 3, 5, 4), scale_factor=2),
    _resized((2, 3, 5, 4), scale_factor=(1.5, 0.5)),
    _resized((1, 1, 7, 3), size=1),
    _resized((2, 3, 5, 4), size=(11, 3), mode="bilinear", align_corners=False),
    _resized((2, 3, 5, 4), size=(11, 1), mode="bilinear", align_corners=True),
    _resized((2, 3, 5, 4), scale_factor=2, mode="bilinear", align_corners=True),
    _resized((2, 3, 5, 4), scale_factor=(0.5, 2.5), mode="bilinear"),
    _resized((1, 2, 1, 3), size=(4, 7), mode="bilinear", align_corners=True),
    _resized((0, 3, 5, 4), scale_factor=2, mode="bilinear"),
]

# --- losses: classes + elements + 16 roundings of Σ|loss|, with each loss as large as its logits make it --------------


def _loss(op: str, *inputs: Array, constants: tuple[int, ...] = (1,), pytorch: bool = True, **arguments: Any) -> Case:
    def bound(values: tuple[Any, ...], expected: Array) -> float:
        x = np.abs(values[0])
        others = [
            float(np.abs(v).max(initial=1.0))
            for v in (*values[1:], *arguments.values())
            if isinstance(v, np.ndarray) and v.dtype.kind == "f"
        ]
        largest = (4 * x.max(initial=1.0) + 8) * float(np.prod(others))
        largest *= (
            max(1.0, float(x.max(initial=1.0))) if op in ("mse_loss", "half_squared_error", "smooth_l1_loss") else 1.0
        )
        summed = x.size if arguments.get("reduction") == "sum" or op == "half_squared_error" else 1
        return float((x.size + 16) * largest * summed)

    return Case(op, inputs, bound, arguments, constants, pytorch)


SCORES, LABELS = random(6, 5), integers(6, classes=5)
MAP_LABELS = np.where(integers(2, 3, 4, classes=3) == 1, -100, integers(2, 3, 4, classes=3, seed=1))
CLASS_WEIGHTS = uniform(5, low=0.2, high=2.0)
CLASS_TARGETS = reference.softmax(random(6, 5, seed=2), 1)
ANSWERS, TRUTHS = uniform(3, 4), uniform(3, 4, seed=1)
GUESSES, FACTS = distinct(4, 3), distinct(4, 3, seed=1) + 1 / 17

LOSS = [
    _loss("cross_entropy", SCORES, LABELS),
    _loss("cross_entropy", SCORES, LABELS, label_smoothing=0.2),
    _loss("cross_entropy", SCORES, LABELS, reduction="none"),
    _loss("cross_entropy", SCORES, LABELS, reduction="sum", label_smoothing=0.1),
    _loss("cross_entropy", SCORES, LABELS, weight=CLASS_WEIGHTS),
    _loss("cross_entropy", SCORES, LABELS, weight=CLASS_WEIGHTS, label_smoothing=0.1),
    _loss("cross_entropy", SCORES, LABELS, weight=CLASS_WEIGHTS, label_smoothing=0.1, ignore_index=int(LABELS[2])),
    _loss("cross_entropy", SCORES, LABELS, weight=CLASS_WEIGHTS, reduction="none"),
    _loss("cross_entropy", random(1, 2), np.array([1])),
    _loss("cross_entropy", random(3, 17), np.array([16, 0, 9])),
    _loss("cross_entropy", random(2, 3, 3, 4), MAP_LABELS),
    _loss("cross_entropy", random(2, 3, 3, 4), MAP_LABELS, reduction="none", label_smoothing=0.1),
    _loss("cross_entropy", random(2, 3, 3, 4), MAP_LABELS, weight=CLASS_WEIGHTS[:3]),
    _loss("cross_entropy", SCORES, CLASS_TARGETS),
    _loss("cross_entropy", SCORES, CLASS_TARGETS, reduction="none"),
    _loss("cross_entropy", SCORES, CLASS_TARGETS, weight=CLASS_WEIGHTS, label_smoothing=0.1),
    _loss("cross_entropy", random(2, 3, 3, 4), reference.softmax(random(2, 3, 3, 4, seed=5), 1)),
    _loss("nll_loss", reference.log_softmax(SCORES, 1), LABELS),
    _loss("nll_loss", reference.log_softmax(SCORES, 1), LABELS, weight=CLASS_WEIGHTS),
    _loss("nll_loss", reference.log_softmax(SCORES, 1), LABELS, ignore_index=int(LABELS[0]), reduction="sum"),
    _loss("nll_loss", random(2, 3, 3, 4), MAP_LABELS, reduction="none"),
    _loss("binary_cross_entropy", ANSWERS, TRUTHS),
    _loss("binary_cross_entropy", ANSWERS, TRUTHS, reduction="none"),
    _loss("binary_cross_entropy", ANSWERS, TRUTHS, weight=uniform(3, 4, high=3.0), reduction="sum"),
    _loss("binary_cross_entropy_with_logits", random(3, 4), TRUTHS),
    _loss("binary_cross_entropy_with_logits", 9 * random(3, 4), TRUTHS, reduction="none"),
    _loss(
        "binary_cross_entropy_with_logits",
        random(3, 4),
        TRUTHS,
        weight=uniform(3, 4, high=3.0),
        pos_weight=np.arange(1.0, 5.0),
    ),
    _loss("mse_loss", GUESSES, FACTS, constants=()),
    _loss("mse_loss", GUESSES, FACTS, reduction="sum", constants=()),
    _loss("mse_loss", GUESSES, FACTS, reduction="none", constants=()),
    _loss("l1_loss", GUESSES, FACTS, constants=()),
    _loss("l1_loss", GUESSES, FACTS, reduction="none", constants=()),
    _loss("smooth_l1_loss", GUESSES, FACTS, constants=()),
    _loss("smooth_l1_loss", GUESSES, FACTS, beta=0.5, reduction="sum", constants=()),
    _loss("smooth_l1_loss", GUESSES, FACTS, beta=0.0, constants=()),
    _loss("half_squared_error", GUESSES, FACTS, pytorch=False, constants=()),
]

ALL = CONV2D + CONV_TRANSPOSE2D + POOL + ADAPTIVE_POOL + ACTIVATION + NORM + DENSE + SHAPE + LOSS


@functools.cache
def reference_result(position: int, dtype: str) -> Array:
    """The scalar result of ALL[position] for inputs rounded to `dtype`, kept: the loops are slow."""
    case = ALL[position]
    result = getattr(reference, case.op)(*rounded(case.inputs, dtype), **rounded_arguments(case, dtype))
    assert isinstance(result, np.ndarray)
    return result


def rounded(values: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    return tuple(v.astype(dtype) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v for v in values)


def rounded_arguments(case: Case, dtype: str) -> dict[str, Any]:
    return dict(zip(case.arguments, rounded(tuple(case.arguments.values()), dtype), strict=True))
