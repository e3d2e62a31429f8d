"""A convolution that pools along: what comes out, and which taps, as of the two kernels by themselves, to the bit."""

import numpy as np
import pytest
from numerics import assert_within

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim
from gpucnn.backends.base import NO_TAP
from gpucnn.backends.kernel_backend import KernelBackend, _filters_at_once
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.dtypes import unit_roundoff
from gpucnn.geometry import Window

# Of x and w, groups, the convolution's window and the pooling's: tiled; overlapping and beyond the plane; with gaps.
GEOMETRIES = {
    "tiled": ((2, 1, 12, 10), (6, 1, 5, 5), 1, Window((5, 5), padding=(2, 2, 2, 2)), Window((2, 2), (2, 2))),
    "overlapping": (
        (1, 3, 9, 11), (5, 3, 3, 2), 1, Window((3, 2), (1, 2), (1, 0, 0, 1)),
        Window((3, 3), (2, 2), (1, 1, 1, 1), ceil_mode=True),
    ),
    "dilated": (
        (1, 4, 9, 16), (6, 2, 2, 3), 2, Window((2, 3), dilation=(2, 1)), Window((2, 5), (1, 3), (1, 0, 2, 0), (3, 2)),
    ),
    "wide": ((1, 2, 6, 19), (4, 2, 1, 6), 1, Window((1, 6)), Window((2, 2), (2, 2))),
}  # fmt: skip


def storage_bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_results_and_taps_are_those_of_the_kernels_by_themselves(
    geometry: str, activation: str | None, kernels: KernelBackend
) -> None:
    x_shape, w_shape, groups, window, pool = GEOMETRIES[geometry]
    rng = np.random.default_rng(3)
    x = rng.integers(-2, 3, x_shape).astype(np.float32)  # whole numbers, so that windows have ties
    x.reshape(-1)[[5, 40, 77, 90]] = np.nan, np.inf, -np.inf, -0.0
    x, w, b = (
        kernels.asarray(a) for a in (x, rng.integers(-1, 3, w_shape).astype(np.float32), np.float32(w_shape[0] * [0.5]))
    )
    sums = kernels.conv2d_forward(x, w, b, window, groups)
    expected, expected_tap = kernels.max_pool2d_forward(sums, pool, "max", True)
    if activation:
        expected = kernels.activation_forward(expected, activation, 0.0)
    y, tap = kernels.conv2d_max_pool2d_forward(x, w, b, window, groups, pool, activation, True)
    np.testing.assert_array_equal(kernels.to_numpy(y), kernels.to_numpy(expected))
    taps = kernels.to_numpy(expected_tap)
    if activation:
        taps = np.where(kernels.to_numpy(expected) > 0, taps, NO_TAP)
    np.testing.assert_array_equal(kernels.to_numpy(tap), taps)
    assert kernels.conv2d_max_pool2d_forward(x, w, b, window, groups, pool, activation, False)[1] is None
    theirs = NumpyBackend().conv2d_max_pool2d_forward(
        *(kernels.to_numpy(a) for a in (x, w, b)), window, groups, pool, activation, True
    )
    np.testing.assert_array_equal(kernels.to_numpy(tap), theirs[1])


def test_where_all_is_as_small_as_can_be_the_first_in_the_plane_has_won(kernels: KernelBackend) -> None:
    x, w = np.full((1, 1, 4, 5), -np.inf, np.float32), np.ones((1, 1, 1, 1), np.float32)
    pool = Window((3, 3), (2, 2), (1, 1, 1, 1))
    _, tap = kernels.conv2d_max_pool2d_forward(
        kernels.asarray(x), kernels.asarray(w), None, Window((1, 1)), 1, pool, None, True
    )
    assert kernels.to_numpy(tap)[0, 0].tolist() == [[4, 3, 3], [1, 0, 0]]


def test_no_gradient_comes_back_through_what_relu_stopped(kernels: KernelBackend) -> None:
    """Exactly none, even where dy is infinite."""
    x_shape, w_shape, groups, window, pool = GEOMETRIES["overlapping"]
    rng = np.random.default_rng(4)
    x, w = (kernels.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in (x_shape, w_shape))
    y, tap = kernels.conv2d_max_pool2d_forward(x, w, None, window, groups, pool, "relu", True)
    stopped = kernels.to_numpy(y) == 0
    assert 0 < stopped.sum() < stopped.size
    dy = kernels.asarray(np.where(stopped, np.inf, 0).astype(np.float32))
    for gradient in kernels.conv2d_max_pool2d_backward(dy, tap, x, w, window, groups, pool, (True, True, True)):
        assert not kernels.to_numpy(gradient).any()


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    recorder = RecorderDevice()
    backend = KernelBackend(recorder)
    x_shape, w_shape, groups, window, pool = GEOMETRIES["tiled"]
    x, w = np.zeros(x_shape, np.float32), np.zeros(w_shape, np.float32)
    y, tap = backend.conv2d_max_pool2d_forward(x, w, None, window, groups, pool, "relu", True)
    for needed, launched in {
        (False, False, False): set(),
        (True, False, False): {"conv2d_max_pool2d_backward_input"},
        (False, True, False): {"conv2d_max_pool2d_backward", "sum_parts"},
        (False, False, True): {"conv2d_max_pool2d_backward", "sum_parts"},
    }.items():
        recorder.launches.clear()
        found = backend.conv2d_max_pool2d_backward(y, tap, x, w, window, groups, pool, needed)
        assert tuple(a is not None for a in found) == needed
        assert {launch.name for launch in recorder.launches if launch.file != "convert.cu"} == launched


def test_filters_are_shared_out_evenly_and_fit_shared_memory() -> None:
    assert [_filters_at_once(filters, 25) for filters in (1, 6, 8, 9, 17, 64)] == [1, 6, 8, 5, 6, 8]
    assert [_filters_at_once(64, depth) for depth in (767, 768, 4096)] == [8, 7, 1]
    assert all(8 * (depth + 1) * _filters_at_once(64, depth) <= 48 << 10 for depth in range(1, 4097))  # and a bias each


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_autocast_pools_what_is_rounded(half: str, kernels: KernelBackend) -> None:
    """Elements that are one in the half type are a tie, as they are where the convolution's plane is written."""
    x_shape, w_shape, *_ = GEOMETRIES["tiled"]
    rng = np.random.default_rng(5)
    x, w = (gpucnn.tensor(rng.standard_normal(s).astype(np.float32), backend=kernels) for s in (x_shape, w_shape))
    gradients = []
    for along in (True, False):
        leaf = w.detach()
        leaf.requires_grad = True
        with gpucnn.autocast(half):
            if along:
                y = F.conv2d_max_pool2d(x, leaf, padding=2, activation="relu", max_pool={"kernel_size": 2})
            else:
                y = F.relu(F.max_pool2d(F.conv2d(x, leaf, padding=2), 2))
        y.backward(gpucnn.ones(*y.shape, backend=kernels).to(y.dtype))
        assert y.dtype.name == half
        gradients.append((y.numpy(), leaf.grad.numpy()))
    (ours, our_dw), (theirs, their_dw) = gradients
    np.testing.assert_array_equal(ours.astype(np.float32), theirs.astype(np.float32))
    bound = 2 * unit_roundoff(half) * np.abs(their_dw) + 2.0**-24 * 60 * 60 * np.abs(x.numpy()).max()
    assert_within(our_dw, their_dw.astype(np.float64), bound)


def test_a_compiled_step_of_a_stem_changes_the_weights_as_the_step_itself_does(backend: str) -> None:
    engine = gpucnn.get_backend("emulator" if backend == "numpy" else backend)
    rng = np.random.default_rng(6)
    images = [gpucnn.tensor(rng.standard_normal((2, 1, 12, 10)).astype(np.float32), backend=engine) for _ in range(4)]
    found = []
    for compiled in (False, True):
        gpucnn.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)).to(engine)
        optimizer = optim.SGD(model.parameters(), lr=0.01)

        def step(x: gpucnn.Tensor, model: nn.Module = model, optimizer: optim.SGD = optimizer) -> gpucnn.Tensor:
            optimizer.zero_grad()
            y = model(x)
            loss = (y * y).sum()
            loss.backward()
            optimizer.step()
            return loss

        run = gpucnn.compile(step) if compiled else step
        losses = [float(run(x).item()) for x in images]
        assert not compiled or (run.reason is None and len(run.report()) == 1)
        found.append((losses, [storage_bits(p.numpy()) for p in model.parameters()]))
    assert found[0] == found[1]
