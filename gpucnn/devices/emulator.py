"""EmulatorDevice: runs the CUDA kernels on the CPU, and watches them. A test instrument, not a fast backend.

The same .cu files are compiled by the host's C++ compiler with cuda_on_cpu.h; emulator.cpp runs one fiber per CUDA
thread. Watched (the default), each memory access is checked: bounds, reads of what nobody wrote, races between threads
and between blocks, barriers that not all threads reach. The error names kernel, block, thread and line.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.atomic import make_folder
from gpucnn.devices.base import (
    Constants,
    Dim,
    KernelError,
    Signature,
    Specialisation,
    cache_folder,
    signature_of,
)
from gpucnn.devices.host import Instrument
from gpucnn.devices.tensor_map import TensorMap
from gpucnn.dtypes import HALVES, is_floating

_HERE = Path(__file__).parent
# One launch of the process at a time: emulator.cpp keeps one, and a kernel's shared memory is static.
_launching = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not find half a launch of a thread that it does not have
    _end = _launching.release
    os.register_at_fork(before=_launching.acquire, after_in_parent=_end, after_in_child=_end)
# -ffp-contract=off: only what is written fmaf is fused, so the bits are those of nvcc's -fmad=false.
_FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-shared", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing"]
# -ftrivial-auto-var-init: a local variable that nobody set holds a wild number, the same in every run.
# -fno-tree-sra: an access of 16 bytes stays one, and is seen where it is off its boundary.
_WATCH = [
    "-fno-tree-sra",
    "-ftrivial-auto-var-init=pattern",
    "-fsanitize=thread,bounds",
    "-fsanitize-coverage=trace-pc",
    "-fno-sanitize-recover=bounds",
]
_STRICT = [
    "-Wall",
    "-Wconversion",
    "-Wno-sign-conversion",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    "-Wno-sign-compare",
    "-Werror",
]


class _Dim(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("element", ctypes.c_int32),
        ("initialised", ctypes.c_int32),
    ]


class _Report(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("write", ctypes.c_int32),
        ("bytes", ctypes.c_int32),
        ("buffer", ctypes.c_int32),
        ("offset", ctypes.c_int64),
        ("block", _Dim),
        ("thread", _Dim),
        ("other_block", ctypes.c_int32),
        ("other_thread", ctypes.c_int32),
        ("address", ctypes.c_size_t),
        ("line", ctypes.c_int32),
        ("what", ctypes.c_char_p),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", _Dim),
        ("block", _Dim),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_int32),
        ("shared_start", ctypes.c_void_p),
        ("shared_stop", ctypes.c_void_p),
        ("constant_start", ctypes.c_void_p),
        ("constant_stop", ctypes.c_void_p),
        ("order", ctypes.c_int32),
        ("max_steps", ctypes.c_int64),
        ("flush", ctypes.c_int32),
        ("watch", ctypes.c_int32),
        ("report", ctypes.POINTER(_Report)),
    ]


(
    _OK, _BOUNDS, _UNINITIALISED, _RACE_BLOCKS, _RACE_THREADS, _DIVERGENT, _TIMEOUT, _STATIC_BOUNDS, _MISALIGNED,
    _PARTIAL_WARP, _ASYNCHRONOUS,
) = range(11)  # fmt: skip


class EmulatorDevice(Instrument):
    """Runs kernels on the CPU. `order` 0 runs threads and blocks forward, 1 backward, more is a shuffle's seed.

    watch=False leaves the checks out, for longer runs. A thread that makes more than `max_steps` accesses and branches
    is stopped: those of the case table make less than a hundred thousand. `kernels` is the folder of the .cu files,
    gpucnn's own if None. Kernels are chosen as for a GPU of that `capability`. Raises KernelError for a bug that it
    catches in a kernel, for a launch that does not fit the kernel's signature, and if there is no C++ compiler.
    """

    name = "emulator"

    def __init__(
        self,
        watch: bool = True,
        order: int = 0,
        max_steps: int = 20_000_000,
        kernels: Path | None = None,
        capability: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(kernels, capability)
        self.watch = watch
        self.order = order
        self.max_steps = max_steps
        compiler()

    def prepare(self, specialisations: Iterable[Specialisation]) -> Iterator[Specialisation]:
        """Compile in parallel, a compiler for each core."""
        _runtime()
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            waiting = {pool.submit(self._library, *kernel): kernel for kernel in specialisations}
            for compiled in as_completed(waiting):
                compiled.result()
                yield waiting[compiled]
        finally:
            pool.shutdown(cancel_futures=True)

    def _library(self, file: str, name: str, constants: tuple[tuple[str, Any], ...]) -> _Library:
        path = self.kernels / file
        return _compiled(path, name, constants, self.watch, Signature.of(path, name))

    def launch(self, file: str, name: str, constants: Constants, grid: Dim, block: Dim, *arguments: Any) -> None:
        signature = signature_of(self.kernels, file, name)
        bound = signature.bound(constants)
        bound.check(arguments, np)
        library = self._library(file, name, tuple(sorted(constants.items())))
        self.check_blocks(name, grid, block, library.most_threads, "its __launch_bounds__ allow")
        if self.noted(file, name, constants, grid, block, *arguments):
            return
        values: list[Any] = []
        buffers = []
        for p, a, dtype in zip(signature.parameters, arguments, bound.types, strict=True):
            if isinstance(a, TensorMap):
                values.append(ctypes.create_string_buffer(a.encoded, len(a.encoded)))
                buffers.append((p, a.array))
                continue
            if p.extent is None:
                values.append(np.ctypeslib.as_ctypes_type(dtype)(a))
                continue
            if p.table and a is not None:
                buffers += [(replace(p, name=f"{p.name}[{i}]"), array) for i, array in enumerate(a)]
                p, a = replace(p, constant=True), np.array([array.ctypes.data for array in a], np.uint64)
            values.append(ctypes.c_void_p(None if a is None else a.ctypes.data))
            if a is not None:
                buffers.append((p, a))
        for p, a in buffers:
            if p.written and is_floating(a.dtype):
                a.fill(np.nan)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        report = _Report()
        request = _Launch(
            ctypes.cast(library.emulator_entry, ctypes.c_void_p),
            pointers,
            _Dim(*grid),
            _Dim(*block),
            (_Buffer * len(buffers))(
                *(_Buffer(a.ctypes.data, a.nbytes, a.itemsize, not p.written) for p, a in buffers)
            ),
            len(buffers),
            *library.sections,
            self.order,
            self.max_steps,
            not {"float", *HALVES}.isdisjoint(constants.values()),  # CuPy compiles with -ftz=true, about float alone
            self.watch,
            ctypes.pointer(report),
        )
        with _launching:
            _runtime().emulator_launch(ctypes.byref(request))
            if report.kind != _OK:
                raise KernelError(_explained(name, report, [p.name for p, _ in buffers], request, library))
            if self.watch:
                self._check_written(name, buffers)

    def _check_written(self, name: str, buffers: list[tuple[Any, Any]]) -> None:
        for i, (p, a) in enumerate(buffers):
            if not p.written or not a.size:
                continue
            written = np.zeros(a.size, np.uint8)
            _runtime().emulator_written(i, written.ctypes.data_as(ctypes.c_void_p))
            if not written.all():
                first = int(np.argmin(written))
                raise KernelError(
                    f"{name}: left {int(a.size - written.sum())} of {a.size} elements of {p.name} unwritten, "
                    f"the first is element {first}"
                )


def _explained(name: str, r: _Report, buffers: list[str], request: _Launch, library: Any) -> str:
    def place(dim: _Dim) -> str:
        return f"({dim.x}, {dim.y}, {dim.z})"

    def linear(i: int, size: _Dim) -> str:
        return f"({i % size.x}, {i // size.x % size.y}, {i // (size.x * size.y)})"

    where = f"{name}: block {place(r.block)}, thread {place(r.thread)}, line {r.line or library.line_of(r.address)}"
    target = {-1: "shared memory", -2: "memory that is no buffer of this launch"}.get(r.buffer) or (
        f"{buffers[r.buffer]}[{r.offset // request.buffers[r.buffer].element}]" if r.buffer >= 0 else ""
    )
    action = f"{'writes' if r.write else 'reads'} {target}"
    if r.buffer == -1:
        action += f" at byte {r.offset}"
    if r.kind == _BOUNDS:
        return f"{where}: {action}, out of bounds"
    if r.kind == _MISALIGNED:
        return f"{where}: {action} as {r.bytes} bytes, but its address is no multiple of {r.bytes}"
    if r.kind == _STATIC_BOUNDS:
        return f"{where}: index {r.offset} is out of the bounds of its array"
    if r.kind == _UNINITIALISED:
        return f"{where}: {action}, which nothing has written"
    if r.kind == _RACE_BLOCKS:
        other = linear(r.other_block, request.grid) if r.other_block >= 0 else "several"
        return f"{where}: {action}, a race with block {other} of the same launch"
    if r.kind == _RACE_THREADS:
        other = linear(r.other_thread, request.block) if r.other_thread >= 0 else "several"
        return f"{where}: {action}, a race with thread {other}: no barrier stands between them"
    if r.kind == _PARTIAL_WARP:
        return f"{where}: a tensor core needs all 32 threads of a warp, but the block ends within this one"
    if r.kind == _ASYNCHRONOUS:
        return f"{where}: {r.what.decode()}"
    if r.kind == _DIVERGENT:
        other = f"waits at line {r.offset}" if r.offset else "has ended"
        return (
            f"{where}: waits at a barrier that thread {linear(r.other_thread, request.block)} never reaches: it {other}"
        )
    return f"{where}: stopped after {request.max_steps} steps; does a loop never end?"


# -- compiling ---------------------------------------------------------------------------------------


class _Library:
    """A compiled kernel: its entry, its sections, and lines from addresses."""

    def __init__(self, path: Path) -> None:
        _runtime()
        self._path = path
        self._library = ctypes.CDLL(str(path))
        self.emulator_entry = self._library.emulator_entry
        self.most_threads: int = self._library.emulator_most_threads()
        bounds = (ctypes.c_void_p * 4)()
        self._library.emulator_sections(bounds)
        self.sections = tuple(bounds)

    def line_of(self, address: int) -> str:
        """ "file:line" of a return address in this library, by addr2line."""
        base = ctypes.cast(self.emulator_entry, ctypes.c_void_p).value or 0
        self._library.emulator_base.restype = ctypes.c_size_t
        offset = address - self._library.emulator_base() - 1
        tool = shutil.which("addr2line")
        if not tool or not address or not base:
            return "?"
        text = subprocess.run([tool, "-e", str(self._path), hex(offset)], capture_output=True, text=True, check=False)
        return Path(text.stdout.strip().split(" ")[0]).name.partition(":")[2] or "?"


@cache
def _runtime() -> ctypes.CDLL:
    """emulator.cpp, whose symbols the kernels' libraries find when they are loaded."""
    library = _build((_HERE / "emulator.cpp").read_text("utf-8"), ["-O2"], [])
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


@cache
def _compiled(
    path: Path, name: str, constants: tuple[tuple[str, Any], ...], watch: bool, signature: Signature
) -> _Library:
    calls = []
    for i, p in enumerate(signature.parameters):
        kind = p.type if p.extent is None else f"{'const ' * p.constant}{p.type}*{' const*' * p.table}"
        if p.box is not None:
            kind = f"TensorMap<{p.type}>"
        calls.append(f"*({kind}*)arguments[{i}]")
    wrapper = f"""
#include "{path.name}"
#include <dlfcn.h>
#define UNWATCHED extern "C" __attribute__((no_sanitize("thread")))
UNWATCHED void emulator_entry(void** arguments) {{ {name}({", ".join(calls)}); }}
UNWATCHED int emulator_most_threads() {{ return {signature.most_threads}; }}
#define SECTION(s) extern "C" char __start_##s[] __attribute__((weak, visibility("hidden"))), \\
    __stop_##s[] __attribute__((weak, visibility("hidden")));
SECTION(shared_memory) SECTION(constant_memory)
UNWATCHED void emulator_sections(char** bounds) {{
    bounds[0] = __start_shared_memory; bounds[1] = __stop_shared_memory;
    bounds[2] = __start_constant_memory; bounds[3] = __stop_constant_memory;
}}
UNWATCHED unsigned long emulator_base() {{
    Dl_info info; dladdr((void*)&emulator_base, &info); return (unsigned long)info.dli_fbase;
}}
"""
    flags = [f"-D{key}={value}" for key, value in constants]
    # -nodefaultlibs: the sanitizers only instrument; their calls, as all others, find what is loaded with emulator.cpp.
    flags += ["-include", "cuda_on_cpu.h", "-nodefaultlibs", *_STRICT, *(_WATCH if watch else [])]
    return _Library(_build(wrapper, flags, [*_with_headers(path), _HERE / "cuda_on_cpu.h"]))


def _with_headers(file: Path) -> list[Path]:
    """The file, the headers that it includes, and those that they include."""
    found = [file]
    for source in found:  # which grows
        names = re.findall(r'^#include "(.+)"', source.read_text("utf-8"), re.MULTILINE)
        found += [source.parent / name for name in names if source.parent / name not in found]
    return found


@cache
def compiler() -> str:
    """The C++ compiler, which must be GCC's: CXX, or the first that is found. Raises KernelError without one."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and shutil.which(name):
            return name
    raise KernelError("the emulator needs a C++ compiler: install g++ (Debian: apt-get install g++), or set CXX")


def _build(code: str, flags: list[str], sources: list[Path]) -> Path:
    """A shared library of this code, which includes `sources` by name; built once for this content, in the cache."""
    command = [compiler(), *_FLAGS, *flags]
    content = [*command, code, *(source.read_text("utf-8") for source in sources)]
    library = cache_folder() / "emulator" / (hashlib.sha256("\0".join(content).encode()).hexdigest()[:32] + ".so")
    if library.exists():
        return library
    make_folder(library.parent, "GPUCNN_CACHE")
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        source, made = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        source.write_text(code, "utf-8")
        include = [f"-I{folder}" for folder in dict.fromkeys(str(s.parent) for s in sources)]
        step = [*command, *include, str(source), "-o", str(made)]
        result = subprocess.run(step, capture_output=True, text=True, check=False)
        if result.returncode:
            raise KernelError(
                f"the C++ compiler refused this, with exit code {result.returncode} of {shlex.join(step)}:\n"
                f"{result.stderr.strip() or 'it did not say why'}"
            )
        os.replace(made, library)
    return library
