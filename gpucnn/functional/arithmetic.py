"""Arithmetic with broadcasting, elementwise functions, reductions and matrix products.

These are the array library's own operations (`backend.xp`), run in storage order; only matmul is a primitive.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends import Array, Backend, get_backend
from gpucnn.dtypes import is_floating, is_half, named
from gpucnn.functional import validate
from gpucnn.functional.casting import converted, in_float32, in_half, promoted, through_float32
from gpucnn.tensor import Tensor, in_storage_order, record, tensor

Operand = Tensor | float | np.ndarray[Any, Any]


def _sum_to(backend: Backend, gradient: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of broadcasting: summed over the axes along which an operand of `shape` was repeated."""
    if gradient.shape == shape:
        return gradient
    extra = gradient.ndim - len(shape)
    repeated = tuple(i for i, n in enumerate(gradient.shape) if i < extra or (shape[i - extra] == 1 and n != 1))
    if not is_half(gradient.dtype):
        return gradient.sum(axis=repeated, keepdims=True).reshape(shape)
    total = gradient.sum(axis=repeated, keepdims=True, dtype=np.float32)
    return backend.astype(total.reshape(shape), gradient.dtype)


def promoted_arrays(a: Any, b: Any) -> Sequence[Any]:
    """Both operands, tensors of one half or full type if both are; NumPy's array beside a tensor becomes one too."""
    if isinstance(a, Tensor) and isinstance(b, np.ndarray):
        b = tensor(b, backend=a.backend)
    elif isinstance(b, Tensor) and isinstance(a, np.ndarray):
        a = tensor(a, backend=b.backend)
    return promoted([a, b])


def operands(op: str, a: Any, b: Any) -> tuple[Backend, Any, Any]:
    """Both operands' arrays (a number stays one), converted to one dtype: int with float gives the float's."""
    names = {"input": a, "other": b}
    for name, value in names.items():
        if not isinstance(value, Tensor | int | float | np.number | np.bool_):
            raise TypeError(
                f"{op}: {name} must be a Tensor, a number or a numpy.ndarray, got {validate.kind(value)}; use "
                "gpucnn.tensor()"
            )
    tensors = {name: value for name, value in names.items() if isinstance(value, Tensor)}
    backend = validate.one_backend(op, **tensors)
    floats = {name: t for name, t in tensors.items() if is_floating(t.dtype)}
    if floats:
        validate.floating(op, **floats)
    number_is_float = any(isinstance(v, float | np.floating) for v in names.values())
    convert = bool(floats) or number_is_float or op == "div"
    dtype = next((t.dtype for t in floats.values()), np.dtype(np.float32))

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.array.astype(dtype, copy=False) if convert else value.array
        return value.item() if isinstance(value, np.generic) else value

    return backend, plain(a), plain(b)


def broadcast(op: str, function: Any, *arrays: Any) -> Array:
    """`in_storage_order`; raises ValueError for shapes that do not broadcast and numbers that the type can't hold."""
    try:
        return in_storage_order(function, *arrays)
    except OverflowError as error:
        raise ValueError(f"{op}: {error}; convert the tensor with .float() or .double()") from None
    except ValueError:
        *first, last = (str(np.shape(array)) for array in arrays)
        raise ValueError(f"{op}: shapes {', '.join(first)} and {last} do not broadcast") from None


def _binary(op: str, function: str, a: Operand, b: Operand, vjp_a: Any, vjp_b: Any) -> Tensor:
    a, b = promoted_arrays(a, b)
    backend, x, y = operands(op, a, b)
    result = broadcast(op, getattr(backend.xp, function), x, y)

    def share(vjp: Any, shape: tuple[int, ...]) -> Any:
        def of(dy: Array) -> Array:
            if dy.shape == shape or not is_half(dy.dtype):
                return _sum_to(backend, vjp(backend, dy, x, y), shape)
            wide = _sum_to(backend, vjp(backend, backend.astype(dy, np.float32), x, y), shape)
            return backend.astype(wide, dy.dtype)

        return of

    given = ((a, vjp_a), (b, vjp_b))
    edges = [(t, share(vjp, t.shape)) for t, vjp in given if isinstance(t, Tensor)]
    return record(backend, result, *edges)


def _times(backend: Backend, dy: Array, factor: Any) -> Array:
    return in_storage_order(backend.xp.multiply, dy, factor)


def add(input: Operand, other: Operand) -> Tensor:
    """input + other, with broadcasting."""
    return _binary("add", "add", input, other, lambda be, dy, x, y: dy, lambda be, dy, x, y: dy)


def sub(input: Operand, other: Operand) -> Tensor:
    """input − other, with broadcasting. Raises TypeError for bool tensors, as PyTorch does."""
    for value in (input, other):
        if isinstance(value, Tensor) and value.dtype == np.bool_:
            raise TypeError("sub: a bool tensor can't be subtracted or subtracted from; use != for its logical_xor")
    return _binary("sub", "subtract", input, other, lambda be, dy, x, y: dy, lambda be, dy, x, y: -dy)


def mul(input: Operand, other: Operand) -> Tensor:
    """input · other, with broadcasting."""
    return _product("mul", input, other)


def _product(op: str, a: Operand, b: Operand) -> Tensor:
    return _binary(op, "multiply", a, b, lambda be, dy, x, y: _times(be, dy, y), lambda be, dy, x, y: _times(be, dy, x))


def div(input: Operand, other: Operand) -> Tensor:
    """input / other, with broadcasting; of integers too, in float32."""
    return _ratio(input, other) if isinstance(input, Tensor) else _reciprocal(input, other)


def remainder(input: Operand, other: Operand) -> Tensor:
    """What is left of input / other, with the sign of `other`: input − ⌊input / other⌋ · other, with broadcasting.

    Of integers that are divided by 0 it is 0; dividing them by the number 0 is a ValueError.
    """
    _no_whole_zero("remainder", input, other)
    return _binary(
        "remainder",
        "remainder",
        input,
        other,
        lambda be, dy, x, y: dy,
        lambda be, dy, x, y: _times(be, dy, in_storage_order(lambda a, b: -be.xp.floor_divide(a, b), x, y)),
    )


def floor_divide(input: Operand, other: Operand) -> Tensor:
    """⌊input / other⌋, with broadcasting; of integers an integer. The gradient is 0.

    Of integers that are divided by 0 it is 0; dividing them by the number 0 is a ValueError.
    """
    _no_whole_zero("floor_divide", input, other)

    def none(backend: Backend, dy: Array, x: Any, y: Any) -> Array:
        return backend.xp.zeros_like(dy)

    return _binary("floor_divide", "floor_divide", input, other, none, none)


def _no_whole_zero(op: str, input: Operand, other: Operand) -> None:
    whole = isinstance(input, Tensor) and not is_floating(input.dtype)
    if whole and not isinstance(other, Tensor) and isinstance(other, int) and other == 0:
        raise ValueError(f"{op}: whole numbers can't be divided by 0; convert the tensor with .float()")


def lerp(input: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    """input + weight · (end − input), with broadcasting: at weight 0 input, and at 1 end, exactly."""
    validate.floating("lerp", input=input, end=end)
    if isinstance(weight, Tensor):
        apart = sub(end, input)
        near_end = sub(end, mul(apart, sub(1.0, weight)))
        return where(weight < 0.5, add(input, mul(apart, weight)), near_end)
    share = validate.number("lerp", "weight", weight)
    if share < 0.5:
        return add(input, mul(sub(end, input), share))
    return sub(end, mul(sub(end, input), 1 - share))


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """The products of each element of one vector, [M], with each of another, [N]: [M, N]."""
    validate.rank("outer", "input", input, 1, "[M]")
    validate.rank("outer", "vec2", vec2, 1, "[N]")
    return _product("outer", input.unsqueeze(1), vec2)


def _ratio(input: Operand, other: Operand) -> Tensor:
    return _binary(
        "div",
        "true_divide",
        input,
        other,
        lambda be, dy, x, y: in_storage_order(be.xp.true_divide, dy, y),
        lambda be, dy, x, y: in_storage_order(lambda d, a, b: -d * (a / b / b), dy, x, y),  # b * b may overflow
    )


_reciprocal = in_float32(_ratio)


@in_float32
def pow(input: Operand, exponent: Operand) -> Tensor:
    """input ** exponent, with broadcasting. The gradient at 0 ** 0 is 0, as in PyTorch."""
    whole = all(value.dtype.kind in "iub" if isinstance(value, Tensor) else isinstance(value, Integral)
                for value in (input, exponent))  # fmt: skip
    if whole and np.any((exponent.array if isinstance(exponent, Tensor) else exponent) < 0):
        raise ValueError(
            f"pow: integers to negative integer powers are not allowed, got {exponent!r:.100}; convert the tensor with "
            ".float() or .double()"
        )

    def vjp_base(backend: Backend, dy: Array, x: Any, p: Any) -> Array:
        where = backend.xp.where
        return in_storage_order(lambda d, a, b: where(b == 0, 0, d * b * a ** where(b == 0, 1, b - 1)).astype(d.dtype),
                                dy, x, backend.asarray(p, dy.dtype))  # fmt: skip

    def vjp_exponent(backend: Backend, dy: Array, x: Any, p: Any) -> Array:
        def share(d: Array, a: Any, b: Any) -> Array:
            zero = (a == 0) & (b >= 0)
            return backend.xp.where(zero, 0, d * a**b * backend.xp.log(backend.xp.where(zero, 1, a))).astype(d.dtype)

        return in_storage_order(share, dy, backend.asarray(x, dy.dtype), p)

    return _binary("pow", "power", input, exponent, vjp_base, vjp_exponent)


def maximum(input: Tensor, other: Tensor) -> Tensor:
    """The larger of each two elements, with broadcasting; NaN wins, and equal ones share the gradient evenly."""
    return _larger("maximum", "greater", input, other)


def minimum(input: Tensor, other: Tensor) -> Tensor:
    """The smaller of each two elements; see maximum."""
    return _larger("minimum", "less", input, other)


def _larger(op: str, comparison: str, a: Tensor, b: Tensor) -> Tensor:
    def share(backend: Backend, dy: Array, x: Any, y: Any) -> Array:
        wins = getattr(backend.xp, comparison)
        return in_storage_order(lambda d, p, q: d * (wins(p, q) + (p == q) * 0.5).astype(d.dtype), dy, x, y)

    return _binary(op, op, a, b, share, lambda backend, dy, x, y: share(backend, dy, y, x))


def where(condition: Tensor, input: Operand, other: Operand) -> Tensor:
    """input where condition (a bool tensor, such as x > 0) is true, else other, with broadcasting."""
    backend = validate.one_backend("where", condition=condition)
    if isinstance(input, int | float) and isinstance(other, int | float):
        input = tensor(input, backend=backend)
    input, other = promoted_arrays(input, other)
    backend, x, y = operands("where", input, other)
    tensors = {name: t for name, t in (("input", input), ("other", other)) if isinstance(t, Tensor)}
    validate.one_backend("where", condition=condition, **tensors)
    if condition.dtype != np.bool_:
        raise TypeError(f"where: condition must be a bool tensor, such as x > 0, got {condition.dtype}")
    chosen, choose = condition.array, backend.xp.where
    result = broadcast("where", choose, chosen, x, y)

    def share(if_true: bool) -> Any:
        shape = np.shape(x if if_true else y)
        take = (lambda d, c: choose(c, d, 0)) if if_true else (lambda d, c: choose(c, 0, d))
        return lambda dy: _sum_to(backend, in_storage_order(take, dy, chosen), shape)

    given = ((input, True), (other, False))
    return record(backend, result, *((t, share(first)) for t, first in given if isinstance(t, Tensor)))


def neg(input: Tensor) -> Tensor:
    """−input."""
    backend = validate.one_backend("neg", input=input)
    if input.dtype.kind != "i" and not is_floating(input.dtype):
        raise TypeError(f"neg: a {input.dtype} tensor has no negative; convert it with .float()")
    return record(backend, -input.array, (input, lambda dy: -dy))


def _unary(op: str, input: Tensor, y: Array, slope: Any) -> Tensor:
    """Record y = f(x), where slope() is f′ as an array of x's shape."""
    backend = input.backend
    return record(backend, y, (input, lambda dy: _times(backend, dy, slope())))


def abs(input: Tensor) -> Tensor:
    """|input|; the gradient at 0 is 0."""
    backend = validate.floating("abs", input=input)
    x = input.array
    return _unary("abs", input, in_storage_order(backend.xp.abs, x), lambda: in_storage_order(backend.xp.sign, x))


def sign(input: Tensor) -> Tensor:
    """−1, 0 or 1; 0 of NaN, as in PyTorch. The gradient is 0."""
    return _step("sign", input, lambda xp, a: (a > 0).astype(a.dtype) - (a < 0))


def floor(input: Tensor) -> Tensor:
    """The largest whole number that is not above input. The gradient is 0."""
    return _step("floor", input, lambda xp, a: xp.floor(a))


def ceil(input: Tensor) -> Tensor:
    """The smallest whole number that is not below input. The gradient is 0."""
    return _step("ceil", input, lambda xp, a: xp.ceil(a))


def round(input: Tensor) -> Tensor:
    """The nearest whole number; of two the even one. The gradient is 0."""
    return _step("round", input, lambda xp, a: xp.rint(a))


def _step(op: str, input: Tensor, function: Any) -> Tensor:
    backend = validate.floating(op, input=input)
    y = in_storage_order(lambda a: function(backend.xp, a), input.array)
    return record(backend, y, (input, lambda dy: backend.xp.zeros_like(dy)))


def square(input: Tensor) -> Tensor:
    """input · input."""
    return mul(input, input)


def reciprocal(input: Tensor) -> Tensor:
    """1 / input; of integers too, in float32."""
    return div(1.0, input)


@in_float32
def rsqrt(input: Tensor) -> Tensor:
    """1 / √input."""
    return reciprocal(sqrt(input))


@in_float32
def exp(input: Tensor) -> Tensor:
    """e ** input."""
    backend = validate.floating("exp", input=input)
    y = in_storage_order(backend.xp.exp, input.array)
    return _unary("exp", input, y, lambda: y)


@in_float32
def log(input: Tensor) -> Tensor:
    """The natural logarithm; −inf at 0 and NaN below, without a warning, as in PyTorch."""
    backend = validate.floating("log", input=input)
    x = input.array
    y = in_storage_order(backend.xp.log, x)
    return record(backend, y, (input, lambda dy: in_storage_order(backend.xp.true_divide, dy, x)))


@in_float32
def log1p(input: Tensor) -> Tensor:
    """log(1 + input), exact for a small input too."""
    return _with_slope("log1p", input, lambda xp, a: xp.log1p(a), lambda xp, a: 1 / (1 + a))


@in_float32
def log2(input: Tensor) -> Tensor:
    """The logarithm to the base 2."""
    return _with_slope("log2", input, lambda xp, a: xp.log2(a), lambda xp, a: 1 / (a * math.log(2)))


@in_float32
def log10(input: Tensor) -> Tensor:
    """The logarithm to the base 10."""
    return _with_slope("log10", input, lambda xp, a: xp.log10(a), lambda xp, a: 1 / (a * math.log(10)))


@in_float32
def expm1(input: Tensor) -> Tensor:
    """e ** input − 1, exact for a small input too."""
    return _with_slope("expm1", input, lambda xp, a: xp.expm1(a), lambda xp, a: xp.exp(a))


@through_float32
def sin(input: Tensor) -> Tensor:
    """The sine of an angle in radians."""
    return _with_slope("sin", input, lambda xp, a: xp.sin(a), lambda xp, a: xp.cos(a))


@through_float32
def cos(input: Tensor) -> Tensor:
    """The cosine of an angle in radians."""
    return _with_slope("cos", input, lambda xp, a: xp.cos(a), lambda xp, a: -xp.sin(a))


def _with_slope(op: str, input: Tensor, function: Any, slope: Any) -> Tensor:
    """function(xp, x), whose derivative is slope(xp, x)."""
    backend, x = validate.floating(op, input=input), input.array
    y = in_storage_order(lambda a: function(backend.xp, a), x)
    return _unary(op, input, y, lambda: in_storage_order(lambda a: slope(backend.xp, a), x))


@through_float32
def sqrt(input: Tensor) -> Tensor:
    """The square root; NaN below 0, without a warning."""
    backend = validate.floating("sqrt", input=input)
    y = in_storage_order(backend.xp.sqrt, input.array)
    return _unary("sqrt", input, y, lambda: in_storage_order(lambda a: 0.5 / a, y))


def clamp(input: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """input limited to min … max; the gradient passes where min <= input <= max."""
    if min is None and max is None:
        raise ValueError("clamp: give min, max or both")
    backend = validate.floating("clamp", input=input)
    x = input.array
    low = -math.inf if min is None else validate.number("clamp", "min", min)
    high = math.inf if max is None else validate.number("clamp", "max", max)
    return _unary(
        "clamp",
        input,
        in_storage_order(lambda a: backend.xp.minimum(backend.xp.maximum(a, low), high), x),
        lambda: in_storage_order(lambda a: (a >= low) & (a <= high), x),
    )


# -- reductions ------------------------------------------------------------------------------------


def expanded(backend: Backend, gradient: Array, x: Array, chosen: tuple[int, ...]) -> Array:
    """A reduced gradient [with or without kept axes], repeated to x's shape in memory of its own."""
    kept = tuple(1 if i in chosen else n for i, n in enumerate(x.shape))
    full = backend.xp.empty_like(x, dtype=gradient.dtype)
    full[...] = gradient.reshape(kept)
    return full


@in_float32
def sum(input: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The sum over one axis, several, or all; of integers in int64."""
    backend = validate.one_backend("sum", input=input)
    chosen = validate.axes("sum", dim, input.ndim)
    x = input.array
    with np.errstate(all="ignore"):
        y = x.sum(axis=chosen, keepdims=keepdim, dtype=np.int64 if x.dtype.kind == "u" else None)
    return record(backend, y, (input, lambda dy: expanded(backend, dy, x, chosen)))


@in_float32
def cumsum(input: Tensor, dim: int) -> Tensor:
    """The sums of an axis up to each place, that included; of integers in int64."""
    backend = validate.one_backend("cumsum", input=input)
    axis = validate.axis("cumsum", dim, input.ndim)

    def summed(a: Array) -> Array:
        with np.errstate(all="ignore"):
            return backend.contiguous(a.cumsum(axis=axis, dtype=None if is_floating(a.dtype) else np.int64))

    def backwards(a: Array) -> Array:
        return a[(slice(None),) * axis + (slice(None, None, -1),)]

    return record(
        backend, summed(input.array), (input, lambda dy: backend.contiguous(backwards(summed(backwards(dy)))))
    )


@in_float32
def prod(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The product over one axis, or over all; of integers in int64."""
    backend = validate.one_backend("prod", input=input)
    if dim is None:
        return prod(input.reshape(-1), 0)
    x, axis = input.array, validate.axis("prod", dim, input.ndim)
    with np.errstate(all="ignore"):
        y = x.prod(axis=axis, keepdims=keepdim, dtype=None if is_floating(x.dtype) else np.int64)

    def of_the_others() -> Array:
        """Of each element those before it times those behind it: a zero may be among them."""
        some = (slice(None),) * axis
        before, behind = backend.xp.ones_like(x), backend.xp.ones_like(x)
        before[(*some, slice(1, None))] = x.cumprod(axis=axis)[(*some, slice(None, -1))]
        turned = x[(*some, slice(None, None, -1))].cumprod(axis=axis)[(*some, slice(None, None, -1))]
        behind[(*some, slice(None, -1))] = turned[(*some, slice(1, None))]
        return before * behind

    def vjp(dy: Array) -> Array:
        with np.errstate(all="ignore"):
            return backend.contiguous(expanded(backend, dy, x, (axis,)) * of_the_others())

    return record(backend, backend.xp.asarray(y), (input, vjp))


@through_float32
def mean(input: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The mean over one axis, several, or all. Raises ValueError for the mean of nothing."""
    validate.floating("mean", input=input)
    chosen = validate.axes("mean", dim, input.ndim)
    count = math.prod(input.shape[i] for i in chosen)
    if count == 0:
        raise ValueError(f"mean: there is nothing to average over axes {chosen} of shape {input.shape}")
    return mul(sum(input, dim, keepdim), 1 / count)


@through_float32
def var(
    input: Tensor, dim: int | Sequence[int] | None = None, *, correction: float = 1, keepdim: bool = False
) -> Tensor:
    """The variance over one axis, several, or all: squared deviations from the mean over count − correction.

    Raises ValueError unless there are more elements than `correction`.
    """
    validate.floating("var", input=input)
    chosen = validate.axes("var", dim, input.ndim)
    left = math.prod(input.shape[i] for i in chosen) - validate.number("var", "correction", correction)
    if not left > 0:
        raise ValueError(
            f"var: axes {chosen} of shape {input.shape} must have more than correction={correction} elements"
        )
    return mul(sum(square(sub(input, mean(input, chosen, keepdim=True))), chosen, keepdim), 1 / left)


@through_float32
def std(
    input: Tensor, dim: int | Sequence[int] | None = None, *, correction: float = 1, keepdim: bool = False
) -> Tensor:
    """The standard deviation: the root of `var`. Where all elements are equal the gradient is 0, as in PyTorch."""
    return _root(var(input, dim, correction=correction, keepdim=keepdim))


def _root(input: Tensor) -> Tensor:
    """The square root with the slope 0 at 0."""
    xp = input.backend.xp
    y = in_storage_order(xp.sqrt, input.array)

    def slope(a: Array) -> Array:
        return xp.where(a == 0, 0, 0.5 / a).astype(a.dtype)

    return _unary("std", input, y, lambda: in_storage_order(slope, y))


@in_float32
def norm(
    input: Tensor, p: float | str = "fro", dim: int | Sequence[int] | None = None, keepdim: bool = False
) -> Tensor:
    """(Σ |input|ᵖ)^(1/p) over one axis, several, or all: p > 0, "fro" for 2, or infinity for the largest |input|.

    At 0 the gradient is 0, as in PyTorch.
    """
    backend = validate.floating("norm", input=input)
    power = 2.0 if isinstance(p, str) and p == "fro" else validate.number("norm", "p", p)
    if not power > 0:
        raise ValueError(f'norm: p must be "fro" or a number above 0, got {p!r}')
    if power == math.inf:
        return amax(abs(input), dim, keepdim)
    chosen = validate.axes("norm", dim, input.ndim)
    x, xp = input.array, backend.xp
    easy = {0: xp.ones_like, 0.5: xp.sqrt, 1: xp.positive, 2: xp.square}  # exact, and faster than a power

    def raised(a: Array, exponent: float) -> Array:
        return easy[exponent](a) if exponent in easy else a**exponent

    terms = in_storage_order(lambda a: raised(xp.abs(a), power), x)
    y = in_storage_order(lambda a: raised(a, 1 / power), terms.sum(axis=chosen, keepdims=True))

    def slope(a: Array, b: Array) -> Array:
        steep = raised(xp.abs(a) / b, power - 1)  # of a ratio, which is at most 1: |a| to a power could overflow
        return xp.where((a == 0) | (b == 0), 0, xp.sign(a) * steep).astype(a.dtype)

    def vjp(dy: Array) -> Array:
        return _times(backend, expanded(backend, dy, x, chosen), in_storage_order(slope, x, y))

    return record(backend, y if keepdim else y.squeeze(chosen), (input, vjp))


@in_float32
def logsumexp(input: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """log Σ eˣ over one axis or several; the largest element is taken out first, so that nothing overflows."""
    validate.floating("logsumexp", input=input)
    most = float(np.finfo(input.dtype).max)
    peak = clamp(amax(input, dim, keepdim=True).detach(), -most, most)  # infinite ones would leave ∞ − ∞
    total = add(log(sum(exp(sub(input, peak)), dim, keepdim=True)), peak)
    return total if keepdim else sum(total, dim)  # over axes of length 1


@through_float32
def _extreme(op: str, input: Tensor, dim: int | Sequence[int] | None, keepdim: bool) -> Tensor:
    backend = validate.one_backend(op, input=input)
    chosen = validate.axes(op, dim, input.ndim)
    if math.prod(input.shape[i] for i in chosen) == 0:
        raise ValueError(f"{op}: axes {chosen} of shape {input.shape} are empty")
    x = input.array
    kept = getattr(x, op[1:])(axis=chosen, keepdims=True)

    def vjp(dy: Array) -> Array:
        ties = x == kept
        return expanded(backend, dy, x, chosen) * ties / ties.sum(axis=chosen, keepdims=True).astype(dy.dtype)

    return record(backend, kept if keepdim else kept.squeeze(chosen), (input, vjp))


def amax(input: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The largest element over one axis, several, or all; equal ones share the gradient evenly, as in PyTorch."""
    return _extreme("amax", input, dim, keepdim)


def amin(input: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The smallest element; see amax."""
    return _extreme("amin", input, dim, keepdim)


class ValuesAndIndices(NamedTuple):
    """What max and min along an axis, sort and topk return: the elements, and their places."""

    values: Tensor
    indices: Tensor


def max(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor | ValuesAndIndices:
    """The largest element; or, along axis `dim`, (values, indices): those of amax and argmax.

    Of equal ones the first one's index is given; they share the gradient evenly.
    """
    return amax(input) if dim is None else ValuesAndIndices(amax(input, dim, keepdim), argmax(input, dim, keepdim))


def min(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor | ValuesAndIndices:
    """The smallest element; see max."""
    return amin(input) if dim is None else ValuesAndIndices(amin(input, dim, keepdim), argmin(input, dim, keepdim))


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the first largest element along `dim`, or in the flattened tensor; int64, without a gradient."""
    return _place("argmax", input, dim, keepdim)


def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the first smallest element; see argmax."""
    return _place("argmin", input, dim, keepdim)


def _place(op: str, input: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    backend = validate.one_backend(op, input=input)
    chosen = None if dim is None else validate.axis(op, dim, input.ndim)
    if input.numel() == 0:
        raise ValueError(f"{op}: shape {input.shape} is empty")
    x = backend.astype(input.array, np.float32) if is_half(input.dtype) else input.array
    return Tensor(backend.xp.asarray(getattr(x, op)(axis=chosen, keepdims=keepdim)), backend)


# -- products --------------------------------------------------------------------------------------


@in_half
def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The matrix product [..., M, K] @ [..., K, N] -> [..., M, N]; leading axes broadcast; an operand with one axis is
    a vector, as in PyTorch.

    Raises ValueError if the inner lengths differ.
    """
    backend = validate.floating("matmul", input=input, other=other)
    if input.ndim == 0 or other.ndim == 0:
        raise ValueError(f"matmul: both need an axis, got shapes {input.shape} and {other.shape}; use * for numbers")
    if input.ndim == 1 or other.ndim == 1:
        left = input.unsqueeze(0) if input.ndim == 1 else input
        right = other.unsqueeze(1) if other.ndim == 1 else other
        y = matmul(left, right)
        y = y.squeeze(-1) if other.ndim == 1 else y
        return y.squeeze(-1 if other.ndim == 1 else -2) if input.ndim == 1 else y
    a, b = input.array, other.array
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"matmul: shapes {a.shape} and {b.shape} do not fit: {a.shape[-1]} columns against {b.shape[-2]} rows"
        )
    try:
        np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ValueError(f"matmul: the leading axes of {a.shape} and {b.shape} do not broadcast") from None
    return record(
        backend,
        backend.matmul(a, b),
        (input, lambda dy: _sum_to(backend, backend.matmul(dy, b, trans_b=True), a.shape)),
        (other, lambda dy: _sum_to(backend, backend.matmul(a, dy, trans_a=True), b.shape)),
    )


def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices: `matmul` of two axes each. Raises ValueError for other shapes."""
    validate.rank("mm", "input", input, 2, "[M, K]")
    validate.rank("mm", "mat2", mat2, 2, "[K, N]")
    return matmul(input, mat2)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """The products of two stacks of matrices: `matmul` of three axes each. Raises ValueError for other shapes."""
    validate.rank("bmm", "input", input, 3, "[B, M, K]")
    validate.rank("bmm", "mat2", mat2, 3, "[B, K, N]")
    if input.shape[0] != mat2.shape[0]:
        raise ValueError(f"bmm: input has {input.shape[0]} matrices, mat2 {mat2.shape[0]}")
    return matmul(input, mat2)


@in_half
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = input @ weightᵀ + bias: input [..., in_features], weight [out_features, in_features], bias [out_features].

    Raises ValueError, naming both, if the feature counts differ.
    """
    backend = validate.floating("linear", input=input, weight=weight, bias=bias)
    validate.rank("linear", "weight", weight, 2, "[out_features, in_features]")
    if input.ndim < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: input has {input.shape[-1] if input.ndim else 0} features (shape {input.shape}), "
            f"the weight takes {weight.shape[1]} (shape {weight.shape})"
        )
    validate.shape("linear", "bias", bias, (weight.shape[0],), "one per row of weight")
    shape = input.shape
    x, w = input.array.reshape(math.prod(shape[:-1]), shape[-1]), weight.array
    y = backend.matmul(x, w, trans_b=True)
    if bias is not None:
        with np.errstate(all="ignore"):
            y += bias.array
    rows = y.shape

    def flat(dy: Array) -> Array:
        return dy.reshape(rows)

    return record(
        backend,
        y.reshape(*shape[:-1], rows[1]) if len(shape) != 2 else y,
        (input, lambda dy: backend.matmul(flat(dy), w).reshape(shape)),
        (weight, lambda dy: backend.matmul(flat(dy), x, trans_a=True)),
        (bias, lambda dy: backend.bias_backward(flat(dy))),
    )


# -- conversions -----------------------------------------------------------------------------------


def to(input: Tensor, target: str | Backend | np.dtype[Any] | type) -> Tensor:
    """The tensor with another dtype, or on another backend. The gradient comes back converted.

    A name that is a dtype ("float32", numpy.float64) converts, any other names a backend. Raises TypeError or
    ValueError for what is neither.
    """
    backend = validate.one_backend("to", input=input)
    if isinstance(target, Backend) or (isinstance(target, str) and not _is_dtype(target)):
        goal = get_backend(target)
        if goal is backend:
            return input
        return record(
            goal,
            goal.asarray(backend.to_numpy(input.array)),
            (input, lambda dy: backend.asarray(goal.to_numpy(dy))),
        )
    dtype = named(target)
    if not is_floating(dtype) and dtype.kind not in "iub":
        raise TypeError(
            f"to: a tensor can't hold {dtype}; the floating types are float16, bfloat16, float32 and float64"
        )
    if dtype == input.dtype:
        return input
    return converted(input, dtype) if is_floating(dtype) else Tensor(backend.astype(input.array, dtype), backend)


def _is_dtype(name: str) -> builtins.bool:
    try:
        named(name)
    except TypeError:
        return False
    return True
