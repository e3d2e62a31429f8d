"""Files that lie: each is refused with an error that names it, in bounded time and memory; nothing is half loaded."""

import gzip
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save

import gpucnn
from gpucnn import data, nn, optim
from gpucnn.checkpoint import describe, load_checkpoint, load_model, save_checkpoint, save_model
from gpucnn.cli import main
from gpucnn.data import formats, pictures
from gpucnn.data.download import extract
from gpucnn.names import is_showable, showable
from gpucnn.random import Generator
from gpucnn.settings import read_run

SCRIPT = Path(__file__).parent.parent / "bench" / "fuzz.py"


@pytest.mark.skipif(sys.platform == "win32", reason="the script forks, which Windows can't")
def test_every_parser_refuses_changed_files_with_an_error_that_names_them():
    """The short version of `make fuzz`; a process of its own, because one with threads should not fork."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--runs", "100"], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert ", 0 findings," in found.stdout.splitlines()[-1]
    assert all(" 0 refused" not in line for line in found.stdout.splitlines()[:-1])


@pytest.fixture
def little_memory():
    """What the test takes must stay under 64 MB."""
    tracemalloc.start()
    yield
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 64e6


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture",
    [
        {"class": "Linear", "args": [100_000, 100_000], "kwargs": {}, "children": {}},
        {"class": "Conv2d", "args": [10**6, 10**6, 3], "kwargs": {}, "children": {}},
        {"class": "BatchNorm2d", "args": [10**12], "kwargs": {}, "children": {}},
        {"class": "LeNet5", "args": [], "kwargs": {"image_size": [10**6, 10**6]}, "children": {}},
    ],
    ids=lambda architecture: architecture["class"],
)
def test_a_description_of_a_model_larger_than_its_file_takes_no_memory(tmp_path, architecture, little_memory):
    metadata = {"gpucnn.model": json.dumps({"architecture": architecture})}
    (tmp_path / "m").write_bytes(save({"weight": np.zeros((2, 3), np.float32)}, metadata))
    with pytest.raises(ValueError, match=r"/m: it would take more numbers than allowed, the last ones for the shape"):
        load_model(tmp_path / "m")


def test_a_model_of_which_a_large_layer_was_replaced_still_loads(tmp_path):
    model = nn.models.ResNet("basic", (1,), (64,), num_classes=10_000)
    model.fc = nn.Linear(64, 2)
    save_model(model, tmp_path / "m")
    assert load_model(tmp_path / "m")[0].fc.weight.shape == (2, 64)


def test_what_a_model_may_take_is_limited_while_it_is_loaded_alone(tmp_path):
    save_model(nn.Linear(2, 3), tmp_path / "m")
    load_model(tmp_path / "m")
    assert gpucnn.zeros(1 << 12, 1 << 12).shape == (4096, 4096)


def test_a_description_nested_too_deeply_is_refused(tmp_path):
    description = {"class": "Sequential", "args": [], "kwargs": {}, "children": {}}
    for _ in range(300):
        description = {"class": "Sequential", "args": [], "kwargs": {}, "children": {"0": description}}
    metadata = {"gpucnn.model": json.dumps({"architecture": description})}
    (tmp_path / "m").write_bytes(save({"weight": np.zeros((2, 3), np.float32)}, metadata))
    with pytest.raises(ValueError, match="/m"):
        load_model(tmp_path / "m")


def training():
    model = nn.Linear(2, 3)
    optimizer = optim.Adam(model.parameters(), 0.01)
    return {
        "model": model, "optimizer": optimizer, "scheduler": optim.StepLR(optimizer, 5), "generator": Generator(1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("optimizer", "param_groups", 0, "lr"), "0.01"),
        (("optimizer", "param_groups", 0, "lr"), -1),
        (("optimizer", "param_groups", 0, "betas"), [0.9]),
        (("optimizer", "param_groups", 0, "params"), 3),
        (("optimizer", "param_groups"), []),
        (("optimizer", "param_groups"), [7]),
        (("optimizer", "steps"), [1]),
        (("optimizer", "steps"), None),
        (("optimizer",), 7),
        (("scheduler",), None),
        (("scheduler", "base_lrs"), [[0.1]]),
        (("scheduler", "base_lrs"), []),
        (("scheduler", "base_lrs"), 0.1),
        (("scheduler", "last_epoch"), "5"),
        (("generator", "counter"), [1, 2]),
        (("generator", "key"), "key"),
        (("generator", "seed"), -1),
        (("generator",), {}),
        (("state",), []),
    ],
)
def test_a_checkpoint_with_one_bad_number_changes_nothing(tmp_path, path, value):
    parts = training()
    save_checkpoint(tmp_path / "c", **parts)
    raw = (tmp_path / "c").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    content = json.loads(header["__metadata__"]["gpucnn.checkpoint"])
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    header["__metadata__"]["gpucnn.checkpoint"] = json.dumps(content)
    text = json.dumps(header).encode()
    (tmp_path / "c").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    other = training()
    other["generator"] = Generator(9)
    other["optimizer"].lr = 0.5
    before = [str(part.state_dict()) for name, part in other.items() if name != "generator"]
    with pytest.raises(ValueError, match=r"/c: its (state|description) can't be read"):
        load_checkpoint(tmp_path / "c", **other)
    assert [str(part.state_dict()) for name, part in other.items() if name != "generator"] == before
    assert other["generator"].state() == Generator(9).state()


# -- data sets ---------------------------------------------------------------------------------------------------------


def pickled_array(raw: bytes) -> bytes:
    """A dict as CIFAR has it whose array of bytes has `raw`, an expression of pickle, for its content."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01K\x01M\x00\x0c\x86"
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + raw + b"tb"
    )
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x01eu."


def laughs() -> bytes:
    """Lists of two references to the list before, 60 deep: to write them down would take 2 ** 60 letters."""
    return b"](U\x01ae" + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(60))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\x80\x02}r\xff\xff\xff\xff.", "place 4294967295 of a memo"),  # a table of 64 GB
        (pickled_array(b"\x8a\x06\x00\x00\x00\x00\x00\x01"), "its content is no bytes"),  # bytes(2 ** 40)
        (b"\x80\x02}(U\x04datacnumpy\ndtype\n(U\x02u1K\x00K\x01tRU\x06labels" + laughs() + b"u.", "labels"),
        (b"\x80\x02}U\x04dataX\xff\xff\xff\x7fab.", "refused"),  # a text of 2 GB, in two bytes
        (b"\x80\x04}\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "refused"),  # a bytearray of 1 TB
        (b"cposix\nsystem\n(U\x04truetR.", r"it asks for posix\.system"),
    ],
)
def test_a_pickle_that_is_a_bomb_is_refused(tmp_path, content, match, little_memory):
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(ValueError, match=rf"/batch: .*{match}"):
        formats._cifar_python(tmp_path / "batch", "labels")


def test_names_of_classes_that_grow_without_end_are_refused(tmp_path):
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}").write_bytes(b"")
    (tmp_path / "test_batch").write_bytes(b"")
    (tmp_path / "batches.meta").write_bytes(b"\x80\x02}U\x0blabel_names" + laughs() + b"s.")
    with pytest.raises(ValueError, match=r"batches\.meta: the names of the classes must be a list of texts"):
        data.load(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shape", [(0, 2**32 - 1, 2**32 - 1), (1,) * 65])
def test_a_shape_that_no_array_can_have_is_refused_with_the_name_of_the_file(tmp_path, shape, zipped):
    content = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(0 not in shape)
    (tmp_path / "i").write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=r"/i: its header says a shape that no array can have, (0×4294967295|1×1×1)"):
        formats.read_idx(tmp_path / "i")


def test_labels_that_are_no_whole_numbers_are_a_damaged_file(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 1, 2, 3) + bytes(6))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x0d\x01" + struct.pack(">If", 1, 0.5))
    with pytest.raises(ValueError, match="labels must be integers"):
        data.load(tmp_path)


def test_a_label_that_would_make_billions_of_classes_is_refused(tmp_path, little_memory):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 1, 2, 3) + bytes(6))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x0c\x01" + struct.pack(">2I", 1, 2**31 - 1))
    with pytest.raises(ValueError, match=r"labels must be the numbers of classes, up to 65535, got 2147483647"):
        data.load(tmp_path)


@pytest.mark.parametrize("text", ["1000000000 65", "-1 65", "1", "1 99999999999", "a b", ""])
def test_a_mapping_of_letters_that_makes_no_sense_is_refused(tmp_path, text, little_memory):
    for part in ("train", "test"):
        images = b"\0\0\x08\x03" + struct.pack(">3I", 1, 2, 3) + bytes(6)
        (tmp_path / f"emnist-x-{part}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"emnist-x-{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 1) + b"\0")
    (tmp_path / "emnist-x-mapping.txt").write_text(text)
    with pytest.raises(ValueError, match=r"emnist-x-mapping\.txt: (each line must|its labels must)"):
        data.load(tmp_path)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_an_array_that_says_more_than_its_archive_holds_takes_no_memory(tmp_path, name, little_memory):
    def array(shape: tuple[int, ...]) -> bytes:
        out = io.BytesIO()
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return out.getvalue() + bytes(12)

    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for each, shape in {"images": (2, 2, 3), "labels": (2,)}.items():
            archive.writestr(f"{each}.npy", array((2**27, *shape[1:]) if each == name else shape))
    with pytest.raises(ValueError, match=rf"d\.npz: .*{name}\.npy is said to be \(134217728,.* of uint8, in "):
        data.load(tmp_path / "d.npz")


def test_a_member_of_an_archive_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("images.npy", b"pixels")
        archive.writestr("labels.npy", b"names")
    with pytest.raises(ValueError, match=r"d\.npz: .*images\.npy is no array"):
        data.load(tmp_path / "d.npz")


def test_an_archive_of_holes_is_not_unpacked(tmp_path):
    """A sparse file: 512 bytes of the archive that stand for a terabyte of zeros."""
    info = tarfile.TarInfo("holes")
    info.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "holes", "GNU.sparse.size": str(2**40),
        "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,0",
    }  # fmt: skip
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    with pytest.raises(ValueError, match=r"a\.tar\.gz: refusing to unpack"):
        extract(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def png(height: int, width: int) -> bytes:
    """A black picture of one bit a pixel, of which every kB becomes a MB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_picture_that_would_fill_the_memory_is_refused_without_a_warning(tmp_path):
    for height, width in ((9_000, 8_000), (12_000, 9_000), (20_000, 20_000)):  # Pillow warns of some, refuses others
        (tmp_path / "p.png").write_bytes(png(height, width))
        with pytest.raises(ValueError, match=r"p\.png: not a readable picture: .*pixels"):
            pictures.read_image(tmp_path / "p.png", mode="L")
    (tmp_path / "p.png").write_bytes(png(7, 5))
    assert pictures.read_image(tmp_path / "p.png", mode="L").shape == (7, 5, 1)


def test_a_picture_that_is_a_program_is_not_run(tmp_path):
    """PostScript, which Pillow gives to another program, is refused under whatever name it comes."""
    (tmp_path / "p.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 7\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"p\.png: not a readable picture: cannot identify"):
        pictures.read_image(tmp_path / "p.png")


def test_a_model_of_a_type_that_no_weights_have_is_refused(tmp_path):
    metadata = {"gpucnn.model": json.dumps({"architecture": describe(nn.Linear(3, 2)), "dtype": "a"})}
    (tmp_path / "m").write_bytes(save({"weight": np.zeros((2, 3), np.float32)}, metadata))
    with pytest.raises(ValueError, match="/m: its weights are said to be of type 'a', which no weights can have"):
        load_model(tmp_path / "m")


# -- runs --------------------------------------------------------------------------------------------------------------


def a_run():
    settings = {
        "data": "x-or-not-x", "model": "lenet5", "epochs": 20, "batch_size": 64, "lr": 0.1, "optimizer": "sgd",
        "weight_decay": 0.002, "schedule": "step", "precision": None, "augment": True, "held_out": 0.2, "seed": 0,
        "early_stopping": None, "image_size": None, "gray": False, "start": None,
    }  # fmt: skip
    return {"gpucnn": "0.1.0", "settings": settings, "started": "2026-11-21 12:00:00+00:00"}


BAD_SETTINGS = {
    "data": ["", 7, None, "a\x1b[2Jb", "x" * 5000], "model": ["Linear", 1], "epochs": [0, 1.5, True, "20", 2**63],
    "batch_size": [0, -1, None], "lr": [0, -0.1, 1e308, "0.1", [0.1]], "optimizer": [None, "lbfgs"],
    "weight_decay": [-1, None], "schedule": [None, "magic"], "precision": ["fp8"], "augment": [1, None],
    "held_out": [0, -0.2, "0.2", 2**40], "seed": [-1, 2**64, None], "early_stopping": [0, 1.0],
    "image_size": [[5], [0, 5], [2**20, 2**20], 32, "5x5"], "gray": ["yes"], "start": [7, ""],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_setting_that_no_training_can_have_is_named_before_anything_is_done(tmp_path, name):
    for value in BAD_SETTINGS[name]:
        run = a_run()
        run["settings"][name] = value
        (tmp_path / "run.json").write_text(json.dumps(run))
        with pytest.raises(ValueError, match=rf"run\.json is damaged \(its {name} is .*\); choose another folder"):
            read_run(tmp_path)
    run = a_run()
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert read_run(tmp_path) == run


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"[" * 100_000, "(maximum recursion|Stack overflow)"), (b"\xff\xfe", "decode"), (b"7", "it holds 7"),
        (b'{"settings": []}', r"its settings are \[\]"), (b'{"settings": {}}', "it has no data"),
        (json.dumps({**a_run(), "started": 5}).encode(), "its started is 5"),
        (json.dumps({**a_run(), "finished": "now", "epochs": 3}).encode(), "its accuracy is None"),
    ],
)  # fmt: skip
def test_a_run_file_that_is_none_is_refused(tmp_path, content, what):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)run\.json is damaged .*{what}"):
        read_run(tmp_path)


@pytest.mark.parametrize("trained_on", [[], 7, {"seed": 0}, {**a_run()["settings"], "seed": "0"}])
def test_a_model_that_says_nonsense_of_its_training_is_refused(tmp_path, trained_on, capsys):
    save_model(nn.Linear(3, 2), tmp_path / "m.safetensors", classes=("a", "b"), trained_on=trained_on)
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(tmp_path / "m.safetensors")])
    assert end.value.code == 2
    assert "m.safetensors: what it says it was trained on can't be: it" in capsys.readouterr().err


def test_a_model_that_does_not_say_what_it_has_not_seen_is_not_measured_on_all(tmp_path, capsys):
    save_model(nn.Linear(3, 2), tmp_path / "m.safetensors", classes=("a", "b"), trained_on={"data": "x-or-not-x"})
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(tmp_path / "m.safetensors")])
    assert end.value.code == 2
    assert "does not say which images of x-or-not-x it has not seen: it has no held_out" in capsys.readouterr().err


# -- descriptions ------------------------------------------------------------------------------------------------------

LIES = {
    "classes": [
        5, "ab", [1, 2], {"a": 1}, [["a"]], [None], [""], ["\x1b[31mred", "b"], ["a\nb"], ["\udcff"], ["x" * 5000],
    ],
    "normalise": [5, "12", {"1": 1, "2": 2}, [None, None], [[0.5]], [["a"], ["b"]], [[], []], [0, 0], [[0, 0], [1]]],
    "image_size": [5, "28", {}, [], [28], [1, 2, 3], [28.5, 28], [-1, 5], [0, 5], [16000, 16000], [2**20, 2**20]],
    "channels": [0, -1, 1.5, "x", {}, True, 2**40, 2**15],
}  # fmt: skip


def lying(path, **lies):
    """A model file whose description says so."""
    save_model(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), path, classes=["a", "b"], image_size=[128, 128], channels=1
    )
    with safe_open(path, "np") as file:
        description = json.loads(file.metadata()["gpucnn.model"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path.write_bytes(save(arrays, {"gpucnn.model": json.dumps(description | lies)}))
    return path


@pytest.mark.parametrize("field", LIES)
def test_a_description_that_lies_is_refused_by_its_file_and_field(tmp_path, field, little_memory):
    for n, value in enumerate(LIES[field]):
        path = lying(tmp_path / f"{n}.safetensors", **{field: value})
        with pytest.raises(
            ValueError, match=rf"{n}\.safetensors: in its description (image_size|{field}) is "
        ) as found:
            load_model(path)
        assert "\x1b" not in str(found.value)


@pytest.mark.parametrize("command", ["predict", "show", "evaluate", "explain"])
def test_a_small_model_file_can_not_ask_for_huge_images(tmp_path, command, little_memory, capsys):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    path = lying(tmp_path / "m.safetensors", image_size=[16000, 16000])
    with pytest.raises(SystemExit) as end:
        main([command, str(path), str(tmp_path / "a.png")])
    assert end.value.code == 2
    assert "m.safetensors: in its description image_size is [16000, 16000], not a height and" in capsys.readouterr().err


def test_a_picture_is_not_brought_to_a_size_that_no_picture_may_have(tmp_path, little_memory):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"size must be \(height, width\), got \(20000, 20000\); at most 67,108,864"):
        data.read_image(tmp_path / "a.png", size=(20_000, 20_000))


def test_a_picture_is_not_for_a_model_of_seven_channels(tmp_path, capsys):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as end:
        main(["predict", str(lying(tmp_path / "m.safetensors", channels=7)), str(tmp_path / "a.png")])
    assert end.value.code == 2
    assert "the model takes images of 7 channels, a picture has 1 or 3" in capsys.readouterr().err


def test_nothing_that_a_terminal_takes_for_a_command_is_printed_from_a_file(tmp_path, capsys):
    for name in ("\x1b]0;gotcha\x07a", "b\x9b2J"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((4, 4), 50 * i, np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    loaded = data.load(tmp_path / "pictures", mode="L")
    assert loaded.classes == (r"\x1b]0;gotcha\x07a", r"b\x9b2J")
    (tmp_path / "names.txt").write_text("a\n\x1b[31mb\n")
    image = str(tmp_path / "pictures" / "b\x9b2J" / "0.png")
    path = lying(tmp_path / "m.safetensors", image_size=[2, 2])
    with pytest.raises(SystemExit) as end:
        main(["predict", str(path), image, "--labels", str(tmp_path / "names.txt")])
    assert end.value.code == 2
    with pytest.raises(SystemExit) as end:
        main(["predict", str(path), image, image])
    assert not end.value.code
    with pytest.raises(SystemExit) as end:
        main(["predict", str(path), image + "\x1b[2J"])
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert "names.txt: classes is ['a', '\\x1b[31mb'], not a list of names that a terminal can show" in shown.err
    assert re.search(r"b\\x9b2J/0\.png  [ab]: ", shown.out)
    assert not set("\x1b\x9b\x07") & set(shown.out + shown.err)


def test_names_of_every_script_are_names(tmp_path):
    names = ["می‌خواهم", "👩‍🔬", "ß 日本", "T-shirt\xa0top"]
    assert [is_showable(name) for name in names] == [True] * 4
    assert [showable(name) for name in names] == names


def test_a_layer_whose_name_is_a_command_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    relu = {"class": "ReLU", "args": [], "kwargs": {}, "children": {}}
    description = {"class": "Sequential", "args": [], "kwargs": {}, "children": {"\x1b[2J": relu}}
    path.write_bytes(save({}, {"gpucnn.model": json.dumps({"architecture": description})}))
    with pytest.raises(ValueError, match=r"m\.safetensors: .*Sequential can't have a child '\\x1b\[2J'"):
        load_model(path)
