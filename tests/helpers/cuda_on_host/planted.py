"""Runs the kernel of planted.cu."""

from pathlib import Path

import numpy as np

from gpucoron.backend.cuda import paste_includes
from tests.helpers.cuda_on_host import build
from tests.helpers.cuda_on_host.launcher import HostModule

FILE = Path(__file__).with_name("planted.cu")
WRONG = ("NONE", "NO_BARRIER", "NAN_BRANCH")
OUT_OF_BOUNDS = ("NONE", "FAR_WRITE", "SHORT_SHARED", "FAR_REGISTER")
ROWS, COLUMNS, THREADS = 3, 77, 64


def source():
    return paste_includes(FILE)


def names(dtype, bugs):
    return [f"finite_means<{dtype}, {bug}>" for bug in bugs]


def means(bug, dtype="float", flags=build.PLAIN, shared=COLUMNS, **order):
    """Return what the kernel makes of some rows with NaN, and what is right."""
    rng = np.random.default_rng(5)
    rows = rng.normal(10, 1, (ROWS, COLUMNS)).astype({"float": "f4", "double": "f8"}[dtype])
    rows[rng.random(rows.shape) < 0.2] = np.nan
    rows[1] = np.nan
    out = np.zeros(ROWS, rows.dtype)
    bugs = WRONG if bug in WRONG and flags != build.SANITIZED else OUT_OF_BOUNDS
    module = HostModule("planted", source(), names(dtype, bugs), flags)
    module.get_function(f"finite_means<{dtype}, {bug}>")(
        (ROWS,), (THREADS,), (rows, np.int32(COLUMNS), out), shared * rows.itemsize, **order
    )
    right = [np.mean(row[~np.isnan(row)]) if k != 1 else np.nan for k, row in enumerate(rows)]
    return out, np.array(right)


def sanitized(bug, shared=str(COLUMNS)):
    """For a process with the sanitizers."""
    got, right = means(bug, flags=build.SANITIZED, shared=int(shared))
    np.testing.assert_allclose(got, right, rtol=1e-6)
