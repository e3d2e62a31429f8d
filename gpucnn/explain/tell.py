"""An explanation as the blocks of a sheet: what it sees, products and sum, and the way of the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.sheet import Block, Grid, Heading, Table, numerals, shape_text

if TYPE_CHECKING:
    from gpucnn.explain import Explanation

Array = NDArray[Any]
Told = tuple[list[Block], list[Block]]  # how the value is made, what is done with the gradient

MOST_CHANNELS = 3  # of a window, that are drawn as grids
MOST_TERMS = 10  # of a long sum, that are listed
_MOST_TAPS = 11  # rows or columns of a window that is drawn as a grid


def told(e: Explanation) -> list[Block]:
    """The blocks of which str() makes text and a notebook HTML."""
    name = f"{e.layer}: {e.description}" if e.layer else e.description
    title = Heading(f"{name}, unit {_tuple(e.unit) if len(e.unit) > 1 else e.unit[0]} of {shape_text(e.output_shape)}")
    tell = {
        "sum": _tell_sum, "mean": _tell_mean, "extreme": _tell_extreme, "norm": _tell_norm,
        "activation": _tell_activation, "softmax": _tell_softmax, "move": _tell_move, "other": _tell_other,
    }[e.story]  # fmt: skip
    forward, passed_on = tell(e)
    if e.gradient.output == 0:
        passed_on = ["Nothing goes on from here."]
    return [title, *forward, *_tell_activated(e), *_tell_what_came_back(e), *passed_on, *_tell_loss(e)]


def _number(value: float) -> str:
    return f"{value + 0.0:.6g}"


def _tuple(place: Sequence[int]) -> str:
    return f"({', '.join(map(str, place))})"


def _span(axis: str, values: Array) -> str:
    """rows 5 to 9; rows 5, 7, 9; row 5."""
    several = np.unique(values)
    if len(several) == 1:
        return f"{axis} {several[0]}"
    if len(several) > 2 and (np.diff(several) > 1).any():
        return f"{axis}s {', '.join(map(str, several))}"
    return f"{axis}s {several[0]} to {several[-1]}"


def _channel_sums(e: Explanation) -> tuple[Array, Array]:
    """(the sum of the products of each channel, the channels from the largest of these sums on)."""
    assert e.products is not None
    sums = e.products.sum(axis=(1, 2))
    return sums, np.argsort(-np.abs(sums), kind="stable")


def _what_is_seen(e: Explanation) -> str:
    channels, rows, columns = e.places[..., 0], e.places[..., 1], e.places[..., 2]
    h, w = e.input_shape[1:]
    seen = f"{_span('row', rows)} and {_span('column', columns)} of {_span('channel', channels)} of the {h}×{w} input"
    padding = "" if e.inside.all() else f"; {int((~e.inside[0]).sum())} of {e.inside[0].size} places are padding (·)"
    return f"It sees {seen}{padding}."


def _tell_sum(e: Explanation) -> Told:
    if e.window.ndim == 1:
        return _tell_long_sum(e, f"It sees all {e.input_shape[-1]} inputs.")
    if e.window[0].size == 1 or max(e.window.shape[1:]) > _MOST_TAPS:
        return _tell_long_sum(e, _what_is_seen(e))
    assert e.weights is not None
    assert e.products is not None
    assert e.gradient.weights is not None
    sums, order = _channel_sums(e)
    forward: list[Block] = [_what_is_seen(e)]
    backward: list[Block] = []
    parts: list[tuple[str, Any]] = []
    for c in order[:MOST_CHANNELS]:
        absent, number = ~e.inside[c], int(e.places[c, 0, 0, 0])
        channel = f", channel {number}" if len(sums) > 1 else ""
        forward.append(
            (
                Grid(f"input{channel}", e.window[c], absent),
                Grid(f"filter {e.unit[0]}{channel}", e.weights[c], sign="×"),
                Grid("products", e.products[c], absent, sign="="),
            )
        )
        backward.append(
            (
                Grid(f"to the filter{channel}: dy·x", e.gradient.weights[c], absent),
                Grid(f"to the input{channel}: dy·w", e.gradient.window[c], absent),
            )
        )
        parts.append((f"products of channel {number}" if len(sums) > 1 else "sum of the products", sums[c]))
    others = len(sums) - MOST_CHANNELS
    if others > 0:
        parts.append((f"and {others} more channel{'s' if others > 1 else ''}", sums[order[MOST_CHANNELS:]].sum()))
        backward.append(f"and likewise to {others} more.")
    return [*forward, _sum_table(e, parts)], [*backward, *_tell_bias(e)]


def _tell_mean(e: Explanation) -> Told:
    divisor = e.facts["divisor"]
    grids: list[Block] = []
    if max(e.window.shape[1:]) <= _MOST_TAPS:
        grids.append((Grid("input", e.window[0], ~e.inside[0]),))
    rows = [("  sum of what it sees", _number(math.fsum(e.window.ravel())))]
    if divisor != 1:
        rows.append(("÷ how many it counts", f"{divisor}"))
    share = "dy" if divisor == 1 else f"dy / {divisor}"
    places, gets = int(e.inside.sum()), _number(e.gradient.output / divisor)
    passed_on: list[Block] = [f"to each of the {places} places of the input: {share} = {gets}"]
    return [_what_is_seen(e), *grids, Table(("", ""), (*rows, ("= the unit", _number(e.value))))], passed_on


def _sum_table(e: Explanation, parts: list[tuple[str, Any]]) -> Table:
    rows = [(f"{'+' if i else ' '} {name}", _number(float(value))) for i, (name, value) in enumerate(parts)]
    if e.bias is not None and e.story != "other":
        rows.append(("+ bias", _number(e.bias)))
    elif e.bias:
        rows.append(("+ the rest: a constant, or a curve", _number(e.bias)))
    return Table(("", ""), (*rows, ("= the unit", _number(e.value))))


def _tell_bias(e: Explanation) -> list[Block]:
    if e.gradient.weights is None:
        return []
    several = math.prod(e.output_shape[1:]) > 1 and len(e.output_shape) == 3
    others: list[Block] = []
    if several:
        units = math.prod(e.output_shape[1:])
        others = [
            f"What is learned gets such a share from each of the {units} units of map {e.unit[0]}, and their sum."
        ]
    bias: list[Block] = [] if e.gradient.bias is None else [f"to the bias: dy = {_number(e.gradient.bias)}"]
    return bias + others


def _tell_long_sum(e: Explanation, seen: str, names: tuple[str, str] = ("weight", "x·weight")) -> Told:
    """The largest terms as a table, with what they pass on beside them."""
    products, weights = e.products.ravel(), e.weights.ravel()  # type: ignore[union-attr]
    order = np.argsort(-np.abs(products), kind="stable")[:MOST_TERMS]
    places = e.places.reshape(len(products), -1)
    columns = [("x", e.window.ravel()), (names[0], weights), (names[1], products)]
    if e.gradient.weights is not None:
        columns.append(("dy·x, to the weight", e.gradient.weights.ravel()))
    columns.append((f"dy·{names[0]}, to the input", e.gradient.window.ravel()))
    written = [numerals(values[order], 2) for _, values in columns]
    header = ("input", *(f"{name}{power}" for (name, _), (_, power) in zip(columns, written, strict=True)))
    listed = [_tuple(places[i]) if places.shape[1] > 1 else str(places[i][0]) for i in order]
    rows = [(listed[row], *(text[row] for text, _ in written)) for row in range(len(order))]
    parts: list[tuple[str, Any]] = [("sum of the products", products.sum())]
    if len(products) > len(order):
        rest = math.fsum(products) - math.fsum(products[order])
        parts = [
            (f"these {len(order)} products", products[order].sum()),
            (f"and {len(products) - len(order)} more", rest),
        ]
    return [seen, Table(header, tuple(rows)), _sum_table(e, parts)], _tell_bias(e)


def _tell_extreme(e: Explanation) -> Told:
    c, row, column = e.facts["winner"]
    what = "smallest" if e.kind == "MinPool2d" else "largest"
    tap = e.facts["tap"]
    forward: list[Block] = [
        f"It is the {what} of what it sees of channel {c}: {_number(e.value)} at ({c}, {row}, {column})."
    ]
    passed = f"All of it goes to ({c}, {row}, {column}); the others get nothing."
    if max(e.window.shape[1:]) > _MOST_TAPS:
        return forward, [passed]
    absent = ~e.inside[0]
    rows, columns = _span("row", e.places[..., 1]), _span("column", e.places[..., 2])
    forward.append((Grid(f"input, {rows}, {columns}", e.window[0], absent, tap),))
    return forward, [passed, (Grid("to the input", e.gradient.window[0], absent, tap),)]


def _tell_norm(e: Explanation) -> Told:
    assert e.weights is not None
    f, x, scale = e.facts, float(e.window[0]), float(e.weights[0])
    shift = 0.0 if e.bias is None else e.bias
    rows = (
        ("x", _number(x)),
        (f"− mean of channel {f['channel']}", _number(f["mean"])),
        (f"÷ √(variance {_number(f['variance'])} + {f['eps']:g})", _number(math.sqrt(f["variance"] + f["eps"]))),
        ("= normalised", _number(f["normalised"])),
        ("× weight (scale)", _number(scale)),
        ("+ bias (shift)", _number(shift)),
        ("= the unit", _number(e.value)),
    )
    passed = [("to the input: dy · weight / √(variance + eps)", _number(float(e.gradient.window[0])))]
    if e.gradient.weights is not None:
        passed.append(("to the weight: dy · normalised", _number(float(e.gradient.weights[0]))))
    if e.gradient.bias is not None:
        passed.append(("to the bias: dy", _number(e.gradient.bias)))
    return [Table(("", ""), rows)], [Table(("", ""), tuple(passed))]


def _tell_activation(e: Explanation) -> Told:
    x, slope = float(e.window[0]), e.facts["slope"]
    forward = f"{e.facts['formula']} with x = {_number(x)} is {_number(e.value)}; the slope there is {_number(slope)}."
    return [forward], [f"to the input: dy · slope = {_number(float(e.gradient.window[0]))}"]


def _tell_softmax(e: Explanation) -> Told:
    f, which = e.facts, e.facts["which"]
    order = np.argsort(-f["shares"], kind="stable")[:MOST_TERMS]
    order = order if which in order else np.append(order[:-1], which)
    columns = [
        ("score", e.window), (f"e^(score − {_number(f['largest'])})", f["powers"]), ("share of their sum", f["shares"]),
        ("to the score", e.gradient.window),
    ]  # fmt: skip
    written = [numerals(values[order], 2) for _, values in columns]
    header = ("class", *(f"{name}{power}" for (name, _), (_, power) in zip(columns, written, strict=True)))
    rows = tuple((f"{i}{' ◂' if i == which else ''}", *(text[n] for text, _ in written)) for n, i in enumerate(order))
    total = f"The sum of all {len(e.window)} powers is {_number(float(f['powers'].sum()))}"
    taken = f"; the unit is ln {_number(float(f['shares'][which]))}" if e.kind == "LogSoftmax" else ""
    return [Table(header, rows), f"{total}{taken}: {_number(e.value)} for class {which}."], []


def _tell_move(e: Explanation) -> Told:
    source = _tuple(tuple(e.places[0]))
    return [f"It is {source} of the {shape_text(e.input_shape)} input, unchanged: {_number(e.value)}."], [
        f"All of it goes to {source}: {_number(float(e.gradient.window[0]))}"
    ]


def _tell_other(e: Explanation) -> Told:
    count = len(e.window)
    if not count:
        return [f"It is {_number(e.value)} and depends on no input."], []
    seen = f"It depends on {count} input{'s' if count > 1 else ''}; the slope says how much, for a small change."
    return _tell_long_sum(e, seen, ("slope", "x·slope"))


def _tell_activated(e: Explanation) -> list[Block]:
    a = e.activation
    return [] if a is None else [f"{a.layer} {a.kind} makes {_number(a.value)} of it.".strip()]


def _tell_what_came_back(e: Explanation) -> list[Block]:
    g, a = e.gradient, e.activation
    here = f"dy = {_number(g.output)}"
    if g.of == "given":
        return [Heading("The gradient"), f"{here} is given."]
    lines: list[Block] = [Heading(f"The gradient of {g.of}")]
    if a is not None and g.after_activation is not None:
        lines.append(
            f"{_number(g.after_activation)} comes back to the {a.kind}, whose slope is {_number(a.slope)} here: {here}"
        )
    else:
        lines.append(f"{here} comes back to the unit.")
    return lines


def _tell_loss(e: Explanation) -> list[Block]:
    if e.loss is None:
        return []
    loss = e.loss
    order = np.argsort(-loss.probabilities, kind="stable")[:MOST_TERMS]
    order = order if loss.label in order else np.append(order[:-1], loss.label)
    columns = [
        ("score", loss.scores), ("softmax p", loss.probabilities),
        ("gradient", loss.probabilities - (np.arange(len(loss.scores)) == loss.label)),
    ]  # fmt: skip
    written = [numerals(values[order], 2) for _, values in columns]
    header = ("class", *(f"{name}{power}" for (name, _), (_, power) in zip(columns, written, strict=True)))
    rows = tuple(
        (f"{i}{' ◂' if i == loss.label else ''}", *(text[n] for text, _ in written)) for n, i in enumerate(order)
    )
    p = f"{loss.probabilities[loss.label]:.10g}"
    return [
        Heading("The loss, where the gradient starts"),
        Table(header, rows),
        f"−ln p of class {loss.label} = −ln {p} = {_number(loss.value)}",
        f"To each score goes p, and p − 1 to that of class {loss.label}.",
    ]
