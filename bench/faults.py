"""What is left of a training when things go wrong: `make faults`, whose figures are in docs/reliability.md.

A small training is killed (SIGKILL, which no process can catch) again and again at random moments, each time resumed by
the next process, until it ends; then another one begins. In these processes alone every write is slow, byte group by
byte group, so that many kills fall into one. After each kill: every file is whole or not there, and at most one
temporary file is left. At the end of each training: the same bits as one that was never killed, and no other files.

Then the other faults: a full disk (a file system of 256 KiB where this user may mount one; a limit on the size of
files anywhere), a folder that can't be written, a folder that another training uses. Each must end in one clear line,
with the last checkpoint as it was, from which the training then ends with the same bits.

Needs fork, so not Windows.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is imported: a process with threads should not fork

import numpy as np
from safetensors import safe_open

import gpucnn
from gpucnn import atomic, checkpoint, data, nn, optim, train
from gpucnn.checkpoint import load_model

EPOCHS, NOBODY = 6, 65534
FILES = ("checkpoint.safetensors", "model.safetensors", "best.safetensors", "history.csv")
Fault = Callable[[train.TrainingState], None]


class Failed(AssertionError):
    """A promise that was not kept."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)


# -- the training ------------------------------------------------------------------------------------------------------


class At(train.Callback):
    """Something that happens after the first `step` steps of a process."""

    def __init__(self, step: int, fault: Fault) -> None:
        self.left, self.fault = step, fault

    def on_batch_end(self, state: train.TrainingState) -> None:
        self.left -= 1
        if self.left == 0:
            self.fault(state)


def run(folder: Path, callbacks: tuple[train.Callback, ...] = ()) -> None:
    """A training with everything that has a state; it takes up what there is in the folder."""
    gpucnn.manual_seed(3)
    images = np.random.default_rng(0).integers(0, 256, (48, 6, 5, 2)).astype(np.uint8)
    part, held_out = data.split(data.Dataset(images, images[:, 0, :3, 0].argmax(1), ("a", "b", "c")), 0.25)
    model = nn.Sequential(
        nn.Conv2d(2, 4, (3, 2)), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)
    )
    optimizer = optim.AdamW(model.parameters(), 0.02)
    loader = data.Loader(part, 4, shuffle=True, augment=data.RandomHorizontalFlip())
    train.fit(
        model, loader, epochs=EPOCHS, optimizer=optimizer, folder=folder, resume=True, checkpoint_every=2,
        scheduler=optim.OneCycleLR(optimizer, 0.02, total_steps=EPOCHS * len(loader)),
        held_out=data.Loader(held_out, 8), progress=False,
        callbacks=[
            *callbacks, train.EarlyStopping(patience=99), train.BestModel(), train.CSVLogger(folder / "history.csv")
        ],
    )  # fmt: skip


def slowly() -> None:
    """Writes of this process take long, so that a kill hits them; what is written stays the same."""
    write = checkpoint.write_arrays

    def write_slowly(path: Path, arrays: Any, metadata: Any) -> None:
        write(path, arrays, metadata)
        content = path.read_bytes()
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(content), len(content) // 8 + 1):
                file.write(content[start : start + len(content) // 8 + 1])
                time.sleep(0.001)

    replace = os.replace

    def replace_slowly(source: Path, target: Path) -> None:
        time.sleep(0.001)
        replace(source, target)
        time.sleep(0.001)

    checkpoint.write_arrays = write_slowly
    atomic.os.replace = replace_slowly


def child(pipe: Any, folder: Path, prepare: Callable[[], None] | None, callbacks: tuple[train.Callback, ...]) -> None:
    """In a process of its own: run, and send what went wrong, as (class, message), or None."""
    try:
        if prepare is not None:
            prepare()
        run(folder, callbacks)
        pipe.send(None)
    except BaseException as error:
        pipe.send((type(error).__name__, str(error)))


def started(
    folder: Path, prepare: Callable[[], None] | None = None, callbacks: tuple[train.Callback, ...] = ()
) -> tuple[Any, Any]:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(there, folder, prepare, callbacks))
    process.start()
    there.close()
    return process, here


def outcome(
    folder: Path, prepare: Callable[[], None] | None = None, callbacks: tuple[train.Callback, ...] = ()
) -> tuple[str, str] | None:
    """How a run of the training ended: None, or what went wrong."""
    process, pipe = started(folder, prepare, callbacks)
    found: tuple[str, str] | None = pipe.recv()
    process.join()
    return found


# -- what is left ------------------------------------------------------------------------------------------------------


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in (*FILES, ".lock")]


def digest(folder: Path) -> str:
    """Of all that a training leaves behind, but for the seconds that it took."""
    found = hashlib.sha256()
    with safe_open(str(folder / FILES[0]), framework="np") as file:
        content = json.loads(file.metadata()["gpucnn.checkpoint"])
        content["state"].pop("seconds")
        found.update(json.dumps(content).encode())
        for name in sorted(file.keys()):
            found.update(name.encode() + np.ascontiguousarray(file.get_tensor(name)).tobytes())
    for name in FILES[1:]:
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def check_whole(folder: Path) -> bool:
    """Every file is whole or not there; returns whether there is a checkpoint yet."""
    here = (folder / FILES[0]).exists()
    if here:
        arrays, metadata = checkpoint._read(folder / FILES[0])
        json.loads(metadata["gpucnn.checkpoint"])
        check(all(np.isfinite(array).all() for array in arrays.values()), "the checkpoint holds numbers that are none")
    for name in FILES[1:3]:
        if (folder / name).exists():
            load_model(folder / name)
    if (folder / FILES[3]).exists():
        with (folder / FILES[3]).open(newline="") as file:
            check(all(None not in row.values() for row in csv.DictReader(file)), "history.csv ends within a row")
    return here


def check_same_end(folder: Path, unbroken: str) -> None:
    check(digest(folder) == unbroken, "the training ended with other bits than an unbroken one")
    check(not temporaries(folder), f"left behind: {temporaries(folder)}")


# -- kills -------------------------------------------------------------------------------------------------------------


def kills(root: Path, count: int, seed: int, tell: Callable[[str], None]) -> dict[str, int]:
    """Kill trainings `count` times in all; returns how many kills fell where."""
    unbroken = reference(root)
    moments = random.Random(seed)
    found = dict.fromkeys(("kills", "within a write", "before the first checkpoint", "trainings ended"), 0)
    while found["kills"] < count:
        folder = root / f"killed-{found['trainings ended']}"
        had = False
        while True:
            process, pipe = started(folder, slowly)
            process.join(moments.uniform(0.0, 0.25) if found["kills"] < count else None)
            if process.exitcode is None:
                process.kill()
                process.join()
                if process.exitcode == 0:  # it was quicker
                    break
                found["kills"] += 1
                left = temporaries(folder) if folder.exists() else []
                check(len(left) <= 1, f"temporary files pile up: {left}")
                found["within a write"] += bool(left)
                here = folder.exists() and check_whole(folder)
                check(here or not had, "the checkpoint is gone")
                found["before the first checkpoint"] += not here
                had = here
            else:
                error = pipe.recv()
                check(error is None, f"resuming failed: {error}")
                break
            tell(f"{found['kills']} of {count} kills")
        check_same_end(folder, unbroken)
        found["trainings ended"] += 1
    return found


def reference(root: Path) -> str:
    folder = root / "unbroken"
    if not folder.exists():
        check(outcome(folder) is None, "the unbroken training failed")
    return digest(folder)


# -- other faults ------------------------------------------------------------------------------------------------------


def faults(root: Path) -> dict[str, str]:
    """Each fault by name, and the line that it ended in."""
    found: dict[str, str] = {}
    found["file size limited, mid-training"] = broken_by(root / "limited", limit_files, reference(root))
    with small_file_system(root / "small") as folder:
        if folder is not None:
            found["disk full, mid-training"] = full_disk(folder, reference(root))
    found["folder read-only, from the start"] = read_only_start(root)
    found["folder read-only, mid-training"] = broken_by(
        root / "read-only", lambda state: state.folder.chmod(0o555), reference(root), become_nobody
    )
    found["folder in use"] = two_at_once(root)
    return found


def one_line(error: tuple[str, str] | None, kinds: tuple[str, ...], *words: str) -> str:
    check(error is not None, "nothing was said")
    assert error is not None
    kind, message = error
    check(kind in kinds, f"{kind} was raised, not one of {', '.join(kinds)}: {message}")
    check("\n" not in message and all(word in message for word in words), f"{message!r} does not say {words}")
    return f"{kind}: {message}"


def limit_files(state: train.TrainingState) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def become_nobody() -> None:
    """No mode of a folder keeps root out."""
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def broken_by(folder: Path, fault: Fault, unbroken: str, prepare: Callable[[], None] | None = None) -> str:
    """Let `fault` befall a training in its middle, then resume it without."""
    folder.mkdir()
    if os.geteuid() == 0 and prepare is become_nobody:
        os.chown(folder, NOBODY, NOBODY)
    error = outcome(folder, prepare, (At(21, fault),))
    said = one_line(error, ("OSError", "PermissionError"), "can't write", str(folder))
    check(check_whole(folder), "the checkpoint is gone")
    folder.chmod(0o755)
    left = temporaries(folder)
    check(not left, f"left behind: {left}")
    check(outcome(folder) is None, "resuming failed")
    check_same_end(folder, unbroken)
    return said.replace(str(folder), "FOLDER")


def full_disk(folder: Path, unbroken: str) -> str:
    """Something else fills the disk while a training goes on."""

    def fill(state: train.TrainingState) -> None:
        try:
            with (folder.parent / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(512))
        except OSError:
            pass

    said = one_line(outcome(folder, None, (At(21, fill),)), ("OSError",), "No space left", str(folder))
    check(check_whole(folder), "the checkpoint is gone")
    check(not temporaries(folder), f"left behind: {temporaries(folder)}")
    (folder.parent / "filler").unlink()
    check(outcome(folder) is None, "resuming failed")
    check_same_end(folder, unbroken)
    return said.replace(str(folder), "FOLDER")


@contextmanager
def small_file_system(place: Path) -> Iterator[Path | None]:
    """A folder on a file system of its own with 256 KiB, or None where this user can't mount one."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield place / "run" if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def read_only_start(root: Path) -> str:
    folder = root / "locked away"
    folder.mkdir(mode=0o555)
    folder.chmod(0o555)
    said = one_line(outcome(folder, become_nobody), ("PermissionError",), "can't write", str(folder))
    check(not list(folder.iterdir()), "something was written")
    return said.replace(str(folder), "FOLDER")


def two_at_once(root: Path) -> str:
    """A second training in the folder of one that is under way is refused, and the first one does not notice."""
    folder = root / "shared"

    def intrude(state: train.TrainingState) -> None:
        found = subprocess.run(
            [sys.executable, __file__, "--child", str(folder)], capture_output=True, text=True, check=False
        )
        (root / "intruder").write_text(found.stdout)

    check(outcome(folder, None, (At(21, intrude),)) is None, "the first training failed")
    kind, _, message = (root / "intruder").read_text().strip().partition(": ")
    said = one_line((kind, message), ("RuntimeError",), "in use by another training")
    check_same_end(folder, reference(root))
    return said.replace(str(folder), "FOLDER")


# -- the command -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="(default: 200)")
    parser.add_argument("--seed", type=int, default=11, help="of the moments of the kills (default: 11)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is not None:
        try:
            run(chosen.child)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
        return

    def tell(line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{line}", end="", file=sys.stderr, flush=True)

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        try:
            found = kills(root, chosen.kills, chosen.seed, tell)
            said = faults(root)
        except Failed as failure:
            sys.exit(f"faults: {failure}")
    print("\n".join(f"{what}: {count}" for what, count in found.items()))
    print("\n".join(f"{what}: {line}" for what, line in said.items()))
    print(f"nothing was lost, in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
