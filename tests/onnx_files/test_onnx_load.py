"""Graph: a network from a file is a Module like any other; what can't be computed exactly is named before it runs."""

import copy
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numerics import Array, assert_within, unit_roundoff
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node
from onnx_graphs import by_gpucnn, by_onnxruntime, loaded, model_of, written

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim
from gpucnn.onnx.graph import Layer

U = unit_roundoff("float32")


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def small_network(opset: int = 20) -> onnx.ModelProto:
    """Weights named as PyTorch names them, a decomposed hard swish, and shape arithmetic before the end."""
    constants = {
        "conv.weight": random(4, 2, 3, 2), "conv.bias": random(4), "bn.weight": random(4, seed=1) + 2,
        "bn.bias": random(4, seed=2), "bn.running_mean": random(4, seed=3),
        "bn.running_var": random(4, seed=4) ** 2 + 1,
        "three": np.float32(3), "six": np.float32(6), "zero": np.float32(0), "at": np.array(0), "rest": np.array([-1]),
        "w": random(5, 4 * 3 * 4), "b": random(5), "axis": np.array([0]),
    }  # fmt: skip
    nodes = [
        make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"], "/conv/Conv", pads=[1, 0, 1, 1], strides=[2, 1]),
        make_node(
            "BatchNormalization", ["a", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"], ["n"], "/bn"
        ),
        make_node("Add", ["n", "three"], ["s"], "/act/Add"),
        make_node("Clip", ["s", "zero", "six"], ["c"], "/act/Clip"),
        make_node("Mul", ["n", "c"], ["m"], "/act/Mul"),
        make_node("Div", ["m", "six"], ["d"], "/act/Div"),
        make_node("Dropout", ["d"], ["e"], "/drop"),
        make_node("Shape", ["e"], ["shape"], "/Shape"),
        make_node("Gather", ["shape", "at"], ["n0"], "/Gather", axis=0),
        make_node("Unsqueeze", ["n0", "axis"], ["n1"], "/Unsqueeze"),
        make_node("Concat", ["n1", "rest"], ["goal"], "/Concat", axis=0),
        make_node("Reshape", ["e", "goal"], ["f"], "/Reshape"),
        make_node("Gemm", ["f", "w", "b"], ["y"], "/fc/Gemm", transB=1),
    ]
    return model_of(nodes, {"x": ["N", 2, 5, 4]}, constants=constants, opset=opset)


def agrees(model: onnx.ModelProto, folder: Path, backend: str, *inputs: Array, roundings: float = 32) -> None:
    path = written(model, folder)
    ours = by_gpucnn(gpucnn.onnx.load(path), *inputs, backend=backend)
    for found, wanted in zip(ours, by_onnxruntime(path, *inputs), strict=True):
        assert_within(found, np.asarray(wanted, np.float64), roundings * U * max(1.0, float(np.abs(wanted).max())))


# -- a module like any other -----------------------------------------------------------------------


def test_network_computes_what_onnxruntime_does_for_any_batch(tmp_path: Path, backend: str) -> None:
    for batch in (1, 3):
        agrees(small_network(), tmp_path, backend, random(batch, 2, 5, 4), roundings=200)


def test_weights_are_parameters_under_the_files_names_and_other_constants_buffers(tmp_path: Path) -> None:
    graph = loaded(small_network(), tmp_path)
    parameters = {name: p.shape for name, p in graph.named_parameters()}
    assert parameters == {
        "conv.weight": (4, 2, 3, 2), "conv.bias": (4,), "bn.weight": (4,), "bn.bias": (4,),
        "fc/Gemm.weight": (5, 48), "fc/Gemm.bias": (5,),
    }  # fmt: skip
    buffers = dict(graph.named_buffers())
    assert set(buffers) == {"bn.running_mean", "bn.running_var", "act/Add.other", "act/Div.other"}
    assert buffers["act/Add.other"].item() == 3
    np.testing.assert_array_equal(graph.state_dict()["conv.weight"].numpy(), random(4, 2, 3, 2))
    assert not graph.training


def test_state_can_be_saved_loaded_and_moved(tmp_path: Path, backend: str) -> None:
    first, second = (loaded(small_network(), tmp_path) for _ in range(2))
    x = gpucnn.tensor(random(2, 2, 5, 4), backend=backend)
    for parameter in first.parameters():
        parameter.detach().copy_(parameter.numpy() * 2)
    before = second(x).numpy()
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second(x).numpy(), first(x).numpy())
    assert not np.array_equal(before, second(x).numpy())
    moved = first.to("numpy").to("float64")
    assert moved(gpucnn.tensor(x.numpy(), backend="numpy").double()).dtype == np.float64


def test_a_copy_has_weights_of_its_own(tmp_path: Path, backend: str) -> None:
    graph = loaded(small_network(), tmp_path)
    x = gpucnn.tensor(random(2, 2, 5, 4), backend=backend)
    wanted = graph(x).numpy().copy()
    twin = copy.deepcopy(graph)
    np.testing.assert_array_equal(twin(x).numpy(), wanted)
    for parameter in twin.parameters():
        parameter.detach().copy_(np.zeros(parameter.shape))
    assert not twin(x).numpy().any()
    np.testing.assert_array_equal(graph(x).numpy(), wanted)


def test_training_mode_drops_and_uses_the_batch_and_evaluation_mode_does_not(tmp_path: Path, backend: str) -> None:
    graph = loaded(small_network(), tmp_path)
    x = gpucnn.tensor(random(4, 2, 5, 4), backend=backend)
    quiet = graph(x).numpy()
    mean = dict(graph.named_buffers())["bn.running_mean"]
    before = mean.numpy().copy()
    graph.train()
    assert not np.array_equal(graph(x).numpy(), graph(x).numpy())
    conv = dict(graph.named_modules())["conv"]
    batch = F.conv2d(x, conv.weight, conv.bias, (2, 1), (1, 1, 0, 1)).mean((0, 2, 3)).numpy()  # type: ignore[attr-defined]
    assert_within(mean.numpy(), (0.81 * before + 0.19 * batch).astype(float), 64 * U)  # ONNX's momentum is 0.9, twice
    mean.copy_(before)
    graph.eval()
    variance = dict(graph.named_buffers())["bn.running_var"]
    assert not np.array_equal(variance.numpy(), random(4, seed=4) ** 2 + 1)
    variance.copy_(random(4, seed=4) ** 2 + 1)
    np.testing.assert_array_equal(graph(x).numpy(), quiet)


def test_fine_tuning_lowers_the_loss(tmp_path: Path, backend: str) -> None:
    gpucnn.manual_seed(0)
    graph = loaded(small_network(), tmp_path).train()
    x, labels = gpucnn.tensor(random(20, 2, 5, 4), backend=backend), np.arange(20) % 5
    optimizer = optim.Adam(graph.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(graph(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2


def gelu_of_erf() -> onnx.ModelProto:
    """x · (erf(x / √2) + 1) / 2, as exporters write it before opset 20."""
    constants = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    nodes = [
        make_node("Div", ["x", "root"], ["a"]), make_node("Erf", ["a"], ["b"]), make_node("Add", ["b", "one"], ["c"]),
        make_node("Mul", ["x", "c"], ["d"]), make_node("Mul", ["d", "half"], ["y"]),
    ]  # fmt: skip
    return model_of(nodes, {"x": ["N", 2, 9, 7]}, constants=constants, opset=13)


def gelu_of_tanh() -> onnx.ModelProto:
    """x/2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))."""
    constants = {"three": np.float32(3), "small": np.float32(0.044715), "scale": np.float32(np.sqrt(2 / np.pi)),
                 "one": np.float32(1), "half": np.float32(0.5)}  # fmt: skip
    nodes = [
        make_node("Pow", ["x", "three"], ["a"]), make_node("Mul", ["a", "small"], ["b"]),
        make_node("Add", ["x", "b"], ["c"]), make_node("Mul", ["c", "scale"], ["d"]), make_node("Tanh", ["d"], ["e"]),
        make_node("Add", ["e", "one"], ["f"]), make_node("Mul", ["x", "half"], ["g"]),
        make_node("Mul", ["g", "f"], ["y"]),
    ]  # fmt: skip
    return model_of(nodes, {"x": ["N", 2, 9, 7]}, constants=constants, opset=13)


@pytest.mark.parametrize(("model", "approximate"), [(gelu_of_erf(), "none"), (gelu_of_tanh(), "tanh")])
def test_gelu_made_of_other_operators_computes_and_learns(
    model: onnx.ModelProto, approximate: str, tmp_path: Path, backend: str
) -> None:
    values = 2 * random(3, 2, 9, 7)
    agrees(model, tmp_path, backend, values)
    graph = loaded(model, tmp_path)
    assert not list(graph.parameters())
    gradients = []
    for function in (graph, lambda x: F.gelu(x, approximate)):
        x = gpucnn.tensor(values, requires_grad=True, backend=backend)
        (function(x) * gpucnn.tensor(random(3, 2, 9, 7, seed=1), backend=backend)).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad.numpy())
    # eight operators, each rounding a value of at most 1 + |x|³ and a share of the gradient
    assert_within(gradients[0], gradients[1].astype(float), 64 * U * (1 + np.abs(values) ** 3))


def test_the_error_function_of_a_vector_of_any_size_has_its_gradient(tmp_path: Path, backend: str) -> None:
    graph = loaded(model_of([make_node("Erf", ["x"], ["y"])], {"x": ["N"]}), tmp_path)
    values = np.array([-8, -1, -0.0, 0.4, 0.5, 3, np.inf, np.nan], np.float32)
    x = gpucnn.tensor(values, requires_grad=True, backend=backend)
    y = graph(x)
    expected = [math.erf(v) for v in values.tolist()]
    assert_within(y.numpy(), np.array(expected), 2 * U)
    y.sum().backward()
    assert x.grad is not None
    slopes = [2 / math.sqrt(math.pi) * math.exp(-v * v) for v in values.tolist()]
    assert_within(x.grad.numpy(), np.array(slopes), 8 * U)


def test_every_arithmetic_operator_passes_its_gradient_on(tmp_path: Path, backend: str) -> None:
    """What an exporter makes of layers that are no operator: each changes what reaches the input."""
    for op in ("Abs", "Div", "Erf", "Exp", "Log", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub", "Tanh"):
        two = op in ("Div", "Mul", "Pow", "Sub")
        node = make_node(op, ["x", "w"] if two else ["x"], ["y"])
        graph = loaded(model_of([node], {"x": ["N", 3]}, constants={"w": random(3) ** 2 + 1} if two else {}), tmp_path)
        x = gpucnn.tensor(random(2, 3) ** 2 + 0.5, requires_grad=True, backend=backend)
        graph(x).sum().backward()
        assert x.grad is not None, op
        assert x.grad.numpy().all(), op
        for parameter in graph.parameters():
            assert parameter.grad is not None, op
            assert parameter.grad.numpy().all(), op


def test_gradients_are_those_of_the_same_network_made_of_layers(tmp_path: Path, backend: str) -> None:
    layers = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    gpucnn.onnx.save(layers.eval(), tmp_path / "layers.onnx", (2, 5, 4))
    graph = gpucnn.onnx.load(tmp_path / "layers.onnx")
    x, labels = gpucnn.tensor(random(3, 2, 5, 4), backend=backend), [0, 2, 1]
    for module in (layers, graph):
        F.cross_entropy(module(x), labels).backward()
    ours, theirs = dict(graph.named_parameters()), dict(layers.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert parameter.grad is not None
        assert ours[name].grad is not None, name
        assert_within(ours[name].grad.numpy(), parameter.grad.numpy().astype(float), 64 * U)  # type: ignore[union-attr]


def test_summary_has_a_row_for_each_node_that_computes_with_images(tmp_path: Path) -> None:
    summary = loaded(small_network(), tmp_path).summary(2, 5, 4)
    assert [row.name for row in summary.rows] == [
        "conv", "bn", "act/Add", "act/Clip", "act/Mul", "act/Div", "drop", "Reshape", "fc/Gemm",
    ]  # fmt: skip
    assert [row.kind for row in summary.rows][:2] == ["Conv", "BatchNormalization"]
    assert summary.rows[0].output_shape == (4, 3, 4)
    assert summary.parameters == 4 * 2 * 3 * 2 + 4 + 8 + 5 * 48 + 5
    assert summary.multiply_adds == 48 * 12 + 48 * 5


@pytest.mark.parametrize(
    ("node", "weight", "shape", "work"),
    [
        (make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 1]), (4, 3, 2, 3), (4, 5, 6), 4 * 5 * 6 * 3 * 2 * 3),
        (make_node("MatMul", ["x", "w"], ["y"]), (6, 7), (4, 5, 6), 4 * 5 * 6 * 7),
        (make_node("Mul", ["x", "w"], ["y"]), (6,), (4, 5, 6), 0),
    ],
)
def test_multiply_adds_are_counted(node: Any, weight: Any, shape: Any, work: int, tmp_path: Path) -> None:
    graph = loaded(model_of([node], {"x": ["N", *shape]}, constants={"w": random(*weight)}), tmp_path)
    assert graph.summary(*shape).multiply_adds == work


def test_summary_shows_the_first_of_several_outputs(tmp_path: Path) -> None:
    nodes = [make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), make_node("Sub", ["a", "b"], ["y"])]
    rows = loaded(model_of(nodes, {"x": ["N", 4, 3]}), tmp_path).summary(4, 3).rows
    assert [row.output_shape for row in rows] == [(2, 3), (2, 3)]


def test_the_emulator_computes_the_same_network(tmp_path: Path) -> None:
    if "emulator" not in gpucnn.available_backends():
        pytest.skip("the emulator needs a C++ compiler")
    path, x = written(small_network(), tmp_path), random(3, 2, 5, 4)
    (wanted,) = by_gpucnn(gpucnn.onnx.load(path, "numpy"), x, backend="numpy")
    graph = gpucnn.onnx.load(path, "emulator")
    assert {parameter.backend.name for parameter in graph.parameters()} == {"emulator"}
    (found,) = by_gpucnn(graph, x, backend="emulator")
    assert_within(found, wanted.astype(float), 200 * U * float(np.abs(wanted).max()))


def test_without_the_package_onnx_the_error_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['onnx'] = None; import gpucnn; gpucnn.onnx"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == (
        'ImportError: reading and writing ONNX files needs the package onnx: pip install "gpucnn[onnx]"'
    )


def test_repr_names_the_nodes(tmp_path: Path) -> None:
    assert '(conv): Conv(Conv "/conv/Conv")' in repr(loaded(small_network(), tmp_path))


def test_several_inputs_and_outputs_come_in_the_files_order(tmp_path: Path, backend: str) -> None:
    nodes = [make_node("Sub", ["a", "b"], ["d"]), make_node("Identity", ["k"], ["same"])]
    model = model_of(nodes, {"a": [2, 3], "b": [3]}, ("d", "a", "same"), {"k": np.array([7, 8])})
    model.graph.output[2].type.tensor_type.elem_type = TensorProto.INT64
    graph = loaded(model, tmp_path)
    a, b = (gpucnn.tensor(random(*shape), backend=backend) for shape in ((2, 3), (3,)))
    difference, first, constant = graph(a, b)
    np.testing.assert_array_equal(difference.numpy(), (a - b).numpy())
    assert first is a
    assert constant.tolist() == [7, 8]
    assert [spec.name for spec in graph.inputs] == ["a", "b"]
    assert [spec.shape for spec in graph.inputs] == [(2, 3), (3,)]


def test_a_constant_that_two_nodes_take_is_one_parameter(tmp_path: Path, backend: str) -> None:
    nodes = [make_node("Conv", ["x", "w"], ["h"], "one"), make_node("Conv", ["h", "w"], ["y"], "two")]
    graph = loaded(model_of(nodes, {"x": [1, 2, 3, 3]}, constants={"w": random(2, 2, 1, 1)}), tmp_path)
    assert [name for name, _ in graph.named_parameters()] == ["one.weight"]
    y = graph(gpucnn.tensor(random(1, 2, 3, 3), backend=backend))
    y.sum().backward()
    one, two = graph.children()
    assert one.weight is two.weight  # type: ignore[attr-defined]


def test_a_constant_with_two_roles_is_two_tensors(tmp_path: Path, backend: str) -> None:
    """Exporters write equal constants once: those of a new BatchNorm are the ones and zeros of its statistics."""
    constants = {"ones": np.ones(3, np.float32), "zeros": np.zeros(3, np.float32)}
    nodes = [
        make_node("BatchNormalization", ["x", "ones", "zeros", "zeros", "ones"], ["h"], "first"),
        make_node("BatchNormalization", ["h", "ones", "zeros", "zeros", "ones"], ["y"], "second"),
    ]
    x = random(8, 3, 4, 5) * 3 + 5
    with gpucnn.use_backend(backend):
        graph = loaded(model_of(nodes, {"x": ["N", 3, 4, 5]}, constants=constants), tmp_path).train()
        norms = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
        for model in (graph, norms):
            model(gpucnn.tensor(x))
    assert [name for name, _ in graph.named_parameters()] == ["first.weight", "first.bias"]
    first, second = graph.children()
    assert (first.weight, first.bias) == (second.weight, second.bias)  # type: ignore[attr-defined]
    for ours, theirs in zip((first, second), norms, strict=True):
        for name in ("running_mean", "running_var"):
            found, wanted = (vars(layer)[name].numpy() for layer in (ours, theirs))
            np.testing.assert_allclose(found, wanted, rtol=16 * U, atol=16 * U)
        np.testing.assert_array_equal(vars(ours)["weight"].numpy(), 1)
        np.testing.assert_array_equal(vars(ours)["bias"].numpy(), 0)


def test_an_identity_of_a_constant_is_another_parameter(tmp_path: Path, backend: str) -> None:
    """Exporters write it where two weights that learn apart begin as equals."""
    nodes = [
        make_node("Identity", ["w"], ["again"]),
        make_node("Conv", ["x", "w"], ["h"], "one"),
        make_node("Conv", ["h", "again"], ["y"], "two"),
    ]
    w = random(2, 2, 1, 1)
    with gpucnn.use_backend(backend):
        graph = loaded(model_of(nodes, {"x": [1, 2, 3, 3]}, constants={"w": w}), tmp_path)
    state = graph.state_dict()
    assert list(state) == ["one.weight", "two.weight"]
    state["one.weight"].copy_(np.zeros_like(w))
    np.testing.assert_array_equal(state["two.weight"].numpy(), w)


def test_names_that_a_module_has_already_are_replaced(tmp_path: Path) -> None:
    names = ["forward", "forward", "__class__", "training", "same", "same"]
    nodes = [make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name) for i, name in enumerate(names)]
    graph = loaded(model_of(nodes, {"v0": [2]}, ("v6",)), tmp_path)
    assert [name for name, _ in graph.named_children()] == ["v1", "v2", "v3", "v4", "same", "v6"]
    assert type(graph).__name__ == "Graph"


def test_constants_of_constants_are_computed_once_and_learned(tmp_path: Path, backend: str) -> None:
    nodes = [make_node("Transpose", ["w"], ["t"]), make_node("MatMul", ["x", "t"], ["y"], "dense")]
    graph = loaded(model_of(nodes, {"x": [1, 3]}, constants={"w": random(2, 3)}), tmp_path)
    assert {name: p.shape for name, p in graph.named_parameters()} == {"dense.other": (3, 2)}
    assert [type(module).__name__ for module in graph.children()] == ["MatMul"]


def test_shape_arithmetic_works_on_the_host_and_meets_images_where_they_are(tmp_path: Path, backend: str) -> None:
    """Divide by the width, expand to where −1 stands for the image's own length, as exporters write it."""
    constants = {"one": np.array(1), "two": np.array(2), "minus": np.array([-1, 2, 1, 1]), "lone": np.array([1]),
                 "four": np.array([4]), "none": np.array([-1])}  # fmt: skip
    nodes = [
        make_node("Shape", ["x"], ["s"]),
        make_node("Gather", ["s", "one"], ["c"]),
        make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        make_node("Div", ["x", "f"], ["scaled"]),
        make_node("ConstantOfShape", ["four"], ["ones"], value=numpy_helper.from_array(np.array([1]))),
        make_node("Mul", ["ones", "none"], ["all"]),
        make_node("Equal", ["minus", "all"], ["same"]),
        make_node("Where", ["same", "ones", "minus"], ["goal"]),
        make_node("Expand", ["scaled", "goal"], ["wide"]),
        make_node("Div", ["s", "two"], ["halves"]),
        make_node("Slice", ["s", "lone", "four"], ["rest"]),
        make_node("Concat", ["none", "rest"], ["shape"], axis=0),
        make_node("Not", ["same"], ["other"]),
        make_node("Reshape", ["wide", "shape"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["N", 2, 3, 5]}, ("y", "halves", "other"), constants)
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    model.graph.output[2].type.tensor_type.elem_type = TensorProto.BOOL
    agrees(model, tmp_path, backend, random(3, 2, 3, 5))
    assert [type(layer).__name__ for layer in loaded(model, tmp_path).children()] == ["Div", "Expand", "Reshape"]


# -- attributes and opsets that the package's own cases do not have --------------------------------


def image_node(op: str, *constants: str, opset: int = 20, **attributes: Any) -> Any:
    return (make_node(op, ["x", *constants], ["y"], **attributes), opset)


W = random(4, 2, 3, 2)
CASES: dict[str, tuple[tuple[Any, int], dict[str, Any]]] = {
    "conv-same-lower": (image_node("Conv", "w", auto_pad="SAME_LOWER", strides=[2, 3]), {"w": W}),
    "conv-same-upper": (image_node("Conv", "w", auto_pad="SAME_UPPER", kernel_shape=[3, 2]), {"w": W}),
    "conv-valid": (image_node("Conv", "w", auto_pad="VALID", dilations=[2, 1]), {"w": W}),
    "conv-7": (image_node("Conv", "w", opset=7, pads=[1, 0, 2, 1], group=2), {"w": random(4, 1, 3, 2)}),
    "transposed-valid": (image_node("ConvTranspose", "w", auto_pad="VALID", strides=[2, 3]), {"w": random(2, 3, 3, 2)}),
    "transposed-shape": (
        image_node("ConvTranspose", "w", output_shape=[12, 16], strides=[2, 3]), {"w": random(2, 3, 3, 2)}),
    "transposed-larger-shape": (
        image_node("ConvTranspose", "w", output_shape=[16, 16], strides=[2, 3]), {"w": random(2, 3, 3, 2)}),
    "max-same-lower": (image_node("MaxPool", kernel_shape=[2, 4], auto_pad="SAME_LOWER", strides=[2, 1]), {}),
    "max-wide-padding": (image_node("MaxPool", kernel_shape=[3, 3], pads=[2, 0, 2, 2], strides=[2, 2]), {}),
    "max-wide-ceil": (image_node("MaxPool", kernel_shape=[3, 3], pads=[2, 2, 2, 2], strides=[3, 4], ceil_mode=1), {}),
    "max-valid": (image_node("MaxPool", kernel_shape=[3, 2], auto_pad="VALID", strides=[3, 4]), {}),
    "average-wide-padding": (image_node("AveragePool", kernel_shape=[3, 3], pads=[2, 0, 2, 2]), {}),
    "average-wide-counted": (
        image_node("AveragePool", kernel_shape=[3, 3], pads=[2, 0, 2, 2], count_include_pad=1, strides=[2, 2]), {}
    ),
    "average-same-7": (image_node("AveragePool", opset=7, kernel_shape=[3, 2], auto_pad="SAME_UPPER"), {}),
    "clip-6": (image_node("Clip", opset=7, min=-0.5, max=0.25), {}),
    "clip-nothing": (image_node("Clip"), {}),
    "pad-2": (image_node("Pad", opset=7, pads=[0, 0, 1, 2, 0, 0, 0, 3], mode="reflect"), {}),
    "pad-cut": (image_node("Pad", "p", "v"), {"p": np.array([0, 0, -1, 2, 0, 0, 0, 3]), "v": np.float32(9)}),
    "slice-1": (image_node("Slice", opset=9, starts=[1, -3], ends=[9, -1], axes=[2, 3]), {}),
    "slice-1-first-axes": (image_node("Slice", opset=9, starts=[0, 1], ends=[1, 2]), {}),
    "slice-backwards-from-before-the-first": (
        image_node("Slice", "s", "e", "a", "t"),
        {"s": np.array([-100, 100]), "e": np.array([-200, -100]), "a": np.array([2, 3]), "t": np.array([-1, -2])},
    ),
    "squeeze-all": (image_node("Squeeze"), {}),
    "max-11": (image_node("ReduceMax", opset=11, axes=[1, 2], keepdims=0), {}),
    "mean-11": (image_node("ReduceMean", opset=11, axes=[-1]), {}),
    "sum-all-11": (image_node("ReduceSum", opset=11), {}),
    "softmax-11": (image_node("Softmax", opset=11, axis=2), {}),
    "softmax-11-default": (image_node("Softmax", opset=11), {}),
    "softmax-11-negative": (image_node("LogSoftmax", opset=11, axis=-1), {}),
    "dropout-7": (image_node("Dropout", opset=7, ratio=0.9), {}),
    "dropout-13": (image_node("Dropout", "r", "t", opset=13), {"r": np.float32(0.9), "t": np.array(False)}),
    "flatten-0": (image_node("Flatten", opset=9, axis=0), {}),
    "prelu-channels": (image_node("PRelu", "k"), {"k": random(2, 1, 1)}),
    "prelu-everywhere": (image_node("PRelu", "k"), {"k": random(7, 5)}),
    "upsample-7": (image_node("Upsample", opset=7, scales=[1.0, 1.0, 2.0, 3.0]), {}),
    "upsample-9": (image_node("Upsample", "k", opset=9), {"k": np.array([1, 1, 2, 1.7], np.float32)}),
    "resize-10": (image_node("Resize", "k", opset=10), {"k": np.array([1, 1, 3, 2], np.float32)}),
    "resize-ceil": (
        image_node("Resize", "", "k", nearest_mode="ceil"), {"k": np.array([1, 1, 2, 0.7], np.float32)}
    ),
    "resize-linear-scales": (
        image_node("Resize", "", "k", mode="linear"), {"k": np.array([1, 1, 1.7, 0.6], np.float32)}
    ),
    "resize-linear-sizes-of-axes": (
        image_node("Resize", "", "", "k", mode="linear", coordinate_transformation_mode="align_corners", axes=[3, 2]),
        {"k": np.array([9, 4])},
    ),
    "resize-linear-half": (
        image_node("Resize", "", "k", mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
        {"k": np.array([1, 1, 2, 1.4], np.float32)},
    ),
    "gemm-7": (
        image_node("Gemm", "w", "b", opset=7, alpha=0.5, beta=2.0, transA=1), {"w": random(7, 5), "b": random(5)}),
    "group-norm-21": (
        image_node("GroupNormalization", "s", "b", opset=21, num_groups=2), {"s": random(2), "b": random(2, seed=1)}
    ),
    "instance-norm": (image_node("InstanceNormalization", "s", "b"), {"s": random(2), "b": random(2, seed=1)}),
    "layer-norm": (image_node("LayerNormalization", "s", "b", axis=2), {"s": random(7, 5), "b": random(7, 5, seed=1)}),
    "lrn": (image_node("LRN", size=3, alpha=0.4), {}),
    "arithmetic": (image_node("Max", "k", "m"), {"k": random(5), "m": random(7, 1)}),
}  # fmt: skip


# Of signals x [3, 2, 9], as PyTorch exports the layers of 1-D networks.
SIGNALS: dict[str, tuple[Any, dict[str, Array]]] = {
    "conv": (
        make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[3], strides=[2], pads=[2, 1], dilations=[2]),
        {"w": random(4, 2, 3), "b": random(4)},
    ),
    "conv-same": (make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", group=2), {"w": random(4, 1, 4)}),
    "conv-transpose": (
        make_node("ConvTranspose", ["x", "w"], ["y"], strides=[3], pads=[1, 0], output_padding=[1]),
        {"w": random(2, 3, 4)},
    ),
    "conv-transpose-to": (
        make_node("ConvTranspose", ["x", "w"], ["y"], strides=[3], output_shape=[28]),
        {"w": random(2, 3, 4)},
    ),
    "max-pool": (make_node("MaxPool", ["x"], ["y"], kernel_shape=[3], strides=[2], pads=[1, 2], dilations=[2]), {}),
    "average-pool": (make_node("AveragePool", ["x"], ["y"], kernel_shape=[3], strides=[2], ceil_mode=1), {}),
    "global-average-pool": (make_node("GlobalAveragePool", ["x"], ["y"]), {}),
    "global-max-pool": (make_node("GlobalMaxPool", ["x"], ["y"]), {}),
    "resize": (make_node("Resize", ["x", "", "k"], ["y"], mode="linear"), {"k": np.array([1, 1, 2.5], np.float32)}),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_networks_of_signals_are_computed_as_by_onnxruntime(name: str, tmp_path: Path, backend: str) -> None:
    node, constants = SIGNALS[name]
    agrees(model_of([node], {"x": (3, 2, 9)}, constants=constants), tmp_path, backend, random(3, 2, 9))


@pytest.mark.parametrize("name", CASES)
def test_attributes_are_understood_as_by_onnxruntime(name: str, tmp_path: Path, backend: str) -> None:
    (node, opset), constants = CASES[name]
    shape = (7, 4) if node.op_type == "Gemm" else (3, 2, 7, 5)
    agrees(model_of([node], {"x": shape}, constants=constants, opset=opset), tmp_path, backend, random(*shape))


def test_group_norm_of_opset_18_has_a_scale_for_each_group(tmp_path: Path, backend: str) -> None:
    constants = {"s": np.array([2, 3], np.float32), "b": np.array([5, 7], np.float32)}
    node = make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)
    graph = loaded(model_of([node], {"x": [1, 4, 3, 2]}, constants=constants, opset=18), tmp_path)
    x = random(1, 4, 3, 2)
    (y,) = by_gpucnn(graph, x, backend=backend)
    groups = x.reshape(1, 2, -1).astype(float)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    wanted = (normal * [[[2], [3]]] + [[[5], [7]]]).reshape(x.shape)
    assert_within(y, wanted, 64 * U)


def test_instance_norm_of_one_pixel_is_the_bias(tmp_path: Path, backend: str) -> None:
    constants = {"s": np.array([2, 3], np.float32), "b": np.array([5, 7], np.float32)}
    node = make_node("InstanceNormalization", ["x", "s", "b"], ["y"])
    agrees(model_of([node], {"x": [3, 2, 1, 1]}, constants=constants), tmp_path, backend, random(3, 2, 1, 1))


def test_one_pixel_of_pytorchs_half_pixels_is_the_first(tmp_path: Path, backend: str) -> None:
    node = make_node("Resize", ["x", "", "", "k"], ["y"], mode="linear",
                     coordinate_transformation_mode="pytorch_half_pixel")  # fmt: skip
    model = model_of([node], {"x": [1, 1, 3, 4]}, constants={"k": np.array([1, 1, 1, 2])})
    x = random(1, 1, 3, 4)
    agrees(model, tmp_path, backend, x)
    (y,) = by_gpucnn(loaded(model, tmp_path), x, backend=backend)
    assert_within(y[0, 0, 0], (x[0, 0, 0, ::2] + x[0, 0, 0, 1::2]).astype(float) / 2, 2 * U)


@pytest.mark.parametrize("name", ["value_float", "value_floats", "value_int", "value_ints"])
def test_constants_come_in_several_forms(name: str, tmp_path: Path, backend: str) -> None:
    given = {"value_float": 1.5, "value_floats": [1.5, 2.5], "value_int": 3, "value_ints": [3, 4]}[name]
    nodes = [
        make_node("Constant", [], ["k"], **{name: given}),
        make_node("Cast", ["k"], ["f"], to=TensorProto.FLOAT),
        make_node("Mul", ["x", "f"], ["y"]),
    ]
    (y,) = by_gpucnn(loaded(model_of(nodes, {"x": [2]}), tmp_path), np.ones(2, np.float32), backend=backend)
    np.testing.assert_array_equal(y, np.ones(2) * given)


# -- what is refused -------------------------------------------------------------------------------


def test_everything_unsupported_is_named_at_once_with_its_node(tmp_path: Path) -> None:
    nodes = [
        make_node("Einsum", ["x"], ["a"], "sum", equation="ij->i"),
        make_node("Relu", ["a"], ["b"], "fine"),
        make_node("Resize", ["b", "", "k"], ["c"], "up", mode="cubic"),
        make_node("Conv", ["c", "w"], ["d"], "wide", flavour="mint"),
        make_node("Magic", ["d"], ["e"], domain="my.company"),
        make_node("MaxPool", ["e"], ["f", "places"], "indexed", kernel_shape=[2, 2]),
        make_node("Add", ["f", "places"], ["y"]),
    ]
    constants = {"k": np.ones(4, np.float32), "w": np.ones((1, 1, 2, 2), np.float16)}
    path = written(model_of(nodes, {"x": [1, 1, 4, 4]}, constants=constants), tmp_path)
    with pytest.raises(ValueError, match="can't be loaded") as found:
        gpucnn.onnx.load(path)
    for part in (
        "initializer 'w': elements of type FLOAT16 are not supported; convert the model to float32",
        'Einsum "sum": this operator is not supported',
        "Resize \"up\": mode 'cubic' is not supported, only nearest, linear",
        'Conv "wide": its attributes flavour are not supported in opset 20',
        "my.company.Magic of 'e': this operator is not supported",
        'MaxPool "indexed": only its first output is computed here, and places are used',
    ):
        assert part in str(found.value)
    assert "fine" not in str(found.value)


def attribute(name: str, kind: int, **fields: Any) -> Any:
    return onnx.AttributeProto(name=name, type=kind, **fields)


REFUSED: dict[str, tuple[Any, dict[str, Array], str]] = {
    "batch norm in training": (
        make_node("BatchNormalization", ["x", "a", "a", "a", "a"], ["y"], training_mode=1),
        {"a": np.ones(2, np.float32)},
        "it is in training mode; export the model in evaluation mode"),
    "pixelwise statistics": (
        make_node("BatchNormalization", ["x", "a", "a", "a", "a"], ["y"], spatial=0), {"a": np.ones(2, np.float32)},
        "spatial 0"),
    "dropout that drops": (
        make_node("Dropout", ["x", "", "t"], ["y"]), {"t": np.array(True)}, "its training mode is fixed in the file"),
    "three pads": (
        make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1]), {"w": W},
        r"pads \[1, 1, 1\]: there must be two or four"),
    "negative padding": (
        make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, -1, 1]), {"w": W}, "pads .* none negative"),
    "three spatial axes": (
        make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2, 2]), {}, "kernel_shape .*: only one or two spatial"),
    "valid with ceil mode": (
        make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], auto_pad="VALID", ceil_mode=1), {},
        "VALID with ceil_mode"),
    "no kernel": (make_node("MaxPool", ["x"], ["y"]), {}, "attribute kernel_shape is missing"),
    "three output axes": (
        make_node("ConvTranspose", ["x", "w"], ["y"], output_shape=[1, 2, 3]), {"w": W}, r"output_shape \[1, 2, 3\]"),
    "even LRN": (make_node("LRN", ["x"], ["y"], size=4), {}, "size 4: windows of an even number"),
    "linear asymmetric": (
        make_node("Resize", ["x", "", "k"], ["y"], mode="linear", coordinate_transformation_mode="asymmetric"),
        {"k": np.ones(4, np.float32)}, "linear resizing with asymmetric coordinates is not supported, only half_pixel"),
    "no inputs": (make_node("Add", ["x"], ["y"]), {}, "it must have 2 to 2 inputs, got \\['x'\\]"),
    "left out": (make_node("Conv", ["x", "", "w"], ["y"]), {"w": W}, "it must have 2 to 3 inputs"),
    "no output": (make_node("Relu", ["x"], []), {}, "it has no output"),
    "wrong number of parts": (
        make_node("Split", ["x"], ["y", "z"], num_outputs=3), {},
        "num_outputs is not the number"),
    "no value": (make_node("Constant", [], ["y"]), {}, "it has no value that is a tensor of numbers"),
    "many values": (
        make_node("ConstantOfShape", ["k"], ["y"], value=numpy_helper.from_array(np.ones(2))), {"k": np.array([2])},
        "its value must be one number, got shape \\(2,\\)"),
    "wrong type of attribute": (make_node("Softmax", ["x"], ["y"], axis=1.5), {}, "attribute axis must be of type INT"),
    "cast to text": (make_node("Cast", ["x"], ["y"], to=TensorProto.STRING), {}, "elements of type STRING"),
    "cast to nothing": (make_node("Cast", ["x"], ["y"], to=9999), {}, "elements of type number 9999"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_node_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    node, constants, message = REFUSED[name]
    path = written(model_of([node], {"x": [1, 2, 8, 8]}, constants=constants), tmp_path)
    with pytest.raises(ValueError, match=message) as found:
        gpucnn.onnx.load(path)
    assert f"{node.op_type} " in str(found.value)


AT_RUN_TIME: dict[str, tuple[Any, dict[str, Array], str]] = {
    "channels": (make_node("Conv", ["x", "w"], ["y"], "c"), {"w": random(3, 5, 1, 1)}, 'Conv "c": conv2d: .* takes 5'),
    "for signals": (
        make_node("MaxPool", ["x"], ["y"], kernel_shape=[2]), {},
        r"its attributes are for signals \[N, C, L\], got the shape \(1, 2, 8, 8\)"),
    "kernel": (make_node("Conv", ["x", "w"], ["y"], "c", kernel_shape=[2, 2]), {"w": W}, r"with kernel_shape \(2, 2\)"),
    "whole by zero": (make_node("Div", ["s", "k"], ["y"], "d"), {"k": np.array(0)}, 'Div "d": division of whole'),
    "parts": (make_node("Split", ["x", "k"], ["y"], axis=2), {"k": np.array([1])},
              r"an axis of 8 can't be split into 1 parts of \[1\]"),
    "squeezed": (
        make_node("Squeeze", ["x", "k"], ["y"]), {"k": np.array([2])},
        r"axes \[2\] of shape \(1, 2, 8, 8\) are not"),
    "flattened": (make_node("Flatten", ["x"], ["y"], axis=7), {}, r"axis 7 is none of shape \(1, 2, 8, 8\)"),
    "padded": (
        make_node("Pad", ["x", "k"], ["y"]), {"k": np.array([1, 2])},
        r"pads \[1, 2\] must have a beginning and an end"),
    "too much": (
        make_node("Tile", ["x", "k"], ["y"]), {"k": np.array([1, 1, 10**6, 10**6])},
        "can't be made: .* over 2 GiB"),
    "too wide": (
        make_node("Expand", ["x", "k"], ["y"]), {"k": np.array([10**10, 1, 1, 1])},
        "can't be made: .* over 2 GiB"),
    "resized to nothing": (
        make_node("Resize", ["x", "", "k"], ["y"]), {"k": np.array([1, 1, 0.01, 1], np.float32)},
        "half_pixel by 0.01 makes"),
    "resized by what": (make_node("Resize", ["x"], ["y"]), {}, r"can't be resized by scales None to sizes None"),
    "channels resized": (
        make_node("Resize", ["x", "", "k"], ["y"], mode="linear"), {"k": np.array([1, 2, 2, 2], np.float32)},
        "only height and width can be resized"),
    "nearest of old": (
        make_node("Resize", ["x", "k"], ["y"]), {"k": np.array([1, 1, 0.4, 1], np.float32)},
        "not defined before opset 11"),
    "slice": (
        make_node("Slice", ["x", "k", "k2"], ["y"]), {"k": np.array([1, 2]), "k2": np.array([1])},
        "must be as many"),
    "axis": (make_node("Gather", ["x", "k"], ["y"], axis=6), {"k": np.array(0)}, "dim 6 is not an axis"),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_RUN_TIME)
def test_error_of_a_node_names_it(name: str, tmp_path: Path, backend: str) -> None:
    node, constants, message = AT_RUN_TIME[name]
    nodes = [make_node("Shape", ["x"], ["s"]), node]
    opset = 10 if "old" in name else 20
    graph = loaded(model_of(nodes, {"x": [1, 2, 8, 8]}, constants=constants, opset=opset), tmp_path)
    with pytest.raises((ValueError, IndexError), match=message) as found:
        graph(gpucnn.tensor(random(1, 2, 8, 8), backend=backend))
    assert str(found.value).startswith(node.op_type)


def test_inputs_are_checked(tmp_path: Path, backend: str) -> None:
    graph = loaded(small_network(), tmp_path)
    x = gpucnn.tensor(random(1, 2, 5, 4), backend=backend)
    for inputs, error, message in [
        ((), ValueError, r"takes 1 inputs \(x\), got 0"),
        ((x, x), ValueError, "got 2"),
        ((x.numpy(),), TypeError, "input x must be a gpucnn.Tensor, got ndarray"),
        ((x[0],), ValueError, r"input x must have the shape \(\?, 2, 5, 4\), got \(2, 5, 4\)"),
        ((gpucnn.tensor(np.ones((1, 2, 5, 4), int)),), TypeError, "input x must be float32, got int64"),
        ((x.to("emulator" if backend == "numpy" else "numpy"),), ValueError, rf"network on {backend}; move one"),
    ]:
        if error is ValueError and "move" in message and "emulator" not in gpucnn.available_backends():
            continue
        with pytest.raises(error, match=message):
            graph(*inputs)


# -- hostile files ---------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nix\.onnx"):
        gpucnn.onnx.load(tmp_path / "nix.onnx")


def test_a_file_cut_anywhere_is_a_value_error(tmp_path: Path) -> None:
    whole = small_network().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in [*range(60), *range(60, len(whole) - 1, 97)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.onnx"):
            gpucnn.onnx.load(path)


def test_noise_is_a_value_error_or_a_network(tmp_path: Path) -> None:
    """Bytes changed at random must not end in any other exception, nor in a crash."""
    whole = np.frombuffer(small_network().SerializeToString(), np.uint8)
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.onnx"
    refused = 0
    for _ in range(300):
        noisy = whole.copy()
        noisy[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(noisy.tobytes())
        try:
            gpucnn.onnx.load(path)
        except ValueError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("protobuf", ["upb", "python"])
def test_a_name_that_is_no_text_is_a_value_error_in_both_versions_of_protobuf(protobuf: str, tmp_path: Path) -> None:
    path = tmp_path / "name.onnx"
    path.write_bytes(small_network().SerializeToString().replace(b"/act/Add", b"/act/A\xffd"))
    code = f"import gpucnn.onnx; gpucnn.onnx.load({str(path)!r})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env=os.environ | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": protobuf},
    )  # fmt: skip
    assert re.match(r"ValueError: .*name\.onnx is not a whole ONNX file", result.stderr.splitlines()[-1]), result.stderr


def broken(change: Any) -> onnx.ModelProto:
    model = small_network()
    change(model)
    return model


def external(location: str, offset: str = "0", length: str = "192") -> Any:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", location), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=entry)

    return change


def test_external_data_beside_the_model_is_read(tmp_path: Path, backend: str) -> None:
    weights = random(4, 2, 3, 2)
    (tmp_path / "weights.bin").write_bytes(b"12345678" + weights.tobytes())
    graph = loaded(broken(external("weights.bin", "8", str(weights.nbytes))), tmp_path)
    np.testing.assert_array_equal(graph.state_dict()["conv.weight"].numpy(), weights)


EXTERNAL = {
    "outside": (external("../secret.bin"), "outside of the model's folder"),
    "absolute": (external("/etc/passwd"), "outside of the model's folder"),
    "through a link": (external("link.bin"), "outside of the model's folder"),
    "nowhere": (external("nix.bin"), "should be in .*nix.bin, where there is no file"),
    "a folder": (external("folder"), "where there is no file"),
    "without a name": (external(""), "in a file that has no name"),
    "too long": (external("small.bin"), r"takes 192 bytes, said to be 192 from 0 on of 'small.bin', which has 5"),
    "lying": (external("small.bin", "0", "5"), "takes 192 bytes, said to be 5"),
    "negative": (external("small.bin", "-9"), "from -9 on"),
    "no number": (external("small.bin", "many"), "offset 'many' and length '192' are no numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXTERNAL)
def test_external_data_is_not_believed(name: str, tmp_path: Path) -> None:
    change, message = EXTERNAL[name]
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(192))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "small.bin").write_bytes(bytes(5))
    with pytest.raises(ValueError, match=message):
        gpucnn.onnx.load(written(broken(change), folder))


def dims(*lengths: int) -> Any:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = lengths

    return change


def typed(model: onnx.ModelProto) -> None:
    """Numbers in their own field, fewer than the shape says."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0, 2.0])


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def sequence(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1


def description(text: str) -> Any:
    return lambda model: helper.set_model_props(model, {"gpucnn": text})


BROKEN = {
    "negative length": (dims(-4, 2, 3, 2), r"'conv.weight': its shape is \(-4, 2, 3, 2\)"),
    "enormous": (dims(2**40, 2**20), "is 4,611,686,018,427,387,904 bytes, but there are 192"),
    "too short": (dims(4, 2, 3, 3), "is 288 bytes, but there are 192"),
    "numbers missing": (typed, "'conv.weight': .*cannot reshape"),
    "sparse": (sparse, "sparse initializers are not supported"),
    "cyclic": (cyclic, "Conv \"/conv/Conv\" needs 'y', which no node before it makes"),
    "made twice": (lambda m: m.graph.node[2].output.__setitem__(0, "a"), "Add .* makes 'a', which is there already"),
    "no such output": (lambda m: m.graph.output.add(name="q"), "output 'q' is made by no node"),
    "no output at all": (lambda m: m.graph.ClearField("output"), "the graph has no output"),
    "no graph": (lambda m: m.ClearField("graph"), "it holds no graph"),
    "no opset": (lambda m: m.ClearField("opset_import"), "its opset is none; supported are 7 to 28"),
    "old opset": (lambda m: m.opset_import[0].__setattr__("version", 6), "its opset is 6"),
    "sequence": (sequence, "input 'x': only tensors are supported"),
    "description": (description("{"), "metadata 'gpucnn': Expecting property name"),
    "description of what": (description("[1]"), "metadata 'gpucnn': .*attribute"),
    "names that are none": (description('{"classes": [1]}'), r"classes must be names, got \[1\]"),
    "no normalisation": (description('{"normalise": [[0], [0]]}'), "std must be above 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_said_to_be(name: str, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    with pytest.raises(ValueError, match=message) as found:
        gpucnn.onnx.load(written(broken(change), tmp_path))
    assert "model.onnx" in str(found.value)


GROWING = {
    "a shape": [make_node("ConstantOfShape", ["k"], ["y"])],
    "an outer sum": [
        make_node("ConstantOfShape", ["k2"], ["a"]),
        make_node("Transpose", ["a"], ["b"]),
        make_node("Add", ["a", "b"], ["y"]),
    ],
    "picking": [make_node("ConstantOfShape", ["k2"], ["a"]), make_node("Gather", ["a", "many"], ["y"], axis=0)],
    "doubling": [
        make_node("ConstantOfShape", ["k2"], ["d0"]),
        *(make_node("Concat", [f"d{i}"] * 32, [f"d{i + 1}"], axis=0) for i in range(8)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GROWING)
def test_a_small_file_can_not_ask_for_much_memory(name: str, tmp_path: Path) -> None:
    constants = {"k": np.array([10**6, 10**6]), "k2": np.array([1, 200_000]), "many": np.zeros(30_000, int)}
    output = GROWING[name][-1].output[0]
    with pytest.raises(ValueError, match="2 GiB"):
        gpucnn.onnx.load(written(model_of(GROWING[name], {}, (output,), constants), tmp_path))


def test_layers_are_exported_for_those_who_look_inside(tmp_path: Path) -> None:
    graph = loaded(small_network(), tmp_path)
    assert all(isinstance(module, Layer) for module in graph.children())
    seen = []
    handle = dict(graph.named_modules())["conv"].register_forward_hook(lambda m, i, o: seen.append(o.shape))
    graph(gpucnn.tensor(random(2, 2, 5, 4)))
    handle.remove()
    assert seen == [(2, 4, 3, 4)]
