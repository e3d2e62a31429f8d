"""How exactly float32 is multiplied in convolutions and matrix products: precision, GPUCNN_PRECISION."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from gpucnn.dtypes import DType, named

# Each precision, and the type that tensors have where `fit`, `verify` or a benchmark computes in it; to that type, too,
# the operands of float32 are rounded inside a `precision` scope.
PRECISIONS = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_scope: ContextVar[str | None] = ContextVar("gpucnn_precision", default=None)


def get_precision() -> str:
    """The precision in force: the innermost `precision` scope's, else GPUCNN_PRECISION, else "fp32".

    Raises ValueError for a GPUCNN_PRECISION that does not exist.
    """
    if (name := _scope.get()) is not None:
        return name
    name = os.environ.get("GPUCNN_PRECISION")
    return _known(name, "GPUCNN_PRECISION") if name else "fp32"


def operand_dtype(dtype: DType) -> DType:
    """The type that the operands of a convolution or product are rounded to now, where their own is `dtype`."""
    if dtype != np.float32 or (name := PRECISIONS[get_precision()]) == "float32":
        return dtype
    return named(name)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Let convolutions and matrix products of float32 be less exact inside a with block, in this thread.

    "fp32": each product is off by 1e-6 of its size at most. "tf32": operands may be rounded to 11 bits where a GPU has
    tensor cores that are faster then (PyTorch's `allow_tf32`); elsewhere it is "fp32". "fp16", "bf16": operands are
    rounded to float16 or bfloat16, on every backend; from 65520 on they are infinite in float16. Sums, what is added
    to them and results stay float32, and so do tensors: that is not `autocast`. It is read when a kernel starts, so a
    backward pass needs the scope as well. Tensors of other types are computed as ever.

    Raises ValueError for another name, and ImportError for "bf16" without the package ml_dtypes.

    >>> with gpucnn.precision("tf32"):
    ...     loss = F.cross_entropy(model(images), labels)
    ...     loss.backward()
    """
    token = _scope.set(_known(name, "precision"))
    try:
        yield
    finally:
        _scope.reset(token)


def _known(name: str, source: str) -> str:
    if not isinstance(name, str) or name not in PRECISIONS:
        raise ValueError(f"{source} is {name!r}, but the precisions are {', '.join(PRECISIONS)}")
    named(PRECISIONS[name])  # bfloat16 may be missing
    return name
