"""Compiling ahead: training then launches nothing that was not announced, and the model is left alone."""

import fake_cupy
import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.cuda import CudaDevice
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.warmup import train_once, training_kernels


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, (3, 2)), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d((2, 3)), nn.Conv2d(8, 6, 2), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(6 * 3 * 3, 70), nn.Linear(70, 5),
    )  # fmt: skip


SHAPE = (3, 10, 13)


@pytest.mark.parametrize("batch", [70, 9, 2])
def test_training_by_hand_launches_only_kernels_that_were_announced(batch):
    """Also in its last, short batch, whose products get other tiles than those of whole ones."""
    announced = training_kernels(small_net(), SHAPE, batch_size=70)
    recorder = RecorderDevice()
    with gpucnn.use_backend(KernelBackend(recorder)), np.errstate(all="ignore"):
        model = small_net()
        loss = F.cross_entropy(model(gpucnn.zeros(batch, *SHAPE)), np.zeros(batch, np.int64))
        loss.backward()
        optim.AdamW(model.parameters()).step()
        optim.SGD(model.parameters(), momentum=0.9, nesterov=True).step()
    assert recorder.specialisations()
    assert set(recorder.specialisations()) <= set(announced)


def test_batches_of_another_size_need_other_kernels():
    small, large = (set(training_kernels(small_net(), SHAPE, batch_size=n)) for n in (8, 128))
    assert large - small, "the tiles of a larger product"


def test_the_model_and_its_mode_and_numbers_stay_as_they_are():
    model = small_net().eval()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    training_kernels(model, SHAPE)
    assert not model.training
    assert {value.backend.name for value in model.parameters()} == {gpucnn.get_backend().name}
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_ends_with_a_sigmoid_can_be_warmed_up():
    names = {kernel.name for kernel in training_kernels(nn.models.x_or_not_x(), (1, 5, 5))}
    of_optimisers = {"sgd_update", "adam_update", "rmsprop_update"}
    assert {"activation_backward", "conv2d_max_pool2d_backward", *of_optimisers} <= names


def test_what_is_prepared_on_cuda_is_all_that_training_compiles(monkeypatch):
    cupy = fake_cupy.install(monkeypatch)
    monkeypatch.setattr(cupy, "compute", lambda *args: None, raising=False)
    monkeypatch.setattr(CudaDevice, "_table", lambda self, arrays: np.zeros(len(arrays), np.uint64))
    device = CudaDevice()
    kernels = training_kernels(small_net(), SHAPE, batch_size=16)
    assert list(device.prepare(kernels)) == kernels
    compiled = len(cupy.modules)
    assert compiled == len(kernels)
    with np.errstate(all="ignore"):
        train_once(small_net().to(KernelBackend(device)), SHAPE, 16)
    assert cupy.launches
    assert len(cupy.modules) == compiled


def test_images_that_the_model_does_not_take_are_its_own_error():
    with pytest.raises(ValueError, match=r"conv2d.*3"):
        training_kernels(small_net(), (1, 10, 13))


def test_a_model_without_parameters_has_nothing_to_train():
    with pytest.raises(ValueError, match="the model has no parameters, so there is nothing to train"):
        training_kernels(nn.Flatten(), SHAPE)
