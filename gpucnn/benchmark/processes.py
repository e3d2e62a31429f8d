"""What needs a process of its own for each measurement: how long a start takes, and the peak of memory.

"import" is the whole life of `python -c "import ..."`; "first-step" of a program that trains LeNet-5 for one step, with
all kernels that it needs in CuPy's cache; "first-step-compiling" the same with an empty cache. The loss of that step
must be right.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.benchmark import child
from gpucnn.benchmark.measure import reason, row
from gpucnn.benchmark.providers import OURS, Provider
from gpucnn.benchmark.records import Row
from gpucnn.benchmark.reference import NetworkProblem, Verdict, pose
from gpucnn.benchmark.suites import NETWORKS, Network, Task

ROUNDS = 5
LENET_BATCH = 64
PATIENCE = 300  # seconds that a process may take


def takes_part(task: Task, provider: Provider) -> bool:
    """Whether there is anything to measure of a provider in a task of the suites "startup" and "memory"."""
    if task.suite == "memory":
        return not provider.name.endswith(("compile", "cupy", "graph"))
    plain = provider.name in ("numpy", "cuda", "torch-cpu", "torch-cuda")
    if task.name == "import":
        return provider.name in ("numpy", "torch-cpu", "jax", "tinygrad", "cupy")
    return plain if task.name == "first-step" else provider.name == "cuda"


def measure(task: Task, providers: Sequence[Provider], precision: str, threads: int, seconds: float) -> list[Row]:
    """A row for each provider that takes part; a round is a process of each. At least three rounds."""
    taking_part = [provider for provider in providers if takes_part(task, provider)]
    values: dict[str, list[float]] = {provider.name: [] for provider in taking_part}
    errors: dict[str, Verdict] = {}
    failed: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        problem = None if task.name == "import" else _saved_problem(task, precision, Path(folder))
        end = time.perf_counter() + seconds
        for done in range(ROUNDS):
            if done >= 3 and time.perf_counter() > end:
                break
            for provider in taking_part:
                if provider.name in failed:
                    continue
                try:
                    value, loss = _one(task, provider, precision, threads, folder)
                except (RuntimeError, subprocess.SubprocessError) as error:
                    failed[provider.name] = row(task, provider, precision, "failed", reason=reason(error))
                    continue
                values[provider.name].append(value)
                if problem is None:
                    continue
                verdict = _judged(problem, loss)
                errors[provider.name] = verdict
                if not verdict.right:
                    text = f"its loss is {loss:.9g}, expected {float(problem.exact[0]):.9g}"
                    failed[provider.name] = row(task, provider, precision, "wrong", reason=text)
    unit = "bytes" if task.suite == "memory" else "s"
    rows = []
    for provider in taking_part:
        found = errors.get(provider.name)
        checked = {} if found is None else {"error": found.error, "of_bound": found.of_bound}
        measured = {"values": values[provider.name], "unit": unit} | checked
        name = provider.name
        rows.append(failed[name] if name in failed else row(task, provider, precision, "measured", **measured))
    return rows


def _saved_problem(task: Task, precision: str, folder: Path) -> NetworkProblem:
    network = task.what if isinstance(task.what, Network) else NETWORKS[0]
    problem = pose(Task("networks", network.name, "training", task.batch or LENET_BATCH, network), precision)
    assert isinstance(problem, NetworkProblem)
    arrays: dict[str, Any] = {"images": problem.images, "labels": problem.labels} | problem.weights
    with (folder / "problem.npz").open("wb") as file:
        np.savez(file, **arrays)
    return problem


def _judged(problem: NetworkProblem, loss: float) -> Verdict:
    expected = float(problem.exact[0])
    error = abs(loss - expected) / abs(expected)
    return Verdict(error, error / problem.tolerance)


def _one(task: Task, provider: Provider, precision: str, threads: int, folder: str) -> tuple[float, float]:
    """(seconds or bytes, loss) of one process."""
    name = provider.name
    if task.suite == "memory":
        command = ["memory", name, task.name, folder, precision, str(threads)]
    elif task.name == "import":
        command = ["import", "gpucnn" if name in OURS else name.partition("-")[0]]
    else:
        command = ["step", name, folder]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with ExitStack() as stack:
        if task.name == "first-step-compiling":
            environment["CUPY_CACHE_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, child.__file__, *command], capture_output=True, text=True, env=environment, check=False,
            timeout=PATIENCE,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found.get("bytes", seconds), found.get("loss", 0.0)
