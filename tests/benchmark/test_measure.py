"""Only what is right is timed, in turns, and whatever goes wrong with one provider is shown and stops no other."""

import time

import numpy as np
import pytest

from gpucnn.benchmark import measure, suites
from gpucnn.benchmark.providers import Provider, Unsupported, Work
from gpucnn.benchmark.reference import pose

TASK = suites.tasks("ops", (2,), "relu", ("forward",))[0]


@pytest.fixture(scope="module")
def problem():
    return pose(TASK, "fp32")


class Fake(Provider):
    """Gives the exact result, or what `change` makes of it, and notes each run."""

    version = "1"

    def __init__(self, name, log=None, change=lambda y: y, device="cpu", seconds=0.0):
        self.name, self.log, self.change, self.device, self.seconds = name, log, change, device, seconds
        self.cold = []

    def op(self, problem, part):
        def run():
            if self.log is not None:
                self.log.append(self.name)
            time.sleep(self.seconds)
            return problem.exact.results[0].astype(np.float32)

        return Work(run, lambda y: [self.change(y)])

    def network(self, problem):
        raise Unsupported("no networks")

    def cold_seconds(self, run, host_seconds):
        self.cold.append(host_seconds)
        run()
        return 0.25


def measured(*providers, seconds=0.0, problem):
    return measure.measure(TASK, providers, "fp32", seconds, problem)


def test_a_right_result_is_timed_and_its_error_stands_beside(problem):
    [row] = measured(Fake("right", seconds=0.002), problem=problem)
    assert row.status == "measured"
    assert len(row.values) == measure.LEAST_ROUNDS
    assert 0.002 <= row.median < 0.1
    assert (row.error, row.of_bound) == (0.0, 0.0)
    assert (row.flops, row.bytes, row.batch) == (TASK.flops, TASK.bytes(), 2)


def test_a_wrong_result_is_not_timed(problem):
    log = []
    [wrong, right] = measured(Fake("wrong", log, lambda y: y * 1.01), Fake("right"), problem=problem)
    assert (wrong.status, wrong.values) == ("wrong", [])
    assert wrong.reason.startswith("its result is off by 0.01 of its size, ")
    assert log == ["wrong"]
    assert right.status == "measured"


def test_a_result_that_is_right_at_first_alone_has_no_time(problem):
    calls = []

    def change(y):
        calls.append(1)
        return y if len(calls) == 1 else y + 1

    [row] = measured(Fake("drifting", change=change), problem=problem)
    assert (row.status, row.values) == ("wrong", [])


def test_a_failure_is_shown_with_its_reason_and_the_rest_goes_on(problem):
    def fail(y):
        raise MemoryError("\n  out of memory on device 0\nmore lines")

    [failed, right] = measured(Fake("broken", change=fail), Fake("right"), problem=problem)
    assert (failed.status, failed.values) == ("failed", [])
    assert failed.reason == "MemoryError: out of memory on device 0"
    assert right.status == "measured"


def test_what_a_provider_lacks_is_no_failure(problem):
    one = Fake("lacking")
    [row] = measure.measure(TASK, [one], "bf16", 0.0, problem)
    assert (row.status, row.reason) == ("unsupported", "lacking has no bf16")


def test_providers_take_turns_round_by_round(problem, monkeypatch):
    monkeypatch.setattr(measure, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(measure, "WARM_SECONDS", 0.0)
    log = []
    rows = measured(Fake("a", log), Fake("b", log), problem=problem)
    assert [row.provider for row in rows] == ["a", "b"]
    timed = log[2 + 6 : -2]  # between one run of each to verify, three to see how long one takes, and a last one
    assert timed == ["a", "a", "b", "b"] * measure.LEAST_ROUNDS  # one untimed, one timed


def test_a_long_run_is_not_repeated_without_need(problem, monkeypatch):
    monkeypatch.setattr(measure, "LONG_SECONDS", 0.0)
    log = []
    measured(Fake("long", log, seconds=0.02), problem=problem)
    assert len(log) == 1 + 1 + measure.LEAST_ROUNDS + 1  # verified, looked at once, timed, verified again


def test_more_time_gives_more_rounds_but_not_endlessly(problem):
    [row] = measured(Fake("right"), seconds=60.0, problem=problem)
    assert len(row.values) == measure.MOST_ROUNDS


def test_an_op_on_a_gpu_is_timed_cold_and_its_enqueueing_apart(problem):
    gpu = Fake("gpu", device="gpu", seconds=0.001)
    [row] = measured(gpu, problem=problem)
    assert row.values == [0.25] * measure.LEAST_ROUNDS
    assert len(row.host) == measure.LEAST_ROUNDS
    assert min(row.host) >= 0.001
    assert set(gpu.cold) <= set(row.host)
    assert row.device == "gpu"


def test_the_order_of_rows_is_that_of_the_providers(problem):
    names = [row.provider for row in measured(Fake("a"), Fake("b", change=lambda y: y + 1), Fake("c"), problem=problem)]
    assert names == ["a", "b", "c"]


def test_the_limits_of_this_machine_are_plausible():
    limits = measure.cpu_limits(0.05)
    assert 1e8 < limits["flops"] < 1e14
    assert 1e7 < limits["bytes"] < 1e13


def test_our_share_of_the_processor_is_measured(monkeypatch):
    assert 0.01 < measure.cpu_share(0.05) <= 1.05
    clock = iter(range(1000))
    monkeypatch.setattr(measure.time, "thread_time", lambda: 0.0)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(clock)))
    assert measure.cpu_share(5.0) == 0.0  # threads that never ran
