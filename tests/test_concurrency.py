"""Threads, tasks and processes: what docs/threads.md says. Nothing here can hang: all waiting has an end."""

import asyncio
import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import gpucnn
from gpucnn import data, nn, optim, train
from gpucnn import functional as F
from gpucnn.backends import tuning
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.backends.numpy_parallel import workers
from gpucnn.checkpoint import load_model, save_model
from gpucnn.devices.emulator import compiler
from gpucnn.random import default_generator, get_generator

TESTS = Path(__file__).parent
PATIENCE = 60  # seconds
FORKS = "fork" in multiprocessing.get_all_start_methods()


@pytest.fixture(autouse=True)
def on_numpy():
    with gpucnn.use_backend("numpy"):
        yield


@pytest.fixture
def emulator():
    try:
        compiler()
    except RuntimeError as error:
        pytest.skip(str(error))


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """What each returns, all begun at the same moment in threads of their own; the first error that one raises."""
    start = threading.Barrier(len(functions))
    answers: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def run(i: int, function: Callable[[], Any]) -> None:
        try:
            start.wait(PATIENCE)
            answers.put((i, function(), None))
        except BaseException as error:
            answers.put((i, None, error))

    for i, function in enumerate(functions):
        threading.Thread(target=run, args=(i, function), daemon=True).start()
    found: dict[int, Any] = {}
    for _ in functions:
        try:
            i, value, error = answers.get(timeout=PATIENCE)
        except Empty:
            pytest.fail(f"a thread still runs after {PATIENCE} s")
        if error is not None:
            raise error
        found[i] = value
    return [found[i] for i in range(len(functions))]


def script(code: str, *arguments: str, **environment: str) -> str:
    """What a process of its own prints, which may crash or hang without harm to this one."""
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{code}", *arguments],
        env={**os.environ, "GPUCNN_BACKEND": "numpy", "PYTHONPATH": str(TESTS.parent), **environment},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert found.returncode == 0, f"exit code {found.returncode}\n{found.stdout}\n{found.stderr}"
    return found.stdout


def bits(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value.numpy()).tobytes())
    return digest.hexdigest()


def trained(seed: int) -> str:
    """The bits of a network after two epochs: threads of the pool, dropout, batch norm, a loader's thread."""
    with gpucnn.use_generator(gpucnn.Generator(seed)):
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(8 * 8 * 7, 2),
        )  # fmt: skip
        loader = data.Loader(data.x_or_not_x(128, size=(16, 14), seed=seed), 64, shuffle=True, seed=seed)
        train.fit(model, loader, epochs=2, optimizer=optim.Adam(model.parameters()))
    return bits(*model.state_dict().values())


# -- two at once -------------------------------------------------------------------------------------------------------


def test_two_trainings_in_two_threads_have_the_bits_of_each_alone() -> None:
    alone = [trained(3), trained(4)]
    default_generator.manual_seed(0)
    for _ in range(2):
        assert in_threads(lambda: trained(3), lambda: trained(4)) == alone
    assert default_generator.offset == 0
    assert alone[0] != alone[1]


def test_one_model_predicts_in_several_threads_at_once() -> None:
    model = nn.models.LeNet5(num_classes=3, image_size=(16, 14)).eval()
    images = np.asarray(np.random.default_rng(0).random((24, 1, 16, 14)), np.float32)
    expected = train.predict(model, images)
    found = in_threads(*[lambda: [train.predict(model, images) for _ in range(5)]] * 4)
    assert all((answer == expected).all() for answers in found for answer in answers)


def test_a_loader_gives_an_epoch_to_several_threads_at_once() -> None:
    loader = data.Loader(
        data.x_or_not_x(50, size=(9, 8)), 8, shuffle=True, augment=data.RandomHorizontalFlip(), prefetch=3
    )
    expected = [(images.tobytes(), labels.tobytes()) for images, labels in loader.epoch(2)]

    def read() -> list[tuple[bytes, bytes]]:
        return [(images.tobytes(), labels.tobytes()) for images, labels in loader.epoch(2)]

    assert in_threads(read, read, read) == [expected] * 3


def test_blas_is_held_to_one_thread_until_the_last_of_several_runs_ends() -> None:
    inside, first_ended = threading.Event(), threading.Event()
    before = [get() for get, _ in workers._blas]
    found: list[list[int]] = []

    def lasting(i: int) -> None:
        inside.set()
        assert first_ended.wait(PATIENCE)
        found.append([get() for get, _ in workers._blas])

    def short() -> None:
        assert inside.wait(PATIENCE)
        workers.run(lambda i: None, 1)
        first_ended.set()

    with threadpool_limits(2, "blas"):
        in_threads(lambda: workers.run(lasting, 1), short)
        assert found == [[1] * len(workers._blas)]
        assert [get() for get, _ in workers._blas] == [2] * len(workers._blas)
    assert [get() for get, _ in workers._blas] == before


SEVERAL_DEVICES = """
import threading
from queue import SimpleQueue
import numpy as np, pytest
import gpucnn
from gpucnn import nn, optim, functional as F
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.cuda import CudaDevice
from gpucnn.devices.emulator import EmulatorDevice
import fake_cupy

with pytest.MonkeyPatch.context() as patch:
    fake_cupy.install(patch)
    cuda = CudaDevice()
    backends = [gpucnn.get_backend("numpy"), KernelBackend(EmulatorDevice()), KernelBackend(EmulatorDevice()),
                KernelBackend(cuda), KernelBackend(cuda)]

    def losses(backend):
        with gpucnn.use_backend(backend), gpucnn.use_generator(gpucnn.Generator(3)):
            model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.3), nn.Linear(40, 3))
            optimizer, images, found = optim.SGD(model.parameters(), 0.1), gpucnn.rand(8, 6), []
            for _ in range(4):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), np.arange(8) % 3)
                loss.backward()
                optimizer.step()
                found.append(loss.item())
        return found

    alone = [losses(backend) for backend in backends]
    for _ in range(2):
        start, answers = threading.Barrier(len(backends)), SimpleQueue()

        def run(i):
            start.wait(30)
            answers.put((i, losses(backends[i])))

        for i in range(len(backends)):
            threading.Thread(target=run, args=(i,), daemon=True).start()
        together = dict(answers.get(timeout=30) for _ in backends)
        assert [together[i] for i in range(len(backends))] == alone, (together, alone)
print("equal")
"""


def test_several_backends_and_devices_compute_in_threads_at_once(emulator: None) -> None:
    """NumPy, two emulators, and CuPy's stand-in twice. The emulator's launches crash unless one waits for the other."""
    assert script(SEVERAL_DEVICES) == "equal\n"


# -- scopes ------------------------------------------------------------------------------------------------------------


class Abacus(NumpyBackend):
    name = "abacus"


SCOPES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "use_backend": (lambda: gpucnn.use_backend(Abacus()), lambda: gpucnn.zeros(1).backend.name == "abacus"),
    "no_grad": (gpucnn.no_grad, lambda: not gpucnn.is_grad_enabled()),
    "autocast": (gpucnn.autocast, gpucnn.is_autocast_enabled),
    "precision": (lambda: gpucnn.precision("tf32"), lambda: gpucnn.backends.get_precision() == "tf32"),
    "use_tuning": (lambda: gpucnn.use_tuning(False), lambda: not tuning._allowed.get()),
    "use_generator": (lambda: gpucnn.use_generator(gpucnn.Generator(9)), lambda: get_generator().seed == 9),
}
EVERY_SCOPE = pytest.mark.parametrize("name", SCOPES)


@EVERY_SCOPE
def test_a_scope_holds_in_its_own_thread_and_not_in_one_that_is_begun_within(name: str) -> None:
    scope, holds = SCOPES[name]
    inside, looked = threading.Event(), threading.Event()

    def with_scope() -> tuple[bool, list[bool]]:
        with scope():
            inside.set()
            assert looked.wait(PATIENCE)
            return holds(), in_threads(holds)

    def without() -> bool:
        assert inside.wait(PATIENCE)
        seen = holds()
        looked.set()
        return bool(seen)

    within = [False]
    if getattr(sys.flags, "thread_inherit_context", 0):  # free-threaded Python 3.14
        within = [True]
    assert in_threads(with_scope, without) == [(True, within), False]
    assert not holds()


@EVERY_SCOPE
def test_a_scope_belongs_to_its_asyncio_task_and_goes_along_to_those_begun_within(name: str) -> None:
    scope, holds = SCOPES[name]

    async def main() -> list[bool]:
        inside, looked = asyncio.Event(), asyncio.Event()

        async def look() -> bool:
            return bool(holds())

        async def with_scope() -> list[bool]:
            with scope():
                inside.set()
                await looked.wait()
                return [await asyncio.create_task(look()), await asyncio.to_thread(holds)]

        task = asyncio.create_task(with_scope())
        await inside.wait()
        seen = await look()
        looked.set()
        return [seen, *await task, await look()]

    found = asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert found == [False, True, True, False]


def test_a_thread_may_compute_on_a_device_while_another_captures_a_step_there(emulator: None) -> None:
    capturing, computed = threading.Event(), threading.Event()
    with gpucnn.use_backend("emulator") as backend:
        x = gpucnn.ones(2, 3)

    @gpucnn.compile
    def step(x: gpucnn.Tensor) -> gpucnn.Tensor:
        y = x * 2
        if backend.capturing:
            capturing.set()
            assert computed.wait(PATIENCE)
        return y + 1

    def compile_it() -> list[Any]:
        return [step(x).numpy().tolist() for _ in range(4)]

    def compute() -> list[Any]:
        with gpucnn.use_backend(backend):
            assert capturing.wait(PATIENCE)
            try:
                made = gpucnn.rand(2, 3), gpucnn.tensor([[4.0, 5.0]])  # from the host, which a capture refuses
                return [len(made), (made[1] * 3).numpy().tolist(), backend.capturing]
            finally:
                computed.set()

    compiled, others = in_threads(compile_it, compute)
    assert compiled == [[[3.0] * 3] * 2] * 4
    assert others == [2, [[12.0, 15.0]], False]
    assert step.reason is None


# -- random numbers ----------------------------------------------------------------------------------------------------


class Slow(int):
    """A count whose arithmetic lets other threads in between."""

    def __neg__(self) -> int:
        time.sleep(0.002)
        return -int(self)


def test_no_two_threads_get_the_same_words_of_a_generator() -> None:
    generator = gpucnn.Generator(3)
    found = in_threads(*[lambda: [generator.reserve(Slow(4))[1] for _ in range(10)]] * 4)
    assert sorted(offset for offsets in found for offset in offsets) == list(range(40))


def test_loading_a_model_does_not_turn_back_the_random_numbers_of_other_threads(tmp_path, monkeypatch) -> None:
    save_model(nn.Linear(5, 4), tmp_path / "m")
    default_generator.manual_seed(0)
    build = gpucnn.checkpoint.build

    def build_meanwhile(*arguments: Any) -> Any:
        in_threads(lambda: F.dropout(gpucnn.ones(40)))
        return build(*arguments)

    monkeypatch.setattr(gpucnn.checkpoint, "build", build_meanwhile)
    load_model(tmp_path / "m")
    assert default_generator.offset == 10
    assert default_generator.state() == {**gpucnn.Generator(0).state(), "offset": 10}


def test_a_seed_inside_of_use_generator_is_that_generators() -> None:
    default_generator.manual_seed(1)
    with gpucnn.use_generator(gpucnn.Generator(5)) as own:
        gpucnn.manual_seed(7)
    assert (own.seed, default_generator.seed) == (7, 1)
    with pytest.raises(TypeError, match=r"use_generator: generator must be a gpucnn\.Generator, got 5"):
        gpucnn.use_generator(5).__enter__()  # type: ignore[arg-type]


# -- processes ---------------------------------------------------------------------------------------------------------

FORK = """
import hashlib, multiprocessing, os, signal, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np
import gpucnn
from gpucnn import backends, functional as F
from gpucnn.backends import numpy_parallel
from gpucnn.devices import emulator

workers = numpy_parallel.workers
x, w = gpucnn.rand(16, 8, 40, 36), gpucnn.rand(8, 8, 3, 3)

def answer():
    y = F.dropout(F.conv2d(x, w), generator=gpucnn.Generator(1))
    return hashlib.sha256(np.ascontiguousarray(y.numpy())).hexdigest()

expected, before = answer(), [get() for get, _ in workers._blas]
assert workers.threads == 2 and workers._process == os.getpid()
context = multiprocessing.get_context("fork")

def child(pipe):
    signal.alarm(20)
    pipe.send([gpucnn.get_backend("numpy") is x.backend, answer(), gpucnn.Generator(2).reserve(5),
               emulator._launching.acquire(timeout=5), [get() for get, _ in workers._blas],
               gpucnn.rand(3).tolist()])

def forked():
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(there,))
    process.start()
    assert here.poll(30), "the child hangs"
    assert here.recv() == [True, expected, (2, 0), True, before, gpucnn.rand(3).tolist()]
    process.join(10)
    assert process.exitcode == 0, process.exitcode

forked()

# while another thread computes, with BLAS at one thread and jobs on their way
inside, go_on = threading.Event(), threading.Event()
def job(i):
    inside.set()
    assert go_on.wait(30)
other = threading.Thread(target=workers.run, args=(job, 2), daemon=True)
other.start()
assert inside.wait(30)
forked()
go_on.set()
other.join(30)
assert [get() for get, _ in workers._blas] == before

# while another thread is within each of the locks
for lock in (backends._lock, workers._blas_lock, gpucnn.random._lock, emulator._launching):
    held = threading.Event()
    def hold():
        with lock:
            held.set()
            time.sleep(0.1)
    threading.Thread(target=hold, daemon=True).start()
    assert held.wait(30)
    forked()
assert answer() == expected
print("equal")
"""


@pytest.mark.skipif(not FORKS, reason="this system cannot fork")
def test_a_forked_child_computes_whatever_other_threads_of_its_parent_did_meanwhile() -> None:
    assert script(FORK, GPUCNN_THREADS="2", OPENBLAS_NUM_THREADS="2") == "equal\n"


def predictions(model: nn.Module, images: Any, pipe: Any) -> None:
    pipe.send(train.predict(model, images))
    pipe.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
def test_a_model_goes_to_a_process_and_predicts_the_same_bits_there(method: str) -> None:
    model = nn.models.LeNet5(num_classes=3, image_size=(16, 14)).eval()
    images = np.asarray(np.random.default_rng(0).random((5, 1, 16, 14)), np.float32)
    context = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=predictions, args=(model, images, there))
    process.start()
    there.close()
    try:
        assert here.poll(PATIENCE), "the child hangs"
        assert (here.recv() == train.predict(model, images)).all()
    finally:
        process.join(10)
        process.kill()
        here.close()


IMPORTS = """
import threading, warnings
warnings.simplefilter("error")
ways = ["import gpucnn", "from gpucnn import train", "from gpucnn import nn", "import gpucnn as g; g.data"] * 3
start, errors = threading.Barrier(len(ways)), []

def load(way):
    start.wait(30)
    try:
        exec(way)
        import gpucnn, gpucnn.train, gpucnn.data
        assert gpucnn.get_backend("numpy") is gpucnn.zeros(2, backend="numpy").backend
        assert gpucnn.nn.Linear(2, 3)(gpucnn.ones(1, 2)).shape == (1, 3)
    except BaseException as error:
        errors.append(repr(error))

threads = [threading.Thread(target=load, args=(way,), daemon=True) for way in ways]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(30)
    assert not thread.is_alive(), "an import hangs"
print(errors)
"""


def test_several_threads_import_gpucnn_at_once() -> None:
    assert script(IMPORTS) == "[]\n"


BUILD = """
import ctypes, sys, time
from pathlib import Path
from gpucnn.devices import emulator

Path(sys.argv[1] + "/" + sys.argv[2]).touch()
while len(list(Path(sys.argv[1]).iterdir())) < 2:
    time.sleep(0.001)
library = emulator._build('extern "C" int answer() { return 42; }', [], [])
print(library.name, ctypes.CDLL(str(library)).answer())
"""


def test_two_processes_compile_a_kernel_into_one_cache_at_once(tmp_path, emulator: None) -> None:
    (tmp_path / "here").mkdir()

    def one(name: str) -> str:
        return script(BUILD, str(tmp_path / "here"), name, GPUCNN_CACHE=str(tmp_path / "cache"))

    first, second = in_threads(lambda: one("a"), lambda: one("b"))
    assert first == second
    assert first.endswith(".so 42\n")
    assert [path.name for path in (tmp_path / "cache" / "emulator").iterdir()] == [first.split()[0]]
