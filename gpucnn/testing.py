"""The case table: every differentiable op at unkind sizes, and how far a right answer may lie from the exact one.

One table drives the tests, the adjoint checks, `gpucnn verify`, the benchmark and the compile gate. A case names an op
of `gpucnn.functional` and how its inputs are made: nothing is drawn before it is asked for, and then always the same.

Error bounds are computed, never tuned, from a float64 evaluation by the NumPy backend: a sum of n products in any order
is wrong by at most n · u · Σ|a||b|, u the unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms, §3.1).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import gpucnn
from gpucnn import functional as F
from gpucnn.backends import Backend, get_backend
from gpucnn.backends.precision import PRECISIONS
from gpucnn.dtypes import HALVES, is_floating, named, smallest, unit_roundoff
from gpucnn.geometry import Window
from gpucnn.random import Generator
from gpucnn.tensor import Tensor

if TYPE_CHECKING:
    from gpucnn.backends.kernel_backend import KernelBackend
    from gpucnn.backends.variants import Problem, Variant
    from gpucnn.devices import Device
    from gpucnn.devices.recorder import Launched

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

# -- values ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Values:
    """An array that is drawn when it is needed. Floating ones are converted to the dtype that is asked for."""

    shape: Shape
    draw: Callable[[np.random.Generator, Shape], Array] = field(repr=False)
    seed: int = 0
    integer: bool = False
    note: str = ""

    @cached_property
    def _drawn(self) -> Array:
        return self.draw(np.random.default_rng([self.seed, *self.shape]), self.shape)

    def make(self, dtype: str = "float64") -> Array:
        """The same values each time; a float32 array holds the float64 values, rounded."""
        return self._drawn.copy() if self.integer else self._drawn.astype(named(dtype))

    def __str__(self) -> str:
        return ("x".join(map(str, self.shape)) or "number") + self.note


@dataclass(frozen=True)
class Seed:
    """A random generator, anew for each evaluation."""

    seed: int

    def make(self, dtype: str = "float64") -> Generator:
        """A generator that starts at the seed; `dtype` is of no matter to it."""
        return Generator(self.seed)

    def __str__(self) -> str:
        return str(self.seed)


def normal(*shape: int, seed: int = 0, scale: float = 1.0, offset: float = 0.0) -> Values:
    """Values from the normal distribution."""
    note = f"*{scale:g}" * (scale != 1) + f"{offset:+g}" * (offset != 0)
    return Values(shape, lambda rng, shape: scale * rng.standard_normal(shape) + offset, seed, note=note)


def distinct(*shape: int, seed: int = 0, offset: float = 0.0) -> Values:
    """Values 1/8 apart in random order: no ties, and no two so near that a finite difference would swap them."""

    def draw(rng: np.random.Generator, shape: Shape) -> Array:
        size = math.prod(shape)
        return ((rng.permutation(size) - size // 2) / 8 + 1 / 32 + offset).reshape(shape)

    return Values(shape, draw, seed)


def whole(*shape: int, most: int, seed: int = 0, offset: float = 0.0) -> Values:
    """Whole numbers from −most to most, plus the offset: sums of their products are exact in a half type too."""
    return Values(shape, lambda rng, shape: rng.integers(-most, most + 1, shape) + offset, seed)


def wave(*shape: int, scale: float = 1.0) -> Values:
    """Evenly from −7 to 7, in random order; 84 of them are clear of an activation's corners at 0, ±3 and 6."""

    def draw(rng: np.random.Generator, shape: Shape) -> Array:
        return scale * rng.permutation(np.linspace(-7.03, 7.01, math.prod(shape))).reshape(shape)

    return Values(shape, draw, 3, note=f"*{scale:g}" * (scale != 1))


def uniform(*shape: int, low: float = 0.05, high: float = 0.95, seed: int = 0) -> Values:
    """Values evenly distributed between two positive numbers."""
    return Values(shape, lambda rng, shape: rng.uniform(low, high, shape), seed)


def with_nan(*shape: int) -> Values:
    """Values from the normal distribution, but one NaN in one channel of the first image."""

    def draw(rng: np.random.Generator, shape: Shape) -> Array:
        values = rng.standard_normal(shape)
        values[(0, *(length // 2 for length in shape[1:]))] = np.nan
        return values

    return Values(shape, draw, note="NaN")


def integers(*shape: int, classes: int, seed: int = 0) -> Values:
    """Labels 0 … classes − 1."""
    return Values(shape, lambda rng, shape: rng.integers(0, classes, shape), seed, integer=True)


def listed(*values: float) -> Values:
    """These numbers."""
    integer = all(isinstance(value, int) for value in values)
    return Values((len(values),), lambda rng, shape: np.array(values), integer=integer, note=f"{list(values)}")


def _some_ignored(*shape: int, classes: int) -> Values:
    def draw(rng: np.random.Generator, shape: Shape) -> Array:
        return np.where(rng.integers(0, 3, shape) == 1, -100, rng.integers(0, classes, shape))

    return Values(shape, draw, integer=True)


def _mask(*shape: int) -> Values:
    """True at two places of five."""
    return Values(shape, lambda rng, shape: rng.random(shape) < 0.4, integer=True)


def _probabilities(*shape: int, seed: int = 0, logarithm: bool = False) -> Values:
    """Probabilities along axis 1, or their logarithms."""

    def draw(rng: np.random.Generator, shape: Shape) -> Array:
        p = np.exp(rng.standard_normal(shape))
        p /= p.sum(axis=1, keepdims=True)
        return np.log(p) if logarithm else p

    return Values(shape, draw, seed)


# -- cases -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """`functional.<op>(*inputs, **arguments)`. Every floating `Values` of the inputs but the constants has a gradient.

    Attributes: `bounds`, the largest error of the output and of each gradient, in unit roundoffs; `operations` of the
    forward pass, where these are sums of products (a multiply-add is two) or over windows; `same_bits`, False where the
    array library's own sums, exp, log or power take part, of which NumPy and CuPy have different bits; `pytorch`, False
    where PyTorch lacks the op or the argument.
    """

    op: str
    inputs: tuple[Any, ...]
    bounds: Bounds = field(repr=False)
    arguments: dict[str, Any] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    operations: int = 0
    same_bits: bool = True
    pytorch: bool = True

    def __str__(self) -> str:
        def shown(value: Any) -> str:
            return str(value).replace(" ", "")

        arguments = [f"{name}={shown(value)}" for name, value in self.arguments.items()]
        return "-".join([self.op, *map(shown, self.inputs), *arguments])

    @property
    def differentiable(self) -> list[int]:
        """The positions of the inputs that have a gradient."""
        return [
            i
            for i, value in enumerate(self.inputs)
            if isinstance(value, Values) and not value.integer and i not in self.constants
        ]

    @property
    def results(self) -> list[str]:
        """What an evaluation results in: the output, and the gradient of each differentiable input, by name."""
        names = list(inspect.signature(getattr(F, self.op)).parameters)
        return ["output", *(f"gradient of {names[i]}" for i in self.differentiable)]

    @cached_property
    def output_shape(self) -> Shape:
        """The shape of the output."""
        with gpucnn.no_grad():
            return self.apply(get_backend("numpy"), self.made_inputs(), self.made_arguments()).shape

    @property
    def flops(self) -> int:
        """Operations of the forward pass, and of each gradient of a convolution or a product again. One for each
        element of the first input where no sum is formed, whatever is done with it."""
        return self.operations or math.prod(self.inputs[0].shape)

    def bytes(self, dtype: str = "float32") -> int:
        """What the forward pass must at least read and write: each array once."""
        values = [v for v in (*self.inputs, *self.arguments.values()) if isinstance(v, Values)]
        size = named(dtype).itemsize
        read = sum(math.prod(v.shape) * (8 if v.integer else size) for v in values)
        return read + math.prod(self.output_shape) * size

    def made_inputs(self, dtype: str = "float64") -> list[Any]:
        """The inputs with their arrays made."""
        return [_made(value, dtype) for value in self.inputs]

    def made_arguments(self, dtype: str = "float64") -> dict[str, Any]:
        """The keyword arguments with their arrays made."""
        return {name: _made(value, dtype) for name, value in self.arguments.items()}

    def apply(self, backend: str | Backend, inputs: Sequence[Any], arguments: Mapping[str, Any]) -> Tensor:
        """The op's output; arrays become tensors of the backend, tensors stay what they are."""

        def tensor(value: Any) -> Any:
            return gpucnn.tensor(value, backend=backend) if isinstance(value, np.ndarray) else value

        y = getattr(F, self.op)(*map(tensor, inputs), **{name: tensor(value) for name, value in arguments.items()})
        assert isinstance(y, Tensor)
        return y


def _made(value: Any, dtype: str) -> Any:
    return value.make(dtype) if isinstance(value, Values | Seed) else value


def cotangent(shape: Shape, dtype: Any) -> Array:
    """A fixed random u: the gradients of a case are those of <u, output>."""
    return np.asarray(np.random.default_rng(7).standard_normal(shape)).astype(named(dtype))


@dataclass(frozen=True)
class Evaluation:
    """A case computed: the output and the gradients of <u, output>, as host arrays in the order of `Case.results`."""

    case: Case
    backend: str | Backend
    inputs: list[Any]
    arguments: dict[str, Any]
    cotangent: Array
    results: list[Array]

    def again(
        self, inputs: Callable[[Array], Array] | None = None, cotangent: Callable[[Array], Array] | None = None
    ) -> list[Array]:
        """The results with each differentiable input and the cotangent replaced by a function of it."""
        changed = list(self.inputs)
        for i in self.case.differentiable if inputs else ():
            changed[i] = inputs(changed[i]) if inputs else changed[i]
        u = cotangent(self.cotangent) if cotangent else self.cotangent
        arguments = self.arguments | self.case.made_arguments(str(u.dtype))
        return _evaluated(self.case, self.backend, changed, arguments, u).results


def evaluate(
    case: Case, backend: str | Backend = "numpy", dtype: str = "float32", precision: str | None = None
) -> Evaluation:
    """Compute a case forward and backward with its values rounded to `dtype`, and then held in `precision`."""
    inputs, arguments = case.made_inputs(dtype), case.made_arguments(dtype)
    if precision is not None:
        inputs = [_held(value, precision) for value in inputs]
        arguments = {name: _held(value, precision) for name, value in arguments.items()}
    return _evaluated(case, backend, inputs, arguments, None, dtype)


def launches(
    case: Case,
    dtype: str = "float32",
    capability: tuple[int, int] | None = None,
    chooser: Callable[[Problem], Variant] | None = None,
) -> list[Launched]:
    """What a case launches, forward and backward, on a device of that compute capability; nothing is computed.

    chooser: which kernels are chosen, such as a backend's `choose`; the usual ones by default.
    """
    from gpucnn.backends.kernel_backend import KernelBackend
    from gpucnn.devices.recorder import RecorderDevice

    recorder = RecorderDevice(capability)
    with warnings.catch_warnings(action="ignore"):  # what the recorder returns is any number, also NaN
        evaluate(case, KernelBackend(recorder, chooser), dtype)
    return recorder.launches


def _held(value: Any, precision: str) -> Any:
    return value.astype(precision) if isinstance(value, np.ndarray) and is_floating(value.dtype) else value


def _evaluated(
    case: Case,
    backend: str | Backend,
    inputs: list[Any],
    arguments: dict[str, Any],
    u: Array | None,
    rounded: str = "float64",
) -> Evaluation:
    leaves = {i: gpucnn.tensor(inputs[i], requires_grad=True, backend=backend) for i in case.differentiable}
    y = case.apply(backend, [leaves.get(i, value) for i, value in enumerate(inputs)], arguments)
    if u is None:
        u = cotangent(y.shape, rounded).astype(y.dtype)
    y.backward(gpucnn.tensor(u, backend=backend))
    results = [y.numpy()]
    for leaf in leaves.values():
        assert leaf.grad is not None, f"{case}: no gradient for the input of shape {leaf.shape}"
        results.append(leaf.grad.numpy())
    return Evaluation(case, backend, inputs, arguments, u, results)


# -- bounds: in unit roundoffs, one for each result ----------------------------------------------------

Bounds = Callable[[Evaluation], Sequence[Array | float]]

# What one operation of float32 may lose to the flush of denormal numbers to zero: 2⁻¹²⁶, in unit roundoffs of 2⁻²⁴.
FLUSHED = 2.0**-102


def products(exact: Evaluation) -> list[Array]:
    """Sums of products: (n + 2) · Σ|a||b|, where the n of each element is counted by the op itself, over ones."""
    counts, sizes = exact.again(np.ones_like, np.ones_like), exact.again(np.abs, np.abs)
    return [(n + 2) * (size + FLUSHED) for n, size in zip(counts, sizes, strict=True)]


# The relative error of a product on tensor cores, by how many products of TF32 make it (kernels/mma_tile.cuh), in unit
# roundoffs of float32: 1 of two operands off by 1.25 · 2⁻¹¹ each; 3 by 2⁻²⁰.
_OF_A_PRODUCT = {1: 2.5 * 2.0**13 + 7, 3: 16.0}
# And of a sum: an instruction adds eight products to it, and cuts these nine numbers and what comes out to the 24 bits
# of the largest (Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021).
_OF_AN_INSTRUCTION = 20


def on_tensor_cores(exact: Evaluation, tf32_products: int, halo: bool = False) -> list[Array]:
    """Sums of products on tensor cores. With one product by TF32, n/8 instructions and a rest come after one another;
    with three, 18 of them make 48 terms, and n/48 such sums and up to 64 parts are added in float32.

    From a halo each tap's channels have instructions and sums of their own, so there are n/4 of either at most; with
    three products a sum is over a row of taps, 6 instructions each.
    """
    counts, sizes = exact.again(np.ones_like, np.ones_like), exact.again(np.abs, np.abs)
    of_a_product, found = _OF_A_PRODUCT[tf32_products], []
    instructions = max(18, 6 * exact.inputs[1].shape[-1]) if halo else 18
    for n, size in zip(counts, sizes, strict=True):
        if tf32_products == 1:
            of_sums = (n / (4 if halo else 8) + 2) * _OF_AN_INSTRUCTION
        else:
            of_sums = instructions * _OF_AN_INSTRUCTION + n / (4 if halo else 48) + 66
        found.append((of_a_product + of_sums) * (size + FLUSHED))
    return found


def halves_on_tensor_cores(exact: Evaluation, halo: bool = False) -> list[Array]:
    """Sums of products of half types, which are exact: an instruction adds 16 to a sum, or 8 at least from a halo and
    by wgmma, and cuts these 17 numbers and what comes out; then up to 64 parts are added in float32."""
    counts, sizes = exact.again(np.ones_like, np.ones_like), exact.again(np.abs, np.abs)
    at_once = 8 if halo else 16
    return [((n / at_once + 2) * 36 + 66) * (size + FLUSHED) for n, size in zip(counts, sizes, strict=True)]


# Winograd's F(2x2, 3x3): kernels/conv2d_winograd.cu has the formula.
_WINOGRAD_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_WINOGRAD_B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_WINOGRAD_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def _by_winograd(x: Array, w: Array, top: int, left: int, size: tuple[int, ...], largest: bool = False) -> Array:
    """A convolution by that formula; or the largest that absolute values become in its steps."""
    g, b, a = _WINOGRAD_G, _WINOGRAD_B, _WINOGRAD_A
    if largest:
        g, b, a = np.abs(g), np.abs(b), np.abs(a)
    p, q = (-(-length // 2) for length in size)
    padded = np.zeros((*x.shape[:2], x.shape[2] + abs(top) + 2 * p + 2, x.shape[3] + abs(left) + 2 * q + 2))
    padded[:, :, max(top, 0) : max(top, 0) + x.shape[2], max(left, 0) : max(left, 0) + x.shape[3]] = x
    padded = padded[:, :, max(-top, 0) :, max(-left, 0) :]
    d = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), (2, 3))[:, :, : 2 * p : 2, : 2 * q : 2]
    of_places = np.einsum("ncpqij,kcij->nkpqij", b @ d @ b.T, g @ w @ g.T, optimize=True)
    y: Array = (a @ of_places @ a.T).transpose(0, 1, 2, 4, 3, 5)
    return y.reshape(*y.shape[:2], 2 * p, 2 * q)[:, :, : size[0], : size[1]]


def by_winograd(exact: Evaluation) -> list[Array]:
    """The bounds of `products`, but for a convolution's output and its input's gradient by Winograd's formula.

    There each of 16 sums is a chain of C multiply-adds (K for the gradient). Their terms have 4 roundings of the
    filters and 2 of the inputs, what is made of the sums 4, and then there may be a scale, a bias and a residual: fewer
    than C + 14 in all, of absolute values through all steps, which are larger than Σ|a||b|.
    """
    x, w, u = (np.abs(array) for array in (*exact.inputs[:2], exact.cotangent))
    given = inspect.signature(getattr(F, exact.case.op)).bind(*exact.inputs, **exact.arguments)
    padding = given.arguments.get("padding", 0)
    top, _, left, _ = Window.of((3, 3), 1, padding, size=x.shape[2:]).padding
    plain, turned = (w, top, left), (w[:, :, ::-1, ::-1].swapaxes(0, 1), 2 - top, 2 - left)
    ways = ((x, *plain), (u, *turned)) if exact.case.op == "conv2d" else ((x, *turned), (u, *plain))
    found, sizes = products(exact), exact.again(np.abs, np.abs)
    for i, of in enumerate(ways):
        shape = exact.results[i].shape[2:]
        more = _by_winograd(*of, shape, largest=True) - _by_winograd(*of, shape)
        found[i] = (of[0].shape[1] + 14) * (sizes[i] + more + FLUSHED)
    return found


# Ops that round to a half type more than once: a bias is added to what is rounded, or one step of several sums what
# another has rounded. Of others each result has one such rounding.
_ROUNDED_AGAIN = {"linear": 1, "conv_transpose2d": 1, "matmul": 1, "pad": 1, "index": 1, "adaptive_max_pool2d": 2}
# The derivative is computed from the rounded output, and changes by at most twice as much.
_SAVED_OUTPUT = ("sigmoid", "tanh")


def in_half(exact: Evaluation, dtype: str, bounds: Sequence[Array | float]) -> list[Array]:
    """The largest errors, not in unit roundoffs, where `bounds` are those of float32: all sums are its sums, and what
    they come to is rounded to float16 or bfloat16, once more where an op says so."""
    half, least, again = unit_roundoff(dtype), smallest(dtype), _ROUNDED_AGAIN.get(exact.case.op.replace("1d", "2d"), 0)
    sizes = exact.again(np.abs if exact.case.bounds is products else None, np.abs) if again else exact.results
    found = []
    for i, (bound, result, size) in enumerate(zip(bounds, exact.results, sizes, strict=True)):
        of_float32 = unit_roundoff("float32") * np.asarray(bound)
        error = of_float32 + half * (np.abs(result) + of_float32) + again * half * np.abs(size) + (again + 1) * least
        if i and exact.case.op in _SAVED_OUTPUT:
            error = error + 2 * half * np.abs(exact.cotangent)
        found.append(error)
    return found


def pooled_products(exact: Evaluation) -> list[Array]:
    """Those of the convolution, whose results' gradients are dy where the pooling took an element from, else 0."""
    arguments = dict(exact.arguments)
    activation, max_pool = arguments.pop("activation", None), arguments.pop("max_pool")
    plain = replace(exact.case, op="conv2d", arguments=arguments)
    sums = gpucnn.tensor(plain.apply("numpy", exact.inputs, arguments).numpy(), requires_grad=True, backend="numpy")
    y = F.max_pool2d(F.relu(sums) if activation else sums, **max_pool)
    assert isinstance(y, Tensor)
    y.backward(gpucnn.tensor(exact.cotangent, backend="numpy"))
    assert sums.grad is not None
    linear = _evaluated(plain, "numpy", exact.inputs, arguments, sums.grad.numpy())
    counts, sizes = linear.again(np.ones_like, lambda u: (u != 0) * 1.0), linear.again(np.abs, np.abs)
    found = [(n + 2) * (size + FLUSHED) for n, size in zip(counts, sizes, strict=True)]
    largest = F.max_pool2d(gpucnn.tensor(found[0], backend="numpy"), **max_pool)
    assert isinstance(largest, Tensor)
    return [largest.numpy(), *found[1:]]


# Ops of which two operands are multiplied, their first two inputs.
MULTIPLYING = ("conv2d", "conv2d_max_pool2d", "conv_transpose2d", "linear", "matmul")


def with_rounded_operands(exact: Evaluation, half: str) -> Evaluation:
    """What one of MULTIPLYING comes to where x, w and dy are rounded to a half type before they are multiplied, and
    nothing else is: neither a bias and a residual nor, for their gradients, dy."""

    def rounded(array: Array) -> Array:
        with np.errstate(over="ignore"):
            return array.astype(named(half)).astype(array.dtype)

    inputs = [*map(rounded, exact.inputs[:2]), *exact.inputs[2:]]
    products, others = (
        _evaluated(exact.case, exact.backend, inputs, exact.arguments, u)
        for u in (rounded(exact.cotangent), exact.cotangent)
    )
    return replace(products, results=[*products.results[:3], *others.results[3:]])


def averages(terms: int) -> Bounds:
    """Sums of at most `terms` products that the op divides by something: (terms + 2) · Σ|a||b|."""
    return lambda exact: [(terms + 2) * (size + FLUSHED) for size in exact.again(np.abs, np.abs)]


def selected(exact: Evaluation) -> list[Array | float]:
    """The output's elements are the input's, untouched; a gradient of n shares of u has n − 1 roundings."""
    counts, sizes = exact.again(None, np.ones_like), exact.again(None, np.abs)
    of_gradients = zip(counts[1:], sizes[1:], strict=True)
    return [0.0, *(np.maximum(np.abs(n) - 1, 0) * np.abs(size) for n, size in of_gradients)]


def arithmetic(exact: Evaluation) -> list[Array]:
    """One rounding, and three for a share of the gradient; broadcasting sums n of these."""
    counts, sizes = exact.again(np.ones_like, np.ones_like), exact.again(np.abs, np.abs)
    of_gradients = zip(counts[1:], sizes[1:], strict=True)
    return [np.abs(exact.results[0]), *((np.abs(n) + 3) * np.abs(size) for n, size in of_gradients)]


def relative(roundings: int) -> Bounds:
    """That many roundings of the results themselves."""
    return lambda exact: [roundings * np.abs(result) for result in exact.results]


def activated(exact: Evaluation) -> list[Array]:
    """At most 16 roundings of intermediate values no larger than 1 or |x|; `prelu` sums over its slopes' elements."""
    x, u = np.abs(exact.inputs[0]), np.abs(exact.cotangent)
    size = np.fmax(1.0, x)  # of a NaN, which must be one in the result too, any bound will do
    if len(exact.results) == 2:
        return [16 * size, 16 * size * u]
    shares = u * x * (exact.inputs[0] <= 0)
    slopes = exact.inputs[1].size
    axes = tuple(i for i in range(x.ndim) if i != 1 or slopes == 1)
    return [16 * size, 16 * size * u, (x.size // slopes + 2) * shares.sum(axis=axes).reshape(slopes)]


def _soft(exact: Evaluation) -> list[Array]:
    """The exponent is wrong by u · its size, the sum by u · terms; both are relative errors of the softmax."""
    x, dim = exact.inputs[0], exact.inputs[1]
    if not x.size:
        return exact.results
    y, u = exact.results[0], np.abs(exact.cotangent)
    relative = 4 * np.ptp(x) + x.shape[dim] + 8
    if exact.case.op == "softmax":
        return [relative * y, 3 * relative * y * (u + (u * y).sum(axis=dim, keepdims=True))]
    total = u.sum(axis=dim, keepdims=True)
    return [relative * np.ones_like(y), 3 * relative * (u + np.exp(y) * total)]


def _normalised(rows: Callable[[Array], Array]) -> Bounds:
    """M + 16 roundings of 2·|x|/σ, the two sums' share in x̂; `rows` reshapes x so that a row is normalised together.

    With d that error of x̂ and of 1/σ, and |x̂| <= m, the gradient w/σ·(u − mean(u) − x̂·mean(u·x̂)) is off by at most
    3·(1 + m)·d·|w|·|u|/σ, a weight's Σ u·x̂ by (n·m + d)·Σ|u|, a bias's Σ u by n·Σ|u|.
    """

    def bounds(exact: Evaluation) -> list[Array | float]:
        x, u = exact.inputs[0], np.abs(exact.cotangent)
        if not x.size:
            return [0.0] * len(exact.results)
        together = rows(x)
        deviation = together.std(-1, keepdims=True)
        m = float(np.max(np.abs(together - together.mean(-1, keepdims=True)) / deviation))
        d = (together.shape[-1] + 16) * float(np.max(2 * np.abs(together) / deviation))
        differentiable = exact.case.differentiable
        affine = [exact.inputs[i] for i in differentiable[1:3] if i != 8]
        scale = float(np.abs(affine[0]).max()) if affine else 1.0
        shift = float(np.abs(affine[1]).max()) if affine else 0.0
        gradient = 3 * (1 + m) * d * scale * float(u.max()) / float(deviation.min())
        found: list[Array | float] = [d * scale + (together.shape[-1] + 16) * shift, gradient]
        if affine:
            n = u.size // affine[1].size + 2
            sums = exact.again(None, np.abs)[3]
            found += [(n * m + d) * sums, n * sums]
        if 8 in differentiable:  # a batch norm's residual; its gradient is that of y, or 0
            found = [found[0] + 2 * np.abs(exact.results[0]), *found[1:], 0.0]
        return found

    return bounds


def _with_statistics(exact: Evaluation) -> list[Array]:
    """A norm with given statistics: eight roundings of (x − mean)/σ·w and b; sums over a channel."""
    x, mean, variance = exact.inputs[:3]
    across = (-1, *(1,) * (x.ndim - 2))
    given = inspect.signature(getattr(F, exact.case.op)).bind(*exact.inputs, **exact.arguments)
    given.apply_defaults()
    weight, bias, eps, residual = (given.arguments.get(name) for name in ("weight", "bias", "eps", "residual"))
    assert eps is not None
    weight = np.ones_like(mean) if weight is None else weight
    bias = np.zeros_like(mean) if bias is None else bias
    normal = np.abs(x - mean.reshape(across)) / np.sqrt(variance + eps).reshape(across)
    u, axes = np.abs(exact.cotangent), tuple(i for i in range(x.ndim) if i != 1)
    n = x.size // x.shape[1] + 8
    y = 8 * (normal * np.abs(weight).reshape(across) + np.abs(bias).reshape(across))
    if residual is not None:
        y = y + 2 * np.abs(residual)
    sums = {3: n * (u * normal).sum(axes), 4: n * u.sum(axes), 8: np.zeros_like(x)}
    return [y, 8 * np.abs(exact.results[1]), *(sums[i] for i in exact.case.differentiable[1:])]


def _responses(exact: Evaluation) -> list[Array]:
    """The sum of squares has only positive terms, a power multiplies its error by beta < 1. The gradient is the
    difference of u·y/x and what the neighbours take away, which are positive where x and u are."""
    x, (y, _), size = exact.inputs[0], exact.results, exact.inputs[1]
    direct = np.abs(exact.cotangent * y / x)
    return [(size + 16) * np.abs(y), (2 * size + 32) * (2 * direct - exact.again(np.abs, np.abs)[1])]


def _interpolated(exact: Evaluation) -> list[float]:
    """Positions up to the size are rounded, so fractions are off by size · u; then six roundings of the values. An
    element gives to at most two outputs on each side of it, times the magnification."""
    x, u = exact.inputs[0], exact.cotangent
    fraction = 8 * max(x.shape) + 8
    n = math.prod(2 * (-(-q // h) + 1) for q, h in zip(u.shape[2:], x.shape[2:], strict=True))
    return [fraction * float(np.abs(x).max(initial=0.0)), (fraction + n) * n * float(np.abs(u).max(initial=0.0))]


def _losses(exact: Evaluation) -> list[float]:
    """Classes + 16 roundings of a loss, as large as its logits and weights make it, and one for each that is summed."""
    case, x, other = exact.case, np.abs(exact.inputs[0]), exact.inputs[1]
    by_class = case.op in ("cross_entropy", "nll_loss")
    classes, weight = x.shape[1] if by_class else 1, exact.arguments.get("weight")
    largest = 4 * float(x.max(initial=1.0)) + 8
    for array in (*exact.inputs[1:], *exact.arguments.values()):
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            largest *= float(np.abs(array).max(initial=1.0))
    if case.op in ("mse_loss", "half_squared_error", "smooth_l1_loss", "huber_loss"):
        largest *= float(x.max(initial=1.0))
    count, divisor = x.size // classes, 1.0
    reduction = case.arguments.get("reduction", "sum" if case.op == "half_squared_error" else "mean")
    if reduction == "mean" and other.dtype.kind == "i":
        labels = other[other != exact.arguments.get("ignore_index", -100)]
        divisor = float(labels.size if weight is None else weight[labels].sum())
    elif reduction == "mean":
        divisor = count
    elif reduction == "batchmean":
        divisor = x.shape[0] if x.ndim else 1.0
    terms = 1 if reduction == "none" else count / divisor
    loss = (classes + 16 + (count if reduction != "none" else 0)) * largest * terms
    gradient = (classes + 16) * largest * float(np.abs(exact.cotangent).max()) / divisor
    return [loss, *[gradient] * (len(exact.results) - 1)]


# -- convolution and products ---------------------------------------------------------------------------


def conv(x: Shape, w: Shape, bias: bool = False, pytorch: bool = True, **arguments: Any) -> Case:
    """conv2d of x [N, C, H, W] with filters w [K, C/groups, R, S]."""
    inputs = [normal(*x), normal(*w, seed=1)] + [normal(w[0], seed=2)] * bias
    moves = {"stride": 1, "padding": 0} | {k: v for k, v in arguments.items() if k != "groups"}
    window = Window.of(w[2:], **moves, size=(x[2], x[3]))
    operations = 2 * x[0] * math.prod(window.output_size((x[2], x[3]))) * math.prod(w)
    return Case("conv2d", tuple(inputs), products, arguments, operations=operations, pytorch=pytorch)


def transposed(x: Shape, w: Shape, bias: bool = False, **arguments: Any) -> Case:
    """conv_transpose2d of x [N, C, P, Q] with filters w [C, K/groups, R, S]."""
    inputs = [normal(*x), normal(*w, seed=1)] + [normal(w[1] * arguments.get("groups", 1), seed=2)] * bias
    operations = 2 * x[0] * x[2] * x[3] * math.prod(w)
    return Case("conv_transpose2d", tuple(inputs), products, arguments, operations=operations)


# A filter for each channel: channels by fours and a rest of a block's; long rows of taps; columns that no tap meets;
# parts of a sum; a filter too tall, a stride too wide.
DEPTHWISE = [
    conv((2, 36, 9, 11), (36, 1, 3, 3), bias=True, groups=36, padding=1),
    conv((2, 8, 17, 21), (8, 1, 5, 7), groups=8, padding=(2, 3)),
    conv((1, 44, 11, 29), (44, 1, 3, 2), pytorch=False, groups=44, stride=2, dilation=(2, 5), padding=(2, 1, 0, 3)),
    conv((1, 130, 5, 6), (130, 1, 2, 3), groups=130, stride=(1, 4), padding=(0, 1)),
    conv((1, 4, 13, 9), (4, 1, 10, 3), bias=True, groups=4, stride=(1, 3), padding=(4, 1)),
]
CONV2D = [
    conv((2, 3, 7, 5), (4, 3, 3, 2), bias=True),
    conv((1, 1, 5, 4), (1, 1, 2, 3), bias=True),
    conv((2, 5, 4, 7), (3, 5, 3, 3), padding=1),
    conv((1, 17, 3, 5), (5, 17, 2, 1), bias=True),
    conv((1, 3, 5, 3), (17, 3, 1, 2), stride=(1, 2)),
    conv((2, 3, 7, 5), (5, 3, 1, 1), bias=True, stride=2),
    conv((1, 4, 6, 3), (2, 4, 1, 1)),
    conv((2, 3, 5, 4), (4, 3, 5, 4), bias=True),
    conv((1, 2, 3, 4), (3, 2, 5, 6), padding=1),
    conv((1, 2, 11, 8), (3, 2, 2, 3), bias=True, stride=(5, 4)),
    conv((1, 2, 8, 7), (3, 2, 3, 3), stride=3),
    conv((2, 3, 5, 6), (2, 3, 3, 2), stride=(1, 3), padding=(2, 1)),
    conv((1, 2, 3, 2), (3, 2, 2, 2), bias=True, padding=3),
    conv((2, 5, 6, 7), (5, 1, 3, 2), bias=True, groups=5, stride=(1, 2), padding=(1, 0)),
    conv((1, 3, 7, 5), (6, 1, 3, 3), groups=3, stride=2, padding=1),
    conv((2, 4, 7, 8), (6, 2, 3, 2), bias=True, groups=2, stride=(2, 3)),
    conv((1, 6, 9, 7), (3, 2, 2, 3), groups=3, stride=2, dilation=(3, 2), padding=(1, 2)),
    conv((2, 6, 5, 3), (6, 3, 1, 1), groups=2, stride=2),
    conv((1, 2, 7, 6), (3, 2, 3, 2), bias=True, dilation=(2, 3)),
    conv((1, 2, 7, 5), (3, 2, 3, 2), pytorch=False, dilation=(2, 1), padding=(1, 2, 3, 0)),
    conv((2, 4, 5, 6), (4, 2, 2, 3), bias=True, pytorch=False, groups=2, stride=(2, 1), padding=(0, 3, 2, 1)),
    conv((1, 2, 5, 4), (3, 2, 4, 2), padding="same"),
    conv((1, 2, 6, 5), (3, 2, 2, 3), padding="same", dilation=(3, 2)),
    conv((1, 2, 7, 6), (3, 2, 3, 2), bias=True, pytorch=False, padding="same", stride=(2, 3)),
    conv((1, 2, 7, 5), (3, 2, 1, 1), pytorch=False, padding="same", stride=3),
    conv((1, 2, 7, 5), (3, 2, 2, 3), padding="valid", stride=2),
    conv((3, 4, 1, 1), (2, 4, 1, 1), bias=True),
    conv((0, 3, 5, 4), (4, 3, 3, 2), bias=True),
    conv((0, 4, 5, 4), (4, 2, 3, 2), stride=2, groups=2),
    # Larger than a kernel's tile in each direction, and by an odd rest: pixels, filters, terms of a sum.
    conv((3, 2, 13, 11), (5, 2, 3, 2), bias=True, padding=1),
    conv((1, 5, 13, 11), (67, 5, 4, 4), bias=True, padding=1),
    conv((2, 10, 15, 13), (34, 5, 3, 2), groups=2),
    conv((1, 70, 13, 7), (65, 70, 1, 1), bias=True),
    conv((2, 10, 9, 8), (14, 10, 3, 2), bias=True, padding=1),
    conv((2, 33, 13, 11), (33, 1, 3, 3), groups=33, stride=(2, 1), padding=1),
    conv((2, 33, 5, 11), (66, 1, 3, 2), groups=33, stride=(2, 1), padding=1),
    conv((1, 5, 23, 19), (3, 5, 3, 2), pytorch=False, dilation=(2, 3), padding=(0, 2, 1, 3)),
    conv((1, 129, 5, 3), (3, 129, 3, 3), padding=(1, 0)),
    conv((5, 1, 28, 27), (3, 1, 5, 4), bias=True, stride=(3, 2), padding=2),
    conv((2, 6, 19, 17), (6, 3, 2, 3), groups=2, stride=2, padding=(0, 1), dilation=(1, 2)),
    conv((2, 1, 9, 8), (17, 1, 2, 3), bias=True, stride=(5, 4)),
    conv((2, 4, 17, 19), (6, 2, 3, 2), bias=True, pytorch=False, groups=2, dilation=(2, 3), padding=(0, 2, 1, 3)),
    conv((1, 5, 9, 7), (3, 5, 1, 1), bias=True, stride=2),
    conv((2, 10, 7, 8), (34, 5, 3, 2), bias=True, pytorch=False, groups=2, stride=(2, 3), padding=(1, 0, 2, 1)),
    conv((1, 17, 19, 23), (5, 17, 2, 3), bias=True, dilation=(2, 1), padding=1),
    # Channels by fours, and half of a large tile: partly filled ones, a rest of k, groups.
    conv((1, 36, 9, 7), (44, 36, 3, 2), bias=True, padding=1),
    conv((1, 72, 5, 6), (80, 36, 2, 3), pytorch=False, groups=2, stride=(2, 1), dilation=(1, 2), padding=(1, 2, 0, 3)),
    conv((2, 36, 5, 4), (32, 36, 1, 1), bias=True, stride=2),
    *DEPTHWISE,
]


def _finished(exact: Evaluation) -> list[Array]:
    """A ReLU takes nothing away from what positive operands add up to, and a residual is one more term."""
    return products(exact)


def conv_finished(x: Shape, w: Shape, activation: str | None = None, stride: int = 1, groups: int = 1) -> Case:
    """conv2d, padded by 1, with a bias and a residual."""
    case = conv(x, w, bias=True, pytorch=False, stride=stride, groups=groups, padding=1)
    more = normal(x[0], w[0], *Window.of(w[2:], stride, 1).output_size((x[2], x[3])), seed=3)
    inputs = (*case.inputs, stride, 1, 1, groups, activation, None, more)
    return replace(case, inputs=inputs, arguments={}, bounds=_finished)


# A convolution and what follows it at once: by each kind of kernel.
CONV2D_FINISHED = [
    conv_finished((2, 6, 7, 5), (20, 6, 3, 2), "relu"),
    conv_finished((2, 3, 9, 7), (5, 3, 2, 3), stride=2),
    conv_finished((1, 33, 5, 4), (33, 1, 3, 2), "relu", groups=33),
    conv_finished((1, 36, 9, 7), (44, 36, 3, 2), "relu"),
    conv_finished((1, 40, 9, 7), (40, 1, 3, 3), "relu", groups=40),
    conv_finished((1, 128, 5, 7), (40, 128, 3, 3), "relu"),
]


def conv_pooled(x: Values, w: Values, max_pool: dict[str, Any], bias: Values | None = None, **arguments: Any) -> Case:
    """conv2d_max_pool2d of x [N, C, H, W] with filters w [K, C/groups, R, S]."""
    moves = {"stride": 1, "padding": 0} | {k: v for k, v in arguments.items() if k not in ("groups", "activation")}
    size = Window.of(w.shape[2:], **moves).output_size((x.shape[2], x.shape[3]))
    operations = 2 * x.shape[0] * math.prod(size) * math.prod(w.shape)
    inputs = (x, w) if bias is None else (x, w, bias)
    given = arguments | {"max_pool": max_pool}
    return Case("conv2d_max_pool2d", inputs, pooled_products, given, operations=operations, pytorch=False)


def _whole_pooled(x: Shape, w: Shape, seed: int, max_pool: dict[str, Any], bias: bool = True, **arguments: Any) -> Case:
    """With a seed for which no two elements of a window are its largest, and none is 0: a difference quotient would
    see both."""
    offset = Values((w[0],), lambda rng, shape: rng.integers(-3, 3, shape) + 0.5, 2)
    values = whole(*x, most=4, seed=seed), whole(*w, most=3, seed=seed + 1)
    return conv_pooled(*values, max_pool, offset if bias else None, **arguments)


_SIGNS = Values((11, 1, 1, 1), lambda rng, shape: rng.choice([-2.0, -1.0, 0.5, 1.0, 4.0], shape))
CONV2D_POOLED = [
    _whole_pooled((2, 1, 12, 10), (6, 1, 5, 5), 659, {"kernel_size": 2}, padding=2, activation="relu"),
    _whole_pooled(  # windows that overlap, and stick out
        (1, 3, 9, 11), (5, 3, 3, 2), 1, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        stride=(1, 2), padding=(1, 0), activation="relu",
    ),
    _whole_pooled(
        (1, 4, 9, 16), (6, 2, 2, 3), 6, {"kernel_size": (2, 5), "stride": (1, 3), "dilation": (3, 2)},
        groups=2, dilation=(2, 1),
    ),
    _whole_pooled(  # three blocks of filters; pixels that nothing reads
        (1, 3, 13, 9), (17, 3, 3, 2), 158, {"kernel_size": (2, 1), "stride": (2, 3)}, bias=False, stride=(2, 1),
        padding=(0, 2, 1, 0), activation="relu",
    ),
    _whole_pooled((3, 2, 1, 1), (3, 2, 1, 1), 0, {"kernel_size": 1}, activation="relu"),
    _whole_pooled((0, 3, 5, 7), (4, 3, 3, 2), 0, {"kernel_size": 2}, activation="relu"),
    # More pixels than a block's threads, and than a part of a sum has.
    conv_pooled(distinct(2, 1, 33, 29), _SIGNS, {"kernel_size": 2, "ceil_mode": True}, activation="relu"),
]  # fmt: skip

CONV_TRANSPOSE2D = [
    transposed((2, 3, 4, 3), (3, 2, 3, 2), bias=True),
    transposed((1, 1, 3, 2), (1, 1, 2, 3)),
    transposed((2, 3, 4, 3), (3, 5, 3, 2), bias=True, stride=(2, 3), padding=(1, 0), output_padding=(1, 2)),
    transposed((1, 4, 3, 4), (4, 3, 2, 3), bias=True, groups=2, stride=2),
    transposed((1, 6, 3, 2), (6, 1, 3, 2), groups=6, stride=(3, 2), padding=(1, 1)),
    transposed((1, 2, 4, 3), (2, 3, 2, 3), dilation=(3, 2), padding=(2, 1)),
    transposed((1, 2, 3, 2), (2, 3, 2, 2), stride=(5, 3)),
    transposed((1, 17, 2, 3), (17, 1, 1, 1), bias=True, stride=2, output_padding=1),
    transposed((0, 3, 4, 3), (3, 2, 3, 2), bias=True, stride=2),
    transposed((1, 66, 5, 7), (66, 5, 2, 3), bias=True, stride=(2, 1)),
    transposed((2, 5, 11, 9), (5, 17, 3, 2), stride=(1, 2), padding=1),
]


def dense(op: str, *shapes: Shape, same_bits: bool = True) -> Case:
    """linear or matmul of operands of these shapes."""
    inputs = tuple(normal(*shape, seed=i) for i, shape in enumerate(shapes))
    a, b = shapes[:2]
    columns = b[0] if op == "linear" else b[-1]
    lead = a[:-1] if op == "linear" else (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2])
    return Case(op, inputs, products, operations=2 * math.prod(lead) * columns * a[-1], same_bits=same_bits)


DENSE = [
    dense("linear", (4, 7), (3, 7), (3,)),
    dense("linear", (4, 7), (3, 7)),
    dense("linear", (5,), (3, 5), (3,)),
    dense("linear", (2, 3, 4, 5), (6, 5), (6,)),
    dense("linear", (2, 3, 5), (1, 5)),
    dense("linear", (0, 7), (3, 7), (3,)),
    dense("linear", (1, 17), (17, 17)),
    dense("linear", (70, 9), (67, 9), (67,)),
    dense("matmul", (3, 5), (5, 2)),
    dense("matmul", (2, 3, 5), (2, 5, 4)),
    dense("matmul", (2, 3, 5), (5, 4), same_bits=False),
    dense("matmul", (3, 5), (2, 5, 4), same_bits=False),
    dense("matmul", (2, 1, 3, 5), (4, 5, 2), same_bits=False),
    dense("matmul", (0, 5), (5, 2)),
    dense("matmul", (70, 33), (33, 66)),
    dense("matmul", (64, 16), (16, 192)),  # whole tiles, and no rest
    dense("linear", (68, 36), (72, 36), (72,)),  # large tiles, partly filled
    dense("matmul", (2, 1, 40, 36), (3, 36, 32), same_bits=False),
    dense("matmul", (3, 1100), (1100, 5)),
    dense("matmul", (1, 1), (1, 1)),
]

# -- pooling ---------------------------------------------------------------------------------------------

WINDOWS: list[tuple[Shape, dict[str, Any]]] = [
    ((2, 3, 7, 5), {"kernel_size": 2}),
    ((2, 3, 7, 5), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}),
    ((1, 5, 7, 8), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 17, 4, 4), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 1, 5, 9), {"kernel_size": (3, 4), "stride": (1, 2), "padding": (1, 2)}),
    ((2, 1, 7, 5), {"kernel_size": 1, "stride": 2}),
    ((1, 3, 6, 7), {"kernel_size": 1, "stride": 2, "ceil_mode": True}),
    ((1, 2, 11, 8), {"kernel_size": (2, 3), "stride": (5, 4)}),
    ((2, 3, 7, 5), {"kernel_size": (7, 5)}),
    ((1, 2, 4, 9), {"kernel_size": (3, 4), "stride": (3, 4), "padding": (0, 2), "ceil_mode": True}),
    ((1, 1, 17, 2), {"kernel_size": (2, 3), "stride": (2, 3), "padding": 1, "ceil_mode": True}),
    ((1, 2, 9, 5), {"kernel_size": (4, 2), "stride": 2, "ceil_mode": True}),
    ((1, 1, 32, 3), {"kernel_size": (8, 3), "stride": (4, 1), "ceil_mode": True}),
    ((3, 2, 1, 1), {"kernel_size": 1}),
    ((0, 3, 7, 5), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((1, 1, 32, 7), {"kernel_size": 1, "stride": 2, "ceil_mode": True}),
    ((2, 5, 23, 19), {"kernel_size": (3, 4), "stride": 2, "padding": (1, 2), "ceil_mode": True}),
]
FOR_EXTREMES: list[tuple[Shape, dict[str, Any]]] = [
    ((1, 2, 9, 7), {"kernel_size": 3, "stride": (1, 2), "padding": 1, "dilation": (3, 2)}),
    ((2, 1, 8, 7), {"kernel_size": (2, 3), "stride": 3, "dilation": (4, 2), "ceil_mode": True}),
    ((2, 3, 9, 11), {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 3)}),
    ((1, 1, 20, 19), {"kernel_size": 17, "stride": (2, 1), "padding": (1, 0)}),  # more taps than a byte can number
    ((1, 2, 9, 8), {"kernel_size": 2, "stride": 2, "dilation": 2}),  # windows that share an element though stride >= 2
    ((2, 1, 19, 17), {"kernel_size": (19, 17), "stride": 1}),
]


def pooled(op: str, shape: Shape, pytorch: bool = True, **arguments: Any) -> Case:
    """max_pool2d or another pooling, by its name, of x [N, C, H, W]."""
    moves = {k: v for k, v in arguments.items() if k in ("stride", "padding", "dilation", "ceil_mode")}
    window = Window.of(arguments["kernel_size"], **{"stride": None, "padding": 0} | moves)
    operations = math.prod(shape[:2]) * math.prod(window.output_size((shape[2], shape[3]))) * window.taps
    extreme = op in ("max_pool2d", "min_pool2d")
    bounds, x = (selected, distinct(*shape)) if extreme else (averages(window.taps), normal(*shape))
    return Case(op, (x,), bounds, arguments, operations=operations, pytorch=pytorch)


POOL = [
    *(pooled("max_pool2d", shape, **window) for shape, window in WINDOWS + FOR_EXTREMES),
    *(pooled("min_pool2d", shape, pytorch=False, **window) for shape, window in WINDOWS + FOR_EXTREMES),
    *(pooled("avg_pool2d", shape, **window) for shape, window in WINDOWS),
    *(pooled("avg_pool2d", shape, **window, count_include_pad=False) for shape, window in WINDOWS),
    *(pooled("avg_pool2d", shape, **window, divisor_override=7) for shape, window in WINDOWS[1:4]),
    *(pooled("sum_pool2d", shape, pytorch=False, **window) for shape, window in WINDOWS),
]

ADAPTIVE_SIZES: list[Any] = [1, (3, None), (None, 1), (5, 8), (7, 5), (4, 2)]


def _adaptive(op: str, shape: Shape, size: Any) -> Case:
    """A window of ⌈H/P⌉ + 1 rows at most."""
    extreme = op == "adaptive_max_pool2d"
    given = size if isinstance(size, tuple) else (size, size)
    goal = [p or h for p, h in zip(given, shape[2:], strict=True)]
    taps = math.prod(-(-h // p) + 1 for h, p in zip(shape[2:], goal, strict=True))
    operations = math.prod(shape[:2]) * math.prod(goal) * taps
    x, bounds = (distinct(*shape), selected) if extreme else (normal(*shape), averages(taps + 1))
    return Case(op, (x, size), bounds, operations=operations)


ADAPTIVE_POOL = [
    *(_adaptive("adaptive_avg_pool2d", s, size) for s in [(2, 3, 7, 5), (0, 3, 4, 5)] for size in ADAPTIVE_SIZES),
    *(_adaptive("adaptive_max_pool2d", s, size) for s in [(2, 3, 7, 5), (0, 3, 4, 5)] for size in ADAPTIVE_SIZES),
]

# -- activations -----------------------------------------------------------------------------------------

WAVE = wave(2, 3, 7, 2)
LONG = normal(3, 5, 13, 11, scale=3)  # more than a block, and an odd rest


def _activation(op: str, x: Values, *others: Values, pytorch: bool = True, **arguments: Any) -> Case:
    bounds: Bounds = selected if op in ("relu", "relu6", "hardtanh") else activated
    return Case(op, (x, *others), bounds, arguments, pytorch=pytorch)


ACTIVATION = [
    _activation("relu", WAVE),
    _activation("relu", LONG),
    _activation("relu", normal(0, 3, 4, 2)),
    _activation("relu6", WAVE),
    _activation("leaky_relu", WAVE),
    _activation("leaky_relu", WAVE, negative_slope=0.3),
    Case("prelu", (WAVE, listed(0.25)), activated, same_bits=False),
    Case("prelu", (WAVE, normal(3)), activated),
    Case("prelu", (wave(28, 3), normal(3)), activated),
    _activation("elu", WAVE),
    _activation("elu", WAVE, alpha=0.7),
    _activation("selu", WAVE),
    _activation("gelu", WAVE),
    _activation("gelu", LONG),
    _activation("gelu", WAVE, approximate="tanh"),
    _activation("gelu", normal(0, 7)),
    _activation("silu", WAVE),
    _activation("mish", WAVE),
    _activation("mish", LONG),
    _activation("hardswish", WAVE),
    _activation("hardsigmoid", WAVE, pytorch=False),  # PyTorch's float64 slope is 1/6 rounded to float32
    _activation("hardtanh", WAVE),
    _activation("hardtanh", WAVE, min_val=-2.5, max_val=0.5),
    _activation("softplus", WAVE),
    _activation("softplus", WAVE, beta=2.0, threshold=np.inf),
    _activation("softplus", wave(2, 3, 7, 2, scale=9), beta=0.5, threshold=np.inf),
    _activation("sigmoid", WAVE),
    _activation("sigmoid", normal(5)),
    _activation("logsigmoid", WAVE),
    _activation("logsigmoid", LONG),
    _activation("softsign", WAVE),
    _activation("softsign", normal(0, 7)),
    _activation("tanh", WAVE),
    _activation("tanh", LONG),
    *(
        Case(op, (x, dim), _soft, same_bits=False)
        for op in ("softmax", "log_softmax")
        for x, dim in [
            (normal(4, 10), 1),
            (normal(3, 5), 0),
            (normal(2, 5, 4, 3, scale=3), 1),
            (normal(2, 5, 4, 3), -1),
            (normal(2, 3, 4), 1),
            (normal(3, 1), 1),
            (normal(7), 0),
            (normal(0, 5), 1),
            (normal(3, 67, scale=5), 1),
        ]
    ),
    *(
        Case("dropout", (normal(*shape),), relative(3), {"p": p, "generator": Seed(seed)}, pytorch=False)
        for shape, p, seed in [((2, 3, 7, 5), 0.3, 7), ((2051,), 0.5, 2**63 + 5), ((0, 4), 0.2, 1)]
    ),
    Case("dropout2d", (normal(5, 7, 3, 2),), relative(3), {"p": 0.4, "generator": Seed(3)}, pytorch=False),
]

# -- normalisation ---------------------------------------------------------------------------------------


def batch_normalized(shape: Shape, affine: bool = True, offset: float = 0.5, **arguments: Any) -> Case:
    """batch_norm in training of x [N, C, ...] with that mean."""
    c = shape[1]
    affines = (normal(c, seed=1), normal(c, seed=2)) if affine else (None, None)
    bounds = _normalised(lambda x: np.moveaxis(x, 1, 0).reshape(c, -1))
    inputs = (normal(*shape, offset=offset), None, None, *affines, True)
    return Case("batch_norm", inputs, bounds, arguments, pytorch="activation" not in arguments)


def _batch_norm_at_rest(shape: Shape, affine: bool = True, **arguments: Any) -> Case:
    c = shape[1]
    statistics = (normal(c, seed=3), uniform(c, low=0.5, high=2.0, seed=4))
    affines = (normal(c, seed=1), normal(c, seed=2)) if affine else ()
    return Case("batch_norm", (normal(*shape), *statistics, *affines), _with_statistics, arguments, (1, 2))


def _with_residual(case: Case, *between: Any, **arguments: Any) -> Case:
    """A case of batch_norm with these arguments behind its own, a residual, and perhaps an activation."""
    inputs = (*case.inputs, *between, normal(*case.inputs[0].shape, seed=6))
    return replace(case, inputs=inputs, arguments=case.arguments | arguments, pytorch=False)


def _instance_norm(shape: Shape, affine: bool = True, offset: float = 0.5, **arguments: Any) -> Case:
    """instance_norm of x [N, C, ...] with that mean, by its own statistics."""
    c = shape[1]
    affines = (normal(c, seed=1), normal(c, seed=2)) if affine else ()
    bounds = _normalised(lambda x: x.reshape(shape[0] * c, -1))
    return Case("instance_norm", (normal(*shape, offset=offset), None, None, *affines), bounds, arguments)


def _instance_norm_at_rest(shape: Shape, **arguments: Any) -> Case:
    return replace(_batch_norm_at_rest(shape, use_input_stats=False, **arguments), op="instance_norm")


def _group_norm(shape: Shape, groups: int, affine: bool = True, **arguments: Any) -> Case:
    affines = (normal(shape[1], seed=1), normal(shape[1], seed=2)) if affine else ()
    bounds = _normalised(lambda x: x.reshape(shape[0] * groups, -1))
    return Case("group_norm", (normal(*shape, offset=0.5), groups, *affines), bounds, arguments, same_bits=False)


def _layer_norm(shape: Shape, normalized: Shape, affine: bool = True, **arguments: Any) -> Case:
    affines = (normal(*normalized, seed=1), normal(*normalized, seed=2)) if affine else ()
    bounds = _normalised(lambda x: x.reshape(-1, math.prod(normalized)))
    return Case("layer_norm", (normal(*shape, offset=0.5), normalized, *affines), bounds, arguments, same_bits=False)


def _local_response_norm(shape: Shape, size: int, **arguments: Any) -> Case:
    return Case("local_response_norm", (normal(*shape, scale=2), size), _responses, arguments, same_bits=False)


# A batch norm and what follows it at once.
NORM_FINISHED = [
    batch_normalized((2, 5, 7, 9), activation="relu"),
    _with_residual(batch_normalized((3, 35, 11, 9)), 0.1, 1e-5, activation="relu"),
    _with_residual(_batch_norm_at_rest((2, 3, 7, 5)), False, 0.1, 1e-5, activation="relu"),
    _with_residual(batch_normalized((37, 6)), 0.1, 1e-5),
]

INSTANCE_NORM = [
    _instance_norm((2, 3, 7, 5)),
    _instance_norm((3, 4, 5, 2), affine=False, eps=1e-3),
    _instance_norm((2, 1, 13, 11), offset=3.0),
    _instance_norm((2, 35, 11, 9)),
    _instance_norm((2, 4, 37, 29)),  # an image's pixels in several parts
    _instance_norm((2, 3, 7)),
    replace(_instance_norm((0, 3, 4, 2)), pytorch=False),  # PyTorch finds no image whose weight to take
    _instance_norm_at_rest((2, 3, 7, 5)),
]

NORM = [
    batch_normalized((2, 3, 7, 5)),
    batch_normalized((2, 3, 7, 5), affine=False, eps=1e-3),
    batch_normalized((37, 6)),
    batch_normalized((3, 300)),
    batch_normalized((2, 1, 13, 11), offset=3.0),
    batch_normalized((3, 35, 11, 9)),
    batch_normalized((5, 17, 1, 1)),
    _batch_norm_at_rest((2, 3, 7, 5)),
    _batch_norm_at_rest((5, 4), eps=1e-2),
    _batch_norm_at_rest((1, 1, 1, 1)),
    _batch_norm_at_rest((0, 3, 4, 2)),
    _batch_norm_at_rest((2, 1, 13, 11), affine=False),
    *NORM_FINISHED,
    *INSTANCE_NORM,
    _group_norm((2, 6, 3, 5), 3),
    _group_norm((2, 6, 3, 5), 6, affine=False, eps=1e-3),
    _group_norm((3, 4, 5, 2), 1),
    _group_norm((2, 6, 7), 2),
    _group_norm((0, 6, 3, 5), 3),
    _layer_norm((4, 7), (7,)),
    _layer_norm((2, 3, 5, 4), (5, 4), eps=1e-3),
    _layer_norm((2, 3, 5, 4), (3, 5, 4), affine=False),
    _layer_norm((0, 7), (7,)),
    _local_response_norm((2, 7, 3, 5), 3, alpha=0.5, beta=0.6, k=2.0),
    _local_response_norm((1, 5, 4, 2), 4, alpha=0.5),
    _local_response_norm((1, 3, 2, 5), 9),
    _local_response_norm((1, 1, 4, 3), 1, alpha=1.0),
    _local_response_norm((0, 3, 4, 3), 2),
]

# -- shapes, arithmetic ----------------------------------------------------------------------------------


def _interpolate(shape: Shape, **arguments: Any) -> Case:
    bounds: Bounds = _interpolated if arguments.get("mode") == "bilinear" else selected
    return Case("interpolate", (normal(*shape),), bounds, arguments)


_PADDINGS: list[tuple[Shape, dict[str, Any]]] = [
    ((1, 2, 3, 0), {}),
    ((1, 2, 3, 0), {"value": 1.5}),
    ((2, 0), {}),
    ((1, 3, 4, 2), {"mode": "reflect"}),
    ((0, 1, 0, 0), {"mode": "reflect"}),
    ((6, 2, 0, 7), {"mode": "replicate"}),
    ((0, 0, 0, 0), {}),
    ((-1, 2, 0, -2), {}),
]

SHAPE = [
    *(Case("pad", (normal(2, 3, 5, 4), sides), selected, arguments) for sides, arguments in _PADDINGS),
    Case("pad", (normal(0, 3, 5, 4), (1, 2, 3, 0)), selected),
    _interpolate((2, 3, 5, 4), size=(10, 3)),
    _interpolate((2, 3, 5, 4), size=(5, 4)),
    _interpolate((2, 3, 5, 4), scale_factor=2),
    _interpolate((2, 3, 5, 4), scale_factor=(1.5, 0.5)),
    _interpolate((1, 1, 7, 3), size=1),
    _interpolate((2, 3, 5, 4), size=(11, 3), mode="bilinear", align_corners=False),
    _interpolate((2, 3, 5, 4), size=(11, 1), mode="bilinear", align_corners=True),
    _interpolate((2, 3, 5, 4), scale_factor=2, mode="bilinear", align_corners=True),
    _interpolate((2, 3, 5, 4), scale_factor=(0.5, 2.5), mode="bilinear"),
    _interpolate((1, 2, 1, 3), size=(4, 7), mode="bilinear", align_corners=True),
    _interpolate((0, 3, 5, 4), scale_factor=2, mode="bilinear"),
]

VIEWS = [
    Case("permute", (normal(2, 3, 5, 4), (2, 0, 3, 1)), selected),
    Case("flatten", (normal(2, 3, 5, 4), 1), selected),
    Case("expand", (normal(3, 1, 4), (2, 3, 5, 4)), selected, same_bits=False),
    Case("pixel_shuffle", (normal(2, 12, 3, 5), 2), selected),
    Case("pixel_unshuffle", (normal(2, 3, 6, 9), 3), selected),
    Case("index", (normal(5, 3, 7), (slice(4, None, -2), ..., None, 3)), selected, pytorch=False),
    Case("index", (normal(2, 3, 9, 7), (slice(None), slice(None), [0, 8, 8, -1])), selected, pytorch=False),
    Case("index", (normal(300, 3), [[7, 299], [7, 0]]), selected, pytorch=False),
    Case("index", (normal(5, 3), (None, ..., slice(1, 3))), selected, pytorch=False),
    Case("index", (normal(5, 3), (slice(None), [True, False, True])), selected, pytorch=False),
    Case("index", (normal(9, 4), ([8, 0, 3], [1, 2, 1])), selected, pytorch=False),
    Case("index", (normal(2, 3, 9, 7), ([0, 1, 1, 0], slice(None), [2, -1, -1, 2])), selected, pytorch=False),
]

ARITHMETIC = [
    *(
        Case(op, (normal(*a), uniform(*b, low=0.5, high=2.0)), arithmetic, same_bits=a == b)
        for op in ("add", "sub", "mul", "div")
        for a, b in [((2, 3, 7, 5), (2, 3, 7, 5)), ((2, 3, 7, 5), (3, 1, 1)), ((3, 1), (1, 4))]
    ),
    Case("pow", (uniform(2, 3, 5, 4), 2.5), relative(16), same_bits=False),
    Case("exp", (WAVE,), relative(8), same_bits=False),
    Case("log", (uniform(3, 5, high=9.0),), activated, same_bits=False),
    Case("sqrt", (uniform(3, 5, high=9.0),), relative(4)),
    Case("abs", (WAVE,), selected),
    Case("neg", (WAVE,), selected),
    Case("clamp", (WAVE, -2.0, 3.5), selected),
    *(Case(op, (WAVE,), selected) for op in ("sign", "floor", "ceil", "round")),
    Case("norm", (distinct(2, 3, 7, 5), 2, (1, 3)), relative(100), same_bits=False),
    Case("norm", (distinct(5, 3, offset=1 / 17), 3, 0), relative(100), same_bits=False),
    Case("sum", (normal(2, 3, 7, 5), (0, 2)), products, same_bits=False),
    Case("sum", (normal(300, 3),), products, same_bits=False),
    Case("mean", (normal(2, 3, 7, 5), (2, 3)), averages(35), same_bits=False),
    Case("amax", (distinct(2, 3, 7, 5), (1, 3)), selected),
    Case("amin", (distinct(5, 3), 0), selected),
    Case("maximum", (distinct(2, 3, 7, 5), normal(3, 1, 1)), selected, same_bits=False),
    Case("minimum", (distinct(3, 1), normal(1, 4)), selected, same_bits=False),
    Case("where", (_mask(2, 3, 7, 5), normal(2, 3, 7, 5), normal(3, 1, 1)), selected, same_bits=False),
]

# -- losses ----------------------------------------------------------------------------------------------


def loss(op: str, *inputs: Values, constants: tuple[int, ...] = (1,), pytorch: bool = True, **arguments: Any) -> Case:
    """A loss, by its name, of predictions and targets; the inputs in `constants` get no gradient."""
    by_itself = op in ("nll_loss", "mse_loss", "l1_loss", "huber_loss") or (op == "cross_entropy" and inputs[1].integer)
    same_bits = by_itself and arguments.get("reduction") == "none"
    return Case(op, inputs, _losses, arguments, constants, same_bits=same_bits, pytorch=pytorch)


_SCORES, _LABELS = normal(6, 5), integers(6, classes=5)
_MAPS, _MAP_LABELS = normal(2, 3, 3, 4), _some_ignored(2, 3, 4, classes=3)
_WEIGHTS, _TARGETS = uniform(5, low=0.2, high=2.0), _probabilities(6, 5, seed=2)
_LOG_PROBABILITIES = _probabilities(6, 5, logarithm=True)
_ANSWERS, _TRUTHS = uniform(3, 4), uniform(3, 4, seed=1)
_GUESSES, _FACTS = distinct(4, 3), distinct(4, 3, seed=1, offset=1 / 17)

LOSS = [
    loss("cross_entropy", _SCORES, _LABELS),
    loss("cross_entropy", _SCORES, _LABELS, label_smoothing=0.2),
    loss("cross_entropy", _SCORES, _LABELS, reduction="none"),
    loss("cross_entropy", _SCORES, _LABELS, reduction="sum", label_smoothing=0.1),
    loss("cross_entropy", _SCORES, _LABELS, weight=_WEIGHTS),
    loss("cross_entropy", _SCORES, _LABELS, weight=_WEIGHTS, label_smoothing=0.1),
    loss("cross_entropy", _SCORES, _LABELS, weight=_WEIGHTS, label_smoothing=0.1, ignore_index=3),
    loss("cross_entropy", _SCORES, _LABELS, weight=_WEIGHTS, reduction="none"),
    loss("cross_entropy", normal(1, 2), listed(1)),
    loss("cross_entropy", normal(1, 1), listed(0), weight=uniform(1)),
    loss(
        "cross_entropy",
        normal(9, 70),
        _some_ignored(9, classes=70),
        weight=uniform(70, low=0.2, high=2.0),
        label_smoothing=0.1,
        reduction="none",
    ),
    loss("cross_entropy", normal(3, 17), listed(16, 0, 9)),
    loss("cross_entropy", normal(70, 67, scale=3), integers(70, classes=67), reduction="none"),
    loss("cross_entropy", normal(3, 5, scale=2000), listed(4, 0, 2), reduction="none"),
    loss("cross_entropy", _MAPS, _MAP_LABELS),
    loss("cross_entropy", _MAPS, _MAP_LABELS, reduction="none", label_smoothing=0.1),
    loss("cross_entropy", _MAPS, _MAP_LABELS, weight=uniform(3, low=0.2, high=2.0)),
    loss("cross_entropy", _SCORES, _TARGETS),
    loss("cross_entropy", _SCORES, _TARGETS, reduction="none"),
    loss("cross_entropy", _SCORES, _TARGETS, weight=_WEIGHTS, label_smoothing=0.1),
    loss("cross_entropy", _MAPS, _probabilities(2, 3, 3, 4, seed=5)),
    loss("nll_loss", _LOG_PROBABILITIES, _LABELS),
    loss("nll_loss", _LOG_PROBABILITIES, _LABELS, weight=_WEIGHTS),
    loss("nll_loss", _LOG_PROBABILITIES, _LABELS, ignore_index=3, reduction="sum"),
    loss("nll_loss", _MAPS, _MAP_LABELS, reduction="none"),
    loss("binary_cross_entropy", _ANSWERS, _TRUTHS),
    loss("binary_cross_entropy", _ANSWERS, _TRUTHS, reduction="none"),
    loss("binary_cross_entropy", _ANSWERS, _TRUTHS, weight=uniform(3, 4, high=3.0), reduction="sum"),
    loss("binary_cross_entropy_with_logits", normal(3, 4), _TRUTHS),
    loss("binary_cross_entropy_with_logits", normal(3, 4, scale=9), _TRUTHS, reduction="none"),
    loss(
        "binary_cross_entropy_with_logits",
        normal(3, 4),
        _TRUTHS,
        weight=uniform(3, 4, high=3.0),
        pos_weight=listed(1.0, 2.0, 3.0, 4.0),
    ),
    loss("mse_loss", _GUESSES, _FACTS, constants=()),
    loss("mse_loss", _GUESSES, _FACTS, reduction="sum", constants=()),
    loss("mse_loss", _GUESSES, _FACTS, reduction="none", constants=()),
    loss("l1_loss", _GUESSES, _FACTS, constants=()),
    loss("l1_loss", _GUESSES, _FACTS, reduction="none", constants=()),
    loss("smooth_l1_loss", _GUESSES, _FACTS, constants=()),
    loss("smooth_l1_loss", _GUESSES, _FACTS, beta=0.5, reduction="sum", constants=()),
    loss("smooth_l1_loss", _GUESSES, _FACTS, beta=0.0, constants=()),
    loss("huber_loss", _GUESSES, _FACTS, constants=()),
    loss("huber_loss", _GUESSES, _FACTS, delta=0.5, reduction="sum", constants=()),
    loss("huber_loss", _GUESSES, _FACTS, delta=2.0, reduction="none", constants=()),
    loss("kl_div", _LOG_PROBABILITIES, _TARGETS, constants=()),
    loss("kl_div", _LOG_PROBABILITIES, _TARGETS, reduction="batchmean", constants=()),
    loss("kl_div", _LOG_PROBABILITIES, _TARGETS, reduction="none", constants=()),
    loss(
        "kl_div",
        _MAPS,
        _probabilities(2, 3, 3, 4, seed=5, logarithm=True),
        log_target=True,
        reduction="sum",
        constants=(),
    ),
    loss("half_squared_error", _GUESSES, _FACTS, pytorch=False, constants=()),
]

# -- what is no number: NaN in, NaN out, in its windows and nowhere else ----------------------------------

_HOLED = with_nan(2, 3, 7, 5)
NOT_A_NUMBER = [
    replace(conv(_HOLED.shape, (6, 1, 3, 2), groups=3, stride=(2, 1)), inputs=(_HOLED, normal(6, 1, 3, 2, seed=1))),
    *(
        replace(pooled(op, _HOLED.shape, pytorch, kernel_size=(3, 2), stride=(2, 1)), inputs=(_HOLED,))
        for op, pytorch in (("max_pool2d", True), ("min_pool2d", False), ("avg_pool2d", True))
    ),
    *(_activation(op, _HOLED) for op in ("relu", "leaky_relu", "gelu", "hardtanh", "sigmoid", "tanh")),
]

# -- what lies about the smallest normal number, 2⁻¹²⁶: float kernels take less for zero -------------------


def _scaled(scale: float, *shapes: Shape) -> tuple[Values, ...]:
    return tuple(normal(*shape, seed=i, scale=scale) for i, shape in enumerate(shapes))


_ROOT, _SMALLEST = 2.0**-62, 2.0**-124
SMALL = [
    replace(conv((2, 3, 5, 7), (5, 3, 2, 3)), inputs=_scaled(_ROOT, (2, 3, 5, 7), (5, 3, 2, 3))),
    replace(conv((1, 6, 7, 5), (4, 6, 3, 2)), inputs=_scaled(_ROOT, (1, 6, 7, 5), (4, 6, 3, 2))),
    replace(dense("linear", (4, 7), (3, 7)), inputs=_scaled(_ROOT, (4, 7), (3, 7))),
    replace(pooled("avg_pool2d", (2, 3, 7, 5), kernel_size=(3, 2)), inputs=_scaled(_SMALLEST, (2, 3, 7, 5))),
]

# -- what tensor cores take: channels, filters and the last axes of matrices by fours ----------------------
# CASES has few of those, since by an ordinary device they are computed like the others.

HOPPER = (9, 0)  # a compute capability for which kernels with tensor cores are chosen
TENSOR_CORES = [
    conv((1, 12, 7, 5), (20, 12, 3, 2), bias=True, padding=1),
    conv((2, 8, 9, 7), (12, 8, 2, 3), pytorch=False, stride=(2, 1), dilation=(1, 2), padding=(1, 0, 2, 3)),
    conv((2, 16, 5, 6), (8, 8, 3, 2), bias=True, groups=2, stride=(1, 2), padding=(2, 0)),
    conv((1, 36, 3, 23), (68, 36, 1, 1), bias=True),
    conv_finished((1, 12, 7, 5), (20, 12, 3, 2), "relu"),
    dense("linear", (70, 36), (8, 36), (8,)),
    dense("matmul", (12, 20), (20, 72)),
    dense("matmul", (2, 1, 8, 20), (3, 20, 12)),
    conv((1, 128, 3, 5), (40, 128, 3, 3), padding=1),
]
# In half types: by eights.
TENSOR_CORES_HALF = [
    conv((1, 16, 7, 5), (24, 16, 3, 2), bias=True, padding=1),
    conv((2, 8, 9, 7), (16, 8, 2, 3), pytorch=False, stride=(2, 1), dilation=(1, 2), padding=(1, 0, 2, 3)),
    conv((2, 16, 5, 6), (16, 8, 3, 2), bias=True, groups=2, stride=(1, 2), padding=(2, 0)),
    conv((1, 40, 3, 23), (72, 40, 1, 1), bias=True),
    conv_finished((1, 16, 7, 5), (24, 16, 3, 2), "relu"),
    dense("linear", (72, 40), (8, 40), (8,)),
    dense("matmul", (16, 24), (24, 72)),
    dense("matmul", (2, 1, 8, 24), (3, 24, 16)),
    conv((1, 128, 3, 5), (40, 128, 3, 3), padding=1),
]
# Taps that are neighbours, for what variants.preferring("halo") and "winograd" choose: planes of one pixel, or larger
# than a tile and by an odd rest; rests of channels; groups; a batch.
HALO = [
    conv((2, 20, 9, 5), (12, 20, 3, 3), bias=True, padding=1),
    conv((1, 4, 3, 17), (68, 4, 3, 3), padding=1),
    conv((3, 36, 1, 1), (8, 36, 3, 3), padding=1),
    conv((1, 8, 9, 7), (12, 8, 5, 5), bias=True, padding=2),
    conv((2, 16, 8, 6), (24, 8, 5, 2), pytorch=False, groups=2, padding=(1, 0, 2, 3)),
    conv((1, 8, 4, 11), (8, 8, 2, 5)),
    conv_finished((1, 12, 7, 5), (20, 12, 3, 3), "relu"),
]
HALO_HALF = [
    conv((1, 40, 9, 5), (16, 40, 3, 3), bias=True, padding=1),
    conv((3, 8, 1, 1), (72, 8, 3, 3), padding=1),
    conv((1, 32, 8, 6), (16, 16, 5, 2), pytorch=False, groups=2, padding=(1, 0, 2, 3)),
]
WINOGRAD = [
    conv((2, 64, 7, 5), (68, 64, 3, 3), bias=True, padding=1),
    conv((3, 68, 1, 1), (64, 68, 3, 3), padding=1),
    conv((1, 72, 4, 3), (64, 72, 3, 3), pytorch=False, padding=(0, 2, 3, 0)),
    conv((1, 64, 5, 6), (64, 64, 3, 3)),
    conv_finished((1, 64, 7, 5), (64, 64, 3, 3), "relu"),
]
# For what variants.preferring("wgmma") chooses: more steps than stages; rests of channels, filters and pixels; walks by
# strides, dilations and uneven padding, and from image to image; tiles of each width.
WGMMA = [
    conv((2, 72, 9, 7), (24, 72, 3, 3), bias=True, padding=1),
    conv((3, 8, 9, 7), (136, 8, 2, 3), pytorch=False, stride=(2, 1), dilation=(1, 2), padding=(1, 0, 2, 3)),
    conv((1, 136, 5, 11), (72, 136, 2, 2), pytorch=False, dilation=(1, 4), padding=(0, 2, 5, 0)),
    conv_finished((1, 16, 7, 5), (24, 16, 3, 2), "relu"),
    dense("matmul", (2, 1, 72, 24), (3, 24, 200)),
    dense("linear", (136, 40), (72, 40), (72,)),
]
# Large enough for the larger tile; for devices that are fast, or do not compute at all.
TENSOR_CORES_FILLED = [
    conv((12, 72, 32, 33), (136, 72, 3, 3), padding=1),
    dense("matmul", (1544, 1544), (1544, 1544)),
    dense("linear", (1544, 1544), (1544, 1544)),
]
# And few filters, rows or columns, for which narrow tiles are.
TENSOR_CORES_NARROW = [
    conv((12, 16, 32, 33), (24, 16, 3, 3), padding=1),
    dense("matmul", (6152, 40), (40, 24)),
    dense("matmul", (12296, 40), (40, 8)),
    dense("matmul", (24, 40), (40, 12296)),
    conv((12, 16, 32, 33), (16, 16, 3, 3), padding=1),
]
# And for TF32: chunks of four; filters that are turned for the input's gradient, of more than a tile of channels.
WGMMA_TF32 = [
    conv((2, 68, 9, 7), (20, 68, 3, 3), bias=True, padding=1),
    conv((1, 132, 5, 6), (36, 132, 2, 3), pytorch=False, dilation=(1, 2), padding=(0, 2, 3, 0)),
    *WGMMA[1:],
]
WGMMA_FILLED = [
    TENSOR_CORES_FILLED[1],
    conv((24, 64, 32, 33), (64, 64, 3, 3), padding=1),
    conv((24, 128, 32, 33), (128, 128, 1, 1)),
    conv((24, 72, 32, 33), (136, 72, 1, 1)),
]
HALO_FILLED = [
    TENSOR_CORES_FILLED[0],
    conv((12, 72, 32, 33), (136, 72, 5, 5), padding=2),
    conv((12, 64, 32, 33), (64, 64, 3, 3), padding=1),
]

CASES = [
    *CONV2D,
    *CONV2D_FINISHED,
    *CONV2D_POOLED,
    *CONV_TRANSPOSE2D,
    *POOL,
    *ADAPTIVE_POOL,
    *ACTIVATION,
    *NORM,
    *DENSE,
    *SHAPE,
    *VIEWS,
    *ARITHMETIC,
    *LOSS,
    *NOT_A_NUMBER,
    *SMALL,
]


class Way(NamedTuple):
    """How a case is computed: of which type, in which `gpucnn.precision`, chosen for which compute capability, and by
    which family of kernels where it fits (of `variants.FAMILIES`; the usual one if None)."""

    dtype: str = "float32"
    precision: str = "fp32"
    capability: tuple[int, int] | None = None
    family: str | None = None

    def backend(self, device: Device) -> KernelBackend:
        """Of that family, on a device whose kernels are chosen for the capability from now on."""
        from gpucnn.backends.kernel_backend import KernelBackend
        from gpucnn.backends.variants import preferring

        device.capability = self.capability
        return KernelBackend(device, None if self.family is None else preferring(self.family))


def ways(filled: bool = False) -> Iterator[tuple[Case, Way]]:
    """Cases with the ways to compute them that, together, launch every kernel; `filled`: large cases as well, for which
    large tiles are chosen."""
    of_tiles, of_halos, of_wgmma = (TENSOR_CORES_FILLED, HALO_FILLED, WGMMA_FILLED) if filled else ([], [], [])
    narrow = TENSOR_CORES_NARROW if filled else []
    of_each_op = {case.op: case for case in reversed(CASES)}.values()
    in_half = {str(case): case for case in (*of_each_op, *NORM_FINISHED, *INSTANCE_NORM, *DEPTHWISE)}.values()
    for dtype in ("float32", "float64"):
        yield from ((case, Way(dtype)) for case in (*CASES, *of_tiles))
    for half in HALVES:
        yield from ((case, Way(half)) for case in in_half)
        yield from ((case, Way(half, capability=HOPPER)) for case in (*TENSOR_CORES_HALF, *of_tiles, *narrow))
        yield from ((case, Way(half, capability=HOPPER, family="halo")) for case in (*HALO_HALF, *of_halos))
        yield from ((case, Way(half, capability=HOPPER, family="wgmma")) for case in (*WGMMA, *of_wgmma))
    for precision, operands in PRECISIONS.items():
        dense, near = (TENSOR_CORES_HALF, HALO_HALF) if operands in HALVES else (TENSOR_CORES, HALO)
        yield from ((case, Way("float32", precision, HOPPER)) for case in (*dense, *of_tiles, *narrow))
        yield from ((case, Way("float32", precision, HOPPER, "halo")) for case in (*near, *of_halos))
        if operands in HALVES:  # else these are in CASES
            yield from ((case, Way("float32", precision)) for case in (*CONV2D_FINISHED, CONV2D_POOLED[0]))
            yield WGMMA[0], Way("float32", precision, HOPPER, "wgmma")
    yield from ((case, Way("float32", "tf32", HOPPER, "wgmma")) for case in (*WGMMA_TF32, *of_wgmma))
    yield from ((case, Way(capability=HOPPER, family="winograd")) for case in (*WINOGRAD, *of_tiles[:1]))
