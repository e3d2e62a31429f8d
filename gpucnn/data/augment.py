"""Random changes to a batch of training images, named as in torchvision.transforms.

Each is a frozen dataclass, called with ``(images float32 [N, H, W, C], generator)``. Every image draws its own random
numbers from ``generator``; the result is float32 [N, H, W, C] and the input is left alone. Where something is sampled
between pixels, that is bilinear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
PaddingMode = Literal["constant", "edge", "reflect", "symmetric"]
_LONGEST = 65535  # pixels of a side
_LARGEST = float(np.finfo(np.float32).max)


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
        _check_probability(self.p)

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        return _in_some(images, self.p, generator, lambda some: some[:, :, ::-1])


@dataclass(frozen=True)
class RandomVerticalFlip:
    """Mirrors top and bottom with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        return _in_some(images, self.p, generator, lambda some: some[:, ::-1])


@dataclass(frozen=True)
class RandomCrop:
    """A window of ``size`` at a random place of the image with ``padding`` pixels around it.

    ``size`` is a number or (height, width); ``padding`` a number, (left/right, top/bottom) or (left, top, right,
    bottom), in pixels. ``padding_mode`` says what is in them: "constant" ``fill``, "edge" the outermost pixel,
    "reflect" the image mirrored at that pixel, "symmetric" mirrored behind it, so that it occurs twice. Raises
    ValueError if the padded image is smaller than the window, unless ``pad_if_needed``, which adds what is missing on
    both sides.
    """

    size: int | tuple[int, int]
    padding: int | tuple[int, int] | tuple[int, int, int, int] = 0
    pad_if_needed: bool = False
    fill: float = 0.0
    padding_mode: PaddingMode = "constant"

    def __post_init__(self) -> None:
        _integers("size", self.size, 1, (1, 2))
        _integers("padding", self.padding, 0, (1, 2, 4))
        _check_pixel("fill", self.fill)
        if self.padding_mode not in get_args(PaddingMode):
            raise ValueError(
                f"padding_mode must be one of {', '.join(get_args(PaddingMode))}, got {self.padding_mode!r}"
            )

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        n, h, w, c = images.shape
        height, width = _integers("size", self.size, 1, (1, 2))
        left, top, right, bottom = _integers("padding", self.padding, 0, (1, 2, 4))
        if self.pad_if_needed:
            missing_rows = max(height - (top + h + bottom), 0)
            missing_columns = max(width - (left + w + right), 0)
            top, bottom = top + missing_rows, bottom + missing_rows
            left, right = left + missing_columns, right + missing_columns
        rows, columns = top + h + bottom - height, left + w + right - width
        if rows < 0 or columns < 0:
            raise ValueError(
                f"RandomCrop of {height}×{width} does not fit in an image of {h}×{w} with padding {self.padding}: "
                f"that is {top + h + bottom}×{left + w + right}"
            )
        sides = ((0, 0), (top, bottom), (left, right), (0, 0))
        if self.padding_mode == "constant":
            padded = np.pad(images, sides, constant_values=self.fill)
        else:
            padded = np.pad(images, sides, self.padding_mode)
        tops = generator.integers(0, rows, n, endpoint=True)
        lefts = generator.integers(0, columns, n, endpoint=True)
        result = np.empty((n, height, width, c), np.float32)
        for i, (y, x) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
            result[i] = padded[i, y : y + height, x : x + width]
        return result


@dataclass(frozen=True)
class CenterCrop:
    """The window of ``size``, a number or (height, width), in the middle; zeros where the image is smaller."""

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        _integers("size", self.size, 1, (1, 2))

    def __call__(self, images: Images, generator: np.random.Generator | None = None) -> Images:
        _check(images)
        sides, window = [], []
        for length, wanted in zip(images.shape[1:3], _integers("size", self.size, 1, (1, 2)), strict=True):
            missing, start = max(wanted - length, 0), round(max(length - wanted, 0) / 2)
            sides.append((missing // 2, (missing + 1) // 2))
            window.append(slice(start, start + wanted))
        return np.pad(images[:, *window], ((0, 0), *sides, (0, 0)))


@dataclass(frozen=True)
class Resize:
    """Brings images to ``size``: (height, width), or a number for the shorter side, which keeps their shape.

    What shrinks is averaged, as by Pillow's BILINEAR and torchvision's ``antialias=True``.
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        _integers("size", self.size, 1, (1, 2))

    def __call__(self, images: Images, generator: np.random.Generator | None = None) -> Images:
        _check(images)
        n, h, w, _ = images.shape
        size = _integers("size", self.size, 1, (1, 2))
        if not isinstance(self.size, Sequence) or len(self.size) == 1:
            size = size[0] * h // min(h, w), size[0] * w // min(h, w)
        start = np.zeros(n, np.int64)
        return _resized(images, (start, start + h), (start, start + w), size)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random window of the image, brought to ``size``, a number or (height, width), as `Resize` does.

    The window has a share of the image's area within ``scale`` and width / height within ``ratio``, log-uniform
    (Szegedy et al. 2015). As in torchvision, of ten draws the first that fits counts; if none does, the largest window
    of an allowed shape in the middle.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _integers("size", self.size, 1, (1, 2))
        _shares("scale", self.scale)
        _positive_range("ratio", self.ratio)

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        n, h, w, _ = images.shape
        least, most = _positive_range("ratio", self.ratio)
        widths, heights = _rectangles(n, h * w, (w, h), self.scale, (least, most), generator)
        tops = generator.integers(0, h - heights, endpoint=True)
        lefts = generator.integers(0, w - widths, endpoint=True)
        widest, tallest = max(1, round(min(w, h * most))), max(1, round(min(h, w / least)))
        none = heights == 0
        heights[none], widths[none] = tallest, widest
        tops[none], lefts[none] = (h - tallest) // 2, (w - widest) // 2
        return _resized(images, (tops, heights), (lefts, widths), _integers("size", self.size, 1, (1, 2)))


@dataclass(frozen=True)
class RandomErasing:
    """Sets a random rectangle to ``value`` with probability ``p`` (Zhong et al. 2017).

    It has a share of the image's area within ``scale`` and height / width within ``ratio``, log-uniform; where none of
    ten draws fits, nothing is erased. ``value`` is a number, one a channel, or "random" for noise of a standard normal
    distribution. It is that of the augmentation's pixels, 0..1; the loader's ``normalise`` comes after it.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float | Sequence[float] | Literal["random"] = 0.0

    def __post_init__(self) -> None:
        _check_probability(self.p)
        _shares("scale", self.scale)
        _positive_range("ratio", self.ratio)
        if not isinstance(self.value, str):
            for value in _per_channel("value", self.value):
                _check_pixel("value", value)
        elif self.value != "random":
            raise ValueError(f'value must be a number, one a channel, or "random", got {self.value!r:.100}')

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        n, h, w, c = images.shape
        if not isinstance(self.value, str) and np.size(self.value) not in (1, c):
            raise ValueError(f"value {self.value} does not fit images of {c} channels")
        heights, widths = _rectangles(n, h * w, (h - 1, w - 1), self.scale, self.ratio, generator)
        heights *= generator.random(n) < self.p  # a rectangle without a row erases nothing
        tops = generator.integers(0, h - heights, endpoint=True)
        lefts = generator.integers(0, w - widths, endpoint=True)
        erased = _inside(h, w, tops, lefts, heights, widths)
        result = images.copy()
        if isinstance(self.value, str):
            result[erased] = generator.standard_normal((np.count_nonzero(erased), c), np.float32)
        else:
            result[erased] = self.value
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
        (size,) = _integers("size", self.size, 1, (1,))
        tops = generator.integers(0, h, (n,)) - size // 2
        lefts = generator.integers(0, w, (n,)) - size // 2
        result = images.copy()
        result[_inside(h, w, tops, lefts, size, size)] = 0
        return result


@dataclass(frozen=True)
class RandomGrayscale:
    """Turns an RGB image gray with probability ``p``, in three equal channels; a gray one stays as it is."""

    p: float = 0.1

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        _check_colours(images)
        return _in_some(images, self.p, generator, _gray)


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue, in an order that each image draws for itself.

    As torchvision's: each is a number v for factors 1 − v (at least 0) to 1 + v, or (least, most); ``hue`` turns the
    circle of colours by −v to v whole turns, v up to 0.5. Contrast blends with the mean of the gray image, saturation
    with the gray image; results are clipped to 0..1. Of gray images hue and saturation change nothing.
    """

    brightness: float | tuple[float, float] = 0.0
    contrast: float | tuple[float, float] = 0.0
    saturation: float | tuple[float, float] = 0.0
    hue: float | tuple[float, float] = 0.0

    def __post_init__(self) -> None:
        self._ranges()

    def _ranges(self) -> list[tuple[float, float]]:
        ranges = [_factors(name, getattr(self, name)) for name in ("brightness", "contrast", "saturation")]
        turn = _range("hue", self.hue)
        if turn[0] < -0.5 or turn[1] > 0.5:
            raise ValueError(f"hue must be a number of at most 0.5 or (least, most) within -0.5..0.5, got {self.hue}")
        return [*ranges, turn]

    @np.errstate(all="ignore")
    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        _check(images)
        _check_colours(images)
        ranges, n = self._ranges(), len(images)
        factors = [generator.uniform(*ends, n).astype(np.float32)[:, None, None, None] for ends in ranges]
        order = generator.random((n, len(ranges))).argsort(axis=1)
        result = images.copy()
        for step in order.T:
            for k, (change, neutral) in enumerate(_COLOUR_CHANGES):
                if ranges[k] != (neutral, neutral):
                    chosen = step == k
                    result[chosen] = change(result[chosen], factors[k][chosen])
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
        if self.scale is not None:
            _positive_range("scale", self.scale)
        _check_pixel("fill", self.fill)

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


@dataclass(frozen=True)
class RandomRotation:
    """Rotates about the centre, with ``fill`` where there was no image: `RandomAffine` turned the other way.

    As torchvision's: ``degrees`` a number d for −d..d or (least, most), counter-clockwise.
    """

    degrees: float | tuple[float, float]
    fill: float = 0.0

    def __post_init__(self) -> None:
        _range("degrees", self.degrees)
        _check_pixel("fill", self.fill)

    def __call__(self, images: Images, generator: np.random.Generator) -> Images:
        least, most = _range("degrees", self.degrees)
        return RandomAffine((-most, -least), fill=self.fill)(images, generator)


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


def _in_some(images: Images, p: float, generator: np.random.Generator, change: Callable[[Images], Images]) -> Images:
    """The images, each changed with probability ``p``."""
    chosen = generator.random(len(images)) < p
    result = images.copy()
    result[chosen] = change(images[chosen])
    return result


Span = tuple[NDArray[np.int64], NDArray[np.int64]]  # [N] first pixels, [N] numbers of pixels


def _resized(images: Images, rows: Span, columns: Span, size: tuple[int, ...]) -> Images:
    """Of each image the window of ``rows`` and ``columns``, brought to ``size`` (height, width)."""
    sideways = np.ascontiguousarray(_resampled(images, *rows, size[0]).swapaxes(1, 2))
    return np.ascontiguousarray(_resampled(sideways, *columns, size[1]).swapaxes(1, 2))


def _resampled(images: Images, starts: NDArray[np.int64], lengths: NDArray[np.int64], size: int) -> Images:
    """``lengths`` pixels along axis 1 from ``starts`` on, each [N], brought to ``size`` pixels.

    A new pixel is a mean weighted by a triangle around its centre that reaches to the next centres of the coarser of
    the two grids: linear interpolation where this enlarges, and an average where it shrinks. Sums have one order, which
    those of a matrix product need not have.
    """
    step = (lengths / size)[:, None, None]  # old pixels a new one
    reach = np.maximum(step, 1)
    centre = (np.arange(size)[:, None] + 0.5) * step - 0.5  # [N, size, 1], where old pixels are at whole numbers
    old = np.floor(centre - reach) + np.arange(1, math.ceil(2 * reach.max(initial=1)) + 1)  # all within reach
    last = lengths[:, None, None] - 1
    weights = np.where((old >= 0) & (old <= last), np.maximum(1 - np.abs(old - centre) / reach, 0), 0)
    weights = (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)
    places = starts[:, None, None] + np.clip(old.astype(np.int64), 0, last)
    image = np.arange(len(images))[:, None]
    result = np.zeros((len(images), size, *images.shape[2:]), np.float32)
    with np.errstate(all="ignore"):
        for k in range(old.shape[2]):
            result += images[image, places[..., k]] * weights[..., k, None, None]
    return result


def _rectangles(
    n: int,
    area: int,
    largest: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> Span:
    """n random rectangles: their two sides in pixels, 0 and 0 if none of ten draws has sides from 1 to ``largest``.

    They have shares ``scale`` of ``area``; first side / second side is within ``ratio``, log-uniform.
    """
    shares = area * generator.uniform(*scale, (n, 10))
    quotients = np.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1]), (n, 10)))
    with np.errstate(over="ignore"):
        sides = np.rint(np.sqrt([shares * quotients, shares / quotients]))
    most = np.array(largest)[:, None, None]
    fits = ((sides >= 1) & (sides <= most)).all(axis=0)
    first = np.where(fits, sides, 0)[:, np.arange(n), fits.argmax(axis=1)].astype(np.int64)
    return first[0], first[1]


def _inside(
    h: int,
    w: int,
    tops: NDArray[np.int64],
    lefts: NDArray[np.int64],
    heights: int | NDArray[np.int64],
    widths: int | NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which pixels [N, h, w] lie in each image's rectangle, which may reach across the border."""
    row, column = np.arange(h)[:, None], np.arange(w)[:, None]
    rows = (tops <= row) & (row < tops + heights)
    columns = (lefts <= column) & (column < lefts + widths)
    return rows.T[:, :, None] & columns.T[:, None, :]


def _gray(images: Images) -> Images:
    """Luma [N, H, W, 1] of RGB images by ITU-R BT.601, which Pillow and torchvision take; gray ones as they are."""
    if images.shape[3] == 1:
        return images
    with np.errstate(all="ignore"):
        weighted = images * np.array([0.299, 0.587, 0.114], np.float32)
        return weighted[..., :1] + weighted[..., 1:2] + weighted[..., 2:]


def _blended(images: Images, other: Images | float, factor: Images) -> Images:
    """``images`` at factor 1, ``other`` at 0, and what lies on their line beyond both, clipped to 0..1."""
    return np.clip(factor * images + (1 - factor) * other, 0, 1)


def _brightened(images: Images, factor: Images) -> Images:
    return _blended(images, 0, factor)


def _contrasted(images: Images, factor: Images) -> Images:
    return _blended(images, _gray(images).mean(axis=(1, 2), keepdims=True), factor)


def _saturated(images: Images, factor: Images) -> Images:
    return _blended(images, _gray(images), factor)


def _hue_turned(images: Images, turns: Images) -> Images:
    """The hue of HSV (Smith 1978) moved by ``turns`` of the circle; value and chroma stay."""
    if images.shape[3] == 1:
        return images
    red, green, blue = (images[..., c : c + 1] for c in range(3))
    value = np.maximum(np.maximum(red, green), blue)  # NumPy reduces so short an axis slowly
    chroma = value - np.minimum(np.minimum(red, green), blue)
    divisor = np.where(chroma == 0, 1, chroma)
    hue = np.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = np.where(value == red, (green - blue) / divisor, hue) + 6 * turns  # in sixths of the circle
    # how far each channel is from the hues at which it is full, which are two sixths apart
    distance = (np.array([5, 3, 1], np.float32) + hue) % 6
    turned: Images = value - chroma * np.clip(np.minimum(distance, 4 - distance), 0, 1)
    return turned


_COLOUR_CHANGES = ((_brightened, 1), (_contrasted, 1), (_saturated, 1), (_hue_turned, 0))  # with what changes nothing


def _check(images: Any) -> None:
    """Raises TypeError for what is no float32 array, ValueError unless it is [N, H, W, C] with pixels."""
    if not isinstance(images, np.ndarray) or images.dtype != np.float32:
        raise TypeError(f"images must be a float32 array, got {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images must be [N, H, W, C] with pixels, got shape {images.shape}")


def _check_colours(images: Images) -> None:
    if images.shape[3] not in (1, 3):
        raise ValueError(f"images must be gray or RGB, with 1 or 3 channels, got shape {images.shape}")


def _check_probability(p: Any) -> None:
    if not _is_number(p) or not 0 <= p <= 1:
        raise ValueError(f"p must be within 0..1, got {p}")


def _check_pixel(name: str, value: Any) -> None:
    if not _is_number(value) or not abs(value) <= _LARGEST:
        raise ValueError(f"{name} must be a finite float32, got {value}")


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
    whole = isinstance(values, Sequence) and not isinstance(values, bytes)  # which are numbers too
    if not whole or not all(isinstance(v, int | np.integer) and v >= least for v in values):
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


def _positive_range(name: str, value: Any) -> tuple[float, float]:
    low, high = _range(name, value)
    if low <= 0:
        raise ValueError(f"{name} must be (least, most), both above 0, got {value}")
    return low, high


def _shares(name: str, value: Any) -> tuple[float, float]:
    low, high = _range(name, value)
    if low < 0 or high > 1:
        raise ValueError(f"{name} must be (least, most), shares of the area within 0..1, got {value}")
    return low, high


def _factors(name: str, value: Any) -> tuple[float, float]:
    """1 − v (at least 0) to 1 + v of a number v, or the two ends of a range as they are."""
    low, high = _range(name, value)
    if _is_number(value):
        return max(0.0, 1 + low), 1 + high
    if low < 0:
        raise ValueError(f"{name} must be a number or (least, most), of at least 0, got {value}")
    return low, high
