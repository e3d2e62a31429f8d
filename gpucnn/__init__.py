"""gpucnn: a GPU-accelerated, framework-free CNN engine with PyTorch's names and semantics."""

from gpucnn import data, functional, nn, optim
from gpucnn.backends import available_backends, get_backend, use_backend
from gpucnn.functional import cat, stack
from gpucnn.random import Generator, manual_seed, rand, randn
from gpucnn.tensor import Tensor, full, is_grad_enabled, no_grad, ones, tensor, zeros

__version__ = "0.1.0"

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
    "rand",
    "randn",
    "stack",
    "tensor",
    "use_backend",
    "zeros",
]
