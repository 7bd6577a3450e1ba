"""Each set goes through jwst and gpucoron once; the tests look at the products and the report."""

import functools

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.simulate import simulate
from gpucoron.verify import verify
from tests.conftest import SHARED
from tests.helpers import chance

SIMULATED = {
    **{"shape": (80, 80), "seed": 7, "n_science": 2, "n_integrations": 2},
    **{"n_references": 3, "n_reference_integrations": 2},
}
#: What is simulated anywhere, beside the sets of ../shared/data.
OPTIONS = {
    "simulated-nircam": SIMULATED,
    "simulated-miri-4qpm": SIMULATED | {"instrument": "miri-4qpm"},
    "simulated-awkward": {
        **{"shape": (64, 72), "seed": 7, "filter": "F410M"},
        **{"n_science": 3, "n_integrations": (3, 1, 2)},
        **{"n_references": 4, "n_reference_integrations": (2, 3, 1, 2)},
    },
}
MASKS = {
    "nircam_small": "nircam_small/psfmask.fits",
    "miri_4qpm": "miri_4qpm/psfmask.fits",
    "aumic_f444w": "psfmask/jwst_nircam_psfmask_0019.fits",
    "awkward": "awkward/psfmask.fits",
}
#: Of the sets that are not run with the defaults. All kernels: tests/steps/test_resample.py.
LANCZOS = {"resample.kernel": "lanczos3", "resample.pixel_scale_ratio": 0.7}
PARAMETERS = {"nircam_small": LANCZOS, "simulated-nircam": LANCZOS}
#: Simulated ones stand for those of ../shared/data where these are not; weekly, all are run.
NAMES = [*MASKS, *(OPTIONS if chance.EVERYTHING or not SHARED.is_dir() else ())]


class Comparison:
    """One set's report, and the folders that it is about."""

    def __init__(self, name, folder, report):
        self.name, self.report = name, report
        self.ours, self.theirs = folder / "gpucoron", folder / "jwst"

    def pairs(self, suffix):
        """Paths of ours and jwst's product, one pair a file."""
        ours = sorted(self.ours.glob(f"*_{suffix}.fits"))
        assert ours
        return [(path, self.theirs / path.name) for path in ours]


def simulated(name, folder):
    """Simulate a set of `OPTIONS`; return its association and psfmask."""
    made = simulate(folder, **OPTIONS[name])
    if name == "simulated-awkward":  # the last integration of the second reference has no pixel
        with fits.open(made.psf[1], mode="update") as hdus:
            hdus["SCI"].data[-1] = np.nan
    return made.asn, made.psfmask


@pytest.fixture(scope="session")
def compare(tmp_path_factory):
    """A function that runs jwst and gpucoron on a set, once, and returns its `Comparison`."""

    @functools.cache
    def compare(name, data=None):
        folder = tmp_path_factory.mktemp(name)
        if name in OPTIONS:
            asn, psfmask = simulated(name, folder / "input")
        else:
            asn, psfmask = next((data / name).glob("*_asn.json")), data / MASKS[name]
        sets = [f"{key}={value}" for key, value in PARAMETERS.get(name, {}).items()]
        report = verify(asn, folder / "verify", psfmask=psfmask, sets=sets)
        return Comparison(name, folder / "verify", report)

    return compare


@pytest.fixture(params=NAMES)
def comparison(request, compare):
    """A `Comparison`, one set after the other."""
    pytest.importorskip("jwst", reason="the jwst package is not installed (extra jwst)")
    if request.param in OPTIONS:
        return compare(request.param)
    return compare(request.param, request.getfixturevalue("shared_data"))
