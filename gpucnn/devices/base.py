"""Device: compiles and launches kernels; and the typed launch, which checks every argument before it.

A kernel's parameter list is read from its source and is its contract. In kernels/*.cu each pointer carries its extent:

    extern "C" __global__ void bias_backward(
        const SCALAR* __restrict__ dy,  // [rows, channels]
        SCALAR* __restrict__ db,        // [channels]
        int rows, int channels)

`const` is read only, anything else is written: completely, unless its comment says "in place". "or null" admits None.
`SCALAR` is the type of numbers in memory, a constant; `Scalar` the one they are computed in: float for float16 and
bfloat16, else SCALAR itself. `RESULT`, too, is SCALAR unless it is a constant of its own.

Extents are made of integer parameters, -D constants and numbers, by + - * and / (rounded down).
`SCALAR* const* __restrict__ w,  // [tensors]` is a table: its argument is a list of arrays, and all tables of a launch
list arrays of the same sizes.

`const __grid_constant__ TensorMap<SCALAR> x,  // [N, H, W, C], by [TILE_M, 64]` is a map, how the copy engine of
sm_90 walks an array of that shape (tensor_map.py).
"""

from __future__ import annotations

import ast
import hashlib
import operator
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gpucnn import dtypes
from gpucnn.atomic import make_folder, replacing
from gpucnn.devices import tensor_map
from gpucnn.devices.graph import Arena, Graph
from gpucnn.devices.tensor_map import TensorMap
from gpucnn.geometry import Pixels
from gpucnn.live import CaptureError, Live

Constants = Mapping[str, int | float | str]
Dim = tuple[int, int, int]
T = TypeVar("T")

_TYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "int": np.dtype(np.int32),
    "unsigned int": np.dtype(np.uint32),
    "long long": np.dtype(np.int64),
    "unsigned long long": np.dtype(np.uint64),
    "unsigned char": np.dtype(np.uint8),
    "float16": np.dtype(np.float16),
}


class Specialisation(NamedTuple):
    """A kernel and the constants it is compiled with, as sorted pairs."""

    file: str
    name: str
    constants: tuple[tuple[str, int | float | str], ...]


class KernelError(RuntimeError):
    """A launch that can't be right, or a bug that a test instrument caught in a kernel."""


def kernel_folder() -> Path:
    """Where the .cu files are: in the installed package, else in the checkout."""
    installed = Path(__file__).parent.parent / "kernels"
    return installed if installed.is_dir() else Path(__file__).parent.parent.parent / "kernels"


def needed_architecture(code: str) -> str | None:
    """The one architecture that a kernel file is for, such as "sm_90a", if its header says so."""
    found = re.search(r"^// Needs +(sm_\d+a)$", code, re.MULTILINE)
    return found[1] if found else None


def cache_folder() -> Path:
    """Where what is compiled and measured is kept: GPUCNN_CACHE, or ~/.cache/gpucnn."""
    return Path(os.environ.get("GPUCNN_CACHE") or Path.home() / ".cache" / "gpucnn")


def kept(name: str, content: Iterable[str], make: Callable[[], bytes]) -> Path:
    """The file that holds what `make` gives for this content: made once, and kept in the cache.

    `name` is like "ptx/*.ptx", the star standing for a hash of the content.
    """
    path = cache_folder() / name.replace("*", hashlib.sha256("\0".join(content).encode()).hexdigest()[:32])
    if not path.exists():
        made = make()
        make_folder(path.parent, "GPUCNN_CACHE")
        with replacing(path) as temporary:
            temporary.write_bytes(made)
    return path


def hash_of_kernels(folder: Path) -> str:
    """Of all that is compiled in a folder of kernels."""
    content = hashlib.sha256()
    for path in sorted(folder.glob("*.cu*")):
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:16]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel. `extent` is None for a number."""

    name: str
    type: str
    extent: tuple[str, ...] | None = None
    constant: bool = False
    in_place: bool = False
    nullable: bool = False
    table: bool = False
    box: tuple[str, ...] | None = None  # of a map

    @property
    def written(self) -> bool:
        """Whether the kernel must write every element of it."""
        return self.extent is not None and not self.constant and not self.in_place


@dataclass(frozen=True)
class Signature:
    """A kernel's name and parameters, and how many threads its blocks may have, as its source declares them."""

    name: str
    parameters: tuple[Parameter, ...]
    most_threads: str = "1024"  # C++
    _bound: dict[tuple[tuple[str, Any], ...], Bound] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    @cache
    def of(cls, file: Path, name: str) -> Signature:
        """Read from the source. Raises KernelError if there is no such kernel, or a pointer without its extent."""
        found = re.search(
            rf'extern "C" __global__ void(?:\s+__launch_bounds__\(([^,)]*)[^)]*\))?\s+{name}\((.*?)\)\s*\{{',
            file.read_text("utf-8"),
            re.DOTALL,
        )
        if not found:
            raise KernelError(f"{file.name} has no kernel {name}")
        # A parameter's comment follows its comma, perhaps on the next line: put the comma behind it, then split.
        text = re.sub(r",\s*(//[^\n]*)", r" \1,", found[2])
        parts = [part for line in text.split("\n") for part in _split(line)]
        parameters = tuple(_parameter(name, part) for part in parts if part)
        return cls(name, parameters, found[1] or cls.most_threads)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(_shown(p) for p in self.parameters)})"

    def bound(self, constants: Constants) -> Bound:
        """With these constants put in; made once for each."""
        key = tuple(constants.items())
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = Bound(self, constants)
        return bound


@cache
def signature_of(folder: Path, file: str, name: str) -> Signature:
    """That of a kernel in a folder, looked up without making a Path for each launch."""
    return Signature.of(folder / file, name)


class Bound:
    """A signature with its constants put in. What every launch would find anew is found here.

    Raises KernelError for a type that no constant defines.
    """

    def __init__(self, signature: Signature, constants: Constants) -> None:
        self.signature = signature
        self.types = [self._type(p, constants) for p in signature.parameters]
        self._integers: list[tuple[int, Parameter, int, int]] = []
        self._reals: list[tuple[int, Parameter]] = []
        self._pointers: list[tuple[int, Parameter, np.dtype[Any]]] = []
        for i, (p, dtype) in enumerate(zip(signature.parameters, self.types, strict=True)):
            if p.extent is not None:
                self._pointers.append((i, p, dtype))
            elif dtype.kind in "iu":
                limits = np.iinfo(dtype)
                self._integers.append((i, p, int(limits.min), int(limits.max)))
            else:
                self._reals.append((i, p))
        # What each name in an extent is, of the arguments.
        self._names: dict[str, Length] = {n: _always(v) for n, v in constants.items() if isinstance(v, int)}
        self._names |= {p.name: operator.itemgetter(i) for i, p, _, _ in self._integers}
        self._undefined: dict[int, str] = {}  # of each pointer, the first name in its extent that nothing has
        self._extents = [self._lengths(i, p.extent or ()) for i, p, _ in self._pointers]
        self._boxes = {i: self._lengths(i, p.box) for i, p, _ in self._pointers if p.box}

    def _type(self, p: Parameter, constants: Constants) -> np.dtype[Any]:
        named = "SCALAR" if p.type == "Scalar" or (p.type == "RESULT" and "RESULT" not in constants) else p.type
        type_name = str(constants.get(named, p.type))
        if p.type == "Scalar" and type_name in dtypes.HALVES:
            type_name = "float"
        dtype = dtypes.bfloat16() if type_name == "bfloat16" else _TYPES.get(type_name)
        if dtype is None:
            raise self._wrong(f"{p.name} has the type {type_name}, which no constant defines")
        return dtype

    def _lengths(self, i: int, extent: tuple[str, ...]) -> list[Length]:
        try:
            return [_length(_parsed(length), self._names) for length in extent]
        except KeyError as error:
            self._undefined[i] = str(error)
            return []

    def _wrong(self, why: str) -> KernelError:
        return KernelError(f"{why}; the kernel is {self.signature}")

    def check(self, arguments: Sequence[Any], xp: ModuleType) -> None:
        """Raises KernelError, with the signature, for a wrong number, kind, dtype, size or stride."""
        if len(arguments) != len(self.types):
            raise self._wrong(f"{len(arguments)} arguments for {len(self.types)} parameters")
        for i, p, least, most in self._integers:
            number = arguments[i]
            if type(number) is not int:
                if not isinstance(number, np.integer):
                    raise self._wrong(f"{p.name} must be an int, got {type(number).__name__} {number!r}")
                arguments = [*arguments[:i], number := int(number), *arguments[i + 1 :]]  # so that no product overflows
            if not least <= number <= most:
                raise self._wrong(f"{p.name} = {number} does not fit {p.type}")
        for i, p in self._reals:
            if not isinstance(arguments[i], (int, float, np.floating)):
                raise self._wrong(f"{p.name} must be a number, got {type(arguments[i]).__name__}")
        listed: tuple[str, list[int]] | None = None
        for (i, p, dtype), extent in zip(self._pointers, self._extents, strict=True):
            a = arguments[i]
            if a is None and p.nullable:
                continue
            if i in self._undefined:
                raise self._wrong(f"the extent of {p.name}: {self._undefined[i]} is not defined")
            size = 1
            for length in extent:
                size *= length(arguments)
            if p.table:
                if not (isinstance(a, list) and len(a) == size):
                    raise self._wrong(f"{p.name} must be a list of {size} arrays, got {type(a).__name__} {a!r:.40}")
                for number, array in enumerate(a):
                    self._check_array(f"{p.name}[{number}]", array, dtype, xp)
                sizes = [array.size for array in a]
                listed = listed or (p.name, sizes)
                if sizes != listed[1]:
                    raise self._wrong(f"{p.name} lists arrays of sizes {sizes}, {listed[0]} of {listed[1]}")
                continue
            if i in self._boxes:
                shape, box = ([length(arguments) for length in lengths] for lengths in (extent, self._boxes[i]))
                if not isinstance(a, TensorMap):
                    raise self._wrong(f"{p.name} must be a TensorMap, got {type(a).__name__}")
                if ([*a.array.shape], [*a.box]) != (shape, box):
                    raise self._wrong(f"{p.name} must map {shape} by boxes of {box}, got {a.array.shape} by {a.box}")
                a = a.array
            self._check_array(p.name, a, dtype, xp)
            if a.size != size:
                shown = ", ".join(p.extent or ())
                raise self._wrong(f"{p.name} must have {size} elements [{shown}], got {a.size} {a.shape}")

    def _check_array(self, name: str, array: Any, dtype: np.dtype[Any], xp: ModuleType) -> None:
        if not isinstance(array, xp.ndarray):
            kind, wanted = type(array), xp.ndarray.__module__
            raise self._wrong(f"{name} must be a {wanted} array, got {kind.__module__}.{kind.__name__}")
        if array.dtype != dtype:
            raise self._wrong(f"{name} must be {dtype}, got {array.dtype}")
        if not array.flags.c_contiguous:
            raise self._wrong(f"{name} must be contiguous, got shape {array.shape} with strides {array.strides}")


Length = Callable[[Sequence[Any]], int]  # of an extent, as the arguments of a launch say

_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv}


@cache
def _parsed(extent: str) -> ast.expr:
    try:
        return ast.parse(extent, mode="eval").body
    except SyntaxError:
        return ast.Name(extent)


def _always(value: int) -> Length:
    return lambda arguments: value


def _length(extent: ast.expr, names: Mapping[str, Length]) -> Length:
    """What an extent of numbers, names and + - * / comes to. Raises KeyError for another name or operation."""
    if isinstance(extent, ast.Constant) and type(extent.value) is int:
        return _always(extent.value)
    if isinstance(extent, ast.BinOp) and type(extent.op) in _ARITHMETIC:
        operation = _ARITHMETIC[type(extent.op)]
        left, right = _length(extent.left, names), _length(extent.right, names)
        return lambda arguments: operation(left(arguments), right(arguments))
    return names[ast.unparse(extent)]


def _split(line: str) -> list[str]:
    code, _, comment = line.partition("//")
    parts = [part.strip() for part in code.split(",") if part.strip(" ,")]
    if comment and parts:
        parts[-1] += f" //{comment.rstrip(' ,')}"
    return parts


def _parameter(kernel: str, text: str) -> Parameter:
    code, _, comment = text.partition("//")
    extent, box = re.search(r"\[(.*?)\]", comment), re.search(r"\], by \[(.*?)\]", comment)
    mapped = re.fullmatch(r"const __grid_constant__ TensorMap<(\w+)> (\w+)", code.strip())
    if mapped:
        if not extent or not box:
            raise KernelError(
                f"{kernel}: the map {mapped[2]} needs its array and its boxes in a comment, for instance "
                "// [N, H, W, C], by [128, 64]"
            )
        return Parameter(mapped[2], mapped[1], _listed(extent[1]), constant=True, box=_listed(box[1]))
    match = re.fullmatch(r"(const )?([\w ]+?)\s*(\* const)?(\*)?\s*(?:__restrict__)?\s*(\w+)", code.strip())
    if not match:
        raise KernelError(f"{kernel}: can't read the parameter {code.strip()!r}")
    constant, type_name, table, pointer, name = match.groups()
    if not pointer:
        return Parameter(name, type_name)
    if not extent:
        raise KernelError(
            f"{kernel}: the pointer {name} needs its extent in a comment, for instance // [rows, channels]"
        )
    return Parameter(
        name, type_name, _listed(extent[1]), bool(constant), "in place" in comment,
        "or null" in comment, bool(table),
    )  # fmt: skip


def _listed(extent: str) -> tuple[str, ...]:
    return tuple(length.strip() for length in extent.split(","))


def _shown(p: Parameter) -> str:
    if p.box is not None and p.extent is not None:
        return f"TensorMap<{p.type}> {p.name}[{', '.join(p.extent)}] by [{', '.join(p.box)}]"
    return (
        f"{p.type} {p.name}"
        if p.extent is None
        else f"{'const ' * p.constant}{p.type}*{' const*' * p.table} {p.name}[{', '.join(p.extent)}]"
    )


# Of each thread, since others may compute on the same device meanwhile.
_measuring: ContextVar[Mapping[Device, Arena]] = ContextVar("gpucnn_measuring", default=MappingProxyType({}))
_capturing: ContextVar[Mapping[Device, Graph]] = ContextVar("gpucnn_capturing", default=MappingProxyType({}))


def _with(found: Mapping[Device, T], device: Device, value: T | None) -> dict[Device, T]:
    others = {other: its for other, its in found.items() if other is not device}
    return others if value is None else {**others, device: value}


class Device(ABC):
    """Allocates by `xp` and launches kernels of kernels/*.cu, each specialised by its constants (-D)."""

    name: str
    xp: ModuleType
    capability: tuple[int, int] | None = None  # the compute capability that kernels are chosen for; None for the oldest

    @abstractmethod
    def launch(self, file: str, name: str, constants: Constants, grid: Dim, block: Dim, *arguments: Any) -> None:
        """Check the arguments against the kernel's signature, compile it if need be, and start it."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all that was launched is done."""

    @abstractmethod
    def to_numpy(self, array: Any) -> np.ndarray[Any, Any]:
        """The array's values on the host, when what was launched before is done."""

    # What follows has an answer for every device; one that knows better overrides it.

    @property
    def identity(self) -> dict[str, str]:
        """What the times of kernels depend on: name, capability, kernels, and more. Empty if nothing takes time."""
        return {}

    def address(self, array: Any) -> int:
        """Where the array's memory begins."""
        return int(array.ctypes.data)

    def tensor_map(self, array: Any, box: tuple[int, ...], pixels: Pixels | None = None) -> TensorMap:
        """How a kernel for sm_90 walks a contiguous array: by boxes, or by `pixels` that a filter begins at.

        Raises ValueError for what the copy engine can't walk.
        """
        tensor_map.check(array, box, pixels, self.address(array))
        return TensorMap(array, box, pixels, self._encoded(array, box, pixels))

    def _encoded(self, array: Any, box: tuple[int, ...], pixels: Pixels | None) -> bytes:
        """The map as this device's kernels read it."""
        return tensor_map.described(array, box, pixels)

    def owns(self, data: object) -> bool:
        """Whether this is an array of the device."""
        return isinstance(data, self.xp.ndarray)

    def prepare(self, specialisations: Iterable[Specialisation]) -> Iterator[Specialisation]:
        """Compile these ahead of their first launch, and yield each when it is done. Compiles nothing by itself."""
        return iter(specialisations)

    def time(self, function: Callable[[], object]) -> float:
        """Seconds from the start of what `function` launches to its end."""
        self.synchronize()
        start = time.perf_counter()
        function()
        self.synchronize()
        return time.perf_counter() - start

    def memory_report(self) -> dict[str, int]:
        """Bytes by what they are; empty where the device has no memory of its own."""
        return {}

    def set_memory_limit(self, limit: int | None) -> None:
        """Let arrays take at most so many bytes: more are a MemoryError that gives the bytes asked for, as CuPy's."""
        raise ValueError(f"the device {self.name!r} can't limit its memory")

    # -- graphs: a device that can't capture leaves these as they are ------------------------------------

    @property
    def measuring(self) -> Arena | None:
        """What counts the memory now, in this thread."""
        return _measuring.get().get(self)

    @measuring.setter
    def measuring(self, arena: Arena | None) -> None:
        _measuring.set(_with(_measuring.get(), self, arena))

    @property
    def capturing(self) -> Graph | None:
        """What launches of this thread are noted in now, instead of being made."""
        return _capturing.get().get(self)

    @capturing.setter
    def capturing(self, graph: Graph | None) -> None:
        _capturing.set(_with(_capturing.get(), self, graph))

    def measure(self) -> AbstractContextManager[Arena]:
        """The block runs as it is, while the arena finds out how much memory its arrays need. Of the current thread.

        Raises CaptureError if the device can't capture.
        """
        raise CaptureError(f"the device {self.name!r} can't capture")

    def capture(self, measured: Arena) -> AbstractContextManager[Graph]:
        """Note what is launched in the block, instead of computing it; it gets as much memory as was measured.

        After the block the graph can be launched. An error inside leaves the device as it was. Raises CaptureError for
        what a graph can't hold: reading values, copies from the host, more memory than that.
        """
        raise CaptureError(f"the device {self.name!r} can't capture")

    def keep(self, arrays: Sequence[Any]) -> None:  # noqa: B027
        """While a graph is captured: these live as long as it. Nothing to do where what is noted refers to arrays, and
        not to their addresses."""

    def upload(self, values: np.ndarray[Any, Any]) -> Any:
        """A copy of host values on the device. A graph keeps it: what is computed from the host is computed once."""
        if self.capturing is not None:
            return self.capturing.constant(values)
        if self.measuring is not None:
            self.measuring.count_constant(values.nbytes)
        with self.outside_of_arena():
            return self.xp.asarray(values)

    def live(self, numbers: Live[Any], count: int, dtype: Any) -> Any:
        """An array of these `count` numbers on the device; each launch of a graph puts new ones into it."""
        if self.capturing is not None:
            return self.capturing.live(numbers, count, np.dtype(dtype))
        with self.outside_of_arena():
            return self.xp.asarray(np.array(numbers(), dtype))

    def outside_of_arena(self) -> AbstractContextManager[object]:
        """What is allocated inside is not counted by `measure`."""
        return nullcontext()
