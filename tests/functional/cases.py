"""The case table of `gpucnn.testing` with what tests add to it: scalar results. And its values as plain arrays."""

import functools

import numpy as np
import reference
from numerics import Array

from gpucnn import testing
from gpucnn.testing import CASES, Case

REFERENCED = [case for case in CASES if hasattr(reference, case.op)]  # the others are shapes and plain arithmetic


@functools.cache
def reference_result(position: int, dtype: str) -> Array:
    """The scalar result of REFERENCED[position] for values rounded to `dtype`, kept: the loops are slow."""
    case = REFERENCED[position]
    result = getattr(reference, case.op)(*case.made_inputs(dtype), **case.made_arguments(dtype))
    y = result[0] if isinstance(result, tuple) else result  # a norm's running statistics come second
    assert isinstance(y, np.ndarray)
    return y


def arrays(case: Case, dtype: str) -> list[Array]:
    """The differentiable inputs."""
    inputs = case.made_inputs(dtype)
    return [inputs[i] for i in case.differentiable]


def random(*shape: int, seed: int = 0) -> Array:
    return testing.normal(*shape, seed=seed).make()


def distinct(*shape: int, seed: int = 0) -> Array:
    return testing.distinct(*shape, seed=seed).make()


def uniform(*shape: int, low: float = 0.05, high: float = 0.95, seed: int = 0) -> Array:
    return testing.uniform(*shape, low=low, high=high, seed=seed).make()
