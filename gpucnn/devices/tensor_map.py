"""TensorMap: how the copy engine of sm_90 walks an array; a kernel's argument beside arrays and numbers.

    const __grid_constant__ TensorMap<SCALAR> x,  // [N, H, W, C], by [TILE_M, 64]

A copy brings a box into shared memory as rows of 128 bytes, swizzled. What lies outside of the array comes as zeros.
Floats come rounded to the nearest TF32, which is what tensor cores multiply.

By boxes the engine takes a part of an array of two to four axes. By pixels it walks over [N, H, W, C]: the box is
[pixels, channels], and the pixels are those that a filter of a convolution begins at, along a row in steps of a stride,
then down, then in the next image. A copy names the first of them, and the tap by which all are shifted.

Sources: PTX ISA, "Tensor"; CUDA Driver API, cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gpucnn.geometry import Pixels

ROW_BYTES = 128  # of a box's innermost axis: the swizzle's
MAP_BYTES = 128  # of a map as the hardware reads it
# Of the CUDA driver's cuda.h.
_DATA_TYPES = {"float16": 6, "bfloat16": 9, "float32": 11}  # floats are rounded to TF32 on their way
_NO_INTERLEAVE, _SWIZZLE_128B, _L2_PROMOTION_256B, _ZEROS_OUTSIDE = 0, 3, 3, 0


@dataclass(frozen=True)
class TensorMap:
    """An array and how it is walked. `encoded` is what a device's kernels read."""

    array: Any
    box: tuple[int, ...]
    pixels: Pixels | None
    encoded: bytes


def check(array: Any, box: tuple[int, ...], pixels: Pixels | None, address: int) -> None:
    """Raises ValueError for what the copy engine can't walk."""
    if pixels is None and not 2 <= array.ndim == len(box) <= 4:
        raise ValueError(f"boxes have the two to four axes of their array, got {box} of {array.shape}")
    if pixels is not None and not (array.ndim == 4 and len(box) == 2 and pixels.is_encodable()):
        raise ValueError(
            "a walk is over [N, H, W, C] by [pixels, channels], with corners of -128 to 127 and steps up to 8; got "
            f"{pixels} over {array.shape} by {box}"
        )
    if box[-1] * array.itemsize != ROW_BYTES or not all(1 <= length <= 256 for length in box):
        raise ValueError(f"a box has up to 256 rows of {ROW_BYTES} bytes, got {box} of {array.dtype}")
    if not array.flags.c_contiguous or array.shape[-1] * array.itemsize % 16 or address % 16:
        raise ValueError(
            f"an array that is walked is contiguous, and its rows begin at multiples of 16 bytes; got {array.dtype} "
            f"{array.shape} with strides {array.strides} at {address:#x}"
        )


def described(array: Any, box: tuple[int, ...], pixels: Pixels | None) -> bytes:
    """The map as emulator.cpp reads it: the innermost axis first."""
    walk = pixels or Pixels((0, 0), (0, 0), (1, 1))
    lengths = [length for axes in (array.shape, box) for length in (*reversed(axes), *[1] * (4 - len(axes)))]
    corners = [length for pair in walk for length in reversed(pair)]
    head = (array.ctypes.data, array.itemsize, array.ndim, int(pixels is not None))
    return struct.pack("<Q3i14i", *head, *lengths, *corners).ljust(MAP_BYTES, b"\0")


@lru_cache(maxsize=4096)  # arrays come back to the same places
def encoded(
    driver: ctypes.CDLL, dtype: str, shape: tuple[int, ...], address: int, box: tuple[int, ...], pixels: Pixels | None
) -> bytes:
    """The map of an array as the hardware reads it, by the CUDA driver (12.0 or later).

    Raises ValueError for a dtype that no kernel walks, and RuntimeError if the driver refuses it.
    """
    if dtype not in _DATA_TYPES:
        *most, last = _DATA_TYPES
        raise ValueError(f"an array of {', '.join(most)} or {last} can be walked, got {dtype}")
    u32, u64 = ctypes.c_uint32, ctypes.c_uint64
    sizes, rank = shape[::-1], len(shape)
    itemsize = ROW_BYTES // box[-1]
    strides = [itemsize * math.prod(sizes[:i]) for i in range(1, rank)]
    memory = ctypes.create_string_buffer(2 * MAP_BYTES)
    start = -ctypes.addressof(memory) % MAP_BYTES  # where a map must begin; by a multiple of 64 before CUDA 13
    arguments = [ctypes.byref(memory, start), _DATA_TYPES[dtype], u32(rank), ctypes.c_void_p(address)]
    arguments += [_in_c(u64, sizes), _in_c(u64, strides)]
    if pixels is None:
        name = "cuTensorMapEncodeTiled"
        arguments += [_in_c(u32, box[::-1]), _in_c(u32, [1] * rank)]
    else:
        name = "cuTensorMapEncodeIm2col"
        arguments += [_in_c(ctypes.c_int, corner[::-1]) for corner in (pixels.lower, pixels.upper)]
        arguments += [u32(box[1]), u32(box[0]), _in_c(u32, (1, *pixels.stride[::-1], 1))]
    error = getattr(driver, name)(*arguments, _NO_INTERLEAVE, _SWIZZLE_128B, _L2_PROMOTION_256B, _ZEROS_OUTSIDE)
    if error:
        raise RuntimeError(f"{name} gives error {error} for {dtype} {shape} by {box}, {pixels}")
    return memory.raw[start : start + MAP_BYTES]


def _in_c(kind: Any, values: Sequence[int]) -> Any:
    return (kind * len(values))(*values)
