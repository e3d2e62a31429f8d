"""Modules: what they find in themselves, their state, modes, hooks, summaries and copies."""

import copy
import gc
import weakref
from collections import OrderedDict
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.backends.numpy_backend import NumpyBackend


class Abacus(NumpyBackend):
    name = "abacus"


class Residual(nn.Module):
    """Own parameters, children, a buffer, a module without parameters, an absent one and plain attributes."""

    def __init__(self, channels: int) -> None:
        self.scale = nn.Parameter(gpucnn.ones(channels, 1, 1))
        self.conv1 = nn.Conv2d(channels, channels, (3, 5), padding=(1, 2), bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.downsample = None
        self.seen = nn.Buffer(gpucnn.zeros(2))
        self.name, self.sizes = "block", [1, 2]

    def forward(self, input: Tensor, times: float = 1.0) -> Tensor:
        return self.act(input + self.bn1(self.conv1(input)) * self.scale * times)


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


# -- what it contains ----------------------------------------------------------------------------------


def test_parameters_are_found_by_name_in_the_order_of_assignment_own_ones_first() -> None:
    model = nn.Sequential(Residual(2), nn.Sequential(nn.Linear(3, 4)))
    names = ["0.scale", "0.conv1.weight", "0.bn1.weight", "0.bn1.bias", "1.0.weight", "1.0.bias"]
    assert [name for name, _ in model.named_parameters()] == names
    assert [p.shape for p in model.parameters()] == [(2, 1, 1), (2, 2, 3, 5), (2,), (2,), (4, 3), (4,)]
    buffers = ["0.seen", "0.bn1.running_mean", "0.bn1.running_var", "0.bn1.num_batches_tracked"]
    assert [name for name, _ in model.named_buffers()] == buffers
    assert len(list(model.buffers())) == 4
    modules = ["", "0", "0.conv1", "0.bn1", "0.act", "1", "1.0"]
    assert [name for name, _ in model.named_modules()] == modules
    assert [name for name, _ in model[0].named_children()] == ["conv1", "bn1", "act"]
    assert list(model.children()) == [model[0], model[1]]


def test_names_and_shapes_are_those_of_the_same_module_in_pytorch(torch: ModuleType) -> None:
    class TorchResidual(torch.nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(channels, 1, 1))
            self.conv1 = torch.nn.Conv2d(channels, channels, (3, 5), padding=(1, 2), bias=False)
            self.bn1 = torch.nn.BatchNorm2d(channels)
            self.act = torch.nn.ReLU()
            self.downsample = None
            self.register_buffer("seen", torch.zeros(2))

    t = torch.nn
    theirs = t.Sequential(
        TorchResidual(3), t.Conv2d(3, 4, 3, groups=1), t.BatchNorm2d(4, affine=False), t.PReLU(4), t.GroupNorm(2, 4),
        t.BatchNorm2d(4, track_running_stats=False), t.ConvTranspose2d(4, 6, 3, groups=2), t.Flatten(),
        t.Sequential(t.Linear(5, 6, bias=False), t.LayerNorm(6), t.BatchNorm1d(6)),
        t.InstanceNorm2d(6), t.InstanceNorm2d(6, affine=True, track_running_stats=True),
    )  # fmt: skip
    ours = nn.Sequential(
        Residual(3), nn.Conv2d(3, 4, 3, groups=1), nn.BatchNorm2d(4, affine=False), nn.PReLU(4), nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4, track_running_stats=False), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Flatten(),
        nn.Sequential(nn.Linear(5, 6, bias=False), nn.LayerNorm(6), nn.BatchNorm1d(6)),
        nn.InstanceNorm2d(6), nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    )  # fmt: skip
    expected = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    state = ours.state_dict()
    assert {name: value.shape for name, value in state.items()} == expected
    assert list(state) == list(expected)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    for name, value in state.items():
        assert str(theirs.state_dict()[name].dtype) == f"torch.{value.dtype}"


def test_weights_of_pytorch_give_pytorchs_outputs(torch: ModuleType) -> None:
    t = torch.nn
    theirs = t.Sequential(
        t.Conv2d(1, 6, 5, padding=2), t.ReLU(), t.MaxPool2d(2), t.Conv2d(6, 16, 5), t.ReLU(), t.MaxPool2d(2),
        t.Flatten(), t.Linear(400, 120), t.ReLU(), t.Linear(120, 84), t.ReLU(), t.Linear(84, 10),
    ).double()  # fmt: skip
    ours = lenet().to("float64")
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((2, 1, 28, 28))
    expected = theirs(torch.tensor(x)).detach().numpy()
    # 61,706 parameters' worth of float64 roundings at the most, on outputs near 0.1
    np.testing.assert_allclose(ours(gpucnn.tensor(x)).numpy(), expected, rtol=0, atol=61_706 * 2.0**-53)


def test_shared_module_and_shared_parameter_are_found_once() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(3, 3, bias=False))
    model[3].weight = shared.weight
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert [name for name, _ in model.named_modules()] == ["", "0", "1", "3"]
    model(gpucnn.ones(1, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_absent_parameter_is_neither_listed_nor_saved() -> None:
    assert list(nn.Conv2d(1, 2, 3, bias=False).state_dict()) == ["weight"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "weight",
            lambda: gpucnn.ones(2, 3),
            r"Linear.weight is a Parameter and can't become a Tensor.*copy_\(tensor\)",
        ),
        ("weight", lambda: np.ones((2, 3)), r"weight is a Parameter and can't become a ndarray; assign nn\.Parameter"),
        ("bias", lambda: 0.0, "bias is a Parameter and can't become a float"),
        ("count", lambda: gpucnn.ones(1), r"count is a Buffer and can't become a Tensor; assign nn\.Buffer"),
    ],
)
def test_parameter_or_buffer_replaced_by_something_else_is_an_error(name: str, value: Any, message: str) -> None:
    layer = nn.Linear(3, 2)
    layer.count = nn.Buffer(gpucnn.zeros(1))
    before = getattr(layer, name)
    with pytest.raises(TypeError, match=message):
        setattr(layer, name, value())
    assert getattr(layer, name) is before


def test_parameter_may_be_replaced_by_a_parameter_or_taken_away() -> None:
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(gpucnn.ones(2, 3))
    layer.bias = None
    assert layer(gpucnn.ones(1, 3)).tolist() == [[3, 3]]
    assert list(layer.state_dict()) == ["weight"]


def test_weight_set_by_hand_in_place_without_the_tape() -> None:
    layer = nn.Conv2d(1, 1, (1, 3), bias=False)
    with gpucnn.no_grad():
        layer.weight[0, 0, 0] = gpucnn.tensor([-1.0, 2, -1])
    assert layer(gpucnn.tensor([[[[0.0, 1, 0]]]])).tolist() == [[[[2.0]]]]
    assert layer.weight.requires_grad


# -- state ---------------------------------------------------------------------------------------------


def test_state_goes_from_one_model_to_another() -> None:
    one, other = Residual(2), Residual(2)
    one(gpucnn.randn(2, 2, 4, 3))
    other.load_state_dict(one.state_dict())
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)
    x = gpucnn.randn(2, 2, 4, 3)
    assert one.eval()(x).tolist() == other.eval()(x).tolist()


def test_loaded_values_are_copies_in_the_modules_dtype_and_layout() -> None:
    layer = nn.Conv2d(3, 2, (2, 4))
    parameters = list(layer.parameters())
    state = {"weight": np.random.default_rng(0).standard_normal((2, 3, 2, 4)), "bias": np.ones(2)}
    layer.load_state_dict(state)
    state["bias"][:] = 5
    assert layer.bias is not None
    assert layer.bias.tolist() == [1, 1]
    assert [id(p) for p in layer.parameters()] == [id(p) for p in parameters]
    assert layer.weight.dtype == np.float32
    assert layer.weight.array.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(layer.weight.numpy(), state["weight"].astype(np.float32))


def test_state_that_does_not_fit_names_every_problem_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: value.tolist() for name, value in model.state_dict().items()}
    wrong = {name: value.numpy() + 1 for name, value in model.state_dict().items() if name != "1.running_var"}
    wrong["0.weight"] = np.zeros((3, 2))
    wrong["head.bias"] = np.zeros(7)
    with pytest.raises(ValueError, match="does not fit Sequential") as caught:
        model.load_state_dict(wrong)
    for part in (
        "missing: 1.running_var;",
        "not expected: head.bias;",
        "0.weight has shape (3, 2), the module's is (2, 3)",
    ):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"0\.weight has shape") as caught:
        model.load_state_dict(wrong, strict=False)
    assert "missing" not in str(caught.value)
    assert {name: value.tolist() for name, value in model.state_dict().items()} == before


def test_loose_loading_takes_what_there_is() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    kept = model[1].weight.item()
    found = model.load_state_dict({"0.weight": np.full((1, 1), 7.0), "other": np.zeros(3)}, strict=False)
    assert (model[0].weight.item(), model[1].weight.item()) == (7, kept)
    assert found.missing_keys == ["0.bias", "1.weight", "1.bias"]
    assert found.unexpected_keys == ["other"]
    assert model.load_state_dict(model.state_dict()) == ([], [])


def test_loading_into_a_parameter_that_can_not_be_written_changes_no_other() -> None:
    values = np.ones(2, np.float32)
    values.flags.writeable = False
    layer = nn.Linear(1, 2)
    layer.bias = nn.Parameter(gpucnn.from_numpy(values))
    before = layer.weight.tolist()
    with pytest.raises(ValueError, match=r"read-only array; change a clone\(\)"):
        layer.load_state_dict({"weight": np.full((2, 1), 7.0), "bias": np.zeros(2)})
    assert layer.weight.tolist() == before


def test_mode_reaches_every_module_below() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(Residual(2)))
    assert model.eval() is model
    assert not any(m.training for m in model.modules())
    assert model.train() is model
    assert all(m.training for m in model.modules())
    model[1].eval()
    assert [m.training for m in model.modules()] == [True, True] + [False] * 5


def test_a_module_may_refuse_a_mode_for_itself_and_what_is_below() -> None:
    class Frozen(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> nn.BatchNorm2d:
            return super().train(False)

    model = nn.Sequential(nn.Conv2d(1, 2, 1), Frozen(2)).train()
    assert [m.training for m in model.modules()] == [True, True, False]


def test_conversion_reaches_floating_tensors_of_the_whole_tree() -> None:
    model = nn.Sequential(Residual(2), nn.Linear(3, 4))
    model[1].weight.requires_grad = False
    ids = [id(p) for p in model.parameters()]
    model(gpucnn.randn(1, 2, 4, 3)).sum().backward()
    assert model.to("float64") is model
    assert {str(t.dtype) for t in model.state_dict().values()} == {"float64", "int64"}
    assert model[0].bn1.num_batches_tracked.item() == 1
    assert [id(p) for p in model.parameters()] == ids
    assert [p.requires_grad for p in model.parameters()] == [True] * 4 + [False, True]
    assert all(p.grad is None for p in model.parameters())
    assert model(gpucnn.randn(1, 2, 4, 3).double()).dtype == np.float64
    abacus = Abacus()
    model.to(abacus)
    assert {t.backend for t in model.state_dict().values()} == {abacus}


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("int64", TypeError, "float32 or float64, not int64"),
        ("complex64", TypeError, "complex64"),
        ("abacus", ValueError, "'abacus'"),
    ],
)
def test_conversion_that_cannot_be_changes_nothing(target: str, error: type[Exception], message: str) -> None:
    model = Residual(2)
    with pytest.raises(error, match=message):
        model.to(target)
    assert {str(p.dtype) for p in model.parameters()} == {"float32"}
    assert all(p.requires_grad for p in model.parameters())


def test_freezing_and_forgetting_gradients() -> None:
    model = Residual(2)
    model(gpucnn.randn(1, 2, 3, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.numpy().any() for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert model.requires_grad_(False) is model
    assert not model(gpucnn.randn(1, 2, 3, 4)).requires_grad
    model.requires_grad_()
    assert model(gpucnn.randn(1, 2, 3, 4)).requires_grad


def test_function_is_applied_to_every_module_once_children_first() -> None:
    shared = nn.ReLU()
    model, seen = nn.Sequential(shared, nn.Sequential(shared, nn.Tanh())), []
    assert model.apply(seen.append) is model
    assert list(map(id, seen)) == list(map(id, [shared, model[1][1], model[1], model]))


# -- calls and hooks -----------------------------------------------------------------------------------


def test_module_without_forward_says_so() -> None:
    class Unfinished(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match=r"Unfinished has no forward\(\); define it"):
        Unfinished()(1)


def test_arguments_may_be_given_by_name() -> None:
    model, x = Residual(2).eval(), gpucnn.rand(1, 2, 3, 4)
    assert model(input=x, times=0.0).tolist() == model(x, 0.0).tolist() == x.tolist()
    assert nn.MSELoss()(input=x, target=x).item() == 0


def test_hooks_see_inputs_and_outputs_until_they_are_removed() -> None:
    layer, seen = nn.Linear(3, 2), []
    x = gpucnn.ones(1, 3)
    first = layer.register_forward_hook(lambda module, inputs, output: seen.append(("first", module, inputs, output)))
    second = layer.register_forward_hook(lambda module, inputs, output: seen.append(("second",)))
    y = layer(x)
    assert [entry[0] for entry in seen] == ["first", "second"]
    _, module, inputs, output = seen[0]
    assert module is layer
    assert inputs == (x,)
    assert output is y
    first.remove()
    first.remove()
    layer(x)
    assert [entry[0] for entry in seen[2:]] == ["second"]
    second.remove()
    layer(x)
    assert len(seen) == 3


def test_hook_may_remove_itself_while_it_runs() -> None:
    layer, seen = nn.ReLU(), []

    def once(*arguments: Any) -> None:
        seen.append("once")
        handle.remove()

    handle = layer.register_forward_hook(once)
    layer.register_forward_hook(lambda *arguments: seen.append("always"))
    layer(gpucnn.ones(1))
    layer(gpucnn.ones(1))
    assert seen == ["once", "always", "always"]


def test_a_hook_before_forward_sees_the_inputs_and_may_put_others_in_their_place() -> None:
    layer, seen = nn.ReLU(), []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs)))
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    last = layer.register_forward_pre_hook(lambda module, inputs: inputs[0] + 1)
    layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].tolist(), output.tolist())))
    x = gpucnn.tensor([3.0])
    assert layer(x).tolist() == [7]
    last.remove()
    assert layer(x).tolist() == [6]
    assert seen == [(layer, (x,)), ([7], [7]), (layer, (x,)), ([6], [6])]


def test_a_hook_before_forward_leaves_arguments_by_name_alone() -> None:
    model, x = Residual(2).eval(), gpucnn.rand(1, 2, 3, 4)
    model.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2)
    assert model(x, times=0.0).tolist() == (x * 2).tolist()


def test_a_hook_behind_backward_sees_the_gradients_of_inputs_and_outputs() -> None:
    layer, seen = nn.Linear(3, 2), []
    layer.register_full_backward_hook(lambda *told: seen.append(told))
    x = gpucnn.rand(4, 3, requires_grad=True)
    y = layer(x * 1)
    assert seen == []
    u = gpucnn.rand(4, 2)
    y.backward(u)
    ((module, (of_input,), (of_output,)),) = seen
    assert module is layer
    assert of_output.tolist() == u.tolist()
    assert x.grad is not None
    assert of_input.tolist() == x.grad.tolist() == (u @ layer.weight.detach()).tolist()


def test_what_no_gradient_comes_to_is_none_or_zeros_as_in_pytorch(torch: ModuleType) -> None:
    def told(base: Any, tensor: Any, ones: Any) -> list[Any]:
        class Several(base):  # type: ignore[misc]
            def forward(self, a: Any, b: Any, times: float = 1) -> Any:
                return a * 2, b * 3 * times, ones(2)

        def plain(gradients: Any) -> list[Any]:
            return [None if g is None else g.tolist() for g in gradients]

        model, seen = Several(), list[Any]()
        model.register_full_backward_hook(lambda module, of_in, of_out: seen.append((plain(of_in), plain(of_out))))
        a, b = tensor([1.0, 2.0], requires_grad=True), tensor([3.0, 4.0], requires_grad=True)
        first, second, _ = model(a, b, 5.0)
        first.sum().backward(retain_graph=True)
        second.sum().backward(retain_graph=True)
        (first.sum() + second.sum()).backward()
        seen.append(plain([a.grad, b.grad]))
        model(a, a, times=7.0)[1].sum().backward()
        return [*seen, *plain([a.grad, b.grad])]

    assert told(nn.Module, gpucnn.tensor, gpucnn.ones) == told(torch.nn.Module, torch.tensor, torch.ones)


def test_an_input_that_requires_no_gradient_has_none_also_beside_one_that_does() -> None:
    """PyTorch makes zeros for it there."""
    model, seen = nn.MSELoss(), []
    model.register_full_backward_hook(lambda module, of_in, of_out: seen.append([g and g.item() for g in of_in]))
    model(gpucnn.tensor([5.0], requires_grad=True), gpucnn.tensor([3.0])).backward()
    assert seen == [[4, None]]


def test_a_first_layers_hook_is_told_of_no_gradient_for_the_images_and_sees_that_of_its_output() -> None:
    model, seen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()), []
    model[0].register_full_backward_hook(lambda module, of_in, of_out: seen.append((of_in, of_out[0].shape)))
    model(gpucnn.rand(2, 1, 4, 5)).sum().backward()
    assert seen == [((None,), (2, 2, 2, 3))]
    with gpucnn.no_grad():
        assert not model(gpucnn.rand(2, 1, 4, 5)).requires_grad
    assert len(seen) == 1


def test_a_hook_behind_backward_changes_no_bit_of_any_gradient(backend: str) -> None:
    gpucnn.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten()).to(
        backend
    )
    x = gpucnn.rand(2, 2, 5, 4, backend=backend)

    def gradients() -> list[bytes]:
        model.zero_grad()
        leaf = x.detach().requires_grad_()
        model(leaf).sum().backward()
        return [p.grad.numpy().tobytes() for p in (leaf, *model.parameters()) if p.grad is not None]

    plain, seen = gradients(), []
    handle = model.register_full_backward_hook(lambda *told: seen.append(told))
    assert gradients() == plain
    handle.remove()
    gradients()
    assert len(seen) == 1


def test_a_gradient_that_comes_by_no_output_is_no_backward_pass_of_the_module(torch: ModuleType) -> None:
    """Of what forward() has put aside, as in PyTorch."""

    def told(base: Any, tensor: Any) -> list[Any]:
        class PutsAside(base):  # type: ignore[misc]
            def forward(self, input: Any) -> Any:
                self.aside = input * 3
                return input * 2

        model, seen = PutsAside(), list[Any]()
        model.register_full_backward_hook(lambda module, of_in, of_out: seen.append(of_in[0].tolist()))
        x = tensor([1.0], requires_grad=True)
        y = model(x)
        model.aside.sum().backward(retain_graph=True)
        y.sum().backward(retain_graph=True)
        model.aside.sum().backward(retain_graph=True)
        (y + model.aside).sum().backward()
        return [seen, x.grad.tolist()]

    assert told(nn.Module, gpucnn.tensor) == told(torch.nn.Module, torch.tensor) == [[[2], [5]], [13]]


def test_a_hook_that_returns_gradients_is_an_error_and_no_gradient_changes() -> None:
    layer = nn.Linear(2, 1)
    layer.register_full_backward_hook(lambda module, of_in, of_out: of_in)
    y = layer(gpucnn.ones(1, 2, requires_grad=True)).sum()
    with pytest.raises(TypeError, match=r"hook of Linear can't change gradients, it must return None, got \(tensor"):
        y.backward()
    assert layer.weight.grad is None


def test_a_hook_behind_backward_of_a_module_that_returns_a_list_is_refused() -> None:
    class Listing(nn.Module):
        def forward(self, input: Tensor) -> list[Tensor]:
            return [input]

    module = Listing()
    module.register_full_backward_hook(lambda *told: None)
    with pytest.raises(
        TypeError, match=r"forward\(\) of Listing must return a tensor or a tuple .*, got list; hook the"
    ):
        module(gpucnn.ones(1))


def test_a_hook_behind_backward_keeps_named_results_and_the_warning_of_probabilities() -> None:
    class Both(nn.Module):
        def forward(self, input: Tensor) -> Any:
            return input.max(1)

    both = Both()
    both.register_full_backward_hook(lambda *told: None)
    found = both(gpucnn.tensor([[1.0, 3.0]], requires_grad=True))
    assert (found.values.tolist(), found.indices.tolist()) == ([3], [1])
    softmax = nn.Softmax(1)
    softmax.register_full_backward_hook(lambda *told: None)
    with pytest.warns(UserWarning, match="cross_entropy takes logits"):
        F.cross_entropy(softmax(gpucnn.rand(2, 3, requires_grad=True)), [0, 1])


def test_hooks_behind_backward_hold_no_tensor_once_it_is_over() -> None:
    layer = nn.Linear(3, 3)
    layer.register_full_backward_hook(lambda *told: None)
    x = gpucnn.rand(2, 3, requires_grad=True)
    gc.disable()  # so that only what is in no cycle goes
    try:
        between = x * 2
        last = weakref.ref(between)
        y = layer(between)
        del between
        assert last() is None
        node = weakref.ref(y)
        y.sum().backward()
        del y
        assert node() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_what_is_no_function_is_no_hook(kind: str) -> None:
    with pytest.raises(TypeError, match=rf"register_{kind}: hook must be callable, got 3"):
        getattr(nn.ReLU(), f"register_{kind}")(3)


# -- summary -------------------------------------------------------------------------------------------


def test_summary_of_lenet_counts_61706_parameters_and_416520_multiply_adds() -> None:
    """Each multiply-add is a weight met at an output place: 28²·6·25 + 10²·16·150 + 400·120 + 120·84 + 84·10."""
    summary = lenet().summary(1, 28, 28)
    assert summary.parameters == 6 * 26 + 16 * 151 + 120 * 401 + 84 * 121 + 10 * 85 == 61_706
    assert summary.multiply_adds == 784 * 6 * 25 + 100 * 16 * 150 + 48_000 + 10_080 + 840 == 416_520
    shapes = [(6, 28, 28), (6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 10, 10), (16, 5, 5), (400,)]
    assert [row.output_shape for row in summary.rows][:7] == shapes
    rows = [(row.name, row.kind, row.parameters, row.multiply_adds) for row in summary.rows]
    assert rows[3] == ("3", "Conv2d", 2416, 240_000)
    assert rows[6] == ("6", "Flatten", 0, 0)


def test_summary_is_a_table_to_read() -> None:
    lines = str(lenet().summary(1, 28, 28)).splitlines()
    assert lines[0] == "input 1×28×28"
    assert lines[1].split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    assert lines[3].split() == ["0", "Conv2d", "6×28×28", "156", "117,600"]
    assert lines[-1].split() == ["total", "Sequential", "61,706", "416,520"]
    ends = {len(line) for line in [lines[1], *lines[3:-2], lines[-1]]}
    assert len(ends) == 1, "the columns are not aligned"


def test_summary_counts_groups_strides_and_transposed_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), groups=2), nn.ConvTranspose2d(6, 3, 2, stride=2, groups=3)
    )
    rows = model.summary(4, 7, 5).rows
    assert rows[0].output_shape == (6, 3, 4)
    assert rows[0].multiply_adds == 6 * 3 * 4 * (4 // 2) * 3 * 2
    assert rows[1].output_shape == (3, 6, 8)
    assert rows[1].multiply_adds == 6 * 3 * 4 * (3 // 3) * 2 * 2  # each input place meets its group's filters once
    assert [row.parameters for row in rows] == [6 * 2 * 6 + 6, 6 * 1 * 4 + 3]


def test_summary_counts_a_layer_that_runs_twice_once_in_parameters_and_twice_in_work() -> None:
    shared = nn.Linear(3, 3)
    summary = nn.Sequential(shared, nn.ReLU(), shared).summary(3)
    assert (summary.parameters, summary.multiply_adds) == (12, 18)
    assert [row.name for row in summary.rows] == ["0", "1"]


def test_summary_counts_parameters_beside_children_and_shared_ones_once() -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert tied.summary(3).parameters == 9 + 3 + 3
    residual = Residual(2)
    summary = residual.summary(2, 4, 5)
    assert summary.parameters == sum(p.numel() for p in residual.parameters()) == 2 + 60 + 4
    assert (
        summary.rows[-1].name, summary.rows[-1].kind, summary.rows[-1].output_shape, summary.rows[-1].parameters,
        summary.rows[-1].multiply_adds,
    ) == ("Residual", "Residual", (2, 4, 5), 2, 0)  # fmt: skip


def test_summary_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Sequential(nn.ReLU()))
    model[3].eval()
    seen: list[str] = []
    model[0].register_forward_hook(lambda *arguments: seen.append("mine"))
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    model.to("float64").summary(1, 5, 4)
    assert [m.training for m in model.modules()] == [True, True, True, True, False, False]
    assert {name: value.tolist() for name, value in model.state_dict().items()} == state
    seen.clear()
    model(gpucnn.ones(1, 1, 5, 4).double())
    assert seen == ["mine"]
    with pytest.raises(ValueError, match="channels"):
        model.summary(3, 5, 4)
    assert [m.training for m in model.modules()] == [True, True, True, True, False, False]
    assert not vars(model[1]).get("_hooks")


# -- repr, Sequential, copies --------------------------------------------------------------------------


def test_repr_shows_the_arguments_and_the_tree() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=(3, 5), padding="same"), nn.Sequential(nn.Dropout(p=0.2)), nn.ReLU()
    )
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Conv2d(1, 6, kernel_size=(3, 5), padding='same')\n"
        "  (1): Sequential(\n"
        "    (0): Dropout(p=0.2)\n"
        "  )\n"
        "  (2): ReLU()\n"
        ")"
    )


def test_sequential_is_indexed_sliced_iterated_and_grows() -> None:
    layers = [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Flatten()]
    model = nn.Sequential(*layers)
    assert len(model) == 4
    assert list(model) == layers
    assert model[1] is layers[1]
    assert model[-1] is layers[3]
    assert isinstance(model[1:3], nn.Sequential)
    assert list(model[1:3]) == layers[1:3]
    assert list(model[::-2]) == [layers[3], layers[1]]
    more = nn.Identity()
    assert model.append(more) is model
    assert model[4] is more
    assert [name for name, _ in model.named_children()] == ["0", "1", "2", "3", "4"]
    with pytest.raises(IndexError):
        model[5]
    with pytest.raises(TypeError, match="Sequential holds modules, got int"):
        nn.Sequential(nn.ReLU(), 3)  # type: ignore[arg-type]
    x = gpucnn.ones(2)
    assert nn.Sequential()(x) is x


def test_sequential_takes_the_names_of_its_modules_from_a_mapping() -> None:
    model = nn.Sequential(OrderedDict(linear=nn.Linear(2, 3), act=nn.ReLU()))
    assert list(model.state_dict()) == ["linear.weight", "linear.bias"]
    assert [name for name, _ in model.append(nn.Tanh()).named_children()] == ["linear", "act", "2"]
    assert model(gpucnn.ones(1, 2)).shape == (1, 3)
    for name in ("", "a.b", "forward", 3):
        with pytest.raises(ValueError, match=rf"a module can't be called {name!r}; choose a text"):
            nn.Sequential({name: nn.ReLU()})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="Sequential holds modules, got int"):
        nn.Sequential({"linear": 3})  # type: ignore[dict-item]


def test_slice_shares_its_layers_with_the_whole() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    model[:2].requires_grad_(False)
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 2


def test_deep_copy_has_its_own_weights_modes_and_sharing() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.BatchNorm1d(2), shared, nn.Dropout())
    model[0].weight.requires_grad = False
    model[3].eval()
    model(gpucnn.randn(4, 2)).sum().backward()
    twin = copy.deepcopy(model)
    assert twin[0] is twin[2]
    assert repr(twin) == repr(model)
    assert [p.requires_grad for p in twin.parameters()] == [False, True, True, True]
    assert [m.training for m in twin.modules()] == [m.training for m in model.modules()]
    assert all(p.grad is None for p in twin.parameters())
    x = gpucnn.randn(4, 2)
    assert twin.eval()(x).tolist() == model.eval()(x).tolist()
    before = [p.tolist() for p in model.parameters()]
    for parameter in twin.parameters():
        parameter.array[...] = 9
    assert [p.tolist() for p in model.parameters()] == before
    assert type(twin[0].weight) is nn.Parameter


def test_layers_may_be_called_without_a_constructor_of_the_base_class() -> None:
    """`super().__init__()`, which PyTorch needs, is allowed and does nothing."""

    class WithSuper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, input: Tensor) -> Tensor:
            return F.relu(self.layer(input))

    assert len(list(WithSuper().parameters())) == 2


def test_a_state_may_name_what_is_shared_by_each_of_its_names(torch: Any) -> None:
    """As PyTorch's does."""

    def tied(layers: Any) -> Any:
        model = layers.Sequential(layers.Linear(3, 3), layers.Linear(3, 3, bias=False), layers.Linear(3, 3))
        model[1].weight = model[0].weight
        model.append(model[2])
        return model

    torch.manual_seed(0)
    theirs, ours = tied(torch.nn), tied(nn)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert list(state) == ["0.weight", "0.bias", "1.weight", "2.weight", "2.bias", "3.weight", "3.bias"]
    assert ours.load_state_dict(state) == ([], [])
    x = np.random.default_rng(0).standard_normal((2, 3)).astype("f")
    np.testing.assert_allclose(ours(gpucnn.tensor(x)).numpy(), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-5)
    again = tied(nn)
    del state["0.weight"], state["2.bias"]  # under the other name they are there still
    assert again.load_state_dict(state) == ([], [])
    assert again[0].weight.tolist() == ours[0].weight.tolist()
    del state["1.weight"]
    with pytest.raises(ValueError, match=r"missing: 0\.weight$"):
        again.load_state_dict(state)


def test_a_summary_takes_the_first_tensor_of_what_a_layer_returns() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            self.weight = nn.Parameter(gpucnn.ones(2))

        def forward(self, input: Tensor) -> Any:
            return {"out": [input * 2, 3], "more": input}

    class Nothing(nn.Module):
        def forward(self, input: Any) -> None:
            return None

    model = nn.Sequential(Two(), Nothing())
    assert [row.output_shape for row in model.summary(1, 4, 5).rows] == [(1, 4, 5), ()]


def test_a_layer_whose_forward_was_replaced_is_not_fused() -> None:
    conv, relu, norm = nn.Conv2d(1, 1, 1), nn.ReLU(), nn.BatchNorm2d(1)
    x = gpucnn.tensor(np.random.default_rng(0).standard_normal((1, 1, 3, 4)).astype("f"))
    relu.forward = lambda input: input * 2  # type: ignore[method-assign]
    assert nn.Sequential(conv, relu)(x).tolist() == (conv(x) * 2).tolist()
    norm.forward = lambda input: input + 1  # type: ignore[method-assign]
    with gpucnn.no_grad():
        assert nn.Sequential(conv, norm).eval()(x).tolist() == (conv(x) + 1).tolist()


def test_a_mode_is_true_or_false() -> None:
    net = nn.Sequential(nn.Dropout())
    with pytest.raises(ValueError, match="train: mode must be True or False, got 'x'"):
        net.train("x")  # type: ignore[arg-type]
    assert net.train(np.False_)[0].training is False  # type: ignore[arg-type]


def test_a_module_is_converted_by_the_names_of_the_types() -> None:
    net = nn.Linear(2, 3)
    assert net.double() is net
    assert net.weight.dtype == np.float64
    assert net.float().weight.dtype == np.float32


def test_what_is_registered_is_an_attribute_and_part_of_the_state() -> None:
    net = nn.Sequential()
    net.register_buffer("mean", gpucnn.ones(2))
    net.register_parameter("slope", nn.Parameter(gpucnn.zeros(3)))
    net.register_parameter("bias", None)
    net.add_module("inner", nn.Linear(2, 3))
    assert isinstance(net.mean, nn.Buffer)
    assert net.bias is None
    assert sorted(net.state_dict()) == ["inner.bias", "inner.weight", "mean", "slope"]
    assert [name for name, _ in net.named_parameters()] == ["slope", "inner.weight", "inner.bias"]
    net.register_buffer("mean", gpucnn.zeros(4))
    assert net.mean.shape == (4,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: m.register_buffer("forward", gpucnn.ones(2)),
            ValueError,
            "attribute of a Sequential, got 'forward'",
        ),
        (lambda m: m.register_buffer("a.b", gpucnn.ones(2)), ValueError, "a text without a dot .* got 'a.b'"),
        (lambda m: m.register_buffer("a", 3), TypeError, "Buffer: data must be a gpucnn.Tensor"),
        (
            lambda m: m.register_buffer("a", gpucnn.ones(2), persistent=False),
            ValueError,
            "plain attribute: self.a = ten",
        ),
        (lambda m: m.register_buffer("a", None), ValueError, "a must be a tensor; for one that is not there yet"),
        (
            lambda m: m.register_buffer("inner", gpucnn.ones(2)),
            ValueError,
            "inner is a Linear of this Sequential",
        ),
        (lambda m: m.get_submodule(3), TypeError, "get_submodule: target must be a dotted name, got 3"),
        (lambda m: m.register_parameter("a", gpucnn.ones(2)), TypeError, "a must be a Parameter, got Tensor"),
        (lambda m: m.add_module("a", len), TypeError, "a must be a Module"),
    ],
)
def test_what_can_not_be_registered_is_refused(call: Any, error: type[Exception], message: str) -> None:
    holder = nn.Sequential()
    holder.add_module("inner", nn.Linear(2, 3))
    with pytest.raises(error, match=message):
        call(holder)


def test_a_dotted_name_finds_a_module_a_parameter_and_a_buffer() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    assert net.get_submodule("0.1") is net[0][1]
    assert net.get_submodule("") is net
    assert net.get_parameter("0.0.weight") is net[0][0].weight
    assert net.get_buffer("0.1.running_var") is net[0][1].running_var
    for call, message in (
        (lambda: net.get_submodule("0.7"), "there is no Module '0.7' in Sequential; named_modules"),
        (lambda: net.get_parameter("0.1.running_var"), "there is no Parameter .* named_parameters"),
        (lambda: net.get_buffer("0.0.weight.x"), "there is no Buffer .* named_buffers"),
    ):
        with pytest.raises(AttributeError, match=message):
            call()


def test_names_of_pytorch_that_are_not_there_name_what_is() -> None:
    for name, message in (
        ("half", "object has no attribute 'half'; .*autocast"), ("compile", r"gpucnn\.compile\(step\)")
    ):  # fmt: skip
        with pytest.raises(AttributeError, match=message):
            getattr(nn.Linear(2, 3), name)
    for name, message in (
        ("device", r"Tensor\.backend .* \.to\('cuda'\)"),
        ("register_hook", "retain_grad"),
        ("x", "'x'$"),
    ):
        with pytest.raises(AttributeError, match=message):
            getattr(gpucnn.ones(2), name)


def test_cpu_is_the_numpy_backend_and_cuda_the_one_of_that_name(backend: str) -> None:
    net = nn.Linear(2, 3).to(backend)
    x = gpucnn.ones(1, 2, backend=backend)
    assert x.cpu().backend.name == net.cpu().weight.backend.name == "numpy"
    if "cuda" not in gpucnn.available_backends():
        for thing in (x, net):
            with pytest.raises(RuntimeError, match="cuda"):
                thing.cuda()
