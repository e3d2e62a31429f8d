"""What a run measured, as JSON lines: one about the machine, then one for each row. And whether two runs differ.

Rows are never compared across precisions, nor a time with a number of bytes: a row's key holds both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpucnn.atomic import write_text

Status = Literal["measured", "wrong", "failed", "unsupported", "skipped"]
SIGNIFICANCE = 0.05  # the chance that a comparison of two equal runs finds anything at all
LEAST_CHANGE = 0.03  # smaller ones are not called a change: no two runs find the machine in quite the same state


@dataclass(frozen=True)
class Row:
    """One provider on one task. `values`: a measurement a round, in `unit`; rounds of the providers of a task go in
    turn, so their i-th values belong together. `host`: seconds to enqueue, on a GPU. `error`, `of_bound`: see
    `reference.Verdict`; `reason`: of a row without values."""

    suite: str
    name: str
    part: str
    batch: int
    provider: str
    precision: str
    status: Status
    unit: Literal["s", "bytes"] = "s"
    device: str = "cpu"
    values: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    error: float | None = None
    of_bound: float | None = None
    reason: str = ""
    flops: int = 0
    bytes: int = 0

    @property
    def task(self) -> tuple[str, str, str, int, str, str]:
        """What was measured, without by whom."""
        return self.suite, self.name, self.part, self.batch, self.precision, self.unit

    @property
    def key(self) -> tuple[Any, ...]:
        """What must agree for two rows to be of the same thing."""
        return *self.task, self.provider

    @property
    def median(self) -> float:
        """The median of the rounds; NaN without any."""
        return float(np.median(self.values)) if self.values else math.nan

    @property
    def spread(self) -> tuple[float, float]:
        """The 20th and the 80th percentile of the rounds."""
        low, high = np.percentile(self.values, [20, 80]) if self.values else (math.nan, math.nan)
        return float(low), float(high)


@dataclass(frozen=True)
class Run:
    """A run: what is known about it and the machine, and its rows in the order of measurement."""

    about: dict[str, Any]
    rows: list[Row]

    def tasks(self) -> dict[tuple[str, str, str, int, str, str], list[Row]]:
        """The rows by task, in order."""
        found: dict[tuple[str, str, str, int, str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.task, []).append(row)
        return found

    def save(self, path: Path) -> None:
        """Write all of it: whole or not at all."""
        lines = [json.dumps({"about": self.about}), *(json.dumps(_plain(row), allow_nan=False) for row in self.rows)]
        write_text(path, "\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run's file, or the folder that holds it as run.jsonl.

        Raises FileNotFoundError if there is none, and ValueError for a file that is none.
        """
        folder, path = path, path / "run.jsonl" if path.is_dir() else path
        if not path.exists():
            missing = f", which has no {path.name}" if folder.is_dir() else ""
            raise FileNotFoundError(f"there is no run in {folder}{missing}; `gpucnn bench` makes one and says where")
        try:
            first, *rest = (json.loads(line) for line in path.read_text("utf-8").splitlines())
            return cls(first["about"], [Row(**line) for line in rest])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no run of `gpucnn bench`: {error}") from error


def _plain(row: Row) -> dict[str, Any]:
    """What a line holds: values to six digits; no infinity and no NaN, which JSON lacks; no default but the status."""
    usual = Row("", "", "", 0, "", "", "skipped")
    line = {k: v for k, v in asdict(row).items() if k in _NAMES or v != getattr(usual, k)}
    for name in ("values", "host"):
        if name in line:
            line[name] = [float(f"{value:.6g}") for value in line[name]]
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}


_NAMES = ("suite", "name", "part", "batch", "provider", "precision", "status")


# -- comparing ---------------------------------------------------------------------------------------


def ratios(ours: Row, theirs: Row) -> list[float]:
    """How many times as fast (or as small) we are, for each round in which both were measured."""
    return [b / a for a, b in zip(ours.values, theirs.values, strict=False)]


@dataclass(frozen=True)
class Change:
    """One row in two runs. `ratio`: the later median over the earlier; `p`: corrected for the number of rows."""

    before: Row
    after: Row
    ratio: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether it exceeds the noise."""
        return self.p < SIGNIFICANCE and abs(math.log(self.ratio)) > math.log(1 + LEAST_CHANGE)


def compare(before: Run, after: Run) -> list[Change]:
    """The rows that both runs measured: two-sided Mann-Whitney tests over their rounds, p by Holm's correction."""
    earlier = {row.key: row for row in before.rows if row.values}
    pairs = [(earlier[row.key], row) for row in after.rows if row.values and row.key in earlier]
    corrected = holm([mann_whitney(a.values, b.values) for a, b in pairs])
    return [Change(a, b, b.median / a.median, p) for (a, b), p in zip(pairs, corrected, strict=True)]


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """The p-value that two samples are of one distribution (Mann & Whitney 1947), two-sided.

    By the normal approximation, with corrections for ties and continuity. 1 for samples without any difference.
    """
    values = np.concatenate([a, b])
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n, m, total = len(a), len(b), len(values)
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    ties = float((counts**3 - counts).sum())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = max(abs(u - n * m / 2) - 0.5, 0.0) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def holm(p_values: Iterable[float]) -> list[float]:
    """The p-values of m tests, so that the chance of any false finding stays what one test's is (Holm 1979)."""
    p = np.array(list(p_values), float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in corrected]
