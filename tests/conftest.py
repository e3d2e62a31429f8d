"""`pytest --backend NAME` (repeatable) picks what is under test. numpy is the default, and the emulator for what is
marked `emulated`, where there is a compiler for it."""

import functools
import gc
import os
import signal
from collections.abc import Iterator
from types import ModuleType

import pytest
import typer.main

import gpucnn
from gpucnn.devices import nvrtc

os.environ["GPUCNN_TUNING"] = "off"  # what was measured here changes no test
typer.main.get_command = functools.cache(typer.main.get_command)  # the same, which hundreds of tests call in a process
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="a backend to test; may be repeated (default: numpy, and the emulator for what is marked `emulated`)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Ten thousand tests are a million objects, which the garbage collector would look at again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        emulated = metafunc.definition.get_closest_marker("emulated") and "emulator" in gpucnn.available_backends()
        usual = ["numpy", "emulator"] if emulated else ["numpy"]
        metafunc.parametrize("backend", metafunc.config.getoption("--backend") or usual, scope="session")


@pytest.fixture
def default_backend(backend: str) -> Iterator[None]:
    """What a test makes without naming a backend is made on the one under test."""
    with gpucnn.use_backend(backend):
        yield


@pytest.fixture(scope="session")
def _nvrtc() -> None:
    """NVRTC is installed; where it can't be, but in CI, what needs it is skipped."""
    try:
        nvrtc.library()
    except RuntimeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def torch() -> ModuleType:
    module: ModuleType = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    return module
