"""Weights and models of others: PyTorch's state, both ways, and folders as Hugging Face lays them out."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpucnn
from gpucnn import data, nn
from gpucnn.atomic import write_text
from gpucnn.checkpoint import _read, describe_input, load_model
from gpucnn.nn import models
from gpucnn.random import default_generator


@pytest.fixture(autouse=True)
def _on_backend(default_backend: None) -> None:
    gpucnn.manual_seed(3)


def settled(model: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics that are not those of a new model."""
    generator = np.random.default_rng(5)
    for name, value in model.named_buffers():
        if not name.endswith("tracked"):
            value.detach().copy_(0.5 + generator.random(value.shape))
    return model.eval()


# -- PyTorch's state -------------------------------------------------------------------------------


def like_ours(torch: ModuleType, model: nn.Sequential) -> Any:
    """The same stack in PyTorch: its layers have the same names and take the same arguments."""
    layers = [getattr(torch.nn, type(layer).__name__)(*layer._arguments[0], **layer._arguments[1]) for layer in model]
    return torch.nn.Sequential(*layers)


def residual(
    torch: ModuleType, bottleneck: bool, layers: tuple[int, ...], widths: tuple[int, ...], classes: int, cifar: bool
) -> Any:
    """torchvision's ResNet, and that of He et al. for CIFAR, whose shortcuts have no parameters, in PyTorch."""
    t, f = torch.nn, torch.nn.functional

    class Block(t.Module):  # type: ignore[name-defined, misc]
        def __init__(self, into: int, width: int, stride: int) -> None:
            super().__init__()
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            self.out, self.stride, self.count = width * (4 if bottleneck else 1), stride, len(kernels)
            channels = [into, *[width] * (len(kernels) - 1), self.out]
            first = kernels.index(3)  # which has the stride
            for i, kernel in enumerate(kernels):
                conv = t.Conv2d(
                    channels[i], channels[i + 1], kernel, stride if i == first else 1, kernel // 2, bias=False
                )
                setattr(self, f"conv{i + 1}", conv)
                setattr(self, f"bn{i + 1}", t.BatchNorm2d(channels[i + 1]))
            if not cifar and (stride > 1 or into != self.out):
                conv = t.Conv2d(into, self.out, 1, stride, bias=False)
                self.downsample = t.Sequential(conv, t.BatchNorm2d(self.out))

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, self.count + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = f.relu(y) if i < self.count else y
            if hasattr(self, "downsample"):
                x = self.downsample(x)
            elif cifar:
                x = f.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.out - x.shape[1]))
            return f.relu(x + y)

    class Network(t.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            into = widths[0]
            self.conv1 = t.Conv2d(3, into, *((3, 1, 1) if cifar else (7, 2, 3)), bias=False)
            self.bn1 = t.BatchNorm2d(into)
            for stage, (count, width) in enumerate(zip(layers, widths, strict=True), start=1):
                blocks = []
                for i in range(count):
                    blocks.append(Block(into, width, 2 if stage > 1 and i == 0 else 1))
                    into = blocks[-1].out
                setattr(self, f"layer{stage}", t.Sequential(*blocks))
            self.fc = t.Linear(into, classes)

        def forward(self, x: Any) -> Any:
            y = f.relu(self.bn1(self.conv1(x)))
            y = y if cifar else f.max_pool2d(y, 3, 2, 1)
            for stage in range(1, len(layers) + 1):
                y = getattr(self, f"layer{stage}")(y)
            return self.fc(y.mean((2, 3)))

    return Network()


NARROW = (8, 12, 16, 20)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[ModuleType, Any], Any], tuple[int, int, int]]] = {
    "lenet5": (lambda: models.LeNet5(7, 1, (17, 29)), like_ours, (1, 17, 29)),
    "lenet5-bn": (lambda: models.LeNet5(batch_norm=True), like_ours, (1, 28, 28)),
    "vgg-small": (lambda: models.VGGSmall(widths=(5, 8)), like_ours, (3, 9, 14)),
    "resnet18, narrow": (lambda: models.ResNet("basic", (2, 2, 2, 2), NARROW, 5),
                         lambda t, _: residual(t, False, (2, 2, 2, 2), NARROW, 5, False), (3, 45, 33)),
    "resnet20": (models.resnet20, lambda t, _: residual(t, False, (3,) * 3, (16, 32, 64), 10, True), (3, 19, 27)),
    "resnet50, smaller": (lambda: models.ResNet("bottleneck", (2, 1, 2, 1), NARROW, 5),
                         lambda t, _: residual(t, True, (2, 1, 2, 1), NARROW, 5, False), (3, 45, 33)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_pytorch_give_pytorchs_outputs_and_go_back(name: str, torch: ModuleType, tmp_path: Path) -> None:
    """The state goes over as it is, directly and by a file, and comes back the same."""
    make, make_theirs, image = NETWORKS[name]
    torch.manual_seed(1)
    ours = make().to("float64")
    theirs = make_theirs(torch, ours).double().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    x = np.random.default_rng(0).standard_normal((2, *image))
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x)).numpy()
    ours.load_state_dict(theirs.state_dict())
    np.testing.assert_allclose(ours.eval()(gpucnn.tensor(x)).numpy(), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())

    from safetensors.torch import save_file as save_torch_file

    save_torch_file(theirs.state_dict(), tmp_path / "model.safetensors")
    filled, _ = load_model(tmp_path / "model.safetensors", make().to("float64"))
    back = make_theirs(torch, ours).double()
    back.load_state_dict({n: torch.from_dlpack(value) for n, value in filled.state_dict().items()})
    for key, value in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


# -- folders ---------------------------------------------------------------------------------------

IMAGES = {
    "classes": ("cat", "dog", "émeu"),
    "normalise": ((0.5, 0.4), (0.25, 0.5)),
    "image_size": (6, 5),
    "channels": 2,
}


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, (3, 2), bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))


class OwnNet(nn.Module):
    """A class of the user's, with one of its own inside."""

    def __init__(self, width: int, depth: int = 2) -> None:
        self.layers = nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = ({n: (v.dtype, v.numpy().tobytes()) for n, v in m.state_dict().items()} for m in (one, other))
    return list(a) == list(b) and a == b


def test_a_folder_holds_huggingfaces_files_and_entries(tmp_path: Path) -> None:
    model = settled(small_net())
    model.save_pretrained(tmp_path / "net", **IMAGES)  # type: ignore[arg-type]
    assert sorted(os.listdir(tmp_path / "net")) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "net" / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["Sequential"]
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "émeu"}
    assert config["label2id"] == {"cat": 0, "dog": 1, "émeu": 2}
    assert config["preprocessing"] == {
        "rescale_factor": 1 / 255, "image_mean": [0.5, 0.4], "image_std": [0.25, 0.5],
        "size": {"height": 6, "width": 5}, "num_channels": 2,
    }  # fmt: skip
    assert config["gpucnn_version"] == gpucnn.__version__
    assert config["dtype"] == "float32"
    state = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    assert {n: a.tobytes() for n, a in load_file(tmp_path / "net" / "model.safetensors").items()} == state


@pytest.mark.parametrize(
    "make",
    [
        small_net,
        lambda: models.LeNet5(7, 3, (20, 28), batch_norm=True),
        lambda: models.VGGSmall(widths=(4, 8)),
        models.resnet20,
        lambda: models.ResNet("bottleneck", (1, 1), (4, 8), 3),
        lambda: small_net().to("float64"),
        lambda: nn.Linear(3, 2).to("float16"),
        lambda: nn.Linear(3, 2).to("bfloat16"),
    ],
)
def test_a_model_comes_back_with_the_same_bits(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = settled(make())
    model.save_pretrained(tmp_path / "net")
    before = default_generator.state()
    again = nn.Module.from_pretrained(tmp_path / "net")
    assert default_generator.state() == before
    assert type(again) is type(model)
    assert same_state(again, model)
    assert not again.training
    assert same_state(type(model).from_pretrained(str(tmp_path / "net")), model)


def test_the_config_goes_along_from_model_to_folder(tmp_path: Path) -> None:
    small_net().save_pretrained(tmp_path / "one", **IMAGES)  # type: ignore[arg-type]
    model = nn.Module.from_pretrained(tmp_path / "one")
    assert model.config["id2label"]["2"] == "émeu"
    model.save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "config.json").read_bytes() == (tmp_path / "one" / "config.json").read_bytes()
    model.save_pretrained(tmp_path / "three", classes=("a", "b", "c"), channels=3)
    config = nn.Module.from_pretrained(tmp_path / "three").config
    assert config["label2id"] == {"a": 0, "b": 1, "c": 2}
    assert config["preprocessing"]["num_channels"] == 3
    assert config["preprocessing"]["size"] == {"height": 6, "width": 5}


def test_what_a_loader_knows_of_its_images_goes_into_the_folder(tmp_path: Path) -> None:
    loader = data.Loader(data.x_or_not_x(9, size=(7, 8)), 4, normalise=(0.25, 0.5))
    nn.Sequential(nn.Flatten(), nn.Linear(56, 2)).save_pretrained(tmp_path / "net", **describe_input(loader))
    config = nn.Module.from_pretrained(tmp_path / "net").config
    assert list(config["id2label"].values()) == list(loader.dataset.classes)
    assert config["preprocessing"]["image_mean"] == [0.25]
    assert config["preprocessing"]["size"] == {"height": 7, "width": 8}


def test_a_class_of_the_users_is_made_by_itself_and_by_nobody_else(tmp_path: Path) -> None:
    model = OwnNet(3, depth=4)
    model.save_pretrained(tmp_path / "net")
    again = OwnNet.from_pretrained(tmp_path / "net")
    assert len(again.layers) == 4
    assert same_state(again, model)
    with pytest.raises(ValueError, match=r"config\.json: test_pretrained\.OwnNet is not a class of gpucnn\.nn"):
        nn.Module.from_pretrained(tmp_path / "net")
    models.LeNet5().save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match=r"net holds a LeNet5, no ResNet; nn\.Module\.from_pretrained takes any"):
        models.ResNet.from_pretrained(tmp_path / "net")


def test_a_model_is_loaded_onto_the_backend_that_is_asked_for(tmp_path: Path, backend: str) -> None:
    small_net().save_pretrained(tmp_path / "net")
    with gpucnn.use_backend("numpy"):
        model = nn.Module.from_pretrained(tmp_path / "net", backend=backend)
    assert {p.backend.name for p in model.parameters()} == {backend}


# -- several files ---------------------------------------------------------------------------------


def divided(folder: Path, **change: Any) -> Path:
    """A folder whose weights are in two files with an index, as large models come."""
    model = settled(small_net())
    model.save_pretrained(folder)
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(arrays)
    parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, part in parts.items():
        save_file({name: arrays[name] for name in part}, folder / file)
    places = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": {**places, **change}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_weights_may_be_divided_among_files(tmp_path: Path) -> None:
    folder = divided(tmp_path / "net")
    whole = settled(small_net())
    again = nn.Module.from_pretrained(folder)
    gpucnn.manual_seed(3)
    assert same_state(again, settled(small_net()))
    filled, description = load_model(folder / "model.safetensors.index.json", whole)
    assert filled is whole
    assert description == {}
    assert same_state(filled, again)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"0.weight": "../x.safetensors"}, ValueError, r"names the file '\.\./x\.safetensors'; only files beside it"),
        ({"0.weight": "C:\\x.safetensors"}, ValueError, "only files beside it are read"),
        ({"ghost": "nowhere.safetensors"}, FileNotFoundError, r"there is no file .*nowhere\.safetensors"),
        ({"ghost": "model-00001-of-00002.safetensors"}, ValueError, r"does not hold just what .* says: ghost"),
        ({"0.weight": 3}, ValueError, "has no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(change: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        nn.Module.from_pretrained(divided(tmp_path / "net", **change))


def test_an_index_that_names_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        nn.Module.from_pretrained(divided(tmp_path / "net", ghost="model.safetensors.index.json"))


# -- folders that are not right --------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_net().save_pretrained(tmp_path / "net", **IMAGES)  # type: ignore[arg-type]
    return tmp_path / "net"


def rewrite_config(folder: Path, **change: Any) -> Path:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({n: v for n, v in {**config, **change}.items() if v is not None}))
    return folder


def test_a_folder_or_file_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder microsoft/resnet-18; .* this machine"):
        nn.Module.from_pretrained("microsoft/resnet-18")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model\.safetensors"):
        nn.Module.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*config\.json"):
        nn.Module.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"x"', "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (is not whole JSON|must hold an object of JSON)"):
        nn.Module.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": None, "model_type": "resnet"}, r"describes a model of another library \(resnet\).*model=…"),
        (
            {"architecture": {"class": "os.system", "args": [""], "kwargs": {}, "children": {}}},
            "os.system is not a class",
        ),
        ({"architecture": {"class": "Sequential"}}, "this is no description of a model"),
        ({"dtype": "quaternion"}, "quaternion"),
        ({"id2label": {"1": "cat"}}, "id2label or preprocessing can't be read: KeyError '0'"),
        ({"preprocessing": {"image_mean": [0.5], "image_std": [0]}}, "can't be read: ValueError std must be above 0"),
        ({"preprocessing": {"size": 3}}, "can't be read: TypeError"),
    ],
)
def test_an_entry_that_says_nothing_sensible_is_refused(change: Any, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        nn.Module.from_pretrained(rewrite_config(folder, **change))


def test_weights_that_do_not_fit_are_named_all_at_once(folder: Path) -> None:
    arrays = load_file(folder / "model.safetensors")
    arrays["ghost"] = arrays.pop("1.running_var")
    arrays["3.bias"] = np.zeros(4, np.float32)
    arrays["1.bias"] = arrays["1.bias"].astype(np.float64)
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"model\.safetensors does not fit Sequential: missing: 1\.running_var; not expected: ghost; "
        r"of another shape: 3\.bias \(4,\), the model's is \(3,\); of another dtype: 1\.bias float64",
    ):
        nn.Module.from_pretrained(folder)


def test_two_classes_of_one_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each class needs a name of its own, twice there is cat"):
        small_net().save_pretrained(tmp_path / "net", classes=("cat", "dog", "cat"))
    with pytest.raises(ValueError, match="std must be above 0"):
        small_net().save_pretrained(tmp_path / "net", normalise=(0.5, 0.0))
    assert not (tmp_path / "net").exists()


def test_new_weights_are_never_seen_under_an_old_description(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends between the two files: the folder is not readable, rather than wrong."""
    from gpucnn import pretrained

    def die(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "write_text", die)
    with pytest.raises(KeyboardInterrupt):
        small_net().save_pretrained(folder, classes=("x", "y", "z"))
    assert os.listdir(folder) == ["model.safetensors"]
    with pytest.raises(FileNotFoundError, match=r"there is no file .*config\.json"):
        nn.Module.from_pretrained(folder)


def saved_meanwhile(monkeypatch: pytest.MonkeyPatch, folder: Path, times: int) -> list[int]:
    """Another process saves the model again, with other weights and classes, before each of so many first reads."""
    from gpucnn import pretrained

    reads: list[int] = []

    def read_later(path: Path) -> Any:
        reads.append(len(reads) + 1)
        if len(reads) <= times:
            model = small_net()
            model.load_state_dict({**model.state_dict(), "3.bias": np.full(3, len(reads), np.float32)})
            model.save_pretrained(folder, classes=[f"{letter}{len(reads)}" for letter in "abc"])
        return _read(path)

    monkeypatch.setattr(pretrained, "_read", read_later)
    monkeypatch.setattr(pretrained, "PAUSE", 0)
    return reads


def test_a_reader_that_meets_a_writer_begins_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = saved_meanwhile(monkeypatch, folder, times=2)
    model = nn.Module.from_pretrained(folder)
    assert reads == [1, 2, 3]
    assert model.state_dict()["3.bias"].tolist() == [2, 2, 2]
    assert list(model.config["id2label"].values()) == ["a2", "b2", "c2"]


def test_a_reader_waits_for_the_description_that_a_writer_has_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpucnn import pretrained

    reads = saved_meanwhile(monkeypatch, folder, times=1)
    text: list[str] = []
    monkeypatch.setattr(pretrained, "write_text", lambda path, content: text.append(content))

    def pause(seconds: float) -> None:
        if len(reads) == 1:
            write_text(folder / "config.json", text[0])

    monkeypatch.setattr(time, "sleep", pause)
    assert nn.Module.from_pretrained(folder).config["id2label"]["0"] == "a1"
    assert reads == [1, 2]


def test_a_folder_that_never_stops_changing_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_meanwhile(monkeypatch, folder, times=99)
    with pytest.raises(ValueError, match=r"config\.json changed or vanished 10 times .* another process is writing"):
        nn.Module.from_pretrained(folder)


def test_a_write_that_fails_leaves_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpucnn import pretrained

    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(file: Path, arrays: Any, metadata: Any) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pretrained, "write_arrays", full)
    with pytest.raises(OSError, match="disk full"):
        models.LeNet5().save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# -- the command -----------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[Any, str, str]:
    from gpucnn.cli import main

    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_the_command_takes_a_folder_as_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: no pictures to predict")
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 2))
    folder, picture = tmp_path / "net", tmp_path / "digit.png"
    model.save_pretrained(folder, classes=("no", "yes"), normalise=(0.4, 0.5), image_size=(6, 5), channels=1)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 1)).astype(np.uint8)
    image.fromarray(pixels[0, ..., 0]).save(picture)
    np.savez(tmp_path / "ten.npz", images=pixels, labels=np.arange(10) % 2)
    logits = model(gpucnn.tensor(((pixels / 255 - 0.4) / 0.5).transpose(0, 3, 1, 2).astype(np.float32))).numpy()
    exps = np.exp(logits.astype(float))

    code, out, err = command(capsys, "predict", folder, picture, "--json")
    assert code == 0, err
    found = {entry["class"]: entry["probability"] for entry in json.loads(out)[0]["classes"]}
    assert found["yes"] == pytest.approx(exps[0, 1] / exps[0].sum(), abs=1e-5)
    code, out, err = command(capsys, "evaluate", folder, tmp_path / "ten.npz")
    assert code == 0, err
    assert f"accuracy {10 * (logits.argmax(1) == np.arange(10) % 2).sum()}.0 %" in out
    code, out, err = command(capsys, "show", folder, "--text")
    assert code == 0, err
    assert "classes: no, yes" in out
    code, _, err = command(capsys, "predict", tmp_path / "nowhere", picture)
    assert (code, "there is no file" in err) == (2, True)


def test_training_starts_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.x_or_not_x()
    model.save_pretrained(tmp_path / "start")
    options = ["--epochs", 1, "--lr", 1e-12, "--weight-decay", 0, "--no-pictures", "--from", tmp_path / "start"]
    code, _, err = command(capsys, "train", "x-or-not-x", "--out", tmp_path / "run", *options)
    assert code == 0, err
    trained, _ = load_model(tmp_path / "run" / "model.safetensors")
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(trained.state_dict()[name].numpy(), value.numpy(), rtol=0, atol=1e-6)
