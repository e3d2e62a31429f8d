"""Which kernel is chosen for a shape, a type and a GPU; and that whatever could be chosen computes the same."""

import itertools
from typing import Any

import pytest
from numerics import assert_within, unit_roundoff

from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import Convolution, Operation, Problem, Product, candidates, parts_of, usual
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.geometry import Window
from gpucnn.testing import dense, evaluate, on_tensor_cores, products

H100 = (9, 0)
FORWARD: Operation = "conv2d_forward"
CONVOLUTIONS: list[Operation] = [FORWARD, "conv2d_backward_input", "conv2d_backward_weight"]


def convolution(operation: Operation, channels: int, filters: int, *how: Any, groups: int = 1, n: int = 2) -> Problem:
    """3 x 2 filters on images of 9 x 7, channels and filters by group; how: scalar, precision, capability."""
    shape = Convolution(n, 9, 7, channels * groups, filters * groups, 7, 6, groups, Window((3, 2)))
    return Problem(operation, shape, *(how or ("float",)))


def product(rows: int, columns: int, depth: int, a: bool, b: bool, *how: Any) -> Problem:
    return Problem("matmul", Product(1, rows, columns, depth, a, b), *(how or ("float",)))


def families(operation: Operation, sizes: list[tuple[int, int]], *how: Any) -> list[str]:
    return [usual(convolution(operation, c, k, *how)).family for c, k in sizes]


FAST = ("float", "fp32", H100)

# -- the usual one -------------------------------------------------------------------------------------


def test_few_input_channels_are_convolved_directly_but_forward_where_filters_fill_a_tile() -> None:
    assert [usual(convolution(o, 3, 64)).family for o in CONVOLUTIONS] == ["gemm", "direct", "gemm"]
    assert families(FORWARD, [(3, 7), (3, 8)]) == ["direct", "gemm"]
    assert [usual(convolution(o, 1, 1)).family for o in CONVOLUTIONS] == ["direct"] * 3
    assert [usual(convolution(o, 5, 1)).family for o in CONVOLUTIONS] == ["gemm"] * 3


def test_channels_by_fours_and_half_a_tile_of_them_take_large_tiles() -> None:
    sizes = [(8, 32), (32, 8), (8, 28), (8, 34), (34, 32), (4, 32)]
    assert families(FORWARD, sizes) == ["fma", "gemm", "gemm", "gemm", "gemm", "fma"]
    assert families("conv2d_backward_input", sizes) == ["gemm", "fma", "gemm", "gemm", "gemm", "direct"]
    assert families("conv2d_backward_weight", sizes) == ["fma", "gemm", "gemm", "gemm", "gemm", "fma"]
    assert "fma" not in families(FORWARD, sizes, "float16")
    assert families(FORWARD, sizes, *FAST)[0] == "mma"


@pytest.mark.parametrize(("capability", "fp32", "tf32"), [
    (None, 0, 0), ((7, 5), 0, 0), ((8, 0), 3, 1), ((8, 6), 0, 1), ((8, 9), 0, 1), ((9, 0), 3, 1), ((12, 0), 0, 1),
])  # fmt: skip
def test_tensor_cores_are_chosen_by_capability_and_precision(capability: Any, fp32: int, tf32: int) -> None:
    for precision, expected in (("fp32", fp32), ("tf32", tf32)):
        chosen = usual(convolution(FORWARD, 8, 8, "float", precision, capability))
        assert chosen.constants.get("PRODUCTS", 0) == expected
        assert usual(convolution(FORWARD, 8, 8, "double", precision, capability)).family == "gemm"
        for half in ("float16", "bfloat16"):
            chosen = usual(convolution(FORWARD, 8, 8, half, precision, capability))
            assert chosen.constants.get("HALF", 0) == (capability is not None and capability >= (8, 0))


def test_a_convolution_that_does_not_fit_tensor_cores_stays_where_it_was() -> None:
    sizes = [(8, 8), (6, 8), (8, 6), (4, 8), (1, 1)]
    assert families(FORWARD, sizes, *FAST) == ["mma", "gemm", "gemm", "mma", "direct"]
    assert families(FORWARD, sizes)[0] == "gemm"
    assert families(FORWARD, [(4, 16), (12, 16), (16, 16)], "float16", "fp32", H100) == ["gemm", "gemm", "mma"]


def test_a_forward_convolution_of_a_single_image_is_cut_where_its_sums_are_long_and_its_blocks_few() -> None:
    def parts(size: int, channels: int, n: int = 1, operation: Operation = FORWARD) -> list[int]:
        window = Window((3, 3), padding=(1, 1, 1, 1))
        shape = Convolution(n, size, size, channels, channels, size, size, 1, window)
        of_tiles = [one for one in candidates(Problem(operation, shape, *FAST)) if one.family in ("gemm", "fma", "mma")]
        assert all(one.parts == 1 or one.length * (one.parts - 1) < 9 * channels for one in of_tiles)
        return [one.parts for one in of_tiles if str(one).startswith("mma 64x64")]

    assert [parts(*of) for of in ((56, 64), (28, 128), (14, 256), (7, 512))] == [[1], [2, 1], [4, 1], [9, 1]]
    assert [parts(*of, 8) for of in ((28, 128), (14, 256), (7, 512))] == [[1], [1], [2, 1]]
    assert parts(7, 512, 1, "conv2d_backward_input") == [1]
    direct = candidates(Problem(FORWARD, Convolution(1, 7, 7, 32, 1, 1, 1, 1, Window((7, 7))), "float"))
    assert {one.parts for one in direct if one.family == "direct"} == {1}


@pytest.mark.parametrize(("size", "transposed", "how", "family"), [
    ((32, 32, 12), (False, False), ("float",), "fma"),
    ((31, 32, 12), (False, False), ("float",), "gemm"),
    ((33, 32, 12), (False, False), ("float",), "fma"),
    ((33, 32, 12), (True, False), ("float",), "gemm"),  # a's last axis is 33
    ((32, 28, 12), (False, False), ("float",), "gemm"),
    ((32, 34, 12), (False, False), ("float",), "gemm"),
    ((32, 32, 11), (False, False), ("float",), "gemm"),
    ((32, 32, 16), (False, False), ("float16",), "gemm"),
    ((32, 32, 12), (False, False), FAST, "mma"),
    ((3, 8, 12), (False, False), FAST, "mma"),
    ((3, 8, 12), (True, False), FAST, "gemm"),  # a's last axis is 3
    ((4, 8, 11), (True, False), FAST, "mma"),
    ((4, 8, 11), (False, False), FAST, "gemm"),
    ((4, 6, 12), (False, False), FAST, "gemm"),
    ((3, 8, 12), (False, True), ("float16", "fp32", H100), "gemm"),
    ((3, 8, 16), (False, True), ("float16", "fp32", H100), "mma"),
])  # fmt: skip
def test_a_product_that_does_not_fit_large_tiles_or_tensor_cores_stays_where_it_was(
    size: tuple[int, int, int], transposed: tuple[bool, bool], how: Any, family: str
) -> None:
    assert usual(product(*size, *transposed, *how)).family == family


@pytest.mark.parametrize(("terms", "blocks", "expected"), [
    (255, 1, (256, 1)), (256, 9999, (256, 1)), (257, 1, (256, 2)), (2**20, 1, (2**14, 64)), (2**20, 100, (104858, 10)),
    (0, 0, (256, 1)),
])  # fmt: skip
def test_a_sum_is_cut_so_that_some_thousand_blocks_compute_it(terms: int, blocks: int, expected: Any) -> None:
    assert parts_of(terms, blocks) == expected


# -- all of them ---------------------------------------------------------------------------------------

SIZES = [(3, 4), (8, 32), (32, 8), (34, 33), (64, 136), (1, 1)]
PROBLEMS = [
    *(
        convolution(operation, c, k, scalar, precision, capability, n=n)
        for operation in CONVOLUTIONS
        for c, k in SIZES
        for scalar in ("float", "double", "bfloat16")
        for precision in ("fp32", "tf32")
        for capability in (None, (8, 9), H100)
        for n in (1, 5000)
    ),
    *(
        product(*size, trans_a, False, scalar, "fp32", capability)
        for size in ((3, 5, 7), (36, 44, 5000), (1544, 1544, 1544), (64, 64, 0))
        for trans_a in (True, False)
        for scalar in ("float", "double", "float16")
        for capability in (None, H100)
    ),
]


def test_the_usual_variant_is_the_first_candidate_and_each_has_a_name_of_its_own() -> None:
    for problem in PROBLEMS:
        found = candidates(problem)
        assert usual(problem) == found[0], problem
        assert len({str(variant) for variant in found}) == len(found), problem


def test_the_parts_of_every_candidate_hold_all_terms_and_none_is_empty() -> None:
    for problem in PROBLEMS:
        terms = problem.matrix.terms
        for variant in candidates(problem):
            assert 1 <= variant.parts <= 64, (problem, variant)
            assert (variant.parts - 1) * variant.length < max(terms, 1), (problem, variant)
            assert variant.parts * variant.length >= terms or variant.parts == 1, (problem, variant)


@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (9, 0)])
@pytest.mark.parametrize("scalar", ["float", "double"])
def test_parts_of_sums_that_are_read_by_16_bytes_begin_at_a_multiple_of_16_bytes(
    scalar: str, capability: tuple[int, int]
) -> None:
    """Of forward convolutions and products, whose operands lie along the sum."""
    cut = 0
    for n, c, k, plane, kernel in itertools.product((1, 3, 6), (44, 64, 512, 2048), (64, 512), (7, 14), (1, 3, 5, 7)):
        shape = Convolution(n, plane, plane, c, k, plane, plane, 1, Window.of(kernel, 1, kernel // 2))
        how = (scalar, "fp32", capability)
        for problem in (
            Problem(FORWARD, shape, *how),
            product(n * plane * plane, k, c * kernel + 2, False, True, *how),
        ):
            for one in candidates(problem):
                if one.parts > 1 and one.family in ("gemm", "fma", "mma"):
                    assert one.length % 4 == 0, (problem, one)
                    cut += 1
    assert cut > 100


def test_every_candidate_of_a_product_is_within_the_bound_of_its_kind() -> None:
    case, device = dense("matmul", (12, 520), (520, 36)), EmulatorDevice(capability=H100)
    exact, (a, b) = evaluate(case, precision="float64"), case.made_inputs("float32")
    found = candidates(product(12, 36, 520, False, False, *FAST))
    assert {variant.family for variant in found} == {"mma", "fma", "gemm"}
    for variant in found:
        y = KernelBackend(device, lambda _, variant=variant: variant).matmul(a, b)  # type: ignore[misc]
        bound = on_tensor_cores(exact, 3) if variant.family == "mma" else products(exact)
        assert_within(y, exact.results[0], unit_roundoff("float32") * bound[0])
