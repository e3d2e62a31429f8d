"""float16 and bfloat16 in the kernels: conversions held to NumPy and ml_dtypes, and the ops of the case table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim
from gpucnn.backends import get_backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices import Device, KernelError
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.dtypes import named, unit_roundoff
from gpucnn.geometry import Window
from gpucnn.testing import CASES, TENSOR_CORES_HALF, Case, conv, dense, evaluate, launches, normal
from gpucnn.verify import verify

HALVES = ["float16", "bfloat16"]
both = pytest.mark.parametrize("half", HALVES)
Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def fast() -> Device:
    return EmulatorDevice(watch=False)


def converted(device: Device, x: Array, source: str, target: str) -> Array:
    y = np.empty(x.size, named(target))
    names = {"float32": "float", "float64": "double"}
    constants = {"SCALAR": names.get(target, target), "SOURCE": names.get(source, source)}
    device.launch("convert.cu", "convert", constants, (-(-x.size // 256), 1, 1), (256, 1, 1), x, y, x.size)
    return y


def every(half: str) -> Array:
    return np.arange(2**16, dtype=np.uint16).view(named(half))


def assert_same(ours: Array, theirs: Array) -> None:
    """Bit by bit, but a NaN is a NaN."""
    bits = np.dtype(f"u{ours.itemsize}")
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaN
        nan = np.isnan(theirs)
        np.testing.assert_array_equal(np.isnan(ours), nan)
    np.testing.assert_array_equal(ours.view(bits)[~nan], theirs.view(bits)[~nan])


@both
def test_every_half_number_becomes_the_same_float_as_in_numpy(half: str, fast: Device) -> None:
    assert_same(converted(fast, every(half), half, "float32"), every(half).astype(np.float32))


@both
def test_every_half_number_comes_back_from_float(half: str, fast: Device) -> None:
    floats = every(half).astype(np.float32)
    assert_same(converted(fast, floats, "float32", half), every(half))


@both
def test_floats_between_half_numbers_round_to_the_nearest_even(half: str, fast: Device) -> None:
    """Of all neighbours the middle, and what is just below and above it."""
    with np.errstate(all="ignore"):
        numbers = np.unique(every(half).astype(np.float32)[~np.isnan(every(half))])
        middle = ((numbers[:-1].astype(np.float64) + numbers[1:]) / 2).astype(np.float32)
    beyond = np.array([65504, 65519.996, 65520, 65536, 1e38, 3.3895e38, 3.39617e38, 3.4e38, np.inf, np.nan], np.float32)
    least_nan = np.array([0x7F800001], np.uint32).view(np.float32)
    x = np.concatenate([middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf)),
                        beyond, -beyond, least_nan, -least_nan])  # fmt: skip
    with np.errstate(all="ignore"):
        assert_same(converted(fast, x, "float32", half), x.astype(named(half)))


@both
def test_random_bits_of_float_round_as_in_numpy(half: str, fast: Device) -> None:
    bits = np.random.default_rng(5).integers(0, 2**32, 300_000, dtype=np.uint32)
    with np.errstate(all="ignore"):
        assert_same(converted(fast, bits.view(np.float32), "float32", half), bits.view(np.float32).astype(named(half)))


@both
def test_conversions_by_the_watched_emulator_and_of_other_types(half: str, kernels: KernelBackend) -> None:
    x = 1000 * np.random.default_rng(3).standard_normal((2, 3, 5, 7))
    for source in ("float64", "int64", "int32", "uint8"):
        values = np.abs(x).astype(source)
        y = kernels.astype(values, named(half))
        assert y.dtype == named(half)
        assert y.transpose(0, 2, 3, 1).flags.c_contiguous
        np.testing.assert_array_equal(y, values.astype(np.float32).astype(named(half)))
    for other in ("float16", "bfloat16", "float64"):
        y = kernels.astype(x.astype(named(half)), named(other))
        np.testing.assert_array_equal(y, x.astype(named(half)).astype(np.float32).astype(named(other)))


def first_of_each_op() -> list[Case]:
    """Two cases of each op, of convolution more."""
    found: list[Case] = []
    for case in CASES:
        most = 8 if case.op == "conv2d" else 2
        if sum(other.op == case.op for other in found) < most and case.output_shape and 0 not in case.output_shape:
            found.append(case)
    return found


@both
def test_the_kernels_are_as_exact_as_the_half_type_allows(
    half: str, kernels: KernelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpucnn.verify.CASES", first_of_each_op())
    report = verify(kernels, dtype=half)
    assert not report.errors, report.errors[:3]
    assert not report.failures, [result.describe() for result in report.failures[:5]]


@both
@pytest.mark.parametrize("op", ["relu", "max_pool2d", "avg_pool2d", "dropout", "index", "pad"])
def test_ops_that_round_once_give_numpys_bits(op: str, half: str, kernels: KernelBackend) -> None:
    """Where a result is one rounding of an exact or a same sum, there is only one right answer."""
    for case in [case for case in CASES if case.op == op][:4]:
        ours, theirs = (evaluate(case, backend, half).results for backend in (kernels, "numpy"))
        for result, expected in zip(ours, theirs, strict=True):
            if op != "avg_pool2d":
                np.testing.assert_array_equal(result.astype(float), expected.astype(float))
            else:  # a sum in another order
                np.testing.assert_allclose(result.astype(float), expected.astype(float), rtol=2.0**-7)


@both
@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_a_view_at_any_offset_is_read_and_written_by_halves(start: int, half: str, kernels: KernelBackend) -> None:
    memory = normal(67 + start).make(half)
    x = memory[start:]
    np.testing.assert_array_equal(kernels.activation_forward(x, "relu", 0.0), np.maximum(x, 0))


@both
def test_sums_of_many_parts_are_rounded_once(half: str, kernels: KernelBackend) -> None:
    """4,096 ones a channel: parts of them added up in the half type would stall."""
    dy = np.ones((64, 8, 8, 2), named(half)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(kernels.bias_backward(dy).astype(float), [4096, 4096])
    dw = kernels.conv2d_backward_weight(dy, dy, Window((1, 1)), 2)
    assert dw.dtype == named(half)
    np.testing.assert_array_equal(dw.astype(float).ravel(), [4096, 4096])
    mean, variance = kernels.batch_norm_statistics(dy)
    assert mean.dtype == variance.dtype == np.float32
    np.testing.assert_array_equal(mean, [1, 1])


@both
def test_a_training_step_in_autocast_gives_numpys_gradients(half: str, kernels: KernelBackend) -> None:
    """Sums in another order may end on the other side of a rounding; so a gradient is as near as two of these."""
    found = []
    for backend in (kernels, get_backend("numpy")):
        gpucnn.manual_seed(5)
        with gpucnn.use_backend(backend), gpucnn.autocast(half):
            model = nn.Sequential(
                nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * 2 * 1, 3),
            )  # fmt: skip
            loss = F.cross_entropy(model(gpucnn.tensor(normal(6, 2, 7, 6).make("float32"))), np.arange(6) % 3)
            loss.backward()
            before = [p.numpy().copy() for p in model.parameters()]
            optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
        assert loss.dtype == np.float32
        gradients = [p.grad.numpy() for p in model.parameters() if p.grad is not None]
        for p, w, g in zip(model.parameters(), before, gradients, strict=True):
            np.testing.assert_allclose(p.numpy(), w - 0.1 * g, rtol=1e-6, atol=1e-8)
        found.append([loss.numpy(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == np.float32
        assert np.linalg.norm(ours - theirs) <= 4 * unit_roundoff(half) * np.linalg.norm(theirs)


def test_scalar_is_float_where_memory_holds_halves(kernels: KernelBackend) -> None:
    x, mean = np.ones((4, 3), np.float16), np.ones(3, np.float32)
    with pytest.raises(KernelError, match="mean must be float32, got float16"):
        kernels.batch_norm_forward(x, mean.astype(np.float16), mean, None, None)
    with pytest.raises(KernelError, match="mean must be float64, got float32"):
        kernels.batch_norm_forward(x.astype(np.float64), mean, mean, None, None)


def test_what_has_no_kernel_in_half_is_refused_before_a_launch(kernels: KernelBackend) -> None:
    leaf = gpucnn.ones(3, requires_grad=True, backend=kernels)
    optimizer = optim.SGD([leaf], lr=1.0)
    leaf.move_("float16")
    leaf.grad = leaf.detach()
    with pytest.raises(TypeError, match=r"no kernel for optimisers in float16; convert it with \.float\(\)"):
        optimizer.step()
    with pytest.raises(TypeError, match="no kernel for losses in float16"):
        kernels.softmax_cross_entropy_forward(np.ones((2, 3), np.float16), np.zeros(2, int), None, 0.0, -100)


def test_no_kernel_keeps_a_sum_in_scalar_of_16_bits() -> None:
    """SCALAR is for memory: what a kernel computes in is Scalar."""
    folder = Path(__file__).parent.parent.parent / "kernels"
    for file in folder.glob("*.cu*"):
        for line in file.read_text("utf-8").splitlines():
            code = line.partition("//")[0]
            assert "SCALAR sum" not in code, f"{file.name}: {line}"
            assert "__shared__ SCALAR" not in code, f"{file.name}: {line}"


# -- on tensor cores ---------------------------------------------------------------------------------------

H100 = (9, 0)


@pytest.fixture(scope="module")
def tensor_cores() -> KernelBackend:
    return KernelBackend(EmulatorDevice(capability=H100))


def launched(case: Case, half: str, capability: tuple[int, int] | None = H100) -> list[Any]:
    return launches(case, half, capability)


@both
def test_tensor_cores_are_as_exact_as_the_half_type_allows(
    half: str, tensor_cores: KernelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpucnn.verify.CASES", [*TENSOR_CORES_HALF, conv((5, 8, 19, 17), (8, 8, 1, 1))])
    report = verify(tensor_cores, dtype=half)
    assert not report.errors, report.errors[:3]
    assert not report.failures, [result.describe() for result in report.failures[:5]]


@pytest.mark.parametrize("case", TENSOR_CORES_HALF, ids=str)
def test_a_case_for_tensor_cores_runs_on_them_forward_and_backward(case: Case) -> None:
    names = {one.name for one in launched(case, "float16")}
    if case.op == "conv2d":
        assert {f"conv2d_mma_{name}" for name in ("forward", "backward_input", "backward_weight")} <= names
    else:
        assert "matmul_mma" in names
        assert "matmul" not in names
    assert not [one.name for one in launched(case, "bfloat16", (7, 5)) if "mma" in one.name]


@both
def test_the_large_tile_is_right_where_it_is_not_filled(
    half: str, tensor_cores: KernelBackend, monkeypatch: pytest.MonkeyPatch, force: Any
) -> None:
    force(lambda variant: str(variant).startswith("mma 128x128"))
    monkeypatch.setattr("gpucnn.verify.CASES", [TENSOR_CORES_HALF[0], dense("matmul", (16, 136), (136, 152))])
    assert verify(tensor_cores, dtype=half).passed


def test_the_large_tile_is_taken_where_it_is_filled() -> None:
    made = launched(dense("matmul", (1544, 1544), (1544, 1544)), "float16")
    assert {dict(one.constants)["TILE_M"] for one in made if "_mma" in one.name} == {128}


@both
def test_a_nan_reaches_its_own_outputs_alone(half: str, tensor_cores: KernelBackend) -> None:
    for operand in (0, 1):
        arrays = [np.ones((8, 16), named(half)), np.ones((24, 16), named(half))]
        arrays[operand][3, 5] = np.nan
        y = tensor_cores.matmul(*arrays, trans_b=True).astype(float)
        assert np.isnan(np.moveaxis(y, operand, 0)[3]).all()
        assert np.isnan(y).sum() == y.shape[1 - operand]


def test_denormal_halves_are_multiplied_as_what_they_are(tensor_cores: KernelBackend) -> None:
    a = np.full((8, 16), 2.0**-24, np.float16)
    b = np.full((8, 16), 2.0**10, np.float16)
    np.testing.assert_array_equal(tensor_cores.matmul(a, b, trans_b=True).astype(float), 16 * 2.0**-14)


@both
@pytest.mark.parametrize("case", [TENSOR_CORES_HALF[2], TENSOR_CORES_HALF[6]], ids=str)
def test_any_order_of_the_threads_gives_equal_bits(case: Case, half: str) -> None:
    first, *others = (
        evaluate(case, KernelBackend(EmulatorDevice(order=order, capability=H100)), half).results for order in (0, 1, 7)
    )
    for results in others:
        for ours, theirs in zip(results, first, strict=True):
            np.testing.assert_array_equal(ours.view(np.uint16), theirs.view(np.uint16))


def test_what_follows_the_sums_is_applied_before_they_are_rounded(tensor_cores: KernelBackend) -> None:
    x, w, b, scale = (normal(*shape).make("float16") for shape in ((1, 16, 7, 5), (24, 16, 3, 2), (24,), (24,)))
    window = Window((3, 2), padding=(1, 1, 1, 1))
    residual = normal(1, 24, 7, 6, seed=3).make("float16")
    fused = tensor_cores.conv2d_forward(x, w, b, window, 1, "relu", scale, residual)
    exact = get_backend("numpy").conv2d_forward(
        *(a.astype(float) for a in (x, w, b)), window, 1, "relu", scale.astype(float), residual.astype(float)
    )
    np.testing.assert_allclose(fused.astype(float), exact, rtol=1.001 * unit_roundoff("float16"), atol=1e-4)


# -- bugs that are planted in a copy of the kernels ----------------------------------------------------------


@pytest.fixture
def planted(plant: Any) -> Callable[[str, str], KernelBackend]:
    return lambda old, new: KernelBackend(plant("half_tile.cuh", old, new, H100))


A, B = normal(16, 136).make("float16"), normal(24, 136, seed=1).make("float16")
UNWRITTEN, RACE = "which nothing has written", "a race with thread"


@pytest.mark.parametrize(("old", "new", "message"), [
    ("async_wait<STAGES - 2>();", "", UNWRITTEN),
    ("async_wait<STAGES - 2>();", "async_wait<STAGES - 1>();", UNWRITTEN),
    ("        __syncthreads();  // the stage", "        // the stage", f"{UNWRITTEN}|{RACE}"),
    ("tile + place(row(i), k()), chunk", "tile + place(row(i), 0), chunk", RACE),
    ("ALONG ? row / 2 & 3", "ALONG ? (row / 2 + k / 8) & 3", f"{UNWRITTEN}|{RACE}"),
    ("place(first + lane % 8 + eight, k));", "place(first + lane % 8 + eight, k) + 4);", "no multiple of 16"),
])  # fmt: skip
def test_the_emulator_catches_a_broken_pipeline_of_copies(old: str, new: str, message: str, planted: Any) -> None:
    with pytest.raises(KernelError, match=message):
        planted(old, new).matmul(A, B, trans_b=True)


@pytest.mark.parametrize("trans_b", [True, False])
@pytest.mark.parametrize(("old", "new"), [
    ("half * 16 + (of_b ? second : third);", "(of_b ? half : 1 - half) * 16 + (of_b ? second : third);"),
    ("{b[y][2 * j], b[y][2 * j + 1]}", "{b[y][2 * j + 1], b[y][2 * j]}"),
    ("store(x * 2 + lower,", "store(x * 2 + !lower,"),
    ("eight = of_b ? third : second", "eight = of_b ? second : third"),
    ("k() < left && chunk.inside", "chunk.inside && k() < left + 8 * (left > 0)"),
])  # fmt: skip
def test_a_wrong_place_is_beyond_the_bound(old: str, new: str, trans_b: bool, planted: Any) -> None:
    b = B if trans_b else np.ascontiguousarray(B.T)
    exact = A.astype(float) @ B.astype(float).T
    bound = 2 * unit_roundoff("float16") * np.abs(exact) + 2.0**-18 * (
        np.abs(A.astype(float)) @ np.abs(B.astype(float)).T
    )
    right = KernelBackend(EmulatorDevice(capability=H100)).matmul(A, b, trans_b=trans_b)
    assert (np.abs(right - exact) <= bound).all()
    try:
        wrong = planted(old, new).matmul(A, b, trans_b=trans_b)
    except KernelError:
        return  # caught on the way, as a read beyond the operand is
    assert not (np.abs(wrong - exact) <= bound).all()
