"""A run for people: tables for a terminal, one page of HTML with plots, the README's table, and what changed since.

All of it is made from the rows alone, so an old run can be shown again.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from gpucnn.atomic import write_atomically, write_text
from gpucnn.benchmark import roofline
from gpucnn.benchmark.providers import OURS
from gpucnn.benchmark.records import Row, Run, compare, ratios
from gpucnn.benchmark.roofline import Limits, time_text
from gpucnn.benchmark.suites import tasks

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TITLES = {"ops": "Ops", "networks": "Networks", "startup": "Start-up", "memory": "Peak memory of a training step"}
QUIET = 0.9  # of the time, that our threads get on a quiet machine
BUSY = "other programs were running: no time here means anything, least of all of what waits for all its threads"
ANALYTIC = "analytic: computed from operations, bytes and the card's peaks; nothing here was measured"


@dataclass(frozen=True)
class Table:
    """A table of text; the columns from the third on are right-aligned."""

    title: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""
    plain: bool = False  # text, all of it left-aligned


# -- what is said of a run -----------------------------------------------------------------------------


def tables(run: Run, every_pass: bool = True) -> list[Table]:
    """All tables. Analytic ones are short unless `every_pass`."""
    made = [*(_of_suite(run, suite) for suite in TITLES), _crossovers(run), _not_measured(run)]
    found = [table for table in made if table.rows]
    if not any(row.device == "gpu" and row.values for row in run.rows) and run.about.get("cards"):
        found += _analytic(run, every_pass)
    return found


def heading(run: Run) -> list[tuple[str, str]]:
    """What is known of the machine and the run, by name, and a warning if it was not quiet."""
    warning = [("warning", BUSY)] if busy(run) else []
    return (
        warning
        + [(name, str(value)) for name, value in run.about.items() if not isinstance(value, dict | list)]
        + [(name, version) for name, version in run.about.get("providers", {}).items()]
    )


def busy(run: Run) -> bool:
    """Whether other programs took much of the processor, at the start or at the end."""
    return bool(run.about.get("cpu_share", 1.0) < QUIET)


def _of_suite(run: Run, suite: str) -> Table:
    rows = [row for row in run.rows if row.suite == suite]
    names = list(dict.fromkeys(row.provider for row in rows if row.status != "skipped"))
    names = [
        name for name in names if any(r.values or r.status in ("wrong", "failed") for r in rows if r.provider == name)
    ]
    ours = [name for name in OURS if name in names]
    head = ["what", "pass", "batch", *names, *(f"{name} against the best peer" for name in ours)]
    limited = suite in ("ops", "networks")
    head += [f"{name}, of the limit" for name in ours if limited] + ["largest error"] * (suite != "startup")
    lines = []
    for of_task in Run(run.about, rows).tasks().values():
        if not any(row.values or row.status in ("wrong", "failed") for row in of_task):
            continue
        by_name = {row.provider: row for row in of_task}
        first = of_task[0]
        line = [first.name, first.part, str(first.batch or "")]
        line += [_cell(by_name.get(name)) for name in names]
        line += [_against(by_name.get(name), of_task) for name in ours]
        line += [_of_limit(run, by_name.get(name)) for name in ours if limited]
        errors = [row.error for row in of_task if row.error is not None]
        lines.append(line + ([f"{max(errors):.1e}" if errors else "–"] if suite != "startup" else []))
    note = "Medians and, in brackets, the 20th to 80th percentile of the rounds."
    if suite == "ops" and any(row.device == "gpu" for row in rows):
        note += " On a GPU: between events, with a cold L2 cache; + is the host's time to enqueue, if it is longer."
    return Table(f"{TITLES[suite]} ({', '.join(dict.fromkeys(row.precision for row in rows))})", head, lines, note)


def _cell(row: Row | None) -> str:
    if row is None or row.status == "unsupported":
        return "–"
    if not row.values:
        return row.status.upper()
    low, high = row.spread
    if row.unit == "bytes":
        return f"{row.median / 2**20:,.0f} MiB"
    text = f"{time_text(row.median)} [{_percent_off(low, row.median)} {_percent_off(high, row.median)}]"
    host = statistics.median(row.host) if row.host else 0.0
    return text + (f" +{time_text(host)}" if host > row.median else "")


def _percent_off(value: float, median: float) -> str:
    return f"{100 * (value / median - 1):+.0f}%"


def best_peer(row: Row, of_task: Iterable[Row]) -> Row | None:
    """The fastest of others on the same kind of device."""
    peers = [one for one in of_task if one.values and one.provider not in OURS and one.device == row.device]
    return min(peers, key=lambda one: one.median, default=None)


def _against(row: Row | None, of_task: list[Row]) -> str:
    peer = best_peer(row, of_task) if row and row.values else None
    return f"{statistics.median(ratios(row, peer)):.2f}× {peer.provider}" if row and peer else "–"


def limits(run: Run, device: str, precision: str) -> Limits | None:
    """What the machine of the run can do at most, if it is known."""
    if device == "gpu":
        return roofline.limits_of_gpu(run.about.get("gpu", ""), precision)
    known = run.about.get("cpu_limits")
    return (
        Limits("this CPU", known["flops"], known["bytes"], "measured: products and copies by NumPy") if known else None
    )


def _of_limit(run: Run, row: Row | None) -> str:
    best = limits(run, row.device, row.precision) if row and row.values else None
    return (
        f"{best.seconds(row.flops, row.bytes) / row.median:.0%} {best.bound_by(row.flops, row.bytes)}"
        if row and best
        else "–"
    )


def _not_measured(run: Run) -> Table:
    """Why, by reason; reasons that differ by numbers alone are one."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in run.rows:
        if row.status != "measured":
            found.setdefault((row.status, re.sub(r"\d[\d.,]*", "…", row.reason)), []).append(row)
    lines = []
    for (status, _), rows in found.items():
        whats = list(dict.fromkeys(f"{row.name} {row.part} {row.batch or ''}".strip() for row in rows))
        shown = ", ".join(whats[:2]) + (f" and {len(whats) - 2} more" if len(whats) > 2 else "")
        lines.append([shown, status, ", ".join(dict.fromkeys(row.provider for row in rows)), rows[0].reason])
    return Table("Not measured", ["what", "", "by", "why (of the first)"], lines, plain=True)


def _crossovers(run: Run) -> Table:
    """The smallest batch from which the GPU is faster."""
    lines = []
    for (name, part), batches in _batches(run).items():
        both = {n: rows for n, rows in batches.items() if {"numpy", "cuda"} <= {r.provider for r in rows if r.values}}
        if both:
            wins = [n for n in sorted(both) if _median_of(both[n], "cuda") < _median_of(both[n], "numpy")]
            lines.append([f"{name} {part}", f"from batch {wins[0]}" if wins else f"never, up to batch {max(both)}"])
    return Table("Where cuda overtakes numpy", ["network", "cuda is faster"], lines)


def _median_of(rows: Iterable[Row], provider: str) -> float:
    return next(row.median for row in rows if row.provider == provider)


def _batches(run: Run) -> dict[tuple[str, str], dict[int, list[Row]]]:
    found: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for row in run.rows:
        if row.suite == "networks" and row.values:
            found.setdefault((row.name, row.part), {}).setdefault(row.batch, []).append(row)
    return found


def _analytic(run: Run, every_pass: bool) -> list[Table]:
    cards, precision = run.about["cards"], run.about["precision"]
    wanted = {(r.name, r.part, r.batch) for r in run.rows if r.suite in ("ops", "networks")}
    chosen = [
        task
        for suite in ("ops", "networks")
        for n in sorted({batch for _, _, batch in wanted})
        for task in tasks(suite, (n,))
        if (task.name, task.part, n) in wanted and (every_pass or task.part in ("forward", "training"))
    ]
    lines = [
        [
            task.name,
            task.part,
            str(task.batch),
            f"{task.flops / 1e9:,.3g}",
            f"{task.bytes(precision) / 1e6:,.3g}" if task.bytes(precision) else "–",
        ]
        + [f"{time_text(seconds)} {by}" for seconds, by in found]
        for task, found in roofline.bounds(chosen, cards, precision)
    ]
    known = [roofline.limits_of_card(card, precision) for card in cards]
    note = ANALYTIC + "".join(
        f"; {one.name}: {one.flops / 1e12:g} TFLOP/s {precision}, {one.bytes / 1e12:g} TB/s ({one.source})"
        for one in known
    )
    found = [
        Table("No GPU here: the least time on a card", ["what", "pass", "batch", "GFLOP", "MB", *cards], lines, note)
    ]
    mix = roofline.instruction_mix()
    if mix:
        rows = [[kernel, str(count), f"{share:.0%}"] for kernel, count, share in mix]
        note = "analytic: instructions of the hot loop as compiled for sm_90 (docs/compile_gate.csv); none was run"
        found.append(
            Table("What the kernels' hot loops are made of", ["kernel", "instructions", "multiply-adds"], rows, note)
        )
    return found if lines else []


# -- in a terminal -------------------------------------------------------------------------------------


def show(run: Run, console: Any, every_pass: bool = False) -> None:
    """Print a run."""
    console.print()
    for name, value in heading(run):
        console.print(f"{name:<24} {value}", soft_wrap=True)
    for table in tables(run, every_pass):
        print_table(table, console)


def print_table(table: Table, console: Any) -> None:
    """Print one table."""
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(table.head):
        made.add_column(name, justify="left" if i < 2 or table.plain else "right", overflow="fold")
    for line in table.rows:
        bad = any(cell in ("WRONG", "FAILED") for cell in line)
        made.add_row(*map(Text, line), style="red" if bad else None)
    console.print()
    console.print(Text(table.title, "bold"))
    console.print(made)
    if table.note:
        console.print(Text(table.note, "dim"), soft_wrap=True)


def comparison(before: Run, after: Run) -> tuple[Table, str]:
    """What changed from one run to another beyond the noise, and a summary in a few lines."""
    changes = compare(before, after)
    lines = []
    for c in sorted(changes, key=lambda c: -abs(math.log(c.ratio))):
        if c.significant:
            what = f"{c.after.name} {c.after.part} {c.after.batch or ''}".strip()
            values = [_value(c.before), _value(c.after), f"{100 * (c.ratio - 1):+.1f} %", f"{c.p:.1g}"]
            lines.append([what, c.after.provider, *values])
    text = f"{len(changes)} rows are in both runs; {len(lines)} changed by more than the noise"
    peers = [c.ratio for c in changes if c.after.provider not in OURS]
    if peers:
        text += f". The peers, for control: {100 * (statistics.median(peers) - 1):+.1f} % in the median"
    alone = len({row.key for row in before.rows if row.values} ^ {row.key for row in after.rows if row.values})
    text += f". {alone} rows are in one run alone" if alone else ""
    machines = [run.about.get("device") for run in (before, after)]
    text += f". The machines differ: {machines[0]} and {machines[1]}" if machines[0] != machines[1] else ""
    few = [c for c in changes if min(len(c.before.values), len(c.after.values)) < 8]
    text += f". {len(few)} rows have fewer than 8 rounds, too few to find much" if few else ""
    note = "Mann-Whitney over the rounds, p by Holm's correction below 0.05, and more than 3 % between the medians."
    head = ["what", "provider", "before", "after", "change", "p"]
    return Table("What changed", head, lines, note), text + "."


def _value(row: Row) -> str:
    return time_text(row.median) if row.unit == "s" else f"{row.median / 2**20:,.0f} MiB"


# -- plots ---------------------------------------------------------------------------------------------


def plots(run: Run) -> dict[str, Any]:
    """matplotlib figures by name. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    drawn = {"ratios": _plot_ratios, "roofline": _plot_roofline, "batches": _plot_batches, "sizes": _plot_sizes}
    figures = {name: figure for name, draw in drawn.items() if (figure := draw(run)) is not None}
    for figure in figures.values() if busy(run) else ():
        figure.suptitle(BUSY, color="#b00020", fontsize=8)
    return figures


def _axes(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plot_ratios(run: Run) -> Any:
    """How many times as fast as the best peer, on each task."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    found: list[tuple[str, float, str]] = []
    shown = [row for row in run.rows if row.suite in ("ops", "networks")]
    for of_task in Run(run.about, shown).tasks().values():
        for row in of_task:
            peer = best_peer(row, of_task) if row.provider in OURS and row.values else None
            if peer:
                label = f"{row.name} {row.part} {row.batch or ''}".strip()
                found.append((label, statistics.median(ratios(row, peer)), row.provider))
    if not found:
        return None
    figure, (axis,) = _axes(10, 1 + 0.19 * len(found))
    colours = {"numpy": "#3a6ea5", "cuda": "#3f8f4f"}
    axis.barh(range(len(found)), [ratio - 1 for _, ratio, _ in found], left=1, color=[colours[p] for _, _, p in found])
    axis.set_yticks(range(len(found)), [label for label, _, _ in found], fontsize=7)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="times as fast as the best peer on the same device (right of 1: faster)")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.minorticks_off()
    axis.invert_yaxis()
    axis.margins(y=0.01)
    return figure


def _plot_roofline(run: Run) -> Any:
    """FLOP/s over operations a byte, for each device that was measured."""
    measured = {row.device for row in run.rows if row.suite == "ops" and row.provider in OURS and row.values}
    devices = [(d, limits(run, d, run.about.get("precision", "fp32"))) for d in sorted(measured)]
    known = [(device, best) for device, best in devices if best is not None]
    if not known:
        return None
    figure, axes = _axes(7 * len(known), 5, len(known))
    for axis, (device, best) in zip(axes, known, strict=True):
        rows = [
            r
            for r in run.rows
            if r.suite == "ops" and r.provider in OURS and r.device == device and r.values and r.bytes
        ]
        intensities = [row.flops / row.bytes for row in rows]
        ends = [min([*intensities, 0.1]), max([*intensities, 1000.0])]
        edge = [ends[0], best.flops / best.bytes, ends[1]]
        axis.plot(
            edge,
            [min(best.flops, best.bytes * x) / 1e9 for x in edge],
            color="black",
            label=f"{best.name}: {best.source}",
        )
        for part in dict.fromkeys(row.part for row in rows):
            points = [
                (x, row.flops / row.median / 1e9) for x, row in zip(intensities, rows, strict=True) if row.part == part
            ]
            axis.scatter(*zip(*points, strict=True), s=18, label=part)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="operations a byte (each array once)",
            ylabel="GFLOP/s",
            title=rows[0].provider,
        )
        axis.legend(fontsize=7)
    return figure


def _plot_batches(run: Run) -> Any:
    """Images a second over the batch size, by provider: a panel for each network and pass."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    found = _batches(run)
    if not found:
        return None
    order = list(dict.fromkeys(name for name, _ in found))
    panels = sorted(found.items(), key=lambda panel: (order.index(panel[0][0]), panel[0][1]))
    rows = -(-len(panels) // 4)
    figure, axes = _axes(3.6 * min(len(panels), 4), 3.4 * rows, min(len(panels), 4), rows)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, ((name, part), batches) in zip(axes, panels, strict=False):
        for provider in dict.fromkeys(row.provider for rows in batches.values() for row in rows):
            points = sorted(
                (n, n / row.median) for n, rows in batches.items() for row in rows if row.provider == provider
            )
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=provider)
        axis.set(xscale="log", yscale="log", title=f"{name} {part}", xlabel="batch", ylabel="images/s")
        axis.set_xticks(sorted(batches), [str(n) for n in sorted(batches)])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.legend(fontsize=6)
    return figure


def _plot_sizes(run: Run) -> Any:
    """GFLOP/s of the convolutions over their operations, by provider."""
    rows = [row for row in run.rows if row.suite == "ops" and row.values and row.name.startswith("conv2d")]
    if not rows:
        return None
    parts = list(dict.fromkeys(row.part for row in rows))
    figure, axes = _axes(5 * len(parts), 4, len(parts))
    for axis, part in zip(axes, parts, strict=True):
        for provider in dict.fromkeys(row.provider for row in rows):
            points = sorted(
                (r.flops / 1e9, r.flops / r.median / 1e9) for r in rows if (r.provider, r.part) == (provider, part)
            )
            if points:
                axis.scatter(*zip(*points, strict=True), s=14, label=provider)
        axis.set(xscale="log", yscale="log", title=f"conv2d {part}", xlabel="GFLOP", ylabel="GFLOP/s")
        axis.legend(fontsize=7)
    return figure


# -- files ---------------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: 13px; }
td, th { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } .bad { color: #b00020; font-weight: bold; }
div { overflow-x: auto; } svg { max-width: 100%; height: auto; } p { color: #555; }
"""


def write(run: Run, folder: Path) -> list[Path]:
    """report.html and each plot as .svg and .png, in the folder of the run; the page alone without matplotlib."""
    written, drawn = [], dict[str, str]()
    try:
        figures = plots(run)
    except ImportError:
        figures = {}
        drawn[""] = '<p>No plots: matplotlib is not installed (pip install "gpucnn[bench]").</p>'
    for name, figure in figures.items():
        text = StringIO()
        figure.savefig(text, format="svg")
        drawing = text.getvalue()
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        write_text(svg, drawing)
        figure.set_layout_engine("none")  # what was found for the SVG serves here too, and takes a while to find
        write_atomically(png, partial(figure.savefig, format="png", dpi=150))
        written += [svg, png]
        drawn[name] = drawing[drawing.index("<svg") :]
    page = folder / "report.html"
    write_text(page, html_page(run, drawn))
    return [page, *written]


def html_page(run: Run, drawn: dict[str, str]) -> str:
    """The run as one page that needs nothing else; `drawn` are SVG pictures by name."""
    about = "".join(f"<tr><td>{escape(k)}<td style='text-align:left'>{escape(v)}" for k, v in heading(run))
    body = "".join(map(_html_table, tables(run)))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>gpucnn bench</title><style>{_STYLE}</style>"
        f"<h1>gpucnn bench</h1><table>{about}</table>{''.join(drawn.values())}{body}</html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}" for name in table.head)
    rows = "".join(f"<tr>{''.join(_html_cell(cell) for cell in line)}" for line in table.rows)
    return f"<h2>{escape(table.title)}</h2><p>{escape(table.note)}</p><div><table><tr>{head}{rows}</table></div>"


def _html_cell(text: str) -> str:
    return f"<td{' class=bad' if text in ('WRONG', 'FAILED') else ''}>{escape(text)}"


def update_readme(run: Run, path: Path) -> None:
    """Put the run's networks between the markers of a page. Raises ValueError if it has none, or the run has none."""
    page = path.read_text("utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"{path} must have the lines {BEGIN} and {END}, in this order, for the table to stand between")
    if busy(run):
        raise ValueError(f"{path} is left as it is: {BUSY}")
    text = readme_table(run)
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    write_text(path, f"{before}{BEGIN}\n{text}{END}{after}")


def readme_table(run: Run) -> str:
    """Images a second of our backends, and their ratio to the best peer, for each network's step that was measured."""
    cells: dict[tuple[str, str, str], dict[int, str]] = {}
    peers: set[str] = set()
    for of_task in run.tasks().values():
        for row in of_task:
            if row.suite != "networks" or row.provider not in OURS or not row.values:
                continue
            peer = best_peer(row, of_task)
            ratio = f" ({statistics.median(ratios(row, peer)):.2f}×)" if peer else ""
            cells.setdefault((row.name, row.part, row.provider), {})[row.batch] = _rate(row) + ratio
            peers |= {other.provider for other in of_task if other.provider not in OURS and other.values}
    if not cells:
        raise ValueError("this run measured no network, so there is no table to make of it")
    batches = sorted({batch for row in cells.values() for batch in row})
    order = list(dict.fromkeys(name for name, _, _ in cells))
    lines = [
        f"| {name}, {part} | {provider} | {' | '.join(cells[name, part, provider].get(n, '–') for n in batches)} |\n"
        for name, part, provider in sorted(cells, key=lambda key: (order.index(key[0]), *key[1:]))
    ]
    head = f"| images a second | | {' | '.join(f'batch {n}' for n in batches)} |\n|---|---{'|--:' * len(batches)}|\n"
    known = [(name, run.about.get(name)) for name in ("device", "gpu", "date", "commit")]
    where = [str(value).partition(" ")[0] if name == "date" else str(value) for name, value in known if value]
    threads = f"{run.about.get('threads')} threads, {run.about.get('precision')}"
    beside = f" In brackets, how many times as fast as the fastest of {', '.join(sorted(peers))}." if peers else ""
    return f"{head}{''.join(lines)}\n{', '.join(where)}; {threads}.{beside}\n"


def _rate(row: Row) -> str:
    rate = row.batch / row.median
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
