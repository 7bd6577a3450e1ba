"""What every product's headers say: where it came from, what was done, with which parameters."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.io.asdf.extension import asdf_extension, meta_from_headers
from gpucoron.io.blend import product_times
from gpucoron.io.fits.headers import add_history, header_values, inherited, set_keyword
from gpucoron.io.fits.writing import Hdu, image_dtype

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from gpucoron.io.exposures import Exposure
    from gpucoron.io.wcs import OutputWcs

__all__ = [
    "Provenance",
    "asdf_hdu",
    "input_headers",
    "product_hdus",
    "set_times",
    "set_values",
]

# what a step calls itself in headers: keyword, comment
_STEP_KEYWORDS = {
    "outlier_detection": ("S_OUTLIR", "outlier_detection"),
    "stack_refs": ("S_PSFSTK", "stack_refs: references stacked"),
    "align_refs": ("S_PSFALI", "align_refs: references aligned"),
    "klip": ("S_KLIP", "klip: PSF subtracted"),
    "resample": ("S_RESAMP", "resample: resampled and combined"),
}


@dataclass(frozen=True)
class Provenance:
    """Software, device, association, parameters and inputs that product headers name.

    `parameters` has every parameter by its full name, ``{"klip.truncate": 50}``: a step whose
    ``skip`` is true is marked SKIPPED, and ``preset`` "jwst" keeps that package's header oddities.
    """

    version: str  # gpucoron's
    device: str = "cpu"  # what the run computed on
    asn_id: str | None = None
    asn_table: str | None = None  # name of the association's file
    asn_pool: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()  # names of the input files
    psfmask: str | None = None  # what R_PSFMAS says

    @property
    def like_jwst(self) -> bool:
        """True where header values keep the jwst package's oddities."""
        return self.parameters.get("preset") == "jwst"

    def history(self, inputs: Iterable[str]) -> list[str]:
        """Return the lines of HISTORY: software, association, input files, parameters."""
        lines = [f"gpucoron {self.version}, device {self.device}"]
        if self.asn_id:
            lines.append(f"association {self.asn_id}: {self.asn_table}")
        lines += [f"input {name}" for name in inputs]
        lines += [f"parameter {name} = {value}" for name, value in self.parameters.items()]
        return lines


def input_headers(exposure: Exposure) -> dict[str, dict[str, Any]]:
    """Return an exposure's header values by HDU ("" for PRIMARY)."""
    headers = {"": exposure.primary_header, **exposure.headers}
    return {hdu: header_values(headers[hdu]) for hdu in ("", "SCI", "ERR") if hdu in headers}


def product_hdus(
    path: str | os.PathLike,
    exposure: Exposure,
    arrays: Mapping[str, np.ndarray | None],
    provenance: Provenance,
    steps: Iterable[str],
    inputs: Iterable[str],
    model: str = "CubeModel",
) -> list[Hdu]:
    """Return PRIMARY and the HDUs of those `arrays` (by EXTNAME) that are not None.

    Headers are inherited from `exposure`; SCI and ERR always have a unit. PRIMARY carries the
    status of `steps`, DATAMODL `model`, and a HISTORY that names the files `inputs`.
    """
    primary = _primary_header(exposure, Path(path).name, model, provenance, steps)
    add_history(primary, provenance.history(inputs))
    hdus = [Hdu("", header=primary)]
    for name, array in arrays.items():
        if array is not None:
            header = inherited(exposure.headers.get(name))
            unit = exposure.meta.bunit
            if name in ("SCI", "ERR") and "BUNIT" not in header and unit:
                set_keyword(header, "BUNIT", unit, "unit of the values", hdu=name)
            hdus.append(Hdu(name, array, header))
    return hdus


def _primary_header(
    exposure: Exposure, filename: str, model: str, provenance: Provenance, steps: Iterable[str]
) -> Header:
    header = inherited(exposure.primary_header)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    set_keyword(header, "DATE", now, "UTC date file created")
    set_keyword(header, "FILENAME", filename, "name of the file")
    set_keyword(header, "DATAMODL", model, "type of data model")
    for keyword, value, comment in (
        ("ASNPOOL", provenance.asn_pool, "association pool"),
        ("ASNTABLE", provenance.asn_table, "association file"),
    ):
        if value is not None:
            set_keyword(header, keyword, value, comment, section="Association information")
    for step in steps:
        keyword, comment = _STEP_KEYWORDS[step]
        status = "SKIPPED" if provenance.parameters.get(f"{step}.skip") else "COMPLETE"
        set_keyword(header, keyword, status, comment, section="Calibration step information")
    comment = "gpucoron version that wrote this file"
    set_keyword(header, "GPUCORON", provenance.version, comment)
    return header


def set_values(hdus: Iterable[Hdu], values: Mapping[str, Mapping[str, Any]]) -> None:
    """Set keywords (by EXTNAME, "" for PRIMARY) in those headers that are there."""
    for hdu in hdus:
        if hdu.header is not None:
            for keyword, value in values.get(hdu.name, {}).items():
                set_keyword(hdu.header, keyword, value, hdu=hdu.name)


def set_times(
    hdus: Iterable[Hdu], exposures: Iterable[Exposure], n: int, provenance: Provenance
) -> None:
    """Set times and counts of a product of `n` integrations; preset "jwst" leaves them alone."""
    if not provenance.like_jwst:
        set_values(hdus, product_times([input_headers(e) for e in exposures], n))


def asdf_hdu(
    source: bytes | OutputWcs | None, hdus: Sequence[Hdu], resample: Mapping[str, Any] | None = None
) -> Hdu:
    """Return the ASDF extension of a product whose other HDUs are `hdus`, PRIMARY first.

    `source` is as for `gpucoron.io.asdf.extension.asdf_extension`; `resample` has those parts of
    ``meta.resample`` that have no keyword.
    """
    values = meta_from_headers({h.name: header_values(h.header) for h in hdus if h.header})
    if resample:
        values.setdefault("resample", {}).update(resample)
    links = []
    for name, array, *_ in hdus:
        if array is not None:
            attribute = "data" if name == "SCI" else name.lower()
            dtype = array.dtype if array.dtype.names else np.dtype(image_dtype(array))
            links.append((attribute, name, dtype, array.shape))
    content = asdf_extension(source, links, values)
    row = np.zeros(1, dtype=[("ASDF_METADATA", np.uint8, (len(content),))])
    row["ASDF_METADATA"][0] = np.frombuffer(content, dtype=np.uint8)
    return Hdu("ASDF", row)
