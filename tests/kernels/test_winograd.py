"""Convolution by Winograd's formula, on the emulator as if it were a GPU of sm_90: error, bits, planted bugs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numerics import assert_within, unit_roundoff

from gpucnn.backends import get_backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import Convolution, Problem, candidates, preferring
from gpucnn.devices import KernelError
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.geometry import Window
from gpucnn.testing import WINOGRAD, Case, by_winograd, conv, evaluate, launches, normal, products, whole
from gpucnn.verify import compared

H100 = (9, 0)
PADDED = Window((3, 3), padding=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def winograd() -> KernelBackend:
    return KernelBackend(EmulatorDevice(capability=H100), preferring("winograd"))


# -- what it computes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", WINOGRAD, ids=str)
def test_output_and_gradients_are_within_the_bound(case: Case, winograd: KernelBackend) -> None:
    names = [one.name for one in launches(case, "float32", H100, winograd.choose)]
    assert names.count("conv2d_winograd") == 2  # forward, and of the input
    for result in compared(evaluate(case, precision="float64"), winograd, "float32"):
        assert_within(result.got, result.expected, result.bound)


def test_the_error_is_below_fp32s_and_at_most_twice_that_of_a_plain_sum(winograd: KernelBackend) -> None:
    x, w = (normal(*shape, seed=i).make("float32") for i, shape in enumerate([(1, 128, 6, 7), (64, 128, 3, 3)]))
    exact = get_backend("numpy").conv2d_forward(x.astype(np.float64), w.astype(np.float64), None, PADDED, 1)
    ours, theirs = (
        np.linalg.norm(by.conv2d_forward(x, w, None, PADDED, 1) - exact) / np.linalg.norm(exact)
        for by in (winograd, KernelBackend(winograd.device, preferring("fma")))
    )
    assert ours < 1e-6
    assert ours < 2 * theirs


def test_whole_numbers_are_convolved_exactly(winograd: KernelBackend) -> None:
    """Quarters of them are exact too. Two blocks of places and of filters, both partly filled."""
    x, w, dy = (
        whole(*shape, most=8, seed=i).make("float32")
        for i, shape in enumerate([(3, 64, 9, 6), (68, 64, 3, 3), (3, 68, 9, 6)])
    )
    plain = get_backend("numpy")
    np.testing.assert_array_equal(
        winograd.conv2d_forward(x, w, None, PADDED, 1), plain.conv2d_forward(x, w, None, PADDED, 1)
    )
    np.testing.assert_array_equal(
        winograd.conv2d_backward_input(dy, w, PADDED, 1, (9, 6)), plain.conv2d_backward_input(dy, w, PADDED, 1, (9, 6))
    )


def test_bias_scale_and_residual_are_applied_to_the_sums(winograd: KernelBackend) -> None:
    shapes = ((1, 64, 5, 4), (64, 64, 3, 3), (64,), (64,), (1, 64, 5, 4))
    x, w, b, scale, residual = (normal(*shape, seed=i).make("float32") for i, shape in enumerate(shapes))
    plain = winograd.conv2d_forward(x, w, None, PADDED, 1)
    finished = winograd.conv2d_forward(x, w, b, PADDED, 1, None, scale, residual)
    expected = plain * scale.reshape(-1, 1, 1) + b.reshape(-1, 1, 1) + residual
    np.testing.assert_allclose(finished, expected, rtol=1e-5, atol=1e-5)


def test_a_nan_reaches_the_outputs_under_whose_filters_it_is_and_no_other(winograd: KernelBackend) -> None:
    for h, v in ((4, 2), (3, 3)):
        x, w = np.ones((1, 64, 7, 6), np.float32), np.ones((64, 64, 3, 3), np.float32)
        x[0, 63, h, v] = np.nan
        y = winograd.conv2d_forward(x, w, None, PADDED, 1)
        assert np.isnan(y[0, :, h - 1 : h + 2, v - 1 : v + 2]).all()
        assert np.isnan(y).sum() == 64 * 3 * 3


def test_an_empty_batch_is_an_empty_result(winograd: KernelBackend) -> None:
    x, w = np.empty((0, 64, 5, 4), np.float32), np.ones((64, 64, 3, 3), np.float32)
    assert winograd.conv2d_forward(x, w, None, PADDED, 1).shape == (0, 64, 5, 4)


def test_any_order_of_the_threads_gives_equal_bits() -> None:
    x, w = (normal(*shape).make("float32") for shape in ((3, 64, 9, 6), (68, 64, 3, 3)))
    found = []
    for order in (0, 1, 7):
        backend = KernelBackend(EmulatorDevice(order=order, capability=H100), preferring("winograd"))
        found.append(backend.conv2d_forward(x, w, None, PADDED, 1))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


# -- its bound -------------------------------------------------------------------------------------------


def test_the_bound_counts_absolute_values_through_all_steps() -> None:
    """One tap of a filter and inputs of 1, by hand. Each element of |B'| d |B| is 2 · 2. Tap (0, 0) is in numbers 0, 1
    and 2 of a row or column by 1, ½ and ½, the middle one in 1 and 2 by ½; and output (0, 0) adds these three."""
    exact = evaluate(conv((1, 1, 4, 4), (1, 1, 3, 3)), precision="float64")
    for tap, size in (((0, 0), 4 * 2 * 2), ((1, 1), 4 * 1 * 1), ((0, 1), 4 * 2 * 1)):
        exact.inputs[0][...], exact.inputs[1][...] = 1, 0
        exact.inputs[1][(0, 0, *tap)] = 1
        assert by_winograd(exact)[0][0, 0, 0, 0] == pytest.approx((1 + 14) * size)
    wide = evaluate(WINOGRAD[0], precision="float64")
    assert (by_winograd(wide)[0] > 73 * 2.0**-24 * np.abs(wide.results[0])).all()
    np.testing.assert_array_equal(by_winograd(wide)[2], products(wide)[2])  # the weight's gradient is a plain sum


# -- bugs that are planted in a copy of the kernels ------------------------------------------------------

SMALL = conv((1, 64, 5, 6), (64, 64, 3, 3), padding=1)
X, W = SMALL.made_inputs("float32")


@pytest.fixture
def planted(plant: Any) -> Callable[[str, str, str], KernelBackend]:
    return lambda *change: KernelBackend(plant(*change, H100), preferring("winograd"))


MAIN, OF_FILTERS = "conv2d_winograd.cu", "winograd_filters.cu"
LAST_BARRIER = "            async_wait<0>();\n            __syncthreads();\n        }"


@pytest.mark.parametrize(("old", "new", "message"), [
    (LAST_BARRIER, "            __syncthreads();\n        }", "which nothing has written"),
    (LAST_BARRIER, "            async_wait<0>();\n        }", "a race with thread|which nothing has written"),
    ("copy_u(1 - stage, more);", "copy_u(stage, more);", "a race with thread|which nothing has written"),
    ("more = done + (stage + 1) * TERMS < C", "more = true", "out of bounds"),
    ("        __syncthreads();  // all have read", "        // all have read", "a race with thread"),
    ("place ^ channel * 8", "place & channel * 8", "a race with thread"),
])  # fmt: skip
def test_the_emulator_catches_a_broken_step(old: str, new: str, message: str, planted: Any) -> None:
    with pytest.raises(KernelError, match=message):
        planted(MAIN, old, new).conv2d_forward(X, W, None, PADDED, 1)


@pytest.mark.parametrize(("file", "old", "new"), [
    (MAIN, "b[j] = d[1][j] + (lower ?", "b[j] = d[1][j] - (lower ?"),
    (MAIN, "t[2] - t[1];", "t[1] - t[2];"),
    (MAIN, "(m ^ term % 2 * 8)", "(m ^ term / 2 * 8)"),
    (MAIN, "round / 2 * 16 + warp / 2 * 4", "round / 2 * 16 + (warp / 2 ^ 1) * 4"),
    (MAIN, "from[1].at[e] - from[2].at[e] - from[3].at[e]", "from[1].at[e] - from[2].at[e] + from[3].at[e]"),
    (OF_FILTERS, "even - odd", "even + odd"),
    (OF_FILTERS, "TURNED ? 8 - r * 3 - s", "TURNED ? 8 - s * 3 - r"),
])  # fmt: skip
def test_a_wrong_sign_or_place_is_beyond_the_bound(file: str, old: str, new: str, planted: Any) -> None:
    exact, backend = evaluate(SMALL, precision="float64"), planted(file, old, new)
    y = backend.conv2d_forward(X, W, None, PADDED, 1)
    dx = backend.conv2d_backward_input(exact.cotangent.astype(np.float32), W, PADDED, 1, (5, 6))
    found = zip((y, dx), exact.results, by_winograd(exact), strict=False)
    assert any((np.abs(got - expected) > unit_roundoff("float32") * bound).any() for got, expected, bound in found)


# -- when it may be chosen -------------------------------------------------------------------------------


def test_it_is_offered_for_3_by_3_filters_and_64_channels_in_fp32() -> None:
    def offered(window: Window, c: int = 64, k: int = 64, groups: int = 1, *how: Any) -> bool:
        p, q = window.output_size((28, 30))
        shape = Convolution(8, 28, 30, c, k, p, q, groups, window)
        asked = Problem("conv2d_forward", shape, *(how or ("float", "fp32", H100)))
        weight = candidates(asked._replace(operation="conv2d_backward_weight"))
        assert "winograd" not in {variant.family for variant in weight}
        return "winograd" in {variant.family for variant in candidates(asked)}

    assert offered(Window((3, 3)))
    assert offered(PADDED, 64, 68, 1, "float", "fp32", (8, 9))
    assert not offered(Window((3, 3), stride=(2, 1)))
    assert not offered(Window((3, 3), dilation=(1, 2)))
    assert not offered(Window((3, 2)))
    assert not offered(PADDED, 60)
    assert not offered(PADDED, 66)
    assert not offered(PADDED, 64, 60)
    assert not offered(PADDED, 128, 128, 2)
    for how in (("float", "tf32", H100), ("double", "fp32", H100), ("float16", "fp32", H100), ("float", "fp32", (7, 5)),
                ("float", "fp32", None)):  # fmt: skip
        assert not offered(PADDED, 64, 64, 1, *how)
