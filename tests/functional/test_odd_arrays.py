"""Functions on arrays nobody asked for: empty, of any strides, with infinities, NaN and denormals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import gpucnn
from gpucnn import functional as F

REFUSALS = (ValueError, TypeError, IndexError)  # what docstrings name

ELEMENTWISE = {
    "relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "gelu": F.gelu, "silu": F.silu, "sigmoid": F.sigmoid,
    "tanh": F.tanh, "softplus": F.softplus, "exp": lambda x: x.exp(), "log": lambda x: x.log(),
    "square root": lambda x: x.sqrt(), "divided": lambda x: x / x, "power": lambda x: x**2,
}  # fmt: skip
OTHERS = {
    "softmax": lambda x: F.softmax(x, -1), "log_softmax": lambda x: F.log_softmax(x, -1), "flatten": F.flatten,
    "max_pool2d": lambda x: F.max_pool2d(x, (2, 1)), "avg_pool2d": lambda x: F.avg_pool2d(x, (2, 3), padding=1),
    "sum": lambda x: x.sum(), "mean": lambda x: x.mean(), "argmax": lambda x: x.argmax(-1),
    "conv2d": lambda x: F.conv2d(x, gpucnn.ones(3, x.shape[1] if x.ndim == 4 else 1, 2, 1)),
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


def outcome(op, array):
    """What comes out, or the class of the documented error. A warning is neither."""
    try:
        return op(gpucnn.from_numpy(array)).numpy()
    except REFUSALS as error:
        return type(error)


@pytest.mark.parametrize("name", ELEMENTWISE)
@settings(max_examples=60, deadline=None)
@given(array=odd_arrays())
def test_strides_change_no_bit_and_nan_is_where_float64_has_it(name, array):
    op = ELEMENTWISE[name]
    found, plain, double = (outcome(op, a) for a in (array, np.array(array, order="C"), array.astype(np.float64)))
    assert found.dtype == np.float32
    assert found.shape == array.shape
    assert np.array_equal(found, plain, equal_nan=True)
    # a square may overflow in float32 alone, but that makes an infinity and no NaN
    assert np.array_equal(np.isnan(found), np.isnan(double))


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=60, deadline=None)
@given(array=odd_arrays())
def test_an_odd_array_gives_a_result_or_a_documented_error_as_a_plain_one_does(name, array):
    found, plain = (outcome(OTHERS[name], a) for a in (array, np.array(array, order="C")))
    if isinstance(found, type) or isinstance(plain, type):
        assert found is plain
    else:
        assert found.shape == plain.shape
        assert found.dtype == plain.dtype
