"""Measured choices of kernels: right first, faster by more than noise, of this device alone, never in silence."""

import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_cupy
import pytest

import gpucnn
from gpucnn import data, doctor, nn, onnx, optim, train, tune, verify
from gpucnn.backends import tuning
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.backends.tuning import Measurement, Tuning
from gpucnn.backends.variants import Convolution, Problem, Product, Variant, candidates, usual
from gpucnn.checkpoint import save_model
from gpucnn.cli import main
from gpucnn.devices import KernelError
from gpucnn.devices.cuda import CudaDevice
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.host import HostDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.geometry import Window
from gpucnn.testing import launches

PRODUCT = Problem("matmul", Product(1, 3, 2, 5, False, False), "float")
OTHERS = [str(variant) for variant in candidates(PRODUCT)[1:]]
CONVOLUTION = Problem(
    "conv2d_backward_weight", Convolution(2, 19, 17, 6, 4, 9, 16, 2, Window((3, 2), (2, 1), (1, 0, 0, 0))), "float"
)
OTHER_PARTS = str(candidates(CONVOLUTION)[1])


class Calculator(HostDevice):
    """Computes products as NumPy does, but for tiles that are `wrong`, if need be where the matrices are so transposed
    alone; no kernel is compiled."""

    name = "calculator"

    def __init__(self, wrong: str = "", transposed: tuple[bool, bool] | None = None) -> None:
        self.wrong, self.transposed = wrong, transposed

    @property
    def identity(self) -> dict[str, str]:
        return {"name": "calculator", "capability": "none", "kernels": "0123"}

    def launch(self, file: str, name: str, constants: Any, grid: Any, block: Any, *arguments: Any) -> None:
        a, b, _, _, out = arguments[:5]
        a, b = (m.swapaxes(-1, -2) if constants[f"TRANS_{x}"] else m for m, x in ((a, "A"), (b, "B")))
        out[...] = a @ b
        here = self.transposed in (None, (constants["TRANS_A"], constants["TRANS_B"]))
        if here and self.wrong == f"{constants['TILE_M']}x{constants['TILE_N']}":
            out[..., -1] += 0.01


def timer(**seconds: float) -> Any:
    """A clock for which variants take so long, by their names with underscores; others take a second."""
    return lambda variant, work: seconds.get(str(variant).replace(" ", "_"), 1.0)


@pytest.fixture(autouse=True)
def _one_run_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "MOST_RUNS", 1)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where GPUCNN_TUNING says that the tuning is."""
    monkeypatch.setenv("GPUCNN_TUNING", str(tmp_path / "tuning.json"))
    return tmp_path / "tuning.json"


def chosen(problem: Problem, variant: str) -> dict[Problem, Measurement]:
    return {problem: Measurement(variant, {str(usual(problem)): 2e-6, variant: 1e-6})}


def emulator(file: Path, *, problem: Problem = PRODUCT, variant: str = OTHERS[0]) -> KernelBackend:
    backend = KernelBackend(EmulatorDevice())
    Tuning(backend.device.identity, chosen(problem, variant)).save(file)
    return backend


# -- measuring -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("other", "expected"), [
    ([0.96] * 5, "other"), ([0.98] * 5, "usual"),  # not by 3 %
    ([0.5, 0.5, 0.5, 2.0, 2.0], "other"), ([0.96, 0.97, 0.99, 0.99, 0.99], "usual"), ([1.5] * 5, "usual"),
])  # fmt: skip
def test_another_variant_is_chosen_if_it_is_faster_by_more_than_noise(other: list[float], expected: str) -> None:
    assert tune.fastest("usual", {"usual": [1.0, 1.02, 1.0, 1.1, 1.0], "other": other}) == expected


def test_a_median_within_the_usual_ones_times_is_noise() -> None:
    assert tune.fastest("usual", {"usual": [0.8, 1.0, 1.2], "other": [0.85] * 3}) == "usual"


def test_the_fastest_of_the_right_ones_is_chosen_and_a_wrong_one_is_told() -> None:
    backend = KernelBackend(Calculator(wrong="32x32"))
    [found] = tune.tune([PRODUCT], backend, timer=timer(gemm_32x8=0.9, gemm_32x32=0.1, gemm_64x64=0.5))
    assert (found.usual, found.chosen) == ("gemm 32x8", "gemm 64x64")
    assert "gemm 32x32" not in found.times
    assert re.search(r"output\[\d, 1\] is .*, expected .* within", found.wrong["gemm 32x32"])
    assert found.measurement.seconds.keys() == {"gemm 32x8", "gemm 64x64", "gemm 64x16", "gemm 16x32"}


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_what_is_held_to_float64_is_the_result_of_the_kernel_itself(transposed: tuple[bool, bool]) -> None:
    """And no other one of the case in which it is computed."""
    problem = Problem("matmul", Product(1, 3, 2, 5, *transposed), "float")
    [found] = tune.tune([problem], KernelBackend(Calculator("32x32", transposed)), timer=timer())
    assert found.wrong.keys() == {"gemm 32x32"}


def test_a_candidate_after_which_the_device_answers_no_more_ends_the_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU does after an illegal address: every other candidate would be called wrong."""

    def launch(self: Calculator, file: str, name: str, constants: Any, *rest: Any) -> None:
        raise RuntimeError("cudaErrorIllegalAddress")

    def synchronize(self: Calculator) -> None:
        raise RuntimeError("cudaErrorIllegalAddress again")

    monkeypatch.setattr(Calculator, "launch", launch)
    monkeypatch.setattr(Calculator, "synchronize", synchronize)
    with pytest.raises(KernelError, match=r"since gemm .* of matmul .*IllegalAddress again.*Report it; a new process"):
        list(tune.tune([PRODUCT], KernelBackend(Calculator()), timer=timer()))


def test_a_candidate_that_ends_in_an_error_is_told_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(self: Calculator, file: str, name: str, constants: Any, *rest: Any) -> None:
        if constants["TILE_N"] == 64:
            raise RuntimeError("too many\nregisters")
        compute(self, file, name, constants, *rest)

    compute = Calculator.launch
    monkeypatch.setattr(Calculator, "launch", launch)
    [found] = tune.tune([PRODUCT], KernelBackend(Calculator()), timer=timer(gemm_64x64=0.1))
    assert found.chosen == found.usual
    assert found.wrong == {"gemm 64x64": "RuntimeError: too many registers"}


def test_times_are_taken_in_turns_and_what_is_hopeless_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def measured(variant: Variant, work: object) -> float:
        turns.append(str(variant))
        return {"gemm 32x8": 1.0, "gemm 32x32": 0.9, "gemm 64x64": 5.0}.get(str(variant), 6.0)

    tune.measure(PRODUCT, KernelBackend(Calculator()), timer=measured, seconds=0)
    assert turns[:5] == [str(variant) for variant in candidates(PRODUCT)]
    assert turns[5:] == ["gemm 32x8", "gemm 32x32"] * (tune.LEAST_ROUNDS - 1)


def test_a_budget_that_is_used_up_leaves_the_rest() -> None:
    problems = [Problem("matmul", Product(1, n, 3, 2, False, False), "float") for n in (5, 6, 7)]
    assert len(list(tune.tune(problems, KernelBackend(Calculator()), budget=0, timer=timer()))) == 1
    assert len(list(tune.tune(problems, KernelBackend(Calculator()), timer=timer()))) == 3


def test_a_step_and_an_evaluation_ask_for_these_problems_the_largest_first() -> None:
    model = nn.Sequential(nn.Conv2d(6, 4, (3, 2), groups=2), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5 * 5 * 4, 2))
    found = tune.problems_of(model, (6, 7, 5), 3, (9, 0))
    assert [p.operation for p in found[:2]] == ["conv2d_forward", "conv2d_backward_weight"]
    assert found[0].shape == Convolution(3, 7, 5, 6, 4, 5, 4, 2, Window((3, 2)))
    assert {p.operation for p in found} == {
        "conv2d_forward",
        "conv2d_backward_weight",
        "conv2d_backward_input",
        "matmul",
    }
    assert {p.capability for p in found} == {(9, 0)}
    predicting = tune.problems_of(model, (6, 7, 5), 3, (9, 0), training=False)
    assert {p.operation for p in predicting} == {"conv2d_forward", "matmul"}
    halves = tune.problems_of(model, (6, 7, 5), 3, (9, 0), "fp16")
    assert {p.scalar for p in halves} == {"float16"}
    assert {p.precision for p in tune.problems_of(model, (6, 7, 5), 3, (9, 0), "tf32")} == {"tf32"}


@pytest.mark.parametrize("problem", [
    *(CONVOLUTION._replace(operation=o) for o in ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight")),
    CONVOLUTION._replace(scalar="bfloat16", capability=(9, 0)), CONVOLUTION._replace(precision="tf32"),
    *(Problem("matmul", Product(n, 3, 1, 5, *t), "double") for n in (1, 4) for t in ((True, False), (False, True))),
], ids=tune.shown)  # fmt: skip
def test_what_verifies_and_what_is_timed_are_the_problem_itself(problem: Problem) -> None:
    asked: list[Problem] = []

    def chooser(one: Problem) -> Variant:
        asked.append(one)
        return usual(one)

    dtype = {"float": "float32", "double": "float64"}.get(problem.scalar, problem.scalar)
    with gpucnn.precision(problem.precision):
        found = tune.case_of(problem)
        assert found is not None
        launches(found[0], dtype, problem.capability, chooser)
        assert problem in asked
        asked.clear()
        tune.work(problem, KernelBackend(RecorderDevice(problem.capability), chooser))()
        assert asked == [problem]


# -- files ---------------------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_saved(file: Path) -> None:
    half = PRODUCT._replace(scalar="bfloat16", precision="tf32")
    measured = chosen(PRODUCT, OTHERS[0]) | chosen(CONVOLUTION, OTHER_PARTS) | chosen(half, str(usual(half)))
    device = EmulatorDevice()
    Tuning(device.identity, measured).save(file)
    found = tuning.read(device, file)
    assert found.measured == measured
    assert {problem: str(variant) for problem, variant in found.choices.items()} == {
        PRODUCT: OTHERS[0], CONVOLUTION: OTHER_PARTS
    }  # fmt: skip


def test_the_hash_is_of_the_choices_and_not_of_the_times() -> None:
    def hash_of(variant: str, seconds: float) -> str | None:
        return Tuning({}, {PRODUCT: Measurement(variant, {variant: seconds})}).hash

    assert hash_of(OTHERS[0], 1.0) == hash_of(OTHERS[0], 2.0)
    assert hash_of(OTHERS[0], 1.0) != hash_of(OTHERS[1], 1.0)
    assert hash_of(str(usual(PRODUCT)), 1.0) is None


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


def row(file: Path, **values: Any) -> dict[str, Any]:
    return {"measured": [json.loads(file.read_text("utf-8"))["measured"][0] | values]}


def times(first: float | None = 2e-6, other: float | None = 1e-6) -> dict[str, float]:
    """The seconds of the usual variant and of the chosen one; None: the file lacks them."""
    both = {str(usual(PRODUCT)): first, OTHERS[0]: other}
    return {name: seconds for name, seconds in both.items() if seconds is not None}


@pytest.mark.parametrize(("change", "reason"), [
    (lambda f: f.write_text("{", "utf-8"), "it is damaged"),
    (lambda f: f.write_bytes(b"\xff\xfe\x00"), "can't decode|invalid start"),
    (lambda f: f.write_text("[]", "utf-8"), "it is damaged"),
    (lambda f: changed(f, gpucnn_tuning=2), "it has the format 2, not 1"),
    (lambda f: changed(f, device={"name": "NVIDIA X"}), "it was measured with name NVIDIA X, not emulator, "),
    (lambda f: changed(f, measured=7), "it is damaged"),
    (lambda f: changed(f, **row(f, chosen="gemm 1x1")), "it chooses 'gemm 1x1' for matmul, where there is no such"),
    (lambda f: changed(f, **row(f, operation="add")), "there is no 'add' in 'float'"),
    (lambda f: changed(f, **row(f, shape={})), "it is damaged .KeyError: 'batch'"),
    (lambda f: changed(f, **row(f, seconds=times(first=math.nan))), f"{usual(PRODUCT)} is said to take nan seconds"),
    (lambda f: changed(f, **row(f, seconds=times(first=0))), f"{usual(PRODUCT)} is said to take 0.0 seconds"),
    (lambda f: changed(f, **row(f, seconds=times(other=-1e-6))), f"{OTHERS[0]} is said to take -1e-06 seconds"),
    (lambda f: changed(f, **row(f, seconds=times(first=None))), f"{usual(PRODUCT)} is said to take None seconds"),
    (lambda f: changed(f, **row(f, seconds=times(other=None))), f"{OTHERS[0]} is said to take None seconds"),
    (lambda f: changed(f, **row(f, seconds={**times(), "other": math.inf})), "other is said to take inf seconds"),
    (lambda f: f.unlink(), "names .*, which does not exist"),
])  # fmt: skip
def test_a_file_that_can_not_be_used_is_one_warning_with_the_remedy(
    change: Any, reason: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = emulator(file)
    change(file)
    assert [backend.choose(PRODUCT) for _ in range(3)] == [usual(PRODUCT)] * 3
    [warning] = [r for r in caplog.records if r.levelno == logging.WARNING]
    text = warning.getMessage()
    assert "\n" not in text
    assert text.endswith("gpucnn tune measures again, GPUCNN_TUNING=off uses none")
    assert re.search(reason, text), text


def test_a_convolution_that_can_not_be_is_no_crash(file: Path) -> None:
    backend = emulator(file, problem=CONVOLUTION, variant=OTHER_PARTS)
    good = json.loads(file.read_text("utf-8"))["measured"][0]["shape"]
    for bad in ({"groups": 0}, {"groups": 4}, {"kernel": [3]}, {"stride": [0, 1]}, {"c": "6"}, {"n": 10**30}):
        changed(file, **row(file, shape=good | bad))
        with pytest.raises(ValueError, match=f"the tuning {file} can't be used: it is damaged"):
            tuning.stored(backend.device, str(file))


# -- using them ----------------------------------------------------------------------------------------


def test_a_tuning_is_in_force_unless_it_is_switched_off(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gpucnn")
    backend = emulator(file)
    other = PRODUCT._replace(scalar="double")
    assert str(backend.choose(PRODUCT)) == OTHERS[0] != str(usual(PRODUCT))
    assert backend.choose(other) == usual(other)
    assert backend.tuning_hash == tuning.read(backend.device, file).hash is not None
    assert [r.getMessage() for r in caplog.records] == [
        f"1 kernels are chosen by measurements, tuning {backend.tuning_hash} of {file}"
    ]
    with gpucnn.use_tuning(False):
        assert backend.choose(PRODUCT) == usual(PRODUCT)
        assert backend.tuning_hash is None
        with gpucnn.use_tuning(True):
            assert str(backend.choose(PRODUCT)) == OTHERS[0]
    monkeypatch.setenv("GPUCNN_TUNING", "off")
    assert backend.choose(PRODUCT) == usual(PRODUCT)
    monkeypatch.delenv("GPUCNN_TUNING")
    monkeypatch.setenv("GPUCNN_CACHE", str(file.parent))
    Tuning(backend.device.identity, chosen(PRODUCT, OTHERS[0])).save(tuning.path_of(backend.device))
    assert backend.choose(PRODUCT) == usual(PRODUCT), "the emulator has no file of its own"


def test_a_captured_step_is_captured_anew_where_the_tuning_is_switched_off(file: Path) -> None:
    backend = emulator(file)
    asked: list[str] = []
    backend._chooser = lambda problem: asked.append("off" if tuning.wanted() is None else "on") or usual(problem)  # type: ignore[func-returns-value]
    step = gpucnn.compile(lambda x, y: x @ y)
    x, y = gpucnn.ones(3, 5, backend=backend), gpucnn.ones(5, 2, backend=backend)
    for _ in range(4):
        step(x, y)
    before = len(asked)
    with gpucnn.use_tuning(False):
        step(x, y)
    assert asked[before:] == ["off"]


def test_kernels_that_are_compiled_ahead_are_those_of_the_tuning(file: Path) -> None:
    from gpucnn.warmup import training_kernels

    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5))
    [problem, *_] = tune.problems_of(model, (1, 2, 3), 4, training=False)
    backend = emulator(file, problem=problem, variant="gemm 64x64")

    def tiles(chooser: Any) -> set[Any]:
        found = training_kernels(model, (1, 2, 3), 4, chooser=chooser)
        return {dict(k.constants)["TILE_N"] for k in found if k.name == "matmul" and dict(k.constants)["TRANS_B"]}

    assert tiles(backend.choose) == {8, 64}  # of a short batch, and of the one that was measured
    assert tiles(None) == {8}


def test_bit_files_are_of_the_usual_kernels(file: Path) -> None:
    in_force: list[str | None] = []

    def chooser(problem: Problem) -> Variant:
        in_force.append(tuning.wanted())
        return usual(problem)

    verify.bits(KernelBackend(RecorderDevice(), chooser), "matmul-3x5-5x2")
    assert in_force == [None] * 3


# -- CUDA, by the stand-in for CuPy ----------------------------------------------------------------------


def test_a_gpu_has_a_file_of_its_own_that_its_kernels_are_chosen_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cupy.install(monkeypatch)
    monkeypatch.setenv("GPUCNN_CACHE", str(tmp_path))
    monkeypatch.delenv("GPUCNN_TUNING")
    device = CudaDevice()
    problem = PRODUCT._replace(capability=(7, 5))
    assert KernelBackend(device).choose(problem) == usual(problem)
    path = tuning.path_of(device)
    assert path == tmp_path / "tuning" / "NVIDIA-Fake-1-7-5.json"
    assert device.identity.keys() == {"name", "capability", "driver", "NVRTC", "kernels"}
    Tuning(device.identity, chosen(problem, OTHERS[0])).save(path)
    assert str(KernelBackend(device).choose(problem)) == OTHERS[0]
    changed(path, device=device.identity | {"driver": "11.0"})
    with pytest.raises(ValueError, match=r"it was measured with driver 11\.0, not 1"):
        tuning.stored(device)


def test_what_is_measured_on_cuda_is_stored_and_taken(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_cupy.install(monkeypatch)
    backend, problem = KernelBackend(CudaDevice()), PRODUCT._replace(capability=(7, 5))
    assert tune.run([problem], backend, str(file), 60, timer(gemm_32x32=0.25)) == 0
    assert str(KernelBackend(CudaDevice()).choose(problem)) == "gemm 32x32"
    [_, row, last] = capsys.readouterr().out.splitlines()
    assert row.split("  ")[:1] == ["matmul 3x5 by 5x2"]
    assert "gemm 32x8  gemm 32x32  4.00x" in row
    assert last == f"1 of 1 problems are computed by another kernel than usual: {file}"


# -- where it shows ------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    return int(exit.value.code or 0)


def test_the_emulator_is_measured_only_into_a_file_that_is_named(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPUCNN_TUNING", "off")
    assert run("tune", "--backend", "emulator") == 2
    assert "its times say nothing about any GPU" in capsys.readouterr().err
    assert run("tune", "--backend", "numpy") == 2
    assert "the numpy backend has no kernels to choose among" in capsys.readouterr().err
    with gpucnn.use_backend("numpy"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5))
        save_model(model, tmp_path / "m.safetensors", image_size=[2, 3], channels=1)
        onnx.save(model, tmp_path / "m.onnx", (1, 2, 3))
    on_emulator = ("--backend", "emulator", "--out", str(file))
    assert (
        run("tune", str(tmp_path / "m.safetensors"), "--batch", "3", "--budget", "1", "--inference", *on_emulator) == 0
    )
    out = capsys.readouterr().out
    assert "matmul 3x6 by transposed 6x5  gemm 32x8" in out
    assert "these are times of the emulator backend, which say nothing about any GPU" in out
    assert run("tune", str(tmp_path / "m.onnx"), "--batch", "3", "--budget", "1", *on_emulator) == 0
    assert len(tuning.read(EmulatorDevice(), file).measured) == 1, "the same problem"
    assert run("tune", "--list", *on_emulator) == 0
    assert "matmul 3x6 by transposed 6x5" in capsys.readouterr().out.splitlines()[-3]
    assert run("tune", "--clear", *on_emulator) == 0
    assert not file.exists()
    assert run("tune", "--clear", *on_emulator) == 0
    assert capsys.readouterr().out.endswith(f"{file} is deleted\nnothing is stored: there is no {file}\n")


@pytest.mark.parametrize("how", [["--clear"], []], ids=["clear", "measure"])
@pytest.mark.parametrize("named_by", ["--out", "GPUCNN_TUNING"])
def test_a_file_that_is_no_tuning_is_neither_deleted_nor_written_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: list[str],
    named_by: str,
) -> None:
    path = tmp_path / "model.safetensors"
    with gpucnn.use_backend("numpy"):
        save_model(nn.Sequential(nn.Flatten(), nn.Linear(6, 5)), path, image_size=[2, 3], channels=1)
    before = path.read_bytes()
    monkeypatch.setenv("GPUCNN_TUNING", str(path))
    out = ["--out", str(path)] if named_by == "--out" else []
    assert run("tune", str(path), "--batch", "3", "--budget", "1", "--backend", "emulator", *how, *out) == 2
    assert f"{path} is no tuning, so it is neither replaced nor deleted" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_damaged_tuning_is_replaced_and_deleted(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = KernelBackend(Calculator())
    assert tune.run([PRODUCT], backend, str(file), 60, timer(gemm_32x32=0.25)) == 0
    file.write_text(file.read_text("utf-8")[:60], "utf-8")
    assert tune.run([PRODUCT], backend, str(file), 60, timer(gemm_32x32=0.25)) == 0
    assert "it is damaged" in capsys.readouterr().out
    file.write_text(file.read_text("utf-8")[:60], "utf-8")
    assert run("tune", "--clear", "--backend", "emulator", "--out", str(file)) == 0
    assert not file.exists()


def test_a_wrong_kernel_is_told_at_the_end_and_by_the_exit_code(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = KernelBackend(Calculator(wrong="32x8"))
    assert tune.run([PRODUCT], backend, str(file), 60, timer(gemm_32x32=0.25)) == 1
    out = capsys.readouterr().out
    assert "WRONG, and not chosen: gemm 32x8 for matmul 3x5 by 5x2: matmul-3x5-5x2: output[" in out
    assert not file.exists(), "where the usual kernel is wrong nothing is stored"


def test_doctor_says_what_kernels_are_chosen_by(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line() -> str:
        return str(*doctor._tuning("emulator"))

    backend = emulator(file)
    assert line() == (
        "ok       tuning            1 of 1 problems have another kernel than usual, "
        f"hash {backend.tuning_hash}, {file} (GPUCNN_TUNING)"
    )
    file.write_text("{", "utf-8")
    assert line().startswith(f"warning  tuning            the tuning {file} can't be used: it is damaged")
    monkeypatch.setenv("GPUCNN_TUNING", "off")
    assert line() == "ok       tuning            is off, kernels are chosen by shape alone (GPUCNN_TUNING)"


def test_going_on_with_another_tuning_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fit(epochs: int, tuned: str | None, resume: bool) -> list[str]:
        caplog.clear()
        monkeypatch.setattr(NumpyBackend, "tuning_hash", tuned)
        gpucnn.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(30, 2))
        loader = data.Loader(data.x_or_not_x(16, size=(6, 5), seed=1), 8)
        optimizer = optim.SGD(model.parameters())
        train.fit(model, loader, epochs=epochs, optimizer=optimizer, folder=tmp_path, resume=resume)
        return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]

    with gpucnn.use_backend("numpy"):
        assert fit(1, "0123", resume=False) == []
        assert fit(2, "0123", resume=True) == []
        [warning] = fit(3, None, resume=True)
    assert (
        "trained with kernels chosen by the tuning 0123, and goes on with those chosen by their shapes alone" in warning
    )


def test_importing_gpucnn_reads_no_file(file: Path) -> None:
    file.write_text("{", "utf-8")
    code = "import gpucnn, sys; gpucnn.zeros(2); print('gpucnn.tune' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("False\n", "")
