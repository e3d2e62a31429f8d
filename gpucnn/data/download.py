"""Fetching the files of a data set: verified by SHA-256, put in place atomically, archives unpacked with care."""

from __future__ import annotations

import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import BadGzipFile
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING

from gpucnn.atomic import make_folder, naming, replacing

if TYPE_CHECKING:
    from tarfile import TarInfo

DEFLATED = 1032  # bytes that one byte of a gzip or zip file can become at most

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web: its name, the addresses that serve it, its size in bytes and its SHA-256."""

    name: str
    urls: tuple[str, ...]
    size: int
    sha256: str


def cache_folder() -> Path:
    """Where downloads are kept: ``GPUCNN_DATA``, or ``~/.cache/gpucnn``."""
    return Path(os.environ.get("GPUCNN_DATA") or "~/.cache/gpucnn").expanduser()


def fetch(file: RemoteFile, folder: Path, *, progress: Progress | None = None, timeout: float = 30.0) -> Path:
    """Downloads ``file`` into ``folder`` unless it is there already, and returns its path.

    ``progress(bytes so far, bytes in all)`` is called as the bytes come; without it, a terminal shows a bar. The file
    appears under its name only when size and SHA-256 are right. Raises RuntimeError that says what went wrong at
    each address.
    """
    from http.client import HTTPException

    path = folder / file.name
    if path.is_file() and _sha256(path) == file.sha256:
        return path
    make_folder(folder, "GPUCNN_DATA")
    failures = []
    for url in file.urls:
        try:
            with atomic_file(path) as out, _bar(file.name, progress) as report:
                _stream(url, file, out, report, timeout)
            return path
        except (OSError, HTTPException, ValueError) as error:
            failures.append(f"  {url}: {error or type(error).__name__}")
    raise RuntimeError(f"could not download {file.name}:\n" + "\n".join(failures))


def _stream(url: str, file: RemoteFile, out: IO[bytes], report: Progress, timeout: float) -> None:
    import urllib.error
    import urllib.request

    digest, done = sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "gpucnn"})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as refusal:
        refusal.close()  # it holds the page that says so
        raise
    with response:
        while chunk := response.read(1 << 16):
            done += len(chunk)
            if done > file.size:
                raise ValueError(f"more than the {file.size} bytes expected")
            out.write(chunk)
            digest.update(chunk)
            report(done, file.size)
    if done != file.size:
        raise ValueError(f"ended after {done} of {file.size} bytes")
    if digest.hexdigest() != file.sha256:
        raise ValueError(f"has SHA-256 {digest.hexdigest()}, expected {file.sha256}")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


@contextmanager
def _bar(name: str, progress: Progress | None) -> Iterator[Progress]:
    if progress is not None or not sys.stderr.isatty():
        yield progress or (lambda done, total: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write that becomes ``path`` when the block ends well, and is removed when it does not."""
    with replacing(path) as temporary, temporary.open("wb") as out:
        yield out


def extract(archive: Path, folder: Path) -> None:
    """Unpacks a .tar.gz into ``folder``, each file atomically.

    Raises ValueError for an archive that cannot be read, and for a member that is a link, a device or has a name that
    leads out of ``folder``: then before anything is written.
    """
    import tarfile

    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = tar.getmembers()
            targets = [folder / _safe_name(archive, member) for member in members]
            size, limit = sum(member.size for member in members), DEFLATED * archive.stat().st_size
            if size > limit:
                raise ValueError(f"{archive}: refusing to unpack: its {size} bytes are more than a .tar.gz can hold")
            for member, target in zip(members, targets, strict=True):
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None  # _safe_name lets only files and folders pass
                with naming(target), source, atomic_file(target) as out:
                    shutil.copyfileobj(source, out)
    except (tarfile.TarError, EOFError, zlib.error, BadGzipFile) as error:
        raise ValueError(f"{archive}: cannot unpack: {error}") from error


def _safe_name(archive: Path, member: TarInfo) -> PurePosixPath:
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{archive}: refusing to unpack {member.name!r}: it is not a plain file or folder")
    name, windows = PurePosixPath(member.name), PureWindowsPath(member.name)
    if windows.drive or windows.root or "\\" in member.name or ".." in name.parts:
        raise ValueError(f"{archive}: refusing to unpack {member.name!r}: the name leads out of the folder")
    return name
