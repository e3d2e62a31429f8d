"""Random changes to a batch of training images, named as in torchvision.transforms.

Each is a frozen dataclass, called with ``(images float32 [N, H, W, C], generator)``. Every image draws its own random
numbers from ``generator``; the result is float32 [N, H, W, C] and the input is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
_LONGEST = 65535  # pixels of a side


@dataclass(frozen=True)
class Compose:
    """Does one after the other."""

    transforms: Sequence[Callable[[Images, np.random.Generator], Images]]

    def __post_init__(self) -> None:
        if not isinstance(self.transforms, Sequence):
            raise TypeError(f"Compose needs a list of callables, got {self.transforms!r}")
        for transform in self.transforms:
            if not callable(transform):
                raise TypeError(f"Compose needs callables (images, generator) -> images, got {transform!r}")

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        for transform in self.transforms:
            images = transform(images, generator)
        return images


@dataclass(frozen=True)
class Normalize:
    """(images − mean) / std, each a number or one a channel."""

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        mean, std = _per_channel("mean", self.mean), _per_channel("std", self.std)
        if len(mean) != len(std):
            raise ValueError(f"mean and std must be of one length, got {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")

    def check_channels(self, channels: int) -> None:
        """Raises ValueError unless there is one mean for all or one for each of ``channels``."""
        if np.size(self.mean) not in (1, channels):
            raise ValueError(f"mean {self.mean} and std {self.std} do not fit images of {channels} channels")

    def __call__(self, images: Images, generator: np.random.Generator | None = None) -> Images:
        _check(images)
        self.check_channels(images.shape[3])
        with np.errstate(all="ignore"):
            result: Images = images - np.asarray(self.mean, np.float32)
            result /= np.asarray(self.std, np.float32)
        return result


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirrors left and right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not _is_number(self.p) or not 0 <= self.p <= 1:
            raise ValueError(f"p must be within 0..1, got {self.p}")

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        flipped = generator.random(len(images)) < self.p
        result = images.copy()
        result[flipped] = images[flipped, :, ::-1]
        return result


@dataclass(frozen=True)
class RandomCrop:
    """A window of ``size`` at a random place of the image with ``padding`` zeros around it.

    ``size`` is a number or (height, width); ``padding`` a number, (left/right, top/bottom) or (left, top, right,
    bottom), in pixels. Raises ValueError if the padded image is smaller than the window.
    """

    size: int | tuple[int, int]
    padding: int | tuple[int, int] | tuple[int, int, int, int] = 0

    def __post_init__(self) -> None:
        _integers("size", self.size, 1, (1, 2))
        _integers("padding", self.padding, 0, (1, 2, 4))

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        n, h, w, c = images.shape
        height, width = _integers("size", self.size, 1, (1, 2))
        left, top, right, bottom = _integers("padding", self.padding, 0, (1, 2, 4))
        rows, columns = top + h + bottom - height, left + w + right - width
        if rows < 0 or columns < 0:
            raise ValueError(
                f"RandomCrop of {height}×{width} does not fit in an image of {h}×{w} with padding {self.padding}: "
                f"that is {top + h + bottom}×{left + w + right}"
            )
        padded = np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))
        tops = generator.integers(0, rows, n, endpoint=True)
        lefts = generator.integers(0, columns, n, endpoint=True)
        result = np.empty((n, height, width, c), np.float32)
        for i, (y, x) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
            result[i] = padded[i, y : y + height, x : x + width]
        return result


@dataclass(frozen=True)
class Cutout:
    """Sets a square of ``size`` pixels around a random pixel to 0, also across the border (DeVries & Taylor 2017)."""

    size: int

    def __post_init__(self) -> None:
        _integers("size", self.size, 1, (1,))

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        n, h, w, _ = images.shape
        top = generator.integers(0, h, (n, 1)) - self.size // 2
        left = generator.integers(0, w, (n, 1)) - self.size // 2
        row, column = np.arange(h), np.arange(w)
        rows = (top <= row) & (row < top + self.size)
        columns = (left <= column) & (column < left + self.size)
        result = images.copy()
        result[rows[:, :, None] & columns[:, None, :]] = 0
        return result


@dataclass(frozen=True)
class RandomAffine:
    """Rotates, moves, scales and shears about the centre, with bilinear interpolation and ``fill`` outside the image.

    As torchvision's: ``degrees`` a number d for −d..d or (least, most), clockwise; ``translate`` (a, b) moves by up to
    a·W columns and b·H rows, in whole pixels; ``scale`` (least, most); ``shear`` in degrees along x: a number, (least,
    most), or four numbers for x and y.
    """

    degrees: float | tuple[float, float]
    translate: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    shear: float | tuple[float, float] | tuple[float, float, float, float] = 0.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        _range("degrees", self.degrees)
        self._shears()
        move = (0, 0) if self.translate is None else self.translate
        if not (isinstance(move, Sequence) and len(move) == 2 and all(_is_number(m) and 0 <= m <= 1 for m in move)):
            raise ValueError(f"translate must be two fractions within 0..1, got {self.translate}")
        if self.scale is not None and _range("scale", self.scale)[0] <= 0:
            raise ValueError(f"scale must be (least, most), both above 0, got {self.scale}")
        if not _is_number(self.fill) or not math.isfinite(self.fill):
            raise ValueError(f"fill must be finite, got {self.fill}")

    def _shears(self) -> tuple[tuple[float, float], tuple[float, float]]:
        if isinstance(self.shear, Sequence) and len(self.shear) == 4:
            return _range("shear", self.shear[:2]), _range("shear", self.shear[2:])
        return _range("shear", self.shear), (0.0, 0.0)

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        n, h, w, _ = images.shape
        return warp(images, self.matrices(n, h, w, generator), self.fill)

    def matrices(self, n: int, h: int, w: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """n random maps [n, 2, 3] from a pixel (x, y, 1) of the result to (x, y) in the image it comes from."""
        across, down = self.translate or (0.0, 0.0)
        shear_x, shear_y = (np.radians(generator.uniform(*ends, n)) for ends in self._shears())
        angle = np.radians(generator.uniform(*_range("degrees", self.degrees), n))
        scale = generator.uniform(*(self.scale or (1.0, 1.0)), n)
        move_x = np.rint(generator.uniform(-across * w, across * w, n))
        move_y = np.rint(generator.uniform(-down * h, down * h, n))
        # rotation · shear · scale is scale · [[a, b], [c, d]] with determinant scale², and this is its inverse
        a, c = np.cos(angle - shear_y) / np.cos(shear_y), np.sin(angle - shear_y) / np.cos(shear_y)
        b, d = -a * np.tan(shear_x) - np.sin(angle), -c * np.tan(shear_x) + np.cos(angle)
        linear = np.array([[d, -b], [-c, a]]) / scale
        centre = np.array([[(w - 1) / 2], [(h - 1) / 2]])
        offset = centre - np.einsum("ijn,jn->in", linear, centre + np.array([move_x, move_y]))
        return np.concatenate([linear, offset[:, None]], axis=1).transpose(2, 0, 1)


def warp(images: Images, matrices: NDArray[np.float64], fill: float = 0.0) -> Images:
    """Each image seen through its map: result[y, x] = image at ``matrix @ (x, y, 1)``, bilinear, ``fill`` outside.

    ``images`` [N, H, W, C], ``matrices`` [N, 2, 3]. Pixels have their centres at whole numbers.
    """
    n, h, w, c = images.shape
    # A border of `fill` answers for everything outside: coordinates are clipped to it. One more row and column at the
    # end lets the lower neighbour of the last coordinate be read without a second clip.
    height, width = h + 3, w + 3
    padded = np.full((n, height, width, c), fill, np.float32)
    padded[:, 1 : h + 1, 1 : w + 1] = images
    m = matrices.astype(np.float32)
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]

    def source(row: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        a, b, offset = (m[:, row, k, None, None] for k in range(3))
        at = a * x + (b * y + (offset + np.float32(1)))
        np.clip(at, 0, size + 1, out=at)
        whole = at.astype(np.int32)  # clipped to 0 and above, where this is floor
        at -= whole
        return at, whole

    part_x, column = source(0, w)
    part_y, row = source(1, h)
    row *= width
    row += column
    row += (np.arange(n, dtype=np.int32) * (height * width))[:, None, None]
    pixels = padded.reshape(-1, c) if c > 1 else padded.reshape(-1)
    if c > 1:
        part_x, part_y = part_x[..., None], part_y[..., None]

    @np.errstate(all="ignore")
    def mix(offset: int) -> NDArray[np.float32]:
        left = pixels[offset:].take(row, axis=0, mode="clip")
        right = pixels[offset + 1 :].take(row, axis=0, mode="clip")
        right -= left
        right *= part_x
        left += right
        return left

    upper, lower = mix(0), mix(width)
    with np.errstate(all="ignore"):
        lower -= upper
        lower *= part_y
        upper += lower
    return upper.reshape(n, h, w, c)


def _check(images: Any) -> None:
    """Raises TypeError for what is no float32 array, ValueError unless it is [N, H, W, C] with pixels."""
    if not isinstance(images, np.ndarray) or images.dtype != np.float32:
        raise TypeError(f"images must be a float32 array, got {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images must be [N, H, W, C] with pixels, got shape {images.shape}")


def _per_channel(name: str, values: float | Sequence[float]) -> tuple[float, ...]:
    try:
        array = np.atleast_1d(np.asarray(values, np.float64))
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or one a channel, got {values!r}") from None
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a finite number or one a channel, got {values!r}")
    return tuple(array.tolist())


def _integers(name: str, value: Any, least: int, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """``value``, a number or ``lengths`` of them, repeated to the longest of ``lengths``."""
    values = (value,) if isinstance(value, int | np.integer) else value
    if not isinstance(values, Sequence) or not all(isinstance(v, int | np.integer) and v >= least for v in values):
        raise ValueError(f"{name} must be whole numbers of at least {least}, got {value!r:.100}")
    if any(v > _LONGEST for v in values):
        raise ValueError(f"{name} must be whole numbers up to {_LONGEST}, got {value!r:.100}")
    if len(values) not in lengths:
        raise ValueError(f"{name} must be {' or '.join(map(str, lengths))} numbers, got {value!r}")
    return tuple(map(int, values)) * (lengths[-1] // len(values))


def _is_number(value: Any) -> bool:
    """Whether a float can hold it."""
    return isinstance(value, int | float | np.floating | np.integer) and bool(-(2.0**1023) < value < 2.0**1023)


def _range(name: str, value: Any) -> tuple[float, float]:
    """(−v, v) of a number v, or the two ends of a range as they are."""
    if isinstance(value, Sequence) and len(value) == 2 and all(map(_is_number, value)):
        low, high = map(float, value)
    elif _is_number(value) and value >= 0:
        low, high = -float(value), float(value)
    else:
        raise ValueError(f"{name} must be a number of at least 0 or (least, most), got {value!r}")
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"{name} must be (least, most) with least <= most, got {value!r}")
    return low, high
