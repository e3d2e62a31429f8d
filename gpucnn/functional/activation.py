"""Activations, softmax and dropout. PyTorch's `inplace` is taken, for its programs, and changes nothing."""

from __future__ import annotations

import math

import numpy as np

from gpucnn.backends import ACTIVATIONS, Array
from gpucnn.dtypes import is_half
from gpucnn.functional import validate
from gpucnn.functional.casting import in_float32, in_half, through_float32
from gpucnn.live import Live
from gpucnn.random import Generator, get_generator
from gpucnn.tensor import Tensor, in_storage_order, record


def _activation(kind: str, input: Tensor, parameter: float = 0.0) -> Tensor:
    backend = validate.floating(kind, input=input)
    x = input.array
    y = backend.activation_forward(x, kind, parameter)
    saved = y if ACTIVATIONS[kind] == "output" else x
    return record(backend, y, (input, lambda dy: backend.activation_backward(dy, saved, kind, parameter)))


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0); the gradient at 0 is 0, NaN stays NaN, −0.0 becomes 0.0."""
    return _activation("relu", input)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(input, 0), 6)."""
    return _activation("relu6", input)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """input where positive, else negative_slope · input."""
    return _activation("leaky_relu", input, validate.number("leaky_relu", "negative_slope", negative_slope))


@in_half
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """leaky_relu with a learned slope: weight [1], or [C] for an input [N, C, …]."""
    backend = validate.floating("prelu", input=input, weight=weight)
    validate.rank("prelu", "weight", weight, 1, "[1] or [C]")
    channels = input.shape[1] if input.ndim > 1 else 1
    if weight.shape not in ((1,), (channels,)):
        raise ValueError(f"prelu: weight must have shape (1,) or ({channels},), one per channel, got {weight.shape}")
    x = input.array
    slope = weight.array.reshape((-1,) + (1,) * (input.ndim - 2) if input.ndim else ())
    where = backend.xp.where
    per_channel = weight.shape != (1,)

    def vjp_weight(dy: Array) -> Array:
        half = is_half(dy.dtype)
        wide = backend.astype(dy, np.float32) if half else dy  # in which the shares are added up
        share = in_storage_order(lambda d, a: where(a > 0, 0, d * a).astype(d.dtype, copy=False), wide, x)
        if per_channel and share.ndim not in (2, 4):  # as four axes, of which bias_backward adds up all but the second
            share = share.reshape(*share.shape[:2], math.prod(share.shape[2:]), 1)
        total = backend.bias_backward(share) if per_channel else share.sum().reshape(1)
        return backend.astype(total, dy.dtype) if half else total

    return record(
        backend,
        in_storage_order(lambda a, s: where(a > 0, a, s * a), x, slope),
        (input, lambda dy: in_storage_order(lambda d, a, s: where(a > 0, d, s * d), dy, x, slope)),
        (weight, vjp_weight),
    )


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """input where positive, else alpha · (exp(input) − 1)."""
    return _activation("elu", input, validate.number("elu", "alpha", alpha))


@through_float32
def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """1.0507 · elu(input, 1.6733): keeps mean 0 and variance 1 from layer to layer. Klambauer et al. 2017."""
    validate.floating("selu", input=input)
    return elu(input, 1.6732632423543772) * 1.0507009873554805


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """input · Φ(input), Φ the normal distribution: by erf ("none") or by tanh ("tanh"). Hendrycks & Gimpel 2016."""
    validate.choice("gelu", "approximate", approximate, ("none", "tanh"))
    return _activation("gelu" if approximate == "none" else "gelu_tanh", input)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """input · sigmoid(input), also called swish."""
    return _activation("silu", input)


@through_float32
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """input · tanh(softplus(input)); NaN at −∞, as in PyTorch. Misra 2019."""
    validate.floating("mish", input=input)
    return input * tanh(softplus(input))


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """input · relu6(input + 3) / 6. Howard et al. 2019."""
    return _activation("hardswish", input)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(input + 3) / 6."""
    return _activation("hardsigmoid", input)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """input limited to min_val … max_val; the gradient passes between them, and at NaN. `clamp` passes it at both ends.

    Raises ValueError unless min_val <= max_val.
    """
    backend = validate.floating("hardtanh", input=input)
    low, high = (validate.number("hardtanh", name, end) for name, end in (("min_val", min_val), ("max_val", max_val)))
    if not low <= high:
        raise ValueError(f"hardtanh: min_val must not be larger than max_val, got {low} and {high}")
    xp, x = backend.xp, input.array
    return record(
        backend,
        in_storage_order(lambda a: xp.minimum(xp.maximum(a, low), high), x),
        (input, lambda dy: in_storage_order(lambda d, a: xp.where((a <= low) | (a >= high), 0, d), dy, x)),
    )


def softsign(input: Tensor) -> Tensor:
    """input / (1 + |input|); NaN at ±∞, as in PyTorch."""
    backend = validate.floating("softsign", input=input)
    xp, x = backend.xp, input.array

    def share(d: Array, a: Array) -> Array:
        size = 1 + xp.abs(a)
        return d / size / size  # size² may overflow

    return record(
        backend,
        in_storage_order(lambda a: a / (1 + xp.abs(a)), x),
        (input, lambda dy: in_storage_order(share, dy, x)),
    )


@in_float32
def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta · input)) / beta. Exact for every input; PyTorch's threshold (where it returns the input
    itself) is accepted and not needed."""
    beta = validate.number("softplus", "beta", beta)
    if not 0 < beta < math.inf:
        raise ValueError(f"softplus: beta must be positive and finite, got {beta}")
    return _activation("softplus", input, beta)


@through_float32
def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(input)) = −softplus(−input): finite and exact however small the sigmoid is."""
    validate.floating("logsigmoid", input=input)
    return -softplus(-input)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(−input))."""
    return _squashed("sigmoid", _activation("sigmoid", input))


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return _activation("tanh", input)


@in_float32
def softmax(input: Tensor, dim: int) -> Tensor:
    """exp(input) / Σ exp(input) along axis `dim`; stable for inputs of any size."""
    backend = validate.floating("softmax", input=input)
    axis = validate.axis("softmax", dim, input.ndim)
    x = input.array
    with np.errstate(all="ignore"):
        y = backend.xp.exp(x - _max(x, axis))
        y /= y.sum(axis=axis, keepdims=True)
    result = record(backend, y, (input, lambda dy: y * (dy - (dy * y).sum(axis=axis, keepdims=True))))
    return _squashed("softmax", result)


@in_float32
def log_softmax(input: Tensor, dim: int) -> Tensor:
    """log(softmax(input)) along axis `dim`, computed without the intermediate."""
    backend = validate.floating("log_softmax", input=input)
    axis = validate.axis("log_softmax", dim, input.ndim)
    x = input.array
    with np.errstate(all="ignore"):
        shifted = x - _max(x, axis)
        y = shifted - backend.xp.log(backend.xp.exp(shifted).sum(axis=axis, keepdims=True))
    return record(backend, y, (input, lambda dy: dy - backend.xp.exp(y) * dy.sum(axis=axis, keepdims=True)))


def _squashed(op: str, result: Tensor) -> Tensor:
    """Mark probabilities, so that a loss which wants logits can warn."""
    if result._node is not None:
        result._node.squashed_by = op
    return result


def _max(x: Array, axis: int) -> Array:
    return x.max(axis=axis, keepdims=True) if x.shape[axis] else x.sum(axis=axis, keepdims=True)


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Each element 0 with probability p, else divided by 1 − p; the input itself when not training.

    The mask comes from a counter-based generator (Philox), the default one unless given: the same seed gives the same
    mask on every backend. Raises ValueError unless 0 <= p <= 1.
    """
    backend = validate.floating("dropout", input=input)
    if not 0 <= validate.number("dropout", "p", p) <= 1:
        raise ValueError(f"dropout: p is the probability to drop an element, 0 to 1, got {p}")
    if not training or p == 0:
        return input
    if p == 1:
        return input * 0.0
    count = input.numel()
    position = Live(lambda: get_generator(generator).reserve(count))
    return record(
        backend,
        backend.dropout(input.array, p, position),
        (input, lambda dy: backend.dropout(dy, p, position)),
    )


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Each channel of each signal, [N, C, L], 0 with probability p, else divided by 1 − p. As `dropout` otherwise."""
    return _dropout_of_channels("dropout1d", input, p, training, generator, 3, "[N, C, L]")


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Each channel of each image, [N, C, H, W], 0 with probability p, else divided by 1 − p. Tompson et al. 2015.

    As `dropout` otherwise.
    """
    return _dropout_of_channels("dropout2d", input, p, training, generator, 4, "[N, C, H, W]")


@through_float32
def _dropout_of_channels(
    op: str, input: Tensor, p: float, training: bool, generator: Generator | None, ndim: int, axes: str
) -> Tensor:
    backend = validate.floating(op, input=input)
    validate.rank(op, "input", input, ndim, axes)
    shape = (*input.shape[:2], *(1,) * (ndim - 2))
    ones = Tensor(backend.contiguous(backend.xp.ones(shape, input.dtype)), backend)
    mask = dropout(ones, p, training, generator=generator)
    return input if mask is ones else input * mask
