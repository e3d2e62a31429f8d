"""Strides change no bit, and NaN is where float64 has it; all else about odd arrays is in test_hostile_input.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import gpucnn
from gpucnn import functional as F

ELEMENTWISE = {
    "relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "gelu": F.gelu, "silu": F.silu, "sigmoid": F.sigmoid,
    "tanh": F.tanh, "softplus": F.softplus, "exp": lambda x: x.exp(), "log": lambda x: x.log(),
    "square root": lambda x: x.sqrt(), "divided": lambda x: x / x, "power": lambda x: x**2,
}  # fmt: skip
NUMBERS = [0.0, -0.0, 1.0, -1.5, 1e-42, -1e-45, 3e38, -3e38, 88.8, -104.0, np.inf, -np.inf, np.nan]
SPECIAL = st.sampled_from([float(np.float32(number)) for number in NUMBERS])


@st.composite
def odd_arrays(draw):
    """float32 of up to 4 axes, each of length 0 to 4, as a view with any order and step of its axes."""
    shape = draw(st.lists(st.integers(0, 4), min_size=0, max_size=4))
    array = draw(arrays_of.arrays(np.float32, shape, elements=SPECIAL, fill=st.nothing()))
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    return array[(..., *(slice(None, None, draw(st.sampled_from([1, 2, -1]))) for _ in shape))]


@pytest.mark.parametrize("name", ELEMENTWISE)
@settings(max_examples=60, deadline=None)
@given(array=odd_arrays())
def test_strides_change_no_bit_and_nan_is_where_float64_has_it(name, array):
    op = ELEMENTWISE[name]
    found, plain, double = (
        op(gpucnn.from_numpy(a)).numpy() for a in (array, np.array(array, order="C"), array.astype(np.float64))
    )
    assert found.dtype == np.float32
    assert found.shape == array.shape
    assert np.array_equal(found, plain, equal_nan=True)
    # a square may overflow in float32 alone, but that makes an infinity and no NaN
    assert np.array_equal(np.isnan(found), np.isnan(double))
