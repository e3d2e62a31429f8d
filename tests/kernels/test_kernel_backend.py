"""Every primitive as CUDA kernels, on the emulator, against the NumPy backend. The emulator watches each access."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numerics import assert_within, check_gradients, unit_roundoff

from gpucnn import functional as F
from gpucnn.backends import ACTIVATIONS, Backend, kernel_backend
from gpucnn.backends.kernel_backend import MOST_ELEMENTS, KernelBackend, conv2d_variant
from gpucnn.devices.base import kernel_folder
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.geometry import Window
from kernels.cases import ALL, CONV, REFERENCE, Array, Case, positive, random

every_case = pytest.mark.parametrize("case", ALL, ids=str)
PARAMETER_SHAPES = [(3,), (7, 3, 3, 2), (1500,), (0, 4), (1, 1, 1, 1), (33, 65)]


@cache
def kernels(order: int = 0) -> KernelBackend:
    return KernelBackend(EmulatorDevice(order=order))


def results(backend: Backend, case: Case, arguments: tuple[Any, ...]) -> list[Array]:
    found = getattr(backend, case.primitive)(*arguments)
    return list(found) if isinstance(found, tuple) else [found]


def assert_same_bits(ours: list[Array], theirs: list[Array]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.signbit(a), np.signbit(b))


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_agrees_with_numpy(case: Case, dtype: str) -> None:
    arguments = case.converted(dtype)
    ours = results(kernels(), case, arguments)
    if case.bound is None:
        assert_same_bits(ours, results(REFERENCE, case, arguments))
        return
    rounded = tuple(a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == dtype else a for a in arguments)
    expected = results(REFERENCE, case, rounded)
    for y, exact, bound in zip(ours, expected, case.bound(rounded, expected), strict=True):
        assert y.dtype == dtype
        assert_within(y, exact, unit_roundoff(dtype) * np.asarray(bound))


@every_case
def test_two_runs_and_any_order_of_the_threads_give_equal_bits(case: Case) -> None:
    arguments = case.converted("float32")
    first = results(kernels(), case, arguments)
    for order in (0, 1, 7):  # forward, backward, shuffled
        assert_same_bits(results(kernels(order), case, arguments), first)


def in_rows(a: Array) -> Array:
    return np.array(a, order="C")


def every_second(a: Array) -> Array:
    """A view, from an offset, of every second element of a larger array of NaN or ones."""
    larger = np.full([2 * length + 3 for length in a.shape], np.nan if a.dtype.kind == "f" else 1, a.dtype)
    view = larger[tuple(slice(1, 1 + 2 * length, 2) for length in a.shape)]
    view[...] = a
    return view


def off_the_boundary(a: Array) -> Array:
    """Dense in storage order, but one element behind a boundary of 16 bytes: no whole four can be read at once."""
    stored = a.transpose(0, 2, 3, 1) if a.ndim == 4 else a
    memory = np.empty(a.size + 16, a.dtype)
    start = (-memory.ctypes.data // a.itemsize) % (16 // a.itemsize) + 1
    view = memory[start : start + a.size].reshape(stored.shape)
    view[...] = stored
    return view.transpose(0, 3, 1, 2) if a.ndim == 4 else view


@every_case
@pytest.mark.parametrize("layout", [in_rows, every_second, off_the_boundary])
def test_strides_and_offsets_of_the_arguments_change_no_bit(case: Case, layout: Callable[[Array], Array]) -> None:
    arguments = case.converted("float32")
    odd = tuple(
        layout(a) if isinstance(a, np.ndarray) and not (case.primitive == "index_backward" and i == 1) else a
        for i, a in enumerate(arguments)
    )
    assert_same_bits(results(kernels(), case, odd), results(kernels(), case, arguments))


@every_case
def test_an_empty_batch_launches_nothing_wrong(case: Case) -> None:
    if case.primitive in ("matmul", "index_backward", "batch_norm_forward", "batch_norm_backward"):
        pytest.skip("the batch is not simply the first axis")
    arguments = tuple(
        a[:0] if isinstance(a, np.ndarray) and not is_per_channel(case, i) else a
        for i, a in enumerate(case.converted("float32"))
    )
    assert_same_bits(results(kernels(), case, arguments), results(REFERENCE, case, arguments))


def is_per_channel(case: Case, position: int) -> bool:
    """Whether an argument is filters or class weights, without a batch axis."""
    return (case.primitive in ("conv2d_forward", "conv2d_backward_input") and position in (1, 2)) or (
        case.primitive.startswith("softmax") and position == len(case.arguments) - 3
    )


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_an_empty_batch(training: bool) -> None:
    x, c = np.zeros((0, 3, 4, 5), np.float32), np.ones(3, np.float32)
    assert kernels().batch_norm_forward(x, c, c, c, c).shape == x.shape
    dx, dweight, dbias = kernels().batch_norm_backward(x, x, c, c, c, training)
    assert dx.shape == x.shape
    np.testing.assert_array_equal([dweight, dbias], 0)


@pytest.mark.parametrize(("a", "b"), [((0, 3), (3, 4)), ((2, 0), (0, 4)), ((2, 3), (3, 0)), ((0, 2, 3), (3, 4))])
def test_matmul_of_nothing_is_zeros(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    y = kernels().matmul(np.ones(a, np.float32), np.ones(b, np.float32))
    np.testing.assert_array_equal(y, np.ones(a) @ np.ones(b))


def test_matmul_takes_a_transposed_view_as_what_it_views() -> None:
    device = RecorderDevice()
    a = random(5, 3).astype(np.float32)
    KernelBackend(device).matmul(a.T, a)
    assert dict(device.launches[0].constants)["TRANS_A"] == 1


# --- corners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("worst", [np.nan, np.inf, -np.inf])
def test_pools_with_nan_and_infinities_are_numpys(mode: Any, worst: float) -> None:
    x = np.round(random(2, 3, 7, 5)).astype(np.float32)
    x[:, 1] = np.nan  # one channel only
    x[0, 0, 2:5, 1:4] = worst
    x[1, 2] = worst
    window = Window((3, 2), (2, 1), (1, 1, 1, 1))
    y, tap = kernels().max_pool2d_forward(x, window, mode, True)
    assert_same_bits([y, tap], list(REFERENCE.max_pool2d_forward(x, window, mode, True)))
    assert np.isnan(y[:, 1]).all()
    assert kernels().max_pool2d_forward(x, window, mode, False)[1] is None


def test_ties_go_to_the_first_in_row_major_order() -> None:
    x = np.zeros((1, 1, 4, 6), np.float32)
    _, tap = kernels().max_pool2d_forward(x, Window((2, 3), (2, 3)), "max", True)
    np.testing.assert_array_equal(tap, 0)
    _, tap = kernels().max_pool2d_forward(x, Window((2, 3), (2, 3), (1, 1, 1, 1)), "max", True)
    np.testing.assert_array_equal(tap[0, 0], [[4, 3], [1, 0], [1, 0]])


def test_a_window_of_more_than_256_taps_has_wider_numbers() -> None:
    x = np.arange(19 * 17, dtype=np.float32).reshape(1, 1, 19, 17)
    y, tap = kernels().max_pool2d_forward(x, Window((19, 17)), "max", True)
    assert (y.item(), tap.item(), tap.dtype) == (19 * 17 - 1, 19 * 17 - 1, np.int32)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_keep_nan_and_stand_infinities(kind: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30], np.float32)
    with np.errstate(all="ignore"):
        expected = REFERENCE.activation_forward(x.astype(np.float64), kind, 0.7)
    assert_within(
        kernels().activation_forward(x, kind, 0.7), expected, 16 * unit_roundoff("float32") * np.maximum(np.abs(x), 1)
    )


def test_relu_makes_zero_of_minus_zero_and_stops_an_infinite_gradient() -> None:
    y = kernels().activation_forward(np.array([-0.0, -1.0], np.float32), "relu", 0.0)
    np.testing.assert_array_equal(np.signbit(y), False)
    dx = kernels().activation_backward(np.full(2, np.inf, np.float32), y, "relu", 0.0)
    np.testing.assert_array_equal(dx, [0, 0])


def test_the_variance_survives_a_mean_a_thousand_times_the_deviation() -> None:
    x = (4096 + np.tile([0.0, 1.0, 2.0, 3.0], 500)).reshape(2000, 1).astype(np.float32)
    mean, variance = kernels().batch_norm_statistics(x)
    assert mean.item() == 4097.5
    assert variance.item() == 1.25


def test_overlapping_shares_of_a_max_pool_are_summed_in_row_major_order() -> None:
    a, b, c = np.float32(-0.00055786536540836), np.float32(0.00075417151674628), np.float32(-0.00029314149287529)
    assert (a + b) + c != b + (c + a)
    x = np.zeros((1, 1, 1, 5), np.float32)
    x[..., 2] = 1
    window = Window((1, 3))
    _, tap = kernels().max_pool2d_forward(x, window, "max", True)
    dx = kernels().max_pool2d_backward(np.array([a, b, c]).reshape(1, 1, 1, 3), tap, window, (1, 5))
    assert dx[0, 0, 0, 2] == (a + b) + c


# --- choices of the host ----------------------------------------------------------------------------------------------


def test_few_input_channels_are_convolved_directly() -> None:
    names = ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight")
    assert [conv2d_variant(name, 3, 64) for name in names] == ["direct", "direct", "gemm"]
    assert [conv2d_variant(name, 1, 1) for name in names] == ["direct"] * 3
    assert [conv2d_variant(name, 5, 1) for name in names] == ["gemm"] * 3


@pytest.mark.parametrize("case", [case for case in CONV if case.arguments[0].shape[0] > 1], ids=str)
def test_both_variants_of_a_convolution_agree(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """They sum the same terms in the same order; only the parts of the weight gradient differ."""
    arguments = case.converted("float32")
    found = []
    for variant in ("gemm", "direct"):
        monkeypatch.setattr(kernel_backend, "conv2d_variant", lambda *_, variant=variant: variant)
        found.append(results(kernels(), case, arguments))
    if case.primitive == "conv2d_backward_weight":
        assert case.bound is not None
        exact = [a.astype(np.float64) for a in found[0]]
        bound = case.bound(case.converted("float64"), exact)
        assert_within(found[1][0], exact[0], unit_roundoff("float32") * np.asarray(bound[0]))
    else:
        assert_same_bits(*found)


def test_an_array_beyond_32_bits_is_refused_before_anything_starts() -> None:
    huge = np.broadcast_to(np.float32(0), (MOST_ELEMENTS // 6 + 1, 3, 2, 1))
    with pytest.raises(ValueError, match=re.escape(f"{huge.shape} has {huge.size} elements, more than")):
        kernels().activation_forward(huge, "relu", 0.0)


def test_a_result_beyond_32_bits_is_refused_before_it_is_allocated() -> None:
    a = np.broadcast_to(np.float32(0), (2**16, 1))
    with pytest.raises(ValueError, match=r"\(65536, 65536\) has 4294967296 elements.*use a smaller batch"):
        kernels().matmul(a, a, trans_b=True)


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


# --- gradients in double, by the kernels alone ------------------------------------------------------------------------

GRADIENTS: dict[str, tuple[Callable[..., Any], list[Array]]] = {
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=(1, 2), groups=2),
        [random(2, 10, 7, 5), random(4, 5, 3, 2, seed=1), random(4, seed=2)],
    ),
    "conv2d_direct": (
        lambda x, w, b: F.conv2d(x, w, b, stride=(1, 2), dilation=(2, 1), groups=3),
        [random(2, 3, 7, 5), random(6, 1, 2, 3, seed=1), random(6, seed=2)],
    ),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), [random(2, 3, 7, 5)]),
    "avg_pool2d": (
        lambda x: F.avg_pool2d(x, (3, 2), 2, 1, ceil_mode=True, count_include_pad=False),
        [random(2, 3, 7, 6)],
    ),
    "batch_norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        [random(3, 4, 5, 2), random(4, seed=1), random(4, seed=2)],
    ),
    "matmul": (lambda a, b: F.matmul(a, b), [random(2, 1, 5, 3), random(4, 3, 2, seed=1)]),
    "cross_entropy": (lambda x: F.cross_entropy(x, np.array([0, 4, 2]), label_smoothing=0.1), [random(3, 5)]),
    "index": (lambda x: x[np.array([0, 2, 2]), 1:], [random(3, 4)]),
    "gelu_tanh": (lambda x: F.gelu(x, "tanh"), [random(4, 5) * 2]),
    **{kind: (getattr(F, kind), [random(4, 5) * 2]) for kind in ACTIVATIONS if kind != "gelu_tanh"},
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    function, arrays = GRADIENTS[name]
    check_gradients(function, arrays, kernels(), most=8)  # type: ignore[arg-type]


# --- optimisers -------------------------------------------------------------------------------------------------------

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


def updated(
    backend: Backend,
    name: str,
    states: list[bool],
    settings: dict[str, Any],
    dtype: str,
    layout: Callable[[Array], Array],
) -> tuple[list[list[Array | None]], list[list[Array | None]]]:
    """Parameters and states after one step (from positive numbers: nothing cancels), and before."""

    def arrays(seed: int) -> list[Array | None]:
        return [
            layout(REFERENCE.asarray(positive(*s, seed=seed).astype("float32").astype(dtype))) for s in PARAMETER_SHAPES
        ]

    before = [
        arrays(0),
        *(arrays(2 + i) if given else [None] * len(PARAMETER_SHAPES) for i, given in enumerate(states)),
    ]
    parameters, *state = [list(table) for table in before]
    moments = getattr(backend, name)(parameters, arrays(1), *state, lr=1 / 8, **settings)
    if moments is not None:
        state[-1] = moments
    return [parameters, *state], [arrays(0), *state]


@pytest.mark.parametrize(("name", "states", "settings"), UPDATES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", [lambda a: a, every_second, off_the_boundary], ids=["dense", "second", "offset"])
def test_an_optimiser_step_agrees_with_numpy(
    name: str, states: list[bool], settings: dict[str, Any], dtype: str, layout: Callable[[Array], Array]
) -> None:
    """At most 32 roundings of a parameter, of its change and of a state; nothing cancels but in w − lr·g."""
    ours, _ = updated(kernels(), name, states, settings, dtype, layout)
    theirs, before = updated(REFERENCE, name, states, settings, "float64", lambda a: a)
    for i, (table, expected) in enumerate(zip(ours, theirs, strict=True)):
        for y, exact, start in zip(table, expected, before[0], strict=True):
            if exact is None:
                assert y is None
                continue
            assert y is not None
            assert start is not None
            size = np.abs(start) + np.abs(exact - start) if i == 0 else np.abs(exact)
            assert_within(y, exact, 32 * unit_roundoff(dtype) * size)


@pytest.mark.parametrize("order", [1, 7])
@pytest.mark.parametrize(("name", "states", "settings"), UPDATES)
def test_an_optimiser_step_gives_equal_bits_in_any_order(
    name: str, states: list[bool], settings: dict[str, Any], order: int
) -> None:
    first, _ = updated(kernels(), name, states, settings, "float32", lambda a: a)
    again, _ = updated(kernels(order), name, states, settings, "float32", lambda a: a)
    for ours, theirs in zip(again, first, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_moments_that_begin_later_join_the_others() -> None:
    settings = {"lr": 0.5, "momentum": 0.5, "dampening": 0.5, "weight_decay": 0.0, "nesterov": False}
    outcomes = []
    for backend in (kernels(), REFERENCE):
        parameters, gradients = [positive(3), positive(4)], [positive(3, seed=1), positive(4, seed=1)]
        moments = backend.sgd_update(parameters, gradients, [positive(3, seed=2), None], **settings)
        outcomes.append([*parameters, *moments])
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2.0**-50)


def test_an_optimiser_step_is_one_launch_for_all_parameters() -> None:
    device = RecorderDevice()
    updated(KernelBackend(device), "adam_update", *UPDATES[4][1:], "float32", lambda a: a)
    assert [launch.name for launch in device.launches] == ["adam_update"]
