"""The kernels for Hopper, on the emulator: what copies bring, bounds, bits, the portable twin, planted bugs."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numerics import assert_within

import gpucnn
from gpucnn.backends import get_backend, variants
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import Convolution, Problem, Product, Variant, candidates, preferring, usual
from gpucnn.devices import Device, KernelError, Signature, tensor_map
from gpucnn.devices.base import kernel_folder, needed_architecture
from gpucnn.devices.emulator import EmulatorDevice, compiler
from gpucnn.devices.ptx import PtxDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.geometry import Pixels, Window
from gpucnn.testing import (
    WGMMA,
    WGMMA_FILLED,
    WGMMA_TF32,
    Case,
    conv,
    evaluate,
    halves_on_tensor_cores,
    in_half,
    launches,
    normal,
    whole,
)
from gpucnn.verify import compared

H100 = (9, 0)
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def wgmma() -> KernelBackend:
    return KernelBackend(EmulatorDevice(capability=H100), preferring("wgmma"))


# -- what a copy brings ----------------------------------------------------------------------------------


@pytest.fixture(params=[EmulatorDevice, PtxDevice], ids=["emulator", "ptx"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Device:
    for file in [HERE / "copies.cu", *kernel_folder().glob("*.cuh")]:
        shutil.copy(file, tmp_path)
    if request.param is PtxDevice:
        request.getfixturevalue("_nvrtc")
    made: Device = request.param(kernels=tmp_path)
    return made


def in_rows(shown: Any) -> Any:
    """Shared memory as rows again: chunk i of row r lies at i ^ (r % 8)."""
    chunks = shown.reshape(len(shown), 8, -1)
    r, i = np.indices((len(shown), 8))
    return chunks[r, i ^ (r % 8)].reshape(shown.shape)


@pytest.mark.parametrize("at", [(0, 0, 0), (4, 3, 64), (-1, -2, -8)])
def test_a_box_comes_as_rows_and_as_zeros_outside(at: tuple[int, int, int], device: Device) -> None:
    x, y = whole(6, 5, 72, most=2000).make("float16"), np.empty((32, 64), np.float16)
    x = device.xp.asarray(x)
    around = np.pad(np.asarray(x), ((4, 12), (4, 8), (64, 128)))
    a, b, c = (4 + at[0], 4 + at[1], 64 + at[2])
    expected = around[a : a + 8, b : b + 4, c : c + 64].reshape(32, 64)
    constants = {"SCALAR": "float16", "ROWS": 32, "LENGTH": 64}
    device.launch(
        "copies.cu", "show_box", constants, (1, 1, 1), (32, 1, 1), device.tensor_map(x, (8, 4, 64)), y, *x.shape, *at
    )
    np.testing.assert_array_equal(in_rows(y), expected)


def test_floats_come_as_the_nearest_tf32(device: Device) -> None:
    """Which has 11 bits: steps of 2^-10 from 1 to 2; in the middle to the even one; what is no number as it is."""
    values, step = device.xp.asarray(np.zeros((8, 4, 32), np.float32)), 2.0**-10
    values[0, 0, :8] = [1 + 0.49 * step, 1 + 0.5 * step, -1 - 1.5 * step, 2 - 0.3 * step, np.pi, 1e30, -np.inf, np.nan]
    y = np.empty((32, 32), np.float32)
    device.launch(
        "copies.cu", "show_box", {"SCALAR": "float", "ROWS": 32, "LENGTH": 32}, (1, 1, 1), (32, 1, 1),
        device.tensor_map(values, (8, 4, 32)), y, 8, 4, 32, 0, 0, 0,
    )  # fmt: skip
    got = in_rows(y)
    pi, large = (float(np.round(v / s)) * s for v, s in ((np.pi, 2.0**-9), (float(np.float32(1e30)), 2.0**89)))
    np.testing.assert_array_equal(got[0, :8], np.float32([1, 1, -1 - 2 * step, 2, pi, large, -np.inf, np.nan]))
    assert not got[1:].any()


@pytest.mark.parametrize(("window", "first"), [
    (Window((3, 2), padding=(1, 1, 1, 1)), 0),
    (Window((3, 2), padding=(1, 1, 1, 1)), 50),
    (Window((2, 3), stride=(2, 3), dilation=(1, 2), padding=(1, 0, 2, 3)), 3),
    (Window((1, 1), stride=(1, 2)), 20),
], ids=str)  # fmt: skip
def test_pixels_come_as_the_rows_of_im2col(window: Window, first: int, device: Device) -> None:
    """Walked from any of them; each tap; more rows than there are; 64 of 72 channels, then 8 and zeros."""
    n, h, w, c, rows = 2, 7, 6, 72, 32
    x = device.xp.asarray(whole(n, h, w, c, most=2000).make("float16"))
    p, q = window.output_size((h, w))
    top, bottom, left, right = window.padding
    reach = [d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True)]
    walk = Pixels((-top, -left), (bottom - reach[0], right - reach[1]), window.stride)
    around = np.pad(np.asarray(x), ((0, 0), (top, bottom), (left, right), (0, 56)))
    image, row, column = np.unravel_index(first, (n, p, q))
    for r in range(window.kernel[0]):
        for s in range(window.kernel[1]):
            down, across = r * window.dilation[0], s * window.dilation[1]
            taps = around[:, down :: window.stride[0], across :: window.stride[1]][:, :p, :q]
            for channel in (0, 64):
                expected = np.zeros((rows, 64), np.float16)
                found = taps.reshape(-1, c + 56)[first : first + rows, channel : channel + 64]
                expected[: len(found)] = found
                start = (image, row * window.stride[0] - top, column * window.stride[1] - left, channel)
                y = np.empty((rows, 64), np.float16)
                constants = {"SCALAR": "float16", "ROWS": rows, "LENGTH": 64}
                device.launch(
                    "copies.cu", "show_pixels", constants, (1, 1, 1), (32, 1, 1),
                    device.tensor_map(x, (rows, 64), walk), y, n, h, w, c, *map(int, start), down, across,
                )  # fmt: skip
                np.testing.assert_array_equal(in_rows(y), expected)


# -- what the kernels compute ----------------------------------------------------------------------------


def assert_right(case: Case, backend: KernelBackend, dtype: str) -> None:
    launched = [one.name for one in launches(case, dtype, H100, backend.choose)]
    assert any("_wgmma" in name for name in launched)
    assert not any("_mma" in name for name in launched if case.op != "conv2d" or case.arguments.get("stride", 1) == 1)
    for result in compared(evaluate(case, dtype=dtype, precision="float64"), backend, dtype):
        assert_within(result.got, result.expected, result.bound)


@pytest.mark.parametrize(("case", "half"), [
    *((case, "float16") for case in WGMMA), (WGMMA[0], "bfloat16"), (WGMMA[4], "bfloat16"),
], ids=str)  # fmt: skip
def test_results_and_gradients_are_within_the_bound_of_half_types(case: Case, half: str, wgmma: KernelBackend) -> None:
    assert_right(case, wgmma, half)


@pytest.mark.parametrize("case", WGMMA_TF32, ids=str)
def test_results_and_gradients_are_within_the_bound_of_tf32(case: Case, wgmma: KernelBackend) -> None:
    """The gradient by the weight, and by strides, is computed by the portable kernels."""
    with gpucnn.precision("tf32"):
        names = {one.name for one in launches(case, "float32", H100, wgmma.choose)}
        assert {"conv2d_wgmma_forward", "matmul_wgmma"} & names
        assert ("conv2d_wgmma_backward_input" in names) == (case.op == "conv2d" and "stride" not in case.arguments)
        for result in compared(evaluate(case, dtype="float32", precision="float64"), wgmma, "float32"):
            assert_within(result.got, result.expected, result.bound)


def test_float_with_rounded_operands_gives_float(wgmma: KernelBackend) -> None:
    with gpucnn.precision("fp16"):
        assert_right(WGMMA[0], wgmma, "float32")


def computed(backend: Any, what: str, x: Any, w: Any, dy: Any, window: Window) -> Any:
    if what == "forward":
        return backend.conv2d_forward(x, w, None, window, 1)
    if what == "backward_weight":
        return backend.conv2d_backward_weight(dy, x, window, 1)
    return backend.conv2d_backward_input(dy, w, window, 1, x.shape[2:])


def of_tile(tile: str) -> Callable[[Problem], Variant]:
    """A chooser of wgmma by a tile such as "128x64"."""
    return lambda problem: next(v for v in candidates(problem) if str(v).startswith(f"wgmma {tile}"))


@pytest.mark.parametrize(("dtype", "what"), [
    ("float16", "forward"), ("float16", "backward_input"), ("float16", "backward_weight"), ("float32", "forward"),
    ("float32", "backward_input"),
])  # fmt: skip
@pytest.mark.parametrize("tile", ["128x64", "128x128", "128x256", "256x64", "256x128"])
def test_whole_numbers_are_convolved_exactly_and_as_by_the_portable_twin(what: str, tile: str, dtype: str) -> None:
    """Two tiles by two: one that is full, and one that is not; so every place of a tile is looked at."""
    rows, columns = map(int, tile.split("x"))
    most, pixels = columns + 24, (13 * rows // 128, 11)
    c, k = {"forward": (16, most), "backward_input": (most, 16), "backward_weight": (most, rows + 8)}[what]
    window, size = Window((2, 2), padding=(1, 0, 0, 1)), (6, 5) if what == "backward_weight" else pixels
    x, w = whole(1, c, *size, most=4), whole(k, c, 2, 2, most=4, seed=1)
    dy = whole(1, k, *window.output_size(size), most=4, seed=2)
    arrays = [values.make(dtype) for values in (x, w, dy)]
    device, choosers = EmulatorDevice(capability=H100, watch=False), (of_tile(tile), preferring("mma"))
    with gpucnn.precision("tf32"):
        ours, portable = (computed(KernelBackend(device, choose), what, *arrays, window) for choose in choosers)
    expected = computed(get_backend("numpy"), what, *(a.astype(np.float32) for a in arrays), window)
    assert np.abs(expected).max() < 2048  # of float16
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(portable, ours)


@pytest.mark.parametrize(("dtype", "tile", "trans_a", "trans_b"), [
    ("float16", "128x64", False, False), ("float16", "256x64", True, False), ("float16", "256x128", False, True),
    ("float16", "128x128", True, True), ("float32", "128x64", False, True), ("float32", "256x128", False, True),
])  # fmt: skip
def test_matrices_of_whole_numbers_are_multiplied_exactly(dtype: str, tile: str, trans_a: bool, trans_b: bool) -> None:
    """Two tiles by two, 72 terms, a batch of which one factor is the same for all."""
    rows, columns = (int(length) + 8 for length in tile.split("x"))
    a = whole(1, *((72, rows) if trans_a else (rows, 72)), most=4).make(dtype)
    b = whole(2, *((columns, 72) if trans_b else (72, columns)), most=4, seed=1).make(dtype)
    backend = KernelBackend(EmulatorDevice(capability=H100, watch=False), of_tile(tile))
    with gpucnn.precision("tf32"):
        got = backend.matmul(a, b, trans_a, trans_b)
    np.testing.assert_array_equal(got, get_backend("numpy").matmul(a, b, trans_a, trans_b))


PIXELS = [whole(2, channels, 15, 11, most=2, seed=channels).make("float16") for channels in (24, 16)]
MATRICES = [whole(*shape, most=2, seed=shape[1]).make("float16") for shape in ((40, 328), (328, 72))]


@pytest.mark.parametrize("what", [
    lambda backend: backend.conv2d_backward_weight(*PIXELS, WINDOW, 1), lambda backend: backend.matmul(*MATRICES),
], ids=["conv2d", "matmul"])  # fmt: skip
def test_a_long_sum_is_made_of_parts(what: Any) -> None:
    """Of 330 pixels, or 328 terms: 256, and what is left, which is no multiple of a step."""
    used = []

    def chooser(problem: Problem) -> Variant:
        used.append(preferring("wgmma")(problem))
        return used[-1]

    got = what(KernelBackend(EmulatorDevice(capability=H100), chooser))
    assert [(variant.family, variant.parts) for variant in used] == [("wgmma", 2)]
    np.testing.assert_array_equal(got.astype(np.float32), what(get_backend("numpy")).astype(np.float32))


def test_the_portable_twin_is_no_further_away_than_both_bounds_allow(wgmma: KernelBackend) -> None:
    half = "bfloat16"
    exact = evaluate(WGMMA[1], dtype=half, precision="float64")
    bounds = in_half(exact, half, halves_on_tensor_cores(exact, halo=True))
    twin = KernelBackend(EmulatorDevice(capability=H100), preferring("mma"))
    ours, theirs = (evaluate(exact.case, backend, half).results for backend in (wgmma, twin))
    for a, b, bound in zip(ours, theirs, bounds, strict=True):
        assert_within(a.astype(float), b.astype(float), 2 * np.broadcast_to(bound, a.shape))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_nan_reaches_the_outputs_under_whose_filters_it_is_and_no_other(wgmma: KernelBackend, dtype: Any) -> None:
    x, w = np.ones((2, 16, 9, 5), dtype), np.ones((24, 16, 3, 3), dtype)
    x[1, 15, 8, 2] = np.nan
    with gpucnn.precision("tf32"):
        y = wgmma.conv2d_forward(x, w, None, Window((3, 3), padding=(1, 1, 1, 1)), 1)
    assert np.isnan(y[1, :, 7:, 1:4]).all()
    assert np.isnan(y).sum() == 24 * 2 * 3


SMALL, WINDOW = conv((1, 72, 7, 5), (40, 72, 3, 3), padding=1), Window((3, 3), padding=(1, 1, 1, 1))
X, W = SMALL.made_inputs("float16")
DY = normal(1, 40, 7, 5, seed=3).make("float16")


def test_any_order_of_the_threads_gives_equal_bits() -> None:
    found = []
    for order in (0, 1, 7, 8):
        backend = KernelBackend(EmulatorDevice(order=order, capability=H100), preferring("wgmma"))
        found.append([computed(backend, what, X, W, DY, WINDOW) for what in ("forward", "backward_weight")])
    for other in found[1:]:
        for ours, first in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(ours, first)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_graph_reads_its_input_where_the_map_says_in_every_launch(wgmma: KernelBackend, dtype: Any) -> None:
    device = wgmma.device
    x, w = wgmma.asarray(X.astype(dtype)), wgmma.asarray(W.astype(dtype))

    def step() -> Any:
        with gpucnn.precision("tf32"):
            twice = wgmma.conv2d_forward(x, w, None, WINDOW, 1, "relu")  # whose arrays come and go in the arena
            return wgmma.conv2d_backward_input(twice, w, WINDOW, 1, (7, 5))

    with device.measure() as arena:
        step()
    with device.capture(arena) as graph:
        result = step()
    for factor in (1, -2):
        x[...] = factor * X.astype(dtype)
        graph.launch()
        np.testing.assert_array_equal(np.array(result), np.array(step()))


# -- bugs that are planted in a copy of the kernels ------------------------------------------------------

Plant = Callable[[str, str, str], KernelBackend]


@pytest.fixture
def planted(plant: Any) -> Plant:
    return lambda *change: KernelBackend(plant(*change, H100), preferring("wgmma"))


NO_WAIT = "which nothing has written"
WAIT, RELEASE = "wgmma_wait<1>();", "if (step > 0 && lane == 0) mbarrier_arrive(tiles.empty[last]);"
STILL = "which the tensor cores may still read|while another copy is on its way there"


@pytest.mark.parametrize(("old", "new", "message"), [
    ("        mbarrier_wait(tiles.full[stage], round & 1);", "(void)round;", NO_WAIT),
    ("            mbarrier_wait(tiles.empty[stage], (round & 1) ^ 1);", "(void)round;", STILL),
    ("(round & 1) ^ 1", "round & 1", "never completes: 1 arrivals and 0 bytes are missing"),
    ("tiles.full[stage], round & 1", "tiles.full[stage], (round & 1) ^ 1", f"{NO_WAIT}|never completes"),
    (f"        {WAIT}  // the step before is done\n        {RELEASE}", f"        {RELEASE}\n        {WAIT}", STILL),
    ("        wgmma_commit();", "", STILL),
    (WAIT, "wgmma_wait<2>();", STILL),
    ("(tiles.empty[stage], MULTIPLYING_WARPS)", "(tiles.empty[stage], 1)", f"{STILL}|never completes"),
    ("(tiles.empty[stage], MULTIPLYING_WARPS)", "(tiles.empty[stage], 9)", "1 arrivals and 0 bytes are missing"),
    ("sizeof(tiles.b[0])));", "sizeof(tiles.b[0])) + 16);", "0 arrivals and 16 bytes are missing"),
    ("sizeof(tiles.b[0])));", "sizeof(tiles.b[0])) - 16);", "16 bytes more came than it expects"),
    ("(int)(sizeof(tiles.a[0]) + sizeof(tiles.b[0]))", "(int)sizeof(tiles.a[0])", f"{NO_WAIT}|more came"),
    ("        wgmma_fence(sums);", "", "without a wgmma.fence"),
    ("        mbarrier_fence();", "", "no fence has shown to the copy engine"),
    ("    __syncthreads();", "", "that nothing has initialised|a race with thread"),
    ("    SCALAR a[STAGES]", "    char odd[512]; SCALAR a[STAGES]", "no multiple of 1024|less shared memory"),
    ("step < steps; ++step) {\n        mbarrier", "step < steps - 1; ++step) {\n        mbarrier", "ends while a copy"),
    ("if (warp == MULTIPLYING_WARPS) {", "if (warp == 0) {", "never completes|no thread of a warpgroup"),
    ("warp / 4 * (TILE_M / 2)", "warp % 4 / 2 * (TILE_M / 2)", "other operands than the first of its warpgroup"),
])  # fmt: skip
def test_the_emulator_catches_a_broken_pipeline(old: str, new: str, message: str, planted: Plant) -> None:
    with pytest.raises(KernelError, match=message):
        planted("wgmma_tile.cuh", old, new).conv2d_forward(X, W, None, WINDOW, 1)


@pytest.mark.parametrize(("file", "old", "new", "message"), [
    ("wgmma.cuh", "by_128 = 1;", "by_128 = 2;", "not swizzled by 128 bytes"),
    ("wgmma.cuh", "#define NEXT_ALONG (32 >> 4)", "#define NEXT_ALONG (64 >> 4)", "begins within 1024 swizzled bytes"),
    ("conv2d_wgmma.cu", "{{c, v, h, first.high}, right", "{{c, v - 1, h, first.high}, right", "no pixel of the"),
    ("conv2d_wgmma.cu", "copy_box(to_b, w,", "copy_box(to_b + 64, w,", "no multiple of 1024"),
    ("conv2d_wgmma.cu", "[N, H, W, C], by [TILE_M, TILE_K]\n", "[N, H, W, C], by [TILE_N, TILE_K]\n",
     r"x must map \[1, 7, 5, 72\] by boxes of \[64, 64\], got \(1, 7, 5, 72\) by \(128, 64\)"),
])  # fmt: skip
def test_the_emulator_catches_a_broken_operand(file: str, old: str, new: str, message: str, planted: Plant) -> None:
    with pytest.raises(KernelError, match=message):
        planted(file, old, new).conv2d_forward(X, W, None, WINDOW, 1)


@pytest.mark.parametrize(("dtype", "what", "file", "old", "new"), [
    ("float16", "forward", "wgmma.cuh", "next_8 = 1024 >> 4", "next_8 = 512 >> 4"),
    ("float16", "forward", "wgmma.cuh", "#define NEXT_ALONG (32 >> 4)", "#define NEXT_ALONG (16 >> 4)"),
    ("float16", "forward", "wgmma_tile.cuh", "    wgmma_finish(sums);", "    wgmma_wait<1>();"),
    ("float16", "forward", "wgmma_tile.cuh", "lane / 4 + (lower ? 8 : 0)", "lane / 4 + (lower ? 0 : 8)"),
    ("float16", "backward_input", "wgmma.cuh", "(2048 >> 4)", "(1024 >> 4)"),
    ("float16", "backward_input", "wgmma.cuh", "leading >> 4", "leading >> 5"),
    ("float16", "backward_input", "conv2d_wgmma.cu", "(KERNEL_H - 1 - tap / KERNEL_W)", "(tap / KERNEL_W)"),
    ("float16", "backward_weight", "conv2d_wgmma.cu", "full, 0, place.m, term)", "full, 0, place.m, term + 1)"),
    ("float32", "forward", "wgmma_tile.cuh", "(32 / (int)sizeof(SCALAR))", "(64 / (int)sizeof(SCALAR))"),
    ("float32", "forward", "wgmma.cuh", "#define NEXT_ALONG (32 >> 4)", "#define NEXT_ALONG (16 >> 4)"),
    ("float32", "backward_input", "conv2d_wgmma.cu", "tap * C + place.n, k)", "tap * K + place.n, k)"),
    ("float32", "backward_input", "conv2d_wgmma.cu", "k = step % slices * TILE_K;", "k = step % slices * 64;"),
])  # fmt: skip
def test_a_wrong_place_is_a_wrong_number(dtype: str, what: str, file: str, old: str, new: str, planted: Plant) -> None:
    right = computed(get_backend("numpy"), what, *(a.astype(np.float32) for a in (X, W, DY)), WINDOW)
    with gpucnn.precision("tf32"):
        got = computed(planted(file, old, new), what, *(a.astype(dtype) for a in (X, W, DY)), WINDOW)
    difference = np.linalg.norm(got.astype(np.float32) - right)
    assert not difference < 0.1 * np.linalg.norm(right)  # NaN, too


@pytest.mark.parametrize("wrong", [
    lambda walk: walk._replace(lower=(walk.lower[0], walk.lower[1] - 1)),
    lambda walk: walk._replace(upper=(walk.upper[0], walk.upper[1] + 1)),
    lambda walk: walk._replace(stride=(2, 1)),
])  # fmt: skip
def test_a_wrong_walk_is_a_wrong_number(wrong: Any, wgmma: KernelBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    right, walk = wgmma.conv2d_forward(X, W, None, WINDOW, 1), variants.walk
    monkeypatch.setattr("gpucnn.backends.kernel_backend.walk", lambda problem: wrong(walk(problem)))
    got = wgmma.conv2d_forward(X, W, None, WINDOW, 1)
    assert np.linalg.norm(got.astype(float) - right) > 0.1 * np.linalg.norm(right.astype(float))


# -- tensor maps -----------------------------------------------------------------------------------------

DRIVER = """
#include <stdint.h>
#include <string.h>
extern "C" {
static int64_t seen[32];
static int note(void* map, int type, uint32_t rank, void* at, const uint64_t* sizes, const uint64_t* strides) {
    if ((uintptr_t)map % 64) return 700;
    int64_t head[] = {type, rank, (int64_t)at, 0, 0, 0, 0, 0, 0, 0};
    for (uint32_t i = 0; i < rank; ++i) head[3 + i] = sizes[i];
    for (uint32_t i = 0; i + 1 < rank; ++i) head[7 + i] = strides[i];
    memcpy(seen, head, sizeof head);
    memset(map, 7, 128);
    return rank == 2;
}
int cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* at, const uint64_t* sizes, const uint64_t* strides,
                           const uint32_t* box, const uint32_t* steps, int interleave, int swizzle, int l2, int fill) {
    int64_t rest[] = {box[0], box[1], box[2], steps[0], steps[1], steps[2], interleave, swizzle, l2, fill};
    memcpy(seen + 10, rest, sizeof rest);
    return note(map, type, rank, at, sizes, strides);
}
int cuTensorMapEncodeIm2col(void* map, int type, uint32_t rank, void* at, const uint64_t* sizes,
                            const uint64_t* strides, const int* lower, const int* upper, uint32_t channels,
                            uint32_t pixels, const uint32_t* steps, int interleave, int swizzle, int l2, int fill) {
    int64_t rest[] = {lower[0], lower[1], upper[0], upper[1], channels, pixels, steps[0], steps[1], steps[2], steps[3],
                      interleave, swizzle, l2, fill};
    memcpy(seen + 10, rest, sizeof rest);
    return note(map, type, rank, at, sizes, strides);
}
int64_t seen_at(int i) { return seen[i]; }
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The two functions of the CUDA driver, which note what they are given."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.cpp").write_text(DRIVER, "utf-8")
    command = [compiler(), "-shared", "-fPIC", str(folder / "driver.cpp"), "-o", str(folder / "driver.so")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "driver.so"))
    library.seen_at.restype = ctypes.c_int64
    return library


def test_the_driver_is_given_a_box_with_the_innermost_axis_first(driver: ctypes.CDLL) -> None:
    assert tensor_map.encoded(driver, "bfloat16", (3, 9, 72), 1 << 40, (5, 1, 64), None) == b"\7" * 128
    seen = [driver.seen_at(i) for i in range(20)]
    assert seen[:3] == [9, 3, 1 << 40]  # CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
    assert seen[3:6] == [72, 9, 3]
    assert seen[7:9] == [144, 1296]
    assert seen[10:] == [64, 1, 5, 1, 1, 1, 0, 3, 3, 0]


def test_the_driver_is_given_a_walk_with_columns_before_rows(driver: ctypes.CDLL) -> None:
    walk = Pixels((-1, -2), (-3, 4), (5, 6))
    assert tensor_map.encoded(driver, "float16", (3, 9, 7, 72), 1 << 40, (128, 64), walk) == b"\7" * 128
    seen = [driver.seen_at(i) for i in range(24)]
    assert seen[:7] == [6, 4, 1 << 40, 72, 7, 9, 3]
    assert seen[7:10] == [144, 1008, 9072]
    assert seen[10:] == [-2, -1, 4, -3, 64, 128, 1, 6, 5, 1, 0, 3, 3, 0]


def test_the_driver_is_told_to_round_floats_to_tf32(driver: ctypes.CDLL) -> None:
    tensor_map.encoded(driver, "float32", (3, 9, 36), 1 << 40, (5, 1, 32), None)
    seen = [driver.seen_at(i) for i in range(20)]
    assert seen[:3] == [11, 3, 1 << 40]  # CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
    assert seen[7:9] == [144, 1296]
    assert seen[10:13] == [32, 1, 5]


def test_what_the_driver_refuses_is_an_error_with_the_map(driver: ctypes.CDLL) -> None:
    with pytest.raises(RuntimeError, match=r"cuTensorMapEncodeTiled gives error 1 for float16 \(9, 64\) by \(8, 64\)"):
        tensor_map.encoded(driver, "float16", (9, 64), 0, (8, 64), None)
    with pytest.raises(ValueError, match="an array of float16, bfloat16 or float32 can be walked, got float64"):
        tensor_map.encoded(driver, "float64", (9, 16), 0, (8, 16), None)


@pytest.mark.parametrize(("shape", "box", "pixels", "message"), [
    ((4, 64), (4, 1, 64), None, r"two to four axes of their array, got \(4, 1, 64\) of \(4, 64\)"),
    ((4, 72), (4, 72), None, r"up to 256 rows of 128 bytes, got \(4, 72\)"),
    ((4, 64), (512, 64), None, "up to 256 rows"),
    ((4, 60), (4, 64), None, r"rows begin at multiples of 16 bytes; got float16 \(4, 60\)"),
    ((4, 5, 64), (4, 64), Pixels((0, 0), (0, 0), (1, 1)), r"a walk is over \[N, H, W, C\]"),
    ((1, 4, 5, 64), (4, 64), Pixels((-129, 0), (0, 0), (1, 1)), "corners of -128 to 127 and steps up to 8"),
    ((1, 4, 5, 64), (4, 64), Pixels((0, 0), (0, 0), (1, 9)), "corners of -128 to 127 and steps up to 8"),
])  # fmt: skip
def test_what_the_copy_engine_can_not_walk_is_refused(shape: Any, box: Any, pixels: Any, message: str) -> None:
    device = RecorderDevice(H100)
    with pytest.raises(ValueError, match=message):
        device.tensor_map(device.xp.empty(shape, np.float16), box, pixels)


def test_an_array_that_is_no_map_is_refused_with_the_signature(wgmma: KernelBackend) -> None:
    signature = Signature.of(kernel_folder() / "conv2d_wgmma.cu", "conv2d_wgmma_forward")
    shown = (
        r"x must be a TensorMap, got ndarray; the kernel is .*"
        r"\(TensorMap<SCALAR> x\[N, H, W, C\] by \[TILE_M, TILE_K\], "
    )
    constants = {"SCALAR": "float16", "TILE_M": 128, "TILE_N": 64, "TILE_K": 64, "KERNEL_H": 1, "KERNEL_W": 1}
    x, y = np.empty((1, 1, 1, 64), np.float16), np.empty((1, 1, 1, 8), np.float16)
    with pytest.raises(KernelError, match=shown):
        signature.bound(constants).check([x, x, None, None, None, y, None, None, 1, 1, 1, 64, 8, 1, 1, 1], np)


def test_a_map_without_its_boxes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "copy.cu"
    file.write_text('extern "C" __global__ void copy(const __grid_constant__ TensorMap<SCALAR> x) {}', "utf-8")
    with pytest.raises(KernelError, match="the map x needs its array and its boxes in a comment"):
        Signature.of(file, "copy")


def test_only_the_files_for_hopper_need_its_own_architecture() -> None:
    needs = {path.name: needed_architecture(path.read_text("utf-8")) for path in kernel_folder().glob("*.cu")}
    assert {name for name, only in needs.items() if only == "sm_90a"} == {"conv2d_wgmma.cu", "matmul_wgmma.cu"}
    assert set(needs.values()) == {None, "sm_90a"}


def test_cuda_gets_maps_by_value_shared_memory_and_the_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fake_cupy import FakeCupy

    from gpucnn.devices import cuda

    cupy, functions = FakeCupy(), []

    def module(code: str = "", options: tuple[str, ...] = (), backend: str = "", path: str = "") -> Any:
        def get_function(name: str) -> Any:
            of_path = Path(path).read_text("utf-8").split("\0")[1:] if path else []
            functions.append(Function(name, (*options, *of_path)))
            return functions[-1]

        return SimpleNamespace(get_function=get_function)

    class Function:
        def __init__(self, name: str, options: tuple[str, ...]) -> None:
            self.name, self.options, self.max_dynamic_shared_size_bytes = name, options, 0

        def __call__(self, grid: Any, block: Any, values: Any, shared_mem: int) -> None:
            self.values, self.shared = values, shared_mem

    monkeypatch.setenv("GPUCNN_CACHE", str(tmp_path))
    monkeypatch.setattr(cupy, "compute_capability", "90")
    monkeypatch.setattr(cupy, "RawModule", module)
    monkeypatch.setattr(cuda, "usable_cupy", lambda: cupy)
    monkeypatch.setattr(cuda, "encoded", lambda driver, dtype, shape, address, box, pixels: bytes(range(128)))
    monkeypatch.setattr(cuda, "_driver", lambda: None)
    monkeypatch.setattr(cuda.CudaDevice, "address", lambda device, array: array.ctypes.data)
    backend = KernelBackend(cuda.CudaDevice(), preferring("wgmma"))
    backend.conv2d_forward(backend.asarray(X), backend.asarray(W), None, WINDOW, 1)
    function = next(f for f in functions if f.name == "conv2d_wgmma_forward")
    assert [option for option in function.options if option.startswith("-arch")] == ["-arch=sm_90a"]
    assert function.shared == function.max_dynamic_shared_size_bytes == 99328
    assert [v.tobytes() for v in function.values[:2]] == [bytes(range(128))] * 2
    assert all(v.size == 1 and v.itemsize == 128 for v in function.values[:2])
    assert not any("-arch" in option for f in functions if "wgmma" not in f.name for option in f.options)

    device, array = backend.device, backend.xp.empty((4, 64), np.float16)
    device.capturing = graph = SimpleNamespace(memory=backend.xp.empty(64, np.uint8), keeps=[])
    device.keep([device.tensor_map(array, (4, 64)), 3])
    device.capturing = None
    assert [kept is array for kept in graph.keeps] == [True]


# -- when they may be chosen -----------------------------------------------------------------------------


def problem(window: Window, c: int = 64, k: int = 64, groups: int = 1, *how: Any) -> Problem:
    p, q = window.output_size((300, 30))
    shape = Convolution(8, 300, 30, c, k, p, q, groups, window)
    return Problem("conv2d_forward", shape, *(how or ("bfloat16", "fp32", H100)))


def offered(asked: Problem) -> bool:
    return any(variant.family == "wgmma" for variant in candidates(asked))


def test_they_are_offered_on_sm_90_where_a_map_can_walk_by_chunks() -> None:
    plain = Window((3, 3), padding=(1, 1, 1, 1))
    assert offered(problem(plain))
    assert offered(problem(plain, 8, 8, 1, "float", "fp16", H100))
    assert offered(problem(Window((2, 5), stride=(8, 7), dilation=(3, 2), padding=(4, 0, 2, 9))))
    assert offered(problem(plain, 4, 12, 1, "float", "tf32", H100))
    assert not offered(problem(plain, 6, 8, 1, "float", "tf32", H100))
    assert not offered(problem(plain, 8, 8, 1, "float", "fp32", H100))
    assert not offered(problem(plain, 8, 8, 1, "double", "tf32", H100))
    for capability in (None, (8, 0), (8, 9), (10, 0), (12, 0)):
        assert not offered(problem(plain, 64, 64, 1, "float16", "fp32", capability))
    assert not offered(problem(plain, 60))
    assert not offered(problem(plain, 64, 60))
    assert not offered(problem(plain, 64, 64, 2))
    assert not offered(problem(Window((3, 3), stride=(9, 1))))
    assert not offered(problem(Window((3, 3), padding=(129, 0, 0, 0))))
    assert not offered(problem(Window((3, 3), dilation=(65, 1))))
    for operation in ("conv2d_backward_input", "conv2d_backward_weight"):
        strided = problem(Window((3, 3), stride=(1, 2)))._replace(operation=operation)
        assert offered(strided) == (operation == "conv2d_backward_weight")
        assert offered(problem(plain)._replace(operation=operation))
        of_floats = problem(plain, 64, 64, 1, "float", "tf32", H100)._replace(operation=operation)
        assert offered(of_floats) == (operation == "conv2d_backward_input")  # across there is no TF32
    for shape, is_offered in ((Product(2, 3, 8, 8, False, True), True), (Product(1, 3, 8, 0, False, False), False)):
        assert offered(Problem("matmul", shape, "float16", "fp32", H100)) == is_offered
    for trans_a, trans_b in ((False, False), (False, True), (True, False), (True, True)):
        product = Problem("matmul", Product(1, 8, 8, 8, trans_a, trans_b), "float", "tf32", H100)
        assert offered(product) == (not trans_a and trans_b)


def test_no_kernel_that_no_gpu_has_shown_to_be_faster_is_the_usual_one() -> None:
    for operation in ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight"):
        for how in (("bfloat16", "fp32", H100), ("float", "tf32", H100)):
            asked = problem(Window((3, 3)), 256, 256, 1, *how)._replace(operation=operation)
            assert usual(asked).family == "mma"
    assert usual(Problem("matmul", Product(1, 512, 512, 512, False, False), "float16", "fp32", H100)).family == "mma"


@pytest.mark.parametrize("case", WGMMA_FILLED, ids=str)
def test_where_tiles_are_filled_all_but_the_smallest_come_first(case: Case) -> None:
    tiles = [
        dict(one.constants)["TILE_M"] * dict(one.constants)["TILE_N"]
        for one in launches(case, "float16", H100, preferring("wgmma"))
        if one.name in ("matmul_wgmma", "conv2d_wgmma_forward", "conv2d_wgmma_backward_input")
    ]
    assert tiles
    assert min(tiles) >= 128 * 128


@pytest.mark.parametrize(("columns", "of_many", "of_few"), [
    (8, "256x64", "128x64"), (64, "256x64", "128x64"), (72, "256x128", "128x128"), (136, "128x256", "128x256"),
    (512, "128x256", "128x256"),
])  # fmt: skip
def test_the_first_tile_is_the_one_that_loads_least(columns: int, of_many: str, of_few: str) -> None:
    many = problem(Window((3, 3)), 64, columns)
    few = many._replace(shape=many.shape._replace(n=1, h=5, w=6, p=3, q=4))
    assert str(preferring("wgmma")(many)) == f"wgmma {of_many}"
    assert str(preferring("wgmma")(few)) == f"wgmma {of_few}"
