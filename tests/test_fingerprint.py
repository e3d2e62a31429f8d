"""`gpucnn fingerprint`: hashes of a small training, by which two places are compared."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import fingerprint as f
from gpucnn import nn, optim
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.cli import main
from gpucnn.random import default_generator


@pytest.fixture(scope="module")
def here() -> f.Fingerprint:
    return f.fingerprint("numpy")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["fingerprint", "--backend", "numpy", *words])
    assert isinstance(end.value.code, int)
    return end.value.code


def differing(one: f.Fingerprint, other: f.Fingerprint) -> list[str]:
    """The parts that differ."""
    assert list(one.parts) == list(other.parts)
    assert all(list(one.parts[part]) == list(other.parts[part]) for part in one.parts)
    return [part for part in one.parts if one.parts[part] != other.parts[part]]


PARTS = [
    "data", "initialisation", "step 1, forward", "step 1, gradients",
    "SGD, after step 1", "SGD, after step 8", "SGD, predictions",
    "Adam, after step 1", "Adam, after step 8", "Adam, predictions",
]  # fmt: skip


def test_it_covers_batches_weights_layers_gradients_moments_losses_and_random_state(here) -> None:
    assert list(here.parts) == PARTS
    assert len(here.parts["data"]) == 2 * 4 * 2
    assert [name.partition("(")[2] for name in here.parts["step 1, forward"]] == [
        "Conv2d)", "BatchNorm2d)", "ReLU)", "MaxPool2d)", "Conv2d)", "ReLU)", "AvgPool2d)", "Flatten)", "Dropout)",
        "Linear)", "",
    ]  # fmt: skip
    weights = ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias", "9.weight", "9.bias"]
    assert list(here.parts["step 1, gradients"]) == weights
    after = here.parts["Adam, after step 8"]
    assert {"losses", "random state", "learning rate", "1.running_mean", *weights} <= after.keys()
    assert sum(name.startswith("moment ") for name in after) == 2 * len(weights)
    every = [hash for part in PARTS for hash in here.parts[part].values()]
    repeated = len(every) - len(set(every))  # batches of the same labels or images, zeros, ones, layers that flatten
    assert repeated < len(every) / 4


def test_the_generator_of_the_process_and_the_backend_in_force_are_left_alone() -> None:
    default_generator.manual_seed(11)
    gpucnn.rand(3)
    before = default_generator.state()
    with gpucnn.use_backend("numpy") as backend:
        f.fingerprint()
        assert gpucnn.get_backend() is backend
    assert default_generator.state() == before


# What is changed, and the first part that must show it; those before must not.
FAULTS: list[tuple[str, Any, str, Any]] = [
    ("data", f.data.RandomHorizontalFlip, "__call__", lambda self, images, generator: images),
    ("initialisation", nn.init, "get_generator", lambda generator: gpucnn.Generator(1)),
    ("step 1, forward", NumpyBackend, "max_pool2d_forward", None),
    ("step 1, gradients", NumpyBackend, "conv2d_backward_weight", None),
    ("SGD, after step 1", NumpyBackend, "sgd_update", None),
    ("SGD, after step 1", optim.OneCycleLR, "step", lambda self: None),
    ("Adam, after step 1", NumpyBackend, "adam_update", None),
]


def a_bit_off(function: Any) -> Any:
    """The function, whose first result is wrong by one in the last place of one element."""

    def wrong(self: Any, *arguments: Any, **options: Any) -> Any:
        result = function(self, *arguments, **options)
        array = result
        while isinstance(array, tuple | list):
            array = array[0]
        array = arguments[0][0] if array is None else array  # the optimisers change their arguments
        place = (0,) * array.ndim
        array[place] = np.nextafter(array[place], array.dtype.type(9))
        return result

    return wrong


@pytest.mark.parametrize(("part", "owner", "name", "instead"), FAULTS, ids=[fault[2] for fault in FAULTS])
def test_the_first_part_that_differs_says_where_it_went_wrong(here, monkeypatch, part, owner, name, instead) -> None:
    monkeypatch.setattr(owner, name, instead or a_bit_off(getattr(owner, name)))
    there = f.fingerprint("numpy")
    assert differing(here, there)[0] == part
    where = f.first_difference(here, there)
    assert where is not None
    assert where[0] == part
    assert there.hash != here.hash


def test_the_layer_that_went_wrong_is_named(here, monkeypatch) -> None:
    monkeypatch.setattr(NumpyBackend, "max_pool2d_forward", a_bit_off(NumpyBackend.max_pool2d_forward))
    assert f.first_difference(here, f.fingerprint("numpy")) == ("step 1, forward", "layer 3 (MaxPool2d)")


def test_json_comes_back_and_compares_as_equal(here, tmp_path, capsys) -> None:
    assert run("--json") == 0
    printed = capsys.readouterr().out
    (tmp_path / "a.json").write_text(printed, "utf-8")
    found = f.read(tmp_path / "a.json")
    assert found == here
    assert json.loads(printed)["hash"] == here.hash
    assert run("--compare", str(tmp_path / "a.json")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"equal to {tmp_path / 'a.json'}"
    assert [line.split()[-1] for line in lines if line.startswith(tuple(PARTS))] == [here.part_hash(p) for p in PARTS]
    assert f"fingerprint         {here.hash}" in lines


def test_a_difference_is_exit_code_1_with_its_place_and_a_reason(here, tmp_path, capsys) -> None:
    changed = dict(here.parts["step 1, gradients"])
    changed["4.weight"] = "0" * 16
    other = f.Fingerprint({**here.surroundings, "numpy": "1.0"}, {**here.parts, "step 1, gradients": changed})
    path = tmp_path / "other.json"
    path.write_text(other.as_json(), "utf-8")
    assert run("--json", "--compare", str(path)) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["hash"] == here.hash
    assert printed.err == (
        f"differs from {path}, first in step 1, gradients: 4.weight. That may be expected, since numpy is "
        f"{np.__version__} here and 1.0 there: another version of NumPy may add up in another order.\n"
    )
    path.write_text(replace(other, surroundings=here.surroundings).as_json(), "utf-8")
    assert run("--compare", str(path)) == 1
    assert capsys.readouterr().out.endswith("so this is a bug, of gpucnn or of what it computes with.\n")


def test_a_backend_is_no_reason_for_other_batches_or_first_weights(here) -> None:
    other = replace(here, surroundings={**here.surroundings, "backend": "cuda", "blas": "another"})
    assert f.why("data", here, other).startswith("Nothing differs here")
    assert f.why("initialisation", here, other).startswith("Nothing differs here")
    assert "backend is numpy here and cuda there" in f.why("step 1, forward", here, other)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "7", '{"recipe": 1, "hash": "", "surroundings": {}, "parts": 5}', "[" * 100_000, "\0", None,
     '{"recipe": 1, "hash": "", "surroundings": {}, "parts": {"data": 5}}'],
)  # fmt: skip
def test_a_file_that_is_no_fingerprint_is_a_clear_error(tmp_path, capsys, content) -> None:
    path = tmp_path / "x.json"
    if content is None:
        path.write_bytes(b"\xff\xfe\xfd")
    else:
        path.write_text(content, "utf-8")
    assert run("--compare", str(path)) == 2
    assert capsys.readouterr().err == (
        f"gpucnn: error: {path} is no fingerprint: write one with gpucnn fingerprint --json\n"
    )


def test_a_fingerprint_that_was_changed_or_is_of_another_recipe_is_not_compared(here, tmp_path, capsys) -> None:
    for content in (here.as_json().replace(here.parts["data"]["epoch 0, batch 0: images"], "0" * 16),
                    here.as_json().replace('"recipe": 1', '"recipe": 0')):  # fmt: skip
        (tmp_path / "x.json").write_text(content, "utf-8")
        assert run("--compare", str(tmp_path / "x.json")) == 2
        assert "is a fingerprint of another recipe, or was changed" in capsys.readouterr().err
    assert run("--compare", str(tmp_path / "none.json")) == 2
    assert "none.json" in capsys.readouterr().err
