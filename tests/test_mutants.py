"""The mutants of bench/mutants.py: which are made, and that what must be killed is killed."""

import re
from pathlib import Path
from typing import Any

import mutants
import pytest

from gpucnn.devices.base import kernel_folder
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.testing import ways

ROOT = Path(__file__).parent.parent

SAMPLE = """
// y = a + b, if 1 < 2
#if !defined(LIMIT) || LIMIT < 1
#error "compile with -DLIMIT=1 or + more"
#endif
#define CHOICE 4
#define LENGTH (LIMIT - CHOICE)
struct Pair {
    int at[2];
};
extern "C" __global__ void __launch_bounds__(256) copy(
    const SCALAR* __restrict__ x,  // [count + 1]
    int h, int count) {
    const int i = thread_number();  // i < count
    if (i >= count) return;
    for (int w = 0; w < h; ++w) {
        __syncthreads(); /* a * b */
        at[i] = -x[KERNEL_H * w];
    }
#if CHOICE > 3
    at[0] = min(h, 0.5f);
#endif
}
"""


def test_a_sample_has_the_mutants_that_the_rules_say_and_none_in_comments_directives_and_declarations() -> None:
    shown = [f"{m.line}:{m.column} {m.before} → {m.after}" for m in mutants.mutants("sample.cu", SAMPLE)]
    assert shown == [
        *("7:23 - → +",),
        *("15:11 >= → <", "15:11 >= → >", "15:21 return; → {}"),
        *("16:14 w → h", "16:18 0 → (0 + 1)", "16:18 0 → (0 - 1)"),
        *("16:21 w → h", "16:23 < → <=", "16:23 < → >=", "16:25 h → w", "16:28 ++ → --", "16:30 w → h"),
        *("17:9 __syncthreads(); → {}",),
        *("18:9 at[i] = -x[KERNEL_H * w]; → {}", "18:17 - → "),
        *("18:20 KERNEL_H → KERNEL_W", "18:29 * → /", "18:31 w → h"),
        *("21:5 at[0] = min(h, 0.5f); → {}", "21:8 0 → (0 + 1)", "21:8 0 → (0 - 1)"),
        *("21:13 min → max", "21:17 h → w", "21:20 0.5f → (0.5f + 1)"),
    ]


def test_what_only_a_gpu_compiles_has_no_mutants() -> None:
    text = """
static float twice(float x) {
#ifdef EMULATOR
    x = x + 1;
#else
    x = x - 1;
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("neg.f32 %0, %0;" : "+f"(x));
#else
    x = -x;
#endif
#ifdef __CUDA_ARCH__
    asm("neg.f32 %0, %0;" : "+f"(x));
#endif
    return 2 * x;
}
"""
    assert {m.line for m in mutants.mutants("sample.cuh", text)} == {4, 11, 16}


def test_a_mutant_is_the_file_with_one_change_and_is_named_by_its_line_and_not_by_its_number() -> None:
    first, *_ = mutants.mutants("sample.cu", SAMPLE)
    assert str(first) == "sample.cu LENGTH: #define LENGTH (LIMIT ⟦- → +⟧ CHOICE)"
    assert first.applied(SAMPLE) == SAMPLE.replace("LIMIT - CHOICE", "LIMIT + CHOICE")
    moved, *_ = mutants.mutants("sample.cu", "\n\n" + SAMPLE)
    assert str(moved) == str(first)
    assert moved.line == first.line + 2


def test_a_sample_is_drawn_for_each_function_and_a_larger_one_holds_the_smaller() -> None:
    made = mutants.mutants("pool2d.cu", (kernel_folder() / "pool2d.cu").read_text("utf-8"))
    three, five = mutants.chosen(made, 3), mutants.chosen(reversed(made), 5)
    functions = {mutant.function for mutant in made}
    assert {"place_of", "divisor_of", "max_pool2d_forward", "avg_pool2d_backward"} < functions
    assert [len([m for m in three if m.function == name]) for name in sorted(functions)] == [3] * len(functions)
    assert set(map(str, three)) < set(map(str, five))
    assert mutants.chosen(made, None) == made


def test_a_function_of_a_header_belongs_to_the_kernels_that_call_it_through_others() -> None:
    found = mutants.kernels_of(kernel_folder())
    assert found["dropout.cu", "philox"] == {("dropout.cu", "dropout")}
    assert found["window.cuh", "EXTENT_H"] == {
        ("pool2d.cu", "max_pool2d_backward"),
        ("pool2d.cu", "avg_pool2d_backward"),
    }
    assert ("activation.cu", "activation_forward") in found["math.cuh", "log_of_reduced"]
    assert {file for file, _ in found["gemm_tile.cuh", "gemm_tile"]} == {"conv2d.cu", "matmul.cu"}


# -- killing -----------------------------------------------------------------------------------------------------------


def planted(file: str, before: str, after: str) -> Any:
    """A mutant made by hand."""
    text = (kernel_folder() / file).read_text("utf-8")
    assert text.count(before) == 1, f"{file} has {text.count(before)} of {before!r}"
    start = text.index(before)
    name = next(
        name
        for name, _, body in mutants.functions(text)
        if body and body[0].start <= start <= body[-1].start + len(body[-1].text)
    )
    return mutants.Mutant(file, name, start, before, after, 0, 0, f"{before} → {after}")


@pytest.fixture(scope="module")
def table() -> Any:
    names = ("relu-3x5x13x11*3", "sigmoid-2x3x7x5NaN", "linear-70x9-67x9-67")
    names += ("batch_norm-3x35x11x9+0.5-None-None-35-35-True",)
    pairs = [(case, way) for case, way in ways() if str(case) in names]
    return mutants.known(pairs, set().union(*mutants.kernels_of(kernel_folder()).values()), EmulatorDevice())


PLANTED = [
    ("common.cuh", "? from[i] : Scalar(0)", "? from[0] : Scalar(0)", "value"),
    ("column_sum.cuh", "__syncthreads();  // all lanes are in their places", "", "emulator"),
    ("gemm_tile.cuh", "done += TILE_K", "done += 0 * TILE_K", "emulator"),
    ("column_sum.cuh", "lane < LANES; ++lane", "lane < LANES; lane += 0", "endless"),
    ("common.cuh", "left >= 4 && ", "", "emulator"),
    ("gemm_tile.cuh", "b[j] = tiles.b", "b[j] = undeclared + tiles.b", "does not compile"),
    ("sums.cu", "Scalar sum = terms[i];", "Scalar sum = terms[i] * 1.0000001f;", "alive"),  # no case launches it
    ("common.cuh", "return left >= 4 && ", "return left > 4 && ", "alive"),  # only the path is slower
    ("gemm_tile.cuh", "multiply_add(a.at[i], b[j], sum[i][j])", "a.at[i] * b[j] + sum[i][j]", "bits"),
]


@pytest.mark.parametrize(("file", "before", "after", "outcome"), PLANTED)
def test_the_table_kills_a_planted_mutant(
    file: str, before: str, after: str, outcome: str, table: Any, tmp_path: Path
) -> None:
    mutant = planted(file, before, after)
    for path in kernel_folder().glob("*.cu*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_text(mutant.applied((tmp_path / file).read_text("utf-8")), "utf-8")
    kernels = mutants.kernels_of(kernel_folder())[mutant.file, mutant.function]
    verdict, detail = mutants.verdict_of_the_table(tmp_path, kernels, table)
    assert verdict == outcome, detail


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_judge_survives_a_crash_and_leaves_the_kernels_as_they_are(table: Any, tmp_path: Path) -> None:
    crash = planted("activation.cu", "load_four(x + first, left);", "load_four(x + first, left / (int)threadIdx.x);")
    wrong = planted("activation.cu", "store_four(y + first, four, left);", "store_four(y + first, four, left - 1);")
    judge = mutants.Judge(tmp_path, 1, table)
    verdicts = {mutant: outcome for mutant, outcome, _ in judge.verdicts([wrong, crash])}
    assert verdicts == {wrong: "emulator", crash: "crash"}
    copy = tmp_path / "checkout-0" / "kernels" / "activation.cu"
    assert copy.read_bytes() == (kernel_folder() / "activation.cu").read_bytes()


def test_a_kill_holds_while_the_file_is_the_same_and_survival_while_the_tests_are_too() -> None:
    now = {"file": "f", "suite": "s"}
    assert mutants.still_holds({"outcome": "value", "file": "f", "suite": "before"}, now)
    assert mutants.still_holds({"outcome": "alive", "file": "f", "suite": "s"}, now)
    assert not mutants.still_holds({"outcome": "alive", "file": "f", "suite": "before"}, now)
    assert not mutants.still_holds({"outcome": "value", "file": "before", "suite": "s"}, now)
    assert not mutants.still_holds(None, now)


# -- the record --------------------------------------------------------------------------------------------------------


def test_every_mutant_with_a_reason_is_a_mutant_of_the_kernels() -> None:
    made = {str(m) for path in kernel_folder().glob("*.cu*") for m in mutants.mutants(path.name, path.read_text())}
    gone = [name for name in mutants.reasons() if name not in made]
    assert not gone, f"{mutants.REASONS.name} has reasons for what is no mutant any more; delete them: {gone}"


def test_the_page_lists_survivors_with_their_reasons_and_computes_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    made = mutants.mutants("sample.cu", SAMPLE)[:5]
    outcomes = ["value", "emulator", "alive", "does not compile"]  # the fifth was not run: it is equivalent
    verdicts = {str(m): {"outcome": outcome} for m, outcome in zip(made, outcomes, strict=False)}
    why = {str(made[2]): ("alive", "nobody looks"), str(made[4]): ("equivalent", "the same")}
    monkeypatch.setattr(mutants, "reasons", lambda: why)
    text = mutants.page(made, verdicts, 3)
    assert "| sample.cu | 4 | 1 | 1 | 0 | 0 | 0 | 0 | 1 | 1 | 66.7 % |" in text
    assert f"- nobody looks\n    - sample.cu:{made[2].line} `{made[2].shown}`" in text
    assert f"- the same\n    - sample.cu:{made[4].line} `{made[4].shown}`" in text
    assert "1 of them do not compile" in text


def test_the_figure_on_the_page_of_the_kernels_is_that_of_the_mutants() -> None:
    figure = re.search(r"killed: \*\*(.*?)\*\*", mutants.PAGE.read_text("utf-8"))
    assert figure
    section = (ROOT / "docs" / "kernels.md").read_text("utf-8").partition("## Mutants")[2].partition("\n## ")[0]
    assert f"**{figure[1]}**" in section
