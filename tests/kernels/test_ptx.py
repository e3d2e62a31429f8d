"""What NVRTC makes of the kernels gives the emulator's bits: every launch of the case table, forward and backward."""

import re

import numpy as np
import pytest

import gpucnn
from gpucnn.devices.base import KernelError, Signature, kernel_folder
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.host import HostDevice
from gpucnn.devices.ptx import PtxDevice
from gpucnn.nn import models
from gpucnn.testing import HOPPER, Way, evaluate, ways
from gpucnn.warmup import train_once

pytestmark = pytest.mark.usefixtures("_nvrtc")

# In double, exp and its kin are those of the compilers' own libraries, which round differently.
OF_LIBRARIES = ("activation.cu", "softmax_cross_entropy.cu")


class BothDevice(HostDevice):
    """Launches everything on the emulator, and on PtxDevice with copies; `differences` has a line for each result that
    is not the same. A launch like an earlier one is not compared again."""

    name = "both"

    def __init__(self, compiled=None):
        self.emulator, self.compiled = EmulatorDevice(), compiled or PtxDevice()
        self.capability = None
        self.seen, self.differences = set(), []

    def launch(self, file, name, constants, grid, block, *arguments):
        self.emulator.capability = self.compiled.capability = self.capability
        numbers = tuple(a if isinstance(a, int | float | np.number) else a is None for a in arguments)
        one = (file, name, tuple(sorted(constants.items())), grid, block, numbers)
        copies = None if one in self.seen else [copied(a) for a in arguments]
        if copies is not None:
            self.compiled.launch(file, name, constants, grid, block, *copies)
        self.emulator.launch(file, name, constants, grid, block, *arguments)
        if copies is None:
            return
        self.seen.add(one)
        exact = not (file in OF_LIBRARIES and constants["SCALAR"] == "double")
        parameters = Signature.of(kernel_folder() / file, name).parameters
        for p, a, b in zip(parameters, arguments, copies, strict=True):
            if p.extent is None or p.constant or a is None:
                continue
            for expected, got in zip(a, b, strict=True) if p.table else [(a, b)]:
                if not (
                    same_bits(expected, got) if exact else np.allclose(got, expected, 1e-14, 1e-15, equal_nan=True)
                ):
                    self.differences.append(f"{p.name} of {name} in {file}, {dict(constants)}, grid {grid}")


def copied(argument):
    if isinstance(argument, list):
        return [copied(one) for one in argument]
    if isinstance(argument, np.ndarray):
        return argument.copy()
    return argument


def same_bits(a, b):
    words = [x.reshape(-1).view(f"u{x.itemsize}") for x in (a, b)]
    return bool(((words[0] == words[1]) | (a != a).reshape(-1) & (b != b).reshape(-1)).all())


@pytest.mark.parametrize(("way", "op"), dict.fromkeys((way, case.op) for case, way in ways()), ids=str)
def test_what_is_compiled_gives_the_emulators_bits(way: Way, op: str):
    device = BothDevice()
    for case, its_way in ways():
        if (its_way, case.op) == (way, op):
            with gpucnn.precision(way.precision):
                evaluate(case, way.backend(device), way.dtype)
    assert device.differences == []


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_what_is_compiled_for_blackwell_gives_the_emulators_bits(precision: str):
    """Another part of the compiler writes its PTX."""
    device = BothDevice()
    for case in (case for case, way in ways() if way == Way("float32", precision, HOPPER)):
        with gpucnn.precision(precision):
            evaluate(case, Way("float32", precision, (12, 0)).backend(device))
    assert len(device.seen) > 10
    assert device.differences == []


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_step_of_training_with_each_optimiser_gives_the_emulators_bits(dtype):
    device = BothDevice()
    backend = Way().backend(device)
    if dtype in ("float16", "bfloat16"):
        with gpucnn.autocast(dtype):
            train_once(models.LeNet5(batch_norm=True).to(backend), (1, 28, 28), 2)
    else:
        train_once(models.LeNet5().to(np.dtype(dtype)).to(backend), (1, 28, 28), 2)
    assert len(device.seen) > 20
    assert device.differences == []


# -- mistakes that only a GPU would show: in what the emulator's compiler does not see -----------------

TF32, FP32, FP16, BF16 = (Way(*of, HOPPER) for of in (
    ("float32", "tf32"), ("float32", "fp32"), ("float16", "fp32"), ("bfloat16", "fp32"),
))  # fmt: skip
MISTAKES = [
    ("mma.cuh", '%7}, {%8, %9}, "\n        "{%10', '%7}, {%9, %8}, "\n        "{%10', TF32),
    ("mma.cuh", '"r"(__float_as_int(a[1])), "r"(__float_as_int(a[2]))',
                '"r"(__float_as_int(a[2])), "r"(__float_as_int(a[1]))', FP32),
    ("mma.cuh", ".x4.trans.shared", ".x4.shared", FP16),
    ("mma.cuh", '{%4, %5, %6, %7}, {%8, %9}, " \\', '{%4, %6, %5, %7}, {%8, %9}, " \\', BF16),
    ("async_copy.cuh", '"r"(inside ? 16 : 0)', '"r"(16)', FP32),
    ("async_copy.cuh", '%0;" ::"n"(NEWEST)', '%0;" ::"n"(NEWEST + 1)', TF32),
    ("half.cuh", '"cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)',
                 '"cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(-x)', Way("float16")),
    ("wgmma.cuh", '"l"(of_a), "l"(of_b), "n"', '"l"(of_b), "l"(of_a), "n"', FP16._replace(family="wgmma")),
    ("wgmma.cuh", '" across_a ", " across_b ";"', '" across_b ", " across_a ";"', BF16._replace(family="wgmma")),
    ("wgmma.cuh", '"h"((unsigned short)from.right), "h"((unsigned short)from.down)',
                  '"h"((unsigned short)from.down), "h"((unsigned short)from.right)', FP16._replace(family="wgmma")),
    ("wgmma.cuh", '%0;" ::"n"(NEWEST)', '%0;" ::"n"(NEWEST + 1)', TF32._replace(family="wgmma")),
    ("wgmma.cuh", '"r"(bytes)', '"r"(bytes + 16)', FP16._replace(family="wgmma")),
    ("wgmma.cuh", '"r"(bytes)', '"r"(bytes - 16)', FP16._replace(family="wgmma")),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "way"), MISTAKES)
def test_a_mistake_in_what_only_a_gpu_compiles_is_noticed(plant, file, old, new, way):
    device = BothDevice(plant(file, old, new, device=PtxDevice))
    for case in (case for case, its_way in ways() if its_way == way):
        try:
            with gpucnn.precision(way.precision):
                evaluate(case, way.backend(device), way.dtype)
        except KernelError as error:
            device.differences.append(str(error))
        if device.differences:
            break
    assert device.differences
    assert not re.search("NVRTC refused|does not know", device.differences[0])
