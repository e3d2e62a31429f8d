"""How far the products of each precision are off: the table of docs/precision.md. `python bench/precision.py`

Each sum has K terms, of two matrices of the normal distribution; the error is that of the whole result against float64,
both as vectors. TF32 and fp32 by tensor cores are the emulator's, as if it were an H100.
"""

from __future__ import annotations

import numpy as np

import gpucnn
from gpucnn.backends import Backend, get_backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.emulator import EmulatorDevice
from gpucnn.dtypes import named

DEPTHS = (27, 72, 144, 576, 1152, 4608)
ROWS, COLUMNS = 16, 24


def error(backend: Backend, depth: int, dtype: str) -> float:
    """|got - exact| / |exact| of a product of tensors of that dtype with sums of `depth` terms."""
    rng, rest = np.random.default_rng(depth), -depth % 8  # zeros behind: tensor cores take terms by eights
    a = np.pad(rng.standard_normal((ROWS, depth)), ((0, 0), (0, rest)))
    b = np.pad(rng.standard_normal((depth, COLUMNS)), ((0, rest), (0, 0)))
    got = backend.matmul(a.astype(named(dtype)), b.astype(named(dtype))).astype(np.float64)
    return float(np.linalg.norm(got - a @ b) / np.linalg.norm(a @ b))


def main() -> None:
    """Print the table."""
    tensor_cores = KernelBackend(EmulatorDevice(watch=False, capability=(9, 0)))
    numpy = get_backend("numpy")
    kinds = [
        ("NumPy float32", numpy, "float32", "fp32"),
        ("tensor cores, fp32 (three TF32 products)", tensor_cores, "float32", "fp32"),
        ("tensor cores, tf32", tensor_cores, "float32", "tf32"),
        ("NumPy, fp16", numpy, "float32", "fp16"),
        ("tensor cores, fp16", tensor_cores, "float32", "fp16"),
        ("NumPy, bf16", numpy, "float32", "bf16"),
        ("tensor cores, bf16", tensor_cores, "float32", "bf16"),
        ("NumPy, float16 tensors", numpy, "float16", "fp32"),
        ("tensor cores, float16 tensors", tensor_cores, "float16", "fp32"),
        ("NumPy, bfloat16 tensors", numpy, "bfloat16", "fp32"),
        ("tensor cores, bfloat16 tensors", tensor_cores, "bfloat16", "fp32"),
    ]
    print("| |" + "|".join(f" K = {depth} " for depth in DEPTHS) + "|")
    print("| --- |" + " --: |" * len(DEPTHS))
    for name, backend, dtype, precision in kinds:
        with gpucnn.precision(precision):
            cells = [f" {error(backend, depth, dtype):.1e} " for depth in DEPTHS]
        print(f"| {name} |" + "|".join(cells) + "|")


if __name__ == "__main__":
    main()
