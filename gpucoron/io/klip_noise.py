"""What products say of the noise that PSF subtraction adds: planes, a table, keywords.

psfsub has the images VAR_REF and VAR_SPECKLE (n, ny, nx), and VAR_REFMEAN (ny, nx): the references'
noise in the mean of all integrations, which is less than theirs but common to them. The table
KLREFS has the references' mean coefficients, from which the noise follows that exposures with the
same references have in common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io.fits import Header

from gpucoron.core.stack import (
    KLIP_VARIANCES,
    IntegrationStack,
    PlaneSource,
    ReferenceNoise,
)
from gpucoron.io.fits.headers import add_history, set_keyword
from gpucoron.io.fits.writing import Hdu

if TYPE_CHECKING:
    from gpucoron.io.fits.reading import FitsFile
    from gpucoron.io.product_headers import Provenance

__all__ = ["klip_noise_hdus", "read_klip_noise", "set_correlation", "set_truncation"]

_SOURCE = [("exposure", "S80"), ("integration", "i4")]  # where exposures have different references
_TEXT = (
    "A row for each reference image, in the order of psfstack.",
    "coefficient: of the reference in the model of the PSF that was",
    "subtracted, mean of all integrations. deviation: root mean square of its",
    "noise. Where KLIP was done in zones, coefficient has an element for each.",
)
_SOURCE_TEXT = (
    "exposure, integration: which image it is, a psf member's or another",
    "roll's.",
)


def klip_noise_hdus(stack: IntegrationStack, provenance: Provenance) -> list[Hdu]:
    """Return the HDUs of psfsub on the noise of the references; none where it is not known."""
    shared = stack.reference_noise
    if shared is None or stack.var_ref is None:
        return []
    hdus = [Hdu(name.upper(), getattr(stack, name), _header()) for name in KLIP_VARIANCES]
    hdus.append(Hdu("VAR_REFMEAN", shared.variance, _header()))
    of_zones = shared.coefficients.shape[1:]
    dtype: list = [("coefficient", "f8", of_zones), ("deviation", "f8")]
    dtype += _SOURCE if shared.sources else []
    table = np.zeros(len(shared.coefficients), dtype=dtype)
    table["coefficient"], table["deviation"] = shared.coefficients, shared.deviations
    if shared.sources:
        names, table["integration"] = zip(*shared.sources, strict=True)
        table["exposure"] = [name.encode("ascii", "replace") for name in names]
    text = Header()
    add_history(text, [*_TEXT, *(_SOURCE_TEXT if shared.sources else ())], "COMMENT")
    return [*hdus, Hdu("KLREFS", table, text, {"deviation": "MJy/sr"})]


def _header() -> Header:
    header = Header()
    header["BUNIT"] = ("(MJy/sr)^2", "unit of the values")
    return header


def read_klip_noise(file: FitsFile) -> dict[str, Any]:
    """Return what `klip_noise_hdus` wrote, as fields of IntegrationStack; {} without it."""
    names = [*(name.upper() for name in KLIP_VARIANCES), "VAR_REFMEAN", "KLREFS"]
    hdus = [hdu for hdu in map(file.find, names) if hdu is not None]
    table = file.table(hdus[-1]) if len(hdus) == len(names) else None
    if table is None:
        return {}
    ref, speckle, mean = (file.floats(hdu) for hdu in hdus[:3])
    sources: tuple[PlaneSource, ...] = ()
    if "exposure" in (table.dtype.names or ()):
        pairs = zip(table["exposure"], table["integration"], strict=True)
        sources = tuple(
            PlaneSource(name.decode("ascii", "replace").strip(), int(number))
            for name, number in pairs
        )
    coefficients, deviations = (np.array(table[name]) for name in ("coefficient", "deviation"))
    shared = ReferenceNoise(mean, coefficients, deviations, sources)
    return {"var_ref": ref, "var_speckle": speckle, "reference_noise": shared}


def set_truncation(primary: Header, provenance: Provenance) -> None:
    """Write the number of KL modes that were subtracted, and KLMODE where rolls are references."""
    value = provenance.parameters.get("klip.truncate")
    if isinstance(value, int):
        set_keyword(primary, "KLTRUNC", value, "number of KL modes subtracted")
    mode = provenance.parameters.get("klip.mode", "rdi")
    if mode not in ("auto", "rdi"):
        set_keyword(primary, "KLMODE", mode.upper(), "references: ADI, ADI+RDI, or mean of ROLLs")


def set_correlation(header: Header, resampled: Any) -> None:
    """Write by how much the errors of means over several pixels exceed independent ones."""
    for keyword, value, comment in (
        ("ERRCORR", resampled.err_correlation(16), "scatter of 4x4 px means / independent"),
        ("ERRCORRL", resampled.err_correlation(), "the same for large areas"),
        ("SPKCORR", resampled.err_correlation(16, "speckles"), "as ERRCORR, of VAR_SPECKLE"),
        ("SPKCORRL", resampled.err_correlation(of="speckles"), "the same for large areas"),
    ):
        if value is not None:
            set_keyword(header, keyword, value, comment, hdu="SCI")
