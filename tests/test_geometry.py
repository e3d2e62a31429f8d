"""Window: output sizes against counting, every way to give padding, and what an impossible window is told."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucnn.geometry import Window, pair

windows = st.builds(
    Window,
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    padding=st.tuples(*[st.integers(0, 4)] * 4),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    ceil_mode=st.booleans(),
)
sizes = st.tuples(st.integers(1, 20), st.integers(1, 20))


def counted(length: int, taps: int, stride: int, before: int, after: int, dilation: int, ceil_mode: bool) -> int:
    """How many windows there are, by laying one after the other until one reaches the end of the padded line.

    If that last one sticks out, it counts only in ceil mode, and there unless it begins in the far padding or would
    have room for a whole stride beyond the end.
    """
    last_tap = [i * dilation for i in range(taps)][-1]
    end = before + length + after - 1
    starts = [0]
    while starts[-1] + last_tap < end:
        starts.append(starts[-1] + stride)
    beyond = starts[-1] + last_tap - end
    if (beyond >= stride or starts[-1] >= before + length) if ceil_mode else beyond:
        starts.pop()
    return len(starts)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(window=windows, size=sizes)
def test_output_size_is_the_number_of_windows_that_fit(window: Window, size: tuple[int, int]) -> None:
    top, bottom, left, right = window.padding
    expected = tuple(
        counted(n, k, s, before, after, d, window.ceil_mode)
        for n, k, s, before, after, d in zip(
            size, window.kernel, window.stride, (top, left), (bottom, right), window.dilation, strict=True
        )
    )
    if 0 in expected:
        with pytest.raises(ValueError, match="does not fit"):
            window.output_size(size)
    else:
        assert window.output_size(size) == expected


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "padding", "expected"),
    [
        (6, 1, 2, 0, 3), (7, 1, 2, 0, 4), (32, 1, 2, 0, 16), (32, 8, 4, 0, 7), (4, 3, 3, 0, 2),
        (9, 4, 4, 2, 3), (17, 2, 2, 1, 9), (2, 3, 3, 1, 1), (9, 4, 2, 0, 4),
    ],
)  # fmt: skip
def test_ceil_mode_gives_the_known_sizes_on_each_axis(
    length: int, kernel: int, stride: int, padding: int, expected: int
) -> None:
    window = Window.of((kernel, 1), (stride, 1), (padding, 0), ceil_mode=True)
    assert window.output_size((length, 5)) == (expected, 5)
    window = Window.of((1, kernel), (1, stride), (0, padding), ceil_mode=True)
    assert window.output_size((5, length)) == (5, expected)


@pytest.mark.parametrize(
    ("padding", "sides"),
    [
        (2, (2, 2, 2, 2)),
        (np.int64(2), (2, 2, 2, 2)),
        ((1, 2), (1, 1, 2, 2)),
        ([0, 3], (0, 0, 3, 3)),
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ("valid", (0, 0, 0, 0)),
        ("same", (0, 1, 1, 1)),
    ],
)
def test_padding_is_given_in_every_way_pytorch_takes_and_for_four_sides(padding: Any, sides: Any) -> None:
    assert Window.of((2, 3), 1, padding, 1, size=(6, 9)).padding == sides


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    size=sizes,
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_same_padding_gives_the_size_over_the_stride_rounded_up_and_the_odd_pixel_at_the_end(
    size: Any, kernel: Any, stride: Any, dilation: Any
) -> None:
    window = Window.of(kernel, stride, "same", dilation, size=size)
    assert window.output_size(size) == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    top, bottom, left, right = window.padding
    assert bottom - top in (0, 1)
    assert right - left in (0, 1)
    for n, k, s, d, total in zip(size, kernel, stride, dilation, (top + bottom, left + right), strict=True):
        assert total == 0 or (n + total - (d * (k - 1) + 1)) % s == 0, "more padding than the windows need"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(window=windows, size=sizes)
def test_transposed_size_is_mapped_back_by_the_window(window: Window, size: tuple[int, int]) -> None:
    """Of the planes that the window maps to `size`, output_padding 0 is the least, the stride less one the largest."""
    window = Window(window.kernel, window.stride, window.padding, window.dilation)
    try:
        least = window.transposed_size(size, (0, 0))
    except ValueError as error:
        assert str(error).endswith("use less padding")  # noqa: PT017  most windows of this test have a size
        return
    largest = window.transposed_size(size, (window.stride[0] - 1, window.stride[1] - 1))
    assert window.output_size(least) == window.output_size(largest) == size
    larger = window.output_size((largest[0] + 1, largest[1] + 1))
    assert larger == (size[0] + 1, size[1] + 1)


def test_extent_and_taps_of_a_dilated_window() -> None:
    window = Window.of((3, 2), 1, 0, (2, 5))
    assert window.extent == (5, 6)
    assert window.taps == 6


def test_stride_is_the_kernel_unless_given() -> None:
    assert Window.of((3, 2), None, 0).stride == (3, 2)
    assert Window.of((3, 2), 1, 0).stride == (1, 1)


def test_equal_windows_are_one_key() -> None:
    one, other = Window.of(3, None, 1), Window.of((3, 3), (3, 3), (1, 1, 1, 1))
    assert one == other
    assert {one: "plan"}[other] == "plan"
    assert one != Window.of(3, None, 1, ceil_mode=True)
    with pytest.raises(AttributeError):
        one.kernel = (5, 5)  # type: ignore[misc]


def test_numpy_integers_become_ints() -> None:
    values = pair((np.int64(2), np.uint8(3)), "stride", 1)
    assert values == (2, 3)
    assert [type(v) for v in values] == [int, int]


@pytest.mark.parametrize("value", [0, -1, 1.0, "3", None, True, (1,), (1, 2, 3), (1, 0), (1, 2.5), ()])
def test_a_size_that_is_none_is_shown_with_what_is_wanted(value: Any) -> None:
    with pytest.raises(ValueError, match=r"kernel_size must be an int >= 1 or a \(height, width\) pair") as caught:
        Window.of(value, 1, 0)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("padding", [-1, (1, -2), (1, 2, 3), (0, 0, 0, -1), "full", 0.5, None, ()])
def test_padding_that_is_none_is_shown(padding: Any) -> None:
    with pytest.raises(ValueError, match="padding must be an int") as caught:
        Window.of(3, 1, padding)
    assert repr(padding) in str(caught.value) or repr(padding[2:]) in str(caught.value)


def test_window_that_does_not_fit_shows_the_formula_and_what_would_fit() -> None:
    window = Window.of((3, 4), 2, (1, 0), (1, 3))
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text follows
        window.output_size((5, 8))
    assert str(caught.value) == (
        "a window of width 10 does not fit: (width + padding - window) / stride + 1 = (8 + 0 - 10) / 2 + 1 < 1; "
        "use a smaller kernel_size or dilation, or a padding of at least 2 more in all"
    )
    assert Window.of((3, 4), 2, (0, 0, 1, 1), (1, 3)).output_size((5, 8)) == (2, 1)
    with pytest.raises(ValueError, match="a window of height 3"):
        Window.of(3, 1, 0).output_size((2, 9))
