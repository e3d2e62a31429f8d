"""Batch, instance, group, layer and local response normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpucnn.backends import Array, Backend
from gpucnn.dtypes import float32, is_half
from gpucnn.functional import validate
from gpucnn.functional.arithmetic import clamp, div, mean, mul, norm, sum
from gpucnn.functional.casting import in_float32, widened
from gpucnn.functional.convolution import FUSED
from gpucnn.functional.shape import pad, squeeze, unsqueeze
from gpucnn.tensor import Tensor, record


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """(input − mean) / √(variance + eps) · weight + bias, per channel of [N, C, H, W], [N, C, L] or [N, C].

    Ioffe & Szegedy 2015.

    training: statistics of this batch (biased variance); running_mean and running_var, if given, move towards them in
    place by `momentum` (towards the unbiased variance). Otherwise the running statistics are used, and must be given.
    An input in a half type goes with a float32 weight, bias and running statistics, and is summed up in float32.

    Two arguments that PyTorch lacks save passes over memory: `residual`, of the input's shape, is added; `activation`
    ("relu", "relu6", "sigmoid" or "tanh") is applied last. In float32 and float64 they give the same as + and that
    function afterwards, to the bit; in a half type the result is rounded once, not after each.

    Raises ValueError for one value per channel in training, whose variance means nothing.
    """
    given = (running_mean, running_var, weight, bias, training, momentum, eps, residual, activation)
    return _batch_norm(input, None, *given)


def _batch_norm(
    input: Tensor,
    statistics: tuple[Array, Array] | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
) -> Tensor:
    """batch_norm of what has these statistics, (mean, variance), if they are known."""
    op = "batch_norm"
    eps, momentum = validate.number(op, "eps", eps), validate.number(op, "momentum", momentum)
    per_channel = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    backend = _of_channels(op, input, per_channel)
    weight, bias = widened(weight), widened(bias)
    if input.ndim not in (2, 3, 4):
        raise ValueError(f"{op}: input must be [N, C], [N, C, L] or [N, C, H, W], got shape {input.shape}")
    if input.ndim == 3:
        row, more = unsqueeze(input, 2), None if residual is None else unsqueeze(residual, 2)
        return squeeze(
            batch_norm(row, running_mean, running_var, weight, bias, training, momentum, eps, more, activation), 2
        )
    channels = input.shape[1]
    for name, value in per_channel.items():
        validate.shape(op, name, value, (channels,), f"one per channel of the input {input.shape}")
    x = input.array
    if activation is not None:
        validate.choice(op, "activation", activation, FUSED)
    if residual is not None:
        validate.floating(op, input=input, residual=residual)
        validate.shape(op, "residual", residual, input.shape, "the input's")
    count = math.prod(x.shape) // max(channels, 1)
    if training:
        if count < 2:
            raise ValueError(f"{op}: training needs more than one value per channel, got input shape {input.shape}")
        average, variance = backend.batch_norm_statistics(x) if statistics is None else statistics
        running = (running_mean, running_var)
        invstd = _invstd(backend, average, variance, eps, running, momentum, count / (count - 1))
    elif running_mean is None or running_var is None:
        raise ValueError(f"{op}: with training=False, running_mean and running_var must be given")
    else:
        average, variance = widened(running_mean).array.copy(), widened(running_var).array
        invstd = backend.batch_norm_invstd(average, variance, eps)
    w, b, more = (None if t is None else t.array for t in (weight, bias, residual))
    y = backend.batch_norm_forward(x, average, invstd, w, b, more, activation)
    output, added = None if activation is None else y, residual is not None

    def vjp(dy: Array) -> tuple[Array | None, ...]:
        return backend.batch_norm_backward(dy, x, average, invstd, w, training, b, output, activation, added)

    return record(backend, y, ((input, weight, bias, residual), vjp))


def _of_channels(op: str, input: Tensor, per_channel: dict[str, Tensor | None]) -> Backend:
    """The backend of a norm's input and of what it has for each channel, in its dtype or, for a half type, float32."""
    backend = validate.one_backend(op, input=input, **per_channel)
    if not is_half(input.dtype):
        return validate.floating(op, input=input, **per_channel)
    for name, value in per_channel.items():
        if value is not None and value.dtype != float32 and not is_half(value.dtype):
            raise TypeError(f"{op}: with a {input.dtype} input {name} must be float32, got {value.dtype}")
    return backend


def _invstd(
    backend: Backend,
    mean: Array,
    variance: Array,
    eps: float,
    running: tuple[Tensor | None, Tensor | None],
    momentum: float,
    unbiased: float,
) -> Array:
    """batch_norm_invstd, where the running statistics may be of a half type or have any strides."""
    moved = [None if r is None else backend.contiguous(widened(r).array) for r in running]
    invstd = backend.batch_norm_invstd(mean, variance, eps, moved, momentum, unbiased)
    for r, wide in zip(running, moved, strict=True):
        if r is not None and r.array is not wide:  # a copy
            r.array[...] = wide
    return invstd


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(input − mean) / √(variance + eps) · weight + bias, per channel of each image. Ulyanov et al. 2016.

    input [N, C, …], weight, bias and running statistics [C]. use_input_stats: each image's own statistics (biased
    variance); running_mean and running_var, if given, move in place by `momentum` towards their mean over the images
    (of the unbiased variance). Otherwise the running statistics are used, and must be given: that is `batch_norm`. An
    input in a half type goes with a float32 weight, bias and running statistics, and is summed up in float32.

    Raises ValueError for one value per channel of an image, whose variance means nothing.
    """
    op = "instance_norm"
    eps, momentum = validate.number(op, "eps", eps), validate.number(op, "momentum", momentum)
    per_channel = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    backend = _of_channels(op, input, per_channel)
    if input.ndim < 3:
        raise ValueError(f"{op}: input must be [N, C, …] with at least 3 axes, got shape {input.shape}")
    batch, channels, *size = input.shape
    for name, value in per_channel.items():
        validate.shape(op, name, value, (channels,), "one per channel")
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{op}: running_mean and running_var must be given together")
    if not use_input_stats and running_mean is None:
        raise ValueError(f"{op}: with use_input_stats=False, running_mean and running_var must be given")
    count = math.prod(size)
    if use_input_stats and count < 2:
        raise ValueError(f"{op}: an image needs more than one value per channel, got input shape {input.shape}")
    if input.ndim != 4:
        plane = input.reshape(batch, channels, count, 1)
        norm = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return instance_norm(plane, *norm).reshape(input.shape)
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    x = input.array
    mean, variance = backend.instance_norm_statistics(x)
    invstd = backend.batch_norm_invstd(mean.reshape(-1), variance.reshape(-1), eps).reshape(mean.shape)
    if running_mean is not None and batch:
        average, spread = (backend.bias_backward(statistic) / batch for statistic in (mean, variance))
        _invstd(backend, average, spread, eps, (running_mean, running_var), momentum, count / (count - 1))
    weight, bias = widened(weight), widened(bias)
    w, b = (None if t is None else t.array for t in (weight, bias))
    y = backend.instance_norm_forward(x, mean, invstd, w, b)

    def vjp(dy: Array) -> tuple[Array | None, ...]:
        return backend.instance_norm_backward(dy, x, mean, invstd, w)

    return record(backend, y, ((input, weight, bias), vjp))


@in_float32
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Each image's C/num_groups channels at a time to mean 0 and variance 1, then · weight + bias per channel.

    input [N, C, …], weight and bias [C]. Wu & He 2018.
    """
    op = "group_norm"
    validate.floating(op, input=input, weight=weight, bias=bias)
    num_groups, eps = validate.integer(op, "num_groups", num_groups), validate.number(op, "eps", eps)
    if input.ndim < 2:
        raise ValueError(f"{op}: input must be [N, C, …], got shape {input.shape}")
    batch, channels = input.shape[:2]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"{op}: num_groups={num_groups} must divide the {channels} channels")
    validate.shape(op, "weight", weight, (channels,), "one per channel")
    validate.shape(op, "bias", bias, (channels,), "one per channel")
    grouped = input.reshape(batch, num_groups, math.prod(input.shape[1:]) // num_groups)
    y = _standardised(grouped, (2,), eps).reshape(input.shape)
    return _scaled(y, weight, bias, (channels,) + (1,) * (input.ndim - 2))


@in_float32
def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """The last axes, of lengths normalized_shape, to mean 0 and variance 1, then · weight + bias. Ba et al. 2016."""
    op = "layer_norm"
    validate.floating(op, input=input, weight=weight, bias=bias)
    eps = validate.number(op, "eps", eps)
    lengths = normalized_shape if isinstance(normalized_shape, Sequence) else [normalized_shape]
    shape = validate.integers(op, "normalized_shape", lengths)
    if not shape or input.shape[-len(shape) :] != shape:
        raise ValueError(f"{op}: normalized_shape {shape} must be the last axes of the input's shape {input.shape}")
    validate.shape(op, "weight", weight, shape, "normalized_shape")
    validate.shape(op, "bias", bias, shape, "normalized_shape")
    y = _standardised(input, tuple(range(input.ndim - len(shape), input.ndim)), eps)
    return _scaled(y, weight, bias, shape)


def _standardised(input: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = input - mean(input, axes, keepdim=True)
    return centred / (mean(centred * centred, axes, keepdim=True) + eps).sqrt()


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if weight is not None:
        y = y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


@in_float32
def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """input / (k + alpha/size · Σ input² over `size` neighbouring channels)^beta. Krizhevsky et al. 2012.

    The window of channel c is c − ⌊size/2⌋ … c + ⌊(size − 1)/2⌋; outside the input it counts 0, as in PyTorch.
    """
    op = "local_response_norm"
    validate.floating(op, input=input)
    if input.ndim < 3:
        raise ValueError(f"{op}: input must be [N, C, …] with at least 3 axes, got shape {input.shape}")
    size = validate.integer(op, "size", size, least=1)
    alpha, beta, k = (validate.number(op, name, value) for name, value in (("alpha", alpha), ("beta", beta), ("k", k)))
    channels = input.shape[1]
    padded = pad(input * input, (0, 0) * (input.ndim - 2) + (size // 2, (size - 1) // 2))
    total = padded[:, :channels]
    for c in range(1, size):
        total = total + padded[:, c : c + channels]
    return input / (total * (alpha / size) + k) ** beta


def normalize(input: Tensor, p: float = 2.0, dim: int | Sequence[int] = 1, eps: float = 1e-12) -> Tensor:
    """input over its p-norm along an axis or several, or over `eps` where that is larger."""
    eps = validate.number("normalize", "eps", eps)
    return div(input, clamp(norm(input, p, dim, keepdim=True), min=eps))


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-08) -> Tensor:
    """The cosine of the angle between vectors along an axis: their product over both norms, each at least `eps`."""
    return sum(mul(normalize(x1, dim=dim, eps=eps), normalize(x2, dim=dim, eps=eps)), dim)
