"""The case table: what is in it, that it is light and repeatable, and that its bounds are what they say."""

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import reference
from numerics import assert_within

import gpucnn
from gpucnn import functional as F
from gpucnn import testing
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.recorder import Launched, RecorderDevice
from gpucnn.geometry import Window
from gpucnn.testing import CASES, CONV2D, CONV2D_POOLED, POOL, Case, Values, conv, dense, evaluate, normal, transposed

# Ops without a gradient, ops that take or give several tensors, and what is made of ops that have cases.
NO_CASE = {
    "argmax",
    "compare",
    "host_index",
    "to",
    "cat",
    "stack",
    "argmin",
    "max",
    "min",
    "split",
    "chunk",
    "unbind",
    "clone",
}
NO_CASE |= {"eq", "ne", "lt", "le", "gt", "ge", "equal", "isclose", "allclose", "isnan", "isinf", "isfinite"}
NO_CASE |= {"any", "all", "logical_and", "logical_or", "logical_xor", "logical_not"}
NO_CASE |= {"bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "argsort", "sort", "topk", "one_hot"}
NO_CASE |= {"reshape", "squeeze", "unsqueeze", "transpose", "unflatten", "t", "flip", "tile", "gather", "index_select"}
NO_CASE |= {"masked_fill", "square", "reciprocal", "rsqrt", "var", "std", "logsumexp", "normalize", "cosine_similarity"}
NO_CASE |= {"mm", "bmm", "clone", "dropout1d", "outer", "lerp", "roll", "movedim", "repeat_interleave", "tril", "triu"}
NO_CASE |= {"sin", "cos", "log1p", "log2", "log10", "expm1", "remainder", "floor_divide", "cumsum", "prod"}
NO_CASE |= {"masked_select", "nonzero", "unique", "bincount"}
NO_CASE |= {"conv1d", "conv_transpose1d", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d"}


def shapes(case: Case) -> list[tuple[int, ...]]:
    return [value.shape for value in case.inputs if isinstance(value, Values)]


def window(case: Case) -> Window:
    """Of a convolution or a pooling case."""
    given = {k: v for k, v in case.arguments.items() if k in ("stride", "padding", "dilation", "ceil_mode")}
    pooling = case.op.endswith("pool2d")
    kernel = case.arguments["kernel_size"] if pooling else shapes(case)[1][2:]
    height, width = shapes(case)[0][2:]
    return Window.of(kernel, **{"stride": None if pooling else 1, "padding": 0} | given, size=(height, width))


# -- the table ---------------------------------------------------------------------------------------------------------


def test_each_case_has_a_readable_name_of_its_own() -> None:
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names) >= 150
    for name in names:
        assert name.isprintable()
        assert " " not in name
        assert "<" not in name, f"{name} shows an object's address"
        assert len(name) < 150


def test_every_op_with_a_gradient_has_a_case() -> None:
    assert {case.op for case in CASES} == set(F.__all__) - NO_CASE


def test_every_case_has_a_gradient_and_names_its_results_as_the_op_names_its_arguments() -> None:
    for case in CASES:
        names = list(inspect.signature(getattr(F, case.op)).parameters)
        assert case.differentiable
        assert case.results == ["output", *(f"gradient of {names[i]}" for i in case.differentiable)]
    assert CONV2D[0].results == ["output", "gradient of input", "gradient of weight", "gradient of bias"]


UNKIND: dict[str, Callable[[Case], bool]] = {
    "groups with a stride": lambda c: c.arguments.get("groups", 1) > 1 and max(window(c).stride) > 1,
    "depthwise": lambda c: c.arguments.get("groups", 1) == shapes(c)[0][1] > 1,
    "dilation with unequal padding": lambda c: max(window(c).dilation) > 1 and len(set(window(c).padding)) > 2,
    "1x1 with a stride of 2": lambda c: window(c).kernel == (1, 1) and window(c).stride == (2, 2),
    "kernel = input": lambda c: window(c).extent == shapes(c)[0][2:],
    "window larger than the plane": lambda c: window(c).extent > shapes(c)[0][2:],
    "stride > kernel": lambda c: all(s > k for s, k in zip(window(c).stride, window(c).kernel, strict=True)),
    "no image": lambda c: shapes(c)[0][0] == 0,
    "one image": lambda c: shapes(c)[0][0] == 1,
    "a plane of one pixel": lambda c: shapes(c)[0][2:] == (1, 1),
    "odd pixel of same": lambda c: c.arguments.get("padding") == "same" and window(c).padding[0] < window(c).padding[1],
    **{f"{n} channels": lambda c, n=n: shapes(c)[0][1] == n for n in (1, 3, 5, 17)},
    **{f"{n} filters": lambda c, n=n: shapes(c)[1][0] == n for n in (1, 3, 5, 17)},
}


@pytest.mark.parametrize("kind", UNKIND)
def test_unkind_convolutions_are_in_the_table(kind: str) -> None:
    assert any(UNKIND[kind](case) for case in CONV2D)


# (H, k, s, p) -> n with ceil_mode, and rows of (H, k, s, p) without: PyTorch's rounding has its corners here.
@pytest.mark.parametrize(
    ("geometry", "count"),
    [
        ((6, 1, 2, 0), 3), ((7, 1, 2, 0), 4), ((32, 1, 2, 0), 16), ((32, 8, 4, 0), 7), ((4, 3, 3, 0), 2),
        ((9, 4, 4, 2), 3), ((17, 2, 2, 1), 9), ((2, 3, 3, 1), 1), ((9, 4, 2, 0), 4),
    ],
)  # fmt: skip
def test_every_corner_of_ceil_mode_is_in_the_table(geometry: tuple[int, ...], count: int) -> None:
    found = []
    for case in POOL:
        w, size = window(case), shapes(case)[0][2:]
        axes = [(size[i], w.kernel[i], w.stride[i], w.padding[2 * i]) for i in range(2)]
        if w.ceil_mode and geometry in axes:
            found.append((case.op, case.output_shape[2 + axes.index(geometry)]))
    assert found
    assert {n for _, n in found} == {count}
    assert {op for op, _ in found} == {"max_pool2d", "min_pool2d", "avg_pool2d", "sum_pool2d"}


def test_images_are_not_square() -> None:
    square = [case for case in CONV2D + POOL if len({*shapes(case)[0][2:]}) == 1 and max(shapes(case)[0][2:]) > 1]
    assert [shapes(case)[0] for case in square if shapes(case)[0] != (1, 17, 4, 4)] == []  # of the settled semantics


@cache
def launches() -> list[Launched]:
    """What the kernel backend launches for the whole table."""
    device = RecorderDevice()
    with np.errstate(all="ignore"):  # what it returns is any number
        for case in CASES:
            evaluate(case, KernelBackend(device), "float32")
    return device.launches


def test_every_kernel_of_an_op_with_a_gradient_is_launched_with_several_blocks() -> None:
    most: dict[str, int] = {}
    for launch in launches():
        most[launch.name] = max(most.get(launch.name, 0), launch.grid[0])
    assert len(most) >= 18
    alone = {name for name, blocks in most.items() if blocks == 1}
    # A thread a channel; and what a case converts is short (tests/kernels/test_convert.py has longer rows).
    assert alone <= {"batch_norm_statistics_combine", "batch_norm_backward_combine", "convert"}


@pytest.mark.parametrize("name", ["conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight", "matmul"])
def test_every_tile_of_a_matrix_product_is_used(name: str) -> None:
    constants = [dict(launch.constants) for launch in launches() if launch.name == name]
    assert {(of["TILE_M"], of["TILE_N"]) for of in constants} == {(64, 64), (32, 32), (64, 16), (32, 8), (16, 32)}


def test_every_sum_that_kernels_split_into_parts_is_split() -> None:
    split = {a.name for a, b in zip(launches(), launches()[1:], strict=False) if b.name == "sum_parts"} - {"sum_parts"}
    weights = {f"conv2d_{family}backward_weight" for family in ("", "direct_", "depthwise_")}
    assert split == {"bias_backward", "matmul", "conv2d_max_pool2d_backward", "instance_norm_backward", *weights}


# -- values ------------------------------------------------------------------------------------------------------------


def test_nothing_is_drawn_before_it_is_asked_for() -> None:
    code = "import numpy; numpy.random.default_rng = None; import gpucnn.testing; print(len(gpucnn.testing.CASES))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == str(len(CASES)), result.stderr


def test_importing_gpucnn_does_not_import_the_table() -> None:
    code = "import sys, gpucnn; print({'gpucnn.testing', 'gpucnn.verify'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_values_are_the_same_each_time_and_float32_rounds_them() -> None:
    for case in CASES:
        first, second, single = case.made_inputs(), case.made_inputs(), case.made_inputs("float32")
        for declared, a, b, c in zip(case.inputs, first, second, single, strict=True):
            if isinstance(declared, Values):
                assert a.shape == declared.shape
                np.testing.assert_array_equal(a, b)
                np.testing.assert_array_equal(a.astype(c.dtype), c)
                assert c.dtype.kind in "ib" if declared.integer else c.dtype == np.float32


def test_operands_of_one_shape_have_different_values() -> None:
    for case in CASES:
        made = [value for value in case.made_inputs() if isinstance(value, np.ndarray) and value.size > 3]
        for i, a in enumerate(made):
            assert not any(a.shape == b.shape and (a == b).all() for b in made[:i]), str(case)


def test_what_a_convolution_pools_is_exact_in_a_half_type_and_has_one_largest_element() -> None:
    """Else rounding, or the step of a difference quotient, would make another element the largest."""
    for case in CONV2D_POOLED:
        arguments = case.made_arguments()
        activation, max_pool = arguments.pop("activation", None), arguments.pop("max_pool")
        sums = replace(case, op="conv2d").apply("numpy", case.made_inputs(), arguments).numpy()
        rising = np.linspace(0, 2.0**-8, sums.size).reshape(sums.shape)  # makes the last of equal elements the largest
        (largest, first), (_, last) = (
            F.max_pool2d(gpucnn.tensor(a, backend="numpy"), **max_pool, return_indices=True)
            for a in (sums, sums + rising)
        )
        counts = largest.numpy() > 0 if activation else np.ones(largest.shape, bool)
        np.testing.assert_array_equal(first.numpy()[counts], last.numpy()[counts])
        assert not activation or largest.numpy().all()
        if case is not CONV2D_POOLED[-1]:  # whose elements are the inputs' times powers of two
            np.testing.assert_array_equal(gpucnn.tensor(sums).to("bfloat16").to("float64").numpy(), sums)


def test_distinct_values_are_an_eighth_apart_in_float32_too() -> None:
    values = np.sort(testing.distinct(3, 7, 5).make("float32").ravel())
    np.testing.assert_array_equal(np.diff(values), np.float32(0.125))


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_evaluation_in_float64_takes_the_values_rounded_to_float32() -> None:
    found = evaluate(CONV2D[0], "numpy", "float32", precision="float64")
    assert {array.dtype for array in [*found.results, found.cotangent, *found.inputs]} == {np.dtype(np.float64)}
    for value in [*found.inputs, found.cotangent]:
        np.testing.assert_array_equal(value, value.astype(np.float32))
    assert_within(found.results[0], reference.conv2d(*found.inputs), 1e-13)


def test_gradients_of_an_evaluation_are_those_of_its_cotangent() -> None:
    case = dense("matmul", (3, 5), (5, 2))
    found = evaluate(case, "numpy", "float64")
    a, b = found.inputs
    assert_within(found.results[1], found.cotangent @ b.T, 1e-14)
    assert_within(found.results[2], a.T @ found.cotangent, 1e-14)
    ones = found.again(np.ones_like, np.ones_like)
    assert [float(r.flat[0]) for r in ones] == [5, 2, 3]


def test_dropout_draws_the_same_mask_for_each_evaluation() -> None:
    case = next(case for case in CASES if case.op == "dropout")
    first, second = (evaluate(case, "numpy", "float32") for _ in range(2))
    np.testing.assert_array_equal(first.results[0], second.results[0])
    np.testing.assert_array_equal(first.again(None, np.ones_like)[1] > 0, first.results[0] != 0)


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_bounds_of_a_convolution_count_the_terms_of_each_sum() -> None:
    """n + 2 roundings of Σ|x||w|, by the scalar reference: n is C·R·S + 1 for y, K·windows for dx, N·P·Q for dw."""
    case = conv((2, 3, 6, 5), (4, 3, 2, 3), bias=True, stride=(2, 1))
    exact = evaluate(case, "numpy", "float64")
    x, w, b = map(np.abs, exact.inputs)
    u = np.abs(exact.cotangent)
    y, dx, dw, db = case.bounds(exact)
    assert_within(np.asarray(y), (3 * 2 * 3 + 1 + 2) * reference.conv2d(x, w, b, stride=(2, 1)), 1e-12)
    windows = np.array([1, 2, 3, 2, 1])  # of width 3 over 5 columns; each row is in one window of height 2, stride 2
    terms = (4 * windows + 2) * np.ones((6, 5))
    assert_within(np.asarray(dx), terms * reference.conv_transpose2d(u, w, stride=(2, 1)), 1e-12)
    assert_within(np.asarray(db), (2 * 3 * 3 + 2) * u.sum((0, 2, 3)), 1e-12)
    assert_within(np.asarray(dw)[1, 2, 1, 0], np.array(20 * (u[:, 1] * x[:, 2, 1::2, :3]).sum()), 1e-12)


def test_bounds_of_selected_elements_are_exact_where_one_share_arrives() -> None:
    case = testing.Case(
        "max_pool2d", (testing.distinct(1, 1, 5, 7),), testing.selected, {"kernel_size": 3, "stride": 2}
    )
    exact = evaluate(case, "numpy", "float64")
    y, dx = case.bounds(exact)
    assert y == 0.0
    shares = exact.again(None, np.ones_like)[1]
    assert set(np.unique(shares)) >= {0, 1}
    np.testing.assert_array_equal(np.asarray(dx)[shares <= 1], 0)
    assert (np.asarray(dx)[shares > 1] > 0).all()


def test_bounds_are_finite_and_there_is_one_for_each_result() -> None:
    for case in [case for case in CASES if case not in testing.NOT_A_NUMBER]:
        exact = evaluate(case, "numpy", "float32", precision="float64")
        bounds = case.bounds(exact)
        assert len(bounds) == len(exact.results) == len(case.results)
        for bound, result in zip(bounds, exact.results, strict=True):
            found = np.broadcast_to(bound, result.shape)
            assert np.isfinite(found).all(), str(case)
            assert (found >= 0).all(), str(case)


def test_float32_bounds_are_far_below_what_they_bound() -> None:
    """A bound of the size of the results would let anything pass. At most 3 % of the largest element here."""
    for case in [case for case in CASES if case not in testing.NOT_A_NUMBER]:
        exact = evaluate(case, "numpy", "float32", precision="float64")
        for name, bound, result in zip(case.results, case.bounds(exact), exact.results, strict=True):
            largest = float(np.abs(result).max(initial=0.0))
            if largest > 1e-30:
                assert 2.0**-24 * float(np.max(bound)) <= 0.03 * largest, f"{case}: {name}"


# -- costs -------------------------------------------------------------------------------------------------------------


def test_a_filter_of_5x5x3_is_75_multiplications_a_pixel() -> None:
    case = conv((1, 3, 32, 32), (1, 3, 5, 5))
    assert case.output_shape == (1, 1, 28, 28)
    assert case.flops == 2 * 75 * 784
    assert case.bytes() == 4 * (3 * 32 * 32 + 75 + 784)
    assert case.bytes("float64") == 2 * case.bytes()


def test_flops_count_each_multiply_add_twice() -> None:
    assert conv((2, 4, 7, 8), (6, 2, 3, 2), groups=2, stride=(2, 3)).flops == 2 * (2 * 6 * 3 * 3) * (2 * 3 * 2)
    there, back = conv((1, 3, 7, 5), (4, 3, 3, 2)), transposed((1, 4, 5, 4), (4, 3, 3, 2))
    assert there.flops == back.flops == 2 * math.prod((4, 5, 4)) * math.prod((3, 3, 2))
    assert dense("matmul", (2, 1, 3, 5), (4, 5, 2)).flops == 2 * (2 * 4) * 3 * 5 * 2
    assert dense("linear", (2, 3, 4, 5), (6, 5), (6,)).flops == 2 * (2 * 3 * 4) * 6 * 5
    pool = next(case for case in POOL if case.arguments == {"kernel_size": 2})
    assert pool.flops == 2 * 3 * (3 * 2) * 4


def test_bytes_count_labels_and_class_weights_too() -> None:
    weight = testing.uniform(5)
    case = testing.Case(
        "cross_entropy",
        (normal(6, 5), testing.integers(6, classes=5)),
        testing.selected,
        {"weight": weight, "reduction": "none"},
    )
    assert case.bytes() == 4 * 30 + 8 * 6 + 4 * 5 + 4 * 6


def test_flops_of_other_ops_are_the_elements_of_their_input() -> None:
    counted = {case.op: case for case in CASES if not case.operations}
    assert counted["gelu"].flops == math.prod(shapes(counted["gelu"])[0])
    windows = {"conv2d", "conv_transpose2d", "linear", "matmul"} | {case.op for case in CASES if "pool2d" in case.op}
    assert not [case for case in CASES if case.op in windows and not case.operations and 0 not in case.output_shape]
    assert not [case for case in CASES if case.op not in windows and case.operations]
