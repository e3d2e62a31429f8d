"""Which pixels a model's answer hangs on: saliency, occlusion and Grad-CAM, as arrays. `gpucnn.viz` draws them.

Images are what the model takes: [N, C, H, W], or one image [C, H, W]. The score is the model's output for class
`target` (one class for all images, or one for each; by default each image's prediction). The model runs in evaluation
mode and is left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.explain.account import ACTIVATIONS
from gpucnn.functional import validate
from gpucnn.geometry import pair
from gpucnn.nn.layers import BatchNorm2d, Conv2d
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor, no_grad, tensor
from gpucnn.watch import (
    Run,
    backward_from,
    batch_of,
    chosen_classes,
    class_count,
    evaluating,
    named_layer,
    score_of,
    watched,
)

Array = NDArray[Any]
Target = int | Sequence[int] | None

_BATCH = 64  # occluded copies that are computed together


@dataclass(frozen=True)
class Attribution:
    """Maps of N images, float64, with the classes and scores that they are about, of so many outputs."""

    maps: Array
    classes: Array
    scores: Array
    outputs: int


def saliency(
    model: Module, images: Any, target: Target = None, samples: int = 1, noise: float = 0.15, seed: int = 0
) -> Attribution:
    """How much the score changes with each pixel: the largest |d score / d pixel| of its channels, [N, H, W].

    Simonyan et al. 2013. With more than one sample it is the mean gradient of that many copies of the image with normal
    noise, of a standard deviation of `noise` times the image's range (SmoothGrad, Smilkov et al. 2017).
    """
    samples = validate.integer("saliency", "samples", samples, least=1)
    seed = validate.integer("saliency", "seed", seed, least=0)
    if not 0 <= validate.number("saliency", "noise", noise) < math.inf:
        raise ValueError(f"saliency: noise must be at least 0 and finite, got {noise}")
    batch = _images(model, images)
    with evaluating(model):
        gradient, classes, scores, outputs = _input_gradient(model, batch, target)
        if samples > 1:
            drawn, values = np.random.default_rng(seed), batch.numpy()
            total = np.zeros_like(gradient)
            with np.errstate(all="ignore"):  # too much noise is infinite
                deviation = noise * np.ptp(values, axis=(1, 2, 3), keepdims=True)
            for _ in range(samples):
                with np.errstate(all="ignore"):
                    noisy = batch_of(model, values + deviation * drawn.standard_normal(values.shape))
                total += _input_gradient(model, noisy, classes)[0]
            gradient = total / samples
    return Attribution(np.abs(gradient).max(axis=1), classes, scores, outputs)


def _images(model: Module, images: Any) -> Tensor:
    batch = batch_of(model, images)
    if batch.ndim != 4:
        raise ValueError(f"images must be [N, C, H, W] or one image [C, H, W], got shape {batch.shape}")
    return batch


def _input_gradient(model: Module, batch: Tensor, target: Any) -> tuple[Array, Array, Array, int]:
    """(d score / d input, classes, scores, how many classes there are)."""
    output, _ = watched(model, batch, ())
    classes = chosen_classes(output, target)
    backward_from(output, classes)
    gradient = np.zeros(batch.shape) if batch.grad is None else batch.grad.numpy().astype(np.float64)
    return gradient, classes, score_of(output, classes), class_count(output)


def occlusion(
    model: Module,
    images: Any,
    target: Target = None,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    fill: float = 0.0,
) -> Attribution:
    """How much of the score is lost where a window of the image is covered, [N, H, W]. Zeiler & Fergus 2014.

    The window (a fifth of the image by default) goes over the image in steps of `stride` (half of it) and ends at the
    edge; a pixel gets the mean loss of the windows that cover it. `fill` is what covers it, in the model's units: 0 is
    the mean of normalised images.
    """
    batch = _images(model, images)
    fill = validate.number("occlusion", "fill", fill)
    values = batch.numpy()
    size = values.shape[2:]
    height, width = pair([max(1, n // 5) for n in size] if window is None else window, "window", 1)
    if height > size[0] or width > size[1]:
        raise ValueError(f"occlusion: a window of {height}×{width} is larger than the image of {size[0]}×{size[1]}")
    steps = pair([max(1, n // 2) for n in (height, width)] if stride is None else stride, "stride", 1)
    rows, columns = (
        sorted({*range(0, whole - part, step), whole - part})
        for whole, part, step in zip(size, (height, width), steps, strict=True)
    )
    corners = [(row, column) for row in rows for column in columns]
    maps, covers = np.zeros((len(values), *size)), np.zeros(size)
    with evaluating(model), no_grad(), np.errstate(all="ignore"):  # a fill may be infinite in the model's type
        output, _ = watched(model, batch, ())
        classes = chosen_classes(output, target)
        scores = score_of(output, classes)
        for row, column in corners:
            covers[row : row + height, column : column + width] += 1
        for n, image in enumerate(values):
            for start in range(0, len(corners), _BATCH):
                some = corners[start : start + _BATCH]
                copies = np.repeat(image[None], len(some), axis=0)
                for copy, (row, column) in zip(copies, some, strict=True):
                    copy[:, row : row + height, column : column + width] = fill
                left = score_of(model(tensor(copies, backend=batch.backend)), np.repeat(classes[n], len(some)))
                for lost, (row, column) in zip(scores[n] - left, some, strict=True):
                    maps[n, row : row + height, column : column + width] += lost
    uncovered = np.maximum(covers, 1)  # a stride larger than the window leaves gaps: 0 is lost there
    return Attribution(maps / uncovered, classes, scores, class_count(output))


def grad_cam(model: Module, images: Any, layer: str | None = None, target: Target = None) -> Attribution:
    """Where a layer's maps speak for the class: ReLU(Σₖ αₖ·Aₖ), [N, P, Q], with αₖ the mean of d score / d Aₖ.

    Aₖ are the maps that `layer` makes; by default those of the last convolution, after the norm and activation behind
    it. Of a residual network better name the last stage, such as "layer4". Selvaraju et al. 2017. Raises ValueError if
    there is no convolution, no such layer, or it makes no maps.
    """
    batch = _images(model, images)
    if layer is None:
        chain = (Conv2d, BatchNorm2d, *ACTIVATIONS)
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, chain)]
    else:
        layers = [(layer, named_layer(model, layer))]
    with evaluating(model):
        output, runs = watched(model, batch, layers)
        if layer is None:
            runs = _last_convolution(model, runs)
        if not runs:
            raise ValueError(f"layer {layer!r} does not run for these images")
        name, maps = runs[-1].name, runs[-1].output
        if maps.ndim != 4:
            raise ValueError(f"layer {name!r} makes {maps.shape[1:]}, no maps [K, P, Q]; name a convolution")
        maps.retain_grad()
        classes = chosen_classes(output, target)
        backward_from(output, classes)
    gradient = np.zeros(maps.shape) if maps.grad is None else maps.grad.numpy().astype(np.float64)
    importance = gradient.sum(axis=(2, 3)) / math.prod(gradient.shape[2:])
    evidence = np.einsum("nk,nkpq->npq", importance, maps.numpy().astype(np.float64))
    return Attribution(np.maximum(evidence, 0), classes, score_of(output, classes), class_count(output))


def _last_convolution(model: Module, runs: list[Run]) -> list[Run]:
    """The run of the last convolution, and those behind it of which each takes what the one before made."""
    last = max((i for i, run in enumerate(runs) if isinstance(run.module, Conv2d)), default=None)
    if last is None:
        raise ValueError(f"{type(model).__name__} has no Conv2d; name the layer whose maps are to be looked at")
    chain = [runs[last]]
    for run in runs[last + 1 :]:
        if run.inputs[0] is chain[-1].output:
            chain.append(run)
    return chain
