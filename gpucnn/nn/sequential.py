"""Sequential: modules in a chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

from gpucnn.nn.fusion import fused
from gpucnn.nn.module import Module


class Sequential(Module):
    """Modules in a chain: each gets what the one before returned.

    Their names are 0, 1, …, or those of a mapping: Sequential(OrderedDict(conv=nn.Conv2d(1, 6, 5), relu=nn.ReLU())).
    Neighbours are computed as one where that is the same: see `fused`.
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self._add(name, module)
        else:
            for one in modules:
                self.append(one)

    def append(self, module: Any) -> Sequential:
        """One more module at the end; returns self."""
        return self._add(str(len(self)), module)

    def _add(self, name: Any, module: Any) -> Sequential:
        if not isinstance(module, Module):
            raise TypeError(f"Sequential holds modules, got {type(module).__name__}")
        if not isinstance(name, str) or not name or "." in name or getattr(self, name, None) is not None:
            raise ValueError(
                f"Sequential: a module can't be called {name!r:.100}; choose a text without a dot that is no attribute "
                "of a Sequential"
            )
        setattr(self, name, module)
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
