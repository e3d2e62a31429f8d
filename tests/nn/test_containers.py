"""Containers: Sequential fuses neighbours, and nobody can tell but by the clock; all are what PyTorch's are."""

from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numerics import assert_within

import gpucnn
from gpucnn import Tensor, nn
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.recorder import RecorderDevice
from gpucnn.nn.fusion import conv_norm, fused, pools_along


def bits(tensor: Tensor) -> bytes:
    return np.ascontiguousarray(tensor.numpy()).tobytes()


CHAINS: dict[str, Callable[[], list[nn.Module]]] = {
    "conv relu": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU()],
    "conv relu pool": lambda: [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
    "conv pool": lambda: [nn.Conv2d(3, 4, 3), nn.MaxPool2d((2, 3), padding=(1, 0), ceil_mode=True)],
    "conv pool relu, dilated": lambda: [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, 3, dilation=2), nn.ReLU()],
    "conv of many channels relu pool": lambda: [nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.MaxPool2d(2)],
    "conv relu pool, overlapping": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 1, padding=1), nn.ReLU()],
    "conv norm relu": lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()],
    "conv norm relu pool": lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)],
    "norm relu pool": lambda: [nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()],
    "conv relu min": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MinPool2d(2)],
    "conv conv relu relu": lambda: [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 2), nn.ReLU(), nn.ReLU()],
    "relu pool pool relu": lambda: [nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()],
}


# The convolution pools along, in NumPy also that of 6 channels.
POOLED = ("conv relu pool", "conv pool", "conv pool relu, dilated", "conv of many channels relu pool")


@pytest.mark.parametrize("chain", CHAINS)
def test_a_fused_chain_has_the_bits_of_its_modules_one_by_one(chain: str, backend: str) -> None:
    gpucnn.manual_seed(3)
    model = nn.Sequential(*CHAINS[chain]()).to(backend)
    # Every fourth value is the same, so that windows have ties; many are negative, so that windows are all zero.
    values = np.random.default_rng(5).standard_normal((2, 3, 9, 11)).astype("float32") - 0.5
    values.reshape(-1)[::4] = -0.25

    def run(forward: Callable[[Tensor], Any]) -> list[np.ndarray]:
        x = gpucnn.tensor(values, backend=backend, requires_grad=True)
        for parameter in model.parameters():
            parameter.grad = None
        y = forward(x)
        y.backward(gpucnn.tensor(np.random.default_rng(6).standard_normal(y.shape).astype("float32"), backend=backend))
        return [t.numpy() for t in (y, x.grad, *(parameter.grad for parameter in model.parameters()))]

    def one_by_one(x: Tensor) -> Tensor:
        for module in model:
            x = module(x)
        return x

    ours, theirs = run(model), run(one_by_one)
    if chain in POOLED:  # at most 198 terms x · dy, |dy| < 4, in another order
        bound = 2 * 200 * 2.0**-24 * 198 * 4 * np.abs(values).max()
        same = 0 if backend == "numpy" else 2  # it computes the results and dx in another order too
        for a, b in zip(ours[same:], theirs[same:], strict=True):
            assert_within(a, b, bound)
        ours, theirs = ours[:same], theirs[:same]
    assert [np.ascontiguousarray(a).tobytes() for a in ours] == [np.ascontiguousarray(a).tobytes() for a in theirs]


@pytest.mark.parametrize(
    ("conv", "pool", "along"),
    [
        (nn.Conv2d(4, 2, 3), nn.MaxPool2d(2), True),
        (nn.Conv2d(8, 2, 3, groups=2), nn.MaxPool2d((3, 2), (3, 4)), True),
        (nn.Conv2d(9, 2, 3), nn.MaxPool2d(2), False),  # many channels
        (nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, 2), False),  # windows that overlap
        (nn.Conv2d(1, 2, 3), nn.MaxPool2d((2, 3), (2, 4), dilation=(1, 2)), False),
        (nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, return_indices=True), False),
        (nn.Conv2d(1, 2, 3), nn.MaxPool2d(16), False),  # 256 elements
        (nn.Conv2d(1, 2, (64, 65)), nn.MaxPool2d(2), False),
        (nn.Conv2d(1, 2, 3), nn.MinPool2d(2), False),
    ],
)
def test_a_convolution_of_few_channels_pools_along_where_windows_do_not_overlap(
    conv: nn.Conv2d, pool: nn.MaxPool2d, along: bool
) -> None:
    assert pools_along(conv, [pool]) == along


def test_what_a_convolution_pools_is_never_written_at_full_size() -> None:
    recorder = RecorderDevice()
    backend = KernelBackend(recorder)
    model = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)).to(backend)
    model(gpucnn.zeros(2, 1, 28, 28).to(backend)).sum().backward()
    names = [launch.name for launch in recorder.launches if launch.file != "convert.cu"]
    assert names == ["conv2d_max_pool2d_forward", "conv2d_max_pool2d_backward", "sum_parts", "sum_parts"]


def test_a_convolution_applies_the_relu_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    monkeypatch.setattr(nn.ReLU, "forward", None)
    assert (model(gpucnn.zeros(1, 1, 4, 5)).numpy() >= 0).all()


def test_relu_runs_on_the_pooled_elements() -> None:
    pool, relu = nn.MaxPool2d(2), nn.ReLU()
    assert list(fused([relu, pool])) == [pool, relu]


@pytest.mark.parametrize("before", [[], [nn.Conv2d(1, 1, 1)]], ids=["relu", "conv relu"])
def test_relu_stays_before_a_pool_that_has_windows_wholly_in_the_padding(before: list[nn.Module]) -> None:
    pool = nn.MaxPool2d(2, stride=5, padding=1, dilation=4)  # on 3×3 pixels its taps are at −1 and 3
    model = nn.Sequential(*before, nn.ReLU(), pool)
    assert model(gpucnn.ones(1, 1, 3, 3)).item() == -np.inf


@pytest.mark.parametrize("hooked", [0, 1, 2])
def test_a_hook_sees_what_its_module_alone_gives(hooked: int) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
    x = gpucnn.tensor(np.random.default_rng(1).standard_normal((1, 1, 6, 8)).astype("float32"))
    expected = x
    for module in list(model)[: hooked + 1]:
        expected = module(expected)
    seen: list[Tensor] = []
    model[hooked].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(x)
    assert [bits(output) for output in seen] == [bits(expected)]


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
@pytest.mark.parametrize("hooked", [0, 1, 2])
@pytest.mark.parametrize("chain", [("Conv2d", "BatchNorm2d", "ReLU"), ("Conv2d", "ReLU", "MaxPool2d")])
def test_a_module_with_any_hook_is_computed_by_itself(chain: tuple[str, ...], hooked: int, kind: str) -> None:
    arguments = {"Conv2d": (1, 2, 3), "BatchNorm2d": (2,), "ReLU": (), "MaxPool2d": (2,)}
    model = nn.Sequential(*(getattr(nn, name)(*arguments[name]) for name in chain)).eval()
    calls: list[nn.Module] = []
    handle = getattr(model[hooked], f"register_{kind}")(lambda module, *others: calls.append(module))
    assert model[hooked] in list(fused(list(model)))
    model(gpucnn.rand(1, 1, 6, 8, requires_grad=True)).sum().backward()
    assert calls == [model[hooked]]
    handle.remove()
    assert len(list(fused(list(model)))) == 1


def test_a_subclass_keeps_its_own_forward() -> None:
    class Doubled(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), Doubled(), nn.MaxPool2d(1))
    model[0].weight.detach().copy_(gpucnn.tensor(np.ones((1, 1, 1, 1), "float32")))
    assert model(gpucnn.tensor(np.full((1, 1, 1, 1), 3, "float32"))).item() == 6


def test_a_pool_that_returns_indices_stays_behind_the_relu() -> None:
    y, index = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True))(gpucnn.tensor(-np.ones((1, 1, 2, 2))))
    assert (y.item(), index.item()) == (0, 0)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_inference_takes_the_norm_into_the_convolution(
    affine: bool, bias: bool, activation: str | None, backend: str
) -> None:
    gpucnn.manual_seed(1)
    rng = np.random.default_rng(2)
    conv, norm = nn.Conv2d(3, 5, (3, 2), bias=bias), nn.BatchNorm2d(5, affine=affine)
    for tensor in (norm.running_mean, norm.running_var, *norm.parameters()):
        tensor.detach().copy_(gpucnn.tensor(rng.uniform(0.5, 2, 5).astype("float32")))
    model = nn.Sequential(conv, norm, *([nn.ReLU()] if activation else [])).to(backend).eval()
    x = gpucnn.tensor(rng.standard_normal((2, 3, 6, 7)).astype("float32"), backend=backend)
    calls: list[str] = []
    forward = type(x.backend).batch_norm_forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(x.backend), "batch_norm_forward", lambda *a: calls.append("norm") or forward(*a))
        apart = model(x).numpy()
        with gpucnn.no_grad():
            together = model(x).numpy()
    assert calls == ["norm"]
    # Each sum has 19 terms and each way four roundings more; terms are at most 3 · 0.5, scales at most 2 / √0.5.
    terms = np.abs(x.numpy()).max() * np.abs(conv.weight.numpy()).max()
    np.testing.assert_allclose(together, apart, rtol=0, atol=2.0**-24 * 23 * 19 * terms * 2 / np.sqrt(0.5) + 1e-6)


def test_a_norm_that_still_learns_stays_by_itself() -> None:
    conv, norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)
    with gpucnn.no_grad():
        y = conv_norm(conv, norm, gpucnn.tensor(np.random.default_rng(0).standard_normal((4, 1, 3, 3))).float())
    assert norm.num_batches_tracked.item() == 1
    np.testing.assert_allclose(y.numpy().mean(axis=(0, 2, 3)), 0, atol=1e-6)


def test_a_norm_without_running_statistics_stays_by_itself() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)).eval()
    with gpucnn.no_grad():
        y = model(gpucnn.tensor(np.random.default_rng(0).standard_normal((4, 1, 3, 3))).float())
    np.testing.assert_allclose(y.numpy().mean(axis=(0, 2, 3)), 0, atol=1e-6)
    with pytest.raises(ValueError, match="BatchNorm2d has no running statistics: track_running_stats=False"):
        model[1].affine_transform()


def test_a_summary_says_which_layers_another_computes() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, track_running_stats=False),
        nn.ReLU(),
    )  # fmt: skip
    summary = model.summary(1, 9, 11)
    assert [row.computed_in for row in summary.rows] == [None, "0", "0", None, "3", "3", None, "6", None, None, "9"]
    assert "1      BatchNorm2d, in 0" in str(summary)
    assert '<td class="name">ReLU, in 6</td>' in summary._repr_html_()


def test_a_summary_names_the_convolutions_of_a_residual_network_that_take_in_their_norms() -> None:
    rows = {row.name: row for row in nn.models.resnet20().summary(3, 8, 8).rows}
    norms = {name: row for name, row in rows.items() if row.kind == "BatchNorm2d"}
    assert len(norms) == 19
    assert all(row.computed_in == name.replace("bn", "conv") for name, row in norms.items())
    assert not any(row.computed_in for name, row in rows.items() if name not in norms)


def names(container: nn.Module) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in container.named_children()]


@pytest.mark.parametrize("kind", ["Sequential", "ModuleList"])
def test_a_row_of_modules_changes_as_pytorchs_does(kind: str, torch: ModuleType) -> None:
    """Of the same changes to both, the names and kinds of the modules are the same after each."""

    def changed(layers: Any) -> list[list[tuple[str, str]]]:
        steps = []
        made = [layers.ReLU(), layers.Tanh(), layers.Sigmoid()]
        row = getattr(layers, kind)(*made) if kind == "Sequential" else layers.ModuleList(made)
        assert row.append(layers.ELU()) is row
        steps.append(names(row))
        assert row.extend([layers.GELU(), layers.ReLU6()]) is row
        row[1] = layers.Flatten()
        row[-1] = layers.Identity()
        steps.append(names(row))
        row.insert(1, layers.SiLU())
        steps.append(names(row))
        del row[0]
        steps.append(names(row))
        del row[1:3]
        steps.append(names(row))
        popped = row.pop(-2)
        steps.append([*names(row), (kind, type(popped).__name__)])
        row += layers.Sequential(layers.Softplus())
        steps.append([*names(row), *names(row[1:]), (type(row[1:]).__name__, str(len(row)))])
        return steps

    assert changed(nn) == changed(torch.nn)


class Mixture(nn.Module):
    """The input times each of some factors, added up."""

    def __init__(self, *sizes: int) -> None:
        self.factors = nn.ParameterList(gpucnn.rand(size) for size in sizes)

    def forward(self, input: Tensor) -> Tensor:
        y = input * self.factors[0]
        for factor in self.factors[1:]:
            y = y + input * factor
        return y


def test_a_list_of_parameters_changes_as_pytorchs_does(torch: ModuleType) -> None:
    def changed(layers: Any, tensor: Callable[[list[float]], Any]) -> list[Any]:
        row = layers.ParameterList([tensor([1.0]), layers.Parameter(tensor([2.0]))])
        assert row.append(tensor([3.0])) is row
        assert row.extend(layers.Parameter(tensor([v]), requires_grad=False) for v in (4.0, 5.0)) is row
        row[1] = tensor([6.0])
        row[-1] = layers.Parameter(tensor([7.0]))
        row += [tensor([8.0])]
        part = row[4:1:-2]
        assert all(type(p) is layers.Parameter for p in row)
        assert type(part) is layers.ParameterList
        assert part[0] is row[4]
        return [
            [(p.tolist(), p.requires_grad) for p in row], len(row), row[-2].tolist(), list(row.state_dict()),
            [(name, p.tolist()) for name, p in part.named_parameters()], len(layers.ParameterList()),
        ]  # fmt: skip

    assert changed(nn, gpucnn.tensor) == changed(torch.nn, torch.tensor)


def test_parameters_in_a_list_are_found_trained_moved_and_loaded_with_their_owner(backend: str) -> None:
    model = Mixture(3, 1).to(backend)
    assert [name for name, _ in model.named_parameters()] == ["factors.0", "factors.1"]
    model(gpucnn.ones(2, 3, backend=backend)).sum().backward()
    assert [p.grad.tolist() for p in model.factors] == [[2, 2, 2], [6]]
    assert repr(model.factors) == "ParameterList(float32 [3], float32 [1])"
    again = Mixture(3, 1).to(backend)
    again.load_state_dict(model.state_dict())
    assert [p.tolist() for p in again.factors] == [p.tolist() for p in model.factors]
    assert {p.dtype for p in again.to("float64").factors} == {np.dtype("float64")}


def test_parameters_in_a_list_are_inserted_and_deleted_like_any_others() -> None:
    row = nn.ParameterList(gpucnn.tensor([float(i)]) for i in range(4))
    del row[1:3]
    row.insert(1, gpucnn.tensor([9.0]))
    assert {name: p.tolist() for name, p in row.named_parameters()} == {"0": [0], "1": [9], "2": [3]}
    assert row.pop().tolist() == [3]


def test_a_list_of_parameters_takes_nothing_else_and_stays_as_it_was() -> None:
    row = nn.ParameterList([gpucnn.ones(2)])
    with pytest.raises(TypeError, match="ParameterList holds parameters, got ReLU"):
        row.append(nn.ReLU())
    with pytest.raises(TypeError, match="ParameterList holds parameters, got float"):
        row[0] = 1.0
    with pytest.raises(TypeError, match="ParameterList holds parameters, got str"):
        row.insert(0, "x")
    with pytest.raises(TypeError, match="ParameterList takes several parameters, got Tensor"):
        row.extend(gpucnn.ones(2, 3))
    with pytest.raises(IndexError, match="ParameterList: there is no parameter 1 among 1"):
        row[1] = gpucnn.ones(2)
    with pytest.raises(RuntimeError, match="only a floating tensor can have a gradient, this one is int64"):
        row.append(gpucnn.tensor([1]))
    assert [p.tolist() for p in row] == [[1, 1]]


def test_a_summary_counts_the_parameters_in_a_list_for_the_module_that_holds_it() -> None:
    model = nn.Sequential(nn.Linear(2, 3), Mixture(3, 1))
    summary = model.summary(2)
    assert [(row.name, row.parameters) for row in summary.rows] == [("0", 9), ("1", 4)]
    assert summary.parameters == sum(p.numel() for p in model.parameters())


def test_a_mapping_of_modules_changes_as_pytorchs_does(torch: ModuleType) -> None:
    def changed(layers: Any) -> list[Any]:
        modules = layers.ModuleDict({"first": layers.ReLU(), "second": layers.Tanh()})
        steps: list[Any] = [names(modules)]
        modules["third"] = layers.ELU()
        modules["first"] = layers.Sigmoid()
        steps.append(names(modules))
        del modules["second"]
        modules.update(OrderedDict(fourth=layers.Identity()))
        steps += [names(modules), list(modules), list(modules.keys()), len(modules), "third" in modules]
        steps += [type(modules.pop("third")).__name__, [(n, type(m).__name__) for n, m in modules.items()]]
        modules.clear()
        return [*steps, names(modules), [name for name, _ in layers.ModuleDict([("a", layers.ReLU())]).items()]]

    assert changed(nn) == changed(torch.nn)


def test_modules_in_a_list_or_a_mapping_are_found_and_moved_with_their_owner(backend: str) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            self.convs = nn.ModuleList([nn.Conv2d(2, 3, k, padding=k // 2) for k in (1, 3)])
            self.heads = nn.ModuleDict({"dog": nn.Linear(3, 1), "cat": nn.Linear(3, 2)})

        def forward(self, input: Tensor, head: str) -> Any:
            y = self.convs[0](input)
            for conv in self.convs[1:]:
                y = y + conv(input)
            return self.heads[head](y.mean((2, 3)))

    model = Branches().to(backend)
    assert [name for name, _ in model.named_parameters()] == [
        "convs.0.weight", "convs.0.bias", "convs.1.weight", "convs.1.bias",
        "heads.dog.weight", "heads.dog.bias", "heads.cat.weight", "heads.cat.bias",
    ]  # fmt: skip
    x = gpucnn.tensor(np.random.default_rng(0).standard_normal((2, 2, 5, 4)).astype("float32"), backend=backend)
    model(x, "cat").sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["heads.dog.weight", "heads.dog.bias"]
    assert all(not module.training for module in model.eval().modules())
    again = Branches().to(backend)
    again.load_state_dict(model.state_dict())
    assert again(x, "dog").tolist() == model(x, "dog").tolist()


def test_a_change_that_cannot_be_leaves_a_container_as_it_was() -> None:
    row, mapping = nn.ModuleList([nn.ReLU(), nn.Tanh()]), nn.ModuleDict({"a": nn.ReLU()})
    before = names(row), names(mapping)
    with pytest.raises(TypeError, match="ModuleList holds modules, got int"):
        row.insert(0, 3)
    with pytest.raises(IndexError, match="ModuleList: there is no module 2 among 2"):
        row[2] = nn.ELU()
    with pytest.raises(IndexError, match="ModuleList: there is no module -3 among 2"):
        del row[-3]
    with pytest.raises(IndexError, match=r"ModuleList: there is no module slice\(0, 1, None\) among 2"):
        row[0:1] = nn.ELU()
    with pytest.raises(KeyError, match="ModuleDict: there is no module 'b' among a"):
        del mapping["b"]
    with pytest.raises(ValueError, match="a module can't be called 'keys'; choose a text without a dot"):
        mapping["keys"] = nn.ELU()
    with pytest.raises(ValueError, match="a module can't be called 'training'"):
        mapping["training"] = nn.ELU()
    with pytest.raises(
        NotImplementedError, match=r"ModuleList has no forward\(\); define it, or call the modules in it"
    ):
        row(gpucnn.ones(1))
    assert (names(row), names(mapping)) == before
    with pytest.raises(ValueError, match="Sequential: the next module would be called '1', and one is"):
        nn.Sequential({"1": nn.ReLU()}).append(nn.Tanh())


def test_a_mapping_of_modules_is_itself_and_no_other() -> None:
    relu = nn.ReLU()
    ours, other = nn.ModuleDict({"a": relu}), nn.ModuleDict({"a": relu})
    assert ours != other
    assert list(nn.Sequential(ours, other).children()) == [ours, other]
    assert len({ours, other}) == 2
