"""What every op asks of its arguments, before any work starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, SupportsFloat

import numpy as np

from gpucnn.backends import Backend
from gpucnn.dtypes import is_floating
from gpucnn.tensor import Tensor

# What an op can do without; a weight of `rank` is none of these.
MAY_BE_NONE = {"weight", "bias", "running_mean", "running_var", "scale", "residual", "pos_weight"}


def kind(value: Any) -> str:
    """The name of its type; with the module where that would be taken for ours, as torch.Tensor."""
    found = type(value)
    return f"{found.__module__.partition('.')[0]}.{found.__name__}" if found.__name__ == "Tensor" else found.__name__


def _is_tensor(op: str, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a gpucnn.Tensor, got {kind(tensor)}; use gpucnn.tensor()")


def one_backend(op: str, **tensors: Tensor | None) -> Backend:
    """The backend that all tensors share. Raises TypeError for what is no tensor, ValueError for two backends."""
    backend: Backend | None = None
    first = ""
    for name, tensor in tensors.items():
        if tensor is None and name in MAY_BE_NONE:
            continue
        _is_tensor(op, name, tensor)
        assert tensor is not None
        if backend is None:
            backend, first = tensor.backend, name
        elif tensor.backend is not backend:
            raise ValueError(
                f"{op}: {first} is on {backend.name}, {name} on {tensor.backend.name}; "
                f"move one of them, for instance {name}.to({backend.name!r})"
            )
    if backend is None:
        raise TypeError(f"{op}: at least one operand must be a gpucnn.Tensor")
    if backend.capturing:
        backend.keep(*(tensor.array for tensor in tensors.values() if tensor is not None))
    return backend


def floating(op: str, **tensors: Tensor | None) -> Backend:
    """As `one_backend`, and all are floating with one dtype. Raises TypeError that shows the dtypes."""
    backend = one_backend(op, **tensors)
    given = {name: tensor.dtype for name, tensor in tensors.items() if tensor is not None}
    for name, dtype in given.items():
        if not is_floating(dtype):
            raise TypeError(f"{op}: {name} must be float32 or float64, got {dtype}; use {name}.float()")
    if len(set(given.values())) > 1:
        shown = ", ".join(f"{name} {dtype}" for name, dtype in given.items())
        raise TypeError(f"{op}: the tensors must have one dtype, got {shown}; convert with .float() or .double()")
    return backend


def rank(op: str, name: str, tensor: Tensor, ndim: int, axes: str) -> None:
    """Raises ValueError unless the tensor has `ndim` axes, TypeError for what is none."""
    _is_tensor(op, name, tensor)
    if tensor.ndim != ndim:
        hint = ""
        if name == "input" and (ndim, tensor.ndim) in ((4, 3), (3, 2)):
            hint = "; add the batch axis with unsqueeze(0)"
            hint += ", or that of the channels with unsqueeze(1)" if ndim == 3 else ""
        raise ValueError(f"{op}: {name} must have {ndim} axes {axes}, got shape {tensor.shape}{hint}")


def shape(op: str, name: str, tensor: Tensor | None, expected: tuple[int, ...], why: str) -> None:
    """Raises ValueError unless the tensor, if there is one, has exactly this shape."""
    if tensor is not None and tensor.shape != expected:
        raise ValueError(f"{op}: {name} must have shape {expected} ({why}), got {tensor.shape}")


def number(op: str, name: str, value: Any) -> float:
    """A number, also NumPy's or a tensor of one, as a float. Raises TypeError for anything else, such as its digits."""
    if type(value) is float:  # SupportsFloat takes a while to look at
        return value
    if not isinstance(value, SupportsFloat) or (isinstance(value, np.ndarray) and value.ndim):
        raise TypeError(f"{op}: {name} must be a number, got {value!r:.100}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{op}: {name} must be a number that a float can hold, got {value!r:.100}") from None


def integer(op: str, name: str, value: Any, least: int | None = None) -> int:
    """A whole number, also NumPy's. Raises TypeError for anything else, ValueError for one below `least`."""
    if not isinstance(value, Integral):
        raise TypeError(f"{op}: {name} must be an int, got {value!r:.100}")
    if least is not None and value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    return int(value)


def integers(op: str, name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Whole numbers, also NumPy's. Raises TypeError for anything else, ValueError for one that no axis can have."""
    found = tuple(values) if isinstance(values, Iterable) and not isinstance(values, str | bytes) else None
    if found is None or not all(isinstance(value, Integral) for value in found):
        raise TypeError(f"{op}: {name} must be a sequence of ints, got {values!r:.100}")
    if any(not -(2**63) <= value < 2**63 for value in found):
        raise ValueError(f"{op}: {name} has a number that is too large for a length, got {values!r:.100}")
    return tuple(map(int, found))


def axis(op: str, dim: int, ndim: int) -> int:
    """`dim` counted from the front. Raises IndexError if there is no such axis."""
    if not isinstance(dim, Integral) or not -ndim <= dim < ndim:
        raise IndexError(f"{op}: dim {dim!r:.100} is not an axis of a tensor with {ndim} axes")
    return int(dim) % ndim


def axes(op: str, dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """One axis, several, or all (None), counted from the front."""
    if dim is None:
        return tuple(range(ndim))
    chosen = tuple(axis(op, d, ndim) for d in (dim if isinstance(dim, Sequence) else [dim]))
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{op}: an axis appears twice in dim={dim!r}")
    return chosen or tuple(range(ndim))


def choice(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
