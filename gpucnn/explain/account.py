"""What a unit is made of, and what it passes on of its gradient, by the kind of its layer."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpucnn.geometry import Window
from gpucnn.nn import layers as nn
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor
from gpucnn.watch import Run

Array = NDArray[Any]

# What each activation does, as introductions write it.
ACTIVATIONS: dict[type[Module], str] = {
    nn.ReLU: "max(0, x)",
    nn.ReLU6: "min(max(0, x), 6)",
    nn.LeakyReLU: "x if x > 0, else negative_slope · x",
    nn.PReLU: "x if x > 0, else weight · x",
    nn.ELU: "x if x > 0, else alpha · (e^x − 1)",
    nn.SELU: "1.0507 · (x if x > 0, else 1.6733 · (e^x − 1))",
    nn.GELU: "x · Φ(x)",
    nn.SiLU: "x / (1 + e^−x)",
    nn.Mish: "x · tanh(ln(1 + e^x))",
    nn.Hardswish: "x · min(max(0, x + 3), 6) / 6",
    nn.Hardsigmoid: "min(max(0, x + 3), 6) / 6",
    nn.Hardtanh: "min(max(min_val, x), max_val)",
    nn.Softplus: "ln(1 + e^(beta · x)) / beta",
    nn.Sigmoid: "1 / (1 + e^−x)",
    nn.LogSigmoid: "−ln(1 + e^−x)",
    nn.Softsign: "x / (1 + |x|)",
    nn.Tanh: "tanh x",
}
_MOVES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)  # in evaluation mode
_POOLS = (nn.AvgPool2d, nn.SumPool2d, nn.AdaptiveAvgPool2d)
_EXTREMES = (nn.MaxPool2d, nn.MinPool2d, nn.AdaptiveMaxPool2d)

Story = Literal["sum", "mean", "extreme", "norm", "activation", "softmax", "move", "other"]


def on_host(tensor: Tensor) -> Array:
    """Its values as float64 in NumPy."""
    values: Array = tensor.numpy().astype(np.float64)
    return values


def slopes_of(run: Run, place: tuple[int, ...]) -> Array:
    """d(the unit)/d(the layer's input), from the tape."""
    x = run.inputs[0].detach().requires_grad_()
    y = run.module.forward(x, *run.inputs[1:])
    y = y[0] if isinstance(y, tuple) else y
    if not y.requires_grad:
        return np.zeros(x.shape[1:])
    y[(0, *place)].backward()
    return np.zeros(x.shape[1:]) if x.grad is None else on_host(x.grad)[0]


def account_of(run: Run, place: tuple[int, ...], dy: float) -> tuple[Story, dict[str, Any]]:
    """What the unit is made of and what it passes on, by the kind of layer; a subclass may compute something else."""
    kind = type(run.module)
    if kind is nn.Conv2d:
        return "sum", _convolution(run, place, dy)
    if kind is nn.Linear:
        return "sum", _linear(run, place, dy)
    if kind in _POOLS:
        return "mean", _mean(run, place, dy)
    if kind in _EXTREMES and run.inputs[0].ndim == 4:
        return "extreme", _extreme(run, place, dy)
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d) and run.module.running_mean is not None:  # type: ignore[attr-defined]
        return "norm", _batch_norm(run, place, dy)
    if kind in ACTIVATIONS:
        return "activation", _activation(run, place, dy)
    if kind in (nn.Softmax, nn.LogSoftmax) and run.module.dim % run.output.ndim:  # type: ignore[attr-defined]
        return "softmax", _softmax(run, place, dy)
    if kind in _MOVES:
        return "move", _move(run, place, dy)
    return "other", _other(run, place, dy)


def _seen(x: Array, channels: Array, rows: Array, columns: Array) -> dict[str, Array]:
    """The window of x [C, H, W] at these channels, rows and columns; 0 where they are outside of it."""
    _, h, w = x.shape
    channel, row, column = np.meshgrid(channels, rows, columns, indexing="ij")
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    window = np.where(inside, x[channel, row.clip(0, h - 1), column.clip(0, w - 1)], 0.0)
    return {"window": window, "inside": inside, "places": np.stack([channel, row, column], axis=-1)}


def _taps(window: Window, p: int, q: int) -> tuple[Array, Array]:
    """The rows and columns of the input plane at which a window's taps lie for output (p, q)."""
    (r, s), (sh, sw), (top, _, left, _), (dh, dw) = window.kernel, window.stride, window.padding, window.dilation
    return p * sh - top + dh * np.arange(r), q * sw - left + dw * np.arange(s)


def _convolution(run: Run, place: tuple[int, ...], dy: float) -> dict[str, Any]:
    layer: Any = run.module
    (k, p, q), x = place, on_host(run.inputs[0])[0]
    filters = on_host(layer.weight)
    count, channels, r, s = filters.shape
    window = Window.of((r, s), layer.stride, layer.padding, layer.dilation, size=x.shape[1:])
    first = k // (count // layer.groups) * channels
    seen = _seen(x, np.arange(first, first + channels), *_taps(window, p, q))
    return seen | _weighted(seen["window"], filters[k], layer.bias, k, dy)


def _linear(run: Run, place: tuple[int, ...], dy: float) -> dict[str, Any]:
    layer: Any = run.module
    *before, k = place
    x = on_host(run.inputs[0])[0][tuple(before)]
    places = np.array([(*before, i) for i in range(len(x))])
    seen = {"window": x, "inside": np.ones(x.shape, bool), "places": places}
    return seen | _weighted(x, on_host(layer.weight)[k], layer.bias, k, dy)


def _weighted(x: Array, weights: Array, bias: Tensor | None, k: int, dy: float) -> dict[str, Any]:
    return {
        "weights": weights,
        "products": x * weights,
        "bias": None if bias is None else float(bias.numpy()[k]),
        "to_weights": dy * x,
        "to_bias": None if bias is None else dy,
        "to_window": dy * weights,
    }


def _pool_window(layer: Any, size: tuple[int, int], output: tuple[int, int], p: int, q: int) -> tuple[Array, Array]:
    """The rows and columns that a pooling window covers, those in the padding included."""
    if isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        (h, w), (ph, pw) = size, output
        return np.arange(p * h // ph, -(-(p + 1) * h // ph)), np.arange(q * w // pw, -(-(q + 1) * w // pw))
    dilation = getattr(layer, "dilation", 1)
    return _taps(Window.of(layer.kernel_size, layer.stride, layer.padding, dilation, layer.ceil_mode, size), p, q)


def _mean(run: Run, place: tuple[int, ...], dy: float) -> dict[str, Any]:
    layer: Any = run.module
    (k, p, q), x = place, on_host(run.inputs[0])[0]
    _, h, w = x.shape
    rows, columns = _pool_window(layer, (h, w), run.output.shape[2:], p, q)  # type: ignore[arg-type]
    seen = _seen(x, np.array([k]), rows, columns)
    if isinstance(layer, nn.SumPool2d):
        divisor = 1
    elif isinstance(layer, nn.AdaptiveAvgPool2d) or not layer.count_include_pad:
        divisor = int(seen["inside"].sum())
    else:  # what the window holds of the padded plane
        sides = Window.of(layer.kernel_size, layer.stride, layer.padding, 1, layer.ceil_mode, (h, w)).padding
        divisor = int((rows < h + sides[1]).sum() * (columns < w + sides[3]).sum())
    divisor = getattr(layer, "divisor_override", None) or divisor
    weights = np.where(seen["inside"], 1 / divisor, 0.0)
    products = seen["window"] / divisor
    return seen | {"weights": weights, "products": products, "to_window": dy * weights, "facts": {"divisor": divisor}}


def _extreme(run: Run, place: tuple[int, ...], dy: float) -> dict[str, Any]:
    layer: Any = run.module
    (k, p, q), x = place, on_host(run.inputs[0])[0]
    rows, columns = _pool_window(layer, x.shape[1:], run.output.shape[2:], p, q)  # type: ignore[arg-type]
    seen = _seen(x, np.array([k]), rows, columns)
    lowest = isinstance(layer, nn.MinPool2d)
    ranked = np.where(seen["inside"], -seen["window"] if lowest else seen["window"], -np.inf)
    beyond_all = np.where(np.isnan(ranked), np.inf, ranked)  # NaN wins; of equal ones the first
    at = int(np.isnan(ranked).ravel().argmax() if np.isnan(ranked).any() else beyond_all.argmax())
    if not seen["inside"].ravel()[at]:  # all of the plane that it sees is −∞
        at = int(seen["inside"].argmax())
    to_window = np.zeros(ranked.shape)
    to_window.ravel()[at] = dy
    winner = tuple(map(int, seen["places"].reshape(-1, 3)[at]))
    return seen | {"to_window": to_window, "facts": {"winner": winner, "tap": divmod(at, len(columns))}}


def _one(x: float, place: tuple[int, ...]) -> dict[str, Any]:
    return {"window": np.array([x]), "inside": np.array([True]), "places": np.array([place])}


def _batch_norm(run: Run, place: tuple[int, ...], dy: float) -> dict[str, Any]:
    layer: Any = run.module
    c, x = place[0], float(on_host(run.inputs[0])[0][place])
    mean, variance = float(layer.running_mean.numpy()[c]), float(layer.running_var.numpy()[c])
    scale = 1.0 if layer.weight is None else float(layer.weight.numpy()[c])
    shift = None if layer.bias is None else float(layer.bias.numpy()[c])
    deviation = math.sqrt(variance + layer.eps)
    normalised = (x - mean) / deviation
    facts = {"mean": mean, "variance": variance, "eps": layer.eps, "normalised": normalised, "channel": c}
    return _one(x, place) | {
        "weights": np.array([scale]),
        "products": np.array([normalised * scale]),
        "bias": shift,
        "facts": facts,
        "to_weights": None if layer.weight is None else np.array([dy * normalised]),
        "to_bias": None if shift is None else dy,
        "to_window": np.array([dy * scale / deviation]),
    }


def _activation(run: Run, place: tuple[int, ...], dy: float) -> dict[str, Any]:
    slope = float(slopes_of(run, place)[place])
    facts = {"formula": ACTIVATIONS[type(run.module)], "slope": slope}
    return _one(float(on_host(run.inputs[0])[0][place]), place) | {"facts": facts, "to_window": np.array([dy * slope])}


def _softmax(run: Run, place: tuple[int, ...], dy: float) -> dict[str, Any]:
    layer: Any = run.module
    axis = layer.dim % run.output.ndim - 1  # of one image
    line = (*place[:axis], slice(None), *place[axis + 1 :])
    scores, k = on_host(run.inputs[0])[0][line], place[axis]
    powers = np.exp(scores - scores.max())
    shares = powers / powers.sum()
    slopes = (np.arange(len(scores)) == k) - shares
    if isinstance(layer, nn.Softmax):
        slopes = shares[k] * slopes
    facts = {"powers": powers, "shares": shares, "largest": float(scores.max()), "which": k}
    places = np.array([(*place[:axis], i, *place[axis + 1 :]) for i in range(len(scores))])
    seen = {"window": scores, "inside": np.ones(scores.shape, bool), "places": places}
    return seen | {"facts": facts, "to_window": dy * slopes}


def _move(run: Run, place: tuple[int, ...], dy: float) -> dict[str, Any]:
    shape = run.inputs[0].shape[1:]
    source = tuple(int(i) for i in np.unravel_index(np.ravel_multi_index(place, run.output.shape[1:]), shape))
    return _one(float(on_host(run.inputs[0])[0][source]), source) | {"to_window": np.array([dy])}


def _other(run: Run, place: tuple[int, ...], dy: float) -> dict[str, Any]:
    """Any other layer, by its slopes: the inputs that the unit depends on, and what is not a multiple of any."""
    x, slopes = on_host(run.inputs[0])[0], slopes_of(run, place)
    places = np.argwhere(slopes != 0)
    at = tuple(places.T)
    products = x[at] * slopes[at]
    value = run.output.numpy()[0][place]
    rest = float(value) - math.fsum(products)
    if abs(rest) <= np.finfo(value.dtype).eps * (1 + len(products)) * np.abs(products).sum():
        rest = 0.0  # what rounding left
    return {
        "window": x[at],
        "inside": np.ones(len(places), bool),
        "places": places,
        "weights": slopes[at],
        "products": products,
        "bias": rest,
        "to_window": dy * slopes[at],
    }
