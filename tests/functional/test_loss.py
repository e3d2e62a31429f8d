"""Losses: the introductions' numbers, large logits, labels. Values and gradients of every case: test_every_op.py."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from numerics import Array, assert_within, unit_roundoff

import gpucnn
from functional.cases import random, uniform
from gpucnn import Tensor
from gpucnn import functional as F

U = unit_roundoff("float64")
PAIRWISE = [
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "mse_loss", "l1_loss", "smooth_l1_loss",
    "huber_loss",
]  # fmt: skip


def loss_and_gradient(op: str, x: Array, target: Any, backend: str, **arguments: Any) -> tuple[Array, Array]:
    tensor = gpucnn.tensor(x, requires_grad=True, backend=backend)
    loss = getattr(F, op)(tensor, gpucnn.tensor(target, backend=backend), **arguments)
    loss.backward(gpucnn.tensor(np.ones(loss.shape, x.dtype), backend=backend))
    assert tensor.grad is not None
    return loss.numpy(), tensor.grad.numpy()


# --- the introductions' numbers ---------------------------------------------------------------------------------------


def test_untrained_network_of_ten_classes_costs_the_logarithm_of_ten(backend: str) -> None:
    loss, dx = loss_and_gradient("cross_entropy", np.zeros((4, 10)), np.array([0, 3, 3, 9]), backend)
    assert float(loss) == pytest.approx(math.log(10), abs=8 * U)
    assert_within(dx[0], (np.full(10, 0.1) - np.eye(10)[0]) / 4, 8 * U)


def test_log_loss_of_a_confident_right_answer(backend: str) -> None:
    for op, x in [("binary_cross_entropy", 0.98), ("binary_cross_entropy_with_logits", math.log(0.98 / 0.02))]:
        loss, _ = loss_and_gradient(op, np.array([x]), np.array([1.0]), backend)
        assert float(loss) == pytest.approx(0.0202027073, abs=5e-11)


def test_a_guess_of_87_percent_is_off_by_13(backend: str) -> None:
    logit = np.array([math.log(0.87 / 0.13)])
    _, dx = loss_and_gradient("binary_cross_entropy_with_logits", logit, np.array([1.0]), backend)
    assert_within(dx, np.array([-0.13]), 16 * U)


def test_half_squared_error_of_ten_equal_guesses(backend: str) -> None:
    loss, dx = loss_and_gradient("half_squared_error", np.full(10, 0.1), np.eye(10)[3], backend)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(0.45, abs=16 * U)
    assert_within(dx, np.full(10, 0.1) - np.eye(10)[3], 2 * U)


# --- stability --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_logits_of_ten_thousand_is_finite_and_right(
    dtype: str, smoothing: float, backend: str
) -> None:
    x = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [0, -1e4, -1e4]], dtype)
    labels = np.array([1, 2, 0])
    loss, dx = loss_and_gradient("cross_entropy", x, labels, backend, reduction="none", label_smoothing=smoothing)
    expected = reference.cross_entropy(x, labels, reduction="none", label_smoothing=smoothing)
    assert_within(loss, expected, 16 * unit_roundoff(dtype) * 2e4)
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    assert_within(dx, reference.softmax(x, 1) - targets, 8 * unit_roundoff(dtype))


def test_losses_on_logits_agree_for_two_classes(backend: str) -> None:
    """cross_entropy([0, x], 1) = log(1 + exp(−x)) = binary_cross_entropy_with_logits(x, 1)."""
    x = np.array([-1e4, -30.0, -1.0, 0.0, 2.0, 30.0, 1e4])
    both, _ = loss_and_gradient(
        "cross_entropy", np.stack([np.zeros(7), x], 1), np.ones(7, np.int64), backend, reduction="none"
    )
    one, dx = loss_and_gradient("binary_cross_entropy_with_logits", x, np.ones(7), backend, reduction="none")
    assert_within(both, one, 8 * U * 1e4)
    assert np.isfinite(dx).all()
    assert_within(one[[0, -1]], np.array([1e4, 0.0]), 0.0)


def test_certain_wrong_answer_costs_100_and_a_certain_right_one_nothing(backend: str) -> None:
    loss, dx = loss_and_gradient(
        "binary_cross_entropy",
        np.array([0.0, 1.0, 0.0, 1.0]),
        np.array([1.0, 0.0, 0.0, 1.0]),
        backend,
        reduction="none",
    )
    np.testing.assert_array_equal(loss, [100, 100, 0, 0])
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("squash", ["softmax", "sigmoid"])
def test_probabilities_given_to_a_loss_on_logits_are_warned_of(squash: str, backend: str) -> None:
    x = gpucnn.tensor(random(2, 3), requires_grad=True, backend=backend)
    y = F.softmax(x, 1) if squash == "softmax" else F.sigmoid(x)
    with pytest.warns(UserWarning, match=rf"cross_entropy takes logits.*{squash}"):
        F.cross_entropy(y, np.array([0, 2]))
    with pytest.warns(UserWarning, match=rf"binary_cross_entropy_with_logits takes logits.*{squash}"):
        F.binary_cross_entropy_with_logits(y, gpucnn.tensor(uniform(2, 3), backend=backend))
    F.nll_loss(F.log_softmax(x, 1), np.array([0, 2]))
    F.binary_cross_entropy(y, gpucnn.tensor(uniform(2, 3), backend=backend))


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_labels_of_any_integer_type_are_taken(op: str, dtype: str, backend: str) -> None:
    x, labels = random(4, 3), np.array([2, 0, 1, 1])
    expected = getattr(reference, op)(x, labels)
    assert_within(loss_and_gradient(op, x, labels.astype(dtype), backend)[0], expected, 64 * U)
    tensor = gpucnn.tensor(x, backend=backend)
    assert_within(getattr(F, op)(tensor, labels.astype(dtype)).numpy(), expected, 64 * U)


@pytest.mark.parametrize("op", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_ignored_label_costs_nothing_whatever_its_scores(op: str, reduction: str, backend: str) -> None:
    x, labels = random(4, 3), np.array([2, -100, 1, 1])
    loss, dx = loss_and_gradient(op, x, labels, backend, reduction=reduction)
    x[1] = [1e4, -1e4, 0]
    again, dx_again = loss_and_gradient(op, x, labels, backend, reduction=reduction)
    np.testing.assert_array_equal(loss, again)
    np.testing.assert_array_equal(dx, dx_again)
    assert not dx[1].any()


@pytest.mark.parametrize("op", ["cross_entropy", "nll_loss"])
def test_mean_over_no_labels_is_nan_with_gradients_of_0_as_in_pytorch(op: str, backend: str) -> None:
    loss, gradient = loss_and_gradient(op, random(2, 3), np.array([-100, -100]), backend)
    assert np.isnan(loss)
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))
    assert loss_and_gradient(op, random(2, 3), np.array([-100, -100]), backend, reduction="sum")[0] == 0


@pytest.mark.parametrize("op", ["cross_entropy", "nll_loss"])
def test_mean_over_labels_without_weight_is_nan_and_so_are_its_gradients_as_in_pytorch(op: str, backend: str) -> None:
    weight = gpucnn.tensor(np.zeros(3), backend=backend)
    loss, gradient = loss_and_gradient(op, random(2, 3), np.array([0, 2]), backend, weight=weight)
    assert np.isnan(loss)
    assert np.isnan(gradient[[0, 1], [0, 2]]).all()


@pytest.mark.parametrize("op", ["cross_entropy", "nll_loss"])
def test_one_sample_without_a_batch_axis(op: str, backend: str) -> None:
    x = random(5)
    loss, _ = loss_and_gradient(op, x, np.array(3), backend)
    assert loss.shape == ()
    assert_within(loss, getattr(reference, op)(x[None], np.array([3])), 32 * U)


def test_mean_is_weighted_by_the_labels_class_weights(backend: str) -> None:
    """PyTorch's rule: Σ w·loss / Σ w, not over the number of samples."""
    x, labels, weight = np.zeros((3, 2)), np.array([0, 0, 1]), np.array([1.0, 6.0])
    loss, _ = loss_and_gradient("cross_entropy", x, labels, backend, weight=gpucnn.tensor(weight, backend=backend))
    assert float(loss) == pytest.approx(math.log(2), abs=8 * U)
    total, _ = loss_and_gradient(
        "cross_entropy", x, labels, backend, weight=gpucnn.tensor(weight, backend=backend), reduction="sum"
    )
    assert float(total) == pytest.approx(8 * math.log(2), abs=64 * U)


def test_class_probabilities_that_are_one_hot_are_labels(backend: str) -> None:
    x, labels = random(5, 4), np.array([3, 0, 1, 1, 2])
    by_label = loss_and_gradient("cross_entropy", x, labels, backend, label_smoothing=0.1)
    by_share = loss_and_gradient("cross_entropy", x, np.eye(4)[labels], backend, label_smoothing=0.1)
    for ours, theirs in zip(by_label, by_share, strict=True):
        assert_within(ours, theirs, 64 * U)


# --- the divergence of distributions ----------------------------------------------------------------------------------


def test_a_distribution_diverges_from_itself_by_nothing_and_from_another_by_what_coding_it_costs_more(
    backend: str,
) -> None:
    """½ ln ½/¼ + ¼ ln ¼/¼ + ¼ ln ¼/½ = ¼ ln 2, for each of the samples."""
    p, q = np.array([[0.5, 0.25, 0.25]] * 3), np.array([[0.25, 0.25, 0.5]] * 3)
    assert_within(loss_and_gradient("kl_div", np.log(p), p, backend, reduction="none")[0], np.zeros((3, 3)), 0.0)
    mean, dx = loss_and_gradient("kl_div", np.log(q), p, backend, reduction="batchmean")
    assert float(mean) == pytest.approx(math.log(2) / 4, abs=8 * U)
    assert_within(dx, -p / 3, 0.0)
    for reduction, divisor in (("sum", 1), ("mean", 9)):
        total, dx = loss_and_gradient("kl_div", np.log(q), p, backend, reduction=reduction)
        assert float(total) == pytest.approx(3 * math.log(2) / 4 / divisor, abs=8 * U)
        assert_within(dx, -p / divisor, U)


def test_a_target_of_zero_costs_nothing_and_its_gradient_is_finite(backend: str) -> None:
    x = gpucnn.tensor(np.array([-1.0, -2.0, -np.inf]), requires_grad=True, backend=backend)
    target = gpucnn.tensor(np.array([0.0, 1.0, 1.0]), requires_grad=True, backend=backend)
    loss = F.kl_div(x, target, reduction="none")
    np.testing.assert_array_equal(loss.numpy(), [0, 2, np.inf])
    loss[:2].sum().backward()
    assert x.grad is not None
    assert target.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [0, -1, 0])
    np.testing.assert_array_equal(target.grad.numpy()[:2], [1, 3])


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
def test_a_target_may_be_given_by_its_logarithm(reduction: str, backend: str) -> None:
    x, p = np.log(uniform(4, 3)), uniform(4, 3, seed=1)
    plain = loss_and_gradient("kl_div", x, p, backend, reduction=reduction)
    logarithm = loss_and_gradient("kl_div", x, np.log(p), backend, reduction=reduction, log_target=True)
    for ours, theirs in zip(plain, logarithm, strict=True):
        assert_within(ours, theirs, 256 * U)


def test_a_single_number_is_its_own_batch(backend: str) -> None:
    assert float(loss_and_gradient("kl_div", np.array(-1.0), np.array(1.0), backend, reduction="batchmean")[0]) == 1


# --- what is linear far away ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.25, 1.0, 3.0, math.inf])
def test_huber_is_half_the_square_near_and_linear_far_away(delta: float, backend: str) -> None:
    d = np.array([-5.0, -3.0, -0.25, 0.0, 0.125, 1.0, 2.0])
    loss, dx = loss_and_gradient("huber_loss", d + 1, np.ones(7), backend, reduction="none", delta=delta)
    np.testing.assert_array_equal(dx, d.clip(-delta, delta))
    expected = [e * e / 2 if abs(e) < delta else delta * (abs(e) - delta / 2) for e in d.tolist()]
    np.testing.assert_array_equal(loss, expected)


def test_huber_is_delta_times_smooth_l1(backend: str) -> None:
    x, t = random(5, 4), random(5, 4, seed=1)
    huber = loss_and_gradient("huber_loss", x, t, backend, reduction="sum", delta=0.5)
    smooth = loss_and_gradient("smooth_l1_loss", x, t, backend, reduction="sum", beta=0.5)
    for ours, theirs in zip(huber, smooth, strict=True):
        assert_within(ours, 0.5 * theirs, 64 * U)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize(
    ("x", "labels", "error", "message"),
    [
        ((4, 3), np.array([0, 1, 3, 2]), ValueError, r"label 3 at \[2\].*3, 0 to 2"),
        ((4, 3), np.array([0, -1, 1, 2]), ValueError, r"label -1 at \[1\].*0 to 2"),
        ((4, 3), np.array([0, 5, 1, 7]), ValueError, r"2 of 4"),
        ((4, 3), np.array([0, 1, 2]), ValueError, r"\(4, 3\).*\(4,\).*\(3,\)"),
        ((4, 3), np.array([[0], [1], [2], [0]]), ValueError, r"\(4,\).*\(4, 1\)"),
        ((2, 3, 4, 5), np.zeros((2, 5, 4), np.int64), ValueError, r"\(2, 4, 5\).*\(2, 5, 4\)"),
        ((4, 3), np.array([True, False, True, True]), TypeError, r"integers.*bool"),
        ((4, 0), np.array([0, 0, 0, 0]), ValueError, r"\(4, 0\).*classes"),
    ],
)
def test_wrong_labels_are_shown(op: str, x: Any, labels: Array, error: Any, message: str, backend: str) -> None:
    with pytest.raises(error, match=message):
        loss_and_gradient(op, random(*x), labels, backend)


@pytest.mark.parametrize("op", ["cross_entropy", "nll_loss"])
def test_an_ignore_index_that_32_bits_can_not_hold_is_refused(op: str, backend: str) -> None:
    with pytest.raises(ValueError, match=rf"{op}: ignore_index .* got 4294967296; .*such as -100"):
        loss_and_gradient(op, random(2, 3), np.array([2**32, 1]), backend, ignore_index=2**32)


def test_float_labels_are_an_error_in_both_losses(backend: str) -> None:
    for op in ("nll_loss", "cross_entropy"):
        with pytest.raises(TypeError, match=rf"{op}: labels must be integers .*float64"):
            loss_and_gradient(op, random(4, 3), np.array([0.0, 1, 2, 2]), backend)


@pytest.mark.parametrize("op", [*PAIRWISE, "half_squared_error"])
def test_shapes_that_differ_are_an_error_and_not_broadcast(op: str, backend: str) -> None:
    with pytest.raises(ValueError, match=rf"{op}: input \(4, 1\).*target \(4,\)"):
        loss_and_gradient(op, uniform(4, 1), uniform(4), backend)


@pytest.mark.parametrize("op", [*PAIRWISE, "half_squared_error"])
def test_integer_targets_are_an_error_that_says_how_to_convert(op: str, backend: str) -> None:
    with pytest.raises(TypeError, match=rf"{op}: target .*int64.*target\.float"):
        loss_and_gradient(op, uniform(4), np.array([0, 1, 1, 0]), backend)


@pytest.mark.parametrize("op", ["cross_entropy", "nll_loss", *PAIRWISE])
def test_unknown_reduction_is_an_error_that_lists_the_known(op: str, backend: str) -> None:
    target = np.array([0, 1]) if op in ("cross_entropy", "nll_loss") else uniform(2, 3)
    with pytest.raises(ValueError, match=rf"{op}: reduction .*'mean', 'sum', 'none', got 'average'"):
        loss_and_gradient(op, uniform(2, 3), target, backend, reduction="average")


def ones(*shape: int, dtype: str = "float64") -> Tensor:
    return gpucnn.tensor(np.ones(shape, dtype))


TWO_LABELS = np.array([0, 1])
WRONG: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("class-weights", lambda: F.cross_entropy(ones(2, 3), TWO_LABELS, ones(2)), ValueError, r"weight .*\(3,\).*\(2,\)"),
    ("nll-weights", lambda: F.nll_loss(ones(2, 3), TWO_LABELS, ones(2)), ValueError, r"weight .*\(3,\).*\(2,\)"),
    ("smoothing", lambda: F.cross_entropy(ones(2, 3), TWO_LABELS, label_smoothing=1.5), ValueError, r"smoothing.*1\.5"),
    ("scalar", lambda: F.cross_entropy(ones(), TWO_LABELS), ValueError, "single number"),
    ("dtypes", lambda: F.mse_loss(ones(2), ones(2, dtype="float32")), TypeError, "input float64, target float32"),
    ("probability", lambda: F.binary_cross_entropy(2 * ones(2), ones(2)), ValueError, r"0 to 1.*2\.0.*logits"),
    ("delta", lambda: F.huber_loss(ones(2), ones(2), delta=0), ValueError, r"delta must be positive, got 0\.0"),
    (
        "delta-nan",
        lambda: F.huber_loss(ones(2), ones(2), delta=math.nan),
        ValueError,
        "delta must be positive, got nan",
    ),
    (
        "no-samples",
        lambda: F.kl_div(ones(0, 3), ones(0, 3), "batchmean"),
        ValueError,
        r"kl_div: there is no sample .*\(0, 3\)",
    ),
    ("batchmean-elsewhere", lambda: F.mse_loss(ones(2), ones(2), "batchmean"), ValueError, "'none', got 'batchmean'"),
    ("beta", lambda: F.smooth_l1_loss(ones(2), ones(2), beta=-1.0), ValueError, r"beta.*-1\.0"),
    (
        "pos_weight",
        lambda: F.binary_cross_entropy_with_logits(ones(2, 3), ones(2, 3), pos_weight=ones(2)),
        ValueError,
        r"pos_weight.*\(2,\)",
    ),
    ("bce-weight", lambda: F.binary_cross_entropy(ones(2, 3), ones(2, 3), weight=ones(2)), ValueError, r"\(2,\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), [pytest.param(*rest, id=name) for name, *rest in WRONG])
def test_wrong_arguments_are_shown(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_class_probabilities_may_be_an_array(backend: str) -> None:
    logits = gpucnn.tensor(np.random.default_rng(0).standard_normal((4, 3)).astype("f"), backend=backend)
    p = np.random.default_rng(1).dirichlet(np.ones(3), 4)
    expected = F.cross_entropy(logits, gpucnn.tensor(p.astype("f"), backend=backend)).item()
    assert F.cross_entropy(logits, p).item() == F.cross_entropy(logits, p.astype("f")).item() == expected
    for labels in (np.zeros(4), gpucnn.tensor(np.zeros(4), backend=backend)):
        with pytest.raises(TypeError, match=r"labels must be integers of shape \(4,\), got float64 of shape \(4,\)"):
            F.cross_entropy(logits, labels)
