"""`gpucnn bench` from its words to its files; a mistake is one line and exit code 2."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from gpucnn import cli
from gpucnn.backends.numpy_parallel import workers
from gpucnn.benchmark import command, measure, processes, providers, real_work, report, roofline
from gpucnn.benchmark.command import Request
from gpucnn.benchmark.records import Row, Run

RECORDED = Path(__file__).parent / "run.jsonl"
HERE = ("--threads", workers.threads, "--providers", "numpy")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPUCNN_BACKEND", raising=False)
    monkeypatch.setattr(measure, "cpu_limits", lambda budget: {"flops": 1e12, "bytes": 1e11})
    monkeypatch.setattr(measure, "cpu_share", lambda: 0.99)
    monkeypatch.setattr(measure, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(measure, "WARM_SECONDS", 0.0)


def bench(*words):
    """(exit code, what it prints, what it complains of) of `gpucnn bench` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *map(str, words)])
    return stopped.value.code, out.getvalue(), err.getvalue()


def kept(folder="runs"):
    [path] = Path(folder).glob("*/run.jsonl")
    return Run.load(path)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["oops"], "suite 'oops' does not exist; there are ops, networks, startup, memory, real-work"),
        (["--providers", "numpy,tpu"], "--providers 'tpu' does not exist; there are numpy, cuda, cuda-graph,"),
        (["--providers", "emulator"], "emulator is a test instrument: it runs a GPU's threads on the CPU to find bugs"),
        (["--providers", "ptx"], "ptx is a test instrument: it runs a GPU's threads on the CPU to find bugs"),
        (["--pass", "sideways"], "--pass 'sideways' does not exist; there are forward, input-gradient,"),
        (["--precision", "fp8"], "fp8"),
        (["--batch", "1,many"], "--batch takes numbers from 1 on, by commas, got 'many'"),
        (["--batch", "0"], "--batch takes numbers from 1 on, by commas, got '0'"),
        (["--budget", "0"], "--budget must be above 0 seconds, got 0"),
        (["--card", "Voodoo"], "--card 'Voodoo' is not known; the cards are H200, H100, A100, RTX 4090"),
        (["-k", "nothing", *HERE], "nothing in ops, networks, startup, memory matches -k 'nothing'; `gpucnn bench"),
        (["real-work", "ops"], "real-work takes minutes and is a run of its own"),
        (["real-work", "-k", "cifar", *HERE], "-k 'cifar' matches neither of mnist-5k, fashion-mnist"),
        (["real-work", "--threads", workers.threads, "--providers", "jax"], "--providers jax can't do real work here"),
        (["--compare", "absent", "absent"], "there is no run in absent"),
        (["--show", "absent"], "there is no run in absent"),
        (["--threads", workers.threads + 1], f"already runs with {workers.threads} threads"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(words, message):
    code, _, err = bench(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_the_emulator_as_default_backend_is_refused_too(monkeypatch):
    monkeypatch.setenv("GPUCNN_BACKEND", "emulator")
    code, _, err = bench("--quick")
    assert (code, "its times say nothing about any GPU; choose numpy or cuda" in err) == (2, True)


def test_a_provider_that_was_asked_for_and_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setattr(providers, "find_spec", lambda name: None)
    code, _, err = bench("--threads", workers.threads, "--providers", "numpy,jax")
    assert code == 2
    assert "--providers jax can't run here: jax is not installed" in err


def test_the_readme_needs_a_checkout(monkeypatch):
    monkeypatch.setattr(roofline, "in_checkout", lambda: False)
    code, _, err = bench("--readme")
    assert code == 2
    assert "--readme changes the README of a checkout" in err


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_is_measured_shown_and_kept():
    code, out, err = bench("ops", "-k", "cross_entropy", "--batch", "3,5", "--pass", "forward", *HERE, "--out", "runs")
    assert code == 0, err
    assert "cross_entropy.imagenet.1000 forward, batch 5: numpy " in out
    assert "No GPU here" in out
    rows = kept().rows
    assert [(r.name, r.part, r.batch, r.provider, r.status) for r in rows] == [
        ("cross_entropy.imagenet.1000", "forward", n, "numpy", "measured") for n in (3, 5)
    ]
    about = kept().about
    assert about["threads"] == workers.threads
    assert about["precision"] == "fp32"
    assert about["cpu_limits"] == {"flops": 1e12, "bytes": 1e11}
    [folder] = Path("runs").iterdir()
    assert (folder / "report.html").exists()
    if "commit" in about:
        assert folder.name.endswith(about["commit"])


def test_all_suites_are_measured_within_a_small_budget(monkeypatch):
    monkeypatch.setattr(processes, "_one", lambda *_: (0.5, 2.3))
    code, _, err = bench("-k", "lenet5", "--batch", "1", *HERE, "--budget", "5", "--out", "runs")
    assert code in (0, 1), err  # the loss that the process gives here is made up
    assert {row.suite for row in kept().rows} == {"ops", "networks", "memory"}


def test_a_start_is_measured(monkeypatch):
    monkeypatch.setattr(processes, "_one", lambda *_: (0.5, 2.3))
    code, out, err = bench("startup", "-k", "import", *HERE, "--out", "runs")
    assert code == 0, err
    assert "import start: numpy 500 ms" in out


def test_what_does_not_fit_is_skipped_and_said(monkeypatch):
    monkeypatch.setattr(measure, "cpu_limits", lambda budget: {"flops": 1e6, "bytes": 1e6})
    code, out, err = bench("networks", "-k", "resnet20", "--batch", "64", *HERE, "--budget", "2", "--out", "runs")
    assert code == 0, err
    assert "resnet20 inference, batch 64: skipped: would take about " in out
    assert out.count(": skipped: ") == 1  # the report lists the others
    assert [row.status for row in kept().rows] == ["skipped", "skipped"]
    assert kept().rows[0].reason.endswith(" s left for it; --budget gives more time")


def test_what_needs_more_memory_than_there_is_is_skipped(monkeypatch):
    monkeypatch.setattr(command, "_free_memory", lambda: 1e6)
    code, out, _ = bench("networks", "-k", "lenet5", "--batch", "256", "--pass", "training", *HERE, "--out", "runs")
    assert code == 0
    # 8 float32 copies of 256 · (2·6·28·28 + 6·14·14 + 2·16·10·10 + 2·400 + 2·120 + 2·84 + 10) activations
    assert "GiB of memory and 0 GiB are free" in out


def test_a_used_up_budget_skips_the_rest(monkeypatch):
    monkeypatch.setattr(command._Session, "left", lambda self: 0.0)
    code, out, _ = bench("ops", "-k", "relu", *HERE, "--budget", "7", "--out", "runs")
    assert code == 0
    assert "skipped: the 7 s of the budget are used up; --budget gives more" in out


def test_ctrl_c_keeps_what_was_measured(monkeypatch):
    real = measure.measure

    def interrupted(task, *rest):
        if task.part == "input-gradient":
            raise KeyboardInterrupt
        return real(task, *rest)

    monkeypatch.setattr(measure, "measure", interrupted)
    code, out, _ = bench("ops", "-k", "linear.lenet5", *HERE, "--out", "runs")
    assert code == 130
    assert [row.part for row in kept().rows] == ["forward"]
    assert "by Ctrl-C; what was measured until then is here" in out
    assert list(Path("runs").glob("*/report.html"))


def test_a_wrong_result_of_ours_ends_with_1(monkeypatch):
    wrong = Row("ops", "relu", "forward", 1, "numpy", "fp32", "wrong", reason="off")
    monkeypatch.setattr(measure, "measure", lambda *_: [wrong])
    code, out, _ = bench("ops", "-k", "relu", "--pass", "forward", *HERE, "--out", "runs")
    assert code == 1
    assert "numpy WRONG" in out


def test_a_reference_that_can_not_be_computed_fails_its_task_alone(monkeypatch):
    real = command.pose

    def pose(task, precision):
        if task.name.startswith("relu"):
            raise MemoryError("too large")
        return real(task, precision)

    monkeypatch.setattr(command, "pose", pose)
    bench("ops", "-k", "*.resnet50.256.56", "--batch", 1, "--pass", "forward", *HERE, "--out", "runs")
    assert [(row.name[:4], row.status) for row in kept().rows] == [("relu", "failed"), ("batc", "measured")]
    assert kept().rows[0].reason == "the float64 reference: MemoryError: too large"


def test_without_asking_all_that_can_run_here_take_part(monkeypatch):
    monkeypatch.setattr(providers, "find_spec", lambda name: None)
    chosen = command._providers(Request(threads=workers.threads))
    assert [one.name for one in chosen if one.name != "cuda"] == ["numpy"]


# -- earlier runs ------------------------------------------------------------------------------------------------------


def test_comparing_a_run_with_itself_finds_nothing():
    code, out, _ = bench("--compare", RECORDED, RECORDED)
    assert code == 0
    assert "0 changed by more than the noise" in out
    assert "What changed" not in out


def test_comparing_finds_a_planted_slow_down_of_a_fifth(tmp_path):
    rng = np.random.default_rng(0)
    for name, scale in (("before", 1.0), ("after", 1.2)):
        values = (scale * rng.lognormal(0, 0.03, 20)).tolist()
        same = rng.lognormal(0, 0.03, 20).tolist()
        rows = [
            Row("ops", "relu", "forward", 8, p, "fp32", "measured", values=v)
            for p, v in (("numpy", values), ("jax", same))
        ]
        Run({}, rows).save(tmp_path / f"{name}.jsonl")
    code, out, _ = bench("--compare", "before.jsonl", "after.jsonl")
    assert code == 0
    assert "2 rows are in both runs; 1 changed by more than the noise" in out
    [line] = [line for line in out.splitlines() if line.startswith("relu forward 8")]
    assert "numpy" in line


def test_a_run_is_shown_again_its_page_made_anew_and_the_readme_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "checkout", lambda: tmp_path)
    monkeypatch.setattr(roofline, "in_checkout", lambda: True)
    (tmp_path / "README.md").write_text(f"{report.BEGIN}\n{report.END}\n", "utf-8")
    run = Run.load(RECORDED)
    Run(run.about | {"cpu_share": 1.0}, run.rows).save(tmp_path / "run.jsonl")
    code, out, _ = bench("--show", tmp_path, "--readme")
    assert code == 0
    assert "Networks (fp32)" in out
    assert (tmp_path / "report.html").exists()
    assert "| lenet5, training | numpy |" in (tmp_path / "README.md").read_text("utf-8")


def test_the_readme_is_filled_by_the_run_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "checkout", lambda: tmp_path)
    monkeypatch.setattr(roofline, "in_checkout", lambda: True)
    (tmp_path / "README.md").write_text(f"{report.BEGIN}\n{report.END}\n", "utf-8")
    code, _, err = bench("networks", "-k", "lenet5", "--pass", "inference", "--batch", "2", *HERE, "--readme")
    assert code == 0, err
    assert "| lenet5, inference | numpy |" in (tmp_path / "README.md").read_text("utf-8")
    assert list((tmp_path / "bench" / "results").glob("*/run.jsonl"))  # the usual folder of a checkout


def test_outside_of_a_checkout_runs_are_kept_below_the_current_folder(monkeypatch):
    monkeypatch.setattr(roofline, "in_checkout", lambda: False)
    assert Request().folder() == Path("gpucnn-bench")


def test_the_list_names_every_task_and_provider(monkeypatch):
    monkeypatch.setattr(providers, "find_spec", lambda name: None)
    code, out, _ = bench("--list")
    assert code == 0
    assert "ops       relu.resnet50.256.56                         forward, input-gradient, batch 8" in out
    assert "networks  resnet50                                     inference, training, batch 1, 8, 64, 256" in out
    assert "provider  jax                          jax is not installed" in out


def test_help_shows_examples_and_every_option():
    code, out, _ = bench("--help")
    assert code == 0
    for word in ("--quick", "--budget", "--pass", "--providers", "--compare", "--readme", "--precision", "Examples:"):
        assert word in out


# -- real work ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_training(monkeypatch):
    monkeypatch.setattr(real_work.Work, "parts", lambda self: None)
    monkeypatch.setattr(real_work, "train", lambda work, provider, seed: iter([(1.0, 0.5), (2.0, 0.99)]))


@pytest.mark.usefixtures("_no_training")
def test_real_work_shows_a_line_for_each_seed():
    code, out, err = bench("real-work", "-k", "mnist-5k", "--seeds", 2, *HERE, "--out", "runs")
    assert code == 0, err
    assert "Seconds of training to 98.5% on the held-out images of mnist-5k" in out
    assert len(real_work.load(Path("runs/real-work.jsonl"))) == 2


@pytest.mark.usefixtures("_no_training")
def test_real_work_that_is_stopped_says_how_to_go_on(monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(real_work, "train", stopped)
    code, out, _ = bench("real-work", *HERE, "--out", "runs")
    assert code == 130
    assert "and the same command goes on" in out


@pytest.mark.usefixtures("_no_training")
def test_real_work_without_being_asked_takes_whom_it_can(monkeypatch):
    monkeypatch.setattr(providers, "find_spec", lambda name: None)
    code, _, err = bench("real-work", "-k", "mnist", "--seeds", 1, "--threads", workers.threads, "--out", "runs")
    assert code == 0, err
    assert {o.provider for o in real_work.load(Path("runs/real-work.jsonl"))} >= {"numpy"}
