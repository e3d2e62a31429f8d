"""compile: a captured step gives the bits of the step itself, or says why it is not captured."""

import warnings
from contextlib import nullcontext

import fake_cupy
import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.cuda import CudaDevice
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.graph import MOST_GRAPHS, Compiled
from gpucnn.testing import normal

CLASSES = 5


@pytest.fixture
def engine():
    with gpucnn.use_backend(KernelBackend(EmulatorDevice(watch=False))) as engine:
        yield engine


def small_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2)), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(4 * 3 * 2, CLASSES), nn.Dropout(0.2),
    )  # fmt: skip


def batch(number, count=6, shape=(2, 8, 6)):
    rng = np.random.default_rng([number, count])
    images = gpucnn.tensor(rng.standard_normal((count, *shape)).astype(np.float32))
    return images, gpucnn.tensor(rng.integers(0, CLASSES, count))


def sgd(parameters):
    return optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)


OPTIMIZERS = {
    "sgd": sgd,
    "plain sgd": lambda parameters: optim.SGD(parameters, 0.1),
    "adam": lambda parameters: optim.Adam(parameters, 0.01),
    "adamw": lambda parameters: optim.AdamW(parameters, 0.01),
    "rmsprop": lambda parameters: optim.RMSprop(parameters, 0.01, momentum=0.5),
    "groups of sgd": lambda parameters: optim.SGD(
        [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.02, "momentum": 0, "weight_decay": 0}],
        0.1, momentum=0.9, weight_decay=1e-3,
    ),
    "groups of adam": lambda parameters: optim.Adam(
        [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.002, "betas": (0.6, 0.8)}], 0.01
    ),
}  # fmt: skip


class Training:
    """A model, its optimizer with a schedule, and a step; `trained` are the losses and all that was learned."""

    def __init__(self, make=small_net, optimizer=sgd, compiled=True):
        gpucnn.manual_seed(3)
        self.model = make()
        self.optimizer = optimizer(list(self.model.parameters()))
        self.schedule = optim.CosineAnnealingLR(self.optimizer, 20)
        self.step = gpucnn.compile(self.plain_step) if compiled else self.plain_step
        self.losses = []

    def plain_step(self, images, labels):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def run(self, steps, poison=False, **options):
        for number in steps:
            for plan in self.step._plans.values() if poison else []:
                if plan.graph is not None:
                    np.asarray(plan.graph.memory).fill(255)  # NaN, as a float32
            self.losses.append(self.step(*batch(number, **options)).item())
            self.schedule.step()
        return self

    @property
    def result(self):
        learned = {name: np.array(value.numpy()) for name, value in self.model.state_dict().items()}
        gradients = [np.array(p.grad.numpy()) for p in self.model.parameters()]
        return self.losses, learned, gradients, self.optimizer.state_dict(), gpucnn.random.default_generator.offset


def same(a, b):
    np.testing.assert_equal(a.result, b.result)


# -- the same bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twenty_steps_of_a_graph_give_the_bits_of_twenty_steps(engine, optimizer):
    plain, compiled = (Training(optimizer=OPTIMIZERS[optimizer], compiled=c).run(range(20)) for c in (False, True))
    assert compiled.step.reason is None
    assert len(compiled.step.report()) == 1
    same(plain, compiled)


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(16 * 2 * 3, 20), nn.Tanh(), nn.Dropout(0.4), nn.Linear(20, CLASSES),
    )  # fmt: skip


def test_lenet_with_dropout_and_adam_gives_the_same_bits(engine):
    plain, compiled = (
        Training(lenet, OPTIMIZERS["adam"], c).run(range(20), count=3, shape=(1, 16, 20)) for c in (False, True)
    )
    assert len(compiled.step.report()) == 1
    same(plain, compiled)


def test_what_lies_in_the_arena_between_two_launches_does_not_matter(engine):
    same(Training().run(range(8)), Training().run(range(8), poison=True))


def test_cuda_gives_the_same_bits_through_a_stand_in_for_cupy_that_refuses_what_cupy_does(engine, monkeypatch):
    fake_cupy.install(monkeypatch)
    plain = Training(optimizer=OPTIMIZERS["adamw"], compiled=False).run(range(6))
    with gpucnn.use_backend(KernelBackend(CudaDevice())):
        on_cuda = Training(optimizer=OPTIMIZERS["adamw"]).run(range(6))
        assert (on_cuda.step.reason, len(on_cuda.step.report())) == (None, 1)
        same(plain, on_cuda)


def test_batches_of_two_shapes_get_a_graph_each_and_share_what_is_learned(engine):
    plain, compiled = (Training(compiled=c) for c in (False, True))
    for training in (plain, compiled):
        gpucnn.manual_seed(9)
        for number in range(8):
            training.run([number])
            training.run([number], count=3)
    assert len(compiled.step.report()) == 2
    same(plain, compiled)


def test_labels_that_do_not_count_are_not_counted_in_a_graph_either(engine):
    def losses(step):
        found = []
        for ignored in range(5):
            labels = np.array([0, 1, 2, 3, 4, 0, 1])
            labels[:ignored] = -100
            found.append(step(gpucnn.tensor(normal(7, CLASSES).make("float32")), gpucnn.tensor(labels)).item())
        return found

    def step(logits, labels):
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    compiled = gpucnn.compile(step)
    assert losses(step) == losses(compiled)
    assert compiled.reason is None


def test_a_label_that_is_no_class_makes_the_loss_of_a_graph_nan_and_touches_nothing_else(engine):
    @gpucnn.compile
    def step(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none")

    logits = gpucnn.tensor(normal(3, CLASSES).make("float32"))
    good, bad = gpucnn.tensor(np.array([0, 4, 1])), gpucnn.tensor(np.array([0, CLASSES, -1]))
    expected = [step(logits, good).tolist() for _ in range(3)][-1]
    with pytest.raises(ValueError, match=r"label 5 at .* is not a class"):
        F.cross_entropy(logits, bad)
    first, *others = step(logits, bad).tolist()
    assert first == expected[0]
    assert np.isnan(others).all()


def test_labels_that_are_all_ignored_leave_gradients_of_0_in_a_graph_too(engine):
    logits = gpucnn.tensor(normal(3, CLASSES).make("float32"), requires_grad=True)

    @gpucnn.compile
    def step(labels):
        logits.grad = None
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        return loss

    labels = gpucnn.tensor(np.array([0, 4, 1]))
    losses = [step(labels).item() for _ in range(3)]
    assert step.reason is None
    assert np.isfinite(losses).all()
    assert logits.grad.numpy().any()
    assert np.isnan(step(gpucnn.tensor(np.full(3, -100))).item())
    assert not logits.grad.numpy().any()


def test_a_graph_for_prediction_without_a_tape(engine):
    model = small_net().eval()

    @gpucnn.compile
    @gpucnn.no_grad()
    def predict(images):
        return model(images)

    for number in range(5):
        images, _ = batch(number)
        with gpucnn.no_grad():
            expected = model(images).numpy()
        np.testing.assert_array_equal(predict(images).numpy(), expected)
    assert len(predict.report()) == 1


# -- what a call returns and leaves ------------------------------------------------------------------


def test_the_result_has_no_history_before_and_after_the_capture_and_changes_with_the_next_call(engine):
    w = gpucnn.ones(3, requires_grad=True)
    scale = gpucnn.compile(lambda x: (x * w, [x + 1], None))
    results = []
    for number in range(5):
        product, [_], nothing = scale(gpucnn.full((3,), float(number)))
        assert not product.requires_grad
        assert nothing is None
        results.append(product)
    assert [result.tolist()[0] for result in results] == [0, 1, 4, 4, 4]  # the last three share the graph's memory


def test_gradients_are_there_after_each_call_though_zero_grad_is_called_outside(engine):
    w = gpucnn.ones(3, requires_grad=True)

    @gpucnn.compile
    def step(x):
        (x * w).sum().backward()

    for number in range(5):
        w.grad = None
        step(gpucnn.full((3,), float(number)))
        assert w.grad.tolist() == [number] * 3


def test_the_report_tells_memory_and_launches(engine):
    training = Training().run(range(3))
    [report] = training.step.report()
    recorder = RecorderDevice()
    with gpucnn.use_backend(KernelBackend(recorder)), np.errstate(all="ignore"):
        recorded = Training(compiled=False).run(range(2))
        recorder.launches.clear()
        images, labels = batch(2)
        before = len(recorder.launches)
        recorded.plain_step(images, labels)
    assert report.launches == len(recorder.launches) - before
    weights = sum(p.numel() * 4 for p in training.model.parameters())
    assert weights < report.peak <= report.bytes < 20 * report.peak


def test_a_resumed_training_gives_the_bits_of_one_without_a_pause(engine):
    whole = Training(optimizer=OPTIMIZERS["adam"]).run(range(10))
    first = Training(optimizer=OPTIMIZERS["adam"]).run(range(5))
    kept = [first.model.state_dict(), first.optimizer.state_dict(), first.schedule.state_dict()]
    kept[0] = {name: np.array(value.numpy()) for name, value in kept[0].items()}
    random = gpucnn.random.default_generator.state()
    second = Training(optimizer=OPTIMIZERS["adam"])
    for part, state in zip((second.model, second.optimizer, second.schedule), kept, strict=True):
        part.load_state_dict(state)
    gpucnn.random.default_generator.set_state(random)
    second.losses = first.losses
    same(whole, second.run(range(5, 10)))


def test_a_state_loaded_into_a_captured_training_is_used_and_captured_anew(engine):
    plain, compiled = (Training(optimizer=OPTIMIZERS["adam"], compiled=c) for c in (False, True))
    for training in (plain, compiled):
        gpucnn.manual_seed(9)
        training.run(range(4))
        kept = training.optimizer.state_dict()
        training.run(range(4, 6))
        training.optimizer.load_state_dict(kept)
        training.run(range(6, 12))
    assert len(compiled.step.report()) == 1
    same(plain, compiled)


def test_momentum_that_is_switched_on_later_is_captured_anew(engine):
    plain, compiled = (Training(optimizer=OPTIMIZERS["plain sgd"], compiled=c) for c in (False, True))
    for training in (plain, compiled):
        gpucnn.manual_seed(9)
        training.run(range(4))
        training.optimizer.momentum = 0.5
        training.run(range(4, 9))
    same(plain, compiled)


@pytest.mark.parametrize("optimizer", ["groups of sgd", "groups of adam"])
def test_settings_of_one_group_are_those_of_each_call(engine, optimizer):
    plain, compiled = (Training(optimizer=OPTIMIZERS[optimizer], compiled=c) for c in (False, True))
    for training in (plain, compiled):
        gpucnn.manual_seed(9)
        training.run(range(5))
        [graph] = [plan.graph for plan in training.step._plans.values()] if training is compiled else [None]
        training.optimizer.param_groups[1]["weight_decay"] = 0.25
        training.schedule.base_lrs[1] = 0.5
        training.run(range(5, 9))
        assert graph is None or [plan.graph for plan in training.step._plans.values()] == [graph]
    same(plain, compiled)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_group_that_is_added_and_a_momentum_of_one_that_is_switched_on_are_captured_anew(engine, kind):
    def first_layers(parameters):
        return kind([{"params": parameters[:2]}, {"params": parameters[2:4], "lr": 0.02}], 0.1)

    plain, compiled = (Training(optimizer=first_layers, compiled=c) for c in (False, True))
    for training in (plain, compiled):
        gpucnn.manual_seed(9)
        last = training.model[6].requires_grad_(False)
        training.run(range(5))
        training.optimizer.add_param_group({"params": last.requires_grad_().parameters(), "lr": 0.05})
        training.run(range(5, 10))
        if kind is optim.SGD:
            training.optimizer.param_groups[1]["momentum"] = 0.5
        training.run(range(10, 15))
    assert (compiled.step.reason, len(compiled.step.report())) == (None, 1)
    same(plain, compiled)


# -- what is not captured ----------------------------------------------------------------------------


def reads_a_value(x):
    return x * x.sum().item()


def prints(x):
    assert f"{x}".startswith("tensor(")
    return x


def asks(x):
    return x * 2 if x.sum() > 0 else x


def returns_a_number(x):
    return x.shape[0]


def draws_on_the_host(x):
    return x + gpucnn.rand(3)


def indexes(x):
    return x[np.array([2, 0, 0])]


def fails_of_itself_in_the_capture(x):
    if x.backend.capturing:
        raise KeyError("something else")
    return x


REASONS = {
    reads_a_value: r"reads values on the host \(item\(\), float\(\)",
    asks: "reads values on the host",
    prints: "reads values on the host",
    returns_a_number: "returns int, which would be the same in every call; return tensors",
    draws_on_the_host: "draws random numbers on the host, which would be the same in every call",
    indexes: "hands values on the host to the device",
    fails_of_itself_in_the_capture: "KeyError: 'something else'",
}


@pytest.mark.parametrize("step", REASONS)
def test_a_step_that_can_not_be_captured_says_why_once_and_computes_all_the_same(engine, step):
    compiled = gpucnn.compile(step)
    with pytest.warns(
        UserWarning, match=f"^{step.__name__} is not captured in a graph, it runs as it is: .*{REASONS[step]}"
    ):
        results = [(compiled(gpucnn.full((3,), i + 1.0)), step(gpucnn.full((3,), i + 1.0))) for i in range(3)]
    results += [(compiled(gpucnn.full((3,), i + 1.0)), step(gpucnn.full((3,), i + 1.0))) for i in range(3, 5)]
    if step is not draws_on_the_host:
        for ours, expected in results:
            np.testing.assert_equal(np.asarray(ours), np.asarray(expected))
    assert compiled.report() == []


REPLACED = {
    "moved there and back": lambda layer: layer.to("float64").to("float32"),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach().clone())),
    "other data": lambda layer: setattr(layer.weight, "data", layer.weight.detach().clone()),
    "another buffer": lambda layer: setattr(layer, "shift", nn.Buffer(layer.shift.clone())),
}


@pytest.mark.parametrize("change", [lambda m: m.__setitem__(1, nn.Tanh()), lambda m: m.__delitem__(1)])
def test_a_step_is_captured_anew_after_a_module_was_replaced_or_deleted(engine, change):
    model = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid())
    compiled = gpucnn.compile(lambda x: model(x))
    with gpucnn.no_grad():
        for number in range(8):
            if number == 4:
                change(model)
            x = gpucnn.full((1, 3), number + 1.0)
            assert compiled(x).tolist() == model(x).tolist()
    assert compiled.reason is None


@pytest.mark.parametrize("how", REPLACED)
def test_a_step_without_an_optimizer_is_captured_anew_after_an_array_was_replaced(engine, how):
    layer = nn.Linear(3, 2)
    layer.shift = nn.Buffer(gpucnn.zeros(2))
    compiled = gpucnn.compile(lambda x: layer(x) + layer.shift)
    with gpucnn.no_grad():
        for number in range(8):
            if number == 4:
                REPLACED[how](layer)
                layer.weight.copy_(layer.weight * 2)
                layer.shift.copy_(gpucnn.ones(2))
            x = gpucnn.full((1, 3), number + 1.0)
            assert compiled(x).tolist() == (layer(x) + layer.shift).tolist()
    assert compiled.reason is None
    assert len(compiled.report()) == 1


def test_gradients_that_add_up_after_the_capture_are_noticed_and_kept(engine):
    layer = nn.Linear(3, 2)

    def step(x):
        loss = layer(x).sum()
        loss.backward()
        return loss

    compiled = gpucnn.compile(step)
    for number in range(6):  # the third, which is captured, finds no gradients
        if number % 2 == 0:
            layer.zero_grad()
        with pytest.warns(UserWarning, match="adds to gradients of an earlier call") if number == 3 else nullcontext():
            compiled(gpucnn.full((1, 3), number + 1.0))
        assert layer.weight.grad.tolist() == [[number + 1.0 + (number if number % 2 else 0)] * 3] * 2


def test_what_the_step_itself_makes_and_leaves_that_are_cleared_between_calls_stay_in_the_graph(engine):
    layer = nn.Linear(3, 2)

    def step(x):
        inner = x.detach().requires_grad_()
        y = layer(inner)
        y.retain_grad()
        y.sum().backward()
        return inner.grad

    compiled = gpucnn.compile(step)
    for number in range(6):
        layer.zero_grad()
        ours = compiled(gpucnn.full((1, 3), number + 1.0)).tolist()
        np.testing.assert_allclose(ours, [layer.weight.numpy().sum(axis=0)], rtol=1e-6)
    assert compiled.reason is None


def test_many_small_tensors_are_joined_in_a_graph(engine):
    compiled = gpucnn.compile(lambda x: F.cat([x * i for i in range(12)]))
    for number in range(5):
        y = compiled(gpucnn.full((2,), number + 1.0))
        assert y.tolist() == [float(i * (number + 1)) for i in range(12) for _ in range(2)]
    assert compiled.reason is None


def test_a_graph_draws_from_the_generator_of_each_call(engine):
    drop = nn.Dropout(0.5)
    compiled, ones = gpucnn.compile(lambda x: drop(x)), gpucnn.ones(8, 8)
    masks = []
    for _ in range(5):
        with gpucnn.use_generator(gpucnn.Generator(3)):
            masks.append(compiled(ones).tolist())
    assert compiled.reason is None
    assert all(mask == masks[0] for mask in masks)


def quiet_compile(step):
    reasons = []
    return Compiled(step, reasons.append), reasons


def test_a_capture_that_fails_changes_neither_weights_nor_steps_nor_dropout_masks(engine):
    plain, failing = (Training(optimizer=OPTIMIZERS["adam"], compiled=False) for _ in range(2))
    inner = failing.plain_step

    def reads_at_the_end(images, labels):
        loss = inner(images, labels)
        loss.item()
        return loss

    failing.step, reasons = quiet_compile(reads_at_the_end)
    for training in (plain, failing):
        gpucnn.manual_seed(4)
        training.run(range(6))
    assert len(reasons) == 1
    same(plain, failing)


def test_an_error_of_the_step_is_the_steps_own_and_the_device_goes_on(engine):
    training = Training().run(range(4))
    for _ in range(4):
        with pytest.raises(ValueError, match=r"conv2d.*2 channels|channels"):
            training.step(*batch(0, shape=(3, 8, 6)))
    with pytest.raises(TypeError, match="argument 1 of the step must be a Tensor, got ndarray"):
        training.step(batch(0)[0], np.zeros(6, np.int64))
    same(training.run(range(4, 6)), Training().run(range(6)))


def test_gradients_that_add_up_over_calls_are_not_captured(engine):
    w = gpucnn.ones(3, requires_grad=True)

    def step(x):
        (x * w).sum().backward()

    compiled, reasons = quiet_compile(step)
    for _ in range(5):
        compiled(gpucnn.ones(3))
    assert w.grad.tolist() == [5.0] * 3
    assert reasons == ["backward() adds to gradients of an earlier call; call zero_grad() in the step"]


def test_a_capture_that_fails_after_backward_leaves_no_gradient_behind(engine):
    w = gpucnn.ones(3, requires_grad=True)

    def step(x):
        y = (x * w).sum()
        y.backward()
        return y * y.item()

    compiled, reasons = quiet_compile(step)
    for number in range(1, 5):
        w.grad = None
        assert compiled(gpucnn.full((3,), float(number))).item() == (3 * number) ** 2
        assert w.grad.tolist() == [number] * 3
    assert len(reasons) == 1


def test_a_schedule_inside_the_step_is_refused(engine):
    training = Training(compiled=False)

    def step(images, labels):
        training.plain_step(images, labels)
        training.schedule.step()

    compiled, reasons = quiet_compile(step)
    for number in range(4):
        compiled(*batch(number))
    assert reasons == ["scheduler.step() is called inside the step; call it after the step"]
    assert training.schedule.last_epoch == 4


def test_an_optimizer_that_makes_its_first_step_in_the_capture_is_refused_and_starts_from_zeros(engine):
    w, expected = (gpucnn.ones(3, requires_grad=True) for _ in range(2))
    late, plain = optim.Adam([w], 0.1), optim.Adam([expected], 0.1)
    expected.grad = gpucnn.zeros(3)
    optim.SGD([expected]).step()  # the tables of such an update are there
    calls = []

    def step(x):
        w.grad = None
        (x * w).sum().backward()
        if len(calls) >= 2:
            late.step()
        else:
            _ = [x + i for i in range(9)]  # memory enough for the moments

    compiled, reasons = quiet_compile(step)
    for _ in range(4):
        compiled(gpucnn.ones(3))
        calls.append(1)
    for _ in range(2):
        expected.grad = gpucnn.ones(3)
        plain.step()
    assert "has yet to make its first step" in reasons[0]
    assert w.tolist() == expected.tolist()


def test_shapes_that_keep_changing_are_given_up(engine):
    compiled, reasons = quiet_compile(lambda x: x + 1)
    for count in range(1, MOST_GRAPHS + 3):
        assert compiled(gpucnn.ones(count)).tolist() == [2.0] * count
    assert reasons == [f"its arguments have more than {MOST_GRAPHS} sets of shapes"]


ARGUMENTS = {
    "it has no arguments": lambda: (),
    "the backend 'numpy' has no graphs": lambda: (gpucnn.ones(2, backend="numpy"),),
    "its arguments are on several backends": lambda: (gpucnn.ones(2), gpucnn.ones(2, backend="numpy")),
    "an argument requires a gradient": lambda: (gpucnn.ones(2, requires_grad=True),),
}


@pytest.mark.parametrize("reason", ARGUMENTS)
def test_arguments_that_no_graph_can_take_are_told(engine, reason):
    compiled, reasons = quiet_compile(lambda *given: len(given))
    assert compiled(*ARGUMENTS[reason]()) == len(ARGUMENTS[reason]())
    assert reason in reasons[0]
    assert compiled.reason == reasons[0]


def test_autocast_belongs_inside(engine):
    compiled, reasons = quiet_compile(lambda x: x)
    with gpucnn.autocast("float16"):
        compiled(gpucnn.ones(2))
    assert reasons == ["autocast is around the step; put it inside"]


def test_a_compiled_step_within_another_is_part_of_it(engine):
    inner = gpucnn.compile(lambda x: x * 2)
    outer = gpucnn.compile(lambda x: inner(x) + 1)
    for number in range(6):
        assert outer(gpucnn.full((2,), float(number))).tolist() == [2 * number + 1] * 2
    assert (len(outer.report()), outer.reason, inner.reason) == (1, None, None)


# -- networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "shape"), [
    (nn.models.LeNet5, (1, 28, 28)), (nn.models.resnet20, (3, 32, 32)), (nn.models.resnet18, (3, 40, 33)),
])  # fmt: skip
def test_a_step_of_the_models_can_be_captured(make, shape):
    """On the recorder, which refuses as the others do."""
    with (
        gpucnn.use_backend(KernelBackend(RecorderDevice((9, 0)))),
        np.errstate(all="ignore"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # what the recorder returns is any number
        training = Training(make, OPTIMIZERS["adamw"])
        images = gpucnn.zeros(2, *shape)
        for _ in range(4):
            training.step(images, gpucnn.tensor(np.zeros(2, np.int64)))
    assert training.step.reason is None
    [report] = training.step.report()
    assert report.bytes < 1.2 * report.peak
