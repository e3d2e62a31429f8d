"""Images that stay where they are until they are asked for: what a `Dataset` holds that is larger than the memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Images that take more bytes than this are not copied into memory unless that is asked for.
IN_MEMORY = 1 << 31
# Images that are read at a time where all are gone through.
_AT_A_TIME = 256


class LazyImages(ABC):
    """Images [N, H, W, C] that are read when they are indexed: give them to `Dataset` in place of an array.

    A subclass sets ``shape`` (N, H, W, C) and ``dtype`` (uint8 for 0–255, float32 for 0..1, or bool), and has `read`.
    Indexing takes what a NumPy array takes for its first axis: an int, a slice, indices or a mask. What `read` returns
    is checked: another shape or type is a ValueError.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]

    @abstractmethod
    def read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """The images numbered ``rows``, each from 0 to N − 1, in this order: [len(rows), H, W, C].

        A `Loader` calls it from a thread of its own, for one batch after the other.
        """

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        rows = np.arange(len(self))[index]
        images = self.read(np.atleast_1d(rows))
        wanted = (rows.size, *self.shape[1:])
        if not isinstance(images, np.ndarray) or images.shape != wanted or images.dtype != self.dtype:
            got = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}".rstrip()
            raise ValueError(f"{type(self).__name__}.read must return a {self.dtype} array {wanted}, got {got}")
        return images if rows.ndim else images[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{type(self).__name__} is no array, so it can't become one without a copy")
        return self[:] if dtype is None else self[:].astype(dtype)

    def at(self, rows: NDArray[np.intp]) -> LazyImages:
        """The images numbered ``rows``, none of them read."""
        return Rows(self, rows)

    def digests(self) -> list[bytes]:
        """A digest of the pixels of each image. They are read once, for the first call."""
        if "_digests" not in vars(self):
            self._digests = list(digests(self))
        return self._digests


class Rows(LazyImages):
    """Some of the images of an array or of others that are lazy."""

    def __init__(self, images: NDArray[Any] | LazyImages, rows: NDArray[np.intp]) -> None:
        self.images, self.rows = images, rows
        self.shape = (len(rows), *images.shape[1:])
        self.dtype = images.dtype

    def read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        return self.images[self.rows[rows]]

    def at(self, rows: NDArray[np.intp]) -> LazyImages:
        return Rows(self.images, self.rows[rows])

    def digests(self) -> list[bytes]:
        if not isinstance(self.images, LazyImages):
            return super().digests()
        known = self.images.digests()
        return [known[row] for row in self.rows]


def digests(
    images: NDArray[Any] | LazyImages, convert: Callable[[NDArray[Any]], NDArray[Any]] | None = None
) -> Iterator[bytes]:
    """A digest of the pixels of each image, after ``convert(images)`` if given."""
    for start in range(0, len(images), _AT_A_TIME):
        some = images[start : start + _AT_A_TIME]
        for image in some if convert is None else convert(some):
            yield blake2b(image.tobytes(), digest_size=16).digest()
