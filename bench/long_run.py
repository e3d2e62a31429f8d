"""What long runs pile up: `make soak`, whose figures are in docs/reliability.md.

Each trial repeats one thing thousands of times: steps of `fit` with all that goes with it, launches of a step's graph,
fits and predictions of a CNNClassifier, explanations and predictions. Every now and then it is looked at what the
process has: memory (RSS), objects that Python's garbage collector knows, threads, open files, and bytes of the
device's pool. The collector itself is switched off meanwhile, so what is freed late by it alone piles up as well.

After the first third, a line is fitted to what was seen; a trial fails if that line rises by more than a bound until
the end. There must be no more threads and no more open files at a time than in the first third.

Needs /proc, so Linux.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn import data, nn, optim, train
from gpucnn import functional as F
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.memory import set_memory_limit

LOOKS = 40  # at a trial
WARM_UP = 1 / 3  # of a trial, before what it has may not grow any more
UNITS = {"rss": "KiB", "objects": "objects", "pool": "bytes", "threads": "threads", "files": "files"}
# The most that a fitted line may rise by from the warm-up to the end, and more for each step. Objects are counted
# exactly, but for what caches of Python and NumPy still learn; RSS has the noise of the allocator.
BOUNDS = {"rss": (3072, 0.05), "objects": (60, 0.002), "pool": (1024, 0.0), "threads": (0, 0.0), "files": (0, 0.0)}

CLASSES = ("bar", "dash", "dot")


class Failed(AssertionError):
    """Something piled up."""


@dataclass
class Watch:
    """What the process has after how many steps; `due` every so many."""

    name: str
    steps: int
    pool: Callable[[], int] = lambda: 0
    tell: Callable[[str], None] = lambda line: None
    at: list[int] = field(default_factory=list)
    seen: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in UNITS})

    def step(self, number: int) -> None:
        """`number` steps are done."""
        if number % max(1, self.steps // LOOKS):
            return
        self.at.append(number)
        for name, value in self.look().items():
            self.seen[name].append(value)
        self.tell(f"{self.name}: {number} of {self.steps}, {self.seen['rss'][-1] // 1024} MiB")

    def look(self) -> dict[str, int]:
        return {
            "rss": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024,
            "objects": len(gc.get_objects()),
            "pool": self.pool(),
            "threads": max(len(os.listdir("/proc/self/task")), threading.active_count()),
            "files": len(os.listdir("/proc/self/fd")),
        }

    def growth(self) -> dict[str, float]:
        """By how much a line rises, from the warm-up to the end; of threads and files, how many more there were."""
        first = next(i for i, at in enumerate(self.at) if at >= WARM_UP * self.steps)
        steps = np.array(self.at[first:], np.float64)
        found = {}
        for name, values in self.seen.items():
            if name in ("threads", "files"):
                found[name] = float(max(values[first:]) - max(values[: first + 1]))
            else:
                slope = np.polyfit(steps - steps[0], values[first:], 1)[0]
                found[name] = float(slope * (steps[-1] - steps[0]))
        return found

    def check(self) -> str:
        """One line of what was found. Raises Failed."""
        found = self.growth()
        said = ", ".join(f"{name} {value:+.0f} {UNITS[name]}" for name, value in found.items())
        said = f"{self.name}: {self.steps} steps, {said}; {self.seen['rss'][-1] // 1024} MiB at the end"
        bounds = {name: fixed + each * self.steps for name, (fixed, each) in BOUNDS.items()}
        grown = [
            f"{name} grew by {value:.0f} {UNITS[name]}, the bound is {bounds[name]:.0f}"
            for name, value in found.items()
            if value > bounds[name]
        ]
        if grown:
            raise Failed("\n".join([said, *grown]))
        return said


# -- what is repeated --------------------------------------------------------------------------------------------------


def pictures(count: int) -> data.Dataset:
    """Noise with a bright row, column or spot."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 90, (count, 9, 7, 1)).astype(np.uint8)
    images[labels == 0, :, 3] += 120
    images[labels == 1, 4, :] += 120
    images[labels == 2, 4:6, 3:5] += 120
    return data.Dataset(images, labels, CLASSES)


def network() -> nn.Module:
    gpucnn.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, (3, 2)), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(4 * 3 * 3, len(CLASSES)),
    )  # fmt: skip


class Each(train.Callback):
    """Something that is done after each step."""

    def __init__(self, after: Callable[[train.TrainingState], None]) -> None:
        self.after = after

    def on_batch_end(self, state: train.TrainingState) -> None:
        self.after(state)


def fit(watch: Watch, planted: Callable[[Any], None]) -> None:
    """fit with a loader's thread, augmentation, held-out images, checkpoints, early stopping, the best model, a log."""
    part, held_out = data.split(pictures(800), 0.2)
    model = network()
    optimizer = optim.AdamW(model.parameters(), 1e-4)
    loader = data.Loader(part, 8, shuffle=True, augment=data.Compose([data.RandomHorizontalFlip()]))
    epochs = -(-watch.steps // len(loader))

    def after(state: train.TrainingState) -> None:
        planted(state)
        watch.step(state.step)

    with tempfile.TemporaryDirectory() as folder:
        train.fit(
            model, loader, epochs=epochs, optimizer=optimizer, folder=folder, checkpoint_every=200, progress=False,
            scheduler=optim.CosineAnnealingLR(optimizer, epochs * len(loader)), clip_norm=5.0,
            held_out=data.Loader(held_out, 20),
            callbacks=[
                Each(after), train.EarlyStopping(patience=10**6), train.BestModel(),
                train.CSVLogger(Path(folder) / "history.csv"),
            ],
        )  # fmt: skip


class Step:
    """A training step, its graph, and what it works with."""

    def __init__(self) -> None:
        self.model = network()
        self.optimizer = optim.Adam(self.model.parameters(), 1e-3)
        self.compiled = gpucnn.compile(self.plain)
        self.batches = [
            (gpucnn.tensor(images), gpucnn.tensor(labels)) for images, labels in data.Loader(pictures(16), 8)
        ]
        self.number = 0

    def plain(self, images: gpucnn.Tensor, labels: gpucnn.Tensor) -> gpucnn.Tensor:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def __call__(self) -> gpucnn.Tensor:
        self.number += 1
        loss: gpucnn.Tensor = self.compiled(*self.batches[self.number % len(self.batches)])
        device = gpucnn.get_backend().device  # type: ignore[attr-defined]
        if isinstance(device, RecorderDevice):
            device.launches.clear()  # what it is for; nobody else keeps so many
        if self.compiled.reason is not None:
            raise Failed(f"the step was not captured: {self.compiled.reason}")
        return loss


def graph(watch: Watch, planted: Callable[[Any], None]) -> None:
    """Launches of a step's graph."""
    step = Step()
    for number in range(1, watch.steps + 1):
        planted(step())
        watch.step(number)


def graphs(watch: Watch, planted: Callable[[Any], None]) -> None:
    """Graphs that are captured, launched twice and given up; a step is all of that."""
    for number in range(1, watch.steps + 1):
        step = Step()
        planted([step() for _ in range(4)][-1])
        del step
        gc.collect()  # a graph and the step that it was captured from know each other
        watch.step(number)


def classifier(watch: Watch, planted: Callable[[Any], None]) -> None:
    """scikit-learn's way: a new fit, and predictions; a step is both."""
    from gpucnn.sklearn import CNNClassifier

    whole = pictures(24)
    images, labels = whole.images.transpose(0, 3, 1, 2).astype(np.float32), whole.labels
    for number in range(1, watch.steps + 1):
        fitted = CNNClassifier(lambda classes, c, size: network(), epochs=1, batch_size=8, random_state=0)
        planted(fitted.fit(images, labels).predict(images))
        watch.step(number)


def explanations(watch: Watch, planted: Callable[[Any], None]) -> None:
    """Explanations of a number, and predictions; a step is both."""
    model, image = network().eval(), pictures(1).images.transpose(0, 3, 1, 2).astype(np.float32)
    for number in range(1, watch.steps + 1):
        explanation = model.explain(image[0], "0", (2, 3, 4), label=1)
        planted((str(explanation), train.predict(model, image)))
        watch.step(number)


# -- trials ------------------------------------------------------------------------------------------------------------


def on(device: Any) -> Callable[[], KernelBackend]:
    return lambda: KernelBackend(device())


# name: what is repeated, how often, and the backend
TRIALS: dict[str, tuple[Callable[[Watch, Callable[[Any], None]], None], int, Callable[[], Any]]] = {
    "fit": (fit, 20_000, lambda: "numpy"),
    "graph, emulator": (graph, 400, on(lambda: EmulatorDevice(watch=False))),
    "graph, recorder": (graph, 5000, on(RecorderDevice)),
    "graphs, recorder": (graphs, 200, on(RecorderDevice)),
    "classifier": (classifier, 300, lambda: "numpy"),
    "explanations": (explanations, 400, lambda: "numpy"),
}


def trial(
    name: str,
    steps: int | None = None,
    planted: Callable[[Any], None] = lambda result: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Watch:
    """Run a trial; `planted` gets what each step results in. Raises Failed if something piles up."""
    repeat, usual, backend = TRIALS[name]
    with gpucnn.use_backend(backend()) as chosen, np.errstate(all="ignore"):  # the recorder's numbers are none
        watch = Watch(name, steps or usual, tell=tell)
        if isinstance(chosen, KernelBackend):
            set_memory_limit(1 << 30, chosen)
            watch.pool = lambda: chosen.device.memory_report()["used"]
        gc.collect()
        gc.disable()
        try:
            repeat(watch, planted)
        finally:
            gc.enable()
            if isinstance(chosen, KernelBackend):
                set_memory_limit(None, chosen)
    return watch


def run(names: list[str], factor: float) -> Iterator[str]:
    """A line for each trial."""

    def tell(line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    for name in names:
        start = time.perf_counter()
        watch = trial(name, max(LOOKS, int(TRIALS[name][1] * factor)), tell=tell)
        tell("")
        yield f"{watch.check()}; {time.perf_counter() - start:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=list(TRIALS), action="append", help="this trial; may be given several times")
    parser.add_argument("--factor", type=float, default=1.0, help="of the number of steps (default: 1)")
    chosen = parser.parse_args()
    try:
        for line in run(chosen.only or list(TRIALS), chosen.factor):
            print(line, flush=True)
    except Failed as failure:
        sys.exit(f"soak: {failure}")
    print("nothing piled up")


if __name__ == "__main__":
    main()
