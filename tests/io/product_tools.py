"""Exposures, an output grid and a provenance for the tests of products."""

import json
import types

import numpy as np
from astropy.io import fits

from gpucoron.io.exposures import read_exposure
from gpucoron.io.products import Provenance

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
        parameters = {
            "klip.truncate": 50,
            "resample.kernel": "square",
            "resample.pixfrac": 1.0,
            "resample.weight_type": "ivm",
            "resample.fillval": "NAN",
        }
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
        self.references = types.SimpleNamespace(
            **{
                name: np.concatenate([getattr(e.stack, name) for e in self.psf])
                for name in ("data", "err", "dq")
            }
        )


class Grid:
    """Stands in for `OutputWcs`: north up, 1.5 times the NIRCam pixel."""

    pixel_scale_ratio = 1.5
    pixel_area_sr, pixel_area_arcsec2 = 2.0e-13, 0.0088
    s_region = "POLYGON ICRS  150.1 -30.5 150.3 -30.5 150.3 -30.3 150.1 -30.3"

    def __init__(self, shape=(40, 50)):
        self.shape, self.crpix, self.crval = shape, (24.5, 19.25), (150.2, -30.4)
        self.cdelt, self.pc = (2.6e-5, 2.6e-5), ((-1.0, 0.0), (0.0, 1.0))

    def box(self):
        return (-0.5, self.shape[1] - 0.5), (-0.5, self.shape[0] - 0.5)

    def to_gwcs(self):
        import gwcs
        from astropy import coordinates, units
        from astropy.modeling import models
        from gwcs import coordinate_frames as frames

        scale = models.AffineTransformation2D(np.array(self.pc) * self.cdelt[0])
        model = (
            (models.Shift(-self.crpix[0]) & models.Shift(-self.crpix[1]))
            | scale
            | models.Pix2Sky_TAN()
            | models.RotateNative2Celestial(*self.crval, 180.0)
        )
        detector = frames.Frame2D(name="detector", unit=(units.pix, units.pix))
        sky = frames.CelestialFrame(
            name="world", reference_frame=coordinates.ICRS(), unit=(units.deg, units.deg)
        )
        return gwcs.WCS([(detector, model), (sky, None)])

    def to_header_cards(self):
        values = [("WCSAXES", 2, "")]
        for i in (1, 2):
            values += [
                (f"CRPIX{i}", self.crpix[i - 1] + 1, ""),
                (f"CRVAL{i}", self.crval[i - 1], ""),
                (f"CTYPE{i}", ("RA---TAN", "DEC--TAN")[i - 1], ""),
                (f"CUNIT{i}", "deg", ""),
                (f"CDELT{i}", self.cdelt[i - 1], ""),
            ]
            values += [(f"PC{i}_{j}", self.pc[i - 1][j - 1], "") for j in (1, 2)]
        return values


def resampled(shape, seed=1):
    """Return plausible arrays of a resampled image."""
    random = np.random.default_rng(seed)
    planes = {
        name: random.random(shape, dtype=np.float32)
        for name in ("data", "err", "wht", "var_poisson", "var_rnoise", "var_flat")
    }
    planes["data"][0, :3] = np.nan
    con = random.integers(-(2**31), 2**31, (2, *shape), dtype=np.int32)
    return types.SimpleNamespace(con=con, **planes)


def layout(path):
    """Return [(EXTNAME, dtype, shape)] of a file's HDUs after PRIMARY, ASDF left out."""
    with fits.open(path) as hdus:
        return [
            (h.name, h.data.dtype.name if h.data.dtype.names is None else "table", h.data.shape)
            for h in hdus[1:]
            if h.name != "ASDF"
        ]
