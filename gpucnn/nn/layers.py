"""Layers: modules around `gpucnn.functional`, with torch.nn's names, arguments and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gpucnn import functional as F
from gpucnn.creation import ones, zeros
from gpucnn.functional import normalization, validate
from gpucnn.functional.convolution import conv2d_with_statistics
from gpucnn.geometry import Padding, pair
from gpucnn.nn import init
from gpucnn.nn.module import Buffer, Module, Parameter
from gpucnn.tensor import Tensor

Pair = int | Sequence[int]


def new_weight(fan_in: int, *shape: int) -> Parameter:
    """Uniform in ±1/√fan_in, as PyTorch initialises convolutions and linear layers."""
    bound = 1 / math.sqrt(fan_in)
    return Parameter(init.uniform_(zeros(*shape), -bound, bound))


def _positive(layer: str, **counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{layer}: {name} must be a positive int, got {value!r}")


def check_groups(layer: str, in_channels: int, out_channels: int, groups: int) -> None:
    """Raises ValueError unless both numbers of channels can be divided into these groups."""
    _positive(layer, in_channels=in_channels, out_channels=out_channels, groups=groups)
    if int(in_channels) % int(groups) or int(out_channels) % int(groups):  # NumPy's ints fail at large ones
        raise ValueError(
            f"{layer}: groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
        )


# -- convolution and linear ------------------------------------------------------------------------


class Conv2d(Module):
    """`functional.conv2d` with a learned weight [out_channels, in_channels/groups, R, S] and bias [out_channels]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        check_groups("Conv2d", in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = kernel = pair(kernel_size, "kernel_size", 1)
        self.stride, self.dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
        self.padding: Padding = pair(padding, "padding", 0) if isinstance(padding, int) else padding
        fan_in = in_channels // groups * kernel[0] * kernel[1]
        self.weight = new_weight(fan_in, out_channels, in_channels // groups, *kernel)
        self.bias = new_weight(fan_in, out_channels) if bias else None

    def forward(
        self,
        input: Tensor,
        activation: str | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        max_pool: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """conv2d of the input; its results times `scale`, + `shift` (both [out_channels]) + `residual`, activated.

        With max_pool, the arguments of max_pool2d: conv2d of the input, activated and pooled.
        """
        if max_pool is not None:
            return F.conv2d_max_pool2d(
                input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, activation,
                max_pool=max_pool,
            )  # fmt: skip
        bias: Tensor | None = self.bias
        if scale is not None and bias is not None:
            bias = bias * scale
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return F.conv2d(
            input, self.weight, bias, self.stride, self.padding, self.dilation, self.groups, activation, scale, residual
        )

    def multiply_adds(self, output: Tensor) -> int:
        return output.numel() * math.prod(self.weight.shape[1:])


class ConvTranspose2d(Module):
    """`functional.conv_transpose2d` with a learned weight [in_channels, out_channels/groups, R, S] and bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
    ) -> None:
        check_groups("ConvTranspose2d", in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = kernel = pair(kernel_size, "kernel_size", 1)
        self.stride, self.dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
        self.padding, self.output_padding = pair(padding, "padding", 0), pair(output_padding, "output_padding", 0)
        fan_in = out_channels // groups * kernel[0] * kernel[1]  # what PyTorch counts for this layer
        self.weight = new_weight(fan_in, in_channels, out_channels // groups, *kernel)
        self.bias = new_weight(fan_in, out_channels) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    def multiply_adds(self, output: Tensor) -> int:
        """As many as the convolution it is the transpose of, counted without padding."""
        channels, _, r, s = self.weight.shape
        return output.numel() * channels // self.groups * r * s // math.prod(self.stride)


class Linear(Module):
    """`functional.linear` with a learned weight [out_features, in_features] and bias [out_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        _positive("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = new_weight(in_features, out_features, in_features)
        self.bias = new_weight(in_features, out_features) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def multiply_adds(self, output: Tensor) -> int:
        return output.numel() * self.weight.shape[1]


# -- pooling ---------------------------------------------------------------------------------------


class MaxPool2d(Module):
    """`functional.max_pool2d`."""

    _pool = staticmethod(F.max_pool2d)

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Padding = 0,
        dilation: Pair = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, input: Tensor) -> Any:
        return self._pool(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class MinPool2d(MaxPool2d):
    """`functional.min_pool2d`."""

    _pool = staticmethod(F.min_pool2d)


class AvgPool2d(Module):
    """`functional.avg_pool2d`."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        self.kernel_size, self.stride, self.padding, self.ceil_mode = kernel_size, stride, padding, ceil_mode
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad,
            self.divisor_override,
        )  # fmt: skip


class SumPool2d(Module):
    """`functional.sum_pool2d`."""

    def __init__(
        self, kernel_size: Pair, stride: Pair | None = None, padding: Padding = 0, ceil_mode: bool = False
    ) -> None:
        self.kernel_size, self.stride, self.padding, self.ceil_mode = kernel_size, stride, padding, ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        return F.sum_pool2d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode)


class AdaptiveAvgPool2d(Module):
    """`functional.adaptive_avg_pool2d`; output_size 1 is global average pooling."""

    def __init__(self, output_size: int | None | Sequence[int | None]) -> None:
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveMaxPool2d(Module):
    """`functional.adaptive_max_pool2d`; output_size 1 is global max pooling."""

    def __init__(self, output_size: int | None | Sequence[int | None], return_indices: bool = False) -> None:
        self.output_size, self.return_indices = output_size, return_indices

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


# -- activations -----------------------------------------------------------------------------------


class _Activation(Module):
    """Takes PyTorch's `inplace`, which changes nothing."""

    def __init__(self, inplace: bool = False) -> None:
        self.inplace = inplace


class ReLU(_Activation):
    """`functional.relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input)


class ReLU6(_Activation):
    """`functional.relu6`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(input)


class LeakyReLU(Module):
    """`functional.leaky_relu`."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        self.negative_slope, self.inplace = negative_slope, inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, self.negative_slope)


class PReLU(Module):
    """`functional.prelu` with one learned slope, or one per channel."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        _positive("PReLU", num_parameters=num_parameters)
        self.weight = Parameter(ones(num_parameters) * validate.number("PReLU", "init", init))

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)


class ELU(Module):
    """`functional.elu`."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        self.alpha, self.inplace = alpha, inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.elu(input, self.alpha)


class SELU(_Activation):
    """`functional.selu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.selu(input)


class GELU(Module):
    """`functional.gelu`."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, self.approximate)


class SiLU(_Activation):
    """`functional.silu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input)


class Mish(_Activation):
    """`functional.mish`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.mish(input)


class Hardswish(_Activation):
    """`functional.hardswish`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.hardswish(input)


class Hardsigmoid(_Activation):
    """`functional.hardsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.hardsigmoid(input)


class Hardtanh(Module):
    """`functional.hardtanh`."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        self.min_val, self.max_val, self.inplace = min_val, max_val, inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.hardtanh(input, self.min_val, self.max_val)


class Softplus(Module):
    """`functional.softplus`."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.beta, self.threshold = beta, threshold

    def forward(self, input: Tensor) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)


class Sigmoid(Module):
    """`functional.sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class LogSigmoid(Module):
    """`functional.logsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.logsigmoid(input)


class Softsign(Module):
    """`functional.softsign`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softsign(input)


class Tanh(Module):
    """`functional.tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class Softmax(Module):
    """`functional.softmax`. Not before CrossEntropyLoss, which takes logits."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim)


class LogSoftmax(Module):
    """`functional.log_softmax`."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim)


class Dropout(Module):
    """`functional.dropout` while training, nothing in evaluation mode."""

    _drop = staticmethod(F.dropout)

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        if not 0 <= validate.number(type(self).__name__, "p", p) <= 1:
            raise ValueError(f"{type(self).__name__}: p is the probability to drop an element, 0 to 1, got {p}")
        self.p, self.inplace = p, inplace

    def forward(self, input: Tensor) -> Tensor:
        return self._drop(input, self.p, self.training)


class Dropout1d(Dropout):
    """`functional.dropout1d`, of whole channels, while training, nothing in evaluation mode."""

    _drop = staticmethod(F.dropout1d)


class Dropout2d(Dropout):
    """`functional.dropout2d`, of whole channels, while training, nothing in evaluation mode."""

    _drop = staticmethod(F.dropout2d)


# -- normalisation ---------------------------------------------------------------------------------


class _NormOfChannels(Module):
    """A weight and a bias for each channel, and its running statistics."""

    def __init__(
        self, num_features: int, eps: float, momentum: float | None, affine: bool, track_running_stats: bool
    ) -> None:
        _positive(type(self).__name__, num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = Parameter(ones(num_features)) if affine else None
        self.bias = Parameter(zeros(num_features)) if affine else None
        self.running_mean = Buffer(zeros(num_features)) if track_running_stats else None
        self.running_var = Buffer(ones(num_features)) if track_running_stats else None
        self.num_batches_tracked = Buffer(zeros((), dtype=np.int64)) if track_running_stats else None


class _BatchNorm(_NormOfChannels):
    _shapes: ClassVar[dict[int, str]]  # of the input, by its number of axes

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)

    def forward(
        self,
        input: Tensor,
        activation: str | None = None,
        residual: Tensor | None = None,
        conv: Conv2d | None = None,
    ) -> Tensor:
        """batch_norm of the input, or of `conv` of the input, plus `residual`, activated."""
        known = input.ndim if isinstance(input, Tensor) and input.ndim in self._shapes else max(self._shapes)
        validate.rank(type(self).__name__, "input", input, known, self._shapes[known])
        momentum = self.momentum
        if momentum is None:  # the running statistics are the mean over all batches
            momentum = 0.0 if self.num_batches_tracked is None else 1 / (self.num_batches_tracked.item() + 1)
        norm = (
            self.running_mean, self.running_var, self.weight, self.bias, self.training or self.running_mean is None,
            momentum, self.eps, residual, activation,
        )  # fmt: skip
        if conv is None:
            output = F.batch_norm(input, *norm)
        else:
            of_conv = (conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
            y, statistics = conv2d_with_statistics(input, *of_conv)
            output = normalization._batch_norm(y, statistics, *norm)
        if self.training and self.num_batches_tracked is not None:
            counted = self.num_batches_tracked._writable()
            counted += 1
        return output

    def affine_transform(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), [C] each: what evaluation mode multiplies by and adds. Nothing is recorded."""
        if self.running_mean is None or self.running_var is None:
            raise ValueError(f"{type(self).__name__} has no running statistics: track_running_stats=False")
        backend = self.running_var.backend
        mean, variance, weight, bias = (
            None if t is None else t.array for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        scale, shift = backend.batch_norm_affine(mean, variance, weight, bias, self.eps)
        return Tensor(scale, backend), Tensor(shift, backend)


class BatchNorm1d(_BatchNorm):
    """`functional.batch_norm` of [N, C] or [N, C, L]: batch statistics while training, running ones in evaluation
    mode."""

    _shapes: ClassVar = {2: "[N, C]", 3: "[N, C, L]"}


class BatchNorm2d(_BatchNorm):
    """`functional.batch_norm` of [N, C, H, W]: batch statistics while training, running ones in evaluation mode."""

    _shapes: ClassVar = {4: "[N, C, H, W]"}


class _InstanceNorm(_NormOfChannels):
    _shape: tuple[int, str]  # of the input: its number of axes, and what they are

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)

    def forward(self, input: Tensor) -> Tensor:
        layer = type(self).__name__
        validate.rank(layer, "input", input, *self._shape)
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"{layer}: input must have num_features={self.num_features} channels, got shape {input.shape}"
            )
        momentum = 0.0 if self.momentum is None else self.momentum  # as in PyTorch: they stay what they are
        own = self.training or self.running_mean is None
        return F.instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, own, momentum, self.eps
        )


class InstanceNorm1d(_InstanceNorm):
    """`functional.instance_norm` of [N, C, L]: statistics of each signal, or running ones in evaluation mode if they
    are tracked."""

    _shape = (3, "[N, C, L]")


class InstanceNorm2d(_InstanceNorm):
    """`functional.instance_norm` of [N, C, H, W]: statistics of each image, or running ones in evaluation mode if they
    are tracked."""

    _shape = (4, "[N, C, H, W]")


class GroupNorm(Module):
    """`functional.group_norm` with a learned weight and bias per channel."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        _positive("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_groups={num_groups} must divide num_channels={num_channels}")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self.weight = Parameter(ones(num_channels)) if affine else None
        self.bias = Parameter(zeros(num_channels)) if affine else None

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class LayerNorm(Module):
    """`functional.layer_norm` with a learned weight and bias of normalized_shape."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        lengths = normalized_shape if isinstance(normalized_shape, Sequence) else [normalized_shape]
        self.normalized_shape = validate.integers("LayerNorm", "normalized_shape", lengths)
        self.eps = eps
        self.weight = Parameter(ones(self.normalized_shape)) if elementwise_affine else None
        self.bias = Parameter(zeros(self.normalized_shape)) if elementwise_affine and bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class LocalResponseNorm(Module):
    """`functional.local_response_norm`."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, input: Tensor) -> Tensor:
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)


# -- shape -----------------------------------------------------------------------------------------


class Identity(Module):
    """Its input."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class Flatten(Module):
    """`functional.flatten` of all axes but the batch."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        return F.flatten(input, self.start_dim, self.end_dim)


class Unflatten(Module):
    """`functional.unflatten`: from a dense layer back to maps, for instance Unflatten(1, (16, 5, 5))."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        self.dim = dim
        self.unflattened_size = validate.integers("Unflatten", "unflattened_size", unflattened_size)

    def forward(self, input: Tensor) -> Tensor:
        return F.unflatten(input, self.dim, self.unflattened_size)


class _Pad(Module):
    _mode = "constant"
    _sides: tuple[str, ...] = ("left", "right", "top", "bottom")

    def __init__(self, padding: int | Sequence[int]) -> None:
        sides = padding if isinstance(padding, Sequence) else (padding,) * len(self._sides)
        self.padding = validate.integers(type(self).__name__, "padding", sides)
        if len(sides) != len(self._sides):
            raise ValueError(
                f"{type(self).__name__}: padding must be an int or ({', '.join(self._sides)}), got {padding!r}"
            )

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, self._mode)


class _ConstantPad(_Pad):
    def __init__(self, padding: int | Sequence[int], value: float) -> None:
        super().__init__(padding)
        self.value = validate.number(type(self).__name__, "value", value)

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, self._mode, self.value)


class ConstantPad1d(_ConstantPad):
    """`functional.pad` with a value: an int or (left, right)."""

    _sides = ("left", "right")


class ZeroPad1d(_Pad):
    """`functional.pad` with zeros: an int or (left, right)."""

    _sides = ("left", "right")


class ReflectionPad1d(_Pad):
    """`functional.pad` by reflection: an int or (left, right)."""

    _sides = ("left", "right")
    _mode = "reflect"


class ReplicationPad1d(_Pad):
    """`functional.pad` with copies of the edge: an int or (left, right)."""

    _sides = ("left", "right")
    _mode = "replicate"


class ConstantPad2d(_ConstantPad):
    """`functional.pad` with a value: an int or (left, right, top, bottom)."""


class ZeroPad2d(_Pad):
    """`functional.pad` with zeros: an int or (left, right, top, bottom)."""


class ReflectionPad2d(_Pad):
    """`functional.pad` by reflection: an int or (left, right, top, bottom)."""

    _mode = "reflect"


class ReplicationPad2d(_Pad):
    """`functional.pad` with copies of the edge: an int or (left, right, top, bottom)."""

    _mode = "replicate"


class PixelShuffle(Module):
    """`functional.pixel_shuffle`."""

    def __init__(self, upscale_factor: int) -> None:
        _positive("PixelShuffle", upscale_factor=upscale_factor)
        self.upscale_factor = upscale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_shuffle(input, self.upscale_factor)


class PixelUnshuffle(Module):
    """`functional.pixel_unshuffle`."""

    def __init__(self, downscale_factor: int) -> None:
        _positive("PixelUnshuffle", downscale_factor=downscale_factor)
        self.downscale_factor = downscale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_unshuffle(input, self.downscale_factor)


class Upsample(Module):
    """`functional.interpolate`."""

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(input, self.size, self.scale_factor, self.mode, self.align_corners)


# -- losses ----------------------------------------------------------------------------------------


class CrossEntropyLoss(Module):
    """`functional.cross_entropy`: takes logits."""

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        self.weight = None if weight is None else Buffer(weight)
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.cross_entropy(input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing)


class NLLLoss(Module):
    """`functional.nll_loss`: takes log-probabilities."""

    def __init__(self, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean") -> None:
        self.weight = None if weight is None else Buffer(weight)
        self.ignore_index, self.reduction = ignore_index, reduction

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.nll_loss(input, target, self.weight, self.ignore_index, self.reduction)


class BCELoss(Module):
    """`functional.binary_cross_entropy`: takes probabilities."""

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean") -> None:
        self.weight = None if weight is None else Buffer(weight)
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, self.weight, self.reduction)


class BCEWithLogitsLoss(Module):
    """`functional.binary_cross_entropy_with_logits`: takes logits."""

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean", pos_weight: Tensor | None = None) -> None:
        self.weight = None if weight is None else Buffer(weight)
        self.pos_weight = None if pos_weight is None else Buffer(pos_weight)
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(input, target, self.weight, self.reduction, self.pos_weight)


class KLDivLoss(Module):
    """`functional.kl_div`: takes log-probabilities."""

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        self.reduction, self.log_target = reduction, log_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(input, target, self.reduction, self.log_target)


class MSELoss(Module):
    """`functional.mse_loss`."""

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, self.reduction)


class HalfSquaredError(Module):
    """`functional.half_squared_error`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.half_squared_error(input, target)


class L1Loss(Module):
    """`functional.l1_loss`."""

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, self.reduction)


class SmoothL1Loss(Module):
    """`functional.smooth_l1_loss`."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        self.reduction, self.beta = reduction, beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, self.reduction, self.beta)


class HuberLoss(Module):
    """`functional.huber_loss`."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        self.reduction, self.delta = reduction, delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, self.reduction, self.delta)
