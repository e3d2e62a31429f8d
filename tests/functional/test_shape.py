"""Views, joining, indexing, padding, resizing: NumPy is their definition."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import Array, check_gradients

import gpucnn
from functional.cases import random
from gpucnn import Tensor
from gpucnn import functional as F

X = np.arange(120.0).reshape(2, 3, 5, 4)

VIEWS: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Array]]] = {
    "reshape": (lambda t: t.reshape(6, 20), lambda a: a.reshape(6, 20)),
    "reshape-tuple": (lambda t: t.reshape((4, 5, 3, 2)), lambda a: a.reshape(4, 5, 3, 2)),
    "reshape-rest": (lambda t: t.reshape(5, -1, 2), lambda a: a.reshape(5, -1, 2)),
    "flatten": (lambda t: t.flatten(), lambda a: a.ravel()),
    "flatten-images": (lambda t: t.flatten(1), lambda a: a.reshape(2, 60)),
    "flatten-middle": (lambda t: t.flatten(1, 2), lambda a: a.reshape(2, 15, 4)),
    "unflatten": (lambda t: t.flatten(1).unflatten(1, (3, 5, 4)), lambda a: a),
    "unflatten-rest": (lambda t: t.unflatten(-2, (5, -1)), lambda a: a.reshape(2, 3, 5, 1, 4)),
    "permute": (lambda t: t.permute(0, 2, 3, 1), lambda a: a.transpose(0, 2, 3, 1)),
    "permute-tuple": (lambda t: t.permute((3, -2, 0, 1)), lambda a: a.transpose(3, 2, 0, 1)),
    "permute-reshape": (
        lambda t: t.permute(3, 1, 0, 2).reshape(12, 10),
        lambda a: a.transpose(3, 1, 0, 2).reshape(12, 10),
    ),
    "transpose": (lambda t: t.transpose(1, -1), lambda a: a.swapaxes(1, -1)),
    "unsqueeze": (lambda t: t.unsqueeze(1), lambda a: a[:, None]),
    "unsqueeze-last": (lambda t: t.unsqueeze(-1), lambda a: a[..., None]),
    "squeeze": (lambda t: t[:1, :, :1].squeeze(), lambda a: a[:1, :, :1].squeeze()),
    "squeeze-one": (lambda t: t[:1, :, :1].squeeze(2), lambda a: a[:1, :, :1].squeeze(2)),
    "squeeze-none": (lambda t: t.squeeze(1), lambda a: a),
    "expand": (lambda t: t[:, :1].expand(2, 3, 5, 4), lambda a: np.broadcast_to(a[:, :1], (2, 3, 5, 4))),
    "expand-more": (lambda t: t[0, 0].expand(3, 2, -1, -1), lambda a: np.broadcast_to(a[0, 0], (3, 2, 5, 4))),
    "clone": (lambda t: t.clone(), lambda a: a),
    "index-int": (lambda t: t[1], lambda a: a[1]),
    "index-negative": (lambda t: t[-1, 2, -3, 0], lambda a: a[-1, 2, -3, 0]),
    "index-slices": (lambda t: t[:, 1:, ::-2, 1:3], lambda a: a[:, 1:, ::-2, 1:3]),
    "index-dots": (lambda t: t[..., 2], lambda a: a[..., 2]),
    "index-none": (lambda t: t[:, None, 1], lambda a: a[:, None, 1]),
    "index-list": (lambda t: t[:, [2, 0, 2]], lambda a: a[:, [2, 0, 2]]),
    "index-array": (lambda t: t[np.array([1, 0, 1]), np.array([2, 2, 2])], lambda a: a[[1, 0, 1], [2, 2, 2]]),
    "index-mask": (lambda t: t[:, np.array([True, False, True])], lambda a: a[:, [True, False, True]]),
    "index-tensor": (lambda t: t[gpucnn.tensor([1, 1])], lambda a: a[[1, 1]]),
    "index-mask-tensor": (lambda t: t[t > 50.5], lambda a: a[a > 50.5]),
    "index-bytes": (lambda t: t[np.array([1, 0], np.uint8)], lambda a: a[[1, 0]]),
    "cat": (lambda t: F.cat([t, t[:, :1], t * 2], 1), lambda a: np.concatenate([a, a[:, :1], a * 2], 1)),
    "cat-last": (lambda t: F.cat([t, t[..., :2]], -1), lambda a: np.concatenate([a, a[..., :2]], -1)),
    "cat-flat": (lambda t: F.cat([t.flatten(), t[0, 0, 0]]), lambda a: np.concatenate([a.ravel(), a[0, 0, 0]])),
    "cat-any": (lambda t: F.cat(iter([t, t])), lambda a: np.concatenate([a, a])),
    "split": (lambda t: F.cat(t.split(2, 1)[::-1], 1), lambda a: a[:, [2, 0, 1]]),
    "split-sections": (lambda t: t.split([1, 0, 4], -2)[2], lambda a: a[:, :, 1:]),
    "chunk": (lambda t: t.chunk(3, 2)[1], lambda a: a[:, :, 2:4]),
    "chunk-last": (lambda t: t.chunk(3, 2)[-1], lambda a: a[:, :, 4:]),
    "stack": (lambda t: gpucnn.stack([t[0], t[1], t[0]], 1), lambda a: np.stack([a[0], a[1], a[0]], 1)),
    "flip": (lambda t: t.flip(1, -1), lambda a: a[:, ::-1, :, ::-1]),
    "flip-none": (lambda t: t.flip(()), lambda a: a),
    "tile": (lambda t: t.tile(2, 3), lambda a: np.tile(a, (2, 3))),
    "repeat": (lambda t: t.repeat(2, 1, 3, 1), lambda a: np.tile(a, (2, 1, 3, 1))),
    "repeat-more": (lambda t: t[0, 0].repeat(2, 1, 2), lambda a: np.tile(a[0, 0], (2, 1, 2))),
    "repeat-never": (lambda t: t.repeat(1, 0, 2, 1), lambda a: np.tile(a, (1, 0, 2, 1))),
    "unbind": (lambda t: t.unbind(1)[2], lambda a: a[:, 2]),
    "unbind-last": (lambda t: F.stack(t.unbind(-1)), lambda a: a.transpose(3, 0, 1, 2)),
    "t": (lambda t: t[0, 0].t(), lambda a: a[0, 0].T),
    "T": (lambda t: t[0, 0].T, lambda a: a[0, 0].T),
    "mT": (lambda t: t.mT, lambda a: a.swapaxes(2, 3)),
    "view_as": (lambda t: t.view_as(gpucnn.zeros(6, 20)), lambda a: a.reshape(6, 20)),
    "expand_as": (
        lambda t: t[:, :1].expand_as(gpucnn.zeros(2, 3, 5, 4)),
        lambda a: np.broadcast_to(a[:, :1], (2, 3, 5, 4)),
    ),
    "index_select": (
        lambda t: t.index_select(2, gpucnn.tensor([4, 0, 0], backend=t.backend)),
        lambda a: a[:, :, [4, 0, 0]],
    ),
    "masked_fill": (lambda t: t.masked_fill(t > 50.5, -1.0), lambda a: np.where(a > 50.5, -1.0, a)),
    "gather": (
        lambda t: t.gather(1, gpucnn.tensor(PLACES, backend=t.backend)),
        lambda a: np.take_along_axis(a[:, :, :2, :3], PLACES, 1),
    ),
    "gather-none": (lambda t: t.gather(1, gpucnn.tensor(PLACES[:, :0], backend=t.backend)), lambda a: a[:, :0, :2, :3]),
    "sort": (lambda t: (t * t - 90 * t).sort(1).values, lambda a: np.sort(a * a - 90 * a, 1)),
    "sort-down": (lambda t: t.sort(-1, True).values, lambda a: a[..., ::-1]),
    "topk": (lambda t: t.topk(2, 2).values, lambda a: a[:, :, :2:-1]),
    "topk-small": (lambda t: t.topk(2, 0, largest=False).values, lambda a: a),
    "stack-last": (lambda t: F.stack([t, t], -1), lambda a: np.stack([a, a], -1)),
}


PLACES = np.random.default_rng(3).integers(0, 3, (2, 4, 2, 3))


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_numpys(name: str, backend: str) -> None:
    ours, theirs = VIEWS[name]
    y = ours(gpucnn.tensor(X, backend=backend))
    np.testing.assert_array_equal(y.numpy(), theirs(X))
    assert y.shape == theirs(X).shape
    check_gradients(ours, [X], backend, most=15)


def test_one_element_takes_any_shape_of_ones_and_none(backend: str) -> None:
    one = gpucnn.tensor(np.array([[3.0]]), requires_grad=True, backend=backend)
    for y in (one.reshape(()), one.squeeze(), one[0, 0]):
        assert y.shape == ()
        assert y.item() == 3
    assert one.reshape(()).reshape(1, 1, 1).shape == (1, 1, 1)
    one.squeeze().backward()
    assert one.grad is not None
    assert one.grad.shape == (1, 1)


def test_empty_batch_keeps_its_shape(backend: str) -> None:
    empty = gpucnn.tensor(np.ones((0, 3, 5, 4)), backend=backend)
    assert empty.flatten(1).shape == (0, 60)
    assert empty.flatten(1).unflatten(1, (3, 5, 4)).shape == (0, 3, 5, 4)
    assert F.cat([empty, gpucnn.tensor(X, backend=backend)]).shape == X.shape


def test_black_and_white_image_flattens_row_by_row_and_maps_channel_by_channel(backend: str) -> None:
    image = gpucnn.tensor(np.eye(5)[None, None], backend=backend)
    np.testing.assert_array_equal(image.flatten(1).numpy(), np.eye(5).reshape(1, 25))
    maps = gpucnn.tensor(np.arange(16.0).reshape(1, 4, 2, 2), backend=backend)
    np.testing.assert_array_equal(maps.flatten(1).numpy(), [np.arange(16.0)])


def test_element_chosen_twice_gets_both_gradients(backend: str) -> None:
    x = gpucnn.tensor(np.zeros(3), requires_grad=True, backend=backend)
    x[[1, 1, 2]].backward(gpucnn.tensor(np.array([1.0, 10, 100]), backend=backend))
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [0, 11, 100])


def test_repeated_tensor_in_cat_gets_all_its_gradients(backend: str) -> None:
    x = gpucnn.tensor(np.zeros((1, 2)), requires_grad=True, backend=backend)
    F.cat([x, x]).backward(gpucnn.tensor(np.array([[1.0, 2], [30, 40]]), backend=backend))
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [[31, 42]])


# --- padding and resizing ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), mode=st.sampled_from(["constant", "reflect", "replicate"]))
def test_padding_of_any_size_is_numpys(data: st.DataObject, mode: str, backend: str) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 4))
    axes = data.draw(st.integers(0, 4))
    sides = [(0, 0)] * (4 - axes)
    sides += [data.draw(st.tuples(*[st.integers(0, n - 1 if mode == "reflect" else 3)] * 2)) for n in shape[4 - axes :]]
    flat = [side for pair in reversed(sides[4 - axes :]) for side in pair]
    x = random(*shape)
    y = F.pad(gpucnn.tensor(x, backend=backend), flat, mode)
    np.testing.assert_array_equal(y.numpy(), np.pad(x, sides, {"replicate": "edge"}.get(mode, mode)))
    check_gradients(lambda t: F.pad(t, flat, mode), [x], backend, most=3)


def test_negative_padding_cuts(backend: str) -> None:
    y = F.pad(gpucnn.tensor(X, backend=backend), (-1, 2, 0, -3), value=9.0)
    expected = np.full((2, 3, 2, 5), 9.0)
    expected[..., :3] = X[:, :, :2, 1:]
    np.testing.assert_array_equal(y.numpy(), expected)
    check_gradients(lambda t: F.pad(t, (-1, 2, 0, -3)), [X], backend, most=30)


def test_doubling_repeats_each_pixel_and_bilinear_keeps_a_ramp(backend: str) -> None:
    x = gpucnn.tensor(X, backend=backend)
    np.testing.assert_array_equal(F.interpolate(x, scale_factor=2).numpy(), X.repeat(2, 2).repeat(2, 3))
    ramp = F.interpolate(x, size=(9, 7), mode="bilinear", align_corners=True).numpy()
    rows, columns = np.arange(9)[:, None] / 2, np.arange(7) / 2
    np.testing.assert_allclose(ramp[0, 0], 4 * rows + columns, rtol=0, atol=1e-13)


def ones(*shape: int) -> Tensor:
    return gpucnn.tensor(np.ones(shape))


WRONG: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("reshape", lambda: ones(2, 3).reshape(4, 2), ValueError, r"6 elements .*\(2, 3\).*\(4, 2\)"),
    ("reshape-rest", lambda: ones(2, 3).reshape(4, -1), ValueError, r"6 elements .*\(4, -1\)"),
    ("reshape-two-rests", lambda: ones(2, 3).reshape(-1, -1), ValueError, r"\(-1, -1\)"),
    ("reshape-negative", lambda: ones(2, 3).reshape(-2, -3), ValueError, r"\(-2, -3\)"),
    ("flatten", lambda: ones(2, 3).flatten(1, 0), ValueError, "start_dim 1 .*end_dim 0"),
    ("flatten-axis", lambda: ones(2, 3).flatten(2), IndexError, "flatten: dim 2"),
    ("unflatten", lambda: ones(2, 6).unflatten(1, (4, -1)), ValueError, r"6 .*\(4, -1\)"),
    ("permute", lambda: ones(2, 3).permute(0, 0), ValueError, r"permute: .*\(2, 3\).*\(0, 0\)"),
    ("permute-few", lambda: ones(2, 3).permute(1), ValueError, r"permute: .*\(1,\)"),
    ("transpose", lambda: ones(2, 3).transpose(0, 2), IndexError, "transpose: dim 2"),
    ("expand", lambda: ones(2, 3).expand(4, 3), ValueError, r"\(2, 3\).*\(4, 3\)"),
    ("expand-fewer", lambda: ones(2, 3).expand(3), ValueError, r"\(2, 3\).*\(3,\)"),
    ("cat-none", lambda: F.cat([]), ValueError, "no tensors"),
    ("cat-shapes", lambda: F.cat([ones(2, 3), ones(2, 4)]), ValueError, r"\(2, 3\), \(2, 4\).*axis 0"),
    ("cat-ranks", lambda: F.cat([ones(2, 3), ones(3)], 1), ValueError, r"\(2, 3\), \(3,\)"),
    (
        "split-sum",
        lambda: ones(2, 3).split([1, 1], 1),
        ValueError,
        r"split: sections \(1, 1\) .*axis 1 of shape \(2, 3\)",
    ),
    ("split-size", lambda: ones(2, 3).split(0), ValueError, "split_size_or_sections must be at least 1, got 0"),
    ("chunk-none", lambda: ones(2, 3).chunk(0), ValueError, "chunks must be at least 1, got 0"),
    ("reshape-huge", lambda: ones(0).reshape(0, 2**31, 2**31), ValueError, "there is no array of the shape"),
    ("shuffle", lambda: F.pixel_shuffle(ones(1, 6, 2, 2), 2), ValueError, r"6 channels .*upscale_factor² = 4"),
    ("unshuffle", lambda: F.pixel_unshuffle(ones(1, 1, 4, 3), 2), ValueError, r"downscale_factor=2 .*\(4, 3\)"),
    ("t", lambda: ones(1, 2, 3).t(), ValueError, r"at most 2 axes, got shape \(1, 2, 3\); use transpose"),
    ("tile", lambda: ones(2).tile(-1), ValueError, r"dims must not be negative, got \(-1,\)"),
    ("repeat", lambda: ones(2, 3).repeat(2), ValueError, r"a number for each axis of shape \(2, 3\), got \(2,\)"),
    ("flip", lambda: ones(2, 3).flip(2), IndexError, "flip: dim 2"),
    ("select-range", lambda: ones(2).index_select(0, gpucnn.tensor([0, 2])), IndexError, "place 2 .*length 2"),
    ("select-negative", lambda: ones(2).index_select(0, gpucnn.tensor([-1])), IndexError, "place -1 .*length 2"),
    ("select-rank", lambda: ones(2).index_select(0, gpucnn.tensor([[0]])), ValueError, r"one axis, got shape \(1, 1\)"),
    ("select-float", lambda: ones(2).index_select(0, ones(1)), TypeError, "must be an integer tensor, got float64"),
    ("gather-rank", lambda: ones(2, 3).gather(0, gpucnn.tensor([0])), ValueError, r"\(1,\) does not fit .*\(2, 3\)"),
    ("gather-long", lambda: ones(2, 3).gather(0, gpucnn.tensor([[0] * 4])), ValueError, r"\(1, 4\) does not fit"),
    ("topk", lambda: ones(2, 3).topk(4), ValueError, "k must be at most the length of axis -1, which is 3, got 4"),
    ("one-hot", lambda: F.one_hot(gpucnn.tensor([1, 3]), 3), ValueError, "3 is not a class; there are 3, 0 to 2"),
    ("one-hot-float", lambda: F.one_hot(ones(2)), TypeError, "must hold integers, got float64"),
    ("one-hot-none", lambda: F.one_hot(gpucnn.tensor([0]), 0), ValueError, "num_classes must be above 0, got 0"),
    ("stack-shapes", lambda: F.stack([ones(2, 3), ones(2, 4)]), ValueError, r"\(1, 2, 3\), \(1, 2, 4\)"),
    ("index-range", lambda: ones(2, 3)[2], IndexError, r"2 .*\(2, 3\)"),
    ("index-rank", lambda: ones(2, 3)[0, 0, 0], IndexError, r"\(2, 3\)"),
    ("index-float", lambda: ones(2, 3)[np.array([0.5])], IndexError, "float64"),
    ("pad-mode", lambda: F.pad(ones(2, 3), (1, 1), "circular"), ValueError, "mode .*'constant'.*circular"),
    ("pad-odd", lambda: F.pad(ones(2, 3), (1, 1, 1)), ValueError, r"\(1, 1, 1\)"),
    ("pad-axes", lambda: F.pad(ones(3), (1, 1, 1, 1)), ValueError, r"1 axes.*\(1, 1, 1, 1\)"),
    ("pad-cut", lambda: F.pad(ones(2, 3), (-2, -2)), ValueError, r"\(-2, -2\).*\(2, 3\)"),
    ("pad-cut-more", lambda: F.pad(ones(2, 3), (-5, 4)), ValueError, r"\(-5, 4\) cuts more than shape \(2, 3\)"),
    ("pad-cut-last", lambda: F.pad(ones(1, 1, 1, 8), (2, -1, -2, 2)), ValueError, r"\(2, -1, -2, 2\) cuts more"),
    ("reflect", lambda: F.pad(ones(1, 1, 2, 3), (3, 0), "reflect"), ValueError, r"reflect.*\(3, 0\).*has 3"),
    ("resize-mode", lambda: F.interpolate(ones(1, 1, 2, 3), 4, mode="cubic"), ValueError, "mode .*bilinear.*cubic"),
    ("resize-both", lambda: F.interpolate(ones(1, 1, 2, 3), 4, 2.0), ValueError, "either size or scale_factor"),
    ("resize-neither", lambda: F.interpolate(ones(1, 1, 2, 3)), ValueError, "either size or scale_factor"),
    ("resize-zero", lambda: F.interpolate(ones(1, 1, 2, 3), (0, 2)), ValueError, r"size=\(0, 2\)"),
    ("resize-away", lambda: F.interpolate(ones(1, 1, 2, 3), scale_factor=0.2), ValueError, r"scale_factor=0\.2"),
    ("resize-rank", lambda: F.interpolate(ones(2, 3), 4), ValueError, r"4 axes \[N, C, H, W\], got shape \(2, 3\)"),
    ("resize-a-signal", lambda: F.interpolate(ones(1, 2, 3), 4, mode="bilinear"), ValueError, r"4 axes .*\(1, 2, 3\)"),
    ("resize-an-image", lambda: F.interpolate(ones(1, 1, 2, 3), 4, mode="linear"), ValueError, r"3 axes \[N, C, L\]"),
    ("resize-lengths", lambda: F.interpolate(ones(1, 2, 3), (4, 5)), ValueError, r"\[L\] = \(3,\) can't .*\(4, 5\)"),
    ("resize-corners", lambda: F.interpolate(ones(1, 1, 2, 3), 4, align_corners=True), ValueError, "bilinear"),
]


@pytest.mark.parametrize(("call", "error", "message"), [pytest.param(*rest, id=name) for name, *rest in WRONG])
def test_wrong_arguments_are_shown(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("sizes", "dim"), [(2, 0), (3, -1), ([2, 3], 1), ([0, 5], 1), (9, 1)])
def test_split_and_chunk_have_pytorchs_parts(sizes: Any, dim: int, torch: Any) -> None:
    a = np.arange(30.0).reshape(2, 5, 3)
    ours, theirs = F.split(gpucnn.tensor(a), sizes, dim), torch.split(torch.tensor(a), sizes, dim)
    assert [part.tolist() for part in ours] == [part.tolist() for part in theirs]
    if isinstance(sizes, int):
        ours, theirs = F.chunk(gpucnn.tensor(a), sizes, dim), torch.chunk(torch.tensor(a), sizes, dim)
        assert [part.tolist() for part in ours] == [part.tolist() for part in theirs]


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_order_keeps_equal_elements_in_theirs_and_takes_nan_for_the_largest(
    dim: int, descending: bool, dtype: str, backend: str
) -> None:
    values = np.rint(random(3, 4, 7) * 2)
    if dtype not in ("int64", "bool"):
        values[1, 2, 3], values[0, 0, 5], values[2, 1, 0] = np.nan, np.inf, -np.inf
    x = gpucnn.tensor(values > 0 if dtype == "bool" else values, dtype, backend=backend)
    key = np.nan_to_num(x.numpy().astype(np.float64), nan=np.finfo(np.float64).max, posinf=1e300, neginf=-1e300)
    expected = np.argsort(-key if descending else key, axis=dim, kind="stable")
    found = F.argsort(x, dim, descending)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found.numpy(), expected)
    ordered = x.sort(dim, descending)
    np.testing.assert_array_equal(ordered.indices.numpy(), expected)
    np.testing.assert_array_equal(
        ordered.values.numpy().astype(float), np.take_along_axis(x.numpy().astype(float), expected, dim)
    )
    values, places = x.topk(2, dim, largest=descending)
    np.testing.assert_array_equal(places.numpy(), np.take(expected, [0, 1], dim))
    assert values.dtype == x.dtype


def test_a_single_number_is_in_order(backend: str) -> None:
    x = gpucnn.tensor(3.0, backend=backend)
    assert (x.sort().values.item(), x.argsort().item(), x.topk(1).indices.item()) == (3.0, 0, 0)


def test_one_hot_marks_the_class_of_each_label(backend: str) -> None:
    labels = np.array([[2, 0, 1], [0, 0, 2]], np.uint8)
    for asked, classes in ((-1, 3), (5, 5)):
        marks = F.one_hot(gpucnn.tensor(labels, backend=backend), asked)
        assert marks.dtype == np.int64
        np.testing.assert_array_equal(marks.numpy(), np.eye(classes, dtype=np.int64)[labels])


ROLLS: list[tuple[Any, Any]] = [(2, 0), (-1, 1), (7, -1), ((1, -2), (0, 3)), (5, None), ((3, 1), (2, 2))]


@pytest.mark.parametrize(("shifts", "dims"), ROLLS)
def test_roll_moves_around_the_end_and_the_gradient_back(shifts: Any, dims: Any, backend: str) -> None:
    x = random(2, 3, 4, 5)
    tensor = gpucnn.tensor(x, requires_grad=True, backend=backend)
    y = tensor.roll(shifts, dims)
    np.testing.assert_array_equal(y.numpy(), np.roll(x, shifts, dims))
    dy = random(2, 3, 4, 5, seed=1)
    y.backward(gpucnn.tensor(dy, backend=backend))
    back = np.negative(shifts) if dims is None or isinstance(dims, int) else tuple(np.negative(shifts))
    np.testing.assert_array_equal(tensor.grad.numpy(), np.roll(dy, back, dims))


@pytest.mark.parametrize(("source", "goal"), [(0, 3), (-1, 0), ((0, 2), (3, 0)), ((1,), (1,))])
def test_movedim_is_numpys_moveaxis(source: Any, goal: Any, backend: str) -> None:
    x = random(2, 3, 4, 5)
    y = gpucnn.tensor(x, backend=backend).movedim(source, goal)
    np.testing.assert_array_equal(y.numpy(), np.moveaxis(x, source, goal))


@pytest.mark.parametrize("dim", [0, 1, -1, None])
def test_repeat_interleave_repeats_each_and_sums_its_gradients(dim: Any, backend: str) -> None:
    x = random(2, 3, 4)
    y = gpucnn.tensor(x, backend=backend).repeat_interleave(3, dim)
    np.testing.assert_array_equal(y.numpy(), np.repeat(x, 3, dim))
    check_gradients(lambda x: F.repeat_interleave(x, 3, dim), [x], backend, most=6)


@pytest.mark.parametrize("diagonal", [-9, -1, 0, 2, 2**70])
@pytest.mark.parametrize("op", ["tril", "triu"])
def test_triangles_are_numpys(op: str, diagonal: int, backend: str) -> None:
    for shape in ((2, 3, 4, 5), (4, 3)):
        x = random(*shape)
        y = getattr(gpucnn.tensor(x, backend=backend), op)(diagonal)
        np.testing.assert_array_equal(y.numpy(), getattr(np, op)(x, min(diagonal, 99)))
        check_gradients(lambda x: getattr(F, op)(x, diagonal), [x], backend, most=5)


def test_masked_select_takes_the_elements_in_order(backend: str) -> None:
    x, mask = random(2, 3, 4, 5), random(4, 5, seed=1) > 0
    tensor = gpucnn.tensor(x, requires_grad=True, backend=backend)
    y = tensor.masked_select(gpucnn.tensor(mask, backend=backend))
    np.testing.assert_array_equal(y.numpy(), x[np.broadcast_to(mask, x.shape)])
    y.sum().backward()
    np.testing.assert_array_equal(tensor.grad.numpy(), np.broadcast_to(mask, x.shape))
    for one in (True, False):
        assert gpucnn.tensor(3.0).masked_select(gpucnn.tensor(one)).tolist() == [3.0] * one


def test_nonzero_unique_and_bincount_are_numpys(backend: str) -> None:
    x = np.array([[3, 0, 2], [0, 3, 3]])
    t = gpucnn.tensor(x, backend=backend)
    assert (t.nonzero().dtype, t.nonzero().tolist()) == (np.int64, [[0, 0], [0, 2], [1, 1], [1, 2]])
    values, inverse, counts = t.unique(return_inverse=True, return_counts=True)
    assert (values.tolist(), counts.tolist()) == ([0, 2, 3], [2, 1, 3])
    np.testing.assert_array_equal(values.numpy()[inverse.numpy()], x)
    assert gpucnn.tensor([2.0, 1.0, 2.0]).bfloat16().unique().tolist() == [1.0, 2.0]
    flat = t.flatten()
    assert (flat.bincount().tolist(), flat.bincount(minlength=6).tolist()) == ([2, 0, 1, 3], [2, 0, 1, 3, 0, 0])
    weights = gpucnn.tensor([0.5, 1, 2, 3, 4, 5], backend=backend)
    sums = flat.bincount(weights)
    assert (sums.dtype, sums.tolist()) == (np.float64, [4.0, 0.0, 2.0, 9.5])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ones(2, 3).roll((1, 2)), ValueError, r"several shifts \(1, 2\) need as many dims"),
        (lambda: ones(2, 3).roll((1, 2), 0), ValueError, r"shifts \(1, 2\) must be as many as dims \(0,\)"),
        (lambda: ones(2, 3).movedim((0, 0), (0, 1)), ValueError, r"source \(0, 0\) and destination \(0, 1\)"),
        (lambda: ones(2, 3).repeat_interleave(-1), ValueError, "repeats must be at least 0, got -1"),
        (lambda: ones(3).tril(), ValueError, r"at least 2 axes, got shape \(3,\)"),
        (lambda: ones(3).masked_select(ones(3)), TypeError, "mask must be a bool tensor, got float64"),
        (lambda: ones(3).masked_select(ones(2) > 0), ValueError, r"shapes \(3,\) and \(2,\) do not broadcast"),
        (lambda: gpucnn.tensor([1, -2]).bincount(), ValueError, "numbers must not be negative, got -2"),
        (lambda: ones(3).bincount(), TypeError, "input must be an integer tensor, got float64"),
    ],
)
def test_what_does_not_fit_is_shown(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
