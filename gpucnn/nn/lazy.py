"""Layers that find out from their first input how many channels or features it has, and become the layer for these."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from gpucnn.dtypes import is_half
from gpucnn.functional import validate
from gpucnn.nn.layers import BatchNorm1d, BatchNorm2d, Conv2d, ConvTranspose2d, Linear
from gpucnn.nn.module import Module
from gpucnn.nn.signals import Conv1d, ConvTranspose1d
from gpucnn.tensor import Tensor


class _Lazy(Module):
    """Takes the arguments of the layer that it becomes but the first, which is a length of the first input's."""

    _becomes: ClassVar[type[Module]]
    _axis: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        parameters = list(inspect.signature(cls._becomes).parameters.values())[1:]
        cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        try:
            inspect.signature(type(self)).bind(*arguments, **named)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None

    def forward(self, input: Tensor) -> Tensor:
        validate.floating(type(self).__name__, input=input)
        if input.ndim <= max(self._axis, 0):
            raise ValueError(f"{type(self).__name__}: input has no axis {self._axis}, got shape {input.shape}")
        arguments, named = self._arguments
        kind: Any = self._becomes
        made = kind(input.shape[self._axis], *arguments, **named).train(self.training)
        made.to(input.backend).to("float32" if is_half(input.dtype) else input.dtype)
        output: Tensor = made(input)  # what does not fit leaves it as it is
        vars(self).update(vars(made))
        self.__class__ = self._becomes  # type: ignore[assignment]
        return output

    def _require_weights(self) -> None:
        name = type(self).__name__
        raise ValueError(
            f"{name} gets its weights with its first input: call the model once, gpucnn.zeros of the shape will do, "
            "before they are learned, saved, loaded or counted"
        )


class LazyLinear(_Lazy):
    """`Linear`, whose in_features are those of the first input."""

    _becomes, _axis = Linear, -1


class LazyConv1d(_Lazy):
    """`Conv1d`, whose in_channels are those of the first input."""

    _becomes = Conv1d


class LazyConv2d(_Lazy):
    """`Conv2d`, whose in_channels are those of the first input."""

    _becomes = Conv2d


class LazyConvTranspose1d(_Lazy):
    """`ConvTranspose1d`, whose in_channels are those of the first input."""

    _becomes = ConvTranspose1d


class LazyConvTranspose2d(_Lazy):
    """`ConvTranspose2d`, whose in_channels are those of the first input."""

    _becomes = ConvTranspose2d


class LazyBatchNorm1d(_Lazy):
    """`BatchNorm1d`, whose num_features are those of the first input."""

    _becomes = BatchNorm1d


class LazyBatchNorm2d(_Lazy):
    """`BatchNorm2d`, whose num_features are those of the first input."""

    _becomes = BatchNorm2d
