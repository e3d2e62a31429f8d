"""Measured choices of kernels: the files that `gpucnn tune` writes, and when they are used: use_tuning, GPUCNN_TUNING.

Without a file the choice is a pure function of the problem (`variants.usual`). With one it is the file's for the
problems that it lists, and other bits may come out, since a sum may have another order: the same for the same file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpucnn.atomic import write_text
from gpucnn.backends.precision import PRECISIONS
from gpucnn.backends.variants import Convolution, Problem, Product, Variant, candidates, usual
from gpucnn.geometry import Window

if TYPE_CHECKING:
    from gpucnn.devices import Device

FORMAT = 1
OFF, OWN = "off", ""  # what GPUCNN_TUNING may say besides a path: no file, and the device's own
_OPERATIONS = {"matmul": Product} | dict.fromkeys(
    ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight"), Convolution
)
_SCALARS = ("float", "double", "float16", "bfloat16")
_WINDOW = ("kernel", "stride", "padding", "dilation")

_REMEDY = "gpucnn tune measures again, GPUCNN_TUNING=off uses none"

_allowed: ContextVar[bool] = ContextVar("gpucnn_tuning", default=True)
_logger = logging.getLogger("gpucnn")


@contextmanager
def use_tuning(enabled: bool = True) -> Iterator[None]:
    """Let kernels be chosen by measurements inside a with block, in this thread, or by their shapes alone.

    GPUCNN_TUNING=off does the same for a whole program. Without a file of `gpucnn tune` for this GPU both are the same.

    >>> with gpucnn.use_tuning(False):
    ...     y = model(images)  # the bits that another GPU of this kind has, whatever was measured here
    """
    token = _allowed.set(enabled)
    try:
        yield
    finally:
        _allowed.reset(token)


def wanted() -> str | None:
    """Which file is to be used now: a path, OWN for the device's own, None for none."""
    if not _allowed.get():
        return None
    name = os.environ.get("GPUCNN_TUNING", OWN)
    return None if name == OFF else name


# -- what a file holds -----------------------------------------------------------------------------------


class Measurement(NamedTuple):
    """The variant that was chosen, and the seconds that each candidate took, by their names."""

    chosen: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Tuning:
    """The measurements on a device. `identity` is what they depend on: GPU, driver, compiler, kernels."""

    identity: dict[str, str]
    measured: dict[Problem, Measurement]

    @cached_property
    def choices(self) -> dict[Problem, Variant]:
        """The variants of the problems for which another one was faster than the usual."""
        found = {}
        for problem, measurement in self.measured.items():
            if measurement.chosen != str(usual(problem)):
                found[problem] = next(v for v in candidates(problem) if str(v) == measurement.chosen)
        return found

    @cached_property
    def hash(self) -> str | None:
        """Equal for equal choices, whatever the times were; None where all are the usual ones, as without a file."""
        lines = sorted(f"{problem} {variant}" for problem, variant in self.choices.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] if lines else None

    def as_json(self) -> str:
        """The text of its file."""
        rows = ",\n".join(
            json.dumps({**_plain(problem), "usual": str(usual(problem)), **measurement._asdict()})
            for problem, measurement in self.measured.items()
        )
        head = json.dumps({"gpucnn_tuning": FORMAT, "device": self.identity, "hash": self.hash})
        return f'{head[:-1]}, "measured": [\n{rows}\n]}}\n'

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; its folder is made. Raises OSError if it can't be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.as_json())


def parse(text: str, identity: Mapping[str, str], capability: tuple[int, int] | None) -> Tuning:
    """What `Tuning.as_json` wrote. Raises ValueError, saying why, for a text that is damaged or of another device."""
    try:
        content = json.loads(text)
        if content["gpucnn_tuning"] != FORMAT:
            raise ValueError(f"it has the format {content['gpucnn_tuning']!r:.20}, not {FORMAT}")
        device, rows = content["device"], content["measured"]
        other = [
            f"{name} {device.get(name)!s:.60}, not {value}"
            for name, value in identity.items()
            if device.get(name) != value
        ]
        if other:
            raise ValueError(f"it was measured with {', '.join(other)}")
        return Tuning(dict(identity), dict(_measurement(row, capability) for row in rows))
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error!s:.80})") from error


def _measurement(row: dict[str, Any], capability: tuple[int, int] | None) -> tuple[Problem, Measurement]:
    if row["operation"] not in _OPERATIONS or row["scalar"] not in _SCALARS or row["precision"] not in PRECISIONS:
        raise ValueError(f"it is damaged (there is no {row['operation']!r:.30} in {row['scalar']!r:.20})")
    kind, given = _OPERATIONS[row["operation"]], row["shape"]
    numbers = {name: _whole(given[name]) for name in kind._fields if name not in ("window", "trans_a", "trans_b")}
    if kind is Convolution:
        kernel, stride, dilation = (_side(given[name], 2) for name in ("kernel", "stride", "dilation"))
        window = Window(kernel, stride, _side(given["padding"], 4, least=0), dilation)
        if numbers["c"] % numbers["groups"] or numbers["k"] % numbers["groups"]:
            raise ValueError(f"it is damaged (no {numbers['groups']} groups have {numbers['c']} channels)")
        shape: Convolution | Product = Convolution(**numbers, window=window)
    else:
        shape = Product(**numbers, trans_a=given["trans_a"] is True, trans_b=given["trans_b"] is True)
    problem = Problem(row["operation"], shape, row["scalar"], row["precision"], capability)
    seconds = {str(name): float(value) for name, value in row["seconds"].items()}
    known = set(map(str, candidates(problem)))
    if row["chosen"] not in known:
        raise ValueError(f"it chooses {row['chosen']!r:.40} for {problem.operation}, where there is no such kernel")
    for name in (row["chosen"], str(usual(problem)), *seconds):
        if not 0 < seconds.get(name, math.nan) < math.inf:
            raise ValueError(f"it is damaged ({name:.40} is said to take {seconds.get(name)} seconds)")
    return problem, Measurement(row["chosen"], seconds)


def _whole(value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or not least <= value < 2**31:
        raise ValueError(f"it is damaged (a shape with {value!r:.20})")
    return int(value)


def _side(values: Any, count: int, least: int = 1) -> Any:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"it is damaged (a window with {values!r:.40})")
    return tuple(_whole(value, least) for value in values)


def _plain(problem: Problem) -> dict[str, Any]:
    shape = problem.shape._asdict()
    window = shape.pop("window", None)
    if window is not None:
        shape |= {name: getattr(window, name) for name in _WINDOW}
    return {"operation": problem.operation, "shape": shape, "scalar": problem.scalar, "precision": problem.precision}


# -- where it is -----------------------------------------------------------------------------------------


def path_of(device: Device, name: str = OWN) -> Path:
    """The file of that name; by default the device's own: GPUCNN_CACHE or ~/.cache/gpucnn, tuning/NAME.json."""
    if name != OWN:
        return Path(name)
    from gpucnn.devices.base import cache_folder

    plain = re.sub(r"[^A-Za-z0-9]+", "-", f"{device.identity['name']} {device.identity['capability']}").strip("-")
    return cache_folder() / "tuning" / f"{plain}.json"


def stored(device: Device, name: str = OWN) -> Tuning | None:
    """What is stored for a device, or None if nothing is.

    Raises ValueError, with the remedy, for a file that is damaged or of another device, and FileNotFoundError if there
    is none of a name that is asked for.

    What is timed on a test instrument says nothing, so it has no file of its own.
    """
    if not device.identity or (name == OWN and device.name != "cuda"):
        return None
    path = path_of(device, name)
    if not path.exists():
        if name == OWN:
            return None
        raise FileNotFoundError(f"GPUCNN_TUNING names {path}, which does not exist: {_REMEDY}")
    return read(device, path)


def read(device: Device, path: Path) -> Tuning:
    """The tuning of a file. Raises ValueError, with the remedy, if it is damaged or of another device."""
    try:
        return parse(path.read_text("utf-8"), device.identity, device.capability)
    except (ValueError, OSError) as error:
        raise ValueError(f"the tuning {path} can't be used: {error}; {_REMEDY}") from error


def check_replaceable(path: Path) -> None:
    """Raises ValueError for a file that is no tuning, neither a damaged one nor another device's: it is to be written
    over or deleted, and may be anybody's."""
    if not path.exists():
        return
    with path.open("rb") as file:
        if not re.match(rb'\s*\{\s*"gpucnn_tuning"', file.read(100)):  # which `Tuning.as_json` begins with
            raise ValueError(f"{path} is no tuning, so it is neither replaced nor deleted; name another file")


def in_force(device: Device, name: str) -> Tuning | None:
    """The same for one that is to compute: what can't be used is logged as a warning, and not used."""
    try:
        tuning = stored(device, name)
    except (ValueError, OSError) as error:
        _logger.warning("%s", error)
        return None
    if tuning is not None and tuning.choices:
        count, path = len(tuning.choices), path_of(device, name)
        _logger.info("%d kernels are chosen by measurements, tuning %s of %s", count, tuning.hash, path)
    return tuning
