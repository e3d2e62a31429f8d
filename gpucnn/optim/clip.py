"""Limits of gradients, with the names of torch.nn.utils."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from functools import reduce

import numpy as np

from gpucnn.backends import Array, Backend
from gpucnn.functional import validate
from gpucnn.tensor import Tensor


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients together so that their common Euclidean norm is at most max_norm; returns the norm before.

    torch.nn.utils.clip_grad_norm_. Raises ValueError if the norm is not finite: no scale could mend that.
    """
    most = validate.number("clip_grad_norm_", "max_norm", max_norm)
    if not most >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm must not be negative, got {max_norm}")
    gradients = _gradients("clip_grad_norm_", parameters)
    squares: dict[Backend, list[Array]] = {}  # summed where they are: a GPU is waited for once
    with np.errstate(all="ignore"):
        for g in gradients:
            squares.setdefault(g.backend, []).append((g.array.astype(np.float64) ** 2).sum())
        total = math.sqrt(sum(float(backend.to_numpy(reduce(operator.add, s))) for backend, s in squares.items()))
    if not math.isfinite(total):
        raise ValueError(f"clip_grad_norm_: the gradients' norm is {total}; lower the learning rate or look for NaN")
    scale = most / (total + 1e-6)
    if scale < 1:
        for array in [g._writable() for g in gradients]:
            array[...] *= scale
    return total


def _gradients(op: str, parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those of the parameters that have one."""
    if isinstance(parameters, Tensor):  # PyTorch takes one, too
        parameters = [parameters]
    if not isinstance(parameters, Iterable):
        raise TypeError(f"{op}: parameters must be tensors, got a {type(parameters).__name__}")
    found = list(parameters)
    for p in found:
        if not isinstance(p, Tensor):
            raise TypeError(f"{op}: parameters must be tensors, got a {type(p).__name__} among them")
    return [p.grad for p in found if p.grad is not None]


def clip_grad_value_(parameters: Iterable[Tensor], clip_value: float) -> None:
    """Limit every element of every gradient to ±clip_value: torch.nn.utils.clip_grad_value_."""
    most = validate.number("clip_grad_value_", "clip_value", clip_value)
    if not most >= 0:
        raise ValueError(f"clip_grad_value_: clip_value must not be negative, got {clip_value}")
    gradients = _gradients("clip_grad_value_", parameters)
    with np.errstate(all="ignore"):  # a clip_value that the type can't hold is infinite
        for array, xp in [(g._writable(), g.backend.xp) for g in gradients]:
            xp.clip(array, -most, most, out=array)
