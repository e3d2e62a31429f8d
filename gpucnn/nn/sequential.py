"""Sequential: modules in a chain."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any

from gpucnn.nn.fusion import fused
from gpucnn.nn.module import Module


class Sequential(Module):
    """Modules in a chain: each gets what the one before returned.

    Neighbours are computed as one where that is the same: see `fused`.
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
        whole = isinstance(index, Integral) and -len(self) <= index < len(self)
        if not whole and not isinstance(index, slice):
            raise IndexError(f"Sequential: there is no module {index!r:.100} among {len(self)}")
        chosen = list(self.children())[index]
        return Sequential(*chosen) if isinstance(chosen, list) else chosen
