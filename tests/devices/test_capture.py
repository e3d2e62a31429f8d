"""Graphs below the backend: the arena's places, and what each device captures, refuses and leaves behind."""

import gc

import fake_cupy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices import Device, KernelError, host_arrays
from gpucnn.devices.cuda import CudaDevice
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.graph import ALIGNMENT, CONTROL_BYTES, Arena
from gpucnn.devices.ptx import PtxDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.live import CaptureError, Live
from gpucnn.tensor import Tensor

DEVICES = ("emulator", "ptx", "cuda")


@pytest.fixture(params=DEVICES)
def engine(request, monkeypatch):
    if request.param == "cuda":
        fake_cupy.install(monkeypatch)
        return KernelBackend(CudaDevice())
    if request.param == "ptx":
        request.getfixturevalue("_nvrtc")
        return KernelBackend(PtxDevice())
    return KernelBackend(EmulatorDevice())


def measured(size):
    arena = Arena()
    arena.bytes = arena.constant_bytes = size
    return arena


def relu(engine, x):
    return engine.activation_forward(x, "relu", 0.0)


def values(*numbers):
    return np.array(numbers, np.float32)


# -- the arena ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000))))
def test_no_two_living_blocks_overlap_and_each_is_as_low_as_it_can_be(events):
    arena, living = Arena(), []
    for frees, number in events:
        if frees and living:
            living.pop(number % len(living))
            continue
        block = arena.allocate(number)
        taken = sorted((other.start, other.stop) for other in living)
        assert block.start % ALIGNMENT == 0
        assert block.stop - block.start >= max(number, 1)
        assert all(block.stop <= start or stop <= block.start for start, stop in taken)
        for place in (0, *(stop for _, stop in taken)):
            fits = all(place + block.bytes <= start or stop <= place for start, stop in taken)
            assert block.start <= place or not fits
        living.append(block)
        del block
        assert arena.used == sum(each.bytes for each in living) <= arena.peak <= arena.bytes
        assert arena.bytes >= max(each.stop for each in living)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000))))
def test_what_fits_once_fits_again_in_the_same_order(events):
    def places(arena):
        living, found = [], []
        for frees, number in events:
            if frees and living:
                living.pop(number % len(living))
            else:
                living.append(arena.allocate(number))
                found.append(living[-1].start)
        return found

    first = Arena()
    assert places(first) == places(Arena(limit=first.bytes))


def test_an_arena_that_is_full_says_what_must_not_change():
    arena = Arena(limit=2 * ALIGNMENT)
    block = arena.allocate(ALIGNMENT + 1)
    with pytest.raises(CaptureError, match="needs more memory than in the call before; it must allocate the same"):
        arena.allocate(1)
    del block
    assert arena.allocate(1).start == 0


# -- what a device captures --------------------------------------------------------------------------


def test_nothing_is_computed_before_the_launch_and_everything_at_each(engine):
    x = engine.asarray(values(-1, 2, 3))
    total = engine.asarray(values(0, 0, 0))
    with engine.device.measure() as arena:
        total += relu(engine, x) * 2
    total[...] = 0
    with engine.device.capture(arena) as graph:
        total += relu(engine, x) * 2
    assert engine.to_numpy(total).tolist() == [0, 0, 0]
    graph.launch()
    assert engine.to_numpy(total).tolist() == [0, 4, 6]
    x[...] = engine.asarray(values(5, -5, 1))
    graph.launch()
    assert engine.to_numpy(total).tolist() == [10, 4, 8]
    assert graph.launches == 1


def test_the_memory_of_what_is_freed_in_a_step_is_used_again(engine):
    x = engine.asarray(np.ones(1000, np.float32))

    def step():
        y = x
        for _ in range(5):
            y = relu(engine, y)
        return y

    with engine.device.measure() as arena:
        step()
    assert arena.bytes == arena.peak == 2 * 4096
    with engine.device.capture(arena) as graph:
        y = step()
    assert graph.report()[:2] == (2 * 4096, 2 * 4096)
    graph.launch()
    assert engine.to_numpy(y).tolist() == [1.0] * 1000


def test_values_from_the_host_are_kept_where_no_kernel_of_the_step_writes(engine):
    x = engine.asarray(np.ones(600, np.float32))

    def step():
        y = relu(engine, relu(engine, x))  # two blocks come and go before the constant
        return y[:3] * engine.asarray(values(2, 3, 4))

    with engine.device.measure() as arena:
        step()
    with engine.device.capture(arena) as graph:
        y = step()
    for _ in range(2):
        graph.memory.fill(255)
        graph.launch()
        assert engine.to_numpy(y).tolist() == [2, 3, 4]


def test_live_numbers_are_asked_for_at_each_launch_and_never_in_the_capture(engine):
    asked = []

    def compute():
        asked.append(len(asked))
        return (len(asked), 7)

    live = Live(compute)
    with engine.device.capture(measured(0)) as graph:
        wide, narrow = (engine.device.live(live, 2, dtype) for dtype in (np.uint64, np.float32))
        assert engine.device.live(live, 2, np.uint64) is wide
    assert asked == []
    for launch in (1, 2):
        graph.launch()
        assert engine.to_numpy(wide).tolist() == engine.to_numpy(narrow).tolist() == [launch, 7]
    assert len(asked) == 2


def test_more_live_numbers_than_there_is_room_for_are_refused(engine):
    with engine.device.capture(measured(0)) as graph:
        for _ in range(CONTROL_BYTES // 16):
            graph.live(Live(lambda: (1, 2)), 2, np.dtype(np.uint64))
        with pytest.raises(CaptureError, match=f"more than {CONTROL_BYTES} bytes of numbers that change"):
            graph.live(Live(lambda: (1, 2)), 2, np.dtype(np.uint64))


def test_a_graph_keeps_the_arrays_from_outside_that_it_reads(engine):
    x = engine.asarray(np.full(100, 3, np.float32))
    with engine.device.measure() as arena:
        relu(engine, x)
    with engine.device.capture(arena) as graph:
        y = relu(engine, x)
    del x
    gc.collect()
    filler = [engine.asarray(np.full(100, -1, np.float32)) for _ in range(50)]
    graph.launch()
    assert engine.to_numpy(y).tolist() == [3.0] * 100
    assert len(filler) == 50


# -- what it refuses ---------------------------------------------------------------------------------


REFUSED = {
    "a value": (lambda engine, x: engine.to_numpy(x), "reads values on the host"),
    "waiting": (lambda engine, x: engine.synchronize(), "reads values on the host"),
    "more memory": (lambda engine, x: relu(engine, x), "needs more memory"),
    "a constant that was not measured": (lambda engine, x: engine.asarray(values(1)), "needs more memory"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_graph_can_not_hold_is_refused_and_the_device_goes_on(engine, what):
    attempt, message = REFUSED[what]
    x = engine.asarray(values(-1, 1))
    with pytest.raises(CaptureError, match=message), engine.device.capture(measured(0)) as graph:
        attempt(engine, x)
    assert engine.device.capturing is None
    assert engine.to_numpy(relu(engine, x)).tolist() == [0, 1]
    with pytest.raises(RuntimeError, match="was not captured to the end"):
        graph.launch()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_in_the_step_goes_through_and_the_device_goes_on(engine, error):
    x = engine.asarray(values(-1, 1))

    def step():
        relu(engine, x)
        raise error

    with pytest.raises(error), engine.device.capture(measured(1 << 20)):
        step()
    assert engine.to_numpy(relu(engine, x)).tolist() == [0, 1]
    with pytest.raises(error), engine.device.measure():
        step()
    assert engine.device.measuring is None
    with engine.device.capture(measured(1 << 20)) as graph:
        y = relu(engine, x)
    graph.launch()
    assert engine.to_numpy(y).tolist() == [0, 1]


def test_a_launch_that_can_not_be_right_is_refused_in_a_capture_too(engine):
    x = engine.asarray(values(1))
    with pytest.raises(KernelError, match="must be float32, got float64"), engine.device.capture(measured(1 << 20)):
        engine.device.launch(
            "activation.cu", "activation_forward", {"SCALAR": "float", "KIND": "RELU"}, (1, 1, 1), (256, 1, 1),
            x.astype(np.float64), x, 0.0, 1,
        )  # fmt: skip


def test_an_array_made_on_the_host_is_refused_by_name_of_the_remedy():
    device = RecorderDevice()
    with device.capture(measured(1 << 20)):
        x = device.xp.empty(3, np.float32)
        for attempt in (lambda: x + np.ones(3), lambda: device.xp.asarray([1.0]), lambda: x.__setitem__(0, np.ones(1))):
            with pytest.raises(CaptureError, match="hands values on the host to the device; make them an argument"):
                attempt()


@pytest.mark.parametrize("read", [bool, float, int, str, repr, "{}".format, lambda a: a.item(), lambda a: a.tolist()])
def test_no_value_can_be_read_in_a_capture(read):
    device = RecorderDevice()
    with device.capture(measured(1 << 20)):
        x = device.xp.ones((), np.int64)
        with pytest.raises(CaptureError, match="reads values on the host"):
            read(x)
    read(device.xp.ones((), np.int64))


def test_a_device_that_has_no_graphs_says_so():
    class Plain(Device):
        name, xp = "plain", np

        def launch(self, *arguments):
            pass

        def synchronize(self):
            pass

        def to_numpy(self, array):
            return array

    for attempt in (lambda: Plain().measure(), lambda: Plain().capture(Arena())):
        with pytest.raises(CaptureError, match="the device 'plain' can't capture"):
            attempt()


# -- what CuPy refuses -------------------------------------------------------------------------------


CUPY_REFUSES = {
    "a copy from the host": (lambda cupy, x: cupy.asarray(np.ones(3)), CaptureError, "hands values on the host"),
    "an index on the host": (lambda cupy, x: x[np.array([2, 0])], CaptureError, "hands values on the host"),
    "a copy to the host": (lambda cupy, x: cupy.asnumpy(x), RuntimeError, "StreamCaptureUnsupported"),
    "waiting": (lambda cupy, x: cupy.cuda.get_current_stream().synchronize(), RuntimeError, "StreamCaptureUnsupported"),
    "cuBLAS": (lambda cupy, x: cupy.matmul(x, x), NotImplementedError, "calling cuBLAS API during stream capture"),
    "memory of the pool": (lambda cupy, x: fake_cupy.from_pool(4), RuntimeError, "StreamCaptureUnsupported"),
}


@pytest.mark.parametrize("what", CUPY_REFUSES)
def test_the_stand_in_refuses_in_a_capture_what_cupy_and_our_allocator_do(monkeypatch, what):
    cupy = fake_cupy.install(monkeypatch)
    attempt, error, message = CUPY_REFUSES[what]
    device = CudaDevice()
    x = cupy.ones(3, np.float32)
    attempt(cupy, x)
    with pytest.raises(error, match=message), device.capture(measured(1 << 20)):
        attempt(cupy, x)
    attempt(cupy, x)


def test_cuda_captures_in_a_stream_that_does_not_block_and_takes_all_memory_from_the_arena(monkeypatch):
    fake_cupy.install(monkeypatch)
    device = CudaDevice()
    engine = KernelBackend(device)
    x = engine.asarray(values(1, -1))
    with device.capture(measured(1 << 20)) as graph:  # the stand-in asserts non_blocking, and refuses the pool
        y = relu(engine, x)
    start = device.address(graph.memory)
    assert start <= device.address(y) < start + (1 << 20)
    assert {device.address(kept) for kept in graph.keeps} == {device.address(x)}


def test_a_cuda_graph_keeps_what_operations_of_cupy_refer_to(monkeypatch):
    """Else the pool would give the memory of a tensor that nobody else has any more to others."""
    fake_cupy.install(monkeypatch)
    device = CudaDevice()
    engine = KernelBackend(device)
    a, b, changed = (Tensor(engine.asarray(values(1, -1)), engine) for _ in range(3))
    with device.capture(measured(1 << 20)) as graph:
        inside = a * 2
        (inside + b).sum()
        changed.add_(1)
    kept = {device.address(array) for array in graph.keeps}
    assert kept == {device.address(tensor.array) for tensor in (a, b, changed)}
    b.array = None
    assert not any(array is None for array in graph.keeps)


# -- NumPy as a device's arrays ----------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_a_noted_operation_has_the_layout_and_bits_of_the_same_one_at_once(order):
    device, rng = RecorderDevice(), np.random.default_rng(0)
    x = device.xp.asarray(rng.standard_normal((2, 3, 4, 5)).astype(np.float32)).transpose(order)
    i = device.xp.asarray(np.arange(3))
    operations = {
        "arithmetic": lambda: (x * 2.5 - x / 3) ** 2,
        "sum": lambda: x.sum(axis=(0, 2)),
        "sum of all": lambda: x.sum(),
        "maximum": lambda: x.max(axis=1, keepdims=True),
        "argmax": lambda: x.argmax(axis=1),
        "where": lambda: device.xp.where(x > 0, x, -x),
        "concatenate": lambda: device.xp.concatenate([x, x], axis=1),
        "copy of a view": lambda: x[:, ::2].copy(),
        "reshape that copies": lambda: x.transpose(3, 0, 2, 1).reshape(-1, 2),
        "cast": lambda: x.astype(np.float64),
        "broadcast": lambda: device.xp.broadcast_to(x[:1], x.shape).copy(),
        "ones": lambda: device.xp.ones_like(x) + device.xp.zeros((1, 1), np.float32),
        "chosen": lambda: x[0].reshape(-1)[i],
    }
    for name, operation in operations.items():
        expected = operation()
        with device.capture(measured(1 << 20)) as graph:
            noted = operation()
        graph.launch()
        np.testing.assert_array_equal(np.asarray(noted), np.asarray(expected), err_msg=name)
        assert noted.dtype == expected.dtype, name
        steps = [[s for s, n in zip(a.strides, a.shape, strict=True) if n > 1] for a in (noted, expected)]
        assert steps[0] == steps[1], name


def test_in_place_operations_are_noted_in_their_order():
    device = RecorderDevice()
    x = device.xp.asarray(values(1, 2, 3))
    with device.capture(measured(1 << 20)) as graph:
        x += 1
        x[1:] = x[:2] * 10
        x[0] = 0
        device.xp.clip(x, 0, 25, out=x)
        x *= 2
    assert x.tolist() == [1, 2, 3]
    graph.launch()
    assert x.tolist() == [0, 40, 50]


def test_host_arrays_are_numpys_outside_of_a_capture():
    x = host_arrays.asarray(np.arange(6.0).reshape(2, 3))
    assert isinstance(x, np.ndarray)
    assert np.array_equal(x + x, 2 * np.arange(6.0).reshape(2, 3))
    assert (float(x.sum()), int(x[1, 2]), bool((x >= 0).all()), f"{x.max():.1f}") == (15.0, 5, True, "5.0")
    assert repr(x[0]) == "array([0., 1., 2.])"
    assert np.shares_memory(host_arrays.asarray(x), x)
    assert not np.shares_memory(host_arrays.array(x), x)
