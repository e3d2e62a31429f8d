"""One thread that computes what the page asks for, one thing at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Queue
from typing import Any, TypeVar

T = TypeVar("T")

_MOST_WAITING = 16


class Worker:
    """Jobs run in the order in which they came. The thread is a daemon: Ctrl-C need not wait for it."""

    def __init__(self) -> None:
        self._waiting: Queue[tuple[Future[Any], Callable[[], Any]]] = Queue(_MOST_WAITING)
        threading.Thread(target=self._run, name="gpucnn-page", daemon=True).start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """The job's future; cancelling it before it has begun takes it out. Raises queue.Full if too many wait."""
        future: Future[T] = Future()
        self._waiting.put_nowait((future, job))
        return future

    def _run(self) -> None:
        while True:
            future, job = self._waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # belongs to whoever asked
                future.set_exception(error)
