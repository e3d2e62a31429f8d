"""Optimisers, learning-rate schedules and gradient clipping, with torch.optim's names and formulas."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
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
        return settings | {name: _number(where, name, settings[name]) for name in self._not_negative}

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


def _number(op: str, name: str, value: Any, negative: bool = False) -> float:
    """A finite number as a plain float; NumPy's would compute in float64, and JSON can't hold them.

    Raises TypeError for what is none, ValueError for one that is infinite, NaN or, unless it may be, negative.
    """
    number = validate.number(op, name, value)
    if not math.isfinite(number):
        raise ValueError(f"{op}: {name} must be finite, got {number}")
    if number < 0 and not negative:
        raise ValueError(f"{op}: {name} must not be negative, got {value}")
    return number


def _factor(op: str, name: str, value: Any) -> float:
    """A number from 0 to 1, which a learning rate is multiplied by."""
    number = _number(op, name, value)
    if number > 1:
        raise ValueError(f"{op}: {name} must be from 0 to 1, got {value}; raise the optimizer's lr instead")
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
        dampening, nesterov = _number(where, "dampening", settings["dampening"], negative=True), settings["nesterov"]
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


# -- schedules -------------------------------------------------------------------------------------


class _Schedule:
    """What all schedules have: an optimizer, a count of steps, and a state. Its lists have a number for each group."""

    def __init__(self, optimizer: Optimizer) -> None:
        _check_optimizer(type(self).__name__, optimizer)
        self.optimizer = optimizer
        self.last_epoch = 0

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def _count(self) -> None:
        if self.optimizer.params[0].backend.capturing:
            raise CaptureError("scheduler.step() is called inside the step; call it after the step")
        self.last_epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: all its numbers."""
        return {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(self).items()
            if isinstance(value, int | float | str | tuple | list) and not name.startswith("_")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, with its settings. A state of an earlier version may lack some, and
        has what each group has once, under a name in the singular.

        Raises ValueError or TypeError, before any change, for a state of other groups and for values that can't be.
        """
        kind = type(self).__name__
        if not isinstance(state, dict) or "last_epoch" not in state:
            raise ValueError(f"{kind}: a state has last_epoch, this is {state!r:.100}")
        validate.integer(kind, "the state's last_epoch", state["last_epoch"], least=0)
        loaded: dict[str, Any] = {}
        for name, own in _Schedule.state_dict(self).items():
            given, earlier = state.get(name, own), name.removesuffix("s")
            if isinstance(own, list) and name not in state and earlier in state:
                given = [state[earlier]]
            if not _alike(given, own):
                raise TypeError(f"{kind}: the state's {name} must be of the kind of {own!r:.100}, got {given!r:.100}")
            if isinstance(own, list) and len(given) != len(own):
                raise ValueError(f"{kind}: the state has {name} {given}, the optimizer {len(own)} groups")
            several = tuple if isinstance(own, tuple) else list  # JSON has no tuples
            loaded[name] = several(given) if isinstance(own, list | tuple) else given
        vars(self).update(loaded)


def _alike(given: Any, own: Any) -> bool:
    """Whether a state's value is of the kind that a schedule's own is: a number, a text, or several of such."""
    if isinstance(own, list | tuple):
        return isinstance(given, list | tuple) and all(_alike(item, own[0]) for item in given if own)
    return not isinstance(own, int | float | str) or isinstance(given, str if isinstance(own, str) else int | float)


def _check_optimizer(op: str, optimizer: Any) -> None:
    """Raises TypeError for what is no optimizer, and says what to do with several."""
    if not isinstance(optimizer, Optimizer):
        hint = "; one optimizer steps them all, with groups: SGD([{'params': …, 'lr': …}, {'params': …}])"
        raise TypeError(
            f"{op}: optimizer must be a gpucnn.optim.Optimizer, got {type(optimizer).__name__}"
            f"{hint if isinstance(optimizer, list | tuple) else ''}"
        )


def _for_each_group(op: str, name: str, kind: str, value: Any, optimizer: Optimizer) -> list[Any]:
    """What each group has: `value` itself, or its items if it is a sequence, which must be as many. kind: what one of
    them is, for an error."""
    _check_optimizer(op, optimizer)
    groups = len(optimizer.param_groups)
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * groups
    if len(values) != groups:
        raise ValueError(f"{op}: {name} must be {kind} or one for each of the {groups} groups, got {value!r:.100}")
    return values


class LRScheduler(_Schedule, ABC):
    """Sets each group's lr as a function of how many steps it has been told of. Sets the first lr when made.

    `base_lrs` are the groups' learning rates of before. A group that is added to the optimizer later keeps its own lr.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.base_lrs = [_number(type(self).__name__, "the optimizer's lr", lr) for lr in self.get_last_lr()]
        self._set_lrs()

    @abstractmethod
    def lr_at(self, epoch: int, group: int = 0) -> float:
        """The learning rate of a group, by its number, after `epoch` calls of step()."""

    def _set_lrs(self) -> None:
        """Raises ValueError, before any is set, for a learning rate that can't be."""
        self._set([self._rate(i) for i in range(len(self.base_lrs))])

    def _rate(self, group: int) -> float:
        kind, steps = type(self).__name__, self.last_epoch
        try:
            lr = self.lr_at(steps, group)
        except ArithmeticError as error:
            raise ValueError(
                f"{kind}: group {group} has no learning rate after {steps} steps: {error}, with {self.state_dict()}"
            ) from error
        return _number(kind, f"the learning rate of group {group} after {steps} steps", lr)

    def _set(self, rates: list[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = lr

    def step(self) -> None:
        """One epoch (or batch, for schedules by batch) is over. Raises ValueError, and stays where it is, if there is
        no finite learning rate after it."""
        self._count()
        try:
            self._set_lrs()
        except Exception:
            self.last_epoch -= 1
            raise

    def load_state_dict(self, state: dict[str, Any]) -> None:
        before = dict(vars(self))
        super().load_state_dict(state)
        try:
            self._set_lrs()
        except Exception:
            vars(self).update(before)
            raise


class StepLR(LRScheduler):
    """lr · gamma ** (epoch // step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = validate.integer("StepLR", "step_size", step_size, least=1)
        self.gamma = _number("StepLR", "gamma", gamma)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        return self.base_lrs[group] * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """lr · gamma for each of the milestones, counted in steps, that has been reached."""

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        self.milestones = tuple(sorted(validate.integers("MultiStepLR", "milestones", milestones)))
        self.gamma = _number("MultiStepLR", "gamma", gamma)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        return self.base_lrs[group] * self.gamma ** bisect_right(self.milestones, epoch)


class ExponentialLR(LRScheduler):
    """lr · gamma ** epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = _number("ExponentialLR", "gamma", gamma)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        return self.base_lrs[group] * self.gamma**epoch


class PolynomialLR(LRScheduler):
    """lr · (1 − epoch / total_iters) ** power, and 0 from total_iters on."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0) -> None:
        self.total_iters = validate.integer("PolynomialLR", "total_iters", total_iters, least=1)
        self.power = _number("PolynomialLR", "power", power)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        left: float = (1 - min(epoch, self.total_iters) / self.total_iters) ** self.power
        return self.base_lrs[group] * left


class LinearLR(LRScheduler):
    """lr · a factor that goes along a line from start_factor to end_factor in total_iters steps, and stays there.

    Raises ValueError unless 0 < start_factor <= 1 and 0 <= end_factor <= 1.
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self.start_factor = _factor("LinearLR", "start_factor", start_factor)
        self.end_factor = _factor("LinearLR", "end_factor", end_factor)
        if not self.start_factor:
            raise ValueError("LinearLR: start_factor must be larger than 0, got 0.0; end_factor may be 0")
        self.total_iters = validate.integer("LinearLR", "total_iters", total_iters, least=1)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        done = min(epoch, self.total_iters) / self.total_iters
        return self.base_lrs[group] * (self.start_factor * (1 - done) + self.end_factor * done)


class ConstantLR(LRScheduler):
    """lr · factor in the first total_iters steps, then lr. Raises ValueError unless 0 <= factor <= 1."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5) -> None:
        self.factor = _factor("ConstantLR", "factor", factor)
        self.total_iters = validate.integer("ConstantLR", "total_iters", total_iters, least=1)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        return self.base_lrs[group] * (self.factor if epoch < self.total_iters else 1.0)


class LambdaLR(LRScheduler):
    """lr · lr_lambda(epoch), with one function for all groups or a list of one for each. A state does not hold them."""

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]
    ) -> None:
        self._lr_lambdas = _for_each_group("LambdaLR", "lr_lambda", "a function", lr_lambda, optimizer)
        for function in self._lr_lambdas:
            if not callable(function):
                raise TypeError(f"LambdaLR: lr_lambda must be a function of the step, got {function!r:.100}")
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        return self.base_lrs[group] * validate.number(
            "LambdaLR", "what lr_lambda returns", self._lr_lambdas[group](epoch)
        )


class CosineAnnealingLR(LRScheduler):
    """From lr to eta_min along half a cosine in T_max steps, and back. Loshchilov & Hutter 2016."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.t_max = validate.integer("CosineAnnealingLR", "T_max", T_max, least=1)
        self.eta_min = _number("CosineAnnealingLR", "eta_min", eta_min)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        return self.eta_min + (self.base_lrs[group] - self.eta_min) * (1 + math.cos(math.pi * epoch / self.t_max)) / 2


class CosineAnnealingWarmRestarts(LRScheduler):
    """From lr to eta_min along half a cosine in T_0 steps, then from lr again, each time in T_mult times as many steps.
    Loshchilov & Hutter 2016.
    """

    def __init__(self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0) -> None:
        kind = "CosineAnnealingWarmRestarts"
        self.t_0 = validate.integer(kind, "T_0", T_0, least=1)
        self.t_mult = validate.integer(kind, "T_mult", T_mult, least=1)
        self.eta_min = _number(kind, "eta_min", eta_min)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        length, growth = (  # checked again, for a state may have brought what never ends
            validate.integer("CosineAnnealingWarmRestarts", name, value, least=1)
            for name, value in (("T_0", self.t_0), ("T_mult", self.t_mult))
        )
        since = epoch % length if growth == 1 else epoch
        while since >= length:
            since, length = since - length, length * growth
        return self.eta_min + (self.base_lrs[group] - self.eta_min) * (1 + math.cos(math.pi * since / length)) / 2


class OneCycleLR(LRScheduler):
    """Up from max_lr / div_factor to max_lr in pct_start of the steps, then down to the start / final_div_factor, both
    along a cosine: torch.optim.lr_scheduler.OneCycleLR (without its cycling of the momentum). Smith & Topin 2017.

    max_lr is one number, or a list of one for each group.

    Call step() after every batch; raises ValueError after total_steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        names = ("pct_start", "div_factor", "final_div_factor")
        pct_start, div_factor, final_div_factor = (
            _number("OneCycleLR", name, value)
            for name, value in zip(names, (pct_start, div_factor, final_div_factor), strict=True)
        )
        total_steps = validate.integer("OneCycleLR", "total_steps", total_steps)
        if not (div_factor > 0 and final_div_factor > 0):
            raise ValueError(
                f"OneCycleLR: div_factor and final_div_factor must be positive, got {div_factor} and {final_div_factor}"
            )
        if total_steps < 1 or not 0 <= pct_start <= 1:
            raise ValueError(
                f"OneCycleLR: total_steps must be positive and pct_start in 0 … 1, got {total_steps} and {pct_start}"
            )
        most = _for_each_group("OneCycleLR", "max_lr", "a number", max_lr, optimizer)
        self.max_lrs = [_number("OneCycleLR", "max_lr", lr) for lr in most]
        self.total_steps, self.pct_start = total_steps, pct_start
        self.initial_lrs = [_number("OneCycleLR", "max_lr / div_factor", lr / div_factor) for lr in self.max_lrs]
        self.min_lrs = [
            _number("OneCycleLR", "max_lr / div_factor / final_div_factor", lr / final_div_factor)
            for lr in self.initial_lrs
        ]
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        if epoch > self.total_steps:
            raise ValueError(f"OneCycleLR: step {epoch} comes after total_steps={self.total_steps}")
        top = self.pct_start * self.total_steps - 1
        last = self.total_steps - 1
        initial, most, least = self.initial_lrs[group], self.max_lrs[group], self.min_lrs[group]
        if epoch <= top:
            start, end, part = initial, most, epoch / top if top else 1.0
        else:
            start, end, part = most, least, min((epoch - top) / (last - top), 1.0) if last > top else 1.0
        return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


class WarmUp(LRScheduler):
    """Linear from 0 to the lr of `after` in the first `steps` steps, then `after` (which starts counting there).

    >>> WarmUp(optim.CosineAnnealingLR(optimizer, T_max=100), steps=5)
    """

    def __init__(self, after: LRScheduler, steps: int) -> None:
        if not isinstance(after, LRScheduler):
            raise TypeError(f"WarmUp: after must be a gpucnn.optim.LRScheduler, got {type(after).__name__}")
        self.after, self.steps = after, validate.integer("WarmUp", "steps", steps, least=1)
        super().__init__(after.optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        if epoch < self.steps:
            return self.after.lr_at(0, group) * (epoch + 1) / (self.steps + 1)
        return self.after.lr_at(epoch - self.steps, group)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict) or "after" not in state:
            raise ValueError(f"WarmUp: a state has after, this is {state!r:.100}")
        before, rates = self.after.state_dict(), self.get_last_lr()
        self.after.load_state_dict(state["after"])
        try:
            super().load_state_dict(state)
        except Exception:
            self.after.load_state_dict(before)
            self._set(rates)
            raise

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "after": self.after.state_dict()}


_MODES = {"mode": ["min", "max"], "threshold_mode": ["rel", "abs"]}


class ReduceLROnPlateau(_Schedule):
    """Each group's lr · factor once a metric has not improved in more than `patience` steps in a row, but never below
    min_lr: torch.optim.lr_scheduler.ReduceLROnPlateau.

    mode: whether less ("min") or more ("max") is better. A value improves on the best if it is better by more than
    `threshold`, as a share of the best ("rel") or as it is ("abs"); NaN never does. For `cooldown` steps after a
    reduction none is counted. min_lr is one number, or a list of one for each group. A reduction by at most eps is not
    made. In `train.fit` the callback `train.PlateauSchedule` steps it.

    >>> schedule = optim.ReduceLROnPlateau(optimizer, patience=3)
    >>> schedule.step(loss_of_the_epoch)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(optimizer)
        op = type(self).__name__
        self.mode, self.threshold_mode = mode, threshold_mode
        for name, words in _MODES.items():
            validate.choice(op, name, getattr(self, name), words)
        self.factor, self.threshold, self.eps = (
            _number(op, name, value) for name, value in {"factor": factor, "threshold": threshold, "eps": eps}.items()
        )
        if self.factor >= 1:
            raise ValueError(f"{op}: factor must be at least 0 and less than 1, got {factor}")
        self.patience, self.cooldown = (
            validate.integer(op, name, value, least=0)
            for name, value in {"patience": patience, "cooldown": cooldown}.items()
        )
        least = _for_each_group(op, "min_lr", "a number", min_lr, optimizer)
        self.min_lrs = [_number(op, "min_lr", lr) for lr in least]
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0

    def __repr__(self) -> str:
        names = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lrs", "eps")
        return f"ReduceLROnPlateau({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def step(self, metrics: float) -> None:
        """An epoch is over, and this is what was measured."""
        value = validate.number("ReduceLROnPlateau", "metrics", metrics)
        self._count()
        if self._is_better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            for group, least in zip(self.optimizer.param_groups, self.min_lrs, strict=False):
                lr = max(group["lr"] * self.factor, least)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr

    def _is_better(self, value: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        bound = (
            self.best * (1 + sign * self.threshold)
            if self.threshold_mode == "rel"
            else self.best + sign * self.threshold
        )
        return sign * value > sign * bound

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, words in _MODES.items() if isinstance(state, dict) else ():
            validate.choice(type(self).__name__, name, state.get(name, getattr(self, name)), words)
        super().load_state_dict(state)


# -- clipping --------------------------------------------------------------------------------------


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
