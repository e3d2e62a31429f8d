"""What only the NumPy backend has: threads, blocks, kept buffers, layouts, and its own erf and random numbers.

That its results are right is tested with every other backend in tests/functional.
"""

import math
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numerics import assert_within, unit_roundoff
from threadpoolctl import ThreadpoolController

from gpucnn.backends import (
    numpy_batch_norm,
    numpy_columns,
    numpy_conv,
    numpy_conv_pool,
    numpy_elementwise,
    numpy_instance_norm,
    numpy_parallel,
    numpy_pool,
    numpy_winograd,
)
from gpucnn.backends.numpy_backend import NumpyBackend
from gpucnn.backends.numpy_special import erf, philox_words
from gpucnn.geometry import Window
from gpucnn.live import Live

Array = np.ndarray[Any, Any]
backend = NumpyBackend()
# Which work in blocks.
IN_BLOCKS = (
    numpy_batch_norm, numpy_conv, numpy_conv_pool, numpy_elementwise, numpy_instance_norm, numpy_pool, numpy_winograd,
)  # fmt: skip
SAME3 = Window((3, 3), (1, 1), (1, 1, 1, 1))


def random(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    array: Array = backend.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))
    return array


def at(seed: int, offset: int) -> Live[tuple[int, int]]:
    return Live(lambda: (seed, offset))


def is_channels_last(array: Array) -> bool:
    return bool(array.transpose(0, 2, 3, 1).flags.c_contiguous)


def every_primitive(n: int) -> dict[str, Callable[[], Any]]:
    """Each primitive that works in blocks, on n images that take several blocks where n is large."""
    x, dy = random(n, 16, 23, 37), random(n, 16, 23, 37, seed=1)
    deep, wide = random(n, 64, 15, 18), random(64, 64, 3, 3)  # Winograd's
    w, depthwise = random(16, 16, 3, 3), random(16, 1, 3, 3)
    vector = random(16)
    half = Window((2, 2), (2, 2))
    y, tap = backend.max_pool2d_forward(x, half, "max", True)
    rows = random(n, 16)
    few, filters, every = x[:, :6], w[:, :6], (True, True, True)
    pooled, won = backend.conv2d_max_pool2d_forward(few, filters, vector, SAME3, 1, half, "relu", True)
    return {
        "conv2d_forward": lambda: backend.conv2d_forward(x, w, vector, SAME3, 1),
        "conv2d_forward depthwise": lambda: backend.conv2d_forward(x, depthwise, vector, SAME3, 16),
        "conv2d_backward_input": lambda: backend.conv2d_backward_input(dy, w, SAME3, 1, (23, 37)),
        "conv2d_backward_weight": lambda: backend.conv2d_backward_weight(dy, x, SAME3, 1),
        "conv2d_backward_weight depthwise": lambda: backend.conv2d_backward_weight(dy, x, SAME3, 16),
        "conv2d_backward": lambda: backend.conv2d_backward(dy, x, w, SAME3, 1),
        "conv2d_max_pool2d_forward": lambda: backend.conv2d_max_pool2d_forward(
            few, filters, vector, SAME3, 1, half, "relu", True
        ),
        "conv2d_max_pool2d_backward": lambda: backend.conv2d_max_pool2d_backward(
            pooled, won, few, filters, SAME3, 1, half, every
        ),
        "conv2d_forward of tiles": lambda: backend.conv2d_forward(deep, wide, None, SAME3, 1),
        "conv2d_backward_weight of tiles": lambda: backend.conv2d_backward_weight(deep, deep, SAME3, 1),
        "bias_backward": lambda: backend.bias_backward(dy),
        "max_pool2d_forward": lambda: backend.max_pool2d_forward(x, half, "max", True),
        "max_pool2d_backward": lambda: backend.max_pool2d_backward(y, tap, half, (23, 37)),
        "avg_pool2d_forward": lambda: backend.avg_pool2d_forward(x, SAME3, "real"),
        "avg_pool2d_backward": lambda: backend.avg_pool2d_backward(dy, SAME3, "real", (23, 37)),
        "relu": lambda: backend.activation_forward(x, "relu", 0.0),
        "relu backward": lambda: backend.activation_backward(dy, x, "relu", 0.0),
        "dropout": lambda: backend.dropout(x, 0.3, at(5, 0)),
        "batch_norm_statistics": lambda: backend.batch_norm_statistics(x),
        "batch_norm_forward": lambda: backend.batch_norm_forward(x, vector, vector, vector, vector),
        "batch_norm_backward": lambda: backend.batch_norm_backward(dy, x, vector, vector, vector, True),
        "instance_norm_statistics": lambda: backend.instance_norm_statistics(x),
        "instance_norm_forward": lambda: backend.instance_norm_forward(x, rows, rows, vector, vector),
        "instance_norm_backward": lambda: backend.instance_norm_backward(dy, x, rows, rows, vector),
        "matmul": lambda: backend.matmul(x.reshape(n, -1), dy.reshape(n, -1), False, True),
    }


def bits(result: Any) -> list[bytes]:
    return [array.tobytes() for array in (result if isinstance(result, tuple) else (result,)) if array is not None]


@pytest.fixture
def with_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def use(threads: int) -> None:
        workers = numpy_parallel.Workers(threads)
        for module in IN_BLOCKS:
            monkeypatch.setattr(module, "workers", workers)

    return use


@pytest.fixture(autouse=True)
def two_blas_threads() -> Iterator[None]:
    """BLAS as a user may have set it, so that a number that is not restored is seen."""
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        yield


def blas_threads() -> list[int]:
    """Of each BLAS that was there when the backend was imported: not of SciPy's, which another test loads."""
    return [get() for get, _ in numpy_parallel.workers._blas]


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 83])
def test_the_bits_depend_neither_on_the_run_nor_on_the_number_of_threads(
    n: int, with_threads: Callable[[int], None]
) -> None:
    expected = {name: bits(call()) for name, call in every_primitive(n).items()}
    for threads in (1, 2, 3):
        with_threads(threads)
        for name, call in every_primitive(n).items():
            assert bits(call()) == expected[name], f"{name} with {threads} threads"


def test_large_problems_are_cut_into_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[int] = []

    class Counting(numpy_parallel.Workers):
        def run(self, job: Callable[[int], None], count: int) -> None:
            blocks.append(count)
            super().run(job, count)

    workers = Counting(2)
    for module in IN_BLOCKS:
        monkeypatch.setattr(module, "workers", workers)
    for name, call in every_primitive(83).items():
        blocks.clear()
        call()
        assert blocks, name
        assert blocks.count(1) == name.endswith("of tiles"), name  # few filters are mapped at once


def test_blas_has_one_thread_between_the_primitives_of_a_row_and_the_old_number_after_it() -> None:
    before = blas_threads()
    inside: list[list[int]] = []

    def product() -> None:
        backend.matmul(np.ones((2, 3)), np.ones((3, 2)))
        inside.append(blas_threads())

    def broken() -> None:
        with backend.in_a_row(), backend.in_a_row():
            product()
            elsewhere = threading.Thread(target=product)
            elsewhere.start()
            elsewhere.join()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert inside == [[1] * len(before)] * 2
    assert blas_threads() == before


def test_every_block_is_computed_once() -> None:
    done: list[int] = []
    numpy_parallel.Workers(3).run(done.append, 100)
    assert sorted(done) == list(range(100))


def test_blas_has_one_thread_inside_a_job_and_the_old_number_after_it() -> None:
    before = blas_threads()
    inside: list[list[int]] = []
    numpy_parallel.Workers(2).run(lambda _: inside.append(blas_threads()), 4)
    assert inside == [[1] * len(before)] * 4
    assert blas_threads() == before


def test_blas_gets_its_threads_back_when_calls_overlap() -> None:
    before = blas_threads()
    x, w = random(16, 16, 23, 37), random(16, 16, 3, 3)
    expected = backend.conv2d_forward(x, w, None, SAME3, 1)
    wrong: list[int] = []

    def user(number: int) -> None:
        for _ in range(5):
            if not np.array_equal(backend.conv2d_forward(x, w, None, SAME3, 1), expected):
                wrong.append(number)

    users = [threading.Thread(target=user, args=(i,)) for i in range(3)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert not wrong
    assert blas_threads() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_block_reaches_the_caller(threads: int) -> None:
    def job(block: int) -> None:
        if block == 5:
            raise MemoryError("block 5")

    before = blas_threads()
    workers = numpy_parallel.Workers(threads)
    with pytest.raises(MemoryError, match="block 5"):
        workers.run(job, 8)
    assert blas_threads() == before
    done: list[int] = []
    workers.run(done.append, 3)
    assert sorted(done) == [0, 1, 2]


def in_child(queue: Any) -> None:
    numpy_conv.workers.run(lambda _: None, 2)
    queue.put(sum(thread.name == "gpucnn" for thread in threading.enumerate()))
    queue.put(backend.conv2d_forward(random(83, 16, 23, 37), random(16, 16, 3, 3), None, SAME3, 1).tobytes())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own(with_threads: Callable[[int], None]) -> None:
    with_threads(3)
    expected = backend.conv2d_forward(random(83, 16, 23, 37), random(16, 16, 3, 3), None, SAME3, 1).tobytes()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=60) == 2
    assert queue.get(timeout=60) == expected
    child.join()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("GPUCNN_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return monkeypatch


def test_the_environment_sets_the_number_of_threads(clean_environment: pytest.MonkeyPatch) -> None:
    cores = numpy_parallel.thread_count()
    assert cores >= 1
    clean_environment.setenv("OMP_NUM_THREADS", "3")
    assert numpy_parallel.thread_count() == 3
    clean_environment.setenv("GPUCNN_THREADS", "5")
    assert numpy_parallel.thread_count() == 5
    clean_environment.setenv("GPUCNN_THREADS", "")
    assert numpy_parallel.thread_count() == 3
    for value in ("4,2", "0", "9" * 20):  # it is not ours to refuse
        clean_environment.setenv("OMP_NUM_THREADS", value)
        assert numpy_parallel.thread_count() == cores


@pytest.mark.parametrize("value", ["abc", "0", "-1", "1.5", " 2", "²", "1025", "9" * 20, "9" * 5000])
def test_a_number_of_threads_that_can_not_be_is_refused(clean_environment: pytest.MonkeyPatch, value: str) -> None:
    clean_environment.setenv("GPUCNN_THREADS", value)
    shown = re.escape(value[:20])
    with pytest.raises(ValueError, match=rf"GPUCNN_THREADS is '{shown}.*, but must be a whole number from 1 to 1024"):
        numpy_parallel.thread_count()


def test_the_import_takes_any_number_of_threads_and_the_backend_names_what_is_wrong() -> None:
    code = "import gpucnn, gpucnn.cli; gpucnn.cli.main(['train', 'x-or-not-x'])"
    variables = {"GPUCNN_THREADS": "many", "GPUCNN_BACKEND": "numpy"}
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == "gpucnn: error: GPUCNN_THREADS is 'many', but must be a whole number from 1 to 1024\n"


def test_cutting_gives_equal_parts_without_gap_or_overlap() -> None:
    for length, parts in ((10, 3), (3, 10), (1, 1), (7, 0), (64, 8)):
        cuts = numpy_parallel.cut(length, parts)
        assert [i for part in cuts for i in range(part.start, part.stop)] == list(range(length))
        sizes = [part.stop - part.start for part in cuts]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1
    assert numpy_parallel.cut(0, 4) == []


# -- memory and layout -------------------------------------------------------------------------------------------------


def test_kept_buffers_stay_bounded() -> None:
    def kept() -> dict[str, int]:
        return {name: buffer.nbytes for name, buffer in vars(numpy_parallel._local).items()}

    x, w = random(1, 64, 90, 130), random(4, 64, 9, 9)
    backend.conv2d_forward(x, w, None, Window((9, 9), (1, 1), (4, 4, 4, 4)), 1)
    large = numpy_parallel.scratch("columns", (numpy_parallel.KEPT_BYTES + 1,), np.uint8)
    assert large.nbytes > numpy_parallel.KEPT_BYTES
    assert all(size <= numpy_parallel.KEPT_BYTES for size in kept().values())
    for call in every_primitive(8).values():
        call()
    first = kept()
    for call in every_primitive(8).values():
        call()
    assert kept() == first


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only GNU libc can be told to keep freed memory")
@pytest.mark.skipif("MALLOC_TRIM_THRESHOLD_" in os.environ, reason="the environment sets what is kept")
def test_freed_memory_is_not_faulted_in_again() -> None:
    resource = pytest.importorskip("resource", reason="page faults are counted on Unix alone")

    def step() -> None:
        arrays = [np.zeros(1 << 20, np.float32) + i for i in range(8)]
        del arrays

    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    pages = 8 * (1 << 22) // resource.getpagesize()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages // 8


def test_scratch_of_one_name_is_reused_and_another_name_is_not() -> None:
    a = numpy_parallel.scratch("first", (4, 5), np.float32)
    assert np.shares_memory(a, numpy_parallel.scratch("first", (20,), np.float32))
    assert not np.shares_memory(a, numpy_parallel.scratch("second", (20,), np.float32))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_four_axes_come_out_channels_last_and_arguments_stay_as_they_are(n: int) -> None:
    x, dy = random(n, 6, 7, 9), random(n, 4, 7, 9, seed=1)
    w, vector = random(4, 6, 3, 3), random(6)
    window = Window((2, 3), (2, 1), (1, 0, 1, 1), ceil_mode=True)
    out = window.output_size((7, 9))
    y, tap = backend.max_pool2d_forward(x, window, "min", True)
    arguments = [x, dy, w, vector, y, tap]
    before = [array.copy() for array in arguments]
    results = [
        y,
        tap,
        backend.asarray(np.zeros((n, 6, 7, 9))),
        backend.conv2d_forward(x, w, None, SAME3, 1),
        backend.conv2d_backward_input(dy, w, SAME3, 1, (7, 9)),
        backend.conv2d_backward_weight(dy, x, SAME3, 1),
        backend.conv2d_backward_weight(x, x, SAME3, 6),
        backend.max_pool2d_forward(x, window, "max", False)[0],
        backend.max_pool2d_backward(y, tap, window, (7, 9)),
        backend.avg_pool2d_forward(x, window, "window"),
        backend.avg_pool2d_backward(random(n, 6, *out), window, "window", (7, 9)),
        backend.activation_forward(x, "gelu", 0.0),
        backend.activation_backward(x, x, "gelu", 0.0),
        backend.dropout(x, 0.5, at(1, 0)),
        backend.batch_norm_forward(x, vector, vector, None, None),
        backend.batch_norm_backward(x, x, vector, vector, None, True)[0],
        backend.instance_norm_forward(x, x[..., 0, 0], x[..., 0, 1], None, None),
        backend.instance_norm_backward(x, x, x[..., 0, 0], x[..., 0, 1], None)[0],
        backend.matmul(x, x, False, True),
        backend.index_backward(x[:, ::2], (slice(None), slice(None, None, 2)), x.shape),
    ]
    for number, result in enumerate(results):
        assert is_channels_last(result), number
    for array, copy in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_only_integer_arrays_choose_an_element_more_than_once() -> None:
    dy = random(3, 4, 5, 6)
    mask = np.random.default_rng(0).random((3, 4, 5, 6)) < 0.5
    for index in (np.s_[::2, 1], np.s_[..., 2:], np.s_[:, None, 0], mask, (mask.any((2, 3)),)):
        dx = backend.index_backward(dy[index], index, dy.shape)
        expected = np.zeros(dy.shape, np.float32)
        np.add.at(expected, index, dy[index])
        np.testing.assert_array_equal(dx, expected)
    repeated = np.array([1, 1, 0])
    np.testing.assert_array_equal(backend.index_backward(dy[repeated], repeated, dy.shape)[1], dy[1] + dy[1])


def test_zero_axes_stay_zero_axes() -> None:
    x = backend.asarray(2.0, np.float32)
    assert x.shape == ()
    y = backend.activation_forward(x, "relu", 0.0)
    assert y.shape == backend.activation_backward(x, y, "relu", 0.0).shape == ()


def strided(x: Array) -> list[Array]:
    """x again, stored in other ways."""
    every_other = np.zeros((*x.shape[:3], 2 * x.shape[3]), x.dtype)[..., ::2]
    every_other[...] = x
    offset = np.zeros((x.shape[0], x.shape[1] + 3, *x.shape[2:]), x.dtype)[:, 2:-1]
    offset[...] = x
    return [np.ascontiguousarray(x), np.asfortranarray(x), every_other, offset, x[::-1].copy()[::-1]]


def test_any_strides_give_the_same_bits() -> None:
    x, w, dy = random(3, 6, 8, 10), random(4, 6, 3, 3), random(3, 4, 8, 10, seed=1)
    half = Window((2, 2), (2, 2))
    functions: list[Callable[[Array], Any]] = [
        lambda x: backend.conv2d_forward(x, w, None, SAME3, 1),
        lambda x: backend.conv2d_backward_weight(dy, x, SAME3, 1),
        lambda x: backend.max_pool2d_forward(x, half, "max", True),
        lambda x: backend.avg_pool2d_forward(x, half, "real"),
        lambda x: backend.bias_backward(x),
        lambda x: backend.batch_norm_statistics(x),
        lambda x: backend.instance_norm_statistics(x),
        lambda x: backend.activation_forward(x, "relu", 0.0),
        lambda x: backend.dropout(x, 0.5, at(1, 0)),
    ]
    for number, function in enumerate(functions):
        for view in strided(x):
            assert bits(function(view)) == bits(function(x)), number
    for view in strided(dy):
        assert bits(backend.conv2d_backward_input(view, w, SAME3, 1, (8, 10))) == bits(
            backend.conv2d_backward_input(dy, w, SAME3, 1, (8, 10))
        )
    for view in strided(w):
        assert bits(backend.conv2d_forward(x, view, None, SAME3, 1)) == bits(
            backend.conv2d_forward(x, w, None, SAME3, 1)
        )


# -- convolution -------------------------------------------------------------------------------------------------------

# n c h w, k r s, stride, padding, dilation, groups
CONVOLUTIONS = {
    "groups and stride": (2, 6, 8, 9, 4, 3, 2, (2, 3), (1, 2, 0, 3), (1, 1), 2),
    "dilation, unequal padding, groups": (2, 6, 11, 10, 6, 3, 3, (1, 2), (2, 1, 0, 3), (2, 3), 3),
    "stride and dilation with a common factor": (2, 3, 17, 19, 5, 3, 4, (4, 6), (3, 2, 1, 4), (2, 3), 1),
    "1×1 with stride": (2, 8, 9, 8, 8, 1, 1, (2, 2), (0, 0, 0, 0), (1, 1), 1),
    "1×1 with padding": (2, 4, 6, 7, 3, 1, 1, (1, 1), (2, 1, 0, 1), (1, 1), 1),
    "kernel is the input": (2, 5, 6, 7, 17, 6, 7, (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "stride beyond the kernel": (2, 3, 13, 14, 4, 3, 2, (5, 4), (0, 0, 0, 0), (1, 1), 1),
    "input end not covered": (2, 3, 8, 12, 4, 3, 3, (3, 4), (0, 0, 0, 0), (1, 1), 1),
    "padding beyond the kernel": (1, 2, 5, 6, 2, 2, 2, (1, 1), (4, 4, 3, 3), (1, 1), 1),
    "one window on padding alone": (1, 2, 1, 1, 3, 2, 2, (9, 9), (4, 4, 4, 4), (1, 1), 1),
    "filter wider than the plane": (3, 4, 2, 2, 5, 3, 3, (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "depthwise": (2, 5, 7, 9, 5, 3, 3, (1, 2), (1, 1, 1, 1), (1, 1), 5),
    "depthwise with two filters each": (2, 5, 7, 9, 10, 3, 3, (2, 2), (1, 1, 1, 1), (1, 1), 5),
    "1 channel, 1 filter": (3, 1, 7, 8, 1, 3, 3, (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "17 channels": (2, 17, 10, 12, 5, 3, 3, (2, 2), (1, 1, 1, 1), (1, 1), 1),
    "LeNet's first": (3, 1, 28, 28, 6, 5, 5, (1, 1), (2, 2, 2, 2), (1, 1), 1),
    "LeNet's second": (3, 6, 14, 14, 16, 5, 5, (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "strips of rows": (1, 24, 70, 90, 8, 3, 3, (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "parts of large filters": (1, 96, 7, 9, 128, 3, 3, (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "no images": (0, 3, 7, 9, 4, 3, 3, (1, 1), (1, 1, 1, 1), (1, 1), 1),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_agrees_with_pytorch(name: str, dtype: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is compared with where it is installed")
    n, c, h, w, k, r, s, stride, padding, dilation, groups = CONVOLUTIONS[name]
    window = Window((r, s), stride, padding, dilation)
    x, f, b = (
        random(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(n, c, h, w), (k, c // groups, r, s), (k,)])
    )
    p, q = window.output_size((h, w))
    dy = random(n, k, p, q, dtype=dtype, seed=3)

    def theirs(x: Array, f: Array, b: Array, dy: Array) -> list[Array]:
        x, f, b, dy = (torch.tensor(np.ascontiguousarray(a), dtype=torch.float64) for a in (x, f, b, dy))
        for tensor in (x, f, b):
            tensor.requires_grad_()
        top, bottom, left, right = padding
        laid = torch.nn.functional.pad(x, (left, right, top, bottom))
        y = torch.nn.functional.conv2d(laid, f, b, stride, 0, dilation, groups)
        gradients = torch.autograd.grad(y, (x, f), dy)
        return [y.detach().numpy(), *(g.numpy() for g in gradients)]

    ours = [
        backend.conv2d_forward(x, f, b, window, groups),
        backend.conv2d_backward_input(dy, f, window, groups, (h, w)),
        backend.conv2d_backward_weight(dy, x, window, groups),
    ]
    magnitudes = theirs(*(np.abs(a) for a in (x, f, b, dy)))
    terms = (c // groups * r * s + 1, k // groups * r * s, max(n * p * q, 1))
    for actual, expected, magnitude, count in zip(ours, theirs(x, f, b, dy), magnitudes, terms, strict=True):
        assert actual.dtype == dtype
        assert_within(actual, expected, (count + 1) * unit_roundoff(dtype) * magnitude)


def test_every_number_of_neighbouring_outputs_gives_the_same_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, dy = random(2, 3, 9, 12, dtype=np.float64), random(4, 3, 3, 5, dtype=np.float64), random(2, 4, 9, 12)
    window, dy = Window((3, 5), (1, 1), (1, 1, 2, 2)), dy.astype(np.float64)
    expected: list[Array] | None = None
    for side in (1, 2, 3, 4, 6, 12):
        span = (0, 12) if side == 12 else (-2, side + 4)
        monkeypatch.setattr(numpy_columns, "best_side", lambda *_, side=side, span=span: (side, *span))
        results = [
            backend.conv2d_forward(x, w, None, window, 1),
            backend.conv2d_backward_weight(dy, x, window, 1),
        ]
        expected = expected or results
        for actual, value in zip(results, expected, strict=True):
            np.testing.assert_allclose(actual, value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "c", "size", "k", "padding"), [(1, 64, (28, 30), 64, (1, 1, 1, 1)), (3, 80, (17, 12), 64, (0, 2, 1, 0))]
)
def test_tiles_of_winograd_are_as_good_as_float32_sums(
    n: int,
    c: int,
    size: tuple[int, int],
    k: int,
    padding: tuple[int, int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numpy_winograd, "LEAST_WORK", 0)
    window = Window((3, 3), (1, 1), padding)
    x, w, b = random(n, c, *size, dtype=np.float64), random(k, c, 3, 3, dtype=np.float64), np.linspace(-9, 9, k)
    out = window.output_size(size)
    dy = random(n, k, *out, dtype=np.float64, seed=1)

    def results(dtype: Any) -> list[Array]:
        image, filters, bias, gradient = (a.astype(dtype) for a in (x, w, b, dy))
        return [
            backend.conv2d_forward(image, filters, bias, window, 1, "relu"),
            backend.conv2d_backward_input(gradient, filters, window, 1, size),
            backend.conv2d_backward_weight(gradient, image, window, 1),
        ]

    assert numpy_winograd.pays(x.astype(np.float32).transpose(0, 2, 3, 1), (k, c), window, 1, out)
    assert not numpy_winograd.pays(x.transpose(0, 2, 3, 1), (k, c), window, 1, out)
    for actual, expected in zip(results(np.float32), results(np.float64), strict=True):
        assert is_channels_last(actual)
        assert np.linalg.norm(actual - expected) <= 1e-6 * np.linalg.norm(expected)
        assert np.abs(actual - expected).max() <= 1e-5 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_own_windows(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_winograd, "LEAST_WORK", 0)
    x, w, dy = random(2, 64, 14, 16), random(64, 64, 3, 3), random(2, 64, 14, 16, seed=1)
    x[1, 5, 7, 6], dy[0, 3, 4, 4] = value, value
    for call in (
        lambda dtype: backend.conv2d_forward(x.astype(dtype), w.astype(dtype), None, SAME3, 1, "relu"),
        lambda dtype: backend.conv2d_backward_input(dy.astype(dtype), w.astype(dtype), SAME3, 1, (14, 16)),
        lambda dtype: backend.conv2d_backward_weight(dy.astype(dtype), x.astype(dtype), SAME3, 1),
    ):
        with np.errstate(all="ignore"):
            actual, expected = call(np.float32), call(np.float64)
        np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
        assert not np.isfinite(actual).all()


# n c h w, k r s, padding, dilation
@pytest.mark.parametrize(
    ("x", "w", "padding", "dilation"),
    [
        ((3, 17, 9, 12), (5, 17, 3, 3), (1, 1, 1, 1), (1, 1)),
        ((2, 16, 11, 14), (4, 16, 2, 5), (0, 3, 2, 1), (3, 2)),
        ((1, 16, 4, 6), (3, 16, 4, 6), (0, 0, 0, 0), (1, 1)),
        ((40, 16, 23, 31), (24, 16, 3, 3), (1, 1, 1, 1), (1, 1)),
    ],
)
def test_both_gradients_of_one_matrix_are_those_of_two(
    x: tuple[int, ...], w: tuple[int, ...], padding: tuple[int, int, int, int], dilation: tuple[int, int]
) -> None:
    window = Window((w[2], w[3]), (1, 1), padding, dilation)
    image, filters = random(*x, dtype=np.float64), random(*w, dtype=np.float64, seed=1)
    dy = random(x[0], w[0], *window.output_size((x[2], x[3])), dtype=np.float64, seed=2)
    assert numpy_conv.shares_columns(dy, image, filters, window, 1)
    both = backend.conv2d_backward(dy, image, filters, window, 1)
    alone = (
        backend.conv2d_backward_input(dy, filters, window, 1, (x[2], x[3])),
        backend.conv2d_backward_weight(dy, image, window, 1),
    )
    for actual, expected in zip(both, alone, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_pixel_that_is_not_finite_reaches_no_weight_of_another_place(value: float) -> None:
    x, w, dy = random(2, 16, 6, 7), random(3, 16, 3, 3), random(2, 3, 6, 7, seed=1)
    x[1, 5, 0, 0] = value
    with np.errstate(all="ignore"):
        _, dw = backend.conv2d_backward(dy, x, w, SAME3, 1)
    expected = np.zeros(w.shape, bool)
    expected[:, 5, :2, :2] = True
    np.testing.assert_array_equal(~np.isfinite(dw), expected)


# x, w, pool, stride, padding
POOLED = {
    "LeNet's first": ((5, 1, 28, 28), (6, 1, 5, 5), (2, 2), (1, 1), (2, 2, 2, 2)),
    "LeNet's second": ((3, 6, 14, 14), (16, 6, 5, 5), (2, 2), (1, 1), (0, 0, 0, 0)),
    "strides": ((2, 3, 25, 31), (4, 3, 3, 2), (3, 2), (2, 3), (1, 0, 0, 2)),
    "rows and columns left over": ((2, 8, 13, 18), (5, 8, 2, 4), (3, 4), (1, 1), (0, 1, 2, 0)),
    "one window": ((1, 2, 6, 7), (3, 2, 2, 3), (5, 5), (1, 1), (0, 0, 0, 0)),
    "strips of rows": ((1, 4, 120, 130), (16, 4, 5, 5), (2, 2), (1, 1), (1, 1, 1, 1)),
    "several blocks": ((80, 4, 30, 33), (16, 4, 3, 3), (2, 3), (1, 1), (1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_pooling_along_is_the_convolution_and_the_pooling(
    name: str, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, filters, kernel, stride, padding = POOLED[name]
    window, pool = Window((filters[2], filters[3]), stride, padding), Window(kernel, kernel)
    x, w, b = (random(*s, dtype=np.float64, seed=i) for i, s in enumerate((shape, filters, filters[:1])))

    def results() -> list[Array]:
        y, tap = backend.conv2d_max_pool2d_forward(x, w, b, window, 1, pool, activation, True)
        dy = random(*y.shape, dtype=np.float64, seed=4)
        return [y, tap, *backend.conv2d_max_pool2d_backward(dy, tap, x, w, window, 1, pool, (True, True, True))]

    assert numpy_conv_pool.pays(x, w, window, 1, pool)
    at_once = results()
    monkeypatch.setattr(numpy_conv_pool, "pays", lambda *_: False)
    for actual, expected in zip(at_once, results(), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_pooling_along_keeps_what_is_not_finite_in_its_own_windows(value: float) -> None:
    x, w, half = random(2, 3, 12, 14), random(4, 3, 3, 3), Window((2, 2), (2, 2))
    x[1, 2, 5, 6] = value
    with np.errstate(all="ignore"):
        y, tap = backend.conv2d_max_pool2d_forward(x, w, None, SAME3, 1, half, None, True)
        expected, expected_tap = backend.max_pool2d_forward(
            backend.conv2d_forward(x, w, None, SAME3, 1), half, "max", True
        )
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(tap, expected_tap)
    assert not np.isfinite(y).all() or value == -np.inf


@pytest.mark.parametrize(
    ("channels", "groups", "window", "pool"),
    [
        (9, 1, SAME3, Window((2, 2), (2, 2))),
        (8, 2, SAME3, Window((2, 2), (2, 2))),
        (3, 1, Window((3, 3), (1, 1), (0, 0, 0, 0), (2, 1)), Window((2, 2), (2, 2))),
        (3, 1, SAME3, Window((3, 3), (2, 2))),
        (3, 1, SAME3, Window((2, 2), (2, 2), (1, 1, 1, 1))),
        (3, 1, SAME3, Window((2, 2), (2, 2), ceil_mode=True)),
        (3, 1, Window((1, 1)), Window((1, 1))),
    ],
)
def test_what_cannot_be_pooled_along_is_computed_one_after_the_other(
    channels: int, groups: int, window: Window, pool: Window
) -> None:
    x, w = random(2, channels, 9, 11), random(4, channels // groups, *window.kernel)
    assert not numpy_conv_pool.pays(x, w, window, groups, pool)
    y, tap = backend.conv2d_max_pool2d_forward(x, w, None, window, groups, pool, None, True)
    expected = backend.max_pool2d_forward(backend.conv2d_forward(x, w, None, window, groups), pool, "max", True)
    assert bits((y, tap)) == bits(expected)


# -- pooling and elementwise -------------------------------------------------------------------------------------------


def test_taps_are_bytes_up_to_256_and_int32_beyond() -> None:
    x = np.zeros((1, 1, 20, 20), np.float32)
    x[0, 0, 16, 17] = 1
    for kernel, dtype in (((16, 16), np.uint8), ((17, 16), np.int32), ((20, 20), np.int32)):
        window = Window(kernel)
        y, tap = backend.max_pool2d_forward(backend.asarray(x), window, "max", True)
        assert tap.dtype == dtype
        dx = backend.max_pool2d_backward(np.ones_like(y), tap, window, (20, 20))
        covering = sum(p <= 16 < p + kernel[0] for p in range(y.shape[2])) * sum(
            q <= 17 < q + kernel[1] for q in range(y.shape[3])
        )
        assert dx[0, 0, 16, 17] == covering


@pytest.mark.parametrize("kind", ["relu", "relu6"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relu_turns_negative_zero_into_zero_and_keeps_nan_at_every_length(kind: str, dtype: Any) -> None:
    for length in range(1, 70):
        y = backend.activation_forward(np.full(length, -0.0, dtype), kind, 0.0)
        assert not np.signbit(y).any(), length
        assert np.isnan(backend.activation_forward(np.full(length, np.nan, dtype), kind, 0.0)).all()
        assert np.isnan(backend.activation_forward(np.full(length, -np.nan, dtype), kind, 0.0)).all()


def test_a_masked_gradient_is_exactly_zero_even_where_it_is_infinite() -> None:
    dy = np.array([np.inf, -np.inf, np.nan, 1.0, np.inf], np.float32)
    y = np.array([0.0, 0.0, 0.0, 0.0, 2.0], np.float32)
    np.testing.assert_array_equal(backend.activation_backward(dy, y, "relu", 0.0), [0, 0, 0, 0, np.inf])
    x = backend.asarray(np.arange(4.0, dtype=np.float32).reshape(1, 1, 2, 2))
    window = Window((2, 2), (2, 2))
    pooled, tap = backend.max_pool2d_forward(x, window, "max", True)
    dx = backend.max_pool2d_backward(np.full_like(pooled, np.inf), tap, window, (2, 2))
    np.testing.assert_array_equal(dx, [[[[0, 0], [0, np.inf]]]])


def test_overflow_is_infinity_without_a_warning() -> None:
    huge = np.full((2, 3, 4, 5), 3e38, np.float32)
    w = np.full((2, 3, 3, 3), 3e38, np.float32)
    assert np.isposinf(backend.conv2d_forward(huge, w, None, SAME3, 1)).all()
    assert np.isposinf(backend.avg_pool2d_forward(huge, Window((2, 2)), 1)).all()
    assert np.isposinf(backend.matmul(huge[0, 0], huge[0, 0], False, True)).all()
    assert np.isposinf(backend.bias_backward(huge)).all()
    for kind in ("sigmoid", "tanh", "softplus", "silu", "gelu", "gelu_tanh", "elu"):
        for x in (huge, -huge, np.full_like(huge, np.inf), np.full_like(huge, -np.inf)):
            backend.activation_forward(x, kind, 1.0)
            backend.activation_backward(huge, x, kind, 1.0)


def test_variance_is_sound_far_from_zero_in_every_block() -> None:
    """A one-pass sum of squares in float32 would lose all of a variance of 1 at a mean of 10,000."""
    x = backend.asarray((np.random.default_rng(0).standard_normal((80, 16, 23, 37)) + 1e4).astype(np.float32))
    mean, variance = backend.batch_norm_statistics(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(variance, wide.var((0, 2, 3)), rtol=1e-4)


# -- erf and random numbers --------------------------------------------------------------------------------------------


def test_erf_is_within_a_few_units_in_the_last_place() -> None:
    magnitudes = np.concatenate(
        [np.linspace(0, 7, 20_001), 10.0 ** np.linspace(-300, 0, 2_001), [0.46875, 6.0, np.inf]]
    )
    x = np.concatenate([magnitudes, -magnitudes])
    expected = np.array([math.erf(value) for value in x])
    assert_within(erf(x), expected, 1e-15 * np.abs(expected))
    assert np.isnan(erf(np.array([np.nan]))).all()
    single = x.astype(np.float32)
    exact = np.array([math.erf(value) for value in single])
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    assert erf(single).dtype == np.float32
    assert_within(erf(single), exact, unit_roundoff(np.float32) * np.abs(exact) * 1.01 + tiny)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as the paper writes it, for one counter."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_scalar_philox_gives_the_published_words(counter: str, key: str, words: str) -> None:
    """Known answers of Random123 1.14 (kat_vectors)."""
    assert philox(*([int(word, 16) for word in text.split()] for text in (counter, key))) == [
        int(word, 16) for word in words.split()
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 0x299F31D0A4093822, 2**64 - 1])
@pytest.mark.parametrize("offset", [0, 5, 2**32 - 2, 2**63 + 7])
@pytest.mark.parametrize("count", [0, 1, 13])
def test_random_words_are_philox_of_consecutive_counters(seed: int, offset: int, count: int) -> None:
    expected: list[int] = []
    for i in range(offset, offset + -(-count // 4)):
        expected += philox([i % 2**32, i >> 32, 0, 0], [seed % 2**32, seed >> 32])
    assert philox_words(count, seed, offset).tolist() == expected[:count]


def test_dropout_counts_elements_in_storage_order_across_blocks() -> None:
    seed, offset, p = 0x1234_5678_9ABC, 2**32 - 3, 0.3
    x = random(3, 5, 83, 97)
    assert x.size > numpy_elementwise.DROPOUT_BLOCK
    words = philox_words(x.size, seed, offset).reshape(3, 83, 97, 5).transpose(0, 3, 1, 2)
    kept = (words >> 8) * 2.0**-24 >= p
    expected = np.where(kept, x / np.float32(1 - p), 0)
    np.testing.assert_array_equal(backend.dropout(x, p, at(seed, offset)), expected)
    assert abs(kept.mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / x.size)


def test_dropout_of_everything_and_of_nothing() -> None:
    x = random(2, 3, 4, 5)
    assert not backend.dropout(x, 1.0, at(0, 0)).any()
    np.testing.assert_array_equal(backend.dropout(x, 0.0, at(0, 0)), x)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(3, 1, 12, 10), (2, 6, 14, 14)])
def test_a_value_that_is_not_finite_reaches_only_its_own_windows(value: float, shape: tuple[int, ...]) -> None:
    """Few channels: the product serves several outputs at once, and its zeros times NaN must not show."""
    backend = NumpyBackend()
    x = np.ones(shape, np.float32)
    x[1, 0, 5, 4] = value
    w = np.ones((4, shape[1], 3, 3), np.float32)
    window = Window((3, 3))
    y = backend.conv2d_forward(x, w, None, window, 1)
    reached = np.zeros(y.shape, bool)
    reached[1, :, 3:6, 2:5] = True
    np.testing.assert_array_equal(~np.isfinite(y), reached)
    dy = np.ones_like(y)
    dy[1, 0, 5, 4] = value
    dx = backend.conv2d_backward_input(dy, w, window, 1, shape[2:])
    reached = np.zeros(shape, bool)
    reached[1, :, 5:8, 4:7] = True
    np.testing.assert_array_equal(~np.isfinite(dx), reached)
