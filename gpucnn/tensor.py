"""Tensor, the tape that records gradients, and no_grad.

A Tensor is an array of some backend plus, where a gradient is wanted, a Node of the tape. A Node knows its parents and
the functions that carry a gradient to them (vector-Jacobian products); it holds arrays, never tensors, so there are no
cycles and memory is freed as `backward` goes.
"""

from __future__ import annotations

import builtins
import heapq
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar, Token
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np

from gpucnn.backends import Array, Backend, get_backend
from gpucnn.backends.base import storage_view
from gpucnn.dtypes import bfloat16, float16, float32, is_floating, is_half, named
from gpucnn.live import CaptureError, replaced

V = TypeVar("V")
Function = TypeVar("Function", bound=Callable[..., Any])
Vjp = Callable[[Array], Any]
Edge = tuple["Tensor | None | tuple[Tensor | None, ...]", Vjp]

_grad_enabled: ContextVar[bool] = ContextVar("gpucnn_grad_enabled", default=True)
_captured: ContextVar[Gradients | None] = ContextVar("gpucnn_captured_gradients", default=None)
_NO_ARRAY = np.dtype(np.bool_)  # stands for the type of a Python number
ADDS_UP = "backward() adds to gradients of an earlier call; call zero_grad() in the step"
_DTYPES = "float16, bfloat16, float32, float64, int8 … int64, uint8 or bool"


class Scoped(ContextDecorator, threading.local, Generic[V]):
    """The value of a variable inside a with block or a decorated function.

    It may be entered again and again, also inside itself; each thread has its own entries.
    """

    def __init__(self, variable: ContextVar[Any], value: Callable[[], V]) -> None:
        self._variable, self._value = variable, value
        self._entered: list[Token[Any]] = []

    def __enter__(self) -> V:
        value = self._value()
        self._entered.append(self._variable.set(value))
        return value

    def __exit__(self, *error: object) -> None:
        self._variable.reset(self._entered.pop())


@overload
def no_grad() -> Scoped[bool]: ...
@overload
def no_grad(function: Function) -> Function: ...
def no_grad(function: Any = None) -> Any:
    """Record nothing inside: a with block or a decorator. Saves the memory that a backward pass would need."""
    scope = Scoped(_grad_enabled, lambda: False)
    return scope if function is None else scope(function)


inference_mode = no_grad  # under the other name that PyTorch has for it


def enable_grad() -> Scoped[bool]:
    """Record inside, also where `no_grad` is around it."""
    return set_grad_enabled(True)


def set_grad_enabled(mode: bool) -> Scoped[bool]:
    """Record inside a with block or a decorated function, or do not, as `mode` says."""
    return Scoped(_grad_enabled, lambda: mode)


def is_grad_enabled() -> bool:
    """False inside `no_grad`."""
    return _grad_enabled.get()


class Gradients(dict["Node", Array]):
    """While a step is captured: the leaves that `backward` gives a gradient, and which."""

    def __init__(self) -> None:
        super().__init__()
        self.cleared: set[Node] = set()  # the leaves whose gradient the step forgets
        self._began = next(Node._count)

    def added_to(self) -> list[Node]:
        """The leaves whose gradients of an earlier call the step would add to: those from before it, not cleared."""
        return [node for node in self if node.order < self._began and node not in self.cleared]


@contextmanager
def capturing_gradients() -> Iterator[Gradients]:
    """Note the gradients of a step that is captured."""
    captured = Gradients()
    token = _captured.set(captured)
    try:
        yield captured
    finally:
        _captured.reset(token)


class Node:
    """One result on the tape. A leaf has no edges and keeps its gradient; another node has edges until `backward`."""

    __slots__ = ("backend", "edges", "gradient", "keeps_gradient", "order", "squashed_by")
    _count = itertools.count()

    def __init__(self, backend: Backend, edges: list[tuple[tuple[Node | None, ...], bool, Vjp]] | None) -> None:
        self.backend = backend
        self.edges = edges
        self.gradient: Array | None = None
        self.keeps_gradient = edges == []
        self.squashed_by = ""  # "softmax" or "sigmoid": a loss that takes logits warns of it
        self.order = next(self._count)  # a parent is always older than what was made of it

    def backward(self, seed: Array, retain_graph: bool) -> None:
        """Carry `seed`, the gradient of this node, to every leaf; iterative, so depth has no limit.

        The youngest node goes first, so that each node is left only when all that was made of it has paid in. Leaves
        are updated at the end: an error on the way changes no gradient.
        """
        with self.backend.in_a_row():
            arrived = self._walk(seed, retain_graph)
        owned, captured = {id(_owner(seed))}, _captured.get()
        for node, gradient in arrived:
            gradient = node.backend.contiguous(gradient)
            if id(_owner(gradient)) in owned:  # an op may hand one array to several parents; each leaf gets its own
                gradient = gradient.copy(order="K")
            if node.gradient is not None:
                if captured is not None and node not in captured:
                    raise CaptureError(ADDS_UP)
                total = in_storage_order(node.backend.xp.add, node.gradient, gradient)
                gradient = node.backend.xp.asarray(total)  # of two arrays without axes NumPy makes a number
            owned.add(id(_owner(gradient)))
            node.gradient = gradient
            if captured is not None:
                captured[node] = gradient

    def _walk(self, seed: Array, retain_graph: bool) -> list[tuple[Node, Array]]:
        """The nodes that keep their gradient, and that."""
        pending = {self: seed}
        heap = [(-self.order, self)]
        arrived: list[tuple[Node, Array]] = []
        while heap:
            node = heapq.heappop(heap)[1]
            gradient = pending.pop(node)
            if node.keeps_gradient:
                arrived.append((node, gradient))
            edges = node.edges
            if edges is None:
                raise RuntimeError(
                    "backward() came to a part of the graph that an earlier backward() has used and freed; "
                    "compute the forward pass again, or pass retain_graph=True to the first backward()"
                )
            if edges and not retain_graph:
                node.edges = None
            try:
                for parents, several, vjp in edges:
                    shares = vjp(gradient) if several else (vjp(gradient),)
                    for parent, share in zip(parents, shares, strict=True):
                        if parent is None:
                            continue
                        if parent in pending:
                            pending[parent] = in_storage_order(parent.backend.xp.add, pending[parent], share)
                        else:
                            pending[parent] = share
                            heapq.heappush(heap, (-parent.order, parent))
            except MemoryError as error:
                from gpucnn.memory import out_of_memory  # it knows modules

                raise out_of_memory(error, "backward pass", node=node, edges=edges, gradient=gradient) from None
        return arrived


def _owner(array: Array) -> Any:
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


def in_storage_order(function: Callable[..., Array], *operands: Any) -> Array:
    """function(*operands) for an elementwise function of arrays that broadcast (and Python numbers).

    With four axes it works on the [N,H,W,C] views: contiguous for arrays that are stored channels-last, and what comes
    out is channels-last too. (NumPy would keep the layout by itself, CuPy would not.)

    Half arrays become float32 for a function of several steps or with a number among its operands, so that only its
    result is rounded; a function of the array library of two half arrays does so by itself.
    """
    types = {a.dtype for a in operands if is_floating(getattr(a, "dtype", _NO_ARRAY))}
    plain = type(function).__name__ == "ufunc" and all(is_half(getattr(a, "dtype", _NO_ARRAY)) for a in operands)
    if any(map(is_half, types)) and not plain:
        wide = (a.astype(float32) if is_half(getattr(a, "dtype", _NO_ARRAY)) else a for a in operands)
        y = in_storage_order(function, *wide)
        with np.errstate(all="ignore"):
            return y.astype(types.pop()) if y.dtype == float32 and len(types) == 1 else y
    with np.errstate(all="ignore"):  # infinity and NaN are values, as in PyTorch
        if max((getattr(a, "ndim", 0) for a in operands), default=0) != 4:
            return function(*operands)
        return function(*(_channels_last_view(a) for a in operands)).transpose(0, 3, 1, 2)


def check_index(where: Any, shape: tuple[int, ...]) -> None:
    """Raises NumPy's IndexError if an array of the index is out of range; CuPy would wrap it around."""
    if any(isinstance(part, np.ndarray) for part in (where if isinstance(where, tuple) else (where,))):
        np.broadcast_to(np.int8(0), shape)[where]


def _channels_last_view(a: Any) -> Any:
    rank = getattr(a, "ndim", 0)
    if rank == 0:
        return a
    return a.reshape((1,) * (4 - rank) + a.shape).transpose(0, 2, 3, 1)


def record(backend: Backend, y: Array, *edges: Edge) -> Tensor:
    """The tensor for result `y`, and how a gradient dy goes back.

    Each edge is (parent, vjp) with vjp(dy) the parent's share, or (several parents, vjp) with a tuple of shares. Only
    parents that need a gradient are kept; a closure should hold arrays, not tensors.
    """
    if not isinstance(y, backend.xp.ndarray):
        y = backend.xp.asarray(y)
    result = Tensor(y, backend)
    if _grad_enabled.get():
        kept: list[tuple[tuple[Node | None, ...], bool, Vjp]] = []
        for parents, vjp in edges:
            several = isinstance(parents, tuple)
            nodes = tuple([None if p is None else p._node for p in (parents if several else (parents,))])  # type: ignore[union-attr]
            if any(nodes):
                kept.append((nodes, several, vjp))
        if kept:
            result._node = Node(backend, kept)
    return result


class Elsewhere:
    """A name of PyTorch's that is not here: asking for it is an AttributeError that says what takes its place."""

    def __init__(self, instead: str) -> None:
        self.instead = instead

    def __set_name__(self, owner: builtins.type, name: str) -> None:
        self.name = name

    def __get__(self, thing: object, owner: builtins.type) -> Any:
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}; {self.instead}")


class Tensor:
    """An n-dimensional array on a backend, with an optional gradient. Make one with `gpucnn.tensor`.

    Attributes: `array`, the backend's own array (numpy.ndarray or cupy.ndarray), and `backend`. Four axes are
    [N, C, H, W], stored channels-last.
    """

    __slots__ = ("__weakref__", "_leaf", "_node", "array", "backend")
    __array_ufunc__ = None  # numpy leaves `array * tensor` to Tensor.__rmul__

    def __init__(self, array: Array, backend: Backend, requires_grad: builtins.bool = False) -> None:
        if not hasattr(backend, "xp"):
            raise TypeError(
                f"Tensor takes an array and its backend, got {backend!r:.100}; use gpucnn.tensor() or empty()"
            )
        self.array = array
        self.backend = backend
        self._node: Node | None = None
        self._leaf: Node | None = None  # the node that a leaf has while it requires a gradient, and has again later
        if requires_grad:
            self.requires_grad = True

    device = Elsewhere("Tensor.backend says where it is, .to('cuda') moves it")
    is_cuda = Elsewhere("Tensor.backend says where it is, .to('cuda') moves it")
    grad_fn = Elsewhere("what made it is not shown; requires_grad says whether it is recorded")
    register_hook = Elsewhere(
        "retain_grad() keeps its gradient, and Module.register_full_backward_hook sees those of a module"
    )

    # -- what it is ------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[builtins.int, ...]:
        """The length of each axis."""
        shape: tuple[int, ...] = self.array.shape
        return shape

    @property
    def ndim(self) -> builtins.int:
        """The number of axes."""
        return len(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type, a numpy.dtype."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    def size(self, dim: builtins.int | None = None) -> Any:
        """The shape, or the length of axis `dim`."""
        return self.shape if dim is None else self.shape[validate.axis("size", dim, self.ndim)]

    def dim(self) -> builtins.int:
        """The number of axes."""
        return self.ndim

    def numel(self) -> builtins.int:
        """The number of elements."""
        return int(self.array.size)

    @property
    def requires_grad(self) -> builtins.bool:
        """Whether `backward` computes a gradient for this tensor or what it was made of."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: builtins.bool) -> None:
        if not self.is_leaf:
            raise RuntimeError("requires_grad can be set only on a leaf; use detach() to get one")
        if not value:
            self._node = None
        elif self._node is None:
            if not is_floating(self.dtype):
                raise RuntimeError(f"only a floating tensor can have a gradient, this one is {self.dtype}")
            self._leaf = self._leaf or Node(self.backend, [])
            self._node = self._leaf

    def requires_grad_(self, requires_grad: builtins.bool = True) -> Tensor:
        """Set requires_grad in place; returns self."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> builtins.bool:
        """Whether it was made by the user rather than by a recorded operation."""
        return self._node is None or self._node.edges == []

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward` calls have summed up here, for a leaf (or after retain_grad)."""
        if self._node is None or self._node.gradient is None:
            return None
        return Tensor(self._node.gradient, self.backend)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        node = self._node or self._leaf
        if value is not None:
            if self._node is None:
                raise RuntimeError("a tensor with requires_grad=False can't have a gradient")
            self._check_gradient(value)
        if node is not None:
            node.gradient = None if value is None else value.array
            if value is None and (captured := _captured.get()) is not None:
                captured.cleared.add(node)

    def retain_grad(self) -> None:
        """Keep this result's gradient in `grad`, as a leaf's is kept."""
        if self._node is None:
            raise RuntimeError("retain_grad() needs a tensor that requires a gradient")
        self._node.keeps_gradient = True

    def __repr__(self) -> str:
        values = np.array2string(self._plain(), separator=", ", precision=4, threshold=200, prefix="tensor(")
        dtype = "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype}"
        backend = "" if self.backend.name == "numpy" else f", backend={self.backend.name!r}"
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"tensor({values}{dtype}{backend}{grad})"

    def __format__(self, format_spec: str) -> str:
        """As its number if it has no axes: f"{loss:.3f}"."""
        return format(self.item(), format_spec) if self.ndim == 0 else super().__format__(format_spec)

    def _repr_html_(self) -> str:
        from gpucnn.notebook import tensor_html

        return tensor_html(self)

    def __len__(self) -> builtins.int:
        if not self.ndim:
            raise TypeError("len() of a tensor without axes")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> builtins.bool:
        if self.numel() != 1:
            raise ValueError(
                f"only a tensor of one element is true or false, this one has shape {self.shape}; ask for the sum(), "
                "amax() or amin() of a condition"
            )
        return bool(self.item())

    def __index__(self) -> builtins.int:
        if self.dtype.kind not in "iu" or self.numel() != 1:
            raise TypeError(f"only one integer is an index, this is {self.dtype} of shape {self.shape}")
        return int(self.item())

    def __float__(self) -> builtins.float:
        return builtins.float(self.item())

    def __int__(self) -> builtins.int:
        return int(self.item())

    # -- values out ------------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a numpy.ndarray; shares memory on the NumPy backend."""
        values: np.ndarray[Any, Any] = self.backend.to_numpy(self.array)
        return values

    def __array__(self, dtype: Any = None, copy: builtins.bool | None = None) -> np.ndarray[Any, Any]:
        """What numpy.asarray(tensor) calls; shares memory. As in PyTorch, a gradient or a GPU is not left silently."""
        if self.requires_grad:
            raise RuntimeError(
                "a tensor that requires a gradient does not become an array by itself; use tensor.detach() or "
                "tensor.numpy()"
            )
        if not isinstance(self.array, np.ndarray):
            raise TypeError(
                f"a tensor on {self.backend.name} does not become a numpy array by itself; copy it to the host with "
                "tensor.numpy() or tensor.to('numpy')"
            )
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[builtins.int, builtins.int] | None = None,
        dl_device: tuple[builtins.int, builtins.int] | None = None,
        copy: builtins.bool | None = None,
    ) -> Any:
        """This memory for another library: what from_dlpack of NumPy, CuPy, PyTorch and JAX calls (DLPack).

        Raises BufferError for a tensor that requires a gradient, and for what can't be exported as it is.
        """
        if self.requires_grad:
            raise BufferError("a tensor that requires a gradient can't be exported; use tensor.detach()")
        if self.dtype.kind == "V" and isinstance(self.array, np.ndarray):
            raise BufferError(f"an array of NumPy can't be exported as {self.dtype}; use tensor.float()")
        if any(stride < 0 for stride in self.array.strides):  # PyTorch would end the process
            raise BufferError(f"strides {self.array.strides} run backwards, PyTorch can't take it; use tensor.clone()")
        asked = {"stream": stream, "max_version": max_version, "dl_device": dl_device, "copy": copy}
        return self.array.__dlpack__(**{name: value for name, value in asked.items() if value is not None})

    def __dlpack_device__(self) -> tuple[builtins.int, builtins.int]:
        """(DLPack's number for the kind of memory, which of them): (1, 0) is the host, (2, i) is CUDA GPU i."""
        kind, number = self.array.__dlpack_device__()
        return int(kind), int(number)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """This memory for a library that takes arrays of a CUDA GPU, such as Numba; not there on other backends."""
        if isinstance(self.array, np.ndarray):
            raise AttributeError(f"a tensor on {self.backend.name} is in the host's memory; use tensor.to('cuda')")
        if self.requires_grad:
            raise RuntimeError("a tensor that requires a gradient can't be exported; use tensor.detach()")
        interface: dict[str, Any] = self.array.__cuda_array_interface__
        return interface

    def __reduce__(self) -> tuple[Any, ...]:
        """A leaf for pickle and joblib: its values and the name of its backend."""
        if not self.is_leaf:
            raise RuntimeError("only a leaf can be pickled; use detach() first")
        return _restored, (type(self), self.numpy(), self.backend.name, self.requires_grad)

    def _plain(self) -> np.ndarray[Any, Any]:
        """The values in a type whose elements Python knows."""
        values = self.numpy()
        return values if values.dtype.kind != "V" else values.astype(float32)

    def item(self) -> Any:
        """The value of a tensor of one element, as a Python number."""
        if self.numel() != 1:
            raise ValueError(f"item() needs a tensor of one element, this one has shape {self.shape}")
        return self._plain().item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self._plain().tolist()

    def detach(self) -> Tensor:
        """The same values without the history; shares memory."""
        return Tensor(self.array, self.backend)

    @property
    def data(self) -> Tensor:
        """detach(). What is assigned, of the same shape, takes the place of the values: with a tensor of the same type
        on the same backend this one shares its memory from then on."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor | np.ndarray[Any, Any]) -> None:
        given = value if isinstance(value, Tensor) else tensor(value, backend=self.backend)
        if given.shape != self.shape:
            raise ValueError(f"data: shape {given.shape} can't take the place of {self.shape}")
        self.array = self.backend.contiguous(given.detach().to(self.backend).to(self.dtype).array)
        replaced.arrays += 1

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """`gpucnn.tensor` of this tensor's dtype and backend, unless an option says another."""
        return tensor(data, **self._options(options))

    def new_full(self, size: Sequence[builtins.int], fill_value: builtins.float, **options: Any) -> Tensor:
        """`gpucnn.full` of this tensor's dtype and backend, unless an option says another."""
        from gpucnn.creation import full  # it makes tensors

        return full(size, fill_value, **self._options(options))

    def new_zeros(self, *size: Any, **options: Any) -> Tensor:
        """Zeros; see `new_full`."""
        return self.new_full(_size(size), 0, **options)

    def new_ones(self, *size: Any, **options: Any) -> Tensor:
        """Ones; see `new_full`."""
        return self.new_full(_size(size), 1, **options)

    def new_empty(self, *size: Any, **options: Any) -> Tensor:
        """Values that are still to come, until then zeros; see `new_full`."""
        return self.new_full(_size(size), 0, **options)

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"dtype": self.dtype, "backend": self.backend} | given

    def to(self, target: str | Backend | np.dtype[Any] | builtins.type) -> Tensor:
        """This tensor with another dtype ("float64", numpy.float32) or on another backend ("numpy", "cuda")."""
        return F.to(self, target)

    def cpu(self) -> Tensor:
        """`to` the backend "numpy"."""
        return F.to(self, "numpy")

    def cuda(self) -> Tensor:
        """`to` the backend "cuda"."""
        return F.to(self, "cuda")

    def type(self, dtype: str | np.dtype[Any] | builtins.type) -> Tensor:
        """`to` of an element type."""
        return F.to(self, named(dtype))

    def float(self) -> Tensor:
        """As float32."""
        return F.to(self, np.float32)

    def double(self) -> Tensor:
        """As float64."""
        return F.to(self, np.float64)

    def half(self) -> Tensor:
        """As float16."""
        return F.to(self, float16)

    def bfloat16(self) -> Tensor:
        """As bfloat16."""
        return F.to(self, bfloat16())

    def int(self) -> Tensor:
        """As int32."""
        return F.to(self, "int32")

    def bool(self) -> Tensor:
        """As bool: whether each element is other than 0."""
        return F.to(self, "bool")

    def long(self) -> Tensor:
        """As int64."""
        return F.to(self, np.int64)

    def copy_(self, source: Tensor | np.ndarray[Any, Any]) -> Self:
        """Overwrite the values in place, outside the tape; shapes must agree, dtype and backend stay. Returns self."""
        if not hasattr(source, "__array__"):  # PyTorch's tensors have it too
            raise TypeError(f"copy_: source must be a Tensor or a numpy.ndarray, got {type(source).__name__}")
        if not isinstance(source, Tensor):
            values = np.asarray(source)
            checked_dtype(values.dtype)
        else:
            values = source.array if source.backend is self.backend else source.numpy()
        if values.shape != self.shape:
            raise ValueError(f"copy_: can't copy shape {values.shape} into shape {self.shape}")
        with np.errstate(all="ignore"):  # what is too large becomes infinite
            self._writable(source)[...] = self.backend.asarray(values, self.dtype)
        return self

    def _writable(self, source: Any = None) -> Array:
        """The array, to be changed in place, with the values of `source`: the tape would not know of it."""
        if self.requires_grad and is_grad_enabled():
            raise RuntimeError("a tensor that requires a gradient can be changed in place only inside no_grad()")
        if isinstance(source, Tensor) and source.requires_grad and is_grad_enabled():
            raise RuntimeError(
                f"a value of shape {source.shape} that requires a gradient would lose it when it is written into "
                "another tensor; join the parts with stack() or cat(), or write value.detach()"
            )
        if not getattr(self.array.flags, "writeable", True):  # CuPy has no such arrays
            raise ValueError("this tensor shares the memory of a read-only array; change a clone() of it instead")
        self.backend.keep(self.array)
        return self.array

    def move_(self, target: str | Backend | np.dtype[Any] | builtins.type) -> Self:
        """`to` in place, for a leaf: if anything changes, its gradient is forgotten. A dtype changes a floating tensor
        only."""
        moved = self.detach().to(target)
        if is_floating(self.dtype) and not is_floating(moved.dtype):
            raise TypeError(f"move_: a {self.dtype} tensor can become float32 or float64, not {moved.dtype}")
        if moved.dtype == self.dtype and moved.backend is self.backend:
            return self
        requires_grad = self.requires_grad
        self.requires_grad, self._leaf = False, None
        if moved.dtype == self.dtype or is_floating(self.dtype):
            self.array, self.backend = moved.array, moved.backend
            replaced.arrays += 1
        self.requires_grad = requires_grad
        return self

    def __deepcopy__(self, memo: dict[builtins.int, Any]) -> Self:
        if not self.is_leaf:
            raise RuntimeError("only a leaf can be deep-copied; use detach() first")
        twin = type(self).__new__(type(self))
        Tensor.__init__(twin, self.array.copy(order="K"), self.backend, self.requires_grad)
        return twin

    # -- gradients -------------------------------------------------------------------------------------

    def backward(self, gradient: Tensor | None = None, retain_graph: builtins.bool = False) -> None:
        """Add d(self)/d(leaf) to the grad of every leaf that this tensor was made of.

        gradient: what to start with, of this tensor's shape; 1 by default, for a tensor of one element. The graph is
        freed on the way; a second backward through it is a RuntimeError unless the first had retain_graph=True.
        """
        if self._node is None:
            raise RuntimeError(
                "backward() needs a tensor that was computed from one with requires_grad=True, outside no_grad()"
            )
        if gradient is None:
            if self.numel() != 1:
                raise RuntimeError(
                    f"backward() without a gradient needs a tensor of one element, this one has shape {self.shape}; "
                    "reduce it with sum() or mean(), or pass a gradient of that shape"
                )
            seed = self.backend.xp.ones_like(self.array)
        else:
            self._check_gradient(gradient)
            seed = gradient.array
        try:
            with np.errstate(all="ignore"):
                self._node.backward(seed, retain_graph)
        except MemoryError as error:
            from gpucnn.memory import out_of_memory  # it knows modules

            raise out_of_memory(error, "backward pass") from None

    def _check_gradient(self, gradient: Any) -> None:
        if not isinstance(gradient, Tensor):
            raise TypeError(f"a gradient must be a Tensor, got {type(gradient).__name__}")
        if gradient.shape != self.shape or gradient.dtype != self.dtype:
            raise ValueError(
                f"the gradient is {gradient.dtype} of shape {gradient.shape}, "
                f"but the tensor is {self.dtype} of shape {self.shape}"
            )
        if gradient.backend is not self.backend:
            raise ValueError(
                f"the gradient is on {gradient.backend.name}, the tensor on {self.backend.name}; "
                f"use gradient.to({self.backend.name!r})"
            )

    # -- operators and methods: functional's, under PyTorch's names ------------------------------------

    def __add__(self, other: Any) -> Tensor:
        return F.add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return F.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return F.sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return F.mul(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return F.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return F.div(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return F.remainder(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return F.remainder(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return F.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return F.floor_divide(other, self)

    def __pow__(self, exponent: Any) -> Tensor:
        return F.pow(self, exponent)

    def __rpow__(self, base: Any) -> Tensor:
        return F.pow(base, self)

    def __iadd__(self, other: Any) -> Tensor:
        return self._updated(F.add, self.add_, other)

    def __isub__(self, other: Any) -> Tensor:
        return self._updated(F.sub, self.sub_, other)

    def __imul__(self, other: Any) -> Tensor:
        return self._updated(F.mul, self.mul_, other)

    def __itruediv__(self, other: Any) -> Tensor:
        return self._updated(F.div, self.div_, other)

    def _is_variable(self) -> builtins.bool:
        """Whether `x += 1` changes the tensor itself or is refused: a leaf that requires a gradient, a parameter, a
        buffer."""
        return self.is_leaf and self.requires_grad

    def _updated(self, function: Callable[..., Tensor], in_place: Callable[..., Self], other: Any) -> Tensor:
        """What `x += 1` makes of x: the result in x's memory; or the result itself, if the tape has recorded it."""
        if self._is_variable():
            return in_place(other)
        result = function(self, other)
        return result if result.requires_grad else self._overwritten("an in-place operator", result)

    def __neg__(self) -> Tensor:
        return F.neg(self)

    def __abs__(self) -> Tensor:
        return F.abs(self)

    def __matmul__(self, other: Tensor) -> Tensor:
        return F.matmul(self, other)

    def __and__(self, other: Any) -> Tensor:
        return F.bitwise_and(self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Tensor:
        return F.bitwise_or(self, other)

    __ror__ = __or__

    def __xor__(self, other: Any) -> Tensor:
        return F.bitwise_xor(self, other)

    __rxor__ = __xor__

    def __invert__(self) -> Tensor:
        return F.bitwise_not(self)

    def __eq__(self, other: object) -> Any:
        return NotImplemented if other is None else F.compare("equal", self, other)

    def __ne__(self, other: object) -> Any:
        return NotImplemented if other is None else F.compare("not_equal", self, other)

    def __lt__(self, other: Any) -> Tensor:
        return F.compare("less", self, other)

    def __le__(self, other: Any) -> Tensor:
        return F.compare("less_equal", self, other)

    def __gt__(self, other: Any) -> Tensor:
        return F.compare("greater", self, other)

    def __ge__(self, other: Any) -> Tensor:
        return F.compare("greater_equal", self, other)

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> Tensor:
        return F.index(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        array, where = self._writable(value), F.host_index(index)
        if isinstance(value, Tensor):
            validate.one_backend("__setitem__", self=self, value=value)
        try:
            values = value.array if isinstance(value, Tensor) else np.asarray(value)
        except ValueError:
            raise ValueError(f"__setitem__: {value!r:.100} is no array") from None
        if values.dtype.kind not in "iubfV":
            raise TypeError(f"__setitem__: a {self.dtype} tensor can't hold {value!r:.100}")
        try:
            check_index(where, self.shape)
            with np.errstate(all="ignore"):  # infinity and NaN are values, as in PyTorch
                array[where] = values
        except (IndexError, TypeError, ValueError, OverflowError) as error:
            kind = IndexError if isinstance(error, IndexError) else ValueError
            raise kind(
                f"__setitem__: {value!r:.100} can't be put at {index!r:.100} of a {self.dtype} tensor of shape "
                f"{self.shape}: {error}"
            ) from None

    # -- in place, outside the tape: a tensor that requires a gradient only inside no_grad() ---------------------------

    def _become(self, op: str, function: Callable[..., Tensor], *operands: Any) -> Self:
        """function(self, *operands) in this tensor's memory."""
        for operand in operands:
            self._writable(operand)
        with no_grad():
            result = function(self, *operands)
        return self._overwritten(op, result)

    def _overwritten(self, op: str, result: Tensor) -> Self:
        if result.shape != self.shape or (is_floating(result.dtype) and not is_floating(self.dtype)):
            raise ValueError(
                f"{op}: a {self.dtype} tensor of shape {self.shape} can't become {result.dtype} of shape {result.shape}"
            )
        with np.errstate(all="ignore"):  # what is too large becomes infinite
            self._writable()[...] = result.array
        return self

    def add_(self, other: Any, *, alpha: builtins.float = 1) -> Self:
        """self + alpha · other in place; returns self."""
        return self._become("add_", F.add, other if alpha == 1 else alpha * other)

    def sub_(self, other: Any, *, alpha: builtins.float = 1) -> Self:
        """self − alpha · other in place; returns self."""
        return self._become("sub_", F.sub, other if alpha == 1 else alpha * other)

    def mul_(self, other: Any) -> Self:
        """self · other in place; returns self."""
        return self._become("mul_", F.mul, other)

    def div_(self, other: Any) -> Self:
        """self / other in place; returns self."""
        return self._become("div_", F.div, other)

    def clamp_(self, min: builtins.float | None = None, max: builtins.float | None = None) -> Self:
        """`functional.clamp` in place; returns self."""
        return self._become("clamp_", F.clamp, min, max)

    def fill_(self, value: builtins.float) -> Self:
        """Every element `value`; returns self."""
        self[...] = value
        return self

    def zero_(self) -> Self:
        """Every element 0; returns self."""
        return self.fill_(0)

    # -- methods -------------------------------------------------------------------------------------------------------

    def matmul(self, other: Tensor) -> Tensor:
        """`functional.matmul`."""
        return F.matmul(self, other)

    def mm(self, mat2: Tensor) -> Tensor:
        """`functional.mm`."""
        return F.mm(self, mat2)

    def bmm(self, mat2: Tensor) -> Tensor:
        """`functional.bmm`."""
        return F.bmm(self, mat2)

    def add(self, other: Any) -> Tensor:
        """`functional.add`."""
        return F.add(self, other)

    def sub(self, other: Any) -> Tensor:
        """`functional.sub`."""
        return F.sub(self, other)

    def mul(self, other: Any) -> Tensor:
        """`functional.mul`."""
        return F.mul(self, other)

    def div(self, other: Any) -> Tensor:
        """`functional.div`."""
        return F.div(self, other)

    def neg(self) -> Tensor:
        """`functional.neg`."""
        return F.neg(self)

    def square(self) -> Tensor:
        """`functional.square`."""
        return F.square(self)

    def reciprocal(self) -> Tensor:
        """`functional.reciprocal`."""
        return F.reciprocal(self)

    def rsqrt(self) -> Tensor:
        """`functional.rsqrt`."""
        return F.rsqrt(self)

    def sign(self) -> Tensor:
        """`functional.sign`."""
        return F.sign(self)

    def floor(self) -> Tensor:
        """`functional.floor`."""
        return F.floor(self)

    def ceil(self) -> Tensor:
        """`functional.ceil`."""
        return F.ceil(self)

    def round(self) -> Tensor:
        """`functional.round`."""
        return F.round(self)

    def maximum(self, other: Tensor) -> Tensor:
        """`functional.maximum`."""
        return F.maximum(self, other)

    def minimum(self, other: Tensor) -> Tensor:
        """`functional.minimum`."""
        return F.minimum(self, other)

    def where(self, condition: Tensor, other: Any) -> Tensor:
        """This tensor where `condition` is true, else other: `functional.where`."""
        return F.where(condition, self, other)

    def masked_fill(self, mask: Tensor, value: builtins.float) -> Tensor:
        """`functional.masked_fill`."""
        return F.masked_fill(self, mask, value)

    def pow(self, exponent: Any) -> Tensor:
        """`functional.pow`."""
        return F.pow(self, exponent)

    def abs(self) -> Tensor:
        """`functional.abs`."""
        return F.abs(self)

    def exp(self) -> Tensor:
        """`functional.exp`."""
        return F.exp(self)

    def log(self) -> Tensor:
        """`functional.log`."""
        return F.log(self)

    def sqrt(self) -> Tensor:
        """`functional.sqrt`."""
        return F.sqrt(self)

    def clamp(self, min: builtins.float | None = None, max: builtins.float | None = None) -> Tensor:
        """`functional.clamp`."""
        return F.clamp(self, min, max)

    clip = clamp

    def relu(self) -> Tensor:
        """`functional.relu`."""
        return F.relu(self)

    def sigmoid(self) -> Tensor:
        """`functional.sigmoid`."""
        return F.sigmoid(self)

    def tanh(self) -> Tensor:
        """`functional.tanh`."""
        return F.tanh(self)

    def softmax(self, dim: builtins.int) -> Tensor:
        """`functional.softmax`."""
        return F.softmax(self, dim)

    def log_softmax(self, dim: builtins.int) -> Tensor:
        """`functional.log_softmax`."""
        return F.log_softmax(self, dim)

    def eq(self, other: Any) -> Tensor:
        """`functional.eq`."""
        return F.eq(self, other)

    def ne(self, other: Any) -> Tensor:
        """`functional.ne`."""
        return F.ne(self, other)

    def lt(self, other: Any) -> Tensor:
        """`functional.lt`."""
        return F.lt(self, other)

    def le(self, other: Any) -> Tensor:
        """`functional.le`."""
        return F.le(self, other)

    def gt(self, other: Any) -> Tensor:
        """`functional.gt`."""
        return F.gt(self, other)

    def ge(self, other: Any) -> Tensor:
        """`functional.ge`."""
        return F.ge(self, other)

    def isnan(self) -> Tensor:
        """`functional.isnan`."""
        return F.isnan(self)

    def isinf(self) -> Tensor:
        """`functional.isinf`."""
        return F.isinf(self)

    def isfinite(self) -> Tensor:
        """`functional.isfinite`."""
        return F.isfinite(self)

    def logical_not(self) -> Tensor:
        """`functional.logical_not`."""
        return F.logical_not(self)

    def logical_and(self, other: Tensor) -> Tensor:
        """`functional.logical_and`."""
        return F.logical_and(self, other)

    def logical_or(self, other: Tensor) -> Tensor:
        """`functional.logical_or`."""
        return F.logical_or(self, other)

    def logical_xor(self, other: Tensor) -> Tensor:
        """`functional.logical_xor`."""
        return F.logical_xor(self, other)

    def equal(self, other: Tensor) -> builtins.bool:
        """`functional.equal`."""
        return F.equal(self, other)

    def allclose(
        self,
        other: Tensor,
        rtol: builtins.float = 1e-05,
        atol: builtins.float = 1e-08,
        equal_nan: builtins.bool = False,
    ) -> builtins.bool:
        """`functional.allclose`."""
        return F.allclose(self, other, rtol, atol, equal_nan)

    def sum(self, dim: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """`functional.sum`."""
        return F.sum(self, dim, keepdim)

    def mean(self, dim: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """`functional.mean`."""
        return F.mean(self, dim, keepdim)

    def amax(self, dim: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """`functional.amax`."""
        return F.amax(self, dim, keepdim)

    def amin(self, dim: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """`functional.amin`."""
        return F.amin(self, dim, keepdim)

    def any(self, dim: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """`functional.any`."""
        return F.any(self, dim, keepdim)

    def all(self, dim: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """`functional.all`."""
        return F.all(self, dim, keepdim)

    def var(
        self,
        dim: builtins.int | Sequence[builtins.int] | None = None,
        *,
        correction: builtins.float = 1,
        keepdim: builtins.bool = False,
    ) -> Tensor:
        """`functional.var`."""
        return F.var(self, dim, correction=correction, keepdim=keepdim)

    def std(
        self,
        dim: builtins.int | Sequence[builtins.int] | None = None,
        *,
        correction: builtins.float = 1,
        keepdim: builtins.bool = False,
    ) -> Tensor:
        """`functional.std`."""
        return F.std(self, dim, correction=correction, keepdim=keepdim)

    def norm(
        self,
        p: builtins.float | str = "fro",
        dim: builtins.int | Sequence[builtins.int] | None = None,
        keepdim: builtins.bool = False,
    ) -> Tensor:
        """`functional.norm`."""
        return F.norm(self, p, dim, keepdim)

    def logsumexp(self, dim: builtins.int | Sequence[builtins.int], keepdim: builtins.bool = False) -> Tensor:
        """`functional.logsumexp`."""
        return F.logsumexp(self, dim, keepdim)

    def max(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Any:
        """`functional.max`."""
        return F.max(self, dim, keepdim)

    def min(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Any:
        """`functional.min`."""
        return F.min(self, dim, keepdim)

    def argmax(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Tensor:
        """`functional.argmax`."""
        return F.argmax(self, dim, keepdim)

    def argmin(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Tensor:
        """`functional.argmin`."""
        return F.argmin(self, dim, keepdim)

    def sort(self, dim: builtins.int = -1, descending: builtins.bool = False, stable: builtins.bool = False) -> Any:
        """`functional.sort`."""
        return F.sort(self, dim, descending, stable)

    def argsort(
        self, dim: builtins.int = -1, descending: builtins.bool = False, stable: builtins.bool = False
    ) -> Tensor:
        """`functional.argsort`."""
        return F.argsort(self, dim, descending, stable)

    def topk(
        self, k: builtins.int, dim: builtins.int = -1, largest: builtins.bool = True, sorted: builtins.bool = True
    ) -> Any:
        """`functional.topk`."""
        return F.topk(self, k, dim, largest, sorted)

    def gather(self, dim: builtins.int, index: Tensor) -> Tensor:
        """`functional.gather`."""
        return F.gather(self, dim, index)

    def index_select(self, dim: builtins.int, index: Tensor) -> Tensor:
        """`functional.index_select`."""
        return F.index_select(self, dim, index)

    def reshape(self, *shape: Any) -> Tensor:
        """`functional.reshape`."""
        return F.reshape(self, _size(shape))

    view = reshape  # a copy where the memory's order asks for one

    def contiguous(self) -> Tensor:
        """This tensor, or a copy if its elements do not lie in the usual order, which operations do not ask for."""
        return self if storage_view(self.array).flags.c_contiguous else F.reshape(self, self.shape)

    def split(self, split_size: builtins.int | Sequence[builtins.int], dim: builtins.int = 0) -> tuple[Tensor, ...]:
        """`functional.split`."""
        return F.split(self, split_size, dim)

    def chunk(self, chunks: builtins.int, dim: builtins.int = 0) -> tuple[Tensor, ...]:
        """`functional.chunk`."""
        return F.chunk(self, chunks, dim)

    def flatten(self, start_dim: builtins.int = 0, end_dim: builtins.int = -1) -> Tensor:
        """`functional.flatten`."""
        return F.flatten(self, start_dim, end_dim)

    def unflatten(self, dim: builtins.int, sizes: Sequence[builtins.int]) -> Tensor:
        """`functional.unflatten`."""
        return F.unflatten(self, dim, sizes)

    def permute(self, *dims: Any) -> Tensor:
        """`functional.permute`."""
        return F.permute(self, _size(dims))

    def transpose(self, dim0: builtins.int, dim1: builtins.int) -> Tensor:
        """`functional.transpose`."""
        return F.transpose(self, dim0, dim1)

    def squeeze(self, dim: builtins.int | None = None) -> Tensor:
        """`functional.squeeze`."""
        return F.squeeze(self, dim)

    def unsqueeze(self, dim: builtins.int) -> Tensor:
        """`functional.unsqueeze`."""
        return F.unsqueeze(self, dim)

    def expand(self, *shape: Any) -> Tensor:
        """`functional.expand`."""
        return F.expand(self, _size(shape))

    @property
    def T(self) -> Tensor:
        """A matrix transposed: `functional.t`."""
        return F.t(self)

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged."""
        return F.transpose(self, -2, -1)

    def t(self) -> Tensor:
        """`functional.t`."""
        return F.t(self)

    def flip(self, *dims: Any) -> Tensor:
        """`functional.flip`."""
        return F.flip(self, _size(dims))

    def tile(self, *dims: Any) -> Tensor:
        """`functional.tile`."""
        return F.tile(self, _size(dims))

    def repeat(self, *repeats: Any) -> Tensor:
        """`functional.tile`, with a number for each axis at least."""
        times = validate.integers("repeat", "repeats", _size(repeats))
        if len(times) < self.ndim:
            raise ValueError(f"repeat: needs a number for each axis of shape {self.shape}, got {times}")
        return F.tile(self, times)

    def sin(self) -> Tensor:
        """`functional.sin`."""
        return F.sin(self)

    def cos(self) -> Tensor:
        """`functional.cos`."""
        return F.cos(self)

    def log1p(self) -> Tensor:
        """`functional.log1p`."""
        return F.log1p(self)

    def log2(self) -> Tensor:
        """`functional.log2`."""
        return F.log2(self)

    def log10(self) -> Tensor:
        """`functional.log10`."""
        return F.log10(self)

    def expm1(self) -> Tensor:
        """`functional.expm1`."""
        return F.expm1(self)

    def remainder(self, other: Any) -> Tensor:
        """`functional.remainder`."""
        return F.remainder(self, other)

    def floor_divide(self, other: Any) -> Tensor:
        """`functional.floor_divide`."""
        return F.floor_divide(self, other)

    def lerp(self, end: Tensor, weight: builtins.float | Tensor) -> Tensor:
        """`functional.lerp`."""
        return F.lerp(self, end, weight)

    def outer(self, vec2: Tensor) -> Tensor:
        """`functional.outer`."""
        return F.outer(self, vec2)

    def cumsum(self, dim: builtins.int) -> Tensor:
        """`functional.cumsum`."""
        return F.cumsum(self, dim)

    def prod(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Tensor:
        """`functional.prod`."""
        return F.prod(self, dim, keepdim)

    def roll(
        self, shifts: builtins.int | Sequence[builtins.int], dims: builtins.int | Sequence[builtins.int] | None = None
    ) -> Tensor:
        """`functional.roll`."""
        return F.roll(self, shifts, dims)

    def movedim(
        self, source: builtins.int | Sequence[builtins.int], destination: builtins.int | Sequence[builtins.int]
    ) -> Tensor:
        """`functional.movedim`."""
        return F.movedim(self, source, destination)

    def repeat_interleave(self, repeats: builtins.int, dim: builtins.int | None = None) -> Tensor:
        """`functional.repeat_interleave`."""
        return F.repeat_interleave(self, repeats, dim)

    def tril(self, diagonal: builtins.int = 0) -> Tensor:
        """`functional.tril`."""
        return F.tril(self, diagonal)

    def triu(self, diagonal: builtins.int = 0) -> Tensor:
        """`functional.triu`."""
        return F.triu(self, diagonal)

    def masked_select(self, mask: Tensor) -> Tensor:
        """`functional.masked_select`."""
        return F.masked_select(self, mask)

    def nonzero(self) -> Tensor:
        """`functional.nonzero`."""
        return F.nonzero(self)

    def bincount(self, weights: Tensor | None = None, minlength: builtins.int = 0) -> Tensor:
        """`functional.bincount`."""
        return F.bincount(self, weights, minlength)

    def unique(
        self,
        sorted: builtins.bool = True,
        return_inverse: builtins.bool = False,
        return_counts: builtins.bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """`functional.unique`."""
        return F.unique(self, sorted, return_inverse, return_counts)

    def unbind(self, dim: builtins.int = 0) -> tuple[Tensor, ...]:
        """`functional.unbind`."""
        return F.unbind(self, dim)

    def view_as(self, other: Tensor) -> Tensor:
        """`functional.reshape` to the shape of `other`."""
        return F.reshape(self, other.shape)

    reshape_as = view_as

    def expand_as(self, other: Tensor) -> Tensor:
        """`functional.expand` to the shape of `other`."""
        return F.expand(self, other.shape)

    def clone(self) -> Tensor:
        """`functional.clone`."""
        return F.clone(self)


def zero_grad(tensors: Iterable[Tensor], set_to_none: bool) -> None:
    """Forget the gradients of these leaves, or make them zeros."""
    for leaf in tensors:
        if set_to_none:
            leaf.grad = None
        elif leaf.grad is not None:
            leaf.grad[...] = 0


def _restored(kind: type[Tensor], values: np.ndarray[Any, Any], backend: str, requires_grad: bool) -> Tensor:
    """The tensor that `Tensor.__reduce__` took apart."""
    tensor, on = kind.__new__(kind), get_backend(backend)
    Tensor.__init__(tensor, on.asarray(values), on, requires_grad)
    return tensor


def checked_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if not (is_floating(dtype) or dtype.kind in "iub") or not dtype.isnative:
        raise TypeError(f"a tensor can't hold {dtype}; convert it to {_DTYPES} first")
    return dtype


def tensor(data: Any, dtype: Any = None, requires_grad: bool = False, backend: str | Backend | None = None) -> Tensor:
    """A new tensor with a copy of `data`: a number, nested lists, a numpy array or a tensor.

    dtype: by default Python floats become float32, ints int64, and an array keeps its own. backend: the default backend
    if None. Raises TypeError for element types that no backend computes with, ValueError for ragged lists.
    """
    chosen = get_backend(backend)
    if isinstance(data, Tensor):
        data = data.numpy()
    try:
        source = np.asarray(data).dtype
        if source.kind == "c" or (source.kind == "V" and not is_floating(source)):  # else imaginary parts would be lost
            checked_dtype(source)
        if source.kind not in "iubfVc" and dtype is not None:  # else digits would become numbers, and None NaN
            raise ValueError(f"{data!r:.100} is no number")
        with np.errstate(all="ignore"):  # what a half type can not hold is infinite
            values = np.array(data, dtype=None if dtype is None else named(dtype))
        if dtype is None and values.dtype == np.float64 and not isinstance(data, np.ndarray | np.generic):
            values = values.astype(np.float32)
        checked_dtype(values.dtype)
        return Tensor(chosen.asarray(values), chosen, requires_grad)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"can't make a tensor of this data: {error}") from None
    except MemoryError as error:
        from gpucnn.memory import out_of_memory  # it knows modules

        raise out_of_memory(error, "making of a tensor", chosen) from None


def _size(size: tuple[Any, ...]) -> Sequence[int]:
    """(2, 3) from the arguments (2, 3) as well as from ((2, 3),)."""
    return size[0] if len(size) == 1 and isinstance(size[0], Sequence) else size


def checked_shape(size: Sequence[Any]) -> tuple[int, ...]:
    """The lengths as ints. Raises TypeError for what is none, ValueError for what no array can have."""
    shape = validate.integers("shape", "size", size)
    if any(length < 0 for length in shape):
        raise ValueError(f"a shape can't have a negative length, got {shape}")
    if math.prod(max(length, 1) for length in shape) >= 2**60 or len(shape) > 64:
        raise ValueError(f"there is no array of the shape {shape!s:.200}, it is too large")
    return shape


from gpucnn import functional as F  # noqa: E402  functional needs Tensor; Tensor's methods need functional
from gpucnn.functional import validate  # noqa: E402
