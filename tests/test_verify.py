"""`gpucnn verify`: planted bugs fail, another order of summation passes, and the report says what and where."""

import base64
import dataclasses
import io
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import cli
from gpucnn import verify as module
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.geometry import Window
from gpucnn.testing import CASES, CONV2D, NOT_A_NUMBER, Case, Values, conv, evaluate, products
from gpucnn.verify import Report, Result, bits, chosen, differing_bits, html_page, main, run, verify, write_bits

BITS = Path(__file__).parent / "bits" / "emulator.json"


class Planted(NumpyBackend):
    """The NumPy backend with one primitive replaced; `change(result, *arguments)` is what it returns instead."""

    def __init__(self, primitive: str, change: Callable[..., Any]) -> None:
        super().__init__()
        right = getattr(super(), primitive)
        setattr(self, primitive, lambda *a, **named: change(right(*a, **named), *a, *named.values()))


def tap_dropped(y: Any, x: Any, w: Any, b: Any, window: Window, groups: int, *follows: Any) -> Any:
    rest = w.copy()
    rest[:, :, 0, -1] = 0
    return NumpyBackend().conv2d_forward(x, rest, b, window, groups, *follows)


def failing(report: Report) -> set[tuple[str, str]]:
    return {(result.case.op, result.name) for result in report.failures}


# -- right backends pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_result_of_a_right_backend_is_within_its_bound(dtype: str, backend: str) -> None:
    report = verify(backend, dtype=dtype)
    assert [result.describe() for result in report.failures] == []
    assert report.errors == ()
    assert report.passed
    assert len(report.results) == sum(len(case.results) for case in CASES)
    assert {result.got.dtype for result in report.results} == {np.dtype(dtype)}


class Reordered(NumpyBackend):
    """Convolutions and products that sum in another order: tap by tap or term by term, from the last to the first."""

    def conv2d_forward(self, x: Any, w: Any, b: Any, window: Window, groups: int, *follows: Any) -> Any:
        y = super().conv2d_forward(x, np.zeros_like(w), b, window, groups)
        for r, s in reversed([*np.ndindex(window.kernel)]):
            tap = np.zeros_like(w)
            tap[:, :, r, s] = w[:, :, r, s]
            y += super().conv2d_forward(x, tap, None, window, groups)
        activation, _, residual = follows or (None, None, None)
        y = y if residual is None else y + residual
        return y if activation is None else super().activation_forward(y, activation, 0.0)

    def conv2d_backward_weight(self, dy: Any, x: Any, window: Window, groups: int) -> Any:
        return super().conv2d_backward_weight(dy[::-1, :], x[::-1, :], window, groups)

    def matmul(self, a: Any, b: Any, trans_a: bool = False, trans_b: bool = False) -> Any:
        a, b = (m.swapaxes(-1, -2) if t else m for m, t in ((a, trans_a), (b, trans_b)))
        return super().matmul(a[..., ::-1], b[..., ::-1, :])


@pytest.fixture(scope="module")
def plain() -> Report:
    return verify("numpy")


def test_a_sum_in_another_order_passes(plain: Report) -> None:
    report = verify(Reordered())
    assert report.passed, report.failures[0].describe()
    other = {r.case.op for r, p in zip(report.results, plain.results, strict=True) if not np.array_equal(r.got, p.got)}
    nan = {case.op for case in NOT_A_NUMBER}
    assert other - nan >= {"linear", "matmul"}
    assert "conv2d" in {
        r.case.op
        for r, p in zip(report.results, plain.results, strict=True)
        if r.case in CONV2D and not np.array_equal(r.got, p.got)
    }


# -- wrong ones do not -------------------------------------------------------------------------------------------------


def test_a_dropped_tap_fails_and_is_named() -> None:
    report = verify(Planted("conv2d_forward", tap_dropped), "conv2d")
    assert not report.passed
    # Where a ReLU follows at once, another output has other gradients too.
    assert {r.name for r in report.failures if r.case in CONV2D} == {"output"}
    found = next(r for r in report.failures if str(r.case) == "conv2d-2x3x7x5-4x3x3x2-4")
    n, k, p, q = found.worst
    assert [str(part) for part in found.parts] == [
        f"input[{n}, 0:3, {p}:{p + 3}, {q}:{q + 2}]", f"weight[{k}, 0:3, 0:3, 0:2]", f"bias[{k}]",
    ]  # fmt: skip
    assert found.suspicion() == f"as if input[{n}, 0:3, {p}, {q + 1}] were left out"
    assert found.describe().startswith(f"conv2d-2x3x7x5-4x3x3x2-4: output[{n}, {k}, {p}, {q}] is ")


def scaled(factor: float) -> Callable[..., Any]:
    return lambda result, *_: result * np.float32(factor)


def rounded_to_ten_bits(y: Any, x: Any, w: Any, b: Any, window: Window, groups: int, *_: Any) -> Any:
    """As tensor cores read float32 in tf32."""
    x, w = (np.round(m.view(np.int32) / 2.0**13).astype(np.int32) * 2**13 for m in (x, w))
    return NumpyBackend().conv2d_forward(x.view(np.float32), w.view(np.float32), b, window, groups)


def last_column_forgotten(result: Any, *_: Any) -> Any:
    result = result.copy()
    result[..., -1:] = 0
    return result


def last_pixel_forgotten(dw: Any, dy: Any, x: Any, window: Window, groups: int) -> Any:
    dy = dy.copy()
    dy[-1:, :, -1:, -1:] = 0
    return NumpyBackend().conv2d_backward_weight(dy, x, window, groups)


def transposed_taps(dx: Any, dy: Any, w: Any, window: Window, groups: int, size: Any) -> Any:
    if window.kernel[0] != window.kernel[1]:
        return dx
    return NumpyBackend().conv2d_backward_input(dy, w.swapaxes(2, 3).copy(), window, groups, size)


def last_tie(result: Any, x: Any, window: Window, mode: Any, need_tap: bool) -> Any:
    """The second tap always wins."""
    y, tap = result
    return y, None if tap is None else np.minimum(tap + 1, window.taps - 1).astype(tap.dtype)


def window_divisor(dx: Any, dy: Any, window: Window, divisor: Any, size: Any) -> Any:
    return NumpyBackend().avg_pool2d_backward(dy, window, "window" if divisor == "real" else divisor, size)


def no_mean(result: Any, dy: Any, x: Any, mean: Any, invstd: Any, weight: Any, training: bool, *follows: Any) -> Any:
    return NumpyBackend().batch_norm_backward(dy, x, mean, invstd, weight, False, *follows)


def unsmoothed(result: Any, logits: Any, labels: Any, weight: Any, smoothing: float, ignore: int) -> Any:
    return NumpyBackend().softmax_cross_entropy_forward(logits, labels, weight, 0.0, ignore)


def first_share_only(dx: Any, dy: Any, index: Any, shape: Any) -> Any:
    dx = np.zeros(shape, dy.dtype)
    dx[index] = dy
    return dx


def nan_dropped(y: Any, *_: Any) -> Any:
    return np.nan_to_num(y, nan=0.0)


@pytest.mark.parametrize(
    ("primitive", "change", "pattern", "wrong"),
    [
        ("conv2d_forward", rounded_to_ten_bits, "conv2d", {("conv2d", "output")}),
        ("conv2d_forward", scaled(1 + 1e-4), "conv2d", {("conv2d", "output")}),
        ("conv2d_backward_weight", last_pixel_forgotten, "conv2d", {("conv2d", "gradient of weight")}),
        ("conv2d_backward_input", transposed_taps, "conv2d", {("conv2d", "gradient of input")}),
        ("bias_backward", last_column_forgotten, "linear", {("linear", "gradient of bias")}),
        ("max_pool2d_forward", last_tie, "max_pool2d", {("max_pool2d", "gradient of input")}),
        ("max_pool2d_forward", lambda r, *_: (nan_dropped(r[0]), r[1]), "max_pool2d", {("max_pool2d", "output")}),
        ("avg_pool2d_forward", scaled(1 + 1e-5), "avg_pool2d", {("avg_pool2d", "output")}),
        ("avg_pool2d_backward", window_divisor, "avg_pool2d", {("avg_pool2d", "gradient of input")}),
        ("activation_forward", nan_dropped, "tanh", {("tanh", "output"), ("tanh", "gradient of input")}),
        ("activation_backward", scaled(1 + 1e-5), "gelu", {("gelu", "gradient of input")}),
        ("batch_norm_backward", no_mean, "batch_norm", {("batch_norm", "gradient of input")}),
        ("matmul", last_column_forgotten, "matmul", {("matmul", "output"), ("matmul", "gradient of other")}),
        ("softmax_cross_entropy_forward", unsmoothed, "cross_entropy", {("cross_entropy", "output")}),
        ("index_backward", first_share_only, "index", {("index", "gradient of input")}),
        ("dropout", scaled(1 + 1e-6), "dropout", {("dropout", "output"), ("dropout", "gradient of input")}),
    ],
)  # fmt: skip
def test_a_planted_bug_fails_where_it_is(
    primitive: str, change: Callable[..., Any], pattern: str, wrong: set[tuple[str, str]]
) -> None:
    report = verify(Planted(primitive, change), pattern)
    assert report.errors == ()
    assert wrong <= failing(report)
    assert {op for op, _ in failing(report)} == {pattern}


def test_an_operand_counted_twice_is_named() -> None:
    def twice(y: Any, x: Any, w: Any, b: Any, window: Window, groups: int, *_: Any) -> Any:
        w = w.copy()
        w[:, :, -1, 0] *= 2
        return NumpyBackend().conv2d_forward(x, w, b, window, groups)

    found = verify(Planted("conv2d_forward", twice), "conv2d-2x5x4x7-3x5x3x3-padding=1").failures[0]
    assert re.fullmatch(r"as if input\[\d, 0:5, \d, \d\] were counted twice", found.suspicion())


def test_an_error_of_the_backend_is_a_failure_and_the_other_cases_go_on() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("misaligned address")

    report = verify(Planted("activation_forward", broken), "s*")
    assert not report.passed
    assert {case.op for case, _ in report.errors} == {"selu", "sigmoid", "silu", "softplus"}
    assert {text for _, text in report.errors} == {"RuntimeError: misaligned address"}
    assert {result.case.op for result in report.results} >= {"sum_pool2d", "softmax", "smooth_l1_loss"}
    assert "of them FAIL" in report.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, *_: y.astype(np.float64), "output is float64 (2, 3, 7, 2), expected float32 (2, 3, 7, 2)"),
        (lambda y, *_: y[:1], "output is float32 (1, 3, 7, 2), expected float32 (2, 3, 7, 2)"),
    ],
)
def test_a_wrong_dtype_or_shape_is_an_error_that_shows_both(change: Callable[..., Any], message: str) -> None:
    report = verify(Planted("activation_forward", change), "relu6")
    assert not report.passed
    assert [text for _, text in report.errors] == [message]


# -- what is measured --------------------------------------------------------------------------------------------------


def result(got: Any, expected: Any, bound: Any) -> Result:
    got = np.asarray(got, np.float32)
    expected = np.asarray(expected, np.float64)
    return Result(CASES[0], "output", got, expected, np.broadcast_to(np.asarray(bound, np.float64), got.shape))


def test_errors_are_counted_in_units_of_the_last_place_of_what_is_expected() -> None:
    one = np.float32(1)
    found = result([np.nextafter(one, 2 * one), np.nextafter(one, 0 * one), 8, 8], [1, 1, 8, 8 + 2**-20], 1e-6)
    np.testing.assert_array_equal(found.ulps, [1, 0.5, 0, 1])
    np.testing.assert_array_equal(found.relative, [2**-23, 2**-24, 0, 2**-20 / (8 + 2**-20)])
    assert found.worst == (3,)
    assert found.passed


def test_nan_and_infinity_are_right_only_where_they_are_expected() -> None:
    nan, inf = np.nan, np.inf
    found = result([nan, nan, 1, inf, inf, -inf, 1], [nan, 1, nan, inf, -inf, 1, inf], np.inf)
    assert (found.error == 0).tolist() == [True, False, False, True, False, False, False]
    assert np.isinf(found.error[[1, 2, 4, 5, 6]]).all()
    assert not found.passed
    assert not result([nan, 1], [1, 1], 1.0).passed
    assert result([nan, 1], [nan, 1], np.nan).passed


def test_a_bound_of_zero_admits_only_the_exact_value() -> None:
    assert result([0.5, 0], [0.5, 0], 0.0).passed
    assert not result([np.nextafter(np.float32(0.5), np.float32(1)), 0], [0.5, 0], 0.0).passed
    assert not result([0.5, 1e-30], [0.5, 0], 0.0).passed


def test_an_empty_result_passes() -> None:
    report = verify("numpy", "conv2d-0x*")
    assert report.passed
    empty = next(r for r in report.results if r.name == "output")
    assert empty.got.size == 0
    assert "worst" not in empty.as_json()


BILINEAR = [case for case in CASES if case.bounds is products and case not in NOT_A_NUMBER]


@pytest.mark.parametrize("case", BILINEAR, ids=str)
def test_terms_of_the_worst_element_add_up_to_what_is_expected(case: Case) -> None:
    for found in verify("numpy", str(case).replace("[", "[[]")).results:
        if not found.got.size or not found.parts:
            assert not found.got.size or found.expected[found.worst] == 0
            continue
        operand, *others = found.parts
        constant = sum(float(part.terms.sum()) for part in others if part.name == "bias")
        constant += float(others[0].terms.sum()) if case.op == "add" and found.name == "output" else 0
        assert operand.terms.sum() + constant == pytest.approx(found.expected[found.worst], abs=1e-6, rel=1e-6)


def test_window_of_a_pooled_gradient_is_the_outputs_that_saw_the_element() -> None:
    report = verify("numpy", "sum_pool2d-2x3x7x5-kernel_size=(3,2)-stride=(2,1)-padding=(1,0)")
    found = next(r for r in report.results if r.name == "gradient of input")
    n, c, h, w = found.worst
    (part,) = found.parts
    rows = [p for p in range(4) if 0 <= h + 1 - 2 * p < 3]
    columns = [q for q in range(4) if 0 <= w - q < 2]
    assert part.start == (n, c, rows[0], columns[0])
    assert part.values.shape == (1, 1, len(rows), len(columns))
    np.testing.assert_allclose(part.slopes, 1, rtol=1e-9)


# -- choosing, and the report -----------------------------------------------------------------------------------------


def test_a_pattern_chooses_by_op_or_by_name() -> None:
    assert {case.op for case in chosen("*pool2d")} == {
        "max_pool2d", "min_pool2d", "avg_pool2d", "sum_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
        "conv2d_max_pool2d",
    }  # fmt: skip
    assert {case.op for case in chosen("conv2d")} == {"conv2d"}
    assert all(case.arguments["groups"] > 1 for case in chosen("*groups*"))
    assert {case.op for case in chosen("*groups*")} == {"conv2d", "conv2d_max_pool2d", "conv_transpose2d"}
    assert chosen(None) == CASES


def test_a_pattern_that_nothing_matches_names_the_ops() -> None:
    with pytest.raises(
        ValueError, match=r"no case matches 'conv3d'; the ops are conv2d, conv2d_max_pool2d, conv_transpose2d,"
    ):
        verify("numpy", "conv3d")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="float16 or bfloat16, got 'float8'"):
        verify("numpy", "relu", dtype="float8")


def test_each_case_is_announced_before_it_runs() -> None:
    seen: list[Case] = []
    verify("numpy", "relu*", on_case=seen.append)
    assert seen == chosen("relu*")


def test_the_report_says_what_computed_where_and_when() -> None:
    about = verify("numpy", "relu").about
    assert about["backend"] == "numpy"
    assert about["dtype"] == "float32"
    assert about["gpucnn"] == gpucnn.__version__
    assert about["numpy"] == np.__version__
    assert about["device"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00", about["date"])
    if (Path(module.__file__).parent.parent / ".git").exists():
        assert re.fullmatch(r"\S+", about["commit"])


def test_a_gpu_is_described_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = types.SimpleNamespace(
        getDevice=lambda: 1,
        getDeviceProperties=lambda i: {"name": b"NVIDIA X", "major": 9, "minor": i},
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 12090,
    )
    cupy = types.SimpleNamespace(__name__="cupy", __version__="14.0", cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(module, "_output", lambda *command: "580.1" if command[0] == "nvidia-smi" else "")
    about = module._about(types.SimpleNamespace(name="cuda", xp=cupy, tuning_hash=None), "float32")  # type: ignore[arg-type]
    assert about["device"] == "NVIDIA X, compute capability 9.1"
    assert (about["driver"], about["CUDA"], about["cupy"]) == ("580.1", "driver 13000, runtime 12090", "14.0")
    assert "commit" not in about


def test_two_reports_are_equal_but_for_the_date(plain: Report) -> None:
    assert verify("numpy").as_json()["results"] == plain.as_json()["results"]


def no_constants(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


def test_json_holds_every_result_and_no_number_that_json_lacks(tmp_path: Path, capsys: Any) -> None:
    assert run("numpy", json=tmp_path / "report.json") == 0
    record = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=no_constants)
    assert record["passed"] is True
    assert [(r["case"], r["result"]) for r in record["results"]] == [(str(c), n) for c in CASES for n in c.results]
    first = record["results"][0]
    assert 0 < first["mean_ulps"] <= first["max_ulps"]
    assert 0 < first["mean_relative"] <= first["max_relative"]
    assert 0 < first["max_of_bound"] < 1
    worst = first["worst"]
    assert worst["error"] == pytest.approx(abs(worst["got"] - worst["expected"]))
    assert worst["made_of"][0]["terms"] == 18
    window = worst["made_of"][0]
    assert len(window["places"]) == len(window["values"]) == len(window["slopes"]) == 18
    image = next(case for case in CASES if str(case) == first["case"]).made_inputs("float32")[0]
    assert [float(image[tuple(place)]) for place in window["places"]] == window["values"]


def test_the_terminal_shows_a_line_for_each_op_and_the_verdict(capsys: Any) -> None:
    assert run("numpy", "*pool2d") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("max_pool2d ") and line.endswith("ok") for line in map(str.strip, lines)) == 1
    cases, results = len(chosen("*pool2d")), sum(len(case.results) for case in chosen("*pool2d"))
    assert lines[-1] == f"{cases} cases, {results} results on numpy: all are within their bounds"


def test_the_terminal_shows_what_failed_and_the_exit_code_is_1(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(module, "get_backend", lambda name: Planted("conv2d_forward", tap_dropped))
    assert run("numpy", "conv2d-2x3x7x5-4x3x3x2-4") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "FAIL" in out
    assert "made of input[" in out
    assert "were left out" in out
    assert out.endswith("1 cases, 4 results on numpy: 1 of them FAIL")


def test_the_page_needs_nothing_else_and_shows_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "get_backend", lambda name: Planted("conv2d_forward", tap_dropped))
    assert run("numpy", "conv2d", html=tmp_path / "report.html") == 1
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import|<script", page)
    assert page.count("<section>") == module.MOST_PICTURES
    assert "were left out" in page
    assert page.count("<figure>") == page.count("</figure>") >= 6 * module.MOST_PICTURES
    assert "stroke=" in page


def test_pictures_of_the_page_are_png_of_the_arrays(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed: nothing to read PNG with")
    page = html_page(verify("numpy", "conv2d-2x3x7x5-4x3x3x2-4"))
    files = [base64.b64decode(data) for data in re.findall(r'data:image/png;base64,([^"]+)"', page)]
    sizes = [pillow.open(io.BytesIO(file)).size for file in files]
    assert (4 * 5 - 1, 2 * 6 - 1) in sizes  # the output: 4 channels side by side, 2 images one below the other
    colours = np.asarray(pillow.open(io.BytesIO(module.png(np.arange(18.0).reshape(2, 3, 3)))))
    np.testing.assert_array_equal(colours, np.arange(18).reshape(2, 3, 3))


def test_the_marked_element_is_framed() -> None:
    array = np.zeros((2, 3, 4, 5))
    figure = module._figure("", array, (1, 2, 3, 4))
    assert '<rect x="16" y="8" ' in figure  # 2 · (5 + 1) + 4 and 1 · (4 + 1) + 3
    assert '<rect x="0" y="0" ' in module._figure("", np.array(1.0), ())
    assert '<rect x="3" y="1" ' in module._figure("", np.zeros((2, 4)), (1, 3))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 2, 2, 2, 2)])
def test_every_element_of_an_array_of_any_rank_is_drawn_once(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=float).reshape(shape)
    plane, cells = module._laid_out(array)
    np.testing.assert_array_equal(np.sort(plane[cells >= 0]), array.ravel())
    np.testing.assert_array_equal(np.sort(cells[cells >= 0]), np.arange(array.size))
    assert np.isnan(plane[cells < 0]).all()


# -- bits --------------------------------------------------------------------------------------------------------------


def test_bits_of_the_file_are_the_backends(tmp_path: Path) -> None:
    write_bits(tmp_path / "bits.json", "numpy")
    assert differing_bits(tmp_path / "bits.json", "numpy") == []
    record = json.loads((tmp_path / "bits.json").read_text("utf-8"))
    assert record == bits("numpy")
    assert list(record) == [str(case) for case in CASES if case.same_bits]


def test_one_bit_of_one_element_is_a_difference_and_is_named(tmp_path: Path) -> None:
    def nudged(y: Any, *_: Any) -> Any:
        y = y.copy()
        y.flat[-1:] = np.nextafter(y.flat[-1:], np.float32(np.inf))
        return y

    write_bits(tmp_path / "bits.json", "numpy")
    found = differing_bits(tmp_path / "bits.json", Planted("avg_pool2d_backward", nudged))
    assert "avg_pool2d-2x3x7x5-kernel_size=2: gradient of input" in found
    assert {text.partition("-")[0] for text in found} == {"avg_pool2d", "sum_pool2d", "adaptive_avg_pool2d"}
    assert all(text.endswith(": gradient of input") for text in found)


def test_the_sign_of_zero_is_a_bit_and_the_payload_of_nan_is_none() -> None:
    assert module._hash(np.array([0.0])) != module._hash(np.array([-0.0]))
    assert module._hash(np.array([1.0])) != module._hash(np.array([1.0], np.float32))
    assert module._hash(np.zeros((2, 3))) != module._hash(np.zeros((3, 2)))
    other = np.array([0x7FC00123, 0xFFC00000], np.uint32).view(np.float32)
    assert module._hash(other) == module._hash(np.full(2, np.nan, np.float32))
    image = np.arange(24.0).reshape(2, 3, 2, 2)
    assert module._hash(image) == module._hash(np.asfortranarray(image))


def test_cases_that_only_one_side_has_are_differences(tmp_path: Path) -> None:
    path = tmp_path / "bits.json"
    write_bits(path, "numpy")
    record = json.loads(path.read_text("utf-8"))
    name = str(CONV2D[0])
    record["conv2d-of-old"] = record.pop(name)
    path.write_text(json.dumps(record), "utf-8")
    assert differing_bits(path, "numpy") == [f"{name}: is not in {path}", f"conv2d-of-old: is only in {path}"]


NOT_THE_SAME = {
    "exp",
    "log",
    "log1p",
    "expm1",
    "power",
    "float_power",
    "tanh",
    "sum",
    "mean",
    "matmul",
    "einsum",
    "dot",
}
NOT_THE_SAME_METHODS = {"_sum", "_mean", "_var", "_std", "_prod"}


def test_exactly_the_cases_in_which_the_array_library_sums_or_takes_logarithms_are_left_out() -> None:
    """Seen from outside: a module in place of numpy that notes what is asked of it, and a look at array methods."""
    noted: set[str] = set()

    class Watched(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name in NOT_THE_SAME:
                noted.add(name)
            return getattr(np, name)

    def watch(frame: types.FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name in NOT_THE_SAME_METHODS and code.co_filename.endswith("_methods.py"):
            array = frame.f_locals.get("a")
            if isinstance(array, np.ndarray) and array.dtype == np.float32:
                noted.add(code.co_name)

    engine = KernelBackend(RecorderDevice())  # every launch returns any number at once
    engine.xp = Watched("numpy")
    for case in CASES:
        noted.clear()
        before = sys.getprofile()
        sys.setprofile(watch)
        try:
            with np.errstate(all="ignore"):
                evaluate(case, engine, "float32")
        finally:
            sys.setprofile(before)
        assert bool(noted) is not case.same_bits, f"{case} uses {noted or 'kernels and exact operations alone'}"


def test_the_committed_file_has_the_cases_of_the_table() -> None:
    record = json.loads(BITS.read_text("utf-8"))
    command = "python -m gpucnn.verify --backend emulator --write-bits tests/bits/emulator.json"
    assert {case: list(hashes) for case, hashes in record.items()} == {
        str(case): case.results for case in CASES if case.same_bits
    }, f"the case table has changed; run {command}"


def test_bits_are_those_that_the_emulator_committed(backend: str) -> None:
    if backend == "numpy":
        pytest.skip("NumPy's bits depend on its BLAS: the file is of the kernels, --backend emulator or cuda")
    assert differing_bits(BITS, backend) == []


def test_what_tensor_cores_compute_need_not_have_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_them, not_on_them = conv((1, 8, 7, 5), (12, 8, 3, 2)), conv((1, 3, 7, 5), (2, 3, 3, 2))
    monkeypatch.setattr("gpucnn.verify.CASES", [on_them, not_on_them])
    path = tmp_path / "bits.json"
    write_bits(path, KernelBackend(EmulatorDevice()))
    engine = KernelBackend(EmulatorDevice(capability=(9, 0)))
    assert bits(engine)[str(on_them)] != json.loads(path.read_text("utf-8"))[str(on_them)]
    assert differing_bits(path, engine) == []
    path.write_text(path.read_text("utf-8").replace(bits(engine)[str(not_on_them)]["output"], "0" * 16), "utf-8")
    assert differing_bits(path, engine) == [f"{not_on_them}: output"]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_and_checks_bits(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "bits.json"
    assert main(["--backend", "numpy", "--write-bits", str(path)]) == 0
    assert main(["--backend", "numpy", "--check-bits", str(path)]) == 0
    assert f"the bits are those of {path}" in capsys.readouterr().out
    path.write_text(path.read_text("utf-8").replace("relu-2x3x7x2", "relu-old", 1), "utf-8")
    assert main(["--backend", "numpy", "--check-bits", str(path)]) == 1
    assert "relu-old: is only in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "tpu", "--check-bits", str(BITS)], "backend is 'tpu', but the backends are"),
        (["--backend", "numpy", "--check-bits", "/nowhere/bits.json"], "No such file"),
        (["--backend", "numpy", "--write-bits", "/nowhere/bits.json"], "there is no folder /nowhere"),
        ([], "one of the arguments --write-bits --check-bits is required"),
    ],
)
def test_a_mistake_about_bits_is_one_line_and_exit_code_2(arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def gpucnn_command(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", *words])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_the_command_verifies_and_writes_both_reports(tmp_path: Path, capsys: Any) -> None:
    files = ["--json", str(tmp_path / "report.json"), "--html", str(tmp_path / "report.html")]
    assert gpucnn_command("--backend", "numpy", "--op", "relu", "--dtype", "float64", *files) == 0
    assert "results on numpy: all are within" in capsys.readouterr().out
    about = json.loads((tmp_path / "report.json").read_text("utf-8"))["about"]
    assert (about["backend"], about["dtype"]) == ("numpy", "float64")
    assert "<h1>gpucnn verify</h1>" in (tmp_path / "report.html").read_text("utf-8")


def test_the_command_ends_with_1_if_a_result_is_off(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(module, "get_backend", lambda name: Planted("conv2d_forward", tap_dropped))
    assert gpucnn_command("--op", "conv2d") == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--op", "conv3d"], "no case matches 'conv3d'; the ops are conv2d"),
        (["--backend", "tpu"], "backend is 'tpu', but the backends are"),
        (["--op", "relu", "--json", "/nowhere/report.json"], "there is no folder /nowhere"),
        (["--dtype", "float16"], "float16"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], message: str, capsys: Any) -> None:
    assert gpucnn_command("--backend", "numpy", *words) == 2
    assert message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        run("numpy", "relu", html=tmp_path / "absent" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_values_of_a_case_are_not_kept() -> None:
    assert not any(isinstance(value, np.ndarray) for case in CASES for value in dataclasses.astuple(case)[1])
    assert all(isinstance(value, Values) for case in CONV2D for value in case.inputs)


def test_a_nan_where_nan_is_expected_is_no_error_in_the_table():
    [(op, _, *numbers, verdict)] = verify("numpy", "relu").rows()
    assert (op, verdict) == ("relu", "ok")
    assert all(float(number) == 0 for number in numbers)
