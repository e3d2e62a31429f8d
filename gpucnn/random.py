"""Randomness: an explicit seeded generator, the same numbers on every backend."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from gpucnn.backends import Backend, get_backend
from gpucnn.dtypes import named
from gpucnn.functional import validate
from gpucnn.live import CaptureError
from gpucnn.tensor import Scoped, Tensor, _size, checked_dtype, checked_shape, tensor

_lock = threading.Lock()  # of the positions in the streams
if hasattr(os, "register_at_fork"):  # else a child of a process with threads could find it locked for good
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Generator:
    """A source of random numbers for initial weights (drawn on the host) and dropout masks (made by each backend).

    Both are counter-based (Philox), so the whole state is a seed and two positions; `state` and `set_state` save it.
    """

    def __init__(self, seed: int = 0) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start anew from `seed` (0 … 2⁶⁴ − 1)."""
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
            raise ValueError(f"a seed is an int from 0 to 2**64 - 1, got {seed!r}")
        self.seed = int(seed)
        self.offset = 0
        self.host = np.random.Generator(np.random.Philox(self.seed))
        return self

    def reserve(self, count: int) -> tuple[int, int]:
        """(seed, offset) of the next `count` words of the backend's Philox stream; four words a counter step.

        Nobody gets the same words again, in whatever thread.
        """
        with _lock:
            offset = self.offset
            self.offset += -(-count // 4)
        return self.seed, offset

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here, as plain numbers and lists (JSON)."""
        host = self.host.bit_generator.state
        return {
            "seed": self.seed,
            "offset": self.offset,
            "counter": [int(n) for n in host["state"]["counter"]],
            "key": [int(n) for n in host["state"]["key"]],
            "buffer": [int(n) for n in host["buffer"]],
            "buffer_pos": int(host["buffer_pos"]),
            "has_uint32": int(host["has_uint32"]),
            "uinteger": int(host["uinteger"]),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned. Raises ValueError, and changes nothing, for anything else."""
        try:
            twin, offset = Generator(state["seed"]), int(state["offset"])
            twin.host.bit_generator.state = {
                "bit_generator": "Philox",
                "state": {
                    "counter": np.array(state["counter"], dtype=np.uint64),
                    "key": np.array(state["key"], dtype=np.uint64),
                },
                "buffer": np.array(state["buffer"], dtype=np.uint64),
                "buffer_pos": state["buffer_pos"],
                "has_uint32": state["has_uint32"],
                "uinteger": state["uinteger"],
            }
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"this is no state of a Generator: {type(error).__name__} {error}") from error
        self.seed, self.offset, self.host = twin.seed, offset, twin.host


default_generator = Generator(0)
_scope: ContextVar[Generator | None] = ContextVar("gpucnn_generator", default=None)


def get_generator(generator: Generator | None = None) -> Generator:
    """The generator given, else that of the innermost `use_generator`, else the one of the process."""
    return generator or _scope.get() or default_generator


def use_generator(generator: Generator) -> Scoped[Generator]:
    """Draw weights and masks from `generator` inside a with block or a decorated function, in this thread.

    All threads share the generator of the process, so what each of them draws depends on who comes first. Trainings
    that are to be repeatable in threads at the same time take one each. Raises TypeError for anything else.

    >>> with gpucnn.use_generator(gpucnn.Generator(3)):
    ...     model = nn.Linear(4, 2)
    """
    if not isinstance(generator, Generator):
        raise TypeError(f"use_generator: generator must be a gpucnn.Generator, got {generator!r}")
    return Scoped(_scope, lambda: generator)


def manual_seed(seed: int) -> Generator:
    """Seed the default generator, or that of `use_generator`: the same initial weights and dropout masks follow, on
    every backend."""
    return get_generator().manual_seed(seed)


def _host(generator: Generator | None, backend: str | Backend | None) -> np.random.Generator:
    if get_backend(backend).capturing:
        raise CaptureError("the step draws random numbers on the host, which would be the same in every call")
    return get_generator(generator).host


def _drawn(values: np.ndarray[Any, Any], requires_grad: bool, backend: str | Backend | None) -> Tensor:
    return tensor(values.astype(np.float32), requires_grad=requires_grad, backend=backend)


def rand(
    *size: Any,
    generator: Generator | None = None,
    requires_grad: bool = False,
    backend: str | Backend | None = None,
) -> Tensor:
    """float32 numbers uniform in [0, 1): rand(2, 3) or rand((2, 3))."""
    return _drawn(_host(generator, backend).random(checked_shape(_size(size)), np.float32), requires_grad, backend)


def randn(
    *size: Any,
    generator: Generator | None = None,
    requires_grad: bool = False,
    backend: str | Backend | None = None,
) -> Tensor:
    """float32 numbers from the standard normal distribution."""
    return _drawn(_host(generator, backend).standard_normal(checked_shape(_size(size))), requires_grad, backend)


def rand_like(input: Tensor, *, generator: Generator | None = None, requires_grad: bool = False) -> Tensor:
    """`rand` in the shape, the dtype and on the backend of `input`."""
    return _like("rand_like", input, rand, generator).requires_grad_(requires_grad)


def randn_like(input: Tensor, *, generator: Generator | None = None, requires_grad: bool = False) -> Tensor:
    """`randn` in the shape, the dtype and on the backend of `input`."""
    return _like("randn_like", input, randn, generator).requires_grad_(requires_grad)


def _like(op: str, input: Tensor, draw: Callable[..., Tensor], generator: Generator | None) -> Tensor:
    validate.floating(op, input=input)
    return draw(input.shape, generator=generator, backend=input.backend).to(input.dtype)


def randint(
    low: int,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = np.int64,
    backend: str | Backend | None = None,
) -> Tensor:
    """Integers from `low` to high − 1, all alike: randint(low, high, size), or randint(high, size) from 0."""
    if size is None:
        low, high, size = 0, low, high
    if size is None:
        raise TypeError(f"randint: it needs a size, such as randint({high!r:.20}, (2, 3))")
    first, end = validate.integer("randint", "low", low, -(2**63)), validate.integer("randint", "high", high)
    if not first < end <= 2**63:
        raise ValueError(f"randint: high must be above low and at most 2**63, got low={low} and high={high}")
    shape = checked_shape(size if isinstance(size, Sequence) else (size,))
    values = _host(generator, backend).integers(first, end, shape)
    return tensor(values, checked_dtype(named(dtype)), backend=backend)


def randperm(
    n: int, *, generator: Generator | None = None, dtype: Any = np.int64, backend: str | Backend | None = None
) -> Tensor:
    """The numbers 0 … n − 1 in random order."""
    (count,) = checked_shape([validate.integer("randperm", "n", n, 0)])
    return tensor(_host(generator, backend).permutation(count), checked_dtype(named(dtype)), backend=backend)
