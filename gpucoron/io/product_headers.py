"""What every product's headers say: where it came from, what was done, with which parameters."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.io.asdf.extension import ArrayLink, asdf_extension, meta_from_headers
from gpucoron.io.fits_writer import Hdu, image_dtype
from gpucoron.io.headers import Cards

if TYPE_CHECKING:
    import gwcs

    from gpucoron.io.exposures import Exposure

__all__ = [
    "Provenance",
    "as_sequence",
    "asdf_hdu",
    "extension_cards",
    "input_headers",
    "primary_cards",
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
    status : mapping
        Step to COMPLETE, SKIPPED or FAILED where it is not what `parameters` tell.
    """

    version: str
    device: str = "cpu"
    asn_id: str | None = None
    asn_table: str | None = None
    asn_pool: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    psfmask: str | None = None
    status: Mapping[str, str] = field(default_factory=dict)

    @property
    def like_jwst(self) -> bool:
        """True where header values keep the jwst package's oddities."""
        return self.parameters.get("preset") == "jwst"

    def step_status(self, step: str) -> str:
        """Return COMPLETE, SKIPPED or FAILED."""
        skipped = bool(self.parameters.get(f"{step}.skip", False))
        return self.status.get(step, "SKIPPED" if skipped else "COMPLETE")

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
    return {
        hdu: Cards(header, hdu).values
        for hdu in ("", "SCI", "ERR")
        if (header := exposure.cards(hdu)) is not None
    }


def primary_cards(
    exposure: Exposure,
    path: Path,
    model: str,
    provenance: Provenance,
    steps: Iterable[str],
    inputs: Iterable[str],
) -> Cards:
    """Return PRIMARY of a product: the exposure's, brought up to date.

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
    cards = Cards(exposure.cards())
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    cards.set("DATE", now, "UTC date file created")
    cards.set("FILENAME", path.name, "name of the file")
    cards.set("DATAMODL", model, "type of data model")
    association = (
        ("ASNPOOL", provenance.asn_pool, "association pool"),
        ("ASNTABLE", provenance.asn_table, "association file"),
    )
    for keyword, value, comment in association:
        if value is not None:
            cards.set(keyword, value, comment, "Association information")
    for step in steps:
        keyword, comment = _STEP_KEYWORDS[step]
        cards.set(keyword, provenance.step_status(step), comment, "Calibration step information")
    cards.set(SOFTWARE_KEYWORD, provenance.version, "gpucoron version that wrote this file")
    cards.history(provenance.history(inputs))
    return cards


def extension_cards(exposure: Exposure, name: str) -> Cards:
    """Return the cards that an exposure's HDU `name` had; ERR has at least the unit of SCI."""
    cards = Cards(exposure.cards(name), name)
    if name == "SCI" and "BUNIT" not in cards.values and exposure.meta.bunit:
        cards.set("BUNIT", exposure.meta.bunit, "unit of the values")
    if name == "ERR" and "BUNIT" not in cards.values:
        unit = exposure.meta.bunit
        if unit:
            cards.set("BUNIT", unit, "unit of the values")
    return cards


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
        The product's others, PRIMARY first; their cards give the metadata.
    extra : mapping, optional
        Metadata without a keyword, nested.
    links : sequence, optional
        The arrays, where `hdus` do not hold them.
    """
    values = meta_from_headers({h.name: h.cards.values for h in hdus if h.cards is not None})
    for name, entry in (extra or {}).items():
        values[name] = {**values.get(name, {}), **entry} if isinstance(entry, dict) else entry
    if links is None:
        links = [_link(h) for h in hdus if h.array is not None]
    content = asdf_extension(source, links, values)
    row = np.zeros(1, dtype=[("ASDF_METADATA", np.uint8, (len(content),))])
    row["ASDF_METADATA"][0] = np.frombuffer(content, dtype=np.uint8)
    return Hdu("ASDF", row)
