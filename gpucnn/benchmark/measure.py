"""How a time comes about: right first, then in turns, until there are rounds enough or the time is used up.

In a round each provider has a turn of some runs, so what slows the machine slows all of them alike; a value is the mean
of a turn, and rounds are what is compared. A turn starts with untimed runs: caches, and threads of the one before that
still spin. On a GPU an op is timed by events after its L2 cache was overwritten, and the time that the host takes to
enqueue it is kept apart; a network's step is timed as a user meets it, back to back on the clock of the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpucnn.benchmark.providers import Provider, Unsupported, Work
from gpucnn.benchmark.records import Row, Status
from gpucnn.benchmark.reference import NetworkProblem, OpProblem, Verdict
from gpucnn.benchmark.suites import Op, Task

LEAST_ROUNDS, MOST_ROUNDS = 5, 30
TURN_SECONDS = 0.03  # that the timed runs of a turn last, at least
# Of untimed runs before them. On two cores our first steps of LeNet-5 after PyTorch's turn, whose threads still spin,
# took up to 1.4 times as long; the usual time came back after some 16 ms.
WARM_SECONDS = 0.02
LONG_SECONDS = 0.03  # a run that lasts so long is timed alone, after as long a pause


@dataclass
class _Contender:
    """A provider whose result is right."""

    provider: Provider
    work: Work
    error: float
    of_bound: float
    runs: int = 1  # timed ones in a turn
    long: bool = False


def measure(
    task: Task, providers: Sequence[Provider], precision: str, seconds: float, problem: OpProblem | NetworkProblem
) -> list[Row]:
    """A row for each provider; about `seconds` are spent on rounds. problem: what `pose` made of the task."""
    rows: dict[str, Row] = {}
    contenders: list[_Contender] = []
    for provider in providers:
        found = _checked(task, provider, precision, problem)
        if isinstance(found, Row):
            rows[provider.name] = found
        else:
            contenders.append(found)
    values, hosts = _rounds(task, contenders, seconds)
    for c in contenders:
        name, times = c.provider.name, {"values": values[c.provider.name], "host": hosts[c.provider.name]}
        # What compiles itself in its first runs must be right in its last one too; a training step has moved on.
        last = None if task.part == "training" else problem.judge(task.part, c.work.results(c.work.run()))
        if last is None or last.right:
            rows[name] = row(task, c.provider, precision, "measured", **times, error=c.error, of_bound=c.of_bound)
        else:
            rows[name] = _wrong(task, c.provider, precision, last)
    return [rows[provider.name] for provider in providers]


def row(task: Task, provider: Provider, precision: str, status: Status, **rest: Any) -> Row:
    """A row of this task and provider."""
    work = {"flops": task.flops, "bytes": task.bytes(precision)} if task.what else {}
    return Row(
        task.suite, task.name, task.part, task.batch, provider.name, precision, status,
        **{"device": provider.device} | work | rest,
    )  # fmt: skip


def _checked(task: Task, provider: Provider, precision: str, problem: OpProblem | NetworkProblem) -> _Contender | Row:
    """The provider's work if its result is right, else the row that says what is not."""
    try:
        work = provider.work(problem, task.part, precision)
        verdict = problem.judge(task.part, work.results(work.run()))
    except Unsupported as error:
        return row(task, provider, precision, "unsupported", reason=str(error))
    except Exception as error:  # of a foreign library, a compiler or a driver: the others go on
        return row(task, provider, precision, "failed", reason=reason(error))
    if not verdict.right:
        return _wrong(task, provider, precision, verdict)
    return _Contender(provider, work, verdict.error, verdict.of_bound)


def _wrong(task: Task, provider: Provider, precision: str, verdict: Verdict) -> Row:
    text = f"its result is off by {verdict.error:.2g} of its size, {verdict.of_bound:.3g} times what is allowed"
    return row(task, provider, precision, "wrong", reason=text)


def reason(error: BaseException) -> str:
    """An error in a line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:300]


def _rounds(
    task: Task, contenders: list[_Contender], seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The values of each provider's turns, and the seconds its host took to enqueue a run where it is a GPU."""
    values: dict[str, list[float]] = {c.provider.name: [] for c in contenders}
    hosts: dict[str, list[float]] = {c.provider.name: [] for c in contenders}
    for c in contenders:
        once = _elapsed(c, 1)
        c.long = once > LONG_SECONDS
        if not c.long:
            once = min(once, _elapsed(c, 1), _elapsed(c, 1))
        c.runs = max(1, round(TURN_SECONDS / once))
    end = time.perf_counter() + seconds
    for done in range(MOST_ROUNDS):
        if not contenders or (done >= LEAST_ROUNDS and time.perf_counter() > end):
            break
        for c in contenders:
            name = c.provider.name
            if c.long:
                time.sleep(WARM_SECONDS)  # until the threads of the one before have ceased to spin
            else:
                _warm_up(c)
            if c.provider.device == "gpu":
                hosts[name].append(_host_seconds(c))
            if c.provider.device == "gpu" and isinstance(task.what, Op):
                turns = [c.provider.cold_seconds(c.work.run, hosts[name][-1]) for _ in range(min(c.runs, 10))]
                values[name].append(sum(turns) / len(turns))
            else:
                values[name].append(_elapsed(c, c.runs) / c.runs)
    return values, hosts


def _warm_up(c: _Contender) -> None:
    end = time.perf_counter() + WARM_SECONDS
    c.work.run()
    while time.perf_counter() < end:
        c.work.run()
    c.provider.synchronize()


def _elapsed(c: _Contender, runs: int) -> float:
    """Seconds of so many runs, to their end."""
    c.provider.synchronize()
    start = time.perf_counter()
    for _ in range(runs):
        c.work.run()
    c.provider.synchronize()
    return max(time.perf_counter() - start, 1e-9)


def _host_seconds(c: _Contender) -> float:
    """Seconds until the host could go on to the next run, of three in a row."""
    start = time.perf_counter()
    for _ in range(3):
        c.work.run()
    seconds = (time.perf_counter() - start) / 3
    c.provider.synchronize()
    return seconds


# -- what this machine can do at most ------------------------------------------------------------------


def cpu_share(seconds: float = 0.2) -> float:
    """Which part of the time our threads really computed, of a while in which they wanted to: 1 on a quiet machine."""
    import numpy as np

    from gpucnn.backends.numpy_parallel import workers

    shares: list[float] = []

    def busy(_: int) -> None:
        a = np.ones((512, 512), np.float32)
        product = np.empty_like(a)
        wall, own = time.perf_counter(), time.thread_time()
        while time.perf_counter() < wall + seconds:  # in calls of ms, so that none waits for the interpreter lock
            np.matmul(a, a, out=product)
        shares.append((time.thread_time() - own) / (time.perf_counter() - wall))

    workers.run(busy, workers.threads)
    return min(shares)


def cpu_limits(budget: float = 1.0) -> dict[str, float]:
    """FLOP/s of NumPy's largest products (float32) and bytes/s of its copies, on this process's threads: the best of
    the tries that the budget, in seconds, leaves time for."""
    import numpy as np

    from gpucnn.backends.numpy_parallel import cut, workers

    rng = np.random.default_rng(0)
    n = 1536
    a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    source = np.ones(1 << 26, np.uint8)
    goal = np.empty_like(source)
    parts = cut(source.size, workers.threads)

    def copy(part: int) -> None:
        np.copyto(goal[parts[part]], source[parts[part]])

    def best(function: Callable[[], Any]) -> float:
        function()
        found: list[float] = []
        end = time.perf_counter() + budget / 2
        while len(found) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
        return min(found)

    return {
        "flops": 2 * n**3 / best(lambda: a @ b),
        "bytes": 2 * source.size / best(lambda: workers.run(copy, len(parts))),
    }
