"""Graph: a step's launches, to be launched again as a whole; and the arena that its memory comes from.

While a step is captured nothing is computed. Whatever it allocates comes from one arena, which the graph owns, so a
launch of the graph touches no memory that anybody else was given since.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpucnn.live import CaptureError, Live

ALIGNMENT = 256  # bytes, of every block of an arena: as cudaMalloc aligns
CONTROL_BYTES = 1 << 14  # room for the live numbers of a graph: a thousand dropout layers


HOST_READ = (
    "the step reads values on the host (item(), float(), bool(), numpy() or print()); return the tensor "
    "and read it after the step"
)
HOST_COPY = (
    "the step hands values on the host to the device; make them an argument of the step, or a tensor before the step"
)


MORE_MEMORY = "the step needs more memory than in the call before; it must allocate the same in every call"


class Block:
    """A part of an arena, which goes back when nothing refers to it any more."""

    __slots__ = ("__weakref__", "arena", "bytes", "start")

    def __init__(self, arena: Arena, start: int, size: int) -> None:
        self.arena, self.start, self.bytes = arena, start, size

    @property
    def stop(self) -> int:
        """The first byte behind it."""
        return self.start + self.bytes

    def __del__(self) -> None:
        self.arena.free(self.start, self.bytes)


class Arena:
    """First fit by liveness: each block goes to the lowest place where no living block is. Holds no memory itself.

    The places depend on the order of allocating and freeing alone. So a step that ran once without a limit
    (`Device.measure`) fits into `bytes` when it is captured: it allocates and frees in the same order.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.constant_bytes = 0  # of values from the host, which live as long as the graph and are none of its blocks
        self.bytes = 0  # the end of the highest block so far
        self.used = 0  # in living blocks
        self.peak = 0  # the most that was ever used at once
        self._starts: list[int] = []  # of the living blocks, ascending
        self._stops: list[int] = []
        self._freed: deque[int] = deque()  # where blocks begin that are no longer alive, but still in these lists

    def allocate(self, size: int) -> Block:
        """A block of at least that many bytes. Raises CaptureError if the limit leaves no place."""
        size = _aligned(max(size, 1))
        while self._freed:
            at = bisect_left(self._starts, self._freed.popleft())
            del self._starts[at], self._stops[at]
        start, at = 0, 0
        while at < len(self._starts) and self._starts[at] - start < size:
            start = self._stops[at]
            at += 1
        if self.limit is not None and start + size > self.limit:
            raise CaptureError(MORE_MEMORY)
        self._starts.insert(at, start)
        self._stops.insert(at, start + size)
        self.bytes = max(self.bytes, start + size)
        self.used += size
        self.peak = max(self.peak, self.used)
        return Block(self, start, size)

    def count_constant(self, size: int) -> None:
        """Note that many bytes of values from the host."""
        self.constant_bytes += _aligned(size)

    def free(self, start: int, size: int) -> None:
        """Give a block's place to those that come; a block does so by itself in the end.

        Python may collect garbage, blocks among it, while `allocate` looks for a place: so the lists stay as they are.
        """
        self._freed.append(start)
        self.used -= size


class Report(NamedTuple):
    """What a graph takes. `bytes` of memory are its own, of which at most `peak` hold something at a time."""

    bytes: int
    peak: int
    launches: int


class Graph:
    """What was launched in a `Device.capture` block; `launch` launches all of it, with live numbers computed anew."""

    def __init__(self, xp: ModuleType, measured: Arena) -> None:
        self.arena = Arena(measured.bytes)
        self.memory = xp.empty(max(measured.bytes, 1), np.uint8)
        self.launches = 0  # of our kernels; what the array library launches by itself is not counted
        self.keeps: list[Any] = []  # memory from outside of the arena that the launches refer to
        self.replay: Callable[[], object] | None = None  # set when the capture has ended well
        self._xp = xp
        self._control = xp.empty(CONTROL_BYTES, np.uint8)
        self._host = np.zeros(CONTROL_BYTES, np.uint8)
        self._host_bytes = 0
        self._live: dict[int, tuple[Live[Any], list[tuple[np.ndarray[Any, Any], np.dtype[Any], Any]]]] = {}
        self._constants: list[tuple[Any, np.ndarray[Any, Any]]] = []
        self._constant_memory = xp.empty(max(measured.constant_bytes, 1), np.uint8)
        self._constant_bytes = 0

    def live(self, numbers: Live[Any], count: int, dtype: np.dtype[Any]) -> Any:
        """The array on the device in which each launch finds the numbers; one for each Live and dtype."""
        places = self._live.setdefault(id(numbers), (numbers, []))[1]
        for _, kind, array in places:
            if kind == dtype:
                return array
        start, stop = self._host_bytes, self._host_bytes + count * dtype.itemsize
        if stop > CONTROL_BYTES:
            raise CaptureError(f"the step has more than {CONTROL_BYTES} bytes of numbers that change from call to call")
        self._host_bytes = -(-stop // 16) * 16
        array = self._control[start:stop].view(dtype)
        places.append((self._host[start:stop].view(dtype), dtype, array))
        return array

    def constant(self, values: np.ndarray[Any, Any]) -> Any:
        """An array on the device that holds these values, before the first launch and ever after."""
        start = self._constant_bytes
        self._constant_bytes += _aligned(values.nbytes)
        if self._constant_bytes > self._constant_memory.size:
            raise CaptureError(MORE_MEMORY)
        array = self._constant_memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        self._constants.append((array, values))
        return array

    def finish(self, replay: Callable[[], object]) -> None:
        """The capture has ended well; from now on `launch` replays."""
        for array, values in self._constants:
            array[...] = self._xp.asarray(values)
        self._constants.clear()
        self.replay = replay

    def is_stale(self) -> bool:
        """Whether it must not be launched any more: it refers to arrays that were replaced since."""
        return any(numbers.is_stale() for numbers, _ in self._live.values())

    def launch(self) -> None:
        """Launch everything, in the current stream. Raises RuntimeError for a graph whose capture has failed."""
        if self.replay is None:
            raise RuntimeError("this graph was not captured to the end: there is nothing to launch")
        for numbers, places in self._live.values():
            values = numbers.compute()
            for host, _, _ in places:
                host[:] = values
        if self._host_bytes:
            used = self._host_bytes
            self._control[:used] = self._xp.asarray(self._host[:used])
        self.replay()

    def report(self) -> Report:
        """Bytes and launches."""
        return Report(self.memory.size, self.arena.peak, self.launches)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
