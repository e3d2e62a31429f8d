"""KernelBackend: the host side of every CUDA kernel, written once.

It allocates, picks tile, grid, block and constants, and launches; a Device below it compiles and runs. Arrays are
handed to kernels in storage order: [N, H, W, C] and [K, R, S, C], contiguous. An empty result is not launched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

from gpucnn.backends.base import AdamSettings, Array, Backend, Divisor, RMSpropSettings, SGDSettings, storage_view
from gpucnn.backends.precision import get_precision, operand_dtype
from gpucnn.backends.tuning import Tuning, in_force, wanted
from gpucnn.backends.variants import (
    THREADS,
    Convolution,
    Operation,
    Problem,
    Product,
    Variant,
    ceil_div,
    parts_of,
    usual,
    vector,
    walk,
)
from gpucnn.devices import Device
from gpucnn.devices.tensor_map import TensorMap
from gpucnn.dtypes import is_floating, is_half
from gpucnn.geometry import Size, Window
from gpucnn.live import Live

# Kernels count with 32 bits. The margin is for tiles that reach past the end.
MOST_ELEMENTS = 2**31 - 2**20

# The types of C++ that kernels/convert.cu converts from, and the floating ones to.
_SOURCES = {
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float32": "float",
    "float64": "double",
    "uint8": "unsigned char",
    "int32": "int",
    "int64": "long long",
}

# Families whose convolution computes the statistics of its results too, if asked to: their tiles have many rows.
_WITH_STATISTICS = ("fma", "mma", "wgmma")
# And those that can cut the sums of a forward convolution into parts.
_IN_PARTS = ("gemm", "fma", "mma")

_BLOCK_ELEMENTS = 1024  # of a block of an optimiser kernel


@cache  # NumPy takes 5 µs to find a dtype's name
def _source(dtype: np.dtype[Any]) -> str:
    return _SOURCES.get(dtype.name, "")


def _scalar(array: Array) -> dict[str, Any]:
    return {"SCALAR": _source(array.dtype)}


def _arithmetic(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that a kernel computes in: its Scalar, where dtype is its SCALAR."""
    return np.dtype(np.float32) if is_half(dtype) else dtype


def _scalar_not_half(array: Array, what: str) -> dict[str, Any]:
    if is_half(array.dtype):
        raise TypeError(f"there is no kernel for {what} in {array.dtype}; convert it with .float()")
    return _scalar(array)


def _window(window: Window) -> dict[str, Any]:
    return {
        "KERNEL_H": window.kernel[0],
        "KERNEL_W": window.kernel[1],
        "STRIDE_H": window.stride[0],
        "STRIDE_W": window.stride[1],
        "PAD_TOP": window.padding[0],
        "PAD_LEFT": window.padding[2],
        "DILATION_H": window.dilation[0],
        "DILATION_W": window.dilation[1],
    }


def _kind(activation: str | None) -> dict[str, Any]:
    return {"KIND": (activation or "none").upper()}


def _convolution(array: Array, window: Window, activation: str | None = None) -> dict[str, Any]:
    return _scalar(array) | _window(window) | _kind(activation)


def _pooled_convolution(
    array: Array, window: Window, pool: Window, channels: int, activation: str | None = None
) -> dict[str, Any]:
    of_pool = {f"POOL_{name.removeprefix('KERNEL_')}": value for name, value in _window(pool).items()}
    return _convolution(array, window, activation) | of_pool | {"CHANNELS": channels}


def _filters_at_once(filters: int, depth: int) -> int:
    """How many of a group's filters a block of conv2d_max_pool2d_forward computes: at most eight, as many in each
    block, and with their biases in 48 KiB of shared memory in double too."""
    parts = ceil_div(filters, max(min(8, 6144 // (depth + 1)), 1))
    return ceil_div(filters, parts)


def _divisor(window: Window, divisor: Divisor) -> tuple[dict[str, Any], int]:
    """The constants of an average, and the number to divide by if it is one."""
    if isinstance(divisor, int):
        return _window(window) | {"DIVISOR": "NUMBER"}, divisor
    if divisor == "real":
        return _window(window) | {"DIVISOR": "REAL"}, 0
    ends = {"PAD_BOTTOM": window.padding[1], "PAD_RIGHT": window.padding[3]}
    return _window(window) | ends | {"DIVISOR": "WINDOW"}, 0


class KernelBackend(Backend):
    """Every primitive as a launch of a kernel from kernels/ on a device."""

    def __init__(self, device: Device, chooser: Callable[[Problem], Variant] | None = None) -> None:
        self.device = device
        self.name = device.name
        self.xp = device.xp
        self._block_tables: dict[tuple[int, ...], tuple[Array, Array, int]] = {}
        self._chooser = chooser
        self._tunings: dict[str, Tuning | None] = {}  # by the name that GPUCNN_TUNING gives

    def choose(self, problem: Problem) -> Variant:
        """Which kernel computes a convolution or a product: the chooser's, the measured one, or the usual one."""
        if self._chooser is not None:
            return self._chooser(problem)
        tuning = self.tuning
        return usual(problem) if tuning is None else tuning.choices.get(problem) or usual(problem)

    @property
    def tuning(self) -> Tuning | None:
        """The measurements that kernels are chosen by now. A file is read once."""
        name = wanted()
        if name is None:
            return None
        if name not in self._tunings:
            self._tunings[name] = in_force(self.device, name)
        return self._tunings[name]

    @property
    def tuning_hash(self) -> str | None:
        return None if self.tuning is None else self.tuning.hash

    # -- arrays -------------------------------------------------------------------------------------------------------

    @property
    def capturing(self) -> bool:
        return self.device.capturing is not None

    def keep(self, *arrays: Array) -> None:
        self.device.keep(arrays)

    @property
    def unread(self) -> bool:
        return self.capturing or self.device.measuring is not None

    def owns(self, data: object) -> bool:
        return self.device.owns(data)

    def asarray(self, data: Any, dtype: Any = None) -> Array:
        if isinstance(data, np.ndarray) and not data.flags.aligned:
            data = data.copy()  # a kernel reads an element at once, from a multiple of its size
        array = data if self.owns(data) else self.device.upload(np.asarray(data))
        return self.contiguous(array) if dtype is None or array.dtype == dtype else self.astype(array, dtype)

    def contiguous(self, array: Array) -> Array:
        if array.ndim != 4 or not is_floating(array.dtype) or array.transpose(0, 2, 3, 1).flags.c_contiguous:
            return super().contiguous(array)
        return self.astype(array, array.dtype)

    def astype(self, array: Array, dtype: Any) -> Array:
        source, target = _source(array.dtype), np.dtype(dtype)
        if not source or not is_floating(target) or not array.size:
            return super().astype(array, dtype)
        constants = {"SCALAR": _source(target), "SOURCE": source}
        y, storage = self._empty(array.shape, target)
        if array.ndim == 4 and array.flags.c_contiguous:
            n, c, h, w = array.shape
            grid = n * ceil_div(c, 32) * ceil_div(h * w, 32)
            self.device.launch(
                "convert.cu", "channels_last", constants, (grid, 1, 1), (256, 1, 1), array, storage, n, c, h * w
            )
        else:
            self._each("convert.cu", "convert", constants, y.size, self._storage(array), storage, y.size)
        return y

    def to_numpy(self, array: Array) -> Any:
        return self.device.to_numpy(array)

    def synchronize(self) -> None:
        self.device.synchronize()

    def _storage(self, array: Array) -> Array:
        """The array as the kernels take it: contiguous, four axes as [N, H, W, C]."""
        _check_size(array.shape)
        return self.xp.asarray(storage_view(array), order="C")

    def _aligned(self, storage: Array) -> Array:
        """The same for kernels that read 16 bytes at once, from a multiple of 16."""
        return self.xp.array(storage) if self.device.address(storage) % 16 else storage

    def _empty(self, shape: Sequence[int], dtype: Any) -> tuple[Array, Array]:
        """A new array of that shape and its storage, the same memory."""
        _check_size(shape)
        if len(shape) != 4:
            array = self.xp.empty(shape, dtype)
            return array, array
        n, c, h, w = shape
        storage = self.xp.empty((n, h, w, c), dtype)
        return storage.transpose(0, 3, 1, 2), storage

    # -- launches -----------------------------------------------------------------------------------------------------

    def _problem(self, operation: Operation, shape: Convolution | Product, constants: dict[str, Any]) -> Problem:
        return Problem(operation, shape, constants["SCALAR"], get_precision(), self.device.capability)

    def _compute(
        self, problem: Problem, variant: Variant, constants: dict[str, Any], operands: Sequence[Array], *others: Any
    ) -> None:
        """Launch the kernel of a variant. `operands` are in storage order."""
        constants, operands = self._rounded(constants, *operands)
        if variant.family not in ("direct", "gemm"):
            operands = [self._aligned(operand) for operand in operands]
        if variant.family == "winograd":
            self._winograd(problem, variant, constants, operands, others)
            return
        if variant.family == "wgmma":
            operands = self._tensor_maps(problem, variant, *operands)
        kind, _, direction = problem.operation.partition("_")
        family = kind if variant.family == "gemm" else f"{kind}_{variant.family}"
        name = f"{family}_{direction}" if direction else family
        grid, block = (variant.blocks, 1, 1), (variant.threads, 1, 1)
        self.device.launch(f"{family}.cu", name, constants | variant.constants, grid, block, *operands, *others)

    def _rounded(self, constants: dict[str, Any], *operands: Array) -> tuple[dict[str, Any], list[Array]]:
        """The constants and operands, in storage order, to launch a product with: of float32 those are rounded to the
        half type that the precision asks for."""
        own, dtype = operands[0].dtype, operand_dtype(operands[0].dtype)
        if dtype == own:
            return constants, list(operands)
        types = {"SCALAR": _source(dtype), "RESULT": _source(own)}
        return constants | types, [self.astype(operand.ravel(), dtype) for operand in operands]

    def _tensor_maps(self, problem: Problem, variant: Variant, a: Array, b: Array) -> list[TensorMap]:
        """The operands as kernels/conv2d_wgmma.cu and matmul_wgmma.cu have them copied."""
        s, make, tile = problem.shape, self.device.tensor_map, variant.constants
        step = tile["TILE_K"]
        if isinstance(s, Product):
            of_a = a.reshape((-1, s.depth, s.rows) if s.trans_a else (-1, s.rows, s.depth))
            of_b = b.reshape((-1, s.columns, s.depth) if s.trans_b else (-1, s.depth, s.columns))
            return [make(of_a, (1, tile["BOX_A"], step)), make(of_b, (1, tile["BOX_B"], step))]
        x, dy, taps = (s.n, s.h, s.w, s.c), (s.n, s.p, s.q, s.k), s.window.taps
        if problem.operation == "conv2d_backward_weight":
            return [make(a.reshape(1, -1, s.k), (1, step, step)), make(b.reshape(x), (step, step), walk(problem))]
        if problem.operation == "conv2d_forward":
            w = make(b.reshape(s.k, taps, s.c), (tile["TILE_N"], 1, step))
            return [make(a.reshape(x), (tile["TILE_M"], step), walk(problem)), w]
        w = b.reshape(1, s.k, -1)
        if tile["TURNED"]:
            w = self._storage(self.contiguous(w.reshape(1, s.k, taps, s.c))).reshape(1, -1, s.k)
        pixels = make(a.reshape(dy), (tile["TILE_M"], step), walk(problem))
        return [pixels, make(w, (1, tile["BOX_W"], step))]

    def _winograd(
        self,
        problem: Problem,
        variant: Variant,
        constants: dict[str, Any],
        operands: Sequence[Array],
        others: Sequence[Any],
    ) -> None:
        """Launch the transform of the filters and the convolution by them. The input's gradient is the convolution of
        dy by the turned filters, padded by what is left of them."""
        (x, w), s = operands, problem.shape
        assert isinstance(s, Convolution)
        turned = problem.operation == "conv2d_backward_input"
        terms, columns = (s.k, s.c) if turned else (s.c, s.k)
        _check_size((terms, 16, columns))
        u = self.xp.empty((terms, 16, columns), x.dtype)
        threads = 8 * ceil_div(terms, 8) * (columns // 4)
        of_filters = _scalar(x) | {"TURNED": int(turned)}
        self._each("winograd_filters.cu", "winograd_filters", of_filters, threads, w, u, s.c, s.k)
        arguments = (*others[:4], *s[:7])
        if turned:
            top, _, left, _ = s.window.padding
            constants = constants | {"PAD_TOP": 2 - top, "PAD_LEFT": 2 - left}
            arguments = (None, None, None, others[0], s.n, s.p, s.q, s.k, s.c, s.h, s.w)
        grid, block = (variant.blocks, 1, 1), (variant.threads, 1, 1)
        self.device.launch("conv2d_winograd.cu", "conv2d_winograd", constants, grid, block, x, u, *arguments)

    def _each(self, file: str, name: str, constants: dict[str, Any], threads: int, *arguments: Any) -> None:
        """Launch a kernel with that many threads in a row."""
        self.device.launch(file, name, constants, (ceil_div(threads, THREADS), 1, 1), (THREADS, 1, 1), *arguments)

    def _by_channels(
        self,
        file: str,
        name: str,
        constants: dict[str, Any],
        inputs: Sequence[Array | None],
        result: Array,
        *others: Any,
    ) -> None:
        """Launch a kernel with channels.cuh, of arrays in storage order: a thread computes neighbouring channels of the
        result."""
        first: Array = inputs[0]
        of = _scalar(first) | constants
        of["VECTOR"] = vector(first.shape[-1], of["SCALAR"])
        aligned = [None if array is None else self._aligned(array) for array in inputs]
        self._each(file, name, of, result.size // of["VECTOR"], *aligned, result, *others)

    def _columns(
        self,
        file: str,
        name: str,
        rows: int,
        columns: int,
        results: int,
        *arguments: Array | None,
        constants: dict[str, Any] | None = None,
        most: int = 64,
        images: tuple[int, ...] = (),
    ) -> tuple[list[Array], int, int]:
        """Launch a kernel made of column_sum: (its results [parts, columns], at most `most` parts, length of a part).

        The length is a multiple of 8, so that eight rows can be one term. images: (N,) where each of N images has such
        rows and results [N, parts, columns] of its own.
        """
        width = 8 if columns <= 8 else 32
        tiles = math.prod(images) * ceil_div(columns, width)
        length = 8 * ceil_div(parts_of(rows, tiles, most=most)[0], 8)
        parts = ceil_div(rows, length)
        first: Array = arguments[0]
        out = [self.xp.empty((*images, parts, columns), _arithmetic(first.dtype)) for _ in range(results)]
        of_all, grid = _scalar(first) | {"COLUMNS": width} | (constants or {}), (tiles * parts, 1, 1)
        numbers = (*images, rows, columns, parts, length)
        self.device.launch(file, name, of_all, grid, (256, 1, 1), *arguments, *out, *numbers)
        return out, parts, length

    def _sum_parts(self, terms: Array, parts: int, total: Array) -> None:
        self._each("sums.cu", "sum_parts", _scalar(total), total.size, terms, total, parts, total.size)

    def _in_parts(self, total: Array, parts: int, launch: Callable[[Array], None]) -> None:
        """total = the sum of what `launch` writes into [parts, *total.shape], in the type that kernels compute in."""
        if parts == 1 and not is_half(total.dtype):
            launch(total)
            return
        _check_size((parts, *total.shape))
        terms = self.xp.empty((parts, *total.shape), _arithmetic(total.dtype))
        launch(terms)
        self._sum_parts(terms, parts, total)

    # -- convolution --------------------------------------------------------------------------------------------------

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
        return self._conv2d_forward(x, w, (b, scale, residual), window, groups, activation)[0]

    def conv2d_statistics(
        self, x: Array, w: Array, b: Array | None, window: Window, groups: int
    ) -> tuple[Array, Array, Array]:
        y, parts = self._conv2d_forward(x, w, (b, None, None), window, groups, statistics=True)
        return y, *(self.batch_norm_statistics(y) if parts is None else self._statistics_of_parts(y, *parts))

    def _conv2d_forward(
        self,
        x: Array,
        w: Array,
        applied: Sequence[Array | None],
        window: Window,
        groups: int,
        activation: str | None = None,
        statistics: bool = False,
    ) -> tuple[Array, tuple[Array, Array, int] | None]:
        """y, its sums with b, scale and residual applied; and if its statistics are wanted, by a kernel that has them:
        means and squares of parts of that length."""
        (n, c, h, width), k = x.shape, w.shape[0]
        p, q = window.output_size((h, width))
        y, storage = self._empty((n, k, p, q), x.dtype)
        if not y.size:
            return y, None
        shape, constants = Convolution(n, h, width, c, k, p, q, groups, window), _convolution(x, window, activation)
        problem = self._problem("conv2d_forward", shape, constants)
        variant = self.choose(problem)
        given = [None if a is None else self._storage(a) for a in applied]
        cut = (variant.parts, variant.length) if variant.family in _IN_PARTS else ()
        operands, numbers = (self._storage(x), self._storage(w)), (*shape[:-1], *cut)
        sums: list[Array | None] = [None, None] if variant.family in _WITH_STATISTICS else []
        if variant.parts > 1:  # their sums, in the type that they are computed in, and then what becomes of these
            _check_size((variant.parts, n * p * q, k))
            terms, of_terms = self.xp.empty((variant.parts, n * p * q, k), _arithmetic(y.dtype)), _kind(None)
            of_terms |= {"RESULT": _source(terms.dtype)} if is_half(y.dtype) else {}
            self._compute(problem, variant, constants | of_terms, operands, None, None, None, terms, *sums, *numbers)
            of_result = _kind(activation) | {"RESULT": _source(y.dtype)}
            inputs = (terms, *given)
            self._by_channels("conv2d_parts.cu", "conv2d_sum_parts", of_result, inputs, storage, *terms.shape)
            return y, None
        parts = None
        if statistics and sums:
            length = variant.constants["TILE_M"] * variant.constants["TILE_N"] // (variant.threads - variant.copying)
            sums = [self.xp.empty((ceil_div(n * p * q, length), k), _arithmetic(y.dtype)) for _ in sums]
            parts = (sums[0], sums[1], length)
        self._compute(problem, variant, constants, operands, *given, storage, *sums, *numbers)
        return y, parts

    def conv2d_backward_input(self, dy: Array, w: Array, window: Window, groups: int, size: Size) -> Array:
        (n, k, p, q), c = dy.shape, w.shape[1] * groups
        dx, storage = self._empty((n, c, *size), dy.dtype)
        if dx.size:
            shape, constants = Convolution(n, *size, c, k, p, q, groups, window), _convolution(dy, window)
            problem = self._problem("conv2d_backward_input", shape, constants)
            operands, numbers = (self._storage(dy), self._storage(w)), shape[:-1]
            self._compute(problem, self.choose(problem), constants, operands, storage, *numbers)
        return dx

    def conv2d_backward_weight(self, dy: Array, x: Array, window: Window, groups: int) -> Array:
        (n, k, p, q), (_, c, h, width) = dy.shape, x.shape
        dw, storage = self._empty((k, c // groups, *window.kernel), dy.dtype)
        if not n * p * q:
            storage[...] = 0
            return dw
        shape, constants = Convolution(n, h, width, c, k, p, q, groups, window), _convolution(dy, window)
        problem = self._problem("conv2d_backward_weight", shape, constants)
        variant = self.choose(problem)
        operands, numbers = (self._storage(dy), self._storage(x)), (*shape[:-1], variant.parts, variant.length)

        def launch(out: Array) -> None:
            self._compute(problem, variant, constants, operands, out, *numbers)

        self._in_parts(storage, variant.parts, launch)
        return dw

    def bias_backward(self, dy: Array) -> Array:
        k = dy.shape[1]
        rows = dy.size // max(k, 1)
        if not rows:
            return self.xp.zeros(k, dy.dtype)
        (sums,), parts, _ = self._columns("sums.cu", "bias_backward", rows, k, 1, self._storage(dy))
        return self._sum_of_parts(sums, parts, dy.dtype)

    def _sum_of_parts(self, sums: Array, parts: int, dtype: Any) -> Array:
        """The sum of [parts, K] in that type."""
        if parts == 1 and not is_half(dtype):
            return sums[0]
        total = self.xp.empty(sums.shape[1], dtype)
        self._sum_parts(sums, parts, total)
        return total

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
        (n, c, h, width), (k, channels) = x.shape, w.shape[:2]
        size = window.output_size((h, width))
        shape = (n, k, *pool.output_size(size))
        y, storage = self._empty(shape, x.dtype)
        tap, tap_storage = self._empty(shape, np.uint8) if need_tap else (None, None)
        if y.size:
            at_once = _filters_at_once(k // groups, window.taps * channels)
            constants = _pooled_convolution(x, window, pool, channels, activation) | {"FILTERS": at_once}
            pixels, layers = y.size // k, groups * ceil_div(k // groups, at_once)
            bias = None if b is None else self._storage(b)
            constants, operands = self._rounded(constants, self._storage(x), self._storage(w))
            arguments = (*operands, bias, storage, tap_storage)
            numbers = (n, h, width, c, k, *size, groups, *shape[2:])
            grid = (ceil_div(pixels, THREADS) * layers, 1, 1)
            name = "conv2d_max_pool2d_forward"
            self.device.launch("conv2d_max_pool2d.cu", name, constants, grid, (THREADS, 1, 1), *arguments, *numbers)
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
        (n, k, u, v), (_, c, h, width), channels = dy.shape, x.shape, w.shape[1]
        size = window.output_size((h, width))
        constants = _pooled_convolution(dy, window, pool, channels)
        dx, dw, db = None, None, None
        shares = (self._storage(dy), self._storage(tap))
        if needed[0]:
            dx, storage = self._empty(x.shape, dy.dtype)
            if dx.size:
                of_input, (filters,) = self._rounded(constants, self._storage(w))
                arguments = (*shares, filters, storage, n, h, width, c, k, *size, groups, u, v)
                name = "conv2d_max_pool2d_backward_input"
                self._each("conv2d_max_pool2d.cu", name, of_input, dx.size, *arguments)
        if needed[1] or needed[2]:
            dw, storage = self._empty(w.shape, dy.dtype)
            db = self.xp.empty(k, dy.dtype)
            if dy.size:
                self._sums_of_pooled(shares, x, storage, db, constants, (n, h, width, c, k, groups, u, v))
            else:
                storage[...], db[...] = 0, 0
        return dx, dw if needed[1] else None, db if needed[2] else None

    def _sums_of_pooled(
        self,
        shares: tuple[Array, Array],
        x: Array,
        dw: Array,
        db: Array,
        constants: dict[str, Any],
        numbers: tuple[int, ...],
    ) -> None:
        """Launch conv2d_max_pool2d_backward: many lanes a column, for there are few columns and many rows."""
        width, columns = 8, dw.shape[1] * len(db)
        tiles = ceil_div(columns, width)
        length, parts = parts_of(shares[0].size // len(db), tiles)
        of_parts = [self.xp.empty((parts, *total.shape), _arithmetic(total.dtype)) for total in (dw, db)]
        constants, (images,) = self._rounded(constants, self._storage(x))
        arguments = (*shares, images, *of_parts, *numbers, parts, length)
        grid, constants = (tiles * parts, 1, 1), constants | {"COLUMNS": width}
        name = "conv2d_max_pool2d_backward"
        self.device.launch("conv2d_max_pool2d.cu", name, constants, grid, (THREADS, 1, 1), *arguments)
        for terms, total in zip(of_parts, (dw, db), strict=True):
            self._sum_parts(terms, parts, total)

    # -- pooling ------------------------------------------------------------------------------------------------------

    def max_pool2d_forward(
        self, x: Array, window: Window, mode: Literal["max", "min"], need_tap: bool
    ) -> tuple[Array, Array | None]:
        n, c, h, w = x.shape
        shape = (n, c, *window.output_size((h, w)))
        y, storage = self._empty(shape, x.dtype)
        tap, tap_storage = self._empty(shape, _tap_dtype(window)) if need_tap else (None, None)
        if y.size:
            constants = _window(window) | {"MAXIMUM": int(mode == "max"), "TAP": _tap_type(window)}
            inputs, numbers = (self._storage(x),), (tap_storage, n, h, w, c, *shape[2:])
            self._by_channels("pool2d.cu", "max_pool2d_forward", constants, inputs, storage, *numbers)
        return y, tap

    def max_pool2d_backward(self, dy: Array, tap: Array, window: Window, size: Size) -> Array:
        n, c, p, q = dy.shape
        dx, storage = self._empty((n, c, *size), dy.dtype)
        if dx.size:
            constants = _window(window) | {"MAXIMUM": 1, "TAP": _tap_type(window)}
            inputs, numbers = (self._storage(dy), self._storage(tap)), (n, *size, c, p, q)
            self._by_channels("pool2d.cu", "max_pool2d_backward", constants, inputs, storage, *numbers)
        return dx

    def avg_pool2d_forward(self, x: Array, window: Window, divisor: Divisor) -> Array:
        n, c, h, w = x.shape
        p, q = window.output_size((h, w))
        y, storage = self._empty((n, c, p, q), x.dtype)
        if y.size:
            constants, number = _divisor(window, divisor)
            inputs, numbers = (self._storage(x),), (n, h, w, c, p, q, number)
            self._by_channels("pool2d.cu", "avg_pool2d_forward", constants, inputs, storage, *numbers)
        return y

    def avg_pool2d_backward(self, dy: Array, window: Window, divisor: Divisor, size: Size) -> Array:
        n, c, p, q = dy.shape
        dx, storage = self._empty((n, c, *size), dy.dtype)
        if dx.size:
            constants, number = _divisor(window, divisor)
            inputs, numbers = (self._storage(dy),), (n, *size, c, p, q, number)
            self._by_channels("pool2d.cu", "avg_pool2d_backward", constants, inputs, storage, *numbers)
        return dx

    # -- elementwise --------------------------------------------------------------------------------------------------

    def activation_forward(self, x: Array, kind: str, parameter: float) -> Array:
        y, storage = self._empty(x.shape, x.dtype)
        if y.size:
            constants = _scalar(x) | {"KIND": kind.upper()}
            arguments = (self._storage(x), storage, parameter, y.size)
            self._each("activation.cu", "activation_forward", constants, ceil_div(y.size, 4), *arguments)
        return y

    def activation_backward(self, dy: Array, saved: Array, kind: str, parameter: float) -> Array:
        dx, storage = self._empty(dy.shape, dy.dtype)
        if dx.size:
            constants = _scalar(dy) | {"KIND": kind.upper()}
            arguments = (self._storage(dy), self._storage(saved), storage, parameter, dx.size)
            self._each("activation.cu", "activation_backward", constants, ceil_div(dx.size, 4), *arguments)
        return dx

    def activation_bias_backward(self, dy: Array, y: Array, kind: str) -> tuple[Array, Array]:
        k = dy.shape[1]
        dx, storage = self._empty(dy.shape, dy.dtype)
        if not dx.size:
            return dx, self.xp.zeros(k, dy.dtype)
        arguments, constants = (self._storage(dy), self._storage(y), storage), {"KIND": kind.upper()}
        name, rows = "activation_bias_backward", dx.size // k
        (sums,), parts, _ = self._columns("activation.cu", name, rows, k, 1, *arguments, constants=constants)
        return dx, self._sum_of_parts(sums, parts, dy.dtype)

    def dropout(self, x: Array, p: float, position: Live[tuple[int, int]]) -> Array:
        y, storage = self._empty(x.shape, x.dtype)
        if y.size:
            where = self.device.live(position, 2, np.uint64)
            arguments = (self._storage(x), storage, where, math.ceil(p * 2**24), 1 - p, y.size)
            self._each("dropout.cu", "dropout", _scalar(x), ceil_div(y.size, 4), *arguments)
        return y

    # -- batch normalisation ------------------------------------------------------------------------------------------

    def _norm_sums(
        self, name: str, rows: int, c: int, *arguments: Array | None, constants: dict[str, Any] | None = None
    ) -> tuple[list[Array], int, int]:
        """`_columns` of a kernel of batch_norm.cu with two results, in more parts: they are few blocks."""
        return self._columns("batch_norm.cu", name, rows, c, 2, *arguments, constants=constants, most=256)

    def _combine(self, file: str, name: str, x: Array, c: int, *arguments: Any, results: int = 1) -> None:
        """Launch a kernel that sums up parts: made of column_sum too, with many lanes for few rows."""
        constants, grid = _scalar(x) | {"COLUMNS": 8}, (ceil_div(c, 8) * results, 1, 1)
        self.device.launch(file, name, constants, grid, (256, 1, 1), *arguments)

    def batch_norm_statistics(self, x: Array) -> tuple[Array, Array]:
        c = x.shape[1]
        rows = x.size // max(c, 1)
        if not rows:
            dtype = _arithmetic(x.dtype)
            return self.xp.zeros(c, dtype), self.xp.zeros(c, dtype)
        (means, squares), _, length = self._norm_sums("batch_norm_statistics", rows, c, self._storage(x))
        return self._statistics_of_parts(x, means, squares, length)

    def _statistics_of_parts(self, x: Array, means: Array, squares: Array, length: int) -> tuple[Array, Array]:
        """Mean and variance of the rows of x from those of parts of that length; of many parts in two steps."""
        storage, (parts, c) = self._storage(x), means.shape
        for every in (ceil_div(parts, 256), 256) if parts > 1024 else (parts,):
            together = ceil_div(parts, every)
            of_them = [self.xp.empty((together, c), means.dtype) for _ in range(2)]
            arguments = (storage, means, squares, *of_them, x.size // c, c, parts, length, every)
            self._combine("batch_norm.cu", "batch_norm_statistics_combine", x, c, *arguments, results=together)
            (means, squares), parts, length = of_them, together, length * every
        return means[0], squares[0]

    def batch_norm_invstd(
        self,
        mean: Array,
        variance: Array,
        eps: float,
        running: Sequence[Array | None] = (None, None),
        momentum: float = 0.0,
        unbiased: float = 1.0,
    ) -> Array:
        mean, variance = self._storage(mean), self._storage(variance)
        invstd = self.xp.empty_like(variance)
        self._norm_channels((mean, variance, None, None, invstd, None, None, *running), eps, momentum, unbiased)
        return invstd

    def batch_norm_affine(
        self, mean: Array, variance: Array, weight: Array | None, bias: Array | None, eps: float
    ) -> tuple[Array, Array]:
        mean, variance, *given = (None if a is None else self._storage(a) for a in (mean, variance, weight, bias))
        scale, shift = self.xp.empty_like(variance), self.xp.empty_like(variance)
        self._norm_channels((mean, variance, *given, None, scale, shift, None, None), eps)
        return scale, shift

    def _norm_channels(
        self, arrays: Sequence[Array | None], eps: float, momentum: float = 0.0, unbiased: float = 1.0
    ) -> None:
        """Launch batch_norm_invstd with its arrays, of which the mean is the first."""
        mean: Array = arrays[0]
        if c := mean.size:
            numbers = (c, eps, momentum, unbiased)
            self._each("batch_norm.cu", "batch_norm_invstd", _scalar(mean), c, *arrays, *numbers)

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
        y, storage = self._empty(x.shape, x.dtype)
        if y.size:
            given = [None if a is None else self._storage(a) for a in (mean, invstd, weight, bias, residual)]
            inputs, numbers = (self._storage(x), *given), (x.shape[1], y.size)
            self._by_channels("batch_norm.cu", "batch_norm_forward", _kind(activation), inputs, storage, *numbers)
        return y

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
        c = x.shape[1]
        dx, storage = self._empty(x.shape, x.dtype)
        dtype, dr = _arithmetic(x.dtype), dy if residual else None
        if not dx.size:
            return dx, self.xp.zeros(c, dtype), self.xp.zeros(c, dtype), dr
        dy, x = self._storage(dy), self._storage(x)
        mean, invstd = self._storage(mean), self._storage(invstd)
        weight, bias = (None if a is None else self._storage(a) for a in (weight, bias))
        kind, of_y, of_r = _kind(activation), None, None
        if activation and residual:
            of_y = self._storage(y)
            dr, of_r = self._empty(dx.shape, dx.dtype)
        arguments: tuple[Any, ...] = (dy, x, of_y, mean, invstd, weight, bias, of_r)
        rows = x.size // c
        (sums, products), parts, _ = self._norm_sums("batch_norm_backward_sums", rows, c, *arguments, constants=kind)
        dweight, dbias = self.xp.empty(c, dtype), self.xp.empty(c, dtype)
        self._combine(
            "batch_norm.cu", "batch_norm_backward_combine", x, c, sums, products, invstd, dweight, dbias, c, parts
        )
        if of_r is not None:
            dy, kind = of_r, _kind(None)  # dy times the slope, which is known now
        inputs, constants = (dy, x, mean, invstd, weight, bias, dweight, dbias), kind | {"TRAINING": int(training)}
        self._by_channels("batch_norm.cu", "batch_norm_backward", constants, inputs, storage, c, x.size)
        return dx, dweight, dbias, dr

    # -- instance normalisation ---------------------------------------------------------------------------------------

    def _instance_sums(self, name: str, x: Array, *arguments: Array) -> tuple[list[Array], int, int]:
        """The two results of a kernel of instance_norm.cu made of column_sum: see `_columns`."""
        n, c = x.shape[:2]
        return self._columns("instance_norm.cu", name, x.size // (n * c), c, 2, *arguments, most=256, images=(n,))

    def instance_norm_statistics(self, x: Array) -> tuple[Array, Array]:
        n, c = x.shape[:2]
        dtype = _arithmetic(x.dtype)
        if not x.size:
            return self.xp.zeros((n, c), dtype), self.xp.zeros((n, c), dtype)
        storage = self._storage(x)
        (means, squares), parts, length = self._instance_sums("instance_norm_statistics", x, storage)
        mean, variance = self.xp.empty((n, c), dtype), self.xp.empty((n, c), dtype)
        arguments, numbers = (storage, means, squares, mean, variance), (n, x.size // (n * c), c, parts, length)
        self._combine("instance_norm.cu", "instance_norm_statistics_combine", x, c, *arguments, *numbers, results=n)
        return mean, variance

    def instance_norm_forward(
        self, x: Array, mean: Array, invstd: Array, weight: Array | None, bias: Array | None
    ) -> Array:
        y, storage = self._empty(x.shape, x.dtype)
        if y.size:
            n, c, h, w = x.shape
            given = [None if a is None else self._storage(a) for a in (mean, invstd, weight, bias)]
            inputs = (self._storage(x), *given)
            self._by_channels("instance_norm.cu", "instance_norm_forward", {}, inputs, storage, n, h * w, c)
        return y

    def instance_norm_backward(
        self, dy: Array, x: Array, mean: Array, invstd: Array, weight: Array | None
    ) -> tuple[Array, Array, Array]:
        n, c, h, w = x.shape
        dx, storage = self._empty(x.shape, x.dtype)
        dtype = _arithmetic(x.dtype)
        if not dx.size:
            return dx, self.xp.zeros(c, dtype), self.xp.zeros(c, dtype)
        of_dy, of_x, mean, invstd = (self._storage(a) for a in (dy, x, mean, invstd))
        weight = None if weight is None else self._storage(weight)
        (sums, products), parts, _ = self._instance_sums("instance_norm_backward_sums", x, of_dy, of_x, mean)
        dweights, dbiases = self.xp.empty((n, c), dtype), self.xp.empty((n, c), dtype)
        arguments = (sums, products, invstd, dweights, dbiases, n, c, parts)
        self._combine("instance_norm.cu", "instance_norm_backward_combine", x, c, *arguments, results=n)
        inputs = (of_dy, of_x, mean, invstd, weight, dweights, dbiases)
        self._by_channels("instance_norm.cu", "instance_norm_backward", {}, inputs, storage, n, h * w, c)
        return dx, self._sum_of_parts(dweights, n, dtype), self._sum_of_parts(dbiases, n, dtype)

    # -- products and losses ------------------------------------------------------------------------------------------

    def matmul(self, a: Array, b: Array, trans_a: bool = False, trans_b: bool = False) -> Array:
        rows, depth = a.shape[:-3:-1] if trans_a else a.shape[-2:]
        columns = b.shape[-2] if trans_b else b.shape[-1]
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        _check_size(a.shape)
        _check_size(b.shape)
        _check_size((*lead, rows, columns))
        y = self.xp.empty((*lead, rows, columns), a.dtype)
        if not y.size:
            return self.contiguous(y)
        a, trans_a = self._matrices(a, trans_a)
        b, trans_b = self._matrices(b, trans_b)
        batch = math.prod(lead)
        constants = _scalar(y) | {"TRANS_A": int(trans_a), "TRANS_B": int(trans_b)}
        problem = self._problem("matmul", Product(batch, rows, columns, depth, trans_a, trans_b), constants)
        variant = self.choose(problem)
        of_a, of_b = self._matrix_numbers(a.shape[:-2], lead), self._matrix_numbers(b.shape[:-2], lead)
        numbers = (math.prod(a.shape[:-2]), math.prod(b.shape[:-2]), batch, rows, columns, depth)

        def launch(out: Array) -> None:
            self._compute(problem, variant, constants, (a, b), of_a, of_b, out, *numbers, variant.parts, variant.length)

        self._in_parts(y, variant.parts, launch)
        return self.contiguous(y)

    def _matrices(self, a: Array, transposed: bool) -> tuple[Array, bool]:
        """Contiguous matrices, and whether they are transposed now: a transposed view is taken as what it views."""
        turned = a.swapaxes(-1, -2)
        if turned.flags.c_contiguous and not a.flags.c_contiguous:
            return turned, not transposed
        return self.xp.asarray(a, order="C"), transposed

    def _matrix_numbers(self, lead: tuple[int, ...], batch: tuple[int, ...]) -> Array | None:
        """Which of the matrices [*lead, ., .] belongs to each of the batch; None if simply the next one."""
        if lead == batch:
            return None
        numbers = np.arange(math.prod(lead), dtype=np.int32).reshape(lead)
        return self.device.upload(np.broadcast_to(numbers, batch).ravel())

    def softmax_cross_entropy_forward(
        self, logits: Array, labels: Array, weight: Array | None, smoothing: float, ignore_index: int
    ) -> tuple[Array, Array]:
        m, c = logits.shape
        loss, logsumexp = self.xp.empty(m, logits.dtype), self.xp.empty(m, logits.dtype)
        if m:
            weight = None if weight is None else self._storage(weight)
            arguments = (self._storage(logits), self._labels(labels), weight, loss, logsumexp)
            self._rows("softmax_cross_entropy_forward", m, c, smoothing, ignore_index, *arguments)
        return loss, logsumexp

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
        m, c = logits.shape
        dlogits, storage = self._empty((m, c), logits.dtype)
        if m:
            weight = None if weight is None else self._storage(weight)
            inputs = (self._storage(dloss), self._storage(logits), self._storage(logsumexp), self._labels(labels))
            self._rows(
                "softmax_cross_entropy_backward", m, c, smoothing, ignore_index, *inputs, weight, storage
            )  # fmt: skip
        return dlogits

    def _labels(self, labels: Array) -> Array:
        return self.xp.asarray(labels, np.int64, order="C")

    def _rows(self, name: str, m: int, c: int, smoothing: float, ignore_index: int, *arguments: Array) -> None:
        """Launch a loss kernel: a warp for each row, four of them a block."""
        grid, constants = (ceil_div(m, 4), 1, 1), _scalar_not_half(arguments[0], "losses")
        numbers = (m, c, smoothing, ignore_index)
        self.device.launch("softmax_cross_entropy.cu", name, constants, grid, (128, 1, 1), *arguments, *numbers)

    # -- indexing -----------------------------------------------------------------------------------------------------

    def index_backward(self, dy: Array, index: Any, shape: tuple[int, ...]) -> Array:
        dx = self._zeros(shape, dy.dtype)
        parts = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(part, np.ndarray | list) for part in parts):
            dx[index] = dy  # ints and slices choose each element once
            return dx
        # Numbers of dx's elements in storage order, as the index takes them; and which shares of dy they get.
        destinations = np.asarray(_storage_numbers(shape)[index])
        order = np.argsort(destinations, axis=None, kind="stable")
        sources = _storage_numbers(dy.shape).ravel()[order]
        chosen, starts = np.unique(destinations.ravel()[order], return_index=True)
        if chosen.size:
            tables = [self.device.upload(t.astype(np.int32)) for t in (sources, np.append(starts, order.size), chosen)]
            storage = self._storage(dx)  # dx's own memory
            numbers = (order.size, dx.size, chosen.size)
            arguments = (self._storage(dy), *tables, storage, *numbers)
            self._each("index.cu", "index_backward", _scalar(dy), chosen.size, *arguments)
        return dx

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        zeros, storage = self._empty(shape, dtype)
        storage[...] = 0
        return zeros

    # -- optimisers ---------------------------------------------------------------------------------------------------

    def sgd_update(
        self,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        moments: Sequence[Array | None],
        settings: Live[SGDSettings],
    ) -> list[Array | None]:
        if not settings().momentum:
            self._update("sgd_update", _sgd_numbers(settings, first=False), parameters, gradients, None)
            return list(moments)
        updated = [self._zeros(w.shape, w.dtype) if m is None else m for w, m in zip(parameters, moments, strict=True)]
        for first in (True, False):
            chosen = [i for i, m in enumerate(moments) if (m is None) == first]
            of_chosen = ([arrays[i] for i in chosen] for arrays in (parameters, gradients, updated))
            self._update("sgd_update", _sgd_numbers(settings, first), *of_chosen)
        return updated

    def adam_update(
        self,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        exp_avgs: Sequence[Array],
        exp_avg_sqs: Sequence[Array],
        settings: Live[AdamSettings],
    ) -> None:
        self._update("adam_update", settings.then(_adam_numbers), parameters, gradients, exp_avgs, exp_avg_sqs)

    def rmsprop_update(
        self,
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        square_avgs: Sequence[Array],
        moments: Sequence[Array | None],
        settings: Live[RMSpropSettings],
    ) -> list[Array | None]:
        numbers = settings.then(_rmsprop_numbers)
        if not settings().momentum:
            self._update("rmsprop_update", numbers, parameters, gradients, square_avgs, None)
            return list(moments)
        updated = [self._zeros(w.shape, w.dtype) if m is None else m for w, m in zip(parameters, moments, strict=True)]
        self._update("rmsprop_update", numbers, parameters, gradients, square_avgs, updated)
        return updated

    def _update(
        self,
        name: str,
        numbers: Live[tuple[float, ...]],
        parameters: Sequence[Array],
        gradients: Sequence[Array],
        *state: Sequence[Array] | None,
    ) -> None:
        """Launch an optimiser kernel on all arrays that hold something; parameters and state change in place."""
        filled = [i for i, w in enumerate(parameters) if w.size]
        for dtype in sorted({parameters[i].dtype.str for i in filled}):
            chosen = [i for i in filled if parameters[i].dtype.str == dtype]
            tables = [
                None if arrays is None else [self._storage(arrays[i]) for i in chosen]
                for arrays in (parameters, gradients, *state)
            ]
            sizes, first_blocks, blocks = self._block_table(tuple(parameters[i].size for i in chosen))
            constants = _scalar_not_half(parameters[chosen[0]], "optimisers") | {"BLOCK_ELEMENTS": _BLOCK_ELEMENTS}
            on_device = self.device.live(numbers, _NUMBERS[name], parameters[chosen[0]].dtype)
            grid, arguments = (blocks, 1, 1), (*tables, sizes, first_blocks, on_device, len(chosen))
            self.device.launch("optimizer.cu", name, constants, grid, (THREADS, 1, 1), *arguments)
            for arrays, table in zip((parameters, *state), (tables[0], *tables[2:]), strict=True):
                if arrays is not None and table is not None:
                    for i, storage in zip(chosen, table, strict=True):
                        self._write_back(arrays[i], storage)

    def _write_back(self, array: Array, storage: Array) -> None:
        """Into an array whose strides made `_storage` copy it."""
        view = storage_view(array)
        if not view.flags.c_contiguous:
            view[...] = storage

    def _block_table(self, sizes: tuple[int, ...]) -> tuple[Array, Array, int]:
        """The sizes, the first block of each tensor, and how many blocks there are in all; kept between steps."""
        if sizes not in self._block_tables:
            blocks = [ceil_div(size, _BLOCK_ELEMENTS) for size in sizes]
            first = np.cumsum([0, *blocks[:-1]])
            of_sizes, of_first = (self.device.upload(np.array(table, np.int32)) for table in (sizes, first))
            if self.capturing:  # the tables are the graph's
                return of_sizes, of_first, sum(blocks)
            self._block_tables[sizes] = (of_sizes, of_first, sum(blocks))
        return self._block_tables[sizes]


_NUMBERS = {"sgd_update": 6, "adam_update": 9, "rmsprop_update": 6}  # that each optimiser kernel takes


def _sgd_numbers(settings: Live[SGDSettings], first: bool) -> Live[tuple[float, ...]]:
    return settings.then(lambda s: (s.lr, s.momentum, 1 - s.dampening, s.weight_decay, s.nesterov, first))


def _adam_numbers(s: AdamSettings) -> tuple[float, ...]:
    step_size, root = s.lr / (1 - s.betas[0] ** s.step), math.sqrt(1 - s.betas[1] ** s.step)
    penalty, decay = (0.0, 1 - s.lr * s.weight_decay) if s.decoupled else (s.weight_decay, 1.0)
    return (step_size, s.betas[0], 1 - s.betas[0], s.betas[1], 1 - s.betas[1], root, s.eps, penalty, decay)


def _rmsprop_numbers(s: RMSpropSettings) -> tuple[float, ...]:
    return (s.lr, s.alpha, 1 - s.alpha, s.eps, s.weight_decay, s.momentum)


def _tap_dtype(window: Window) -> np.dtype[Any]:
    return np.dtype(np.uint8 if window.taps <= 256 else np.int32)


def _tap_type(window: Window) -> str:
    return "unsigned char" if window.taps <= 256 else "int"


def _storage_numbers(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array of that shape that holds each element's number in storage order."""
    if len(shape) != 4:
        return np.arange(math.prod(shape)).reshape(shape)
    n, c, h, w = shape
    return np.arange(math.prod(shape)).reshape(n, h, w, c).transpose(0, 3, 1, 2)


def _check_size(shape: Sequence[int]) -> None:
    if math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(
            f"an array of shape {tuple(shape)} has {math.prod(shape)} elements, more than the {MOST_ELEMENTS} that the "
            "kernels count; use a smaller batch"
        )
