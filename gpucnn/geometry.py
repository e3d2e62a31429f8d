"""Window: the one geometry value of convolution and pooling, with every output-size formula and every shape error; and
Pixels, a walk over the places of a window.

Sizes are written (height, width); padding is (top, bottom, left, right). A Window is immutable and hashable, so a
backend may key plans and compiled kernels by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, NamedTuple

Size = tuple[int, int]
MOST = 2**31 - 1  # of a length: kernels count with 32 bits
MOST_PIXELS = 2**40  # of a plane with its padding: terabytes
Padding = int | Sequence[int] | Literal["same", "valid"]


def pair(value: int | Sequence[int], name: str, minimum: int) -> Size:
    """An int or (height, width) as a pair of ints, each at least `minimum`."""
    if type(value) is int and minimum <= value <= MOST:
        return value, value
    if type(value) is tuple and len(value) == 2:  # as layers hold it: numbers.Integral takes far longer
        first, second = value
        if type(first) is type(second) is int and minimum <= min(value) and max(value) <= MOST:
            return first, second
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(values) != 2 or not all(
        isinstance(v, Integral) and not isinstance(v, bool) and v >= minimum for v in values
    ):
        raise ValueError(f"{name} must be an int >= {minimum} or a (height, width) pair of them, got {value!r:.100}")
    if max(values) > MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {value!r:.100}")
    return int(values[0]), int(values[1])


def _same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding for ceil(length / stride) outputs; an odd pixel goes to the end, as in PyTorch and TensorFlow."""
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


@dataclass(frozen=True, slots=True)
class Window:
    """How a filter or a pooling window of R×S taps moves over an H×W plane."""

    kernel: Size
    stride: Size = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Size = (1, 1)
    ceil_mode: bool = False

    @classmethod
    def of(
        cls,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] | None,
        padding: Padding,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
        size: Size = (0, 0),
    ) -> Window:
        """A window from PyTorch's arguments. `stride=None` is the kernel; `size` (H, W) is what "same" pads."""
        kernel = pair(kernel, "kernel_size", 1)
        stride = kernel if stride is None else pair(stride, "stride", 1)
        dilation = pair(dilation, "dilation", 1)
        if padding == "valid":
            sides = (0, 0, 0, 0)
        elif padding == "same":
            extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
            sides = (
                *_same_padding(size[0], extent[0], stride[0]),
                *_same_padding(size[1], extent[1], stride[1]),
            )
        elif isinstance(padding, Sequence) and not isinstance(padding, str) and len(padding) == 4:
            top_bottom, left_right = pair(padding[:2], "padding", 0), pair(padding[2:], "padding", 0)
            sides = (*top_bottom, *left_right)
        elif isinstance(padding, str) or (isinstance(padding, Sequence) and len(padding) != 2):
            raise ValueError(
                f'padding must be an int, (h, w), (top, bottom, left, right), "same" or "valid", got {padding!r}'
            )
        else:
            h, w = pair(padding, "padding", 0)
            sides = (h, h, w, w)
        return cls(kernel, stride, sides, dilation, ceil_mode)

    @property
    def taps(self) -> int:
        """R·S, the number of positions that one window looks at."""
        return self.kernel[0] * self.kernel[1]

    @property
    def extent(self) -> Size:
        """Height and width that the dilated window spans."""
        (r, s), (dh, dw) = self.kernel, self.dilation
        return dh * (r - 1) + 1, dw * (s - 1) + 1

    def output_size(self, size: Size) -> Size:
        """(P, Q) for an input plane of (H, W).

        floor: ⌊(H + top + bottom − extent) / stride⌋ + 1; with ceil_mode rounded up, less one if the last window would
        start in the far padding. Raises ValueError, with the formula, if the window is larger than the padded input,
        and for more than 2⁴⁰ pixels with the padding.
        """
        top, bottom, left, right = self.padding
        h, w = size
        self._check_size("an input", (h + top + bottom, w + left + right))
        return (
            self._outputs("height", h, top, bottom, 0),
            self._outputs("width", w, left, right, 1),
        )

    def _outputs(self, axis: str, length: int, before: int, after: int, which: int) -> int:
        extent, stride = self.extent[which], self.stride[which]
        room = length + before + after - extent
        count = (-(-room // stride) if self.ceil_mode else room // stride) + 1
        if count < 1:
            raise ValueError(
                f"a window of {axis} {extent} does not fit: ({axis} + padding - window) / stride + 1 = "
                f"({length} + {before + after} - {extent}) / {stride} + 1 < 1; "
                f"use a smaller kernel_size or dilation, or a padding of at least {-room} more in all"
            )
        starts_in_far_padding = self.ceil_mode and (count - 1) * stride >= length + before
        return count - starts_in_far_padding

    def transposed_size(self, size: Size, output_padding: Size) -> Size:
        """(H, W) that a transposed convolution makes of an input plane of (P, Q): the size that this window maps back.

        (P − 1) · stride − padding + extent + output_padding. Raises ValueError if that is not positive, and for more
        than 2⁴⁰ pixels with the padding.
        """
        top, bottom, left, right = self.padding
        h, w = (
            (n - 1) * s - p + e + o
            for n, s, p, e, o in zip(
                size, self.stride, (top + bottom, left + right), self.extent, output_padding, strict=True
            )
        )
        if h < 1 or w < 1:
            raise ValueError(
                f"a transposed convolution of {size} with kernel {self.kernel}, stride {self.stride}, padding "
                f"{self.padding}, dilation {self.dilation} and output_padding {output_padding} has the size {(h, w)}; "
                "use less padding"
            )
        self._check_size("a transposed convolution", (h + top + bottom, w + left + right))
        return h, w

    def _check_size(self, what: str, size: Size) -> None:
        """Raises ValueError for a plane that is too large to be counted in, or to be at all."""
        if max(size) > MOST or size[0] * size[1] > MOST_PIXELS:
            raise ValueError(
                f"{what} of {size[0]}×{size[1]} pixels, padding {self.padding} included, is too large: a side may have "
                f"{MOST}, all together {MOST_PIXELS}"
            )


class Pixels(NamedTuple):
    """A walk of Hopper's copy engine over the pixels of an image (devices/tensor_map.py), each as (rows, columns): the
    first one, counted from the image's first; the last one, counted from the image's last; the step."""

    lower: tuple[int, int]
    upper: tuple[int, int]
    stride: tuple[int, int]

    def is_encodable(self) -> bool:
        """Whether a map has room for it: corners of 8 bits, steps up to 8."""
        corners_fit = all(-128 <= corner <= 127 for corner in (*self.lower, *self.upper))
        return corners_fit and all(1 <= step <= 8 for step in self.stride)
