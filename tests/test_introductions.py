"""What five introductions to convolutional networks do, acted out, with their numbers.

T0: Deshpande, A Beginner's Guide To Understanding Convolutional Neural Networks. T1: Jordan, Convolutional neural
networks. T2: the walk-through "X or not X". T3: the demystification of convolutional networks on habr. T4: Hashrocket,
A Friendly Introduction to Convolutional Neural Networks.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, data, nn, optim
from gpucnn import functional as F
from gpucnn.nn import models


@pytest.fixture(autouse=True)
def default_backend(backend: str) -> Iterator[None]:
    with gpucnn.use_backend(backend):
        yield


def image(rows: Any) -> Tensor:
    """One gray image [1, 1, H, W] from its rows."""
    return gpucnn.tensor(np.asarray(rows, np.float32)[None, None])


def plane(tensor: Tensor) -> Any:
    """The rows of a single map."""
    assert tensor.shape[:2] == (1, 1)
    return tensor.numpy()[0, 0].tolist()


def cross(size: int) -> np.ndarray:
    return np.maximum(np.eye(size), np.eye(size)[::-1])


# -- images (T0, T1, T2, T4) ---------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_of_gray_and_rgb_images_become_0_to_1(channels: int) -> None:
    pixels = np.zeros((1, 2, 3, channels), np.uint8)
    pixels[0, 0, 1], pixels[0, 1, 2] = 255, 51
    x = data.to_float(pixels)
    assert x.shape == (1, channels, 2, 3)
    expected = np.array([[0, 1, 0], [0, 0, 0.2]], np.float32)
    np.testing.assert_array_equal(x[0], np.broadcast_to(expected, (channels, 2, 3)))


def test_black_and_white_image_is_25_ones_and_zeros_and_four_maps_are_16_values() -> None:
    rows = [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert nn.Flatten()(image(cross(5))).tolist() == [[value for row in rows for value in row]]
    maps = gpucnn.tensor(np.arange(16.0).reshape(1, 4, 2, 2))
    assert nn.Flatten()(maps).tolist() == [list(range(16))]


# -- filters (T0–T4) -----------------------------------------------------------------------------------


def test_filter_of_5x5x3_is_75_multiplications_a_pixel() -> None:
    x, w = gpucnn.rand(1, 3, 5, 5).double(), gpucnn.rand(1, 3, 5, 5).double()
    assert F.conv2d(x, w).item() == pytest.approx(np.dot(x.numpy().ravel(), w.numpy().ravel()), rel=75 * 2.0**-53)
    layer = nn.Conv2d(3, 1, 5, bias=False)
    assert layer.summary(3, 5, 5).multiply_adds == 75
    assert layer.summary(3, 32, 32).multiply_adds == 75 * 784


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "output"),
    [(32, 5, 1, 28), (10, 2, 1, 9), (10, 2, 2, 5), (5, 3, 1, 3), (5, 3, 2, 2), (4, 2, 2, 2)],
)
def test_output_size_is_the_introductions(size: int, kernel: int, stride: int, output: int) -> None:
    y = nn.Conv2d(1, 1, kernel, stride)(gpucnn.zeros(1, 1, size, size))
    assert y.shape == (1, 1, output, output)


def test_each_filter_makes_one_map_of_784_places() -> None:
    x = gpucnn.zeros(1, 3, 32, 32)
    for filters in (1, 2, 3):
        y = nn.Conv2d(3, filters, 5)(x)
        assert y.shape == (1, filters, 28, 28)
        assert y.numel() == filters * 784


def test_four_nodes_of_a_2x2_filter_with_stride_2_on_4x4() -> None:
    assert nn.Conv2d(1, 1, 2, 2)(gpucnn.zeros(1, 1, 4, 4)).numel() == 4


def test_each_axis_has_its_own_filter_padding_and_stride() -> None:
    h, w, (r, s), (p, q), (a, b) = 11, 20, (3, 4), (1, 2), (2, 3)
    y = nn.Conv2d(1, 1, (r, s), (a, b), (p, q))(gpucnn.zeros(1, 1, h, w))
    assert y.shape[2:] == ((h + 2 * p - r) // a + 1, (w + 2 * q - s) // b + 1) == (6, 7)


def test_filter_of_another_depth_than_the_image_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"filter takes 1 channel.* but the input has 3 .*depths must agree"):
        nn.Conv2d(1, 1, 5)(gpucnn.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_n_filters_of_3x3x3_on_6x6x3_make_4x4xn(n: int) -> None:
    """T4 prints 3×3; its own formula, 6 − 3 + 1, gives 4×4."""
    assert nn.Conv2d(3, n, 3)(gpucnn.zeros(1, 3, 6, 6)).shape == (1, n, 4, 4)


@pytest.mark.parametrize(("kernel", "seen"), [(5, 9), (3, 5)])
def test_filter_on_a_filter_sees_a_larger_field(kernel: int, seen: int) -> None:
    x = gpucnn.zeros(1, 1, 15, 15, requires_grad=True)
    ones = gpucnn.ones(1, 1, kernel, kernel)
    y = F.conv2d(F.conv2d(x, ones), ones)
    y[0, 0, 1, 2].backward()
    assert x.grad is not None
    rows, columns = np.nonzero(x.grad.numpy()[0, 0])
    assert (rows.min(), rows.max() - rows.min() + 1) == (1, seen)
    assert (columns.min(), columns.max() - columns.min() + 1) == (2, seen)


def test_zero_padding_keeps_the_size() -> None:
    assert nn.Conv2d(1, 1, 3, padding=1)(gpucnn.zeros(1, 1, 5, 5)).shape == (1, 1, 5, 5)
    assert nn.Conv2d(1, 1, (5, 4), padding="same")(gpucnn.zeros(1, 1, 6, 7)).shape == (1, 1, 6, 7)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (0, [[1, 2, 3, 2, 1], [2, 4, 6, 4, 2], [3, 6, 9, 6, 3], [2, 4, 6, 4, 2], [1, 2, 3, 2, 1]]),
        (1, [[4, 6, 6, 6, 4], [6, 9, 9, 9, 6], [6, 9, 9, 9, 6], [6, 9, 9, 9, 6], [4, 6, 6, 6, 4]]),
    ],
)
def test_corner_pixels_count_less(padding: int, expected: Any) -> None:
    x = gpucnn.rand(1, 1, 5, 5, requires_grad=True)
    F.conv2d(x, gpucnn.ones(1, 1, 3, 3), padding=padding).sum().backward()
    assert x.grad is not None
    assert plane(x.grad) == expected


def test_filter_is_not_flipped() -> None:
    x, w = np.arange(20.0).reshape(4, 5), np.array([[1.0, 2, 3], [4, 5, 6]])

    def correlated(filter: np.ndarray) -> Any:
        return [[float((x[p : p + 2, q : q + 3] * filter).sum()) for q in range(3)] for p in range(3)]

    y = plane(F.conv2d(image(x), image(w)))
    assert y == correlated(w)
    assert y != correlated(w[::-1, ::-1])


def test_convolution_is_linear_and_moves_with_the_image() -> None:
    generator = np.random.default_rng(0)
    x, y = (gpucnn.tensor(generator.integers(-9, 10, (1, 2, 9, 8)).astype(np.float32)) for _ in range(2))
    w = gpucnn.tensor(generator.integers(-9, 10, (3, 2, 3, 2)).astype(np.float32))
    left, right = F.conv2d(x * 3 + y * -2, w), F.conv2d(x, w) * 3 + F.conv2d(y, w) * -2
    np.testing.assert_array_equal(left.numpy(), right.numpy())
    moved = gpucnn.tensor(np.roll(x.numpy(), (2, 1), (2, 3)))
    np.testing.assert_array_equal(F.conv2d(moved, w).numpy()[:, :, 2:, 1:], F.conv2d(x, w).numpy()[:, :, :-2, :-1])


def test_shared_filter_needs_76_weights_where_dense_layers_need_millions() -> None:
    def weights(layer: nn.Module) -> int:
        return sum(p.numel() for p in layer.parameters())

    assert weights(nn.Linear(25, 1)) == 25 + 1
    assert weights(nn.Linear(256 * 256, 1)) == 65_536 + 1
    assert weights(nn.Linear(32 * 32 * 3, 28 * 28)) == 2_409_232
    assert weights(nn.Conv2d(3, 1, 5)) == 76


def test_one_set_of_weights_takes_images_of_any_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    for h, w in [(32, 32), (40, 28), (7, 9)]:
        assert model(gpucnn.rand(1, 3, h, w)).shape == (1, 6, 1, 1)


# -- weights set by hand (T1, T3, T4) ------------------------------------------------------------------


def test_curve_detector_gives_6600_on_its_curve_and_0_elsewhere() -> None:
    """T0 prints a map of 28×28 for the 7×7 filter on 32×32; the formula gives 26×26."""
    detector = nn.Conv2d(1, 1, 7, bias=False)
    curve = [(1, 5), (2, 4), (3, 3), (4, 3), (5, 3)]
    with gpucnn.no_grad():
        detector.weight[...] = 0
        for row, column in curve:
            detector.weight[0, 0, row, column] = 30
    picture = np.zeros((32, 32))
    for (row, column), brightness in zip(curve, [50, 50, 50, 50, 20], strict=True):
        picture[10 + row, 10 + column] = brightness
    y = detector(image(picture))
    assert y.shape == (1, 1, 26, 26)
    assert y[0, 0, 10, 10].item() == y.amax().item() == 4 * 50 * 30 + 20 * 30 == 6600
    assert not y.numpy()[0, 0, 20:].any()


def test_line_filter_answers_to_the_stroke_of_a_one_and_to_nothing_else() -> None:
    line = image([[-1, 2, -1]] * 3)
    one = np.zeros((4, 4))
    one[:, 1] = 1
    assert plane(F.conv2d(image(one), line)) == [[6, -3], [6, -3]]
    assert plane(F.relu(F.conv2d(image(np.zeros((4, 4))), line))) == [[0, 0], [0, 0]]
    assert plane(F.relu(F.conv2d(image(one.T), line))) == [[0, 0], [0, 0]]


def test_laplace_filter_finds_edges() -> None:
    laplace = image([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    assert not F.conv2d(image(np.full((5, 6), 7)), laplace).numpy().any()
    step = np.zeros((5, 5))
    step[:, 2:] = 1
    assert plane(F.conv2d(image(step), laplace)) == [[1, -1, 0]] * 3


def test_diagonal_filter_is_highest_on_its_diagonal() -> None:
    y = F.conv2d(image(np.eye(10)[::-1]), image(np.eye(3)[::-1]))
    assert y.shape == (1, 1, 8, 8)
    values = y.numpy()[0, 0]
    assert set(values[np.eye(8)[::-1] == 1]) == {3}
    assert values[np.eye(8)[::-1] == 0].max() < 3


def outline(h: int, w: int, top: int, left: int, side: int) -> np.ndarray:
    picture = np.zeros((h, w))
    picture[top : top + side, left : left + side] = 1
    picture[top + 1 : top + side - 1, left + 1 : left + side - 1] = 0
    return picture


def test_two_convolutions_find_a_square() -> None:
    """The first layer finds the four corners, the second one of each in their places. Weights are set by hand."""
    corners, square = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 5)
    upper_left = np.array([[-1, -1, -1], [-1, 1, 1], [-1, 1, -1]])
    turned = [upper_left, upper_left[:, ::-1], upper_left[::-1], upper_left[::-1, ::-1]]
    corners.load_state_dict({"weight": np.stack(turned)[:, None], "bias": np.full(4, -2.0)})
    places = np.zeros((1, 4, 5, 5))
    for channel, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        places[0, channel, row, column] = 1
    square.load_state_dict({"weight": places, "bias": np.array([-3.0])})
    model = nn.Sequential(corners, nn.ReLU(), square, nn.ReLU())

    y = model(image(outline(11, 12, 3, 4, 5))).numpy()[0, 0]
    assert np.argwhere(y).tolist() == [[2, 3]]
    assert y[2, 3] == 1

    without_a_corner = outline(11, 12, 3, 4, 5)
    without_a_corner[7, 8] = 0
    filled = np.zeros((11, 12))
    filled[3:8, 4:9] = 1
    crossed = np.zeros((11, 12))
    crossed[3:8, 4:9] = cross(5)
    others = [np.zeros((11, 12)), outline(11, 12, 2, 3, 7), outline(11, 12, 4, 5, 4), without_a_corner, filled, crossed]
    for picture in others:
        assert not model(image(picture)).numpy().any()


# -- activations and pooling (T1, T2, T4) --------------------------------------------------------------


def test_sigmoid_and_the_other_activations() -> None:
    assert F.sigmoid(gpucnn.tensor(0.0)).item() == 0.5
    assert F.sigmoid(gpucnn.tensor(3.8918202981, dtype="float64")).item() == pytest.approx(0.98, abs=1e-12)
    assert F.relu(gpucnn.tensor([-3.0, 0, 2])).tolist() == [0, 0, 2]
    assert F.tanh(gpucnn.tensor(0.5, dtype="float64")).item() == pytest.approx(math.tanh(0.5), rel=1e-15)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: nn.MaxPool2d(2, ceil_mode=True), [[5, 6], [8, 9]]),
        (lambda: nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), [[3, 4.5], [7.5, 9]]),
        (lambda: nn.SumPool2d(2, ceil_mode=True), [[12, 9], [15, 9]]),
        (lambda: nn.MinPool2d(2, ceil_mode=True), [[1, 3], [7, 9]]),
    ],
)
def test_pooling_of_1_to_9_keeps_partial_windows(layer: Any, expected: Any) -> None:
    assert plane(layer()(image(np.arange(1, 10).reshape(3, 3)))) == expected


def test_stride_of_pooling_is_its_window_and_global_pooling_leaves_one_value_a_map() -> None:
    x = gpucnn.rand(1, 7, 9, 6)
    assert nn.MaxPool2d((3, 2))(x).shape == (1, 7, 3, 3)
    for layer in (nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1), nn.MaxPool2d((9, 6)), nn.AvgPool2d((9, 6))):
        assert layer(x).shape == (1, 7, 1, 1)


def test_pooling_hides_a_small_shift() -> None:
    outputs = set()
    for row, column in [(2, 2), (2, 3), (3, 2), (3, 3)]:
        x = np.zeros((6, 8))
        x[row, column] = 5
        outputs.add(str(plane(F.max_pool2d(image(x), 2))))
    assert len(outputs) == 1


# -- dense layers, probabilities, losses (T0, T2, T4) --------------------------------------------------


def test_dense_layers_have_a_weight_for_each_pair_and_a_bias_for_each_output() -> None:
    layers = [nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(16, 3), nn.Linear(3, 1)]
    counts = [(layer.weight.numel(), layer.bias.numel()) for layer in layers if layer.bias is not None]
    assert counts == [(20, 4), (8, 2), (48, 3), (3, 1)]


def test_ten_probabilities_name_class_3() -> None:
    p = np.array([0, 0.1, 0.1, 0.75, 0, 0, 0, 0, 0, 0.05])
    with np.errstate(divide="ignore"):
        logits = gpucnn.tensor(np.log(p))
    y = F.softmax(logits, 0)
    np.testing.assert_allclose(y.numpy(), p, rtol=1e-15, atol=0)
    assert y.argmax().item() == 3


def test_three_probabilities_come_from_their_logarithms() -> None:
    y = F.softmax(gpucnn.tensor(np.log([0.80, 0.15, 0.05]) + 7), 0)
    np.testing.assert_allclose(y.numpy(), [0.80, 0.15, 0.05], rtol=1e-14)


def test_92_percent_dog_is_a_gap_of_ln_11_5_between_the_scores() -> None:
    gap = math.log(11.5)
    assert gap == pytest.approx(2.4423470354, abs=5e-11)
    y = F.softmax(gpucnn.tensor(np.array([gap, 0.0])), 0)
    np.testing.assert_allclose(y.numpy(), [0.92, 0.08], rtol=1e-15)


def test_log_loss_of_98_percent_for_a_true_x() -> None:
    y = F.binary_cross_entropy(gpucnn.tensor([0.98], dtype="float64"), gpucnn.ones(1, dtype="float64"))
    assert y.item() == pytest.approx(0.0202027073, abs=5e-11)


def test_half_squared_error_of_ten_equal_guesses() -> None:
    guess = gpucnn.full((10,), 0.1, dtype="float64", requires_grad=True)
    target = gpucnn.tensor(np.eye(10)[3])
    loss = F.half_squared_error(guess, target)
    loss.backward()
    assert loss.item() == pytest.approx(0.45, rel=1e-15)
    assert guess.grad is not None
    np.testing.assert_allclose(guess.grad.numpy(), np.where(np.arange(10) == 3, -0.9, 0.1), rtol=1e-15)


def test_untrained_network_says_a_tenth_for_each_class_and_costs_ln_10() -> None:
    logits = gpucnn.zeros(4, 10, dtype="float64")
    np.testing.assert_allclose(F.softmax(logits, 1).numpy(), np.full((4, 10), 0.1), rtol=1e-15)
    assert F.cross_entropy(logits, [0, 3, 9, 5]).item() == pytest.approx(2.302585, abs=5e-7)


def test_87_percent_dog_is_off_by_13() -> None:
    logit = gpucnn.tensor(math.log(0.87 / 0.13), dtype="float64", requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(logit, gpucnn.tensor(1.0, dtype="float64"))
    loss.backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(-0.13, rel=1e-14)


# -- training (T0, T2, T4) -----------------------------------------------------------------------------


def test_learning_rate_of_a_tenth_converges_and_one_above_two_diverges() -> None:
    for rate, grows in [(0.1, False), (2.1, True)]:
        w = gpucnn.tensor(1.0, requires_grad=True)
        optimizer = optim.SGD([w], rate)
        values = [1.0]
        for _ in range(30):
            optimizer.zero_grad()
            (w * w * 0.5).backward()
            optimizer.step()
            values.append(abs(w.item()))
        assert values == sorted(values, reverse=not grows)
        assert (values[-1] > 10) if grows else (values[-1] < 0.05)


def test_test_set_that_overlaps_the_training_set_is_refused() -> None:
    everything = data.x_or_not_x(120, seed=1)
    train, held_out = data.split(everything, 0.25)
    data.check_disjoint(train, held_out)
    with pytest.raises(ValueError, match=r"test images .* are also in the training set"):
        data.check_disjoint(everything, held_out)


def test_layers_stand_in_any_order_also_a_convolution_after_a_dense_layer() -> None:
    model = models.friendly_introduction()
    y = model(gpucnn.rand(3, 1, 10, 10))
    assert y.shape == (3, 2)
    F.cross_entropy(y, [0, 1, 1]).backward()
    assert all(p.grad is not None and p.grad.numpy().any() for p in model.parameters())


def squared_error(logits: Tensor, labels: np.ndarray) -> Tensor:
    return F.mse_loss(F.softmax(logits, 1), gpucnn.tensor(np.eye(2, dtype=np.float32)[labels]))


@pytest.mark.parametrize("loss", [F.cross_entropy, squared_error])
def test_what_the_guide_names_works_together(loss: Any) -> None:
    """Initialisation, batch norm, dropout, augmentation, weight decay and a choice of losses, in one training."""
    gpucnn.manual_seed(0)
    dataset = data.x_or_not_x(64, (7, 8), seed=2, distort=0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Dropout(0.1),
        nn.Flatten(), nn.Linear(72, 2),
    )  # fmt: skip
    nn.init.kaiming_normal_(model[0].weight, nonlinearity="relu")
    optimizer = optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.01)
    loader = data.Loader(dataset, 16, augment=data.RandomHorizontalFlip())
    costs = []
    for epoch in range(12):
        for images, labels in loader.epoch(epoch):
            optimizer.zero_grad()
            cost = loss(model(gpucnn.tensor(images)), labels)
            cost.backward()
            optimizer.step()
            costs.append(cost.item())
    assert np.mean(costs[-4:]) < 0.5 * np.mean(costs[:4])
    x = gpucnn.tensor(data.to_float(dataset.images))
    assert (model.eval()(x).argmax(1).numpy() == dataset.labels).mean() > 0.9


# -- X or not X, whole (T2) ----------------------------------------------------------------------------

X_FILTER = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_x_is_seen_by_its_filter_its_bias_relu_and_every_pooling() -> None:
    y = F.conv2d(image(cross(5)), image(X_FILTER))
    assert plane(y) == [[3, 0, 3], [0, 5, 0], [3, 0, 3]]
    y = F.relu(F.conv2d(image(cross(5)), image(X_FILTER), gpucnn.tensor([-3.0])))
    assert plane(y) == [[0, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert plane(F.max_pool2d(y, 2, ceil_mode=True)) == [[2, 0], [0, 0]]
    assert plane(F.avg_pool2d(y, 2, ceil_mode=True, count_include_pad=False)) == [[0.5, 0], [0, 0]]
    assert plane(F.sum_pool2d(y, 2, ceil_mode=True)) == [[2, 0], [0, 0]]


def test_whole_network_with_weights_set_by_hand_says_98_percent() -> None:
    """Four filters -> 16 values -> dense 16 -> 3 with ReLU -> dense 3 -> 1 with sigmoid; 40 + 51 + 4 parameters."""
    model = models.x_or_not_x().to("float64")
    assert sum(p.numel() for p in model.parameters()) == 40 + 51 + 4 == 95
    nothing = {name: np.zeros(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(nothing)
    with gpucnn.no_grad():
        model[0].weight[0, 0] = gpucnn.tensor(X_FILTER)
        model[0].bias[0] = -3
        model[4].weight[1, 0] = 1  # the second of the three looks at the upper left of the first map
        model[6].weight[0, 1] = math.log(0.98 / 0.02) / 2
    x = image(cross(5)).double()
    shapes = [row.output_shape for row in model.summary(1, 5, 5).rows]
    assert shapes == [(4, 3, 3), (4, 3, 3), (4, 2, 2), (16,), (3,), (3,), (1,), (1,)]
    assert model[:3](x).tolist()[0][0] == [[2, 0], [0, 0]]
    assert model[:6](x).tolist() == [[0, 2, 0]]
    y = model(x)
    assert y.item() == pytest.approx(0.98, rel=1e-15)
    loss = F.binary_cross_entropy(y, gpucnn.ones(1, 1, dtype="float64"))
    assert loss.item() == pytest.approx(0.0202027073, abs=5e-11)
    assert model(gpucnn.zeros(1, 1, 5, 5, dtype="float64")).item() == 0.5


def test_trained_network_finds_shifted_shrunk_and_distorted_crosses_it_never_saw() -> None:
    """Half of the pictures are crosses, so guessing is right in half of the cases."""
    train, held_out = data.split(data.x_or_not_x(4000, seed=5), 0.25)
    data.check_disjoint(train, held_out)
    x, target = tensors(train)
    gpucnn.manual_seed(2)
    model = models.x_or_not_x()
    optimizer = optim.Adam(model.parameters(), lr=0.03)
    generator = np.random.default_rng(0)
    for _ in range(600):
        batch = generator.integers(0, len(train), 256)
        optimizer.zero_grad()
        F.binary_cross_entropy(model(x[batch]), target[batch]).backward()
        optimizer.step()
    unseen, expected = tensors(held_out)
    is_cross = expected.numpy() == 1
    found = (model(unseen) > 0.5).numpy()
    assert found[is_cross].mean() > 0.85
    assert found[~is_cross].mean() < 0.15


def tensors(dataset: data.Dataset) -> tuple[Tensor, Tensor]:
    labels = dataset.labels.astype(np.float32).reshape(-1, 1)
    return gpucnn.tensor(data.to_float(dataset.images)), gpucnn.tensor(labels)
