"""The activations in NumPy: for each kind, f and the derivative that its backward pass multiplies dy with."""

from __future__ import annotations

import math

import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.numpy_elementwise import BLOCK, TILE, Channels, channel_sums, in_blocks, select
from gpucnn.backends.numpy_parallel import workers
from gpucnn.backends.numpy_special import erf

SQRT_HALF = math.sqrt(0.5)
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
TANH_CUBIC = 0.044715
ZEROS = {np.dtype(dtype): np.zeros(2 * BLOCK, dtype) for dtype in (np.float32, np.float64)}


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(−x)), by exp of −|x| alone so that nothing overflows."""
    decay = np.exp(-np.abs(x))
    return np.where(x < 0, decay, np.ones_like(decay)) / (1 + decay)


def activation_forward(x: Array, kind: str, parameter: float) -> Array:
    y = np.empty_like(x)
    if kind in ("relu", "relu6"):
        limit = 6 if kind == "relu6" else None
        in_blocks(lambda x, y: clamp(x, limit, y), x, y)
    else:
        in_blocks(lambda x, y: np.copyto(y, value(x, kind, parameter)), x, y)
    return y


def activate(block: Array, kind: str) -> None:
    """The activation of a dense block, in place."""
    if kind in ("relu", "relu6"):
        clamp_block(block, 6 if kind == "relu6" else None)
    else:
        np.copyto(block, value(block, kind, 0))


def clamp_block(block: Array, limit: float | None) -> None:
    flat = block.reshape(-1)
    for start in range(0, flat.size, 2 * BLOCK):
        part = flat[start : start + 2 * BLOCK]
        clamp(part, limit, part)


def activation_backward(dy: Array, saved: Array, kind: str, parameter: float) -> Array:
    dx = np.empty_like(dy)
    in_blocks(lambda dy, saved, dx: share(dy, saved, kind, parameter, dx), dy, saved, dx)
    return dx


def activation_bias_backward(dy: Array, y: Array, kind: str) -> tuple[Array, Array]:
    """(dx, its sums over all axes but the last), block by block while it is in the cache."""
    dx = np.empty_like(dy)
    if dy.size <= TILE:
        in_blocks(lambda dy, y, dx: share(dy, y, kind, 0.0, dx), dy, y, dx)
        return dx, channel_sums(dx)
    channels = Channels(dx)
    sums = channels.partial_sums(dx.dtype)

    def job(i: int) -> None:
        part = channels.part(dx, i)
        share(channels.part(dy, i), channels.part(y, i), kind, 0.0, part)
        sums[i] = channels.sum(part)

    workers.run(job, len(channels.blocks))
    return dx, sums.sum(axis=0)


def share(dy: Array, saved: Array, kind: str, parameter: float, dx: Array) -> None:
    """dx = dy · f' of a block."""
    if kind == "relu":
        select(saved > 0, dy, dx)
    elif kind == "relu6":
        select((saved > 0) & (saved < 6), dy, dx)
    else:
        np.multiply(dy, derivative(saved, kind, parameter), out=dx)


def clamp(x: Array, limit: float | None, y: Array) -> None:
    """y = max(x, 0), or min of that and the limit. NumPy takes a fast path only where both operands are arrays."""
    np.maximum(x, ZEROS[x.dtype][: x.size], out=y)
    y += 0.0  # of −0.0 and 0.0 either may be the maximum; the sum is 0.0
    if limit is not None:
        np.minimum(y, limit, out=y)


def value(x: Array, kind: str, parameter: float) -> Array:
    if kind == "sigmoid":
        return sigmoid(x)
    if kind == "tanh":
        return np.tanh(x)
    if kind == "leaky_relu":
        return np.where(x > 0, x, parameter * x)
    if kind == "elu":
        return np.where(x > 0, x, parameter * np.expm1(np.minimum(x, 0)))
    if kind == "gelu":
        return 0.5 * x * (1 + erf(x * SQRT_HALF))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(_gelu_argument(x)))
    if kind == "silu":
        return x * sigmoid(x)
    if kind == "hardswish":
        return x * np.clip(x + 3, 0, 6) / 6
    if kind == "hardsigmoid":
        return np.clip(x + 3, 0, 6) / 6
    assert kind == "softplus"
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(parameter * x))) / parameter


def derivative(saved: Array, kind: str, parameter: float) -> Array:
    """f' from the input or, for sigmoid and tanh, the output."""
    if kind == "sigmoid":
        return saved * (1 - saved)
    if kind == "tanh":
        return 1 - saved * saved
    x = saved
    if kind == "leaky_relu":
        return np.where(x > 0, x.dtype.type(1), x.dtype.type(parameter))
    if kind == "elu":
        return np.where(x > 0, x.dtype.type(1), parameter * np.exp(np.minimum(x, 0)))
    if kind == "gelu":
        density = np.exp(-0.5 * x * x) * (0.5 * SQRT_2_OVER_PI)
        return 0.5 * (1 + erf(x * SQRT_HALF)) + x * density
    if kind == "gelu_tanh":
        t = np.tanh(_gelu_argument(x))
        slope = SQRT_2_OVER_PI * (1 + 3 * TANH_CUBIC * x * x)
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope
    if kind == "silu":
        s = sigmoid(x)
        return s * (1 + x * (1 - s))
    if kind == "hardswish":
        return np.where(x <= -3, x.dtype.type(0), np.where(x < 3, x / 3 + 0.5, x.dtype.type(1)))
    if kind == "hardsigmoid":
        return np.where((x > -3) & (x < 3), x.dtype.type(1 / 6), x.dtype.type(0))
    assert kind == "softplus"
    return sigmoid(parameter * x)


def _gelu_argument(x: Array) -> Array:
    return SQRT_2_OVER_PI * (x + TANH_CUBIC * x * x * x)
