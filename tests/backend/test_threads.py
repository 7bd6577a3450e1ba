import numpy as np
import pytest
import scipy.fft
from threadpoolctl import threadpool_info

from gpucoron.backend.device import cpu_threads
from gpucoron.backend.threads import current_threads, default_threads, limited_to
from gpucoron.errors import UsageError
from tests.helpers.processes import python
from tests.helpers.tiny_sets import TinySet


def test_all_pools_get_the_number_and_their_own_back():
    before = current_threads(), scipy.fft.get_workers()
    np.ones((2, 2)) @ np.ones((2, 2))
    with limited_to(1) as n:
        assert n == current_threads() == scipy.fft.get_workers() == 1
        assert {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"} == {1}
    assert (current_threads(), scipy.fft.get_workers()) == before


def test_environment_limits_the_default(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert default_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "garbage")
    assert default_threads() >= 1


@pytest.mark.parametrize("n", [0, -3, 10_000])
def test_impossible_numbers_are_refused(n):
    with pytest.raises(UsageError, match=f"threads is {n}, expected 1 to"), limited_to(n):
        pass


@pytest.mark.slow
def test_a_run_does_not_start_numbas_own_pool(tmp_path):
    """A fork that is killed while it does so locks out its relatives."""
    code = (
        "import sys; from gpucoron.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "from numba.np.ufunc import parallel\n"
        "sys.exit(parallel._is_initialized)"
    )
    tiny = TinySet(tmp_path)
    done = python("-c", code, tiny.asn, "-q", "--output-dir", tmp_path, "--threads", cpu_threads())
    assert done.returncode == 0
