"""The large tiles of multiply-adds: the bits of the small ones at every edge, which of them is taken, planted bugs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numerics import off_boundary

from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices import KernelError
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.testing import TENSOR_CORES_FILLED, Case, conv, dense, evaluate, launches, normal

# Tiles partly filled both ways, more than one of them, a rest of k; padding, stride, dilation, groups, a batch.
EDGES = [
    conv((1, 36, 9, 7), (44, 36, 3, 2), bias=True, padding=1),
    conv((1, 36, 7, 11), (68, 36, 2, 2), pytorch=False, padding=(2, 0, 1, 3)),
    conv((2, 64, 5, 6), (72, 32, 2, 3), groups=2, stride=(2, 1), padding=(1, 2)),
    conv((1, 44, 9, 8), (36, 44, 2, 3), stride=(3, 2), dilation=(2, 3), padding=2),
    conv((2, 40, 1, 1), (36, 40, 1, 1)),
    dense("matmul", (68, 20), (20, 132)),
    dense("linear", (36, 44), (40, 44)),
    dense("matmul", (2, 1, 40, 36), (3, 36, 32)),
    conv((1, 44, 7, 7), (36, 44, 5, 5), padding=2),  # a long sum, in parts
]
every_edge = pytest.mark.parametrize("case", EDGES, ids=str)


@pytest.fixture(scope="module")
def emulator() -> KernelBackend:
    return KernelBackend(EmulatorDevice())


def large_tiles(case: Case, dtype: str = "float32", capability: tuple[int, int] | None = None) -> dict[str, int]:
    """The kernels that a case launches with large tiles, and their tile's rows."""
    found = launches(case, dtype, capability)
    return {one.name: int(dict(one.constants)["TILE_M"]) for one in found if "_fma" in one.name}


def assert_bits_of_small_tiles(case: Case, backend: KernelBackend, dtype: str, force: Any) -> None:
    ours = evaluate(case, backend, dtype).results
    force(lambda variant: variant.family == "gemm")
    for result, expected in zip(ours, evaluate(case, backend, dtype).results, strict=True):
        np.testing.assert_array_equal(result, expected, strict=True)


# -- what they compute ---------------------------------------------------------------------------------


@every_edge
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_tiles_give_the_bits_of_small_ones(case: Case, dtype: str, emulator: KernelBackend, force: Any) -> None:
    assert large_tiles(case, dtype)
    assert_bits_of_small_tiles(case, emulator, dtype, force)


@pytest.mark.parametrize("case", [EDGES[0], EDGES[3], EDGES[5], EDGES[6]], ids=str)
def test_the_largest_tile_gives_the_bits_of_small_ones(case: Case, emulator: KernelBackend, force: Any) -> None:
    force(lambda variant: str(variant).startswith("fma 128x128"))
    assert set(large_tiles(case).values()) == {128}
    assert_bits_of_small_tiles(case, emulator, "float32", force)


def test_a_forward_convolution_of_long_sums_is_computed_in_parts() -> None:
    assert {"conv2d_fma_forward", "conv2d_sum_parts"} <= {one.name for one in launches(EDGES[-1])}


def test_a_product_in_parts_has_parts_that_begin_at_16_bytes(emulator: KernelBackend) -> None:
    case = dense("matmul", (36, 1028), (1028, 32))
    assert {"matmul_fma", "sum_parts"} <= {one.name for one in launches(case)}
    exact, ours = evaluate(case, precision="float64").results[0], evaluate(case, emulator).results[0]
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1030 * 2.0**-24 * float(np.abs(exact).max()) * 36)


@pytest.mark.parametrize("case", [EDGES[2], EDGES[7]], ids=str)
def test_any_order_of_the_threads_gives_equal_bits(case: Case) -> None:
    first, *others = (evaluate(case, KernelBackend(EmulatorDevice(order=order))).results for order in (0, 1, 7))
    for results in others:
        for ours, theirs in zip(results, first, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_operands_off_a_boundary_of_16_bytes_give_the_same_bits(emulator: KernelBackend) -> None:
    a, b = normal(36, 20).make("float32"), normal(20, 40, seed=1).make("float32")
    moved = off_boundary(a), off_boundary(b)
    np.testing.assert_array_equal(emulator.matmul(*moved), emulator.matmul(a, b))


def test_a_nan_stays_one_and_reaches_its_own_outputs_alone(emulator: KernelBackend) -> None:
    a, b = np.ones((36, 20), np.float32), np.ones((40, 20), np.float32)
    a[35, 19] = np.nan
    y = emulator.matmul(a, b, trans_b=True)
    assert np.isnan(y[35]).all()
    assert np.isnan(y).sum() == 40


# -- which kernel is chosen ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TENSOR_CORES_FILLED, ids=str)
def test_the_largest_tile_is_taken_where_it_is_filled_and_never_in_double(case: Case) -> None:
    assert set(large_tiles(case).values()) == {128}
    assert set(large_tiles(case, "float64").values()) == {64}


def test_a_graphics_card_takes_large_tiles_and_one_with_fast_tensor_cores_does_not() -> None:
    assert large_tiles(TENSOR_CORES_FILLED[0], capability=(8, 9))
    assert large_tiles(TENSOR_CORES_FILLED[0], capability=(7, 5))
    assert not large_tiles(TENSOR_CORES_FILLED[0], capability=(9, 0))
    assert large_tiles(TENSOR_CORES_FILLED[0], "float64", (9, 0))


# -- bugs that are planted in a copy of the kernels ------------------------------------------------------


@pytest.fixture
def planted(plant: Any) -> Callable[[str, str], KernelBackend]:
    return lambda old, new: KernelBackend(plant("fma_tile.cuh", old, new))


A, B = normal(36, 20).make("float32"), normal(40, 20, seed=1).make("float32")


@pytest.mark.parametrize(("old", "new", "message"), [
    ("            B::store(tiles.b[1 - stage], next_b);\n            __syncthreads();\n",
     "            B::store(tiles.b[1 - stage], next_b);\n", "a race with thread|which nothing has written"),
    ("A::store(tiles.a[1 - stage], next_a);", "A::store(tiles.a[stage], next_a);", "a race with thread"),
    ("if (k() < left && chunk.inside)", "if (chunk.inside)", "out of bounds"),
    ("tile[k() + j][row(i)] = from[i].at[j];", "tile[k() + j][row(i) / 2 * 2] = from[i].at[j];", "a race with thread"),
])  # fmt: skip
def test_the_emulator_catches_a_broken_step(old: str, new: str, message: str, planted: Any) -> None:
    with pytest.raises(KernelError, match=message):
        planted(old, new).matmul(A, B, trans_b=True)


@pytest.mark.parametrize(("old", "new"), [
    ("tiles.a[stage][k][m + i * 16]", "tiles.a[stage][k][m + i * 8]"),
    ("tiles.b[stage][k][n + j * 32]", "tiles.b[stage][k ^ 1][n + j * 32]"),
    ("left = terms - done - (stage + 1) * FMA_STEP", "left = terms - done - (stage + 2) * FMA_STEP"),
    ("+ i / 4 * 16 + i % 4,", "+ i / 4 * 16 + (i ^ 1) % 4,"),
])  # fmt: skip
def test_a_wrong_place_or_a_dropped_step_changes_the_result(
    old: str, new: str, planted: Any, emulator: KernelBackend
) -> None:
    assert not np.array_equal(planted(old, new).matmul(A, B, trans_b=True), emulator.matmul(A, B, trans_b=True))
