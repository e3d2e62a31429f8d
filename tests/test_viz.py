"""Pictures: what they contain, that they are saved whole, and that nothing global changes."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import gpucnn
from gpucnn import nn, viz
from gpucnn.callbacks import History
from gpucnn.data import Dataset
from gpucnn.metrics import Evaluation

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
from PIL import Image

NAMES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def _same_weights():
    gpucnn.manual_seed(5)


def evaluation_and_images():
    """Seven images 6×4 with three mistakes, of which number 4 is the surest and number 1 the least sure."""
    labels = np.array([0, 0, 1, 1, 2, 2, 2])
    taken = np.array([0, 1, 1, 2, 0, 2, 2])
    sure = np.array([0.9, 0.5, 0.8, 0.6, 0.7, 0.9, 0.8])
    probabilities = np.repeat((1 - sure[:, None]) / 2, 3, axis=1).astype(np.float32)
    probabilities[np.arange(7), taken] = sure
    images = np.random.default_rng(0).integers(0, 256, (7, 6, 4, 1), dtype=np.uint8)
    return Evaluation(0.5, probabilities, labels, NAMES), Dataset(images, labels, NAMES, "pets")


def history(epochs=4, held_out=True):
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch}
        if held_out:
            row |= {"held_out_loss": 2 / epoch, "held_out_accuracy": 1 - 0.6 / epoch}
        rows.append(row | {"lr": 0.1 * epoch})
    return History(rows)


def drawn(axes):
    """What an axes shows, without the gaps."""
    return axes.images[0].get_array().filled(np.nan)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_filters_are_drawn_with_their_own_values_symmetric_around_white():
    layer = nn.Conv2d(1, 5, (3, 4))
    figure = viz.filters(layer)
    shown = drawn(figure.axes[0])
    weight = layer.weight.numpy()
    zoom = 6  # a tile of 4 columns is enlarged to 24
    for k in range(5):
        tile = shown[: 3 * zoom, k * (4 * zoom + 2) : k * (4 * zoom + 2) + 4 * zoom]
        np.testing.assert_array_equal(tile, weight[k, 0].repeat(zoom, 0).repeat(zoom, 1))
    assert np.isnan(shown[:, 4 * zoom : 4 * zoom + 2]).all(), "the gap is left white"
    low, high = figure.axes[0].images[0].get_clim()
    assert low == -high == pytest.approx(-np.abs(weight).max())
    assert figure.axes[0].get_title(loc="left") == "The 5 filters 3×4 that this layer learned"


def test_filters_of_a_network_are_those_of_its_first_convolution():
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 12, 5), nn.Conv2d(12, 4, 3))
    figure = viz.filters(model)
    assert figure.axes[0].get_title(loc="left") == "The 12 filters 5×5 that layer 1 learned"


def test_filters_on_three_channels_are_colours_with_grey_for_zero():
    layer = nn.Conv2d(3, 2, 24)  # so large that nothing is enlarged
    layer.weight.detach().copy_(np.clip(layer.weight.numpy(), -0.02, None))
    layer.weight.numpy()[0, :, 0, 0] = 0
    layer.weight.numpy()[1, :, 2, 3] = (-0.02, 0.01, 0.04)
    limit = np.abs(layer.weight.numpy()).max()
    shown = drawn(viz.filters(layer).axes[0])
    np.testing.assert_allclose(shown[0, 0], 0.5)
    np.testing.assert_allclose(shown[2, 24 + 2 + 3], 0.5 + np.array([-0.02, 0.01, 0.04]) / (2 * limit), rtol=1e-6)
    assert (shown[:, 24:26] == 1).all(), "the gap is white"


def test_filters_on_many_channels_are_a_row_of_planes_each_at_most_16_by_16():
    layer = nn.Conv2d(20, 18, 3)
    figure = viz.filters(layer)
    shown = drawn(figure.axes[0])
    assert shown.shape == (16 * 26 - 2, 16 * 26 - 2)
    np.testing.assert_array_equal(
        shown[26 : 26 + 24, 2 * 26 : 2 * 26 + 24], layer.weight.numpy()[1, 2].repeat(8, 0).repeat(8, 1)
    )
    assert figure.axes[0].get_title(loc="left") == "The 18 filters 3×3 that this layer learned (16 of them)"
    assert figure.axes[0].get_xlabel() == "input channel (16 of 20)"


def test_filters_that_are_all_zero_can_be_drawn(tmp_path):
    layer = nn.Conv2d(1, 2, 3)
    layer.weight.detach().copy_(np.zeros((2, 1, 3, 3)))
    viz.filters(layer, tmp_path / "zero.png")
    assert (tmp_path / "zero.png").exists()


def test_a_network_without_convolution_has_no_filters_to_show():
    with pytest.raises(ValueError, match="Sequential has no Conv2d, so it has no filters to show"):
        viz.filters(nn.Sequential(nn.Linear(4, 2)))


def test_feature_maps_show_the_output_of_every_layer_in_order():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 5 * 4, 3), nn.Sigmoid())
    image = np.random.default_rng(1).standard_normal((1, 7, 6)).astype(np.float32)
    figure = viz.feature_maps(model, image, classes=NAMES)
    labels = [texts(axes)[-1] for axes in figure.axes]
    assert labels == [
        "input\n1×7×6", "0 Conv2d\n3×5×4", "1 ReLU\n3×5×4", "2 Flatten\n60", "3 Linear\n3", "4 Sigmoid\n3",
    ]  # fmt: skip
    conv = model[0](gpucnn.tensor(image[None])).numpy()[0]
    zoom = 5  # a map of 5 rows is enlarged to 25
    shown = drawn(figure.axes[1])
    for c in range(3):
        tile = shown[:, c * (4 * zoom + 2) : c * (4 * zoom + 2) + 4 * zoom]
        np.testing.assert_allclose(tile, conv[c].repeat(zoom, 0).repeat(zoom, 1), rtol=1e-6)
    assert np.nanmin(drawn(figure.axes[2])) == 0, "the ReLU has taken what was below 0"
    for axes in figure.axes:
        low, high = axes.images[0].get_clim()
        assert low == -high == -np.nanmax(np.abs(drawn(axes))), "0 is white"
    np.testing.assert_array_equal(drawn(figure.axes[3])[0], np.maximum(conv, 0).reshape(-1))
    last = model(gpucnn.tensor(image[None])).numpy()[0]
    assert texts(figure.axes[5])[:3] == [f"{name}: {value:.2g}" for name, value in zip(NAMES, last, strict=True)]
    assert texts(figure.axes[4])[:3] == [f"{value:.2g}" for value in model[:4](gpucnn.tensor(image[None])).numpy()[0]]


def test_feature_maps_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.9))
    model[2].eval()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    figure = viz.feature_maps(model, np.ones((1, 5, 6), np.float32))
    assert [module.training for module in model.modules()] == [True, True, True, False]
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    count = len(figure.axes)
    viz.feature_maps(model, np.ones((1, 5, 6), np.float32))
    assert len(figure.axes) == count
    assert not any(vars(module).get("_hooks") for module in model.modules())


def test_feature_maps_remove_their_hooks_when_the_image_does_not_fit():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with pytest.raises(ValueError, match="channels"):
        viz.feature_maps(model, np.ones((3, 5, 6), np.float32))
    assert not any(vars(module).get("_hooks") for module in model.modules())
    assert model.training


def test_feature_maps_show_16_of_many_and_the_children_of_a_deep_network():
    figure = viz.feature_maps(nn.models.resnet20(), np.ones((3, 8, 12), np.float32))
    labels = [texts(axes)[-1] for axes in figure.axes]
    assert [label.split()[0] for label in labels] == [
        "input", "conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "avgpool", "fc",
    ]  # fmt: skip
    assert labels[5] == "layer2 Sequential\n32×4×6, 16 of them"


def test_feature_maps_take_a_tensor_and_a_model_in_float64():
    model = nn.Sequential(nn.Conv2d(1, 2, 3)).to("float64")
    figure = viz.feature_maps(model, gpucnn.ones(1, 4, 5))
    assert texts(figure.axes[1])[-1] == "0 Conv2d\n2×2×3"


def test_feature_maps_of_a_model_without_parameters():
    figure = viz.feature_maps(nn.Sequential(nn.MaxPool2d(2)), np.ones((1, 4, 6), np.float32))
    assert texts(figure.axes[1])[-1] == "0 MaxPool2d\n1×2×3"


def test_feature_maps_need_one_image():
    with pytest.raises(ValueError, match=r"one image \[C, H, W\], got shape \(2, 1, 5, 5\)"):
        viz.feature_maps(nn.models.x_or_not_x(), np.ones((2, 1, 5, 5), np.float32))


def test_misclassified_images_come_with_the_surest_mistake_first():
    evaluation, dataset = evaluation_and_images()
    figure = viz.misclassified(evaluation, dataset)
    assert figure.get_suptitle() == "3 of 7 images were taken for something else"
    assert [axes.get_title() for axes in figure.axes] == [
        "cat, not eel\n0.70", "eel, not dog\n0.60", "dog, not cat\n0.50",
    ]  # fmt: skip
    assert figure.get_supxlabel() == "what it was taken for, what it is, and the probability of the former"
    np.testing.assert_allclose(drawn(figure.axes[0]), dataset.images[4, :, :, 0] / 255, rtol=1e-6)


def test_at_most_40_mistakes_are_shown():
    labels = np.zeros(50, np.int64)
    probabilities = np.tile(np.array([[0.1, 0.9]], np.float32), (50, 1))
    dataset = Dataset(np.zeros((50, 3, 2, 3), np.uint8), labels, ("a", "b"))
    figure = viz.misclassified(Evaluation(1.0, probabilities, labels, ("a", "b")), dataset)
    assert figure.get_suptitle() == "50 of 50 images were taken for something else; the 40 surest mistakes"
    assert len(figure.axes) == 40
    assert drawn(figure.axes[0]).shape == (3, 2, 3), "colours stay colours"


def test_no_mistakes_make_a_picture_that_says_so(tmp_path):
    labels = np.array([0, 1])
    dataset = Dataset(np.zeros((2, 4, 3, 1), np.uint8), labels, ("a", "b"))
    figure = viz.misclassified(
        Evaluation(0, np.eye(2, dtype=np.float32), labels, ("a", "b")), dataset, tmp_path / "0.png"
    )
    assert figure.get_suptitle() == "0 of 2 images were taken for something else"
    assert not figure.axes[0].images


def test_misclassified_refuses_another_data_set():
    evaluation, dataset = evaluation_and_images()
    with pytest.raises(ValueError, match=r"not of this data set \(pets\): 7 and 6 labels.*without shuffling"):
        viz.misclassified(evaluation, dataset.subset(slice(6)))


def test_confusion_writes_every_count_where_it_belongs():
    evaluation, _ = evaluation_and_images()
    axes = viz.confusion(evaluation).axes[0]
    counts = np.zeros((3, 3), int)
    for text in axes.texts:
        column, row = text.get_position()
        counts[row, column] = int(text.get_text())
    np.testing.assert_array_equal(counts, evaluation.confusion)
    assert axes.get_title(loc="left") == "57.1 % of 7 images were recognised"
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)
    hits, mistakes = (image.get_array().filled(np.nan) for image in axes.images)
    np.testing.assert_allclose(np.diag(hits), [1 / 2, 1 / 2, 2 / 3])
    assert np.isnan(hits[~np.eye(3, dtype=bool)]).all()
    np.testing.assert_array_equal(
        np.nan_to_num(mistakes), evaluation.confusion - np.diag(np.diag(evaluation.confusion))
    )


def test_confusion_of_many_classes_is_drawn_without_numbers(tmp_path):
    labels = np.arange(40)
    evaluation = Evaluation(0, np.eye(40, dtype=np.float32), labels, tuple(map(str, labels)))
    axes = viz.confusion(evaluation, tmp_path / "many.png").axes[0]
    assert not axes.texts
    assert "100.0 %" in axes.get_title(loc="left")


def test_curves_show_what_the_history_holds():
    figure = viz.curves(history())
    loss, accuracy, rate = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Accuracy in %", "Learning rate"]
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(loss.lines[1].get_ydata(), [2, 1, 2 / 3, 1 / 2])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [50, 75, 83.333333, 87.5])
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [40, 70, 80, 85])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(rate.lines[0].get_xdata(), [1, 2, 3, 4])
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training, as augmented", "held out"]
    assert texts(accuracy) == ["85"]


def test_curves_do_without_held_out_images():
    loss, accuracy, _ = viz.curves(history(held_out=False)).axes
    assert len(loss.lines) == len(accuracy.lines) == 1
    assert texts(accuracy) == ["87.5"]


def test_one_epoch_is_drawn_as_a_point(tmp_path):
    figure = viz.curves(history(1), tmp_path / "one.png")
    assert {line.get_marker() for axes in figure.axes for line in axes.lines} == {"o"}


def test_an_empty_history_has_no_curves():
    with pytest.raises(ValueError, match="the history is empty"):
        viz.curves(History())


def test_a_saved_picture_has_the_size_of_the_figure_and_is_not_blank(tmp_path):
    evaluation, dataset = evaluation_and_images()
    figures = {
        "filters": viz.filters(nn.Conv2d(1, 6, 5), tmp_path / "filters.png"),
        "maps": viz.feature_maps(nn.models.x_or_not_x(), np.eye(5, dtype=np.float32)[None], tmp_path / "maps.png"),
        "misclassified": viz.misclassified(evaluation, dataset, tmp_path / "misclassified.png"),
        "confusion": viz.confusion(evaluation, tmp_path / "confusion.png"),
        "curves": viz.curves(history(), tmp_path / "curves.png"),
    }
    for name, figure in figures.items():
        with Image.open(tmp_path / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        width, height = figure.get_size_inches()
        assert abs(pixels.shape[1] - width * 130) <= 1
        assert abs(pixels.shape[0] - height * 130) <= 1
        assert (pixels[0, 0] == 255).all(), "the paper is white"
        assert len(np.unique(pixels @ [1 << 16, 1 << 8, 1])) > 20, f"{name} is blank"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.png" for name in figures)


def test_the_suffix_chooses_the_kind_of_file(tmp_path):
    viz.curves(history(), tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text(encoding="utf-8")


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"curves\.docx: matplotlib can't write \.docx, only .*png"):
        viz.curves(history(), tmp_path / "curves.docx")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_fails_half_way_leaves_the_old_one(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "curves.png"
    viz.curves(history(), path)
    before = path.read_bytes()

    def half(self, target, **options):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        viz.curves(history(2), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pictures need matplotlib: pip install "gpucnn\[viz\]"'):
        viz.curves(history())


def test_pyplot_is_never_imported_and_nothing_global_changes(tmp_path):
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from gpucnn import nn, viz\n"
        "viz.filters(nn.Conv2d(1, 2, 3), sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams.copy() == before\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "filters.png")], check=True)


# -- where a network looks -------------------------------------------------------------------------


def two_images(channels):
    return np.random.default_rng(2).standard_normal((2, channels, 9, 12)).astype(np.float32)


def small_network(channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 5, 3))


@pytest.mark.parametrize(("draw", "channels"), [(viz.saliency, 1), (viz.occlusion, 3), (viz.grad_cam, 1)])
def test_each_image_stands_beside_its_map(draw, channels, tmp_path):
    model, x = small_network(channels), two_images(channels)
    figure = draw(model, x, tmp_path / "why.png", NAMES, target=[2, 0])
    found = getattr(gpucnn.attribution, draw.__name__)(model, x, target=[2, 0])
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 4
    assert [axes.get_title(loc="left").split(",")[0] for axes in pictures[::2]] == ["eel", "cat"]
    for n in (0, 1):
        left, right = pictures[2 * n : 2 * n + 2]
        np.testing.assert_allclose(right.images[-1].get_array(), found.maps[n])
        assert left.images[0].get_array().shape == ((9, 12) if channels == 1 else (9, 12, 3))
        assert right.images[-1].get_extent() == [-0.5, 11.5, 8.5, -0.5], "a map covers its image"
        assert right.get_xlabel() == "column (pixels)"
    with Image.open(tmp_path / "why.png") as saved:
        assert len(np.unique(np.asarray(saved.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    units = {"saliency": "|Δ score / Δ pixel|", "occlusion": "score lost", "grad_cam": "Σ importance · map"}
    bars = [axes.get_ylabel() for axes in figure.axes if axes not in pictures]
    assert bars == [units[draw.__name__]] * 2


def test_normalisation_is_undone_in_the_picture():
    pixels = np.random.default_rng(3).random((1, 3, 9, 12))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    x = (pixels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    figure = viz.saliency(small_network(3), x, normalise=(mean, std))
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), pixels[0].transpose(1, 2, 0), atol=1e-12)


def test_without_normalisation_an_image_is_stretched_from_its_darkest_to_its_brightest():
    x = two_images(1)
    shown = viz.saliency(small_network(1), x[0]).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, (x[0, 0] - x[0].min()) / np.ptp(x[0]), rtol=1e-5, atol=1e-6)


def test_occlusion_is_white_where_nothing_is_lost():
    low, high = viz.occlusion(small_network(1), two_images(1)[0]).axes[1].images[0].get_clim()
    assert low == -high


def test_at_most_8_images_are_drawn_and_the_title_says_so():
    x = np.random.default_rng(2).standard_normal((9, 1, 9, 12))
    figure = viz.grad_cam(small_network(1), x, layer="1")
    assert sum(bool(axes.images) for axes in figure.axes) == 16
    assert figure.get_suptitle() == "Where layer 1 sees the class (8 of 9 images)"


def test_an_output_that_is_no_class_has_no_class_name():
    figure = viz.saliency(nn.models.x_or_not_x(), np.eye(5, dtype=np.float32)[None], classes=["other", "X"])
    assert figure.axes[0].get_title(loc="left").startswith("the output, score 0.")


def test_feature_maps_take_a_batch_of_one():
    figure = viz.feature_maps(nn.models.x_or_not_x(), np.eye(5, dtype=np.float32)[None, None])
    assert texts(figure.axes[0]) == ["input\n1×5×5"]


def test_names_are_drawn_as_they_are_and_not_as_formulas(tmp_path):
    """matplotlib takes what is between two $ for TeX."""
    names = ("$$", "$1-$5", "\udcff\x1b" + "n" * 250)
    shown = ["$$", "$1-$5", r"\udcff\x1b" + "n" * 13 + "…"]
    evaluation, images = evaluation_and_images()
    evaluation, images = replace(evaluation, classes=names), replace(images, classes=names)
    axes = viz.confusion(evaluation, tmp_path / "confusion.png").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == shown
    assert [text.get_text() for text in axes.get_yticklabels()] == shown
    figure = viz.misclassified(evaluation, images, tmp_path / "misclassified.png")
    assert figure.axes[0].get_title().startswith(f"{shown[0]}, not {shown[2]}\n")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(16, 3))
    image = np.ones((1, 6, 4), np.float32)
    rows = viz.feature_maps(model, image, tmp_path / "maps.png", names).axes
    assert [text.partition(": ")[0] for text in texts(rows[-1])[:3]] == shown
    asked = viz.saliency(model, image, tmp_path / "saliency.png", names, target=1)
    assert asked.axes[0].get_title(loc="left").startswith("$1-$5, score ")


def test_names_of_layers_are_drawn_as_they_are(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, "$$", nn.Conv2d(1, 2, 3))

        def forward(self, x):
            return vars(self)["$$"](x).flatten(1)

    image = np.ones((1, 6, 4), np.float32)
    assert "layer $$ learned" in viz.filters(Named(), tmp_path / "filters.png").axes[0].get_title(loc="left")
    assert texts(viz.feature_maps(Named(), image, tmp_path / "maps.png").axes[1])[-1].startswith("$$ Conv2d\n")
    drawn = viz.grad_cam(Named(), image, tmp_path / "cam.png", layer="$$")
    assert drawn.get_suptitle() == "Where layer $$ sees the class"
