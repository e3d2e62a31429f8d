"""Dense layers and matrix products. Values and gradients of every case are in test_every_op.py."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_within, check_gradients, unit_roundoff

import gpucnn
from functional.cases import random
from gpucnn import functional as F

U = unit_roundoff("float64")


def test_dense_layer_is_a_convolution_as_large_as_its_input(backend: str) -> None:
    x, w, b = random(2, 3, 5, 4), random(6, 3, 5, 4, seed=1), random(6, seed=2)
    tensors = [gpucnn.tensor(a, backend=backend) for a in (x.reshape(2, 60), w.reshape(6, 60), b)]
    images = [gpucnn.tensor(a, backend=backend) for a in (x, w, b)]
    bound = 62 * U * float(np.abs(x).reshape(2, 60).sum() * np.abs(w).max())
    assert_within(F.linear(*tensors).numpy(), F.conv2d(*images).numpy()[:, :, 0, 0], bound)


def test_dense_layer_of_flattened_maps_reads_channel_by_channel_row_by_row(backend: str) -> None:
    maps = gpucnn.tensor(np.arange(16.0).reshape(1, 4, 2, 2), backend=backend)
    y = F.linear(maps.flatten(1), gpucnn.tensor(np.eye(16), backend=backend))
    np.testing.assert_array_equal(y.numpy(), [np.arange(16.0)])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(m=st.integers(0, 5), k=st.integers(1, 6), n=st.integers(1, 5), lead=st.sampled_from([(), (2,), (3, 2), (1, 2)]))
def test_matmul_and_its_gradients_of_any_shape_are_sums_of_products(
    m: int, k: int, n: int, lead: tuple[int, ...], backend: str
) -> None:
    a, b = random(*lead, m, k), random(*lead[-1:], k, n, seed=1)
    y = gpucnn.tensor(a, backend=backend) @ gpucnn.tensor(b, backend=backend)
    bound = (k + 1) * U * np.einsum("...mk,...kn->...mn", np.abs(a), np.abs(b))
    assert_within(y.numpy(), np.einsum("...mk,...kn->...mn", a, b), bound)
    check_gradients(F.matmul, [a, b], backend, most=6)


@pytest.mark.parametrize(
    ("a", "b", "shape"),
    [
        ((3,), (3,), ()),
        ((3,), (3, 4), (4,)),
        ((5, 3), (3,), (5,)),
        ((2, 5, 3), (3,), (2, 5)),
        ((3,), (2, 3, 4), (2, 4)),
    ],
)
def test_operand_with_one_axis_is_a_vector(a: Any, b: Any, shape: Any, backend: str) -> None:
    left, right = random(*a), random(*b, seed=1)
    y = F.matmul(gpucnn.tensor(left, backend=backend), gpucnn.tensor(right, backend=backend))
    assert y.shape == shape
    assert_within(y.numpy(), np.asarray(left @ right), 8 * U * 9)
    check_gradients(F.matmul, [left, right], backend)


@pytest.mark.parametrize(
    ("op", "shapes", "message"),
    [
        ("linear", [(2, 5), (3, 4)], r"5 features.*\(2, 5\).*4.*\(3, 4\)"),
        ("linear", [(2, 5), (3, 4, 5)], r"weight .*\(3, 4, 5\)"),
        ("linear", [(2, 5), (3, 5), (2,)], r"bias .*\(3,\).*\(2,\)"),
        ("linear", [(), (3, 5)], r"0 features"),
        ("matmul", [(2, 5), (4, 3)], r"\(2, 5\).*\(4, 3\).*5.*4"),
        ("matmul", [(2, 4, 5), (3, 5, 2)], r"\(2, 4, 5\).*\(3, 5, 2\).*broadcast"),
        ("matmul", [(), (3, 5)], r"\(\).*\(3, 5\)"),
    ],
)
def test_wrong_shapes_are_shown(op: str, shapes: Any, message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(F, op)(*(gpucnn.tensor(random(*shape), backend=backend) for shape in shapes))
