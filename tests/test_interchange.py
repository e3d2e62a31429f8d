"""Memory that tensors share with NumPy, PyTorch, JAX and CuPy: what one side writes, the other reads.

Without a GPU, what the host does with memory of one is tried with a stand-in for CuPy, and objects that say they are on
a GPU.
"""

import pickle
import subprocess
import sys
from types import ModuleType
from typing import Any

import fake_cupy
import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, backends, nn
from gpucnn.backends import Backend
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.devices.cuda import CudaDevice

DTYPES = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
SHAPES = [(), (0,), (7,), (2, 0, 3), (3, 5), (2, 3, 4, 5), (2, 3, 1, 5, 2)]
HOST = ["numpy", *(["emulator"] if "emulator" in gpucnn.available_backends() else [])]


def counted(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


@pytest.fixture(params=HOST, autouse=True)
def host(request: pytest.FixtureRequest) -> Any:
    """Every backend whose arrays are on the host shares memory alike."""
    with gpucnn.use_backend(request.param) as backend:
        yield backend


@pytest.fixture
def jax() -> ModuleType:
    module: ModuleType = pytest.importorskip("jax.numpy", reason="JAX is not installed: nothing to share with")
    return module


# -- NumPy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tensor_and_numpys_view_of_it_are_one_memory(shape: tuple[int, ...], dtype: str) -> None:
    x = gpucnn.tensor(counted(shape, dtype))
    for view in (np.asarray(x), np.from_dlpack(x)):
        assert (view.shape, view.dtype, view.strides) == (x.shape, x.dtype, x.array.strides)
        np.testing.assert_array_equal(view, counted(shape, dtype))
        if view.size:
            view[...] = 1
            assert x.numpy().all()
            x[...] = 0
            assert not view.any()
        x.copy_(counted(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_array_and_the_tensor_from_it_are_one_memory(shape: tuple[int, ...], dtype: str, host: Backend) -> None:
    for take in (gpucnn.from_numpy, gpucnn.from_dlpack, gpucnn.as_tensor):
        array = counted(shape, dtype)
        x = take(array)
        assert (x.shape, x.dtype, x.array.strides) == (shape, array.dtype, array.strides)
        assert x.backend is host
        if array.size:
            array[...] = 1
            assert x.numpy().all()
            x[...] = 0
            assert not array.any()


def test_images_stay_channels_last_on_the_way_out_and_back() -> None:
    x = gpucnn.rand(2, 3, 4, 5)
    view = np.from_dlpack(x)
    assert view.transpose(0, 2, 3, 1).flags.c_contiguous
    back = gpucnn.from_dlpack(view)
    assert back.array.strides == x.array.strides
    assert np.shares_memory(back.array, x.array)


def test_an_op_takes_shared_memory_of_any_layout() -> None:
    """[N, C, H, W] with C slowest, transposed, cut and backwards: where the array lies decides nothing."""
    layer = nn.Conv2d(3, 4, (3, 2))
    images = np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)
    wanted = layer(gpucnn.tensor(images)).numpy()
    wide = np.zeros((2, 3, 12, 5), np.float32)
    wide[:, :, ::2] = images
    for array in (images, np.asfortranarray(images), wide[:, :, ::2], images[:, :, ::-1].copy()[:, :, ::-1]):
        x = gpucnn.from_numpy(array)
        assert np.shares_memory(x.array, array)
        np.testing.assert_array_equal(layer(x).numpy(), wanted)


def test_numpy_asks_for_another_dtype_or_a_copy() -> None:
    x = gpucnn.tensor(counted((3, 5)))
    assert np.asarray(x, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(x), x.array)
    assert np.shares_memory(np.array(x, copy=False), x.array)
    assert not np.shares_memory(np.from_dlpack(x, copy=True), x.array)
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        np.array(x, np.float64, copy=False)


def test_what_would_lose_a_gradient_is_refused_and_detach_mends_it() -> None:
    x = gpucnn.ones(3, requires_grad=True)
    for tensor in (x, x * 2):
        with pytest.raises(RuntimeError, match=r"requires a gradient does not become an array.*use tensor\.detach\(\)"):
            np.asarray(tensor)
        with pytest.raises(BufferError, match=r"requires a gradient can't be exported; use tensor\.detach\(\)"):
            np.from_dlpack(tensor)
        assert np.from_dlpack(tensor.detach()).shape == np.asarray(tensor.detach()).shape == (3,)


def test_memory_that_runs_backwards_is_taken_and_not_given() -> None:
    x = gpucnn.from_numpy(counted((6,))[::-1])
    assert x.tolist() == [5, 4, 3, 2, 1, 0]
    with pytest.raises(BufferError, match=r"strides \(-4,\) run backwards.*use tensor\.clone\(\)"):
        np.from_dlpack(x)
    assert np.from_dlpack(x.clone()).tolist() == x.tolist()


def test_memory_that_is_lent_to_be_read_is_read_and_not_written() -> None:
    array = counted((2, 3))
    array.flags.writeable = False
    for x in (gpucnn.from_numpy(array), gpucnn.from_dlpack(array)):
        assert (x + 1).tolist() == [[1, 2, 3], [4, 5, 6]]
        assert not np.from_dlpack(x).flags.writeable
        for write in (lambda x=x: x.__setitem__(0, 7), lambda x=x: x.copy_(np.ones((2, 3)))):
            with pytest.raises(ValueError, match=r"read-only array; change a clone\(\) of it"):
                write()
        x.clone()[0] = 7
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_bfloat16_becomes_numpys_by_its_own_type_and_does_not_leave_by_dlpack() -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: there is no bfloat16")
    x = gpucnn.tensor([1.5, 2.0]).bfloat16()
    view = np.asarray(x)
    assert view.dtype.name == "bfloat16"
    x[0] = 3.0
    assert view.astype(np.float32).tolist() == [3, 2]
    assert gpucnn.from_numpy(view).dtype == x.dtype
    with pytest.raises(BufferError, match=r"can't be exported as bfloat16; use tensor\.float\(\)"):
        np.from_dlpack(x)


@pytest.mark.parametrize(
    ("take", "data", "error", "message"),
    [
        (gpucnn.from_numpy, [1.0], TypeError, r"expected a numpy\.ndarray, got list; as_tensor\(\)"),
        (gpucnn.from_numpy, np.zeros(2, np.complex64), TypeError, "can't hold complex64; convert it to float16"),
        (gpucnn.from_numpy, np.array(["a"]), TypeError, "can't hold <U1"),
        (gpucnn.from_numpy, np.zeros(2, ">i4"), TypeError, "can't hold >i4"),
        (gpucnn.from_numpy, np.zeros(2, ">f4"), TypeError, "can't hold >f4"),
        (gpucnn.from_dlpack, np.zeros(2, np.complex64), TypeError, "can't hold complex64"),
        (gpucnn.from_dlpack, [1.0], TypeError, r"list has no __dlpack__ and __dlpack_device__; gpucnn\.as_tensor\(\)"),
        (gpucnn.from_dlpack, np.array(["a"]), BufferError, "this ndarray of <U1 can't be shared with (numpy|emulator)"),
    ],
)
def test_what_can_not_be_shared_is_said(take: Any, data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        take(data)


# -- as_tensor -------------------------------------------------------------------------------------


def test_as_tensor_gives_a_tensor_back_with_its_history() -> None:
    x = gpucnn.ones(2, requires_grad=True)
    y = x * 3
    assert gpucnn.as_tensor(x) is x
    assert gpucnn.as_tensor(y, "float32") is y
    gpucnn.as_tensor(y, "float64").sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 3]


def test_as_tensor_copies_only_for_another_dtype_and_for_lists() -> None:
    array = counted((2, 3))
    assert np.shares_memory(gpucnn.as_tensor(array, "float32").array, array)
    converted = gpucnn.as_tensor(array, "float64")
    assert (converted.dtype, np.shares_memory(converted.array, array)) == (np.float64, False)
    assert gpucnn.as_tensor([1.0, 2]).dtype == np.float32
    assert gpucnn.as_tensor(3).dtype == np.int64
    assert gpucnn.as_tensor([1, 2], np.float64).dtype == np.float64
    assert gpucnn.as_tensor(np.float64(3)).dtype == np.float64


def test_as_tensor_moves_to_the_backend_that_is_named() -> None:
    other = gpucnn.get_backend(HOST[-1])
    for data in (counted((2, 3)), gpucnn.tensor(counted((2, 3)), backend="numpy"), [[0.0, 1, 2], [3, 4, 5]]):
        moved = gpucnn.as_tensor(data, backend=other)
        assert moved.backend is other
        assert moved.tolist() == [[0, 1, 2], [3, 4, 5]]


# -- PyTorch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pytorch_shares_the_memory_both_ways(torch: ModuleType, shape: tuple[int, ...], dtype: str) -> None:
    x = gpucnn.tensor(counted(shape, dtype))
    theirs = torch.from_dlpack(x)
    assert (tuple(theirs.shape), str(theirs.dtype)) == (shape, f"torch.{dtype}")
    ours = gpucnn.from_dlpack(theirs)
    np.testing.assert_array_equal(ours.numpy(), counted(shape, dtype))
    if x.numel():
        assert theirs.data_ptr() == x.array.ctypes.data == ours.array.ctypes.data
        theirs.fill_(1)
        assert x.numpy().all()
        ours[...] = 0
        assert not bool(theirs.any())


def test_pytorch_sees_images_as_channels_last_and_ours_keep_its_layout(torch: ModuleType) -> None:
    assert torch.from_dlpack(gpucnn.rand(2, 3, 4, 5)).is_contiguous(memory_format=torch.channels_last)
    rows = torch.rand(2, 3, 4, 5)
    assert gpucnn.from_dlpack(rows).array.flags.c_contiguous
    assert gpucnn.as_tensor(rows).array.ctypes.data == rows.data_ptr()


def test_pytorchs_refusals_come_through(torch: ModuleType) -> None:
    with pytest.raises(BufferError, match=r"this Tensor of torch\.float32 can't be shared.*use tensor\.detach\(\)"):
        gpucnn.from_dlpack(torch.ones(2, requires_grad=True))
    with pytest.raises(BufferError, match=r"this Tensor of torch\.bfloat16 can't be shared with (numpy|emulator)"):
        gpucnn.from_dlpack(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(BufferError, match=r"use tensor\.detach\(\)"):
        torch.from_dlpack(gpucnn.ones(2, requires_grad=True))


def test_pytorch_is_refused_the_same_tensors_by_numpy(torch: ModuleType) -> None:
    """The rules are PyTorch's own: it refuses with the same errors."""
    for tensor in (torch.ones(2, requires_grad=True), gpucnn.ones(2, requires_grad=True)):
        with pytest.raises(RuntimeError, match="grad"):
            np.asarray(tensor)
        with pytest.raises(BufferError, match="gradient"):
            tensor.__dlpack__()
        assert not hasattr(tensor, "__cuda_array_interface__")


# -- JAX -------------------------------------------------------------------------------------------


def test_jax_reads_our_memory_and_its_own_is_read_only_here(jax: ModuleType) -> None:
    memory = np.zeros(64 + 4 * 15, np.uint8)
    start = -memory.ctypes.data % 64  # JAX copies what does not begin at a multiple of 64 bytes
    x = gpucnn.from_numpy(memory[start : start + 60].view(np.float32).reshape(3, 5))
    theirs = jax.from_dlpack(x)
    assert theirs.unsafe_buffer_pointer() == x.array.ctypes.data
    x.copy_(counted((3, 5)))
    np.testing.assert_array_equal(theirs, counted((3, 5)))
    ours = gpucnn.from_dlpack(theirs)
    assert np.shares_memory(ours.array, x.array)
    with pytest.raises(ValueError, match="read-only"):
        ours[0] = 7
    assert (gpucnn.as_tensor(jax.ones((2, 3))) + 1).tolist() == [[2, 2, 2]] * 2


# -- a GPU -----------------------------------------------------------------------------------------


class OnGpu:
    """An array that says it is in the memory of CUDA GPU 1, and notes what it is asked for."""

    def __init__(self, array: np.ndarray, kind: int = 2) -> None:
        self.array, self.kind = array, kind
        self.asked: dict[str, Any] = {}
        self.shape, self.dtype, self.strides = array.shape, array.dtype, array.strides

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 1

    def __dlpack__(self, **asked: Any) -> Any:
        self.asked = asked
        return self.array.__dlpack__(max_version=asked.get("max_version"))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": "<f4", "data": (self.array.ctypes.data, False), "version": 3}


class ForNumba:
    """An array of a library that speaks __cuda_array_interface__ alone (and, for the stand-in of CuPy, __array__)."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.__cuda_array_interface__ = {"shape": array.shape, "typestr": array.dtype.str, "version": 3}

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Backend:
    fake_cupy.install(monkeypatch)
    monkeypatch.setitem(backends._made, "cuda", KernelBackend(CudaDevice()))
    return gpucnn.get_backend("cuda")


@pytest.mark.parametrize("kind", [2, 13])
def test_memory_of_a_gpu_is_shared_on_the_cuda_backend(cuda: Backend, kind: int) -> None:
    array = counted((2, 3))
    for take in (gpucnn.from_dlpack, gpucnn.as_tensor):
        x = take(OnGpu(array, kind))
        assert x.backend is cuda
        assert np.shares_memory(x.array, array)
    x = gpucnn.as_tensor(ForNumba(array))
    assert x.backend is cuda
    assert np.shares_memory(x.array, array)
    assert gpucnn.as_tensor(OnGpu(array), backend="numpy").backend.name == "numpy"


def test_an_array_of_the_host_goes_to_the_gpu_that_is_the_default_only_where_it_may_be_copied(
    cuda: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.xp, "ndarray", OnGpu)  # the stand-in's own are NumPy's
    with gpucnn.use_backend(cuda):
        assert gpucnn.as_tensor(counted((2, 3))).backend is cuda
        for take in (gpucnn.from_numpy, gpucnn.from_dlpack):
            assert take(counted((2, 3))).backend.name == "numpy"


def test_pinned_memory_is_the_hosts(host: Backend) -> None:
    assert gpucnn.from_dlpack(OnGpu(counted((2, 3)), kind=3)).backend is host


def test_memory_of_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"OnGpu is on a device that no backend computes on \(number 8 of DLPack\)"):
        gpucnn.from_dlpack(OnGpu(counted((2, 3)), kind=8))


def test_a_tensor_of_a_gpu_hands_the_consumers_wishes_to_its_array(cuda: Backend) -> None:
    array = OnGpu(counted((2, 3)))
    x = Tensor(array, cuda)
    assert x.__dlpack_device__() == (2, 1)
    assert x.__cuda_array_interface__ == array.__cuda_array_interface__
    x.__dlpack__(stream=1, max_version=(1, 0))
    assert array.asked == {"stream": 1, "max_version": (1, 0)}
    x.__dlpack__(stream=-1, dl_device=(2, 1), copy=False)
    assert array.asked == {"stream": -1, "dl_device": (2, 1), "copy": False}


def test_a_tensor_of_a_gpu_does_not_become_numpys_by_itself(cuda: Backend) -> None:
    x = Tensor(OnGpu(counted((2, 3))), cuda)
    with pytest.raises(TypeError, match=r"on cuda does not become a numpy array by itself.*tensor\.numpy\(\)"):
        np.asarray(x)
    x.requires_grad = True
    with pytest.raises(RuntimeError, match=r"use tensor\.detach\(\)"):
        _ = x.__cuda_array_interface__


def test_a_tensor_of_the_host_has_no_cuda_array_interface() -> None:
    x = gpucnn.ones(3)
    assert x.__dlpack_device__() == (1, 0)
    assert not hasattr(x, "__cuda_array_interface__")
    with pytest.raises(AttributeError, match=r"in the host's memory; use tensor\.to\('cuda'\)"):
        _ = x.__cuda_array_interface__


# -- pickle ----------------------------------------------------------------------------------------


def test_a_network_goes_through_pickle_with_its_layout_sharing_and_backend(host: Backend) -> None:
    layer = nn.Conv2d(3, 4, (3, 2))
    model = nn.Sequential(layer, nn.BatchNorm2d(4), layer.requires_grad_(False))
    again = pickle.loads(pickle.dumps(model))
    for one, other in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1].numpy(), other[1].numpy())
        assert other[1].array.strides == one[1].array.strides
        assert other[1].backend is host
    assert again[0] is again[2]
    assert [p.requires_grad for p in again.parameters()] == [False, False, True, True]
    assert isinstance(again[0].weight, nn.Parameter)
    x = gpucnn.rand(2, 3, 6, 5)
    np.testing.assert_array_equal(again[:2].eval()(x).numpy(), model[:2].eval()(x).numpy())
    with pytest.raises(RuntimeError, match=r"only a leaf can be pickled; use detach\(\) first"):
        pickle.dumps(gpucnn.ones(2, requires_grad=True) * 2)


def test_another_process_reads_the_pickle() -> None:
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer))"
    x = gpucnn.tensor(counted((2, 3)), backend="numpy")
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(x), capture_output=True, check=True)
    assert done.stdout.decode().strip() == repr(x)
