"""The compile gate: what it refuses, what it counts, and that it notices a table that is not current."""

import csv
import os
import re
import shutil
import sys
from importlib import metadata
from types import SimpleNamespace

import compile_gate
import fake_cupy
import numpy as np
import pytest

from gpucnn.devices import nvrtc
from gpucnn.devices.base import kernel_folder
from gpucnn.devices.cuda import CudaDevice
from gpucnn.devices.recorder import Launched

Instruction, Unit, ARCHITECTURES = compile_gate.Instruction, compile_gate.Unit, compile_gate.ARCHITECTURES

AXPY = """
#include "scale.cuh"
// y = a x + y
extern "C" __global__ void axpy(
    const float* __restrict__ x,  // [count]
    float* __restrict__ y,        // in place [count]
    float a, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = fmaf(SCALE * a, x[i], y[i]);
}
"""


class Tools(compile_gate.Tools):
    """Compiles and disassembles the same code but once: most tests take the same kernel, for every architecture."""

    def __init__(self):
        super().__init__()
        self._done = {}

    def compile(self, unit, architecture):
        files = sorted(file for file in unit.path.parent.iterdir() if file.suffix in (".cu", ".cuh"))
        one = (unit.path.name, unit.constants, architecture, *(file.read_bytes() for file in files))
        if one not in self._done:
            self._done[one] = super().compile(unit, architecture)
        return self._done[one]

    def disassemble(self, cubin):
        if cubin not in self._done:
            self._done[cubin] = super().disassemble(cubin)
        return self._done[cubin]


@pytest.fixture(scope="module")
def tools():
    try:
        return Tools()
    except RuntimeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def place(tmp_path):
    """A table that is not there yet and a page, as arguments."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{compile_gate.BEGIN}\n{compile_gate.END}\nafter\n")
    return tmp_path / "table.csv", page


def launch(file, name, constants=(), threads=32):
    return Launched(file, name, constants, (1, 1, 1), (threads, 1, 1))


def planted(tmp_path, code, *kernels, **constants):
    path = tmp_path / "planted.cu"
    path.write_text(code)
    (tmp_path / "scale.cuh").write_text("#define SCALE 1\n")
    compile_gate.source.cache_clear()
    return Unit(path, (("SCALAR", "float"), *constants.items()), kernels)


@pytest.fixture
def axpy(tmp_path):
    return planted(tmp_path, AXPY, "axpy", WIDTH=3)


# -- what is refused -----------------------------------------------------------------------------------

LOCAL_ARRAY = """
extern "C" __global__ void with_array(float* y, int i) {
    float array[64];
    for (int j = 0; j < 64; ++j) array[j] = y[j];
    for (int j = 0; j < i; ++j) array[j * i % 64] += array[j % 64];
    y[0] = array[i % 64];
}
extern "C" __global__ void without(float* y) { y[threadIdx.x] = 1; }
"""

SPILLS = """
extern "C" __global__ void __launch_bounds__(1024, 2) spills(const float* x, float* y) {
    float all[96];
#pragma unroll
    for (int i = 0; i < 96; ++i) all[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 96; ++i) y[i * 1024 + threadIdx.x] = all[i] * all[95 - i];
}
"""


def test_an_array_in_local_memory_is_refused_with_the_kernels_name_on_every_architecture(tools, tmp_path, place):
    lines = compile_gate.gate([planted(tmp_path, LOCAL_ARRAY, "with_array", "without", WIDTH=3)], tools, *place)
    assert lines == [
        f"planted.cu: with_array (float, WIDTH=3) for sm_{a} has a stack of 256 bytes and 0 bytes of spills; "
        "fewer values at once help: see docs/howto/new-kernel.md"
        for a in ARCHITECTURES
    ]


def test_a_kernel_of_the_file_that_is_not_launched_with_these_constants_is_not_judged(tools, tmp_path, place):
    assert compile_gate.gate([planted(tmp_path, LOCAL_ARRAY, "without")], tools, *place) == []


def test_spilled_registers_are_refused(tools, tmp_path):
    result = compile_gate.compiled(planted(tmp_path, SPILLS, "spills"), 90, tools)
    (line,) = result.refused
    assert line.startswith("planted.cu: spills (float) for sm_90 has a stack of ")
    assert int(line.partition(" bytes of spills")[0].split()[-1]) > 0


@pytest.mark.parametrize("numbers", [(8, 0, 0), (0, 8, 0), (0, 0, 8)])
def test_stack_stored_spills_and_loaded_spills_are_each_refused(axpy, numbers):
    stack, stores, loads = numbers
    log = (
        "ptxas info    : Compiling entry function 'axpy' for 'sm_75'\n"
        f"ptxas         .     {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem\n"
    )
    result = compile_gate.compiled(axpy, 75, SimpleNamespace(compile=lambda unit, architecture: (log, b"")))
    end = f"has a stack of {stack} bytes and {stores + loads} bytes of spills; {compile_gate.FEWER}"
    assert result.refused == [f"planted.cu: axpy (float, WIDTH=3) for sm_75 {end}"]
    assert compile_gate.usage(log)["axpy"] == (40, 512, stack, stores + loads)


@pytest.mark.parametrize(("threads", "registers", "fits"), [
    (512, 128, True), (512, 129, False), (256, 255, True), (288, 220, True), (288, 228, False),
])  # fmt: skip
def test_a_block_that_does_not_fit_the_registers_of_a_multiprocessor_is_refused(axpy, threads, registers, fits):
    log = (
        "ptxas info    : Compiling entry function 'axpy' for 'sm_75'\n"
        "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        f"ptxas info    : Used {registers} registers\n"
    )
    tools = SimpleNamespace(compile=lambda unit, architecture: (log, b""))
    refused = compile_gate.compiled(axpy._replace(threads=(threads,)), 75, tools).refused
    end = f"has blocks of {threads} threads with {registers} registers: they do not fit"
    assert refused == ([] if fits else [f"planted.cu: axpy (float, WIDTH=3) for sm_75 {end}"])


def row_with(kernel, constants, scalar="float", **loop):
    counts = dict.fromkeys(compile_gate.COUNTS, 0) | {"instructions": 1000} | loop
    row = dict.fromkeys(compile_gate.COLUMNS, "1") | {"kernel": kernel, "constants": constants, "scalar": scalar}
    return row | {f"loop_{name}": str(count) for name, count in counts.items()}


def test_a_hot_loop_with_too_few_products_is_refused_in_the_best_variant_alone():
    small, large = row_with("matmul_fma", "TILE_M=64", fma=500), row_with("matmul_fma", "TILE_M=128", fma=830)
    assert compile_gate.too_few_products([small, large]) == []
    assert compile_gate.too_few_products([small, row_with("matmul_fma", "TILE_M=128", fma=829)]) == [
        "`matmul_fma`: 82.9% of the hot loop are products, fewer than 83%"
    ]
    assert compile_gate.too_few_products([row_with("matmul_fma", "", "double", fma=500)]) == []


@pytest.mark.parametrize(("products", "least"), [(1, 250), (3, 300)])
def test_tensor_cores_have_a_share_of_their_own_for_each_number_of_products(products, least):
    def lines(tensor):
        return compile_gate.too_few_products([row_with("conv2d_mma_forward", f"PRODUCTS={products}", tensor=tensor)])

    assert lines(least) == []
    assert lines(least - 1) == [
        f"`conv2d_mma_forward`, {products} TF32: {least / 10 - 0.1:.1f}% of the hot loop are products, "
        f"fewer than {least // 10}%"
    ]


def test_too_few_products_fail_the_gate_and_the_check(tools, axpy, place, monkeypatch):
    compile_gate.gate([axpy], tools, *place)
    before = place[1].read_text()
    monkeypatch.setattr(compile_gate, "LEAST_SHARES", {"`axpy`": 0.5})
    line = "`axpy`: 0.0% of the hot loop are products, fewer than 50%"
    assert compile_gate.check([axpy], tools, *place) == [line, compile_gate.MEND]
    assert compile_gate.gate([axpy], tools, *place, anew=True) == [line]
    assert place[1].read_text() == before


def test_what_does_not_compile_is_refused_with_what_nvrtc_says(tools, tmp_path):
    (line,) = compile_gate.compiled(planted(tmp_path, AXPY.replace("fmaf", "fmaaf"), "axpy"), 75, tools).refused
    assert line.startswith("planted.cu: axpy (float) for sm_75 does not compile: planted.cu(9): error: identifier ")
    assert line.endswith('"fmaaf" is undefined')


def test_if_anything_is_refused_the_table_gets_only_what_passes_and_the_page_nothing(tools, tmp_path, place):
    table, page = place
    before = page.read_text()
    wanted = [planted(tmp_path, LOCAL_ARRAY, name, WIDTH=i) for i, name in enumerate(("with_array", "without"))]
    assert compile_gate.gate(wanted, tools, *place)
    assert [name[0] for name in compile_gate.read_table(table)] == ["without"]
    assert page.read_text() == before
    assert "with_array: 1 not in the table" in compile_gate.check(wanted, tools, *place)


def test_kernels_that_are_edited_while_they_are_compiled_are_refused(tools, tmp_path, axpy, place, monkeypatch):
    compile_all = compile_gate.compile_all

    def edited_meanwhile(work, tools):
        (tmp_path / "scale.cuh").write_text("#define SCALE 2\n")
        return compile_all(work, tools)

    monkeypatch.setattr(compile_gate, "compile_all", edited_meanwhile)
    lines = compile_gate.gate([axpy], tools, *place)
    assert lines == ["planted.cu: axpy (float, WIDTH=3) was edited while it was compiled"]
    assert compile_gate.read_table(place[0]) == {}


@pytest.mark.parametrize("report", [
    "Used 40 registers", "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
])  # fmt: skip
def test_a_report_of_the_assembler_that_can_not_be_read_is_an_error_and_not_a_pass(report):
    with pytest.raises(RuntimeError, match="can't read the assembler's report"):
        compile_gate.usage(f"ptxas info : Compiling entry function 'one' for 'sm_90'\n{report}")


def test_a_page_without_the_marks_is_an_error_before_anything_is_compiled(tools, axpy, place, monkeypatch):
    table, page = place
    page.write_text("no marks")
    monkeypatch.setattr(compile_gate, "compile_all", None)
    with pytest.raises(ValueError, match="the page needs the lines <!-- made by"):
        compile_gate.gate([axpy], tools, table, page)


# -- what is compiled ----------------------------------------------------------------------------------


def test_a_case_launches_every_kernel_what_runs_everywhere_in_both_types_and_what_each_share_is_of():
    launched = compile_gate.launched()
    assert compile_gate.never_launched(launched, kernel_folder()) == []
    everywhere = [
        one for one in launched if len(compile_gate.architectures(kernel_folder() / one.file)) == len(ARCHITECTURES)
    ]
    by_type = {
        scalar: {(one.file, one.name) for one in everywhere if ("SCALAR", scalar) in one.constants}
        for scalar in ("float", "double")
    }
    assert by_type["float"] == by_type["double"]
    assert len(by_type["float"]) > 20
    names = {one.name for one in launched}
    kinds = [("float", ""), ("float", "1"), ("float", "3"), ("float16", ""), ("bfloat16", "")]
    for pattern in compile_gate.LEAST_SHARES:
        of = {name for name in names for kind in kinds if re.fullmatch(pattern, compile_gate.labelled(name, *kind))}
        assert len(of) == (1 if "winograd" in pattern else 2 if "halo" in pattern else 4), pattern


def test_a_kernel_that_no_case_launches_is_named(tmp_path):
    path = planted(tmp_path, LOCAL_ARRAY + SPILLS).path
    lines = compile_gate.never_launched([launch(path.name, "without")], tmp_path)
    assert [line.partition(";")[0] for line in lines] == [
        "planted.cu: no case launches with_array",
        "planted.cu: no case launches spills",
    ]


def test_kernels_of_one_file_with_the_same_constants_are_compiled_together(tmp_path):
    narrow, wide = (("WIDTH", 1),), (("WIDTH", 2),)
    units = compile_gate.units(
        [launch("a.cu", "two", narrow), launch("a.cu", "one", wide), launch("b.cu", "x"), launch("a.cu", "one", narrow),
         launch("a.cu", "two", narrow, 96), launch("a.cu", "two", narrow, 64)],
        tmp_path,
    )  # fmt: skip
    assert sorted(units) == [
        Unit(tmp_path / "a.cu", narrow, ("one", "two"), (32, 96)), Unit(tmp_path / "a.cu", wide, ("one",), (32,)),
        Unit(tmp_path / "b.cu", (), ("x",), (32,)),
    ]  # fmt: skip


def test_a_file_that_needs_a_later_architecture_is_compiled_for_that_and_the_following(tools, tmp_path, place):
    unit = planted(tmp_path, "// Needs      sm_89\n" + AXPY, "axpy")
    assert compile_gate.gate([unit], tools, *place) == []
    (row,) = compile_gate.read_table(place[0]).values()
    assert [row[f"sm_{a}"] != "" for a in ARCHITECTURES] == [False, False, False, True, True, True, True]
    assert "| `axpy` | 1 | – | – | – | " in place[1].read_text()
    assert compile_gate.check([unit], tools, *place) == compile_gate.check([unit], tools, *place, anew=True) == []


def test_a_file_for_sm_90a_is_compiled_for_that_alone(tools, tmp_path, place):
    arrive = AXPY.replace("{", '{\n    asm volatile("wgmma.fence.sync.aligned;");', 1)
    unit = planted(tmp_path, "// Needs      sm_90a\n" + arrive, "axpy")
    assert compile_gate.gate([unit], tools, *place) == []
    (row,) = compile_gate.read_table(place[0]).values()
    assert [a for a in ARCHITECTURES if row[f"sm_{a}"]] == [90]
    assert compile_gate.check([unit], tools, *place) == []
    (line,) = compile_gate.gate([planted(tmp_path, "// Needs      sm_90\n" + arrive, "axpy")], tools, *place)[:1]
    assert "for sm_90 does not compile" in line


def test_products_of_a_warpgroup_that_wait_for_one_another_are_refused(tools, tmp_path):
    for path in compile_gate.kernel_folder().glob("*.cuh"):
        shutil.copy(path, tmp_path)
    tile = tmp_path / "wgmma_tile.cuh"
    tile.write_text(tile.read_text().replace("wgmma_finish(sums);", "wgmma_wait<0>();"))
    source = (compile_gate.kernel_folder() / "matmul_wgmma.cu").read_text()
    tile_of = {"TILE_M": 128, "TILE_N": 64, "TILE_K": 64, "STAGES": 4, "DYNAMIC_SHARED": 99328}
    unit = planted(tmp_path, source, "matmul_wgmma", TRANS_A=0, TRANS_B=1, BOX_A=128, BOX_B=64, **tile_of)
    unit = unit._replace(constants=(*unit.constants[1:], ("SCALAR", "float16")))
    (line,) = compile_gate.compiled(unit, 90, tools).refused
    assert line.endswith("for sm_90 waits for each wgmma: something reads its sums meanwhile")


def test_a_block_that_does_not_fit_the_shared_memory_of_a_multiprocessor_is_refused(axpy):
    log = (
        "ptxas info    : Compiling entry function 'axpy' for 'sm_75'\n"
        "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem\n"
    )
    tools = SimpleNamespace(compile=lambda unit, architecture: (log, b""))
    for dynamic, fits in ((227 * 1024 - 512, True), (227 * 1024 - 511, False)):
        unit = axpy._replace(constants=(*axpy.constants, ("DYNAMIC_SHARED", dynamic)))
        assert (compile_gate.compiled(unit, 75, tools).refused == []) == fits


def test_the_options_are_those_of_the_cuda_device_and_of_cupy(monkeypatch):
    cupy = fake_cupy.install(monkeypatch)
    monkeypatch.setattr(cupy, "compute", lambda *arguments: None)
    x = np.ones(4, np.float32)
    device = CudaDevice()
    device.launch("sums.cu", "sum_parts", {"SCALAR": "float"}, (1, 1, 1), (32, 1, 1), x, np.empty(2, np.float32), 2, 2)
    ((_, options, _),) = cupy.modules
    ours = [option for option in options if not option.startswith(("-I", "-D"))]
    assert [*ours, "-ftz=true"] == list(nvrtc.OPTIONS)


# -- machine code --------------------------------------------------------------------------------------


def test_the_instructions_of_a_small_kernel_are_those_that_it_is_written_with(tools, axpy):
    log, cubin = tools.compile(axpy, 90)
    counts = compile_gate.mix(tools.disassemble(cubin)["axpy"])
    assert (counts["fma"], counts["tensor"], counts["arithmetic"], counts["shared_memory"]) == (1, 0, 0, 0)
    assert (counts["global_memory"], counts["barrier"]) == (3, 0)  # load x, load y, store y
    assert counts["control"] == 3  # two exits, and the branch to itself behind the last
    assert sum(counts.values()) == 2 * counts["instructions"]
    assert compile_gate.hot_loop(tools.disassemble(cubin)["axpy"]) == []
    used = compile_gate.usage(log)["axpy"]
    assert 8 <= used.registers <= 24
    assert used[1:] == (0, 0, 0)


@pytest.mark.parametrize(("opcode", "operands", "expected"), [
    ("FFMA.FTZ", "R0,R1,R2,R3", "fma"), ("DFMA", "R0,R2,R4,R6", "fma"), ("HFMA2", "R0,R1,R2,R3", "fma"),
    ("HFMA2", "R0,-RZ,RZ,1.5,0", "integer"), ("HMMA.16816.F32", "R0,R1,R2,R3", "tensor"), ("FADD", "", "arithmetic"),
    ("MUFU.EX2", "", "arithmetic"), ("FSETP.GT.AND", "", "arithmetic"), ("LDS.128", "", "shared_memory"),
    ("LDSM.16.M88.4", "", "shared_memory"), ("SHFL.DOWN", "", "shared_memory"), ("LDG.E.128", "", "global_memory"),
    ("LDGSTS.E", "", "global_memory"), ("LDGDEPBAR", "", "barrier"), ("BAR.SYNC.DEFER_BLOCKING", "", "barrier"),
    ("BRA", "0x10", "control"), ("IMAD.MOV.U32", "", "integer"), ("LDC", "", "integer"), ("STL", "", "integer"),
])  # fmt: skip
def test_an_opcode_belongs_to_its_class(opcode, operands, expected):
    assert compile_gate.class_of(Instruction(opcode, operands)) == expected


def test_padding_is_not_counted():
    counts = compile_gate.mix([Instruction("NOP"), Instruction("FFMA"), Instruction("MOV"), Instruction("NOP")])
    assert {name: count for name, count in counts.items() if count} == {"instructions": 2, "fma": 1, "integer": 1}


def branch(target, predicated=True):
    return Instruction("BRA", hex(16 * target), predicated)


def code(*parts):
    return [Instruction(part) if isinstance(part, str) else part for part in parts]


def test_loops_in_a_loop_are_told_from_it():
    body = code("MOV", "FFMA", "LDS", branch(2), "FFMA", "STS", branch(5), branch(1), "EXIT")
    assert compile_gate.loops(body) == {1: set(range(1, 8)), 2: {2, 3}, 5: {5, 6}}


def test_a_branch_back_from_code_that_was_put_behind_the_end_is_no_loop_of_its_own():
    rare = code("MOV", branch(6), "FFMA", branch(1), "EXIT", "NOP", "MUFU", branch(2, predicated=False))
    assert compile_gate.loops(rare) == {1: {1, 2, 3, 6, 7}}


def test_the_branch_to_itself_behind_the_last_exit_is_no_loop():
    assert compile_gate.loops(code("FFMA", "EXIT", branch(2, predicated=False), "NOP")) == {}


def test_what_only_follows_a_branch_that_is_always_taken_is_in_no_loop():
    assert compile_gate.loops(code(branch(3, predicated=False), "FADD", branch(0), "EXIT")) == {}


def test_a_branch_on_a_uniform_predicate_may_go_on():
    uniform = Instruction("BRA.U", "UP0,0x0")
    assert compile_gate.loops([*code("FFMA"), uniform, *code("FADD", branch(0), "EXIT")]) == {0: {0, 1, 2, 3}}


def test_the_hot_loop_is_the_one_with_the_most_multiply_adds_outside_of_its_inner_loops():
    outer = code("MOV", "FFMA", "FFMA", "FFMA", branch(1), "FFMA", "FFMA", branch(0), "EXIT")
    assert compile_gate.hot_loop(outer) == outer[1:5]
    outer = code("MOV", "FFMA", branch(1), "FFMA", "FFMA", branch(0), "EXIT")
    assert compile_gate.hot_loop(outer) == outer[:6]


@pytest.mark.parametrize("scalar", ["float", "double"])
@pytest.mark.parametrize(("tile", "thread"), [((64, 64, 8), (4, 4)), ((32, 32, 8), (2, 2))])
def test_the_hot_loop_of_a_matrix_product_has_the_multiply_adds_of_a_step(tools, scalar, tile, thread):
    names = ("TILE_M", "TILE_N", "TILE_K", "THREAD_M", "THREAD_N", "TRANS_A", "TRANS_B")
    constants = tuple(zip(names, (*tile, *thread, 0, 0), strict=True))
    unit = Unit(kernel_folder() / "matmul.cu", (("SCALAR", scalar), *constants), ("matmul",))
    _, cubin = tools.compile(unit, 90)
    loop = compile_gate.mix(compile_gate.hot_loop(tools.disassemble(cubin)["matmul"]))
    assert loop["fma"] == thread[0] * thread[1] * tile[2]
    assert loop["barrier"] == 1  # behind the step's products, when the next step's operands are stored
    assert loop["shared_memory"] >= sum(thread) * tile[2] // 4  # at most four scalars at once


# -- the table -----------------------------------------------------------------------------------------


def test_a_table_is_current_until_the_code_of_a_kernel_changes(tools, tmp_path, axpy, place):
    assert compile_gate.gate([axpy], tools, *place) == []
    assert compile_gate.check([axpy], tools, *place) == []
    changed = planted(tmp_path, AXPY.replace("SCALE * a", "SCALE + a"), "axpy", WIDTH=3)
    assert compile_gate.check([changed], tools, *place) == [
        "axpy: 1 changed since the table was made", "to mend it: make gate",
    ]  # fmt: skip
    assert compile_gate.gate([changed], tools, *place) == []
    assert compile_gate.check([changed], tools, *place) == []


def test_a_change_in_a_header_makes_a_table_stale_and_one_in_a_comment_does_not(tools, tmp_path, axpy, place):
    compile_gate.gate([axpy], tools, *place)
    commented = planted(tmp_path, AXPY.replace("// y = a x + y", "  // y += a x"), "axpy", WIDTH=3)
    assert compile_gate.check([commented], tools, *place) == []
    (tmp_path / "scale.cuh").write_text("#define SCALE 2\n")
    compile_gate.source.cache_clear()
    assert "axpy: 1 changed since the table was made" in compile_gate.check([axpy], tools, *place)


def test_new_and_vanished_specialisations_are_told(tools, tmp_path, axpy, place):
    compile_gate.gate([axpy], tools, *place)
    assert compile_gate.check([axpy._replace(constants=(("SCALAR", "double"),))], tools, *place) == [
        "axpy: 1 not in the table", "axpy: 1 in the table, but no longer launched", "to mend it: make gate",
    ]  # fmt: skip


def test_a_figure_that_was_changed_by_hand_is_noticed(tools, tmp_path, axpy, place):
    table, page = place
    compile_gate.gate([axpy], tools, *place)
    (row,) = rows = list(compile_gate.read_table(table).values())
    row["sm_80"] = str(registers := int(row["sm_80"]) + 1)
    compile_gate.write_table(table, rows)
    assert compile_gate.check([axpy], tools, *place)[0] == "page.md does not show what table.csv says"
    compile_gate.write_text(page, compile_gate.with_section(page.read_text(), compile_gate.section(rows)))
    line, remedy = compile_gate.check([axpy], tools, *place, anew=True)
    assert line == f"planted.cu: axpy (float, WIDTH=3): sm_80 {registers - 1}, not {registers}"
    assert remedy.endswith("compile_gate.py --all")
    compile_gate.gate([axpy], tools, *place, anew=True)
    assert compile_gate.check([axpy], tools, *place, anew=True) == []


def test_a_page_that_was_changed_by_hand_is_noticed_and_the_rest_of_it_is_left_alone(tools, axpy, place):
    page = place[1]
    compile_gate.gate([axpy], tools, *place)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| `axpy` | 1 | " in text
    page.write_text(text.replace("| `axpy` | 1 | ", "| `axpy` | 2 | "))
    assert compile_gate.check([axpy], tools, *place) == [
        "page.md does not show what table.csv says", "to mend it: make gate",
    ]  # fmt: skip


def test_another_compiler_than_the_tables_is_told(tools, axpy, place, monkeypatch):
    compile_gate.gate([axpy], tools, *place)
    made = tools.version
    monkeypatch.setattr(tools, "version", "12.0.1")
    assert compile_gate.check([axpy], tools, *place)[0] == (
        f"table.csv was made with NVRTC {made}, but 12.0.1 is installed"
    )


def test_only_what_changed_is_compiled_again(tools, axpy, place, capsys):
    wide = axpy._replace(constants=(("SCALAR", "float"), ("WIDTH", 4)))
    compile_gate.gate([axpy], tools, *place)
    before = place[0].read_text()
    compile_gate.gate([axpy, wide], tools, *place)
    assert "2 specialisations: 7 of 14 compilations are to be done" in capsys.readouterr().out
    with place[0].open() as file:
        assert [row["constants"] for row in csv.DictReader(file)] == ["WIDTH=3", "WIDTH=4"]
    assert before in place[0].read_text()


def test_a_check_compiles_each_unit_for_one_architecture_and_many_units_for_all(tools, axpy, place, monkeypatch):
    wanted = [axpy._replace(constants=(("SCALAR", "float"), ("WIDTH", width))) for width in range(40)]
    seen = []

    def noted(work, tools):
        seen.extend(work)
        return [compile_gate.Compiled({}, []) for _ in work]

    rows = [row | dict.fromkeys(compile_gate.COLUMNS[6:], "1") for unit in wanted for row in unit.rows(tools.version).values()]  # fmt: skip  # noqa: E501
    table, page = place
    rows.sort(key=compile_gate.identity)
    compile_gate.write_table(table, rows)
    compile_gate.write_text(page, compile_gate.with_section(page.read_text(), compile_gate.section(rows)))
    monkeypatch.setattr(compile_gate, "compile_all", noted)
    assert compile_gate.check(wanted, tools, *place) == []
    assert [unit for unit, _ in seen] == wanted
    assert {architecture for _, architecture in seen} == set(ARCHITECTURES)


def test_what_a_check_refuses_is_told_though_the_table_has_its_figures(tools, axpy, place, monkeypatch):
    compile_gate.gate([axpy], tools, *place)
    refused = compile_gate.Compiled({}, ["planted.cu: axpy does not compile"])
    monkeypatch.setattr(compile_gate, "compile_all", lambda work, tools: [refused])
    assert compile_gate.check([axpy], tools, *place) == [*refused.refused, compile_gate.MEND_ALL]


def test_what_a_check_has_confirmed_is_compiled_again_only_if_a_figure_of_it_changes(tools, axpy, place, monkeypatch):
    table, page = place
    wide = axpy._replace(constants=(("SCALAR", "float"), ("WIDTH", 4)))
    compile_gate.gate([axpy, wide], tools, *place)
    compiled = []
    monkeypatch.setattr(
        compile_gate, "compiled", lambda *one: compiled.append(one[0]) or SimpleNamespace(refused=[], figures={})
    )
    confirmed = table.parent / "a folder to be made" / "confirmed.txt"

    def check(anew=False):
        compiled.clear()
        assert compile_gate.check([axpy, wide], tools, *place, anew, confirmed) == []
        return set(compiled)

    assert check() == {axpy, wide}
    assert check() == set()
    assert check(anew=True) == {axpy, wide}
    rows = list(compile_gate.read_table(table).values())
    rows[1]["shared"] = "16"
    compile_gate.write_table(table, rows)
    compile_gate.write_text(page, compile_gate.with_section(page.read_text(), compile_gate.section(rows)))
    assert check() == {wide}


def test_what_a_check_refuses_is_not_confirmed(tools, axpy, place):
    compile_gate.gate([axpy], tools, *place)
    confirmed = place[0].with_name("confirmed.txt")
    rows = list(compile_gate.read_table(place[0]).values())
    rows[0]["sm_" + str(compile_gate.chosen(ARCHITECTURES, rows[0]["key"]))] = "200"
    compile_gate.write_table(place[0], rows)
    compile_gate.write_text(place[1], compile_gate.with_section(place[1].read_text(), compile_gate.section(rows)))
    for _ in range(2):
        assert compile_gate.check([axpy], tools, *place, confirmed=confirmed)[-1] == compile_gate.MEND_ALL
    assert not confirmed.exists()


# -- the command ---------------------------------------------------------------------------------------


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compile_gate.py", *arguments])
    compile_gate.main()


@pytest.fixture
def no_compiler(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)


def test_without_nvrtc_the_check_is_skipped_with_the_reason(monkeypatch, no_compiler, capsys):
    monkeypatch.delenv("CI", raising=False)
    command(monkeypatch, "--check")
    assert capsys.readouterr().out == (
        "compile gate: skipped, nvidia-cuda-nvrtc is not installed: pip install nvidia-cuda-nvrtc (on Linux)\n"
    )


@pytest.mark.parametrize(("ci", "arguments"), [("true", ["--check"]), ("", [])])
def test_without_nvrtc_ci_and_the_gate_itself_fail(monkeypatch, no_compiler, ci, arguments):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(SystemExit, match=r"^compile gate: nvidia-cuda-nvrtc is not installed: pip install"):
        command(monkeypatch, *arguments)


def test_a_stale_table_fails_with_the_command_that_mends_it(tools, monkeypatch, tmp_path, axpy, place):
    monkeypatch.setattr(compile_gate, "TABLE", place[0])
    monkeypatch.setattr(compile_gate, "PAGE", place[1])
    monkeypatch.setattr(compile_gate, "CONFIRMED", place[0].with_name("confirmed.txt"))
    monkeypatch.setattr(compile_gate, "kernel_folder", lambda: tmp_path)
    monkeypatch.setattr(compile_gate, "launched", lambda: [launch("planted.cu", "axpy", axpy.constants)])
    message = "^axpy: 1 not in the table\nto mend it: make gate\ncompile gate: failed$"
    with pytest.raises(SystemExit, match=message):
        command(monkeypatch, "--check")
    command(monkeypatch)
    command(monkeypatch, "--check")
