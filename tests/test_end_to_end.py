"""Networks train for twenty steps: the losses on a backend are those of the exact training, as near as rounding lets.

Exact is the NumPy backend in float64. How far a right float32 backend may drift from it is computed, by Monte Carlo
arithmetic (Parker 1997): the training is repeated in float64 while every floating argument of every primitive is
changed, element by element, by a random relative amount of at most γ = n · u. u is float32's unit roundoff, n the terms
of the longest sums, over the pixels of a batch. Why that bounds a right backend, whatever the order of its sums:

- A sum of n products, computed in any order, is the exact sum of arguments that are changed by at most γ each (Higham,
  Accuracy and Stability of Numerical Algorithms, §3.1). So a right primitive computes exactly, of arguments that might
  have been drawn.
- While changes are small, the drift of a loss is a sum Σ gᵢ·eᵢ over all of them, with the same gᵢ for the backend and
  for what is drawn. The error of a sum of n terms t, each partial sum rounded, has a deviation of at most
  u·n^1.5·t / 3, reached by equal signs in one chain; what is drawn, n changes of up to n·u·t, has u·n^1.5·t / √3. So a
  drawn drift is expected to be √3 times that of the worst right backend, and far more in shorter sums and with both
  signs. The bound at a step is the largest of several drawn drifts up to there: drift may end, but is not trusted to.
- A ReLU or a pool that chooses otherwise makes a jump. What is drawn is changed more, so it jumps more often.

No factor is chosen. That a wrong tap does not hide below this bound is tested at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from numerics import Array, unit_roundoff

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim
from gpucnn.backends import Backend
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.data import x_or_not_x

STEPS, BATCH, BATCHES, RUNS = 20, 2, 4, 4
PRIMITIVES = Backend.__abstractmethods__ - {"asarray", "to_numpy", "synchronize"}


def lenet5() -> tuple[nn.Module, optim.Optimizer]:
    """LeNet-5 with batch norm, and dropout before its last layer."""
    *layers, last = nn.models.LeNet5(2, batch_norm=True)
    model = nn.Sequential(*layers, nn.Dropout(0.25), last)
    return model, optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)


def resnet() -> tuple[nn.Module, optim.Optimizer]:
    """A ResNet of two stages of a block each: a stride, a 1×1 shortcut, global average pooling."""
    model = nn.models.ResNet("basic", (1, 1), (8, 12), num_classes=2, in_channels=1, stem="cifar")
    return model, optim.Adam(model.parameters(), lr=0.01)


NETWORKS: dict[str, tuple[Callable[[], tuple[nn.Module, optim.Optimizer]], tuple[int, int]]] = {
    "lenet5": (lenet5, (28, 28)),
    "resnet": (resnet, (16, 15)),
}
every_network = pytest.mark.parametrize("network", NETWORKS)


def losses(network: str, backend: str | Backend, dtype: str = "float32") -> Array:
    """The loss of each step, on the batches in turn; and at last that of the trained network's evaluation."""
    make, size = NETWORKS[network]
    drawn = x_or_not_x(BATCH * BATCHES, size, seed=5)
    images, labels = drawn.images.transpose(0, 3, 1, 2).astype(dtype), np.asarray(drawn.labels)
    gpucnn.manual_seed(11)
    with gpucnn.use_backend("numpy"):
        model, optimizer = make()
    model.to(dtype).to(backend)

    def loss(chosen: slice) -> gpucnn.Tensor:
        return F.cross_entropy(model(gpucnn.tensor(images[chosen], backend=backend)), labels[chosen])

    found = []
    for step in range(STEPS):
        first = step % BATCHES * BATCH
        optimizer.zero_grad()
        value = loss(slice(first, first + BATCH))
        value.backward()
        optimizer.step()
        found.append(value.item())
    model.eval()
    with gpucnn.no_grad():
        found.append(loss(slice(None)).item())
    return np.array(found)


class Drawn(NumpyBackend):
    """Every floating argument of a primitive is changed at random, those that change in place for good."""

    def __init__(self, largest: float, seed: int) -> None:
        super().__init__()
        self.largest, self.random = largest, np.random.default_rng(seed)
        for name in PRIMITIVES:
            setattr(self, name, partial(self.drawn, getattr(super(), name)))

    def drawn(self, primitive: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return primitive(*map(self.changed, arguments), **named)

    def changed(self, value: Any) -> Any:
        if isinstance(value, list):  # of an optimiser: parameters, gradients, moments
            for array in value:
                if array is not None:
                    array *= 1 + self.largest * self.random.uniform(-1, 1, array.shape)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            return value * (1 + self.largest * self.random.uniform(-1, 1, value.shape))
        return value


@cache
def exact(network: str) -> Array:
    return losses(network, "numpy", "float64")


@cache
def bounds(network: str) -> Array:
    """The largest drift of each loss, as the module's docstring says."""
    largest = BATCH * math.prod(NETWORKS[network][1]) * unit_roundoff("float32")
    drifts = [np.abs(losses(network, Drawn(largest, seed), "float64") - exact(network)) for seed in range(RUNS)]
    return np.maximum.accumulate(np.max(drifts, axis=0))


@cache
def trained(network: str, backend: str) -> Array:
    return losses(network, backend)


@pytest.mark.emulated
@every_network
def test_the_losses_of_twenty_steps_fall_and_are_the_exact_ones_within_the_computed_bound(
    network: str, backend: str
) -> None:
    before, after = exact(network)[:BATCHES].mean(), exact(network)[STEPS - BATCHES : STEPS].mean()
    assert after < before - 10 * bounds(network)[STEPS]
    drift = np.abs(trained(network, backend) - exact(network))
    over = np.flatnonzero(~(drift <= bounds(network)))
    assert not over.size, (
        f"step {over[0]}: the loss is off by {drift[over[0]]:.3g}, within {bounds(network)[over[0]]:.3g}"
    )


@every_network
def test_two_trainings_give_equal_bits(network: str, backend: str) -> None:
    np.testing.assert_array_equal(losses(network, backend), trained(network, backend))


# -- the bound is not so wide that something wrong passes ------------------------------------------------------------


class Planted(NumpyBackend):
    """In place of one primitive, wrong(the right one, *arguments) computes."""

    def __init__(self, name: str, wrong: Callable[..., Any]) -> None:
        super().__init__()
        setattr(self, name, partial(wrong, getattr(super(), name)))


def last_tap_zero(w: Any) -> Any:
    """Of 3×3 filters; others stay."""
    w = w.copy()
    w[:, :, 2:, 2:] = 0
    return w


def of_filters_without_a_tap(right: Callable[..., Any], first: Any, w: Any, *rest: Any) -> Any:
    return right(first, last_tap_zero(w), *rest)


def a_step_ahead(settings: Any) -> Any:
    return settings._replace(step=settings.step + 1)


WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "a tap of the forward pass": ("conv2d_forward", of_filters_without_a_tap),
    "a tap of the input's gradient": ("conv2d_backward_input", of_filters_without_a_tap),
    "a tap of the weight's gradient": ("conv2d_backward_weight", lambda right, *given: last_tap_zero(right(*given))),
    "one per cent of batch norm": ("batch_norm_forward", lambda right, *given: right(*given) * np.float32(0.99)),
    "Adam's first step": ("adam_update", lambda right, *given: right(*given[:-1], given[-1].then(a_step_ahead))),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_out_of_the_bound(wrong: str) -> None:
    drift = np.abs(losses("resnet", Planted(*WRONG[wrong])) - exact("resnet"))
    assert (drift > bounds("resnet")).any()
