"""One table of calls of the backend's primitives: unkind shapes, and how far two right answers may lie apart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.backends import ACTIVATIONS
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.geometry import Window

Array = np.ndarray[Any, np.dtype[Any]]
REFERENCE = NumpyBackend()

# The bound of each result in unit roundoffs, given the arguments in float64 and the results.
Bound = Callable[[tuple[Any, ...], list[Array]], list[Array | float]]


@dataclass(frozen=True)
class Case:
    """`backend.<primitive>(*arguments)`; float64 arrays among the arguments are converted to the dtype under test."""

    primitive: str
    arguments: tuple[Any, ...]
    bound: Bound | None = None  # None: the bits are NumPy's
    note: str = ""

    def __str__(self) -> str:
        shapes = ["x".join(map(str, a.shape)) for a in self.arguments if isinstance(a, np.ndarray)]
        windows = [
            f"k{a.kernel}s{a.stride}p{a.padding}d{a.dilation}{'ceil' * a.ceil_mode}".replace(" ", "")
            for a in self.arguments
            if isinstance(a, Window)
        ]
        return "-".join([self.primitive, *shapes, *windows, *([self.note] if self.note else [])])

    def converted(self, dtype: str) -> tuple[Any, ...]:
        return tuple(
            REFERENCE.asarray(a.astype(dtype)) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a
            for a in self.arguments
        )


def random(*shape: int, seed: int = 0) -> Array:
    return REFERENCE.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape))


def positive(*shape: int, seed: int = 0) -> Array:
    return REFERENCE.asarray(np.random.default_rng([seed, *shape]).uniform(0.5, 2, shape))


def magnitudes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(np.abs(a) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a for a in arguments)


def linear(primitive: str, arguments: tuple[Any, ...], terms: int, note: str = "") -> Case:
    """terms · Σ|x||w|, Higham §3.1; two sums of it are compared, each within that."""

    def bound(arguments: tuple[Any, ...], results: list[Array]) -> list[Array | float]:
        return [2 * (terms + 2) * getattr(REFERENCE, primitive)(*magnitudes(arguments))]

    return Case(primitive, arguments, bound, note)


# --- convolution ------------------------------------------------------------------------------------------------------

CONVOLUTIONS: list[tuple[tuple[int, int, int, int], int, int, Window]] = [  # x, filters, groups, window
    # Few input channels, or one: conv2d_direct.cu.
    ((2, 3, 7, 5), 4, 1, Window((3, 2))),
    ((1, 1, 5, 4), 1, 1, Window((5, 4))),
    ((2, 1, 9, 8), 17, 1, Window((2, 3), (5, 4))),
    ((3, 5, 6, 7), 5, 5, Window((3, 2), (1, 2), (1, 1, 0, 0))),
    ((1, 3, 7, 5), 6, 3, Window((3, 3), (2, 2), (1, 1, 1, 1))),
    ((2, 4, 17, 19), 6, 2, Window((3, 2), (1, 1), (0, 2, 1, 3), (2, 3))),
    # Matrix products, by every tile, with one part and with several.
    ((1, 5, 9, 7), 3, 1, Window((1, 1), (2, 2))),
    ((2, 10, 7, 8), 34, 2, Window((3, 2), (2, 3), (1, 0, 2, 1))),
    ((1, 17, 19, 23), 5, 1, Window((2, 3), (1, 1), (1, 1, 1, 1), (2, 1))),
    ((1, 64, 9, 9), 65, 1, Window((2, 1), (1, 1))),
    ((1, 6, 5, 4), 3, 1, Window((5, 4))),
]


def convolution(x: tuple[int, int, int, int], k: int, groups: int, window: Window) -> list[Case]:
    n, c, *size = x
    p, q = window.output_size((size[0], size[1]))
    image, filters = random(*x), random(k, c // groups, *window.kernel, seed=1)
    bias, dy = random(k, seed=2), random(n, k, p, q, seed=3)
    taps = window.taps
    return [
        linear("conv2d_forward", (image, filters, bias, window, groups), taps * c // groups),
        linear("conv2d_backward_input", (dy, filters, window, groups, tuple(size)), taps * k // groups),
        linear("conv2d_backward_weight", (dy, image, window, groups), n * p * q),
    ]


CONV = [case for shape in CONVOLUTIONS for case in convolution(*shape)]
BIAS = [
    linear("bias_backward", (random(*s),), s[0] * 600) for s in ((5, 3), (2, 3, 23, 19), (3, 40, 7, 5), (1, 1, 1, 1))
]

# --- pooling ----------------------------------------------------------------------------------------------------------

POOLS: list[tuple[tuple[int, int, int, int], Window]] = [
    ((2, 3, 7, 5), Window((2, 2), (2, 2))),
    ((2, 3, 9, 5), Window((3, 2), (2, 1), (1, 1, 0, 0), (2, 3))),
    ((1, 5, 7, 8), Window((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), True)),
    ((1, 2, 11, 8), Window((2, 3), (5, 4))),
    ((2, 1, 19, 17), Window((19, 17))),
    ((1, 17, 4, 9), Window((3, 4), (3, 4), (0, 0, 2, 2), (1, 1), True)),
]


def pooling(shape: tuple[int, int, int, int], window: Window) -> list[Case]:
    x, size = random(*shape), (shape[2], shape[3])
    y, tap = REFERENCE.max_pool2d_forward(x, window, "max", True)
    dy = random(*y.shape, seed=1)
    cases = [
        Case("max_pool2d_forward", (x, window, "max", True), note="max"),
        Case("max_pool2d_forward", (np.round(x) + 0.0, window, "min", True), note="min-ties"),
        Case("max_pool2d_backward", (dy, tap, window, size)),
    ]
    for divisor in ("window", "real", 3):
        cases.append(linear("avg_pool2d_forward", (x, window, divisor), window.taps, str(divisor)))
        cases.append(linear("avg_pool2d_backward", (dy, window, divisor, size), window.taps, str(divisor)))
    return cases


POOL = [case for pool in POOLS for case in pooling(*pool)]

# --- elementwise: at most sixteen roundings of numbers no larger than the input or 1 ----------------------------------


def activation_bound(arguments: tuple[Any, ...], results: list[Array]) -> list[Array | float]:
    dy = np.abs(arguments[0]) if isinstance(arguments[1], np.ndarray) else 1.0
    x = arguments[1] if isinstance(arguments[1], np.ndarray) else arguments[0]
    return [16 * np.maximum(np.abs(x), 1) * dy]


def activation(kind: str) -> list[Case]:
    x = np.concatenate([random(4, 90)[0] * 4, [0.0, -0.0, 6, -3, 3, 1e-30, 50, -50, 1e4, -1e4]])
    y = REFERENCE.activation_forward(x, kind, 0.7)
    saved = y if ACTIVATIONS[kind] == "output" else x
    return [
        Case("activation_forward", (x, kind, 0.7), activation_bound, kind),
        Case("activation_backward", (random(*x.shape, seed=1), saved, kind, 0.7), activation_bound, kind),
    ]


ACTIVATION = [case for kind in ACTIVATIONS for case in activation(kind)]
DROPOUT = [
    Case("dropout", (random(*shape), p, seed, offset), note=f"{p}")
    for shape, p, seed, offset in (
        ((2, 3, 7, 5), 0.3, 7, 0),
        ((1023,), 0.5, 2**63 + 5, 2**32 - 3),
        ((5, 3), 0.0, 2**40, 2**64 - 1),
        ((5, 3), 1.0, 1, 1),
    )
]

# --- batch normalisation ----------------------------------------------------------------------------------------------


def statistics_bound(arguments: tuple[Any, ...], results: list[Array]) -> list[Array | float]:
    """The mean is off by δ <= rows · u · mean|x|, which shifts each deviation: 2δ·std + δ² in the variance."""
    x, (_, variance) = arguments[0], results
    axes = (0, 2, 3)[: x.ndim - 1] if x.ndim == 4 else (0,)
    rows = x.size // x.shape[1]
    delta = (rows + 4) * np.abs(x).mean(axis=axes)
    u = 2.0**-24
    return [2 * delta, 2 * ((rows + 8) * variance + 2 * delta * np.sqrt(variance) + delta**2 * u)]


def affine_bound(arguments: tuple[Any, ...], results: list[Array]) -> list[Array | float]:
    x, mean, invstd, weight, bias = (per_channel(a, arguments[0].ndim) for a in arguments)
    return [8 * (np.abs(x - mean) * invstd * np.abs(weight) + np.abs(bias))]


def gradient_bound(arguments: tuple[Any, ...], results: list[Array]) -> list[Array | float]:
    dy, x, mean, invstd, weight, training = arguments
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    rows = x.size // x.shape[1]
    center, scale, factor = (per_channel(a, x.ndim) for a in (mean, invstd, weight))
    xhat = (x - center) * scale
    dbias, dweight = 2 * (rows + 4) * np.abs(dy).sum(axis=axes), 2 * (rows + 4) * np.abs(dy * xhat).sum(axis=axes)
    shared = (per_channel(dbias, x.ndim) + np.abs(xhat) * per_channel(dweight, x.ndim)) / rows if training else 0
    return [np.abs(factor) * scale * (16 * np.abs(dy) + 2 * shared), dweight, dbias]


def per_channel(a: Any, rank: int) -> Any:
    if a is None:
        return np.ones(1)
    return a.reshape(-1, 1, 1) if rank == 4 and a.ndim == 1 else a


def batch_norm(shape: tuple[int, ...], offset: float = 0.0, weighted: bool = True) -> list[Case]:
    x, c = random(*shape) + np.arange(shape[1]).reshape(-1, *[1] * (len(shape) - 2)) + offset, shape[1]
    x = x.astype(np.float32).astype(np.float64)  # so that a large mean is the same number in float32
    mean, variance = (a.astype(np.float32).astype(np.float64) for a in REFERENCE.batch_norm_statistics(x))
    invstd = (1 / np.sqrt(variance)).astype(np.float32).astype(np.float64)
    weight, bias = (random(c, seed=1), random(c, seed=2)) if weighted else (None, None)
    dy = random(*shape, seed=3)
    return [
        Case("batch_norm_statistics", (x,), statistics_bound, f"{offset}"),
        Case("batch_norm_forward", (x, mean, invstd, weight, bias), affine_bound, f"{offset}"),
        Case("batch_norm_backward", (dy, x, mean, invstd, weight, weighted), gradient_bound, f"{offset}"),
    ]


BATCH_NORM = [
    *batch_norm((2, 3, 7, 5)),
    *batch_norm((4, 5, 23, 19), offset=1000.0),
    *batch_norm((2, 1, 13, 11), weighted=False),
    *batch_norm((300, 41), weighted=False),
    *batch_norm((2, 1)),
]

# --- products, losses, indexing ---------------------------------------------------------------------------------------

MATMUL = [
    linear("matmul", (random(*a), random(*b, seed=1), ta, tb), a[-2] if ta else a[-1], f"{int(ta)}{int(tb)}")
    for a, b, ta, tb in (
        ((5, 3), (3, 7), False, False),
        ((3, 5), (7, 3), True, True),
        ((1, 17), (65, 17), False, True),
        ((70, 13), (70, 90), True, False),
        ((70, 9), (65, 9), False, True),
        ((3, 1100), (1100, 5), False, False),  # several parts
        ((2, 1, 5, 7), (3, 7, 2), False, False),  # leading axes broadcast
        ((1, 3, 7, 5), (4, 1, 7, 2), True, False),
        ((3, 4, 5), (3, 5, 2), False, False),
    )
]


def loss_bound(arguments: tuple[Any, ...], results: list[Array]) -> list[Array | float]:
    logits = next(a for a in arguments if isinstance(a, np.ndarray) and a.ndim == 2)
    weight = max((float(a.max()) for a in arguments[-3:] if isinstance(a, np.ndarray)), default=1.0)
    range_ = np.abs(logits - logits.max(axis=1, keepdims=True)).max(axis=1) + np.log(logits.shape[1]) + 1
    terms = 2 * (logits.shape[1] + 16)
    if len(results) == 2:
        return [terms * weight * range_, terms * 1.0]
    return [(terms * weight * range_ * np.abs(arguments[0]))[:, None] + 0 * logits]


def cross_entropy(rows: int, classes: int, scale: float, weighted: bool, smoothing: float) -> list[Case]:
    logits = np.round(random(rows, classes) * scale * 64) / 64  # exact in float32
    labels = np.random.default_rng(3).integers(0, classes, rows)
    labels[1::3] = -100
    weight = positive(classes) if weighted else None
    _, logsumexp = REFERENCE.softmax_cross_entropy_forward(logits, labels, weight, smoothing, -100)
    note = f"{scale:g}-{'weighted' * weighted}-{smoothing}"
    rest = (labels, weight, smoothing, -100)
    return [
        Case("softmax_cross_entropy_forward", (logits, *rest), loss_bound, note),
        Case("softmax_cross_entropy_backward", (random(rows, seed=2), logits, logsumexp, *rest), loss_bound, note),
    ]


LOSS = [
    *cross_entropy(7, 5, 1.0, False, 0.0),
    *cross_entropy(9, 70, 1.0, True, 0.1),
    *cross_entropy(5, 33, 1e4, False, 0.3),
    *cross_entropy(1, 1, 1.0, True, 0.0),
]

_IMAGES = (2, 3, 9, 7)
INDEX = [
    Case("index_backward", (random(*np.empty(shape)[index].shape), index, shape), note=note)
    for note, shape, index in (
        ("slices", _IMAGES, (slice(None), 1, slice(8, 0, -3))),
        ("new-axis", (5, 3), (None, ..., slice(1, 3))),
        ("repeated", _IMAGES, (np.array([0, 1, 1, 0, 1]), slice(None), np.array([2, -1, -1, 2, 8]))),
        ("to-images", (9, 3, 4), (np.array([[3, 3], [8, 0]]),)),
        ("mask", (5, 3), np.arange(15).reshape(5, 3) % 4 == 1),
        ("nothing", (5, 3), np.array([], np.intp)),
        ("pairs", (9, 4), (np.arange(9), np.arange(9) % 4)),
    )
]

ALL = [*CONV, *BIAS, *POOL, *ACTIVATION, *DROPOUT, *BATCH_NORM, *MATMUL, *LOSS, *INDEX]
