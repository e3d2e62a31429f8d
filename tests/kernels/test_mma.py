"""The kernels for tensor cores, on the emulator as if it were a GPU that has some; and which precision chooses them."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numerics import assert_within, off_boundary, unit_roundoff

import gpucnn
from gpucnn.backends import get_backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.precision import get_precision
from gpucnn.backends.variants import Problem, Product, Variant, preferring, usual
from gpucnn.devices import KernelError
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.geometry import Window
from gpucnn.testing import (
    TENSOR_CORES,
    TENSOR_CORES_FILLED,
    TENSOR_CORES_NARROW,
    Case,
    conv,
    dense,
    evaluate,
    launches,
    normal,
    on_tensor_cores,
    products,
)
from gpucnn.verify import verify

Array = np.ndarray[Any, np.dtype[Any]]
H100 = (9, 0)
PRODUCTS = {"fp32": 3, "tf32": 1}
FLOAT = unit_roundoff("float32")

every_case = pytest.mark.parametrize("case", TENSOR_CORES, ids=str)
both = pytest.mark.parametrize("precision", ["fp32", "tf32"])


@pytest.fixture(scope="module")
def tensor_cores() -> KernelBackend:
    return KernelBackend(EmulatorDevice(capability=H100))


def names(case: Case, capability: tuple[int, int] | None = H100, dtype: str = "float32") -> set[str]:
    """The kernels that a case launches on such a device."""
    return {launch.name for launch in launches(case, dtype, capability)}


def assert_right(case: Case, backend: KernelBackend, precision: str) -> None:
    exact = evaluate(case, precision="float64")
    with gpucnn.precision(precision):
        ours = evaluate(case, backend)
    bounds = on_tensor_cores(exact, PRODUCTS[precision])
    for result, expected, bound in zip(ours.results, exact.results, bounds, strict=True):
        assert_within(result, expected, FLOAT * bound)


# -- what they compute ---------------------------------------------------------------------------------


@every_case
@both
def test_tensor_cores_are_within_the_bound_of_their_precision(
    case: Case, precision: str, tensor_cores: KernelBackend
) -> None:
    assert_right(case, tensor_cores, precision)


@every_case
def test_a_case_for_tensor_cores_runs_on_them_forward_and_backward(case: Case) -> None:
    launched = names(case)
    if case.op == "conv2d":
        assert {f"conv2d_mma_{name}" for name in ("forward", "backward_input", "backward_weight")} <= launched
    else:
        assert "matmul_mma" in launched
        assert "matmul" not in launched


@pytest.mark.parametrize(("case", "precision"), [
    (TENSOR_CORES[0], "tf32"), (dense("matmul", (12, 132), (132, 136)), "fp32"),
], ids=str)  # fmt: skip
def test_the_large_tile_is_right_where_it_is_not_filled(
    case: Case, precision: str, tensor_cores: KernelBackend, force: Any
) -> None:
    force(lambda variant: str(variant).startswith("mma 128x128"))
    assert_right(case, tensor_cores, precision)


@pytest.mark.parametrize("case", TENSOR_CORES_FILLED, ids=str)
@both
def test_the_large_tile_is_taken_where_it_is_filled(case: Case, precision: str) -> None:
    with gpucnn.precision(precision):
        tiles = {dict(one.constants)["TILE_M"] for one in launches(case, capability=H100) if "_mma" in one.name}
    assert tiles == {128}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_narrow_tiles_are_taken_where_columns_or_rows_are_few_and_blocks_many(dtype: str) -> None:
    def tiles(case: Case) -> dict[str, tuple[Any, Any]]:
        found = ((one.name, dict(one.constants)) for one in launches(case, dtype, H100) if "_mma" in one.name)
        return {name: (of["TILE_M"], of["TILE_N"]) for name, of in found}

    names = [f"conv2d_mma_{way}" for way in ("forward", "backward_input", "backward_weight")]
    assert [tiles(TENSOR_CORES_NARROW[0])[name] for name in names] == [(128, 32), (128, 16), (32, 128)]
    few = tiles(conv((2, 16, 32, 33), (24, 16, 3, 3), padding=1))
    assert [few[name] for name in names] == [(64, 64)] * 3
    wider = tiles(conv((12, 40, 32, 33), (40, 40, 3, 3), padding=1))
    assert [wider[name] for name in names] == [(64, 64)] * 3
    scalar = {"float32": "float", "float16": "float16"}[dtype]
    sizes = (12288, 24, 40), (12160, 24, 40), (24, 12288, 40), (12288, 16, 40), (16, 12288, 40)
    matmul = [usual(Problem("matmul", Product(1, *size, False, False), scalar, capability=H100)) for size in sizes]
    narrow = ("128x32", "64x64", "32x128", "128x16", "16x128")
    assert [str(variant) for variant in matmul] == [f"mma {tile}" for tile in narrow]


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "fp32"), ("float32", "tf32"), ("bfloat16", "fp32")])
@pytest.mark.parametrize("tile", ["mma 128x32", "mma 32x128", "mma 128x16", "mma 16x128"])
def test_narrow_tiles_give_the_bits_of_small_ones(tile: str, dtype: str, precision: str) -> None:
    taken = []

    def narrow(problem: Problem) -> Variant:
        variant = preferring(tile)(problem)
        taken.extend([variant] if str(variant).startswith(tile) else [])
        return variant

    for case in (
        conv((2, 24, 9, 7), (24, 24, 3, 3), bias=True, padding=1),
        conv((2, 8, 9, 7), (16, 8, 3, 3), bias=True, padding=1),
        conv((1, 136, 5, 6), (24, 136, 3, 2)),
        conv((1, 136, 5, 6), (16, 136, 3, 2)),
        dense("linear", (136, 40), (24, 40), (24,)),
        dense("matmul", (24, 40), (40, 136)),
        dense("matmul", (16, 40), (40, 136)),
        dense("matmul", (136, 40), (40, 8)),
    ):
        with gpucnn.precision(precision):
            results = [
                evaluate(case, KernelBackend(EmulatorDevice(capability=H100), chooser), dtype).results
                for chooser in (narrow, preferring("mma"))
            ]
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_array_equal(ours, theirs, strict=True)
    assert len(taken) >= 4


def error(case: Case, backend: KernelBackend) -> float:
    """Of the output, relative: both as vectors."""
    exact, ours = evaluate(case, precision="float64").results[0], evaluate(case, backend).results[0]
    return float(np.linalg.norm(ours - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("depth", [28, 572])
def test_fp32_is_as_exact_as_float32_and_tf32_loses_what_it_says(depth: int, tensor_cores: KernelBackend) -> None:
    case = dense("matmul", (24, depth), (depth, 36))
    assert error(case, tensor_cores) < 1e-6
    with gpucnn.precision("tf32"):
        assert 1e-4 < error(case, tensor_cores) < 1.25 * 2.0**-11


@both
def test_numbers_of_tf32_are_multiplied_exactly(precision: str, tensor_cores: KernelBackend) -> None:
    a, b = (np.round(normal(12, 20, seed=seed).make("float32") * 32) / 32 for seed in (0, 1))
    with gpucnn.precision(precision):
        y = tensor_cores.matmul(a, b, trans_b=True)
    np.testing.assert_array_equal(y, a.astype(np.float64) @ b.T.astype(np.float64))


@both
@pytest.mark.parametrize("nan", [0x7FC00000, 0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF])
def test_a_nan_stays_one_and_reaches_its_own_outputs_alone(
    precision: str, nan: int, tensor_cores: KernelBackend
) -> None:
    for operand in (0, 1):
        arrays = [np.ones((8, 12), np.float32), np.ones((20, 12), np.float32)]
        arrays[operand].view(np.uint32)[3, 5] = nan
        with gpucnn.precision(precision):
            y = tensor_cores.matmul(*arrays, trans_b=True)
        assert np.isnan(np.moveaxis(y, operand, 0)[3]).all()
        assert np.isnan(y).sum() == y.shape[1 - operand]


def test_scale_bias_residual_and_activation_are_applied_to_the_sums(tensor_cores: KernelBackend) -> None:
    x, w, b, scale = (normal(*shape).make("float32") for shape in ((1, 12, 7, 5), (20, 12, 3, 2), (20,), (20,)))
    window = Window((3, 2), padding=(1, 1, 1, 1))
    plain = tensor_cores.conv2d_forward(x, w, None, window, 1)
    residual = normal(*plain.shape, seed=3).make("float32")
    fused = tensor_cores.conv2d_forward(x, w, b, window, 1, "relu", scale, residual)
    expected = np.maximum(plain * scale.reshape(-1, 1, 1) + b.reshape(-1, 1, 1) + residual, 0)
    np.testing.assert_allclose(fused, expected, rtol=1e-5, atol=1e-6)


def test_operands_off_a_boundary_of_16_bytes_give_the_same_bits(tensor_cores: KernelBackend) -> None:
    a, b = normal(12, 20).make("float32"), normal(20, 8, seed=1).make("float32")
    moved = off_boundary(a), off_boundary(b)
    np.testing.assert_array_equal(tensor_cores.matmul(*moved), tensor_cores.matmul(a, b))


@both
@pytest.mark.parametrize("case", [TENSOR_CORES[2], TENSOR_CORES[6]], ids=str)
def test_any_order_of_the_threads_gives_equal_bits(case: Case, precision: str) -> None:
    with gpucnn.precision(precision):
        first, *others = (
            evaluate(case, KernelBackend(EmulatorDevice(order=order, capability=H100))).results for order in (0, 1, 7)
        )
    for results in others:
        for ours, theirs in zip(results, first, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_weights_gradient_in_parts_is_right(tensor_cores: KernelBackend) -> None:
    case = conv((5, 8, 19, 17), (4, 8, 1, 1))
    assert "sum_parts" in names(case)
    assert_right(case, tensor_cores, "fp32")


# -- bugs that are planted in a copy of the kernels ------------------------------------------------------


@pytest.fixture
def planted(plant: Any) -> Callable[[str, str, str], KernelBackend]:
    return lambda *change: KernelBackend(plant(*change, H100))


A, B = normal(12, 68).make("float32"), normal(20, 68, seed=1).make("float32")
UNWRITTEN, RACE = "which nothing has written", "a race with thread"
PLACE = "kept(A::place(A::row(0), A::k()))"


@pytest.mark.parametrize(("old", "new", "message"), [
    ("async_wait<STAGES - 2>();", "", UNWRITTEN),
    ("async_wait<STAGES - 2>();", "async_wait<STAGES - 1>();", UNWRITTEN),
    ("        __syncthreads();  // the stage", "        // the stage", f"{UNWRITTEN}|{RACE}"),
    (PLACE, PLACE.replace("A::k()", "0"), RACE),
    ("(row * 4 + k / 4) ^ (row / TURNS & 7)", "(row * 4 + k / 4) ^ ((row / TURNS + k / 8) & 7)", RACE),
    ("to + i * FURTHER, chunk", "to + i * FURTHER / 2, chunk", RACE),
    ("load_matrices(to[i], from", "if (threadIdx.x % 32) load_matrices(to[i], from", "never reaches"),
    ("load_matrices(to[i], from + i * 2 * STEP);", "load_matrices(to[i], from + i * 2);", "no multiple of 16"),
])  # fmt: skip
def test_the_emulator_catches_a_broken_pipeline_of_copies(old: str, new: str, message: str, planted: Any) -> None:
    with pytest.raises(KernelError, match=message):
        planted("mma_tile.cuh", old, new).matmul(A, B, trans_b=True)


@pytest.mark.parametrize(("old", "new"), [
    ("place(first + lane % 8 * TURNS + lane / 8 % 2,", "place(first + (lane % 8 ^ 1) * TURNS + lane / 8 % 2,"),
    ("small[i / 4][i % 4] = all - x;", "small[i / 4][i % 4] = 0;"),
    ("g * TURNS_M + tile % TURNS_M, place.n", "g * TURNS_M + (tile % TURNS_M ^ 1), place.n"),
])  # fmt: skip
def test_a_wrong_swizzle_place_or_split_is_beyond_the_bound(old: str, new: str, planted: Any) -> None:
    exact = A.astype(np.float64) @ B.T.astype(np.float64)
    bound = 300 * FLOAT * (np.abs(A) @ np.abs(B).T)
    assert_within(KernelBackend(EmulatorDevice(capability=H100)).matmul(A, B, trans_b=True), exact, bound)
    with pytest.raises(AssertionError, match="values are off"):
        assert_within(planted("mma_tile.cuh", old, new).matmul(A, B, trans_b=True), exact, bound)


def product_of_16(tile: str, along: bool, device: Any, dtype: str = "float32") -> float:
    """The largest error of a product of 16 columns, or 16 rows, whose terms lie along both matrices or across both."""
    short, long = normal(16, 72).make(dtype), normal(136, 72, seed=1).make(dtype)
    a, b = (long, short) if tile == "128x16" else (short, long)
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    a, b = (a, b) if along else (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T))
    y = KernelBackend(device, preferring(f"mma {tile}")).matmul(a, b, not along, along)
    return float(np.abs(y - exact).max())


LESS = "if (!ALL && row(i) >= LENGTH) break;"
ACROSS = "place(across, half * 8 + lane % 4) + across % 4"
NEIGHBOURS = "{{of[0][c], of[1][c], of[0][c + 1], of[1][c + 1]}}"


@pytest.mark.parametrize("file", ["mma_tile.cuh", "half_tile.cuh"])
@pytest.mark.parametrize("along", [True, False])
@pytest.mark.parametrize("tile", ["128x16", "16x128"])
def test_a_thread_beyond_a_tile_of_16_that_copies_is_noticed(tile: str, along: bool, file: str, plant: Any) -> None:
    with pytest.raises(KernelError, match=f"{RACE}|outside"):
        product_of_16(tile, along, plant(file, LESS, "", H100), "float16" if "half" in file else "float32")


@pytest.mark.parametrize(("tile", "old", "new", "message"), [
    ("128x16", "lane % 4 * (TURNS_N / 2) + e", "lane % 4 * TURNS_N / 4 + e", RACE),
    ("16x128", "g * TURNS_M + tile % TURNS_M, place.n", "g * 4 + tile % TURNS_M, place.n", "unwritten"),
])  # fmt: skip
def test_a_wrong_place_of_the_results_of_a_tile_of_16_is_noticed(
    tile: str, old: str, new: str, message: str, plant: Any
) -> None:
    with pytest.raises(KernelError, match=message):
        product_of_16(tile, True, plant("mma_tile.cuh", old, new, H100))


@pytest.mark.parametrize(("tile", "along", "old", "new"), [
    ("128x16", False, ACROSS, ACROSS[:-13]), ("16x128", False, ACROSS, ACROSS[:-13]),
    ("128x16", True, NEIGHBOURS, "{{of[0][c], of[0][c + 1], of[1][c], of[1][c + 1]}}"),
    ("128x16", True, "{b[j / 2][j % 2], b[j / 2][j % 2 + 2]}", "{b[j / 2][0], b[j / 2][2]}"),
    ("16x128", True, "i < TURNS_M / 2 * TURNS_N", "i < TURNS_N / 2"),
])  # fmt: skip
def test_a_planted_bug_of_the_tiles_of_16_is_beyond_the_bound(
    tile: str, along: bool, old: str, new: str, plant: Any
) -> None:
    assert product_of_16(tile, along, EmulatorDevice(capability=H100)) < 1e-4
    assert product_of_16(tile, along, plant("mma_tile.cuh", old, new, H100)) > 1e-2


X, W, DY = (normal(*shape).make("float32") for shape in ((3, 12, 9, 7), (20, 12, 3, 2), (3, 20, 7, 8)))
TAP = "(unsigned int)(v[i] + right) < (unsigned int)W"
WINDOW = Window((3, 2), padding=(1, 1, 1, 1), dilation=(2, 1))
CONVOLUTIONS: dict[str, Callable[..., Any]] = {
    "forward": lambda backend, x, w, dy: backend.conv2d_forward(x, w, None, WINDOW, 1),
    "backward_input": lambda backend, x, w, dy: backend.conv2d_backward_input(dy, w, WINDOW, 1, (9, 7)),
    "backward_weight": lambda backend, x, w, dy: backend.conv2d_backward_weight(dy, x, WINDOW, 1),
}


@pytest.mark.parametrize(("name", "old", "new"), [
    ("forward", "further = (down * W + right) * C + tap.low;", "further = (tap.high * W + right) * C + tap.low;"),
    ("forward", TAP, f"{TAP} && (tap.high || tap.middle)"),
    ("backward_input", "(unsigned int)q < (unsigned int)Q", "(unsigned int)(q - 1) < (unsigned int)(Q - 1)"),
    ("backward_input", "{w + (offset[i] + further), true}", "{w + (offset[i] + further), tap.middle > 0}"),
    ("backward_weight", "add(pixel, step, P, Q);", "add(pixel, step, Q, P);"),
])  # fmt: skip
def test_a_wrong_tap_of_a_convolution_is_beyond_the_bound(name: str, old: str, new: str, planted: Any) -> None:
    compute, arrays = CONVOLUTIONS[name], (X, W, DY)
    exact = compute(get_backend("numpy"), *(array.astype(np.float64) for array in arrays))
    bound = 300 * FLOAT * compute(get_backend("numpy"), *(np.abs(array.astype(np.float64)) for array in arrays))
    with pytest.raises(AssertionError, match="values are off"):
        assert_within(compute(planted("conv2d_sources.cuh", old, new), *arrays), exact, bound)


def test_under_tf32_a_dropped_tap_is_beyond_the_bound(planted: Any) -> None:
    case = TENSOR_CORES[1]
    backend = planted("conv2d_sources.cuh", TAP, f"{TAP} && (tap.high || tap.middle)")
    exact = evaluate(case, precision="float64")
    with gpucnn.precision("tf32"), gpucnn.no_grad():
        y = case.apply(backend, case.made_inputs("float32"), case.arguments).numpy()
    with pytest.raises(AssertionError, match="values are off"):
        assert_within(y, exact.results[0], FLOAT * on_tensor_cores(exact, 1)[0])


def test_the_bound_of_fp32_is_missed_by_tf32() -> None:
    """So that a kernel that forgets the small halves is noticed."""
    backend = KernelBackend(EmulatorDevice(capability=H100))
    case = dense("matmul", (24, 28), (28, 36))
    exact = evaluate(case, precision="float64")
    with gpucnn.precision("tf32"):
        result = evaluate(case, backend).results[0]
    with pytest.raises(AssertionError, match="values are off"):
        assert_within(result, exact.results[0], FLOAT * on_tensor_cores(exact, 3)[0])


# -- which kernel is chosen ------------------------------------------------------------------------------


@pytest.mark.parametrize(("capability", "dtype"), [(None, "float32"), ((7, 5), "float32"), (H100, "float64")])
def test_without_tensor_cores_and_in_float64_the_kernels_are_todays(capability: Any, dtype: str) -> None:
    with gpucnn.precision("tf32"):
        for case in TENSOR_CORES:
            assert not [name for name in names(case, capability, dtype) if "mma" in name]


def test_a_graphics_card_multiplies_float32_by_multiply_adds() -> None:
    assert not [name for name in names(TENSOR_CORES[0], (8, 9)) if "mma" in name]
    with gpucnn.precision("tf32"):
        assert [name for name in names(TENSOR_CORES[0], (8, 9)) if "mma" in name]


def test_verify_takes_the_bound_of_what_a_case_runs_on(
    tensor_cores: KernelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide, narrow = dense("matmul", (12, 20), (20, 8)), dense("matmul", (3, 5), (5, 2))
    monkeypatch.setattr("gpucnn.verify.CASES", [wide, narrow])
    exact = evaluate(wide, precision="float64")
    with gpucnn.precision("tf32"):
        report = verify(tensor_cores)
    assert report.passed
    np.testing.assert_array_equal(report.results[0].bound, FLOAT * on_tensor_cores(exact, 1)[0])
    assert (report.results[0].error > FLOAT * products(exact)[0]).any()
    narrow_exact = evaluate(narrow, precision="float64")
    np.testing.assert_array_equal(report.results[3].bound, FLOAT * products(narrow_exact)[0])


# -- the choice of precision -----------------------------------------------------------------------------


def test_the_default_is_fp32_and_the_innermost_scope_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUCNN_PRECISION", raising=False)
    assert get_precision() == "fp32"
    monkeypatch.setenv("GPUCNN_PRECISION", "tf32")
    assert get_precision() == "tf32"
    with gpucnn.precision("fp32"):
        assert get_precision() == "fp32"
        with gpucnn.precision("tf32"):
            assert get_precision() == "tf32"
        assert get_precision() == "fp32"
    assert get_precision() == "tf32"


def test_a_scope_is_its_threads_own() -> None:
    seen = []
    with gpucnn.precision("tf32"):
        thread = threading.Thread(target=lambda: seen.append(get_precision()))
        thread.start()
        thread.join()
    assert seen == ["fp32"]


def test_an_unknown_precision_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="precision is 'half', but the precisions are fp32, tf32, fp16, bf16"), \
            gpucnn.precision("half"):  # fmt: skip
        pass
    monkeypatch.setenv("GPUCNN_PRECISION", "TF32")
    with pytest.raises(ValueError, match="GPUCNN_PRECISION is 'TF32', but the precisions are fp32, tf32"):
        names(TENSOR_CORES[0])


def test_numpy_computes_as_ever_under_tf32() -> None:
    case = TENSOR_CORES[5]
    plain = evaluate(case, "numpy").results
    with gpucnn.precision("tf32"):
        for ours, theirs in zip(evaluate(case, "numpy").results, plain, strict=True):
            np.testing.assert_array_equal(ours, theirs)
