"""Runs are kept whole, and two of them differ only where the difference exceeds the noise."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gpucnn.benchmark.records import Row, Run, compare, holm, mann_whitney, ratios


def row(name="relu", provider="numpy", values=(1.0, 2.0, 3.0), **rest):
    return Row("ops", name, "forward", 8, provider, "fp32", "measured", values=list(values), **rest)


def noisy(seed, scale=1.0, rounds=20, rows=40):
    """A run whose rounds scatter by 3 %."""
    rng = np.random.default_rng(seed)
    return Run(
        {}, [row(f"op{i}", values=(1e-3 * scale * rng.lognormal(0, 0.03, rounds)).tolist()) for i in range(rows)]
    )


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_run_comes_back_from_its_file(tmp_path):
    skipped = Row("networks", "lenet5", "training", 8, "cuda", "fp32", "skipped", reason="no time")
    run = Run({"threads": 2}, [row(error=1e-7, flops=5, host=[0.5]), skipped])
    run.save(tmp_path / "run.jsonl")
    assert Run.load(tmp_path / "run.jsonl") == run
    assert Run.load(tmp_path) == run
    assert [*tmp_path.iterdir()] == [tmp_path / "run.jsonl"]


def test_values_keep_six_digits_and_what_json_lacks_is_left_out(tmp_path):
    run = Run({}, [replace(row(values=[1 / 3]), error=float("inf"))])
    run.save(tmp_path / "run.jsonl")
    line = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[1])
    assert line["values"] == [0.333333]
    assert line["error"] is None


@pytest.mark.parametrize("text", ["", "{}\n", '{"about": {}}\nnonsense\n', '{"about": {}}\n{"colour": 1}\n'])
def test_a_file_that_is_no_run_is_named(tmp_path, text):
    (tmp_path / "run.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"run\.jsonl is no run of `gpucnn bench`"):
        Run.load(tmp_path)


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no run in \S*, which has no run\.jsonl; `gpu"):
        Run.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no run in \S*absent; `gpucnn bench` makes"):
        Run.load(tmp_path / "absent")


def test_medians_and_spreads_are_of_the_rounds():
    found = row(values=[5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert found.median == 3.5
    assert found.spread == (2.0, 5.0)
    assert np.isnan(row(values=[]).median)


def test_ratios_are_of_rounds_that_belong_together():
    assert ratios(row(values=[1.0, 2.0, 4.0]), row(values=[2.0, 2.0, 2.0])) == [2.0, 1.0, 0.5]


# -- the test ----------------------------------------------------------------------------------------------------------


def test_mann_whitney_is_scipys():
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed: nothing to compare with")
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.5, 2.0):
        for ties in (False, True):
            a, b = rng.standard_normal(13), rng.standard_normal(9) + shift
            if ties:
                a, b = np.round(a), np.round(b)
            expected = stats.mannwhitneyu(a, b, alternative="two-sided", method="asymptotic").pvalue
            assert mann_whitney(a.tolist(), b.tolist()) == pytest.approx(expected, rel=1e-12)


def test_samples_without_any_difference_are_not_told_apart():
    assert mann_whitney([1.0] * 5, [1.0] * 7) == 1.0


def test_holms_correction_is_that_of_a_worked_example():
    # 0.01·4, 0.02·3, 0.03·2 and 0.04·1 in order, never falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_run_does_not_differ_from_itself():
    assert [c for c in compare(noisy(0), noisy(0)) if c.significant] == []


def test_runs_that_differ_by_noise_alone_show_nothing():
    found = [sum(c.significant for c in compare(noisy(2 * i), noisy(2 * i + 1))) for i in range(20)]
    assert sum(n > 0 for n in found) <= 3  # 5 % of runs, by Holm


def test_a_planted_slow_down_of_a_fifth_is_found_and_it_alone():
    before, after = noisy(0), noisy(1)
    after.rows[7] = replace(after.rows[7], values=[1.2 * value for value in after.rows[7].values])
    found = [c for c in compare(before, after) if c.significant]
    assert [c.after.name for c in found] == ["op7"]
    assert found[0].ratio == pytest.approx(1.2, rel=0.03)


def test_a_certain_but_small_change_is_not_called_one():
    before = Run({}, [row(values=np.linspace(1, 1.001, 30).tolist())])
    after = Run({}, [row(values=np.linspace(1.01, 1.011, 30).tolist())])
    [change] = compare(before, after)
    assert change.p < 1e-6
    assert not change.significant


def test_rows_of_different_precision_batch_or_unit_are_not_compared():
    one = row()
    others = [replace(one, precision="tf32"), replace(one, batch=9), replace(one, unit="bytes")]
    assert compare(Run({}, [one]), Run({}, others)) == []
    assert len(compare(Run({}, [one]), Run({}, [*others, one]))) == 1
