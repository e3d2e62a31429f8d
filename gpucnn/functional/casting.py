"""Which floating type an op computes in: `autocast` and its lists, and half tensors among float32 ones.

The lists are torch.autocast's for CUDA. Convolutions and products take their operands in the half type (`in_half`);
exp, log, powers, sums, norms, softmax and losses in float32 (`in_float32`); the rest computes in the type that it gets.
Outside of autocast, too, what is listed for float32 never computes in a half type: its result alone is rounded to one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from gpucnn.dtypes import HALVES, DType, float32, float64, is_floating, is_half, named
from gpucnn.tensor import Scoped, Tensor, record

P = ParamSpec("P")
R = TypeVar("R")


class _Scope:
    """One `autocast` block: its type, and the weights that were converted to it."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self._converted: dict[int, tuple[Tensor, Tensor]] = {}

    def lowered(self, value: Any) -> Any:
        """A floating tensor in the half type, unless it is float64; anything else as it is.

        A weight that is used again keeps its converted twin until a backward pass has gone through that.
        """
        if not isinstance(value, Tensor) or value.dtype == self.dtype:
            return value
        if not is_floating(value.dtype) or value.dtype == float64:
            return value
        kept = self._converted.get(id(value))
        if kept is not None and kept[1]._node is not None and kept[1]._node.edges:
            return kept[1]
        twin = converted(value, self.dtype)
        if value.is_leaf and twin.requires_grad:
            self._converted[id(value)] = (value, twin)  # the value too, so that its id stays its own
        return twin


_scope: ContextVar[_Scope | None] = ContextVar("gpucnn_autocast", default=None)


def autocast(dtype: Any = "float16", enabled: bool = True) -> Scoped[Any]:
    """Mixed precision inside a with block or a decorator: torch.autocast. For the forward pass and the loss alone.

    Convolutions and products of float32 tensors are computed in `dtype`, float16 or bfloat16, and return it; losses,
    softmax, sums, powers and layer or group norm in float32, whatever they get; elementwise ops, pooling and batch norm
    (whose statistics and parameters are float32) in the type they get. Weights stay float32, and so do their gradients.
    float16 needs a `GradScaler`. enabled=False ends it inside an outer block. Raises ValueError for another type.

    >>> with gpucnn.autocast("bfloat16"):
    ...     loss = F.cross_entropy(model(images), labels)
    >>> loss.backward()
    """
    chosen = named(dtype)
    if chosen.name not in HALVES:
        raise ValueError(f"autocast: dtype must be float16 or bfloat16, got {chosen}")
    return Scoped(_scope, lambda: _Scope(chosen) if enabled else None)


def is_autocast_enabled() -> bool:
    """True inside `autocast`."""
    return _scope.get() is not None


def converted(input: Tensor, dtype: DType) -> Tensor:
    """The tensor in another floating type; its gradient comes back in its own."""
    backend, source = input.backend, input.dtype
    if source == dtype:
        return input
    y = record(backend, backend.astype(input.array, dtype), (input, lambda dy: backend.astype(dy, source)))
    if y._node is not None and input._node is not None:
        y._node.squashed_by = input._node.squashed_by
    return y


def widened(value: Any) -> Any:
    """A half tensor in float32; anything else as it is."""
    return converted(value, float32) if isinstance(value, Tensor) and is_half(value.dtype) else value


def promoted(values: list[Any]) -> list[Any]:
    """Half tensors that meet float32, or each other's type, in float32, as PyTorch promotes them."""
    types = {value.dtype for value in values if isinstance(value, Tensor) and is_floating(value.dtype)}
    return [widened(value) for value in values] if len(types) > 1 and float64 not in types else values


def in_half(op: Callable[P, R]) -> Callable[P, R]:
    """An op that autocast computes in its half type."""

    @wraps(op)
    def cast(*args: P.args, **kwargs: P.kwargs) -> R:
        scope = _scope.get()
        if scope is None:
            return op(*args, **kwargs)
        lowered: dict[str, Any] = {name: scope.lowered(value) for name, value in kwargs.items()}
        return op(*map(scope.lowered, args), **lowered)

    return cast


def in_float32(op: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """An op that computes half tensors in float32. Autocast keeps that result; else it is rounded to their type."""
    return _wide(op, kept_by_autocast=True)


def through_float32(op: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """The same for an op that is on neither list of autocast: its result always has the type of what it got."""
    return _wide(op, kept_by_autocast=False)


def _wide(op: Callable[P, Tensor], kept_by_autocast: bool) -> Callable[P, Tensor]:
    @wraps(op)
    def cast(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        types = {v.dtype for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and is_floating(v.dtype)}
        if not any(map(is_half, types)):
            return op(*args, **kwargs)
        wide: dict[str, Any] = {name: widened(value) for name, value in kwargs.items()}
        y = op(*map(widened, args), **wide)
        if len(types) > 1 or (kept_by_autocast and is_autocast_enabled()):
            return y
        return converted(y, types.pop())

    return cast
