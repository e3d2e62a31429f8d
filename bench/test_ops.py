"""Every op's passes and the small networks' steps for pytest-benchmark, from the case table of `gpucnn bench`.

    pytest bench/ --benchmark-only -k "resnet50 and forward"
    pytest bench/ --benchmark-only --benchmark-autosave --benchmark-compare

For work on one op: no peers, and a result is verified before it is timed. What is published comes from `gpucnn bench`.
"""

from typing import Any

import pytest

from gpucnn.backends import available_backends
from gpucnn.benchmark import providers, reference, suites

TASKS = [
    *suites.tasks("ops"),
    *(task for task in suites.tasks("networks", (1, 64)) if task.name in ("lenet5", "resnet20")),
]


@pytest.fixture(scope="module", params=[name for name in providers.OURS if name in available_backends()])
def provider(request: pytest.FixtureRequest) -> providers.Provider:
    return providers.make(request.param, "fp32", threads=2)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: str(task).replace(" ", "-").replace(",", ""))
def test_benchmark(task: suites.Task, provider: providers.Provider, benchmark: Any) -> None:
    problem = reference.pose(task, "fp32")
    work = provider.work(problem, task.part, "fp32")
    verdict = problem.judge(task.part, work.results(work.run()))
    assert verdict.right, f"off by {verdict.of_bound:.3g} times what is allowed"

    def run() -> None:
        work.run()
        provider.synchronize()

    benchmark.extra_info |= {"flops": task.flops, "bytes": task.bytes(), "error": verdict.error}
    benchmark(run)
