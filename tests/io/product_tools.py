"""Exposures, an output grid and a provenance for the tests of products."""

import json
import types

import numpy as np
from astropy.io import fits

from gpucoron.io.exposures import read_exposure
from gpucoron.io.products import Provenance
from gpucoron.io.wcs import OutputWcs
from gpucoron.steps.resample import ResampledImage

FITS_FIELDS = np.dtype(
    [("sci_integration", "i4"), ("ref_plane", "i4")]
    + [(name, "f8") for name in ("x", "y", "beta", "x_err", "y_err", "beta_err", "residual")]
    + [("status", "i2"), ("n_iter", "i2")]
)


class Set:
    """One association of the shared data: its exposures and what products are to say of it."""

    def __init__(self, folder, preset=None):
        self.path = next(folder.glob("*asn.json"))
        asn = json.loads(self.path.read_text())
        members = asn["products"][0]["members"]
        self.science, self.psf = (
            [read_exposure(folder / m["expname"], kind) for m in members if m["exptype"] == kind]
            for kind in ("science", "psf")
        )
        self.name = asn["products"][0].get("name", "product")
        parameters = {"klip.truncate": 50, "resample.kernel": "square", "resample.pixfrac": 1.0}
        parameters |= {"resample.weight_type": "ivm", "resample.fillval": "NAN"}
        self.provenance = Provenance(
            version="9.8.7",
            device="cpu",
            asn_id=asn["asn_id"],
            asn_table=self.path.name,
            asn_pool=asn.get("asn_pool"),
            inputs=tuple(m["expname"] for m in members),
            parameters=parameters if preset is None else {"preset": preset, **parameters},
            psfmask="psfmask.fits",
        )
        stacks = [e.stack for e in self.psf]
        names = ("data", "err", "dq")
        arrays = {name: np.concatenate([getattr(s, name) for s in stacks]) for name in names}
        arrays["sources"] = tuple(source for s in stacks for source in s.sources)
        self.references = types.SimpleNamespace(**arrays)


def grid(shape=(40, 50)):
    """Return an output grid: north up, 1.5 times the NIRCam pixel."""
    corners = "150.1 -30.5 150.3 -30.5 150.3 -30.3 150.1 -30.3"
    place = ((24.5, 19.25), (150.2, -30.4), (2.6e-5, 2.6e-5), ((-1.0, 0.0), (0.0, 1.0)))
    return OutputWcs(shape, *place, 0.0936, 1.5, s_region=f"POLYGON ICRS  {corners}")


def resampled(shape, seed=1):
    """Return plausible arrays of a resampled image."""
    random = np.random.default_rng(seed)
    planes = {
        name: random.random(shape, dtype=np.float32)
        for name in ("data", "err", "wht", "var_poisson", "var_rnoise", "var_flat")
    }
    planes["data"][0, :3] = np.nan
    con = random.integers(-(2**31), 2**31, (2, *shape), dtype=np.int32)
    dq = np.where(np.isnan(planes["data"]), np.uint32(513), np.uint32(0))
    return ResampledImage(con=con, dq=dq, correlation=((4, 1.37), (0, 1.5)), **planes)


def layout(path):
    """Return [(EXTNAME, dtype, shape)] of a file's HDUs after PRIMARY, ASDF left out."""
    with fits.open(path) as hdus:
        return [
            (h.name, h.data.dtype.name if h.data.dtype.names is None else "table", h.data.shape)
            for h in hdus[1:]
            if h.name != "ASDF"
        ]
