"""Layout and type of arrays that come from elsewhere: NumPy's own copy and conversion say what is right."""

import numpy as np
import pytest

from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.recorder import RecorderDevice

SHAPES = [(2, 3, 5, 7), (1, 33, 1, 65), (3, 1, 4, 4), (1, 40, 8, 9), (2, 32, 4, 8), (2, 7, 1, 1), (0, 3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("source", ["float32", "float64", "uint8", "int32", "int64"])
@pytest.mark.parametrize("target", ["float32", "float64"])
def test_planes_become_channels_last_in_another_type(
    shape: tuple[int, ...], source: str, target: str, kernels: KernelBackend
) -> None:
    x = (1000 * np.random.default_rng(1).standard_normal(shape)).astype(source)
    y = kernels.asarray(x, target)
    assert y.dtype == target
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(y, x.astype(target))


@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[:, :, ::-1], np.s_[:, :, :, 1:]])
def test_a_strided_view_is_converted_too(view: tuple[slice, ...], kernels: KernelBackend) -> None:
    x = np.random.default_rng(2).standard_normal((2, 6, 5, 7))[view]
    np.testing.assert_array_equal(kernels.astype(x, "float32"), x.astype("float32"))
    np.testing.assert_array_equal(kernels.contiguous(x), x)


def test_rows_of_numbers_are_converted_in_their_order(kernels: KernelBackend) -> None:
    x = np.random.default_rng(3).standard_normal((5, 301))
    np.testing.assert_array_equal(kernels.astype(x, np.float32), x.astype(np.float32))


def test_what_is_channels_last_already_is_not_copied(kernels: KernelBackend) -> None:
    x = np.zeros((2, 5, 7, 3), "float32").transpose(0, 3, 1, 2)
    assert np.shares_memory(kernels.asarray(x), x)
    single = np.zeros((2, 1, 5, 7), "float32")
    assert np.shares_memory(kernels.asarray(single), single)


def test_integers_stay_with_the_array_library(kernels: KernelBackend) -> None:
    y = kernels.astype(np.array([[-1.7, 2.9]]), np.int64)
    assert (y.dtype, y.tolist()) == (np.int64, [[-1, 2]])


def test_a_batch_of_planes_takes_one_launch() -> None:
    device = RecorderDevice()
    KernelBackend(device).asarray(np.zeros((2, 3, 28, 28), np.uint8), np.float32)
    assert [(one.name, one.grid) for one in device.launches] == [("channels_last", (2 * 1 * 25, 1, 1))]
