"""What this machine has and lacks to compute with each backend: `gpucnn doctor`.

Everything is looked at, also what comes after a thing that is missing; each finding is one line, with the command that
mends it. What is not needed here is a warning; it is a problem if the backend that computes needs it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

import gpucnn
from gpucnn.backends import auto_choice, get_backend
from gpucnn.backends.numpy_parallel import thread_count
from gpucnn.backends.tuning import path_of, stored, wanted
from gpucnn.data.download import cache_folder as data_folder
from gpucnn.devices import KernelError, cuda, emulator
from gpucnn.devices.base import cache_folder, kernel_folder

Status = Literal["ok", "warning", "problem"]
OLDEST_GPU = (7, 5)  # compute capability that the kernels are written for


@dataclass(frozen=True)
class Finding:
    """What was found out about one thing, and the command that mends it."""

    status: Status
    subject: str
    text: str
    command: str = ""

    def __str__(self) -> str:
        return f"{self.status:<8} {self.subject:<17} {self.text}" + (f": {self.command}" if self.command else "")


def run(backend: str | None = None) -> int:
    """Print what `diagnose` finds, a table in a terminal, else a line each. 1 if there is a problem, else 0."""
    findings = diagnose(backend)
    if sys.stdout.isatty():
        _print_table(findings)
    else:
        print("\n".join(map(str, findings)))
    return int(any(finding.status == "problem" for finding in findings))


def diagnose(backend: str | None = None) -> list[Finding]:
    """All findings. backend: the one that is to compute; GPUCNN_BACKEND, or what auto picks, by default."""
    asked, source = (backend, "backend") if backend else (os.environ.get("GPUCNN_BACKEND") or "auto", "GPUCNN_BACKEND")
    chosen, why = asked, f"{source} is {asked!r}"
    if asked == "auto":
        chosen, _ = auto_choice()
        why = f"auto picks it, since cuda {'can' if chosen == 'cuda' else 'cannot'} run here"

    def severity(needed_by: str) -> Status:
        return "problem" if chosen == needed_by else "warning"

    return [
        Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("ok", "gpucnn", f"{gpucnn.__version__} in {Path(gpucnn.__file__).parent}"),
        _numpy(),
        _kernels("warning" if chosen == "numpy" else "problem"),
        *_caches(),
        _compiler(severity("emulator")),
        *_cuda(severity("cuda")),
        *(_trial(name, severity(name)) for name in ("numpy", "emulator", "cuda", *["ptx"] * (chosen == "ptx"))),
        *_tuning(backend),
        _choice(backend, chosen, why),
    ]


# -- what every machine has --------------------------------------------------------------------------


def _numpy() -> Finding:
    from threadpoolctl import threadpool_info

    blas = [f"{p['internal_api']} {p['version']}" for p in threadpool_info() if p["user_api"] == "blas"]
    text = (
        f"{np.__version__} with {' and '.join(blas) or 'an unknown BLAS'}; the numpy backend uses {thread_count()} of "
    )
    text += f"{os.cpu_count()} cores (GPUCNN_THREADS)"
    if blas:
        return Finding("ok", "numpy", text)
    return Finding("warning", "numpy", f"{text}; products may be slow", "pip install --force-reinstall numpy")


def _kernels(severity: Status) -> Finding:
    folder = kernel_folder()
    files = len(list(folder.glob("*.cu")))
    if files:
        return Finding("ok", "kernels", f"{files} files in {folder}")
    return Finding(severity, "kernels", f"there are none in {folder}", "pip install --force-reinstall gpucnn")


def _caches() -> Iterator[Finding]:
    folders = {
        "data sets": (data_folder(), "GPUCNN_DATA"),
        "kernel cache": (cache_folder(), "GPUCNN_CACHE"),
    }
    if cuda.cupy_wheels():
        default = Path.home() / ".cupy" / "kernel_cache"
        folders["CuPy cache"] = (Path(os.environ.get("CUPY_CACHE_DIR") or default), "CUPY_CACHE_DIR")
    for subject, (folder, variable) in folders.items():
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if nearest.is_dir() and os.access(nearest, os.W_OK):
            yield Finding("ok", subject, f"{folder} ({variable})")
        else:
            yield Finding("warning", subject, f"{folder} can't be written", f'export {variable}="$(mktemp -d)"')


def _compiler(severity: Status) -> Finding:
    try:
        program = emulator.compiler()
    except KernelError:
        command = "xcode-select --install" if sys.platform == "darwin" else "sudo apt-get install g++"
        return Finding(severity, "C++ compiler", "none is found, so the emulator can't run", command)
    return Finding("ok", "C++ compiler", f"{program}, {_first_line(_output(program, '--version'))}")


# -- what a GPU needs --------------------------------------------------------------------------------


def _cuda(severity: Status) -> Iterator[Finding]:
    driver = cuda.driver_version()
    if driver is None:
        text = "there is none (libcuda can't be loaded), so no GPU can be used"
        yield Finding(severity, "NVIDIA driver", text, cuda.driver_command())
    elif driver < cuda.OLDEST_DRIVER:
        text = f"of CUDA {cuda.shown(driver)}, but CuPy needs {cuda.shown(cuda.OLDEST_DRIVER)}"
        yield Finding(severity, "NVIDIA driver", text, cuda.driver_command())
    else:
        yield Finding("ok", "NVIDIA driver", f"of CUDA {cuda.shown(driver)}")
    if driver is not None:
        yield from _gpus(severity)
    yield from _cupy(driver, severity)


def _gpus(severity: Status) -> Iterator[Finding]:
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    if shutil.which("nvidia-smi") is None:
        yield Finding("ok", "GPU", "nvidia-smi, which would list them, is not found")
        return
    rows = [line.split(", ") for line in _output("nvidia-smi", query, "--format=csv,noheader").splitlines()]
    gpus = [row for row in rows if len(row) == 4]
    if not gpus:
        yield Finding(severity, "GPU", "nvidia-smi lists none", cuda.driver_command())
    for name, capability, memory, version in gpus:
        text = f"{name}, compute capability {capability}, {memory}, driver {version}"
        if tuple(map(int, capability.split("."))) < OLDEST_GPU:
            text += f"; the kernels are written for {cuda.shown(OLDEST_GPU)} and newer"
            yield Finding("warning", "GPU", text)
        else:
            yield Finding("ok", "GPU", text)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        yield Finding("warning", "GPU", f"CUDA_VISIBLE_DEVICES is {hidden!r}", "unset CUDA_VISIBLE_DEVICES")


def _cupy(driver: tuple[int, int] | None, severity: Status) -> Iterator[Finding]:
    install, wheels = cuda.install_command(driver), cuda.cupy_wheels()
    if not wheels:
        if driver is None:
            yield Finding("ok", "CuPy", "is not installed, and of no use without a driver")
        else:
            yield Finding(severity, "CuPy", "is not installed", install)
        return
    mend = f"{cuda.uninstall_command(wheels)} && {install}"
    text = " and ".join(f"{wheel} {metadata.version(wheel)}" for wheel in wheels)
    if len(wheels) > 1:
        yield Finding(severity, "CuPy", f"{text} overwrite each other", mend)
        return
    try:
        import cupy

        built_for = cupy.cuda.runtime.runtimeGetVersion() // 1000
    except Exception as error:  # a broken installation can fail in any way
        yield Finding(severity, "CuPy", f"{text} can't be imported ({_reason(error)})", mend)
        return
    if driver is not None and built_for > driver[0]:
        yield Finding(severity, "CuPy", f"{text}, but the driver is of CUDA {cuda.shown(driver)}", mend)
    else:
        yield Finding("ok", "CuPy", text)
    yield _nvrtc(cupy, built_for, driver, severity)


def _nvrtc(cupy: Any, built_for: int, driver: tuple[int, int] | None, severity: Status) -> Finding:
    command = cuda.nvrtc_command(built_for)
    try:
        version = cupy.cuda.nvrtc.getVersion()
    except (RuntimeError, ImportError, OSError) as error:
        return Finding(severity, "NVRTC", f"can't be loaded ({_reason(error)})", command)
    if driver is not None and version[0] > driver[0]:
        text = f"{cuda.shown(version)} makes code that a driver of CUDA {cuda.shown(driver)} may not load"
        return Finding("warning", "NVRTC", text, command)
    return Finding("ok", "NVRTC", cuda.shown(version))


# -- the backends themselves -------------------------------------------------------------------------


def _trial(name: str, severity: Status) -> Finding:
    """Compiles and launches one kernel of ours and one of the array library."""
    subject = f"{name} backend"
    try:
        backend = get_backend(name)
    except RuntimeError as error:
        return Finding(severity, subject, str(error.__cause__))
    start = time.perf_counter()
    try:
        x = backend.asarray(np.ones((2, 3, 5, 7), np.float32))
        sums = [*backend.to_numpy(backend.bias_backward(x)), float((x * 2).sum())]
    except Exception as error:
        return Finding(severity, subject, f"does not compute: {_reason(error)}", _command_for(error))
    if sums != [70, 70, 70, 420]:
        return Finding(
            severity,
            subject,
            f"computes nonsense: {sums} for [70, 70, 70, 420]",
            "pip install --force-reinstall gpucnn",
        )
    return Finding("ok", subject, f"computes (a first sum took {time.perf_counter() - start:.2f} s)")


def _command_for(error: Exception) -> str:
    """CuPy's own kernels may include CUDA's headers, which its wheel does not have."""
    if "cannot open source file" not in str(error):
        return ""
    return cuda.headers_command(12 if "cupy-cuda12x" in cuda.cupy_wheels() else 13)


def _choice(backend: str | None, chosen: str, why: str) -> Finding:
    auto = "gpucnn doctor --backend auto" if backend else "export GPUCNN_BACKEND=auto"
    try:
        get_backend(backend)
    except ValueError as error:
        return Finding("problem", "choice", str(error), auto)
    except RuntimeError:
        return Finding("problem", "choice", f"{why}, which can't run here", auto)
    return Finding("ok", "choice", f"{chosen} computes: {why}")


def _tuning(backend: str | None) -> Iterator[Finding]:
    """By what the kernels of the backend that computes are chosen."""
    from gpucnn.backends.kernel_backend import KernelBackend

    try:
        chosen = get_backend(backend)
    except (ValueError, RuntimeError):
        return
    if not isinstance(chosen, KernelBackend):
        return
    name, by_shape = wanted(), "kernels are chosen by shape alone"
    if name is None:
        yield Finding("ok", "tuning", f"is off, {by_shape} (GPUCNN_TUNING)")
        return
    try:
        found = stored(chosen.device, name)
    except (ValueError, OSError) as error:
        yield Finding("warning", "tuning", f"{error}; {by_shape}")
        return
    if found is None:
        yield Finding("ok", "tuning", f"none, {by_shape} (gpucnn tune measures them)")
    else:
        text = f"{len(found.choices)} of {len(found.measured)} problems have another kernel than usual"
        yield Finding("ok", "tuning", f"{text}, hash {found.hash}, {path_of(chosen.device, name)} (GPUCNN_TUNING)")


# -- text --------------------------------------------------------------------------------------------


def _output(*command: str) -> str:
    """What a program prints, or nothing if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _reason(error: BaseException) -> str:
    return _first_line(str(error)) or type(error).__name__


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip(" =")), "")


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        text = Text(finding.text)
        if finding.command:
            text.append(f"\n{finding.command}", "bold")
        table.add_row(Text(finding.status, colours[finding.status]), Text(finding.subject), text)
    Console(highlight=False, emoji=False).print(table)
