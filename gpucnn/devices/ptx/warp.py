"""The instructions of a warp, of a block, and the asynchronous copies. Source: PTX ISA 9, where each is described."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.devices.ptx.code import TYPES, Instruction
from gpucnn.devices.ptx.machine import ENDED, WARP, Array, At, Fault, Program, Step, Wave, unknown

LANES = np.arange(WARP)
GROUP, MEMBER = LANES // 4, LANES % 4  # "groupID" and "threadID_in_group"


def barrier(program: Program, one: Instruction) -> Step:
    """bar.sync 0."""
    if one.opcode != ("bar", "sync") or one.operands != (0,):
        raise unknown(program, one)

    def step(wave: Wave, at: At) -> None:
        wave.barrier[at] = True

    return step


def shuffle(program: Program, one: Instruction) -> Step:
    """shfl.sync.bfly and shfl.sync.idx."""
    mode = one.opcode[2]
    if one.opcode[:2] != ("shfl", "sync") or mode not in ("bfly", "idx"):
        raise unknown(program, one)
    to, *within, source, lane, clamp, members = one.operands
    u32 = TYPES["u32"]

    def step(wave: Wave, at: At) -> None:
        threads = wave.indices(at)
        values, b, c, mask = (wave.each(operand, u32, at) for operand in (source, lane, clamp, members))
        own = (threads % WARP).astype(np.uint32)
        b = b & np.uint32(31)
        segment = (c >> np.uint32(8)) & np.uint32(31)
        last = (own & segment) | (c & np.uint32(31) & ~segment)
        other = own ^ b if mode == "bfly" else (own & segment) | (b & ~segment)
        inside = other <= last
        other = np.where(inside, other, own)
        there = wave.counter == ENDED
        there[threads] = True
        needed = (mask[:, None] >> LANES.astype(np.uint32)) & 1 == 1
        if (needed & ~there[(threads - threads % WARP)[:, None] + LANES]).any():
            raise Fault(int(threads[0]), "a thread of its mask does not come to it, nor has ended")
        whole = np.zeros(wave.threads, np.uint32)
        whole[threads] = values
        wave.set(to, whole[threads - threads % WARP + other], at)
        if within:
            wave.set(within[0], inside, at)

    return step


def load_matrix(program: Program, one: Instruction) -> Step:
    """ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16: lane l names row l % 8 of matrix l / 8."""
    turned = "trans" in one.opcode
    if ".".join(one.opcode).replace(".trans", "") != "ldmatrix.sync.aligned.m8n8.x4.shared.b16":
        raise unknown(program, one)
    registers, source = one.operands

    def step(wave: Wave, at: At) -> None:
        warps = wave.warps(at)
        addresses = wave.addresses(source, at)
        blocks, places = wave.shared_words(addresses, 16, at)
        rows = wave.shared.view(np.uint16)[blocks[:, None], places[:, None] * 8 + np.arange(8)]
        matrices = rows.reshape(len(warps), 4, 8, 8)
        if turned:
            matrices = matrices.swapaxes(2, 3)
        pairs = np.ascontiguousarray(matrices).view(np.uint32)  # [warp, matrix, row, pair]
        for i, register in enumerate(registers):
            wave.set(register, pairs[:, i, GROUP, MEMBER].reshape(-1), at)

    return step


def multiply(program: Program, one: Instruction) -> Step:
    """mma.sync.aligned.m16n8k8 of TF32 and .m16n8k16 of 16 bits, with sums in float.

    The products of an instruction are added in double, in order, and rounded once: what the emulator does too.
    """
    shape, kinds = one.opcode[3], one.opcode[6:]
    depths = {("m16n8k8", "tf32"): 8, ("m16n8k16", "f16"): 16, ("m16n8k16", "bf16"): 16}
    depth = depths.get((shape, kinds[1]))
    if depth is None or one.opcode[:3] != ("mma", "sync", "aligned") or one.opcode[4:6] != ("row", "col"):
        raise unknown(program, one)
    if kinds != ("f32", kinds[1], kinds[1], "f32"):
        raise unknown(program, one)
    to, a, b, c = one.operands
    read, (of_a, of_b) = OPERANDS[kinds[1]], PLACES[depth]

    def step(wave: Wave, at: At) -> None:
        warps = len(wave.warps(at))

        def matrix(registers: tuple[Any, ...], places: list[tuple[Array, Array]], shape: tuple[int, int]) -> Array:
            out = np.empty((warps, *shape))
            parts = [part for register in registers for part in read(wave.each(register, TYPES["b32"], at))]
            for (row, column), part in zip(places, parts, strict=True):
                out[:, row, column] = part.reshape(warps, WARP)
            return out

        left, right = matrix(a, of_a, (16, depth)), matrix(b, of_b, (depth, 8))
        sums = np.empty((warps, 16, 8))
        for register, (row, column) in zip(c, SUMS, strict=True):
            sums[:, row, column] = wave.each(register, TYPES["f32"], at).reshape(warps, WARP)
        total = np.zeros_like(sums)
        for k in range(depth):
            total += left[:, :, k, None] * right[:, k, None, :]
        result = (sums + total).astype(np.float32)
        for register, (row, column) in zip(to, SUMS, strict=True):
            wave.set(register, result[:, row, column].reshape(-1), at)

    return step


def tf32(words: Array) -> list[Array]:
    """The number in each word, cut to TF32."""
    return [(words & np.uint32(0xFFFFE000)).view(np.float32)]


def halves(words: Array) -> list[Array]:
    """The two in each word, the lower first."""
    pairs = np.ascontiguousarray(words).view(np.float16).reshape(-1, 2)
    return [pairs[:, 0], pairs[:, 1]]


def brains(words: Array) -> list[Array]:
    """The same of bfloat16: floats without their lower half."""
    return [(words << np.uint32(16)).view(np.float32), (words & np.uint32(0xFFFF0000)).view(np.float32)]


OPERANDS: dict[str, Callable[[Array], list[Array]]] = {"tf32": tf32, "f16": halves, "bf16": brains}
# Row and column of each element that a lane holds, as the figures of "Matrix Fragments for mma" have them.
SUMS = [(GROUP + 8 * (i // 2), 2 * MEMBER + i % 2) for i in range(4)]
PLACES: dict[int, tuple[list[tuple[Array, Array]], list[tuple[Array, Array]]]] = {
    8: (
        [(GROUP + 8 * (i % 2), MEMBER + 4 * (i // 2)) for i in range(4)],
        [(MEMBER + 4 * i, GROUP) for i in range(2)],
    ),
    16: (
        [(GROUP + 8 * (i // 2 % 2), 2 * MEMBER + i % 2 + 8 * (i // 4)) for i in range(8)],
        [(2 * MEMBER + i % 2 + 8 * (i // 2), GROUP) for i in range(4)],
    ),
}


def copy(program: Program, one: Instruction) -> Step:
    """cp.async of 16 bytes, of which the last operand says how many are read; the others are zeros."""
    if one.opcode == ("cp", "async", "commit_group"):
        return lambda wave, at: wave.copies.commit(at)
    if one.opcode == ("cp", "async", "wait_group"):
        newest = one.operands[0]
        return lambda wave, at: wave.copies.wait(newest, at)
    if one.opcode != ("cp", "async", "cg", "shared", "global") or one.operands[2] != 16:
        raise unknown(program, one)
    to, source = one.operands[:2]
    bytes_ = one.operands[3] if len(one.operands) > 3 else 16

    def step(wave: Wave, at: At) -> None:
        threads = wave.indices(at)
        blocks, places = wave.shared_words(wave.addresses(to, at), 16, at, True)
        taken = wave.each(bytes_, TYPES["u32"], at)
        addresses = wave.addresses(source, at)
        wave.check_boundary(addresses, 16, at)
        if (taken > 16).any() or (taken % 4).any():
            raise Fault(int(threads[0]), f"a copy of {int(taken.max())} bytes")
        words = np.zeros((len(threads), 4), np.uint32)
        for i in range(4):
            reads = np.flatnonzero(taken > 4 * i)
            if len(reads):
                words[reads, i] = wave.load("global", addresses[reads] + np.uint64(4 * i), TYPES["b32"], threads[reads])
        line = wave.shared.shape[1] // 4
        wave.copies.add(threads, (blocks * line + places * 4)[:, None] + np.arange(4), words)

    return step
