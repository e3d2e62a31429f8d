"""The command `gpucnn`: train, evaluate, predict, show, explain, demo, info, doctor, warmup, verify, fingerprint, …"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

import gpucnn
from gpucnn import data as datasets_  # the command `datasets` has the plain name
from gpucnn import functional as F
from gpucnn import nn, optim, pretrained, train
from gpucnn.atomic import check_writable, write_atomically, write_text
from gpucnn.backends import INSTRUMENTS, auto_choice, available_backends, get_backend, use_backend
from gpucnn.backends.precision import PRECISIONS
from gpucnn.checkpoint import describe_input, load_model, save_model
from gpucnn.data import Dataset, Loader, Normalize
from gpucnn.dtypes import named
from gpucnn.metrics import Evaluation
from gpucnn.names import escaped
from gpucnn.nn import Module, models
from gpucnn.settings import (
    PIXELS,
    PLACE,
    ModelName,
    OptimizerName,
    PrecisionName,
    ScheduleName,
    Settings,
    check,
    check_description,
    checked_place,
    read_run,
)

Description = dict[str, Any]

# What a person can do wrong, or a machine can lack, arrives as one of these; anything else is a bug of ours.
MISTAKES = (
    ValueError, TypeError, IndexError, OSError, ImportError, RuntimeError, MemoryError, FloatingPointError,
)  # fmt: skip
LEARNING_RATES = {"sgd": 0.1, "adam": 0.003, "adamw": 0.003, "rmsprop": 0.001}
CLOSED_PIPE = 141  # what a shell shows for SIGPIPE
STEP_EPOCHS = 20  # --schedule step
HELD_OUT = 0.2
FILES = ("checkpoint.safetensors", "model.safetensors", "history.csv")  # of a run, besides run.json
PICTURES = ("filters", "feature_maps", "misclassified", "confusion", "curves")  # of a run
MOST_OF_A_NAME = 40  # letters of a class in the name of a file, of which 255 bytes are the most
MOST_CLASSES = 20  # that tables and matrices in a terminal can show

app = typer.Typer(
    name="gpucnn",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"gpucnn {gpucnn.__version__}")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, measure and look into convolutional neural networks.

    \b
    Examples:
      gpucnn train                            LeNet-5 on 5,000 handwritten digits
      gpucnn predict runs/mnist-5k digit.png  prints 7: 0.97  1: 0.02  9: 0.01
      gpucnn show runs/mnist-5k digit.png     what each layer makes of it
      gpucnn demo                             draw a digit on a local page, and look inside
      gpucnn explain runs/mnist-5k digit.png --layer 0 --unit 2,7,13
                                              where one number of it comes from
      gpucnn datasets                         what there is to train on

    \b
    Exit codes:
      0    done
      1    a bug of gpucnn, with a traceback
      2    a mistake in what was asked, or something missing: one line says it
      130  stopped by Ctrl-C (143: by SIGTERM); train --resume goes on
      141  nobody reads what the training says, so it has ended; train --resume goes on

    --debug anywhere on the line, or GPUCNN_DEBUG=1, shows the traceback of every error. NO_COLOR=1 turns colours off.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit. All errors that a user can cause become one line here."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the start, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    words, code = list(sys.argv[1:] if arguments is None else arguments), 0
    debug = "--debug" in words or os.environ.get("GPUCNN_DEBUG", "") not in ("", "0")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks × shows ?, and does not end the command
    try:
        words = [word for word in words if word != "--debug"] or ["--help"]
        command = typer.main.get_command(app)
        with command.make_context("gpucnn", words) as context:  # command.main would hide Ctrl-C
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:
        code = end.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        code = 130
    except (BrokenPipeError, SystemExit):  # `gpucnn datasets | head -1`; rich makes SystemExit of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if debug or not (isinstance(error, MISTAKES) or hasattr(error, "format_message")):
            traceback.print_exc()
        _complain(f"error: {_one_line(error)}")
        code = 2 if isinstance(error, MISTAKES) or hasattr(error, "format_message") else 1
    sys.exit(code)


def _complain(text: str) -> None:
    print(f"gpucnn: {text}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    if hasattr(error, "format_message"):  # of typer: an unknown option, a number that is none
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "gpucnn"
        text = f"{error.format_message().rstrip('.')}. Try: {command} --help"
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, gpucnn.OutOfMemoryError):
        return str(error).replace("\n", "\n  ")  # the one error that takes several lines
    elif isinstance(error, MemoryError):
        text = f"not enough memory ({error}); try a smaller --batch-size"
    else:
        text = str(error) or type(error).__name__
    return escaped(" ".join((text + notes).split()))  # it may quote a file


# -- options that several commands share -----------------------------------------------------------

Backend = Annotated[
    str | None, typer.Option(help="What computes: auto, or one of those `gpucnn info` lists.", show_default="auto")
]
ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A model file (.safetensors, .onnx), the folder of a run, or one with config.json.",
        show_default=False,
    ),
]
Invert = Annotated[
    bool,
    typer.Option(
        "--invert", help="Turn black into white first: for dark ink on light paper, where MNIST has light on dark."
    ),
]


# -- train -----------------------------------------------------------------------------------------


@app.command("train")
def train_command(
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Argument(help="A data set by name (see `gpucnn datasets`), a folder of IDX, CIFAR or pictures, or .npz."),
    ] = "mnist-5k",
    model: Annotated[
        ModelName | None,
        typer.Option(help="The network.", show_default="lenet5 for gray images, else vgg-small"),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 60,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 64,
    lr: Annotated[
        float | None,
        typer.Option(help="The (highest) learning rate.", show_default="0.1 for sgd, 0.003 adam(w), 0.001 rmsprop"),
    ] = None,
    optimizer: Annotated[OptimizerName, typer.Option(help="sgd has Nesterov momentum 0.9.")] = "sgd",
    weight_decay: Annotated[float, typer.Option(min=0, help="Pulls all weights towards 0.")] = 2e-3,
    schedule: Annotated[
        ScheduleName,
        typer.Option(help=f"How the learning rate changes; step: a tenth after every {STEP_EPOCHS} epochs."),
    ] = "onecycle",
    precision: Annotated[
        PrecisionName | None,
        typer.Option(
            help="fp16, bf16: mixed precision, with float32 weights, and for fp16 with loss scaling. fp32, tf32: how "
            "exactly float32 is multiplied.",
            show_default="GPUCNN_PRECISION, else fp32",
        ),
    ] = None,
    augment: Annotated[
        bool,
        typer.Option(help="Vary the training images: turn, move and scale gray ones; crop and flip colour ones."),
    ] = True,
    held_out: Annotated[
        float | None,
        typer.Option(
            help="Images to measure on, never trained on: a number, or a fraction below 1.",
            show_default="the test images that the data comes with; else a fifth",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights, the split and the shuffles.")] = 0,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="EPOCHS",
            help="Stop when a tenth of the training images, kept apart for that, have not been recognised better for "
            "so long, and take the best weights.",
            show_default=False,
        ),
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Bring pictures to this size.", show_default=False)
    ] = None,
    gray: Annotated[bool, typer.Option("--gray", help="Read pictures as gray.")] = False,
    start: Annotated[
        Path | None, typer.Option("--from", metavar="MODEL", help="Start from these weights.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the run.", show_default="runs/DATA")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, bit for bit; draw what it lacks.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in the folder and start anew.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
    pictures: Annotated[bool, typer.Option(help="Draw filters, feature maps, mistakes, curves at the end.")] = True,
    graph: Annotated[
        bool | None,
        typer.Option(
            "--graph/--no-graph",
            help="Launch each step as a whole. It changes no bits.",
            show_default="on a GPU, where a step can be captured",
        ),
    ] = None,
    backend: Backend = None,
) -> None:
    """Train a network, measure it on images it has not seen, and save all that came of it in a folder.

    The folder then holds model.safetensors (for evaluate, predict and show), history.csv, pictures/, samples/ (held-out
    images to try), run.json (settings and result) and checkpoint.safetensors (for --resume).

    \b
    Examples:
      gpucnn train
      gpucnn train fashion-mnist --model lenet5-bn --epochs 20 --out runs/fashion
      gpucnn train photos/ --image-size 32x32 --model resnet20 --early-stopping 10
      gpucnn train --resume --out runs/fashion
    """
    asked = {
        "data": data, "model": model, "epochs": epochs, "batch_size": batch_size, "lr": lr, "optimizer": optimizer,
        "weight_decay": weight_decay, "schedule": schedule, "precision": precision, "augment": augment,
        "held_out": held_out, "seed": seed,
        "early_stopping": early_stopping, "image_size": _size(image_size), "gray": gray,
        "start": None if start is None else str(start),
    }  # fmt: skip
    out = out or Path("runs") / Path(os.path.abspath(data)).stem  # which gives a name to . and .. too
    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it; choose one")
    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"--lr must be above 0, got {lr}")
    check(asked, whose="")
    run = None if overwrite else read_run(out)
    if run is None and resume:
        raise FileNotFoundError(f"{out} holds no run to resume; without --resume a new one starts")
    if run is not None:
        given = {name: value for name, value in asked.items() if _given(ctx, name)}
        if resume:
            settings = _resumed(run, given, out)
        elif "finished" not in run:
            raise ValueError(
                f"{out} holds a run that was stopped before its end; go on with {_command(run['settings'], out)} "
                "--resume, or choose another folder (--out) or --overwrite"
            )
        elif other := _differences(run["settings"], given):
            raise ValueError(
                f"{out} holds a finished run with {'; '.join(other)}; choose another folder (--out) or --overwrite"
            )
        else:
            settings = run["settings"]
        to_draw = resume and pictures and _lacks_pictures(run, out)
        if "finished" in run and settings == run["settings"] and not to_draw:
            _say_what_exists(run, out)
            return
        checkpoint, model_file, _ = (out / name for name in FILES)
        if resume and model_file.exists() and not checkpoint.exists():
            raise FileNotFoundError(
                f"there is no {checkpoint}, from which --resume could go on; choose another folder (--out) and "
                f"--from {_quoted(out)}, or start anew with --overwrite"
            )
    else:
        settings = asked
        foreign = [] if (out / "run.json").exists() else [name for name in FILES if (out / name).exists()]
        if foreign:
            raise FileExistsError(
                f"{out} holds {', '.join(foreign)} of something else than `gpucnn train`; move that away or choose "
                "another folder (--out)"
            )
    try:
        with use_backend(get_backend(backend)):
            _train(
                settings, out, resume=resume, overwrite=overwrite, tensorboard=tensorboard, pictures=pictures,
                graph=graph,
            )  # fmt: skip
    except (BrokenPipeError, SystemExit):  # rich makes SystemExit of it; the last checkpoint is kept
        raise typer.Exit(CLOSED_PIPE) from None


def _given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _size(text: str | None, option: str = "--image-size") -> list[int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text)
    size = [int(match[1]), int(match[2] or match[1])] if match else [0]
    if not 1 <= math.prod(size) <= PIXELS:
        raise ValueError(
            f"{option} must be like 32 or 32x48 (height x width), of at most {PIXELS:,} pixels, got {text!r}"
        )
    return size


def _resumed(run: dict[str, Any], given: Settings, out: Path) -> Settings:
    """The settings of a run, with as many epochs as are asked for now. Raises ValueError for others that differ."""
    settings: Settings = run["settings"]
    if other := _differences(settings, {name: value for name, value in given.items() if name != "epochs"}):
        raise ValueError(
            f"{out} holds a run with {'; '.join(other)}: --resume keeps its settings; use --out for a new run"
        )
    epochs = given.get("epochs", settings["epochs"])
    if epochs < settings["epochs"]:
        raise ValueError(
            f"the run in {out} is one of {settings['epochs']} epochs, which can grow, not shrink to {epochs}"
        )
    if epochs > settings["epochs"] and settings["schedule"] in ("onecycle", "cosine"):
        first = "" if "finished" in run else f"end it with {_command(settings, out)} --resume, then "
        raise ValueError(
            f"the {settings['schedule']} schedule of {out} ends at epoch {settings['epochs']} with a learning rate "
            f"near 0; {first}train another cycle from what was learned: {_another_cycle(settings, out)}"
        )
    return {**settings, "epochs": epochs}


def _differences(settings: Settings, given: Settings) -> list[str]:
    """What was given on the command line and is not so in a run, in words."""

    def same(name: str, value: Any) -> bool:
        if name == "data":
            return _which(value) == _which(settings["data"])
        return value in (settings.get(name), None)

    return [f"{name} {settings.get(name)}, not {value}" for name, value in given.items() if not same(name, value)]


def _which(data: str) -> str | Path:
    """A data set's name, or else its path, of the several ways to write it always the same."""
    known = any(source.name == data for source in datasets_.available())
    return data if known else Path(data).expanduser().resolve()


def _command(settings: Settings, out: Path) -> str:
    """The command line of a run: what to train on and where."""
    data = "" if settings["data"] == "mnist-5k" else f" {_quoted(settings['data'])}"
    return f"gpucnn train{data} --out {_quoted(out)}"


def _another_cycle(settings: Settings, out: Path) -> str:
    """The command line of a new run that starts from the weights of this one, and holds out the same images."""
    size = settings["image_size"]
    options = {
        "--model": settings["model"], "--seed": settings["seed"] or None, "--held-out": settings["held_out"],
        "--image-size": size and "x".join(map(str, size)), "--gray": "" if settings["gray"] else None,
    }  # fmt: skip
    same = "".join(f" {name} {value}".rstrip() for name, value in options.items() if value is not None)
    return f"{_command(settings, out.with_name(out.name + '-2'))} --from {_quoted(out)}{same}"


def _quoted(text: object) -> str:
    import shlex

    return shlex.quote(str(text))


def _say_what_exists(run: dict[str, Any], out: Path) -> None:
    settings = run["settings"]
    say = partial(_console().print, soft_wrap=True)
    say(
        f"{out} holds a finished run: {settings['model']} on {settings['data']}, {run['epochs']} epochs, "
        f"{run['finished']}"
    )
    say(f"held-out accuracy {_percent(run['accuracy'])}")
    say(_files(out))
    grows = settings["schedule"] in ("constant", "step") and settings["early_stopping"] is None
    further = f"{_command(settings, out)} --resume --epochs {2 * settings['epochs']}"
    say("\nIt is left as it is. To go on:")
    for what, command in {
        "train further": further if grows else _another_cycle(settings, out),
        "another run": _command(settings, out.with_name(out.name + "-2")),
        "start it anew": f"{_command(settings, out)} --overwrite",
        "use it": f"gpucnn predict {_quoted(out)} {_quoted(_some_sample(out))}",
    }.items():
        say(f"  {what:<14} {command}")


def _lacks_pictures(run: dict[str, Any], out: Path) -> bool:
    """Whether a run is without pictures that could be drawn: it has a checkpoint, and images that have colours."""
    files = [out / "pictures" / f"{name}.png" for name in PICTURES]
    can = run.get("samples") and (out / FILES[0]).exists() and find_spec("matplotlib") is not None
    return bool(can) and not all(file.exists() for file in files)


def _some_sample(out: Path) -> Path:
    samples = sorted((out / "samples").glob("*.png"))
    return samples[7 % len(samples)] if samples else Path("IMAGE.png")


def _files(out: Path) -> str:
    """The files of a run, those of a sub-folder on one line."""
    lines = []
    for path in sorted(out.iterdir()):
        if path.is_dir():
            names = [file.name for file in sorted(path.iterdir())]
            lines.append(f"  {path}{os.sep}  {', '.join(names[:12])}{', …' if len(names) > 12 else ''}")
        elif not path.name.startswith("."):
            lines.append(f"  {path}  {decimal(path.stat().st_size)}")
    return "\n".join(lines)


def _train(
    settings: Settings,
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
    tensorboard: bool,
    pictures: bool,
    graph: bool | None,
) -> None:
    say = partial(_console().print, soft_wrap=True)
    with Console(stderr=True).status(Text(f"reading {escaped(settings['data'])} …")):
        whole, held_out = _load(settings)
    settings["model"] = settings["model"] or _usual_model(whole)
    settings["lr"] = settings["lr"] or LEARNING_RATES[settings["optimizer"]]
    gpucnn.manual_seed(settings["seed"])
    model = _build(settings["model"], whole)
    if settings["start"] is not None:
        _start_from(_model_file(Path(settings["start"])), model, settings)
    loader, watched, callbacks = _loaders(settings, whole, held_out)
    optimizer = _optimizer(settings, model)
    scheduler = _scheduler(settings, optimizer, len(loader))
    missing = (_missing("matplotlib", "viz") if pictures else []) + _missing("PIL", "data")
    samples = _samples(held_out)
    if whole.channels not in (1, 3):
        missing = [f"images of {whole.channels} channels can't be drawn, so there will be no pictures and no samples"]
        pictures, samples = False, {}
    run: dict[str, Any] = {"gpucnn": gpucnn.__version__, "settings": settings, "started": _now()}
    run |= {"tuning": get_backend().tuning_hash, "samples": list(samples)}
    started = (read_run(out) or run)["started"] if resume else run["started"]
    callbacks.append(train.CSVLogger(out / "history.csv"))
    if tensorboard:
        callbacks.append(train.TensorBoardLogger(out / "tensorboard"))
    if not sys.stderr.isatty():
        callbacks.append(_Lines())
    callbacks.append(_Started(out / "run.json", {**run, "started": started}))
    named(PRECISIONS[settings.get("precision") or "fp32"])  # bfloat16 may be missing: ask before anything is deleted
    with train.locked(out, lend=True):  # to fit; until the last write
        if overwrite and (out / "run.json").exists():
            _delete(out)
        parameters = sum(p.numel() for p in model.parameters())
        say(
            f"{settings['data']}: {len(loader.dataset):,} training images {whole.height}×{whole.width}, "
            f"{len(held_out):,} held out, {len(whole.classes)} classes"
        )
        say(f"{settings['model']}: {parameters:,} parameters, on {get_backend().name}; everything goes into {out}")
        for note in missing:
            say(note)
        try:
            history = train.fit(
                model,
                loader,
                epochs=settings["epochs"],
                optimizer=optimizer,
                scheduler=scheduler,
                loss=_loss(model),
                held_out=watched,
                callbacks=callbacks,
                folder=out,
                resume=resume,
                precision=settings.get("precision"),
                graph=graph,
            )
            _keep(model, history, loader, held_out, out, run, samples, pictures)
        except KeyboardInterrupt as error:
            in_time = isinstance(error, train.TrainingInterrupted)  # no second Ctrl-C, and not after the training
            kept = "all that was learned" if in_time else "what was saved"
            _complain(f"stopped; {kept} is kept. Go on with: {_command(settings, out)} --resume")
            raise typer.Exit(getattr(error, "exit_code", 130)) from None


def _keep(
    model: Module,
    history: train.History,
    loader: Loader,
    held_out: Dataset,
    out: Path,
    run: dict[str, Any],
    samples: dict[str, int],
    pictures: bool,
) -> None:
    """Measure a trained model, save and draw all that came of it, and say it. The run is finished with the last file:
    one that is stopped before goes on from its checkpoint, which has all epochs."""
    say = partial(_console().print, soft_wrap=True)
    if history.stop_reason:
        say(f"stopped early: {escaped(history.stop_reason)}")
    test_loader = Loader(held_out, 256, normalise=_normalisation(loader))
    evaluation = train.evaluate(model, test_loader, _loss(model))
    # the model says where it comes from, so that `evaluate` can find the same held-out images
    save_model(model, out / "model.safetensors", **describe_input(loader), trained_on=run["settings"])
    images = len(history) * len(loader.dataset)
    say(f"{len(history)} epochs in {history.seconds:.0f} s, {images / max(history.seconds, 1e-9):,.0f} images/s\n")
    _print_evaluation(evaluation)
    if pictures and find_spec("matplotlib") is not None:
        _draw(model, history, evaluation, held_out, loader, out / "pictures")
    if samples and find_spec("PIL") is not None:
        for name, i in samples.items():
            floats = datasets_.to_float(held_out.images[i : i + 1])[0].transpose(1, 2, 0)
            with _left_out_if_it_fails(out / "samples" / name) as path:
                _write_picture(path, np.rint(floats * 255).astype(np.uint8))
    run |= {
        "finished": _now(),
        "epochs": len(history),
        "seconds": round(history.seconds, 1),
        "accuracy": evaluation.accuracy,
        "loss": evaluation.loss,
        "held_out": len(held_out),
    }
    _write_json(out / "run.json", run)
    say(f"\nin {out}:\n{_files(out)}")
    sample = _some_sample(out)
    if sample.exists():
        say(f"\ngpucnn predict {_quoted(out)} {_quoted(sample)}")
        _, description = load_model(out / "model.safetensors", model)
        _print_prediction(train.predict(model, _picture(sample, description, invert=False)), description, 3)


@contextmanager
def _left_out_if_it_fails(path: Path) -> Iterator[Path]:
    """The place of a picture, whose folder is made. An error of the block is a note: the training is done, and kept."""
    try:
        path.parent.mkdir(exist_ok=True)
        yield path
    except Exception as error:
        _complain(f"{path} is left out: {_one_line(error)}")


class _Started(train.Callback):
    """Writes run.json once the folder is ours and its checkpoint was accepted: what is refused changes nothing."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self._path, self._run = path, run

    def on_train_begin(self, state: train.TrainingState) -> None:
        _write_json(self._path, self._run)


class _Lines(train.Callback):
    """A line for each epoch, where there is no terminal for a progress bar."""

    def on_epoch_begin(self, state: train.TrainingState) -> None:
        self._start = time.perf_counter()
        self._batch = state.batch

    def on_epoch_end(self, state: train.TrainingState) -> None:
        row = state.history.rows[-1]
        seconds = time.perf_counter() - self._start
        # none are left where the run was stopped in the evaluation, and the last batch was a short one
        images = max(0, len(state.train.dataset) - self._batch * state.train.batch_size)
        left = round((state.epochs - state.epoch) * seconds)
        held_out = f"  held out {_percent(row['held_out_accuracy'])}" if "held_out_accuracy" in row else ""
        skipped = f"  {row['skipped']} steps overflowed float16 and were skipped" if row.get("skipped") else ""
        print(
            f"epoch {state.epoch}/{state.epochs}  loss {row['loss']:.4f}  accuracy {_percent(row['accuracy'])}"
            f"{held_out}  {images / seconds:,.0f} images/s  {left // 60}:{left % 60:02} left{skipped}",
            file=sys.stderr,
            flush=True,
        )


def _load(settings: Settings) -> tuple[Dataset, Dataset]:
    """(training, held-out) images of these settings: the same ones every time, and none in both."""
    name, held_out = settings["data"], settings["held_out"]
    options: dict[str, Any] = {"mode": "L" if settings["gray"] else "RGB", "size": settings["image_size"]}
    if held_out is None and datasets_.has_test_images(name):
        rest, test = (datasets_.load(name, split=part, **options) for part in ("train", "test"))
        sizes = [f"{part.height}×{part.width}" for part in (rest, test)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{name}: training images are {sizes[0]}, test images {sizes[1]}; give --image-size HxW")
        also_in_test = {j for _, j in datasets_.overlap(test, rest)}
        rest = rest.subset([j for j in range(len(rest)) if j not in also_in_test]) if also_in_test else rest
    else:
        part = HELD_OUT if held_out is None else held_out if held_out % 1 else int(held_out)
        rest, test = datasets_.split(datasets_.load(name, **options), part, seed=settings["seed"])
    datasets_.check_disjoint(rest, test)
    return rest, test


def _held_out(trained_on: Settings) -> Dataset:
    """The images that a model has not seen. Raises ValueError if it does not say enough to find them."""
    try:
        check(trained_on, PLACE)
    except ValueError as error:
        raise ValueError(
            f"the model does not say which images of {trained_on['data']} it has not seen: {error}"
        ) from None
    return _load(trained_on)[1]


def _usual_model(dataset: Dataset) -> ModelName:
    if dataset.name == "x-or-not-x":
        return "x-or-not-x"
    return "lenet5" if dataset.channels == 1 and min(dataset.height, dataset.width) >= 12 else "vgg-small"


def _build(name: str, dataset: Dataset) -> Module:
    classes, channels, size = len(dataset.classes), dataset.channels, (dataset.height, dataset.width)
    if classes < 2:
        raise ValueError(
            f"{dataset.name} has one class, {', '.join(dataset.classes)!r}, so there is nothing to tell apart; it "
            "takes two (a folder each)"
        )
    if name == "x-or-not-x":
        if (classes, channels, *size) != (2, 1, 5, 5):
            raise ValueError(
                f"the model x-or-not-x takes 5×5 gray images of 2 classes, {dataset.name} has {size[0]}×{size[1]}×"
                f"{channels} ones of {classes}; choose another --model"
            )
        return models.x_or_not_x()
    if name.startswith("lenet5"):
        return models.LeNet5(classes, channels, size, batch_norm=name == "lenet5-bn")
    if name == "vgg-small":
        if min(size) < 8:
            raise ValueError(f"vgg-small needs images of at least 8×8, got {size[0]}×{size[1]}; choose another --model")
        return models.VGGSmall(classes, channels)
    make: Callable[[int, int], Module] = getattr(models, name)
    return make(classes, channels)


def _start_from(path: Path, model: Module, settings: Settings) -> None:
    """Load weights to start from; not those of a model that knows the held-out images of this run."""
    if path.suffix == ".onnx":
        from gpucnn import onnx

        counts = {n: value for n, value in model.state_dict().items() if n.endswith("num_batches_tracked")}
        model.load_state_dict({**counts, **onnx.load(path).state_dict()})  # ONNX has no such counts
        return
    _, description = load_model(path / "model.safetensors" if path.is_dir() else path, model)
    theirs = checked_place(path, description.get("trained_on")) or {}
    if "data" in theirs and _which(theirs["data"]) == _which(settings["data"]):
        parts = ("seed", "held_out", "image_size", "gray")
        other = [f"{name.replace('_', '-')} {theirs.get(name)}" for name in parts if theirs.get(name) != settings[name]]
        if other:
            raise ValueError(
                f"{path} was trained with {' and '.join(other)}, so it has seen images that this run holds out; use "
                "the same here"
            )


def _loss(model: Module) -> Callable[..., Any]:
    """What fits the end of a network, also of an ONNX file, whose layers have the names of its operators."""
    last = {kind.__name__ for kind in type(list(model.modules())[-1]).__mro__}
    if "Softmax" in last:
        return lambda output, labels: F.nll_loss(output.log(), labels)
    return F.binary_cross_entropy if "Sigmoid" in last else F.cross_entropy  # which logarithms of softmax do not change


def _loaders(settings: Settings, whole: Dataset, held_out: Dataset) -> tuple[Loader, Loader, list[train.Callback]]:
    """What to train on, what to watch meanwhile, and the callbacks that this takes."""
    seed, callbacks = settings["seed"], list[train.Callback]()
    watched = held_out
    if settings["early_stopping"] is not None:
        # the held-out images must not choose the epoch on which they are then measured
        try:
            whole, watched = datasets_.split(whole, 0.1, seed=seed)
        except ValueError as error:
            raise ValueError(
                f"--early-stopping keeps a tenth of the training images apart, and these {len(whole)} are too few for "
                "that; leave it out"
            ) from error
        callbacks.append(train.EarlyStopping(patience=settings["early_stopping"]))
    normalise = None
    if whole.channels == 3:
        floats = datasets_.to_float(whole.images[:: max(1, len(whole) // 5000)])
        mean, std = floats.mean((0, 2, 3), np.float64), floats.std((0, 2, 3), np.float64)
        normalise = ([round(float(m), 4) for m in mean], [round(max(float(s), 1e-3), 4) for s in std])
    loader = Loader(
        whole,
        settings["batch_size"],
        shuffle=True,
        augment=_augmentation(whole) if settings["augment"] else None,
        normalise=normalise,
        seed=seed,
    )
    return loader, Loader(watched, 256, normalise=normalise), callbacks


def _augmentation(dataset: Dataset) -> Callable[..., Any] | None:
    size = (dataset.height, dataset.width)
    if min(size) < 12:
        return None  # a pixel is too much of so small an image
    if dataset.channels == 3:
        return datasets_.Compose([datasets_.RandomCrop(size, max(size) // 8), datasets_.RandomHorizontalFlip()])
    return datasets_.RandomAffine(15, (0.12, 0.12), (0.85, 1.15))


def _normalisation(loader: Loader) -> tuple[Any, Any] | None:
    return None if loader.normalise is None else (loader.normalise.mean, loader.normalise.std)


def _optimizer(settings: Settings, model: Module) -> optim.Optimizer:
    lr, decay = settings["lr"], settings["weight_decay"]
    match settings["optimizer"]:
        case "sgd":
            return optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=decay, nesterov=True)
        case "adam":
            return optim.Adam(model.parameters(), lr, weight_decay=decay)
        case "adamw":
            return optim.AdamW(model.parameters(), lr, weight_decay=decay)
        case _:
            return optim.RMSprop(model.parameters(), lr, weight_decay=decay)


def _scheduler(settings: Settings, optimizer: optim.Optimizer, batches: int) -> optim.LRScheduler | None:
    steps = settings["epochs"] * batches
    match settings["schedule"]:
        case "onecycle":
            return optim.OneCycleLR(optimizer, settings["lr"], steps)
        case "cosine":
            return optim.CosineAnnealingLR(optimizer, steps)
        case "step":
            return optim.StepLR(optimizer, STEP_EPOCHS * batches)
        case _:
            return None


def _delete(out: Path) -> None:
    """What a run made in its folder, and nothing else; last run.json, without which none of it counts as a run's."""
    try:
        samples = (read_run(out) or {}).get("samples", [])
    except ValueError:
        samples = []  # it can't be told any more which files they are
    made = {
        "pictures": [path for name in PICTURES if (path := out / "pictures" / f"{name}.png").is_file()],
        "samples": [path for path in (out / "samples").glob("*.png") if path.name in samples],
        "tensorboard": [*(out / "tensorboard").glob("events.out.tfevents.*")],
    }
    for folder, files in made.items():
        for path in files:
            path.unlink()
        if files and not any((out / folder).iterdir()):
            (out / folder).rmdir()
    for name in (*FILES, "run.json"):
        (out / name).unlink(missing_ok=True)


def _missing(package: str, extra: str) -> list[str]:
    """A line that says what will be left out for want of a package."""
    if find_spec(package) is not None:
        return []
    what = {"viz": "pictures need matplotlib", "data": "sample images need Pillow"}[extra]
    return [f'{what}, so there will be none: pip install "gpucnn[{extra}]"']


def _draw(
    model: Module, history: train.History, evaluation: Evaluation, held_out: Dataset, loader: Loader, folder: Path
) -> None:
    from gpucnn import viz

    right = np.flatnonzero(evaluation.predictions == evaluation.labels)
    image = held_out.images[right[-1] if len(right) else 0]
    values = _normalised(image, _normalisation(loader))
    drawings: dict[str, Callable[[Path], object]] = {
        "filters": lambda path: viz.filters(model, path),
        "feature_maps": lambda path: viz.feature_maps(model, values, path, held_out.classes),
        "misclassified": lambda path: viz.misclassified(evaluation, held_out, path),
        "confusion": lambda path: viz.confusion(evaluation, path),
        "curves": lambda path: viz.curves(history, path),
    }
    for name in PICTURES:
        with _left_out_if_it_fails(folder / f"{name}.png") as path:
            drawings[name](path)


def _samples(held_out: Dataset) -> dict[str, int]:
    """The first held-out image of each class, of ten at most, by the name of a file to try."""
    labels, firsts = np.unique(held_out.labels, return_index=True)
    samples: dict[str, int] = {}
    for label, first in list(zip(labels, firsts, strict=True))[:10]:
        name = re.sub(r"\W+", "-", held_out.classes[label])[:MOST_OF_A_NAME].strip("-") or str(label)
        while f"{name}.png".lower() in map(str.lower, samples):  # to some file systems a and A are the same
            name += f"-{label}"
        samples[f"{name}.png"] = int(first)
    return samples


def _write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    """uint8 [H, W, C] as a PNG file."""
    from PIL import Image

    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    write_atomically(path, lambda temporary: picture.save(temporary, "PNG"))


def _now() -> str:
    return datetime.now().astimezone().isoformat(" ", "seconds")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# -- evaluate, predict, show -----------------------------------------------------------------------


@app.command()
def evaluate(
    model: ModelPath,
    data: Annotated[str, typer.Argument(help="As for train.", show_default="what the model was trained on")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All images, also those the model was trained on.")] = False,
    backend: Backend = None,
) -> None:
    """Measure a model: accuracy, a table of the classes, a confusion matrix.

    On the data it was trained on, only the images that were held out then are used. Of another data set that has test
    images of its own those are used, of any other all.

    \b
    Examples:
      gpucnn evaluate runs/mnist-5k
      gpucnn evaluate runs/mnist-5k mnist
      gpucnn evaluate net.onnx fashion-mnist
    """
    with use_backend(get_backend(backend)):
        loaded, description, batch_size = _to_predict(_model_file(model))
        dataset, what = _evaluated(description, data, everything)
        loader = Loader(dataset, batch_size, normalise=description.get("normalise"))
        size = (dataset.height, dataset.width, dataset.channels)
        wanted = (*description.get("image_size", size[:2]), description.get("channels", size[2]))
        if size != wanted or len(dataset.classes) != len(description.get("classes") or dataset.classes):
            raise ValueError(
                f"the model takes images {'×'.join(map(str, wanted))} of {len(description.get('classes') or ())} "
                f"classes, {dataset.name} has {'×'.join(map(str, size))} of {len(dataset.classes)}"
            )
        evaluation = train.evaluate(loaded, loader, _loss(loaded))
    _console().print(f"{len(dataset):,} {what} images of {dataset.name}, loss {evaluation.loss:.4f}")
    _print_evaluation(evaluation, "accuracy" if what != "held-out" else "held-out accuracy")


def _evaluated(description: Description, data: str, everything: bool) -> tuple[Dataset, str]:
    """The images to measure on, and a word for them."""
    trained_on = description.get("trained_on")
    data = data or (trained_on or {}).get("data", "")
    if not data:
        raise ValueError("the model does not say what it was trained on; name a data set after it")
    if trained_on is not None and _which(trained_on["data"]) == _which(data) and not everything:
        return _held_out(trained_on), "held-out"
    mode = "L" if description.get("channels") == 1 else "RGB"
    part: Literal["test"] | None = "test" if datasets_.has_test_images(data) and not everything else None
    return datasets_.load(data, split=part, mode=mode, size=description.get("image_size")), part or "all"


@app.command()
def predict(
    model: ModelPath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.", show_default=False)],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all digits.")] = False,
    invert: Invert = False,
    labels: Annotated[
        Path | None,
        typer.Option(help="A text file with the name of a class on each line.", show_default="what the model says"),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Subtracted from the pixels (0 to 1), a number or one a channel, by commas.",
            show_default="what the model says",
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="What they are divided by then.", show_default="what the model says")
    ] = None,
    backend: Backend = None,
) -> None:
    """Say what pictures show, with probabilities: the likeliest classes first.

    A picture of any size and colour is brought to the size and colours that the model was trained on. A model trained
    on MNIST expects a light digit on a dark ground that fills the picture: use --invert for ink on paper. A model may
    be an ONNX file, of which the size and channels of the images are known, and all else is told by the options.

    \b
    Examples:
      gpucnn predict runs/mnist-5k digit.png
      gpucnn predict runs/mnist-5k scan.jpg --invert --top 1 --json
      gpucnn predict net.onnx dog.jpg --labels classes.txt --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    """
    with use_backend(get_backend(backend)):
        loaded, description, batch_size = _to_predict(_model_file(model))
        if labels is not None:
            try:
                description["classes"] = labels.read_text("utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f"{labels} is no text in UTF-8 ({error}); save it as one") from error
            check_description(f"{labels}: ", description)
        if mean is not None or std is not None:
            means, stds = _numbers("--mean", mean), _numbers("--std", std)
            description["normalise"] = (means or [0.0] * len(stds), stds or [1.0] * len(means))
        pictures = [_picture(path, description, invert) for path in images]
        found = train.predict(loaded, np.stack(pictures), batch_size)
    if len(_class_names(description, found.shape[1])) != found.shape[1]:
        raise ValueError(f"the model has {found.shape[1]} classes, there are {len(description['classes'])} labels")
    if as_json:
        answers = [
            {
                "image": str(path),
                "classes": [{"class": n, "probability": p} for n, p in _likeliest(probabilities, description, top)],
            }
            for path, probabilities in zip(images, found, strict=True)
        ]
        print(json.dumps(answers, indent=2, ensure_ascii=False))
        return
    for path, probabilities in zip(images, found, strict=True):
        _print_prediction(probabilities, description, top, f"{escaped(str(path))}  " if len(images) > 1 else "")


@app.command()
def show(
    model: ModelPath,
    image: Annotated[Path | None, typer.Argument(help="A picture file.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to put the pictures.", show_default="pictures/ beside the model")
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Also where the model looks: saliency, occlusion and Grad-CAM of the picture.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="Only the table, no pictures.")] = False,
    invert: Invert = False,
    backend: Backend = None,
) -> None:
    """Look into a model: a table of its layers, a picture of its filters, and of what each layer makes of an image.

    \b
    Examples:
      gpucnn show runs/mnist-5k --text
      gpucnn show net.onnx --text
      gpucnn show runs/mnist-5k digit.png --out pictures
      gpucnn show runs/mnist-5k digit.png --why
    """
    if why and image is None:
        raise ValueError("--why looks at a picture: gpucnn show MODEL IMAGE --why")
    with use_backend(get_backend(backend)):
        path = _model_file(model)
        loaded, description, _ = _to_predict(path)
        channels, size = _input_of(description)
        values = None if image is None else _picture(image, description, invert)
        say = _console().print
        say(str(loaded.summary(channels, *size)), soft_wrap=True)
        say(f"classes: {', '.join(_class_names(description, 0)) or 'not named'}", soft_wrap=True)
        if text:
            return
        from gpucnn import viz

        folder = out or (path if path.is_dir() else path.parent) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        viz.filters(loaded, folder / "filters.png")
        say(f"wrote {folder / 'filters.png'}", soft_wrap=True)
        if image is not None and values is not None:
            name = f"feature_maps-{image.stem}.png"
            viz.feature_maps(loaded, values, folder / name, description.get("classes"))
            say(f"wrote {folder / name}", soft_wrap=True)
        if why and image is not None and values is not None:
            normalise = description.get("normalise")
            reasons: list[tuple[str, Any]] = [("saliency", viz.saliency), ("occlusion", viz.occlusion)]
            if any(isinstance(module, nn.Conv2d) for module in loaded.modules()):
                reasons.append(("grad_cam", viz.grad_cam))
            for kind, draw in reasons:
                drawn = folder / f"{kind}-{image.stem}.png"
                draw(loaded, values, drawn, description.get("classes"), normalise=normalise)
                say(f"wrote {drawn}", soft_wrap=True)


@app.command("explain")
def explain_command(
    model: ModelPath,
    image: Annotated[Path, typer.Argument(help="A picture file.", show_default=False)],
    layer: Annotated[
        str | None, typer.Option(metavar="LAYER", help="Its name, as `gpucnn show MODEL --text` lists it.")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(metavar="K,P,Q", help="Map, row and column in the layer's output; K of a vector.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Whose score the gradient is of, by name or number.", show_default="answer"),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Take the gradient of this class's cross-entropy loss.", show_default=False),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as a page here.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers here.")] = None,
    invert: Invert = False,
    backend: Backend = None,
) -> None:
    """Say where one number in a network comes from: what it sees, its weights, their products and sum, its gradient.

    \b
    Examples:
      gpucnn explain runs/mnist-5k digit.png --layer 0 --unit 2,7,13
      gpucnn explain runs/mnist-5k digit.png --layer 11 --unit 7 --label 7
      gpucnn explain runs/mnist-5k digit.png --layer 2 --unit 2,3,6 --html unit.html
    """
    from gpucnn.sheet import page
    from gpucnn.watch import leaves

    with use_backend(get_backend(backend)):
        loaded, description, _ = _to_predict(_model_file(model))
        if layer is None or unit is None:
            missing = "--layer" if layer is None else "--unit"
            names = ", ".join(name for name, _ in leaves(loaded))
            raise ValueError(f"say which number with --layer and --unit ({missing} is missing); the layers are {names}")
        place = _indices(unit)
        values = _picture(image, description, invert)
        chosen = [None if word is None else _class_number(word, description) for word in (target, label)]
        found = loaded.explain(values, layer, place, target=chosen[0], label=chosen[1])
    if html is not None:
        write_text(html, page(f"{image.name}: layer {layer}, unit {unit}", found._repr_html_()))
    if json_ is not None:
        _write_json(json_, found.to_dict())
    print(found)
    for written in (html, json_):
        if written is not None:
            _console().print(f"wrote {written}", soft_wrap=True)


def _indices(text: str) -> tuple[int, ...]:
    """(2, 7, 13) from 2,7,13."""
    try:
        return tuple(int(word) for word in text.strip("() ").split(","))
    except ValueError:
        raise ValueError(f"--unit takes whole numbers by commas, such as 2,7,13, got {text!r}") from None


def _class_number(word: str, description: Description) -> int:
    """The number of a class that is given by its name, or by its number."""
    names = list(description.get("classes") or ())
    if word in names:
        return names.index(word)
    if word.isdecimal():
        return int(word)
    raise ValueError(f"there is no class {word!r}; the classes are {', '.join(names) or 'not named: give a number'}")


def _to_predict(path: Path) -> tuple[Module, Description, int]:
    """A model of any kind of file or folder, what it says of itself, and how many images it takes at a time."""
    if path.is_dir():
        return _described(path, *pretrained.load(path, Module, None))
    if path.suffix != ".onnx":
        return _described(path, *load_model(path))
    from gpucnn import onnx

    graph = onnx.load(path)
    shapes = [spec.shape for spec in graph.inputs]
    batch, *image = shapes[0] if len(shapes) == 1 and shapes[0] is not None else [None]
    if len(image) != 3 or None in image:
        shown = ", ".join(f"{spec.name} {spec.shape}" for spec in graph.inputs)
        raise ValueError(f"{path} must take one image of a known size, [N, C, H, W]; it takes {shown}")
    channels, height, width = image
    description = {**graph.metadata, "channels": channels, "image_size": [height, width]}
    check_description(f"{path}: ", description)
    return graph, description, batch or 256


def _described(path: Path, model: Module, description: Description) -> tuple[Module, Description, int]:
    """The same with what is said alone: None says nothing."""
    checked_place(path, description.get("trained_on"))
    return model, {name: value for name, value in description.items() if value is not None}, 256


def _numbers(option: str, text: str | None) -> list[float]:
    try:
        return [float(word) for word in _words(text) or ()]
    except ValueError:
        raise ValueError(f"{option} takes numbers, by commas, got {text!r}") from None


def _model_file(path: Path) -> Path:
    """The model of a run's folder; a folder as Hugging Face lays it out stays one."""
    return path / "model.safetensors" if path.is_dir() and not (path / "config.json").is_file() else path


def _input_of(description: Description) -> tuple[int, list[int]]:
    if "image_size" not in description or "channels" not in description:
        raise ValueError(
            "the model does not say what images it takes; save it with save_model(…, image_size=[H, W], channels=C)"
        )
    return description["channels"], description["image_size"]


def _picture(path: Path, description: Description, invert: bool) -> NDArray[np.float32]:
    """A picture file as the model takes it: float32 [C, H, W], normalised."""
    channels, (height, width) = _input_of(description)
    if channels not in (1, 3):
        raise ValueError(f"the model takes images of {channels} channels, a picture has 1 or 3")
    pixels = datasets_.read_image(path, mode="L" if channels == 1 else "RGB", size=(height, width))
    return _normalised(255 - pixels if invert else pixels, description.get("normalise"))


def _normalised(image: NDArray[Any], normalise: tuple[Any, Any] | None) -> NDArray[np.float32]:
    """A stored image [H, W, C] as float32 [C, H, W]."""
    floats = datasets_.to_float(image[None]).transpose(0, 2, 3, 1)
    if normalise is not None:
        floats = Normalize(*normalise)(floats)
    return np.asarray(floats.transpose(0, 3, 1, 2)[0])


def _class_names(description: Description, count: int) -> list[str]:
    return list(description.get("classes") or map(str, range(count)))


def _likeliest(probabilities: NDArray[Any], description: Description, top: int) -> list[tuple[str, float]]:
    names = _class_names(description, len(probabilities))
    return [(names[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:top]]


# -- info, doctor, warmup, verify, fingerprint, bench, datasets --------------------------------------------------------


@app.command()
def info() -> None:
    """Say what is installed here, what can compute, and where data sets are kept."""
    from threadpoolctl import threadpool_info

    from gpucnn.backends.numpy_parallel import thread_count

    blas = [f"{p['internal_api']} {p['version']}, {p['num_threads']} threads" for p in threadpool_info()]
    chosen, why = auto_choice()
    extras = {
        "data": ("sklearn", "mlxtend", "PIL"),
        "viz": ("matplotlib", "PIL"),
        "onnx": ("onnx",),
        "half": ("ml_dtypes",),
        "sklearn": ("sklearn",),
        "demo": ("starlette", "uvicorn"),
    }
    rows = {
        "gpucnn": f"{gpucnn.__version__} in {Path(gpucnn.__file__).parent}",
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "numpy": np.__version__,
        "blas": "; ".join(blas) or "unknown",
        "cores": f"{os.cpu_count()}, the numpy backend uses {thread_count()} threads (GPUCNN_THREADS)",
        "backends": ", ".join(available_backends()),
        "auto": f"picks {chosen}: {why}",
        "GPUCNN_BACKEND": _what_computes(),
        "data sets": f"kept in {datasets_.download.cache_folder()} (GPUCNN_DATA)",
        "extras": "; ".join(_extra(name, packages) for name, packages in extras.items()),
    }
    for name, value in rows.items():
        _console().print(f"{name:<15} {value}", soft_wrap=True)


def _what_computes() -> str:
    """What the variable chooses, or why it can't run here and what mends that."""
    try:
        return f"{os.environ.get('GPUCNN_BACKEND') or 'auto'}, so {get_backend().name} computes"
    except (ValueError, RuntimeError) as error:
        return str(error).removeprefix("GPUCNN_BACKEND is ")


def _extra(name: str, packages: Sequence[str]) -> str:
    if all(find_spec(package) for package in packages):
        return f"{name} installed"
    return f'{name} missing (pip install "gpucnn[{name}]")'


@app.command("doctor")
def doctor_command(backend: Backend = None) -> None:
    """Look at all that computing takes here, try each backend, and print the command that mends what is missing.

    Exit code 1 if the backend that is to compute can't: the one that is asked for, or what auto picks.

    \b
    Examples:
      gpucnn doctor
      gpucnn doctor --backend cuda
    """
    from gpucnn import doctor

    raise typer.Exit(doctor.run(backend))


# What the networks take that have a name: number of classes, channels, height and width.
USUAL_IMAGES: dict[str, tuple[int, int, int, int]] = {
    "lenet5": (10, 1, 28, 28),
    "lenet5-bn": (10, 1, 28, 28),
    "vgg-small": (10, 3, 32, 32),
    "resnet20": (10, 3, 32, 32),
    "resnet18": (1000, 3, 224, 224),
    "resnet50": (1000, 3, 224, 224),
    "x-or-not-x": (2, 1, 5, 5),
}


@app.command("warmup")
def warmup_command(
    model: Annotated[
        str, typer.Argument(help=f"{', '.join(USUAL_IMAGES)}, a model file, or the folder of a run.")
    ] = "lenet5",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step, as in train.")] = 64,
    backend: Backend = None,
) -> None:
    """Compile ahead every kernel that training a model launches, so that training starts at once.

    What is compiled is kept for all later runs. The numpy backend compiles nothing.

    \b
    Examples:
      gpucnn warmup resnet20 --batch-size 128
      gpucnn warmup runs/mnist-5k --backend emulator
    """
    from rich.progress import track

    from gpucnn.backends.kernel_backend import KernelBackend
    from gpucnn.warmup import SHORT_BATCH, train_once, training_kernels

    chosen = get_backend(backend)
    if not isinstance(chosen, KernelBackend):
        _console().print(f"the {chosen.name} backend compiles nothing")
        return
    start = time.perf_counter()
    with use_backend("numpy"):
        network, shape = _to_warm_up(model)
        kernels = training_kernels(network, shape, batch_size, chosen.device.capability, chosen.choose)
    prepared = chosen.device.prepare(kernels)
    quiet = not sys.stderr.isatty()
    for _ in track(prepared, "compiling", len(kernels), console=Console(stderr=True), disable=quiet, transient=True):
        pass
    if chosen.xp.__name__ == "cupy":  # CuPy's sums and products are kernels too, compiled when they are first used
        train_once(network.to(chosen), shape, SHORT_BATCH)
    seconds = time.perf_counter() - start
    _console().print(f"{len(kernels)} kernels of {model} are ready on {chosen.name} ({seconds:.1f} s)", soft_wrap=True)


@app.command("tune")
def tune_command(
    model: Annotated[
        str, typer.Argument(help=f"{', '.join(USUAL_IMAGES)}, a model file (also .onnx), or the folder of a run.")
    ] = "lenet5",
    batch_size: Annotated[int, typer.Option("--batch-size", "--batch", min=1, help="Images a step.")] = 64,
    input_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Of the images.", show_default="what the model takes")
    ] = None,
    inference: Annotated[
        bool | None,
        typer.Option(
            "--inference/--training",
            help="Measure what predicting takes, or training.",
            show_default="training; of .onnx inference",
        ),
    ] = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="As in train.", show_default="GPUCNN_PRECISION, else fp32")
    ] = None,
    budget: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Begin no new measurement after so long.")
    ] = 600,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write here.", show_default="GPUCNN_TUNING, else the device's own file"),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show what is stored for the device, and measure nothing.")
    ] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Delete what is stored for the device.")] = False,
    backend: Backend = None,
) -> None:
    """Measure which kernel is the fastest for each convolution and product of a model, on this GPU, and remember it.

    Each is first held to float64, as by `gpucnn verify`. What is faster by more than noise is taken from then on, and
    may change bits: GPUCNN_TUNING=off, or gpucnn.use_tuning(False), takes none of it. See docs/tuning.md.

    \b
    Examples:
      gpucnn tune resnet20 --batch-size 128
      gpucnn tune net.onnx --batch-size 1 --precision fp16
      gpucnn tune --list
    """
    from gpucnn import tune
    from gpucnn.backends import tuning
    from gpucnn.backends.kernel_backend import KernelBackend
    from gpucnn.benchmark.command import INSTRUMENT

    chosen = get_backend(backend)
    if not isinstance(chosen, KernelBackend):
        raise ValueError(f"the {chosen.name} backend has no kernels to choose among: --backend cuda has, on a GPU")
    name = out or os.environ.get("GPUCNN_TUNING", "").removesuffix(tuning.OFF) or tuning.OWN
    if chosen.name in INSTRUMENTS and name == tuning.OWN:
        raise ValueError(f"{INSTRUMENT.format(chosen.name)}; to try out tuning itself, name a file for it: --out FILE")
    path = tuning.path_of(chosen.device, name)
    if (list_ or clear) and not path.exists():
        print(f"nothing is stored: there is no {path}")
    elif clear:
        tuning.check_replaceable(path)
        path.unlink()
        print(f"{path} is deleted")
    elif list_:
        tune.show(tuning.read(chosen.device, path))
        print(path)
    if list_ or clear:
        return
    with use_backend("numpy"):
        network, shape = _to_warm_up(model, _size(input_size, "--input-size"))
        training = not (model.endswith(".onnx") if inference is None else inference)
        problems = tune.problems_of(network, shape, batch_size, chosen.device.capability, precision, training)
    raise typer.Exit(tune.run(problems, chosen, name, budget))


def _to_warm_up(model: str, size: list[int] | None = None) -> tuple[Module, tuple[int, int, int]]:
    """A network, and the [C, H, W] of its images, of that size if it is given."""
    if model in USUAL_IMAGES:
        classes, channels, height, width = USUAL_IMAGES[model]
        height, width = size or (height, width)
        names = tuple(map(str, range(classes)))
        none = Dataset(np.zeros((0, height, width, channels), np.uint8), np.zeros(0, np.int64), names)
        return _build(model, none), (channels, height, width)
    if not Path(model).exists():
        raise FileNotFoundError(
            f"there is no model called {model!r} and no such file; known are {', '.join(USUAL_IMAGES)}"
        )
    network, description, _ = _to_predict(_model_file(Path(model)))
    channels, usual = _input_of(description)
    height, width = size or usual
    return network, (channels, height, width)


@app.command("verify")
def verify_command(
    op: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help='Which ops or cases, such as conv2d, "*pool2d", "*groups*".', show_default="all"
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every result here.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with pictures here.")] = None,
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="The precision to verify.")] = "float32",
    precision: Annotated[
        PrecisionName | None,
        typer.Option(
            help="fp16, bf16: tensors of that type. tf32: float32, multiplied in TF32. GPUCNN_PRECISION=fp16 verifies "
            "float32 by operands of that type.",
            show_default=False,
        ),
    ] = None,
    backend: Backend = None,
) -> None:
    """Compute every op, forward and backward, and compare each element with float64 within a computed bound.

    Exit code 1 if an element is off: the report says which, and what it was made of.

    \b
    Examples:
      gpucnn verify
      gpucnn verify --backend cuda --html report.html
      gpucnn verify --op "conv*" --backend emulator
      gpucnn verify --precision bf16
    """
    from gpucnn import verify

    for path in (json, html):
        if path is not None:
            check_writable(path)
    raise typer.Exit(verify.run(backend, op, dtype, json, html, precision))


@app.command("fingerprint")
def fingerprint_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the hash of every piece.")] = False,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What --json printed elsewhere.", show_default=False)
    ] = None,
    backend: Backend = None,
) -> None:
    """Train a small network for a few seconds and hash all that comes of it: is training here as it is there?

    Exit code 1 if it differs from the file: the first part that does is named, and why that may be expected.

    \b
    Examples:
      gpucnn fingerprint
      gpucnn fingerprint --json > here.json
      gpucnn fingerprint --compare here.json
    """
    from gpucnn import fingerprint

    raise typer.Exit(fingerprint.run(backend, as_json, compare))


@app.command("bench")
def bench_command(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITE]...", help="ops, networks, startup, memory, or real-work.", show_default="all but real-work"
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option("-k", metavar="PATTERN", help="Only what has this in its name; * and ? are wildcards."),
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(
            "--pass",
            metavar="PASSES",
            help="Only these, by commas: forward, input-gradient, weight-gradient, backward, inference, training.",
        ),
    ] = None,
    providers: Annotated[
        str | None,
        typer.Option(
            help="By commas: numpy, cuda, torch-cpu, torch-cuda (-channels-last, -compile), jax, tinygrad, cupy.",
            show_default="all that can run here",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES", help="Batch sizes, by commas.", show_default="ops 8 (64 with a GPU); networks 1,8,64,256"
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "fp16"],
        typer.Option(help="What is multiplied; rows of different ones are never compared."),
    ] = "fp32",
    threads: Annotated[int, typer.Option(min=1, help="Of each provider, on the CPU.")] = 2,
    budget: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="What does not fit is skipped.", show_default="570")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Within a minute: ops at batch 1, small networks.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder for runs.", show_default="bench/results, or gpucnn-bench")
    ] = None,
    readme: Annotated[bool, typer.Option("--readme", help="Put the networks' table into the README.")] = False,
    card: Annotated[
        str, typer.Option(metavar="CARDS", help="For the analytic part, where there is no GPU: by commas.")
    ] = "H200,RTX 4090",
    seeds: Annotated[int, typer.Option(min=1, help="Of real-work: how many trainings each.")] = 5,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Only say what changed from run A to run B beyond the noise."),
    ] = None,
    show: Annotated[Path | None, typer.Option(metavar="RUN", help="Only report an earlier run again.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only list what there is to measure, and by whom.")] = False,
) -> None:
    """Time every op and network, next to the hardware's limit and to PyTorch, JAX, tinygrad and CuPy where installed.

    A time is shown only if its result was right, by float64. A run is kept as a folder with run.jsonl, report.html and
    plots. Ctrl-C keeps what was measured. Exit code 1 if a result of ours was wrong.

    \b
    Examples:
      gpucnn bench --quick
      gpucnn bench ops -k conv --pass forward --providers numpy,torch-cpu --batch 1,64
      gpucnn bench networks --budget 1800 --readme
      gpucnn bench --compare bench/results/A bench/results/B
      gpucnn bench real-work -k mnist-5k --seeds 2
    """
    from gpucnn.benchmark import command

    request = command.Request(
        suites=tuple(suites or ()), pattern=pattern, passes=_words(passes), providers=_words(providers),
        batches=None if batch is None else tuple(_whole("--batch", word) for word in _words(batch) or ()),
        precision=precision, threads=threads, budget=budget, quick=quick, out=out, readme=readme,
        cards=_words(card) or (), seeds=seeds,
    )  # fmt: skip
    if compare is not None:
        code = command.compare(*compare, _console())
    elif show is not None:
        code = command.show(show, request, _console())
    elif list_:
        code = command.listing(request, _console())
    else:
        code = command.run(request, _console())
    raise typer.Exit(code)


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def _whole(option: str, word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise ValueError(f"{option} takes numbers from 1 on, by commas, got {word!r}")
    return int(word)


@app.command()
def datasets() -> None:
    """List the data sets that have a name: what they are, whether they are here, how to get them.

    Any folder of IDX or CIFAR files or of pictures (one sub-folder a class), and any .npz, will do as well.
    """
    table = _table("name", "what", "here?", "how to get it")
    for source in datasets_.available():
        size = f" ({decimal(source.size)})" if source.size and not source.here else ""
        table.add_row(
            source.name, source.about, "yes" if source.here else "no", "" if source.here else source.get + size
        )
    _console().print(table)


# -- demo ------------------------------------------------------------------------------------------


@app.command("demo")
def demo_command(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[MODEL]...", help="Model files or folders of runs.", show_default="those in runs/"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1.", show_default="a free one")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    backend: Backend = None,
) -> None:
    """Open a local page: draw a digit, see what each layer makes of it as you draw, ask any unit why.

    Shown are the models that are named and the runs in runs/; where there are none, a LeNet-5 is trained first, once.
    Only this machine can reach the page. Ctrl-C ends it.

    \b
    Examples:
      gpucnn demo
      gpucnn demo runs/fashion-mnist net.onnx --port 8000 --no-browser
    """
    missing = [name for name in ("starlette", "uvicorn", "PIL") if find_spec(name) is None]
    if missing:
        raise ImportError(f'the page needs {", ".join(missing)}: pip install "gpucnn[demo]"')
    from gpucnn import page

    entries = page.find(models or (), Path("runs"), datasets_.download.cache_folder())
    networks = page.Networks(entries, lambda path: _to_predict(_model_file(path)), _held_out)
    chosen = get_backend(backend).name
    for entry in list(entries.values())[: len(models or ())]:
        networks.get(entry.id, chosen)  # what can't be read is said before the page opens
    page.serve(networks, available_backends(), chosen, port, browser)


# -- printing --------------------------------------------------------------------------------------


def _console() -> Console:
    """Standard output. What is piped is not folded."""
    return Console(width=None if sys.stdout.isatty() else 100_000, highlight=False, markup=False, emoji=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _print_evaluation(evaluation: Evaluation, title: str = "held-out accuracy") -> None:
    console = _console()
    console.print(f"{title} {_percent(evaluation.accuracy)}", style="bold")
    console.print()
    if len(evaluation.classes) <= MOST_CLASSES:
        _print_classes(console, evaluation)
        console.print()
        _print_confusion(console, evaluation)
        return
    console.print("most often mixed up:")
    for pair in evaluation.most_confused():
        console.print(f"  {pair.true} taken for {pair.predicted}: {pair.count}")


def _print_classes(console: Console, evaluation: Evaluation) -> None:
    table = _table("class", "images", "found", "right when named", "F1")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in evaluation.per_class():
        shares = ["–" if math.isnan(v) else _percent(v) for v in (row.recall, row.precision, row.f1)]
        table.add_row(row.name, f"{row.support:,}", *shares)
    console.print(table)


def _print_confusion(console: Console, evaluation: Evaluation) -> None:
    """Rows are the true classes, columns what they were taken for; a dot is 0."""
    names, matrix = evaluation.classes, evaluation.confusion
    short = [name[:6] for name in names]
    width = max(*(len(str(n)) for n in matrix.flat), *map(len, short)) + 1
    margin = max(len("true \\ taken for"), *map(len, names))
    console.print(Text("true \\ taken for".ljust(margin) + "".join(name.rjust(width) for name in short), "bold"))
    for true, row in enumerate(matrix):
        line = Text(names[true].ljust(margin), "bold")
        for taken, count in enumerate(row):
            style = "not bold green" if true == taken else "not bold red" if count else "not bold dim"
            line.append(str(count or "·").rjust(width), style)
        console.print(line)


def _print_prediction(probabilities: NDArray[Any], description: Description, top: int, prefix: str = "") -> None:
    answer = "  ".join(f"{name}: {p:.2f}" for name, p in _likeliest(probabilities, description, top))
    _console().print(prefix + answer, soft_wrap=True)
