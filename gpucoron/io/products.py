"""Writing the products: crfints, psfstack, psfalign, psfsub and i2d, and the median image.

Each file appears under its name when it is complete. `PsfalignWriter` is in `gpucoron.io.psfalign`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.errors import OutputError, why
from gpucoron.io.blend import blend, count_pointings, header_table, product_times
from gpucoron.io.files import check_overwrite, output_error, temporary_path
from gpucoron.io.fits.headers import set_keyword, set_keywords
from gpucoron.io.fits.writing import Hdu, write_fits
from gpucoron.io.product_headers import (
    Provenance,
    as_sequence,
    asdf_hdu,
    extension_header,
    input_headers,
    primary_header,
)
from gpucoron.io.psfalign import PsfalignWriter

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.wcs import OutputWcs

__all__ = [
    "Provenance",
    "PsfalignWriter",
    "preflight",
    "product_path",
    "write_crfints",
    "write_i2d",
    "write_median",
    "write_psfstack",
    "write_psfsub",
]

_EXPOSURE_SUFFIXES = ("crfints", "psfalign", "psfsub", "median")
_VARIANCES = ("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
# of an exposure's WCS and pointing; a resampled image has others, or none
_OWN_WCS = re.compile(
    r"WCSAXES|WCSNAME|C(RPIX|RVAL|TYPE|UNIT|DELT)\d|(CD|PC)\d_\d|[AB]P?_(\d_\d|ORDER|DMAX)|L(ON|AT)POLE"
    r"|S_REGION|V[23]_REF|VPARITY|V3I_YANG|(RA|DEC|ROLL)_REF"
)


# ---- names and folders


def product_path(output_dir: str | os.PathLike, name: str, asn_id: str | None, suffix: str) -> Path:
    """Return where a product goes.

    Parameters
    ----------
    output_dir : path
        Folder.
    name : str
        Root of the exposure, or name of the association's product.
    asn_id : str or None
        Goes between root and suffix of exposure-based products (crfints, psfalign, psfsub, median).
    suffix : str
        Product type, without underscore.

    Raises
    ------
    OutputError
        The name would lead out of the folder.
    """
    if name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise OutputError(
            f"product name {name!r} is not a plain file name; set the association's "
            "product name to one without folders"
        )
    middle = f"_{asn_id}" if asn_id and suffix in _EXPOSURE_SUFFIXES else ""
    return Path(output_dir) / f"{name}{middle}_{suffix}.fits"


def preflight(
    output_dir: str | os.PathLike,
    names: Iterable[str],
    overwrite: bool = True,
    inputs: Iterable[Path] = (),
) -> Path:
    """Make sure, before any work, that products can be written.

    Parameters
    ----------
    output_dir : path
        Made where it does not exist.
    names : iterable of str
        File names that the run is going to write.
    overwrite : bool
        Whether they may replace files that exist.
    inputs : iterable of Path
        Files that must not be replaced.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        The folder cannot be made or written, a file exists and `overwrite` is False, or a product
        would replace an input.
    """
    folder = Path(output_dir)
    read = {path.resolve() for path in inputs}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"output folder {folder} is a file, expected a folder") from None
    except OSError as problem:
        raise OutputError(f"cannot make output folder {folder}: {why(problem)}") from problem
    probe = temporary_path(folder / "probe")
    try:
        probe.touch()
    except OSError as problem:
        raise output_error(folder, problem) from problem
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    for name in names:
        if read and (folder / name).resolve() in read:
            raise OutputError(
                f"{folder / name} would replace an input of that name; choose another output folder"
            )
        check_overwrite(folder / name, overwrite)
    return folder


# ---- products on the exposure's own pixels


def _cube_hdus(exposure, path, stack, provenance, steps, inputs):
    """Return the HDUs of a product shaped like the exposure, PRIMARY to VAR_FLAT."""
    arrays = {
        "SCI": stack.data,
        "ERR": stack.err,
        "DQ": stack.dq,
        "AREA": exposure.area,
        "INT_TIMES": exposure.int_times,
    }
    arrays.update({name: getattr(stack, name.lower()) for name in _VARIANCES})
    primary = primary_header(exposure, Path(path), "CubeModel", provenance, steps, inputs)
    return [Hdu("", header=primary)] + [
        Hdu(name, array, extension_header(exposure, name))
        for name, array in arrays.items()
        if array is not None
    ]


def _write_cube(path, exposure, stack, provenance, steps, inputs, overwrite):
    hdus = _cube_hdus(exposure, path, stack, provenance, steps, inputs)
    write_fits(path, [*hdus, asdf_hdu(exposure.asdf_bytes, hdus)], overwrite)


def write_crfints(
    path: str | os.PathLike,
    exposure: Exposure,
    stack: IntegrationStack,
    provenance: Provenance,
    *,
    overwrite: bool = True,
) -> None:
    """Write an exposure whose outliers are flagged.

    Parameters
    ----------
    path : path
        Where to.
    exposure : Exposure
        The input; gives metadata, AREA and INT_TIMES.
    stack : IntegrationStack
        The flagged images.
    provenance : Provenance
        Of the run.
    overwrite : bool
        Whether a file of that name may be replaced.

    Raises
    ------
    OutputError
        The file cannot be written, or exists and must not be replaced. Nothing is left behind.
    """
    _write_cube(
        path, exposure, stack, provenance, ("outlier_detection",), [exposure.path.name], overwrite
    )


def write_psfsub(
    path: str | os.PathLike,
    exposure: Exposure,
    stack: IntegrationStack,
    provenance: Provenance,
    *,
    overwrite: bool = True,
) -> None:
    """Write a science exposure whose PSF is subtracted; as `write_crfints`."""
    _write_cube(
        path,
        exposure,
        stack,
        provenance,
        ("outlier_detection", "klip"),
        provenance.inputs or [exposure.path.name],
        overwrite,
    )


def write_psfstack(
    path: str | os.PathLike,
    exposures: Exposure | Sequence[Exposure],
    stack: IntegrationStack,
    provenance: Provenance,
    *,
    overwrite: bool = True,
) -> None:
    """Write the stack of all references: SCI, ERR, DQ.

    Parameters
    ----------
    path : path
        Where to.
    exposures : Exposure or sequence of Exposure
        The references. Metadata and WCS are the first one's; times and integration counts are
        those of all (preset "jwst": the first one's, too).
    stack : IntegrationStack
        Their integrations, end to end.
    provenance, overwrite
        As for `write_crfints`.

    Raises
    ------
    OutputError
        As `write_crfints`.
    """
    exposures = as_sequence(exposures)
    first = exposures[0]
    steps, inputs = ("outlier_detection", "stack_refs"), [e.path.name for e in exposures]
    primary = primary_header(first, Path(path), "CubeModel", provenance, steps, inputs)
    hdus = [Hdu("", header=primary)]
    arrays = {"SCI": stack.data, "ERR": stack.err, "DQ": stack.dq}
    hdus += [Hdu(name, array, extension_header(first, name)) for name, array in arrays.items()]
    if not provenance.like_jwst:
        _set_values(hdus, product_times([input_headers(e) for e in exposures], len(stack.data)))
    write_fits(path, [*hdus, asdf_hdu(first.asdf_bytes, hdus)], overwrite)


def write_median(
    path: str | os.PathLike,
    exposure: Exposure,
    median: np.ndarray,
    provenance: Provenance,
    *,
    overwrite: bool = True,
) -> None:
    """Write the median image (ny, nx) of an exposure's integrations; as `write_crfints`."""
    inputs = [exposure.path.name]
    primary = primary_header(exposure, Path(path), "ImageModel", provenance, (), inputs)
    hdus = [Hdu("", header=primary), Hdu("SCI", median, extension_header(exposure, "SCI"))]
    write_fits(path, [*hdus, asdf_hdu(exposure.asdf_bytes, hdus)], overwrite)


# ---- the combined image


def write_i2d(
    path: str | os.PathLike,
    exposures: Sequence[Exposure],
    resampled: Any,
    wcs: OutputWcs,
    provenance: Provenance,
    *,
    overwrite: bool = True,
) -> None:
    """Write the resampled and combined image: SCI, ERR, CON, WHT, VAR_*, HDRTAB.

    Parameters
    ----------
    path : path
        Where to.
    exposures : sequence of Exposure
        The science exposures: their metadata are blended into the header, and kept in HDRTAB.
    resampled : gpucoron.steps.resample.ResampledImage
        data, err, wht, con and var_* (those that are not None).
    wcs : OutputWcs
        Of the output grid. PIXAR_SR and PIXAR_A2 are its pixel's (preset "jwst": the first
        exposure's).
    provenance, overwrite
        As for `write_crfints`.

    Raises
    ------
    OutputError
        As `write_crfints`.
    """
    exposures = as_sequence(exposures)
    headers = [_in_association(input_headers(e), provenance) for e in exposures]
    primary = primary_header(
        exposures[0],
        Path(path),
        "ImageModel",
        provenance,
        ("outlier_detection", "klip", "resample"),
        provenance.inputs or [e.path.name for e in exposures],
    )
    chosen = {
        name: provenance.parameters.get(f"resample.{name}")
        for name in ("kernel", "fillval", "pixfrac", "weight_type")
    }
    _set_resample(primary, count_pointings(headers), wcs, chosen)
    sci = _resampled_sci(exposures[0], wcs, provenance)
    hdus = [Hdu("", header=primary)]
    for name, array, header in (
        ("SCI", resampled.data, sci),
        ("ERR", resampled.err, extension_header(exposures[0], "ERR")),
        ("CON", resampled.con, None),
        ("WHT", resampled.wht, None),
        *((name, getattr(resampled, name.lower()), None) for name in _VARIANCES),
    ):
        if array is not None:
            hdus.append(Hdu(name, array, header))
    _set_values(hdus, blend(headers))
    if not provenance.like_jwst:
        _set_values(hdus, product_times(headers, sum(e.shape[0] for e in exposures)))
    hdus.append(Hdu("HDRTAB", header_table(headers)))
    extra = {"resample": {k: v for k in ("kernel", "fillval") if (v := chosen[k]) is not None}}
    write_fits(path, [*hdus, asdf_hdu(wcs.to_gwcs(), hdus, extra=extra)], overwrite)


def _in_association(headers, provenance):
    """Return an exposure's header values with this association's name and pool."""
    names = {"ASNPOOL": provenance.asn_pool, "ASNTABLE": provenance.asn_table}
    return {**headers, "": {**headers[""], **{k: v for k, v in names.items() if v is not None}}}


def _set_values(hdus, values: dict[str, dict[str, Any]]):
    """Set blended keywords in the HDUs that are there."""
    for hdu in hdus:
        if hdu.header is not None:
            set_keywords(hdu.header, values.get(hdu.name, {}), hdu.name)


def _set_resample(primary: Header, pointings, wcs, chosen):
    for keyword, value, comment in (
        ("NDRIZ", pointings, "number of pointings combined"),
        ("RESWHT", chosen["weight_type"], "weights of the input pixels"),
        ("PIXFRAC", chosen["pixfrac"], "side of the drop, in input pixels"),
        ("PXSCLRT", wcs.pixel_scale_ratio, "pixel scale, output / input"),
    ):
        if value is not None:
            set_keyword(primary, keyword, value, comment, section="Resample Parameters")


def _resampled_sci(exposure, wcs, provenance) -> Header:
    """Return the header of SCI: the exposure's, with the output grid's WCS for its own."""
    header = extension_header(exposure, "SCI")
    for keyword in {k for k in header if _OWN_WCS.fullmatch(k)}:
        del header[keyword]
    if not provenance.like_jwst:
        for keyword, value, comment in (
            ("PIXAR_SR", float(wcs.pixel_area_sr), "[sr] area of an output pixel"),
            ("PIXAR_A2", float(wcs.pixel_area_arcsec2), "[arcsec2] area of an output pixel"),
        ):
            set_keyword(header, keyword, value, comment, hdu="SCI")
    for keyword, value, comment in wcs.to_header_cards():
        set_keyword(header, keyword, value, comment, hdu="SCI", section="WCS parameters")
    if wcs.s_region:
        set_keyword(header, "S_REGION", wcs.s_region, "outline on the sky", hdu="SCI")
    return header
