"""Fixtures for the whole suite."""

import os
from pathlib import Path

import pytest

# Test processes beside each other share the processors: pools as large as the machine would wait
# for each other most of the time. Counts before anything loads the BLAS.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real and synthetic exposures beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no test data at {SHARED.name}: the folder ../shared/data is absent")
    return SHARED


@pytest.fixture
def tiny(tmp_path):
    """A small simulated association to do things to."""
    from tests.helpers.tiny_sets import TinySet

    return TinySet(tmp_path)


@pytest.fixture(autouse=True)
def no_proof(monkeypatch):
    """Leave out the package's proof on a GPU: `--device auto` does the same with one and without.

    tests/bench/test_proof.py looks at the file itself.
    """
    monkeypatch.setattr("gpucoron.backend.device.proof", lambda: None)


@pytest.fixture(
    params=[
        "cpu",
        "host-forward",
        pytest.param("host-backward", marks=pytest.mark.slow),
        pytest.param("host-shuffled", marks=pytest.mark.slow),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request):
    """Where a test computes: `device.call(function, ...)` takes arrays there and the result back.

    "cpu" is NumPy in and out. "host-forward", "host-backward" and "host-shuffled" run the CUDA
    kernels' own source on the CPU, with the threads in that order (the last two are slow tests);
    "cuda" runs them on a GPU.
    """
    from tests.helpers import device_fixture

    with device_fixture.make(request.param) as made:
        yield made


def pytest_report_header(config):
    """Say once why there is no GPU, instead of in every test that wants one."""
    from tests.helpers import device_fixture

    missing = device_fixture.why_no_gpu()
    return f"no GPU, tests on one are left out: {missing}" if missing else "tests run on a GPU, too"


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config, items):
    """Mark what runs on a GPU, and leave it out where there is none."""
    from tests.helpers import device_fixture

    for item in filter(_on_cuda, items):
        item.add_marker(pytest.mark.gpu)
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and device_fixture.why_no_gpu():
        config.hook.pytest_deselected(items=wanting)
        items[:] = [item for item in items if item not in wanting]


def _on_cuda(item):
    return hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda"


@pytest.hookimpl(trylast=True)  # after the report has gone to who collects them
def pytest_runtest_logreport(report):
    """Leave a process whose CUDA context a failed test has ruined: all after it would fail, too."""
    if report.failed and "gpu" in report.keywords and "PYTEST_XDIST_WORKER" in os.environ:
        from tests.helpers import device_fixture

        if device_fixture.gpu_is_lost():
            os._exit(70)  # xdist starts another one
