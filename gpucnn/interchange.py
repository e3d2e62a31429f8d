"""Arrays of other libraries as tensors, without a copy.

A tensor made here and the array it was made of are one memory: what is written to one is seen in the other. The way
back is by the protocols of `Tensor`: numpy.asarray(tensor), and from_dlpack of NumPy, CuPy, PyTorch and JAX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.backends import Array, Backend, get_backend
from gpucnn.dtypes import named
from gpucnn.tensor import Tensor, checked_dtype, tensor

# DLPack's numbers for memory (dlpack.h): of the host, ordinary and pinned; of a CUDA GPU, ordinary and managed.
_HOST, _GPU = (1, 3), (2, 13)


def _on_host() -> Backend:
    """The default backend if its arrays are NumPy's, else the NumPy backend."""
    default = get_backend()
    return default if issubclass(default.xp.ndarray, np.ndarray) else get_backend("numpy")


def _sharing(array: Array, backend: Backend) -> Tensor:
    """The tensor of that memory."""
    size = checked_dtype(array.dtype).itemsize
    shared = backend.xp.asarray(array)
    if backend.name != "numpy" and shared.size:
        from gpucnn.backends.kernel_backend import KernelBackend  # NumPy does without

        assert isinstance(backend, KernelBackend)
        if backend.device.address(shared) % size or any(stride % size for stride in shared.strides):
            raise ValueError(
                f"this memory of {array.dtype} does not begin at a multiple of {size} bytes, so no kernel can read it; "
                "share a copy"
            )
    return Tensor(shared, backend)


def from_numpy(ndarray: np.ndarray[Any, Any]) -> Tensor:
    """A tensor that shares the memory of a numpy.ndarray of any strides: torch.from_numpy.

    It is on the default backend if that computes on the host, else on "numpy". Of a read-only array comes a tensor that
    can't be written to. Raises TypeError for what is no array, and for element types that a tensor can't hold.
    """
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(
            f"from_numpy: expected a numpy.ndarray, got {type(ndarray).__name__}; as_tensor() takes other data too"
        )
    return _sharing(ndarray, _on_host())


def from_dlpack(ext_tensor: Any) -> Tensor:
    """A tensor that shares the memory of another library's array (CuPy, PyTorch, JAX, NumPy): torch.from_dlpack.

    Memory of the host comes to the default backend if that computes there, else to "numpy"; memory of a CUDA GPU to
    "cuda". Shape and strides stay as they are. What the other library calls read-only (JAX does) can't be written to.

    Raises TypeError for what does not speak DLPack and for element types that a tensor can't hold, ValueError for
    memory of another device, BufferError if it can't be shared, such as that of a tensor which requires a gradient.
    """
    if not hasattr(ext_tensor, "__dlpack__") or not hasattr(ext_tensor, "__dlpack_device__"):
        raise TypeError(
            f"from_dlpack: {type(ext_tensor).__name__} has no __dlpack__ and __dlpack_device__; "
            "gpucnn.as_tensor() takes other data too"
        )
    kind = int(ext_tensor.__dlpack_device__()[0])
    if kind not in (*_HOST, *_GPU):
        raise ValueError(
            f"from_dlpack: this {type(ext_tensor).__name__} is on a device that no backend computes on (number "
            f"{kind} of DLPack); move it to the CPU or to a CUDA GPU first"
        )
    backend = _on_host() if kind in _HOST else get_backend("cuda")
    try:
        array = backend.xp.from_dlpack(ext_tensor)
    except (BufferError, RuntimeError) as error:
        kind_of = f"{type(ext_tensor).__name__} of {getattr(ext_tensor, 'dtype', 'unknown dtype')}"
        raise BufferError(f"from_dlpack: this {kind_of} can't be shared with {backend.name}: {error}") from error
    return _sharing(array, backend)


def as_tensor(data: Any, dtype: Any = None, *, backend: str | Backend | None = None) -> Tensor:
    """`data` as a tensor, with a copy only where the dtype or the backend asks for one: torch.as_tensor.

    A tensor is returned itself, or what `Tensor.to` makes of it, with its history. A numpy.ndarray is shared as by
    `from_numpy`, another library's array as by `from_dlpack` or __cuda_array_interface__; numbers and lists are copied
    as by `tensor`. backend: None leaves a tensor and another library's array where it is; all else goes to the default.
    """
    if isinstance(data, Tensor):
        made = data
    elif isinstance(data, np.ndarray):
        made, backend = from_numpy(data), get_backend(backend)
    elif hasattr(data, "__dlpack__"):
        made = from_dlpack(data)
    elif hasattr(data, "__cuda_array_interface__"):
        cuda = get_backend("cuda")
        made = _sharing(cuda.xp.asarray(data), cuda)
    else:
        return tensor(data, dtype, backend=backend)
    made = made if backend is None else made.to(get_backend(backend))
    return made if dtype is None else made.to(named(dtype))
