"""From a drawing or a photo to the image that a network takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Size = tuple[int, int]

BOX = 20 / 28  # of the height and width: where MNIST's digits lie


def fitted(pixels: Pixels, size: Size, centre: bool) -> Pixels:
    """Pixels [H, W, C] of any size as an image of that size (H, W), the whole of it stretched, or centred.

    Shrinking takes the mean of what falls on a pixel, so a sample enlarged by a whole number comes back unchanged.
    """
    if centre:
        return centred(pixels[..., 0], size)[..., None]
    shrunk = pixels.shape[0] >= size[0] and pixels.shape[1] >= size[1]
    filter = Image.Resampling.BOX if shrunk else Image.Resampling.BILINEAR
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(picture.resize((size[1], size[0]), filter)).reshape(*size, pixels.shape[2])


def centred(ink: Pixels, size: Size) -> Pixels:
    """A drawing [H, W], light on dark, as MNIST's digits are: scaled to fit a box of 20/28, its centre of mass centred.

    The ratio of height to width is kept (LeCun et al. 1998). The centre is pixel (H/2, W/2), as it is in MNIST's files.
    A drawing without ink stays empty.
    """
    image = np.zeros(size, np.uint8)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not len(rows):
        return image
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(BOX * size[0] / cut.shape[0], BOX * size[1] / cut.shape[1])
    h, w = (max(1, round(scale * n)) for n in cut.shape)
    digit = np.asarray(Image.fromarray(cut).resize((w, h), Image.Resampling.BOX))
    mass = digit / digit.sum()
    top = round(size[0] / 2 - float(mass.sum(axis=1) @ np.arange(h)))
    left = round(size[1] / 2 - float(mass.sum(axis=0) @ np.arange(w)))
    top, left = min(max(top, 0), size[0] - h), min(max(left, 0), size[1] - w)
    image[top : top + h, left : left + w] = digit
    return image
