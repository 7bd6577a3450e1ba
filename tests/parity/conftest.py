"""Each set goes through jwst and gpucoron once per session; the tests look at what came of it."""

import os
import pickle
import time
from importlib.util import find_spec

import pytest

from gpucoron.verify import verify

SIMULATED = {"shape": (80, 80), "n_science": 2, "n_integrations": 2, "n_references": 3,
             "n_reference_integrations": 2, "seed": 7}
SETS = ("nircam_small", "miri_4qpm", "aumic_f444w", "awkward", "simulated-nircam",
        "simulated-miri-4qpm")


class Comparison:
    """One set's report, and the folders that it is about."""

    def __init__(self, name, folder, report):
        self.name, self.report = name, report
        self.ours, self.theirs = folder / "gpucoron", folder / "jwst"

    def images(self, product, *hdus):
        found = [i for i in self.report.images
                 if i.product == product and (not hdus or i.hdu in hdus)]
        assert found, f"no {product} {hdus} was compared"
        return found

    def pairs(self, suffix):
        """Paths of ours and jwst's product, one pair a file."""
        ours = sorted(self.ours.glob(f"*_{suffix}.fits"))
        assert ours
        return [(path, self.theirs / path.name) for path in ours]


def _input(name, request, folder):
    if name.startswith("simulated-"):
        from gpucoron.simulate import simulate

        made = simulate(folder, name.removeprefix("simulated-"), **SIMULATED)
        return made.asn, made.psfmask
    data = request.getfixturevalue("shared_data")
    mask = data / name / "psfmask.fits"
    if name == "aumic_f444w":
        mask = data / "psfmask" / "jwst_nircam_psfmask_0019.fits"
    return next((data / name).glob("*_asn.json")), mask


def _once(folder, make):
    """Return what `make(folder)` gives, made by whichever test process comes first."""
    done = folder / "result.pickle"
    try:
        folder.mkdir()
    except FileExistsError:
        for _ in range(6000):
            if done.exists():
                break
            time.sleep(0.1)
        result = pickle.loads(done.read_bytes())
    else:
        try:
            result = make(folder)
        except Exception as problem:
            result = problem
        partial = folder / "result.part"
        partial.write_bytes(pickle.dumps(result))
        partial.rename(done)
    if isinstance(result, Exception):
        raise result
    return result


@pytest.fixture(
    scope="session",
    params=[pytest.param(s, marks=pytest.mark.xdist_group(f"parity-{s}")) for s in SETS])
def comparison(request, tmp_path_factory):
    """A `Comparison`, one set after the other."""
    if find_spec("jwst") is None:
        pytest.skip("the jwst package is not installed (it is part of the test extras)")
    if not request.param.startswith("simulated-"):
        request.getfixturevalue("shared_data")
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(folder):
        asn, psfmask = _input(request.param, request, folder / "simulated")
        return verify(asn, folder / "verify", psfmask=psfmask)

    folder = root / f"parity-{request.param}"
    return Comparison(request.param, folder / "verify", _once(folder, make))
