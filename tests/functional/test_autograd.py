"""The tape: what is recorded, how gradients add up, what is freed, and what it says when misused."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from numerics import assert_within, check_gradients

import gpucnn
from functional.cases import random
from gpucnn import Tensor
from gpucnn import functional as F


def leaf(values: Any, backend: str) -> Tensor:
    return gpucnn.tensor(np.asarray(values, dtype=np.float64), requires_grad=True, backend=backend)


def grad(tensor: Tensor) -> Any:
    assert tensor.grad is not None
    return tensor.grad.numpy()


def test_gradients_of_two_backward_passes_add_up(backend: str) -> None:
    x = leaf([1, 2], backend)
    (x * 3).sum().backward()
    (x * x).sum().backward()
    np.testing.assert_array_equal(grad(x), [5, 7])
    x.grad = None
    (x * 3).sum().backward()
    np.testing.assert_array_equal(grad(x), [3, 3])


def test_gradient_handed_out_earlier_is_not_changed_by_the_next_pass(backend: str) -> None:
    x = leaf([1, 2], backend)
    (x * 3).sum().backward()
    first = x.grad
    assert first is not None
    kept = first.numpy().copy()
    (x * 3).sum().backward()
    np.testing.assert_array_equal(kept, [3, 3])
    np.testing.assert_array_equal(grad(x), [6, 6])


def test_tensor_used_twice_gets_both_gradients(backend: str) -> None:
    x = leaf([2, 3], backend)
    y = x * x
    (y * x + y).sum().backward()
    np.testing.assert_array_equal(grad(x), [3 * 4 + 2 * 2, 3 * 9 + 2 * 3])


def test_paths_of_different_length_meet_before_they_go_on(backend: str) -> None:
    """A walk that visits the shared tensor twice would count the long path's gradient again."""
    x = leaf([1.5], backend)
    shared = x * 2
    long = shared
    for _ in range(5):
        long = long * 1.0
    (shared + long + shared).sum().backward()
    np.testing.assert_array_equal(grad(x), [6])


def test_two_leaves_do_not_share_the_memory_of_one_gradient(backend: str) -> None:
    a, b = leaf([1, 2], backend), leaf([3, 4], backend)
    seed = gpucnn.tensor(np.array([1.0, 1.0]), backend=backend)
    (a + b).backward(seed)
    for tensor in (a, b):
        assert tensor.grad is not None
    a.grad.array[...] = 9  # type: ignore[union-attr]
    np.testing.assert_array_equal(grad(b), [1, 1])
    np.testing.assert_array_equal(seed.numpy(), [1, 1])


def test_reshaped_leaves_do_not_share_the_memory_of_one_gradient(backend: str) -> None:
    a, b = leaf(np.ones((2, 3)), backend), leaf(np.ones((3, 2)), backend)
    (a.reshape(6) + b.reshape(6)).backward(gpucnn.tensor(np.ones(6), backend=backend))
    a.grad.array[...] = 9  # type: ignore[union-attr]
    np.testing.assert_array_equal(grad(b), np.ones((3, 2)))


def test_only_what_needs_a_gradient_is_computed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = gpucnn.tensor(random(1, 2, 5, 4), backend=backend)
    w = leaf(random(3, 2, 2, 3), backend)
    y = F.conv2d(x, w)
    monkeypatch.setattr(type(x.backend), "conv2d_backward_input", None)
    y.sum().backward()
    assert x.grad is None
    assert grad(w).shape == (3, 2, 2, 3)


def test_nothing_is_recorded_without_gradients(backend: str) -> None:
    x = leaf([1, 2], backend)
    with gpucnn.no_grad():
        assert not gpucnn.is_grad_enabled()
        y = x * 2
        with gpucnn.no_grad():
            pass
        z = y + x
    assert gpucnn.is_grad_enabled()
    assert not y.requires_grad
    assert not z.requires_grad

    @gpucnn.no_grad()
    def twice(t: Tensor) -> Tensor:
        return t * 2

    assert not twice(x).requires_grad
    assert (x * 2).requires_grad


def test_gradients_are_recorded_again_after_an_error_inside_no_grad(backend: str) -> None:
    with pytest.raises(ZeroDivisionError), gpucnn.no_grad():
        raise ZeroDivisionError
    assert (leaf([1.0], backend) * 2).requires_grad


def test_detached_tensor_is_a_constant_with_the_same_values(backend: str) -> None:
    x = leaf([2, 3], backend)
    (x * (x * 1).detach()).sum().backward()
    np.testing.assert_array_equal(grad(x), [2, 3])


def test_kept_gradient_of_a_result(backend: str) -> None:
    x = leaf([2, 3], backend)
    y = x * x
    y.retain_grad()
    (y * 5).sum().backward()
    np.testing.assert_array_equal(grad(y), [5, 5])
    np.testing.assert_array_equal(grad(x), [20, 30])


def test_graph_kept_by_request_may_be_walked_again(backend: str) -> None:
    x = leaf([2, 3], backend)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(grad(x), [8, 12])


@pytest.mark.parametrize("operations", [20_000])
def test_very_long_chain_does_not_recurse(operations: int, backend: str) -> None:
    x = leaf(1.0, backend)
    y = x
    for _ in range(operations):
        y = y + 1.0
    y.backward()
    assert float(grad(x)) == 1
    del y
    gc.collect()


def test_memory_of_the_graph_is_freed_by_the_backward_pass_without_the_collector(backend: str) -> None:
    x = leaf(np.ones((3, 4)), backend)
    gc.disable()
    try:
        y = F.relu(x * 2)
        inner = weakref.ref(y)
        loss = (y * y).sum()
        del y
        loss.backward()
        del loss
        assert inner() is None
    finally:
        gc.enable()


def test_failing_backward_pass_changes_no_gradient(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = leaf(random(1, 1, 3, 3), backend), leaf(random(1, 1, 2, 2), backend)
    loss = F.conv2d(F.relu(a), b).sum()

    def broken(*arguments: Any) -> None:
        raise FloatingPointError("broken on purpose")

    monkeypatch.setattr(type(a.backend), "conv2d_backward_input", broken)
    with pytest.raises(FloatingPointError):
        loss.backward()
    assert a.grad is None
    assert b.grad is None


def test_whole_small_network_has_right_gradients(backend: str) -> None:
    """conv > relu > pool > conv > pool > dense > conv > dense > loss: layers in any order, also conv after dense."""
    labels = np.array([2, 0])

    def network(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, w3: Tensor, w4: Tensor, w5: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(F.conv2d(x, w1, b1, padding=1)), 2, ceil_mode=True)
        y = F.avg_pool2d(F.conv2d(y, w2, padding="same"), 2)
        y = F.linear(y.flatten(1), w3).unflatten(1, (2, 3, 2))
        y = F.linear(F.conv2d(y, w4).flatten(1), w5)
        return F.cross_entropy(y, labels)

    shapes = [(2, 1, 7, 5), (3, 1, 3, 2), (3,), (2, 3, 2, 2), (12, 4), (3, 2, 2, 2), (3, 6)]
    check_gradients(network, [random(*shape, seed=i) for i, shape in enumerate(shapes)], backend, most=12)


def test_residual_block_stays_channels_last_and_has_right_gradients(backend: str) -> None:
    def block(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        y = F.conv2d(F.relu(F.conv2d(x, w, padding=1)), v, padding="same")
        return F.relu(x + y * 0.5)

    arrays = [random(2, 3, 4, 5), random(4, 3, 3, 3), random(3, 4, 2, 2)]
    x, w, v = (leaf(array, backend) for array in arrays)
    y = block(x, w, v)
    y.sum().backward()
    for tensor in (y, x.grad, w.grad, v.grad):
        assert tensor is not None
        assert tensor.array.transpose(0, 2, 3, 1).flags.c_contiguous
    check_gradients(block, arrays, backend, most=20)


def test_gradient_descent_on_a_parabola_converges_or_diverges_with_its_rate(backend: str) -> None:
    """f = ½w²: each step multiplies w by 1 − rate."""
    for rate, left in [(0.1, 0.9**50), (2.1, 1.1**50)]:
        w = leaf([3.0], backend)
        for _ in range(50):
            w.grad = None
            (w * w * 0.5).sum().backward()
            w = leaf(w.numpy() - rate * grad(w), backend)
        assert_within(np.abs(w.numpy()), np.array([3 * left]), 1e-12 * 3 * left)


@pytest.mark.parametrize(
    ("misuse", "error", "message"),
    [
        (lambda x: (x * 2).backward(), RuntimeError, r"one element.*\(2, 3\).*sum\(\)"),
        (lambda x: x.detach().backward(), RuntimeError, "requires_grad=True"),
        (lambda x: (x * 2).backward(gpucnn.tensor(np.ones(3))), ValueError, r"\(3,\).*\(2, 3\)"),
        (lambda x: (x * 2).backward(gpucnn.tensor(np.ones((2, 3), np.float32))), ValueError, "float32.*float64"),
        (lambda x: (x * 2).backward(np.ones((2, 3))), TypeError, "Tensor.*ndarray"),
        (lambda x: x.item(), ValueError, r"item\(\).*\(2, 3\)"),
        (lambda x: gpucnn.tensor([1, 2], requires_grad=True), RuntimeError, "floating.*int64"),
        (lambda x: setattr(x * 2, "requires_grad", False), RuntimeError, "leaf.*detach"),
        (lambda x: setattr(x, "grad", gpucnn.tensor(np.ones(2))), ValueError, r"\(2,\).*\(2, 3\)"),
        (lambda x: x.__setitem__(0, 1.0), RuntimeError, "in place"),
        (lambda x: len(x.sum()), TypeError, "without axes"),
    ],
)
def test_misuse_is_explained(misuse: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        misuse(gpucnn.tensor(np.ones((2, 3)), requires_grad=True, backend="numpy"))


def test_second_walk_over_a_freed_graph_is_an_error_that_names_the_remedy(backend: str) -> None:
    x = leaf([2, 3], backend)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"freed.*retain_graph=True"):
        y.backward()
    np.testing.assert_array_equal(grad(x), [4, 6])
