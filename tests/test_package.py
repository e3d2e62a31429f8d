"""What pip gets: the wheel and the source distribution."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = {path.name for path in (ROOT / "kernels").iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the sdist, built as `pip wheel` would but without fetching the build backend."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


def test_the_wheel_has_all_modules_the_kernels_the_emulator_and_the_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gpucnn").rglob("*.py")}
    assert modules <= names
    assert {f"gpucnn/kernels/{name}" for name in KERNELS} <= names
    assert {"gpucnn/py.typed", "gpucnn/devices/emulator.cpp", "gpucnn/devices/cuda_on_cpu.h"} <= names
    page = {path.name for path in (ROOT / "gpucnn" / "page" / "static").iterdir()}
    assert {"index.html", "style.css", "main.js"} <= page
    assert {f"gpucnn/page/static/{name}" for name in page} <= names


def test_the_wheel_has_nothing_else(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"gpucnn", f"{wheel.name.split('-py3')[0]}.dist-info"}


def test_the_sdist_has_what_a_developer_needs(built):
    archive = next(built.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE",
        "pyproject.toml",
        "docs/guide.md",
        "gpucnn/py.typed",
    }
    assert wanted | {f"kernels/{name}" for name in KERNELS} <= names
    assert "tests/conftest.py" in names


def test_an_installed_wheel_finds_its_kernels_and_its_command_runs(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import gpucnn; from gpucnn.devices.base import kernel_folder\n"
        "print(gpucnn.__file__); print(kernel_folder())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    module, folder = result.stdout.split()
    assert Path(module) == tmp_path / "gpucnn" / "__init__.py"
    assert Path(folder) == tmp_path / "gpucnn" / "kernels"
    command = subprocess.run([str(tmp_path / "bin" / "gpucnn"), "--help"], cwd=tmp_path, capture_output=True, text=True,
                             env={"PYTHONPATH": str(tmp_path), "PATH": ""}, check=False)  # fmt: skip
    assert command.returncode == 0, command.stderr
    assert "train" in command.stdout


def test_the_core_needs_little():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {"numpy", "safetensors", "threadpoolctl", "typer", "rich"}
    assert set(project["optional-dependencies"]) == {
        "cuda12", "cuda13", "data", "viz", "onnx", "sklearn", "half", "demo", "test", "bench", "docs", "audit",
    }  # fmt: skip
