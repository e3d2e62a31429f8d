"""What a right result is: float64 by the NumPy backend, and how far off a result of a precision may lie.

A time counts only for a result that was compared here. The inputs are rounded to the precision first, so that tf32,
bf16 and fp16 multiply them exactly and what is left is the rounding of float32 sums, and of the output where it has 16
bits.

Ops: the elementwise worst-case bounds of `gpucnn.testing`. Sums of products must also be as good as float32 sums are
as a rule, in the root mean square: √n · u for n terms, which tf32 passed off as fp32 misses by far. Networks have no
useful worst case: there the yardstick is what rounding does to the float64 network, its weights disturbed by √n · u.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import gpucnn
from gpucnn import functional as F
from gpucnn.backends import use_backend
from gpucnn.backends.precision import PRECISIONS
from gpucnn.benchmark.suites import Network, Op, Task
from gpucnn.dtypes import HALVES
from gpucnn.nn import Module
from gpucnn.testing import Array, Case, Evaluation, Values, evaluate, in_half

UNIT = {"fp32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8, "fp16": 2.0**-11}  # roundoff of an operand
OUTPUT_UNIT = {"fp32": 0.0, "tf32": 0.0, "bf16": 2.0**-8, "fp16": 2.0**-11}  # and of a result, beyond float32's
MARGIN = 4  # by how much a network may miss the yardstick, which is itself one draw
LR, MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class Verdict:
    """`error`: root mean square, relative to the result's. `of_bound`: the worst error in bounds; above 1 is wrong."""

    error: float
    of_bound: float

    @property
    def right(self) -> bool:
        """Whether a time of this result counts."""
        return self.of_bound <= 1


@dataclass(frozen=True)
class OpProblem:
    """An op's inputs, what its passes result in, and how far off each element may be. `inputs` are float32 arrays,
    labels and plain arguments."""

    case: Case
    precision: str
    exact: Evaluation
    bounds: list[Array]
    inputs: list[Any] = field(default_factory=list)

    @property
    def cotangent(self) -> Array:
        """The gradient of the output, float32."""
        return self.exact.cotangent.astype(np.float32)

    def gradients_of(self, part: str) -> list[int]:
        """The positions of the inputs that a pass computes the gradients of; none for "forward"."""
        places = self.case.differentiable
        return {"forward": [], "input-gradient": places[:1], "weight-gradient": places[1:2]}.get(part, places)

    def judge(self, part: str, got: Sequence[Array]) -> Verdict:
        """How good the results of a pass are."""
        places = [0] if part == "forward" else [1 + self.case.differentiable.index(i) for i in self.gradients_of(part)]
        verdicts = [self._judge(i, array) for i, array in zip(places, got, strict=True)]
        return Verdict(max(v.error for v in verdicts), max(v.of_bound for v in verdicts))

    def _judge(self, which: int, got: Array) -> Verdict:
        expected = self.exact.results[which]
        if got.shape != expected.shape:
            return Verdict(math.inf, math.inf)
        u, extra = UNIT["fp32"], OUTPUT_UNIT[self.precision]
        off = np.abs(got - expected)
        with np.errstate(divide="ignore", invalid="ignore"):
            of_bound = float(np.where(off == 0, 0.0, off / self.bounds[which]).max())
        error = _relative(off, expected)
        if self.case.op in ("conv2d", "linear"):
            terms = self.case.flops / (2 * expected.size)
            of_bound = max(of_bound, error / (math.sqrt(terms + 2) * u + extra))
        return Verdict(error, of_bound if math.isfinite(error) else math.inf)


@dataclass(frozen=True)
class NetworkProblem:
    """A network's weights, a batch, and the exact results: of inference the logits; of a training step the loss, all
    gradients in a row, and all weights after a step of SGD."""

    network: Network
    training: bool
    weights: dict[str, Array]
    images: Array
    labels: Array
    exact: list[Array] = field(repr=False)
    tolerance: float

    def judge(self, part: str, got: Sequence[Array]) -> Verdict:
        """How good the results of a step are."""
        errors = []
        for array, expected in zip(got, self.exact, strict=True):
            same = array.size == expected.size
            errors.append(_relative(array.ravel() - expected.ravel(), expected) if same else math.inf)
        worst = max(error if math.isfinite(error) else math.inf for error in errors)
        return Verdict(worst, worst / self.tolerance)

    def module(self) -> Module:
        """Our network with these weights, on the NumPy backend."""
        with use_backend("numpy"):
            module = self.network.make()
            module.load_state_dict(self.weights)
        return module.train(self.training)


def pose(task: Task, precision: str) -> OpProblem | NetworkProblem:
    """The inputs of a task, drawn at random but always the same, and its exact results."""
    assert task.what is not None
    if isinstance(task.what, Op):
        return _op_problem(task.what.make(task.batch), precision)
    return _network_problem(task.what, task.part == "training", task.batch, precision)


def rounded(values: Array, precision: str) -> Array:
    """The nearest numbers of that precision, with the array's own dtype."""
    if precision == "fp16":
        return values.astype(np.float16).astype(values.dtype)
    dropped = {"fp32": 0, "tf32": 13, "bf16": 16}[precision]  # of float32's 23 bits behind the point
    if not dropped:
        return values
    bits = values.astype(np.float32).view(np.uint32)
    nearest = bits + ((1 << dropped - 1) - 1) + ((bits >> dropped) & 1)  # ties to even
    return (nearest & np.uint32(2**32 - (1 << dropped))).view(np.float32).astype(values.dtype)


def _op_problem(case: Case, precision: str) -> OpProblem:
    if precision != "fp32":
        case = replace(case, inputs=tuple(_rounded_values(value, precision) for value in case.inputs))
    exact = evaluate(case, "numpy", "float32", precision="float64")
    if precision != "fp32":
        u = rounded(exact.cotangent, precision)
        exact = replace(exact, cotangent=u, results=exact.again(cotangent=lambda _: u))
    roundoffs = case.bounds(exact)
    bounds = (
        in_half(exact, PRECISIONS[precision], roundoffs)
        if PRECISIONS[precision] in HALVES
        else [UNIT["fp32"] * np.broadcast_to(b, r.shape) for b, r in zip(roundoffs, exact.results, strict=True)]
    )
    return OpProblem(case, precision, exact, bounds, case.made_inputs("float32"))


def _rounded_values(value: Any, precision: str) -> Any:
    if not isinstance(value, Values) or value.integer:
        return value
    draw = value.draw
    return replace(value, draw=lambda rng, shape: rounded(draw(rng, shape), precision))


def _network_problem(network: Network, training: bool, batch: int, precision: str) -> NetworkProblem:
    rng = np.random.default_rng([batch, training])
    with use_backend("numpy"):
        gpucnn.manual_seed(0)
        module = network.make().train(training)
    weights = {name: np.array(tensor.numpy(), order="C") for name, tensor in module.state_dict().items()}
    images = rng.standard_normal((batch, *network.image), np.float32)
    labels = rng.integers(0, network.classes, batch)
    module.to("float64")
    exact = _results(copy.deepcopy(module), images, labels)
    unit = UNIT["fp32"] * math.sqrt(network.longest_sum(batch)) + (2 * UNIT[precision] if precision != "fp32" else 0)
    misses = []
    for _ in range(1 if training else 2):
        disturbed = copy.deepcopy(module)
        for p in disturbed.parameters():
            p.detach().copy_(p.numpy() * (1 + unit * rng.standard_normal(p.shape)))
        found = _results(disturbed, images, labels)
        misses += [_relative(a - b, b) for a, b in zip(found[: 2 if training else 1], exact, strict=False)]
    return NetworkProblem(network, training, weights, images, labels, exact, MARGIN * (max(misses) + UNIT["fp32"]))


def _results(module: Module, images: Array, labels: Array) -> list[Array]:
    """Of a float64 network, which a training step changes."""
    x = gpucnn.tensor(images.astype(np.float64), backend="numpy")
    if not module.training:
        with gpucnn.no_grad():
            return [module(x).numpy()]
    optimizer = gpucnn.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)
    loss = F.cross_entropy(module(x), labels)
    loss.backward()
    gradients = flat(p.grad.numpy() for p in module.parameters() if p.grad is not None)
    optimizer.step()
    return [loss.numpy(), gradients, flat(p.numpy() for p in module.parameters())]


def flat(arrays: Any) -> Array:
    """All arrays' elements in a row."""
    return np.concatenate([np.asarray(array).ravel() for array in arrays])


def _relative(off: Array, expected: Array) -> float:
    size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(off, dtype=np.float64)))) / (size or 1.0)
