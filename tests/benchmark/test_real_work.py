"""Training to an accuracy: both see the same batches and weights, each seed is kept, and a stopped run goes on."""

from dataclasses import replace

import numpy as np
import pytest

import gpucnn
from gpucnn import data
from gpucnn.benchmark import real_work
from gpucnn.benchmark.real_work import Outcome, Work

CONDITIONS = "commit, machine"


@pytest.fixture
def tiny(monkeypatch):
    """A hundred digits of mnist-5k; two epochs."""
    whole = data.load("mnist-5k", split="train")
    images = data.Dataset(whole.images[::20][:120], whole.labels[::20][:120], whole.classes)
    monkeypatch.setattr(Work, "parts", lambda self: data.split(images, 0.2))
    return Work("tiny", 0.5, 2, 32, 0.05, batch_norm=True, augment=True)


def test_accuracies_are_those_of_gpucnns_own_training(tiny):
    from gpucnn import functional as F
    from gpucnn import optim, train

    images, held_out = tiny.parts()
    with gpucnn.use_backend("numpy"):
        model = tiny.model(3)
        augment = data.RandomAffine(15, (0.12, 0.12), (0.85, 1.15))
        loader = data.Loader(images, 32, shuffle=True, augment=augment, seed=3)
        optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=2e-3, nesterov=True)
        schedule = optim.OneCycleLR(optimizer, 0.05, 2 * len(loader))
        history = train.fit(
            model, loader, epochs=2, optimizer=optimizer, scheduler=schedule, loss=F.cross_entropy,
            held_out=data.Loader(held_out, 500), progress=False,
        )  # fmt: skip
    found = list(real_work.train(tiny, "numpy", 3))
    assert [accuracy for _, accuracy in found] == [row["held_out_accuracy"] for row in history.rows]
    assert 0 < found[0][0] < found[1][0]


@pytest.mark.parametrize("provider", ["torch-cpu", "torch-cpu-channels-last"])
def test_torch_takes_the_same_steps(tiny, torch, provider):
    """Without batch norm, whose roundings put values near a corner on its other side; test_providers has its twin."""
    tiny = replace(tiny, batch_norm=False)
    images, _ = tiny.parts()
    batches = list(data.Loader(images, 32, shuffle=True, seed=0).epoch(0))
    ours, theirs = real_work._Ours(tiny.model(0), "numpy"), real_work._Torch(tiny.model(0), provider)
    for x, labels in batches:
        for learner in (ours, theirs):
            learner.step(x, labels, 0.02)
    theirs.wait()
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours.classes(batches[0][0]), theirs.classes(batches[0][0]))


def test_each_seed_is_kept_and_a_stopped_run_goes_on_with_the_next(tiny, tmp_path, monkeypatch):
    path, trained = tmp_path / "real-work.jsonl", []

    def train(work, provider, seed):
        trained.append((provider, seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        yield 1.5, 0.4
        yield 3.0, 0.6 + seed / 100

    monkeypatch.setattr(real_work, "train", train)
    said = []
    with pytest.raises(KeyboardInterrupt):
        real_work.run([tiny], ["numpy", "torch-cpu"], 2, CONDITIONS, path, said.append)
    assert said[1] == "tiny seed 0 numpy: epoch 2/2, 60.0% after 3 s"
    outcomes = real_work.run([tiny], ["numpy", "torch-cpu"], 2, CONDITIONS, path, said.append)
    assert trained == [("numpy", 0), ("torch-cpu", 0), ("numpy", 1), ("numpy", 1), ("torch-cpu", 1)]
    assert [(o.provider, o.seed) for o in outcomes] == [("numpy", 0), ("torch-cpu", 0), ("numpy", 1), ("torch-cpu", 1)]
    assert real_work.load(path) == outcomes
    assert outcomes[2].seconds_to_target == 3.0
    real_work.run([tiny], ["numpy"], 1, "another commit", path, said.append)
    assert trained[-1] == ("numpy", 0)
    assert len(real_work.load(path)) == 5


def test_the_table_shows_providers_side_by_side_and_medians():
    def outcome(provider, seed, history):
        return Outcome("mnist-5k", provider, seed, CONDITIONS, 0.985, history)

    [table] = real_work.tables(
        [
            outcome("numpy", 0, [(10.0, 0.98), (20.0, 0.985)]),
            outcome("torch-cpu", 0, [(8.0, 0.99), (16.0, 0.984)]),
            outcome("numpy", 1, [(10.0, 0.986), (30.0, 0.99)]),
        ]
    )
    assert table.title == "Seconds of training to 98.5% on the held-out images of mnist-5k"
    assert table.rows == [
        ["0", "20.0 s", "20.0 s", "98.5%", "8.0 s", "16.0 s", "98.4%"],
        ["1", "10.0 s", "30.0 s", "99.0%", "–", "–", "–"],
        ["median", "15.0 s", "25.0 s", "98.8%", "8.0 s", "16.0 s", "98.4%"],
    ]


def test_an_accuracy_that_was_never_reached_is_said():
    [table] = real_work.tables([Outcome("mnist-5k", "numpy", 0, CONDITIONS, 0.985, [(10.0, 0.9)])])
    assert table.rows[0][1] == "never"


def test_the_works_are_the_two_that_are_named():
    assert [(work.name, work.target) for work in real_work.WORKS] == [("mnist-5k", 0.985), ("fashion-mnist", 0.90)]
    assert [real_work.able(name) for name in ("numpy", "torch-cuda", "jax", "torch-cuda-compile")] == [
        True, True, False, False,
    ]  # fmt: skip
    train, held_out = real_work.WORKS[0].parts()
    assert (len(train), len(held_out)) == (4000, 1000)
