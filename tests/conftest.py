"""Fixtures for the whole suite."""

import itertools
import os
import zlib
from pathlib import Path

import pytest

from tests.helpers import chance, schedule

# Test processes beside each other share the processors: pools as large as the machine would wait
# for each other most of the time. Counts before anything loads the BLAS.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))

# The orders in which the emulated GPU runs its threads. A test runs in one of them, chosen by its
# name; in all where it is asked for (file.py::test) and with GPUCORON_ALL_ORDERS=1, as once a week.
# What is about the order itself is in tests/emulation.
ORDERS = ("host-forward", "host-backward", "host-shuffled")

#: The files with tests, and those with tests on a GPU, whether or not there is one.
COLLECTED = pytest.StashKey[tuple[set[str], set[str]]]()

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
        *ORDERS,
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request):
    """Where a test computes: `device.call(function, ...)` takes arrays there and the result back.

    "cpu" is NumPy in and out. "host-forward", "host-backward" and "host-shuffled" run the CUDA
    kernels' own source on the CPU, with the threads in that order, one of the three for a test (see
    ORDERS); "cuda" runs them on a GPU.
    """
    from tests.helpers import device_fixture

    with device_fixture.make(request.param) as made:
        yield made


def pytest_report_header(config):
    """Say once why there is no GPU, instead of in every test that wants one; and the seed."""
    from tests.helpers import device_fixture

    missing = device_fixture.why_no_gpu()
    gpu = f"no GPU, tests on one are left out: {missing}" if missing else "tests run on a GPU, too"
    return [gpu, f"GPUCORON_TEST_SEED={chance.SEED} repeats what is drawn at random"]


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config, items):
    """Mark what runs on a GPU; leave out what has none to run on, and further orders of threads."""
    from tests.helpers import device_fixture

    for item in filter(_on_cuda, items):
        item.add_marker(pytest.mark.gpu)
    config.stash[COLLECTED] = (
        {_file(item) for item in items},
        {_file(item) for item in items if item.get_closest_marker("gpu")},
    )
    named = any("::" in word for word in config.args)
    if not named and not os.environ.get("GPUCORON_ALL_ORDERS"):
        _leave_out(config, items, _in_another_order)
    if device_fixture.why_no_gpu():
        _leave_out(config, items, lambda item: item.get_closest_marker("gpu"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        schedule.arrange(items)


def _in_another_order(item):
    """Whether a test of `device` runs the threads in an order other than that of its name."""
    order = item.callspec.params.get("device") if hasattr(item, "callspec") else None
    if "device" not in item.fixturenames or order not in ORDERS or not _has_all_orders(item):
        return False
    name = item.nodeid.replace(order, "")
    return order != ORDERS[zlib.crc32(name.encode()) % len(ORDERS)]


def _has_all_orders(item):
    """Whether a test takes its devices from the fixture, and not from a list of its own."""
    return not any(
        "device" in str(mark.args[0]).split(",") for mark in item.iter_markers("parametrize")
    )


def _leave_out(config, items, unwanted):
    config.hook.pytest_deselected(items=list(filter(unwanted, items)))
    items[:] = itertools.filterfalse(unwanted, items)


def _file(item):
    return item.nodeid.partition("::")[0]


def _on_cuda(item):
    return hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda"


@pytest.hookimpl(trylast=True)  # after the report has gone to who collects them
def pytest_runtest_logreport(report):
    """Leave a process whose CUDA context a failed test has ruined: all after it would fail, too."""
    if report.failed and "gpu" in report.keywords and "PYTEST_XDIST_WORKER" in os.environ:
        from tests.helpers import device_fixture

        if device_fixture.gpu_is_lost():
            os._exit(70)  # xdist starts another one
