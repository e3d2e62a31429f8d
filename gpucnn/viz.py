"""Pictures of what a network learned and did: filters, feature maps, mistakes, confusion, training curves.

Each function returns a matplotlib Figure, made without pyplot, so nothing global changes and no window is needed.
`path` also saves it, as PNG, PDF or SVG by its suffix, atomically. Raises ImportError with the pip command where
matplotlib is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.checkpoint import write_atomically
from gpucnn.data.dataset import Dataset, to_float
from gpucnn.nn.layers import Conv2d
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor, no_grad, tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpucnn.callbacks import History
    from gpucnn.metrics import Evaluation

Array = NDArray[Any]

_INK, _PALE = "#1f2933", "#7b8794"
_BLUE, _RED = "#2b6cb0", "#c53030"
_SIGNED = "RdBu_r"  # red above 0, white at 0, blue below: a ReLU is seen to take the blue away
_MOST_MAPS = 16  # of a layer, so that a row stays readable
_MOST_LAYERS = 40  # above, the children of the network are shown in place of all its layers
_MOST_MISTAKES = 40
_DPI = 130


def filters(model: Module, path: str | Path | None = None) -> Figure:
    """The filters of a convolution, or of the first convolution of a network.

    Filters on one channel are drawn in red (positive) and blue (negative), those on three as colours, others as a row
    of planes for each filter. At most 64 filters, and 16 rows of 16 planes, are shown. Raises ValueError if there is no
    Conv2d.
    """
    found = next(((name, m) for name, m in model.named_modules() if isinstance(m, Conv2d)), None)
    if found is None:
        raise ValueError(f"{type(model).__name__} has no Conv2d, so it has no filters to show")
    name, layer = found
    weight = layer.weight.numpy()
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
    figure = _figure(width, height + (0.6 if channels in (1, 3) else 0.9))
    axes = figure.add_subplot()
    mosaic = _mosaic(tiles, columns)
    if channels == 3:
        axes.imshow(np.where(np.isnan(mosaic), 1, mosaic / (2 * limit) + 0.5).clip(0, 1))  # 0 is mid-grey
    else:
        drawn = axes.imshow(mosaic[..., 0], cmap=_SIGNED, vmin=-limit, vmax=limit)
        scale = axes.inset_axes((1.01, 0, 0.012, 1))
        bar = figure.colorbar(drawn, cax=scale, ticks=[-limit, 0, limit])
        scale.set_yticks([-limit, 0, limit], [f"−{limit:.2f}", "0", f"{limit:.2f}"])
        scale.tick_params(length=0, labelsize=8, labelcolor=_PALE)
        bar.outline.set_visible(False)
    _bare(axes)
    some = "" if len(shown) == count else f" ({len(shown)} of them)"
    label = f"layer {name}" if name else "this layer"
    _title(axes, f"The {count} filters {r}×{s} that {label} learned{some}")
    if channels not in (1, 3):
        axes.set_xlabel(f"input channel ({shown.shape[1]} of {channels})", color=_PALE)
        axes.set_ylabel("filter", color=_PALE)
    return _saved(figure, path)


def feature_maps(
    model: Module, image: Tensor | Array, path: str | Path | None = None, classes: Sequence[str] | None = None
) -> Figure:
    """What every layer makes of one image [C, H, W]: red where positive, blue where negative, white at 0.

    The image is what the network takes (normalised, on any backend). Of a layer's maps the first 16 are shown; a
    network of more than 40 layers is shown by its children. classes names the outputs of the last layer. The model runs
    in evaluation mode and is left in the mode it was in.
    """
    values = image.numpy() if isinstance(image, Tensor) else np.asarray(image, np.float32)
    if values.ndim != 3:
        raise ValueError(f"feature_maps needs one image [C, H, W], got shape {values.shape}")
    rows = [("input", values), *_outputs(model, values)]
    heights = [_row_height(array) for _, array in rows]
    figure = _figure(13, sum(heights) + 0.22 * len(rows) + 0.6)
    grid = figure.subplots(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (label, array) in zip(grid, rows, strict=True):
        _draw_output(axes, array, classes if axes is grid[-1] else None)
        shape = "×".join(map(str, array.shape))
        some = f", {_MOST_MAPS} of them" if array.ndim == 3 and len(array) > _MOST_MAPS else ""
        _bare(axes)
        axes.annotate(
            f"{label}\n{shape}{some}", (0, 0.5), (-8, 0), "axes fraction", "offset points",
            ha="right", va="center", color=_INK,
        )  # fmt: skip
    _title(grid[0], "What each layer makes of the image")
    return _saved(figure, path)


def _outputs(model: Module, image: Array) -> list[tuple[str, Array]]:
    """(label, output without the batch axis) of each layer, in the order in which they run."""
    layers = [(name, m) for name, m in model.named_modules() if not any(True for _ in m.children())]
    if len(layers) > _MOST_LAYERS:
        layers = list(model.named_children())
    found: list[tuple[str, Array]] = []

    def watch(name: str, module: Module) -> Any:
        def hook(module: Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            found.append((f"{name} {type(module).__name__}".strip(), output.numpy()[0].copy()))

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in layers]
    modes = [(module, module.training) for module in model.modules()]
    own = next(iter(model.parameters()), None)
    x = tensor(image[None]) if own is None else tensor(image[None], own.dtype, backend=own.backend)
    try:
        model.eval()
        with no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return found


def _row_height(output: Array) -> float:
    """Inches."""
    if output.ndim != 3:
        return 0.35
    maps, (h, w) = min(len(output), _MOST_MAPS), output.shape[1:]
    return float(min(0.95, 10.5 / maps * h / w))


def _draw_output(axes: Axes, output: Array, classes: Sequence[str] | None) -> None:
    limit = float(np.abs(output).max(initial=0)) or 1.0
    colours: dict[str, Any] = {"cmap": _SIGNED, "vmin": -limit, "vmax": limit}
    if output.ndim == 3:
        maps = output[:_MOST_MAPS]
        axes.imshow(_mosaic(maps[..., None], len(maps))[..., 0], **colours)
        axes.set_anchor("W")
        return
    vector = output.reshape(-1)
    axes.imshow(vector[None], aspect="auto", **colours)
    if len(vector) <= 20:
        for place, value in enumerate(vector):
            name = "" if classes is None or len(classes) != len(vector) else f"{classes[place]}: "
            dark = abs(value) > 0.6 * limit
            axes.text(place, 0, f"{name}{value:.2g}", ha="center", va="center", color="white" if dark else _INK)


def misclassified(evaluation: Evaluation, dataset: Dataset, path: str | Path | None = None) -> Figure:
    """The images that were taken for another class, the surest mistakes first, at most 40 of them.

    dataset is the one that was evaluated, in its order. Raises ValueError if its labels are not the evaluation's.
    """
    if not np.array_equal(evaluation.labels, dataset.labels):
        raise ValueError(
            f"the evaluation is not of this data set ({dataset.name}): {len(evaluation.labels)} and {len(dataset)} "
            "labels, in another order or number; evaluate without shuffling"
        )
    wrong = evaluation.misclassified
    shown = wrong[:_MOST_MISTAKES]
    columns = min(max(len(shown), 1), 10)
    rows = max(math.ceil(len(shown) / columns), 1)
    figure = _figure(max(1.15 * columns, 6.5), 1.5 * rows + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, index in zip(grid, shown, strict=False):
        taken, true = int(evaluation.predictions[index]), int(evaluation.labels[index])
        axes.imshow(_displayed(dataset.images[index]), cmap="gray", vmin=0, vmax=1)
        sure = f"{evaluation.probabilities[index, taken]:.2f}"
        axes.set_title(f"{dataset.classes[taken]}, not {dataset.classes[true]}\n{sure}", fontsize=9, color=_INK)
    some = "" if len(shown) == len(wrong) else f"; the {len(shown)} surest mistakes"
    text = f"{len(wrong)} of {len(dataset):,} images were taken for something else{some}"
    figure.suptitle(text, color=_INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return _saved(figure, path)


def confusion(evaluation: Evaluation, path: str | Path | None = None) -> Figure:
    """How often images of one class (row) were taken for another (column): hits in blue, mistakes in red."""
    matrix, classes = evaluation.confusion, evaluation.classes
    count = len(classes)
    small = count <= 30
    side = max(4.5, 0.5 * count) if small else 9.0
    figure = _figure(side + 1.2, side + 1.0)
    axes = figure.add_subplot()
    hits = np.eye(count, dtype=bool)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    mistakes = np.where(hits | (matrix == 0), np.nan, matrix)
    axes.imshow(np.where(hits, shares, np.nan), cmap="Blues", vmin=0, vmax=1.2)
    axes.imshow(mistakes, cmap="Reds", vmin=-0.5, vmax=1.4 * max(4.0, float(np.nanmax(mistakes, initial=0))))
    if small:
        for row, column in zip(*matrix.nonzero(), strict=True):
            ink = "white" if row == column and shares[row, row] > 0.5 else _INK
            axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=ink, fontsize=9)
        turn = 90 if max(map(len, classes)) > 3 else 0
        axes.set_xticks(range(count), classes, rotation=turn)
        axes.set_yticks(range(count), classes)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e4e7eb", linewidth=0.6)
    axes.tick_params(which="both", length=0, labelcolor=_INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("taken for", color=_PALE)
    axes.set_ylabel("true class", color=_PALE)
    _title(axes, f"{evaluation.accuracy:.1%} of {len(evaluation.labels):,} images were recognised".replace("%", " %"))
    return _saved(figure, path)


def curves(history: History, path: str | Path | None = None) -> Figure:
    """Loss, accuracy and learning rate over the epochs; of the held-out images too if they were measured.

    Raises ValueError for an empty history.
    """
    if not len(history):
        raise ValueError("the history is empty: no epoch has ended")
    figure = _figure(12, 3.6)
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = history["epoch"]
    held_out = "held_out_loss" in history.rows[0]
    mark = "o" if len(epochs) == 1 else None
    for axes, name, text in ((loss, "loss", "Loss"), (accuracy, "accuracy", "Accuracy in %")):
        scale = 100 if name == "accuracy" else 1
        values = scale * np.array(history[name], float)
        axes.plot(epochs, values, color=_BLUE, marker=mark, label="training, as augmented")
        if held_out:
            values = scale * np.array(history[f"held_out_{name}"], float)
            axes.plot(epochs, values, color=_RED, marker=mark, label="held out")
        axes.annotate(
            f"{values[-1]:.3g}", (epochs[-1], values[-1]), (4, 0), textcoords="offset points",
            color=_RED if held_out else _BLUE, fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip
        _title(axes, text)
    loss.set_yscale("log")
    loss.yaxis.set_major_formatter("{x:g}")
    loss.legend(frameon=False, labelcolor=_INK, fontsize=9)
    settled = slice(len(epochs) // 10, None)  # what the first epochs do would press the rest into the upper edge
    columns = ("accuracy", "held_out_accuracy") if held_out else ("accuracy",)
    lowest = 100 * min(min(history[column][settled]) for column in columns)
    accuracy.set_ylim(lowest - 0.5, min(100.5, accuracy.get_ylim()[1]))
    rate.plot(epochs, history["lr"], color=_PALE, marker=mark)
    rate.set_ylim(bottom=0)
    _title(rate, "Learning rate")
    for axes in (loss, accuracy, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(_PALE)
        axes.tick_params(colors=_PALE, which="both", labelsize=9)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch", color=_PALE)
    return _saved(figure, path)


# -- drawing ---------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "gpucnn[viz]"') from error
    return Figure((width, height), layout="constrained", facecolor="white")


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        kind = Path(path).suffix.removeprefix(".").lower() or "png"
        known = figure.canvas.get_supported_filetypes()
        if kind not in known:
            raise ValueError(f"{path}: matplotlib can't write .{kind}, only {', '.join(sorted(known))}")
        write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format=kind, dpi=_DPI))
    return figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", color=_INK, fontsize=12, fontweight="bold")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _mosaic(tiles: Array, columns: int) -> Array:
    """Tiles [N, H, W, C] in a grid with gaps (NaN, drawn white) of a twelfth of a tile; small tiles are enlarged."""
    zoom = math.ceil(24 / max(tiles.shape[1:3]))
    tiles = tiles.repeat(zoom, axis=1).repeat(zoom, axis=2)
    count, h, w, channels = tiles.shape
    rows, gap = math.ceil(count / columns), round(max(h, w) / 12)
    grid = np.full((rows, h + gap, columns, w + gap, channels), np.nan, np.float32)
    for place, tile in enumerate(tiles):
        grid[place // columns, :h, place % columns, :w] = tile
    mosaic: Array = grid.reshape(rows * (h + gap), columns * (w + gap), channels)[:-gap, :-gap]
    return mosaic


def _displayed(image: Array) -> Array:
    """A stored image [H, W, C] as float [H, W] or [H, W, 3] in 0..1."""
    values = to_float(image[None])[0].transpose(1, 2, 0).clip(0, 1)
    return np.asarray(values if values.shape[2] == 3 else values.mean(axis=2))
