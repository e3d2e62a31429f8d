"""A second engine: single-node ONNX models, run by onnxruntime in float32."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numerics import Array, assert_within, unit_roundoff

import gpucnn
from functional.cases import distinct, random
from gpucnn import functional as F
from gpucnn.testing import WAVE, WINDOWS

onnx = pytest.importorskip("onnx", reason="onnx is not installed: no models for onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no second engine here")

U = unit_roundoff("float32")


def run_node(op: str, inputs: Sequence[Array | None], **attributes: Any) -> Array:
    """The output of one ONNX node; a None among the inputs is left out."""
    names = ["" if array is None else f"input{i}" for i, array in enumerate(inputs)]
    given = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    result = onnx.helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node(op, names, ["result"], **attributes)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], op, values, [result]), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    model.ir_version = 9
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, given)
    assert isinstance(output, np.ndarray)
    return output


def single(*shape: int, seed: int = 0) -> Array:
    return random(*shape, seed=seed).astype(np.float32)


def sums(count: int, *arrays: Array) -> float:
    """Two engines sum `count` products in their own order: each is off by count · u · Σ|x||w| at most."""
    return 2 * (count + 2) * U * count * float(np.prod([np.abs(array).max() for array in arrays]))


@pytest.mark.parametrize(
    ("x", "w", "bias", "arguments"),
    [
        ((2, 3, 7, 5), (4, 3, 3, 2), True, {}),
        ((1, 4, 9, 8), (6, 2, 3, 2), False, {"stride": (2, 3), "groups": 2}),
        ((1, 5, 6, 7), (5, 1, 3, 2), True, {"stride": 2, "groups": 5, "padding": (0, 1, 2, 0)}),
        ((1, 2, 7, 5), (3, 2, 3, 2), True, {"dilation": (2, 1), "padding": (1, 2, 3, 0)}),
        ((2, 3, 7, 5), (5, 3, 1, 1), False, {"stride": 2}),
        ((1, 2, 5, 4), (3, 2, 5, 4), False, {}),
    ],
)
def test_convolution(x: Any, w: Any, bias: bool, arguments: dict[str, Any], backend: str) -> None:
    arrays = [single(*x), single(*w, seed=1), *([single(w[0], seed=2)] if bias else [])]
    y = F.conv2d(*(gpucnn.tensor(array, backend=backend) for array in arrays), **arguments)
    top, bottom, left, right = arguments.get("padding", (0, 0, 0, 0))
    expected = run_node(
        "Conv",
        arrays,
        strides=pair(arguments.get("stride", 1)),
        dilations=pair(arguments.get("dilation", 1)),
        group=arguments.get("groups", 1),
        pads=[top, left, bottom, right],
    )
    assert_within(y.numpy(), expected.astype(float), sums(int(np.prod(w[1:])), arrays[0], arrays[1]))


def pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


@pytest.mark.parametrize("same", [1, 2, 3])
def test_same_padding_is_onnxs_same_upper(same: int, backend: str) -> None:
    x, w = single(1, 2, 7, 6), single(3, 2, 4, 3, seed=1)
    y = F.conv2d(gpucnn.tensor(x, backend=backend), gpucnn.tensor(w, backend=backend), stride=same, padding="same")
    expected = run_node("Conv", [x, w], strides=[same, same], auto_pad="SAME_UPPER")
    assert_within(y.numpy(), expected.astype(float), sums(24, x, w))


@pytest.mark.parametrize(
    ("x", "w", "arguments"),
    [
        ((2, 3, 4, 3), (3, 2, 3, 2), {}),
        ((1, 4, 3, 4), (4, 3, 2, 3), {"groups": 2, "stride": 2}),
        ((2, 3, 4, 3), (3, 5, 3, 2), {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2)}),
        ((1, 2, 4, 3), (2, 3, 2, 3), {"dilation": (3, 2), "padding": (2, 1)}),
    ],
)
def test_transposed_convolution(x: Any, w: Any, arguments: dict[str, Any], backend: str) -> None:
    groups = arguments.get("groups", 1)
    arrays = [single(*x), single(*w, seed=1), single(w[1] * groups, seed=2)]
    y = F.conv_transpose2d(*(gpucnn.tensor(array, backend=backend) for array in arrays), **arguments)
    rows, columns = pair(arguments.get("padding", 0))
    expected = run_node(
        "ConvTranspose",
        arrays,
        strides=pair(arguments.get("stride", 1)),
        dilations=pair(arguments.get("dilation", 1)),
        output_padding=pair(arguments.get("output_padding", 0)),
        group=groups,
        pads=[rows, columns, rows, columns],
    )
    terms = x[1] // groups * w[2] * w[3]
    assert_within(y.numpy(), expected.astype(float), sums(terms, arrays[0], arrays[1]))


@pytest.mark.parametrize(
    ("shape", "window"), [case for case in WINDOWS if case[0][0]], ids=lambda value: str(value).replace(" ", "")
)
def test_pooling(shape: tuple[int, ...], window: dict[str, Any], backend: str) -> None:
    rows, columns = pair(window.get("padding", 0))
    attributes = {
        "kernel_shape": pair(window["kernel_size"]),
        "strides": pair(window.get("stride", window["kernel_size"])),
        "pads": [rows, columns, rows, columns],
        "ceil_mode": int(window.get("ceil_mode", False)),
    }
    x = distinct(*shape).astype(np.float32)
    tensor = gpucnn.tensor(x, backend=backend)
    np.testing.assert_array_equal(F.max_pool2d(tensor, **window).numpy(), run_node("MaxPool", [x], **attributes))
    bound = sums(int(np.prod(attributes["kernel_shape"])), x)
    real = F.avg_pool2d(tensor, **window, count_include_pad=False).numpy()
    assert_within(real, run_node("AveragePool", [x], **attributes, count_include_pad=0).astype(float), bound)


@pytest.mark.parametrize(
    ("name", "node", "arguments", "attributes"),
    [
        ("relu", "Relu", {}, {}),
        ("leaky_relu", "LeakyRelu", {"negative_slope": 0.2}, {"alpha": 0.2}),
        ("elu", "Elu", {"alpha": 0.7}, {"alpha": 0.7}),
        ("selu", "Selu", {}, {}),
        ("mish", "Mish", {}, {}),
        ("softsign", "Softsign", {}, {}),
        ("gelu", "Gelu", {}, {"approximate": "none"}),
        ("gelu", "Gelu", {"approximate": "tanh"}, {"approximate": "tanh"}),
        ("hardsigmoid", "HardSigmoid", {}, {"alpha": 1 / 6, "beta": 0.5}),
        ("hardswish", "HardSwish", {}, {}),
        ("softplus", "Softplus", {}, {}),
        ("sigmoid", "Sigmoid", {}, {}),
        ("tanh", "Tanh", {}, {}),
        ("softmax", "Softmax", {"dim": 1}, {"axis": 1}),
        ("log_softmax", "LogSoftmax", {"dim": 1}, {"axis": 1}),
    ],
)
def test_activation(name: str, node: str, arguments: dict[str, Any], attributes: dict[str, Any], backend: str) -> None:
    x = WAVE.make("float32")
    y = getattr(F, name)(gpucnn.tensor(x, backend=backend), **arguments)
    assert_within(y.numpy(), run_node(node, [x], **attributes).astype(float), 32 * U * float(np.abs(x).max()))


def test_local_response_norm(backend: str) -> None:
    x = single(2, 7, 3, 5)
    y = F.local_response_norm(gpucnn.tensor(x, backend=backend), 3, alpha=0.5, beta=0.6, k=2.0)
    expected = run_node("LRN", [x], size=3, alpha=0.5, beta=0.6, bias=2.0)
    assert_within(y.numpy(), expected.astype(float), 32 * U * np.abs(expected))


@pytest.mark.parametrize(
    ("arguments", "attributes"),
    [
        ({}, {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
        ({"mode": "bilinear"}, {"coordinate_transformation_mode": "half_pixel"}),
        ({"mode": "bilinear", "align_corners": True}, {"coordinate_transformation_mode": "align_corners"}),
    ],
)
@pytest.mark.parametrize("size", [(10, 8), (11, 3), (5, 4)])
def test_resizing(size: tuple[int, int], arguments: Any, attributes: Any, backend: str) -> None:
    x = single(2, 3, 5, 4)
    y = F.interpolate(gpucnn.tensor(x, backend=backend), size=size, **arguments)
    expected = run_node("Resize", [x, None, None, np.array([2, 3, *size])], **({"mode": "linear"} | attributes))
    assert_within(y.numpy(), expected.astype(float), 64 * U * float(np.abs(x).max()))


@pytest.mark.parametrize(
    ("node", "call", "shapes", "attributes"),
    [
        ("Gemm", lambda x, w, b: F.linear(x, w, b), [(4, 7), (3, 7), (3,)], {"transB": 1}),
        ("MatMul", lambda a, b: a @ b, [(2, 1, 3, 5), (4, 5, 2)], {}),
        ("LayerNormalization", lambda x, w, b: F.layer_norm(x, (4,), w, b), [(2, 3, 4), (4,), (4,)], {}),
        ("GlobalAveragePool", lambda x: F.adaptive_avg_pool2d(x, 1), [(2, 3, 5, 4)], {}),
        ("GlobalMaxPool", lambda x: F.adaptive_max_pool2d(x, 1), [(2, 3, 5, 4)], {}),
    ],
)
def test_node(node: str, call: Callable[..., Any], shapes: Any, attributes: Any, backend: str) -> None:
    arrays = [single(*shape, seed=i) for i, shape in enumerate(shapes)]
    y = call(*(gpucnn.tensor(array, backend=backend) for array in arrays))
    assert_within(y.numpy(), run_node(node, arrays, **attributes).astype(float), sums(24, *arrays[:2]))
