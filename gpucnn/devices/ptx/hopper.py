"""The instructions of sm_90a: mbarriers, tensor copies and products of a warpgroup, by what PTX ISA 9 says of them
("Parallel Synchronization and Communication Instructions: mbarrier", "Tensors", "Asynchronous Warpgroup Level Matrix
Multiply-Accumulate"). Copies land when nothing else can go on, products when their group is waited for.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import partial

import numpy as np

from gpucnn.devices.ptx.code import TYPES, Address, Instruction
from gpucnn.devices.ptx.machine import Array, At, Fault, Program, Step, Wave, unknown
from gpucnn.devices.ptx.warp import OPERANDS

WARPGROUP = 128
CHUNK = 16  # bytes that a swizzle moves together


def swizzled(address: Array) -> Array:
    """Swizzle by 128 bytes: the three bits of the row, of 128 bytes, flip those of the 16 bytes."""
    flipped: Array = address ^ ((address >> 7 & 7) << 4)
    return flipped


# -- mbarriers ---------------------------------------------------------------------------------------


@dataclass
class Mbarrier:
    """A phase is over when `missing` arrivals and `bytes` of copies have come."""

    arrivals: int
    missing: int
    phase: int = 0
    bytes: int = 0

    def over(self, parity: int) -> bool:
        """Whether the latest phase of that parity is; the one before the first is."""
        return self.phase & 1 != parity & 1

    def check(self) -> None:
        """Begin the next phase if this one is over."""
        if self.missing == 0 and self.bytes == 0:
            self.phase += 1
            self.missing = self.arrivals

    def arrive(self) -> None:
        """One arrival."""
        self.missing -= 1
        self.check()

    def expect(self, count: int) -> None:
        """So many bytes more belong to this phase; fewer where the number is negative: they have come."""
        self.bytes += count
        self.check()


# How many operands each form has; of another the last would be something else.
FORMS = {
    "init.shared::cta.b64": 2,
    "arrive.shared::cta.b64": 2,
    "arrive.expect_tx.shared::cta.b64": 3,
    "try_wait.parity.shared::cta.b64": 3,
}


def mbarrier(program: Program, one: Instruction) -> Step:
    """mbarrier.init, .arrive[.expect_tx] and .try_wait.parity, whose threads go on when the phase is over."""
    if FORMS.get(".".join(one.opcode[1:])) != len(one.operands):
        raise unknown(program, one)
    action, last = one.opcode[1], one.operands[-1]
    source = next(operand for operand in one.operands if isinstance(operand, Address))
    number = 0 if last is source else last  # of arrivals, of bytes, or a parity

    def step(wave: Wave, at: At) -> None:
        addresses = wave.addresses(source, at)
        wave.shared_words(addresses, 8, at)
        each = (wave.indices(at), addresses, wave.each(number, TYPES["u32"], at))
        for thread, address, count in zip(*(values.tolist() for values in each), strict=True):
            place = (int(wave.block[thread]), address)
            if action == "init":
                if place in wave.mbarriers:
                    raise Fault(thread, f"there is an mbarrier at byte {address} already")
                wave.mbarriers[place] = Mbarrier(count, count)
            elif place not in wave.mbarriers:
                raise Fault(thread, f"there is no mbarrier at byte {address}")
            elif action == "try_wait":
                wave.waiting[thread] = (place, count)
            else:
                wave.mbarriers[place].bytes += count
                wave.mbarriers[place].arrive()
        if action == "try_wait":
            wave.set(one.operands[0], np.bool_(True), at)

    return step


# -- the copy engine ---------------------------------------------------------------------------------


@dataclass
class Map:
    """What `tensor_map.described` packs: an array, the innermost axis first, and how it is walked."""

    start: int
    element: int
    rank: int
    by_pixels: bool
    sizes: tuple[int, ...]
    box: tuple[int, ...]
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def read(cls, data: bytes) -> Map:
        """From a parameter."""
        start, element, rank, pixels, *rest = struct.unpack_from("<Q3i14i", data)
        parts = [tuple(rest[i:j]) for i, j in ((0, 4), (4, 8), (8, 10), (10, 12), (12, 14))]
        return cls(start, element, rank, bool(pixels), parts[0], parts[1], *parts[2:])

    def begins_at(self, at: tuple[int, ...], offsets: tuple[int, ...]) -> bool:
        """Whether a walk by pixels may: inside of the bounding box."""
        within = zip(at[1:3], self.lower, self.upper, self.sizes[1:3], strict=True)
        return max(offsets) <= 255 and all(low <= i < size + up for i, low, up, size in within)

    def places(self, at: tuple[int, ...], offsets: tuple[int, ...]) -> list[Array]:
        """Where in each of the four axes the elements of a copy lie, in the order in which they come."""
        if not self.by_pixels:
            box = [np.arange(self.box[i]) + (at[i] if i < self.rank else 0) for i in range(4)]
            return [axis.reshape(-1) for axis in np.meshgrid(*reversed(box), indexing="ij")][::-1]
        pixels = []
        v, h, n = at[1:]
        for _ in range(self.box[1]):
            pixels.append((v + offsets[0], h + offsets[1], n))
            v += self.stride[0]
            if v > self.sizes[1] - 1 + self.upper[0]:
                v, h = self.lower[0], h + self.stride[1]
            if h > self.sizes[2] - 1 + self.upper[1]:
                h, n = self.lower[1], n + 1
        channels = at[0] + np.arange(self.box[0])
        rows = [np.repeat([pixel[i] for pixel in pixels], len(channels)) for i in range(3)]
        return [np.tile(channels, len(pixels)), *rows]


def tensor_copy(program: Program, one: Instruction) -> Step:
    """cp.async.bulk.tensor to shared memory, as boxes (.tile) or as pixels (.im2col), swizzled by 128 bytes."""
    form = ".".join(one.opcode[3:])
    found = re.fullmatch(r"tensor\.([34])d\.shared::cluster\.global\.(tile|im2col)\.mbarrier::complete_tx::bytes", form)
    if not found:
        raise unknown(program, one)
    to, source, barrier = one.operands[:3]
    (corner,) = source.coordinates
    by_pixels = found[2] == "im2col"
    taps = one.operands[3] if by_pixels else ()

    def copy(wave: Wave, thread: int) -> None:
        at = np.array([thread])
        target, of_barrier, start = (int(wave.addresses(address, at)[0]) for address in (to, barrier, source))
        place = (int(wave.block[thread]), of_barrier)
        walked = Map.read(wave.parameters[start : start + 128])
        where = tuple(int(wave.each(operand, TYPES["s32"], at)[0]) for operand in corner)
        offsets = tuple(int(wave.each(operand, TYPES["u16"], at)[0]) for operand in taps)
        if walked.by_pixels != by_pixels or len(where) != walked.rank:
            raise Fault(thread, "the tensor map is of the other kind")
        if place not in wave.mbarriers:
            raise Fault(thread, f"there is no mbarrier at byte {of_barrier}")
        if by_pixels and not walked.begins_at(where, offsets):
            raise Fault(thread, f"begins a walk at {where} with offsets {offsets}, outside of the bounding box")
        axes = walked.places(where, offsets)
        size = len(axes[0]) * walked.element
        if target % 1024 or target + size > program.shared_bytes:
            raise Fault(thread, f"copies {size} bytes to byte {target} of shared memory")
        wave.shared[place[0], target : target + size] = 0xFF
        wave.engine.append(partial(land, wave, thread, walked, axes, target, place))

    def step(wave: Wave, at: At) -> None:
        for thread in wave.indices(at).tolist():
            copy(wave, thread)

    return step


def land(wave: Wave, thread: int, walked: Map, axes: list[Array], target: int, place: tuple[int, int]) -> None:
    """The copy itself, to the block and for the mbarrier of that place. What lies outside comes as zeros, a float as
    the nearest TF32, of two the even one."""
    inside = np.ones(len(axes[0]), np.bool_)
    offset = np.zeros(len(axes[0]), np.int64)
    step = walked.element
    for axis, length in zip(axes, walked.sizes, strict=True):
        inside &= (axis >= 0) & (axis < length)
        offset += axis * step
        step *= length
    type_ = TYPES[f"b{8 * walked.element}"]
    values = np.zeros(len(inside), type_)
    addresses = (offset[inside] + walked.start).astype(np.uint64)
    if len(addresses):
        threads = np.full(len(addresses), thread)
        values[inside] = wave.memory.load(addresses, type_, wave.memory.find(addresses, type_.itemsize, threads))
    if walked.element == 4:
        finite = (values & np.uint32(0x7F800000)) != 0x7F800000
        even = values >> np.uint32(13) & np.uint32(1)
        values = np.where(finite, (values + np.uint32(0xFFF) + even) & np.uint32(0xFFFFE000), values)
    at = swizzled(target + np.arange(len(values)) * walked.element)
    wave.shared.view(type_)[place[0], at // walked.element] = values
    wave.mbarriers[place].expect(-len(values) * walked.element)


# -- products of a warpgroup -------------------------------------------------------------------------


def places_of(descriptor: int, rows: int, depth: int, element: int, across: bool, thread: int) -> Array:
    """The bytes in shared memory at which [rows, depth] of an operand begin: the canonical layouts, swizzled by 128.

    K-major, ((8, m), (T, 2)) : ((8 T, SBO), (1, T)); M- or N-major, ((T, 8, m), (8, k)) : ((1, T, LBO), (8 T, SBO)),
    where T elements are 16 bytes. Raises Fault, of that thread, for another swizzle.
    """
    start = (descriptor & 0x3FFF) << 4
    leading, stride = (descriptor >> 16 & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    if descriptor >> 62 != 1 or descriptor >> 49 & 7:
        raise Fault(thread, f"an operand whose descriptor is {descriptor:#x} is not swizzled by 128 bytes")
    row, k = np.arange(rows)[:, None], np.arange(depth)
    per_chunk = CHUNK // element
    if across:
        inner = row % per_chunk * element + row // per_chunk % 8 * CHUNK + row // (8 * per_chunk) * leading
        return swizzled(start + inner + k % 8 * 8 * CHUNK + k // 8 * stride)
    return swizzled(start + row % 8 * 8 * CHUNK + row // 8 * stride + k * element)


def wgmma(program: Program, one: Instruction) -> Step:
    """wgmma.fence, .mma_async of two operands in shared memory, .commit_group and .wait_group."""
    kind = one.opcode[1]
    if kind == "fence":
        return lambda wave, at: None
    if kind == "commit_group":

        def close(wave: Wave, at: At) -> None:
            for first in warpgroups(wave, at):
                wave.products[first].append([])

        return close
    if kind == "wait_group":
        (newest,) = one.operands

        def wait(wave: Wave, at: At) -> None:
            for first in warpgroups(wave, at):
                while len(wave.products[first]) - 1 > newest:
                    for product in wave.products[first].pop(0):
                        product()

        return wait
    found = re.fullmatch(r"m64n(\d+)k(\d+)", one.opcode[4])
    if kind != "mma_async" or not found or one.opcode[5] != "f32" or one.opcode[6] != one.opcode[7]:
        raise unknown(program, one)
    columns, depth, type_ = int(found[1]), int(found[2]), one.opcode[6]
    element = 4 if type_ == "tf32" else 2
    sums, a, b, *immediate = one.operands
    scale, negative, across = immediate[0], immediate[1:3], immediate[3:] or [0, 0]
    if depth * element != 32 or (scale, *negative) != (1, 1, 1):
        raise unknown(program, one)
    thread = np.arange(WARPGROUP)
    row = thread // 32 * 16 + thread % 32 // 4

    def matrix(wave: Wave, block: int, places: Array) -> Array:
        words = wave.shared.view(TYPES[f"b{8 * element}"])[block, places // element]
        return OPERANDS[type_](words.reshape(-1).astype(np.uint32))[0].reshape(places.shape).astype(np.float64)

    def multiply(wave: Wave, first: int, of_a: Array, of_b: Array) -> None:
        block = int(wave.block[first])
        left, right = matrix(wave, block, of_a), matrix(wave, block, of_b)
        total = np.zeros((64, columns))
        for k in range(depth):
            total += left[:, k, None] * right[:, k]
        own = slice(first, first + WARPGROUP)
        for i, register in enumerate(sums):
            values = wave.registers[register.number]
            added = total[row + i // 2 % 2 * 8, i // 4 * 8 + thread % 4 * 2 + i % 2]
            values[own] = (values[own] + added).astype(np.float32)

    def step(wave: Wave, at: At) -> None:
        threads = wave.indices(at)
        descriptors = [wave.each(operand, TYPES["b64"], at) for operand in (a, b)]
        for first in warpgroups(wave, at):
            here = (threads >= first) & (threads < first + WARPGROUP)
            places = []
            for values, rows, turned in zip(descriptors, (64, columns), across, strict=True):
                of_all = np.unique(values[here])
                if len(of_all) > 1:
                    raise Fault(first, "the threads of a warpgroup have different operands")
                places.append(places_of(int(of_all[0]), rows, depth, element, bool(turned), first))
                if places[-1].max() + element > program.shared_bytes:
                    raise Fault(first, f"reads shared memory at byte {places[-1].max()}")
            wave.products[first][-1].append(partial(multiply, wave, first, *places))

    return step


def warpgroups(wave: Wave, at: At) -> list[int]:
    """The first thread of each warpgroup among these threads. Raises Fault if one of its warps is not among them."""
    firsts = wave.warps(at)[:, 0]
    if (
        len(firsts) % 4
        or (wave.position[firsts[::4]] % WARPGROUP).any()
        or (np.diff(firsts.reshape(-1, 4)) != 32).any()
    ):
        raise Fault(int(firsts[0]), "not all four warps of the warpgroup come to it together")
    return [int(first) for first in firsts[::4]]


def fence(program: Program, one: Instruction) -> Step:
    """fence.mbarrier_init: memory is as the program has it anyway."""
    if one.opcode != ("fence", "mbarrier_init", "release", "cluster"):
        raise unknown(program, one)
    return lambda wave, at: None
