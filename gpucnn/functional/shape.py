"""Views, joining, indexing, order, padding and resizing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpucnn.backends import Array
from gpucnn.dtypes import is_half
from gpucnn.functional import validate
from gpucnn.functional.arithmetic import ValuesAndIndices, _sum_to, where
from gpucnn.functional.casting import promoted, through_float32
from gpucnn.geometry import MOST
from gpucnn.tensor import Tensor, check_index, checked_shape, record


def reshape(input: Tensor, shape: Sequence[int]) -> Tensor:
    """The same elements, in the order of the [N, C, H, W] indices, with another shape; one length may be −1."""
    backend = validate.one_backend("reshape", input=input)
    before = input.shape
    wanted = validate.integers("reshape", "shape", shape)
    known = math.prod(n for n in wanted if n != -1)
    if (
        any(n < -1 for n in wanted)
        or wanted.count(-1) > 1
        or (input.numel() != known if -1 not in wanted else known == 0 or input.numel() % known)
    ):
        raise ValueError(f"reshape: {input.numel()} elements of shape {before} can't take the shape {wanted}")
    if not input.numel():  # which fit into any shape with a 0, also one that no array can have
        checked_shape([n for n in wanted if n != -1])
    y = backend.contiguous(input.array.reshape(wanted))
    return record(backend, y, (input, lambda dy: backend.contiguous(dy.reshape(before))))


def clone(input: Tensor) -> Tensor:
    """A copy with its own memory; the gradient goes through."""
    backend = validate.one_backend("clone", input=input)
    return record(backend, input.array.copy(order="K"), (input, lambda dy: dy))


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes start_dim … end_dim as one: of [N, C, H, W], flatten(1) is channel-major, then row-major."""
    validate.one_backend("flatten", input=input)
    if input.ndim == 0:
        return reshape(input, (1,))
    start, end = (validate.axis("flatten", d, input.ndim) for d in (start_dim, end_dim))
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    shape = input.shape
    return reshape(input, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Axis `dim` as several axes of the lengths `sizes` (one may be −1): the inverse of flatten."""
    validate.one_backend("unflatten", input=input)
    at = validate.axis("unflatten", dim, input.ndim)
    sizes = validate.integers("unflatten", "sizes", sizes)
    known = math.prod(n for n in sizes if n != -1)
    length = input.shape[at]
    if any(n < -1 for n in sizes) or sizes.count(-1) > 1 or known == 0 or length % known:
        raise ValueError(f"unflatten: an axis of {length} can't become {sizes}")
    resolved = tuple(length // known if n == -1 else n for n in sizes)
    if math.prod(resolved) != length:
        raise ValueError(f"unflatten: an axis of {length} can't become {sizes}")
    return reshape(input, (*input.shape[:at], *resolved, *input.shape[at + 1 :]))


def permute(input: Tensor, dims: Sequence[int]) -> Tensor:
    """The axes in another order; a view."""
    backend = validate.one_backend("permute", input=input)
    dims = validate.integers("permute", "dims", dims)
    if sorted(d % input.ndim if -input.ndim <= d < input.ndim else -1 for d in dims) != list(range(input.ndim)):
        raise ValueError(f"permute: dims must name each axis of shape {input.shape} once, got {dims}")
    order = tuple(d % input.ndim for d in dims)
    inverse = tuple(np.argsort(order).tolist())
    return record(backend, input.array.transpose(order), (input, lambda dy: dy.transpose(inverse)))


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two axes exchanged; a view."""
    validate.one_backend("transpose", input=input)
    order = list(range(input.ndim))
    a, b = (validate.axis("transpose", d, input.ndim) for d in (dim0, dim1))
    order[a], order[b] = b, a
    return permute(input, order)


def squeeze(input: Tensor, dim: int | None = None) -> Tensor:
    """Without its axes of length 1, or without axis `dim` if that has length 1."""
    validate.one_backend("squeeze", input=input)
    chosen = range(input.ndim) if dim is None else (validate.axis("squeeze", dim, input.ndim),)
    return reshape(input, [n for i, n in enumerate(input.shape) if not (i in chosen and n == 1)])


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With a new axis of length 1 at `dim`."""
    validate.one_backend("unsqueeze", input=input)
    at = validate.axis("unsqueeze", dim, input.ndim + 1)
    return reshape(input, (*input.shape[:at], 1, *input.shape[at:]))


def expand(input: Tensor, shape: Sequence[int]) -> Tensor:
    """Axes of length 1 repeated to `shape`; −1 keeps a length."""
    backend = validate.one_backend("expand", input=input)
    shape = validate.integers("expand", "shape", shape)
    extra = len(shape) - input.ndim
    before = input.shape
    wanted = tuple(before[i - extra] if n == -1 and i >= extra else n for i, n in enumerate(shape))
    if (
        extra < 0
        or any(n < 0 for n in wanted)
        or any(n != m and m != 1 for n, m in zip(wanted[extra:], before, strict=True))
    ):
        raise ValueError(f"expand: shape {before} can't be repeated to {shape}")
    y = backend.contiguous(backend.xp.broadcast_to(input.array, checked_shape(wanted)).copy())
    return record(backend, y, (input, lambda dy: _sum_to(backend, dy, before)))


def t(input: Tensor) -> Tensor:
    """A matrix transposed; a tensor of fewer axes as it is. Raises ValueError for more axes."""
    validate.one_backend("t", input=input)
    if input.ndim > 2:
        raise ValueError(f"t: input must have at most 2 axes, got shape {input.shape}; use transpose or permute")
    return transpose(input, 0, 1) if input.ndim == 2 else input


def tile(input: Tensor, dims: Sequence[int]) -> Tensor:
    """input side by side so many times along each axis; of fewer numbers than axes, along the last ones."""
    validate.one_backend("tile", input=input)
    times = validate.integers("tile", "dims", dims)
    if any(n < 0 for n in times):
        raise ValueError(f"tile: dims must not be negative, got {times}")
    times = (1,) * (input.ndim - len(times)) + times
    shape = (1,) * (len(times) - input.ndim) + input.shape
    checked_shape([n * length for n, length in zip(times, shape, strict=True)])
    y = reshape(input, shape)
    if all(n == 1 for n in times):
        return clone(y)
    for i, n in enumerate(times):
        if n != 1:
            y = cat([y] * n, i) if n else index(y, (slice(None),) * i + (slice(0),))
    return y


def flip(input: Tensor, dims: int | Sequence[int]) -> Tensor:
    """The elements in reverse order along one axis or several; a copy."""
    validate.one_backend("flip", input=input)
    wanted = validate.integers("flip", "dims", dims if isinstance(dims, Sequence) else (dims,))
    chosen = validate.axes("flip", wanted, input.ndim) if wanted else ()
    return clone(index(input, tuple(slice(None, None, -1 if i in chosen else 1) for i in range(input.ndim))))


def roll(input: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> Tensor:
    """The elements moved on by `shifts` along axes `dims`, around the end; without axes, in row-major order."""
    backend = validate.one_backend("roll", input=input)
    by = validate.integers("roll", "shifts", shifts if isinstance(shifts, Sequence) else (shifts,))
    if dims is None:
        if len(by) != 1:
            raise ValueError(f"roll: several shifts {by} need as many dims")
        return reshape(roll(reshape(input, (-1,)), by, 0), input.shape)
    given = validate.integers("roll", "dims", dims if isinstance(dims, Sequence) else (dims,))
    axes = tuple(validate.axis("roll", dim, input.ndim) for dim in given)
    if len(by) != len(axes):
        raise ValueError(f"roll: shifts {by} must be as many as dims {given}")
    by = tuple(shift % input.shape[axis] if input.shape[axis] else 0 for shift, axis in zip(by, axes, strict=True))

    def rolled(a: Array, sign: int) -> Array:
        return backend.contiguous(backend.xp.roll(a, tuple(sign * shift for shift in by), axes))

    return record(backend, rolled(input.array, 1), (input, lambda dy: rolled(dy, -1)))


def movedim(input: Tensor, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """Axes `source` at the places `destination`, the others in their order; a view."""
    validate.one_backend("movedim", input=input)
    lists = [
        validate.integers("movedim", name, value if isinstance(value, Sequence) else (value,))
        for name, value in (("source", source), ("destination", destination))
    ]
    taken, goal = ([validate.axis("movedim", dim, input.ndim) for dim in dims] for dims in lists)
    if len(taken) != len(goal) or len(set(taken)) < len(taken) or len(set(goal)) < len(goal):
        raise ValueError(f"movedim: source {lists[0]} and destination {lists[1]} must be as many, each axis once")
    order = [axis for axis in range(input.ndim) if axis not in taken]
    for place, axis in sorted(zip(goal, taken, strict=True)):
        order.insert(place, axis)
    return permute(input, order)


def repeat_interleave(input: Tensor, repeats: int, dim: int | None = None) -> Tensor:
    """Each element along axis `dim` `repeats` times in a row; without an axis, of all in row-major order."""
    validate.one_backend("repeat_interleave", input=input)
    times = validate.integer("repeat_interleave", "repeats", repeats, least=0)
    if dim is None:
        return repeat_interleave(reshape(input, (-1,)), times, 0)
    at = validate.axis("repeat_interleave", dim, input.ndim)
    checked_shape((*input.shape[:at], input.shape[at] * times, *input.shape[at + 1 :]))
    return _take(input, np.repeat(np.arange(input.shape[at]), times), at)


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangles of matrices [..., M, N], with `diagonal` more diagonals; 0 elsewhere."""
    return _triangle("tril", input, diagonal)


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangles of matrices [..., M, N], from diagonal number `diagonal` on; 0 elsewhere."""
    return _triangle("triu", input, diagonal)


def _triangle(op: str, input: Tensor, diagonal: int) -> Tensor:
    backend = validate.one_backend(op, input=input)
    k = validate.integer(op, "diagonal", diagonal)
    if input.ndim < 2:
        raise ValueError(f"{op}: input must have at least 2 axes, got shape {input.shape}")
    k = max(-input.shape[-2], min(k, input.shape[-1]))  # beyond all of them, where it is

    def part(a: Array) -> Array:
        return backend.contiguous(getattr(backend.xp, op)(a, k))

    return record(backend, part(input.array), (input, part))


def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The parts of length 1 along an axis, without that axis."""
    validate.one_backend("unbind", input=input)
    at = validate.axis("unbind", dim, input.ndim)
    return tuple(index(input, (slice(None),) * at + (i,)) for i in range(input.shape[at]))


def cat(tensors: Iterable[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one dtype joined along axis `dim`; their other lengths must agree."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("cat: there are no tensors to join")
    named = {f"tensors[{i}]": t for i, t in enumerate(tensors)}
    backend = validate.one_backend("cat", **named)
    tensors = promoted(tensors)
    if len({t.dtype for t in tensors}) > 1:
        raise TypeError(f"cat: the tensors must have one dtype, got {', '.join(str(t.dtype) for t in tensors)}")
    at = validate.axis("cat", dim, tensors[0].ndim)
    shapes = [t.shape for t in tensors]
    if len({(*s[:at], *s[at + 1 :]) for s in shapes}) > 1 or len({len(s) for s in shapes}) > 1:
        raise ValueError(f"cat: shapes {', '.join(map(str, shapes))} differ in more than axis {at}")
    ends = np.cumsum([s[at] for s in shapes]).tolist()
    parts = [(slice(None),) * at + (slice(end - t.shape[at], end),) for t, end in zip(tensors, ends, strict=True)]
    shape = (*shapes[0][:at], ends[-1], *shapes[0][at + 1 :])
    if len(shape) == 4:  # in storage order, so that the result is channels-last
        n, c, h, w = shape
        y = backend.xp.empty((n, h, w, c), tensors[0].array.dtype).transpose(0, 3, 1, 2)
    else:
        y = backend.xp.empty(shape, tensors[0].array.dtype)
    for t, part in zip(tensors, parts, strict=True):  # CuPy's concatenate copies from the host, which no graph can hold
        y[part] = t.array
    return record(backend, y, *((t, lambda dy, part=part: dy[part]) for t, part in zip(tensors, parts, strict=True)))


def stack(tensors: Iterable[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis `dim`."""
    return cat([unsqueeze(t, dim) for t in tensors], dim)


def split(input: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Parts along axis `dim`, as views: of one length each (the last may be shorter), or of the lengths given.

    Raises ValueError for lengths that do not add up to the axis.
    """
    validate.one_backend("split", input=input)
    at, given = validate.axis("split", dim, input.ndim), split_size_or_sections
    length = input.shape[at]
    if isinstance(given, Sequence):
        sections = validate.integers("split", "split_size_or_sections", given)
    else:
        size = validate.integer("split", "split_size_or_sections", given, least=1)
        sections = tuple(min(size, length - start) for start in range(0, length, size)) or (0,)
    if any(n < 0 for n in sections) or sum(sections) != length:
        raise ValueError(f"split: sections {sections} do not add up to axis {at} of shape {input.shape}")
    ends = itertools.accumulate(sections)
    return tuple(
        index(input, (slice(None),) * at + (slice(end - n, end),)) for n, end in zip(sections, ends, strict=True)
    )


def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` parts of one length along axis `dim`, as views; the last may be shorter."""
    validate.one_backend("chunk", input=input)
    chunks = validate.integer("chunk", "chunks", chunks, least=1)
    length = input.shape[validate.axis("chunk", dim, input.ndim)]
    return split(input, max(-(-length // chunks), 1), dim)


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """[N, C·r², H, W] to [N, C, H·r, W·r]: r·r channels become the pixels of a square. Shi et al. 2016."""
    r = validate.integer("pixel_shuffle", "upscale_factor", upscale_factor, least=1)
    validate.rank("pixel_shuffle", "input", input, 4, "[N, C, H, W]")
    n, c, h, w = input.shape
    if c % (r * r):
        raise ValueError(f"pixel_shuffle: {c} channels are no multiple of upscale_factor² = {r * r}")
    parts = reshape(input, (n, c // (r * r), r, r, h, w))
    return reshape(permute(parts, (0, 1, 4, 2, 5, 3)), (n, c // (r * r), h * r, w * r))


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """[N, C, H·r, W·r] to [N, C·r², H, W]: the inverse of pixel_shuffle."""
    r = validate.integer("pixel_unshuffle", "downscale_factor", downscale_factor, least=1)
    validate.rank("pixel_unshuffle", "input", input, 4, "[N, C, H, W]")
    n, c, h, w = input.shape
    if h % r or w % r:
        raise ValueError(f"pixel_unshuffle: downscale_factor={r} must divide height and width, got {(h, w)}")
    parts = reshape(input, (n, c, h // r, r, w // r, r))
    return reshape(permute(parts, (0, 1, 3, 5, 2, 4)), (n, c * r * r, h // r, w // r))


# -- indexing --------------------------------------------------------------------------------------


def host_index(index: Any) -> Any:
    """An index with its tensors and lists as host arrays; tuples inside it, lists and ranges index as arrays do."""
    if isinstance(index, tuple):
        return tuple(host_index(list(part) if isinstance(part, tuple) else part) for part in index)
    if isinstance(index, Tensor):
        index = index.numpy()
    if isinstance(index, list | range):
        try:
            index = np.asarray(index, dtype=np.intp) if not index else np.asarray(index)
        except (ValueError, OverflowError) as error:
            raise IndexError(f"the {type(index).__name__} {index!r:.100} can't be an index: {error}") from None
    if isinstance(index, np.ndarray) and index.dtype.kind not in "iub":
        raise IndexError(f"a tensor is indexed by ints, slices, or int or bool arrays, got an array of {index.dtype}")
    if isinstance(index, np.ndarray) and index.dtype == np.uint8:
        index = index.astype(np.intp)
    return index


def index(input: Tensor, index: Any) -> Tensor:
    """input[index], as NumPy indexes: ints, slices, None, Ellipsis, int and bool arrays or tensors.

    An element chosen more than once gets every share of the gradient.
    """
    backend = validate.one_backend("index", input=input)
    where = host_index(index)
    try:
        check_index(where, input.shape)
        y = input.array[where]
    except (IndexError, TypeError, ValueError, OverflowError) as error:
        raise IndexError(f"index {index!r:.200} does not fit shape {input.shape}: {error}") from None
    shape = input.shape
    return record(backend, y, (input, lambda dy: backend.index_backward(dy, where, shape)))


_chosen = index  # where an argument has that name


def _take(input: Tensor, indices: np.ndarray[Any, Any], dim: int) -> Tensor:
    return index(input, (slice(None),) * dim + (indices,))


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The parts of `input` along axis `dim` whose places are in `index`, integers along one axis."""
    validate.one_backend("index_select", input=input, index=index)
    at = validate.axis("index_select", dim, input.ndim)
    places = _places("index_select", index, input.shape[at])
    if index.ndim > 1:
        raise ValueError(f"index_select: index must have one axis, got shape {index.shape}")
    return _take(input, places.reshape(-1), at)


def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """Of axis `dim` the places in `index`, of the other axes index's own: y[i, j] = input[index[i, j], j] for dim 0.

    `index` is int64 with as many axes as `input`, none of them longer but `dim`. Raises IndexError for a place that is
    out of range, ValueError for shapes that do not fit.
    """
    validate.one_backend("gather", input=input, index=index)
    at = validate.axis("gather", dim, input.ndim)
    chosen = _places("gather", index, input.shape[at])
    fits = index.ndim == input.ndim and all(
        i == at or n <= length for i, (n, length) in enumerate(zip(index.shape, input.shape, strict=True))
    )
    if not fits:
        raise ValueError(f"gather: index of shape {index.shape} does not fit input of shape {input.shape}, dim {dim}")
    places: list[Any] = list(np.ogrid[tuple(slice(n) for n in index.shape)])
    places[at] = chosen
    return _chosen(input, tuple(places))


def _places(op: str, index: Tensor, length: int) -> np.ndarray[Any, Any]:
    """The places on the host. Raises unless they are integers from 0 to length − 1; negative ones are an error, as in
    PyTorch."""
    if index.dtype.kind not in "iu":
        raise TypeError(f"{op}: index must be an integer tensor, got {index.dtype}")
    places = index.numpy()
    wrong = places[(places < 0) | (places >= length)]
    if wrong.size:
        raise IndexError(f"{op}: place {wrong.flat[0]} is out of range for an axis of length {length}")
    return places


def masked_fill(input: Tensor, mask: Tensor, value: float) -> Tensor:
    """`value` where `mask`, a bool tensor that broadcasts with it, is true, else input."""
    validate.one_backend("masked_fill", input=input, mask=mask)
    return where(mask, validate.number("masked_fill", "value", value), input)


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where `mask`, a bool tensor that broadcasts with input, is true, in row-major order: one axis."""
    validate.one_backend("masked_select", input=input, mask=mask)
    if mask.dtype != np.bool_:
        raise TypeError(f"masked_select: mask must be a bool tensor, got {mask.dtype}")
    try:
        shape = np.broadcast_shapes(input.shape, mask.shape)
    except ValueError:
        raise ValueError(f"masked_select: shapes {input.shape} and {mask.shape} do not broadcast") from None
    if not shape:  # a single element, or none
        return reshape(input, (1,))[: int(mask.item())]
    whole = input if shape == input.shape else expand(input, shape)
    return _chosen(whole, np.nonzero(np.broadcast_to(mask.numpy(), shape)))


def nonzero(input: Tensor) -> Tensor:
    """The places of the elements that are not 0, in row-major order: int64 [number, axes]."""
    backend = validate.one_backend("nonzero", input=input)
    places = np.argwhere(np.asarray(input.numpy()) != 0)
    return Tensor(backend.asarray(places.astype(np.int64)), backend)


def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often 0, 1, 2, … are in a tensor [N] of integers: int64; with `weights` [N], the sums of theirs: float64.

    Raises ValueError for a negative number.
    """
    given = {"input": input} | ({} if weights is None else {"weights": weights})
    backend = validate.one_backend("bincount", **given)
    least = validate.integer("bincount", "minlength", minlength, least=0)
    validate.rank("bincount", "input", input, 1, "[N]")
    if input.dtype.kind not in "iu":
        raise TypeError(f"bincount: input must be an integer tensor, got {input.dtype}")
    if weights is not None:
        validate.shape("bincount", "weights", weights, input.shape, "the input's")
    numbers = input.numpy()
    if numbers.size and numbers.min() < 0:
        raise ValueError(f"bincount: numbers must not be negative, got {numbers.min()}")
    checked_shape((max(least, int(numbers.max(initial=0)) + 1),))
    factors = None if weights is None else weights.numpy().astype(np.float64)
    counts = np.bincount(numbers.astype(np.int64), factors, least)
    return Tensor(backend.asarray(counts), backend)


def unique(
    input: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> Tensor | tuple[Tensor, ...]:
    """The different elements, sorted, [number]; then, if wanted, for each element the place of its like among them, and
    how many there are of each."""
    backend = validate.one_backend("unique", input=input)
    values = input.numpy().astype(np.float32) if is_half(input.dtype) else input.numpy()
    found, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    results = [found.astype(input.dtype)]
    results += [inverse.reshape(input.shape)] * bool(return_inverse) + [counts] * bool(return_counts)
    tensors = tuple(Tensor(backend.asarray(result), backend) for result in results)
    return tensors if len(tensors) > 1 else tensors[0]


def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The places along an axis in the order of their elements, int64. Equal ones stay in theirs, with or without
    `stable`; NaN is larger than all numbers."""
    backend = validate.one_backend("argsort", input=input)
    if not input.ndim:
        return Tensor(backend.xp.zeros((), np.int64), backend)
    at = validate.axis("argsort", dim, input.ndim)
    x = input.array.astype(np.float32) if is_half(input.dtype) else input.array
    x = x.astype(np.uint8) if x.dtype == np.bool_ else x
    xp = backend.xp
    order = xp.argsort(xp.flip(x, at) if descending else x, axis=at, kind="stable")
    if descending:  # backwards in and out, so that of equal elements the first comes first
        order = x.shape[at] - 1 - xp.flip(order, at)
    return Tensor(backend.contiguous(order.astype(np.int64)), backend)


def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> ValuesAndIndices:
    """The elements along an axis in order, and the places that they had: see argsort. The gradient goes back there."""
    order = argsort(input, dim, descending, stable)
    return ValuesAndIndices(gather(input, dim, order) if input.ndim else input, order)


def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> ValuesAndIndices:
    """The k largest (or smallest) elements along an axis, the best first, and their places.

    They come in order with or without `sorted`; of equal ones the first come first. Raises ValueError for a k above
    the axis's length.
    """
    validate.one_backend("topk", input=input)
    at = validate.axis("topk", dim, input.ndim) if input.ndim else 0
    most = input.shape[at] if input.ndim else 1
    if validate.integer("topk", "k", k, 0) > most:
        raise ValueError(f"topk: k must be at most the length of axis {dim}, which is {most}, got {k}")
    order = argsort(input, dim, largest)
    if not input.ndim:
        return ValuesAndIndices(input, order)
    order = index(order, (slice(None),) * at + (slice(0, int(k)),))
    return ValuesAndIndices(gather(input, at, order), order)


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """int64 [..., classes]: 1 at the class that an integer tensor [...] names, else 0.

    num_classes: by default one more than the largest. Raises ValueError for a number that is no class.
    """
    backend = validate.one_backend("one_hot", tensor=tensor)
    if tensor.dtype.kind not in "iu":
        raise TypeError(f"one_hot: tensor must hold integers, got {tensor.dtype}")
    labels = tensor.numpy()
    classes = validate.integer("one_hot", "num_classes", num_classes)
    if classes == -1 and labels.size:
        classes = int(labels.max()) + 1
    if classes < 1:
        raise ValueError(f"one_hot: num_classes must be above 0, got {num_classes} for shape {tensor.shape}")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise ValueError(f"one_hot: {wrong.flat[0]} is not a class; there are {classes}, 0 to {classes - 1}")
    checked_shape((*tensor.shape, classes))
    return Tensor(backend.asarray((labels[..., None] == np.arange(classes)).astype(np.int64)), backend)


# -- padding ---------------------------------------------------------------------------------------


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """The last axes grown (or, with negative numbers, cut): pad = (left, right, top, bottom, …), last axis first.

    mode: "constant" (with `value`), "reflect" (the edge itself is not repeated) or "replicate". Raises ValueError if a
    reflection is longer than its axis allows.
    """
    validate.choice("pad", "mode", mode, ("constant", "reflect", "replicate"))
    backend = validate.floating("pad", input=input)
    pad = validate.integers("pad", "pad", pad)
    value = validate.number("pad", "value", value)
    if len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise ValueError(f"pad: needs a (before, after) pair for each of at most {input.ndim} axes, got {pad}")
    sides = [(0, 0)] * (input.ndim - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    if any(n + min(a, 0) + min(b, 0) < 0 for n, (a, b) in zip(input.shape, sides, strict=True)):
        raise ValueError(f"pad: {pad} cuts more than shape {input.shape} has")
    if mode != "constant":
        return _pad_by_index(input, sides, mode)
    shape = tuple(n + a + b for n, (a, b) in zip(input.shape, sides, strict=True))
    inside = tuple(slice(max(a, 0), n - max(b, 0)) for n, (a, b) in zip(shape, sides, strict=True))
    kept = tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(input.shape, sides, strict=True))
    y = backend.contiguous(backend.xp.empty(checked_shape(shape), input.dtype))
    with np.errstate(all="ignore"):  # a value may be infinite in the input's type
        y[...] = value
    y[inside] = input.array[kept]
    before = input.shape

    def vjp(dy: Array) -> Array:
        dx = backend.contiguous(backend.xp.zeros(before, dy.dtype))
        dx[kept] = dy[inside]
        return dx

    return record(backend, y, (input, vjp))


def _pad_by_index(input: Tensor, sides: list[tuple[int, int]], mode: str) -> Tensor:
    for dim, (before, after) in enumerate(sides):
        length = input.shape[dim]
        if before == after == 0:
            continue
        if mode == "reflect" and max(before, after) >= length:
            raise ValueError(
                f'pad: "reflect" by ({before}, {after}) needs an axis longer than that, axis {dim} has {length}'
            )
        if length == 0:
            raise ValueError(f'pad: axis {dim} of shape {input.shape} is empty, there is nothing to "{mode}"')
        places = np.arange(-before, length + after)
        if mode == "reflect":
            places = np.abs(places)
            places = np.minimum(places, 2 * (length - 1) - places)
        else:
            places = np.clip(places, 0, length - 1)
        input = _take(input, places, dim)
    return input


# -- resizing --------------------------------------------------------------------------------------


@through_float32
def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """[N, C, H, W] resized to `size` (height, width) or by `scale_factor`, "nearest" or "bilinear"; [N, C, L] likewise,
    "nearest" or "linear".

    The rules are PyTorch's: nearest takes pixel ⌊i · H/P⌋; bilinear puts pixel centres at half integers, or the corners
    on each other with align_corners=True. A scale_factor that is given is also the scale used (not H/P).
    """
    op = "interpolate"
    validate.choice(op, "mode", mode, ("nearest", "linear", "bilinear"))
    validate.floating(op, input=input)
    if mode != "nearest" or input.ndim != 3:
        validate.rank(
            op, "input", input, 3 if mode == "linear" else 4, "[N, C, L]" if mode == "linear" else "[N, C, H, W]"
        )
    if (size is None) == (scale_factor is None):
        raise ValueError(f"{op}: give either size or scale_factor")
    if mode == "nearest" and align_corners is not None:
        raise ValueError(f'{op}: align_corners goes with mode="bilinear" or "linear"')
    lengths = input.shape[2:]
    if size is not None:
        goal = validate.integers(op, "size", size if isinstance(size, Sequence) else (size,) * len(lengths))
        scales: tuple[float | None, ...] = (None,) * len(lengths)
    else:
        assert scale_factor is not None
        given = tuple(scale_factor) if isinstance(scale_factor, Sequence) else (scale_factor,) * len(lengths)
        factors = tuple(validate.number(op, "scale_factor", factor) for factor in given)
        if not all(0 < factor < MOST for factor in factors):
            raise ValueError(f"{op}: scale_factor must be positive and finite, got {scale_factor!r:.100}")
        goal = tuple(math.floor(n * f) for n, f in zip(lengths, factors, strict=False))
        scales = tuple(1 / f for f in factors)
    if not len(goal) == len(scales) == len(lengths) or not 1 <= min(goal) <= max(goal) <= MOST or min(lengths) < 1:
        axes_ = "[H, W]" if len(lengths) == 2 else "[L]"
        raise ValueError(
            f"{op}: {axes_} = {tuple(lengths)} can't be resized to size={size!r}, scale_factor={scale_factor!r}"
        )
    axes = enumerate(zip(lengths, goal, scales, strict=True), start=2)
    changed = [(dim, *axis) for dim, axis in axes if axis[0] != axis[1] or axis[2] not in (None, 1.0)]
    if not changed:
        return clone(input)
    for dim, length, count, scale in changed:
        if mode == "nearest":
            places = np.floor(np.arange(count, dtype=np.float32) * np.float32(scale or length / count))
            input = _take(input, np.minimum(places.astype(np.intp), length - 1), dim)
        else:
            input = _lerp(input, dim, length, count, scale, bool(align_corners))
    return input


def _lerp(input: Tensor, dim: int, length: int, count: int, scale: float | None, align_corners: bool) -> Tensor:
    """Linear interpolation along one axis: two gathers and a weighted sum."""
    i = np.arange(count, dtype=np.float64)
    if align_corners:
        position = i * ((length - 1) / (count - 1) if count > 1 else 0.0)
    else:
        position = np.maximum((i + 0.5) * (scale or length / count) - 0.5, 0.0)
    low = np.minimum(position.astype(np.intp), length - 1)
    high = np.minimum(low + 1, length - 1)
    weights = (position - low).astype(input.dtype).reshape((-1,) + (1,) * (input.ndim - dim - 1))
    backend = input.backend
    t = Tensor(backend.asarray(weights), backend)
    return _take(input, low, dim) * (1 - t) + _take(input, high, dim) * t
