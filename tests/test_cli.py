"""The command: what it prints, what it leaves behind, and what it says about mistakes."""

import contextlib
import csv
import gzip
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import get_args

import fake_cupy
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import gpucnn
from gpucnn import backends, cli, data, nn, optim, train
from gpucnn.checkpoint import load_model, save_model
from gpucnn.devices import cuda, emulator

TINY = ("x-or-not-x", "--epochs", "2", "--no-pictures")


@dataclass
class Result:
    code: int
    out: str
    err: str


def command(*words):
    """What a call from the shell would print and return."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit:
        cli.main([str(word) for word in words])
    return Result(exit.value.code, out.getvalue(), err.getvalue())


def process(*words, cwd, **variables):
    return subprocess.run(
        [sys.executable, "-m", "gpucnn", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, env=os.environ | variables, encoding="utf-8",
    )  # fmt: skip


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def settings(**changes):
    usual = {
        "data": "x-or-not-x", "model": None, "epochs": 2, "batch_size": 64, "lr": None, "optimizer": "sgd",
        "weight_decay": 1e-3, "schedule": "onecycle", "augment": True, "held_out": None, "seed": 0,
        "early_stopping": None, "image_size": None, "gray": False, "start": None,
    }  # fmt: skip
    return usual | changes


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("GPUCNN_DEBUG", "GPUCNN_BACKEND", "GPUCNN_DATA"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two epochs; tests only read it. `first` is what training it printed."""
    folder = tmp_path_factory.mktemp("finished run")  # a path with a space
    first = command("train", "x-or-not-x", "--epochs", 2, "--out", folder)
    assert first.code == 0, first.err
    return folder, first


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    """A run on gray images of 16×20 in a .npz file, with a LeNet-5."""
    folder = tmp_path_factory.mktemp("gray")
    made = data.x_or_not_x(120, size=(16, 20))
    path = folder / "crosses.npz"
    np.savez(path, images=(made.images * 255).astype(np.uint8), labels=made.labels, classes=["other", "cross"])
    first = command("train", path, "--epochs", 1, "--out", folder / "run", "--held-out", 30)
    assert first.code == 0, first.err
    return path, folder / "run", first


# -- help ------------------------------------------------------------------------------------------


def test_without_a_word_the_help_names_all_commands_and_exit_codes():
    result = command()
    assert result.code == 0
    for name in ("train", "evaluate", "predict", "show", "info", "datasets", "Exit codes", "130", "--debug"):
        assert name in result.out


def test_version_is_the_installed_one():
    result = command("--version")
    assert (result.code, result.out.split()) == (0, ["gpucnn", metadata.version("gpucnn")])


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "show", "explain", "demo"])
def test_the_help_of_a_command_has_examples_that_it_understands(name):
    result = CliRunner().invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0
    examples = re.findall(rf"gpucnn {name} (.*)", result.output)
    assert examples
    known = set(re.findall(r"--[\w-]+", result.output.split("Options", 1)[1]))
    assert all(option in known for line in examples for option in re.findall(r"--[\w-]+", line))


def test_python_m_gpucnn_is_the_same_command(tmp_path):
    result = process("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout == command("--help").out
    assert "\x1b" not in result.stdout, "no control characters where there is no terminal"


# -- mistakes --------------------------------------------------------------------------------------

MISTAKES = {
    ("frob",): r"No such command 'frob'\. Try: gpucnn --help",
    ("train", "--nope"): r"No such option:? '?--nope.*Try: gpucnn train --help",
    ("train", "--epochs", "many"): r"Invalid value for '--epochs'.*integer",
    ("train", "--epochs", "0"): r"Invalid value for '--epochs'",
    ("train", "--model", "alexnet"): r"'alexnet' is not one of 'lenet5'",
    ("predict",): r"Missing argument 'MODEL'",
    ("train", "nonsense"): r"no data set and no path is called 'nonsense'\. Known by name: digits, mnist-5k",
    ("train", "mnist5k"): r"did you mean 'mnist-5k'\?",
    ("train", "--lr", "0"): r"--lr must be above 0, got 0",
    ("train", "--lr", "nan"): r"--lr must be above 0, got nan",
    ("train", "x-or-not-x", "--held-out", "2000"): r"holding out 2000 of 2000 images.*leaves one side empty",
    ("train", "x-or-not-x", "--backend", "gpu"): r"backend is 'gpu', but the backends are auto, numpy",
    ("train", "digits", "--model", "lenet5"): r"LeNet5 needs images of at least 12×12, got 8×8",
    ("train", "digits", "--model", "x-or-not-x"): r"takes 5×5 gray images of 2 classes, digits has 8×8×1 ones of 10",
    ("train", "x-or-not-x", "--model", "vgg-small"): r"vgg-small needs images of at least 8×8, got 5×5",
    ("train", "x-or-not-x", "--image-size", "big"): r"--image-size must be like 32 or 32x48.*got 'big'",
    ("train", "x-or-not-x", "--image-size", "0x5"): r"--image-size must be like 32",
    ("train", "--resume"): r"runs.mnist-5k holds no run to resume; without --resume a new one starts",
    ("train", "--resume", "--overwrite"): r"--resume goes on with a run and --overwrite deletes it; choose one",
    ("train", "x-or-not-x", "--from", "nix"): r"there is no file nix",
    ("train", "--image-size", "100000x100000"): r"--image-size must be like.*at most 67,108,864 pixels, got '1000",
    ("train", "--batch-size", "9999999999"): r"batch_size is 9999999999, not a whole number from 1 to 2147483647",
    ("train", "--epochs", "99999999999"): r"epochs is 99999999999, not a whole number from 1 to 2147483647",
    ("train", "--weight-decay", "inf"): r"weight_decay is inf, not a number from 0 to below 1e\+300",
    ("train", "--lr", "1e305"): r"lr is 1e\+305, not a number above 0 and below 1e\+300",
    ("train", "x-or-not-x", "--image-size", "8"): r"x-or-not-x has images of 5×5 and 1 channels, not 8×8 ones;",
    ("predict", "nix", "a.png"): r"there is no file nix",
    ("evaluate", "nix"): r"there is no file nix",
    ("show", "nix"): r"there is no file nix",
}  # fmt: skip


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing_behind(words, tmp_path):
    result = command(*words)
    assert result.code == 2
    assert result.err.startswith("gpucnn: error: ")
    assert result.err.count("\n") == 1
    assert re.search(MISTAKES[words], result.err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["option before", "option after", "variable"])
def test_debug_shows_the_traceback_of_a_mistake(how, monkeypatch):
    words = ["evaluate", "nix"]
    if how == "variable":
        monkeypatch.setenv("GPUCNN_DEBUG", "1")
    else:
        words.insert(0 if how == "option before" else 2, "--debug")
    result = command(*words)
    assert result.code == 2
    assert "Traceback" in result.err
    assert "load_model" in result.err
    assert result.err.endswith("gpucnn: error: there is no file nix\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "runs/a"), "runs/a: Permission denied"),
        (MemoryError("9 GB"), "not enough memory (9 GB); try a smaller --batch-size"),
        (RuntimeError("several\n  lines"), "several lines"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_of_the_machine_become_one_line_too(error, line, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(cli.datasets_, "available", fail)
    result = command("datasets")
    assert (result.code, result.err) == (2, f"gpucnn: error: {line}\n")


def test_a_bug_shows_its_traceback_and_exits_with_1(monkeypatch):
    monkeypatch.setattr(cli.datasets_, "available", lambda: {}["missing"])
    result = command("datasets")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "KeyError: 'missing'" in result.err


def test_ctrl_c_outside_a_training_exits_with_130(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.datasets_, "available", interrupt)
    assert command("datasets").code == 130


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    script = f"{sys.executable} -m gpucnn train --help | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
@pytest.mark.parametrize("listener", ["2>&1 | head -3", "2>/dev/null | head -2"])
def test_a_training_that_nobody_listens_to_any_more_does_not_end_as_if_it_were_done(tmp_path, listener):
    line = " ".join(["train", "x-or-not-x", "--epochs", "30", "--batch-size", "16", "--no-pictures", "--out", "a"])
    script = f"{sys.executable} -m gpucnn {line} {listener}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 141, result.stderr
    resumed = command("train", "x-or-not-x", "--out", "a", "--resume", "--no-pictures")
    assert resumed.code == 0, resumed.err
    assert "30 epochs in " in resumed.out


# -- train -----------------------------------------------------------------------------------------


def test_training_reports_the_held_out_accuracy_that_the_saved_model_has(finished):
    folder, first = finished
    model, description = load_model(folder / "model.safetensors")
    _, held_out = data.split(data.load("x-or-not-x"), 0.2, seed=0)
    labels = train.predict(model, data.to_float(held_out.images)).argmax(1)
    right = (labels == held_out.labels).mean()
    assert f"\nheld-out accuracy {100 * right:.1f} %\n" in first.out
    assert json.loads((folder / "run.json").read_text())["accuracy"] == pytest.approx(right)
    assert description["classes"] == ["not X", "X"]


def test_training_prints_a_table_of_the_classes_and_the_confusion_matrix(finished):
    folder, first = finished
    model, _ = load_model(folder / "model.safetensors")
    _, held_out = data.split(data.load("x-or-not-x"), 0.2, seed=0)
    found = train.evaluate(model, data.Loader(held_out, 64), gpucnn.functional.binary_cross_entropy)
    for row in found.per_class():
        line = next(line for line in first.out.splitlines() if line.startswith(f"{row.name} "))
        shares = [f"{100 * value:.1f} %" if value == value else "–" for value in (row.recall, row.precision, row.f1)]
        assert re.split(r"\s{2,}", line.strip()) == [row.name, f"{row.support}", *shares]
    table = first.out.split("taken for", 1)[1].splitlines()[1:3]
    counts = [[0 if cell == "·" else int(cell) for cell in line.split()[-2:]] for line in table]
    np.testing.assert_array_equal(counts, found.confusion)


def test_training_leaves_a_model_its_history_and_pictures(finished):
    folder, first = finished
    names = {str(path.relative_to(folder)).replace(os.sep, "/") for path in folder.rglob("*") if path.is_file()}
    assert names - {".lock"} == {
        "run.json", "model.safetensors", "checkpoint.safetensors", "history.csv",
        "pictures/filters.png", "pictures/feature_maps.png", "pictures/misclassified.png", "pictures/confusion.png",
        "pictures/curves.png", "samples/X.png", "samples/not-X.png",
    }  # fmt: skip
    with (folder / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    for name in names:
        if name.endswith(".png"):
            with Image.open(folder / name) as picture:
                assert len(np.unique(np.asarray(picture.convert("L")))) > 1, f"{name} is blank"
    assert first.err.startswith("epoch 1/2  loss ")
    assert re.search(
        r"epoch 2/2  loss \d\.\d{4}  accuracy [\d.]+ %  held out [\d.]+ %  [\d,]+ images/s  0:00 left\n", first.err
    )


def test_training_ends_with_the_classification_of_a_sample(finished):
    folder, first = finished
    *_, asked, answer = first.out.rstrip("\n").split("\n")
    assert asked.startswith("gpucnn predict ")
    name = re.search(r"samples/(.*)\.png", asked)[1]
    assert command("predict", folder, folder / "samples" / f"{name}.png").out.strip() == answer
    assert re.fullmatch(r"(not X|X): 0\.\d\d  (not X|X): 0\.\d\d", answer)


def test_samples_are_held_out_images_of_their_class(finished):
    folder, _ = finished
    _, held_out = data.split(data.load("x-or-not-x"), 0.2, seed=0)
    for name, label in {"not-X": 0, "X": 1}.items():
        with Image.open(folder / "samples" / f"{name}.png") as picture:
            pixels = np.asarray(picture)
        first = np.flatnonzero(held_out.labels == label)[0]
        np.testing.assert_array_equal(pixels, held_out.images[first, :, :, 0] * 255)


def test_a_second_run_says_what_exists_and_changes_nothing(finished):
    folder, first = finished
    before = contents(folder)
    again = command("train", *TINY, "--out", folder)
    assert again.code == 0
    assert contents(folder) == before
    accuracy = re.search(r"held-out accuracy .*", first.out)[0]
    for text in (
        accuracy,
        "a finished run: x-or-not-x on x-or-not-x, 2 epochs",
        "model.safetensors",
        "--overwrite",
        "--from",
    ):
        assert text in again.out
    assert command("train", "--resume", "x-or-not-x", "--out", folder).out == again.out


def test_a_finished_run_of_other_settings_is_no_answer_to_what_was_asked(finished):
    folder, _ = finished
    result = command("train", "--epochs", 3, "--lr", 0.5, "--out", folder)
    assert result.code == 2
    assert "holds a finished run with epochs 2, not 3; lr 0.1, not 0.5; choose another folder (--out)" in result.err


def test_what_exists_comes_with_commands_that_work(finished, tmp_path):
    folder, _ = finished
    said = command("train", *TINY, "--out", folder).out
    cycle = re.search(r"train further +gpucnn (.*)", said)[1]
    assert "--out" in cycle
    import shlex

    words = shlex.split(cycle)
    words[words.index("--out") + 1] = str(tmp_path / "further")
    result = command(*words, "--epochs", 1, "--no-pictures")
    assert result.code == 0, result.err
    used = re.search(r"use it +gpucnn (.*)", said)[1]
    assert command(*shlex.split(used)).code == 0


def test_other_settings_are_refused_on_resume(finished):
    folder, _ = finished
    result = command("train", *TINY, "--resume", "--out", folder, "--lr", 0.5, "--seed", 0, "--batch-size", 32)
    assert result.code == 2
    assert "holds a run with batch_size 64, not 32; lr 0.1, not 0.5: --resume keeps its settings" in result.err


def test_a_finished_cycle_cannot_grow_and_the_error_says_how_to_train_another(finished):
    folder, _ = finished
    result = command("train", "x-or-not-x", "--resume", "--epochs", 3, "--out", folder)
    assert result.code == 2
    assert "the onecycle schedule of" in result.err
    assert "ends at epoch 2" in result.err
    assert "--from" in result.err


def test_a_stopped_cycle_is_to_end_before_another_starts_from_it(finished, tmp_path):
    run = json.loads((finished[0] / "run.json").read_text())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text(json.dumps({name: run[name] for name in ("settings", "started")}))
    result = command("train", "x-or-not-x", "--resume", "--epochs", 3, "--out", "a")
    assert result.code == 2
    assert "near 0; end it with gpucnn train x-or-not-x --out a --resume, then train another cycle" in result.err


def test_another_cycle_reads_pictures_as_the_first_one_did():
    line = cli._another_cycle(settings(data="photos", model="lenet5", image_size=[10, 9], gray=True), cli.Path("a"))
    assert line == "gpucnn train photos --out a-2 --from a --model lenet5 --image-size 10x9 --gray"


def test_commands_to_copy_are_not_folded(finished, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_console", lambda: Console(width=40))
    cli._say_what_exists(json.loads((finished[0] / "run.json").read_text()), finished[0])
    assert re.search(r"^  train further  gpucnn train .* --from .* --model x-or-not-x$", capsys.readouterr().out, re.M)


def test_the_speed_is_no_negative_number_where_all_batches_were_done_before(capsys):
    loader = data.Loader(data.load("x-or-not-x").subset(slice(100)), 64)
    state = train.TrainingState(nn.models.x_or_not_x(), None, None, loader, None, 1, None, batch=len(loader))
    lines = cli._Lines()
    lines.on_epoch_begin(state)
    state.history.rows.append({"loss": 0.5, "accuracy": 0.5})
    lines.on_epoch_end(state)
    assert "  0 images/s  " in capsys.readouterr().err


def test_a_run_cannot_shrink(finished):
    result = command("train", "x-or-not-x", "--resume", "--epochs", 1, "--out", finished[0])
    assert result.code == 2
    assert "is one of 2 epochs, which can grow, not shrink to 1" in result.err


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_resuming_with_more_epochs_gives_the_bits_of_one_long_run(schedule, tmp_path):
    options = ("train", "x-or-not-x", "--schedule", schedule, "--batch-size", 200, "--no-pictures")
    assert command(*options, "--epochs", 1, "--out", "a").code == 0
    assert "--resume --epochs 2" in command(*options, "--epochs", 1, "--out", "a").out
    more = command(*options, "--epochs", 2, "--out", "a", "--resume")
    assert more.code == 0, more.err
    assert "epoch 2/2" in more.err
    assert "epoch 1/2" not in more.err
    assert command(*options, "--epochs", 2, "--out", "b").code == 0
    for name in ("model.safetensors", "history.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_seed_changes_weights_split_and_shuffles_and_nothing_else_does(tmp_path):
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        assert command("train", *TINY, "--seed", seed, "--out", name).code == 0
    model = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    sample = {name: (tmp_path / name / "samples" / "X.png").read_bytes() for name in "abc"}
    assert model["a"] == model["b"] != model["c"]
    assert sample["a"] == sample["b"] != sample["c"]


def test_overwrite_starts_anew_and_keeps_foreign_files(tmp_path):
    assert command("train", *TINY, "--out", "a").code == 0
    mine = ["notes.txt", "samples/mine.png", "pictures/holiday.png", "tensorboard/notes.txt"]
    for name in mine:
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text("mine")
    (tmp_path / "a" / "pictures" / "curves.png").write_text("of the old run")
    np.savez("other.npz", images=np.eye(12, dtype=np.uint8).repeat(40, 0).reshape(40, 12, 12), labels=np.arange(40) % 2)
    result = command("train", "other.npz", "--epochs", 1, "--overwrite", "--out", "a", "--no-pictures")
    assert result.code == 0, result.err
    assert all((tmp_path / "a" / name).read_text() == "mine" for name in mine)
    assert not (tmp_path / "a" / "pictures" / "curves.png").exists()
    assert sorted(path.name for path in (tmp_path / "a" / "samples").iterdir()) == ["0.png", "1.png", "mine.png"]
    assert json.loads((tmp_path / "a" / "run.json").read_text())["epochs"] == 1


def test_overwrite_deletes_nothing_in_a_folder_that_holds_no_run(tmp_path):
    for name in ("pictures/curves.png", "samples/X.png", "tensorboard/events.out.tfevents.1"):
        (tmp_path / "proj" / name).parent.mkdir(parents=True)
        (tmp_path / "proj" / name).write_text("mine")
    (tmp_path / "proj" / "model.safetensors").write_text("mine")
    before = contents(tmp_path)
    result = command("train", *TINY, "--overwrite", "--out", "proj")
    assert result.code == 2
    assert "proj holds model.safetensors of something else than `gpucnn train`; move that away or choose" in result.err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("how", ["--overwrite", "--resume"])
def test_a_run_that_is_being_trained_is_left_as_it_is(tmp_path, how):
    options = ("train", "x-or-not-x", "--schedule", "constant", "--no-pictures", "--out", "a")
    assert command(*options, "--epochs", 2).code == 0
    before = contents(tmp_path)
    del before[f"a{os.sep}.lock"]
    with train.locked(tmp_path / "a"):
        result = command(*options, "--epochs", 3, how)
        assert result.code == 2
        assert f"a is in use by another training (process {os.getpid()}); wait for it" in result.err
        assert before.items() <= contents(tmp_path).items()


def test_a_run_is_left_alone_until_the_last_file_is_written(tmp_path, monkeypatch):
    """What the command measures, saves and draws after the training is of the run that it began."""
    others = []

    def draw(*_):
        words = ("train", "x-or-not-x", "--epochs", 3, "--no-pictures", "--out", "a", "--overwrite")
        others.append(process(*words, cwd=tmp_path))

    monkeypatch.setattr(cli, "_draw", draw)
    result = command("train", "x-or-not-x", "--epochs", 2, "--out", "a")
    assert result.code == 0, result.err
    assert [other.returncode for other in others] == [2]
    assert f"a is in use by another training (process {os.getpid()}); wait for it" in others[0].stderr
    assert json.loads((tmp_path / "a" / "run.json").read_text())["epochs"] == 2


def test_a_run_that_is_stopped_while_its_pictures_are_drawn_goes_on_with_them(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "_draw", interrupted)
        stopped = command("train", "x-or-not-x", "--epochs", 2, "--out", "a")
    assert stopped.code == 130
    assert stopped.err.endswith(
        "gpucnn: stopped; what was saved is kept. Go on with: gpucnn train x-or-not-x --out a --resume\n"
    )
    model = (tmp_path / "a" / "model.safetensors").read_bytes()
    resumed = command("train", "--resume", "x-or-not-x", "--out", "a")
    assert resumed.code == 0, resumed.err
    assert len(list((tmp_path / "a" / "pictures").iterdir())) == 5
    assert json.loads((tmp_path / "a" / "run.json").read_text())["epochs"] == 2
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == model
    assert "epoch" not in resumed.err, "nothing is left to train"


def test_a_finished_run_gets_the_pictures_that_it_lacks(tmp_path):
    assert command("train", *TINY, "--out", "a").code == 0
    before = contents(tmp_path / "a")
    again = command("train", "x-or-not-x", "--out", "a", "--resume", "--no-pictures")
    assert "a finished run" in again.out
    assert contents(tmp_path / "a") == before
    drawn = command("train", "x-or-not-x", "--out", "a", "--resume")
    assert drawn.code == 0, drawn.err
    assert len(list((tmp_path / "a" / "pictures").iterdir())) == 5
    for name in ("model.safetensors", "checkpoint.safetensors", "history.csv"):
        assert (tmp_path / "a" / name).read_bytes() == before[name]
    assert "a finished run" in command("train", "x-or-not-x", "--out", "a", "--resume").out


def test_a_picture_that_fails_is_a_note_and_all_else_is_there(tmp_path, monkeypatch):
    from gpucnn import viz

    def fail(*_):
        raise KeyError("of matplotlib")

    monkeypatch.setattr(viz, "feature_maps", fail)
    (tmp_path / "a" / "samples" / "X.png").mkdir(parents=True)
    result = command("train", "x-or-not-x", "--epochs", 2, "--out", "a")
    assert result.code == 0, result.err
    assert f"gpucnn: {Path('a/pictures/feature_maps.png')} is left out: 'of matplotlib'\n" in result.err
    assert f"gpucnn: {Path('a/samples/X.png')} is left out: can't write" in result.err
    assert len(list((tmp_path / "a" / "pictures").iterdir())) == 4
    assert "finished" in json.loads((tmp_path / "a" / "run.json").read_text())


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="its file names are texts")
def test_any_folder_is_a_class_and_gets_all_its_pictures(tmp_path):
    for name in (b"\xff\xfe", b"n" * 250, b"$$", b"\x1b[31m"):
        folder = os.fsencode(tmp_path / "things") + b"/" + name
        os.makedirs(folder)
        for i in range(5):
            pixels = np.full((12, 12), 20 * i + name[0] // 2, np.uint8)
            Image.fromarray(pixels).save(os.path.join(os.fsdecode(folder), f"{i}.png"))
    result = command("train", "things", "--gray", "--epochs", 1, "--held-out", 8, "--out", "a")
    assert result.code == 0, result.err
    assert "left out" not in result.err
    assert not set("\x1b\udcff") & set(result.out + result.err)
    assert len(list((tmp_path / "a" / "pictures").iterdir())) == 5
    _, description = load_model(tmp_path / "a" / "model.safetensors")
    assert description["classes"] == [r"\x1b[31m", "$$", "n" * 250, r"\udcff\udcfe"]
    assert {len(path.stem) for path in (tmp_path / "a" / "samples").iterdir()} <= {1, 7, 11, 40}


@pytest.mark.parametrize(
    ("option", "package"), [(("--tensorboard",), "tensorboardX"), (("--precision", "bf16"), "ml_dtypes")]
)
def test_a_missing_package_does_not_cost_the_old_run(tmp_path, monkeypatch, option, package):
    assert command("train", *TINY, "--out", "a").code == 0
    before = contents(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    gpucnn.dtypes.bfloat16.cache_clear()
    result = command("train", *TINY, *option, "--overwrite", "--out", "a")
    assert result.code == 2
    assert package in result.err
    assert contents(tmp_path) == before


def test_a_run_without_its_checkpoint_is_not_resumed_and_the_error_says_what_is_missing(tmp_path):
    options = ("train", "x-or-not-x", "--schedule", "constant", "--no-pictures", "--out", "a")
    assert command(*options, "--epochs", 1).code == 0
    (tmp_path / "a" / "checkpoint.safetensors").unlink()
    before = contents(tmp_path)
    result = command(*options, "--epochs", 2, "--resume")
    assert result.code == 2
    assert f"there is no {Path('a/checkpoint.safetensors')}, from which --resume could go on; choose" in result.err
    assert "--from a, or start anew with --overwrite" in result.err
    assert contents(tmp_path) == before


def test_too_few_images_for_early_stopping_are_named_by_its_option(tmp_path):
    np.savez("few.npz", images=np.arange(4 * 144, dtype=np.uint8).reshape(4, 12, 12), labels=[0, 1, 0, 1])
    result = command("train", "few.npz", "--early-stopping", 1)
    assert result.code == 2
    assert "--early-stopping keeps a tenth of the training images apart, and these 3 are too few for" in result.err


def test_a_folder_for_data_sets_that_can_not_be_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("GPUCNN_DATA", os.devnull)
    result = command("train", "mnist")
    assert result.code == 2
    assert re.search(rf"can't write to {os.devnull}.mnist: .*; GPUCNN_DATA chooses another place", result.err)


@pytest.mark.skipif(os.name == "nt", reason="it is a shell that closes them")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_works_without_standard_output(tmp_path, closed):
    for n, words in enumerate(["datasets", "train x-or-not-x --epochs 1 --out a", "predict a a/samples/X.png"]):
        script = f"{sys.executable} -m gpucnn {words} {closed}"
        result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, (n, result.stderr)
    assert "finished" in json.loads((tmp_path / "a" / "run.json").read_text())
    script = f"{sys.executable} -m gpucnn evaluate nix {closed}"
    assert subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True).returncode == 2


def test_a_damaged_checkpoint_does_not_cost_the_result_of_a_finished_run(tmp_path):
    options = ("train", "x-or-not-x", "--schedule", "constant", "--no-pictures", "--out", "a")
    assert command(*options, "--epochs", 1).code == 0
    (tmp_path / "a" / "checkpoint.safetensors").write_bytes(b"damaged")
    before = contents(tmp_path)
    result = command(*options, "--epochs", 2, "--resume")
    assert result.code == 2
    assert "checkpoint.safetensors" in result.err
    assert contents(tmp_path) == before | {f"a{os.sep}.lock": str(os.getpid()).encode()}


def test_a_mistake_in_a_new_run_does_not_cost_the_old_one(tmp_path):
    assert command("train", *TINY, "--out", "a").code == 0
    before = contents(tmp_path)
    assert command("train", "x-or-not-x", "--model", "vgg-small", "--overwrite", "--out", "a").code == 2
    assert contents(tmp_path) == before


def test_a_damaged_run_file_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("{")
    result = command("train", *TINY, "--out", "a")
    assert result.code == 2
    assert re.search(r"run\.json is damaged .*--overwrite", result.err)
    overwritten = command("train", *TINY, "--out", "a", "--overwrite")
    assert overwritten.code == 0, overwritten.err


LONG = ["train", "x-or-not-x", "--epochs", "30", "--batch-size", "16", "--held-out", "1500", "--no-pictures"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training that nothing interrupts."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "whole"
    assert command(*LONG, "--out", folder).code == 0
    return folder


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_says_how_to_go_on_and_does_with_the_same_bits(tmp_path, number, code, whole):
    code_in_foreground = (  # a shell makes its background jobs, such as this test run, ignore SIGINT
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from gpucnn.cli import main; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code_in_foreground, *LONG, "--out", "cut"], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr.readline().startswith("epoch 1/30")
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code
    assert err.splitlines()[-1] == (
        "gpucnn: stopped; all that was learned is kept. Go on with: gpucnn train x-or-not-x --out cut --resume"
    )
    refused = command("train", "x-or-not-x", "--out", "cut")
    assert refused.code == 2
    assert "stopped before its end; go on with gpucnn train x-or-not-x --out cut --resume" in refused.err
    resumed = command("train", "x-or-not-x", "--out", "cut", "--resume", "--no-pictures")
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "cut" / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    one, two = (load_model(run / "model.safetensors")[0].state_dict() for run in (tmp_path / "cut", whole))
    for name in one:
        np.testing.assert_array_equal(one[name].numpy(), two[name].numpy())


def test_output_into_a_pipe_has_no_control_characters(tmp_path):
    result = process("train", *TINY, "--out", "a", cwd=tmp_path, FORCE_COLOR="", TERM="xterm-256color")
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    assert "\r" not in result.stdout + result.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_a_bar_and_colours_unless_no_color_is_set(finished, tmp_path, no_color):
    import pty

    leader, follower = pty.openpty()
    variables = {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": no_color, "COLORTERM": ""}
    child = subprocess.Popen(
        [sys.executable, "-m", "gpucnn", "train", *TINY, "--out", "a"],
        cwd=tmp_path, stdout=follower, stderr=follower, env=os.environ | variables,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # how a closed pseudo-terminal ends
        while part := os.read(leader, 4096):
            shown += part
    os.close(leader)
    assert child.wait() == 0
    text = shown.decode()
    assert "epoch 2/2" in text
    assert "images/s" in text
    assert "held-out accuracy" in text
    assert ("\x1b[32m" in text) == (not no_color)


def test_own_test_images_are_held_out_and_left_out_of_the_training(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    train_images = generator.integers(0, 256, (40, 14, 13), dtype=np.uint8)
    test_images = generator.integers(0, 256, (20, 14, 13), dtype=np.uint8)
    train_images[3] = train_images[8] = test_images[5]
    (tmp_path / "mnist").mkdir()
    for name, array in {
        "train-images-idx3": train_images, "t10k-images-idx3": test_images,
        "train-labels-idx1": np.arange(40, dtype=np.uint8) % 10, "t10k-labels-idx1": np.arange(20, dtype=np.uint8) % 10,
    }.items():  # fmt: skip
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (tmp_path / "mnist" / f"{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path))
    rest, test = cli._load(settings(data="mnist"))
    assert (len(rest), len(test)) == (38, 20)
    assert data.overlap(rest, test) == []
    np.testing.assert_array_equal(test.images[..., 0], test_images)
    result = command("train", "mnist", "--epochs", 1, "--out", "a", "--no-pictures")
    assert result.code == 0, result.err
    assert "38 training images 14×13, 20 held out, 10 classes" in result.out
    evaluated = command("evaluate", "a")
    assert "20 held-out images of mnist" in evaluated.out
    whole = command("evaluate", "a", "--all")
    assert "60 all images of mnist" in whole.out


def test_an_overlap_of_training_and_held_out_images_is_refused(monkeypatch):
    monkeypatch.setattr(cli.datasets_, "split", lambda dataset, part, seed: (dataset, dataset.subset(slice(9))))
    result = command("train", *TINY, "--out", "a")
    assert result.code == 2
    assert "9 of 9 test images (x-or-not-x) are also in the training set" in result.err


@pytest.mark.parametrize(("asked", "count"), [(None, 400), (0.25, 500), (300.0, 300)])
def test_held_out_is_a_number_or_a_fraction_of_images(asked, count):
    rest, test = cli._load(settings(held_out=asked))
    assert len(rest) + len(test) == 2000
    assert count - 40 <= len(test) <= count  # identical drawings stay on one side


def test_gray_images_are_turned_and_colour_images_cropped_and_flipped():
    def images(h, w, c):
        return data.Dataset(np.zeros((2, h, w, c), np.uint8), np.arange(2), ("a", "b"))

    assert isinstance(cli._augmentation(images(28, 24, 1)), data.RandomAffine)
    crop, flip = cli._augmentation(images(32, 24, 3)).transforms
    assert (crop, flip) == (data.RandomCrop((32, 24), 4), data.RandomHorizontalFlip())
    assert cli._augmentation(images(8, 28, 1)) is None


@pytest.mark.parametrize("asked", [True, False])
def test_augmentation_can_be_left_out(asked):
    dataset = data.Dataset(np.zeros((40, 14, 12, 1), np.uint8), np.arange(40) % 2, ("a", "b"))
    loader, _, _ = cli._loaders(settings(augment=asked), dataset, dataset)
    assert (loader.augment is not None) == asked


def test_early_stopping_watches_training_images_kept_apart_and_never_the_held_out_ones():
    whole, held_out = cli._load(settings())
    loader, watched, (stopping,) = cli._loaders(settings(early_stopping=3), whole, held_out)
    assert stopping == train.EarlyStopping(patience=3)
    assert len(loader.dataset) + len(watched.dataset) == len(whole)
    assert data.overlap(loader.dataset, watched.dataset) == []
    assert data.overlap(held_out, watched.dataset) == []
    _, watched, callbacks = cli._loaders(settings(), whole, held_out)
    assert watched.dataset is held_out
    assert callbacks == []


def test_early_stopping_says_why_it_stopped():
    result = command(
        "train", "x-or-not-x", "--epochs", 30, "--early-stopping", 1, "--lr", 1e-9, "--out", "a", "--no-pictures"
    )
    assert result.code == 0, result.err
    assert re.search(r"stopped early: held_out_loss has not improved for 1 epochs; the best was epoch \d", result.out)


@pytest.mark.parametrize(
    ("name", "kind", "lr"),
    [
        ("sgd", optim.SGD, 0.1),
        ("adam", optim.Adam, 0.003),
        ("adamw", optim.AdamW, 0.003),
        ("rmsprop", optim.RMSprop, 0.001),
    ],
)
def test_each_optimizer_has_its_usual_learning_rate(name, kind, lr):
    assert cli.LEARNING_RATES[name] == lr
    optimizer = cli._optimizer(settings(optimizer=name, lr=lr, weight_decay=0.01), nn.models.x_or_not_x())
    assert type(optimizer) is kind
    assert (optimizer.lr, optimizer.weight_decay) == (lr, 0.01)


def test_each_schedule_reaches_its_end_with_the_last_step():
    def rates(schedule, epochs):
        optimizer = cli._optimizer(settings(lr=0.5), nn.models.x_or_not_x())
        scheduler = cli._scheduler(settings(schedule=schedule, lr=0.5, epochs=epochs), optimizer, batches=3)
        found = [optimizer.lr]
        for _ in range(epochs * 3 - 1):
            if scheduler is not None:
                scheduler.step()
            found.append(optimizer.lr)
        return found

    onecycle = rates("onecycle", 10)
    assert max(onecycle) == pytest.approx(0.5)
    assert onecycle[0] == pytest.approx(0.5 / 25)
    assert onecycle[-1] == pytest.approx(0.5 / 25 / 1e4)
    assert rates("cosine", 10)[15] == pytest.approx(0.25)
    assert rates("constant", 2) == [0.5] * 6
    step = rates("step", 41)
    assert (step[59], step[60], step[120]) == pytest.approx((0.5, 0.05, 0.005))


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("lenet5", (12, 15, 1), nn.models.LeNet5), ("lenet5-bn", (12, 15, 1), nn.models.LeNet5),
        ("vgg-small", (8, 9, 3), nn.models.VGGSmall), ("resnet20", (8, 9, 3), nn.models.ResNet),
        ("resnet18", (33, 32, 1), nn.models.ResNet), ("resnet50", (33, 32, 1), nn.models.ResNet),
    ],
)  # fmt: skip
def test_each_model_fits_the_images_and_classes(name, shape, kind):
    dataset = data.Dataset(np.zeros((3, *shape), np.uint8), np.arange(3), ("a", "b", "c"))
    model = cli._build(name, dataset)
    assert isinstance(model, kind)
    assert train.predict(model, data.to_float(dataset.images[:1])).shape == (1, 3)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == (name != "lenet5")


def test_the_usual_model_goes_by_the_images():
    def images(h, w, c):
        return data.Dataset(np.zeros((2, h, w, c), np.uint8), np.arange(2), ("a", "b"))

    assert cli._usual_model(images(28, 12, 1)) == "lenet5"
    assert cli._usual_model(images(28, 11, 1)) == "vgg-small"
    assert cli._usual_model(images(32, 32, 3)) == "vgg-small"
    assert cli._usual_model(data.load("x-or-not-x")) == "x-or-not-x"


def test_weights_of_another_run_are_the_start_of_a_new_one(finished, tmp_path):
    folder, _ = finished
    options = ("train", *TINY, "--schedule", "constant", "--out", "a")
    result = command(*options, "--from", folder, "--lr", 1e-12, "--weight-decay", 0)
    assert result.code == 0, result.err
    old, new = (load_model(path / "model.safetensors")[0].state_dict() for path in (folder, tmp_path / "a"))
    for name in old:
        np.testing.assert_allclose(old[name].numpy(), new[name].numpy(), rtol=0, atol=1e-6)


def test_weights_that_have_seen_the_held_out_images_are_refused(finished):
    result = command("train", *TINY, "--from", finished[0], "--seed", 7, "--held-out", 100, "--out", "a")
    assert result.code == 2
    assert "was trained with seed 0 and held-out None, so it has seen images that this run holds out" in result.err


def test_weights_of_another_network_are_refused(finished):
    result = command("train", "mnist-5k", "--from", finished[0], "--out", "a")
    assert result.code == 2
    assert "does not fit LeNet5" in result.err


def test_tensorboard_logs_are_written_on_request(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX")
    assert command("train", *TINY, "--tensorboard", "--out", "a").code == 0
    assert list((tmp_path / "a" / "tensorboard").glob("events*"))


def test_without_matplotlib_and_pillow_a_training_still_ends_and_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    result = command("train", "x-or-not-x", "--epochs", 1, "--out", "a")
    assert result.code == 0, result.err
    assert 'pictures need matplotlib, so there will be none: pip install "gpucnn[viz]"' in result.out
    assert 'sample images need Pillow, so there will be none: pip install "gpucnn[data]"' in result.out
    assert "held-out accuracy" in result.out
    assert not (tmp_path / "a" / "pictures").exists()
    assert not (tmp_path / "a" / "samples").exists()


def test_many_classes_are_summed_up_by_the_worst_pairs(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(150) % 25
    np.savez(tmp_path / "many.npz", images=generator.integers(0, 256, (150, 12, 13), dtype=np.uint8), labels=labels)
    result = command("train", "many.npz", "--epochs", 1, "--out", "a", "--no-pictures")
    assert result.code == 0, result.err
    assert re.search(r"most often mixed up:\n  \d+ taken for \d+: \d+\n", result.out)
    assert "right when named" not in result.out


# -- evaluate, predict, show -----------------------------------------------------------------------


def test_evaluate_finds_the_images_that_were_held_out(finished):
    folder, first = finished
    result = command("evaluate", folder / "model.safetensors")
    assert result.code == 0
    assert result.out.splitlines()[1] in first.out
    _, held_out = data.split(data.load("x-or-not-x"), 0.2, seed=0)
    assert f"{len(held_out)} held-out images of x-or-not-x" in result.out
    assert "2,000 all images of x-or-not-x" in command("evaluate", folder, "--all").out


def test_evaluate_on_other_data_uses_all_of_it(gray, tmp_path):
    path, run, _ = gray
    with np.load(path) as arrays:
        np.savez(tmp_path / "some.npz", **{name: a if name == "classes" else a[:50] for name, a in arrays.items()})
    result = command("evaluate", run, tmp_path / "some.npz")
    assert result.code == 0, result.err
    assert "50 all images of some" in result.out
    assert re.search(r"^accuracy [\d.]+ %$", result.out, re.MULTILINE)


@pytest.mark.parametrize("spelt", ["./crosses.npz", "{}/crosses.npz", "../{}/crosses.npz"])
def test_the_data_of_the_training_are_the_same_however_their_path_is_written(gray, monkeypatch, spelt):
    path, run, _ = gray
    monkeypatch.chdir(path.parent)
    spelt = spelt.format(path.parent if spelt.startswith("{") else path.parent.name)
    evaluated = command("evaluate", run, spelt)
    assert "30 held-out images of crosses" in evaluated.out, evaluated.err
    assert "holds a finished run" in command("train", spelt, "--resume", "--out", run).out
    refused = command("train", spelt, "--from", run, "--out", "b", "--held-out", 20)
    assert "so it has seen images that this run holds out" in refused.err


def test_a_finished_run_is_named_by_what_a_dot_stands_for(tmp_path):
    (tmp_path / "set").mkdir()
    assert "set holds no run to resume" in command("train", tmp_path / "set" / ".", "--resume").err
    assert f"runs{os.sep}{tmp_path.name} holds no run to resume" in command("train", ".", "--resume").err


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_channels_that_no_picture_has_are_trained_on_without_pictures(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 12, channels), dtype=np.uint8)
    np.savez("bands.npz", images=images, labels=np.arange(60) % 2)
    result = command("train", "bands.npz", "--epochs", 1, "--out", "a")
    assert result.code == 0, result.err
    assert f"images of {channels} channels can't be drawn, so there will be no pictures and no samples" in result.out
    assert "finished" in json.loads((tmp_path / "a" / "run.json").read_text())
    evaluated = command("evaluate", "a")
    assert evaluated.code == 0, evaluated.err


def test_one_class_is_refused_before_anything_is_written(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 12, 12), dtype=np.uint8)
    np.savez("one.npz", images=images, labels=np.zeros(30, np.int64), classes=["cat"])
    result = command("train", "one.npz", "--out", "a")
    assert result.code == 2
    assert "one has one class, 'cat', so there is nothing to tell apart" in result.err
    assert not (tmp_path / "a").exists()


def test_samples_of_classes_whose_names_look_alike_are_all_there():
    names = ("a", "A", "a!", "!", "a-1")
    dataset = data.Dataset(np.zeros((5, 8, 8, 1), np.uint8), np.arange(5), names)
    assert list(cli._samples(dataset)) == ["a.png", "A-1.png", "a-2.png", "3.png", "a-1-4.png"]


def test_the_confusion_matrix_has_hits_in_green_and_mistakes_in_red():
    probabilities = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    evaluation = train.Evaluation(0.0, probabilities, np.array([0, 1, 1]), ("cat", "dog"))
    out = io.StringIO()
    cli._print_confusion(Console(file=out, force_terminal=True, color_system="standard", highlight=False), evaluation)
    _, cat, dog = out.getvalue().splitlines()
    assert re.findall(r"\x1b\[(\d+)m *(\d)", cat) == [("32", "1")]
    assert re.findall(r"\x1b\[(\d+)m *(\d)", dog) == [("31", "1"), ("32", "1")]


def test_evaluate_refuses_images_of_another_size(finished):
    result = command("evaluate", finished[0], "digits")
    assert result.code == 2
    assert "digits has images of 8×8 and 1 channels, not 5×5 gray ones" in result.err


def test_evaluate_needs_a_data_set_for_a_model_that_does_not_name_one(tmp_path):
    save_model(nn.models.x_or_not_x(), tmp_path / "bare.safetensors")
    result = command("evaluate", "bare.safetensors")
    assert result.code == 2
    assert "does not say what it was trained on; name a data set after it" in result.err
    assert command("evaluate", "bare.safetensors", "x-or-not-x").code == 0


def test_predict_prints_the_likeliest_classes_first(gray, tmp_path):
    path, run, _ = gray
    dataset = data.load(path)
    Image.fromarray(dataset.images[0, :, :, 0]).save("one.png")
    model, _ = load_model(run / "model.safetensors")
    probabilities = train.predict(model, data.to_float(dataset.images[:1])[0])
    expected = sorted(zip(("other", "cross"), probabilities, strict=True), key=lambda pair: -pair[1])
    result = command("predict", run, "one.png")
    assert result.out == "  ".join(f"{name}: {p:.2f}" for name, p in expected) + "\n"
    assert command("predict", run, "one.png", "--top", 1).out == f"{expected[0][0]}: {expected[0][1]:.2f}\n"


def test_predict_answers_in_json_with_all_digits(gray):
    path, run, _ = gray
    dataset = data.load(path)
    for n in range(2):
        Image.fromarray(dataset.images[n, :, :, 0]).save(f"{n}.png")
    model, _ = load_model(run / "model.safetensors")
    probabilities = train.predict(model, data.to_float(dataset.images[:2]))
    answers = json.loads(command("predict", run, "0.png", "1.png", "--json").out)
    assert [answer["image"] for answer in answers] == ["0.png", "1.png"]
    for answer, row in zip(answers, probabilities, strict=True):
        found = {entry["class"]: entry["probability"] for entry in answer["classes"]}
        assert found == pytest.approx({"other": row[0], "cross": row[1]})
        assert answer["classes"][0]["probability"] >= answer["classes"][1]["probability"]


def test_predict_names_the_file_where_there_are_several(gray):
    path, run, _ = gray
    for n in range(2):
        Image.fromarray(data.load(path).images[n, :, :, 0]).save(f"{n}.png")
    lines = command("predict", run, "0.png", "1.png").out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["0.png", "1.png"]


def test_predict_takes_any_size_and_colour_and_inverts_on_request(gray):
    path, run, _ = gray
    image = Image.fromarray(data.load(path).images[1, :, :, 0])
    image.save("plain.png")
    enlarged = image.resize((200, 160), Image.Resampling.NEAREST)
    enlarged.convert("RGB").save("large.png")
    Image.fromarray(255 - np.asarray(image)).save("ink.png")
    plain, large, ink = (
        json.loads(command("predict", run, name, "--json", *more).out)[0]["classes"]
        for name, *more in (("plain.png",), ("large.png",), ("ink.png", "--invert"))
    )
    assert ink == plain
    assert [entry["class"] for entry in large] == [entry["class"] for entry in plain]
    assert large[0]["probability"] == pytest.approx(plain[0]["probability"], abs=0.02)
    assert json.loads(command("predict", run, "ink.png", "--json").out)[0]["classes"] != plain


def test_predict_normalises_colour_images_as_in_the_training(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 14, 3), dtype=np.uint8)
    for n, image in enumerate(images):
        folder = tmp_path / "photos" / ("cat" if n % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{n}.png")
    result = command("train", "photos", "--image-size", "10x9", "--epochs", 1, "--out", "a", "--no-pictures")
    assert result.code == 0, result.err
    assert "48 training images 10×9, 12 held out, 2 classes" in result.out
    model, description = load_model(tmp_path / "a" / "model.safetensors")
    whole, _ = cli._load(settings(data="photos", image_size=[10, 9]))
    floats = data.to_float(whole.images)
    mean, std = description["normalise"]
    np.testing.assert_allclose(mean, floats.mean((0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(std, floats.std((0, 2, 3)), atol=1e-4)
    pixels = data.read_image("photos/cat/1.png", size=(10, 9))
    x = (data.to_float(pixels[None]) - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    expected = train.predict(model, x.astype(np.float32))[0]
    entries = json.loads(command("predict", "a", "photos/cat/1.png", "--json").out)[0]["classes"]
    assert {entry["class"]: entry["probability"] for entry in entries} == pytest.approx(
        {"cat": expected[0], "dog": expected[1]}, abs=1e-5
    )
    evaluation = train.evaluate(
        model, data.Loader(cli._load(settings(data="photos", image_size=[10, 9]))[1], 9, normalise=(mean, std))
    )
    assert f"12 held-out images of photos, loss {evaluation.loss:.4f}" in command("evaluate", "a").out
    gray_run = command("train", "photos", "--gray", "--image-size", 12, "--epochs", 1, "--out", "g", "--no-pictures")
    assert gray_run.code == 0, gray_run.err
    assert load_model(tmp_path / "g" / "model.safetensors")[1]["channels"] == 1
    with Image.open(tmp_path / "a" / "samples" / "cat.png") as picture:
        assert picture.mode == "RGB"


def _photos(folder, count, first=0):
    """`count` pictures of 9×8 in two classes, one of them darker."""
    for n in range(first, first + count):
        place = folder / ("cat" if n % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256 if n % 2 else 128, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{n:03}.png")


def test_a_folder_s_own_test_images_are_the_held_out_ones(tmp_path):
    _photos(tmp_path / "photos" / "train", 40)
    _photos(tmp_path / "photos" / "val", 10, first=100)
    result = command("train", "photos", "--epochs", 1, "--out", "a", "--no-pictures", "--seed", 3)
    assert result.code == 0, result.err
    assert "40 training images 9×8, 10 held out, 2 classes" in result.out
    test = data.load(tmp_path / "photos", split="test")
    np.testing.assert_array_equal(cli._load(settings(data="photos"))[1].images, test.images)
    assert "10 held-out images of photos" in command("evaluate", "a").out
    result = command("train", "photos", "--epochs", 1, "--out", "b", "--no-pictures", "--held-out", 0.4)
    assert "30 training images 9×8, 20 held out" in result.out


def test_training_and_test_images_of_two_sizes_need_a_size(tmp_path):
    _photos(tmp_path / "photos" / "train", 8)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (7, 9)).save(tmp_path / "photos" / "test" / name / "1.png")
    result = command("train", "photos", "--epochs", 1, "--out", "a")
    assert result.code == 2
    assert "photos: training images are 9×8, test images 9×7; give --image-size HxW" in result.err


def test_pictures_that_stay_in_their_files_train_the_same_model(tmp_path, monkeypatch):
    _photos(tmp_path / "photos", 60)
    weights = []
    for out, limit in (("memory", 1 << 31), ("files", 0)):
        monkeypatch.setattr("gpucnn.data.pictures.IN_MEMORY", limit)
        result = command("train", "photos", "--epochs", 2, "--out", out, "--no-pictures", "--early-stopping", 2)
        assert result.code == 0, result.err
        weights.append(load_model(tmp_path / out / "model.safetensors")[0].state_dict())
        assert "12 held-out images" in command("evaluate", out).out
    for name, weight in weights[0].items():
        np.testing.assert_array_equal(weight, weights[1][name])


def test_labels_that_are_no_text_are_named(finished, tmp_path):
    (tmp_path / "labels.txt").write_bytes("über\nunter\n".encode("latin-1"))
    result = command("predict", finished[0], finished[0] / "samples" / "X.png", "--labels", "labels.txt")
    assert result.code == 2
    assert "labels.txt is no text in UTF-8" in result.err


def test_a_report_that_cannot_be_written_is_told_before_anything_is_verified(monkeypatch):
    monkeypatch.setattr("gpucnn.verify.run", lambda *arguments: pytest.fail("it was verified"))
    for option in ("--json", "--html"):
        result = command("verify", option, "no/report")
        assert (result.code, "can't write no/report: there is no folder no" in result.err) == (2, True)


@pytest.mark.parametrize("name", ["nix.png", "text.png"])
def test_predict_names_a_picture_that_cannot_be_read(finished, tmp_path, name):
    (tmp_path / "text.png").write_text("no picture")
    result = command("predict", finished[0], name)
    assert result.code == 2
    assert name in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("words", [("predict",), ("show",)])
def test_a_model_that_does_not_say_what_it_takes_is_refused(words, tmp_path):
    save_model(nn.models.x_or_not_x(), tmp_path / "bare.safetensors")
    Image.new("L", (5, 5)).save("a.png")
    result = command(*words, "bare.safetensors", "a.png")
    assert result.code == 2
    assert "does not say what images it takes; save it with save_model(…, image_size=[H, W], channels=C)" in result.err


def test_classes_without_names_are_numbered(tmp_path):
    save_model(nn.models.x_or_not_x(), tmp_path / "bare.safetensors", image_size=[5, 5], channels=1)
    Image.new("L", (5, 5)).save("a.png")
    assert re.fullmatch(r"[01]: 0\.\d\d  [01]: 0\.\d\d\n", command("predict", "bare.safetensors", "a.png").out)
    assert "classes: not named" in command("show", "bare.safetensors", "--text").out


def test_show_prints_the_layers_and_draws_filters_and_feature_maps(gray, tmp_path):
    path, run, _ = gray
    Image.fromarray(data.load(path).images[0, :, :, 0]).save("one.png")
    result = command("show", run, "one.png", "--out", "drawn")
    assert result.code == 0, result.err
    model, _ = load_model(run / "model.safetensors")
    assert str(model.summary(1, 16, 20)) in result.out
    assert "classes: other, cross" in result.out
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["feature_maps-one.png", "filters.png"]


def test_show_draws_beside_the_model_unless_told_otherwise(finished, tmp_path):
    model, description = load_model(finished[0] / "model.safetensors")
    save_model(model, tmp_path / "copy.safetensors", **{k: description[k] for k in ("image_size", "channels")})
    assert command("show", "copy.safetensors", "--text").code == 0
    assert not (tmp_path / "pictures").exists()
    assert command("show", "copy.safetensors").code == 0
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["filters.png"]


def test_show_without_matplotlib_says_what_to_install(finished, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = command("show", finished[0], "--out", tmp_path / "drawn")
    assert result.code == 2
    assert 'pictures need matplotlib: pip install "gpucnn[viz]"' in result.err
    assert "Conv2d" in result.out, "the table comes all the same"


# -- explain, show --why ---------------------------------------------------------------------------


@pytest.fixture
def digit(gray, tmp_path):
    """(a run with a LeNet-5 on 16×20 images, one of its images as a file)."""
    path, run, _ = gray
    Image.fromarray(data.load(path).images[0, :, :, 0]).save(tmp_path / "one.png")
    return run, tmp_path / "one.png"


def test_explain_prints_what_the_method_returns(digit):
    run, picture = digit
    result = command("explain", run, picture, "--layer", "3", "--unit", "2,1,0", "--target", "cross")
    assert result.code == 0, result.err
    model, description = load_model(run / "model.safetensors")
    x = cli._picture(picture, description, False)
    assert result.out == f"{model.explain(x, '3', (2, 1, 0), target=1)}\n"
    assert "The gradient of the score of class 1" in result.out


def test_explain_writes_a_page_and_all_numbers(digit, tmp_path):
    result = command(
        "explain", *digit, "--layer", 11, "--unit", 1, "--label", 0, "--html", "a.html", "--json", "a.json"
    )
    assert result.code == 0, result.err
    page = (tmp_path / "a.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "The gradient of the cross-entropy loss of class 0" in page
    numbers = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert (numbers["layer"], numbers["unit"], numbers["kind"]) == ("11", [1], "Linear")
    assert sum(numbers["products"]) + numbers["bias"] == pytest.approx(numbers["value"], rel=1e-4)
    assert "wrote a.html\nwrote a.json" in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), r"say which number with --layer and --unit \(--layer is missing\); the layers are 0, 1, 2"),
        (("--layer", "0"), r"\(--unit is missing\)"),
        (("--layer", "0", "--unit", "a,b"), r"--unit takes whole numbers by commas, such as 2,7,13, got 'a,b'"),
        (("--layer", "0", "--unit", "9,0,0"), r"layer '0' makes 6×16×20, which has no unit \(9, 0, 0\): a unit is \("),
        (("--layer", "conv", "--unit", "0"), r"LeNet5 has no layer 'conv'; it has '0'"),
        (("--layer", "11", "--unit", "0", "--target", "dog"), r"there is no class 'dog'; the classes are other, cross"),
        (("--layer", "11", "--unit", "0", "--target", "7"), r"there is no class 7 among the model's 2 outputs"),
        (("--layer", "11", "--unit", "0", "--target", "0", "--label", "1"), r"choose one of target=0, label=1"),
        (("--layer", "11", "--unit", "0", "--html", "no/folder.html"), r"can.t write no.folder.html: there is no"),
    ],
)
def test_explain_says_in_one_line_what_is_wrong(digit, options, message):
    result = command("explain", *digit, *options)
    assert result.code == 2
    assert re.search(message, result.err), result.err
    assert result.err.count("\n") == 1


def test_show_why_draws_where_the_model_looks(digit, tmp_path):
    result = command("show", *digit, "--why", "--out", "drawn")
    assert result.code == 0, result.err
    names = [f"{kind}-one.png" for kind in ("feature_maps", "grad_cam", "occlusion", "saliency")]
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == sorted(["filters.png", *names])
    assert "wrote drawn/grad_cam-one.png" in result.out


def test_show_why_needs_a_picture(digit):
    result = command("show", digit[0], "--why")
    assert result.code == 2
    assert "--why looks at a picture" in result.err


# -- info, datasets --------------------------------------------------------------------------------


def test_info_says_what_is_here_and_what_auto_picks(monkeypatch):
    monkeypatch.setenv("GPUCNN_DATA", "/somewhere/data")
    out = command("info").out
    rows = dict(re.split(r"\s{2,}|(?<=GPUCNN_BACKEND) ", line, maxsplit=1) for line in out.splitlines())
    assert rows["gpucnn"].startswith(gpucnn.__version__)
    assert rows["numpy"] == np.__version__
    assert rows["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert rows["backends"] == ", ".join(gpucnn.available_backends())
    assert rows["auto"].startswith(f"picks {gpucnn.get_backend('auto').name}: ")
    assert "/somewhere/data" in rows["data sets"]
    assert "threads" in rows["cores"]
    assert "viz installed" in rows["extras"]


def test_info_says_what_is_missing_and_why_auto_chose(monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    monkeypatch.setattr(cli, "auto_choice", lambda: ("numpy", "cuda can't run here: there is no driver"))
    out = command("info").out
    assert 'viz missing (pip install "gpucnn[viz]")' in out
    assert "picks numpy: cuda can't run here: there is no driver" in out


# -- doctor, warmup --------------------------------------------------------------------------------


@pytest.fixture
def _no_gpu(monkeypatch):
    fake_cupy.install(monkeypatch, driver=None, wheels=())
    monkeypatch.setattr(backends, "_made", {})
    monkeypatch.setattr(backends, "_auto", [])


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        ("cuda", "GPUCNN_BACKEND  'cuda', which can't run here: there is no NVIDIA driver (libcuda can't be loaded): "),
        ("tpu", "GPUCNN_BACKEND  'tpu', but the backends are auto, numpy, cuda, emulator, ptx"),
    ],
)
def test_info_shows_the_rest_and_the_remedy_where_the_chosen_backend_can_not_run(monkeypatch, chosen, line):
    monkeypatch.setenv("GPUCNN_BACKEND", chosen)
    result = command("info")
    assert result.code == 0
    assert any(text.startswith(line) for text in result.out.splitlines())
    assert "backends        numpy, emulator" in result.out
    assert "data sets " in result.out


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize(("words", "code"), [((), 0), (("--backend", "emulator"), 0), (("--backend", "cuda"), 1)])
def test_doctor_says_what_is_missing_and_its_exit_code_whether_it_is_needed(words, code):
    result = command("doctor", *words)
    assert (result.code, result.err) == (code, "")
    [line] = [line for line in result.out.splitlines() if "cuda backend" in line]
    assert re.match(rf"{'problem' if code else 'warning'} +cuda backend +there is no NVIDIA driver", line)


def test_warmup_compiles_what_training_takes_and_the_second_time_finds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCNN_CACHE", str(tmp_path))
    emulator._compiled.cache_clear()
    first = command("warmup", "x-or-not-x", "--backend", "emulator", "--batch-size", 8)
    assert first.code == 0, first.err
    count = int(re.match(r"(\d+) kernels of x-or-not-x are ready on emulator \(\d+\.\d s\)", first.out)[1])
    built = contents(tmp_path)
    assert len(built) >= count, "and the emulator's runtime, unless this process has it already"
    emulator._compiled.cache_clear()
    assert command("warmup", "x-or-not-x", "--backend", "emulator", "--batch-size", 8).code == 0
    assert contents(tmp_path) == built


def test_warmup_takes_the_folder_of_a_run(finished):
    result = command("warmup", finished[0], "--backend", "emulator")
    assert result.code == 0, result.err
    assert "are ready on emulator" in result.out


def test_warmup_also_takes_a_step_where_the_array_library_has_kernels_of_its_own(monkeypatch):
    cupy = fake_cupy.install(monkeypatch)
    monkeypatch.setattr(backends, "_made", {})
    monkeypatch.setattr(cuda.CudaDevice, "_table", lambda self, arrays: np.zeros(len(arrays), np.uint64))
    monkeypatch.setattr(cupy, "compute", lambda *launch: None, raising=False)
    with np.errstate(all="ignore"):
        result = command("warmup", "x-or-not-x", "--backend", "cuda")
    assert (result.code, result.err) == (0, "")
    assert {"conv2d_max_pool2d_forward", "adam_update"} <= {name for name, *_ in cupy.launches}


@pytest.mark.usefixtures("_no_gpu")
def test_warmup_has_nothing_to_do_for_numpy():
    assert command("warmup").out == "the numpy backend compiles nothing\n"


def test_warmup_of_a_model_that_does_not_exist_names_those_that_do():
    result = command("warmup", "alexnet", "--backend", "emulator")
    assert result.code == 2
    assert re.search(r"no model called 'alexnet' and no such file; known are lenet5, .*x-or-not-x", result.err)


def test_every_model_that_train_knows_can_be_warmed_up():
    assert set(cli.USUAL_IMAGES) == set(get_args(cli.ModelName))
    for name in cli.USUAL_IMAGES:
        network, shape = cli._to_warm_up(name)
        assert network.summary(*shape).parameters > 0


def test_datasets_says_for_each_whether_it_is_here_and_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path))
    fashion = data.sources._SOURCES["fashion-mnist"]
    monkeypatch.setitem(data.sources._SOURCES, "fashion-mnist", replace(fashion, folders=()))  # nor as a Debian package
    lines = command("datasets").out.splitlines()
    found = {line.split()[0]: line for line in lines[1:]}
    assert list(found) == [source.name for source in data.available()]
    assert "yes" in found["x-or-not-x"]
    assert "5,000 handwritten digits" in found["mnist-5k"]
    assert found["fashion-mnist"].rstrip().endswith("(30.9 MB)"), "a long line is not folded"
    assert re.search(r"32×32 colour +no +downloaded on first use from https://\S+ \(170\.1 MB\)", found["cifar10"])


# -- nothing heavy ---------------------------------------------------------------------------------


def test_importing_the_package_imports_none_of_the_command(tmp_path):
    code = (
        "import sys, gpucnn; assert not {'typer', 'rich', 'matplotlib', 'PIL'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_graph_and_no_graph_are_handed_to_fit(monkeypatch):
    asked = []

    def fit(*args, graph, **options):
        asked.append(graph)
        raise ValueError("that will do")

    monkeypatch.setattr(train, "fit", fit)
    for number, flags in enumerate(((), ("--graph",), ("--no-graph",))):
        result = command("train", "x-or-not-x", "--epochs", 1, "--out", f"run{number}", *flags)
        assert "that will do" in result.err
    assert asked == [None, True, False]
