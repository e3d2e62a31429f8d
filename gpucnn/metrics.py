"""What an evaluation found: accuracy, confusion matrix, precision and recall of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.functional import validate


def top_k_accuracy(probabilities: NDArray[Any], labels: NDArray[Any], k: int) -> float:
    """The share of rows whose label is among the k largest entries; NaN without rows.

    Of equal entries the first classes count as larger, as in argmax, so that top-1 is the accuracy and a tie is not
    counted in the model's favour. Raises ValueError unless 1 <= k <= classes.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or probabilities.dtype.kind not in "fiubV":
        raise ValueError(
            f"top-k needs probabilities [N, classes], got {probabilities.dtype} of shape {probabilities.shape}"
        )
    classes = probabilities.shape[1]
    if labels.shape != probabilities.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"top-k needs {len(probabilities)} integer labels, got {labels.dtype} of shape {labels.shape}")
    if not 1 <= validate.integer("top-k", "k", k) <= classes:
        raise ValueError(f"top-k needs k from 1 to the {classes} classes, got {k}")
    wide = probabilities if probabilities.dtype.kind == "f" else probabilities.astype(np.float64)
    order = np.argsort(-wide, axis=1, kind="stable")[:, :k]
    hits: NDArray[np.bool_] = (order == labels[:, None]).any(axis=1)
    return float(hits.mean()) if len(hits) else float("nan")


def confusion_matrix(labels: NDArray[Any], predictions: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """int64 [true class, predicted class]: how often an image of the one was taken for the other."""
    classes = validate.integer("confusion_matrix", "classes", classes, least=1)
    if classes > 65536:
        raise ValueError(f"confusion_matrix: {classes} classes are too many to count")
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) != len(labels):
            raise ValueError(
                f"confusion_matrix: {name} must be as many integers as the labels, got {values.dtype} {values.shape}"
            )
        if ((values < 0) | (values >= classes)).any():
            raise ValueError(
                f"confusion_matrix: {name} are from {values.min()} to {values.max()}, but there are {classes} classes"
            )
    places = labels.astype(np.int64) * classes + predictions.astype(np.int64)
    counts: NDArray[np.int64] = np.bincount(places, minlength=classes * classes)
    return counts.reshape(classes, classes)


@dataclass(frozen=True)
class ClassReport:
    """How one class fared. A ratio of which nothing is known (a class never predicted, or never there) is NaN."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Confusion:
    """`count` images of class `true` were taken for `predicted`."""

    true: str
    predicted: str
    count: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` returns. `loss` is the mean over the images; the rest is derived from these fields.

    probabilities [N, classes] float32 and labels [N] int64 are in the order of the loader; classes are the names.
    """

    loss: float
    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: Sequence[str]

    @cached_property
    def predictions(self) -> NDArray[np.int64]:
        """[N]: the likeliest class of each image; of equally likely ones the first."""
        likeliest: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return likeliest

    @property
    def accuracy(self) -> float:
        """The share of images whose likeliest class is the right one; NaN without images."""
        return self.top_k(1)

    def top_k(self, k: int) -> float:
        """The share of images whose class is among the k likeliest."""
        return top_k_accuracy(self.probabilities, self.labels, k)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """[true class, predicted class]: how often an image of the one was taken for the other."""
        return confusion_matrix(self.labels, self.predictions, len(self.classes))

    @property
    def support(self) -> NDArray[np.int64]:
        """[classes]: images of each class."""
        images: NDArray[np.int64] = self.confusion.sum(axis=1)
        return images

    @property
    def recall(self) -> NDArray[np.float64]:
        """[classes]: the share of a class's images that were found; NaN for a class without images."""
        return _ratio(self.confusion.diagonal(), self.support)

    @property
    def precision(self) -> NDArray[np.float64]:
        """[classes]: the share of right ones among the images taken for a class; NaN for a class never predicted."""
        return _ratio(self.confusion.diagonal(), self.confusion.sum(axis=0))

    @property
    def f1(self) -> NDArray[np.float64]:
        """[classes]: the harmonic mean of precision and recall, 2·hits / (support + predicted)."""
        return _ratio(2 * self.confusion.diagonal(), self.support + self.confusion.sum(axis=0))

    @property
    def misclassified(self) -> NDArray[np.intp]:
        """The indices of the images that were taken for another class, the surest mistakes first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        sureness = self.probabilities[wrong, self.predictions[wrong]]
        return wrong[np.argsort(-sureness, kind="stable")]

    def per_class(self) -> list[ClassReport]:
        """A row for each class."""
        columns = zip(self.precision, self.recall, self.f1, self.support, strict=True)
        return [
            ClassReport(name, float(p), float(r), float(f), int(n))
            for name, (p, r, f, n) in zip(self.classes, columns, strict=True)
        ]

    def most_confused(self, count: int = 10) -> list[Confusion]:
        """The pairs of classes that were mixed up most often, at most `count` of them."""
        mistakes = self.confusion - np.diag(self.confusion.diagonal())
        order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
        pairs = (divmod(int(place), len(self.classes)) for place in order)
        return [Confusion(self.classes[t], self.classes[p], int(mistakes[t, p])) for t, p in pairs if mistakes[t, p]]


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    ratio = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio
