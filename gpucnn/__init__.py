"""gpucnn: a GPU-accelerated, framework-free CNN engine with PyTorch's names and semantics."""

from importlib import import_module
from typing import Any

from gpucnn import dtypes, functional, nn, optim
from gpucnn.amp import GradScaler, autocast, is_autocast_enabled
from gpucnn.backends import available_backends, get_backend, precision, use_backend, use_tuning
from gpucnn.dtypes import float16, float32, float64
from gpucnn.functional import cat, stack
from gpucnn.interchange import as_tensor, from_dlpack, from_numpy
from gpucnn.random import Generator, manual_seed, rand, rand_like, randn, randn_like, use_generator
from gpucnn.tensor import (
    Tensor,
    enable_grad,
    full,
    full_like,
    inference_mode,
    is_grad_enabled,
    no_grad,
    ones,
    ones_like,
    set_grad_enabled,
    tensor,
    zeros,
    zeros_like,
)

__version__ = "0.1.0"

# imported at first use: computing alone needs none of them
_LAZY = ("attribution", "checkpoint", "data", "onnx", "sklearn", "train", "viz")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"gpucnn.{name}")
    if name == "bfloat16":  # needs ml_dtypes
        return dtypes.bfloat16()
    if name in ("OutOfMemoryError", "set_memory_limit"):
        return getattr(import_module("gpucnn.memory"), name)
    if name == "compile":
        return import_module("gpucnn.graph").compile
    raise AttributeError(f"module 'gpucnn' has no attribute {name!r}")


__all__ = [
    "Generator",
    "GradScaler",
    "OutOfMemoryError",
    "Tensor",
    "as_tensor",
    "autocast",
    "available_backends",
    "cat",
    "compile",
    "data",
    "enable_grad",
    "float16",
    "float32",
    "float64",
    "from_dlpack",
    "from_numpy",
    "full",
    "full_like",
    "functional",
    "get_backend",
    "inference_mode",
    "is_autocast_enabled",
    "is_grad_enabled",
    "manual_seed",
    "nn",
    "no_grad",
    "ones",
    "ones_like",
    "optim",
    "precision",
    "rand",
    "rand_like",
    "randn",
    "randn_like",
    "set_grad_enabled",
    "set_memory_limit",
    "stack",
    "tensor",
    "use_backend",
    "use_generator",
    "use_tuning",
    "zeros",
    "zeros_like",
]
