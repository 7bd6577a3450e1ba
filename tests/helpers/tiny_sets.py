"""A small simulated association, copied and spoilt by the tests of whole runs."""

import functools
import hashlib
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from astropy.io import fits

from gpucoron.backend.threads import set_threads
from gpucoron.cli import main as cli
from gpucoron.simulate import simulate

SHAPE = (36, 40)
N_SCIENCE = (3, 2)  # integrations of the science exposures
N_REFERENCES = (2, 1, 2)
NOTHING_ELSE = {"planets": (), "disk": False, "n_optical_states": 1}


@functools.cache
def simulated(instrument="nircam", seed=11):
    """Simulate two science and three reference exposures, once a process."""
    folder = tempfile.TemporaryDirectory(prefix="gpucoron-tests-")
    science = {"n_science": 2, "n_integrations": N_SCIENCE}
    references = {"n_references": 3, "n_reference_integrations": N_REFERENCES}
    options = {"shape": SHAPE, **science, **references, **NOTHING_ELSE}
    made = simulate(folder.name, instrument, seed, **options)
    return SimpleNamespace(made=made, folder=folder)  # which is removed when the process ends


class TinySet:
    """A copy of `simulated` to do things to."""

    def __init__(self, folder: Path, instrument="nircam"):
        made = simulated(instrument).made
        self.folder = folder / "input"
        shutil.copytree(made.directory, self.folder)
        self.out = folder / "out"
        self.asn, self.mask = self.folder / made.asn.name, self.folder / made.psfmask.name
        self.science = [self.folder / p.name for p in made.science]
        self.psf = [self.folder / p.name for p in made.psf]

    def edit(self, *paths, **changes):
        """Change exposures: SCI=function of the array, or KEYWORD=value (None removes it).

        The name of an HDU with None removes the HDU; a function may return another array.
        """
        for path in paths or (*self.science, *self.psf):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with fits.open(path, memmap=False) as hdus:
                    for name, change in changes.items():
                        _change(hdus, name, change)
                    hdus.writeto(path, overwrite=True)

    def edit_asn(self, change):
        """Let a function change the association's contents."""
        content = json.loads(self.asn.read_text())
        self.asn.write_text(json.dumps(change(content) or content))

    def members(self, keep):
        """Keep the members of which `keep` (of file name) is true."""

        def change(content):
            product = content["products"][0]
            product["members"] = [m for m in product["members"] if keep(m["expname"])]

        self.edit_asn(change)

    def sums(self):
        """Return the checksum of every input file."""
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in self.folder.iterdir()}

    def words(self, *options):
        """Return ``ASN --device cpu --output-dir OUT`` and more options."""
        words = (self.asn, "--device", "cpu", "--output-dir", self.out, *options)
        return [str(word) for word in words]

    def command(self, *options):
        """Run gpucoron with those words; return the exit code."""
        return cli.main(self.words(*options))

    def files(self):
        """Return the names of all files in the output folder, hidden too, but the run's record."""
        return sorted(p.name for p in self.out.rglob("*") if not p.name.endswith("_run.json"))


def _change(hdus, name, change):
    if name in [h.name for h in hdus]:
        if change is None:
            del hdus[name]
        else:
            hdus[name].data = change(hdus[name].data)
        return
    for hdu in hdus:
        if name in hdu.header:
            if change is None:
                del hdu.header[name]
            else:
                hdu.header[name] = change
            return
    raise KeyError(name)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Keep threads from waiting for each other on a machine that is busy otherwise."""
    set_threads(1)
    yield
    set_threads(None)


def complete(path):
    """Assert that a product is whole: its checksums are right and its size is as claimed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True) as hdus:
            for hdu in hdus:
                assert hdu.verify_checksum() == hdu.verify_datasum() == 1
                hdu.data
