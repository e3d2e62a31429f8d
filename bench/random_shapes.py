"""Convolutions and products of random shapes, by random kernels, against the float64 reference.

    python bench/random_shapes.py                       # 5 minutes on the emulator, and what is wrong
    python bench/random_shapes.py --seed 123            # one problem again
    python bench/random_shapes.py --backend cuda        # on a GPU, by the kernels that it can run
    python bench/random_shapes.py --family wgmma        # by these wherever they can compute it

The case table (gpucnn/testing.py) has the shapes that somebody thought of; this one has the others. Each problem is a
shape, a type, a precision, the compute capability of a GPU, and for each operation one of all kernels that could be
chosen there. The results must be within the bounds of the case table, and the emulator must not object to an access.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from dataclasses import dataclass

import numpy as np

import gpucnn
from gpucnn.backends import get_backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import FAMILIES, Problem, Variant, candidates
from gpucnn.devices.base import Device
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.testing import Case, conv, dense, evaluate, transposed
from gpucnn.verify import compared

CAPABILITIES = (None, (7, 5), (8, 0), (8, 6), (9, 0), (12, 0))
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 20, 24, 32, 36, 40, 44, 64, 68, 72, 96, 128, 132)
MOST = 8_000_000  # operations of the forward pass: the emulator makes some millions a second


@dataclass(frozen=True)
class Drawn:
    """One problem, and by what it is computed."""

    seed: int
    case: Case
    dtype: str
    precision: str
    capability: tuple[int, int] | None
    family: str = ""  # of kernels that are preferred
    without: str = ""  # the family that is not taken

    def __str__(self) -> str:
        return f"--seed {self.seed}: {self.case} {self.dtype} {self.precision} on {self.capability or 'any GPU'}"

    def choose(self, problem: Problem) -> Variant:
        """One of a family of kernels, each as likely as another; always the same for a problem and a seed."""
        found = [one for one in candidates(problem) if one.family != self.without]
        families = sorted({one.family for one in found})
        number, rest = divmod(zlib.crc32(f"{self.seed} {problem}".encode()), len(families))
        family = self.family if self.family in families else families[rest]
        of_family = [one for one in found if one.family == family]
        return of_family[number % len(of_family)]


def drawn(seed: int, family: str = "", without: str = "") -> Drawn:
    """The problem of that number, by kernels of that family where it can be, and not by the other."""
    rng = np.random.default_rng(seed)
    while True:
        case = _case(rng)
        if case is not None and case.operations <= MOST:
            break
    dtype = str(rng.choice(["float32", "float32", "float32", "float64", "float16", "bfloat16"]))
    precision = str(rng.choice(["fp32", "fp32", "tf32", "fp16", "bf16"])) if dtype == "float32" else "fp32"
    return Drawn(seed, case, dtype, precision, CAPABILITIES[rng.integers(len(CAPABILITIES))], family, without)


def _case(rng: np.random.Generator) -> Case | None:
    """A case; None where the window does not fit."""

    def one(*values: int) -> int:
        return int(rng.choice(values))

    kind = rng.choice(["conv", "conv", "3x3", "3x3", "depthwise", "transposed", "matmul", "linear"])
    if kind in ("matmul", "linear"):
        m, n, k = (one(*CHANNELS, 260, 516) for _ in range(3))
        return dense("matmul", (m, k), (k, n)) if kind == "matmul" else dense("linear", (m, k), (n, k), (n,))
    if kind == "3x3":  # for which there are most kernels
        c, k, size = one(32, 64, 64, 68, 128), one(32, 64, 64, 68, 128), one(3, 3, 3, 5)
        return conv((one(1, 2), c, one(*range(2, 10)), one(*range(2, 10))), (k, c, size, size), padding=size // 2)
    c, k, groups = one(*CHANNELS), one(*CHANNELS), one(1, 1, 1, 2, 3)
    images, h, w = one(1, 1, 2, 3), one(*range(1, 16), 28), one(*range(1, 16), 28)
    r, s = one(1, 1, 2, 3, 3, 3, 5, 7), one(1, 1, 2, 3, 3, 3, 5, 7)
    how = {"stride": (one(1, 1, 1, 2, 3), one(1, 1, 1, 2, 3)), "dilation": (one(1, 1, 1, 2), one(1, 1, 1, 2))}
    padding = (one(*range(r)), one(*range(s)))
    bias = bool(rng.integers(2))
    if kind == "transposed":
        # Its result is at least the kernel less the padding.
        padding = (min(padding[0], (r - 1) // 2), min(padding[1], (s - 1) // 2))
        return transposed((images, c, h, w), (c, k, r, s), bias, padding=padding, **how) if h * w <= 81 else None
    if any(n + 2 * p < d * (t - 1) + 1 for n, p, d, t in zip((h, w), padding, how["dilation"], (r, s), strict=True)):
        return None
    if kind == "depthwise":
        return conv((images, c, h, w), (c, 1, r, s), bias, groups=c, padding=padding, **how)
    return conv((images, c * groups, h, w), (k * groups, c, r, s), bias, groups=groups, padding=padding, **how)


def wrong(one: Drawn, device: Device | None = None) -> str:
    """What is wrong with what the kernels make of a problem, or nothing.

    device: a GPU, whose own capability counts; else the emulator takes the problem's.
    """
    backend = KernelBackend(EmulatorDevice(capability=one.capability) if device is None else device, one.choose)
    with gpucnn.precision(one.precision):
        try:
            results = compared(evaluate(one.case, dtype=one.dtype, precision="float64"), backend, one.dtype)
        except Exception as error:  # whatever it is, it is a finding
            return f"{type(error).__name__}: {error}"
    worst = max(results, key=lambda result: float(result.of_bound.max(initial=0)))
    most = float(worst.of_bound.max(initial=0))
    return "" if most <= 1 else f"{worst.name}: an error of {most:.3g} times the bound"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backend", choices=("emulator", "cuda"), default="emulator")
    parser.add_argument("--seconds", type=float, default=300, help="how long (default: 300)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seed", type=int, help="this problem alone")
    parser.add_argument("--family", default="", choices=list(FAMILIES), help="of kernels that are preferred")
    parser.add_argument("--without", default="", choices=list(FAMILIES), help="the family that is not taken")
    asked = parser.parse_args()
    device = None
    if asked.backend == "cuda":
        backend = get_backend("cuda")
        assert isinstance(backend, KernelBackend)
        device = backend.device
    found, count, start = 0, 0, time.monotonic()
    while count == 0 or (asked.seed is None and time.monotonic() - start < asked.seconds):
        one = drawn(asked.start + count if asked.seed is None else asked.seed, asked.family, asked.without)
        count += 1
        if device is not None:
            print(one, flush=True)  # a kernel that hangs on a GPU says nothing
        if message := wrong(one, device):
            found += 1
            print(f"{one}\n    {message}", flush=True)
        elif asked.seed is not None:
            print(f"{one}\n    right", flush=True)
        elif sys.stderr.isatty():
            print(f"\r{count} problems, {found} wrong", end="", file=sys.stderr, flush=True)
    print(f"\n{count} problems in {time.monotonic() - start:.0f} s, {found} wrong")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
