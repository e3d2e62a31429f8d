"""An activation's gradient and the bias's at once: both as their own kernels give them, to the bit."""

import numpy as np
import pytest

import gpucnn
from gpucnn import nn
from gpucnn.backends import ACTIVATIONS
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.devices.recorder import RecorderDevice

KINDS = [kind for kind, saved in ACTIVATIONS.items() if saved == "output"]


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "float32") for kind in KINDS), ("relu", "float16")])
@pytest.mark.parametrize("shape", [(3, 5, 13, 11), (1, 33, 2, 3), (0, 3, 4, 5)])
def test_both_gradients_are_those_of_the_kernels_by_themselves(
    shape: tuple[int, ...], kind: str, dtype: str, kernels: KernelBackend
) -> None:
    rng = np.random.default_rng(1)
    for engine in (kernels, NumpyBackend()):
        x, dy = (engine.asarray(rng.standard_normal(shape), np.dtype(dtype)) for _ in range(2))
        y = engine.activation_forward(x, kind, 0.0)
        if dy.size:
            dy[0, 0, 1, 2] = np.inf
        dx, db = engine.activation_bias_backward(dy, y, kind)
        expected = engine.activation_backward(dy, y, kind, 0.0)
        np.testing.assert_array_equal(engine.to_numpy(dx), engine.to_numpy(expected))
        np.testing.assert_array_equal(engine.to_numpy(db), engine.to_numpy(engine.bias_backward(expected)))
        assert (dx.dtype, db.dtype) == (np.dtype(dtype), np.dtype(dtype))


def test_a_layer_with_a_relu_reads_what_comes_back_once_for_slope_and_bias() -> None:
    recorder = RecorderDevice()
    backend = KernelBackend(recorder)
    model = nn.Sequential(nn.Conv2d(5, 6, 3), nn.ReLU()).to(backend)
    y = model(gpucnn.zeros(2, 5, 9, 8).to(backend))
    recorder.launches.clear()
    y.backward(y)
    names = [launch.name for launch in recorder.launches if launch.file != "convert.cu"]
    assert names == ["activation_bias_backward", "conv2d_backward_weight"]
