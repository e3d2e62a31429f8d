"""Optimisers, schedules and clipping: against scalar formulas, against PyTorch, and over an interruption."""

import copy
import inspect
import json
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, nn, optim
from gpucnn import functional as F
from gpucnn.optim import LRScheduler, Optimizer

STEPS = 25

pytestmark = pytest.mark.usefixtures("default_backend")


def leaf(values: Any, dtype: str = "float64") -> Tensor:
    return gpucnn.tensor(np.asarray(values, dtype), requires_grad=True)


def set_gradient(parameter: Tensor, values: Any) -> None:
    parameter.grad = gpucnn.tensor(np.asarray(values, parameter.dtype))


# -- each optimiser, by its formula for one number -----------------------------------------------------

State = dict[str, float]


def sgd(
    w: float, g: float, s: State, lr: float, momentum: float = 0, dampening: float = 0, weight_decay: float = 0,
    nesterov: bool = False,
) -> float:  # fmt: skip
    g += weight_decay * w
    if momentum:
        s["m"] = momentum * s["m"] + (1 - dampening) * g if "m" in s else g
        g = g + momentum * s["m"] if nesterov else s["m"]
    return w - lr * g


def adam(
    w: float, g: float, s: State, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: float = 0,
) -> float:  # fmt: skip
    g += weight_decay * w
    s["t"] = s.get("t", 0) + 1
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g * g
    m, v = s["m"] / (1 - betas[0] ** s["t"]), s["v"] / (1 - betas[1] ** s["t"])
    return w - lr * m / (math.sqrt(v) + eps)


def adamw(w: float, g: float, s: State, lr: float, weight_decay: float = 0.01, **others: Any) -> float:
    return adam(w * (1 - lr * weight_decay), g, s, lr, **others)


def rmsprop(
    w: float, g: float, s: State, lr: float, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
    momentum: float = 0,
) -> float:  # fmt: skip
    g += weight_decay * w
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g * g
    s["m"] = momentum * s.get("m", 0) + g / (math.sqrt(s["v"]) + eps)
    return w - lr * s["m"]


OPTIMISERS: list[tuple[type[Optimizer], Callable[..., float], dict[str, Any]]] = [
    (optim.SGD, sgd, {"lr": 0.1}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}),
    (optim.SGD, sgd, {"lr": 0.1, "weight_decay": 0.2}),
    (optim.Adam, adam, {"lr": 0.05}),
    (optim.Adam, adam, {"lr": 0.05, "betas": (0.5, 0.9), "eps": 0.01, "weight_decay": 0.1}),
    (optim.AdamW, adamw, {"lr": 0.05}),
    (optim.AdamW, adamw, {"lr": 0.05, "betas": (0.7, 0.95), "eps": 0.001, "weight_decay": 0.3}),
    (optim.RMSprop, rmsprop, {"lr": 0.02}),
    (optim.RMSprop, rmsprop, {"lr": 0.02, "alpha": 0.8, "eps": 0.1, "weight_decay": 0.1, "momentum": 0.7}),
]
every_optimiser = pytest.mark.parametrize(
    ("kind", "formula", "options"),
    OPTIMISERS,
    ids=["-".join([k.__name__, *(f"{n}={v}" for n, v in o.items() if n != "lr")]) for k, _, o in OPTIMISERS],
)


def gradients_at(step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Gradients that do not depend on the weights, of very different sizes, some of them 0."""
    generator = np.random.default_rng([step, *shape])
    return generator.standard_normal(shape) * 10.0 ** generator.integers(-3, 2, shape) * (generator.random(shape) > 0.1)


SHAPES: list[tuple[int, ...]] = [(3,), (2, 3, 2, 1), ()]


@every_optimiser
def test_trajectory_is_the_formulas_for_every_element(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    starts = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(SHAPES)]
    parameters = [leaf(start) for start in starts]
    optimizer = kind(parameters, **options)
    expected = [[float(v) for v in start.ravel()] for start in starts]
    states: list[list[State]] = [[{} for _ in values] for values in expected]
    for step in range(STEPS):
        for parameter, values, state in zip(parameters, expected, states, strict=True):
            g = gradients_at(step, parameter.shape)
            set_gradient(parameter, g)
            values[:] = [formula(w, float(d), s, **options) for w, d, s in zip(values, np.ravel(g), state, strict=True)]
        optimizer.step()
    for parameter, values in zip(parameters, expected, strict=True):
        # each step rounds a handful of times numbers of this size; an error of one formula is far larger
        bound = 32 * STEPS * 2.0**-53 * max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(parameter.numpy().ravel(), values, rtol=0, atol=bound)


@every_optimiser
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_trajectory_is_pytorchs(
    kind: Any, formula: Any, options: dict[str, Any], dtype: str, torch: ModuleType
) -> None:
    starts = [np.random.default_rng(i).standard_normal(shape).astype(dtype) for i, shape in enumerate(SHAPES)]
    ours, theirs = [leaf(s, dtype) for s in starts], [torch.tensor(s, requires_grad=True) for s in starts]
    optimizer, other = kind(ours, **options), getattr(torch.optim, kind.__name__)(theirs, **options)
    largest = 1.0
    for step in range(STEPS):
        for p, q in zip(ours, theirs, strict=True):
            g = gradients_at(step, p.shape).astype(dtype)
            set_gradient(p, g)
            q.grad = torch.tensor(g)
        optimizer.step()
        other.step()
        for p, q in zip(ours, theirs, strict=True):
            largest = max(largest, float(q.detach().abs().max()))
            bound = 32 * (step + 1) * np.finfo(dtype).eps / 2 * largest
            np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=0, atol=bound)
            assert p.dtype == dtype


@every_optimiser
def test_minimum_of_a_bowl_is_found(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    x = leaf([3.0, -2.0])
    optimizer = kind([x], **{**options, "weight_decay": 0})
    for _ in range(400):
        optimizer.zero_grad()
        (x * x).sum().backward()
        optimizer.step()
    assert np.abs(x.numpy()).max() < 0.05


def test_small_rate_converges_and_a_large_one_diverges() -> None:
    """f = ½w²: each step multiplies w by 1 − rate."""
    for rate, factor in [(0.1, 0.9), (2.1, -1.1)]:
        w = leaf(2.0)
        optimizer = optim.SGD([w], rate)
        for _ in range(20):
            optimizer.zero_grad()
            (w * w * 0.5).backward()
            optimizer.step()
        assert w.item() == pytest.approx(2 * factor**20, rel=1e-13)


# -- what a step leaves alone --------------------------------------------------------------------------


@every_optimiser
def test_parameter_without_gradient_stays_and_counts_no_step(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    used, late = leaf([1.0]), leaf([1.0])
    optimizer = kind([used, late], **options)
    for _ in range(3):
        optimizer.zero_grad()
        set_gradient(used, [0.5])
        optimizer.step()
    assert late.item() == 1
    optimizer.zero_grad()
    set_gradient(late, [0.5])
    moved = used.item()
    optimizer.step()
    state: State = {}
    assert late.item() == pytest.approx(formula(1.0, 0.5, state, **options), rel=1e-14)
    assert used.item() == moved


def test_frozen_parameters_may_be_given_and_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    before = [p.tolist() for p in model.parameters()]
    optimizer = optim.AdamW(model.parameters())
    model(gpucnn.ones(4, 3)).sum().backward()
    optimizer.step()
    after = [p.tolist() for p in model.parameters()]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, False]
    model[0].requires_grad_()
    model(gpucnn.ones(4, 3)).sum().backward()
    optimizer.step()
    assert all(p.tolist() != b for p, b in zip(model.parameters(), before, strict=True))


@every_optimiser
def test_step_changes_values_in_place_and_no_gradient(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    x = leaf(np.ones((2, 3, 2, 2)))
    array = x.array
    set_gradient(x, np.full((2, 3, 2, 2), 0.5))
    optimizer = kind([x], **options)
    for _ in range(3):
        optimizer.step()
    assert x.array is array
    assert x.array.transpose(0, 2, 3, 1).flags.c_contiguous
    assert x.grad is not None
    assert (x.grad.numpy() == 0.5).all()
    assert (x.numpy() != 1).all()


def test_a_parameter_in_read_only_memory_is_refused_before_any_is_changed(backend: str) -> None:
    memory = bytes(8)
    with gpucnn.use_backend(backend if backend != "cuda" else "numpy"):  # a GPU has no such memory
        first, second = nn.Parameter(gpucnn.ones(2)), nn.Parameter(gpucnn.from_numpy(np.frombuffer(memory, np.float32)))
        (first + second).sum().backward()
        with pytest.raises(ValueError, match=r"read-only array; change a clone\(\) of it"):
            optim.SGD([first, second], 1.0).step()
    assert (first.tolist(), memory) == ([1, 1], bytes(8))


def test_zero_grad_forgets_all() -> None:
    x, y = leaf([1.0]), leaf([1.0])
    (x * y).backward()
    optimizer = optim.SGD([x, y, leaf([1.0])])
    optimizer.zero_grad(set_to_none=False)
    assert [None if p.grad is None else p.grad.tolist() for p in optimizer.params] == [[0], [0], None]
    optimizer.zero_grad()
    assert x.grad is y.grad is None


# -- state ---------------------------------------------------------------------------------------------


@every_optimiser
def test_state_goes_on_bit_for_bit(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    def run(parameters: list[Tensor], optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            for i, parameter in enumerate(parameters):
                if i == 0 and step % 3 == 0:
                    parameter.grad = None  # a parameter that misses steps has its own count
                else:
                    set_gradient(parameter, gradients_at(step, parameter.shape))
            optimizer.step()

    starts = [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate(SHAPES)]
    whole = [leaf(s, "float32") for s in starts]
    optimizer = kind(whole, **options)
    optimizer.lr *= 0.5
    run(whole, optimizer, range(10))
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    resumed = [leaf(p.numpy(), "float32") for p in whole]
    run(whole, optimizer, range(10, 20))
    assert all(np.array_equal(state["arrays"][name], array) for name, array in kept["arrays"].items())
    numbers = json.loads(json.dumps({name: value for name, value in state.items() if name != "arrays"}))
    other = kind(resumed, **options)
    other.load_state_dict({**numbers, "arrays": state["arrays"]})
    run(resumed, other, range(10, 20))
    for a, b in zip(whole, resumed, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


@every_optimiser
def test_state_brings_its_settings_and_one_of_an_earlier_version_only_the_rate(
    kind: Any, formula: Any, options: dict[str, Any]
) -> None:
    state = json.loads(json.dumps(kind([leaf([1.0])], **options).state_dict()))
    x, moments = leaf([1.0]), State()
    resumed = kind([x], lr=9.0, weight_decay=0.5)
    resumed.load_state_dict(state)
    expected = 1.0
    for share in (0.25, -0.5, 0.125):
        set_gradient(x, [share])
        resumed.step()
        expected = formula(expected, share, moments, **options)
    assert x.item() == pytest.approx(expected, rel=1e-14)
    earlier = kind([leaf([1.0])], lr=9.0, weight_decay=0.5)
    state = without_groups(state)
    earlier.load_state_dict({name: state[name] for name in ("lr", "arrays", "steps") if name in state})
    assert (earlier.lr, earlier.weight_decay) == (options["lr"], 0.5)


def without_groups(state: dict[str, Any]) -> dict[str, Any]:
    """A state of one group, as the version before there were groups made it."""
    [group] = state["param_groups"]
    others = {name: value for name, value in state.items() if name != "param_groups"}
    return {name: value for name, value in group.items() if name != "params"} | others


@every_optimiser
def test_state_of_a_version_without_groups_goes_on_bit_for_bit(
    kind: Any, formula: Any, options: dict[str, Any]
) -> None:
    whole, resumed = [leaf([1.0, 2.0]), leaf(3.0)], [leaf([1.0, 2.0]), leaf(3.0)]
    optimizer, other = kind(whole, **options), kind(resumed, lr=9.0)
    for step in range(6):
        if step == 3:
            state = optimizer.state_dict()
            other.load_state_dict(
                without_groups(json.loads(json.dumps(state | {"arrays": {}}))) | {"arrays": state["arrays"]}
            )
            for p, q in zip(whole, resumed, strict=True):
                q.detach().copy_(p.detach())
        for parameters, its in ((whole, optimizer), (resumed, other)):
            for p in parameters:
                set_gradient(p, gradients_at(step, p.shape))
            its.step()
    assert [p.tolist() for p in whole] == [p.tolist() for p in resumed]
    with pytest.raises(ValueError, match=r"the state's groups have \[2\] parameters, the optimizer's \[1, 1\]"):
        kind([{"params": [p]} for p in whole], **options).load_state_dict(without_groups(state))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda s: s["arrays"].update({"exp_avg.0": np.zeros(4)}), r"Adam: the state's exp_avg\.0 of shape \(4,\)"),
        (lambda s: s["arrays"].update({"exp_avg.7": np.zeros(3)}), r"exp_avg\.7 of shape \(3,\) does not fit"),
        (lambda s: s["arrays"].update({"momentum_buffer.0": np.zeros(3)}), r"momentum_buffer\.0"),
        (lambda s: s["steps"].append(1), "the state counts 3 parameters, the optimiser has 2"),
        (lambda s: s["param_groups"][0]["params"].pop(), r"groups have \[1\] parameters, the optimizer's \[2\]"),
        (lambda s: s["param_groups"].append({"params": []}), r"groups have \[2, 0\] parameters, the optimizer's \[2\]"),
        (lambda s: s["param_groups"][0].update(eps=-1), "Adam: the state's group 0: eps must not be negative, got -1"),
        (lambda s: s.pop("param_groups"), "Adam: a state has param_groups and arrays"),
        (lambda s: s.update(param_groups=None), "Adam: the state's param_groups must be a list, got None"),
        (lambda s: s.update(param_groups=["lr"]), "Adam: the state's group 0 must be a dict with a list of params"),
        (lambda s: s["param_groups"][0].update(params=2), "the state's group 0 must be a dict with a list of params"),
        (lambda s: s["param_groups"][0].update(lr=None), "the state's group 0: lr must be a number, got None"),
        (lambda s: s["param_groups"][0].update(lr="x"), "the state's group 0: lr must be a number, got 'x'"),
        (lambda s: s["param_groups"][0].update(betas=None), "group 0: betas must be two numbers .* got None"),
        (lambda s: s["param_groups"][0].update(betas=[1]), r"group 0: betas must be two numbers .* got \[1\]"),
        (lambda s: s.update(steps=None), "Adam: the state's steps must be a sequence of ints, got None"),
        (lambda s: s.update(steps=["a", 1]), "Adam: the state's steps must be a sequence of ints, got"),
        (lambda s: s.update(steps=[1.5, 1]), "Adam: the state's steps must be a sequence of ints, got"),
        (lambda s: s.update(steps=[-5, 1]), r"Adam: the state's steps must not be negative, got \[-5, 1\]"),
        (lambda s: s.update(arrays=None), "Adam: the state's arrays must be a dict, got None"),
        (lambda s: s.update(arrays=[1]), r"Adam: the state's arrays must be a dict, got \[1\]"),
        (
            lambda s: s["arrays"].update({"exp_avg.0": [1, 2, 3]}),
            r"exp_avg\.0 must be an array of real numbers, got \[",
        ),
        (lambda s: s["arrays"].update({"exp_avg.0": np.ones(3, complex)}), r"exp_avg\.0 must be an array of real num"),
        (lambda s: s["arrays"].update({"exp_avg.0": np.array(["a"] * 3)}), r"exp_avg\.0 must be an array of real num"),
        (lambda s: s["arrays"].update({0: np.ones(3)}), r"the state's 0 of shape \(3,\) does not fit"),
        (lambda s: s["arrays"].update({"exp_avg.²": np.ones(3)}), r"the state's exp_avg\.² of shape \(3,\) does not"),
    ],
)
def test_state_that_does_not_fit_is_shown_and_changes_nothing(break_it: Any, message: str) -> None:
    parameters = [leaf(np.ones(3)), leaf(np.ones(2))]
    optimizer = optim.Adam(parameters)
    for p in parameters:
        set_gradient(p, np.ones(p.shape))
    optimizer.step()
    before = optimizer.state_dict()
    state = copy.deepcopy(before)
    state["param_groups"][0]["lr"] = 7.0
    break_it(state)
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert (after["param_groups"], after["steps"]) == (before["param_groups"], before["steps"])
    assert all(np.array_equal(after["arrays"][name], array) for name, array in before["arrays"].items())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda w: optim.SGD([]), ValueError, "SGD: there are no parameters"),
        (lambda w: optim.SGD([w, 3]), TypeError, "SGD: parameter 1 is not a leaf tensor"),
        (lambda w: optim.Adam([w * 2]), TypeError, "Adam: parameter 0 is not a leaf tensor"),
        (lambda w: optim.SGD([w, w]), ValueError, "SGD: a parameter is given twice"),
        (lambda w: optim.SGD([w], -0.1), ValueError, r"SGD: lr must not be negative, got -0\.1"),
        (lambda w: optim.SGD([w], math.nan), ValueError, "SGD: lr must be finite, got nan"),
        (lambda w: optim.AdamW([w], weight_decay=-1), ValueError, "AdamW: weight_decay must not be negative, got -1"),
        (lambda w: optim.SGD([w], momentum=-0.5), ValueError, r"momentum must not be negative, got -0\.5"),
        (lambda w: optim.SGD([w], nesterov=True), ValueError, "nesterov needs a momentum and no dampening"),
        (lambda w: optim.SGD([w], momentum=0.9, dampening=0.1, nesterov=True), ValueError, "no dampening"),
        (
            lambda w: optim.Adam([w], betas=(0.9, 1.0)),
            ValueError,
            r"Adam: betas must be two numbers in \[0, 1\), got \(0\.9, 1\.0\)",
        ),
        (lambda w: optim.AdamW([w], eps=-1), ValueError, "AdamW: eps must not be negative, got -1"),
        (lambda w: optim.RMSprop([w], alpha=-1), ValueError, "RMSprop: alpha must not be negative, got -1"),
        (lambda w: optim.SGD([w], momentum=math.inf), ValueError, "SGD: momentum must be finite, got inf"),
        (lambda w: optim.SGD([w], dampening=math.nan), ValueError, "SGD: dampening must be finite, got nan"),
        (lambda w: optim.SGD([w], nesterov="no"), TypeError, "SGD: nesterov must be True or False, got 'no'"),
        (lambda w: optim.Adam([w], betas=None), TypeError, r"Adam: betas must be two numbers in \[0, 1\), got None"),
        (lambda w: optim.Adam([w], betas=(0.9, None)), TypeError, "Adam: betas must be a number, got None"),
    ],
)
def test_optimiser_that_cannot_be_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(leaf([1.0]))


NUMPY: dict[type[Optimizer], dict[str, Any]] = {
    optim.SGD: {"lr": np.float64(0.1), "momentum": np.float64(0.9), "nesterov": np.bool_(True)},
    optim.Adam: {"betas": np.array([0.9, 0.99]), "eps": np.float32(1e-6)},
    optim.AdamW: {"betas": [np.float64(0.9), np.float64(0.99)], "weight_decay": np.float64(0.3)},
    optim.RMSprop: {"alpha": np.float64(0.9), "eps": np.float64(1e-6), "momentum": np.float64(0.9)},
}


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("kind", NUMPY, ids=lambda kind: kind.__name__)
def test_numbers_of_numpy_are_the_plain_ones_also_those_that_are_set_by_hand(kind: Any, by_hand: bool) -> None:
    plain = {name: np.asarray(value).tolist() for name, value in NUMPY[kind].items()}
    trained = []
    for options in (NUMPY[kind], plain):
        x = leaf(np.linspace(-1, 1, 5), "float32")
        optimizer = kind([x], **({} if by_hand else options))
        if by_hand:
            optimizer.param_groups[0].update(options)
        for step in range(3):
            set_gradient(x, gradients_at(step, x.shape))
            optimizer.step()
        state = optimizer.state_dict()
        assert {array.dtype for array in state["arrays"].values()} == {np.dtype("float32")}
        trained.append((x.numpy().tobytes(), repr(state)))
    assert trained[0] == trained[1]
    assert all(type(value) in (float, bool, tuple) for value in optimizer.defaults.values())


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("lr", None, TypeError, "SGD: group 1: lr must be a number, got None"),
        ("lr", math.nan, ValueError, "SGD: group 1: lr must be finite, got nan"),
        ("momentum", -1, ValueError, "SGD: group 1: momentum must not be negative, got -1"),
        ("nesterov", True, ValueError, "SGD: group 1: nesterov needs a momentum"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_any_group_is_stepped(
    name: str, value: Any, error: type[Exception], message: str
) -> None:
    x, y = leaf([1.0]), leaf([1.0])
    optimizer = optim.SGD([{"params": x}, {"params": y}], 0.1)
    for p in (x, y):
        set_gradient(p, [1.0])
    optimizer.param_groups[1][name] = value
    with pytest.raises(error, match=message):
        optimizer.step()
    assert (x.tolist(), y.tolist()) == ([1], [1])


def test_a_setting_that_cannot_be_is_refused_before_a_graph_is_launched() -> None:
    with gpucnn.use_backend("emulator"):
        x = gpucnn.ones(2, requires_grad=True)
        optimizer = optim.Adam([x], 0.1)

        @gpucnn.compile
        def step(factor: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = (x * factor).sum()
            loss.backward()
            optimizer.step()
            return loss

        for _ in range(4):
            step(gpucnn.ones(2))
        assert step.reason is None
        before = x.tolist(), optimizer.steps
        optimizer.lr = "x"
        with pytest.raises(TypeError, match="Adam: group 0: lr must be a number, got 'x'"):
            step(gpucnn.ones(2))
        assert (x.tolist(), optimizer.steps) == before
        optimizer.lr = 0.1
        step(gpucnn.ones(2))
        assert (step.reason, optimizer.steps) == (None, [5])


# -- groups --------------------------------------------------------------------------------------------

# What a second group has of its own, by the optimiser.
OWN: dict[type[Optimizer], dict[str, Any]] = {
    optim.SGD: {"lr": 0.03, "weight_decay": 0.3, "momentum": 0.5, "dampening": 0.0},
    optim.Adam: {"lr": 0.01, "weight_decay": 0.3, "betas": (0.6, 0.8)},
    optim.AdamW: {"lr": 0.01, "weight_decay": 0.0, "eps": 0.01},
    optim.RMSprop: {"lr": 0.01, "weight_decay": 0.3, "alpha": 0.7, "momentum": 0.4},
}


def grouped(kind: Any, parameters: list[Any], options: dict[str, Any], make: Any = None) -> Any:
    """The first parameter with the options, the others with settings of their own; `make`: PyTorch's of the kind."""
    return (make or kind)([{"params": parameters[:1]}, {"params": parameters[1:], **OWN[kind]}], **options)


@every_optimiser
def test_each_group_steps_as_an_optimizer_of_its_own(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    starts = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(SHAPES)]
    together, apart = [leaf(s) for s in starts], [leaf(s) for s in starts]
    optimizer = grouped(kind, together, options)
    others = [kind(apart[:1], **options), kind(apart[1:], **{**options, **OWN[kind]})]
    for step in range(STEPS):
        for p, q in zip(together, apart, strict=True):
            # now and then a whole group has no gradient, or one parameter of it
            skipped = (step + p.ndim) % 5 == 0
            p.grad = q.grad = None if skipped else gpucnn.tensor(gradients_at(step, p.shape))
        for its in (optimizer, *others):
            its.step()
    assert [p.tolist() for p in together] == [p.tolist() for p in apart]


@every_optimiser
def test_groups_are_pytorchs_also_one_that_is_added_on_the_way(
    kind: Any, formula: Any, options: dict[str, Any], torch: ModuleType
) -> None:
    starts = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(SHAPES)]
    ours, theirs = [leaf(s) for s in starts], [torch.tensor(s, requires_grad=True) for s in starts]
    optimizer = grouped(kind, ours[:2], options)
    other = grouped(kind, theirs[:2], options, getattr(torch.optim, kind.__name__))
    for step in range(STEPS):
        if step == 10:
            optimizer.add_param_group({"params": ours[2], "lr": 0.02})
            other.add_param_group({"params": theirs[2], "lr": 0.02})
        for p, q in zip(ours, theirs, strict=True):
            g = gradients_at(step, p.shape)
            set_gradient(p, g)
            q.grad = torch.tensor(g)
        for its in (optimizer, other):
            its.param_groups[1]["lr"] *= 0.9
            its.step()
    for group, its in zip(optimizer.param_groups, other.param_groups, strict=True):
        assert {name: its[name] for name in optimizer.defaults} == {name: group[name] for name in optimizer.defaults}
    for p, q in zip(ours, theirs, strict=True):
        bound = 32 * STEPS * 2.0**-53 * max(1.0, float(q.detach().abs().max()))
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=0, atol=bound)


def test_a_setting_of_the_optimizer_is_the_first_groups_and_assigning_it_sets_all() -> None:
    a, b = leaf([1.0]), leaf([1.0])
    optimizer = optim.SGD([{"params": [a], "lr": 0.5}, {"params": [b], "momentum": 0.25}], lr=0.1, weight_decay=1e-3)
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.5, 0.0, 1e-3)
    assert [p is q for p, q in zip(optimizer.params, (a, b), strict=True)] == [True, True]
    optimizer.lr = 0.75
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [(0.75, 0.0), (0.75, 0.25)]
    optimizer.param_groups[1]["lr"] = 0.125
    for p in (a, b):
        set_gradient(p, [1.0])
    optimizer.weight_decay = 0.0
    optimizer.step()
    assert (a.item(), b.item()) == (0.25, 0.875)


def test_named_parameters_and_a_single_tensor_of_a_group_are_taken() -> None:
    model, scale = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), leaf(1.0)
    for params in (
        model.named_parameters(), [{"params": model[0].named_parameters()}, {"params": model[1].parameters()}],
    ):  # fmt: skip
        found = optim.SGD(params).params
        assert [id(p) for p in found] == [id(p) for p in model.parameters()]
    optimizer = optim.SGD(model.parameters())
    optimizer.add_param_group({"params": scale})
    assert optimizer.param_groups[1]["params"][0] is scale


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (lambda v, w: [{"params": [v]}, {"params": []}], ValueError, "SGD: group 1: there are no parameters"),
        (
            lambda v, w: [{"params": [v]}, {"params": [w, v]}],
            ValueError,
            "SGD: group 1: a parameter is in group 0 alre",
        ),
        (lambda v, w: [{"params": [v, v]}], ValueError, "SGD: group 0: a parameter is given twice"),
        (
            lambda v, w: [{"params": [v]}, {"params": [w], "lr": -1}],
            ValueError,
            "SGD: group 1: lr must not be negative, g",
        ),
        (lambda v, w: [{"params": [v], "lr": "1"}], TypeError, "SGD: group 0: lr must be a number, got '1'"),
        (lambda v, w: [{"params": [v], "nesterov": True}], ValueError, "SGD: group 0: nesterov needs a momentum"),
        (
            lambda v, w: [{"params": [v]}, {"params": [w], "learning_rate": 1}],
            TypeError,
            "SGD: group 1: there is no learning_rate; the settings are lr, weight_decay, momentum, dampening, nesterov",
        ),
        (lambda v, w: [{"params": [v]}, w], TypeError, r"SGD: group 1: a group must be a dict with params, got tensor"),
        (lambda v, w: [{"lr": 1}], TypeError, r"SGD: group 0: a group must be a dict with params, got {'lr': 1}"),
        (
            lambda v, w: {"params": [v]},
            TypeError,
            "SGD: params must be several tensors, got a dict; groups come in a li",
        ),
        (lambda v, w: {v, w}, TypeError, "SGD: params must be several tensors, got a set, which has no order"),
        (
            lambda v, w: [{"params": {v, w}}],
            TypeError,
            "SGD: group 0: params must be several tensors, got a set, which",
        ),
        (lambda v, w: [{"params": [v, 3]}], TypeError, "SGD: group 0: parameter 1 is not a leaf tensor, .* but a int"),
        (
            lambda v, w: [("a", v), ("b", w * 2)],
            TypeError,
            "parameter b is not a leaf tensor, .* the result of an oper",
        ),
        (lambda v, w: nn.Sequential(nn.ReLU()), TypeError, r"got a Sequential; pass model\.parameters\(\)"),
        (lambda v, w: [nn.Linear(1, 1)], TypeError, r"parameter 0 .* but a Linear; pass model\.parameters\(\)"),
        (
            lambda v, w: [{"params": nn.Linear(1, 1)}],
            TypeError,
            r"group 0: .* got a Linear; pass model\.parameters\(\)",
        ),
    ],
)
def test_groups_that_cannot_be_are_refused_by_their_number(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optim.SGD(groups(leaf([1.0]), leaf([2.0])), lr=0.1)


def test_a_group_that_is_refused_leaves_the_optimizer_as_it_was() -> None:
    w = leaf([1.0])
    optimizer = optim.Adam([w], 0.1)
    for group in ({"params": [leaf([1.0]), w]}, {"params": [leaf([1.0])], "eps": -1}):
        with pytest.raises(ValueError, match="Adam: group 1: "):
            optimizer.add_param_group(group)
    set_gradient(w, [1.0])
    optimizer.step()
    assert (len(optimizer.param_groups), optimizer.steps) == (1, [1])


def test_parameters_put_into_a_group_by_hand_are_refused_before_any_is_changed() -> None:
    w, late = leaf([1.0]), leaf([1.0])
    optimizer = optim.SGD([w], 0.1)
    optimizer.param_groups[0]["params"].append(late)
    set_gradient(w, [1.0])
    with pytest.raises(ValueError, match=r"SGD: its groups have other parameters .* use add_param_group\(\)"):
        optimizer.step()
    assert w.item() == 1


@every_optimiser
def test_state_of_groups_goes_on_bit_for_bit(kind: Any, formula: Any, options: dict[str, Any]) -> None:
    def run(parameters: list[Tensor], optimizer: Optimizer, steps: range) -> list[Any]:
        for step in steps:
            for i, parameter in enumerate(parameters):
                parameter.grad = None if i == step % 4 else gpucnn.tensor(gradients_at(step, parameter.shape))
            optimizer.step()
        return [p.tolist() for p in parameters]

    starts = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(SHAPES)]
    whole = [leaf(s) for s in starts]
    optimizer = grouped(kind, whole, options)
    optimizer.param_groups[1]["lr"] *= 0.5
    run(whole, optimizer, range(10))
    state, resumed = optimizer.state_dict(), [leaf(p.numpy()) for p in whole]
    expected = run(whole, optimizer, range(10, 20))
    other = kind([{"params": resumed[:1]}, {"params": resumed[1:]}], lr=7.0)
    held = other.param_groups[1]
    other.load_state_dict({**json.loads(json.dumps(state | {"arrays": {}})), "arrays": state["arrays"]})
    assert held["lr"] == OWN[kind]["lr"] * 0.5
    assert run(resumed, other, range(10, 20)) == expected


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop])
def test_defaults_are_pytorchs(kind: Any, torch: ModuleType) -> None:
    theirs = inspect.signature(getattr(torch.optim, kind.__name__)).parameters
    for name, parameter in inspect.signature(kind).parameters.items():
        assert name in theirs
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.default == theirs[name].default, name


# -- schedules -----------------------------------------------------------------------------------------

Schedule = Callable[[Optimizer], LRScheduler]


def rates(schedule: Schedule, steps: int, lr: float = 0.5) -> list[float]:
    optimizer = optim.SGD([leaf([1.0])], lr)
    scheduler = schedule(optimizer)
    found = [optimizer.lr]
    for _ in range(steps):
        scheduler.step()
        found.append(optimizer.lr)
    return found


def torch_rates(torch: ModuleType, name: str, options: dict[str, Any], steps: int, lr: float = 0.5) -> list[float]:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr, momentum=0.9)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("StepLR", {"step_size": 7}, 40),
        ("StepLR", {"step_size": 1, "gamma": 0.9}, 40),
        ("MultiStepLR", {"milestones": [9, 3, 3, 20]}, 40),
        ("MultiStepLR", {"milestones": (1, 2), "gamma": 0.7}, 4),
        ("ExponentialLR", {"gamma": 0.95}, 40),
        ("PolynomialLR", {}, 9),
        ("PolynomialLR", {"total_iters": 30, "power": 0.9}, 33),
        ("LinearLR", {}, 9),
        ("LinearLR", {"start_factor": 1.0, "end_factor": 0.25, "total_iters": 7}, 12),
        ("LinearLR", {"start_factor": 0.1, "end_factor": 0.7, "total_iters": 1}, 4),
        ("ConstantLR", {}, 9),
        ("ConstantLR", {"factor": 0.5, "total_iters": 1}, 4),
        ("LambdaLR", {"lr_lambda": lambda step: 1 / (1 + step)}, 20),
        ("CosineAnnealingLR", {"T_max": 10, "eta_min": 0.1}, 45),
        ("CosineAnnealingLR", {"T_max": 1, "eta_min": 0.01}, 6),
        ("CosineAnnealingLR", {"T_max": 33}, 33),
        ("CosineAnnealingWarmRestarts", {"T_0": 5}, 23),
        ("CosineAnnealingWarmRestarts", {"T_0": 1, "eta_min": 0.1}, 4),
        ("CosineAnnealingWarmRestarts", {"T_0": 1, "T_mult": 3, "eta_min": 0.01}, 130),
        ("CosineAnnealingWarmRestarts", {"T_0": 4, "T_mult": 2}, 70),
        ("OneCycleLR", {"max_lr": 0.3, "total_steps": 50}, 49),
        (
            "OneCycleLR",
            {"max_lr": 2.0, "total_steps": 17, "pct_start": 0.5, "div_factor": 10, "final_div_factor": 3},
            16,
        ),
        ("OneCycleLR", {"max_lr": 2.0, "total_steps": 9, "pct_start": 0.05}, 8),
        ("OneCycleLR", {"max_lr": 2.0, "total_steps": 9, "pct_start": 1.0}, 8),
        ("OneCycleLR", {"max_lr": 2.0, "total_steps": 9, "pct_start": 0.0}, 8),
    ],
)
def test_schedule_is_pytorchs_at_every_step(name: str, options: Any, steps: int, torch: ModuleType) -> None:
    """PyTorch multiplies its cosine on from step to step; near the minimum each factor loses (2·T_max/π)² roundings."""
    ours, theirs = rates(lambda o: getattr(optim, name)(o, **options), steps), torch_rates(torch, name, options, steps)
    loss = options.get("T_max", 1) ** 2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=8 * steps * loss * 2.0**-53 * max(theirs))


def test_step_schedule_divides_at_each_step_size() -> None:
    found = rates(lambda o: optim.StepLR(o, 3, 0.5), 7)
    np.testing.assert_allclose(found, [0.5] * 3 + [0.25] * 3 + [0.125] * 2, rtol=1e-15)


def test_cosine_schedule_is_half_way_in_the_middle_and_comes_back() -> None:
    found = rates(lambda o: optim.CosineAnnealingLR(o, 8, 0.1), 16)
    assert found[0] == 0.5
    np.testing.assert_allclose(found[4], 0.3, rtol=1e-14)
    np.testing.assert_allclose(found[8], 0.1, rtol=1e-14)
    np.testing.assert_allclose(found[8:], found[8::-1], rtol=1e-14)
    for epoch in range(9):
        expected = 0.1 + 0.4 * math.cos(math.pi * epoch / 16) ** 2  # (1 + cos 2a) / 2 = cos² a
        assert found[epoch] == pytest.approx(expected, rel=1e-13)


def test_a_linear_schedule_ends_on_its_end_factor_to_the_bit_and_stays() -> None:
    found = rates(lambda o: optim.LinearLR(o, 0.1, 0.7, 3), 6)
    assert found[0] == 0.5 * 0.1
    assert found[3:] == [0.5 * 0.7] * 4


def test_a_constant_schedule_gives_the_rate_back_to_the_bit_also_from_0() -> None:
    assert rates(lambda o: optim.ConstantLR(o, 0.3, 2), 4) == [0.15, 0.15, 0.5, 0.5, 0.5]
    assert rates(lambda o: optim.ConstantLR(o, 0, 1), 2) == [0, 0.5, 0.5]


def test_a_cosine_restarts_from_the_full_rate_each_time_after_longer() -> None:
    found = rates(lambda o: optim.CosineAnnealingWarmRestarts(o, 2, 3, 0.1), 27)
    assert [i for i, lr in enumerate(found) if lr == 0.5] == [0, 2, 8, 26]
    np.testing.assert_allclose([found[1], found[5], found[17]], 0.3, rtol=1e-14)
    assert min(found) > 0.1


def test_a_cosine_knows_where_it_is_after_any_number_of_steps() -> None:
    schedule = optim.CosineAnnealingWarmRestarts(optim.SGD([leaf([1.0])], 0.5), 3)
    assert schedule.lr_at(3 * 10**18) == 0.5
    growing = optim.CosineAnnealingWarmRestarts(optim.SGD([leaf([1.0])], 0.5), 1, 5)
    assert growing.lr_at((5**20 - 1) // 4) == 0.5  # where a logarithm would round to the restart before
    assert growing.lr_at((5**20 - 1) // 4 - 1) < 1e-20


def test_a_state_in_which_restarts_would_never_end_is_refused() -> None:
    schedule = optim.CosineAnnealingWarmRestarts(optim.SGD([leaf([1.0])], 0.5), 3, 2)
    state = schedule.state_dict() | {"last_epoch": 4}
    for change, error in (({"t_mult": 0}, ValueError), ({"t_0": 0}, ValueError), ({"t_mult": 0.5}, TypeError)):
        with pytest.raises(error, match=r"CosineAnnealingWarmRestarts: T_(0|mult) must be (at least 1|an int), got 0"):
            schedule.load_state_dict(state | change)
    assert (schedule.last_epoch, schedule.t_0, schedule.t_mult, schedule.optimizer.lr) == (0, 3, 2, 0.5)


def test_one_cycle_goes_up_and_down_and_ends() -> None:
    found = rates(lambda o: optim.OneCycleLR(o, 1.0, 21, 0.5, 10, 100), 21)
    top = 0.5 * 21 - 1
    assert found[0] == pytest.approx(0.1, rel=1e-14)
    assert max(found) == max(found[9], found[10])
    assert found[:10] == sorted(found[:10])
    assert found[10:] == sorted(found[10:], reverse=True)
    for step in range(10):
        assert found[step] == pytest.approx(0.1 + 0.9 * math.sin(math.pi * step / top / 2) ** 2, rel=1e-13)
    assert found[20] == found[21] == pytest.approx(0.001, rel=1e-13)
    scheduler = optim.OneCycleLR(optim.SGD([leaf([1.0])]), 1.0, 2)
    scheduler.step()
    scheduler.step()
    with pytest.raises(ValueError, match="step 3 comes after total_steps=2"):
        scheduler.step()


def test_warm_up_climbs_in_equal_steps_to_the_schedule_that_follows() -> None:
    found = rates(lambda o: optim.WarmUp(optim.StepLR(o, 2, 0.1), 4), 8)
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.05, 0.05, 0.005], rtol=1e-13)


SCHEDULES: dict[str, Schedule] = {
    "step": lambda o: optim.StepLR(o, 3, 0.3),
    "multi-step": lambda o: optim.MultiStepLR(o, [2, 7], 0.3),
    "exponential": lambda o: optim.ExponentialLR(o, 0.9),
    "polynomial": lambda o: optim.PolynomialLR(o, 11, 2),
    "linear": lambda o: optim.LinearLR(o, 0.2, 0.9, 6),
    "constant": lambda o: optim.ConstantLR(o, 0.2, 6),
    "cosine": lambda o: optim.CosineAnnealingLR(o, 9, 0.01),
    "restarts": lambda o: optim.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
    "one-cycle": lambda o: optim.OneCycleLR(o, 0.7, 15),
    "warm-up": lambda o: optim.WarmUp(optim.CosineAnnealingLR(o, 7), 4),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
@pytest.mark.parametrize("done", [0, 2, 8])
def test_schedule_goes_on_where_it_was(schedule: Schedule, done: int) -> None:
    expected = rates(schedule, 14)
    optimizer = optim.SGD([leaf([1.0])], 0.5)
    scheduler = schedule(optimizer)
    for _ in range(done):
        scheduler.step()
    state = json.loads(json.dumps([optimizer.lr, scheduler.state_dict()]))
    resumed = optim.SGD([leaf([1.0])], 123.0)  # the rate comes from the state
    other = schedule(resumed)
    resumed.lr = state[0]
    other.load_state_dict(state[1])
    found = [resumed.lr]
    for _ in range(14 - done):
        other.step()
        found.append(resumed.lr)
    assert found == expected[done:]


OTHERS: dict[str, Schedule] = {
    "step": lambda o: optim.StepLR(o, 2, 0.9),
    "multi-step": lambda o: optim.MultiStepLR(o, [5], 0.9),
    "exponential": lambda o: optim.ExponentialLR(o, 0.5),
    "polynomial": lambda o: optim.PolynomialLR(o),
    "linear": lambda o: optim.LinearLR(o),
    "constant": lambda o: optim.ConstantLR(o),
    "cosine": lambda o: optim.CosineAnnealingLR(o, 5),
    "restarts": lambda o: optim.CosineAnnealingWarmRestarts(o, 4),
    "one-cycle": lambda o: optim.OneCycleLR(o, 0.2, 30, 0.5, 3.0),
    "warm-up": lambda o: optim.WarmUp(optim.CosineAnnealingLR(o, 9, 0.1), 2),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_state_of_a_schedule_brings_its_settings(name: str) -> None:
    expected = rates(SCHEDULES[name], 14)
    scheduler = SCHEDULES[name](optim.SGD([leaf([1.0])], 0.5))
    for _ in range(5):
        scheduler.step()
    other = OTHERS[name](optim.SGD([leaf([1.0])], 123.0))
    other.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    found = [other.optimizer.lr]
    for _ in range(9):
        other.step()
        found.append(other.optimizer.lr)
    assert found == expected[5:]


def test_state_of_a_schedule_of_an_earlier_version_brings_where_it_was() -> None:
    optimizer = optim.SGD([leaf([1.0])], 123.0)
    scheduler = optim.StepLR(optimizer, 2, 0.5)
    scheduler.load_state_dict({"base_lr": 8.0, "last_epoch": 5})
    assert optimizer.lr == 2


def test_state_of_a_schedule_of_a_version_without_groups_brings_all_its_numbers() -> None:
    now = {"base_lrs": [0.004], "max_lrs": [0.25], "initial_lrs": [0.025], "min_lrs": [0.00025], "last_epoch": 3}
    then = {name.removesuffix("s"): value[0] if isinstance(value, list) else value for name, value in now.items()}
    found = []
    for state in (now, then):
        scheduler = optim.OneCycleLR(optim.SGD([leaf([1.0])]), 9.0, 12)
        scheduler.load_state_dict(state)
        found.append((scheduler.state_dict(), scheduler.get_last_lr()))
    assert found[0] == found[1]
    assert found[0][0].items() >= now.items()
    two = optim.OneCycleLR(optim.SGD([{"params": leaf([1.0])}, {"params": leaf([1.0])}]), 9.0, 12)
    with pytest.raises(ValueError, match=r"OneCycleLR: the state has \w+ \[\S+\], the optimizer 2 groups"):
        two.load_state_dict(then)
    assert two.last_epoch == 0


# -- schedules of groups ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("StepLR", {"step_size": 3}, 12),
        ("MultiStepLR", {"milestones": [2, 5]}, 12),
        ("ExponentialLR", {"gamma": 0.9}, 12),
        ("PolynomialLR", {"total_iters": 10, "power": 2}, 12),
        ("LinearLR", {"total_iters": 7}, 12),
        ("ConstantLR", {"factor": 0.5}, 12),
        ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "eta_min": 0.001}, 12),
        ("LambdaLR", {"lr_lambda": lambda step: 1 / (1 + step)}, 12),
        ("LambdaLR", {"lr_lambda": [lambda step: 0.5**step, lambda step: 1 + step]}, 12),
        ("CosineAnnealingLR", {"T_max": 8, "eta_min": 0.001}, 12),
        ("OneCycleLR", {"max_lr": 0.3, "total_steps": 13}, 12),
        ("OneCycleLR", {"max_lr": [0.3, 2.0], "total_steps": 13}, 12),
    ],
)
def test_schedules_move_each_group_as_pytorchs_do(name: str, options: Any, steps: int, torch: ModuleType) -> None:
    w = [torch.ones(1, requires_grad=True) for _ in range(2)]
    theirs = torch.optim.SGD([{"params": w[:1]}, {"params": w[1:], "lr": 0.02}], lr=0.5, momentum=0.9)
    ours = optim.SGD([{"params": leaf([1.0])}, {"params": leaf([1.0]), "lr": 0.02}], lr=0.5, momentum=0.9)
    a, b = getattr(optim, name)(ours, **options), getattr(torch.optim.lr_scheduler, name)(theirs, **options)
    for _ in range(steps):
        assert a.get_last_lr() == [group["lr"] for group in ours.param_groups]
        np.testing.assert_allclose(a.get_last_lr(), b.get_last_lr(), rtol=1e-12)
        theirs.step()
        a.step()
        b.step()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_each_group_has_the_rates_of_an_optimizer_of_its_own(schedule: Schedule) -> None:
    scheduler = schedule(optim.SGD([{"params": leaf([1.0])}, {"params": leaf([1.0]), "lr": 0.02}], lr=0.5))
    for expected in zip(*(rates(schedule, 12, lr) for lr in (0.5, 0.02)), strict=True):
        assert scheduler.get_last_lr() == list(expected)
        scheduler.step()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_schedule_of_groups_goes_on_where_it_was(schedule: Schedule) -> None:
    def trained(lr: float) -> LRScheduler:
        return schedule(optim.SGD([{"params": leaf([1.0])}, {"params": leaf([1.0]), "lr": lr}], lr=0.5))

    scheduler, other = trained(0.02), trained(123.0)
    for _ in range(5):
        scheduler.step()
    other.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    for _ in range(5):
        assert other.get_last_lr() == scheduler.get_last_lr()
        scheduler.step()
        other.step()


def test_a_group_that_is_added_after_the_schedule_keeps_its_rate() -> None:
    optimizer = optim.SGD([leaf([1.0])], lr=1.0)
    schedules = [optim.ExponentialLR(optimizer, 0.5), optim.ReduceLROnPlateau(optimizer, patience=0)]
    optimizer.add_param_group({"params": leaf([1.0]), "lr": 0.25})
    schedules[0].step()
    assert schedules[0].get_last_lr() == [0.5, 0.25]
    for _ in range(2):
        schedules[1].step(1.0)
    assert schedules[1].get_last_lr() == [0.05, 0.25]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda o: optim.OneCycleLR(o, [1.0, 2.0], 5),
            ValueError,
            r"max_lr must be a number or one for each of the 1 g",
        ),
        (lambda o: optim.OneCycleLR(o, ["1"], 5), TypeError, "OneCycleLR: max_lr must be a number, got '1'"),
        (
            lambda o: optim.LambdaLR(o, [abs, abs]),
            ValueError,
            "lr_lambda must be a function or one for each of the 1 gro",
        ),
        (
            lambda o: optim.ReduceLROnPlateau(o, min_lr=[0, 0]),
            ValueError,
            "min_lr must be a number or one for each of t",
        ),
        (
            lambda o: optim.StepLR([o, o], 1),
            TypeError,
            "StepLR: optimizer must be .* got list; one optimizer steps them",
        ),
        (lambda o: optim.OneCycleLR(None, 1.0, 5), TypeError, "OneCycleLR: optimizer must be .*, got NoneType"),
        (lambda o: optim.ReduceLROnPlateau(o, "less"), ValueError, "mode must be one of 'min', 'max', got 'less'"),
        (
            lambda o: optim.ReduceLROnPlateau(o, threshold_mode=1),
            ValueError,
            "threshold_mode must be one of 'rel', 'abs'",
        ),
        (
            lambda o: optim.ReduceLROnPlateau(o, factor=1),
            ValueError,
            "factor must be at least 0 and less than 1, got 1",
        ),
        (lambda o: optim.ReduceLROnPlateau(o, patience=-1), ValueError, "patience must be at least 0, got -1"),
        (lambda o: optim.ReduceLROnPlateau(o, cooldown=1.5), TypeError, r"cooldown must be an int, got 1\.5"),
        (
            lambda o: optim.ReduceLROnPlateau(o, eps=-1),
            ValueError,
            "ReduceLROnPlateau: eps must not be negative, got -1",
        ),
        (lambda o: optim.ReduceLROnPlateau(o).step("x"), TypeError, "metrics must be a number, got 'x'"),
    ],
)
def test_schedule_that_does_not_fit_the_groups_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(optim.SGD([leaf([1.0])]))


PLATEAUS: list[dict[str, Any]] = [
    {"patience": 2},
    {"patience": 0, "factor": 0.5, "cooldown": 2},
    {"patience": 1, "threshold": 0.1},
    {"patience": 1, "threshold": 0.1, "threshold_mode": "abs", "cooldown": 1},
    {"patience": 1, "mode": "max", "threshold": 0.05},
    {"patience": 0, "mode": "max", "threshold_mode": "abs", "min_lr": 0.01},
    {"patience": 0, "min_lr": [0.05, 0.001], "eps": 0.004},
]


def measured(count: int, seed: int) -> list[float]:
    """What falls at first, then wanders, with a NaN and an infinity."""
    found = 2 * 0.9 ** np.arange(count) + 0.05 * np.random.default_rng(seed).standard_normal(count)
    found[[7, 19]] = math.nan, math.inf
    return [float(value) for value in found]


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateaus_are_pytorchs_at_every_step(options: dict[str, Any], torch: ModuleType) -> None:
    w = [torch.ones(1, requires_grad=True) for _ in range(2)]
    theirs = torch.optim.SGD([{"params": w[:1]}, {"params": w[1:], "lr": 0.02}], lr=0.5)
    ours = optim.SGD([{"params": leaf([1.0])}, {"params": leaf([1.0]), "lr": 0.02}], lr=0.5)
    a, b = optim.ReduceLROnPlateau(ours, **options), torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    rates = set()
    for value in measured(40, seed=1):
        a.step(value)
        b.step(value)
        assert a.get_last_lr() == [group["lr"] for group in ours.param_groups] == b.get_last_lr()
        names = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        assert [getattr(a, name) for name in names] == [getattr(b, name) for name in names]
        rates.add(a.get_last_lr()[0])
    assert len(rates) > 1


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau_goes_on_where_it_was_with_its_settings(options: dict[str, Any]) -> None:
    def made(**options: Any) -> Any:
        groups = [{"params": leaf([1.0])}, {"params": leaf([1.0]), "lr": 0.02}]
        return optim.ReduceLROnPlateau(optim.SGD(groups, lr=0.5), **options)

    whole, resumed = made(**options), made(patience=9, factor=0.7)
    for i, value in enumerate(measured(40, seed=2)):
        if i == 11:
            resumed.optimizer.load_state_dict(whole.optimizer.state_dict())
            resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        for scheduler in (whole, resumed) if i >= 11 else (whole,):
            scheduler.step(gpucnn.tensor(value, "float64"))
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.get_last_lr() == whole.get_last_lr()
    with pytest.raises(ValueError, match="mode must be one of 'min', 'max', got 'less'"):
        resumed.load_state_dict({**whole.state_dict(), "mode": "less"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: optim.StepLR(o, 0), "StepLR: step_size must be at least 1, got 0"),
        (lambda o: optim.PolynomialLR(o, 0), "PolynomialLR: total_iters must be at least 1, got 0"),
        (lambda o: optim.PolynomialLR(o, 4, -0.5), r"PolynomialLR: power must not be negative, got -0\.5"),
        (
            lambda o: optim.LinearLR(o, 0.0),
            "LinearLR: start_factor must be larger than 0, got 0.0; end_factor may be 0",
        ),
        (
            lambda o: optim.LinearLR(o, 1.5),
            r"LinearLR: start_factor must be from 0 to 1, got 1\.5; raise the optimizer's",
        ),
        (
            lambda o: optim.LinearLR(o, 0.5, 2),
            "LinearLR: end_factor must be from 0 to 1, got 2; raise the optimizer's lr",
        ),
        (lambda o: optim.LinearLR(o, total_iters=0), "LinearLR: total_iters must be at least 1, got 0"),
        (lambda o: optim.ConstantLR(o, -0.5), r"ConstantLR: factor must not be negative, got -0\.5"),
        (lambda o: optim.ConstantLR(o, total_iters=2.5), r"ConstantLR: total_iters must be an int, got 2\.5"),
        (
            lambda o: optim.CosineAnnealingWarmRestarts(o, 0),
            "CosineAnnealingWarmRestarts: T_0 must be at least 1, got 0",
        ),
        (lambda o: optim.CosineAnnealingWarmRestarts(o, 2, 1.5), r"T_mult must be an int, got 1\.5"),
        (lambda o: optim.CosineAnnealingLR(o, 0), "T_max must be at least 1, got 0"),
        (lambda o: optim.OneCycleLR(o, 1.0, 0), "total_steps must be positive .* got 0"),
        (lambda o: optim.OneCycleLR(o, 1.0, 5, pct_start=1.5), r"pct_start in 0 … 1, got 5 and 1\.5"),
        (lambda o: optim.WarmUp(optim.StepLR(o, 1), 0), "WarmUp: steps must be at least 1, got 0"),
        (lambda o: optim.WarmUp(o, 3), r"WarmUp: after must be a gpucnn\.optim\.LRScheduler, got SGD"),
        (lambda o: optim.OneCycleLR(o, math.nan, 10), "OneCycleLR: max_lr must be finite, got nan"),
        (lambda o: optim.OneCycleLR(o, -1, 10), "OneCycleLR: max_lr must not be negative, got -1"),
        (lambda o: optim.OneCycleLR(o, 1, 10, div_factor=1e-320), "max_lr / div_factor must be finite, got inf"),
        (lambda o: optim.OneCycleLR(o, 1, 10, final_div_factor=1e-320), "/ final_div_factor must be finite, got inf"),
        (lambda o: optim.CosineAnnealingLR(o, 3, math.nan), "CosineAnnealingLR: eta_min must be finite, got nan"),
        (lambda o: optim.StepLR(o, 3, -0.5), r"StepLR: gamma must not be negative, got -0\.5"),
        (lambda o: optim.MultiStepLR(o, [3], math.inf), "MultiStepLR: gamma must be finite, got inf"),
        (lambda o: optim.ReduceLROnPlateau(o, threshold=math.nan), "threshold must be finite, got nan"),
        (
            lambda o: optim.LambdaLR(o, lambda step: -1.0),
            r"LambdaLR: the learning rate of group 0 after 0 steps must not be negative, got -0\.001",
        ),
    ],
)
def test_schedule_that_cannot_be_is_refused(make: Any, message: str) -> None:
    optimizer = optim.SGD([leaf([1.0])])
    with pytest.raises((ValueError, TypeError), match=message):
        make(optimizer)
    assert optimizer.lr == 1e-3


def test_a_schedule_stays_where_it_is_before_a_step_to_a_rate_that_cannot_be() -> None:
    optimizer = optim.SGD([leaf([1.0])], 1.0)
    schedule = optim.ExponentialLR(optimizer, 1e308)
    schedule.step()
    with pytest.raises(
        ValueError, match=r"ExponentialLR: group 0 has no .* after 2 steps: .*, with .*'gamma': 1e\+308"
    ):
        schedule.step()
    assert (optimizer.lr, schedule.last_epoch) == (1e308, 1)
    other = optim.StepLR(optimizer, 1, 10.0)
    with pytest.raises(ValueError, match="StepLR: the learning rate of group 0 after 1 steps must be finite, got inf"):
        other.step()
    assert (optimizer.lr, other.last_epoch) == (1e308, 0)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "WarmUp: a state has after, this is None"),
        ({}, "WarmUp: a state has after, this is {}"),
        ({"after": None}, "OneCycleLR: a state has last_epoch, this is None"),
        ({"after": {"last_epoch": None}}, "OneCycleLR: the state's last_epoch must be an int, got None"),
        ({"after": {"last_epoch": -1}}, "OneCycleLR: the state's last_epoch must be at least 0, got -1"),
        ({"after": {"last_epoch": 99}}, "OneCycleLR: step 99 comes after total_steps=5"),
        (
            {"after": {"last_epoch": 0, "base_lr": "a"}},
            r"the state's base_lrs must be of the kind of \[0\.001\], got \['a'\]",
        ),
        (
            {"after": {"last_epoch": 0, "max_lrs": None}},
            r"the state's max_lrs must be of the kind of \[0\.1\], got None",
        ),
        ({"after": {"last_epoch": 0, "total_steps": "5"}}, "the state's total_steps must be of the kind of 5, got '5'"),
        ({"after": {"last_epoch": 0, "max_lrs": [math.nan]}}, "OneCycleLR: the learning rate of group 0 .* got nan"),
        ({"after": {"last_epoch": 1}, "last_epoch": 99}, "OneCycleLR: step 97 comes after total_steps=5"),
        ({"after": {"last_epoch": 1}}, "WarmUp: a state has last_epoch"),
    ],
)
def test_state_of_a_schedule_that_cannot_be_changes_nothing(state: Any, message: str) -> None:
    optimizer = optim.SGD([leaf([1.0])])
    schedule = optim.WarmUp(optim.OneCycleLR(optimizer, 0.1, 5, pct_start=0.5), 2)
    schedule.step()
    optimizer.lr = 0.5
    before = schedule.state_dict()
    with pytest.raises((ValueError, TypeError), match=message):
        schedule.load_state_dict(state)
    assert (schedule.state_dict(), optimizer.lr) == (before, 0.5)
    with pytest.raises(ValueError, match="ReduceLROnPlateau: a state has last_epoch, this is None"):
        optim.ReduceLROnPlateau(optimizer).load_state_dict(None)  # type: ignore[arg-type]


def test_a_schedule_of_no_function_or_of_no_numbers_is_refused() -> None:
    optimizer = optim.SGD([leaf([1.0])])
    with pytest.raises(TypeError, match=r"LambdaLR: lr_lambda must be a function of the step, got 0\.5"):
        optim.LambdaLR(optimizer, 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="what lr_lambda returns must be a number, got 'half'"):
        optim.LambdaLR(optimizer, lambda step: "half")  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="MultiStepLR: milestones must be a sequence of ints, got 3"):
        optim.MultiStepLR(optimizer, 3)  # type: ignore[arg-type]


# -- clipping ------------------------------------------------------------------------------------------


def test_long_gradients_are_scaled_together_to_the_norm_and_short_ones_left() -> None:
    a, b, without = leaf([1.0, 1]), leaf([[1.0]]), leaf([1.0])
    set_gradient(a, [3, 0])
    set_gradient(b, [[4]])
    assert optim.clip_grad_norm_([a, b, without], 10) == 5
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.tolist() == [3, 0]
    assert optim.clip_grad_norm_(iter([a, b, without]), 2.5) == 5
    np.testing.assert_allclose([*a.grad.tolist(), *b.grad.tolist()[0]], [1.5, 0, 2], rtol=2.5e-7)  # torch's 1e-6 / 5
    assert without.grad is None
    assert optim.clip_grad_norm_([without], 1.0) == 0


def test_clipping_is_pytorchs(torch: ModuleType) -> None:
    values = [gradients_at(i, shape) for i, shape in enumerate(SHAPES)]
    for clip, limit in [("norm", 0.7), ("norm", 1e9), ("value", 0.3)]:
        ours, theirs = [leaf(v) for v in values], [torch.tensor(v, requires_grad=True) for v in values]
        for p, q, v in zip(ours, theirs, values, strict=True):
            set_gradient(p, v)
            q.grad = torch.tensor(v)
        total = getattr(optim, f"clip_grad_{clip}_")(ours, limit)
        expected = getattr(torch.nn.utils, f"clip_grad_{clip}_")(theirs, limit)
        assert clip == "value" or total == pytest.approx(float(expected), rel=1e-14)
        for p, q in zip(ours, theirs, strict=True):
            assert p.grad is not None
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-14)


def test_norm_of_float32_gradients_does_not_overflow() -> None:
    x = leaf([1.0, 1], "float32")
    set_gradient(x, [3e30, 4e30])
    assert optim.clip_grad_norm_([x], 1.0) == pytest.approx(5e30, rel=1e-6)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [0.6, 0.8], rtol=1e-6)


def test_gradients_that_are_not_finite_are_reported_and_left() -> None:
    x = leaf([1.0])
    set_gradient(x, [math.nan])
    with pytest.raises(ValueError, match="norm is nan; lower the learning rate or look for NaN"):
        optim.clip_grad_norm_([x], 1.0)


def test_the_norm_is_read_once_and_not_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpucnn.use_backend("emulator"):
        model, read = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), []
        backend = model[0].weight.backend
        (model(gpucnn.ones(2, 4)) ** 2).sum().backward()
        expected = math.sqrt(sum(float((p.grad.numpy().astype(float) ** 2).sum()) for p in model.parameters()))
        to_numpy = backend.to_numpy
        monkeypatch.setattr(backend, "to_numpy", lambda array: read.append(array.shape) or to_numpy(array))
        assert optim.clip_grad_norm_(model.parameters(), np.float64(1)) == expected
        assert read == [()]
        step = gpucnn.compile(lambda x: optim.clip_grad_norm_(model.parameters(), 1.0) and x)
        for _ in range(2):
            step(gpucnn.ones(1))
        with pytest.warns(UserWarning, match="is not captured in a graph, it runs as it is: the step reads values"):
            step(gpucnn.ones(1))


@pytest.mark.parametrize("limit", [-1.0, math.nan])
def test_negative_limits_are_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=f"max_norm must not be negative, got {limit}"):
        optim.clip_grad_norm_([], limit)
    with pytest.raises(ValueError, match=f"clip_value must not be negative, got {limit}"):
        optim.clip_grad_value_([], limit)


# -- together ------------------------------------------------------------------------------------------


def test_small_network_trains_as_in_pytorch(torch: ModuleType) -> None:
    """Forward, loss, backward, clip, step and schedule, ten times, in float64, with the same start."""
    t = torch.nn
    ours = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)).to("float64")
    theirs = t.Sequential(t.Conv2d(2, 3, 3), t.BatchNorm2d(3), t.ReLU(), t.Flatten(), t.Linear(36, 4)).double()
    theirs.load_state_dict({name: torch.tensor(value.numpy()) for name, value in ours.state_dict().items()})
    a, b = optim.AdamW(ours.parameters(), 0.01), torch.optim.AdamW(theirs.parameters(), 0.01)
    c, d = optim.CosineAnnealingLR(a, 20), torch.optim.lr_scheduler.CosineAnnealingLR(b, 20)
    generator = np.random.default_rng(0)
    for _ in range(10):
        x, labels = generator.standard_normal((5, 2, 6, 5)), generator.integers(0, 4, 5)
        a.zero_grad()
        b.zero_grad()
        loss = F.cross_entropy(ours(gpucnn.tensor(x)), labels)
        other = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(labels))
        loss.backward()
        other.backward()
        assert loss.item() == pytest.approx(other.item(), rel=1e-9)
        optim.clip_grad_norm_(ours.parameters(), 1.0)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        a.step()
        b.step()
        c.step()
        d.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=0, atol=1e-9)


def test_schedules_have_the_module_that_they_have_in_pytorch() -> None:
    from gpucnn.optim.lr_scheduler import StepLR

    assert StepLR is optim.StepLR is optim.lr_scheduler.StepLR
