"""Compiling ahead, what is known to be compiled, and saying so: on the emulated device."""

import re
import tempfile
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpucoron.backend import cuda, kernel_cache
from gpucoron.cli import compile as cli_compile
from gpucoron.cli import main as cli
from gpucoron.errors import DeviceError

EMULATED = pytest.mark.parametrize("device", ["host-forward"], indirect=True)


@pytest.fixture
def kept(device, monkeypatch, tmp_path):
    """An emulated device with a compiler, and nothing compiled yet; the folder."""
    if device.is_gpu:
        device.emulation.nvrtc = (13, 0)
        nvrtc = types.SimpleNamespace(getVersion=lambda: device.emulation.nvrtc)
        monkeypatch.setattr(device.cupy.cuda, "nvrtc", nvrtc, raising=False)
        monkeypatch.setattr(device.cupy, "__version__", "14.2.0", raising=False)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache"
    forget()


def counted(device):
    sources = [(cuda.read_kernels(file).source, name) for file, name in cuda.all_kernels()]
    return kernel_cache.count_cached(device.cupy, sources, cuda.OPTIONS, 0)


@EMULATED
def test_the_first_launch_says_once_that_it_compiles(device, kept, caplog):
    caplog.set_level("INFO", "gpucoron")
    assert counted(device) == 0
    for name in ("column_median<float, 4>", "column_median<float, 8>"):
        cuda.kernel("median", name).compile()
    assert counted(device) == 2
    assert [r.getMessage() for r in caplog.records] == [
        f"compiling CUDA kernels (once; kept in {kept})"
    ]
    assert len(list((kept / "gpucoron").iterdir())) == 2
    caplog.clear()
    forget()
    cuda.kernel("median", "column_median<float, 4>").compile()
    assert not caplog.records


def forget():
    """As in another process."""
    cuda._kernel.cache_clear()
    kernel_cache._logged.clear()
    kernel_cache._compiler.cache_clear()


@EMULATED
def test_another_compiler_source_or_gpu_is_another_kernel(device, kept, monkeypatch):
    mine = [device.cupy, "source", ("-std=c++17",), "name", 0]
    kernel_cache.mark_cached(*mine)
    assert kernel_cache.is_cached(*mine)
    for place, other in ((1, "other"), (2, ("-std=c++20",)), (3, "other")):
        assert not kernel_cache.is_cached(*[*mine[:place], other, *mine[place + 1 :]])
    device.emulation.nvrtc = (13, 1)
    forget()
    assert not kernel_cache.is_cached(*mine)
    device.emulation.nvrtc = (13, 0)
    facts = device.cupy.cuda.runtime.getDeviceProperties(0)
    monkeypatch.setattr(
        device.cupy.cuda.runtime, "getDeviceProperties", lambda index: {**facts, "minor": 1}
    )
    forget()
    assert not kernel_cache.is_cached(*mine)


@EMULATED
def test_a_folder_that_cannot_be_written_does_no_harm(device, kept):
    kept.write_text("a file")
    cuda.kernel("median", "column_median<float, 4>").compile()
    assert counted(device) == 0


@EMULATED
def test_a_kernel_that_does_not_compile_is_not_noted(device, kept, monkeypatch):
    launch = cuda.kernel("median", "column_median<float, 4>")
    monkeypatch.setattr(launch, "_module", types.SimpleNamespace(get_function=_fail))
    with pytest.raises(DeviceError, match=r"^median.cu, column_median<float, 4>: CuPy failed"):
        launch.compile()
    assert counted(device) == 0


def _fail(name):
    raise RuntimeError("CuPy failed to load NVRTC")


def info(capsys):
    assert cli.main(["info"]) == 0
    return capsys.readouterr().out


@EMULATED
def test_compile_compiles_everything(device, kept, capsys, monkeypatch):
    out, n = info(capsys), len(cuda.all_kernels())
    compiled = "kernels are compiled for compute capability 9.0, kept in"
    more = "gpucoron compile --device 0 compiles all"
    assert f"device 0: 0 of {n} {compiled} {kept} ({more})\n" in out
    runs = []
    monkeypatch.setattr(cli_compile, "tiny_runs", lambda device, progress: runs.append(device))
    cuda.kernel("median", "column_median<float, 4>").compile()
    asked, one = [], cli_compile._compile_one
    monkeypatch.setattr(cli_compile, "_compile_one", lambda *args: asked.append(args) or one(*args))
    assert cli.main(["compile", "--device", "0", "--processes", "1"]) == 0
    assert len(asked) == n - 1 and counted(device) == n
    assert [d.label for d in runs] == ["0"]
    err = capsys.readouterr().err
    assert f"{n - 1} of {n} kernels to compile for device 0; they are kept in {kept}\n" in err
    assert f"kernels: {n - 1} of {n - 1}" in err
    assert re.search(r"everything is compiled, \d+\.\d s", err)
    assert f"device 0: {n} of {n} {compiled} {kept}\n" in info(capsys)


@EMULATED
def test_several_processes_share_the_kernels(device, kept, monkeypatch):
    """With threads in their place: the emulated device is in this process only."""
    pool = "concurrent.futures.ProcessPoolExecutor"
    monkeypatch.setattr(pool, lambda n, context: ThreadPoolExecutor(n))
    few = [("median", f"column_median<float, {n}>") for n in (4, 8, 16)]
    monkeypatch.setattr(cuda, "all_kernels", lambda: few)
    told = []
    assert cli_compile.compile_kernels(0, 2, lambda *state: told.append(state)) == 3
    assert [state[:3] for state in told] == [("kernels", k, 3) for k in (1, 2, 3)]
    assert cli_compile.compile_kernels(0, 2, lambda *state: told.append(state)) == 0
    monkeypatch.setattr(cuda, "all_kernels", lambda: [("median", "no_such"), ("median", "nor")])
    with pytest.raises(ValueError, match="does not declare 'no"):
        cli_compile.compile_kernels(0, 2, lambda *state: None)


@pytest.mark.parametrize("device", ["cpu", "host-forward"], indirect=True)
@pytest.mark.slow
def test_tiny_runs_leave_nothing_behind(device, kept, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("gpucoron.ops.cpu.compile_late.compile_late", lambda: None)
    words = ["--device", "0"] if device.is_gpu else ["--device", "cpu"]
    monkeypatch.setattr(cli_compile, "compile_kernels", lambda *unused: 0)
    before = set(tmp_path.iterdir())
    assert cli.main(["compile", *words]) == 0
    err = capsys.readouterr().err
    assert "tiny runs: 3 of 3, --align first" in err and "warning" not in err
    assert err.count("  device ") == 1 and "outlier_detection" not in err
    assert set(tmp_path.iterdir()) - before <= {kept}
    if device.is_gpu:
        assert 15 < counted(device) < len(cuda.all_kernels())
