"""The short version of `make hostile`: a few odd calls of everything public, each right or refused."""

import warnings

import hostile_input
import numpy as np
import pytest

import gpucnn
from gpucnn import attribution, data, metrics, nn, optim, train
from gpucnn import functional as F

ONE_NAME_EACH = list({id(entry): name for name, entry in reversed(hostile_input.ENTRIES.items())}.values())


def test_everything_public_is_called_or_it_is_said_why_not():
    names, called = hostile_input.public(), set(hostile_input.ENTRIES)
    assert called <= names
    assert {name for name in names - called if not hostile_input.left_out(name)} == set(), "add them to OPS or LAYERS"
    assert {hostile_input.left_out(name) for name in names - called} == set(hostile_input.NOT_CALLED)
    homes = {name.rpartition(".")[0] for name in names}
    assert {"gpucnn", "data", "functional", "nn", "nn.init", "nn.models", "optim", "train", "Tensor"} <= homes


@pytest.mark.parametrize("name", sorted(ONE_NAME_EACH))
def test_an_odd_call_is_right_or_refused(name, backend):
    calls = 3 if name.startswith("nn.") else 8  # a layer's function is called by its own name too
    _, _, wrong = hostile_input.tried(name, backend, calls, seed=0)
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
        ("conv2d", lambda *given: without_slope(*given) if given[0].dtype == np.float32 else RIGHT["conv2d"](*given)),
    ],
)
def test_a_wrong_answer_a_crash_a_warning_or_a_changed_argument_is_found(name, wrong, monkeypatch):
    monkeypatch.setattr(F, name, wrong)
    assert hostile_input.tried(f"functional.{name}", "numpy", calls=40, seed=0, simplest=False)[2]


RIGHT = {name: getattr(F, name) for name in ("relu", "sum", "neg", "flatten", "abs", "conv2d")}


def without_slope(*given):
    """The right output, with the gradients that a convolution without its activation has."""
    plain = RIGHT["conv2d"](*given[:7], None, *given[8:])
    return plain + (RIGHT["conv2d"](*given) - plain).detach()


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("MaxPool2d", lambda self, input: F.max_pool2d(input, self.kernel_size, self.stride, self.padding)),
        (
            "BatchNorm2d",
            lambda self, input: F.batch_norm(input, None, None, self.weight, self.bias, True, 0.1, self.eps),
        ),
    ],
)
def test_a_layer_that_forgets_an_argument_is_found(kind, wrong, monkeypatch):
    monkeypatch.setattr(getattr(nn, kind), "forward", wrong)
    assert hostile_input.tried(f"nn.{kind}", "numpy", calls=40, seed=0, simplest=False)[2]


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
    logits.requires_grad_()
    loss = F.nll_loss(logits, [-100, 1])
    loss.backward()
    assert (loss.item(), logits.grad.tolist()) == (-1, [[0, 0], [0, -1]])


def test_a_bias_that_overflows_is_infinite_and_no_warning():
    x, w, bias = gpucnn.full((1, 1), 3e38), gpucnn.ones(1, 1), gpucnn.full((1,), 3e38)
    assert F.linear(x, w, bias).item() == np.inf
    images, filters = x.reshape(1, 1, 1, 1), w.reshape(1, 1, 1, 1)
    assert F.conv_transpose2d(images, filters, bias).item() == np.inf


@pytest.mark.parametrize("engine", ["numpy", "emulator"])
@pytest.mark.parametrize(("pool", "nothing"), [(F.max_pool2d, -np.inf), (F.min_pool2d, np.inf)])
def test_a_window_wholly_in_the_padding_has_no_index(pool, nothing, engine, backend):
    x = gpucnn.ones(1, 4, 1, 3, backend=engine if backend == "numpy" else backend)
    values, index = pool(x, 2, 1, (1, 0), 2, return_indices=True)
    assert values.flatten().tolist() == [nothing] * 4
    assert index.flatten().tolist() == [-1] * 4


def test_a_plane_without_columns_is_padding_alone():
    x, w = (gpucnn.full(n, 2.0, requires_grad=True) for n in ((1, 1, 3, 0), (1, 1, 1, 2)))
    y = F.conv2d(x, w, gpucnn.ones(1), padding=(0, 1))
    assert y.tolist() == [[[[1]] * 3]]
    y.sum().backward()
    assert (x.grad.shape, w.grad.tolist()) == (x.shape, [[[[0, 0]]]])


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 3, 3, 4), (2, 0)])
def test_no_channels_and_no_images_are_no_error(shape):
    x = gpucnn.zeros(shape, requires_grad=True)
    y = F.batch_norm(x, *(gpucnn.ones(shape[1]) for _ in range(4)))
    if len(shape) == 4:
        y = F.max_pool2d(F.avg_pool2d(y, 2, 1), (1, 2)) * F.adaptive_max_pool2d(x, (2, 1)).sum()
    y.sum().backward()
    assert x.grad.shape == shape
    assert F.linear(gpucnn.zeros(3, 0), gpucnn.zeros(2, 0), gpucnn.ones(2)).tolist() == [[1, 1]] * 3


def test_what_no_pixel_made_has_zero_gradients_and_is_the_bias():
    x, w, b = (gpucnn.ones(*shape, requires_grad=True) for shape in ((2, 1, 3, 0), (1, 2, 1, 3), (2,)))
    y = F.conv_transpose2d(x, w, b)
    np.testing.assert_array_equal(y.numpy(), np.ones((2, 2, 3, 2)))
    y.sum().backward()
    assert x.grad.shape == x.shape
    np.testing.assert_array_equal(w.grad.numpy(), np.zeros(w.shape))
    np.testing.assert_array_equal(b.grad.numpy(), [12, 12])


def test_padding_by_a_value_beyond_the_types_largest_is_infinite_and_no_warning():
    np.testing.assert_array_equal(F.pad(gpucnn.ones(2), (1, 0), value=-1e308).numpy(), [-np.inf, 1, 1])


@pytest.mark.parametrize(
    ("stride", "output_padding", "dilation"), [(1, 1, 2), ((1, 2), (2, 2), (3, 3)), (2, (2, 0), 3)]
)
def test_an_output_padding_of_a_stride_or_more_changes_no_gradient(stride, output_padding, dilation):
    rng = np.random.default_rng(0)  # <u, y> is linear in x as well as in w: <x, dx> and <w, dw> are the same number
    x, w = (gpucnn.tensor(rng.integers(-3, 4, n) * 1.0, requires_grad=True) for n in ((2, 4, 3, 5), (4, 3, 2, 3)))
    y = F.conv_transpose2d(x, w, None, stride, 1, output_padding, 2, dilation)
    u = gpucnn.tensor(rng.integers(-3, 4, y.shape) * 1.0)
    y.backward(u)
    assert x.grad.shape == x.shape
    assert (u * y).sum().item() == (x * x.grad).sum().item() == (w * w.grad).sum().item() != 0


def test_a_convolution_that_pools_nan_in_bfloat16_raises_no_warning():
    x = gpucnn.tensor([[[[np.nan, 1.0, 2.0]]]]).bfloat16()
    x.requires_grad_()
    w = gpucnn.ones(1, 1, 1, 1).bfloat16()
    y = F.conv2d_max_pool2d(x, w, activation="relu", max_pool={"kernel_size": (1, 2), "stride": 1})
    y.sum().backward()
    assert np.isnan(y.numpy().astype(float)).tolist() == [[[[True, False]]]]
    assert x.grad.tolist() == [[[[0, 0, 1]]]]


def test_a_state_that_is_not_whole_changes_neither_a_generator_nor_a_module():
    generator, net = gpucnn.Generator(3), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    state, weights = generator.state(), net.state_dict()
    before = [value.numpy().copy() for value in weights.values()]
    for wrong in ({}, {**state, "seed": 5, "counter": None}, {**state, "offset": "x"}):
        with pytest.raises(ValueError, match="this is no state of a Generator"):
            generator.set_state(wrong)
        assert generator.state() == state
    changed = {name: value.numpy() + 1 for name, value in weights.items()}
    for wrong in ([1.0], changed["1.bias"] * 1j):
        with pytest.raises(TypeError, match=r"1.bias must be a tensor|can't hold complex"):
            net.load_state_dict({**changed, "1.bias": wrong})
        for value, was in zip(net.state_dict().values(), before, strict=True):
            np.testing.assert_array_equal(value.numpy(), was)


@pytest.mark.parametrize(("name", "gradient"), [("relu", [0, 1, 1]), ("relu6", [0, 1, 0])])
def test_the_slope_of_an_activation_goes_by_what_was_rounded(name, gradient):
    values = ([-1.0, 2, 3], [1.0], [0.0, 1, 4])
    x, w, r = (gpucnn.tensor(np.reshape(v, (-1, 1, 1, 1)), requires_grad=True) for v in values)
    F.conv2d(x, w, activation=name, residual=r).sum().backward()
    assert x.grad.flatten().tolist() == r.grad.flatten().tolist() == gradient
    assert w.grad.item() == np.dot([-1, 2, 3], gradient)


@pytest.mark.parametrize(
    ("refused", "error", "message"),
    [
        (lambda x: F.linear(x, None), TypeError, "linear: weight must be a gpucnn.Tensor, got NoneType"),
        (lambda x: F.relu(None), TypeError, "relu: input must be a gpucnn.Tensor, got NoneType"),
        (lambda x: F.squeeze(None), TypeError, "squeeze: input must be a gpucnn.Tensor, got NoneType"),
        (lambda x: F.mse_loss(x, None), TypeError, "mse_loss: target must be a gpucnn.Tensor, got NoneType"),
        (lambda x: F.where(None, x, x), TypeError, "where: condition must be a gpucnn.Tensor, got NoneType"),
        (lambda x: F.add(1, 2), TypeError, "add: at least one operand must be a gpucnn.Tensor"),
        (lambda x: F.batch_norm(None, x[0], x[0], x[0]), TypeError, "batch_norm: input must be a gpucnn.Tensor"),
        (lambda x: F.conv2d(x[None, None], x[None, None], padding=2**31 - 1), ValueError, "4294967296×4294967296 pix"),
        (lambda x: F.conv_transpose2d(x[None, None], x[None, None], stride=2**30), ValueError, "is too large: a side"),
        (lambda x: F.pad(x, (2**31,) * 4), ValueError, r"no array of the shape \(4294967298, 4294967298\), it is too"),
        (lambda x: x[0, 0].expand(2**62), ValueError, "it is too large"),
        (lambda x: nn.LayerNorm(1.5), TypeError, r"LayerNorm: normalized_shape must be .* of ints, got \[1.5\]"),
        (lambda x: nn.ZeroPad2d(1.5), TypeError, "ZeroPad2d: padding must be a sequence of ints"),
        (lambda x: nn.Unflatten(1, "22"), TypeError, "Unflatten: unflattened_size must be .* of ints, got '22'"),
        (lambda x: nn.Dropout("0.5"), TypeError, "Dropout: p must be a number, got '0.5'"),
        (lambda x: nn.PReLU(1, "x"), TypeError, "PReLU: init must be a number, got 'x'"),
        (lambda x: nn.Parameter([1.0]), TypeError, "Parameter: data must be a gpucnn.Tensor, got list"),
        (lambda x: nn.CrossEntropyLoss([1.0]), TypeError, "Buffer: data must be a gpucnn.Tensor, got list"),
        (lambda x: nn.init.uniform_(x, 0, np.inf), ValueError, "uniform_: b must be finite, got inf"),
        (lambda x: nn.init.uniform_(x, 1, 0), ValueError, "uniform_: a must be at most b.*got 1.0 and 0.0"),
        (lambda x: nn.init.normal_(x, std=-1), ValueError, "normal_: std must be finite and not negative, got -1"),
        (lambda x: nn.init.ones_([1.0]), TypeError, "constant_: tensor must be a gpucnn.Tensor, got list"),
        (lambda x: nn.init.normal_(x, generator=3), TypeError, "generator must be a gpucnn.Generator, got int"),
        (lambda x: nn.init.calculate_gain([]), ValueError, r"calculate_gain: nonlinearity must be one of .*, got \[\]"),
        (lambda x: nn.models.LeNet5(image_size=28), TypeError, "LeNet5: image_size must be a sequence of ints, got 28"),
        (lambda x: nn.models.VGGSmall(widths=3), TypeError, "VGGSmall: widths must be a sequence of ints, got 3"),
        (lambda x: nn.models.ResNet("basic", 2), TypeError, "ResNet: layers must be a sequence of ints, got 2"),
        (lambda x: nn.models.ResNet(None, (1,), (1,)), ValueError, "ResNet: block must be one of .*, got None"),
        (lambda x: nn.models.BasicBlock(1, 2, 1, 3), TypeError, "downsample must be a Module or None, got int"),
        (lambda x: nn.models.PadShortcut(4, 2, 1), ValueError, "out_channels=2 must not be fewer than in_channels=4"),
        (lambda x: nn.ReLU().apply(None), TypeError, "apply: function must be callable, got None"),
        (lambda x: nn.ReLU().register_forward_hook(3), TypeError, "hook must be callable, got 3"),
        (lambda x: nn.ReLU().load_state_dict(3), TypeError, "load_state_dict: state_dict must be a mapping, got int"),
        (lambda x: nn.ReLU().summary(1, 2.5), TypeError, "summary: a length must be an int, got 2.5"),
        (lambda x: nn.Sequential(nn.ReLU())["0"], IndexError, "Sequential: there is no module '0' among 1"),
        (lambda x: nn.Sequential(nn.ReLU()).explain(x, 0, 0), ValueError, "Sequential has no layer 0; it has '0'"),
        (lambda x: nn.Linear(2, 2).explain(x[:1], "", None), IndexError, "has no unit None"),
        (lambda x: attribution.saliency(nn.ReLU(), x, samples="2"), TypeError, "samples must be an int, got '2'"),
        (lambda x: attribution.occlusion(3, x), TypeError, "model must be a gpucnn.nn.Module, got int"),
        (lambda x: train.predict(nn.ReLU(), np.ones((1, 1, 1, 1), "f"), 1.5), TypeError, "batch_size must be an int"),
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
        (lambda x: x[::0], IndexError, "does not fit shape .*[Ss]lice step .*zero"),
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
        (lambda x: gpucnn.tensor(np.zeros(2, "i4,f4"), "float32"), TypeError, "a tensor can't hold .*'f0', '<i4'"),
        (lambda x: gpucnn.precision([]).__enter__(), ValueError, r"precision is \[\], but the precisions are fp32"),
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
    parameter = gpucnn.ones(3, requires_grad=True, backend="numpy")
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
