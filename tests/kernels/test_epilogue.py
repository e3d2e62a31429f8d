"""What a convolution's kernels do with their sums on the way to memory: scale, shift, add a residual, activate."""

from typing import Any

import numpy as np
import pytest

from gpucnn.backends.base import ACTIVATIONS
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.geometry import Window

SHAPES = {
    "gemm": ((2, 6, 7, 5), (20, 6, 3, 2), 1),
    "gemm of groups": ((1, 10, 5, 6), (4, 5, 2, 2), 2),
    "gemm in parts": ((1, 128, 3, 4), (10, 128, 3, 3), 1),
    "direct": ((2, 3, 9, 7), (5, 3, 2, 3), 1),
    "direct of groups": ((2, 33, 5, 4), (33, 1, 3, 2), 33),
    "depthwise": ((2, 36, 5, 4), (36, 1, 3, 2), 36),
}


@pytest.mark.parametrize("activation", [None, *(kind for kind, saved in ACTIVATIONS.items() if saved == "output")])
@pytest.mark.parametrize(("biased", "added"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", SHAPES)
def test_sums_are_scaled_then_shifted_then_added_to_then_activated(
    name: str, biased: bool, added: bool, activation: str | None, kernels: KernelBackend, force: Any
) -> None:
    x_shape, w_shape, groups = SHAPES[name]
    force(lambda variant: variant.family == name.split()[0])
    rng, window = np.random.default_rng(1), Window(w_shape[2:], padding=(1, 0, 0, 1))
    x, w = (kernels.asarray(rng.standard_normal(shape), np.float64) for shape in (x_shape, w_shape))
    b, scale = (kernels.asarray(rng.standard_normal(w_shape[0])) for _ in range(2))
    sums = kernels.conv2d_forward(x, w, None, window, groups)
    expected = kernels.to_numpy(sums) * kernels.to_numpy(scale)[:, None, None]
    if biased:
        expected += kernels.to_numpy(b)[:, None, None]
    residual = kernels.asarray(rng.standard_normal(expected.shape)) if added else None
    if residual is not None:
        expected += kernels.to_numpy(residual)
    if activation:
        expected = kernels.to_numpy(kernels.activation_forward(kernels.asarray(expected), activation, 0.0))
    got = kernels.conv2d_forward(x, w, b if biased else None, window, groups, activation, scale, residual)
    np.testing.assert_allclose(kernels.to_numpy(got), expected, rtol=1e-13, atol=1e-14)
