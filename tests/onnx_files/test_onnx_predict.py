"""`gpucnn predict`, `show` and `evaluate` with an ONNX file."""

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
from gpucnn.checkpoint import load_model
from gpucnn.nn import models

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


# -- show, evaluate --------------------------------------------------------------------------------


def test_show_lists_the_nodes_and_draws_the_filters(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed: no pictures")
    path = tmp_path / "net.onnx"
    gpucnn.onnx.save(network(), path, (3, 6, 5), classes=["cat", "dog", "emu"])
    code, out, _ = run(capsys, "show", path, "--text")
    assert code == 0
    assert re.search(r"0 +Conv +4×4×3 +112 +1,296\n", out), out
    assert "classes: cat, dog, emu" in out
    code, out, _ = run(capsys, "show", path, picture, "--out", tmp_path / "pictures")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["feature_maps-dog.png", "filters.png"]


@pytest.mark.parametrize("end", ["", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("batch", ["N", 5])
def test_evaluate_measures_what_the_file_computes(
    end: str, batch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten images of two classes, as logits, probabilities or their logarithms, and five at a time."""
    generator = np.random.default_rng(2)
    images = generator.integers(0, 256, (10, 6, 5, 3)).astype(np.uint8)
    labels = generator.integers(0, 2, 10)
    np.savez(tmp_path / "ten.npz", images=images, labels=labels)
    weights = generator.standard_normal((2, 90)).astype(np.float32)
    shape = np.array([-1 if batch == "N" else batch, 90])
    nodes = [make_node("Reshape", ["x", "s"], ["f"]), make_node("Gemm", ["f", "w"], ["z" if end else "y"], transB=1)]
    nodes += [make_node(end, ["z"], ["y"], axis=1)] if end else []
    path = written(model_of(nodes, {"x": [batch, 3, 6, 5]}, constants={"w": weights, "s": shape}), tmp_path)
    logits = data.to_float(images).reshape(10, -1).astype(float) @ weights.T.astype(float)
    losses = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - logits[range(10), labels]
    code, out, err = run(capsys, "evaluate", path, tmp_path / "ten.npz")
    assert code == 0, err
    assert f"loss {losses.mean():.4f}" in out
    assert f"accuracy {10 * (logits.argmax(1) == labels).sum()}.0 %" in out
    code, _, err = run(capsys, "evaluate", path)
    assert (code, "does not say what it was trained on; name a data set" in err) == (2, True)


def test_training_starts_from_the_weights_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    gpucnn.onnx.save(models.VGGSmall(3), path, (3, 8, 9))
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (15, 8, 9, 3)).astype(np.uint8)
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(15) % 3)
    words = ["train", tmp_path / "some.npz", "--epochs", 1, "--lr", 1e-12, "--weight-decay", 0, "--no-pictures"]
    code, _, err = run(capsys, *words, "--from", path, "--out", tmp_path / "other", "--model", "resnet20")
    assert (code, "this state does not fit ResNet: missing: conv1.weight" in err) == (2, True)
    gpucnn.onnx.save(network(), path, (3, 6, 5))
    code, _, err = run(capsys, *words, "--from", path, "--out", tmp_path / "small")
    assert (code, "this state does not fit VGGSmall" in err) == (2, True)
    gpucnn.onnx.save(settled := models.VGGSmall(3), path, (3, 8, 9))
    code, _, err = run(capsys, *words, "--from", path, "--out", tmp_path / "run")
    assert code == 0, err
    trained, _ = load_model(tmp_path / "run" / "model.safetensors")
    for name, parameter in settled.named_parameters():
        np.testing.assert_allclose(trained.state_dict()[name].numpy(), parameter.numpy(), rtol=0, atol=1e-6)
