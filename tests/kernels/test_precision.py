"""Products of float32 by operands in a half type, `gpucnn.precision("fp16")` and `("bf16")`: on NumPy, and by kernels
with tensor cores and without."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import tune
from gpucnn.backends import Backend, get_backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.precision import PRECISIONS
from gpucnn.backends.variants import Problem, Product, preferring
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.dtypes import named, unit_roundoff
from gpucnn.geometry import Window
from gpucnn.testing import (
    CONV2D_FINISHED,
    CONV2D_POOLED,
    HALO_HALF,
    HOPPER,
    TENSOR_CORES_HALF,
    Case,
    evaluate,
    launches,
    normal,
)
from gpucnn.verify import compared, verify

Array = np.ndarray[Any, np.dtype[Any]]
POINT = Window((1, 1))


def made(name: str, family: str | None = None) -> Backend:
    if name == "numpy":
        return get_backend("numpy")
    capability = HOPPER if name == "tensor cores" else None
    return KernelBackend(EmulatorDevice(capability=capability), preferring(family) if family else None)


def rounded(x: Array, precision: str) -> Array:
    with np.errstate(over="ignore"):
        y: Array = x.astype(named(PRECISIONS[precision])).astype(np.float32)
    return y


def telling(precision: str) -> Array:
    """Numbers [8, 8] that another rounding, TF32's too, would make others of: midpoints between neighbours of the half
    type, what lies just above and below, and what is denormal in float16."""
    u = unit_roundoff(PRECISIONS[precision])
    midpoint, tiny = 1 + 3 * u, 2.0**-20
    row = [1 + u, midpoint, 1 + u + tiny, -midpoint - tiny, 2 - u, midpoint * 2.0**-22, midpoint * 2.0**-30, 1 + tiny]
    numbers: Array = (np.array(row) * 2.0 ** np.arange(-4, 4)[:, None]).astype(np.float32)
    return numbers


def images(rows: Array) -> Array:
    """A row for each of 2 x 4 pixels."""
    return rows.reshape(1, 2, 4, 8).transpose(0, 3, 1, 2)


def filters(rows: Array) -> Array:
    return rows.reshape(8, 8, 1, 1)


ONE = np.eye(8, dtype=np.float32)
# Each multiplies x by ones and zeros: what comes out is x, arranged in another way.
MULTIPLIED: dict[str, tuple[Callable[[Any, Array], Array], Callable[[Array], Array]]] = {
    "first matrix": (lambda b, x: b.matmul(x, ONE), lambda x: x),
    "second matrix": (lambda b, x: b.matmul(ONE, x), lambda x: x),
    "image": (lambda b, x: b.conv2d_forward(images(x), filters(ONE), None, POINT, 1), images),
    "filter": (lambda b, x: b.conv2d_forward(images(ONE), filters(x), None, POINT, 1), lambda x: images(x.T)),
    "dy by filter": (lambda b, x: b.conv2d_backward_input(images(x), filters(ONE), POINT, 1, (2, 4)), images),
    "filter by dy": (lambda b, x: b.conv2d_backward_input(images(ONE), filters(x), POINT, 1, (2, 4)), images),
    "dy by image": (lambda b, x: b.conv2d_backward_weight(images(x), images(ONE), POINT, 1), lambda x: filters(x.T)),
    "image by dy": (lambda b, x: b.conv2d_backward_weight(images(ONE), images(x), POINT, 1), filters),
}


@pytest.mark.parametrize(("where", "precision"), [
    ("numpy", "fp16"), ("numpy", "bf16"), ("tensor cores", "fp16"), ("tensor cores", "bf16"), ("emulator", "fp16"),
])  # fmt: skip
def test_each_operand_is_rounded_as_a_cast_rounds_it_and_results_are_not(where: str, precision: str) -> None:
    engine, x = made(where), telling(precision)
    assert (rounded(x, precision) != x).all()
    for what, (multiply, arranged) in MULTIPLIED.items():
        with gpucnn.precision(precision):
            y = multiply(engine, x)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, arranged(rounded(x, precision)), err_msg=what)
    bias = telling(precision)[1]
    with gpucnn.precision(precision):
        y = engine.conv2d_forward(images(0 * ONE), filters(ONE), bias, POINT, 1, None, bias, images(x))
    np.testing.assert_array_equal(y, images(bias + x))


@pytest.mark.parametrize("where", ["numpy", "tensor cores"])
def test_float16_ends_at_65519_and_loses_small_gradients_and_bfloat16_does_neither(where: str) -> None:
    engine = made(where)

    def sums(value: float) -> float:
        y = engine.matmul(np.full((8, 8), value, np.float32), np.ones((8, 8), np.float32))
        assert (y == y[0, 0]).all() or np.isnan(y).all()
        return float(y[0, 0])

    with gpucnn.precision("fp16"):
        assert [sums(65519), sums(65520), sums(-1e9)] == [8 * 65504, np.inf, -np.inf]
        assert [sums(2.0**-25), sums(1.5 * 2.0**-25)] == [0, 8 * 2.0**-24]
    with gpucnn.precision("bf16"):
        assert [sums(2.0**60), sums(2.0**-60)] == [2.0**63, 2.0**-57]


CASES = [
    ("tensor cores", "fp16", None, TENSOR_CORES_HALF[4]),
    ("tensor cores", "fp16", None, TENSOR_CORES_HALF[7]),
    ("tensor cores", "bf16", "halo", HALO_HALF[0]),
    ("emulator", "bf16", None, CONV2D_FINISHED[0]),
    ("emulator", "fp16", None, CONV2D_POOLED[0]),
]


@pytest.mark.parametrize(("where", "precision", "family", "case"), CASES, ids=str)
def test_results_are_those_of_rounded_operands_but_for_the_sums_of_float32(
    where: str, precision: str, family: str | None, case: Case
) -> None:
    exact = evaluate(case, precision="float64")
    engines = [made(where, family), get_backend("numpy")]
    with gpucnn.precision(precision):
        for engine in engines:
            for result in compared(exact, engine, "float32"):
                assert result.passed, result.describe()
                assert result.got.dtype == np.float32


@pytest.mark.parametrize(("capability", "case"), [
    (HOPPER, TENSOR_CORES_HALF[0]), (HOPPER, TENSOR_CORES_HALF[6]), (HOPPER, CONV2D_FINISHED[0]),
    ((7, 5), TENSOR_CORES_HALF[0]), (None, CONV2D_POOLED[0]),
], ids=str)  # fmt: skip
def test_with_and_without_tensor_cores_the_kernels_multiply_the_half_type(
    capability: tuple[int, int] | None, case: Case
) -> None:
    with gpucnn.precision("bf16"):
        launched = [one for one in launches(case, capability=capability) if one.file.startswith(("conv", "matmul"))]
    products = [dict(one.constants) for one in launched if one.file != "convert.cu"]
    assert products
    assert {(of["SCALAR"], of["RESULT"]) for of in products} == {("bfloat16", "float")}
    chunks = case in TENSOR_CORES_HALF
    assert all("HALF" in of for of in products) == (capability == HOPPER and chunks)


def test_operands_that_are_not_rounded_are_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """As TF32 is, which has as many bits."""
    exact, engine = evaluate(TENSOR_CORES_HALF[6], precision="float64"), made("tensor cores")
    monkeypatch.setattr("gpucnn.backends.numpy_backend.operand_dtype", lambda dtype: dtype)
    monkeypatch.setattr("gpucnn.backends.kernel_backend.get_precision", lambda: "tf32")
    monkeypatch.setattr("gpucnn.backends.kernel_backend.operand_dtype", lambda dtype: dtype)
    with gpucnn.precision("fp16"):
        assert not any(result.passed for result in compared(exact, get_backend("numpy"), "float32"))
        assert not any(result.passed for result in compared(exact, engine, "float32"))


def test_verify_takes_the_precision_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpucnn.verify.CASES", [TENSOR_CORES_HALF[5], *CONV2D_FINISHED[:2]])
    plain = verify("numpy")
    monkeypatch.setenv("GPUCNN_PRECISION", "fp16")
    report = verify("numpy")
    assert plain.passed
    assert (plain.about["precision"], report.about["precision"]) == ("fp32", "fp16")
    assert report.passed, [result.describe() for result in report.failures]
    for one, other in zip(plain.results, report.results, strict=True):
        products = one.name in ("output", "gradient of input", "gradient of weight")
        assert np.array_equal(one.expected, other.expected) == (not products)


@pytest.mark.parametrize("where", ["numpy", "emulator"])
def test_tensors_of_other_types_are_computed_as_ever(where: str) -> None:
    engine = made(where)
    for dtype in ("float16", "float64"):
        a, b = normal(3, 5).make(dtype), normal(5, 2, seed=1).make(dtype)
        plain = engine.matmul(a, b)
        with gpucnn.precision("bf16"):
            np.testing.assert_array_equal(engine.matmul(a, b), plain)


def test_a_half_layer_that_pools_goes_back_as_ever() -> None:
    engine, pool = get_backend("numpy"), Window((2, 1), (2, 1))
    dy, x, w = (normal(*shape).make("float16") for shape in ((1, 3, 2, 4), (1, 2, 5, 5), (3, 2, 2, 2)))
    tap = np.zeros(dy.shape, np.uint8)

    def gradients() -> tuple[Any, ...]:
        return engine.conv2d_max_pool2d_backward(dy, tap, x, w, Window((2, 2)), 1, pool, (True, True, True))

    plain = gradients()
    with gpucnn.precision("bf16"):
        for ours, theirs in zip(gradients(), plain, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_loss_is_no_product_of_the_precision() -> None:
    logits, weight = normal(4, 3).make("float32"), np.array([0.3, 1.7, 2.9], np.float32)

    def loss() -> Array:
        return F.cross_entropy(
            gpucnn.tensor(logits, backend="numpy"), np.arange(4) % 3, gpucnn.tensor(weight, backend="numpy"),
            label_smoothing=0.2,
        ).numpy()  # fmt: skip

    plain = loss()
    with gpucnn.precision("bf16"):
        np.testing.assert_array_equal(loss(), plain)


def test_a_graph_rounds_operands_too_and_is_captured_for_each_precision() -> None:
    with gpucnn.use_backend(KernelBackend(EmulatorDevice(watch=False, capability=HOPPER))):
        x, w = (gpucnn.tensor(normal(8, 16, seed=seed).make("float32")) for seed in (0, 1))
        step = gpucnn.compile(lambda x: F.linear(x, w))
        for precision in ("fp16", "fp32", "fp16"):
            with gpucnn.precision(precision), gpucnn.no_grad():
                expected = F.linear(x, w).numpy()
                for _ in range(3):
                    np.testing.assert_array_equal(step(x).numpy(), expected)


def test_tune_holds_every_candidate_to_rounded_operands() -> None:
    problem = Problem("matmul", Product(1, 3, 5, 7, False, False), "float", "fp16", (7, 5))
    device = EmulatorDevice(watch=False, capability=(7, 5))
    found = tune.measure(problem, KernelBackend(device), seconds=0, timer=lambda variant, work: 1.0)
    assert not found.wrong
    assert len(found.times) > 1
    assert tune.shown(problem).endswith("fp16")
