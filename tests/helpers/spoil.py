"""What is done to the small association before a run, as cases of bad and of odd input name it."""

import numpy as np
from astropy.io import fits

NAN, INF = np.nan, np.inf
IMAGES = ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
VARIANCES = IMAGES[3:]
OPTIONS = ("-q", "--set", "klip.truncate=3")


def put(value, *index):
    """Return a function that puts a value into an array, everywhere or at an index."""

    def change(array):
        array = array.copy()
        array[index or ...] = value
        return array

    return change


def read(tiny, suffix):
    """Return {name: {HDU: data}} of the products of a kind."""
    found = {}
    for path in sorted(tiny.out.glob(f"*_{suffix}.fits")):
        with fits.open(path, memmap=False) as hdus:
            found[path.name] = {h.name: h.data for h in hdus}
    return found


def named(tiny, name):
    """Return the files that a name such as "sci0", "psf" (all of them) or "mask" stands for."""
    if name in ("asn", "mask"):
        return [getattr(tiny, name)]
    paths = {"sci": tiny.science, "psf": tiny.psf}[name[:3]]
    return [paths[int(name[3:])]] if name[3:] else paths


# What prepares a case: a function of the set; it may return options.


def edit(*which, **changes):
    """Edit the exposures of those names; all by default."""
    return lambda tiny: tiny.edit(*(p for name in which for p in named(tiny, name)), **changes)


def content(name, change):
    """Put other bytes into a file, which may be those that a function makes of the old ones."""

    def prepare(tiny):
        (path,) = named(tiny, name)
        path.write_bytes(change(path.read_bytes()) if callable(change) else change)

    return prepare


def lost(name):
    return lambda tiny: named(tiny, name)[0].unlink()


def only(*names):
    """Keep the members of those names."""
    return lambda tiny: tiny.members(lambda n: n in [p.name for k in names for p in named(tiny, k)])


def psfmask(change):
    """Edit the psfmask and use it."""
    return lambda tiny: tiny.edit(tiny.mask, SCI=change) or ["--psfmask", tiny.mask]


def given(options):
    """Give options, in which INPUT stands for the folder."""
    return lambda tiny: options.replace("INPUT", str(tiny.folder)).split()


def without_psf(*options):
    """Give options, and leave out every psf member by --exclude-reference."""
    return lambda tiny: [*options, *(f"--exclude-reference={p.name}" for p in tiny.psf)]


def out(name, make=lambda path: None):
    """Write into another folder."""

    def prepare(tiny):
        make(tiny.out)
        tiny.out = tiny.out / name

    return prepare


def both(*prepares):
    """Do one after another; return what the last returns."""
    return lambda tiny: [prepare(tiny) for prepare in prepares][-1]


def prepared(case, tiny):
    """Prepare a case; return its options."""
    options = case.prepare(tiny)
    return options if isinstance(options, list) else ()
