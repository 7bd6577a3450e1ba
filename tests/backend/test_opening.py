"""A GPU that starts while files are read: on the emulated device, and what fails there."""

import re
import sys
import threading

import pytest

import gpucoron
from gpucoron.backend import cuda, device, opening
from gpucoron.backend.opening import Opening
from gpucoron.backend.proof import Proof
from gpucoron.cli import main as cli
from gpucoron.errors import AssociationError, DeviceError

pytestmark = pytest.mark.slow

EMULATED = pytest.mark.parametrize("device", ["host-forward"], indirect=True)


@pytest.fixture
def started(monkeypatch):
    """Where and for which device libraries were started."""
    calls, whole = [], opening.start_libraries

    def start_libraries(index):
        calls.append((threading.current_thread().name, index))
        whole(index)

    monkeypatch.setattr(opening, "start_libraries", start_libraries)
    return calls


def run(tiny, spec, **options):
    return gpucoron.run(tiny.asn, spec, psfmask=tiny.mask, klip_truncate=3, **options)


@EMULATED
def test_a_run_on_a_gpu_starts_it_beside(device, tiny, started, caplog):
    caplog.set_level("INFO", "gpucoron")
    result = run(tiny, 0)
    assert started == [("gpucoron-open", 0)]
    assert result.device.label == "0" and result.device.reason == "asked for"
    assert "device 0: Emulated, " in caplog.text
    assert "gpucoron-open" not in [thread.name for thread in threading.enumerate()]
    device.emulation.count = 2
    run(tiny, "1, 0")
    assert [index for _, index in started[1:]] == [1, 0]


def test_a_run_on_the_cpu_starts_nothing(tiny, monkeypatch):
    opened = "gpucoron.pipeline.run.Opening"
    monkeypatch.setattr(opened, lambda spec: pytest.fail("a GPU is started"))
    monkeypatch.setattr(device, "import_cupy", lambda: pytest.fail("CuPy is imported"))
    monkeypatch.setattr(device, "_NODES", ())
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    for spec in ("cpu", "auto"):
        assert run(tiny, spec).device.kind == "cpu"


@EMULATED
def test_a_device_that_is_not_there_is_one_line_and_nothing_is_written(device, tiny, capsys):
    assert tiny.command("-q", "--device", "7") == 4
    there = f"there are only {', '.join(map(str, range(device.emulation.count)))}"
    message = f"device 7 cannot be used: {there}; use --device cpu or auto"
    assert capsys.readouterr().err == f"gpucoron: error: {message}\n"
    assert not tiny.out.exists() or not list(tiny.out.iterdir())
    with pytest.raises(AssociationError, match="nowhere.json"):  # comes first
        gpucoron.run(tiny.folder / "nowhere.json", 7)


@EMULATED
def test_a_library_that_does_not_start_ends_the_run_in_one_line(device, tiny, monkeypatch):
    def start_libraries(index):
        with cuda.errors(f"device {index}, start"):
            raise RuntimeError("CuPy failed to load libcufft.so.12: no such file\nand more")

    monkeypatch.setattr(opening, "start_libraries", start_libraries)
    with pytest.raises(DeviceError) as caught:
        run(tiny, 0, output_dir=tiny.out)
    assert str(caught.value) == "device 0, start: CuPy failed to load libcufft.so.12: no such file"
    assert not list(tiny.out.glob("*_i2d.fits")) and not list(tiny.out.glob(".*.part"))


@EMULATED
def test_libraries_are_used_on_the_device(device, monkeypatch):
    device.emulation.count = 2
    seen, eigh = [], device.cupy.linalg.eigh

    def seeing(a):
        seen.append(device.cupy.cuda.runtime.getDevice())
        return eigh(a)

    monkeypatch.setattr(device.cupy.linalg, "eigh", seeing)
    opening.start_libraries(1)
    assert seen == [1]


def test_a_signal_does_not_wait_for_it(monkeypatch):
    hold = threading.Event()
    monkeypatch.setattr(opening, "choose_device", lambda spec: hold.wait(30))
    with pytest.raises(KeyboardInterrupt), Opening(0):
        raise KeyboardInterrupt
    assert not hold.is_set()
    hold.set()


def test_an_error_waits_for_it(monkeypatch):
    hold, ended = threading.Event(), []

    def choose(spec):
        hold.wait(30)
        ended.append(spec)
        raise DeviceError("gone")

    monkeypatch.setattr(opening, "choose_device", choose)
    with pytest.raises(ZeroDivisionError), Opening(0):
        threading.Timer(0.2, hold.set).start()
        1 / 0
    assert ended == [0]
    with pytest.raises(DeviceError, match="^gone$"), Opening(1):
        pass  # which nobody asked for its device


# ---------------------------------------------------------------- auto
@EMULATED
@pytest.mark.parametrize("on_gpu, on_cpu, label", [(1.0, 2.0, "0"), (2.0, 1.0, "cpu")])
def test_auto_is_settled_when_the_association_is_known(
    device, tiny, started, monkeypatch, capsys, on_gpu, on_cpu, label
):
    proof = Proof("Emulated", "9.0", "2026-01-01")
    monkeypatch.setattr("gpucoron.backend.device.proof", lambda: proof)
    plans = []
    monkeypatch.setattr(
        "gpucoron.pipeline.run.predict", lambda given: plans.extend(given) or (on_gpu, on_cpu)
    )
    words = "--set klip.truncate=3 --no-report --psfmask".split()
    words = [tiny.asn, "--output-dir", tiny.out, *words, tiny.mask]
    assert cli.main(list(map(str, words))) == 0
    assert [plan.pairs for plan in plans] == [25]
    (line,) = re.findall(r"  device .*", capsys.readouterr().err)
    assert line.startswith(f"  device {label}: ")
    other = "the CPU" if label == "0" else "a GPU"
    assert line.endswith(f"(auto: predicted 1.0 s against 2.0 s on {other})")
    assert started == ([("gpucoron-open", 0)] if label == "0" else [])
    assert tiny.record()["device"]["label"] == label
