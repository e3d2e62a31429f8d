"""What a notebook shows of a Tensor, a Module and a Summary: the same facts as their repr, as tables and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.nn.module import Module, Summary
from gpucnn.sheet import Block, Grid, Heading, Picture, Table, as_html, shape_text
from gpucnn.tensor import Tensor
from gpucnn.watch import leaves

Array = NDArray[Any]

MOST_IMAGES = 8  # of a batch
_MOST_PIXELS = 512  # rows or columns of a preview; larger images are shown with every n-th pixel
_MOST_CELLS = 12  # rows or columns of a table


def tensor_html(tensor: Tensor) -> str:
    """Shape, dtype, backend and range; images as a picture, a small matrix or vector as a table."""
    values = tensor.numpy()
    wanted = ", requires_grad" if tensor.requires_grad else ""
    blocks: list[Block] = [
        Heading(f"Tensor {shape_text(values.shape)} {tensor.dtype} on {tensor.backend.name}{wanted}"),
        _range(values),
    ]
    if _is_image(values):
        blocks.append(_preview(values if values.ndim == 4 else values[None]))
    elif 0 < values.ndim <= 2 and values.size and max(values.shape) <= _MOST_CELLS:
        blocks.append((Grid("", values.astype(np.float64).reshape(-1, values.shape[-1])),))
    return as_html(blocks)


def _range(values: Array) -> str:
    if not values.size:
        return "no elements"
    numbers = values.astype(np.float64).ravel()
    finite = numbers[np.isfinite(numbers)]
    odd = f"; {numbers.size - finite.size:,} not finite" if finite.size < numbers.size else ""
    if not finite.size:
        return f"{numbers.size:,} elements, none finite"
    if numbers.size == 1:
        return f"{finite[0]:.6g}"
    return f"{numbers.size:,} elements from {finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.4g}{odd}"


def _is_image(values: Array) -> bool:
    return values.ndim in (3, 4) and values.shape[-3] in (1, 3) and min(values.shape[-2:]) > 2 and values.size > 0


def _preview(images: Array) -> Picture:
    """Images [N, C, H, W] in a row. What lies in 0..1, and bytes, is shown as it is; else the range is stretched."""
    step = -(-max(images.shape[2:]) // _MOST_PIXELS)
    shown = images[:MOST_IMAGES, :, ::step, ::step].astype(np.float64)
    finite = shown[np.isfinite(shown)]
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    scale = ""
    if images.dtype == np.uint8 or images.dtype == np.bool_ or (low >= 0 and high <= 1):
        low, high = 0.0, 255.0 if images.dtype == np.uint8 else 1.0
    else:
        scale = f"; black is {low:.3g}, white {high:.3g}"
    pixels = 255 * (np.nan_to_num(shown, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
    count, _, h, w = pixels.shape
    row = np.full((h, count * (w + 1) - 1, 3), 128.0)
    for i, image in enumerate(pixels.clip(0, 255).round().transpose(0, 2, 3, 1)):
        row[:, i * (w + 1) : i * (w + 1) + w] = np.broadcast_to(image, (h, w, 3))
    some = f"the first {count} of {len(images)} images" if len(images) > count else f"{count} images"
    return Picture(row, ("1 image" if len(images) == 1 else some) + scale)


def module_html(module: Module) -> str:
    """A row for each layer: its name, what it is, its parameters."""
    own: dict[str, int] = {}  # parameters of each module itself; one that two modules share counts at the first
    for name, parameter in module.named_parameters():
        place = name.rpartition(".")[0]
        own[place] = own.get(place, 0) + parameter.numel()
    single = dict(leaves(module))
    rows = tuple(
        (name or "–", repr(layer) if name in single else type(layer).__name__, f"{own.get(name, 0):,}")
        for name, layer in module.named_modules()
        if name in single or name in own
    )
    total = ("total", "", f"{sum(own.values()):,}")
    mode = "training mode" if module.training else "evaluation mode"
    first = next(iter(module.parameters()), None)
    where = "" if first is None else f", {first.dtype} on {first.backend.name}"
    table = Table(("layer", "what it is", "parameters"), (*rows, total), names=2)
    return as_html([Heading(type(module).__name__), f"{mode}{where}", table])


def summary_html(summary: Summary) -> str:
    """The table of `Module.summary`."""
    rows = tuple(
        (r.name, r.kind_text, shape_text(r.output_shape), f"{r.parameters:,}", f"{r.multiply_adds:,}")
        for r in summary.rows
    )
    total = ("total", "", "", f"{summary.parameters:,}", f"{summary.multiply_adds:,}")
    table = Table(("layer", "kind", "output", "parameters", "multiply-adds"), (*rows, total), names=3)
    return as_html([Heading(summary.name), f"input {shape_text(summary.input_shape)}", table])
