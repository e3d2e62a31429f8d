"""Convolution from halos, on the emulator as if it were a GPU with tensor cores: bounds, bits, planted bugs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numerics import assert_within, unit_roundoff

import gpucnn
from gpucnn.backends import get_backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import Convolution, Problem, Variant, candidates, preferring, usual
from gpucnn.devices import KernelError
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.geometry import Window
from gpucnn.testing import HALO, HALO_FILLED, HALO_HALF, Case, conv, evaluate, launches, normal, on_tensor_cores, whole
from gpucnn.verify import compared

H100 = (9, 0)
KERNELS = {"conv2d_halo_forward", "conv2d_halo_backward_input"}


@pytest.fixture(scope="module")
def halos() -> KernelBackend:
    return KernelBackend(EmulatorDevice(capability=H100), preferring("halo"))


SMALL, WINDOW = conv((1, 20, 9, 9), (12, 20, 3, 3), padding=1), Window((3, 3), padding=(1, 1, 1, 1))
X, W = SMALL.made_inputs("float32")


def assert_right(case: Case, backend: KernelBackend, dtype: str = "float32") -> None:
    assert {one.name for one in launches(case, dtype, H100, backend.choose)} >= KERNELS
    for result in compared(evaluate(case, dtype=dtype, precision="float64"), backend, dtype):
        assert_within(result.got, result.expected, result.bound)


# -- what they compute ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", HALO, ids=str)
def test_three_products_are_within_the_bound_of_fp32(case: Case, halos: KernelBackend) -> None:
    assert_right(case, halos)


@pytest.mark.parametrize("case", HALO[:2], ids=str)
def test_one_product_is_within_the_bound_of_tf32(case: Case, halos: KernelBackend) -> None:
    with gpucnn.precision("tf32"):
        assert_right(case, halos)


@pytest.mark.parametrize(("case", "dtype"), [
    (HALO_HALF[0], "float16"), (HALO_HALF[0], "bfloat16"), (HALO_HALF[1], "float16"), (HALO_HALF[2], "float16"),
], ids=str)  # fmt: skip
def test_half_types_are_within_their_bound(case: Case, dtype: str, halos: KernelBackend) -> None:
    assert_right(case, halos, dtype)


def computed(backend: Any, what: str, x: Any, w: Any, dy: Any, window: Window) -> Any:
    if what == "forward":
        return backend.conv2d_forward(x, w, None, window, 1)
    return backend.conv2d_backward_input(dy, w, window, 1, x.shape[2:])


def of_size(size: int) -> Callable[[Problem], Variant]:
    """A chooser of halos by tiles of so many pixels."""
    return lambda problem: next(v for v in candidates(problem) if v.family == "halo" and v.constants["TILE_M"] == size)


@pytest.mark.parametrize(("size", "kernel", "what", "precision"), [
    (64, 3, "forward", "tf32"), (128, 3, "forward", "fp32"), (128, 3, "backward_input", "tf32"),
    (128, 5, "forward", "tf32"), (128, 5, "backward_input", "fp32"),
])  # fmt: skip
def test_whole_numbers_are_convolved_exactly(size: int, kernel: int, what: str, precision: str) -> None:
    """A tile that is full, and one that is not: of rows, columns, channels and filters."""
    backend = KernelBackend(EmulatorDevice(capability=H100), of_size(size))
    columns = size + 4 if kernel == 3 else 68  # the tile of 5 x 5 has 64
    c, k = (20, columns) if what == "forward" else (columns, 20)
    window = Window((kernel, kernel), padding=(1, 2, 0, 1))
    size_of_x = (size // 8 + 3, 640 // size)
    x, w = whole(1, c, *size_of_x, most=8), whole(k, c, kernel, kernel, most=8, seed=1)
    dy = whole(1, k, *window.output_size(size_of_x), most=8, seed=2)
    a, b, u = (values.make("float32") for values in (x, w, dy))
    with gpucnn.precision(precision):
        y = computed(backend, what, a, b, u, window)
    np.testing.assert_array_equal(y, computed(get_backend("numpy"), what, a, b, u, window))


def test_bias_scale_and_residual_are_applied_to_the_sums(halos: KernelBackend) -> None:
    shapes = ((1, 12, 7, 5), (20, 12, 3, 3), (20,), (20,), (1, 20, 7, 5))
    x, w, b, scale, residual = (normal(*shape, seed=i).make("float32") for i, shape in enumerate(shapes))
    plain = halos.conv2d_forward(x, w, None, WINDOW, 1)
    finished = halos.conv2d_forward(x, w, b, WINDOW, 1, None, scale, residual)
    expected = plain * scale.reshape(-1, 1, 1) + b.reshape(-1, 1, 1) + residual
    np.testing.assert_allclose(finished, expected, rtol=1e-5, atol=1e-6)


def test_a_nan_reaches_the_outputs_under_whose_filters_it_is_and_no_other(halos: KernelBackend) -> None:
    x, w = np.ones((2, 20, 9, 5), np.float32), np.ones((12, 20, 3, 3), np.float32)
    x[1, 19, 8, 2] = np.nan
    y = halos.conv2d_forward(x, w, None, WINDOW, 1)
    assert np.isnan(y[1, :, 7:, 1:4]).all()
    assert np.isnan(y).sum() == 12 * 2 * 3


def test_an_empty_batch_is_an_empty_result(halos: KernelBackend) -> None:
    x, w = np.empty((0, 8, 5, 4), np.float32), np.ones((12, 8, 3, 3), np.float32)
    assert halos.conv2d_forward(x, w, None, Window((3, 3)), 1).shape == (0, 12, 3, 2)


def test_any_order_of_the_threads_gives_equal_bits() -> None:
    found = []
    for order in (0, 1, 7):
        backend = KernelBackend(EmulatorDevice(order=order, capability=H100), preferring("halo"))
        found.append(backend.conv2d_forward(X, W, None, WINDOW, 1))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


# -- bugs that are planted in a copy of the kernels ------------------------------------------------------

UNWRITTEN, RACE, OUTSIDE = "which nothing has written", "a race with thread", "out of bounds"


@pytest.fixture
def planted(plant: Any) -> Callable[[str, str], KernelBackend]:
    return lambda old, new: KernelBackend(plant("halo_tile.cuh", old, new, H100), preferring("halo"))


@pytest.mark.parametrize(("old", "new", "message"), [
    ("async_wait<STAGES - 2>();", "async_wait<STAGES - 1>();", UNWRITTEN),
    ("        __syncthreads();  // the tap", "        // the tap", f"{UNWRITTEN}|{RACE}"),
    ("halo.copy(tiles.halo[1 - current]", "halo.copy(tiles.halo[current]", f"{UNWRITTEN}|{RACE}"),
    ("inside && slice + chunk() * CHUNK < channels", "inside", OUTSIDE),
    ("(chunk ^ (v / 2 & 3)) * CHUNK", "(chunk & (v / 2 & 3)) * CHUNK", f"{UNWRITTEN}|{RACE}"),
])  # fmt: skip
def test_the_emulator_catches_a_broken_pipeline_of_copies(old: str, new: str, message: str, planted: Any) -> None:
    with pytest.raises(KernelError, match=message):
        planted(old, new).conv2d_forward(X, W, None, WINDOW, 1)


@pytest.mark.parametrize(("what", "old", "new"), [
    ("forward", "(chunk ^ (v / 2 & 3)) * CHUNK", "(chunk ^ ((v / 2 + h) & 3)) * CHUNK"),
    ("forward", "Place::STEP - (TAPS - 1) * channels", "Place::STEP / 2 - (TAPS - 1) * channels"),
    ("forward", "(first + i * ROWS) < (unsigned int)H", "(first + i * ROWS) < (unsigned int)H - 1"),
    ("forward", "tiles.halo[current] + r * Halo::ROW", "tiles.halo[current] + (r ^ 1) % KERNEL_H * Halo::ROW"),
    ("forward", "store(m / 8 + tile, g,", "store(m / 8 + (tile ^ 1), g,"),
    ("backward_input", "min(n, channels - CHUNK)", "min(n ^ CHUNK, channels - CHUNK)"),
])  # fmt: skip
def test_a_wrong_place_or_tap_is_beyond_the_bound(what: str, old: str, new: str, planted: Any) -> None:
    exact, which = evaluate(SMALL, precision="float64"), ["forward", "backward_input"].index(what)
    backend, bound = planted(old, new), unit_roundoff("float32") * on_tensor_cores(exact, 3, halo=True)[which]
    got = computed(backend, what, X, W, exact.cotangent.astype(np.float32), WINDOW)
    with pytest.raises(AssertionError, match="values are off"):
        assert_within(got, exact.results[which], bound)


# -- when they may be chosen -----------------------------------------------------------------------------


def problem(window: Window, c: int = 64, k: int = 64, groups: int = 1, *how: Any) -> Problem:
    p, q = window.output_size((28, 30))
    shape = Convolution(8, 28, 30, c, k, p, q, groups, window)
    return Problem("conv2d_forward", shape, *(how or ("float", "fp32", H100)))


def offered(asked: Problem) -> bool:
    return any(variant.family == "halo" for variant in candidates(asked))


def test_halos_are_offered_where_taps_are_neighbours_and_channels_come_by_chunks() -> None:
    assert offered(problem(Window((3, 3))))
    assert offered(problem(Window((5, 2)), 8, 8, 2))
    assert not offered(problem(Window((3, 3), stride=(1, 2))))
    assert not offered(problem(Window((3, 3), dilation=(2, 1))))
    assert not offered(problem(Window((1, 3))))
    assert not offered(problem(Window((6, 3))))
    assert not offered(problem(Window((3, 3)), 62))
    assert not offered(problem(Window((3, 3)), 64, 62))
    assert not offered(problem(Window((3, 3)), 64, 64, 1, "double", "fp32", H100))
    assert not offered(problem(Window((3, 3)), 64, 64, 1, "float", "fp32", (7, 5)))
    assert not offered(problem(Window((3, 3)))._replace(operation="conv2d_backward_weight"))


def test_no_kernel_that_no_gpu_has_shown_to_be_faster_is_the_usual_one() -> None:
    for c in (64, 256):
        for precision in ("fp32", "tf32"):
            for operation in ("conv2d_forward", "conv2d_backward_input"):
                asked = problem(Window((3, 3)), c, c, 1, "float", precision, H100)._replace(operation=operation)
                assert usual(asked).family == "mma"


@pytest.mark.parametrize("case", HALO_FILLED, ids=str)
def test_the_larger_tile_comes_first_where_it_is_filled(case: Case) -> None:
    for one in launches(case, "float32", H100, preferring("halo")):
        if one.name in KERNELS:
            assert dict(one.constants)["TILE_M"] == 128


def test_a_case_without_such_taps_is_computed_as_usual() -> None:
    strided = conv((1, 12, 7, 5), (20, 12, 3, 3), stride=2)
    assert launches(strided, "float32", H100, preferring("halo")) == launches(strided, "float32", H100)
