"""Optimisers, with torch.optim's names and formulas."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from gpucnn.backends import Array, Backend
from gpucnn.backends.base import AdamSettings, RMSpropSettings, SGDSettings
from gpucnn.dtypes import is_half
from gpucnn.functional import validate
from gpucnn.live import CaptureError, Live
from gpucnn.tensor import Tensor, no_grad, zero_grad

T = TypeVar("T")
Group = dict[str, Any]
Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Group]


class _Setting:
    """A setting of the groups as an attribute of the optimizer: reading gives the first group's, assigning sets all."""

    def __set_name__(self, owner: type[Optimizer], name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Optimizer | None, owner: type[Optimizer]) -> Any:
        return self if optimizer is None else optimizer.param_groups[0][self.name]

    def __set__(self, optimizer: Optimizer, value: Any) -> None:
        for group in optimizer.param_groups:
            group[self.name] = value


class Optimizer(ABC):
    """Steps parameters along their gradients; one without a gradient (frozen, not used) stays as it is.

    params are tensors, or the (name, tensor) pairs of `named_parameters()`, or groups of either: dicts with "params"
    and the settings that differ from the optimizer's. `param_groups` lists the groups, each with "params" and all
    settings, which may be changed between steps, as schedules do. A setting is an attribute of the optimizer too:
    `optimizer.lr` is the first group's, and assigning it sets it in all groups.

    Raises TypeError for what is no parameter and for a setting that the optimizer does not have, ValueError for a
    parameter that is given twice, a group without any, and a setting out of its range; all name the group.

    >>> optim.SGD([{"params": backbone.parameters(), "lr": 1e-3}, {"params": head.parameters()}], lr=0.1)
    """

    lr = _Setting()
    weight_decay = _Setting()

    _not_negative: tuple[str, ...] = ("lr", "weight_decay")
    _moments: tuple[str, ...] = ()  # the names of the arrays kept per parameter

    def __init__(self, params: Params, defaults: Group) -> None:
        self.param_groups: list[Group] = []
        self._state: list[dict[str, Array | None]] = []  # the moments of each of `params`
        name = type(self).__name__
        self.defaults = self._checked(name, defaults)
        given = _several(name, params)
        if any(isinstance(item, dict) for item in given):
            for item in given:
                self.add_param_group(item)
        else:
            self._add(name, {"params": given})

    def add_param_group(self, param_group: Group) -> None:
        """Optimise further parameters, with the settings of this group and the optimizer's own for the rest.

        A schedule that was made before leaves the group's lr alone. Nothing has changed after an error.
        """
        self._add(f"{type(self).__name__}: group {len(self.param_groups)}", param_group)

    def _add(self, where: str, given: Group) -> None:
        if not isinstance(given, dict) or "params" not in given:
            raise TypeError(f"{where}: a group must be a dict with params, got {given!r:.100}")
        unknown = sorted(map(str, given.keys() - self.defaults.keys() - {"params"}))
        if unknown:
            raise TypeError(f"{where}: there is no {', '.join(unknown)}; the settings are {', '.join(self.defaults)}")
        one = isinstance(given["params"], Tensor)  # PyTorch takes one, too
        params = _parameters(where, [given["params"]] if one else _several(where, given["params"]))
        for i, group in enumerate(self.param_groups):
            if {id(p) for p in params} & {id(p) for p in group["params"]}:
                raise ValueError(f"{where}: a parameter is in group {i} already, it would be stepped twice")
        self.param_groups.append(self._checked(where, {**self.defaults, **given}) | {"params": params})
        self._state = [*self._state, *(dict[str, Array | None].fromkeys(self._moments) for _ in params)]

    def _checked(self, where: str, settings: Group) -> Group:
        """The settings as a step takes them: plain floats, since moments would be float64 of a NumPy number."""
        return settings | {name: finite_number(where, name, settings[name]) for name in self._not_negative}

    def _check_group(self, group: Group) -> None:
        """Before a step reads them: the settings may have been set by hand, to anything."""
        number = next(i for i, own in enumerate(self.param_groups) if own is group)
        group.update(self._checked(f"{type(self).__name__}: group {number}", group))

    @property
    def params(self) -> list[Tensor]:
        """The parameters of all groups, one group after the other."""
        return [p for group in self.param_groups for p in group["params"]]

    def _places(self) -> list[tuple[Group, range]]:
        """Each group, and the numbers of its parameters in `params`. Raises ValueError if they have become others."""
        ends = list(accumulate(len(group["params"]) for group in self.param_groups))
        if ends[-1:] != [len(self._state)]:
            raise ValueError(
                f"{type(self).__name__}: its groups have other parameters than they were given; use add_param_group()"
            )
        return [
            (group, range(end - len(group["params"]), end)) for group, end in zip(self.param_groups, ends, strict=True)
        ]

    @abstractmethod
    def _update(
        self,
        backend: Backend,
        group: Group,
        numbers: list[int],
        params: list[Array],
        grads: list[Array],
        state: list[dict[str, Any]],
    ) -> None:
        """One step on these arrays of a group, in place, with their moments. numbers: their places among `params`."""

    def step(self) -> None:
        """Change every parameter that has a gradient."""
        params, places = self.params, self._places()
        grads = {i: g.array for i, g in enumerate(p.grad for p in params) if g is not None}
        if not grads:
            return
        for group, _ in places:
            self._check_group(group)
        backend = params[next(iter(grads))].backend
        before = [dict(moments) for moments in self._state] if backend.capturing else []
        with no_grad():
            arrays = {i: params[i]._writable() for i in grads}
        try:
            for group, numbers in places:
                chosen = [i for i in numbers if i in grads]
                if chosen:
                    w, g, s = ([table[i] for i in chosen] for table in (arrays, grads, self._state))
                    self._update(backend, group, chosen, w, g, s)
        except MemoryError as error:
            from gpucnn.memory import out_of_memory  # it knows optimizers

            raise out_of_memory(error, "optimizer's step", backend) from None
        for moments, earlier in zip(self._state, before, strict=False):
            if any(value is not earlier[name] for name, value in moments.items()):
                self._state = before
                raise CaptureError("the optimizer has yet to make its first step; let it make one before")

    def _live(
        self, group: Group, settings: Callable[[], T], has_changed: Callable[[], bool] = lambda: False
    ) -> Live[T]:
        """The settings of each step to come of a group; stale, for a graph, once the moments are other ones: after a
        group was added, a state was loaded, or a momentum was switched on or off."""
        state, momentum = self._state, bool(group.get("momentum"))

        def is_stale() -> bool:
            self._check_group(group)  # a graph asks before each launch, which is a step without step()
            return self._state is not state or bool(group.get("momentum")) != momentum or has_changed()

        return Live(settings, is_stale)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or make them zeros."""
        zero_grad(self.params, set_to_none)

    def _zeros(self, backend: Backend, params: list[Array], state: list[dict[str, Any]], name: str) -> list[Array]:
        """A moment of each parameter, made of zeros at its first step."""
        for p, s in zip(params, state, strict=True):
            if s[name] is None:
                s[name] = backend.xp.zeros_like(p)
        return [s[name] for s in state]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: the settings of each group, with the numbers of its parameters, and the
        moments as numpy arrays, under "arrays"."""
        arrays = {
            f"{name}.{i}": np.array(p.backend.to_numpy(value))
            for i, (p, s) in enumerate(zip(self.params, self._state, strict=True))
            for name, value in s.items()
            if value is not None
        }
        groups = [{**group, "params": list(numbers)} for group, numbers in self._places()]
        return {"param_groups": groups, "arrays": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, with its settings. A state of an earlier version, which has no groups,
        goes into an optimizer of one.

        Raises ValueError or TypeError, before any change, if a group, a setting or a moment does not fit.
        """
        kind = type(self).__name__
        if not isinstance(state, dict) or "arrays" not in state or not {"param_groups", "lr"} & state.keys():
            raise ValueError(f"{kind}: a state has param_groups and arrays, this is {state!r:.100}")
        params, arrays = self.params, state["arrays"]
        groups = state["param_groups"] if "param_groups" in state else [{**state, "params": range(len(params))}]
        for name, value, needed in (("param_groups", groups, list), ("arrays", arrays, dict)):
            if not isinstance(value, needed):
                raise TypeError(f"{kind}: the state's {name} must be a {needed.__name__}, got {value!r:.100}")
        for i, given in enumerate(groups):
            if not isinstance(given, dict) or not isinstance(given.get("params"), list | range):
                raise TypeError(
                    f"{kind}: the state's group {i} must be a dict with a list of params, got {given!r:.100}"
                )
        sizes, own = ([len(group["params"]) for group in each] for each in (groups, self.param_groups))
        if sizes != own:
            raise ValueError(f"{kind}: the state's groups have {sizes} parameters, the optimizer's {own}")
        settings = [
            self._checked(
                f"{kind}: the state's group {i}", {name: given.get(name, own[name]) for name in self.defaults}
            )
            for i, (given, own) in enumerate(zip(groups, self.param_groups, strict=True))
        ]
        loaded: list[dict[str, Array | None]] = [dict.fromkeys(self._moments) for _ in params]
        places = {f"{name}.{i}": (name, i) for name in self._moments for i in range(len(params))}
        for key, value in arrays.items():
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
                raise TypeError(f"{kind}: the state's {key} must be an array of real numbers, got {value!r:.100}")
            name, i = places.get(key, ("", 0))
            if not name or value.shape != params[i].shape:
                raise ValueError(f"{kind}: the state's {key} of shape {value.shape} does not fit these parameters")
            loaded[i][name] = params[i].backend.asarray(np.array(value), params[i].dtype)
        for group, values in zip(self.param_groups, settings, strict=True):
            group.update(values)
        self._state = loaded


def finite_number(op: str, name: str, value: Any, negative: bool = False) -> float:
    """A finite number as a plain float; NumPy's would compute in float64, and JSON can't hold them.

    Raises TypeError for what is none, ValueError for one that is infinite, NaN or, unless it may be, negative.
    """
    number = validate.number(op, name, value)
    if not math.isfinite(number):
        raise ValueError(f"{op}: {name} must be finite, got {number}")
    if number < 0 and not negative:
        raise ValueError(f"{op}: {name} must not be negative, got {value}")
    return number


def _several(where: str, params: Any) -> list[Any]:
    """What is given as params, one after the other. Raises TypeError for what has no order, and for what isn't many."""
    if isinstance(params, Tensor | dict | set) or hasattr(params, "parameters") or not isinstance(params, Iterable):
        hints: dict[type, str] = {dict: "; groups come in a list", set: ", which has no order"}
        hint = hints.get(type(params), _hint(params))
        raise TypeError(f"{where}: params must be several tensors, got a {type(params).__name__}{hint}")
    return list(params)


def _hint(given: Any) -> str:
    return "; pass model.parameters()" if hasattr(given, "parameters") else ""


def _parameters(where: str, given: list[Any]) -> list[Tensor]:
    """The tensors of a group, which may come with their names. Raises TypeError and ValueError."""
    params: list[Tensor] = []
    for i, item in enumerate(given):
        name, p = item if isinstance(item, tuple) and len(item) == 2 else (i, item)
        if not isinstance(p, Tensor) or not p.is_leaf:
            found = "the result of an operation" if isinstance(p, Tensor) else f"a {type(p).__name__}{_hint(p)}"
            raise TypeError(
                f"{where}: parameter {name} is not a leaf tensor, as a module's parameters are, but {found}"
            )
        if is_half(p.dtype):
            raise TypeError(
                f"{where}: parameter {name} is {p.dtype}, too coarse for small steps; keep parameters float32 and "
                "compute inside gpucnn.autocast"
            )
        params.append(p)
    if not params:
        raise ValueError(f"{where}: there are no parameters to optimise")
    if len({id(p) for p in params}) < len(params):
        raise ValueError(f"{where}: a parameter is given twice, it would be stepped twice")
    return params


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: torch.optim.SGD."""

    momentum = _Setting()
    dampening = _Setting()
    nesterov = _Setting()

    _not_negative = (*Optimizer._not_negative, "momentum")
    _moments = ("momentum_buffer",)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        settings = {"weight_decay": weight_decay, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        super().__init__(params, {"lr": lr, **settings})

    def _checked(self, where: str, settings: Group) -> Group:
        checked = super()._checked(where, settings)
        dampening, nesterov = (
            finite_number(where, "dampening", settings["dampening"], negative=True),
            settings["nesterov"],
        )
        if not isinstance(nesterov, bool | np.bool_):
            raise TypeError(f"{where}: nesterov must be True or False, got {nesterov!r:.100}")
        if nesterov and (checked["momentum"] == 0 or dampening != 0):
            raise ValueError(f"{where}: nesterov needs a momentum and no dampening")
        return checked | {"dampening": dampening, "nesterov": bool(nesterov)}

    def _update(
        self,
        backend: Backend,
        group: Group,
        numbers: list[int],
        params: list[Array],
        grads: list[Array],
        state: list[dict[str, Any]],
    ) -> None:
        def settings() -> SGDSettings:
            return SGDSettings(*(group[name] for name in SGDSettings._fields))

        before = [s["momentum_buffer"] for s in state]
        moments = backend.sgd_update(params, grads, before, self._live(group, settings))
        for s, moment in zip(state, moments, strict=True):
            s["momentum_buffer"] = moment


class Adam(Optimizer):
    """Adam (Kingma & Ba 2014): torch.optim.Adam; weight_decay is an L2 penalty here, decoupled in AdamW."""

    betas = _Setting()
    eps = _Setting()

    _not_negative = (*Optimizer._not_negative, "eps")
    _moments = ("exp_avg", "exp_avg_sq")
    _decoupled = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.steps: list[int] = []  # that each of `params` has made
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    def _checked(self, where: str, settings: Group) -> Group:
        given = settings["betas"]
        try:
            pair = list(given)
        except TypeError:
            raise TypeError(f"{where}: betas must be two numbers in [0, 1), got {given!r:.100}") from None
        betas = tuple(validate.number(where, "betas", beta) for beta in pair)  # JSON has no tuples
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{where}: betas must be two numbers in [0, 1), got {given}")
        return super()._checked(where, settings) | {"betas": betas}

    def _add(self, where: str, given: Group) -> None:
        super()._add(where, given)
        self.steps = [*self.steps, *(0 for _ in self.param_groups[-1]["params"])]

    def _update(
        self,
        backend: Backend,
        group: Group,
        numbers: list[int],
        params: list[Array],
        grads: list[Array],
        state: list[dict[str, Any]],
    ) -> None:
        averages = self._zeros(backend, params, state, "exp_avg")
        squares = self._zeros(backend, params, state, "exp_avg_sq")
        counts = [self.steps[i] for i in numbers]
        for count in sorted(set(counts)):  # one, unless some parameters have missed steps
            chosen = [at for at, n in enumerate(counts) if n == count]
            w, g, m, v = ([table[at] for at in chosen] for table in (params, grads, averages, squares))
            backend.adam_update(w, g, m, v, self._live_settings(group, [numbers[at] for at in chosen]))

    def _live_settings(self, group: Group, numbers: list[int]) -> Live[AdamSettings]:
        """Those of each step to come of these parameters of a group, which have made equally many."""

        def settings() -> AdamSettings:
            for i in numbers:
                self.steps[i] += 1
            step = self.steps[numbers[0]]
            return AdamSettings(step, group["lr"], group["betas"], group["eps"], group["weight_decay"], self._decoupled)

        return self._live(group, settings, lambda: len({self.steps[i] for i in numbers}) > 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps": list(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        kind = type(self).__name__
        if not isinstance(state, dict) or "steps" not in state:
            raise ValueError(f"{kind}: a state has steps, this is {state!r:.100}")
        steps = list(validate.integers(kind, "the state's steps", state["steps"]))
        if len(steps) != len(self.params):
            raise ValueError(f"{kind}: the state counts {len(steps)} parameters, the optimiser has {len(self.params)}")
        if min(steps) < 0:
            raise ValueError(f"{kind}: the state's steps must not be negative, got {steps!r:.100}")
        super().load_state_dict(state)
        self.steps = steps


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017): torch.optim.AdamW."""

    _decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


class RMSprop(Optimizer):
    """RMSprop (Hinton 2012): torch.optim.RMSprop, not centred."""

    alpha = _Setting()
    eps = _Setting()
    momentum = _Setting()

    _not_negative = (*Optimizer._not_negative, "alpha", "eps", "momentum")
    _moments = ("square_avg", "momentum_buffer")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        settings = {"weight_decay": weight_decay, "alpha": alpha, "eps": eps, "momentum": momentum}
        super().__init__(params, {"lr": lr, **settings})

    def _update(
        self,
        backend: Backend,
        group: Group,
        numbers: list[int],
        params: list[Array],
        grads: list[Array],
        state: list[dict[str, Any]],
    ) -> None:
        def settings() -> RMSpropSettings:
            return RMSpropSettings(*(group[name] for name in RMSpropSettings._fields))

        squares = self._zeros(backend, params, state, "square_avg")
        before = [s["momentum_buffer"] for s in state]
        moments = backend.rmsprop_update(params, grads, squares, before, self._live(group, settings))
        for s, moment in zip(state, moments, strict=True):
            s["momentum_buffer"] = moment


def check_optimizer(op: str, optimizer: Any) -> None:
    """Raises TypeError for what is no optimizer, and says what to do with several."""
    if not isinstance(optimizer, Optimizer):
        hint = "; one optimizer steps them all, with groups: SGD([{'params': …, 'lr': …}, {'params': …}])"
        raise TypeError(
            f"{op}: optimizer must be a gpucnn.optim.Optimizer, got {type(optimizer).__name__}"
            f"{hint if isinstance(optimizer, list | tuple) else ''}"
        )
