"""The emulator as detector: each seeded bug of the zoo is caught, with kernel, block, thread and line."""

import math
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from gpucnn.devices import base, emulator
from gpucnn.devices.base import KernelError
from gpucnn.devices.emulator import EmulatorDevice

ZOO = Path(__file__).parent / "zoo.cu"
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _zoo_is_beside_the_kernels(tmp_path, monkeypatch):
    for file in [ZOO, *base.kernel_folder().glob("*.cuh")]:
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr("gpucnn.devices.host.kernel_folder", lambda: tmp_path)


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def launch(kernel, bug, grid, block, *arguments, **options):
    constants = {"SCALAR": "float", "BUG": bug}
    EmulatorDevice(**options).launch("zoo.cu", kernel, constants, (grid, 1, 1), (block, 1, 1), *arguments)


def run(kernel, bug=0, **options):
    """The kernel's result on data of its own."""
    if kernel == "tree_sum":
        x, y = f32(3, 64), np.empty(3, np.float32)
        launch(kernel, bug, 3, 64, x, y, 3, **options)
        return y, x.sum(1)
    if kernel == "twice":
        x, y = f32(75), np.empty(75, np.float32)
        launch(kernel, bug, 3, 32, x, y, 75, **options)
        return y, 2 * x
    if kernel == "row_sum":
        x, y = f32(7, 5), np.empty(7, np.float32)
        launch(kernel, bug, 1, 8, x, y, 7, 5, **options)
        return y, x.sum(1)
    if kernel == "copy_async":
        x, y = f32(128), np.empty(128, np.float32)
        launch(kernel, bug, 1, 32, x, y, **options)
        return y, x
    if kernel == "tensor_core":
        a, b = (np.round(32 * f32(rows, 8)) / 32 for rows in (16, 8))  # TF32 holds them
        y = np.empty((16, 8), np.float32)
        launch(kernel, bug, 1, 32, a, b, y, **options)
        return y, a @ b
    x, y = f32(64), np.empty(64, np.float32)
    launch(kernel, bug, 1, 64, x, y, **options)
    return y, x.reshape(-1, 2)[:, ::-1].ravel()


@pytest.mark.parametrize("order", [0, 1, 7])
@pytest.mark.parametrize("watch", [True, False])
@pytest.mark.parametrize("kernel", ["tree_sum", "twice", "row_sum", "copy_async", "swap_neighbours", "tensor_core"])
def test_a_clean_kernel_gives_its_result_and_no_report_in_every_order(kernel, watch, order):
    result, expected = run(kernel, watch=watch, order=order)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


BUGS = [
    ("tree_sum", 1, r"a race with thread .* no barrier|which nothing has written", "part[t] += part[t + step];"),
    ("tree_sum", 2, r"waits at a barrier that thread .* never reaches", "__syncthreads();"),
    ("tree_sum", 3, r"shared memory .*(out of bounds|no barrier)|out of the bounds", "if (t <= step)"),
    ("twice", 4, r"\[75\], out of bounds", "if (i <= count)"),
    ("twice", 5, r"reads x\[75\], out of bounds", "x[i + 1]"),
    ("twice", 8, r"writes y\[\d+\], a race with block", "y[threadIdx.x]"),
    ("twice", 9, r"stopped after 100000 steps", "volatile int j"),
    ("row_sum", 11, r"reads x\[\d+\], out of bounds", "x[h * H + w]"),
    ("copy_async", 12, r"reads shared memory .*which nothing has written", "y[32 * i + t] = tile"),
    ("swap_neighbours", 13, r"waits at a barrier that thread", "if (t % 32 < 16)"),
    ("tensor_core", 14, r"reads memory that is no buffer|reads a\[\d+\].*out of bounds", "load_matrices(left, a"),
    ("tensor_core", 15, r"waits at a barrier that thread \(5, 0, 0\) never reaches", "if (lane != 5)"),
]


@pytest.mark.parametrize(("kernel", "bug", "message", "code"), BUGS)
def test_a_seeded_bug_is_caught_with_kernel_block_thread_and_line(kernel, bug, message, code):
    with pytest.raises(KernelError, match=message) as caught:
        run(kernel, bug, max_steps=100_000)
    found = re.match(rf"{kernel}: block \(\d+, 0, 0\), thread \(\d+, 0, 0\), line (\d+): ", str(caught.value))
    assert found, caught.value
    assert code in ZOO.read_text().splitlines()[int(found[1]) - 1]


def test_a_warp_that_lacks_lanes_can_not_use_a_tensor_core():
    a, b, y = f32(16, 8), f32(8, 8), np.empty((16, 8), np.float32)
    with pytest.raises(KernelError, match=r"line \d+: a tensor core needs all 32 threads of a warp, but the block"):
        launch("tensor_core", 0, 1, 15, a, b, y)


def test_an_access_out_of_bounds_is_told_of_the_nearest_buffer():
    memory = np.zeros(154, np.float32)
    with pytest.raises(KernelError, match=r"reads x\[75\], out of bounds"):
        launch("twice", 5, 3, 32, memory[:75], memory[79:], 75)


def test_steps_are_counted_for_each_thread_not_for_the_launch():
    x, y = f32(3200), np.empty(3200, np.float32)
    launch("twice", 0, 100, 32, x, y, 3200, max_steps=100)
    np.testing.assert_array_equal(y, 2 * x)


def test_an_element_that_no_thread_writes_is_named():
    with pytest.raises(KernelError, match=r"twice: left 1 of 75 elements of y unwritten, the first is element 5"):
        run("twice", 6)


def test_a_read_of_an_output_that_nothing_has_written_is_caught():
    with pytest.raises(KernelError, match=r"reads y\[0\], which nothing has written"):
        launch("reads_its_output", 0, 1, 4, np.zeros(4, np.float32), 4)


@pytest.mark.parametrize(("offsets", "message"), [
    ((0, 1), r"line \d+: writes y\[0\] as 16 bytes, but its address is no multiple of 16"),
    ((2, 0), r"line \d+: reads x\[0\] as 16 bytes, but its address is no multiple of 16"),
])  # fmt: skip
def test_a_wide_access_off_its_boundary_is_caught(offsets, message):
    x, y = (np.zeros(32, np.float32) for _ in range(2))
    boundary = [(-a.ctypes.data % 16) // 4 for a in (x, y)]
    aligned = [a[start : start + 8] for a, start in zip((x, y), boundary, strict=True)]
    launch("copy_fours", 0, 1, 2, *aligned, 8)
    moved = [a[start + i : start + i + 8] for a, start, i in zip((x, y), boundary, offsets, strict=True)]
    with pytest.raises(KernelError, match=message):
        launch("copy_fours", 0, 1, 2, *moved, 8)


def test_an_index_beyond_a_local_array_is_caught_when_it_runs():
    with pytest.raises(KernelError, match=r"line \d+: index 4 is out of the bounds of its array"):
        launch("local_array", 0, 1, 1, np.array([4], np.int32), np.empty(1, np.float32))


@pytest.mark.parametrize(("kernel", "bug", "message"), [
    ("twice", 7, r"zoo.cu:\d+:\d+: error: conversion from .int. to .float. may change value"),
    ("row_sum", 10, r"zoo.cu:\d+:\d+: error: .sum. (may be|is) used uninitialized"),
])  # fmt: skip
def test_a_bug_that_the_compiler_sees_is_an_error_with_its_line(kernel, bug, message):
    with pytest.raises(KernelError, match=message):
        run(kernel, bug)


def test_a_launch_after_a_caught_bug_is_not_disturbed():
    with pytest.raises(KernelError):
        run("tree_sum", 1)
    result, expected = run("tree_sum")
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


# -- denormal numbers (what kernels compute with them: tests/kernels/test_denormals.py) ---------------


def denormal_is_kept():
    return np.full(3, 2.0**-126, np.float32)[1] * np.float32(0.5) > 0


def test_the_hosts_own_denormal_numbers_stay_after_a_launch():
    x, y = np.full(75, 2.0**-127, np.float32), np.empty(75, np.float32)
    launch("twice", 0, 3, 32, x, y, 75)
    np.testing.assert_array_equal(y, 0)
    assert denormal_is_kept()


def test_the_hosts_own_denormal_numbers_stay_after_a_launch_that_was_stopped():
    with pytest.raises(KernelError):
        run("tree_sum", 1)
    assert denormal_is_kept()


def test_denormal_numbers_are_flushed_in_any_thread_of_the_host():
    x, y = np.full(75, 2.0**-127, np.float32), np.ones(75, np.float32)
    thread = threading.Thread(target=launch, args=("twice", 0, 3, 32, x, y, 75))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(y, 0)


def test_a_launch_of_double_after_one_of_float_keeps_denormal_numbers():
    """The same fibers run both."""
    x, y = np.full(75, 2.0**-1023), np.empty(75)
    launch("twice", 0, 3, 32, f32(75), np.empty(75, np.float32), 75)
    EmulatorDevice().launch("zoo.cu", "twice", {"SCALAR": "double", "BUG": 0}, (3, 1, 1), (32, 1, 1), x, y, 75)
    np.testing.assert_array_equal(y, 2.0**-1022)


# -- the typed launch --------------------------------------------------------------------------------

X, Y = f32(75), np.empty(75, np.float32)
SIGNATURE = r"the kernel is twice\(const SCALAR\* x\[count\], SCALAR\* y\[count\], int count\)"


@pytest.mark.parametrize(("arguments", "message"), [
    ((X, Y), "2 arguments for 3 parameters"),
    ((X, Y, 75.0), "count must be an int, got float 75.0"),
    ((X, Y, True), "count must be an int, got bool True"),
    ((X, Y, 2**31), "count = 2147483648 does not fit int"),
    ((X.astype(np.float64), Y, 75), "x must be float32, got float64"),
    ((X.tolist(), Y, 75), "x must be a numpy array, got builtins.list"),
    ((None, Y, 75), "x must be a numpy array, got builtins.NoneType"),
    ((X[::2], Y[:38], 38), r"x must be contiguous, got shape \(38,\) with strides \(8,\)"),
    ((X, Y[:74], 75), r"y must have 75 elements \[count\], got 74"),
])  # fmt: skip
def test_an_argument_that_does_not_fit_is_an_error_before_the_launch_with_the_signature(arguments, message):
    with pytest.raises(KernelError, match=f"{message}.*{SIGNATURE}"):
        launch("twice", 0, 3, 32, *arguments)


def test_a_kernel_that_does_not_exist_is_named():
    with pytest.raises(KernelError, match=r"zoo.cu has no kernel thrice"):
        launch("thrice", 0, 1, 1)


@pytest.mark.parametrize(("scalar", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_each_mathematical_function_has_the_type_of_its_argument(scalar, dtype, tmp_path):
    """Without an overload C++ would silently compute a float in double: other bits than a GPU's."""
    header = Path(emulator.__file__).with_name("cuda_on_cpu.h").read_text()
    one, two = (re.findall(rf"\b{macro}\((?!name)(\w+)\)", header) for macro in ("ONE_REAL", "TWO_REALS"))
    assert {"sqrt", "exp", "log", "tanh", "erf"} <= {*one}
    assert {"pow", "copysign"} <= {*two}
    x, y = 1.7, -1.2  # atanh and its like are asked about x - 1
    inner = {"acos", "asin", "atanh"}
    calls = [f"{name}(x - 1)" if name in inner else f"{name}(x)" for name in one] + [f"{name}(x, y)" for name in two]
    calls += ["fma(x, x, y)"]
    file = tmp_path / "real.cu"
    file.write_text(
        'extern "C" __global__ void real(\n'
        f"    {scalar}* z,  // [{len(calls)}]\n"
        f"    {scalar} x, {scalar} y) {{\n"
        + "".join(f"    z[{i}] = {call}; static_assert(sizeof {call} == sizeof x);\n" for i, call in enumerate(calls))
        + "}\n"
    )
    z = np.empty(len(calls), dtype)
    EmulatorDevice(kernels=tmp_path).launch(file.name, "real", {}, (1, 1, 1), (1, 1, 1), z, dtype(x), dtype(y))
    python = {**vars(math), "round": round, "rint": round, "fmin": min, "fmax": max, "fma": lambda a, b, c: a * b + c}
    expected = [eval(call, {**python, "x": x, "y": y}) for call in calls]
    np.testing.assert_allclose(z, expected, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize(("name", "threads", "most"), [("twice", 2048, 1024), ("tree_sum", 128, 64)])
def test_a_block_that_no_gpu_can_run_is_refused(name, threads, most):
    arguments = (np.ones(64, np.float32), np.ones(1, np.float32), 1) if name == "tree_sum" else (X, Y, 75)
    message = rf"blocks of \({threads}, 1, 1\) threads can't be launched: its __launch_bounds__ allow {most} threads"
    with pytest.raises(KernelError, match=message):
        launch(name, 0, 1, threads, *arguments)


def test_a_pointer_without_an_extent_is_refused(tmp_path):
    file = tmp_path / "bare.cu"
    file.write_text('extern "C" __global__ void bare(float* y, int count) { }')
    with pytest.raises(KernelError, match=r"bare: the pointer y needs its extent"):
        base.Signature.of(file, "bare")


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch):
    emulator.compiler.cache_clear()
    monkeypatch.setattr(emulator.shutil, "which", lambda name: None)
    with pytest.raises(KernelError, match=r"needs a C\+\+ compiler: install g\+\+"):
        emulator.compiler()
    emulator.compiler.cache_clear()


# -- compiling ahead ---------------------------------------------------------------------------------

TWICE = [base.Specialisation("zoo.cu", "twice", (("BUG", bug), ("SCALAR", scalar))) for bug in (0, 4) for scalar in
         ("float", "double")]  # fmt: skip


@pytest.fixture
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCNN_CACHE", str(tmp_path / "cache"))
    emulator._compiled.cache_clear()


@pytest.mark.usefixtures("_empty_cache")
def test_what_was_prepared_is_not_compiled_again_at_its_launch(monkeypatch):
    assert sorted(EmulatorDevice().prepare(TWICE)) == sorted(TWICE)

    def build(*args):
        pytest.fail("this compiles")

    monkeypatch.setattr(emulator, "_build", build)
    result, expected = run("twice")
    np.testing.assert_array_equal(result, expected)


@pytest.mark.usefixtures("_empty_cache")
def test_kernels_are_prepared_side_by_side(monkeypatch):
    """Each build waits until another has begun: one after the other, none would end."""
    together = threading.Barrier(2)
    monkeypatch.setattr(emulator.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(emulator, "_compiled", lambda *args: together.wait(10))
    assert len(list(EmulatorDevice().prepare(TWICE))) == 4


@pytest.mark.usefixtures("_empty_cache")
def test_a_kernel_that_can_not_be_prepared_is_the_error_of_the_compiler():
    with pytest.raises(KernelError, match=r"may change value"):
        list(EmulatorDevice().prepare([*TWICE, TWICE[0]._replace(constants=(("BUG", 7), ("SCALAR", "float")))]))


def test_a_compiler_that_fails_without_a_word_is_named_with_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCNN_CACHE", str(tmp_path))
    monkeypatch.setattr(emulator, "compiler", lambda: "false")
    with pytest.raises(KernelError, match=r"refused this, with exit code 1 of false .*kernel\.so:\nit did not say why"):
        emulator._build("", [], [])


def test_a_cache_that_can_not_be_written_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("GPUCNN_CACHE", os.devnull)
    with pytest.raises(OSError, match=f"can't write to {os.devnull}/emulator: .*; GPUCNN_CACHE chooses another place"):
        emulator._build("", [], [])
    with pytest.raises(OSError, match=f"can't write to {os.devnull}/ptx: .*; GPUCNN_CACHE chooses another place"):
        base.kept("ptx/*.ptx", [], bytes)


def test_a_build_is_found_again_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCNN_CACHE", str(tmp_path))
    header = tmp_path / "three.h"
    header.write_text("#define THREE 3\n")
    code = '#include "three.h"\nextern "C" int three() { return THREE; }'
    first = emulator._build(code, [], [header])
    assert emulator._build(code, [], [header]) == first
    header.write_text("#define THREE 4\n")
    assert emulator._build(code, [], [header]) != first
    assert emulator._build(code, ["-DX"], [header]) != first
    assert sorted(path.suffix for path in (tmp_path / "emulator").iterdir()) == [".so"] * 3
