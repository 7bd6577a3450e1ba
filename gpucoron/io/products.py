"""Writing the products: crfints, psfstack, psfalign, psfsub and i2d, and the median image.

Each file appears under its name when it is complete. `PsfalignWriter` is in `gpucoron.io.psfalign`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.core.stack import KLIP_VARIANCES, VARIANCES, IntegrationStack
from gpucoron.errors import OutputError
from gpucoron.io.blend import blend, count_pointings, header_table
from gpucoron.io.files import SameFiles, check_folder, check_replaceable
from gpucoron.io.fits.headers import set_keyword
from gpucoron.io.fits.writing import Hdu, write_fits
from gpucoron.io.klip_noise import klip_noise_hdus, set_correlation, set_truncation
from gpucoron.io.positions import positions_hdu
from gpucoron.io.product_headers import (
    Provenance,
    asdf_hdu,
    input_headers,
    product_hdus,
    set_times,
    set_values,
)
from gpucoron.io.psfalign import PsfalignWriter
from gpucoron.io.star import set_star
from gpucoron.io.step_products import sources_hdu

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from gpucoron.core.star import CombinedStar, StarPositions
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
# of an exposure's WCS and pointing; a resampled image has others, or none
_OWN_WCS = re.compile(
    r"WCSAXES|WCSNAME|C(RPIX|RVAL|TYPE|UNIT|DELT)\d|(CD|PC)\d_\d|[AB]P?_(\d_\d|ORDER|DMAX)|L(ON|AT)POLE"
    r"|S_REGION|V[23]_REF|VPARITY|V3I_YANG|(RA|DEC|ROLL)_REF"
)


def product_path(output_dir: str | os.PathLike, name: str, asn_id: str | None, suffix: str) -> Path:
    """Return where a product goes; `asn_id` is part of the names of exposure-based products only.

    Raises OutputError where `name`, the exposure's root or the association's product, would lead
    out of the folder.
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
    inputs: Iterable[str | os.PathLike] = (),
) -> Path:
    """Make the output folder, and check that files called `names` can be written there.

    Raises
    ------
    OutputError
        The folder cannot be made or written, a name is too long or is that of a folder, pipe or
        device, a file exists and `overwrite` is False, or one of `inputs` would be replaced.
    """
    folder, names, protected = Path(output_dir), list(names), SameFiles(inputs)
    check_folder(folder, names)
    for name in names:
        if folder / name in protected:
            raise OutputError(
                f"{folder / name} would replace an input of that name; choose another output folder"
            )
        check_replaceable(folder / name, overwrite)
    return folder


def _write_cube(
    path, exposure, stack, provenance, steps, inputs, overwrite, star=None, positions=None
):
    arrays = {
        "SCI": stack.data,
        "ERR": stack.err,
        "DQ": stack.dq,
        "AREA": exposure.area,
        "INT_TIMES": exposure.int_times,
        **{name.upper(): getattr(stack, name) for name in VARIANCES},
    }
    hdus = product_hdus(path, exposure, arrays, provenance, steps, inputs)
    if not provenance.like_jwst:
        set_star(hdus[1].header, star)
        set_truncation(hdus[0].header, provenance)
    others = klip_noise_hdus(stack, provenance)
    others += [] if positions is None else [positions_hdu(positions)]
    return write_fits(path, [*hdus, *others, asdf_hdu(exposure.asdf_bytes, hdus)], overwrite)


def write_crfints(
    path: str | os.PathLike,
    exposure: Exposure,
    stack: IntegrationStack,
    provenance: Provenance,
    *,
    overwrite: bool = True,
) -> dict[str, str]:
    """Write an exposure whose outliers are flagged; return CHECKSUM of every HDU by name.

    Parameters
    ----------
    path : path
    exposure : Exposure
        The input; gives metadata, AREA and INT_TIMES.
    stack : IntegrationStack
        The flagged images.
    provenance : Provenance
    overwrite : bool
        Whether a file of that name may be replaced.

    Raises
    ------
    OutputError
        The file cannot be written, or exists and must not be replaced. Nothing is left behind.
    """
    inputs = [exposure.path.name]
    return _write_cube(path, exposure, stack, provenance, ["outlier_detection"], inputs, overwrite)


def write_psfsub(
    path: str | os.PathLike,
    exposure: Exposure,
    stack: IntegrationStack,
    provenance: Provenance,
    *,
    overwrite: bool = True,
    star: StarPositions | None = None,
    positions: np.ndarray | None = None,
) -> dict[str, str]:
    """Write a science exposure whose PSF is subtracted; as `write_crfints`.

    KLTRUNC in PRIMARY is the number of KL modes, and the header of SCI says where the `star` is
    (preset "jwst": they do not). `positions` of all images
    (`gpucoron.steps.positions.POSITIONS_DTYPE`) become the table POSITIONS; for what is known of
    the noise of the references see `gpucoron.io.klip_noise`.
    """
    steps, inputs = ["outlier_detection", "klip"], provenance.inputs
    return _write_cube(path, exposure, stack, provenance, steps, inputs, overwrite, star, positions)


def write_psfstack(
    path: str | os.PathLike,
    exposures: Sequence[Exposure],
    stack: IntegrationStack,
    provenance: Provenance,
    *,
    overwrite: bool = True,
) -> dict[str, str]:
    """Write the stack of all references: SCI, ERR, DQ, SOURCES; as `write_crfints`.

    Metadata and WCS are those of the first of `exposures`; times and integration counts are those
    of all (preset "jwst": the first one's, too). The table SOURCES says which exposure and
    integration each image is from (preset "jwst": it is not written).
    """
    arrays = {"SCI": stack.data, "ERR": stack.err, "DQ": stack.dq}
    steps, inputs = ["outlier_detection", "stack_refs"], [e.path.name for e in exposures]
    hdus = product_hdus(path, exposures[0], arrays, provenance, steps, inputs)
    set_times(hdus, exposures, len(stack.data), provenance)
    named = stack.sources and not provenance.like_jwst
    tables = [sources_hdu(stack.sources)] if named else []
    return write_fits(path, [*hdus, *tables, asdf_hdu(exposures[0].asdf_bytes, hdus)], overwrite)


def write_median(
    path: str | os.PathLike,
    exposure: Exposure,
    median: np.ndarray,
    provenance: Provenance,
    *,
    overwrite: bool = True,
) -> dict[str, str]:
    """Write the median image (ny, nx) of an exposure's integrations; as `write_crfints`."""
    arrays, inputs = {"SCI": median}, [exposure.path.name]
    hdus = product_hdus(path, exposure, arrays, provenance, [], inputs, "ImageModel")
    return write_fits(path, [*hdus, asdf_hdu(exposure.asdf_bytes, hdus)], overwrite)


def write_i2d(
    path: str | os.PathLike,
    exposures: Sequence[Exposure],
    resampled: Any,
    wcs: OutputWcs,
    provenance: Provenance,
    *,
    overwrite: bool = True,
    star: CombinedStar | None = None,
) -> dict[str, str]:
    """Write the resampled and combined image: SCI, ERR, DQ, CON, WHT, VAR_*, HDRTAB.

    Parameters
    ----------
    path, provenance, overwrite
        As for `write_crfints`, as is what is raised.
    exposures : sequence of Exposure
        The science exposures: their metadata are blended into the header, and kept in HDRTAB.
    resampled : gpucoron.steps.resample.ResampledImage
        data, err, dq (preset "jwst": not written), wht, con and var_* (those that are not None).
    wcs : OutputWcs
        Of the output grid. PIXAR_SR and PIXAR_A2 are its pixel's (preset "jwst": the first
        exposure's).
    star : CombinedStar, optional
        Where the star is in the image (preset "jwst": not written).
    """
    headers = [_in_association(input_headers(e), provenance) for e in exposures]
    dq = None if provenance.like_jwst else resampled.dq
    arrays = {"SCI": resampled.data, "ERR": resampled.err, "DQ": dq}
    steps = ["outlier_detection", "klip", "resample"]
    hdus = product_hdus(
        path, exposures[0], arrays, provenance, steps, provenance.inputs, "ImageModel"
    )
    parameters = provenance.parameters
    _set_resample(hdus[0].header, count_pointings(headers), wcs, parameters)
    _set_output_wcs(hdus[1].header, wcs, provenance)
    if not provenance.like_jwst:
        set_star(hdus[1].header, star)
        set_truncation(hdus[0].header, provenance)
        set_correlation(hdus[1].header, resampled)
    others = {
        name: getattr(resampled, name) for name in ("con", "wht", *VARIANCES, *KLIP_VARIANCES)
    }
    hdus += [Hdu(name.upper(), array) for name, array in others.items() if array is not None]
    set_values(hdus, blend(headers))
    set_times(hdus, exposures, sum(e.shape[0] for e in exposures), provenance)
    hdus.append(Hdu("HDRTAB", header_table(headers)))
    chosen = {name: parameters.get(f"resample.{name}") for name in ("kernel", "fillval")}
    extra = {name: value for name, value in chosen.items() if value is not None}
    return write_fits(path, [*hdus, asdf_hdu(wcs, hdus, resample=extra)], overwrite)


def _in_association(headers, provenance):
    """Return an exposure's header values with this association's name and pool."""
    names = {"ASNPOOL": provenance.asn_pool, "ASNTABLE": provenance.asn_table}
    return {**headers, "": {**headers[""], **{k: v for k, v in names.items() if v is not None}}}


def _set_resample(primary: Header, pointings: int, wcs: OutputWcs, parameters: Mapping) -> None:
    for keyword, value, comment in (
        ("NDRIZ", pointings, "number of pointings combined"),
        ("RESWHT", parameters.get("resample.weight_type"), "weights of the input pixels"),
        ("PIXFRAC", parameters.get("resample.pixfrac"), "side of the drop, in input pixels"),
        ("PXSCLRT", wcs.pixel_scale_ratio, "pixel scale, output / input"),
    ):
        if value is not None:
            set_keyword(primary, keyword, value, comment, section="Resample Parameters")


def _set_output_wcs(header: Header, wcs: OutputWcs, provenance: Provenance) -> None:
    """Put the output grid's WCS into the header of SCI in place of the exposure's."""
    for keyword in {k for k in header if _OWN_WCS.fullmatch(k)}:
        del header[keyword]
    if not provenance.like_jwst:
        sr, arcsec2 = float(wcs.pixel_area_sr), float(wcs.pixel_area_arcsec2)
        set_keyword(header, "PIXAR_SR", sr, "[sr] area of an output pixel", hdu="SCI")
        set_keyword(header, "PIXAR_A2", arcsec2, "[arcsec2] area of an output pixel", hdu="SCI")
        # readers of cubes, such as pyKLIP's, take the position angle of y from these
        angle = float(wcs.position_angle)
        set_keyword(header, "ROLL_REF", angle, "[deg] position angle of y, N over E", hdu="SCI")
        set_keyword(header, "V3I_YANG", 0.0, "[deg] from V3 (here y) to y", hdu="SCI")
        set_keyword(header, "VPARITY", -1, "sense of the angles", hdu="SCI")
    for keyword, value, comment in wcs.to_header_cards():
        set_keyword(header, keyword, value, comment, hdu="SCI", section="WCS parameters")
    if wcs.s_region:
        set_keyword(header, "S_REGION", wcs.s_region, "outline on the sky", hdu="SCI")
