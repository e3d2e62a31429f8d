"""Graph: the network of an ONNX file as a Module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.backends import Backend, get_backend, use_backend
from gpucnn.nn.module import Buffer, Module, Parameter
from gpucnn.onnx.operators import NUMBERS, OPERATORS, Operator, host
from gpucnn.onnx.read import Array, Node, read
from gpucnn.onnx.spatial import MOST_BYTES, Function, affordable
from gpucnn.tensor import Tensor, no_grad

# What is computed at once if all that it takes is in the file: shapes, and what weights are made of.
FOLDED = {
    "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Exp", "Expand", "Flatten", "Gather",
    "Identity", "Mul", "Neg", "Pow", "Reciprocal", "Reshape", "Shape", "Slice", "Split", "Sqrt", "Squeeze", "Sub",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
STATISTICS = {"running_mean", "running_var"}  # each layer moves its own
BROADCAST = {"Add", "Div", "Equal", "Mul", "Pow", "Sub", "Where"}

WRONG = (ValueError, TypeError, IndexError, ArithmeticError)  # what a node raises that its inputs do not fit


def load(path: str | Path, backend: str | Backend | None = None) -> Graph:
    """The network of an ONNX file (opset 7 to 28), in evaluation mode; on the default backend, or on `backend`.

    Raises FileNotFoundError, and ValueError for a file that is not whole or that needs what gpucnn can't compute
    exactly: the error names every such node.
    """
    with use_backend(get_backend(backend)):
        return Graph(path).eval()


class Layer(Module):
    """One node of a graph, with the weights among its inputs. Its class bears the operator's name."""

    def __init__(self, label: str, operator: Operator, function: Function, names: Sequence[str]) -> None:
        self._label, self._operator, self._function, self._names = label, operator, function, list(names)
        self._held: dict[str, Any] = {}  # inputs that the file holds and that are no weights
        self._elements = 0  # of the first input, when it ran last

    def forward(self, *inputs: Tensor | None) -> Any:
        """What the node makes of those of its inputs that it does not own; None stands for one left out."""
        given = iter(inputs)
        own = vars(self) | self._held
        arguments = [own[name] if name in own else next(given) for name in self._names]
        self._elements = arguments[0].numel() if arguments and isinstance(arguments[0], Tensor) else 0
        keywords = {"training": self.training} if self._operator.modal else {}
        try:
            return self._function(*self._placed(arguments), **keywords)
        except WRONG as error:
            raise type(error)(f"{self._label}: {error}") from error

    def _placed(self, arguments: list[Any]) -> list[Any]:
        """Shapes and the like as host arrays; all tensors where the images are: shapes are computed on the host."""
        placed = [
            value.numpy() if isinstance(value, Tensor) and name in NUMBERS else value
            for name, value in zip(self._names, arguments, strict=True)
        ]
        backends = [value.backend for value in placed if isinstance(value, Tensor)]
        away = next((backend for backend in backends if backend is not get_backend("numpy")), None)
        if away is None:
            return placed
        return [value.to(away) if isinstance(value, Tensor) else value for value in placed]

    def multiply_adds(self, output: Tensor) -> int:
        own = vars(self)
        kind, weight = type(self).__name__, own.get("weight", own.get("other"))
        if not isinstance(weight, Parameter):
            return 0
        if kind == "ConvTranspose":
            return self._elements * math.prod(weight.shape[1:])
        terms = {"Conv": weight.shape[1:], "Gemm": (weight.numel() // output.shape[-1],), "MatMul": weight.shape[-2:-1]}
        return output.numel() * math.prod(terms[kind]) if kind in terms else 0

    def extra_repr(self) -> str:
        return self._label


class Graph(Module):
    """The network of an ONNX file. Call it with a tensor for each of the file's inputs, in the file's order.

    Every node that computes with images is a module in it. The weights are parameters called NODE.weight, NODE.bias and
    so on, NODE being the node's name; where the file's own names are like that ("conv1.weight"), they are kept. All
    other constants, and running statistics, are buffers. In training mode BatchNormalization uses the batch and Dropout
    drops, as in the modules of those names.

    Attributes: `inputs`, what it takes, with names, element types and shapes; `metadata`, what `save` was told of the
    classes and the normalisation.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        contents, problems = read(path)
        self.inputs, self._outputs, self.metadata = contents.inputs, contents.outputs, contents.metadata
        used = {name for node in contents.nodes for name in node.inputs} | set(contents.outputs)
        understood = []
        for node in contents.nodes:
            try:
                understood.append((node, *_understood(node, used)))
            except ValueError as error:
                problems.append(f"{node}: {error}")
        if not problems:
            self._steps: list[tuple[Layer, list[str], list[str], list[str]]] = []
            self._build(understood, contents.constants, problems)
        if problems:
            raise ValueError(f"{path} can't be loaded: {'; '.join(problems)}")

    def _build(
        self, understood: list[tuple[Node, Operator, Function]], constants: dict[str, Array], problems: list[str]
    ) -> None:
        same: dict[str, str] = {}  # what an Identity made, by what it took
        on_host: set[str] = set()
        size = 0  # of what was made of constants
        tensors: dict[tuple[str, str], Tensor] = {}  # by name and role: one that two nodes take is one parameter
        for place, (node, operator, function) in enumerate(understood):
            inputs = [same.get(name, name) for name in node.inputs]
            known = all(name in constants or not name for name in inputs)
            names = [operator.name_of(i) + (f"_{i}" if operator.variadic else "") for i in range(len(inputs))]
            layer = type(node.op, (Layer,), {})(str(node), operator, function, names)
            try:
                if known and node.op in FOLDED:
                    made = _folded(layer, node, inputs, constants)
                    size += sum(array.nbytes for array in made.values())
                    if size > MOST_BYTES:
                        raise ValueError("what is made of constants is over 2 GiB")
                    constants.update(made)
                    continue
                if node.op == "Identity":
                    same[node.outputs[0]] = inputs[0]
                    continue
                shapes = node.op == "Shape" or all(name in constants or name in on_host or not name for name in inputs)
                weights = _own(layer, inputs, constants, tensors, shapes)
            except WRONG as error:
                problems.append(f"{node}: {error}")
                continue
            if shapes:
                on_host.update(node.outputs)
            else:
                setattr(self, self._name(node, weights, place), layer)
            awaited = [name for name, role in zip(inputs, names, strict=True) if not _has(layer, role)]
            self._steps.append((layer, awaited, node.outputs, []))
        self._outputs = [same.get(name, name) for name in self._outputs]
        self._fixed = {name: host(constants[name]) for name in self._outputs if name in constants}
        needed = set(self._outputs)
        for _, awaited, outputs, finished in reversed(self._steps):
            finished += {*awaited, *outputs} - needed - {""}
            needed.update(awaited)

    def _name(self, node: Node, weights: dict[str, str], place: int) -> str:
        """The attribute of a layer: "conv1" if its weights are "conv1.weight" and so on in the file, or its name."""
        stems = {name.removesuffix(f".{role}") if name.endswith(f".{role}") else "" for role, name in weights.items()}
        wishes = [stems.pop() if len(stems) == 1 else "", node.name.strip("/"), *node.outputs[:1]]
        free = (name for name in wishes if name and not name.startswith("_") and not hasattr(self, name))
        return next(free, f"{node.op}_{place}")

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs of the file for its inputs: a tensor, or a tuple of several."""
        values: dict[str, Any] = {"": None, **self._fixed}
        values |= {spec.name: tensor for spec, tensor in zip(self.inputs, self._checked(inputs), strict=True)}
        for layer, awaited, outputs, finished in self._steps:
            made = layer(*[values[name] for name in awaited])
            values.update(zip(outputs, made if isinstance(made, tuple) else (made,), strict=False))
            for name in finished:
                values.pop(name, None)
        results = tuple(values[name] for name in self._outputs)
        return results if len(results) > 1 else results[0]

    def _checked(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if len(inputs) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise ValueError(f"this network takes {len(self.inputs)} inputs ({names}), got {len(inputs)}")
        weight = next((value for value in self.parameters()), None)
        for spec, tensor in zip(self.inputs, inputs, strict=True):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"input {spec.name} must be a gpucnn.Tensor, got {type(tensor).__name__}")
            if tensor.dtype.kind != spec.dtype.kind:
                raise TypeError(f"input {spec.name} must be {spec.dtype}, got {tensor.dtype}")
            if spec.shape is not None and len(spec.shape) != tensor.ndim:
                shown = ", ".join("?" if n is None else str(n) for n in spec.shape)
                raise ValueError(f"input {spec.name} must have the shape ({shown}), got {tensor.shape}")
            if weight is not None and tensor.backend is not weight.backend:
                raise ValueError(
                    f"input {spec.name} is on {tensor.backend.name}, the network on {weight.backend.name}; "
                    f"move one of them, for instance with .to({weight.backend.name!r})"
                )
        return inputs


def _understood(node: Node, used: set[str]) -> tuple[Operator, Function]:
    """How a node is computed. Raises ValueError if it can't be, exactly."""
    operator = OPERATORS.get(node.op) if node.known else None
    if operator is None:
        raise ValueError("this operator is not supported")
    while node.inputs and not node.inputs[-1]:
        node.inputs.pop()
    most = len(operator.inputs)
    if any(not name for name in node.inputs[: operator.required]) or not (
        operator.required <= len(node.inputs) and (operator.variadic or len(node.inputs) <= most)
    ):
        raise ValueError(f"it must have {operator.required} to {'any' if operator.variadic else most} inputs, "
                         f"got {node.inputs}")  # fmt: skip
    if not node.outputs or not node.outputs[0]:
        raise ValueError("it has no output")
    if node.op != "Split" and any(name in used for name in node.outputs[1:] if name):
        raise ValueError(f"only its first output is computed here, and {', '.join(node.outputs[1:])} are used")
    function = operator.make(node)
    if node.left:
        raise ValueError(f"its attributes {', '.join(node.left)} are not supported in opset {node.opset}")
    return operator, function


def _folded(layer: Layer, node: Node, inputs: list[str], constants: dict[str, Array]) -> dict[str, Array]:
    """The outputs of a node whose inputs are all known."""
    arrays = [constants[name] for name in inputs if name]
    if node.op in BROADCAST:
        affordable(np.broadcast_shapes(*(array.shape for array in arrays)), arrays[-1].dtype)
    elif sum(array.nbytes for array in arrays) > MOST_BYTES:
        raise ValueError("the constants that it takes are over 2 GiB")
    with no_grad(), np.errstate(all="ignore"):
        made = layer(*[host(constants[name]) if name else None for name in inputs])
    results = [tensor.numpy() for tensor in (made if isinstance(made, tuple) else (made,))]
    return dict(zip(node.outputs, results, strict=False))


def _has(layer: Layer, role: str) -> bool:
    return role in vars(layer) or role in layer._held


def _own(
    layer: Layer, inputs: list[str], constants: dict[str, Array], tensors: dict[tuple[str, str], Tensor], shapes: bool
) -> dict[str, str]:
    """Give a layer its inputs that are constants: role -> name of those that became parameters or buffers."""
    found = {}
    for role, name in zip(layer._names, inputs, strict=True):
        value = constants.get(name)
        if role == "training_mode" and name and (value is None or value.any()):
            raise ValueError("its training mode is fixed in the file; export the model in evaluation mode")
        if value is None:
            continue
        if role in NUMBERS:
            layer._held[role] = value
        elif shapes or value.dtype.kind != "f":
            layer._held[role] = host(value)
        else:
            if role in STATISTICS or (name, role) not in tensors:
                backend = get_backend()
                data = Tensor(backend.asarray(value.copy()), backend)  # equal constants may be one array in the file
                tensors[name, role] = Parameter(data) if _is_weight(role, value) else Buffer(data)
            setattr(layer, role, tensors[name, role])
            found[role] = name
    return found


def _is_weight(role: str, value: Array) -> bool:
    """Weights and biases are learned, and what images are added to or multiplied with, unless it is one number."""
    return role in ("weight", "bias") or (value.size > 1 and role.partition("_")[0] in ("input", "other"))
