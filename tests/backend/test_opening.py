"""A GPU that starts while files are read: on the emulated device, and what fails there."""

import json
import re
import sys
import threading

import pytest

import gpucoron
from gpucoron.backend import device, opening
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
    names = [thread.name for thread in threading.enumerate()]
    assert "gpucoron-open" not in names


@EMULATED
def test_every_device_asked_for_is_started(device, tiny, started):
    device.emulation.count = 2
    run(tiny, "1, 0")
    assert [index for _, index in started] == [1, 0]


def test_a_run_on_the_cpu_starts_nothing(tiny, monkeypatch):
    monkeypatch.setattr(
        "gpucoron.pipeline.run.Opening", lambda spec: pytest.fail("a GPU is started")
    )
    monkeypatch.setattr(device, "import_cupy", lambda: pytest.fail("CuPy is imported"))
    monkeypatch.setattr(device, "_NODES", ())
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    for spec in ("cpu", "auto"):
        assert run(tiny, spec).device.kind == "cpu"


@EMULATED
def test_a_device_that_is_not_there_is_one_line_and_nothing_is_written(device, tiny, capsys):
    count = device.emulation.count
    words = [str(tiny.asn), "--device", "7", "--output-dir", str(tiny.out), "-q"]
    assert cli.main(words) == 4
    there = ", ".join(map(str, range(count)))
    assert capsys.readouterr().err == (
        f"gpucoron: error: device 7 cannot be used: there are only {there}; use --device cpu or "
        "auto\n"
    )
    assert not tiny.out.exists() or not list(tiny.out.iterdir())


@EMULATED
def test_a_library_that_does_not_start_ends_the_run_in_one_line(device, tiny, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("CuPy failed to load libcufft.so.12: no such file\nand more")

    monkeypatch.setattr(opening, "start_libraries", _with(fail))
    with pytest.raises(DeviceError) as caught:
        run(tiny, 0, output_dir=tiny.out)
    assert str(caught.value) == (
        "device 0, start: CuPy failed to load libcufft.so.12: no such file"
    )
    assert not list(tiny.out.glob("*_i2d.fits")) and not list(tiny.out.glob(".*.part"))


def _with(fail):
    def start_libraries(index):
        from gpucoron.backend import cuda

        with cuda.errors(f"device {index}, start"):
            fail()

    return start_libraries


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


@EMULATED
def test_what_else_is_wrong_comes_first(device, tiny, tmp_path):
    with pytest.raises(AssociationError, match="nowhere.json"):
        gpucoron.run(tmp_path / "nowhere.json", 7)


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
    monkeypatch.setattr(
        "gpucoron.backend.device.proof", lambda: Proof("Emulated", "9.0", "2026-01-01")
    )
    plans = []

    def predict(given):
        plans.extend(given)
        return on_gpu, on_cpu

    monkeypatch.setattr("gpucoron.pipeline.run.predict", predict)
    assert (
        cli.main(
            [
                str(tiny.asn),
                "--psfmask",
                str(tiny.mask),
                "--output-dir",
                str(tiny.out),
                "--set",
                "klip.truncate=3",
                "--no-report",
            ]
        )
        == 0
    )
    assert [plan.pairs for plan in plans] == [25]
    (line,) = re.findall(r"  device .*", capsys.readouterr().err)
    assert line.startswith(f"  device {label}: ")
    assert line.endswith(
        "(auto: predicted 1.0 s against 2.0 s on the CPU)"
        if label == "0"
        else "(auto: predicted 1.0 s against 2.0 s on a GPU)"
    )
    assert started == ([("gpucoron-open", 0)] if label == "0" else [])
    (record,) = tiny.out.glob("*_run.json")
    assert json.loads(record.read_text())["device"]["label"] == label
