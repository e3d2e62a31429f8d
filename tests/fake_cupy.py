"""A stand-in for CuPy on a machine without a GPU: its arrays are NumPy's, and its GPU is the emulator."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpucnn.devices import cuda
from gpucnn.devices.base import kernel_folder
from gpucnn.devices.emulator import EmulatorDevice


class CUDARuntimeError(RuntimeError):
    pass


class CompileException(Exception):
    pass


class FakeCupy(ModuleType):
    """What CudaDevice uses of CuPy. `modules` and `launches` are what it was asked for."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.__spec__ = ModuleSpec("cupy", None)
        self.modules: list[tuple[str, tuple[str, ...], str]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.runtime_version, self.gpus, self.nvrtc = 12090, 1, (12, 9)
        self.compute_capability = "75"
        runtime = SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=lambda: self._given(self.gpus),
            runtimeGetVersion=lambda: self.runtime_version,
            memGetInfo=lambda: (700, 1000),
        )
        self.cuda = SimpleNamespace(
            runtime=runtime,
            compiler=SimpleNamespace(CompileException=CompileException),
            nvrtc=SimpleNamespace(getVersion=lambda: self._given(self.nvrtc)),
            get_current_stream=lambda: SimpleNamespace(synchronize=lambda: None),
            Event=Event,
            Device=lambda: SimpleNamespace(compute_capability=self.compute_capability),
            get_elapsed_time=lambda start, end: end.at - start.at,
        )

    @staticmethod
    def _given(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def asnumpy(self, array: Any) -> Any:
        return array

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(used_bytes=lambda: 10, total_bytes=lambda: 30)

    def RawModule(self, code: str, options: tuple[str, ...], backend: str) -> Any:
        if "-DBROKEN=1" in options:
            raise CompileException("line 7: expected a ;")
        self.modules.append((code, options, backend))

        def get_function(name: str) -> Any:
            def launch(grid: Any, block: Any, values: tuple[Any, ...]) -> None:
                self.launches.append((name, grid, block, values))
                self.compute(code, options, name, grid, block, values)

            return launch

        return SimpleNamespace(get_function=get_function)

    def compute(self, code: str, options: tuple[str, ...], name: str, grid: Any, block: Any, values: Any) -> None:
        """Run it on the emulator, if it is a kernel of ours."""
        for path in kernel_folder().glob("*.cu"):
            if path.read_text("utf-8") == code:
                given = dict(option[2:].split("=") for option in options if option.startswith("-D"))
                constants = {k: int(v) if v.isdigit() else v for k, v in given.items() if k != "HEADERS"}
                arguments = [None if isinstance(value, np.uintp) else value for value in values]
                EmulatorDevice().launch(path.name, name, constants, grid, block, *arguments)


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
    monkeypatch.setattr(cuda, "driver_version", lambda: driver)
    monkeypatch.setattr(cuda, "cupy_wheels", lambda: sorted(wheels))
    monkeypatch.setitem(sys.modules, "cupy", fake if wheels else None)
    return fake
