"""A stand-in for CuPy on a machine without a GPU: its arrays are NumPy's, and its GPU is the emulator.

A stream can be captured. Meanwhile nothing is computed, and what CuPy and CUDA refuse then raises: copies to the host,
waiting, cuBLAS, and memory from the pool (CUDA allows that, but a graph that uses it reads garbage later). A copy from
the host is captured as CuPy does it: through memory that an allocator of ours gives or refuses.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from contextlib import ExitStack
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from gpucnn.devices import cuda, host_arrays
from gpucnn.devices.base import Signature, kernel_folder
from gpucnn.devices.emulator import EmulatorDevice


class CUDARuntimeError(RuntimeError):
    pass


def refused_while_capturing() -> None:
    if host_arrays.is_noting():
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")


class CompileException(Exception):
    def __init__(self, message: str, *about: object) -> None:
        super().__init__(message)


class FakeCupy(ModuleType):
    """What CudaDevice uses of CuPy. `modules` and `launches` are what it was asked for."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.__spec__ = ModuleSpec("cupy", None)
        self.modules: list[tuple[str, tuple[str, ...], str]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.runtime_version, self.gpus, self.nvrtc = 12090, 1, (12, 9)
        self.compute_capability, self.current = "75", 0
        self.pinned = lambda size: None  # CuPy's own would give memory in a capture too
        runtime = SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDevice=lambda: self.current,
            getDeviceCount=lambda: self._given(self.gpus),
            runtimeGetVersion=lambda: self.runtime_version,
            memGetInfo=lambda: (700, 1000),
            getDeviceProperties=lambda number: {"name": b"NVIDIA Fake 1"},
        )
        self.pool = Pool()
        self.cuda = SimpleNamespace(
            runtime=runtime,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            set_allocator=lambda allocate: setattr(host_arrays, "pool", Allocator(allocate)),
            set_pinned_memory_allocator=lambda allocate: setattr(self, "pinned", allocate),
            compiler=SimpleNamespace(CompileException=CompileException),
            nvrtc=NVRTC(self),
            get_current_stream=lambda: SimpleNamespace(synchronize=refused_while_capturing),
            Event=Event,
            Stream=Stream,
            Device=lambda: SimpleNamespace(compute_capability=self.compute_capability, id=self.current),
            get_allocator=lambda: host_arrays.allocator() or from_pool,
            using_allocator=host_arrays.using_allocator,
            MemoryPointer=MemoryPointer,
            UnownedMemory=UnownedMemory,
            get_elapsed_time=lambda start, end: end.at - start.at,
        )

    @staticmethod
    def _given(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(host_arrays, name)

    def asarray(self, data: Any, dtype: Any = None, order: Any = None) -> Any:
        return host_arrays.asarray(self.on_the_gpu(data), dtype, order)

    def on_the_gpu(self, data: Any) -> Any:
        """What CuPy takes a host array for: a copy of it, through pinned memory, in a capture too."""
        if host_arrays.is_noting() and not isinstance(data, host_arrays.HostArray):
            self.pinned(np.asarray(data).nbytes)
        return data

    def concatenate(self, arrays: Any, axis: int = 0) -> Any:
        """As CuPy does for many small arrays: their addresses are copied from the host."""
        self.on_the_gpu(np.array([array.ctypes.data for array in arrays]))
        return host_arrays.concatenate(arrays, axis=axis)

    def asnumpy(self, array: Any) -> Any:
        refused_while_capturing()
        return np.array(array)

    def matmul(self, a: Any, b: Any) -> Any:
        if host_arrays.is_noting():
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        return np.matmul(a, b)

    def get_default_memory_pool(self) -> Any:
        return self.pool

    def get_default_pinned_memory_pool(self) -> Any:
        return SimpleNamespace(malloc=lambda size: None)

    def RawModule(
        self, code: str = "", options: tuple[str, ...] = (), backend: str = "nvrtc", path: str | None = None
    ) -> Any:
        if path is not None:
            code, *options_of_path = Path(path).read_text("utf-8").rstrip("\0").split("\0")
            options = tuple(options_of_path)
        if "-DBROKEN=1" in options:
            raise CompileException("line 7: expected a ;")
        self.modules.append((code, options, backend))

        def get_function(name: str) -> Any:
            def launch(grid: Any, block: Any, values: tuple[Any, ...], shared_mem: int = 0) -> None:
                again = host_arrays.unowned_all(values)
                self.launches.append((name, grid, block, again))  # which must not keep memory that a graph gives away
                if not host_arrays.note(lambda: self.compute(code, options, name, grid, block, again)):
                    self.compute(code, options, name, grid, block, values)

            return launch

        return SimpleNamespace(get_function=get_function)

    def compute(self, code: str, options: tuple[str, ...], name: str, grid: Any, block: Any, values: Any) -> None:
        """Run it on the emulator, if it is a kernel of ours."""
        for path in kernel_folder().glob("*.cu"):
            if path.read_text("utf-8") == code:
                given = dict(option[2:].split("=") for option in options if option.startswith("-D"))
                constants = {k: int(v) if v.isdigit() else v for k, v in given.items() if k != "HEADERS"}
                parameters = Signature.of(path, name).parameters
                by_name = {p.name: value for p, value in zip(parameters, values, strict=True)}
                dtype = np.dtype(np.float64 if constants["SCALAR"] == "double" else np.float32)
                arguments = [
                    None
                    if isinstance(value, np.uintp)
                    else [at_address(*of, dtype) for of in zip(value, by_name["sizes"], strict=True)]
                    if p.table
                    else value
                    for p, value in zip(parameters, values, strict=True)
                ]
                EmulatorDevice().launch(path.name, name, constants, grid, block, *arguments)


def at_address(address: Any, size: Any, dtype: np.dtype[Any]) -> Any:
    """The array of that many elements at an address."""
    memory = (ctypes.c_char * (int(size) * dtype.itemsize)).from_address(int(address))
    return np.frombuffer(memory, dtype)


class NVRTC:
    """What is compiled here is the code and its options, for `RawModule`. A second program has another number."""

    NVRTCError = type("NVRTCError", (RuntimeError,), {})

    def __init__(self, cupy: FakeCupy) -> None:
        self._cupy, self.programs = cupy, dict[int, list[str]]()

    def getVersion(self) -> Any:
        return FakeCupy._given(self._cupy.nvrtc)

    def createProgram(self, code: str, name: str, headers: Any, include_names: Any) -> int:
        self.programs[len(self.programs)] = [code]
        return len(self.programs) - 1

    def compileProgram(self, program: int, options: tuple[str, ...]) -> None:
        if "-DBROKEN=1" in options:
            raise self.NVRTCError("NVRTC_ERROR_COMPILATION (6)")
        if sum(option.startswith("-arch") for option in options) > 1 and self.getVersion() < (12, 9):
            raise self.NVRTCError("-arch defined more than once")
        self.programs[program] += options

    def getProgramLog(self, program: int) -> str:
        return "line 7: expected a ;"

    def getCUBIN(self, program: int) -> bytes:
        return "\0".join(self.programs[program]).encode()

    def destroyProgram(self, program: int) -> None:
        self.programs[program] = ["destroyed"]


class UnownedMemory:
    """Memory that something else owns, which this keeps."""

    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.ptr, self.size, self.owner = ptr, size, owner


class MemoryPointer:
    """A place in memory, which it keeps."""

    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset


def from_pool(size: int) -> MemoryPointer:
    refused_while_capturing()
    memory = np.empty(size, np.uint8)
    return MemoryPointer(UnownedMemory(memory.ctypes.data, size, memory), 0)


class OutOfMemoryError(MemoryError):
    pass


class Pool:
    """CuPy's pool: it gives away pieces of what it holds, and at its limit refuses what no piece that is left can hold.

    What it holds are segments, each as [bytes, bytes in use]; it can give back those of which nothing is in use.
    """

    def __init__(self) -> None:
        self.segments, self.limit = [[30, 10]], 0

    def malloc(self, size: int) -> MemoryPointer:
        size = -(-size // 512) * 512
        segment = min((s for s in self.segments if s[0] - s[1] >= size), default=None)
        if segment is None:
            if self.limit and self.total_bytes() + size > self.limit:
                raise OutOfMemoryError(
                    f"Out of memory allocating {size:,} bytes (allocated so far: {self.total_bytes():,} bytes, limit "
                    f"set to: {self.limit:,} bytes)."
                )
            self.segments.append(segment := [size, 0])
        pointer = from_pool(size)
        segment[1] += size
        weakref.finalize(pointer, self.give_back, segment, size)
        return pointer

    @staticmethod
    def give_back(segment: list[int], size: int) -> None:
        segment[1] -= size

    def free_all_blocks(self) -> None:
        self.segments = [segment for segment in self.segments if segment[1]]

    def set_limit(self, size: int) -> None:
        self.limit = size

    def get_limit(self) -> int:
        return self.limit

    def used_bytes(self) -> int:
        return sum(segment[1] for segment in self.segments)

    def total_bytes(self) -> int:
        return sum(segment[0] for segment in self.segments)


class Allocator:
    """Stands for the pool of host_arrays: where memory comes from in the whole process."""

    def __init__(self, allocate: Any) -> None:
        self.allocate, self.limit = allocate, True

    def __call__(self, size: int) -> Any:
        return self.allocate(size)


class Stream:
    """A stream; what is launched while it is captured becomes a graph."""

    alive: ClassVar[list[Stream]] = []  # a stream that is captured stays so until end_capture()

    def __init__(self, non_blocking: bool = False) -> None:
        self.non_blocking, self._capture = non_blocking, ExitStack()
        self.alive.append(self)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin_capture(self) -> None:
        assert self.non_blocking, "the default stream would wait for a blocking one"
        self._calls = self._capture.enter_context(host_arrays.noting())
        self._capture.enter_context(host_arrays.using_allocator(from_pool))

    def end_capture(self) -> Any:
        self._capture.close()
        self.alive.remove(self)
        return SimpleNamespace(launch=lambda: [call() for call in self._calls])


class Event:
    """A CUDA event; each is recorded 3 ms after the one before."""

    count = 0

    def record(self) -> None:
        Event.count += 1
        self.at = 3.0 * Event.count

    def synchronize(self) -> None:
        pass


def install(
    monkeypatch: pytest.MonkeyPatch,
    driver: tuple[int, int] | None = (12, 4),
    wheels: tuple[str, ...] = ("cupy-cuda12x",),
) -> FakeCupy:
    """A machine with such a driver and such wheels; without wheels, CuPy can't be imported."""
    fake = FakeCupy()
    monkeypatch.setattr(host_arrays, "pool", host_arrays.pool)  # set_allocator replaces it
    monkeypatch.setattr(host_arrays, "_made_here", fake.on_the_gpu)
    monkeypatch.setattr(cuda, "driver_version", lambda: driver)
    monkeypatch.setattr(cuda.CudaDevice, "address", lambda self, array: array.ctypes.data)
    monkeypatch.setattr(cuda.CudaDevice, "owns", lambda self, data: isinstance(data, host_arrays.HostArray))
    monkeypatch.setattr(cuda, "cupy_wheels", lambda: sorted(wheels))
    monkeypatch.setitem(sys.modules, "cupy", fake if wheels else None)
    return fake
