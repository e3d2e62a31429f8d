"""IDX, CIFAR and NumPy files, whole and damaged, made here byte by byte."""

import gzip
import io
import os
import pickle
import subprocess
import tracemalloc
import warnings

import numpy as np
import pytest
from data_files import (
    cifar_images,
    cifar_rows,
    idx_bytes,
    python2_pickle,
    python3_pickle,
    rng,
    write_cifar,
    write_idx,
    write_idx_set,
)

from gpucnn.data import load, read_idx

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


# --- IDX -------------------------------------------------------------------------------------------------------------


class TestIdx:
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    @pytest.mark.parametrize(
        ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")]
    )
    def test_every_type_and_any_number_of_dimensions(self, tmp_path, suffix, code, dtype):
        for shape in [(4,), (2, 3), (2, 3, 5), (1, 2, 3, 4), (3, 0, 2)]:
            array = rng().integers(0, 100, shape).astype(dtype)
            path = tmp_path / f"array{suffix}"
            path.write_bytes(gzip.compress(idx_bytes(array, code)) if suffix else idx_bytes(array, code))
            read = read_idx(path)
            assert read.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(read, array)

    def test_gzip_is_known_by_its_content_not_its_name(self, tmp_path):
        (tmp_path / "labels").write_bytes(gzip.compress(idx_bytes(np.arange(5, dtype=np.uint8))))
        assert read_idx(tmp_path / "labels").tolist() == [0, 1, 2, 3, 4]

    def test_a_file_that_is_not_zipped_is_memory_mapped(self, tmp_path):
        (tmp_path / "images").write_bytes(idx_bytes(np.zeros((2, 3, 4), np.uint8)))
        assert isinstance(read_idx(tmp_path / "images").base, np.memmap)

    @pytest.mark.parametrize("zipped", [False, True])
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "not an IDX file: it begins with nothing"),
            (b"\0\0\x08", "begins with 00 00 08"),
            (b"\x89PNG\r\n\x1a\n", "begins with 89 50 4e 47"),
            (b"\0\0\x0a\x01\0\0\0\x02ab", "begins with 00 00 0a 01"),
            (b"\0\0\x08\x00", "begins with 00 00 08 00"),
            (b"\0\0\x08\x03\0\0\0\x02\0", "ends inside the header: 9 of 16 bytes"),
            (b"\0\0\x08\x01\0\0\0\x05abc", "is cut short: its header says 5 values of 1 bytes = 5 bytes, but 3 follow"),
            (
                b"\0\0\x0b\x02\0\0\0\x02\0\0\0\x03" + bytes(13),
                "is too long: .* 2×3 values of 2 bytes = 12 bytes, but .*13",
            ),
        ],
    )
    def test_a_damaged_file_is_refused_with_its_name_and_numbers(self, tmp_path, data, message, zipped):
        path = tmp_path / "broken-idx3-ubyte"
        path.write_bytes(gzip.compress(data) if zipped else data)
        with pytest.raises(ValueError, match=f"broken-idx3-ubyte: .*{message}"):
            read_idx(path)

    @pytest.mark.parametrize("zipped", [False, True])
    def test_a_header_that_promises_too_much_costs_no_memory(self, tmp_path, zipped):
        data = b"\0\0\x08\x03" + b"\xff\xff\xff\xff" * 3 + b"abc"
        path = tmp_path / "huge"
        path.write_bytes(gzip.compress(data) if zipped else data)
        tracemalloc.start()
        try:
            told = (
                r"says 79228162458924105385300197375 bytes, more than \d+ zipped" if zipped else r"bytes, but 3 follow"
            )
            with pytest.raises(ValueError, match=told):
                read_idx(path)
            assert tracemalloc.get_traced_memory()[1] < 10e6
        finally:
            tracemalloc.stop()

    def test_a_zipped_file_that_goes_on_too_long_is_not_read_to_its_end(self, tmp_path):
        path = tmp_path / "bomb.gz"
        path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x05" + bytes(100_000_000), 1))
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=r"bomb.gz: is too long: .*5 bytes, but at least"):
                read_idx(path)
            assert tracemalloc.get_traced_memory()[1] < 10e6
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("cut", [5, 20, -1, -8])
    def test_a_cut_gzip_file_is_refused(self, tmp_path, cut):
        data = gzip.compress(idx_bytes(rng().integers(0, 256, 5000, dtype=np.uint8)))
        (tmp_path / "x.gz").write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"x.gz: damaged gzip file"):
            read_idx(tmp_path / "x.gz")

    def test_a_gzip_file_with_a_wrong_byte_is_refused(self, tmp_path):
        data = bytearray(gzip.compress(idx_bytes(rng().integers(0, 256, 5000, dtype=np.uint8))))
        data[-6] ^= 1  # in the checksum
        (tmp_path / "x.gz").write_bytes(data)
        with pytest.raises(ValueError, match=r"x.gz: damaged gzip file: .*CRC"):
            read_idx(tmp_path / "x.gz")


class TestIdxFolder:
    @pytest.mark.parametrize(
        ("pattern", "parts"),
        [
            ("{part}-{kind}-idx{d}-ubyte.gz", ("train", "t10k")),
            ("{part}-{kind}-idx{d}-ubyte", ("train", "t10k")),
            ("{part}-{kind}.idx{d}-ubyte", ("train", "t10k")),
            ("{part}-{kind}.idx{d}-ubyte.gz", ("train", "test")),
            ("qmnist-{part}-{kind}-idx{d}-ubyte.gz", ("train", "test")),
        ],
    )
    def test_all_usual_file_names_are_known(self, tmp_path, pattern, parts):
        images = write_idx_set(tmp_path, pattern, parts)
        train, test = load(tmp_path, split="train"), load(tmp_path, split="test")
        np.testing.assert_array_equal(train.images[..., 0], images[parts[0]])
        np.testing.assert_array_equal(test.images[..., 0], images[parts[1]])
        assert train.labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
        assert train.classes == test.classes == ("0", "1", "2", "3")

    def test_no_split_means_training_then_test_images(self, tmp_path):
        images = write_idx_set(tmp_path)
        both = load(str(tmp_path))
        np.testing.assert_array_equal(both.images[..., 0], np.concatenate([images["train"], images["t10k"]]))
        assert both.name == tmp_path.name

    def test_the_unzipped_file_is_taken_if_there_are_both(self, tmp_path):
        images = write_idx_set(tmp_path, "{part}-{kind}-idx{d}-ubyte")
        for path in list(tmp_path.iterdir()):
            (tmp_path / f"{path.name}.gz").write_bytes(b"damaged")
        np.testing.assert_array_equal(load(tmp_path, split="train").images[..., 0], images["train"])

    def test_a_folder_raw_below_is_looked_into(self, tmp_path):
        write_idx_set(tmp_path / "raw")
        assert len(load(tmp_path)) == 11

    def test_a_part_alone_is_enough(self, tmp_path):
        write_idx_set(tmp_path)
        for path in tmp_path.glob("t10k*"):
            path.unlink()
        assert len(load(tmp_path)) == 7
        with pytest.raises(FileNotFoundError, match=r"no test images beside .*train-images-idx3-ubyte.gz"):
            load(tmp_path, split="test")

    def test_missing_labels_are_named(self, tmp_path):
        write_idx_set(tmp_path)
        (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(FileNotFoundError, match=r"no train labels beside .*train-images-idx3-ubyte.gz"):
            load(tmp_path)

    def test_labels_alone_are_not_enough(self, tmp_path):
        write_idx_set(tmp_path)
        for path in tmp_path.glob("*images*"):
            path.unlink()
        with pytest.raises(FileNotFoundError, match="no train images beside"):
            load(tmp_path)

    def test_images_must_have_three_dimensions(self, tmp_path):
        write_idx_set(tmp_path)
        write_idx(tmp_path, "train-images-idx3-ubyte.gz", np.zeros((7, 5), np.uint8))
        with pytest.raises(ValueError, match=r"must have 3 and 1 dimensions, got shapes \(7, 5\) and \(7,\)"):
            load(tmp_path, split="train")

    def test_training_and_test_images_of_two_sizes_cannot_be_joined(self, tmp_path):
        write_idx_set(tmp_path)
        write_idx(tmp_path, "t10k-images-idx3-ubyte.gz", np.zeros((4, 3, 5), np.uint8))
        with pytest.raises(ValueError, match=r"training images are \(5, 3, 1\) and test images \(3, 5, 1\): load one"):
            load(tmp_path)
        assert load(tmp_path, split="test").height == 3

    def test_of_several_sets_one_is_loaded_by_the_beginning_of_its_names(self, tmp_path):
        write_idx_set(tmp_path, "emnist-digits-{part}-{kind}-idx{d}-ubyte.gz", ("train", "test"))
        letters = write_idx_set(tmp_path, "emnist-letters-{part}-{kind}-idx{d}-ubyte.gz", ("train", "test"), (1, 26))
        with pytest.raises(ValueError, match=r"several IDX data sets: load one of .*emnist-digits, .*emnist-letters$"):
            load(tmp_path)
        data = load(tmp_path / "emnist-letters", split="train")
        assert data.name == "emnist-letters"
        assert data.labels.tolist() == [1, 26, 1, 26, 1, 26, 1]
        # EMNIST's images lie on their side
        np.testing.assert_array_equal(data.images[..., 0], letters["train"].transpose(0, 2, 1))

    def test_emnist_classes_are_read_from_its_mapping(self, tmp_path):
        write_idx_set(tmp_path, "emnist-letters-{part}-{kind}-idx{d}-ubyte", ("train", "test"), (1, 3))
        (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n")
        assert load(tmp_path).classes == ("?", "A", "B", "C")


# --- CIFAR -----------------------------------------------------------------------------------------------------------


class TestCifar:
    @pytest.mark.parametrize("dumps", [python2_pickle, python3_pickle])
    @pytest.mark.parametrize("version", ["binary 10", "binary 100", "python 10", "python 100"])
    def test_both_versions_of_both_sets(self, tmp_path, version, dumps):
        train, test = write_cifar(tmp_path, version, dumps)
        classes = int(version.split()[1])
        data = load(tmp_path, split="train")
        np.testing.assert_array_equal(data.images, train)
        assert data.labels.tolist() == [n // 2 if n % 2 == 0 else classes - 1 for n in range(len(train))]
        assert len(data.classes) == classes
        assert data.classes[0] == ("airplane" if classes == 10 else "thing 0")
        np.testing.assert_array_equal(load(tmp_path, split="test").images, test)
        np.testing.assert_array_equal(load(tmp_path).images, np.concatenate([train, test]))

    def test_the_python_2_pickle_of_these_tests_is_one_that_numpy_reads(self):
        rows = cifar_rows(cifar_images(2, 0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy.core is an old name
            batch = pickle.loads(python2_pickle({"data": rows, "labels": [3, 4]}), encoding="latin1")
        np.testing.assert_array_equal(batch["data"], rows)
        assert batch["labels"] == [3, 4]

    def test_an_incomplete_folder_is_not_taken_for_cifar(self, tmp_path):
        write_cifar(tmp_path, "binary 10")
        (tmp_path / "data_batch_4.bin").unlink()
        with pytest.raises(FileNotFoundError, match=r"holds no data set: expected .*CIFAR batches \(data_batch_1.bin"):
            load(tmp_path)

    def test_a_cut_binary_file_is_refused(self, tmp_path):
        write_cifar(tmp_path, "binary 10")
        path = tmp_path / "data_batch_2.bin"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"data_batch_2.bin: 6145 bytes are not a whole number of 3073-byte rec"):
            load(tmp_path)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


class TestPickle:
    @pytest.mark.parametrize(
        ("function", "arguments", "name"),
        [
            (os.system, ("touch {mark}",), "posix.system"),
            (subprocess.call, (["touch", "{mark}"],), "subprocess.call"),
            (eval, ("open({mark!r}, 'w').close()",), "builtins.eval"),
            (exec, ("open({mark!r}, 'w').close()",), "builtins.exec"),
            (io.open, ("{mark}", "w"), "io.open"),
            (getattr, ("x", "upper"), "builtins.getattr"),
            (np.fromfile, ("{mark}",), "numpy.fromfile"),
            (np.memmap, ("{mark}", "u1", "w+", 0, 10), "numpy.memmap"),
        ],
    )
    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_a_malicious_pickle_is_refused_before_it_does_anything(self, tmp_path, function, arguments, name, protocol):
        mark = str(tmp_path / "executed")
        arguments = [
            [word.format(mark=mark) for word in a] if isinstance(a, list) else a.format(mark=mark)
            if isinstance(a, str) else a for a in arguments
        ]  # fmt: skip
        write_cifar(tmp_path, "python 10")
        path = tmp_path / "data_batch_3"
        path.write_bytes(pickle.dumps({"data": Call(function, *arguments)}, protocol=protocol))
        with pytest.raises(ValueError, match=rf"data_batch_3: refused: it asks for .*{name.split('.')[1]} \(only the"):
            load(tmp_path)
        assert not (tmp_path / "executed").exists()

    def test_such_a_pickle_would_have_done_it_elsewhere(self, tmp_path):
        """The marks of the test above are really made when the pickle is loaded without care."""
        mark = tmp_path / "executed"
        pickle.loads(pickle.dumps(Call(exec, f"open({str(mark)!r}, 'w').close()")))
        assert mark.exists()

    def test_extension_codes_and_persistent_ids_are_refused(self, tmp_path):
        write_cifar(tmp_path, "python 10")
        for stream in (b"\x80\x02\x82\x01.", b"Pid\n."):
            (tmp_path / "test_batch").write_bytes(stream)
            with pytest.raises(ValueError, match="test_batch: refused"):
                load(tmp_path)

    def test_an_array_of_objects_is_refused(self, tmp_path):
        write_cifar(tmp_path, "python 10")
        (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": np.array([None, {}]), "labels": [0]}, protocol=4))
        with pytest.raises(ValueError, match="test_batch: refused: it has an array of 'O8'"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([1, 2], "no data in it: not a batch of CIFAR's Python version"),
            ({"labels": [1]}, "no data in it"),
            ({"data": np.zeros((1, 3072), np.uint8)}, "no labels in it"),
            ({"data": "pixels", "labels": [1]}, r"'data' must be bytes \[N, 3072\], 'labels' a list of numbers"),
            ({"data": np.zeros((2, 100), np.uint8), "labels": [1, 2]}, "'data' must be bytes"),
            ({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}, "'labels' a list of numbers"),
        ],
    )
    def test_what_is_no_batch_is_refused(self, tmp_path, entries, message):
        write_cifar(tmp_path, "python 10")
        (tmp_path / "test_batch").write_bytes(python3_pickle(entries))
        with pytest.raises(ValueError, match=f"test_batch: .*{message}"):
            load(tmp_path)

    def test_an_array_with_a_wrong_state_is_refused(self, tmp_path):
        write_cifar(tmp_path, "python 10")
        good = python2_pickle({"data": np.zeros((1, 3072), np.uint8), "labels": [1]})
        bad_shape = good.replace(b"(K\x01M\x01\x00M\x00\x0c\x86", b"(K\x01M\x01\x00M\x00\x0d\x86")
        dtype = good[good.index(b"cnumpy\ndtype") : good.index(b"\x89T")]
        no_dtype = good.replace(dtype, b"U\x02u1")
        for stream in (bad_shape, no_dtype):
            assert stream != good
            (tmp_path / "test_batch").write_bytes(stream)
            with pytest.raises(ValueError, match=r"test_batch: 'data' must be bytes \[N, 3072\]"):
                load(tmp_path)

    def test_class_names_must_be_a_list(self, tmp_path):
        write_cifar(tmp_path, "python 10")
        (tmp_path / "batches.meta").write_bytes(python3_pickle({"label_names": 10}))
        with pytest.raises(ValueError, match=r"batches.meta: the names of the classes must be a list of texts"):
            load(tmp_path)

    @pytest.mark.parametrize("cut", [0, 10, 3000])
    def test_a_cut_pickle_is_refused(self, tmp_path, cut):
        write_cifar(tmp_path, "python 10")
        path = tmp_path / "data_batch_5"
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match=r"data_batch_5: refused: .*the binary version needs no pickle"):
            load(tmp_path)


# --- NumPy files -----------------------------------------------------------------------------------------------------


class TestNumpy:
    def test_npz_with_images_labels_and_classes(self, tmp_path):
        images = rng().integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
        np.savez(tmp_path / "set.npz", images=images, labels=np.array([0, 1, 0, 1, 0, 1], np.int8), classes=["a", "b"])
        data = load(tmp_path / "set.npz")
        np.testing.assert_array_equal(data.images, images)
        assert (data.classes, data.name, data.labels.dtype) == (("a", "b"), "set", np.int64)

    def test_gray_images_may_lack_their_channel_and_classes_are_numbered(self, tmp_path):
        np.savez(tmp_path / "set.npz", images=np.zeros((3, 4, 5), np.float32), labels=[0, 3, 1])
        data = load(tmp_path / "set.npz")
        assert data.images.shape == (3, 4, 5, 1)
        assert data.classes == ("0", "1", "2", "3")

    def test_in_one_piece_it_is_split_80_to_20(self, tmp_path):
        images = rng().integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
        np.savez(tmp_path / "set.npz", images=images, labels=np.zeros(10, int))
        assert [len(load(tmp_path / "set.npz", split=split)) for split in ("train", "test")] == [8, 2]

    def test_the_layout_of_keras_has_its_own_split(self, tmp_path):
        arrays = {"x_train": np.zeros((4, 3, 2), np.uint8), "y_train": [0, 1, 2, 0],
                  "x_test": np.ones((2, 3, 2), np.uint8), "y_test": [1, 3]}  # fmt: skip
        np.savez(tmp_path / "mnist.npz", **arrays)
        train, test, both = (load(tmp_path / "mnist.npz", split=split) for split in ("train", "test", None))
        assert (len(train), len(test), len(both)) == (4, 2, 6)
        assert train.classes == test.classes == ("0", "1", "2", "3")
        np.savez(tmp_path / "half.npz", x_train=arrays["x_train"], y_train=arrays["y_train"])
        assert len(load(tmp_path / "half.npz")) == 4
        with pytest.raises(ValueError, match=r"half.npz: no test part: it holds x_train, y_train"):
            load(tmp_path / "half.npz", split="test")

    @pytest.mark.parametrize("more", [{}, {"classes": ["cat", "dog"]}])
    def test_labels_that_are_names_are_refused_with_the_remedy(self, tmp_path, more):
        names, images = np.array(["dog", "cat", "dog"]), np.zeros((3, 4, 5), np.uint8)
        np.savez(tmp_path / "set.npz", images=images, labels=names, **more)
        with pytest.raises(ValueError, match=r"set.npz: labels must be the numbers .* got <U3; .*numpy.unique"):
            load(tmp_path / "set.npz")
        classes, labels = np.unique(names, return_inverse=True)
        np.savez(tmp_path / "set.npz", images=images, labels=labels, classes=classes)
        assert load(tmp_path / "set.npz").classes == ("cat", "dog")

    def test_npy_is_memory_mapped_with_its_labels_beside_it(self, tmp_path):
        images = rng().integers(0, 256, (4, 3, 2, 1), dtype=np.uint8)
        np.save(tmp_path / "train_images.npy", images)
        np.save(tmp_path / "train_labels.npy", np.array([0, 1, 1, 0]))
        data = load(tmp_path / "train_images.npy")
        np.testing.assert_array_equal(data.images, images)
        base = data.images
        while base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert base is not None

    def test_npy_without_labels_is_refused(self, tmp_path):
        np.save(tmp_path / "images.npy", np.zeros((2, 3, 4, 1), np.uint8))
        np.save(tmp_path / "other.npy", np.zeros((2, 3, 4, 1), np.uint8))
        for name in ("images", "other"):
            with pytest.raises(
                FileNotFoundError, match=f"{name}.npy: no labels beside it; images.npy goes with labels"
            ):
                load(tmp_path / f"{name}.npy")

    def test_pickled_objects_are_refused(self, tmp_path):
        np.savez(tmp_path / "set.npz", images=np.array([{}, {}], object), labels=[0, 0])
        with pytest.raises(ValueError, match=r"set.npz: not a readable NumPy file of plain arrays: .*allow_pickle"):
            load(tmp_path / "set.npz")

    def test_a_damaged_file_is_named(self, tmp_path):
        (tmp_path / "set.npz").write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(ValueError, match=r"set.npz: not a readable NumPy file"):
            load(tmp_path / "set.npz")

    def test_other_contents_are_refused(self, tmp_path):
        np.savez(tmp_path / "set.npz", pictures=[1], labels=[2])
        with pytest.raises(ValueError, match=r"set.npz: holds pictures, labels; expected images and labels"):
            load(tmp_path / "set.npz")
