"""The layers of these tests are made on the backend under test."""

from collections.abc import Iterator
from types import ModuleType

import pytest

import gpucnn


@pytest.fixture(autouse=True)
def default_backend(backend: str) -> Iterator[None]:
    with gpucnn.use_backend(backend):
        yield


@pytest.fixture
def torch() -> ModuleType:
    module: ModuleType = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    return module
