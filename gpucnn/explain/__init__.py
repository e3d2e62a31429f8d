"""Where one number of one layer comes from, and where its gradient goes: `model.explain(x, layer, unit)`.

The arithmetic is done here once more, on the host in float64, from what the layer took and what it has learned; the
value that is explained is the model's own. str() draws it as introductions to CNNs do, in a notebook it is HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpucnn import functional as F
from gpucnn.explain.account import ACTIVATIONS, Array, Story, account_of, on_host, slopes_of
from gpucnn.explain.tell import told
from gpucnn.functional import validate
from gpucnn.nn.module import Module
from gpucnn.sheet import as_html, as_text, shape_text
from gpucnn.tensor import Tensor
from gpucnn.watch import Run, backward_from, batch_of, chosen_classes, evaluating, leaves, named_layer, watched


@dataclass(frozen=True)
class Activation:
    """The activation that the unit goes through next: its layer, its value, and its slope there."""

    layer: str
    kind: str
    value: float
    slope: float


@dataclass(frozen=True, eq=False)
class Gradient:
    """What comes back to the unit, and what it passes on; arrays have the shape of the explanation's window.

    of: the number whose gradient this is. output: dy, at the unit. after_activation: the gradient at the activation
    behind the unit. weights, bias: the unit's share in the gradient of what is learned, dy·x and dy. window: its share
    in the gradient of the layer's input, dy·w.
    """

    of: str
    output: float
    after_activation: float | None
    weights: Array | None
    bias: float | None
    window: Array


@dataclass(frozen=True, eq=False)
class Loss:
    """The cross-entropy of the model's output with a label, −ln p[label]; its gradient is p, less 1 at the label."""

    label: int
    value: float
    scores: Array
    probabilities: Array


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Explanation:
    """Where `value`, one unit of one layer's output, comes from, and where its gradient goes.

    window: the input that the unit sees, [C, R, S] of a map or [F] of a vector, 0 where it reaches into the padding
    (`inside` is False there); places: the index in the layer's input of each. weights, products: what they are
    multiplied with, and the products, whose sum plus `bias` is the value; None where nothing is multiplied. facts: what
    else takes part, such as mean and variance of a batch norm or the winner of a max pooling.
    """

    layer: str
    kind: str
    description: str
    story: Story
    unit: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    value: float
    window: Array
    inside: Array
    places: Array
    weights: Array | None = None
    products: Array | None = None
    bias: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    activation: Activation | None = None
    gradient: Gradient
    loss: Loss | None = None

    @property
    def sum(self) -> float | None:
        """The sum of all products in float64; None where nothing is multiplied."""
        return None if self.products is None else math.fsum(self.products.ravel())

    def __str__(self) -> str:
        return as_text(told(self))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(told(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, as JSON has them; what is not finite is a string."""
        plain: dict[str, Any] = _plain({**vars(self), "sum": self.sum})
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Activation | Gradient | Loss):
        value = vars(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# -- explaining ------------------------------------------------------------------------------------


def explain(
    model: Module,
    x: Any,
    layer: str,
    unit: int | Sequence[int],
    *,
    target: int | None = None,
    label: int | None = None,
    gradient: float | None = None,
) -> Explanation:
    """Where one unit of a layer's output comes from for one image, and where its gradient goes.

    x is what the model takes: [C, H, W] or [1, C, H, W] (a vector: [F] or [1, F]). layer is a name of
    `model.named_modules()` that holds no other layer, unit its place in the layer's output: (k, p, q) of a map, k of a
    vector. The gradient is that of the score of class `target`, by default the predicted one; with `label` that of the
    cross-entropy loss; or `gradient` itself is what comes back to the unit. The model runs in evaluation mode and is
    left as it was, gradients included. A layer that runs several times is explained at its first run.

    Raises ValueError for a layer that is not there, and for more than one image; IndexError for a unit or class that is
    not there.
    """
    if sum(given is not None for given in (target, label, gradient)) > 1:
        raise ValueError(f"explain: choose one of target={target}, label={label} and gradient={gradient}")
    gradient = None if gradient is None else validate.number("explain", "gradient", gradient)
    module = _single_layer(model, layer)
    batch = batch_of(model, x)
    if len(batch) != 1:
        raise ValueError(f"explain takes one image [C, H, W] or [1, C, H, W], got {len(batch)} of them")
    with evaluating(model):
        output, runs = watched(model, batch, leaves(model))
        run = next((run for run in runs if run.module is module), None)
        if run is None:
            raise ValueError(f"layer {layer!r} ({type(module).__name__}) does not run for this image")
        place = _place(layer, unit, run.output.shape[1:])
        after = next(
            (r for r in runs if r.inputs and r.inputs[0] is run.output and type(r.module) in ACTIVATIONS), None
        )
        of, loss = "given", None
        if gradient is None:
            for watched_run in (run, after):
                if watched_run is not None and watched_run.output.requires_grad:
                    watched_run.output.retain_grad()
            of, loss = _carried_back(output, target, label)
            gradient = _gradient_at(run, place)
        story, found = account_of(run, place, gradient)
        activation = None
        if after is not None:
            slope = float(slopes_of(after, place)[place])
            value = float(after.output.numpy()[0][place])
            activation = Activation(after.name, type(after.module).__name__, value, slope)
        came_back = Gradient(
            of=of,
            output=gradient,
            after_activation=None if after is None or of == "given" else _gradient_at(after, place),
            weights=found.pop("to_weights", None),
            bias=found.pop("to_bias", None),
            window=found.pop("to_window"),
        )
        return Explanation(
            layer=layer,
            kind=type(module).__name__,
            description=repr(module),
            story=story,
            unit=place,
            input_shape=run.inputs[0].shape[1:],
            output_shape=run.output.shape[1:],
            value=float(run.output.numpy()[0][place]),
            activation=activation,
            gradient=came_back,
            loss=loss,
            **found,
        )


def _single_layer(model: Module, name: str) -> Module:
    module = named_layer(model, name)
    inner = [f"{name}.{n}" if name else n for n, child in leaves(module) if child is not module]
    if inner:
        more = f" … ({len(inner)} in all)" if len(inner) > 12 else ""
        what = f"layer {name!r}" if name else "the model itself"
        raise ValueError(
            f"{what} is a {type(module).__name__} of {len(inner)} layers; explain one of them: "
            f"{', '.join(inner[:12])}{more}"
        )
    return module


def _place(layer: str, unit: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    given = (unit,) if not isinstance(unit, Sequence) else tuple(unit)
    whole = all(isinstance(i, int | np.integer) for i in given)
    if not whole or len(given) != len(shape) or not all(0 <= i < n for i, n in zip(given, shape, strict=True)):
        ranges = ", ".join(f"0 to {n - 1}" for n in shape)
        raise IndexError(f"layer {layer!r} makes {shape_text(shape)}, which has no unit {unit}: a unit is ({ranges})")
    return tuple(map(int, given))


def _carried_back(output: Tensor, target: int | None, label: int | None) -> tuple[str, Loss | None]:
    """Run the backward pass; returns (what it is the gradient of, the loss if there is one)."""
    if label is None:
        chosen = chosen_classes(output, target)
        backward_from(output, chosen)
        what = f"the score of class {chosen[0]}" if output[0].numel() > 1 else "the model's output"
        return what + (", the prediction" if target is None and output[0].numel() > 1 else ""), None
    chosen_classes(output, label)
    if output.ndim != 2 or output.shape[1] < 2:
        raise ValueError(f"label needs a model with a score for each class, [N, classes]; it makes {output.shape}")
    loss = F.cross_entropy(output, [label])
    loss.backward()
    scores = on_host(output)[0]
    powers = np.exp(scores - scores.max())
    return f"the cross-entropy loss of class {label}", Loss(label, loss.item(), scores, powers / powers.sum())


def _gradient_at(run: Run, place: tuple[int, ...]) -> float:
    """What came back to a unit; 0 where no gradient goes through the layer."""
    return 0.0 if run.output.grad is None else float(run.output.grad.numpy()[0][place])
