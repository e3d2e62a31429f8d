"""CudaDevice: compiles the kernels at run time with NVRTC and launches them, through CuPy."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from gpucnn.devices.base import Constants, Device, Dim, KernelError, Signature, kernel_folder


class CudaDevice(Device):
    """The current CUDA device and stream of CuPy; arrays are cupy.ndarray, memory comes from CuPy's pool.

    Raises RuntimeError, with what to install, if CuPy or a GPU is missing.
    """

    name = "cuda"

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            raise RuntimeError(
                f'the cuda backend needs CuPy ({error}): pip install "gpucnn[cuda12]" for a driver of CUDA 12, '
                '"gpucnn[cuda13]" for CUDA 13 (nvidia-smi shows which)'
            ) from error
        try:
            devices = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise RuntimeError(f"the cuda backend finds no GPU: {error}; nvidia-smi must show one") from error
        if not devices:
            raise RuntimeError("the cuda backend finds no GPU: nvidia-smi must show one")
        self.xp = cupy
        folder = kernel_folder()
        # CuPy's cache of compiled kernels does not look into the headers that a kernel includes: their content is made
        # part of the options, which it does look at.
        content = b"".join(path.read_bytes() for path in sorted(folder.glob("*.cuh")))
        # -fmad=false: only what is written multiply_add is fused, so the bits are the emulator's.
        self._options = (
            "-std=c++17",
            "-fmad=false",
            f"-I{folder}",
            f"-DHEADERS={hashlib.sha256(content).hexdigest()[:16]}",
        )
        self._functions: dict[tuple[Any, ...], Any] = {}

    def synchronize(self) -> None:
        """Wait for the current stream."""
        self.xp.cuda.get_current_stream().synchronize()

    def to_numpy(self, array: Any) -> np.ndarray[Any, Any]:
        return np.asarray(self.xp.asnumpy(array))

    def launch(self, file: str, name: str, constants: Constants, grid: Dim, block: Dim, *arguments: Any) -> None:
        signature = Signature.of(kernel_folder() / file, name)
        types = signature.check(arguments, constants, self.xp)
        values = tuple(
            dtype.type(a) if p.extent is None else np.uintp(0) if a is None else self._table(a) if p.table else a
            for p, a, dtype in zip(signature.parameters, arguments, types, strict=True)
        )
        self._function(file, name, constants)(grid, block, values)

    def _table(self, arrays: list[Any]) -> Any:
        """The arrays' addresses, on the device."""
        return self.xp.asarray(np.array([array.data.ptr for array in arrays], np.uint64))

    def _function(self, file: str, name: str, constants: Constants) -> Any:
        key = (file, name, *sorted(constants.items()))
        if key not in self._functions:
            options = (*self._options, *(f"-D{k}={v}" for k, v in sorted(constants.items())))
            code = (kernel_folder() / file).read_text("utf-8")
            try:
                module = self.xp.RawModule(code=code, options=options, backend="nvrtc")
                self._functions[key] = module.get_function(name)
            except self.xp.cuda.compiler.CompileException as error:
                raise KernelError(f"NVRTC refused {file} for {name} with {dict(constants)}:\n{error}") from error
        return self._functions[key]
