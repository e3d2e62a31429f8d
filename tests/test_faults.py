"""What a training leaves behind when it is killed, its disk fills up, or its folder can't be written."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpucnn.atomic import ABANDONED, write_atomically, write_text
from gpucnn.data.download import atomic_file

SCRIPT = Path(__file__).parent.parent / "bench" / "faults.py"


@pytest.mark.skipif(sys.platform == "win32", reason="the script forks, which Windows can't")
def test_a_training_that_is_killed_or_cannot_write_loses_nothing():
    """The short version of `make faults`; a process of its own, because one with threads should not fork."""
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "6"], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    lines = dict(line.split(": ", 1) for line in found.stdout.splitlines() if ": " in line)
    assert lines["kills"] == "6"
    assert "File too large" in lines["file size limited, mid-training"]
    assert "nothing was lost" in found.stdout


def leftover(folder: Path, name: str, age: float) -> Path:
    path = folder / name
    path.write_text("half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_dead_writers_left_is_removed_by_the_next_one(tmp_path):
    old = [leftover(tmp_path, f".f.{number}.7.tmp", ABANDONED + 60) for number in (11, 12)]
    kept = [
        leftover(tmp_path, ".f.13.7.tmp", ABANDONED - 60),  # may still be written
        leftover(tmp_path, ".g.11.7.tmp", ABANDONED + 60),  # of another file
        leftover(tmp_path, ".f.backup", ABANDONED + 60),
    ]
    write_atomically(tmp_path / "f", lambda temporary: temporary.write_text("whole") and None)
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in kept)
    again = leftover(tmp_path, ".f.14.7.tmp", ABANDONED + 60)
    with atomic_file(tmp_path / "f") as out:
        out.write(b"x")
    assert not again.exists()


def test_a_leftover_that_can_not_be_removed_is_no_reason_not_to_write(tmp_path, monkeypatch):
    """Such as another user's in a folder like /tmp."""
    old = leftover(tmp_path, ".f.11.7.tmp", ABANDONED + 60)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == old:
            raise PermissionError(1, "Operation not permitted")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    write_text(tmp_path / "f", "whole")
    assert (tmp_path / "f").read_text() == "whole"


def test_a_folder_that_can_not_be_listed_can_be_written_to(tmp_path, monkeypatch):
    """The modes of a folder would not tell: some run the tests as root, who may list all of them."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    open_file = os.open
    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr(os, "open", lambda path, *how: refuse() if path == tmp_path else open_file(path, *how))
    write_text(tmp_path / "f", "whole")
    assert (tmp_path / "f").read_text() == "whole"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o664])
def test_a_file_that_is_written_again_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "f"
    path.write_text("old")
    path.chmod(mode)

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert temporary.stat().st_mode & 0o077 == 0  # nobody reads meanwhile what was private

    write_atomically(path, write)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets few users make links")
@pytest.mark.parametrize("old", ["old", None])
def test_through_a_link_the_file_behind_it_is_written(tmp_path, old):
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "f", tmp_path / "link"
    if old is not None:
        target.write_text(old)
    link.symlink_to(Path("store") / "f")
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "store"]
    assert os.listdir(tmp_path / "store") == ["f"]


def test_a_saved_file_has_the_modes_that_the_user_set(tmp_path):
    """Not those of a private temporary file: others may read a model as they may read any other file."""
    if sys.platform == "win32":
        pytest.skip("Windows has no such modes")
    from gpucnn import nn
    from gpucnn.checkpoint import save_model

    plain = tmp_path / "plain"
    plain.touch()
    save_model(nn.Linear(2, 3), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_mode == plain.stat().st_mode


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    def fill(temporary: Path) -> None:
        temporary.write_text("")
        with open("/dev/full", "wb", buffering=0) as file:  # a write to it fails like one to a full disk
            file.write(b"x")

    (tmp_path / "f").write_text("old")
    with pytest.raises(OSError, match=r"can't write .*/f: No space left on device"):
        write_atomically(tmp_path / "f", fill)
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]
