"""Tensors: how they are made, what they say of themselves, indexing, values out, and what misuse gives."""

import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.backends.numpy_backend import NumpyBackend


class Abacus(NumpyBackend):
    """A second backend, to be mixed with the first."""

    name = "abacus"


@pytest.fixture(autouse=True)
def default_backend(backend: str) -> Iterator[None]:
    with gpucnn.use_backend(backend):
        yield


def gradient(tensor: Tensor) -> np.ndarray:
    assert tensor.grad is not None
    return tensor.grad.numpy()


# -- making one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, "float32"),
        ([[1.0, 2], [3, 4]], "float32"),
        (3, "int64"),
        ([1, 2], "int64"),
        ([True, False], "bool"),
        (np.zeros(2), "float64"),
        (np.float64(2), "float64"),
        (np.zeros(2, np.float32), "float32"),
        (np.zeros(2, np.uint8), "uint8"),
        ([], "float32"),
    ],
)
def test_python_floats_become_float32_ints_int64_and_arrays_keep_their_dtype(data: Any, dtype: str) -> None:
    made = gpucnn.tensor(data)
    assert made.dtype == dtype
    np.testing.assert_array_equal(made.numpy(), data)


@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("float64"), float])
def test_dtype_may_be_given_in_every_way_numpy_takes(dtype: Any) -> None:
    assert gpucnn.tensor([1, 2], dtype=dtype).dtype == np.float64
    assert gpucnn.zeros(2, dtype=dtype).dtype == np.float64


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4, 5)])
def test_new_tensor_is_a_copy_of_its_data(shape: tuple[int, ...]) -> None:
    data = np.zeros(shape)
    made = gpucnn.tensor(data)
    again = gpucnn.tensor(made)
    data[:] = 1
    with gpucnn.no_grad():
        again[...] = 2
    assert not made.numpy().any()


def test_four_axes_are_stored_channels_last() -> None:
    for made in (gpucnn.tensor(np.zeros((2, 3, 4, 5))), gpucnn.zeros(2, 3, 4, 5), gpucnn.randn(2, 3, 4, 5)):
        assert made.shape == (2, 3, 4, 5)
        assert made.array.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("make", [gpucnn.zeros, gpucnn.ones, gpucnn.rand, gpucnn.randn])
def test_shape_is_given_as_numbers_or_as_one_sequence(make: Callable[..., Tensor]) -> None:
    for arguments in [(2, 3), ((2, 3),), ([2, 3],), (np.int64(2), np.int64(3))]:
        assert make(*arguments).shape == (2, 3)
    assert make(np.int64(4)).shape == (4,)
    assert make().shape == ()
    assert make(0, 3).shape == (0, 3)
    assert make(2).dtype == np.float32


def test_zeros_ones_and_full_hold_their_number() -> None:
    assert gpucnn.zeros(2, 1).tolist() == [[0], [0]]
    assert gpucnn.ones(1, 2, dtype="int64").tolist() == [[1, 1]]
    assert gpucnn.full((2,), 2.5, dtype="float64").tolist() == [2.5, 2.5]
    assert gpucnn.full((2,), 1.0, requires_grad=True).requires_grad


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gpucnn.tensor([[1.0, 2], [3]]), ValueError, "can't make a tensor.*inhomogeneous"),
        (lambda: gpucnn.tensor("12"), TypeError, "can't hold <U2.*float32"),
        (lambda: gpucnn.tensor(None), TypeError, "can't hold object"),
        (lambda: gpucnn.tensor(1j), TypeError, "complex128.*float32, float64"),
        (lambda: gpucnn.tensor(np.zeros(2, np.complex64)), TypeError, "complex64"),
        (lambda: gpucnn.tensor([1.0], dtype="complex64"), TypeError, "complex64"),
        (lambda: gpucnn.tensor(["a"], dtype="float32"), ValueError, "can't make a tensor.*'a'"),
        (lambda: gpucnn.zeros(2, dtype="complex64"), TypeError, "complex64"),
        (lambda: gpucnn.zeros(2, -1), ValueError, r"negative.*\(2, -1\)"),
        (lambda: gpucnn.tensor([1, 2], requires_grad=True), RuntimeError, "floating.*int64"),
        (lambda: gpucnn.tensor([1.0], backend="abacus"), ValueError, "'abacus'.*numpy"),
    ],
)
def test_data_that_is_no_tensor_is_refused(make: Callable[[], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# -- what it is ----------------------------------------------------------------------------------------


def test_a_tensor_tells_its_shape_as_pytorch_does() -> None:
    x = gpucnn.zeros(2, 3, 5)
    assert (x.shape, x.size(), x.size(-1), x.size(1)) == ((2, 3, 5), (2, 3, 5), 5, 3)
    assert (x.ndim, x.dim(), x.numel(), len(x)) == (3, 3, 30, 2)
    assert [row.shape for row in x] == [(3, 5), (3, 5)]
    with pytest.raises(IndexError):
        x.size(3)
    with pytest.raises(TypeError, match="without axes"):
        len(gpucnn.tensor(1.0))


def test_one_element_is_a_python_number() -> None:
    x = gpucnn.tensor([[2.5]])
    assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)
    assert type(gpucnn.tensor(3).item()) is int
    assert not gpucnn.tensor([0.0])
    for use in (Tensor.item, float, bool):
        with pytest.raises(ValueError, match=r"one element.* this one has shape \(2,\)"):
            use(gpucnn.ones(2))
    with pytest.raises(ValueError, match=r"ask for the sum\(\), amax\(\) or amin\(\) of a condition"):
        bool(gpucnn.ones(2) > 0)
    assert ["no", "yes"][gpucnn.tensor([[1]])] == "yes"  # type: ignore[call-overload]
    for other in (gpucnn.ones(1), gpucnn.tensor([1, 2]), gpucnn.tensor(True)):
        with pytest.raises(TypeError, match="only one integer is an index"):
            operator.index(other)


def test_a_tensor_without_axes_is_formatted_as_its_number() -> None:
    loss = gpucnn.tensor(2.5, requires_grad=True)
    assert f"{loss:.3f} {loss} {gpucnn.tensor(7):03d}" == "2.500 2.5 007"
    assert f"{gpucnn.ones(1)}" == repr(gpucnn.ones(1))
    with pytest.raises(TypeError, match="format"):
        f"{gpucnn.ones(2):.3f}"


def test_repr_shows_values_and_what_is_unusual() -> None:
    on = "" if gpucnn.get_backend().name == "numpy" else f", backend={gpucnn.get_backend().name!r}"
    assert repr(gpucnn.tensor([1.0, 2.5])) == f"tensor([1. , 2.5]{on})"
    assert repr(gpucnn.tensor([1, 2])) == f"tensor([1, 2]{on})"
    assert repr(gpucnn.tensor([True])) == f"tensor([ True]{on})"
    assert (
        repr(gpucnn.tensor(1, dtype="float64", requires_grad=True))
        == f"tensor(1., dtype=float64{on}, requires_grad=True)"
    )
    assert repr(gpucnn.tensor(1.0, backend=Abacus())) == "tensor(1., backend='abacus')"
    assert len(repr(gpucnn.zeros(1000, 1000))) < 1000


def test_a_tensor_may_be_a_key_and_is_equal_elementwise() -> None:
    x, y = gpucnn.tensor([1.0, 2]), gpucnn.tensor([1.0, 3])
    assert {x: "x", y: "y"}[x] == "x"
    assert (x == y).tolist() == [True, False]
    assert (x != 1).tolist() == [False, True]
    assert (x < y).dtype == np.bool_


def test_numpy_reads_a_tensor_and_leaves_arithmetic_to_it() -> None:
    x = gpucnn.tensor([1.0, 2])
    np.testing.assert_array_equal(np.asarray(x.to("numpy")), [1, 2])
    assert np.asarray(x.to("numpy"), dtype=np.float64).dtype == np.float64
    assert isinstance(np.float32(2) * x, Tensor)
    for y in (np.ones(2, np.float32) - x, x - np.ones(2, np.float32), F.sub(np.ones((2, 1), np.float32), x)):
        assert isinstance(y, Tensor)
        np.testing.assert_array_equal(abs(y.numpy()), np.broadcast_to([0, 1], y.shape))
    assert (gpucnn.tensor([3, 1]) == np.array([3, 2])).sum().item() == 1  # as predictions and labels are
    assert F.where(x > 1, x, np.zeros(2, np.float32)).tolist() == [0, 2]
    with pytest.raises(TypeError, match="mul: the tensors must have one dtype, got input float32, other float64"):
        np.ones(2) * x
    with pytest.raises(TypeError, match=r"mul: other must be a Tensor, a number or a numpy\.ndarray, got list"):
        x * [1.0, 2.0]
    assert (np.float64(2) * x).dtype == np.float32


def test_deep_copy_of_a_leaf_has_its_own_memory_and_of_a_result_is_an_error() -> None:
    x = gpucnn.randn(2, 3, 4, 5).requires_grad_()
    twin = copy.deepcopy(x)
    assert twin.requires_grad
    assert twin.array.strides == x.array.strides
    with gpucnn.no_grad():
        x[...] = 0
    assert twin.numpy().all()
    with pytest.raises(RuntimeError, match=r"leaf.*detach\(\)"):
        copy.deepcopy(x * 2)


# -- conversions and changes in place ------------------------------------------------------------------


def test_conversion_to_the_dtype_or_backend_it_has_is_the_tensor_itself() -> None:
    x = gpucnn.ones(2)
    assert x.to("float32") is x
    assert x.float() is x
    assert x.to(x.backend) is x
    assert x.double().dtype == np.float64
    assert gpucnn.tensor([0.0, 2]).to(bool).tolist() == [False, True]


def test_copy_in_place_keeps_dtype_layout_and_backend() -> None:
    x = gpucnn.zeros(2, 3, 4, 5)
    array, values = x.array, np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    assert x.copy_(values) is x
    assert x.array is array
    np.testing.assert_array_equal(x.numpy(), values.astype(np.float32))
    x.copy_(gpucnn.ones(2, 3, 4, 5, backend=Abacus()))
    assert x.numpy().min() == 1
    with pytest.raises(ValueError, match=r"\(3,\) into shape \(2, 3, 4, 5\)"):
        x.copy_(np.zeros(3))


def test_move_in_place_forgets_the_gradient_and_keeps_the_wish_for_one() -> None:
    x = gpucnn.tensor([1.0, 2], requires_grad=True)
    (x * x).sum().backward()
    assert x.move_("float64") is x
    assert (x.dtype, x.requires_grad, x.grad) == (np.float64, True, None)
    (x * x).sum().backward()
    np.testing.assert_array_equal(gradient(x), [2, 4])
    abacus = Abacus()
    assert x.move_(abacus).backend is abacus
    labels = gpucnn.tensor([1, 2])
    assert labels.move_("float64").dtype == np.int64


def test_a_move_that_changes_nothing_keeps_the_gradient_and_what_was_computed() -> None:
    x = gpucnn.tensor([1.0, 2], requires_grad=True)
    (x * x).sum().backward()
    y = (x * 3).sum()
    x.move_("float32").move_(x.backend)
    np.testing.assert_array_equal(gradient(x), [2, 4])
    y.backward()
    np.testing.assert_array_equal(gradient(x), [5, 7])


def test_move_to_integers_is_an_error_that_changes_nothing() -> None:
    x = gpucnn.tensor([1.5], requires_grad=True)
    with pytest.raises(TypeError, match="float32 tensor can become float32 or float64, not int64"):
        x.move_("int64")
    assert (x.item(), x.dtype, x.requires_grad) == (1.5, np.float32, True)


def test_elements_may_be_set() -> None:
    x = gpucnn.zeros(3, 2)
    x[0] = 1
    x[gpucnn.tensor([1, 2]), 1] = gpucnn.tensor([5.0, 6])
    assert x.tolist() == [[1, 1], [0, 5], [0, 6]]


def test_elements_of_a_tensor_with_gradient_may_be_set_only_without_the_tape() -> None:
    x = gpucnn.zeros(3).requires_grad_()
    with pytest.raises(RuntimeError, match=r"in place only inside no_grad\(\)"):
        x[0] = 1
    with gpucnn.no_grad():
        x[0] = 1
    assert x.tolist() == [1, 0, 0]
    assert x.is_leaf
    assert x.requires_grad


def test_values_that_require_a_gradient_are_not_written_where_they_would_lose_it() -> None:
    w, x = gpucnn.tensor([2.0, 3], requires_grad=True), gpucnn.zeros(2)
    for write in (lambda: x.__setitem__(0, w[0] * 5), lambda: x.copy_(w * 5)):
        with pytest.raises(RuntimeError, match=r"would lose it.*join the parts with stack\(\) or cat\(\)"):
            write()
    assert x.tolist() == [0, 0]
    x[0] = (w[0] * 5).detach()
    with gpucnn.no_grad():
        x[1] = w[1] * 5
    assert x.tolist() == [10, 15]


def test_a_tensor_with_gradient_is_copied_into_only_without_the_tape() -> None:
    x = gpucnn.zeros(2).requires_grad_()
    with pytest.raises(RuntimeError, match=r"in place only inside no_grad\(\)"):
        x.copy_(np.ones(2))
    with gpucnn.no_grad():
        x.copy_(np.ones(2))
    x.detach().copy_(x.numpy() + 1)
    assert x.tolist() == [2, 2]


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "x += y": operator.iadd,
    "x -= y": operator.isub,
    "x *= y": operator.imul,
    "x /= y": operator.itruediv,
    "add_": lambda x, y: x.add_(y),
    "add_ alpha": lambda x, y: x.add_(y, alpha=0.5),
    "sub_": lambda x, y: x.sub_(y),
    "sub_ alpha": lambda x, y: x.sub_(y, alpha=-2),
    "mul_": lambda x, y: x.mul_(y),
    "div_": lambda x, y: x.div_(y),
    "add_ number": lambda x, y: x.add_(3),
    "mul_ number": lambda x, y: x.mul_(0.25),
    "clamp_": lambda x, y: x.clamp_(-0.5, 1),
    "clamp_ below": lambda x, y: x.clamp_(min=0),
    "fill_": lambda x, y: x.fill_(2.5),
    "zero_": lambda x, y: x.zero_(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_parameter_is_changed_in_place_inside_no_grad_as_in_pytorch(change: str, torch: Any) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 3, 4, 5)).astype("f"), rng.uniform(1, 2, (3, 1, 1)).astype("f")
    theirs = torch.nn.Parameter(torch.tensor(x))
    for ours in (nn.Parameter(gpucnn.tensor(x)), gpucnn.tensor(x, requires_grad=True)):
        array = ours.array
        with pytest.raises(RuntimeError, match=r"in place only inside no_grad\(\)"):
            CHANGES[change](ours, gpucnn.tensor(y))
        np.testing.assert_array_equal(ours.numpy(), x)
        with gpucnn.no_grad():
            assert CHANGES[change](ours, gpucnn.tensor(y)) is ours
        assert ours.array is array
        assert ours.is_leaf
        assert ours.requires_grad
    with torch.no_grad():
        CHANGES[change](theirs, torch.tensor(y))
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=2**-22)


def test_a_gradient_step_by_hand_trains() -> None:
    layer = nn.Linear(3, 1)
    x, before = gpucnn.randn(20, 3), layer.weight.numpy().copy()
    for _ in range(2):
        (layer(x) ** 2).mean().backward()
        step = 0.1 * gradient(layer.weight)
        with gpucnn.no_grad():
            for p in layer.parameters():
                p -= 0.1 * p.grad
                p.grad.zero_()
        np.testing.assert_array_equal(layer.weight.numpy(), before - step)
        before = layer.weight.numpy().copy()


def test_tensors_change_in_place_unless_the_tape_records_it() -> None:
    kept = buffer = nn.Buffer(gpucnn.ones(2))
    buffer += 1
    assert buffer is kept
    assert kept.tolist() == [2, 2]
    frozen = same = nn.Parameter(gpucnn.ones(2), requires_grad=False)
    frozen *= 3
    assert frozen is same
    assert same.tolist() == [3, 3]
    x = y = gpucnn.ones(2)
    x += 1
    assert x is y
    assert y.tolist() == [2, 2]
    recorded = kept = gpucnn.ones(2, requires_grad=True) * 1
    recorded *= 3
    assert (recorded.tolist(), kept.tolist()) == ([3, 3], [1, 1])
    total = start = gpucnn.zeros(2)
    total += recorded  # which needs a gradient, so the sum is recorded too
    assert total.requires_grad
    assert start.tolist() == [0, 0]
    with gpucnn.no_grad():
        kept /= 2
    assert kept.tolist() == [0.5, 0.5]


def test_an_average_of_a_models_weights_is_kept_as_programs_for_pytorch_do() -> None:
    """By the state's own tensors, and by data that is put aside and put back."""
    model, average = nn.Linear(2, 1), nn.Linear(2, 1)
    before = {name: v.numpy().copy() for name, v in average.state_dict().items()}
    for name, v in average.state_dict().items():
        v *= 0.9
        v += 0.1 * model.state_dict()[name].detach()
    for name, v in average.state_dict().items():
        np.testing.assert_allclose(v.numpy(), 0.9 * before[name] + 0.1 * model.state_dict()[name].numpy(), rtol=1e-6)
    backup = {name: p.data for name, p in model.named_parameters()}
    values = {name: p.numpy().copy() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.data = p.data * 0
    assert not model.weight.numpy().any()
    for name, p in model.named_parameters():
        p.data = backup[name]
        np.testing.assert_array_equal(p.numpy(), values[name])


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x.flip(0), lambda x: x.flip(()), lambda x: x.tile(1, 1, 1, 1), lambda x: x.repeat(1, 1, 1, 1),
        lambda x: x.transpose(0, 1).contiguous(), lambda x: x.permute(0, 2, 3, 1).contiguous(), lambda x: x.clone(),
        lambda x: gpucnn.functional.interpolate(x, (4, 5)), lambda x: x[:, :, 0].transpose(0, 1).contiguous(),
    ],
)  # fmt: skip
def test_what_copies_in_pytorch_has_memory_of_its_own(copy: Any) -> None:
    x = gpucnn.ones(2, 3, 4, 5)
    copy(x).zero_()
    assert x.numpy().all()


def test_what_lies_in_the_usual_order_is_contiguous() -> None:
    for x in (gpucnn.ones(2, 3, 4, 5), gpucnn.ones(2, 3), gpucnn.ones(4, 3)[1:]):
        assert x.contiguous() is x


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x: x.add_(gpucnn.ones(3, 2)),
            ValueError,
            r"add_: a float32 tensor of shape \(2,\) can't become .*\(3, 2",
        ),
        (lambda x: x.to("int64").mul_(0.5), ValueError, "mul_: a int64 tensor .* can't become float32"),
        (lambda x: x.add_(gpucnn.ones(2, requires_grad=True)), RuntimeError, "would lose it"),
        (lambda x: gpucnn.from_numpy(np.broadcast_to(np.float32(1), (2,))).zero_(), ValueError, "read-only"),
    ],
)
def test_a_change_in_place_that_does_not_fit_is_an_error_that_changes_nothing(
    change: Any, error: Any, message: str
) -> None:
    x = gpucnn.ones(2)
    with pytest.raises(error, match=message):
        change(x)
    assert x.tolist() == [1, 1]


def test_data_is_the_values_without_history_and_takes_new_ones() -> None:
    w = gpucnn.tensor([1.0, 2], requires_grad=True)
    assert not w.data.requires_grad
    w.data[0] = 5
    assert w.tolist() == [5, 2]
    w.data = gpucnn.tensor([7.0, 8])
    assert w.tolist() == [7, 8]
    assert w.requires_grad
    w.data = np.array([1, 2])
    assert (w.tolist(), w.dtype) == ([1, 2], np.float32)
    with pytest.raises(ValueError, match=r"data: shape \(3,\) can't take the place of \(2,\)"):
        w.data = np.zeros(3)


def test_tensors_like_others_have_their_shape_type_and_backend() -> None:
    x = gpucnn.ones(2, 3, 4, 5, dtype="float64", backend=Abacus())
    for made in (gpucnn.zeros_like(x), gpucnn.ones_like(x), gpucnn.full_like(x, 3), gpucnn.rand_like(x)):
        assert (made.shape, made.dtype, made.backend) == (x.shape, x.dtype, x.backend)
    assert gpucnn.full_like(x, 3, dtype="int64", requires_grad=False).dtype == np.int64
    assert gpucnn.ones_like(x, requires_grad=True).requires_grad
    assert (gpucnn.zeros_like(x).sum().item(), gpucnn.full_like(x, 2).mean().item()) == (0, 2)
    gpucnn.manual_seed(4)
    expected = gpucnn.randn(2, 3)
    gpucnn.manual_seed(4)
    assert gpucnn.randn_like(gpucnn.zeros(2, 3)).tolist() == expected.tolist()
    with pytest.raises(TypeError, match="rand_like: input must be float32 or float64, got int64"):
        gpucnn.rand_like(gpucnn.tensor([1]))


def test_a_view_is_a_reshape_and_any_tensor_is_contiguous() -> None:
    x = gpucnn.randn(2, 3, 4, 5)
    assert x.view(2, -1).tolist() == x.reshape(2, 60).tolist()
    assert x.contiguous() is x
    assert (x.view((6, 20)).shape, x.permute(0, 2, 3, 1).contiguous().view(-1).shape) == ((6, 20), (120,))
    assert x.long().dtype == np.int64


def test_clone_has_its_own_memory_and_detach_shares_it() -> None:
    x = gpucnn.ones(2)
    clone, shared = x.clone(), x.detach()
    x[0] = 5
    assert clone.tolist() == [1, 1]
    assert shared.tolist() == [5, 1]


@pytest.mark.parametrize("arguments", [(3, 4), ((3, 4),), ([3, 4],), (np.int64(3), np.int64(4)), (-1, 4)])
def test_new_shapes_are_given_as_numbers_or_as_one_sequence(arguments: Any) -> None:
    assert gpucnn.zeros(12).reshape(*arguments).shape == (3, 4)
    assert gpucnn.zeros(3, 1).expand(*arguments).shape == (3, 4)


def test_axes_are_named_as_numbers_or_as_one_sequence() -> None:
    x = gpucnn.zeros(2, 3, 5)
    assert x.permute(2, 0, 1).shape == x.permute((2, 0, 1)).shape == x.permute([2, 0, 1]).shape == (5, 2, 3)


# -- indexing ------------------------------------------------------------------------------------------

INDICES: dict[str, Any] = {
    "number": 1,
    "from-the-end": -1,
    "numbers": (0, -1, 2),
    "slice": slice(1, None),
    "backwards": (slice(None, None, -1), slice(None)),
    "steps": (slice(None), slice(None, None, 2), slice(3, 0, -2)),
    "new-axis": (None, slice(None), None),
    "ellipsis": (..., 0),
    "ellipsis-between": (1, ..., slice(0, 2)),
    "nothing": slice(2, 2),
    "list": [0, 2, 0],
    "repeated-pairs": ([0, 1, 0], [2, 1, 2]),
    "outer": (np.array([[0], [2]]), np.array([1, 1, 0])),
    "split-by-a-slice": ([0, 1, 1], slice(None), [3, 0, 3]),
    "mask-of-rows": np.array([True, False, True]),
    "mask-of-elements": np.arange(60).reshape(3, 4, 5) % 7 == 3,
    "mask-list": [False, True, True],
    "empty-list": [],
    "tuple-inside": ((0, 2, 0),),
    "tuple-and-slice": ((0, 2, 0), slice(1, 3)),
    "range": range(2, -1, -2),
    "range-and-tuple": (range(1), (2, 2)),
    "bytes": np.array([2, 0, 2], np.uint8),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=list(INDICES))
def test_indexing_is_numpys_and_repeated_elements_get_every_share_of_the_gradient(index: Any) -> None:
    generator = np.random.default_rng(5)
    array = generator.standard_normal((3, 4, 5))
    expected = array[index]
    x = gpucnn.tensor(array, requires_grad=True)
    y = x[index]
    np.testing.assert_array_equal(y.numpy(), expected)
    share = generator.integers(-9, 9, expected.shape).astype(np.float64)
    y.backward(gpucnn.tensor(share))
    places = np.arange(60).reshape(3, 4, 5)[index]  # which element each share comes from, added one by one
    dx = np.zeros(60)
    for place, value in zip(places.ravel(), share.ravel(), strict=True):
        dx[place] += value
    np.testing.assert_array_equal(gradient(x), dx.reshape(3, 4, 5))


@pytest.mark.parametrize("index", [np.array([2, 0, 2]), np.array([True, False, True]), np.array([1, 2], np.uint8)])
def test_a_tensor_is_an_index(index: np.ndarray) -> None:
    x = gpucnn.randn(3, 4)
    np.testing.assert_array_equal(x[gpucnn.tensor(index)].numpy(), x.numpy()[index])


def test_mask_made_by_comparison_picks_elements_and_their_gradients() -> None:
    x = gpucnn.tensor([[1.0, -2, 3], [-4, 5, -6]], requires_grad=True)
    positive = x[x > 0]
    assert positive.tolist() == [1, 3, 5]
    (positive * positive).sum().backward()
    np.testing.assert_array_equal(gradient(x), [[2, 0, 6], [0, 10, 0]])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_slices_of_an_image_are_numpys(data: st.DataObject, backend: str) -> None:
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(4))
    index = tuple(
        data.draw(st.slices(n)) if data.draw(st.booleans()) else data.draw(st.integers(-n, n - 1)) for n in shape
    )
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    x = gpucnn.tensor(array, requires_grad=True, backend=backend)
    y = x[index]
    np.testing.assert_array_equal(y.numpy(), array[index])
    (y * y).sum().backward()
    expected = np.zeros(shape)
    expected[index] = 2 * array[index]
    np.testing.assert_array_equal(gradient(x), expected)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (3, r"index 3 does not fit shape \(3, 4\)"),
        ((0, 0, 0), r"\(0, 0, 0\) does not fit shape \(3, 4\)"),
        ([True, False], r"does not fit shape \(3, 4\).*3.*2"),
        (np.array([0.5]), "ints, slices, or int or bool arrays.*float64"),
        ("a", r"'a' does not fit shape \(3, 4\)"),
    ],
)
def test_an_index_that_does_not_fit_is_shown(index: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        gpucnn.zeros(3, 4)[index]


# -- broadcasting --------------------------------------------------------------------------------------

PAIRS = [
    ((3,), (2, 3)),
    ((2, 1), (1, 3)),
    ((), (2, 3)),
    ((1, 1, 1), (2, 3)),
    ((4, 1, 5), (2, 1, 3, 1)),
    ((3, 1, 1), (2, 3, 4, 5)),
    ((0, 3), (1, 3)),
    ((1,), (2, 3, 4, 5)),
    ((2, 1, 4, 1), (1, 3, 1, 5)),
]


@pytest.mark.parametrize(("left", "right"), [*PAIRS, *(pair[::-1] for pair in PAIRS)])
def test_gradient_of_a_repeated_operand_is_summed_over_its_repetitions(left: Any, right: Any) -> None:
    generator = np.random.default_rng(1)
    a, b = (generator.integers(-5, 6, shape).astype(np.float64) for shape in (left, right))
    x, y = gpucnn.tensor(a, requires_grad=True), gpucnn.tensor(b, requires_grad=True)
    product = x * y
    np.testing.assert_array_equal(product.numpy(), a * b)
    share = generator.integers(-5, 6, product.shape).astype(np.float64)
    product.backward(gpucnn.tensor(share))
    da, db = np.zeros(left), np.zeros(right)
    for place in np.ndindex(product.shape):  # each product adds its share to the one element of each that made it

        def at(shape: Any, place: tuple[int, ...] = place) -> tuple[int, ...]:
            return tuple(0 if n == 1 else i for n, i in zip(shape, place[len(place) - len(shape) :], strict=True))

        da[at(left)] += share[place] * b[at(right)]
        db[at(right)] += share[place] * a[at(left)]
    np.testing.assert_array_equal(gradient(x), da)
    np.testing.assert_array_equal(gradient(y), db)


def test_number_on_either_side_keeps_float32() -> None:
    x = gpucnn.tensor([1.0, 4], requires_grad=True)
    for y in (2 + x, 2 - x, 2 * x, 2 / x, 2**x, x + 2.5, x / 2, x**0.5, x - np.float64(0.1)):
        assert y.dtype == np.float32
    y = 1 - 2 / x
    y.sum().backward()
    np.testing.assert_array_equal(gradient(x), [2, 0.125])


def test_two_backends_in_one_operation_are_an_error_that_names_both() -> None:
    x, y = gpucnn.ones(2), gpucnn.ones(2, backend=Abacus())
    name = x.backend.name
    for mixed in (lambda: x + y, lambda: x.matmul(y), lambda: gpucnn.cat([x, y]), lambda: x == y):
        with pytest.raises(ValueError, match=rf"on {name}, .* on abacus; .*\.to\('{name}'\)"):
            mixed()
    with pytest.raises(ValueError, match=rf"gradient is on abacus, the tensor on {name}.*gradient\.to\('{name}'\)"):
        (x.requires_grad_() * 2).backward(y)
    assert (x + y.to(x.backend)).tolist() == [2, 2]


def test_a_tensor_is_not_made_of_lengths() -> None:
    with pytest.raises(TypeError, match=r"an array and its backend, got 3; use gpucnn.tensor\(\) or empty\(\)"):
        Tensor(2, 3)
