"""What is said when memory does not suffice, and a limit for the memory of a backend.

A failed allocation becomes an OutOfMemoryError where it leaves a module, a backward pass, an optimizer or `train`. As
long as nothing fails that costs nothing: no layer notes where it is, and what holds memory is found afterwards, among
the objects that Python's garbage collector knows.
"""

from __future__ import annotations

import gc
import math
import os
import re
import sys
import traceback
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends import Array, Backend, get_backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.functional.casting import is_autocast_enabled
from gpucnn.nn.module import Module, Parameter
from gpucnn.optim import Optimizer
from gpucnn.tensor import Node, Tensor, is_grad_enabled

__all__ = ["Holder", "OutOfMemoryError", "set_memory_limit"]

SHOWN = 3  # of the arrays that are saved for the backward pass, the largest
ROUNDING = 512  # bytes: CuPy asks for multiples of it
_WOULD_FIT = "what would fit:"

Edges = Sequence[tuple[tuple[Node | None, ...], bool, Any]]


class Holder(NamedTuple):
    """What holds memory: "parameters", "gradients", "moments", "saved for the backward pass" (one for each result of
    the tape, whose `name` is its op and layer), "the layer's input" or "other arrays"."""

    kind: str
    name: str
    bytes: int


class Asked(NamedTuple):
    """The array that did not fit: None stands for what is not known of it."""

    bytes: int | None
    shape: tuple[int, ...] | None
    dtype: np.dtype[Any] | None


class Room(NamedTuple):
    """The memory that did not suffice. `of_arrays`: whether what is in use are arrays of the backend alone."""

    name: str
    in_use: int | None
    limit: int | None
    kept: int = 0  # by the pool, for arrays to come
    of_arrays: bool = False


class OutOfMemoryError(MemoryError):
    """An array did not fit into memory. str() says where that was, what holds the memory, and what would help.

    phase: "forward pass", "backward pass", "optimizer's step", …; layer: its dotted name and class, or the op after it.
    bytes, shape, dtype: of the array, as far as they are known. in_use, limit: bytes of the memory, or None.
    holders: a list of `Holder`, largest first. fits: how many images would, an estimate; None without one.

    It refers to no array, and the frames that it has left are emptied: once it is caught, all that the failed step held
    is free again.
    """

    def __init__(self, phase: str, layer: str, asked: Asked, room: Room, holders: list[Holder], fits: int | None):
        super().__init__()
        self.phase, self.layer, self.holders, self.fits = phase, layer, holders, fits
        self.bytes, self.shape, self.dtype = asked
        self.in_use, self.limit = room.in_use, room.limit
        size = "an array" if asked.bytes is None else shown(asked.bytes)
        array = "" if asked.shape is None else f", {asked.dtype} of shape {asked.shape},"
        self.lines = [f"out of memory in the {phase}{f', {layer}' if layer else ''}: {size}{array} did not fit"]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def refine(self, batch: int, fits: int, source: str) -> None:
        """Put a better estimate in the place of the one that there is."""
        self.fits = max(0, min(batch - 1, fits))
        for i, line in enumerate(self.lines):
            if line.startswith(_WOULD_FIT):
                self.lines[i] = f"{_WOULD_FIT} about {self.fits} of the batch's {batch}: an estimate, from {source}"


def set_memory_limit(limit: int | None, backend: str | Backend | None = None) -> None:
    """Let the arrays of a backend take at most `limit` bytes; None takes the limit away.

    cuda: of CuPy's default pool, on the current GPU. emulator, ptx: of arrays made from then on. What is there already
    stays; what does not fit raises a MemoryError (`OutOfMemoryError` within a module and the like). backend: the
    default backend if None.

    Raises ValueError for a limit that is not positive, and for numpy, whose memory is that of the process.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ValueError(f"set_memory_limit: limit must be a positive number of bytes, or None, got {limit!r}")
    chosen = get_backend(backend)
    if not isinstance(chosen, KernelBackend):
        raise ValueError(
            f"set_memory_limit: {chosen.name} computes in the memory of the process, which gpucnn can't limit; `ulimit "
            "-v` before the start does, or resource.setrlimit(resource.RLIMIT_AS, …)"
        )
    chosen.device.set_memory_limit(limit)


# -- from an error to what it says -------------------------------------------------------------------


@contextmanager
def explained(phase: str, backend: Backend) -> Iterator[None]:
    """A MemoryError leaves this block as an OutOfMemoryError."""
    try:
        yield
    except MemoryError as error:
        raise out_of_memory(error, phase, backend) from None


def out_of_memory(
    error: MemoryError,
    phase: str,
    backend: Backend | None = None,
    module: Module | None = None,
    inputs: Sequence[Any] = (),
    node: Node | None = None,
    edges: Edges = (),
    gradient: Array | None = None,
) -> OutOfMemoryError:
    """What to raise instead of this error; the same one, if it is one already.

    module, inputs: where it was, forward. node, edges, gradient: where it was, backward. backend: where it was neither.
    The frames that the error has left are emptied, since they and the traceback would keep what they refer to for as
    long as somebody looks at the error.
    """
    if isinstance(error, OutOfMemoryError):
        said = error
    else:
        input = next((x for x in inputs if isinstance(x, Tensor)), None)
        on = node.backend if node is not None else input.backend if input is not None else backend or get_backend()
        try:
            said = _explained(error, _Site(phase, on, module, input, node, edges, gradient))
        except MemoryError:  # it was no large array that did not fit
            said = OutOfMemoryError(phase, "", Asked(None, None, None), Room("memory", None, None), [], None)
        said.__traceback__ = error.__traceback__
    traceback.clear_frames(said.__traceback__)
    return said


class _Site(NamedTuple):
    """Where an error was: in a module, or at a node of the tape, or at neither."""

    phase: str
    backend: Backend
    module: Module | None
    input: Tensor | None
    node: Node | None
    edges: Edges
    gradient: Array | None

    @property
    def learns(self) -> bool:
        """Whether a gradient is computed, or will be."""
        return is_grad_enabled() and self.phase in ("forward pass", "backward pass")


def _explained(error: MemoryError, site: _Site) -> OutOfMemoryError:
    names, optimizers = _Names(_living(Module)), _living(Optimizer)
    asked, room = _asked(error), room_of(site.backend, error)
    held = _Held(site, names, optimizers, room)
    to_come = _to_come(names, optimizers, site.backend) if site.learns else []
    # the array that did not fit grows with the batch, but for the gradient of a parameter
    of_batch = held.of_batch + (0 if site.node is not None and asked.bytes in to_come else asked.bytes or 0)
    fits = None
    if held.batch and of_batch and room.in_use is not None and room.limit is not None:
        fixed = room.in_use - held.of_batch + sum(to_come)
        fits = max(0, min(held.batch - 1, (room.limit - fixed) * held.batch // of_batch))

    said = OutOfMemoryError(site.phase, names.of_site(site, error), asked, room, held.holders, fits)
    for what, given in (("input", site.input), ("gradient", site.gradient)):
        if given is not None:
            said.lines[0] += f"; the {what} is {given.dtype} of shape {given.shape}"
    if room.in_use is not None:
        limit = "" if room.limit is None else f" of {shown(room.limit)}"
        kept = f"; {shown(room.kept)} are kept by the pool for arrays to come" if room.kept else ""
        said.lines.append(f"in use: {shown(room.in_use)}{limit}, {room.name}{kept}")
    if held.holders:
        said.lines.append(f"held by: {_summed(held.holders)}")
    if fits is not None:
        said.lines.append(_estimate(fits, held.batch, of_batch // held.batch, site))
    said.lines.append(f"what helps: {_remedies(bool(held.batch), site)}")
    return said


def _function(left: TracebackType | None) -> str:
    """The innermost function or loader that an error has left, where it was outside of all modules."""
    found = ""
    for frame, _ in traceback.walk_tb(left):
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(("gpucnn.functional.", "gpucnn.data.")):
            found = f"{frame.f_code.co_name} of {module}"
    return found


def _asked(error: MemoryError) -> Asked:
    """NumPy's error knows the array. CuPy's knows the bytes alone; the array is found where a kernel was to fill it."""
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    if shape is not None and dtype is not None:
        return Asked(math.prod(shape) * dtype.itemsize, tuple(shape), dtype)
    match = re.search(r"allocating ([\d,]+) bytes", str(error))
    if match is None:
        return Asked(None, None, None)
    size = int(match[1].replace(",", ""))
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is KernelBackend._empty.__code__:  # the only frames whose variables are looked at: no arrays
            shape, dtype = tuple(map(int, frame.f_locals["shape"])), np.dtype(frame.f_locals["dtype"])
            if 0 <= size - math.prod(shape) * dtype.itemsize < ROUNDING:
                return Asked(math.prod(shape) * dtype.itemsize, shape, dtype)
    return Asked(size, None, None)


def room_of(backend: Backend, error: MemoryError | None = None) -> Room:
    """The memory of a backend; of the host, if it was NumPy that raised this error."""
    report = backend.device.memory_report() if isinstance(backend, KernelBackend) else {}
    if report and not hasattr(error, "dtype"):
        limit = report.get("limit")
        total = report["held"] + report.get("free", 0) if limit is None else limit
        name = f"memory of {backend.name}" + ("" if limit is None else ", limited by set_memory_limit")
        return Room(name, report["used"], total, report["held"] - report["used"], True)
    if sys.platform == "linux":
        import resource

        page = os.sysconf("SC_PAGE_SIZE")
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * page
            return Room("address space of the process, limited by ulimit -v (RLIMIT_AS)", used, limit)
        available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        if available is not None:
            total = os.sysconf("SC_PHYS_PAGES") * page
            return Room("memory of this machine", total - int(available[1]) * 1024, total)
    return Room("memory", None, None)


# -- what holds memory -------------------------------------------------------------------------------


def _living(kind: Any) -> list[Any]:
    """All objects of that class and those below it."""
    known = gc.get_objects()
    kinds = {each for each in set(map(type, known)) if kind in each.__mro__}
    return [each for each in known if type(each) in kinds]


class _Count:
    """Bytes of an array's memory, when it is met for the first time. `largest`: of those met so far; `longest`: its
    first axis."""

    def __init__(self, backend: Backend) -> None:
        self._kind, self._seen = backend.xp.ndarray, set[int]()
        self.longest = self.largest = 0

    def __call__(self, array: Any) -> int:
        if not isinstance(array, self._kind):
            return 0
        owner: Any = array
        while isinstance(getattr(owner, "base", None), np.ndarray | self._kind):
            owner = owner.base
        size = 0 if id(owner) in self._seen else int(owner.nbytes)
        self._seen.add(id(owner))
        if array.ndim > 1 and size > self.largest:
            self.largest, self.longest = size, array.shape[0]
        return size


class _Held:
    """What holds memory of a backend. `batch`: of how many images, as far as that can be told; `of_batch`: bytes of
    what grows with them."""

    def __init__(self, site: _Site, names: _Names, optimizers: list[Optimizer], room: Room) -> None:
        nodes = sorted((n for n in _living(Node) if n.backend is site.backend), key=lambda n: n.order)
        count = _Count(site.backend)
        fixed = [
            Holder("parameters", "", sum(count(t.array) for t in names.tensors if t.backend is site.backend)),
            Holder("gradients", "", sum(count(n.gradient) for n in nodes if n.edges == [])),
            Holder("moments", "", sum(map(count, _moments(optimizers, site.backend)))),
        ]
        count.longest = count.largest = 0  # from here on, of arrays that have an axis for the batch
        growing = [
            Holder("saved for the backward pass", names.of_node(n, n.edges), sum(map(count, _held_by(n.edges))))
            for n in nodes
            if n.edges
        ]
        if site.input is not None:
            growing.append(Holder("the layer's input", "", count(site.input.array)))
        if room.of_arrays and room.in_use is not None:
            others = room.in_use - sum(holder.bytes for holder in fixed + growing)
            growing.append(Holder("other arrays", "", max(0, others)))
        self.holders = sorted((holder for holder in fixed + growing if holder.bytes), key=lambda holder: -holder.bytes)
        self.of_batch = sum(holder.bytes for holder in growing)
        given = site.input if site.gradient is None else site.gradient
        self.batch: int = given.shape[0] if given is not None and given.ndim > 1 else 0
        if site.gradient is not None:
            self.batch = count.longest or self.batch  # what comes back to a weight has no axis for the batch


def _moments(optimizers: list[Optimizer], backend: Backend) -> Iterator[Array | None]:
    for optimizer in optimizers:
        for p, moments in zip(optimizer.params, optimizer._state, strict=True):
            if p.backend is backend:
                yield from moments.values()


def _held_by(edges: Edges) -> Iterator[Array]:
    """The arrays that functions of the tape hold, which they need to carry a gradient back."""
    waiting: list[Any] = [vjp for _, _, vjp in edges]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, Tensor):
            yield value.array
        elif hasattr(value, "nbytes"):
            yield value
        else:
            for cell in getattr(value, "__closure__", None) or ():
                try:
                    waiting.append(cell.cell_contents)
                except ValueError:  # a variable that was never set
                    continue


def _to_come(names: _Names, optimizers: list[Optimizer], backend: Backend) -> list[int]:
    """Bytes of each gradient and moment that the step will still make."""
    learned = {id(p): p for p in names.tensors if p.requires_grad and p.backend is backend}
    gradients = [p.array.nbytes for p in learned.values() if p.grad is None]
    return gradients + [size for o in optimizers for size in moments_to_come(o) if o.params[0].backend is backend]


def moments_to_come(optimizer: Optimizer) -> list[int]:
    """Bytes of each moment that the next step will make."""
    states = zip(optimizer.params, optimizer._state, strict=True)
    return [p.array.nbytes for p, state in states for value in state.values() if value is None and p.requires_grad]


def free_bytes(backend: Backend) -> int | None:
    """How many bytes arrays of this backend can still take, as far as that is known."""
    room = room_of(backend)
    return None if room.limit is None or room.in_use is None else room.limit - room.in_use


def peak_bytes(function: Callable[[], object], backend: Backend) -> int:
    """The most bytes that what `function` makes takes at a time."""
    if isinstance(backend, KernelBackend):
        with backend.device.measure() as arena:
            function()
        return arena.peak + arena.constant_bytes  # the latter were handed over by the host
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class _Names:
    """Dotted names of modules, and which of them a node of the tape belongs to."""

    def __init__(self, modules: list[Module]) -> None:
        inner = {id(child) for module in modules for child in module.children()}
        roots = [module for module in modules if id(module) not in inner] or modules
        self._of_module: dict[int, str] = {}
        self._of_leaf: dict[int, str] = {}
        self.tensors: list[Tensor] = []
        for root in roots:
            for name, module in root.named_modules():
                kind = type(module).__name__
                self._of_module.setdefault(id(module), f"layer {name} ({kind})" if name else kind)
                for value in vars(module).values():
                    if isinstance(value, Tensor):
                        self.tensors.append(value)
                    if isinstance(value, Parameter) and value._node is not None:
                        self._of_leaf.setdefault(id(value._node), self._of_module[id(module)])

    def of_site(self, site: _Site, error: MemoryError) -> str:
        """ "layer features.3 (Conv2d)" in a module, the op as well at a node, else the function."""
        if site.node is not None:
            return self.of_node(site.node, site.edges)
        if site.module is not None:
            return self._of_module.get(id(site.module), type(site.module).__name__)
        return _function(error.__traceback__)

    def of_node(self, node: Node, edges: Edges) -> str:
        """ "conv2d in layer features.3 (Conv2d)"; "activation after …" of an op without parameters of its own."""
        op, place, level, seen = _op(edges), "in", [(node, edges)], set[int]()
        while level:
            parents = [p for _, each in level for group, _, _ in each for p in group if p is not None]
            for parent in parents:
                if id(parent) in self._of_leaf:
                    return f"{op} {place} {self._of_leaf[id(parent)]}"
            fresh = {id(p): p for p in parents if id(p) not in seen}
            seen |= fresh.keys()
            level = [(p, p.edges or ()) for p in fresh.values()]
            if not all(_op(each) == "converted" for _, each in level if each):  # a weight that autocast has lowered
                place = "after"
        return op


def _op(edges: Edges) -> str:
    """The name of the op that these edges lead back through: of the function that made theirs."""
    names = [str(getattr(vjp, "__qualname__", "")).split(".") for _, _, vjp in edges]
    return next((name[0].strip("_") for name in names if "<locals>" in name), "an op")


# -- words -------------------------------------------------------------------------------------------


def shown(size: int) -> str:
    """ "12.3 MiB" of a number of bytes."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"


def _summed(holders: list[Holder]) -> str:
    """Each kind with its bytes; of what is saved, the largest ones."""
    sums: dict[str, int] = {}
    for holder in holders:
        sums[holder.kind] = sums.get(holder.kind, 0) + holder.bytes
    parts = []
    for kind, size in sorted(sums.items(), key=lambda item: -item[1]):
        ones = [f"{shown(h.bytes)} by {h.name}" for h in holders if h.kind == kind and h.name]
        more = f" and {len(ones) - SHOWN} more" if len(ones) > SHOWN else ""
        parts.append(f"{kind} {shown(size)}" + (f" ({', '.join(ones[:SHOWN])}{more})" if ones else ""))
    return "; ".join(parts)


def _estimate(fits: int, batch: int, per_image: int, site: _Site) -> str:
    of = f"of the batch's {batch}, at {shown(per_image)} for each"
    if not site.learns or site.phase != "forward pass":
        return f"{_WOULD_FIT} about {fits} {of}: an estimate"
    return f"{_WOULD_FIT} at most {fits} {of} so far, an estimate: the layers behind and the backward pass need more"


def _remedies(batch: bool, site: _Site) -> str:
    found = []
    if batch:
        found.append("a smaller batch (batch_size=, --batch-size)")
    if site.learns and site.phase == "forward pass":
        found.append("no_grad() where nothing is learned")
    if site.learns and not is_autocast_enabled():
        found.append('autocast, or precision="bf16": half types take half of what is saved')
    if site.phase == "optimizer's step":
        found.append("an optimizer with fewer moments (Adam has two for each parameter, SGD at most one)")
    return "; ".join(found) or "a smaller batch or a smaller model"
