"""Initialisers, in place, with torch.nn.init's names and defaults. Drawn on the host: equal on every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from gpucnn.functional import validate
from gpucnn.random import Generator, get_generator
from gpucnn.tensor import Tensor, no_grad

Mode = Literal["fan_in", "fan_out"]


Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray[Any, Any]]


def _fill(op: str, tensor: Tensor, draw: Draw, generator: Generator | None = None) -> Tensor:
    validate.one_backend(op, tensor=tensor)
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(f"{op}: generator must be a gpucnn.Generator, got {type(generator).__name__}")
    values = draw(get_generator(generator).host, tensor.shape)
    with no_grad(), np.errstate(all="ignore"):
        return tensor.copy_(values.astype(tensor.dtype))


def _finite(op: str, name: str, value: Any, least: float = -math.inf) -> float:
    found = validate.number(op, name, value)
    if not least <= found < math.inf or found == -math.inf:
        raise ValueError(f"{op}: {name} must be finite{' and not negative' * (least == 0)}, got {value!r}")
    return found


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight [out, in, …]: how many inputs an output sums, and the reverse.

    Raises ValueError for fewer than two axes.
    """
    validate.one_backend("fans", tensor=tensor)
    if tensor.ndim < 2:
        raise ValueError(f"fan in and fan out need a weight with at least 2 axes, got shape {tensor.shape}")
    taps = math.prod(tensor.shape[2:])
    return tensor.shape[1] * taps, tensor.shape[0] * taps


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through a nonlinearity: torch.nn.init.calculate_gain."""
    gains = {"linear": 1.0, "conv2d": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 0.75}
    validate.choice("calculate_gain", "nonlinearity", nonlinearity, [*gains, "leaky_relu"])
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else _finite("calculate_gain", "param", param)
        return math.sqrt(2 / (1 + slope * slope))
    return gains[nonlinearity]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform in [a, b). Raises ValueError unless both are finite and a <= b."""
    a, b = _finite("uniform_", "a", a), _finite("uniform_", "b", b)
    if not 0 <= b - a < math.inf:
        raise ValueError(f"uniform_: a must be at most b, and their difference finite, got {a} and {b}")
    return _fill("uniform_", tensor, lambda host, shape: host.uniform(a, b, shape), generator)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal. Raises ValueError for a negative standard deviation."""
    mean, std = _finite("normal_", "mean", mean), _finite("normal_", "std", std, least=0)
    return _fill("normal_", tensor, lambda host, shape: host.normal(mean, std, shape), generator)


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Normal between a and b. Raises ValueError for a negative standard deviation, and unless a <= b."""
    op = "trunc_normal_"
    mean, std = _finite(op, "mean", mean), _finite(op, "std", std, least=0)
    a, b = _finite(op, "a", a), _finite(op, "b", b)
    if not a <= b:
        raise ValueError(f"{op}: a must be at most b, got {a} and {b}")
    normal = NormalDist()
    low, high = (normal.cdf((end - mean) / std) if std else 0.5 for end in (a, b))

    def draw(host: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        parts = np.clip(host.uniform(low, high, math.prod(shape)), 1e-300, 1 - 1e-16)
        values = np.fromiter(map(normal.inv_cdf, parts.tolist()), np.float64, parts.size)
        return np.clip(mean + std * values, a, b).reshape(shape)

    return _fill(op, tensor, draw, generator)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """gain times a matrix [out, rest] whose rows, or columns if these are fewer, are orthonormal. Saxe et al. 2013.

    Raises ValueError for fewer than two axes.
    """
    gain = _finite("orthogonal_", "gain", gain)
    fans(tensor)  # which wants two axes

    def draw(host: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        rows, columns = shape[0], math.prod(shape[1:])
        q, r = np.linalg.qr(host.standard_normal((max(rows, columns), min(rows, columns))))
        q *= np.where(np.diag(r) < 0, -1, 1)  # else not every orthogonal matrix were equally likely
        return gain * (q if rows >= columns else q.T).reshape(shape)

    return _fill("orthogonal_", tensor, draw, generator)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Every element `val`."""
    value = validate.number("constant_", "val", val)
    return _fill("constant_", tensor, lambda host, shape: np.full(shape, value))


def zeros_(tensor: Tensor) -> Tensor:
    """Every element 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Every element 1."""
    return constant_(tensor, 1.0)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform, variance gain² · 2 / (fan_in + fan_out). Glorot & Bengio 2010."""
    bound = _finite("xavier_uniform_", "gain", gain, least=0) * math.sqrt(6 / max(sum(fans(tensor)), 1))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal, variance gain² · 2 / (fan_in + fan_out)."""
    std = _finite("xavier_normal_", "gain", gain, least=0) * math.sqrt(2 / max(sum(fans(tensor)), 1))
    return normal_(tensor, 0.0, std, generator)


def _kaiming_std(tensor: Tensor, a: float, mode: Mode, nonlinearity: str) -> float:
    validate.choice("kaiming", "mode", mode, ("fan_in", "fan_out"))
    fan = fans(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: Mode = "fan_in", nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Uniform, variance gain² / fan. He et al. 2015."""
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: Mode = "fan_in", nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Normal, variance gain² / fan."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)
