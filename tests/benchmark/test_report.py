"""A run for people: what is shown is what was measured, and nothing else is."""

import re
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from gpucnn.benchmark import report, roofline
from gpucnn.benchmark.records import Row, Run
from gpucnn.benchmark.report import BEGIN, BUSY, END, html_page, tables, update_readme

RECORDED = Path(__file__).parent / "run.jsonl"  # of `gpucnn bench ops networks memory -k lenet5 --batch 1,8`


@pytest.fixture
def run():
    return Run.load(RECORDED)


@pytest.fixture
def quiet(run):
    return Run(run.about | {"cpu_share": 0.98}, run.rows)


def row(provider="numpy", batch=8, values=(0.002, 0.004, 0.006), **rest):
    usual = {"suite": "networks", "name": "lenet5", "part": "training", "precision": "fp32", "status": "measured"}
    return Row(**usual | {"batch": batch, "provider": provider, "values": list(values)} | rest)


def table(run, title):
    return next(table for table in tables(run) if table.title.startswith(title))


# -- tables ------------------------------------------------------------------------------------------------------------


def test_every_measured_row_is_shown_with_its_median_and_spread(run):
    titles = {"ops": "Ops", "networks": "Networks", "memory": "Peak"}
    for one in run.rows:
        if one.values and one.provider == "numpy":
            place = [one.name, one.part, str(one.batch)]
            [line] = [line for line in table(run, titles[one.suite]).rows if line[:3] == place]
            median = f"{one.median / 2**20:,.0f} MiB" if one.unit == "bytes" else roofline.time_text(one.median)
            assert line[3].startswith(median)


def test_the_ratio_is_the_median_of_the_rounds_ratios_to_the_fastest_of_the_same_device():
    rows = [
        row(values=[2.0, 4.0, 6.0]),
        row("torch-cpu", values=[4.0, 2.0, 3.0]),
        row("jax", values=[9.0, 9.0, 9.0]),
        row("torch-cuda", values=[0.1] * 3, device="gpu"),
    ]
    [found] = tables(Run({}, rows))
    assert found.rows[0][found.head.index("numpy against the best peer")] == "0.50× torch-cpu"


def test_the_share_of_the_limit_is_the_least_time_over_the_time():
    about = {"cpu_limits": {"flops": 100e9, "bytes": 10e9}}
    one = row(suite="ops", name="relu", part="forward", values=[0.5], flops=10**9, bytes=10**9)
    [found] = tables(Run(about, [one]))
    assert found.rows[0][found.head.index("numpy, of the limit")] == "20% memory"  # 0.1 s of 0.5 s
    [found] = tables(Run(about, [replace(one, bytes=10**6)]))
    assert found.rows[0][found.head.index("numpy, of the limit")] == "2% compute"


def test_a_wrong_and_a_failed_result_have_no_time_and_their_reasons():
    rows = [
        row("torch-cpu", status="wrong", values=[], reason="its result is off by 2 of its size"),
        row("jax", status="failed", values=[], reason="RuntimeError: no"),
        row("cupy", status="unsupported", values=[], reason="CuPy has no networks"),
        row(),
    ]
    found = tables(Run({}, rows))
    line = dict(zip(found[0].head, found[0].rows[0], strict=True))
    assert (line["torch-cpu"], line["jax"]) == ("WRONG", "FAILED")
    assert "cupy" not in line
    assert line["numpy against the best peer"] == "–"
    reasons = {line[1]: line[-1] for line in found[1].rows}
    assert reasons == {r.status: r.reason for r in rows if r.status != "measured"}


def test_skipped_tasks_are_listed_once_for_reasons_that_differ_by_numbers():
    rows = [
        row(provider, batch, [], status="skipped", reason=f"would take about {9 * batch} s")
        for batch in (8, 64, 256)
        for provider in ("numpy", "jax")
    ]
    [found] = tables(Run({}, rows))
    assert found.rows == [
        ["lenet5 training 8, lenet5 training 64 and 1 more", "skipped", "numpy, jax", "would take about 72 s"]
    ]


def test_the_crossover_is_the_first_batch_at_which_cuda_is_faster():
    rows = []
    for batch, cpu, gpu in [(1, 1.0, 3.0), (8, 4.0, 3.5), (64, 30.0, 5.0)]:
        rows += [row(batch=batch, values=[cpu]), row("cuda", batch, [gpu], device="gpu")]
    assert table(Run({}, rows), "Where").rows == [["lenet5 training", "from batch 8"]]
    assert table(Run({}, rows[:2]), "Where").rows == [["lenet5 training", "never, up to batch 1"]]
    assert not any(found.title.startswith("Where") for found in tables(Run({}, [row()])))


def test_the_hosts_time_is_shown_where_it_is_longer_than_the_gpus():
    one = row("cuda", values=[0.001] * 3, host=[0.005] * 3, device="gpu")
    assert tables(Run({}, [one]))[0].rows[0][3] == "1 ms [+0% +0%] +5 ms"
    assert "+" not in tables(Run({}, [replace(one, host=[0.0005] * 3)]))[0].rows[0][3].replace("+0%", "")


def test_without_a_gpu_the_least_time_on_a_card_is_shown_as_analytic(run):
    found = table(run, "No GPU here")
    assert found.note.startswith("analytic: computed")
    assert "nothing here was measured" in found.note
    line = next(
        line for line in found.rows if line[0].startswith("conv2d.lenet5.second") and line[1:3] == ["forward", "8"]
    )
    moved = 4 * (8 * 6 * 14 * 14 + 16 * 6 * 25 + 16 + 8 * 16 * 100)
    flops = 8 * 100 * 16 * 2 * 150
    assert line[found.head.index("H200")] == f"{1e9 * max(flops / 66.9e12, moved / 4.8e12):.3g} ns compute"
    gpu = Run(run.about, [*run.rows, row("cuda", device="gpu")])
    assert not any(one.title.startswith("No GPU") for one in tables(gpu))


def test_the_instruction_mix_is_shown_as_analytic(run, monkeypatch):
    monkeypatch.setattr(roofline, "instruction_mix", lambda: [("conv2d_forward", 617, 512 / 617)])
    found = table(run, "What the kernels")
    assert found.rows == [["conv2d_forward", "617", "83%"]]
    assert "none was run" in found.note


def test_a_busy_machine_is_warned_of(run, quiet):
    assert report.heading(run)[0] == ("warning", BUSY)
    assert "warning" not in dict(report.heading(quiet))


def test_the_terminal_shows_all_tables(run):
    out = StringIO()
    report.show(run, Console(file=out, width=240, highlight=False))
    for found in tables(run, every_pass=False):
        assert found.title in out.getvalue()
    assert run.about["device"] in out.getvalue()


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else_and_holds_the_plots(run, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: nothing to draw with")
    written = report.write(run, tmp_path)
    plots = {f"{name}.{kind}" for name in ("ratios", "roofline", "batches", "sizes") for kind in ("svg", "png")}
    assert {path.name for path in written} == {"report.html"} | plots
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<svg") == 4
    assert not re.search(r"(?:src|href)=\"https?:", page)
    for path in tmp_path.glob("*.svg"):
        ElementTree.fromstring(path.read_text("utf-8"))
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_is_made_without_matplotlib_too(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert [path.name for path in report.write(run, tmp_path)] == ["report.html"]
    assert "No plots: matplotlib is not installed" in (tmp_path / "report.html").read_text("utf-8")


def test_text_from_outside_can_not_become_markup():
    page = html_page(Run({"device": "<script>"}, [row(status="failed", values=[], reason="<img>")]), {})
    assert "<script>" not in page
    assert "<img>" not in page


def test_points_of_the_roofline_are_the_kernels_own(run):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: nothing to draw with")
    axis = report.plots(run)["roofline"].axes[0]
    points = np.concatenate([c.get_offsets() for c in axis.collections])
    rows = [r for r in run.rows if r.suite == "ops" and r.provider == "numpy" and r.values]
    expected = sorted((r.flops / r.bytes, r.flops / r.median / 1e9) for r in rows)
    np.testing.assert_allclose(sorted(map(tuple, points)), expected)
    limits = run.about["cpu_limits"]
    x, y = axis.lines[0].get_data()
    assert y[-1] == pytest.approx(limits["flops"] / 1e9)
    assert x[1] == pytest.approx(limits["flops"] / limits["bytes"])


def test_plots_of_nothing_are_left_out():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: nothing to draw with")
    assert report.plots(Run({}, [row(status="failed", values=[])])) == {}


# -- the README --------------------------------------------------------------------------------------------------------


def test_the_table_stands_between_the_markers_and_the_rest_is_untouched(quiet, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    update_readme(quiet, path)
    text = path.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}\n| images a second |")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    update_readme(quiet, path)
    assert path.read_text("utf-8") == text


def test_the_readmes_figures_are_images_a_second():
    rows = [
        row(values=[0.004] * 3),
        row("torch-cpu", values=[0.002] * 3),
        row(values=[0.02] * 3, batch=64),
        row(values=[0.002] * 3, part="inference"),
    ]
    text = report.readme_table(Run({"device": "a CPU", "threads": 2, "precision": "fp32"}, rows))
    assert text.splitlines()[0] == "| images a second | | batch 8 | batch 64 |"
    assert text.splitlines()[2] == "| lenet5, inference | numpy | 4,000 | – |"
    assert text.splitlines()[3] == "| lenet5, training | numpy | 2,000 (0.50×) | 3,200 |"
    assert text.endswith("a CPU; 2 threads, fp32. In brackets, how many times as fast as the fastest of torch-cpu.\n")
    assert "In brackets" not in report.readme_table(Run({}, rows[:1]))


@pytest.mark.parametrize("page", ["nothing", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"])
def test_a_page_without_its_markers_is_refused(quiet, tmp_path, page):
    path = tmp_path / "README.md"
    path.write_text(page, "utf-8")
    with pytest.raises(ValueError, match="must have the lines <!-- bench:begin --> and <!-- bench:end -->"):
        update_readme(quiet, path)
    assert path.read_text("utf-8") == page


def test_a_busy_machines_figures_do_not_get_into_the_readme(run, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"{BEGIN}\n{END}\n", "utf-8")
    with pytest.raises(ValueError, match="is left as it is: other programs were running"):
        update_readme(run, path)
    assert path.read_text("utf-8") == f"{BEGIN}\n{END}\n"


def test_a_run_without_networks_makes_no_readme():
    with pytest.raises(ValueError, match="measured no network"):
        report.readme_table(Run({}, [row(suite="ops")]))


def test_the_readme_has_its_markers():
    text = (roofline.checkout() / "README.md").read_text("utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


# -- comparing ---------------------------------------------------------------------------------------------------------


def test_a_run_compared_with_itself_shows_no_change(run):
    found, summary = report.comparison(run, run)
    assert found.rows == []
    measured = sum(bool(one.values) for one in run.rows)
    assert summary.startswith(f"{measured} rows are in both runs; 0 changed by more than the noise")
    assert "The peers, for control: +0.0 % in the median" in summary


def test_a_slow_down_is_shown_with_both_times_and_its_size(run):
    which = next(i for i, one in enumerate(run.rows) if len(one.values) >= 8 and one.provider == "numpy")
    slower = list(run.rows)
    slower[which] = replace(slower[which], values=[10 * value for value in slower[which].values])
    found, summary = report.comparison(run, Run(run.about | {"device": "another"}, slower[:-1]))
    assert [(line[1], line[4]) for line in found.rows] == [("numpy", "+900.0 %")]
    assert found.rows[0][2] == roofline.time_text(run.rows[which].median)
    assert "1 changed by more than the noise" in summary
    assert f"The machines differ: {run.about['device']} and another" in summary
