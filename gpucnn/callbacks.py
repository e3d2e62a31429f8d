"""What happens during training besides training: logs, early stopping, keeping the best model."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.amp import GradScaler
from gpucnn.atomic import check_writable, checked_path, write_atomically
from gpucnn.checkpoint import describe_input, save_model
from gpucnn.data import Loader
from gpucnn.functional import validate
from gpucnn.nn import Module
from gpucnn.optim import LRScheduler, Optimizer, ReduceLROnPlateau

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Row = dict[str, Any]


@dataclass
class History:
    """What was measured in each epoch: `rows` of epoch (from 1), loss, accuracy, held_out_loss, held_out_accuracy, lr.

    loss and accuracy are those of the training batches, as they were seen; the held-out ones are there if there was a
    held-out set. lr is the last learning rate of the epoch, that of the first group of parameters. A training in
    float16 also has skipped, the steps whose gradients overflowed, and loss_scale, as it was at the end.
    history["loss"] is one column. `stop_reason` says why a callback ended the training early. `seconds` is the time
    spent, earlier parts of a resumed run included.
    """

    rows: list[Row] = field(default_factory=list)
    stop_reason: str | None = None
    seconds: float = field(default=0.0, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[Any]:
        """The values of one column. Raises KeyError that names the columns."""
        if self.rows and name not in self.rows[0]:
            raise KeyError(f"the history has no {name!r}; it has {', '.join(self.rows[0])}")
        return [row[name] for row in self.rows]

    def best(self, monitor: str) -> Row:
        """The row with the highest accuracy or the lowest other value, the first of equals."""
        values = [_score(monitor, value) for value in self[monitor]]
        if not values:
            raise ValueError("the history is empty: no epoch has ended")
        return self.rows[int(np.argmax(values))]


def _score(monitor: str, value: float) -> float:
    """`value` such that more is better; NaN is worst of all."""
    score = value if monitor.endswith("accuracy") else -value
    return -math.inf if math.isnan(score) else score


@dataclass
class TrainingState:
    """Where a training is: what callbacks get to see."""

    model: Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    train: Loader
    held_out: Loader | None
    epochs: int
    folder: Path | None
    history: History = field(default_factory=History)
    resumed: bool = False
    epoch: int = 1  # the current one, from 1
    batch: int = 0  # batches of this epoch that are done
    step: int = 0  # optimiser steps that are done
    lr: float = math.nan  # of the last step
    loss: float = math.nan  # of the last batch
    accuracy: float = math.nan  # of the last batch
    epoch_loss: float = math.nan  # the mean over the images of this epoch so far
    epoch_accuracy: float = math.nan
    scaler: GradScaler | None = None  # of a training in float16
    skipped: int = 0  # steps of this epoch that the scaler skipped

    def stop(self, reason: str) -> None:
        """End the training after this epoch."""
        self.history.stop_reason = reason

    @property
    def columns(self) -> tuple[str, ...]:
        """What each row of the history holds."""
        held_out = () if self.held_out is None else ("held_out_loss", "held_out_accuracy")
        scaled = () if self.scaler is None else ("skipped", "loss_scale")
        return ("epoch", "loss", "accuracy", *held_out, "lr", *scaled)


class Callback:
    """Base class: override what is wanted.

    A callback whose future depends on its past returns that from state_dict (plain numbers and strings, and numpy
    arrays under "arrays"): it is saved with each checkpoint and given back to load_state_dict when a run resumes. Its
    repr must show its settings then, because a run resumes only with the same ones.
    """

    def on_train_begin(self, state: TrainingState) -> None:
        """Before the first batch, also of a resumed run (state.resumed): the place to refuse."""

    def on_epoch_begin(self, state: TrainingState) -> None:
        """Before the first batch of an epoch, or of what is left of it."""

    def on_batch_end(self, state: TrainingState) -> None:
        """After each batch."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """After an epoch and the evaluation on the held-out set; its row is the last of state.history."""

    def on_train_end(self, state: TrainingState) -> None:
        """After the last epoch, before the model is saved. Not after an error or an interrupt."""

    def close(self) -> None:
        """Last, whatever happened: the place to close files."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what state_dict returned. The model is put back after it."""


def _check_monitor(callback: Callback, monitor: str, state: TrainingState) -> None:
    if monitor not in state.columns:
        held_out = str(monitor).startswith("held_out") and state.held_out is None
        hint = "; give fit a held_out loader" if held_out else ""
        raise ValueError(f"{callback!r}: there is no {monitor!r}, only {', '.join(state.columns)}{hint}")


@dataclass
class EarlyStopping(Callback):
    """Ends the training when `monitor` has not beaten its best by more than `min_delta` for `patience` epochs.

    More is better for an accuracy, less for all else. restore_best puts the weights of the best epoch back at the end
    of the training, whether or not it ended early.
    """

    monitor: str = "held_out_loss"
    patience: int = 5
    min_delta: float = 0.0
    restore_best: bool = True

    def __post_init__(self) -> None:
        self.patience = validate.integer("EarlyStopping", "patience", self.patience)
        self.min_delta = validate.number("EarlyStopping", "min_delta", self.min_delta)
        if self.patience < 1 or not self.min_delta >= 0:  # NaN is neither
            raise ValueError(
                f"EarlyStopping: patience must be at least 1 and min_delta not negative, got {self.patience} and "
                f"{self.min_delta}"
            )
        self._best, self._best_epoch, self._waited = -math.inf, 0, 0
        self._weights: dict[str, NDArray[Any]] = {}

    def on_train_begin(self, state: TrainingState) -> None:
        _check_monitor(self, self.monitor, state)
        if not state.resumed:
            self.__post_init__()  # one object may serve several trainings

    def on_epoch_end(self, state: TrainingState) -> None:
        score = _score(self.monitor, state.history.rows[-1][self.monitor])
        if score > self._best + self.min_delta or not self._best_epoch:
            self._best, self._best_epoch, self._waited = score, state.epoch, 0
            if self.restore_best:
                self._weights = {name: np.array(value.numpy()) for name, value in state.model.state_dict().items()}
            return
        self._waited += 1
        if self._waited >= self.patience:
            state.stop(
                f"{self.monitor} has not improved for {self._waited} epochs; the best was epoch {self._best_epoch}"
            )

    def on_train_end(self, state: TrainingState) -> None:
        if self._weights:
            state.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "best_epoch": self._best_epoch, "waited": self._waited, "arrays": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        best = validate.number("EarlyStopping", "best", state["best"])
        epoch, waited = (
            validate.integer("EarlyStopping", name, state[name], least=0) for name in ("best_epoch", "waited")
        )
        self._best, self._best_epoch, self._waited, self._weights = best, epoch, waited, state["arrays"]


@dataclass
class PlateauSchedule(Callback):
    """Steps an `optim.ReduceLROnPlateau` with `monitor` after each epoch; its state is in each checkpoint.

    Raises ValueError before the training if the schedule belongs to another optimizer, if fit has a scheduler that sets
    the learning rate too, or if the schedule takes the worse for the better: more is better for an accuracy, less for
    all else.
    """

    schedule: ReduceLROnPlateau
    monitor: str = "held_out_loss"

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, ReduceLROnPlateau):
            raise TypeError(f"PlateauSchedule: schedule must be an optim.ReduceLROnPlateau, got {self.schedule!r:.100}")

    def on_train_begin(self, state: TrainingState) -> None:
        _check_monitor(self, self.monitor, state)
        if self.schedule.optimizer is not state.optimizer:
            raise ValueError(f"{self!r}: the schedule belongs to another optimizer")
        if state.scheduler is not None:
            raise ValueError(f"{self!r}: fit's scheduler={type(state.scheduler).__name__} sets the learning rate too")
        better = "max" if self.monitor.endswith("accuracy") else "min"
        if self.schedule.mode != better:
            raise ValueError(f"{self!r}: make the schedule with mode={better!r} for {self.monitor}")

    def on_epoch_end(self, state: TrainingState) -> None:
        self.schedule.step(state.history.rows[-1][self.monitor])

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state)


@dataclass
class BestModel(Callback):
    """Saves the model to `path` (best.safetensors in fit's folder if None) whenever `monitor` is better than ever."""

    path: str | Path | None = None
    monitor: str = "held_out_loss"

    def __post_init__(self) -> None:
        if self.path is not None:
            checked_path("BestModel", "path", self.path)
        self._best: float | None = None

    def on_train_begin(self, state: TrainingState) -> None:
        _check_monitor(self, self.monitor, state)
        if self.path is None and state.folder is None:
            raise ValueError("BestModel: give it a path, or fit a folder")
        check_writable(self._place(state))
        if not state.resumed:
            self._best = None

    def on_epoch_end(self, state: TrainingState) -> None:
        score = _score(self.monitor, state.history.rows[-1][self.monitor])
        if self._best is None or score > self._best:
            self._best = score
            save_model(state.model, self._place(state), **describe_input(state.train))

    def _place(self, state: TrainingState) -> Path:
        return Path(state.folder or "") / "best.safetensors" if self.path is None else Path(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        best = state["best"]
        self._best = None if best is None else validate.number("BestModel", "best", best)


@dataclass
class CSVLogger(Callback):
    """Keeps the history as a CSV file, one row an epoch.

    The whole file is written anew (atomically) each time, from the history that checkpoints hold too: a run that was
    killed and resumed has neither lost nor doubled a row. A new run refuses to overwrite a file (FileExistsError).
    """

    path: str | Path

    def __post_init__(self) -> None:
        checked_path("CSVLogger", "path", self.path)

    def on_train_begin(self, state: TrainingState) -> None:
        if state.resumed:
            self._write(state)
        elif Path(self.path).exists():
            raise FileExistsError(f"CSVLogger: {self.path} exists; move it away or choose another path")
        else:
            check_writable(Path(self.path))

    def on_epoch_end(self, state: TrainingState) -> None:
        self._write(state)

    def _write(self, state: TrainingState) -> None:
        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, state.columns, lineterminator="\n")
                table.writeheader()
                table.writerows(state.history.rows)

        write_atomically(Path(self.path), write)


@dataclass
class TensorBoardLogger(Callback):
    """Writes the history to `folder` for TensorBoard, one point an epoch; needs the package tensorboardX.

    A resumed run tells TensorBoard to forget what an interrupted one wrote after its last checkpoint.
    """

    folder: str | Path

    def __post_init__(self) -> None:
        checked_path("TensorBoardLogger", "folder", self.folder)
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardLogger needs tensorboardX: pip install tensorboardX") from error
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def on_train_begin(self, state: TrainingState) -> None:
        self._writer = self._make(str(self.folder), purge_step=len(state.history) + 1 if state.resumed else None)

    def on_epoch_end(self, state: TrainingState) -> None:
        row = state.history.rows[-1]
        for name in state.columns[1:]:
            self._writer.add_scalar(name, row[name], row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class ProgressBar(Callback):
    """A bar over all epochs, with loss, accuracy, images a second and the time left, and a line for each epoch."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console  # None: the terminal's stderr
        self._progress: Progress | None = None

    def on_train_begin(self, state: TrainingState) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2%}"),
            TextColumn("{task.fields[speed]:,.0f} images/s"),
            TimeRemainingColumn(),
            console=self._console or Console(stderr=True),
        )
        self._task = self._progress.add_task(
            "", total=state.epochs * len(state.train), completed=self._done(state), epochs=state.epochs,
            **self._fields(state, 0.0),
        )  # fmt: skip
        self._progress.start()

    def on_epoch_begin(self, state: TrainingState) -> None:
        self._start, self._first = time.perf_counter(), state.batch

    def on_batch_end(self, state: TrainingState) -> None:
        assert self._progress is not None
        images = min(state.batch * state.train.batch_size, len(state.train.dataset))
        images -= self._first * state.train.batch_size
        speed = images / max(time.perf_counter() - self._start, 1e-9)
        self._progress.update(self._task, completed=self._done(state), **self._fields(state, speed))

    def on_epoch_end(self, state: TrainingState) -> None:
        assert self._progress is not None
        row = state.history.rows[-1]
        words = [f"{name.replace('_', ' ')} {_shown(name, row[name])}" for name in state.columns]
        self._progress.console.print("  ".join(words), highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @staticmethod
    def _done(state: TrainingState) -> int:
        return len(state.history) * len(state.train) + state.batch

    @staticmethod
    def _fields(state: TrainingState, speed: float) -> dict[str, Any]:
        return {
            "epoch": state.epoch, "loss": state.epoch_loss, "accuracy": state.epoch_accuracy, "speed": speed,
        }  # fmt: skip


def _shown(name: str, value: float) -> str:
    if name.endswith("accuracy"):
        return f"{value:.2%}"
    return f"{value:.4f}" if name.endswith("loss") else f"{value:g}"
