"""What a captured step has to do with the host: numbers that differ from step to step, and what can't be captured."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class CaptureError(RuntimeError):
    """Something that a graph can't hold: str() says what, and what to do."""


# How many arrays of parameters and buffers were replaced by others in this process: a graph refers to arrays.
replaced = SimpleNamespace(arrays=0)


class Live(Generic[T]):
    """A learning rate, a step count, a position in a random stream: computed when it is first asked for, and by a graph
    anew before each of its launches.

    compute() may move on: count a step, reserve random words. Whoever may be captured asks for such a value only where
    it is used, so that a capture, which uses none, moves nothing on. is_stale() says that a graph with this value must
    not be launched again, since what it launches no longer fits.
    """

    def __init__(self, compute: Callable[[], T], is_stale: Callable[[], bool] = lambda: False) -> None:
        self.compute, self.is_stale = compute, is_stale
        self._value: list[T] = []

    def __call__(self) -> T:
        """The value; the same at each call."""
        if not self._value:
            self._value.append(self.compute())
        return self._value[0]

    def then(self, function: Callable[[T], U]) -> Live[U]:
        """function(value), live too."""
        return Live(lambda: function(self.compute()), self.is_stale)
