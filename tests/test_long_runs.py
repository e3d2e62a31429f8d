"""Long runs: nothing piles up, a loader that fails says where, and Ctrl-C is heard wherever it comes."""

import gc
import logging
import mmap
import os
import re
import signal
import sys
import threading
import time
import weakref

import long_run
import numpy as np
import pytest

import gpucnn
from gpucnn import nn, optim
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.data import Dataset, Loader, loader
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.train import Callback, TrainingInterrupted, fit

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what a process has is read from /proc")


# -- nothing piles up ------------------------------------------------------------------------------------------------


@pytest.fixture
def alone():
    """The objects of other tests are not counted, which takes long."""
    gc.collect()
    gc.freeze()


@LINUX
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("name", "steps"), [("fit", 90), ("graph, recorder", 45)])
def test_a_short_run_piles_up_nothing(name, steps):
    """The short version of `make soak`."""
    watch = long_run.trial(name, steps)
    assert re.fullmatch(rf"{name}: {steps} steps, rss .*, files \+0 files; \d+ MiB at the end", watch.check())
    assert len(watch.at) >= long_run.LOOKS
    assert min(watch.seen["rss"] + watch.seen["objects"]) > 0
    assert name == "fit" or min(watch.seen["pool"]) > 0


LEAKS = {
    "rss": lambda kept, loss: kept.append(fresh_memory(300_000)),
    "objects": lambda kept, loss: kept.append(loss),
    "pool": lambda kept, loss: kept.append(gpucnn.zeros(20).array),
    "threads": lambda kept, loss: kept.append(waiting_thread()),
    "files": lambda kept, loss: kept.append(os.open(os.devnull, os.O_RDONLY)),
}


def fresh_memory(size):
    """Of the system's, and none that this process has used before and freed."""
    memory = mmap.mmap(-1, size)
    memory.write(b"x" * size)
    return memory


def waiting_thread():
    end = threading.Event()
    threading.Thread(target=end.wait, daemon=True).start()
    return end


@LINUX
@pytest.mark.usefixtures("alone")
def test_what_a_step_leaves_behind_is_found():
    kept = []
    try:
        watch = long_run.trial("graph, recorder", 45, lambda loss: [leak(kept, loss) for leak in LEAKS.values()])
        with pytest.raises(long_run.Failed) as caught:
            watch.check()
    finally:
        for each in kept:
            if isinstance(each, threading.Event):
                each.set()
            elif isinstance(each, int):
                os.close(each)
        gc.collect()
    _, *said = str(caught.value).splitlines()
    assert [line.partition(" grew by ")[0] for line in said] == list(LEAKS)


def test_a_graph_that_nobody_uses_any_more_is_freed_with_its_memory():
    with gpucnn.use_backend(KernelBackend(RecorderDevice())), np.errstate(all="ignore"):
        step = long_run.Step()
        for _ in range(4):
            step()
        [plan] = step.compiled._plans.values()
        left = [weakref.ref(each) for each in (plan.graph, plan.graph.memory, step.optimizer)]
        del plan, step
        gc.collect()
        assert [each() for each in left] == [None] * 3


# -- the loader ------------------------------------------------------------------------------------------------------


def some_data(kind=Dataset):
    rng = np.random.default_rng(5)
    return kind(rng.integers(0, 256, (20, 5, 4, 1)).astype(np.uint8), rng.integers(0, 3, 20), ("a", "b", "c"), "dots")


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "gpucnn-loader"]


def failing_at(number, error):
    """An augmentation that raises at its call of that number."""
    calls = []

    def augment(images, generator):
        calls.append(len(images))
        if len(calls) == number:
            raise error
        return images

    return augment


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_in_the_loader_names_the_thread_the_batch_and_its_images(prefetch):
    batches = Loader(
        some_data(), 3, shuffle=True, seed=7, augment=failing_at(3, ZeroDivisionError("no pixels")), prefetch=prefetch
    ).epoch(4)
    order = np.random.default_rng(np.random.SeedSequence(7, spawn_key=(4, 0))).permutation(20)
    with pytest.raises(ZeroDivisionError, match=r"^no pixels\n") as caught:
        list(batches)
    numbers = ", ".join(map(str, order[6:9]))
    worker = "gpucnn-loader" if prefetch else threading.current_thread().name
    [note] = caught.value.__notes__
    assert note == f"while {worker} prepared batch 2 of epoch 4 (both counted from 0): images {numbers} of dots"
    assert loader_threads() == []


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_thread_of_the_loader_that_is_ended_does_not_end_the_process(error):
    with pytest.raises(
        RuntimeError, match=rf"was ended by {type(error).__name__}; while gpucnn-loader prepared batch 1 "
    ):
        list(Loader(some_data(), 4, augment=failing_at(2, error)))
    assert loader_threads() == []


def test_a_thread_of_the_loader_that_is_gone_is_noticed(monkeypatch):
    """As that of a parent process is in its forked child."""
    monkeypatch.setattr(loader, "_CHECK", 0.01)
    ended = threading.Thread(target=int)
    ended.start()
    ended.join()
    batches = loader.SimpleQueue()
    batches.put("the last")
    assert loader._taken(batches, ended, int) == "the last"
    with pytest.raises(RuntimeError, match=r"the thread of the loader is gone.*must begin an iteration of its own"):
        loader._taken(batches, ended, int)


class Stuck:
    """An augmentation that waits in the batch of that number, until it is let go."""

    def __init__(self, number):
        self.number, self.calls, self.reached, self.go_on = number, 0, threading.Event(), threading.Event()

    def __call__(self, images, generator):
        self.calls += 1
        if self.calls == self.number:
            self.reached.set()
            self.go_on.wait(20)
        return images


def test_a_loader_that_is_stuck_does_not_keep_its_user_waiting(monkeypatch, caplog):
    monkeypatch.setattr(loader, "PATIENCE", 0.05)
    stuck = Stuck(2)
    with caplog.at_level(logging.WARNING, "gpucnn"):
        for _ in Loader(some_data(), 4, augment=stuck):
            break
    assert "is still at a batch, after 0.05 s" in caplog.text
    stuck.go_on.set()
    [thread.join(5) for thread in loader_threads()]
    assert loader_threads() == []


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------


class Slow(Dataset):
    """Held-out images that take long to read, from the second batch on."""

    stuck = Stuck(0)

    def __getitem__(self, index):
        return Slow.stuck(super().__getitem__(index), None)


def training(folder, augment=None, held_out=None, callbacks=(), **options):
    gpucnn.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(20, 3))
    train = Loader(some_data(), 4, shuffle=True, augment=augment, prefetch=options.pop("prefetch", 1))
    history = fit(
        model, train, epochs=3, optimizer=optim.Adam(model.parameters(), 0.01), folder=folder, progress=False,
        held_out=Loader(held_out or some_data(), 8), callbacks=callbacks, **options,
    )  # fmt: skip
    return history.rows, [p.numpy().copy() for p in model.parameters()]


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_ctrl_c_is_heard_while_a_batch_is_waited_for(tmp_path, monkeypatch, where):
    monkeypatch.setattr(loader, "PATIENCE", 0.05)
    unbroken = training(tmp_path / "unbroken", Stuck(0))
    stuck = Stuck(8 if where == "training" else 5)  # the third batch of the second epoch; the second of its evaluation
    monkeypatch.setattr(Slow, "stuck", stuck if where == "evaluation" else Stuck(0))
    presser = threading.Thread(target=lambda: stuck.reached.wait(10) and (time.sleep(0.05), interrupt()))
    presser.start()
    start = time.monotonic()
    try:
        with pytest.raises(
            TrainingInterrupted, match=r"after 1 of 3 epochs and (2|5) of 5 batches; saved .*resume=True"
        ):
            training(tmp_path / "cut", stuck if where == "training" else Stuck(0), some_data(Slow))
        assert time.monotonic() - start < 10  # the batch itself would have taken 20 s
    finally:
        presser.join()
        stuck.go_on.set()
    [thread.join(5) for thread in loader_threads()]
    monkeypatch.setattr(Slow, "stuck", Stuck(0))
    assert_same(training(tmp_path / "cut", Stuck(0), some_data(Slow), resume=True), unbroken)


def assert_same(result, unbroken):
    assert result[0] == unbroken[0]
    for a, b in zip(result[1], unbroken[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("pressed_at", "batches"), [(1, 2), (2, 2), (3, 4)])
def test_ctrl_c_within_an_accumulated_step_waits_for_its_end(tmp_path, pressed_at, batches):
    """With two batches to a step. prefetch=0: they are prepared in this thread."""

    calls = []

    def pressing(images, generator):
        calls.append(1)
        if len(calls) == pressed_at:
            interrupt()
        return images

    with pytest.raises(TrainingInterrupted, match=f"after 0 of 3 epochs and {batches} of 5 batches; saved"):
        training(tmp_path / "cut", pressing, accumulate=2, prefetch=0)
    unbroken = training(tmp_path / "unbroken", pressing, accumulate=2, prefetch=0)
    assert_same(training(tmp_path / "cut", pressing, accumulate=2, prefetch=0, resume=True), unbroken)


def test_ctrl_c_while_the_second_batch_of_a_step_is_waited_for_waits_too(tmp_path):
    unbroken = training(tmp_path / "unbroken", Stuck(0), accumulate=2)
    stuck = Stuck(2)

    def press():
        stuck.reached.wait(10)
        interrupt()
        time.sleep(0.5)
        stuck.go_on.set()

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(TrainingInterrupted, match="after 0 of 3 epochs and 2 of 5 batches; saved"):
        training(tmp_path / "cut", stuck, accumulate=2)
    presser.join()
    assert_same(training(tmp_path / "cut", Stuck(0), accumulate=2, resume=True), unbroken)


class PressedTwice(Callback):
    def on_batch_end(self, state):
        if state.step == 7:
            interrupt()
            interrupt()


def test_ctrl_c_twice_leaves_the_last_checkpoint_and_no_thread(tmp_path):
    unbroken = training(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt) as caught:
        training(tmp_path / "cut", callbacks=[PressedTwice()])
    assert not isinstance(caught.value, TrainingInterrupted)
    assert loader_threads() == []
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [".lock", "checkpoint.safetensors"]
    assert_same(training(tmp_path / "cut", resume=True), unbroken)
