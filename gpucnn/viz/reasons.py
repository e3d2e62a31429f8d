"""Pictures of where a network looks: the image beside a map of what its answer hangs on.

Images are what the network takes: [N, C, H, W], or one image [C, H, W]; at most 8 are drawn. normalise is the
(mean, std) that they were normalised with, as a model file says, and is undone for the picture; without it an image is
stretched from its darkest to its brightest value. classes names the classes; target is the class that is asked about,
by default the predicted one. The arrays behind the pictures are `gpucnn.attribution`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn import attribution
from gpucnn.attribution import Attribution, Target
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor
from gpucnn.viz.drawing import INK, PALE, SIGNED, Array, label, new_figure, saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_IMAGES = 8
_SEQUENTIAL = "viridis"  # even in lightness, and read alike with every kind of colour vision
Normalisation = tuple[Any, Any] | None


def saliency(
    model: Module,
    images: Tensor | Array,
    path: str | Path | None = None,
    classes: Sequence[str] | None = None,
    *,
    target: Target = None,
    normalise: Normalisation = None,
    samples: int = 1,
) -> Figure:
    """How much the score changes with each pixel: bright where a small change matters most. Simonyan et al. 2013.

    samples: more than 1 takes the mean over noisy copies, which is less speckled (SmoothGrad, Smilkov et al. 2017).
    """
    found = attribution.saliency(model, images, target, samples)
    return saved(
        _picture(images, found, classes, normalise, "How much each pixel matters", "|Δ score / Δ pixel|"), path
    )


def occlusion(
    model: Module,
    images: Tensor | Array,
    path: str | Path | None = None,
    classes: Sequence[str] | None = None,
    *,
    target: Target = None,
    normalise: Normalisation = None,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
) -> Figure:
    """What the score loses where the image is covered: red what speaks for the class, blue what speaks against it.

    Zeiler & Fergus 2014. window and stride: see `gpucnn.attribution.occlusion`.
    """
    found = attribution.occlusion(model, images, target, window, stride)
    picture = _picture(images, found, classes, normalise, "What the score loses when a place is covered", "score lost")
    return saved(picture, path)


def grad_cam(
    model: Module,
    images: Tensor | Array,
    path: str | Path | None = None,
    classes: Sequence[str] | None = None,
    *,
    layer: str | None = None,
    target: Target = None,
    normalise: Normalisation = None,
) -> Figure:
    """Where the maps of a layer, by default the last convolution, speak for the class. Selvaraju et al. 2017."""
    found = attribution.grad_cam(model, images, layer, target)
    of = f"layer {label(layer, 60)}" if layer else "the last convolution"
    return saved(_picture(images, found, classes, normalise, f"Where {of} sees the class", "Σ importance · map"), path)


def _picture(
    images: Any, found: Attribution, classes: Sequence[str] | None, normalise: Normalisation, headline: str, unit: str
) -> Figure:
    """Each image with its map at its right; a map of another size than the image is laid over it."""
    shown = _displayed(images, normalise)[:_MOST_IMAGES]
    h, w = shown.shape[1:3]
    side = 2.9  # inches
    width, height = side * min(1.0, w / h), side * min(1.0, h / w)
    figure = new_figure(max(2 * width + 2.0, 6.0), (height + 0.75) * len(shown) + 0.4)
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for n, (left, right) in enumerate(grid):
        left.imshow(shown[n], cmap="gray", vmin=0, vmax=1)
        title = f"{_name(found, n, classes)}, score {found.scores[n]:.3g}"
        left.set_title(title, loc="left", color=INK, fontsize=10, parse_math=False)
        _draw_map(right, shown[n], found.maps[n], unit)
        for axes in (left, right):
            axes.set_xticks([0, w - 1])
            axes.set_yticks([0, h - 1])
            axes.tick_params(length=0, labelsize=8, labelcolor=PALE)
            axes.spines[:].set_visible(False)
            axes.set_xlabel("column (pixels)", color=PALE, fontsize=8, labelpad=0)
        left.set_ylabel("row (pixels)", color=PALE, fontsize=8, labelpad=0)
    some = "" if len(shown) == len(found.maps) else f" ({len(shown)} of {len(found.maps)} images)"
    text = headline + some
    figure.suptitle(text, color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left", parse_math=False)
    return figure


def _name(found: Attribution, n: int, classes: Sequence[str] | None) -> str:
    if classes is not None and len(classes) == found.outputs:
        return label(classes[int(found.classes[n])])
    return "the output" if found.outputs == 1 else f"class {found.classes[n]}"


def _draw_map(axes: Axes, image: Array, map: Array, unit: str) -> None:
    h, w = image.shape[:2]
    limit = float(np.abs(map).max(initial=0)) or 1.0
    signed = bool((map < 0).any()) or unit == "score lost"
    colours: dict[str, Any] = {
        "cmap": SIGNED if signed else _SEQUENTIAL,
        "vmin": -limit if signed else 0,
        "vmax": limit,
    }
    smooth: dict[str, Any] = {"interpolation": "nearest"}
    if map.shape != (h, w):  # laid over the image, which shows where the map is 0
        axes.imshow(image if image.ndim == 2 else image.mean(axis=2), cmap="gray", vmin=0, vmax=1)
        smooth = {"interpolation": "bilinear", "alpha": 0.85 * np.sqrt(np.abs(map) / limit)}
    drawn = axes.imshow(map, extent=(-0.5, w - 0.5, h - 0.5, -0.5), **smooth, **colours)
    assert axes.figure is not None
    bar = axes.figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.03)
    bar.set_label(unit, color=PALE, fontsize=8)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=PALE)
    bar.outline.set_visible(False)


def _displayed(images: Any, normalise: Normalisation) -> Array:
    """Images as [N, H, W] or [N, H, W, 3] in 0..1."""
    values = np.asarray(images.numpy() if isinstance(images, Tensor) else images)
    values = (values if values.ndim == 4 else values[None]).astype(np.float64)
    if normalise is not None:
        mean, std = (np.asarray(numbers, np.float64).reshape(-1, 1, 1) for numbers in normalise)
        values = (values * std + mean).clip(0, 1)
    else:
        low, high = values.min(axis=(1, 2, 3), keepdims=True), values.max(axis=(1, 2, 3), keepdims=True)
        values = (values - low) / np.where(high > low, high - low, 1)
    return values.transpose(0, 2, 3, 1) if values.shape[1] == 3 else values.mean(axis=1)
