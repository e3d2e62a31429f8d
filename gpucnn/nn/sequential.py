"""Sequential, and which neighbours in it are computed as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from gpucnn.nn.layers import Conv2d, MaxPool2d, ReLU
from gpucnn.nn.module import Module


class Sequential(Module):
    """Modules in a chain: each gets what the one before returned.

    Neighbours are fused where that changes no bit of the result or of a gradient: see `fused`.
    """

    def __init__(self, *modules: Module) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> Sequential:
        """One more module at the end; returns self."""
        if not isinstance(module, Module):
            raise TypeError(f"Sequential holds modules, got {type(module).__name__}")
        setattr(self, str(len(self)), module)
        return self

    def forward(self, input: Any) -> Any:
        for step in fused(list(self.children())):
            input = step(input)
        return input

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: int | slice) -> Any:
        chosen = list(self.children())[index]
        return Sequential(*chosen) if isinstance(chosen, list) else chosen


def fused(modules: list[Module]) -> Iterator[Callable[[Any], Any]]:
    """What a chain of modules computes, step by step: a module itself, or several as one.

    - ReLU before MaxPool2d runs after it, on fewer elements: the largest element is the same, and where it is not
      positive no gradient comes back either way.
    - Conv2d before ReLU applies it to its results on their way to memory.

    A module with a forward hook, and a subclass, whose forward may be another, stays by itself.
    """

    i = 0
    while i < len(modules):
        module = modules[i]
        second = modules[i + 1] if i + 1 < len(modules) else None
        if type(module) is ReLU and type(second) is MaxPool2d and not (hooked(module, second) or second.return_indices):
            yield second
            yield module
            i += 2
        elif type(module) is Conv2d and type(second) is ReLU and not (hooked(module, second) or pooled(modules, i + 2)):
            yield partial(module.forward, activation="relu")
            i += 2
        else:
            yield module
            i += 1


def hooked(*modules: Module) -> bool:
    return any(vars(module).get("_hooks") for module in modules)


def pooled(modules: list[Module], i: int) -> bool:
    return i < len(modules) and type(modules[i]) is MaxPool2d
