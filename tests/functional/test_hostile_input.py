"""The short version of `make hostile`: a few odd calls of everything public, each right or refused."""

import warnings

import hostile_input
import numpy as np
import pytest

import gpucnn
from gpucnn import data, metrics, optim
from gpucnn import functional as F

ONE_NAME_EACH = list({id(entry): name for name, entry in reversed(hostile_input.ENTRIES.items())}.values())


def test_everything_public_is_called_or_it_is_said_why_not():
    called, left_out = set(hostile_input.ENTRIES), set(hostile_input.NOT_CALLED)
    assert hostile_input.public() == called | left_out
    assert not called & left_out


@pytest.mark.parametrize("name", sorted(ONE_NAME_EACH))
def test_an_odd_call_is_right_or_refused(name, backend):
    _, _, wrong = hostile_input.tried(name, backend, calls=8, seed=0)
    assert not wrong, wrong


# -- what finds a wrong answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("relu", lambda input: RIGHT["relu"](input) + 1e-3),
        (
            "relu",
            lambda input: RIGHT["relu"](input.detach() * 0) if input.dtype == np.float16 else RIGHT["relu"](input),
        ),
        ("sum", lambda input, dim=None, keepdim=False: RIGHT["sum"](input, dim, not keepdim)),
        ("transpose", lambda input, *dims: 1 // 0),
        ("neg", lambda input: warnings.warn("odd", UserWarning, stacklevel=1) or RIGHT["neg"](input)),
        ("flatten", lambda input, *dims: RIGHT["flatten"](input, *map(int, dims))),  # Python's error, not gpucnn's
        ("abs", lambda input: input.array.fill(0) or RIGHT["abs"](input)),
    ],
)
def test_a_wrong_answer_a_crash_a_warning_or_a_changed_argument_is_found(name, wrong, monkeypatch):
    monkeypatch.setattr(F, name, wrong)
    assert hostile_input.tried(f"functional.{name}", "numpy", calls=40, seed=0, simplest=False)[2]


RIGHT = {name: getattr(F, name) for name in ("relu", "sum", "neg", "flatten", "abs")}

# -- what it has found, one by one -------------------------------------------------------------------------------------


def test_prelu_of_a_single_number_is_one_and_of_three_axes_has_a_slope_for_each_channel():
    assert F.prelu(gpucnn.tensor(-2.0), gpucnn.tensor([0.25])).shape == ()
    x = np.arange(-6.0, 6).reshape(2, 3, 2)
    slope = gpucnn.tensor(np.array([0.1, 0.2, 0.3]), requires_grad=True)
    F.prelu(gpucnn.tensor(x), slope).sum().backward()
    np.testing.assert_allclose(slope.grad.numpy(), np.minimum(x, 0).sum(axis=(0, 2)), rtol=1e-15)


def test_what_is_divided_by_gets_its_gradient_where_its_square_overflows():
    x, y = (gpucnn.tensor(np.float32(value), requires_grad=True) for value in (3e30, -2e25))
    (x / y).backward()
    assert y.grad.item() == pytest.approx(-3e30 / 4e50, rel=1e-6)


def test_a_row_that_is_ignored_counts_nothing_even_if_it_is_nan():
    logits = gpucnn.tensor([[np.nan, np.inf], [0.0, 1.0]])
    assert F.cross_entropy(logits, [-100, 1]).item() == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6)


def test_a_bias_that_overflows_is_infinite_and_no_warning():
    x, w, bias = gpucnn.full((1, 1), 3e38), gpucnn.ones(1, 1), gpucnn.full((1,), 3e38)
    assert F.linear(x, w, bias).item() == np.inf
    images, filters = x.reshape(1, 1, 1, 1), w.reshape(1, 1, 1, 1)
    assert F.conv_transpose2d(images, filters, bias).item() == np.inf


def test_a_window_wholly_in_the_padding_has_no_index():
    values, index = F.max_pool2d(gpucnn.ones(1, 1, 1, 3), 2, 1, (1, 0), 2, return_indices=True)
    assert values.tolist() == [[[[-np.inf]]]]
    assert index.tolist() == [[[[-1]]]]


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 3, 3, 4), (2, 0)])
def test_no_channels_and_no_images_are_no_error(shape):
    x = gpucnn.zeros(shape, requires_grad=True)
    y = F.batch_norm(x, *(gpucnn.ones(shape[1]) for _ in range(4)))
    if len(shape) == 4:
        y = F.max_pool2d(F.avg_pool2d(y, 2, 1), (1, 2)) * F.adaptive_max_pool2d(x, (2, 1)).sum()
    y.sum().backward()
    assert x.grad.shape == shape
    assert F.linear(gpucnn.zeros(3, 0), gpucnn.zeros(2, 0), gpucnn.ones(2)).tolist() == [[1, 1]] * 3


@pytest.mark.parametrize(
    ("refused", "error", "message"),
    [
        (lambda x: F.leaky_relu(x, "0.1"), TypeError, "leaky_relu: negative_slope must be a number, got '0.1'"),
        (lambda x: F.clamp(x, min="0"), TypeError, "clamp: min must be a number, got '0'"),
        (lambda x: F.softplus(x, beta=np.inf), ValueError, "softplus: beta must be positive and finite, got inf"),
        (lambda x: F.elu(x, 10**400), ValueError, "elu: alpha must be a number that a float can hold"),
        (lambda x: x.reshape(1.5, 2), TypeError, r"reshape: shape must be a sequence of ints, got \(1.5, 2\)"),
        (lambda x: x.expand(2**70, 3), ValueError, "expand: shape has a number that is too large"),
        (lambda x: F.pad(x, ["1", 1]), TypeError, r"pad: pad must be a sequence of ints, got \['1', 1\]"),
        (lambda x: x.to(None), TypeError, "None is no element type; use one such as 'float32'"),
        (lambda x: x.sum(1.5), IndexError, "sum: dim 1.5 is not an axis of a tensor with 2 axes"),
        (lambda x: x.size(2), IndexError, "size: dim 2 is not an axis"),
        (lambda x: x[[[0], [0, 1]]], IndexError, r"the list \[\[0\], \[0, 1\]\] can't be an index"),
        (lambda x: x[::0], IndexError, "does not fit shape .*slice step cannot be zero"),
        (lambda x: x.__setitem__(0, "1"), TypeError, "__setitem__: a float32 tensor can't hold '1'"),
        (lambda x: x.__setitem__(0, [1, 2, 3]), ValueError, r"\[1, 2, 3\] can't be put at 0 of a float32 tensor"),
        (lambda x: x.copy_(np.ones((2, 2), complex)), TypeError, "a tensor can't hold complex128"),
        (lambda x: (x > 0) - (x > 1), TypeError, "sub: a bool tensor can't be subtracted"),
        (lambda x: F.interpolate(x[None, None], scale_factor=np.nan), ValueError, "scale_factor must be positive"),
        (lambda x: F.conv2d(x[None, None], x[None, None], stride=2**40), ValueError, "stride must be at most 214748"),
        (lambda x: F.avg_pool2d(x[None, None], 1, divisor_override=1.5), TypeError, "divisor_override must be an int"),
        (lambda x: F.group_norm(x, "1"), TypeError, "group_norm: num_groups must be an int, got '1'"),
        (lambda x: F.cross_entropy(x, [[0], [0, 1]]), ValueError, "cross_entropy: these labels are no array"),
        (lambda x: gpucnn.tensor(None, dtype="float32"), ValueError, "None is no number"),
        (lambda x: gpucnn.tensor(["1"], dtype="float32"), ValueError, r"\['1'\] is no number"),
        (lambda x: gpucnn.tensor([1j], dtype="float32"), TypeError, "a tensor can't hold complex128"),
        (lambda x: gpucnn.tensor([300], dtype="int8"), ValueError, "can't make a tensor of this data"),
        (lambda x: gpucnn.zeros(2**40, 2**40), ValueError, "it is too large"),
        (lambda x: optim.SGD([x], lr="0.1"), TypeError, "SGD: lr must be a number, got '0.1'"),
        (lambda x: optim.SGD(x), TypeError, "SGD: params must be several tensors, got a Tensor"),
        (lambda x: optim.StepLR(optim.SGD([x]), 1.5), TypeError, "StepLR: step_size must be an int, got 1.5"),
        (lambda x: optim.clip_grad_norm_([3], 1.0), TypeError, "parameters must be tensors, got a int among them"),
        (lambda x: metrics.confusion_matrix(np.array([-1, 0]), np.array([0, 1]), 2), ValueError, "from -1 to 0"),
        (lambda x: metrics.top_k_accuracy(x.numpy(), np.array([0.5, 1]), 1), ValueError, "2 integer labels, got fl"),
        (lambda x: data.Cutout(1)(x.numpy(), None), ValueError, r"must be \[N, H, W, C\] with pixels"),
        (lambda x: data.Cutout(1)(np.ones((1, 2, 2, 1)), None), TypeError, "must be a float32 array, got float64"),
        (lambda x: data.RandomCrop(2, 2**31), ValueError, "padding must be whole numbers up to 65535"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_value(refused, error, message):
    with pytest.raises(error, match=message):
        refused(gpucnn.ones(2, 2))


def test_a_gradient_in_read_only_memory_is_not_written_to():
    parameter = gpucnn.ones(3, requires_grad=True)
    parameter.grad = gpucnn.from_numpy(np.broadcast_to(np.float32(2), 3))
    for clip in (optim.clip_grad_norm_, optim.clip_grad_value_):
        with pytest.raises(ValueError, match="read-only"):
            clip([parameter], 1.0)


def test_memory_that_no_kernel_can_read_is_refused_or_copied():
    device = gpucnn.get_backend("emulator")
    array = np.zeros(9, np.uint8)[1:].view(np.float32)
    assert not array.flags.aligned
    with gpucnn.use_backend(device), pytest.raises(ValueError, match="does not begin at a multiple of 4 bytes"):
        gpucnn.from_numpy(array)
    assert gpucnn.from_numpy(array).to(device).array.flags.aligned
