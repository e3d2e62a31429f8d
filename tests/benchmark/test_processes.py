"""Starts and peaks of memory: each measurement is a process, and its loss must be right."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from gpucnn.backends.numpy_parallel import workers
from gpucnn.benchmark import child, processes, suites
from gpucnn.benchmark.providers import Gpucnn

IMPORT, FIRST_STEP, COMPILING = suites.tasks("startup")
MEMORY = suites.tasks("memory", (8,), "lenet5")[0]


@pytest.fixture(autouse=True)
def _three_rounds(monkeypatch):
    monkeypatch.setattr(processes, "ROUNDS", 3)


def measured(task, *providers):
    return processes.measure(task, providers or (Gpucnn("numpy"),), "fp32", workers.threads, 0.0)


def provider(name):
    return SimpleNamespace(name=name, device="cpu")


def test_an_import_is_the_life_of_a_process():
    [row] = measured(IMPORT)
    assert (row.status, len(row.values), row.unit) == ("measured", 3, "s")
    assert 0.05 < row.median < 60


def test_a_first_step_is_right_and_takes_longer_than_the_import():
    [row] = measured(FIRST_STEP)
    assert row.status == "measured", row.reason
    assert row.of_bound is not None
    assert row.of_bound < 1
    assert row.median > 0.05


def test_torch_takes_the_same_first_step(torch):
    [row] = measured(FIRST_STEP, provider("torch-cpu"))
    assert row.status == "measured", row.reason


def test_the_peak_of_memory_is_that_of_the_process():
    [row] = measured(MEMORY)
    assert (row.status, row.unit) == ("measured", "bytes"), row.reason
    assert 20e6 < row.median < 2e9
    assert row.error is not None


def test_a_process_that_fails_is_shown_with_its_last_line(monkeypatch):
    monkeypatch.setattr(processes, "takes_part", lambda task, provider: True)
    broken, right = measured(IMPORT, provider("nonsuch-package"), Gpucnn("numpy"))
    assert (broken.status, broken.values) == ("failed", [])
    assert broken.reason == "RuntimeError: ModuleNotFoundError: No module named 'nonsuch'"
    assert right.status == "measured"


def test_a_wrong_loss_is_not_timed(monkeypatch):
    monkeypatch.setattr(processes, "_one", lambda *_: (0.5, 2.0))
    [row] = measured(FIRST_STEP)
    assert (row.status, row.values) == ("wrong", [])
    assert row.reason.startswith("its loss is 2, expected 2.3")


def test_a_process_that_hangs_is_a_failure(monkeypatch):
    def hang(*_):
        raise subprocess.TimeoutExpired("python", 300)

    monkeypatch.setattr(processes, "_one", hang)
    [row] = measured(IMPORT)
    assert row.status == "failed"
    assert "timed out after 300 seconds" in row.reason


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (IMPORT, ["numpy", "torch-cpu", "jax", "tinygrad", "cupy"]),
        (FIRST_STEP, ["numpy", "cuda", "torch-cpu", "torch-cuda"]),
        (COMPILING, ["cuda"]),
        (MEMORY, ["numpy", "cuda", "torch-cpu", "torch-cpu-channels-last", "torch-cuda", "torch-cuda-channels-last",
                  "jax", "tinygrad"]),
    ],
)  # fmt: skip
def test_each_task_has_the_providers_that_it_means_something_for(task, names):
    from gpucnn.benchmark.providers import NAMES

    assert [name for name in NAMES if processes.takes_part(task, provider(name))] == names


def test_compiling_starts_with_an_empty_cache_in_each_process(monkeypatch, tmp_path):
    seen = []

    def run(command, *, env, **_):
        seen.append(env["CUPY_CACHE_DIR"])
        return SimpleNamespace(returncode=0, stdout='warning\n{"loss": 2.5}\n', stderr="")

    monkeypatch.setattr(processes.subprocess, "run", run)
    for _ in range(2):
        _, loss = processes._one(COMPILING, provider("cuda"), "fp32", 2, str(tmp_path))
        assert loss == 2.5
    assert len(set(seen)) == 2


# -- the program of the process ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    problem = processes._saved_problem(MEMORY, "fp32", tmp_path)
    return str(tmp_path), float(problem.exact[0])


@pytest.mark.parametrize("name", ["numpy", "torch-cpu"])
def test_the_first_loss_is_the_reference_s(name, folder, request):
    if name == "torch-cpu":
        request.getfixturevalue("torch")
    path, expected = folder
    assert child.first_step(name, path) == pytest.approx(expected, rel=1e-5)


def test_the_program_prints_a_line_of_json(folder, capsys):
    path, expected = folder
    child.main("step", "numpy", path)
    child.main("memory", "numpy", "lenet5", path, "fp32", str(workers.threads))
    child.main("import", "json")
    first, second, third = capsys.readouterr().out.splitlines()
    assert f'{{"loss": {expected:.4f}'[:14] in first
    assert '"bytes": ' in second
    assert third == "{}"


def test_saved_weights_are_those_of_the_problem(tmp_path):
    problem = processes._saved_problem(MEMORY, "fp32", tmp_path)
    with np.load(tmp_path / "problem.npz") as file:
        np.testing.assert_array_equal(file["0.weight"], problem.weights["0.weight"])
        assert file["images"].shape == (8, 1, 28, 28)
