"""What the kernels of a network do to a GPU's memory and issue slots, counted without a GPU.

    python bench/traffic.py lenet5 --batch 32             # a training step
    python bench/traffic.py conv2d 2,3,64,56,7,2          # N,C,K,H,R,stride: a convolution and its gradients
    python bench/traffic.py conv2d 2,64,64,28,3,1,64      # and its groups
    python bench/traffic.py max_pool2d 2,64,56,3,2        # N,C,H,R,stride
    ... --capability 7.5 --precision tf32 --family gemm --lines 20

The PTX that NVRTC makes of each kernel is interpreted, and counted for every warp:

instructions   without branches, and without moves, which the assembler mostly leaves out; a division counts as 20
wavefronts     cycles that shared memory takes for an access: more than the least where lanes meet in a bank. 8-byte
               accesses are served by half a warp at a time, 16-byte ones by a quarter
sectors        32 bytes of global memory that an access touches; the least is what its bytes fill. What L1 or L2 catch
               is counted too. Copies of the copy engine and products of wgmma are not
memory         bytes of all sectors that a launch touches, each once: what must come from memory or go there if nothing
               was in a cache

The counts are exact, and none of them is a time: a multiprocessor takes four instructions, one wavefront and four
sectors a cycle at best, one of an H200 some 18 bytes from memory, and waits besides. What is busiest is what a kernel
can't be faster than.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpucnn
from gpucnn import functional as F
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import FAMILIES, preferring
from gpucnn.devices.base import kernel_folder
from gpucnn.devices.ptx import PtxDevice
from gpucnn.devices.ptx.code import TYPES, Address, Instruction
from gpucnn.devices.ptx.machine import WARP, At, Program, Step, Wave
from gpucnn.nn import models

Array = np.ndarray[Any, Any]
SHAPES = {  # how the shape of what can be counted is written, and an example
    "lenet5": ("", ""),
    "resnet20": ("", ""),
    "conv2d": (r"\d+(,\d+){5,6}", "2,16,32,16,3,1"),
    "max_pool2d": (r"\d+(,\d+){4}", "2,64,56,3,2"),
}
BANKS, SECTOR = 32, 32  # of 4 bytes; bytes
DIVISION = 20  # instructions, about
BYTES = 18.4  # of an H200's memory, for a multiprocessor in a cycle: 4.8 TB/s by 132 of them at 1.98 GHz


@dataclass
class Traffic:
    """Of one line of a kernel, in one space: the warps' accesses, what they take, and the least that they could."""

    accesses: int = 0
    taken: int = 0
    least: int = 0

    def add(self, accesses: int, taken: int, least: int) -> None:
        """Some accesses more."""
        self.accesses += accesses
        self.taken += taken
        self.least += least


def by_warps(wave: Wave, at: At, values: Array) -> Array:
    """[warps, 32]: the threads' values, −1 for those that do not take part; only warps of which one does."""
    whole = np.full(wave.threads, -1, np.int64)
    whole[wave.indices(at)] = values
    warps = whole.reshape(-1, WARP)
    kept: Array = warps[(warps >= 0).any(axis=1)]
    return kept


def distinct(x: Array) -> Array:
    """[rows, n]: which elements of the sorted rows are not negative and the first of their value."""
    first = np.ones_like(x, np.bool_)
    first[:, 1:] = x[:, 1:] != x[:, :-1]
    found: Array = first & (x >= 0)
    return found


def wavefronts(addresses: Array, size: int) -> tuple[int, int, int]:
    """(accesses, wavefronts, the least) of [warps, 32] addresses in shared memory, each of so many bytes."""
    words = max(size // 4, 1)
    groups = addresses.reshape(-1, WARP // words)
    groups = groups[(groups >= 0).any(axis=1)]
    touched = np.where(groups[..., None] >= 0, groups[..., None] // 4 + np.arange(words), -1).reshape(len(groups), -1)
    touched.sort(axis=1)
    counts = np.zeros((len(groups), BANKS + 1), np.int64)
    bank = np.where(distinct(touched), touched % BANKS, BANKS)
    np.add.at(counts, (np.arange(len(groups))[:, None], bank), 1)
    return len(addresses), int(counts[:, :BANKS].max(axis=1).sum()), len(groups)


def sectors(addresses: Array, size: int) -> tuple[int, int, int]:
    """(accesses, sectors, the least) of [warps, 32] addresses in global memory, each of so many bytes."""
    touched = np.sort(np.where(addresses >= 0, addresses // SECTOR, -1), axis=1)
    least = -(-(addresses >= 0).sum(axis=1) * size // SECTOR)
    return len(addresses), int(distinct(touched).sum()), int(least.sum())


class CountingDevice(PtxDevice):
    """Counts, by kernel, the instructions of all warps, and by kernel and line its traffic."""

    def __init__(self, capability: tuple[int, int] | None = None) -> None:
        super().__init__(capability=capability)
        self.instructions: dict[str, Counter[str]] = defaultdict(Counter)
        self.traffic: dict[tuple[str, str, str, str], Traffic] = defaultdict(Traffic)
        self.memory: Counter[str] = Counter()
        self._touched: list[Array] = []

    def clear(self) -> None:
        """Begin anew."""
        self.instructions.clear()
        self.traffic.clear()
        self.memory.clear()

    def launch(self, file: str, name: str, *others: Any) -> None:
        self._touched = [np.empty(0, np.int64)]
        super().launch(file, name, *others)
        self.memory[name] += SECTOR * len(np.unique(np.concatenate(self._touched)))

    def step(self, program: Program, one: Instruction) -> Step:
        made, count = super().step(program, one), self.counter(program, one)

        def counted(wave: Wave, at: At) -> None:
            self.instructions[program.kernel.name][one.opcode[0]] += len(np.unique(wave.indices(at) // WARP))
            count(wave, at)
            made(wave, at)

        return counted

    def counter(self, program: Program, one: Instruction) -> Callable[[Wave, At], None]:
        """What counts an instruction's traffic."""
        opcode, accesses = one.opcode, [operand for operand in one.operands if isinstance(operand, Address)]
        if opcode[0] in ("ld", "st", "ldmatrix"):
            space = "shared" if opcode[0] == "ldmatrix" else opcode[1]
            values = next((int(part[1:]) for part in opcode if part in ("v2", "v4")), 1)
            size = 16 if opcode[0] == "ldmatrix" else one.type.itemsize * values
            places = [(space, accesses[0], None)] if space in ("shared", "global") else []
        elif opcode[:3] == ("cp", "async", "cg"):
            size, places = 16, [("shared", accesses[0], None), ("global", accesses[1], one.operands[3])]
        else:
            places = []

        def count(wave: Wave, at: At) -> None:
            for space, address, bytes_ in places:
                addresses = wave.addresses(address, at).astype(np.int64)
                if space == "global":  # as if each array began at a multiple of a sector
                    memory = wave.memory
                    buffer = np.searchsorted(memory.starts, addresses.astype(np.uint64), "right") - 1
                    addresses = addresses - memory.starts[buffer].astype(np.int64) + (buffer << 40)
                if bytes_ is not None:
                    addresses = np.where(wave.get(bytes_, TYPES["u32"], at) > 0, addresses, -1)
                warps = by_warps(wave, at, addresses)
                found = (wavefronts if space == "shared" else sectors)(warps, size)
                if space == "global":
                    self._touched.append(np.unique(warps[warps >= 0] // SECTOR))
                self.traffic[program.kernel.name, one.line, ".".join(opcode), space].add(*found)

        return count


def cycles(device: CountingDevice, kernel: str) -> dict[str, float]:
    """What each unit of a multiprocessor is busy with, in cycles if one did all."""
    counts = device.instructions[kernel]
    total = counts.total() + (DIVISION - 1) * (counts["div"] + counts["rem"]) - counts["mov"] - counts["cvta"]
    taken = {space: sum(t.taken for key, t in device.traffic.items() if key[0] == kernel and key[3] == space)
             for space in ("shared", "global")}  # fmt: skip
    return {
        "fma/4": counts["fma"] / 4,
        "mma": counts["mma"],
        "instructions/4": total / 4,
        "wavefronts": taken["shared"],
        "sectors/4": taken["global"] / 4,
        "memory": device.memory[kernel] / BYTES,
    }


def source_of(line: str) -> str:
    """The text of "file:line"."""
    file, _, number = line.partition(":")
    path = kernel_folder() / file
    return path.read_text("utf-8").splitlines()[int(number) - 1].strip() if path.exists() else ""


def show(device: CountingDevice, lines: int) -> None:
    """The kernels, the busiest first, and the lines that waste most."""
    busy = {kernel: cycles(device, kernel) for kernel in device.instructions}
    print("cycles that each unit of one multiprocessor is busy, if it does all; * bounds the kernel\n")
    print(f"{'kernel':32}", *(f"{unit:>15}" for unit in next(iter(busy.values()))))
    for kernel, units in sorted(busy.items(), key=lambda item: -max(item[1].values())):
        most = max(units.values())
        print(
            f"{kernel:32}",
            *(f"{f'* {value:,.0f}' if value == most else f'{value:,.0f}':>15}" for value in units.values()),
        )
    print("\ntimes what it must take: of shared memory wavefronts, of global memory sectors\n")
    wasted = sorted(device.traffic.items(), key=lambda item: item[1].least - item[1].taken)
    for (kernel, line, _, space), t in wasted[:lines]:
        if t.taken > t.least:
            print(f"{t.taken / t.least:5.2f}  {t.taken:>11,}  {space:6}  {kernel:32} {line:28} {source_of(line)}")


def prepared(what: str, shape: tuple[int, ...], batch: int) -> Callable[[], object]:
    """A training step of a network, or an op and its gradients, on the default backend: to be called."""
    rng = np.random.default_rng(0)

    def leaf(*of: int) -> gpucnn.Tensor:
        return gpucnn.tensor(rng.standard_normal(of).astype(np.float32), requires_grad=True)

    if what == "conv2d":
        n, c, k, h, r, stride, groups = (*shape, 1)[:7]
        x, w = leaf(n, c, h, h), leaf(k, c // groups, r, r)
        return lambda: F.conv2d(x, w, stride=stride, padding=r // 2, groups=groups).sum().backward()
    if what == "max_pool2d":
        n, c, h, r, stride = shape
        x = leaf(n, c, h, h)
        return lambda: F.max_pool2d(x, r, stride, (r - 1) // 2).sum().backward()
    model, size = (models.LeNet5(), (1, 28, 28)) if what == "lenet5" else (models.resnet20(), (3, 32, 32))
    images, labels = gpucnn.tensor(rng.random((batch, *size), np.float32)), gpucnn.tensor(rng.integers(0, 10, batch))
    optimizer = gpucnn.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=SHAPES)
    parser.add_argument("shape", nargs="?", help="of conv2d: N,C,K,H,R,stride[,groups]; of max_pool2d: N,C,H,R,stride")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--capability", default="9.0", help="compute capability that kernels are chosen for")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--family", choices=sorted(FAMILIES), help="take these kernels where they fit")
    parser.add_argument("--lines", type=int, default=15)
    arguments = parser.parse_args()
    pattern, example = SHAPES[arguments.what]
    given = example if arguments.shape is None else arguments.shape
    if not re.fullmatch(pattern, given):
        parser.error(
            f"the shape of {arguments.what} is {f'one such as {example}' if example else 'its own'}, not {given}"
        )
    if not re.fullmatch(r"\d+\.\d", arguments.capability):
        parser.error(f"the capability is a number such as 9.0, not {arguments.capability}")
    major, minor = arguments.capability.split(".")
    device = CountingDevice((int(major), int(minor)))
    backend = KernelBackend(device, preferring(arguments.family) if arguments.family else None)
    with gpucnn.use_backend(backend), gpucnn.precision(arguments.precision):
        step = prepared(arguments.what, tuple(int(n) for n in given.split(",") if n), arguments.batch)
        device.clear()
        step()
    show(device, arguments.lines)


if __name__ == "__main__":
    main()
