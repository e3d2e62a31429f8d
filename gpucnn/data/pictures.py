"""Pictures in files: one of them as an array, and a folder of them as a data set, read at once or when needed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpucnn.data.dataset import Dataset
from gpucnn.data.formats import dataset_of, part_of
from gpucnn.data.lazy import IN_MEMORY, LazyImages

S = TypeVar("S")
T = TypeVar("T")

MOST_PIXELS = 1 << 26  # larger pictures are taken for bombs: a few kB that become GBs
# Pillow would open others too, one of them (EPS) by running another program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PICTURES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def read_image(path: str | Path, *, mode: str = "RGB", size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A picture file as uint8 [H, W, C], in ``mode`` "RGB" or "L" (gray), resized to ``size`` (H, W) if given.

    A photo is upright, as its EXIF data says that the camera was held.

    Raises FileNotFoundError if there is no such file, ValueError naming it if it cannot be read as an 8-bit picture.
    """
    Image = _pillow()
    _check(mode, size)
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"it has {opened.width}×{opened.height} pixels, more than {MOST_PIXELS:,}")
            kind = opened.mode
            if size is not None:  # a JPEG that is many times larger is decoded at ½, ¼ or ⅛: in half the time
                opened.draft(None, (3 * max(size), 3 * max(size)))
            upright = _upright(opened)
            if upright.has_transparency_data:  # as it looks on paper: without this, transparent would mean black
                paper = Image.new("RGBA", upright.size, "white")
                picture = Image.alpha_composite(paper, upright.convert("RGBA")).convert(mode)
            else:
                picture = upright.convert(mode)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture {path}") from None
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path}: not a readable picture: {error}") from error
    if kind.startswith(("I", "F")):
        raise ValueError(f"{path}: has more than 8 bits a channel (mode {kind}); convert it to 8 bits first")
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels if mode == "RGB" else pixels[..., None]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('reading pictures needs Pillow: pip install "gpucnn[data]"') from error
    return Image


def _check(mode: str, size: tuple[int, int] | None) -> None:
    if mode not in ("RGB", "L"):
        raise ValueError(f'mode must be "RGB" or "L" (gray), got {mode!r}')
    if size is None:
        return
    whole = isinstance(size, Sequence) and len(size) == 2 and all(isinstance(n, Integral) for n in size)
    if not whole or min(size) < 1 or math.prod(size) > MOST_PIXELS:
        raise ValueError(f"size must be (height, width), got {size!r}; at most {MOST_PIXELS:,} pixels")


def _upright(picture: Any) -> Any:
    """A Pillow image turned and mirrored as its EXIF data says; as it is if that is damaged."""
    from PIL import ImageOps

    picture.load()  # whose own damage is an error
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # a damaged file can raise anything
        return picture


class PictureFiles(LazyImages):
    """Picture files as images uint8 [N, H, W, C], each read when it is asked for, several of them in threads.

    ``mode`` and ``size`` are those of `read_image`. Without ``size`` all must be of one size: ValueError names two that
    differ.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, files: Iterable[str | Path], *, mode: str = "RGB", size: tuple[int, int] | None = None) -> None:
        _pillow()
        _check(mode, size)
        if isinstance(files, str | Path):
            raise TypeError(f"PictureFiles: files must be several paths, got {files!r}; for one of them read_image")
        self.files, self.mode, self.size = [Path(file).absolute() for file in files], mode, size
        if not self.files:
            raise ValueError("PictureFiles: there must be files, got none")
        self._first = self.files[0]
        height, width = size or read_image(self._first, mode=mode).shape[:2]
        self.shape = (len(self.files), height, width, 1 if mode == "L" else 3)
        if size is None:
            for path, stored in zip(self.files, _in_threads(_stored_size, self.files), strict=True):
                if sorted(stored) != sorted((height, width)):  # its EXIF data may say that it lies on its side
                    raise self._of_another_size(path, *stored)

    def read(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def put(i: int) -> None:
            path = self.files[rows[i]]
            image = read_image(path, mode=self.mode, size=self.size)
            if image.shape != self.shape[1:]:
                raise self._of_another_size(path, *image.shape[:2])
            images[i] = image

        deque(_in_threads(put, range(len(rows))), maxlen=0)
        return images

    def _of_another_size(self, path: Path, height: int, width: int) -> ValueError:
        _, h, w, _ = self.shape
        return ValueError(
            f"{path} is {height}×{width}, but {self._first} is {h}×{w}: "
            "give size=(height, width), or --image-size, to resize all pictures"
        )


def _stored_size(path: Path) -> tuple[int, int]:
    """(H, W) in the file, before it is turned upright."""
    try:
        with _pillow().open(path, formats=_FORMATS) as opened:
            return opened.height, opened.width
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path}: not a readable picture: {error}") from error


def _in_threads(function: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """function(item) of each, in order, several at a time: Pillow and files let go of the interpreter lock."""
    from gpucnn.backends.numpy_parallel import thread_count  # it starts the NumPy backend

    with ThreadPoolExecutor(thread_count(), "gpucnn-pictures") as pool:
        for start in range(0, len(items), 1024):  # not millions of them in the pool
            yield from pool.map(function, items[start : start + 1024])


def class_folders(folder: Path) -> list[str]:
    """The names of the sub-folders of ``folder``, one a class, sorted; hidden ones are left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def part_folders(folder: Path) -> dict[str, Path] | None:
    """The folders of "train" and "test", which may be called val, valid or validation, if both are in ``folder``."""
    names = {name.lower(): name for name in class_folders(folder)}
    held_out = next((names[name] for name in ("test", "val", "valid", "validation") if name in names), None)
    return {"train": folder / names["train"], "test": folder / held_out} if held_out and "train" in names else None


def read_image_folder(
    folder: str | Path,
    split: str | None = None,
    *,
    mode: str = "RGB",
    size: tuple[int, int] | None = None,
    in_memory: bool | None = None,
) -> Dataset:
    """Pictures in one sub-folder per class, like torchvision's ImageFolder: classes and files sorted by name.

    Above the classes there may be a folder ``train`` and a folder ``test``, or else ``val``, ``valid`` or
    ``validation``, which is "test"; what else is beside these is left out. ``mode`` and ``size`` are
    those of `read_image`; without ``size`` all pictures must be of one size. Images that take more than 2 GiB stay in
    their files and are read when they are needed; ``in_memory`` True reads all of them at once, False none.

    Raises ValueError naming the file that differs or is damaged, FileNotFoundError for a class without pictures.
    """
    folder = Path(folder)
    folders = part_folders(folder)
    if folders is None:
        classes = class_folders(folder)
        pairs = _labelled(folder, classes)
    else:
        classes, others = class_folders(folders["train"]), class_folders(folders["test"])
        if classes != others:
            raise ValueError(
                f"{folders['train']} and {folders['test']} must have the same classes: only one of them has "
                f"{', '.join(sorted(set(classes) ^ set(others)))}"
            )
        pairs = [pair for part in ([split] if split else folders) for pair in _labelled(folders[part], classes)]
    files, labels = zip(*pairs, strict=True)
    pictures = PictureFiles(files, mode=mode, size=size)
    if in_memory is None:
        in_memory = math.prod(pictures.shape) <= IN_MEMORY
    images = pictures[:] if in_memory else pictures
    dataset = dataset_of(images, np.array(labels), tuple(classes), folder.name)
    return part_of(dataset, split) if folders is None else dataset


def _labelled(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The picture files of all classes, each with the number of its class."""
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in PICTURES)
        hidden = [any(part.startswith(".") for part in path.relative_to(folder / name).parts) for path in files]
        pictures = [(path, label) for path, is_hidden in zip(files, hidden, strict=True) if not is_hidden]
        if not pictures:
            raise FileNotFoundError(f"{folder / name}: no pictures ({' '.join(sorted(PICTURES))}) for this class")
        found += pictures
    if not found:
        raise FileNotFoundError(f"{folder}: no sub-folders; a folder of pictures has one for each class")
    return found
