"""The tape at length: chains, shared parts, what is kept and what is freed, and what training leaves in memory."""

import gc
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, nn, optim
from gpucnn import functional as F
from gpucnn.backends import Backend
from gpucnn.tensor import Node, enable_grad, record
from gpucnn.testing import CASES, Case


@pytest.fixture(autouse=True)
def default_backend(backend: str) -> Iterator[Backend]:
    with gpucnn.use_backend(backend) as chosen:
        yield chosen


def leaf(values: Any) -> Tensor:
    return gpucnn.tensor(np.asarray(values, np.float64), requires_grad=True)


def gradient(tensor: Tensor) -> np.ndarray:
    assert tensor.grad is not None
    return tensor.grad.numpy()


# -- leaves and results --------------------------------------------------------------------------------


def test_leaf_is_what_the_user_made_and_a_result_is_not() -> None:
    x, plain = leaf([1, 2]), gpucnn.ones(2, dtype="float64")
    y = x * plain
    assert (x.is_leaf, plain.is_leaf, (plain * 2).is_leaf, y.is_leaf) == (True, True, True, False)
    assert (x.requires_grad, plain.requires_grad, y.requires_grad) == (True, False, True)
    y.sum().backward()
    assert not y.is_leaf
    assert y.detach().is_leaf
    assert not y.detach().requires_grad


def test_only_leaves_keep_their_gradient_unless_asked() -> None:
    x = leaf([3.0])
    y = x * x
    z = y * 2
    z.retain_grad()
    (z * 5).backward()
    assert y.grad is None
    np.testing.assert_array_equal(gradient(z), [5])
    np.testing.assert_array_equal(gradient(x), [60])
    with pytest.raises(RuntimeError, match=r"retain_grad\(\) needs a tensor that requires a gradient"):
        gpucnn.ones(1).retain_grad()


def test_gradient_wanted_later_counts_from_then_on() -> None:
    x = gpucnn.ones(2)
    before = x * 2
    x.requires_grad = True
    after = x * 3
    assert not before.requires_grad
    after.sum().backward()
    np.testing.assert_array_equal(gradient(x), [3, 3])
    x.requires_grad = False
    assert x.grad is None
    assert not (x * 2).requires_grad


def test_a_leaf_that_is_frozen_for_a_while_keeps_its_gradient_and_what_was_computed_before() -> None:
    x = leaf([1.0, 2])
    (x * x).sum().backward()
    y = (x * 3).sum()
    x.requires_grad_(False)
    assert x.grad is None
    x.requires_grad_(True)
    y.backward()
    np.testing.assert_array_equal(gradient(x), [5, 7])  # 2x + 3
    x.requires_grad_(False)
    x.grad = None
    assert x.requires_grad_(True).grad is None


def test_gradient_of_a_leaf_without_axes_stays_an_array_that_can_be_clipped() -> None:
    x = leaf(2.0)
    for _ in range(2):
        (x * 3).backward()
    assert optim.clip_grad_norm_([x], 3.0) == 6
    np.testing.assert_allclose(gradient(x), 3, rtol=1e-6)


def test_requires_grad_of_a_result_cannot_be_set() -> None:
    for wish in (True, False):
        with pytest.raises(RuntimeError, match=r"only on a leaf; use detach\(\)"):
            (leaf([1.0]) * 2).requires_grad = wish


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (lambda: np.ones(2), TypeError, "gradient must be a Tensor, got ndarray"),
        (lambda: gpucnn.ones(3, dtype="float64"), ValueError, r"float64 of shape \(3,\), but the tensor is .* \(2,\)"),
        (lambda: gpucnn.ones(2), ValueError, "float32 of shape .* float64 of shape"),
    ],
)
def test_gradient_set_by_hand_must_fit(value: Callable[[], Any], error: type[Exception], message: str) -> None:
    x = leaf([1, 2])
    with pytest.raises(error, match=message):
        x.grad = value()
    assert x.grad is None
    x.grad = gpucnn.ones(2, dtype="float64")
    (x * 3).sum().backward()
    np.testing.assert_array_equal(gradient(x), [4, 4])
    with pytest.raises(RuntimeError, match="requires_grad=False can't have a gradient"):
        x.detach().grad = gpucnn.ones(2, dtype="float64")


def test_backward_of_a_leaf_gives_it_a_copy_of_the_seed() -> None:
    x, seed = leaf([1, 2]), gpucnn.ones(2, dtype="float64")
    x.backward(seed)
    seed[...] = 7
    np.testing.assert_array_equal(gradient(x), [1, 1])


# -- the walk ------------------------------------------------------------------------------------------


def test_tensor_used_many_times_gets_the_sum_of_all_shares() -> None:
    x = leaf([2.0, 3.0])
    y = x + x * x + x * x * x + (x * 0 + 1) * x
    y.sum().backward()
    np.testing.assert_array_equal(gradient(x), [2 + 2 * t + 3 * t * t for t in (2, 3)])


def test_doubling_forty_times_walks_each_node_once() -> None:
    """A walk along every path would take 2⁴⁰ steps."""
    x = leaf(1.0)
    y = x
    for _ in range(40):
        y = y + y * 1.0  # two ways of unequal length
    y.backward()
    assert gradient(x) == 2.0**40


def test_gradient_argument_weighs_the_elements() -> None:
    x = leaf([[1, 2], [3, 4]])
    (x * x).backward(gpucnn.tensor(np.array([[1.0, 10], [100, 1000]])))
    np.testing.assert_array_equal(gradient(x), [[2, 40], [600, 8000]])


def test_second_backward_through_a_shared_part_changes_no_gradient() -> None:
    """The error comes when the walk has already passed nodes that were still whole."""
    x, w = leaf([2.0]), leaf([5.0])
    shared = x * x
    first, second = shared * 3, (shared * w) * w
    first.backward()
    with pytest.raises(RuntimeError, match=r"an earlier backward\(\) has used and freed.*retain_graph=True"):
        second.backward()
    np.testing.assert_array_equal(gradient(x), [12])
    assert w.grad is None


def test_graph_kept_by_request_may_be_walked_as_often_as_wanted() -> None:
    x = leaf([3.0])
    y = x * x
    for _ in range(3):
        y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(gradient(x), [24])
    with pytest.raises(RuntimeError, match="freed"):
        y.backward()


def test_error_in_the_middle_changes_no_gradient(default_backend: Backend) -> None:
    def broken(dy: Any) -> Any:
        raise FloatingPointError("broken on purpose")

    a, b = leaf([1.0]), leaf([2.0])
    (a + b).backward()
    middle = record(default_backend, a.array * 1, (a, broken))
    loss = b * 7 + middle
    with pytest.raises(FloatingPointError):
        loss.backward()
    np.testing.assert_array_equal([gradient(a), gradient(b)], [[1], [1]])


def test_no_leaf_shares_its_gradient_with_another_or_with_the_graph() -> None:
    """One array, handed on unchanged by many ops, must not become the gradient of several leaves."""
    a, b, c, d, e = (leaf(np.ones((2, 3))) for _ in range(5))
    total = a + b.clone() + c.reshape(6).reshape(2, 3) + d.transpose(0, 1).transpose(1, 0) + F.cat([e[:1], e[1:]])
    total.retain_grad()
    total.backward(gpucnn.ones(2, 3, dtype="float64"))
    arrays = [gradient(t) for t in (a, b, c, d, e, total)]
    for i, array in enumerate(arrays):
        array[...] = i + 2
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(array, np.full((2, 3), i + 2.0))


def test_image_gradients_are_dense_and_channels_last_whatever_the_ops_made_of_them() -> None:
    x = leaf(np.zeros((2, 3, 4, 5)))
    x.permute(0, 3, 1, 2).backward(gpucnn.ones(2, 5, 3, 4, dtype="float64"))
    assert x.grad is not None
    assert x.grad.array.transpose(0, 2, 3, 1).flags.c_contiguous


# -- no_grad -------------------------------------------------------------------------------------------


def test_inner_no_grad_does_not_end_the_outer() -> None:
    x = leaf([1.0])
    with gpucnn.no_grad():
        with gpucnn.no_grad():
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_one_scope_may_be_entered_again_and_inside_itself() -> None:
    silent, recording = gpucnn.no_grad(), enable_grad()
    for _ in range(2):
        with silent:
            with recording, silent:
                with recording:
                    assert gpucnn.is_grad_enabled()
                assert not gpucnn.is_grad_enabled()
            assert not gpucnn.is_grad_enabled()
        assert gpucnn.is_grad_enabled()


def test_one_scope_may_be_entered_in_two_threads_at_once() -> None:
    scope, met, left = gpucnn.no_grad(), threading.Event(), threading.Event()
    enabled: list[bool] = []

    def enter() -> None:
        with scope:
            met.set()
            left.wait(10)
        enabled.append(gpucnn.is_grad_enabled())

    thread = threading.Thread(target=enter)
    with scope:
        thread.start()
        assert met.wait(10)
    left.set()
    thread.join()
    assert enabled == [True]
    assert gpucnn.is_grad_enabled()


def test_recording_is_switched_by_a_value_and_by_pytorchs_other_names() -> None:
    w = gpucnn.ones(2, requires_grad=True)
    for mode in (True, False):
        with gpucnn.set_grad_enabled(mode):
            assert (w * 2).requires_grad == mode == gpucnn.is_grad_enabled()
    with gpucnn.inference_mode():
        assert not (w * 2).requires_grad
        with gpucnn.enable_grad():
            assert (w * 2).requires_grad

    @gpucnn.set_grad_enabled(False)
    def silent() -> Tensor:
        return w * 2

    assert not silent().requires_grad
    assert gpucnn.is_grad_enabled()


def test_no_grad_decorates_without_parentheses_too() -> None:
    @gpucnn.no_grad
    def twice(x: Tensor) -> Tensor:
        """Two of it."""
        return x * 2

    assert not twice(leaf([1.0])).requires_grad
    assert twice.__doc__ == "Two of it."


def test_no_grad_as_a_decorator_works_at_every_call_and_depth() -> None:
    x = leaf([1.0])

    @gpucnn.no_grad()
    def factor(depth: int) -> Tensor:
        assert not gpucnn.is_grad_enabled()
        return x * 2 if depth == 0 else factor(depth - 1) * 2

    for _ in range(2):
        y = factor(3)
        assert not y.requires_grad
        assert y.item() == 16
        assert gpucnn.is_grad_enabled()


def test_decorated_function_may_run_in_two_threads_at_once() -> None:
    inside, errors = threading.Barrier(2, timeout=10), []

    @gpucnn.no_grad()
    def meet(first_to_leave: bool) -> None:
        inside.wait()
        if not first_to_leave:
            left.wait(10)

    def run(first_to_leave: bool) -> None:
        try:
            meet(first_to_leave)
            assert gpucnn.is_grad_enabled()
        except BaseException as error:
            errors.append(error)
        finally:
            if first_to_leave:
                left.set()

    left = threading.Event()
    threads = [threading.Thread(target=run, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_no_grad_ends_at_its_thread() -> None:
    seen = []
    with gpucnn.no_grad():
        thread = threading.Thread(target=lambda: seen.append(gpucnn.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


# -- depth ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operations", [12_000])
def test_very_long_chain_goes_forward_backward_and_away_without_recursion(operations: int) -> None:
    assert operations > 10 * sys.getrecursionlimit()
    x = leaf(2.0)
    y = x
    for i in range(operations):
        y = y * x if i % 1000 == 0 else y * 1.0
    y.backward(retain_graph=True)
    power = operations // 1000 + 1
    np.testing.assert_allclose(gradient(x), power * 2.0 ** (power - 1), rtol=0)
    nodes = weakref.WeakSet([y])
    del y  # the whole chain falls at once, each node freeing the next
    assert not nodes


def test_very_long_chain_that_was_never_walked_goes_away_without_recursion() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y + x
    last = weakref.ref(y)
    del y
    assert last() is None


# -- what is computed ----------------------------------------------------------------------------------


class Calls:
    """Counts the calls of a backend's primitives."""

    def __init__(self, backend: Backend, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.count = dict.fromkeys(names, 0)
        for name in names:
            monkeypatch.setattr(type(backend), name, self.counting(name, getattr(type(backend), name)))

    def counting(self, name: str, primitive: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            self.count[name] += 1
            return primitive(*arguments, **keywords)

        return counted


CONV = (
    "conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight", "bias_backward", "activation_bias_backward"
)  # fmt: skip


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, (2, 3)), nn.Tanh(), nn.Conv2d(2, 1, 1))


def test_gradient_of_the_input_of_the_first_layer_is_never_computed(
    default_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = network(), Calls(default_backend, monkeypatch, *CONV)
    model(gpucnn.randn(2, 1, 7, 6)).sum().backward()
    assert list(calls.count.values()) == [3, 2, 3, 2, 1]


def test_frozen_layers_get_no_gradient_and_cost_none(default_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = network(), Calls(default_backend, monkeypatch, *CONV)
    model[:3].requires_grad_(False)
    model(gpucnn.randn(2, 1, 7, 6)).sum().backward()
    assert list(calls.count.values()) == [3, 0, 1, 1, 0]
    assert [p.grad is None for p in model.parameters()] == [True] * 4 + [False] * 2


def test_frozen_layer_in_the_middle_passes_the_gradient_on(
    default_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = network(), Calls(default_backend, monkeypatch, *CONV)
    model[2].requires_grad_(False)
    model(gpucnn.randn(2, 1, 7, 6)).sum().backward()
    assert list(calls.count.values()) == [3, 2, 2, 1, 1]
    assert [p.grad is None for p in model.parameters()] == [False, False, True, True, False, False]


def test_input_that_wants_a_gradient_gets_it_through_frozen_weights() -> None:
    model = network().requires_grad_(False)
    x = gpucnn.randn(1, 1, 7, 6, requires_grad=True)
    model(x).sum().backward()
    assert gradient(x).any()
    assert all(p.grad is None for p in model.parameters())


# -- memory --------------------------------------------------------------------------------------------


def tensors_in(function: Callable[..., Any], seen: set[int]) -> list[Any]:
    """Tensors and nodes that a function can reach through its cells, defaults and what those functions hold."""
    found: list[Any] = []
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    waiting = [*cells, *(function.__defaults__ or ()), getattr(function, "__self__", None)]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor | Node):
            found.append(value)
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        elif hasattr(value, "__closure__"):
            found += tensors_in(value, seen)
    return found


@pytest.mark.parametrize("case", {case.op: case for case in CASES}.values(), ids=lambda c: c.op)
def test_what_the_tape_keeps_of_an_op_holds_arrays_and_no_tensors(case: Case) -> None:
    """A tensor in there would keep its whole history alive, and with a result in there the memory would leak."""
    inputs = case.made_inputs()
    leaves = [gpucnn.tensor(inputs[i], requires_grad=True) for i in case.differentiable]
    for i, x in zip(case.differentiable, leaves, strict=True):
        inputs[i] = x
    waiting = [case.apply(gpucnn.get_backend(), inputs, case.made_arguments())._node]
    ends = {id(t._node) for t in leaves}
    functions = 0
    while waiting:
        node = waiting.pop()
        if id(node) in ends:
            continue
        for parents, _, vjp in node.edges:
            functions += 1
            assert not tensors_in(vjp, set()), f"{vjp} holds {tensors_in(vjp, set())}"
            waiting += [parent for parent in parents if parent is not None]
    assert functions


def small_training() -> Callable[[], None]:
    """One step of a network with a bit of everything; returns nothing that it made."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    optimizer = optim.Adam(model.parameters())
    x, labels = gpucnn.randn(4, 1, 7, 6), np.array([0, 2, 1, 1])

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def test_hundreds_of_steps_leave_no_objects_behind_with_the_collector_switched_off() -> None:
    """Nothing but reference counts frees the graph: a single cycle a step would leave hundreds of objects."""
    step = small_training()
    step()
    gc.collect()
    gc.disable()
    try:
        objects = len(gc.get_objects())
        for _ in range(300):
            step()
        more = len(gc.get_objects()) - objects
        in_cycles = gc.collect()
    finally:
        gc.enable()
    assert more < 100, f"{more} objects more after 300 steps"
    assert in_cycles < 100, f"{in_cycles} objects were in cycles"


def test_steps_leave_no_array_behind() -> None:
    """Arrays are not among the objects that the collector counts; their bytes are."""
    step = small_training()
    tracemalloc.start()
    try:
        for _ in range(20):
            step()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            step()
        gc.collect()
        more = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    smallest = sys.getsizeof(np.zeros(0))
    assert more < 100 * smallest, f"{more} bytes more after 100 steps: one array a step is at least {100 * smallest}"


def test_forward_passes_that_are_dropped_leave_nothing_behind() -> None:
    model, x = network(), gpucnn.randn(2, 1, 7, 6)
    gc.collect()
    gc.disable()
    try:
        kept = weakref.ref(model(x))
        assert kept() is None
        before = len(gc.get_objects())
        for _ in range(100):
            model(x)
        assert len(gc.get_objects()) - before < 20
    finally:
        gc.enable()


def test_backward_frees_each_result_as_it_goes() -> None:
    """When the gradient reaches the first op, the arrays of the later ones are gone already."""
    x = leaf(np.ones(8))
    alive: list[int] = []
    arrays: list[weakref.ref[Any]] = []

    def watched(y: Tensor) -> Tensor:
        def vjp(dy: Any) -> Any:
            alive.append(sum(array() is not None for array in arrays))
            return dy

        saved = y.array * 1
        arrays.append(weakref.ref(saved))
        return record(y.backend, y.array * 1, (y, lambda dy, saved=saved: vjp(dy)))

    y = x
    for _ in range(5):
        y = watched(y)
    y.sum().backward()
    assert alive == [5, 4, 3, 2, 1]
    assert all(array() is None for array in arrays)


def test_walk_takes_time_in_proportion_to_its_length() -> None:
    """10 times the nodes must not take anything like 100 times as long, as a quadratic walk would."""

    def seconds(operations: int) -> float:
        best = float("inf")
        for _ in range(3):
            x = leaf(1.0)
            y = x
            for _ in range(operations):
                y = y + x
            start = time.perf_counter()
            y.backward()
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(5000) < 50 * seconds(500)
