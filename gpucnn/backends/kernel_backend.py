"""KernelBackend: the host side of every CUDA kernel, written once.

It allocates, picks tile, grid, block and constants, and launches; a Device below it compiles and runs. Arrays are
handed to kernels in storage order: [N, H, W, C] and [K, R, S, C], contiguous. An empty result is not launched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from gpucnn.backends.base import AdamSettings, Array, Backend, Divisor, RMSpropSettings, SGDSettings
from gpucnn.backends.precision import get_precision
from gpucnn.devices import Device
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

_THREADS = 256  # of a block of an elementwise kernel
_BLOCK_ELEMENTS = 1024  # of a block of an optimiser kernel


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _scalar(array: Array) -> dict[str, Any]:
    return {"SCALAR": _SOURCES[array.dtype.name]}


def _arithmetic(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that a kernel computes in: its Scalar, where dtype is its SCALAR."""
    return np.dtype(np.float32) if is_half(dtype) else dtype


def _chunk(array: Array) -> int:
    """The scalars in 16 bytes, which tensor cores' operands are moved by."""
    return 16 // int(array.dtype.itemsize)


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


def _convolution(array: Array, window: Window, activation: str | None = None) -> dict[str, Any]:
    return _scalar(array) | _window(window) | {"KIND": (activation or "none").upper()}


def _divisor(window: Window, divisor: Divisor) -> tuple[dict[str, Any], int]:
    """The constants of an average, and the number to divide by if it is one."""
    if isinstance(divisor, int):
        return _window(window) | {"DIVISOR": "NUMBER"}, divisor
    if divisor == "real":
        return _window(window) | {"DIVISOR": "REAL"}, 0
    ends = {"PAD_BOTTOM": window.padding[1], "PAD_RIGHT": window.padding[3]}
    return _window(window) | ends | {"DIVISOR": "WINDOW"}, 0


def _tile(rows: int, columns: int) -> dict[str, int]:
    """The tile of gemm_tile.cuh for a product of that size: larger ones reuse more, smaller ones waste less."""
    if rows >= 64 and columns >= 64:
        return {"TILE_M": 64, "TILE_N": 64, "TILE_K": 8, "THREAD_M": 4, "THREAD_N": 4}
    if columns > 16:
        return {"TILE_M": 32, "TILE_N": 32, "TILE_K": 8, "THREAD_M": 2, "THREAD_N": 2}
    return {"TILE_M": 64, "TILE_N": 16, "TILE_K": 8, "THREAD_M": 4, "THREAD_N": 2}


def _tiles(tile: dict[str, int], rows: int, columns: int) -> int:
    return _ceil_div(rows, tile["TILE_M"]) * _ceil_div(columns, tile["TILE_N"])


def _filled(rows: int, columns: int, layers: int) -> bool:
    """Whether tiles of 128 x 128 are filled, and blocks of them enough for most of a GPU."""
    return min(rows, columns) > 64 and _ceil_div(rows, 128) * _ceil_div(columns, 128) * layers >= 96


def _fma_tile(rows: int, columns: int, layers: int, dtype: Any) -> dict[str, int]:
    """The tile of fma_tile.cuh: the large one where it is filled. Sums in double take two registers each."""
    if dtype == np.float64:
        return {"TILE_M": 64, "TILE_N": 64, "THREAD_M": 4, "THREAD_N": 4}
    if _filled(rows, columns, layers):
        return {"TILE_M": 128, "TILE_N": 128, "THREAD_M": 16, "THREAD_N": 8}
    return {"TILE_M": 64, "TILE_N": 64, "THREAD_M": 8, "THREAD_N": 8}


def _mma_tile(rows: int, columns: int, layers: int, products: int, half: bool = False) -> dict[str, int]:
    """The tile of mma_tile.cuh, or half_tile.cuh: the large one where it is filled, and there are blocks enough for
    most of a GPU.

    A warp's part is larger for TF32, which needs two thirds of the shared memory's speed then, and for half types. With
    three products it would not fit into the registers.
    """
    if half:
        return {k: v for k, v in _mma_tile(rows, columns, layers, 1).items() if k != "PRODUCTS"} | {"HALF": 1}
    if _filled(rows, columns, layers):
        return {"TILE_M": 128, "TILE_N": 128, "WARP_M": 64, "WARP_N": 64 if products == 1 else 32, "PRODUCTS": products}
    return {"TILE_M": 64, "TILE_N": 64, "WARP_M": 32, "WARP_N": 32, "PRODUCTS": products}


def _parts(terms: int, blocks: int) -> tuple[int, int]:
    """(length of a part, number of parts) of a sum that `blocks` blocks compute, so that some 1024 of them do.

    A part has at least 256 terms, and there are at most 64. A function of shapes alone: so are the bits of the sum.
    """
    most = min(max(1024 // max(blocks, 1), 1), 64)
    length = max(256, _ceil_div(terms, most))
    return length, max(_ceil_div(terms, length), 1)


def _mma_parts(
    rows: int, columns: int, layers: int, terms: int, products: int, half: bool
) -> tuple[dict[str, int], int, int]:
    """The tile of a product whose sum may be cut into parts, their length, a multiple of a step, and their number.

    A large tile takes the time of four small ones, so a fourth as many blocks will do.
    """
    tile = _mma_tile(rows, columns, layers * max(min(terms // 256, 64), 1), products, half)
    length, _ = _parts(terms, _ceil_div(rows, 64) * _ceil_div(columns, 64) * layers)
    length = 32 * _ceil_div(length, 32) if half else 16 * _ceil_div(length, 16)
    return tile, length, max(_ceil_div(terms, length), 1)


# Where three TF32 products take less time than a multiply-add in float32: tensor cores of TF32 are 7 to 8 times as fast
# there (A100, H100, H200; of B200 it is expected), and 1 to 2 times on GPUs for graphics.
_FAST_TF32 = {(8, 0), (9, 0), (10, 0), (10, 3)}


def tf32_products(capability: tuple[int, int] | None, precision: str, dtype: Any) -> int:
    """How many products on tensor cores make one: 1 in TF32, 3 with the accuracy of float32, 0 for none there. Half
    types have one, which is exact."""
    if dtype == np.float64 or capability is None or capability < (8, 0):
        return 0
    if precision != "fp32" or is_half(np.dtype(dtype)):
        return 1
    return 3 if capability in _FAST_TF32 else 0


def conv2d_variant(
    name: str, channels: int, filters: int, products: int = 0, chunk: int = 4
) -> Literal["gemm", "direct", "fma", "mma"]:
    """Which kernel computes conv2d_forward, conv2d_backward_input or conv2d_backward_weight, given C and K per group.

    With few input channels the tiles of the matrix product would be mostly empty; the weight gradient's tile has
    filters for rows, so there both must be few. Tensor cores, if there are `products` on them, take channels by
    chunks of 16 bytes: fours of float32. Without them, large tiles take channels by fours if half of a tile is filled.
    """
    if channels <= 4 and (name != "conv2d_backward_weight" or filters <= 4):
        return "direct"
    if products and channels % chunk == 0 and filters % chunk == 0:
        return "mma"
    width = channels if name == "conv2d_backward_input" else filters
    return "fma" if chunk <= 4 and width >= 32 and channels % 4 == 0 and filters % 4 == 0 else "gemm"


def matmul_variant(
    rows: int, columns: int, depth: int, trans_a: bool, trans_b: bool, products: int = 0, chunk: int = 4
) -> Literal["gemm", "fma", "mma"]:
    """Which kernel computes a product: tensor cores take the last axis of y and of both operands by chunks, large tiles
    of multiply-adds by fours."""
    last = (columns, rows if trans_a else depth, depth if trans_b else columns)
    if products and all(length % chunk == 0 for length in last):
        return "mma"
    return "fma" if chunk <= 4 and min(rows, columns) >= 32 and all(length % 4 == 0 for length in last) else "gemm"


class KernelBackend(Backend):
    """Every primitive as a launch of a kernel from kernels/ on a device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.name = device.name
        self.xp = device.xp
        self._block_tables: dict[tuple[int, ...], tuple[Array, Array, int]] = {}

    # -- arrays -------------------------------------------------------------------------------------------------------

    @property
    def capturing(self) -> bool:
        return self.device.capturing is not None

    @property
    def unread(self) -> bool:
        return self.capturing or self.device.measuring is not None

    def owns(self, data: object) -> bool:
        return self.device.owns(data)

    def asarray(self, data: Any, dtype: Any = None) -> Array:
        array = data if self.owns(data) else self.device.upload(np.asarray(data))
        return self.contiguous(array) if dtype is None or array.dtype == dtype else self.astype(array, dtype)

    def contiguous(self, array: Array) -> Array:
        if array.ndim != 4 or not is_floating(array.dtype) or array.transpose(0, 2, 3, 1).flags.c_contiguous:
            return super().contiguous(array)
        return self.astype(array, array.dtype)

    def astype(self, array: Array, dtype: Any) -> Array:
        source, target = _SOURCES.get(array.dtype.name), np.dtype(dtype)
        if source is None or not is_floating(target) or not array.size:
            return super().astype(array, dtype)
        constants = {"SCALAR": _SOURCES[target.name], "SOURCE": source}
        y, storage = self._empty(array.shape, target)
        if array.ndim == 4 and array.flags.c_contiguous:
            n, c, h, w = array.shape
            grid = n * _ceil_div(c, 32) * _ceil_div(h * w, 32)
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
        if array.ndim == 4:
            array = array.transpose(0, 2, 3, 1)
        return self.xp.asarray(array, order="C")

    def _aligned(self, storage: Array) -> Array:
        """The same for kernels that read 16 bytes at once, from a multiple of 16."""
        return self.xp.array(storage) if self.device.address(storage) % 16 else storage

    def _products(self, array: Array) -> int:
        return tf32_products(self.device.capability, get_precision(), array.dtype)

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

    def _gemm(
        self,
        family: str,
        operation: str,
        size: tuple[int, int, int],
        tile: dict[str, int],
        constants: dict[str, Any],
        operands: Sequence[Array],
        *others: Any,
    ) -> None:
        """Launch a kernel made of gemm_tile, fma_tile or mma_tile, by the kind of tile, over matrices of this size:
        rows, columns, and how many of them (groups, parts, batch)."""
        rows, columns, layers = size
        if "WARP_M" in tile:
            family += "_mma"
            operands = [self._aligned(operand) for operand in operands]
            threads = 32 * (tile["TILE_M"] // tile["WARP_M"]) * (tile["TILE_N"] // tile["WARP_N"])
        else:
            if "TILE_K" not in tile:
                family += "_fma"
                operands = [self._aligned(operand) for operand in operands]
            threads = tile["TILE_M"] // tile["THREAD_M"] * (tile["TILE_N"] // tile["THREAD_N"])
        grid = (_tiles(tile, rows, columns) * layers, 1, 1)
        self.device.launch(
            f"{family}.cu", family + operation, constants | tile, grid, (threads, 1, 1), *operands, *others
        )

    def _each(self, file: str, name: str, constants: dict[str, Any], threads: int, *arguments: Any) -> None:
        """Launch a kernel with that many threads in a row."""
        self.device.launch(file, name, constants, (_ceil_div(threads, _THREADS), 1, 1), (_THREADS, 1, 1), *arguments)

    def _columns(
        self, file: str, name: str, rows: int, columns: int, results: int, *arguments: Array
    ) -> tuple[list[Array], int, int]:
        """Launch a kernel made of column_sum: (its results [parts, columns], parts, length of a part)."""
        width = 8 if columns <= 8 else 32
        tiles = _ceil_div(columns, width)
        length, parts = _parts(rows, tiles)
        out = [self.xp.empty((parts, columns), _arithmetic(arguments[0].dtype)) for _ in range(results)]
        constants = {**_scalar(arguments[0]), "COLUMNS": width}
        grid = (tiles * parts, 1, 1)
        self.device.launch(file, name, constants, grid, (256, 1, 1), *arguments, *out, rows, columns, parts, length)
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
    ) -> Array:
        (n, c, h, width), k = x.shape, w.shape[0]
        p, q = window.output_size((h, width))
        y, storage = self._empty((n, k, p, q), x.dtype)
        if not y.size:
            return y
        bias, factor = (None if a is None else self._storage(a) for a in (b, scale))
        constants = _convolution(x, window, activation)
        operands = (self._storage(x), self._storage(w))
        others = (bias, factor, storage, n, h, width, c, k, p, q, groups)
        products, size = self._products(x), (n * p * q, k // groups, groups)
        variant = conv2d_variant("conv2d_forward", c // groups, k // groups, products, _chunk(x))
        if variant == "direct":
            constants["CHANNELS"] = c // groups
            self._each("conv2d_direct.cu", "conv2d_direct_forward", constants, y.size, *operands, *others)
        else:
            tile = _tile(*size[:2])
            if variant == "mma":
                tile = _mma_tile(*size, products, is_half(x.dtype))
            elif variant == "fma":
                tile = _fma_tile(*size, x.dtype)
            self._gemm("conv2d", "_forward", size, tile, constants, operands, *others)
        return y

    def conv2d_backward_input(self, dy: Array, w: Array, window: Window, groups: int, size: Size) -> Array:
        (n, k, p, q), (h, width) = dy.shape, size
        c = w.shape[1] * groups
        dx, storage = self._empty((n, c, h, width), dy.dtype)
        if not dx.size:
            return dx
        constants = _convolution(dy, window)
        operands = (self._storage(dy), self._storage(w))
        others = (storage, n, h, width, c, k, p, q, groups)
        products, matrix = self._products(dy), (n * h * width, c // groups, groups)
        variant = conv2d_variant("conv2d_backward_input", c // groups, k // groups, products, _chunk(dy))
        if variant == "direct":
            constants["CHANNELS"] = c // groups
            self._each("conv2d_direct.cu", "conv2d_direct_backward_input", constants, dx.size, *operands, *others)
        else:
            tile = _tile(*matrix[:2])
            if variant == "mma":
                tile = _mma_tile(*matrix, products, is_half(dy.dtype))
            elif variant == "fma":
                tile = _fma_tile(*matrix, dy.dtype)
            self._gemm("conv2d", "_backward_input", matrix, tile, constants, operands, *others)
        return dx

    def conv2d_backward_weight(self, dy: Array, x: Array, window: Window, groups: int) -> Array:
        (n, k, p, q), (_, c, h, width) = dy.shape, x.shape
        channels, filters = c // groups, k // groups
        dw, storage = self._empty((k, channels, *window.kernel), dy.dtype)
        if not n * p * q:
            storage[...] = 0
            return dw
        depth, terms = window.taps * channels, n * p * q
        constants = _convolution(dy, window)
        operands = (self._storage(dy), self._storage(x))
        products = self._products(dy)
        variant = conv2d_variant("conv2d_backward_weight", channels, filters, products, _chunk(dy))
        if variant == "mma":
            tile, length, parts = _mma_parts(filters, depth, groups, terms, products, is_half(dy.dtype))
        else:
            tile = _tile(filters, depth)
            direct = variant == "direct"
            blocks = _ceil_div(dw.size, _THREADS) if direct else _tiles(tile, filters, depth) * groups
            length, parts = _parts(terms, blocks)
            if variant == "fma":
                tile = _fma_tile(filters, depth, groups * parts, dy.dtype)
        numbers = (n, h, width, c, k, p, q, groups, parts, length)

        def launch(out: Array) -> None:
            if variant == "direct":
                constants["CHANNELS"] = channels
                name = "conv2d_direct_backward_weight"
                self._each("conv2d_direct.cu", name, constants, out.size, *operands, out, *numbers)
            else:
                size = (filters, depth, groups * parts)
                self._gemm("conv2d", "_backward_weight", size, tile, constants, operands, out, *numbers)

        self._in_parts(storage, parts, launch)
        return dw

    def bias_backward(self, dy: Array) -> Array:
        k = dy.shape[1]
        rows = dy.size // max(k, 1)
        if not rows:
            return self.xp.zeros(k, dy.dtype)
        (sums,), parts, _ = self._columns("sums.cu", "bias_backward", rows, k, 1, self._storage(dy))
        if parts == 1 and not is_half(dy.dtype):
            return sums[0]
        db = self.xp.empty(k, dy.dtype)
        self._sum_parts(sums, parts, db)
        return db

    # -- pooling ------------------------------------------------------------------------------------------------------

    def max_pool2d_forward(
        self, x: Array, window: Window, mode: Literal["max", "min"], need_tap: bool
    ) -> tuple[Array, Array | None]:
        n, c, h, w = x.shape
        shape = (n, c, *window.output_size((h, w)))
        y, storage = self._empty(shape, x.dtype)
        tap, tap_storage = self._empty(shape, _tap_dtype(window)) if need_tap else (None, None)
        if y.size:
            constants = _scalar(x) | _window(window) | {"MAXIMUM": int(mode == "max"), "TAP": _tap_type(window)}
            arguments = (self._storage(x), storage, tap_storage, n, h, w, c, *shape[2:])
            self._each("pool2d.cu", "max_pool2d_forward", constants, y.size, *arguments)
        return y, tap

    def max_pool2d_backward(self, dy: Array, tap: Array, window: Window, size: Size) -> Array:
        n, c, p, q = dy.shape
        dx, storage = self._empty((n, c, *size), dy.dtype)
        if dx.size:
            constants = _scalar(dy) | _window(window) | {"MAXIMUM": 1, "TAP": _tap_type(window)}
            arguments = (self._storage(dy), self._storage(tap), storage, n, *size, c, p, q)
            self._each("pool2d.cu", "max_pool2d_backward", constants, dx.size, *arguments)
        return dx

    def avg_pool2d_forward(self, x: Array, window: Window, divisor: Divisor) -> Array:
        n, c, h, w = x.shape
        p, q = window.output_size((h, w))
        y, storage = self._empty((n, c, p, q), x.dtype)
        if y.size:
            constants, number = _divisor(window, divisor)
            arguments = (self._storage(x), storage, n, h, w, c, p, q, number)
            self._each("pool2d.cu", "avg_pool2d_forward", _scalar(x) | constants, y.size, *arguments)
        return y

    def avg_pool2d_backward(self, dy: Array, window: Window, divisor: Divisor, size: Size) -> Array:
        n, c, p, q = dy.shape
        dx, storage = self._empty((n, c, *size), dy.dtype)
        if dx.size:
            constants, number = _divisor(window, divisor)
            arguments = (self._storage(dy), storage, n, *size, c, p, q, number)
            self._each("pool2d.cu", "avg_pool2d_backward", _scalar(dy) | constants, dx.size, *arguments)
        return dx

    # -- elementwise --------------------------------------------------------------------------------------------------

    def activation_forward(self, x: Array, kind: str, parameter: float) -> Array:
        y, storage = self._empty(x.shape, x.dtype)
        if y.size:
            constants = _scalar(x) | {"KIND": kind.upper()}
            arguments = (self._storage(x), storage, parameter, y.size)
            self._each("activation.cu", "activation_forward", constants, _ceil_div(y.size, 4), *arguments)
        return y

    def activation_backward(self, dy: Array, saved: Array, kind: str, parameter: float) -> Array:
        dx, storage = self._empty(dy.shape, dy.dtype)
        if dx.size:
            constants = _scalar(dy) | {"KIND": kind.upper()}
            arguments = (self._storage(dy), self._storage(saved), storage, parameter, dx.size)
            self._each("activation.cu", "activation_backward", constants, _ceil_div(dx.size, 4), *arguments)
        return dx

    def dropout(self, x: Array, p: float, position: Live[tuple[int, int]]) -> Array:
        y, storage = self._empty(x.shape, x.dtype)
        if y.size:
            where = self.device.live(position, 2, np.uint64)
            arguments = (self._storage(x), storage, where, math.ceil(p * 2**24), 1 - p, y.size)
            self._each("dropout.cu", "dropout", _scalar(x), _ceil_div(y.size, 4), *arguments)
        return y

    # -- batch normalisation ------------------------------------------------------------------------------------------

    def batch_norm_statistics(self, x: Array) -> tuple[Array, Array]:
        c = x.shape[1]
        rows = x.size // max(c, 1)
        dtype = _arithmetic(x.dtype)
        if not rows:
            return self.xp.zeros(c, dtype), self.xp.zeros(c, dtype)
        (means, squares), parts, length = self._columns(
            "batch_norm.cu", "batch_norm_statistics", rows, c, 2, self._storage(x)
        )
        mean, variance = self.xp.empty(c, dtype), self.xp.empty(c, dtype)
        arguments = (means, squares, mean, variance, rows, parts, length, c)
        self._each("batch_norm.cu", "batch_norm_statistics_combine", _scalar(x), c, *arguments)
        return mean, variance

    def batch_norm_forward(
        self, x: Array, mean: Array, invstd: Array, weight: Array | None, bias: Array | None
    ) -> Array:
        y, storage = self._empty(x.shape, x.dtype)
        if y.size:
            per_channel = [None if a is None else self._storage(a) for a in (mean, invstd, weight, bias)]
            arguments = (self._storage(x), *per_channel, storage, x.shape[1], y.size)
            self._each("batch_norm.cu", "batch_norm_forward", _scalar(x), _ceil_div(y.size, 4), *arguments)
        return y

    def batch_norm_backward(
        self, dy: Array, x: Array, mean: Array, invstd: Array, weight: Array | None, training: bool
    ) -> tuple[Array, Array, Array]:
        c = x.shape[1]
        dx, storage = self._empty(x.shape, x.dtype)
        dtype = _arithmetic(x.dtype)
        if not dx.size:
            return dx, self.xp.zeros(c, dtype), self.xp.zeros(c, dtype)
        dy, x, mean, invstd = (self._storage(a) for a in (dy, x, mean, invstd))
        weight = None if weight is None else self._storage(weight)
        (sums, products), parts, _ = self._columns(
            "batch_norm.cu", "batch_norm_backward_sums", x.size // c, c, 2, dy, x, mean
        )
        dweight, dbias = self.xp.empty(c, dtype), self.xp.empty(c, dtype)
        of_parts = (sums, products, invstd, dweight, dbias, parts, c)
        self._each("batch_norm.cu", "batch_norm_backward_combine", _scalar(x), c, *of_parts)
        constants = _scalar(x) | {"TRAINING": int(training)}
        arguments = (dy, x, mean, invstd, weight, dweight, dbias, storage, c, x.size)
        self._each("batch_norm.cu", "batch_norm_backward", constants, _ceil_div(x.size, 4), *arguments)
        return dx, dweight, dbias

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
        products = self._products(y)
        variant = matmul_variant(rows, columns, depth, trans_a, trans_b, products, _chunk(y))
        if variant == "mma":
            tile, length, parts = _mma_parts(rows, columns, batch, depth, products, is_half(y.dtype))
        else:
            tile = _tile(rows, columns)
            length, parts = _parts(depth, _tiles(tile, rows, columns) * batch)
            if variant == "fma":
                length = 4 * _ceil_div(length, 4)  # so that each part begins at a multiple of 16 bytes
                tile = _fma_tile(rows, columns, batch * parts, y.dtype)
        of_a, of_b = self._matrix_numbers(a.shape[:-2], lead), self._matrix_numbers(b.shape[:-2], lead)
        numbers = (math.prod(a.shape[:-2]), math.prod(b.shape[:-2]), batch, rows, columns, depth, parts, length)

        def launch(out: Array) -> None:
            size = (rows, columns, batch * parts)
            self._gemm("matmul", "", size, tile, constants, (a, b), of_a, of_b, out, *numbers)

        self._in_parts(y, parts, launch)
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
        grid, constants = (_ceil_div(m, 4), 1, 1), _scalar_not_half(arguments[0], "losses")
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
            self.device.launch("optimizer.cu", name, constants, grid, (_THREADS, 1, 1), *arguments)
            for arrays, table in zip((parameters, *state), (tables[0], *tables[2:]), strict=True):
                if arrays is not None and table is not None:
                    for i, storage in zip(chosen, table, strict=True):
                        self._write_back(arrays[i], storage)

    def _write_back(self, array: Array, storage: Array) -> None:
        """Into an array whose strides made `_storage` copy it."""
        view = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
        if not view.flags.c_contiguous:
            view[...] = storage

    def _block_table(self, sizes: tuple[int, ...]) -> tuple[Array, Array, int]:
        """The sizes, the first block of each tensor, and how many blocks there are in all; kept between steps."""
        if sizes not in self._block_tables:
            blocks = [_ceil_div(size, _BLOCK_ELEMENTS) for size in sizes]
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
