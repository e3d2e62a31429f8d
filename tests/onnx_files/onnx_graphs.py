"""ONNX models made for tests, and onnxruntime as the second opinion on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numerics import Array
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import gpucnn
from gpucnn.onnx import Graph


def value(name: str, shape: Sequence[int | str | None] | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: Sequence[NodeProto],
    inputs: dict[str, Any],
    outputs: Sequence[str] = ("y",),
    constants: dict[str, Array] | None = None,
    opset: int = 20,
) -> ModelProto:
    """A model of these nodes; inputs by name, with their shapes."""
    graph = helper.make_graph(
        nodes,
        "made for a test",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8 if opset < 21 else 10
    return model


def written(model: ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def loaded(model: ModelProto, folder: Path) -> Graph:
    return gpucnn.onnx.load(written(model, folder))


def by_onnxruntime(path: Path, *inputs: Array) -> list[Array]:
    """What onnxruntime computes, on one thread and without rewriting the graph's arithmetic."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no second engine here")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def by_gpucnn(graph: Graph, *inputs: Array, backend: str) -> list[Array]:
    with gpucnn.no_grad():
        made = graph(*(gpucnn.tensor(array, backend=backend) for array in inputs))
    return [tensor.numpy() for tensor in (made if isinstance(made, tuple) else (made,))]


def data_folder() -> Path:
    """Where package onnx keeps the data of its own tests."""
    return Path(onnx.__file__).parent / "backend" / "test" / "data"
