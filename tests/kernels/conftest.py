"""The kernels of the backend under test; the emulator's where that is NumPy, with which they are compared."""

import pytest

from gpucnn.backends import get_backend
from gpucnn.backends.kernel_backend import KernelBackend


@pytest.fixture
def kernels(backend: str) -> KernelBackend:
    engine = get_backend("emulator" if backend == "numpy" else backend)
    assert isinstance(engine, KernelBackend)
    return engine
