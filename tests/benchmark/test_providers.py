"""Every provider that is installed computes what the reference does; each says what it lacks."""

import os
import sys
import time
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest

from gpucnn import backends, manual_seed, nn, precision
from gpucnn.backends.numpy_parallel import workers
from gpucnn.benchmark import providers, suites
from gpucnn.benchmark.providers import Gpucnn, Unsupported, make
from gpucnn.benchmark.reference import pose

OPS = [op for op in suites.OPS if "stage" not in op.name and ".224" not in op.name]
PEERS = ["torch-cpu", "torch-cpu-channels-last", "jax", "tinygrad"]


def peer(name):
    package = name.partition("-")[0]
    pytest.importorskip(package, reason=f"{package} is not installed: nothing of it to check")
    try:
        return make(name, "fp32", 2)
    except RuntimeError as error:
        pytest.skip(str(error))


def verdicts(provider, task, problem=None):
    problem = problem or pose(task, "fp32")
    work = provider.work(problem, task.part, "fp32")
    return problem.judge(task.part, work.results(work.run()))


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_ops_are_right_in_every_pass(name):
    provider = peer(name)
    for op in OPS[:3] if name == "tinygrad" else OPS:
        problem = None
        for task in suites.tasks("ops", (1,), op.name):
            problem = problem or pose(task, "fp32")
            assert verdicts(provider, task, problem).right, f"{name}: {task}"


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(
    ("network", "part"), [("lenet5", "training"), ("lenet5", "inference"), ("resnet20", "training")]
)
def test_a_peers_networks_are_twins_of_ours(name, network, part):
    if (name, network) == ("tinygrad", "resnet20"):
        part = "inference"  # it takes a minute to compile a step of training
    task = next(t for t in suites.tasks("networks", (4,), network) if t.part == part)
    assert verdicts(peer(name), task).right


def test_the_twins_of_both_kinds_of_blocks_compute_what_ours_do(torch):
    import gpucnn
    from gpucnn.nn.models import ResNet

    for block in ("basic", "bottleneck"):
        gpucnn.manual_seed(3)
        with gpucnn.use_backend("numpy"):
            ours = ResNet(block, (1, 2), (4, 6), num_classes=5).eval()
            x = np.random.default_rng(0).standard_normal((2, 3, 37, 33)).astype(np.float32)
            expected = ours(gpucnn.tensor(x)).numpy()
        got = providers.torch_twin(ours).eval()(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


def test_bf16_is_right_by_its_own_bounds_and_wrong_by_those_of_fp32(torch):
    task = suites.tasks("ops", (1,), "linear.lenet5", ("forward",))[0]
    provider = make("torch-cpu", "bf16", 2)
    problem = pose(task, "bf16")
    work = provider.work(problem, "forward", "bf16")
    result = work.results(work.run())
    assert problem.judge("forward", result).right
    assert not pose(task, "fp32").judge("forward", result).right


def test_strict_fp32_is_asked_of_torch_and_tf32_only_by_name(torch):
    try:
        make("torch-cpu", "tf32", 2)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
    finally:
        make("torch-cpu", "fp32", 2)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("part", ["inference", "training"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_our_networks_are_right_in_half_types_and_not_by_the_yardstick_of_fp32(part, precision):
    [one] = [t for t in suites.tasks("networks", (2,), "lenet5") if t.part == part]
    problem = pose(one, precision)
    work = make("numpy", precision, 2).work(problem, part, precision)
    results = work.results(work.run())
    assert problem.judge(part, results).right
    assert not pose(one, "fp32").judge(part, results).right


@pytest.mark.parametrize("asked", ["fp32", "tf32"])
def test_every_pass_of_ours_multiplies_in_the_precision_that_is_asked_for(asked, monkeypatch):
    provider, seen = make("numpy", asked, 2), []
    provider.precisions = (asked,)  # NumPy does not compute in TF32, but is asked to
    for name in ("matmul", "conv2d_forward", "conv2d_backward_weight"):
        method = getattr(provider.backend, name)
        monkeypatch.setattr(
            provider.backend, name, lambda *a, m=method, **k: seen.append(backends.get_precision()) or m(*a, **k)
        )
    tasks = [*suites.tasks("ops", (1,), "conv2d.lenet5.stem"), *suites.tasks("networks", (1,), "lenet5")]
    for one in tasks:
        problem = pose(one, "fp32")
        seen.clear()
        with precision("bf16"):  # whatever a user has set
            provider.work(problem, one.part, asked).run()
        assert one.part == "input-gradient" or set(seen) == {asked}


def test_what_a_provider_lacks_is_said():
    task = suites.tasks("ops", (1,), "relu", ("forward",))[0]
    with pytest.raises(Unsupported, match="numpy has no tf32"):
        Gpucnn("numpy").work(pose(task, "fp32"), "forward", "tf32")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(providers, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="jax is not installed"):
        make("jax", "fp32", 2)


def test_torch_without_a_gpu_says_so(torch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="PyTorch finds no GPU it can use"):
        make("torch-cuda", "fp32", 2)


def test_a_single_op_is_not_given_to_torch_compile(torch):
    provider = providers.Torch("cpu", "fp32", 2, "compile")
    task = suites.tasks("ops", (1,), "relu", ("forward",))[0]
    with pytest.raises(Unsupported, match=r"torch\.compile is for networks"):
        provider.work(pose(task, "fp32"), "forward", "fp32")


def test_threads_are_limited_for_every_library(monkeypatch):
    for variable in ("OMP_NUM_THREADS", "NPROC", "CPU_COUNT"):
        monkeypatch.setenv(variable, "77")
    providers.limit_threads(workers.threads)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["NPROC"] == str(workers.threads)


def test_other_threads_than_those_that_already_run_are_refused():
    n = workers.threads
    with pytest.raises(RuntimeError, match=rf"already runs with {n} threads; for {n + 1}, start Python with GPUCNN"):
        providers.limit_threads(n + 1)


def test_the_peak_of_this_process_is_at_least_what_it_holds():
    before = providers.process_peak()
    block = np.ones(before // 4 + 50_000_000, np.uint8)
    assert providers.process_peak() >= block.nbytes
    assert providers.process_peak() >= before


def test_on_a_cpu_a_run_is_timed_to_its_end():
    provider = Gpucnn("numpy")
    assert 0.01 <= provider.cold_seconds(lambda: time.sleep(0.01), 0.0) < 1
    assert provider.peak_memory() > 1e7


# -- a GPU that is none ------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """CuPy's stand-in, whose GPU is the emulator; with an L2 cache of 1 KiB."""
    fake = fake_cupy.install(monkeypatch)
    fake.cuda.runtime.getDevice = lambda: 0
    fake.cuda.runtime.getDeviceProperties = lambda device: {"l2CacheSize": 1024}
    monkeypatch.setattr(backends, "_made", {})
    monkeypatch.setattr(backends, "_auto", [])
    return fake


def test_the_cuda_provider_computes_and_is_timed_by_events(gpu):
    provider = make("cuda", "fp32", 2)
    assert (provider.name, provider.device) == ("cuda", "gpu")
    for task in suites.tasks("ops", (1,), "max_pool2d.lenet5"):
        problem = pose(task, "fp32")
        work = provider.work(problem, task.part, "fp32")
        assert problem.judge(task.part, work.results(work.run())).right
        assert provider.cold_seconds(work.run, 0.0) == pytest.approx(0.003)
    assert {name for name, *_ in gpu.launches} >= {"max_pool2d_forward", "max_pool2d_backward"}
    assert provider.peak_memory() == 30  # what the pool holds


@pytest.mark.parametrize("training", [True, False])
def test_with_graphs_the_cuda_provider_computes_the_same(gpu, training):
    def module():
        manual_seed(0)
        with backends.use_backend("numpy"):
            return nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))

    images = np.random.default_rng(1).standard_normal((4, 1, 5, 4)).astype(np.float32)
    problem = SimpleNamespace(training=training, module=module, images=images, labels=np.array([0, 2, 1, 1]))
    found = []
    for name in ("cuda", "cuda-graph"):
        provider = make(name, "fp32", 2)
        assert (provider.name, provider.device) == (name, "gpu")
        work = provider.network(problem)
        found.append([work.results(work.run()) for _ in range(4)])
    np.testing.assert_equal(*found)
    op = next(iter(suites.tasks("ops", (1,), "max_pool2d.lenet5")))
    with pytest.raises(Unsupported, match="graphs are for networks"):
        provider.work(pose(op, "fp32"), op.part, "fp32")


def test_the_cache_is_overwritten_before_and_for_as_long_as_the_host_enqueues(monkeypatch):
    events = []
    monkeypatch.setattr(providers, "_seconds_of", lambda flush, synchronize: 0.01)
    clock = providers.ColdClock(
        lambda: lambda: events.append("flush"), fake_cupy.Event, lambda start, end: end.at - start.at, lambda: None
    )
    assert clock.cold_seconds(lambda: events.append("run"), 0.04) == pytest.approx(0.003)
    assert events == ["flush"] * 7 + ["run"]  # 1.5 · 0.04 / 0.01, and one


def test_what_overwrites_the_cache_is_made_when_it_is_needed_and_is_twice_its_size(gpu, monkeypatch):
    made = []
    monkeypatch.setattr(type(gpu), "empty", lambda self, size, dtype: made.append(size) or np.empty(8), raising=False)
    gpu.cuda.runtime.getDeviceProperties = lambda device: {"l2CacheSize": 50 << 20}
    clock = providers.cupy_clock(gpu)
    assert made == []
    clock.cold_seconds(lambda: None, 0.0)
    clock.cold_seconds(lambda: None, 0.0)
    assert made == [100 << 20]


def test_torchs_events_are_asked_for_times(monkeypatch):
    zeroed = []

    class Event(fake_cupy.Event):
        def __init__(self, enable_timing):
            assert enable_timing

        def elapsed_time(self, end):
            return end.at - self.at

    torch = SimpleNamespace(
        uint8="uint8",
        empty=lambda size, dtype, device: SimpleNamespace(zero_=lambda: zeroed.append((size, dtype, device))),
        cuda=SimpleNamespace(
            Event=Event,
            synchronize=lambda: None,
            get_device_properties=lambda device: SimpleNamespace(L2_cache_size=1 << 20),
        ),
    )
    assert providers.torch_clock(torch).cold_seconds(lambda: None, 0.0) == pytest.approx(0.003)
    assert set(zeroed) == {(1 << 26, "uint8", "cuda")}


def test_cupys_own_ops_are_right_and_what_it_lacks_is_said(gpu, monkeypatch):
    gpu.__version__ = "14"
    provider = make("cupy", "fp32", 2)
    for name in ("relu", "linear.lenet5", "mobilenetv2.expand"):
        assert verdicts(provider, suites.tasks("ops", (1,), name, ("forward",))[0]).right
    with pytest.raises(Unsupported, match="CuPy has no conv2d like this"):
        verdicts(provider, suites.tasks("ops", (1,), "mobilenetv2.depthwise", ("forward",))[0])
    with pytest.raises(Unsupported, match="CuPy has no gradients"):
        verdicts(provider, suites.tasks("ops", (1,), "relu", ("input-gradient",))[0])
    with pytest.raises(Unsupported, match="CuPy has no networks"):
        provider.network(SimpleNamespace())
    provider.synchronize()
    assert provider.cold_seconds(lambda: None, 0.0) == pytest.approx(0.003)


def test_tinygrad_without_a_device_says_what_it_needs(monkeypatch):
    class Device:
        @property
        def DEFAULT(self):
            raise RuntimeError("no usable devices")

    monkeypatch.setitem(sys.modules, "tinygrad", SimpleNamespace(Device=Device()))
    from gpucnn.benchmark import peers

    with pytest.raises(RuntimeError, match=r"tinygrad finds nothing to compute on .*; on a CPU it needs clang"):
        peers.Tinygrad("fp32")
