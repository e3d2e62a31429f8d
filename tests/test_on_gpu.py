"""bench/on_gpu.py on another backend: the steps, their logs and limits, and the page."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import on_gpu
import pytest

SCRIPT = Path(__file__).parent.parent / "bench" / "on_gpu.py"
NAMES = [
    "doctor",
    "verify",
    "verify-float64",
    "verify-fp16",
    "verify-bf16",
    "random-shapes",
    "wgmma",
    "bits",
    "end-to-end",
    "kernels",
    "functional",
]
NAMES += ["memcheck", "racecheck", "bench", "bench-tf32", "bench-bf16", "bench-fp16"]


def test_the_steps_run_through_on_the_emulator_with_their_logs_and_the_page_says_how(tmp_path: Path) -> None:
    chosen = ["doctor", "verify", "bits", "kernels", "memcheck", "racecheck"]  # others are alike or long
    options = ["--backend", "emulator", "--cases", "relu-*", "-k", "relu-0x3x4x2"]
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), *options, "--only", *chosen]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = {record["step"]: record for record in json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))}
    assert list(summary) == chosen
    assert {name for name, record in summary.items() if record["result"] == "skipped"} == {"memcheck", "racecheck"}
    assert summary["racecheck"]["text"] == "the backend is emulator"
    assert summary["verify"]["text"].endswith("all are within their bounds")
    assert summary["bits"]["text"].startswith("the bits are those of ")
    assert " passed" in summary["kernels"]["text"]
    assert "<testcase" in (tmp_path / "out" / "kernels.xml").read_text("utf-8")
    assert "C++ compiler" in (tmp_path / "out" / "doctor.log").read_text("utf-8")
    page = (tmp_path / "out" / "hardware.md").read_text("utf-8")
    assert "| backend | emulator |" in page
    assert "| device | " in page
    assert "| date | " in page
    assert "| bits | passed | " in page
    assert result.stdout.rstrip().endswith(f"no step failed ({tmp_path / 'out'})")


def planned(monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Steps of Python programs, each with two seconds."""
    steps = [on_gpu.Step(name, 2, (sys.executable, "-c", code)) for name, code in commands.items()]
    monkeypatch.setattr(on_gpu, "steps", lambda *_: [*steps, on_gpu.Step("last", 2, skip="there is no last")])


def results(out: Path) -> dict[str, tuple[str, str]]:
    return {r["step"]: (r["result"], r["text"]) for r in json.loads((out / "summary.json").read_text("utf-8"))}


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sleeps = "import subprocess, sys; print('on', flush=True)\n"
    sleeps += "subprocess.run([sys.executable, '-c', f'import time; time.sleep(60)  # {sys.argv}'])"
    planned(monkeypatch, bad="print('so bad'); exit(3)", slow=sleeps, good="print('fine')")
    start = time.perf_counter()
    assert on_gpu.main([str(tmp_path)]) == 1
    assert time.perf_counter() - start < 30
    assert results(tmp_path) == {
        "bad": ("failed (3)", "so bad"),
        "slow": ("out of time", "on"),
        "good": ("passed", "fine"),
        "last": ("skipped", "there is no last"),
    }
    assert "2 of 4 steps failed: bad, slow" in capsys.readouterr().out
    assert "| bad | failed (3) | 0 | so bad |" in (tmp_path / "hardware.md").read_text("utf-8")


def test_what_a_step_started_ends_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    planned(monkeypatch, slow=child + "print(p.pid, flush=True); p.wait()")
    assert on_gpu.main([str(tmp_path)]) == 1
    pid = int(results(tmp_path)["slow"][1])
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_step_alone_keeps_what_the_others_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planned(monkeypatch, first="print(1); exit(1)", second="print(2)")
    assert on_gpu.main([str(tmp_path)]) == 1
    planned(monkeypatch, first="print('mended')", second="raise SystemExit('not again')")
    assert on_gpu.main([str(tmp_path), "--only", "first"]) == 0
    assert results(tmp_path) == {
        "first": ("passed", "mended"), "second": ("passed", "2"), "last": ("skipped", "there is no last"),
    }  # fmt: skip


def test_a_step_that_does_not_exist_is_refused_before_any_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        on_gpu.main([str(tmp_path / "out"), "--only", "verify", "memchek"])
    assert stopped.value.code == 2
    assert f"there is no step memchek; the steps are {', '.join(NAMES)}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_sanitizer_of_cuda_home_checks_the_case_table_without_cupys_pool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if "cuda" not in p))
    steps = {step.name: step for step in on_gpu.steps(tmp_path, "cuda", "relu*")}
    for tool in ("memcheck", "racecheck"):
        *command, code, pattern = steps[tool].command
        assert command[:5] == [str(program), "--tool", tool, "--error-exitcode", "1"]
        assert "set_allocator(None)" in code
        assert pattern == "relu*"
    program.unlink()
    assert {step.skip for step in on_gpu.steps(tmp_path, "cuda") if step.name.endswith("check")} == {
        "compute-sanitizer is not on PATH nor in CUDA_HOME"
    }


def test_each_precision_is_timed_and_the_command_takes_what_it_is_given(tmp_path: Path) -> None:
    steps = [step for step in on_gpu.steps(tmp_path, "cuda") if step.name.startswith("bench")]
    assert [step.name for step in steps] == ["bench", "bench-tf32", "bench-bf16", "bench-fp16"]
    listed = subprocess.run((*steps[1].command, "--list"), capture_output=True, check=True)  # without a GPU
    assert b"conv2d.resnet50" in listed.stdout


def test_without_a_compiler_the_tests_that_ask_the_emulator_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left_out = "--ignore=tests/kernels/test_math.py"
    for here in (True, False):
        monkeypatch.setattr(on_gpu, "has_compiler", lambda here=here: here)
        [step] = [step for step in on_gpu.steps(tmp_path, "cuda") if step.name == "kernels"]
        assert (left_out in step.command) is not here
