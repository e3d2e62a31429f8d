"""What is measured: the sizes are those of the networks, and the work of each pass is counted right."""

import pytest

from gpucnn import nn, testing
from gpucnn.benchmark import suites
from gpucnn.benchmark.suites import NETWORKS, OPS, tasks
from gpucnn.geometry import pair


def test_the_twelve_convolutions_are_those_that_resnet50_repeats():
    made = []
    model = nn.models.resnet50(10)
    for stage, size in ((1, 56), (2, 28), (3, 14), (4, 7)):
        block = list(getattr(model, f"layer{stage}").children())[1]
        for layer in (block.conv1, block.conv2, block.conv3):
            made.append(((3, layer.weight.shape[1], size, size), layer.weight.shape, layer.padding))
    listed = []
    for op in OPS:
        if ".stage" in op.name:
            case = op.make(3)
            padding = pair(case.arguments.get("padding", 0), "padding", 0)
            listed.append((case.inputs[0].shape, case.inputs[1].shape, padding))
    assert listed == made
    assert len(set(listed)) == 12


def test_every_op_has_a_name_of_its_own_and_a_case_of_that_op():
    names = [op.name for op in OPS]
    assert len(set(names)) == len(names)
    for op in OPS:
        case = op.make(2)
        assert isinstance(case, testing.Case)
        assert case.op == op.name.partition(".")[0]
        assert case.inputs[0].shape[0] == 2


@pytest.mark.parametrize("name", ["lenet5", "cross_entropy", "linear.resnet50"])
def test_the_output_shape_is_the_cases_own(name):
    for op in OPS:
        if name in op.name:
            assert op.output_shape(3) == op.make(3).output_shape


def one(name, part, batch):
    return next(t for suite in ("ops", "networks") for t in tasks(suite, (batch,), name, (part,)))


def test_operations_are_counted_by_hand():
    # the strided 3×3 of ResNet-50: 28×28 places, 128 filters of 3·3·128
    assert one("resnet50.strided", "forward", 5).flops == 5 * 28 * 28 * 128 * 2 * 9 * 128
    assert one("resnet50.strided", "weight-gradient", 5).flops == one("resnet50.strided", "forward", 5).flops
    # LeNet-5: 28·28·6·25 + 10·10·16·150 + 400·120 + 120·84 + 84·10 multiply-adds
    forward = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    assert one("lenet5", "inference", 3).flops == 3 * 2 * forward
    first = 28 * 28 * 6 * 25
    assert one("lenet5", "training", 3).flops == 3 * 2 * (3 * forward - first)


@pytest.mark.parametrize(
    ("name", "part", "elements", "extra"),
    [
        ("lenet5.second", "forward", 2 * 6 * 14 * 14 + 16 * 6 * 25 + 16 + 2 * 16 * 10 * 10, 0),
        ("lenet5.second", "input-gradient", 2 * 16 * 10 * 10 + 16 * 6 * 25 + 2 * 6 * 14 * 14, 0),
        ("lenet5.second", "weight-gradient", 2 * 16 * 10 * 10 + 2 * 6 * 14 * 14 + 16 * 6 * 25, 0),
        ("linear.lenet5", "forward", 2 * 400 + 120 * 400 + 120 + 2 * 120, 0),
        ("max_pool2d.lenet5", "input-gradient", 2 * 6 * 14 * 14 + 2 * 6 * 28 * 28, 2 * 6 * 14 * 14),
        ("avg_pool2d.resnet50", "input-gradient", 2 * 2048 + 2 * 2048 * 49, 0),
        ("relu", "forward", 2 * 2 * 256 * 56 * 56, 0),
        ("batch_norm", "backward", 3 * 2 * 256 * 56 * 56 + 4 * 256, 0),
        ("cross_entropy", "forward", 2 * 1000 + 1, 2 * 8),
        ("cross_entropy", "input-gradient", 2 * 2 * 1000, 2 * 8),
    ],
)
def test_bytes_are_each_array_once(name, part, elements, extra):
    assert one(name, part, 2).bytes() == 4 * elements + extra
    assert one(name, part, 2).bytes("bf16") == 2 * elements + extra


def test_relus_gradient_needs_a_bit_of_each_input():
    n = 2 * 256 * 56 * 56
    assert one("relu", "input-gradient", 2).bytes() == 8 * n + n // 8


def test_filters_choose_by_part_of_the_name_wildcard_and_pass():
    assert {t.name for t in tasks("ops", None, "mobilenetv2", ("forward",))} == {
        op.name for op in OPS if "mobilenetv2" in op.name
    }
    assert [t.name for t in tasks("ops", None, "relu.*")] == ["relu.resnet50.256.56"] * 2
    assert [t.part for t in tasks("ops", None, "batch_norm")] == ["forward", "backward"]
    assert {t.batch for t in tasks("networks", (5, 7), "lenet5")} == {5, 7}
    assert tasks("ops", None, "nothing") == []


def test_networks_go_from_little_work_to_much():
    flops = [task.flops for task in tasks("networks")]
    assert flops == sorted(flops)
    assert len(flops) == len(NETWORKS) * 2 * 4


def test_the_other_suites_have_their_tasks():
    assert [t.name for t in tasks("startup")] == ["import", "first-step", "first-step-compiling"]
    assert [(t.name, t.batch) for t in tasks("memory")] == [("lenet5", 64), ("resnet20", 64)]
    assert tasks("startup")[0].flops == tasks("startup")[0].bytes() == 0
    assert str(tasks("memory")[0]) == "lenet5 training, batch 64"


def test_the_longest_sum_is_over_the_batchs_pixels_or_a_filter():
    lenet = NETWORKS[0]
    assert lenet.longest_sum(64) == 64 * 28 * 28
    assert suites.NETWORKS[2].longest_sum(1) == 112 * 112
