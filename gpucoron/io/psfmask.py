"""The psfmask: which pixels count when a reference is aligned, and where it comes from."""

from __future__ import annotations

import logging
import os
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.errors import MaskError, one_line
from gpucoron.io.agreement import same_name
from gpucoron.io.fits.checksums import check_sums
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.psfmask_hole import center_hole
from gpucoron.io.star import expected_star

if TYPE_CHECKING:
    from gpucoron.io.exposures import Exposure, ExposureMeta

__all__ = ["find_psfmask", "read_psfmask"]

log = logging.getLogger("gpucoron")

_LARGEST = 1e9  # a weight
_FAINTEST = 1e-8  # of the largest weight: the square of what is below is lost
FITTED = 4  # a shift along either axis, a brightness, a constant


def read_psfmask(
    path: str | os.PathLike,
    shape: tuple[int, int],
    meta: ExposureMeta | None = None,
    checksums: bool = True,
) -> np.ndarray:
    """Read a psfmask reference file: SCI, or the primary HDU where there is no SCI.

    A mask made for another instrument or coronagraph than `meta` says gives a warning.

    Returns
    -------
    (ny, nx) float64 array
        Weights that multiply the residual of the fit: 1 counts in full, 0 not at all.

    Raises
    ------
    MaskError
        Unreadable, damaged (with `checksums`), no image, another shape than `shape`, the
        exposures'; NaN (but in rows and columns added at the edges, which count as 0, with a
        warning), infinite or negative values, all zero.
    """
    file = open_fits(path, MaskError)
    if checksums:
        check_sums(file)
    hdu = file.find("SCI") or file.hdus[0]
    if not hdu.is_image:
        raise file.problem(f"{hdu.name} is a table, expected an image of shape {shape}")
    if hdu.empty:
        raise file.problem(
            f"no image in SCI or the primary HDU (found: {file.names}), "
            f"expected one of shape {shape}"
        )
    if hdu.shape != tuple(shape):
        raise file.problem(
            f"the psfmask has shape {hdu.shape}, but the exposures have "
            f"{tuple(shape)}; expected the same (give another with --psfmask)"
        )
    mask = _without_padding(file, file.floats(hdu, "float64"))
    _check_values(file, mask)
    if meta is not None:
        _compare_optics(file.path.name, file.hdus[0].header, meta)
    return mask


def find_psfmask(
    option_path: str | os.PathLike | None,
    exposure: Exposure,
    checksums: bool = True,
    *,
    star: tuple[float, float] | None = None,
    center: str = "file",
) -> tuple[np.ndarray, str, str]:
    """Return the psfmask that a science exposure should use.

    Parameters
    ----------
    option_path : path or None
        The file that is given; None to ask CRDS.
    exposure : Exposure
    checksums : bool
        Whether checksums in the file must be right.
    star : (x, y), pixels counted from 1, optional
        Where the star is. Default: where the headers of the exposure have it.
    center : {"file", "star"}
        "star" moves the mask by whole pixels so that its hole is on the star. With "file" a
        warning says how far it is from the star, if that is more than 2 px.

    Returns
    -------
    mask : (ny, nx) float64 array
    name : str
        For the keyword R_PSFMAS: the path as given, ``crds://<file>``, or ``N/A``.
    how : str
        Where the mask came from, in words.

    Raises
    ------
    MaskError
        As `read_psfmask`.

    Notes
    -----
    Without `option_path`, CRDS is asked if the package ``crds`` is installed, CRDS_PATH is set, and
    a context is known from its cache or from the server at CRDS_SERVER_URL. gpucoron makes no
    network connection unless that is set. Otherwise every weight is 1.
    """
    shape = exposure.shape[1:]
    if option_path is not None:
        path, name, how = option_path, str(option_path), f"given: {option_path}"
    else:
        found, reason = _ask_crds(exposure)
        if found is None:
            log.info("psfmask: none given and %s; built in: all ones, every pixel counts", reason)
            if center == "star":
                log.warning("there is no psfmask for align_refs.psfmask_center=star to move")
            return np.ones(shape), "N/A", f"built in: all ones ({reason})"
        log.info("psfmask: %s, chosen by CRDS", found.name)
        path, name, how = found, f"crds://{found.name}", f"chosen by CRDS: {found.name}"
    mask = read_psfmask(path, shape, exposure.meta, checksums)
    mask, moved = center_hole(
        mask,
        (star, "given") if star is not None else expected_star(exposure),
        name=Path(path).name,
        bar="WB" in (exposure.meta.coronmsk or "").upper(),
        move=center == "star",
    )
    return mask, name, ", ".join(filter(None, (how, moved)))


def _without_padding(file: FitsFile, mask: np.ndarray) -> np.ndarray:
    """Return a mask with 0 where whole rows or columns at its edges are NaN, with a warning.

    So spaceKLIP pads masks; NaN elsewhere is left.
    """
    known = np.isfinite(mask)
    rows, columns = (np.flatnonzero(known.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return mask
    padding = np.ones(mask.shape, dtype=bool)
    padding[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
    padding &= np.isnan(mask)
    if padding.any():
        log.warning(
            "%s: the psfmask is NaN in %d pixels at its edges, which count as 0",
            file.path.name,
            padding.sum(),
        )
    return np.where(padding, 0.0, mask)


def _check_values(file: FitsFile, mask: np.ndarray) -> None:
    nan, infinite = np.isnan(mask).sum(), np.isinf(mask).sum()
    largest = float(np.max(mask, initial=0.0))
    negative, positive = (mask < 0).sum(), np.count_nonzero(mask > _FAINTEST * largest)
    problem = None
    if nan or infinite:
        problem = f"has {nan} NaN and {infinite} infinite values, expected numbers of 0 or more"
    elif negative:
        low = mask.min()
        problem = f"has {negative} negative values (lowest {low:g}), expected numbers of 0 or more"
    elif not positive:
        problem = "is 0 everywhere and leaves no pixel to fit, expected 1 where a pixel counts"
    elif not 1 / _LARGEST <= largest <= _LARGEST:
        problem = (
            f"has {largest:g} as its largest value, expected one from {1 / _LARGEST:g} to "
            f"{_LARGEST:g}: usually 1"
        )
    elif positive <= FITTED:
        problem = (
            f"is above 0 in {positive} pixels only, expected more than {FITTED}: a fit has "
            "as many unknowns"
        )
    if problem:
        raise file.problem(f"the psfmask {problem}")


def _compare_optics(name: str, header, meta: ExposureMeta) -> None:
    """Warn where the mask was made for another instrument or coronagraph mask."""
    for keyword, ours in (("INSTRUME", meta.instrument), ("CORONMSK", meta.coronmsk)):
        theirs = header.get(keyword)
        if isinstance(theirs, str) and ours and not same_name(theirs, ours):
            made_for = f"{keyword} {theirs.strip()}"
            log.warning(
                "%s: the psfmask was made for %s, but the exposures have %s", name, made_for, ours
            )


def _ask_crds(exposure: Exposure) -> tuple[Path | None, str]:
    """Return the mask that CRDS recommends, or None and the reason."""
    if reason := _not_configured():
        return None, reason
    try:
        import crds

        with redirect_stderr(StringIO()):  # it prints tracebacks of what it then raises
            chosen = crds.getreferences(
                _crds_parameters(exposure), reftypes=["psfmask"], observatory="jwst"
            )
    except (Exception, SystemExit) as problem:  # CRDS even exits; the run can go on without it
        kind, text = type(problem).__name__, one_line(problem)
        log.warning("psfmask: CRDS is configured but gave no answer: %s %s", kind, text)
        return None, "CRDS failed"
    answer = str(chosen.get("psfmask", "N/A"))
    if "NOT FOUND" in answer.upper() or answer.upper().endswith("N/A"):
        return None, "CRDS has none for this instrument mode"
    path = Path(answer)
    if not path.is_file():
        log.warning("psfmask: CRDS chose %s, which is not in its cache", path.name)
        return None, f"{path.name} is not in the CRDS cache"
    return path, ""


def _not_configured() -> str:
    """Say what CRDS lacks; "" where it can be asked. Imports nothing."""
    cache = os.environ.get("CRDS_PATH", "").strip()
    if not cache:
        return "CRDS is not configured (no CRDS_PATH)"
    if find_spec("crds") is None:
        return "the package crds is not installed"
    known = Path(cache, "config", "jwst", "server_config").is_file()  # what CRDS falls back on
    if not (known or os.environ.get("CRDS_SERVER_URL")):
        return "CRDS is not configured (no CRDS_SERVER_URL, no context in its cache)"
    return ""


def _crds_parameters(exposure: Exposure) -> dict[str, str]:
    meta = exposure.meta
    optics = ("detector", "channel", "filter", "pupil")
    values = {
        "META.TELESCOPE": "JWST",
        "META.INSTRUMENT.NAME": meta.instrument,
        **{f"META.INSTRUMENT.{name.upper()}": getattr(meta, name) for name in optics},
        "META.INSTRUMENT.CORONAGRAPH": meta.coronmsk,
        "META.SUBARRAY.NAME": meta.subarray,
        "META.EXPOSURE.TYPE": meta.exp_type,
        "META.OBSERVATION.DATE": meta.date_obs,
        "META.OBSERVATION.TIME": exposure.primary_header.get("TIME-OBS"),
    }
    return {key: value for key, value in values.items() if isinstance(value, str)}
