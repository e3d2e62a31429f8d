"""The layers of signals [N, C, L]: convolution and pooling. Those of padding, dropout and norms are in `layers`."""

from __future__ import annotations

import math
from typing import Any

from gpucnn import functional as F
from gpucnn.functional import validate
from gpucnn.functional.signals import Single, sides, single
from gpucnn.geometry import Padding
from gpucnn.nn.layers import check_groups, new_weight
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor


def _single(layer: str, name: str, value: Single, least: int) -> tuple[int]:
    """The number, as PyTorch's layers hold it. Raises TypeError and ValueError."""
    return (validate.integer(layer, name, single(layer, name, value), least),)


class Conv1d(Module):
    """`functional.conv1d` with a learned weight [out_channels, in_channels/groups, S] and bias [out_channels]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Single,
        stride: Single = 1,
        padding: Padding = 0,
        dilation: Single = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        check_groups("Conv1d", in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _single("Conv1d", "kernel_size", kernel_size, 1)
        self.stride, self.dilation = _single("Conv1d", "stride", stride, 1), _single("Conv1d", "dilation", dilation, 1)
        sides("Conv1d", padding)
        self.padding = (padding,) if isinstance(padding, int) else padding
        fan_in = in_channels // groups * self.kernel_size[0]
        self.weight = new_weight(fan_in, out_channels, in_channels // groups, *self.kernel_size)
        self.bias = new_weight(fan_in, out_channels) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.conv1d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def multiply_adds(self, output: Tensor) -> int:
        return output.numel() * math.prod(self.weight.shape[1:])


class ConvTranspose1d(Module):
    """`functional.conv_transpose1d` with a learned weight [in_channels, out_channels/groups, S] and bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Single,
        stride: Single = 1,
        padding: Single = 0,
        output_padding: Single = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Single = 1,
    ) -> None:
        layer = "ConvTranspose1d"
        check_groups(layer, in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _single(layer, "kernel_size", kernel_size, 1)
        self.stride, self.dilation = _single(layer, "stride", stride, 1), _single(layer, "dilation", dilation, 1)
        self.padding = _single(layer, "padding", padding, 0)
        self.output_padding = _single(layer, "output_padding", output_padding, 0)
        fan_in = out_channels // groups * self.kernel_size[0]  # what PyTorch counts for this layer
        self.weight = new_weight(fan_in, in_channels, out_channels // groups, *self.kernel_size)
        self.bias = new_weight(fan_in, out_channels) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.conv_transpose1d(
            input, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    def multiply_adds(self, output: Tensor) -> int:
        """As many as the convolution it is the transpose of, counted without padding."""
        channels, _, s = self.weight.shape
        return output.numel() * channels // self.groups * s // self.stride[0]


class MaxPool1d(Module):
    """`functional.max_pool1d`."""

    def __init__(
        self,
        kernel_size: Single,
        stride: Single | None = None,
        padding: Padding = 0,
        dilation: Single = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, input: Tensor) -> Any:
        return F.max_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AvgPool1d(Module):
    """`functional.avg_pool1d`."""

    def __init__(
        self,
        kernel_size: Single,
        stride: Single | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class AdaptiveAvgPool1d(Module):
    """`functional.adaptive_avg_pool1d`; output_size 1 is global average pooling."""

    def __init__(self, output_size: Single) -> None:
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveMaxPool1d(Module):
    """`functional.adaptive_max_pool1d`; output_size 1 is global max pooling."""

    def __init__(self, output_size: Single, return_indices: bool = False) -> None:
        self.output_size, self.return_indices = output_size, return_indices

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool1d(input, self.output_size, self.return_indices)
