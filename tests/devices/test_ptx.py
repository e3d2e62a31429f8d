"""The PTX machine: what its instructions compute, and what it refuses. (What the kernels' PTX gives: tests/kernels.)"""

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucnn.devices import nvrtc
from gpucnn.devices.base import KernelError, kernel_folder
from gpucnn.devices.ptx import PtxDevice, hopper, step
from gpucnn.devices.ptx.code import Address, Register, read
from gpucnn.devices.ptx.machine import Memory, Program, Wave

pytestmark = pytest.mark.usefixtures("_nvrtc")

ZOO = Path(__file__).parent / "zoo.cu"
rng = np.random.default_rng(0)


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def zoo(tmp_path):
    """zoo(kernel, bug, blocks, threads, *arguments): launch a kernel of zoo.cu with that bug."""
    for file in [ZOO, *kernel_folder().glob("*.cuh")]:
        (tmp_path / file.name).write_text(file.read_text())
    device = PtxDevice(kernels=tmp_path, capability=(8, 0))

    def launch(kernel, bug, blocks, threads, *arguments):
        constants = {"SCALAR": "float", "BUG": bug}
        device.launch("zoo.cu", kernel, constants, (blocks, 1, 1), (threads, 1, 1), *arguments)

    return launch


def out(*shape):
    return np.empty(shape, np.float32)


# -- kernels -------------------------------------------------------------------------------------------


def test_clean_kernels_give_their_results(zoo):
    x, y = f32(3, 64), out(3)
    zoo("tree_sum", 0, 3, 64, x, y, 3)
    np.testing.assert_allclose(y, x.sum(1), rtol=1e-5)
    x, y = f32(75), out(75)
    zoo("twice", 0, 3, 32, x, y, 75)
    np.testing.assert_array_equal(y, 2 * x)
    x, y = f32(128), out(128)
    zoo("copy_async", 0, 1, 32, x, y)
    np.testing.assert_array_equal(y, x)
    x, y = f32(64), out(64)
    zoo("swap_neighbours", 0, 1, 64, x, y)
    np.testing.assert_array_equal(y, x.reshape(-1, 2)[:, ::-1].ravel())
    a, b, y = np.round(32 * f32(16, 8)) / 32, np.round(32 * f32(8, 8)) / 32, out(16, 8)
    zoo("tensor_core", 0, 1, 32, a, b, y)
    np.testing.assert_allclose(y, a @ b, rtol=1e-5, atol=1e-5)


BUGS = [
    ("tree_sum", 3, "reads 4 bytes of shared memory at byte 260 of 256", "part[t + step + (t == step"),
    ("tree_sum", 2, "a barrier that not all threads of a block reach", ""),
    ("twice", 4, "reads 4 bytes at byte 300 of x, out of bounds", "if (i <= count)"),
    ("twice", 5, "reads 4 bytes at byte 300 of x, out of bounds", "x[i + 1]"),
    ("row_sum", 11, r"reads 4 bytes at byte \d+ of x, out of bounds", "x[h * H + w]"),
    ("swap_neighbours", 13, "a thread of its mask does not come to it", "if (t % 32 < 16)"),
    ("tensor_core", 15, "not all 32 threads of the warp come to it together", ""),
]


@pytest.mark.parametrize(("kernel", "bug", "message", "code"), BUGS)
def test_a_seeded_bug_is_caught_with_block_thread_line_and_instruction(zoo, kernel, bug, message, code):
    arguments = {
        "tree_sum": (3, 64, f32(3, 64), out(3), 3),
        "twice": (3, 32, f32(75), out(75), 75),
        "row_sum": (1, 8, f32(7, 5), out(7), 7, 5),
        "swap_neighbours": (1, 64, f32(64), out(64)),
        "tensor_core": (1, 32, f32(16, 8), f32(8, 8), out(16, 8)),
    }[kernel]
    with pytest.raises(KernelError, match=message) as caught:
        zoo(kernel, bug, *arguments)
    if code:
        found = re.match(
            rf"{kernel}: block \(\d+, 0, 0\), thread \(\d+, 0, 0\), line zoo.cu:(\d+), '", str(caught.value)
        )
        assert found, caught.value
        assert code in ZOO.read_text().splitlines()[int(found[1]) - 1]


def test_what_an_asynchronous_copy_brings_is_nan_to_whoever_does_not_wait(zoo):
    y = out(128)
    zoo("copy_async", 12, 1, 32, f32(128), y)
    assert np.isnan(y).all()


def test_a_loop_that_never_ends_is_stopped(zoo, monkeypatch):
    monkeypatch.setattr("gpucnn.devices.ptx.machine.MOST_SEGMENTS", 1000)
    with pytest.raises(KernelError, match="twice: stopped after 1000 branches; does a loop never end"):
        launch_text(ENDLESS, "twice", (1, 1, 1), (32, 1, 1))


def test_a_wide_access_off_its_boundary_is_caught(zoo):
    x, y = (np.zeros(32, np.float32) for _ in range(2))
    x, y = (a[(-a.ctypes.data % 16) // 4 :] for a in (x, y))
    zoo("copy_fours", 0, 1, 2, x[:8], y[:8], 8)
    with pytest.raises(KernelError, match=r"16 bytes at 0x[0-9a-f]+, which is no multiple of 16"):
        zoo("copy_fours", 0, 1, 2, x[1:9], y[:8], 8)


def test_more_threads_than_the_kernel_is_compiled_for_are_refused(zoo):
    with pytest.raises(KernelError, match=r"tree_sum: a grid of \(3, 1, 1\) .*: its PTX allows 64 threads"):
        zoo("tree_sum", 0, 3, 128, f32(3, 64), out(3), 3)


def test_an_output_that_nobody_writes_is_nan(zoo):
    y = out(75)
    zoo("twice", 6, 3, 32, f32(75), y, 75)
    assert np.flatnonzero(np.isnan(y)).tolist() == [5]


def test_a_launch_of_many_waves_computes_every_block(zoo):
    x, y = f32(32 * 1000), out(32 * 1000)
    zoo("twice", 0, 1000, 32, x, y, x.size)
    np.testing.assert_array_equal(y, 2 * x)


def test_denormal_numbers_are_flushed_keeping_their_signs(zoo):
    x, y = np.full(75, -(2.0**-127), np.float32), out(75)
    zoo("twice", 0, 3, 32, x, y, 75)
    np.testing.assert_array_equal(y, 0)
    assert np.signbit(y).all()


def test_code_that_does_not_compile_is_an_error_with_the_compilers_message(tmp_path):
    code = 'extern "C" __global__ void broken(\n    float* y  // [1]\n) {\n    y[0] = missing;\n}\n'
    (tmp_path / "broken.cu").write_text(code)
    with pytest.raises(KernelError, match=r'NVRTC refused broken\.cu .*(\n.*)*identifier "missing" is undefined'):
        PtxDevice(kernels=tmp_path).launch("broken.cu", "broken", {}, (1, 1, 1), (1, 1, 1), out(1))


def test_without_nvrtc_the_error_says_what_installs_it(monkeypatch):
    def missing(name):
        raise nvrtc.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(nvrtc.metadata, "distribution", missing)
    nvrtc.library.cache_clear()
    with pytest.raises(RuntimeError, match="nvidia-cuda-nvrtc is not installed: pip install nvidia-cuda-nvrtc"):
        PtxDevice()


@pytest.mark.parametrize(("body", "message"), [
    ("s[i] = 1; y[i] = s[i - 1];", "reads 4 bytes of shared memory at byte -4 of 64"),
    ("s[i - 1] = 1; y[i] = s[i];", "writes 4 bytes of shared memory at byte -4 of 64"),
    ("((float*)x)[i] = 1; y[i] = 1;", "writes to x, which is const"),
    ("y[i] = x[(int)i - 1];", "reads 4 bytes at byte -4 of x, out of bounds"),
    ("y[i] = *(const float*)((const char*)x + 4 * i + 1);", "4 bytes at 0x[0-9a-f]+, which is no multiple of 4"),
    ("y[i] = *(volatile float*)((char*)s + 4 * i + 1);", "does not know|4 bytes at .* no multiple of 4"),
    ("y[i] = atomicAdd(&y[0], 1.0f);", "does not know 'atom"),
    ("y[i] = clock();", "does not know"),
    ("__nanosleep(1); y[i] = 1;", "does not know 'nanosleep"),
])  # fmt: skip
def test_what_a_kernel_must_not_do_is_an_error(tmp_path, body, message):
    launch_body(tmp_path, "y[i] = x[i]; s[i] = 0;")
    with pytest.raises(KernelError, match=message):
        launch_body(tmp_path, body)


@pytest.mark.parametrize(("body", "expected"), [
    ("y[i] = 1.0f / x[i];", lambda x: 1 / x),
    ("y[i] = (float)(1.0 / (double)x[i]);", lambda x: (1 / x.astype(np.float64)).astype(np.float32)),
    ("y[i] = i % 3 == 1 ? x[i] : -x[i];", lambda x: np.where(np.arange(16) % 3 == 1, x, -x)),
    ("y[i] = __shfl_xor_sync(0xffffffffu, x[i], 1);", lambda x: x.reshape(-1, 2)[:, ::-1].ravel()),
    ("y[i] = __shfl_sync(0xffffffffu, x[i], 2, 4);", lambda x: np.repeat(x[2::4], 4)),
    ("int n = (int)i - 8; y[i] = (float)(n / 3) + (float)(n % 3);",
     lambda x: np.array([int(n / 3) + math.fmod(n, 3) for n in range(-8, 8)])),
    ("for (int j = 0; j < (int)i; ++j) y[i] = (float)j; if (i == 0) y[i] = -1;", lambda x: np.arange(16) - 1),
    ('asm("{\\n.reg .f32 t;\\nadd.rn.f32 t, %1, %1;\\nmov.f32 %0, t;\\n}\\n" : "=f"(y[i]) : "f"(x[i]));',
     lambda x: 2 * x),
])  # fmt: skip
def test_what_kernels_say_in_other_words_is_computed(tmp_path, body, expected):
    """By sixteen threads, half a warp."""
    x, y = launch_body(tmp_path, body)
    np.testing.assert_array_equal(y, expected(x))


def launch_body(tmp_path, body):
    """Run `body` by 16 threads; x and y."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    (folder / "one.cu").write_text(
        'extern "C" __global__ void one(\n    const float* x,  // [16]\n    float* y         // [16]\n) {\n'
        f"    __shared__ float s[16];\n    const unsigned int i = threadIdx.x;\n    {body}\n}}\n"
    )
    x, y = f32(16), out(16)
    PtxDevice(kernels=folder).launch("one.cu", "one", {}, (1, 1, 1), (16, 1, 1), x, y)
    return x, y


def test_what_is_read_by_a_null_pointer_is_an_error(tmp_path):
    (tmp_path / "one.cu").write_text(
        'extern "C" __global__ void one(\n    const float* x,  // [1] or null\n    float* y         // [1]\n) {\n'
        "    y[0] = x[-1];\n}\n"
    )
    with pytest.raises(KernelError, match="reads 4 bytes at -4, where no buffer is: a null pointer"):
        PtxDevice(kernels=tmp_path).launch("one.cu", "one", {}, (1, 1, 1), (1, 1, 1), None, out(1))


def test_each_block_and_thread_of_three_axes_knows_where_it_is(tmp_path):
    (tmp_path / "one.cu").write_text(
        'extern "C" __global__ void one(\n    int* y  // [432]\n) {\n'
        "    const int b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;\n"
        "    const int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;\n"
        "    y[b * 18 + t] = b * 100 + t;\n}\n"
    )
    y = np.empty(432, np.int32)
    PtxDevice(kernels=tmp_path).launch("one.cu", "one", {}, (2, 3, 4), (3, 3, 2), y)
    np.testing.assert_array_equal(y, (100 * np.arange(24)[:, None] + np.arange(18)).ravel())


def test_an_argument_may_be_part_of_another(tmp_path):
    (tmp_path / "one.cu").write_text(
        'extern "C" __global__ void one(\n    float* y,       // in place [8]\n    const float* x  // [16]\n) {\n'
        "    y[threadIdx.x] += x[threadIdx.x];\n}\n"
    )
    for part in (slice(0, 8), slice(8, 16)):
        x = f32(16)
        expected = x.copy()
        expected[part] += x[:8]
        PtxDevice(kernels=tmp_path).launch("one.cu", "one", {}, (1, 1, 1), (8, 1, 1), x[part], x)
        np.testing.assert_array_equal(x, expected)


def test_an_edited_kernel_is_compiled_anew_by_a_device_made_since(tmp_path):
    def made(number):
        code = f'extern "C" __global__ void one(\n    float* y  // [1]\n) {{\n    y[0] = {number};\n}}\n'
        (tmp_path / "one.cu").write_text(code)
        y = out(1)
        PtxDevice(kernels=tmp_path).launch("one.cu", "one", {}, (1, 1, 1), (1, 1, 1), y)
        return y.item()

    assert [made(1), made(2), made(1)] == [1, 2, 1]


# -- instructions --------------------------------------------------------------------------------------

ENDLESS = ".visible .entry twice()\n{\n\t.reg .b32 \t%r<2>;\n$L__1:\n\tmov.u32 \t%r1, %tid.x;\n\tbra.uni \t$L__1;\n}\n"


def launch_text(text, name, grid, block):
    """Run a kernel without parameters; its wave."""
    program = Program(read(text)[name], 0, step)
    wave = Wave(program, Memory([]), b"", grid, block, range(math.prod(grid)))
    with np.errstate(all="ignore"):
        wave.run()
    return wave


def computed(instruction, type_, *values):
    """What an instruction gives for values that are put into registers by hand: bits or numbers."""
    kinds = type_ if isinstance(type_, list) else [type_] * (len(values) + 1)
    declared = "".join(f"\t.reg .{kind} \t%v{i};\n" for i, kind in enumerate(kinds))
    names = ", ".join(f"%v{i}" for i in range(len(kinds)))
    text = f".visible .entry one()\n{{\n{declared}\t{instruction} \t{names};\n\tret;\n}}\n"
    program = Program(read(text)["one"], 0, step)
    wave = Wave(program, Memory([]), b"", (1, 1, 1), (1, 1, 1), range(1))
    for register, value in zip(wave.registers[1:], values, strict=True):
        register[:] = value
    with np.errstate(all="ignore"):
        wave.run()
    return wave.registers[0][0]


def nearest(x, dtype):
    """The number of dtype that is nearest to a Fraction, ties to even."""
    guess = dtype(float(x))
    around = [np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))]
    return min(around, key=lambda y: (abs(Fraction(float(y)) - x), int(y.view(f"u{y.itemsize}")) & 1))


normal32 = st.floats(2.0**-20, 2.0**20, width=32) | st.floats(-(2.0**20), -(2.0**-20), width=32)
normal64 = st.floats(2.0**-20, 2.0**20) | st.floats(-(2.0**20), -(2.0**-20))


@given(normal32, normal32, normal32)
def test_fma_of_floats_is_rounded_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if abs(exact) > 2.0**-100:
        assert computed("fma.rn.ftz.f32", "f32", a, b, c) == nearest(exact, np.float32)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("a", "b", "c"), [
    (1774001 * 2.0**-30, 38737 * 2.0**-30, 1.0), ((2**18 - 1) * 2.0**-30, (2**18 + 1) * 2.0**-30, 1 + 2.0**-23),
])  # fmt: skip
def test_fma_of_floats_is_rounded_once_where_double_lies_halfway_between_two_floats(a, b, c, sign):
    assert computed("fma.rn.ftz.f32", "f32", sign * a, b, sign * c) == sign * (1 + 2.0**-23)


@pytest.mark.parametrize(("a", "b", "c"), [(-1.0, 0.0, -0.0), (1.0, -0.0, -0.0), (-0.0, 5.0, -0.0)])
def test_fma_of_doubles_keeps_the_sign_of_zero(a, b, c):
    assert np.signbit(computed("fma.rn.f64", "f64", a, b, c))


def test_fma_of_doubles_is_rounded_once_where_its_parts_would_round_twice():
    a, b, c = (float.fromhex(x) for x in ("-0x1.dd58e6p+23", "0x1.4bf0ed28p+29", "0x1p-55"))
    assert computed("fma.rn.f64", "f64", a, b, c) == nearest(Fraction(a) * Fraction(b) + Fraction(c), np.float64)


@given(normal64, normal64, normal64)
def test_fma_of_doubles_is_rounded_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if abs(exact) > 2.0**-100:
        assert computed("fma.rn.f64", "f64", a, b, c) == nearest(exact, np.float64)


int32 = st.integers(-(2**31), 2**31 - 1)


@given(int32, int32)
def test_integer_division_is_cs(a, b):
    if b and (a, b) != (-(2**31), -1):
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        assert computed("div.s32", "s32", a, b) == quotient
        assert computed("rem.s32", "s32", a, b) == a - b * quotient


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_the_high_half_of_a_product_is_exact(a, b):
    assert computed("mul.hi.s64", "s64", a, b) == (a * b) >> 64
    assert computed("mul.hi.s32", "s32", a >> 32, b >> 32) == ((a >> 32) * (b >> 32)) >> 32


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 31), st.integers(0, 32))
def test_a_bit_field_is_inserted(a, b, start, length):
    mask = ((1 << length) - 1 << start) & 0xFFFFFFFF
    assert computed("bfi.b32", "b32", a, b, start, length) == (b & ~mask) | (a << start & mask)


@pytest.mark.parametrize(("a", "b", "selector", "expected"), [
    (0x33221100, 0x77665544, 0x3210, 0x33221100),
    (0x33221100, 0x77665544, 0x7654, 0x77665544),
    (0x33221100, 0x77665544, 0x1054, 0x11005544),
    (0x80221100, 0x77665544, 0xB0C8, 0xFF000000),
])  # fmt: skip
def test_bytes_are_permuted(a, b, selector, expected):
    assert computed("prmt.b32", "b32", a, b, selector) == expected


@pytest.mark.parametrize(("instruction", "value", "by", "expected"), [
    ("shl.b32", 1, 31, 1 << 31), ("shl.b32", 1, 32, 0), ("shr.u32", 1 << 31, 31, 1), ("shr.u32", 1 << 31, 40, 0),
])  # fmt: skip
def test_a_shift_by_the_width_or_more_leaves_zeros(instruction, value, by, expected):
    assert computed(instruction, "b32", value, by) == expected


def test_an_arithmetic_shift_leaves_signs():
    assert computed("shr.s32", ["s32", "s32", "b32"], -8, 1) == -4
    assert computed("shr.s32", ["s32", "s32", "b32"], -8, 99) == -1


@pytest.mark.parametrize(("name", "of_numbers", "of_nan"), [
    ("lt", True, False), ("ltu", True, True), ("ge", False, False), ("geu", False, True), ("ne", True, False),
    ("neu", True, True), ("eq", False, False), ("equ", False, True), ("num", True, False), ("nan", False, True),
])  # fmt: skip
def test_a_comparison_with_nan_is_as_its_name_says(name, of_numbers, of_nan):
    assert computed(f"setp.{name}.ftz.f32", ["pred", "f32", "f32"], 1, 2) == of_numbers
    assert computed(f"setp.{name}.ftz.f32", ["pred", "f32", "f32"], 1, np.nan) == of_nan


def test_the_larger_of_a_number_and_nan_is_the_number_and_of_two_zeros_the_positive_one():
    assert computed("max.ftz.f32", "f32", np.nan, 3) == computed("max.ftz.f32", "f32", 3, np.nan) == 3
    assert computed("min.ftz.f32", "f32", np.nan, 3) == computed("min.ftz.f32", "f32", 3, np.nan) == 3
    for a, b in ((0.0, -0.0), (-0.0, 0.0)):
        assert not np.signbit(computed("max.ftz.f32", "f32", a, b))
        assert np.signbit(computed("min.ftz.f32", "f32", a, b))


@given(st.floats(width=32))
def test_a_float_becomes_the_nearest_bfloat16(x):
    import ml_dtypes

    bits = computed("cvt.rn.bf16.f32", ["b16", "f32"], x)
    expected = np.float32(x).astype(ml_dtypes.bfloat16).view(np.uint16)
    assert bits == (0x7FFF if np.isnan(x) else expected)


@pytest.mark.parametrize(("x", "bits"), [(1.0, 0x3C00), (65520.0, 0x7C00), (2.0**-24, 1), (np.nan, 0x7FFF)])
def test_a_float_becomes_the_nearest_float16(x, bits):
    assert computed("cvt.rn.f16.f32", ["b16", "f32"], x) == bits


def test_a_narrow_number_is_extended_by_its_own_sign():
    assert computed("cvt.s64.s32", ["b64", "s32"], -5) == 2**64 - 5
    assert computed("cvt.u64.u32", ["b64", "b32"], 2**32 - 5) == 2**32 - 5


@pytest.mark.parametrize("instruction", [
    "sin.approx.f32", "add.rz.ftz.f32", "cvt.rzi.s32.f32", "setp.lt.and.s32", "mul.lo.sat.s32", "div.approx.f32",
    "fma.rn.f16", "ex2.approx.f16", "rcp.approx.ftz.f32", "mbarrier.arrive.shared::cta.b64", "mma.sync", "cp.async",
    "shfl.sync.up.b32", "shfl.sync", "bar.arrive", "wgmma.mma_async.sp.sync.aligned", "cp.async.ca.shared.global",
    "ld.volatile.u32",
])  # fmt: skip
def test_an_instruction_that_it_does_not_know_is_an_error_that_shows_it(instruction):
    text = f".visible .entry one()\n{{\n\t.reg .b32 \t%r<4>;\n\t{instruction} \t%r1, %r2, %r3;\n\tret;\n}}\n"
    with pytest.raises(KernelError, match=rf"one: \?: the PTX machine does not know '{instruction} .*': teach it"):
        Program(read(text)["one"], 0, step)


def test_threads_that_part_at_a_branch_meet_again():
    """Odd threads take the long way; then all 32 shuffle together, which parted threads could not."""
    wave = launch_text(
        """.visible .entry parted()
{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<6>;
	mov.u32 	%r1, %tid.x;
	and.b32 	%r2, %r1, 1;
	setp.eq.s32 	%p1, %r2, 0;
	@%p1 bra 	$L__1;
	add.s32 	%r1, %r1, 100;
	bra.uni 	$L__2;
$L__1:
	add.s32 	%r1, %r1, 200;
$L__2:
	shfl.sync.bfly.b32 	%r3|%p2, %r1, 1, 31, -1;
	ret;
}
""",
        "parted",
        (1, 1, 1),
        (32, 1, 1),
    )
    lane = np.arange(32)
    np.testing.assert_array_equal(wave.registers[6], (lane ^ 1) + np.where(lane % 2, 200, 100))


# -- operands of a warpgroup -------------------------------------------------------------------------------


def test_the_rows_of_an_operand_lie_as_a_swizzled_copy_brings_them():
    """64 rows of 64 halves: chunk i of row r lies at i ^ (r % 8), whether it is read row by row or k by k."""
    descriptor = (0 >> 4) | (8192 >> 4) << 16 | (1024 >> 4) << 32 | 1 << 62
    along = hopper.places_of(descriptor, 64, 16, 2, False, 0)
    row, k = 13, 11
    assert along[row, k] == row * 128 + ((k // 8) ^ (row % 8)) * 16 + k % 8 * 2
    across = hopper.places_of(descriptor, 128, 16, 2, True, 0)
    assert across[row, k] == k * 128 + ((row // 8) ^ (k % 8)) * 16 + row % 8 * 2
    assert across[64 + row, k] == 8192 + across[row, k]


def test_an_address_has_its_offset_and_a_tensor_copy_its_corner():
    text = (
        ".visible .entry one(\n\t.param .u64 one_param_0\n)\n{\n\t.reg .b64 \t%rd<3>;\n\t.reg .b32 \t%r<4>;\n"
        "\tld.global.nc.u32 \t%r1, [%rd1+-12];\n"
        "\tcp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], "
        "[%rd2, {%r1, %r2, %r3}], [%r2];\n\tret;\n}\n"
    )
    kernel = read(text)["one"]
    assert kernel.code[0].operands[1] == Address(Register(1), -12)
    assert kernel.code[1].operands[1] == Address(Register(2), 0, ((Register(4), Register(5), Register(6)),))
