"""Choosing a backend: GPUCNN_BACKEND, use_backend, available_backends.

A tensor carries its backend. The choice made here is only the default for tensors made without one.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gpucnn.backends.base import ACTIVATIONS, NO_TAP, Array, Backend, Divisor
from gpucnn.backends.precision import get_precision, precision
from gpucnn.backends.tuning import use_tuning

__all__ = [
    "ACTIVATIONS",
    "NO_TAP",
    "Array",
    "Backend",
    "Divisor",
    "auto_choice",
    "available_backends",
    "get_backend",
    "get_precision",
    "precision",
    "use_backend",
    "use_tuning",
]

INSTRUMENTS = ("emulator", "ptx")  # they check the kernels; how long they take says nothing about any GPU
_NAMES = ("numpy", "cuda", *INSTRUMENTS)
_made: dict[str, Backend] = {}
_auto: list[tuple[str, str]] = []  # what auto_choice found out
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child must not find it locked by a thread that it does not have
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
_scope: ContextVar[Backend | None] = ContextVar("gpucnn_backend", default=None)
_logger = logging.getLogger("gpucnn")


def available_backends() -> tuple[str, ...]:
    """The names of the backends that can run here; `gpucnn doctor --backend NAME` says what one lacks."""
    return tuple(name for name in _NAMES if _lacks(name) is None)


def auto_choice() -> tuple[str, str]:
    """("cuda" or "numpy", why): what "auto" stands for. cuda where a GPU is usable; found out and logged once."""
    with _lock:
        if not _auto:
            lacks = _lacks("cuda")
            choice = ("cuda", "a GPU is usable") if lacks is None else ("numpy", f"cuda can't run here: {lacks}")
            _logger.info("GPUCNN_BACKEND=auto picks %s: %s", *choice)
            _auto.append(choice)
        return _auto[0]


def get_backend(backend: str | Backend | None = None) -> Backend:
    """The backend of that name ("numpy", "cuda", "emulator", "ptx", "auto"); None is the current default.

    The default is the innermost `use_backend` scope, else the environment variable GPUCNN_BACKEND, else "auto". It is
    read at each call, so it may be set before or after the import. A backend is made once, when it is first asked for.

    Raises ValueError, naming the choices, for a name that does not exist, and RuntimeError, with the command that mends
    it, for a backend that lacks something here. "auto" never fails.
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
        name, _ = auto_choice()
    if name not in _NAMES:
        hint = "; the CPU's is 'numpy'" if name == "cpu" else ""
        raise ValueError(f"{source} is {name!r}, but the backends are {', '.join(('auto', *_NAMES))}{hint}")
    try:
        return _made_once(name)
    except RuntimeError as error:
        raise RuntimeError(f"{source} is {name!r}, which can't run here: {error}") from error


def _made_once(name: str) -> Backend:
    """Raises RuntimeError, with the command that mends it, for what is missing."""
    with _lock:
        if name not in _made:
            _made[name] = _make(name)
        return _made[name]


def _make(name: str) -> Backend:
    if name == "numpy":
        from gpucnn.backends.numpy_backend import NumpyBackend

        return NumpyBackend()
    from gpucnn.backends.kernel_backend import KernelBackend

    if name == "cuda":
        from gpucnn.devices.cuda import CudaDevice

        return KernelBackend(CudaDevice())
    if name == "emulator":
        from gpucnn.devices.emulator import EmulatorDevice

        return KernelBackend(EmulatorDevice())
    from gpucnn.devices.ptx import PtxDevice

    return KernelBackend(PtxDevice())


def _lacks(name: str) -> str | None:
    """What a backend lacks to run here, with the command that mends it."""
    try:
        _made_once(name)
    except RuntimeError as error:
        return str(error)
    return None


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
