"""Training: the loop's arithmetic, its callbacks, and stopping and going on at any moment."""

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from io import StringIO
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from numerics import unit_roundoff
from safetensors import safe_open
from safetensors.numpy import load_file, save

import gpucnn
import gpucnn.graph
from gpucnn import data, nn, optim
from gpucnn import functional as F
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.checkpoint import load_model
from gpucnn.data import Dataset, Loader
from gpucnn.devices.cuda import CudaDevice
from gpucnn.nn import models
from gpucnn.random import default_generator
from gpucnn.train import (
    BestModel,
    Callback,
    CSVLogger,
    EarlyStopping,
    History,
    PlateauSchedule,
    ProgressBar,
    TensorBoardLogger,
    TrainingInterrupted,
    evaluate,
    fit,
    predict,
)


@pytest.fixture(autouse=True)
def _on_backend(backend):
    with gpucnn.use_backend(backend):
        gpucnn.manual_seed(3)
        yield


def some_data(count=23, classes=3, seed=0):
    """Small random images, 6×5 two channels; the label can be learned: the brightest of the first pixels."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 6, 5, 2)).astype(np.uint8)
    return Dataset(images, images[:, 0, :classes, 0].argmax(1), tuple(f"class {c}" for c in range(classes)), "noise")


def small_net(outputs=3):
    return nn.Sequential(nn.Conv2d(2, 4, (3, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, outputs))


def lively_net():
    """A net with all that must survive a pause: running statistics and dropout."""
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2)), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)
    )


def state_of(module):
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def assert_same_state(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.tobytes() == other[name].tobytes(), name


def dense(model, dataset):
    """(logits, labels) of a data set in one go, float64."""
    images = gpucnn.tensor(np.ascontiguousarray(data.to_float(dataset.images)))
    with gpucnn.no_grad():
        return model.eval()(images).numpy().astype(np.float64), dataset.labels


def log_losses(logits, labels):
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]


class Note(Callback):
    """Calls a function after each batch."""

    def __init__(self, function):
        self.function = function

    def on_batch_end(self, state):
        self.function(state)


class Script(Callback):
    """Pretends that the held-out loss of each epoch was the next of these."""

    def __init__(self, values):
        self.values = values

    def on_epoch_end(self, state):
        state.history.rows[-1]["held_out_loss"] = self.values[state.epoch - 1]


# -- the loop's arithmetic -------------------------------------------------------------------------


def test_the_first_loss_of_zero_logits_is_the_log_of_the_classes():
    model = small_net(outputs=10)
    model[3].weight.detach().copy_(np.zeros((10, 64)))
    model[3].bias.detach().copy_(np.zeros(10))
    losses = []
    train = Loader(some_data(12, classes=5), 4)
    train.dataset = Dataset(train.dataset.images, train.dataset.labels, tuple("0123456789"))
    fit(
        model,
        train,
        epochs=1,
        optimizer=optim.SGD(model.parameters()),
        callbacks=[Note(lambda s: losses.append(s.loss))],
    )
    assert losses[0] == pytest.approx(2.302585092994046, rel=4 * unit_roundoff(np.float32))


def test_a_small_net_learns_to_read_digits_in_seconds():
    pytest.importorskip("sklearn", reason="scikit-learn, which holds the digits, is not installed")
    train, held_out = data.split(data.load("digits"), 0.2)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    loader = Loader(train, 32, shuffle=True)
    schedule = optim.OneCycleLR(optimizer, 0.02, total_steps=8 * len(loader))
    history = fit(model, loader, epochs=8, optimizer=optimizer, scheduler=schedule, held_out=Loader(held_out, 256))
    assert history["held_out_accuracy"][-1] >= 0.97
    assert history["loss"][-1] < history["loss"][0] / 10


def test_x_or_not_x_is_learned_with_one_output():
    drawings = data.x_or_not_x(400, seed=1)
    model = models.x_or_not_x()
    history = fit(
        model, Loader(drawings, 20, shuffle=True), epochs=30, optimizer=optim.Adam(model.parameters(), 0.02),
        loss=F.binary_cross_entropy,
    )  # fmt: skip
    assert history["accuracy"][-1] >= 0.95
    found = evaluate(model, Loader(drawings, 64), F.binary_cross_entropy)
    assert found.probabilities.shape == (400, 2)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=0, atol=1e-6)
    assert found.accuracy >= 0.95


def test_the_last_short_batch_is_kept_and_the_loss_averaged_over_images():
    dataset = some_data(23)
    model = small_net()
    losses = log_losses(*dense(model, dataset))
    sizes = []
    history = fit(
        model, Loader(dataset, 5, shuffle=True), epochs=1, optimizer=optim.SGD(model.parameters(), lr=0.0),
        callbacks=[Note(lambda s: sizes.append(s.batch))],
    )  # fmt: skip
    assert sizes == [1, 2, 3, 4, 5]
    assert history["loss"][0] == pytest.approx(losses.mean(), rel=200 * unit_roundoff(np.float32))
    logits, labels = dense(model, dataset)
    assert history["accuracy"][0] == np.mean(logits.argmax(1) == labels)


def test_a_step_is_one_of_plain_gradient_descent():
    dataset = some_data(4)
    model = small_net().to("float64")
    start = state_of(model)
    labels = dataset.labels
    images = gpucnn.tensor(np.ascontiguousarray(data.to_float(dataset.images)).astype(np.float64))
    F.cross_entropy(model(images), labels).backward()
    expected = {name: start[name] - 0.1 * p.grad.numpy() for name, p in model.named_parameters()}
    fit(model, Loader(dataset, 4), epochs=1, optimizer=optim.SGD(model.parameters(), lr=0.1))
    for name, value in state_of(model).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("count", [24, 23, 17, 13])
def test_accumulated_small_batches_are_one_large_batch(count):
    dataset = some_data(count)
    model, other = small_net().to("float64"), small_net().to("float64")
    other.load_state_dict(model.state_dict())
    steps = []
    for net, batch_size, accumulate in ((model, 12, 1), (other, 3, 4)):
        seen = []
        fit(
            net, Loader(dataset, batch_size), epochs=2, optimizer=optim.SGD(net.parameters(), lr=0.3, momentum=0.9),
            accumulate=accumulate, callbacks=[Note(lambda s, seen=seen: seen.append(s.step))],
        )  # fmt: skip
        steps.append(seen[-1])
    assert steps[0] == steps[1] == 2 * math.ceil(count / 12)
    for name, value in state_of(model).items():
        np.testing.assert_allclose(state_of(other)[name], value, rtol=1e-11, atol=1e-13)


def test_clipping_limits_the_length_of_a_step():
    model = small_net().to("float64")
    before = state_of(model)
    fit(model, Loader(some_data(4), 4), epochs=1, optimizer=optim.SGD(model.parameters(), lr=1.0), clip_norm=0.01)
    moved = math.sqrt(sum(((value - before[name]) ** 2).sum() for name, value in state_of(model).items()))
    assert moved == pytest.approx(0.01, rel=1e-4)  # clip_grad_norm_ divides by the norm + 1e-6


def test_the_schedule_steps_after_each_batch():
    model = small_net()
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    schedule = optim.StepLR(optimizer, 4, gamma=0.5)
    used = []
    history = fit(
        model, Loader(some_data(23), 5), epochs=2, optimizer=optimizer, scheduler=schedule,
        callbacks=[Note(lambda s: used.append(s.lr))],
    )  # fmt: skip
    assert used == [0.5] * 4 + [0.25] * 4 + [0.125] * 2
    assert history["lr"] == [0.25, 0.125]


def test_with_accumulation_the_schedule_steps_after_each_step_of_the_optimizer():
    model = small_net()
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    schedule = optim.StepLR(optimizer, 1, gamma=0.5)
    fit(model, Loader(some_data(23), 5), epochs=1, optimizer=optimizer, scheduler=schedule, accumulate=2)
    assert schedule.last_epoch == 3


def test_a_second_fit_goes_on_with_new_shuffles():
    def run(*parts):
        gpucnn.manual_seed(5)
        model = small_net()
        train, optimizer = Loader(some_data(), 4, shuffle=True), optim.Adam(model.parameters())
        rows = [row for epochs in parts for row in fit(model, train, epochs=epochs, optimizer=optimizer).rows]
        return state_of(model), [row["loss"] for row in rows]

    (one, one_losses), (two, two_losses) = run(4), run(1, 3)
    assert one_losses == two_losses
    assert_same_state(one, two)


def test_modes_are_put_back_after_training_and_evaluation():
    model = lively_net()
    model[1].eval()
    train = Loader(some_data(), 4)
    fit(model, train, epochs=1, optimizer=optim.SGD(model.parameters()), held_out=train)
    evaluate(model, train)
    predict(model, np.zeros((1, 2, 6, 5), np.float32))
    assert [module.training for module in model] == [True, False, True, True, True, True]
    with pytest.raises(ValueError, match="input"):
        predict(model, np.zeros((1, 3, 6, 5), np.float32))
    assert [module.training for module in model] == [True, False, True, True, True, True]


def test_training_is_in_training_mode_and_measuring_in_evaluation_mode():
    modes = []

    class Spy(nn.Module):
        def forward(self, x):
            modes.append((self.training, gpucnn.is_grad_enabled()))
            return x

    model = nn.Sequential(Spy(), small_net()).eval()
    loader = Loader(some_data(4), 4)
    fit(model, loader, epochs=2, optimizer=optim.SGD(model.parameters()), held_out=loader)
    assert modes == [(True, True), (False, False)] * 2


LOSSES = {
    "mse": (F.mse_loss, lambda y, t: ((y - t) ** 2).mean()),
    "half squared error": (F.half_squared_error, lambda y, t: ((y - t) ** 2).sum() / 2),
    "l1 module": (nn.L1Loss(), lambda y, t: np.abs(y - t).mean()),
    "huber": (partial(F.huber_loss, reduction="sum", delta=10.0), lambda y, t: ((y - t) ** 2).sum() / 2),
    "divergence module": (nn.KLDivLoss("batchmean"), lambda y, t: -(t * y).sum() / len(y)),
    "logits": (
        partial(F.binary_cross_entropy_with_logits, reduction="sum"),
        lambda y, t: (np.log1p(np.exp(-np.abs(y))) + np.maximum(y, 0) - y * t).sum(),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("outputs", [1, 2])
def test_losses_of_the_outputs_shape_get_labels_as_zeros_and_ones(name, outputs):
    loss, formula = LOSSES[name]
    dataset = some_data(6, classes=2)
    model = small_net(outputs)
    y, labels = dense(model, dataset)
    target = labels[:, None] if outputs == 1 else np.array([[1 - label, label] for label in labels])
    found = evaluate(model, Loader(dataset, 6), loss)
    assert found.loss == pytest.approx(formula(y, target), rel=200 * unit_roundoff(np.float32))
    expected = y[:, 0] > 0 if outputs == 1 else y.argmax(1)
    assert found.predictions.tolist() == expected.astype(int).tolist()
    history = fit(model, Loader(dataset, 6), epochs=1, optimizer=optim.SGD(model.parameters(), lr=0.0), loss=loss)
    assert history["loss"][0] == pytest.approx(found.loss, rel=200 * unit_roundoff(np.float32))
    assert history["accuracy"][0] == found.accuracy


# -- what fit refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"train": [1, 2]}, TypeError, r"train must be a gpucnn\.data\.Loader, got list"),
        ({"held_out": "digits"}, TypeError, r"held_out must be a gpucnn\.data\.Loader, got str"),
        ({"train": Loader(some_data(3), 4, drop_last=True)}, ValueError,
            r"train has no batches: Loader\(Dataset\('noise'"),
        ({"epochs": 0}, ValueError, "epochs must be a positive int, got 0"),
        ({"epochs": 1.5}, ValueError, "epochs must be a positive int, got 1.5"),
        ({"epochs": None}, ValueError, "epochs must be a positive int, got None"),
        ({"epochs": True}, ValueError, "epochs must be a positive int, got True"),
        ({"epochs": np.bool_(True)}, ValueError, "epochs must be a positive int, got np.True_"),
        ({"accumulate": True}, ValueError, "accumulate must be a positive int, got True"),
        ({"checkpoint_every": True, "folder": "x"}, ValueError, "checkpoint_every must be a positive int, got True"),
        ({"folder": 5}, TypeError, r"fit: folder must be a text or a Path, got int 5"),
        ({"folder": b"x"}, TypeError, "fit: folder must be a text or a Path, got .* b'x'"),
        ({"folder": "a\0b"}, ValueError, r"fit: folder must not have a NUL in it, got 'a\\x00b'"),
        ({"clip_norm": math.nan}, ValueError, "clip_norm must be positive, got nan"),
        ({"callbacks": [EarlyStopping(monitor=None)]}, ValueError, "there is no None, only epoch, loss, accuracy, lr$"),
        ({"loss": lambda output, labels: None}, TypeError,
            "the loss <function <lambda>> must return a Tensor of one element .*, got None"),
        ({"loss": lambda output, labels: 1.0}, TypeError, r"must return a Tensor of one element .*, got 1\.0"),
        ({"loss": lambda output, labels: np.float32(1)}, TypeError, r"must return a Tensor .*, got np\.float32"),
        ({"accumulate": 0}, ValueError, "accumulate must be a positive int, got 0"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be positive, got 0.0"),
        ({"resume": True}, ValueError, "resume and checkpoint_every need a folder="),
        ({"checkpoint_every": 2}, ValueError, "resume and checkpoint_every need a folder="),
        ({"callbacks": [EarlyStopping()]}, ValueError, r"EarlyStopping\(monitor='held_out_loss'.*there is no "
            r"'held_out_loss', only epoch, loss, accuracy, lr; give fit a held_out loader"),
        ({"callbacks": [BestModel("x", monitor="f1")]}, ValueError, "no 'f1', only epoch, loss, accuracy, lr$"),
        ({"callbacks": [BestModel(monitor="loss")]}, ValueError, "BestModel: give it a path, or fit a folder"),
        ({"train": Loader(some_data(8, classes=4), 4)}, ValueError, "the model has 3 outputs, but noise has 4 classes"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_before_any_step(change, error, match):
    model = small_net()
    before = state_of(model)
    settings = {"train": Loader(some_data(), 4), "epochs": 2, "optimizer": optim.SGD(model.parameters(), 0.1)} | change
    with pytest.raises(error, match=match):
        fit(model, settings.pop("train"), **settings)
    assert_same_state(state_of(model), before)


def test_an_optimizer_or_schedule_of_something_else_is_refused():
    model, other = small_net(), small_net()
    optimizer, foreign = optim.SGD(model.parameters()), optim.SGD(other.parameters())
    with pytest.raises(ValueError, match="optimizer has none of the parameters of this Sequential"):
        fit(model, Loader(some_data(), 4), epochs=1, optimizer=foreign)
    with pytest.raises(ValueError, match="scheduler belongs to another optimizer"):
        fit(model, Loader(some_data(), 4), epochs=1, optimizer=optimizer, scheduler=optim.StepLR(foreign, 1))


def test_a_model_whose_output_is_no_table_is_refused():
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    with pytest.raises(ValueError, match=r"model must return \[N, classes\], got \(4, 3, 4, 3\); put a Flatten"):
        fit(model, Loader(some_data(), 4), epochs=1, optimizer=optim.SGD(model.parameters()))


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda y: None, "a NoneType: None"),
        (lambda y: (y, 1), r"a tuple: \(tensor"),
        (lambda y: y.numpy(), "a ndarray: "),
    ],
)
def test_a_model_whose_output_is_no_tensor_is_told_what_it_returned(returned, told):
    class Odd(nn.Module):
        def __init__(self):
            self.inner = small_net()

        def forward(self, x):
            return returned(self.inner(x))

    model = Odd()
    with pytest.raises(TypeError, match=rf"the model must return a Tensor \[N, classes\], got {told}"):
        fit(model, Loader(some_data(), 4), epochs=1, optimizer=optim.SGD(model.parameters()))
    with pytest.raises(TypeError, match="the model must return a Tensor"):
        evaluate(model, Loader(some_data(), 4))


def test_a_loss_that_is_no_tensor_is_told_when_measuring_too():
    with pytest.raises(TypeError, match=r"the loss .* must return a Tensor of one element .*, got 1\.0"):
        evaluate(small_net(), Loader(some_data(), 4), loss=lambda output, labels: 1.0)


def test_settings_that_are_numbers_of_numpy_give_the_bits_and_the_file_of_plain_ones(tmp_path):
    def run(folder, whole, number, flag):
        gpucnn.manual_seed(3)
        model = small_net()
        train = Loader(some_data(), whole(8), shuffle=flag(True), drop_last=flag(True), seed=whole(4))
        fit(
            model, train, epochs=whole(2), accumulate=whole(2), checkpoint_every=whole(1), clip_norm=number(0.5),
            optimizer=optim.SGD(model.parameters(), number(0.25), momentum=number(0.5), nesterov=flag(True)),
            held_out=Loader(some_data(9), 4), callbacks=[EarlyStopping(patience=whole(3), min_delta=number(0.25))],
            folder=folder,
        )  # fmt: skip
        return state_of(model)

    plain = run(tmp_path / "plain", int, float, bool)
    assert_same_state(run(tmp_path / "numpy", np.int64, np.float32, np.bool_), plain)
    assert_same_state(run(tmp_path / "tensor", np.uint8, gpucnn.tensor, bool), plain)
    settings = []
    for name in ("plain", "numpy", "tensor"):
        with safe_open(tmp_path / name / "checkpoint.safetensors", "numpy") as file:
            settings.append(json.loads(file.metadata()["gpucnn.checkpoint"])["settings"])
    assert settings[0] == settings[1] == settings[2]


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_diverging_loss_stops_the_training_and_keeps_the_last_good_checkpoint(tmp_path, clip_norm):
    model = small_net()
    train = Loader(some_data(), 5)

    def poison(state):
        if state.step == 7:
            model[3].bias.detach().copy_(np.array([0, math.inf, 0], np.float32))

    told = r"the loss is (nan|inf) in epoch 2, batch 3 of 5, with lr 0\.125; try a lower learning rate or clip_norm.*"
    with pytest.raises(FloatingPointError, match=told + r"state after 1 of 3 epochs is in .*checkpoint\.safetensors"):
        fit(
            model, train, epochs=3, optimizer=optim.SGD(model.parameters(), 0.125), folder=tmp_path,
            clip_norm=clip_norm, callbacks=[Note(poison)],
        )  # fmt: skip
    assert all(np.isfinite(array).all() for array in load_file(tmp_path / "checkpoint.safetensors").values())


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("weight", r"; the first layer whose output is not finite is Linear 3$"),
        ("data", r"; the images of this batch are not finite themselves$"),
        ("loss", r"; the model's output is finite$"),
    ],
)
def test_the_error_of_a_loss_that_is_not_finite_says_where_it_began(where, told):
    model = small_net()
    if where == "weight":
        model[3].bias.detach().copy_(np.array([0, math.nan, 0], np.float32))
    poisoned = (lambda images, generator: images * np.float32(math.nan)) if where == "data" else None
    loss = (lambda output, labels: F.cross_entropy(output, labels) * math.inf) if where == "loss" else F.cross_entropy
    with pytest.raises(FloatingPointError, match=told):
        fit(
            model, Loader(some_data(), 5, augment=poisoned), epochs=1, loss=loss,
            optimizer=optim.SGD(model.parameters(), 0.01),
        )  # fmt: skip
    assert not any(vars(module).get("_hooks") for module in model.modules())


def test_a_learning_rate_that_is_too_high_ends_in_a_clear_error():
    model = small_net()
    with pytest.raises(FloatingPointError, match=r"lr 1e\+30"):
        fit(model, Loader(some_data(), 5), epochs=3, optimizer=optim.SGD(model.parameters(), 1e30))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    model = small_net()

    def poison(state):
        if state.step == 10:  # the last of epoch 2: no loss is computed any more
            model[0].weight.detach().copy_(np.full((4, 2, 3, 2), math.nan, np.float32))

    with pytest.raises(
        FloatingPointError, match=r"0\.weight is no longer finite in epoch 2, with lr 0\.01; .*after 1 of 2"
    ):
        fit(model, Loader(some_data(), 5), epochs=2, optimizer=optim.SGD(model.parameters(), 0.01), folder=tmp_path,
            callbacks=[Note(poison)])  # fmt: skip
    assert all(np.isfinite(array).all() for array in load_file(tmp_path / "checkpoint.safetensors").values())
    assert not (tmp_path / "model.safetensors").exists()


def test_gradients_that_cannot_be_clipped_are_told_with_their_place():
    model = small_net()

    def spiky(output, labels):
        finite = F.cross_entropy(output, labels)
        return finite + (output * 0).abs().sum().sqrt()  # d√s/ds at 0 is infinite

    with pytest.raises(
        FloatingPointError, match=r"the gradients' norm is nan.*in epoch 1, batch 1 of 5, with lr 0\.01"
    ):
        fit(
            model,
            Loader(some_data(), 5),
            epochs=1,
            optimizer=optim.SGD(model.parameters(), 0.01),
            loss=spiky,
            clip_norm=1.0,
        )


# -- evaluate and predict --------------------------------------------------------------------------


def test_evaluation_is_what_computing_it_in_one_go_gives():
    dataset = some_data(23)
    model = small_net()
    logits, labels = dense(model, dataset)
    found = evaluate(model, Loader(dataset, 7))
    assert found.loss == pytest.approx(log_losses(logits, labels).mean(), rel=200 * unit_roundoff(np.float32))
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=200 * unit_roundoff(np.float32))
    assert found.probabilities.dtype == np.float32
    assert found.labels.tolist() == labels.tolist()
    assert found.accuracy == np.mean(logits.argmax(1) == labels)
    assert list(found.classes) == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize("batch_size", [1, 4, 22, 100])
def test_an_evaluation_does_not_depend_on_the_batch_size(batch_size):
    model = lively_net()
    dataset = some_data(23)
    one, other = (evaluate(model, Loader(dataset, size)) for size in (23, batch_size))
    assert one.predictions.tolist() == other.predictions.tolist()
    assert one.loss == pytest.approx(other.loss, rel=200 * unit_roundoff(np.float32))
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=200 * unit_roundoff(np.float32))


def test_an_evaluation_keeps_the_order_of_the_data_whatever_the_loader_does():
    def spoil(images, generator):
        return images * 0

    dataset, model = some_data(23), small_net()
    normalise = (0.25, [0.5, 0.125])
    with pytest.raises(ValueError, match="one length"):
        Loader(dataset, 4, normalise=normalise)
    plain = Loader(dataset, 4, normalise=([0.25, 0.5], [0.5, 0.125]))
    wild = Loader(
        dataset, 4, normalise=([0.25, 0.5], [0.5, 0.125]), shuffle=True, drop_last=True, augment=spoil, prefetch=0
    )
    assert evaluate(model, wild).probabilities.tobytes() == evaluate(model, plain).probabilities.tobytes()
    assert evaluate(model, plain).loss != evaluate(model, Loader(dataset, 4)).loss
    assert wild.current == plain.current == 0


@pytest.mark.parametrize("ending", [None, nn.Softmax(1), nn.LogSoftmax(1)])
def test_probabilities_are_read_off_whatever_layer_ends_the_model(ending):
    bare = small_net()
    model = bare if ending is None else nn.Sequential(bare, ending)
    logits, _ = dense(bare, some_data(5))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = evaluate(model, Loader(some_data(5), 5), F.nll_loss)
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=200 * unit_roundoff(np.float32))


@pytest.mark.parametrize("ending", [None, nn.Sigmoid()])
def test_one_output_gives_the_probabilities_of_two_classes(ending):
    bare = small_net(1)
    model = bare if ending is None else nn.Sequential(bare, ending)
    logits, _ = dense(bare, some_data(5, classes=2))
    images = np.ascontiguousarray(data.to_float(some_data(5, classes=2).images))
    p = 1 / (1 + np.exp(-logits[:, 0]))
    np.testing.assert_allclose(predict(model, images), np.stack([1 - p, p], 1), rtol=0, atol=1e-6)


def test_predict_takes_one_image_or_many_and_the_batch_size_does_not_matter():
    model = lively_net()
    images = np.ascontiguousarray(data.to_float(some_data(7).images))
    whole = predict(model, images)
    assert whole.shape == (7, 3)
    np.testing.assert_allclose(
        predict(model, images, batch_size=3), whole, rtol=0, atol=200 * unit_roundoff(np.float32)
    )
    np.testing.assert_allclose(predict(model, images[4]), whole[4], rtol=0, atol=200 * unit_roundoff(np.float32))
    assert predict(model, images[:0]).shape == (0, 3)


def test_a_float64_model_and_one_without_parameters_can_be_asked():
    images = np.ascontiguousarray(data.to_float(some_data(4).images))
    assert predict(small_net().to("float64"), images).dtype == np.float32
    pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert predict(pooling, images).shape == (4, 2)


@pytest.mark.parametrize(
    ("images", "options", "error", "match"),
    [
        (np.zeros((1, 2, 6, 5), np.uint8), {}, TypeError, r"must be a float32 array, got uint8; data\.to_float"),
        ([[1.0]], {}, TypeError, "must be a float32 array, got list"),
        (gpucnn.tensor(np.zeros((1, 2, 6, 5), np.float32)), {}, TypeError, r"got Tensor; .* numpy\(\) makes an"),
        (np.zeros((6, 5), np.float32), {}, ValueError, r"\[N, C, H, W\] or \[C, H, W\], got shape \(6, 5\)"),
        (np.zeros((1, 2, 6, 5), np.float32), {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ],
)
def test_predict_refuses_what_are_no_images(images, options, error, match):
    with pytest.raises(error, match=match):
        predict(small_net(), images, **options)


def test_the_class_of_a_loss_is_not_taken_for_one():
    model, loader = small_net(), Loader(some_data(), 4)
    message = r"loss is the class CrossEntropyLoss; it takes an object of it: CrossEntropyLoss\(\)"
    with pytest.raises(TypeError, match=f"fit: {message}"):
        fit(model, loader, epochs=1, optimizer=optim.SGD(model.parameters()), loss=nn.CrossEntropyLoss)
    with pytest.raises(TypeError, match=f"evaluate: {message}"):
        evaluate(model, loader, nn.CrossEntropyLoss)


def test_evaluate_refuses_what_it_cannot_measure():
    model = small_net()
    with pytest.raises(TypeError, match=r"loader must be a gpucnn\.data\.Loader, got Dataset"):
        evaluate(model, some_data())
    with pytest.raises(ValueError, match="there are no images in Dataset"):
        evaluate(model, Loader(some_data().subset([]), 4))
    with pytest.raises(ValueError, match="the model has 3 outputs, but noise has 5 classes"):
        evaluate(model, Loader(some_data(classes=5), 4))


# -- history and callbacks -------------------------------------------------------------------------


def test_a_history_gives_columns_and_its_best_row():
    history = History([{"epoch": 1, "loss": 2.0, "accuracy": 0.5}, {"epoch": 2, "loss": math.nan, "accuracy": 0.5}])
    assert len(history) == 2
    assert history["epoch"] == [1, 2]
    assert history.best("loss")["epoch"] == 1
    assert history.best("accuracy")["epoch"] == 1
    with pytest.raises(KeyError, match="no 'f1'; it has epoch, loss, accuracy"):
        history["f1"]
    with pytest.raises(ValueError, match="history is empty"):
        History().best("loss")


def test_callbacks_are_called_in_order_with_the_state():
    events = []

    class Recorder(Callback):
        def on_train_begin(self, state):
            events.append(("train", state.epochs, state.resumed))

        def on_epoch_begin(self, state):
            events.append(("epoch", state.epoch, state.batch))

        def on_batch_end(self, state):
            events.append(("batch", state.epoch, state.batch, state.step))

        def on_epoch_end(self, state):
            events.append(("epoch end", state.epoch, state.history.rows[-1]["epoch"]))

        def on_train_end(self, state):
            events.append(("train end", len(state.history)))

        def close(self):
            events.append("closed")

    model = small_net()
    fit(model, Loader(some_data(9), 5), epochs=2, optimizer=optim.SGD(model.parameters()), callbacks=[Recorder()])
    assert events == [
        ("train", 2, False),
        ("epoch", 1, 0), ("batch", 1, 1, 1), ("batch", 1, 2, 2), ("epoch end", 1, 1),
        ("epoch", 2, 0), ("batch", 2, 1, 3), ("batch", 2, 2, 4), ("epoch end", 2, 2),
        ("train end", 2), "closed",
    ]  # fmt: skip


def test_callbacks_are_closed_after_an_error_too():
    closed = []

    class Failing(Callback):
        def on_batch_end(self, state):
            raise RuntimeError("no")

        def close(self):
            closed.append(True)

    model = small_net()
    with pytest.raises(RuntimeError, match="no"):
        fit(model, Loader(some_data(), 5), epochs=1, optimizer=optim.SGD(model.parameters()), callbacks=[Failing()])
    assert closed == [True]
    assert not any(t.name == "gpucnn-loader" for t in threading.enumerate())


def stopped_after(values, **settings):
    """(epochs until EarlyStopping ended a training with these held-out losses, history, state of each epoch, model)."""
    model = small_net()
    states = []

    class Keep(Callback):
        def on_epoch_end(self, state):
            states.append(state_of(model))

    loader = Loader(some_data(), 8)
    history = fit(
        model, loader, epochs=len(values), optimizer=optim.SGD(model.parameters(), 0.1), held_out=loader,
        callbacks=[Script(values), Keep(), EarlyStopping(**settings)],
    )  # fmt: skip
    return len(history), history, states, model


@pytest.mark.parametrize(
    ("values", "settings", "epochs"),
    [
        ([5, 4, 3, 3, 3, 3, 3], {"patience": 2}, 5),
        ([5, 6, 4, 6, 6, 6], {"patience": 3}, 6),
        ([5, 4, 3, 2, 1], {"patience": 1}, 5),
        ([5, 4.9, 4.8, 4.7], {"patience": 2, "min_delta": 1.0}, 3),
        ([5, 4.5, 3.9, 3.5], {"patience": 2, "min_delta": 1.0}, 4),
        ([math.nan, 4, math.nan, math.nan], {"patience": 2}, 4),
    ],
)
def test_early_stopping_ends_after_patience_epochs_without_a_better_value(values, settings, epochs):
    found, history, _, _ = stopped_after(values, **settings)
    assert found == epochs
    if epochs < len(values):
        assert f"held_out_loss has not improved for {settings['patience']} epochs; the best was" in history.stop_reason


def test_early_stopping_watches_an_accuracy_for_more():
    model = small_net()
    history = fit(
        model, Loader(some_data(), 8), epochs=9, optimizer=optim.SGD(model.parameters(), lr=0.0),
        callbacks=[EarlyStopping("accuracy", patience=3)],
    )  # fmt: skip
    assert len(history) == 4  # lr 0: it never changes
    assert "the best was epoch 1" in history.stop_reason


@pytest.mark.parametrize(("restore_best", "epoch"), [(True, 2), (False, 4)])
def test_early_stopping_puts_the_best_weights_back(restore_best, epoch):
    _, _, states, model = stopped_after([5, 1, 2, 2, 0], patience=2, restore_best=restore_best)
    assert_same_state(state_of(model), states[epoch - 1])


def test_one_early_stopping_serves_several_trainings():
    model = small_net()
    stopping = EarlyStopping("loss", patience=1)
    for _ in range(2):
        loader = Loader(some_data(), 8)
        history = fit(model, loader, epochs=3, optimizer=optim.SGD(model.parameters(), 0.0), callbacks=[stopping])
        assert len(history) >= 2


def test_early_stopping_refuses_odd_settings():
    with pytest.raises(ValueError, match=r"patience must be at least 1 and min_delta not negative, got 0 and 0\.0"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match=r"min_delta not negative, got 5 and nan"):
        EarlyStopping(min_delta=math.nan)
    for make, message in (
        (lambda: EarlyStopping(patience=None), "EarlyStopping: patience must be an int, got None"),
        (lambda: EarlyStopping(patience="3"), "EarlyStopping: patience must be an int, got '3'"),
        (lambda: EarlyStopping(patience=2.5), r"EarlyStopping: patience must be an int, got 2\.5"),
        (lambda: EarlyStopping(min_delta=None), "EarlyStopping: min_delta must be a number, got None"),
        (lambda: CSVLogger(None), "CSVLogger: path must be a text or a Path, got .* None"),
        (lambda: BestModel(5), "BestModel: path must be a text or a Path, got .* 5"),
        (lambda: TensorBoardLogger(None), "TensorBoardLogger: folder must be a text or a Path, got .* None"),
        (lambda: PlateauSchedule(3), r"PlateauSchedule: schedule must be an optim\.ReduceLROnPlateau, got 3"),
    ):
        with pytest.raises(TypeError, match=message):
            make()


def plateau(model, **options):
    """An optimizer of two groups, and a callback that steps its schedule."""
    groups = [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 0.01}]
    optimizer = optim.SGD(groups, 0.1, momentum=0.9)
    return optimizer, PlateauSchedule(optim.ReduceLROnPlateau(optimizer, **options))


def test_a_plateau_is_stepped_with_what_was_measured_in_each_epoch():
    model, rates = small_net(), []
    optimizer, schedule = plateau(model, factor=0.5, patience=1)

    class Keep(Callback):
        def on_epoch_end(self, state):
            rates.append([group["lr"] for group in optimizer.param_groups])

    loader = Loader(some_data(), 8)
    history = fit(
        model, loader, epochs=6, optimizer=optimizer, held_out=loader,
        callbacks=[Script([5, 4, 4, 4, 3, 3]), schedule, Keep()],
    )  # fmt: skip
    assert rates == [[0.1, 0.01]] * 3 + [[0.05, 0.005]] * 3
    assert history["lr"] == [0.1] * 4 + [0.05] * 2  # of the epoch's last step


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({}, {"scheduler": lambda o: optim.StepLR(o, 2)}, "fit's scheduler=StepLR sets the learning rate too"),
        ({"mode": "max"}, {}, "make the schedule with mode='min' for held_out_loss"),
        ({}, {"monitor": "held_out_accuracy"}, "make the schedule with mode='max' for held_out_accuracy"),
        ({}, {"monitor": "top5"}, "there is no 'top5', only epoch, loss, accuracy"),
        ({}, {"optimizer": True}, "the schedule belongs to another optimizer"),
    ],
)
def test_a_plateau_that_would_do_harm_is_refused_before_the_training(options, changes, message):
    model = small_net()
    optimizer, schedule = plateau(model, **options)
    schedule.monitor = changes.get("monitor", schedule.monitor)
    loader = Loader(some_data(), 8)
    with pytest.raises(ValueError, match=message):
        fit(
            model, loader, epochs=1, held_out=loader, callbacks=[schedule],
            optimizer=plateau(model)[0] if "optimizer" in changes else optimizer,
            scheduler=changes["scheduler"](optimizer) if "scheduler" in changes else None,
        )  # fmt: skip
    assert schedule.schedule.last_epoch == 0


def test_several_optimizers_and_a_plateau_as_a_scheduler_are_told_what_to_do_instead():
    model, loader = small_net(), Loader(some_data(), 8)
    optimizer, schedule = plateau(model)
    with pytest.raises(
        TypeError, match=r"fit: optimizer must be .*, got list; one optimizer steps them all, with groups"
    ):
        fit(model, loader, epochs=1, optimizer=[optimizer, optimizer])
    with pytest.raises(
        TypeError, match=r"got ReduceLROnPlateau; pass callbacks=\[train\.PlateauSchedule\(scheduler\)\]"
    ):
        fit(model, loader, epochs=1, optimizer=optimizer, scheduler=schedule.schedule)


def test_the_best_model_is_kept(tmp_path):
    model = small_net()
    loader = Loader(some_data(), 8, normalise=(0.5, 0.25))
    states = []

    class Keep(Callback):
        def on_epoch_end(self, state):
            states.append(state_of(model))

    fit(
        model, loader, epochs=4, optimizer=optim.SGD(model.parameters(), 0.1), held_out=loader, folder=tmp_path,
        callbacks=[Script([5, 2, 2, 3]), Keep(), BestModel()],
    )  # fmt: skip
    best, description = load_model(tmp_path / "best.safetensors")
    assert_same_state(state_of(best), states[1])
    assert description["classes"] == ["class 0", "class 1", "class 2"]
    assert description["normalise"] == [0.5, 0.25]
    assert (description["image_size"], description["channels"]) == ([6, 5], 2)


def test_the_csv_holds_the_history_to_the_last_digit(tmp_path):
    model = small_net()
    loader = Loader(some_data(), 8)
    history = fit(
        model, loader, epochs=3, optimizer=optim.SGD(model.parameters(), 0.1), held_out=loader,
        callbacks=[CSVLogger(tmp_path / "log.csv")],
    )  # fmt: skip
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,accuracy,held_out_loss,held_out_accuracy,lr"
    assert [[float(cell) for cell in line.split(",")] for line in lines[1:]] == [
        list(row.values()) for row in history.rows
    ]


@pytest.mark.parametrize("callback", [CSVLogger, lambda path: BestModel(path, "loss")])
def test_a_file_that_cannot_be_written_is_told_before_the_first_epoch(tmp_path, callback):
    model, begun = small_net(), []
    with pytest.raises(FileNotFoundError, match=r"can't write .*none.file: there is no folder .*none; make it first"):
        fit(
            model, Loader(some_data(), 8), epochs=1, optimizer=optim.SGD(model.parameters()),
            callbacks=[callback(tmp_path / "none" / "file"), Note(begun.append)],
        )  # fmt: skip
    assert begun == []


def test_a_new_run_does_not_overwrite_a_csv(tmp_path):
    (tmp_path / "log.csv").write_text("precious")
    model = small_net()
    with pytest.raises(FileExistsError, match=r"log\.csv exists; move it away or choose another path"):
        fit(
            model, Loader(some_data(), 8), epochs=1, optimizer=optim.SGD(model.parameters()),
            callbacks=[CSVLogger(tmp_path / "log.csv")],
        )  # fmt: skip
    assert (tmp_path / "log.csv").read_text() == "precious"


def tensorboard_scalars(folder):
    """(tag, step, value) of all scalars in the event files, and the steps at which a run began anew."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, starts = [], []
    for path in sorted(Path(folder).iterdir()):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            (length,) = struct.unpack_from("<Q", raw, at)
            event = Event.FromString(raw[at + 12 : at + 12 + length])
            at += length + 16
            scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            starts += [event.step] if event.HasField("session_log") else []
    return scalars, starts


def test_tensorboard_gets_each_number_of_the_history(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    model = small_net()
    settings = {"optimizer": optim.SGD(model.parameters(), 0.1), "folder": tmp_path / "run"}
    for epochs, resume in ((2, False), (3, True)):
        logger = TensorBoardLogger(tmp_path / "events")
        history = fit(model, Loader(some_data(), 8), epochs=epochs, resume=resume, callbacks=[logger], **settings)
        for path in (tmp_path / "events").iterdir():  # or the second would get the same name within a second
            path.rename(path.with_name(f"{epochs}.{path.name}") if epochs == 2 else path)
    scalars, starts = tensorboard_scalars(tmp_path / "events")
    assert scalars == [
        (name, row["epoch"], pytest.approx(row[name], rel=unit_roundoff(np.float32)))
        for row in history.rows
        for name in ("loss", "accuracy", "lr")
    ]
    assert starts == [3]


def test_tensorboard_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    model = small_net()
    with pytest.raises(ImportError, match="TensorBoardLogger needs tensorboardX: pip install tensorboardX"):
        fit(
            model, Loader(some_data(), 8), epochs=1, optimizer=optim.SGD(model.parameters()),
            callbacks=[TensorBoardLogger("x")],
        )  # fmt: skip


def test_the_progress_bar_shows_epoch_loss_accuracy_and_speed():
    from rich.console import Console

    out = StringIO()
    model = small_net()
    loader = Loader(some_data(), 8)
    history = fit(
        model, loader, epochs=2, optimizer=optim.SGD(model.parameters(), 0.1), held_out=loader,
        callbacks=[ProgressBar(Console(file=out, force_terminal=True, width=120, color_system=None))],
    )  # fmt: skip
    text = out.getvalue()
    for row in history.rows:
        assert (
            f"epoch {row['epoch']}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.2%}  held out loss "
            f"{row['held_out_loss']:.4f}  held out accuracy {row['held_out_accuracy']:.2%}  lr 0.1"
        ) in text
    assert "epoch 2/2" in text
    assert "images/s" in text


@pytest.mark.parametrize(("terminal", "progress", "shown"), [
    (True, None, True), (False, None, False), (False, True, True), (True, False, False),
])  # fmt: skip
def test_a_bar_is_shown_on_a_terminal_or_when_it_is_asked_for(monkeypatch, capsys, terminal, progress, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    model = small_net()
    fit(model, Loader(some_data(), 8), epochs=1, optimizer=optim.SGD(model.parameters()), progress=progress)
    captured = capsys.readouterr()
    assert ("images/s" in captured.err) == shown
    assert captured.out == ""


# -- stopping and going on -------------------------------------------------------------------------


class Stop(Exception):
    """Stands for whatever ends a process."""


def lively_run(folder, *, stop=None, epochs=3, resume=False, how=None, accumulate=1, **changes):
    """A training with everything that has a state. `stop`: batches after which `how(state)` is called."""
    gpucnn.manual_seed(changes.pop("first_seed", 3))
    model = changes.pop("model", None) or lively_net()
    dataset = changes.pop("dataset", None) or some_data(23)
    train = Loader(
        dataset, changes.pop("batch_size", 4), shuffle=True, seed=changes.pop("seed", 5), prefetch=2,
        augment=changes.pop("augment", data.RandomHorizontalFlip()),
    )  # fmt: skip
    optimizer = changes.pop("optimizer", optim.Adam)(model.parameters(), lr=changes.pop("lr", 0.02))
    schedule = optim.WarmUp(optim.CosineAnnealingLR(optimizer, changes.pop("T_max", 18)), 3)
    done = [0]

    def count(state):
        done[0] += 1
        if stop is not None and done[0] == stop:
            (how or fail)(state)

    def fail(state):
        raise Stop

    history = fit(
        model, train, epochs=epochs, optimizer=optimizer, scheduler=schedule, held_out=Loader(some_data(9, seed=1), 4),
        callbacks=[
            Note(count), EarlyStopping(patience=changes.pop("patience", 9)), BestModel(),
            CSVLogger(Path(folder) / "history.csv"),
        ],
        folder=folder, resume=resume, accumulate=accumulate, **{"checkpoint_every": 2, **changes},
    )  # fmt: skip
    return history, state_of(model), optimizer.lr, default_generator.state(), train.current


FILES = ("model.safetensors", "best.safetensors", "history.csv")


def contents(folder):
    """All that a run leaves behind, but for the seconds that it took."""
    raw = (folder / "checkpoint.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    content = json.loads(header["__metadata__"]["gpucnn.checkpoint"])
    content["state"].pop("seconds")
    return [content, raw[8 + length :], *((folder / name).read_bytes() for name in FILES)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, backend):
    """What an unbroken run leaves behind, by its `accumulate`."""
    found = {}
    with gpucnn.use_backend(backend):
        for accumulate in (1, 4):
            folder = tmp_path_factory.mktemp("unbroken")
            found[accumulate] = (lively_run(folder, accumulate=accumulate), contents(folder))
    return found


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6, 7, 11, 12, 13, 18])
def test_a_run_that_died_goes_on_bit_for_bit(tmp_path, unbroken, stop, accumulate):
    with pytest.raises(Stop):
        lively_run(tmp_path, stop=stop, accumulate=accumulate)
    result = lively_run(tmp_path, resume=True, accumulate=accumulate, first_seed=99)
    expected, files = unbroken[accumulate]
    assert result[0] == expected[0]
    assert_same_state(result[1], expected[1])
    assert result[2:] == expected[2:]
    assert contents(tmp_path) == files


def test_a_run_that_dies_again_and_again_goes_on_bit_for_bit(tmp_path, unbroken):
    deaths = 0
    while True:
        try:
            result = lively_run(tmp_path, stop=3, resume=True)
            break
        except Stop:
            deaths += 1
    assert deaths >= 5
    assert result[0] == unbroken[1][0][0]
    assert contents(tmp_path) == unbroken[1][1]


def test_checkpoints_are_made_as_often_as_asked(tmp_path):
    for every, left in ((None, 0), (1, 4), (3, 3)):
        folder = tmp_path / str(every)
        with pytest.raises(Stop):
            lively_run(folder, stop=5, checkpoint_every=every)
        begun = []
        with pytest.raises(Stop):
            lively_run(
                folder,
                stop=1,
                resume=True,
                how=lambda s, b=begun: b.append(s.batch - 1) or (_ for _ in ()).throw(Stop()),
            )
        assert begun == [left]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop", [4, 6, 18])
def test_a_signal_saves_and_ends_the_training(tmp_path, unbroken, number, stop):
    before = signal.getsignal(number)
    position = {4: "after 0 of 3 epochs and 4 of 6 batches", 6: "after 0 of 3 epochs and 6 of 6 batches",
                18: "after 2 of 3 epochs and 6 of 6 batches"}[stop]  # fmt: skip
    with pytest.raises(TrainingInterrupted) as caught:
        lively_run(tmp_path, stop=stop, how=lambda state: os.kill(os.getpid(), number), checkpoint_every=None)
    message = str(caught.value)
    assert f"stopped by {signal.Signals(number).name} {position}; saved {tmp_path}" in message
    assert "The same call with resume=True goes on" in message
    assert isinstance(caught.value, KeyboardInterrupt)
    assert (caught.value.signal, caught.value.exit_code) == (number, 128 + number)
    assert signal.getsignal(number) is before
    result = lively_run(tmp_path, resume=True, checkpoint_every=None)
    assert result[0] == unbroken[1][0][0]
    assert contents(tmp_path) == unbroken[1][1]


def test_a_signal_waits_for_the_end_of_an_accumulated_step(tmp_path, unbroken):
    with pytest.raises(TrainingInterrupted, match="and 4 of 6 batches"):
        lively_run(tmp_path, stop=2, how=lambda state: os.kill(os.getpid(), signal.SIGINT), accumulate=4)
    lively_run(tmp_path, resume=True, accumulate=4)
    assert contents(tmp_path) == unbroken[4][1]


def test_a_signal_during_the_evaluation_is_heard(tmp_path, unbroken):
    class Interrupting(nn.Identity):
        def forward(self, x):
            if not self.training and not interrupted:
                interrupted.append(True)
                os.kill(os.getpid(), signal.SIGINT)
            return x

    interrupted: list[bool] = []

    def model():
        gpucnn.manual_seed(3)
        net = lively_net()
        net.append(Interrupting())
        return net

    with pytest.raises(TrainingInterrupted, match="after 0 of 3 epochs and 6 of 6 batches"):
        lively_run(tmp_path, model=model())
    assert interrupted
    history = lively_run(tmp_path, model=model(), resume=True)[0]
    assert history == unbroken[1][0][0]


def test_a_signal_without_a_folder_says_that_nothing_was_saved():
    model = small_net()
    with pytest.raises(TrainingInterrupted, match=r"SIGINT after 0 of 2 epochs and 1 of 5 batches; fit had no folder="):
        fit(
            model, Loader(some_data(), 5), epochs=2, optimizer=optim.SGD(model.parameters()),
            callbacks=[Note(lambda state: os.kill(os.getpid(), signal.SIGINT))],
        )  # fmt: skip


def test_a_second_ctrl_c_acts_at_once():
    model = small_net()
    reached = []

    def twice(state):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        reached.append(state.batch)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(model, Loader(some_data(), 5), epochs=2, optimizer=optim.SGD(model.parameters()), callbacks=[Note(twice)])
    assert not isinstance(caught.value, TrainingInterrupted)
    assert not reached


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        model = small_net()
        history = fit(
            model, Loader(some_data(), 5), epochs=1, optimizer=optim.SGD(model.parameters()),
            callbacks=[Note(lambda state: os.kill(os.getpid(), signal.SIGINT))],
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(history) == 1


def test_training_in_another_thread_works(backend):
    result = []

    def work():
        with gpucnn.use_backend(backend):
            model = small_net()
            result.append(fit(model, Loader(some_data(), 5), epochs=1, optimizer=optim.SGD(model.parameters())))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(result[0]) == 1


def test_a_finished_run_is_not_trained_again(tmp_path, unbroken):
    first = lively_run(tmp_path)
    again = lively_run(tmp_path, resume=True, stop=1)
    assert again[0] == first[0]
    assert_same_state(again[1], first[1])
    assert contents(tmp_path) == unbroken[1][1]


def test_a_finished_run_can_be_given_more_epochs(tmp_path, unbroken):
    lively_run(tmp_path, epochs=2)
    assert lively_run(tmp_path, epochs=3, resume=True)[0] == unbroken[1][0][0]
    assert contents(tmp_path) == unbroken[1][1]
    with pytest.raises(ValueError, match=r"the run in .* has 3 epochs, more than epochs=2"):
        lively_run(tmp_path, epochs=2, resume=True)


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    first = lively_run(tmp_path, lr=0.0, patience=1, T_max=30, epochs=5)
    assert first[0].stop_reason is not None
    assert len(first[0]) < 5
    again = lively_run(tmp_path, lr=0.0, patience=1, T_max=30, epochs=5, resume=True, stop=1)
    assert again[0] == first[0]


def test_resume_without_a_run_begins_one(tmp_path, unbroken):
    assert lively_run(tmp_path / "new" / "folder", resume=True)[0] == unbroken[1][0][0]


def test_a_run_is_not_overwritten_silently(tmp_path):
    lively_run(tmp_path)
    kept = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds a run already \(checkpoint\.safetensors\); resume=True goes on"):
        lively_run(tmp_path)
    assert contents(tmp_path) == kept
    (tmp_path / "checkpoint.safetensors").unlink()
    with pytest.raises(FileExistsError, match=r"\(model\.safetensors\), and no checkpoint of it; choose another"):
        lively_run(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batch_size": 5}, r"train\.batch_size was 4, is 5"),
        ({"seed": 6}, r"train\.seed was 5, is 6"),
        ({"optimizer": optim.RMSprop}, "optimizer was 'Adam', is 'RMSprop'"),
        ({"lr": 0.03}, r"scheduler\.base_lr was .*, is .*"),
        ({"T_max": 20}, r"scheduler\.after\.t_max was 18, is 20"),
        ({"augment": None}, r"train\.augment was 'RandomHorizontalFlip\(p=0\.5\)', is 'None'"),
        ({"augment": data.RandomHorizontalFlip(0.25)}, r"is 'RandomHorizontalFlip\(p=0\.25\)'"),
        ({"dataset": some_data(23, seed=4)}, r"train\.digest was '\w{16}', is '\w{16}'"),
        ({"dataset": some_data(22)}, r"train\.images was 23, is 22"),
        ({"accumulate": 2}, "accumulate was 1, is 2"),
        ({"clip_norm": 1.0}, "clip_norm was None, is 1.0"),
        ({"patience": 4}, r"callbacks was .*patience=9.*, is .*patience=4"),
        ({"loss": partial(F.cross_entropy, label_smoothing=0.1)},
            r"loss was '<function cross_entropy>', is .functools\.partial\(.*, label_smoothing=0\.1\)"),
    ],
)  # fmt: skip
def test_a_run_resumes_only_with_its_settings(tmp_path, change, match):
    with pytest.raises(Stop):
        lively_run(tmp_path, stop=3)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ValueError, match=match):
        lively_run(tmp_path, resume=True, **change)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("rows", None), ("rows", [1]), ("rows", ...), ("sums", {"loss": 0.0}), ("seconds", "1"), ("callbacks", []),
     ("stop_reason", 3), ("scaler", {"scale": 1.0}), ("skipped", ...)],
)  # fmt: skip
def test_a_run_whose_own_state_is_damaged_changes_nothing(tmp_path, name, value):
    with pytest.raises(Stop):
        lively_run(tmp_path, stop=3)
    path = tmp_path / "checkpoint.safetensors"
    with safe_open(path, "numpy") as file:
        metadata, arrays = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    (key,) = (key for key in metadata if "state" in json.loads(metadata[key]))
    content = json.loads(metadata[key])
    content["state"] = {k: v for k, v in (content["state"] | {name: value}).items() if v is not ...}
    path.write_bytes(save(arrays, metadata | {key: json.dumps(content)}))
    model = lively_net()
    before = {key: tensor.tolist() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"the run's own state can't be read: {name}"):
        lively_run(tmp_path, resume=True, model=model)
    assert {key: tensor.tolist() for key, tensor in model.state_dict().items()} == before


def test_a_loss_scale_that_cannot_be_changes_nothing(tmp_path):
    def run(model, resume):
        optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
        fit(
            model, Loader(some_data(), 8), epochs=2, optimizer=optimizer, folder=tmp_path, precision="fp16",
            resume=resume,
        )  # fmt: skip

    run(small_net(), resume=False)
    path = tmp_path / "checkpoint.safetensors"
    with safe_open(path, "numpy") as file:
        content, arrays = json.loads(file.metadata()["gpucnn.checkpoint"]), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    content["state"]["scaler"]["scale"] = -1
    path.write_bytes(save(arrays, {"gpucnn.checkpoint": json.dumps(content)}))
    model = small_net()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"the run's own state can't be read: GradScaler: scale must be .*, got -1"):
        run(model, resume=True)
    assert_same_state(state_of(model), before)


def test_a_callback_with_a_state_needs_no_repr_of_its_own_to_go_on(tmp_path):
    class Counting(Callback):
        batches = 0

        def on_batch_end(self, state):
            self.batches += 1

        def state_dict(self):
            return {"batches": self.batches}

        def load_state_dict(self, state):
            self.batches = state["batches"]

    for epochs in (1, 2):
        model, counting = small_net(), Counting()
        fit(
            model, Loader(some_data(), 8), epochs=epochs, optimizer=optim.SGD(model.parameters(), 0.1),
            callbacks=[counting], folder=tmp_path, resume=epochs == 2,
        )  # fmt: skip
    assert counting.batches == 2 * 3


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({}, "KeyError 'best'"),
        ({"best": "x", "best_epoch": 1, "waited": 0}, "TypeError EarlyStopping: best must be a number, got 'x'"),
        (
            {"best": 1.0, "best_epoch": -1, "waited": 0},
            "ValueError EarlyStopping: best_epoch must be at least 0, got -1",
        ),
    ],
)
def test_a_callback_that_does_not_take_back_its_state_is_named_and_nothing_has_changed(tmp_path, state, error):
    def run(resume):
        optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
        scheduler = optim.StepLR(optimizer, 2)
        try:
            fit(
                model, Loader(some_data(), 8), epochs=2, optimizer=optimizer, scheduler=scheduler, folder=tmp_path,
                callbacks=[EarlyStopping("loss")], resume=resume,
            )  # fmt: skip
        finally:
            states.append(str([optimizer.state_dict(), scheduler.state_dict(), default_generator.state()]))

    states, model = [], small_net()
    run(resume=False)
    path = tmp_path / "checkpoint.safetensors"
    with safe_open(path, "numpy") as file:
        content, arrays = json.loads(file.metadata()["gpucnn.checkpoint"]), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    content["state"]["callbacks"] = [state]
    path.write_bytes(save(arrays, {"gpucnn.checkpoint": json.dumps(content)}))
    model = small_net()
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    fresh = str([optimizer.state_dict(), optim.StepLR(optimizer, 2).state_dict(), default_generator.state()])
    before = state_of(model)
    with pytest.raises(ValueError, match=rf"its state can't be read: .*EarlyStopping\(.*\) does not take .*: {error}"):
        run(resume=True)
    assert_same_state(state_of(model), before)
    assert states[1] == fresh


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (None, r"must be a dict, and so must its \"arrays\", got None"),
        (5, "must be a dict, .* got 5"),
        ({"arrays": 5}, r"must be a dict, .* got \{'arrays': 5\}"),
        ({"x": {1}}, r": x=\{1\} is nothing that JSON can hold"),
        ({"arrays": {"a": np.array("x")}}, r"must be of numbers .*: own/0\.a \(<U1\)"),
    ],
)
def test_a_callback_whose_state_cannot_be_kept_is_told_before_the_first_batch(tmp_path, kept, message):
    class Keeping(Callback):
        batches = 0

        def on_batch_end(self, state):
            self.batches += 1

        def state_dict(self):
            return kept

    model, callback = small_net(), Keeping()
    with pytest.raises(TypeError, match=message) as caught:
        fit(
            model, Loader(some_data(), 8), epochs=1, optimizer=optim.SGD(model.parameters()), callbacks=[callback],
            folder=tmp_path,
        )  # fmt: skip
    assert "Keeping" in str(caught.value) or "own/0.a" in str(caught.value)
    assert callback.batches == 0


def test_a_callback_may_keep_numbers_of_numpy(tmp_path):
    class Best(Callback):
        value = np.float32(0.25)

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    for resume in (False, True):
        model, best = small_net(), Best()
        fit(
            model, Loader(some_data(), 8), epochs=1 + resume, optimizer=optim.SGD(model.parameters(), 0.1),
            callbacks=[best], folder=tmp_path, resume=resume,
        )  # fmt: skip
    assert best.value == 0.25


def grouped_run(folder, *, stop=None, resume=False, lr=0.01, weight_decay=0.0, patience=0, added=False, graph=None):
    """A training with groups and a plateau, whose threshold is so high that the rates fall."""
    gpucnn.manual_seed(3)
    model = lively_net()
    biases, weights = ([p for p in model.parameters() if (p.ndim == 1) == one] for one in (True, False))
    groups = [{"params": weights}, {"params": biases, "lr": lr, "weight_decay": weight_decay}]
    if added:
        groups = [groups[0], groups[1] | {"params": biases[:2]}, groups[1] | {"params": biases[2:]}]
    optimizer = optim.AdamW(groups, 0.02)
    schedule = optim.ReduceLROnPlateau(optimizer, patience=patience, threshold=0.5, factor=0.5)

    def end(state):
        if state.step == stop:
            raise Stop

    train = Loader(some_data(), 8, shuffle=True, seed=5)
    fit(
        model, train, epochs=4, optimizer=optimizer, held_out=Loader(some_data(9, seed=1), 4), folder=folder,
        callbacks=[PlateauSchedule(schedule), Note(end)], resume=resume, checkpoint_every=1, graph=graph,
    )  # fmt: skip
    return state_of(model), optimizer.state_dict()["param_groups"], schedule.state_dict()


@pytest.mark.parametrize("stop", [1, 3, 5, 7, 11])
def test_a_run_of_groups_on_a_plateau_goes_on_bit_for_bit(tmp_path, stop):
    weights, groups, schedule = grouped_run(tmp_path / "whole")
    assert [group["lr"] for group in groups] == [0.02 / 8, 0.01 / 8]
    with pytest.raises(Stop):
        grouped_run(tmp_path / "cut", stop=stop)
    resumed = grouped_run(tmp_path / "cut", resume=True)
    assert_same_state(resumed[0], weights)
    assert resumed[1:] == (groups, schedule)


def test_groups_on_a_plateau_have_the_same_bits_in_graphs(tmp_path):
    with gpucnn.use_backend("emulator"):
        plain, captured = (grouped_run(tmp_path / str(graph), graph=graph) for graph in (False, True))
    assert_same_state(plain[0], captured[0])
    assert plain[1:] == captured[1:]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lr": 0.5}, r"lr of group 1 was 0\.01, is 0\.5"),
        ({"weight_decay": 0.5}, r"optimizer\.weight_decay of group 1 was 0\.0, is 0\.5"),
        ({"added": True}, r"optimizer\.weight_decay of group 2 was None, is 0\.0"),
        ({"patience": 3}, r"callbacks was .*patience=0.*, is .*patience=3"),
    ],
)
def test_a_run_of_groups_resumes_only_with_their_settings(tmp_path, change, match):
    with pytest.raises(Stop):
        grouped_run(tmp_path, stop=3)
    with pytest.raises(ValueError, match=match):
        grouped_run(tmp_path, resume=True, **change)


def test_what_a_run_has_in_common_with_one_of_the_version_before_groups_is_written_as_it_was(tmp_path):
    lively_run(tmp_path, epochs=1)
    settings = contents(tmp_path)[0]["settings"]
    assert settings["optimizer"] == {"class": "Adam", "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8}
    assert settings["scheduler"]["base_lr"] == 0.02
    assert settings["scheduler"]["after"] == {
        "class": "CosineAnnealingLR",
        "t_max": 18,
        "eta_min": 0.0,
        "base_lr": 0.02,
    }
    assert settings["lr"] is None
    optimizer = optim.SGD(small_net().parameters())
    assert gpucnn.train._settings_of(optim.OneCycleLR(optimizer, 0.5, 9, div_factor=2.0, final_div_factor=4.0)) == {
        "class": "OneCycleLR", "max_lr": 0.5, "total_steps": 9, "pct_start": 0.3, "initial_lr": 0.25, "min_lr": 0.0625,
        "base_lr": 1e-3,
    }  # fmt: skip


def test_another_learning_rate_without_a_schedule_is_refused(tmp_path):
    for lr, resume in ((0.1, False), (0.2, True)):
        model = small_net()
        run = partial(
            fit, model, Loader(some_data(), 5), epochs=1, optimizer=optim.SGD(model.parameters(), lr), folder=tmp_path
        )
        if resume:
            with pytest.raises(ValueError, match=r"lr was 0\.1, is 0\.2"):
                run(resume=True)
        else:
            run()


def test_another_model_is_refused(tmp_path):
    with pytest.raises(Stop):
        lively_run(tmp_path, stop=3)
    other = lively_net()
    other.__dict__["2"] = nn.Tanh()
    with pytest.raises(ValueError, match=r"model\.children\.2 was 'ReLU', is 'Tanh'"):
        lively_run(tmp_path, resume=True, model=other)


def test_the_same_objects_can_go_on_after_an_interrupt(tmp_path):
    def parts():
        gpucnn.manual_seed(3)
        model = lively_net()
        optimizer = optim.Adam(model.parameters(), 0.02)
        schedule = optim.StepLR(optimizer, 2)
        train = Loader(some_data(), 4, shuffle=True)
        return model, partial(
            fit, model, train, epochs=2, optimizer=optimizer, scheduler=schedule, checkpoint_every=None
        )

    model, run = parts()
    run(folder=tmp_path / "unbroken")
    other, run = parts()
    with pytest.raises(TrainingInterrupted):
        run(folder=tmp_path / "b", callbacks=[Note(lambda s: s.step == 8 and os.kill(os.getpid(), signal.SIGINT))])
    run(folder=tmp_path / "b", resume=True)
    assert_same_state(state_of(other), state_of(model))


def test_a_folder_in_use_is_refused(tmp_path):
    messages = []

    def intrude(state):
        with pytest.raises(RuntimeError, match=rf"in use by another training \(process {os.getpid()}\)") as caught:
            lively_run(tmp_path, resume=True)
        messages.append(str(caught.value))

    lively_run(tmp_path, stop=1, how=intrude, epochs=1)
    assert len(messages) == 1


def test_what_a_killed_process_left_of_a_file_is_cleared_away(tmp_path):
    (tmp_path / ".checkpoint.safetensors.123.4.tmp").write_text("half a che")
    (tmp_path / ".mine.tmp").write_text("precious")
    (tmp_path / ".folder.1.2.tmp").mkdir()
    lively_run(tmp_path, epochs=1)
    assert {path.name for path in tmp_path.glob(".*.tmp")} == {".mine.tmp", ".folder.1.2.tmp"}


# -- stopping and going on, with real processes ----------------------------------------------------

SCRIPT = """
import sys, time
import numpy as np
import gpucnn
from gpucnn import data, nn, optim
from gpucnn.train import BestModel, Callback, CSVLogger, EarlyStopping, TrainingInterrupted, fit

class Slow(Callback):
    def on_train_begin(self, state):
        print("begun", flush=True)

    def on_batch_end(self, state):
        time.sleep(0.01)

def main(folder):
    gpucnn.manual_seed(3)
    images = np.random.default_rng(0).integers(0, 256, (60, 6, 5, 2)).astype(np.uint8)
    dataset = data.Dataset(images, images[:, 0, :3, 0].argmax(1), ("a", "b", "c"))
    train, held_out = data.split(dataset, 0.2)
    model = nn.Sequential(
        nn.Conv2d(2, 4, (3, 2)), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)
    )
    optimizer = optim.AdamW(model.parameters(), 0.02)
    loader = data.Loader(train, 4, shuffle=True, augment=data.RandomHorizontalFlip())
    fit(
        model, loader, epochs=8, optimizer=optimizer,
        scheduler=optim.OneCycleLR(optimizer, 0.02, total_steps=8 * len(loader)),
        held_out=data.Loader(held_out, 8),
        callbacks=[Slow(), EarlyStopping(patience=99), BestModel(), CSVLogger(folder + "/history.csv")],
        folder=folder, resume=True, checkpoint_every=5,
    )

try:
    main(sys.argv[1])
except TrainingInterrupted as stopped:
    print(stopped, flush=True)
    sys.exit(stopped.exit_code)
"""


@pytest.fixture
def launch(tmp_path, backend):
    """Starts the script on a folder and waits until it trains."""
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "GPUCNN_BACKEND": backend, "PYTHONPATH": str(Path(gpucnn.__file__).parents[1])}
    processes = []

    def start(folder):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(tmp_path / "run.py"), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        processes.append(process)
        first = process.stdout.readline()
        assert first == "begun\n", first + process.stdout.read()
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def finish(process):
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output


def test_a_process_killed_at_random_moments_leaves_the_files_of_an_unbroken_run(tmp_path, launch):
    finish(launch(tmp_path / "unbroken"))
    moments = random.Random(11)
    kills = 0
    while True:
        process = launch(tmp_path / "killed")
        try:
            process.wait(moments.uniform(0.02, 0.5))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert process.returncode == 0, process.stdout.read()
    assert kills >= 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_interrupted_says_how_to_go_on(tmp_path, launch, number):
    process = launch(tmp_path / "run")
    time.sleep(0.15)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert f"stopped by {signal.Signals(number).name} after " in output
    assert "resume=True" in output
    assert "Traceback" not in output
    finish(launch(tmp_path / "run"))
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 9


def test_a_folder_is_locked_between_processes_and_free_after_a_kill(tmp_path, launch):
    process = launch(tmp_path / "run")
    while not (tmp_path / "run" / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match=rf"in use by another training \(process {process.pid}\)"):
        lively_run(tmp_path / "run", resume=True)
    process.kill()
    process.wait()
    with pytest.raises(ValueError, match="of a run with other settings"):  # so the lock is free
        lively_run(tmp_path / "run", resume=True)


# -- steps as graphs -------------------------------------------------------------------------------


@pytest.fixture
def emulator():
    with gpucnn.use_backend("emulator"):
        gpucnn.manual_seed(3)
        yield


def trained_lively(epochs=4, **options):
    """A net after some epochs whose last batch is short, and the optimizer."""
    gpucnn.manual_seed(3)
    model = lively_net()
    optimizer = optim.Adam(list(model.parameters()), 0.01)
    train = Loader(some_data(), 4, shuffle=True, seed=1)
    schedule = optim.OneCycleLR(optimizer, 0.02, 50)
    history = fit(
        model, train, epochs=epochs, optimizer=optimizer, scheduler=schedule, held_out=Loader(some_data(9), 4),
        progress=False, **options,
    )  # fmt: skip
    return model, optimizer, history


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.3}, {"precision": "fp16"}], ids=str)
def test_with_graphs_a_training_has_the_same_bits(emulator, monkeypatch, options):
    made = []
    monkeypatch.setattr("gpucnn.train.Compiled", lambda *args: made.append(gpucnn.graph.Compiled(*args)) or made[-1])
    (plain, *_, history), (captured, *_, other) = (trained_lively(graph=graph, **options) for graph in (False, True))
    assert history == other
    assert_same_state(state_of(plain), state_of(captured))
    [compiled] = made
    assert (compiled.reason, len(compiled.report())) == (None, 2)  # the last batch of an epoch is short


def test_gradients_that_overflow_in_a_graph_skip_the_step_and_halve_the_scale_of_the_next(emulator):
    def trained(graph):
        gpucnn.manual_seed(3)
        model = small_net()
        model[3].weight.detach().copy_(1000 * model[3].weight.numpy())
        optimizer = optim.SGD(list(model.parameters()), 1e-4)
        return fit(
            model,
            Loader(some_data(24), 4),
            epochs=3,
            optimizer=optimizer,
            precision="fp16",
            graph=graph,
            progress=False,
        )

    plain, captured = trained(graph=False), trained(graph=True)
    assert plain == captured
    assert captured["skipped"][0] > 3  # more than the two steps before the capture
    assert captured["skipped"][-1] == 0


def test_a_training_with_graphs_that_is_resumed_has_the_bits_of_one_without_a_pause(emulator, tmp_path):
    whole, _, history = trained_lively(4, graph=True)
    trained_lively(2, graph=True, folder=tmp_path)
    resumed, _, other = trained_lively(4, graph=True, folder=tmp_path, resume=True)
    assert history == other
    assert_same_state(state_of(whole), state_of(resumed))


def test_a_loss_that_is_not_finite_ends_a_training_with_graphs(emulator):
    model = small_net()

    def overshoot(state):
        if state.batch == 3:  # the fourth step is the second launch of the graph
            state.optimizer.lr = 1e30

    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 1, batch 5 of 6, with lr 1e\+30"):
        fit(
            model, Loader(some_data(), 4), epochs=2, optimizer=optim.SGD(list(model.parameters())), graph=True,
            callbacks=[Note(overshoot)], progress=False,
        )  # fmt: skip


NOT_CAPTURED = {
    "the loss <function half_squared_error> gets its labels on the host": {"loss": F.half_squared_error},
    "accumulate adds up gradients over several calls": {"accumulate": 2},
    "the model has hooks": {},
}


@pytest.mark.parametrize("reason", NOT_CAPTURED)
def test_what_keeps_a_training_from_graphs_is_told_where_they_were_asked_for(reason):
    model = small_net()
    if "hooks" in reason:
        model[0].register_forward_pre_hook(lambda *_: None)
    options = {
        "epochs": 1, "optimizer": optim.SGD(list(model.parameters())), "progress": False, **NOT_CAPTURED[reason],
    }  # fmt: skip
    with pytest.warns(UserWarning, match=f"^fit: steps are not captured in a graph: {reason}"):
        fit(model, Loader(some_data(), 4), graph=True, **options)
    fit(model, Loader(some_data(), 4), **options)  # which warns of nothing
    fit(model, Loader(some_data(), 4), graph=False, **options)


def test_numpy_has_no_graphs():
    model = small_net()
    with pytest.warns(UserWarning, match="fit: steps are not captured in a graph: the backend 'numpy' has no graphs"):
        fit(
            model, Loader(some_data(), 4), epochs=1, optimizer=optim.SGD(list(model.parameters())), graph=True,
            progress=False,
        )  # fmt: skip


def test_on_cuda_graphs_are_the_default_and_what_keeps_from_them_is_logged(monkeypatch, caplog):
    fake_cupy.install(monkeypatch)
    with gpucnn.use_backend(KernelBackend(CudaDevice())):
        made = []
        monkeypatch.setattr(
            "gpucnn.train.Compiled", lambda *args: made.append(gpucnn.graph.Compiled(*args)) or made[-1]
        )
        captured, *_ = trained_lively(2)
        assert [len(compiled.report()) for compiled in made] == [1]
        plain, *_ = trained_lively(2, graph=False)
        assert_same_state(state_of(plain), state_of(captured))
        with caplog.at_level("INFO", "gpucnn"):
            trained_lively(1, accumulate=2)
    assert len(made) == 1
    assert "fit: steps are not captured in a graph: accumulate adds up gradients over several calls" in caplog.messages
