"""Whole networks: those that package onnx carries without their weights, and real ones where a package brings them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numerics import Array, assert_within, unit_roundoff
from onnx import ModelProto, numpy_helper
from onnx_graphs import by_gpucnn, by_onnxruntime, data_folder, written

import gpucnn
from gpucnn.onnx import Graph
from gpucnn.onnx.graph import Layer

U = unit_roundoff("float32")
NETWORKS = ["bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet",
            "vgg19", "zfnet512"]  # fmt: skip


def with_weights(model: ModelProto, seed: int = 0) -> ModelProto:
    """A light model, whose weights are all one number, with random weights in their place.

    Filters are drawn so that values keep their size from layer to layer (He et al. 2015). Dense layers of 4,096 get 64,
    which spares half a gigabyte; the softmax at the end, which would hide all but the largest logit, is left out.
    """
    rng = np.random.default_rng(seed)
    shapes = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = [64 if length == 4096 else length for length in shapes[node.input[0]]]
        if len(shape) > 1:
            bound = np.sqrt(6 / np.prod(shape[1:]))
            array = ((rng.random(shape, np.float32) * 2 - 1) * bound).astype(np.float32)
        else:
            array = rng.uniform(0.3, 0.9, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    if kept[-1].op_type == "Softmax":
        model.graph.output[0].name = kept.pop().input[0]
        model.graph.output[0].type.tensor_type.ClearField("shape")
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def rounding(graph: Graph, x: Array, y: Array, backend: str) -> float:
    """How far the roundings of all layers move the result: each layer's is disturbed by √n · u of itself, n the terms
    of its sums, and the result compared. Twice that for two engines, and twice for a disturbance that is a chance."""
    rng = np.random.default_rng(3)

    def disturbed(layer: Layer) -> Any:
        function, weight = layer._function, vars(layer).get("weight")
        scale = np.sqrt(1 if weight is None else np.prod(weight.shape[1:], initial=1.0)) * U

        def run(*arguments: Any, **keywords: Any) -> Any:
            made = function(*arguments, **keywords)
            noise = (1 + scale * rng.standard_normal(made.shape)).astype(np.float32)
            return made * gpucnn.tensor(noise, backend=backend)

        return run

    layers = [module for module in graph.modules() if isinstance(module, Layer)]
    functions = [layer._function for layer in layers]
    for layer in layers:
        layer._function = disturbed(layer)
    (moved,) = by_gpucnn(graph, x, backend=backend)
    for layer, function in zip(layers, functions, strict=True):
        layer._function = function
    return 4 * float(np.abs(moved - y).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_network_gives_onnxruntimes_result(name: str, tmp_path: Path, backend: str) -> None:
    model = with_weights(onnx.load(data_folder() / "light" / f"light_{name}.onnx"))
    path = written(model, tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
    graph = gpucnn.onnx.load(path)
    (ours,) = by_gpucnn(graph, x, backend=backend)
    (theirs,) = by_onnxruntime(path, x)
    path.unlink()
    bound = rounding(graph, x, ours, backend)
    assert bound < float(np.ptp(theirs)) / 100, "the bound would let anything pass"
    assert_within(ours, theirs.astype(float), bound)


# -- trained networks ------------------------------------------------------------------------------

RAPIDOCR = find_spec("rapidocr_onnxruntime")
MODELS = Path(RAPIDOCR.origin).parent / "models" if RAPIDOCR and RAPIDOCR.origin else None


@pytest.mark.skipif(
    MODELS is None, reason="rapidocr-onnxruntime is not installed (it brings OpenCV): no trained models"
)
@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("ch_ppocr_mobile_v2.0_cls_infer.onnx", (48, 192)),
        ("ch_PP-OCRv4_det_infer.onnx", (96, 160)),
        ("ch_PP-OCRv4_rec_infer.onnx", (48, 200)),
    ],
)
def test_trained_network_gives_onnxruntimes_result(file: str, size: tuple[int, int], backend: str) -> None:
    drawing = pytest.importorskip("PIL.ImageDraw", reason="Pillow is not installed: no picture of text")
    assert MODELS is not None
    picture = drawing.Image.new("RGB", (size[1] // 2, size[0] // 2), "white")
    drawing.Draw(picture).text((8, size[0] // 4 - 6), "Convolution", fill="black")
    pixels = np.asarray(picture.resize((size[1], size[0]))).transpose(2, 0, 1)[None]
    x = (pixels / 127.5 - 1).astype(np.float32)
    graph = gpucnn.onnx.load(MODELS / file)
    (ours,) = by_gpucnn(graph, x, backend=backend)
    (theirs,) = by_onnxruntime(MODELS / file, x)
    assert theirs.max() > 0.5, "there is text to be found and read"
    # all end in a softmax or sigmoid, whose values near 0 onnxruntime rounds as if they were near 1
    assert_within(ours, theirs.astype(float), rounding(graph, x, ours, backend) + U)
