"""The NumPy backend against PyTorch on the CPU: images a second, and the memory of a training step.

    python bench/cpu_training.py [--seconds 20] [--only lenet5] [--json cpu.json]

Both run in this process, with the same threads, weights and images, in turns of a few steps each, so that a busy
machine slows both. A figure is the median over the turns; a ratio is the median of the ratios of neighbouring turns.
The losses of both must agree before anything is timed. PyTorch runs eagerly, with its default contiguous tensors and
with channels_last ones. Without PyTorch installed only gpucnn is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import numpy as np  # noqa: E402  (OpenBLAS reads the variable when it is loaded)

import gpucnn  # noqa: E402
from gpucnn.nn import models  # noqa: E402

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

Step = Callable[[], float]  # one training step or one inference; returns the loss or the sum of the outputs


@dataclass(frozen=True)
class Task:
    name: str
    net: Callable[[], gpucnn.nn.Module]
    batch: int
    image: tuple[int, int, int]
    classes: int
    train: bool


TASKS = (
    Task("lenet5 training, batch 64", models.LeNet5, 64, (1, 28, 28), 10, True),
    Task("lenet5 training, batch 256", models.LeNet5, 256, (1, 28, 28), 10, True),
    Task("resnet20 training, batch 64", models.resnet20, 64, (3, 32, 32), 10, True),
    Task("resnet18 inference, batch 1", models.resnet18, 1, (3, 224, 224), 1000, False),
)
LR, MOMENTUM = 0.01, 0.9


def data(task: Task) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((task.batch, *task.image)).astype(np.float32)
    return images, rng.integers(0, task.classes, task.batch)


def our_step(task: Task, net: gpucnn.nn.Module) -> Step:
    images, labels = data(task)
    x = gpucnn.tensor(images, backend="numpy")
    if not task.train:
        net.eval()

        def infer() -> float:
            with gpucnn.no_grad():
                return float(net(x).numpy().sum())

        return infer
    optimizer = gpucnn.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> float:
        optimizer.zero_grad()
        loss = gpucnn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


# -- PyTorch's twins ---------------------------------------------------------------------------------------------------


def twin(task: Task) -> Any:
    """The same network in PyTorch, with the same names of parameters."""
    from torch import nn
    from torch.nn import functional as F

    if task.net is models.LeNet5:
        return nn.Sequential(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
        )

    class Block(nn.Module):
        def __init__(self, channels: int, width: int, stride: int, pad: bool) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.stride, self.extra = stride, width - channels
            project = self.extra and not pad
            self.downsample = (
                nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
                if project
                else None
            )

        def forward(self, x: Any) -> Any:
            if self.downsample is not None:
                shortcut = self.downsample(x)
            elif self.extra:
                shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
            else:
                shortcut = x
            return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)

    class ResNet(nn.Module):
        def __init__(self, blocks: int, widths: tuple[int, ...], classes: int, imagenet: bool) -> None:
            super().__init__()
            channels = widths[0]
            self.conv1 = nn.Conv2d(3, channels, *((7, 2, 3) if imagenet else (3, 1, 1)), bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
            self.stages = len(widths)
            for stage, width in enumerate(widths):
                layer = []
                for i in range(blocks):
                    layer.append(Block(channels, width, 2 if stage and not i else 1, pad=not imagenet))
                    channels = width
                setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
            self.fc = nn.Linear(channels, classes)

        def forward(self, x: Any) -> Any:
            y = self.maxpool(F.relu(self.bn1(self.conv1(x))))
            for stage in range(self.stages):
                y = getattr(self, f"layer{stage + 1}")(y)
            return self.fc(y.mean((2, 3)))

    if task.net is models.resnet20:
        return ResNet(3, (16, 32, 64), 10, imagenet=False)
    return ResNet(2, (64, 128, 256, 512), 1000, imagenet=True)


def their_step(task: Task, net: gpucnn.nn.Module, channels_last: bool) -> Step:
    images, labels = data(task)
    module = twin(task)
    state = {name: torch.tensor(np.ascontiguousarray(value.numpy())) for name, value in net.state_dict().items()}
    module.load_state_dict(state, strict=False)  # PyTorch counts batches too
    x, target = torch.tensor(images), torch.tensor(labels)
    if channels_last:
        module, x = module.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if not task.train:
        module.eval()

        def infer() -> float:
            with torch.no_grad():
                return float(module(x).sum())

        return infer
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), target)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


# -- measuring ---------------------------------------------------------------------------------------------------------


def check_agreement(task: Task, steps: dict[str, Step]) -> None:
    """Three steps of each give the same losses, or the timing would compare different things."""
    losses = {name: [step() for _ in range(3)] for name, step in steps.items()}
    ours = losses["gpucnn"]
    for name, theirs in losses.items():
        if not np.allclose(ours, theirs, rtol=2e-3, atol=2e-3):
            raise SystemExit(f"{task.name}: gpucnn computes {ours}, {name} {theirs}: the networks differ")


def measure(task: Task, steps: dict[str, Step], seconds: float) -> dict[str, Any]:
    """Images a second of each, in turns of about a tenth of a second."""
    counts = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        counts[name] = max(1, round(0.1 / (time.perf_counter() - start)))
    rates: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates["gpucnn"]) < 5:
        for name, step in steps.items():
            step()  # caches, and threads that spin after the other's turn
            start = time.perf_counter()
            for _ in range(counts[name]):
                step()
            rates[name].append(counts[name] * task.batch / (time.perf_counter() - start))
    row: dict[str, Any] = {"task": task.name, "turns": len(rates["gpucnn"])}
    for name, values in rates.items():
        row[name] = round(statistics.median(values), 1)
        row[f"{name} spread"] = [round(float(q), 1) for q in np.percentile(values, [10, 90])]
    row["ratios"] = {
        name: round(statistics.median(a / b for a, b in zip(rates["gpucnn"], values, strict=True)), 3)
        for name, values in rates.items()
        if name != "gpucnn"
    }
    return row


def peak_memory() -> int:
    """Peak bytes of this process, NumPy and Python included, after three steps of ResNet-20 at batch 64."""
    task = TASKS[2]
    step = our_step(task, task.net())
    for _ in range(3):
        step()
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage counts what the parent used before it started this process
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20, help="measuring time of each task (default: 20)")
    parser.add_argument("--only", default="", help="only tasks whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(peak_memory())
        return
    rows = []
    for task in (task for task in TASKS if arguments.only in task.name):
        gpucnn.manual_seed(0)
        net = task.net()
        steps: dict[str, Step] = {}
        if torch is not None:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
            steps |= {"pytorch": their_step(task, net, False), "pytorch channels_last": their_step(task, net, True)}
        steps["gpucnn"] = our_step(task, net)
        check_agreement(task, steps)
        rows.append(measure(task, steps, arguments.seconds))
        row = rows[-1]
        speeds = ", ".join(f"{name} {row[name]:,.1f}" for name in steps)
        ratios = "".join(f", {ratio:.2f}× {name}" for name, ratio in row["ratios"].items())
        print(f"{task.name:27} {speeds} images/s{ratios} ({row['turns']} turns)", flush=True)
    # In a process of its own, without PyTorch's memory.
    command = [sys.executable, "-c", f"import sys; sys.modules['torch'] = None; sys.argv = {[__file__, '--memory']!r}; "
               f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"]  # fmt: skip
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"resnet20 training, batch 64: peak memory of the process {peak / 2**20:,.0f} MiB")
    if arguments.json:
        report = {
            "machine": f"{platform.machine()}, {THREADS} cores",
            "threads": os.environ["OMP_NUM_THREADS"],
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pytorch": None if torch is None else torch.__version__,
            "images_per_second": rows,
            "resnet20_peak_bytes": peak,
        }
        partial = arguments.json.with_suffix(".partial")
        partial.write_text(json.dumps(report, indent=2) + "\n")
        os.replace(partial, arguments.json)


if __name__ == "__main__":
    main()
