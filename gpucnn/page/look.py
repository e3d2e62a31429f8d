"""What a network makes of one image: the probabilities, and the output of every layer, as bytes for the page."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn import train
from gpucnn.nn import Conv2d, ConvTranspose2d, Dropout, Flatten, Identity, Linear, Module
from gpucnn.watch import leaves

Floats = NDArray[np.float32]

MOST_LAYERS = 40  # above, only layers that multiply are shown
MOST_MAPS = 32  # of a layer
MOST_UNITS = 1024  # of a layer without maps
LARGEST_SIDE = 64  # of a map; of a larger one every second, third, … row and column is shown
UNCHANGED = (Dropout, Flatten, Identity)  # layers that show nothing new here


@dataclass(frozen=True)
class Layer:
    """The output of a layer for one image: `values` without the batch axis."""

    name: str
    kind: str
    values: Floats

    @property
    def has_maps(self) -> bool:
        return self.values.ndim == 3 and self.values.shape[1:] != (1, 1)

    @property
    def step(self) -> int:
        """Every so-manieth row and column of a map is shown."""
        return -(-max(self.values.shape[1:]) // LARGEST_SIDE) if self.has_maps else 1

    @property
    def shown(self) -> Floats:
        """As much of the values as the page can draw: [maps, height, width], or [units]."""
        if not self.has_maps:
            return self.values.reshape(-1)[:MOST_UNITS]
        return self.values[:MOST_MAPS, :: self.step, :: self.step]

    def told(self) -> dict[str, Any]:
        """What the page must know to draw the shown values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": self.values.shape,
            "shown": self.shown.shape,
            "step": self.step,
        }


def layers_of(model: Module) -> dict[str, Module]:
    """The layers that the page shows, by their dotted names: those that hold no other and change a value."""
    shown = {name: module for name, module in leaves(model) if not isinstance(module, UNCHANGED)}
    if len(shown) <= MOST_LAYERS:
        return shown
    return {name: m for name, m in shown.items() if isinstance(m, Conv2d | ConvTranspose2d | Linear)}


def look(model: Module, image: Floats) -> tuple[Floats, list[Layer]]:
    """The probabilities of an image [C, H, W], and what each layer makes of it, in the order in which they run."""
    found: list[Layer] = []

    def watch(name: str, module: Module) -> Any:
        def hook(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
            values = (output[0] if isinstance(output, tuple) else output).numpy()[0]
            found.append(Layer(name, type(module).__name__, np.array(values, np.float32, order="C")))

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in layers_of(model).items()]
    try:
        return train.predict(model, image), found
    finally:
        for handle in handles:
            handle.remove()


def message(header: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> bytes:
    """A length (uint32), a header of so many bytes (JSON, filled up to a multiple of 4), and the arrays' bytes.

    All little-endian, the arrays one behind the other.
    """
    text = json.dumps(header, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    parts = [np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes() for array in arrays]
    return struct.pack("<I", len(text)) + text + b"".join(parts)
