"""What docs/gpu.md and docs/kernels.md show works, and prints what they say."""

import contextlib
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import nvrtc
from tests.helpers.tiny_sets import TinySet

TEXT = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
BLOCK = re.compile(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", re.S)
DEVICES = pytest.mark.parametrize("device", ["host-forward", "cuda"], indirect=True)


class Tensor:
    """What stands for a tensor: no more of it than DLPack."""

    def __init__(self, array):
        self._array, self.shape = array, array.shape

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)


def torch_of(cupy):
    """Return what stands for PyTorch."""

    def ones(shape, device):
        return Tensor(cupy.ones(shape, "f4"))

    return types.SimpleNamespace(ones=ones, from_dlpack=Tensor)


@DEVICES
@pytest.mark.slow
def test_every_block_prints_what_the_page_says(device, tmp_path, monkeypatch, capsys):
    if device.emulation:
        device.have(2)
    tiny = TinySet(tmp_path)
    tiny.asn.rename(tiny.folder / "asn.json")
    tiny.mask.rename(tiny.folder / "psfmask.fits")
    monkeypatch.chdir(tiny.folder)
    monkeypatch.setitem(sys.modules, "torch", torch_of(device.cupy))
    names, blocks = {}, BLOCK.findall(TEXT)
    assert len(blocks) >= 10
    for code, printed in blocks:
        if "Device(1)" in code and device.cupy.cuda.runtime.getDeviceCount() < 2:
            continue
        exec(compile(code, "docs/gpu.md", "exec"), names)
        assert capsys.readouterr().out == printed
    assert isinstance(names["image"].data, device.cupy.ndarray)
    assert np.isfinite(device.get(names["noise"])).all()


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("device", ["host-forward"], indirect=True)
def test_the_example_with_a_stream_waits_for_its_input(device, waits):
    from gpucoron.ops.median import median

    code = next(code for code, _ in BLOCK.findall(TEXT) if "non_blocking=True" in code)
    if not waits:
        code = "\n".join(line for line in code.splitlines() if "wait_event" not in line)
    fresh = device.array(np.ones((5, 8, 9), "f4")) * 2
    names = {"cp": device.cupy, "median": median, "data": fresh}
    with contextlib.nullcontext() if waits else device.race("nothing orders it after multiply"):
        exec(compile(code, "docs/gpu.md", "exec"), names)
    if waits:  # and another stream may go on at once
        names["later"].get(stream=device.cupy.cuda.Stream(non_blocking=True))


def test_the_page_counts_the_kernels_that_there_are():
    from gpucoron.backend import cuda

    count = str(sum(len(cuda.read_kernels(path.stem).names) for path in cuda.kernel_files()))
    assert set(re.findall(r"(\d+) kernels|of the (\d+):", TEXT)) == {(count, ""), ("", count)}


def test_messages_that_the_page_explains_are_those_that_are_given():
    """Their fixed parts stand in the sources; CUDA's own words do not."""
    package = Path(sys.modules["gpucoron"].__file__).parent
    source = "".join(path.read_text() for path in sorted(package.rglob("*.py")))
    source = re.sub(r"\{[^{}]*\}", "#", re.sub(r'"\s*f?"', "", source))
    table = TEXT.partition("## What may go wrong")[2]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert len(rows) >= 10
    for message in re.findall(r"`([^`]+)`", " ".join(rows)):
        fixed = re.sub(r"\b\d\b", "#", message)
        if "cudaError" in message or "libcusolver" in message or ".cu," in message:
            continue
        for part in re.split(r": (?=CuPy|CUDA|there)", fixed):
            part = part.replace("there are only #, #", "there are only ")
            part = part.replace("CuPy does not load", "does not load")
            assert part in source, part


@DEVICES
def test_the_kernel_that_the_page_adds_works(device, tmp_path, monkeypatch):
    from gpucoron.backend import cuda
    from gpucoron.backend.device import on_gpu

    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    (source,), blocks = re.findall(r"```cpp\n(.*?)```", text, re.S), BLOCK.findall(text)
    for header in cuda._folder().glob("*.cuh"):
        (tmp_path / header.name).write_text(header.read_text())
    (tmp_path / "peak.cu").write_text(source)
    monkeypatch.setattr(cuda, "_folder", lambda: tmp_path)
    names = {"cuda": cuda, "on_gpu": on_gpu, "np": np}
    for code, _ in blocks[-2:]:
        exec(compile(code, "docs/kernels.md", "exec"), names)
    for dtype in (np.float32, np.float64):
        images = np.random.default_rng(0).normal(size=(6, 5, 77)).astype(dtype)
        images[0, 2] = images[1] = np.nan
        found = device.get(names["peaks"](device.array(images)))
        assert np.array_equal(found, names["peaks"](images)) and found.dtype == dtype
    if nvrtc.find():
        source, *_ = kernels = cuda.read_kernels("peak")
        used = nvrtc.compile_kernels(source, 90, kernels.names)["kernels"]
        assert all(kernel["spills"] == 0 for kernel in used.values())


def test_the_page_lists_every_kernel():
    from gpucoron.backend import cuda

    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    table = text.partition("## The kernels")[2]
    for path in cuda.kernel_files():
        assert f"| {path.stem} |" in table
        for name in cuda.read_kernels(path.stem).names:
            assert re.search(rf"`{name.partition('<')[0]}\b", table), name
