"""Hostile files for every parser of ours: `make fuzz`, whose figures are in docs/reliability.md.

Good files of each format are changed at random: cut off, bits flipped, numbers replaced by huge and negative ones in
both byte orders, pieces deleted, doubled, put elsewhere. Behind a checksum or a compression it is what lies inside that
is changed, and in JSON it is the values. A parser may read what comes out, or raise a ValueError or a FileNotFoundError
that names the file. Anything else is a finding: another exception, a warning, more than MEMORY bytes or SECONDS, a
crash, a started process, a file opened for writing outside of its folder, or a model that has changed although an
error was raised.

The same seed gives the same files. With `--guided` atheris (libFuzzer) chooses the changes by what they make the parser
do, for as long as is asked for.

Needs fork, so not Windows.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is imported: a process with threads should not fork

import numpy as np
from PIL import Image

import gpucnn
from gpucnn import cli, data, nn, onnx, optim
from gpucnn.backends import tuning
from gpucnn.backends.variants import Convolution, Problem, Product, usual
from gpucnn.checkpoint import load_checkpoint, load_model, save_checkpoint, save_model
from gpucnn.data import formats
from gpucnn.data.download import extract
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.geometry import Window
from gpucnn.random import Generator
from gpucnn.settings import checked_place, read_run

MEMORY, SECONDS = 1 << 30, 10
ALLOWED = (ValueError, FileNotFoundError)
FORBIDDEN = (
    "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "socket.connect", "subprocess.Popen",
)  # fmt: skip

Read = Callable[[Path], object]


@dataclass
class Target:
    """A parser, the file it reads in a folder of its own, good contents of it, and how to change them from inside."""

    name: str
    read: Read
    file: str
    seeds: list[bytes]
    inside: Callable[[bytes, random.Random], bytes] | None = None
    prepare: Callable[[Path], None] | None = None  # what else is to be in the folder
    state: Callable[[], str] | None = None  # must be the same after an error
    found: list[str] = field(default_factory=list)


# -- changing bytes ----------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 127, 128, 255, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 2**31, 2**40, 2**63, 10**30, -(2**63), 1e308, -0.5, "", "0", "x" * 999, "../../etc/passwd",
    [], [[]], {}, {"module": {}}, {"unknown": "x"}, [2**40, 2**40], "float64", "bfloat16", "Linear", "Sequential",
)  # fmt: skip


def changed(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to four changes."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(min(len(made), 200) if rng.random() < 0.5 else len(made)) if made else 0
        length = rng.choice((1, 2, 4, 8, 16, 100))
        match rng.randrange(8):
            case 0:
                del made[at:]
            case 1 if made:
                made[at] ^= 1 << rng.randrange(8)
            case 2 if made:
                made[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 3 | 4:
                size = rng.choice((2, 4, 8))
                number = rng.choice(NUMBERS) % (1 << 8 * size)
                made[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
            case 5:
                del made[at : at + length]
            case 6:
                made[at:at] = made[at : at + length]
            case _:
                other = rng.randrange(len(made) + 1)
                made[at : at + length] = made[other : other + length]
    return bytes(made)


def changed_json(value: Any, rng: random.Random) -> Any:
    """`value` with one of its parts replaced, removed or doubled."""
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key, item in part.items() if isinstance(part, dict) else enumerate(part):
            places.append((part, key))
            if isinstance(item, dict | list):
                walk(item)

    walk(value)
    if not places:
        return rng.choice(VALUES)
    part, key = rng.choice(places)
    match rng.randrange(4):
        case 0:
            del part[key]
        case 1 if isinstance(part, dict):
            part[rng.choice(("0", "weight", "x" * 50, "__class__", "forward"))] = part.pop(key)
        case 2:
            other, its_key = rng.choice(places)
            try:
                part[key] = json.loads(json.dumps(other[its_key]))
            except (LookupError, ValueError):
                part[key] = None
        case _:
            old = part[key]
            part[key] = rng.choice((*VALUES, old * 1000 if isinstance(old, int) else [old, old]))
    return value


def inside_json(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(changed_json(json.loads(content), rng)).encode()


def inside_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header or the description in it is changed, and its length is right again."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    keys = [key for key in header.get("__metadata__", {}) if key.startswith("gpucnn.")]
    if keys and rng.random() < 0.7:
        description = changed_json(json.loads(header["__metadata__"][keys[0]]), rng)
        header["__metadata__"][keys[0]] = json.dumps(description)
    else:
        header = changed_json(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def inside_gzip(content: bytes, rng: random.Random) -> bytes:
    return gzip.compress(changed(gzip.decompress(content), rng), 1)


def inside_zip(content: bytes, rng: random.Random) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        victim = rng.choice(old.namelist())
        for name in old.namelist():
            new.writestr(name, changed(old.read(name), rng) if name == victim else old.read(name))
    return made.getvalue()


# -- the parsers -------------------------------------------------------------------------------------------------------


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2)), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 3)
    )


def written(write: Callable[[Path], object], name: str = "file") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def state_of(model: nn.Module, *others: Any) -> str:
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
    for other in others:
        found.update(repr(other()).encode())
    return found.hexdigest()


def targets() -> list[Target]:
    gpucnn.manual_seed(3)
    return [*model_targets(), *run_targets(), *onnx_targets(), *data_targets(), *picture_targets()]


def model_targets() -> list[Target]:
    net = small_net()
    models = [
        written(lambda path: save_model(net, path, classes=("a", "b", "c"), normalise=(0.5, 0.25))),
        written(lambda path: save_model(nn.models.LeNet5(num_classes=3, image_size=(12, 14)), path)),
    ]
    given = small_net()

    model = small_net()
    optimizer = optim.Adam(model.parameters(), 0.01)
    schedule = optim.WarmUp(optim.CosineAnnealingLR(optimizer, 18), 3)
    generator = Generator(5)
    for parameter in model.parameters():
        parameter.grad = gpucnn.ones(*parameter.shape)
    optimizer.step()
    parts = {"model": model, "optimizer": optimizer, "scheduler": schedule, "generator": generator}
    training = written(lambda path: save_checkpoint(path, **parts, settings={"lr": 0.01}, rows=[]))  # type: ignore[arg-type]

    folder: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as name:
        net.save_pretrained(name, classes=("a", "b", "c"), normalise=(0.5, 0.25), image_size=(6, 4), channels=2)
        folder = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    shapes = dict.fromkeys(net.state_dict(), "one.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": shapes}).encode()

    shape = Convolution(2, 9, 7, 6, 4, 7, 6, 2, Window((3, 2)))
    problems = [
        Problem("conv2d_forward", shape, "float"),
        Problem("matmul", Product(1, 3, 2, 5, True, False), "float16"),
    ]
    measured = {one: tuning.Measurement(str(usual(one)), {str(usual(one)): 1e-6}) for one in problems}

    return [
        Target("model file", load_model, "m.safetensors", models, inside_safetensors),
        Target(
            "model file into a model", lambda path: load_model(path, given), "m.safetensors", models[:1],
            inside_safetensors, state=lambda: state_of(given),
        ),
        Target(
            "checkpoint", lambda path: load_checkpoint(path, **parts, settings={"lr": 0.01}),  # type: ignore[arg-type]
            "c.safetensors", [training], inside_safetensors,
            state=lambda: state_of(model, optimizer.state_dict, schedule.state_dict, generator.state),
        ),
        Target(
            "Hugging Face config.json", lambda path: nn.Module.from_pretrained(path.parent), "config.json",
            [folder["config.json"]], inside_json,
            prepare=lambda there: there.joinpath("model.safetensors").write_bytes(folder["model.safetensors"]) and None,
        ),
        Target(
            "index of shards", lambda path: load_model(path, given), "m.safetensors.index.json", [index], inside_json,
            prepare=lambda there: there.joinpath("one.safetensors").write_bytes(folder["model.safetensors"]) and None,
            state=lambda: state_of(given),
        ),
        Target(
            "tuning", partial(tuning.read, RecorderDevice()), "t.json",
            [tuning.Tuning({}, measured).as_json().encode()], inside_json,
        ),
    ]  # fmt: skip


def run_targets() -> list[Target]:
    settings = {
        "data": "x-or-not-x", "model": "lenet5", "epochs": 20, "batch_size": 64, "lr": 0.1, "optimizer": "sgd",
        "weight_decay": 0.002, "schedule": "step", "precision": None, "augment": True, "held_out": 0.2, "seed": 0,
        "early_stopping": None, "image_size": [12, 14], "gray": False, "start": None,
    }  # fmt: skip
    run = {"gpucnn": "0.1.0", "settings": settings, "started": "2026-11-21 12:00:00+00:00"}
    ended = {**run, "finished": "2026-11-21 12:01:00+00:00", "epochs": 20, "accuracy": 0.9, "loss": 0.3}
    images = data.x_or_not_x(20, size=(12, 14))
    place = {name: settings[name] for name in ("data", "held_out", "seed", "image_size", "gray")}
    net = nn.models.LeNet5(num_classes=2, image_size=(12, 14))
    model = written(lambda path: save_model(net, path, classes=("a", "b"), trained_on=place), "m.safetensors")

    def resume(path: Path) -> None:
        """All that `gpucnn train --resume` makes of it before it trains, and what it says of a run that has ended."""
        run = read_run(path.parent)
        if run is None:
            raise FileNotFoundError(path)
        with redirect_stdout(io.StringIO()):
            if "finished" in run:
                cli._say_what_exists(run, path.parent)
        try:
            its = cli._resumed(run, {}, path.parent)
            its["lr"] = its["lr"] or cli.LEARNING_RATES[its["optimizer"]]
            model = cli._build(its["model"] or "lenet5", images)
            loader, _, _ = cli._loaders(its, images, images)
            cli._scheduler(its, cli._optimizer(its, model), len(loader))
        except ValueError as error:  # of a network that does not fit the images
            raise ValueError(f"{path}: {error}") from error

    return [
        Target("run.json", resume, "run.json", [json.dumps(run).encode(), json.dumps(ended).encode()], inside_json),
        Target(
            "model's training data", lambda path: checked_place(path, load_model(path)[1].get("trained_on")),
            "m.safetensors", [model], inside_safetensors,
        ),
    ]  # fmt: skip


def onnx_targets() -> list[Target]:
    from onnx import ModelProto, external_data_helper

    net = small_net().eval()
    model = written(lambda path: onnx.save(net, path, (2, 6, 4)), "net.onnx")
    residual = nn.models.ResNet("basic", (1,), widths=(4,), num_classes=3, stem="cifar").eval()
    other = written(lambda path: onnx.save(residual, path, (3, 8, 8)), "net.onnx")

    def inside(content: bytes, rng: random.Random) -> bytes:
        """A number, a name or a list of the graph is changed."""
        proto = ModelProto()
        proto.ParseFromString(content)
        graph = proto.graph
        for _ in range(rng.choice((1, 2))):
            match rng.randrange(5):
                case 0:
                    tensor = rng.choice(graph.initializer)
                    if tensor.dims:
                        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((-1, 0, 1, 2**31, 2**62))
                case 1:
                    rng.choice(graph.initializer).data_type = rng.randrange(30)
                case 2:
                    node = rng.choice(graph.node)
                    names = [name for other in graph.node for name in (*other.input, *other.output)]
                    names_of = rng.choice((node.input, node.output))
                    if names_of:
                        names_of[rng.randrange(len(names_of))] = rng.choice((*names, "", "none"))
                case 3:
                    rng.choice(graph.node).op_type = rng.choice([node.op_type for node in graph.node] + OPERATORS)
                case _:
                    given = [attribute for node in graph.node for attribute in node.attribute]
                    if given:
                        attribute = rng.choice(given)
                        value = rng.choice((-(2**63), -1, 0, 1, 3, 2**31, 2**62))
                        if attribute.ints:
                            attribute.ints[rng.randrange(len(attribute.ints))] = value
                        else:
                            attribute.i = value
        return bytes(proto.SerializeToString())

    divided = ModelProto()
    divided.ParseFromString(model)
    external_data_helper.convert_model_to_external_data(divided, location="weights", size_threshold=0)
    parts: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        import onnx as reference

        reference.save(divided, str(Path(folder) / "net.onnx"))
        parts = {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    return [
        Target("ONNX", onnx.load, "net.onnx", [model, other], inside),
        Target(
            "ONNX with external data", onnx.load, "net.onnx", [parts["net.onnx"]],
            prepare=lambda there: there.joinpath("weights").write_bytes(parts["weights"]) and None,
        ),
    ]  # fmt: skip


OPERATORS = ["ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Reshape", "Pad", "Cast", "Gather", "Slice"]


def data_targets() -> list[Target]:
    images = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    labels = np.array([0, 1, 2, 1, 0], np.uint8)
    idx = b"\0\0\x08\x03" + struct.pack(">3I", 5, 4, 3) + images.tobytes()
    label_idx = b"\0\0\x0c\x01" + struct.pack(">I", 5) + labels.astype(">i4").tobytes()
    npz = written(lambda path: np.savez_compressed(path, images=images, labels=labels), "d.npz")
    npy = written(lambda path: np.save(path, images), "images.npy")
    batch = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2], "filenames": ["a", "b"]}, protocol=4)
    records = (b"\1" + bytes(3072)) * 2
    version = "python 10"

    def cifar(folder: Path, skipped: str) -> None:
        for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
            if name != skipped:
                (folder / name).write_bytes(batch)
        if skipped != "batches.meta":
            (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}, protocol=4))

    def cifar_binary(folder: Path) -> None:
        for number in range(2, 6):
            (folder / f"data_batch_{number}.bin").write_bytes(records)
        (folder / "test_batch.bin").write_bytes(records)
        (folder / "batches.meta.txt").write_text("\n".join("0123456789"))

    def archive(path: Path) -> None:
        with tarfile.open(path, "w:gz") as tar:
            for name, content in (("d/one.bin", records[:99]), ("two.txt", b"two")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    def emnist(folder: Path) -> None:
        for part in ("train", "test"):
            (folder / f"emnist-x-{part}-images-idx3-ubyte").write_bytes(idx)
            content = b"\0\0\x08\x01" + struct.pack(">I", 5) + labels.tobytes()
            (folder / f"emnist-x-{part}-labels-idx1-ubyte").write_bytes(content)

    def idx_labels(folder: Path) -> None:
        (folder / "train-images-idx3-ubyte").write_bytes(idx)

    return [
        Target("IDX", formats.read_idx, "images", [idx, label_idx]),
        Target("IDX, gzipped", formats.read_idx, "images.gz", [gzip.compress(idx)], inside_gzip),
        Target(
            "IDX labels of a data set", lambda path: data.load(path.parent), "train-labels-idx1-ubyte", [label_idx],
            prepare=idx_labels,
        ),
        Target(
            "EMNIST mapping", lambda path: data.load(path.parent), "emnist-x-mapping.txt", [b"0 48\n1 49\n2 50\n"],
            prepare=emnist,
        ),
        Target(
            "CIFAR, binary", lambda path: data.load(path.parent), "data_batch_1.bin", [records], prepare=cifar_binary
        ),
        Target(
            "CIFAR, pickled batch", lambda path: formats.read_cifar(path.parent, version, "x", "train"), "data_batch_1",
            [batch], prepare=lambda folder: cifar(folder, "data_batch_1"),
        ),
        Target(
            "CIFAR, pickled names", lambda path: formats.read_cifar(path.parent, version, "x", "test"), "batches.meta",
            [pickle.dumps({"label_names": list("0123456789")}, protocol=4)],
            prepare=lambda folder: cifar(folder, "batches.meta"),
        ),
        Target("npz", data.load, "d.npz", [npz], inside_zip),
        Target(
            "npy", data.load, "images.npy", [npy],
            prepare=lambda folder: np.save(folder / "labels.npy", labels),
        ),
        Target(
            "npy labels", lambda path: data.load(path.with_name("images.npy")), "labels.npy",
            [written(lambda path: np.save(path, labels), "l.npy")],
            prepare=lambda folder: np.save(folder / "images.npy", images),
        ),
        Target(
            "tar.gz", lambda path: extract(path, path.parent / "out"), "a.tar.gz", [written(archive)], inside_gzip
        ),
    ]  # fmt: skip


def picture_targets() -> list[Target]:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    pictures = [Image.fromarray(pixels), Image.fromarray(pixels[..., 0]), Image.fromarray(pixels).quantize(8)]
    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        seeds = []
        for picture in pictures:
            made = io.BytesIO()
            (picture.convert("RGB") if kind in ("JPEG", "WEBP", "PPM") else picture).save(made, kind)
            seeds.append(made.getvalue())
        found.append(Target(f"picture, {kind}", data.read_image, f"p.{kind.lower()}", seeds))
    return found


# -- one file ----------------------------------------------------------------------------------------------------------


class Watch:
    """What a parser does besides reading, by Python's audit events."""

    def __init__(self) -> None:
        self.folder, self.seen, self.on = "", "", False
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen = f"{event} {arguments!r:.200}"
        elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[1], str):
            written = set(arguments[1]) & set("wxa+")
            if written and not os.path.realpath(arguments[0]).startswith(self.folder):
                self.seen = f"opened {arguments[0]} for writing"


class TooLong(BaseException):
    pass


def judged(target: Target, content: bytes, folder: Path, watch: Watch) -> str | None:
    """What is wrong with how the parser takes this file, or None; `target.found` gets what it raised."""
    path = folder / target.file
    path.write_bytes(content)
    before = target.state() if target.state else None
    watch.folder, watch.seen, watch.on = os.path.realpath(folder), "", True
    wrong = None
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.read(path)
        error = ""
    except ALLOWED as caught:
        error = type(caught).__name__
        message = str(caught)
        names = (
            folder.name,
            *(f"{other.stem}: " for other in folder.iterdir()),
        )  # a data set has that of one of its files
        if not any(name in message for name in names):
            wrong = f"{error} does not name the file: {message:.300}"
        elif len(message) > 20_000:
            wrong = f"{error} takes {len(message)} characters to say: {message:.300}"
    except TooLong:
        error, wrong = "TooLong", f"took more than {SECONDS} s"
    except BaseException as caught:
        error = type(caught).__name__
        wrong = f"{error}: {caught!s:.300}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.on = False
    if watch.seen:
        wrong = watch.seen
    if error and wrong is None and target.state and target.state() != before:
        wrong = "something has changed although an error was raised"
    if target.file == "a.tar.gz":
        shutil.rmtree(folder / "out", ignore_errors=True)
    target.found.append(error)
    return wrong


def one(target: Target, seed: int, number: int) -> bytes:
    """The file of that number: the good ones first, then cut at each place of the beginning, then changed at random."""
    if number < len(target.seeds):
        return target.seeds[number]
    content = target.seeds[number % len(target.seeds)]
    if number < len(target.seeds) + 64:
        return content[: number - len(target.seeds)]
    rng = random.Random(f"{seed} {target.name} {number}")
    if target.inside is not None and rng.random() < 0.6:
        return target.inside(content, rng)
    return changed(content, rng)


# -- many files --------------------------------------------------------------------------------------------------------


def too_long(number: int, frame: Any) -> None:
    raise TooLong


def child(pipe: Any, target: Target, numbers: range, seed: int, root: Path) -> None:
    """Reads files of these numbers; sends each finding, and at the end how many were refused."""
    folder = Path(tempfile.mkdtemp(dir=root))
    if target.prepare is not None:
        target.prepare(folder)
    signal.signal(signal.SIGALRM, too_long)
    watch = Watch()
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    for number in numbers:
        pipe.send(("at", number))
        wrong = judged(target, one(target, seed, number), folder, watch)
        if number < len(target.seeds) and target.found[-1]:
            wrong = f"the good file was refused: {target.found[-1]}"
        if wrong is not None:
            pipe.send(("wrong", (number, wrong)))
    pipe.send(("end", sum(map(bool, target.found))))


def fuzz(target: Target, runs: int, seed: int, root: Path) -> tuple[int, list[tuple[int, str]]]:
    """How many of `runs` files were refused, and (number, what) of each finding. A crash is one, too."""
    context = multiprocessing.get_context("fork")
    findings: list[tuple[int, str]] = []
    refused, start = 0, 0
    while start < runs:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(there, target, range(start, runs), seed, root))
        process.start()
        there.close()
        at = start
        try:
            while (message := here.recv())[0] != "end":
                if message[0] == "at":
                    at = message[1]
                else:
                    findings.append(message[1])
            refused += message[1]
            start = runs
        except EOFError:
            process.join()
            findings.append((at, f"the process ended with {process.exitcode}"))
            start = at + 1
        process.join()
        here.close()
    return refused, findings


def guided(target: Target, seconds: int, root: Path) -> None:
    """Let atheris choose the files of one parser for a while; it ends the process at the first finding."""
    try:
        import atheris
    except ImportError:
        sys.exit("--guided needs atheris: pip install atheris")
    folder = Path(tempfile.mkdtemp(dir=root))
    if target.prepare is not None:
        target.prepare(folder)
    corpus = Path(tempfile.mkdtemp(dir=root))
    for number, content in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(content)
    signal.signal(signal.SIGALRM, too_long)
    watch = Watch()

    def read(content: bytes) -> None:
        wrong = judged(target, content, folder, watch)
        if wrong is not None:
            kept = Path(f"finding-{hashlib.sha256(content).hexdigest()[:12]}")
            kept.write_bytes(content)
            raise AssertionError(f"{target.name}: {wrong} ({kept})")

    for module in (gpucnn.checkpoint, gpucnn.pretrained, formats, gpucnn.data.pictures, onnx.read, onnx.graph):
        for name, function in vars(module).items():
            if getattr(function, "__module__", "") == module.__name__ and hasattr(function, "__code__"):
                atheris.instrument_func(function)
                setattr(module, name, function)
    options = [f"-max_total_time={seconds}", "-rss_limit_mb=3000", "-max_len=65536", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], read)
    atheris.Fuzz()


# -- the command -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2000, help="files for each parser (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--only", nargs="+", default=[], help="parsers of these names, or whose name contains one of these"
    )
    parser.add_argument("--guided", type=int, metavar="SECONDS", help="let atheris choose, so long for one parser")
    parser.add_argument("--keep", type=Path, help="a folder for the files of the findings")
    chosen = parser.parse_args()
    every = targets()
    wanted = [t for t in every if t.name in chosen.only] or [
        t for t in every if not chosen.only or any(word in t.name for word in chosen.only)
    ]
    start, wrong = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as name:
        if chosen.guided is not None:
            if len(wanted) != 1:
                sys.exit(f"--guided takes one parser at a time; --only one of: {', '.join(t.name for t in wanted)}")
            guided(wanted[0], chosen.guided, Path(name))
        for target in wanted:
            refused, findings = fuzz(target, chosen.runs, chosen.seed, Path(name))
            print(f"{target.name}: {chosen.runs} files, {refused} refused, {len(findings)} findings", flush=True)
            for number, what in findings[:5]:
                print(f"  {number}: {what}", flush=True)
                if chosen.keep is not None:
                    chosen.keep.mkdir(parents=True, exist_ok=True)
                    kept = f"{target.name} {number}".replace(" ", "-").replace(",", "")
                    (chosen.keep / kept).write_bytes(one(target, chosen.seed, number))
            wrong += len(findings)
    print(f"{len(wanted) * chosen.runs} files, {wrong} findings, {time.perf_counter() - start:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
