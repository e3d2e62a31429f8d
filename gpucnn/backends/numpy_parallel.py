"""Blocks of work over the cores for the NumPy backend.

NumPy lets go of the interpreter lock inside its loops and BLAS, so plain threads run in parallel. How a problem is cut
into blocks depends on its shapes alone and every block writes to a place of its own, so the bits of a result depend
neither on timing nor on the number of threads.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
from threadpoolctl import LibController, ThreadpoolController

from gpucnn.backends.base import Array

Job = Callable[[int], None]

# Scratch that is larger than this is freed after use.
KEPT_BYTES = 1 << 23
MOST_THREADS = 1024


def thread_count() -> int:
    """GPUCNN_THREADS, else OMP_NUM_THREADS, else the cores that this process may use.

    Raises ValueError for a GPUCNN_THREADS that is no such number; the other variable may mean more than this.
    """
    for variable in ("GPUCNN_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(variable, "")
        if re.fullmatch("[0-9]{1,9}", value) and 1 <= int(value) <= MOST_THREADS:
            return int(value)
        if value and variable == "GPUCNN_THREADS":
            raise ValueError(f"{variable} is {value!r:.60}, but must be a whole number from 1 to {MOST_THREADS}")
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def blas_libraries() -> list[LibController]:
    """Each BLAS that is loaded in this process."""
    return [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]


def blas_threads() -> list[tuple[Callable[[], int], Callable[[int], object]]]:
    """How each BLAS in this process is asked for its number of threads, and told it.

    OpenBLAS's own functions where they are found: a small network asks so often that threadpoolctl's wrappers would
    take a twentieth of its step.
    """
    found: list[tuple[Callable[[], int], Callable[[int], object]]] = []
    for library in blas_libraries():
        names = [f"{prefix}openblas_%s_num_threads{suffix}" for prefix in ("", "scipy_") for suffix in ("", "64_")]
        name = next((name for name in names if hasattr(library.dynlib, name % "set")), None)
        if name is None:
            found.append((library.get_num_threads, library.set_num_threads))
        else:
            found.append((getattr(library.dynlib, name % "get"), getattr(library.dynlib, name % "set")))
    return found


class _Thread(threading.local):
    in_a_row = False  # whether it is inside of `Workers.in_a_row`


_thread = _Thread()


class _Task:
    """The blocks of one call. Threads take the next block as they come free."""

    def __init__(self, job: Job, blocks: int) -> None:
        self.job = job
        self.blocks = blocks
        self.next_block = itertools.count()
        self.finished: list[int] = []
        self.errors: list[BaseException] = []
        self.all_finished: SimpleQueue[None] = SimpleQueue()

    def work(self) -> None:
        while (block := next(self.next_block)) < self.blocks:
            try:
                self.job(block)
            except BaseException as error:  # handed to the calling thread
                self.errors.append(error)
            self.finished.append(block)
            if len(self.finished) == self.blocks:
                self.all_finished.put(None)

    def wait(self) -> None:
        self.all_finished.get()
        if self.errors:
            raise self.errors[0]


class Workers:
    """The calling thread and `threads − 1` helpers, with BLAS at one thread while they run."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        self._process = 0
        self._blas = blas_threads()
        self._blas_lock = threading.Lock()
        self._running = 0
        self._forked_within = False  # a run of another thread, which has left BLAS at one thread
        self._blas_threads: list[int] = []

    def run(self, job: Job, blocks: int) -> None:
        """job(0), …, job(blocks − 1), in any order and in parallel. Floating-point errors silently give inf and NaN."""
        with self.in_a_row():
            helpers = min(self.threads, blocks) - 1
            if helpers < 1:
                for block in range(blocks):
                    job(block)
                return
            self._start()
            task = _Task(job, blocks)
            for _ in range(helpers):
                self._tasks.put(task)
            task.work()
            task.wait()

    def in_a_row(self) -> AbstractContextManager[None]:
        """BLAS at one thread, also between the runs of this thread inside, of which a small one is over in 10 µs."""
        return nullcontext() if _thread.in_a_row else _InARow(self)

    def _start(self) -> None:
        """Start the helpers, again in a forked child: threads do not survive a fork."""
        if self._process == os.getpid():
            return
        with self._blas_lock:
            if self._process != os.getpid():
                self._tasks = SimpleQueue()
                for _ in range(self.threads - 1):
                    threading.Thread(target=_help, args=(self._tasks,), name="gpucnn", daemon=True).start()
                self._process = os.getpid()

    def before_fork(self) -> None:
        """Wait until no other thread has the lock: the child would wait for that thread, which it does not have."""
        self._blas_lock.acquire()

    def after_fork(self, in_child: bool) -> None:
        """In a child there is but the thread that forks: the runs of other threads have never been."""
        if in_child:
            self._forked_within, self._running = self._forked_within or self._running > 0, 0
        self._blas_lock.release()

    def hold_blas(self) -> None:
        with self._blas_lock:
            if not self._running:
                if not self._forked_within:
                    self._blas_threads = [get() for get, _ in self._blas]
                self._forked_within = False
                for _, set_threads in self._blas:
                    set_threads(1)
            self._running += 1

    def release_blas(self) -> None:
        with self._blas_lock:
            self._running -= 1
            if not self._running:
                for (_, set_threads), threads in zip(self._blas, self._blas_threads, strict=True):
                    set_threads(threads)


class _InARow:
    """What `Workers.in_a_row` returns. A class, since contextlib's generators take longer than a small product."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._silent = np.errstate(all="ignore")

    def __enter__(self) -> None:
        self._workers.hold_blas()
        _thread.in_a_row = True
        self._silent.__enter__()

    def __exit__(self, *_: object) -> None:
        self._silent.__exit__(None, None, None)
        _thread.in_a_row = False
        self._workers.release_blas()


def _help(tasks: SimpleQueue[_Task]) -> None:
    np.seterr(all="ignore")
    while True:
        tasks.get().work()


workers = Workers(thread_count())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=workers.before_fork,
        after_in_parent=lambda: workers.after_fork(False),
        after_in_child=lambda: workers.after_fork(True),
    )


def cut(length: int, parts: int) -> list[slice]:
    """`length` in equal parts, none of them empty."""
    parts = min(parts, length)
    if parts <= 1:
        return [slice(0, length)] if length else []
    edges = [length * i // parts for i in range(parts + 1)]
    return [slice(first, end) for first, end in pairwise(edges)]


_local = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array that this thread reuses: the last one of that name is overwritten."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    kept: dict[str, Array] = _local.__dict__
    buffer = kept.get(name)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        if size <= KEPT_BYTES:
            kept[name] = buffer
    return buffer[:size].view(dtype).reshape(shape)
