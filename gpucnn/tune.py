"""Measuring which kernel is the fastest for each convolution and product of a model, on this device: `gpucnn tune`.

Right first: each candidate computes the problem with random numbers, and its result is held to float64 within the bound
that `gpucnn verify` has for it. Then in turns: what slows the machine slows all of them alike. Another variant than the
usual one is chosen if the median of its times is below every time of the usual one, and by MARGIN below their median.
"""

from __future__ import annotations

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from gpucnn.amp import autocast
from gpucnn.backends import INSTRUMENTS, Array, precision
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.precision import PRECISIONS
from gpucnn.backends.tuning import Measurement, Tuning, check_replaceable, path_of, stored
from gpucnn.backends.variants import Convolution, Problem, Product, Variant, candidates, usual
from gpucnn.creation import zeros
from gpucnn.devices import Device, KernelError
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.live import CaptureError
from gpucnn.nn import Module
from gpucnn.tensor import no_grad
from gpucnn.testing import Case, Evaluation, conv, dense, evaluate, normal
from gpucnn.verify import compared
from gpucnn.warmup import train_once

__all__ = ["Measured", "measure", "problems_of", "run", "tune"]

MARGIN = 0.03  # of the usual variant's median
LEAST_ROUNDS, MOST_ROUNDS = 5, 25
TURN_SECONDS = 0.002  # that a candidate is run for in a round, at least, if MOST_RUNS take so long
MOST_RUNS = 50
HOPELESS = 2.0  # times the fastest one's first turn, after which a candidate has no more turns
_DTYPES = {"float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16"}

# Seconds that the launches of a function take, which computes by this variant.
Timer = Callable[[Variant, Callable[[], object]], float]


@dataclass(frozen=True)
class Measured:
    """What was found out about a problem: times in seconds of the candidates that are right, by their names; why the
    others are not, in a line each."""

    problem: Problem
    usual: str
    chosen: str
    times: dict[str, list[float]]
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def medians(self) -> dict[str, float]:
        """The median of each candidate's times."""
        return {name: median(times) for name, times in self.times.items()}

    @property
    def measurement(self) -> Measurement:
        """What a tuning file holds of it."""
        return Measurement(self.chosen, self.medians)


# -- what a model asks for -------------------------------------------------------------------------------


def problems_of(
    model: Module,
    image_shape: Sequence[int],
    batch_size: int,
    capability: tuple[int, int] | None = None,
    compute_in: str | None = None,
    training: bool = True,
) -> list[Problem]:
    """The convolutions and products of a training step and an evaluation, or of the latter alone; those with most to
    compute come first. Nothing is computed.

    image_shape: [C, H, W]; compute_in: a precision of `train.fit`. Raises ValueError if the model does not take such
    images.
    """
    found: dict[Problem, None] = {}

    def noted(problem: Problem) -> Variant:
        found[problem] = None
        return usual(problem)

    backend = KernelBackend(RecorderDevice(capability), noted)
    twin = copy.deepcopy(model).to(backend)
    how: AbstractContextManager[None] = nullcontext() if compute_in is None else precision(compute_in)
    if compute_in in ("fp16", "bf16"):
        how = autocast(PRECISIONS[compute_in])
    with how, warnings.catch_warnings(action="ignore"):  # what the recorder returns is any number, also NaN
        if training:
            train_once(twin, image_shape, batch_size)
        else:
            with no_grad():
                twin.eval()(zeros(batch_size, *image_shape, backend=backend))
    return sorted((p for p in found if case_of(p)), key=lambda p: (-_terms(p), repr(p.shape)))


def _terms(problem: Problem) -> int:
    rows, columns, layers, terms = problem.matrix
    return rows * columns * layers * terms


def case_of(problem: Problem) -> tuple[Case, int] | None:
    """A case in which the problem is to be computed, and as which of its results; None for two transposed matrices."""
    s = problem.shape
    if isinstance(s, Convolution):
        top, bottom, left, right = s.window.padding
        case = conv(
            (s.n, s.c, s.h, s.w),
            (s.k, s.c // s.groups, *s.window.kernel),
            stride=s.window.stride,
            padding=(top, bottom, left, right),
            dilation=s.window.dilation,
            groups=s.groups,
        )
        return case, ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight").index(problem.operation)
    if s.trans_a and s.trans_b:
        return None
    a, b, result = (s.rows, s.depth), (s.depth, s.columns), 0
    if s.trans_b:  # the gradient of the first of two matrices, y's by b's
        a, b, result = (s.rows, s.columns), (s.columns, s.depth), 1
    elif s.trans_a:  # of the second one, a's by y's
        a, b, result = (s.depth, s.rows), (s.rows, s.columns), 2
    lead = () if s.batch == 1 else (s.batch,)
    return dense("matmul", (*lead, *a), (*lead, *b)), result


# -- measuring -------------------------------------------------------------------------------------------


def tune(
    problems: Iterable[Problem], backend: KernelBackend, budget: float = math.inf, timer: Timer | None = None
) -> Iterator[Measured]:
    """Measure problems on a backend's device, one after the other, until some `budget` seconds are used up.

    The variants that may be chosen are those that are right. timer: by default the device's own time.
    """
    todo, end, references = list(problems), time.perf_counter() + budget, _References()
    for i, problem in enumerate(todo):
        left = end - time.perf_counter()
        if left <= 0 and i:
            return
        yield measure(problem, backend, max(left, 0) / (len(todo) - i), timer, references)


def measure(
    problem: Problem,
    backend: KernelBackend,
    seconds: float = math.inf,
    timer: Timer | None = None,
    references: _References | None = None,
) -> Measured:
    """Verify and time every variant of a problem; the rounds after the first few end when the seconds are used up."""
    timer = timer or (lambda _, work: backend.device.time(work))
    start, right, wrong = time.perf_counter(), [], {}
    with precision(problem.precision):
        exact = (references or _References()).of(problem)
        for variant in candidates(problem):
            reason = _what_is_wrong(problem, variant, backend, exact)
            if reason:
                wrong[str(variant)] = reason
            else:
                right.append(variant)
        times = _in_turns(problem, right, backend, timer, start + seconds)
    first = str(usual(problem))
    if first in wrong or not right:
        return Measured(problem, first, first, times, wrong)
    return Measured(problem, first, fastest(first, times), times, wrong)


def fastest(usual: str, times: dict[str, list[float]]) -> str:
    """The candidate with the lowest median, if that is below every time of the usual one, and by MARGIN below its
    median; else the usual one."""
    medians = {name: median(values) for name, values in times.items()}
    best = min(medians, key=lambda name: medians[name])
    clear = medians[best] < min(times[usual]) and medians[best] <= (1 - MARGIN) * medians[usual]
    return best if clear else usual


class _References:
    """Cases evaluated in float64; the three problems of a convolution, which come after one another, share one."""

    def __init__(self) -> None:
        self._last: Evaluation | None = None
        self._dtype = ""

    def of(self, problem: Problem) -> Evaluation:
        found, dtype = case_of(problem), _DTYPES[problem.scalar]
        assert found is not None, f"{problem} has no case"
        case, _ = found
        if self._last is None or (str(self._last.case), self._dtype) != (str(case), dtype):
            self._last, self._dtype = evaluate(case, "numpy", dtype, precision="float64"), dtype
        return self._last


def _what_is_wrong(problem: Problem, variant: Variant, backend: KernelBackend, exact: Evaluation) -> str:
    """Why a variant is no choice: an error, or an element that is beyond its bound. Empty if it is right."""
    used = []

    def chooser(asked: Problem) -> Variant:
        if asked != problem:
            return usual(asked)
        used.append(asked)
        return variant

    try:
        results = compared(exact, KernelBackend(backend.device, chooser), _DTYPES[problem.scalar])
    except Exception as error:  # of a compiler, a driver, a kernel: the other variants go on
        try:
            backend.device.synchronize()
        except Exception as lost:  # a wild address, for one, ends the process's use of the GPU
            raise KernelError(
                f"since {variant} of {problem.operation} {problem.shape} ({error}) the device answers with errors only "
                f"({lost}); what was measured before is kept. Report it; a new process can use the GPU again"
            ) from error
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    found = case_of(problem)
    assert used, f"the case of {problem} does not compute it"
    assert found
    result = results[found[1]]
    return "" if result.passed else result.describe()


def _in_turns(
    problem: Problem, variants: list[Variant], backend: KernelBackend, timer: Timer, end: float
) -> dict[str, list[float]]:
    turns: list[tuple[Variant, Callable[[], object], int]] = []
    for variant in variants:
        run = work(problem, KernelBackend(backend.device, partial(_always, variant)))
        run()
        runs = min(max(round(TURN_SECONDS / max(backend.device.time(run), 1e-9)), 1), MOST_RUNS)
        turns.append((variant, _captured(backend.device, run, runs), runs))
    times: dict[str, list[float]] = {str(variant): [] for variant in variants}
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for variant, several, runs in turns:
            several()  # caches, and a clock that rises with work
            times[str(variant)].append(timer(variant, several) / runs)
        if not done:
            least = min(values[0] for values in times.values())
            turns = [t for t in turns if times[str(t[0])][0] <= HOPELESS * least or t[0] == usual(problem)]
    return times


def _always(variant: Variant, problem: Problem) -> Variant:
    return variant


def _captured(device: Device, run: Callable[[], object], runs: int) -> Callable[[], object]:
    """So many runs in a row, as a graph if the device can capture one: then Python takes no part in the time."""

    def several() -> None:
        for _ in range(runs):
            run()

    try:
        with device.measure() as arena:
            several()
        with device.capture(arena) as graph:
            several()
    except CaptureError:
        return several
    return graph.launch


def work(problem: Problem, backend: KernelBackend) -> Callable[[], Array]:
    """A function that computes a problem on random numbers."""
    s = problem.shape

    def array(*shape: int, seed: int = 0) -> Array:
        return backend.asarray(normal(*shape, seed=seed).make(_DTYPES[problem.scalar]))

    if isinstance(s, Product):
        a = array(s.batch, *((s.depth, s.rows) if s.trans_a else (s.rows, s.depth)))
        b = array(s.batch, *((s.columns, s.depth) if s.trans_b else (s.depth, s.columns)), seed=1)
        return lambda: backend.matmul(a, b, s.trans_a, s.trans_b)
    x, w = (s.n, s.c, s.h, s.w), (s.k, s.c // s.groups, *s.window.kernel)
    if problem.operation == "conv2d_forward":
        of_x, of_w = array(*x), array(*w, seed=1)
        return lambda: backend.conv2d_forward(of_x, of_w, None, s.window, s.groups)
    dy = array(s.n, s.k, s.p, s.q)
    if problem.operation == "conv2d_backward_input":
        of_w = array(*w, seed=1)
        return lambda: backend.conv2d_backward_input(dy, of_w, s.window, s.groups, (s.h, s.w))
    of_x = array(*x, seed=1)
    return lambda: backend.conv2d_backward_weight(dy, of_x, s.window, s.groups)


# -- the command -----------------------------------------------------------------------------------------


def run(
    problems: Sequence[Problem], backend: KernelBackend, name: str, budget: float, timer: Timer | None = None
) -> int:
    """Measure problems, keep what is found in the file of that name as it goes on, and print it. 0, or 1 if a variant
    was wrong. Raises ValueError, before any work, for a file that is no tuning."""
    from rich.console import Console
    from rich.progress import track

    path = path_of(backend.device, name)
    check_replaceable(path)
    kept = _kept(backend.device, name)
    found: list[Measured] = []
    measured = track(
        tune(problems, backend, budget, timer), "measuring", len(problems), console=Console(stderr=True),
        disable=not sys.stderr.isatty(), transient=True,
    )  # fmt: skip
    for one in measured:
        found.append(one)
        if one.usual not in one.wrong:
            kept[one.problem] = one.measurement
            Tuning(backend.device.identity, kept).save(path)
    right = [one for one in found if one.usual not in one.wrong]
    tuning = Tuning(backend.device.identity, {one.problem: one.measurement for one in right})
    show(tuning)
    for one in found:
        for variant, reason in one.wrong.items():
            print(f"WRONG, and not chosen: {variant} for {shown(one.problem)}: {reason}")
    if len(found) < len(problems):
        print(f"{len(problems) - len(found)} of {len(problems)} problems are left, since the budget of {budget:g} s is")
    print(f"{len(tuning.choices)} of {len(found)} problems are computed by another kernel than usual: {path}")
    return int(any(one.wrong for one in found))


def _kept(device: Device, name: str) -> dict[Problem, Measurement]:
    """What a file holds that is to grow; nothing if it is not there, or can't be used."""
    try:
        tuning = stored(device, name)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        print(f"{error}; it is replaced")
        return {}
    return {} if tuning is None else dict(tuning.measured)


def show(tuning: Tuning) -> None:
    """Print what was measured: a line for each problem."""
    rows = [("problem", "usual", "chosen", "gain", f"µs on {tuning.identity['name']}")]
    for problem, (chosen, seconds) in tuning.measured.items():
        first, time_of_chosen = str(usual(problem)), f"{1e6 * seconds[chosen]:.1f}"
        if chosen == first:
            rows.append((shown(problem), first, "", "", time_of_chosen))
        else:
            rows.append((shown(problem), first, chosen, f"{seconds[first] / seconds[chosen]:.2f}x", time_of_chosen))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[4]]))
    if tuning.identity["name"] in INSTRUMENTS:
        print(f"these are times of the {tuning.identity['name']} backend, which say nothing about any GPU")


def shown(problem: Problem) -> str:
    """A problem in a few words."""
    s = problem.shape
    if isinstance(s, Product):
        a, b = ("transposed " * turned for turned in (s.trans_a, s.trans_b))
        batch = f"{s.batch} of " * (s.batch > 1)
        text = f"{problem.operation} {batch}{a}{s.rows}x{s.depth} by {b}{s.depth}x{s.columns}"
    else:
        w = s.window
        filters = f"{s.k}x{s.c // s.groups}x{w.kernel[0]}x{w.kernel[1]}"
        text = f"{problem.operation} {s.n}x{s.c}x{s.h}x{s.w} by {filters} to {s.p}x{s.q}"
    kind = f" {problem.scalar}" * (problem.scalar != "float") + f" {problem.precision}" * (problem.precision != "fp32")
    return text + kind
