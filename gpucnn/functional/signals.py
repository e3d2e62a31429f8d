"""Convolution and pooling of signals [N, C, L]: each is the operation on images, of images of one row [N, C, 1, L]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gpucnn.functional import validate
from gpucnn.functional.convolution import conv2d, conv_transpose2d
from gpucnn.functional.pooling import adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d, max_pool2d
from gpucnn.functional.shape import squeeze, unsqueeze
from gpucnn.geometry import Padding
from gpucnn.tensor import Tensor

Single = int | Sequence[int]


def single(op: str, name: str, value: Single) -> int:
    """A number for the one axis of a signal, which may be in a sequence. Raises TypeError and ValueError."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 1:
            raise ValueError(f"{op}: {name} must be one int, signals have one axis, got {value!r:.100}")
        value = value[0]
    return validate.integer(op, name, value)


def sides(op: str, padding: Padding) -> Padding:
    """The padding of a signal, an int, (before, after), "same" or "valid", as that of an image of one row."""
    if padding in ("same", "valid"):
        return padding
    if isinstance(padding, str):
        raise ValueError(f'{op}: padding must be an int, (before, after), "same" or "valid", got {padding!r:.100}')
    if isinstance(padding, Sequence) and len(padding) == 2:
        before, after = validate.integers(op, "padding", padding)
    else:
        before = after = single(op, "padding", padding)
    if min(before, after) < 0:
        raise ValueError(f"{op}: padding must not be negative, got {padding!r:.100}; pad() cuts")
    return (0, 0, before, after)


@contextmanager
def _rows(op: str, **tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors with an axis H of length 1. What the operation on images then raises has a note that says so."""
    for name, tensor in tensors.items():
        validate.one_backend(op, **{name: tensor})
        weight = "[C, K/groups, S]" if op == "conv_transpose1d" else "[K, C/groups, S]"
        validate.rank(op, name, tensor, 3, "[N, C, L]" if name == "input" else weight)
    try:
        yield tuple(unsqueeze(tensor, 2) for tensor in tensors.values())
    except (ValueError, TypeError) as error:
        error.add_note(f"{op} computes with signals [N, C, L] as images of one row, [N, C, 1, L]")
        raise


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Single = 1,
    padding: Padding = 0,
    dilation: Single = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution of signals: input [N, C, L], weight [K, C/groups, S], bias [K] -> [N, K, Q].

    Q = ⌊(L + padding − (dilation·(S − 1) + 1)) / stride⌋ + 1. `padding` is an int, (before, after), which makes a
    causal convolution with (dilation·(S − 1), 0), "same" or "valid".

    Raises as conv2d does. See torch.nn.functional.conv1d.
    """
    op = "conv1d"
    along = (1, single(op, "stride", stride)), sides(op, padding), (1, single(op, "dilation", dilation))
    with _rows(op, input=input, weight=weight) as (images, filters):
        return squeeze(conv2d(images, filters, bias, *along, groups), 2)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Single = 1,
    padding: Single = 0,
    output_padding: Single = 0,
    groups: int = 1,
    dilation: Single = 1,
) -> Tensor:
    """The transpose of conv1d: input [N, C, Q], weight [C, K/groups, S], bias [K] -> [N, K, L].

    L = (Q − 1)·stride − 2·padding + dilation·(S − 1) + 1 + output_padding.

    Raises as conv_transpose2d does. See torch.nn.functional.conv_transpose1d.
    """
    op = "conv_transpose1d"
    step, edge = (1, single(op, "stride", stride)), (0, single(op, "padding", padding))
    extra, apart = (0, single(op, "output_padding", output_padding)), (1, single(op, "dilation", dilation))
    with _rows(op, input=input, weight=weight) as (images, filters):
        return squeeze(conv_transpose2d(images, filters, bias, step, edge, extra, groups, apart), 2)


def max_pool1d(
    input: Tensor,
    kernel_size: Single,
    stride: Single | None = None,
    padding: Padding = 0,
    dilation: Single = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window: [N, C, L] -> [N, C, Q]; with return_indices also its place in 0 … L − 1.

    As max_pool2d otherwise.
    """
    op = "max_pool1d"
    window = (*_window(op, kernel_size, stride, padding), (1, single(op, "dilation", dilation)))
    with _rows(op, input=input) as (images,):
        return _signals(max_pool2d(images, *window, ceil_mode, return_indices))


def avg_pool1d(
    input: Tensor,
    kernel_size: Single,
    stride: Single | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window: [N, C, L] -> [N, C, Q]. As avg_pool2d otherwise."""
    op = "avg_pool1d"
    window = _window(op, kernel_size, stride, padding)
    with _rows(op, input=input) as (images,):
        return squeeze(avg_pool2d(images, *window, ceil_mode, count_include_pad), 2)


def adaptive_avg_pool1d(input: Tensor, output_size: Single) -> Tensor:
    """The means of Q windows that divide a signal as evenly as it goes: [N, C, L] -> [N, C, Q]."""
    op = "adaptive_avg_pool1d"
    goal = (1, single(op, "output_size", output_size))
    with _rows(op, input=input) as (images,):
        return squeeze(adaptive_avg_pool2d(images, goal), 2)


def adaptive_max_pool1d(input: Tensor, output_size: Single, return_indices: bool = False) -> Any:
    """The maxima of adaptive_avg_pool1d's windows; with return_indices also the place of each."""
    op = "adaptive_max_pool1d"
    goal = (1, single(op, "output_size", output_size))
    with _rows(op, input=input) as (images,):
        return _signals(adaptive_max_pool2d(images, goal, return_indices))


def _window(op: str, kernel_size: Single, stride: Single | None, padding: Padding) -> tuple[Any, Any, Padding]:
    step = None if stride is None else (1, single(op, "stride", stride))
    return (1, single(op, "kernel_size", kernel_size)), step, sides(op, padding)


def _signals(images: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, ...]:
    if isinstance(images, Tensor):
        return squeeze(images, 2)
    return tuple(squeeze(part, 2) for part in images)
