"""gpucnn: a GPU-accelerated, framework-free CNN engine with PyTorch's names and semantics."""

from importlib import import_module
from typing import Any

from gpucnn import functional, nn, optim
from gpucnn.backends import available_backends, get_backend, precision, use_backend
from gpucnn.functional import cat, stack
from gpucnn.random import Generator, manual_seed, rand, randn
from gpucnn.tensor import Tensor, full, is_grad_enabled, no_grad, ones, tensor, zeros

__version__ = "0.1.0"

_LAZY = ("checkpoint", "data", "onnx", "train", "viz")  # imported at first use: computing alone needs none of them


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"gpucnn.{name}")
    raise AttributeError(f"module 'gpucnn' has no attribute {name!r}")


__all__ = [
    "Generator",
    "Tensor",
    "available_backends",
    "cat",
    "data",
    "full",
    "functional",
    "get_backend",
    "is_grad_enabled",
    "manual_seed",
    "nn",
    "no_grad",
    "ones",
    "optim",
    "precision",
    "rand",
    "randn",
    "stack",
    "tensor",
    "use_backend",
    "zeros",
]
