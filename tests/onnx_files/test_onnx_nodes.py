"""The cases that package onnx makes for each operator: all whose operators are in the table here."""

import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx_graphs import by_gpucnn, written

import gpucnn
from gpucnn.onnx.operators import OPERATORS
from gpucnn.onnx.read import OPSETS

# Why a case is not computed: the error it must end with, and the cases, whole names or their beginnings.
REFUSED = {
    "elements of type (FLOAT16|BFLOAT16|FLOAT8|FLOAT4|U?INT[24]|STRING)": [
        "cast_.*(FLOAT16|FLOAT8|FLOAT4|INT4|INT2).*", "castlike_.*(FLOAT16|FLOAT8|FLOAT4|INT4|INT2).*",
        "(celu|swiglu|flexattention).*(float16|bfloat16|fp16).*", "(max|min|isinf|isnan)_float16", "equal_string.*",
    ],
    "only tensors are supported": ["identity_(sequence|opt)"],
    "its opset is 1": ["not_.d"],
    "training mode is fixed in the file": ["training_dropout.*"],
    "it is in training mode": ["batchnorm_.*_training_mode"],
    "averages with a dilation": ["averagepool_2d_dilations.*"],
    "only one or two spatial axes": ["(average|max)pool_3d_.*"],
    r"\[N, C, H, W\], got shape|is no filter": ["convtranspose_3d"],
    "select_last_index": ["argmax_.*_select_last_index"],
    "'(cubic|wrap|tf_crop_and_resize|not_larger|not_smaller)' is not supported|antialias": [
        "resize_.*(cubic|tf_crop|not_larger|not_smaller|antialias).*", "wrap_pad",
    ],
    "linear resizing with half_pixel_symmetric": ["resize_.*_linear_half_pixel_symmetric"],
    "align_corners by 0.6 makes .* give sizes instead": ["resize_downsample_scales_linear_align_corners"],
    "must be float32 or float64, got": [  # poolings, clamps and padding are of floating numbers only
        "clip_default_int8_(min|max)", "maxpool_2d_uint8", "(edge|reflect)_pad",
    ],
    "are empty": ["reduce_(max|min)_empty_set(_bool)?"],
}  # fmt: skip

FIRST_OUTPUT = {"BatchNormalization", "Dropout", "LayerNormalization", "MaxPool"}  # the others are not computed here


@cache
def cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        every = collect_testcases(None)
    known = [case for case in every if {node.op_type for node in case.model.graph.node} <= set(OPERATORS)]
    wanted = [case for case in known if case.model.opset_import[0].version <= OPSETS[-1]]
    for case in wanted:
        if case.model.graph.node[0].op_type in FIRST_OUTPUT:
            del case.model.graph.output[1:]
    return {case.name.removeprefix("test_"): case for case in wanted}


def refusal(name: str) -> str | None:
    return next((why for why, names in REFUSED.items() if any(re.fullmatch(n, name) for n in names)), None)


def array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


OPS = sorted(OPERATORS)


@pytest.mark.parametrize("op", OPS)
def test_cases_of_package_onnx_are_computed_or_refused_for_a_reason(op: str, tmp_path: Path, backend: str) -> None:
    """Each under its first operator. Bounds are the package's own."""
    seen = 0
    for name, case in cases().items():
        if case.model.graph.node[0].op_type != op:
            continue
        seen += 1
        path, why = written(case.model, tmp_path), refusal(name)
        if why is not None:
            with pytest.raises((ValueError, TypeError), match=why):
                by_gpucnn(gpucnn.onnx.load(path), *map(array, case.data_sets[0][0]), backend=backend)
            continue
        for inputs, outputs in case.data_sets:
            made = by_gpucnn(gpucnn.onnx.load(path), *map(array, inputs), backend=backend)
            for result, expected in zip(made, map(array, outputs[: len(made)]), strict=True):
                assert (name, result.dtype, result.shape) == (name, expected.dtype, expected.shape)
                np.testing.assert_allclose(result, expected, case.rtol, case.atol, err_msg=name)
    assert seen or op in NO_CASE


NO_CASE = {"Not"}  # the package's are of opset 1; test_onnx_load has one


def test_most_cases_are_computed() -> None:
    refused = [name for name in cases() if refusal(name)]
    assert len(cases()) - len(refused) >= 500
