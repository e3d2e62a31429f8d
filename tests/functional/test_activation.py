"""Activations, softmax, dropout: corners, NaN, large inputs. Values and gradients of every case: test_every_op.py."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from numerics import Array, assert_within, unit_roundoff

import gpucnn
from functional.cases import random
from gpucnn import Tensor
from gpucnn import functional as F

ACTIVATIONS: dict[str, dict[str, Any]] = {
    "relu": {},
    "relu6": {},
    "leaky_relu": {"negative_slope": 0.1},
    "elu": {"alpha": 0.7},
    "selu": {},
    "gelu": {},
    "silu": {},
    "mish": {},
    "hardswish": {},
    "hardsigmoid": {},
    "hardtanh": {"min_val": -3.0, "max_val": 6.0},
    "softplus": {"beta": 2.0},
    "sigmoid": {},
    "logsigmoid": {},
    "softsign": {},
    "tanh": {},
}
every_activation = pytest.mark.parametrize("op", ACTIVATIONS)


def activated(op: str, x: Array, backend: str, **arguments: Any) -> Array:
    y = getattr(F, op)(gpucnn.tensor(x, backend=backend), **{**ACTIVATIONS.get(op, {}), **arguments}).numpy()
    assert isinstance(y, np.ndarray)
    return y


def slope(op: str, x: Array, backend: str, dy: Array | None = None) -> Array:
    tensor = gpucnn.tensor(x, requires_grad=True, backend=backend)
    y = getattr(F, op)(tensor, **ACTIVATIONS[op])
    y.backward(gpucnn.tensor(np.ones_like(x) if dy is None else dy, backend=backend))
    assert tensor.grad is not None
    return tensor.grad.numpy()


def test_relu_of_zeros_is_plus_zero(backend: str) -> None:
    for dtype in ("float32", "float64"):
        y = activated("relu", np.tile(np.array([-0.0, 0.0, -1.0, -np.inf, 1e-30], dtype), 7), backend)
        np.testing.assert_array_equal(y, np.tile(np.array([0, 0, 0, 0, 1e-30], dtype), 7))
        assert not np.signbit(y).any()


def test_slope_of_relu_at_zero_is_zero(backend: str) -> None:
    np.testing.assert_array_equal(slope("relu", np.array([-0.0, 0.0, -1.0, 1e-30]), backend), [0, 0, 0, 1])


def test_relu_stops_even_an_infinite_gradient_where_it_is_zero(backend: str) -> None:
    dx = slope("relu", np.array([-1.0, 0.0, 1.0]), backend, np.array([np.inf, -np.inf, np.inf]))
    np.testing.assert_array_equal(dx, [0, 0, np.inf])


@every_activation
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_stays_nan_and_touches_nothing_else(op: str, dtype: str, backend: str) -> None:
    x = random(2, 3, 5, 7).astype(dtype)
    x[1, 2, 0, 3] = x[0, 0, 4, 6] = np.nan
    np.testing.assert_array_equal(np.isnan(activated(op, x, backend)), np.isnan(x))


@every_activation
def test_large_inputs_are_stable(op: str, backend: str) -> None:
    x = np.array([-1e4, -200.0, 200.0, 1e4], np.float32)
    y, dx = activated(op, x, backend), slope(op, x, backend)
    expected = getattr(reference, op)(x, **(ACTIVATIONS[op] | ({"threshold": 20.0} if op == "softplus" else {})))
    assert_within(y, expected, 16 * unit_roundoff("float32") * 1e4)
    level = ("relu6", "hardsigmoid", "hardtanh", "sigmoid", "tanh")
    slopes = {"leaky_relu": (0.1, 1.0), "selu": (0.0, 1.0507009873554805), "logsigmoid": (1.0, 0.0)}
    flat, steep = slopes.get(op, (0.0, float(op not in level)))
    expected = (1 + np.abs(x)) ** -2.0 if op == "softsign" else np.array([flat, flat, steep, steep])
    assert_within(dx, expected, 2 * unit_roundoff("float32"))


@every_activation
def test_corners_are_pytorchs(op: str, backend: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare the corners with")
    corners = np.array([-6.0, -3.0, -0.0, 0.0, 3.0, 6.0], np.float32)
    x = torch.tensor(corners, requires_grad=True)
    y = getattr(torch.nn.functional, op)(x, **ACTIVATIONS[op])
    y.backward(torch.ones_like(y))
    bound = 32 * unit_roundoff("float32")
    assert_within(activated(op, corners, backend), y.detach().numpy().astype(float), 6 * bound)
    assert_within(slope(op, corners, backend), x.grad.numpy().astype(float), bound)


def test_hardtanh_passes_no_gradient_at_its_ends_where_clamp_does(backend: str) -> None:
    ends = np.array([-2.0, -1.9, 0.4, 0.5])
    for op, expected in ((F.hardtanh, [0, 1, 1, 0]), (F.clamp, [1, 1, 1, 1])):
        x = gpucnn.tensor(ends, requires_grad=True, backend=backend)
        op(x, -2.0, 0.5).sum().backward()
        assert x.grad is not None
        np.testing.assert_array_equal(x.grad.numpy(), expected)


def test_hardtanh_passes_the_gradient_of_nan_as_pytorchs_does(backend: str) -> None:
    np.testing.assert_array_equal(slope("hardtanh", np.array([np.nan, 7.0]), backend, np.array([3.0, 3.0])), [3, 0])


def test_slope_of_softsign_keeps_its_digits_far_from_zero(backend: str) -> None:
    """1/(1 + |x|) − |x|/(1 + |x|)² would have none left here; (1 + |x|)² would overflow in float32 at the last two."""
    x = np.array([-1e6, 3e9, 1e20, -1e22], np.float32)
    dy = np.full(4, 1e9, np.float32)
    expected = 1e9 * (1 + np.abs(x.astype(float))) ** -2
    assert_within(slope("softsign", x, backend, dy), expected, 4 * unit_roundoff("float32") * expected)


def test_logsigmoid_keeps_its_digits_where_the_sigmoid_is_almost_one(backend: str) -> None:
    x = np.array([-100.0, 12.0, 17.0, 40.0], np.float32)
    expected = reference.logsigmoid(x)
    assert_within(activated("logsigmoid", x, backend), expected, 8 * unit_roundoff("float32") * np.abs(expected))


@pytest.mark.parametrize("op", ["mish", "softsign", "logsigmoid", "selu", "hardtanh"])
def test_infinities_give_what_pytorchs_give(op: str, backend: str) -> None:
    found = activated(op, np.array([-np.inf, np.inf], np.float32), backend)
    expected = {
        "mish": [np.nan, np.inf], "softsign": [np.nan, np.nan], "logsigmoid": [-np.inf, 0],
        "selu": [np.float32(-1.0507009873554805 * 1.6732632423543772), np.inf], "hardtanh": [-3, 6],
    }  # fmt: skip
    np.testing.assert_allclose(found, expected[op], rtol=4 * unit_roundoff("float32"))


def test_selu_keeps_the_mean_and_variance_of_normal_values(backend: str) -> None:
    """Its two constants are the ones with which N(0, 1) is a fixed point (Klambauer et al. 2017)."""
    x = np.linspace(-12, 12, 24001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * 0.001
    y = activated("selu", x, backend)
    assert float((y * density).sum()) == pytest.approx(0, abs=1e-6)
    assert float((y**2 * density).sum()) == pytest.approx(1, abs=1e-6)


def test_sigmoid_of_the_introduction(backend: str) -> None:
    y = activated("sigmoid", np.array([0.0, 3.8918202981, math.log(0.98 / 0.02)]), backend)
    assert_within(y, np.array([0.5, 0.98, 0.98]), 1e-11)


def test_softplus_is_exact_beyond_pytorchs_threshold(backend: str) -> None:
    x = np.array([-3.0, 2.4, 2.6, 30.0])
    y = activated("softplus", x, backend, beta=2.0, threshold=5.0)
    assert_within(y, reference.softplus(x, 2.0, math.inf), 4 * unit_roundoff("float64") * 30)
    gap = np.abs(y - reference.softplus(x, 2.0, 5.0))
    assert (gap <= math.log1p(math.exp(-5.0)) / 2).all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_the_normal_distributions(approximate: str, backend: str) -> None:
    special = pytest.importorskip("scipy.special", reason="SciPy is not installed: no other normal distribution here")
    x = np.linspace(-9, 9, 181)
    exact = x * special.ndtr(x)
    bound = 8 * unit_roundoff("float64") * 9 if approximate == "none" else 5e-4
    assert_within(activated("gelu", x, backend, approximate=approximate), exact, bound)


def test_prelu_learns_one_slope_or_one_for_each_channel(backend: str) -> None:
    x = np.array([[[[-1.0, 2.0]], [[-3.0, -4.0]]]])
    for weights, expected, slopes in [
        ([0.5], [-0.5, 2, -1.5, -2], [-8]),
        ([0.5, 0.1], [-0.5, 2, -0.3, -0.4], [-1, -7]),
    ]:
        weight = gpucnn.tensor(np.array(weights), requires_grad=True, backend=backend)
        y = F.prelu(gpucnn.tensor(x, backend=backend), weight)
        y.sum().backward()
        assert_within(y.numpy().ravel(), np.array(expected), 1e-15)
        assert weight.grad is not None
        assert_within(weight.grad.numpy(), np.array(slopes, float), 1e-14)


# --- softmax ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_sums_to_one_however_large_the_scores(scale: float, dtype: str, backend: str) -> None:
    x = (scale * random(3, 5, 2, 4)).astype(dtype)
    y = activated("softmax", x, backend, dim=1)
    assert_within(y.sum(1), np.ones((3, 2, 4)), 16 * unit_roundoff(dtype))
    logs = activated("log_softmax", x, backend, dim=1)
    assert np.isfinite(logs).all()
    assert (np.diff(np.sort(y, 1), axis=1) >= 0).all()
    np.testing.assert_array_equal(y.argmax(1), x.argmax(1))


def test_softmax_of_the_introductions(backend: str) -> None:
    shares = [0.8, 0.15, 0.05]
    assert_within(activated("softmax", np.log(shares), backend, dim=0), np.array(shares), 4 * unit_roundoff("float64"))
    dog, cat = activated("softmax", np.array([2.4423470354, 0.0]), backend, dim=0)
    assert (dog, cat) == (pytest.approx(0.92, abs=1e-11), pytest.approx(0.08, abs=1e-11))
    np.testing.assert_array_equal(activated("softmax", np.zeros((2, 10), np.float32), backend, dim=1), np.float32(0.1))


def test_softmax_does_not_feel_a_common_shift(backend: str) -> None:
    x = np.round(random(3, 5) * 8)
    np.testing.assert_array_equal(
        activated("softmax", x, backend, dim=1), activated("softmax", x + 4096, backend, dim=1)
    )


# --- dropout ----------------------------------------------------------------------------------------------------------


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 of Salmon et al., SC'11, one counter at a time."""
    c, k, mask = counter, key, 2**32 - 1
    for _ in range(10):
        product0, product1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = (product1 >> 32) ^ c[1] ^ k[0], product1 & mask, (product0 >> 32) ^ c[3] ^ k[1], product0 & mask
        k = (k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask
    return c


def test_scalar_philox_gives_the_papers_known_answers() -> None:
    """The known-answer vectors of Random123 for philox 4x32 with 10 rounds."""
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 2**32 - 1
    assert philox4x32((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox4x32(*pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize("shape", [(13,), (5, 3), (2, 3, 5, 3)])
@pytest.mark.parametrize("seed", [0, 2**40 + 5])
def test_dropout_keeps_what_the_scalar_philox_keeps(shape: tuple[int, ...], seed: int, backend: str) -> None:
    """Elements are counted in storage order, [N, H, W, C] for four axes; the next call goes on where this one ended."""
    generator = gpucnn.Generator(seed)
    ones = gpucnn.tensor(np.ones(shape, np.float32), backend=backend)
    size = int(np.prod(shape))
    counters = -(-size // 4)
    for call in range(2):
        y = F.dropout(ones, 0.3, generator=generator).numpy()
        words = [
            philox4x32((call * counters + i // 4, 0, 0, 0), (seed % 2**32, seed >> 32))[i % 4] for i in range(size)
        ]
        kept = np.array([(word >> 8) / 2**24 >= 0.3 for word in words])
        stored = y.transpose(0, 2, 3, 1) if y.ndim == 4 else y
        assert_within(stored.ravel(), kept / 0.7, 2 * unit_roundoff("float32"))


def test_dropout_keeps_an_element_from_the_probability_of_its_word_on(backend: str) -> None:
    """u >= p: the first word of seed 1 is kept at p = u exactly, and dropped at the next p."""
    u = (philox4x32((0, 0, 0, 0), (1, 0))[0] >> 8) / 2**24
    one = gpucnn.tensor(np.ones(1), backend=backend)
    assert F.dropout(one, u, generator=gpucnn.Generator(1)).item() == pytest.approx(1 / (1 - u))
    assert F.dropout(one, u + 2**-24, generator=gpucnn.Generator(1)).item() == 0


def test_dropout_passes_the_gradient_of_what_it_kept(backend: str) -> None:
    x = gpucnn.tensor(np.full((3, 4, 5, 2), 2.0), requires_grad=True, backend=backend)
    y = F.dropout(x, 0.5, generator=gpucnn.Generator(3))
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy() / 2)
    assert 0 < np.count_nonzero(y.numpy()) < 120


@pytest.mark.parametrize(("p", "training", "expected"), [(0.0, True, 3), (0.9, False, 3), (1.0, True, 0)])
def test_dropout_of_nothing_and_of_everything(p: float, training: bool, expected: float, backend: str) -> None:
    y = F.dropout(gpucnn.tensor(np.full((2, 7), 3.0), backend=backend), p, training)
    np.testing.assert_array_equal(y.numpy(), np.full((2, 7), expected))


def test_dropout2d_drops_whole_channels_of_images_with_the_probability(backend: str) -> None:
    x = gpucnn.tensor(np.full((40, 30, 2, 3), 3.0, np.float32), requires_grad=True, backend=backend)
    y = F.dropout2d(x, 0.4, generator=gpucnn.Generator(5))
    planes = y.numpy().reshape(1200, 6)
    assert (planes == planes[:, :1]).all()
    np.testing.assert_allclose(np.unique(planes), [0, 5], rtol=2**-22)
    assert abs((planes[:, 0] == 0).mean() - 0.4) < 5 * math.sqrt(0.24 / 1200)
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy() * 3, y.numpy())
    assert F.dropout2d(x, 0.4, training=False) is x
    with pytest.raises(ValueError, match=r"dropout2d: input must have 4 axes \[N, C, H, W\], got shape \(2, 3\)"):
        F.dropout2d(gpucnn.ones(2, 3))


def test_inplace_is_taken_and_overwrites_nothing(backend: str) -> None:
    x = gpucnn.tensor(np.array([-2.0, 3.0]), backend=backend)
    for op in (
        F.relu,
        F.relu6,
        F.leaky_relu,
        F.elu,
        F.selu,
        F.silu,
        F.mish,
        F.hardswish,
        F.hardsigmoid,
        F.hardtanh,
    ):
        assert op(x, inplace=True).tolist() == op(x).tolist()
    assert (
        F.dropout(x, 0.5, True, True, gpucnn.Generator(1)).tolist()
        == F.dropout(x, 0.5, generator=gpucnn.Generator(1)).tolist()
    )
    assert x.tolist() == [-2, 3]


# --- errors -----------------------------------------------------------------------------------------------------------


@every_activation
def test_integers_are_an_error_that_says_how_to_convert(op: str, backend: str) -> None:
    with pytest.raises(TypeError, match=rf"{op}: input .*int64.*float"):
        activated(op, np.array([1, 2]), backend)


def ones(*shape: int) -> Tensor:
    return gpucnn.tensor(np.ones(shape))


WRONG: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "unknown-gelu",
        lambda: F.gelu(ones(2), approximate="cubic"),
        ValueError,
        "approximate.*'none', 'tanh'.*cubic",
    ),
    ("softmax-axis", lambda: F.softmax(ones(2, 3), 2), IndexError, "softmax: dim 2 .*2 axes"),
    ("log-softmax-axis", lambda: F.log_softmax(ones(2, 3), -3), IndexError, "log_softmax: dim -3 .*2 axes"),
    ("prelu-slopes", lambda: F.prelu(ones(2, 3, 4, 5), ones(5)), ValueError, r"weight .*\(3,\).*\(5,\)"),
    ("softplus-beta", lambda: F.softplus(ones(2), beta=0), ValueError, "beta.*0"),
    (
        "hardtanh-ends",
        lambda: F.hardtanh(ones(2), 1, -1),
        ValueError,
        r"min_val .* larger than max_val, got 1\.0 and -1\.0",
    ),
    ("hardtanh-nan", lambda: F.hardtanh(ones(2), max_val=math.nan), ValueError, r"got -1\.0 and nan"),
    ("dropout-p", lambda: F.dropout(ones(2), 1.5), ValueError, r"p .*1\.5"),
]


@pytest.mark.parametrize(("call", "error", "message"), [pytest.param(*rest, id=name) for name, *rest in WRONG])
def test_wrong_arguments_are_shown(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
