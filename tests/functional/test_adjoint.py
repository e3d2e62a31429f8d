"""<u, op v> = <opᵀu, v> for every op that is linear in an input: exact but for rounding, in both precisions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numerics import check_adjoint

import gpucnn
from gpucnn import functional as F
from gpucnn.testing import CONV2D, CONV_TRANSPOSE2D, DENSE, POOL, SHAPE, Case

BIASED = ("conv2d", "conv_transpose2d", "linear")


def without_constant(case: Case) -> Case:
    """The linear part: no bias, no padding value."""
    inputs = case.inputs[:2] if case.op in BIASED else case.inputs
    return replace(case, inputs=inputs, arguments={k: v for k, v in case.arguments.items() if k != "value"})


LINEAR = [
    without_constant(case)
    for case in CONV2D + CONV_TRANSPOSE2D + DENSE + SHAPE + [case for case in POOL if case.op[:3] in ("avg", "sum")]
]
CHOICES = [(case, i) for case in dict(zip(map(str, LINEAR), LINEAR, strict=True)).values() for i in case.differentiable]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("case", "which"), CHOICES, ids=[f"{case}-input{i}" for case, i in CHOICES])
def test_backward_is_the_transpose_of_forward(case: Case, which: int, dtype: str, backend: str) -> None:
    inputs = case.made_inputs(dtype)
    fixed: list[Any] = [gpucnn.tensor(v, backend=backend) if isinstance(v, np.ndarray) else v for v in inputs]
    magnitudes = (gpucnn.tensor(np.abs(v), dtype="float64") if isinstance(v, np.ndarray) else v for v in inputs)
    magnitude = getattr(F, case.op)(*magnitudes, **case.arguments).numpy()
    sizes = [magnitude.size, *(v.size for v in inputs if isinstance(v, np.ndarray))]
    check_adjoint(
        lambda x: getattr(F, case.op)(*fixed[:which], x, *fixed[which + 1 :], **case.arguments),
        inputs[which],
        magnitude,
        max(sizes) + 16,
        backend,
    )
