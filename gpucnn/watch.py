"""Run a model in evaluation mode, watch its layers, and leave it as it was: what explanations and pictures look at."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor, enable_grad, tensor


@dataclass(frozen=True)
class Run:
    """One layer's part in a forward pass."""

    name: str
    module: Module
    inputs: tuple[Any, ...]
    output: Tensor


def check_module(model: Any) -> None:
    """Raises TypeError for what is no module."""
    if not isinstance(model, Module):
        raise TypeError(f"model must be a gpucnn.nn.Module, got {type(model).__name__}")


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Evaluation mode and a tape inside; then every module has its mode back and every parameter its gradient."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        model.eval()
        with enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient


def watched(model: Module, x: Tensor, layers: Iterable[tuple[str, Module]]) -> tuple[Tensor, list[Run]]:
    """(the model's output, what each of the layers took and made, in the order in which they ran).

    A layer that is watched is computed by itself, not fused with its neighbours. Raises TypeError for a model whose
    output is not one tensor.
    """
    runs: list[Run] = []

    def watch(name: str, module: Module) -> Any:
        def hook(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
            runs.append(Run(name, module, inputs, output[0] if isinstance(output, tuple) else output))

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in layers]
    try:
        output = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor) or not output.ndim:
        raise TypeError(f"{type(model).__name__} must return one tensor [N, …], it returns a {type(output).__name__}")
    return output, runs


def leaves(model: Module) -> list[tuple[str, Module]]:
    """(name, module) of each layer that holds no other."""
    return [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]


def named_layer(model: Module, name: str) -> Module:
    """The layer of that dotted name, "" for the model itself. Raises ValueError, with the names that are like it."""
    check_module(model)
    every = dict(model.named_modules())
    if isinstance(name, str) and name in every:
        return every[name]
    known = [known for known, _ in leaves(model)]
    near = (isinstance(name, str) and difflib.get_close_matches(name, known, 5, 0.4)) or known[:12]
    more = f" … ({len(known)} in all)" if len(near) < len(known) else ""
    raise ValueError(f"{type(model).__name__} has no layer {name!r}; it has {', '.join(map(repr, near))}{more}")


def batch_of(model: Module, images: Any) -> Tensor:
    """Images as the model takes them: with a batch axis, of its dtype and on its backend, a leaf with a gradient.

    images is [N, C, H, W], or one image [C, H, W]; for a model of vectors [N, F] or [F]. Raises ValueError for others.
    """
    check_module(model)
    try:
        values = images.numpy() if isinstance(images, Tensor) else np.asarray(images)
    except ValueError as error:
        raise ValueError(f"these images are no array: {error}") from None
    if values.ndim not in (1, 2, 3, 4):
        raise ValueError(f"images must be [N, C, H, W] or one image [C, H, W], got shape {values.shape}")
    if values.ndim in (1, 3):
        values = values[None]
    if not values.size:
        raise ValueError(f"there is nothing to look at in images of shape {values.shape}")
    own = next(iter(model.parameters()), None)
    if own is None:
        dtype = values.dtype if values.dtype.kind == "f" else np.dtype(np.float32)
        return tensor(values, dtype, requires_grad=True, backend=images.backend if isinstance(images, Tensor) else None)
    return tensor(values, own.dtype, requires_grad=True, backend=own.backend)


def chosen_classes(output: Tensor, target: int | Sequence[int] | None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[N]: the class of each image, as given, or the one with the highest score.

    Raises IndexError for one that the output [N, classes, …] lacks, ValueError for another number than one or N.
    """
    scores = _scores(output)
    count, classes = scores.shape
    if target is None:
        return np.asarray(scores.argmax(axis=1), np.int64)
    given = np.asarray(target)
    if given.ndim > 1 or given.dtype.kind not in "iu" or given.size not in (1, count):
        raise ValueError(f"target must be a class, or one for each of the {count} images, got {target!r}")
    if given.min() < 0 or given.max() >= classes:
        raise IndexError(f"there is no class {target} among the model's {classes} outputs: 0 to {classes - 1}")
    return np.asarray(np.broadcast_to(given.reshape(-1), (count,)), np.int64)


def class_count(output: Tensor) -> int:
    """How many classes an output [N, classes, …] scores; 1 for [N]."""
    return output.shape[1] if output.ndim > 1 else 1


def score_of(output: Tensor, classes: Sequence[int] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[N] float64: the output for each image's class; where an output is a map, the sum over it."""
    return np.asarray(_scores(output)[np.arange(len(classes)), np.asarray(classes)])


def _scores(output: Tensor) -> np.ndarray[Any, Any]:
    """[N, classes] float64."""
    values = output.numpy().astype(np.float64)
    return values[:, None] if values.ndim == 1 else values.reshape(*values.shape[:2], -1).sum(axis=2)


def backward_from(output: Tensor, classes: np.ndarray[Any, Any]) -> None:
    """Carry back the gradient of the images' scores, summed; as images do not mix, each gets that of its own score."""
    seed = np.zeros(output.shape)
    if output.ndim == 1:
        seed[:] = 1
    else:
        seed[np.arange(len(classes)), classes] = 1
    output.backward(tensor(seed, output.dtype, backend=output.backend))
