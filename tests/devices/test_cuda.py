"""CudaDevice without a GPU: what it says when something is missing, and what it hands to CuPy."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gpucnn.devices.base import KernelError, kernel_folder
from gpucnn.devices.cuda import CudaDevice

CONSTANTS = {"SCALAR": "float", "KERNEL_H": 3}


class CUDARuntimeError(Exception):
    pass


class CompileException(Exception):
    pass


@pytest.fixture
def fake_cupy(monkeypatch):
    """A stand-in for CuPy that records what it is asked to compile and launch; its arrays are NumPy's."""
    asked = SimpleNamespace(modules=[], launches=[])

    class RawModule:
        def __init__(self, code, options, backend):
            if "-DBROKEN=1" in options:
                raise CompileException("line 7: expected a ;")
            asked.modules.append((code, options, backend))

        def get_function(self, name):
            return lambda grid, block, values: asked.launches.append((name, grid, block, values))

    runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=CUDARuntimeError)
    cupy = SimpleNamespace(
        __name__="cupy",
        ndarray=np.ndarray,
        RawModule=RawModule,
        asked=asked,
        cuda=SimpleNamespace(runtime=runtime, compiler=SimpleNamespace(CompileException=CompileException)),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "scale.cu").write_text(
        'extern "C" __global__ void scale(\n'
        "    const SCALAR* x,  // [count]\n"
        "    SCALAR* y,        // [count]\n"
        "    const SCALAR* b,  // [count] or null\n"
        "    float factor, int count) {}"
    )
    (tmp_path / "some.cuh").write_text("// a header")
    monkeypatch.setattr("gpucnn.devices.cuda.kernel_folder", lambda: tmp_path)
    return tmp_path


def launch(device, factor=2, **constants):
    x, y = np.ones(4, np.float32), np.empty(4, np.float32)
    device.launch("scale.cu", "scale", {**CONSTANTS, **constants}, (1, 1, 1), (32, 1, 1), x, y, None, factor, 4)


def test_without_cupy_the_error_gives_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r'pip install "gpucnn\[cuda12\]".*"gpucnn\[cuda13\]"'):
        CudaDevice()


def test_without_a_gpu_the_error_says_so(fake_cupy):
    fake_cupy.cuda.runtime.getDeviceCount = lambda: 0
    with pytest.raises(RuntimeError, match="finds no GPU: nvidia-smi must show one"):
        CudaDevice()


def test_a_driver_error_is_shown(fake_cupy):
    def fails():
        raise CUDARuntimeError("cudaErrorInsufficientDriver: driver version is insufficient")

    fake_cupy.cuda.runtime.getDeviceCount = fails
    with pytest.raises(RuntimeError, match="finds no GPU: cudaErrorInsufficientDriver"):
        CudaDevice()


def test_a_launch_passes_each_argument_with_its_c_type(fake_cupy, folder):
    launch(CudaDevice())
    [(name, grid, block, (x, _, null, factor, count))] = fake_cupy.asked.launches
    assert (name, grid, block) == ("scale", (1, 1, 1), (32, 1, 1))
    assert isinstance(x, np.ndarray)
    assert (type(null), null) == (np.uintp, 0)
    assert (type(factor), type(count)) == (np.float32, np.int32)


def test_nothing_is_contracted_that_is_not_written_so_and_constants_become_macros(fake_cupy, folder):
    launch(CudaDevice())
    [(code, options, backend)] = fake_cupy.asked.modules
    assert code == (folder / "scale.cu").read_text()
    assert backend == "nvrtc"
    assert {"-fmad=false", "-DSCALAR=float", "-DKERNEL_H=3", f"-I{folder}"} <= set(options)


def test_a_specialisation_is_compiled_once(fake_cupy, folder):
    device = CudaDevice()
    launch(device)
    launch(device)
    assert (len(fake_cupy.asked.modules), len(fake_cupy.asked.launches)) == (1, 2)
    launch(device, KERNEL_H=5)
    assert len(fake_cupy.asked.modules) == 2


def test_a_changed_header_changes_the_options_that_cupys_cache_looks_at(fake_cupy, folder):
    launch(CudaDevice())
    (folder / "some.cuh").write_text("// another header")
    launch(CudaDevice())
    first, second = (options for _, options, _ in fake_cupy.asked.modules)
    assert first != second


def test_an_argument_that_does_not_fit_never_reaches_the_gpu(fake_cupy, folder):
    with pytest.raises(KernelError, match="factor must be a number, got str"):
        launch(CudaDevice(), factor="2")
    assert not fake_cupy.asked.launches


def test_a_kernel_that_does_not_compile_is_named_with_its_constants(fake_cupy, folder):
    with pytest.raises(KernelError, match=r"NVRTC refused scale.cu for scale with .*'BROKEN': 1.*\n.*expected a ;"):
        launch(CudaDevice(), BROKEN=1)


def test_the_kernels_are_found():
    assert (kernel_folder() / "common.cuh").is_file()
