"""A sheet of headings, lines, grids of numbers, tables and pictures, as fixed-width text and as HTML.

What explanations and notebooks show is put together of these blocks once and drawn in both ways. The HTML needs nothing
else (no script, no file), takes its ink from the page around it, and folds on a narrow screen.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WIDTH = 110  # columns of text
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Heading:
    """A line in bold."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A plane of numbers under a title. Places that are `absent` are a dot, the one that is `marked` stands out.

    sign is what stands between the grid before and this one: × or =.
    """

    title: str
    values: Array
    absent: Array | None = None
    marked: tuple[int, int] | None = None
    sign: str = ""

    def cells(self) -> list[list[str]]:
        """The numbers as they are written."""
        text = iter(numerals(self.values)[0])
        rows, columns = self.values.shape
        written = [[next(text) for _ in range(columns)] for _ in range(rows)]
        absent = np.zeros((rows, columns), bool) if self.absent is None else self.absent
        return [["·" if absent[r, c] else written[r][c] for c in range(columns)] for r in range(rows)]

    @property
    def caption(self) -> str:
        """The title, with the power of ten that the numbers share."""
        return f"{self.title}{numerals(self.values)[1]}"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first `names` columns begin at the left, the others end at the right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


@dataclass(frozen=True)
class Picture:
    """Pixels [H, W, 3], 0 to 255; text leaves them out."""

    pixels: Array
    title: str


Block = str | Heading | Table | Picture | tuple[Grid, ...]


def numerals(values: Array, more: int = 0) -> tuple[list[str], str]:
    """(the values written with the same decimals, the power of ten they share).

    Three digits for the largest, two below 1, no decimals for whole numbers; `more` decimals beyond that. The power is
    "" for what is neither tiny nor huge, else like " ·10⁻⁵".
    """
    flat = np.asarray(values, np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    largest = float(np.abs(finite).max(initial=0.0))
    power = math.floor(math.log10(largest)) if largest else 0
    shared = power if power < -3 or power > 5 else 0
    whole = not shared and bool((finite == np.round(finite)).all())
    digits = power - shared
    decimals = 0 if whole else (max(0, 2 - digits) if digits >= 0 else 1 - digits) + more
    known = np.nan_to_num(flat, posinf=0.0, neginf=0.0) / 10.0**shared
    rounded = np.where(np.isfinite(flat), np.round(known, decimals) + 0.0, flat)  # + 0.0 makes 0 of −0
    text = [f"{value:.{decimals}f}" for value in rounded]
    return text, f" ·10{str(shared).translate(_SUPERSCRIPT)}" if shared else ""


def shape_text(shape: Sequence[int]) -> str:
    """6×28×28; 1 for a single number."""
    return "×".join(map(str, shape)) or "1"


# -- text ------------------------------------------------------------------------------------------


def as_text(blocks: Sequence[Block]) -> str:
    """The blocks in columns of fixed width."""
    lines: list[str] = []
    for block in blocks:
        if isinstance(block, str):
            lines.append(f"  {block}")
        elif isinstance(block, Heading):
            lines.append(block.text)
        elif isinstance(block, Table):
            lines += _table_text(block)
        elif isinstance(block, tuple):
            lines += _grids_text(block)
    return "\n".join(line.rstrip() for line in lines)


def _table_text(table: Table) -> list[str]:
    every = [table.header, *table.rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(table.header))]

    def line(row: tuple[str, ...]) -> str:
        cells = (
            c.ljust(w) if i < table.names else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  " + "  ".join(cells)

    return [line(row) for row in every if any(row)]


def _grids_text(grids: tuple[Grid, ...]) -> list[str]:
    """Side by side as far as the width goes, the sign in the middle row."""
    lines: list[str] = []
    pending: list[list[str]] = []
    for grid in grids:
        block = _grid_text(grid)
        if pending and sum(len(b[0]) + 2 for b in [*pending, block]) > WIDTH:
            lines += _beside(pending)
            pending = []
        pending.append(block)
    return lines + _beside(pending)


def _grid_text(grid: Grid) -> list[str]:
    cells = grid.cells()
    width = max(len(cell) for row in cells for cell in row)
    margin = f"{grid.sign} " if grid.sign else ""
    middle = len(cells) // 2
    lines = [" " * len(margin) + grid.caption]
    for r, row in enumerate(cells):
        edge = margin if r == middle else " " * len(margin)
        brackets = {grid.marked[1]: "[", grid.marked[1] + 1: "]"} if grid.marked and grid.marked[0] == r else {}
        cells_drawn = (f"{brackets.get(i, ' ')}{cell.rjust(width)}" for i, cell in enumerate(row))
        lines.append(f"{edge}{''.join(cells_drawn)}{brackets.get(len(row), '')}")
    longest = max(map(len, lines))
    return [line.ljust(longest) for line in lines]


def _beside(blocks: list[list[str]]) -> list[str]:
    height = max(map(len, blocks), default=0)
    padded = [block + [" " * len(block[0])] * (height - len(block)) for block in blocks]
    return ["  " + "  ".join(row) for row in zip(*padded, strict=True)]


# -- HTML ------------------------------------------------------------------------------------------

# Colours of cells are washes over whatever the page's ground is, so that its ink stays readable on them.
_STYLE = """
.gpucnn{font:14px/1.5 system-ui,sans-serif;max-width:60rem;--up:214,96,52;--down:52,120,196}
@media (prefers-color-scheme:dark){.gpucnn{--up:255,140,90;--down:96,160,255}}
.gpucnn h4{font-size:1em;margin:1.1em 0 .3em}.gpucnn h4:first-of-type{margin-top:0}
.gpucnn p{margin:.25em 0;overflow-wrap:anywhere}
.gpucnn .row{display:flex;flex-wrap:wrap;align-items:center;gap:.2em .9em}
.gpucnn figure{margin:.3em 0;max-width:100%;overflow-x:auto}.gpucnn figcaption{opacity:.75;font-size:.86em}
.gpucnn img{image-rendering:pixelated;max-width:100%;display:block}
.gpucnn .wide{overflow-x:auto}
.gpucnn table{border-collapse:collapse;margin:.2em 0;color:inherit;background:none;border:0;
font:12px/1.35 ui-monospace,Menlo,Consolas,monospace;font-variant-numeric:tabular-nums}
.gpucnn tr{background:none!important}
.gpucnn td,.gpucnn th{padding:.2em .45em;border:1px solid rgba(128,128,128,.35);text-align:right;color:inherit;
white-space:nowrap;font-weight:400}
.gpucnn th{opacity:.75}.gpucnn .name{text-align:left}
.gpucnn .up{background:rgba(var(--up),var(--h))}.gpucnn .down{background:rgba(var(--down),var(--h))}
.gpucnn .none{opacity:.5}.gpucnn .mark{outline:2px solid currentColor;outline-offset:-2px;font-weight:700}
""".strip()


def as_html(blocks: Sequence[Block]) -> str:
    """The blocks as one <div> with its own style: orange cells are above 0, blue ones below."""
    return f'<div class="gpucnn"><style>{_STYLE}</style>{"".join(map(_html, blocks))}</div>'


def page(title: str, fragment: str) -> str:
    """A whole page around a fragment, light or dark as the reader's system is."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>:root{{color-scheme:light dark}}body{{margin:1rem}}</style>"
        f"{fragment}</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    if isinstance(block, Heading):
        return f"<h4>{escape(block.text)}</h4>"
    if isinstance(block, Table):
        return _table_html(block)
    if isinstance(block, Picture):
        return _picture_html(block)
    return f'<div class="row">{"".join(map(_grid_html, block))}</div>'


def _table_html(table: Table) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        kinds = (' class="name"' if i < table.names else "" for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for c, k in zip(cells, kinds, strict=True)) + "</tr>"

    head = row(table.header, "th") if any(table.header) else ""
    return f'<div class="wide"><table>{head}{"".join(row(cells, "td") for cells in table.rows)}</table></div>'


def _grid_html(grid: Grid) -> str:
    finite = np.nan_to_num(np.asarray(grid.values, np.float64), posinf=0.0, neginf=0.0)
    depth = 0.55 * finite / (float(np.abs(finite).max(initial=0.0)) or 1.0)
    rows = []
    for r, row in enumerate(grid.cells()):
        cells = []
        for c, text in enumerate(row):
            kind = "none" if text == "·" else "up" if depth[r, c] > 0 else "down" if depth[r, c] < 0 else ""
            kind += " mark" if (r, c) == grid.marked else ""
            shade = f' style="--h:{abs(depth[r, c]):.2f}"' if depth[r, c] else ""
            cells.append(f'<td class="{kind}"{shade}>{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    sign = f"<span>{escape(grid.sign)}</span>" if grid.sign else ""
    caption = f"<figcaption>{escape(grid.caption)}</figcaption>"
    return f"{sign}<figure>{caption}<table>{''.join(rows)}</table></figure>"


def _picture_html(picture: Picture) -> str:
    height, width, _ = picture.pixels.shape
    data = base64.b64encode(png(picture.pixels)).decode()
    zoom = max(1, min(8, 320 // max(height, width, 1)))
    return (
        f'<figure><img alt="{escape(picture.title)}" width="{width * zoom}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.title)}</figcaption></figure>"
    )


def png(pixels: Array) -> bytes:
    """An image file of [H, W, 3] numbers 0 to 255."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.astype(np.uint8).reshape(height, -1)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")
