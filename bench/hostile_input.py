"""Hostile arguments for every public function: `make hostile`, whose figures are in docs/reliability.md.

Hypothesis draws the calls: shapes with axes of length 0, every element type, arrays of any strides (backwards, every
second element, a stride of 0, Fortran's order, read-only, unaligned, memory-mapped), values that are NaN, infinite,
denormal or near overflow, and arguments of wrong types, out of range or huge. A function may compute, or refuse by a
`raise` of gpucnn's own with a built-in exception that its documentation names. What it computes must be right:

- The values are those of tests/reference.py, scalar loops in float64, or of a plain NumPy function here.
- The gradients are those of the NumPy backend in float64, which tests/functional/test_every_op.py holds to finite
  differences and to PyTorch.
- Behind an activation or a pooling they are those of the sums, for what the op itself has decided: `carried`.
- A layer, a method and an operator must compute what their function does.
- The bounds are those of gpucnn.testing. Where the sum of the magnitudes is beyond the type's largest number, an
  infinity or NaN will do; NaN in the reference must be NaN.

Everything else is a finding: another exception, one that another library raised, a refusal although nothing odd was
drawn, a warning, an argument that has changed, more than MEMORY bytes or SECONDS, a crash.

Each function runs in a process of its own. Needs fork, so not Windows.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import linecache
import math
import multiprocessing
import operator
import resource
import signal
import sys
import tempfile
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st

import gpucnn
from gpucnn import Tensor, attribution, data, metrics, nn, optim, testing, train
from gpucnn import functional as F
from gpucnn.backends import get_backend
from gpucnn.dtypes import bfloat16, is_floating, is_half, smallest, unit_roundoff
from gpucnn.geometry import Window
from gpucnn.random import Generator
from gpucnn.testing import Bounds, Case, Evaluation, Values

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import reference

MEMORY, SECONDS = 2 << 30, 120
REFUSALS = (ValueError, TypeError, IndexError, RuntimeError, BufferError)  # what docstrings name
Array = np.ndarray[Any, Any]

# -- what is drawn -----------------------------------------------------------------------------------------------------

ODD_NUMBERS: tuple[Any, ...] = (-1, 0, 2**31, 2**48, 2**64, -(2**40), 1.5, math.nan, math.inf, None, "2", True, (), [2])
ODD_NUMBERS += (np.int64(2), np.float32(2.5), (1, 2, 3), (1, "x"), b"1", 1j, np.array([1, 2]))
ODD_FLOATS: tuple[Any, ...] = (-1.0, 0.0, math.nan, math.inf, -math.inf, 1e308, 1e-320, None, "0.1", 1j, [], True)
ODD_FLOATS += (np.float64(0.5), np.array(0.5), 2**70)
THINGS: tuple[Any, ...] = (None, 3, "x", [], {}, 1.5, nn.ReLU, np.zeros(2), object())  # which are no tensors
COUNTS = tuple(n for n in ODD_NUMBERS if not isinstance(n, int) or n != 2**31)  # for so many there might be memory
FLOATS = ("float32", "float64", "float16", "bfloat16")
OTHERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool")
LARGEST = {"float16": 65504.0, "bfloat16": 2.0**128 - 2.0**120}
LARGEST |= {name: float(np.finfo(name).max) for name in ("float32", "float64")}
VALUES = ("tame", "tame", "whole", "special", "huge", "tiny", "equal")
LAYOUTS = (
    "plain", "plain", "columns", "backwards", "every second", "repeated", "read-only", "unaligned", "memory-mapped",
    "permuted",
)  # fmt: skip


def named(dtype: str) -> np.dtype[Any]:
    return bfloat16() if dtype == "bfloat16" else np.dtype(dtype)


@dataclass(frozen=True)
class Raw:
    """An array that is passed on as it is, and not as a tensor."""

    value: Any


class Finding(AssertionError):
    """A promise that was not kept."""


class Refused:
    """The function raised what it may."""


class Trial:
    """One call: what is drawn for it, what of that is odd and may be refused, and what came of it."""

    def __init__(
        self, draw: Callable[[Any], Any], backend: str, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self._draw, self.backend, self.note = draw, get_backend(backend), note
        self.few = backend != "numpy"  # windows and types, since each is a kernel to compile
        self.odd: list[str] = []
        self.refused, self.strange = False, self.chance(2)
        self.values = self.pick(*VALUES)

    def pick(self, *values: Any) -> Any:
        return self._draw(st.sampled_from(values))

    def whole(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def chance(self, one_in: int) -> bool:
        return self.whole(1, one_in) == one_in

    def twisted(self, good: Any, *bad: Any) -> Any:
        """In every second trial, one time in five, something odd."""
        if not self.strange or not self.chance(5):
            return good
        chosen = self.pick(*bad)
        self.odd.append(f"{chosen!r}")
        return chosen

    def dtype(self, *others: str) -> str:
        """A floating type most of the time; integers are odd unless they are among `others`."""
        if self.strange and self.chance(4):
            chosen = self.pick(*OTHERS)
            if chosen not in others:
                self.odd.append(chosen)
            return str(chosen)
        return str(self.pick("float32", "float32", "float16") if self.few else self.pick("float32", "float32", *FLOATS))

    def calm(self) -> None:
        """Leave out values whose squares overflow."""
        self.values = "tame" if self.values == "huge" else self.values

    def length(self, most: int = 4) -> int:
        n = self.whole(1, most + 1) % (most + 1)
        if n == 0:
            self.odd.append("empty")
        return n

    def shape(self, least: int = 0, most: int = 4) -> tuple[int, ...]:
        return tuple(self.length() for _ in range(self.whole(least, most)))

    def floats(self, shape: Sequence[int], values: str) -> Array:
        rng = np.random.default_rng(self.whole(0, 999))
        made: Array = np.asarray(rng.standard_normal(shape))
        match values:
            case "whole":
                return np.rint(2 * made)
            case "special":
                some = rng.choice([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, 100.0, -100.0], shape)
                return np.where(rng.random(shape) < 0.4, some, made)
            case "huge":
                some = rng.choice([1.0, -1.0, 0.5, -1e-3, 1e-9], shape) * LARGEST["float32"]
                return np.where(rng.random(shape) < 0.5, some, made)
            case "tiny":
                return np.asarray(made * rng.choice([1e-38, 1e-42, 1e-45, 0.0], shape))
            case "equal":
                return np.full(shape, 1.0 if not made.size else float(made.flat[0]))
        return made

    def array(self, shape: Sequence[int], dtype: str, values: str | None = None) -> Array:
        """Values of that type in memory of some layout."""
        kind = named(dtype).kind
        if kind in "fV":
            made = self.floats(shape, values or self.values)
            if values is None and self.values == "huge" and LARGEST[dtype] < 1e30:
                made = np.clip(made, -LARGEST[dtype], LARGEST[dtype])
            with np.errstate(all="ignore"):
                made = made.astype(np.float32).astype(named(dtype)) if dtype != "float64" else made
        elif kind == "b":
            made = self.floats(shape, "tame") > 0
        else:
            low, high = (-3, 4) if kind == "i" else (0, 5)
            if self.values == "huge" and values is None:
                low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
            made = np.random.default_rng(self.whole(0, 999)).integers(low, high, shape, dtype)
        return self.laid_out(np.asarray(made))

    def laid_out(self, array: Array) -> Array:
        layout = self.pick(*LAYOUTS) if array.ndim else "plain"
        match layout:
            case "columns":
                return np.array(array, order="F")
            case "backwards":
                flip = (slice(None, None, -1),) * array.ndim
                return np.array(array[flip])[flip]
            case "every second":
                larger = np.zeros([2 * n + 3 for n in array.shape], array.dtype)
                view = larger[tuple(slice(1, 1 + 2 * n, 2) for n in array.shape)]
                view[...] = array
                return view
            case "repeated" if array.ndim and array.shape[0]:
                return np.broadcast_to(array[:1], array.shape)
            case "read-only":
                array = array.copy()
                array.flags.writeable = False
            case "unaligned":
                buffer = np.zeros(array.nbytes + 1, np.uint8)
                view = buffer[1:].view(array.dtype).reshape(array.shape)
                view[...] = array
                return view
            case "memory-mapped" if array.size:
                with tempfile.TemporaryFile() as file:
                    mapped = np.memmap(file, array.dtype, "w+", shape=array.shape)
                mapped[...] = array
                return mapped
            case "permuted":
                order = self._draw(st.permutations(range(array.ndim)))
                return np.array(array.transpose(order)).transpose(np.argsort(order).astype(int))
        return array

    # -- calling

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What comes out, or Refused. Everything else that happens is a finding."""
        called = getattr(function, "__name__", repr(function))
        self.note(f"{called}({shown(args)}, {shown(kwargs)}); odd: {self.odd}")
        try:
            return function(*args, **kwargs)
        except REFUSALS as error:
            where = refused_by(error) if type(error) in REFUSALS else "a kernel"
            if where:
                raise Finding(f"{called}: {type(error).__name__} of {where}: {error}") from error
            if not self.odd:
                raise Finding(f"{called} refuses what is not odd: {type(error).__name__}: {error}") from error
            if len(str(error)) > 2000:
                raise Finding(f"{called} takes {len(str(error))} characters to say: {str(error)[:200]}") from error
            self.refused = True
            return Refused
        except MemoryError as error:
            if not self.odd:
                raise Finding(f"{called}: {error}") from error
            self.refused = True
            return Refused


def shown(value: Any) -> str:
    """Arguments in a line: arrays by type, shape, strides and a few values."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={shown(part)}" for name, part in value.items())
    if isinstance(value, tuple | list):
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, Raw):
        return f"raw {shown(value.value)}"
    array = value.array if isinstance(value, Tensor) else value
    if isinstance(array, np.ndarray):
        some = np.asarray(array).reshape(-1)[:6].tolist()
        return f"<{array.dtype}{list(array.shape)} strides {array.strides} {some}>"
    return f"{value!r:.80}"


def refused_by(error: BaseException) -> str:
    """Whose code raised it, if it is not a raise statement of gpucnn."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    code = trace.tb_frame.f_code
    line = linecache.getline(code.co_filename, trace.tb_lineno).strip()
    if Path(gpucnn.__file__).parent in Path(code.co_filename).parents and line.startswith("raise "):
        return ""
    return f"{code.co_filename}:{trace.tb_lineno}: {line}"


# -- an op against its reference ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A differentiable function and its arguments; arrays become tensors, those of `inputs` with a gradient."""

    op: str
    inputs: tuple[Any, ...]
    arguments: dict[str, Any]
    bounds: Bounds | None = None  # None: the same values, each only rounded to the type
    exact: Callable[..., Any] | None = None  # the reference; None: tests/reference.py's
    constants: tuple[int, ...] = ()  # of inputs, those without gradient
    function: Callable[..., Any] | None = None
    sums: Call | None = None  # the op without the activation and the pooling that it ends with: see `carried`
    activation: str | None = None


def tree(value: Any, change: Callable[[Array], Any]) -> Any:
    if isinstance(value, Raw):
        return value.value
    if isinstance(value, np.ndarray):
        return change(value)
    if type(value) in (tuple, list) and any(isinstance(part, np.ndarray) for part in value):
        return type(value)(change(part) if isinstance(part, np.ndarray) else part for part in value)
    return value


def arrays_in(values: Any) -> list[Array]:
    found: list[Array] = []
    for value in values:
        tree(value, found.append) if not isinstance(value, Raw) else None
    return found


def in_float64(array: Array) -> Array:
    return np.array(array, np.float64 if is_floating(array.dtype) else array.dtype, order="C")


def values_of(value: Any) -> Any:
    """For a Case: an array as the Values that it is."""
    if not isinstance(value, np.ndarray):
        return value.value if isinstance(value, Raw) else value
    return Values(value.shape, lambda rng, shape: value, integer=not is_floating(value.dtype))


def on(t: Trial, array: Array) -> Tensor:
    """The array as a tensor of the backend. Where no kernel could read its memory, from_numpy must refuse it."""
    if not t.few or array.flags.aligned:
        return gpucnn.from_numpy(array).to(t.backend)
    with contextlib.suppress(ValueError):
        raise Finding(f"from_numpy takes memory that is not aligned: {gpucnn.from_numpy(array)!r}")
    with gpucnn.use_backend("numpy"):
        return gpucnn.from_numpy(array).to(t.backend)


def judge(t: Trial, call: Call) -> None:
    """Call it, forward and backward, and compare what comes out."""
    grads = t.pick(True, True, False)
    leaves: list[Tensor] = []

    def leaf(array: Array) -> Tensor:
        made = on(t, array)
        if grads and is_floating(made.dtype):
            leaves.append(made.requires_grad_())
        return made

    given = arrays_in([*call.inputs, *call.arguments.values()])
    before = [array.tobytes() for array in given]
    inputs = [tree(v, partial(on, t) if i in call.constants else leaf) for i, v in enumerate(call.inputs)]
    arguments = {name: tree(v, partial(on, t)) for name, v in call.arguments.items()}
    tensors = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
    no_tensor = bool(tensors) and call.function is None and t.strange and t.chance(8)
    if no_tensor:
        inputs[t.pick(*tensors)] = t.pick(*THINGS)
        t.odd.append("no tensor")
    found = t.call(call.function or getattr(F, call.op), *inputs, **arguments)
    if found is not Refused and not no_tensor:
        against_reference(t, call, found, leaves)
    if before != [array.tobytes() for array in given]:
        raise Finding(f"{call.op} has changed an argument")


def against_reference(t: Trial, call: Call, found: Any, leaves: list[Tensor]) -> None:
    y, *others = found if isinstance(found, tuple) else (found,)
    floats = [a.dtype for a in arrays_in([*call.inputs, *call.arguments.values()]) if is_floating(a.dtype)]
    promise(isinstance(y, Tensor), f"{call.op}: made a {type(y).__name__}")
    ways = [call, flushed(call)] if t.few and t.values == "tiny" else [call]
    references = [made if isinstance(made, tuple) else (made,) for made in map(reference_of, ways)]
    for i, mine in enumerate(others, 1):
        right = [np.asarray(made[i]) for made in references if made[i:] and made[i] is not None]
        within(f"{call.op}: result {i}", mine.numpy(), [(array, *near_of(call, mine)) for array in right])
    if not is_floating(y.dtype) or not floats:
        right = [np.asarray(first) for first, *_ in references if first is not None]
        promise(bool(right), f"{call.op}: made {y!r}")
        within(f"{call.op}: output", y.numpy(), [(array, 0.0, 0.0) for array in right])
        return
    if len(set(floats)) == 1 and y.dtype != floats[0] and call.op != "to":
        raise Finding(f"{call.op}: made {y.dtype} of {floats[0]}")
    results, u = [y.numpy()], np.random.default_rng(7).standard_normal(y.shape).astype(np.float32).astype(y.dtype)
    if leaves and y.requires_grad:
        layout = t.laid_out(u) if y.dtype != bfloat16() else u
        u = np.array(layout)
        y.backward(on(t, layout).to(y.backend))
        for leaf in leaves:
            if leaf.grad is None:  # an odd number, as an array without axes
                promise(bool(t.odd) and leaf.ndim == 0, f"{call.op}: no gradient of {leaf.dtype}{leaf.shape}")
                continue
            alike = leaf.grad.dtype == leaf.dtype and leaf.grad.shape == leaf.shape
            promise(alike, f"{call.op}: the gradient of {leaf.dtype}{leaf.shape} is {leaf.grad.dtype}{leaf.grad.shape}")
            results.append(leaf.grad.numpy())
    dy = u.astype(np.float64)
    dz = dy if call.sums is None else carried(t, call, y, dy)
    if dz is None:
        dz, results = np.zeros_like(in_double(call.sums or call)[0]), results[:1]
    expected = [expectations(way, made[0], results, dy, dz) for way, made in zip(ways, references, strict=True)]
    for i, got in enumerate(results):
        within(f"{call.op}: {'output' if not i else f'gradient {i}'}", got, [right[i] for right in expected])


Expected = tuple[Array, Any, Any]  # a value, its largest error, and the largest magnitude on the way to it


def expectations(call: Call, first: Any, results: list[Array], dy: Array, dz: Array) -> list[Expected]:
    """What the output and the gradients should be."""
    y, sums = results[0], call.sums or call
    exact = [np.asarray(first, np.float64) if first is not None else in_double(call)[0]]
    if exact[0].shape != y.shape:
        raise Finding(f"{call.op}: shape {y.shape}, expected {exact[0].shape}")
    exact += in_double(sums, dz)[1:] if len(results) > 1 else []
    if call.op == "conv2d_max_pool2d":  # it may leave out pixels under elements that have lost: 0 times NaN
        exact[1:] = [np.where(np.isnan(right), got, right) for got, right in zip(results[1:], exact[1:], strict=True)]
    errors = bounds_of(sums, str(y.dtype), dz, exact)
    if sums.op != call.op:  # pooled: an element whose sum overflows may win, or lose
        overflows = np.any(errors[0][1] >= LARGEST[str(y.dtype)])
        errors[0] = (np.inf, np.inf) if overflows else bounds_of(call, str(y.dtype), dy, exact)[0]
    if call.sums is not None:
        errors = [(e + more, m + more) for (e, m), more in zip(errors, slack_of(call, y, dy, dz), strict=True)]
    if call.op == "div":  # the gradient of what divides is −dy · (a / b / b), as in PyTorch
        errors = [(error, np.maximum(largest, quotient_of(call))) for error, largest in errors]
    expected = []
    for got, right, (error, largest) in zip(results, exact, errors, strict=False):
        with np.errstate(all="ignore"):  # rounded once more, of what may be larger than in `bounds_of`
            error = error + np.nan_to_num(2 * unit_roundoff(got.dtype) * np.abs(right)) + smallest(got.dtype)
        expected.append((right, error, largest))
    return expected


def quotient_of(call: Call) -> float:
    """The largest |a / b / b|, or |b / a / a| for the operator that exchanges them."""
    a, b = (in_float64(v) if isinstance(v, np.ndarray) else float(v) for v in call.inputs)
    with np.errstate(all="ignore"):
        quotients = (a / b / b, b / a / a) if call.function else (a / b / b,)
        return max(float(np.nan_to_num(np.abs(q), nan=np.inf).max(initial=0.0)) for q in map(np.asarray, quotients))


def in_double(call: Call, u: Array | None = None, change: Callable[[Array], Array] = lambda a: a) -> list[Array]:
    """The output, and the gradients of <u, output>, by the NumPy backend in float64."""
    leaves: list[Tensor] = []

    def double(array: Array) -> Tensor:
        return gpucnn.tensor(change(in_float64(array)), backend="numpy")

    def leaf(array: Array) -> Tensor:
        made = double(array)
        if u is not None and is_floating(made.dtype):
            leaves.append(made.requires_grad_())
        return made

    inputs = [tree(v, double if i in call.constants else leaf) for i, v in enumerate(call.inputs)]
    if call.op == "to":
        inputs = [inputs[0], "float64"]
    with gpucnn.use_backend("numpy"):
        arguments = {name: tree(v, double) for name, v in call.arguments.items()}
        made = (call.function or getattr(F, call.op))(*inputs, **arguments)
    y = made[0] if isinstance(made, tuple) else made
    if leaves:
        y.backward(gpucnn.tensor(u, backend="numpy"))
    return [y.numpy(), *(leaf.grad.numpy() for leaf in leaves if leaf.grad is not None)]


def flushed(call: Call) -> Call:
    """With denormal numbers of float32 and bfloat16 as zeros: what a kernel may take them for, and may not."""

    def flush(array: Array) -> Array:
        if array.dtype not in (np.float32, bfloat16()):
            return array
        return np.where(np.abs(array) < 2.0**-126, array * 0, array).astype(array.dtype)

    inputs = tuple(v if isinstance(v, Raw) else tree(v, flush) for v in call.inputs)
    arguments = {name: v if isinstance(v, Raw) else tree(v, flush) for name, v in call.arguments.items()}
    return replace(call, inputs=inputs, arguments=arguments, sums=call.sums and flushed(call.sums))


# Of an activation, by its output.
SLOPES: dict[str | None, Callable[[Array], Any]] = {
    None: lambda y: 1.0,
    "relu": lambda y: y > 0,
    "relu6": lambda y: (y > 0) & (y < 6),
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
}


def carried(t: Trial, call: Call, y: Tensor, dy: Array) -> Array | None:
    """The gradient of the op's sums, by what it has decided: signs of what it has rounded, which element was largest.

    The largest elements are those of max_pool2d after conv2d, if these have the same bits.
    """
    dz: Array = dy * SLOPES[call.activation](y.numpy().astype(np.float64))
    if call.op != "conv2d_max_pool2d":
        return dz
    assert call.sums is not None
    with gpucnn.no_grad():
        sums = F.conv2d(*(tree(v, partial(on, t)) for v in call.sums.inputs))
        pooled, places = F.max_pool2d(sums, **call.arguments["max_pool"], return_indices=True)
        apart = getattr(F, call.activation or "add")(*((pooled,) if call.activation else (pooled, 0)))
    same = equal(apart.numpy().astype(float), y.numpy().astype(float))
    promise(same or not t.few, f"{call.op}: {y!r}, but {apart!r} by two ops")
    if not same:  # in NumPy up to rounding: another element may have been the largest
        return None
    n, k = np.indices(places.shape)[:2]
    place, of_sums = places.numpy(), np.zeros((*sums.shape[:2], math.prod(sums.shape[2:])))
    np.add.at(of_sums, (n, k, np.maximum(place, 0)), np.where(place < 0, 0, dz))
    return of_sums.reshape(sums.shape)


def slack_of(call: Call, y: Array, dy: Array, dz: Array) -> list[Array]:
    """What the activation adds to the bounds of the sums: 16 roundings to the output, and to the gradients what four
    of dz make; of a slope that is a difference of two numbers up to 1, four of dy.

    A batch norm computes an activation's slope again, before it is rounded to a half type: at the corner it may differ.
    """
    assert call.sums is not None
    unit, smooth = unit_roundoff(y.dtype), call.activation in ("sigmoid", "tanh")
    small = 4 * unit * np.abs(dy if smooth else dz)
    if call.op == "batch_norm" and is_half(y.dtype) and call.activation == "relu6":
        small = small + np.abs(dy) * (np.abs(y.astype(np.float64) - 6) <= 8 * unit)
    output = np.full(y.shape, 16.0 * unit * smooth)
    if call.op == "conv2d" and call.inputs[8] is not None:  # the weight is multiplied by it, and rounded
        output, small = output + shares_of(call.sums, small)[0] * 4 * unit, small + 4 * unit * np.abs(dz)
    return [output, *shares_of(call.sums, small)[1:]]


def shares_of(call: Call, dz: Array) -> list[Array]:
    """How large the output's sums are, and the most that the gradients change if the output's changes by dz >= 0."""
    if call.op != "batch_norm" or not dz.size:
        return in_double(call, dz, lambda array: np.abs(np.nan_to_num(array, posinf=0.0, neginf=0.0)))
    given = inspect.signature(F.batch_norm).bind(*call.inputs, **call.arguments)
    given.apply_defaults()
    x, mean, variance, weight, bias, training, _, eps, residual, _ = (
        np.nan_to_num(in_float64(v), posinf=0.0, neginf=0.0) if isinstance(v, np.ndarray) and v.ndim else v
        for v in given.args
    )
    rows, shares = (np.moveaxis(a, 1, 0).reshape(a.shape[1], math.prod(a.shape) // a.shape[1]) for a in (x, dz))
    if training:
        mean, variance = rows.mean(1), rows.var(1)
    with np.errstate(all="ignore"):
        scale = 1 / np.sqrt(variance + float(eps))[:, None]
        normal = np.abs(rows - mean[:, None]) * scale
        all_shares = shares.mean(1, keepdims=True) + normal * (normal * shares).mean(1, keepdims=True)
        dx = scale * (1.0 if weight is None else np.abs(weight)[:, None]) * (shares + training * all_shares)
    dx = np.moveaxis(dx.reshape(x.shape[1], len(x), *x.shape[2:]), 0, 1)
    of_all = [(x, normal), (x, dx), (weight, (normal * shares).sum(1)), (bias, shares.sum(1)), (residual, dz)]
    return [np.nan_to_num(share, nan=np.inf) for value, share in of_all if value is not None]


def near_of(call: Call, mine: Tensor) -> tuple[Any, Any]:
    """For an op's other results: indices exactly; the running statistics of a batch norm, sums of x² in their type."""
    if not is_floating(mine.dtype):
        return 0.0, 0.0
    x, *statistics = (np.abs(np.nan_to_num(in_float64(a), posinf=0.0, neginf=0.0)) for a in call.inputs[:3])
    most = x.max(initial=0.0)
    with np.errstate(over="ignore"):
        largest = max(1.0, abs(float(call.inputs[6]))) * (most**2 + most + sum(statistics))
    if not np.isfinite(4 * largest).all():
        return np.inf, np.inf
    return 16 * (x.size // max(x.shape[1], 1) + 8) * unit_roundoff(mine.dtype) * largest, 4 * largest


def equal(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f"))


def reference_of(call: Call) -> Any:
    """The result by tests/reference.py or the given function; None where that can't compute with such numbers."""
    exact = call.exact or getattr(reference, call.op)
    inputs = [int(v) if isinstance(v, bool | np.integer) else tree(v, in_float64) for v in call.inputs]
    arguments = {name: tree(value, in_float64) for name, value in call.arguments.items()}
    try:
        with np.errstate(all="ignore"):
            return exact(*inputs, **arguments)
    except (OverflowError, ZeroDivisionError, ValueError, MemoryError):
        return None


FINISH = ("return_indices", "activation")  # what no sum is made of


def bounds_of(call: Call, dtype: str, u: Array, exact: list[Array]) -> list[tuple[Array, Array]]:
    """For each result: the largest error, and the largest magnitude on the way to it."""
    tiny = 8 * max(smallest(dtype), 2.0**-126 if dtype != "float64" else 2.0**-1022)
    if call.bounds is None:
        unit = unit_roundoff(dtype)
        return [(2 * unit * np.abs(right) + tiny, 2 * np.abs(right)) for right in exact]

    def tame(value: Any) -> Any:
        if isinstance(value, np.ndarray) and is_floating(value.dtype):
            return np.asarray(np.nan_to_num(in_float64(value), nan=0.0, posinf=0.0, neginf=0.0))
        if isinstance(value, Raw) and isinstance(value.value, np.ndarray) and value.value.dtype.kind in "iu":
            return Raw(value.value.astype(np.int64))
        return int(value) if isinstance(value, bool) else value

    inputs = [tame(v) for v in call.inputs]
    arguments = {name: tame(v) for name, v in call.arguments.items() if name not in FINISH}
    case = Case(call.op, tuple(map(values_of, inputs)), call.bounds, {k: values_of(v) for k, v in arguments.items()},
                call.constants)  # fmt: skip
    made, given = case.made_inputs(), case.made_arguments()
    with np.errstate(all="ignore"), gpucnn.use_backend("numpy"):
        twin = testing._evaluated(case, "numpy", made, given, u)
        try:
            units = [np.nan_to_num(np.asarray(b), nan=np.inf) for b in call.bounds(twin)]
        except (ZeroDivisionError, ValueError):  # nothing at all, or a variance of 0
            units = [np.asarray(np.inf)] * len(twin.results)
        if is_half(named(dtype)):
            errors = testing.in_half(twin, dtype, [b if np.ndim(b) else float(b) for b in units])
        else:
            errors = [unit_roundoff(dtype) * (2 if dtype == "float64" else 1) * b for b in units]
        return [
            (np.nan_to_num(np.asarray(e) + tiny, nan=np.inf), 4 * np.maximum(np.asarray(b), np.abs(r)))
            for e, b, r in zip(errors, units, twin.results, strict=True)
        ]


def within(what: str, got: Array, expected: Sequence[Expected]) -> None:
    """Each element is one of the expected ones, or as near to it as it may be."""
    if not expected:
        return
    mine, wrong, most = got.astype(np.float64), np.ones(got.shape, bool), LARGEST.get(str(got.dtype), np.inf)
    for right, bound, magnitude in expected:
        if got.shape != right.shape:
            raise Finding(f"{what} has shape {got.shape}, expected {right.shape}")
        right = right.astype(np.float64)
        with np.errstate(all="ignore"):
            same = (mine == right) | (np.isnan(mine) & np.isnan(right))
            near = np.abs(mine - right) <= bound
            overflown = ~np.isfinite(mine) & (np.maximum(magnitude, np.abs(right)) >= most)
            wrong &= ~(same | near | (overflown & ~np.isnan(right)))
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0].tolist())
        right, bound, _ = expected[0]
        raise Finding(
            f"{what}{list(place)} is {mine[place]!r}, expected {right[place]!r} within "
            f"{np.broadcast_to(bound, got.shape)[place]:.3g} ({int(wrong.sum())} of {wrong.size} are off)"
        )


# -- the functions of gpucnn.functional --------------------------------------------------------------------------------

Entry = Callable[[Trial], None]
Drawn = Callable[[Trial], Call]
SHAPED = ("bool", "uint8", "int64", "int32", "int16", "int8", "uint16", "uint32", "uint64")
WIDE = {"int64", "int32", "int16", "int8"}


def one(t: Trial, least: int = 0, most: int = 4, dtypes: Sequence[str] = (), values: str | None = None) -> Array:
    return t.array(t.shape(least, most), t.dtype(*dtypes), values)


def elementwise(op: str, bounds: Bounds | None, exact: Callable[..., Any] | None = None, **parameters: Any) -> Drawn:
    def draw(t: Trial) -> Call:
        x = one(t)
        # 1e308 is infinite in float32, and 0 · ∞ is NaN there.
        odd = [v for v in ODD_FLOATS if v != 1e308 or x.dtype == np.float64]
        arguments = {name: t.twisted(t.pick(*good), *odd) for name, good in parameters.items() if t.chance(2)}
        return Call(op, (x,), arguments, bounds, exact)

    return draw


def gelu(t: Trial) -> Call:
    t.calm()  # beyond 10¹⁹ the slope of the tanh formula is NaN, as PyTorch's
    return Call("gelu", (one(t),), {"approximate": t.twisted(t.pick("none", "tanh"), "x", None, 1)}, testing.activated)


def _reciprocal(x: Array) -> Array:
    return 1 / (x.astype(np.float32) if x.dtype.kind in "iub" else x)


def _softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Any:
    return scalar(reference.softplus)(x, beta, math.inf)  # exact above the threshold too: docs/differences.md


def clamp(t: Trial) -> Call:
    odd = [value for value in ODD_FLOATS if not isinstance(value, float) or value != 1e-320]  # which is 0 in float32
    ends = {name: t.twisted(t.pick(-2.0, 0.5, None, 1), *odd) for name in ("min", "max")}
    if ends == {"min": None, "max": None}:
        t.odd.append("no ends")
    return Call("clamp", (one(t),), ends, testing.selected, _clamped)


def _clamped(x: Array, min: Any, max: Any) -> Array:
    low, high = (-math.inf if min is None else min), (math.inf if max is None else max)
    return np.where(np.isnan(x), x, np.minimum(np.maximum(x, low), high))


def pair_of_shapes(t: Trial) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two that broadcast, mostly."""
    whole = t.shape(0, 4)
    parts = []
    for _ in range(2):
        kept = whole[t.whole(0, len(whole)) :] if t.chance(3) else whole
        parts.append(tuple(1 if t.chance(4) else n for n in kept))
    if t.chance(8):
        parts[0] = t.twisted(parts[0], (3, 2), (5,), (2, 1, 1, 1, 1, 3))
        t.odd.append("shapes")
    return parts[0], parts[1]


def binary(op: str, bounds: Bounds, exact: Callable[..., Any], numbers: bool = True) -> Drawn:
    def draw(t: Trial) -> Call:
        if op == "pow" and t.values == "tiny":  # whose reciprocals overflow
            t.values = "tame"
        first, second = pair_of_shapes(t)
        dtype = t.dtype(*OTHERS) if op != "pow" else t.dtype()
        a, b = t.array(first, dtype), t.array(second, dtype)
        if t.chance(8):
            b = t.array(second, t.dtype(), "whole")
            t.odd.append("two types")
        if named(dtype).kind not in "fV":
            t.odd.append(dtype)
        other: Any = b
        if numbers and t.chance(5):
            odd = [n for n in ODD_FLOATS if op != "pow" or n not in (1e308, 1e-320)]  # which float32 has not
            other = t.twisted(t.pick(2, 0.5, -1.5, 3), *odd)
        return Call(op, (a, other), {}, bounds, in_float32_if_integers(op, exact))

    return draw


def in_float32_if_integers(op: str, exact: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's promotion: an integer tensor with a float number, or in a division, is float32."""

    def computed(a: Any, b: Any) -> Any:
        whole = [getattr(v, "dtype", np.dtype(bool)).kind in "iub" for v in (a, b)]
        if all(whole) and (op == "div" or any(isinstance(v, float) for v in (a, b))):
            a, b = (np.asarray(v, np.float32) for v in (a, b))
        return exact(a, b)

    return computed


def where(t: Trial) -> Call:
    first, second = pair_of_shapes(t)
    dtype = t.dtype(*OTHERS)
    condition = t.array(first, t.twisted("bool", "float32", "int64"))
    return Call("where", (condition, t.array(second, dtype), t.array(first, dtype)), {}, testing.selected, np.where)


def compare(t: Trial) -> Call:
    first, second = pair_of_shapes(t)
    dtype = t.dtype(*OTHERS)
    name = t.pick("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
    other = t.array(second, dtype) if t.chance(2) else t.twisted(t.pick(0, 1, 0.5), *ODD_FLOATS)
    if named(dtype).kind not in "fV" and isinstance(other, float):
        t.odd.append("float")
    return Call("compare", (name, t.array(first, dtype), other), {}, None, lambda f, a, b: getattr(np, f)(a, b))


def dim_of(t: Trial, ndim: int, several: bool = False) -> Any:
    if not ndim:
        t.odd.append("no axes")
        return t.pick(0, -1, None) if several else t.pick(0, -1)
    good: list[Any] = list(range(-ndim, ndim))
    if several:
        good += [None, None, (0, ndim - 1) if ndim > 1 else (0,), (-1,), []]
    return t.twisted(t.pick(*good), ndim, -ndim - 1, (0, 0), *ODD_NUMBERS)


def reduction(op: str, dtypes: Sequence[str] = ()) -> Drawn:
    def draw(t: Trial) -> Call:
        x = one(t, dtypes=dtypes)
        arguments: dict[str, Any] = {"dim": dim_of(t, x.ndim, several=True)} if t.chance(2) else {}
        if t.chance(2):
            arguments["keepdim"] = t.pick(True, False)
        bounds = {"sum": testing.products, "mean": testing.averages(x.size)}.get(op, testing.selected)
        return Call(op, (x,), arguments, bounds, partial(_reduced, op))

    return draw


def _reduced(op: str, x: Array, dim: Any = None, keepdim: bool = False) -> Any:
    dim = int(dim) if isinstance(dim, bool) else dim
    axes = None if dim is None or dim == [] or dim == () else tuple(dim) if isinstance(dim, list | tuple) else dim
    if op == "sum" and x.dtype.kind in "iub":
        return x.sum(axis=axes, keepdims=keepdim, dtype=np.int64 if x.dtype.kind != "u" else None)
    return getattr(np, op)(x, axis=axes, keepdims=keepdim)


def place(op: str) -> Drawn:
    def draw(t: Trial) -> Call:
        x = one(t, dtypes=SHAPED)
        dim = dim_of(t, x.ndim) if t.chance(2) else None
        return Call(op, (x, dim), {}, None, lambda x, dim: getattr(np, op)(x, axis=dim))

    return draw


def extremes(op: str) -> Entry:
    """max and min along an axis: what amax and argmax, amin and argmin give."""

    def entry(t: Trial) -> None:
        x = on(t, one(t, dtypes=SHAPED))
        dim, keepdim = (dim_of(t, x.ndim) if t.chance(2) else None), t.pick(True, False)
        found = t.call(getattr(F, op), x, dim, keepdim)
        if found is Refused:
            return
        if dim is None:
            found, right = (found,), (getattr(F, f"a{op}")(x),)
        else:
            right = getattr(F, f"a{op}")(x, dim, keepdim), getattr(F, f"arg{op}")(x, dim, keepdim)
        same = [equal(a.numpy().astype(float), b.numpy().astype(float)) for a, b in zip(found, right, strict=True)]
        promise(all(same), f"{op}: {found!r}")

    return entry


def along(op: str) -> Drawn:
    def draw(t: Trial) -> Call:
        x = one(t)
        return Call(op, (x, dim_of(t, x.ndim)), {}, testing._soft)

    return draw


def prelu(t: Trial) -> Call:
    x = one(t)
    channels = x.shape[1] if x.ndim > 1 else 1
    if not channels:
        t.odd.append("no channels")
    shape = t.twisted(t.pick((1,), (channels,)), (2, 1), (7,), ())
    return Call("prelu", (x, t.array(shape, str(x.dtype), "tame")), {}, testing.activated)


def dropout(t: Trial, function: Callable[..., Any] = F.dropout, channels: int = 0) -> None:
    """``channels``: the number of axes, for one that drops channels."""
    x = one(t, *((channels, channels) if channels and not t.chance(9) else ()))
    if channels and x.ndim != channels:
        t.odd.append("axes")
    p, training = t.twisted(t.pick(0.0, 0.3, 0.5, 1.0), *ODD_FLOATS), t.pick(True, True, False)
    y = t.call(function, on(t, x), p, training, generator=Generator(t.whole(0, 99)))
    if y is Refused:
        return
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        scaled = wide / (1 - p) if training and p < 1 else wide
        of_kept = y.numpy().astype(np.float64) - scaled
        near = np.abs(of_kept) <= 3 * unit_roundoff(str(x.dtype)) * np.abs(scaled) + 2 * smallest(str(x.dtype))
        same = near | (y.numpy() == scaled) | ~np.isfinite(scaled) | (np.abs(scaled) > LARGEST[str(x.dtype)])
    zero = (y.numpy() == 0) | np.isnan(wide) | np.isinf(wide)
    allowed = same if not training or p == 0 else (zero if p == 1 else same | zero)
    if y.dtype != x.dtype or y.shape != x.shape or not allowed.all():
        raise Finding(f"dropout: {y.numpy().tolist()} of {x.tolist()}")


# windows


def pair(t: Trial, low: int, high: int, *odd: Any) -> Any:
    if t.chance(2):
        return t.twisted(t.whole(low, high), *(odd or ODD_NUMBERS))
    return (t.whole(low, high), t.twisted(t.whole(low, high), *(odd or ODD_NUMBERS)))


def both(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


FEW_WINDOWS: tuple[dict[str, Any], ...] = (
    {"kernel": (2, 3), "stride": (2, 1), "padding": (1, 0), "dilation": 1},
    {"kernel": (3, 2), "stride": 1, "padding": 0, "dilation": (1, 2)},
    {"kernel": (1, 1), "stride": (1, 2), "padding": 0, "dilation": 1},
)


def window(t: Trial, pooling: bool = False, dilated: bool = True) -> dict[str, Any]:
    """kernel, stride, padding and dilation; a refusal is allowed where they may not fit."""
    if t.few:
        chosen = dict(t.pick(*FEW_WINDOWS[: 3 if dilated else 1]))
        t.odd.append("may not fit")
        return chosen
    found = {"kernel": (t.whole(1, 3), t.whole(1, 3)), "stride": pair(t, 1, 3), "dilation": pair(t, 1, 2)}
    most = min(found["kernel"]) // 2 if pooling else 2
    padding: Any = t.pick("same", "valid") if t.chance(5) else pair(t, 0, most)
    if t.chance(5):
        padding = tuple(t.whole(0, most) for _ in range(4))
        padding = t.twisted(padding, (1, 0, -1, 2), (0, 0, 0), "full", (2**48, 0, 0, 0))
    t.odd.append("may not fit")
    return found | {"padding": padding}


def plane(t: Trial) -> tuple[int, int]:
    return (t.length(7), t.length(7)) if t.chance(8) else (t.pick(*range(1, 8), 5, 6, 7), t.pick(*range(1, 8), 5, 6, 7))


def scalar(function: Callable[..., Any], **kept: Any) -> Callable[..., Any]:
    """tests/reference.py's, whose arguments are checked no further than they need to be for it."""

    def computed(*inputs: Any, **arguments: Any) -> Any:
        try:
            return function(*inputs, **arguments)
        except (TypeError, IndexError, AttributeError) as error:
            raise ValueError(str(error)) from error

    return computed


def convolved(t: Trial) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Input, weight and bias; the other arguments."""
    groups, moves = t.pick(1, 1, 2, 3), window(t)
    c, k = groups * t.whole(1, 2), groups * t.whole(1, 2)
    r, s = moves.pop("kernel")
    x = t.array((t.pick(1, 2, 2, 0), c, *plane(t)), t.dtype())
    w_dtype = t.twisted(str(x.dtype), *FLOATS)
    depth = t.twisted(c // groups, c + 1, 0)
    w = t.array((k, depth, r, s), w_dtype, "tame")
    bias = t.array((t.twisted(k, k + 1, 1),), str(x.dtype)) if t.chance(2) else None
    if t.chance(2) or groups != 1:
        moves["groups"] = t.twisted(groups, *ODD_NUMBERS)
    return (x, w, bias), moves


def conv2d(t: Trial) -> Call:
    inputs, moves = convolved(t)
    x, w, _ = inputs
    if t.chance(3):
        size = (x.shape[2], x.shape[3])
        shape: tuple[int, ...] = (1,)
        with contextlib.suppress(ValueError):  # of a window that does not fit
            of = Window.of(w.shape[2:], moves["stride"], moves["padding"], moves["dilation"], size=size)
            shape = (len(x), len(w), *of.output_size(size))
        moves["residual"] = t.array(t.twisted(shape, (1,), (*shape, 1)), t.twisted(str(x.dtype), *FLOATS), "tame")
    if t.chance(5):
        moves["scale"] = t.array((t.twisted(len(w), len(w) + 1, 1),), t.twisted(str(w.dtype), *FLOATS), "tame")
    return finished(t, Call("conv2d", inputs, moves, testing.products, scalar(reference.conv2d)))


def finished(t: Trial, call: Call) -> Call:
    """The op with an activation, half of the time; its arguments in their places, so that each may have a gradient."""
    activation = t.twisted(t.pick("relu", "relu6", "tanh", "sigmoid"), "gelu", "x", 3) if t.chance(2) else None
    given = inspect.signature(getattr(F, call.op)).bind(*call.inputs, **call.arguments)
    given.apply_defaults()
    plain = replace(call, inputs=given.args, arguments={})
    at = list(given.arguments).index("activation")
    inputs = (*given.args[:at], activation, *given.args[at + 1 :])
    return replace(plain, inputs=inputs, sums=plain, activation=activation)


def conv2d_max_pool2d(t: Trial) -> Call:
    inputs, moves = convolved(t)
    sums = Call("conv2d", (*inputs, *(moves.get(n, 1) for n in ("stride", "padding", "dilation", "groups"))), {},
                testing.products)  # fmt: skip
    activation = t.twisted(t.pick(None, "relu"), "tanh", "x")
    pooling: dict[str, Any] = {"kernel_size": t.twisted(t.pick(2, (1, 2)), *ODD_NUMBERS)}
    if t.chance(3):
        pooling |= t.pick({"stride": 1}, {"padding": (0, 1), "stride": 2}, {"ceil_mode": True}, {"stride": 0})
        t.odd.append("pooling")
    moves |= {"activation": activation, "max_pool": pooling}
    return Call("conv2d_max_pool2d", inputs, moves, testing.products, scalar(reference.conv2d_max_pool2d), sums=sums,
                activation=activation)  # fmt: skip


def conv_transpose2d(t: Trial) -> Call:
    groups, moves = t.pick(1, 1, 2), window(t)
    c = groups * t.whole(1, 2)
    r, s = moves.pop("kernel")
    if isinstance(moves["padding"], str) or len(both(moves["padding"])) == 4:
        t.odd.append("padding")
        if isinstance(moves["padding"], tuple):
            moves["padding"] = moves["padding"][:2]
    x = t.array((t.pick(1, 2, 0), c, *plane(t)), t.dtype())
    w = t.array((t.twisted(c, c + 1), t.whole(1, 2), r, s), t.twisted(str(x.dtype), *FLOATS), "tame")
    bias = t.array((w.shape[1] * groups,), str(x.dtype)) if t.chance(2) else None
    if t.chance(3):
        moves["output_padding"] = pair(t, 0, 1)
    moves["groups"] = t.twisted(groups, *ODD_NUMBERS)
    return Call("conv_transpose2d", (x, w, bias), moves, testing.products, scalar(reference.conv_transpose2d))


def pool(op: str) -> Drawn:
    extreme = op in ("max_pool2d", "min_pool2d")

    def draw(t: Trial) -> Call:
        moves = window(t, pooling=True, dilated=extreme)
        kernel, dilation = moves.pop("kernel"), moves.pop("dilation")
        arguments: dict[str, Any] = {"kernel_size": t.twisted(kernel, *ODD_NUMBERS)} | moves
        if extreme:
            arguments["dilation"] = dilation
        if t.chance(4):
            del arguments["stride"]
        if t.chance(3):
            arguments["ceil_mode"] = t.pick(True, False)
        if extreme and t.chance(3):
            arguments["return_indices"] = True
        if op == "avg_pool2d" and t.chance(2):
            arguments |= t.pick({"count_include_pad": False}, {"divisor_override": t.twisted(3, *ODD_NUMBERS)})
        x = t.array((t.pick(1, 2, 2, 0), t.length(3), *plane(t)), t.dtype())
        bounds = _chosen if extreme else testing.averages(9)
        exact = scalar(getattr(reference, op))
        return Call(op, (x,), arguments, bounds, exact if op != "avg_pool2d" else partial(_averaged, exact))

    return draw


def _chosen(exact: Evaluation) -> Sequence[Any]:
    """The output's elements are the input's; one of them is in at most nine windows, whose gradients it gets."""
    return [0.0, 81 * np.abs(exact.cotangent).max(initial=0.0)]


def _averaged(exact: Callable[..., Any], x: Array, **arguments: Any) -> Any:
    if isinstance(arguments["padding"], tuple) and len(arguments["padding"]) == 4:
        raise ValueError("the reference pads both sides alike")
    return exact(x, **arguments)


def adaptive(op: str) -> Drawn:
    def draw(t: Trial) -> Call:
        x = t.array((t.pick(1, 2, 0), t.length(3), *plane(t)), t.dtype())
        size = pair(t, 1, 5) if t.chance(2) else t.pick((None, 2), (3, None), None, 1)
        if 0 in x.shape[2:] or size is None:
            t.odd.append("empty")
        arguments = {"return_indices": True} if op == "adaptive_max_pool2d" and t.chance(3) else {}
        bounds = _chosen if op == "adaptive_max_pool2d" else testing.averages(x.size + 4)
        return Call(op, (x, size), arguments, bounds, scalar(getattr(reference, op)))

    return draw


# signals


def of_signals(op: str) -> Drawn:
    """The op on signals: of what is drawn for the one on images the first row, and the last of each pair."""
    of_images = op.replace("1d", "2d")

    def draw(t: Trial) -> Call:
        if of_images == "conv2d":
            call = Call(of_images, *convolved(t), testing.products, scalar(reference.conv2d))
        else:
            call = OPS[of_images](t)
        arguments = {name: _along(value) for name, value in call.arguments.items() if name != "divisor_override"}
        inputs = tuple(_row(value) if isinstance(value, np.ndarray) else _along(value) for value in call.inputs)
        if op.startswith("adaptive") and inputs[1] is None:
            t.odd.append("no length")
        return replace(call, op=op, inputs=inputs, arguments=arguments, exact=partial(_in_one_row, call.exact))

    return draw


def _row(x: Array) -> Array:
    if x.ndim != 4:
        return x
    return x[:, :, 0] if x.shape[2] else np.zeros((*x.shape[:2], x.shape[3]), x.dtype)


def _along(value: Any) -> Any:
    if not isinstance(value, tuple) or len(value) not in (2, 4):
        return value
    return value[-1] if len(value) == 2 else value[2:]


def _in_one_row(exact: Callable[..., Any], *inputs: Any, **arguments: Any) -> Any:
    """What the op on images gives for images of one row."""

    def across(name: str, value: Any) -> Any:
        if name == "padding":
            return value if isinstance(value, str) else (0, 0, *value) if isinstance(value, tuple) else (0, value)
        least = {"kernel_size": 1, "stride": 1, "dilation": 1, "output_padding": 0}
        return value if name not in least or value is None else (least[name], value)

    lifted = [
        value[:, :, None] if isinstance(value, np.ndarray) and value.ndim == 3 else (1, value)
        if isinstance(value, int) or (value is None and len(inputs) == 2) else value
        for value in inputs
    ]  # fmt: skip
    y = exact(*lifted, **{name: across(name, value) for name, value in arguments.items()})
    return tuple(part[:, :, 0] for part in y) if isinstance(y, tuple) else y[:, :, 0]


# normalisation


def eps_of(t: Trial) -> dict[str, Any]:
    return {"eps": t.twisted(t.pick(1e-5, 1e-3), *ODD_FLOATS)} if t.chance(3) else {}


def affine(t: Trial, shape: tuple[int, ...], dtype: str) -> tuple[Any, ...]:
    if t.chance(2):
        return ()
    wrong = t.twisted(shape, (7,), (), (1, *shape))
    return t.array(wrong, dtype, "tame"), t.array(shape, dtype, "tame")


def batch_norm(t: Trial) -> Call:
    t.calm()
    x = t.array((t.length(), t.length(3), *(plane(t)[t.pick(0, 0, 1) :] if t.chance(2) else ())), t.dtype())
    c, training = x.shape[1], t.pick(True, False)
    channel = "float32" if is_half(x.dtype) else str(x.dtype)
    statistics: tuple[Any, ...] = (None, None)
    if not training or t.chance(2):
        variance = np.abs(t.array((c,), channel, "tame")) + np.float32(0.5)
        statistics = t.array((c,), channel, "tame"), variance.astype(channel)
    if training and x.size // max(c, 1) < 2:
        t.odd.append("one value")
    odd = [value for value in ODD_FLOATS if value not in (math.inf, -math.inf)]  # whose differences are anything
    arguments = eps_of(t) | {"momentum": t.twisted(t.pick(0.1, 0.0, 1.0), *odd) if t.chance(3) else 0.1}
    if t.chance(3):
        shape, dtype = t.twisted(x.shape, (1,), (*x.shape, 1)), t.twisted(str(x.dtype), *FLOATS)
        arguments["residual"] = t.array(shape, dtype, "tame")
    bounds = testing._normalised(lambda x: np.moveaxis(x, 1, 0).reshape(x.shape[1], -1))
    inputs = (x, *statistics, *(affine(t, (c,), channel) or (None, None)), training)
    call = Call("batch_norm", inputs, arguments, bounds if training else testing._with_statistics,
                scalar(reference.batch_norm), (1, 2))  # fmt: skip
    return finished(t, replace(call, function=_and_statistics))


def instance_norm(t: Trial) -> Call:
    t.calm()
    x = t.array((t.length(), t.length(3), *plane(t)[t.pick(0, 0, 1) :]), t.dtype())
    c, own = x.shape[1], t.pick(True, False)
    channel = "float32" if is_half(x.dtype) else str(x.dtype)
    statistics: tuple[Any, ...] = (None, None)
    if not own or t.chance(2):
        variance = np.abs(t.array((c,), channel, "tame")) + np.float32(0.5)
        statistics = t.array((c,), channel, "tame"), variance.astype(channel)
    if own and math.prod(x.shape[2:]) < 2:
        t.odd.append("one value")
    odd = [value for value in ODD_FLOATS if value not in (math.inf, -math.inf, None)]  # whose differences are anything
    momentum = t.twisted(t.pick(0.1, 0.0, 1.0), *odd) if t.chance(3) else 0.1
    bounds = testing._normalised(lambda x: x.reshape(x.shape[0] * x.shape[1], -1))
    inputs = (x, *statistics, *(affine(t, (c,), channel) or (None, None)), own, momentum)
    both = partial(_and_statistics, op="instance_norm")
    return Call("instance_norm", inputs, eps_of(t), bounds if own else testing._with_statistics,
                scalar(reference.instance_norm), (1, 2), both)  # fmt: skip


def _and_statistics(*inputs: Any, op: str = "batch_norm", **arguments: Any) -> tuple[Any, ...]:
    """The output, and the running statistics that it has changed."""
    mean, variance = (value.clone() if isinstance(value, Tensor) else value for value in inputs[1:3])
    y = getattr(F, op)(inputs[0], mean, variance, *inputs[3:], **arguments)
    return (y, mean, variance) if isinstance(mean, Tensor) else (y,)


def group_norm(t: Trial) -> Call:
    t.calm()
    groups = t.pick(1, 2, 3)
    c = groups * t.whole(1, 2)
    x = t.array((t.length(), c, *t.shape(0, 2)), t.dtype())
    bounds = testing._normalised(lambda x: x.reshape(x.shape[0] * groups, -1))
    inputs = (x, t.twisted(groups, *ODD_NUMBERS), *affine(t, (c,), str(x.dtype)))
    return Call("group_norm", inputs, eps_of(t), bounds, scalar(reference.group_norm))


def layer_norm(t: Trial) -> Call:
    t.calm()
    x = one(t, 1, 4)
    shape = x.shape[t.whole(0, x.ndim - 1) :]
    bounds = testing._normalised(lambda x: x.reshape(-1, math.prod(shape)))
    given = t.twisted(t.pick(shape, list(shape)), (), (7,), *COUNTS)
    return Call("layer_norm", (x, given, *affine(t, shape, str(x.dtype))), eps_of(t), bounds,
                scalar(reference.layer_norm))  # fmt: skip


def local_response_norm(t: Trial) -> Call:
    t.calm()
    x = one(t, 3, 4)
    odd = [value for value in ODD_FLOATS if not isinstance(value, float) or not (value < 0 or value == 1e308)]
    arguments = {
        name: t.twisted(good, *odd) for name, good in (("alpha", 0.5), ("beta", 0.6), ("k", 2.0)) if t.chance(3)
    }
    size = t.twisted(t.whole(1, 6), *ODD_NUMBERS)
    return Call("local_response_norm", (x, size), arguments, testing._responses, scalar(reference.local_response_norm))


# products


def matmul(t: Trial) -> Call:
    m, k, n = t.length(5), t.length(5), t.length(5)
    first, second = ((), ()) if t.chance(2) else pair_of_shapes(t)
    t.odd += ["leading axes"] * (first[:2] != second[:2])
    a, b = (*first[:2], m, k), (*second[:2], t.twisted(k, k + 1), n)
    if t.chance(5):
        a, b = t.pick((a, (k,)), ((k,), b), ((k,), (k,)), ((), b))
        t.odd.append("vectors")
    dtype = t.dtype()
    return Call("matmul", (t.array(a, dtype), t.array(b, t.twisted(dtype, *FLOATS))), {}, testing.products, np.matmul)


def linear(t: Trial) -> Call:
    k, n, dtype = t.length(5), t.length(5), t.dtype()
    x = t.array((*t.shape(0, 3), t.twisted(k, k + 1)), dtype)
    w = t.array((n, k), t.twisted(dtype, *FLOATS))
    bias = (t.array((t.twisted(n, n + 1, 1),), dtype),) if t.chance(2) else ()
    return Call("linear", (x, w, *bias), {}, testing.products, scalar(reference.linear))


# shapes


def shape_op(
    op: str,
    draw_rest: Callable[[Trial, Array], tuple[Any, ...]],
    exact: Callable[..., Any],
    bounds: Bounds | None = None,
) -> Drawn:
    def draw(t: Trial) -> Call:
        x = one(t, dtypes=SHAPED)
        return Call(op, (x, *draw_rest(t, x)), {}, bounds if is_floating(x.dtype) else None, exact)

    return draw


def sizes_of(t: Trial, length: int) -> list[Any]:
    """Lengths whose product it is, mostly; one may be −1."""
    sizes: list[Any] = []
    while length > 1 and len(sizes) < 4:
        part = t.pick(*(n for n in range(1, length + 1) if length % n == 0))
        sizes.append(part)
        length //= part
    sizes = sizes + [length] * (length != 1 or t.chance(3))
    if sizes and t.chance(4):
        sizes[t.whole(0, len(sizes) - 1)] = -1
        t.odd += ["-1"] * (0 in sizes or length == 0)
    if t.chance(8):
        sizes.append(t.twisted(1, *ODD_NUMBERS))
    return sizes


def _unflattened(x: Array, dim: int, sizes: Sequence[int]) -> Array:
    at = operator.index(dim) % x.ndim
    known = -math.prod(sizes)
    sizes = [x.shape[at] // known if n == -1 else n for n in sizes]
    return x.reshape((*x.shape[:at], *sizes, *x.shape[at + 1 :]))


def _flattened(x: Array, start: int = 0, end: int = -1) -> Array:
    if not x.ndim:
        return x.reshape(1)
    a, b = operator.index(start) % x.ndim, operator.index(end) % x.ndim
    return x.reshape(*x.shape[:a], math.prod(x.shape[a : b + 1]), *x.shape[b + 1 :])


def _squeezed(x: Array, dim: Any = None) -> Array:
    return x.squeeze() if dim is None else x.squeeze(dim) if x.shape[dim] == 1 else x


def _expanded(x: Array, shape: Sequence[int]) -> Array:
    extra = len(shape) - x.ndim
    return np.broadcast_to(x, [x.shape[i - extra] if n == -1 else n for i, n in enumerate(shape)]).copy()


def flatten_rest(t: Trial, x: Array) -> tuple[Any, ...]:
    if not x.ndim:
        return ()
    start, end = sorted((t.whole(0, x.ndim - 1), t.whole(0, x.ndim - 1)))
    return t.twisted(start, *ODD_NUMBERS), t.twisted(end, *ODD_NUMBERS)


def permute_rest(t: Trial, x: Array) -> tuple[Any, ...]:
    order = list(t._draw(st.permutations(range(x.ndim))))
    return (t.twisted(order, [0] * x.ndim, [7], list(range(x.ndim + 1)), [0.5] * x.ndim, None, "10", [None]),)


def expand_rest(t: Trial, x: Array) -> tuple[Any, ...]:
    shape = [t.pick(n, -1) if n != 1 else t.whole(0, 3) for n in x.shape]
    shape = [t.length(3) for _ in range(t.whole(0, 1))] + shape
    if t.chance(8):
        shape = [*shape, t.twisted(1, *ODD_NUMBERS)]
        t.odd.append("shape")
    return (shape,)


def transpose_rest(t: Trial, x: Array) -> tuple[Any, ...]:
    return dim_of(t, x.ndim), dim_of(t, x.ndim)


def joined(op: str) -> Drawn:
    def draw(t: Trial) -> Call:
        shape, dtype = t.shape(1 if op == "cat" else 0, 4), t.dtype(*SHAPED)
        dim = dim_of(t, len(shape) + (op == "stack"))
        tensors = []
        for _ in range(t.whole(1, 3)):
            mine = list(shape)
            if op == "cat" and type(dim) is int and -len(shape) <= dim < len(shape):
                mine[dim] = t.length(3)
            tensors.append(t.array(mine, dtype))
        if t.chance(8):
            tensors.append(t.array(t.twisted(shape, (3,), (2, 2)), t.dtype()))
            t.odd.append("another")
        exact = np.concatenate if op == "cat" else np.stack
        return Call(op, (tensors, dim), {}, None, lambda tensors, dim: exact(tensors, axis=dim))

    return draw


def parted(op: str) -> Entry:
    """split and chunk: parts that join to the whole."""

    def entry(t: Trial) -> None:
        x = one(t, 1, dtypes=SHAPED)
        dim = dim_of(t, x.ndim)
        count = t.twisted(t.whole(1, 3), *ODD_NUMBERS)
        if t.chance(3) and op == "split" and isinstance(dim, int) and -x.ndim <= dim < x.ndim:
            first = t.whole(0, x.shape[dim])
            count = t.twisted([first, x.shape[dim] - first], [first, 5], [-1, x.shape[dim] + 1], [0.5], ["x"])
        found = t.call(getattr(F, op), on(t, x), count, dim)
        if found is Refused:
            return
        joined = np.concatenate([part.numpy() for part in found], dim) if found else np.zeros(x.shape)
        promise(equal(joined.astype(float), x.astype(float)), f"{op}: {found!r} of {x!r}")
        if op == "chunk":
            promise(len(found) <= count, f"chunk: {len(found)} parts")

    return entry


def shuffled(op: str) -> Drawn:
    """pixel_shuffle and its inverse, as NumPy's axes exchanged."""

    def draw(t: Trial) -> Call:
        n, c, h, w, r = (t.length(3) for _ in range(5))
        back = op == "pixel_unshuffle"
        x = t.array((n, c, h * r, w * r) if back else (n, c * r * r, h, w), t.dtype(*SHAPED))
        if t.chance(8):
            x = t.twisted(x, x[..., :-1], x[:, 1:], np.zeros((2, 3), x.dtype))

        def exact(x: Array, r: int) -> Array:
            n, c, h, w = x.shape
            if back:
                parts = x.reshape(n, c, h // r, r, w // r, r).transpose(0, 1, 3, 5, 2, 4)
                return parts.reshape(n, c * r * r, h // r, w // r)
            parts = x.reshape(n, c // r // r, r, r, h, w).transpose(0, 1, 4, 2, 5, 3)
            return parts.reshape(n, c // r // r, h * r, w * r)

        return Call(op, (x, t.twisted(r, *ODD_NUMBERS)), {}, None, exact)

    return draw


def index_of(t: Trial, shape: tuple[int, ...]) -> Any:
    """An index for an array of that shape, mostly one that fits."""
    if t.chance(6):
        mask = np.random.default_rng(t.whole(0, 99)).random(shape) < 0.5
        return t.pick(mask, mask.tolist() if shape else mask)
    parts: list[Any] = []
    for n in shape[: t.whole(0, len(shape))]:
        kind = t.whole(0, 4)
        if kind == 0 and n:
            parts.append(t.whole(-n, n - 1))
        elif kind == 1 and n:
            parts.append([t.whole(-n, n - 1) for _ in range(3)])
            if sum(isinstance(part, list) for part in parts) > 1:
                t.odd.append("lists")
        elif kind == 2:
            parts.append(slice(t.pick(None, 0, 1, -1), t.pick(None, n, 2), t.pick(None, 1, 2, -1)))
        else:
            parts.append(slice(None))
    if t.chance(4):
        parts.insert(t.whole(0, len(parts)), t.pick(None, ...))
        t.odd += ["numbers of other axes"] * any(part is ... for part in parts)
    if t.chance(6):
        odd: tuple[Any, ...]
        odd = (np.array([0.5]), [0.5], "a", 1.5, [[0], [0, 1]], slice(None, None, 0), slice("a"), (0, 0), True, 2**70,
               [2**70], np.array(["a"]), np.array([], np.float32), {}, np.array([0], np.uint8), np.int8(0), [-9],
               np.array([True, False]), [None], [[]], np.datetime64(0, "s"), object())  # fmt: skip
        parts.insert(t.whole(0, len(parts)), t.pick(*odd))
        t.odd.append("index")
    return parts[0] if len(parts) == 1 and t.chance(2) else tuple(parts)


def index(t: Trial) -> Call:
    x = one(t, dtypes=SHAPED)
    where = Raw(index_of(t, x.shape))
    return Call("index", (x, where), {}, testing.selected if is_floating(x.dtype) else None, _indexed)


def _indexed(x: Array, index: Any) -> Array:
    try:
        return x[tuple(np.asarray(p, np.intp) if p == [] else p for p in index) if isinstance(index, tuple) else index]
    except (IndexError, TypeError) as error:
        raise ValueError(str(error)) from error


def host_index(t: Trial) -> None:
    where = index_of(t, (2, 3))
    found = t.call(F.host_index, where)
    if found is not Refused and isinstance(where, slice | int) and found != where:
        raise Finding(f"host_index: {found!r} of {where!r}")


def padded(t: Trial) -> Call:
    x = one(t)
    mode = t.twisted(t.pick("constant", "constant", "reflect", "replicate"), "circular", None, 3)
    low = -1 if mode == "constant" else 0
    sides = [t.whole(low, 3) for _ in range(2 * t.whole(0, x.ndim))]
    if mode != "constant" or low < 0:
        t.odd.append("may be too much")
    sides = t.twisted(sides, sides[:-1], [0] * 12, [2**48, 0], [0.5, 1], ["1", 1], None, 3, [None, None], [-9, 1])
    arguments = {"value": t.twisted(t.pick(0.0, 1.5, -2), *ODD_FLOATS)} if mode == "constant" and t.chance(2) else {}
    return Call("pad", (x, sides), {"mode": mode, **arguments}, testing.selected, scalar(reference.pad))


def interpolate(t: Trial) -> Call:
    row = t.chance(4)
    x = t.array((t.length(2), t.length(2), *plane(t)[row:]), t.dtype())
    mode = t.twisted(t.pick("nearest", "linear" if row else "bilinear"), "bicubic", None)
    if t.chance(2):
        arguments: dict[str, Any] = {"size": _along(pair(t, 1, 9)) if row else pair(t, 1, 9)}
    else:
        arguments = {
            "scale_factor": t.twisted(
                t.pick(2, 1.5, 2.5 if row else (0.5, 2.5), 1.0), *ODD_FLOATS, *ODD_NUMBERS, (2, math.nan)
            )
        }
        t.odd.append("may vanish")
    if mode in ("linear", "bilinear"):
        arguments["align_corners"] = t.pick(True, False, None)
    bounds = testing._interpolated if mode in ("linear", "bilinear") else testing.selected
    return Call("interpolate", (x,), arguments | {"mode": mode}, bounds, partial(_resized, x.dtype))


def _resized(dtype: Any, x: Array, **arguments: Any) -> Any:
    if arguments["mode"] == "nearest" and arguments.get("scale_factor") is not None:
        raise ValueError("places are found in float32, as in PyTorch: those of float64 may be others")
    if arguments["mode"] in ("linear", "bilinear") and not np.isfinite(x).all():
        raise ValueError("an axis that keeps its length is left as it is, here times 0 and 1")
    if x.ndim == 4:
        return scalar(reference.interpolate)(x, **arguments)
    mode = {"mode": arguments["mode"].replace("linear", "bilinear")}
    wide = {name: (1, arguments[name]) for name in ("size", "scale_factor") if arguments.get(name) is not None}
    return scalar(reference.interpolate)(x[:, :, None], **arguments | wide | mode)[:, :, 0]


def to(t: Trial) -> Call:
    target = t.twisted(t.pick(*FLOATS, "numpy", np.float32, np.dtype("float64")), *OTHERS, "complex64", "object", "U3",
                       "cpu", "", None, 3, int, float, np.complex64, ">f4", "datetime64[s]", "cuda:0", [])  # fmt: skip
    x = one(t, dtypes=SHAPED)
    if target in OTHERS or target in (int, bool):
        t.odd.append("integers")
        x = t.array(x.shape, "int8")
    whole = x.dtype.kind in "iub"

    def exact(x: Array, target: Any) -> Array:
        if target in FLOATS or target in OTHERS or target is int:
            return x.astype(named(target)) if whole or target not in FLOATS else x
        return x.astype(target) if whole and isinstance(target, type | np.dtype) else x

    return Call("to", (x, target), {}, None, exact)


# losses


def two_alike(op: str, **parameters: Any) -> Drawn:
    def draw(t: Trial) -> Call:
        x = one(t)
        arguments: dict[str, Any] = {}
        if op != "half_squared_error" and t.chance(2):
            arguments["reduction"] = t.twisted(t.pick("mean", "sum", "none"), "max", None, 0)
        for name, good in parameters.items():
            if t.chance(2):
                arguments[name] = t.twisted(good, *ODD_FLOATS)
        shape = t.twisted(x.shape, (*x.shape, 1), (7,))
        return Call(op, (x, t.array(shape, t.twisted(str(x.dtype), *FLOATS))), arguments, _losses_of_floats,
                    scalar(getattr(reference, op)))  # fmt: skip

    return draw


def kl_div(t: Trial) -> Call:
    x, log_target = one(t), t.chance(2)
    shares = np.random.default_rng(t.whole(0, 99)).choice([0.5, 1.0, 0.25, 0.9] + [0.0] * (not log_target), x.shape)
    target = np.asarray(np.log(shares) if log_target else shares).astype(x.dtype)
    arguments: dict[str, Any] = {}
    if t.chance(2):
        arguments["reduction"] = t.twisted(t.pick("batchmean", "mean", "sum", "none"), "max", None, 0)
    if log_target:
        arguments["log_target"] = t.twisted(True, 1, "x")
    laid_out = t.laid_out(target) if target.dtype != bfloat16() else target
    return Call("kl_div", (x, laid_out), arguments, _losses_of_floats, scalar(reference.kl_div))


def _losses_of_floats(exact: Evaluation) -> Sequence[Any]:
    """testing's, whose largest magnitude is of predictions; here targets may be larger."""
    x, other = exact.inputs[0], exact.inputs[1]
    if not x.size:
        return [0.0] * len(exact.results)
    largest = np.asarray(max(float(np.abs(x).max()), float(np.abs(other).max())))
    twin = replace(exact, inputs=[np.full(x.shape, largest), other, *exact.inputs[2:]])
    beta = exact.arguments.get("beta", 1.0)
    scale = max(1.0, 1 / beta) if isinstance(beta, float | int) and beta > 0 else 1.0
    return [scale * np.asarray(bound) for bound in testing._losses(twin)]


def binary_cross_entropy(op: str) -> Drawn:
    def draw(t: Trial) -> Call:
        logits = op == "binary_cross_entropy_with_logits"
        shape, dtype = t.shape(), t.dtype()
        rng = np.random.default_rng(t.whole(0, 99))
        if logits:
            x = t.array(shape, dtype)
        else:
            x = np.asarray(rng.choice([0.0, 1.0, 0.5, 0.25, 0.9], shape)).astype(named(dtype))
            if t.chance(5):
                x = t.array(shape, dtype)
                t.odd.append("no probabilities")
        target = np.asarray(rng.choice([0.0, 1.0, 0.25], shape)).astype(x.dtype)
        arguments: dict[str, Any] = {}
        if t.chance(2):
            arguments["reduction"] = t.twisted(t.pick("mean", "sum", "none"), "max", None)
        for name in ("weight", "pos_weight") if logits else ("weight",):
            if t.chance(3):
                arguments[name] = np.asarray(np.abs(t.array(t.twisted(shape, (7,), ()), str(x.dtype), "tame")))
        bounds = _losses_of_floats if logits else None
        call = Call(op, (x, t.laid_out(target) if target.dtype != bfloat16() else target), arguments, bounds,
                    scalar(getattr(reference, op)), (1,))  # fmt: skip
        return call if logits else replace(call, bounds=_losses_of_probabilities)

    return draw


def _losses_of_probabilities(exact: Evaluation) -> Sequence[Any]:
    """A logarithm down to −100 and a slope up to 10¹² each have eight roundings."""
    p, weight = exact.inputs[0], exact.arguments.get("weight", np.ones(()))
    heavy = float(np.abs(weight).max(initial=1.0))
    n = max(p.size, 1)
    loss = (n + 16) * 100 * heavy * n
    return [loss] + [16 * np.abs(gradient) + heavy for gradient in exact.results[1:]]


def labels_for(t: Trial, shape: tuple[int, ...], classes: int) -> Any:
    rng = np.random.default_rng(t.whole(0, 99))
    labels = rng.integers(0, max(classes, 1), shape)
    if not classes:
        t.odd.append("no classes")
    if t.chance(3):
        labels = np.where(rng.random(shape) < 0.3, -100, labels)
    if t.chance(6):
        t.odd.append("labels")
        odd = [labels + 1, labels - 1, labels.astype(np.float32), labels > 0, labels.reshape(-1)[:1], labels[..., None],
               labels.astype(object), labels.astype(str), labels + 2**40, None, "x", [[0], [1, 2]], labels * 1j,
               labels.astype(">i8"), labels.astype("M8[s]"), math.nan, {}]  # fmt: skip
        return Raw(t._draw(st.sampled_from(odd)))
    kind = t.pick("int64", "int32", "int16", "int8", "list")
    return Raw(labels.tolist() if kind == "list" else t.laid_out(np.asarray(labels).astype(kind)))


def classified(op: str) -> Drawn:
    def draw(t: Trial) -> Call:
        dtype, classes = t.dtype(), t.length()
        rest = t.shape(0, 2) if t.chance(3) else ()
        batch = (t.length(),) if t.chance(6) or True else ()
        x = t.array((*batch, classes, *rest), dtype)
        arguments: dict[str, Any] = {}
        if t.chance(3):
            arguments["weight"] = np.abs(t.array((t.twisted(classes, classes + 1),), dtype, "tame"))
        if t.chance(2):
            arguments["reduction"] = t.twisted(t.pick("mean", "sum", "none"), "max", None)
        if t.chance(5):
            arguments["ignore_index"] = t.twisted(t.pick(-100, -100, 1, 7), *ODD_NUMBERS)
            t.odd += ["-100"] * (type(arguments["ignore_index"]) is not int or arguments["ignore_index"] != -100)
        if op == "cross_entropy" and t.chance(3):
            arguments["label_smoothing"] = t.twisted(t.pick(0.0, 0.1, 1.0), *ODD_FLOATS)
        if op == "cross_entropy" and t.chance(4):
            target: Any = t.array(x.shape, t.twisted(str(x.dtype), *FLOATS), "tame")
        else:
            target = labels_for(t, (*batch, *rest), classes)
        return Call(op, (x, target), arguments, _losses_of_labels, partial(_classified, getattr(reference, op)), (1,))

    return draw


def _losses_of_labels(exact: Evaluation) -> Sequence[Any]:
    return testing._losses(replace(exact, inputs=[exact.inputs[0], np.asarray(exact.inputs[1])]))


def _classified(exact: Callable[..., Any], x: Array, target: Any, **arguments: Any) -> Any:
    labels = np.asarray(target)
    if labels.dtype.kind not in "iuf":
        raise ValueError("no labels")
    return scalar(exact)(x, labels, **arguments)


# what is made of other functions: values alone, and roughly

Arguments = tuple[Any, ...]


def roughly(
    op: str, draw: Callable[[Trial], Arguments], exact: Callable[..., Any], call: Callable[..., Any] | None = None
) -> Entry:
    """A function whose results, one or several, are NumPy's but for 400 roundings; its gradients have their shapes."""

    def entry(t: Trial) -> None:
        t.values = "tame" if t.values in ("huge", "tiny") else t.values
        given = draw(t)
        tensors = [on(t, np.array(v)) if isinstance(v, np.ndarray) else v for v in given]
        leaves = [v.requires_grad_() for v in tensors if isinstance(v, Tensor) and is_floating(v.dtype)]
        no_tensor = call is None and t.strange and t.chance(8)
        if no_tensor:
            tensors[0] = t.pick(*THINGS)
            t.odd.append("no tensor")
        found = t.call(call or getattr(F, op), *tensors)
        if found is Refused or no_tensor:
            return
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            right = exact(*(in_float64(v) if isinstance(v, np.ndarray) else v for v in given))
        made, wanted = (list(value) if isinstance(value, tuple) else [value] for value in (found, right))
        promise(len(made) == len(wanted), f"{op}: {len(made)} results")
        for mine, expected in zip(made, map(np.asarray, wanted), strict=True):
            values = np.asarray(mine.numpy() if isinstance(mine, Tensor) else mine)
            promise(values.shape == expected.shape, f"{op}: {values.shape}, expected {expected.shape}")
            error = 400 * unit_roundoff(values.dtype) if is_floating(values.dtype) else 0.0
            close = np.isclose(values.astype(float), expected.astype(float), error, error, equal_nan=True)
            promise(bool(close.all()), f"{op}: {values!r}, expected {expected!r}")
        if leaves and made and isinstance(made[0], Tensor) and made[0].requires_grad:
            made[0].sum().backward()
            promise(all(v.grad is None or v.grad.shape == v.shape for v in leaves), f"{op}: a gradient's shape")

    return entry


def axes_of(t: Trial, dtypes: Sequence[str] = ()) -> Arguments:
    x = one(t, dtypes=dtypes)
    t.odd += ["empty"] * (not x.size)
    return x, t.twisted(t.pick(None, *range(-x.ndim, x.ndim)), x.ndim, "x", 1.5, (0, 0)), t.pick(True, False)


def an_axis_of(t: Trial) -> Arguments:
    x = one(t, 1)
    t.odd += ["empty"] * (not x.size)
    return x, t.twisted(t.whole(-x.ndim, x.ndim - 1), x.ndim, "x", 1.5, (0, 0)), t.pick(True, False)


def moment(op: str, call: Callable[..., Any]) -> Entry:
    def exact(x: Array, dim: Any, keepdim: bool) -> Any:
        return getattr(np, op)(x, axis=dim, ddof=0, keepdims=keepdim)

    return roughly(op, axes_of, exact, lambda x, dim, keepdim: call(x, dim, correction=0, keepdim=keepdim))


def powers(t: Trial) -> Arguments:
    x, dim, keepdim = axes_of(t)
    return x, t.twisted(2, *ODD_FLOATS), dim, keepdim


def _norm(x: Array, p: Any, dim: Any, keepdim: bool) -> Any:
    if p == math.inf:
        return np.abs(x).max(axis=dim, keepdims=keepdim)
    return np.sum(np.abs(x) ** p, axis=dim, keepdims=keepdim) ** (1 / p)


def _logsumexp(x: Array, dim: Any, keepdim: bool) -> Any:
    peak = np.clip(x.max(dim, keepdims=True), -1e300, 1e300)
    total = np.log(np.exp(x - peak).sum(dim, keepdims=True)) + peak
    return total if keepdim else total.squeeze(dim)


def by_name(name: str, exact: Any) -> Drawn:
    """A comparison, as a function of its own."""

    def draw(t: Trial) -> Call:
        drawn = compare(t)
        return replace(drawn, op=name, inputs=drawn.inputs[1:], exact=exact)

    return draw


def looked_through(op: str) -> Drawn:
    return lambda t: Call(op, (one(t, dtypes=SHAPED),), {}, None, getattr(np, op))


def logic(op: str) -> Drawn:
    """Of tensors of any types."""

    def draw(t: Trial) -> Call:
        first, second = pair_of_shapes(t)
        a, b = t.array(first, t.dtype(*OTHERS)), t.array(second, t.dtype(*OTHERS))
        return Call(op, (a, b), {}, None, getattr(np, op))

    return draw


def bitwise(op: str) -> Drawn:
    def draw(t: Trial) -> Call:
        first, second = pair_of_shapes(t)
        dtype = t.twisted(t.pick("bool", "int64", "uint8"), "float32")
        other = t.array(second, t.twisted(dtype, *OTHERS))
        if t.chance(4) and dtype != "float32":
            other = t.twisted(True if dtype == "bool" else 3, *ODD_FLOATS)
        return Call(op, (t.array(first, dtype), other), {}, None, getattr(np, op))

    return draw


def inverted(t: Trial) -> Call:
    dtype = t.twisted(t.pick("bool", "int64", "uint8"), "float32")
    return Call("bitwise_not", (t.array(t.shape(), dtype),), {}, None, np.invert)


def alike_pairs(t: Trial) -> Arguments:
    shape, dtype = t.shape(), t.dtype(*OTHERS)
    x = t.array(shape, dtype)
    other = x if t.chance(3) else t.array(t.twisted(shape, (3, 2, 2)), dtype)
    t.odd += ["shapes"] * (other.shape != x.shape)
    return x, other


def ordered(t: Trial, x: Array | None = None) -> Arguments:
    x = one(t, dtypes=SHAPED) if x is None else x
    dim = t.twisted(t.pick(*range(-x.ndim, x.ndim)) if x.ndim else -1, x.ndim, *ODD_NUMBERS)
    return x, dim, t.pick(True, False)


def _order(x: Array, dim: Any, descending: bool) -> Array:
    if not x.ndim:
        return np.zeros((), np.int64)
    ranks = np.unique(x, return_inverse=True)[1].reshape(x.shape)  # NaN last
    ranks = np.where(np.isnan(x), x.size, ranks) if x.dtype.kind == "f" else ranks
    return np.argsort(-ranks if descending else ranks, axis=int(dim), kind="stable")


def _sorted(x: Array, dim: Any, descending: bool) -> tuple[Array, Array]:
    order = _order(x, dim, descending)
    return (np.take_along_axis(x, order, int(dim)) if x.ndim else x), order


def best(t: Trial) -> Arguments:
    x, dim, largest = ordered(t, one(t, 1, dtypes=SHAPED))
    length = x.shape[dim] if isinstance(dim, int) and -x.ndim <= dim < x.ndim else 1
    return x, t.twisted(t.whole(0, length), length + 1, *ODD_NUMBERS), dim, largest


def _best(x: Array, k: Any, dim: Any, largest: bool) -> tuple[Array, Array]:
    order = np.take(_order(x, dim, largest), range(int(k)), int(dim))
    return np.take_along_axis(x, order, int(dim)), order


def chosen_places(t: Trial, whole: bool) -> Arguments:
    """x, an axis, and places along it: of `index_select`, or for each element as in `gather`."""
    x = one(t, 1, dtypes=SHAPED)
    dim = t.whole(-x.ndim, x.ndim - 1)
    shape = (t.whole(0, 3),) if whole else (*x.shape[: dim % x.ndim], t.whole(0, 3), *x.shape[dim % x.ndim + 1 :])
    shape = t.twisted(shape, (2, 2, 2, 2, 2), ())
    shape = shape if x.shape[dim] else tuple(0 for _ in shape)
    t.odd += ["empty"] * (not x.size)
    places = np.random.default_rng(t.whole(0, 99)).integers(0, max(x.shape[dim], 1), shape)
    return x, t.twisted(dim, x.ndim, "x", None), t.twisted(places, places - 1, places + 9, places * 1.5, places > 0)


def _gathered(x: Array, dim: int, places: Array) -> Array:
    grid: list[Any] = list(np.ogrid[tuple(slice(n) for n in places.shape)])
    grid[dim] = places.astype(int)
    return x[tuple(grid)]


def matrices(stack: bool) -> Callable[[Trial], Arguments]:
    def draw(t: Trial) -> Arguments:
        b, m, k, n = (t.length() for _ in range(4))
        leading = (b,) if stack else ()
        dtype = t.dtype()
        t.values = "tame"
        shapes = (*leading, m, k), t.twisted((*leading, k, n), (k,), (1, 1, k, n), (*leading, k + 1, n))
        return t.array(shapes[0], dtype), t.array(shapes[1], dtype)

    return draw


def class_numbers(t: Trial) -> Arguments:
    labels = np.random.default_rng(t.whole(0, 99)).integers(0, 3, t.shape(0, 3))
    t.odd += ["empty"] * (not labels.size)
    odd = (labels - 1, labels * 0.5, labels + 2**40)
    sizes = tuple(n for n in ODD_NUMBERS if not isinstance(n, int) or n < 2**31)
    return t.twisted(labels, *odd), t.twisted(t.pick(-1, 3, 5), 0, 2, *sizes)


def _one_hot(labels: Array, classes: Any) -> Array:
    return np.asarray(labels[..., None] == np.arange(labels.max() + 1 if classes == -1 else int(classes)))


def vectors(t: Trial) -> Arguments:
    shape, dtype = t.shape(2, 3), t.dtype()
    t.values = "tame"
    return t.array(shape, dtype), t.array(shape, dtype)


def _cosine(a: Array, b: Array) -> Any:
    lengths = [np.maximum(np.sqrt(np.square(v).sum(1)), 1e-8) for v in (a, b)]
    return (a * b).sum(1) / lengths[0] / lengths[1]


def masked(t: Trial) -> Arguments:
    first, second = pair_of_shapes(t)
    value = t.twisted(t.pick(2.0, -1.0), *(v for v in ODD_FLOATS if v not in (1e308, 1e-320, 2**70)))
    return t.array(first, t.dtype()), t.array(second, t.twisted("bool", "int64")), value


def whole_numbers(t: Trial) -> Arguments:
    """Two arrays, or one and a number: of others the result would jump where one is rounded."""
    first, second = pair_of_shapes(t)
    dtype = t.pick("float32", "float64", "int64", "int16")
    rng = np.random.default_rng(t.whole(0, 99))
    x, y = (rng.integers(-9, 10, shape).astype(dtype) for shape in (first, second))
    y = np.where(y == 0, 3, y).astype(dtype)
    return x, y if t.chance(2) else t.twisted(t.pick(2, -3), 0, {}, None, [2], 1j, 2**70)


def between(t: Trial) -> Arguments:
    first, second = pair_of_shapes(t)
    t.values, dtype = "tame", t.dtype("float32", "float64")
    weight = t.twisted(t.pick(0.0, 0.25, 1.0, 0.7), "x", None, [0.5], 1j)
    return t.array(first, dtype), t.array(second, dtype), weight


def rolled(t: Trial) -> Arguments:
    x = one(t, 1, dtypes=SHAPED)
    dims = t.pick(*range(-x.ndim, x.ndim))
    if t.chance(2):
        return x, t.twisted(t.whole(-9, 9), *THINGS[:3], (1, 2), 2**70), t.twisted(dims, x.ndim, "x", 1.5, (0, 0))
    return x, (t.whole(-9, 9),), (dims,)


def places_of_axes(t: Trial) -> Arguments:
    x = one(t, 1, dtypes=SHAPED)
    source, goal = (t.pick(*range(-x.ndim, x.ndim)) for _ in range(2))
    return x, t.twisted(source, x.ndim, "x", None, (0, 0)), t.twisted(goal, -x.ndim - 1, 1.5)


def repeated(t: Trial) -> Arguments:
    x = one(t, 1, dtypes=SHAPED)
    return (
        x,
        t.twisted(t.whole(0, 3), -1, "x", 1.5, 2**50, [1]),
        t.twisted(t.pick(*range(-x.ndim, x.ndim)), x.ndim, "x"),
    )


def triangle(t: Trial) -> Arguments:
    x = one(t, 2, dtypes=SHAPED)
    return x, t.twisted(t.whole(-5, 5), "x", 1.5, None, 2**70)


def small_numbers(t: Trial) -> Arguments:
    x = np.random.default_rng(t.whole(0, 99)).integers(0, 7, t.whole(0, 5))
    x = t.twisted(x, x - 9 if x.size else x + 0.5, x + 0.5, x[None], x + 2**50 if x.size else x > 0)
    weights = t.array(t.twisted(x.shape, (9,)), "float32", "tame") if t.chance(2) else None
    return x, weights, t.twisted(t.whole(0, 9), -1, "x", 1.5, 2**50)


def few_axes(t: Trial) -> Arguments:
    x = one(t, 0, 3, dtypes=SHAPED)
    t.odd += ["axes"] * (x.ndim > 2)
    return (x,)


def tiled(t: Trial) -> Arguments:
    x = one(t, 0, 3, dtypes=SHAPED)
    times = [t.whole(0, 2) for _ in range(x.ndim + t.whole(0, 1))]
    return x, t.twisted(times, [-1], [2**40, 2**40], ["x"], None, [0.5])


def flipped(t: Trial) -> Arguments:
    x = one(t, 1, dtypes=SHAPED)
    dims = [d for d in range(x.ndim) if t.chance(2)]
    return x, t.twisted(dims, [x.ndim], [0, 0], ["x"], None, [1.5])


def _parts(x: Array, dim: Any) -> tuple[Array, ...]:
    return tuple(np.moveaxis(x, dim, 0))


def unbound(t: Trial) -> Arguments:
    x = one(t, 1, dtypes=SHAPED)
    return x, t.twisted(t.whole(-x.ndim, x.ndim - 1), x.ndim, "x", None)


def shaped_as(t: Trial) -> Arguments:
    x = one(t, dtypes=SHAPED)
    other = t.array(t.twisted(x.shape, (7,), (*x.shape, 2)), "float32")
    t.odd += ["shapes"] * (other.shape != x.shape)
    return x, other


SIGNALS = (
    "conv1d", "conv_transpose1d", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d"
)  # fmt: skip
OPS: dict[str, Drawn | Entry] = {
    "relu": elementwise("relu", testing.selected),
    "relu6": elementwise("relu6", testing.selected),
    "leaky_relu": elementwise("leaky_relu", testing.activated, negative_slope=(0.01, 0.5, 0.0)),
    "elu": elementwise("elu", testing.activated, alpha=(1.0, 0.5)),
    "selu": elementwise("selu", testing.activated),
    "silu": elementwise("silu", testing.activated),
    "mish": elementwise("mish", testing.activated),
    "hardswish": elementwise("hardswish", testing.activated),
    "hardsigmoid": elementwise("hardsigmoid", testing.activated),
    "hardtanh": elementwise("hardtanh", testing.selected, min_val=(-1.0, -2.5), max_val=(1.0, 0.5)),
    "softsign": elementwise("softsign", testing.activated),
    "softplus": elementwise("softplus", testing.activated, _softplus, beta=(1.0, 2.0), threshold=(20.0, 5.0)),
    "sigmoid": elementwise("sigmoid", testing.activated),
    "logsigmoid": elementwise("logsigmoid", testing.activated),
    "tanh": elementwise("tanh", testing.activated),
    "gelu": gelu,
    "prelu": prelu,
    "softmax": along("softmax"),
    "log_softmax": along("log_softmax"),
    "dropout": dropout,
    "dropout1d": partial(dropout, function=F.dropout1d, channels=3),
    "dropout2d": partial(dropout, function=F.dropout2d, channels=4),
    "exp": elementwise("exp", testing.relative(8), np.exp),
    "log": elementwise("log", testing.activated, np.log),
    "sqrt": elementwise("sqrt", testing.relative(4), np.sqrt),
    "abs": elementwise("abs", testing.selected, np.abs),
    "neg": lambda t: Call("neg", (one(t, dtypes=tuple(WIDE)),), {}, testing.selected, np.negative),
    "clamp": clamp,
    "add": binary("add", testing.arithmetic, np.add),
    "sub": binary("sub", testing.arithmetic, np.subtract),
    "mul": binary("mul", testing.arithmetic, np.multiply),
    "div": binary("div", testing.arithmetic, np.true_divide),
    "pow": binary("pow", testing.relative(400), np.power),  # of the exponent − 1, times a logarithm up to 89
    "maximum": binary("maximum", testing.selected, np.maximum, numbers=False),
    "minimum": binary("minimum", testing.selected, np.minimum, numbers=False),
    "where": where,
    "compare": compare,
    "sum": reduction("sum", SHAPED),
    "mean": reduction("mean"),
    "amax": reduction("amax"),
    "amin": reduction("amin"),
    "argmax": place("argmax"),
    "argmin": place("argmin"),
    "max": extremes("max"),
    "min": extremes("min"),
    "matmul": matmul,
    "linear": linear,
    "conv2d": conv2d,
    "conv2d_max_pool2d": conv2d_max_pool2d,
    "conv_transpose2d": conv_transpose2d,
    "max_pool2d": pool("max_pool2d"),
    "min_pool2d": pool("min_pool2d"),
    "avg_pool2d": pool("avg_pool2d"),
    "sum_pool2d": pool("sum_pool2d"),
    "adaptive_avg_pool2d": adaptive("adaptive_avg_pool2d"),
    "adaptive_max_pool2d": adaptive("adaptive_max_pool2d"),
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "local_response_norm": local_response_norm,
    "reshape": shape_op(
        "reshape", lambda t, x: (sizes_of(t, x.size),), lambda x, shape: x.reshape(tuple(+n for n in shape))
    ),
    "flatten": shape_op("flatten", flatten_rest, _flattened),
    "unflatten": shape_op(
        "unflatten",
        lambda t, x: (
            (d := dim_of(t, x.ndim)),
            sizes_of(t, x.shape[d] if type(d) is int and -x.ndim <= d < x.ndim else 2),
        ),
        _unflattened,
    ),
    "permute": shape_op("permute", permute_rest, lambda x, dims: x.transpose(dims)),
    "transpose": shape_op("transpose", transpose_rest, np.swapaxes),
    "squeeze": shape_op("squeeze", lambda t, x: (dim_of(t, x.ndim),) if t.chance(2) else (), _squeezed),
    "unsqueeze": shape_op("unsqueeze", lambda t, x: (dim_of(t, x.ndim + 1),), np.expand_dims),
    "expand": shape_op("expand", expand_rest, _expanded, testing.selected),
    "cat": joined("cat"),
    "split": parted("split"),
    "chunk": parted("chunk"),
    "pixel_shuffle": shuffled("pixel_shuffle"),
    "pixel_unshuffle": shuffled("pixel_unshuffle"),
    "stack": joined("stack"),
    "index": index,
    "host_index": host_index,
    "pad": padded,
    "interpolate": interpolate,
    **{name: of_signals(name) for name in SIGNALS},
    "to": to,
    "cross_entropy": classified("cross_entropy"),
    "nll_loss": classified("nll_loss"),
    "binary_cross_entropy": binary_cross_entropy("binary_cross_entropy"),
    "binary_cross_entropy_with_logits": binary_cross_entropy("binary_cross_entropy_with_logits"),
    "mse_loss": two_alike("mse_loss"),
    "l1_loss": two_alike("l1_loss"),
    "smooth_l1_loss": two_alike("smooth_l1_loss", beta=0.5),
    "huber_loss": two_alike("huber_loss", delta=0.5),
    "half_squared_error": two_alike("half_squared_error"),
    "kl_div": kl_div,
    "sign": elementwise("sign", None, lambda x: np.where(np.isnan(x), 0, np.sign(x))),
    "floor": elementwise("floor", None, np.floor),
    "ceil": elementwise("ceil", None, np.ceil),
    "round": elementwise("round", None, np.rint),
    "square": elementwise("square", testing.relative(4), np.square),
    "reciprocal": elementwise("reciprocal", testing.relative(4), _reciprocal),
    "rsqrt": elementwise("rsqrt", testing.relative(16), lambda x: 1 / np.sqrt(x)),
    "eq": by_name("eq", np.equal),
    "ne": by_name("ne", np.not_equal),
    "lt": by_name("lt", np.less),
    "le": by_name("le", np.less_equal),
    "gt": by_name("gt", np.greater),
    "ge": by_name("ge", np.greater_equal),
    **{name: looked_through(name) for name in ("isnan", "isinf", "isfinite", "logical_not")},
    **{name: logic(name) for name in ("logical_and", "logical_or", "logical_xor")},
    **{name: bitwise(name) for name in ("bitwise_and", "bitwise_or", "bitwise_xor")},
    "bitwise_not": inverted,
}
# How the arguments are drawn, and what comes out.
ROUGH: dict[str, tuple[Callable[[Trial], Arguments], Callable[..., Any]]] = {
    "isclose": (alike_pairs, np.isclose),
    "allclose": (alike_pairs, np.allclose),
    "equal": (alike_pairs, np.array_equal),
    "clone": (lambda t: (one(t, dtypes=SHAPED),), np.copy),
    "any": (partial(axes_of, dtypes=SHAPED), lambda x, dim, keep: np.any(x, axis=dim, keepdims=keep)),
    "all": (partial(axes_of, dtypes=SHAPED), lambda x, dim, keep: np.all(x, axis=dim, keepdims=keep)),
    "norm": (powers, _norm),
    "logsumexp": (an_axis_of, _logsumexp),
    "normalize": (lambda t: vectors(t)[:1], lambda x: x / np.maximum(_norm(x, 2, 1, True), 1e-12)),
    "cosine_similarity": (vectors, _cosine),
    "sort": (ordered, _sorted),
    "argsort": (ordered, _order),
    "topk": (best, _best),
    "gather": (partial(chosen_places, whole=False), _gathered),
    "index_select": (partial(chosen_places, whole=True), lambda x, dim, places: np.take(x, np.atleast_1d(places), dim)),
    "masked_fill": (masked, lambda x, mask, value: np.where(mask, value, x)),
    "flip": (flipped, lambda x, dims: np.flip(x, tuple(dims))),
    "tile": (tiled, np.tile),
    "t": (few_axes, np.transpose),
    "unbind": (unbound, _parts),
    "mm": (matrices(stack=False), np.matmul),
    "bmm": (matrices(stack=True), np.matmul),
    "one_hot": (class_numbers, _one_hot),
}
ROUGH |= {name: (lambda t: (one(t),), getattr(np, name)) for name in ("sin", "cos", "log1p", "log2", "log10")}
ROUGH |= {
    "expm1": (lambda t: (np.asarray(np.minimum(one(t), 9)),), np.expm1),
    "remainder": (whole_numbers, np.remainder),
    "floor_divide": (whole_numbers, np.floor_divide),
    "lerp": (between, lambda x, y, w: x + w * (y - x)),
    "outer": (lambda t: tuple(t.array((t.length(),), "float32") for _ in range(2)), np.outer),
    "cumsum": (lambda t: an_axis_of(t)[:2], lambda x, dim: np.cumsum(x, dim)),
    "prod": (an_axis_of, lambda x, dim, keepdim: np.prod(x, axis=dim, keepdims=keepdim)),
    "roll": (rolled, lambda x, shifts, dims: np.roll(x, shifts, dims)),
    "movedim": (places_of_axes, np.moveaxis),
    "repeat_interleave": (repeated, lambda x, times, dim: np.repeat(x, times, dim)),
    "tril": (triangle, lambda x, k: np.tril(x, max(-99, min(k, 99)))),
    "triu": (triangle, lambda x, k: np.triu(x, max(-99, min(k, 99)))),
    "masked_select": (lambda t: masked(t)[:2], lambda x, mask: np.extract(*np.broadcast_arrays(mask, x))),
    "nonzero": (lambda t: (one(t, dtypes=SHAPED),), np.argwhere),
    "bincount": (small_numbers, lambda x, weights, least: np.bincount(x.astype(int), weights, least)),
    "unique": (lambda t: (one(t, dtypes=SHAPED),), np.unique),
}
OPS |= {name: roughly(name, draw, exact) for name, (draw, exact) in ROUGH.items()}
OPS |= {name: moment(name, partial(getattr(F, name))) for name in ("var", "std")}


def op(name: str, function: Callable[..., Any] | None = None) -> Entry:
    """The function of that name, or another one, such as a method or an operator, that must compute the same."""

    def entry(t: Trial) -> None:
        drawn = OPS[name](t)
        if drawn is not None:
            judge(t, drawn if function is None else replace(drawn, function=function))

    return entry


def method(name: str) -> Entry:
    return op(name, lambda x, *rest, **named: getattr(x, name)(*rest, **named))


# -- tensors -----------------------------------------------------------------------------------------------------------


def promise(holds: bool, what: str) -> None:
    if not holds:
        raise Finding(what)


def reflected(name: str, function: Callable[[Any, Any], Any]) -> Entry:
    """number ∘ tensor."""

    def entry(t: Trial) -> None:
        odd = [value for value in ODD_FLOATS if not isinstance(value, float) or value not in (1e308, 1e-320)]
        x, number = one(t), t.twisted(t.pick(2.0, 3, -1.5), *odd)
        bounds = testing.relative(400) if name == "pow" else testing.arithmetic
        exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.true_divide, "pow": np.power}[name]
        if name == "pow" and isinstance(number, float | int) and number <= 0:
            t.odd.append("negative")
        exact_of = in_float32_if_integers(name, exact)
        call = Call(name, (x, number), {}, None, lambda x, n: exact_of(n, x), function=lambda x, n: function(n, x))
        if isinstance(number, np.ndarray):
            return
        t.calm()
        judge(t, replace(call, bounds=_reflected(bounds, name)))

    return entry


def _reflected(bounds: Bounds, name: str) -> Bounds:
    """Computed for (number, tensor), of which the gradient is the second."""

    def computed(exact: Evaluation) -> Sequence[Any]:
        x, n = exact.inputs
        value = Values(x.shape, lambda rng, shape: x)
        case = Case(name, (float(n), value), bounds)
        twin = testing._evaluated(case, "numpy", case.made_inputs(), {}, exact.cotangent)
        return bounds(twin)

    return computed


def compared(t: Trial) -> None:
    drawn = compare(t)
    name = {"equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt"}.get(
        drawn.inputs[0], "ge"
    )
    if drawn.inputs[2] is None:
        return
    call = getattr(operator, name)
    judge(t, replace(drawn, function=lambda f, a, b: call(a, b)))


def looked_at(t: Trial) -> None:
    """Everything that takes no argument."""
    array = one(t, dtypes=SHAPED)
    x = on(t, array)
    plain = np.array(array)
    promise(x.shape == plain.shape and x.ndim == x.dim() == plain.ndim and x.numel() == plain.size, "its shape")
    promise(x.dtype == plain.dtype and x.size() == plain.shape and x.is_leaf and x.grad is None, "its properties")
    same = x.numpy().tobytes() == plain.tobytes() or equal(x.numpy().astype(np.float64), plain.astype(np.float64))
    promise(same, f"numpy() is {x.numpy()!r} of {plain!r}")
    listed = np.asarray(x.tolist(), np.float64) if plain.size else np.empty(plain.shape)
    promise(equal(listed, plain.astype(np.float64)), f"tolist() is {x.tolist()} of {plain!r}")
    promise(isinstance(repr(x), str) and isinstance(f"{x}", str) and "<" in x._repr_html_(), "what is shown")
    for twin in (x.clone(), x.detach(), x.data, x.contiguous(), copy.deepcopy(x), x.requires_grad_(False)):
        promise(twin.dtype == x.dtype and equal(twin.numpy().astype(float), plain.astype(float)), "a twin")
    for function in (x.float, x.double, x.half, x.bfloat16, *([x.long] if plain.dtype.kind in "iub" else [])):
        promise(function().shape == x.shape, "another type")
    promise(equal(np.asarray(x).astype(float), plain.astype(float)), "as an array")
    if plain.size != 1:
        t.odd.append("not one element")
    for read in (float, int, bool, operator.methodcaller("item")):
        if plain.size == 1 and read is int and not np.isfinite(plain.astype(float)).all():
            continue  # Python's own ValueError or OverflowError, as of a float
        t.call(read, x)
    t.odd.append("no integer")
    promise(t.call(operator.index, x) in (Refused, *plain.reshape(-1)[:1].tolist()), "its index")
    t.odd.append("no axes") if not plain.ndim else None
    promise(t.call(len, x) in (Refused, *plain.shape[:1]), "its length")
    for row, expected in zip(x, plain, strict=True) if plain.ndim else ():
        promise(equal(row.numpy().astype(float), np.asarray(expected).astype(float)), "its rows")
    t.call(x.size, t.twisted(-1, *ODD_NUMBERS))


def interchanged(t: Trial) -> None:
    """DLPack, forth and back."""
    x = on(t, one(t, dtypes=SHAPED))
    t.odd.append("strides, or read-only")
    twin = t.call(gpucnn.from_dlpack, x)
    if twin is not Refused:
        promise(equal(twin.numpy(), x.numpy()), f"from_dlpack: {twin!r} of {x!r}")
    t.call(gpucnn.from_dlpack, t.pick(None, 3, "x", [1], object(), np.zeros(2, complex), np.array(["a"])))


ODD_DTYPES: tuple[Any, ...] = (
    "complex64", "object", "U3", None, 3, "float", int, float, bool, ">f4", "datetime64[s]", [], "float128",
    np.generic, "bfloat17", "f2,f2", np.dtype("V4"), {}, "", "i1", np.float16, "longdouble",
)  # fmt: skip


def assigned(t: Trial) -> None:
    array = one(t, dtypes=SHAPED)
    where, dtype = index_of(t, array.shape), str(array.dtype)
    try:
        chosen = array[where].shape
    except (IndexError, TypeError, ValueError, OverflowError):
        chosen = ()
        t.odd.append("index")
    value = t.twisted(
        t.pick(0, 1, t.array(chosen, dtype), t.array(chosen[1:], dtype)),
        *ODD_FLOATS, "x", (3, 4, 5, 6, 7), np.zeros(3, complex), np.array("x"), np.array([None]), {}, [[1], [1, 2]],
        b"",        np.zeros((9, 9)), 2**63, -1, np.float64(1e300), np.datetime64(0, "s"),
    )  # fmt: skip
    if array.dtype.kind not in "fV":
        t.odd.append("integers")
    given = on(t, value) if isinstance(value, np.ndarray) and value.dtype == array.dtype and t.chance(2) else value
    x = on(t, array) if t.chance(3) else on(t, np.array(array))
    writable = getattr(x.array.flags, "writeable", True)
    if not writable:
        t.odd.append("read-only")
    before = np.array(x.numpy())
    if t.call(x.__setitem__, where, given) is Refused:
        promise(before.tobytes() == np.array(x.numpy()).tobytes(), "__setitem__ refused, and has changed the tensor")
        return
    with np.errstate(all="ignore"):
        before[_host(where)] = value
    promise(writable, "__setitem__ has written to a read-only array")
    promise(equal(x.numpy().astype(float), before.astype(float)), f"__setitem__: {x!r}, expected {before!r}")


def _host(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_host, index))
    return np.asarray(index, np.intp) if isinstance(index, list) and not index else index


def copied(t: Trial) -> None:
    array = one(t, dtypes=SHAPED)
    x, dtype = on(t, np.array(array)), t.twisted(str(array.dtype), *FLOATS, *OTHERS)
    source = t.array(array.shape, dtype)
    given = t.twisted(source, source.astype(complex), source.astype(object), np.array(["x"]), source[None], 3, None,
                      "x", source.tolist(), on(t, source), source.astype(source.dtype.newbyteorder()))  # fmt: skip
    before = np.array(x.numpy())
    if t.call(x.copy_, given) is Refused:
        promise(before.tobytes() == np.array(x.numpy()).tobytes(), "copy_ refused, and has changed the tensor")
        return
    values = given.numpy() if isinstance(given, Tensor) else np.asarray(given)
    with np.errstate(all="ignore"):
        values = values.astype(np.float32) if is_half(before.dtype) else values
        promise(equal(x.numpy().astype(float), values.astype(before.dtype).astype(float)), f"copy_: {x!r} of {given!r}")


def in_place(name: str, changes: Callable[[Tensor, Any], Any]) -> Entry:
    """A change in place: the values of the function that makes a new tensor; or none at all."""

    def entry(t: Trial) -> None:
        first, second = pair_of_shapes(t)
        dtype = t.dtype(*OTHERS)
        x, given = on(t, np.array(t.array(first, dtype))), t.array(second, dtype)
        other = on(t, given) if t.chance(2) else t.twisted(t.pick(2, 0.5), *ODD_FLOATS, *THINGS)
        t.odd += ["integers"] * (not is_floating(x.dtype)) + ["shapes"] * (first != second)
        x = x if t.chance(3) else nn.Buffer(x)
        before, memory = np.array(x.numpy()), x.array
        found = t.call(changes, x, other)
        if found is Refused:
            promise(before.tobytes() == np.array(x.numpy()).tobytes(), f"{name} refused, and has changed the tensor")
            return
        right = getattr(F, name)(gpucnn.tensor(before, backend=t.backend), other).numpy()
        right = right.astype(before.dtype) if found is x else right
        promise(equal(found.numpy().astype(float), right.astype(float)), f"{name}: {found!r}")
        promise(found is not x or x.array is memory, f"{name}: in other memory")

    return entry


def limited(t: Trial) -> None:
    """clamp_, fill_ and zero_."""
    array = one(t)
    x = on(t, np.array(array))
    low, high = t.twisted(-0.5, *ODD_FLOATS), t.twisted(t.pick(0.5, None), *ODD_FLOATS)
    found = t.call(x.clamp_, low, high)
    if found is not Refused:
        right = F.clamp(on(t, np.array(array)), low, high)
        promise(found is x and equal(x.numpy().astype(float), right.numpy().astype(float)), f"clamp_: {x!r}")
    number = t.twisted(2, *ODD_FLOATS, "x", [1])
    found = t.call(x.fill_, number)
    if found is not Refused:
        with np.errstate(all="ignore"):
            right = np.full(array.shape, number).astype(np.float32 if is_half(x.dtype) else x.dtype).astype(x.dtype)
        promise(equal(x.numpy().astype(float), right.astype(float)), f"fill_: {x!r} of {number!r}")
    promise(not x.zero_().numpy().astype(float).any(), f"zero_: {x!r}")


def alike(t: Trial) -> None:
    """full_like and the others: the shape and the type of a tensor."""
    x = on(t, one(t, dtypes=SHAPED))
    t.odd += ["integers"] * (not is_floating(x.dtype))
    given = t.twisted(x, *THINGS)
    for name in ("zeros_like", "ones_like", "empty_like", "rand_like", "randn_like"):
        found = t.call(getattr(gpucnn, name), given)
        promise(found is Refused or (found.shape == x.shape and found.dtype == x.dtype), f"{name}: {found!r}")
    dtype = t.twisted(None, *ODD_DTYPES)
    found = t.call(gpucnn.full_like, given, t.twisted(2, *ODD_FLOATS, 2**70, "x"), dtype=dtype)
    promise(found is Refused or found.shape == x.shape, f"full_like: {found!r}")


def made_anew(t: Trial) -> None:
    """new_zeros and its kin: the type of a tensor, and a shape of their own."""
    x = on(t, one(t, dtypes=SHAPED))
    shape = t.twisted(t.shape(), *ODD_NUMBERS, (2, -1), ("2",), (2**40, 2**40))
    dtype = {"dtype": t.twisted("float32", *ODD_DTYPES)} if t.chance(4) else {}
    for name in ("new_zeros", "new_ones", "new_empty"):
        found = t.call(getattr(x, name), shape, **dtype)
        promise(found is Refused or (dtype or found.dtype) == (dtype or x.dtype), f"{name}: {found!r}")
    t.call(x.new_full, shape, t.twisted(2, *ODD_FLOATS), **dtype)
    found = t.call(x.new_tensor, t.twisted([1, 2], *THINGS), **dtype)
    promise(found is Refused or found.backend is x.backend, f"new_tensor: {found!r}")


def counted_off(t: Trial) -> None:
    """arange and the others, of odd numbers too: as many as NumPy makes, or refused."""
    numbers = tuple(n for n in ODD_FLOATS if n != 2**70)
    ends = [t.twisted(t.pick(0, 1, 2.5, 7, -3), *numbers) for _ in range(2)]
    step = t.twisted(t.pick(1, 2, 0.5, -1), *numbers)
    t.odd.append("step")
    found = t.call(gpucnn.arange, *ends, step)
    if found is not Refused:
        with np.errstate(all="ignore"):
            count = max(math.ceil((float(ends[1]) - float(ends[0])) / float(step)), 0)
        promise(found.shape == (count,) and found.dtype.kind in "if", f"arange: {found!r}")
    sizes = tuple(n for n in ODD_NUMBERS if not isinstance(n, int) or n < 2**31)
    steps = t.twisted(5, *sizes)
    found = t.call(gpucnn.linspace, *ends, steps)
    promise(found is Refused or found.shape == (steps,), f"linspace: {found!r}")
    found = t.call(gpucnn.eye, steps, t.twisted(None, *sizes))
    promise(found is Refused or found.sum().item() == min(found.shape), f"eye: {found!r}")
    found = t.call(gpucnn.randperm, steps)
    promise(found is Refused or sorted(found.tolist()) == list(range(found.numel())), f"randperm: {found!r}")
    low, high = t.twisted(0, *ODD_NUMBERS), t.twisted(5, *ODD_NUMBERS)
    found = t.call(gpucnn.randint, low, high, t.twisted((2, 3), *sizes))
    promise(found is Refused or all(low <= n < high for n in found.numpy().ravel()), f"randint: {found!r}")


def moved(t: Trial) -> None:
    x = on(t, np.array(one(t, dtypes=SHAPED)))
    target = t.twisted(t.pick(*FLOATS, t.backend.name), *OTHERS, *ODD_DTYPES)
    if target in ("float16", "bfloat16", "float32"):
        t.odd.append("too small a type")
    dtype = x.dtype
    if t.call(x.move_, target) is Refused:
        promise(x.dtype == dtype, "move_ refused, and has changed the type")
    else:
        promise(is_floating(x.dtype) == is_floating(dtype), f"move_ made {x.dtype} of {dtype}")


def backward(t: Trial) -> None:
    array = one(t, dtypes=SHAPED)
    x = on(t, array)
    if not is_floating(x.dtype):
        t.odd.append("integers")
    if t.call(x.requires_grad_) is Refused:
        return
    y = t.pick(x, x * 2.0, x.detach())
    if y.requires_grad is False:
        t.odd.append("no gradient")
    good: Any = None if array.size == 1 else on(t, t.array(array.shape, str(array.dtype)))
    shape = (*array.shape, 1)
    given = t.twisted(
        good, None, 1.0, array, "x", on(t, np.ones(shape, np.float32)), on(t, np.ones(array.shape, np.int8))
    )
    t.call(y.retain_grad)
    if t.call(y.backward, given) is not Refused:
        assert x.grad is not None
        promise(x.grad.shape == x.shape and x.grad.dtype == x.dtype, f"the gradient of {x!r} is {x.grad!r}")
        t.odd.append("again")
        t.call(y.backward, given)
    for value in (None, good, 3, array, on(t, np.ones(shape, np.float32))):
        t.odd.append("a gradient")
        t.call(setattr, x, "grad", value)


# -- making tensors, and what the package has besides ------------------------------------------------------------------


def odd_data(t: Trial) -> Any:
    array = t.array(t.shape(), t.pick(*FLOATS, *OTHERS))
    if not t.chance(3):
        return (
            array if t.chance(2) else t.pick(array.astype(float).tolist(), [[1, 2], [3, 4]], 1, 0.5, True, (1, 2.5), [])
        )
    t.odd.append("data")
    return t._draw(
        st.sampled_from(
            [array.astype(complex), array.astype(object), np.array([["x"]]), array.astype(">f8"), [[1], [1, 2]], None,
             "x", {}, {1, 2}, object(), 2**70, [2**64], -(2**63) - 1, 1j, [None], ["1"], np.datetime64(0, "s"),
             range(3), iter([1]), [np.array([1, 2]), np.array([1])], np.zeros(2, "i4,f4"),
             np.ma.masked_array([1.0], [True]),
             [math.nan, 10**400], b"12", bytearray(b"12"), memoryview(b"12"), np.array([1], "M8[s]"), [[[[[[1.0]]]]]],
             np.zeros((1,) * 20), np.longdouble(1), np.float16(2), [gpucnn.ones(2)], gpucnn.ones(2),
             Raw(1), int, [True, 2.5], [[]], np.str_("3"), np.void(b"12")]
        )
    )  # fmt: skip


def made(function: Callable[..., Any], with_dtype: bool = True) -> Entry:
    def entry(t: Trial) -> None:
        given = odd_data(t)
        dtype = t.twisted(t.pick(None, *FLOATS), *OTHERS, *ODD_DTYPES) if with_dtype else None
        if dtype in OTHERS or dtype in ("float16", "bfloat16", "float32", "i1", int, bool):
            t.odd.append("a smaller type")
        if not with_dtype and not isinstance(given, np.ndarray):
            t.odd.append("no array")
        found = t.call(function, given, *((dtype,) if with_dtype else ()))
        if found is Refused:
            return
        promise(isinstance(found, Tensor), f"made a {type(found).__name__}")
        promise(is_floating(found.dtype) or found.dtype.kind in "iub", f"made {found.dtype} of {given!r}")
        promise(found.dtype.isnative, f"made {found.dtype}")
        if isinstance(given, np.ndarray) and dtype is None:
            promise(found.dtype == given.dtype, f"made {found.dtype} of {given.dtype}")
        source = given.numpy() if isinstance(given, Tensor) else np.asarray(given)
        promise(found.shape == source.shape, f"made {found.shape} of {source.shape}")
        if source.dtype.kind in "iubf" and found.dtype.kind == source.dtype.kind and found.dtype.itemsize >= 4:
            with np.errstate(all="ignore"):
                promise(equal(found.numpy(), source.astype(found.dtype)), f"made {found!r} of {given!r}")

    return entry


def filled(function: Callable[..., Tensor], value: bool = False, dtypes: bool = True) -> Entry:
    def entry(t: Trial) -> None:
        shape: Any = t.pick(t.shape(), list(t.shape()))
        shape = t.twisted(
            shape, *ODD_NUMBERS, (2, -1), (2, 1.5), ("2",), (2**40, 2**40), (2**62,), (None,), "23", (0, 2**63)
        )
        arguments: dict[str, Any] = {}
        if dtypes and t.chance(2):
            arguments["dtype"] = t.twisted(t.pick(*FLOATS), *OTHERS, *ODD_DTYPES)
        if t.chance(4):
            arguments["requires_grad"] = True
            t.odd += ["integers"] * (arguments.get("dtype", "float32") not in FLOATS)
        values = (
            (t.twisted(t.pick(0.0, 1, 2.5, -1.0), *ODD_FLOATS, 2**70, "x", (1, 2), np.array([1, 2])),) if value else ()
        )
        found = t.call(function, shape, *values, **arguments)
        if found is Refused:
            return
        expected = tuple(map(int, shape if isinstance(shape, tuple | list | np.ndarray) else (shape,)))
        promise(found.shape == expected, f"{found.shape} of {shape!r}")
        promise(is_floating(found.dtype) or found.dtype.kind in "iub", f"made {found.dtype}")
        if value and is_floating(found.dtype) and found.numel():
            with np.errstate(all="ignore"):
                right = np.asarray(values[-1], np.float64).astype(np.float32 if is_half(found.dtype) else found.dtype)
                promise(equal(found.numpy().astype(float), np.full(shape, right.astype(found.dtype)).astype(float)),
                        f"full: {found!r} of {values}")  # fmt: skip

    return entry


def generators(t: Trial) -> None:
    seed = t.twisted(t.pick(0, 5, 2**64 - 1), *ODD_NUMBERS)
    generator = t.call(Generator, seed)
    if generator is not Refused:
        promise(t.call(generator.manual_seed, t.twisted(3, *ODD_NUMBERS)) is not None, "manual_seed")
        state = generator.state()
        generator.set_state(state)
        promise(generator.state() == state, "set_state")
        t.odd.append("a state")
        t.call(generator.set_state, t.pick({}, {**state, "seed": -1}, {**state, "offset": "x"}, *THINGS))
        promise(generator.state() == state, "set_state refused, and has changed the generator")
    t.call(gpucnn.manual_seed, seed)


def scoped(t: Trial) -> None:
    """autocast, precision, backends, generators and tuning, by odd names."""

    def entered(context: Callable[..., Any], *arguments: Any) -> None:
        with context(*arguments):
            pass

    t.call(entered, gpucnn.autocast, t.twisted(t.pick("float16", "bfloat16"), *ODD_DTYPES, "float32", np.float64))
    names: tuple[Any, ...] = (None, "", "cpu", "CUDA", 3, "gpu", "cuda:0", "none", [], {}, 1.5)
    t.call(entered, gpucnn.precision, t.twisted(t.pick("fp32", "tf32"), *names))
    t.call(entered, gpucnn.use_backend, t.twisted("numpy", *names[1:]))
    t.call(entered, gpucnn.use_generator, t.twisted(Generator(1), *names))
    t.call(entered, gpucnn.use_tuning, t.pick(True, False))
    t.call(gpucnn.get_backend, t.twisted(t.pick("numpy", None), *names[1:]))


def scalers(t: Trial) -> None:
    names = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")
    given = {name: t.twisted(good, *ODD_FLOATS) for name, good in zip(names, (8.0, 2.0, 0.5, 3), strict=True)}
    scaler = t.call(gpucnn.GradScaler, **given)
    if scaler is Refused:
        return
    x = on(t, t.array((2, 3), "float32", "special")).requires_grad_()
    parameter = gpucnn.ones(2, 3, requires_grad=True)
    optimizer = optim.SGD([parameter], 0.1)
    t.call(scaler.scale, t.twisted(t.pick(x, [x]), 3.0, None, "x"))
    t.odd.append("order")
    parameter.grad = gpucnn.from_numpy(t.array((2, 3), "float32"))
    finite = bool(np.isfinite(parameter.grad.numpy()).all())
    before = parameter.numpy().copy()
    if t.chance(2) and t.call(scaler.unscale_, optimizer) is not Refused:
        promise(scaler.found_inf(optimizer) is not finite, "found_inf")
    promise(scaler.is_enabled() and scaler.get_scale() == given["init_scale"], "the scale")
    if t.call(scaler.step, optimizer) is not Refused and not finite:
        promise(equal(before, parameter.numpy()), "a step was made with a gradient that is not finite")
    t.call(scaler.update, t.twisted(None, *ODD_FLOATS))
    t.call(scaler.load_state_dict, t.twisted(scaler.state_dict(), {}, {"scale": "x"}, {"scale": 1.0}, None))


# -- layers and networks -----------------------------------------------------------------------------------------------

LAYERS = {
    "AdaptiveAvgPool2d": "adaptive_avg_pool2d", "AdaptiveMaxPool2d": "adaptive_max_pool2d", "AvgPool2d": "avg_pool2d",
    "BCELoss": "binary_cross_entropy", "BCEWithLogitsLoss": "binary_cross_entropy_with_logits", "Conv2d": "conv2d",
    "ConvTranspose2d": "conv_transpose2d", "CrossEntropyLoss": "cross_entropy", "ELU": "elu", "Flatten": "flatten",
    "GELU": "gelu", "GroupNorm": "group_norm", "HalfSquaredError": "half_squared_error", "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish", "Hardtanh": "hardtanh", "HuberLoss": "huber_loss",
    "KLDivLoss": "kl_div", "L1Loss": "l1_loss", "LayerNorm": "layer_norm", "LeakyReLU": "leaky_relu",
    "Linear": "linear", "LocalResponseNorm": "local_response_norm", "LogSigmoid": "logsigmoid",
    "LogSoftmax": "log_softmax", "MSELoss": "mse_loss",
    "MaxPool2d": "max_pool2d", "MinPool2d": "min_pool2d", "Mish": "mish", "NLLLoss": "nll_loss", "PReLU": "prelu",
    "PixelShuffle": "pixel_shuffle", "PixelUnshuffle": "pixel_unshuffle", "ReLU": "relu",
    "ReLU6": "relu6", "SELU": "selu", "SiLU": "silu", "Sigmoid": "sigmoid",
    "SmoothL1Loss": "smooth_l1_loss", "Softmax": "softmax",
    "Softplus": "softplus", "Softsign": "softsign", "SumPool2d": "sum_pool2d", "Tanh": "tanh", "Unflatten": "unflatten",
    "Upsample": "interpolate",
    "Conv1d": "conv1d", "ConvTranspose1d": "conv_transpose1d", "MaxPool1d": "max_pool1d", "AvgPool1d": "avg_pool1d",
    "AdaptiveAvgPool1d": "adaptive_avg_pool1d", "AdaptiveMaxPool1d": "adaptive_max_pool1d",
}  # fmt: skip
PADS = ("Constant", "Zero", "Reflection", "Replication")
STATE = ("weight", "bias", "running_mean", "running_var")


def sizes_for(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the constructor is told of the weights, for layers that have some."""
    x, w = given["input"], given.get("weight", given["input"])
    match kind:
        case "Conv1d" | "Conv2d":
            return {"in_channels": x.shape[1], "out_channels": w.shape[0], "kernel_size": w.shape[2:]}
        case "ConvTranspose1d" | "ConvTranspose2d":
            groups = given["groups"] if type(given["groups"]) is int and 0 < given["groups"] < 4 else 1
            return {"in_channels": w.shape[0], "out_channels": w.shape[1] * groups, "kernel_size": w.shape[2:]}
        case "Linear":
            return {"in_features": w.shape[1], "out_features": w.shape[0]}
        case "PReLU":
            return {"num_parameters": w.size}
        case "GroupNorm":
            return {"num_channels": x.shape[1]}
        case "BatchNorm" | "InstanceNorm":
            return {"num_features": x.shape[1]}
    return {}


def layer(kind: str, op: str) -> Entry:
    """A layer must compute what its function does with the same arguments; its weights are those of the function."""

    def entry(t: Trial) -> None:
        drawn = OPS[op](t)
        assert isinstance(drawn, Call)
        given = inspect.signature(getattr(F, op)).bind(*drawn.inputs, **drawn.arguments)
        given.apply_defaults()
        x = given.arguments["input"]
        sizes = {name: t.twisted(good, *COUNTS) for name, good in sizes_for(kind, given.arguments).items()}
        learns = sizes or kind == "LayerNorm"
        init = t.twisted(0.25, *ODD_FLOATS) if kind == "PReLU" else None
        axes = {"BatchNorm": max(x.ndim - 2, 1), "InstanceNorm": x.ndim - 2}.get(kind)
        made = getattr(nn, kind if axes is None else f"{kind}{t.twisted(axes, 1, 2)}d")
        if any(type(size) is int and size < 1 for size in sizes.values()):
            t.odd.append("no channels")

        def function(*inputs: Any, **arguments: Any) -> Any:
            given = inspect.signature(getattr(F, op)).bind(*inputs, **arguments).arguments
            given |= {"unflattened_size": given.get("sizes"), "init": init}
            state = {name: given.get(name) for name in STATE if learns and name in given}
            flags = {"bias": state.get("bias") is not None, "affine": state.get("weight") is not None,
                     "elementwise_affine": state.get("weight") is not None,
                     "track_running_stats": state.get("running_mean") is not None}  # fmt: skip
            known = given | sizes | (flags if learns else {})
            module = made(**{name: known[name] for name in inspect.signature(made).parameters if name in known})
            for name, value in state.items():
                if isinstance(value, Tensor) and not t.odd:
                    own = vars(module)[name]
                    good = own.shape == value.shape and bool(np.isfinite(own.numpy()).all())
                    promise(good, f"{kind}.{name}: {own!r}")
            state |= {n: v.clone() for n, v in state.items() if n.startswith("running") and isinstance(v, Tensor)}
            vars(module).update(state)
            extra = {name: given[name] for name in ("activation", "residual") if learns and given.get(name) is not None}
            if given.get("scale") is not None:
                extra |= {"scale": given["scale"], "shift": state["bias"]}
                module.bias = None
            y = module.train(given.get("training", given.get("use_input_stats", True)))(
                *(given[name] for name in ("input", "target") if name in given), **extra
            )
            return y if state.get("running_mean") is None else (y, state["running_mean"], state["running_var"])

        judge(t, replace(drawn, function=function))

    return entry


def dropped(kind: type[nn.Dropout]) -> Entry:
    def function(x: Tensor, p: Any, training: bool, generator: Generator) -> Any:
        with gpucnn.use_generator(generator):
            return kind(p).train(training)(x)

    return partial(dropout, function=function, channels={nn.Dropout1d: 3, nn.Dropout2d: 4}.get(kind, 0))


def padding(kind: str) -> Entry:
    mode = {"Reflection": "reflect", "Replication": "replicate"}.get(kind[:-5], "constant")
    axes = int(kind[-2])

    def entry(t: Trial) -> None:
        x = t.array((t.length(2), t.length(2), *plane(t)[:axes]), t.dtype())
        least = -1 if mode == "constant" else 0
        several = tuple(t.whole(least, 3) for _ in range(2 * axes))
        sides = t.twisted(t.pick(1, t.whole(least, 2), several), *ODD_NUMBERS)
        t.odd.append("may be too much")
        given = sides if isinstance(sides, Sequence) else (sides,) * (2 * axes)
        value = (t.twisted(0.5, *ODD_FLOATS),) if kind.startswith("Constant") else ()
        arguments = {"mode": mode} | ({"value": value[0]} if value else {})
        judge(t, Call("pad", (x, given), arguments, testing.selected, scalar(reference.pad),
                      function=lambda x, pad, **arguments: getattr(nn, kind)(sides, *value)(x)))  # fmt: skip

    return entry


def asked(t: Trial, function: Callable[..., Any], *arguments: tuple[Any, ...], **named: tuple[Any, ...]) -> Any:
    """With the first of each argument's values, or with one of the others, which are odd."""

    def drawn(good: Any, *odd: Any) -> Any:
        return t.twisted(good, *odd) if odd else good

    return t.call(function, *(drawn(*values) for values in arguments),
                  **{name: drawn(*values) for name, values in named.items()})  # fmt: skip


def small_network() -> nn.Sequential:
    """Of images [N, 2, 3, 4], with three classes."""
    return nn.Sequential(nn.Conv2d(2, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


def modules(t: Trial) -> None:
    """What every module has, and what they are made of."""
    net = small_network().eval()
    x = gpucnn.from_numpy(np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32))
    state = net.state_dict()
    before = [value.numpy().tobytes() for value in state.values()]
    weight = state["0.weight"]
    w = weight.numpy()
    bad = (w.astype(complex), w > 0, 3, None, w.astype(str), w[:1], w.tolist(), w.astype(object))
    worse = [{**state, "0.weight": value} for value in bad]
    if asked(t, net.load_state_dict, (state, *worse, {}, {1: 2}, {**state, "x": weight}, *THINGS)) is Refused:
        now = [value.numpy().tobytes() for value in net.state_dict().values()]
        promise(now == before, "load_state_dict refused, and has changed the module")
    asked(t, net.load_state_dict, (state,), (False, *THINGS[:6]))
    for name in ("buffers", "children", "modules", "parameters"):
        promise([value for _, value in getattr(net, f"named_{name}")()] == list(getattr(net, name)()), name)
    asked(t, net.requires_grad_, (False, *THINGS[:6]))
    asked(t, net.train, (False, *THINGS[:6]))
    net.zero_grad()
    if asked(t, net.to, ("float64", *ODD_DTYPES, "cuda:9")) is Refused:
        promise({str(value.dtype) for value in net.state_dict().values()} == {"float32", "int64"}, "to: half done")
    net.to("float32")
    asked(t, net.apply, (lambda module: None, *THINGS[:6]))
    handle = asked(t, net.register_forward_hook, (lambda *arguments: None, *THINGS[:6]))
    if handle is not Refused:
        promise(t.call(net, x) is not Refused, "a hook")
        handle.remove()
    handle = asked(t, net.register_forward_pre_hook, (lambda module, inputs: inputs, *THINGS[:6]))
    if handle is not Refused:
        promise(t.call(net, x) is not Refused, "a hook before")
        handle.remove()
    handle = asked(t, net.register_full_backward_hook, (lambda *arguments: None, *THINGS[:6]))
    if handle is not Refused:
        t.call(net.eval(), x.detach().requires_grad_()).sum().backward()
        handle.remove()
    asked(t, net.summary, (2, *COUNTS), (3, *COUNTS), (4, *COUNTS))
    asked(t, net.explain, (x.numpy()[0], x, *THINGS), ("0", "9", "", *THINGS), ((1, 0, 1), 9, -1, *COUNTS),
          target=(1, *ODD_NUMBERS))  # fmt: skip
    for name, good in (("weight", nn.Parameter(weight)), ("stride", 1)):
        asked(t, partial(setattr, net[0], name), (good, *((weight, *THINGS[1:]) if name == "weight" else ())))
    asked(t, net.__getitem__, (0, slice(2), -1, *ODD_NUMBERS))
    asked(t, nn.Sequential, (nn.ReLU(), *THINGS))
    asked(t, nn.ModuleList, ([nn.ReLU()], *THINGS[1:]))
    asked(t, nn.ParameterList, ([weight], *THINGS[1:]))
    asked(t, nn.ModuleDict, ({"a": nn.ReLU()}, *THINGS[1:]))
    for row in (nn.Sequential(nn.Tanh()), nn.ModuleList([nn.Tanh()])):
        asked(t, row.append, (nn.ReLU(), *THINGS))
        asked(t, row.insert, (0, *ODD_NUMBERS), (nn.ReLU(), *THINGS))
        asked(t, row.__setitem__, (0, *ODD_NUMBERS), (nn.ReLU(), *THINGS))
        asked(t, row.__delitem__, (0, slice(1), *ODD_NUMBERS))
    names = ("extra", "forward", "training", "a.b", "", *THINGS[:3])
    holder, registered = nn.Sequential(), t.twisted(weight, *THINGS[1:6])
    asked(t, holder.register_buffer, names, (registered,), (True, False))
    asked(t, nn.Sequential().register_parameter, names, (nn.Parameter(weight), *THINGS[1:6]))
    asked(t, nn.Sequential().add_module, names, (nn.ReLU(), *THINGS[1:6]))
    for method, good in (("get_submodule", "0"), ("get_parameter", "0.weight"), ("get_buffer", "1.running_mean")):
        with contextlib.suppress(AttributeError):  # what is asked for a name that is not there
            found = getattr(net, method)(t.pick(good, "0.x", "x", ".", "forward", "0.weight.x"))
            named = {"get_submodule": net.named_modules, "get_buffer": net.named_buffers}
            promise(found is dict(named.get(method, net.named_parameters)())[good], method)
    listed = nn.ParameterList([weight])
    asked(t, listed.append, (weight, x > 0, *THINGS))
    asked(t, listed.insert, (0, *ODD_NUMBERS), (weight, *THINGS))
    asked(t, listed.__setitem__, (0, *ODD_NUMBERS), (weight, *THINGS))
    asked(t, listed.__delitem__, (0, slice(1), *ODD_NUMBERS))
    asked(t, nn.ModuleDict().__setitem__, ("a", *THINGS[:2], "a.b", ""), (nn.ReLU(), *THINGS))
    asked(t, nn.Identity(), (x, *THINGS))
    for kind in (nn.Parameter, nn.Buffer):
        found = asked(t, kind, (weight, *THINGS))
        promise(found is Refused or (isinstance(found, kind) and found.shape == weight.shape), f"{kind}: {found!r}")
    t.odd.append("an input")
    y = t.call(net, t.pick(x, x[0], x[:, :1], x.double(), x > 0, *THINGS))
    promise(y is Refused or y.shape == (2, 3), f"made {y!r}")


def initialiser(name: str) -> Entry:
    def entry(t: Trial) -> None:
        function, floats = getattr(nn.init, name), [1.0, *ODD_FLOATS]
        if name == "calculate_gain":
            asked(t, function, ("relu", "leaky_relu", "selu", "x", None, 3, []), (0.5, *ODD_FLOATS))
            return
        shape = t.shape()
        if len(shape) < 2 or 0 in shape:
            t.odd.append("axes")
        given = t.twisted(on(t, np.zeros(shape, named(t.dtype()))), *THINGS)
        options: dict[str, tuple[Any, ...]] = {
            "a": (0.5, *ODD_FLOATS), "b": (2.0, *ODD_FLOATS), "mean": (0.5, *ODD_FLOATS), "std": tuple(floats),
            "gain": tuple(floats), "val": (2.5, *ODD_FLOATS, "x"), "mode": ("fan_out", "x", None, 1),
            "nonlinearity": ("relu", "x", None, []), "generator": (Generator(1), *THINGS[1:]),
        }  # fmt: skip
        chosen = {key: options[key] for key in inspect.signature(function).parameters if key in options}
        kept = given.dtype if isinstance(given, Tensor) else None
        found = asked(t, function, (given,), **chosen)
        if found is Refused or name == "fans":
            return
        promise(found is given and found.dtype == kept and found.shape == shape, f"{name}: made {found!r}")
        if not t.odd:
            values = found.numpy().astype(np.float64)
            inside = {"uniform_": (0.5, 2.0), "constant_": (2.5, 2.5), "zeros_": (0, 0), "ones_": (1, 1)}
            low, high = inside.get(name, (-1e3, 1e3))
            promise(bool(((low <= values) & (values <= high)).all()), f"{name}: {values}")

    return entry


def network(name: str) -> Entry:
    def entry(t: Trial) -> None:
        counts = (3, *(n for n in COUNTS if not isinstance(n, int) or n < 2**40))
        widths = ((2, 3), (), (2,), (2, 0), (2, "x"), 3, None, "23", [2, 3], (2.0, 3))
        options: dict[str, tuple[Any, ...]] = {
            "num_classes": counts, "in_channels": counts, "out_channels": (4, *counts), "width": counts,
            "image_size": ((12, 13), (5, 5), 3, None, (12,), "ab", (12, -1)), "widths": widths,
            "layers": ((1, 2), (0, 1), *widths), "batch_norm": (True, None), "dropout": (0.3, *ODD_FLOATS),
            "block": ("basic", *THINGS), "stem": ("cifar", *THINGS), "shortcut": ("pad", *THINGS),
            "stride": (2, *counts),
            "downsample": (nn.models.PadShortcut(3, 3 if name == "BasicBlock" else 12, 2), *THINGS),
        }  # fmt: skip
        function = getattr(nn.models, name)
        keys = [key for key in inspect.signature(function).parameters if key in options]
        given = {key: t.twisted(*options[key]) for key in keys}
        made = t.call(function, **given)
        if made is Refused:
            return
        shapes = {"LeNet5": (1, 12, 13), "x_or_not_x": (1, 6, 6), "beginners_guide": (3, 32, 32), "ResNet": (3, 9, 8),
                  "friendly_introduction": (1, 10, 10), "VGGSmall": (3, 8, 9), "resnet20": (3, 8, 8)}  # fmt: skip
        channels, *size = shapes.get(name, (3, 4, 5))
        channels = given.get("in_channels", channels)
        x = gpucnn.zeros(2, channels if type(channels) is int and 0 < channels < 9 else 3, *size)
        t.odd += ["size"] * (given.get("image_size", (12, 13)) != (12, 13))
        y = t.call(made.eval(), x)
        if y is not Refused and "num_classes" in given:
            promise(y.shape == (2, int(given["num_classes"])), f"{name}: {y.shape} of {given}")

    return entry


def learning(t: Trial) -> None:
    """Training, predictions and explanations of a small network."""
    net = small_network()
    optimizer: Any = optim.SGD(net.parameters(), 0.01)
    pictures = t.array((4, 3, 4, 2), "float32", t.pick("tame", "whole"))
    batches = data.Loader(data.Dataset(pictures, np.array([0, 1, 2, 1]), ("a", "b", "c")), 3, prefetch=0)
    counts = [n for n in ODD_NUMBERS if not isinstance(n, int) or n < 2]
    x = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    names = ("no such layer", "", *THINGS)
    classes = (1, 2, -1, 3, *ODD_NUMBERS)
    for call in (
        partial(asked, t, train.fit, (net, *THINGS), (batches, *THINGS), epochs=(1, *counts),
                optimizer=(optimizer, *THINGS), scheduler=(None, *THINGS[1:]), held_out=(None, *THINGS[1:]),
                accumulate=(1, *counts), clip_norm=(1.0, *(v for v in ODD_FLOATS if v is not None)),
                callbacks=((), *THINGS), precision=("bf16", *THINGS[1:]), loss=(F.cross_entropy, *THINGS[:6])),
        partial(asked, t, train.evaluate, (net, *THINGS), (batches, *THINGS), (F.cross_entropy, *THINGS[:6])),
        partial(asked, t, train.predict, (net, *THINGS), (x, x[0], x[:0], x[:, :1], x > 0, x[0, 0], *THINGS),
                (2, *counts)),
        partial(asked, t, attribution.saliency, (net, *THINGS), (x, x[:0], *THINGS), classes, (2, *counts),
                (0.1, *ODD_FLOATS), (0, *ODD_NUMBERS)),
        partial(asked, t, attribution.occlusion, (net, *THINGS), (x, x[:0], *THINGS), classes,
                ((2, 1), None, *ODD_NUMBERS), ((1, 2), None, *ODD_NUMBERS), (0.5, *ODD_FLOATS)),
        partial(asked, t, attribution.grad_cam, (net, *THINGS), (x, x[:0], *THINGS), (None, *names), classes),
    ):  # fmt: skip
        found = call()
        if isinstance(found, attribution.Attribution):
            promise(found.maps.shape[0] == len(found.classes) and found.maps.dtype == np.float64, f"maps: {found}")


# -- optimisers --------------------------------------------------------------------------------------------------------


def _sgd(w: Array, gradients: list[Array], lr: float, momentum: float, weight_decay: float) -> Array:
    m = None
    for g in gradients:
        g = g + weight_decay * w
        m = g if m is None else momentum * m + g
        w = w - lr * m
    return w


def _adam(w: Array, gradients: list[Array], lr: float, weight_decay: float, decoupled: bool) -> Array:
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, g in enumerate(gradients, 1):
        w = w * (1 - lr * weight_decay) if decoupled else w
        g = g if decoupled else g + weight_decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return w


def _rmsprop(w: Array, gradients: list[Array], lr: float, momentum: float, weight_decay: float) -> Array:
    m, v = np.zeros_like(w), np.zeros_like(w)
    for g in gradients:
        g = g + weight_decay * w
        v = 0.99 * v + 0.01 * g * g
        m = momentum * m + g / (np.sqrt(v) + 1e-8)
        w = w - lr * m
    return w


def optimizer(kind: str) -> Entry:
    def entry(t: Trial) -> None:
        t.values = t.pick("tame", "special", "huge", "tiny") if not t.few else t.pick("tame", "special")
        dtype = t.twisted(t.pick("float32", "float32", "float64"), "float16", "bfloat16", "int64")
        arrays = [np.array(t.array(t.shape(), dtype, "tame")) for _ in range(t.whole(1, 3))]
        given: Any = [on(t, array.copy()) for array in arrays]
        for tensor in given:
            if is_floating(tensor.dtype):
                tensor.requires_grad = True
        settings = {name: t.twisted(good, *ODD_FLOATS) for name, good in (("lr", 0.1), ("weight_decay", 0.01))}
        if kind in ("SGD", "RMSprop"):
            settings["momentum"] = t.twisted(t.pick(0.0, 0.9), *ODD_FLOATS)
        good = t.pick(given, [{"params": tensor, "lr": settings["lr"]} for tensor in given])
        parameters = t.twisted(
            good,
            [],
            None,
            given * 2,
            [3],
            [given[0] * 1 if dtype != "int64" else 3],
            "x",
            given[0],
            [{}],
            [good],
            [{"params": given, "lr": t.pick(*THINGS[1:])}],
            [{"params": given, t.pick("x", 3): 1}],
            {"params": given},
        )
        steps = t.call(getattr(optim, kind), parameters, **settings)
        if steps is Refused or parameters is not good:
            return
        if not is_floating(given[0].dtype):
            return
        plain = not t.odd or set(t.odd) == {"empty"}
        gradients: list[list[Array]] = [[] for _ in given]
        layout_of = [t.array(array.shape, dtype) for array in arrays]
        for number in range(3):
            for i, tensor in enumerate(given):
                g = layout_of[i] if number else t.array(arrays[i].shape, dtype)
                tensor.grad = on(t, g)
                gradients[i].append(np.array(g, np.float64))
            t.call(steps.step)
        state = steps.state_dict()
        t.call(steps.load_state_dict, state)
        t.odd.append("state")
        without = {**state, "param_groups": state["param_groups"][1:]}
        t.call(
            steps.load_state_dict, t.pick(None, {}, {"lr": 1}, {**state, "arrays": {"x.0": np.zeros(2)}}, [], without)
        )
        for array, tensor, its in zip(arrays, given, gradients, strict=True):
            promise(
                tensor.shape == array.shape and tensor.dtype == array.dtype, f"{kind} has changed a parameter's type"
            )
            if plain:
                _stepped(kind, array, tensor, its, settings)

    return entry


def _stepped(kind: str, array: Array, tensor: Tensor, gradients: list[Array], settings: dict[str, Any]) -> None:
    """Against the formulas. Each step has at most 64 roundings of the weight, of its change and of the gradients."""
    start, lr, decay = array.astype(np.float64), settings["lr"], settings["weight_decay"]
    with np.errstate(all="ignore"):
        if kind == "SGD":
            right = _sgd(start, gradients, lr, settings["momentum"], decay)
        elif kind == "RMSprop":
            right = _rmsprop(start, gradients, lr, settings["momentum"], decay)
        else:
            right = _adam(start, gradients, lr, decay, kind == "AdamW")
        unit = unit_roundoff(tensor.dtype)
        size = np.abs(start) + sum(np.abs(g) for g in gradients) * (10 * lr if kind == "SGD" else 0) + 30 * lr
        largest = sum(np.abs(g) for g in gradients) * 4 if kind == "SGD" else sum(g * g for g in gradients) * 4
        known = largest < LARGEST[str(tensor.dtype)]  # beyond, squares overflow
        known &= np.min([np.abs(g) for g in gradients], axis=0) > 1e-12 if kind != "SGD" else True  # squares vanish
        got = tensor.numpy().astype(np.float64)
        same = (np.isnan(got) & np.isnan(right)) | (got == right) | (np.abs(got - right) <= 192 * unit * size)
    bad = ~same & (known | np.isnan(right))
    if bad.any():
        place = tuple(np.argwhere(bad)[0].tolist())
        raise Finding(f"{kind}: a parameter is {got[place]!r}, expected {right[place]!r}")


def clipped(by: str) -> Entry:
    def entry(t: Trial) -> None:
        function = getattr(optim, by)
        t.calm()
        dtype = t.pick("float32", "float64", "float16") if not t.few else "float32"
        parameters, before = [], []
        for _ in range(t.whole(0, 3)):
            gradient = t.array(t.shape(), dtype)
            parameter = on(t, np.zeros(gradient.shape, dtype)).requires_grad_()
            if not t.chance(4):
                parameter.grad = on(t, np.array(gradient) if t.chance(2) else gradient)
                before.append((parameter, np.array(gradient, np.float64)))
            parameters.append(parameter)
        most = t.twisted(t.pick(1.0, 0.5, 100, 0.0), *ODD_FLOATS)
        t.odd += ["not finite"] * any(not np.isfinite(g).all() for _, g in before) * (by == "clip_grad_norm_")
        t.odd += ["read-only"] * any(not p.grad.array.flags.writeable for p, _ in before if p.grad is not None)
        t.odd += ["huge"] * (t.values == "huge" and dtype == "float64")
        found = t.call(function, t.twisted(parameters, None, 3, [3], ["x"]), most)
        if found is Refused or not isinstance(most, int | float) or isinstance(most, bool):
            return
        with np.errstate(all="ignore"):
            norm = math.sqrt(sum(float((g**2).sum()) for _, g in before))
            for parameter, g in before:
                if by == "clip_grad_value_":
                    right = np.where(np.isnan(g), g, np.clip(g, -most, most))
                else:
                    right = g * min(1.0, most / (norm + 1e-6))
                assert parameter.grad is not None
                got = parameter.grad.numpy().astype(np.float64)
                repeated = 0 in parameter.grad.array.strides and parameter.grad.array.size > 1
                near = np.abs(got - right) <= 4 * unit_roundoff(dtype) * np.abs(right) + 2 * smallest(dtype)
                same = (got == right) | near | (np.isnan(got) & np.isnan(right)) | ~np.isfinite(norm + right)
                promise(bool(same.all()) or repeated, f"{by}: {got.tolist()}, expected {right.tolist()}")

    return entry


def two_groups() -> optim.Optimizer:
    groups = [{"params": gpucnn.ones(2, requires_grad=True)}, {"params": gpucnn.ones(2, requires_grad=True), "lr": 2}]
    return optim.SGD(groups, 0.1)


def plateaus(t: Trial) -> None:
    steps = two_groups()
    schedule = t.call(
        optim.ReduceLROnPlateau, steps, t.twisted("min", *THINGS), t.twisted(0.5, *ODD_FLOATS),
        t.twisted(1, *ODD_NUMBERS), t.twisted(0.1, *ODD_FLOATS), t.twisted("abs", *THINGS),
        t.twisted(1, *ODD_NUMBERS), t.twisted(t.pick(0, [0.01, 0.1]), *ODD_FLOATS, [1]), t.twisted(1e-8, *ODD_FLOATS),
    )  # fmt: skip
    if schedule is Refused:
        return
    for _ in range(6):
        before = schedule.get_last_lr()
        if t.call(schedule.step, t.twisted(1.0, *ODD_FLOATS)) is Refused:
            return
        fallen = [0 <= now <= then for now, then in zip(schedule.get_last_lr(), before, strict=True)]
        promise(all(fallen), f"from {before} to {schedule.get_last_lr()}")
    state = schedule.state_dict()
    schedule.load_state_dict(state)
    promise(str(schedule.state_dict()) == str(state), "another state")


def schedules(t: Trial) -> None:
    steps = two_groups()
    kind = t.pick(*SCHEDULES)
    arguments: dict[str, tuple[Any, ...]] = {
        "StepLR": (t.twisted(3, *ODD_NUMBERS), t.twisted(0.5, *ODD_FLOATS)),
        "MultiStepLR": (t.twisted([1, 3], *ODD_NUMBERS, ["x"], [0.5]), t.twisted(0.5, *ODD_FLOATS)),
        "ExponentialLR": (t.twisted(0.5, *ODD_FLOATS),),
        "PolynomialLR": (t.twisted(3, *ODD_NUMBERS), t.twisted(0.9, *ODD_FLOATS)),
        "LinearLR": (t.twisted(0.5, *ODD_FLOATS), t.twisted(0.9, *ODD_FLOATS), t.twisted(3, *ODD_NUMBERS)),
        "ConstantLR": (t.twisted(0.5, *ODD_FLOATS), t.twisted(3, *ODD_NUMBERS)),
        "LambdaLR": (t.twisted(lambda step: 0.5, *THINGS[1:], lambda step: t.pick(*THINGS)),),
        "CosineAnnealingLR": (t.twisted(5, *ODD_NUMBERS), t.twisted(0.01, *ODD_FLOATS)),
        "CosineAnnealingWarmRestarts": (
            t.twisted(2, *ODD_NUMBERS),
            t.twisted(t.pick(1, 2), *ODD_NUMBERS),
            t.twisted(0.01, *ODD_FLOATS),
        ),
        "OneCycleLR": (
            t.twisted(t.pick(0.1, [0.1, 1]), *ODD_FLOATS, [1]),
            t.twisted(5, *ODD_NUMBERS),
            t.twisted(0.3, *ODD_FLOATS),
        ),
        "WarmUp": (t.twisted(3, *ODD_NUMBERS),),
    }
    first: Any = optim.StepLR(steps, 2) if kind == "WarmUp" else steps
    schedule = t.call(getattr(optim, kind), first, *arguments[kind])
    if schedule is Refused:
        return
    for _ in range(4):
        t.odd.append("past the end")
        if t.call(schedule.step) is Refused:
            return
        promise(type(steps.lr) is float and 0 <= steps.lr < math.inf, f"{kind}: lr is {steps.lr!r}")
    state = schedule.state_dict()
    schedule.load_state_dict(state)
    promise(schedule.state_dict() == state, f"{kind}: another state")


# -- data and metrics --------------------------------------------------------------------------------------------------


def images(t: Trial) -> Any:
    """[N, H, W, C] of float32, mostly."""
    shape = (t.length(), *plane(t), t.length(3))
    t.odd += ["huge"] * (t.values == "huge")
    good = t.array(shape, "float32")
    with np.errstate(all="ignore"):
        strange = good * 1j
    first = good[0] if len(good) else None
    return t.twisted(good, first, good.astype(np.float64), t.array(shape, "uint8"), good.tolist(), None, "x",
                     t.array((), "float32"), t.array((2, 2), "bool"), good.astype(object), strange)  # fmt: skip


NOT_OF_ALL_IMAGES = ("Normalize", "RandomCrop", "RandomErasing", "RandomGrayscale", "ColorJitter")
AUGMENTATIONS = (
    "CenterCrop", "ColorJitter", "Compose", "Cutout", "Normalize", "RandomAffine", "RandomCrop", "RandomErasing",
    "RandomGrayscale", "RandomHorizontalFlip", "RandomResizedCrop", "RandomRotation", "RandomVerticalFlip", "Resize",
)  # fmt: skip


def augmented(kind: str) -> Entry:
    def entry(t: Trial) -> None:
        arguments: dict[str, tuple[Any, ...]] = {
            "Normalize": (
                t.twisted(0.5, (0.5, 0.2), (1, 2), *ODD_FLOATS), t.twisted(0.5, (0.5, 0.2), (2, 0), *ODD_FLOATS)
            ),
            "RandomHorizontalFlip": (t.twisted(t.pick(0.0, 0.5, 1.0), *ODD_FLOATS),),
            "RandomVerticalFlip": (t.twisted(t.pick(0.0, 0.5, 1.0), *ODD_FLOATS),),
            "RandomCrop": (
                t.twisted(t.pick(2, (3, 2)), *ODD_NUMBERS), t.twisted(t.pick(0, (1, 2), (1, 2, 0, 3)), *ODD_NUMBERS),
                t.pick(False, True), t.twisted(t.pick(0.0, 1.0), *ODD_FLOATS),
                t.twisted(t.pick("constant", "edge", "reflect", "symmetric"), "wrap", None, 3, []),
            ),
            "CenterCrop": (t.twisted(t.pick(2, (3, 2)), *ODD_NUMBERS),),
            "Resize": (t.twisted(t.pick(2, (3, 2)), *ODD_NUMBERS),),
            "RandomResizedCrop": (
                t.twisted(t.pick(2, (3, 2)), *ODD_NUMBERS),
                t.twisted(t.pick((0.1, 1), (0, 0)), *ODD_FLOATS, (0.5, 2), (1, 0.5), (math.nan, 1)),
                t.twisted(t.pick((0.5, 2), (1, 1)), *ODD_FLOATS, (0, 1), (2, 1), (1e-320, 1e308)),
            ),
            "Cutout": (t.twisted(t.pick(1, 3), *ODD_NUMBERS),),
            "RandomErasing": (
                t.twisted(t.pick(0.0, 0.5, 1.0), *ODD_FLOATS),
                t.twisted(t.pick((0.1, 1), (0, 0)), *ODD_FLOATS, (0.5, 2), (1, 0.5), (math.nan, 1)),
                t.twisted(t.pick((0.5, 2), (1, 1)), *ODD_FLOATS, (0, 1), (2, 1), (1e-320, 1e308)),
                t.twisted(t.pick(0.5, "random", (0.1, 0.2, 0.3)), *ODD_FLOATS, (0.1,), "mean", "0.5"),
            ),
            "RandomGrayscale": (t.twisted(t.pick(0.0, 0.5, 1.0), *ODD_FLOATS),),
            "ColorJitter": tuple(
                t.twisted(t.pick(0.0, 0.3, (0.1, 0.4)), *ODD_FLOATS, (0.5, 2**70), (-1, 1), (2, 1), (math.nan, 1))
                for _ in range(4)
            ),
            "RandomRotation": (
                t.twisted(t.pick(0, 15.0, (-5, 30)), *ODD_FLOATS), t.twisted(t.pick(0.0, 1.0), *ODD_FLOATS)
            ),
            "RandomAffine": (
                t.twisted(t.pick(0, 15.0, (-5, 30)), *ODD_FLOATS),
                t.twisted(t.pick(None, (0.1, 0.2)), *ODD_FLOATS, (2, 2), (0.1,), ("a", "b")),
                t.twisted(t.pick(None, (0.9, 1.1)), *ODD_FLOATS, (1.1, 0.9), (0, 1), (math.nan, 1)),
                t.twisted(t.pick(0.0, (-5, 5), (1, 2, 3, 4)), *ODD_FLOATS, (1, 2, 3)),
                t.twisted(t.pick(0.0, 1.0), *ODD_FLOATS),
            ),
            "Compose": (t.twisted([data.RandomHorizontalFlip(0.5), data.Cutout(2)], [], [3], None, 3, "x", [None]),),
        }  # fmt: skip
        change = t.call(getattr(data, kind), *arguments[kind])
        if change is Refused:
            return
        t.odd += ["may not fit"] * (kind in NOT_OF_ALL_IMAGES)
        given = images(t)
        before = given.tobytes() if isinstance(given, np.ndarray) else b""
        found = t.call(change, given, np.random.default_rng(t.whole(0, 9)))
        promise(not isinstance(given, np.ndarray) or given.tobytes() == before, f"{kind} has changed its images")
        if found is not Refused:
            good = isinstance(found, np.ndarray) and found.dtype == np.float32 and found.ndim == 4
            promise(good, f"{kind} made {shown(found)} of {shown(given)}")
            promise(len(found) == len(given) and found.shape[3] == np.shape(given)[3], f"{kind} made {found.shape}")

    return entry


def datasets(t: Trial) -> Any:
    shape = (t.length(), t.whole(1, 3), t.whole(1, 3), t.whole(1, 2))
    t.odd += ["empty"]
    pictures = t.array(shape, t.twisted(t.pick("uint8", "bool", "float32"), "float64", "int64", "float16", "uint16"))
    pictures = t.twisted(
        pictures, pictures[0] if len(pictures) else None, None, "x", pictures.tolist(), pictures.astype(complex)
    )
    labels = np.arange(shape[0]) % 2
    odd = (labels + 1, labels - 1, labels.astype(float), labels[:-1], None, "x", labels.astype(str), labels.tolist(),
           labels.astype(">i2"), labels.astype(object), labels[None], labels + 2**40)  # fmt: skip
    labels = t.twisted(labels, *odd)
    return t.call(data.Dataset, pictures, labels, t.twisted(("a", "b"), (), ("a",), "ab", None, [1, 2], 3))


def dataset(t: Trial) -> None:
    made = datasets(t)
    if made is Refused:
        return
    promise(made.labels.dtype == np.int64 and len(made) == len(made.labels), "a data set's labels")
    where = t.pick(0, -1, slice(1), [0], [], np.array([True] * len(made)), [True], 1.5, "x", None, [0.5], 99, [99],
                   [[0]], 2**70, np.array(["a"]), (0, 0), True, [[0], [0, 1]])  # fmt: skip
    t.odd.append("index")
    promise(len(made) == 0 or made[0][0].shape == (made.height, made.width, made.channels), "a data set's image")
    for function in (made.__getitem__, made.subset):
        t.call(function, where)
    promise(isinstance(repr(made), str), "repr")


def split(t: Trial) -> None:
    made = datasets(t)
    if made is Refused:
        return
    found = t.call(
        data.split, made, t.twisted(t.pick(0.5, 1, 0.3), *ODD_FLOATS, *ODD_NUMBERS), seed=t.twisted(0, *ODD_NUMBERS)
    )
    if found is not Refused:
        promise(len(found[0]) + len(found[1]) == len(made) and min(map(len, found)) > 0, "split")
        t.call(data.check_disjoint, *found)
        promise(data.overlap(*found) == [], "overlap")


def loader(t: Trial) -> None:
    made = datasets(t)
    if made is Refused:
        return
    arguments = {
        "batch_size": t.twisted(t.pick(1, 2, 7), *ODD_NUMBERS),
        "shuffle": t.pick(True, False),
        "drop_last": t.pick(True, False),
        "seed": t.twisted(0, *ODD_NUMBERS),
        "prefetch": t.twisted(t.pick(0, 0, 2), *ODD_NUMBERS),
        "augment": t.twisted(None, 3, lambda x, g: x.astype(float), lambda x, g: x[:1], lambda x, g: None, "x"),
        "normalise": t.twisted(
            t.pick(None, (0.5, 0.5)), 3, (0, 0), (math.nan, 1), ("a", "b"), (1, 2, 3), ((1, 2, 3), 1)
        ),
    }
    found = t.call(data.Loader, made, **arguments)
    if found is Refused:
        return

    def read() -> int:
        seen = 0
        for pictures, labels in found:
            promise(
                pictures.dtype == np.float32 and labels.dtype == np.int64 and len(pictures) == len(labels), "a batch"
            )
            seen += len(labels)
        return seen

    seen = t.call(read)
    if seen is not Refused and not arguments["drop_last"]:
        promise(seen == len(made), f"{seen} of {len(made)} images")
    t.odd.append("epoch")
    t.call(lambda: list(found.epoch(t.twisted(0, *ODD_NUMBERS), t.twisted(0, *ODD_NUMBERS))))


def to_float(t: Trial) -> None:
    given = images(t)
    t.odd.append("images")
    found = t.call(data.to_float, given)
    if found is not Refused:
        promise(found.dtype == np.float32 and found.ndim == 4, "to_float")


def drawn_images(t: Trial) -> None:
    numbers = tuple(n for n in ODD_NUMBERS if not isinstance(n, int) or n < 2**31)
    t.call(data.x_or_not_x, t.twisted(3, *numbers), t.twisted(t.pick(5, (6, 7)), *numbers), t.twisted(0, *ODD_NUMBERS),
           distort=t.twisted(t.pick(0, 1, 2), *ODD_NUMBERS))  # fmt: skip


def counted(t: Trial) -> None:
    n, classes = t.length(), t.whole(1, 4)
    labels, predictions = (np.random.default_rng(t.whole(0, 9)).integers(0, classes, n) for _ in range(2))
    odd = (labels + 1, labels - 1, labels * 1.0, labels[:-1], None, "x", labels.astype(str), labels > 0, labels[None],
           labels.astype(object), labels + 2**40, labels.tolist())  # fmt: skip
    a, b = t.twisted(labels, *odd), t.twisted(predictions.astype(t.pick("int64", "uint8", "int8")), *odd)
    size = t.twisted(classes, *ODD_NUMBERS)
    found = t.call(metrics.confusion_matrix, a, b, size)
    if found is not Refused:
        right = np.zeros((int(size), int(size)), np.int64)
        for i, j in zip(np.asarray(a).tolist(), np.asarray(b).tolist(), strict=True):
            right[int(i), int(j)] += 1
        promise(np.array_equal(found, right), f"confusion_matrix: {found.tolist()}, expected {right.tolist()}")


def top_k(t: Trial) -> None:
    n, classes = t.length(), t.whole(1, 4)
    scores = t.array((n, classes), "float32", t.pick("tame", "whole"))
    labels = np.random.default_rng(t.whole(0, 9)).integers(0, classes, n)
    given = t.twisted(scores, scores[0] if n else None, None, "x", scores.astype(object), scores.tolist(), scores > 0,
                      scores.astype(np.uint8))  # fmt: skip
    its = t.twisted(
        labels, labels - 9, labels[:-1], labels[:, None], None, "x", labels.astype(str), labels.tolist(), labels + 0.5
    )
    k = t.twisted(t.whole(1, classes), *ODD_NUMBERS)
    found = t.call(metrics.top_k_accuracy, given, its, k)
    if found is not Refused and given is scores and its is labels:
        hits = [sum(s > row[c] or (s == row[c] and j < c) for j, s in enumerate(row)) < k
                for row, c in zip(np.array(scores), labels, strict=True)]  # fmt: skip
        right = sum(hits) / n if n else math.nan
        promise(found == right or (math.isnan(found) and not n), f"top_k_accuracy: {found}, expected {right}")
    elif found is not Refused:
        promise(isinstance(found, float) and (0 <= found <= 1 or math.isnan(found)), f"top_k_accuracy: {found!r}")


# -- many calls --------------------------------------------------------------------------------------------------------


METHODS = (
    "abs", "amax", "amin", "argmax", "argmin", "clamp", "exp", "expand", "flatten", "log", "log_softmax", "matmul",
    "mean", "permute", "pow", "relu", "reshape", "sigmoid", "softmax", "sqrt", "squeeze", "sum", "tanh", "to",
    "transpose", "unflatten", "unsqueeze",
)  # fmt: skip
MORE_METHODS = (
    "add", "ceil", "div", "eq", "floor", "ge", "gt", "isfinite", "isinf", "isnan", "le", "logical_and", "logical_not",
    "logical_or", "logical_xor", "lt", "maximum", "minimum", "mul", "ne", "neg", "reciprocal", "round", "rsqrt", "sign",
    "square", "sub",
)  # fmt: skip
LOOKS = (
    "__array__", "__bool__", "__deepcopy__", "__float__", "__format__", "__index__", "__int__", "__iter__", "__len__",
    "__repr__", "_repr_html_", "bfloat16", "bool", "contiguous", "data", "detach", "dim", "double", "dtype",
    "float", "grad", "half", "int", "is_leaf", "item", "long", "ndim", "numel", "numpy", "shape", "size", "tolist",
)  # fmt: skip
IN_PLACE = {
    "add": operator.iadd, "sub": operator.isub, "mul": operator.imul, "div": operator.itruediv
}  # fmt: skip
GRADIENTS = ("backward", "requires_grad", "requires_grad_", "retain_grad")
SCHEDULES = (
    "StepLR", "MultiStepLR", "ExponentialLR", "PolynomialLR", "LinearLR", "ConstantLR", "LambdaLR", "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts", "OneCycleLR", "WarmUp",
)  # fmt: skip
SCOPES = ("autocast", "precision", "use_backend", "use_generator", "use_tuning", "get_backend")
INITIALISERS = (
    "calculate_gain", "constant_", "fans", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_", "orthogonal_",
    "trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_", "zeros_",
)  # fmt: skip
NETWORKS = (
    "BasicBlock", "Bottleneck", "LeNet5", "PadShortcut", "ResNet", "VGGSmall", "beginners_guide",
    "friendly_introduction", "resnet20", "x_or_not_x",
)  # fmt: skip
OPERATORS: dict[str, Entry] = {
    "__add__": op("add", operator.add),
    "__sub__": op("sub", operator.sub),
    "__mul__": op("mul", operator.mul),
    "__truediv__": op("div", operator.truediv),
    "__pow__": op("pow", operator.pow),
    "__matmul__": op("matmul", operator.matmul),
    "__neg__": op("neg", operator.neg),
    "__abs__": op("abs", operator.abs),
    "__getitem__": op("index", operator.getitem),
    "__radd__": reflected("add", operator.add),
    "__rsub__": reflected("sub", operator.sub),
    "__rmul__": reflected("mul", operator.mul),
    "__rtruediv__": reflected("div", operator.truediv),
    "__rpow__": reflected("pow", operator.pow),
    "__mod__": roughly("remainder", whole_numbers, np.remainder, operator.mod),
    "__rmod__": roughly("remainder", whole_numbers, lambda x, y: np.remainder(y, x), lambda x, y: y % x),
    "__floordiv__": roughly("floor_divide", whole_numbers, np.floor_divide, operator.floordiv),
    "__rfloordiv__": roughly("floor_divide", whole_numbers, lambda x, y: np.floor_divide(y, x), lambda x, y: y // x),
}

ENTRIES: dict[str, Entry] = (
    {f"functional.{name}": op(name) for name in OPS}
    | {f"Tensor.{name}": method(name) for name in METHODS}
    | {f"Tensor.{name}": entry for name, entry in OPERATORS.items()}
    | {f"Tensor.{name}": method(name) for name in MORE_METHODS}
    | {
        f"Tensor.{name}": roughly(name, draw, exact, lambda x, *rest, name=name: getattr(x, name)(*rest))
        for name, (draw, exact) in ROUGH.items()
        if hasattr(Tensor, name)
    }
    | {f"Tensor.{name}": moment(name, getattr(Tensor, name)) for name in ("var", "std")}
    | {"Tensor.__and__": op("bitwise_and", operator.and_), "Tensor.__rand__": op("bitwise_and", lambda a, b: b & a)}
    | {"Tensor.__or__": op("bitwise_or", operator.or_), "Tensor.__ror__": op("bitwise_or", lambda a, b: b | a)}
    | {"Tensor.__xor__": op("bitwise_xor", operator.xor), "Tensor.__rxor__": op("bitwise_xor", lambda a, b: b ^ a)}
    | {"Tensor.__invert__": op("bitwise_not", operator.invert)}
    | {"Tensor.T": roughly("T", few_axes, np.transpose, lambda x: x.T)}
    | {"Tensor.mT": roughly("mT", lambda t: (one(t, 2),), lambda x: np.swapaxes(x, -1, -2), lambda x: x.mT)}
    | {
        "Tensor.where": op("where", lambda condition, x, y: x.where(condition, y)),
        "Tensor.clip": op("clamp", Tensor.clip),
    }
    | {"Tensor.repeat": roughly("repeat", tiled, np.tile, Tensor.repeat)}
    | {
        f"Tensor.{name}": roughly(name, shaped_as, lambda x, y: x.reshape(y.shape), getattr(Tensor, name))
        for name in ("view_as", "reshape_as")
    }
    | {"Tensor.expand_as": roughly("expand_as", shaped_as, lambda x, y: np.broadcast_to(x, y.shape), Tensor.expand_as)}
    | {f"gpucnn.{name}": op(name) for name in OPS if name in gpucnn.__all__}
    | dict.fromkeys([f"Tensor.__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge")], compared)
    | dict.fromkeys([f"Tensor.{name}" for name in LOOKS], looked_at)
    | dict.fromkeys(["Tensor.__dlpack__", "Tensor.__dlpack_device__", "gpucnn.from_dlpack"], interchanged)
    | dict.fromkeys([f"Tensor.{name}" for name in GRADIENTS], backward)
    | {"Tensor.__setitem__": assigned, "Tensor.copy_": copied, "Tensor.move_": moved}
    | {f"Tensor.{name}": extremes(name) for name in ("max", "min")}
    | {f"Tensor.{name}": parted(name) for name in ("split", "chunk")}
    | {f"Tensor.{name}_": in_place(name, getattr(Tensor, f"{name}_")) for name in IN_PLACE}
    | {f"Tensor.__i{name}__": in_place(name, change) for name, change in IN_PLACE.items() if name != "div"}
    | {"Tensor.__itruediv__": in_place("div", operator.itruediv)}
    | dict.fromkeys(["Tensor.clamp_", "Tensor.fill_", "Tensor.zero_"], limited)
    | dict.fromkeys([f"Tensor.new_{name}" for name in ("tensor", "full", "zeros", "ones", "empty")], made_anew)
    | {"Tensor.type": op("to", lambda x, target: x.to(target) if target == x.backend.name else x.type(target))}
    | {"Tensor.cpu": op("clone", Tensor.cpu)}
    | {"Tensor.view": op("reshape", lambda x, shape: x.view(shape))}
    | dict.fromkeys([f"gpucnn.{name}_like" for name in ("full", "zeros", "ones", "empty", "rand", "randn")], alike)
    | dict.fromkeys([f"gpucnn.{name}" for name in ("arange", "linspace", "eye", "randint", "randperm")], counted_off)
    | {
        "gpucnn.tensor": made(gpucnn.tensor),
        "gpucnn.as_tensor": made(gpucnn.as_tensor),
        "gpucnn.from_numpy": made(gpucnn.from_numpy, with_dtype=False),
        "gpucnn.full": filled(gpucnn.full, value=True),
        "gpucnn.ones": filled(gpucnn.ones),
        "gpucnn.zeros": filled(gpucnn.zeros),
        "gpucnn.empty": filled(gpucnn.empty),
        "gpucnn.rand": filled(gpucnn.rand, dtypes=False),
        "gpucnn.randn": filled(gpucnn.randn, dtypes=False),
        "gpucnn.GradScaler": scalers,
    }
    | dict.fromkeys(["gpucnn.Generator", "gpucnn.manual_seed"], generators)
    | dict.fromkeys([f"gpucnn.{name}" for name in SCOPES], scoped)
    | {f"nn.{kind}": layer(kind, op) for kind, op in LAYERS.items()}
    | dict.fromkeys(["nn.BatchNorm1d", "nn.BatchNorm2d"], layer("BatchNorm", "batch_norm"))
    | dict.fromkeys(["nn.InstanceNorm1d", "nn.InstanceNorm2d"], layer("InstanceNorm", "instance_norm"))
    | {f"nn.init.{name}": initialiser(name) for name in INITIALISERS}
    | {f"nn.models.{name}": network(name) for name in NETWORKS}
    | dict.fromkeys([f"nn.{name}" for name in ("Module", "Identity", "Parameter", "Buffer")], modules)
    | dict.fromkeys([f"nn.{name}" for name in ("Sequential", "ModuleList", "ModuleDict", "ParameterList")], modules)
    | dict.fromkeys([f"train.{name}" for name in ("evaluate", "fit", "predict")], learning)
    | dict.fromkeys([f"attribution.{name}" for name in ("grad_cam", "occlusion", "saliency")], learning)
    | {f"nn.{kind.__name__}": dropped(kind) for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d)}
    | {f"nn.{kind}Pad{n}d": padding(f"{kind}Pad{n}d") for n in (1, 2) for kind in PADS}
    | {f"optim.{name}": optimizer(name) for name in ("SGD", "Adam", "AdamW", "RMSprop")}
    | {f"optim.{name}": clipped(name) for name in ("clip_grad_norm_", "clip_grad_value_")}
    | dict.fromkeys([f"optim.{name}" for name in SCHEDULES], schedules)
    | {"optim.ReduceLROnPlateau": plateaus}
    | {f"data.{name}": augmented(name) for name in AUGMENTATIONS}
    | {"data.Dataset": dataset, "data.Loader": loader, "data.to_float": to_float, "data.x_or_not_x": drawn_images}
    | dict.fromkeys([f"data.{name}" for name in ("split", "overlap", "check_disjoint")], split)
    | {"metrics.confusion_matrix": counted, "metrics.top_k_accuracy": top_k}
)

# The methods that the entry of their class calls.
METHODS_TOO = {
    "gpucnn.Generator": "manual_seed set_state state",
    "gpucnn.GradScaler": "found_inf get_scale is_enabled load_state_dict scale state_dict step unscale_ update",
    "data.Dataset": "channels height subset width",
    "data.Loader": "epoch",
    "nn.Module": "add_module apply buffers children cpu double eval explain float get_buffer get_parameter "
    "get_submodule load_state_dict modules named_buffers named_children named_modules named_parameters parameters "
    "register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook register_parameter "
    "requires_grad_ state_dict summary to train zero_grad",
    "optim.Adam": "load_state_dict state_dict",
    "optim.WarmUp": "load_state_dict state_dict",
    "optim.ReduceLROnPlateau": "load_state_dict step",
}
ENTRIES |= {f"{kind}.{name}": ENTRIES[kind] for kind, names in METHODS_TOO.items() for name in names.split()}

# What is public and not called here, with all that is in it, by the reason.
NOT_CALLED = {
    name: reason
    for reason, names in {
        "attributes": "Tensor.array Tensor.backend",
        "only with a GPU, else it is refused; tests/nn/test_module.py": "Tensor.cuda nn.Module.cuda",
        "only on CUDA; tests/test_interchange.py": "Tensor.__cuda_array_interface__",
        "not there, and say so; tests/nn/test_module.py": "Tensor.device Tensor.grad_fn Tensor.is_cuda "
        "Tensor.register_hook",
        "pickle's; tests/test_tensor.py": "Tensor.__reduce__",
        "None, so that NumPy leaves operators to Tensor": "Tensor.__array_ufunc__",
        "of the identity": "Tensor.__hash__",
        "made by the functions above; its methods are called one by one": "gpucnn.Tensor",
        "takes nothing": "gpucnn.available_backends gpucnn.is_autocast_enabled gpucnn.is_grad_enabled gpucnn.no_grad "
        "gpucnn.enable_grad gpucnn.inference_mode data.available",
        "takes what is true or false; tests/test_autograd.py": "gpucnn.set_grad_enabled",
        "an exception": "gpucnn.OutOfMemoryError",
        "of the whole process; tests/test_out_of_memory.py": "gpucnn.set_memory_limit",
        "takes a function; tests/test_graph.py": "gpucnn.compile",
        "what others call, with numbers of their own": "gpucnn.Generator.reserve data.Normalize.check_channels "
        "data.RandomAffine.matrices " + " ".join(f"optim.{name}.lr_at" for name in SCHEDULES),
        "abstract": "optim.Optimizer optim.LRScheduler",
        "become the layers without Lazy: tests/nn/test_lazy.py": " ".join(
            f"nn.{name}" for name in nn.__all__ if name.startswith("Lazy")
        ),
        "classes of the user's: tests/data/test_lazy_images.py": "data.LazyImages",
        "files: tests/data/test_pictures.py": "data.PictureFiles data.has_test_images",
        "records": "attribution.Attribution data.Source nn.Summary",
        "records, made by train.evaluate; tests/test_metrics.py": "metrics",
        "files: bench/fuzz.py": "checkpoint data.load data.read_idx data.read_image data.read_image_folder onnx "
        "nn.Module.from_pretrained",
        "files: tests/test_pretrained.py": "nn.Module.save_pretrained",
        "ResNet with other numbers": "nn.models.resnet18 nn.models.resnet50",
        "scikit-learn's own checks of odd arguments: tests/test_sklearn.py": "sklearn",
        "callbacks and records: tests/test_train.py": "train",
        "pictures: tests/test_viz.py": "viz",
    }.items()
    for name in names.split()
}
OF_MODULES = {"extra_repr", "forward", "multiply_adds"}  # which a call of the module, repr and summary call


def not_imported() -> set[str]:
    """Modules of gpucnn of which nothing is called."""
    return {name for name in gpucnn._LAZY if not any(entry.startswith(f"{name}.") for entry in ENTRIES)}


def exported(home: types.ModuleType = gpucnn) -> list[types.ModuleType]:
    """The module, and those that it exports, and those that they do."""
    names = {*getattr(home, "__all__", ()), *getattr(home, "_LAZY", ())} - not_imported()
    values = [getattr(home, name) for name in sorted(names)]
    return [home, *(inner for v in values if isinstance(v, types.ModuleType) for inner in exported(v))]


def public() -> set[str]:
    """The names of everything that a user may call: functions, classes, and their methods and properties."""
    found = not_imported()
    for home in [*exported(), metrics]:
        names = getattr(home, "__all__", None) or [
            name for name, value in vars(home).items()
            if getattr(value, "__module__", "") == home.__name__ and not name.startswith("_")
        ]  # fmt: skip
        for name in names:
            value, full = getattr(home, name), f"{home.__name__.removeprefix('gpucnn.')}.{name}"
            found |= {full} if callable(value) else set()
            if isinstance(value, type) and value is not Tensor:
                methods = {key for key, made in vars(value).items() if callable(made) or isinstance(made, PROPERTIES)}
                methods -= OF_MODULES if issubclass(value, nn.Module) else set()
                found |= {f"{full}.{method}" for method in methods if not method.startswith("_")}
    plumbing = {"__class__", "__doc__", "__init__", "__module__", "__slots__", "__weakref__"}
    plumbing |= {"__firstlineno__", "__static_attributes__"}  # of Python 3.13 and later
    methods = {name for name in vars(Tensor) if name not in plumbing}
    shown = {name for name in methods if not name.startswith("_") or name.startswith("__") or name == "_repr_html_"}
    return found | {f"Tensor.{name}" for name in shown}


PROPERTIES = (property, classmethod, staticmethod)


def left_out(name: str) -> str | None:
    """What of NOT_CALLED says why the name is not called."""
    return next((key for key in NOT_CALLED if name not in ENTRIES and f"{name}.".startswith(f"{key}.")), None)


def tried(
    name: str,
    backend: str,
    calls: int,
    seed: int,
    note: Callable[[str], None] = lambda text: None,
    simplest: bool = True,
) -> tuple[int, int, str]:
    """(calls, how many were refused, what is wrong: the simplest call that hypothesis finds, or the first)."""
    entry, found, error = ENTRIES[name], Counter[str](), ""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=calls, database=None, deadline=None, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck), verbosity=hypothesis.Verbosity.quiet, print_blob=False,
        phases=[hypothesis.Phase.generate] + [hypothesis.Phase.shrink] * simplest,
    )  # fmt: skip
    @hypothesis.given(st.data())
    def run(drawn: st.DataObject) -> None:
        last: list[str] = []

        def kept(text: str) -> None:
            last.append(text)
            note(text)

        trial = Trial(drawn.draw, backend, kept)
        found["calls"] += 1
        try:
            with warnings.catch_warnings(), gpucnn.use_backend(backend):
                warnings.simplefilter("error")
                entry(trial)
        except (Exception, TooLong) as wrong:
            said = (
                str(wrong) if isinstance(wrong, Finding) else f"{type(wrong).__name__} of {refused_by(wrong)}: {wrong}"
            )
            raise Finding(f"{said}\n    {last[-1] if last else ''}") from wrong
        found["refused"] += trial.refused

    try:
        run()
    except Finding as wrong:
        error = str(wrong)
    return found["calls"], found["refused"], error


class TooLong(BaseException):
    pass


def too_long(number: int, frame: Any) -> None:
    raise TooLong(f"took more than {SECONDS} s")


def child(pipe: Any, name: str, backend: str, calls: int, seed: int) -> None:
    """Sends each call before it is made, and at the end what `tried` says."""
    signal.signal(signal.SIGALRM, too_long)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    most = now + MEMORY * (1 if backend == "numpy" else 2)  # the compiler's, and stacks of an emulated block's threads
    resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def note(text: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, SECONDS * (1 if backend == "numpy" else 5))
        pipe.send(("at", text))

    try:
        found = tried(name, backend, calls, seed, note)
    except BaseException as error:  # of the script itself
        found = (0, 0, f"the script failed: {type(error).__name__}: {error}")
        if not isinstance(error, Exception):
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    pipe.send(("end", found))


def in_a_process(name: str, backend: str, calls: int, seed: int) -> tuple[int, int, str]:
    """`tried`; a process that ends is a finding."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(there, name, backend, calls, seed))
    process.start()
    there.close()
    last = ""
    try:
        while (message := here.recv())[0] == "at":
            last = message[1]
        found: tuple[int, int, str] = message[1]
    except EOFError:
        process.join()
        found = (0, 0, f"the process ended with {process.exitcode}\n    {last}")
    process.join()
    here.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=300, help="calls of each function (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--backend", default="numpy", help="(default: numpy)")
    parser.add_argument("--only", nargs="+", default=[], help="functions of these names")
    chosen = parser.parse_args()
    wanted = [name for name in ENTRIES if not chosen.only or name in chosen.only or name.split(".")[-1] in chosen.only]
    together = {id(ENTRIES[name]): name for name in reversed(wanted)}  # several names may share an entry
    start, calls, refused, wrong = time.perf_counter(), 0, 0, 0
    for name in reversed(together.values()):
        made, no, error = in_a_process(name, chosen.backend, chosen.calls, chosen.seed)
        calls, refused, wrong = calls + made, refused + no, wrong + bool(error)
        print(f"{name}: {made} calls, {no} refused{', ' + error if error else ''}", flush=True)
    print(f"{calls} calls for {len(wanted)} names, {refused} refused, {wrong} findings, "
          f"{time.perf_counter() - start:.0f} s")  # fmt: skip
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
