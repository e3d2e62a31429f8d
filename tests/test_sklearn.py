"""CNNClassifier is an estimator like scikit-learn's own: its checks, its tools, images in both forms, any labels."""

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim
from gpucnn.nn import models
from gpucnn.random import default_generator


@pytest.fixture(autouse=True)
def _on_backend(default_backend: None) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")


def classifier(*arguments: Any, **named: Any) -> Any:
    """A CNNClassifier. scikit-learn takes seconds to import: only the process that runs a test does."""
    return gpucnn.sklearn.CNNClassifier(*arguments, **named)


def test_scikit_learns_checks_hold() -> None:
    """All of its own checks: rows of numbers are images of one line here."""
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(classifier(epochs=12), on_skip=None, on_fail=None)
    assert len(results) > 50
    assert [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"] == []


def digits(count: int = 300) -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.data[:count], found.target[:count]


def pictures(seed: int = 0, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """[N, 2, 6, 5] with a bright upper or lower half in the second channel, and whether it is the upper."""
    generator = np.random.default_rng(seed)
    images = generator.random((count, 2, 6, 5))
    labels = np.arange(count) % 2
    images[labels == 1, 1, :3] += 1
    images[labels == 0, 1, 3:] += 1
    return images, labels


SMALL: dict[str, Any] = {"epochs": 4, "batch_size": 16, "random_state": 0}


# -- images ----------------------------------------------------------------------------------------


def test_rows_and_planes_of_the_same_images_make_the_same_network() -> None:
    images, labels = pictures()
    rows = images.transpose(0, 2, 3, 1).reshape(len(images), -1)
    planes = classifier(**SMALL).fit(images, labels)
    lines = classifier(image_shape=(6, 5, 2), **SMALL).fit(rows, labels)
    assert planes.image_shape_ == lines.image_shape_ == (6, 5, 2)
    assert planes.n_features_in_ == lines.n_features_in_ == 60
    np.testing.assert_array_equal(planes.predict_proba(images), lines.predict_proba(rows))
    np.testing.assert_array_equal(planes.predict_proba(images), planes.predict_proba(rows))
    assert planes.score(images, labels) == 1.0


def test_gray_images_need_no_channel_in_their_shape() -> None:
    data, target = digits(100)
    found = classifier(image_shape=(8, 8), **SMALL).fit(data, target)
    assert found.image_shape_ == (8, 8, 1)
    first = found.model_[0]
    assert (first.weight.shape[1], len(found.mean_)) == (1, 1)


def test_each_channel_is_normalised_by_the_training_images() -> None:
    images, labels = pictures()
    images[:, 0] = 7.0
    found = classifier(**SMALL).fit(images, labels)
    np.testing.assert_allclose(found.mean_, [7, images[:, 1].mean()], rtol=1e-6)
    np.testing.assert_allclose(found.std_, [1, images[:, 1].std()], rtol=1e-6)
    shifted = classifier(**SMALL).fit(1000 * images + 5, labels)
    np.testing.assert_allclose(shifted.predict_proba(1000 * images + 5), found.predict_proba(images), atol=1e-2)


def test_bytes_and_tensors_are_images_too() -> None:
    images, labels = pictures()
    pixels = (100 * images).astype(np.uint8)
    found = classifier(**SMALL).fit(pixels, labels)
    np.testing.assert_array_equal(
        found.predict(gpucnn.tensor(pixels.astype(np.float32), backend="numpy")), found.predict(pixels)
    )


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"image_shape": (6, 4)}, (9, 60), r"image_shape must be \(H, W\).*which has 60 features; it is \(6, 4, 1\)"),
        ({"image_shape": (60,)}, (9, 60), r"image_shape must be .*it is \(60,\)"),
        ({"image_shape": (5, 6, 2)}, (9, 2, 6, 5), r"which has \(6, 5, 2\) \(H, W, C\); it is \(5, 6, 2\)"),
        ({}, (9, 6, 5), r"X must be \[N, C, H, W\] or \[N, H·W·C\], got shape \(9, 6, 5\); X\[:, None\] gives"),
        ({}, (0, 2, 6, 5), "0 sample"),
    ],
)
def test_images_that_do_not_fit_are_refused(options: Any, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(**SMALL, **options).fit(np.zeros(shape), np.arange(shape[0]) % 2)


def test_images_of_another_shape_can_not_be_predicted() -> None:
    from sklearn.exceptions import NotFittedError

    found = classifier(**SMALL).fit(*pictures())
    with pytest.raises(ValueError, match=r"takes images of shape \(2, 6, 5\) \[C, H, W\], got \(2, 5, 6\)"):
        found.predict(np.zeros((3, 2, 5, 6)))
    with pytest.raises(ValueError, match="30 features, but CNNClassifier is expecting 60"):
        found.predict(np.zeros((3, 1, 6, 5)))
    with pytest.raises(NotFittedError):
        classifier().predict(np.zeros((3, 2, 5, 6)))


def test_images_of_another_shape_can_not_be_trained_on_further() -> None:
    images, labels = pictures()
    found = classifier(**SMALL).partial_fit(images, labels, classes=[0, 1])
    before = found.predict_proba(images)
    with pytest.raises(ValueError, match=r"takes images of shape \(2, 6, 5\) \[C, H, W\], got \(2, 5, 6\)"):
        found.partial_fit(images.transpose(0, 1, 3, 2), labels)
    np.testing.assert_array_equal(found.predict_proba(images), before)


def test_lists_are_images_too() -> None:
    images, labels = pictures(count=20)
    found = classifier(**SMALL).fit(images.tolist(), labels)
    assert found.image_shape_ == (6, 5, 2)
    with pytest.raises(ValueError, match=r"X must be \[N, C, H, W\] or \[N, H·W·C\], got shape \(20, 6, 5\)"):
        classifier(**SMALL).fit(images[:, 0].tolist(), labels)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"epochs": None}, TypeError, "CNNClassifier: epochs must be an int, got None"),
    ({"epochs": 0}, ValueError, "CNNClassifier: epochs must be at least 1, got 0"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ({"learning_rate": -1}, ValueError, "lr must not be negative"),
    ({"image_shape": 6}, TypeError, r"image_shape must be \(H, W\) or \(H, W, C\), got 6"),
    ({"image_shape": (6.5, 6)}, TypeError, "a length in image_shape must be an int, got 6.5"),
    ({"image_shape": ("a", "b")}, TypeError, "a length in image_shape must be an int, got 'a'"),
    ({"image_shape": (6, 5, 2, 1)}, ValueError, r"it is \(6, 5, 2, 1\)"),
    ({"model": lambda *_: None}, TypeError, "model must be a function that makes a network; .* returned None"),
    (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(60, 3))},
        ValueError,
        "the model has 3 outputs, but X has 2 classes",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_a_fit_that_fails_leaves_what_was_learned_before(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    from sklearn.exceptions import NotFittedError

    images, labels = pictures()
    new = classifier(**{**SMALL, **options})
    with pytest.raises(error, match=message):
        new.fit(images, labels)
    with pytest.raises(NotFittedError):
        new.predict(images)
    found = classifier(**SMALL).fit(images, labels)
    before = found.predict_proba(images)
    with pytest.raises(error, match=message):
        found.set_params(**options).fit(images, labels)
    np.testing.assert_array_equal(found.predict_proba(images), before)
    assert found.get_params()[next(iter(options))] is next(iter(options.values()))


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["no", "yes"], [10, -3], [0.0, 1.0], [False, True]])
def test_labels_of_any_kind_come_back(names: list[Any]) -> None:
    images, labels = pictures()
    y = np.array(names)[labels]
    found = classifier(**SMALL).fit(images, y)
    assert found.classes_.tolist() == sorted(names)
    assert found.predict(images).tolist() == y.tolist()
    upper = found.classes_.tolist().index(names[1])
    assert (found.predict_proba(images)[:, upper] > 0.5).tolist() == (labels == 1).tolist()


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two or more classes, y holds 1 class: 'a'"):
        classifier(**SMALL).fit(np.zeros((4, 9)), ["a"] * 4)


# -- networks --------------------------------------------------------------------------------------


def narrow(classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1),
                         nn.Linear(3 * (size[0] - 2) * (size[1] - 2), classes))  # fmt: skip


def test_a_function_makes_the_network_for_the_images_and_classes() -> None:
    images, labels = pictures()
    found = classifier(narrow, **SMALL).fit(images, labels)
    assert found.model_[0].weight.shape == (3, 2, 3, 3)
    assert found.model_[4].weight.shape == (2, 36)
    large = np.zeros((4, 3, 14, 15))
    assert isinstance(classifier(models.LeNet5, epochs=1).fit(large, [0, 1, 2, 1]).model_, models.LeNet5)


def test_a_network_that_is_given_stays_as_it_is_and_a_copy_goes_on_from_its_weights() -> None:
    images, labels = pictures()
    trained = classifier(**SMALL).fit(images, labels).model_
    before = [p.numpy().copy() for p in trained.parameters()]
    found = classifier(trained, epochs=1, learning_rate=1e-9, weight_decay=0.0).fit(images, labels)
    assert found.model_ is not trained
    for kept, p, now in zip(before, trained.parameters(), found.model_.parameters(), strict=True):
        np.testing.assert_array_equal(p.numpy(), kept)
        np.testing.assert_allclose(now.numpy(), kept, rtol=0, atol=1e-7)


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="model must be a network, a function that makes one, or None, got 'lenet'"):
        classifier("lenet", **SMALL).fit(*pictures())
    with pytest.raises(ValueError, match="the model has 10 outputs, but X has 2 classes"):
        classifier(models.LeNet5(in_channels=2, image_size=(12, 13)), **SMALL).fit(
            np.zeros((4, 2, 12, 13)), [0, 1, 0, 1]
        )


# -- the same again --------------------------------------------------------------------------------


def weights(found: Any) -> list[bytes]:
    return [p.numpy().tobytes() for p in found.model_.parameters()]


def test_random_state_settles_weights_shuffles_and_dropout_and_leaves_the_process_alone() -> None:
    gpucnn.manual_seed(5)
    before = default_generator.state()
    one, again, other = (classifier(narrow, **{**SMALL, "random_state": n}).fit(*pictures()) for n in (1, 1, 2))
    assert default_generator.state() == before
    assert weights(one) == weights(again) != weights(other)
    assert weights(classifier(narrow, **SMALL).fit(*pictures())) != weights(one)


def test_a_clone_has_the_settings_and_nothing_learned() -> None:
    from sklearn.base import clone

    found = classifier(narrow, image_shape=(6, 5, 2), **SMALL)
    twin = clone(found.fit(*pictures()))
    assert twin.get_params() == found.get_params()
    assert not hasattr(twin, "model_")
    assert weights(twin.set_params(epochs=2).fit(*pictures())) != weights(found)
    assert twin.get_params()["epochs"] == 2


def test_a_fitted_classifier_goes_through_pickle_and_can_be_trained_further() -> None:
    images, labels = pictures()
    found = classifier(narrow, **SMALL).fit(images, labels)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict_proba(images), found.predict_proba(images))
    assert weights(again.partial_fit(images, labels)) == weights(found.partial_fit(images, labels))


# -- partial_fit -----------------------------------------------------------------------------------


def test_partial_fit_learns_from_parts_that_lack_classes() -> None:
    images, labels = pictures(count=80)
    found = classifier(**SMALL)
    for i in range(0, 160, 16):
        part = slice(i % 80, i % 80 + 16)
        found.partial_fit(images[part], labels[part], classes=[0, 1] if i == 0 else None)
    assert found.score(*pictures(seed=1)) > 0.9
    for _ in range(20):
        found.partial_fit(images[labels == 1], labels[labels == 1])
    assert found.classes_.tolist() == [0, 1]
    assert found.predict(np.zeros((3, 2, 6, 5))).tolist() == [1, 1, 1]


def test_partial_fit_is_steps_of_one_adamw() -> None:
    """Two passes of one step each, against the same two steps by hand."""
    images, labels = pictures(count=12)
    template = nn.Sequential(nn.Flatten(), nn.Linear(60, 2))
    found = classifier(template, batch_size=12, learning_rate=0.01, weight_decay=0.1)
    by_hand = copy.deepcopy(template)
    optimizer = optim.AdamW(by_hand.parameters(), 0.01, weight_decay=0.1)
    mean, std = images.mean((0, 2, 3), keepdims=True), images.std((0, 2, 3), keepdims=True)
    x = gpucnn.tensor(((images - mean) / std).astype(np.float32))
    for _ in range(2):
        found.partial_fit(images, labels, classes=[0, 1])
        assert found.history_["lr"] == [0.01]
        optimizer.zero_grad()
        F.cross_entropy(by_hand(x), labels).backward()
        optimizer.step()
    for ours, theirs in zip(found.model_.parameters(), by_hand.parameters(), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=1e-5)


def test_each_pass_has_another_order_and_the_rate_of_fit_falls() -> None:
    images, labels = pictures(count=20)
    orders: list[list[float]] = []

    def note(batch: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        orders.append(batch[:, 0, 0, 0].tolist())
        return batch

    found = classifier(narrow, epochs=3, batch_size=20, augment=note, random_state=0).fit(images, labels)
    found.partial_fit(images, labels)
    found.partial_fit(images, labels)
    assert len({tuple(order) for order in orders}) == 5
    assert len({tuple(sorted(order)) for order in orders}) == 1
    rates = classifier(**SMALL).fit(images, labels).history_["lr"]
    assert rates[-1] < rates[0] / 100


def test_partial_fit_goes_on_from_where_it_was() -> None:
    images, labels = pictures()
    found = classifier(narrow, **SMALL).partial_fit(images, labels, classes=[0, 1])
    mean, seen = found.mean_, weights(found)
    found.partial_fit(images + 3, labels)
    assert found.mean_ is mean
    assert weights(found) != seen
    with pytest.raises(ValueError, match=r"must name all classes: partial_fit\(X, y, classes=…\)"):
        classifier(**SMALL).partial_fit(images, labels)
    with pytest.raises(ValueError, match=r"y holds \[2\], which are not among the classes \[0 1\]"):
        found.partial_fit(images, labels * 2)
    with pytest.raises(ValueError, match=r"the classes were \[0 1\] at first, they can't become \[0 1 2\]"):
        found.partial_fit(images, labels, classes=[0, 1, 2])


# -- scikit-learn's tools --------------------------------------------------------------------------


def test_it_learns_handwritten_digits_in_cross_validation() -> None:
    """Ten classes, by chance 0.1 are right."""
    from sklearn.model_selection import cross_val_score

    data, target = digits(600)
    scores = cross_val_score(classifier(image_shape=(8, 8), epochs=12, random_state=0), data, target, cv=3)
    assert scores.min() > 0.8


def test_a_grid_is_searched_in_a_pipeline() -> None:
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    data, target = digits(120)
    steps = make_pipeline(MinMaxScaler(), classifier(image_shape=(8, 8), epochs=2, random_state=0))
    grid = GridSearchCV(steps, {"cnnclassifier__learning_rate": [1e-6, 0.01]}, cv=2).fit(data, target)
    assert grid.best_params_ == {"cnnclassifier__learning_rate": 0.01}
    assert grid.predict(data[:3]).shape == (3,)


# -- the rest --------------------------------------------------------------------------------------


def test_the_backend_can_be_chosen(backend: str) -> None:
    with gpucnn.use_backend("numpy"):
        found = classifier(narrow, backend=backend, epochs=1, random_state=0).fit(*pictures(count=8))
        assert {p.backend.name for p in found.model_.parameters()} == {backend}
        assert found.predict_proba(pictures()[0]).dtype == np.float32
    with pytest.raises(ValueError, match="backend is 'abacus'"):
        classifier(backend="abacus", **SMALL).fit(*pictures())


def test_progress_is_shown_when_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    classifier(**SMALL).fit(*pictures())
    assert capsys.readouterr().err == ""
    classifier(verbose=1, **SMALL).fit(*pictures())
    assert "4/4" in capsys.readouterr().err


def test_importing_gpucnn_imports_no_scikit_learn_and_without_it_the_remedy_is_said() -> None:
    code = "import sys, gpucnn; assert 'sklearn' not in sys.modules; sys.modules['sklearn'] = None; gpucnn.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'needs the package scikit-learn: pip install "gpucnn[sklearn]"' in done.stderr
