"""The Dataset class, conversion to float, split and the check that train and test are disjoint."""

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from gpucnn.data import Dataset, check_disjoint, overlap, split, to_float


def images_of(n, h=5, w=4, c=3, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c)).astype(dtype)


def dataset_of(n=12, classes=("a", "b", "c"), **kwargs):
    return Dataset(images_of(n, **kwargs), np.arange(n) % len(classes), classes, "toy")


class TestToFloat:
    def test_every_byte_is_the_float32_quotient_by_255(self):
        images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
        floats = to_float(images)
        assert floats.dtype == np.float32
        expected = [np.float32(v) / np.float32(255) for v in range(256)]
        assert floats.ravel().tolist() == [float(e) for e in expected]
        assert floats[0, 0, 0, 0] == 0.0
        assert floats[0, 0, 15, 15] == 1.0
        assert floats.ravel()[51] == np.float32(51) / np.float32(255) == np.float32(0.2)

    def test_indexed_nchw_and_stored_channels_last(self):
        images = images_of(2)
        floats = to_float(images)
        assert floats.shape == (2, 3, 5, 4)
        assert floats[1, 2, 3, 1] == np.float32(images[1, 3, 1, 2]) / np.float32(255)
        assert floats.transpose(0, 2, 3, 1).flags.c_contiguous

    def test_black_and_white_images_are_ones_and_zeros(self):
        images = np.array([True, False, False, True]).reshape(1, 2, 2, 1)
        assert to_float(images).tolist() == [[[[1.0, 0.0], [0.0, 1.0]]]]

    def test_float_images_stay_as_they_are_in_a_new_array(self):
        images = images_of(2).astype(np.float32)
        floats = to_float(images)
        np.testing.assert_array_equal(floats, images.transpose(0, 3, 1, 2))
        assert not np.shares_memory(floats, images)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_])
    def test_a_strided_view_gives_the_same_values_and_layout(self, dtype):
        images = images_of(6, h=8).astype(dtype).transpose(0, 2, 1, 3)[::2, ::-2]
        floats = to_float(images)
        np.testing.assert_array_equal(floats, to_float(images.copy()))
        assert floats.transpose(0, 2, 3, 1).flags.c_contiguous

    def test_other_dtypes_and_dimensions_are_refused(self):
        with pytest.raises(TypeError, match="uint8, float32 or bool, got float64"):
            to_float(np.zeros((1, 2, 2, 1)))
        with pytest.raises(ValueError, match=r"\[N, H, W, C\], got shape \(2, 2\)"):
            to_float(np.zeros((2, 2), np.uint8))


class TestDataset:
    def test_knows_its_sizes(self):
        data = dataset_of(12)
        assert (len(data), data.height, data.width, data.channels) == (12, 5, 4, 3)
        assert data.labels.dtype == np.int64

    def test_an_int_gives_one_image_and_its_label(self):
        data = dataset_of(12)
        image, label = data[-1]
        np.testing.assert_array_equal(image, data.images[11])
        assert label == 2
        assert isinstance(label, int)

    @pytest.mark.parametrize(
        "index", [slice(2, 9, 3), [5, 2, 2], np.array([1, 0]), (3, 4), np.arange(12) > 8, [], range(3)]
    )
    def test_slices_indices_and_masks_give_images_and_labels(self, index):
        data = dataset_of(12)
        images, labels = data[index]
        rows = range(12)[index] if isinstance(index, slice) else [*index]
        rows = [i for i in range(12) if rows[i]] if len(rows) == 12 else [*rows]
        np.testing.assert_array_equal(images, data.images[rows])
        np.testing.assert_array_equal(labels, data.labels[rows])

    def test_an_index_past_the_end_is_an_index_error(self):
        with pytest.raises(IndexError, match="12 is out of bounds"):
            dataset_of(12)[12]
        with pytest.raises(IndexError, match="12 is out of bounds"):
            dataset_of(12)[[0, 12]]

    def test_a_mask_of_another_length_is_an_index_error(self):
        with pytest.raises(IndexError, match="over 12 images must have 12 entries, got 3"):
            dataset_of(12)[[True, False, True]]

    @pytest.mark.parametrize("index", [1.5, [0.5], [[0]], "x", None])
    def test_other_indices_are_a_type_error(self, index):
        with pytest.raises(TypeError, match="index a data set with an int, a slice or a list of ints"):
            dataset_of(12)[index]

    def test_a_subset_keeps_classes_and_name(self):
        part = dataset_of(12).subset([4, 1])
        assert isinstance(part, Dataset)
        assert part.labels.tolist() == [1, 1]
        assert (part.classes, part.name) == (("a", "b", "c"), "toy")

    def test_its_arrays_cannot_be_written_to_but_the_callers_can(self):
        images, labels = images_of(3), np.zeros(3, np.int64)
        data = Dataset(images, labels, ("a",))
        with pytest.raises(ValueError, match="read-only"):
            data.images[0] = 0
        with pytest.raises(ValueError, match="read-only"):
            data.labels[0] = 0
        images[0] = 7
        labels[0] = 0

    def test_an_empty_set_is_allowed(self):
        data = Dataset(np.zeros((0, 2, 3, 1), np.uint8), [], ())
        assert len(data) == 0
        assert data.labels.dtype == np.int64

    def test_its_repr_says_what_it_is(self):
        assert repr(dataset_of(12)) == "Dataset('toy', 12 images 5×4×3 uint8, 3 classes: a, b, c)"
        many = Dataset(images_of(1), [0], tuple(str(i) for i in range(12)))
        assert repr(many).endswith("12 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …)")

    @pytest.mark.parametrize(
        ("images", "labels", "error", "message"),
        [
            (np.zeros((2, 3, 4), np.uint8), [0, 0], ValueError, r"\[N, H, W, C\], got shape \(2, 3, 4\)"),
            (np.zeros((2, 0, 4, 1), np.uint8), [0, 0], ValueError, r"height, width and channels, got .*\(2, 0, 4, 1\)"),
            (np.zeros((2, 3, 4, 1)), [0, 0], TypeError, r"got float64; convert them with images.astype\(np.float32\)"),
            (np.zeros((2, 3, 4, 1), np.uint8), [0], ValueError, r"2 images need as many labels, got shape \(1,\)"),
            (np.zeros((2, 3, 4, 1), np.uint8), [[0], [0]], ValueError, r"as many labels, got shape \(2, 1\)"),
            (np.zeros((2, 3, 4, 1), np.uint8), [0.0, 1.0], TypeError, r"labels must be integers .*, got float64"),
            (np.zeros((2, 3, 4, 1), np.uint8), [0, 2], ValueError, r"0..1 for 2 classes, but labels\[1\] is 2 \(1 la"),
            (np.zeros((2, 3, 4, 1), np.uint8), [-1, 5], ValueError, r"labels\[0\] is -1 \(2 labels are out of range"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, images, labels, error, message):
        with pytest.raises(error, match=f"toy: .*{message}"):
            Dataset(images, labels, ("a", "b"), "toy")

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_images_that_look_like_nchw_are_a_warning_with_both_shapes_and_the_transpose(self, channels):
        images = np.zeros((2, channels, 16, 12), np.uint8)
        message = (
            rf"toy: images are \[N, H, W, C\], so shape \(2, {channels}, 16, 12\) means 12 channels; if it is "
            rf"\[N, C, H, W\], images.transpose\(0, 2, 3, 1\) makes it \(2, 16, 12, {channels}\)"
        )
        with pytest.warns(UserWarning, match=message) as caught:
            Dataset(images, [0, 0], ("a",), "toy")
        assert caught[0].filename == __file__
        assert Dataset(images.transpose(0, 2, 3, 1), [0, 0], ("a",)).channels == channels

    @pytest.mark.parametrize("shape", [(3, 16, 3), (1, 9, 2), (4, 4, 4), (5, 16, 16), (2, 16, 16)])
    def test_other_images_of_few_rows_or_many_channels_are_no_warning(self, shape):
        Dataset(np.zeros((2, *shape), np.uint8), [0, 0], ("a",))


class TestSplit:
    def test_the_sides_are_disjoint_complete_and_in_order(self):
        data = dataset_of(30)
        train, held_out = split(data, 0.2)
        assert (len(train), len(held_out)) == (24, 6)
        check_disjoint(train, held_out)
        index = {image.tobytes(): i for i, image in enumerate(data.images)}
        rows = [[index[image.tobytes()] for image in side.images] for side in (train, held_out)]
        assert sorted(rows[0] + rows[1]) == list(range(30))
        assert all(side == sorted(side) for side in rows)
        for side, part in zip(rows, (train, held_out), strict=True):
            assert part.labels.tolist() == data.labels[side].tolist()

    def test_the_same_seed_gives_the_same_split_and_another_seed_another(self):
        data = dataset_of(60)
        first, again, other = (split(data, 12, seed=seed)[1].images for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_a_count_is_a_number_of_images(self):
        train, held_out = split(dataset_of(30), np.int64(7))
        assert (len(train), len(held_out)) == (23, 7)

    def test_stratify_keeps_the_shares_of_the_classes(self):
        labels = np.repeat([0, 1, 2], [50, 30, 20])
        data = Dataset(images_of(100), labels, ("a", "b", "c"))
        _, held_out = split(data, 0.1)
        assert np.bincount(held_out.labels).tolist() == [5, 3, 2]
        _, held_out = split(data, 11)  # 5.5, 3.3, 2.2: the largest remainder gets the odd one
        assert np.bincount(held_out.labels).tolist() == [6, 3, 2]

    def test_without_stratify_the_labels_play_no_part(self):
        images, labels = images_of(40), np.repeat([0, 1], 20)
        one = split(Dataset(images, labels, ("a", "b")), 10, stratify=False)[1].images
        two = split(Dataset(images, labels[::-1], ("a", "b")), 10, stratify=False)[1].images
        np.testing.assert_array_equal(one, two)

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=6, max_size=40),
        st.floats(0.2, 0.6),
        st.integers(0, 3),
        st.booleans(),
    )
    def test_identical_images_stay_on_one_side(self, rows, fraction, seed, stratify):
        pixels, labels = zip(*rows, strict=True)
        images = np.array(pixels, np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 2, 3, 1), np.uint8)
        data = Dataset(images, labels, ("a", "b", "c"))
        try:
            train, held_out = split(data, fraction, seed=seed, stratify=stratify)
        except ValueError:  # no group is small enough for the held-out side
            reject()
        assert overlap(train, held_out) == []
        assert len(train) + len(held_out) == len(data)
        assert 0 < len(held_out) <= round(fraction * len(data))

    def test_images_that_are_all_the_same_cannot_be_split(self):
        data = Dataset(np.zeros((10, 2, 3, 1), np.uint8), [0] * 10, ("a",), "same")
        with pytest.raises(ValueError, match="same: cannot hold out 5 of 10 images: only 1 of them are different"):
            split(data, 0.5)

    @pytest.mark.parametrize("part", [0.0, 1.0, -0.5, 1.5, "half", None, True, float("nan")])
    def test_what_is_neither_fraction_nor_count_is_refused(self, part):
        with pytest.raises(ValueError, match="a fraction between 0 and 1 or a number of images, got"):
            split(dataset_of(12), part)

    @pytest.mark.parametrize("part", [0, 12, 13, -1, 0.01, 0.99])
    def test_a_side_may_not_be_empty(self, part):
        with pytest.raises(ValueError, match=f"holding out {part} of 12 images means -?[0-9]+, which leaves one side"):
            split(dataset_of(12), part)


class TestDisjoint:
    def test_an_overlap_is_refused_with_count_and_places(self):
        data = dataset_of(12)
        train, test = data.subset(slice(0, 8)), data.subset([9, 3, 10, 0, 5, 3])
        assert overlap(train, test) == [(3, 1), (0, 3), (5, 4), (3, 5)]
        with pytest.raises(
            ValueError, match=r"4 of 6 test images \(toy\) .* train\[3\] = test\[1\], train\[0\] = test\[3\], "
            r"train\[5\] = test\[4\], …; drop them \(gpucnn.data.overlap"
        ):  # fmt: skip
            check_disjoint(train, test)

    def test_disjoint_sets_pass(self):
        data = dataset_of(12)
        check_disjoint(data.subset(slice(0, 6)), data.subset(slice(6, 12)))

    def test_the_first_of_several_equal_training_images_is_named(self):
        data = dataset_of(4)
        assert overlap(data.subset([2, 1, 2]), data.subset([2])) == [(0, 0)]

    def test_bytes_and_floats_of_the_same_image_are_the_same(self):
        data = dataset_of(6)
        floats = Dataset(np.ascontiguousarray(to_float(data.images).transpose(0, 2, 3, 1)), data.labels, data.classes)
        assert overlap(data.subset([4, 5]), floats) == [(0, 4), (1, 5)]

    def test_images_of_another_shape_are_never_the_same(self):
        flat = Dataset(np.zeros((2, 3, 4, 1), np.uint8), [0, 0], ("a",))
        tall = Dataset(np.zeros((2, 4, 3, 1), np.uint8), [0, 0], ("a",))
        check_disjoint(flat, tall)
