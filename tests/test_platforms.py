"""The package where Unix's modules and functions are missing, as on Windows."""

import os
import sys

import numpy as np
import psutil
from astropy.io import fits

import gpucoron
from gpucoron.backend import device
from gpucoron.io import files
from tests.helpers.processes import python
from tests.helpers.tiny_sets import TinySet, one_thread  # noqa: F401

MODULES = "fcntl resource pwd grp termios".split()
#: What gpucoron uses of the os module where it is there, and Windows has not.
FUNCTIONS = (
    "O_NOFOLLOW O_NONBLOCK fdatasync getuid pathconf posix_fadvise pwrite sched_getaffinity "
    "set_blocking sysconf"
).split()
HIDE = f"""
import os, sys
import psutil  # which has its own ways on each system
sys.modules |= dict.fromkeys({MODULES})
for name in {FUNCTIONS}:
    if hasattr(os, name):
        delattr(os, name)
"""


def test_every_module_is_imported():
    code = """
import importlib, pkgutil, gpucoron
for module in pkgutil.walk_packages(gpucoron.__path__, "gpucoron."):
    if module.name not in ("gpucoron.__main__", "gpucoron.verify.run_jwst"):
        importlib.import_module(module.name)
        print(module.name)
"""
    done = python("-W", "ignore::UserWarning:filelock", "-c", HIDE + code)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 100


def test_a_run_gives_the_same_products(tmp_path):
    tiny = TinySet(tmp_path)
    options = ["--psfmask", tiny.mask, "--set", "klip.truncate=2", "--device", "cpu"]
    code = "import runpy; runpy.run_module('gpucoron', run_name='__main__')"
    words = (tiny.asn, *options, "--output-dir", tmp_path / "hidden")
    done = python("-W", "ignore::UserWarning:filelock", "-c", HIDE + code, *words)
    assert done.returncode == 0, done.stderr
    options = {"device": "cpu", "psfmask": tiny.mask, "klip_truncate": 2}
    written = gpucoron.run(tiny.asn, output_dir=tiny.out, **options).files
    names = {path.name for path in written if path.suffix == ".fits"}
    assert len(names) == 11
    assert names == {path.name for path in (tmp_path / "hidden").glob("*.fits")}
    for name in names:
        with fits.open(tiny.out / name) as ours, fits.open(tmp_path / "hidden" / name) as theirs:
            found = [np.asarray(hdu.data).tobytes() for hdu in theirs if hdu.name != "ASDF"]
            assert found == [np.asarray(hdu.data).tobytes() for hdu in ours if hdu.name != "ASDF"]
    assert not list((tmp_path / "hidden").glob(".*")), "locks and temporary files are gone"


def test_memory_without_proc_is_that_of_psutil(monkeypatch):
    total, free = device.memory()
    monkeypatch.setattr(device, "_read", lambda path: "")
    assert device.memory()[0] == psutil.virtual_memory().total >= total
    assert abs(device.memory()[1] - psutil.virtual_memory().available) < 0.2 * total
    assert free > 0


def test_peak_memory(monkeypatch):
    peak = device.peak_memory()
    assert psutil.Process().memory_info().rss <= peak < psutil.virtual_memory().total
    np.ones(peak // 4)  # twice as much
    assert device.peak_memory() > 1.5 * peak
    monkeypatch.setattr(device, "_read", lambda path: "")
    assert device.peak_memory() > 1.5 * peak  # by `resource`
    monkeypatch.setitem(sys.modules, "resource", None)
    assert device.peak_memory() >= psutil.Process().memory_info().rss


def test_writing_at_an_offset_by_seeking(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "pwrite", raising=False)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert files.pwrite(descriptor, b"there", 6) == 5
    assert files.pwrite(descriptor, memoryview(b"hello "), 0) == 6
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"hello there"
