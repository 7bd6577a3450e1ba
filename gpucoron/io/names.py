"""Parts of the names of products."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpucoron.errors import AssociationError

__all__ = [
    "LONGEST",
    "check_names",
    "exposure_root",
    "product_root",
    "program_id",
    "report_path",
    "says_nothing",
    "slug",
    "text_or_none",
]

LONGEST = 200  # bytes; file systems allow 255, suffix and name while being written included
_SAYS_NOTHING = {"", "none", "null", "n/a", "na", "unknown", "undefined", "any"}
_NOTHING = _SAYS_NOTHING | {"noprogram", "full"}

# What jwst takes for the suffix of a file name: types of products, names of steps and pipelines.
# tests/io/test_names.py compares them with those of the jwst package.
_SUFFIXES = """
adaptive_trace_model align_refs ami ami-oi ami_analyze ami_normalize aminorm aminorm-oi
assign_mtwcs assign_wcs bkg_subtract blot bsub bsubints c1d cal calints cat clean_flicker_noise
combine_1d crf crfints cube_build dark dark_current dq_init emicorr engdblog extract_1d
extract_2d firstframe flat_field fringe gain_scale group_scale guider_cds hlsp i2d imprint ipc
jump klip lastframe linearity master_background mbsub median outlier_detection pathloss
persistence phot photom picture_frame psfalign psfstack psfsub ramp ramp_fit rate rateints
refpix resample resample_spec reset residual_fringe rscd s2d s3d saturation skymatch snr
source_catalog spec2nrslamp spectral_leak srctype stackrefs straylight superbias targ_centroid
tweakreg uncal wfscmb wfscombine white_light whtlt x1d x1dints
""".split()
_STEPS = """
adaptivetracemodel alignrefs amianalyze aminormalize assignmtwcs assignwcs background
badpixselfcal barshadow chargemigration cleanflickernoise combine1d cubebuild darkcurrent dqinit
emicorr extract1d extract2d firstframe flatfield fringe gainscale groupscale guidercds hlsp
imprint ipc jump klip lastframe linearity masterbackgroundmos masterbackground msaflagopen
outlierdetection pathloss persistence photom pictureframe pixelreplace rampfit refpix
resamplespec resample reset residualfringe rscd saturation skymatch sourcecatalog sourcetype
spectralleak stackrefs straylight superbias targcentroid tsophotometry tweakreg wavecorr
wfscombine wfsscontam whitelight
""".split()
_PIPELINES = "ami3 coron3 dark detector1 guider image2 image3 spec2 spec3 tso3".split()
_SUFFIX = re.compile(
    "^(.+?)[_-](?:"
    + "|".join([*_SUFFIXES, *(f"{s}step" for s in _STEPS), *(f"{p}pipeline" for p in _PIPELINES)])
    + ")$"
)
_FITS = re.compile(r"\.(fits?|fts)(\.(gz|fz|bz2))?$", re.IGNORECASE)


def exposure_root(path: str | Path) -> str:
    """Return the file name without ``.fits`` and without a suffix of jwst such as ``_calints``.

    Products of one exposure are named ``<root>_<asn_id>_<suffix>.fits``, as jwst names them: a
    suffix in upper case is part of the root, ``.FITS`` is not.
    """
    return _without_suffix(_FITS.sub("", Path(path).name))


def product_root(name: str) -> str:
    """Return what jwst makes of a product's name in an association before it adds a suffix.

    Folders, a suffix of jwst such as ``_i2d``, and what follows the last dot are left out.
    """
    return _without_suffix(os.path.splitext(name.strip().rpartition("/")[2])[0])


def _without_suffix(name: str) -> str:
    return _SUFFIX.sub(r"\1", name)


def check_names(names: Sequence[str | None]) -> None:
    """Raise AssociationError where two products' names are the same, whatever their case."""
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name is None:
            continue
        first = seen.setdefault(name.lower(), number)
        if first != number:
            raise AssociationError(
                f"products {first} and {number} would both be named "
                f"{name}; expected a name of its own for each"
            )


def says_nothing(text: str) -> bool:
    """Return whether the value of a keyword means that there is none: blank, NONE, N/A, ..."""
    return text.strip().lower() in _SAYS_NOTHING


def report_path(where: str | os.PathLike, names: Sequence[str], asn: str | None) -> Path:
    """Name the report of a run: `where` itself if it ends in .html, else a file in that folder.

    `names` are those of its products; that of several is named after the association file `asn`.
    """
    where = Path(where)
    if where.suffix.lower() in (".html", ".htm") and not where.is_dir():
        return where
    return where / f"{names[0] if len(names) == 1 or not asn else Path(asn).stem}_report.html"


def text_or_none(value: Any) -> str | None:
    """Return a text or number as text; None where it says nothing."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    text = str(value).strip()
    return None if text.lower() in _NOTHING else text


def program_id(value: Any) -> str | None:
    """Return a programme's number with five digits, or its other name; None for nothing."""
    text = text_or_none(value)
    return text.zfill(5) if text and text.isdigit() else slug(text) or None


def slug(value: str | None) -> str:
    """Return `value` in lower case without what has no place in a file name; "" for nothing."""
    text = (value or "").strip().lower()
    return "" if text in _NOTHING else re.sub(r"[^a-z0-9_+.]", "", text)
