"""Every kernel under memory and undefined-behaviour checks, and without each of its barriers."""

import math

import pytest

from gpucoron.backend import cuda
from tests.helpers import device_fixture, nvrtc, run_cases
from tests.helpers.cuda_on_host import build, sanitized
from tests.helpers.kernel_cases import CASES
from tests.helpers.processes import python

FILES = [path.stem for path in cuda.kernel_files()]
MISSING = device_fixture.why_no_emulation()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.parametrize("file", FILES),
]


def test_the_cases_launch_every_instantiation_in_blocks_it_allows(file):
    assert CASES[file], f"tests/helpers/kernel_cases.py has no case for {file}.cu"
    for emulation, _ in run_cases.each_case(file):
        launches = {launch for launch in emulation.launches if launch[0] == file}
    source, names = cuda.read_kernels(file)
    assert {name for _, name, _, _ in launches} == set(names)
    if nvrtc.find():
        bounds = nvrtc.compile_kernels(source, 75, names, cuda.OPTIONS)["kernels"]
        for _, name, _, block in launches:
            assert math.prod(block) <= bounds[name]["threads"], f"{name} in blocks of {block}"


def test_nothing_is_read_or_written_out_of_bounds(file):
    said = sanitized.call("tests.helpers.run_cases:sanitized", file)
    assert not said, said


def test_float_kernels_compute_in_float(file):
    source, names = cuda.read_kernels(file)
    names = [name for name in names if "float" in name and "double" not in name]
    build.check(file, source, names, build.NO_STRAY_DOUBLE)


def test_every_barrier_is_missed_when_it_is_not_there(file):
    done = python("-m", "tests.helpers.run_cases", file, cwd=sanitized.ROOT, timeout=3600)
    assert done.returncode == 0, done.stderr
    assert not done.stdout, f"nobody misses these barriers: {done.stdout}"
