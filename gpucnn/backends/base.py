"""Waist 1: what a backend must do. The docstrings here are the specification; tests hold every backend to them.

Conventions, for all methods:

- Arrays belong to the backend (`xp` is their module: numpy or cupy). Arguments arrive validated by `gpucnn.functional`,
  so no check is written twice: shapes, ranks, dtypes and labels are right, and all floating arrays of one call have one
  dtype, float16, bfloat16, float32 or float64.
- With the half types, float16 and bfloat16, a primitive computes in float32 and rounds what it returns to their type
  once. What belongs to a channel of batch_norm or instance_norm (mean, variance, weight and the like) stays float32,
  and losses and optimisers take float32 and float64 alone.
- Convolutions and matmul of float32 round their operands (x, w, dy; a, b) to the half type of `gpucnn.precision` first,
  if it names one. What is added to their sums, and what comes out, is not rounded; bias_backward adds up dy as it is.
- Images are indexed [N, C, H, W] and filters [K, C/groups, R, S], as in PyTorch, and stored channels-last: what a
  backend returns with four axes has C (of filters too) fastest in memory. An argument may have any strides.
- N may be 0. Arguments are never changed, except where a method says so.
- Every sum has one fixed order: the same call gives the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from gpucnn.dtypes import is_half
from gpucnn.geometry import Size, Window
from gpucnn.live import Live

# An array of the backend's own kind: numpy.ndarray or cupy.ndarray. Neither has a common static type.
Array = Any

# Average pooling's divisor: "window" is the window clipped to the padded plane (count_include_pad=True), "real" counts
# the elements of the plane alone, an int is divisor_override (1 makes sum pooling).
Divisor = int | Literal["window", "real"]

# What `conv2d_max_pool2d_forward` numbers a window with whose gradient ReLU stops.
NO_TAP = 255

# Each activation, and which of its arrays the backward pass needs. Where the output is enough, the input is freed.
ACTIVATIONS: dict[str, Literal["input", "output"]] = {
    "relu": "output",
    "relu6": "output",
    "sigmoid": "output",
    "tanh": "output",
    "leaky_relu": "input",
    "elu": "input",
    "gelu": "input",
    "gelu_tanh": "input",
    "silu": "input",
    "hardswish": "input",
    "hardsigmoid": "input",
    "softplus": "input",
}


class SGDSettings(NamedTuple):
    """torch.optim.SGD's."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool


class AdamSettings(NamedTuple):
    """torch.optim.Adam's (AdamW's if decoupled), and the number of the step, counted from 1."""

    step: int
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool


class RMSpropSettings(NamedTuple):
    """torch.optim.RMSprop's."""

    lr: float
    alpha: float
    eps: float
    weight_decay: float
    momentum: float


def storage_view(array: Array) -> Array:
    """The view of an array in the order that it has in memory, where that is the usual one: [N,H,W,C] for four axes."""
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


class Backend(ABC):
    """A device that holds arrays and computes the primitives of a CNN on them."""

    name: str
    xp: ModuleType
    # Up to so many channels of a filter `conv2d_max_pool2d` is faster than a convolution and a pooling.
    pools_along = 4

    @property
    def capturing(self) -> bool:
        """Whether a graph is being captured: nothing is computed then, and values can't be read."""
        return False

    def keep(self, *arrays: Array) -> None:  # noqa: B027  nothing to do without graphs
        """While a graph is captured: these live as long as it, for it may refer to them."""

    @property
    def unread(self) -> bool:
        """Whether values should stay on the device: a graph is captured, or its memory measured."""
        return False

    @property
    def tuning_hash(self) -> str | None:
        """Of the measurements that kernels are chosen by now, where that may change bits; None if it can't."""
        return None

    def owns(self, data: object) -> bool:
        """Whether this is an array of the backend, and not one on the host."""
        return isinstance(data, self.xp.ndarray)

    # -- arrays ----------------------------------------------------------------------------------------

    @abstractmethod
    def asarray(self, data: Any, dtype: Any = None) -> Array:
        """`data` (anything numpy.asarray takes, or an array of this backend) as an array of this backend.

        Four axes come out channels-last. Copies only if it must.
        """

    @abstractmethod
    def to_numpy(self, array: Array) -> Any:
        """The array's values as a numpy.ndarray on the host; waits for pending work."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work that was queued is done."""

    def in_a_row(self) -> AbstractContextManager[None]:
        """Around many primitives that follow each other, as in a backward pass: what each sets up may be kept."""
        return nullcontext()

    def contiguous(self, array: Array) -> Array:
        """The array itself if it is dense and in conventional order (four axes: channels-last), else a copy."""
        if array.ndim != 4:
            return self.xp.asarray(array, order="C")  # ascontiguousarray would give a single number an axis
        return self.xp.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    def astype(self, array: Array, dtype: Any) -> Array:
        """The array's values in another dtype, rounded to nearest; four axes come out channels-last.

        To a half type they go by way of float32; what is too large for it becomes infinite.
        """
        with np.errstate(all="ignore"):
            if is_half(np.dtype(dtype)) and array.dtype.itemsize > 4:
                array = array.astype(np.float32)
            if array.ndim != 4:
                return array.astype(dtype)
            return array.transpose(0, 2, 3, 1).astype(dtype, order="C").transpose(0, 3, 1, 2)

    # -- convolution -----------------------------------------------------------------------------------

    @abstractmethod
    def conv2d_forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        window: Window,
        groups: int,
        activation: str | None = None,
        scale: Array | None = None,
        residual: Array | None = None,
    ) -> Array:
        """y[n,k,p,q] = f(b[k] + scale[k] · Σ_{c,r,s} x[n, c, p·sh − top + r·dh, q·sw − left + s·dw] · w[k,c,r,s]
        + residual[n,k,p,q]), added in the order scale · Σ, b, residual.

        Cross-correlation; x is 0 outside its plane. x [N,C,H,W], w [K,C/groups,R,S], b, scale [K] or None; y and
        residual (or None) [N,K,P,Q].
        Filter k reads the C/groups channels of its group, k // (K/groups). f is nothing, or an activation whose
        backward pass needs only the output (see ACTIVATIONS).
        """

    def conv2d_statistics(
        self, x: Array, w: Array, b: Array | None, window: Window, groups: int
    ) -> tuple[Array, Array, Array]:
        """(y, mean, variance): conv2d_forward, and batch_norm_statistics of its result."""
        y = self.conv2d_forward(x, w, b, window, groups)
        return y, *self.batch_norm_statistics(y)

    @abstractmethod
    def conv2d_backward_input(self, dy: Array, w: Array, window: Window, groups: int, size: Size) -> Array:
        """dx [N,C,H,W] for dy [N,K,P,Q], where size = (H, W). The transpose of conv2d_forward as a function of x.

        Pixels that no window covers get 0. Run forward it is the transposed convolution.
        """

    @abstractmethod
    def conv2d_backward_weight(self, dy: Array, x: Array, window: Window, groups: int) -> Array:
        """dw [K,C/groups,R,S] = Σ_{n,p,q} dy[n,k,p,q] · x[n, c, p·sh − top + r·dh, q·sw − left + s·dw]."""

    def conv2d_backward(self, dy: Array, x: Array, w: Array, window: Window, groups: int) -> tuple[Array, Array]:
        """(dx, dw) of the two above, for a backend that computes them together in less time."""
        dx = self.conv2d_backward_input(dy, w, window, groups, (x.shape[2], x.shape[3]))
        return dx, self.conv2d_backward_weight(dy, x, window, groups)

    @abstractmethod
    def bias_backward(self, dy: Array) -> Array:
        """db [K]: dy [N,K,P,Q] or [N,K] summed over all axes but K."""

    @abstractmethod
    def conv2d_max_pool2d_forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        window: Window,
        groups: int,
        pool: Window,
        activation: str | None,
        need_tap: bool,
    ) -> tuple[Array, Array | None]:
        """(y [N,K,P',Q'], tap uint8 [N,K,P',Q']): max_pool2d_forward by `pool`, of at most 255 taps, of what
        conv2d_forward gives for the other arguments: a kernel to the bit, NumPy up to rounding.

        The activation is nothing or "relu", a filter has at most `functional.convolution.MOST_WEIGHTS` numbers. tap is
        NO_TAP where no gradient comes back: where there is a ReLU and y is not positive. None unless need_tap.
        """

    @abstractmethod
    def conv2d_max_pool2d_backward(
        self,
        dy: Array,
        tap: Array,
        x: Array,
        w: Array,
        window: Window,
        groups: int,
        pool: Window,
        needed: tuple[bool, bool, bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        """(dx, dw, db [K]) for dy [N,K,P',Q'], each None unless it is needed."""

    # -- pooling ---------------------------------------------------------------------------------------

    @abstractmethod
    def max_pool2d_forward(
        self, x: Array, window: Window, mode: Literal["max", "min"], need_tap: bool
    ) -> tuple[Array, Array | None]:
        """(y [N,C,P,Q], tap [N,C,P,Q]): the largest (smallest) element of each window, and which tap r·S + s it is.

        Padding never wins. Of equal elements the first in row-major order wins; a NaN wins over every number (the first
        NaN). tap is uint8 where R·S <= 256, else int32; None unless need_tap.
        """

    @abstractmethod
    def max_pool2d_backward(self, dy: Array, tap: Array, window: Window, size: Size) -> Array:
        """dx [N,C,H,W]: each dy goes to the element that won; where windows overlap, summed in row-major order of the
        windows. size = (H, W)."""

    @abstractmethod
    def avg_pool2d_forward(self, x: Array, window: Window, divisor: Divisor) -> Array:
        """y [N,C,P,Q]: the sum of each window (padding counts as 0) over its divisor."""

    @abstractmethod
    def avg_pool2d_backward(self, dy: Array, window: Window, divisor: Divisor, size: Size) -> Array:
        """dx [N,C,H,W]: dy over the same divisor, to every element of its window. size = (H, W)."""

    # -- elementwise -----------------------------------------------------------------------------------

    @abstractmethod
    def activation_forward(self, x: Array, kind: str, parameter: float) -> Array:
        """y = f(x), any shape. `kind` is a key of ACTIVATIONS; NaN in gives NaN out.

        relu: x where x > 0, else +0.0 (also for −0.0). relu6: min(max(x, 0), 6). leaky_relu: x or parameter·x where
        x <= 0. elu: x where x > 0, else parameter·(exp(x) − 1). gelu: x·Φ(x) by erf. gelu_tanh: PyTorch's tanh form.
        silu: x·σ(x). hardswish: x·min(max(x+3,0),6)/6. hardsigmoid: min(max(x+3,0),6)/6. softplus: log(1 + exp(βx))/β
        with β = parameter, overflow-free. sigmoid and tanh overflow-free.
        """

    @abstractmethod
    def activation_backward(self, dy: Array, saved: Array, kind: str, parameter: float) -> Array:
        """dx = dy · f'. `saved` is the input or the output, as ACTIVATIONS says. PyTorch's value at each corner.

        relu: dy where y > 0, else 0, exactly 0 even if dy is infinite.
        """

    @abstractmethod
    def activation_bias_backward(self, dy: Array, y: Array, kind: str) -> tuple[Array, Array]:
        """(dx [N,K,P,Q], db [K]) in one pass: activation_backward of a kind that needs only its output y, and
        bias_backward of that dx, both to the bit."""

    @abstractmethod
    def dropout(self, x: Array, p: float, position: Live[tuple[int, int]]) -> Array:
        """x / (1 − p) where kept, else 0. Its own backward pass: call it on dy with the same position (seed, offset).

        Element i, counted in storage order (channels-last for four axes, so [N,H,W,C]), is kept if u_i >= p, where
        u_i = (word_i >> 8) · 2⁻²⁴ and word_i is lane i % 4 of Philox4x32-10 (Salmon et al., SC'11) with key
        (seed mod 2³², seed >> 32) and counter (c mod 2³², c >> 32, 0, 0), c = offset + i // 4.
        """

    # -- batch normalisation ---------------------------------------------------------------------------

    @abstractmethod
    def batch_norm_statistics(self, x: Array) -> tuple[Array, Array]:
        """(mean [C], biased variance [C]) of x [N,C,H,W] or [N,C] over all axes but C; sound for |mean| ≫ std."""

    @abstractmethod
    def batch_norm_invstd(
        self,
        mean: Array,
        variance: Array,
        eps: float,
        running: Sequence[Array | None] = (None, None),
        momentum: float = 0.0,
        unbiased: float = 1.0,
    ) -> Array:
        """1 / √(variance + eps) [C]. In place, the running mean += momentum · (mean − running mean), and the running
        variance goes towards unbiased · variance likewise. All [C] and of one dtype, float32 or float64."""

    def batch_norm_affine(
        self, mean: Array, variance: Array, weight: Array | None, bias: Array | None, eps: float
    ) -> tuple[Array, Array]:
        """(scale, shift) [C]: scale · x + shift is (x − mean) · weight / √(variance + eps) + bias, up to rounding.

        All are of one floating type, and computed in float32 if that is a half type.
        """
        dtype = variance.dtype
        mean, variance, weight, bias = (
            a if a is None or not is_half(a.dtype) else a.astype(np.float32) for a in (mean, variance, weight, bias)
        )
        with np.errstate(all="ignore"):
            invstd = self.batch_norm_invstd(mean, variance, eps)
            scale = invstd if weight is None else invstd * weight
            shift = -mean * scale if bias is None else -mean * scale + bias
            return scale.astype(dtype, copy=False), shift.astype(dtype, copy=False)

    @abstractmethod
    def batch_norm_forward(
        self,
        x: Array,
        mean: Array,
        invstd: Array,
        weight: Array | None,
        bias: Array | None,
        residual: Array | None = None,
        activation: str | None = None,
    ) -> Array:
        """y = f((x − mean) · invstd · weight + bias + residual), per channel; None stands for 1 and 0.

        f is nothing, or an activation whose backward pass needs only the output; residual has x's shape and dtype.
        """

    @abstractmethod
    def batch_norm_backward(
        self,
        dy: Array,
        x: Array,
        mean: Array,
        invstd: Array,
        weight: Array | None,
        training: bool,
        bias: Array | None = None,
        y: Array | None = None,
        activation: str | None = None,
        residual: bool = False,
    ) -> tuple[Array, Array, Array, Array | None]:
        """(dx, dweight [C], dbias [C], dr). With training, mean and invstd are functions of x, else constants:

        dr = dy·f'(y), the gradient of a residual (None unless there was one; dy itself without an activation);
        dbias = Σ dr; dweight = Σ dr·x̂ with x̂ = (x − mean)·invstd;
        dx = weight·invstd·(dr − [training] (dbias + x̂·dweight)/M) with M = N·H·W.
        bias and y, the output, are needed with an activation alone; a backend may compute y again instead.
        """

    # -- instance normalisation ------------------------------------------------------------------------

    @abstractmethod
    def instance_norm_statistics(self, x: Array) -> tuple[Array, Array]:
        """(mean [N,C], biased variance [N,C]) of x [N,C,H,W] over H and W; sound for |mean| ≫ std."""

    @abstractmethod
    def instance_norm_forward(
        self, x: Array, mean: Array, invstd: Array, weight: Array | None, bias: Array | None
    ) -> Array:
        """y = (x − mean) · invstd · weight + bias; mean, invstd [N,C], weight, bias [C], where None stands for 1 and 0.

        With a half type mean, invstd, weight and bias are float32, as for batch_norm.
        """

    @abstractmethod
    def instance_norm_backward(
        self, dy: Array, x: Array, mean: Array, invstd: Array, weight: Array | None
    ) -> tuple[Array, Array, Array]:
        """(dx, dweight [C], dbias [C]), where mean and invstd are functions of x.

        With x̂ = (x − mean)·invstd each image has dbias_n = Σ dy and dweight_n = Σ dy·x̂, which add up to dbias and
        dweight; dx = weight·invstd·(dy − (dbias_n + x̂·dweight_n)/M) with M = H·W.
        """

    # -- products and losses ---------------------------------------------------------------------------

    @abstractmethod
    def matmul(self, a: Array, b: Array, trans_a: bool = False, trans_b: bool = False) -> Array:
        """op(a) @ op(b), op transposing the last two axes. Both have two or more axes; the leading ones broadcast."""

    @abstractmethod
    def softmax_cross_entropy_forward(
        self, logits: Array, labels: Array, weight: Array | None, smoothing: float, ignore_index: int
    ) -> tuple[Array, Array]:
        """(loss [M], logsumexp [M]) of logits [M,C], labels int [M] in 0…C−1 or ignore_index (loss 0).

        With z = logits − max_c logits, logsumexp = log Σ_c exp(z): small, so nothing is lost for logits of any size.
        loss = (1 − smoothing)·weight[label]·(logsumexp − z[label]) + smoothing/C·Σ_c weight[c]·(logsumexp − z[c]).
        """

    @abstractmethod
    def softmax_cross_entropy_backward(
        self,
        dloss: Array,
        logits: Array,
        logsumexp: Array,
        labels: Array,
        weight: Array | None,
        smoothing: float,
        ignore_index: int,
    ) -> Array:
        """dlogits [M,C] for dloss [M]."""

    # -- indexing --------------------------------------------------------------------------------------

    @abstractmethod
    def index_backward(self, dy: Array, index: Any, shape: tuple[int, ...]) -> Array:
        """dx of `shape`, zero but for dx[index] += dy, where an element chosen more than once gets each share in order.

        `index` is what x was indexed with: ints, slices, None, Ellipsis, integer and boolean numpy arrays (host).
        """

    # -- optimisers ------------------------------------------------------------------------------------

    @abstractmethod
    def sgd_update(
        self,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        moments: Sequence[Array | None],
        settings: Live[SGDSettings],
    ) -> list[Array | None]:
        """One step of torch.optim.SGD on all parameters, in place; returns the moments (a None becomes the gradient).

        g += weight_decay·w; m = momentum·m + (1 − dampening)·g (m = g at first); g = g + momentum·m if nesterov else m;
        w −= lr·g.
        """

    @abstractmethod
    def adam_update(
        self,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        exp_avgs: Sequence[Array],
        exp_avg_sqs: Sequence[Array],
        settings: Live[AdamSettings],
    ) -> None:
        """One step of torch.optim.Adam (AdamW if decoupled); parameters and both moments change in place."""

    @abstractmethod
    def rmsprop_update(
        self,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        square_avgs: Sequence[Array],
        moments: Sequence[Array | None],
        settings: Live[RMSpropSettings],
    ) -> list[Array | None]:
        """One step of torch.optim.RMSprop (not centred), in place; returns the moments as sgd_update does."""
