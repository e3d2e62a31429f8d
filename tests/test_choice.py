"""Choosing a backend on machines that lack one thing or another: what auto picks, what it says, what a name is told."""

import logging
import subprocess
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import fake_cupy
import numpy as np
import pytest

import gpucnn
from gpucnn import backends, nn
from gpucnn.devices import emulator


@pytest.fixture(autouse=True)
def _nothing_is_made_yet(monkeypatch):
    monkeypatch.setattr(backends, "_made", {})
    monkeypatch.setattr(backends, "_auto", [])
    monkeypatch.delenv("GPUCNN_BACKEND", raising=False)


@pytest.fixture
def _no_driver(monkeypatch):
    fake_cupy.install(monkeypatch, driver=None, wheels=())


@pytest.fixture
def _no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(emulator.shutil, "which", lambda name: None)
    emulator.compiler.cache_clear()
    yield
    emulator.compiler.cache_clear()


@pytest.fixture
def _no_nvrtc(monkeypatch):
    def library():
        raise RuntimeError("nvidia-cuda-nvrtc is not installed: pip install nvidia-cuda-nvrtc")

    monkeypatch.setattr("gpucnn.devices.nvrtc.library", library)


@pytest.fixture
def cupy(monkeypatch):
    return fake_cupy.install(monkeypatch)


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "gpucnn"]


# -- auto --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_driver")
def test_auto_is_numpy_without_a_gpu_and_says_so_once_with_the_reason(caplog):
    caplog.set_level(logging.INFO, "gpucnn")
    assert [gpucnn.zeros(2).backend.name for _ in range(3)] == ["numpy"] * 3
    [message] = messages(caplog)
    assert message.startswith("GPUCNN_BACKEND=auto picks numpy: cuda can't run here: there is no NVIDIA driver")


@pytest.mark.usefixtures("cupy")
def test_auto_is_cuda_where_a_gpu_is_usable_and_says_so_once(caplog):
    caplog.set_level(logging.INFO, "gpucnn")
    assert gpucnn.zeros(2).backend.name == "cuda"
    assert gpucnn.get_backend("auto") is gpucnn.get_backend() is gpucnn.get_backend("cuda")
    assert messages(caplog) == ["GPUCNN_BACKEND=auto picks cuda: a GPU is usable"]


@pytest.mark.parametrize("lack", [
    {"driver": (11, 8)}, {"wheels": ()}, {"wheels": ("cupy-cuda12x", "cupy-cuda13x")}, {"runtime_version": 13010},
    {"gpus": 0}, {"gpus": fake_cupy.CUDARuntimeError("cudaErrorNoDevice")}, {"nvrtc": RuntimeError("no libnvrtc")},
    {"headers": None},
])  # fmt: skip
def test_auto_never_fails_and_the_name_cuda_does(monkeypatch, lack):
    machine = {name: lack[name] for name in ("driver", "wheels") if name in lack}
    fake = fake_cupy.install(monkeypatch, **machine)
    vars(fake).update({name: value for name, value in lack.items() if name not in machine})
    if "headers" in lack:
        pathfinder = SimpleNamespace(find_nvidia_header_directory=lambda name: lack["headers"])
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    choice, why = backends.auto_choice()
    assert (choice, gpucnn.get_backend().name) == ("numpy", "numpy")
    with pytest.raises(RuntimeError) as error:
        gpucnn.get_backend("cuda")
    reason = why.removeprefix("cuda can't run here: ")
    assert str(error.value) == f"backend is 'cuda', which can't run here: {reason}"


@pytest.mark.usefixtures("_no_driver")
def test_auto_does_not_import_cupy_on_a_machine_without_a_driver():
    """sys.modules["cupy"] is None there: an import would fail, and auto would say that instead."""
    assert "driver" in backends.auto_choice()[1]


def test_auto_says_its_choice_once_also_to_threads_at_once(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "gpucnn")
    fake = fake_cupy.install(monkeypatch)

    def slow_count():
        time.sleep(0.05)
        return 1

    fake.cuda.runtime.getDeviceCount = slow_count
    found = []
    threads = [threading.Thread(target=lambda: found.append(gpucnn.get_backend())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(messages(caplog)) == 1
    assert len({id(backend) for backend in found}) == 1


# -- a name ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_driver")
def test_cuda_by_its_name_is_never_replaced_by_another(monkeypatch):
    expected = r"which can't run here: there is no NVIDIA driver .*: \S+"
    with pytest.raises(RuntimeError, match=f"backend is 'cuda', {expected}"):
        gpucnn.zeros(2, backend="cuda")
    with (
        pytest.raises(RuntimeError, match=f"backend is 'cuda', {expected}"),
        gpucnn.use_backend("cuda"),
    ):
        pytest.fail("the scope must not begin")
    monkeypatch.setenv("GPUCNN_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match=f"GPUCNN_BACKEND is 'cuda', {expected}"):
        gpucnn.zeros(2)
    assert gpucnn.zeros(2, backend="numpy").backend.name == "numpy"


@pytest.mark.usefixtures("_no_compiler")
def test_the_emulator_without_a_compiler_is_an_error_that_says_what_to_install():
    with pytest.raises(RuntimeError, match=r"backend is 'emulator', which can't run here: .*apt-get install g\+\+"):
        gpucnn.get_backend("emulator")


def test_a_backend_that_became_able_to_run_is_found_without_a_new_process(monkeypatch):
    fake_cupy.install(monkeypatch, wheels=())
    with pytest.raises(RuntimeError, match="CuPy is not installed"):
        gpucnn.get_backend("cuda")
    fake_cupy.install(monkeypatch)
    assert gpucnn.get_backend("cuda").name == "cuda"


@pytest.mark.parametrize("name", ["cudda", "CUDA", "gpu", "recorder"])
def test_a_name_that_does_not_exist_lists_those_that_do(monkeypatch, name):
    with pytest.raises(
        ValueError, match=f"^backend is '{name}', but the backends are auto, numpy, cuda, emulator, ptx$"
    ):
        gpucnn.get_backend(name)
    monkeypatch.setenv("GPUCNN_BACKEND", name)
    with pytest.raises(ValueError, match=f"^GPUCNN_BACKEND is '{name}', but"):
        gpucnn.get_backend()


# -- what is available -------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_driver", "_no_compiler", "_no_nvrtc")
def test_numpy_is_always_available():
    assert gpucnn.available_backends() == ("numpy",)


@pytest.mark.usefixtures("cupy")
def test_what_is_available_can_be_had():
    names = ("numpy", "cuda", "emulator", "ptx")
    assert gpucnn.available_backends() == names
    assert tuple(gpucnn.get_backend(name).name for name in names) == names


# -- moving ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cupy")
def test_a_model_moves_between_backends_with_its_numbers_and_dtypes():
    with gpucnn.use_backend("numpy"):
        model = nn.Sequential(nn.Conv2d(3, 4, (3, 2)), nn.BatchNorm2d(4))
    before = {name: (value.numpy().copy(), value.dtype) for name, value in model.state_dict().items()}
    for name in ("emulator", "cuda", "numpy"):
        assert model.to(name) is model
        assert {value.backend for value in model.state_dict().values()} == {gpucnn.get_backend(name)}
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name][0])
        assert value.dtype == before[name][1]


@pytest.mark.usefixtures("_no_driver")
def test_a_model_that_can_not_move_stays_whole():
    with gpucnn.use_backend("numpy"):
        model = nn.Conv2d(3, 4, (3, 2))
    with pytest.raises(RuntimeError, match="'cuda', which can't run here"):
        model.to("cuda")
    assert {value.backend.name for value in model.parameters()} == {"numpy"}


def test_two_backends_in_one_op_are_an_error_that_says_how_to_move():
    x, y = gpucnn.zeros(2, backend="numpy"), gpucnn.zeros(2, backend="emulator")
    with pytest.raises(ValueError, match=r"numpy.*emulator.*\.to\('numpy'\)"):
        x + y


# -- other processes and threads ---------------------------------------------------------------------


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_subprocess_takes_the_variable_from_its_environment(monkeypatch):
    code = "import gpucnn; print(gpucnn.zeros(2).backend.name)"
    for name in ("emulator", "numpy"):
        monkeypatch.setenv("GPUCNN_BACKEND", name)
        result = run(code, **dict(backends.os.environ))
        assert (result.returncode, result.stdout) == (0, f"{name}\n"), result.stderr


def test_the_variable_may_be_set_after_the_import_and_changed_between_tensors(monkeypatch):
    for name in ("emulator", "numpy", "emulator"):
        monkeypatch.setenv("GPUCNN_BACKEND", name)
        assert gpucnn.zeros(2).backend.name == name


def test_neither_import_nor_the_numpy_backend_imports_cupy(monkeypatch):
    code = "import sys, gpucnn; gpucnn.zeros(2); print('cupy' in sys.modules, 'gpucnn.devices' in sys.modules)"
    result = run(code, **{**backends.os.environ, "GPUCNN_BACKEND": "numpy"})
    assert result.stdout == "False False\n", result.stderr


def test_each_thread_may_compute_on_a_backend_of_its_own():
    seen, both = {}, threading.Barrier(2)

    def compute(name):
        with gpucnn.use_backend(name):
            both.wait(10)
            seen[name] = (gpucnn.ones(2, 3) + 1).backend.name

    threads = [threading.Thread(target=compute, args=[name]) for name in ("numpy", "emulator")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"numpy": "numpy", "emulator": "emulator"}
