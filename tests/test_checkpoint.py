"""Files: what is saved comes back bit for bit, and nothing else comes in."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim
from gpucnn.atomic import write_atomically
from gpucnn.checkpoint import (
    build,
    describe,
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_model,
)
from gpucnn.data import Normalize
from gpucnn.nn import models
from gpucnn.random import default_generator


@pytest.fixture(autouse=True)
def _on_backend(backend):
    with gpucnn.use_backend(backend):
        gpucnn.manual_seed(3)
        yield


class OwnNet(nn.Module):
    """A class of the user's."""

    def __init__(self, width, activation=None):
        self.fc = nn.Linear(width, 2)

    def forward(self, x):
        return self.fc(x)


def small_net(width=4):
    return nn.Sequential(
        nn.Conv2d(2, width, (3, 2), bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d((2, 1)),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(width * 2 * 4, 3),
    )


def some_images(seed=0, count=5):
    return np.random.default_rng(seed).standard_normal((count, 2, 6, 5)).astype(np.float32)


def state_of(module):
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def assert_same_state(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert value.tobytes() == other[name].tobytes(), name


def scrambled(model):
    """The model with other numbers everywhere, so that what is loaded can be told from what was drawn."""
    generator = np.random.default_rng(9)
    for value in model.state_dict().values():
        value.detach().copy_((generator.random(value.shape) * 9).astype(value.dtype))
    return model


# -- descriptions ----------------------------------------------------------------------------------

ZOO = {
    "lenet5": lambda: models.LeNet5(7, in_channels=3, image_size=(20, 28), batch_norm=True),
    "x_or_not_x": models.x_or_not_x,
    "beginners_guide": models.beginners_guide,
    "friendly_introduction": models.friendly_introduction,
    "vgg_small": lambda: models.VGGSmall(widths=(4, 8), dropout=0.1),
    "resnet20": models.resnet20,
    "bottlenecks": lambda: models.ResNet("bottleneck", [1, 1], widths=(4, 8), num_classes=3),
    "block": lambda: models.BasicBlock(2, 4, 2, downsample=nn.Sequential(nn.Conv2d(2, 4, 1, 2), nn.BatchNorm2d(4))),
    "odd arguments": lambda: nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), padding="same"),
        nn.ELU(),
        nn.PReLU(4, init=0.1),
        nn.MaxPool2d(np.int64(2)),
        nn.Dropout(p=np.float32(0.25)),
    ),
    "list": lambda: nn.ModuleList(modules=[nn.Linear(2, 3), nn.ModuleList()]),
    "names": lambda: nn.ModuleDict({"first": nn.Conv2d(1, 2, 3), "second": nn.ReLU()}),
    "nested": lambda: nn.Sequential(nn.Sequential(), nn.Sequential(nn.Sequential(nn.Linear(2, 3)), nn.Identity())),
}


@pytest.mark.parametrize("name", ZOO)
def test_a_model_is_built_again_from_its_description_in_json(name):
    model = ZOO[name]()
    again = build(json.loads(json.dumps(describe(model))))
    assert type(again) is type(model)
    assert describe(again) == describe(model)
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}


def test_a_replaced_layer_is_described_as_it_is_now():
    model = models.ResNet("basic", (1, 1), (4, 8), num_classes=1000)
    model.fc = nn.Linear(8, 3)
    model.layer1[0].downsample = nn.Identity()
    again = build(describe(model))
    assert again.fc.weight.shape == (3, 8)
    assert isinstance(again.layer1[0].downsample, nn.Identity)
    assert again.layer2[0].downsample is not None


def test_appended_and_removed_layers_are_described():
    model = models.LeNet5()
    model.append(nn.Linear(10, 4))
    del model.__dict__["1"]
    again = build(describe(model))
    assert [n for n, _ in again.named_children()] == [n for n, _ in model.named_children()]
    assert isinstance(again.__dict__["12"], nn.Linear)
    again(gpucnn.zeros(2, 1, 28, 28))


class Weighted(nn.Module):
    def __init__(self, count):
        self.factors = nn.ParameterList([gpucnn.rand(2) for _ in range(count)])


def test_a_class_of_ones_own_that_holds_parameters_in_a_list_is_built_again():
    description = json.loads(json.dumps(describe(Weighted(3))))
    again = build(description, Weighted)
    assert [p.shape for p in again.factors] == [(2,)] * 3
    assert describe(again) == description


def test_a_layer_that_is_used_twice_is_described_once_and_built_as_one():
    inner = nn.Linear(4, 4)
    model = nn.Sequential(inner, nn.ReLU(), nn.Sequential(nn.ELU(), inner))
    description = describe(model)
    assert description["children"]["2"]["children"]["1"] == {"shared": "0"}
    again = build(json.loads(json.dumps(description)))
    assert again[2][1] is again[0]
    assert describe(again) == description


def test_layers_that_share_within_a_part_share_in_it_again():
    twin = nn.Linear(4, 4)
    part = nn.Sequential(twin, twin)
    again = build(describe(nn.Sequential(nn.Linear(4, 4), part, part)))
    assert again[1] is again[2]
    assert again[1][0] is again[1][1]
    assert again[1][0] is not again[0]


@pytest.mark.parametrize("place", ["1", "0.weight", "nowhere", "", 3, []])
def test_a_shared_layer_that_was_not_before_is_refused(place):
    layers = {"0": describe(nn.ReLU()), "1": {"shared": place}}
    with pytest.raises(ValueError, match="no description of a model"):
        build({"class": "Sequential", "args": [], "kwargs": {}, "children": layers})


def test_a_layer_that_was_taken_away_is_none():
    model = models.BasicBlock(4, 4, 1, nn.Identity())
    model.downsample = None
    assert build(describe(model)).downsample is None


def test_a_class_of_the_users_is_named_in_full_and_not_built():
    description = describe(nn.Sequential(OwnNet(5)))
    assert description["children"]["0"]["class"].endswith("test_checkpoint.OwnNet")
    with pytest.raises(ValueError, match=r"test_checkpoint\.OwnNet is not a class of gpucnn\.nn.*pass it as model="):
        build(description)


def test_a_users_class_with_the_name_of_ours_is_not_taken_for_it():
    impostor = type("Linear", (nn.Module,), {})()
    with pytest.raises(ValueError, match=r"Linear is not a class of gpucnn\.nn"):
        build(describe(impostor))


@pytest.mark.parametrize("name", ["Module", "os.system", "Parameter", "init", "eval", "__import__", ""])
def test_only_our_layers_and_models_are_ever_built(name):
    with pytest.raises(ValueError, match=r"is not a class of gpucnn\.nn"):
        build({"class": name, "args": ["true"], "kwargs": {}, "children": {}})


def test_an_argument_that_json_cannot_hold_is_told_when_building():
    description = describe(nn.CrossEntropyLoss(weight=gpucnn.ones(2)))
    with pytest.raises(ValueError, match=r"made with tensor\(\[1., 1.\]\), which a file can't hold.*model="):
        build(json.loads(json.dumps(description)))


@pytest.mark.parametrize(
    "broken",
    [
        {},
        [],
        None,
        {"class": "ReLU", "args": [], "kwargs": {}},
        {"class": "Flatten", "args": [1, 2, 3], "kwargs": {}, "children": {}},
        {"class": "ReLU", "args": 5, "kwargs": {}, "children": {}},
        {"class": ["ReLU"], "args": [], "kwargs": {}, "children": {}},
        {"class": "Linear", "args": [], "kwargs": {"nothing": 1}, "children": {}},
        {"class": "Sequential", "args": [], "kwargs": {}, "children": {"0": None}},
        {"class": "Sequential", "args": [], "kwargs": {}, "children": 7},
    ],
)
def test_what_is_no_description_is_refused(broken):
    with pytest.raises(ValueError, match="no description of a model"):
        build(broken)


@pytest.mark.parametrize("child", ["forward", "training", "_arguments", "__class__", "append"])
def test_a_description_cannot_replace_methods(child):
    relu = describe(nn.ReLU())
    with pytest.raises(ValueError, match=f"Sequential can't have a child '{child}'"):
        build({"class": "Sequential", "args": [], "kwargs": {}, "children": {child: relu}})


def test_a_constructor_that_refuses_its_arguments_says_why():
    with pytest.raises(ValueError, match="in_features must be a positive int, got -1"):
        build({"class": "Linear", "args": [-1, 2], "kwargs": {}, "children": {}})


# -- models ----------------------------------------------------------------------------------------


def test_a_model_comes_back_with_the_same_bits(tmp_path):
    model = small_net()
    model(gpucnn.tensor(some_images()))  # moves the running statistics
    save_model(
        model, tmp_path / "m.safetensors", classes=("a", "b", "c"), normalise=([0.5, 0.4], [0.25, 0.5]), note="hi"
    )
    again, description = load_model(tmp_path / "m.safetensors")
    assert_same_state(state_of(again), state_of(model))
    x = gpucnn.tensor(some_images(1))
    assert again(x).numpy().tobytes() == model.eval()(x).numpy().tobytes()
    assert description["classes"] == ["a", "b", "c"]
    assert description["normalise"] == [[0.5, 0.4], [0.25, 0.5]]
    assert description["note"] == "hi"
    assert description["gpucnn"] == gpucnn.__version__


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"classes": "ab"}, TypeError, "classes must be names, one for each output, got 'ab'"),
        ({"classes": 5}, TypeError, "classes must be names, one for each output, got 5"),
        ({"classes": ["a", "\x1b[31m"]}, ValueError, r"save_model: classes is .*, not a list of names that a terminal"),
        ({"normalise": 5}, TypeError, r"normalise must be \(mean, std\), numbers or one a channel, got 5"),
        ({"normalise": ("a", 1)}, TypeError, r"normalise must be \(mean, std\)"),
        (
            {"normalise": (1, 2, 3)},
            ValueError,
            r"save_model: normalise is \[1.0, 2.0, 3.0\], not a mean and a standard",
        ),
        ({"normalise": (None, None)}, ValueError, r"save_model: normalise is \[nan, nan\], not a mean and a standard"),
        ({"normalise": (0.5, 0)}, ValueError, r"standard deviation above 0"),
        ({"image_size": [28]}, ValueError, r"save_model: image_size is \[28\], not a height and a width"),
        ({"channels": "x"}, ValueError, r"save_model: channels is 'x', not a whole number from 1 to"),
        ({"foo": float("nan")}, TypeError, "save_model: foo=nan is nothing that JSON can hold"),
        ({"foo": {1}}, TypeError, r"save_model: foo=\{1\} is nothing that JSON can hold"),
        ({"path": None}, TypeError, r"save_model\(model, path\): path must be a text or a Path, got NoneType None"),
    ],
)
def test_a_description_that_nobody_could_use_is_not_written(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        save_model(small_net(), **{"path": tmp_path / "m.safetensors", **options})
    assert not list(tmp_path.iterdir())


def test_what_is_to_be_filled_must_be_a_model(tmp_path):
    save_model(small_net(), tmp_path / "m.safetensors")
    with pytest.raises(TypeError, match=r"load_model\(path, model\): model must be a Module, got int 5"):
        load_model(tmp_path / "m.safetensors", model=5)
    with pytest.raises(TypeError, match=r"load_model\(path\): path must be a text or a Path, got NoneType None"):
        load_model(None)


def test_a_loaded_model_is_in_evaluation_mode(tmp_path):
    save_model(small_net().train(), tmp_path / "m.safetensors")
    assert not any(module.training for module in load_model(tmp_path / "m.safetensors")[0].modules())


def test_the_file_holds_pytorchs_names_and_filters_in_kcrs_order(tmp_path):
    model = small_net()
    save_model(model, tmp_path / "m.safetensors")
    arrays = load_file(tmp_path / "m.safetensors")
    assert set(arrays) == set(model.state_dict())
    assert arrays["0.weight"].shape == (4, 2, 3, 2)
    assert arrays["1.num_batches_tracked"].shape == ()
    weight = model[0].weight.numpy()
    for place in np.ndindex(weight.shape):
        assert arrays["0.weight"][place] == weight[place]
    raw = (tmp_path / "m.safetensors").read_bytes()
    assert weight.tobytes() in raw  # tobytes writes in index order, whatever the order in memory


def test_pytorch_reads_the_file_and_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from safetensors.torch import load_file as load_torch_file

    save_model(small_net(), tmp_path / "m.safetensors")
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, (3, 2), bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.MaxPool2d((2, 1)), torch.nn.Flatten(), torch.nn.Dropout(0.4), torch.nn.Linear(32, 3),
    )  # fmt: skip
    theirs.load_state_dict(load_torch_file(tmp_path / "m.safetensors"))
    x = some_images()
    expected = theirs.double().eval()(torch.from_numpy(x).double()).detach().numpy()
    model = load_model(tmp_path / "m.safetensors")[0].to("float64")
    found = model(gpucnn.tensor(x.astype(np.float64))).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_equal_models_give_equal_files(tmp_path):
    model = small_net()
    for name in ("one", "two"):
        save_model(model, tmp_path / name, classes=["a"], normalise=Normalize(0.5, 0.25), b=1, a=2)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert load_model(tmp_path / "one")[1]["normalise"] == [0.5, 0.25]


@pytest.mark.parametrize(
    "normalise",
    [
        (np.array([0.5, 0.25], np.float32), np.array([1.0, 2.0])),
        Normalize(np.array([0.5, 0.25]), [np.float32(1), np.int64(2)]),
    ],
)
def test_arrays_and_numbers_of_numpy_are_saved_as_plain_ones(tmp_path, normalise):
    save_model(small_net(), tmp_path / "m", classes=np.arange(2), normalise=normalise)
    description = load_model(tmp_path / "m")[1]
    assert description["normalise"] == [[0.5, 0.25], [1.0, 2.0]]
    assert description["classes"] == ["0", "1"]


def test_what_gpucnn_itself_says_of_a_model_is_not_replaced(tmp_path):
    with pytest.raises(ValueError, match=r"architecture='x', dtype='int8' would replace what gpucnn.*choose another"):
        save_model(small_net(), tmp_path / "m", architecture="x", dtype="int8", note="hi")
    assert os.listdir(tmp_path) == []


def test_a_float64_model_stays_float64(tmp_path):
    model = small_net().to("float64")
    save_model(model, tmp_path / "m.safetensors")
    again, _ = load_model(tmp_path / "m.safetensors")
    assert_same_state(state_of(again), state_of(model))


def test_loading_draws_no_random_numbers(tmp_path):
    save_model(small_net(), tmp_path / "m.safetensors")
    before = default_generator.state()
    load_model(tmp_path / "m.safetensors")
    assert default_generator.state() == before


def test_a_given_model_is_filled_even_of_a_class_of_the_users(tmp_path):
    model, other = OwnNet(5, activation=F.relu), scrambled(OwnNet(5))
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"m\.safetensors: .*OwnNet is not a class of gpucnn\.nn"):
        load_model(tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", other)[0] is other
    assert_same_state(state_of(other), state_of(model))


def test_a_layer_that_is_used_twice_comes_back_as_one(tmp_path):
    layer = nn.Linear(4, 4)
    model = scrambled(nn.Sequential(layer, nn.ReLU(), layer))
    save_model(model, tmp_path / "m.safetensors")
    again, _ = load_model(tmp_path / "m.safetensors")
    assert again[2] is again[0]
    assert_same_state(state_of(again), state_of(model))


def test_bfloat16_is_read_by_a_process_that_has_not_used_it(tmp_path):
    """Only then does NumPy not know the name yet."""
    model = nn.Sequential(nn.Linear(3, 2)).to("bfloat16")
    save_model(model, tmp_path / "m.safetensors")
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards")
    index = {"weight_map": dict.fromkeys(model.state_dict(), "part.safetensors")}
    (tmp_path / "shards" / "model.safetensors").rename(tmp_path / "shards" / "part.safetensors")
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    code = (
        "import gpucnn\n"
        "from gpucnn.checkpoint import load_model\n"
        f"path = {str(tmp_path)!r}\n"
        "{}\n"
        "print(model[0].weight.dtype, model[0].weight.float().tolist())\n"
    )
    wanted = f"bfloat16 {model[0].weight.float().tolist()}\n"
    for read in (
        "model, _ = load_model(path + '/m.safetensors')",
        "model = gpucnn.nn.Module.from_pretrained(path + '/whole')",
        "model = gpucnn.nn.Module.from_pretrained(path + '/shards')",
    ):
        result = subprocess.run(
            [sys.executable, "-c", code.format(read)], capture_output=True, text=True, timeout=120, check=False
        )
        assert (result.stdout, result.returncode) == (wanted, 0), result.stderr


def test_without_ml_dtypes_a_bfloat16_file_names_the_command(tmp_path):
    save_model(nn.Linear(3, 2).to("bfloat16"), tmp_path / "m.safetensors")
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "from gpucnn.checkpoint import load_model\n"
        f"load_model({str(tmp_path / 'm.safetensors')!r})\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert 'ImportError: bfloat16 needs the package ml_dtypes: pip install "gpucnn[half]"' in result.stderr


def test_a_plain_safetensors_file_fills_a_given_model(tmp_path):
    model, other = small_net(), scrambled(small_net())
    save_file({name: np.ascontiguousarray(v).reshape(v.shape) for name, v in state_of(model).items()}, tmp_path / "p")
    with pytest.raises(
        ValueError, match="does not say which model its weights belong to; make it and pass it as model="
    ):
        load_model(tmp_path / "p")
    assert load_model(tmp_path / "p", other)[1] == {}
    assert_same_state(state_of(other), state_of(model))


def test_a_model_is_loaded_onto_the_backend_that_is_asked_for(tmp_path, backend):
    save_model(small_net(), tmp_path / "m.safetensors")
    for given in (None, small_net()):
        model, _ = load_model(tmp_path / "m.safetensors", given, backend=backend)
        assert {p.backend.name for p in model.parameters()} == {backend}
    with pytest.raises(ValueError, match="backend is 'abacus'"):
        load_model(tmp_path / "m.safetensors", backend="abacus")


# -- files that are not right ----------------------------------------------------------------------


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(small_net(), path)
    return path


def refused(path, match):
    """load_model refuses the file, and a given model has not changed."""
    model = scrambled(small_net())
    before = state_of(model)
    with pytest.raises(ValueError, match=match):
        load_model(path, model)
    assert_same_state(state_of(model), before)
    assert model.training


def rewritten(path, change):
    """The file again after change(header, data)."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    changed = change(header, data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + (data if changed is None else changed))
    return path


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.safetensors"):
        load_model(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04 pickle", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}x"])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    refused(tmp_path / "f", "f is not a whole safetensors file")


def test_a_truncated_file_is_refused_wherever_it_ends(model_file):
    whole = model_file.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        model_file.write_bytes(whole[:length])
        refused(model_file, "is not a whole safetensors file")


def test_a_header_that_lies_about_offsets_is_refused(model_file):
    def lie(header, data):
        begin, end = header["6.weight"]["data_offsets"]
        header["6.weight"]["data_offsets"] = [begin, end + 4]

    refused(rewritten(model_file, lie), "is not a whole safetensors file")


def test_a_header_that_lies_about_a_shape_is_refused(model_file):
    refused(
        rewritten(model_file, lambda header, data: header["6.weight"].update(shape=[32, 3])),
        r"does not fit Sequential: of another shape: 6\.weight \(32, 3\), the model's is \(3, 32\)",
    )


def test_missing_and_unexpected_arrays_are_named(model_file):
    def rename(header, data):
        header["0.bias"] = header.pop("6.bias")

    refused(rewritten(model_file, rename), r"missing: 6\.bias; not expected: 0\.bias")


def test_another_dtype_is_refused_and_both_are_shown(tmp_path):
    save_model(small_net().to("float64"), tmp_path / "m")
    refused(tmp_path / "m", r"another dtype: 0\.weight float64, the model's is float32.*model\.to\(dtype\)")


def test_a_dtype_that_numpy_does_not_have_is_refused(model_file):
    def halve(header, data):
        header["6.weight"].update(dtype="BF16", shape=[6, 32])

    refused(rewritten(model_file, halve), "numbers of a type that NumPy does not have|another shape")


@pytest.mark.parametrize("text", ["{", "[1]", "3", "[" * 100_000])
def test_an_unreadable_description_is_refused(model_file, text):
    def spoil(header, data):
        header["__metadata__"] = {"gpucnn.model": text}

    refused(rewritten(model_file, spoil), "its description can't be read")


def test_a_description_with_a_wrong_dtype_is_refused(model_file):
    def spoil(header, data):
        description = json.loads(header["__metadata__"]["gpucnn.model"])
        header["__metadata__"]["gpucnn.model"] = json.dumps({**description, "dtype": "quaternion"})

    with pytest.raises(ValueError, match="quaternion"):
        load_model(rewritten(model_file, spoil))


def test_what_json_cannot_hold_is_refused_before_a_file_is_written(tmp_path):
    parts = trainer("sgd", "none")
    for save, message in (
        (
            lambda: save_model(small_net(), tmp_path / "m", tags={1}),
            r"save_model: tags=\{1\} is nothing that JSON can hold; it",
        ),
        (
            lambda: save_model(small_net(), tmp_path / "m", a=[{"b": np.ones(2)}]),
            r"save_model: a\.0\.b=array\(\[1\., 1\.\]\) is nothing that JSON can",
        ),
        (
            lambda: save_model(small_net(), tmp_path / "m", a={(1, 2): 3}),
            r"save_model: a's key=\(1, 2\) is nothing that",
        ),
        (
            lambda: save_checkpoint(tmp_path / "c", **parts, settings={"a": 1j}),
            r"save_checkpoint: settings\.a=1j is nothing",
        ),
        (lambda: save_checkpoint(tmp_path / "c", **parts, place={2}), r"save_checkpoint: state\.place=\{2\} is noth"),
        (lambda: save_checkpoint(tmp_path / "c", **parts, arrays={"a": np.array("x")}), r"not: own/a \(<U1\)$"),
        (lambda: save_model(small_net(), 5), r"save_model\(model, path\): path must be a text or a Path, got int 5"),
    ):
        with pytest.raises(TypeError, match=message):
            save()
    assert os.listdir(tmp_path) == []


def test_numbers_of_numpy_are_saved_as_plain_ones_wherever_they_are(tmp_path):
    save_model(small_net(), tmp_path / "m", top5=np.float32(0.5), sizes=(np.int64(3), {"a": np.bool_(True)}))
    description = load_model(tmp_path / "m")[1]
    assert (description["top5"], description["sizes"]) == (0.5, [3, {"a": True}])
    parts = trainer("sgd", "none")
    settings = {"a": np.int64(1), "b": [math.nan], 3: np.float64(2)}
    save_checkpoint(tmp_path / "c", **parts, settings=settings, loss=np.float32(0.25))
    assert load_checkpoint(tmp_path / "c", **parts, settings=settings)[0] == {"loss": 0.25}
    with pytest.raises(ValueError, match=r"b was \[nan\], is \[1\.0\]"):
        load_checkpoint(tmp_path / "c", **parts, settings=settings | {"b": [1.0]})


# -- writing ---------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path  # os.replace is atomic within one file system alone

    write_atomically(path, write)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["f"]


def test_a_missing_folder_and_a_folder_as_a_file_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; make it first"):
        save_model(small_net(), tmp_path / "nowhere" / "m")
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file in it"):
        save_model(small_net(), tmp_path)


# -- training states -------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "plain sgd": lambda p: optim.SGD(p, 0.05),
    "adam": lambda p: optim.Adam(p, 0.01),
    "adamw": lambda p: optim.AdamW(p, 0.01),
    "rmsprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.5),
    "groups": lambda p: optim.Adam(
        [{"params": w} if w.ndim > 1 else {"params": w, "lr": 0.02, "weight_decay": 0.0} for w in p], 0.01,
        weight_decay=0.01,
    ),
}  # fmt: skip
SCHEDULES = {
    "none": lambda o: None,
    "step": lambda o: optim.StepLR(o, 2),
    "one cycle": lambda o: optim.OneCycleLR(o, 0.1, 20),
    "warm up": lambda o: optim.WarmUp(optim.CosineAnnealingLR(o, 10), 3),
    "plateau": lambda o: optim.ReduceLROnPlateau(o, patience=1, threshold=0.5),
}


def trainer(optimizer, schedule, width=4):
    model = small_net(width)
    o = OPTIMIZERS[optimizer](model.parameters())
    return {"model": model, "optimizer": o, "scheduler": SCHEDULES[schedule](o)}


def train(parts, steps, first):
    losses = []
    for step in range(first, first + steps):
        x = gpucnn.tensor(some_images(step))
        loss = F.cross_entropy(parts["model"](x), np.array([0, 1, 2, 0, 1]))
        parts["optimizer"].zero_grad()
        loss.backward()
        parts["optimizer"].step()
        if isinstance(parts["scheduler"], optim.ReduceLROnPlateau):
            parts["scheduler"].step(loss)
        elif parts["scheduler"] is not None:
            parts["scheduler"].step()
        losses.append((loss.item(), [group["lr"] for group in parts["optimizer"].param_groups]))
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_training_goes_on_from_its_checkpoint_bit_for_bit(tmp_path, optimizer, schedule):
    path = tmp_path / "c.safetensors"
    unbroken = trainer(optimizer, schedule)
    train(unbroken, 4, first=0)
    best = np.arange(6.0).reshape(2, 3)
    save_checkpoint(path, **unbroken, arrays={"best.0": best}, epoch=2, third=1 / 3)
    expected = train(unbroken, 4, first=4)

    gpucnn.manual_seed(77)  # the dropout masks must come from the checkpoint
    resumed = trainer(optimizer, schedule)
    train(resumed, 2, first=50)
    state, arrays = load_checkpoint(path, **resumed)
    assert state == {"epoch": 2, "third": 1 / 3}
    np.testing.assert_array_equal(arrays["best.0"], best)
    assert train(resumed, 4, first=4) == expected
    assert_same_state(state_of(resumed["model"]), state_of(unbroken["model"]))
    assert default_generator.seed == 3


def test_a_rate_that_was_set_by_hand_goes_on_until_the_schedules_next_step(tmp_path):
    saved, resumed = trainer("sgd", "step"), trainer("sgd", "step")
    saved["optimizer"].lr = 0.125
    save_checkpoint(tmp_path / "c", **saved)
    load_checkpoint(tmp_path / "c", **resumed)
    assert resumed["optimizer"].lr == 0.125


def in_the_form_before_groups(path):
    """The same checkpoint as the version before there were groups wrote it."""
    with safe_open(path, "numpy") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def single(schedule):
        return {
            name.removesuffix("s") if isinstance(value, list) else name: value[0] if isinstance(value, list) else value
            for name, value in schedule.items()
        }

    content = json.loads(metadata["gpucnn.checkpoint"])
    [group] = content["optimizer"].pop("param_groups")
    del group["params"]
    content["optimizer"] |= group
    if content["scheduler"] is not None:
        content["scheduler"] = single(content["scheduler"])
        if "after" in content["scheduler"]:
            content["scheduler"]["after"] = single(content["scheduler"]["after"])
    save_file(arrays, path, {"gpucnn.checkpoint": json.dumps(content)})


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "groups"])
@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "plateau"])
def test_a_checkpoint_of_the_version_before_groups_goes_on_bit_for_bit(tmp_path, optimizer, schedule):
    unbroken = trainer(optimizer, schedule)
    train(unbroken, 3, first=0)
    save_checkpoint(tmp_path / "c", **unbroken)
    in_the_form_before_groups(tmp_path / "c")
    expected = train(unbroken, 3, first=3)
    resumed = trainer(optimizer, schedule)
    load_checkpoint(tmp_path / "c", **resumed)
    assert train(resumed, 3, first=3) == expected


def test_a_checkpoint_takes_a_model_one_optimizer_and_a_schedule(tmp_path):
    parts = trainer("sgd", "step")
    save_checkpoint(tmp_path / "c", **parts)
    for name, wrong, message in (
        (
            "optimizer",
            [parts["optimizer"]] * 2,
            "optimizer must be .*, got list; one optimizer steps them all, with gr",
        ),
        ("optimizer", None, r"optimizer must be a gpucnn\.optim\.Optimizer, got NoneType$"),
        ("model", parts["model"].state_dict(), "model must be a Module, got dict"),
        ("scheduler", parts["optimizer"], r"scheduler must be one of gpucnn\.optim, got SGD"),
    ):
        for call in (save_checkpoint, load_checkpoint):
            with pytest.raises(TypeError, match=f"{call.__name__}: {message}"):
                call(tmp_path / "c", **{**parts, name: wrong})


def test_a_state_that_is_saved_as_a_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(TypeError, match=r"model must be a Module, got dict; its state_dict\(\) goes with it$"):
        save_model(small_net().state_dict(), tmp_path / "m")
    with pytest.raises(TypeError, match=r"got str 'm'$"):
        save_model("m", small_net())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_save_is_known_by_its_beginning(tmp_path, torch, zipped):
    torch.save({"weight": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"x\.pt is not a whole safetensors file: .* looks like a PyTorch file.*safeten"
    ):
        load_model(tmp_path / "x.pt")
    (tmp_path / "y").write_bytes(b"\x80\x02" + bytes(20))
    with pytest.raises(ValueError, match="not a whole safetensors file") as caught:
        load_model(tmp_path / "y")
    assert "PyTorch" not in str(caught.value)


def test_a_checkpoint_of_a_fresh_training_forgets_later_moments(tmp_path):
    parts = trainer("sgd", "none")
    save_checkpoint(tmp_path / "c", **parts)
    expected = train(parts, 2, first=0)
    load_checkpoint(tmp_path / "c", **parts)
    assert train(parts, 2, first=0) == expected


SETTINGS = {
    "model": describe(small_net()),
    "optimizer": {"class": "Adam", "betas": (0.9, 0.99)},
    "scheduler": None,
    "train": {"batch_size": 4, "seed": 1},
}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": describe(small_net(5))}, r"model\.children\.0\.args was \[2, 4, \[3, 2\]\], is \[2, 5, \[3, 2\]\]"),
        ({"model": describe(nn.Sequential(nn.ReLU()))}, r"model\.children\.0 was 'Conv2d', is 'ReLU'.*; and 2 more"),
        ({"model": describe(OwnNet(3))}, r"model was 'Sequential', is '[\w.]*OwnNet'"),
        ({"optimizer": {"class": "SGD"}}, r"optimizer was 'Adam', is 'SGD'"),
        ({"optimizer": {"class": "Adam", "betas": (0.8, 0.99)}}, r"\.betas was \[0\.9, 0\.99\], is \[0\.8, 0\.99\]"),
        ({"scheduler": {"class": "StepLR"}}, r"scheduler was None, is 'StepLR'"),
        ({"train": {"batch_size": 8, "seed": 2}}, r"train\.batch_size was 4, is 8; train\.seed was 1, is 2"),
        ({"train": {"batch_size": 4, "seed": 1, "new": 3}}, r"train\.new was None, is 3"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_and_both_sides_shown(tmp_path, change, match):
    parts = trainer("adam", "none")
    save_checkpoint(tmp_path / "c", **parts, settings=SETTINGS)
    load_checkpoint(tmp_path / "c", **parts, settings=SETTINGS)
    scrambled(parts["model"])
    before = state_of(parts["model"])
    with pytest.raises(ValueError, match=match):
        load_checkpoint(tmp_path / "c", **parts, settings={**SETTINGS, **change})
    assert_same_state(state_of(parts["model"]), before)


def test_nothing_changes_when_the_arrays_do_not_fit(tmp_path):
    saved = trainer("adam", "none")
    train(saved, 1, first=0)
    save_checkpoint(tmp_path / "c", **saved)
    wider, other_kind = trainer("adam", "none", width=5), trainer("sgd", "none")
    for parts, match in (
        (
            wider,
            r"c does not fit Sequential: of another shape: 0\.weight \(4, 2, 3, 2\), the model's is \(5, 2, 3, 2\)",
        ),
        (other_kind, r"is of a run with other settings: optimizer was 'Adam', is 'SGD'\. Resume with the settings"),
    ):
        before, drawn = state_of(parts["model"]), default_generator.state()
        with pytest.raises(ValueError, match=match):
            load_checkpoint(tmp_path / "c", **parts)
        assert_same_state(state_of(parts["model"]), before)
        assert default_generator.state() == drawn


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("step", "scheduler was 'WarmUp', is 'StepLR'"),
        ("none", "scheduler was 'WarmUp', is None"),
        ("warm steps", r"scheduler\.after was 'CosineAnnealingLR', is 'StepLR'"),
    ],
)
def test_another_schedule_is_refused_before_any_change(tmp_path, monkeypatch, schedule, message):
    monkeypatch.setitem(SCHEDULES, "warm steps", lambda o: optim.WarmUp(optim.StepLR(o, 10), 3))
    saved, other = trainer("sgd", "warm up"), trainer("sgd", schedule)
    train(saved, 2, first=0)
    save_checkpoint(tmp_path / "c", **saved)
    rate, weights = other["optimizer"].lr, state_of(other["model"])
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "c", **other)
    assert other["optimizer"].lr == rate
    assert_same_state(state_of(other["model"]), weights)
    save_checkpoint(tmp_path / "none", **trainer("sgd", "none"))
    with pytest.raises(ValueError, match="scheduler was None, is 'WarmUp'"):
        load_checkpoint(tmp_path / "none", **saved)


def test_a_model_and_a_checkpoint_are_not_taken_for_each_other(tmp_path):
    parts = trainer("sgd", "none")
    save_checkpoint(tmp_path / "c", **parts)
    with pytest.raises(ValueError, match=r"c is the state of a training, not a model; fit\(resume=True\)"):
        load_model(tmp_path / "c")
    save_model(parts["model"], tmp_path / "m")
    with pytest.raises(ValueError, match="m is not the state of a training"):
        load_checkpoint(tmp_path / "m", **parts)
