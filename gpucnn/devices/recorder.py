"""RecorderDevice: notes each launch, computes nothing. Shows what a model would launch, and what must be compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.devices.base import Constants, Dim, Specialisation, kernel_folder, signature_of
from gpucnn.devices.host import HostDevice


@dataclass(frozen=True)
class Launched:
    """One launch: file, kernel, constants, grid and block."""

    file: str
    name: str
    constants: tuple[tuple[str, Any], ...]
    grid: Dim
    block: Dim


class RecorderDevice(HostDevice):
    """Checks each launch as every device does, then appends it to `launches`. Results hold nothing.

    Kernels are chosen as for a GPU of that `capability`.
    """

    name = "recorder"

    def __init__(self, capability: tuple[int, int] | None = None) -> None:
        self.capability = capability
        self.launches: list[Launched] = []

    def launch(self, file: str, name: str, constants: Constants, grid: Dim, block: Dim, *arguments: Any) -> None:
        signature_of(kernel_folder(), file, name).bound(constants).check(arguments, np)
        self.noted(file, name, constants, grid, block, *arguments)
        self.launches.append(Launched(file, name, tuple(sorted(constants.items())), grid, block))

    def specialisations(self) -> list[Specialisation]:
        """What these launches need compiled, each once, in the order of their first use."""
        return list(dict.fromkeys(Specialisation(one.file, one.name, one.constants) for one in self.launches))
