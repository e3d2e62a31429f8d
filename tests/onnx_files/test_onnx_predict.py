"""`gpucnn predict` with an ONNX file."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx.helper import make_node
from onnx_graphs import model_of, written

import gpucnn
from gpucnn import data, nn, train

pytest.importorskip("PIL", reason="Pillow is not installed: no pictures to predict")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "dog.png")
    return tmp_path / "dog.png"


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> Any:
    """Exit code, standard output, standard error."""
    from gpucnn.cli import main

    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def network() -> nn.Module:
    gpucnn.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()


def pixels_of(picture: Path, mean: float = 0.0, std: float = 1.0) -> Any:
    floats = data.to_float(data.read_image(picture, mode="RGB", size=(6, 5))[None])
    return ((floats - mean) / std).astype(np.float32)


def probabilities(out: str) -> dict[str, float]:
    return {entry["class"]: entry["probability"] for entry in json.loads(out)[0]["classes"]}


def test_size_and_channels_come_from_the_file_and_classes_from_its_metadata(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = network(), tmp_path / "net.onnx"
    gpucnn.onnx.save(model, path, (3, 6, 5), classes=["cat", "dog", "emu"], normalise=(0.4, 0.5))
    wanted = train.predict(model, pixels_of(picture, 0.4, 0.5))[0]
    code, out, _ = run(capsys, "predict", path, picture, "--json")
    assert code == 0
    found = probabilities(out)
    for name, probability in zip(["cat", "dog", "emu"], wanted, strict=True):
        assert found[name] == pytest.approx(probability, abs=1e-6)


def test_labels_and_normalisation_can_be_given(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = network(), tmp_path / "net.onnx"
    gpucnn.onnx.save(model, path, (3, 6, 5))
    (tmp_path / "labels.txt").write_text("ant\nbee\ncow\n")
    options = ["--json", "--labels", tmp_path / "labels.txt"]
    for more, mean, std in [
        ([], 0.0, 1.0),
        (["--mean", "0.5"], 0.5, 1.0),
        (["--std", "0.25,0.25,0.25"], 0.0, 0.25),
        (["--mean", "0.4,0.4,0.4", "--std", "0.2,0.2,0.2"], 0.4, 0.2),
    ]:
        wanted = train.predict(model, pixels_of(picture, mean, std))[0]
        found = probabilities(run(capsys, "predict", path, picture, *options, *more)[1])
        assert [found[name] for name in ("ant", "bee", "cow")] == pytest.approx(wanted.tolist(), abs=1e-6)


@pytest.mark.parametrize("end", ["Softmax", "Sigmoid", "LogSoftmax"])
def test_probabilities_are_not_made_of_probabilities_again(
    end: str, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file ends in one, behind which there is an Identity and an axis or two of length 1, as exporters leave them;
    and it takes one image at a time."""
    shape = {"shape": np.array([1, 2, 1, 1])}
    weights = np.random.default_rng(1).standard_normal((2, 90)).astype(np.float32)
    nodes = [
        make_node("Flatten", ["x"], ["f"]),
        make_node("Gemm", ["f", "w"], ["z"], transB=1),
        make_node("Reshape", ["z", "shape"], ["r"]),
        make_node(end, ["r"], ["p"], **({} if end == "Sigmoid" else {"axis": 1})),
        make_node("Identity", ["p"], ["y"]),
    ]
    path = written(model_of(nodes, {"x": [1, 3, 6, 5]}, constants={"w": weights, **shape}), tmp_path)
    logits = pixels_of(picture).reshape(1, -1) @ weights.T
    exps = np.exp(logits - logits.max())
    wanted = (1 / (1 + np.exp(-logits)) if end == "Sigmoid" else exps / exps.sum())[0]
    code, out, _ = run(capsys, "predict", path, picture, picture, "--json")
    assert code == 0
    found = probabilities(out)
    assert [found["0"], found["1"]] == pytest.approx(wanted.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (["N", 3, "H", "W"], [], r"must take one image of a known size, .*; it takes x \(None, 3, None, None\)"),
        (["N", 30], [], "must take one image of a known size"),
        (["N", 5, 6, 5], [], "takes images of 5 channels, a picture has 1 or 3"),
        (["N", 3, 6, 5], ["--mean", "a,b"], "--mean takes numbers, by commas, got 'a,b'"),
        (["N", 3, 6, 5], ["--mean", "1,2", "--std", "1"], "mean and std must be of one length, got 2 and 1"),
        (["N", 3, 6, 5], ["--labels", "labels.txt"], "the model has 90 classes, there are 2 labels"),
        (["N", 3, 6, 5], ["--labels", "nix.txt"], "nix.txt: No such file"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    shape: Any, options: Any, message: str, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("cat\ndog\n")
    path = written(model_of([make_node("Flatten", ["x"], ["y"])], {"x": shape}), tmp_path)
    code, _, err = run(capsys, "predict", path, picture, *options)
    assert code == 2
    assert re.search(message, err), err
