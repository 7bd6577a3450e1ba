"""Which device a run uses, with CuPy played by a stand-in: every way in which it can be missing."""

import contextlib
import re
import sys
import types

import numpy as np
import pytest

from gpucoron.backend import device
from gpucoron.backend.device import Device, choose_device, cpu_device, find_gpus, is_open
from gpucoron.backend.proof import Proof
from gpucoron.errors import DeviceError, UsageError

PROOF = Proof("NVIDIA Model", "9.0", "2026-01-01")


class Broken(Exception):
    pass


def fake_cupy(count=1, answer=42, count_error=None, kernel_error=None):
    cupy = types.ModuleType("cupy")

    def get_device_count():
        if count_error:
            raise Broken(count_error)
        return count

    class RawKernel:
        def __init__(self, source, name):
            assert name in source

        def __call__(self, grid, block, arguments):
            if kernel_error:
                raise Broken(kernel_error)
            arguments[0][0] = answer

    facts = {"name": b"NVIDIA Model", "major": 9, "minor": 0, "totalGlobalMem": 80 * 2**30}
    runtime = types.SimpleNamespace(
        getDeviceCount=get_device_count, getDeviceProperties=lambda index: facts
    )
    cupy.used, cupy.zeros, cupy.RawKernel = [], np.zeros, RawKernel
    use = lambda index: cupy.used.append(index) or contextlib.nullcontext()  # noqa: E731
    cupy.cuda = types.SimpleNamespace(runtime=runtime, Device=use)
    return cupy


@pytest.fixture(autouse=True)
def forget_gpus():
    find_gpus.cache_clear()
    yield
    find_gpus.cache_clear()


@pytest.fixture
def cupy(monkeypatch):
    def install(module, proven=True):
        monkeypatch.setitem(sys.modules, "cupy", module)
        monkeypatch.setattr(device, "proof", lambda: PROOF if proven else None)

    return install


def test_cpu_is_described():
    chosen = choose_device("cpu")
    assert (chosen.kind, chosen.index, chosen.label) == ("cpu", None, "cpu")
    assert chosen.reason == "asked for"
    assert chosen.name and f"{device.cpu_threads()} thread" in chosen.description
    assert cpu_device() == Device("cpu", None, chosen.name, chosen.description)
    assert str(cpu_device()) == "cpu"
    total, free = device.memory()
    assert 2**28 < free <= total


def test_auto_takes_the_cpu_until_the_gpu_code_is_proven(cupy):
    module = fake_cupy()
    cupy(module, proven=False)
    chosen = choose_device("auto")
    assert chosen.kind == "cpu" and "not proven on a GPU" in chosen.reason and module.used == []
    assert choose_device(0).kind == "gpu"


def test_a_usable_gpu(cupy):
    cupy(fake_cupy(count=2))
    auto = choose_device("auto")
    assert (auto.label, auto.reason, auto.capability) == ("0", "the first usable GPU", "9.0")
    chosen = choose_device("1")
    assert chosen == choose_device(1)
    assert chosen.description == "NVIDIA Model, 80 GiB, compute capability 9.0"
    assert [d.label for d in device.describe_devices()] == ["cpu", "0", "1"]
    assert choose_device(chosen) is chosen
    both = choose_device("0, 1")
    assert (both.label, both.indices, both.index) == ("0,1", (0, 1), 0)
    for spec, error, message in (
        ("1,01", UsageError, "names a device twice"),
        ("0,2", DeviceError, "device 2 cannot be used"),
        (2, DeviceError, "device 2 cannot be used: there are only 0, 1; use --device"),
    ):
        with pytest.raises(error, match=message):
            choose_device(spec)


@pytest.mark.parametrize(
    "module, problem",
    [
        (None, "CuPy is not installed"),
        (fake_cupy(count=0), "CuPy finds no CUDA device"),
        (fake_cupy(count_error="driver\ntoo old"), "CuPy finds no CUDA device (driver)"),
        (fake_cupy(kernel_error="no nvrtc"), "CUDA does not work here (no nvrtc)"),
        (fake_cupy(kernel_error=" "), "CUDA does not work here (Broken)"),
        (fake_cupy(answer=0), "a trial kernel gives a wrong result on device 0"),
    ],
)
def test_why_there_is_no_gpu(cupy, module, problem):
    cupy(module)
    gpus, why = find_gpus()
    assert gpus == () and problem in why
    assert choose_device("auto").kind == "cpu" and choose_device("auto").reason == why
    with pytest.raises(DeviceError) as caught:
        choose_device(0)
    text = str(caught.value)
    assert text.startswith(f"device 0 cannot be used: {why}")
    assert text.endswith("; use --device cpu or auto") and caught.value.exit_code == 4
    assert ("pip install 'gpucoron[cuda13]'" in text) == (module is None)


@pytest.mark.parametrize("spec", ["gpu", "-1", "0,,1", "0,cpu", "", "1.0", True, None])
def test_what_is_no_device(spec):
    with pytest.raises(UsageError, match="expected auto, cpu, or the number of a CUDA device"):
        choose_device(spec)


def test_on_gpu():
    host, array = np.zeros(2), types.SimpleNamespace(__cuda_array_interface__={})
    assert not device.on_gpu(host, None, host) and not device.on_gpu()
    assert device.on_gpu(array, None)
    with pytest.raises(TypeError, match="mixed"):
        device.on_gpu(host, array)
    for kind, answer in ((1, False), (2, True), (3, False), (13, True)):
        array = types.SimpleNamespace(__dlpack_device__=lambda kind=kind: (kind, 0))
        assert device.on_gpu(array) is answer


# ---------------------------------------------------------------- looking as little as possible
@pytest.mark.parametrize(
    "asked, used", [("1", [1]), (0, [0]), ("2,0", [2, 0]), ("auto", [0]), ("cpu", [])]
)
def test_only_the_devices_asked_for_are_touched(cupy, asked, used):
    module = fake_cupy(count=3)
    cupy(module)
    for _ in range(2):
        choose_device(asked)
    assert module.used == used
    device.describe_devices()
    assert module.used == [*used, 0, 1, 2]


@pytest.fixture
def without_cupy(monkeypatch, tmp_path):
    """A machine where nobody has imported CuPy yet; its /dev, and whether CuPy is asked for."""
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(device, "_DEV", tmp_path)
    monkeypatch.setattr(device, "proof", lambda: PROOF)
    asked = []
    monkeypatch.setattr(device, "import_cupy", lambda: asked.append(1) or fake_cupy())
    return tmp_path, asked


def test_without_a_gpu_cupy_is_not_imported(without_cupy, monkeypatch):
    folder, asked = without_cupy
    (folder / "nvidiactl").touch()
    assert not is_open("auto")
    chosen = choose_device("auto", lambda: pytest.fail("predicted"))
    why = "there is no NVIDIA GPU here (no /dev/nvidia0)"
    assert (chosen.kind, chosen.reason) == ("cpu", why)
    message = re.escape(f"device 0 cannot be used: {why}; use --device cpu or auto")
    with pytest.raises(DeviceError, match=f"^{message}$"):
        choose_device(0)
    assert not asked
    find_gpus.cache_clear()
    monkeypatch.setattr(sys, "platform", "win32")
    assert is_open("auto") and choose_device(0).kind == "gpu" and asked


@pytest.mark.parametrize("node", ["nvidia0", "nvidia11", "dxg"])
def test_what_shows_that_there_may_be_a_gpu(without_cupy, node):
    folder, asked = without_cupy
    (folder / node).touch()
    assert is_open(" Auto") and is_open("0, 1") and is_open(0)
    assert not any(map(is_open, ("cpu", "0,,1", "", "1.0", True, None, cpu_device())))
    assert not asked
    assert choose_device(0).kind == "gpu" and asked


# ---------------------------------------------------------------- auto, once it is proven
def test_auto_takes_what_is_predicted_to_be_faster(without_cupy):
    folder, asked = without_cupy
    (folder / "nvidia0").touch()
    chosen = choose_device("auto", lambda: (3.04, 3.0))
    assert chosen.kind == "cpu" and not asked
    assert chosen.reason == "auto: predicted 3.0 s against 3.0 s on a GPU"
    chosen = choose_device("auto", lambda: (4.4, 27.36))
    assert chosen.label == "0"
    assert chosen.reason == "auto: predicted 4.4 s against 27.4 s on the CPU"


def test_auto_wants_the_proof_of_such_a_gpu(cupy, monkeypatch):
    cupy(fake_cupy())
    monkeypatch.setattr(device, "proof", lambda: PROOF._replace(capability="8.0"))
    chosen = choose_device("auto", lambda: (1, 2))
    why = "the GPU code is proven on compute capability 8.0, and device 0 has 9.0; "
    assert (chosen.kind, chosen.reason) == ("cpu", f"{why}--device 0 uses it all the same")
    assert choose_device("0").kind == "gpu"
