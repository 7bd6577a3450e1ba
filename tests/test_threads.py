import numpy as np
import pytest

from gpucoron.errors import UsageError
from gpucoron.threads import default_threads, limited_to


def test_all_pools_get_the_number_and_their_own_back():
    import numba
    import scipy.fft
    from threadpoolctl import threadpool_info

    before = numba.get_num_threads(), scipy.fft.get_workers()
    np.ones((2, 2)) @ np.ones((2, 2))
    with limited_to(1) as n:
        assert n == numba.get_num_threads() == scipy.fft.get_workers() == 1
        assert {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"} == {1}
    assert (numba.get_num_threads(), scipy.fft.get_workers()) == before


def test_environment_limits_the_default(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert default_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "garbage")
    assert default_threads() >= 1


@pytest.mark.parametrize("n", [0, -3, 10_000])
def test_impossible_numbers_are_refused(n):
    with pytest.raises(UsageError, match=f"threads is {n}, expected 1 to"), limited_to(n):
        pass
