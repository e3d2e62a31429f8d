"""Optimisers, learning-rate schedules and gradient clipping, with torch.optim's names and formulas."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from gpucnn.backends import Array, Backend
from gpucnn.backends.base import AdamSettings, RMSpropSettings, SGDSettings
from gpucnn.dtypes import is_half
from gpucnn.functional import validate
from gpucnn.live import CaptureError, Live
from gpucnn.tensor import Tensor, no_grad, zero_grad

T = TypeVar("T")


class Optimizer(ABC):
    """Steps parameters along their gradients; one without a gradient (frozen, not used) stays as it is.

    `lr` may be changed between steps, as schedules do.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        if isinstance(params, Tensor) or not isinstance(params, Iterable):
            raise TypeError(f"{type(self).__name__}: params must be several tensors, got a {type(params).__name__}")
        self.params = list(params)
        if not self.params:
            raise ValueError(f"{type(self).__name__}: there are no parameters to optimise")
        for i, p in enumerate(self.params):
            if not isinstance(p, Tensor) or not p.is_leaf:
                raise TypeError(
                    f"{type(self).__name__}: parameter {i} is not a leaf tensor, as a module's parameters are"
                )
            if is_half(p.dtype):
                raise TypeError(
                    f"{type(self).__name__}: parameter {i} is {p.dtype}, too coarse for small steps; keep parameters "
                    "float32 and compute inside gpucnn.autocast"
                )
        if len({id(p) for p in self.params}) < len(self.params):
            raise ValueError(f"{type(self).__name__}: a parameter is given twice, it would be stepped twice")
        for name, value in {"lr": lr, "weight_decay": weight_decay}.items():
            if not validate.number(type(self).__name__, name, value) >= 0:
                raise ValueError(f"{type(self).__name__}: {name} must not be negative, got {value}")
        self.lr, self.weight_decay = float(lr), float(weight_decay)  # of a NumPy number, moments would be float64
        self._state: list[dict[str, Array | None]] = [dict.fromkeys(self._moments) for _ in self.params]

    _settings: tuple[str, ...] = ("lr", "weight_decay")  # what a state keeps besides the arrays
    _moments: tuple[str, ...] = ()  # the names of the arrays kept per parameter
    momentum = 0.0  # of the optimisers that have none

    @abstractmethod
    def _update(self, backend: Backend, params: list[Array], grads: list[Array], state: list[dict[str, Any]]) -> None:
        """One step on these arrays, in place, with their moments."""

    def step(self) -> None:
        """Change every parameter that has a gradient."""
        gradients = [p.grad for p in self.params]
        ready = [(p, g, s) for p, g, s in zip(self.params, gradients, self._state, strict=True) if g is not None]
        if ready:
            backend = ready[0][0].backend
            before = [dict(moments) for moments in self._state] if backend.capturing else []
            with no_grad():
                params = [p._writable() for p, _, _ in ready]
            grads = [g.array for _, g, _ in ready]
            try:
                self._update(backend, params, grads, [s for _, _, s in ready])
            except MemoryError as error:
                from gpucnn.memory import out_of_memory  # it knows optimizers

                raise out_of_memory(error, "optimizer's step", backend) from None
            for moments, earlier in zip(self._state, before, strict=False):
                if any(value is not earlier[name] for name, value in moments.items()):
                    self._state = before
                    raise CaptureError("the optimizer has yet to make its first step; let it make one before")

    def _live(self, settings: Callable[[], T], has_changed: Callable[[], bool] = lambda: False) -> Live[T]:
        """The settings of each step to come; stale, for a graph, once it would use moments that nobody else does."""
        state, momentum = self._state, bool(self.momentum)
        return Live(settings, lambda: self._state is not state or bool(self.momentum) != momentum or has_changed())

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
        """Everything that a resumed run needs: numbers, and the moments as numpy arrays."""
        arrays = {
            f"{name}.{i}": np.array(p.backend.to_numpy(value))
            for i, (p, s) in enumerate(zip(self.params, self._state, strict=True))
            for name, value in s.items()
            if value is not None
        }
        return {name: getattr(self, name) for name in self._settings} | {"arrays": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, with its settings. A state of an earlier version holds only the lr.

        Raises ValueError, before any change, if a moment does not fit.
        """
        if not isinstance(state, dict) or not {"lr", "arrays"} <= state.keys():
            raise ValueError(f"{type(self).__name__}: a state has lr and arrays, this is {state!r:.100}")
        loaded: list[dict[str, Array | None]] = [dict.fromkeys(self._moments) for _ in self.params]
        for key, value in state["arrays"].items():
            name, _, number = key.rpartition(".")
            i = int(number) if number.isdigit() else -1
            if name not in self._moments or not 0 <= i < len(self.params) or value.shape != self.params[i].shape:
                raise ValueError(
                    f"{type(self).__name__}: the state's {key} of shape {value.shape} does not fit these parameters"
                )
            p = self.params[i]
            loaded[i][name] = p.backend.asarray(np.array(value), p.dtype)
        for name in self._settings:
            value = state.get(name, getattr(self, name))
            setattr(self, name, tuple(value) if isinstance(value, list) else value)  # JSON has no tuples
        self._state = loaded


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: torch.optim.SGD."""

    _settings = (*Optimizer._settings, "momentum", "dampening", "nesterov")
    _moments = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        if not validate.number("SGD", "momentum", momentum) >= 0:
            raise ValueError(f"SGD: momentum must not be negative, got {momentum}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("SGD: nesterov needs a momentum and no dampening")
        self.momentum, self.dampening, self.nesterov = float(momentum), float(dampening), nesterov

    def _update(self, backend: Backend, params: list[Array], grads: list[Array], state: list[dict[str, Any]]) -> None:
        def settings() -> SGDSettings:
            return SGDSettings(self.lr, self.momentum, self.dampening, self.weight_decay, self.nesterov)

        before = [s["momentum_buffer"] for s in state]
        moments = backend.sgd_update(params, grads, before, self._live(settings))
        for s, moment in zip(state, moments, strict=True):
            s["momentum_buffer"] = moment


class Adam(Optimizer):
    """Adam (Kingma & Ba 2014): torch.optim.Adam; weight_decay is an L2 penalty here, decoupled in AdamW."""

    _settings = (*Optimizer._settings, "betas", "eps")
    _moments = ("exp_avg", "exp_avg_sq")
    _decoupled = False

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        if len(betas) != 2 or not all(0 <= validate.number(type(self).__name__, "betas", b) < 1 for b in betas):
            raise ValueError(f"{type(self).__name__}: betas must be in [0, 1), got {betas}")
        if not validate.number(type(self).__name__, "eps", eps) >= 0:
            raise ValueError(f"{type(self).__name__}: eps must not be negative, got {eps}")
        self.betas, self.eps = betas, eps
        self.steps = [0] * len(self.params)

    def _update(self, backend: Backend, params: list[Array], grads: list[Array], state: list[dict[str, Any]]) -> None:
        averages = self._zeros(backend, params, state, "exp_avg")
        squares = self._zeros(backend, params, state, "exp_avg_sq")
        numbers = [i for i, p in enumerate(self.params) if p.grad is not None]
        counts = [self.steps[i] for i in numbers]
        for count in sorted(set(counts)):  # one, unless some parameters have missed steps
            chosen = [at for at, n in enumerate(counts) if n == count]
            w, g, m, v = ([table[at] for at in chosen] for table in (params, grads, averages, squares))
            backend.adam_update(w, g, m, v, self._live_settings([numbers[at] for at in chosen]))

    def _live_settings(self, numbers: list[int]) -> Live[AdamSettings]:
        """Those of each step to come of these parameters, which have made equally many."""

        def settings() -> AdamSettings:
            for i in numbers:
                self.steps[i] += 1
            step = self.steps[numbers[0]]
            return AdamSettings(step, self.lr, self.betas, self.eps, self.weight_decay, self._decoupled)

        return self._live(settings, lambda: len({self.steps[i] for i in numbers}) > 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps": list(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict) or "steps" not in state:
            raise ValueError(f"{type(self).__name__}: a state has steps, this is {state!r:.100}")
        if len(state["steps"]) != len(self.params):
            raise ValueError(f"the state counts {len(state['steps'])} parameters, the optimiser has {len(self.params)}")
        super().load_state_dict(state)
        self.steps = list(state["steps"])


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017): torch.optim.AdamW."""

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


class RMSprop(Optimizer):
    """RMSprop (Hinton 2012): torch.optim.RMSprop, not centred."""

    _settings = (*Optimizer._settings, "alpha", "eps", "momentum")
    _moments = ("square_avg", "momentum_buffer")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        numbers = {"alpha": alpha, "eps": eps, "momentum": momentum}
        if not all(validate.number("RMSprop", name, value) >= 0 for name, value in numbers.items()):
            raise ValueError(f"RMSprop: alpha, eps and momentum must not be negative, got {alpha}, {eps}, {momentum}")
        self.alpha, self.eps, self.momentum = alpha, eps, momentum

    def _update(self, backend: Backend, params: list[Array], grads: list[Array], state: list[dict[str, Any]]) -> None:
        def settings() -> RMSpropSettings:
            return RMSpropSettings(self.lr, self.alpha, self.eps, self.weight_decay, self.momentum)

        squares = self._zeros(backend, params, state, "square_avg")
        before = [s["momentum_buffer"] for s in state]
        moments = backend.rmsprop_update(params, grads, squares, before, self._live(settings))
        for s, moment in zip(state, moments, strict=True):
            s["momentum_buffer"] = moment


# -- schedules -------------------------------------------------------------------------------------


class LRScheduler(ABC):
    """Sets the optimiser's lr as a function of how many steps it has been told of. Sets the first lr when made."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base_lr = optimizer.lr
        self.last_epoch = 0
        optimizer.lr = self.lr_at(0)

    @abstractmethod
    def lr_at(self, epoch: int) -> float:
        """The learning rate after `epoch` calls of step()."""

    def step(self) -> None:
        """One epoch (or batch, for schedules by batch) is over."""
        if self.optimizer.params[0].backend.capturing:
            raise CaptureError("scheduler.step() is called inside the step; call it after the step")
        self.last_epoch += 1
        self.optimizer.lr = self.lr_at(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: all its numbers."""
        return self._numbers()

    def _numbers(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if isinstance(value, int | float | tuple)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, with its settings. A state of an earlier version holds only two."""
        self.base_lr, self.last_epoch = state["base_lr"], state["last_epoch"]
        for name in self._numbers().keys() & state.keys():
            setattr(
                self, name, tuple(state[name]) if isinstance(state[name], list) else state[name]
            )  # as JSON has them
        self.optimizer.lr = self.lr_at(self.last_epoch)


class StepLR(LRScheduler):
    """lr · gamma ** (epoch // step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = validate.integer("StepLR", "step_size", step_size, least=1)
        self.gamma = validate.number("StepLR", "gamma", gamma)
        super().__init__(optimizer)

    def lr_at(self, epoch: int) -> float:
        return self.base_lr * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """lr · gamma for each of the milestones, counted in steps, that has been reached."""

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        self.milestones = tuple(sorted(validate.integers("MultiStepLR", "milestones", milestones)))
        self.gamma = validate.number("MultiStepLR", "gamma", gamma)
        super().__init__(optimizer)

    def lr_at(self, epoch: int) -> float:
        return self.base_lr * self.gamma ** bisect_right(self.milestones, epoch)


class ExponentialLR(LRScheduler):
    """lr · gamma ** epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = validate.number("ExponentialLR", "gamma", gamma)
        super().__init__(optimizer)

    def lr_at(self, epoch: int) -> float:
        return self.base_lr * self.gamma**epoch


class PolynomialLR(LRScheduler):
    """lr · (1 − epoch / total_iters) ** power, and 0 from total_iters on."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0) -> None:
        self.total_iters = validate.integer("PolynomialLR", "total_iters", total_iters, least=1)
        self.power = validate.number("PolynomialLR", "power", power)
        if self.power < 0:
            raise ValueError(f"PolynomialLR: power must not be negative, got {power}")
        super().__init__(optimizer)

    def lr_at(self, epoch: int) -> float:
        left: float = (1 - min(epoch, self.total_iters) / self.total_iters) ** self.power
        return self.base_lr * left


class LambdaLR(LRScheduler):
    """lr · lr_lambda(epoch). A state does not hold the function."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        if not callable(lr_lambda):
            raise TypeError(f"LambdaLR: lr_lambda must be a function of the step, got {lr_lambda!r:.100}")
        self.lr_lambda = lr_lambda
        super().__init__(optimizer)

    def lr_at(self, epoch: int) -> float:
        return self.base_lr * validate.number("LambdaLR", "what lr_lambda returns", self.lr_lambda(epoch))


class CosineAnnealingLR(LRScheduler):
    """From lr to eta_min along half a cosine in T_max steps, and back. Loshchilov & Hutter 2016."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.t_max = validate.integer("CosineAnnealingLR", "T_max", T_max, least=1)
        self.eta_min = validate.number("CosineAnnealingLR", "eta_min", eta_min)
        super().__init__(optimizer)

    def lr_at(self, epoch: int) -> float:
        return self.eta_min + (self.base_lr - self.eta_min) * (1 + math.cos(math.pi * epoch / self.t_max)) / 2


class OneCycleLR(LRScheduler):
    """Up from max_lr / div_factor to max_lr in pct_start of the steps, then down to the start / final_div_factor, both
    along a cosine: torch.optim.lr_scheduler.OneCycleLR (without its cycling of the momentum). Smith & Topin 2017.

    Call step() after every batch; raises ValueError after total_steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        names = ("max_lr", "pct_start", "div_factor", "final_div_factor")
        max_lr, pct_start, div_factor, final_div_factor = (
            validate.number("OneCycleLR", name, value)
            for name, value in zip(names, (max_lr, pct_start, div_factor, final_div_factor), strict=True)
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
        self.max_lr, self.total_steps, self.pct_start = max_lr, total_steps, pct_start
        self.initial_lr = max_lr / div_factor
        self.min_lr = self.initial_lr / final_div_factor
        super().__init__(optimizer)

    def lr_at(self, epoch: int) -> float:
        if epoch > self.total_steps:
            raise ValueError(f"OneCycleLR: step {epoch} comes after total_steps={self.total_steps}")
        top = self.pct_start * self.total_steps - 1
        last = self.total_steps - 1
        if epoch <= top:
            start, end, part = self.initial_lr, self.max_lr, epoch / top if top else 1.0
        else:
            start, end, part = self.max_lr, self.min_lr, min((epoch - top) / (last - top), 1.0) if last > top else 1.0
        return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


class WarmUp(LRScheduler):
    """Linear from 0 to the lr of `after` in the first `steps` steps, then `after` (which starts counting there).

    >>> WarmUp(optim.CosineAnnealingLR(optimizer, T_max=100), steps=5)
    """

    def __init__(self, after: LRScheduler, steps: int) -> None:
        self.after, self.steps = after, validate.integer("WarmUp", "steps", steps, least=1)
        super().__init__(after.optimizer)

    def lr_at(self, epoch: int) -> float:
        if epoch < self.steps:
            return self.after.lr_at(0) * (epoch + 1) / (self.steps + 1)
        return self.after.lr_at(epoch - self.steps)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.after.load_state_dict(state["after"])
        super().load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "after": self.after.state_dict()}


# -- clipping --------------------------------------------------------------------------------------


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients together so that their common Euclidean norm is at most max_norm; returns the norm before.

    torch.nn.utils.clip_grad_norm_. Raises ValueError if the norm is not finite: no scale could mend that.
    """
    if not validate.number("clip_grad_norm_", "max_norm", max_norm) >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm must not be negative, got {max_norm}")
    gradients = _gradients("clip_grad_norm_", parameters)
    with np.errstate(all="ignore"):
        total = math.sqrt(sum(float((g.array.astype(np.float64) ** 2).sum()) for g in gradients))
    if not math.isfinite(total):
        raise ValueError(f"clip_grad_norm_: the gradients' norm is {total}; lower the learning rate or look for NaN")
    scale = max_norm / (total + 1e-6)
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
