"""What is particular to kernels: the order of threads, offsets, corners, in-place updates, choices of the host.

What every op must hold to on every backend is tested in tests/functional, with the case table of gpucnn/testing.py;
`pytest --backend emulator tests/functional` runs it on the kernels. Here the table runs where the kernels are at fault
in ways of their own.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numerics import assert_within, unit_roundoff

import gpucnn
from gpucnn import nn
from gpucnn.backends import ACTIVATIONS, Backend
from gpucnn.backends.base import AdamSettings, RMSpropSettings, SGDSettings
from gpucnn.backends.kernel_backend import MOST_ELEMENTS, KernelBackend
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.backends.variants import Problem, Variant, usual
from gpucnn.devices.base import kernel_folder
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.dtypes import named
from gpucnn.geometry import Window
from gpucnn.live import Live
from gpucnn.tensor import Tensor
from gpucnn.testing import CASES, CONV2D, NOT_A_NUMBER, Case, evaluate, normal, uniform

Array = np.ndarray[Any, np.dtype[Any]]
REFERENCE = NumpyBackend()
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def random(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return normal(*shape, seed=seed).make(dtype)


def positive(*shape: int, seed: int = 0) -> Array:
    return uniform(*shape, low=0.5, high=2.0, seed=seed).make()


def computed(backend: Backend, primitive: str, *arguments: Any) -> list[Any]:
    """The results on the host, of arguments on the host."""
    found = getattr(backend, primitive)(*(backend.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments))
    return [None if a is None else backend.to_numpy(a) for a in (found if isinstance(found, tuple) else [found])]


def assert_same_bits(ours: list[Any], theirs: list[Any]) -> None:
    """Any NaN is like any other."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.signbit(a) & ~np.isnan(a), np.signbit(b) & ~np.isnan(b))


# --- the whole table --------------------------------------------------------------------------------------------------


@cache
def in_order(order: int) -> KernelBackend:
    """The emulator with threads and blocks forward, backward or shuffled."""
    return KernelBackend(EmulatorDevice(order=order))


@every_case
def test_any_order_of_the_threads_gives_equal_bits(case: Case, backend: str) -> None:
    if backend == "cuda":
        pytest.skip("a GPU has an order of its own; that two runs are equal is tested in tests/functional")
    forward, *others = (evaluate(case, in_order(order)).results for order in (0, 1, 7))
    for results in others:
        assert_same_bits(results, forward)


def off_the_boundary(xp: Any, a: Any) -> Any:
    """Dense in storage order, but one element behind a boundary of 16 bytes: no whole four can be read at once."""
    stored = a.transpose(0, 2, 3, 1) if a.ndim == 4 else a
    view = xp.empty(a.size + 1, a.dtype)[1:].reshape(stored.shape)
    view[...] = stored
    return view.transpose(0, 3, 1, 2) if a.ndim == 4 else view


@every_case
def test_offsets_of_the_arguments_change_no_bit(case: Case, kernels: KernelBackend) -> None:
    plain = evaluate(case, kernels)

    def odd(array: Array, requires_grad: bool = False) -> Tensor:
        return Tensor(off_the_boundary(kernels.xp, kernels.asarray(array)), kernels, requires_grad=requires_grad)

    leaves = {i: odd(plain.inputs[i], True) for i in case.differentiable}
    y = case.apply(kernels, [leaves.get(i, x) for i, x in enumerate(plain.inputs)], case.made_arguments("float32"))
    y.backward(odd(plain.cotangent))
    gradients = [leaf.grad.numpy() for leaf in leaves.values() if leaf.grad is not None]
    assert_same_bits([y.numpy(), *gradients], plain.results)


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_A_NUMBER], ids=str)
def test_double_kernels_agree_with_numpy(case: Case, kernels: KernelBackend) -> None:
    """Whose gradients agree with finite differences. Both round."""
    exact, ours = evaluate(case, "numpy", "float64"), evaluate(case, kernels, "float64")
    for result, expected, bound in zip(ours.results, exact.results, case.bounds(exact), strict=True):
        assert result.dtype == np.float64
        assert_within(result, expected, 2 * unit_roundoff("float64") * np.asarray(bound))


def test_matmul_takes_a_transposed_view_as_what_it_views() -> None:
    device = RecorderDevice()
    a = random(5, 3)
    KernelBackend(device).matmul(a.T, a)
    assert dict(device.launches[0].constants)["TRANS_A"] == 1


@pytest.mark.parametrize(("a", "b"), [((5, 3), (7, 5)), ((1, 3, 5, 7), (4, 1, 2, 5)), ((5, 70), (90, 5))])
def test_matmul_of_two_transposed_views_agrees_with_numpy(a: Any, b: Any, kernels: KernelBackend) -> None:
    left, right = kernels.asarray(random(*a)), kernels.asarray(random(*b, seed=1))
    for x, y, flags in (
        (left.swapaxes(-1, -2), right.swapaxes(-1, -2), (False, False)),
        (kernels.xp.array(left, order="C"), kernels.xp.array(right, order="C"), (True, True)),
    ):
        pair = [kernels.to_numpy(m).astype(np.float64) for m in (left.swapaxes(-1, -2), right.swapaxes(-1, -2))]
        bound = (a[-2] + 2) * unit_roundoff("float32") * (np.abs(pair[0]) @ np.abs(pair[1]))
        assert_within(kernels.to_numpy(kernels.matmul(x, y, *flags)), pair[0] @ pair[1], bound)


@pytest.mark.parametrize(("p", "seed", "offset"), [(0.3, 7, 0), (0.5, 2**63 + 5, 2**32 - 3), (0.0, 2**40, 2**64 - 1)])
def test_dropout_far_in_the_stream_has_numpys_bits(p: float, seed: int, offset: int, kernels: KernelBackend) -> None:
    x = random(1023)
    position = Live(lambda: (seed, offset))
    assert_same_bits(*(computed(engine, "dropout", x, p, position) for engine in (kernels, REFERENCE)))


# --- corners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("worst", [np.nan, np.inf, -np.inf])
def test_pools_with_nan_and_infinities_are_numpys(mode: str, worst: float, kernels: KernelBackend) -> None:
    x = np.round(random(2, 3, 7, 5))
    x[:, 1] = np.nan  # one channel only
    x[0, 0, 2:5, 1:4] = worst
    x[1, 2] = worst
    window = Window((3, 2), (2, 1), (1, 1, 1, 1))
    ours, theirs = (computed(engine, "max_pool2d_forward", x, window, mode, True) for engine in (kernels, REFERENCE))
    assert_same_bits(ours, theirs)
    assert np.isnan(ours[0][:, 1]).all()
    assert computed(kernels, "max_pool2d_forward", x, window, mode, False)[1] is None


def test_ties_go_to_the_first_in_row_major_order(kernels: KernelBackend) -> None:
    x = np.zeros((1, 1, 4, 6), np.float32)
    _, tap = computed(kernels, "max_pool2d_forward", x, Window((2, 3), (2, 3)), "max", True)
    np.testing.assert_array_equal(tap, 0)
    _, tap = computed(kernels, "max_pool2d_forward", x, Window((2, 3), (2, 3), (1, 1, 1, 1)), "max", True)
    np.testing.assert_array_equal(tap[0, 0], [[4, 3], [1, 0], [1, 0]])


@pytest.mark.parametrize("dilation", [(2, 3), (3, 2)])
@pytest.mark.parametrize("divisor", ["window", "real", 7])
def test_an_average_over_a_dilated_window_is_numpys(
    divisor: Any, dilation: tuple[int, int], kernels: KernelBackend
) -> None:
    """No op of ours dilates one, but a window may be; each share has four roundings, and at most six are summed."""
    x, window = random(2, 3, 9, 8), Window((3, 2), (2, 1), (1, 1, 2, 0), dilation)
    [y] = computed(kernels, "avg_pool2d_forward", x, window, divisor)
    bound = 10 * unit_roundoff("float32")
    exact = REFERENCE.avg_pool2d_forward(x.astype(np.float64), window, divisor)
    assert_within(y, exact, bound * REFERENCE.avg_pool2d_forward(np.abs(x).astype(np.float64), window, divisor))
    dy = random(*y.shape, seed=1)
    [dx] = computed(kernels, "avg_pool2d_backward", dy, window, divisor, (9, 8))
    exact = REFERENCE.avg_pool2d_backward(dy.astype(np.float64), window, divisor, (9, 8))
    sizes = REFERENCE.avg_pool2d_backward(np.abs(dy).astype(np.float64), window, divisor, (9, 8))
    assert_within(dx, exact, bound * sizes)


def test_a_window_of_more_than_256_taps_has_wider_numbers(kernels: KernelBackend) -> None:
    x = np.arange(19 * 17, dtype=np.float32).reshape(1, 1, 19, 17)
    y, tap = computed(kernels, "max_pool2d_forward", x, Window((19, 17)), "max", True)
    assert (y.item(), tap.item(), tap.dtype) == (19 * 17 - 1, 19 * 17 - 1, np.int32)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_keep_nan_and_stand_infinities(kind: str, kernels: KernelBackend) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30], np.float32)
    with np.errstate(all="ignore"):
        expected = REFERENCE.activation_forward(x.astype(np.float64), kind, 0.7)
    bound = 16 * unit_roundoff("float32") * np.maximum(np.abs(x), 1)
    assert_within(computed(kernels, "activation_forward", x, kind, 0.7)[0], expected, bound)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_and_slopes_at_corners_and_far_out_agree_with_numpy(kind: str, kernels: KernelBackend) -> None:
    x = np.array([0.0, -0.0, 6, -3, 3, 1e-30, -1e-30, 50, -50, 90, -90, 1e4, -1e4], np.float32)
    exact = REFERENCE.activation_forward(x.astype(np.float64), kind, 0.7)
    bound = 16 * unit_roundoff("float32") * np.maximum(np.abs(x), 1)
    assert_within(computed(kernels, "activation_forward", x, kind, 0.7)[0], exact, bound)
    saved, dy = exact.astype(np.float32) if ACTIVATIONS[kind] == "output" else x, random(*x.shape)
    slopes = REFERENCE.activation_backward(dy.astype(np.float64), saved.astype(np.float64), kind, 0.7)
    assert_within(computed(kernels, "activation_backward", dy, saved, kind, 0.7)[0], slopes, bound * np.abs(dy))


@pytest.mark.parametrize("kind", ["relu", "relu6"])
def test_relu_makes_zero_of_minus_zero_and_stops_an_infinite_gradient(kind: str, kernels: KernelBackend) -> None:
    [y] = computed(kernels, "activation_forward", np.array([-0.0, -1.0], np.float32), kind, 0.0)
    np.testing.assert_array_equal(np.signbit(y), False)
    [dx] = computed(kernels, "activation_backward", np.full(2, np.inf, np.float32), y, kind, 0.0)
    np.testing.assert_array_equal(dx, [0, 0])


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "sigmoid", "tanh"])
@pytest.mark.parametrize(
    ("x", "w", "groups"), [((2, 3, 7, 5), (4, 3, 3, 2), 1), ((2, 10, 5, 4), (6, 5, 2, 3), 2)], ids=["direct", "gemm"]
)
def test_conv2d_multiplies_its_sums_by_the_scale_adds_the_bias_and_activates(
    x: tuple[int, ...], w: tuple[int, ...], groups: int, activation: str | None, kernels: KernelBackend
) -> None:
    image, filters, window = random(*x), random(*w, seed=1), Window((w[2], w[3]), (2, 1), (1, 0, 0, 1))
    bias, scale = random(w[0], seed=2), random(w[0], seed=3)
    across = (slice(None), None, None)
    for b, factor in ((bias, scale), (None, scale), (bias, None)):
        ours = computed(kernels, "conv2d_forward", image, filters, b, window, groups, activation, factor)
        [y] = computed(kernels, "conv2d_forward", image, filters, None, window, groups)
        y = y if factor is None else y * factor[across]
        y = y if b is None else y + b[across]
        assert_same_bits(ours, [y] if activation is None else computed(kernels, "activation_forward", y, activation, 0))


@pytest.mark.parametrize("sizes", [(64, 16, 8, 4, 2), (64, 8, 8, 4, 2), (16, 64, 8, 2, 4), (8, 32, 16, 4, 1)])
def test_matmul_has_the_same_bits_by_every_tile(
    sizes: tuple[int, ...], kernels: KernelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = random(2, 70, 37), random(2, 37, 90, seed=1)
    expected = computed(kernels, "matmul", a, b)
    tile = dict(zip(("TILE_M", "TILE_N", "TILE_K", "THREAD_M", "THREAD_N"), sizes, strict=True))

    def choose(backend: KernelBackend, problem: Problem) -> Variant:
        blocks, threads = 2 * -(-70 // sizes[0]) * -(-90 // sizes[1]), sizes[0] // sizes[3] * (sizes[1] // sizes[4])
        return usual(problem)._replace(constants=tile, blocks=blocks, threads=threads)

    monkeypatch.setattr(KernelBackend, "choose", choose)
    assert_same_bits(computed(kernels, "matmul", a, b), expected)


def test_the_variance_of_batch_norm_survives_a_mean_a_thousand_times_the_deviation(kernels: KernelBackend) -> None:
    x = (4096 + np.tile([0.0, 1.0, 2.0, 3.0], 500)).reshape(2000, 1).astype(np.float32)
    mean, variance = computed(kernels, "batch_norm_statistics", x)
    assert mean.item() == 4097.5
    assert variance.item() == 1.25


@pytest.mark.parametrize("offset", [0, 1, 1e4, 1e6])
def test_batch_norm_statistics_are_exact_to_some_roundings_wherever_the_mean_lies(
    offset: float, kernels: KernelBackend
) -> None:
    """No error grows with mean / deviation but the mean's own last digit: numbers are counted from the first."""
    for shape in ((41, 40, 7, 13), (2000, 3), (9, 2), (15, 2)):
        x = random(*shape) + np.float32(offset)
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        exact_mean, exact = x.mean(axes, np.float64), x.var(axes, np.float64)
        mean, variance = computed(kernels, "batch_norm_statistics", x)
        # Eight rows by turns are added, then at most 64 of these moments, then 8 to 32 lanes, then at most 15 parts.
        assert_within(variance, exact, 2.0**-24 * 2 * (8 + 64 + 32 + 15) * exact)
        assert_within(mean, exact_mean, 2.0**-24 * (np.abs(exact_mean) + (8 + 64 + 32 + 15) * 4 * np.sqrt(exact)))


def test_a_first_number_far_from_all_others_costs_batch_norm_statistics_no_digits(kernels: KernelBackend) -> None:
    x = random(1000, 3)
    x[0] = 1e6
    mean, variance = computed(kernels, "batch_norm_statistics", x)
    exact_mean, exact = x.mean(0, np.float64), x.var(0, np.float64)
    assert_within(variance, exact, 2.0**-24 * 100 * exact)
    assert_within(mean, exact_mean, 2.0**-24 * np.sqrt(1000 * exact))


@pytest.mark.parametrize("offset", [0, 1e4])
def test_instance_norm_statistics_are_exact_to_some_roundings_wherever_the_mean_lies(
    offset: float, kernels: KernelBackend
) -> None:
    """Also of images in several parts, whose last one is short, and of fewer pixels than a thread takes at once."""
    for shape in ((3, 5, 41, 37), (2, 40, 61, 11), (2, 3, 1, 2)):
        x = random(*shape) + np.float32(offset)
        exact_mean, exact = x.mean((2, 3), np.float64), x.var((2, 3), np.float64)
        mean, variance = computed(kernels, "instance_norm_statistics", x)
        # Eight pixels by turns, some 48 of these moments a lane and part at most, then 32 lanes, then at most 6 parts.
        assert_within(variance, exact, 2.0**-24 * 2 * (8 + 48 + 32 + 6) * exact)
        assert_within(mean, exact_mean, 2.0**-24 * (np.abs(exact_mean) + (8 + 48 + 32 + 6) * 4 * np.sqrt(exact)))


def test_a_first_pixel_far_from_all_others_costs_instance_norm_statistics_no_digits(kernels: KernelBackend) -> None:
    x = random(2, 3, 40, 25)
    x[:, :, 0, 0] = 1e6
    mean, variance = computed(kernels, "instance_norm_statistics", x)
    exact_mean, exact = x.mean((2, 3), np.float64), x.var((2, 3), np.float64)
    assert_within(variance, exact, 2.0**-24 * 100 * exact)
    assert_within(mean, exact_mean, 2.0**-24 * np.sqrt(1000 * exact))


def test_instance_norm_of_an_empty_batch(kernels: KernelBackend) -> None:
    x, rows, c = np.zeros((0, 3, 4, 5), np.float32), np.ones((0, 3), np.float32), np.ones(3, np.float32)
    assert [a.shape for a in computed(kernels, "instance_norm_statistics", x)] == [(0, 3)] * 2
    assert computed(kernels, "instance_norm_forward", x, rows, rows, c, c)[0].shape == x.shape
    dx, dweight, dbias = computed(kernels, "instance_norm_backward", x, x, rows, rows, c)
    assert dx.shape == x.shape
    np.testing.assert_array_equal([dweight, dbias], 0)


@pytest.mark.parametrize(
    ("shape", "added", "activation"),
    [
        ((2, 5, 7, 3), True, "relu"),
        ((2, 5, 7, 3), False, "relu"),
        ((300, 9), True, None),
        ((300, 9), True, "sigmoid"),
        ((300, 9), False, "sigmoid"),
    ],
)
def test_batch_norm_with_what_follows_it_has_the_bits_of_one_after_another(
    shape: tuple[int, ...], added: bool, activation: str | None, kernels: KernelBackend
) -> None:
    c, training = shape[1], added  # both kinds of gradient, not each with each
    x, residual, dy = (random(*shape, seed=i) for i in range(3))
    mean, weight, bias = (random(c, seed=i) for i in range(3, 6))
    invstd = np.abs(random(c, seed=6)) + np.float32(0.5)
    x[0, 0], x[1, 0], residual[0], residual[1, 0] = np.nan, mean[0], 0, 0
    bias[0] = -0.0  # so that a zero comes before the activation, and is not let through
    [y] = computed(kernels, "batch_norm_forward", x, mean, invstd, weight, bias)
    y = y + residual if added else y
    [y] = [y] if activation is None else computed(kernels, "activation_forward", y, activation, 0.0)
    [dr] = [dy] if activation is None else computed(kernels, "activation_backward", dy, y, activation, 0.0)
    apart = computed(kernels, "batch_norm_backward", dr, x, mean, invstd, weight, training)
    follows = (residual if added else None, activation)
    assert_same_bits(computed(kernels, "batch_norm_forward", x, mean, invstd, weight, bias, *follows), [y])
    numbers = (dy, x, mean, invstd, weight, training, bias, y, activation, added)
    *ours, of_residual = computed(kernels, "batch_norm_backward", *numbers)
    assert_same_bits(ours, apart[:3])
    assert (of_residual is None) == (not added)
    assert_same_bits([of_residual] * added, [dr] * added)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("affine", [True, False])
def test_the_scale_and_shift_of_a_batch_norm_at_rest_have_numpys_bits(
    affine: bool, dtype: str, kernels: KernelBackend
) -> None:
    mean, variance, weight, bias = (random(300, seed=i).astype(named(dtype)) for i in range(4))
    variance = np.abs(variance)
    variance[:3], mean[3] = (0, np.inf, np.nan), np.inf
    given = (mean, variance, *((weight, bias) if affine else (None, None)), 1e-3)
    ours = computed(kernels, "batch_norm_affine", *given)
    assert [a.dtype for a in ours] == [named(dtype)] * 2
    wide = [[a.astype(np.float64) for a in pair] for pair in (ours, REFERENCE.batch_norm_affine(*given))]
    assert_same_bits(*wide)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_running_statistics_move_in_place_with_numpys_bits(dtype: str, kernels: KernelBackend) -> None:
    mean, variance, old_mean, old_var = (np.abs(random(300, seed=i)).astype(dtype) for i in range(4))
    moved = []
    for backend in (kernels, REFERENCE):
        running = [backend.asarray(old_mean.copy()), backend.asarray(old_var.copy())]
        invstd = backend.batch_norm_invstd(
            backend.asarray(mean), backend.asarray(variance), 1e-3, running, 0.1, 300 / 299
        )
        moved.append([backend.to_numpy(a) for a in (invstd, *running)])
    assert_same_bits(*moved)
    np.testing.assert_allclose(moved[0][1], 0.9 * old_mean + 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(moved[0][2], 0.9 * old_var + 0.1 * 300 / 299 * variance, rtol=1e-6)


def test_inference_launches_two_kernels_for_a_convolution_and_its_batch_norm() -> None:
    device = RecorderDevice()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(KernelBackend(device)).eval()
    images = gpucnn.tensor(np.ones((1, 3, 6, 5), np.float32), backend=model[0].weight.backend)
    device.launches.clear()
    with gpucnn.no_grad():
        model(images)
    assert [one.name for one in device.launches] == ["batch_norm_invstd", "conv2d_direct_forward"]


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_an_empty_batch(training: bool, kernels: KernelBackend) -> None:
    x, c = np.zeros((0, 3, 4, 5), np.float32), np.ones(3, np.float32)
    assert computed(kernels, "batch_norm_forward", x, c, c, c, c)[0].shape == x.shape
    dx, dweight, dbias, _ = computed(kernels, "batch_norm_backward", x, x, c, c, c, training)
    assert dx.shape == x.shape
    np.testing.assert_array_equal([dweight, dbias], 0)


@pytest.mark.parametrize(("a", "b"), [((0, 3), (3, 4)), ((2, 0), (0, 4)), ((2, 3), (3, 0)), ((0, 2, 3), (3, 4))])
def test_matmul_of_nothing_is_zeros(a: tuple[int, ...], b: tuple[int, ...], kernels: KernelBackend) -> None:
    [y] = computed(kernels, "matmul", np.ones(a, np.float32), np.ones(b, np.float32))
    np.testing.assert_array_equal(y, np.ones(a) @ np.ones(b))


def test_log_loss_of_logits_of_ten_thousand_agrees_with_numpy(kernels: KernelBackend) -> None:
    """A few roundings of numbers as large as the logits' range."""
    logits, labels = 1e4 * random(5, 33), np.array([32, -100, 0, 7, 7])
    exact = REFERENCE.softmax_cross_entropy_forward(logits.astype(np.float64), labels, None, 0.3, -100)
    loss, logsumexp = computed(kernels, "softmax_cross_entropy_forward", logits, labels, None, 0.3, -100)
    bound = (33 + 16) * unit_roundoff("float32") * np.ptp(logits, axis=1)
    assert_within(loss, exact[0], bound)
    assert_within(logsumexp, exact[1], bound)


def test_overlapping_shares_of_a_max_pool_are_summed_in_row_major_order(kernels: KernelBackend) -> None:
    a, b, c = np.float32(-0.00055786536540836), np.float32(0.00075417151674628), np.float32(-0.00029314149287529)
    assert (a + b) + c != b + (c + a)
    x = np.zeros((1, 1, 1, 5), np.float32)
    x[..., 2] = 1
    window = Window((1, 3))
    _, tap = computed(kernels, "max_pool2d_forward", x, window, "max", True)
    [dx] = computed(kernels, "max_pool2d_backward", np.array([a, b, c]).reshape(1, 1, 1, 3), tap, window, (1, 5))
    assert dx[0, 0, 0, 2] == (a + b) + c


# --- choices of the host ----------------------------------------------------------------------------------------------


SEVERAL = [case for case in CONV2D if case.inputs[0].shape[0] > 1 and {"groups", "dilation"} & {*case.arguments}]


@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_both_variants_of_a_convolution_agree(case: Case, kernels: KernelBackend, force: Any) -> None:
    """They sum the same terms in the same order; only the parts of the weight gradient differ."""
    found = []
    for family in ("gemm", "direct"):
        force(lambda variant, family=family: variant.family == family)
        found.append(evaluate(case, kernels).results)
    assert_same_bits(found[0][:2], found[1][:2])
    bound = 2 * unit_roundoff("float32") * np.asarray(case.bounds(evaluate(case, precision="float64"))[2])
    assert_within(found[0][2], found[1][2].astype(np.float64), bound)


def test_an_array_beyond_32_bits_is_refused_before_anything_starts() -> None:
    huge = np.broadcast_to(np.float32(0), (MOST_ELEMENTS // 6 + 1, 3, 2, 1))
    with pytest.raises(ValueError, match=re.escape(f"{huge.shape} has {huge.size} elements, more than")):
        KernelBackend(RecorderDevice()).activation_forward(huge, "relu", 0.0)


def test_a_result_beyond_32_bits_is_refused_before_it_is_allocated() -> None:
    a = np.broadcast_to(np.float32(0), (2**16, 1))
    with pytest.raises(ValueError, match=r"\(65536, 65536\) has 4294967296 elements.*use a smaller batch"):
        KernelBackend(RecorderDevice()).matmul(a, a, trans_b=True)


def test_each_kernel_is_named_once_and_each_primitive_launches_its_own() -> None:
    names = [
        name
        for file in sorted(kernel_folder().glob("*.cu"))
        for name in re.findall(
            r'extern "C" __global__ void(?: __launch_bounds__\([^)]*\))? (\w+)\(', file.read_text("utf-8")
        )
    ]
    assert len(names) == len(set(names))
    primitives = Backend.__abstractmethods__ - {"asarray", "to_numpy", "synchronize"}
    assert primitives <= set(names)


# --- optimisers -------------------------------------------------------------------------------------------------------

PARAMETER_SHAPES = [(3,), (7, 3, 3, 2), (1500,), (0, 4), (1, 1, 1, 1), (33, 65)]
UPDATES: list[tuple[str, list[bool], dict[str, Any]]] = [  # primitive, which states it has, settings
    ("sgd_update", [False], {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.1, "nesterov": False}),
    ("sgd_update", [False], {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.0, "nesterov": False}),
    ("sgd_update", [True], {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1, "nesterov": False}),
    ("sgd_update", [True], {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1, "nesterov": True}),
    (
        "adam_update",
        [True, True],
        {"step": 3, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1, "decoupled": False},
    ),
    (
        "adam_update",
        [True, True],
        {"step": 1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1, "decoupled": True},
    ),
    ("rmsprop_update", [True, False], {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.0}),
    ("rmsprop_update", [True, False], {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.0, "momentum": 0.5}),
    ("rmsprop_update", [True, True], {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.5}),
]


SETTINGS = {"sgd_update": SGDSettings, "adam_update": AdamSettings, "rmsprop_update": RMSpropSettings}


def live(name: str, **settings: Any) -> Live[Any]:
    return Live(lambda: SETTINGS[name](**settings))


Layout = Callable[[Any, Any], Any]


def dense(xp: Any, a: Any) -> Any:
    return a


def every_second(xp: Any, a: Any) -> Any:
    """A view, from an offset, of every second element of a larger array of NaN."""
    larger = xp.full([2 * length + 3 for length in a.shape], np.nan, a.dtype)
    view = larger[tuple(slice(1, 1 + 2 * length, 2) for length in a.shape)]
    view[...] = a
    return view


def started(seed: int, dtype: str) -> list[Array]:
    """Positive numbers of each shape, which float32 has: nothing cancels."""
    return [positive(*shape, seed=seed).astype(np.float32).astype(dtype) for shape in PARAMETER_SHAPES]


def updated(
    backend: Backend, name: str, states: list[bool], settings: dict[str, Any], dtype: str, layout: Layout = dense
) -> list[list[Any]]:
    """Parameters and states after one step, on the host."""

    def arrays(seed: int) -> list[Any]:
        return [layout(backend.xp, backend.asarray(a)) for a in started(seed, dtype)]

    parameters, gradients = arrays(0), arrays(1)
    state = [arrays(2 + i) if given else [None] * len(PARAMETER_SHAPES) for i, given in enumerate(states)]
    moments = getattr(backend, name)(parameters, gradients, *state, live(name, lr=1 / 8, **settings))
    if moments is not None:
        state[-1] = moments
    return [[None if a is None else backend.to_numpy(a) for a in table] for table in (parameters, *state)]


@pytest.mark.parametrize(("name", "states", "settings"), UPDATES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", [dense, every_second, off_the_boundary])
def test_an_optimiser_step_agrees_with_numpy(
    name: str, states: list[bool], settings: dict[str, Any], dtype: str, layout: Layout, kernels: KernelBackend
) -> None:
    """At most 32 roundings of a parameter, of its change and of a state; nothing cancels but in w − lr·g."""
    ours = updated(kernels, name, states, settings, dtype, layout)
    theirs = updated(REFERENCE, name, states, settings, "float64")
    for i, (table, expected) in enumerate(zip(ours, theirs, strict=True)):
        for y, exact, start in zip(table, expected, started(0, "float64"), strict=True):
            if exact is None:
                assert y is None
                continue
            size = np.abs(start) + np.abs(exact - start) if i == 0 else np.abs(exact)
            assert_within(y, exact, 32 * unit_roundoff(dtype) * size)


@pytest.mark.parametrize("order", [1, 7])
@pytest.mark.parametrize(("name", "states", "settings"), UPDATES)
def test_an_optimiser_step_gives_equal_bits_in_any_order(
    name: str, states: list[bool], settings: dict[str, Any], order: int, backend: str
) -> None:
    if backend == "cuda":
        pytest.skip("a GPU has an order of its own")
    first, again = (updated(in_order(n), name, states, settings, "float32") for n in (0, order))
    for ours, theirs in zip(again, first, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_without_weight_decay_an_infinite_parameter_stays_what_it_is(kernels: KernelBackend) -> None:
    for name, states, settings in UPDATES:
        parameters, gradients = ([kernels.asarray(np.array(a, np.float32))] for a in ([np.inf, 1], [1, 1]))
        state = [[kernels.asarray(np.ones(2, np.float32)) if given else None] for given in states]
        changed = live(name, lr=1 / 8, **(settings | {"weight_decay": 0.0}))
        getattr(kernels, name)(parameters, gradients, *state, changed)
        assert kernels.to_numpy(parameters[0])[0] == np.inf, name


def test_moments_that_begin_later_join_the_others(kernels: KernelBackend) -> None:
    settings = {"lr": 0.5, "momentum": 0.5, "dampening": 0.5, "weight_decay": 0.0, "nesterov": False}
    outcomes = []
    for backend in (kernels, REFERENCE):
        parameters, gradients, [moment] = (
            [backend.asarray(positive(length, seed=seed)) for length in lengths]
            for lengths, seed in (((3, 4), 0), ((3, 4), 1), ((3,), 2))
        )
        moments = backend.sgd_update(parameters, gradients, [moment, None], live("sgd_update", **settings))
        outcomes.append([backend.to_numpy(a) for a in (*parameters, *moments)])
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2.0**-50)


def test_an_optimiser_step_is_one_launch_for_all_parameters() -> None:
    device = RecorderDevice()
    updated(KernelBackend(device), *UPDATES[4], "float32")
    assert [launch.name for launch in device.launches if launch.file == "optimizer.cu"] == ["adam_update"]
