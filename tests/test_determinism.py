"""docs/determinism.md, promise by promise: each has a number there, and a test here that names it."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import gpucnn
from gpucnn import data, nn, optim, train
from gpucnn import functional as F
from gpucnn.backends import Backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.backends.numpy_parallel import Workers, workers
from gpucnn.backends.tuning import Measurement, Tuning
from gpucnn.backends.variants import Problem, Product, usual
from gpucnn.checkpoint import load_checkpoint, save_checkpoint
from gpucnn.devices.base import kernel_folder
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.fingerprint import Fingerprint, fingerprint, first_difference, why
from gpucnn.testing import CASES, evaluate

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "determinism.md").read_text("utf-8")
NUMBERS = re.findall(r"^- \*\*([A-Z]\d+)\*\*", PAGE, re.MULTILINE)
PROMISED: set[str] = set()


def promise(*numbers: str) -> Callable[[Any], Any]:
    """The test holds the page to these."""
    PROMISED.update(numbers)
    return lambda test: test


def test_every_promise_of_the_page_has_a_test_and_every_test_a_promise() -> None:
    assert len(NUMBERS) == len(set(NUMBERS)) > 20
    assert set(NUMBERS) == PROMISED


def said(number: str) -> str:
    """The text of a promise."""
    found = re.search(rf"^- \*\*{number}\*\* (.*?)(?=\n- \*\*|\n\n)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return " ".join(found[1].split())


@pytest.fixture(autouse=True)
def on_numpy() -> Iterator[None]:
    with gpucnn.use_backend("numpy"):
        yield


@pytest.fixture(scope="module")
def here() -> Fingerprint:
    return fingerprint("numpy")


@pytest.fixture(scope="module")
def emulator() -> Backend:
    try:
        return gpucnn.get_backend("emulator")
    except RuntimeError as error:
        pytest.skip(str(error))


def bits(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value.numpy() if isinstance(value, gpucnn.Tensor) else value).tobytes())
    return digest.hexdigest()


def large_sums() -> str:
    """Of what is cut over threads, and of products that BLAS would divide among its own."""
    generator = gpucnn.Generator(3)
    x = gpucnn.randn(16, 8, 40, 36, generator=generator, requires_grad=True)
    w = gpucnn.randn(8, 8, 3, 3, generator=generator, requires_grad=True)
    y = F.batch_norm(F.conv2d(x, w), None, None, training=True)
    (y * y * y).mean().backward()
    scores = gpucnn.randn(257, 4001, generator=generator, requires_grad=True)
    weight = gpucnn.rand(4001, generator=generator)
    loss = F.cross_entropy(scores, np.arange(257), weight=weight, label_smoothing=0.1)
    loss.backward()
    wide = gpucnn.randn(300, 700, generator=generator)
    norm = optim.clip_grad_norm_([x, w, scores], 1.0)
    return bits(x.grad, w.grad, scores.grad, loss, wide @ wide.transpose(0, 1), F.softmax(wide, 0), np.float64(norm))


ELSEWHERE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import test_determinism as t
with t.gpucnn.use_backend("numpy"):
    print(json.dumps([t.fingerprint("numpy").as_json(), t.large_sums() if "large" in sys.argv else ""]))
"""


def in_another_process(*arguments: str, code: str = ELSEWHERE, **environment: str) -> Any:
    found = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "tests"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    return json.loads(found.stdout)


def of_json(text: str) -> Fingerprint:
    content = json.loads(text)
    return Fingerprint(content["surroundings"], content["parts"])


# -- equal -------------------------------------------------------------------------------------------------------------


@promise("E1", "E2")
def test_another_process_with_another_environment_and_other_threads_has_the_same_bits(here) -> None:
    found, sums = in_another_process(
        "large", GPUCNN_THREADS="", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="", PYTHONHASHSEED="77", LANG="C",
        LC_ALL="C", TZ="Asia/Tokyo", MALLOC_PERTURB_="165", MALLOC_TRIM_THRESHOLD_="0", MALLOC_MMAP_THRESHOLD_="4096",
    )  # fmt: skip
    there = of_json(found)
    assert there.surroundings["threads"].startswith("1, BLAS 1")
    assert first_difference(here, there) is None
    assert sums == large_sums()
    assert fingerprint("numpy").parts == here.parts


@promise("E2")
def test_threads_chosen_in_the_process_change_no_bits(monkeypatch) -> None:
    expected = large_sums()
    for ours, of_blas in ((1, 1), (3, 2), (5, 3)):
        monkeypatch.setattr(workers, "threads", ours)
        with threadpool_limits(of_blas, "blas"):
            assert large_sums() == expected


class Misplaced(NumpyBackend):
    """Puts every array that it is given so many bytes behind a boundary of 64."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.offset = offset

    def asarray(self, data: Any, dtype: Any = None) -> Any:
        array = super().asarray(data, dtype)
        stored = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
        memory = np.empty(stored.nbytes + 128, np.uint8)
        start = -memory.ctypes.data % 64 + self.offset
        moved = memory[start : start + stored.nbytes].view(stored.dtype).reshape(stored.shape)
        moved[...] = stored
        return moved.transpose(0, 3, 1, 2) if array.ndim == 4 else moved


@promise("E3")
@pytest.mark.parametrize("offset", [4, 60])
def test_where_arrays_lie_changes_no_bits(here, offset) -> None:
    backend = Misplaced(offset)
    assert backend.asarray(np.ones((2, 3, 4, 5), np.float32)).ctypes.data % 64 == offset
    assert fingerprint(backend).parts == here.parts


@promise("E4")
def test_what_other_threads_compute_changes_no_bits(here) -> None:
    found: list[Fingerprint] = []
    stop = threading.Event()

    def disturb() -> None:
        with gpucnn.use_backend("numpy"), gpucnn.no_grad():
            x, w = gpucnn.ones(8, 8, 30, 28), gpucnn.ones(8, 8, 3, 3)
            while not stop.is_set():
                F.dropout(F.conv2d(x, w))

    others = [threading.Thread(target=disturb, daemon=True)]
    others += [threading.Thread(target=lambda: found.append(fingerprint("numpy")), daemon=True) for _ in range(2)]
    for thread in others:
        thread.start()
    for thread in others[1:]:
        thread.join(60)
    stop.set()
    others[0].join(60)
    assert [one.parts for one in found] == [here.parts] * 2


@promise("E5")
def test_how_a_loader_prepares_its_batches_changes_no_bits() -> None:
    def batches(prefetch: int, wait: float) -> list[str]:
        vary = data.Compose([data.RandomAffine(20, (0.1, 0.1), (0.9, 1.1)), data.RandomHorizontalFlip()])
        dataset = data.x_or_not_x(40, size=(9, 8))
        loader = data.Loader(dataset, 7, shuffle=True, augment=vary, seed=3, prefetch=prefetch)
        found = []
        for images, labels in loader.epoch(1):
            time.sleep(wait)
            found.append(bits(images, labels))
        return found

    expected = batches(0, 0)
    assert len(set(expected)) == 6
    for prefetch, wait in ((1, 0.0), (2, 0.004), (9, 0.0)):
        assert batches(prefetch, wait) == expected


class Stop(train.Callback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_batch_end(self, state: train.TrainingState) -> None:
        if state.step == self.step:
            raise SystemError("dark")


def small_training(folder: Path | None, stop: int | None = None, backend: Any = "numpy", **options: Any) -> list[Any]:
    """Everything that six steps leave behind."""
    with gpucnn.use_backend(backend):
        gpucnn.manual_seed(3)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(30, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.3), nn.Linear(40, 2)
        )
        optimizer = optim.Adam(model.parameters(), 0.01)
        schedule = optim.OneCycleLR(optimizer, 0.01, 6)
        loader = data.Loader(data.x_or_not_x(21, size=(6, 5)), 8, shuffle=True, augment=data.RandomHorizontalFlip())
        history = train.fit(
            model, loader, epochs=2, optimizer=optimizer, scheduler=schedule, folder=folder, callbacks=[Stop(stop)],
            **options,
        )  # fmt: skip
        state = optimizer.state_dict()
        return [
            bits(*model.state_dict().values()), bits(*state["arrays"].values()), optimizer.lr, history.rows,
            gpucnn.random.default_generator.state(),
        ]  # fmt: skip


@promise("E6")
def test_a_training_stopped_after_any_step_and_resumed_has_the_bits_of_an_unbroken_one(tmp_path) -> None:
    unbroken = small_training(None)
    for step in range(1, 6):
        folder = tmp_path / str(step)
        with pytest.raises(SystemError, match="dark"):
            small_training(folder, step + 1, checkpoint_every=1)
        gpucnn.manual_seed(99)
        assert small_training(folder, resume=True, checkpoint_every=1) == unbroken


@promise("E7")
def test_a_training_launched_as_graphs_has_the_bits_of_one_step_by_step(emulator) -> None:
    assert small_training(None, backend=emulator, graph=True) == small_training(None, backend=emulator, graph=False)


@promise("E8", "E9", "N3")
def test_batches_and_first_weights_are_the_same_on_every_backend_and_sums_are_not(here, emulator) -> None:
    there = fingerprint(emulator)
    found = first_difference(here, there)
    assert found is not None
    assert found[0] == "step 1, forward"
    assert list(here.parts)[:3] == ["data", "initialisation", "step 1, forward"]
    assert why(found[0], here, there).startswith("That may be expected, since backend is numpy here and emulator there")
    assert why("initialisation", here, there).endswith("this is a bug, of gpucnn or of what it computes with.")


@promise("E10")
@pytest.mark.parametrize("shape", [(3,), (2, 3, 5, 7), (1, 70_000)])
def test_dropout_masks_are_the_same_on_every_backend(emulator, shape) -> None:
    def masks(backend: Any) -> list[str]:
        generator = gpucnn.Generator(2**40 + 1)
        x = gpucnn.ones(*shape, backend=backend)
        return [bits(F.dropout(x, p, generator=generator)) for p in (0.3, 0.5, 0.3)]

    found = masks("numpy")
    assert masks(emulator) == found
    assert math.prod(shape) < 4 or len(set(found)) == 3


@promise("E11")
def test_what_moves_compares_or_rounds_once_has_the_same_bits_on_every_backend(emulator) -> None:
    ops = re.findall(r"`(\w+)`", said("E11"))
    assert len(ops) > 12
    for op in ops:
        cases = [case for case in CASES if case.op == op][:4]
        assert cases, op
        for case in cases:
            for name, ours, theirs in zip(
                case.results,
                evaluate(case, "numpy", "float32").results,
                evaluate(case, emulator, "float32").results,
                strict=True,
            ):
                nan = np.isnan(ours) & np.isnan(theirs)
                assert bits(np.where(nan, 0, ours)) == bits(np.where(nan, 0, theirs)), (str(case), name)


ON_THE_EMULATOR = """
import json, sys
sys.path.insert(0, sys.argv[1])
import test_determinism as t
print(json.dumps(t.small_training(None, backend="emulator")))
"""


@promise("E12")
def test_a_training_on_the_emulator_does_not_depend_on_the_instructions_of_blas_and_numpy(emulator) -> None:
    expected = small_training(None, backend=emulator)
    config: Any = np.show_config(mode="dicts")
    newer = config["SIMD Extensions"].get("found", [])
    environment = {"OPENBLAS_CORETYPE": another_core(), "NPY_DISABLE_CPU_FEATURES": " ".join(newer)}
    found = in_another_process(code=ON_THE_EMULATOR, **environment)
    assert found == json.loads(json.dumps(expected))


@promise("E13")
def test_the_order_of_threads_and_blocks_changes_no_bits_on_the_emulator(emulator) -> None:
    expected = small_training(None, backend=emulator)
    for order in (1, 7):
        assert small_training(None, backend=KernelBackend(EmulatorDevice(order=order))) == expected


# -- random ------------------------------------------------------------------------------------------------------------


def weights(generator: gpucnn.Generator) -> str:
    with gpucnn.use_generator(generator):
        return bits(*nn.Sequential(nn.Conv2d(2, 3, (3, 2)), nn.Linear(5, 4)).parameters())


def masks(generator: gpucnn.Generator, *sizes: int) -> list[str]:
    return [bits(F.dropout(gpucnn.ones(size), 0.5, generator=generator)) for size in sizes]


@promise("R1", "R2")
def test_weights_and_masks_depend_on_the_seed_and_on_what_was_drawn_before_of_their_own_kind() -> None:
    first, other = weights(gpucnn.Generator(3)), weights(gpucnn.Generator(4))
    assert first != other
    drawn = gpucnn.Generator(3)
    masks(drawn, 50, 3)
    assert weights(drawn) == first
    assert weights(drawn) not in (first, other)

    found = masks(gpucnn.Generator(3), 40, 40)
    assert found[0] != found[1]
    assert found != masks(gpucnn.Generator(4), 40, 40)
    drawn = gpucnn.Generator(3)
    weights(drawn)
    assert masks(drawn, 40, 40) == found
    assert masks(gpucnn.Generator(3), 80, 40)[1] != found[1]


@promise("R3")
def test_batches_depend_on_the_loaders_seed_the_epoch_and_their_number_alone() -> None:
    def batches(seed: int = 3, epoch: int = 1, start: int = 0) -> list[tuple[str, str]]:
        dataset = data.x_or_not_x(32, size=(9, 8), distort=2)
        vary = data.RandomAffine(20, (0.1, 0.1), (0.9, 1.1))
        loader = data.Loader(dataset, 8, shuffle=True, augment=vary, seed=seed, prefetch=0)
        return [(bits(images), bits(labels)) for images, labels in loader.epoch(epoch, start)]

    found = batches()
    gpucnn.manual_seed(99)
    weights(gpucnn.random.default_generator)
    assert batches(start=2) == found[2:]
    assert all(a != b for a, b in zip(found, batches(seed=4), strict=True))
    assert all(a != b for a, b in zip(found, batches(epoch=2), strict=True))
    images = data.Dataset(
        np.tile(data.x_or_not_x(8, size=(9, 8)).images[:1], (16, 1, 1, 1)), np.zeros(16, np.int64), ("a",)
    )
    same = data.Loader(images, 8, augment=data.RandomAffine(20), prefetch=0)
    first, second = (bits(batch) for batch, _ in same.epoch(0))
    assert first != second


@promise("R4")
def test_the_images_held_out_depend_on_the_seed_and_their_number() -> None:
    dataset = data.Dataset(np.arange(40 * 6, dtype=np.uint8).reshape(40, 3, 2, 1), np.zeros(40, np.int64), ("a",))

    def held_out(count: int, seed: int) -> list[int]:
        return data.split(dataset, count, seed=seed)[1].images[:, 0, 0, 0].tolist()

    found = held_out(9, 5)
    gpucnn.manual_seed(99)
    np.random.default_rng().random()
    assert held_out(9, 5) == found
    assert held_out(9, 6) != found
    assert set(held_out(8, 5)) != set(found)


@promise("R5")
def test_a_generators_state_is_a_few_numbers_that_a_checkpoint_holds(tmp_path) -> None:
    model = nn.Linear(3, 2)
    parts = {"model": model, "optimizer": optim.SGD(model.parameters(), 0.1)}
    generator = gpucnn.Generator(2**63 + 5)
    weights(generator)
    masks(generator, 7)
    save_checkpoint(tmp_path / "c", **parts, generator=generator)
    expected = weights(generator), masks(generator, 40)
    other = gpucnn.Generator(0)
    load_checkpoint(tmp_path / "c", **parts, generator=other)
    assert len(json.dumps(other.state())) < 400
    assert (weights(other), masks(other, 40)) == expected


# -- why ---------------------------------------------------------------------------------------------------------------


@promise("S1")
def test_no_kernel_adds_with_atomics() -> None:
    kernels = [*kernel_folder().glob("*.cu"), *kernel_folder().glob("*.cuh")]
    assert len(kernels) > 10
    for path in kernels:
        code = re.sub(r"//.*|/\*.*?\*/", "", path.read_text("utf-8"))
        assert not re.search(r"\batomic\w*\s*\(|\b(red|atom)\.", code), path.name


@promise("S2")
def test_how_work_is_cut_does_not_depend_on_the_number_of_threads(monkeypatch) -> None:
    def cuts(threads: int) -> list[int]:
        found: list[int] = []
        run = Workers.run

        def noting(self: Workers, job: Any, blocks: int) -> None:
            found.append(blocks)
            run(self, job, blocks)

        with monkeypatch.context() as patch:
            patch.setattr(Workers, "run", noting)
            patch.setattr(workers, "threads", threads)
            large_sums()
        return found

    expected = cuts(1)
    assert max(expected) > 4
    assert cuts(2) == cuts(5) == expected


@promise("S3")
def test_blas_has_one_thread_in_every_product(monkeypatch) -> None:
    found = []

    def looking(product: Callable[..., Any]) -> Callable[..., Any]:
        def look(*arguments: Any, **options: Any) -> Any:
            found.append([get() for get, _ in workers._blas])
            return product(*arguments, **options)

        return look

    with threadpool_limits(2, "blas"):
        for name in ("matmul", "dot"):
            monkeypatch.setattr(np, name, looking(getattr(np, name)))
        large_sums()
        small_training(None)
        assert [get() for get, _ in workers._blas] == [2] * len(workers._blas)
    assert len(found) > 20
    assert found == [[1] * len(workers._blas)] * len(found)


def test_no_product_of_the_numpy_backend_goes_by_another_way() -> None:
    """S3 looks at np.matmul and np.dot; so the backend must not use @, einsum and their kin."""
    for path in (ROOT / "gpucnn" / "backends").glob("numpy_*.py"):
        code = re.sub(r'"""(.|\n)*?"""|#.*', "", path.read_text("utf-8"))
        assert not re.search(
            r"(?m)(?<!^)(?<=\S) @ |np\.(vdot|inner|outer|einsum|tensordot|linalg)\b|(?<!np)\.dot\(", code
        ), path


# -- not equal ---------------------------------------------------------------------------------------------------------


def another_core() -> str:
    """A kind of processor for OpenBLAS that is not this one."""
    return "Nehalem" if "Haswell" in str(threadpool_info()) else "Haswell"


@promise("N1")
def test_another_kind_of_processor_is_seen_and_said_to_be_the_reason(here) -> None:
    found, _ = in_another_process(OPENBLAS_CORETYPE=another_core())
    there = of_json(found)
    if there.surroundings["blas"] == here.surroundings["blas"]:
        pytest.skip("this BLAS can't be told to compute as on another processor")
    where = first_difference(here, there)
    assert where is not None
    assert where[0] == "step 1, forward"
    assert f"blas is {here.surroundings['blas']} here and {there.surroundings['blas']} there" in why(
        where[0], here, there
    )


@promise("N2", "N6")
@pytest.mark.parametrize("name", ["gpucnn", "numpy", "blas", "precision"])
def test_another_version_or_precision_is_a_reason_and_threads_and_python_are_none(here, name) -> None:
    other = replace(here, surroundings={**here.surroundings, name: "another"})
    assert f"since {name} is {here.surroundings[name]} here and another there" in why("step 1, forward", here, other)
    innocent = {"threads": "7, BLAS 9", "python": "3.99", "system": "Plan 9"}
    other = replace(here, surroundings={**here.surroundings, **innocent})
    assert why("step 1, forward", here, other).startswith("Nothing differs here that may change it, so this is a bug")


@promise("N4")
def test_another_batch_size_is_another_sum() -> None:
    gpucnn.manual_seed(0)
    model, images = nn.Linear(400, 10), gpucnn.randn(64, 400)
    labels = np.arange(64) % 10

    def gradient(parts: list[slice]) -> Any:
        model.zero_grad()
        for part in parts:
            (F.cross_entropy(model(images[part]), labels[part]) / len(parts)).backward()
        return model.weight.grad.numpy().copy()

    whole, halves = gradient([slice(0, 64)]), gradient([slice(0, 32), slice(32, 64)])
    np.testing.assert_allclose(whole, halves, rtol=0, atol=64 * 2**-23)
    alone, together = model(images[:1]).numpy()[0], model(images).numpy()[0]
    np.testing.assert_allclose(alone, together, rtol=0, atol=400 * 2**-23 * 4)
    if bits(whole) == bits(halves) or bits(alone) == bits(together):
        pytest.skip("this BLAS happens to add up alike here")


@promise("N5")
def test_who_draws_first_from_a_shared_generator_gets_the_first_numbers() -> None:
    def drawn(order: tuple[str, str]) -> dict[str, str]:
        found = {}
        with ThreadPoolExecutor(2) as threads:
            for name in order:
                found[name] = threads.submit(masks, generator, 40).result(60)[0]
        return found

    generator = gpucnn.Generator(3)
    one = drawn(("a", "b"))
    generator.manual_seed(3)
    other = drawn(("b", "a"))
    assert (one["a"], one["b"]) == (other["b"], other["a"])
    assert one["a"] != one["b"]


@promise("N6")
def test_mixed_precision_has_bits_of_its_own() -> None:
    gpucnn.manual_seed(0)
    x, w = gpucnn.randn(4, 3, 6, 5), gpucnn.randn(2, 3, 3, 2)
    exact = F.conv2d(x, w)
    with gpucnn.autocast("float16"):
        half = F.conv2d(x, w)
    assert bits(half.numpy().astype(np.float32)) != bits(exact)


@promise("N7")
def test_a_tuning_may_change_bits_always_alike_and_switched_off_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensor cores, the usual choice here, add up in another order. That a warning is given: tests/test_tune.py."""
    rng, device = np.random.default_rng(3), EmulatorDevice(capability=(9, 0))
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((12, 20), (20, 8)))
    problem = Problem("matmul", Product(1, 12, 8, 20, False, False), "float", "fp32", (9, 0))
    seconds = {"gemm 64x16": 1.0, str(usual(problem)): 2.0}
    Tuning(device.identity, {problem: Measurement("gemm 64x16", seconds)}).save(tmp_path / "tuning.json")
    of_no_file = KernelBackend(device).matmul(a, b).tobytes()
    monkeypatch.setenv("GPUCNN_TUNING", str(tmp_path / "tuning.json"))
    first, again = (KernelBackend(device).matmul(a, b).tobytes() for _ in range(2))
    assert first == again != of_no_file
    with gpucnn.use_tuning(False):
        assert KernelBackend(device).matmul(a, b).tobytes() == of_no_file
