"""An ONNX file as plain Python values.

Nothing in the file is believed: every size, type and name is checked before it is used, and no more memory is taken
than the file itself holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from gpucnn.data import Normalize

Array = np.ndarray[Any, np.dtype[Any]]

METADATA = "gpucnn"  # the key of our own entry in a file's metadata
OPSETS = range(7, 29)  # of which the meaning of every operator here is known

DTYPES: dict[int, np.dtype[Any]] = {
    getattr(TensorProto, name): np.dtype(dtype)
    for name, dtype in {
        "FLOAT": "float32", "DOUBLE": "float64", "BOOL": "bool", "INT8": "int8", "INT16": "int16", "INT32": "int32",
        "INT64": "int64", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    }.items()
}  # fmt: skip

_REQUIRED = object()


def dtype_of(code: int) -> np.dtype[Any]:
    """NumPy's dtype of an ONNX element type. Raises ValueError for one that no tensor here can hold."""
    if code not in DTYPES:
        name = TensorProto.DataType.Name(code) if code in TensorProto.DataType.values() else f"number {code}"
        raise ValueError(f"elements of type {name} are not supported; convert the model to float32")
    return DTYPES[code]


class Node:
    """One node: its operator, the names of what it takes and makes, and its attributes.

    Attributes are taken one by one; `left` tells which nobody took.
    """

    def __init__(self, proto: NodeProto, opset: int) -> None:
        self.op, self.opset = proto.op_type, opset
        self.name = proto.name
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self.one_axis = False  # whether an attribute was for the one axis of signals
        self.known = proto.domain in ("", "ai.onnx")
        self._domain = proto.domain
        self._attributes = {attribute.name: attribute for attribute in proto.attribute}

    def __str__(self) -> str:
        named = f' "{self.name}"' if self.name else f" of {', '.join(map(repr, self.outputs))}"
        return (self.op if self.known else f"{self._domain}.{self.op}") + named

    @property
    def left(self) -> list[str]:
        """The attributes that were not taken."""
        return list(self._attributes)

    def _take(self, name: str, kind: str, default: Any) -> Any:
        attribute = self._attributes.pop(name, None)
        if attribute is None:
            if default is _REQUIRED:
                raise ValueError(f"attribute {name} is missing")
            return default
        if attribute.type != AttributeProto.AttributeType.Value(kind):
            raise ValueError(f"attribute {name} must be of type {kind}")
        field = {"FLOAT": "f", "INT": "i", "STRING": "s", "TENSOR": "t", "FLOATS": "floats", "INTS": "ints"}[kind]
        return getattr(attribute, field)

    def int(self, name: str, default: Any = _REQUIRED) -> Any:
        """An attribute that is a whole number."""
        return self._take(name, "INT", default)

    def float(self, name: str, default: Any = _REQUIRED) -> Any:
        """An attribute that is a number."""
        return self._take(name, "FLOAT", default)

    def text(self, name: str, default: str, choices: Sequence[str]) -> str:
        """An attribute that is one of several words."""
        value: str = self._take(name, "STRING", default.encode()).decode("utf-8", "replace")
        if value not in choices:
            raise ValueError(f"{name} {value!r} is not supported, only {', '.join(choices)}")
        return value

    def ints(self, name: str, default: Any = _REQUIRED) -> Any:
        """An attribute that is a list of whole numbers, as a tuple."""
        value = self._take(name, "INTS", default)
        return value if value is None or value is default else tuple(value)

    def floats(self, name: str, default: Any = _REQUIRED) -> Any:
        """An attribute that is a list of numbers, as a tuple."""
        value = self._take(name, "FLOATS", default)
        return value if value is None or value is default else tuple(value)

    def tensor(self, name: str) -> Array | None:
        """An attribute that is a tensor."""
        value = self._take(name, "TENSOR", None)
        return None if value is None else array_of(value, None)

    def pair(self, name: str, default: Any = _REQUIRED, across: Any = 1) -> Any:
        """An attribute that is a number for each of the two spatial axes, (height, width).

        What is for one axis alone, that of signals, has ``across`` for the other, and sets ``one_axis``.
        """
        value = self.ints(name, default)
        if value is None:
            return None
        if len(value) == 1:
            self.one_axis = True
            return across, value[0]
        if len(value) != 2:
            raise ValueError(f"{name} {list(value)}: only one or two spatial axes are supported")
        return value[0], value[1]


@dataclass(frozen=True)
class Input:
    """What a graph takes: a name, the element type, and the shape as far as the file tells (None where it does not)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    nodes: list[Node]
    inputs: list[Input]
    outputs: list[str]
    constants: dict[str, Array]
    metadata: dict[str, Any]  # what `save` was told of the classes and the normalisation


def read(path: Path) -> tuple[Contents, list[str]]:
    """What the file holds, and what is wrong with it.

    Raises FileNotFoundError, and ValueError for what is no ONNX file, or of an opset that is not supported.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, UnicodeDecodeError) as error:  # the latter from protobuf's version in Python
        raise ValueError(f"{path} is not a whole ONNX file: {error}") from error
    if not model.HasField("graph"):
        raise ValueError(f"{path} is not a whole ONNX file: it holds no graph")
    if not all(isinstance(name, str) for name in _names(model.graph)):
        raise ValueError(f"{path} is not a whole ONNX file: a name in it is not text in UTF-8")
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] not in OPSETS:
        shown = ", ".join(map(str, versions)) or "none"
        raise ValueError(f"{path}: its opset is {shown}; supported are {OPSETS[0]} to {OPSETS[-1]}")
    return _contents(model, versions[0], path.parent)


def _names(graph: GraphProto) -> Iterator[Any]:
    """All names: protobuf hands out bytes for what is not UTF-8."""
    yield from (named.name for part in (graph.input, graph.output, graph.initializer) for named in part)
    for node in graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _contents(model: ModelProto, opset: int, folder: Path) -> tuple[Contents, list[str]]:
    problems: list[str] = []
    graph = model.graph

    def checked(label: str, items: Sequence[Any], function: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
        for item in items:
            try:
                yield item.name, function(item)
            except (ValueError, TypeError, OSError) as error:
                problems.append(f"{label} {item.name!r}: {error}")
                yield item.name, None

    constants = dict(checked("initializer", graph.initializer, lambda tensor: array_of(tensor, folder)))
    free = [value for value in graph.input if value.name not in constants]
    inputs = [value for _, value in checked("input", free, _input)]
    nodes = [Node(proto, opset) for proto in graph.node]
    if graph.sparse_initializer:
        problems.append("sparse initializers are not supported")
    known = {"", *constants, *(value.name for value in free)}
    for node in nodes:
        problems += [
            f"{node} needs {name!r}, which no node before it makes" for name in node.inputs if name not in known
        ]
        made = [name for name in node.outputs if name]
        problems += [f"{node} makes {name!r}, which is there already" for name in made if name in known]
        known.update(made)
    outputs = [value.name for value in graph.output]
    problems += [f"output {name!r} is made by no node" for name in outputs if name not in known or not name]
    if not outputs:
        problems.append("the graph has no output")
    metadata: dict[str, Any] = {}
    try:
        metadata = _metadata(model)
    except (ValueError, TypeError, AttributeError) as error:
        problems.append(f"metadata {METADATA!r}: {error}")
    return Contents(nodes, inputs, outputs, constants, metadata), problems


def _input(value: ValueInfoProto) -> Input:
    if not value.type.HasField("tensor_type"):
        raise ValueError("only tensors are supported")
    kind = value.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
    return Input(value.name, dtype_of(kind.elem_type), shape)


def _metadata(model: ModelProto) -> dict[str, Any]:
    """{"classes": names, "normalise": (mean, std)}, as far as they are there."""
    found = json.loads(next((entry.value for entry in model.metadata_props if entry.key == METADATA), "{}"))
    classes, normalise = found.get("classes") or [], found.get("normalise") or [[0.0], [1.0]]
    if not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes must be names, got {classes!r}")
    Normalize(*normalise)
    return {name: found[name] for name in ("classes", "normalise") if found.get(name)}


# -- tensors ---------------------------------------------------------------------------------------


def array_of(tensor: TensorProto, folder: Path | None) -> Array:
    """The values of a tensor; external data must lie in `folder`. Raises ValueError for sizes that do not agree."""
    dtype, shape = dtype_of(tensor.data_type), tuple(tensor.dims)
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    size = math.prod(shape) * dtype.itemsize
    if tensor.data_location == TensorProto.EXTERNAL:
        raw = _external(tensor, folder, size)
    elif tensor.HasField("raw_data"):
        raw = bytes(tensor.raw_data)
    else:
        return np.array(numpy_helper.to_array(tensor))
    if len(raw) != size:
        raise ValueError(f"shape {shape} of {dtype} is {size:,} bytes, but there are {len(raw):,}")
    return np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape).astype(dtype)


def _external(tensor: TensorProto, folder: Path | None, size: int) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None or not location:
        raise ValueError("its data is said to be in a file that has no name")
    file = (folder / location).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"its data is said to be in {location!r}, outside of the model's folder")
    if not file.is_file():
        raise FileNotFoundError(f"its data should be in {file}, where there is no file")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except ValueError:
        raise ValueError(
            f"offset {entries.get('offset')!r} and length {entries.get('length')!r} are no numbers"
        ) from None
    if length != size or offset < 0 or offset + size > file.stat().st_size:
        raise ValueError(
            f"it takes {size:,} bytes, said to be {length:,} from {offset:,} on of {location!r}, which has "
            f"{file.stat().st_size:,}"
        )
    with file.open("rb") as stream:
        stream.seek(offset)
        data: bytes = stream.read(size)
    return data
