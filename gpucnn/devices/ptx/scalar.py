"""The instructions of a single thread: arithmetic, comparisons, conversions, loads and stores.

Floats are rounded as IEEE 754 says, each once; with .ftz what is below the normal numbers counts as zero, in operands
and in results. Source: PTX ISA 9, "Instruction Set".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.devices.ptx.code import TYPES, Instruction
from gpucnn.devices.ptx.machine import UNSIGNED, At, Program, Step, Wave, unknown

# An array of the threads' values, or the one value that all of them have.
Values = Any

TINY = np.float32(2.0**-126)
NAN32 = np.uint32(0x7FFFFFFF).view(np.float32)
NAN16 = np.uint16(0x7FFF)  # the bits of every NaN, of bfloat16 too


def flushed(x: Values) -> Values:
    """x with zeros of its sign for what is below the normal numbers."""
    return x * (np.abs(x) >= TINY)


def canonical(x: Values) -> Values:
    """x with the one NaN that arithmetic on floats makes."""
    return np.where(x == x, x, NAN32)


# -- arithmetic --------------------------------------------------------------------------------------


def fma(a: Values, b: Values, c: Values) -> Values:
    """a · b + c, rounded once."""
    if a.dtype == np.float32:
        product = a.astype(np.float64) * b.astype(np.float64)  # exact
        return to_float32(*two_sum(product, c.astype(np.float64)))
    product, below = two_product(a, b)
    middle, rest = two_sum(c, below)
    total, lost = two_sum(product, middle)
    odd, off = two_sum(rest, lost)
    bits = odd.view(np.int64)  # to odd, so that only the last addition rounds (Boldo and Melquiond, 2008)
    odd = np.where((off != 0) & (bits & 1 == 0), (bits + np.where((off > 0) == (odd > 0), 1, -1)).view(np.float64), odd)
    result = total + odd
    # Of a zero the sign, and where the parts overflow all, is that of a · b + c.
    return np.where(np.isfinite(result) & (result != 0), result, product + c)


def two_sum(a: Values, b: Values) -> tuple[Values, Values]:
    """a + b, and by how much that is off, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Values, b: Values) -> tuple[Values, Values]:
    """a · b, and by how much that is off (Dekker, Veltkamp)."""
    product = a * b

    def halves(x: Values) -> tuple[Values, Values]:
        scaled = x * 134217729.0  # 2²⁷ + 1
        high = scaled - (scaled - x)
        return high, x - high

    (a1, a2), (b1, b2) = halves(a), halves(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def to_float32(total: Values, rest: Values) -> Values:
    """total + rest, rounded once: where total lies halfway between two floats, the rest decides."""
    bits = total.view(np.int64)
    halfway = (bits & 0x1FFFFFFF) == 0x10000000
    if halfway.any():
        halfway &= (rest != 0) & np.isfinite(rest)
        away = (rest > 0) == (total > 0)
        total = np.where(halfway, (bits + np.where(away, 1, -1)).view(np.float64), total)
    return total.astype(np.float32)


def truncated_division(a: Values, b: Values) -> Values:
    """C's: towards zero. By 0, what C leaves open, it is a."""
    unsigned = UNSIGNED[a.itemsize]
    size = np.abs(a).view(unsigned) // np.where(b == 0, 1, np.abs(b).view(unsigned)).astype(unsigned)
    return np.where((a < 0) != (b < 0), -size, size).view(a.dtype)


def remainder(a: Values, b: Values) -> Values:
    """C's: of the sign of a."""
    return a - truncated_division(a, b) * b


def high_product(a: Values, b: Values) -> Values:
    """The upper half of the whole product."""
    if a.itemsize < 8:
        wide = a.astype(f"{a.dtype.kind}{2 * a.itemsize}") * b.astype(f"{a.dtype.kind}{2 * a.itemsize}")
        return (wide >> (8 * a.itemsize)).astype(a.dtype)
    return np.asarray((unbounded(a) * unbounded(b)) >> 64).astype(a.dtype)


def unbounded(x: Values) -> Values:
    """The same numbers as Python's own, which do not overflow."""
    return np.array(x.tolist(), object)


def shifted(left: bool) -> Callable[[Values, Values], Values]:
    """shl or shr: by the width or more leaves zeros, or signs."""

    def shift(a: Values, by: Values) -> Values:
        width = 8 * a.itemsize
        if a.dtype.kind == "i":
            return a >> np.minimum(by, width - 1).astype(a.dtype)
        inside = np.minimum(by, width - 1).astype(a.dtype)
        return np.where(by < width, a << inside if left else a >> inside, a.dtype.type(0))

    return shift


def extreme(largest: bool) -> Callable[[Values, Values], Values]:
    """max or min: of a NaN and a number the number, and 0 is more than −0."""

    def choose(a: Values, b: Values) -> Values:
        if a.dtype.kind != "f":
            return np.maximum(a, b) if largest else np.minimum(a, b)
        first = np.where(a == b, np.signbit(a) != largest, (a > b) if largest else (a < b)) | np.isnan(b)
        return np.where(first, a, b)

    return choose


def bit_field(a: Values, b: Values, start: Values, length: Values) -> Values:
    """bfi: b with the lowest `length` bits of a from `start` on."""
    start, length = start & np.uint32(0xFF), length & np.uint32(0xFF)
    wide = ((1 << unbounded(length)) - 1) << unbounded(start)
    mask = np.asarray(wide & ((1 << 8 * a.itemsize) - 1)).astype(a.dtype)
    return (b & ~mask) | (shifted(True)(a, start) & mask)


def permuted(a: Values, b: Values, selector: Values) -> Values:
    """prmt.b32: each 4 bits of the selector choose a byte of b and a; their highest asks for its sign alone."""
    both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
    result: Values = np.uint32(0)
    for i in range(4):
        choice = selector >> np.uint32(4 * i)
        byte = (both >> ((choice & np.uint32(7)) * np.uint32(8)).astype(np.uint64)).astype(np.uint32) & np.uint32(0xFF)
        sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
        result = result | np.where(choice & np.uint32(8), sign, byte) << np.uint32(8 * i)
    return result


def reciprocal(x: Values) -> Values:
    """rcp.approx.ftz.f64: of the upper 32 bits, to 20 bits; what is below the normal numbers counts as zero."""
    upper = (x.view(np.int64) & ~0xFFFFFFFF).view(np.float64)
    result = ((1 / np.where(np.abs(upper) < 2.0**-1022, upper * 0, upper)).view(np.int64) & ~0xFFFFFFFF).view(
        np.float64
    )
    return np.where(np.abs(result) < 2.0**-1022, result * 0, result)


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "mad": lambda a, b, c: a * b + c, "fma": fma, "sqrt": np.sqrt, "ex2": np.exp2, "rcp": lambda x: 1 / x,
    "min": extreme(False), "max": extreme(True), "rem": remainder, "bfi": bit_field, "prmt": permuted,
    "copysign": lambda sign, size: np.copysign(size, sign),
    "div": lambda a, b: a / b if a.dtype.kind == "f" else truncated_division(a, b),
    "shl": shifted(True), "shr": shifted(False),
}  # fmt: skip
APPROXIMATE: dict[tuple[str, ...], Callable[..., Any]] = {
    ("ex2", "approx", "ftz", "f32"): np.exp2,
    ("rcp", "approx", "ftz", "f64"): reciprocal,
}
COUNTS = {"shl": 1, "shr": 1, "bfi": 2}  # the last sources, of 32 bits always: by, or from and how many
ROUNDED = ("div", "sqrt", "fma", "rcp")  # of floats: whose opcode must say how, unless they are approximate
KNOWN = {"rn", "lo", "ftz"}  # what an opcode may say besides


def arithmetic(program: Program, one: Instruction) -> Step:
    """dst = f(sources)."""
    name, type_ = one.opcode[0], one.type
    rest = set(one.opcode[1:-1])
    counts, function = COUNTS.get(name, 0), ARITHMETIC[name]
    types = [type_] * (len(one.operands) - 1 - counts) + [np.dtype(np.uint32)] * counts
    if one.opcode in APPROXIMATE:
        function, rest = APPROXIMATE[one.opcode], rest - {"approx"}
    elif name == "mul" and "hi" in rest:
        function, rest = high_product, rest - {"hi"}
    elif name == "mul" and "wide" in rest:
        wide = np.dtype(f"{type_.kind}{2 * type_.itemsize}")
        function, rest = (lambda a, b: np.multiply(a, b, dtype=wide)), rest - {"wide"}
    unrounded = type_.kind == "f" and name in ROUNDED and "rn" not in rest and one.opcode not in APPROXIMATE
    if rest - KNOWN or type_ == np.float16 or unrounded:
        raise unknown(program, one)
    ftz = "ftz" in rest and type_ == np.float32
    to, sources = one.operands[0], list(zip(one.operands[1:], types, strict=True))

    def step(wave: Wave, at: At) -> None:
        values = [wave.get(source, of, at) for source, of in sources]
        result = flushed(function(*map(flushed, values))) if ftz else function(*values)
        wave.set(to, canonical(result) if type_ == np.float32 else result, at)

    return step


COMPARISONS: dict[str, Callable[[Values, Values], Values]] = {
    "eq": np.equal, "ne": lambda a, b: (a != b) & ~unordered(a, b), "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "num": lambda a, b: ~unordered(a, b), "nan": lambda a, b: unordered(a, b),
}  # fmt: skip


def unordered(a: Values, b: Values) -> Values:
    """Whether one of them is NaN."""
    return (a != a) | (b != b)


def comparison(program: Program, one: Instruction) -> Step:
    """setp: eq, ne, lt, ... are false for NaN, equ, neu, ltu, ... are true for it."""
    name, type_ = one.opcode[1], one.type
    to, *sources = one.operands
    or_nan = name not in COMPARISONS
    function = COMPARISONS.get(name.removesuffix("u"))
    if function is None or len(one.operands) != 3 or set(one.opcode[2:-1]) - {"ftz"}:
        raise unknown(program, one)
    ftz = "ftz" in one.opcode

    def step(wave: Wave, at: At) -> None:
        a, b = (wave.get(source, type_, at) for source in sources)
        if ftz:
            a, b = flushed(a), flushed(b)
        wave.set(to, function(a, b) | unordered(a, b) if or_nan else function(a, b), at)

    return step


def selection(program: Program, one: Instruction) -> Step:
    """selp."""
    to, a, b, predicate = one.operands

    def step(wave: Wave, at: At) -> None:
        chosen = wave.registers[predicate.number][at]
        wave.set(to, np.where(chosen, wave.get(a, one.type, at), wave.get(b, one.type, at)), at)

    return step


# -- moves and conversions ---------------------------------------------------------------------------


def move(program: Program, one: Instruction) -> Step:
    """mov; of a vector in braces too, the lowest bits first."""
    to, source = one.operands
    if isinstance(source, tuple):
        part = UNSIGNED[one.type.itemsize // len(source)]

        def pack(wave: Wave, at: At) -> None:
            values = [wave.each(s, part, at) for s in source]
            wave.set(to, np.stack(values, axis=1).view(UNSIGNED[one.type.itemsize])[:, 0], at)

        return pack
    if isinstance(to, tuple):
        part = UNSIGNED[one.type.itemsize // len(to)]

        def unpack(wave: Wave, at: At) -> None:
            whole = np.ascontiguousarray(wave.get(source, UNSIGNED[one.type.itemsize], at))
            values = whole.view(part).reshape(-1, len(to))
            for i, register in enumerate(to):
                wave.set(register, values[:, i], at)

        return unpack
    return lambda wave, at: wave.set(to, wave.get(source, one.type, at), at)


def bfloat16(x: Values) -> Values:
    """The nearest bfloat16's bits, ties to even."""
    bits = x.view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), NAN16, nearest)


def conversion(program: Program, one: Instruction) -> Step:
    """cvt.[rounding.][ftz.]to.from."""
    to_name, from_name = one.opcode[-2:]
    rest = set(one.opcode[1:-2])
    from_type = TYPES.get(from_name)
    brain = to_name == "bf16"
    to_type = TYPES["b16"] if brain else TYPES.get(to_name)
    floating = from_type is not None and from_type.kind == "f"
    rounds = {"rn"} if floating or to_name in ("f16", "f32", "f64", "bf16") else set()
    whole = "rni" in rest and to_name == from_name
    if from_type is None or to_type is None or rest - rounds - {"ftz"} - ({"rni"} if whole else set()):
        raise unknown(program, one)
    if floating and to_type.kind in "iu" and not brain:
        raise unknown(program, one)  # no kernel rounds a float to an integer
    to, source = one.operands
    ftz = "ftz" in rest

    def step(wave: Wave, at: At) -> None:
        values = wave.get(source, from_type, at)
        if ftz and from_type == np.float32:
            values = flushed(values)
        if brain:
            result = bfloat16(np.asarray(values))
        elif whole:
            result = np.rint(values)
        elif to_name == "f16":
            result = np.where(np.isnan(values), NAN16.view(np.float16), np.asarray(values).astype(to_type))
        else:
            result = np.asarray(values).astype(to_type)
        wave.set(to, flushed(result) if ftz and to_type == np.float32 else result, at)

    return step


# -- memory ------------------------------------------------------------------------------------------


def load(program: Program, one: Instruction) -> Step:
    """ld, of one value or a vector."""
    space, type_ = one.opcode[1], one.type
    if space not in ("param", "global", "shared") or set(one.opcode[2:-1]) - {"nc", "v2", "v4"}:
        raise unknown(program, one)
    to, source = one.operands
    if space == "param":
        start = program.kernel.parameters[source.base.name][0] + source.offset

        def parameter(wave: Wave, at: At) -> None:
            wave.set(to, np.frombuffer(wave.parameters, type_, 1, start)[0], at)

        return parameter
    registers = to if isinstance(to, tuple) else (to,)
    size = type_.itemsize

    def step(wave: Wave, at: At) -> None:
        addresses = wave.addresses(source, at)
        wave.check_boundary(addresses, size * len(registers), at)
        for i, register in enumerate(registers):
            wave.set(register, wave.load(space, addresses + np.uint64(i * size), type_, at), at)

    return step


def store(program: Program, one: Instruction) -> Step:
    """st, of one value or a vector."""
    space, type_ = one.opcode[1], one.type
    if space not in ("global", "shared") or set(one.opcode[2:-1]) - {"v2", "v4"}:
        raise unknown(program, one)
    to, source = one.operands
    values = source if isinstance(source, tuple) else (source,)
    size = type_.itemsize

    def step(wave: Wave, at: At) -> None:
        addresses = wave.addresses(to, at)
        wave.check_boundary(addresses, size * len(values), at)
        for i, value in enumerate(values):
            wave.store(space, addresses + np.uint64(i * size), wave.get(value, type_, at), at)

    return step
