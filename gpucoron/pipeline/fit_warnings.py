"""Log the alignment of a science exposure, and warn of fits that are no good."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.ops.registration import CONVERGED, LEFT_OUT, NOT_CONVERGED, PREDICTED
from gpucoron.steps.positions import POINTING_ERROR

if TYPE_CHECKING:
    from gpucoron.core.stack import PlaneSource
    from gpucoron.steps.fit_consistency import Finding

log = logging.getLogger("gpucoron")

_LISTED = 5  # images, or pairs, that a warning names
_REASONS = {
    "uncertainty": "shifts uncertain by up to {:.2g} px (at most {:.2g} px)",
    "residual": "residuals of up to {:.0%} of the reference's rms within the psfmask "
    "(at most {:.0%})",
    "brightness": "brightness ratios up to {:.2g} times off those that the same images have with "
    "others (at most {:.2g})",
    "closure": "shifts up to {:.2g} px off those that the same images have with others "
    "(at most {:.2g} px)",
}


def report_fits(
    root: str, fits: np.ndarray, findings: list[Finding], sources: Sequence[PlaneSource]
) -> None:
    """Log how far the references were moved, and warn of fits that are no good.

    Parameters
    ----------
    root : str
        Root of the science exposure.
    fits : structured array
        All its pairs, `gpucoron.steps.align_refs.FITS_DTYPE`.
    findings : list of Finding
        Why pairs are inconsistent.
    sources : sequence of PlaneSource
        Exposure and integration of each reference image; may be empty.
    """
    failed = fits[fits["status"] == NOT_CONVERGED]
    if len(failed):
        worst = ", ".join(f"{r['sci_integration']}/{r['ref_plane']}" for r in failed[:_LISTED])
        log.warning(
            "%s: %d of %d alignments did not converge (integration/reference %s%s)",
            root,
            len(failed),
            len(fits),
            worst,
            " ..." if len(failed) > _LISTED else "",
        )
    if findings:
        log.warning("%s: %s", root, _inconsistent(fits, findings, sources))
    good = fits[fits["status"] == CONVERGED]
    if len(good):
        length = np.hypot(good["x"], good["y"])
        log.info(
            "%s: %d alignments, shifts of %.3f px (median) to %.3f px (largest)",
            root,
            len(fits),
            float(np.median(length)),
            float(length.max()),
        )


def _inconsistent(fits: np.ndarray, findings: list[Finding], sources) -> str:
    """Say how many fits are inconsistent, of which images, why, and what was done."""
    bad = np.any([finding.pairs for finding in findings], axis=0)
    tried = fits["status"] != LEFT_OUT
    n, total = int(bad.sum()), int(tried.sum())
    if n == total:
        which = "the only alignment is" if n == 1 else f"all {n} alignments are"
        which += " inconsistent"
    else:
        which = f"{n} of {total} alignments {'is' if n == 1 else 'are'} inconsistent, "
        which += f"{'that' if n == 1 else 'those'} of {_images(fits, bad, tried, sources)}"
    why = "; ".join(_REASONS[f.reason].format(f.worst, f.limit) for f in findings)
    return f"{which}: {why}. They are used as fitted; the subtraction may be wrong there"


def _images(fits: np.ndarray, bad: np.ndarray, tried: np.ndarray, sources) -> str:
    """Name the images that explain several bad pairs, and the pairs that are left."""
    planes = np.unique(fits["ref_plane"])
    bad, tried = (a.reshape(-1, len(planes)) for a in (bad, tried))
    references, integrations, pairs = blame(bad, tried)
    numbers = fits["sci_integration"].reshape(bad.shape)[:, 0]
    names = [_reference(planes[j], sources) for j in references]
    names += [f"science integration {numbers[i]}" for i in integrations]
    names += [
        f"science integration {numbers[i]} with {_reference(planes[j], sources)}" for i, j in pairs
    ]
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _reference(plane: int, sources) -> str:
    if len(sources) < plane:
        return f"reference {plane}"
    source = sources[plane - 1]
    return f"{source.exposure} integration {source.integration}"


def blame(bad: np.ndarray, tried: np.ndarray) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Find the images that explain bad pairs.

    Parameters
    ----------
    bad, tried : (nsci, nref) bool
        Which pairs are bad, and which were fitted.

    Returns
    -------
    references, integrations, pairs
        Columns and rows of which more than half the pairs are bad, the worst first, each without
        the pairs that images found before explain; and the pairs (row, column) that are left.
    """
    left = bad.copy()
    found: tuple[list[int], list[int]] = [], []
    while left.any():
        counts = []
        for axis in (0, 1):
            count, of = left.sum(axis=axis), tried.sum(axis=axis)
            counts.append(np.where(2 * count > of, count, 0))
        axis = int(counts[1].max() > counts[0].max())
        worst = int(counts[axis].argmax())
        if not counts[axis][worst]:
            break
        found[axis].append(worst)
        left[(slice(None), worst) if axis == 0 else worst] = False
    return sorted(found[0]), sorted(found[1]), [(int(i), int(j)) for i, j in np.argwhere(left)]


def report_positions(table: np.ndarray, findings: list[Finding], n_pairs: int) -> None:
    """Log how well images could be placed, and warn of those that could not.

    Parameters
    ----------
    table : structured array
        All images, `gpucoron.steps.positions.POSITIONS_DTYPE`; science integrations first.
    findings : list of Finding
        Why fits were not used.
    n_pairs : int
        Fits that were tried.
    """
    root = table["exposure"][0]
    measured = table[table["status"] == CONVERGED]
    if len(measured):
        errors = np.nan_to_num(np.hypot(measured["x_err"], measured["y_err"]))
        log.info(
            "%s: positions of %d images from %d fits, uncertain by %.4f px (median) to %.4f px",
            root,
            len(measured),
            n_pairs,
            float(np.median(errors)),
            float(errors.max()),
        )
    lost = table[table["status"] == PREDICTED]
    if not len(lost):
        return
    why = "; ".join(_REASONS[f.reason].format(f.worst, f.limit) for f in findings)
    if not len(measured):
        which = "no image could be registered"
    else:
        names = [f"{row['exposure']} integration {row['integration']}" for row in lost]
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        which = f"{len(lost)} of {len(table)} images could not be registered "
        which += f"({', '.join(names[:_LISTED])}{more})"
    log.warning(
        "%s: %s: %s. They are placed by the other images of their exposure, or by their headers "
        "(uncertain by %.1f px or more); the subtraction may be wrong",
        root,
        which,
        why or "no fit converged",
        POINTING_ERROR,
    )
