"""What every product's headers say: where it came from, what was done, with which parameters."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.io.asdf.extension import ArrayLink, asdf_extension, meta_from_headers
from gpucoron.io.fits.headers import add_history, header_values, inherited, set_keyword
from gpucoron.io.fits.writing import Hdu, image_dtype

if TYPE_CHECKING:
    import gwcs
    from astropy.io.fits import Header

    from gpucoron.io.exposures import Exposure

__all__ = [
    "Provenance",
    "as_sequence",
    "asdf_hdu",
    "extension_header",
    "input_headers",
    "primary_header",
]

SOFTWARE_KEYWORD = "GPUCORON"

# what a step calls itself in headers: keyword, comment
_STEP_KEYWORDS = {
    "outlier_detection": ("S_OUTLIR", "outlier_detection"),
    "stack_refs": ("S_PSFSTK", "stack_refs: references stacked"),
    "align_refs": ("S_PSFALI", "align_refs: references aligned"),
    "klip": ("S_KLIP", "klip: PSF subtracted"),
    "resample": ("S_RESAMP", "resample: resampled and combined"),
}
_ATTRIBUTES = {"SCI": "data"}  # every other array is called like its HDU, in lower case


@dataclass(frozen=True)
class Provenance:
    """Where a product comes from; the same for all products of a run.

    Parameters
    ----------
    version : str
        gpucoron's version.
    device : str
        What the run computed on.
    asn_id, asn_table, asn_pool : str or None
        Of the association: its id, its file's name, its pool.
    parameters : mapping
        Every parameter by its full name, ``{"klip.truncate": 50}``; a step whose ``skip`` is true
        is marked SKIPPED, and ``preset`` "jwst" keeps that package's header oddities.
    inputs : sequence of str
        Names of the input files.
    psfmask : str or None
        What R_PSFMAS says.
    """

    version: str
    device: str = "cpu"
    asn_id: str | None = None
    asn_table: str | None = None
    asn_pool: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    psfmask: str | None = None

    @property
    def like_jwst(self) -> bool:
        """True where header values keep the jwst package's oddities."""
        return self.parameters.get("preset") == "jwst"

    def step_status(self, step: str) -> str:
        """Return COMPLETE or SKIPPED."""
        return "SKIPPED" if self.parameters.get(f"{step}.skip") else "COMPLETE"

    def history(self, inputs: Iterable[str]) -> list[str]:
        """Return the lines of HISTORY: software, association, input files, parameters."""
        lines = [f"gpucoron {self.version}, device {self.device}"]
        if self.asn_id:
            lines.append(f"association {self.asn_id}: {self.asn_table}")
        lines += [f"input {name}" for name in inputs]
        lines += [f"parameter {name} = {value}" for name, value in self.parameters.items()]
        return lines


def as_sequence(exposures: Exposure | Sequence[Exposure]) -> tuple[Exposure, ...]:
    """Return one or several exposures as a tuple."""
    return tuple(exposures) if isinstance(exposures, Sequence) else (exposures,)


def input_headers(exposure: Exposure) -> dict[str, dict[str, Any]]:
    """Return an exposure's header values by HDU ("" for PRIMARY)."""
    headers = {"": exposure.primary_header, **exposure.headers}
    return {hdu: header_values(headers[hdu]) for hdu in ("", "SCI", "ERR") if hdu in headers}


def primary_header(
    exposure: Exposure,
    path: Path,
    model: str,
    provenance: Provenance,
    steps: Iterable[str],
    inputs: Iterable[str],
) -> Header:
    """Return the primary header of a product: the exposure's, brought up to date.

    Parameters
    ----------
    exposure : Exposure
        Whose header the product inherits.
    path : Path
        The product's.
    model : str
        DATAMODL.
    provenance : Provenance
        Of the run.
    steps : iterable of str
        The steps whose status the product carries.
    inputs : iterable of str
        File names for HISTORY.
    """
    header = inherited(exposure.primary_header)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    set_keyword(header, "DATE", now, "UTC date file created")
    set_keyword(header, "FILENAME", path.name, "name of the file")
    set_keyword(header, "DATAMODL", model, "type of data model")
    association = (
        ("ASNPOOL", provenance.asn_pool, "association pool"),
        ("ASNTABLE", provenance.asn_table, "association file"),
    )
    for keyword, value, comment in association:
        if value is not None:
            set_keyword(header, keyword, value, comment, section="Association information")
    for step in steps:
        keyword, comment = _STEP_KEYWORDS[step]
        status = provenance.step_status(step)
        set_keyword(header, keyword, status, comment, section="Calibration step information")
    comment = "gpucoron version that wrote this file"
    set_keyword(header, SOFTWARE_KEYWORD, provenance.version, comment)
    add_history(header, provenance.history(inputs))
    return header


def extension_header(exposure: Exposure, name: str) -> Header:
    """Return the header of an exposure's HDU `name` for a product; SCI and ERR have a unit."""
    header = inherited(exposure.headers.get(name))
    unit = exposure.meta.bunit
    if name in ("SCI", "ERR") and "BUNIT" not in header and unit:
        set_keyword(header, "BUNIT", unit, "unit of the values", hdu=name)
    return header


def _link(hdu: Hdu) -> ArrayLink:
    attribute = _ATTRIBUTES.get(hdu.name, hdu.name.lower())
    dtype = hdu.array.dtype
    if dtype.names is None:
        dtype = np.dtype(image_dtype(hdu.array))
    return attribute, hdu.name, dtype, hdu.array.shape


def asdf_hdu(
    source: bytes | gwcs.WCS | None,
    hdus: Sequence[Hdu],
    *,
    extra: Mapping[str, Any] | None = None,
    links: Sequence[ArrayLink] | None = None,
) -> Hdu:
    """Return the ASDF extension of a product.

    Parameters
    ----------
    source : bytes, gwcs.WCS or None
        As for `gpucoron.io.asdf.extension.asdf_extension`.
    hdus : sequence of Hdu
        The product's others, PRIMARY first; their headers give the metadata.
    extra : mapping, optional
        Metadata without a keyword, nested.
    links : sequence, optional
        The arrays, where `hdus` do not hold them.
    """
    values = meta_from_headers({h.name: header_values(h.header) for h in hdus if h.header})
    for name, entry in (extra or {}).items():
        values[name] = {**values.get(name, {}), **entry} if isinstance(entry, dict) else entry
    if links is None:
        links = [_link(h) for h in hdus if h.array is not None]
    content = asdf_extension(source, links, values)
    row = np.zeros(1, dtype=[("ASDF_METADATA", np.uint8, (len(content),))])
    row["ASDF_METADATA"][0] = np.frombuffer(content, dtype=np.uint8)
    return Hdu("ASDF", row)
