"""Layers that find out their lengths from the first input."""

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import nn, optim
from gpucnn.checkpoint import load_model, save_model

LAZY = [name for name in nn.__all__ if name.startswith("Lazy")]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3)
    )


def test_the_first_input_makes_the_layers_that_would_have_been_given(backend: str) -> None:
    gpucnn.manual_seed(3)
    lazy = network().train()
    x = gpucnn.randn(5, 2, 6, 4, backend=backend)
    gpucnn.manual_seed(7)
    first = lazy(x)
    gpucnn.manual_seed(7)
    given = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    ).to(backend)
    np.testing.assert_allclose(first.numpy(), given(x).numpy(), rtol=2e-5, atol=2e-6)  # one of them is fused
    assert repr(lazy) == repr(given)
    assert [type(layer) for layer in lazy] == [type(layer) for layer in given]
    for (name, value), (other, wanted) in zip(lazy.state_dict().items(), given.state_dict().items(), strict=True):
        assert (name, value.backend.name) == (other, backend)
        np.testing.assert_allclose(value.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(lazy(x).numpy(), given(x).numpy())


def test_an_input_that_does_not_fit_leaves_a_layer_lazy() -> None:
    layer = nn.LazyConv2d(4, 3)
    with pytest.raises(ValueError, match=r"add the batch axis with unsqueeze\(0\)"):
        layer(gpucnn.zeros(3, 8, 8))
    assert type(layer) is nn.LazyConv2d
    assert layer(gpucnn.zeros(3, 8, 8).unsqueeze(0)).shape == (1, 4, 6, 6)
    assert layer.in_channels == 3


def test_a_lazy_dense_layer_takes_a_single_row() -> None:
    assert nn.LazyLinear(3)(gpucnn.zeros(4)).shape == (3,)


def test_their_weights_have_the_type_of_the_input_and_float32_for_a_half_one() -> None:
    for dtype, weight in (("float64", "float64"), ("float16", "float32")):
        layer = nn.LazyBatchNorm2d()
        layer(gpucnn.randn(2, 3, 4, 5).to(dtype))
        assert layer.weight.dtype == weight


def test_they_learn_once_the_model_was_called_and_in_training_mode_or_not() -> None:
    hooked: list[Any] = []
    for training in (True, False):
        net = network().train(training)
        hooked.clear()
        net[0].register_forward_hook(lambda module, inputs, output: hooked.append(type(module)))
        net(gpucnn.zeros(2, 1, 4, 4))
        assert [module.training for module in net.modules()] == [training] * 7
        assert hooked == [nn.Conv2d]
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        before = net[5].weight.numpy().copy()
        net(gpucnn.rand(2, 1, 4, 4)).sum().backward()
        optimizer.step()
        assert (net[5].weight.numpy() != before).any()


NEEDS: dict[str, Callable[[nn.Module], Any]] = {
    "parameters": lambda net: list(net.parameters()),
    "state_dict": lambda net: net.state_dict(),
    "load_state_dict": lambda net: net.load_state_dict({}),
    "optimizer": lambda net: optim.Adam(net.parameters()),
    "summary": lambda net: net.summary(1, 4, 4),
    "save_model": lambda net: save_model(net, "net.safetensors"),
}


@pytest.mark.parametrize("what", NEEDS)
def test_what_needs_their_weights_before_the_first_input_says_so(
    what: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="LazyConv2d gets its weights with its first input: call the model once"):
        NEEDS[what](network())
    assert list(tmp_path.iterdir()) == []


def test_a_model_moves_before_its_first_input_and_follows_that() -> None:
    net = network().to("float64")
    assert net(gpucnn.zeros(2, 1, 4, 4)).dtype == np.float32
    assert {str(value.dtype) for value in net.parameters()} == {"float32"}


def test_a_copy_has_weights_of_its_own_and_a_file_has_the_layers(tmp_path: Any) -> None:
    net = network()
    twin = copy.deepcopy(net)
    x = gpucnn.rand(2, 1, 4, 4)
    net(x)
    assert type(twin[0]) is nn.LazyConv2d
    save_model(net, tmp_path / "net.safetensors")
    again, _ = load_model(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(again.eval()(x).numpy(), net.eval()(x).numpy())
    assert type(again[5]) is nn.Linear


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.LazyConv2d(3), TypeError, "LazyConv2d: missing a required argument: 'kernel_size'"),
        (lambda: nn.LazyLinear(3, sides=4), TypeError, "LazyLinear: got an unexpected keyword argument 'sides'"),
        (lambda: nn.LazyConv2d(4, 3, groups=2)(gpucnn.zeros(1, 3, 5, 5)), ValueError, "groups=2 must divide"),
        (lambda: nn.LazyConv2d(3, 2)(gpucnn.zeros(4)), ValueError, r"LazyConv2d: input has no axis 1, .* shape \(4,\)"),
        (lambda: nn.LazyConv1d(3, 2)(gpucnn.zeros(2, 3, dtype="int64")), TypeError, "LazyConv1d: input must be"),
    ],
)
def test_wrong_arguments_are_shown(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", LAZY)
def test_they_take_pytorchs_arguments(name: str, torch: ModuleType) -> None:
    arguments = {"LazyLinear": (3,)}.get(name, (6, 3) if "Conv" in name else ())
    ours, theirs = getattr(nn, name)(*arguments), getattr(torch.nn, name)(*arguments)
    x = np.random.default_rng(0).standard_normal((2, 4, 7, 6) if name.endswith("2d") else (2, 4, 7)).astype(np.float32)
    ours(gpucnn.tensor(x)), theirs(torch.tensor(x))
    assert type(ours).__name__ == type(theirs).__name__ == name.removeprefix("Lazy")
    assert {k: tuple(v.shape) for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }
