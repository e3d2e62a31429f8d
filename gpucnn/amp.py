"""Mixed precision, with torch.amp's names: `autocast` and `GradScaler`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpucnn.dtypes import is_half
from gpucnn.functional import validate
from gpucnn.functional.casting import autocast, is_autocast_enabled
from gpucnn.optim import Optimizer
from gpucnn.tensor import Tensor

__all__ = ["GradScaler", "autocast", "is_autocast_enabled"]

# What gradients are multiplied with and divided by is a normal number of float32.
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class GradScaler:
    """Keeps the gradients of float16 from vanishing: torch.amp.GradScaler. Micikevicius et al. 2018.

    The loss is multiplied by a scale before `backward`, and the gradients are divided by it before the optimizer sees
    them. If one is infinite or NaN the step is skipped, and the scale becomes smaller by `backoff_factor`; after
    `growth_interval` steps without any it grows by `growth_factor`. enabled=False does nothing of this.

    >>> scaler = gpucnn.GradScaler()
    >>> scaler.scale(loss).backward()
    >>> scaler.step(optimizer)
    >>> scaler.update()
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        for name, value in {"growth_factor": growth_factor, "backoff_factor": backoff_factor}.items():
            validate.number("GradScaler", name, value)
        growth_interval = validate.integer("GradScaler", "growth_interval", growth_interval)
        if not growth_factor > 1 or not 0 < backoff_factor < 1 or growth_interval < 1:
            raise ValueError(
                "GradScaler: growth_factor must be above 1, backoff_factor in 0 … 1 and growth_interval positive, got "
                f"{growth_factor}, {backoff_factor} and {growth_interval}"
            )
        self._scale = _checked_scale("init_scale", init_scale)
        self._growth_factor, self._backoff_factor = float(growth_factor), float(backoff_factor)
        self._growth_interval, self._growth_tracker = growth_interval, 0
        self._enabled = enabled
        self._finite: dict[int, bool] = {}  # by the optimizers whose gradients were divided since the last update
        self._stepped: set[int] = set()

    def scale(self, outputs: Any) -> Any:
        """A tensor, or a list or tuple of them, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs * self._scale
        if isinstance(outputs, Iterable):
            return type(outputs)(map(self.scale, outputs))  # type: ignore[call-arg]
        raise TypeError(f"GradScaler: outputs must be tensors, got {type(outputs).__name__}")

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of this optimizer's parameters by the scale, in place: before they are clipped.

        Once an optimizer and `update`; `step` does it if nobody has. Raises RuntimeError for a second time, ValueError
        for a gradient in a half type, which might have lost what scaling saved.
        """
        if not self._enabled:
            return
        key = id(optimizer)
        if key in self._stepped:
            raise RuntimeError("GradScaler: unscale_() comes after step(); call it before")
        if key in self._finite:
            raise RuntimeError("GradScaler: unscale_() has already been called for this optimizer since update()")
        gradients = [p.grad for p in optimizer.params if p.grad is not None]
        for gradient in gradients:
            if is_half(gradient.dtype):
                raise ValueError(
                    f"GradScaler: a gradient is {gradient.dtype}; keep the parameters float32 and let autocast convert "
                    "them"
                )
        finite = True
        for gradient in gradients:
            array = gradient._writable()
            finite = finite & gradient.backend.xp.isfinite(array).all()
            with np.errstate(all="ignore"):
                array /= self._scale  # its reciprocal may be denormal, which CuPy's kernels take for 0
        self._finite[key] = bool(finite)  # one answer for all: a GPU is waited for once

    def found_inf(self, optimizer: Optimizer) -> bool:
        """Whether `unscale_` has found an infinite gradient or NaN, so that `step` will skip (PyTorch hides this)."""
        return not self._finite.get(id(optimizer), True)

    def step(self, optimizer: Optimizer) -> None:
        """optimizer.step(), unless a gradient is infinite or NaN. Raises RuntimeError for a second before `update`."""
        if not self._enabled:
            optimizer.step()
            return
        key = id(optimizer)
        if key in self._stepped:
            raise RuntimeError("GradScaler: step() has already been called for this optimizer since update()")
        if key not in self._finite:
            self.unscale_(optimizer)
        if not any(p.grad is not None for p in optimizer.params):
            raise RuntimeError("GradScaler: no parameter of this optimizer has a gradient; call backward() first")
        if self._finite[key]:
            optimizer.step()
        self._stepped.add(key)

    def update(self, new_scale: float | None = None) -> None:
        """Once a training step, after all optimizers: the scale shrinks or grows as found, or becomes `new_scale`.

        Raises RuntimeError if no gradient has been looked at since the last time.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = _checked_scale("new_scale", new_scale)
        elif not self._finite:
            raise RuntimeError("GradScaler: update() comes before any step() or unscale_()")
        elif not all(self._finite.values()):
            self._scale = max(self._scale * self._backoff_factor, SMALLEST)
            self._growth_tracker = 0
        else:
            self._growth_tracker += 1
            if self._growth_tracker == self._growth_interval:
                if self._scale * self._growth_factor <= LARGEST:
                    self._scale *= self._growth_factor
                self._growth_tracker = 0
        self._finite.clear()
        self._stepped.clear()

    def get_scale(self) -> float:
        """The scale; 1 if not enabled."""
        return self._scale if self._enabled else 1.0

    def is_enabled(self) -> bool:
        """Whether it does anything."""
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, under PyTorch's names; empty if not enabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self._scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._growth_tracker,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned. Raises ValueError for an empty one and an impossible scale."""
        if not self._enabled:
            return
        if not state_dict:
            raise ValueError("GradScaler: the state is empty, as that of a GradScaler with enabled=False is")
        names = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
        missing = [name for name in names if name not in state_dict]
        if missing:
            raise ValueError(f"GradScaler: the state lacks {', '.join(missing)}")
        scale = _checked_scale("scale", state_dict["scale"])
        growth, backoff = (validate.number("GradScaler", name, state_dict[name]) for name in names[1:3])
        interval, tracker = (validate.integer("GradScaler", name, state_dict[name]) for name in names[3:])
        self._scale, self._growth_factor, self._backoff_factor = scale, growth, backoff
        self._growth_interval, self._growth_tracker = interval, tracker


def _checked_scale(name: str, value: Any) -> float:
    scale = float(validate.number("GradScaler", name, value))
    if not SMALLEST <= scale <= LARGEST:
        raise ValueError(
            f"GradScaler: {name} must be positive, got {value}; a scale is from {SMALLEST:g} to {LARGEST:g}, and "
            "65536.0 a good first one"
        )
    return scale
