"""Losses. Labels are checked on the host, before any work."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucnn.backends import Array, Backend
from gpucnn.dtypes import is_floating
from gpucnn.functional import validate
from gpucnn.functional.activation import log_softmax
from gpucnn.functional.arithmetic import abs, exp, expanded, log, mean, mul, sum, where
from gpucnn.functional.casting import in_float32
from gpucnn.tensor import Tensor, in_storage_order, record


def _reduced(op: str, losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return sum(losses) if reduction == "sum" else mean(losses)


_REDUCTIONS = ("mean", "sum", "none")


def _same_shape(
    op: str,
    input: Tensor,
    target: Tensor,
    reduction: str,
    weight: Tensor | None = None,
    reductions: Sequence[str] = _REDUCTIONS,
) -> Backend:
    validate.choice(op, "reduction", reduction, reductions)
    backend = validate.floating(op, input=input, target=target, weight=weight)
    if input.shape != target.shape:
        raise ValueError(f"{op}: input {input.shape} and target {target.shape} must have one shape")
    return backend


def _broadcasts(op: str, name: str, weight: Tensor | None, shape: tuple[int, ...]) -> None:
    if weight is None:
        return
    extra = len(shape) - weight.ndim
    if extra < 0 or any(n not in (1, m) for n, m in zip(weight.shape, shape[extra:], strict=True)):
        raise ValueError(f"{op}: {name} of shape {weight.shape} does not broadcast to the input's {shape}")


def _wants_logits(op: str, input: Tensor) -> None:
    if input._node is not None and input._node.squashed_by:
        warnings.warn(
            f"{op} takes logits, but its input comes from {input._node.squashed_by}: training will be slow or stall; "
            f"remove the {input._node.squashed_by} (and apply it only to read off probabilities)",
            UserWarning,
            stacklevel=4,  # what called the loss, past its decorator
        )


# -- classification --------------------------------------------------------------------------------


def _labels(op: str, input: Tensor, target: Any, ignore_index: int, unread: bool = False) -> Array:
    """The labels as a flat int32 host array, one per row of logits, each checked.

    unread: leave a tensor's on the device, unchecked (the kernel makes the loss of a wrong one NaN).
    """
    if not -(2**31) <= ignore_index < 2**31:
        raise ValueError(
            f"{op}: ignore_index must be a number of 32 bits, got {ignore_index}; mark those labels by another number, "
            "such as -100"
        )
    unread = unread and isinstance(target, Tensor)
    try:
        values = target.array if unread else target.numpy() if isinstance(target, Tensor) else np.asarray(target)
    except ValueError as error:
        raise ValueError(f"{op}: these labels are no array: {error}") from None
    classes = input.shape[1] if input.ndim > 1 else input.shape[0]
    expected = (input.shape[0], *input.shape[2:]) if input.ndim > 1 else ()
    if values.dtype.kind not in "iu":
        raise TypeError(
            f"{op}: labels must be integers of shape {expected}, got {values.dtype} of shape {values.shape}; class "
            f"probabilities would have the input's shape {input.shape}"
        )
    if values.shape != expected:
        raise ValueError(
            f"{op}: input {input.shape} needs labels of shape {expected}, one per sample, got {values.shape}"
        )
    if unread:
        return values.reshape(-1)
    wrong = (values != ignore_index) & ((values < 0) | (values >= classes))
    if wrong.any():
        first = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"{op}: label {values[tuple(first)]} at {first} is not a class; there are {classes}, 0 to {classes - 1} "
            f"({int(wrong.sum())} of {values.size} labels are out of range)"
        )
    return values.reshape(-1).astype(np.int32)


def _rows(input: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Logits [C], [N, C] or [N, C, …] as rows [M, C], and the shape of what is left when C is gone."""
    if input.ndim == 1:
        return input.reshape(1, -1), ()
    if input.ndim == 2:
        return input, (input.shape[0],)
    order = (0, *range(2, input.ndim), 1)
    moved = input.permute(order)
    return moved.reshape(-1, input.shape[1]), moved.shape[:-1]


def _class_weight(op: str, input: Tensor, weight: Tensor | None) -> None:
    validate.floating(op, input=input, weight=weight)
    if input.ndim == 0:
        raise ValueError(f"{op}: input must be [N, C], [N, C, …] or [C], got a single number")
    classes = input.shape[1] if input.ndim > 1 else input.shape[0]
    if classes == 0:
        raise ValueError(f"{op}: input {input.shape} has no classes")
    validate.shape(op, "weight", weight, (classes,), "one per class")


def _weighted_mean(backend: Backend, losses: Tensor, labels: Array, weight: Tensor | None, ignore_index: int) -> Tensor:
    """Σ losses / Σ weight[label], over the labels that count; NaN, with gradients of 0, if none does, as in PyTorch."""
    counted = labels != ignore_index
    scale: Any
    slope: Any  # finite if no label counts: what it multiplies is 0 then
    if backend.unread and backend.owns(labels):
        count = counted.sum().astype(losses.dtype)
        scale, slope = 1 / count, 1 / backend.xp.maximum(count, 1)  # rounded as 1 / total is below
    else:
        total = counted.sum() if weight is None else weight.numpy()[labels[counted]].sum(dtype=np.float64)
        scale = 1 / float(total) if total else math.nan
        slope = scale if counted.any() else 0.0
    x = losses.array
    with np.errstate(all="ignore"):
        y = x.sum() * scale
    return record(backend, y, (losses, lambda dy: expanded(backend, dy * slope, x, (0,))))


@in_float32
def cross_entropy(
    input: Tensor,
    target: Any,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax and log loss of logits in one, stable for logits of any size.

    input [N, C], [N, C, …] or [C]; target, a tensor or an array: integer labels without the class axis, or class
    probabilities, floating and of input's shape. weight [C] weighs the classes, ignore_index is a label that does
    not count, label_smoothing ε mixes the target with the uniform distribution. "mean" is weighted as in PyTorch.

    Raises ValueError for labels that are out of range or too few, TypeError for labels that are not integers.
    """
    op = "cross_entropy"
    validate.choice(op, "reduction", reduction, ("mean", "sum", "none"))
    if not 0 <= validate.number(op, "label_smoothing", label_smoothing) <= 1:
        raise ValueError(f"{op}: label_smoothing must be from 0 to 1, got {label_smoothing}")
    _class_weight(op, input, weight)
    ignore_index = validate.integer(op, "ignore_index", ignore_index)
    _wants_logits(op, input)
    if isinstance(target, Tensor | np.ndarray) and is_floating(target.dtype) and target.shape == input.shape:
        if isinstance(target, np.ndarray):
            target = Tensor(input.backend.asarray(target, input.dtype), input.backend)
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    backend = input.backend
    weighted_mean = weight is not None and reduction == "mean"  # adds up the weights of the labels
    labels = _labels(op, input, target, ignore_index, unread=backend.unread and not weighted_mean)
    rows, shape = _rows(input)
    logits, on_device = rows.array, backend.asarray(labels)
    w = None if weight is None else weight.array
    losses, logsumexp = backend.softmax_cross_entropy_forward(logits, on_device, w, label_smoothing, ignore_index)

    def vjp(dloss: Array) -> Array:
        return backend.softmax_cross_entropy_backward(
            dloss, logits, logsumexp, on_device, w, label_smoothing, ignore_index
        )

    result = record(backend, losses, (rows, vjp))
    if reduction == "mean":
        return _weighted_mean(backend, result, labels, weight, ignore_index)
    return sum(result) if reduction == "sum" else result.reshape(shape)


def _soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float
) -> Tensor:
    """Cross-entropy against class probabilities; "mean" divides by the samples, as in PyTorch."""
    _same_shape("cross_entropy", input, target, reduction)
    axis = 1 if input.ndim > 1 else 0
    classes = input.shape[axis]
    mixed = target * (1 - smoothing) + smoothing / classes
    if weight is not None:
        mixed = mixed * weight.reshape((classes,) + (1,) * (input.ndim - axis - 1))
    losses = -sum(mixed * log_softmax(input, axis), axis)
    if reduction == "mean":
        return sum(losses) * (classes / input.numel() if input.numel() else math.nan)
    return _reduced("cross_entropy", losses, reduction)


@in_float32
def nll_loss(
    input: Tensor, target: Any, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """−weight[label] · input[label]: input holds log-probabilities, [N, C], [N, C, …] or [C]. See cross_entropy."""
    op = "nll_loss"
    validate.choice(op, "reduction", reduction, ("mean", "sum", "none"))
    _class_weight(op, input, weight)
    ignore_index = validate.integer(op, "ignore_index", ignore_index)
    labels = _labels(op, input, target, ignore_index)
    rows, shape = _rows(input)
    counted = labels != ignore_index
    places = np.where(counted, labels, 0)
    factor = -counted.astype(input.dtype)
    if weight is not None:
        factor *= weight.numpy()[places]
    backend = input.backend
    picked = rows[np.arange(labels.size), places]
    if not counted.all():  # an ignored row counts nothing, even if it is NaN
        picked = where(Tensor(backend.asarray(counted), backend), picked, 0.0)
    losses = picked * Tensor(backend.asarray(factor), backend)
    if reduction == "mean":
        return _weighted_mean(backend, losses, labels, weight, ignore_index)
    return sum(losses) if reduction == "sum" else losses.reshape(shape)


@in_float32
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """−(t·log p + (1 − t)·log(1 − p)) for probabilities p; each log is at least −100, as in PyTorch.

    Raises ValueError if an input is not a probability. binary_cross_entropy_with_logits is the stable choice.
    """
    op = "binary_cross_entropy"
    backend = _same_shape(op, input, target, reduction, weight)
    _broadcasts(op, "weight", weight, input.shape)
    p = input.array
    if bool(((p < 0) | (p > 1)).any()):
        raise ValueError(
            f"{op}: input must be probabilities from 0 to 1, got values from {float(p.min())} to {float(p.max())}; "
            "for logits use binary_cross_entropy_with_logits"
        )
    t = target.array
    log_floor = -100.0

    def value(a: Array, b: Array) -> Array:
        log_p = backend.xp.maximum(backend.xp.log(a), log_floor)
        log_q = backend.xp.maximum(backend.xp.log1p(-a), log_floor)
        return -(b * log_p + (1 - b) * log_q)

    def share_input(d: Array, a: Array, b: Array) -> Array:
        return d * (a - b) / backend.xp.maximum(a * (1 - a), 1e-12)

    def share_target(d: Array, a: Array) -> Array:
        log_p = backend.xp.maximum(backend.xp.log(a), log_floor)
        return d * (backend.xp.maximum(backend.xp.log1p(-a), log_floor) - log_p)

    losses = record(
        backend,
        in_storage_order(value, p, t),
        (input, lambda dy: in_storage_order(share_input, dy, p, t)),
        (target, lambda dy: in_storage_order(share_target, dy, p)),
    )
    return _reduced(op, losses if weight is None else mul(losses, weight), reduction)


@in_float32
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """binary_cross_entropy of sigmoid(input), stable for logits of any size; pos_weight multiplies the t = 1 term.

    loss = (1 − t)·x + (1 + (pos_weight − 1)·t)·log(1 + exp(−x)).
    """
    op = "binary_cross_entropy_with_logits"
    backend = _same_shape(op, input, target, reduction)
    validate.floating(op, input=input, weight=weight, pos_weight=pos_weight)
    _broadcasts(op, "weight", weight, input.shape)
    _broadcasts(op, "pos_weight", pos_weight, input.shape)
    _wants_logits(op, input)
    x, t = input.array, target.array
    extra = 0.0 if pos_weight is None else pos_weight.array - 1
    xp = backend.xp

    def log1p_exp_minus(a: Array) -> Array:
        return xp.maximum(-a, 0) + xp.log1p(xp.exp(-xp.abs(a)))

    def value(a: Array, b: Array, e: Any) -> Array:
        return (1 - b) * a + (1 + e * b) * log1p_exp_minus(a)

    def share_input(d: Array, a: Array, b: Array, e: Any) -> Array:
        sigmoid_minus = xp.exp(-log1p_exp_minus(-a))
        return d * ((1 - b) - (1 + e * b) * sigmoid_minus)

    def share_target(d: Array, a: Array, e: Any) -> Array:
        return d * (e * log1p_exp_minus(a) - a)

    losses = record(
        backend,
        in_storage_order(value, x, t, extra),
        (input, lambda dy: in_storage_order(share_input, dy, x, t, extra)),
        (target, lambda dy: in_storage_order(share_target, dy, x, extra)),
    )
    return _reduced(op, losses if weight is None else mul(losses, weight), reduction)


@in_float32
def kl_div(input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """target · (log target − input), the Kullback-Leibler divergence of log-probabilities `input` from probabilities
    `target`, 0 where the target is; with log_target the target holds log-probabilities too. Both have one shape.

    reduction: "batchmean" divides the sum by the length of the first axis, which is the divergence of a sample on
    average; "mean", PyTorch's default, divides it by the elements; "sum" and "none". Where a target is 0 its own
    gradient is −input.

    Raises ValueError for two shapes, and for the mean of nothing.
    """
    op = "kl_div"
    _same_shape(op, input, target, reduction, reductions=("batchmean", *_REDUCTIONS))
    if reduction == "batchmean" and input.shape[:1] == (0,):
        raise ValueError(f"{op}: there is no sample to average over in shape {input.shape}")
    if log_target:
        losses = exp(target) * (target - input)
    else:
        positive = where(target == 0, 1.0, target)
        losses = target * (log(positive) - input)
    if reduction == "batchmean":
        return sum(losses) * (1 / input.shape[0] if input.ndim else 1.0)
    return _reduced(op, losses, reduction)


# -- regression ------------------------------------------------------------------------------------


@in_float32
def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input − target)²."""
    _same_shape("mse_loss", input, target, reduction)
    difference = input - target
    return _reduced("mse_loss", difference * difference, reduction)


@in_float32
def half_squared_error(input: Tensor, target: Tensor) -> Tensor:
    """½ Σ (input − target)² over everything: the loss of the textbook introductions; its gradient is the difference."""
    _same_shape("half_squared_error", input, target, "sum")
    difference = input - target
    return sum(difference * difference) * 0.5


@in_float32
def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|input − target|."""
    _same_shape("l1_loss", input, target, reduction)
    return _reduced("l1_loss", abs(input - target), reduction)


@in_float32
def smooth_l1_loss(input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """½ d²/beta where d = |input − target| < beta, else d − ½ beta. Girshick 2015."""
    op = "smooth_l1_loss"
    backend = _same_shape(op, input, target, reduction)
    beta = validate.number(op, "beta", beta)
    if not 0 <= beta < math.inf:
        raise ValueError(f"{op}: beta must be finite and not negative, got {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction)
    difference = input - target
    d, xp = difference.array, backend.xp

    def value(a: Array) -> Array:
        size = xp.abs(a)
        return xp.where(size < beta, 0.5 / beta * a * a, size - 0.5 * beta)

    def share(dy: Array, a: Array) -> Array:
        return dy * xp.clip(a / beta, -1, 1)

    losses = record(backend, in_storage_order(value, d), (difference, lambda dy: in_storage_order(share, dy, d)))
    return _reduced(op, losses, reduction)


@in_float32
def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """½ d² where d = |input − target| < delta, else delta · (d − ½ delta). Huber 1964.

    Raises ValueError unless delta is positive.
    """
    op = "huber_loss"
    backend = _same_shape(op, input, target, reduction)
    delta = validate.number(op, "delta", delta)
    if not delta > 0:
        raise ValueError(f"{op}: delta must be positive, got {delta}")
    difference = input - target
    d, xp = difference.array, backend.xp

    def slope(a: Array) -> Array:
        return xp.clip(a, -delta, delta)

    losses = record(
        backend,
        in_storage_order(lambda a: slope(a) * (a - 0.5 * slope(a)), d),
        (difference, lambda dy: in_storage_order(lambda g, a: g * slope(a), dy, d)),
    )
    return _reduced(op, losses, reduction)
