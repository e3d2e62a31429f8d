"""One run from its arguments to its report: `gpucnn bench`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpucnn.backends import INSTRUMENTS
from gpucnn.backends.precision import PRECISIONS
from gpucnn.benchmark import measure, processes, providers, real_work, report, roofline
from gpucnn.benchmark.providers import Provider
from gpucnn.benchmark.records import Row, Run
from gpucnn.benchmark.reference import NetworkProblem, OpProblem, pose
from gpucnn.benchmark.suites import PASSES, SUITES, Network, Op, Task, tasks

SHARES = {"ops": 0.5, "networks": 0.32, "startup": 0.1, "memory": 0.08}  # of the budget; what one leaves, others get
BUDGET, QUICK_BUDGET = 570.0, 45.0  # seconds: with what comes before and after, ten minutes and one
MEASURED_HERE = ("ops", "networks")  # in this process; the other suites need one for each measurement
REAL_WORK = "real-work"
INSTRUMENT = (
    "{} is a test instrument: it runs a GPU's threads on the CPU to find bugs, and its times say nothing about any "
    "GPU; choose numpy or cuda"
)


@dataclass(frozen=True)
class Request:
    """What is asked for. `out` is the folder for runs; `card` is for the analytic half, where there is no GPU."""

    suites: tuple[str, ...] = ()
    pattern: str | None = None
    passes: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    batches: tuple[int, ...] | None = None
    precision: str = "fp32"
    threads: int = 2
    budget: float | None = None
    quick: bool = False
    out: Path | None = None
    readme: bool = False
    cards: tuple[str, ...] = roofline.USUAL_CARDS
    seeds: int = 5

    def check(self) -> None:
        """Raises ValueError, naming the choices, for what does not exist, before any work."""
        for what, given, known in (
            ("suite", self.suites, (*SUITES, REAL_WORK)),
            ("--pass", self.passes or (), PASSES),
            ("--precision", (self.precision,), PRECISIONS),
            ("--providers", self.providers or (), (*providers.NAMES, *INSTRUMENTS)),
        ):
            for value in given:
                if value not in known:
                    shown = ", ".join(one for one in known if one not in INSTRUMENTS)
                    raise ValueError(f"{what} {value!r} does not exist; there are {shown}")
        for name in (*(self.providers or ()), os.environ.get("GPUCNN_BACKEND")):
            if name in INSTRUMENTS:
                raise ValueError(INSTRUMENT.format(name))
        for card in self.cards:
            roofline.limits_of_card(card, self.precision)
        if any(n < 1 for n in self.batches or ()):
            raise ValueError(f"--batch must be 1 or more, got {self.batches}")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"--budget must be above 0 seconds, got {self.budget:g}")
        if self.readme and not roofline.in_checkout():
            raise ValueError("--readme changes the README of a checkout, and gpucnn is installed without one here")
        if REAL_WORK in self.suites and len(self.suites) > 1:
            raise ValueError(f"{REAL_WORK} takes minutes and is a run of its own; ask for it alone")

    def seconds(self) -> float:
        """The budget."""
        return self.budget or (QUICK_BUDGET if self.quick else BUDGET)

    def folder(self) -> Path:
        """Where runs are kept."""
        usual = roofline.checkout() / "bench" / "results" if roofline.in_checkout() else Path("gpucnn-bench")
        return self.out or usual

    def chosen(self, gpu: bool) -> dict[str, list[Task]]:
        """The tasks by suite. Raises ValueError if the filters leave none."""
        usual = 1 if self.quick else 64 if gpu else 8
        found = {
            suite: tasks(suite, self.batches, self.pattern, self.passes, usual)
            for suite in SUITES
            if suite in (self.suites or SUITES)
        }
        if not any(found.values()):
            given = {"-k": self.pattern, "--pass": self.passes}
            shown = " and ".join(f"{name} {value!r}" for name, value in given.items() if value)
            raise ValueError(
                f"nothing in {', '.join(found)} matches {shown}; `gpucnn bench --list` shows what there is"
            )
        return found


def run(request: Request, console: Any) -> int:
    """Measure, keep, report. The exit code: 130 if Ctrl-C ended it (what was measured is kept), 1 if we were wrong."""
    request.check()
    if request.suites == (REAL_WORK,):
        return _real_work(request, console)
    providers.limit_threads(request.threads)
    chosen_providers = _providers(request)
    session = _Session(request, chosen_providers, console)
    with session.progress():
        interrupted = session.measure()
    session.save()
    folder = session.path.parent
    report.show(session.run, console)
    written = report.write(session.run, folder)
    console.print(f"\nin {folder}: {', '.join(path.name for path in (session.path, *written))}", soft_wrap=True)
    if request.readme and not interrupted:
        report.update_readme(session.run, roofline.checkout() / "README.md")
        console.print("README.md has the new table")
    if interrupted:
        return 130
    return int(any(row.status == "wrong" and row.provider in providers.OURS for row in session.run.rows))


def show(path: Path, request: Request, console: Any) -> int:
    """Show an earlier run again, and write its page and plots anew."""
    request.check()
    earlier = Run.load(path)
    report.show(earlier, console)
    folder = path if path.is_dir() else path.parent
    report.write(earlier, folder)
    if request.readme:
        report.update_readme(earlier, roofline.checkout() / "README.md")
    return 0


def compare(before: Path, after: Path, console: Any) -> int:
    """Say what changed between two runs."""
    table, summary = report.comparison(Run.load(before), Run.load(after))
    if table.rows:
        report.print_table(table, console)
    console.print(summary, soft_wrap=True)
    return 0


def listing(request: Request, console: Any) -> int:
    """Print what there is to measure, and by whom."""
    request.check()
    for suite, found in request.chosen(gpu=False).items():
        for name in dict.fromkeys(task.name for task in found):
            of_name = [task for task in found if task.name == name]
            parts, batches = ({getattr(t, what): None for t in of_name} for what in ("part", "batch"))
            shown = f", batch {', '.join(map(str, batches))}" if any(batches) else ""
            console.print(f"{suite:<9} {name:<44} {', '.join(parts)}{shown}", soft_wrap=True)
    for name in providers.NAMES:
        made = _made(name, request)
        console.print(f"provider  {name:<28} {made if isinstance(made, str) else made.version}", soft_wrap=True)
    return 0


def _made(name: str, request: Request) -> Provider | str:
    """The provider, or what it lacks."""
    try:
        return providers.make(name, request.precision, request.threads)
    except Exception as error:  # of an import that fails in whatever way
        return str(error) or type(error).__name__


def _providers(request: Request) -> list[Provider]:
    """Those asked for, or all that can run here. Raises RuntimeError for one that was asked for and can't."""
    found = []
    for name in request.providers or providers.NAMES:
        made = _made(name, request)
        if isinstance(made, Provider):
            found.append(made)
        elif request.providers:
            raise RuntimeError(f"--providers {name} can't run here: {made}")
    return found


def about(request: Request, chosen: Iterable[Provider]) -> dict[str, Any]:
    """What the report says of the run: code, machine, clocks, versions."""
    from gpucnn.backends import get_backend
    from gpucnn.verify import _about

    known: dict[str, Any] = dict(_about(get_backend("numpy"), request.precision))
    known = {
        name: known[name]
        for name in ("date", "commit", "gpucnn", "device", "system", "python", "numpy")
        if name in known
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known |= {"cores": cores, "threads": request.threads, "precision": request.precision, "machine": platform.machine()}
    query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
        known |= {"gpu": lines[0]} if lines else {}
    except (OSError, subprocess.SubprocessError):
        pass
    return known | {"providers": {one.name: one.version for one in chosen}}


@dataclass
class _Session:
    """A run while it is measured."""

    request: Request
    providers: list[Provider]
    console: Any
    path: Path = field(init=False)
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        gpu = any(provider.device == "gpu" for provider in self.providers)
        self.tasks = self.request.chosen(gpu)
        known = about(self.request, self.providers) | {"cards": list(self.request.cards)}
        self.run = Run(known, [])
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = self.request.folder() / "-".join([stamp, *([known["commit"]] if "commit" in known else [])])
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "run.jsonl"
        self.start = time.perf_counter()
        self._posed: tuple[Any, OpProblem | NetworkProblem] | None = None
        self._advance: Callable[[str], None] = lambda text: None
        self._skipping = ""  # the suite whose tasks are being skipped, one after the other

    @contextmanager
    def progress(self) -> Iterator[None]:
        """A bar with the time that is left, on a terminal."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]} left"))
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            count = sum(map(len, self.tasks.values()))
            shown = bar.add_task("benchmark", total=count, left="")

            def advance(text: str) -> None:
                left = max(self.left(), 0.0)
                bar.update(shown, advance=1, description=text, left=f"{int(left // 60)}:{int(left % 60):02}")

            self._advance = advance
            yield

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.request.seconds() - (time.perf_counter() - self.start)

    def measure(self) -> bool:
        """Measure all suites, and keep each task's rows at once. Whether Ctrl-C ended it."""
        try:
            self.run.about["cpu_share"] = round(measure.cpu_share(), 3)
            limits = measure.cpu_limits(0.3 if self.request.quick else 1.0)
            self.run.about["cpu_limits"] = limits
            waiting = dict(self.tasks)
            for suite, found in self.tasks.items():
                share = SHARES[suite] / sum(SHARES[name] for name in waiting)
                end = self.left() * (1 - share)  # what must be left for the others when this suite is done
                for i, task in enumerate(found):
                    seconds = self.left() - end
                    self._one(task, seconds, len(found) - i, limits)
                    self._advance(f"{suite}: {task}")
                waiting.pop(suite)
            self.run.about["cpu_share"] = min(self.run.about["cpu_share"], round(measure.cpu_share(), 3))
        except KeyboardInterrupt:
            self.run.about["interrupted"] = "by Ctrl-C; what was measured until then is here"
            return True
        return False

    def _one(self, task: Task, left: float, tasks_left: int, limits: dict[str, float]) -> None:
        why = self._too_much(task, left, limits)
        if why:
            here = [p for p in self.providers if task.suite in MEASURED_HERE or processes.takes_part(task, p)]
            rows = [measure.row(task, p, self.request.precision, "skipped", reason=why) for p in here]
        elif task.suite in MEASURED_HERE:
            rows = self._timed(task, left / tasks_left)
        else:
            rows = processes.measure(
                task, self.providers, self.request.precision, self.request.threads, left / tasks_left
            )
        self.run.rows.extend(rows)
        self.save()
        self._print(task, rows)

    def _timed(self, task: Task, seconds: float) -> list[Row]:
        """The passes of an op share their inputs and their reference."""
        precision = self.request.precision
        key = (task.what, task.batch, task.part if isinstance(task.what, Network) else "")
        if self._posed is None or self._posed[0] != key:
            self._posed = None  # frees it before the next is made
            try:
                self._posed = key, pose(task, precision)
            except Exception as error:  # then no result can be judged, and the other tasks go on
                why = f"the float64 reference: {measure.reason(error)}"
                return [measure.row(task, p, precision, "failed", reason=why) for p in self.providers]
        return measure.measure(task, self.providers, precision, seconds, self._posed[1])

    def _too_much(self, task: Task, left: float, limits: dict[str, float]) -> str:
        """Why a task does not fit what is left of the suite's time, or memory; nothing if it does."""
        if left <= 0:
            return f"the {self.request.seconds():.0f} s of the budget are used up; --budget gives more"
        if not isinstance(task.what, Network | Op) or task.suite not in MEASURED_HERE:
            return ""
        on_cpu = sum(provider.device == "cpu" for provider in self.providers)
        once = max(task.flops / limits["flops"], task.bytes() / limits["bytes"])
        repeated = 2 if isinstance(task.what, Op) else 2.5  # small products do not reach the limit
        needs = (
            repeated * once * (8 if isinstance(task.what, Network) else 3)
        )  # the reference, in float64, and its bounds
        needs += repeated * once * on_cpu * (2 + measure.LEAST_ROUNDS)
        if needs > left:
            return f"would take about {needs:,.0f} s of the {left:.0f} s left for it; --budget gives more time"
        if isinstance(task.what, Network):
            memory = 8 * 4 * task.what.activations() * task.batch
            free = _free_memory()
            if memory > free:
                return f"needs about {memory / 2**30:,.0f} GiB of memory and {free / 2**30:,.0f} GiB are free"
        return ""

    def save(self) -> None:
        """Write what is there."""
        self.run.save(self.path)

    def _print(self, task: Task, rows: Sequence[Row]) -> None:
        if not rows:
            return  # nobody takes part: without a GPU no kernel is compiled
        cells = [
            f"{row.provider} {report._value(row) if row.values else row.status.upper()}"
            for row in rows
            if row.status != "unsupported"
        ]
        if rows and all(row.status == "skipped" for row in rows):
            cells = [f"skipped: {rows[0].reason}"]
            if task.suite == self._skipping:
                return  # the report lists them all
        self._skipping = task.suite if cells[:1] and cells[0].startswith("skipped") else ""
        self.console.print(f"{task}: {', '.join(cells)}", soft_wrap=True)


def _free_memory() -> float:
    """Bytes; infinite where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return float("inf")
    line = next(line for line in path.read_text("utf-8").splitlines() if line.startswith("MemAvailable"))
    return 1024.0 * int(line.split()[1])


def _real_work(request: Request, console: Any) -> int:
    """Train to the targets; resumable by seed."""
    providers.limit_threads(request.threads)
    names = [name for name in request.providers or providers.NAMES if real_work.able(name)]
    lacking = {name: made for name in names if isinstance(made := _made(name, request), str)}
    for name in request.providers or ():
        if name not in names or name in lacking:
            raise RuntimeError(
                f"--providers {name} can't do real work here: {lacking.get(name, 'it trains no networks')}"
            )
    works = [work for work in real_work.WORKS if request.pattern is None or request.pattern in work.name]
    if not works:
        raise ValueError(f"-k {request.pattern!r} matches neither of {', '.join(w.name for w in real_work.WORKS)}")
    for work in works:
        work.parts()  # what is missing is missed now
    known = about(request, [])
    conditions = ", ".join(str(known.get(name)) for name in ("commit", "device", "gpu", "threads", "numpy"))
    folder = request.folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "real-work.jsonl"
    able = [name for name in names if name not in lacking]
    try:
        outcomes = real_work.run(
            works, able, request.seeds, conditions, path, lambda text: console.print(text, soft_wrap=True)
        )
    except KeyboardInterrupt:
        console.print(f"stopped; the seeds that were done are in {path}, and the same command goes on")
        return 130
    for table in real_work.tables(outcomes):
        report.print_table(table, console)
    console.print(f"\nin {path}", soft_wrap=True)
    return 0
