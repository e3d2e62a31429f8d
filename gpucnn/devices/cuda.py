"""CudaDevice: compiles the kernels at run time with NVRTC and launches them, through CuPy.

What a machine may lack is looked for in the order in which one thing needs the other: driver, CuPy, GPU, NVRTC. The
first that is missing is the error, with the command that mends it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gpucnn.devices.base import (
    Constants,
    Device,
    Dim,
    KernelError,
    Parameter,
    Specialisation,
    hash_of_kernels,
    kept,
    kernel_folder,
    needed_architecture,
    signature_of,
)
from gpucnn.devices.graph import HOST_COPY, HOST_READ, Arena, Graph
from gpucnn.devices.tensor_map import MAP_BYTES, TensorMap, encoded
from gpucnn.geometry import Pixels
from gpucnn.live import CaptureError

OLDEST_DRIVER = (12, 0)  # the CUDA that a driver must know, for the CuPy of gpucnn[cuda12]
_WHEEL = re.compile(r"cupy(-cuda\d+x?|-rocm-[\d-]+)?")  # distributions that hold the package cupy; no two go together


class CudaDevice(Device):
    """CuPy's current stream on one GPU, the current one at first; arrays are cupy.ndarray, memory is of CuPy's pool.

    Raises RuntimeError, with the command that mends it, for what is missing: a driver, CuPy, a GPU, or NVRTC.
    """

    name = "cuda"

    def __init__(self) -> None:
        self.xp = usable_cupy()
        self._gpu: int = self.xp.cuda.Device().id
        self.capability: tuple[int, int] = divmod(int(self.xp.cuda.Device().compute_capability), 10)
        self.kernels = kernel_folder()
        # CuPy's cache of compiled kernels does not look into the headers that a kernel includes: their content is made
        # part of the options, which it does look at.
        content = b"".join(path.read_bytes() for path in sorted(self.kernels.glob("*.cuh")))
        # -fmad=false: only what is written multiply_add is fused, so the bits are the emulator's.
        self._options = (
            "-std=c++17",
            "-fmad=false",
            f"-I{self.kernels}",
            f"-DHEADERS={hashlib.sha256(content).hexdigest()[:16]}",
        )
        self._functions: dict[Specialisation, Any] = {}
        self._allocate: Any = None  # the allocator that `measure` found
        self.xp.cuda.set_pinned_memory_allocator(self._memory_for_a_copy)

    @cached_property
    def _driver(self) -> ctypes.CDLL:
        return _driver()

    @cached_property
    def identity(self) -> dict[str, str]:
        properties = self.xp.cuda.runtime.getDeviceProperties(self.xp.cuda.Device().id)
        driver = driver_version()
        return {
            "name": properties["name"].decode(),
            "capability": shown(self.capability),
            "driver": "unknown" if driver is None else shown(driver),
            "NVRTC": shown(self.xp.cuda.nvrtc.getVersion()),
            "kernels": hash_of_kernels(self.kernels),
        }

    def synchronize(self) -> None:
        """Wait for the current stream."""
        self._not_while_capturing()
        self.xp.cuda.get_current_stream().synchronize()

    def to_numpy(self, array: Any) -> np.ndarray[Any, Any]:
        self._not_while_capturing()
        return np.asarray(self.xp.asnumpy(array))

    def _not_while_capturing(self) -> None:
        if self.capturing is not None:
            raise CaptureError(HOST_READ)

    def _memory_for_a_copy(self, size: int) -> Any:
        """Memory of the host that CuPy copies through. In a capture it would copy the values of now in every launch."""
        if self.capturing is not None:
            raise CaptureError(HOST_COPY)
        return self.xp.get_default_pinned_memory_pool().malloc(size)

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def launch(self, file: str, name: str, constants: Constants, grid: Dim, block: Dim, *arguments: Any) -> None:
        if (gpu := self.xp.cuda.runtime.getDevice()) != self._gpu:
            raise RuntimeError(
                f"gpucnn computes on GPU {self._gpu}, the current one when it began, but now GPU {gpu} is: leave "
                f"cupy.cuda.Device({gpu}), or choose the GPU before the process starts, by CUDA_VISIBLE_DEVICES={gpu}"
            )
        signature = signature_of(self.kernels, file, name)
        bound = signature.bound(constants)
        bound.check(arguments, self.xp)
        values = tuple(map(self._value, signature.parameters, arguments, bound.types))
        function = self._function(Specialisation(file, name, tuple(sorted(constants.items()))))
        function(grid, block, values, shared_mem=constants.get("DYNAMIC_SHARED", 0))
        if self.capturing is not None:
            self.capturing.launches += 1
            self.keep(arguments)

    def _value(self, p: Parameter, argument: Any, dtype: np.dtype[Any]) -> Any:
        """An argument as CuPy takes it."""
        if p.extent is None:
            return dtype.type(argument)
        if argument is None:
            return np.uintp(0)
        if isinstance(argument, TensorMap):
            return np.frombuffer(argument.encoded, f"V{MAP_BYTES}")  # an array of one struct is passed by value
        return self._table(argument) if p.table else argument

    def keep(self, arrays: Sequence[Any]) -> None:
        """What a launch refers to, of ours or of CuPy's, must live as long as the graph. (The arena lives in it.)"""
        graph = self.capturing
        if graph is None:
            return
        start = self.address(graph.memory)
        for argument in arrays:
            if isinstance(argument, TensorMap):
                argument = argument.array
            for array in argument if isinstance(argument, list) else [argument]:
                if self.owns(array) and not start <= self.address(array) < start + graph.memory.size:
                    graph.keeps.append(array)

    def _encoded(self, array: Any, box: tuple[int, ...], pixels: Pixels | None) -> bytes:
        return encoded(self._driver, array.dtype.name, array.shape, self.address(array), box, pixels)

    def _table(self, arrays: list[Any]) -> Any:
        """The arrays' addresses, on the device."""
        return self.upload(np.array([self.address(array) for array in arrays], np.uint64))

    def _function(self, kernel: Specialisation) -> Any:
        if kernel not in self._functions:
            options = (*self._options, *(f"-D{k}={v}" for k, v in kernel.constants))
            code = (self.kernels / kernel.file).read_text("utf-8")
            shared = dict(kernel.constants).get("DYNAMIC_SHARED", 0)
            try:
                if of_one := needed_architecture(code):
                    module = self.xp.RawModule(path=str(self._compiled(code, (*options, f"-arch={of_one}"))))
                else:
                    module = self.xp.RawModule(code=code, options=options, backend="nvrtc")
                self._functions[kernel] = module.get_function(kernel.name)
                if shared:
                    self._functions[kernel].max_dynamic_shared_size_bytes = shared
            except self.xp.cuda.compiler.CompileException as error:
                raise KernelError(
                    f"NVRTC refused {kernel.file} for {kernel.name} with {dict(kernel.constants)}:\n{error}"
                ) from error
        return self._functions[kernel]

    def _compiled(self, code: str, options: tuple[str, ...]) -> Path:
        """A file of what NVRTC makes of this code for the architecture that the options name.

        CuPy always names the GPU's own architecture besides, and NVRTC before 12.9 takes no more than one.
        """
        nvrtc = self.xp.cuda.nvrtc
        options += ("-ftz=true",)  # as CuPy does

        def make() -> bytes:
            program = nvrtc.createProgram(code, "kernel.cu", (), ())
            try:
                nvrtc.compileProgram(program, options)
                made: bytes = nvrtc.getCUBIN(program)
                return made + b"\0"  # CuPy takes the last byte for the end of a string
            except nvrtc.NVRTCError:
                raise self.xp.cuda.compiler.CompileException(
                    nvrtc.getProgramLog(program), code, "kernel.cu", options
                ) from None
            finally:
                nvrtc.destroyProgram(program)

        return kept("cuda/*.cubin", (code, *options, shown(nvrtc.getVersion())), make)

    @contextmanager
    def measure(self) -> Iterator[Arena]:
        arena, allocate = Arena(), self.xp.cuda.get_allocator()

        def allocate_and_count(size: int) -> Any:
            memory = allocate(size)
            return memory if not size else self._pointer(memory.ptr, size, (arena.allocate(size), memory))

        self.measuring, self._allocate = arena, allocate
        try:
            with self.xp.cuda.using_allocator(allocate_and_count):
                yield arena
        finally:
            self.measuring = None

    @contextmanager
    def capture(self, measured: Arena) -> Iterator[Graph]:
        """In a stream of its own: the default one can not be captured. A launch goes into the current stream."""
        graph, stream = Graph(self.xp, measured), self.xp.cuda.Stream(non_blocking=True)
        start, from_pool = self.address(graph.memory), self.xp.cuda.get_allocator()

        def allocate(size: int) -> Any:
            if not size:
                return from_pool(size)
            block = graph.arena.allocate(size)
            return self._pointer(start + block.start, size, (block, graph.memory))

        self.synchronize()  # what was made in another stream is there
        with stream:
            stream.begin_capture()
            self.capturing = graph
            try:
                with self.xp.cuda.using_allocator(allocate):
                    yield graph
            except BaseException:
                with suppress(self.xp.cuda.runtime.CUDARuntimeError):  # the capture may be invalid by now
                    stream.end_capture()
                raise
            finally:
                self.capturing = None
            captured = stream.end_capture()
        graph.finish(captured.launch)

    def _pointer(self, address: int, size: int, owner: object) -> Any:
        """Memory at this address, for CuPy: it keeps the owner as long as an array uses it."""
        cuda = self.xp.cuda
        return cuda.MemoryPointer(cuda.UnownedMemory(address, size, owner, cuda.Device().id), 0)

    def outside_of_arena(self) -> AbstractContextManager[object]:
        if self.measuring is None:
            return nullcontext()
        using: AbstractContextManager[object] = self.xp.cuda.using_allocator(self._allocate)
        return using

    def prepare(self, specialisations: Iterable[Specialisation]) -> Iterator[Specialisation]:
        """Compile one after the other: a module is loaded into the context of the thread that compiles it."""
        for kernel in specialisations:
            self._function(kernel)
            yield kernel

    def time(self, function: Callable[[], object]) -> float:
        """Seconds on the GPU, between two events of the current stream."""
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        start.record()
        function()
        end.record()
        end.synchronize()
        return float(self.xp.cuda.get_elapsed_time(start, end)) / 1000

    def memory_report(self) -> dict[str, int]:
        """Bytes: in arrays ("used"), kept by CuPy's pool ("held"), its "limit" if it has one, and the GPU's "free" and
        "total".

        The pool gives nothing back by itself, so "held" is also its peak.
        """
        pool = self.xp.get_default_memory_pool()
        free, total = self.xp.cuda.runtime.memGetInfo()
        report = {"used": pool.used_bytes(), "held": pool.total_bytes(), "free": free, "total": total}
        return report | ({"limit": pool.get_limit()} if pool.get_limit() else {})

    def set_memory_limit(self, limit: int | None) -> None:
        """Of CuPy's default pool, on the current GPU.

        At its limit the pool refuses what would fit into the blocks that it keeps for other sizes; here it gives them
        back first, as it does by itself where the GPU has no more. So a step that failed leaves no fragments behind.
        """
        pool = self.xp.get_default_memory_pool()
        full: type[MemoryError] = self.xp.cuda.memory.OutOfMemoryError

        def allocate(size: int) -> Any:
            try:
                return pool.malloc(size)
            except full:
                pool.free_all_blocks()
                return pool.malloc(size)

        pool.set_limit(size=limit or 0)
        self.xp.cuda.set_allocator(pool.malloc if limit is None else allocate)


# -- what a machine may lack -------------------------------------------------------------------------


def usable_cupy() -> ModuleType:
    """CuPy, where it can compile for a GPU. Raises RuntimeError for the first thing that is missing."""
    driver = driver_version()
    if driver is None:
        raise RuntimeError(f"there is no NVIDIA driver (libcuda can't be loaded): {driver_command()}")
    if driver < OLDEST_DRIVER:
        raise RuntimeError(
            f"the NVIDIA driver is of CUDA {shown(driver)}, but CuPy needs {shown(OLDEST_DRIVER)}: {driver_command()}"
        )
    install = install_command(driver)
    wheels = cupy_wheels()
    if len(wheels) > 1:
        raise RuntimeError(
            f"{' and '.join(wheels)} are installed and overwrite each other: {uninstall_command(wheels)} && {install}"
        )
    if find_spec("cupy") is None:
        raise RuntimeError(f"CuPy is not installed: {install}")
    try:
        import cupy

        runtime = cupy.cuda.runtime.runtimeGetVersion() // 1000
    except Exception as error:  # a broken installation can fail in any way
        first = next((line for line in str(error).splitlines() if line.strip(" =")), type(error).__name__)
        raise RuntimeError(
            f"CuPy can't be imported ({first.strip()}): {uninstall_command(wheels)} && {install}"
        ) from error
    if runtime > driver[0]:
        raise RuntimeError(
            f"CuPy is for CUDA {runtime}, but the driver is of CUDA {shown(driver)}: "
            f"{uninstall_command(wheels)} && {install}"
        )
    try:
        gpus, reason = cupy.cuda.runtime.getDeviceCount(), ""
    except cupy.cuda.runtime.CUDARuntimeError as error:
        gpus, reason = 0, f" ({error})"
    if not gpus:
        raise RuntimeError(f"there is no GPU that CUDA can use{reason}: {_show_gpu()}")
    try:
        cupy.cuda.nvrtc.getVersion()
    except (RuntimeError, ImportError, OSError) as error:
        raise RuntimeError(f"NVRTC, which compiles the kernels, can't be loaded: {nvrtc_command(runtime)}") from error
    if not _has_headers():
        raise RuntimeError(f"CUDA's headers, which CuPy gives the compiler, can't be found: {headers_command(runtime)}")
    return cupy  # type: ignore[no-any-return]


def _has_headers() -> bool:
    """Whether CuPy will find CUDA's headers, without which it compiles nothing; its older versions do not tell."""
    try:
        from cuda.pathfinder import find_nvidia_header_directory
    except ImportError:
        return True
    return find_nvidia_header_directory("cudart") is not None


def _driver() -> ctypes.CDLL:
    """Raises OSError where there is none."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver can run, such as (12, 4), asked of the driver itself; None without one."""
    try:
        library = _driver()
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10


def cupy_wheels() -> list[str]:
    """The installed distributions of CuPy."""
    names = {(distribution.name or "").lower().replace("_", "-") for distribution in metadata.distributions()}
    return sorted(name for name in names if _WHEEL.fullmatch(name))


def driver_command() -> str:
    """What installs a driver."""
    if shutil.which("ubuntu-drivers"):
        return "sudo ubuntu-drivers install"
    return "install one from https://www.nvidia.com/drivers; a container needs docker run --gpus all"


def install_command(driver: tuple[int, int] | None) -> str:
    """What installs the CuPy that fits a driver."""
    return f'pip install "gpucnn[cuda{13 if driver and driver >= (13, 0) else 12}]"'


def uninstall_command(wheels: list[str]) -> str:
    """What removes CuPy, for another to be installed."""
    return f"pip uninstall -y {' '.join(wheels or ['cupy'])}"


def nvrtc_command(cuda: int) -> str:
    """What installs NVRTC for a CuPy of that CUDA."""
    return f"pip install nvidia-cuda-nvrtc{'-cu12' if cuda == 12 else f'=={cuda}.*'}"


def headers_command(cuda: int) -> str:
    """What installs CUDA's headers for a CuPy of that CUDA."""
    return f"pip install nvidia-cuda-runtime{'-cu12' if cuda == 12 else f'=={cuda}.*'}"


def shown(version: tuple[int, int]) -> str:
    """ "12.4" of (12, 4)."""
    return ".".join(map(str, version))


def _show_gpu() -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES is {hidden!r}; unset CUDA_VISIBLE_DEVICES shows all"
    return "nvidia-smi must list one (in a container: docker run --gpus all)"
