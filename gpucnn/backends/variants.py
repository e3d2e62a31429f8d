"""Which kernel computes a convolution or a matrix product: pure functions of its shape, its types and the GPU.

A `Problem` is what is asked for. A `Variant` is one way to compute it: a family of kernels, the constants they are
compiled with, and the parts that a long sum is cut into. All of a problem's `candidates` keep its error bounds; the
first is taken unless another was measured to be faster. They differ in speed and, where the order of a sum does, in
bits.

A new family of kernels is one entry of FAMILIES, at its rank: when it can compute a problem, when it is taken without a
measurement, and its variants. `KernelBackend._compute` launches all families alike, from the file and by the name that
`Variant` says; one that is launched otherwise has a branch there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from gpucnn.backends.precision import PRECISIONS
from gpucnn.dtypes import HALVES
from gpucnn.geometry import Pixels, Window

Operation = Literal["conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight", "matmul"]
Tile = dict[str, int]

THREADS = 256  # of a block of an elementwise kernel
_WANTED = (1024, 256, 4096)  # blocks that the parts of a sum are to make; the first is the usual number

# Where three TF32 products take less time than a multiply-add in float32: tensor cores of TF32 are 7 to 8 times as fast
# there (A100, H100, H200; of B200 it is expected), and 1 to 2 times on GPUs for graphics.
_FAST_TF32 = {(8, 0), (9, 0), (10, 0), (10, 3)}


class Convolution(NamedTuple):
    """The shape of a convolution of x [N, C, H, W] to y [N, K, P, Q], in the kernels' order."""

    n: int
    h: int
    w: int
    c: int
    k: int
    p: int
    q: int
    groups: int
    window: Window


class Product(NamedTuple):
    """The shape of a batch of products [rows, depth] by [depth, columns], either of them perhaps stored transposed."""

    batch: int
    rows: int
    columns: int
    depth: int
    trans_a: bool
    trans_b: bool


class Matrix(NamedTuple):
    """A problem as matrix products: `layers` of them (groups, batch), each element a sum of so many terms."""

    rows: int
    columns: int
    layers: int
    terms: int


class Problem(NamedTuple):
    """What is to be computed, of which type (a kernel's SCALAR), how exactly, and for which GPU."""

    operation: Operation
    shape: Convolution | Product
    scalar: str
    precision: str = "fp32"
    capability: tuple[int, int] | None = None

    @property
    def matrix(self) -> Matrix:
        """The matrix product that it is."""
        s = self.shape
        if isinstance(s, Product):
            return Matrix(s.rows, s.columns, s.batch, s.depth)
        channels, filters, taps = s.c // s.groups, s.k // s.groups, s.window.taps
        if self.operation == "conv2d_forward":
            return Matrix(s.n * s.p * s.q, filters, s.groups, taps * channels)
        if self.operation == "conv2d_backward_input":
            return Matrix(s.n * s.h * s.w, channels, s.groups, taps * filters)
        return Matrix(filters, taps * channels, s.groups, s.n * s.p * s.q)

    @property
    def splits(self) -> bool:
        """Whether its sums are cut into parts wherever they are long."""
        return self.operation in ("conv2d_backward_weight", "matmul")

    @property
    def operand(self) -> str:
        """The type that is multiplied: the scalar, or the half type that the precision rounds operands of float to."""
        rounded = PRECISIONS[self.precision]
        return rounded if self.scalar == "float" and rounded in HALVES else self.scalar

    @property
    def half(self) -> bool:
        """Whether it multiplies float16 or bfloat16."""
        return self.operand in HALVES

    @property
    def chunk(self) -> int:
        """The scalars in 16 bytes, which tensor cores' operands are moved by."""
        return 8 if self.half else 2 if self.scalar == "double" else 4

    @property
    def products(self) -> int:
        """How many products on tensor cores make one: 1 in TF32 and of half types, which is exact there; 3 with the
        accuracy of float32; 0 where there are none for it."""
        if self.scalar == "double" or self.capability is None or self.capability < (8, 0):
            return 0
        return 1 if self.half or self.precision != "fp32" else 3

    @property
    def kind(self) -> Tile:
        """The constant that tells a kernel for tensor cores what it multiplies."""
        return {"HALF": 1} if self.half else {"PRODUCTS": self.products}

    def comes_by(self, chunk: int) -> bool:
        """Whether the last axes of operands and result are multiples of it: for a convolution a group's channels and
        filters."""
        s = self.shape
        if isinstance(s, Product):
            last = (s.columns, s.rows if s.trans_a else s.depth, s.depth if s.trans_b else s.columns)
            return all(length % chunk == 0 for length in last)
        return s.c // s.groups % chunk == 0 and s.k // s.groups % chunk == 0


class Variant(NamedTuple):
    """How a problem is computed: a family, the constants of its kernel, a grid of blocks of so many threads, and the
    parts of each sum, of `length` terms. `copying` of the threads hold no sums."""

    family: str
    constants: Tile
    blocks: int
    threads: int
    parts: int = 1
    length: int = 0
    copying: int = 0

    def __str__(self) -> str:
        """Different for each of a problem's candidates."""
        of = self.constants
        tile = f" {of['TILE_M']}x{of['TILE_N']}" if "TILE_M" in of else f" {of['STRIP']}" if "STRIP" in of else ""
        return f"{self.family}{tile}" + (f" in {self.parts} parts" if self.parts > 1 else "")


class Family(NamedTuple):
    """Kernels of one kind."""

    fits: Callable[[Problem], bool]  # whether they can compute it
    pays: Callable[[Problem], bool]  # whether they are taken without a measurement, where no family before them is
    variants: Callable[[Problem], Iterator[Variant]]  # the usual one first


def candidates(problem: Problem) -> tuple[Variant, ...]:
    """All variants that can compute a problem; the first is the one to take without a measurement."""
    fitting = [family for family in FAMILIES.values() if family.fits(problem)]
    best = next(family for family in fitting if family.pays(problem))
    fitting.sort(key=lambda family: family is not best)
    return tuple(variant for family in fitting for variant in family.variants(problem))


def preferring(name: str) -> Callable[[Problem], Variant]:
    """A chooser: the first candidate whose name begins so, as all of a family do, or the usual one if there is none."""

    def choose(problem: Problem) -> Variant:
        return next((variant for variant in candidates(problem) if str(variant).startswith(name)), usual(problem))

    return choose


@lru_cache(maxsize=4096)
def usual(problem: Problem) -> Variant:
    """The first of a problem's candidates."""
    return candidates(problem)[0]


# -- parts of a sum, and tiles -------------------------------------------------------------------------


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def parts_of(terms: int, blocks: int, wanted: int = _WANTED[0], most: int = 64) -> tuple[int, int]:
    """(length of a part, number of parts) of a sum that `blocks` blocks compute, so that some `wanted` of them do.

    A part has at least 256 terms, and there are at most `most`. A function of shapes alone: so are the bits of the sum.
    """
    most = min(max(wanted // max(blocks, 1), 1), most)
    length = max(256, ceil_div(terms, most))
    return length, max(ceil_div(terms, length), 1)


def _cuts(problem: Problem, blocks: int, step: int = 1) -> Iterator[tuple[int, int]]:
    """The same of a problem, the usual one first; a part's length is a multiple of a step."""
    terms = problem.matrix.terms
    if not problem.splits:
        return iter([(terms, 1)])
    lengths = dict.fromkeys(step * ceil_div(parts_of(terms, blocks, wanted)[0], step) for wanted in _WANTED)
    return ((length, max(ceil_div(terms, length), 1)) for length in lengths)


def _cuts_of_tiles(problem: Problem, blocks: int, step: int = 1) -> Iterator[tuple[int, int]]:
    """The same; and of a forward convolution of few blocks and long sums, as single images have: most of a GPU would be
    idle. One launch more adds its parts up and applies what follows, which takes as long as some 500 terms."""
    terms = problem.matrix.terms
    parts = min(128 // max(blocks, 1), terms // 512, 16)
    if problem.operation == "conv2d_forward" and parts > 1:
        length = step * ceil_div(ceil_div(terms, parts), step)
        yield length, ceil_div(terms, length)
    yield from _cuts(problem, blocks, step)


def _tiles(tile: Tile, of: Matrix) -> int:
    return ceil_div(of.rows, tile["TILE_M"]) * ceil_div(of.columns, tile["TILE_N"]) * of.layers


def _filled(of: Matrix, parts: int) -> bool:
    """Whether tiles of 128 x 128 are filled, and blocks of them enough for most of a GPU."""
    blocks = ceil_div(of.rows, 128) * ceil_div(of.columns, 128) * of.layers * parts
    return min(of.rows, of.columns) > 64 and blocks >= 96


# -- the families --------------------------------------------------------------------------------------


def vector(channels: int, scalar: str) -> int:
    """How many neighbouring channels a thread of a kernel with channels.cuh takes: up to 16 bytes, of half types 8."""
    return math.gcd(channels, 2 if scalar == "double" else 4)


def _depthwise_fits(problem: Problem) -> bool:
    """A filter for each channel, whose columns' sums fit into registers. A strip of an input's gradient begins at a
    multiple of the stride."""
    s = problem.shape
    if not isinstance(s, Convolution) or s.groups <= 1 or not s.groups == s.c == s.k:
        return False
    walks = problem.operation != "conv2d_backward_input" or s.window.stride[1] in (1, 2, 4)
    return walks and max(s.window.kernel) <= 9


def _depthwise(problem: Problem) -> Iterator[Variant]:
    """Strips of conv2d_depthwise.cu: of eight results where a long row of taps makes reading pixels twice dear. A block
    is as wide as leaves few of its threads without channels, but accesses next to each other are whole sectors."""
    s = problem.shape
    assert isinstance(s, Convolution)
    at_once = vector(s.c, problem.operand)
    vectors = s.c // at_once
    widths = [n for n in (1, 2, 4, 8, 16, 32) if n >= min(vectors, 8)]
    lanes = min(widths, key=lambda n: (ceil_div(vectors, n) * n, -n))
    layers = ceil_div(vectors, lanes)
    rows, columns = (s.h, s.w) if problem.operation == "conv2d_backward_input" else (s.p, s.q)
    tile = {"VECTOR": at_once, "LANES": lanes}
    if problem.operation == "conv2d_backward_weight":
        of_taps = min(max(16 // s.window.kernel[1], 1), s.window.kernel[0])
        layers *= ceil_div(s.window.kernel[0], of_taps)
        tile |= {"STRIP": 4, "TAP_ROWS": of_taps}
        for length, n in _cuts(problem, layers, s.q):
            yield Variant("depthwise", tile, layers * n, THREADS, n, length)
        return
    for strip in (8, 4) if s.window.kernel[1] > 3 else (4, 8):
        patches = s.n * ceil_div(rows, 8) * ceil_div(columns, 32 // lanes * strip)
        yield Variant("depthwise", tile | {"STRIP": strip}, patches * layers, THREADS, length=problem.matrix.terms)


def _is_direct(problem: Problem) -> bool:
    s = problem.shape
    return isinstance(s, Convolution) and s.c // s.groups <= 32


def _direct_pays(problem: Problem) -> bool:
    """Where channels are few, and filters too but for the input's gradient: the tiles of a matrix product would be
    mostly empty, since it has these for its columns (the weight's gradient: filters for rows)."""
    s, of = problem.shape, problem.matrix
    few = {"conv2d_forward": of.columns < 8, "conv2d_backward_weight": of.rows <= 4}
    return isinstance(s, Convolution) and s.c // s.groups <= 4 and few.get(problem.operation, True)


def _direct(problem: Problem) -> Iterator[Variant]:
    """A thread for each element."""
    s, of = problem.shape, problem.matrix
    assert isinstance(s, Convolution)
    outputs, constants = of.rows * of.columns * of.layers, {"CHANNELS": s.c // s.groups}
    for length, n in _cuts(problem, ceil_div(outputs, THREADS)):
        yield Variant("direct", constants, ceil_div(outputs * n, THREADS), THREADS, n, length)


def _mma_pays(problem: Problem) -> bool:
    return problem.products == 1 or problem.capability in _FAST_TF32


def _mma(problem: Problem) -> Iterator[Variant]:
    """Tiles of mma_tile.cuh, or half_tile.cuh.

    A warp's part is larger for TF32, which needs two thirds of the shared memory's speed then, and for half types. With
    three products it would not fit into the registers. A large tile takes the time of four small ones, so a fourth as
    many blocks will do: the parts are those of small ones. Up to 32 rows or columns would leave half of a small tile
    empty; a narrow one computes as much in one block, so it is first where there are blocks of it for most of a GPU.
    It has 16 of them where there are no more.
    """
    of, few = problem.matrix, problem.products == 1
    small = {"TILE_M": 64, "TILE_N": 64, "WARP_M": 32, "WARP_N": 32} | problem.kind
    large = {"TILE_M": 128, "TILE_N": 128, "WARP_M": 64, "WARP_N": 64 if few else 32} | problem.kind
    most_parts = max(min(of.terms // 256, 64), 1) if problem.splits else 1
    cuts = list(_cuts_of_tiles(problem, _tiles(small, of), 32 if problem.half else 16))
    tiles = [large, small] if _filled(of, most_parts) else [small, large]
    if min(of.rows, of.columns) <= 32:
        long, short, length = ("M", "N", of.columns) if of.columns <= 32 else ("N", "M", of.rows)
        width = 16 if length <= 16 else 32
        narrow = small | {f"TILE_{long}": 128, f"TILE_{short}": width, f"WARP_{short}": width}
        tiles.insert(0 if _tiles(narrow, of) * cuts[0][1] >= 96 else 1, narrow)
    for tile in tiles:
        threads = 32 * (tile["TILE_M"] // tile["WARP_M"]) * (tile["TILE_N"] // tile["WARP_N"])
        for length, n in cuts:
            yield Variant("mma", tile, _tiles(tile, of) * n, threads, n, length)


def _never_pays(problem: Problem) -> bool:
    """For kernels that no GPU has shown to be faster yet: they are taken where a measurement says so."""
    return False


def _dense_taps(problem: Problem) -> Convolution | None:
    """The shape of a convolution, or of its gradient by the input, whose taps are neighbours."""
    s = problem.shape
    if not isinstance(s, Convolution) or problem.operation == "conv2d_backward_weight":
        return None
    return s if s.window.stride == s.window.dilation == (1, 1) else None


def _halo_fits(problem: Problem) -> bool:
    s = _dense_taps(problem)
    by_chunks = problem.products > 0 and problem.comes_by(problem.chunk)
    return s is not None and by_chunks and all(2 <= length <= 5 for length in s.window.kernel)


def _halo(problem: Problem) -> Iterator[Variant]:
    """Tiles of halo_tile.cuh: 8 pixels wide, of one image; the large one first where there are blocks of it for most of
    a GPU. Warps' parts are those of mma_tile.cuh. The halo of a large filter leaves shared memory for half as many
    filters, and few filters do not fill more."""
    s, of = problem.shape, problem.matrix
    assert isinstance(s, Convolution)
    r, last = s.window.kernel
    small = {"TILE_M": 64, "TILE_N": 64, "WARP_M": 32, "WARP_N": 32} | problem.kind
    wide = of.columns > 64 and 128 * (16 + r - 1) * ((8 + last) // 2 * 2) + 192 * 128 <= 48 * 1024
    warp = 64 if wide and problem.products == 1 else 32
    large = {"TILE_M": 128, "TILE_N": 128 if wide else 64, "WARP_M": 64, "WARP_N": warp} | problem.kind
    rows, columns = (s.p, s.q) if problem.operation == "conv2d_forward" else (s.h, s.w)
    found = []
    for tile in (large, small):
        threads = 32 * (tile["TILE_M"] // tile["WARP_M"]) * (tile["TILE_N"] // tile["WARP_N"])
        of_image = ceil_div(rows, tile["TILE_M"] // 8) * ceil_div(columns, 8)
        blocks = s.n * of_image * ceil_div(of.columns, tile["TILE_N"]) * of.layers
        found.append(Variant("halo", tile, blocks, threads, length=of.terms))
    yield from found if found[0].blocks >= 96 and rows > 8 else reversed(found)


def _wgmma_fits(problem: Problem) -> bool:
    """Half types and TF32 on the one GPU that has wgmma, where the copy engine can walk over the pixels that a filter
    begins at. For the input's gradient it walks over dy, by a stride of 1. TF32 is read along the terms alone."""
    s = problem.shape
    if problem.capability != (9, 0) or problem.products != 1 or not problem.comes_by(problem.chunk):
        return False
    if isinstance(s, Product):
        return s.depth > 0 and (problem.half or (not s.trans_a and s.trans_b))
    if problem.operation == "conv2d_backward_weight" and not problem.half:
        return False
    walks = problem.operation != "conv2d_backward_input" or s.window.stride == (1, 1)
    return walks and s.groups == 1 and max(s.window.extent) <= 256 and walk(problem).is_encodable()


def walk(problem: Problem) -> Pixels:
    """The pixels of x, or of dy for the input's gradient, that a filter begins at."""
    s = problem.shape
    assert isinstance(s, Convolution)
    reach = [extent - 1 for extent in s.window.extent]
    top, bottom, left, right = s.window.padding
    if problem.operation != "conv2d_backward_input":
        return Pixels((-top, -left), (bottom - reach[0], right - reach[1]), s.window.stride)
    lower = (top - reach[0], left - reach[1])
    return Pixels(lower, (s.h - s.p + lower[0], s.w - s.q + lower[1]), (1, 1))


def _wgmma(problem: Problem) -> Iterator[Variant]:
    """Tiles of wgmma_tile.cuh; first, of those that make blocks for most of a GPU, the ones that load least. One of the
    weight gradient's has channels of one tap. Stages fill shared memory, those of small tiles half of it."""
    s, of = problem.shape, problem.matrix
    taps = s.window.taps if isinstance(s, Convolution) and problem.operation == "conv2d_backward_weight" else 1
    of = of._replace(columns=of.columns // taps, layers=of.layers * taps)
    step = 8 * problem.chunk
    tiles = [(128, 64), (128, 128), (128, 256), (256, 64), (256, 128)]

    def loads(tile: tuple[int, int]) -> tuple[bool, int]:
        blocks = ceil_div(of.rows, tile[0]) * ceil_div(of.columns, tile[1]) * of.layers
        return blocks < 96, blocks * sum(tile)

    for rows, width in sorted(tiles, key=loads):
        stage = 128 * (rows + width)  # bytes
        stages = (110 if rows * width <= 128 * 128 and rows == 128 else 220) * 1024 // stage
        tile = {"TILE_M": rows, "TILE_N": width, "TILE_K": step} | problem.kind
        tile |= {"STAGES": stages, "DYNAMIC_SHARED": stages * stage + 1024}
        if isinstance(s, Product):
            tile |= {"BOX_A": step if s.trans_a else rows, "BOX_B": width if s.trans_b else step}
        else:
            tile |= {"TURNED": int(not problem.half), "BOX_W": step if problem.half else width}
        for length, n in _cuts(problem, _tiles(tile, of), step):
            yield Variant("wgmma", tile, _tiles(tile, of) * n, 288, n, length, copying=32)


def _winograd_fits(problem: Problem) -> bool:
    """With few channels or filters its transforms would take more than it saves."""
    s = _dense_taps(problem)
    exact = problem.scalar == "float" and problem.precision == "fp32" and (problem.capability or (0, 0)) >= (8, 0)
    if s is None or not exact or s.window.kernel != (3, 3) or s.groups != 1:
        return False
    return min(s.c, s.k) >= 64 and problem.comes_by(4)


def _winograd(problem: Problem) -> Iterator[Variant]:
    """Blocks of conv2d_winograd.cu: 32 places of 2 x 2 outputs, 64 filters."""
    s, of = problem.shape, problem.matrix
    assert isinstance(s, Convolution)
    rows, columns = (s.p, s.q) if problem.operation == "conv2d_forward" else (s.h, s.w)
    places = s.n * ceil_div(rows, 2) * ceil_div(columns, 2)
    yield Variant("winograd", {}, ceil_div(places, 32) * ceil_div(of.columns, 64), 256, length=of.terms)


def _fma_pays(problem: Problem) -> bool:
    """Where half of a tile is filled."""
    of = problem.matrix
    width = {"matmul": min(of.rows, of.columns), "conv2d_backward_weight": of.rows}.get(problem.operation, of.columns)
    return width >= 32


def _fma(problem: Problem) -> Iterator[Variant]:
    """Tiles of fma_tile.cuh, with gemm_tile's parts, so its bits. Sums in double take two registers each."""
    of, double = problem.matrix, problem.scalar == "double"
    small = {"TILE_M": 64, "TILE_N": 64, "THREAD_M": 4 if double else 8, "THREAD_N": 4 if double else 8}
    large = {"TILE_M": 128, "TILE_N": 128, "THREAD_M": 16, "THREAD_N": 8}
    for length, n in _cuts_of_tiles(problem, _tiles(_gemm_tiles(of)[0], of), _step(problem)):
        for tile in (small,) if double else (large, small) if _filled(of, n) else (small, large):
            yield _of_threads("fma", tile, of, length, n)


def _step(problem: Problem) -> int:
    """Of what the parts of a sum are multiples: tiles read operands that lie along it by 16 bytes, or part by part."""
    return 1 if problem.operation == "conv2d_backward_weight" else 4


def _gemm_tiles(of: Matrix) -> list[Tile]:
    """Of gemm_tile.cuh: larger ones reuse more, smaller ones waste less. The usual one first."""
    tiles = [
        {"TILE_M": 64, "TILE_N": 64, "TILE_K": 8, "THREAD_M": 4, "THREAD_N": 4},
        {"TILE_M": 32, "TILE_N": 32, "TILE_K": 8, "THREAD_M": 2, "THREAD_N": 2},
        {"TILE_M": 64, "TILE_N": 16, "TILE_K": 8, "THREAD_M": 4, "THREAD_N": 2},
        {"TILE_M": 32, "TILE_N": 8, "TILE_K": 16, "THREAD_M": 2, "THREAD_N": 2},
        {"TILE_M": 16, "TILE_N": 32, "TILE_K": 16, "THREAD_M": 2, "THREAD_N": 2},
    ]
    if of.columns <= 16:
        first = 3 if of.columns <= 8 else 2
    else:
        first = 4 if of.rows <= 16 else 0 if of.rows >= 64 and of.columns >= 64 else 1
    return [tiles[first], *tiles[:first], *tiles[first + 1 :]]


def _gemm(problem: Problem) -> Iterator[Variant]:
    """Tiles of gemm_tile.cuh, for any size."""
    of = problem.matrix
    for tile in _gemm_tiles(of):
        for length, n in _cuts_of_tiles(problem, _tiles(tile, of), _step(problem)):
            yield _of_threads("gemm", tile, of, length, n)


def _of_threads(family: str, tile: Tile, of: Matrix, length: int, parts: int) -> Variant:
    threads = tile["TILE_M"] // tile["THREAD_M"] * (tile["TILE_N"] // tile["THREAD_N"])
    return Variant(family, tile, _tiles(tile, of) * parts, threads, parts, length)


FAMILIES = {
    "depthwise": Family(_depthwise_fits, lambda p: True, _depthwise),
    "direct": Family(_is_direct, _direct_pays, _direct),
    "mma": Family(lambda p: p.products > 0 and p.comes_by(p.chunk), _mma_pays, _mma),
    "halo": Family(_halo_fits, _never_pays, _halo),
    "wgmma": Family(_wgmma_fits, _never_pays, _wgmma),
    "winograd": Family(_winograd_fits, _never_pays, _winograd),
    "fma": Family(lambda p: p.chunk <= 4 and p.comes_by(4), _fma_pays, _fma),
    "gemm": Family(lambda p: True, lambda p: True, _gemm),
}
