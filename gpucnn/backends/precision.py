"""How exactly float32 is multiplied in convolutions and matrix products: precision, GPUCNN_PRECISION."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Each precision, and the type that tensors have where `fit`, `verify` or a benchmark computes in it.
PRECISIONS = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_scope: ContextVar[str | None] = ContextVar("gpucnn_precision", default=None)


def get_precision() -> str:
    """The precision in force: the innermost `precision` scope's, else GPUCNN_PRECISION, else "fp32".

    Raises ValueError for a GPUCNN_PRECISION that does not exist.
    """
    return _scope.get() or _known(os.environ.get("GPUCNN_PRECISION") or "fp32", "GPUCNN_PRECISION")


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Let convolutions and matrix products of float32 be less exact inside a with block, in this thread.

    "fp32": each product is off by 1e-6 of its size at most. "tf32", "fp16", "bf16": operands may be rounded to the 11
    bits of TF32 or float16, or the 8 of bfloat16, where a GPU has tensor cores that are faster then (PyTorch's
    `allow_tf32`). Sums stay float32, and so do tensors: that is not `autocast`. Today TF32 serves all three. It is read
    when a kernel starts, so a backward pass needs the scope as well. float64, and backends without tensor cores,
    compute as ever. Raises ValueError for another name.

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
    if name not in PRECISIONS:
        raise ValueError(f"{source} is {name!r}, but the precisions are {', '.join(PRECISIONS)}")
    return name
