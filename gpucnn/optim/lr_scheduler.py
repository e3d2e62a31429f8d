"""Learning-rate schedules, with the names of torch.optim.lr_scheduler."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gpucnn.functional import validate
from gpucnn.live import CaptureError
from gpucnn.optim.optimizer import Optimizer, check_optimizer, finite_number


def _factor(op: str, name: str, value: Any) -> float:
    """A number from 0 to 1, which a learning rate is multiplied by."""
    number = finite_number(op, name, value)
    if number > 1:
        raise ValueError(f"{op}: {name} must be from 0 to 1, got {value}; raise the optimizer's lr instead")
    return number


class _Schedule:
    """What all schedules have: an optimizer, a count of steps, and a state. Its lists have a number for each group."""

    def __init__(self, optimizer: Optimizer) -> None:
        check_optimizer(type(self).__name__, optimizer)
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


def _for_each_group(op: str, name: str, kind: str, value: Any, optimizer: Optimizer) -> list[Any]:
    """What each group has: `value` itself, or its items if it is a sequence, which must be as many. kind: what one of
    them is, for an error."""
    check_optimizer(op, optimizer)
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
        self.base_lrs = [finite_number(type(self).__name__, "the optimizer's lr", lr) for lr in self.get_last_lr()]
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
        return finite_number(kind, f"the learning rate of group {group} after {steps} steps", lr)

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
        self.gamma = finite_number("StepLR", "gamma", gamma)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        return self.base_lrs[group] * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """lr · gamma for each of the milestones, counted in steps, that has been reached."""

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        self.milestones = tuple(sorted(validate.integers("MultiStepLR", "milestones", milestones)))
        self.gamma = finite_number("MultiStepLR", "gamma", gamma)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        return self.base_lrs[group] * self.gamma ** bisect_right(self.milestones, epoch)


class ExponentialLR(LRScheduler):
    """lr · gamma ** epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = finite_number("ExponentialLR", "gamma", gamma)
        super().__init__(optimizer)

    def lr_at(self, epoch: int, group: int = 0) -> float:
        return self.base_lrs[group] * self.gamma**epoch


class PolynomialLR(LRScheduler):
    """lr · (1 − epoch / total_iters) ** power, and 0 from total_iters on."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0) -> None:
        self.total_iters = validate.integer("PolynomialLR", "total_iters", total_iters, least=1)
        self.power = finite_number("PolynomialLR", "power", power)
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
        self.eta_min = finite_number("CosineAnnealingLR", "eta_min", eta_min)
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
        self.eta_min = finite_number(kind, "eta_min", eta_min)
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
            finite_number("OneCycleLR", name, value)
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
        self.max_lrs = [finite_number("OneCycleLR", "max_lr", lr) for lr in most]
        self.total_steps, self.pct_start = total_steps, pct_start
        self.initial_lrs = [finite_number("OneCycleLR", "max_lr / div_factor", lr / div_factor) for lr in self.max_lrs]
        self.min_lrs = [
            finite_number("OneCycleLR", "max_lr / div_factor / final_div_factor", lr / final_div_factor)
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
            finite_number(op, name, value)
            for name, value in {"factor": factor, "threshold": threshold, "eps": eps}.items()
        )
        if self.factor >= 1:
            raise ValueError(f"{op}: factor must be at least 0 and less than 1, got {factor}")
        self.patience, self.cooldown = (
            validate.integer(op, name, value, least=0)
            for name, value in {"patience": patience, "cooldown": cooldown}.items()
        )
        least = _for_each_group(op, "min_lr", "a number", min_lr, optimizer)
        self.min_lrs = [finite_number(op, "min_lr", lr) for lr in least]
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
