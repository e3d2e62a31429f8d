"""Memory that does not suffice: what is said, what is released, and that the next step computes the right numbers."""

import gc
import re
import subprocess
import sys
import textwrap
from contextlib import nullcontext, suppress

import fake_cupy
import numpy as np
import pytest

import gpucnn
from gpucnn import cli, data, nn, optim, train
from gpucnn import functional as F
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.checkpoint import load_model
from gpucnn.devices import host_arrays
from gpucnn.devices.cuda import CudaDevice
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.graph import Compiled
from gpucnn.memory import OutOfMemoryError, peak_bytes, set_memory_limit

IMAGE, SMALL = (2, 9, 7), (1, 4, 3)
CLASSES = 3


@pytest.fixture(params=["recorder", "emulator", "cuda"])
def engine(request, monkeypatch):
    if request.param == "cuda":
        fake_cupy.install(monkeypatch)
    made = {"recorder": RecorderDevice, "emulator": lambda: EmulatorDevice(watch=False), "cuda": CudaDevice}
    yield from limitable(KernelBackend(made[request.param]()))


@pytest.fixture
def recorder():
    yield from limitable(KernelBackend(RecorderDevice()))


def limitable(backend):
    """A backend in use, with no limit before and after."""
    gc.collect()
    gc.freeze()  # what other tests have left is not looked at when something fails, which would take long
    with gpucnn.use_backend(backend):
        yield backend
    set_memory_limit(None, backend)


def used(backend):
    return backend.device.memory_report()["used"]


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 60), nn.ReLU(), nn.Linear(60, CLASSES))


def convolutions():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 6, (3, 2)), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Conv2d(6, 16, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 6 * 5, CLASSES),
    )  # fmt: skip


class Training:
    def __init__(self, make):
        gpucnn.manual_seed(4)
        self.model, self.shape = make(), SMALL if make is perceptron else IMAGE
        self.optimizer = optim.Adam(self.model.parameters(), 0.01)

    @np.errstate(all="ignore")  # what the recorder's results hold is nothing
    def step(self, count):
        rng = np.random.default_rng(count)
        self.optimizer.zero_grad()
        images = gpucnn.tensor(rng.standard_normal((count, *self.shape)).astype(np.float32))
        loss = F.cross_entropy(self.model(images), rng.integers(0, CLASSES, count))
        loss.backward()
        self.optimizer.step()

    @property
    def result(self):
        state = {name: np.array(value.numpy()) for name, value in self.model.state_dict().items()}
        return state, [np.array(p.grad.numpy()) for p in self.model.parameters()], self.optimizer.state_dict()


def failing(training, count):
    """The error of a step; without pytest.raises, which keeps what it has caught in a cycle."""
    try:
        training.step(count)
    except OutOfMemoryError as error:
        return error.with_traceback(None)
    pytest.fail(f"a batch of {count} fitted")


# -- what is left of a step that failed ------------------------------------------------------------------------------


def test_after_a_step_that_did_not_fit_a_smaller_one_has_the_bits_of_a_process_without_it(engine):
    set_memory_limit(1 << 30, engine)
    never, failed = Training(perceptron), Training(perceptron)
    for training in (never, failed):
        training.step(4)
    before = used(engine)
    set_memory_limit(engine.device.memory_report()["held"] + 40_000, engine)
    gc.disable()  # what is released must not wait for the cyclic collector
    try:
        places = [failing(failed, count).phase for count in (1200, 100, 65)]
        failed.optimizer.zero_grad()
        gradients = sum(p.array.nbytes for p in failed.model.parameters())
        assert used(engine) <= before - gradients
    finally:
        gc.enable()
    assert places == ["making of a tensor", "forward pass", "backward pass"]
    failed.step(5)
    set_memory_limit(1 << 30, engine)
    never.step(5)
    if engine.device.name != "recorder":  # which computes nothing
        np.testing.assert_equal(failed.result, never.result)


def test_memory_is_free_again_while_the_error_is_still_looked_at(recorder):
    """So a smaller batch can be tried in the except block, where the traceback keeps every frame."""
    set_memory_limit(1 << 30, recorder)
    training, images = Training(convolutions), gpucnn.zeros(40, *IMAGE)
    free, phases = used(recorder), []
    for room in (30_000, 150_000, 280_000, 1 << 20):
        set_memory_limit(free + room, recorder)
        gc.disable()
        try:
            F.cross_entropy(training.model(images), np.zeros(40, np.int64)).backward()
        except OutOfMemoryError as error:
            phases.append(error.phase)
            assert used(recorder) - free < 100
        finally:
            gc.enable()
    assert set(phases) == {"forward pass", "backward pass"}
    assert len(phases) == 3  # in the end it fitted


def test_what_a_larger_step_left_in_the_pool_is_given_back_before_a_smaller_one_is_refused(monkeypatch):
    cupy = fake_cupy.install(monkeypatch)
    backend = KernelBackend(CudaDevice())
    with gpucnn.use_backend(backend):
        set_memory_limit(20_000, backend)
        pieces = [gpucnn.zeros(1000) for _ in range(4)]
        del pieces
        assert cupy.pool.total_bytes() > 16_000  # in pieces of 4,096, none of which is enough
        whole = gpucnn.zeros(4500)
        assert cupy.pool.total_bytes() < 20_000
        with pytest.raises(OutOfMemoryError):
            gpucnn.zeros(1000)
        del whole
        set_memory_limit(None, backend)
        assert "limit" not in backend.device.memory_report()
        gpucnn.zeros(9000)


# -- what is said ----------------------------------------------------------------------------------------------------


def test_the_error_names_the_layer_the_array_and_what_holds_the_memory(recorder):
    set_memory_limit(1 << 30, recorder)
    training = Training(convolutions)
    training.step(2)
    start = used(recorder)
    asked = 64 * 16 * 6 * 5 * 4  # what layer 1 makes of 64 images
    taken = 64 * 4 * (2 * 9 * 7 + 2 * 6 * 7 * 6)  # images, and what the convolution and the ReLU made of them
    set_memory_limit(start + taken + asked * 4 // 5, recorder)
    error = failing(training, 64)
    assert (error.phase, error.layer) == ("forward pass", "layer 1 (Conv2d)")
    assert (error.bytes, error.shape, error.dtype) == (asked, (64, 16, 6, 5), np.float32)
    assert error.limit == start + taken + asked * 4 // 5
    held = {}
    for holder in error.holders:
        held[holder.kind] = held.get(holder.kind, 0) + holder.bytes
    parameters = sum(p.numel() for p in training.model.parameters())
    assert held["moments"] == 2 * 4 * parameters
    assert held["parameters"] == 4 * (parameters + 2 * 6) + 8  # batch norm's running statistics and their count
    assert sum(held.values()) == pytest.approx(error.in_use, abs=start / 10)
    saved = {holder.name: holder.bytes for holder in error.holders if holder.kind == "saved for the backward pass"}
    output = 64 * 4 * 6 * 7 * 6
    assert saved["conv2d in layer 0.0 (Conv2d)"] == 64 * 4 * 2 * 9 * 7  # its input, the images
    of_norm = sum(size for name, size in saved.items() if name.endswith("layer 0.1 (BatchNorm2d)"))
    assert of_norm == pytest.approx(2 * output, abs=300)  # what it was given, and what the ReLU behind it made
    first, in_use, by, fits, remedy = str(error).splitlines()
    assert first.startswith(
        "out of memory in the forward pass, layer 1 (Conv2d): 120.0 KiB, float32 of shape (64, 16, 6"
    )
    assert first.endswith("the input is float32 of shape (64, 6, 7, 6)")
    assert re.fullmatch(r"in use: .* KiB of .* KiB, memory of recorder, limited by set_memory_limit", in_use)
    assert "saved for the backward pass" in by
    assert re.fullmatch(
        r"what would fit: at most \d+ of the batch's 64, at .* so far, an estimate: the layers .*", fits
    )
    assert "a smaller batch" in remedy
    assert "no_grad()" in remedy
    assert "autocast" in remedy


def test_an_error_of_the_backward_pass_names_the_op_and_the_layer_that_it_came_back_to(recorder):
    set_memory_limit(1 << 30, recorder)
    training = Training(
        lambda: nn.Sequential(
            nn.Conv2d(2, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 2, 3, padding=1), nn.Flatten(), nn.Linear(126, 3)
        )
    )
    training.step(2)
    start, seen = used(recorder), {}
    unit = 40 * 9 * 7 * 4  # bytes of a channel of 40 images
    for room in (35 * unit, 42 * unit, 60 * unit):
        set_memory_limit(start + room, recorder)
        with suppress(pytest.fail.Exception):
            error = failing(training, 40)
            seen.setdefault((error.phase, error.layer), error)
    backward = [(layer, error) for (phase, layer), error in seen.items() if phase == "backward pass"]
    assert [layer for layer, _ in backward] == ["conv2d in layer 2 (Conv2d)", "activation after layer 0 (Conv2d)"]
    for channels, (_, error) in zip((2, 16), backward, strict=True):
        said = str(error)
        assert f"the gradient is float32 of shape (40, {channels}, 9, 7)" in said
        assert "what would fit: about 3" in said
        assert "so far" not in said
        assert "no_grad()" not in said


class NoRoom(nn.Module):
    """Where no more memory is."""

    def forward(self, input):
        raise MemoryError


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_what_several_ops_have_saved_counts_once_for_the_first_of_them(recorder, dtype):
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1), nn.Tanh(), NoRoom())
    lowered = gpucnn.autocast(dtype) if dtype else nullcontext()
    with pytest.raises(OutOfMemoryError) as caught, lowered, np.errstate(all="ignore"):
        model(gpucnn.zeros(16, *IMAGE))
    plane = 16 * 9 * 7 * (2 if dtype else 4)
    saved = {h.name: h.bytes for h in caught.value.holders if h.kind == "saved for the backward pass" and h.bytes > 999}
    assert caught.value.layer == "layer 4 (NoRoom)"
    assert saved == {
        "conv2d in layer 0 (Conv2d)": 2 * plane,  # its input; that of the other convolution is what tanh has saved
        "activation after layer 0 (Conv2d)": 8 * plane,
        "activation after layer 2 (Conv2d)": 4 * plane,
    }


def test_gradients_and_moments_that_the_step_will_make_are_reckoned_with(recorder):
    set_memory_limit(1 << 30, recorder)
    model = nn.Sequential(nn.Flatten(), nn.Linear(126, 50), nn.Tanh(), NoRoom())
    optimizer = optim.Adam(model.parameters(), 0.1)
    images = gpucnn.zeros(100, *IMAGE)
    parameters, made = 4 * (126 * 50 + 50), 100 * 4 * (126 + 50)  # the latter: flat images, and what tanh has saved
    # at the failure there is room for two of the three: a gradient and two moments for each parameter
    set_memory_limit(used(recorder) + made + 2 * parameters, recorder)
    held = made + 100 * 4 * 126
    estimates = []
    for learned in (True, False):
        model.requires_grad_(learned)
        images.requires_grad = True  # so that a gradient is computed anyway
        with pytest.raises(OutOfMemoryError) as caught:
            model(images)
        estimates.append(caught.value.fits)
    assert estimates == [pytest.approx(100 * (held - parameters) / held, abs=2), 99]
    assert optimizer.steps == [0, 0]


def most_that_fits(training, limit, recorder):
    low, high = 0, 64
    while high - low > 1:
        middle = (low + high) // 2
        try:
            training.step(middle)
            low = middle
        except OutOfMemoryError:
            high = middle
    return low


def test_the_estimate_of_what_fits_is_near_the_truth_and_at_most_too_high_for_a_forward_pass(recorder):
    set_memory_limit(1 << 30, recorder)
    training = Training(convolutions)
    training.step(2)
    start, seen = used(recorder), set()
    for room in (280_000, 450_000):
        set_memory_limit(start + room, recorder)
        error = failing(training, 64)
        most = most_that_fits(training, start + room, recorder)
        seen.add(error.phase)
        assert most <= error.fits + 1
        if error.phase == "backward pass":
            assert error.fits == pytest.approx(most, rel=0.15)
    assert seen == {"forward pass", "backward pass"}


def test_where_nothing_is_learned_nothing_is_said_of_a_backward_pass(recorder):
    set_memory_limit(1 << 30, recorder)
    model = convolutions().eval()
    set_memory_limit(used(recorder) + 100_000, recorder)
    with pytest.raises(OutOfMemoryError, match=r"forward pass, layer (0\.0|1) \(Conv2d\)") as caught:
        train.predict(model, np.zeros((64, *IMAGE), np.float32))
    assert "no_grad()" not in str(caught.value)
    assert "backward" not in str(caught.value)
    assert caught.value.fits < 64


def test_moments_that_do_not_fit_change_nothing_and_blame_no_batch(recorder):
    set_memory_limit(1 << 30, recorder)
    training = Training(perceptron)
    images = gpucnn.zeros(1, *SMALL)
    F.cross_entropy(training.model(images), np.zeros(1, np.int64)).backward()
    set_memory_limit(used(recorder) + 1000, recorder)
    with pytest.raises(OutOfMemoryError, match=r"in the optimizer's step: 2\.8 KiB did not fit") as caught:
        training.optimizer.step()
    assert "an optimizer with fewer moments" in str(caught.value)
    assert caught.value.fits is None
    assert training.optimizer.steps == [0] * 4


def test_a_loss_outside_of_any_module_is_named_by_fit(recorder):
    def loss(output, labels):
        wide = output.reshape(-1, 1).expand(len(output) * CLASSES, 40_000)
        return F.relu(wide).mean()

    training, images = Training(perceptron), np.zeros((8, *SMALL), np.float32)
    loader = data.Loader(data.Dataset(images.transpose(0, 2, 3, 1), [0, 1, 2, 0, 1, 2, 0, 1], ("a", "b", "c")), 4)
    set_memory_limit(1_000_000, recorder)
    with pytest.raises(OutOfMemoryError, match=r"in the training, expand of gpucnn\.functional\.shape: ") as caught:
        train.fit(training.model, loader, epochs=1, optimizer=training.optimizer, loss=loss)
    assert str(caught.value).endswith("it was in epoch 1, batch 1 of 2, with batches of 4 images")


@pytest.mark.parametrize("name", ["numpy", "recorder"])
def test_what_is_measured_is_the_most_that_is_held_at_a_time(recorder, name):
    backend = recorder if name == "recorder" else gpucnn.get_backend("numpy")

    def work():
        first = backend.xp.zeros(30_000, np.float32)
        second = backend.xp.zeros(20_000, np.float32)
        del first
        return second, backend.xp.zeros(10_000, np.float32)

    assert peak_bytes(work, backend) == pytest.approx(4 * 50_000, rel=0.02)


@pytest.mark.parametrize("room", [250_000, 450_000])
def test_fit_measures_what_would_fit_with_a_few_images_and_leaves_no_trace_of_that(recorder, room):
    images = np.random.default_rng(0).integers(0, 256, (128, 9, 7, 2)).astype(np.uint8)
    set_memory_limit(1 << 30, recorder)
    training = Training(lambda: nn.Sequential(convolutions(), nn.Dropout(0.1)))
    set_memory_limit(used(recorder) + room, recorder)

    def run(count):
        """Two steps, for in the second there are moments."""
        two = data.Dataset(images[: 2 * count], np.zeros(2 * count, np.int64), ("a", "b", "c"))
        with np.errstate(all="ignore"), suppress(FloatingPointError):  # the recorder's weights are no numbers
            train.fit(
                training.model, data.Loader(two, count), epochs=1, optimizer=training.optimizer,
                loss=lambda output, labels: output.reshape(-1)[:0].sum(),  # 0, whatever the output is
            )  # fmt: skip

    with pytest.raises(
        OutOfMemoryError, match=r"fit: about \d+ of the batch's 64: an estimate, from steps of 2"
    ) as caught:
        run(64)
    fits = caught.value.fits
    del caught
    [counted] = [b for name, b in training.model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counted.item() == 1  # by the batch that failed
    assert gpucnn.random.default_generator.offset in (0, 64 * CLASSES / 4)  # and by nobody else
    assert all(p.grad is None for p in training.model.parameters())
    with pytest.raises(OutOfMemoryError):
        run(int(fits * 1.15) + 1)
    run(int(fits * 0.85))


# -- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(  # 300 bytes: not for a copy of the arguments; 5000: for that, but not for the arena
    ("engine", "room"), [("emulator", 300), ("emulator", 5000), ("cuda", 5000)], indirect=["engine"]
)
def test_a_graph_that_has_no_room_leaves_none_of_its_memory_behind_and_the_step_runs_as_it_is(engine, room):
    fallbacks, results = [], []

    def told(reason):
        fallbacks.append((reason, used(engine)))
        set_memory_limit(1 << 30, engine)  # the step itself is to fit

    for limited in (False, True):
        set_memory_limit(1 << 30, engine)
        training, batches = Training(perceptron), [a_batch() for _ in range(4)]
        step = Compiled(lambda images, labels, t=training: one_step(t, images, labels), told)
        for batch in batches[:2]:
            step(*batch)
        gc.collect()
        before = used(engine)
        if limited:
            set_memory_limit(before + room, engine)
        gc.disable()
        try:
            for batch in batches[2:]:
                step(*batch)
        finally:
            gc.enable()
        results.append(training.result)
    [(reason, left)] = fallbacks
    assert reason.startswith("OutOfMemoryError: ")
    assert left <= before
    np.testing.assert_equal(results[1], results[0])


def a_batch():
    rng = np.random.default_rng(1)
    images = rng.standard_normal((12, *SMALL)).astype(np.float32)
    return gpucnn.tensor(images), gpucnn.tensor(rng.integers(0, CLASSES, 12))


def one_step(training, images, labels):
    training.optimizer.zero_grad()
    loss = F.cross_entropy(training.model(images), labels)
    loss.backward()
    training.optimizer.step()
    return loss


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "1 GB"])
def test_a_limit_that_is_no_number_of_bytes_is_refused(recorder, limit):
    with pytest.raises(ValueError, match=r"limit must be a positive number of bytes, or None, got"):
        set_memory_limit(limit, recorder)


def test_numpy_has_no_limit_of_its_own_and_says_what_limits_the_process():
    with pytest.raises(ValueError, match=r"numpy computes in the memory of the process.*ulimit.*RLIMIT_AS"):
        set_memory_limit(1 << 30, "numpy")


def test_without_a_limit_nothing_is_counted(recorder):
    assert recorder.device.memory_report() == {}
    array = gpucnn.zeros(1000).array
    assert host_arrays._memory(array) is None
    set_memory_limit(1 << 30, recorder)
    others = used(recorder)
    set_memory_limit(others + 5000, recorder)
    kept = gpucnn.zeros(1000)
    assert recorder.device.memory_report() == {"used": others + 4000, "held": others + 4000, "limit": others + 5000}
    with pytest.raises(OutOfMemoryError, match="in the making of a tensor: 1004 bytes did not fit"):
        gpucnn.zeros(251)
    set_memory_limit(None, recorder)
    gpucnn.zeros(2000)
    del kept
    set_memory_limit(5000, recorder)
    assert used(recorder) == others


# -- NumPy, where the process has a limit ----------------------------------------------------------------------------

NUMPY = """
import resource, sys
import numpy as np
import gpucnn
from gpucnn import functional as F, nn, optim

def training():
    gpucnn.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(),
                          nn.Linear(16 * 48 * 40, 3))
    return model, optim.SGD(model.parameters(), 0.01)

def step(model, optimizer, count):
    rng = np.random.default_rng(count)
    optimizer.zero_grad()
    images = gpucnn.tensor(rng.standard_normal((count, 2, 48, 40), np.float32))
    F.cross_entropy(model(images), rng.integers(0, 3, count)).backward()
    optimizer.step()

never, failed = training(), training()
for each in (never, failed):
    step(*each, 8)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (200 << 20), resource.RLIM_INFINITY))
try:
    step(*failed, 1500)
except gpucnn.OutOfMemoryError as error:
    print(error)
    print("fits", error.fits, error.shape, error.bytes)
    step(*failed, 9)
with gpucnn.no_grad():
    try:
        failed[0](gpucnn.tensor(np.zeros((1500, 2, 48, 40), np.float32)))
    except MemoryError as error:
        print(type(error).__name__, error.layer)
step(*never, 9)
for a, b in zip(failed[0].parameters(), never[0].parameters()):
    np.testing.assert_array_equal(a.numpy(), b.numpy())
    np.testing.assert_array_equal(a.grad.numpy(), b.grad.numpy())
print("the same")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to RLIMIT_AS and tells how much is in use")
def test_numpy_in_a_limited_process_names_the_layer_and_goes_on(tmp_path):
    threads = {"GPUCNN_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": "", "GPUCNN_BACKEND": "numpy"}
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NUMPY)], capture_output=True, text=True, timeout=60, check=False,
        env=threads | {"PYTHONPATH": ":".join(sys.path)}, cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    lines = found.stdout.splitlines()
    assert lines[0] == (
        "out of memory in the forward pass, layer 0 (Conv2d): 175.8 MiB, float32 of shape (1500, 48, 40, 16), did not "
        "fit; the input is float32 of shape (1500, 2, 48, 40)"
    )
    limit = r"address space of the process, limited by ulimit -v \(RLIMIT_AS\)"
    assert re.fullmatch(rf"in use: [\d.]+ [MG]iB of [\d.]+ [MG]iB, {limit}", lines[1])
    assert re.fullmatch(r"held by: the layer's input 22.0 MiB; parameters .*; gradients .*", lines[2])
    assert re.fullmatch(r"fits \d+ \(1500, 48, 40, 16\) 184320000", lines[5])
    assert 0 < int(lines[5].split()[1]) < 1500
    assert lines[6:] == ["OutOfMemoryError layer 0 (Conv2d)", "the same"]


# -- the command -----------------------------------------------------------------------------------------------------


class Full:
    """nn.Linear.forward, out of memory from its n-th call on."""

    def __init__(self, monkeypatch, after):
        self.left, forward = after, nn.Linear.forward

        def count(module, input):
            self.left -= 1
            if self.left < 0:
                raise np._core._exceptions._ArrayMemoryError((123, 456), np.dtype(np.float32))
            return forward(module, input)

        monkeypatch.setattr(nn.Linear, "forward", count)


def command(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    return end.value.code, capsys.readouterr().err


def test_the_command_says_it_in_one_message_and_keeps_the_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUCNN_BACKEND", "numpy")
    words = ("x-or-not-x", "--epochs", "2", "--batch-size", "100", "--held-out", "1500", "--no-pictures")
    with monkeypatch.context() as full:
        Full(full, after=25)
        code, said = command(capsys, "train", *words, "--out", "run")
    assert code == 2
    assert "Traceback" not in said
    message = said[said.index("gpucnn: error: ") :].splitlines()
    assert re.fullmatch(
        r"gpucnn: error: out of memory in the forward pass, layer \S+ \(Linear\): 219.1 KiB, float32 of shape \(123, "
        r"456\), did not fit; the input is float32 of shape \(\d+, \d+\)",
        message[0],
    )
    assert all(line.startswith("  ") for line in message[1:])
    assert re.fullmatch(
        r"  it was in epoch \d+, batch \d+ of \d+, with batches of 100 images\. The state after .* is in run/"
        r"checkpoint.safetensors",
        message[-1],
    )
    code, said = command(capsys, "train", "x-or-not-x", "--out", "run", "--resume", "--no-pictures")
    assert code == 0, said
    load_model(tmp_path / "run" / "model.safetensors")
    with monkeypatch.context() as full:
        Full(full, after=0)
        code, said = command(capsys, "evaluate", "run")
    assert code == 2
    assert said.startswith("gpucnn: error: out of memory in the forward pass, layer ")
    assert "Traceback" not in said
