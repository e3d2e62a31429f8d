"""A program of its own, for what a process does only once: `python child.py import|step|memory ...`. See `processes`.

It prints one line of JSON. What it imports is part of what is measured, so nothing is imported before it is needed.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def first_step(provider: str, folder: str) -> float:
    """The loss of a first training step of LeNet-5; folder/problem.npz holds weights, images and labels."""
    import numpy as np

    with np.load(Path(folder) / "problem.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    images, labels = arrays.pop("images"), arrays.pop("labels")
    if not provider.startswith("torch"):
        import gpucnn

        with gpucnn.use_backend(provider):
            model = gpucnn.nn.models.LeNet5()
            model.load_state_dict(arrays)
            ours = gpucnn.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            loss = gpucnn.functional.cross_entropy(model(gpucnn.tensor(images)), labels)
            loss.backward()
            ours.step()
            return float(loss.item())
    torch: Any = import_module("torch")
    nn = torch.nn
    device = provider.split("-")[1]
    net = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    net.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    net.to(device)
    theirs = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    output = nn.functional.cross_entropy(net(torch.from_numpy(images).to(device)), torch.from_numpy(labels).to(device))
    output.backward()
    theirs.step()
    return float(output.item())


def peak_of_training(provider: str, network: str, folder: str, precision: str, threads: str) -> dict[str, Any]:
    """The peak of memory in bytes after three training steps, and the loss of the first."""
    import numpy as np

    from gpucnn.benchmark import providers, suites
    from gpucnn.benchmark.reference import NetworkProblem

    providers.limit_threads(int(threads))
    with np.load(Path(folder) / "problem.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    images, labels = arrays.pop("images"), arrays.pop("labels")
    chosen = next(one for one in suites.NETWORKS if one.name == network)
    made = providers.make(provider, precision, int(threads))
    work = made.work(NetworkProblem(chosen, True, arrays, images, labels, [], 0.0), "training", precision)
    loss = float(work.results(work.run())[0])
    work.run()
    work.run()
    made.synchronize()
    return {"loss": loss, "bytes": made.peak_memory()}


def main(action: str, *arguments: str) -> None:
    """Do it and print what came out."""
    if action == "import":
        import_module(arguments[0])
        print("{}")
    elif action == "step":
        print(json.dumps({"loss": first_step(*arguments)}))
    else:
        print(json.dumps(peak_of_training(*arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
