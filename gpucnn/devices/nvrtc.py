"""NVRTC from its wheel, without CuPy or a GPU: what a kernel's file is compiled to, on any machine."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gpucnn.devices.base import kernel_folder

WHEEL = "nvidia-cuda-nvrtc"
REINSTALL = f"pip install --force-reinstall {WHEEL}"
OPTIONS = ("-std=c++17", "-fmad=false", "-ftz=true")  # CudaDevice's, and the one that CuPy adds


@cache
def library() -> ctypes.CDLL:
    """NVRTC. Raises RuntimeError, with the command that mends it, where it is not installed or can't be loaded."""
    try:
        ctypes.CDLL(str(in_wheel(WHEEL, "libnvrtc-builtins.so")))  # which NVRTC 13.0 does not find by itself
        found = ctypes.CDLL(str(in_wheel(WHEEL, "libnvrtc.so")))
    except OSError as error:
        raise RuntimeError(f"{WHEEL} can't be loaded ({error}): {REINSTALL}") from error
    found.nvrtcGetErrorString.restype = ctypes.c_char_p
    return found


def version() -> str:
    """Of the wheel."""
    return _installed(WHEEL).version


def in_wheel(wheel: str, name: str) -> Path:
    """The wheel's file whose name begins so. Raises RuntimeError where it is not installed."""
    found = [file for file in _installed(wheel).files or [] if file.name.startswith(name)]
    if not found:
        raise RuntimeError(f"{wheel} has no {name} (only that for Linux has): {REINSTALL}")
    return Path(str(found[0].locate()))


def _installed(wheel: str) -> metadata.Distribution:
    try:
        return metadata.distribution(wheel)
    except metadata.PackageNotFoundError:
        raise RuntimeError(f"{wheel} is not installed: pip install {wheel} (on Linux)") from None


def compiled(
    path: Path, architecture: str, constants: Iterable[tuple[str, Any]], output: str, *options: str
) -> tuple[str, bytes]:
    """(what the compiler says, what it makes of a file: its "PTX" or "CUBIN"), for a GPU or virtual `architecture`.

    Raises RuntimeError with the compiler's errors. Threads may compile at the same time: NVRTC takes no lock, and
    ctypes lets go of Python's.
    """
    given = [f"-arch={architecture}", *OPTIONS, f"-I{path.parent}", f"-I{kernel_folder()}", *options]
    given += [f"-D{name}={value}" for name, value in constants]
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), path.read_bytes(), path.name.encode(), 0, None, None)
    try:
        encoded = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        failed = library().nvrtcCompileProgram(program, len(given), encoded)
        log = _output("ProgramLog", program).rstrip(b"\0").decode()
        if failed:
            raise RuntimeError(log)
        return log, _output(output, program)
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))


def _call(function: str, *arguments: Any) -> None:
    result = getattr(library(), function)(*arguments)
    if result:
        raise RuntimeError(f"{function}: {library().nvrtcGetErrorString(result).decode()}")


def _output(name: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{name}Size", program, ctypes.byref(size))
    output = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{name}", program, output)
    return output.raw
