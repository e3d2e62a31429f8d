"""Files that are written whole or not at all, whatever happens meanwhile; and what JSON in them can hold."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from threading import get_ident
from typing import Any

import numpy as np

# A process writes at least every 30 s (the time limit of a download), so what has not changed for so long is of a dead
# one. Process numbers would not tell: the folder may be shared with other machines.
ABANDONED = 3600.0


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: it becomes `path` when the block ends well, and is removed when it does not.

    The mode of a file that is there stays; of a link it is the file behind it that is replaced. Removes what processes
    that were killed have left of earlier attempts.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}.tmp")
    try:
        if mode is not None:
            temporary.touch(0o600)  # what was private is not to be readable meanwhile
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an OSError of the block say that it is `path` which can't be written: that of a full disk names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"can't write {path}: {error.strerror}") from error  # of the same subclass


def checked_path(op: str, name: str, path: Any) -> Path:
    """The path as a Path. Raises TypeError for what is none, ValueError for what nothing can be called."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{op}: {name} must be a text or a Path, got {type(path).__name__} {path!r:.100}")
    if "\0" in str(path):
        raise ValueError(f"{op}: {name} must not have a NUL in it, got {str(path)!r:.100}")
    return Path(path)


def check_writable(path: Path) -> None:
    """Raises what `write_atomically` would, if no file can be made there: better now than after hours of work."""
    _check_place(path)
    with naming(path), TemporaryFile(dir=path.parent):
        pass


def make_folder(folder: Path, variable: str) -> None:
    """Make a folder, if need be, for a cache. An OSError, also of one that can't be written to, names the environment
    variable by which another is chosen."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        said = f"can't write to {folder}: {error.strerror}; {variable} chooses another place"
        raise OSError(error.errno, said) from error


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"can't write {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"can't write {path}: it is a folder; name a file in it")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, then put it in the place of `path`: whole or not at all.

    Raises FileNotFoundError if there is no such folder, IsADirectoryError if `path` is one, and what OSError says why
    it can't be written, such as a full disk: `path` is as it was then.
    """
    _check_place(path)
    with naming(path), replacing(path) as temporary:
        write(temporary)


def write_text(path: Path, text: str) -> None:
    """Make the file of this text, in UTF-8, as `write_atomically` does."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, "utf-8")

    write_atomically(path, write)


def unfinished(folder: Path, name: str = ".+") -> Iterator[Path]:
    """The files of a folder that `replacing` has named, to become one of that name (a pattern)."""
    pattern = re.compile(rf"\.{name}\.\d+\.\d+\.tmp")
    return (path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file())


def _sweep(path: Path) -> None:
    with suppress(OSError):  # a folder may be written to that can't be listed
        for other in unfinished(path.parent, re.escape(path.name)):
            with suppress(OSError):  # another process was quicker, or it is another user's
                if time.time() - other.stat().st_mtime > ABANDONED:
                    other.unlink()


def _sync(folder: Path) -> None:
    """Lets the new name outlive a loss of power too, where a folder can be synchronised."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it can be written to, but not listed
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(op: str, value: Any, name: str = "") -> Any:
    """The value as JSON can hold it: NumPy's numbers as plain ones. Raises TypeError that names what it can't hold."""
    if isinstance(value, Mapping):
        return {
            _scalar(op, key, f"{name}'s key"): plain(op, item, f"{name}.{key}" if name else str(key))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(op, item, f"{name}.{i}") for i, item in enumerate(value)]
    return _scalar(op, value, name)


def _scalar(op: str, value: Any, name: str) -> Any:
    found = value.item() if isinstance(value, np.generic) else value
    if found is None or isinstance(found, bool | int | float | str):
        return found
    raise TypeError(
        f"{op}: {name}={value!r:.100} is nothing that JSON can hold; it holds numbers, texts, lists and dicts of them"
    )
