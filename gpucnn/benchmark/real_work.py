"""Real work: how long training takes to an accuracy on held-out images, us and PyTorch side by side.

Both train the same network from the same weights on the same batches, which our loader makes for both, with the same
schedule of learning rates. The clock runs while they train, loader included, and stands while they are measured. Each
seed is a run of its own and is kept when it is done, so the command can be stopped and goes on with the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn import data, optim
from gpucnn import functional as F
from gpucnn.atomic import write_text
from gpucnn.backends import get_backend, use_backend
from gpucnn.benchmark.providers import OURS, torch_twin
from gpucnn.benchmark.report import Table
from gpucnn.nn import Module, models

MOMENTUM, WEIGHT_DECAY = 0.9, 2e-3


@dataclass(frozen=True)
class Work:
    """A data set, the accuracy to reach on its held-out images, and how to train LeNet-5 for it."""

    name: str
    target: float
    epochs: int
    batch: int
    lr: float
    batch_norm: bool
    augment: bool

    def parts(self) -> tuple[data.Dataset, data.Dataset]:
        """(training images, held-out images). Raises FileNotFoundError or ImportError, with the remedy."""
        if self.name == "fashion-mnist":
            return data.load(self.name, split="train"), data.load(self.name, split="test")
        return data.split(data.load(self.name), 0.2)

    def model(self, seed: int) -> Module:
        """The network with the weights of a seed, on the NumPy backend."""
        gpucnn.manual_seed(seed)
        with use_backend("numpy"):
            return models.LeNet5(batch_norm=self.batch_norm)


WORKS = (
    Work("mnist-5k", 0.985, 60, 64, 0.1, batch_norm=False, augment=True),
    Work("fashion-mnist", 0.90, 12, 128, 0.1, batch_norm=True, augment=False),
)


@dataclass(frozen=True)
class Outcome:
    """One training: `history` is (seconds trained, held-out accuracy) after each epoch."""

    work: str
    provider: str
    seed: int
    conditions: str
    target: float
    history: list[tuple[float, float]]

    @property
    def seconds_to_target(self) -> float | None:
        """Seconds of training until the target was first reached; None if it never was."""
        return next((seconds for seconds, accuracy in self.history if accuracy >= self.target), None)


class _Ours:
    def __init__(self, model: Module, backend: str) -> None:
        self.backend = get_backend(backend)
        self.model = model.to(self.backend)
        self.optimizer = optim.SGD(model.parameters(), 0.0, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)

    def step(self, images: Any, labels: Any, lr: float) -> None:
        self.optimizer.lr = lr
        self.optimizer.zero_grad()
        F.cross_entropy(self.model.train()(gpucnn.tensor(images, backend=self.backend)), labels).backward()
        self.optimizer.step()

    def classes(self, images: Any) -> Any:
        with gpucnn.no_grad():
            return self.model.eval()(gpucnn.tensor(images, backend=self.backend)).numpy().argmax(1)

    def wait(self) -> None:
        self.backend.synchronize()


class _Torch:
    def __init__(self, model: Module, provider: str) -> None:
        torch: Any = import_module("torch")
        self.torch, self.where = torch, provider.split("-")[1]
        self.format = torch.channels_last if provider.endswith("channels-last") else torch.contiguous_format
        self.model = torch_twin(model).to(self.where, memory_format=self.format)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), 0.0, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
        )

    def _images(self, images: Any) -> Any:
        return self.torch.from_numpy(images).to(self.where).contiguous(memory_format=self.format)

    def step(self, images: Any, labels: Any, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        output = self.model.train()(self._images(images))
        self.torch.nn.functional.cross_entropy(output, self.torch.from_numpy(labels).to(self.where)).backward()
        self.optimizer.step()

    def classes(self, images: Any) -> Any:
        with self.torch.inference_mode():
            return self.model.eval()(self._images(images)).argmax(1).cpu().numpy()

    def wait(self) -> None:
        if self.where == "cuda":
            self.torch.cuda.synchronize()


def able(provider: str) -> bool:
    """Whether a provider can do real work."""
    return provider in OURS or (provider.startswith("torch") and not provider.endswith("compile"))


def train(work: Work, provider: str, seed: int) -> Iterator[tuple[float, float]]:
    """(seconds trained so far, held-out accuracy) after each epoch."""
    images, held_out = work.parts()
    augment = data.RandomAffine(15, (0.12, 0.12), (0.85, 1.15)) if work.augment else None
    loader = data.Loader(images, work.batch, shuffle=True, augment=augment, seed=seed)
    steps = work.epochs * len(loader)
    rates = optim.OneCycleLR(optim.SGD(work.model(seed).parameters(), work.lr), work.lr, steps)
    model = work.model(seed)
    learner = _Ours(model, provider) if provider in OURS else _Torch(model, provider)
    seconds, done = 0.0, 0
    for epoch in range(work.epochs):
        start = time.perf_counter()
        for x, labels in loader.epoch(epoch):
            learner.step(x, labels, rates.lr_at(done))
            done += 1
        learner.wait()
        seconds += time.perf_counter() - start
        right = sum(int((learner.classes(x) == labels).sum()) for x, labels in data.Loader(held_out, 500).epoch(0))
        yield seconds, right / len(held_out)


def run(
    works: Sequence[Work],
    providers: Sequence[str],
    seeds: int,
    conditions: str,
    path: Path,
    say: Callable[[str], None],
) -> list[Outcome]:
    """All trainings that the file does not hold yet, seed by seed, the providers in turn; each is written when done.

    conditions: what must be the same for an earlier outcome to count: commit, machine, threads.
    """
    outcomes = load(path) if path.exists() else []
    known = {(o.work, o.provider, o.seed) for o in outcomes if o.conditions == conditions}
    for work in works:
        for seed in range(seeds):
            for provider in providers:
                if (work.name, provider, seed) in known:
                    continue
                history = []
                for seconds, accuracy in train(work, provider, seed):
                    history.append((round(seconds, 3), accuracy))
                    place = f"{work.name} seed {seed} {provider}: epoch {len(history)}/{work.epochs}"
                    say(f"{place}, {accuracy:.1%} after {seconds:.0f} s")
                outcomes.append(Outcome(work.name, provider, seed, conditions, work.target, history))
                text = "".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)
                write_text(path, text)
    return [outcome for outcome in outcomes if outcome.conditions == conditions]


def load(path: Path) -> list[Outcome]:
    """The outcomes of a file."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [Outcome(**line | {"history": [(a, b) for a, b in line["history"]]}) for line in lines]


def tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """A line for each seed, the providers side by side, and the medians; one table for each data set."""
    found = []
    for name in dict.fromkeys(outcome.work for outcome in outcomes):
        of_work = [outcome for outcome in outcomes if outcome.work == name]
        providers = list(dict.fromkeys(outcome.provider for outcome in of_work))
        head = ["seed", *(f"{p}, {what}" for p in providers for what in ("to the target", "at the end", "accuracy"))]
        lines = [
            [str(seed)]
            + [cell for p in providers for cell in _cells([o for o in of_work if (o.provider, o.seed) == (p, seed)])]
            for seed in sorted({outcome.seed for outcome in of_work})
        ]
        lines.append(["median"] + [cell for p in providers for cell in _cells([o for o in of_work if o.provider == p])])
        title = f"Seconds of training to {of_work[0].target:.1%} on the held-out images of {name}"
        found.append(Table(title, head, lines, "The same network, weights, batches and schedule for all."))
    return found


def _cells(outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return ["–"] * 3
    reached = [o.seconds_to_target for o in outcomes]
    least = [np.inf if seconds is None else seconds for seconds in reached]
    to_target = float(np.median(least))
    ends, accuracies = (float(np.median([o.history[-1][i] for o in outcomes])) for i in range(2))
    return [f"{to_target:.1f} s" if np.isfinite(to_target) else "never", f"{ends:.1f} s", f"{accuracies:.1%}"]
