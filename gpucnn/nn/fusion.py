"""Which neighbouring layers are computed as one, and how: what Sequential and the models go by.

A module with a hook is computed by itself, so that the hook sees its inputs, output and gradients; so is a subclass,
whose forward may be another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from gpucnn import functional as F
from gpucnn.backends import NO_TAP
from gpucnn.dtypes import is_half
from gpucnn.functional.casting import is_autocast_enabled
from gpucnn.functional.convolution import MOST_WEIGHTS
from gpucnn.geometry import Window, pair
from gpucnn.nn.layers import BatchNorm1d, BatchNorm2d, Conv2d, MaxPool2d, ReLU
from gpucnn.nn.module import Module, has_hooks
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

    - Conv2d of few channels applies the MaxPool2d behind it too, and the ReLU between them: see `pools_along`. The
      gradients of weight and bias are the same sums in another order; in NumPy the results are, too.
    - ReLU before MaxPool2d runs after it, on fewer elements: the largest element is the same, and where it is not
      positive no gradient comes back either way.
    - Conv2d applies the ReLU behind it to its results on their way to memory.
    - A batch norm applies the ReLU behind it to its results, and that of the gradients as it reads them.
    - Conv2d takes in the BatchNorm2d behind it, and the ReLU behind that: see `conv_norm`.

    The others but the last change no bit of a result or a gradient.
    """
    i = 0
    while i < len(modules):
        module, rest = modules[i], modules[i + 1 : i + 4]
        relus = rest[:1] if starts(rest, ReLU) else []
        if pools_along(module, rest[len(relus) :]):
            yield partial(_conv_pool, module, relus, rest[len(relus)])
            i += 2 + len(relus)
        elif starts(rest, MaxPool2d) and starts([module], ReLU) and _always_reads(rest[0]):
            yield rest[0]
            yield module
            i += 2
        elif _is_norm(module) and starts(rest, ReLU) and not starts(rest[1:], MaxPool2d):
            yield partial(_norm, module, activation=rest[0])
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
    """Whether the first of the modules, if there is one, is of this kind and has no hooks and no forward of its own."""
    if not modules or type(modules[0]) is not kind:
        return False
    return not has_hooks(modules[0]) and "forward" not in vars(modules[0])


def pools_along(conv: Module, behind: list[Module]) -> bool:
    """Whether a convolution should compute the pooling that comes first behind it too, and not write its own plane.

    A backend does with few channels, for which a GPU computes an output without a matrix product, and where the
    pooling's windows do not overlap: else it would compute what they share more than once.
    """
    if not (starts([conv], Conv2d) and starts(behind, MaxPool2d) and _always_reads(behind[0])):
        return False
    weight, pool = conv.weight, behind[0]  # type: ignore[attr-defined]
    if weight.shape[1] > weight.backend.pools_along or math.prod(weight.shape[1:]) > MOST_WEIGHTS:
        return False
    window = Window.of(pool.kernel_size, pool.stride, 0, pool.dilation)  # type: ignore[attr-defined]
    return window.taps <= NO_TAP and all(
        stride >= extent for stride, extent in zip(window.stride, window.extent, strict=True)
    )


def _always_reads(pool: Module) -> bool:
    """Whether a max pooling, which returns no indices, has an element in each of its windows.

    One with gaps may lie wholly in the padding: its −∞ would be 0 if a ReLU came after.
    """
    gaps = pair(pool.dilation, "dilation", 1) != (1, 1)  # type: ignore[attr-defined]
    return not pool.return_indices and (not gaps or pool.padding == 0)  # type: ignore[attr-defined]


def _conv_pool(conv: Module, relus: list[Module], pool: Module, input: Tensor) -> Tensor:
    _computed_as_one(conv, *relus, pool)
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    max_pool = {name: getattr(pool, name) for name in names}
    return _forward(conv, input, "relu" if relus else None, None, None, None, max_pool)


def _conv_relu(conv: Module, relu: Module, input: Tensor) -> Tensor:
    _computed_as_one(conv, relu)
    return _forward(conv, input, "relu")


def _forward(module: Module, *arguments: Any) -> Tensor:
    """module.forward, which takes more than a call of it; an error that memory does not suffice names it too."""
    try:
        return module.forward(*arguments)  # type: ignore[no-any-return]
    except MemoryError as error:
        from gpucnn.memory import out_of_memory  # it knows modules

        raise out_of_memory(error, "forward pass", module=module, inputs=arguments) from None


def conv_norm(
    conv: Module, norm: Module, input: Tensor, activation: Module | str | None = None, residual: Tensor | None = None
) -> Tensor:
    """norm(conv(input)) + residual, activated by a ReLU module or the function of that name.

    Where nothing is learned (evaluation mode, inside `no_grad`), the normalisation is a scale and a bias of the
    convolution's results, and all is computed in one pass over memory. Else the batch norm adds and activates what it
    writes; in training the convolution sums up the statistics of its results. All are the same up to rounding.
    """
    if not (starts([conv], Conv2d) and starts([norm], BatchNorm2d) and _adds(residual, input)):
        return _norm(norm, conv(input), activation, residual)
    behind = [activation] if isinstance(activation, Module) else []
    kind = "relu" if behind else activation
    if norm.training:
        if behind:
            _computed_as_one(norm, *behind)
        return _forward(norm, input, kind, residual, conv)
    if is_grad_enabled() or norm.running_var is None:  # type: ignore[attr-defined]
        return _norm(norm, conv(input), activation, residual)
    scale, shift = norm.affine_transform()  # type: ignore[attr-defined]
    _computed_as_one(conv, norm, *behind)
    return _forward(conv, input, kind, scale, shift, residual)


def _adds(residual: Tensor | None, input: Tensor) -> bool:
    """Whether a residual has the type of what a convolution of the input comes to."""
    if residual is None:
        return True
    return residual.dtype == input.dtype and (is_half(input.dtype) or not is_autocast_enabled())


def _norm(
    norm: Module, input: Tensor, activation: Module | str | None = None, residual: Tensor | None = None
) -> Tensor:
    """norm(input) + residual, activated: in one pass over memory unless something watches the norm."""
    if _is_norm(norm) and (residual is None or residual.dtype == input.dtype):
        behind = [activation] if isinstance(activation, Module) else []
        if behind:
            _computed_as_one(norm, *behind)
        return _forward(norm, input, "relu" if behind else activation, residual)
    y = norm(input)
    if residual is not None:
        y = y + residual
    if activation is None:
        return y  # type: ignore[no-any-return]
    return activation(y) if isinstance(activation, Module) else getattr(F, activation)(y)  # type: ignore[no-any-return]


def _is_norm(module: Module) -> bool:
    return starts([module], BatchNorm2d) or starts([module], BatchNorm1d)
