"""bench/on_gpu.sh and its parts, at tiny sizes on the emulated device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import bench_gpu
import common
import gpu_cases
import gpu_checks
import gpu_compare
import gpu_kernels
import gpu_rates
import gpu_runs
import gpu_timing
import numpy as np
import pytest

from gpucoron.backend import cuda
from tests import conftest
from tests.helpers import chance, device_fixture
from tests.helpers.processes import run

pytestmark = pytest.mark.slow

BENCH = Path(__file__).resolve().parents[2] / "bench"

if sys.platform != "linux":
    pytest.skip("for Linux", allow_module_level=True)


@pytest.fixture
def device():
    with device_fixture.make("host-forward") as emulated:
        yield emulated


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Call bench_gpu.py: its exit code, and what the part left in the file."""
    out = tmp_path / "out.json"
    monkeypatch.setattr(gpu_runs, "process", lambda *args, **kwargs: {"median_s": 1.0})

    def call(part, *options):
        words = [part, "--out", out, "--work", call.work, "--tiny", *options]
        code = bench_gpu.main(list(map(str, words)))
        return code, json.loads(out.read_text()).get(part) if out.is_file() else None

    call.out, call.work = out, tmp_path / "work"
    return call


@pytest.mark.skipif(not device_fixture.why_no_gpu(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so_in_one_line(tmp_path):
    done = run(BENCH / "on_gpu.sh", tmp_path / "out", PYTHON=sys.executable)
    assert done.returncode == 3 and not done.stdout
    assert done.stderr.startswith("on_gpu.sh: no GPU: there is no ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


SMOKE = {"libraries", "compile", "tiny", "cases", "memcheck", "tests"}
FULL = {"libraries", "compile", "start", "rates", "kernels", "compare", "large", "canonical"}
FULL |= {"tests", "sanitize"}
#: Of the whole script's parts those that the first look has not and no test below calls; the whole
#: of it, three minutes of processes that start, once a week.
SOME = ("canonical",)
NO_EMULATION = device_fixture.why_no_emulation()


@pytest.mark.skipif(bool(NO_EMULATION), reason=NO_EMULATION)
@pytest.mark.parametrize(
    "name, parts, named, devices",
    [
        ("smoke_on_gpu.sh", SMOKE, (), 1),
        ("on_gpu.sh", FULL, (), 2) if chance.EVERYTHING else ("on_gpu.sh", set(SOME), SOME, 2),
    ],
)
def test_the_scripts_from_end_to_end(tmp_path, name, parts, named, devices):
    """With tiny sets, no wheels and no kernels compiled before; GPUCORON_PYTHON is another Python.

    It needs the packages of the test extra, as the one that runs the tests has them.
    """
    variables = {
        "GPUCORON_EMULATED": str(devices),
        "GPUCORON_BENCH_TINY": "1",
        "PYTHONPATH": str(BENCH.parent / "tests" / "helpers" / "cuda_on_host" / "site"),
        "LIMIT": "3000",
        "PATIENCE": "5",
        "GPUCORON_COMMIT": "abc1234",
        "PYTHON": os.environ.get("GPUCORON_PYTHON", sys.executable),
        **dict.fromkeys(("CACHES", "EXPECTED"), str(tmp_path)),
    }
    done = run(BENCH / name, tmp_path, *named, timeout=3600, **variables)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (result,) = tmp_path.glob("*-gpu-emulated.json")
    stored = json.loads(result.read_text())
    assert parts | {"where"} == set(stored)
    for part in parts:
        assert stored[part].get("ok", True), (part, stored[part])
        assert stored[part]["commit"] == "abc1234"
    assert stored["where"]["gpu"]["count"] == devices
    left = {path.name for path in tmp_path.iterdir()} - {f"{result.stem}-tests.log"}
    assert left == {result.name, "cupy-cache.tar.gz"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2**20
    for part in {"tiny", "compare"} & parts:
        check_compared(stored[part]["rows"], done.stdout)
    if name == "on_gpu.sh":
        assert "no proof: it does not come from a real GPU" in done.stdout
        check_whole_runs(stored["canonical"], done.stdout)


def check_compared(rows, said):
    """All products of a run on the GPU and of one on the CPU were compared."""
    arrays = {(row["product"], row["array"]) for row in rows}
    some = {("crfints", "dq"), ("psfalign, float64", "data"), ("fits", "x"), ("i2d", "con")}
    assert some | {("klip, float64", "scatter"), ("psfsub", "data")} <= arrays
    assert "products, GPU and CPU: all within limits" in said


def check_whole_runs(canonical, said):
    """What the part with the canonical set leaves, and what the table has of it."""
    for name in ("gpu", "cpu"):
        facts, busy = canonical[name], canonical[name]["busy_s"]
        assert {"wall_s", "steps_s", "compute_s", "waiting_for_files_s"} <= set(facts)
        assert busy["read"] > 0 and busy["write"] > 0
        assert (facts["bytes"]["upload"] > 0) == (busy["download"] > 0) == (name == "gpu")
    device = canonical["device"]
    assert set(gpu_runs.GOAL) <= set(device["parts"]) and device["goal_ms"] == 0
    assert any("contract" in label for label in device["kernels"])
    assert canonical["jwst"]["median_s"] > 10 and canonical["jwst"]["machine"]
    assert "registration + shift + klip" in said and "\nEmulated, " in said


def test_the_scripts_are_bash():
    for path in BENCH.glob("*.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert os.access(path, os.X_OK)


def test_kernels_are_timed_beside_the_copy_of_this_device(device, program, monkeypatch, capsys):
    for module in (gpu_timing, gpu_rates):
        monkeypatch.setattr(module, "elapsed", lambda start, stop: 0.5)
    code, rates = program("rates")
    assert code == 0 and rates["copy_GB_s"] == pytest.approx(2 * 2**20 / 0.5e6)
    code, found = program("kernels")
    assert code == 0 and not found["wrong"]
    rows = {row["case"]: row for row in found["rows"]}
    median = rows["median float32 n=4"]
    assert median["bytes"] == 12 * 14 * (4 * 5 + 4) and median["sets"] >= 2
    assert median["GB_s"] == pytest.approx(median["bytes"] / 0.5e6)
    assert median["of_copy"] == pytest.approx(median["GB_s"] / rates["copy_GB_s"])
    assert sum(row["difference"] < 1e-6 for row in found["rows"] if "difference" in row) >= 5
    used = {label for row in found["rows"] for label in row["kernels"]}
    files = "median outliers bad_pixels fourier_shift registration klip drizzle drizzle_weights"
    assert {label.partition(".")[0] for label in used} == set(files.split())
    assert capsys.readouterr().out.count("\n") > len(rows)
    assert gpu_kernels.share(1.0, 0.0) is None


def test_a_case_that_fails_leaves_the_others(device, monkeypatch):
    def cases(shapes):
        def bad():
            yield gpu_cases.Case("first", lambda: 1 / 0, [()])
            yield gpu_cases.Case("second", lambda: None, [()])
            raise MemoryError("no room")

        def good():
            yield gpu_cases.Case("third", lambda: None, [()])

        return [bad, good]

    monkeypatch.setattr(gpu_kernels, "all_cases", cases)
    rows = gpu_kernels.kernels({})
    assert [(r["case"], r.get("error")) for r in rows] == [
        ("first", "ZeroDivisionError: division by zero"),
        ("second", None),
        ("what follows second", "MemoryError: no room"),
        ("third", None),
    ]


def test_a_part_that_fails_is_told_and_stored(device, program, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_runs.found, "__defaults__", (0.1,))
        code, found = program("compare")
    assert code == 1 and "there is no set in" in found["error"]
    assert program("table")[0] == 0
    said = capsys.readouterr().out
    assert "compare: FAILED, FileNotFoundError" in said and "tests: not done" in said


def test_limits_and_the_band_of_flags():
    table, right = gpu_compare.Table(), np.array([1.0, 2.0, np.nan])
    table.add("a", "close", right * (1 + 1e-9), right)
    table.add("a", "far", right * (1 + 1e-7), right)
    table.add("a", "single", (right * (1 + 1e-7)).astype("f4"), right.astype("f4"))
    table.add("a", "other NaN", np.array([1.0, np.nan, 2.0]), right)
    near = np.array([True, False])
    table.flags("a", "near", [1, 0], [0, 0], near)
    table.flags("a", "not near", [1, 1], [0, 0], near)
    assert {row["array"] for row in table.listed() if row["ok"]} == {"close", "near"}
    assert len(table.listed()) == 6


def test_what_is_compiled_and_the_tests_are_counted(device, program, monkeypatch):
    code, found = program("compile")
    assert code == 0 and len(found["kernels"]) > 80 and not found["with_local_memory"]
    line, failed = "[gw1] [ {0}%] {1} tests/x.py::t[a-{0} b] \n", ["tests/x.py::t[a-1 b]"]
    good, bad = line.format(0, "PASSED"), line.format(1, "FAILED")
    for text, ended, passed, names in (
        (good + bad, 1, 1, failed),
        (good, 0, 1, []),
        ("no tests ran in 3s\n", 5, 0, []),
        (good + bad + "stopped after 3 s", None, 1, failed),
    ):
        monkeypatch.setattr(gpu_checks, "call", lambda *_, end=(ended, text): end)
        code, found = program("tests")
        assert code == (0 if ended == 0 else 1)
        assert found.get("passed", 0) == passed and found["names"] == names


def test_a_kernel_that_does_not_compile_leaves_the_others(device, program, monkeypatch):
    kernel = cuda.kernel

    def spoilt(file, name):
        if name == "median_of_nothing":
            raise RuntimeError("nvrtc: error: no such kernel")
        return kernel(file, name)

    names = [("median", "column_median<float, 4>"), ("median", "median_of_nothing")]
    kernel(*names[0])  # compiled while its source can be read
    monkeypatch.setattr(cuda, "kernel", spoilt)
    monkeypatch.setattr(cuda, "kernel_files", lambda: [Path("median.cu")])
    kernels = cuda.Kernels("", tuple(name for _, name in names))
    monkeypatch.setattr(cuda, "read_kernels", lambda file: kernels)
    code, found = program("compile")
    assert code == 1 and len(found["kernels"]) == 2
    assert ["error" in row for row in found["kernels"]] == [False, True]
    program("table")


def test_what_is_found_without_numba_is_told(device, program, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    code, found = program("libraries")
    assert code == 1 and set(found["problems"]) == {"numba"} and found["versions"]["numpy"]
    assert program("rates")[0] == 0  # which needs none


def test_git_and_the_driver_are_asked_once(device, program, monkeypatch):
    asked, where = [], bench_gpu.where
    bench_gpu._where.cache_clear()
    monkeypatch.setattr(bench_gpu, "where", lambda: asked.append(1) or where())
    for _ in range(3):
        bench_gpu.join("rates", {}, program.out)
    assert asked == [1] and json.loads(program.out.read_text())["rates"]["commit"]


def test_small_calls_are_compared_with_what_was_kept(device, program, monkeypatch, tmp_path):
    expected = tmp_path / "expected"
    gpu_checks.run_cases("drizzle_weights", device, expected)

    def call(command, timeout_s, **environment):
        assert environment == {"CUDA_LAUNCH_BLOCKING": "1"} and timeout_s > 0
        gpu_checks.run_cases(command[-1], device, Path(command[-2]))
        return 0, ""

    monkeypatch.setattr(gpu_checks, "call", call)
    code, found = program("cases", "--expected", expected)
    assert code == 0 and found["rows"][0]["compared"] == 4
    path = expected / "drizzle_weights.npz"
    with np.load(path) as kept:
        arrays = {name: kept[name] * (1 + 1e-4 * (k == 1)) for k, name in enumerate(kept.files)}
    np.savez(path, **{name: a.astype("f4") for name, a in arrays.items()})
    code, found = program("cases", "--expected", expected)
    assert code == 1 and len(found["rows"][0]["wrong"]) == 1
    monkeypatch.setattr(gpu_checks, "call", lambda *_, **__: (139, "an illegal address"))
    code, found = program("cases", "--expected", expected)
    assert code == 1 and found["rows"][0]["end"] == "an illegal address"


def test_a_sanitizer_that_does_not_end_is_not_well(monkeypatch):
    monkeypatch.setattr(gpu_checks, "sanitizer", lambda: "sanitizer")
    row = {"tool": "memcheck", "file": "x", "errors": 0, "ours": []}
    for code, ok in ((0, True), (None, False), (1, False)):
        monkeypatch.setattr(gpu_checks, "sanitize_one", lambda *_, code=code: {**row, "exit": code})
        found = gpu_checks.sanitize(20, 1, ["x"], ("memcheck",))
        assert found["ok"] == ok and found["unfinished"] == (code is None)


@pytest.mark.parametrize(
    "failed, lost, worker, left",
    [(True, True, "gw1", [70]), (True, False, "gw1", [])]
    + [(False, True, "gw1", []), (True, True, None, [])],
)
def test_a_process_whose_gpu_is_lost_is_left(monkeypatch, failed, lost, worker, left):
    codes = []
    monkeypatch.setattr(device_fixture, "gpu_is_lost", lambda: lost)
    monkeypatch.setattr(conftest.os, "_exit", codes.append)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    if worker:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    conftest.pytest_runtest_logreport(SimpleNamespace(failed=failed, keywords={"gpu": 1}))
    conftest.pytest_runtest_logreport(SimpleNamespace(failed=True, keywords={}))
    assert codes == left


def test_the_files_with_gpu_tests_are_those_that_are_run(request):
    """Of the files that this process has collected; GPU tests are left out of them only later."""
    if any("::" in word for word in request.config.args):
        pytest.skip("single tests are named: their files are not collected whole")
    collected, with_gpu_tests = request.config.stash[conftest.COLLECTED]
    assert with_gpu_tests == collected & set(gpu_checks.TEST_FILES)


SANITIZER = """#!/bin/bash
if [ "$2" = memcheck ]; then
echo '========= Invalid __global__ write of size 4 bytes'
echo '=========     at void weigh_pixels(const float *)+0x30'
echo '========= ERROR SUMMARY: 1 error'; exit 0; fi
echo '========= ERROR SUMMARY: 0 errors'
"""


def test_sanitizers(device, program, monkeypatch, tmp_path, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(gpu_checks, "sanitizer", lambda: None)
        code, found = program("sanitize")
        assert code == 0 and found["skipped"] == "compute-sanitizer is not installed"
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_checks, "sanitizer", lambda: str(tool))
    code, found = program("sanitize")
    assert code == 1 and len(found["rows"]) == 4
    rows = [(r["errors"], r["ours"]) for r in found["rows"]]
    assert rows == [(1, ["weigh_pixels"]), (0, []), (0, []), (0, [])]
    gpu_checks.run_cases("drizzle_weights", device)
    assert "drizzle_weights: drizzle_weights " in capsys.readouterr().out


def test_what_takes_too_long_is_stopped():
    code, text = gpu_checks.call(["bash", "-c", "echo begun; sleep 60"], 0.5)
    assert code is None and text == "begun\n\nstopped after 0 s"


def test_the_gpu_is_named(device, program, monkeypatch, capsys):
    assert common.where()["gpu"]["name"] == "Emulated"
    assert program("name")[0] == 0
    assert capsys.readouterr().out.endswith("-gpu-emulated.json\n")
    monkeypatch.setenv("GPUCORON_COMMIT", "abc1234")
    monkeypatch.setattr("common.ROOT", Path("/"))
    assert common.where()["commit"] == "abc1234"
