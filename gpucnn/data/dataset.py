"""A labelled set of images, its conversion to float, and disjoint halves of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpucnn.data.lazy import IN_MEMORY, LazyImages, Rows, digests
from gpucnn.functional import validate

Images = NDArray[Any]
Labels = NDArray[np.int64]


def to_float(images: Images) -> NDArray[np.float32]:
    """Images [N, H, W, C] as they are stored, as float32 [N, C, H, W]: what a network takes.

    Bytes 0–255 become 0..1 (0 → 0.0, 51 → 0.2, 255 → 1.0), black/white (bool) images 0.0 and 1.0, float32 stays as it
    is. The result is a new array indexed [N, C, H, W] whose memory is channels-last.
    """
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(f"images must be [N, H, W, C], got shape {images.shape}")
    if images.dtype == np.uint8:
        floats = np.divide(images, np.float32(255), dtype=np.float32, order="C")
    elif images.dtype in (np.float32, np.bool_):
        floats = images.astype(np.float32, order="C")
    else:
        raise TypeError(f"images must be uint8, float32 or bool, got {images.dtype}")
    return floats.transpose(0, 3, 1, 2)


@dataclass(frozen=True, repr=False, eq=False)
class Dataset:
    """Images with labels: what `load` gives and `Loader` draws batches from.

    ``images`` is [N, H, W, C] as stored: uint8 0–255, float32 0..1, or bool for black/white; an array, which may be
    memory-mapped, or `LazyImages`. ``labels`` [N] is int64, each an index into ``classes``. Arrays are kept as
    read-only views.

    Raises ValueError for shapes, lengths or labels that do not fit together, TypeError for another dtype. Warns
    (UserWarning) if the images look like [N, C, H, W]: a height of 1, 3 or 4 and more than 4 channels.
    """

    images: Images | LazyImages
    labels: Labels
    classes: tuple[str, ...]
    name: str = "dataset"

    def __post_init__(self) -> None:
        if not isinstance(self.classes, Sequence) or not all(isinstance(name, str) for name in self.classes):
            raise TypeError(f"{self.name}: classes must be names, got {self.classes!r:.200}")
        images = self.images if isinstance(self.images, LazyImages) else np.asarray(self.images)
        labels, classes = np.asarray(self.labels), tuple(self.classes)
        if isinstance(images, LazyImages):
            images.dtype = np.dtype(images.dtype)
        if images.ndim != 4:
            raise ValueError(f"{self.name}: images must be [N, H, W, C], got shape {images.shape}")
        if 0 in images.shape[1:]:
            raise ValueError(f"{self.name}: images must have a height, width and channels, got shape {images.shape}")
        if images.dtype not in (np.uint8, np.float32, np.bool_):
            raise TypeError(
                f"{self.name}: images must be uint8 (0–255), float32 (0..1) or bool, got {images.dtype}; "
                "convert them with images.astype(np.float32)"
            )
        if labels.ndim != 1 or len(labels) != len(images):
            raise ValueError(f"{self.name}: {len(images)} images need as many labels, got shape {labels.shape}")
        if labels.size and labels.dtype.kind not in "iu":
            raise TypeError(f"{self.name}: labels must be integers (class indices), got {labels.dtype}")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if wrong.size:
            raise ValueError(
                f"{self.name}: labels must be within 0..{len(classes) - 1} for {len(classes)} classes, "
                f"but labels[{wrong[0]}] is {labels[wrong[0]]} ({wrong.size} labels are out of range)"
            )
        n, h, w, c = images.shape
        if h in (1, 3, 4) and c > 4:
            warnings.warn(
                f"{self.name}: images are [N, H, W, C], so shape {images.shape} means {c} channels; if it is "
                f"[N, C, H, W], images.transpose(0, 2, 3, 1) makes it {(n, w, c, h)}",
                UserWarning,
                stacklevel=3,
            )
        object.__setattr__(self, "images", images if isinstance(images, LazyImages) else _read_only(images))
        object.__setattr__(self, "labels", _read_only(labels.astype(np.int64)))
        object.__setattr__(self, "classes", classes)

    @property
    def height(self) -> int:
        return int(self.images.shape[1])

    @property
    def width(self) -> int:
        return int(self.images.shape[2])

    @property
    def channels(self) -> int:
        return int(self.images.shape[3])

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> tuple[Images, int]: ...
    @overload
    def __getitem__(self, index: slice | ArrayLike) -> tuple[Images, Labels]: ...
    def __getitem__(self, index: Any) -> tuple[Images, int | Labels]:
        """``(image [H, W, C], label)`` for an int; ``(images, labels)`` for a slice, indices or a mask. As stored."""
        rows = self._rows(index)
        images, labels = self.images[rows], self.labels[rows]
        return images, int(labels) if images.ndim == 3 else labels

    def subset(self, indices: slice | ArrayLike) -> Dataset:
        """The images at ``indices`` (a slice, indices or a mask) as a data set with the same classes.

        Images that are lazy, or take more than 2 GiB, are not copied but found in this data set when they are needed.
        """
        rows = self._rows([indices] if isinstance(indices, int | np.integer) else indices)
        images: Images | LazyImages
        if isinstance(self.images, LazyImages):
            images = self.images.at(np.arange(len(self))[rows])
        elif not isinstance(rows, slice) and len(rows) * self.images[:1].nbytes > IN_MEMORY:
            images = Rows(self.images, np.arange(len(self))[rows])
        else:
            images = self.images[rows]
        return Dataset(images, self.labels[rows], self.classes, self.name)

    def _rows(self, index: Any) -> Any:
        """An index that fits the first axis. Raises IndexError and TypeError."""
        rows = index if isinstance(index, slice | int | np.integer) else _as_indices(index, len(self))
        try:
            self.labels[rows]
        except (IndexError, TypeError) as error:
            raise IndexError(f"{self.name}: {error}") from None
        return rows

    def __repr__(self) -> str:
        some = ", ".join(self.classes[:10]) + (", …" if len(self.classes) > 10 else "")
        images = f"{len(self)} images {self.height}×{self.width}×{self.channels} {self.images.dtype}"
        return f"Dataset({self.name!r}, {images}, {len(self.classes)} classes: {some})"


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _as_indices(index: ArrayLike, length: int) -> NDArray[Any]:
    try:
        rows = np.asarray(index)
    except ValueError:
        raise TypeError(f"index a data set with an int, a slice or a list of ints, got {index!r:.100}") from None
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iub"):
        raise TypeError(f"index a data set with an int, a slice or a list of ints, got {index!r}")
    if rows.dtype == np.bool_ and len(rows) != length:
        raise IndexError(f"a mask over {length} images must have {length} entries, got {len(rows)}")
    return rows if rows.size else rows.astype(np.intp)


def split(
    dataset: Dataset, fraction_or_count: float, *, seed: int = 0, stratify: bool = True
) -> tuple[Dataset, Dataset]:
    """Splits off a held-out set: ``(train, held_out)``, disjoint, the same for the same ``seed`` on every machine.

    ``fraction_or_count`` is the held-out part: a float between 0 and 1 or a number of images. ``stratify`` keeps the
    shares of the classes. Images that occur several times stay together on one side, so with duplicates the held-out
    set can be a little smaller than asked for. Both sides keep the order of ``dataset``.
    """
    count, seed = _held_out_count(fraction_or_count, len(dataset)), validate.integer("split", "seed", seed, least=0)
    groups = _identical_images(dataset)
    strata = dataset.labels[[group[0] for group in groups]] if stratify else np.zeros(len(groups), np.int64)
    totals = np.bincount(strata, weights=[len(group) for group in groups]).astype(np.int64)
    room = _shares(totals, count)
    held_out: list[int] = []
    for g in np.random.default_rng(seed).permutation(len(groups)):
        group = groups[g]
        if len(group) <= room[strata[g]]:
            room[strata[g]] -= len(group)
            held_out += group
    mask = np.zeros(len(dataset), np.bool_)
    mask[held_out] = True
    if not mask.any() or mask.all():
        raise ValueError(
            f"{dataset.name}: cannot hold out {count} of {len(dataset)} images: "
            f"only {len(groups)} of them are different, and identical images stay on one side"
        )
    return dataset.subset(~mask), dataset.subset(mask)


def _held_out_count(fraction_or_count: float, total: int) -> int:
    if isinstance(fraction_or_count, int | np.integer) and not isinstance(fraction_or_count, bool):
        count = int(fraction_or_count)
    elif isinstance(fraction_or_count, float | np.floating) and 0 < fraction_or_count < 1:
        count = round(float(fraction_or_count) * total)
    else:
        raise ValueError(f"hold out a fraction between 0 and 1 or a number of images, got {fraction_or_count!r}")
    if not 0 < count < total:
        raise ValueError(
            f"holding out {fraction_or_count} of {total} images means {count}, which leaves one side empty"
        )
    return count


def _shares(totals: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` divided in proportion to ``totals``: the largest remainders get what rounding down leaves."""
    shares, remainders = np.divmod(totals * count, totals.sum())
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    return shares


def _digests(images: Images | LazyImages, convert: Callable[[Images], Images] | None = None) -> Iterable[bytes]:
    return images.digests() if isinstance(images, LazyImages) and convert is None else digests(images, convert)


def _identical_images(dataset: Dataset) -> list[list[int]]:
    groups: dict[bytes, list[int]] = {}
    for index, digest in enumerate(_digests(dataset.images)):
        groups.setdefault(digest, []).append(index)
    return list(groups.values())


def overlap(train: Dataset, test: Dataset) -> list[tuple[int, int]]:
    """Index pairs ``(i, j)``: test image j is also training image i, pixel for pixel (the first such i)."""
    if train.images.shape[1:] != test.images.shape[1:]:
        return []
    a, b = train.images, test.images
    convert = to_float if a.dtype != b.dtype else None
    first: dict[bytes, int] = {}
    for i, digest in enumerate(_digests(a, convert)):
        first.setdefault(digest, i)
    return [(first[digest], j) for j, digest in enumerate(_digests(b, convert)) if digest in first]


def check_disjoint(train: Dataset, test: Dataset) -> None:
    """Raises ValueError if an image of ``test`` is also in ``train``: accuracy on it would say nothing."""
    pairs = overlap(train, test)
    if pairs:
        some = ", ".join(f"train[{i}] = test[{j}]" for i, j in pairs[:3])
        raise ValueError(
            f"{len(pairs)} of {len(test)} test images ({test.name}) are also in the training set ({train.name}): {some}"
            f"{', …' if len(pairs) > 3 else ''}; drop them (gpucnn.data.overlap lists all) or make both with "
            "gpucnn.data.split"
        )
