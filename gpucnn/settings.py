"""The settings of `gpucnn train`, as run.json and a model's description keep them. A file can lie: all is checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from gpucnn.data import Normalize
from gpucnn.names import is_showable

Settings = dict[str, Any]
Check = tuple[Callable[[Any], bool], str]  # whether a value will do, and in words what does
ModelName = Literal["lenet5", "lenet5-bn", "vgg-small", "resnet20", "resnet18", "resnet50", "x-or-not-x"]
OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]
ScheduleName = Literal["onecycle", "cosine", "step", "constant"]
PrecisionName = Literal["fp32", "tf32", "fp16", "bf16"]

MOST = 2**31  # epochs, images a step
PIXELS = 2**26  # of an image
CHANNELS, NUMBERS = 2**16, 4 * PIXELS  # of an image that a network takes
LARGEST = 1e300  # a learning rate, or what else has a fraction
PLACE = ("data", "held_out", "seed", "image_size", "gray")  # what says which images a model was trained on


def _is_whole(least: int, below: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < below


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < LARGEST


def _is_size(value: Any) -> bool:
    sides = isinstance(value, list) and len(value) == 2 and all(_is_whole(1, PIXELS)(side) for side in value)
    return sides and math.prod(value) <= PIXELS


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_showable, value))


def _are_mean_and_std(value: Any) -> bool:
    try:
        Normalize(*value)
    except (ValueError, TypeError, ArithmeticError):
        return False
    return isinstance(value, list | tuple)


def _whole(least: int, below: int) -> Check:
    return _is_whole(least, below), f"a whole number from {least} to {below - 1}"


def _one_of(names: Any) -> Check:
    return lambda value: isinstance(value, str) and value in get_args(names), f"one of {', '.join(get_args(names))}"


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check[0](value), check[1]


_NAME: Check = is_showable, "text that a terminal can show"
_YES_OR_NO: Check = lambda value: type(value) is bool, "true or false"
_CHECKS: dict[str, Check] = {
    "data": _NAME,
    "model": _or_none(_one_of(ModelName)),
    "epochs": _whole(1, MOST),
    "batch_size": _whole(1, MOST),
    "lr": _or_none((lambda value: _is_number(value) and value > 0, f"a number above 0 and below {LARGEST:g}")),
    "optimizer": _one_of(OptimizerName),
    "weight_decay": (_is_number, f"a number from 0 to below {LARGEST:g}"),
    "schedule": _one_of(ScheduleName),
    "precision": _or_none(_one_of(PrecisionName)),
    "augment": _YES_OR_NO,
    "held_out": _or_none((lambda value: _is_number(value) and 0 < value < MOST, f"a number above 0 and below {MOST}")),
    "seed": _whole(0, 2**64),
    "early_stopping": _or_none(_whole(1, MOST)),
    "image_size": _or_none((_is_size, f"a height and a width of at most {PIXELS} pixels together")),
    "gray": _YES_OR_NO,
    "start": _or_none(_NAME),
}
# What a model's description says of the images that it takes and of what it answers. Each may be missing, too.
_DESCRIBED: dict[str, Check] = {
    "classes": _or_none((_are_names, "a list of names that a terminal can show")),
    "normalise": _or_none((_are_mean_and_std, "a mean and a standard deviation above 0, numbers or one a channel")),
    "image_size": _CHECKS["image_size"],
    "channels": _or_none(_whole(1, CHANNELS)),
}


def check(settings: Any, names: Iterable[str] = _CHECKS, whose: str = "its ") -> None:
    """Raises ValueError unless these settings, all by default, are there and of a kind that the command could have."""
    if not isinstance(settings, dict):
        raise ValueError(f"{whose}settings are {_shown(settings)}")
    for name in names:
        if name not in settings and name != "precision":  # which earlier versions did not write
            raise ValueError(f"it has no {name}")
        is_right, right = _CHECKS[name]
        if not is_right(settings.get(name)):
            raise ValueError(f"{whose}{name} is {_shown(settings[name])}, not {right}")


def check_description(whose: str, description: dict[str, Any]) -> None:
    """Raises ValueError, beginning with `whose`, if a model's description says nonsense of its images or classes: what
    takes it at its word may then convert images to that size and print those names."""
    for name, (is_right, right) in _DESCRIBED.items():
        if not is_right(description.get(name)):
            raise ValueError(f"{whose}{name} is {_shown(description[name])}, not {right}")
    channels, size = description.get("channels") or 1, description.get("image_size") or [1, 1]
    if channels * math.prod(size) > NUMBERS:
        raise ValueError(f"{whose}image_size is {size}, which is too large for {channels} channels")


def checked_place(path: Path, trained_on: Any) -> Settings | None:
    """What a model says of the images it was trained on: their name at least. Raises ValueError, with the path, if that
    makes no sense."""
    if trained_on is None:
        return None
    try:
        check(trained_on, ["data", *(name for name in PLACE if isinstance(trained_on, dict) and name in trained_on)])
    except ValueError as error:
        raise ValueError(f"{path}: what it says it was trained on can't be: {error}") from error
    place: Settings = trained_on
    return place


def read_run(folder: Path) -> dict[str, Any] | None:
    """What folder/run.json holds, None without one. Raises ValueError if that can't be what a training wrote."""
    path = folder / "run.json"
    if not path.exists():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict):
            raise ValueError(f"it holds {_shown(run)}")
        check(run.get("settings"))
        wanted: dict[str, Callable[[Any], bool]] = {"started": is_showable}
        if "samples" in run:  # which earlier versions did not write
            wanted |= {"samples": lambda value: isinstance(value, list)}
        if "finished" in run:
            wanted |= {"finished": is_showable, "epochs": _is_whole(1, MOST), "accuracy": _is_number}
        for name, is_right in wanted.items():
            if not is_right(run.get(name)):
                raise ValueError(f"its {name} is {_shown(run.get(name))}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); choose another folder (--out) or --overwrite") from error
    return run


def _shown(value: Any) -> str:
    return ascii(value) if len(ascii(value)) < 60 else f"{ascii(value)[:60]}…"
