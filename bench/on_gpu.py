"""All that takes a GPU, unattended: tests, verify, the bits, compute-sanitizer, the benchmark, one after another.

    python bench/on_gpu.py out                      every step, an hour or so
    python bench/on_gpu.py out --only verify bits   these again; what the others found is kept

Each step has a log in the folder and a time limit; a step that fails does not stop the next. At the end the folder has
summary.json and hardware.md, which is the text of docs/hardware.md. Exit code 1 if a step failed or ran out of time.
Needs what the tests need (pip install -e ".[test,cuda12]" or cuda13); compute-sanitizer comes with a CUDA toolkit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
if find_spec("gpucnn") is None:  # a checkout will do where nothing can be installed
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

from gpucnn.atomic import write_text  # noqa: E402
from gpucnn.devices import KernelError  # noqa: E402
from gpucnn.devices.emulator import compiler  # noqa: E402

BITS = ROOT / "tests" / "bits" / "emulator.json"

# CuPy's pool lays arrays side by side: without it, sanitizer sees where each one ends.
CASE_TABLE = """
import sys
import cupy
from gpucnn.verify import run
cupy.cuda.set_allocator(None)
sys.exit(run(backend="cuda", op=sys.argv[1] if len(sys.argv) > 1 else None))
"""


@dataclass(frozen=True)
class Step:
    """What to run, and for how many seconds at most; `skip` says why it can't run here."""

    name: str
    limit: float
    command: tuple[str, ...] = ()
    skip: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a step ended: passed, failed, out of time or skipped; and the last line that it printed, or why."""

    step: str
    result: str
    seconds: float
    text: str


def steps(out: Path, backend: str = "cuda", cases: str | None = None, select: str | None = None) -> list[Step]:
    """Every step in order. cases: a pattern of cases to verify; select: of tests to run, as pytest's -k."""
    python, gpucnn = sys.executable, (sys.executable, "-m", "gpucnn")
    only = ("--op", cases) if cases else ()
    reports = ("--json", str(out / "verify.json"), "--html", str(out / "verify.html"))

    def tests(name: str, minutes: float, *paths: str) -> Step:
        chosen = ("-k", select) if select else ()
        # A warning of a newer NumPy or PyTorch, of which the machine has its own, is no failure of a kernel.
        options = (
            "-q",
            "-W",
            "default",
            "-p",
            "no:cacheprovider",
            "--durations=10",
            f"--junitxml={out / name}.xml",
            *chosen,
        )
        return Step(name, 60 * minutes, (python, "-m", "pytest", "--backend", backend, *options, *paths))

    def sanitized(tool: str, minutes: float) -> Step:
        program = sanitizer()
        if backend != "cuda" or program is None:
            why = (
                f"the backend is {backend}"
                if backend != "cuda"
                else "compute-sanitizer is not on PATH nor in CUDA_HOME"
            )
            return Step(tool, 60 * minutes, skip=why)
        options = ("--tool", tool, "--error-exitcode", "1", "--print-limit", "50")
        table = (python, "-c", CASE_TABLE, *((cases,) if cases else ()))
        return Step(tool, 60 * minutes, (program, *options, *table))

    bench, shapes = (*gpucnn, "bench"), (python, str(ROOT / "bench" / "random_shapes.py"))
    peers = ("torch-cuda", "torch-cuda-channels-last", "torch-cuda-compile") if find_spec("torch") else ()
    on_a_gpu = ("ops", "networks", "--budget", "300", "--providers", ",".join(("cuda", "cuda-graph", *peers)))
    math = () if has_compiler() else ("--ignore=tests/kernels/test_math.py",)  # which asks the emulator
    return [
        Step("doctor", 120, (*gpucnn, "doctor", "--backend", backend)),
        Step("verify", 1200, (*gpucnn, "verify", "--backend", backend, *only, *reports)),
        Step("verify-float64", 1200, (*gpucnn, "verify", "--backend", backend, "--dtype", "float64", *only)),
        *(
            Step(f"verify-{half}", 1200, (*gpucnn, "verify", "--backend", backend, "--precision", half, *only))
            for half in ("fp16", "bf16")
        ),
        # By every family of kernels, also those that only `gpucnn tune` chooses; Hopper's apart, for they might hang.
        *(
            Step(name, 600, (*shapes, "--backend", backend, *family))
            for name, family in (("random-shapes", ("--without", "wgmma")), ("wgmma", ("--family", "wgmma")))
        ),
        Step("bits", 1200, (python, "-m", "gpucnn.verify", "--backend", backend, "--check-bits", str(BITS))),
        tests("end-to-end", 20, "tests/test_end_to_end.py"),
        tests("kernels", 30, "tests/kernels", *math),
        tests("functional", 60, "tests/functional"),
        sanitized("memcheck", 60),
        sanitized("racecheck", 60),
        Step("bench", 900, (*bench, "--out", str(out / "bench"))),
        *(
            Step(f"bench-{precision}", 600, (*bench, *on_a_gpu, "--precision", precision, "--out", str(out / "bench")))
            for precision in ("tf32", "bf16", "fp16")
        ),
    ]


def sanitizer() -> str | None:
    """compute-sanitizer, on PATH or of the CUDA toolkit that CUDA_HOME or CUDA_PATH names."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [
        str(Path(home) / folder) for home in (*homes, "/usr/local/cuda") for folder in ("bin", "compute-sanitizer")
    ]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def has_compiler() -> bool:
    """Whether the emulator can run too."""
    try:
        return bool(compiler())
    except KernelError:
        return False


def run(step: Step, log: Path) -> Outcome:
    """Run a step with its output in the log; at its limit it is ended, with all that it started."""
    if step.skip:
        return Outcome(step.name, "skipped", 0, step.skip)
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(step.limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = None
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    result = {0: "passed", None: "out of time"}.get(code, f"failed ({code})")
    return Outcome(step.name, result, round(time.perf_counter() - start, 1), lines[-1] if lines else "")


# -- what is written ---------------------------------------------------------------------------------


def kept(out: Path) -> dict[str, Outcome]:
    """What earlier runs with this folder found."""
    path = out / "summary.json"
    if not path.exists():
        return {}
    return {record["step"]: Outcome(**record) for record in json.loads(path.read_text("utf-8"))}


def write(out: Path, outcomes: Sequence[Outcome]) -> None:
    """summary.json and hardware.md, of all that was found so far."""
    record = json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n"
    for name, text in (("summary.json", record), ("hardware.md", hardware(about(out), outcomes))):
        write_text(out / name, text)


def about(out: Path) -> dict[str, str]:
    """What verify says of device, driver and versions; nothing if it did not get so far."""
    path = out / "verify.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))["about"] if path.exists() else {}
    return {name: str(value) for name, value in found.items() if name != "dtype"}


def hardware(about: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """The page: the machine, and what ran on it."""
    rows = [f"| {name} | {value} |" for name, value in about.items()]
    table = [f"| {o.step} | {o.result} | {o.seconds:.0f} | {o.text.replace('|', '/')[:160]} |" for o in outcomes]
    return "\n".join(
        [
            "# Hardware",
            "",
            "What the kernels ran on, and how it ended. Made by `python bench/on_gpu.py out`.",
            "",
            *(["| | |", "|---|---|", *rows] if rows else ["The backend did not get so far as to say what it runs on."]),
            "",
            "| step | result | seconds | its last line |",
            "|---|---|---|---|",
            *table,
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, print a line for each, write the folder. 1 if one failed or ran out of time."""
    parser = argparse.ArgumentParser("on_gpu.py", description="All that takes a GPU, unattended.")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--only", nargs="+", metavar="STEP", default=[], help="these steps alone")
    parser.add_argument("--backend", default="cuda", help="cuda; another one to try this script")
    parser.add_argument("--cases", metavar="PATTERN", help="verify these cases alone, as gpucnn verify --op")
    parser.add_argument("-k", dest="select", metavar="EXPRESSION", help="run these tests alone, as pytest -k")
    asked = parser.parse_args(arguments)
    out = asked.out.resolve()
    planned = steps(out, asked.backend, asked.cases, asked.select)
    names = [step.name for step in planned]
    if unknown := [name for name in asked.only if name not in names]:
        parser.error(f"there is no step {', '.join(unknown)}; the steps are {', '.join(names)}")
    out.mkdir(parents=True, exist_ok=True)
    found = kept(out)
    for step in planned:
        if asked.only and step.name not in asked.only:
            continue
        print(f"{step.name:<15}", end=" ", flush=True)
        outcome = found[step.name] = run(step, out / f"{step.name}.log")
        print(f"{outcome.result:<12} {outcome.seconds:7.1f} s  {outcome.text[:100]}", flush=True)
        write(out, [found[name] for name in names if name in found])
    wrong = [o.step for o in found.values() if o.result not in ("passed", "skipped")]
    print(f"{len(wrong)} of {len(found)} steps failed: {', '.join(wrong)}" if wrong else "no step failed", f"({out})")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
