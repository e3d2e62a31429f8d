"""What Python takes for a step on a GPU, measured without one.

    python bench/host_time.py lenet5 --batch 8      # a training step
    python bench/host_time.py resnet18 --batch 1    # inference

Arrays are NumPy's instead of CuPy's, and a launch is checked and prepared as on a GPU, but not made. A GPU that needs
less than this for the kernels of a step waits for the host, unless the step is a graph (docs/graphs.md).
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

import gpucnn
from gpucnn import functional as F
from gpucnn import optim
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.base import Constants, Device, Dim, Specialisation, kernel_folder, signature_of
from gpucnn.nn import models

NETWORKS = {
    "lenet5": (models.LeNet5, (1, 28, 28)),
    "resnet20": (models.resnet20, (3, 32, 32)),
    "resnet18": (models.resnet18, (3, 224, 224)),
}


class NoDevice(Device):
    """Does what a GPU's device does with a launch, but for the launch."""

    name = "none"
    xp = np
    capability = (9, 0)

    def __init__(self) -> None:
        self._kernels = kernel_folder()
        self.launches, self.seconds = 0, 0.0

    def launch(self, file: str, name: str, constants: Constants, grid: Dim, block: Dim, *arguments: Any) -> None:
        """Checks, and finds what would be launched."""
        start = time.perf_counter()
        bound = signature_of(self._kernels, file, name).bound(constants)
        bound.check(arguments, np)
        for dtype, argument in zip(bound.types, arguments, strict=True):
            if isinstance(argument, int | float):
                dtype.type(argument)
        hash(Specialisation(file, name, tuple(sorted(constants.items()))))
        self.launches += 1
        self.seconds += time.perf_counter() - start

    def synchronize(self) -> None:
        """Nothing is under way."""

    def to_numpy(self, array: Any) -> Any:
        """As it is."""
        return array


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=8, help="images (default: 8)")
    parser.add_argument("--steps", type=int, default=50, help="that are measured (default: 50)")
    asked = parser.parse_args()
    device = NoDevice()
    backend, rng = KernelBackend(device), np.random.default_rng(0)
    make, shape = NETWORKS[asked.network]
    model = make().to(backend)
    images = gpucnn.tensor(rng.standard_normal((asked.batch, *shape), np.float32), backend=backend)
    labels = gpucnn.tensor(rng.integers(0, 10, asked.batch), backend=backend)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    @gpucnn.no_grad
    def infer() -> None:
        model(images)

    step = train
    if asked.network == "resnet18":
        model.eval()
        step = infer
    for _ in range(3):
        step()
    device.launches, device.seconds, seconds = 0, 0.0, []
    for _ in range(asked.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    step_ms, launch_us = statistics.median(seconds) * 1e3, device.seconds / device.launches * 1e6
    print(
        f"{asked.network}, batch {asked.batch}: {step_ms:.2f} ms a step, {device.launches // asked.steps} launches, "
        f"{launch_us:.0f} µs to check and prepare each"
    )


if __name__ == "__main__":
    main()
