"""Each set goes through jwst and gpucoron once per session; the tests look at what came of it."""

import os
import pickle
import time
from importlib.util import find_spec

import pytest

from gpucoron.verify import verify
from tests.conftest import SHARED

SIMULATED = {
    "shape": (80, 80),
    "n_science": 2,
    "n_integrations": 2,
    "n_references": 3,
    "n_reference_integrations": 2,
    "seed": 7,
}
SETS = (
    "nircam_small",
    "miri_4qpm",
    "aumic_f444w",
    "awkward",
    "simulated-nircam",
    "simulated-miri-4qpm",
)


class Comparison:
    """One set's report, and the folders that it is about."""

    def __init__(self, name, folder, report):
        self.name, self.report = name, report
        self.ours, self.theirs = folder / "gpucoron", folder / "jwst"

    def images(self, product, *hdus):
        found = [
            i for i in self.report.images if i.product == product and (not hdus or i.hdu in hdus)
        ]
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


class _Shared:
    """Results that several test processes share: each is made once, by whoever comes first."""

    def __init__(self, root, make):
        self.root, self.make = root, make

    def get(self, name, wanted):
        """Return a result; while another process makes it, make others that will be `wanted`."""
        done = self._folder(name) / "result.pickle"
        for other in (name, *wanted):
            if not done.exists():
                self._try(other)
        for _ in range(6000):
            if done.exists():
                break
            time.sleep(0.1)
        result = pickle.loads(done.read_bytes())
        if isinstance(result, Exception):
            raise result
        return result

    def _folder(self, name):
        return self.root / f"parity-{name}"

    def _try(self, name):
        """Make a result unless some process has begun it."""
        folder = self._folder(name)
        try:
            folder.mkdir()
        except FileExistsError:
            return
        try:
            result = self.make(name, folder)
        except Exception as problem:
            result = problem
        (folder / "result.part").write_bytes(pickle.dumps(result))
        (folder / "result.part").rename(folder / "result.pickle")


def _wanted(session):
    """Return the sets that this session's tests ask for."""
    found = [getattr(item, "callspec", None) for item in session.items]
    names = {c.params["comparison"] for c in found if c and "comparison" in c.params}
    return [name for name in SETS if name in names]


@pytest.fixture(
    scope="session",
    params=[pytest.param(s, marks=pytest.mark.xdist_group(f"parity-{s}")) for s in SETS],
)
def comparison(request, tmp_path_factory):
    """A `Comparison`, one set after the other."""
    if find_spec("jwst") is None:
        pytest.skip("the jwst package is not installed (extra jwst)")
    if not request.param.startswith("simulated-"):
        request.getfixturevalue("shared_data")
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(name, folder):
        asn, psfmask = _input(name, request, folder / "simulated")
        return verify(asn, folder / "verify", psfmask=psfmask)

    wanted = [n for n in _wanted(request.session) if n.startswith("simulated-") or SHARED.is_dir()]
    report = _Shared(root, make).get(request.param, wanted)
    return Comparison(request.param, root / f"parity-{request.param}" / "verify", report)
