"""Half tensors, autocast, the gradient scaler, and training with them."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numerics import assert_within

import gpucnn
from gpucnn import Tensor, nn, optim
from gpucnn import functional as F
from gpucnn.dtypes import smallest, unit_roundoff
from gpucnn.testing import normal
from gpucnn.verify import verify

HALVES = ["float16", "bfloat16"]
both = pytest.mark.parametrize("half", HALVES)
pytestmark = pytest.mark.usefixtures("default_backend")


def random(*shape: int, seed: int = 0, dtype: str = "float32", requires_grad: bool = False) -> Tensor:
    return gpucnn.tensor(normal(*shape, seed=seed).make(dtype), requires_grad=requires_grad)


def dtype_of(tensor: Tensor) -> str:
    return str(tensor.dtype)


# -- half tensors ------------------------------------------------------------------------------------------


@both
def test_a_half_tensor_is_made_converted_and_read(half: str) -> None:
    x = gpucnn.tensor([[1.0, -2.5], [0.1, 70000.0]], dtype=half)
    rounded = {"float16": [0.0999755859375, math.inf], "bfloat16": [0.10009765625, 70144.0]}[half]
    assert dtype_of(x) == half
    assert x.tolist() == [[1.0, -2.5], rounded]
    assert x[0, 1].item() == -2.5
    assert type(x[0, 1].item()) is float
    assert f"dtype={half}" in repr(x)
    assert "-2.5" in repr(x)
    for again in (x.float(), x.double(), gpucnn.tensor(x)):
        assert again.tolist() == x.tolist()
    assert dtype_of(gpucnn.zeros(2, 3, dtype=half)) == half


def test_the_dtypes_have_pytorchs_names() -> None:
    assert [str(d) for d in (gpucnn.float16, gpucnn.bfloat16, gpucnn.float32, gpucnn.float64)] == [
        "float16", "bfloat16", "float32", "float64",
    ]  # fmt: skip
    x = random(2, 3)
    assert x.half().dtype == gpucnn.float16
    assert x.bfloat16().dtype == gpucnn.bfloat16 == x.to(gpucnn.bfloat16).dtype


@both
def test_doubles_and_integers_become_half_by_way_of_float32(half: str) -> None:
    wide = gpucnn.tensor(np.array([1 + 2.0**-9 + 2.0**-40, 1 + 2.0**-12 + 2.0**-40, 3.0]))
    assert wide.to(half).tolist() == wide.float().to(half).tolist()
    assert gpucnn.tensor([1, 300]).to(half).tolist() == [1.0, 300.0]


def test_without_ml_dtypes_bfloat16_names_the_command_and_the_rest_works() -> None:
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import gpucnn\n"
        "gpucnn.ones(2, dtype='float16', backend='numpy') + 1\n"
        "for use in (lambda: gpucnn.bfloat16, lambda: gpucnn.ones(2, dtype='bfloat16', backend='numpy'),\n"
        "            lambda: gpucnn.ones(2, backend='numpy').bfloat16(),\n"
        "            lambda: gpucnn.autocast('bfloat16').__enter__(), lambda: gpucnn.precision('bf16').__enter__()):\n"
        "    try: use()\n"
        "    except ImportError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == 'bfloat16 needs the package ml_dtypes: pip install "gpucnn[half]"\n' * 5


@both
def test_the_gradient_of_a_half_tensor_is_half_and_comes_back_through_a_conversion(half: str) -> None:
    x = random(3, 4, requires_grad=True)
    y = x.to(half)
    (y * y).sum().backward()
    assert x.grad is not None
    assert dtype_of(x.grad) == "float32"
    np.testing.assert_array_equal(x.grad.numpy(), (y + y).float().numpy())
    leaf = gpucnn.tensor(y, requires_grad=True)
    F.relu(leaf).sum().backward()
    assert leaf.grad is not None
    assert dtype_of(leaf.grad) == half
    with pytest.raises(ValueError, match=f"the gradient is float32 .* the tensor is {half}"):
        F.relu(leaf).backward(random(3, 4))


@both
def test_half_and_float32_meet_in_float32(half: str) -> None:
    x, y = random(2, 3, requires_grad=True), random(2, 3, seed=1, dtype=half)
    y.requires_grad = True
    for made in (x + y, y - x, x * y, F.maximum(x, y), F.where(x > y, x, y), gpucnn.cat([x, y])):
        assert dtype_of(made) == "float32"
    (x * y).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert (dtype_of(x.grad), dtype_of(y.grad)) == ("float32", half)
    assert dtype_of(random(2, dtype="float16") + random(2, dtype="bfloat16")) == "float32"
    assert dtype_of(y * 2.0 + 1) == half
    assert dtype_of(2 / y) == half


def test_products_and_convolutions_of_two_types_are_refused() -> None:
    with pytest.raises(TypeError, match="linear: the tensors must have one dtype, got input float16, weight float32"):
        F.linear(random(2, 3, dtype="float16"), random(4, 3))
    with pytest.raises(TypeError, match="batch_norm: with a float16 input weight must be float32, got float64"):
        F.batch_norm(random(4, 3, dtype="float16"), None, None, random(3, dtype="float64"), training=True)


@both
def test_batch_norm_of_half_has_float32_statistics_and_parameters(half: str) -> None:
    x = gpucnn.tensor(100 + normal(64, 3, 9, 7).make("float32"))
    norm = nn.BatchNorm2d(3)
    lowered = gpucnn.tensor(x.to(half), requires_grad=True)
    y = norm(lowered)
    exact = F.batch_norm(lowered.detach().float(), None, None, training=True)
    assert_within(y.numpy(), exact.numpy(), 2 * unit_roundoff(half) * (1 + np.abs(exact.numpy())))
    y.backward(gpucnn.ones(*y.shape, dtype=half))
    kinds = [dtype_of(t) for t in (y, norm.running_mean, norm.running_var, lowered.grad, norm.weight.grad)]  # type: ignore[arg-type]
    assert kinds == [half, "float32", "float32", half, "float32"]
    norm.eval()
    assert dtype_of(norm(lowered)) == half


@both
def test_running_statistics_of_a_half_model_move_too(half: str) -> None:
    norm = nn.BatchNorm2d(2).to(half)
    norm(random(50, 2, 3, 5, dtype=half) + 4)
    assert dtype_of(norm.running_mean) == half
    assert 0.3 < float(norm.running_mean.float()[0]) < 0.5


@both
def test_long_sums_do_not_stall(half: str) -> None:
    """4,096 ones are 4,096: in bfloat16 itself a sum would end at 256, in float16 at 2,048."""
    x = gpucnn.ones(4096, 2, dtype=half)
    assert x.sum(0).tolist() == [4096.0, 4096.0]
    assert x.mean().item() == 1.0
    ones = gpucnn.ones(1, 2, dtype=half, requires_grad=True)
    (x * ones).sum().backward()
    assert ones.grad is not None
    assert ones.grad.tolist() == [[4096.0, 4096.0]]
    assert F.linear(gpucnn.ones(1, 4096, dtype=half), gpucnn.ones(1, 4096, dtype=half)).item() == 4096.0
    assert F.adaptive_avg_pool2d(gpucnn.ones(1, 1, 61, 60, dtype=half), 7).tolist() == [[[[1.0] * 7] * 7]]


def test_a_softmax_of_float16_does_not_overflow() -> None:
    x = gpucnn.tensor([[60000.0, 59000.0]], dtype="float16")
    assert F.softmax(x, 1).tolist() == [[1.0, 0.0]]
    assert F.cross_entropy(x, np.array([1])).item() == 992.0  # float16's neighbours are 32 apart there: 59008


def test_optimizers_refuse_half_parameters() -> None:
    with pytest.raises(TypeError, match=r"SGD: parameter 0 is float16, .*keep parameters float32 .*gpucnn\.autocast"):
        optim.SGD([random(3, dtype="float16", requires_grad=True)], lr=0.1)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_op_is_as_exact_as_its_half_type_allows(dtype: str, backend: str) -> None:
    if backend != "numpy":
        pytest.skip("gpucnn verify --precision does it for kernels")
    report = verify(backend, dtype=dtype)
    assert not report.errors, report.errors[:3]
    assert not report.failures, [result.describe() for result in report.failures[:5]]


def test_the_bound_of_float16_is_missed_by_bfloat16() -> None:
    """So that the bounds are known to be tight enough to tell the types."""
    from gpucnn.testing import dense, evaluate, in_half

    case = dense("matmul", (24, 70), (70, 36))
    exact = evaluate(case, "numpy", "bfloat16", precision="float64")
    ours = evaluate(case, "numpy", "bfloat16").results
    bounds = case.bounds(exact)
    assert_within(ours[0], exact.results[0], in_half(exact, "bfloat16", bounds)[0])
    with pytest.raises(AssertionError, match="values are off"):
        assert_within(ours[0], exact.results[0], in_half(exact, "float16", bounds)[0])


# -- autocast ----------------------------------------------------------------------------------------------

X, W, B = normal(2, 4, 7, 5), normal(6, 4, 3, 2, seed=1), normal(6, seed=2)
LOW: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "conv2d": lambda t: F.conv2d(t(X), t(W), t(B)),
    "conv_transpose2d": lambda t: F.conv_transpose2d(t(normal(2, 6, 4, 3)), t(W)),
    "linear": lambda t: F.linear(t(normal(3, 5)), t(normal(2, 5)), t(normal(2))),
    "matmul": lambda t: t(normal(3, 5)) @ t(normal(5, 2)),
    "prelu": lambda t: F.prelu(t(X), t(normal(4))),
}
WIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.softmax(x, 1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "cross_entropy": lambda x: F.cross_entropy(x, np.zeros((2, 7, 5), int)),
    "nll_loss": lambda x: F.nll_loss(x, np.zeros((2, 7, 5), int)),
    "mse_loss": lambda x: F.mse_loss(x, x.detach()),
    "l1_loss": lambda x: F.l1_loss(x, x.detach()),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, x.detach()),
    "huber_loss": lambda x: F.huber_loss(x, x.detach()),
    "kl_div": lambda x: F.kl_div(x, x.detach(), log_target=True),
    "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, x.detach() * 0),
    "exp": lambda x: x.exp(),
    "log": lambda x: x.abs().log(),
    "pow": lambda x: x**2,
    "reciprocal": lambda x: 1 / x,
    "sum": lambda x: x.sum(),
    "softplus": F.softplus,
    "layer_norm": lambda x: F.layer_norm(x, 5),
    "group_norm": lambda x: F.group_norm(x, 2),
}
KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "selu": F.selu,
    "mish": F.mish,
    "hardtanh": F.hardtanh,
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "add": lambda x: x + x,
    "mul": lambda x: x * 2,
    "mean": lambda x: x.mean(),
    "sqrt": lambda x: x.abs().sqrt(),
    "amax": lambda x: x.amax(1),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),  # type: ignore[dict-item, return-value]
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "instance_norm": F.instance_norm,
    "dropout": lambda x: F.dropout(x, 0.5),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "flatten": lambda x: x.flatten(1),
}


@both
@pytest.mark.parametrize("op", LOW)
def test_autocast_computes_products_in_the_half_type(op: str, half: str) -> None:
    leaves: list[Tensor] = []

    def leaf(values: Any) -> Tensor:
        leaves.append(gpucnn.tensor(values.make("float32"), requires_grad=True))
        return leaves[-1]

    with gpucnn.autocast(half):
        y = LOW[op](leaf)
        y.float().sum().backward()
    assert dtype_of(y) == half
    expected = LOW[op](lambda values: gpucnn.tensor(values.make(half)))
    np.testing.assert_array_equal(y.float().numpy(), expected.float().numpy())
    assert [dtype_of(t.grad) for t in leaves if t.grad is not None] == ["float32"] * len(leaves)


@both
@pytest.mark.parametrize("op", WIDE)
def test_autocast_computes_losses_sums_and_powers_in_float32(op: str, half: str) -> None:
    x = gpucnn.tensor(X.make(half), requires_grad=True)
    with gpucnn.autocast(half):
        y = WIDE[op](x)
    assert dtype_of(y) == "float32"
    np.testing.assert_array_equal(y.numpy(), WIDE[op](x.detach().float()).numpy())
    y.sum().backward()
    assert x.grad is not None
    assert dtype_of(x.grad) == half
    assert dtype_of(WIDE[op](x)) == half  # outside, the result is rounded


@both
@pytest.mark.parametrize("op", KEPT)
def test_autocast_leaves_the_type_of_other_ops(op: str, half: str) -> None:
    with gpucnn.autocast(half):
        assert dtype_of(KEPT[op](gpucnn.tensor(X.make(half)))) == half
        assert dtype_of(KEPT[op](gpucnn.tensor(X.make("float32")))) == "float32"


def test_autocast_leaves_float64_and_integers_alone() -> None:
    with gpucnn.autocast():
        assert dtype_of(random(3, 5, dtype="float64") @ random(5, 2, dtype="float64")) == "float64"
        assert dtype_of(gpucnn.tensor([1, 2]).sum()) == "int64"


def test_scopes_nest_and_end() -> None:
    a, b = random(3, 5), random(5, 2)
    assert not gpucnn.is_autocast_enabled()
    with gpucnn.autocast("bfloat16"):
        with gpucnn.autocast("float16"):
            assert dtype_of(a @ b) == "float16"
        with gpucnn.autocast(enabled=False):
            assert not gpucnn.is_autocast_enabled()
            assert dtype_of(a @ b) == "float32"
        assert dtype_of(a @ b) == "bfloat16"
    assert dtype_of(a @ b) == "float32"

    @gpucnn.autocast(gpucnn.bfloat16)
    def product() -> Tensor:
        return a @ b

    assert dtype_of(product()) == "bfloat16"
    again = gpucnn.autocast("bfloat16")
    for _ in range(2):
        with again, gpucnn.autocast(enabled=False), again:
            assert dtype_of(a @ b) == "bfloat16"
        assert not gpucnn.is_autocast_enabled()


def test_a_scope_that_is_entered_again_converts_the_weights_as_they_are_then() -> None:
    weight, scope = gpucnn.ones(2, 2, requires_grad=True), gpucnn.autocast("bfloat16")
    with scope:
        first = gpucnn.ones(1, 2) @ weight
    weight.detach().copy_(np.full((2, 2), 3))
    with scope:
        assert (gpucnn.ones(1, 2) @ weight).tolist() == [[6, 6]]
    assert first.tolist() == [[2, 2]]
    for wrong in ("float32", np.float64):
        with pytest.raises(ValueError, match="autocast: dtype must be float16 or bfloat16, got float"), \
                gpucnn.autocast(wrong):  # fmt: skip
            pass


def test_a_weight_is_converted_once_a_scope_until_a_backward_pass_has_used_it() -> None:
    w, x = random(5, 5, requires_grad=True), random(2, 5)
    made: list[Any] = []
    backend = w.backend
    original = backend.astype
    backend.astype = lambda array, dtype: (made.append(array is w.array), original(array, dtype))[1]  # type: ignore[method-assign]
    try:
        with gpucnn.autocast("bfloat16"):
            for _ in range(2):
                made.clear()
                loss = (F.linear(F.linear(x, w), w)).float().sum()
                assert made.count(True) == 1
                loss.backward()
            w.array[...] = 0  # as an optimizer would change it
            assert F.linear(x, w).float().abs().sum().item() == 0
    finally:
        backend.astype = original  # type: ignore[method-assign]


def test_inside_no_grad_nothing_is_kept() -> None:
    w, x = random(3, 5, requires_grad=True), random(2, 5)
    with gpucnn.autocast(), gpucnn.no_grad():
        F.linear(x, w)
        w.array[...] = 0
        assert F.linear(x, w).float().abs().sum().item() == 0


def test_a_loss_still_warns_of_probabilities() -> None:
    for half in HALVES:
        with gpucnn.autocast(half):
            x = F.linear(random(4, 5, requires_grad=True), random(3, 5))
            with pytest.warns(UserWarning, match="takes logits, but its input comes from softmax"):
                F.cross_entropy(F.softmax(x, 1), np.zeros(4, int))
        with pytest.warns(UserWarning, match="comes from sigmoid"):
            F.cross_entropy(F.sigmoid(random(4, 3, dtype=half, requires_grad=True) * 1.0), np.zeros(4, int))


@both
def test_a_whole_model_has_the_types_of_pytorchs(half: str, torch: ModuleType) -> None:
    """On torch's CPU, whose list agrees with that of CUDA for these layers; softmax and losses do not."""
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 2, 5)
    )
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(8 * 2, 5),
    )  # fmt: skip
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in model.state_dict().items()})
    x, y = X.make("float32"), None
    ours_x, theirs_x = gpucnn.tensor(x), torch.tensor(x)
    u = normal(2, 5, seed=3).make("float32")
    with gpucnn.autocast(half), torch.autocast("cpu", dtype=getattr(torch, half)):
        for ours, other in zip(model.children(), theirs, strict=True):
            ours_x, theirs_x = ours(ours_x), other(theirs_x)
            assert dtype_of(ours_x) == str(theirs_x.dtype).removeprefix("torch.")
            assert_within(
                ours_x.float().numpy(), theirs_x.detach().double().numpy(),
                64 * unit_roundoff(half) * (1 + theirs_x.detach().abs().double().numpy()),
            )  # fmt: skip
    (ours_x.float() * gpucnn.tensor(u)).sum().backward()
    (theirs_x.float() * torch.tensor(u)).sum().backward()
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        y = p.grad
        assert y is not None
        assert dtype_of(y) == str(q.grad.dtype).removeprefix("torch.") == "float32"
        largest = float(q.grad.abs().max())
        assert_within(y.numpy(), q.grad.double().numpy(), 256 * unit_roundoff(half) * largest)


# -- the scaler --------------------------------------------------------------------------------------------


def with_gradients(*values: float) -> tuple[optim.SGD, Tensor]:
    w = gpucnn.zeros(len(values), requires_grad=True)
    w.grad = gpucnn.tensor(list(values))
    return optim.SGD([w], lr=1.0), w


def test_a_step_divides_by_the_scale_and_a_bad_gradient_skips_it() -> None:
    scaler = gpucnn.GradScaler(init_scale=8.0, growth_interval=3)
    optimizer, w = with_gradients(16.0, -8.0)
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == [-2.0, 1.0]
    for bad in (math.inf, -math.inf, math.nan):
        w.grad = gpucnn.tensor([1.0, bad])
        before = scaler.get_scale()
        scaler.step(optimizer)
        assert scaler.found_inf(optimizer)
        scaler.update()
        assert w.tolist() == [-2.0, 1.0]
        assert scaler.get_scale() == before / 2


def test_the_scale_grows_after_the_interval_and_starts_counting_again_after_a_skip() -> None:
    scaler = gpucnn.GradScaler(init_scale=4.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=2)
    scales = []
    for gradient in (1.0, math.inf, 1.0, 1.0, 1.0, 1.0):
        optimizer, _ = with_gradients(gradient)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [4.0, 1.0, 1.0, 3.0, 3.0, 9.0]


def test_the_scale_stays_a_number_of_float32() -> None:
    """Gradients are divided by it; PyTorch's grows no further either."""
    largest, smallest = (float(limit) for limit in (np.finfo(np.float32).max, np.finfo(np.float32).tiny))
    scaler = gpucnn.GradScaler(init_scale=2.0**126, growth_interval=1)
    for expected in (2.0**127, 2.0**127):
        optimizer, w = with_gradients(2.0**100)
        scaler.step(optimizer)
        assert w.item() == -(2.0**100) / scaler.get_scale()
        scaler.update()
        assert scaler.get_scale() == expected < largest
    scaler.update(2.0**-125)
    for expected in (2.0**-126, 2.0**-126):
        optimizer, w = with_gradients(math.inf)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == expected >= smallest
    optimizer, w = with_gradients(2.0**-126)
    scaler.step(optimizer)
    assert w.item() == -1.0


def test_the_scaler_looks_at_the_gradients_of_all_groups() -> None:
    a, b = (gpucnn.zeros(1, requires_grad=True) for _ in range(2))
    optimizer, scaler = optim.SGD([{"params": a}, {"params": b, "lr": 0.5}], lr=1.0), gpucnn.GradScaler(4.0)
    for gradients, found in (((4.0, math.inf), (0.0, 0.0)), ((4.0, 8.0), (-2.0, -2.0))):  # of scales 4 and 2
        a.grad, b.grad = (gpucnn.tensor([g]) for g in gradients)
        scaler.step(optimizer)
        scaler.update()
        assert (a.item(), b.item()) == found


def test_the_scaler_does_what_pytorchs_does(torch: ModuleType) -> None:
    ours, theirs = gpucnn.GradScaler(growth_interval=3), torch.amp.GradScaler("cpu", growth_interval=3)
    assert ours.get_scale() == theirs.get_scale() == 65536.0
    x = torch.ones(1)
    theirs.scale(x)  # which makes its scale
    rng = np.random.default_rng(2)
    for _ in range(40):
        gradient = float(rng.choice([1.0, 2.0, 3.0, math.inf, math.nan], p=[0.3, 0.3, 0.2, 0.1, 0.1]))
        optimizer, _ = with_gradients(gradient)
        parameter = torch.zeros(1, requires_grad=True)
        parameter.grad = torch.tensor([gradient])
        other = torch.optim.SGD([parameter], lr=1.0)
        for scaler, its in ((ours, optimizer), (theirs, other)):
            scaler.unscale_(its)
            scaler.step(its)
            scaler.update()
        assert ours.state_dict() == theirs.state_dict()
        assert optimizer.params[0].tolist() == parameter.tolist()
    again = gpucnn.GradScaler()
    again.load_state_dict(theirs.state_dict())
    assert again.state_dict() == ours.state_dict()


def test_scaling_multiplies_losses_one_by_one() -> None:
    scaler = gpucnn.GradScaler(init_scale=4.0)
    one, two = gpucnn.tensor(1.5), gpucnn.tensor(-2.0)
    assert scaler.scale(one).item() == 6.0
    assert [loss.item() for loss in scaler.scale([one, two])] == [6.0, -8.0]
    assert type(scaler.scale((one,))) is tuple


def test_a_scaler_that_is_not_enabled_only_steps() -> None:
    scaler = gpucnn.GradScaler(enabled=False)
    optimizer, w = with_gradients(2.0)
    loss = gpucnn.tensor(3.0)
    assert scaler.scale(loss) is loss
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == [-2.0]
    assert (scaler.get_scale(), scaler.state_dict(), scaler.is_enabled()) == (1.0, {}, False)


def misused(use: str) -> None:
    scaler = gpucnn.GradScaler()
    optimizer, w = with_gradients(1.0)
    if use == "twice":
        scaler.unscale_(optimizer)
        scaler.unscale_(optimizer)
    elif use == "after":
        scaler.step(optimizer)
        scaler.unscale_(optimizer)
    elif use == "steps":
        scaler.step(optimizer)
        scaler.step(optimizer)
    elif use == "early":
        scaler.update()
    elif use == "none":
        w.grad = None
        scaler.step(optimizer)
    elif use == "text":
        scaler.scale(3.0)
    elif use == "empty":
        scaler.load_state_dict({})
    elif use.startswith("scale "):
        scaler.load_state_dict(scaler.state_dict() | {"scale": float(use.removeprefix("scale "))})
    elif use == "new":
        scaler.update(1e39)
    elif use == "half":
        leaf = random(2, requires_grad=True)
        optimizer = optim.SGD([leaf], lr=1.0)
        leaf.move_("float16")
        leaf.grad = gpucnn.ones(2, dtype="float16")
        scaler.step(optimizer)
    else:
        gpucnn.GradScaler(**eval(use))


@pytest.mark.parametrize(("use", "error", "message"), [
    ("twice", RuntimeError, "has already been called for this optimizer since update"),
    ("after", RuntimeError, r"unscale_\(\) comes after step\(\)"),
    ("steps", RuntimeError, r"step\(\) has already been called"),
    ("early", RuntimeError, r"update\(\) comes before any step"),
    ("none", RuntimeError, r"no parameter of this optimizer has a gradient; call backward\(\) first"),
    ("text", TypeError, "outputs must be tensors, got float"),
    ("empty", ValueError, "the state is empty"),
    ("scale 0", ValueError, "scale must be positive, got 0.0; a scale is from 1.17549e-38 to 3.40282e.38, and 65536.0"),
    ("scale -2", ValueError, "scale must be positive, got -2.0"),
    ("scale nan", ValueError, "scale must be positive, got nan"),
    ("scale inf", ValueError, "scale must be positive, got inf"),
    ("new", ValueError, r"new_scale must be positive, got 1e\+39"),
    ("half", ValueError, "a gradient is float16; keep the parameters float32"),
    ("{'init_scale': 0}", ValueError, "init_scale must be positive, got 0"),
    ("{'growth_factor': 1}", ValueError, "growth_factor must be above 1.*got 1, 0.5 and 2000"),
])  # fmt: skip
def test_misuse_of_the_scaler_is_told(use: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        misused(use)


# -- why float16 needs it ----------------------------------------------------------------------------------


def smallest_gradients(scaler: gpucnn.GradScaler) -> tuple[Tensor, Tensor]:
    """Gradients in float16 and in float32 of a loss whose gradient at the output is some 2⁻²⁷."""
    found = []
    for enabled in (True, False):
        w = gpucnn.tensor(normal(3, 5).make("float32"), requires_grad=True)
        with gpucnn.autocast("float16", enabled=enabled):
            loss = (F.linear(random(4, 5, seed=1), w).float() ** 2).sum() * 2.0**-28
        (scaler.scale(loss) if enabled else loss).backward()
        if enabled:
            optimizer = optim.SGD([w], lr=1.0)
            scaler.unscale_(optimizer)
        assert w.grad is not None
        found.append(w.grad)
    return found[0], found[1]


def test_small_gradients_vanish_in_float16_and_are_kept_by_scaling() -> None:
    lost, exact = smallest_gradients(gpucnn.GradScaler(enabled=False))
    assert smallest("float16") == 2.0**-24
    assert np.abs(exact.numpy()).max() > 2.0**-27
    assert (lost.numpy() == 0).mean() > 0.9
    kept, exact = smallest_gradients(gpucnn.GradScaler())
    largest = np.abs(exact.numpy()).max()
    assert_within(kept.numpy(), exact.numpy().astype(float), 16 * unit_roundoff("float16") * largest)


# -- training ----------------------------------------------------------------------------------------------


def fitted(precision: str | None, folder: Any = None, epochs: int = 6, **options: Any) -> tuple[Any, nn.Module]:
    from gpucnn.data import Loader, load, split
    from gpucnn.train import fit

    gpucnn.manual_seed(1)
    train, held_out = split(load("digits"), 0.25, seed=3)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 16, 10),
    )  # fmt: skip
    history = fit(
        model, Loader(train, 64, shuffle=True), epochs=epochs, held_out=Loader(held_out, 256), folder=folder,
        optimizer=optim.SGD(model.parameters(), lr=0.1, momentum=0.9), precision=precision, **options,
    )  # fmt: skip
    return history, model


def numpy_only(backend: str) -> None:
    if backend != "numpy":
        pytest.skip("a whole training takes minutes on the emulator")


def test_half_precision_reaches_the_accuracy_of_float32_on_digits(backend: str) -> None:
    numpy_only(backend)
    exact = fitted("fp32")[0]["held_out_accuracy"][-1]
    noise = math.sqrt(exact * (1 - exact) / 449)  # of a share of 449 images
    assert exact > 0.95
    for precision in ("fp16", "bf16"):
        history, model = fitted(precision)
        assert history["held_out_accuracy"][-1] > exact - 3 * noise
        assert {dtype_of(p) for p in model.parameters()} == {"float32"}
        assert ("skipped" in history.rows[-1]) == (precision == "fp16")


def test_overflowing_steps_are_skipped_counted_and_the_scale_comes_down(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy_only(backend)
    monkeypatch.setattr("gpucnn.train.GradScaler", lambda enabled: gpucnn.GradScaler(2.0**30, enabled=enabled))
    history, _ = fitted("fp16", epochs=2)
    assert history["skipped"][0] > 3
    assert history["skipped"][1] == 0
    assert history["loss_scale"][1] == history["loss_scale"][0] == 2.0 ** (30 - history["skipped"][0])
    assert history["loss"][1] < history["loss"][0]


def test_a_run_in_float16_goes_on_with_its_scale(backend: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    numpy_only(backend)
    monkeypatch.setattr(
        "gpucnn.train.GradScaler", lambda enabled: gpucnn.GradScaler(2.0**26, growth_interval=7, enabled=enabled)
    )
    whole, model = fitted("fp16", epochs=3)
    fitted("fp16", tmp_path, epochs=1)
    resumed, again = fitted("fp16", tmp_path, epochs=3, resume=True)
    assert resumed.rows == whole.rows
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), value.numpy())
    with pytest.raises(ValueError, match="precision was 'fp16', is 'bf16'"):
        fitted("bf16", tmp_path, epochs=4, resume=True)


def test_gradients_that_overflow_at_every_scale_end_the_training(backend: str) -> None:
    numpy_only(backend)

    def loss(output: Tensor, labels: Any) -> Tensor:
        return F.sqrt(output.float() * 0).sum()  # 0, and its gradient is NaN

    with pytest.raises(FloatingPointError, match=r"overflow float16 at every scale, down to .*precision='bf16'"):
        fitted("fp16", epochs=2, loss=loss)


def test_an_unknown_precision_is_told() -> None:
    with pytest.raises(ValueError, match="precision must be one of 'fp32', 'tf32', 'fp16', 'bf16', got 'half'"):
        fitted("half")


def gpucnn_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gpucnn", *words], capture_output=True, text=True, timeout=300)


def test_the_command_trains_in_a_precision_keeps_it_and_verifies_one(backend: str, tmp_path: Any) -> None:
    numpy_only(backend)
    out = tmp_path / "run"
    words = ("train", "x-or-not-x", "--out", str(out), "--backend", "numpy")
    trained = gpucnn_command(*words, "--epochs", "2", "--schedule", "constant", "--precision", "fp16", "--no-pictures")
    assert trained.returncode == 0, trained.stderr
    assert (out / "history.csv").read_text().splitlines()[0].endswith(",lr,skipped,loss_scale")
    other = gpucnn_command(*words, "--resume", "--precision", "bf16")
    assert other.returncode == 2
    assert "a run with precision fp16, not bf16" in other.stderr
    longer = gpucnn_command(*words, "--resume", "--epochs", "3", "--no-pictures")
    assert longer.returncode == 0, longer.stderr
    assert len((out / "history.csv").read_text().splitlines()) == 4
    verified = gpucnn_command("verify", "--op", "relu", "--precision", "bf16", "--backend", "numpy")
    assert verified.returncode == 0, verified.stderr
    assert re.search(r"^dtype +bfloat16$", verified.stdout, re.MULTILINE)
