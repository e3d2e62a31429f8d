"""Compiling ahead what training a model will launch: `gpucnn warmup`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from gpucnn import functional as F
from gpucnn import optim
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import Problem, Variant
from gpucnn.creation import zeros
from gpucnn.devices import Specialisation
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.nn import Module
from gpucnn.tensor import no_grad

SHORT_BATCH = 2  # stands for the last batch of an epoch, which may get other tiles; batch norm needs two values


def training_kernels(
    model: Module,
    image_shape: Sequence[int],
    batch_size: int = 64,
    capability: tuple[int, int] | None = None,
    chooser: Callable[[Problem], Variant] | None = None,
) -> list[Specialisation]:
    """The kernels of `train_once` for batches of that size and short ones, in order; nothing is computed.

    image_shape: [C, H, W]; capability: the device's, for which kernels are chosen; chooser: a backend's `choose`, if
    not by their shapes alone. The model stays as it is. Raises ValueError if it does not take such images.
    """
    recorder = RecorderDevice(capability)
    twin = copy.deepcopy(model).to(KernelBackend(recorder, chooser))
    with warnings.catch_warnings(action="ignore"):  # what the recorder returns is any number, also NaN
        for n in (batch_size, SHORT_BATCH):
            train_once(twin, image_shape, n)
    return recorder.specialisations()


def train_once(model: Module, image_shape: Sequence[int], batch_size: int) -> None:
    """A step of training with each optimiser, and an evaluation, on black images. Changes the model.

    Raises ValueError for a model without parameters, and if it does not take such images.
    """
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError("the model has no parameters, so there is nothing to train")
    backend, dtype = parameters[0].backend, parameters[0].dtype
    images = zeros(batch_size, *image_shape, dtype=dtype, backend=backend)
    output = model.train()(images)
    classifies = output.ndim == 2 and output.shape[1] > 1
    loss = F.cross_entropy(output, np.zeros(batch_size, np.int64)) if classifies else output.sum()
    loss.backward()
    for optimizer in (optim.SGD(parameters, momentum=0.9), optim.Adam(parameters), optim.RMSprop(parameters)):
        optimizer.step()
    model.eval()
    with no_grad():
        model(images)
    backend.synchronize()
