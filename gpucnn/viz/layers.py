"""Pictures of a network: its filters, and what each layer makes of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.nn.layers import Conv2d
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor, no_grad
from gpucnn.viz.drawing import INK, PALE, SIGNED, Array, add_title, bare, label, new_figure, saved, tiled
from gpucnn.watch import batch_of, evaluating, leaves, watched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_MAPS = 16  # of a layer, so that a row stays readable
_MOST_LAYERS = 40  # above, the children of the network are shown in place of all its layers


def filters(model: Module, path: str | Path | None = None) -> Figure:
    """The filters of a convolution, or of the first convolution of a network.

    Filters on one channel are drawn in red (positive) and blue (negative), those on three as colours, others as a row
    of planes for each filter. At most 64 filters, and 16 rows of 16 planes, are shown. Raises ValueError if there is no
    Conv2d (or Conv with four axes, of an ONNX file).
    """
    found = next(((name, m) for name, m in model.named_modules() if isinstance(m, Conv2d) or _is_onnx_conv(m)), None)
    if found is None:
        raise ValueError(f"{type(model).__name__} has no Conv2d, so it has no filters to show")
    name, layer = found
    weight = vars(layer)["weight"].numpy()
    count, channels, r, s = weight.shape
    limit = float(np.abs(weight).max()) or 1.0
    if channels in (1, 3):
        shown = weight[:64]
        columns = len(shown) if len(shown) <= 8 else 8 if len(shown) <= 32 else 12
        tiles = shown.transpose(0, 2, 3, 1)
    else:
        shown = weight[:_MOST_MAPS, :_MOST_MAPS]
        columns = shown.shape[1]
        tiles = shown.reshape(-1, r, s, 1)
    tile = min(1.2, 10 / columns)  # inches
    width, height = max(columns * tile + 1.2, 5.0), math.ceil(len(tiles) / columns) * tile * r / s
    figure = new_figure(width, height + (0.6 if channels == 1 else 0.9))
    axes = figure.add_subplot()
    mosaic = tiled(tiles, columns)
    if channels == 3:
        axes.imshow(np.where(np.isnan(mosaic), 1, mosaic / (2 * limit) + 0.5).clip(0, 1))  # 0 is mid-grey
    else:
        drawn = axes.imshow(mosaic[..., 0], cmap=SIGNED, vmin=-limit, vmax=limit)
        scale = axes.inset_axes((1.01, 0, 0.012, 1))
        bar = figure.colorbar(drawn, cax=scale, ticks=[-limit, 0, limit])
        scale.set_yticks([-limit, 0, limit], [f"−{limit:.2f}", "0", f"{limit:.2f}"])
        scale.tick_params(length=0, labelsize=8, labelcolor=PALE)
        bar.outline.set_visible(False)
    bare(axes)
    some = "" if len(shown) == count else f" ({len(shown)} of them)"
    which = f"layer {label(name, 60)}" if name else "this layer"
    add_title(axes, f"The {count} filters {r}×{s} that {which} learned{some}")
    if channels == 3:
        axes.set_xlabel("red, green and blue as they are weighted; grey is 0", color=PALE)
    if channels not in (1, 3):
        axes.set_xlabel(f"input channel ({shown.shape[1]} of {channels})", color=PALE)
        axes.set_ylabel("filter", color=PALE)
    return saved(figure, path)


def _is_onnx_conv(module: Module) -> bool:
    weight = vars(module).get("weight")
    return type(module).__name__ == "Conv" and weight is not None and weight.ndim == 4


def feature_maps(
    model: Module, image: Tensor | Array, path: str | Path | None = None, classes: Sequence[str] | None = None
) -> Figure:
    """What every layer makes of one image [C, H, W]: red where positive, blue where negative, white at 0.

    The image is what the network takes (normalised, on any backend). Of a layer's maps the first 16 are shown; a
    network of more than 40 layers is shown by its children. classes names the outputs of the last layer. The model runs
    in evaluation mode and is left in the mode it was in.
    """
    values = image.numpy() if isinstance(image, Tensor) else np.asarray(image, np.float32)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim != 3:
        raise ValueError(f"feature_maps needs one image [C, H, W], got shape {values.shape}")
    rows = [("input", values), *_outputs(model, values)]
    heights = [_row_height(array) for _, array in rows]
    figure = new_figure(13, sum(heights) + 0.22 * len(rows) + 0.6)
    grid = figure.subplots(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (layer, array) in zip(grid, rows, strict=True):
        _draw_output(axes, array, classes if axes is grid[-1] else None)
        shape = "×".join(map(str, array.shape))
        some = f", {_MOST_MAPS} of them" if array.ndim == 3 and len(array) > _MOST_MAPS else ""
        bare(axes)
        axes.annotate(
            f"{label(layer, 60)}\n{shape}{some}", (0, 0.5), (-8, 0), "axes fraction", "offset points",
            ha="right", va="center", color=INK, parse_math=False,
        )  # fmt: skip
    add_title(grid[0], "What each layer makes of the image")
    return saved(figure, path)


def _outputs(model: Module, image: Array) -> list[tuple[str, Array]]:
    """(label, output without the batch axis) of each layer, in the order in which they run."""
    layers = leaves(model)
    if len(layers) > _MOST_LAYERS:
        layers = list(model.named_children())
    with evaluating(model), no_grad():
        _, runs = watched(model, batch_of(model, image), layers)
    return [(f"{run.name} {type(run.module).__name__}".strip(), run.output.numpy()[0]) for run in runs]


def _row_height(output: Array) -> float:
    """Inches."""
    if output.ndim != 3:
        return 0.35
    maps, (h, w) = min(len(output), _MOST_MAPS), output.shape[1:]
    return float(min(0.95, 10.5 / maps * h / w))


def _draw_output(axes: Axes, output: Array, classes: Sequence[str] | None) -> None:
    limit = float(np.abs(output).max(initial=0)) or 1.0
    colours: dict[str, Any] = {"cmap": SIGNED, "vmin": -limit, "vmax": limit}
    if output.ndim == 3:
        maps = output[:_MOST_MAPS]
        axes.imshow(tiled(maps[..., None], len(maps))[..., 0], **colours)
        axes.set_anchor("W")
        return
    vector = output.reshape(-1)
    axes.imshow(vector[None], aspect="auto", **colours)
    if len(vector) <= 20:
        for place, value in enumerate(vector):
            name = "" if classes is None or len(classes) != len(vector) else f"{label(classes[place])}: "
            ink = "white" if abs(value) > 0.6 * limit else INK
            axes.text(place, 0, f"{name}{value:.2g}", ha="center", va="center", color=ink, parse_math=False)
