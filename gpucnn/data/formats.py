"""Reading data sets from files: IDX, CIFAR's two versions, NumPy files. Nothing else is unpickled.

A reader of a format that has its own training and test part takes ``split``: "train", "test" or None for all of it.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.data.dataset import Dataset
from gpucnn.data.dataset import split as split_dataset
from gpucnn.data.download import DEFLATED
from gpucnn.data.lazy import LazyImages
from gpucnn.names import showable

Array = NDArray[Any]
Part = tuple[Array, Array]  # images [N, H, W, C], labels [N]

MOST_CLASSES = 1 << 16  # a larger label is a damaged file's, not the number of a class

# ---- IDX (MNIST, Fashion-MNIST, EMNIST, …) --------------------------------------------------------------------------

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_NAME = re.compile(r"(.*?)(train|t10k|test)[-_.](images|labels)[-_.]idx[13][-_.]ubyte(?:\.gz)?")


def read_idx(path: Path) -> Array:
    """The array in an IDX file (yann.lecun.com/exdb/mnist), gzipped or not; one that is not is memory-mapped.

    Raises ValueError naming the file and the numbers if the header is not IDX's or the length is not the header's.
    """
    path = Path(path)
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    if not zipped:
        with path.open("rb") as stream:
            dtype, shape, start = _idx_header(path, stream)
        _check_length(path, dtype, shape, path.stat().st_size - start)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.asarray(np.memmap(path, dtype, "r", start, shape))
    try:
        with gzip.open(path, "rb") as stream:
            dtype, shape, _ = _idx_header(path, stream)
            # read piece by piece, so that a header that promises terabytes costs nothing
            size, body = math.prod(shape) * dtype.itemsize, bytearray()
            if size > DEFLATED * path.stat().st_size:
                raise ValueError(
                    f"{path}: its header says {size} bytes, more than {path.stat().st_size} zipped bytes can become"
                )
            while len(body) <= size and (chunk := stream.read(1 << 20)):
                body += chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from error
    _check_length(path, dtype, shape, len(body))
    return np.frombuffer(body, dtype).reshape(shape)


def _idx_header(path: Path, stream: IO[bytes] | gzip.GzipFile) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES or magic[3] == 0:
        raise ValueError(
            f"{path}: not an IDX file: it begins with {magic.hex(' ') or 'nothing'}, expected 00 00, a type "
            "(08 for bytes) and the number of dimensions"
        )
    dims = stream.read(4 * magic[3])
    if len(dims) < 4 * magic[3]:
        raise ValueError(f"{path}: ends inside the header: {4 + len(dims)} of {4 + 4 * magic[3]} bytes")
    shape = tuple(int(n) for n in np.frombuffer(dims, ">u4"))
    dtype = np.dtype(_IDX_DTYPES[magic[2]])
    if len(shape) > 64 or (0 in shape and math.prod(n or 1 for n in shape) * dtype.itemsize >= 1 << 63):
        raise ValueError(f"{path}: its header says a shape that no array can have, {'×'.join(map(str, shape))}")
    return dtype, shape, 4 + len(dims)


def _check_length(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], found: int) -> None:
    expected = math.prod(shape) * dtype.itemsize
    if found != expected:
        what = "is cut short" if found < expected else "is too long"
        raise ValueError(
            f"{path}: {what}: its header says {'×'.join(map(str, shape))} values of {dtype.itemsize} bytes = "
            f"{expected} bytes, but {'at least ' if found > expected else ''}{found} follow"
        )


def idx_files(folder: Path, prefix: str | None = None) -> dict[tuple[str, str], Path]:
    """The IDX files of ``folder`` by (part, kind), like ("train", "images"), whose names begin with ``prefix``.

    Known are all usual names: train-images-idx3-ubyte, t10k-labels.idx1-ubyte.gz, emnist-letters-test-images-….
    Raises ValueError if there are several sets and ``prefix`` does not say which.
    """
    sets: dict[str, dict[tuple[str, str], Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():  # so x wins over x.gz
        match = _IDX_NAME.fullmatch(path.name)
        if match and path.is_file() and prefix in (None, match[1].rstrip("-_.")):
            part = "train" if match[2] == "train" else "test"
            sets.setdefault(match[1], {})[part, match[3]] = path
    if len(sets) > 1:
        names = ", ".join(str(folder / name.rstrip("-_.")) for name in sorted(sets))
        raise ValueError(f"{folder} holds several IDX data sets: load one of {names}")
    return next(iter(sets.values()), {})


def read_idx_files(
    files: dict[tuple[str, str], Path], name: str, classes: tuple[str, ...] | None, split: str | None
) -> Dataset:
    """The data set in ``files`` (see `idx_files`). EMNIST's images are stored on their side: they are set up."""

    def read(part: str) -> Part:
        for kind in ("images", "labels"):
            if (part, kind) not in files:
                raise FileNotFoundError(f"{name}: no {part} {kind} beside {', '.join(map(str, files.values()))}")
        images, labels = read_idx(files[part, "images"]), read_idx(files[part, "labels"])
        if images.ndim != 3 or labels.ndim != 1:
            raise ValueError(
                f"{files[part, 'images']} and its labels must have 3 and 1 dimensions, "
                f"got shapes {images.shape} and {labels.shape}"
            )
        if files[part, "images"].name.startswith("emnist-"):
            images = images.transpose(0, 2, 1)
        return images[..., None], labels

    parts = _parts(read, sorted({part for part, _ in files}, reverse=True), split)
    if classes is None:
        labels = [read_idx(path) for (_, kind), path in files.items() if kind == "labels"]
        classes = _emnist_classes(files) or _numbered(labels, name)
    return _joined(parts, classes, name)


def _emnist_classes(files: dict[tuple[str, str], Path]) -> tuple[str, ...] | None:
    """From a line like ``10 65 97`` in emnist-*-mapping.txt: label 10 is "A" and "a". A label without a line is "?"."""
    path = next(iter(files.values()))
    mapping = path.with_name(path.name.partition("-t")[0] + "-mapping.txt")
    if not (path.name.startswith("emnist-") and mapping.is_file()):
        return None
    try:
        rows = [line.split() for line in mapping.read_text().splitlines() if line.strip()]
        names = {int(row[0]): chr(int(row[1])) for row in rows}
    except (ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"{mapping}: each line must be a label and the number of a character: {error}") from error
    if not names or not 0 <= min(names) <= max(names) < MOST_CLASSES:
        raise ValueError(f"{mapping}: its labels must be from 0 to {MOST_CLASSES - 1}, and there must be some")
    return tuple(names.get(label, "?") for label in range(max(names) + 1))


# ---- CIFAR-10 and CIFAR-100 -----------------------------------------------------------------------------------------

# what each version is made of: training files, test file, file of the class names, label bytes or key
_CIFAR: dict[str, tuple[tuple[str, ...], str, str, int | str]] = {
    "binary 10": (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1),
    "binary 100": (("train.bin",), "test.bin", "fine_label_names.txt", 2),
    "python 10": (tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", "labels"),
    "python 100": (("train",), "test", "meta", "fine_labels"),
}


def cifar_version(folder: Path) -> str | None:
    """Which complete CIFAR version lies in ``folder``: "binary 10", "binary 100", "python 10", "python 100" or None."""
    for version, (train, test, names, _) in _CIFAR.items():
        if all((folder / file).is_file() for file in (*train, test, names)):
            return version
    return None


def read_cifar(folder: Path, version: str, name: str, split: str | None) -> Dataset:
    """CIFAR-10 or CIFAR-100 (its 100 fine labels) from ``folder``, in the version that `cifar_version` found."""
    train, test, names, label = _CIFAR[version]

    def read(part: str) -> Part:
        files = [folder / file for file in (train if part == "train" else (test,))]
        rows = [_cifar_binary(f, label) if isinstance(label, int) else _cifar_python(f, label) for f in files]
        planes = np.concatenate([planes for planes, _ in rows]).reshape(-1, 3, 32, 32)
        return planes.transpose(0, 2, 3, 1).copy(), np.concatenate([labels for _, labels in rows])

    if isinstance(label, int):
        try:
            text = (folder / names).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{folder / names}: no text in UTF-8: {error}") from error
        classes = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        meta = _entry(_unpickle(folder / names), folder / names, "label_names", "fine_label_names")
        if not isinstance(meta, list) or not all(isinstance(name, str) for name in meta):
            raise ValueError(f"{folder / names}: the names of the classes must be a list of texts")
        classes = tuple(meta)
    return _joined(_parts(read, ["train", "test"], split), classes, name)


def _cifar_binary(path: Path, label_bytes: int) -> Part:
    record, size = label_bytes + 3072, path.stat().st_size
    if size % record:
        raise ValueError(f"{path}: {size} bytes are not a whole number of {record}-byte records")
    rows = np.fromfile(path, np.uint8).reshape(-1, record)
    return rows[:, label_bytes:], rows[:, label_bytes - 1]


def _cifar_python(path: Path, label_key: str) -> Part:
    batch = _unpickle(path)
    images, labels = _entry(batch, path, "data"), _entry(batch, path, label_key)
    try:
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise TypeError("its labels are something else")  # which may be too large to be shown
        return images.to_numpy().reshape(-1, 3072), np.array(labels, np.int64)
    except Exception as error:  # whatever else the pickle put there
        raise ValueError(f"{path}: 'data' must be bytes [N, 3072], {label_key!r} a list of numbers: {error}") from error


def _entry(batch: Any, path: Path, *keys: str) -> Any:
    for key in keys:
        if isinstance(batch, dict) and key in batch:
            return batch[key]
    raise ValueError(f"{path}: no {' or '.join(keys)} in it: not a batch of CIFAR's Python version")


class _PickledArray:
    """Stands in for a numpy array of bytes while its pickle is read: keeps the pieces, runs nothing of NumPy's."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran_order, self.raw = state

    def to_numpy(self) -> NDArray[np.uint8]:
        if not isinstance(self.dtype, _PickledBytes):
            raise TypeError("its elements are no bytes")
        if not isinstance(self.raw, str | bytes | bytearray):
            raise TypeError("its content is no bytes")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw  # Python 2 wrote bytes as str
        return np.frombuffer(raw, np.uint8).reshape(self.shape, order="F" if self.fortran_order else "C")


class _PickledBytes:
    """Stands in for numpy.dtype("u1"), the only one that CIFAR has."""

    def __init__(self, code: str, align: Any, copy: Any) -> None:
        if code != "u1":
            shown = repr(code[:20]) if isinstance(code, str) else type(code).__name__
            raise pickle.UnpicklingError(f"it has an array of {shown}")

    def __setstate__(self, state: Any) -> None:
        """Byte order, fields and such say nothing about bytes."""


def _reconstruct(kind: Any, shape: Any, code: Any) -> _PickledArray:
    return _PickledArray()


_UNPICKLED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _PickledBytes,
}


class _CifarUnpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers, strings and, by stand-ins, arrays of bytes. Looks up nothing else by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _UNPICKLED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _UNPICKLED[module, name]


def _check_memo(content: bytes) -> None:
    """Raises ValueError for a pickle that is cut short, or whose memo would take more memory than the file has bytes.

    One instruction of five bytes would make the unpickler fill a table of 64 GB.
    """
    for instruction, argument, _ in pickletools.genops(content):
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise ValueError(f"it puts something into place {argument} of a memo, and has {len(content)} bytes")


def _unpickle(path: Path) -> Any:
    try:
        content = path.read_bytes()
        _check_memo(content)
        return _CifarUnpickler(io.BytesIO(content), encoding="latin1").load()
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(
            f"{path}: refused: {error} (only the plain arrays of CIFAR's Python version are unpickled; "
            "the binary version needs no pickle)"
        ) from error


# ---- NumPy files ----------------------------------------------------------------------------------------------------


def read_numpy(path: str | Path, split: str | None = None) -> Dataset:
    """Images [N, H, W] or [N, H, W, C] and labels from .npz or .npy; pickled objects are refused.

    A .npz has ``images``, ``labels`` and, if wanted, ``classes``; or, as Keras has it, ``x_train``, ``y_train``,
    ``x_test`` and ``y_test``. A .npy is memory-mapped and has its labels beside it: ``train_images.npy`` and
    ``train_labels.npy``.
    """
    path = Path(path)
    try:
        arrays = _npz_arrays(path) if path.suffix == ".npz" else _npy_arrays(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path}: not a readable NumPy file of plain arrays: {error}") from error

    known = {"whole": ("images", "labels"), "train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
    sets = {part: keys for part, keys in known.items() if all(key in arrays for key in keys)}
    if not sets:
        raise ValueError(f"{path}: holds {', '.join(arrays) or 'nothing'}; expected images and labels")

    def read(part: str) -> Part:
        if part not in sets:
            raise ValueError(f"{path}: no {part} part: it holds {', '.join(arrays)}")
        images, labels = (arrays[key] for key in sets[part])
        return images[..., None] if images.ndim == 3 else images, labels

    labels = [arrays[keys[1]] for keys in sets.values()]
    for part in labels:
        if part.size and part.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: labels must be the numbers of classes, got {part.dtype}; for names, store "
                "classes, labels = numpy.unique(names, return_inverse=True)"
            )
    classes = tuple(map(str, arrays["classes"])) if "classes" in arrays else _numbered(labels, str(path))
    if "whole" in sets:
        return part_of(_joined([read("whole")], classes, path.stem), split)
    return _joined(_parts(read, sets, split), classes, path.stem)


def has_keras_test(path: Path) -> bool:
    """Whether a .npz has a test part beside a training part. Raises ValueError for a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"x_train.npy", "x_test.npy"} <= set(archive.namelist())
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: not a readable NumPy file of plain arrays: {error}") from error


def _npz_arrays(path: Path) -> dict[str, Array]:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        size, limit = sum(member.file_size for member in file.zip.infolist()), DEFLATED * path.stat().st_size
        if size > limit:
            raise ValueError(f"its arrays are said to be {size} bytes, more than it can hold")
        for member in file.zip.infolist():
            _check_member(file.zip, member)
        return dict(file)


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raises ValueError if an array's header promises more than its file in the archive holds: NumPy believes it."""
    with archive.open(member) as stream:
        if stream.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            raise ValueError(f"{member.filename} is no array")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} is said to be {shape} of {dtype}, in {member.file_size} bytes")


def _npy_arrays(path: Path) -> dict[str, Array]:
    labels = path.with_name(path.name.replace("images", "labels"))
    if labels == path or not labels.is_file():
        raise FileNotFoundError(f"{path}: no labels beside it; images.npy goes with labels.npy")
    return {
        "images": np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)),
        "labels": np.array(np.load(labels, mmap_mode="r", allow_pickle=False)),  # so its size is checked first
    }


# ---- parts ----------------------------------------------------------------------------------------------------------


def part_of(dataset: Dataset, split: str | None) -> Dataset:
    """A data set that comes in one piece, in two: "train" is 80 % of it and "test" the rest, always the same ones."""
    if split is None:
        return dataset
    train, test = split_dataset(dataset, 0.2)
    return train if split == "train" else test


def _parts(read: Callable[[str], Part], present: Iterable[str], split: str | None) -> list[Part]:
    return [read(part) for part in ([split] if split else present)]


def _joined(parts: list[Part], classes: tuple[str, ...], name: str) -> Dataset:
    if len(parts) == 1:
        return dataset_of(*parts[0], classes, name)
    shapes = [images.shape[1:] for images, _ in parts]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name}: training images are {shapes[0]} and test images {shapes[1]}: load one split")
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return dataset_of(images, labels, classes, name)


def dataset_of(images: Array | LazyImages, labels: Array, classes: tuple[str, ...], name: str) -> Dataset:
    try:
        return Dataset(images, labels, tuple(map(showable, classes)), showable(name))
    except TypeError as error:  # to the caller it is the file that is wrong, not an argument
        raise ValueError(str(error)) from error


def _numbered(labels: list[Array], name: str) -> tuple[str, ...]:
    largest = max((int(part.max()) for part in labels if part.size), default=-1)
    if largest >= MOST_CLASSES:
        raise ValueError(f"{name}: labels must be the numbers of classes, up to {MOST_CLASSES - 1}, got {largest}")
    return tuple(str(i) for i in range(largest + 1))
