"""The networks that the page can show: those named on the command line, trained runs, or one trained for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gpucnn
from gpucnn import data, optim, train
from gpucnn.atomic import check_writable, make_folder
from gpucnn.backends import use_backend
from gpucnn.checkpoint import describe_input, save_model
from gpucnn.data import Dataset, Normalize
from gpucnn.nn import Module, models

FIRST = "lenet5-mnist-5k.safetensors"  # in the folder demo of the cache
EPOCHS = 12  # of its training
MOST_MODELS = 4  # kept in memory
_DIGITS = [str(digit) for digit in range(10)]

Description = dict[str, Any]
Read = Callable[[Path], tuple[Module, Description, int]]


class _OnPage(train.Callback):
    """Writes down how far a training is."""

    def __init__(self, progress: dict[str, Any]) -> None:
        self.progress = progress

    def on_batch_end(self, state: train.TrainingState) -> None:
        done = (state.epoch - 1) * len(state.train) + state.batch
        self.progress.update(
            epoch=state.epoch,
            epochs=state.epochs,
            share=done / (state.epochs * len(state.train)),
            accuracy=state.epoch_accuracy,
        )


def train_first(path: Path, progress: dict[str, Any]) -> None:
    """Train LeNet-5 on mnist-5k for a short while and write it, whole or not at all; `progress` tells how far it is.

    What is held out is what `gpucnn train` holds out, so `gpucnn evaluate` measures the file on the same images.
    """
    make_folder(path.parent, "GPUCNN_DATA")
    check_writable(path)
    settings = {"data": "mnist-5k", "held_out": None, "seed": 0, "image_size": None, "gray": False, "model": "lenet5"}
    rest, held_out = data.split(data.load("mnist-5k"), 0.2)
    with use_backend("numpy"):
        gpucnn.manual_seed(0)
        model = models.LeNet5()
        loader = data.Loader(rest, 64, shuffle=True, augment=data.RandomAffine(15, (0.12, 0.12), (0.85, 1.15)))
        optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=2e-3, nesterov=True)
        train.fit(
            model,
            loader,
            epochs=EPOCHS,
            optimizer=optimizer,
            scheduler=optim.OneCycleLR(optimizer, 0.1, EPOCHS * len(loader)),
            callbacks=[_OnPage(progress)],
            progress=False,
        )
        accuracy = train.evaluate(model, data.Loader(held_out, 256)).accuracy
    save_model(model, path, **describe_input(loader), trained_on=settings, accuracy=accuracy)


@dataclass(frozen=True)
class Entry:
    """A network that can be chosen: `id` in addresses, `name` and `about` for people."""

    id: str
    name: str
    about: str
    path: Path


@dataclass
class Network:
    """A network in memory, on one backend, and the images that it takes."""

    model: Module
    channels: int
    size: tuple[int, int]
    classes: tuple[str, ...]
    normalise: Normalize | None
    trained_on: dict[str, Any] | None

    @property
    def of_digits(self) -> bool:
        """Whether it was trained on images like MNIST's, which are centred in a certain way."""
        return self.channels == 1 and list(self.classes) == _DIGITS and min(self.size) >= 12

    def prepared(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """A stored image [H, W, C] as the network takes it: float32 [C, H, W], normalised."""
        floats = data.to_float(image[None]).transpose(0, 2, 3, 1)
        if self.normalise is not None:
            floats = self.normalise(floats)
        return np.ascontiguousarray(floats.transpose(0, 3, 1, 2)[0])


@dataclass
class Networks:
    """All networks that can be chosen. `read` reads a model, `held_out` finds the images that a training held out."""

    entries: dict[str, Entry]
    read: Read
    held_out: Callable[[dict[str, Any]], Dataset]
    progress: dict[str, Any] = field(default_factory=dict)  # of a first training, while it goes on
    _loaded: dict[tuple[str, str], Network] = field(default_factory=dict)
    _images: dict[str, Dataset] = field(default_factory=dict)

    def get(self, id: str, backend: str) -> Network:
        """A network on a backend. Raises LookupError for an id that is not listed; what reading it raises."""
        if id not in self.entries:
            raise LookupError(f"there is no network {id!r}; there are {', '.join(self.entries)}")
        network = self._loaded.pop((id, backend), None) or self._read(self.entries[id].path, backend)
        self._loaded[id, backend] = network  # the last one used is the last one
        while len(self._loaded) > MOST_MODELS:
            del self._loaded[next(iter(self._loaded))]
        return network

    def _read(self, path: Path, backend: str) -> Network:
        with use_backend(backend):
            model, description, _ = self.read(path)
            model.to(backend)
        if "image_size" not in description or description.get("channels") not in (1, 3):
            raise ValueError(
                f"{path} does not say what images it takes; save it with save_model(…, image_size=[H, W], channels=1)"
            )
        channels, (h, w) = description["channels"], description["image_size"]
        normalise = description.get("normalise")
        outputs = train.predict(model, np.zeros((channels, h, w), np.float32)).size
        names = tuple(description.get("classes") or map(str, range(outputs)))
        if len(names) != outputs:
            raise ValueError(f"{path} names {len(names)} classes and has {outputs} outputs")
        return Network(
            model,
            channels,
            (h, w),
            names,
            None if normalise is None else Normalize(*normalise),
            description.get("trained_on"),
        )

    def samples(self, id: str, backend: str, count: int, seed: int) -> tuple[NDArray[Any], list[str]]:
        """Images [N, H, W, C] that the network has not been trained on, and their classes: one of each class first.

        Raises FileNotFoundError if it does not say what it was trained on, or that is not on this machine.
        """
        network = self.get(id, backend)
        if id not in self._images:
            if network.trained_on is None:
                raise FileNotFoundError("the network does not say what it was trained on, so there are no samples")
            name = network.trained_on["data"]
            here = [source.name for source in data.available() if source.here]
            if name not in here and not Path(name).exists():
                raise FileNotFoundError(f"{name}, which the network was trained on, is not on this machine")
            self._images[id] = self.held_out(network.trained_on)
        images = self._images[id]
        order = np.random.default_rng(seed).permutation(len(images))
        firsts = np.unique(images.labels[order], return_index=True)[1]
        chosen = order[[*firsts, *np.setdiff1d(np.arange(len(order)), firsts)][:count]]
        stored, labels = images[chosen]
        return np.rint(data.to_float(stored).transpose(0, 2, 3, 1) * 255).astype(np.uint8), [
            images.classes[label] for label in labels
        ]


def find(given: Sequence[Path], runs: Path, cache: Path) -> dict[str, Entry]:
    """The networks to choose from: those that are given, then the runs in a folder, newest first; else the cache's."""
    paths = [*given, *(path for path in _runs(runs) if path not in given)]
    if not paths:
        about = f"LeNet-5, trained here on 4,000 handwritten digits for {EPOCHS} epochs"
        return {"0": Entry("0", "LeNet-5", about, cache / "demo" / FIRST)}
    return {str(n): Entry(str(n), str(path), _about(path), path) for n, path in enumerate(paths)}


def _runs(folder: Path) -> list[Path]:
    """The folders of runs that have ended with a model, the newest first."""
    models = [path for path in folder.glob("*/model.safetensors") if path.is_file()]
    return [path.parent for path in sorted(models, key=lambda path: -path.stat().st_mtime)]


def _about(path: Path) -> str:
    """A line about a run, if it is one."""
    try:
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
        settings = run["settings"]
        return f"{settings['model']} on {settings['data']}, {100 * run['accuracy']:.1f} % right on held-out images"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
