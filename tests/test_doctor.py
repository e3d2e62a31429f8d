"""doctor: on each machine it names what is missing, with the command that mends it, and its exit code says pass."""

import re
import sys
from importlib import metadata

import fake_cupy
import numpy as np
import pytest

from gpucnn import backends, doctor
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices import emulator
from gpucnn.doctor import Finding, diagnose

H200 = "NVIDIA H200, 9.0, 143771 MiB, 550.54.15\n"


@pytest.fixture(autouse=True)
def _nothing_is_made_yet(monkeypatch):
    monkeypatch.setattr(backends, "_made", {})
    monkeypatch.setattr(backends, "_auto", [])
    for variable in ("GPUCNN_BACKEND", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def machine(monkeypatch):
    """A maker of machines with a GPU, or one that lacks something."""

    def make(smi=H200, **lack):
        fake = fake_cupy.install(monkeypatch, **{n: lack.pop(n) for n in ("driver", "wheels") if n in lack})
        vars(fake).update(lack)
        monkeypatch.setattr(metadata, "version", lambda name: "14.2.0")
        which, output = doctor.shutil.which, doctor._output
        programs = {"ubuntu-drivers": None, "nvidia-smi": smi and "/usr/bin/nvidia-smi"}
        monkeypatch.setattr(doctor.shutil, "which", lambda name: programs[name] if name in programs else which(name))
        monkeypatch.setattr(doctor, "_output", lambda *c: smi if c[0] == "nvidia-smi" else output(*c))
        return fake

    return make


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


def found(subject, backend=None):
    return by_subject(diagnose(backend))[subject]


def problems(findings):
    return [finding.subject for finding in findings if finding.status == "problem"]


# -- whole machines ----------------------------------------------------------------------------------


def test_where_all_is_well_every_finding_is_ok_and_cuda_computes(machine):
    machine()
    findings = diagnose()
    assert {finding.status for finding in findings} == {"ok"}, "\n".join(map(str, findings))
    seen = by_subject(findings)
    assert seen["NVIDIA driver"].text == "of CUDA 12.4"
    assert seen["GPU"].text == "NVIDIA H200, compute capability 9.0, 143771 MiB, driver 550.54.15"
    assert seen["CuPy"].text == "cupy-cuda12x 14.2.0"
    assert seen["choice"].text == "cuda computes: auto picks it, since cuda can run here"
    assert seen["cuda backend"].text.startswith("computes")


def test_where_there_is_no_gpu_numpy_computes_and_that_is_no_problem(machine):
    machine(driver=None, wheels=())
    findings = diagnose()
    assert problems(findings) == []
    seen = by_subject(findings)
    assert seen["NVIDIA driver"].status == seen["cuda backend"].status == "warning"
    assert "nvidia.com/drivers" in seen["NVIDIA driver"].command
    assert (seen["numpy backend"].status, seen["emulator backend"].status) == ("ok", "ok")
    assert seen["choice"].text == "numpy computes: auto picks it, since cuda cannot run here"


@pytest.mark.parametrize("ask", ["argument", "variable"])
def test_what_is_asked_for_by_name_and_can_not_run_is_a_problem(machine, monkeypatch, ask):
    machine(driver=None, wheels=())
    if ask == "variable":
        monkeypatch.setenv("GPUCNN_BACKEND", "cuda")
    findings = diagnose("cuda" if ask == "argument" else None)
    assert problems(findings) == ["NVIDIA driver", "cuda backend", "choice"]
    other = "gpucnn doctor --backend auto" if ask == "argument" else "export GPUCNN_BACKEND=auto"
    assert findings[-1].command == other


# -- one thing is missing ----------------------------------------------------------------------------

INSTALL = 'pip install "gpucnn[cuda12]"'
LACKS = {
    "driver too old": ({"driver": (11, 8)}, "NVIDIA driver", "of CUDA 11.8, but CuPy needs 12.0", "nvidia.com/drivers"),
    "no GPU": ({"smi": "", "gpus": 0}, "cuda backend", "there is no GPU that CUDA can use", ""),
    "no CuPy": ({"wheels": ()}, "CuPy", "is not installed", INSTALL),
    "two CuPys": (
        {"wheels": ("cupy-cuda12x", "cupy-cuda13x")}, "CuPy", "cupy-cuda12x 14.2.0 and cupy-cuda13x 14.2.0 overwrite",
        f"pip uninstall -y cupy-cuda12x cupy-cuda13x && {INSTALL}",
    ),
    "CuPy too new": (
        {"wheels": ("cupy-cuda13x",), "runtime_version": 13010}, "CuPy", "14.2.0, but the driver is of CUDA 12.4",
        f"pip uninstall -y cupy-cuda13x && {INSTALL}",
    ),
    "no NVRTC": (
        {"nvrtc": RuntimeError("Failure finding libnvrtc")}, "NVRTC", "can't be loaded (Failure finding libnvrtc)",
        "pip install nvidia-cuda-nvrtc-cu12",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_thing_that_is_missing_is_found_with_the_command_that_mends_it(machine, lack, asked):
    changes, subject, text, command = LACKS[lack]
    machine(**changes)
    seen = by_subject(diagnose(asked))
    assert text in seen[subject].text
    assert command in seen[subject].command
    assert seen[subject].status == seen["cuda backend"].status == ("problem" if asked == "cuda" else "warning")


def test_a_cupy_that_can_not_be_imported_is_found(machine):
    fake = machine()
    del fake.cuda
    finding = found("CuPy")
    assert finding.text == "cupy-cuda12x 14.2.0 can't be imported (module 'numpy' has no attribute 'cuda')"
    assert finding.command == f"pip uninstall -y cupy-cuda12x && {INSTALL}"


def test_an_nvrtc_that_is_newer_than_the_driver_is_a_warning(machine):
    machine(nvrtc=(13, 0))
    finding = found("NVRTC")
    assert finding.status == "warning"
    assert finding.text == "13.0 makes code that a driver of CUDA 12.4 may not load"
    assert finding.command == "pip install nvidia-cuda-nvrtc-cu12"


def test_a_gpu_older_than_the_kernels_is_a_warning(machine):
    machine(smi="NVIDIA H200, 9.0, 143771 MiB, 550.54.15\nTesla P100, 6.0, 16280 MiB, 550.54.15\n")
    new, old = (finding for finding in diagnose() if finding.subject == "GPU")
    assert (new.status, old.status) == ("ok", "warning")
    assert "Tesla P100, compute capability 6.0" in old.text
    assert old.text.endswith("the kernels are written for 7.5 and newer")


def test_gpus_that_the_environment_hides_are_pointed_out(machine, monkeypatch):
    machine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    hidden = [finding for finding in diagnose() if finding.subject == "GPU"][-1]
    assert (hidden.text, hidden.command) == ("CUDA_VISIBLE_DEVICES is '3'", "unset CUDA_VISIBLE_DEVICES")


def test_an_nvidia_smi_that_lists_nothing_is_found(machine):
    machine(smi="No devices were found\n", gpus=0)
    assert (found("GPU").status, found("GPU", "cuda").status) == ("warning", "problem")
    assert found("GPU").text == "nvidia-smi lists none"


def test_without_a_compiler_the_emulator_is_pointed_out(machine, monkeypatch):
    machine()

    def compiler():
        raise emulator.KernelError("the emulator needs a C++ compiler")

    monkeypatch.setattr(emulator, "compiler", compiler)
    seen = by_subject(diagnose())
    assert seen["C++ compiler"] == Finding(
        "warning", "C++ compiler", "none is found, so the emulator can't run", "sudo apt-get install g++"
    )
    assert seen["emulator backend"].status == "warning"
    assert problems(diagnose("emulator")) == ["C++ compiler", "emulator backend", "choice"]


def test_kernel_files_that_are_not_there_are_found(machine, monkeypatch, tmp_path):
    machine(driver=None, wheels=())
    monkeypatch.setattr(doctor, "kernel_folder", lambda: tmp_path)
    finding = found("kernels", "emulator")
    assert (finding.status, finding.text) == ("problem", f"there are none in {tmp_path}")
    assert finding.command == "pip install --force-reinstall gpucnn"
    assert found("kernels").status == "warning"


@pytest.mark.parametrize(("variable", "subject"), [
    ("GPUCNN_CACHE", "kernel cache"), ("GPUCNN_DATA", "data sets"), ("CUPY_CACHE_DIR", "CuPy cache"),
])  # fmt: skip
def test_a_cache_that_can_not_be_written_is_found(machine, monkeypatch, tmp_path, variable, subject):
    machine()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(variable, str(tmp_path / "file" / "cache"))
    finding = found(subject)
    assert finding.status == "warning"
    assert finding.text.startswith(str(tmp_path / "file" / "cache"))
    assert finding.command == f'export {variable}="$(mktemp -d)"'
    monkeypatch.setenv(variable, str(tmp_path / "new" / "cache"))
    assert found(subject).status == "ok"
    assert not (tmp_path / "new").exists(), "looking makes no folder"


# -- trials ------------------------------------------------------------------------------------------


def test_a_backend_that_fails_at_its_first_kernel_is_a_problem_if_auto_picks_it(machine):
    fake = machine()

    def compute(*launch):
        raise RuntimeError("CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid")

    fake.compute = compute
    findings = diagnose()
    assert problems(findings) == ["cuda backend"]
    assert by_subject(findings)["cuda backend"].text == (
        "does not compute: CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid"
    )


@pytest.mark.parametrize(("wheel", "command"), [
    ("cupy-cuda12x", "pip install nvidia-cuda-runtime-cu12"), ("cupy-cuda13x", "pip install nvidia-cuda-runtime==13.*"),
])  # fmt: skip
def test_cuda_headers_that_cupy_does_not_find_are_named_with_their_package(machine, wheel, command):
    fake = machine(wheels=(wheel,))

    def compute(*launch):
        raise fake_cupy.CompileException('float16.cuh(19): catastrophic error: cannot open source file "cuda_fp16.h"')

    fake.compute = compute
    assert found("cuda backend").command == command


def test_a_backend_that_computes_something_else_is_a_problem(machine, monkeypatch):
    machine()
    monkeypatch.setattr(KernelBackend, "bias_backward", lambda self, dy: np.array([70, 70, 69], np.float32))
    finding = found("cuda backend")
    assert finding.status == "problem"
    assert "computes nonsense" in finding.text


# -- what is printed ---------------------------------------------------------------------------------


def test_a_misspelt_backend_is_the_only_problem_and_names_the_choices(machine, monkeypatch):
    machine(driver=None, wheels=())
    monkeypatch.setenv("GPUCNN_BACKEND", "cudda")
    findings = diagnose()
    assert problems(findings) == ["choice"]
    assert "GPUCNN_BACKEND is 'cudda', but the backends are auto, numpy, cuda, emulator, ptx" in findings[-1].text
    assert findings[-1].command == "export GPUCNN_BACKEND=auto"


@pytest.mark.parametrize(("asked", "code"), [(None, 0), ("numpy", 0), ("emulator", 0), ("cuda", 1), ("frob", 1)])
def test_the_exit_code_says_whether_what_is_asked_for_works(machine, capsys, asked, code):
    machine(driver=None, wheels=())
    assert doctor.run(asked) == code
    assert ("problem " in capsys.readouterr().out) == bool(code)


def test_what_is_piped_is_a_line_a_finding_with_its_command(machine, capsys):
    machine(wheels=())
    doctor.run()
    lines = capsys.readouterr().out.splitlines()
    assert f"warning  CuPy              is not installed: {INSTALL}" in lines
    assert all(line.split()[0] in ("ok", "warning", "problem") for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_a_terminal_gets_a_table_that_keeps_square_brackets(machine, capsys, monkeypatch):
    machine(wheels=())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    doctor.run()
    lines = [line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()]
    at = lines.index(INSTALL)
    assert lines[at - 1].split() == ["warning", "CuPy", "is", "not", "installed"]
