"""Batch, group, layer and local response normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends import Array
from gpucnn.dtypes import float32, is_half
from gpucnn.functional import validate
from gpucnn.functional.arithmetic import mean
from gpucnn.functional.casting import in_float32, in_half, widened
from gpucnn.functional.convolution import FUSED, check, recorded
from gpucnn.functional.shape import pad
from gpucnn.geometry import Padding, Window
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
    """(input − mean) / √(variance + eps) · weight + bias, per channel of [N, C, H, W] or [N, C]. Ioffe & Szegedy 2015.

    training: statistics of this batch (biased variance); running_mean and running_var, if given, move towards them in
    place by `momentum` (towards the unbiased variance). Otherwise the running statistics are used, and must be given.
    An input in a half type goes with a float32 weight, bias and running statistics, and is summed up in float32.

    Two arguments that PyTorch lacks save passes over memory: `residual`, of the input's shape, is added; `activation`
    ("relu", "relu6", "sigmoid" or "tanh") is applied last. In float32 and float64 they give the same as + and that
    function afterwards, to the bit; in a half type the result is rounded once, not after each.

    Raises ValueError for one value per channel in training, whose variance means nothing.
    """
    norm = _BatchNorm(running_mean, running_var, weight, bias, training, momentum, eps, residual, activation)
    norm = norm.checked("batch_norm", input, input.shape)
    return norm.of(input, input.backend.batch_norm_statistics(input.array) if training else None)


@in_half
def conv2d_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    batch_norm: Mapping[str, Any],
) -> Tensor:
    """batch_norm(conv2d(input, weight, bias, ...), **batch_norm), as gpucnn/nn/fusion.py has them computed.

    In training most of a GPU's convolutions sum up the statistics of what they store, which need not be read once more
    for them: these differ by rounding. Raises as both do, before either is computed.
    """
    op = "conv2d_batch_norm"
    check(op, input, weight, bias, groups, transposed=False)
    backend, x, w, b = input.backend, input.array, weight.array, None if bias is None else bias.array
    window = Window.of(w.shape[2:], stride, padding, dilation, size=x.shape[2:])
    try:
        norm = _BatchNorm(**batch_norm)
    except TypeError as error:
        raise TypeError(f"{op}: batch_norm must have the arguments of batch_norm but its input: {error}") from None
    norm = norm.checked(op, input, (len(x), len(w), *window.output_size(x.shape[2:])))
    if norm.training:
        y, *statistics = backend.conv2d_statistics(x, w, b, window, groups)
        return norm.of(recorded(y, input, weight, bias, window, groups), statistics)
    y = backend.conv2d_forward(x, w, b, window, groups)
    return norm.of(recorded(y, input, weight, bias, window, groups), None)


class _BatchNorm(NamedTuple):
    """The arguments of batch_norm but its input."""

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5
    residual: Tensor | None = None
    activation: str | None = None

    def checked(self, op: str, input: Tensor, shape: tuple[int, ...]) -> _BatchNorm:
        """Fit for what has that shape, and the input's dtype and backend. Raises TypeError or ValueError if not."""
        per_channel = {name: getattr(self, name) for name in ("running_mean", "running_var", "weight", "bias")}
        momentum, eps = validate.number(op, "momentum", self.momentum), validate.number(op, "eps", self.eps)
        validate.one_backend(op, input=input, **per_channel)
        if is_half(input.dtype):
            for name, value in per_channel.items():
                if value is not None and value.dtype != float32 and not is_half(value.dtype):
                    raise TypeError(f"{op}: with a {input.dtype} input {name} must be float32, got {value.dtype}")
        else:
            validate.floating(op, input=input, **per_channel)
        if len(shape) not in (2, 4):
            raise ValueError(f"{op}: input must be [N, C] or [N, C, H, W], got shape {shape}")
        for name, value in per_channel.items():
            validate.shape(op, name, value, (shape[1],), "one per channel")
        if self.activation is not None:
            validate.choice(op, "activation", self.activation, FUSED)
        if self.residual is not None:
            validate.floating(op, input=input, residual=self.residual)
            validate.shape(op, "residual", self.residual, shape, "the input's")
        if self.training and math.prod(shape) // max(shape[1], 1) < 2:
            raise ValueError(f"{op}: training needs more than one value per channel, got input shape {shape}")
        if not self.training and (self.running_mean is None or self.running_var is None):
            raise ValueError(f"{op}: with training=False, running_mean and running_var must be given")
        return self._replace(momentum=momentum, eps=eps)

    def of(self, input: Tensor, statistics: Sequence[Array] | None) -> Tensor:
        """Normalised by the batch's (mean, variance), towards which the running ones move, or by these if None."""
        backend, x = input.backend, input.array
        if statistics is None:
            average, variance = (widened(running).array for running in (self.running_mean, self.running_var))
            average = average.copy()  # the gradient's, should a training step move it in between
        else:
            average, variance = statistics
            count = math.prod(x.shape) // x.shape[1]
            unbiased = variance * (count / (count - 1))
            for running, now in ((self.running_mean, average), (self.running_var, unbiased)):
                if running is not None:
                    running.array[...] = running.array + self.momentum * (now - running.array)
        with np.errstate(all="ignore"):
            invstd = 1 / backend.xp.sqrt(variance + self.eps)
        weight, bias = widened(self.weight), widened(self.bias)
        w, b, more = (None if t is None else t.array for t in (weight, bias, self.residual))
        y = backend.batch_norm_forward(x, average, invstd, w, b, more, self.activation)
        output, added = None if self.activation is None else y, self.residual is not None

        def vjp(dy: Array) -> tuple[Array | None, ...]:
            of_norm = (average, invstd, w, self.training, b, output, self.activation, added)
            return backend.batch_norm_backward(dy, x, *of_norm)

        return record(backend, y, ((input, weight, bias, self.residual), vjp))


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
