"""X or not X: what is drawn, and that no image is both."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucnn.data import x_or_not_x


def crosses(h, w, top, left, height, width):
    """An X drawn by hand: for each step along the longer side, one pixel of each diagonal."""
    image = np.zeros((h, w))
    steps = max(height, width)
    for i in range(steps):
        y, x = i * (height - 1) / (steps - 1), i * (width - 1) / (steps - 1)
        for column in (x, width - 1 - x):
            image[top + int(y + 0.5), left + int(column + 0.5)] = 1
    return image


def every_cross(h, w):
    for height in range(max(3, (h + 1) // 2), h + 1):
        for width in range(max(3, (w + 1) // 2), w + 1):
            for top in range(h - height + 1):
                for left in range(w - width + 1):
                    yield crosses(h, w, top, left, height, width)


def test_plain_it_is_the_x_of_ones_on_both_diagonals():
    data = x_or_not_x(10, shift=False, shrink=False, distort=0)
    expected = [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert data.images.dtype == np.float32
    for image, label in zip(data.images, data.labels, strict=True):
        assert (image[:, :, 0].tolist() == expected) == (label == 1)


def test_half_are_xs_in_a_random_order():
    data = x_or_not_x(101)
    assert data.classes == ("not X", "X")
    assert np.bincount(data.labels).tolist() == [51, 50]
    assert data.labels.tolist() != (np.arange(101) % 2).tolist()


@settings(max_examples=8, deadline=None)
@given(st.integers(5, 7), st.integers(5, 8), st.integers(0, 2), st.integers(0, 3))
def test_xs_are_near_an_x_and_the_others_are_not(h, w, distort, seed):
    data = x_or_not_x(60, (h, w), seed, distort=distort)
    assert data.images.shape == (60, h, w, 1)
    assert set(np.unique(data.images)) <= {0.0, 1.0}
    templates = np.array(list(every_cross(h, w)))
    for image, label in zip(data.images[..., 0], data.labels, strict=True):
        nearest = np.abs(templates - image).sum((1, 2)).min()
        assert (nearest <= distort) == (label == 1)


def test_no_image_is_of_both_classes():
    data = x_or_not_x(4000, distort=2)
    sides = [{image.tobytes() for image in data.images[data.labels == label]} for label in (0, 1)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) > 300


def test_shift_and_shrink_are_what_they_say():
    centre = x_or_not_x(1000, 9, shift=False, distort=0)
    xs = centre.images[centre.labels == 1][..., 0]
    for image in xs:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert abs(rows[0] - (8 - rows[-1])) <= 1
        assert abs(columns[0] - (8 - columns[-1])) <= 1
    assert len({image.tobytes() for image in xs}) == 5 * 5  # heights and widths 5 to 9
    full = x_or_not_x(200, (6, 9), shrink=False, distort=0)
    assert len({image.tobytes() for image in full.images[full.labels == 1]}) == 1


def test_the_same_seed_gives_the_same_images():
    one, same, other = (x_or_not_x(20, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one.images, same.images)
    np.testing.assert_array_equal(one.labels, same.labels)
    assert not np.array_equal(one.images, other.images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 1, "size": 4}, "size must be within 5..32 by 5..32, got 4×4"),
        ({"count": 1, "size": (5, 33)}, "size must be within 5..32 by 5..32, got 5×33"),
        ({"count": 1, "distort": 3}, "distort must be 0, 1 or 2 pixels"),
        ({"count": 1, "distort": -1}, "distort must be 0, 1 or 2 pixels"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        x_or_not_x(**arguments)
