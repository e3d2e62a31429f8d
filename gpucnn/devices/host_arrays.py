"""NumPy as the array library of a device on the CPU: its memory can come from elsewhere, its operations can be noted.

CuPy has that too (`using_allocator`, and a stream that is being captured), and graphs are made with it. Arrays are
`HostArray`, a numpy.ndarray whose operations pass through here; outside of the two blocks below they are NumPy's own.
What is not defined here is numpy's, so this module can stand in its place.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from gpucnn.devices.graph import HOST_COPY, HOST_READ
from gpucnn.devices.tensor_map import TensorMap
from gpucnn.live import CaptureError

# Gives memory of that many bytes: an object whose `ptr` is its address, and which owns it.
Allocator = Callable[[int], Any]

_allocator: ContextVar[Allocator | None] = ContextVar("gpucnn_host_allocator", default=None)
_noted: ContextVar[list[Callable[[], object]] | None] = ContextVar("gpucnn_host_noted", default=None)


class OutOfMemoryError(MemoryError):
    """CuPy's."""

    def __init__(self, size: int, used: int, limit: int) -> None:
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {used:,} bytes, limit set to: {limit:,} "
            "bytes)."
        )


class Pool:
    """Counts the bytes of arrays, as long as it has a limit, and refuses what exceeds it. Its memory is NumPy's."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.used = 0
        self._lock = threading.RLock()  # an array can be freed while another one is made

    def __call__(self, size: int) -> _Counted:
        """Memory of that many bytes. Raises OutOfMemoryError."""
        with self._lock:
            if self.limit is not None and self.used + size > self.limit:
                raise OutOfMemoryError(size, self.used, self.limit)
            memory = _Counted(self, size)
            self.used += size
        return memory

    def free(self, size: int) -> None:
        """So many bytes are no longer used."""
        with self._lock:
            self.used -= size


class _Counted:
    """Memory from a pool, which is told when nobody uses it any more."""

    def __init__(self, pool: Pool, size: int) -> None:
        self.memory, self._pool = np.empty(size, np.uint8), pool
        self.ptr = self.memory.ctypes.data

    def __del__(self) -> None:
        if hasattr(self, "memory"):
            self._pool.free(self.memory.nbytes)


pool = Pool()  # of the process, as CuPy's default one


@contextmanager
def using_allocator(allocate: Allocator | None) -> Iterator[None]:
    """What is allocated inside comes from `allocate`; if None from NumPy, by way of the pool if that has a limit."""
    token = _allocator.set(allocate)
    try:
        yield
    finally:
        _allocator.reset(token)


def allocator() -> Allocator | None:
    """Where memory comes from now; NumPy if None."""
    return _allocator.get() or (None if pool.limit is None else pool)


@contextmanager
def noting() -> Iterator[list[Callable[[], object]]]:
    """Operations inside are not done but noted, in the list that the block gets: calling each in turn does them.

    Reading values raises CaptureError. As in a CUDA graph, what is noted does not keep memory of `using_allocator`.
    """
    noted: list[Callable[[], object]] = []
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def note(call: Callable[[], object]) -> bool:
    """Note this call, if operations are noted; else False, and nobody has called it."""
    noted = _noted.get()
    if noted is None:
        return False
    noted.append(call)
    return True


def is_noting() -> bool:
    """Whether operations are noted."""
    return _noted.get() is not None


class HostArray(np.ndarray):
    """A numpy.ndarray whose every operation can be noted. A single number stays an array, as in CuPy."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return _run(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _run(function, args, kwargs)

    def __getitem__(self, index: Any) -> Any:
        return _run(ndarray.__getitem__, (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        _run_in_place(ndarray.__setitem__, (self, index, value), {})

    def fill(self, value: Any) -> None:
        _run_in_place(ndarray.fill, (self, value), {})

    def astype(self, *args: Any, **options: Any) -> Any:
        return _run(ndarray.astype, (self, *args), options)

    def copy(self, *args: Any, **options: Any) -> Any:
        return _run(ndarray.copy, (self, *args), options)

    def reshape(self, *args: Any, **options: Any) -> Any:
        return _run(ndarray.reshape, (self, *args), options)

    def ravel(self, *args: Any, **options: Any) -> Any:
        return _run(ndarray.ravel, (self, *args), options)

    def argmax(self, *args: Any, **options: Any) -> Any:
        return _run(ndarray.argmax, (self, *args), options)

    def argmin(self, *args: Any, **options: Any) -> Any:
        return _run(ndarray.argmin, (self, *args), options)

    # -- reading, which a GPU would have to be waited for ----------------------------------------------

    def item(self, *args: Any) -> Any:
        return _read(self).item(*args)

    def tolist(self) -> Any:
        return _read(self).tolist()

    def __bool__(self) -> bool:
        return bool(_read(self))

    def __float__(self) -> float:
        return float(_read(self))

    def __int__(self) -> int:
        return int(_read(self))

    def __index__(self) -> int:
        return int(_read(self).__index__())

    def __format__(self, spec: str) -> str:
        return format(_read(self), spec)

    def __repr__(self) -> str:
        return repr(_read(self))

    def __str__(self) -> str:
        return str(_read(self))


def _read(array: HostArray) -> Any:
    if is_noting():
        raise CaptureError(HOST_READ)
    return array.view(ndarray)


# -- operations ------------------------------------------------------------------------------------------------------


def _run(function: Any, args: Any, options: dict[str, Any]) -> Any:
    """function(*args, **options), whose result is a HostArray."""
    if options.get("out") is not None:
        out = options["out"]
        _run_in_place(function, args, options)
        return out[0] if isinstance(out, tuple) else out
    lasting, lasting_options = (unowned_all(args), unowned_all(options)) if is_noting() else ((), {})
    args, options = _plain(args), _plain(options)
    with np.errstate(all="ignore" if is_noting() else None):  # values mean nothing then
        result = function(*args, **options)
    if not isinstance(result, ndarray | np.generic):
        return result
    y = np.asarray(result)
    if allocator() is None and not is_noting():
        return y.view(HostArray)
    if any(np.may_share_memory(y, a) for a in _arrays((args, options))):
        return y.view(HostArray)
    kept = _new(y.shape, y.dtype, y.strides)
    target = unowned(kept)
    if not note(lambda: np.copyto(target, function(*lasting, **lasting_options))):
        np.copyto(target, y)
    return kept


def _run_in_place(function: Any, args: Any, options: dict[str, Any]) -> None:
    """function(*args, **options), which changes one of its arguments."""
    if is_noting():
        args, options = unowned_all(args), unowned_all(options)
        note(lambda: function(*args, **options))
    else:
        function(*_plain(args), **_plain(options))


def _each(value: Any, function: Callable[[ndarray[Any, Any]], Any]) -> Any:
    """`value` with each array in its lists, tuples, dictionaries and tensor maps replaced."""
    if isinstance(value, ndarray):
        return function(value)
    if isinstance(value, list):
        return [_each(part, function) for part in value]
    if isinstance(value, tuple):
        return tuple(_each(part, function) for part in value)
    if isinstance(value, dict):
        return {name: _each(part, function) for name, part in value.items()}
    if isinstance(value, TensorMap):
        return replace(value, array=function(value.array))
    return value


def _plain(value: Any) -> Any:
    return _each(value, lambda array: array.view(ndarray) if isinstance(array, HostArray) else array)


def unowned_all(value: Any) -> Any:
    """`value` with each of its arrays as `unowned`. Raises CaptureError for one that was made on the host."""
    return _each(value, lambda array: unowned(_made_here(array)))


def _made_here(data: Any) -> Any:
    if is_noting() and not isinstance(data, HostArray):
        raise CaptureError(HOST_COPY)
    return data


def _arrays(value: Any) -> list[ndarray[Any, Any]]:
    found: list[ndarray[Any, Any]] = []
    _each(value, found.append)
    return found


# -- memory ----------------------------------------------------------------------------------------------------------


class _Memory:
    """An address as NumPy takes it, and what owns the memory there: given by an allocator, or nobody."""

    def __init__(self, owner: Any, address: int, shape: Any, dtype: np.dtype[Any], strides: Any) -> None:
        self.owner = owner
        # weak: Python's garbage collector does not see through an array, and an allocator knows its graph
        self.allocate = weakref.ref(allocator() or pool)
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "strides": strides,
            "typestr": f"|V{dtype.itemsize}" if dtype.kind == "V" else dtype.str,
            "version": 3,
        }


def _at(owner: Any, address: int, shape: Any, dtype: np.dtype[Any], strides: Any) -> ndarray[Any, Any]:
    return np.asarray(_Memory(owner, address, shape, dtype, strides)).view(dtype)


def _new(shape: Any, dtype: Any, strides: Any = None) -> HostArray:
    """An array nobody has written to; of these strides, if they are of a dense array."""
    allocate, dtype = allocator(), np.dtype(dtype)
    like = np.empty(shape, dtype)
    if strides is not None and strides != like.strides:
        like = np.empty_like(np.lib.stride_tricks.as_strided(like, shape, strides))  # which makes them dense
    if allocate is None or not like.size:
        return like.view(HostArray)
    memory = allocate(like.nbytes)
    return _at(memory, memory.ptr, like.shape, dtype, like.strides).view(HostArray)


def _memory(array: ndarray[Any, Any]) -> Any:
    base: Any = array
    while isinstance(base, ndarray):
        base = base.base
    return base


def unowned(array: ndarray[Any, Any]) -> ndarray[Any, Any]:
    """The same memory, which is not kept if it is the present allocator's."""
    memory = _memory(array)
    if not isinstance(memory, _Memory) or memory.allocate() is not allocator():
        return array.view(ndarray)
    return _at(None, array.ctypes.data, array.shape, array.dtype, array.strides)


# -- what numpy makes of no array ------------------------------------------------------------------------------------


def empty(shape: Any, dtype: Any = np.float64) -> Any:
    """numpy.empty."""
    return _new(shape, dtype)


def empty_like(array: Any, dtype: Any = None) -> Any:
    """numpy.empty_like, in the array's own order."""
    return _new(array.shape, array.dtype if dtype is None else dtype, None if dtype else array.strides)


def zeros(shape: Any, dtype: Any = np.float64) -> Any:
    """numpy.zeros."""
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = np.float64) -> Any:
    """numpy.ones."""
    return full(shape, 1, dtype)


def full(shape: Any, value: Any, dtype: Any = None) -> Any:
    """numpy.full."""
    array = _new(shape, np.asarray(value).dtype if dtype is None else dtype)
    array.fill(value)
    return array


def array(data: Any, dtype: Any = None, copy: bool = True, order: Any = "K") -> Any:
    """numpy.array."""
    return _run(np.array, (_made_here(data),), {"dtype": dtype, "copy": copy or None, "order": order})


def asarray(data: Any, dtype: Any = None, order: Any = None) -> Any:
    """numpy.asarray; an array of the host is copied where memory is counted, as if it went to a GPU."""
    function = np.asarray if isinstance(data, HostArray) or allocator() is None else np.array
    return _run(function, (_made_here(data),), {"dtype": dtype, "order": order})


def ascontiguousarray(data: Any, dtype: Any = None) -> Any:
    """numpy.ascontiguousarray."""
    return _run(np.ascontiguousarray, (_made_here(data),), {"dtype": dtype})


def arange(*args: Any, **options: Any) -> Any:
    """numpy.arange."""
    return _run(np.arange, args, options)


def __getattr__(name: str) -> Any:
    return getattr(np, name)
