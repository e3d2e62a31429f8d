"""Convolution and transposed convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from gpucnn.backends import ACTIVATIONS, NO_TAP, Array
from gpucnn.functional import validate
from gpucnn.functional.casting import in_half
from gpucnn.functional.pooling import extreme_window
from gpucnn.geometry import Padding, Window, pair
from gpucnn.tensor import Edge, Tensor, is_grad_enabled, record

# Of a filter that `conv2d_max_pool2d` takes: a GPU's kernel has one, at least, in shared memory.
MOST_WEIGHTS = 4096
# The activations that a convolution can apply to its results: their backward pass needs no more than the output.
FUSED = [kind for kind, saved in ACTIVATIONS.items() if saved == "output"]


def _check(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, transposed: bool) -> int:
    """The groups as an int. Raises ValueError and TypeError for operands that do not fit."""
    validate.floating(op, input=input, weight=weight, bias=bias)
    layout = "[C, K/groups, R, S]" if transposed else "[K, C/groups, R, S]"
    validate.rank(op, "input", input, 4, "[N, C, H, W]")
    validate.rank(op, "weight", weight, 4, layout)
    channels, first, second = input.shape[1], weight.shape[0], weight.shape[1]
    counted = isinstance(groups, Integral) and not isinstance(groups, bool)
    if not counted or groups < 1 or channels % groups or first % groups:
        raise ValueError(
            f"{op}: groups={groups!r} must divide the input's {channels} channels and the weight's first axis, {first}"
        )
    if channels != (first if transposed else second * groups):
        taken = str(first if transposed else second * groups)
        if groups > 1 and not transposed:
            taken = f"{second} × {groups} groups = {taken}"
        raise ValueError(
            f"{op}: the filter takes {taken} channels (weight {weight.shape}), "
            f"but the input has {channels} (input {input.shape}); their depths must agree"
        )
    if 0 in weight.shape:
        raise ValueError(f"{op}: the weight is empty, shape {weight.shape}")
    filters = second * groups if transposed else first
    validate.shape(op, "bias", bias, (filters,), "one per filter")
    return int(groups)


@in_half
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolution (cross-correlation, as everywhere in deep learning) of images with filters.

    input [N, C, H, W], weight [K, C/groups, R, S], bias [K] -> [N, K, P, Q] with
    P = ⌊(H + padding − (dilation·(R − 1) + 1)) / stride⌋ + 1. `padding` is an int, (h, w), (top, bottom, left, right),
    "same" (P = ⌈H / stride⌉; an odd pixel goes to the end) or "valid".

    Three arguments that PyTorch lacks save passes over memory: `scale` [K] multiplies each filter's sums, before the
    bias is added; `residual` [N, K, P, Q] is added then; `activation` ("relu", "relu6", "sigmoid" or "tanh") is applied
    last. In float32 and float64 the last two give the same as + and that function afterwards.

    Raises ValueError for depths that differ, groups that do not divide, a window larger than the padded input;
    TypeError for dtypes that differ. See torch.nn.functional.conv2d.
    """
    groups = _check("conv2d", input, weight, bias, groups, transposed=False)
    if activation is not None:
        validate.choice("conv2d", "activation", activation, FUSED)
    if scale is not None:
        validate.floating("conv2d", weight=weight, scale=scale)
        validate.shape("conv2d", "scale", scale, (weight.shape[0],), "one per filter")
        if is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias, scale)):
            weight, scale = weight * scale.reshape(-1, 1, 1, 1), None
    backend, x, w = input.backend, input.array, weight.array
    size = x.shape[2:]
    window = Window.of(w.shape[2:], stride, padding, dilation, size=size)
    shape = (len(x), len(w), *window.output_size(size))
    if residual is not None:
        validate.floating("conv2d", input=input, residual=residual)
        validate.shape("conv2d", "residual", residual, shape, "the output's")
    b, factor, more = (None if t is None else t.array for t in (bias, scale, residual))
    y = backend.conv2d_forward(x, w, b, window, groups, activation, factor, more)
    return _conv2d(y, input, weight, bias, window, groups, activation, residual)


@in_half
def conv2d_with_statistics(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
) -> tuple[Tensor, tuple[Array, Array]]:
    """conv2d, and (mean, variance) of each filter's results for a batch norm. Raises as conv2d does."""
    groups = _check("conv2d", input, weight, bias, groups, transposed=False)
    window = Window.of(weight.shape[2:], stride, padding, dilation, size=input.array.shape[2:])
    b = None if bias is None else bias.array
    y, mean, variance = input.backend.conv2d_statistics(input.array, weight.array, b, window, groups)
    return _conv2d(y, input, weight, bias, window, groups), (mean, variance)


def _conv2d(
    y: Array,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y, the convolution of these, with its gradients on the tape."""
    backend, x, w, size = input.backend, input.array, weight.array, input.array.shape[2:]
    of_input, of_weight, of_bias = (t is not None and t.requires_grad for t in (input, weight, bias))
    if activation is None:
        products: list[Edge] = [
            (input, lambda dy: backend.conv2d_backward_input(dy, w, window, groups, size)),
            (weight, lambda dy: backend.conv2d_backward_weight(dy, x, window, groups)),
        ]
        if of_input and of_weight:
            products = [((input, weight), lambda dy: backend.conv2d_backward(dy, x, w, window, groups))]
        return record(backend, y, *products, (bias, backend.bias_backward), (residual, lambda dy: dy))

    def vjp(dy: Array) -> tuple[Array | None, ...]:
        """dy times the activation's slope is written once, along with its sums, and read by each of the others."""
        db = None
        if of_bias:
            dy, db = backend.activation_bias_backward(dy, y, activation)
        else:
            dy = backend.activation_backward(dy, y, activation, 0.0)
        if of_input and of_weight:
            return *backend.conv2d_backward(dy, x, w, window, groups), db, dy
        dx = backend.conv2d_backward_input(dy, w, window, groups, size) if of_input else None
        dw = backend.conv2d_backward_weight(dy, x, window, groups) if of_weight else None
        return dx, dw, db, dy

    return record(backend, y, ((input, weight, bias, residual), vjp))


@in_half
def conv2d_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = None,
    *,
    max_pool: Mapping[str, Any],
) -> Tensor:
    """max_pool2d(conv2d(input, weight, ..., activation), **max_pool) in one pass; PyTorch has no such function.

    It pays where a filter has few channels, as in a network's first layer, and the pooling's windows do not overlap:
    then `nn.Sequential` calls it. On a GPU it is right anywhere, and slow for many channels. The output has the bits of
    the two ops, in NumPy up to rounding; the gradients of weight and bias are the same sums in another order, and a GPU
    leaves out the pixels under elements that have lost, also where they are no numbers. The arguments are those of
    conv2d, but the activation is "relu" or none; max_pool has those of max_pool2d but its input, and no return_indices.

    Raises as both do, and ValueError for a pooling window of more than 255 elements and a filter of more than 4096.

    >>> F.conv2d_max_pool2d(images, weight, bias, padding=2, activation="relu", max_pool={"kernel_size": 2})
    """
    op = "conv2d_max_pool2d"
    groups = _check(op, input, weight, bias, groups, transposed=False)
    if activation is not None:
        validate.choice(op, "activation", activation, ("relu",))
    backend, x, w = input.backend, input.array, weight.array
    size = (x.shape[2], x.shape[3])
    window = Window.of(w.shape[2:], stride, padding, dilation, size=size)
    pool = extreme_window("max_pool2d", window.output_size(size), **max_pool)
    if pool.taps > NO_TAP or window.taps * w.shape[1] > MOST_WEIGHTS:
        raise ValueError(
            f"{op}: the pooling's window {pool.kernel} may have {NO_TAP} elements at most and a filter {w.shape[1:]} "
            f"{MOST_WEIGHTS}; use max_pool2d after conv2d"
        )
    needed = (input.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)
    b, need_tap = None if bias is None else bias.array, is_grad_enabled() and any(needed)
    y, tap = backend.conv2d_max_pool2d_forward(x, w, b, window, groups, pool, activation, need_tap)
    return record(
        backend,
        y,
        (
            (input, weight, bias),
            lambda dy: backend.conv2d_max_pool2d_backward(dy, tap, x, w, window, groups, pool, needed),
        ),
    )


@in_half
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """The transpose of conv2d as a function of its input: conv2d's backward pass, run forward.

    input [N, C, P, Q], weight [C, K/groups, R, S], bias [K] -> [N, K, H, W] with
    H = (P − 1)·stride − padding + dilation·(R − 1) + 1 + output_padding; output_padding must be smaller than the stride
    or the dilation.

    Raises as conv2d does. See torch.nn.functional.conv_transpose2d.
    """
    op = "conv_transpose2d"
    groups = _check(op, input, weight, bias, groups, transposed=True)
    if isinstance(padding, str):
        raise ValueError(f"{op}: padding must be numbers, got {padding!r}")
    backend, x, w = input.backend, input.array, weight.array
    window = Window.of(w.shape[2:], stride, padding, dilation)
    extra = pair(output_padding, "output_padding", 0)
    if any(o >= max(s, d) for o, s, d in zip(extra, window.stride, window.dilation, strict=True)):
        raise ValueError(
            f"{op}: output_padding {extra} must be smaller than the stride {window.stride} or the dilation "
            f"{window.dilation}"
        )
    size = window.transposed_size(x.shape[2:], extra)
    y = backend.conv2d_backward_input(x, w, window, groups, size)
    if bias is not None:
        with np.errstate(all="ignore"):
            y += bias.array.reshape(-1, 1, 1)
    before = x.shape[2:]
    back = window.output_size(size) if 0 not in before else before

    def vjp_input(dy: Array) -> Array:
        if 0 in before:  # the output may be smaller than a window
            return backend.contiguous(backend.xp.zeros(x.shape, dy.dtype))
        dx = backend.conv2d_forward(dy, w, None, window, groups)
        return dx if back == before else backend.contiguous(dx[:, :, : before[0], : before[1]].copy())

    def vjp_weight(dy: Array) -> Array:
        if 0 in before:
            return backend.contiguous(backend.xp.zeros(w.shape, dy.dtype))
        taken = x
        if back != before:  # an output_padding of a stride or more has room for windows that no input made
            taken = backend.contiguous(backend.xp.zeros((*x.shape[:2], *back), x.dtype))
            taken[:, :, : before[0], : before[1]] = x
        return backend.conv2d_backward_weight(taken, dy, window, groups)

    return record(backend, y, (input, vjp_input), (weight, vjp_weight), (bias, backend.bias_backward))
