"""The compile gate: NVRTC compiles every kernel of the case table for every architecture, without a GPU.

    python bench/compile_gate.py            # compile what changed; write docs/compile_gate.csv and docs/kernels.md
    python bench/compile_gate.py --check    # are both current? Exits with 1 if not
    ... --all                               # compile everything anew, also what has not changed or was checked here

A specialisation passes if it compiles, spills no register, has no stack frame (no array in local memory), and a block
of it fits a multiprocessor's registers. Kernels of LEAST_SHARES pass if the best variant's hot loop has that many
products. The table has a row for each, with a key: a hash of its source without comments, its constants, the options
and NVRTC's version. What is compiled are the launches of `gpucnn.testing.CASES` and the cases for large tiles, forward
and backward, and of training LeNet-5, which adds the optimisers; in float32 and float64; those of training LeNet-5 in
autocast to float16 and bfloat16; those of the cases for tensor cores, in each precision; and those of the cases for
kernels that are taken where a measurement says so. A kernel that none of them launches does not pass either. A file
with a line `// Needs sm_80` is compiled for that and later ones, one that needs sm_90a for that alone, in the place of
sm_90.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import re
import subprocess
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

import gpucnn
from gpucnn.atomic import write_atomically, write_text
from gpucnn.devices import nvrtc
from gpucnn.devices.base import cache_folder, kernel_folder, needed_architecture
from gpucnn.devices.recorder import Launched, RecorderDevice
from gpucnn.dtypes import HALVES
from gpucnn.nn import models
from gpucnn.testing import Way, evaluate, ways
from gpucnn.warmup import train_once

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
DISASSEMBLED = 90  # nvdisasm takes longer than the compiler, so one architecture stands for all
NVDISASM = "nvidia-cuda-nvdisasm"  # on PyPI
REGISTERS_OF_A_MULTIPROCESSOR = 65536
FEWER = "fewer values at once help: see docs/howto/new-kernel.md"
MOST_SHARED = 227 * 1024  # bytes of a block, on sm_90
# The least share of products in the hot loop that the best variant of a kernel must have, by its label on the page. The
# rest finds addresses: a change there can cost a fifth of the speed, and no test of results would notice.
LEAST_SHARES = {
    r"`(conv2d|matmul)_fma\w*`": 0.83,
    r"`(conv2d|matmul)_mma\w*`, 3 TF32": 0.30,
    r"`(conv2d|matmul)_mma\w*`, 1 TF32": 0.25,
    r"`conv2d_halo_\w+`, 3 TF32": 0.32,
    r"`conv2d_halo_\w+`, 1 TF32": 0.30,
    r"`conv2d_halo_\w+`, b?float16": 0.43,
    r"`(conv2d|matmul)_mma\w*`, b?float16": 0.30,
    r"`(conv2d|matmul)_wgmma\w*`, (b?float16|1 TF32)": 0.13,  # each has 32 times the products of one above
    r"`conv2d_winograd`": 0.78,
}
MOST_LINES = 20  # that are printed of what is wrong
MEND = "to mend it: make gate"
MEND_ALL = "the keys are right, the figures are not; to mend it: .venv/bin/python bench/compile_gate.py --all"

DOCS = Path(__file__).parent.parent / "docs"
TABLE, PAGE = DOCS / "compile_gate.csv", DOCS / "kernels.md"
CONFIRMED = cache_folder() / "compile_gate.txt"
BEGIN, END = "<!-- made by bench/compile_gate.py -->", "<!-- end of what it made -->"

Row = dict[str, str]
Figures = dict[str, int]  # some columns of a row
IDENTITY = ("kernel", "file", "scalar", "constants")


# -- what is compiled --------------------------------------------------------------------------------


class Unit(NamedTuple):
    """One compilation: a file, its constants, the kernels of the file that are launched with them, and the threads of
    the largest block that each is launched with."""

    path: Path
    constants: tuple[tuple[str, int | float | str], ...]
    kernels: tuple[str, ...]
    threads: tuple[int, ...] = ()

    def named(self, kernel: str) -> Row:
        """The columns of a kernel's row that say what it is of."""
        constants = " ".join(f"{name}={value}" for name, value in self.constants if name != "SCALAR")
        scalar = str(dict(self.constants).get("SCALAR", ""))
        return dict(zip(IDENTITY, (kernel, self.path.name, scalar, constants), strict=True))

    def rows(self, version: str) -> dict[str, Row]:
        """What is known of each kernel's row before it is compiled."""
        own = {"key": key(self, version), "nvrtc": version}
        return {kernel: self.named(kernel) | own for kernel in self.kernels}


def launched() -> list[Launched]:
    """Every launch of the case table and of training LeNet-5."""
    recorder = RecorderDevice()
    with warnings.catch_warnings(action="ignore"):  # what the recorder returns is any number, also NaN
        for case, way in ways(filled=True):
            with gpucnn.precision(way.precision):
                evaluate(case, way.backend(recorder), way.dtype)
        backend = Way().backend(recorder)
        for dtype in ("float32", "float64"):
            train_once(models.LeNet5().to(np.dtype(dtype)).to(backend), (1, 28, 28), 2)
        for half in HALVES:
            with gpucnn.autocast(half):
                for batch_norm in (False, True):
                    train_once(models.LeNet5(batch_norm=batch_norm).to(backend), (1, 28, 28), 2)
    return list(dict.fromkeys(recorder.launches))


def units(launches: Iterable[Launched], folder: Path) -> list[Unit]:
    """What is launched, the kernels of one file with the same constants together: they are compiled at once."""
    largest: dict[Any, dict[str, int]] = defaultdict(dict)
    for one in launches:
        blocks = largest[one.file, one.constants]
        blocks[one.name] = max(math.prod(one.block), blocks.get(one.name, 0))
    return [
        Unit(folder / file, constants, tuple(sorted(blocks)), tuple(blocks[name] for name in sorted(blocks)))
        for (file, constants), blocks in sorted(largest.items(), key=str)
    ]


def never_launched(launches: Iterable[Launched], folder: Path) -> list[str]:
    """A line for each kernel of the folder that no case launches."""
    known = {(one.file, one.name) for one in launches}
    entry = re.compile(r'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)\(')
    return [
        f"{path.name}: no case launches {name}; add one to gpucnn/testing.py"
        for path in sorted(folder.glob("*.cu"))
        for name in entry.findall(path.read_text("utf-8"))
        if (path.name, name) not in known
    ]


def architectures(path: Path) -> list[int]:
    """Those that a file is for: from the one that its header says it needs; of an "sm_90a" that one alone."""
    code = path.read_text("utf-8")
    if only := needed_architecture(code):
        return [int(only.strip("sm_a"))]
    needs = re.search(r"^// Needs +sm_(\d+)$", code, re.MULTILINE)
    return [a for a in ARCHITECTURES if a >= int(needs[1] if needs else 0)]


@cache
def source(path: Path) -> str:
    """The file with its headers in their places, without comments and blank lines: the same as long as the code is."""
    code = re.sub(r"//.*", "", path.read_text("utf-8"))
    code = re.sub(r'#include "(.+?)"', lambda header: source(path.parent / header[1]), code)
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


def key(unit: Unit, version: str) -> str:
    """A hash of all that the figures of a unit depend on."""
    of_unit = (source(unit.path), unit.constants, nvrtc.OPTIONS, architectures(unit.path))
    parts = (*of_unit, version, DISASSEMBLED, CLASSES, COLUMNS)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


# -- compiling ---------------------------------------------------------------------------------------


class Tools:
    """NVRTC and nvdisasm, from their wheels. Raises RuntimeError with the remedy where they are not installed."""

    def __init__(self) -> None:
        nvrtc.library()
        self.version = nvrtc.version()
        self._nvdisasm = str(nvrtc.in_wheel(NVDISASM, "nvdisasm"))

    def compile(self, unit: Unit, architecture: int) -> tuple[str, bytes]:
        """(what the assembler says of each kernel, the cubin). Raises RuntimeError with NVRTC's errors."""
        real = needed_architecture(unit.path.read_text("utf-8")) or f"sm_{architecture}"
        return nvrtc.compiled(unit.path, real, unit.constants, "CUBIN", "--ptxas-options=-v")

    def disassemble(self, cubin: bytes) -> dict[str, list[Instruction]]:
        """The machine code (SASS) of each kernel in a cubin."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            command = [self._nvdisasm, "-json", file.name]
            _, functions = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return {
            function["function-name"]: [
                Instruction(one["opcode"], one.get("operands", ""), "predicate" in one)
                for one in function["sass-instructions"]
            ]
            for function in functions
        }


class Usage(NamedTuple):
    """What a kernel needs: registers a thread, bytes of static shared memory a block, bytes of stack and spills."""

    registers: int
    shared: int
    stack: int
    spilled: int


def usage(log: str) -> dict[str, Usage]:
    """What the assembler says of each kernel."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        if not stacks or not registers:
            raise RuntimeError(f"can't read the assembler's report:\n{part}")
        shared = re.search(r"(\d+) bytes smem", part)
        frames, *spills = (sum(map(int, column)) for column in zip(*stacks, strict=True))
        found[part.partition("'")[0]] = Usage(int(registers[1]), int(shared[1]) if shared else 0, frames, sum(spills))
    return found


# -- machine code ------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    """One instruction of 16 bytes, and whether it is predicated."""

    opcode: str
    operands: str = ""
    predicated: bool = False


CLASSES = {
    "tensor": r"\w*MMA",
    "fma": r"[FDH]FMA2?",
    "arithmetic": r"[FDH](ADD|MUL|MNMX|SET|SEL|CHK)\w*|MUFU|F2\w+|I2F\w*|FRND",
    "shared_memory": r"(LD|ST)SM?|ATOMS|SHFL",
    "global_memory": r"(LD|ST)G?|LDGSTS|RED\w*|ATOMG?|UTMA\w+|UBLK\w+",
    "barrier": r"BAR|\w*DEPBAR|MEMBAR|ERRBAR|FENCE|SYNCS|CCTL",
    "control": r"BRA|BRX\w*|JM[PX]\w*|CALL|RET|EXIT|BSSY|BSYNC|BREAK|BMOV|WARPSYNC|YIELD|NANOSLEEP|BPT|KILL",
}


def class_of(instruction: Instruction) -> str:
    """The first class that names the opcode; what none names counts, moves and finds addresses: "integer"."""
    opcode = instruction.opcode.partition(".")[0]
    if opcode == "HFMA2" and "RZ,RZ" in instruction.operands.replace("-", ""):
        return "integer"  # 0 · 0 + constant is how the compiler writes a move
    return next((name for name, pattern in CLASSES.items() if re.fullmatch(pattern, opcode)), "integer")


def mix(code: Sequence[Instruction]) -> Figures:
    """How many instructions of each class; padding (NOP) is not counted."""
    classes = Counter(class_of(one) for one in code if one.opcode != "NOP")
    return {"instructions": classes.total()} | {name: classes[name] for name in (*CLASSES, "integer")}


def followers(code: Sequence[Instruction], i: int) -> list[int]:
    """The instructions that may come after the i-th. A called function is left out: the call comes back."""
    opcode, operands, predicated = code[i]
    opcode = opcode.partition(".")[0]
    after = [i + 1] if i + 1 < len(code) else []
    if opcode == "BRA":
        target = int(operands.rpartition(",")[2], 16) // 16
        return [target, *after] if predicated or "," in operands else [target]
    return [] if opcode in ("EXIT", "RET") and not predicated else after


def loops(code: Sequence[Instruction]) -> dict[int, set[int]]:
    """The natural loops: the instructions of each by its first one, which every way into it passes.

    A depth-first walk finds the branches back to an instruction it has come through. What leads to such a branch
    without passing that instruction is the loop's body (Aho et al., Compilers, §9.6).
    """
    before = defaultdict(list)
    backward = []
    path, seen = [(0, iter(followers(code, 0)))], {0}
    through = {0}
    while path:
        i, left = path[-1]
        for j in left:
            before[j].append(i)
            if j in through:
                backward.append((i, j))
            elif j not in seen:
                path.append((j, iter(followers(code, j))))
                seen.add(j)
                through.add(j)
                break
        else:
            path.pop()
            through.remove(i)
    bodies: dict[int, set[int]] = {}
    for last, first in backward:
        body, todo = bodies.setdefault(first, {first}), [last]
        while todo:
            i = todo.pop()
            if i not in body:
                body.add(i)
                todo += before[i]
    return bodies


def hot_loop(code: Sequence[Instruction]) -> list[Instruction]:
    """The loop with the most products (tensor, else multiply-adds) of its own, outside of the loops in it.

    Its instructions are returned with those of the loops in it; none if the code has no loop.
    """
    bodies = loops(code)

    def weight(first: int) -> tuple[int, int, int]:
        inner = (body for other, body in bodies.items() if other != first and other in bodies[first])
        own = mix([code[i] for i in bodies[first].difference(*inner)])
        return own["tensor"], own["fma"], own["instructions"]

    hottest = max(bodies, key=weight, default=None)
    return [] if hottest is None else [code[i] for i in sorted(bodies[hottest])]


# -- measuring ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    """The figures of a unit's kernels on one architecture, and why any of them is refused."""

    figures: dict[str, Figures]
    refused: list[str]


def compiled(unit: Unit, architecture: int, tools: Tools) -> Compiled:
    """Compile a unit for an architecture and read what came out."""

    def line(kernel: str, why: str) -> str:
        return f"{described(unit.named(kernel))} for sm_{architecture} {why}"

    try:
        log, cubin = tools.compile(unit, architecture)
    except RuntimeError as error:
        message = re.search(r".*\berror\b.*", str(error))
        return Compiled({}, [line(unit.kernels[0], f"does not compile: {message[0] if message else error}")])
    if "wgmma.mma_async instructions are serialized" in log:
        return Compiled({}, [line(unit.kernels[0], "waits for each wgmma: something reads its sums meanwhile")])
    used = usage(log)
    codes = tools.disassemble(cubin) if architecture == DISASSEMBLED else {}
    refused, figures = [], {}
    for kernel in unit.kernels:
        registers, shared, stack, spilled = used[kernel]
        shared += int(dict(unit.constants).get("DYNAMIC_SHARED", 0))
        if stack or spilled:
            refused.append(line(kernel, f"has a stack of {stack} bytes and {spilled} bytes of spills; {FEWER}"))
        threads = dict(zip(unit.kernels, unit.threads, strict=False)).get(kernel, 0)
        if -(-registers // 8) * 8 * threads > REGISTERS_OF_A_MULTIPROCESSOR:  # they are given out by eights
            refused.append(line(kernel, f"has blocks of {threads} threads with {registers} registers: they do not fit"))
        if shared > MOST_SHARED:
            refused.append(line(kernel, f"has blocks of {shared} bytes of shared memory: they do not fit"))
        figures[kernel] = {f"sm_{architecture}": registers}
        if architecture == DISASSEMBLED:
            loop = {f"loop_{name}": count for name, count in mix(hot_loop(codes[kernel])).items()}
            figures[kernel] |= {"shared": shared} | mix(codes[kernel]) | loop
    return Compiled(figures, refused)


def compile_all(work: Sequence[tuple[Unit, int]], tools: Tools) -> list[Compiled]:
    """Compile units for architectures, as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda one: compiled(one[0], one[1], tools), work)
        return list(track(results, "compiling", len(work), console=Console(stderr=True)))


# -- the table and the page --------------------------------------------------------------------------

REGISTERS = [f"sm_{a}" for a in ARCHITECTURES]
COUNTS = list(mix([]))
COLUMNS = [*IDENTITY, "key", "nvrtc", *REGISTERS, "shared", *COUNTS, *(f"loop_{name}" for name in COUNTS)]


def identity(row: Mapping[str, str]) -> tuple[str, ...]:
    """Which specialisation a row is of."""
    return tuple(row[name] for name in IDENTITY)


def described(row: Mapping[str, str]) -> str:
    """The same for people."""
    constants = ", ".join(filter(None, (row["scalar"], row["constants"])))
    return f"{row['file']}: {row['kernel']} ({constants})"


def read_table(path: Path) -> dict[tuple[str, ...], Row]:
    """The table's rows by their identity; none if there is no such file."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {identity(row): row for row in csv.DictReader(file)}


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """One row for each specialisation."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def by_kernel(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The rows by kernel, scalar, and how many products in TF32 make one of float32."""
    kernels = defaultdict(list)
    for row in rows:
        of_tf32 = re.search(r"\bPRODUCTS=(\d)", row["constants"])
        kernels[row["kernel"], row["scalar"], of_tf32[1] if of_tf32 else ""].append(row)
    return kernels


def labelled(kernel: str, scalar: str, products: str) -> str:
    """What the page calls them."""
    label = f"`{kernel}`" if scalar == "float" else f"`{kernel}`, {scalar}"
    return f"{label}, {products} TF32" if products else label


def hottest(variants: Iterable[Row]) -> dict[str, int]:
    """The hot loop of the variant that has the most products in it: instructions by class."""
    row = max(variants, key=lambda row: (int(row["loop_tensor"]), int(row["loop_fma"])))
    return {name: int(row[f"loop_{name}"]) for name in COUNTS}


def share(loop: Mapping[str, int]) -> float:
    """Of products among a loop's instructions."""
    return (loop["tensor"] or loop["fma"]) / max(loop["instructions"], 1)


def too_few_products(rows: Iterable[Row]) -> list[str]:
    """A line for each kernel of LEAST_SHARES whose hot loop has a smaller share of products."""
    lines = []
    for of, variants in by_kernel(rows).items():
        label, loop = labelled(*of), hottest(variants)
        for pattern, least in LEAST_SHARES.items():
            if re.fullmatch(pattern, label) and share(loop) < least:
                lines.append(f"{label}: {share(loop):.1%} of the hot loop are products, fewer than {least:.0%}")
    return lines


def section(rows: Sequence[Row]) -> str:
    """The part of the page that shows the rows: the worst of each kernel, and its hot loop. Double is one column."""
    kernels = by_kernel(rows)

    def most(of: Sequence[Row], *names: str) -> str:
        return str(max((int(row[name]) for row in of for name in names if row.get(name)), default="–"))

    usages, hot = [], []
    for (kernel, scalar, products), variants in kernels.items():
        if scalar == "double":
            continue
        label = labelled(kernel, scalar, products)
        double = most(kernels.get((kernel, "double", ""), []), *REGISTERS)
        worst = [most(variants, name) for name in REGISTERS]
        usages.append([label, str(len(variants)), *worst, double, most(variants, "shared")])
        loop = hottest(variants)
        if share(loop):
            kinds = ("instructions", "fma", "tensor", "shared_memory", "global_memory", "integer")
            hot.append([label, *(str(loop[kind]) for kind in kinds), f"{share(loop):.1%}"])
    numbers = f"{len(rows)} specialisations of {len({row['kernel'] for row in rows})} kernels"
    return "\n".join(
        (
            f"NVRTC {rows[0]['nvrtc']}, `{' '.join(nvrtc.OPTIONS)}`: {numbers}.",
            "",
            "Registers a thread:",
            "",
            *table(["kernel", "variants", *REGISTERS, "double", "shared bytes"], usages),
            "",
            f"Instructions of the hot loop, on sm_{DISASSEMBLED}:",
            "",
            *table(["kernel", "all", "FMA", "tensor", "shared", "global", "integer", "products"], hot),
        )
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["--:"] * (len(head) - 1)], *rows)]


def with_section(page: str, text: str) -> str:
    """The page with the part between the marks replaced. Raises ValueError if it lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}: the tables go between them")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


# -- the two commands --------------------------------------------------------------------------------


def gate(wanted: Sequence[Unit], tools: Tools, path: Path, page: Path, anew: bool = False) -> list[str]:
    """Compile what has no current row in the table, or everything `anew`, and write what passes into the table.

    The page is written if everything passes. Returns a line for each compilation that is refused.
    """
    with_section(page.read_text("utf-8"), "")  # an error now, not after minutes
    known = {} if anew else read_table(path)
    rows: dict[tuple[Unit, str], Row] = {}
    for unit in wanted:
        for kernel, row in unit.rows(tools.version).items():
            old = known.get(identity(row))
            rows[unit, kernel] = old if old is not None and old["key"] == row["key"] else row
    todo = [unit for unit in wanted if any("shared" not in rows[unit, kernel] for kernel in unit.kernels)]
    work = [(unit, architecture) for unit in todo for architecture in architectures(unit.path)]
    of_all = sum(len(architectures(unit.path)) for unit in wanted)
    print(f"{len(rows)} specialisations: {len(work)} of {of_all} compilations are to be done")
    refused: dict[Unit, list[str]] = defaultdict(list)
    for (unit, _), result in zip(work, compile_all(work, tools), strict=True):
        if result.refused:
            refused[unit] += result.refused
        for kernel, figures in result.figures.items():
            rows[unit, kernel].update((name, str(figure)) for name, figure in figures.items())
    source.cache_clear()
    for (unit, _), row in rows.items():
        if row["key"] != key(unit, tools.version):
            refused[unit].append(f"{described(row)} was edited while it was compiled")
    passed = sorted((row for (unit, _), row in rows.items() if unit not in refused), key=identity)
    write_table(path, passed)
    lines = [line for lines in refused.values() for line in lines] + too_few_products(passed)
    if not lines:
        write_text(page, with_section(page.read_text("utf-8"), section(passed)))
    return lines


def check(
    wanted: Sequence[Unit], tools: Tools, path: Path, page: Path, anew: bool = False, confirmed: Path | None = None
) -> list[str]:
    """A line for each way in which table or page are not what `gate` would write; the last says how to mend it.

    All keys are compared. If they are current, each unit is compiled again, for one architecture that its key chooses
    (for all of them `anew`), and the figures are compared. The file `confirmed` gets a hash of each unit with its
    figures once that has found nothing: what is in it is left out the next time (unless `anew`).
    """
    committed = read_table(path)
    others = {row["nvrtc"] for row in committed.values()} - {tools.version}
    if others:
        made = f"{path.name} was made with NVRTC {', '.join(sorted(others))}, but {tools.version} is installed"
        return [made, f'install the one that pyproject.toml pins (pip install -e ".[test]"), else {MEND}']
    rows = {identity(row): row for unit in wanted for row in unit.rows(tools.version).values()}
    states: Counter[tuple[str, str]] = Counter()
    for name in sorted(rows.keys() | committed.keys()):
        if name not in committed:
            states[name[0], "not in the table"] += 1
        elif name not in rows:
            states[name[0], "in the table, but no longer launched"] += 1
        elif committed[name]["key"] != rows[name]["key"]:
            states[name[0], "changed since the table was made"] += 1
    if states:
        return [*(f"{kernel}: {count} {state}" for (kernel, state), count in states.items()), MEND]
    text = page.read_text("utf-8")
    if with_section(text, section(list(committed.values()))) != text:
        return [f"{page.name} does not show what {path.name} says", MEND]
    if few := too_few_products(committed.values()):
        return [*few, MEND]
    known = set(confirmed.read_text("utf-8").split()) if confirmed and confirmed.exists() and not anew else set()
    marks = {unit: mark(committed[identity(row)] for row in unit.rows(tools.version).values()) for unit in wanted}
    work = [
        (unit, architecture)
        for unit in wanted
        if marks[unit] not in known
        for those in [architectures(unit.path)]
        for architecture in (those if anew else [chosen(those, key(unit, tools.version))])
    ]
    problems = []
    for (unit, _), result in zip(work, compile_all(work, tools), strict=True):
        problems += result.refused
        for kernel, figures in result.figures.items():
            row = committed[identity(unit.named(kernel))]
            wrong = [
                f"{name} {figure}, not {row[name]}" for name, figure in figures.items() if row[name] != str(figure)
            ]
            problems += [f"{described(row)}: {', '.join(wrong)}"] if wrong else []
    if problems:
        return [*problems, MEND_ALL]
    if confirmed:
        confirmed.parent.mkdir(parents=True, exist_ok=True)
        write_text(confirmed, "\n".join(sorted(marks.values())))
    return []


def mark(rows: Iterable[Row]) -> str:
    """A hash of rows of the table."""
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()


def chosen(architectures: Sequence[int], key: str) -> int:
    """One of the architectures; the same for the same key."""
    return architectures[int(key, 16) % len(architectures)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="say whether the table is current; write nothing")
    parser.add_argument("--all", action="store_true", help="compile everything anew, also what has not changed")
    arguments = parser.parse_args()
    try:
        tools = Tools()
    except RuntimeError as error:
        if not arguments.check or os.environ.get("CI"):
            raise SystemExit(f"compile gate: {error}") from None
        print(f"compile gate: skipped, {error}")
        return
    start = time.perf_counter()
    launches = launched()
    wanted = units(launches, kernel_folder())
    command = partial(check, confirmed=CONFIRMED) if arguments.check else gate
    problems = never_launched(launches, kernel_folder())
    problems = problems or command(wanted, tools, TABLE, PAGE, arguments.all)
    if problems:
        *lines, last = problems
        shown = lines[:MOST_LINES] + [f"... and {len(lines) - MOST_LINES} more"] * (len(lines) > MOST_LINES)
        raise SystemExit("\n".join([*shown, last, "compile gate: failed"]))
    done = "current" if arguments.check else "written"
    print(f"compile gate: {TABLE.name} and {PAGE.name} are {done} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
