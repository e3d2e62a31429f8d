"""A fingerprint of training here: hashes of a small training, part by part, to compare with those of another place.

Two fingerprints that are equal stand for two places where the same training has the same bits; of two that differ, the
first part that does says where it begins. What is promised to be equal is on the page "Determinism".
"""

from __future__ import annotations

import hashlib
import json as json_
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn import data, nn, optim
from gpucnn import functional as F
from gpucnn.backends import Backend, get_backend, get_precision, use_backend
from gpucnn.nn import Module
from gpucnn.optim import LRScheduler, Optimizer
from gpucnn.random import Generator, use_generator
from gpucnn.tensor import Tensor, no_grad

RECIPE = 1  # of the training; only fingerprints of one recipe can be compared
EPOCHS = 2
ON_THE_HOST = ("data", "initialisation")  # parts that no backend takes part in

Hashes = dict[str, str]


@dataclass(frozen=True)
class Fingerprint:
    """The hashes of each part, in the order in which they are computed, and what bits may depend on here."""

    surroundings: dict[str, str]
    parts: dict[str, Hashes]

    @property
    def hash(self) -> str:
        """One for all parts."""
        return _digest(json_.dumps([RECIPE, *self.parts.items()]).encode(), 16)

    def part_hash(self, part: str) -> str:
        """One for all pieces of a part."""
        return _digest(json_.dumps([*self.parts[part].items()]).encode(), 8)

    def as_json(self) -> str:
        """All of it, as `read` takes it."""
        content = {"recipe": RECIPE, "hash": self.hash, "surroundings": self.surroundings, "parts": self.parts}
        return json_.dumps(content, indent=2, ensure_ascii=False) + "\n"


def fingerprint(backend: str | Backend | None = None) -> Fingerprint:
    """Train twice, with SGD and with Adam, for a few seconds, and hash what comes of it on the way.

    Convolution (also in groups), batch norm, ReLU, max and average pooling, dropout, a linear layer; augmented images,
    a last short batch, two schedules. The random numbers of the process are left alone.
    """
    engine = get_backend(backend)
    loader = _loader()
    parts = {"data": _of_batches(loader)}
    for make in (_sgd, _adam):
        with use_backend(engine), use_generator(Generator(5)) as generator:
            parts |= _of_training(make, loader, generator)
    return Fingerprint(surroundings(engine), parts)


def read(path: str | Path) -> Fingerprint:
    """What `as_json` wrote. Raises FileNotFoundError, and ValueError for a file that holds something else."""
    try:
        content = json_.loads(Path(path).read_text("utf-8"))
        found = Fingerprint(dict(content["surroundings"]), {part: dict(p) for part, p in content["parts"].items()})
        whole = {"recipe": RECIPE, "hash": found.hash} == {name: content[name] for name in ("recipe", "hash")}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no fingerprint: write one with gpucnn fingerprint --json") from error
    if not whole:
        raise ValueError(f"{path} is a fingerprint of another recipe, or was changed: write it anew with this gpucnn")
    return found


def first_difference(one: Fingerprint, other: Fingerprint) -> tuple[str, str] | None:
    """(part, piece) of the first hash that is not the same in both, or None."""
    for part, pieces in one.parts.items():
        for piece, found in pieces.items():
            if other.parts.get(part, {}).get(piece) != found:
                return part, piece
    return None


# What may change bits: where it differs between two places, why that may be.
REASONS = {
    "gpucnn": "another version may compute in another way",
    "backend": "another backend adds up in another order",
    "device": "another device or compiler may round the array library's own sums and functions differently",
    "precision": "another precision multiplies other numbers",
    "tuning": "another kernel, chosen by measurements, adds up in another order",
    "machine": "another kind of processor has other instructions",
    "numpy": "another version of NumPy may add up in another order",
    "blas": "another BLAS, or the same one with the instructions of another processor, adds up in another order",
    "simd": "NumPy's own loops and functions are others for another set of instructions",
}
OF_THE_HOST = ("gpucnn", "machine", "numpy", "simd")  # the reasons that hold for the parts ON_THE_HOST


def why(part: str, one: Fingerprint, other: Fingerprint) -> str:
    """A sentence: why this part may differ between the two, or that it should not."""
    names = OF_THE_HOST if part in ON_THE_HOST else tuple(REASONS)
    here, there = one.surroundings, other.surroundings
    reasons = [
        f"{name} is {here.get(name, 'unknown')} here and {there.get(name, 'unknown')} there: {REASONS[name]}"
        for name in names
        if here.get(name) != there.get(name)
    ]
    if reasons:
        return f"That may be expected, since {'; '.join(reasons)}."
    return "Nothing differs here that may change it, so this is a bug, of gpucnn or of what it computes with."


def surroundings(backend: Backend) -> dict[str, str]:
    """What bits may depend on, and what they must not (threads, python, system), in words."""
    from threadpoolctl import threadpool_info

    from gpucnn.backends.numpy_parallel import thread_count

    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    config: Any = np.show_config(mode="dicts")
    return {
        "gpucnn": gpucnn.__version__,
        "backend": backend.name,
        "device": _device(backend),
        "precision": get_precision(),
        "tuning": backend.tuning_hash or "none",
        "machine": platform.machine(),
        "numpy": np.__version__,
        "blas": ", ".join(f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip() for p in blas),
        "simd": " ".join(config["SIMD Extensions"].get("found", ())),
        "threads": f"{thread_count()}, BLAS {', '.join(str(pool['num_threads']) for pool in blas)}",
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _device(backend: Backend) -> str:
    if backend.name == "emulator":
        from gpucnn.devices.emulator import compiler

        return compiler()
    if backend.name == "ptx":
        from gpucnn.devices import nvrtc

        return f"NVRTC {nvrtc.version()}"
    if backend.xp.__name__ == "cupy":
        runtime = backend.xp.cuda.runtime
        gpu = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        return f"{gpu}, CuPy {backend.xp.__version__}, CUDA {runtime.runtimeGetVersion()}"
    return "processor"


# -- the training ------------------------------------------------------------------------------------


def _loader() -> data.Loader:
    """52 images 10×9 in batches of 16, the last one short."""
    images = data.x_or_not_x(52, size=(10, 9), seed=5)
    vary = data.Compose([data.RandomAffine(15, (0.1, 0.1), (0.9, 1.1)), data.RandomHorizontalFlip()])
    return data.Loader(images, 16, shuffle=True, augment=vary, normalise=(0.2, 0.4), seed=5)


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, groups=2),
        nn.ReLU(),
        nn.AvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(12 * 1 * 2, 2),
    )


def _sgd(model: Module, steps: int) -> tuple[Optimizer, LRScheduler]:
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
    return optimizer, optim.OneCycleLR(optimizer, 0.1, steps)


def _adam(model: Module, steps: int) -> tuple[Optimizer, LRScheduler]:
    optimizer = optim.Adam(model.parameters(), 0.003)
    return optimizer, optim.WarmUp(optim.CosineAnnealingLR(optimizer, steps), 3)


def _of_batches(loader: data.Loader) -> Hashes:
    return {
        f"epoch {e}, batch {b}: {name}": _hash(array)
        for e in range(EPOCHS)
        for b, batch in enumerate(loader.epoch(e))
        for name, array in zip(("images", "labels"), batch, strict=True)
    }


def _of_training(
    make: Callable[[Module, int], tuple[Optimizer, LRScheduler]], loader: data.Loader, generator: Generator
) -> dict[str, Hashes]:
    model = _network()
    steps = EPOCHS * len(loader)
    optimizer, schedule = make(model, steps)
    name = type(optimizer).__name__
    parts = {"initialisation": _of_model(model)}
    losses: list[str] = []
    for e in range(EPOCHS):
        for images, labels in loader.epoch(e):
            first = not losses
            optimizer.zero_grad()
            layers: Hashes = {}
            watching = _watch(model, layers) if first else []
            loss = F.cross_entropy(model(_tensor(images)), labels)
            for hook in watching:
                hook.remove()
            loss.backward()
            if first:
                parts["step 1, forward"] = layers | {"loss": _hash(loss)}
                parts["step 1, gradients"] = {n: _hash(p.grad) for n, p in model.named_parameters()}
            optimizer.step()
            schedule.step()
            losses.append(float(loss.item()).hex())
            if first:
                parts[f"{name}, after step 1"] = _of_state(model, optimizer)
    parts[f"{name}, after step {steps}"] = {
        "losses": _digest(" ".join(losses).encode(), 8),
        "random state": _digest(json_.dumps(generator.state()).encode(), 8),
        **_of_state(model, optimizer),
    }
    parts[f"{name}, predictions"] = _of_predictions(model, loader)
    return parts


def _tensor(images: np.ndarray[Any, Any]) -> Tensor:
    backend = get_backend()
    return Tensor(backend.asarray(images, np.float32), backend)


def _watch(model: Module, layers: Hashes) -> list[Any]:
    def hook_of(name: str) -> Callable[[Module, Any, Any], None]:
        def hook(module: Module, inputs: Any, output: Tensor) -> None:
            layers[f"layer {name} ({type(module).__name__})"] = _hash(output)

        return hook

    return [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules() if name]


def _of_model(model: Module) -> Hashes:
    return {name: _hash(value) for name, value in model.state_dict().items()}


def _of_state(model: Module, optimizer: Optimizer) -> Hashes:
    state = optimizer.state_dict()
    moments = {f"moment {name}": _hash(array) for name, array in state["arrays"].items()}
    return {"learning rate": float(optimizer.lr).hex(), **_of_model(model), **moments}


def _of_predictions(model: Module, loader: data.Loader) -> Hashes:
    model.eval()
    with no_grad():
        scores = model(_tensor(data.to_float(loader.dataset[:][0])))
        return {"scores": _hash(scores), "probabilities": _hash(scores.softmax(1))}


def _hash(value: Any) -> str:
    """Of type, shape and bits."""
    array = np.asarray(value.numpy() if isinstance(value, Tensor) else value)
    bits = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return _digest(f"{array.dtype} {array.shape} ".encode() + bits, 8)


def _digest(content: bytes, size: int) -> str:
    return hashlib.blake2b(content, digest_size=size).hexdigest()


# -- the command -------------------------------------------------------------------------------------


def run(backend: str | None = None, json: bool = False, compare: Path | None = None) -> int:
    """Print the fingerprint, or how it differs from the one in a file; 1 if it does, else 0."""
    other = None if compare is None else read(compare)
    found = fingerprint(backend)
    if json:
        print(found.as_json(), end="")
    else:
        _print(found)
    if other is None:
        return 0
    where = first_difference(found, other)
    if where is None:
        answer = f"equal to {compare}"
    else:
        part, piece = where
        answer = f"differs from {compare}, first in {part}: {piece}. {why(part, found, other)}"
    print(answer, file=sys.stderr if json else sys.stdout)
    return int(where is not None)


def _print(found: Fingerprint) -> None:
    told = {name: text for name, text in found.surroundings.items() if name != "simd"}
    width = max(map(len, (*found.parts, *told)))
    for name, text in told.items():
        print(f"{name:<{width}}  {text}")
    print()
    for part in found.parts:
        print(f"{part:<{width}}  {found.part_hash(part)}")
    print(f"\n{'fingerprint':<{width}}  {found.hash}")
