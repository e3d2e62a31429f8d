"""Which neighbouring layers are computed as one, and how: what Sequential and the models go by.

A module with a forward hook is computed by itself, so that the hook sees its output; so is a subclass, whose forward
may be another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from gpucnn import functional as F
from gpucnn.nn.layers import BatchNorm2d, Conv2d, MaxPool2d, ReLU
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor, is_grad_enabled

Groups = list[tuple[Module, ...]]
_watched: ContextVar[Groups | None] = ContextVar("computed as one", default=None)


@contextmanager
def watching_fusion() -> Iterator[Groups]:
    """Inside, the list gets a tuple for each time that a module has computed others, which follow it, along with it."""
    groups: Groups = []
    token = _watched.set(groups)
    try:
        yield groups
    finally:
        _watched.reset(token)


def _computed_as_one(*modules: Module) -> None:
    groups = _watched.get()
    if groups is not None:
        groups.append(modules)


def fused(modules: list[Module]) -> Iterator[Callable[[Any], Any]]:
    """What a chain of modules computes, step by step: a module itself, or several as one.

    - ReLU before MaxPool2d runs after it, on fewer elements: the largest element is the same, and where it is not
      positive no gradient comes back either way.
    - Conv2d applies the ReLU behind it to its results on their way to memory.
    - Conv2d takes in the BatchNorm2d behind it, and the ReLU behind that: see `conv_norm`.

    The first two change no bit of a result or a gradient.
    """
    i = 0
    while i < len(modules):
        module, rest = modules[i], modules[i + 1 : i + 4]
        if starts(rest, MaxPool2d) and starts([module], ReLU) and not rest[0].return_indices:  # type: ignore[attr-defined]
            yield rest[0]
            yield module
            i += 2
        elif not starts([module], Conv2d):
            yield module
            i += 1
        elif starts(rest, BatchNorm2d):
            relu = starts(rest[1:], ReLU) and not starts(rest[2:], MaxPool2d)
            yield partial(conv_norm, module, rest[0], activation=rest[1] if relu else None)
            i += 3 if relu else 2
        elif starts(rest, ReLU) and not starts(rest[1:], MaxPool2d):
            yield partial(_conv_relu, module, rest[0])
            i += 2
        else:
            yield module
            i += 1


def starts(modules: list[Module], kind: type[Module]) -> bool:
    """Whether the first of the modules, if there is one, is of this kind and has no hooks."""
    return bool(modules) and type(modules[0]) is kind and not vars(modules[0]).get("_hooks")


def _conv_relu(conv: Module, relu: Module, input: Tensor) -> Tensor:
    _computed_as_one(conv, relu)
    return conv.forward(input, activation="relu")  # type: ignore[no-any-return]


def conv_norm(conv: Module, norm: Module, input: Tensor, activation: Module | str | None = None) -> Tensor:
    """norm(conv(input)), activated by a ReLU module or the function of that name.

    Where nothing is learned (evaluation mode, inside `no_grad`), the normalisation is a scale and a bias of the
    convolution's results: one pass over memory instead of three, and the same up to rounding.
    """
    if (
        starts([conv], Conv2d)
        and starts([norm], BatchNorm2d)
        and not (norm.training or is_grad_enabled() or norm.running_var is None)  # type: ignore[attr-defined]
    ):
        scale, shift = norm.affine_transform()  # type: ignore[attr-defined]
        behind = [activation] if isinstance(activation, Module) else []
        _computed_as_one(conv, norm, *behind)
        return conv.forward(input, "relu" if behind else activation, scale, shift)  # type: ignore[no-any-return]
    y = norm(conv(input))
    if activation is None:
        return y  # type: ignore[no-any-return]
    return activation(y) if isinstance(activation, Module) else getattr(F, activation)(y)  # type: ignore[no-any-return]
