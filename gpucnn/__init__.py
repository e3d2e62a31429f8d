"""gpucnn: a GPU-accelerated, framework-free CNN engine with PyTorch's names and semantics."""

from importlib import import_module
from typing import Any

from gpucnn import dtypes, functional, nn, optim
from gpucnn.amp import GradScaler, autocast, is_autocast_enabled
from gpucnn.backends import available_backends, get_backend, precision, use_backend, use_tuning
from gpucnn.creation import (
    arange,
    empty,
    empty_like,
    eye,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from gpucnn.dtypes import boolean as bool
from gpucnn.dtypes import float16, float32, float64, int8, int16, int32, int64, uint8
from gpucnn.functional import (
    abs,
    add,
    all,
    allclose,
    amax,
    amin,
    any,
    argmax,
    argmin,
    argsort,
    bincount,
    bitwise_and,
    bitwise_not,
    bitwise_or,
    bitwise_xor,
    bmm,
    cat,
    ceil,
    chunk,
    clamp,
    clone,
    cos,
    cosine_similarity,
    cumsum,
    div,
    eq,
    equal,
    exp,
    expm1,
    flatten,
    flip,
    floor,
    floor_divide,
    gather,
    ge,
    gt,
    index_select,
    isclose,
    isfinite,
    isinf,
    isnan,
    le,
    lerp,
    log,
    log1p,
    log2,
    log10,
    log_softmax,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    logsumexp,
    lt,
    masked_fill,
    masked_select,
    matmul,
    max,
    maximum,
    mean,
    min,
    minimum,
    mm,
    movedim,
    mul,
    ne,
    neg,
    nonzero,
    norm,
    outer,
    permute,
    pow,
    prod,
    reciprocal,
    relu,
    remainder,
    repeat_interleave,
    reshape,
    roll,
    round,
    rsqrt,
    sigmoid,
    sign,
    sin,
    softmax,
    sort,
    split,
    sqrt,
    square,
    squeeze,
    stack,
    std,
    sub,
    sum,
    t,
    tanh,
    tile,
    topk,
    transpose,
    tril,
    triu,
    unbind,
    unflatten,
    unique,
    unsqueeze,
    var,
    where,
)
from gpucnn.interchange import as_tensor, from_dlpack, from_numpy
from gpucnn.random import Generator, manual_seed, rand, rand_like, randint, randn, randn_like, randperm, use_generator
from gpucnn.tensor import (
    Tensor,
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
    tensor,
)

half, float, double, short, int, long = float16, float32, float64, int16, int32, int64  # as PyTorch calls them too

__version__ = "0.1.0"

# imported at first use: computing alone needs none of them
_LAZY = ("attribution", "checkpoint", "data", "onnx", "sklearn", "train", "viz")


_INSTEAD = {
    "device": "a backend takes its place: .to('cuda'), backend='cuda', use_backend or GPUCNN_BACKEND",
    "cuda": "available_backends() says whether there is a GPU, .to('cuda') moves to it",
    "save": "checkpoint.save_model writes a model as safetensors",
    "load": "checkpoint.load_model reads what checkpoint.save_model wrote",
    "utils": "data.Loader makes batches",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"gpucnn.{name}")
    if name == "bfloat16":  # needs ml_dtypes
        return dtypes.bfloat16()
    if name in ("OutOfMemoryError", "set_memory_limit"):
        return getattr(import_module("gpucnn.memory"), name)
    if name == "compile":
        return import_module("gpucnn.graph").compile
    instead = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
    raise AttributeError(f"module 'gpucnn' has no attribute {name!r}{instead}")


__all__ = [
    "Generator", "GradScaler", "OutOfMemoryError", "Tensor", "abs", "add", "all", "allclose", "amax", "amin", "any",
    "arange", "argmax", "argmin", "argsort", "as_tensor", "autocast", "available_backends", "bincount",
    "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "bmm", "bool", "cat", "ceil", "chunk", "clamp",
    "clone", "compile", "cos", "cosine_similarity", "cumsum", "data", "div", "double", "empty", "empty_like",
    "enable_grad", "eq", "equal", "exp", "expm1", "eye", "flatten", "flip", "float", "float16", "float32",
    "float64", "floor", "floor_divide", "from_dlpack", "from_numpy", "full", "full_like", "functional", "gather",
    "ge", "get_backend", "gt", "half", "index_select", "inference_mode", "int", "int8", "int16", "int32", "int64",
    "is_autocast_enabled", "is_grad_enabled", "isclose", "isfinite", "isinf", "isnan", "le", "lerp", "linspace",
    "log", "log1p", "log2", "log10", "log_softmax", "logical_and", "logical_not", "logical_or", "logical_xor",
    "logsumexp", "long", "lt", "manual_seed", "masked_fill", "masked_select", "matmul", "max", "maximum", "mean",
    "min", "minimum", "mm", "movedim", "mul", "ne", "neg", "nn", "no_grad", "nonzero", "norm", "ones", "ones_like",
    "optim", "outer", "permute", "pow", "precision", "prod", "rand", "rand_like", "randint", "randn", "randn_like",
    "randperm", "reciprocal", "relu", "remainder", "repeat_interleave", "reshape", "roll", "round", "rsqrt",
    "set_grad_enabled", "set_memory_limit", "short", "sigmoid", "sign", "sin", "softmax", "sort", "split", "sqrt",
    "square", "squeeze", "stack", "std", "sub", "sum", "t", "tanh", "tensor", "tile", "topk", "transpose", "tril",
    "triu", "uint8", "unbind", "unflatten", "unique", "unsqueeze", "use_backend", "use_generator", "use_tuning",
    "var", "where", "zeros", "zeros_like",
]  # fmt: skip
