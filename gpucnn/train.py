"""Training and measuring a model: fit, evaluate, predict."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import FrameType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gpucnn import functional as F
from gpucnn import nn
from gpucnn.amp import GradScaler, autocast
from gpucnn.atomic import checked_path, naming, plain, unfinished
from gpucnn.backends import Backend, get_backend
from gpucnn.backends import precision as computing_in
from gpucnn.backends.precision import PRECISIONS
from gpucnn.callbacks import (
    BestModel,
    Callback,
    CSVLogger,
    EarlyStopping,
    History,
    PlateauSchedule,
    ProgressBar,
    TensorBoardLogger,
    TrainingState,
)
from gpucnn.checkpoint import describe, describe_input, load_checkpoint, save_checkpoint, save_model
from gpucnn.data import Dataset, Loader
from gpucnn.dtypes import is_floating, named
from gpucnn.functional import validate
from gpucnn.graph import Compiled
from gpucnn.memory import OutOfMemoryError, explained, free_bytes, moments_to_come, out_of_memory, peak_bytes
from gpucnn.metrics import Evaluation
from gpucnn.nn import Module
from gpucnn.nn.module import has_hooks
from gpucnn.optim import LRScheduler, Optimizer, ReduceLROnPlateau, clip_grad_norm_
from gpucnn.optim.optimizer import check_optimizer
from gpucnn.random import Generator, use_generator
from gpucnn.tensor import Tensor, no_grad, tensor
from gpucnn.watch import check_module

__all__ = [
    "BestModel",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "Evaluation",
    "History",
    "PlateauSchedule",
    "ProgressBar",
    "TensorBoardLogger",
    "TrainingInterrupted",
    "TrainingState",
    "evaluate",
    "fit",
    "predict",
]

Loss = Callable[[Tensor, Any], Tensor]
_logger = logging.getLogger("gpucnn")

# Losses that compare the output with an array of its shape; from all others labels go in as they are.
_ELEMENTWISE = (
    F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.half_squared_error, F.huber_loss, F.kl_div, F.l1_loss,
    F.mse_loss, F.smooth_l1_loss,
)  # fmt: skip
_ELEMENTWISE_MODULES = (
    nn.BCELoss, nn.BCEWithLogitsLoss, nn.HalfSquaredError, nn.HuberLoss, nn.KLDivLoss, nn.L1Loss, nn.MSELoss,
    nn.SmoothL1Loss,
)  # fmt: skip


SMALLEST_SCALE = 2.0**-16


class TrainingInterrupted(KeyboardInterrupt):
    """fit was asked to stop, by Ctrl-C (SIGINT) or SIGTERM, and has saved its state; str() says how to go on.

    `signal` is the number of the signal, `exit_code` what a command should exit with: 128 + signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number
        self.exit_code = 128 + number


def fit(
    model: Module,
    train: Loader,
    *,
    epochs: int,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    loss: Loss = F.cross_entropy,
    held_out: Loader | None = None,
    callbacks: Sequence[Callback] = (),
    folder: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    progress: bool | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    precision: str | None = None,
    graph: bool | None = None,
) -> History:
    """Train `model` in place for `epochs` passes over `train`, and measure it on `held_out` after each.

    loss(output, labels) is a mean over the batch; the losses of functional that want a target of the output's shape get
    0/1 labels for a model with one output, else one-hot ones. The scheduler steps after each optimiser step.
    accumulate: batches that share one optimiser step, each image with the same weight. clip_norm: the largest norm of
    all gradients together. progress: whether to show a bar; None: if stderr is a terminal. Epochs count on from
    train.current, so that a second fit sees new shuffles.

    precision: "fp16" and "bf16" compute inside `autocast`, with float32 weights, and fp16 with a `GradScaler`: a step
    whose gradients overflow is skipped, and counted in the history. "fp32" and "tf32" are those of `gpucnn.precision`.
    None: whatever is in force.

    graph: whether a step is captured and launched as a whole (`gpucnn.compile`); None: on cuda, where that can be. It
    changes no bits. True warns if it can't be. With clip_norm and fp16 the graph ends before the optimiser's step, else
    behind it: a loss that is not finite is found then after the step, not before.

    With a folder, the training can stop at any moment and go on: folder/checkpoint.safetensors is written at the start,
    after each epoch and after each `checkpoint_every` optimiser steps, and folder/model.safetensors (for load_model) at
    the end. resume=True goes on from the checkpoint, if there is one, and gives the same bits as if there had been no
    pause. The settings must be the same; only `epochs` may grow.

    Raises TrainingInterrupted (a KeyboardInterrupt) after Ctrl-C or SIGTERM, at the end of the step, or while the
    loader's thread is waited for; a second signal acts at once. FloatingPointError if the loss or a weight is not
    finite. OutOfMemoryError if memory does not suffice. FileExistsError if the folder holds a run and resume is False.
    RuntimeError if another process uses the folder. ValueError for settings that do not fit, or are not those of the
    run to be resumed.
    """
    _check(model, train, held_out, optimizer, scheduler, precision, loss, callbacks)
    epochs, accumulate = _count("epochs", epochs), _count("accumulate", accumulate)
    if folder is None and (resume or checkpoint_every):
        raise ValueError("fit: resume and checkpoint_every need a folder=")
    folder = None if folder is None else checked_path("fit", "folder", folder)
    checkpoint_every = None if checkpoint_every is None else _count("checkpoint_every", checkpoint_every)
    clip_norm = None if clip_norm is None else validate.number("fit", "clip_norm", clip_norm)
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"fit: clip_norm must be positive, got {clip_norm}")
    shown = sys.stderr.isatty() if progress is None else progress
    every_callback = [*callbacks, ProgressBar()] if shown else list(callbacks)
    state = TrainingState(model, optimizer, scheduler, train, held_out, epochs, folder)
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(locked(folder))
        wish = stack.enter_context(_WishToStop())
        for callback in every_callback:
            stack.callback(callback.close)
        stack.enter_context(_mode(model, True))
        stack.enter_context(np.errstate(over="ignore", invalid="ignore"))  # every loss is looked at
        if precision in ("fp32", "tf32"):
            stack.enter_context(computing_in(precision))
        run = _Run(state, loss, every_callback, checkpoint_every, accumulate, clip_norm, precision, wish)
        run.compile(graph)
        if folder is not None:
            run.open(folder, resume)
        try:
            run.train()
        except MemoryError as error:
            raise run.out_of_memory(error) from None
    return state.history


def _check(
    model: Module,
    train: Loader,
    held_out: Loader | None,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    precision: str | None,
    loss: Loss,
    callbacks: Sequence[Callback],
) -> None:
    check_module(model)
    _check_loss("fit", loss)
    if not isinstance(callbacks, Sequence) or not all(isinstance(callback, Callback) for callback in callbacks):
        raise TypeError(f"fit: callbacks must be a sequence of gpucnn.train.Callback, got {callbacks!r:.100}")
    check_optimizer("fit", optimizer)
    if not isinstance(scheduler, LRScheduler | None):
        hint = "; pass callbacks=[train.PlateauSchedule(scheduler)]" if isinstance(scheduler, ReduceLROnPlateau) else ""
        raise TypeError(f"fit: scheduler must be a gpucnn.optim.LRScheduler, got {type(scheduler).__name__}{hint}")
    for name, loader in {"train": train, "held_out": held_out}.items():
        if not isinstance(loader, Loader) and (loader is not None or name == "train"):
            raise TypeError(f"fit: {name} must be a gpucnn.data.Loader, got {type(loader).__name__}")
        if loader is not None and not len(loader):
            raise ValueError(f"fit: {name} has no batches: {loader!r}")
    if precision is not None:
        validate.choice("fit", "precision", precision, list(PRECISIONS))
    named(PRECISIONS[precision or "fp32"])  # bfloat16 may be missing
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise ValueError("fit: the scheduler belongs to another optimizer")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for parameter in optimizer.params):
        raise ValueError(f"fit: the optimizer has none of the parameters of this {type(model).__name__}")


def _count(name: str, value: Any) -> int:
    """A positive whole number, also NumPy's. Raises ValueError for anything else: True is no number of epochs."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"fit: {name} must be a positive int, got {value!r:.100}")
    return int(value)


class _Run:
    """One training: the loop of `fit`, and what it takes to leave and enter it again at any step."""

    def __init__(
        self,
        state: TrainingState,
        loss: Loss,
        callbacks: list[Callback],
        checkpoint_every: int | None,
        accumulate: int,
        clip_norm: float | None,
        precision: str | None,
        wish: _WishToStop,
    ) -> None:
        self.state, self.loss, self.callbacks, self.wish = state, loss, callbacks, wish
        self.checkpoint_every, self.accumulate, self.clip_norm = checkpoint_every, accumulate, clip_norm
        self.precision = precision
        self.scaler = GradScaler(enabled=precision == "fp16")
        if self.scaler.is_enabled():
            state.scaler = self.scaler
        self.first_epoch = state.train.current
        self.sums = {"loss": 0.0, "correct": 0, "images": 0}  # of the epoch so far
        self.checkpoint: Path | None = None
        self.saved = ""
        self.seconds = 0.0  # of the earlier parts of a resumed run
        self.start = time.perf_counter()
        # a callback with a state is one that state_dict was overridden for
        self.remembering = [c for c in callbacks if type(c).state_dict is not Callback.state_dict]
        self.settings = self._settings()
        self.compiled: Compiled | None = None

    # -- a step as a graph -------------------------------------------------------------------------

    def compile(self, graph: bool | None) -> None:
        """Let steps be captured, if that is wanted and can be; say why not where it was asked for."""
        backend = self.state.optimizer.params[0].backend
        if graph is False or (graph is None and backend.name != "cuda"):
            return

        def tell(reason: str) -> None:
            if graph:
                warnings.warn(f"fit: steps are not captured in a graph: {reason}", UserWarning, stacklevel=2)
            else:
                _logger.info("fit: steps are not captured in a graph: %s", reason)

        reason = self._not_captured()
        if reason is None:
            self.compiled = Compiled(self._captured_step, tell)
        else:
            tell(reason)

    def _not_captured(self) -> str | None:
        """Why a step can't be captured, as far as that is known before."""
        function = self.loss.func if isinstance(self.loss, partial) else self.loss
        if function is not F.cross_entropy and not isinstance(function, nn.CrossEntropyLoss):
            return f"the loss {_named(function)} gets its labels on the host; cross_entropy does not"
        if self.accumulate > 1:
            return "accumulate adds up gradients over several calls"
        if any(map(has_hooks, self.state.model.modules())):
            return "the model has hooks, which run on the host"
        return None

    def _captured_step(self, images: Tensor, labels: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All that is computed in a step of one batch, up to where the host looks at the gradients.

        scale: of the loss, an argument since it changes from step to step; None without a scaler.
        """
        state = self.state
        state.optimizer.zero_grad()
        with self._autocast():
            output = _output(state.model, images, state.train.dataset)
            loss = _checked_loss(self.loss, self.loss(output, labels))
        (loss if scale is None else loss * scale).backward()
        if not self._gradients_are_read():
            state.optimizer.step()
        return output, loss

    def _gradients_are_read(self) -> bool:
        """Whether the host decides by the gradients what the optimiser's step is, so that no graph can hold it."""
        return self.clip_norm is not None or self.scaler.is_enabled()

    # -- the loop ----------------------------------------------------------------------------------

    def train(self) -> None:
        state, history = self.state, self.state.history
        for callback in self.callbacks:
            callback.on_train_begin(state)
        if not state.resumed:
            self._save()
        while len(history) < state.epochs and history.stop_reason is None:
            state.epoch = len(history) + 1
            for callback in self.callbacks:
                callback.on_epoch_begin(state)
            self._train_epoch()
            self._check_weights()
            history.rows.append(self._row())
            for callback in self.callbacks:
                callback.on_epoch_end(state)
            state.batch = state.skipped = 0
            self.sums = {"loss": 0.0, "correct": 0, "images": 0}
            state.train.current = self.first_epoch + len(history)
            self._save()
            self._stop_if_asked()
        for callback in self.callbacks:
            callback.on_train_end(state)
        history.seconds = self._elapsed()
        if state.folder is not None:
            save_model(state.model, state.folder / "model.safetensors", **describe_input(state.train))

    def out_of_memory(self, error: MemoryError) -> OutOfMemoryError:
        """This error with the place in the training, and the last checkpoint."""
        state, said = self.state, out_of_memory(error, "training", self.state.optimizer.params[0].backend)
        if said.fits is not None and len(state.train.dataset) >= 6:
            with suppress(Exception):  # what it was worth saying without
                said.refine(state.train.batch_size, self._images_that_fit(), "steps of 2 and 6 images")
        said.lines.append(
            f"it was in epoch {state.epoch}, batch {state.batch + 1} of {len(state.train)}, with batches of "
            f"{state.train.batch_size} images{self.saved}"
        )
        return said

    def _images_that_fit(self) -> int:
        """About how many a step could have: what it takes is measured with few, and grows evenly."""
        backend = self.state.optimizer.params[0].backend
        self._needed(2)  # makes what is made once
        small, large = self._needed(2), self._needed(6)
        free = free_bytes(backend)
        if free is None:
            raise ValueError("nothing limits the memory")
        each = (large - small) / 4
        left = free - (small - 2 * each) - sum(moments_to_come(self.state.optimizer))
        return int(0.95 * left / each)  # rather too few than too many

    def _needed(self, images: int) -> int:
        """The most bytes at a time that forward and backward of so many images take. Forgets the gradients."""
        state, normalise = self.state, self.state.train.normalise
        scale = None if normalise is None else (normalise.mean, normalise.std)
        batch = next(iter(Loader(state.train.dataset, images, normalise=scale, prefetch=0)))
        before = [(buffer, buffer.array.copy()) for buffer in state.model.buffers()]
        state.optimizer.zero_grad()
        try:
            with use_generator(Generator()):
                return peak_bytes(lambda: self._pass(*batch), state.optimizer.params[0].backend)
        finally:
            for buffer, array in before:
                buffer.array[...] = array
            state.optimizer.zero_grad()

    def _train_epoch(self) -> None:
        state = self.state
        number = self.first_epoch + state.epoch - 1
        with closing(state.train.epoch(number, state.batch, self._stop_between_steps)) as batches:  # type: ignore[type-var]
            for images, labels in batches:
                self._train_batch(images, labels)
                state.batch += 1
                last = state.batch == len(state.train)
                stepped = last or state.batch % self.accumulate == 0
                if stepped:
                    self._step()
                for callback in self.callbacks:
                    callback.on_batch_end(state)
                if stepped and self.checkpoint_every and state.step % self.checkpoint_every == 0 and not last:
                    self._save()
                if stepped:
                    self._stop_if_asked()

    def _train_batch(self, images: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        state = self.state
        if self.compiled is not None:
            x = _input(state.model, images)
            arguments = [x, tensor(labels, backend=x.backend)]
            if self.scaler.is_enabled():
                arguments.append(tensor(self.scaler.get_scale(), backend=x.backend))
            output, loss = self.compiled(*arguments)
        else:
            output, loss = self._pass(images, labels)
        state.loss = float(loss.item())
        if not math.isfinite(state.loss):
            raise FloatingPointError(
                f"the loss is {state.loss} in epoch {state.epoch}, batch {state.batch + 1} of {len(state.train)}, with "
                f"lr {state.optimizer.lr:g}; try a lower learning rate or clip_norm, and look for NaN in the data"
                f"{self._largest()}{self._first_not_finite(images)}{self.saved}"
            )
        correct = int((_decided(state.model, output) == labels).sum())
        state.accuracy = correct / len(labels)
        self.sums["loss"] += state.loss * len(labels)
        self.sums["correct"] += correct
        self.sums["images"] += len(labels)
        state.epoch_loss = self.sums["loss"] / self.sums["images"]
        state.epoch_accuracy = self.sums["correct"] / self.sums["images"]

    def _first_not_finite(self, images: NDArray[np.float32]) -> str:
        """Where it began, in words: the batch is computed once more, and each layer's output looked at."""
        if self.compiled is not None and not self._gradients_are_read():
            return ""  # the weights are those after the step already
        if not np.isfinite(images).all():
            return "; the images of this batch are not finite themselves"
        model, found = self.state.model, list[str]()

        def look(name: str) -> Callable[[Module, Any, Any], None]:
            def hook(module: Module, inputs: Any, output: Any) -> None:
                if (
                    not found
                    and isinstance(output, Tensor)
                    and not bool(output.backend.xp.isfinite(output.array).all())
                ):
                    found.append(f"{type(module).__name__} {name}".strip())

            return hook

        with ExitStack() as hooks, no_grad(), self._autocast():
            for name, module in model.named_modules():
                hooks.callback(module.register_forward_hook(look(name)).remove)
            _output(model, _input(model, images))
        layer = f"the first layer whose output is not finite is {found[0]}" if found else "the model's output is finite"
        return f"; {layer}"

    def _pass(self, images: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Forward and backward."""
        state = self.state
        first_of_step = state.batch % self.accumulate == 0
        if first_of_step:
            state.optimizer.zero_grad()
        with self._autocast():
            output = _output(state.model, _input(state.model, images), state.train.dataset)
            loss = _loss(self.loss, output, labels)
        share = 1.0 if self.accumulate == 1 else len(labels) / self._images_of_step()
        self.scaler.scale(loss if share == 1 else loss * share).backward()
        return output, loss

    def _images_of_step(self) -> int:
        """Images in the batches that share the current optimiser step; the last step of an epoch may have fewer."""
        train = self.state.train
        first = self.state.batch // self.accumulate * self.accumulate
        last = min(first + self.accumulate, len(train))
        return min(last * train.batch_size, len(train.dataset)) - first * train.batch_size

    def _step(self) -> None:
        state = self.state
        if self.compiled is None or self._gradients_are_read():
            self._update()
        state.step += 1
        state.lr = state.optimizer.lr
        if state.scheduler is not None:
            state.scheduler.step()

    def _update(self) -> None:
        """The optimiser's step, with all that belongs to it."""
        state = self.state
        self.scaler.unscale_(state.optimizer)
        overflow = self.scaler.found_inf(state.optimizer)
        if self.clip_norm is not None and not overflow:
            try:
                clip_grad_norm_(state.optimizer.params, self.clip_norm)
            except ValueError as error:
                raise FloatingPointError(
                    f"{error}, in epoch {state.epoch}, batch {state.batch} of {len(state.train)}, with lr "
                    f"{state.optimizer.lr:g}{self.saved}"
                ) from error
        self.scaler.step(state.optimizer)
        self.scaler.update()
        state.skipped += overflow
        if self.scaler.get_scale() < SMALLEST_SCALE:
            raise FloatingPointError(
                f"the gradients overflow float16 at every scale, down to {self.scaler.get_scale():g}, in epoch "
                f"{state.epoch}, batch {state.batch} of {len(state.train)}; try precision='bf16', a lower learning "
                f"rate or clip_norm{self.saved}"
            )

    def _row(self) -> dict[str, Any]:
        state = self.state
        row: dict[str, Any] = {"epoch": state.epoch, "loss": state.epoch_loss, "accuracy": state.epoch_accuracy}
        if state.held_out is not None:
            with self._autocast():
                found = _evaluate(state.model, state.held_out, self.loss, self._stop_if_asked)
            row |= {"held_out_loss": found.loss, "held_out_accuracy": found.accuracy}
        row["lr"] = state.lr
        if self.scaler.is_enabled():
            row |= {"skipped": state.skipped, "loss_scale": self.scaler.get_scale()}
        return row

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast(PRECISIONS[self.precision]) if self.precision in ("fp16", "bf16") else nullcontext()

    def _largest(self) -> str:
        return "; float16 ends at 65504: precision='bf16' reaches as far as float32" if self.precision == "fp16" else ""

    def _check_weights(self) -> None:
        for name, value in self.state.model.state_dict().items():
            if is_floating(value.dtype) and not bool(value.backend.xp.isfinite(value.array).all()):
                raise FloatingPointError(
                    f"{name} is no longer finite in epoch {self.state.epoch}, with lr {self.state.optimizer.lr:g}; try "
                    f"a lower learning rate or clip_norm{self.saved}"
                )

    # -- leaving and entering ----------------------------------------------------------------------

    def open(self, folder: Path, resume: bool) -> None:
        """Take up the run in this folder, or make sure that there is none."""
        for stale in unfinished(folder):  # of a process that was killed while it wrote; the lock is ours
            stale.unlink()
        self.checkpoint = folder / "checkpoint.safetensors"
        if self.checkpoint.exists() and resume:
            self._resume(self.checkpoint)
            return
        model = folder / "model.safetensors"
        for path, what in (
            (self.checkpoint, "; resume=True goes on with it, or"),
            (model, ", and no checkpoint of it;"),
        ):
            if path.exists():
                raise FileExistsError(f"{folder} holds a run already ({path.name}){what} choose another folder")

    def _resume(self, checkpoint: Path) -> None:
        state = self.state
        kept, _ = load_checkpoint(
            checkpoint,
            model=state.model,
            optimizer=state.optimizer,
            scheduler=state.scheduler,
            settings=self.settings,
            check=self._check_own,
            take=self._give_back,
        )
        before, now = (f"the tuning {h}" if h else "their shapes alone" for h in (kept.get("tuning"), self._tuning()))
        if before != now:
            _logger.warning(
                "%s was trained with kernels chosen by %s, and goes on with those chosen by %s: its bits will be other "
                "ones than without a pause (GPUCNN_TUNING)",
                checkpoint, before, now,
            )  # fmt: skip
        state.history.rows, state.history.stop_reason = kept["rows"], kept["stop_reason"]
        self.seconds, self.sums, self.first_epoch = kept["seconds"], kept["sums"], kept["first_epoch"]
        state.resumed = True
        state.epoch = min(len(state.history) + 1, state.epochs)
        for name in ("batch", "step", "lr", "loss", "accuracy", "epoch_loss", "epoch_accuracy"):
            setattr(state, name, kept[name])
        state.skipped = kept["skipped"]
        self.scaler.load_state_dict(kept["scaler"])
        state.train.current = self.first_epoch + len(state.history)

    def _give_back(self, kept: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        """To each callback its state. Raises ValueError that names the one which does not take it."""
        for i, (callback, its_state) in enumerate(zip(self.remembering, kept["callbacks"], strict=True)):
            own = {name.removeprefix(f"{i}."): a for name, a in arrays.items() if name.startswith(f"{i}.")}
            try:
                callback.load_state_dict({**its_state, "arrays": own})
            except Exception as error:
                raise ValueError(
                    f"{_named(callback)} does not take back {its_state!r:.100}: {type(error).__name__} {error}"
                ) from error

    def _own(self, callbacks: list[dict[str, Any]]) -> dict[str, Any]:
        """What a checkpoint holds besides the model, the optimizer, the schedule and the random numbers."""
        state, history = self.state, self.state.history
        return {
            "rows": history.rows,
            "stop_reason": history.stop_reason,
            "seconds": self._elapsed(),
            "sums": self.sums,
            "first_epoch": self.first_epoch,
            "callbacks": callbacks,
            "batch": state.batch,
            "step": state.step,
            "lr": state.lr,
            "loss": state.loss,
            "accuracy": state.accuracy,
            "epoch_loss": state.epoch_loss,
            "epoch_accuracy": state.epoch_accuracy,
            "skipped": state.skipped,
            "scaler": self.scaler.state_dict(),
        }

    def _tuning(self) -> str | None:
        """The hash of the measurements by which the model's backend chooses kernels."""
        return next((p.backend.tuning_hash for p in self.state.model.parameters()), None)

    def _check_own(self, kept: dict[str, Any]) -> None:
        """Raises ValueError for a checkpoint that has not what `_own` gives, or has more epochs than are asked for."""
        own = self._own([{}] * len(self.remembering))
        wrong = [name for name, value in own.items() if name not in kept or not _alike(kept[name], value)]
        if wrong:
            raise ValueError(f"{self.checkpoint}: the run's own state can't be read: {', '.join(wrong)}")
        try:
            GradScaler(enabled=self.scaler.is_enabled()).load_state_dict(kept["scaler"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.checkpoint}: the run's own state can't be read: {error}") from error
        epochs = self.state.epochs
        if len(kept["rows"]) > epochs:
            raise ValueError(
                f"the run in {self.state.folder} has {len(kept['rows'])} epochs, more than epochs={epochs}"
            )

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        self._check_weights()  # what is saved must be worth going on from
        state = self.state
        states = [_state_of(callback) for callback in self.remembering]
        arrays = {f"{i}.{name}": a for i, s in enumerate(states) for name, a in s.pop("arrays").items()}
        save_checkpoint(
            self.checkpoint,
            model=state.model,
            optimizer=state.optimizer,
            scheduler=state.scheduler,
            settings=self.settings,
            arrays=arrays,
            tuning=self._tuning(),
            **self._own(states),
        )
        self.saved = f". The state {self._position()} is in {self.checkpoint}"

    def _stop_between_steps(self) -> None:
        """Stop if asked, unless a step of several batches is begun: what it has summed up can't be saved."""
        if self.state.batch % self.accumulate == 0:
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        number = self.wish.received
        if number is None:
            return
        name = signal.Signals(number).name
        if self.checkpoint is None:
            raise TrainingInterrupted(f"stopped by {name} {self._position()}; fit had no folder= to save it in", number)
        self._save()
        raise TrainingInterrupted(
            f"stopped by {name} {self._position()}; saved {self.checkpoint}. The same call with resume=True goes on "
            "from there",
            number,
        )

    def _position(self) -> str:
        done, batch = len(self.state.history), self.state.batch
        within = f" and {batch} of {len(self.state.train)} batches" if batch else ""
        return f"after {done} of {self.state.epochs} epochs{within}"

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.start

    def _settings(self) -> dict[str, Any]:
        """All that a resumed run must have in common with the one that was saved, for people to read in an error."""
        state = self.state
        schedule = state.scheduler
        return {
            "model": describe(state.model),
            "optimizer": _settings_of(state.optimizer),
            # a schedule moves the optimizer's lr
            **_by_group(
                "lr", [None if schedule is not None else group["lr"] for group in state.optimizer.param_groups]
            ),
            "scheduler": None if schedule is None else _settings_of(schedule),
            "loss": _named(self.loss),
            "train": _loader_settings(state.train),
            "held_out": None if state.held_out is None else _loader_settings(state.held_out),
            "accumulate": self.accumulate,
            "clip_norm": self.clip_norm,
            "precision": self.precision,
            "callbacks": [_named(callback) for callback in self.remembering],
        }


def _state_of(callback: Callback) -> dict[str, Any]:
    """What the callback wants to be remembered, as a file can hold it, and its arrays, be it none."""
    op, state = f"fit: the state of {_named(callback)}", callback.state_dict()
    if not isinstance(state, Mapping) or not isinstance(state.get("arrays", {}), Mapping):
        raise TypeError(f'{op} must be a dict, and so must its "arrays", got {state!r:.100}')
    rest = {name: plain(op, value, str(name)) for name, value in state.items() if name != "arrays"}
    return rest | {"arrays": dict(state.get("arrays", {}))}


def _alike(kept: Any, own: Any) -> bool:
    """Whether what a file gives is of our own value's kind: a number, a text, a list of objects, the same names."""
    if isinstance(own, dict):
        return (
            isinstance(kept, dict) and kept.keys() == own.keys() and all(_alike(kept[name], own[name]) for name in own)
        )
    if isinstance(own, list):
        objects = isinstance(kept, list) and all(isinstance(item, dict) for item in kept)
        return objects and (not own or len(kept) == len(own))
    return isinstance(kept, int | float) if isinstance(own, int | float) else kept is None or isinstance(kept, str)


def _named(value: Any) -> str:
    """repr without the address, which differs from process to process."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))


def _settings_of(thing: Optimizer | LRScheduler) -> dict[str, Any]:
    """The class and the plain settings of an optimizer or a schedule, without what changes as it goes."""
    settings: dict[str, Any] = {"class": type(thing).__name__}
    if isinstance(thing, Optimizer):
        for name in [name for name in thing.defaults if name != "lr"]:
            settings |= _by_group(name, [group[name] for group in thing.param_groups])
        return settings
    for name, value in vars(thing).items():
        if name.startswith("_") or name == "last_epoch":
            continue
        if isinstance(value, list):
            settings |= _by_group(name.removesuffix("s"), value)
        elif isinstance(value, LRScheduler):
            settings[name] = _settings_of(value)
        elif isinstance(value, bool | int | float | str | tuple):
            settings[name] = value
    return settings


def _by_group(name: str, values: list[Any]) -> dict[str, Any]:
    """What each group has, by its name in an error. The first has the plain name, as all of an optimizer that has no
    others, and as in files of earlier versions."""
    return {f"{name} of group {i}" if i else name: value for i, value in enumerate(values)}


def _loader_settings(loader: Loader) -> dict[str, Any]:
    dataset = loader.dataset
    return {
        "data": dataset.name,
        "images": len(dataset),
        "shape": list(dataset.images.shape[1:]),
        "classes": list(dataset.classes),
        "digest": _digest(dataset),
        "batch_size": loader.batch_size,
        "shuffle": loader.shuffle,
        "drop_last": loader.drop_last,
        "seed": loader.seed,
        "augment": _named(loader.augment),
        "normalise": _named(loader.normalise),
    }


def _digest(dataset: Dataset) -> str:
    """Tells one data set from another, by all labels and at most 1,000 images from all over it."""
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), 1000)).astype(np.int64)
    digest = blake2b(dataset.labels.tobytes(), digest_size=8)
    digest.update(dataset.images[chosen].tobytes())
    return digest.hexdigest()


class _WishToStop:
    """Notes SIGINT and SIGTERM instead of acting on them; a second signal acts as it would have without this.

    Signals can be caught in the main thread alone; elsewhere, and where they are ignored, all stays as it is.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _WishToStop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


_lent: ContextVar[frozenset[Path]] = ContextVar("gpucnn_lent", default=frozenset())


@contextmanager
def locked(folder: Path, lend: bool = False) -> Iterator[None]:
    """Makes the folder and keeps other processes out of it, until the end of this block or of this process.

    lend: whether a block within may have the same folder, as that of `fit` in a command that writes more there.
    """
    place, lent = folder.resolve(), _lent.get()
    with ExitStack() as until_the_end:
        if place not in lent:
            until_the_end.enter_context(_locked_file(folder))
        token = _lent.set(lent | {place} if lend else lent - {place})
        until_the_end.callback(_lent.reset, token)
        yield


@contextmanager
def _locked_file(folder: Path) -> Iterator[None]:
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    with file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise RuntimeError(
                f"{folder} is in use by another training (process {file.read() or 'unknown'}); wait for it or choose "
                "another folder"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        file.truncate(0)


if sys.platform == "win32":  # pragma: no cover

    def _lock(file: IO[str]) -> None:
        import msvcrt

        file.seek(1 << 20)  # far behind the text, which others are to read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:

    def _lock(file: IO[str]) -> None:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- what a model says -----------------------------------------------------------------------------


@contextmanager
def _mode(model: Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode for a while; then each module has the mode it had."""
    check_module(model)
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _input(model: Module, images: NDArray[Any]) -> Tensor:
    """Images on the host as the model takes them."""
    reference = next(iter(model.parameters()), None)
    backend = _backend(model)
    return Tensor(backend.asarray(images, np.float32 if reference is None else reference.dtype), backend)


def _backend(model: Module) -> Backend:
    check_module(model)
    reference = next(iter(model.parameters()), None)
    return get_backend() if reference is None else reference.backend


def _output(model: Module, images: Tensor, dataset: Dataset | None = None) -> Tensor:
    """What the model makes of images: [N, classes]. Raises ValueError for outputs of another shape."""
    output = model(images)
    if not isinstance(output, Tensor):
        raise TypeError(f"the model must return a Tensor [N, classes], got a {type(output).__name__}: {output!r:.100}")
    if output.ndim > 2 and output.shape[2:] == (1,) * (output.ndim - 2):  # as global pooling leaves it
        output = output.flatten(1)
    if output.ndim != 2:
        raise ValueError(f"the model must return [N, classes], got {output.shape}; put a Flatten at its end")
    if (
        dataset is not None
        and output.shape[1] != len(dataset.classes)
        and (output.shape[1], len(dataset.classes)) != (1, 2)
    ):
        raise ValueError(
            f"the model has {output.shape[1]} outputs, but {dataset.name} has {len(dataset.classes)} classes"
        )
    return output


def _check_loss(op: str, loss: Any) -> None:
    if isinstance(loss, type):
        raise TypeError(f"{op}: loss is the class {loss.__name__}; it takes an object of it: {loss.__name__}()")
    if not callable(loss):
        raise TypeError(f"{op}: loss must be a function of (output, labels), got {loss!r:.100}")


def _loss(loss: Loss, output: Tensor, labels: NDArray[np.int64]) -> Tensor:
    function = loss.func if isinstance(loss, partial) else loss
    if function not in _ELEMENTWISE and not isinstance(function, _ELEMENTWISE_MODULES):
        return _checked_loss(loss, loss(output, labels))
    one_hot = labels[:, None] == (np.arange(output.shape[1]) if output.shape[1] > 1 else 1)
    return loss(output, Tensor(output.backend.asarray(one_hot.astype(output.dtype)), output.backend))


def _checked_loss(loss: Loss, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the loss {_named(loss)} must return a Tensor of one element that is computed from the output, as those "
            f"of gpucnn.functional do, got {value!r:.100}"
        )
    return value


def _probabilities(model: Module, output: Tensor) -> NDArray[np.float32]:
    """[N, classes], from logits unless the model's last layer has made probabilities of them; two of one output."""
    last = {kind.__name__ for kind in type(list(model.modules())[-1]).__mro__}  # by name: of an ONNX file's nodes too
    if "LogSoftmax" in last:
        output = output.exp()
    elif not last & {"Sigmoid", "Softmax"}:
        output = output.softmax(1) if output.shape[1] > 1 else output.sigmoid()
    values: NDArray[np.float32] = output.numpy().astype(np.float32)
    return values if output.shape[1] > 1 else np.concatenate([1 - values, values], axis=1)


def _decided(model: Module, output: Tensor) -> NDArray[np.int64]:
    """The likeliest class of each row: the largest logit, or the side of a single output."""
    with no_grad():
        if output.shape[1] > 1:
            decided: NDArray[np.int64] = output.argmax(1).numpy()
        else:
            decided = _probabilities(model, output).argmax(1)
    return decided


def evaluate(model: Module, loader: Loader, loss: Loss = F.cross_entropy) -> Evaluation:
    """Loss, predictions and all that follows from them, of all images of the loader's data set in their order.

    The loader's batch size and normalisation count; nothing is shuffled, augmented or dropped. Runs in evaluation mode,
    without a tape, and puts the mode back. Outputs are logits unless the model ends with Softmax, LogSoftmax or
    Sigmoid. Raises ValueError without images, or if the outputs are not as many as the classes.
    """
    if not isinstance(loader, Loader):
        raise TypeError(f"evaluate: loader must be a gpucnn.data.Loader, got {type(loader).__name__}")
    _check_loss("evaluate", loss)
    with explained("evaluation", _backend(model)):
        return _evaluate(model, loader, loss, lambda: None)


def _evaluate(model: Module, loader: Loader, loss: Loss, look_up: Callable[[], None]) -> Evaluation:
    dataset, normalise = loader.dataset, loader.normalise
    if not len(dataset):
        raise ValueError(f"evaluate: there are no images in {dataset!r}")
    plain = Loader(
        dataset,
        loader.batch_size,
        normalise=None if normalise is None else (normalise.mean, normalise.std),
        prefetch=loader.prefetch,
    )
    total, probabilities = 0.0, []
    with no_grad(), _mode(model, False), closing(plain.epoch(0, on_wait=look_up)) as batches:  # type: ignore[type-var]
        for images, labels in batches:
            output = _output(model, _input(model, images), dataset)
            total += float(_loss(loss, output, labels).item()) * len(labels)
            probabilities.append(_probabilities(model, output))
            look_up()
    return Evaluation(total / len(dataset), np.concatenate(probabilities), dataset.labels, dataset.classes)


def predict(model: Module, images: NDArray[np.float32], batch_size: int = 256) -> NDArray[np.float32]:
    """Probabilities [N, classes] of images [N, C, H, W], or [classes] of one image [C, H, W].

    images are float32, scaled and normalised as those of the training were. A model with one output gives [1 − p, p].
    Runs in evaluation mode, without a tape, and puts the mode back. Raises TypeError for another dtype.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.float32:
        given = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise TypeError(
            f"predict: images must be a float32 array, got {given}; data.to_float scales bytes to 0..1, and "
            "numpy() makes an array of a tensor"
        )
    if images.ndim not in (3, 4):
        raise ValueError(f"predict: images must be [N, C, H, W] or [C, H, W], got shape {images.shape}")
    batch_size = validate.integer("predict", "batch_size", batch_size, least=1)
    several = images if images.ndim == 4 else images[None]
    with no_grad(), _mode(model, False), explained("prediction", _backend(model)):
        parts = [
            _probabilities(model, _output(model, _input(model, several[i : i + batch_size])))
            for i in range(0, max(len(several), 1), batch_size)
        ]
    probabilities = np.concatenate(parts)
    return probabilities if images.ndim == 4 else probabilities[0]
