"""What counts as a right result: the table's bounds for ops, what rounding does for networks, and nothing looser."""

import struct

import numpy as np
import pytest

from gpucnn.benchmark import suites
from gpucnn.benchmark.providers import Gpucnn
from gpucnn.benchmark.reference import LR, OpProblem, pose, rounded


def task(name, part="forward", batch=1):
    found = [t for suite in ("ops", "networks") for t in suites.tasks(suite, (batch,), name) if t.part == part]
    return found[0]


# -- precisions --------------------------------------------------------------------------------------------------------


def nearest_with_bits(value, bits):
    """By definition: the nearest of the numbers with that many significant bits, ties to the even one."""
    exponent = int(np.floor(np.log2(abs(value))))
    step = 2.0 ** (exponent - bits + 1)
    return float(np.round(value / step) * step)  # np.round goes to even


@pytest.mark.parametrize(("precision", "bits"), [("tf32", 11), ("bf16", 8), ("fp16", 11)])
def test_rounding_keeps_the_precisions_significant_bits(precision, bits):
    values = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    expected = [nearest_with_bits(float(v), bits) for v in values if abs(v) > 1e-3]
    np.testing.assert_array_equal(rounded(values[np.abs(values) > 1e-3], precision), np.float32(expected))


def test_rounding_to_tf32_goes_to_even_and_keeps_the_dtype():
    tie = struct.unpack("f", struct.pack("I", 0x3F801000))[0]  # 1 + half of tf32's last place
    above = struct.unpack("f", struct.pack("I", 0x3F803000))[0]  # 1 + one and a half
    np.testing.assert_array_equal(rounded(np.array([tie, above], np.float64), "tf32"), [1.0, 1 + 2 * 2.0**-10])
    assert rounded(np.ones(3), "bf16").dtype == np.float64
    values = np.random.default_rng(1).standard_normal(5)
    assert rounded(values, "fp32") is values


def test_the_inputs_of_a_problem_are_held_in_its_precision():
    problem = pose(task("conv2d.lenet5.stem"), "bf16")
    for array in (*problem.inputs, problem.cotangent):
        np.testing.assert_array_equal(rounded(array, "bf16"), array)
    np.testing.assert_array_equal(problem.exact.inputs[0], problem.inputs[0])


# -- ops ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet5", "relu", "cross_entropy"])
@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-6), ("fp16", 2.0**-10), ("bf16", 2.0**-8)])
def test_what_the_numpy_backend_computes_is_right(name, precision, error):
    provider, judged = Gpucnn("numpy", precision), 0
    for one in suites.tasks("ops", (2,), name):
        problem = pose(one, precision)
        work = provider.work(problem, one.part, precision)
        results = work.results(work.run())
        verdict = problem.judge(one.part, results)
        assert verdict.right, f"{one}: {verdict}"
        assert verdict.error < error
        for result in results:
            np.testing.assert_array_equal(rounded(result, precision), result)
        judged += 1
    assert judged >= 2


def convolution(change=lambda x, w: (x, w), name="resnet50.stage1.3x3") -> tuple[OpProblem, np.ndarray]:
    """A convolution of 3·3·64 terms in float64 after `change` has had its inputs, as float32."""
    one = task(name)
    problem = pose(one, "fp32")
    x, w = change(*(value.astype(np.float64) for value in problem.inputs))
    return problem, problem.case.apply("numpy", [x, w], problem.case.arguments).numpy().astype(np.float32)


def test_the_exact_result_rounded_to_float32_is_right():
    problem, result = convolution()
    assert problem.judge("forward", [result]).of_bound < 0.5


def test_tf32_does_not_pass_for_fp32():
    """Also of 3·3·512 terms, where the worst case of float32 is wider than what tf32 does."""
    problem, result = convolution(lambda x, w: (rounded(x, "tf32"), rounded(w, "tf32")), "resnet50.stage4.3x3")
    verdict = problem.judge("forward", [result])
    worst = np.abs(result - problem.exact.results[0]) / problem.bounds[0]
    assert worst.max() < 1
    assert not verdict.right
    assert 1e-4 < verdict.error < 1e-3


def test_a_dropped_tap_is_wrong():
    def without_the_last_tap(x, w):
        w = w.copy()
        w[0, 0, -1, -1] = 0
        return x, w

    problem, result = convolution(without_the_last_tap)
    assert not problem.judge("forward", [result]).right


def test_one_wrong_element_of_many_is_wrong():
    problem, result = convolution()
    result[0, 1, 2, 3] += 0.1  # a term of its sum is about 1
    assert not problem.judge("forward", [result]).right


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_wrong(bad):
    problem, result = convolution()
    result[0, 0, 0, 0] = bad
    assert not problem.judge("forward", [result]).right


def test_another_shape_is_wrong():
    problem, result = convolution()
    assert not problem.judge("forward", [result[:, :-1]]).right


def test_each_pass_is_judged_by_its_own_results():
    problem = pose(task("batch_norm"), "fp32")
    names = problem.case.results
    assert names == ["output", "gradient of input", "gradient of weight", "gradient of bias"]
    assert problem.judge("backward", [r.astype(np.float32) for r in problem.exact.results[1:]]).right
    assert problem.gradients_of("forward") == []
    assert problem.gradients_of("backward") == [0, 3, 4]


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["inference", "training"])
def test_our_float32_networks_are_right_with_room_to_spare(part):
    one = task("lenet5", part, 8)
    problem = pose(one, "fp32")
    work = Gpucnn("numpy").work(problem, part, "fp32")
    verdict = problem.judge(part, work.results(work.run()))
    assert verdict.of_bound < 0.3
    assert problem.tolerance < 1e-3


def training():
    problem = pose(task("lenet5", "training", 4), "fp32")
    return problem, [array.astype(np.float32) for array in problem.exact]


def test_a_wrong_gradient_is_wrong_though_the_loss_is_right():
    problem, (loss, gradients, weights) = training()
    assert problem.judge("training", [loss, gradients, weights]).right
    assert not problem.judge("training", [loss, gradients * np.float32(1.001), weights]).right


def test_weights_that_were_not_updated_are_wrong():
    problem, (loss, gradients, weights) = training()
    before = weights + LR * gradients
    assert not problem.judge("training", [loss, gradients, before]).right


def test_a_tf32_network_does_not_pass_for_fp32():
    problem = pose(task("lenet5", "inference", 8), "fp32")
    module = problem.module().to("float64")
    for p in module.parameters():
        p.detach().copy_(rounded(p.numpy(), "tf32"))
    import gpucnn

    logits = module(gpucnn.tensor(problem.images.astype(np.float64), backend="numpy")).numpy()
    assert not problem.judge("inference", [logits]).right


def test_a_result_of_another_size_is_wrong():
    problem, (loss, gradients, weights) = training()
    assert not problem.judge("training", [loss, gradients[:-1], weights]).right
