"""The short version of `make shapes`: problems that nobody has thought of, by any kernel that could be chosen."""

import pytest
from random_shapes import CAPABILITIES, Drawn, drawn, wrong

import gpucnn
from gpucnn.backends import variants
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.testing import conv, launches


def launched(one: Drawn) -> set[str]:
    """The kernels that a problem is computed by."""
    with gpucnn.precision(one.precision):
        return {launch.name for launch in launches(one.case, one.dtype, one.capability, one.choose)}


@pytest.mark.parametrize("seed", range(24))
def test_a_random_problem_is_right_by_a_random_kernel(seed: int, kernels: KernelBackend) -> None:
    one = drawn(seed)
    assert not wrong(one, None if kernels.device.name == "emulator" else kernels.device), one


def test_the_problems_are_of_many_kinds_and_always_the_same() -> None:
    found = [drawn(seed) for seed in range(300)]
    assert [str(one) for one in found[:20]] == [str(drawn(seed)) for seed in range(20)]
    assert {one.case.op for one in found} == {"conv2d", "conv_transpose2d", "linear", "matmul"}
    assert {one.capability for one in found} == set(CAPABILITIES)
    assert {one.dtype for one in found} == {"float32", "float64", "float16", "bfloat16"}
    names = set().union(*map(launched, found))
    families = ("direct", "depthwise", "mma", "halo", "winograd", "fma", "gemm", "sum_parts")
    assert {family for family in families if not any(family in name for name in names)} == {"gemm"}
    assert {"conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight", "matmul"} <= names  # gemm_tile's


def test_parts_that_begin_between_16_bytes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of forward convolutions did once, on GPUs where multiply-adds are faster than TF32 three times."""
    monkeypatch.setattr(variants, "_step", lambda problem: 1)
    case = conv((1, 44, 7, 7), (36, 44, 5, 5), padding=2)
    tried = (Drawn(seed, case, "float32", "fp32", (8, 6)) for seed in range(100))
    in_parts = next(one for one in tried if {"conv2d_fma_forward", "conv2d_sum_parts"} <= launched(one))
    assert "no multiple of 16" in wrong(in_parts)
