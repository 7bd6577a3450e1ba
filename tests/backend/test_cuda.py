"""How kernels are found, read and launched, and what is said when that fails."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from gpucoron.backend import cuda
from gpucoron.errors import DeviceError, DeviceMemoryError, InputError
from tests.helpers import device_fixture, nvrtc


@pytest.mark.skipif("GPUCORON_CI" not in os.environ, reason="only .ci/run needs every layer")
def test_no_layer_of_kernel_tests_is_missing():
    assert device_fixture.why_no_emulation() == ""
    assert nvrtc.find()


def test_files_are_pasted_once_each_and_lines_keep_their_numbers(tmp_path):
    (tmp_path / "low.cuh").write_text("#pragma once\nlow\n")
    (tmp_path / "high.cuh").write_text('#pragma once\n#include "low.cuh"\nhigh\n')
    (tmp_path / "a.cu").write_text('#include "high.cuh"\n  # include "low.cuh"\n#include <x>\na\n')
    assert cuda.paste_includes(tmp_path / "a.cu").splitlines() == [
        *('#line 1 "a.cu"', '#line 1 "high.cuh"', "", '#line 1 "low.cuh"', "", "low"),
        *('#line 3 "high.cuh"', "high", '#line 2 "a.cu"', '#line 3 "a.cu"', "#include <x>", "a"),
    ]


TWICE = """
// instantiate: twice<float>
template <class T> __global__ void twice(T *x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= T(2);
}
__global__ void plain(int *x) { x[0] = 1; }
//instantiate:  twice< double >
// instantiate: plain
"""


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A folder with one file in place of kernels/."""
    (tmp_path / "twice.cu").write_text(TWICE)
    monkeypatch.setattr(cuda, "_folder", lambda: tmp_path)
    for cached in (cuda.read_kernels, cuda._kernel):
        cached.cache_clear()
    yield tmp_path
    for cached in (cuda.read_kernels, cuda._kernel):
        cached.cache_clear()


def test_a_kernel_is_launched_by_the_name_that_its_file_declares(kernels, device):
    assert [path.name for path in cuda.kernel_files()] == ["twice.cu"]
    assert cuda.read_kernels("twice").names == ("twice<float>", "twice< double >", "plain")
    if not device.is_gpu:
        return
    x = device.array(np.arange(5, dtype=np.float32))
    launch = cuda.kernel("twice", "twice<float>")
    launch((1,), (32,), (x, np.int32(4)))
    assert device.get(x).tolist() == [0, 2, 4, 6, 4]
    assert cuda.kernel("twice", "twice<float>") is launch
    with pytest.raises(ValueError, match=r"twice.cu does not declare 'twice<int>'; it declares "):
        cuda.kernel("twice", "twice<int>")
    one = device.array(np.zeros(1, np.int32))
    cuda.kernel("twice", "plain")((1,), (1,), (one,), shared_mem=64 * 1024)  # beyond 48 KiB
    assert device.get(one).tolist() == [1]
    for threads, shared_mem in ((1, 2**30), (4096, 0)):
        with pytest.raises(DeviceError, match=r"^twice.cu, plain: [^\n]*$"):
            cuda.kernel("twice", "plain")((1,), (threads,), (one,), shared_mem=shared_mem)


def test_kernels_are_found_and_one_module_imports_cupy():
    names = [path.name for path in cuda.kernel_files()]
    assert "median.cu" in names and names == sorted(names)
    package = Path(cuda.__file__).parent
    importing = {
        path.name
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) cupyx?\b", path.read_text(), re.M)
    }
    assert importing == {"device.py"}


def test_host_arrays_pass_untouched_and_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    host = np.zeros(3)
    assert cuda.as_device_arrays(host, None, [1])[0] is host
    assert cuda.array_namespace(host, None) is np
    assert cuda.array_namespace() is np


class ByDlpack:
    """One that speaks DLPack only."""

    def __init__(self, array):
        self.__dlpack_device__, self.__dlpack__ = array.__dlpack_device__, array.__dlpack__


@pytest.mark.parametrize("foreign", [device_fixture.Foreign, ByDlpack])
def test_device_arrays_are_shared_not_copied(device, foreign):
    if not device.is_gpu:
        return
    mine = device.array(np.arange(6.0).reshape(2, 3))
    taken, none, same = cuda.as_device_arrays(foreign(mine), None, mine)
    assert none is None and same is mine
    assert isinstance(taken, device.cupy.ndarray) and taken.shape == (2, 3)
    assert taken.data.ptr == mine.data.ptr
    assert cuda.array_namespace(taken, foreign(mine)) is device.cupy
    with pytest.raises(TypeError, match="mixed"):
        cuda.array_namespace(mine, np.zeros(2))


def test_an_array_on_another_device_is_refused(device):
    if not device.is_gpu:
        return
    device.have(2)
    mine = device.array(np.zeros(3))
    text = r"device 0, but the current device is 1; .*Device\(0\)"
    with device.cupy.cuda.Device(1), pytest.raises(InputError, match=text):
        cuda.as_device_arrays(mine)


# ---------------------------------------------------------------- errors
def fail_with(text, module, name="Failure", base=Exception):
    raise type(name, (base,), {"__module__": module})(text)


BACKENDS, FULL = "cupy_backends.cuda.", "the GPU's memory is full"
LOADING = "CuPy failed to load libcuda.so.1: OSError: libcuda.so.1"
COMPILING = 'a.cu(1): warning: x\na.cu(3): error: identifier "y" is undefined\n  x = y;\n1 error'


@pytest.mark.parametrize(
    "error, text, line",
    [
        ("api.runtime.CUDARuntimeError", "cudaErrorIllegalAddress: an", "{text}"),
        ("api.runtime.CUDARuntimeError", "cudaErrorMemoryAllocation: out", f"{FULL} ({{text}})"),
        ("cupy.cuda.memory.OutOfMemoryError", "Out of memory allocating 8", f"{FULL} ({{text}})"),
        ("libs.cusolver.CUSOLVERError", "CUSOLVER_STATUS_ALLOC_FAILED", f"{FULL} ({{text}})"),
        ("cupy.cuda.compiler.CompileException", COMPILING, COMPILING.splitlines()[1]),
        ("builtins.RuntimeError", LOADING, LOADING),
        ("cupy.x.Odd", "", "Odd"),
    ],
)
def test_errors_of_cuda_become_one_line(error, text, line):
    module, _, name = error.rpartition(".")
    module = module if module.startswith(("cupy", "builtins")) else BACKENDS + module
    with pytest.raises(DeviceError) as caught, cuda.errors("klip"):
        fail_with(text, module, name)
    line = line.format(text=text)
    assert type(caught.value) is (DeviceMemoryError if FULL in line else DeviceError)
    assert str(caught.value) == f"klip: {line}" and caught.value.exit_code == 4


def test_a_missing_library_of_cuda_says_what_to_install():
    text = 'Failure finding "libcusolver.so.12": No such file\n  listdir("x")'
    message = r"libcusolver.*pip install 'gpucoron\[cuda13-ctk\]'"
    with pytest.raises(DeviceError, match=message), cuda.errors("klip"):
        fail_with(text, "builtins", "DynamicLibNotFoundError", ImportError)


def test_other_errors_pass():
    with pytest.raises(InputError, match="^mine$"), cuda.errors("klip"):
        raise InputError("mine")
    with pytest.raises(ModuleNotFoundError), cuda.errors("klip"):
        import no_such_module  # noqa: F401


@pytest.mark.parametrize(
    "problem, text",
    [
        (ModuleNotFoundError("No module", name="cupy"), "CuPy is not installed; pip install"),
        (ImportError("libX is missing\nmore", name="cupy._core"), r"load \(libX is missing\); pip"),
    ],
)
def test_cupy_that_is_missing_or_broken(monkeypatch, problem, text):
    class Broken:
        def find_spec(self, name, *rest):
            if name == "cupy":
                raise problem

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DeviceError, match=text):
        cuda.cupy()


def test_the_real_cupy_has_what_is_called_here():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    module = cupy.RawModule(code="", options=cuda.OPTIONS, name_expressions=("a<int>",))
    assert hasattr(module, "get_function")
    for name in (
        "cuda.runtime.getDevice cuda.Device from_dlpack asarray "
        "RawKernel.max_dynamic_shared_size_bytes ndarray.device"
    ).split():
        found = cupy
        for part in name.split("."):
            found = getattr(found, part)
    problem = cupy.cuda.memory.OutOfMemoryError(8, 16, 24)
    with pytest.raises(DeviceMemoryError, match="^here: the GPU's memory is full "):
        with cuda.errors("here"):
            raise problem
