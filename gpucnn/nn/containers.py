"""Modules that hold modules: in a chain, in a list, under names; and one that holds parameters in a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from numbers import Integral
from typing import Any, Self

from gpucnn.functional import validate
from gpucnn.nn.fusion import fused
from gpucnn.nn.module import Module, Parameter
from gpucnn.tensor import Tensor


class _Container(Module):
    """What it holds are its attributes of one kind, in the order of assignment."""

    _kind: type[Module | Tensor] = Module
    _called = "module"

    def _named_items(self) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name, value in vars(self).items() if isinstance(value, self._kind))

    def __len__(self) -> int:
        return sum(1 for _ in self._named_items())

    def _checked(self, item: Any) -> Any:
        """The item as it is held. Raises TypeError for what is of another kind."""
        if not isinstance(item, self._kind):
            raise TypeError(f"{type(self).__name__} holds {self._called}s, got {type(item).__name__}")
        return item

    def _put(self, name: Any, item: Any) -> None:
        """`item` under this name, instead of the one that has it."""
        kind, item = type(self).__name__, self._checked(item)
        if (
            not isinstance(name, str)
            or not name
            or "." in name
            or not isinstance(getattr(self, name, None), self._kind | None)
        ):
            raise ValueError(
                f"{kind}: a {self._called} can't be called {name!r:.100}; choose a text without a dot that is no "
                f"attribute of a {kind}"
            )
        setattr(self, name, item)

    def extra_repr(self) -> str:
        return ""


class _Numbered(_Container, MutableSequence[Any]):
    """Does what a list does. Items that are inserted or deleted leave all called 0, 1, …, as in PyTorch."""

    def __iter__(self) -> Iterator[Any]:
        return (item for _, item in self._named_items())

    def _name(self, index: Any) -> str:
        names = [name for name, _ in self._named_items()]
        if not isinstance(index, Integral) or not -len(names) <= int(index) < len(names):
            raise IndexError(f"{type(self).__name__}: there is no {self._called} {index!r:.100} among {len(names)}")
        return names[int(index)]

    def __getitem__(self, index: Any) -> Any:
        return getattr(self, self._name(index))

    def __setitem__(self, index: int | slice, item: Any) -> None:
        self._put(self._name(index), item)

    def __delitem__(self, index: int | slice) -> None:
        items = list(self)
        if not isinstance(index, slice):
            self._name(index)  # which there must be
        del items[index]
        self._renumber(items)

    def insert(self, index: int, value: Any) -> None:
        """One more, before the one at `index`."""
        items = list(self)
        at = validate.integer("insert", "index", index)
        self._renumber([*items[:at], value, *items[at:]])

    def append(self, value: Any) -> Self:  # type: ignore[override]  # PyTorch's returns self
        """One more at the end; returns self."""
        name = str(len(self))
        if name in dict(self._named_items()):
            raise ValueError(
                f"{type(self).__name__}: the next {self._called} would be called {name!r}, and one is; make all anew "
                "of a mapping"
            )
        self._put(name, value)
        return self

    def extend(self, values: Iterable[Any]) -> Self:  # type: ignore[override]
        """More at the end; returns self."""
        if not isinstance(values, Iterable) or isinstance(values, Tensor):
            raise TypeError(f"{type(self).__name__} takes several {self._called}s, got {type(values).__name__}")
        for value in list(values):
            self.append(value)
        return self

    def _renumber(self, items: list[Any]) -> None:
        checked = [self._checked(item) for item in items]  # or nothing changes
        for name, _ in list(self._named_items()):
            delattr(self, name)
        for i, item in enumerate(checked):
            self._put(str(i), item)


class Sequential(_Numbered):
    """Modules in a chain: each gets what the one before returned.

    Their names are 0, 1, …, or those of a mapping: Sequential(OrderedDict(conv=nn.Conv2d(1, 6, 5), relu=nn.ReLU())).
    Neighbours are computed as one where that is the same: see `fused`.
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping) and not isinstance(modules[0], Module):
            for name, module in modules[0].items():
                self._put(name, module)
        else:
            self.extend(modules)

    def forward(self, input: Any) -> Any:
        for step in fused(list(self.children())):
            input = step(input)
        return input

    def __getitem__(self, index: int | slice) -> Any:
        """A module; or several, which keep their names."""
        if isinstance(index, slice):
            return Sequential(dict(list(self.named_children())[index]))
        return super().__getitem__(index)


class ModuleList(_Numbered):
    """Modules in a list, whose parameters are found; what calls them is up to the module that holds the list."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        self.extend(() if modules is None else modules)

    def __getitem__(self, index: int | slice) -> Any:
        """A module; or a list of several, which are called 0, 1, …"""
        return ModuleList(list(self.children())[index]) if isinstance(index, slice) else super().__getitem__(index)


class ParameterList(_Numbered):
    """Parameters in a list, which are found, moved and saved as 0, 1, …; a plain tensor becomes a Parameter.

    >>> self.scales = nn.ParameterList([gpucnn.ones(c) for c in (8, 16)])
    """

    _kind = Parameter
    _called = "parameter"

    def __init__(self, values: Iterable[Tensor] | None = None) -> None:
        self.extend(() if values is None else values)

    def _checked(self, item: Any) -> Any:
        plain = isinstance(item, Tensor) and not isinstance(item, Parameter)
        return super()._checked(Parameter(item) if plain else item)

    def __getitem__(self, index: int | slice) -> Any:
        """A parameter; or a list of several, which are called 0, 1, …"""
        return ParameterList(list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    def extra_repr(self) -> str:
        """The type and shape of each."""
        return ", ".join(f"{p.dtype} {list(p.shape)}" for p in self)


class ModuleDict(_Container, MutableMapping[str, Module]):
    """Modules under names, whose parameters are found; what calls them is up to the module that holds the mapping."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] | None = None) -> None:
        try:
            self.update(() if modules is None else modules)
        except (TypeError, ValueError) as error:
            raise type(error)(f"ModuleDict takes a mapping of names to modules, or pairs: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.named_children())

    def __getitem__(self, name: str) -> Module:
        modules = dict(self.named_children())
        if name not in modules:
            raise KeyError(f"ModuleDict: there is no module {name!r:.100} among {', '.join(modules) or 'none'}")
        return modules[name]

    def __setitem__(self, name: str, module: Any) -> None:
        self._put(name, module)

    def __delitem__(self, name: str) -> None:
        self[name]
        delattr(self, name)

    # A mapping would compare its contents, and then could not be found among a module's children.
    __eq__ = object.__eq__
    __hash__ = object.__hash__
