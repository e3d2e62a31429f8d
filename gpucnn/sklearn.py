"""A CNN as a classifier of scikit-learn: for cross_val_score, GridSearchCV, Pipeline and whatever else takes one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

if find_spec("sklearn") is None:
    raise ImportError('gpucnn.sklearn needs the package scikit-learn: pip install "gpucnn[sklearn]"')

from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from gpucnn import nn, optim, train
from gpucnn.backends import Backend, get_backend, use_backend
from gpucnn.data import Dataset, Loader
from gpucnn.functional import validate
from gpucnn.random import Generator, use_generator

__all__ = ["CNNClassifier"]

Rows = NDArray[np.float32]


class CNNClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A convolutional network with scikit-learn's fit, predict and predict_proba.

    X is [N, C, H, W], or [N, H·W·C] with image_shape=(H, W) or (H, W, C); without it a row is one line of pixels. Each
    channel is normalised by its mean and standard deviation in the training images, so numbers of any scale will do. y
    holds labels of any kind, also strings.

    model: a function (classes, channels, (H, W)) that makes a network, such as nn.models.LeNet5; or a network, of which
    a copy is trained from the weights it has; None is a small one for images of any size. It must end in logits, one
    for each class. AdamW trains it for `epochs` passes, with a learning rate that rises to learning_rate and falls (one
    cycle). augment is that of data.Loader. backend: what computes, None for the default. random_state: an int makes
    weights, shuffles and dropout the same every time. verbose: 1 shows progress.

    Attributes: classes_, n_features_in_, image_shape_ (H, W, C), model_, mean_ and std_ of each channel, history_.

    >>> cross_val_score(CNNClassifier(image_shape=(8, 8), random_state=0), digits.data, digits.target)
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., nn.Module] | None = None,
        *,
        image_shape: Sequence[int] | None = None,
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float = 0.003,
        weight_decay: float = 0.01,
        augment: Callable[..., Any] | None = None,
        backend: str | Backend | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.image_shape = image_shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.augment = augment
        self.backend = backend
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> Self:
        """Train a new network. Raises ValueError for images or labels that do not fit, TypeError for no model.

        What an earlier call has learned stays until this one has ended well.
        """
        with self._all_or_nothing():
            epochs = validate.integer("CNNClassifier", "epochs", self.epochs, least=1)
            rows, labels, shape = self._checked(X, y, reset=True)
            classes, numbers = np.unique(labels, return_inverse=True)
            self._begin(rows, shape, classes)
            self._train(rows, numbers, epochs, cycle=True)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Train for one pass over these images, from where the last call (or fit) ended.

        The first call makes the network: it must be given all `classes`, and its images settle mean_ and std_. The
        learning rate is constant. Raises ValueError for labels that are not among the classes.
        """
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise ValueError("the first call of partial_fit must name all classes: partial_fit(X, y, classes=…)")
        with self._all_or_nothing():
            rows, labels, shape = self._checked(X, y, reset=first)
            known = np.unique(classes) if classes is not None else self.classes_
            if not first and not np.array_equal(known, self.classes_):
                raise ValueError(f"the classes were {self.classes_} at first, they can't become {known}")
            other = np.setdiff1d(labels, known)
            if other.size:
                raise ValueError(f"y holds {other}, which are not among the classes {known}")
            if first:
                self._begin(rows, shape, known)
            self._train(rows, np.searchsorted(known, labels), 1, cycle=False)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """The probability of each class, [N, classes], in the order of classes_."""
        check_is_fitted(self)
        rows, _, _ = self._checked(X, None, reset=False)
        images = (rows.reshape(-1, *self.image_shape_) - self.mean_) / self.std_
        return train.predict(self.model_, images.transpose(0, 3, 1, 2))

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest class of each image."""
        probabilities = self.predict_proba(X)
        likeliest: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return likeliest

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """What fails in the block leaves the attributes as they were, so the model of an earlier fit too."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Rows, Any, tuple[int, ...] | None]:
        """X with one row [H·W·C] for each image, y, and (H, W, C) where X tells it by its axes.

        reset: whether these images settle what later ones must be; otherwise others are a ValueError.
        """
        shape = None
        X = np.asarray(X) if isinstance(X, list | tuple) else X
        if getattr(X, "ndim", 2) == 4:
            images = np.asarray(X).transpose(0, 2, 3, 1)
            shape = images.shape[1:]
            X = images.reshape(len(images), math.prod(shape))
        elif getattr(X, "ndim", 2) == 3:
            raise ValueError(
                f"X must be [N, C, H, W] or [N, H·W·C], got shape {X.shape}; X[:, None] gives gray images their channel"
            )
        if y is None and not reset:
            rows, labels = validate_data(self, X, reset=False, dtype=np.float32), None
        else:
            rows, labels = validate_data(self, X, y, reset=reset, dtype=np.float32)
            check_classification_targets(labels)
        if not reset and shape not in (None, self.image_shape_):
            (h, w, c), (height, width, channels) = self.image_shape_, shape
            raise ValueError(
                f"the network takes images of shape {(c, h, w)} [C, H, W], got {(channels, height, width)}"
            )
        return rows, labels, shape

    def _begin(self, rows: Rows, shape: tuple[int, ...] | None, classes: NDArray[Any]) -> None:
        """A new network for images like these."""
        if len(classes) < 2:
            raise ValueError(f"a classifier needs two or more classes, y holds 1 class: {classes.tolist()[0]!r}")
        h, w, c = self._image_shape(rows, shape)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with use_generator(Generator(seed)), use_backend(get_backend(self.backend)) as backend:
            if self.model is None:
                model = _small_network(len(classes), c, (h, w))
            elif isinstance(self.model, nn.Module):
                model = copy.deepcopy(self.model).to(backend)
            elif callable(self.model):
                model = self.model(len(classes), c, (h, w))
                if not isinstance(model, nn.Module):
                    raise TypeError(
                        f"model must be a function that makes a network; {self.model!r:.100} returned {model!r:.100}"
                    )
            else:
                raise TypeError(f"model must be a network, a function that makes one, or None, got {self.model!r}")
        pixels = rows.reshape(-1, c)
        self.mean_ = pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.std_ = pixels.std(axis=0, dtype=np.float64).astype(np.float32)
        self.std_[self.std_ == 0] = 1
        self.classes_, self.image_shape_, self.model_ = classes, (h, w, c), model
        self._seed, self._passes = seed, 0
        self._moments: dict[str, Any] | None = None

    def _image_shape(self, rows: Rows, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """(H, W, C) of the images. Raises ValueError if image_shape is not that of X."""
        given = self.image_shape
        if given is not None:
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise TypeError(f"image_shape must be (H, W) or (H, W, C), got {given!r:.100}")
            given = tuple(validate.integer("CNNClassifier", "a length in image_shape", n, least=1) for n in given)
        if given is not None and len(given) == 2:
            given = (*given, 1)
        if given is not None and (len(given) != 3 or math.prod(given) != rows.shape[1] or shape not in (None, given)):
            found = f"{shape} (H, W, C)" if shape else f"{rows.shape[1]} features"
            raise ValueError(f"image_shape must be (H, W) or (H, W, C) and fit X, which has {found}; it is {given}")
        return given or shape or (1, rows.shape[1], 1)

    def _train(self, rows: Rows, numbers: NDArray[np.int64], epochs: int, cycle: bool) -> None:
        names = tuple(map(str, self.classes_))
        loader = Loader(
            Dataset(rows.reshape(-1, *self.image_shape_), numbers, names, "X"),
            self.batch_size,
            shuffle=True,
            augment=self.augment,
            normalise=(self.mean_.tolist(), self.std_.tolist()),
            seed=self._seed,
            prefetch=0,
        )
        loader.current = self._passes
        optimizer = optim.AdamW(self.model_.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        if self._moments is not None:
            optimizer.load_state_dict(self._moments)
            optimizer.lr = self.learning_rate
        schedule = optim.OneCycleLR(optimizer, self.learning_rate, epochs * len(loader)) if cycle else None
        with use_generator(Generator(self._seed + self._passes + 1)):
            self.history_ = train.fit(
                self.model_, loader, epochs=epochs, optimizer=optimizer, scheduler=schedule, progress=bool(self.verbose)
            )
        self._passes += epochs
        self._moments = optimizer.state_dict()  # as plain arrays: the estimator can be pickled


def _small_network(classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    """Two convolutions with pooling and a dense layer, for images of any size."""
    h, w = (-(-n // 4) for n in size)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(32 * h * w, classes),
    )
