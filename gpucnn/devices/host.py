"""HostDevice: what the devices share whose memory is the host's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.devices import host_arrays
from gpucnn.devices.base import Constants, Device, Dim, KernelError, hash_of_kernels, kernel_folder
from gpucnn.devices.graph import HOST_READ, Arena, Block, Graph
from gpucnn.live import CaptureError


class _Place:
    """Memory of a block: its address, and what keeps it."""

    def __init__(self, block: Block, memory: np.ndarray[Any, Any], start: int) -> None:
        self.block, self.memory = block, memory
        self.ptr = memory.ctypes.data + start


class HostDevice(Device):
    """Arrays are NumPy's, and graphs are lists of what to call."""

    xp = host_arrays

    def synchronize(self) -> None:
        """Nothing to wait for."""
        if self.capturing is not None:
            raise CaptureError(HOST_READ)

    def to_numpy(self, array: Any) -> np.ndarray[Any, Any]:
        if self.capturing is not None:
            raise CaptureError(HOST_READ)
        return np.asarray(array)

    @contextmanager
    def measure(self) -> Iterator[Arena]:
        arena = Arena()

        def allocate(size: int) -> _Place:
            with host_arrays.using_allocator(None):  # under the limit, if there is one
                return _Place(arena.allocate(size), self.xp.empty(size, np.uint8), 0)

        self.measuring = arena
        try:
            with host_arrays.using_allocator(allocate):
                yield arena
        finally:
            self.measuring = None

    @contextmanager
    def capture(self, measured: Arena) -> Iterator[Graph]:
        graph = Graph(self.xp, measured)
        memory = np.asarray(graph.memory)
        memory.fill(255)  # NaN, to whoever reads what nobody has written

        def allocate(size: int) -> _Place:
            block = graph.arena.allocate(size)
            return _Place(block, memory, block.start)

        self.capturing = graph
        try:
            with host_arrays.noting() as noted, host_arrays.using_allocator(allocate):
                yield graph
        finally:
            self.capturing = None
        graph.finish(lambda: _call_all(noted))

    def memory_report(self) -> dict[str, int]:
        """Bytes in arrays, "used" and "held" alike, and the "limit"; empty without one: nothing is counted then."""
        pool = host_arrays.pool
        return {} if pool.limit is None else {"used": pool.used, "held": pool.used, "limit": pool.limit}

    def set_memory_limit(self, limit: int | None) -> None:
        """Of the arrays that are made from now on, for all devices whose memory is the host's."""
        host_arrays.pool.limit = limit

    def owns(self, data: object) -> bool:
        return isinstance(data, host_arrays.HostArray)

    def noted(self, file: str, name: str, constants: Constants, grid: Dim, block: Dim, *arguments: Any) -> bool:
        """Note this launch, if launches are noted now."""
        if self.capturing is None:
            return False
        self.capturing.launches += 1
        again = host_arrays.unowned_all(arguments)
        return host_arrays.note(lambda: self.launch(file, name, dict(constants), grid, block, *again))

    def outside_of_arena(self) -> AbstractContextManager[object]:
        return host_arrays.using_allocator(None)


class Instrument(HostDevice):
    """A host device that runs the kernels of a folder, gpucnn's own if None, chosen as for that capability."""

    def __init__(self, kernels: Path | None, capability: tuple[int, int] | None) -> None:
        self.kernels = kernels or kernel_folder()
        self.capability = capability

    @cached_property
    def identity(self) -> dict[str, str]:
        capability = "none" if self.capability is None else ".".join(map(str, self.capability))
        return {"name": self.name, "capability": capability, "kernels": hash_of_kernels(self.kernels)}

    def check_blocks(self, name: str, grid: Dim, block: Dim, most: int, whose: str) -> None:
        """Raises KernelError for a launch without threads, or of blocks with more than its kernel's code allows."""
        if min(grid) < 1 or min(block) < 1 or math.prod(block) > most:
            raise KernelError(
                f"{name}: a grid of {grid} blocks of {block} threads can't be launched: {whose} {most} threads"
            )


def _call_all(noted: list[Callable[[], object]]) -> None:
    with np.errstate(all="ignore"):  # as functional computes
        for call in noted:
            call()
