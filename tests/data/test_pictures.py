"""Picture files and folders of them, read at once or when needed, made here."""

import math
import threading

import numpy as np
import pytest
from data_files import rng

from gpucnn import data as data_
from gpucnn.data import Loader, PictureFiles, load, read_image, read_image_folder

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def save_picture(path, h=4, w=6, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng(seed).integers(0, 256, (h, w, 3) if mode == "RGB" else (h, w), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


class TestPictures:
    def test_rgb_pixels_come_as_they_are_saved(self, tmp_path):
        pixels = save_picture(tmp_path / "a.png")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
        assert read_image(str(tmp_path / "a.png")).dtype == np.uint8

    def test_gray_has_one_channel_and_is_itu_601_luma(self, tmp_path):
        pixels = save_picture(tmp_path / "a.png").astype(int)
        gray = read_image(tmp_path / "a.png", mode="L")
        assert gray.shape == (4, 6, 1)
        luma = pixels @ [0.299, 0.587, 0.114]
        assert np.abs(gray[..., 0] - luma).max() <= 1

    def test_what_is_transparent_looks_like_white_paper(self, tmp_path):
        drawn = np.zeros((3, 4, 4), np.uint8)  # all black, and all of it transparent
        drawn[1, 2] = (0, 0, 0, 255)
        Image.fromarray(drawn, "RGBA").save(tmp_path / "a.png")
        expected = np.full((3, 4, 1), 255)
        expected[1, 2] = 0
        np.testing.assert_array_equal(read_image(tmp_path / "a.png", mode="L"), expected)

    @pytest.mark.parametrize(
        ("orientation", "lies"),
        [(1, lambda a: a), (3, lambda a: np.rot90(a, 2)), (6, np.rot90), (8, lambda a: np.rot90(a, -1)),
         (2, np.fliplr), (99, lambda a: a)],
    )  # fmt: skip
    def test_a_photo_is_upright_as_its_camera_was_held(self, tmp_path, orientation, lies):
        """`lies`: how the pixels lie in a file that is marked so."""
        seen = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(lies(seen))).save(tmp_path / "photo.png", exif=exif)
        np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), seen)

    def test_damaged_notes_of_a_camera_leave_the_picture(self, tmp_path):
        seen = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
        Image.fromarray(seen).save(tmp_path / "photo.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
        np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), seen)

    def test_a_gray_picture_as_rgb_has_three_equal_channels(self, tmp_path):
        pixels = save_picture(tmp_path / "a.png", mode="L")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(pixels[..., None], 3, 2))

    def test_black_and_white_are_0_and_255(self, tmp_path):
        bits = np.array([[True, False, True], [False, False, True]])
        Image.fromarray(bits).save(tmp_path / "bits.png")
        np.testing.assert_array_equal(read_image(tmp_path / "bits.png", mode="L")[..., 0], bits * 255)

    def test_size_is_height_and_width(self, tmp_path):
        save_picture(tmp_path / "a.png", 4, 6)
        assert read_image(tmp_path / "a.png", size=(8, 5)).shape == (8, 5, 3)

    def test_more_than_8_bits_are_refused(self, tmp_path):
        Image.fromarray(np.zeros((3, 4), np.uint16)).save(tmp_path / "deep.png")
        with pytest.raises(ValueError, match=r"deep.png: has more than 8 bits a channel \(mode I;16\)"):
            read_image(tmp_path / "deep.png")

    def test_arguments_that_make_no_sense_are_refused(self, tmp_path):
        save_picture(tmp_path / "a.png")
        with pytest.raises(ValueError, match=r'mode must be "RGB" or "L" \(gray\), got \'CMYK\''):
            read_image(tmp_path / "a.png", mode="CMYK")
        for size in ((0, 3), (3,), 8, (8.0, 9.0), np.array([8, 9]), "89"):
            with pytest.raises(ValueError, match=r"size must be \(height, width\), got"):
                read_image(tmp_path / "a.png", size=size)

    def test_a_missing_picture_is_file_not_found(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no picture .*none.png"):
            read_image(tmp_path / "none.png")


class TestImageFolder:
    @pytest.fixture
    def animals(self, tmp_path):
        """dog/ has b.png and sub/a.png, cat/ one picture; .hidden/, macOS's ._b.png and notes.txt are none."""
        folder = tmp_path / "animals"
        self.dog = save_picture(folder / "dog" / "b.png", seed=1)
        save_picture(folder / "dog" / "sub" / "a.png", seed=2)
        self.cat = save_picture(folder / "cat" / "c.PNG", seed=3)
        save_picture(folder / ".hidden" / "d.png")
        (folder / "dog" / "notes.txt").write_text("no picture")
        (folder / "dog" / "._b.png").write_text("no picture")
        return folder

    def test_sub_folders_are_classes_sorted_by_name(self, animals):
        data = read_image_folder(animals)
        assert data.classes == ("cat", "dog")
        assert data.labels.tolist() == [0, 1, 1]
        np.testing.assert_array_equal(data.images[0], self.cat)
        np.testing.assert_array_equal(data.images[1], self.dog)
        assert data.name == "animals"

    def test_load_takes_mode_and_size(self, animals):
        assert load(animals, mode="L", size=(3, 5)).images.shape == (3, 3, 5, 1)

    def test_pictures_of_two_sizes_need_a_size(self, animals):
        save_picture(animals / "dog" / "z.png", 5, 6)
        with pytest.raises(ValueError, match=r"z.png is 5×6, but .*c.PNG is 4×6: give size=\(height, width\)"):
            load(animals)
        assert load(animals, size=(4, 6)).images.shape == (4, 4, 6, 3)

    @pytest.mark.parametrize("damage", [b"", b"no picture at all", "cut"])
    def test_a_damaged_picture_is_named(self, animals, damage):
        path = animals / "dog" / "b.png"
        path.write_bytes(path.read_bytes()[:-40] if damage == "cut" else damage)
        with pytest.raises(ValueError, match=r"dog.b.png: not a readable picture"):
            load(animals)

    def test_a_class_without_pictures_is_named(self, animals):
        (animals / "emu").mkdir()
        with pytest.raises(FileNotFoundError, match=r"emu: no pictures \(.bmp .gif .* .webp\) for this class"):
            load(animals)

    def test_a_folder_without_sub_folders_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no sub-folders; a folder of pictures has one for each class"):
            read_image_folder(tmp_path)

    def test_in_one_piece_it_is_split_80_to_20(self, tmp_path):
        for n in range(20):
            save_picture(tmp_path / "ab"[n % 2] / f"{n:02}.png", seed=n)
        train, test = load(tmp_path, split="train"), load(tmp_path, split="test")
        assert (len(train), len(test)) == (16, 4)
        assert np.bincount(test.labels).tolist() == [2, 2]

    def test_hidden_folders_inside_of_a_class_are_left_out(self, animals):
        save_picture(animals / "cat" / ".ipynb_checkpoints" / "c-checkpoint.png", seed=9)
        save_picture(animals / "cat" / "sub" / ".thumbs" / "c.png", seed=9)
        assert load(animals).labels.tolist() == [0, 1, 1]

    @pytest.mark.parametrize("held_out", ["test", "val", "Valid", "validation"])
    def test_folders_train_and_test_above_the_classes_are_the_split(self, tmp_path, held_out):
        for n, part in enumerate(["train", held_out]):
            for name in ("a", "b"):
                save_picture(tmp_path / part / name / "1.png", seed=n)
        train, test = load(tmp_path, split="train"), load(tmp_path, split="test")
        assert train.classes == test.classes == ("a", "b")
        assert not np.array_equal(train.images, test.images)
        np.testing.assert_array_equal(load(tmp_path).images, np.concatenate([train.images, test.images]))

    def test_train_and_test_must_have_the_same_classes(self, tmp_path):
        for name in ("train/a", "train/b", "test/a", "test/c"):
            save_picture(tmp_path / name / "1.png")
        with pytest.raises(ValueError, match="must have the same classes: only one of them has b, c"):
            load(tmp_path, split="train")


class TestJpeg:
    @pytest.fixture
    def photo(self, tmp_path):
        """600×800, smooth with some noise, and its path."""
        y, x = np.mgrid[0:600, 0:800]
        waves = np.stack([np.sin(x / 40) + np.cos(y / 50), np.sin(x / 9 + y / 30), np.cos(x * y / 9000)], -1)
        pixels = (60 * waves + 128 + rng().normal(0, 5, waves.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
        return tmp_path / "photo.jpg"

    @pytest.mark.parametrize("size", [(30, 40), (75, 60), (150, 200), (700, 900)])
    def test_one_that_is_made_smaller_looks_as_if_it_had_been_decoded_whole(self, photo, size):
        whole = Image.open(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        assert np.abs(read_image(photo, size=size).astype(int) - np.asarray(whole)).max() <= 3

    def test_one_that_is_far_larger_is_not_decoded_whole(self, photo, monkeypatch):
        decoded = []
        load_ = Image.Image.load
        monkeypatch.setattr(Image.Image, "load", lambda image: (decoded.append(image.size), load_(image))[1])
        read_image(photo, size=(20, 20))
        assert max(map(math.prod, decoded)) == 75 * 100


class TestPictureFiles:
    """The pictures of the folder `made`, as they are read when they are needed."""

    @pytest.fixture
    def made(self, tmp_path):
        """23 pictures of 4×6 in two classes, each one other than the rest."""
        for n in range(23):
            save_picture(tmp_path / "photos" / "ab"[n % 2] / f"{n:02}.png", seed=n)
        return tmp_path / "photos"

    def lazy(self, folder, **arguments):
        return read_image_folder(folder, in_memory=False, **arguments)

    @pytest.fixture
    def read(self, monkeypatch):
        """Of which files the pixels are read, and in which threads."""
        read = []

        def counted(path, **arguments):
            read.append((path.name, threading.current_thread().name))
            return read_image(path, **arguments)

        monkeypatch.setattr("gpucnn.data.pictures.read_image", counted)
        return read

    def test_indexing_gives_what_an_array_in_memory_would(self, made):
        array, lazy = load(made, in_memory=True).images, self.lazy(made).images
        assert isinstance(array, np.ndarray)
        assert isinstance(lazy, PictureFiles)
        assert (lazy.shape, lazy.dtype, lazy.ndim, len(lazy)) == (array.shape, array.dtype, 4, 23)
        mask = np.arange(23) % 5 == 1
        for index in (0, -1, np.int64(4), slice(2, 9, 3), slice(None, None, -4), [3, 3, -2], [], mask, slice(50, 60)):
            np.testing.assert_array_equal(lazy[index], array[index], strict=True)
        np.testing.assert_array_equal(np.asarray(lazy), array)
        assert np.asarray(lazy, np.float32).dtype == np.float32
        with pytest.raises(IndexError, match="index 23 is out of bounds"):
            lazy[23]

    @pytest.mark.parametrize("size", [None, (3, 5)])
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_batches_are_those_of_the_images_in_memory(self, made, mode, size):
        at_once = Loader(load(made, mode=mode, size=size), 5, shuffle=True)
        for (x, labels), (y, others) in zip(at_once, Loader(self.lazy(made, mode=mode, size=size), 5, shuffle=True),
                                            strict=True):  # fmt: skip
            np.testing.assert_array_equal(x, y, strict=True)
            np.testing.assert_array_equal(labels, others)

    def test_only_what_is_asked_for_is_read_and_in_threads(self, made, read):
        photos = self.lazy(made, size=(2, 3))
        assert read == []
        first, held_out = photos.subset(slice(2, 6)).subset([3, 0]), photos.subset([12, 1])
        assert read == []
        assert held_out.images[0].shape == (2, 3, 3)
        np.testing.assert_array_equal(first.images, photos.images[[5, 2]])
        assert sorted(name for name, _ in read[1:]) == ["04.png", "04.png", "10.png", "10.png"]
        assert all(thread.startswith("gpucnn-pictures") for _, thread in read)

    def test_the_same_images_are_held_out_as_of_those_in_memory(self, made):
        Image.open(made / "a" / "02.png").save(made / "a" / "again.png", compress_level=1)  # other bytes, equal pixels
        Image.open(made / "b" / "05.png").save(made / "b" / "again.bmp")
        sides = [[set_.labels.tolist() for set_ in data_.split(whole, 0.3)] for whole in (load(made), self.lazy(made))]
        assert sides[0] == sides[1]
        training, held_out = data_.split(self.lazy(made), 0.3)
        data_.check_disjoint(training, held_out)

    def test_a_picture_on_both_sides_is_found_in_files_and_in_memory(self, made):
        whole, lazy = load(made), self.lazy(made)
        for train, test in ((lazy, lazy), (lazy, whole), (whole, lazy)):
            assert data_.overlap(train.subset(slice(4, 9)), test.subset([0, 7, 8])) == [(3, 1), (4, 2)]

    def test_what_takes_more_than_2_gib_stays_in_its_files_unless_memory_is_asked_for(self, made, monkeypatch):
        assert isinstance(load(made).images, np.ndarray)
        monkeypatch.setattr("gpucnn.data.pictures.IN_MEMORY", 23 * 4 * 6 * 3 - 1)
        assert isinstance(load(made).images, PictureFiles)
        assert isinstance(load(made, in_memory=True).images, np.ndarray)

    def test_another_size_is_found_before_the_pixels_are_read(self, made, read):
        save_picture(made / "b" / "large.png", 4, 7)
        with pytest.raises(ValueError, match=r"large.png is 4×7, but .*00.png is 4×6: give size=\(height, width\)"):
            self.lazy(made)
        assert len(read) == 1

    def test_a_picture_that_lies_on_its_side_fits_when_it_is_upright(self, made):
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels = rng(50).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(np.rot90(pixels)).save(made / "a" / "side.png", exif=exif)
        photos = self.lazy(made)
        np.testing.assert_array_equal(photos.images[12], pixels)

    def test_a_picture_that_has_changed_since_is_named(self, made):
        photos = self.lazy(made)
        save_picture(made / "a" / "04.png", 5, 6)
        with pytest.raises(ValueError, match=r"04.png is 5×6, but .*00.png is 4×6"):
            photos.images[:]
        (made / "a" / "04.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"there is no picture .*04.png") as caught:
            list(Loader(photos, 5))
        assert any("prepared batch 0 of epoch 0" in note for note in caught.value.__notes__)

    def test_files_are_paths_or_texts_and_there_must_be_some(self, made):
        pictures = PictureFiles([str(made / "a" / "02.png"), made / "b" / "01.png"], mode="L")
        np.testing.assert_array_equal(pictures[1], read_image(made / "b" / "01.png", mode="L"))
        assert len(set(pictures.digests())) == 2
        np.testing.assert_array_equal(PictureFiles(made.glob("b/*"), size=(2, 3)).shape, (11, 2, 3, 3))
        with pytest.raises(TypeError, match=r"files must be several paths, got '.*'; for one of them read_image"):
            PictureFiles(str(made / "a" / "02.png"))
        with pytest.raises(ValueError, match="PictureFiles: there must be files, got none"):
            PictureFiles([])
        with pytest.raises(ValueError, match=r'mode must be "RGB" or "L" \(gray\), got \'CMYK\''):
            PictureFiles([made / "a" / "02.png"], mode="CMYK", size=(3, 3))

    def test_a_file_that_is_no_picture_is_named_before_training(self, made):
        (made / "b" / "broken.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match=r"broken.png: not a readable picture"):
            self.lazy(made)

    def test_no_thread_is_left(self, made):
        photos = self.lazy(made)
        list(Loader(photos, 5))
        batches = iter(Loader(photos, 5))
        next(batches)
        batches.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("gpucnn-")
                    and thread.name != "gpucnn"]  # fmt: skip
