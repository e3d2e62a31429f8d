"""The first opinion: every op of `gpucnn.functional` as scalar float64 loops written from its definition.

NumPy arrays are containers only: nothing here is vectorised and nothing is shared with the engine, so that the engine
and this file cannot be wrong in the same way. Names, arguments, defaults and semantics are those of
`torch.nn.functional`, arrays are indexed [N, C, H, W], results are float64. Forward only: gradients are checked by
finite differences and by the adjoint identity (see `numerics.py`).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Pair = int | Sequence[int]


def indices(*lengths: int) -> Iterator[tuple[int, ...]]:
    """np.ndindex, which takes several times as long."""
    return itertools.product(*map(range, lengths))


def float64(array: Any) -> Array:
    return np.asarray(array, dtype=np.float64)


def pair(value: Pair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


# --- geometry ---------------------------------------------------------------------------------------------------------


def dilated(kernel: int, dilation: int) -> int:
    return dilation * (kernel - 1) + 1


def sides(
    padding: int | str | Sequence[int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding as ((top, bottom), (left, right)); "same" gives ceil(size / stride) outputs, the odd pixel at the end."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        both = []
        for axis in (0, 1):
            outputs = math.ceil(size[axis] / stride[axis])
            needed = (outputs - 1) * stride[axis] + dilated(kernel[axis], dilation[axis])
            total = max(needed - size[axis], 0)
            both.append((total // 2, total - total // 2))
        return both[0], both[1]
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    if len(padding) == 2:
        return (int(padding[0]), int(padding[0])), (int(padding[1]), int(padding[1]))
    top, bottom, left, right = (int(side) for side in padding)
    return (top, bottom), (left, right)


# Worked sizes with ceil_mode: (length, kernel, stride, padding on both sides, outputs).
CEIL_SIZES = [
    (6, 1, 2, 0, 3),
    (7, 1, 2, 0, 4),
    (32, 1, 2, 0, 16),
    (32, 8, 4, 0, 7),
    (4, 3, 3, 0, 2),
    (9, 4, 4, 2, 3),
    (17, 2, 2, 1, 9),
    (2, 3, 3, 1, 1),
    (9, 4, 2, 0, 4),
]


def output_size(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1, ceil_mode: bool = False
) -> int:
    room = size + before + after - dilated(kernel, dilation)
    if not ceil_mode:
        return math.floor(room / stride) + 1
    count = math.ceil(room / stride) + 1
    last_start = (count - 1) * stride
    return count - 1 if last_start >= size + before else count


# --- convolution ------------------------------------------------------------------------------------------------------


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: Pair = 1,
    groups: int = 1,
    activation: str | None = None,
    scale: Array | None = None,
    residual: Array | None = None,
) -> Array:
    x, w = float64(input), float64(weight)
    batch, _, height, width = x.shape
    filters, depth, rows, columns = w.shape
    (stride_h, stride_w), (dilation_h, dilation_w) = pair(stride), pair(dilation)
    (top, bottom), (left, right) = sides(
        padding, (height, width), (rows, columns), (stride_h, stride_w), (dilation_h, dilation_w)
    )
    out_h = output_size(height, rows, stride_h, top, bottom, dilation_h)
    out_w = output_size(width, columns, stride_w, left, right, dilation_w)
    y = np.zeros((batch, filters, out_h, out_w))
    pixels, taps = x.tolist(), w.tolist()  # Python's floats, whose loops are several times as fast as of NumPy's
    for n, k, p, q in indices(*y.shape):
        first_channel = k // (filters // groups) * depth
        total = 0.0
        for c, r, s in indices(depth, rows, columns):
            h = p * stride_h - top + r * dilation_h
            v = q * stride_w - left + s * dilation_w
            if 0 <= h < height and 0 <= v < width:
                total += pixels[n][first_channel + c][h][v] * taps[k][c][r][s]
        total *= 1.0 if scale is None else float(scale[k])
        y[n, k, p, q] = total if bias is None else total + float(bias[k])
    return finished(y, residual, activation)


def conv2d_max_pool2d(*arguments: Any, activation: str | None = None, max_pool: dict[str, Any], **moves: Any) -> Array:
    y = max_pool2d(conv2d(*arguments, **moves), **max_pool)
    assert isinstance(y, np.ndarray)
    return finished(y, None, activation)


def finished(y: Array, residual: Array | None, activation: str | None) -> Array:
    """y + residual, activated."""
    if residual is not None:
        y = y + float64(residual)
    functions = {None: lambda y: y, "relu": relu, "relu6": relu6, "sigmoid": sigmoid, "tanh": tanh}
    return functions[activation](y)


def conv_transpose2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Array:
    x, w = float64(input), float64(weight)
    batch, channels, height, width = x.shape
    _, filters_per_group, rows, columns = w.shape
    (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w) = pair(stride), pair(padding), pair(dilation)
    extra_h, extra_w = pair(output_padding)
    out_h = (height - 1) * stride_h - 2 * pad_h + dilated(rows, dilation_h) + extra_h
    out_w = (width - 1) * stride_w - 2 * pad_w + dilated(columns, dilation_w) + extra_w
    y = np.zeros((batch, filters_per_group * groups, out_h, out_w))
    for n, c, h, v in indices(*x.shape):
        first_filter = c // (channels // groups) * filters_per_group
        for k, r, s in indices(filters_per_group, rows, columns):
            p = h * stride_h - pad_h + r * dilation_h
            q = v * stride_w - pad_w + s * dilation_w
            if 0 <= p < out_h and 0 <= q < out_w:
                y[n, first_filter + k, p, q] += x[n, c, h, v] * w[c, k, r, s]
    if bias is not None:
        for n, k, p, q in indices(*y.shape):
            y[n, k, p, q] += float(bias[k])
    return y


# --- pooling ----------------------------------------------------------------------------------------------------------


def _extreme_pool2d(
    better: Callable[[float, float], bool],
    worst: float,
    x: Array,
    kernel_size: Pair,
    stride: Pair | None,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
) -> tuple[Array, Array]:
    """Values and flat places h·W + w in the input's plane; a tie goes to the first place, a NaN beats every number."""
    batch, channels, height, width = x.shape
    rows, columns = pair(kernel_size)
    stride_h, stride_w = pair(kernel_size if stride is None else stride)
    (pad_h, pad_w), (dilation_h, dilation_w) = pair(padding), pair(dilation)
    out_h = output_size(height, rows, stride_h, pad_h, pad_h, dilation_h, ceil_mode)
    out_w = output_size(width, columns, stride_w, pad_w, pad_w, dilation_w, ceil_mode)
    y = np.zeros((batch, channels, out_h, out_w))
    places = np.zeros((batch, channels, out_h, out_w), dtype=np.int64)
    for n, c, p, q in indices(*y.shape):
        value, place = worst, -1
        for r, s in indices(rows, columns):
            h, v = p * stride_h - pad_h + r * dilation_h, q * stride_w - pad_w + s * dilation_w
            if not (0 <= h < height and 0 <= v < width):
                continue
            candidate = float(x[n, c, h, v])
            beats = better(candidate, value) or (math.isnan(candidate) and not math.isnan(value))
            if place < 0 or beats:
                value, place = candidate, h * width + v
        y[n, c, p, q], places[n, c, p, q] = value, place
    return y, places


def max_pool2d(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Array]:
    y, places = _extreme_pool2d(
        lambda a, b: a > b, -math.inf, float64(input), kernel_size, stride, padding, dilation, ceil_mode
    )
    return (y, places) if return_indices else y


def min_pool2d(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Array]:
    y, places = _extreme_pool2d(
        lambda a, b: a < b, math.inf, float64(input), kernel_size, stride, padding, dilation, ceil_mode
    )
    return (y, places) if return_indices else y


def avg_pool2d(
    input: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    x = float64(input)
    batch, channels, height, width = x.shape
    rows, columns = pair(kernel_size)
    stride_h, stride_w = pair(kernel_size if stride is None else stride)
    pad_h, pad_w = pair(padding)
    out_h = output_size(height, rows, stride_h, pad_h, pad_h, 1, ceil_mode)
    out_w = output_size(width, columns, stride_w, pad_w, pad_w, 1, ceil_mode)
    y = np.zeros((batch, channels, out_h, out_w))
    for n, c, p, q in indices(*y.shape):
        total, real, padded = 0.0, 0, 0
        for r, s in indices(rows, columns):
            h, v = p * stride_h - pad_h + r, q * stride_w - pad_w + s
            if -pad_h <= h < height + pad_h and -pad_w <= v < width + pad_w:
                padded += 1
            if 0 <= h < height and 0 <= v < width:
                real += 1
                total += x[n, c, h, v]
        y[n, c, p, q] = total / (divisor_override or (padded if count_include_pad else real))
    return y


def sum_pool2d(
    input: Array, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, ceil_mode: bool = False
) -> Array:
    x = float64(input)
    batch, channels, height, width = x.shape
    rows, columns = pair(kernel_size)
    stride_h, stride_w = pair(kernel_size if stride is None else stride)
    pad_h, pad_w = pair(padding)
    out_h = output_size(height, rows, stride_h, pad_h, pad_h, 1, ceil_mode)
    out_w = output_size(width, columns, stride_w, pad_w, pad_w, 1, ceil_mode)
    y = np.zeros((batch, channels, out_h, out_w))
    for n, c, p, q in indices(*y.shape):
        for r, s in indices(rows, columns):
            h, v = p * stride_h - pad_h + r, q * stride_w - pad_w + s
            if 0 <= h < height and 0 <= v < width:
                y[n, c, p, q] += x[n, c, h, v]
    return y


def _adaptive_windows(
    shape: tuple[int, ...], output_size: int | Sequence[int | None]
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Each output place (p, q) with the input places it covers: rows floor(p·H/P) up to ceil((p + 1)·H/P)."""
    height, width = shape[-2:]
    out_h, out_w = adaptive_size(shape, output_size)
    for p, q in indices(out_h, out_w):
        rows = range(math.floor(p * height / out_h), math.ceil((p + 1) * height / out_h))
        columns = range(math.floor(q * width / out_w), math.ceil((q + 1) * width / out_w))
        yield p, q, [(h, v) for h in rows for v in columns]


def adaptive_size(shape: tuple[int, ...], output_size: int | Sequence[int | None]) -> tuple[int, int]:
    out_h, out_w = (output_size, output_size) if isinstance(output_size, int) else output_size
    return (shape[-2] if out_h is None else out_h), (shape[-1] if out_w is None else out_w)


def adaptive_avg_pool2d(input: Array, output_size: int | Sequence[int | None]) -> Array:
    x = float64(input)
    y = np.zeros((*x.shape[:2], *adaptive_size(x.shape, output_size)))
    for n, c in indices(*x.shape[:2]):
        for p, q, places in _adaptive_windows(x.shape, output_size):
            y[n, c, p, q] = sum(x[n, c, h, v] for h, v in places) / len(places)
    return y


def adaptive_max_pool2d(
    input: Array, output_size: int | Sequence[int | None], return_indices: bool = False
) -> Array | tuple[Array, Array]:
    x = float64(input)
    y = np.zeros((*x.shape[:2], *adaptive_size(x.shape, output_size)))
    chosen = np.zeros(y.shape, dtype=np.int64)
    for n, c in indices(*x.shape[:2]):
        for p, q, places in _adaptive_windows(x.shape, output_size):
            best = places[0]
            for h, v in places[1:]:
                candidate, value = x[n, c, h, v], x[n, c, best[0], best[1]]
                if candidate > value or (math.isnan(candidate) and not math.isnan(value)):
                    best = (h, v)
            y[n, c, p, q], chosen[n, c, p, q] = x[n, c, best[0], best[1]], best[0] * x.shape[3] + best[1]
    return (y, chosen) if return_indices else y


# --- activations ------------------------------------------------------------------------------------------------------


def each(function: Callable[[float], float], input: Array) -> Array:
    """`function` of every element, one by one."""
    x = float64(input)
    y = np.zeros(x.shape)
    for place in indices(*x.shape):
        y[place] = function(float(x[place]))
    return y


def _relu(x: float) -> float:
    return x if x > 0 or math.isnan(x) else 0.0


def _clip(x: float, low: float, high: float) -> float:
    return low if x < low else high if x > high else x


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def relu(input: Array) -> Array:
    return each(_relu, input)


def relu6(input: Array) -> Array:
    return each(lambda x: _clip(x, 0.0, 6.0), input)


def leaky_relu(input: Array, negative_slope: float = 0.01) -> Array:
    return each(lambda x: x if x > 0 else negative_slope * x, input)


def prelu(input: Array, weight: Array) -> Array:
    x, slope = float64(input), float64(weight)
    y = np.zeros(x.shape)
    for place in indices(*x.shape):
        a = slope[0] if slope.size == 1 else slope[place[1]]
        y[place] = x[place] if x[place] > 0 else a * x[place]
    return y


def elu(input: Array, alpha: float = 1.0) -> Array:
    return each(lambda x: x if x > 0 else alpha * math.expm1(x), input)


def selu(input: Array) -> Array:
    alpha, scale = 1.6732632423543772, 1.0507009873554805  # the roots of Klambauer et al., appendix A.1
    return each(lambda x: scale * (x if x > 0 else alpha * math.expm1(x)), input)


def gelu(input: Array, approximate: str = "none") -> Array:
    def exact(x: float) -> float:
        return x / 2 * math.erfc(-x / math.sqrt(2))

    def tanh_formula(x: float) -> float:
        return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    return each({"none": exact, "tanh": tanh_formula}[approximate], input)


def silu(input: Array) -> Array:
    return each(lambda x: x * _sigmoid(x), input)


def mish(input: Array) -> Array:
    return each(lambda x: x * math.tanh(max(x, 0.0) + math.log1p(math.exp(-abs(x)))), input)


def hardswish(input: Array) -> Array:
    return each(lambda x: x * _clip(x + 3, 0.0, 6.0) / 6, input)


def hardsigmoid(input: Array) -> Array:
    return each(lambda x: _clip(x + 3, 0.0, 6.0) / 6, input)


def hardtanh(input: Array, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    return each(lambda x: _clip(x, min_val, max_val), input)


def softsign(input: Array) -> Array:
    return each(lambda x: x / (1 + abs(x)), input)


def softplus(input: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return each(lambda x: x if beta * x > threshold else math.log1p(math.exp(beta * x)) / beta, input)


def sigmoid(input: Array) -> Array:
    return each(_sigmoid, input)


def logsigmoid(input: Array) -> Array:
    return each(lambda x: min(x, 0.0) - math.log1p(math.exp(-abs(x))), input)


def tanh(input: Array) -> Array:
    return each(math.tanh, input)


def log_softmax(input: Array, dim: int) -> Array:
    x = float64(input)
    dim %= x.ndim
    y = np.zeros(x.shape)
    for place in indices(*x.shape):
        line = [float(x[(*place[:dim], i, *place[dim + 1 :])]) for i in range(x.shape[dim])]
        highest = max(line)
        y[place] = x[place] - highest - math.log(sum(math.exp(value - highest) for value in line))
    return y


def softmax(input: Array, dim: int) -> Array:
    return each(math.exp, log_softmax(input, dim))


# --- normalisation ----------------------------------------------------------------------------------------------------


def _mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / len(values)


def batch_norm(
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Array | None = None,
    activation: str | None = None,
) -> tuple[Array, Array | None, Array | None]:
    """y and the running statistics after the call; the running variance takes the unbiased estimate, y the biased."""
    x = float64(input)
    y = np.zeros(x.shape)
    new_mean = None if running_mean is None else float64(running_mean).copy()
    new_var = None if running_var is None else float64(running_var).copy()
    for c in range(x.shape[1]):
        places = [place for place in indices(*x.shape) if place[1] == c]
        if training or running_mean is None or running_var is None:
            mean, variance = _mean_and_variance([float(x[place]) for place in places])
        else:
            mean, variance = float(running_mean[c]), float(running_var[c])
        if training and new_mean is not None and new_var is not None:
            unbiased = variance * len(places) / (len(places) - 1)
            new_mean[c] = (1 - momentum) * new_mean[c] + momentum * mean
            new_var[c] = (1 - momentum) * new_var[c] + momentum * unbiased
        for place in places:
            y[place] = (x[place] - mean) / math.sqrt(variance + eps)
            y[place] = y[place] * (1.0 if weight is None else weight[c]) + (0.0 if bias is None else bias[c])
    return finished(y, residual, activation), new_mean, new_var


def instance_norm(
    input: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, Array | None, Array | None]:
    """y and the running statistics after the call, which move towards the means of those of the images."""
    x = float64(input)
    y = np.zeros(x.shape)
    images, channels = x.shape[:2]
    means, unbiased = np.zeros((images, channels)), np.zeros((images, channels))
    for n, c in indices(images, channels):
        places = [(n, c, *spot) for spot in indices(*x.shape[2:])]
        if use_input_stats or running_mean is None or running_var is None:
            mean, variance = _mean_and_variance([float(x[place]) for place in places])
            means[n, c], unbiased[n, c] = mean, variance * len(places) / (len(places) - 1)
        else:
            mean, variance = float(running_mean[c]), float(running_var[c])
        for place in places:
            y[place] = (x[place] - mean) / math.sqrt(variance + eps)
            y[place] = y[place] * (1.0 if weight is None else weight[c]) + (0.0 if bias is None else bias[c])
    if not images or not use_input_stats or running_mean is None or running_var is None:
        return y, running_mean, running_var
    new_mean, new_var = float64(running_mean).copy(), float64(running_var).copy()
    for c in range(channels):
        new_mean[c] = (1 - momentum) * new_mean[c] + momentum * math.fsum(means[:, c]) / images
        new_var[c] = (1 - momentum) * new_var[c] + momentum * math.fsum(unbiased[:, c]) / images
    return y, new_mean, new_var


def group_norm(
    input: Array, num_groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> Array:
    x = float64(input)
    y = np.zeros(x.shape)
    channels = x.shape[1] // num_groups
    for n, g in indices(x.shape[0], num_groups):
        places = [place for place in indices(*x.shape) if place[0] == n and place[1] // channels == g]
        mean, variance = _mean_and_variance([float(x[place]) for place in places])
        for place in places:
            c = place[1]
            y[place] = (x[place] - mean) / math.sqrt(variance + eps)
            y[place] = y[place] * (1.0 if weight is None else weight[c]) + (0.0 if bias is None else bias[c])
    return y


def layer_norm(
    input: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> Array:
    x = float64(input)
    y = np.zeros(x.shape)
    outer = x.shape[: x.ndim - len(normalized_shape)]
    for lead in indices(*outer):
        tails = list(indices(*normalized_shape))
        mean, variance = _mean_and_variance([float(x[lead + tail]) for tail in tails])
        for tail in tails:
            value = (x[lead + tail] - mean) / math.sqrt(variance + eps)
            value *= 1.0 if weight is None else weight[tail]
            y[lead + tail] = value + (0.0 if bias is None else bias[tail])
    return y


def local_response_norm(input: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Array:
    """x / (k + alpha/size · Σ x²)^beta over `size` neighbouring channels, of which size // 2 come before."""
    x = float64(input)
    y = np.zeros(x.shape)
    for place in indices(*x.shape):
        n, c, *spot = place
        squares = 0.0
        for neighbour in range(c - size // 2, c - size // 2 + size):
            if 0 <= neighbour < x.shape[1]:
                squares += x[(n, neighbour, *spot)] ** 2
        y[place] = x[place] / (k + alpha * squares / size) ** beta
    return y


# --- dense ------------------------------------------------------------------------------------------------------------


def linear(input: Array, weight: Array, bias: Array | None = None) -> Array:
    x, w = float64(input), float64(weight)
    y = np.zeros((*x.shape[:-1], w.shape[0]))
    for *lead, k in indices(*y.shape):
        total = 0.0
        for c in range(w.shape[1]):
            total += x[(*lead, c)] * w[k, c]
        y[(*lead, k)] = total if bias is None else total + float(bias[k])
    return y


def matmul(a: Array, b: Array) -> Array:
    """[..., M, K] @ [..., K, N]; the leading axes broadcast."""
    left, right = float64(a), float64(b)
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    y = np.zeros((*lead, left.shape[-2], right.shape[-1]))
    for outer in indices(*lead):
        rows, columns = left[*_squeeze(outer, left)].tolist(), right[*_squeeze(outer, right)].T.tolist()
        for m, n in indices(*y.shape[-2:]):
            y[*outer, m, n] = sum(one * other for one, other in zip(rows[m], columns[n], strict=True))
    return y


def _squeeze(place: Sequence[int], array: Array) -> list[int]:
    """`place` among the leading axes of `array`, where an axis of 1 is broadcast."""
    lead = array.shape[:-2]
    return [0 if size == 1 else i for i, size in zip(place[len(place) - len(lead) :], lead, strict=True)]


# --- shapes -----------------------------------------------------------------------------------------------------------


def pad(input: Array, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Array:
    """`pad` is (left, right, top, bottom, ...): pairs from the last axis backwards; a negative side crops."""
    x = float64(input)
    before = [0] * x.ndim
    shape = list(x.shape)
    for i in range(len(pad) // 2):
        axis = x.ndim - 1 - i
        before[axis] = pad[2 * i]
        shape[axis] += pad[2 * i] + pad[2 * i + 1]
    y = np.zeros(shape)
    for place in indices(*shape):
        source = []
        inside = True
        for axis, i in enumerate(place):
            position, size = i - before[axis], x.shape[axis]
            if not 0 <= position < size:
                if mode == "constant":
                    inside = False
                elif mode == "reflect":
                    position = -position if position < 0 else 2 * (size - 1) - position
                elif mode == "replicate":
                    position = 0 if position < 0 else size - 1
            source.append(position)
        y[place] = x[tuple(source)] if inside else value
    return y


def pixel_shuffle(input: Array, upscale_factor: int) -> Array:
    x, r = float64(input), upscale_factor
    n, c, h, w = x.shape
    y = np.zeros((n, c // (r * r), h * r, w * r))
    for b, k, i, j in indices(*y.shape):
        y[b, k, i, j] = x[b, k * r * r + i % r * r + j % r, i // r, j // r]
    return y


def pixel_unshuffle(input: Array, downscale_factor: int) -> Array:
    x, r = float64(input), downscale_factor
    n, c, h, w = x.shape
    y = np.zeros((n, c * r * r, h // r, w // r))
    for b, k, i, j in indices(*x.shape):
        y[b, k * r * r + i % r * r + j % r, i // r, j // r] = x[b, k, i, j]
    return y


def interpolate(
    input: Array,
    size: Pair | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Array:
    x = float64(input)
    batch, channels, height, width = x.shape
    if size is not None:
        out_h, out_w = pair(size)
        step_h, step_w = height / out_h, width / out_w
    else:
        assert scale_factor is not None
        factor_h, factor_w = (
            (scale_factor, scale_factor) if isinstance(scale_factor, int | float) else tuple(scale_factor)
        )
        out_h, out_w = math.floor(height * factor_h), math.floor(width * factor_w)
        step_h, step_w = 1 / factor_h, 1 / factor_w
    y = np.zeros((batch, channels, out_h, out_w))
    for n, c, p, q in indices(*y.shape):
        if mode == "nearest":
            y[n, c, p, q] = x[n, c, min(math.floor(p * step_h), height - 1), min(math.floor(q * step_w), width - 1)]
            continue
        h0, h1, fraction_h = _between(p, height, out_h, step_h, bool(align_corners))
        w0, w1, fraction_w = _between(q, width, out_w, step_w, bool(align_corners))
        upper = (1 - fraction_w) * x[n, c, h0, w0] + fraction_w * x[n, c, h0, w1]
        lower = (1 - fraction_w) * x[n, c, h1, w0] + fraction_w * x[n, c, h1, w1]
        y[n, c, p, q] = (1 - fraction_h) * upper + fraction_h * lower
    return y


def _between(i: int, size: int, outputs: int, step: float, align_corners: bool) -> tuple[int, int, float]:
    """The two input places that output place `i` lies between, and how far it is from the first to the second."""
    if align_corners:
        position = i * (size - 1) / (outputs - 1) if outputs > 1 else 0.0
    else:
        position = max((i + 0.5) * step - 0.5, 0.0)
    first = min(math.floor(position), size - 1)
    return first, min(first + 1, size - 1), position - first


# --- losses -----------------------------------------------------------------------------------------------------------


def reduce(losses: Array, reduction: str, divisor: float | None = None) -> Array:
    if reduction == "none":
        return losses
    total = math.fsum(float(losses[place]) for place in indices(*losses.shape))
    if reduction == "sum":
        return float64(total)
    return float64(total / (losses.size if divisor is None else divisor))


def nll_loss(
    input: Array, target: Array, weight: Array | None = None, ignore_index: int = -100, reduction: str = "mean"
) -> Array:
    return _picked_loss(float64(input), target, weight, ignore_index, reduction, 0.0)


def cross_entropy(
    input: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Array:
    log_probabilities = log_softmax(input, 1)
    if np.asarray(target).dtype.kind != "f":
        return _picked_loss(log_probabilities, target, weight, ignore_index, reduction, label_smoothing)
    classes = log_probabilities.shape[1]
    losses = np.zeros((log_probabilities.shape[0], *log_probabilities.shape[2:]))
    for n, *spot in indices(*losses.shape):
        for c in range(classes):
            probability = target[(n, c, *spot)] * (1 - label_smoothing) + label_smoothing / classes
            class_weight = 1.0 if weight is None else weight[c]
            losses[(n, *spot)] -= class_weight * probability * log_probabilities[(n, c, *spot)]
    return reduce(losses, reduction)


def _picked_loss(
    log_probabilities: Array,
    target: Array,
    weight: Array | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Array:
    """The label's loss, mixed with every class's by `label_smoothing`; a mean is over the labels' class weights."""
    classes = log_probabilities.shape[1]
    losses = np.zeros(target.shape)
    divisor = 0.0
    for n, *spot in indices(*target.shape):
        label = int(target[(n, *spot)])
        if label == ignore_index:
            continue
        weights = [1.0 if weight is None else float(weight[c]) for c in range(classes)]
        surprise = [-weights[c] * log_probabilities[(n, c, *spot)] for c in range(classes)]
        losses[(n, *spot)] = (1 - label_smoothing) * surprise[label]
        if label_smoothing:
            losses[(n, *spot)] += label_smoothing / classes * sum(surprise)
        divisor += weights[label]
    return reduce(losses, reduction, divisor)


def binary_cross_entropy(input: Array, target: Array, weight: Array | None = None, reduction: str = "mean") -> Array:
    """As in PyTorch a logarithm is at least -100, so that a certain and wrong answer costs 100 and not infinity."""
    p, t = float64(input), float64(target)
    factors = np.broadcast_to(1.0 if weight is None else float64(weight), p.shape)
    losses = np.zeros(p.shape)
    for place in indices(*p.shape):
        log_p = max(math.log(p[place]), -100.0) if p[place] > 0 else -100.0
        log_not_p = max(math.log1p(-p[place]), -100.0) if p[place] < 1 else -100.0
        losses[place] = -factors[place] * (t[place] * log_p + (1 - t[place]) * log_not_p)
    return reduce(losses, reduction)


def binary_cross_entropy_with_logits(
    input: Array,
    target: Array,
    weight: Array | None = None,
    reduction: str = "mean",
    pos_weight: Array | None = None,
) -> Array:
    x, t = float64(input), float64(target)
    factors = np.broadcast_to(1.0 if weight is None else float64(weight), x.shape)
    positives = np.broadcast_to(1.0 if pos_weight is None else float64(pos_weight), x.shape)
    losses = np.zeros(x.shape)
    for place in indices(*x.shape):
        minus_log_p = math.log1p(math.exp(-abs(x[place]))) + max(-x[place], 0.0)
        minus_log_not_p = math.log1p(math.exp(-abs(x[place]))) + max(x[place], 0.0)
        loss = positives[place] * t[place] * minus_log_p + (1 - t[place]) * minus_log_not_p
        losses[place] = factors[place] * loss
    return reduce(losses, reduction)


def _pairwise_loss(function: Callable[[float], float], input: Array, target: Array, reduction: str) -> Array:
    x, t = float64(input), float64(target)
    losses = np.zeros(x.shape)
    for place in indices(*x.shape):
        losses[place] = function(float(x[place]) - float(t[place]))
    return reduce(losses, reduction)


def mse_loss(input: Array, target: Array, reduction: str = "mean") -> Array:
    return _pairwise_loss(lambda error: error**2, input, target, reduction)


def l1_loss(input: Array, target: Array, reduction: str = "mean") -> Array:
    return _pairwise_loss(abs, input, target, reduction)


def smooth_l1_loss(input: Array, target: Array, reduction: str = "mean", beta: float = 1.0) -> Array:
    def loss(error: float) -> float:
        return error**2 / (2 * beta) if abs(error) < beta else abs(error) - beta / 2

    return _pairwise_loss(loss, input, target, reduction)


def huber_loss(input: Array, target: Array, reduction: str = "mean", delta: float = 1.0) -> Array:
    def loss(error: float) -> float:
        return error**2 / 2 if abs(error) < delta else delta * (abs(error) - delta / 2)

    return _pairwise_loss(loss, input, target, reduction)


def kl_div(input: Array, target: Array, reduction: str = "mean", log_target: bool = False) -> Array:
    x, t = float64(input), float64(target)
    losses = np.zeros(x.shape)
    for place in indices(*x.shape):
        p = math.exp(t[place]) if log_target else float(t[place])
        log_p = float(t[place]) if log_target else math.log(p) if p else 0.0
        losses[place] = p * (log_p - x[place])
    return reduce(losses, "mean", len(x) if x.ndim else 1) if reduction == "batchmean" else reduce(losses, reduction)


def half_squared_error(input: Array, target: Array) -> Array:
    return _pairwise_loss(lambda error: error**2 / 2, input, target, "sum")
