"""A machine for PTX: waves of blocks whose threads take an instruction together, each an element of NumPy arrays.

Each thread has a program counter, and those that are furthest behind go on: so threads that went different ways at a
branch meet again behind it. What a GPU may do later is done as late as it may be: an asynchronous copy when it is
waited for, and until then its target holds NaN.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from gpucnn.devices.base import Dim, KernelError
from gpucnn.devices.ptx.code import Address, Instruction, Kernel, Register, Special, Symbol, rounded_up

Array = np.ndarray[Any, Any]
# The threads that take an instruction: an index of NumPy's, their numbers in the wave or ALL.
At = Array | slice
ALL = slice(None)
Step = Callable[["Wave", At], None]

WARP = 32
SPECIALS = {f"{of}.{axis}" for of in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}  # registers of a wave
WAVE = 1 << 13  # threads, about
MOST_SEGMENTS = 200_000  # that a wave goes through: kernels of the case table take some ten thousand
ENDED = np.int32(2**31 - 1)
WAITS = np.int32(1 << 30)  # added to the program counter of a thread that waits
UNSIGNED = {size: np.dtype(f"uint{8 * size}") for size in (1, 2, 4, 8)}


class Fault(Exception):
    """What a thread of the wave must not do."""

    def __init__(self, thread: int, what: str) -> None:
        super().__init__(what)
        self.thread = thread


class Buffer(NamedTuple):
    """An argument's memory, and whether a kernel may write to it."""

    name: str
    array: Array
    writable: bool


class Memory:
    """The global memory that a launch may touch, at its true addresses."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.buffers: list[Buffer] = []
        for buffer in sorted(buffers, key=lambda b: (b.array.ctypes.data, -b.array.nbytes)):
            last = self.buffers[-1].array if self.buffers else np.empty(0)
            if self.buffers and buffer.array.ctypes.data + buffer.array.nbytes <= last.ctypes.data + last.nbytes:
                self.buffers[-1] = self.buffers[-1]._replace(writable=self.buffers[-1].writable or buffer.writable)
            elif buffer.array.nbytes:
                self.buffers.append(buffer)
        self.bytes = [np.asarray(b.array).reshape(-1).view(np.uint8) for b in self.buffers]
        self.starts = np.array([b.array.ctypes.data for b in self.buffers], np.uint64)
        self.ends = np.array([b.array.ctypes.data + b.array.nbytes for b in self.buffers], np.uint64)

    def find(self, addresses: Array, size: int, threads: Array, writes: bool = False) -> Array:
        """The number of the buffer that holds `size` bytes at each thread's address. Raises Fault."""
        found = np.searchsorted(self.starts, addresses, "right").astype(np.int64) - 1
        outside = found < 0
        if len(self.ends):
            outside |= (addresses >= self.ends[found]) | (addresses + np.uint64(size) > self.ends[found])
        if outside.any():
            i = int(np.argmax(outside))
            action = "writes" if writes else "reads"
            raise Fault(int(threads[i]), f"{action} {size} bytes {self.place(int(addresses[i]))}")
        return found

    def place(self, address: int) -> str:
        """Where an address lies that is in no buffer."""
        nearest = min(
            range(len(self.buffers)),
            key=lambda i: max(int(self.starts[i]) - address, address - int(self.ends[i])),
            default=None,
        )
        if nearest is None or address < 1 << 16 or address >= 1 << 48:
            return f"at {address - (address >> 63 << 64)}, where no buffer is: a null pointer?"
        return f"at byte {address - int(self.starts[nearest])} of {self.buffers[nearest].name}, out of bounds"

    def load(self, addresses: Array, type_: np.dtype[Any], found: Array) -> Array:
        """The values there."""
        out = np.empty(len(addresses), type_)
        for buffer in np.unique(found):
            here = slice(None) if (found == buffer).all() else found == buffer
            words, places = self._words(buffer, addresses[here], type_)
            out[here] = words[places]
        return out

    def store(self, addresses: Array, values: Array, found: Array, threads: Array) -> None:
        """Put the values there."""
        for buffer in np.unique(found):
            here = found == buffer
            if not self.buffers[buffer].writable:
                raise Fault(int(threads[np.argmax(here)]), f"writes to {self.buffers[buffer].name}, which is const")
            words, places = self._words(buffer, addresses[here], values.dtype)
            words[places] = values[here]

    def _words(self, buffer: int, addresses: Array, type_: np.dtype[Any]) -> tuple[Array, Array]:
        """A buffer as values of a type, and which of them lie at these addresses."""
        size = type_.itemsize
        words = self.bytes[buffer][: len(self.bytes[buffer]) // size * size].view(type_)
        return words, (addresses - self.starts[buffer]).astype(np.int64) // size


class Wave:
    """Some blocks of a launch. Blocks are padded to whole warps by threads that have ended."""

    def __init__(
        self, program: Program, memory: Memory, parameters: bytes, grid: Dim, block: Dim, blocks: range
    ) -> None:
        self.program, self.memory, self.parameters = program, memory, parameters
        self.block_size = math.prod(block)
        self.block_threads = rounded_up(self.block_size, WARP)
        self.blocks, self.threads = len(blocks), len(blocks) * self.block_threads
        self.numbers = np.arange(self.threads)
        self.block, self.position = np.divmod(self.numbers, self.block_threads)
        number = self.block + blocks.start
        x, y = np.uint32(block[0]), np.uint32(block[1])
        tid, ctaid = self.position.astype(np.uint32), number.astype(np.uint32)
        gx, gy = np.uint32(grid[0]), np.uint32(grid[1])
        self.special = {
            "tid.x": tid % x, "tid.y": tid // x % y, "tid.z": tid // (x * y),
            "ctaid.x": ctaid % gx, "ctaid.y": ctaid // gx % gy, "ctaid.z": ctaid // (gx * gy),
            **{f"n{name}.{axis}": np.full(self.threads, length, np.uint32)
               for name, dim in (("tid", block), ("ctaid", grid)) for axis, length in zip("xyz", dim, strict=True)},
        }  # fmt: skip
        self.registers: list[Array] = [wild(type_, self.threads) for type_ in program.kernel.registers]
        self.shared = np.full((self.blocks, rounded_up(program.shared_bytes, 16)), 0xFF, np.uint8)
        self.counter = np.where(self.position < self.block_size, np.int32(0), ENDED)
        self.barrier = np.zeros(self.threads, np.bool_)  # what a thread that waits waits for: __syncthreads
        self.copies = Copies(self.threads, self.shared)
        self.mbarriers: dict[tuple[int, int], Any] = {}
        self.waiting: dict[int, tuple[tuple[int, int], int]] = {}  # threads that wait for (a mbarrier, its parity)
        self.engine: list[Callable[[], None]] = []  # copies of the copy engine, the oldest first
        # wgmma's groups by a warpgroup's first thread, the last one open
        self.products: defaultdict[int, list[list[Callable[[], None]]]] = defaultdict(lambda: [[]])

    def run(self) -> None:
        """Until all threads have ended. Raises KernelError."""
        code = self.program.segments
        for _ in range(MOST_SEGMENTS):
            at = int(self.counter.min())
            if at == ENDED:
                return
            if at >= WAITS:
                self.release()
                continue
            here = self.at(np.flatnonzero(self.counter == at))
            for instruction, step in code[at]:
                try:
                    step(self, here)
                except Fault as fault:
                    raise KernelError(self.explained(instruction, fault)) from None
        raise KernelError(f"{self.program.kernel.name}: stopped after {MOST_SEGMENTS} branches; does a loop never end?")

    def at(self, threads: Array) -> At:
        """These threads, in order; ALL of them is faster than their numbers."""
        return ALL if len(threads) == self.threads else threads

    def release(self) -> None:
        """Let go on who has waited long enough, when nobody else can. Raises KernelError if that is nobody."""
        counters = self.counter.reshape(self.blocks, -1)
        barrier = self.barrier.reshape(self.blocks, -1)
        together = (barrier | (counters == ENDED)).all(axis=1) & barrier.any(axis=1)
        released = np.flatnonzero((together[:, None] & barrier).reshape(-1))
        if len(released):
            for block in np.flatnonzero(together):
                living = counters[block][: self.block_size]
                if (living != living[0]).any():
                    raise KernelError(f"{self.program.kernel.name}: a barrier that not all threads of a block reach")
        through = [thread for thread, (of, parity) in self.waiting.items() if self.mbarriers[of].over(parity)]
        for thread in through:
            del self.waiting[thread]
        released = np.concatenate([released, np.array(through, np.int64)])
        if not len(released):
            if not self.engine:
                raise KernelError(f"{self.program.kernel.name}: threads wait for what never comes")
            self.engine.pop(0)()
            return
        self.barrier[released] = False
        self.counter[released] -= WAITS

    def explained(self, instruction: Instruction, fault: Fault) -> str:
        """A fault, with who did it and where."""
        block, place = (
            ", ".join(str(self.special[f"{of}.{axis}"][fault.thread]) for axis in "xyz") for of in ("ctaid", "tid")
        )
        where = f"{self.program.kernel.name}: block ({block}), thread ({place}), line {instruction.line}"
        return f"{where}, {instruction.text!r}: {fault}"

    # -- operands ------------------------------------------------------------------------------------

    def get(self, operand: Any, type_: np.dtype[Any], at: At) -> Any:
        """An operand's values as that type, whose size may be less than the register's."""
        if isinstance(operand, Register):
            values = self.registers[operand.number]
        elif isinstance(operand, Special):
            values = self.special[operand.name]
        elif isinstance(operand, Symbol):
            return type_.type(self.program.address(operand.name))
        else:
            return immediate(operand, type_)
        values = values[at]
        if values.dtype == type_:
            return values
        if values.itemsize == type_.itemsize:
            return values.view(type_)
        return values.view(UNSIGNED[values.itemsize]).astype(UNSIGNED[type_.itemsize]).view(type_)

    def each(self, operand: Any, type_: np.dtype[Any], at: At) -> Array:
        """The same, one of each thread where all have the same."""
        return np.broadcast_to(self.get(operand, type_, at), len(self.indices(at)))

    def set(self, operand: Any, values: Any, at: At) -> None:
        """Put values, all of one type, into a register; for a wider one they are extended by their own signs."""
        if isinstance(operand, Symbol):  # "_": nobody wants it
            return
        register = self.registers[operand.number]
        values = np.asarray(values)
        if values.itemsize != register.itemsize:
            wider = np.dtype(f"{values.dtype.kind if values.dtype.kind in 'iu' else 'u'}{register.itemsize}")
            plain = values if values.dtype.kind in "iu" else values.view(UNSIGNED[values.itemsize])
            values = plain.astype(wider)
        if values.dtype != register.dtype:
            values = values.view(register.dtype)
        register[at] = values

    def indices(self, at: At) -> Array:
        """The threads' numbers in the wave."""
        numbers: Array = self.numbers[at]
        return numbers

    def addresses(self, operand: Address, at: At) -> Array:
        """As 64 bits, of each of these threads."""
        base = operand.base
        if isinstance(base, Symbol):
            return np.full(len(self.indices(at)), self.program.address(base.name) + operand.offset, np.uint64)
        values = self.registers[base.number]
        wide: Array = values[at].astype(np.uint64)
        wide += np.array(operand.offset, np.int64).view(np.uint64)
        return wide

    # -- memory --------------------------------------------------------------------------------------

    def check_boundary(self, addresses: Array, size: int, at: At) -> None:
        """Raises Fault for an address that is no multiple of the access's size."""
        off = addresses % np.uint64(size) != 0
        if off.any():
            i = int(np.argmax(off))
            what = f"{size} bytes at {int(addresses[i]):#x}, which is no multiple of {size}"
            raise Fault(int(self.indices(at)[i]), what)

    def shared_words(self, addresses: Array, size: int, at: At, writes: bool = False) -> tuple[Array, Array]:
        """The block and the place, in words of that size, of each address in shared memory. Raises Fault."""
        threads, end = self.indices(at), np.uint64(self.program.shared_bytes)
        wrong = (addresses >= end) | (addresses + np.uint64(size) > end) | (addresses % np.uint64(size) != 0)
        if wrong.any():
            i = int(np.argmax(wrong))
            action, address = "writes" if writes else "reads", int(addresses[i].astype(np.int64))
            raise Fault(int(threads[i]), f"{action} {size} bytes of shared memory at byte {address} of {end}")
        return self.block[threads], addresses.astype(np.int64) // size

    def load(self, space: str, addresses: Array, type_: np.dtype[Any], at: At) -> Array:
        """A value for each thread."""
        if space == "shared":
            blocks, places = self.shared_words(addresses, type_.itemsize, at)
            return self.shared.view(type_)[blocks, places]
        return self.memory.load(addresses, type_, self.memory.find(addresses, type_.itemsize, self.indices(at)))

    def store(self, space: str, addresses: Array, values: Array, at: At) -> None:
        """A value of each thread."""
        values = np.broadcast_to(values, addresses.shape)
        if space == "shared":
            blocks, places = self.shared_words(addresses, values.itemsize, at, True)
            self.shared.view(values.dtype)[blocks, places] = values
            return
        threads = self.indices(at)
        self.memory.store(addresses, values, self.memory.find(addresses, values.itemsize, threads, True), threads)

    # -- warps ---------------------------------------------------------------------------------------

    def warps(self, at: At) -> Array:
        """[warps, 32]: these threads, warp by warp. Raises Fault if one of a warp is not among them."""
        threads = self.indices(at)
        if len(threads) % WARP or (threads.reshape(-1, WARP) != threads[::WARP, None] + np.arange(WARP)).any():
            raise Fault(int(threads[0]), "not all 32 threads of the warp come to it together")
        return threads.reshape(-1, WARP)


class Copies:
    """The groups of cp.async of each thread: done when they are waited for."""

    def __init__(self, threads: int, shared: Array) -> None:
        self.words = shared.view(np.uint32).reshape(-1)
        self.closed = np.zeros(threads, np.int64)  # groups so far
        self.pending: list[tuple[Array, Array, Array, Array]] = []  # threads, their groups, places in words, words

    def add(self, threads: Array, places: Array, words: Array) -> None:
        """[copies, words] for these places of shared memory, from now on wild."""
        self.words[places] = 0xFFFFFFFF
        self.pending.append((threads, self.closed[threads], places, words))

    def commit(self, at: At) -> None:
        """Close a group."""
        self.closed[at] += 1

    def wait(self, newest: int, at: At) -> None:
        """Do all but the newest groups."""
        waits = np.zeros(len(self.closed), np.bool_)
        waits[at] = True
        still = []
        for threads, groups, places, words in self.pending:
            done = waits[threads] & (groups < self.closed[threads] - newest)
            self.words[places[done]] = words[done]
            if not done.all():
                still.append((threads[~done], groups[~done], places[~done], words[~done]))
        self.pending = still


class Program:
    """A kernel, made ready: its code in segments, from where threads may come to where they may part."""

    def __init__(self, kernel: Kernel, dynamic_shared: int, steps: Callable[[Program, Instruction], Step]) -> None:
        self.kernel = kernel
        self.shared_bytes = kernel.shared_bytes + dynamic_shared
        self.segments: dict[int, list[tuple[Instruction, Step]]] = {}
        starts = {0, len(kernel.code), *kernel.labels.values()}
        starts |= {i for i, one in enumerate(kernel.code, 1) if one.opcode[0] in ("bra", "ret") or waits(one)}
        for start, end in pairwise(sorted(starts)):
            *most, last = kernel.code[start:end]
            self.segments[start] = [(one, steps(self, one)) for one in most]
            self.segments[start].append((last, self._last(last, end, steps)))

    def _last(self, last: Instruction, after: int, steps: Callable[[Program, Instruction], Step]) -> Step:
        """The last instruction of a segment, which sends its threads on."""
        if last.opcode[0] in ("bra", "ret"):
            if last.opcode[0] == "bra" and last.operands[0].name not in self.kernel.labels:
                raise unknown(self, last)
            to = ENDED if last.opcode[0] == "ret" else np.int32(self.kernel.labels[last.operands[0].name])

            def branch(wave: Wave, at: At) -> None:
                target: Any = to
                if last.guard is not None:
                    number, value = last.guard
                    target = np.where(wave.registers[number][at] == value, to, np.int32(after))
                wave.counter[at] = target

            return branch
        if last.guard is not None and waits(last):
            raise unknown(self, last)
        step, target = steps(self, last), np.int32(after) + (WAITS if waits(last) else np.int32(0))

        def go_on(wave: Wave, at: At) -> None:
            step(wave, at)
            wave.counter[at] = target

        return go_on

    def address(self, symbol: str) -> int:
        """Of a variable in shared memory, or of a parameter among the parameters."""
        if symbol in self.kernel.shared:
            return self.kernel.shared[symbol]
        if symbol in self.kernel.parameters:
            return self.kernel.parameters[symbol][0]
        raise KernelError(f"{self.kernel.name}: nothing is known of {symbol}")

    def waves(self, blocks: int, block: Dim) -> Iterator[range]:
        """The blocks of each wave of a launch."""
        together = max(WAVE // rounded_up(math.prod(block), WARP), 1)
        for first in range(0, blocks, together):
            yield range(first, min(first + together, blocks))


def waits(one: Instruction) -> bool:
    """Whether its threads wait until the wave releases them."""
    return one.opcode[0] == "bar" or one.opcode[:2] == ("mbarrier", "try_wait")


def unknown(program: Program, one: Instruction) -> KernelError:
    """For an instruction that no kernel had when this was written."""
    return KernelError(f"{program.kernel.name}: {one.line}: the PTX machine does not know {one.text!r}: teach it")


@lru_cache(maxsize=4096)
def immediate(bits: int, type_: np.dtype[Any]) -> Any:
    """A number written in the code, of a float its bits."""
    return np.array(bits % (1 << 8 * type_.itemsize), UNSIGNED[type_.itemsize]).view(type_)[()]


def wild(type_: np.dtype[Any], count: int) -> Array:
    """What nobody has set: all bits 1, a NaN; of a predicate, true."""
    if type_ == np.bool_:
        return np.ones(count, np.bool_)
    return np.full(count, -1, f"int{8 * type_.itemsize}").view(type_)
