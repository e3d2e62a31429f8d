"""PTX, read: the kernels of a module, each with its registers, its memory and its instructions.

What NVRTC writes is read, not all that PTX allows. Source: PTX ISA 9, "Syntax" and "State Spaces, Types and Variables".
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpucnn.devices.base import KernelError

# What a register of each type holds. Untyped bits are unsigned.
TYPES: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(np.bool_),
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    **{f"{kind}{bits}": np.dtype(f"uint{bits}") for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class Register:
    """A register, by its number among all of the kernel."""

    number: int


@dataclass(frozen=True)
class Special:
    """%tid.x and its like."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """The address of a variable, or of a parameter."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset], and what else the brackets of a tensor copy hold."""

    base: Any
    offset: int
    coordinates: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Instruction:
    """One instruction: its opcode in parts, its operands (int and float are immediate ones), and whose predicate it
    obeys: (the register's number, the value that lets it run)."""

    opcode: tuple[str, ...]
    operands: tuple[Any, ...]
    guard: tuple[int, bool] | None
    text: str
    line: str  # of the source, "file:line"

    @property
    def type(self) -> np.dtype[Any]:
        """The last type of the opcode."""
        return TYPES[next(part for part in reversed(self.opcode) if part in TYPES)]


@dataclass
class Kernel:
    """One entry of a module."""

    name: str
    parameters: dict[str, tuple[int, int]]  # where each begins, and its bytes
    registers: list[np.dtype[Any]]
    shared: dict[str, int]  # where each variable begins
    shared_bytes: int
    most_threads: int  # of a block
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def read(text: str) -> dict[str, Kernel]:
    """The kernels of a module."""
    text = re.sub(r"//[^\n]*", "", text)
    head = text[: text.find(".entry")] if ".entry" in text else text
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE))
    outside = [(name, int(bytes_ or 0), int(align)) for align, name, bytes_ in _SHARED.findall(head)]
    kernels = {}
    for found in re.finditer(r"\.entry (\w+)\((.*?)\)([^{]*)\{(.*?)^\}", text, re.DOTALL | re.MULTILINE):
        name, parameters, limits, body = found.groups()
        most = re.search(r"\.maxntid (\d+), (\d+), (\d+)", limits)
        threads = math.prod(map(int, most.groups())) if most else 1024
        kernels[name] = _kernel(name, parameters, threads, body, outside, files)
    return kernels


_SHARED = re.compile(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d*)\]")


def _kernel(
    name: str, parameters: str, most_threads: int, body: str, outside: list[tuple[str, int, int]], files: dict[str, str]
) -> Kernel:
    places, end = {}, 0
    for align, type_, of, bytes_ in re.findall(
        r"\.param (?:\.align (\d+) )?\.(\w+)(?: \.ptr[^,\n]*)? (\w+)(?:\[(\d+)\])?", parameters
    ):
        size = TYPES[type_].itemsize * int(bytes_ or 1)
        end = -(-end // int(align or size)) * int(align or size)
        places[of] = (end, size)
        end += size
    names: dict[str, int] = {}
    types: list[np.dtype[Any]] = []
    for type_, listed in re.findall(r"^\s*\.reg \.(\w+)\s+([^;]*);", body, re.MULTILINE):
        for one in listed.split(","):
            prefix, _, count = one.strip().partition("<")
            for i in range(int(count.rstrip(">"))) if count else [None]:
                full = prefix if i is None else f"{prefix}{i}"
                if full not in names:
                    names[full] = len(types)
                    types.append(TYPES[type_])
    shared, at = {}, 0
    inside = [(variable, int(bytes_), int(align)) for align, variable, bytes_ in _SHARED.findall(body)]
    for variable, bytes_, align in sorted(inside + outside, key=lambda one: one[1] == 0):  # dynamic memory comes last
        at = -(-at // align) * align
        shared[variable] = at
        at += bytes_
    kernel = Kernel(name, places, types, shared, at, most_threads)
    line = "?"
    for statement in _statements(body):
        if statement.startswith(".loc"):
            number, row = statement.split()[1:3]
            line = f"{files.get(number, '?').rpartition('/')[2]}:{row}"
        elif statement.endswith(":"):
            kernel.labels[statement[:-1]] = len(kernel.code)
        elif not statement.startswith("."):
            kernel.code.append(_instruction(statement, names, kernel, line))
    return kernel


def _statements(body: str) -> Iterator[str]:
    """Directives, labels and instructions, without the braces of scopes."""
    pending = ""
    for line in body.split("\n"):
        line = line.strip()
        if not pending and (line in ("", "{", "}") or line.startswith(".loc") or re.fullmatch(r"[$\w]+:", line)):
            if line.strip("{}"):
                yield line
            continue
        pending = f"{pending} {line}".strip()
        while ";" in pending:
            statement, _, pending = pending.partition(";")
            pending = pending.strip()
            yield statement.strip()


def _instruction(statement: str, names: dict[str, int], kernel: Kernel, line: str) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([\w.:]+)\s*(.*)", statement, re.DOTALL)
    if not found:
        raise KernelError(f"{kernel.name}: can't read the instruction {statement!r}")
    negated, predicate, opcode, rest = found.groups()

    def operand(text: str) -> Any:
        text = text.strip()
        if text in names:
            return Register(names[text])
        if text.startswith("{"):
            return tuple(operand(part) for part in _split(text[1:-1]))
        if text.startswith("["):
            base, *coordinates = _split(text[1:-1])
            base, sign, offset = re.fullmatch(r"([%$\w]+)\s*(\+?)\s*(-?\w*)", base).groups()  # type: ignore[union-attr]
            return Address(operand(base), int(offset, 0) if sign else 0, tuple(operand(part) for part in coordinates))
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return struct.unpack(">f", bytes.fromhex(text[2:]))[0]
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return struct.unpack(">d", bytes.fromhex(text[2:]))[0]
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
            return int(text.rstrip("U"), 0)
        if text.startswith("%"):
            return Special(text[1:])
        return Symbol(text)

    operands = tuple(operand(part) for part in _split(rest))
    guard = (names[predicate], not negated) if predicate else None
    return Instruction(tuple(opcode.split(".")), operands, guard, statement, line)


def _split(text: str) -> list[str]:
    """By the commas, and a destination's bar, that are in no brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character in ",|" and not depth:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]] if text.strip() else []
