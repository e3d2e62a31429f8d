"""The kernels of the backend under test; the emulator's where that is NumPy, with which they are compared."""

from collections.abc import Callable

import pytest

from gpucnn.backends import get_backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import Variant, candidates

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
