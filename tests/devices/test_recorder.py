"""RecorderDevice: what would be launched, checked but not computed."""

import numpy as np
import pytest

from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices import KernelError, Specialisation, base
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.geometry import Window


def test_a_launch_is_noted_with_its_constants_grid_and_block():
    device = RecorderDevice()
    x = np.ones((5, 3), np.float32)
    sums = np.empty((1, 3), np.float32)
    constants = {"SCALAR": "float", "COLUMNS": 8}
    device.launch("sums.cu", "bias_backward", constants, (1, 1, 1), (256, 1, 1), x, sums, 5, 3, 1, 256)
    [launched] = device.launches
    assert (launched.file, launched.name) == ("sums.cu", "bias_backward")
    assert launched.constants == (("COLUMNS", 8), ("SCALAR", "float"))
    assert (launched.grid, launched.block) == ((1, 1, 1), (256, 1, 1))


def test_an_argument_that_does_not_fit_is_an_error_and_not_noted():
    device = RecorderDevice()
    x = np.ones((5, 3), np.float32)
    with pytest.raises(KernelError, match=r"dy must be float32, got float64; the kernel is bias_backward\("):
        device.launch(
            "sums.cu", "bias_backward", {"SCALAR": "float", "COLUMNS": 8}, (1, 1, 1), (256, 1, 1),
            x.astype(np.float64), x[:1], 5, 3, 1, 256,
        )  # fmt: skip
    assert device.launches == []


def test_what_a_kernel_wants_is_found_out_at_its_first_launch_with_these_constants(monkeypatch):
    def launch(rows, **constants):
        x, sums = np.ones((rows, 3), np.float32), np.empty((1, 3), np.float32)
        device.launch("sums.cu", "bias_backward", constants, (1, 1, 1), (256, 1, 1), x, sums, rows, 3, 1, 256)

    device = RecorderDevice()
    launch(5, SCALAR="float", COLUMNS=8)
    monkeypatch.setattr(base, "Bound", None)
    launch(7, SCALAR="float", COLUMNS=8)
    assert len(device.launches) == 2
    with pytest.raises(TypeError, match="not callable"):
        launch(7, SCALAR="float", COLUMNS=24)


def test_each_specialisation_is_listed_once_in_the_order_of_its_first_launch():
    device = RecorderDevice()
    backend = KernelBackend(device)
    x, w = backend.asarray(np.ones((2, 6, 7, 5), np.float32)), backend.asarray(np.ones((4, 6, 3, 2), np.float32))
    device.launches.clear()  # what made the arrays channels-last
    wide, narrow = Window((3, 2)), Window((3, 2), stride=(2, 1))
    for window in (wide, narrow, wide):
        backend.conv2d_forward(x, w, None, window, 1)
    backend.activation_forward(x, "relu", 0)
    first, second, third = device.specialisations()
    assert len(device.launches) == 4
    assert (first.name, second.name, third.name) == ("conv2d_forward", "conv2d_forward", "activation_forward")
    assert (dict(first.constants)["STRIDE_H"], dict(second.constants)["STRIDE_H"]) == (1, 2)
    assert isinstance(first, Specialisation)


def test_results_have_the_shapes_of_real_ones():
    backend = KernelBackend(RecorderDevice())
    x = backend.asarray(np.ones((2, 6, 7, 5), np.float64))
    y = backend.conv2d_forward(x, backend.asarray(np.ones((4, 3, 3, 2))), None, Window((3, 2), padding=(0, 0, 1, 0)), 2)
    assert (y.shape, y.dtype) == ((2, 4, 5, 5), np.float64)
