"""Every differentiable operation, under PyTorch's names and with PyTorch's semantics.

Each function validates its arguments, calls the backend's primitive and records its gradients: one op, one story.
docs/differences.md lists what differs from torch.nn.functional.
"""

from gpucnn.functional.activation import (
    dropout,
    dropout2d,
    elu,
    gelu,
    hardsigmoid,
    hardswish,
    leaky_relu,
    log_softmax,
    prelu,
    relu,
    relu6,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from gpucnn.functional.arithmetic import (
    abs,
    add,
    amax,
    amin,
    argmax,
    argmin,
    clamp,
    compare,
    div,
    exp,
    linear,
    log,
    matmul,
    max,
    maximum,
    mean,
    min,
    minimum,
    mul,
    neg,
    pow,
    sqrt,
    sub,
    sum,
    to,
    where,
)
from gpucnn.functional.convolution import conv2d, conv2d_max_pool2d, conv_transpose2d
from gpucnn.functional.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    half_squared_error,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from gpucnn.functional.normalization import batch_norm, group_norm, instance_norm, layer_norm, local_response_norm
from gpucnn.functional.pooling import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    max_pool2d,
    min_pool2d,
    sum_pool2d,
)
from gpucnn.functional.shape import (
    cat,
    chunk,
    expand,
    flatten,
    host_index,
    index,
    interpolate,
    pad,
    permute,
    pixel_shuffle,
    pixel_unshuffle,
    reshape,
    split,
    squeeze,
    stack,
    transpose,
    unflatten,
    unsqueeze,
)

__all__ = [
    "abs", "adaptive_avg_pool2d", "adaptive_max_pool2d", "add", "amax", "amin", "argmax", "argmin", "avg_pool2d",
    "batch_norm", "binary_cross_entropy", "binary_cross_entropy_with_logits", "cat", "chunk", "clamp", "compare",
    "conv2d", "conv2d_max_pool2d", "conv_transpose2d", "cross_entropy", "div", "dropout", "dropout2d", "elu", "exp",
    "expand", "flatten", "gelu", "group_norm", "half_squared_error", "hardsigmoid", "hardswish", "host_index", "index",
    "instance_norm", "interpolate", "l1_loss", "layer_norm", "leaky_relu", "linear", "local_response_norm", "log",
    "log_softmax", "matmul", "max", "max_pool2d", "maximum", "mean", "min", "min_pool2d", "minimum", "mse_loss", "mul",
    "neg", "nll_loss", "pad", "permute", "pixel_shuffle", "pixel_unshuffle", "pow", "prelu", "relu", "relu6",
    "reshape", "sigmoid", "silu", "smooth_l1_loss", "softmax", "softplus", "split", "sqrt", "squeeze", "stack", "sub",
    "sum", "sum_pool2d", "tanh", "to", "transpose", "unflatten", "unsqueeze", "where",
]  # fmt: skip
