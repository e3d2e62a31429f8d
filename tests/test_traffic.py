"""What bench/traffic.py counts, and that the tiles of the kernels meet in no bank of shared memory."""

import numpy as np
import pytest
import traffic

import gpucnn
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.variants import preferring

pytestmark = pytest.mark.usefixtures("_nvrtc")

LANES = np.arange(32)


@pytest.mark.parametrize(("addresses", "size", "taken"), [
    (4 * LANES, 4, 1),  # neighbours
    (0 * LANES, 4, 1),  # all the same word
    (8 * LANES, 4, 2),  # every other word: two lanes a bank
    (128 * LANES, 4, 32),  # all in one bank
    (8 * LANES, 8, 2),  # half a warp at a time
    (16 * LANES, 16, 4),  # a quarter
    (128 * LANES, 16, 32),  # eight lanes of each quarter in the same four banks
    (LANES // 4, 1, 1),  # four lanes a byte
    (np.where(LANES < 8, 128 * LANES, -1), 4, 8),  # of those that take part
])  # fmt: skip
def test_the_wavefronts_of_an_access_to_shared_memory(addresses, size, taken):
    assert traffic.wavefronts(addresses[None], size)[1] == taken


@pytest.mark.parametrize(("addresses", "size", "taken", "least"), [
    (4 * LANES, 4, 4, 4), (16 * LANES, 16, 16, 16), (32 * LANES, 4, 32, 4), (0 * LANES, 4, 1, 4),
    (np.where(LANES < 4, 32 * LANES, -1), 4, 4, 1),
])  # fmt: skip
def test_the_sectors_of_an_access_to_global_memory(addresses, size, taken, least):
    assert traffic.sectors(addresses[None], size) == (1, taken, least)


def counted(variant, precision, dtype, c, k):
    """By the first variant whose name begins so, where there is one."""
    device = traffic.CountingDevice((9, 0))
    backend = KernelBackend(device, preferring(variant))
    rng = np.random.default_rng(0)
    x, w = (
        gpucnn.tensor(
            rng.standard_normal(shape).astype(gpucnn.dtypes.named(dtype)), backend=backend, requires_grad=True
        )
        for shape in ((1, c, 8, 16), (k, c, 3, 3))
    )
    with gpucnn.precision(precision):
        gpucnn.functional.conv2d(x, w, padding=1).sum().backward()
    return device


@pytest.mark.parametrize(("variant", "precision", "dtype", "channels"), [
    ("gemm", "fp32", "float32", (32, 64)), ("gemm", "fp32", "float64", (32, 64)), ("fma", "fp32", "float32", (32, 64)),
    ("gemm", "fp32", "float32", (6, 16)), ("gemm", "fp32", "float32", (24, 32)),
    ("mma", "fp32", "float32", (32, 64)), ("mma", "tf32", "float32", (32, 64)), ("mma", "fp32", "float16", (32, 64)),
    ("halo", "tf32", "float32", (32, 64)), ("halo", "fp32", "bfloat16", (32, 64)),
    ("mma 128x32", "fp32", "float32", (32, 32)), ("mma 128x32", "fp32", "float16", (32, 32)),
    ("mma 128x16", "fp32", "float32", (16, 16)), ("mma 128x16", "tf32", "float32", (16, 16)),
    ("mma 16x128", "fp32", "float32", (16, 16)), ("mma 16x128", "tf32", "float32", (16, 16)),
    ("mma 128x16", "fp32", "float16", (16, 16)), ("mma 16x128", "fp32", "float16", (16, 16)),
    ("mma 32x128", "fp32", "float32", (32, 32)), ("mma 32x128", "fp32", "float16", (32, 32)),
])  # fmt: skip
def test_what_is_read_and_written_of_a_tile_meets_in_no_bank(variant, precision, dtype, channels):
    device = counted(variant, precision, dtype, *channels)
    family = variant.split()[0]
    of_tiles = {key: t for key, t in device.traffic.items() if key[3] == "shared" and key[0].startswith("conv2d")}
    assert any(family in name or family == "gemm" for name, *_ in of_tiles)
    assert {key: t for key, t in of_tiles.items() if t.taken > t.least} == {}


def test_a_first_layer_of_three_channels_takes_a_tenth_of_the_cycles_that_it_takes_directly():
    """Of what bounds it, with 64 filters of 7×7: why `variants.usual` computes it as a matrix product."""
    most = {}
    for family in ("direct", "gemm"):
        device = traffic.CountingDevice((9, 0))
        with gpucnn.use_backend(KernelBackend(device, preferring(family))):
            x, w = gpucnn.zeros(1, 3, 32, 32), gpucnn.zeros(64, 3, 7, 7)
            gpucnn.functional.conv2d(x, w, stride=2, padding=3)
        (kernel,) = (name for name in device.instructions if name.startswith("conv2d"))
        most[family] = max(traffic.cycles(device, kernel).values())
    assert most["gemm"] < most["direct"] / 10


def test_memory_is_what_a_launch_touches_each_sector_once():
    device = traffic.CountingDevice((9, 0))
    with gpucnn.use_backend(KernelBackend(device)):
        x = gpucnn.zeros(1, 32, 16, 16)
        device.clear()
        gpucnn.functional.max_pool2d(x, 3, 1, 1)  # nine reads of each pixel
        gpucnn.functional.max_pool2d(x, 3, 1, 1)
    read = 1 * 32 * 16 * 16 * 4
    assert device.memory["max_pool2d_forward"] == 2 * 2 * read


@pytest.mark.parametrize("op", [
    lambda x, w: gpucnn.functional.conv2d(x, w, padding=1, groups=64),
    lambda x, w: gpucnn.functional.conv2d(x, w, padding=1, stride=2, groups=64),
    lambda x, w: gpucnn.functional.batch_norm(x, None, None, training=True),
    lambda x, w: gpucnn.functional.instance_norm(x),
    lambda x, w: gpucnn.functional.max_pool2d(x, 2),
])  # fmt: skip
def test_what_has_few_sums_a_pixel_is_bound_by_memory_or_nearly(op):
    device = traffic.CountingDevice((9, 0))
    with gpucnn.use_backend(KernelBackend(device)):
        x = gpucnn.zeros(2, 64, 28, 28).requires_grad_()
        w = gpucnn.zeros(64, 1, 3, 3).requires_grad_()
        y = op(x, w)
        device.clear()
        y.sum().backward()
        op(x, w)
    of = {
        name: traffic.cycles(device, name)
        for name in device.instructions
        if traffic.cycles(device, name)["memory"] > 2e4
    }
    assert len(of) >= 2
    assert {name: units for name, units in of.items() if max(units.values()) > 1.2 * units["memory"]} == {}


def test_the_command_shows_kernels_units_and_the_lines_that_waste(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["traffic.py", "conv2d", "1,3,8,6,3,1", "--capability", "7.5", "--family", "gemm"])
    traffic.main()
    out = capsys.readouterr().out
    assert "conv2d_backward_weight" in out
    assert "sectors/4" in out
    assert "gemm_tile.cuh:" in out


@pytest.mark.parametrize(("what", "shape", "message"), [
    ("conv2d", "1,3", "of conv2d is one such as 2,16,32,16,3,1, not 1,3"),
    ("lenet5", "3", "of lenet5 is its own, not 3"),
    ("max_pool2d", "1,2,3,4,x", "of max_pool2d is one such as 2,64,56,3,2, not 1,2,3,4,x"),
])  # fmt: skip
def test_a_shape_that_is_none_is_refused(what, shape, message, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["traffic.py", what, shape])
    with pytest.raises(SystemExit) as stopped:
        traffic.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
