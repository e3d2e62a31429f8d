"""Folders as Hugging Face lays them out: what `Module.save_pretrained` and `Module.from_pretrained` write and read.

config.json says what the model is and what its images and outputs mean, model.safetensors holds the weights under
PyTorch's names. Nothing in a folder is executed: config.json names classes of gpucnn.nn and their arguments.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.atomic import write_atomically, write_text
from gpucnn.backends import Backend, get_backend
from gpucnn.checkpoint import (
    Arrays,
    Description,
    _built,
    _check_state,
    _dtype,
    _numpy_state,
    _read,
    _read_json,
    describe,
    write_arrays,
)
from gpucnn.data import Normalize
from gpucnn.nn.module import Module
from gpucnn.settings import check_description

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TRIES, PAUSE = 10, 0.2  # of a reader, and the seconds between them, while another process writes the folder


def save(
    model: Module,
    folder: Path,
    classes: Sequence[str] | None,
    normalise: Normalize | tuple[Any, Any] | None,
    image_size: Sequence[int] | None,
    channels: int | None,
) -> None:
    """Write both files; a reader never sees new weights under an old description, if nobody else writes them too."""
    text = json.dumps(_config(model, classes, normalise, image_size, channels), indent=2, ensure_ascii=False) + "\n"
    arrays = _numpy_state(model)
    folder.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        write_arrays(temporary, arrays, {"format": "pt"})  # what the library transformers asks of a file
        (folder / CONFIG).unlink(missing_ok=True)

    write_atomically(folder / WEIGHTS, write)
    write_text(folder / CONFIG, text)


def _config(
    model: Module,
    classes: Sequence[str] | None,
    normalise: Normalize | tuple[Any, Any] | None,
    image_size: Sequence[int] | None,
    channels: int | None,
) -> dict[str, Any]:
    from gpucnn import __version__

    before = getattr(model, "config", {})
    config: dict[str, Any] = {
        "model_type": "gpucnn",
        "architectures": [type(model).__name__],
        "architecture": describe(model),
        "dtype": _dtype(model),
        "gpucnn_version": __version__,
    }
    if classes is not None:
        names = [str(name) for name in classes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"save_pretrained: each class needs a name of its own, twice there is {', '.join(twice)}")
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    else:
        config |= {name: before[name] for name in ("id2label", "label2id") if name in before}
    images: dict[str, Any] = {}
    if normalise is not None:
        given = normalise if isinstance(normalise, Normalize) else Normalize(*normalise)
        images |= {"image_mean": _numbers(given.mean), "image_std": _numbers(given.std)}
    if image_size is not None:
        images["size"] = {"height": int(image_size[0]), "width": int(image_size[1])}
    if channels is not None:
        images["num_channels"] = int(channels)
    images = {**before.get("preprocessing", {}), **images}
    if images:
        config["preprocessing"] = {"rescale_factor": 1 / 255, **images}
    return config


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in np.atleast_1d(values)]


def load(folder: Path, kind: type[Module], backend: str | Backend | None) -> tuple[Module, Description]:
    """The model of a folder, in evaluation mode, and what `load_model` would say of it. `kind`: what it must be."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; a model is loaded from a folder of this machine")
    path = folder / CONFIG
    config, weights, arrays = _read_folder(folder)
    description = _description(path, config)
    model = _built(path, description, arrays, backend, None if kind is Module else kind)
    if not isinstance(model, kind):
        raise ValueError(
            f"{folder} holds a {type(model).__name__}, no {kind.__name__}; nn.Module.from_pretrained takes any"
        )
    _check_state(weights, model, arrays)
    model.load_state_dict(arrays)
    model.config = config
    return (model if backend is None else model.to(get_backend(backend))).eval(), description


def _read_folder(folder: Path) -> tuple[dict[str, Any], Path, Arrays]:
    """config.json, and the weights of the same `save`: another process may be writing the folder meanwhile."""
    path = folder / CONFIG

    def text() -> bytes | None:
        return path.read_bytes() if path.is_file() else None  # `save` removes it before it writes the weights

    for attempt in range(TRIES):
        time.sleep(PAUSE if attempt else 0)
        before = text()
        if attempt and before is None:
            continue
        config = _read_json(path)
        _check_ours(path, config)
        single = (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file()
        weights = folder / (WEIGHTS if single else INDEX)
        arrays, _ = _read(weights)
        if text() == before:
            return config, weights, arrays
    raise ValueError(
        f"{path} changed or vanished {TRIES} times while {folder} was read: another process is writing to it, load the "
        "model again when that has ended"
    )


def _check_ours(path: Path, config: dict[str, Any]) -> None:
    if not isinstance(config.get("architecture"), dict):
        raise ValueError(
            f"{path} describes a model of another library ({config.get('model_type') or config.get('architectures')}); "
            "make the model yourself and fill it: load_model(file, model=…)"
        )


def _description(path: Path, config: dict[str, Any]) -> Description:
    """config.json as `load_model` gives what it found. Raises ValueError for entries that say nothing sensible."""
    description = {"architecture": config["architecture"], "dtype": config.get("dtype", "float32")}
    labels, images = config.get("id2label"), config.get("preprocessing", {})
    try:
        if labels is not None:
            description["classes"] = [str(labels[str(i)]) for i in range(len(labels))]
        if "image_mean" in images or "image_std" in images:
            means, stds = _numbers(images.get("image_mean", 0.0)), _numbers(images.get("image_std", 1.0))
            Normalize(means, stds)
            description["normalise"] = (means, stds)
        if "size" in images:
            description["image_size"] = [int(images["size"]["height"]), int(images["size"]["width"])]
        if "num_channels" in images:
            description["channels"] = int(images["num_channels"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: id2label or preprocessing can't be read: {type(error).__name__} {error}") from error
    check_description(f"{path}: in its description ", description)
    return description
