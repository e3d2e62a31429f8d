"""How many mutants of the kernels the tests kill: `make mutants`, whose result is docs/mutants.md.

A mutant is a kernel file with one small bug: an operator, a constant, an index or a barrier changed. It is killed if
something notices, asked in this order:

1. the case table (gpucnn/testing.py) on the emulator, forward and backward, in every way that kernels are chosen and
   float64 last: a result out of its bound, a report of the emulator, a launch that never ends;
2. `pytest tests/kernels`, in a copy of the checkout that has the mutant;
3. tests/bits/emulator.json: other bits than those of the unchanged kernels.

What does not compile is no mutant. A mutant that nobody can kill, because it computes the same, is listed with its
reason in bench/mutants.toml; so is one that is left alive. A stopped run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn.atomic import write_text
from gpucnn.devices import Device
from gpucnn.devices.base import Constants, Dim, KernelError, kernel_folder
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.testing import Case, Way, evaluate, ways
from gpucnn.verify import Result, compared

ROOT = Path(__file__).parent.parent
REASONS = ROOT / "bench" / "mutants.toml"
PAGE = ROOT / "docs" / "mutants.md"
MOST_STEPS = 500_000  # of a thread: five times what the longest of the table needs
MOST_SECONDS = 900  # of the tests of a mutant

Pipe = Connection  # through which a verdict comes

# -- making mutants ----------------------------------------------------------------------------------------------------

FOR_THE_GPU = re.compile(
    r"^\#ifdef\ EMULATOR\n.*?^\#else\n(.*?)^\#endif | ^\#if[^\n]*\b__CUDA_ARCH__\b[^\n]*\n(.*?)^\#(?:else|endif)",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
TOKEN = re.compile(
    r"""(?P<blank>\s+|//[^\n]*|/\*.*?\*/)
    | (?P<directive>\#(?:\\\n|[^\n])*)
    | (?P<string>"(?:\\.|[^"\\])*")
    | (?P<number>0[xX][0-9a-fA-F]+[uU]?|\d+\.?\d*(?:[eE][-+]?\d+)?[fuFU]?)
    | (?P<word>[A-Za-z_]\w*)
    | (?P<operator>\+\+|--|<<|>>|->|&&|\|\||[-+*/%&|^<>=!]=|.)""",
    re.VERBOSE | re.DOTALL,
)
OPERATORS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "%": "/", "+=": "-=", "-=": "+=", "*=": "/=", "++": "--",
    "<": "<= >=", "<=": "< >", ">": ">= <=", ">=": "> <", "==": "!=", "!=": "==",
    "&&": "||", "||": "&&", "&": "|", "|": "&", "^": "|", "<<": ">>", ">>": "<<", "min": "max", "max": "min",
}  # fmt: skip
PAIRS = [
    "h w", "h v", "H W", "p q", "P Q", "ph qv", "r s", "r p", "s q", "n c", "N C", "n m", "M N", "m k", "c k", "C K",
    "channels filters", "row column", "rows columns", "below right", "a b", "first last", "mean variance",
    "KERNEL_H KERNEL_W", "STRIDE_H STRIDE_W", "PAD_TOP PAD_LEFT", "DILATION_H DILATION_W", "EXTENT_H EXTENT_W",
    "PAD_BOTTOM PAD_RIGHT", "TILE_M TILE_N", "TILE_M TILE_K", "THREAD_M THREAD_N", "THREADS_M THREADS_N",
    "thread_m thread_n", "tile_m tile_n", "m0 n0", "x y", "lane part", "inside first", "beta1 beta2", "rest1 rest2",
    "high0 high1", "low0 low1", "key0 key1", "c0 c2", "c1 c3", "row_of column_of", "m v", "sum product",
    "first_output_row first_output_column", "last_output_row last_output_column", "own even", "total share",
]  # fmt: skip
PARTNERS: dict[str, list[str]] = {}
for _a, _b in (pair.split() for pair in PAIRS):
    PARTNERS.setdefault(_a, []).append(_b)
    PARTNERS.setdefault(_b, []).append(_a)
TYPES = {"Scalar", "SCALAR", "float", "double", "int", "long", "unsigned", "bool", "const", "Four", "Words", "Place"}
NOT_OPERANDS = {*OPERATORS, "return", "(", "[", "{", ",", ";", "=", "?", ":", "!"}  # what comes before an operand


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    start: int


@dataclass(frozen=True)
class Mutant:
    """`before` at `start` of a file's text becomes `after`; in this function, or the macro of this name."""

    file: str
    function: str
    start: int
    before: str
    after: str
    line: int
    column: int
    shown: str

    def __str__(self) -> str:
        return f"{self.file} {self.function}: {self.shown}"

    def applied(self, text: str) -> str:
        """The file with the bug."""
        return text[: self.start] + self.after + text[self.start + len(self.before) :]


def tokens(text: str) -> list[Token]:
    """All but blanks and comments."""
    found = (Token(str(m.lastgroup), m[0], m.start()) for m in TOKEN.finditer(text))
    return [token for token in found if token.kind != "blank"]


def functions(text: str) -> Iterator[tuple[str, list[Token], list[Token]]]:
    """The name, declaration and body of functions, structs with functions, and macros that compute something."""
    depth, declaration, body = 0, list[Token](), list[Token]()
    for token in tokens(text):
        if token.kind == "directive" and not depth:
            declaration = []
            macro = re.match(r"#define\s+(\w+)\s+(.*)", token.text, re.DOTALL)
            if macro:
                rest = [Token(t.kind, t.text, t.start + token.start + macro.start(2)) for t in tokens(macro[2])]
                # Of the blocks that share a multiprocessor no result depends; the compile gate sees their registers.
                if any(t.kind == "operator" for t in rest) and not macro[1].endswith("BLOCKS"):
                    yield macro[1], [], rest
            continue
        depth -= token.text == "}"
        if depth:
            body.append(token)
        elif token.text == "}" and declaration and not _is_plain(declaration, body):
            words = " ".join(t.text for t in declaration)
            yield re.sub(r"__launch_bounds__ \(.*?\)", "", words).split(" (")[0].split()[-1], declaration, body
        if token.text in ("}", ";") and not depth:
            declaration, body = [], []
        elif not depth and token.text != "{":
            declaration.append(token)
        depth += token.text == "{"


def _is_plain(declaration: list[Token], body: list[Token]) -> bool:
    """Whether it is a struct without functions."""
    return declaration[0].text == "struct" and not any(token.text == "(" for token in body)


def mutants(file: str, text: str) -> list[Mutant]:
    """Every mutant of a kernel file, in the order of the text; of what the emulator does not compile there is none."""
    unseen = [branch.span(branch.lastindex or 0) for branch in FOR_THE_GPU.finditer(text)]
    found = {}
    for function, declaration, body in functions(text):
        names = {token.text for token in (*declaration, *body)}
        for start, before, after in (*_changed_tokens(body, names), *_dropped_statements(text, body)):
            if any(begin <= start < end for begin, end in unseen):
                continue
            line = text.count("\n", 0, start) + 1
            first = text.rindex("\n", 0, start) + 1 if "\n" in text[:start] else 0
            rest = text[start + len(before) :].partition("\n")[0]
            marked = " ".join(f"{text[first:start]}⟦{before} → {after}⟧{rest}".split())
            found[start, before, after] = Mutant(
                file, function, start, before, after, line, start - first + 1, marked.replace("→ ⟧", "→⟧")
            )
    return sorted(found.values(), key=lambda m: (m.start, m.before, m.after))


def _changed_tokens(body: list[Token], names: set[str]) -> Iterator[tuple[int, str, str]]:
    """`names` are those of the function: a variable's partner must be one of them, a -D constant's need not."""
    for i, token in enumerate(body):
        before = body[i - 1].text if i else "("
        for after in _replacements(token, before):
            if token.kind != "word" or after in names or after.isupper() or after in ("min", "max"):
                yield token.start, token.text, after


def _replacements(token: Token, previous: str) -> list[str]:
    if token.kind == "number" and "." in token.text:
        return [f"({token.text} + 1)"]
    if token.kind == "number":
        return [f"({token.text} + 1)", f"({token.text} - 1)"]
    unary = previous in NOT_OPERANDS or previous in TYPES
    if unary and token.text in ("-", "!"):
        return [""]
    if unary and token.text in ("+", "*", "&"):
        return []
    return OPERATORS.get(token.text, "").split() + PARTNERS.get(token.text, [])


def _dropped_statements(text: str, body: list[Token]) -> Iterator[tuple[int, str, str]]:
    """Assignments, calls, continue, and return without a value: each replaced by {}."""
    start, brackets = 0, list[str]()
    for i, token in enumerate(body):
        if token.text in ("(", "{", "["):
            header = token.text == "(" and i and body[i - 1].text in ("for", "if", "while")
            brackets.append("header" if header else token.text)
        closed = brackets.pop() if token.text in (")", "}", "]") and brackets else ""
        inner = brackets[-1] if brackets else "{"
        if token.text == ";" and inner == "{":
            statement = body[start:i]
            if _droppable(statement):
                at = statement[0].start
                yield at, text[at : token.start + 1], "{}"
        ended = token.text in ("{", "}", ";", "else") and inner == "{"
        if ended or closed == "header" or token.kind == "directive":
            start = i + 1


def _droppable(statement: list[Token]) -> bool:
    words = [token.text for token in statement]
    if words in (["return"], ["continue"]):
        return True
    if not words or words[0] in TYPES | {"return", "typedef", ")"} or words[0].startswith("#"):
        return False
    declares = len(words) > 1 and statement[1].kind == "word"
    return not declares and (words[-1] == ")" or bool({"=", "+=", "-=", "*="} & set(words)) or words[0] in ("++", "--"))


def chosen(found: Iterable[Mutant], sample: int | None) -> list[Mutant]:
    """`sample` mutants of each function, drawn by what they are: the same in every run, whatever else changes."""
    kept: Counter[tuple[str, str]] = Counter()
    drawn = []
    for mutant in sorted(found, key=lambda m: hashlib.sha256(str(m).encode()).digest()):
        kept[mutant.file, mutant.function] += 1
        if sample is None or kept[mutant.file, mutant.function] <= sample:
            drawn.append(mutant)
    return sorted(drawn, key=lambda m: (m.file, m.start, m.after))


# -- which kernels a function is part of -------------------------------------------------------------------------------


def kernels_of(folder: Path) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """For each (file, function): the kernels (.cu file, name) whose text leads to it, call by call."""
    texts = {path.name: path.read_text("utf-8") for path in folder.glob("*.cu*")}
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for file in (name for name in texts if name.endswith(".cu")):
        calls: dict[str, set[str]] = {}
        home: dict[str, set[str]] = {}
        for source in _included(file, texts):
            for name, declaration, body in functions(texts[source]):
                calls.setdefault(name, set()).update(token.text for token in (*declaration, *body))
                home.setdefault(name, set()).add(source)
            for name, definition in re.findall(r"#define\s+(\w+)\s+(.*)", texts[source]):
                calls.setdefault(name, set()).update(re.findall(r"\w+", definition))
        for kernel in re.findall(r'extern "C" __global__ void(?: __launch_bounds__\([^)]*\))? (\w+)\(', texts[file]):
            reached, ahead = set[str](), {kernel}
            while ahead:
                reached |= ahead
                ahead = set().union(*(calls[name] for name in ahead)) & calls.keys() - reached
            for name in reached:
                for source in home.get(name, ()):
                    found.setdefault((source, name), set()).add((file, kernel))
    return found


def _included(file: str, texts: dict[str, str]) -> set[str]:
    found = {file}
    for name in re.findall(r'#include "(\w+\.cuh)"', texts[file]):
        found |= _included(name, texts)
    return found


# -- killing -----------------------------------------------------------------------------------------------------------


class MutatedDevice(Device):
    """The emulator, which takes some kernels from another folder."""

    name = "emulator"
    xp = np

    def __init__(self, original: Device, mutated: Device, kernels: set[tuple[str, str]]) -> None:
        self.original = original
        self.mutated = mutated
        self.kernels = kernels

    def launch(self, file: str, name: str, constants: Constants, grid: Dim, block: Dim, *arguments: Any) -> None:
        device = self.mutated if (file, name) in self.kernels else self.original
        device.launch(file, name, constants, grid, block, *arguments)

    def synchronize(self) -> None:
        self.original.synchronize()

    def to_numpy(self, array: Any) -> np.ndarray[Any, Any]:
        return self.original.to_numpy(array)


@dataclass(frozen=True)
class Known:
    """A case and a way to compute it, its kernels, and what the unchanged ones make of it beside the exact results."""

    case: Case
    way: Way
    kernels: frozenset[tuple[str, str]]
    cost: float
    results: list[Result]

    @property
    def in_bits(self) -> bool:
        """Whether tests/bits/emulator.json has it."""
        return self.way == Way() and self.case.same_bits

    def __str__(self) -> str:
        return f"{self.case} {' '.join(str(word) for word in self.way if word)}"


@np.errstate(all="ignore")  # what is recorded holds anything
def known(pairs: Iterable[tuple[Case, Way]], wanted: set[tuple[str, str]], device: EmulatorDevice) -> list[Known]:
    """The cases that launch one of the wanted kernels, computed right."""
    found = []
    for case, way in pairs:
        recorder = RecorderDevice()
        with gpucnn.precision(way.precision):
            evaluate(case, way.backend(recorder), way.dtype)
            kernels = frozenset((one.file, one.name) for one in recorder.launches)
            if kernels & wanted:
                cost = len(recorder.specialisations()) + sum(one.grid[0] for one in recorder.launches) / 100
                exact = evaluate(case, "numpy", way.dtype, precision="float64")
                results = compared(exact, way.backend(device), way.dtype)
                found.append(Known(case, way, kernels, cost, results))
    return found


@np.errstate(all="ignore")
def verdict_of_the_table(mutant: Path, kernels: set[tuple[str, str]], table: list[Known]) -> tuple[str, str]:
    """("value" | "emulator" | "endless" | "bits" | "alive" | "does not compile", the case or the compiler's words)."""
    device = MutatedDevice(EmulatorDevice(), EmulatorDevice(max_steps=MOST_STEPS, kernels=mutant), kernels)
    other_bits = ""
    for one in table:
        try:
            with gpucnn.precision(one.way.precision):
                results = evaluate(one.case, one.way.backend(device), one.way.dtype).results
        except KernelError as error:
            return _kind(str(error)), f"{one}: {error}"
        for known, got in zip(one.results, results, strict=True):
            if not replace(known, got=got).passed:
                return "value", f"{one}: {known.name}"
            if one.in_bits and not np.array_equal(got, known.got, equal_nan=True):
                other_bits = other_bits or f"{one}: {known.name}"
    return ("bits", other_bits) if other_bits else ("alive", "")


def _kind(report: str) -> str:
    if "compiler refused" in report:
        return "does not compile"
    return "endless" if "does a loop never end" in report else "emulator"


def verdict_of_the_tests(checkout: Path, keywords: str) -> tuple[str, str]:
    """("test" | "crash" | "endless" | "alive", the test that failed) of tests/kernels in a copy of the checkout."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "tests/kernels"]
    command += ["-k", keywords]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    try:
        ran = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=MOST_SECONDS
        )
    except subprocess.TimeoutExpired:
        return "endless", f"no end of tests/kernels after {MOST_SECONDS} seconds"
    if ran.returncode in (0, 5):  # passed, or none chosen
        return "alive", ""
    if ran.returncode < 0:
        return "crash", f"signal {-ran.returncode} in tests/kernels"
    failed = re.search(r"^(?:FAILED|ERROR) (.*)", ran.stdout, re.MULTILINE)
    if ran.returncode != 1 or not failed:
        raise RuntimeError(f"pytest tests/kernels did not run in {checkout}:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return "test", failed[1]


def keywords_of(file: str, kernels: set[tuple[str, str]], table: Iterable[Known]) -> list[str]:
    """For pytest's -k, one run after the other: the tests that name an op or a kernel in which it takes part, the file,
    the end of its name ("mma") or math.cuh; then all tests, unless it is in a header, for which many kernels would be
    compiled anew."""
    ends = {Path(cu).stem.rpartition("_")[2] for cu, _ in kernels}
    words = {"math", Path(file).stem, *ends, *(name for _, name in kernels), *(one.case.op for one in table)}
    return [" or ".join(sorted(words)), *([] if file.endswith(".cuh") else [""])]


def judge(folder: Path, kernels: set[tuple[str, str]], table: list[Known], keywords: list[str], answer: Pipe) -> None:
    """Answer the verdict of the mutant in this copy of the checkout: in a process of its own, for it may crash."""
    os.setpgrp()
    faulthandler.disable()  # a crash is a verdict, and pytest would print where
    verdict = verdict_of_the_table(folder / "kernels", kernels, table)
    for words in keywords:
        if verdict[0] in ("bits", "alive"):
            by_tests = verdict_of_the_tests(folder, words)
            verdict = by_tests if by_tests[0] != "alive" else verdict
    answer.send(verdict)


def copy_of_the_checkout(folder: Path) -> Path:
    """What tests/kernels needs, with kernels that may be changed."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("gpucnn", "kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@dataclass(frozen=True)
class Trial:
    """A mutant that is being judged."""

    mutant: Mutant
    folder: Path
    process: BaseProcess
    start: float


class Judge:
    """Judges mutants, each in a process of its own and at most `jobs` at a time."""

    def __init__(self, folder: Path, jobs: int, table: list[Known]) -> None:
        self.table = table
        self.kernels = kernels_of(kernel_folder())
        self.free = [copy_of_the_checkout(folder / f"checkout-{i}") for i in range(jobs)]
        self.trials: dict[Pipe, Trial] = {}
        self.kills: Counter[tuple[str, str]] = Counter()

    def try_unchanged(self) -> None:
        """Raises RuntimeError if the tests fail in a copy without a mutant: then no failure would mean anything."""
        outcome, detail = verdict_of_the_tests(self.free[0], "")
        if outcome != "alive":
            raise RuntimeError(f"{detail} fails in {self.free[0]} although no kernel is changed there")

    def verdicts(self, waiting: Iterable[Mutant]) -> Iterator[tuple[Mutant, str, str]]:
        """Each mutant with its verdict, as they come."""
        queue = list(reversed(list(waiting)))
        while queue or self.trials:
            while queue and self.free:
                self._start(queue.pop())
            wait(self.trials, timeout=1)
            for answer, trial in list(self.trials.items()):
                if answer.poll() or time.monotonic() - trial.start > 2 * MOST_SECONDS:
                    yield trial.mutant, *self._end(answer)

    def _start(self, mutant: Mutant) -> None:
        kernels = self.kernels.get((mutant.file, mutant.function), set())
        # First the cases that killed most of this function's mutants, then the cheapest.
        table = sorted(
            (one for one in self.table if one.kernels & kernels),
            key=lambda one: (one.way.dtype == "float64", -self.kills[mutant.function, str(one)], one.cost),
        )
        folder = self.free.pop()
        text = (kernel_folder() / mutant.file).read_text("utf-8")
        (folder / "kernels" / mutant.file).write_text(mutant.applied(text), "utf-8")
        receiver, sender = multiprocessing.Pipe(duplex=False)
        arguments = (folder, kernels, table, keywords_of(mutant.file, kernels, table), sender)
        process = multiprocessing.get_context("fork").Process(target=judge, args=arguments)
        process.start()
        sender.close()
        self.trials[receiver] = Trial(mutant, folder, process, time.monotonic())

    def _end(self, answer: Pipe) -> tuple[str, str]:
        trial = self.trials.pop(answer)
        outcome, detail = "endless", f"no verdict after {2 * MOST_SECONDS} seconds"
        if answer.poll():
            try:
                outcome, detail = answer.recv()
            except EOFError:
                outcome, detail = "crash", "the process crashed"
        elif trial.process.pid:
            os.killpg(trial.process.pid, signal.SIGKILL)
        trial.process.join()
        shutil.copy(kernel_folder() / trial.mutant.file, trial.folder / "kernels")
        self.free.append(trial.folder)
        if outcome in ("value", "emulator", "endless"):
            self.kills[trial.mutant.function, detail.partition(": ")[0]] += 1
        return outcome, detail


# -- the record of a run -----------------------------------------------------------------------------------------------


def digest(*paths: Path) -> str:
    """Of these files' contents."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def digests(mutant: Mutant) -> dict[str, str]:
    """What a verdict depends on: a kill on the file, survival on all kernels and tests as well."""
    everything = [*kernel_folder().glob("*.cu*"), ROOT / "gpucnn" / "testing.py", *(ROOT / "tests").rglob("*.py")]
    return {"file": digest(kernel_folder() / mutant.file), "suite": digest(*sorted(everything))}


def recorded(path: Path) -> dict[str, dict[str, str]]:
    """The verdicts of earlier runs, by mutant."""
    if not path.exists():
        return {}
    return {record["mutant"]: record for record in map(json.loads, path.read_text("utf-8").splitlines())}


def still_holds(record: dict[str, str] | None, now: dict[str, str]) -> bool:
    """Whether a verdict needs no second look."""
    if record is None or record["file"] != now["file"]:
        return False
    return record["outcome"] not in ("alive", "bits") or record["suite"] == now["suite"]


def reasons() -> dict[str, tuple[str, str]]:
    """{mutant: ("equivalent" | "alive", why)} of bench/mutants.toml."""
    groups = tomllib.loads(REASONS.read_text("utf-8"))
    return {
        mutant: (kind, group["why"]) for kind in ("equivalent", "alive") for group in groups.get(kind, [])
        for mutant in group["mutants"]
    }  # fmt: skip


# -- the page ----------------------------------------------------------------------------------------------------------

COLUMNS = ("value", "emulator", "endless", "crash", "test", "bits")


def page(made: list[Mutant], verdicts: dict[str, dict[str, str]], sample: int | None) -> str:
    """docs/mutants.md."""
    why = reasons()
    rows, alive, same = list[str](), list[Mutant](), list[Mutant]()
    total: Counter[str] = Counter()
    for file in sorted({mutant.file for mutant in made}):
        of_file = [mutant for mutant in made if mutant.file == file]
        count: Counter[str] = Counter()
        for mutant in of_file:
            outcome = verdicts[str(mutant)]["outcome"] if str(mutant) in verdicts else "not run"
            if outcome in ("alive", "not run") and why.get(str(mutant), ("",))[0] == "equivalent":
                outcome = "equivalent"
            count[outcome] += 1
            (alive if outcome == "alive" else same if outcome == "equivalent" else []).append(mutant)
        rows.append(_row(file, count))
        total += count
    drawn = "every mutant" if sample is None else f"at most {sample} mutants of each function and macro, drawn by hash"
    lines = [
        "# The mutants of the kernels",
        "",
        f"Made by `make mutants` on {date.today()}: {drawn}, so {sum(total.values())}. {total['does not compile']} of "
        f"them do not compile and are no mutants. Of the {_judged(total)} that compile and do not compute the same, "
        f"{_killed(total)} are killed: **{_percent(total)}**.",
        "",
        "The columns say what killed a mutant first: a result of the case table out of its bound, a report of the "
        "emulator, a launch without end, a crash, a test of `tests/kernels`, or only other bits than those in "
        "`tests/bits/emulator.json`.",
        "",
        "| file | mutants | value | emulator | endless | crash | test | bits | equivalent | alive | killed |",
        "|---|" + "--:|" * 10,
        *rows,
        _row("all", total),
        "",
        "## Alive",
        "",
        *(_listed(alive, why) or ["None."]),
        "",
        "## Equivalent",
        "",
        "These compute the same as the kernel, so no test can kill them.",
        "",
        *_listed(same, why),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _judged(count: Counter[str]) -> int:
    return _killed(count) + count["alive"]


def _killed(count: Counter[str]) -> int:
    return sum(count[outcome] for outcome in COLUMNS)


def _percent(count: Counter[str]) -> str:
    return f"{100 * _killed(count) / max(_judged(count), 1):.1f} %"


def _row(name: str, count: Counter[str]) -> str:
    cells = [_judged(count) + count["equivalent"], *(count[outcome] for outcome in COLUMNS)]
    return f"| {name} | {' | '.join(map(str, [*cells, count['equivalent'], count['alive']]))} | {_percent(count)} |"


def _listed(some: list[Mutant], why: dict[str, tuple[str, str]]) -> list[str]:
    by_reason: dict[str, list[Mutant]] = {}
    for mutant in some:
        by_reason.setdefault(why.get(str(mutant), ("", "not looked at yet"))[1], []).append(mutant)
    return [
        line
        for reason, group in by_reason.items()
        for line in (f"- {reason}", *(f"    - {m.file}:{m.line} `{m.shown}`" for m in group))
    ]


# -- the command -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sample", type=int, default=6, help="mutants of each function (default: 6)")
    parser.add_argument("--all", action="store_true", help="every mutant: some hours")
    parser.add_argument("--only", nargs="+", help="only mutants whose name (file function: line) contains one of these")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutants", help="for the copies and the record")
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    asked = parser.parse_args()
    sample = None if asked.all else asked.sample
    used = sorted({file for file, _ in kernels_of(kernel_folder())})
    made = [m for file in used for m in mutants(file, (kernel_folder() / file).read_text("utf-8"))]
    drawn = [m for m in chosen(made, sample) if not asked.only or any(word in str(m) for word in asked.only)]
    if asked.list:
        print(*(f"{m.file}:{m.line}:{m.column} {m}" for m in drawn), sep="\n")
        return
    run(drawn, asked.folder, asked.jobs)
    verdicts = recorded(asked.folder / "verdicts.jsonl")
    text = page(drawn, verdicts, sample)
    if asked.only:
        print(text)
    else:
        write_text(PAGE, text)


def run(drawn: list[Mutant], folder: Path, jobs: int) -> None:
    """Judge the mutants that have no verdict yet and no reason to be equivalent, and append each to the record."""
    from rich.progress import Progress

    folder.mkdir(parents=True, exist_ok=True)
    os.environ["GPUCNN_CACHE"] = str(folder / "cache")
    record, why = folder / "verdicts.jsonl", reasons()
    before = recorded(record)
    now = {mutant.file: digests(mutant) for mutant in drawn}
    waiting = [
        mutant
        for mutant in drawn
        if why.get(str(mutant), ("",))[0] != "equivalent" and not still_holds(before.get(str(mutant)), now[mutant.file])
    ]
    with Progress() as progress, record.open("a", encoding="utf-8") as out:
        task = progress.add_task("the unchanged kernels", total=len(waiting))
        kernels = kernels_of(kernel_folder())
        wanted = set().union(*(kernels.get((mutant.file, mutant.function), set()) for mutant in waiting))
        table = known(ways(), wanted, EmulatorDevice())
        judge_of_all = Judge(folder, jobs, table)
        if waiting:
            judge_of_all.try_unchanged()
        for mutant, outcome, detail in judge_of_all.verdicts(waiting):
            line = {"mutant": str(mutant), "outcome": outcome, "detail": detail, **now[mutant.file]}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            progress.update(task, advance=1, description=f"{mutant.file} {mutant.function}: {outcome}")


if __name__ == "__main__":
    main()
