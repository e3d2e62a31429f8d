"""Images of one's own that are read when they are asked for, and subsets that are not copied."""

import numpy as np
import pytest

from gpucnn import data
from gpucnn.data import Dataset, LazyImages, Loader
from gpucnn.data.lazy import Rows

STORED = np.random.default_rng(0).integers(0, 256, (23, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(23) % 3


class Counted(LazyImages):
    """Those of `array`, and which have been read."""

    def __init__(self, array=STORED):
        self.array, self.asked = array, []
        self.shape, self.dtype = array.shape, array.dtype

    def read(self, rows):
        self.asked.append(rows.tolist())
        return self.array[rows]


def toy(images=None):
    return Dataset(Counted() if images is None else images, LABELS, ("a", "b", "c"), "toy")


def test_a_data_set_of_them_gives_the_images_of_an_array():
    lazy, whole = toy(), toy(STORED)
    assert repr(lazy) == repr(whole)
    for index in (5, -1, slice(1, 9, 2), [7, 0, 7], np.arange(23) > 19):
        for mine, others in zip(lazy[index], whole[index], strict=True):
            np.testing.assert_array_equal(mine, others, strict=True)


def test_a_loader_reads_each_batch_and_nothing_else():
    set_ = toy()
    batches = list(Loader(set_, 6, drop_last=True))
    assert set_.images.asked == [list(range(i, i + 6)) for i in (0, 6, 12)]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), data.to_float(STORED[:18]))


def test_subsets_of_subsets_read_from_the_first():
    set_ = toy()
    some = set_.subset(slice(None, None, -1)).subset([0, 2, 5]).subset(np.array([False, True, True]))
    assert set_.images.asked == []
    np.testing.assert_array_equal(some.images, STORED[[20, 17]])
    assert some.labels.tolist() == LABELS[[20, 17]].tolist()
    assert set_.images.asked == [[20, 17]]


def test_a_subset_of_one_image_is_a_data_set_lazy_or_not():
    for set_ in (toy(), toy(STORED)):
        np.testing.assert_array_equal(set_.subset(4).images, STORED[4:5])


def test_they_are_split_as_an_array_is_and_checked_by_their_pixels():
    doubled = np.concatenate([STORED, STORED[:2]])[:23]
    doubled[20] = doubled[3]
    for lazy, whole in zip(data.split(toy(Counted(doubled)), 6), data.split(toy(doubled), 6), strict=True):
        np.testing.assert_array_equal(lazy.images, whole.images)
        assert isinstance(lazy.images, LazyImages)
    train, test = toy().subset(slice(0, 12)), toy().subset(slice(10, 23))
    floats = Dataset(data.to_float(STORED[10:]).transpose(0, 2, 3, 1), LABELS[10:], ("a", "b", "c"))
    lazy_floats = Dataset(Counted(floats.images), LABELS[10:], ("a", "b", "c"))
    for other in (test, floats, lazy_floats):
        with pytest.raises(
            ValueError, match=r"2 of 13 test images .* train\[10\] = test\[0\], train\[11\] = test\[1\]"
        ):
            data.check_disjoint(train, other)


def test_the_images_are_read_once_for_a_split_and_its_checks():
    set_ = toy()
    training, held_out = data.split(set_, 6)
    data.check_disjoint(training, held_out)
    data.check_disjoint(held_out, training.subset(slice(2, 9)))
    assert set_.images.asked == [list(range(23))]


def test_a_type_may_be_named():
    images = Counted()
    images.dtype = "uint8"
    assert "uint8" in repr(toy(images))


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (STORED[:2, :4], r"uint8 \(2, 4, 4, 3\)"),
        (STORED[:3], r"uint8 \(3, 5, 4, 3\)"),
        (STORED[:2].astype(np.float32), r"float32 \(2, 5, 4, 3\)"),
        (STORED[:2].tolist(), "list"),
    ],
)
def test_what_read_returns_is_checked(returned, got):
    class Wrong(Counted):
        def read(self, rows):
            return returned

    with pytest.raises(ValueError, match=rf"Wrong.read must return a uint8 array \(2, 5, 4, 3\), got {got}$"):
        toy(Wrong())[[0, 1]]


def test_an_error_of_read_comes_as_it_is_and_with_the_batch():
    class Broken(Counted):
        def read(self, rows):
            raise TypeError("the disk is gone")

    with pytest.raises(TypeError, match="the disk is gone") as caught:
        list(Loader(toy(Broken()), 5))
    assert "batch 0 of epoch 0" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [
        ((23, 5, 4), np.uint8, ValueError, r"toy: images must be \[N, H, W, C\], got shape \(23, 5, 4\)"),
        ((22, 5, 4, 3), np.uint8, ValueError, "toy: 22 images need as many labels"),
        ((23, 5, 4, 3), np.int32, TypeError, "toy: images must be uint8"),
    ],
)
def test_a_shape_or_type_that_does_not_fit_is_refused(shape, dtype, error, message):
    images = Counted()
    images.shape, images.dtype = shape, np.dtype(dtype)
    with pytest.raises(error, match=message):
        toy(images)


def test_no_array_is_made_of_them_without_a_copy():
    with pytest.raises(ValueError, match="Counted is no array, so it can't become one without a copy"):
        np.array(Counted(), copy=False)


def test_a_large_subset_of_an_array_is_no_copy(monkeypatch):
    monkeypatch.setattr("gpucnn.data.dataset.IN_MEMORY", 10 * 5 * 4 * 3)
    whole = toy(STORED)
    small, large = whole.subset(np.arange(10)), whole.subset(np.arange(22, 11, -1))
    assert isinstance(small.images, np.ndarray)
    assert isinstance(large.images, Rows)
    np.testing.assert_array_equal(large.images, STORED[22:11:-1])
    assert whole.subset(slice(2, 20)).images.base is not None
