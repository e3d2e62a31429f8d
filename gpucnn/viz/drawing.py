"""What all pictures share: paper, ink, colours, and how they are saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.atomic import write_atomically
from gpucnn.names import escaped, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]

# Red and blue are told apart with every kind of colour vision, and so are the two ends of RdBu.
INK, PALE = "#1f2933", "#7b8794"
BLUE, RED = "#2b6cb0", "#c53030"
SIGNED = "RdBu_r"  # red above 0, white at 0, blue below: a ReLU is seen to take the blue away
_DPI = 130


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "gpucnn[viz]"') from error
    return Figure((width, height), layout="constrained", facecolor="white")


def saved(figure: Figure, path: str | Path | None) -> Figure:
    """The figure, also written to `path` if there is one."""
    if path is not None:
        kind = Path(path).suffix.removeprefix(".").lower() or "png"
        known = figure.canvas.get_supported_filetypes()
        if kind not in known:
            raise ValueError(f"{path}: matplotlib can't write .{kind}, only {', '.join(sorted(known))}")
        write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format=kind, dpi=_DPI))
    return figure


def add_title(axes: Axes, text: str) -> None:
    """A bold title at the left."""
    axes.set_title(text, loc="left", color=INK, fontsize=12, fontweight="bold", parse_math=False)


def label(name: object, most: int = 24) -> str:
    """The name of a class or a layer as a picture has room for it; to be drawn with parse_math=False, since $ is $."""
    return shortened(escaped(str(name)), most)


def bare(axes: Axes) -> None:
    """No ticks and no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def tiled(tiles: Array, columns: int) -> Array:
    """Tiles [N, H, W, C] in a grid with gaps (NaN, drawn white) of a twelfth of a tile; small tiles are enlarged."""
    zoom = math.ceil(24 / max(tiles.shape[1:3]))
    tiles = tiles.repeat(zoom, axis=1).repeat(zoom, axis=2)
    count, h, w, channels = tiles.shape
    rows, gap = math.ceil(count / columns), round(max(h, w) / 12)
    grid = np.full((rows, h + gap, columns, w + gap, channels), np.nan, np.float32)
    for place, tile in enumerate(tiles):
        grid[place // columns, :h, place % columns, :w] = tile
    whole: Array = grid.reshape(rows * (h + gap), columns * (w + gap), channels)[:-gap, :-gap]
    return whole
