"""PTX, read: the kernels of a module, each with its registers, its memory and its instructions.

What NVRTC writes is read, not all that PTX allows. Source: PTX ISA 9, "Syntax" and "State Spaces, Types and Variables".
"""

from __future__ import annotations

import math
import re
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
    """One instruction: its opcode in parts, its operands (an int is an immediate one, of a float its bits), and whose
    predicate it obeys: (the register's number, the value that lets it run)."""

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


def rounded_up(number: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-number // to) * to


def read(text: str, only: str | None = None) -> dict[str, Kernel]:
    """The kernels of a module, or the one of that name. Raises KernelError for what is not understood."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"^(\s*\.loc\s[^\n]*)", r"\1;", text, flags=re.MULTILINE)
    entries = list(re.finditer(r"\.entry (\w+)\((.*?)\)([^{]*)\{", text, re.DOTALL))
    outside = _shared(text[: entries[0].start()] if entries else text)
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE))
    kernels = {}
    for found in entries:
        name, parameters, limits = found.groups()
        if only not in (None, name):
            continue
        body = list(_statements(text, found.end()))
        most = re.search(r"\.maxntid (\d+), (\d+), (\d+)", limits)
        shared, bytes_ = _places(_shared("\n".join(body)) + outside)
        threads = math.prod(map(int, most.groups())) if most else 1024
        names, types = _registers(name, body)
        kernels[name] = Kernel(name, _parameters(parameters), types, shared, bytes_, threads)
        _add_code(kernels[name], body, names, files)
    return kernels


def _statements(text: str, start: int) -> Iterator[str]:
    """Directives, labels and instructions from there to the brace that closes the kernel, without those of scopes."""
    depth, pending = 1, ""
    for part in re.split(r"([;{}]|^\s*[$\w]+:)", text[start:], flags=re.MULTILINE):
        if part == "{" and not pending.strip():
            depth += 1
        elif part == "}" and not pending.strip():
            depth -= 1
            if not depth:
                return
        elif part == ";" or part.endswith(":"):
            yield " ".join((pending + part.rstrip(";")).split())
            pending = ""
        else:
            pending += part


def _parameters(text: str) -> dict[str, tuple[int, int]]:
    places, end = {}, 0
    for align, type_, name, count in re.findall(
        r"\.param (?:\.align (\d+) )?\.(\w+)(?: \.ptr[^,\n]*)? (\w+)(?:\[(\d+)\])?", text
    ):
        size = TYPES[type_].itemsize * int(count or 1)
        start = rounded_up(end, int(align or size))
        places[name] = (start, size)
        end = start + size
    return places


def _shared(text: str) -> list[tuple[str, int, int]]:
    """The name, bytes and alignment of each variable in shared memory; one of unknown length has 0 bytes."""
    found = re.findall(r"\.shared \.align (\d+) \.(\w+) (\w+)(\[(\d*)\])?", text)
    return [
        (name, TYPES[type_].itemsize * int(count or not brackets), int(align))
        for align, type_, name, brackets, count in found
    ]


def _places(variables: list[tuple[str, int, int]]) -> tuple[dict[str, int], int]:
    """Where each begins, and the bytes of all. Dynamic memory comes last."""
    places, end = {}, 0
    for name, bytes_, align in sorted(variables, key=lambda variable: variable[1] == 0):
        places[name] = rounded_up(end, align)
        end = places[name] + bytes_
    return places, end


def _registers(kernel: str, body: list[str]) -> tuple[dict[str, int], list[np.dtype[Any]]]:
    """The numbers of the registers by name, and their types."""
    names: dict[str, int] = {}
    types: list[np.dtype[Any]] = []
    for type_, listed in (re.fullmatch(r"\.reg \.(\w+) (.*)", one).groups() for one in body if one.startswith(".reg ")):  # type: ignore[union-attr]
        for one in listed.split(","):
            prefix, _, count = one.strip().partition("<")
            for name in [f"{prefix}{i}" for i in range(int(count.rstrip(">")))] if count else [prefix]:
                if name not in names:
                    names[name] = len(types)
                    types.append(TYPES[type_])
                elif types[names[name]] != TYPES[type_]:
                    raise KernelError(f"{kernel}: {name} is a register of two types, in two scopes")
    return names, types


def _add_code(kernel: Kernel, body: list[str], names: dict[str, int], files: dict[str, str]) -> None:
    line = "?"
    for statement in body:
        if statement.startswith(".loc"):
            number, row = statement.split()[1:3]
            line = f"{files.get(number, '?').rpartition('/')[2]}:{row}"
        elif statement.endswith(":"):
            if statement[:-1] in kernel.labels:
                raise KernelError(f"{kernel.name}: the label {statement} is there twice, in two scopes")
            kernel.labels[statement[:-1]] = len(kernel.code)
        elif statement and not statement.startswith("."):
            kernel.code.append(_instruction(statement, names, kernel, line))


def _instruction(statement: str, names: dict[str, int], kernel: Kernel, line: str) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)([%\w]+) )?([\w.:]+) ?(.*)", statement)
    if not found or (found[2] and found[2] not in names):
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
            base, _, offset = base.partition("+")
            return Address(operand(base), int(offset or "0", 0), tuple(operand(part) for part in coordinates))
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
            return int(text[2:], 16)  # its bits
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
