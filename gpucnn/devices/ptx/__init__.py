"""PtxDevice: runs what NVRTC makes of the kernels, on the CPU. A test instrument, as the emulator is.

The emulator runs the kernels' C++, with twins in the place of what is written as assembly. Here the PTX that a driver
would get is interpreted: so the assembly itself, the branches that only a GPU's compiler takes, and what that compiler
makes of all are tested too.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.devices import nvrtc
from gpucnn.devices.base import (
    Constants,
    Dim,
    KernelError,
    Parameter,
    Specialisation,
    hash_of_kernels,
    kept,
    needed_architecture,
    signature_of,
)
from gpucnn.devices.host import Instrument
from gpucnn.devices.ptx import hopper, scalar, warp
from gpucnn.devices.ptx.code import Instruction, Kernel, Special, read
from gpucnn.devices.ptx.machine import SPECIALS, At, Buffer, Memory, Program, Step, Wave, unknown
from gpucnn.devices.tensor_map import TensorMap
from gpucnn.dtypes import is_floating

OLDEST = (7, 5)  # that NVRTC 13 compiles for


class PtxDevice(Instrument):
    """Runs kernels as NVRTC compiles them for a GPU of that `capability`, 7.5 if None.

    `kernels` is the folder of the .cu files, gpucnn's own if None. What NVRTC made is kept in GPUCNN_CACHE.

    Raises KernelError for a launch that does not fit the kernel's signature, code that NVRTC refuses, an access out of
    bounds or off its boundary, a write to what is const, a barrier or a warp's instruction that not all threads come
    to, a loop that does not end, and an instruction that it does not know; RuntimeError if there is no NVRTC.
    """

    name = "ptx"

    def __init__(self, kernels: Path | None = None, capability: tuple[int, int] | None = None) -> None:
        super().__init__(kernels, capability)
        self._program = lru_cache(maxsize=128)(self._compiled)
        nvrtc.library()

    def step(self, program: Program, one: Instruction) -> Step:
        """What an instruction of a kernel does. One that is not known raises KernelError."""
        return step(program, one)

    def launch(self, file: str, name: str, constants: Constants, grid: Dim, block: Dim, *arguments: Any) -> None:
        signature = signature_of(self.kernels, file, name)
        bound = signature.bound(constants)
        bound.check(arguments, np)
        program = self._program(file, name, tuple(sorted(constants.items())), self._architecture)
        kernel = program.kernel
        self.check_blocks(name, grid, block, kernel.most_threads, "its PTX allows")
        if self.noted(file, name, constants, grid, block, *arguments):
            return
        given = [_bound(*one) for one in zip(signature.parameters, arguments, bound.types, strict=True)]
        memory = Memory([buffer for buffers, _ in given for buffer in buffers])
        packed = _packed(kernel, [value for _, value in given])
        with np.errstate(all="ignore"):
            for blocks in program.waves(math.prod(grid), block):
                Wave(program, memory, packed, grid, block, blocks).run()

    def prepare(self, specialisations: Iterable[Specialisation]) -> Iterator[Specialisation]:
        """Compile one after the other, and keep what comes out."""
        for one in specialisations:
            self._ptx(one.file, one.constants, self._architecture)
            yield one

    @property
    def _architecture(self) -> str:
        major, minor = self.capability or OLDEST
        return f"{major}{minor}"

    def _compiled(self, file: str, name: str, constants: tuple[tuple[str, Any], ...], architecture: str) -> Program:
        kernel = read(self._ptx(file, constants, architecture), name)[name]
        return Program(kernel, int(dict(constants).get("DYNAMIC_SHARED", 0)), self.step)

    def _ptx(self, file: str, constants: tuple[tuple[str, Any], ...], architecture: str) -> str:
        """What NVRTC makes of a file, or made of it when the folder had the same kernels."""
        path = self.kernels / file
        only = needed_architecture(path.read_text("utf-8"))
        virtual = f"compute_{only.removeprefix('sm_') if only else architecture}"

        def make() -> bytes:
            try:
                return nvrtc.compiled(path, virtual, constants, "PTX", "-lineinfo")[1].rstrip(b"\0")
            except RuntimeError as error:
                raise KernelError(f"NVRTC refused {file} with {dict(constants)} for {virtual}:\n{error}") from error

        content = (hash_of_kernels(self.kernels), file, repr(constants), virtual, *nvrtc.OPTIONS, nvrtc.version())
        return kept("ptx/*.ptx", content, make).read_text("utf-8")


def _bound(p: Parameter, argument: Any, dtype: np.dtype[Any]) -> tuple[list[Buffer], bytes]:
    """The memory that an argument gives to a launch, and its value. What is to be written is NaN until it is."""
    if p.extent is None:
        return [], dtype.type(argument).tobytes()
    if argument is None:
        return [], bytes(8)
    arrays = [argument.array] if isinstance(argument, TensorMap) else argument if p.table else [argument]
    for array in arrays:
        if p.written and is_floating(array.dtype):
            array.fill(np.nan)
    buffers = [Buffer(p.name, array, not p.constant) for array in arrays]
    if isinstance(argument, TensorMap):
        return buffers, argument.encoded
    if p.table:
        argument = np.array([array.ctypes.data for array in arrays], np.uint64)
        buffers.append(Buffer(f"the table {p.name}", argument, False))
    return buffers, struct.pack("<Q", argument.ctypes.data)


def _packed(kernel: Kernel, values: list[bytes]) -> bytes:
    """The arguments as they lie in memory."""
    sizes = [size for _, size in kernel.parameters.values()]
    if [len(value) for value in values] != sizes:
        raise KernelError(
            f"{kernel.name}: its parameters have {sizes} bytes in PTX, its arguments {[*map(len, values)]}"
        )
    packed = bytearray(max((start + size for start, size in kernel.parameters.values()), default=0))
    for (start, size), value in zip(kernel.parameters.values(), values, strict=True):
        packed[start : start + size] = value
    return bytes(packed)


# -- instructions ------------------------------------------------------------------------------------


def _copy(program: Program, one: Instruction) -> Step:
    """cp.async, of a thread or of the copy engine."""
    return (hopper.tensor_copy if one.opcode[2] == "bulk" else warp.copy)(program, one)


INSTRUCTIONS: dict[str, Callable[[Program, Instruction], Step]] = {
    **dict.fromkeys(scalar.ARITHMETIC, scalar.arithmetic),
    "setp": scalar.comparison, "selp": scalar.selection, "mov": scalar.move, "cvta": scalar.move,
    "cvt": scalar.conversion, "ld": scalar.load, "st": scalar.store,
    "bar": warp.barrier, "shfl": warp.shuffle, "ldmatrix": warp.load_matrix, "mma": warp.multiply, "cp": _copy,
    "mbarrier": hopper.mbarrier, "fence": hopper.fence, "wgmma": hopper.wgmma,
}  # fmt: skip


def step(program: Program, one: Instruction) -> Step:
    """What an instruction does; with a guard, for those whose predicate lets them."""
    specials = {operand.name for operand in one.operands if isinstance(operand, Special)}
    if one.opcode[0] not in INSTRUCTIONS or specials - SPECIALS:
        raise unknown(program, one)
    try:
        made = INSTRUCTIONS[one.opcode[0]](program, one)
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError):  # it has another form
        raise unknown(program, one) from None
    if one.guard is None:
        return made
    number, value = one.guard

    def guarded(wave: Wave, at: At) -> None:
        threads = wave.indices(at)
        obeying = threads[wave.registers[number][threads] == value]
        if len(obeying):
            made(wave, wave.at(obeying))

    return guarded
