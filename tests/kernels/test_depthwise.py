"""Strips of depthwise convolutions: the bits of small tiles, what they take, NaN and infinity, planted bugs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numerics import assert_within, off_boundary, unit_roundoff

from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import Convolution, Operation, Problem, Variant, candidates, usual
from gpucnn.devices import KernelError
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.geometry import Window
from gpucnn.testing import DEPTHWISE, Case, evaluate, launches

OPERATIONS: list[Operation] = ["conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight"]
INPUT, WEIGHT = OPERATIONS[1:]


@pytest.fixture(scope="module")
def emulator() -> KernelBackend:
    return KernelBackend(EmulatorDevice())


def chosen(operation: Operation, channels: int, window: Window, groups: int | None = None, k: int = 0) -> Variant:
    of = Convolution(2, 28, 26, channels, k or channels, *window.output_size((28, 26)), groups or channels, window)
    return usual(Problem(operation, of, "float"))


# -- what is chosen ------------------------------------------------------------------------------------


def test_a_filter_for_each_channel_is_computed_by_strips() -> None:
    for operation in OPERATIONS:
        assert chosen(operation, 32, Window((3, 3))).family == "depthwise"
        assert chosen(operation, 32, Window((3, 3)), k=64).family == "direct"
        assert chosen(operation, 32, Window((3, 3)), groups=16).family == "direct"
        assert chosen(operation, 1, Window((3, 3))).family == "direct"
        assert chosen(operation, 32, Window((9, 9))).family == "depthwise"
        assert chosen(operation, 32, Window((10, 3))).family == "direct"


def test_an_input_gradient_by_a_stride_of_three_columns_is_not() -> None:
    window = Window((3, 3), stride=(1, 3))
    assert [chosen(operation, 32, window).family for operation in OPERATIONS] == ["depthwise", "direct", "depthwise"]
    assert chosen(INPUT, 32, Window((3, 3), stride=(3, 2))).family == "depthwise"


def test_neighbouring_channels_are_a_threads_and_a_block_is_as_wide_as_wastes_least() -> None:
    def of(channels: int, scalar: str = "float") -> tuple[int, int]:
        shape = Convolution(2, 9, 9, channels, channels, 7, 7, channels, Window((3, 3)))
        constants = usual(Problem("conv2d_forward", shape, scalar)).constants
        return constants["VECTOR"], constants["LANES"]

    assert [of(c) for c in (128, 64, 96, 144, 30, 33)] == [(4, 32), (4, 16), (4, 8), (4, 8), (2, 16), (1, 8)]
    assert [of(c) for c in (4, 8, 12, 20, 3)] == [(4, 1), (4, 2), (4, 4), (4, 8), (1, 4)]
    assert [of(c, "double") for c in (64, 30, 33)] == [(2, 32), (2, 16), (1, 8)]
    assert of(64, "float16") == (4, 16)


def test_candidates_have_different_names_and_those_of_the_weight_gradient_whole_rows_of_parts() -> None:
    for operation in OPERATIONS:
        of = Convolution(9, 40, 30, 32, 32, 38, 28, 32, Window((3, 3)))
        found = candidates(Problem(operation, of, "float"))
        assert len({str(variant) for variant in found}) == len(found)
        assert found[0].family == "depthwise"
        if operation == WEIGHT:
            assert {variant.length % 28 for variant in found if variant.family == "depthwise"} == {0}
            assert found[0].parts > 1


# -- what is computed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DEPTHWISE[:-1], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_strips_give_the_bits_of_small_tiles_but_for_the_order_of_the_weight_gradient(
    case: Case, dtype: str, emulator: KernelBackend, force: Any
) -> None:
    names = {one.name.replace("_depthwise", "") for one in launches(case, dtype) if "_depthwise_" in one.name}
    assert names == {*OPERATIONS}
    ours = evaluate(case, emulator, dtype).results
    force(lambda variant: variant.family == "gemm")
    theirs = evaluate(case, emulator, dtype).results
    for result, expected in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_array_equal(result, expected, strict=True)
    bound = 2 * unit_roundoff(dtype) * np.asarray(case.bounds(evaluate(case, precision="float64"))[2])
    assert_within(ours[2], theirs[2].astype(np.float64), bound)


def test_strips_of_eight_give_the_bits_of_strips_of_four(emulator: KernelBackend, force: Any) -> None:
    ours = evaluate(DEPTHWISE[0], emulator).results
    force(lambda variant: str(variant) == "depthwise 8" or "TAP_ROWS" in variant.constants)
    assert {dict(one.constants).get("STRIP") for one in launches(DEPTHWISE[0])} >= {8}
    for result, expected in zip(evaluate(DEPTHWISE[0], emulator).results, ours, strict=True):
        np.testing.assert_array_equal(result, expected, strict=True)


@pytest.mark.parametrize("case", DEPTHWISE[:3], ids=str)
def test_any_order_of_the_threads_gives_equal_bits(case: Case) -> None:
    first, *others = (evaluate(case, KernelBackend(EmulatorDevice(order=order))).results for order in (0, 1, 7))
    for results in others:
        for ours, theirs in zip(results, first, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_reaches_the_sums_that_it_is_a_term_of_and_no_other(
    bad: float, emulator: KernelBackend
) -> None:
    x, w, window = np.ones((1, 8, 5, 8), np.float32), np.ones((8, 1, 3, 2), np.float32), Window((3, 2), stride=(1, 3))
    x[0, 3, 2, 4] = bad
    y = emulator.conv2d_forward(x, w, None, window, 8)  # [1, 8, 3, 3]: columns 0 and 1, 3 and 4, 6 and 7
    assert not np.isfinite(y[0, 3, :, 1]).any()
    assert np.isfinite(y).sum() == y.size - 3
    dw = emulator.conv2d_backward_weight(np.ones_like(y), x, window, 8)
    assert not np.isfinite(dw[3, 0, :, 1]).any()
    assert np.isfinite(dw).sum() == dw.size - 3
    x[0, 3, 2, 4], x[0, 3, 2, 2] = 1, bad  # a column that no tap meets
    assert np.isfinite(emulator.conv2d_forward(x, w, None, window, 8)).all()
    assert np.isfinite(emulator.conv2d_backward_weight(np.ones_like(y), x, window, 8)).all()


def test_pixels_right_of_the_last_result_are_no_terms_of_the_weight_gradient(emulator: KernelBackend) -> None:
    x, window = np.ones((1, 4, 3, 9), np.float32), Window((3, 3), stride=(1, 2))
    x[..., 7:] = np.nan
    dy = np.ones((1, 4, 1, 3), np.float32)  # of columns 0 to 6: a strip of four would go on to 8
    assert np.isfinite(emulator.conv2d_backward_weight(dy, x, window, 4)).all()


def test_operands_off_a_boundary_of_16_bytes_give_the_same_bits(emulator: KernelBackend) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((1, 6, 5, 8), (8, 3, 3, 1))]
    moved = map(off_boundary, arrays)
    (x, w), (moved_x, moved_w) = ([a.transpose(0, 3, 1, 2) for a in some] for some in (arrays, moved))
    expected = emulator.conv2d_forward(x, w, None, Window((3, 3)), 8)
    np.testing.assert_array_equal(emulator.conv2d_forward(moved_x, moved_w, None, Window((3, 3)), 8), expected)


# -- bugs that are planted in a copy of the kernels ------------------------------------------------------


@pytest.fixture
def planted(plant: Any) -> Callable[[str, str], KernelBackend]:
    return lambda old, new: KernelBackend(plant("conv2d_depthwise.cu", old, new))


@pytest.mark.parametrize(("old", "new", "message"), [
    ("= w[first * TAPS + i];\n        __syncthreads();", "= w[first * TAPS + i];", "which nothing has written|a race"),
    ("min(LANES * VECTOR, C - first)", "(LANES * VECTOR)", "out of bounds"),
    ("first + i >= 0 && first + i < width", "first + i < width", "out of bounds"),
    ("if (strip.c >= C || strip.row >= rows) return;", "if (strip.row >= rows) return;", "which nothing has written"),
    ("if (q + j < Q) gradients[j]", "gradients[j]", "out of bounds"),
    ("min(rows * (part + 1), N * P)", "(rows * (part + 1))", "out of bounds"),
    ("first_c + i < C && r < KERNEL_H", "r < KERNEL_H", "out of bounds|a race with"),
    ("            dw[(part * C + first_c + i) * TAPS + r * KERNEL_W + tap % KERNEL_W] = sum;\n        }\n"
     "        __syncthreads();",
     "            dw[(part * C + first_c + i) * TAPS + r * KERNEL_W + tap % KERNEL_W] = sum;\n        }", "a race"),
])  # fmt: skip
def test_the_emulator_catches_a_broken_step(old: str, new: str, message: str, planted: Any) -> None:
    with pytest.raises(KernelError, match=message):
        evaluate(DEPTHWISE[0], planted(old, new))


@pytest.mark.parametrize(("old", "new"), [
    ("return right % STRIDE_W ? -1 : right / STRIDE_W - FIRST;", "return right / STRIDE_W - FIRST;"),
    ("below < 0 || below % STRIDE_H ? -1", "below < 0 ? -1"),
    ("return j * STRIDE_W + s * DILATION_W;", "return j + s * DILATION_W;"),
    ("                if (q + j >= Q) break;\n", ""),
    ("strip += THREADS / LANES", "strip += 2 * (THREADS / LANES)"),
    ("(PAD_LEFT - (EXTENT_W - 1)) / STRIDE_W", "(PAD_LEFT - (EXTENT_W - 3)) / STRIDE_W"),
])  # fmt: skip
def test_a_wrong_place_or_a_dropped_term_changes_a_result(
    old: str, new: str, planted: Any, emulator: KernelBackend
) -> None:
    theirs = evaluate(DEPTHWISE[2], planted(old, new))
    ours = evaluate(DEPTHWISE[2], emulator)
    assert any(not np.array_equal(a, b) for a, b in zip(theirs.results, ours.results, strict=True))
