"""`model.explain`: the account of a unit adds up to the model's own value, and its gradients are the tape's."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import gpucnn
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.nn import models

SEVERAL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROUNDING = 2.0**-52


@pytest.fixture(autouse=True)
def _same_weights():
    gpucnn.manual_seed(3)


def image(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tape(layer, x, unit, dy):
    """(value, dx, {parameter: gradient}) of one unit, by the tape."""
    leaf = gpucnn.tensor(x[None], requires_grad=True)
    for parameter in layer.parameters():
        parameter.grad = None
    y = layer(leaf)
    y[(0, *unit)].backward(gpucnn.tensor(np.array(dy)))
    gradients = {name: p.grad.numpy().copy() for name, p in layer.named_parameters()}
    for parameter in layer.parameters():
        parameter.grad = None
    return y.numpy()[(0, *unit)], leaf.grad.numpy()[0], gradients


def spread(e, values, shape):
    """Values of a window at their places in the input, those in the padding left out."""
    whole = np.zeros(shape)
    places, inside = e.places.reshape(-1, len(shape)), e.inside.ravel()
    np.add.at(whole, tuple(places[inside].T), values.ravel()[inside])
    return whole


def check_against_the_tape(layer, x, unit, dy=-1.75):
    """The account is the layer's own value, and what it passes on is what the tape passes on."""
    layer.to("float64").eval()
    e = layer.explain(x, "", unit, gradient=dy)
    value, dx, gradients = tape(layer, x, unit, dy)
    assert e.value == value
    assert e.gradient.output == dy
    np.testing.assert_allclose(spread(e, e.gradient.window, x.shape), dx, rtol=0, atol=64 * ROUNDING * np.abs(dx).max())
    np.testing.assert_array_equal(spread(e, e.window, x.shape) != 0, spread(e, e.inside & (e.window != 0), x.shape))
    seen = tuple(e.places.reshape(-1, x.ndim)[e.inside.ravel()].T)
    np.testing.assert_array_equal(x[seen], e.window.ravel()[e.inside.ravel()])
    if e.products is not None and e.story in ("sum", "mean", "other"):
        terms = np.abs(e.products).sum() + abs(e.bias or 0)
        assert e.sum + (e.bias or 0) == pytest.approx(value, rel=0, abs=(2 + e.products.size) * ROUNDING * terms)
        np.testing.assert_allclose(e.products, e.window * e.weights, rtol=4 * ROUNDING, atol=0)
    assert str(e)
    assert e._repr_html_()
    json.loads(json.dumps(e.to_dict(), allow_nan=False))
    return e, gradients


@st.composite
def convolutions(draw):
    groups, per_group, filters = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    options = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.sampled_from([0, (1, 2), (2, 0, 1, 3)])),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if draw(st.booleans()):
        options |= {"padding": draw(st.sampled_from(["same", "valid"]))}
    layer = nn.Conv2d(groups * per_group, groups * filters, kernel, **options)
    size = draw(st.tuples(st.integers(4, 9), st.integers(4, 9)))
    x = image(groups * per_group, *size, seed=draw(st.integers(0, 9)))
    try:
        shape = layer.to("float64")(gpucnn.tensor(x[None])).shape[1:]
    except ValueError:
        assume(False)
    return layer, x, tuple(draw(st.integers(0, n - 1)) for n in shape)


@SEVERAL
@given(convolutions())
def test_a_convolution_adds_up_for_every_geometry(drawn):
    layer, x, unit = drawn
    e, gradients = check_against_the_tape(layer, x, unit)
    k = unit[0]
    expected = np.zeros(layer.weight.shape)
    expected[k] = e.gradient.weights
    np.testing.assert_allclose(gradients["weight"], expected, rtol=0, atol=64 * ROUNDING * np.abs(x).max() * 1.75)
    if layer.bias is None:
        assert e.bias is None
        assert e.gradient.bias is None
    else:
        assert e.bias == layer.bias.numpy()[k]
        assert gradients["bias"][k] == e.gradient.bias == -1.75
    np.testing.assert_array_equal(e.weights, layer.weight.numpy()[k])


@st.composite
def poolings(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    options = {
        "stride": draw(st.sampled_from([None, 1, (2, 3), (3, 1)])),
        "padding": draw(st.sampled_from([0, (kernel[0] // 2, kernel[1] // 2), (0, kernel[0] // 2, kernel[1] // 2, 0)])),
        "ceil_mode": draw(st.booleans()),
    }
    kind = draw(st.sampled_from([nn.MaxPool2d, nn.MinPool2d, nn.AvgPool2d, nn.SumPool2d]))
    if kind in (nn.MaxPool2d, nn.MinPool2d):
        options["dilation"] = draw(st.integers(1, 2))
    if kind is nn.AvgPool2d:
        options |= {"count_include_pad": draw(st.booleans()), "divisor_override": draw(st.sampled_from([None, 3, -2]))}
    layer = kind(kernel, **options)
    x = image(2, draw(st.integers(3, 9)), draw(st.integers(3, 9)), seed=draw(st.integers(0, 9)))
    if draw(st.booleans()):
        x = np.round(x)  # equal ones compete
    try:
        shape = layer(gpucnn.tensor(x[None])).shape[1:]
    except ValueError:
        assume(False)
    return layer, x, tuple(draw(st.integers(0, n - 1)) for n in shape)


@SEVERAL
@given(poolings())
def test_a_pooling_is_accounted_for_with_padding_ceil_mode_divisors_and_ties(drawn):
    layer, x, unit = drawn
    e, _ = check_against_the_tape(layer, x, unit)
    assert e.gradient.weights is None
    if e.story == "extreme":
        assert x[e.facts["winner"]] == e.value


@pytest.mark.parametrize("kind", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
@pytest.mark.parametrize("size", [1, (3, 4), (2, None)])
def test_an_adaptive_pooling_is_accounted_for(kind, size):
    layer, x = kind(size), image(3, 7, 10)
    shape = layer(gpucnn.tensor(x[None])).shape[1:]
    for unit in np.ndindex(shape):
        check_against_the_tape(layer, x, unit)


def test_a_mean_divides_by_what_the_window_holds_of_the_padded_plane():
    layer, x = nn.AvgPool2d((4, 3), 2, (0, 2, 1, 0), ceil_mode=True), image(1, 5, 7)
    divisors = {check_against_the_tape(layer, x, (0, p, q))[0].facts["divisor"] for p in range(3) for q in range(4)}
    assert divisors == {12, 9, 8, 6}, "whole, cut at the bottom, at the right, at both"


def test_not_a_number_wins_a_pooling():
    x = np.array([[[3.0, np.nan], [np.nan, 5.0]]])
    assert nn.MaxPool2d(2).explain(x, "", (0, 0, 0)).facts["winner"] == (0, 0, 1)
    assert nn.MinPool2d(2).explain(x, "", (0, 0, 0)).facts["winner"] == (0, 0, 1)


LAYERS = [
    (nn.Linear(7, 3), (7,), (2,)),
    (nn.Linear(7, 3, bias=False), (7,), (0,)),
    (nn.BatchNorm2d(3), (3, 4, 5), (1, 3, 2)),
    (nn.BatchNorm2d(3, affine=False), (3, 4, 5), (1, 3, 2)),
    (nn.BatchNorm1d(4), (4,), (2,)),
    (nn.ReLU(), (2, 3, 4), (1, 2, 3)),
    (nn.ReLU6(), (5,), (1,)),
    (nn.LeakyReLU(0.2), (5,), (1,)),
    (nn.PReLU(), (2, 3, 4), (1, 0, 1)),
    (nn.ELU(), (5,), (1,)),
    (nn.SELU(), (5,), (2,)),
    (nn.GELU(), (5,), (2,)),
    (nn.SiLU(), (5,), (2,)),
    (nn.Mish(), (5,), (2,)),
    (nn.Hardswish(), (5,), (2,)),
    (nn.Hardsigmoid(), (5,), (2,)),
    (nn.Hardtanh(-0.1, 3), (5,), (2,)),
    (nn.Softplus(), (5,), (2,)),
    (nn.Sigmoid(), (5,), (2,)),
    (nn.LogSigmoid(), (5,), (2,)),
    (nn.Softsign(), (5,), (2,)),
    (nn.Tanh(), (5,), (2,)),
    (nn.Softmax(1), (6,), (4,)),
    (nn.Softmax(-1), (6,), (0,)),
    (nn.Softmax(1), (3, 2, 4), (2, 1, 3)),
    (nn.LogSoftmax(1), (6,), (4,)),
    (nn.Flatten(), (3, 4, 5), (33,)),
    (nn.Flatten(2), (3, 4, 5), (2, 13)),
    (nn.Unflatten(1, (2, 3, 4)), (24,), (1, 2, 3)),
    (nn.Identity(), (2, 3, 4), (1, 0, 2)),
    (nn.Dropout(0.5), (6,), (3,)),
    (nn.ConvTranspose2d(2, 3, (3, 2), 2, 1), (2, 4, 5), (1, 3, 4)),
    (nn.ZeroPad2d((1, 2, 0, 1)), (2, 3, 4), (1, 0, 0)),
    (nn.ReflectionPad2d(1), (2, 3, 4), (1, 0, 0)),
    (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 4), (1, 3, 2)),
    (nn.InstanceNorm2d(4, affine=True), (4, 3, 2), (2, 1, 1)),
    (nn.GroupNorm(2, 4), (4, 3, 2), (2, 1, 1)),
    (nn.LayerNorm((4, 3)), (2, 4, 3), (1, 2, 0)),
    (nn.LocalResponseNorm(3), (4, 3, 2), (2, 1, 1)),
]


@pytest.mark.parametrize(("layer", "shape", "unit"), LAYERS, ids=lambda v: repr(v) if isinstance(v, nn.Module) else "")
def test_every_layer_has_an_account_whose_gradients_are_the_tapes(layer, shape, unit):
    for name, value in layer.to("float64").state_dict().items():
        if value.dtype.kind == "f":
            value.detach().copy_(np.abs(image(*value.shape, seed=len(name))) + 0.3)
    e, gradients = check_against_the_tape(layer, image(*shape), unit)
    if isinstance(layer, nn.Linear):
        expected = np.zeros(layer.weight.shape)
        expected[unit[-1]] = e.gradient.weights
        np.testing.assert_allclose(gradients["weight"], expected, rtol=4 * ROUNDING)
    if e.story == "norm" and gradients:
        for name, ours in (("weight", e.gradient.weights[0]), ("bias", e.gradient.bias)):
            assert ours == pytest.approx(gradients[name][unit[0]], rel=16 * ROUNDING)
    if e.story == "norm":
        assert e.sum + (e.bias or 0) == pytest.approx(e.value, rel=16 * ROUNDING)
        f = e.facts
        assert f["normalised"] == pytest.approx((e.window[0] - f["mean"]) / math.sqrt(f["variance"] + f["eps"]))


def test_a_batch_norm_without_running_statistics_is_told_by_its_slopes():
    e, _ = check_against_the_tape(nn.BatchNorm2d(2, track_running_stats=False), image(2, 3, 4), (1, 2, 0))
    assert e.story == "other"
    assert e.window.size == 12, "the mean and variance of the channel depend on all of it"


class Doubled(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


def test_a_subclass_may_compute_something_else_and_is_told_by_its_slopes():
    layer = Doubled(1, 2, 3)
    e, _ = check_against_the_tape(layer, image(1, 5, 6), (1, 2, 3))
    np.testing.assert_allclose(e.weights, 2 * layer.weight.numpy()[1].ravel())
    assert e.bias == pytest.approx(2 * layer.bias.numpy()[1])


# -- in a network ----------------------------------------------------------------------------------


def test_the_value_is_the_networks_own_and_the_gradient_that_of_the_prediction(backend):
    model = models.LeNet5().to(backend)
    x = gpucnn.tensor(image(1, 28, 28).astype(np.float32), backend=backend)
    model.eval()
    logits = model(x.reshape(1, 1, 28, 28))
    taken = int(logits.numpy().argmax())
    y = model[0](x.reshape(1, 1, 28, 28))
    e = model.explain(x, "0", (2, 7, 13))
    assert e.value == pytest.approx(y.numpy()[0, 2, 7, 13], rel=1e-5)
    assert e.sum + e.bias == pytest.approx(e.value, rel=1e-5)
    assert e.gradient.of == f"the score of class {taken}, the prediction"

    def score(nudge):
        moved = y.numpy().astype(np.float64)
        moved[0, 2, 7, 13] += nudge
        rest = gpucnn.tensor(moved)
        for layer in list(nn.Sequential(*model.children()).to("numpy").to("float64").children())[1:]:
            rest = layer(rest)
        return rest.numpy()[0, taken]

    slope = (score(1e-4) - score(-1e-4)) / 2e-4
    assert e.gradient.output == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_the_activation_behind_the_unit_is_told_with_its_slope():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(2 * 3 * 4, 3)).to("float64")
    x = image(1, 5, 6)
    seen = set()
    for unit in np.ndindex(2, 3, 4):
        e = model.explain(x, "0", unit, target=2)
        a = e.activation
        assert (a.layer, a.kind) == ("1", "LeakyReLU")
        assert a.value == pytest.approx(e.value if e.value > 0 else 0.1 * e.value)
        assert a.slope == pytest.approx(1.0 if e.value > 0 else 0.1)
        k = np.ravel_multi_index(unit, (2, 3, 4))
        assert e.gradient.after_activation == pytest.approx(model[3].weight.numpy()[2, k])
        assert e.gradient.output == pytest.approx(a.slope * e.gradient.after_activation)
        seen.add(a.slope > 0.5)
    assert seen == {True, False}


def test_only_what_takes_the_unit_is_its_activation():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    assert model.explain(image(4), "0", 1).activation is None
    assert model.explain(image(4), "3", 1).activation is None
    e = model.explain(image(4), "1", 1, gradient=0.5)
    assert e.activation.layer == "2"
    assert (e.gradient.of, e.gradient.output, e.gradient.after_activation) == ("given", 0.5, None)
    assert "dy = 0.5 is given." in str(e)


def test_a_constant_is_told_only_where_there_is_one():
    x = image(2, 3, 4).astype(np.float32)
    assert "the rest" not in str(nn.Upsample(scale_factor=2, mode="bilinear").explain(x, "", (1, 3, 2)))
    layer = nn.ConvTranspose2d(2, 3, 3)
    e = layer.explain(x, "", (1, 2, 3))
    assert e.bias == pytest.approx(layer.bias.numpy()[1], rel=1e-5)
    assert "+ the rest: a constant, or a curve" in str(e)


def test_a_label_starts_from_the_cross_entropy_loss():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to("float64")
    x = image(5)
    e = model.explain(x, "2", 1, label=2)
    logits = model(gpucnn.tensor(x[None])).numpy()[0]
    p = np.exp(logits) / np.exp(logits).sum()
    assert e.loss.value == pytest.approx(-math.log(p[2]))
    assert e.gradient.output == pytest.approx(p[1])
    assert model.explain(x, "2", 2, label=2).gradient.output == pytest.approx(p[2] - 1)
    np.testing.assert_allclose(e.loss.probabilities, p)
    assert "−ln p of class 2" in str(e)
    assert e.gradient.of == "the cross-entropy loss of class 2"


def test_layers_inside_residual_blocks_are_explained_by_name_and_blocks_name_their_layers():
    model = models.resnet20().to("float64")
    x = image(3, 9, 11)
    e = model.explain(x, "layer2.0.conv1", (5, 1, 2))
    assert (e.window.shape, e.input_shape) == ((16, 3, 3), (16, 9, 11))
    assert e.sum == pytest.approx(e.value)
    assert "and 13 more channels" in str(e)
    with pytest.raises(
        ValueError, match=r"layer 'layer2\.0' is a BasicBlock of 5 layers.*layer2\.0\.conv1, layer2\.0\.bn1"
    ):
        model.explain(x, "layer2.0", 0)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.9), nn.Flatten(), nn.Linear(24, 3))
    model[2].eval()
    model[0].bias.requires_grad = False
    F.cross_entropy(model(gpucnn.rand(4, 1, 5, 6)), [0, 1, 2, 0]).backward()
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    gradients = {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
    model.explain(image(1, 5, 6), "0", (1, 2, 3), label=1)
    assert [m.training for m in model.modules()] == [True, True, True, False, True, True]
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name])
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(gradients)
    for name, p in model.named_parameters():
        if p.grad is not None:
            np.testing.assert_array_equal(p.grad.numpy(), gradients[name])
    assert not model[0].bias.requires_grad
    assert not any(vars(m).get("_hooks") for m in model.modules())


def test_gradients_stay_unset_where_they_were():
    model = nn.Sequential(nn.Linear(3, 2))
    model.explain(image(3), "0", 1)
    assert all(p.grad is None for p in model.parameters())


def test_a_layer_without_way_to_the_output_gets_no_gradient():
    class Aside(nn.Module):
        def __init__(self):
            self.used, self.aside = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, input):
            self.aside(input)
            return self.used(input)

    e = Aside().explain(image(3), "aside", 0)
    assert e.gradient.output == 0


def test_it_works_inside_no_grad():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to("float64")
    x = image(3)
    expected = model.explain(x, "0", 1, target=0).gradient.output
    assert expected == model[1].weight.numpy()[0, 1]
    with gpucnn.no_grad():
        assert model.explain(x, "0", 1, target=0).gradient.output == expected
        assert not gpucnn.is_grad_enabled()


# -- what is printed -------------------------------------------------------------------------------


def test_a_3x3_filter_is_drawn_as_the_introductions_do():
    layer = nn.Conv2d(1, 1, 3, padding=1)
    layer.load_state_dict(
        {"weight": [[[[0, 1, 0], [1, -4, 1], [0, 1, 0]]]] * np.ones((1, 1, 1, 1)), "bias": np.array([2.0])}
    )
    x = np.arange(1.0, 13).reshape(1, 3, 4)
    text = str(nn.Sequential(layer, nn.ReLU()).explain(x, "0", (0, 0, 1)))
    lines = text.splitlines()
    assert lines[0] == "0: Conv2d(1, 1, 3, padding=1), unit (0, 0, 1) of 1×3×4"
    assert (
        lines[1]
        == "  It sees rows -1 to 1 and columns 0 to 2 of channel 0 of the 3×4 input; 3 of 9 places are padding (·)."
    )
    assert [line.split() for line in lines[2:6]] == [
        ["input", "filter", "0", "products"],
        ["·", "·", "·", "0", "1", "0", "·", "·", "·"],
        ["1", "2", "3", "×", "1", "-4", "1", "=", "1", "-8", "3"],
        ["5", "6", "7", "0", "1", "0", "0", "6", "0"],
    ]
    assert re.search(r"sum of the products +2\n +\+ bias +2\n +\= the unit +4\n", text)
    assert "1 ReLU makes 4 of it." in text
    assert max(map(len, lines)) <= 110


def test_a_long_sum_lists_the_largest_products_and_sums_up_the_rest():
    layer = nn.Linear(390, 2).to("float64")
    x = image(390)
    e = layer.explain(x, "", 1)
    products = x * layer.weight.numpy()[1]
    order = np.argsort(-np.abs(products))
    listed = [int(line.split()[0]) for line in str(e).splitlines() if re.match(r" +\d+ +-?\d", line)]
    assert listed == order[:10].tolist()
    rest = re.search(r"and 380 more +(\S+)", str(e))
    assert float(rest[1]) == pytest.approx(products[order[10:]].sum(), rel=1e-5)


def test_channels_with_the_largest_share_come_first():
    layer = nn.Conv2d(6, 1, 2).to("float64")
    e = layer.explain(image(6, 4, 5), "", (0, 1, 2))
    shown = [int(n) for n in re.findall(r"input, channel (\d)", str(e).split("products of")[0])]
    sums = np.abs(e.products.sum(axis=(1, 2)))
    assert shown == np.argsort(-sums)[:3].tolist()
    assert "and 3 more channels" in str(e)


def test_the_html_is_one_fragment_without_scripts_or_files():
    html = models.LeNet5().explain(image(1, 28, 28), "0", (2, 0, 13), label=3)._repr_html_()
    assert html.startswith('<div class="gpucnn">')
    assert html.endswith("</div>")
    assert not re.search("<script|http", html)
    assert "prefers-color-scheme" in html
    assert html.count("<table>") == html.count("</table>") > 4


def test_text_and_names_of_html_are_escaped():
    class Less(nn.Module):
        def extra_repr(self):
            return "a<b & c"

        def forward(self, input):
            return input * 2

    assert "a&lt;b &amp; c" in Less().explain(image(3), "", 1)._repr_html_()


# -- mistakes --------------------------------------------------------------------------------------


def test_mistakes_are_named_with_what_there_is():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    x = image(1, 5, 6)
    with pytest.raises(ValueError, match=r"Sequential has no layer 'features'; it has '0', '1', '2', '3'"):
        model.explain(x, "features", 0)
    with pytest.raises(ValueError, match=r"has no layer 'layer1\.0\.conv3'; it has 'layer1\.0\.conv"):
        models.resnet20().explain(x, "layer1.0.conv3", 0)
    with pytest.raises(
        ValueError, match=r"the model itself is a Sequential of 4 layers; explain one of them: 0, 1, 2, 3"
    ):
        model.explain(x, "", 0)
    with pytest.raises(
        IndexError, match=r"layer '0' makes 2×3×4, which has no unit \(2, 0, 0\): a unit is \(0 to 1, 0 to 2"
    ):
        model.explain(x, "0", (2, 0, 0))
    for unit in ((0, 0), (0, 0, -1), 1, (0.5, 0, 0)):
        with pytest.raises(IndexError, match="makes 2×3×4, which has no unit"):
            model.explain(x, "0", unit)
    with pytest.raises(ValueError, match=r"one image \[C, H, W\] or \[1, C, H, W\], got 2 of them"):
        model.explain(image(2, 1, 5, 6), "0", (0, 0, 0))
    with pytest.raises(ValueError, match="choose one of target=1, label=2 and gradient=None"):
        model.explain(x, "0", (0, 0, 0), target=1, label=2)
    with pytest.raises(IndexError, match="there is no class 3 among the model's 3 outputs: 0 to 2"):
        model.explain(x, "0", (0, 0, 0), target=3)
    with pytest.raises(IndexError, match="there is no class 9 among"):
        model.explain(x, "0", (0, 0, 0), label=9)
    with pytest.raises(ValueError, match="label needs a model with a score for each class"):
        models.x_or_not_x().explain(image(1, 5, 5), "0", (0, 0, 0), label=0)
    assert not any(vars(m).get("_hooks") for m in model.modules())


def test_a_layer_that_does_not_run_is_named():
    class Lazy(nn.Module):
        def __init__(self):
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, input):
            return self.used(input)

    with pytest.raises(ValueError, match=r"layer 'idle' \(Linear\) does not run"):
        Lazy().explain(image(3), "idle", 0)
