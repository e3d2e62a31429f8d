"""Choosing a backend: GPUCNN_BACKEND, use_backend, available_backends.

A tensor carries its backend. The choice made here is only the default for tensors made without one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gpucnn.backends.base import ACTIVATIONS, Array, Backend, Divisor

__all__ = ["ACTIVATIONS", "Array", "Backend", "Divisor", "available_backends", "get_backend", "use_backend"]

_NAMES = ("numpy",)
_made: dict[str, Backend] = {}
_lock = threading.Lock()
_scope: ContextVar[Backend | None] = ContextVar("gpucnn_backend", default=None)


def available_backends() -> tuple[str, ...]:
    """The names of the backends that can run here."""
    return _NAMES


def get_backend(backend: str | Backend | None = None) -> Backend:
    """The backend of that name; None is the current default.

    The default is the innermost `use_backend` scope, else the environment variable GPUCNN_BACKEND, else "auto". It is
    read at each call, so it may be set before or after the import.

    Raises ValueError, naming the choices, for a name that does not exist.
    """
    if isinstance(backend, Backend):
        return backend
    if backend is None:
        scoped = _scope.get()
        if scoped is not None:
            return scoped
        name, source = os.environ.get("GPUCNN_BACKEND") or "auto", "GPUCNN_BACKEND"
    else:
        name, source = backend, "backend"
    if name == "auto":
        name = "numpy"
    if name not in _NAMES:
        raise ValueError(f"{source} is {name!r}, but the backends are {', '.join(('auto', *_NAMES))}")
    with _lock:
        if name not in _made:
            from gpucnn.backends.numpy_backend import NumpyBackend

            _made[name] = NumpyBackend()
        return _made[name]


@contextmanager
def use_backend(backend: str | Backend) -> Iterator[Backend]:
    """Make `backend` the default for new tensors inside a with block, in this thread.

    >>> with gpucnn.use_backend("numpy"):
    ...     x = gpucnn.zeros(2, 3)
    """
    chosen = get_backend(backend)
    token = _scope.set(chosen)
    try:
        yield chosen
    finally:
        _scope.reset(token)
