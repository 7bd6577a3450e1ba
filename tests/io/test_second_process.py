import logging
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from gpucoron.errors import ExposureError
from gpucoron.io import second_process as second
from gpucoron.io.exposures import read_exposure
from gpucoron.io.wcs import pixel_map, read_wcs
from tests.io.product_tools import grid

log = logging.getLogger("gpucoron")


def process_id(unused=None):
    return os.getpid()


def fails(where):
    raise ExposureError(f"here: {os.getpid() == where}")


def warns(text):
    log.warning(text)
    return os.getpid()


@pytest.fixture
def beside():
    with second.second_process():
        yield


def test_one_process_serves_a_block_and_ends_with_it(beside):
    other = second.in_second_process(process_id)
    assert other != os.getpid() and other == second.in_second_process(process_id, 1)
    with second.second_process():  # the one that is there
        assert second.in_second_process(process_id) == other
    assert second.in_second_process(process_id) == other


def test_without_one_and_after_its_end_the_work_is_done_here(beside):
    own = os.getpid()
    second._second._process.kill()
    assert second.in_second_process(process_id) == second.in_second_process(process_id) == own


def test_errors_and_warnings_are_those_of_this_process(beside, caplog):
    with pytest.raises(ExposureError, match="here: True"):
        second.in_second_process(fails, os.getpid())
    assert second.in_second_process(warns, "odd") == os.getpid()
    assert [r.message for r in caplog.records] == ["odd"]
    assert second.in_second_process(process_id) != os.getpid()  # it goes on


def test_a_wcs_is_the_same_there(beside, tiny):
    found, values = read_exposure(tiny.science[0], "science", pixels=False), []
    wcs = read_wcs(found.asdf_bytes, "x")
    for _ in range(2):
        sky = pixel_map(wcs, grid(), found.shape)
        values.append((sky, wcs.full_box(), wcs.sky_to_pixel(150.2, -30.4)))
        second._second.stop()
    for there, here in zip(*values, strict=True):
        np.testing.assert_array_equal(there, here)
    assert np.isfinite(values[0][0]).all()


def test_it_ends_when_the_first_process_is_killed():
    code = (
        "from gpucoron.io import second_process as s\n"
        "with s.second_process():\n"
        "    print(s._second._process.pid, flush=True); input()"
    )
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as first:
        other = int(first.stdout.readline())
        first.kill()
    end = time.monotonic() + 20
    while _runs(other):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
