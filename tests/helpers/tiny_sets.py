"""A small simulated association, copied and spoilt by the tests of whole runs."""

import functools
import hashlib
import json
import os
import shutil
import sys
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
NAME = "jw09100-c1001_t001_nircam_f444w-maskrnd-sub320a335r"  # of its product
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

    def split(self, *names):
        """Make a product of each science exposure and all references; None leaves out the name."""

        def change(content):
            members = content["products"][0]["members"]
            content["products"] = [
                {"name": name, "members": [m for m in members if m["expname"] not in others]}
                for k, name in enumerate(names)
                for others in [[p.name for p in self.science[:k] + self.science[k + 1 :]]]
            ]
            if None in names:
                del content["products"][names.index(None)]["name"]

        self.edit_asn(change)

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

    def fork(self, *words, err=os.devnull, before=lambda: None):
        """Run the command in a fork of this process, which has everything imported and compiled.

        Its standard error goes to a file; `before` is called in it first. Return its process ID.
        """
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                before()
                sys.stderr = open(err, "w", buffering=1)
                os.dup2(sys.stderr.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                code = self.command(*words)
            finally:
                os._exit(code)
        return pid

    def record(self):
        """Return the contents of the only record in the output folder."""
        (path,) = self.out.glob("*_run.json")
        return json.loads(path.read_text())

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


def checksums(path):
    """Return CHECKSUM of every HDU of a product by name."""
    with fits.open(path) as hdus:
        return {hdu.name: hdu.header["CHECKSUM"] for hdu in hdus}


def wait(pid):
    """Wait for the end of a fork; return its exit code, -N after signal N."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def only_error(err):
    """Return the one line that reports an error, which is the last."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1 and lines[0] == err.splitlines()[-1]
    assert lines[0].startswith("gpucoron: error: ") and "internal error" not in lines[0]
    return lines[0]
