"""`import gpucnn` is quick and brings in nothing that a program may not have or need."""

import subprocess
import sys

import pytest

LAZY = ["cupy", "typer", "rich", "matplotlib", "PIL", "sklearn", "mlxtend", "torch", "onnx", "scipy", "safetensors",
        "ml_dtypes"]  # fmt: skip


def output_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_import_brings_in_no_optional_package() -> None:
    found = output_of(f"import sys, gpucnn; print([name for name in {LAZY} if name in sys.modules])")
    assert found == "[]\n"


@pytest.mark.parametrize("package", LAZY)
def test_import_works_where_a_package_is_not_installed(package: str) -> None:
    """None in sys.modules makes any import of that name fail. A small network must run, too."""
    if package == "cupy":
        code = "print(gpucnn.nn.models.x_or_not_x()(gpucnn.zeros(1, 1, 5, 5, backend='numpy')).shape)"
    else:
        code = "print((1, 1))"
    assert output_of(f"import sys; sys.modules[{package!r}] = None; import gpucnn; {code}") == "(1, 1)\n"


def test_import_takes_less_than_a_fifth_of_a_second() -> None:
    """Of the processor, without NumPy's own import; the best of five, since other programs share the machine."""
    code = "import numpy, time; t = time.process_time(); import gpucnn; print(time.process_time() - t)"
    assert min(float(output_of(code)) for _ in range(5)) < 0.2


def test_import_says_nothing() -> None:
    result = subprocess.run([sys.executable, "-W", "error", "-c", "import gpucnn"], capture_output=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_public_names_are_there() -> None:
    import gpucnn

    for module in (gpucnn, gpucnn.nn, gpucnn.functional, gpucnn.data):
        assert [name for name in module.__all__ if not hasattr(module, name)] == []
        assert sorted(set(module.__all__)) == sorted(module.__all__)
