"""Pictures drawn by the program: an X, or something that is not one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpucnn.data.dataset import Dataset
from gpucnn.functional import validate
from gpucnn.geometry import pair

Bitmap = NDArray[np.bool_]
Bits = NDArray[np.uint64]
Strokes = tuple[tuple[tuple[int, int], tuple[int, int]], ...]

# Strokes between points of a box, (row, column) from 0, its first row or column, to 2, its last.
_X: Strokes = (((0, 0), (2, 2)), ((0, 2), (2, 0)))
_OTHERS: dict[str, Strokes] = {
    "\\": (((0, 0), (2, 2)),),
    "/": (((0, 2), (2, 0)),),
    "|": (((0, 1), (2, 1)),),
    "—": (((1, 0), (1, 2)),),
    "+": (((0, 1), (2, 1)), ((1, 0), (1, 2))),
    "V": (((0, 0), (2, 1)), ((0, 2), (2, 1))),
    "Λ": (((0, 1), (2, 0)), ((0, 1), (2, 2))),
    "L": (((0, 0), (2, 0)), ((2, 0), (2, 2))),
    "T": (((0, 0), (0, 2)), ((0, 1), (2, 1))),
    "Z": (((0, 0), (0, 2)), ((0, 2), (2, 0)), ((2, 0), (2, 2))),
    "O": (((0, 0), (0, 2)), ((0, 2), (2, 2)), ((2, 2), (2, 0)), ((2, 0), (0, 0))),
}
_LARGEST = 32


def x_or_not_x(
    count: int,
    size: int | tuple[int, int] = 5,
    seed: int = 0,
    *,
    shift: bool = True,
    shrink: bool = True,
    distort: int = 1,
) -> Dataset:
    """Black/white images, float32 [count, H, W, 1] of 1.0 on 0.0: class 1, every second one before shuffling, is an X.

    ``size`` is H = W or (H, W), 5 to 32. ``shrink`` draws in boxes down to half the height and width (at least 3×3;
    sides shrink independently), ``shift`` puts the box anywhere instead of in the middle, ``distort`` flips up to that
    many random pixels. The rest are other strokes, random dots or nothing, none of which can be had from an X by
    flipping ``distort`` pixels, so no image is of both classes. Images may repeat: there are not so many small ones.
    """
    op = "x_or_not_x"
    h, w = pair(size, "size", 1)
    count, seed = validate.integer(op, "count", count), validate.integer(op, "seed", seed, least=0)
    distort = validate.integer(op, "distort", distort)
    if not (5 <= h <= _LARGEST and 5 <= w <= _LARGEST):
        raise ValueError(f"size must be within 5..{_LARGEST} by 5..{_LARGEST}, got {h}×{w}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not 0 <= distort <= 2:
        raise ValueError(f"distort must be 0, 1 or 2 pixels (more makes an X unrecognisable), got {distort}")
    generator = np.random.default_rng(seed)
    boxes, every_x = _every_x(h, w, shift, shrink)

    def flipped(image: Bitmap) -> Bitmap:
        image.flat[generator.permutation(h * w)[: generator.integers(distort, endpoint=True)]] ^= True
        return image

    def near_x(image: Bitmap) -> bool:
        return bool((np.bitwise_count(every_x ^ _bits(image)).sum(axis=1) <= distort).any())

    def other() -> Bitmap:
        box = boxes[generator.integers(len(boxes))]
        kind = generator.integers(len(_OTHERS) + 2)
        if kind < len(_OTHERS):
            return _draw(h, w, box, list(_OTHERS.values())[kind])
        dots = np.zeros((h, w), np.bool_)
        if kind == len(_OTHERS):
            dots.flat[generator.permutation(h * w)[: box[2] + box[3] - 1]] = True
        return dots

    images = np.empty((count, h, w, 1), np.float32)
    labels = generator.permutation(np.arange(count) % 2)
    for n, is_x in enumerate(labels):
        if is_x:
            image = flipped(_draw(h, w, boxes[generator.integers(len(boxes))], _X))
        else:
            image = flipped(other())
            while near_x(image):
                image = flipped(other())
        images[n, :, :, 0] = image
    return Dataset(images, labels, ("not X", "X"), "x-or-not-x")


def _boxes(h: int, w: int, shift: bool, shrink: bool) -> Iterator[tuple[int, int, int, int]]:
    """The boxes (top, left, height, width) to draw in."""
    for height in range(max(3, (h + 1) // 2) if shrink else h, h + 1):
        for width in range(max(3, (w + 1) // 2) if shrink else w, w + 1):
            for top in range(h - height + 1) if shift else [(h - height) // 2]:
                for left in range(w - width + 1) if shift else [(w - width) // 2]:
                    yield top, left, height, width


@lru_cache(16)
def _every_x(h: int, w: int, shift: bool, shrink: bool) -> tuple[list[tuple[int, int, int, int]], Bits]:
    """All boxes, and the X in each: 14,400 for 28×28 pixels."""
    boxes = list(_boxes(h, w, shift, shrink))
    return boxes, np.stack([_bits(_draw(h, w, box, _X)) for box in boxes])


def _draw(h: int, w: int, box: tuple[int, int, int, int], strokes: Strokes) -> Bitmap:
    top, left, height, width = box
    rows, columns = _pixels(height, width, strokes)
    image = np.zeros((h, w), np.bool_)
    image[top + rows, left + columns] = True
    return image


@lru_cache(4096)
def _pixels(height: int, width: int, strokes: Strokes) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """The rows and columns of the strokes' pixels, from the corner of a box of that size."""
    starts, ends = np.array(strokes).transpose(1, 2, 0)[..., None]  # of each [row or column, stroke, 1]
    last = np.array([height - 1, width - 1])[:, None, None]
    intervals = last.max()
    # Half up, in whole numbers: between two pixels floats would err to either side.
    way = (ends - starts) * last * np.arange(intervals + 1)
    rows, columns = (((starts * last + 1) * intervals + way) // (2 * intervals)).reshape(2, -1)
    return rows, columns


def _bits(image: Bitmap) -> Bits:
    """A bit for each pixel."""
    bits = np.zeros(-(-image.size // 64) * 64, np.bool_)
    bits[: image.size] = image.ravel()
    return np.packbits(bits).view(np.uint64)
