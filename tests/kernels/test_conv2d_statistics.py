"""The statistics of a batch norm, summed up by the convolution before it as it stores its results (moments.cuh)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import nn
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import preferring
from gpucnn.devices import KernelError
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.geometry import Window
from gpucnn.testing import HOPPER, normal

Array = np.ndarray[Any, Any]
WINDOW = Window.of((3, 2), 1, 1, 1)


def operands(channels: int, filters: int, groups: int = 1, n: int = 1, offset: float = 0.0) -> tuple[Array, ...]:
    """x [n, C, 9, 13], w [K, C/groups, 3, 2] and b [K] of that mean."""
    w = normal(filters, channels // groups, 3, 2, seed=1)
    return normal(n, channels, 9, 13).make(), w.make(), normal(filters, seed=2, offset=offset).make()


def assert_statistics(backend: KernelBackend, given: tuple[Array, ...], dtype: str, groups: int = 1) -> None:
    """Those of what the convolution has stored, and that this is what it stores without them."""
    x, w, b = (backend.asarray(array, gpucnn.dtypes.named(dtype)) for array in given)
    y, mean, variance = backend.conv2d_statistics(x, w, b, WINDOW, groups)
    plain = backend.conv2d_forward(x, w, b, WINDOW, groups)
    np.testing.assert_array_equal(backend.to_numpy(y), backend.to_numpy(plain))
    stored = backend.to_numpy(y).astype(np.float64)
    exact_mean, exact = stored.mean((0, 2, 3)), stored.var((0, 2, 3))
    u = 2.0**-53 if dtype == "float64" else 2.0**-24
    # Eight rows are added, 16 such moments at most, then those of the parts by lanes, and 32 lanes.
    roundings = 2 * (8 + 16 + stored[:, 0].size // 16 // 32 + 1 + 32)
    deviation = np.sqrt(exact)
    np.testing.assert_array_less(np.abs(backend.to_numpy(variance) - exact), u * roundings * exact)
    np.testing.assert_array_less(
        np.abs(backend.to_numpy(mean) - exact_mean), u * (np.abs(exact_mean) + roundings * 4 * deviation)
    )


def emulated(capability: tuple[int, int] | None = None, family: str | None = None) -> KernelBackend:
    return KernelBackend(EmulatorDevice(capability=capability), None if family is None else preferring(family))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("channels", "filters", "groups"), [(36, 44, 1), (36, 132, 1), (72, 80, 2)])
def test_by_multiply_adds_they_are_those_of_what_is_stored(
    channels: int, filters: int, groups: int, dtype: str, kernels: KernelBackend
) -> None:
    assert_statistics(kernels, operands(channels, filters, groups), dtype, groups)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("family", ["fma", "mma"])
def test_every_tile_has_them(family: str, large: bool, force: Any) -> None:
    force(lambda variant: variant.family == family and (variant.constants["TILE_M"] == 128) is large)
    assert_statistics(emulated(HOPPER), operands(36, 132, n=2), "float32")


@pytest.mark.parametrize(("tile", "filters"), [("mma 128x16", 12), ("mma 128x32", 28)])
def test_every_narrow_tile_has_them(tile: str, filters: int, force: Any) -> None:
    force(lambda variant: str(variant).startswith(tile))
    assert_statistics(emulated(HOPPER), operands(36, filters, n=2), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_tensor_cores_they_are_those_of_what_is_stored(dtype: str) -> None:
    assert_statistics(emulated(HOPPER), operands(40, 72, 1), dtype)
    assert_statistics(emulated(HOPPER), operands(48, 80, 2), dtype, 2)


@pytest.mark.parametrize("tile", ["128x64", "128x128", "128x256", "256x64", "256x128"])
def test_tiles_for_hopper_have_them(tile: str, force: Any) -> None:
    """Of two images, the second of which begins within a part; of float by TF32 in tiles that are not filled."""
    force(lambda variant: str(variant) == f"wgmma {tile}")
    backend = emulated(HOPPER)
    assert_statistics(backend, operands(16, 136, n=2), "float16")
    with gpucnn.precision("tf32"):
        assert_statistics(backend, operands(12, 20, offset=1e4), "float32")
        assert_statistics_of_few(backend, 3)


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_in_another_precision_they_are_those_of_what_is_stored(precision: str) -> None:
    with gpucnn.precision(precision):
        assert_statistics(emulated(HOPPER), operands(40, 72), "float32")


@pytest.mark.parametrize("offset", [1e4, -1e6])
@pytest.mark.parametrize("family", ["fma", "mma"])
def test_a_mean_far_larger_than_the_deviation_costs_no_digits(offset: float, family: str) -> None:
    assert_statistics(emulated(HOPPER, family), operands(36, 44, offset=offset), "float32")


def assert_statistics_of_few(backend: KernelBackend, pixels: int) -> None:
    x, w = normal(pixels, 36, 1, 1).make("float32"), normal(44, 36, 1, 1, seed=1).make("float32")
    y, mean, variance = backend.conv2d_statistics(
        backend.asarray(x), backend.asarray(w), None, Window.of((1, 1), 1, 0), 1
    )
    stored = backend.to_numpy(y).astype(np.float64)
    np.testing.assert_allclose(backend.to_numpy(mean), stored.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(backend.to_numpy(variance), stored.var((0, 2, 3)), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("pixels", [1, 2, 3])
@pytest.mark.parametrize("family", ["fma", "mma"])
def test_fewer_pixels_than_a_part_has_are_all_of_it(family: str, pixels: int) -> None:
    assert_statistics_of_few(emulated(HOPPER, family), pixels)


def test_many_parts_are_combined_in_two_steps(kernels: KernelBackend) -> None:
    """Each step is as sound as one: the mean is 10⁴ deviations."""
    rows, length = 2**15 + 5, 16
    x = (normal(rows, 3).make() + 1e4).astype(np.float32)
    firsts = x[::length]
    parts = np.split(x.astype(np.float64), range(length, rows, length))
    means = np.array([part.mean(0) - first for part, first in zip(parts, firsts, strict=True)])
    squares = np.array([((part - part.mean(0)) ** 2).sum(0) for part in parts])
    given = (kernels.asarray(array.astype(np.float32)) for array in (x, means, squares))
    mean, variance = map(kernels.to_numpy, kernels._statistics_of_parts(*given, length))
    np.testing.assert_allclose(mean, x.mean(0, np.float64), rtol=2.0**-23)
    np.testing.assert_allclose(variance, x.var(0, np.float64), rtol=100 * 2.0**-24)


@pytest.mark.parametrize(("family", "kernel", "reads"), [
    ("fma", "conv2d_fma_forward", False), ("mma", "conv2d_mma_forward", False),
    ("wgmma", "conv2d_wgmma_forward", False), ("gemm", "conv2d_forward", True), ("halo", "conv2d_halo_forward", True),
])  # fmt: skip
def test_most_kernels_spare_a_reading_of_what_they_stored(family: str, kernel: str, reads: bool) -> None:
    recorder = RecorderDevice(HOPPER)
    backend = KernelBackend(recorder, preferring(family))
    x, w, _ = (array.astype(np.float32) for array in operands(40, 72))
    with gpucnn.precision("tf32"):
        backend.conv2d_statistics(x, w, None, WINDOW, 1)
    names = [launch.name for launch in recorder.launches]
    assert kernel in names
    assert ("batch_norm_statistics" in names) is reads
    assert names[-1] == "batch_norm_statistics_combine"


def training(model: nn.Module, x: gpucnn.Tensor) -> list[Array]:
    """The output, the gradients of weights and input, and the running statistics after a step."""
    x = x.detach().requires_grad_()
    y = model(x)
    (y * y * y).sum().backward()
    tensors = [y, x.grad, *(p.grad for p in model.parameters()), *model.state_dict().values()]
    return [tensor.numpy() for tensor in tensors]


def test_a_model_in_training_takes_them_from_its_convolution(
    kernels: KernelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are those of a model whose convolution is watched, which is computed by itself."""
    gpucnn.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(36, 44, (3, 2), bias=False), nn.BatchNorm2d(44), nn.ReLU())
    model.to(kernels)
    x = gpucnn.tensor(normal(3, 36, 9, 7).make("float32"), backend=kernels)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    calls: list[str] = []
    statistics = KernelBackend.conv2d_statistics
    monkeypatch.setattr(
        KernelBackend, "conv2d_statistics", lambda *arguments: calls.append("along") or statistics(*arguments)
    )
    together = training(model, x)
    assert calls == ["along"]
    model.load_state_dict({name: gpucnn.tensor(value, backend=kernels) for name, value in state.items()})
    for parameter in model.parameters():
        parameter.grad = None
    model[0].register_forward_hook(lambda *_: None)
    apart = training(model, x)
    assert calls == ["along"]
    for ours, theirs in zip(together, apart, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(np.abs(theirs).max()))


# -- bugs that are planted in a copy of the kernels --------------------------------------------------------------------


@pytest.fixture
def planted(plant: Any) -> Callable[..., KernelBackend]:
    return lambda old, new, capability=None: KernelBackend(plant("moments.cuh", old, new, capability))


STRAY = "out of bounds|a race with thread|which nothing has written"


@pytest.mark.parametrize(("old", "new", "message"), [
    ("    __syncthreads();  // the tile is stored\n", "", "a race with thread|which nothing has written"),
    ("if (first >= rows || column >= columns) return;", "if (first >= rows) return;", STRAY),
    ("row < min(first + LENGTH, rows)", "row <= min(first + LENGTH, rows)", STRAY),
    ("(long long)(first / LENGTH) * K + k + column", "(long long)(first / LENGTH) * K + k", "a race with thread"),
])  # fmt: skip
def test_the_emulator_catches_a_broken_place(old: str, new: str, message: str, planted: Any) -> None:
    with pytest.raises(KernelError, match=message):
        assert_statistics(planted(old, new), operands(36, 44), "float32")


def test_the_emulator_catches_parts_of_a_warp_that_only_copies(plant: Any) -> None:
    """They would be the next tile's, which its block has yet to store."""
    device = plant("moments.cuh", "if (row_of_tile >= ROWS_OF_TILE) return;", "", HOPPER)
    with pytest.raises(KernelError, match="which nothing has written"):
        assert_statistics(KernelBackend(device, preferring("wgmma")), operands(40, 72, n=3), "float16")


def test_the_emulator_catches_a_part_that_is_not_there(planted: Any) -> None:
    old, new = "if (first >= rows || column >= columns) return;", "if (column >= columns) return;"
    with pytest.raises(KernelError, match=STRAY):
        assert_statistics_of_few(planted(old, new, HOPPER), 3)


@pytest.mark.parametrize(("old", "new"), [
    ("const Scalar origin = *from;", "const Scalar origin = 0;"),
    ("from += 8 * K;", "from += 7 * K;"),
    ("next_moments(from, K, rows - row, origin)", "next_moments(from, K, rows - first, origin)"),
    ("squares[i] = of_all.square;", "squares[i] = of_all.mean;"),
])  # fmt: skip
def test_a_wrong_number_of_a_part_is_noticed(old: str, new: str, planted: Any) -> None:
    with pytest.raises((AssertionError, KernelError)):
        assert_statistics(planted(old, new), operands(36, 44, offset=1e4), "float32")
