"""The limits: computed by hand, and read from where they are said to be."""

import pytest

from gpucnn.benchmark import roofline
from gpucnn.benchmark.roofline import CARDS, bounds, limits_of_card, limits_of_gpu, time_text
from gpucnn.benchmark.suites import tasks


def test_the_bound_of_a_convolution_is_that_of_its_operations_or_bytes_by_hand():
    # 3×3, 64 to 64 channels, 56×56, 64 images: 14.8 GFLOP; x and y 51.4 MB each, w 147 kB
    flops = 64 * 56 * 56 * 64 * 2 * 9 * 64
    moved = 4 * (2 * 64 * 64 * 56 * 56 + 64 * 64 * 9)
    [task] = tasks("ops", (64,), "resnet50.stage1.3x3", ("forward",))
    [(_, [(h200, by), (ada, by_ada)])] = bounds([task], ["H200", "RTX 4090"], "fp32")
    assert (by, by_ada) == ("compute", "compute")
    assert h200 == pytest.approx(flops / 66.9e12, rel=1e-12)
    assert ada == pytest.approx(flops / 82.6e12, rel=1e-12)
    assert moved / 1.008e12 < ada
    [(_, [(seconds, by)])] = bounds([task], ["H200"], "bf16")
    assert (by, seconds) == ("compute", pytest.approx(flops / 989.4e12, rel=1e-12))
    assert moved / 2 / 4.8e12 < seconds
    [task] = tasks("ops", (64,), "resnet50.stage1.1x1.64-256", ("forward",))  # 6.6 GFLOP; y alone is 206 MB
    moved = 4 * (64 * (64 + 256) * 56 * 56 + 64 * 256)
    [(_, [(seconds, by)])] = bounds([task], ["RTX 4090"], "fp32")
    assert (by, seconds) == ("memory", pytest.approx(moved / 1.008e12, rel=1e-12))


def test_relu_is_bound_by_memory_on_every_card():
    [task] = tasks("ops", (8,), "relu", ("forward",))
    [(_, found)] = bounds([task], CARDS, "fp32")
    assert [by for _, by in found] == ["memory"] * len(CARDS)
    for (seconds, _), card in zip(found, CARDS.values(), strict=True):
        assert seconds == pytest.approx(2 * 4 * 8 * 256 * 56 * 56 / (card.memory * 1e12))


def test_a_card_is_found_by_name_and_by_what_the_driver_calls_it():
    assert limits_of_card("rtx-4090", "tf32").flops == 82.6e12
    found = limits_of_gpu("NVIDIA H200, 565.57.01, 1980 MHz", "tf32")
    assert found is not None
    assert (found.name, found.flops, found.bytes) == ("H200", 494.7e12, 4.8e12)
    assert limits_of_gpu("NVIDIA GeForce RTX 4090, 550", "fp32") == limits_of_card("RTX 4090", "fp32")
    assert limits_of_gpu("Tesla T4, 535", "fp32") is None
    with pytest.raises(ValueError, match="--card 'Voodoo' is not known; the cards are H200, H100, A100, RTX 4090"):
        limits_of_card("Voodoo", "fp32")


def test_every_card_says_where_its_figures_are_from_and_has_every_precision():
    for card in CARDS.values():
        assert "NVIDIA" in card.source
        assert set(card.peaks) == {"fp32", "tf32", "bf16", "fp16"}
        assert card.peaks["fp32"] <= card.peaks["tf32"] <= card.peaks["bf16"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.234, "1.23 s"), (0.0123, "12.3 ms"), (123.4e-6, "123 µs"), (5e-9, "5 ns"), (0.99996, "1 s"),
        (3661, "3,661 s"), (float("nan"), "–"),
    ],
)  # fmt: skip
def test_times_have_three_digits_and_a_unit(seconds, text):
    assert time_text(seconds) == text


def test_the_instruction_mix_is_each_kernels_best_float_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "checkout", lambda: tmp_path)
    assert roofline.instruction_mix() == []
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "compile_gate.csv").write_text(
        "kernel,scalar,loop_instructions,loop_fma,loop_tensor\n"
        "conv2d_forward,float,100,40,0\nconv2d_forward,float,200,150,0\nconv2d_forward,double,300,290,0\n"
        "conv2d_mma,float,243,0,64\nrelu,float,,,\n"
    )
    assert roofline.instruction_mix() == [("conv2d_forward", 200, 0.75), ("conv2d_mma", 243, 64 / 243)]
