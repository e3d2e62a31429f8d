"""The limits: what cards can do at most, and the least time that an op's operations and bytes take on one.

Everything here is computed, nothing measured. Peaks are of dense matrices at the boost clock.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpucnn.benchmark.suites import Task


@dataclass(frozen=True)
class Card:
    """A GPU's peaks: TFLOP/s by precision (fp32 without tensor cores), memory in TB/s, and who says so."""

    name: str
    peaks: dict[str, float]
    memory: float
    source: str


_HOPPER = "NVIDIA H100 Tensor Core GPU Architecture (white paper), table 2"
CARDS = {
    card.name: card
    for card in (
        Card("H200", {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4}, 4.8,
             "NVIDIA H200 Tensor Core GPU (data sheet), SXM; rates without sparsity as the H100's"),
        Card("H100", {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4}, 3.35, f"{_HOPPER}, SXM5"),
        Card("A100", {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0}, 2.039,
             "NVIDIA A100 Tensor Core GPU (data sheet), SXM 80 GB"),
        Card("RTX 4090", {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2, "fp16": 165.2}, 1.008,
             "NVIDIA Ada GPU Architecture (white paper), appendix A; sums in float32"),
    )
}  # fmt: skip
USUAL_CARDS = ("H200", "RTX 4090")


@dataclass(frozen=True)
class Limits:
    """What a device can do at most: FLOP/s, and bytes/s of its memory. `source` says how that is known."""

    name: str
    flops: float
    bytes: float
    source: str

    def seconds(self, flops: float, bytes: float) -> float:
        """The least time for so much work: the longer of computing and of moving, as if both went on at once."""
        return max(flops / self.flops, bytes / self.bytes)

    def bound_by(self, flops: float, bytes: float) -> str:
        """ "compute" or "memory", whichever takes longer."""
        return "compute" if flops / self.flops >= bytes / self.bytes else "memory"


def limits_of_card(name: str, precision: str) -> Limits:
    """Those of a card of the table. Raises ValueError, naming the cards, for another."""
    for card in CARDS.values():
        if card.name.lower().replace(" ", "") == name.lower().replace(" ", "").replace("-", ""):
            return Limits(card.name, card.peaks[precision] * 1e12, card.memory * 1e12, card.source)
    raise ValueError(f"--card {name!r} is not known; the cards are {', '.join(CARDS)}")


def limits_of_gpu(gpu: str, precision: str) -> Limits | None:
    """Those of the card that a driver's name of a GPU is of ("NVIDIA H200"), None if it is not in the table."""
    return next((limits_of_card(name, precision) for name in CARDS if name in gpu), None)


def instruction_mix() -> list[tuple[str, int, float]]:
    """(kernel, instructions of its hot loop, share of them that multiplies and adds), from docs/compile_gate.csv.

    The compile gate writes that file in a checkout: it disassembles what NVRTC made, without running it. Nothing where
    there is none.
    """
    path = checkout() / "docs" / "compile_gate.csv"
    if not path.exists():
        return []
    best: dict[str, tuple[int, int]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            products = int(row.get("loop_tensor") or 0) + int(row.get("loop_fma") or 0)
            if row.get("scalar") == "float" and products > best.get(row["kernel"], (0, 0))[0]:
                best[row["kernel"]] = products, int(row["loop_instructions"])
    return [(kernel, every, products / every) for kernel, (products, every) in sorted(best.items())]


def checkout() -> Path:
    """The folder that holds the package: a checkout's root, where it is one (`in_checkout`)."""
    return Path(__file__).parent.parent.parent


def in_checkout() -> bool:
    """Whether this is a checkout rather than an installed package."""
    return (checkout() / "pyproject.toml").exists() and (checkout() / "bench").is_dir()


def bounds(tasks: Iterable[Task], cards: Iterable[str], precision: str) -> list[tuple[Task, list[tuple[float, str]]]]:
    """For each task (seconds, what bounds them) on each card."""
    limits = [limits_of_card(card, precision) for card in cards]
    found = []
    for task in tasks:
        work = task.flops, task.bytes(precision)
        found.append((task, [(one.seconds(*work), one.bound_by(*work)) for one in limits]))
    return found


def time_text(seconds: float) -> str:
    """ "1.23 ms": three digits and the unit that suits."""
    if not math.isfinite(seconds):
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size * 0.9995:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds / 1e-9)} ns"


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
