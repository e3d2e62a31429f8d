"""The NumPy backend: trains on any machine, and is the numerical reference of the others."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np

from gpucnn.backends import (
    numpy_activation,
    numpy_batch_norm,
    numpy_conv,
    numpy_conv_pool,
    numpy_elementwise,
    numpy_instance_norm,
    numpy_pool,
)
from gpucnn.backends.base import (
    NO_TAP,
    AdamSettings,
    Array,
    Backend,
    Divisor,
    RMSpropSettings,
    SGDSettings,
    storage_view,
)
from gpucnn.backends.numpy_parallel import workers
from gpucnn.backends.precision import operand_dtype, precision
from gpucnn.dtypes import is_half
from gpucnn.geometry import Size, Window
from gpucnn.live import Live

B = TypeVar("B", bound="NumpyBackend")
P = ParamSpec("P")
R = TypeVar("R")


def in_float32(primitive: Callable[Concatenate[B, Array, P], R]) -> Callable[Concatenate[B, Array, P], R]:
    """Half arrays become float32 for a primitive; its result is rounded to the type of its first argument.

    Of several results those with more than one axis are, but for integers: what belongs to a channel stays float32.
    """

    @wraps(primitive)
    def cast(self: B, first: Array, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not is_half(first.dtype):
            return primitive(self, first, *args, **kwargs)
        named: dict[str, Any] = {name: widened(value) for name, value in kwargs.items()}
        result: Any = primitive(self, widened(first), *map(widened, args), **named)
        if isinstance(result, tuple):
            result = tuple(
                self.astype(r, first.dtype) if r is not None and r.ndim > 1 and r.dtype.kind == "f" else r
                for r in result
            )
        else:
            result = self.astype(result, first.dtype)
        return result  # type: ignore[no-any-return]

    return cast


def in_precision(product: Callable[Concatenate[B, Array, Array, P], Array]) -> Callable[..., Array]:
    """The operands of a product, its first two arguments, are rounded to the half type that the precision asks for."""

    @wraps(product)
    def rounded(self: B, a: Array, b: Array, /, *args: P.args, **kwargs: P.kwargs) -> Array:
        return product(self, *self.rounded(a, b), *args, **kwargs)

    return rounded


class NumpyBackend(Backend):
    """Vectorised NumPy and BLAS in float32 and float64; float16 and bfloat16 by way of float32."""

    name = "numpy"
    xp = np
    pools_along = numpy_conv_pool.MOST_CHANNELS

    def __init__(self) -> None:
        keep_freed_memory()

    # -- arrays -------------------------------------------------------------------------------------------------------

    def asarray(self, data: Any, dtype: Any = None) -> Array:
        array = np.asarray(data, dtype)
        return indexed(storage(array))

    def to_numpy(self, array: Array) -> Any:
        return array

    def synchronize(self) -> None:
        pass

    def rounded(self, *operands: Array) -> Sequence[Array]:
        """Those of float32 in the half type that the precision asks for, held in float32; others as they are."""
        own, dtype = operands[0].dtype, operand_dtype(operands[0].dtype)
        return operands if dtype == own else [self.astype(self.astype(a, dtype), own) for a in operands]

    def in_a_row(self) -> AbstractContextManager[None]:
        return workers.in_a_row()

    # -- convolution --------------------------------------------------------------------------------------------------

    @in_precision
    @in_float32
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
        residual = None if residual is None else storage(residual)
        return numpy_conv.conv2d_forward(x, w, numpy_conv.Epilogue(b, scale, activation, residual), window, groups)

    @in_precision
    @in_float32
    def conv2d_backward_input(self, dy: Array, w: Array, window: Window, groups: int, size: Size) -> Array:
        return numpy_conv.conv2d_backward_input(dy, w, window, groups, size)

    @in_precision
    @in_float32
    def conv2d_backward_weight(self, dy: Array, x: Array, window: Window, groups: int) -> Array:
        return numpy_conv.conv2d_backward_weight(dy, x, window, groups)

    def conv2d_backward(self, dy: Array, x: Array, w: Array, window: Window, groups: int) -> tuple[Array, Array]:
        if operand_dtype(x.dtype) == x.dtype and numpy_conv.shares_columns(dy, x, w, window, groups):
            both = numpy_conv.conv2d_backward(dy, x, w, window)
            if both is not None:
                return both
        return super().conv2d_backward(dy, x, w, window, groups)

    @in_float32
    def bias_backward(self, dy: Array) -> Array:
        return numpy_elementwise.channel_sums(storage(dy))

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
        if operand_dtype(x.dtype) == x.dtype and numpy_conv_pool.pays(x, w, window, groups, pool):
            at_once = numpy_conv_pool.forward(x, w, b, window, pool, activation, need_tap)
            if at_once is not None:
                return at_once
        y, tap = self.max_pool2d_forward(self.conv2d_forward(x, w, b, window, groups), pool, "max", need_tap)
        if activation is not None:  # on fewer elements than before the pooling, and the same
            y = self.activation_forward(y, activation, 0.0)
            if tap is not None:
                with np.errstate(invalid="ignore"):  # NaN in bfloat16
                    alive = storage(y) > 0
                np.bitwise_or(storage(tap), alive.view(np.uint8) - 1, out=storage(tap))  # with 0, or with NO_TAP
        return y, tap

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
        if is_half(dy.dtype):
            arguments = (widened(x), widened(w), window, groups, pool, needed)
            with precision("fp32"):  # they are what the operands are to be
                dx, dw, db = self.conv2d_max_pool2d_backward(widened(dy), tap, *arguments)
            dx, dw, db = (None if a is None else self.astype(a, dy.dtype) for a in (dx, dw, db))
            return dx, dw, db
        if operand_dtype(x.dtype) == x.dtype and numpy_conv_pool.pays(x, w, window, groups, pool):
            return numpy_conv_pool.backward(dy, tap, x, w, window, pool, needed)
        dx, dw, db = None, None, None
        size = (x.shape[2], x.shape[3])
        if needed[0] or needed[1]:
            shares, images, filters = self.rounded(dy, x, w)
            of_sums = self.max_pool2d_backward(shares, tap, pool, window.output_size(size))
            dx = numpy_conv.conv2d_backward_input(of_sums, filters, window, groups, size) if needed[0] else None
            dw = numpy_conv.conv2d_backward_weight(of_sums, images, window, groups) if needed[1] else None
        if needed[2]:
            shares = storage(dy)
            alive = np.empty_like(shares)
            numpy_elementwise.in_blocks(
                lambda tap, dy, out: numpy_elementwise.select(tap != NO_TAP, dy, out), storage(tap), shares, alive
            )
            db = numpy_elementwise.channel_sums(alive)
        return dx, dw, db

    # -- pooling ------------------------------------------------------------------------------------------------------

    @in_float32
    def max_pool2d_forward(
        self, x: Array, window: Window, mode: Literal["max", "min"], need_tap: bool
    ) -> tuple[Array, Array | None]:
        return numpy_pool.max_pool2d_forward(x, window, mode, need_tap)

    @in_float32
    def max_pool2d_backward(self, dy: Array, tap: Array, window: Window, size: Size) -> Array:
        return numpy_pool.max_pool2d_backward(dy, tap, window, size)

    @in_float32
    def avg_pool2d_forward(self, x: Array, window: Window, divisor: Divisor) -> Array:
        return numpy_pool.avg_pool2d_forward(x, window, divisor)

    @in_float32
    def avg_pool2d_backward(self, dy: Array, window: Window, divisor: Divisor, size: Size) -> Array:
        return numpy_pool.avg_pool2d_backward(dy, window, divisor, size)

    # -- elementwise --------------------------------------------------------------------------------------------------

    @in_float32
    def activation_forward(self, x: Array, kind: str, parameter: float) -> Array:
        return indexed(numpy_activation.activation_forward(storage(x), kind, parameter))

    @in_float32
    def activation_backward(self, dy: Array, saved: Array, kind: str, parameter: float) -> Array:
        return indexed(numpy_activation.activation_backward(storage(dy), storage(saved), kind, parameter))

    def activation_bias_backward(self, dy: Array, y: Array, kind: str) -> tuple[Array, Array]:
        if is_half(dy.dtype):
            dx = self.activation_backward(dy, y, kind, 0.0)
            return dx, self.bias_backward(dx)
        dx, db = numpy_activation.activation_bias_backward(storage(dy), storage(y), kind)
        return indexed(dx), db

    @in_float32
    def dropout(self, x: Array, p: float, position: Live[tuple[int, int]]) -> Array:
        return indexed(numpy_elementwise.dropout(storage(x), p, *position()))

    # -- batch normalisation ------------------------------------------------------------------------------------------

    def batch_norm_statistics(self, x: Array) -> tuple[Array, Array]:
        return numpy_batch_norm.statistics(storage(widened(x)))

    @np.errstate(all="ignore")
    def batch_norm_invstd(
        self,
        mean: Array,
        variance: Array,
        eps: float,
        running: Sequence[Array | None] = (None, None),
        momentum: float = 0.0,
        unbiased: float = 1.0,
    ) -> Array:
        for moved, value in zip(running, (mean, unbiased * variance), strict=True):
            if moved is not None:
                moved += momentum * (value - moved)
        return 1 / np.sqrt(variance + eps)

    @in_float32
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
        residual = None if residual is None else storage(residual)
        return indexed(numpy_batch_norm.forward(storage(x), mean, invstd, weight, bias, residual, activation))

    @in_float32
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
        y = None if activation is None else storage(y)
        dx, dweight, dbias, dr = numpy_batch_norm.backward(
            storage(dy), storage(x), mean, invstd, weight, training, y, activation, residual
        )
        return indexed(dx), dweight, dbias, indexed(dr) if residual else None

    # -- instance normalisation ---------------------------------------------------------------------------------------

    def instance_norm_statistics(self, x: Array) -> tuple[Array, Array]:
        return numpy_instance_norm.statistics(storage(widened(x)))

    @in_float32
    def instance_norm_forward(
        self, x: Array, mean: Array, invstd: Array, weight: Array | None, bias: Array | None
    ) -> Array:
        return indexed(numpy_instance_norm.forward(storage(x), mean, invstd, weight, bias))

    @in_float32
    def instance_norm_backward(
        self, dy: Array, x: Array, mean: Array, invstd: Array, weight: Array | None
    ) -> tuple[Array, Array, Array]:
        dx, dweight, dbias = numpy_instance_norm.backward(storage(dy), storage(x), mean, invstd, weight)
        return indexed(dx), dweight, dbias

    # -- products and losses ------------------------------------------------------------------------------------------

    @in_precision
    @in_float32
    def matmul(self, a: Array, b: Array, trans_a: bool = False, trans_b: bool = False) -> Array:
        a = a.swapaxes(-1, -2) if trans_a else a
        b = b.swapaxes(-1, -2) if trans_b else b
        return indexed(storage(numpy_elementwise.matmul(a, b)))

    @np.errstate(all="ignore")
    def softmax_cross_entropy_forward(
        self, logits: Array, labels: Array, weight: Array | None, smoothing: float, ignore_index: int
    ) -> tuple[Array, Array]:
        logits = logits - logits.max(axis=1, keepdims=True)
        logsumexp = np.log(np.exp(logits).sum(axis=1))
        rows, target, share = self._targets(logits, labels, weight, smoothing, ignore_index)
        loss = np.where(labels == ignore_index, 0, share * (logsumexp - logits[rows, target]))
        if smoothing:
            surprise = logsumexp[:, None] - logits
            spread = (
                surprise.sum(axis=1) if weight is None else numpy_elementwise.matmul(surprise, weight[:, None])[:, 0]
            )
            loss += np.where(labels == ignore_index, 0, smoothing / logits.shape[1] * spread).astype(logits.dtype)
        return loss, logsumexp

    @np.errstate(all="ignore")
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
        rows, target, share = self._targets(logits, labels, weight, smoothing, ignore_index)
        probability = np.exp(logits - logits.max(axis=1, keepdims=True) - logsumexp[:, None])
        dlogits = probability * share[:, None]
        dlogits[rows, target] -= share
        if smoothing:
            spread = weight if weight is not None else np.ones(logits.shape[1], logits.dtype)
            even = (smoothing / logits.shape[1]) * (probability * spread.sum() - spread)
            dlogits += np.where(labels[:, None] == ignore_index, 0, even).astype(logits.dtype)
        dlogits *= dloss[:, None]
        return dlogits

    @staticmethod
    def _targets(
        logits: Array, labels: Array, weight: Array | None, smoothing: float, ignore_index: int
    ) -> tuple[Array, Array, Array]:
        """(row numbers, labels with 0 for the ignored, the weight of each row's own class: 0 for the ignored)."""
        counted = labels != ignore_index
        target = np.where(counted, labels, 0)
        share = counted.astype(logits.dtype) * (1 - smoothing)
        return np.arange(len(labels)), target, share if weight is None else share * weight[target]

    # -- indexing -----------------------------------------------------------------------------------------------------

    @in_float32
    @np.errstate(all="ignore")
    def index_backward(self, dy: Array, index: Any, shape: tuple[int, ...]) -> Array:
        lengths = shape if len(shape) != 4 else (shape[0], shape[2], shape[3], shape[1])
        dx = indexed(np.zeros(lengths, dy.dtype))
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, np.ndarray) and part.dtype != np.bool_ for part in parts):
            np.add.at(dx, index, dy)  # integers may choose an element more than once
        else:
            dx[index] = dy
        return dx

    # -- optimisers ---------------------------------------------------------------------------------------------------

    @np.errstate(all="ignore")
    def sgd_update(
        self,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        moments: Sequence[Array | None],
        settings: Live[SGDSettings],
    ) -> list[Array | None]:
        lr, momentum, dampening, weight_decay, nesterov = settings()
        updated: list[Array | None] = []
        for w, g, m in zip(parameters, gradients, moments, strict=True):
            if weight_decay:
                g = g + weight_decay * w
            if momentum:
                if m is None:
                    m = g.copy(order="K")
                else:
                    m *= momentum
                    m += (1 - dampening) * g if dampening else g
                g = g + momentum * m if nesterov else m
            w -= lr * g
            updated.append(m)
        return updated

    @np.errstate(all="ignore")
    def adam_update(
        self,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        exp_avgs: Sequence[Array],
        exp_avg_sqs: Sequence[Array],
        settings: Live[AdamSettings],
    ) -> None:
        step, lr, betas, eps, weight_decay, decoupled = settings()
        correction1, correction2 = 1 - betas[0] ** step, 1 - betas[1] ** step
        for w, g, m, v in zip(parameters, gradients, exp_avgs, exp_avg_sqs, strict=True):
            if decoupled:
                w *= 1 - lr * weight_decay
            elif weight_decay:
                g = g + weight_decay * w
            m *= betas[0]
            m += (1 - betas[0]) * g
            v *= betas[1]
            v += (1 - betas[1]) * (g * g)
            w -= (lr / correction1) * m / (np.sqrt(v) / math.sqrt(correction2) + eps)

    @np.errstate(all="ignore")
    def rmsprop_update(
        self,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        square_avgs: Sequence[Array],
        moments: Sequence[Array | None],
        settings: Live[RMSpropSettings],
    ) -> list[Array | None]:
        lr, alpha, eps, weight_decay, momentum = settings()
        updated: list[Array | None] = []
        for w, g, v, m in zip(parameters, gradients, square_avgs, moments, strict=True):
            if weight_decay:
                g = g + weight_decay * w
            v *= alpha
            v += (1 - alpha) * (g * g)
            step = g / (np.sqrt(v) + eps)
            if momentum:
                if m is None:
                    m = step
                else:
                    m *= momentum
                    m += step
                step = m
            w -= lr * step
            updated.append(m)
        return updated


def keep_freed_memory() -> None:
    """Have GNU libc keep up to 512 MiB of freed memory for the next arrays, in this process.

    Else each step of a larger net hands its memory back to the system and faults it in again page by page: a tenth of
    the time of ResNet-20. Other C libraries, and a MALLOC_TRIM_THRESHOLD_ in the environment, are left alone.
    """
    if platform.libc_ver()[0] == "glibc" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
        mallopt(trim_threshold, 512 << 20)
        mallopt(mmap_threshold, 512 << 20)


def widened(value: Any) -> Any:
    """A half array in float32; anything else as it is."""
    return value.astype(np.float32) if isinstance(value, np.ndarray) and is_half(value.dtype) else value


def storage(x: Array) -> Array:
    """The array in storage order and dense: [N,H,W,C] for four axes."""
    return np.asarray(storage_view(x), order="C")


def indexed(x: Array) -> Array:
    """The inverse view of `storage`."""
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x
