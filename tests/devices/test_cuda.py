"""CudaDevice without a GPU: what it says when something is missing, and what it hands to CuPy."""

import ctypes
import sys
from types import ModuleType, SimpleNamespace

import fake_cupy
import numpy as np
import pytest

from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices import Specialisation, cuda, host_arrays
from gpucnn.devices.base import KernelError, kernel_folder
from gpucnn.devices.cuda import CudaDevice
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.graph import Arena
from gpucnn.geometry import Window
from gpucnn.live import CaptureError
from gpucnn.tensor import Tensor

CONSTANTS = {"SCALAR": "float", "KERNEL_H": 3}
SCALE = Specialisation("scale.cu", "scale", (("KERNEL_H", 3), ("SCALAR", "float")))


@pytest.fixture
def cupy(monkeypatch):
    return fake_cupy.install(monkeypatch)


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


# -- what a machine may lack -------------------------------------------------------------------------


def refused(message):
    return pytest.raises(RuntimeError, match=rf"^{message}$")


INSTALL_12, INSTALL_13 = r'pip install "gpucnn\[cuda12\]"', r'pip install "gpucnn\[cuda13\]"'


def test_without_a_driver_the_error_says_so_and_cupy_is_not_imported(monkeypatch):
    fake_cupy.install(monkeypatch, driver=None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with refused(r"there is no NVIDIA driver \(libcuda can't be loaded\): .*"):
        CudaDevice()


@pytest.mark.parametrize(("ubuntu", "command"), [
    (True, "sudo ubuntu-drivers install"),
    (False, r"install one from https://www\.nvidia\.com/drivers.*docker run --gpus all"),
])  # fmt: skip
def test_the_command_for_a_driver_fits_the_system(monkeypatch, ubuntu, command):
    fake_cupy.install(monkeypatch, driver=None)
    monkeypatch.setattr(cuda.shutil, "which", lambda name: "/usr/bin/ubuntu-drivers" if ubuntu else None)
    with refused(rf"there is no NVIDIA driver .*: {command}"):
        CudaDevice()


def test_a_driver_older_than_any_wheel_needs_is_named_with_its_cuda(monkeypatch):
    fake_cupy.install(monkeypatch, driver=(11, 8))
    with refused(r"the NVIDIA driver is of CUDA 11\.8, but CuPy needs 12\.0: .*"):
        CudaDevice()


@pytest.mark.parametrize(("driver", "command"), [((12, 4), INSTALL_12), ((13, 1), INSTALL_13)])
def test_without_cupy_the_error_gives_the_command_that_installs_the_one_for_this_driver(monkeypatch, driver, command):
    fake_cupy.install(monkeypatch, driver, wheels=())
    with refused(f"CuPy is not installed: {command}"):
        CudaDevice()


def test_two_wheels_at_once_are_refused_with_the_commands_that_leave_one(monkeypatch):
    fake_cupy.install(monkeypatch, wheels=("cupy-cuda13x", "cupy-cuda12x"))
    with refused(
        "cupy-cuda12x and cupy-cuda13x are installed and overwrite each other: "
        f"pip uninstall -y cupy-cuda12x cupy-cuda13x && {INSTALL_12}"
    ):
        CudaDevice()


def test_a_cupy_that_can_not_be_imported_shows_the_first_line_of_its_own_error(monkeypatch):
    fake_cupy.install(monkeypatch)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(cuda, "find_spec", lambda name: object())

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                raise ImportError(f"\n{'=' * 64}\nFailed to import CuPy.\n\nIf you installed CuPy via wheels")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with refused(rf"CuPy can't be imported \(Failed to import CuPy\.\): pip uninstall -y cupy-cuda12x && {INSTALL_12}"):
        CudaDevice()


def test_the_folder_that_an_uninstalled_cupy_leaves_behind_is_no_cupy(monkeypatch):
    fake_cupy.install(monkeypatch)
    leftover = ModuleType("cupy")
    leftover.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "cupy", leftover)
    with refused(rf"CuPy can't be imported \(module 'cupy' has no attribute 'cuda'\): .* && {INSTALL_12}"):
        CudaDevice()


def test_a_driver_too_old_for_the_wheel_is_told_which_wheel_fits(monkeypatch):
    fake_cupy.install(monkeypatch, driver=(12, 4), wheels=("cupy-cuda13x",)).runtime_version = 13010
    with refused(
        r"CuPy is for CUDA 13, but the driver is of CUDA 12\.4: "
        rf"pip uninstall -y cupy-cuda13x && {INSTALL_12}"
    ):
        CudaDevice()


def test_a_driver_newer_than_the_wheel_is_fine(monkeypatch):
    fake_cupy.install(monkeypatch, driver=(13, 1))
    assert CudaDevice().name == "cuda"


NO_DEVICE = fake_cupy.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")


@pytest.mark.parametrize(("gpus", "reason"), [(0, ""), (NO_DEVICE, r" \(cudaErrorNoDevice: .*\)")])
def test_without_a_gpu_the_error_says_so(monkeypatch, cupy, gpus, reason):
    cupy.gpus = gpus
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with refused(rf"there is no GPU that CUDA can use{reason}: nvidia-smi must list one .*"):
        CudaDevice()


def test_a_gpu_that_the_environment_hides_is_not_called_missing(monkeypatch, cupy):
    cupy.gpus = NO_DEVICE
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with refused(r"there is no GPU .*: CUDA_VISIBLE_DEVICES is ''; unset CUDA_VISIBLE_DEVICES shows all"):
        CudaDevice()


@pytest.mark.parametrize(
    ("runtime", "package"), [(12090, "nvidia-cuda-nvrtc-cu12"), (13010, r"nvidia-cuda-nvrtc==13\.\*")]
)
def test_without_nvrtc_the_error_gives_the_command_that_installs_it(monkeypatch, runtime, package):
    cupy = fake_cupy.install(monkeypatch, driver=(13, 1))
    cupy.runtime_version = runtime
    cupy.nvrtc = RuntimeError('Failure finding "libnvrtc.so.13 or libnvrtc.so.12"')
    with refused(f"NVRTC, which compiles the kernels, can't be loaded: pip install {package}"):
        CudaDevice()


@pytest.mark.parametrize(
    ("runtime", "package"), [(12090, "nvidia-cuda-runtime-cu12"), (13010, r"nvidia-cuda-runtime==13\.\*")]
)
def test_without_cudas_headers_the_error_gives_the_command_that_installs_them(monkeypatch, runtime, package):
    """CuPy 14.2 compiles nothing without them."""
    fake_cupy.install(monkeypatch, driver=(13, 1)).runtime_version = runtime
    folders = {"cudart": None}
    finder = SimpleNamespace(find_nvidia_header_directory=folders.get)
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", finder)
    with refused(f"CUDA's headers, which CuPy gives the compiler, can't be found: pip install {package}"):
        CudaDevice()
    folders["cudart"] = "/usr/include"
    CudaDevice()


def fake_driver(monkeypatch, version, code=0):
    def get_version(pointer):
        pointer._obj.value = version
        return code

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=get_version))


def test_the_driver_is_asked_for_its_version_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    fake_driver(monkeypatch, 12040)
    assert cuda.driver_version() == (12, 4)
    fake_driver(monkeypatch, 13010)
    assert cuda.driver_version() == (13, 1)


def test_a_driver_that_does_not_answer_and_none_at_all_are_the_same(monkeypatch):
    fake_driver(monkeypatch, 0, code=3)
    assert cuda.driver_version() is None

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda.driver_version() is None


def test_the_wheels_of_cupy_are_told_from_what_is_named_alike(monkeypatch, tmp_path):
    for name in ("cupy-cuda12x", "cupy_cuda13x", "cupy-xarray", "cupyx-tools", "numpy"):
        info = tmp_path / f"{name.replace('-', '_')}-14.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 14.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cuda.cupy_wheels() == ["cupy-cuda12x", "cupy-cuda13x"]


# -- what it hands to CuPy ---------------------------------------------------------------------------


def test_a_launch_passes_each_argument_with_its_c_type(cupy, folder):
    launch(CudaDevice())
    [(name, grid, block, (x, _, null, factor, count))] = cupy.launches
    assert (name, grid, block) == ("scale", (1, 1, 1), (32, 1, 1))
    assert isinstance(x, np.ndarray)
    assert (type(null), null) == (np.uintp, 0)
    assert (type(factor), type(count)) == (np.float32, np.int32)


def test_nothing_is_contracted_that_is_not_written_so_and_constants_become_macros(cupy, folder):
    launch(CudaDevice())
    [(code, options, backend)] = cupy.modules
    assert code == (folder / "scale.cu").read_text()
    assert backend == "nvrtc"
    assert {"-fmad=false", "-DSCALAR=float", "-DKERNEL_H=3", f"-I{folder}"} <= set(options)


@pytest.mark.parametrize("nvrtc", [(12, 0), (12, 9), (13, 0)])
def test_a_kernel_of_one_architecture_is_compiled_for_it_alone_and_once_for_all_processes(
    cupy, folder, nvrtc, monkeypatch, tmp_path
):
    monkeypatch.setenv("GPUCNN_CACHE", str(tmp_path / "cache"))
    cupy.nvrtc, source = nvrtc, folder / "scale.cu"
    source.write_text("// Needs sm_90a\n" + source.read_text())
    for _ in range(2):  # processes
        launch(CudaDevice())
        launch(CudaDevice(), KERNEL_H=5)
    assert len(cupy.launches) == 4
    for code, options, _ in cupy.modules:
        assert code == source.read_text()
        assert [option for option in options if option.startswith("-arch")] == ["-arch=sm_90a"]
        assert {"-fmad=false", "-ftz=true", f"-I{folder}"} <= set(options)
    assert len(cupy.cuda.nvrtc.programs) == 2
    assert set(map(tuple, cupy.cuda.nvrtc.programs.values())) == {("destroyed",)}
    with pytest.raises(KernelError, match=r"NVRTC refused scale.cu for scale with .*'BROKEN': 1.*\n.*expected a ;"):
        launch(CudaDevice(), BROKEN=1)


def test_another_gpu_than_the_one_it_began_on_is_refused(cupy, folder):
    device = CudaDevice()
    cupy.current = 1
    with pytest.raises(RuntimeError, match=r"computes on GPU 0, .* but now GPU 1 is: .* CUDA_VISIBLE_DEVICES=1"):
        launch(device)
    assert not cupy.launches
    cupy.current = 0
    launch(device)


def test_a_copy_from_the_host_takes_cupys_memory_except_in_a_capture(cupy):
    device = CudaDevice()
    given = object()
    cupy.get_default_pinned_memory_pool = lambda: SimpleNamespace(malloc=lambda size: (given, size))
    assert cupy.pinned(12) == (given, 12)
    with device.capture(Arena(1 << 20)), pytest.raises(CaptureError, match="hands values on the host"):
        cupy.pinned(12)
    assert cupy.pinned(12) == (given, 12)


@pytest.mark.parametrize("index", [np.array([7]), (slice(None), np.array([0, -4])), ([0], [3])])
def test_an_index_out_of_range_is_refused_though_cupy_wraps_it_around(cupy, monkeypatch, index):
    def wrapped(array, index):
        return np.ndarray.__getitem__(array, np.mod(index, 3) if isinstance(index, np.ndarray) else 0)

    engine = KernelBackend(CudaDevice())
    x = Tensor(engine.asarray(np.ones((3, 3), np.float32)), engine)
    monkeypatch.setattr(host_arrays.HostArray, "__getitem__", wrapped)
    monkeypatch.setattr(host_arrays.HostArray, "__setitem__", lambda array, index, value: None)
    with pytest.raises(IndexError, match=r"does not fit shape \(3, 3\): index .* is out of bounds"):
        x[index]
    with pytest.raises(IndexError, match=r"can't be put at .* of shape \(3, 3\): index .* is out of bounds"):
        x[index] = 2


def test_cupy_writes_the_kernels_sources_in_any_encoding():
    assert all(path.read_bytes().isascii() for path in kernel_folder().glob("*.cu*"))


def test_a_specialisation_is_compiled_once(cupy, folder):
    device = CudaDevice()
    launch(device)
    launch(device)
    assert (len(cupy.modules), len(cupy.launches)) == (1, 2)
    launch(device, KERNEL_H=5)
    assert len(cupy.modules) == 2


def test_what_was_prepared_is_not_compiled_again_at_its_launch(cupy, folder):
    device = CudaDevice()
    preparing = device.prepare([SCALE, SCALE._replace(constants=(("KERNEL_H", 5), ("SCALAR", "float")))])
    assert not cupy.modules
    assert next(preparing) == SCALE
    assert len(cupy.modules) == 1
    assert len(list(preparing)) == 1
    launch(device)
    launch(device, KERNEL_H=5)
    assert (len(cupy.modules), len(cupy.launches)) == (2, 2)


def test_a_changed_header_changes_the_options_that_cupys_cache_looks_at(cupy, folder):
    launch(CudaDevice())
    (folder / "some.cuh").write_text("// another header")
    launch(CudaDevice())
    first, second = (options for _, options, _ in cupy.modules)
    assert first != second


def test_an_argument_that_does_not_fit_never_reaches_the_gpu(cupy, folder):
    with pytest.raises(KernelError, match="factor must be a number, got str"):
        launch(CudaDevice(), factor="2")
    assert not cupy.launches


def test_a_kernel_that_does_not_compile_is_named_with_its_constants(cupy, folder):
    with pytest.raises(KernelError, match=r"NVRTC refused scale.cu for scale with .*'BROKEN': 1.*\n.*expected a ;"):
        launch(CudaDevice(), BROKEN=1)


def test_time_is_what_lies_between_two_events_in_seconds(cupy):
    called = []
    assert CudaDevice().time(lambda: called.append(1)) == pytest.approx(0.003)
    assert called == [1]


def test_the_memory_report_tells_what_arrays_hold_from_what_the_pool_keeps(cupy):
    assert CudaDevice().memory_report() == {"used": 10, "held": 30, "free": 700, "total": 1000}


def test_the_arguments_that_cupy_gets_compute_what_the_emulator_computes(cupy):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 6, 7, 5), np.float32), rng.standard_normal((4, 6, 3, 2), np.float32)
    b, window = rng.standard_normal(4, np.float32), Window((3, 2), (2, 1), (1, 0, 0, 1), (1, 1))
    results = []
    for device in (CudaDevice(), EmulatorDevice()):
        backend = KernelBackend(device)
        arrays = [backend.asarray(a) for a in (x, w, b)]
        results.append(backend.to_numpy(backend.conv2d_forward(*arrays, window, 1)))
    assert [name for name, *_ in cupy.launches] == ["channels_last", "channels_last", "conv2d_forward"]
    np.testing.assert_array_equal(*results)


def test_the_kernels_are_found():
    assert (kernel_folder() / "common.cuh").is_file()
