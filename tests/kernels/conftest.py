"""The kernels of the backend under test; the emulator's where that is NumPy, with which they are compared."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from gpucnn.backends import get_backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import Variant, candidates
from gpucnn.devices.base import kernel_folder
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.host import HostDevice

Force = Callable[[Callable[[Variant], bool]], None]


@pytest.fixture
def kernels(backend: str) -> KernelBackend:
    engine = get_backend("emulator" if backend == "numpy" else backend)
    assert isinstance(engine, KernelBackend)
    return engine


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Force:
    """Convolutions and products are computed by the first variant that is wanted, instead of the first there is."""

    def force(wanted: Callable[[Variant], bool]) -> None:
        monkeypatch.setattr(KernelBackend, "choose", lambda _, problem: next(filter(wanted, candidates(problem))))

    return force


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., HostDevice]:
    """plant(file, old, new, capability=None, device=EmulatorDevice): a device of that class with kernels where a text
    that the file has once is another."""
    folder = Path(copytree(kernel_folder(), tmp_path / "kernels"))

    def plant(
        file: str, old: str, new: str, capability: tuple[int, int] | None = None, device: Any = EmulatorDevice
    ) -> HostDevice:
        text = (folder / file).read_text("utf-8")
        assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
        (folder / file).write_text(text.replace(old, new), "utf-8")
        made: HostDevice = device(kernels=folder, capability=capability)
        return made

    return plant
