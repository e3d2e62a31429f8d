"""Accuracy, confusion and the ratios per class, against counting by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucnn.metrics import ClassReport, Confusion, Evaluation, confusion_matrix, top_k_accuracy

# five images of cats (0) and dogs (1), none of the fish (2); the last dog is taken for a cat, the first cat for a dog
CASE = Evaluation(
    loss=0.5,
    probabilities=np.array(
        [[0.3, 0.6, 0.1], [0.8, 0.1, 0.1], [0.1, 0.9, 0.0], [0.2, 0.7, 0.1], [0.7, 0.1, 0.2]], np.float32
    ),
    labels=np.array([0, 0, 1, 1, 1]),
    classes=("cat", "dog", "fish"),
)


@st.composite
def guesses(draw):
    """(probabilities, labels) of a few images, with many ties."""
    classes = draw(st.integers(1, 5))
    count = draw(st.integers(1, 12))
    rows = st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=classes, max_size=classes)
    probabilities = np.array(draw(st.lists(rows, min_size=count, max_size=count)), np.float32)
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    return probabilities, labels


def test_accuracy_is_the_share_of_right_answers():
    assert CASE.predictions.tolist() == [1, 0, 1, 1, 0]
    assert CASE.accuracy == 3 / 5


def test_top_k_counts_labels_among_the_k_likeliest():
    assert [CASE.top_k(k) for k in (1, 2, 3)] == [3 / 5, 4 / 5, 1.0]


@given(guesses())
def test_top_k_is_what_counting_larger_entries_gives(case):
    probabilities, labels = case
    for k in range(1, probabilities.shape[1] + 1):
        hits = 0
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            before = sum(p > row[label] or (p == row[label] and c < label) for c, p in enumerate(row))
            hits += before < k
        assert top_k_accuracy(probabilities, labels, k) == hits / len(labels)


@given(guesses())
def test_top_1_is_the_accuracy_even_with_ties(case):
    probabilities, labels = case
    assert top_k_accuracy(probabilities, labels, 1) == float(np.mean(probabilities.argmax(1) == labels))


@pytest.mark.parametrize("k", [0, 4, -1])
def test_top_k_beyond_the_classes_is_refused(k):
    with pytest.raises(ValueError, match=r"top-k needs k from 1 to the 3 classes, got " + str(k)):
        CASE.top_k(k)


def test_nothing_to_measure_is_nan():
    nothing = Evaluation(math.nan, np.zeros((0, 3), np.float32), np.zeros(0, np.int64), CASE.classes)
    assert math.isnan(nothing.accuracy)
    assert nothing.confusion.tolist() == [[0] * 3] * 3
    assert nothing.misclassified.size == 0


def test_confusion_matrix_has_true_classes_in_rows_and_predictions_in_columns():
    assert CASE.confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert CASE.confusion.dtype == np.int64


@given(guesses())
def test_confusion_matrix_is_what_counting_gives(case):
    probabilities, labels = case
    classes = probabilities.shape[1]
    predictions = probabilities.argmax(1)
    expected = [[0] * classes for _ in range(classes)]
    for true, predicted in zip(labels, predictions, strict=True):
        expected[true][predicted] += 1
    assert confusion_matrix(labels, predictions, classes).tolist() == expected


def test_each_class_has_its_precision_recall_f1_and_support():
    cat, dog, fish = CASE.per_class()
    assert cat == ClassReport("cat", precision=1 / 2, recall=1 / 2, f1=1 / 2, support=2)
    assert dog == ClassReport("dog", precision=2 / 3, recall=2 / 3, f1=2 / 3, support=3)
    assert fish.name == "fish"
    assert fish.support == 0


def test_a_ratio_of_nothing_is_nan():
    assert math.isnan(CASE.recall[2])  # there is no fish
    assert math.isnan(CASE.precision[2])  # nothing was taken for one
    assert math.isnan(CASE.f1[2])


def test_a_class_that_is_never_predicted_has_recall_zero_and_no_precision():
    blind = Evaluation(0.0, np.array([[1.0, 0.0]] * 2, np.float32), np.array([0, 1]), ("a", "b"))
    assert blind.recall.tolist() == [1.0, 0.0]
    assert blind.precision[0] == 0.5
    assert math.isnan(blind.precision[1])
    assert blind.f1.tolist() == [2 / 3, 0.0]


def test_misclassified_images_come_with_the_surest_mistakes_first():
    assert CASE.misclassified.tolist() == [4, 0]  # 0.7 for cat, then 0.6 for dog


def test_most_confused_pairs_come_first_and_right_answers_never():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([1, 1, 0, 2, 1, 2])
    found = Evaluation(0.0, np.eye(3, dtype=np.float32)[predicted], labels, CASE.classes)
    assert found.most_confused() == [Confusion("cat", "dog", 2), Confusion("dog", "fish", 1)]
    assert found.most_confused(1) == [Confusion("cat", "dog", 2)]
    assert found.most_confused(0) == []


@pytest.fixture(scope="module")
def sklearn_metrics():
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


@given(case=guesses())
def test_ratios_agree_with_scikit_learn(sklearn_metrics, case):
    probabilities, labels = case
    names = [str(c) for c in range(probabilities.shape[1])]
    found = Evaluation(0.0, probabilities, labels, names)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=range(len(names)), zero_division=np.nan
    )
    np.testing.assert_array_equal(found.precision, precision)
    np.testing.assert_array_equal(found.recall, recall)
    np.testing.assert_allclose(found.f1, f1, rtol=1e-15)
    np.testing.assert_array_equal(found.support, support)
