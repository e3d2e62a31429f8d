"""Every op of the case table on one backend, forward and backward, held to float64: `gpucnn verify`.

The reference is the NumPy backend in float64, on the values that the backend under test gets. An element may be off by
the bound that `gpucnn.testing` computes for it: a sum in another order passes, a wrong tap does not.

The bit file holds a hash of each result whose bits are the same on every device that runs the kernels: all but those
of cases with `same_bits=False`, in which the array library's own sums, exp, log or power take part.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json as json_
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn.atomic import write_text
from gpucnn.backends import Backend, get_backend, use_tuning
from gpucnn.backends.precision import PRECISIONS, get_precision, operand_dtype
from gpucnn.dtypes import HALVES, is_half, named, unit_roundoff
from gpucnn.sheet import png
from gpucnn.testing import (
    CASES,
    MULTIPLYING,
    Array,
    Bounds,
    Case,
    Evaluation,
    by_winograd,
    evaluate,
    halves_on_tensor_cores,
    in_half,
    launches,
    on_tensor_cores,
    with_rounded_operands,
)

OnCase = Callable[[Case], None]
MOST_TERMS = 64  # of a window that a report lists
MOST_PICTURES = 12  # results that an HTML report draws
MOST_LINES = 10  # failures that a terminal shows in full


# -- results -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What one operand contributed to an element: the box of its places with a slope, its values and slopes there.

    Of a convolution's output: the input's window with the weights for slopes, and the weights with that window. Where
    an op is linear in the operand, value · slope are the terms that were summed.
    """

    name: str
    start: tuple[int, ...]
    values: Array
    slopes: Array

    def __str__(self) -> str:
        ranges = (f"{a}:{a + n}" if n > 1 else f"{a}" for a, n in zip(self.start, self.values.shape, strict=True))
        return f"{self.name}[{', '.join(ranges)}]"

    @property
    def terms(self) -> Array:
        """value · slope, elementwise."""
        return self.values * self.slopes


@dataclass(frozen=True)
class Result:
    """One array of one case, the output or a gradient: what the backend got, what is right, how far off it may be."""

    case: Case
    name: str
    got: Array
    expected: Array
    bound: Array
    parts: tuple[Part, ...] = ()  # of the worst element

    @cached_property
    def error(self) -> Array:
        """|got − expected|; infinite where only one of them is NaN, or they are different infinities."""
        got = self.got.astype(np.float64)
        with np.errstate(invalid="ignore"):
            error = np.abs(got - self.expected)
        same = (got == self.expected) | (np.isnan(got) & np.isnan(self.expected))
        return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))

    @cached_property
    def of_bound(self) -> Array:
        """The error in bounds: more than 1 is wrong."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.error == 0, 0.0, self.error / self.bound)

    @cached_property
    def ulps(self) -> Array:
        """The error in units of the last place of what is expected, in the dtype under test."""
        if is_half(self.got.dtype):
            least = 2.0**-14 if self.got.dtype == np.float16 else 2.0**-126
            _, exponent = np.frexp(np.maximum(np.abs(self.expected), least))
            half: Array = self.error / np.ldexp(2 * unit_roundoff(self.got.dtype), exponent - 1)
            return half
        limits = np.finfo(self.got.dtype)
        size = np.clip(np.abs(self.expected), float(limits.tiny), float(limits.max)).astype(self.got.dtype)
        spacing: Array = np.spacing(size).astype(np.float64)
        return np.where(self.error == 0, 0.0, self.error / spacing)  # NaN where NaN is expected has no spacing

    @cached_property
    def relative(self) -> Array:
        """The error over what is expected; 0 where both are 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.error == 0, 0.0, self.error / np.abs(self.expected))

    @property
    def passed(self) -> bool:
        """Whether every element is within its bound, and shape and dtype are right."""
        return bool((self.of_bound <= 1).all())

    @cached_property
    def worst(self) -> tuple[int, ...]:
        """The place of the element that is nearest to its bound, or furthest beyond it."""
        return tuple(int(i) for i in np.unravel_index(np.argmax(self.of_bound), self.error.shape))

    def suspicion(self) -> str:
        """What the error of the worst element looks like, if it looks like one tap or one term of its sum."""
        error, bound = float((self.expected - self.got)[self.worst]), float(self.bound[self.worst])
        for part in () if self.passed else self.parts:
            taps = [part.terms.sum(axis=1, keepdims=True)] if part.terms.ndim == 4 else []  # all channels of a tap
            for terms in (*taps, part.terms):
                for sign, what in ((1, "left out"), (-1, "counted twice")):
                    near = np.argwhere(np.abs(terms - sign * error) <= bound)
                    if near.size:
                        box = zip(part.start, near[0], part.values.shape, terms.shape, strict=True)
                        place = (f"{a}:{a + whole}" if n < whole else f"{a + i}" for a, i, whole, n in box)
                        return f"as if {part.name}[{', '.join(place)}] were {what}"
        return ""

    def describe(self) -> str:
        """The worst element in a line or two."""
        text = f"{self.case}: {self.name}{list(self.worst)} is {float(self.got[self.worst]):.9g}, "
        text += f"expected {self.expected[self.worst]:.9g} within {self.bound[self.worst]:.2g}"
        made = " and ".join(map(str, self.parts))
        return f"{text}; made of {made}" + (f"; {self.suspicion()}" if self.suspicion() else "")

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        record: dict[str, Any] = {"case": str(self.case), "op": self.case.op, "result": self.name}
        record |= {"shape": list(self.got.shape), "passed": self.passed}
        for name in ("ulps", "relative", "error", "of_bound"):
            values = getattr(self, name)
            record[f"max_{name}"] = _number(values.max(initial=0.0))
            record[f"mean_{name}"] = _number(values.mean() if values.size else 0.0)
        if self.got.size:
            at = {name: _number(getattr(self, name)[self.worst]) for name in ("expected", "got", "error", "bound")}
            made = [_part_as_json(part) for part in self.parts]
            record["worst"] = {"place": list(self.worst), **at, "made_of": made, "suspicion": self.suspicion()}
        return record


def _number(value: Any) -> float | str:
    """JSON has no infinity and no NaN."""
    return float(value) if math.isfinite(value) else str(float(value))


def _part_as_json(part: Part) -> dict[str, Any]:
    chosen = np.argsort(-np.abs(part.terms), axis=None, kind="stable")[:MOST_TERMS]
    places = np.argwhere(np.ones(part.values.shape))[chosen] + np.array(part.start, dtype=int)
    values, slopes = ([_number(v) for v in array.ravel()[chosen]] for array in (part.values, part.slopes))
    return {"box": str(part), "terms": part.values.size, "places": places.tolist(), "values": values, "slopes": slopes}


@dataclass(frozen=True)
class Report:
    """What `verify` found: about the machine, each result, and the cases that ended in an error."""

    about: dict[str, str]
    results: tuple[Result, ...]
    errors: tuple[tuple[Case, str], ...]

    @property
    def failures(self) -> list[Result]:
        """The results that are off, the worst first."""
        return sorted((r for r in self.results if not r.passed), key=lambda r: -float(r.of_bound.max()))

    @property
    def passed(self) -> bool:
        """Whether every result of every case is within its bound."""
        return not self.failures and not self.errors

    def summary(self) -> str:
        """The verdict in one line."""
        cases = len({str(r.case) for r in self.results} | {str(case) for case, _ in self.errors})
        wrong = len({str(r.case) for r in self.failures} | {str(case) for case, _ in self.errors})
        verdict = "all are within their bounds" if self.passed else f"{wrong} of them FAIL"
        return f"{cases} cases, {len(self.results)} results on {self.about['backend']}: {verdict}"

    def rows(self) -> list[tuple[str, ...]]:
        """A line for each op: name, cases, max and mean ULP, max and mean relative error, error in bounds, verdict."""
        found = []
        failed = {case.op for case, _ in self.errors}
        for op in dict.fromkeys([r.case.op for r in self.results] + sorted(failed)):
            of_op = [r for r in self.results if r.case.op == op and r.got.size]
            numbers = [_most(r.ulps for r in of_op), _mean(r.ulps for r in of_op)]
            numbers += [_most(r.relative for r in of_op), _mean(r.relative for r in of_op)]
            numbers += [_most(r.of_bound for r in of_op)]
            cases = len({str(r.case) for r in self.results if r.case.op == op})
            verdict = "FAIL" if op in failed or not all(r.passed for r in of_op) else "ok"
            found.append((op, str(cases), *(f"{n:.3g}" for n in numbers), verdict))
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        errors = [{"case": str(case), "op": case.op, "error": text} for case, text in self.errors]
        results = [result.as_json() for result in self.results]
        return {"about": self.about, "passed": self.passed, "results": results, "errors": errors}


HEADINGS = ("op", "cases", "max ULP", "mean ULP", "max relative", "mean relative", "error / bound", "")


def _most(arrays: Iterable[Array]) -> float:
    return max((float(a.max(initial=0.0)) for a in arrays), default=0.0)


def _mean(arrays: Iterable[Array]) -> float:
    listed = list(arrays)
    return float(np.concatenate([a.ravel() for a in listed]).mean()) if listed else 0.0


# -- verifying ---------------------------------------------------------------------------------------


def verify(
    backend: str | Backend | None = None,
    pattern: str | None = None,
    dtype: str = "float32",
    on_case: OnCase | None = None,
) -> Report:
    """Compute the cases on a backend and compare every output and gradient with the float64 reference.

    pattern: which cases, as `chosen` reads it. on_case is called before each. Raises ValueError for a pattern that no
    case matches and for another dtype than float32, float64, float16 and bfloat16.
    """
    if dtype not in ("float32", "float64", *HALVES):
        raise ValueError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype!r}")
    engine, results, errors = get_backend(backend), [], []
    for case in chosen(pattern):
        if on_case:
            on_case(case)
        exact = evaluate(case, "numpy", dtype, precision="float64")
        try:
            results += compared(exact, engine, dtype)
        except Exception as error:  # whatever a kernel, a compiler or a driver ends in is a finding
            errors.append((case, str(error) if isinstance(error, WrongShape) else f"{type(error).__name__}: {error}"))
    return Report(_about(engine, dtype), tuple(results), tuple(errors))


def chosen(pattern: str | None) -> list[Case]:
    """The cases whose op or name matches a shell pattern: "conv2d", "*pool2d", "conv2d-*groups*"; all for None.

    Raises ValueError, naming the ops, if there is none.
    """
    if pattern is None:
        return CASES
    cases = [case for case in CASES if fnmatchcase(case.op, pattern) or fnmatchcase(str(case), pattern)]
    if not cases:
        ops = ", ".join(dict.fromkeys(case.op for case in CASES))
        raise ValueError(f"no case matches {pattern!r}; the ops are {ops}")
    return cases


class WrongShape(Exception):
    """A result that has another shape or dtype than it should."""


def compared(exact: Evaluation, backend: Backend, dtype: str) -> list[Result]:
    """The results of a case on a backend, beside `exact`, which was evaluated in float64, or beside what it is by
    operands that `gpucnn.precision` rounds. Raises what computing them raises, and WrongShape."""
    ours = evaluate(exact.case, backend, dtype)
    for name, got, expected in zip(exact.case.results, ours.results, exact.results, strict=True):
        if got.shape != expected.shape or str(got.dtype) != dtype:
            raise WrongShape(f"{name} is {got.dtype} {got.shape}, expected {dtype} {expected.shape}")
    operands = operand_dtype(named(dtype))
    if operands != named(dtype) and exact.case.op in MULTIPLYING:
        exact = with_rounded_operands(exact, operands.name)
    unit = unit_roundoff(dtype) * (2 if dtype == "float64" else 1)  # there the reference rounds as well
    bounds = (_on_tensor_cores(exact.case, backend, dtype) or exact.case.bounds)(exact)
    if dtype in HALVES:
        unit, bounds = 1.0, in_half(exact, dtype, bounds)
    found = []
    for i, name in enumerate(exact.case.results):
        got, expected = ours.results[i], exact.results[i]
        bound = np.broadcast_to(unit * np.asarray(bounds[i]), expected.shape)
        result = Result(exact.case, name, got, expected, bound)
        found.append(replace(result, parts=_parts(exact, i, result.worst)) if got.size else result)
    return found


def _on_tensor_cores(case: Case, backend: Backend, dtype: str) -> Bounds | None:
    """The bounds of a case that a backend computes on tensor cores or by Winograd's formula; None if it does not."""
    from gpucnn.backends.kernel_backend import KernelBackend

    if not isinstance(backend, KernelBackend) or backend.device.capability is None:
        return None
    launched = launches(case, dtype, backend.device.capability, backend.choose)
    by_taps = any("_halo_" in one.name or "_wgmma" in one.name for one in launched)
    constants = [dict(one.constants) for one in launched]
    products = max((int(of_one.get("PRODUCTS", 0)) for of_one in constants), default=0)
    ways: list[Bounds] = []
    if any("HALF" in of_one for of_one in constants):
        ways.append(partial(halves_on_tensor_cores, halo=by_taps))
    elif products and operand_dtype(named(dtype)) == named(dtype):  # else TF32 is not what was asked for
        ways.append(partial(on_tensor_cores, tf32_products=products, halo=by_taps))
    if any(one.name == "conv2d_winograd" for one in launched):
        ways.append(by_winograd)
    if not ways:
        return None
    return lambda exact: [np.maximum.reduce(bounds) for bounds in zip(*(way(exact) for way in ways), strict=True)]


def _parts(exact: Evaluation, which: int, place: tuple[int, ...]) -> tuple[Part, ...]:
    """What made one element of a result, by its slopes: the gradients of an output's element by every input; for an
    element of a gradient Σ u·dy/dx, the slopes of all outputs by that one input, from a central difference."""
    case, positions = exact.case, exact.case.differentiable
    if which == 0:
        only = np.zeros_like(exact.cotangent)
        only[place] = 1
        slopes = exact.again(None, lambda u: only)[1:]
        names = (name.removeprefix("gradient of ") for name in case.results[1:])
        parts = [_part(n, exact.inputs[i], s) for n, i, s in zip(names, positions, slopes, strict=True)]
    else:
        position, step = positions[which - 1], 2.0**-16
        values = []
        for change in (step, -step):
            inputs = list(exact.inputs)
            inputs[position] = inputs[position].copy()
            inputs[position][place] += change
            with gpucnn.no_grad():
                values.append(case.apply("numpy", inputs, exact.arguments | _seeds(case)).numpy())
        slope = np.asarray((values[0] - values[1]) / (2 * step))
        slope[np.abs(slope) < 1e-6 * np.abs(slope).max(initial=0.0)] = 0  # what rounding made of a zero
        parts = [_part("gradient of output", exact.cotangent, slope)]
    return tuple(part for part in parts if part is not None)


def _seeds(case: Case) -> dict[str, Any]:
    """The random generators among the arguments, at their start again."""
    return {name: value for name, value in case.made_arguments().items() if isinstance(value, gpucnn.Generator)}


def _part(name: str, values: Array, slopes: Array) -> Part | None:
    places = np.argwhere(slopes).T
    if not places.size and (slopes.ndim or not slopes):
        return None
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in places)
    return Part(name, tuple(s.start for s in box), values[box], slopes[box])


def _about(backend: Backend, dtype: str) -> dict[str, str]:
    about = {"backend": backend.name, "dtype": dtype, "tuning": backend.tuning_hash or ""}
    about |= {"precision": get_precision()} if dtype == "float32" else {}
    if backend.xp.__name__ == "cupy":
        runtime = backend.xp.cuda.runtime
        gpu = runtime.getDeviceProperties(runtime.getDevice())
        about |= {"device": f"{gpu['name'].decode()}, compute capability {gpu['major']}.{gpu['minor']}"}
        about |= {
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
        }
        about |= {"CUDA": f"driver {runtime.driverGetVersion()}, runtime {runtime.runtimeGetVersion()}"}
        about |= {"cupy": backend.xp.__version__}
    else:
        about |= {"device": _processor()}
    about |= {"gpucnn": gpucnn.__version__, "numpy": np.__version__, "python": platform.python_version()}
    about |= {"system": platform.platform(), "date": datetime.now(UTC).isoformat(" ", "seconds")}
    checkout = Path(__file__).parent.parent
    if (checkout / ".git").exists():
        about |= {"commit": _output("git", "-C", str(checkout), "describe", "--always", "--dirty")}
    return {name: text for name, text in about.items() if text}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _output(*command: str) -> str:
    """What a program prints, or nothing if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# -- bits --------------------------------------------------------------------------------------------


def bits(
    backend: str | Backend | None = None, pattern: str | None = None, on_case: OnCase | None = None
) -> dict[str, Any]:
    """{case: {result: hash}} of the float32 results of the cases whose bits are the same on every device.

    Kernels are the usual ones, whatever was measured on a device.
    """
    engine, found = get_backend(backend), {}
    for case in chosen(pattern):
        if on_case:
            on_case(case)
        if case.same_bits:
            with use_tuning(False):
                results = evaluate(case, engine, "float32").results
            found[str(case)] = {name: _hash(r) for name, r in zip(case.results, results, strict=True)}
    return found


def _hash(array: Array) -> str:
    """Of dtype, shape and bits; a NaN is a NaN."""
    canonical = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
    text = f"{array.dtype} {array.shape} ".encode() + canonical.astype(array.dtype.newbyteorder("<")).tobytes()
    return hashlib.sha256(text).hexdigest()[:16]


def write_bits(path: str | Path, backend: str | Backend | None = None, on_case: OnCase | None = None) -> None:
    """Write the bit file: JSON, a line for each case."""
    lines = (f"{json_.dumps(case)}: {json_.dumps(hashes)}" for case, hashes in bits(backend, None, on_case).items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    write_text(Path(path), text)


def differing_bits(path: str | Path, backend: str | Backend | None = None, on_case: OnCase | None = None) -> list[str]:
    """The results whose bits are not those of the file, and the cases that only one of them has.

    What the backend computes on tensor cores is left out: the order of their sums is the hardware's own.
    """
    engine = get_backend(backend)
    theirs, ours = json_.loads(Path(path).read_text("utf-8")), bits(engine, None, on_case)
    with use_tuning(False):
        for case in CASES:
            if str(case) in ours and _on_tensor_cores(case, engine, "float32"):
                ours.pop(str(case))
                theirs.pop(str(case), None)
    alone = [f"{case}: is not in {path}" for case in ours if case not in theirs]
    alone += [f"{case}: is only in {path}" for case in theirs if case not in ours]
    return alone + [
        f"{case}: {name}"
        for case in ours
        if case in theirs
        for name in ours[case] | theirs[case]
        if ours[case].get(name) != theirs[case].get(name)
    ]


# -- the report as a page ------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
.ok { color: #187a2f; } .FAIL { color: #b00020; font-weight: bold; }
figure { display: inline-block; margin: .5rem 1.5rem .5rem 0; vertical-align: top; } figcaption { color: #555; }
section { border-top: 1px solid #ddd; padding-top: .5rem; } code { overflow-wrap: anywhere; }
svg { background: #fff; } pre { white-space: pre-wrap; }
"""


def html_page(report: Report) -> str:
    """The report as one page that needs nothing else: tables, a histogram, maps of the worst results."""
    verdict = "ok" if report.passed else "FAIL"
    about = "".join(f"<tr><td>{escape(k)}<td style='text-align:left'>{escape(v)}" for k, v in report.about.items())
    head = "".join(f"<th>{escape(h)}" for h in HEADINGS)
    rows = "".join(f"<tr>{''.join(f'<td class={r[-1]}>{escape(cell)}' for cell in r)}" for r in report.rows())
    errors = "".join(
        f"<section><h3>{escape(str(case))}</h3><pre class=FAIL>{escape(text)}</pre></section>"
        for case, text in report.errors
    )
    nearest = sorted((r for r in report.results if r.got.size), key=lambda r: -float(r.of_bound.max()))
    shown = nearest[: max(MOST_PICTURES // 3, min(len(report.failures), MOST_PICTURES))]
    pictures = "".join(map(_section, shown))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>gpucnn verify</title><style>{_STYLE}</style>"
        f"<h1>gpucnn verify</h1><p class={verdict}>{escape(report.summary())}</p><table>{about}</table>"
        f"<h2>Results by their largest error, in bounds, up to</h2>{_histogram(report.results)}"
        f"<h2>Ops</h2><table><tr>{head}{rows}</table>"
        f"{'<h2>Errors</h2>' if errors else ''}{errors}"
        f"<h2>The results nearest to their bounds</h2>{pictures}</html>\n"
    )


def _section(result: Result) -> str:
    text = f"<section><h3 class={'ok' if result.passed else 'FAIL'}><code>{escape(str(result.case))}</code>"
    text += f" {escape(result.name)}</h3><p>{escape(result.describe())}</p>"
    size = float(np.abs(result.expected[np.isfinite(result.expected)]).max(initial=0.0))
    for caption, array in (("expected", result.expected), ("got", result.got)):
        text += _figure(caption, array, result.worst, partial(_signed, size=size))
    text += _figure("error / bound", result.of_bound, result.worst, _shades)
    for part in result.parts:
        text += _figure(f"{part}", part.values) + _figure("its slopes", part.slopes)
        text += _figure("value · slope", part.terms)
    return text + "</section>"


def _figure(
    caption: str,
    array: Array,
    mark: tuple[int, ...] | None = None,
    colours: Callable[[Array], Array] | None = None,
) -> str:
    """A heat map: a plane for each image and channel, side by side; the marked element is framed."""
    plane, cells = _laid_out(array)
    height, width = plane.shape
    data = base64.b64encode(png((colours or _signed)(plane))).decode()
    scale = max(1, min(24, 480 // max(width, 1), 360 // max(height, 1)))
    frame = ""
    if mark is not None:
        y, x = np.argwhere(cells == np.ravel_multi_index(mark, array.shape) if mark else cells == 0)[0]
        frame = f'<rect x="{x}" y="{y}" width="1" height="1" fill="none" stroke="#00a000" stroke-width=".25"/>'
    return (
        f'<figure><svg viewBox="-.2 -.2 {width + 0.4} {height + 0.4}" '
        f'width="{width * scale}" height="{height * scale}">'
        f'<image href="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'style="image-rendering:pixelated"/>{frame}</svg><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _laid_out(array: Array) -> tuple[Array, Array]:
    """An array of any rank as a plane with NaN between its parts, and each place's number in the array, or −1."""
    four = array.reshape((1,) * (4 - array.ndim) + array.shape) if array.ndim <= 4 else array.reshape(1, 1, -1, 1)
    if array.ndim < 3:
        four = four.reshape(1, 1, -1, array.shape[-1] if array.ndim else 1)
    n, c, h, w = four.shape
    plane, cells = np.full((n * (h + 1) - 1, c * (w + 1) - 1), np.nan), np.full((n * (h + 1) - 1, c * (w + 1) - 1), -1)
    numbers = np.arange(four.size).reshape(four.shape)
    for i, k in np.ndindex(n, c):
        at = (slice(i * (h + 1), i * (h + 1) + h), slice(k * (w + 1), k * (w + 1) + w))
        plane[at], cells[at] = four[i, k], numbers[i, k]
    return plane, cells


def _signed(plane: Array, size: float | None = None) -> Array:
    """Blue below 0, white, red above, full at `size` or at the largest; grey for NaN."""
    largest = size or float(np.abs(plane[np.isfinite(plane)]).max(initial=0.0)) or 1.0
    t = np.clip(np.nan_to_num(plane / largest, nan=0.0), -1, 1)[..., None]
    below, above = np.array([-185.0, -125.0, -25.0]), np.array([-25.0, -165.0, -185.0])
    return np.where(np.isnan(plane)[..., None], 200, 255 + np.where(t < 0, -t * below, t * above))


def _shades(plane: Array) -> Array:
    """White at 0 to orange at the bound; black beyond it; grey for NaN."""
    t = np.clip(np.nan_to_num(plane, nan=0.0), 0, 1)[..., None]
    shade = np.where((plane > 1)[..., None], 0.0, 255 + t * np.array([0.0, -115.0, -255.0]))
    return np.where(np.isnan(plane)[..., None], 200, shade)


def _histogram(results: Sequence[Result]) -> str:
    """How many results come how near to their bound: a bar for each factor of two, named by its upper end."""
    worst = np.array([float(r.of_bound.max()) for r in results if r.got.size])
    exact, wrong = int((worst == 0).sum()), int((worst > 1).sum())
    within = worst[(worst > 0) & (worst <= 1)]
    powers = np.clip(np.floor(-np.log2(within)), 0, 11).astype(int)
    bars = [
        ("exact", exact),
        *((f"1/{2**k}", int((powers == k).sum())) for k in range(11, -1, -1)),
        (">1", wrong),
    ]
    most = max(count for _, count in bars) or 1
    parts = []
    for i, (label, count) in enumerate(bars):
        length, colour = 130 * count / most, "#b00020" if label == ">1" else "#3a6ea5"
        parts.append(
            f'<rect x="{i * 52 + 4}" y="{150 - length:.1f}" width="44" height="{length:.1f}" fill="{colour}"/>'
            f'<text x="{i * 52 + 26}" y="{145 - length:.1f}" text-anchor="middle">{count or ""}</text>'
            f'<text x="{i * 52 + 26}" y="166" text-anchor="middle">{escape(label)}</text>'
        )
    return f'<svg width="{len(bars) * 52}" height="172" font-size="12">{"".join(parts)}</svg>'


# -- the command ---------------------------------------------------------------------------------------


def run(
    backend: str | None = None,
    op: str | None = None,
    dtype: str = "float32",
    json: str | Path | None = None,
    html: str | Path | None = None,
    precision: str | None = None,
) -> int:
    """Verify, print a table and what failed, and write the reports that are asked for. 0 if all passed, else 1.

    precision: "fp16" and "bf16" stand for the dtypes float16 and bfloat16, "fp32" and "tf32" for those of `precision`.
    """
    dtype = PRECISIONS[precision] if precision in ("fp16", "bf16") else dtype
    with gpucnn.precision(precision) if precision in ("fp32", "tf32") else nullcontext():
        report = _with_progress(len(chosen(op)), lambda on_case: verify(backend, op, dtype, on_case))
    _print(report)
    if json is not None:
        text = json_.dumps(report.as_json(), indent=1, allow_nan=False)
        write_text(Path(json), text + "\n")
    if html is not None:
        write_text(Path(html), html_page(report))
    return 0 if report.passed else 1


def _with_progress(count: int, work: Callable[[OnCase], Any]) -> Any:
    """work(on_case), with a bar on a terminal's standard error."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("verify", total=count)
        return work(lambda case: progress.update(task, advance=1, description=case.op))


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 110)
    for name, text in report.about.items():
        console.print(Text(f"{name:<10}{text}"), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i in (0, len(HEADINGS) - 1) else "right", no_wrap=i == 0)
    for row in report.rows():
        table.add_row(*map(Text, row), style="bold red" if row[-1] == "FAIL" else None)
    console.print(table)
    lines = [f"{case}: {text}" for case, text in report.errors] + [r.describe() for r in report.failures]
    for line in lines[:MOST_LINES]:
        console.print(Text(line, "red"), soft_wrap=True)
    if len(lines) > MOST_LINES:
        console.print(Text(f"and {len(lines) - MOST_LINES} more; --json or --html shows them all"))
    console.print(Text(report.summary(), "bold green" if report.passed else "bold red"), soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m gpucnn.verify`: write the bit file, or compare with it. 1 if bits differ."""
    parser = argparse.ArgumentParser("python -m gpucnn.verify", description="The bits of every kernel's results.")
    parser.add_argument("--backend", help="what computes: emulator, ptx or cuda")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write-bits", metavar="FILE", help="write the hash of every result")
    action.add_argument("--check-bits", metavar="FILE", help="compare every result with this file")
    asked = parser.parse_args(arguments)
    try:
        if asked.write_bits:
            _with_progress(len(CASES), lambda on_case: write_bits(asked.write_bits, asked.backend, on_case))
            return 0
        found = _with_progress(len(CASES), lambda on_case: differing_bits(asked.check_bits, asked.backend, on_case))
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    print("\n".join(found) or f"the bits are those of {asked.check_bits}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
