"""Pictures of a training and of an evaluation: curves, confusion matrix, mistakes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpucnn.data.dataset import Dataset, to_float
from gpucnn.viz.drawing import BLUE, INK, PALE, RED, Array, add_title, label, new_figure, saved

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpucnn.callbacks import History
    from gpucnn.metrics import Evaluation

_MOST_MISTAKES = 40


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
    figure = new_figure(max(1.15 * columns, 6.5), 1.5 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, index in zip(grid, shown, strict=False):
        taken, true = int(evaluation.predictions[index]), int(evaluation.labels[index])
        axes.imshow(_displayed(dataset.images[index]), cmap="gray", vmin=0, vmax=1)
        sure = f"{evaluation.probabilities[index, taken]:.2f}"
        names = f"{label(dataset.classes[taken])}, not {label(dataset.classes[true])}"
        axes.set_title(f"{names}\n{sure}", fontsize=9, color=INK, parse_math=False)
    some = "" if len(shown) == len(wrong) else f"; the {len(shown)} surest mistakes"
    text = f"{len(wrong)} of {len(dataset):,} images were taken for something else{some}"
    figure.suptitle(text, color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel("what it was taken for, what it is, and the probability of the former", color=PALE, fontsize=9)
    return saved(figure, path)


def confusion(evaluation: Evaluation, path: str | Path | None = None) -> Figure:
    """How often images of one class (row) were taken for another (column): hits in blue, mistakes in red."""
    matrix, classes = evaluation.confusion, list(map(label, evaluation.classes))
    count = len(classes)
    small = count <= 30
    side = max(4.5, 0.5 * count) if small else 9.0
    figure = new_figure(side + 1.2, side + 1.0)
    axes = figure.add_subplot()
    hits = np.eye(count, dtype=bool)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    mistakes = np.where(hits | (matrix == 0), np.nan, matrix)
    axes.imshow(np.where(hits, shares, np.nan), cmap="Blues", vmin=0, vmax=1.2)
    axes.imshow(mistakes, cmap="Reds", vmin=-0.5, vmax=1.4 * max(4.0, float(np.nanmax(mistakes, initial=0))))
    if small:
        for row, column in zip(*matrix.nonzero(), strict=True):
            ink = "white" if row == column and shares[row, row] > 0.5 else INK
            axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=ink, fontsize=9)
        turn = 90 if max(map(len, classes)) > 3 else 0
        axes.set_xticks(range(count), classes, rotation=turn, parse_math=False)
        axes.set_yticks(range(count), classes, parse_math=False)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e4e7eb", linewidth=0.6)
    axes.tick_params(which="both", length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("taken for", color=PALE)
    axes.set_ylabel("true class", color=PALE)
    add_title(
        axes, f"{evaluation.accuracy:.1%} of {len(evaluation.labels):,} images were recognised".replace("%", " %")
    )
    return saved(figure, path)


def curves(history: History, path: str | Path | None = None) -> Figure:
    """Loss, accuracy and learning rate over the epochs; of the held-out images too if they were measured.

    Raises ValueError for an empty history.
    """
    if not len(history):
        raise ValueError("the history is empty: no epoch has ended")
    figure = new_figure(12, 3.6)
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = history["epoch"]
    held_out = "held_out_loss" in history.rows[0]
    mark = "o" if len(epochs) == 1 else None
    for axes, name, text in ((loss, "loss", "Loss"), (accuracy, "accuracy", "Accuracy in %")):
        scale = 100 if name == "accuracy" else 1
        values = scale * np.array(history[name], float)
        axes.plot(epochs, values, color=BLUE, marker=mark, label="training, as augmented")
        if held_out:
            values = scale * np.array(history[f"held_out_{name}"], float)
            axes.plot(epochs, values, color=RED, marker=mark, label="held out")
        axes.annotate(
            f"{values[-1]:.3g}", (epochs[-1], values[-1]), (4, 0), textcoords="offset points",
            color=RED if held_out else BLUE, fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip
        add_title(axes, text)
    loss.set_yscale("log")
    loss.yaxis.set_major_formatter("{x:g}")
    loss.legend(frameon=False, labelcolor=INK, fontsize=9)
    settled = slice(len(epochs) // 10, None)  # what the first epochs do would press the rest into the upper edge
    columns = ("accuracy", "held_out_accuracy") if held_out else ("accuracy",)
    lowest = 100 * min(min(history[column][settled]) for column in columns)
    accuracy.set_ylim(lowest - 0.5, min(100.5, accuracy.get_ylim()[1]))
    rate.plot(epochs, history["lr"], color=PALE, marker=mark)
    rate.set_ylim(bottom=0)
    add_title(rate, "Learning rate")
    for axes in (loss, accuracy, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(PALE)
        axes.tick_params(colors=PALE, which="both", labelsize=9)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch", color=PALE)
    return saved(figure, path)


def _displayed(image: Array) -> Array:
    """A stored image [H, W, C] as float [H, W] or [H, W, 3] in 0..1."""
    values = to_float(image[None])[0].transpose(1, 2, 0).clip(0, 1)
    return np.asarray(values if values.shape[2] == 3 else values.mean(axis=2))
