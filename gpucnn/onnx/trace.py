"""What a model's forward() calls of gpucnn.functional, in order, with what, and what came out.

Python itself tells of each call (sys.setprofile), in this thread, as long as a recording lasts. So no function needs to
know that it can be recorded, and forward() may be written as it likes: layers, operators, functions by any name.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any

import numpy as np

from gpucnn.backends import get_backend
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor


@dataclass(frozen=True)
class Call:
    """One call: the function's name, that of the outermost function it is a part of, its arguments, and its result."""

    function: str
    part_of: str
    arguments: dict[str, Any]
    result: Any


class Recorder:
    """The calls of some functions while `run` runs.

    A function that `whole` accepts with its arguments is recorded, and what it calls is not; of any other what it calls
    is, and it itself only if none of that made its result.
    """

    def __init__(self, functions: Mapping[str, Any], whole: Callable[[str, dict[str, Any]], bool]) -> None:
        self.calls: list[Call] = []
        self._names: dict[CodeType, str] = {
            inspect.unwrap(function).__code__: name
            for name, function in functions.items()
            if isinstance(function, FunctionType)
        }
        self._whole = whole
        self._open: list[tuple[FrameType, str, dict[str, Any], bool]] = []
        self._made: set[int] = set()

    def run(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """function(*inputs), recorded."""
        self._made = {key(tensor) for tensor in inputs}
        before = sys.getprofile()
        sys.setprofile(self._event)
        try:
            return function(*inputs)
        finally:
            sys.setprofile(before)

    def _event(self, frame: FrameType, event: str, result: Any) -> None:
        if event == "call":
            name = self._names.get(frame.f_code)
            if name is not None and not (self._open and self._open[-1][3]):
                arguments = dict(frame.f_locals)
                self._open.append((frame, name, arguments, self._whole(name, arguments)))
        elif event == "return" and self._open and self._open[-1][0] is frame:
            _, name, arguments, whole = self._open.pop()
            made = {key(t) for t in tensors(result)}
            taken = {key(t) for t in arguments.values() if isinstance(t, Tensor)}
            if made and not made <= taken and (whole or not made & self._made):
                self.calls.append(Call(name, self._open[0][1] if self._open else name, arguments, result))
            self._made |= made


def key(tensor: Tensor) -> int:
    """What tells tensors apart: detach() and state_dict() make new ones of the same array."""
    return id(tensor.array)


# -- two recordings of a model --------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One recorded call, and the shape of its result, −1 where it depends on the batch."""

    function: str
    part_of: str
    arguments: dict[str, Any]
    result: Tensor
    shape: tuple[int, ...]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


@dataclass(frozen=True)
class Recording:
    """forward() with one batch size."""

    inputs: list[Tensor]
    calls: list[Call]
    outputs: list[Tensor]


def record(model: Module, shapes: Sequence[tuple[int, ...]], batch: int, recorder: Recorder) -> Recording:
    """Run a model on `batch` random images of each shape. Raises TypeError for what returns no tensors."""
    reference = next(iter(model.parameters()), None)
    backend = get_backend() if reference is None else reference.backend
    dtype = np.float32 if reference is None else reference.dtype
    rng = np.random.default_rng(batch)
    inputs = [Tensor(backend.asarray(rng.random((batch, *shape)).astype(dtype)), backend) for shape in shapes]
    made = recorder.run(model, *inputs)
    outputs = list(made) if isinstance(made, tuple | list) else [made]
    if not outputs or not all(isinstance(output, Tensor) for output in outputs):
        raise TypeError(f"forward() must return a tensor or several, got {type(made).__name__}")
    return Recording(inputs, recorder.calls, outputs)


def shape_of(first: Any, second: Any) -> tuple[int, ...]:
    """The shape of the same result for two batch sizes, −1 where they differ."""
    return tuple(n if n == m else -1 for n, m in zip(first.shape, second.shape, strict=True))


def steps(first: Recording, second: Recording, problems: list[str]) -> list[Step]:
    """The calls, with what depends on the batch; what was not recorded, or differs otherwise, is added to `problems`.

    Raises ValueError if the recordings are not of the same calls.
    """
    if [call.function for call in first.calls] != [call.function for call in second.calls]:
        raise ValueError("forward() does other things for another batch, so there is no one graph of it")
    made: set[int] = set()
    for recording in (first, second):
        made |= {key(t) for t in recording.inputs}
        made |= {key(t) for call in recording.calls for t in tensors(call.result)}
    found = []
    for call, again in zip(first.calls, second.calls, strict=True):
        for name, value in call.arguments.items():
            if call.function == name == "index" and any(key(t) in made for t in tensors(value)):
                problems.append("index: an index that is computed from the input can't be written")
            elif name not in ("shape", "sizes") and not _same(value, again.arguments[name], made):
                problems.append(
                    f"{call.part_of}: the argument {name} depends on the input or on the batch size in a way that was "
                    "not recorded; compute it with gpucnn.functional, outside of NumPy"
                )
        result, other = tensors(call.result)[0], tensors(again.result)[0]
        found.append(Step(call.function, call.part_of, call.arguments, result, shape_of(result, other)))
    if not _same(first.outputs, second.outputs, made):
        problems.append("forward() returns a tensor that was not made by gpucnn.functional")
    return found


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a result or argument: one, or several in a tuple or list."""
    return [t for t in (value if isinstance(value, tuple | list) else [value]) if isinstance(t, Tensor)]


def _same(a: Any, b: Any, made: set[int]) -> bool:
    """Whether an argument was the same in both recordings: made by a call in both, or an equal constant."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(p, q, made) for p, q in zip(a, b, strict=True))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if key(a) in made and key(b) in made:
            return True
        return a is b or np.array_equal(a.numpy(), b.numpy(), equal_nan=a.dtype.kind == "f")
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)
