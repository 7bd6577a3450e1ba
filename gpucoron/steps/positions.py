"""Positions of all images of one science exposure and its references, from fits of some pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpucoron.ops.positions import Positions, solve_positions
from gpucoron.ops.registration import CONVERGED, LEFT_OUT, PREDICTED, left_out
from gpucoron.steps.fit_consistency import Finding, find_inconsistent_fits, mark_inconsistent

__all__ = [
    "POSITIONS_DTYPE",
    "JointPositions",
    "Pointing",
    "joint_positions",
    "spanning_integrations",
]

#: One row for each image, science integrations first, then references; see docs/units.md.
POSITIONS_DTYPE = np.dtype(
    [
        ("exposure", "U80"),
        ("exptype", "U8"),
        ("integration", "i4"),
        ("x", "f8"),
        ("y", "f8"),
        ("x_err", "f8"),
        ("y_err", "f8"),
        ("xy_cov", "f8"),
        ("brightness", "f8"),
        ("chi2", "f8"),
        ("n_fits", "i4"),
        ("status", "i2"),
    ]
)

SPANNING = 4  # science integrations that are fitted to every other image
GOOD_SHARE = 0.5  # of the fits of an image that must be good for its position to be measured
JITTER = 0.02  # px; how far the images of an exposure are apart, where one stands for another
POINTING_ERROR = 0.3  # px; of a position that only the header tells


class Pointing(NamedTuple):
    """Where the headers say that the star is, pixels (x, y) of the image."""

    science: np.ndarray  # (2,)
    references: np.ndarray  # (nref, 2)


class JointPositions(NamedTuple):
    """The result of `joint_positions`.

    Axes are (y, x) in arrays of two numbers; pixels. The origin is the mean position of the
    science integrations that were measured.
    """

    science: np.ndarray  # (nsci, 2); NaN for an integration without a usable pixel
    references: np.ndarray  # (nref, 2); NaN for a reference that is left out
    science_errors: np.ndarray  # (nsci, 2), standard deviations; NaN where not known
    references_errors: np.ndarray  # (nref, 2)
    xy_cov: tuple[np.ndarray, np.ndarray]  # (nsci,), (nref,): covariance of x and y, px^2
    brightness: tuple[np.ndarray, np.ndarray]  # (nsci,), (nref,): relative to the science images
    chi2: tuple[np.ndarray, np.ndarray]  # of the closure of each image's fits, reduced
    n_fits: tuple[np.ndarray, np.ndarray]  # good fits of each image
    status: tuple[np.ndarray, np.ndarray]  # CONVERGED, LEFT_OUT or PREDICTED
    fits: np.ndarray  # (nsci, nref) of FIT_DTYPE: what positions say of each pair
    findings: list[Finding]  # fits that were not used
    n_pairs: int  # that were fitted

    def table(self, root: str, sources: Sequence) -> np.ndarray:
        """Return the positions as a table.

        Parameters
        ----------
        root : str
            Name of the science exposure.
        sources : sequence of PlaneSource
            Of the references; may be empty.

        Returns
        -------
        (nsci + nref,) structured array of `POSITIONS_DTYPE`
        """
        n, m = len(self.science), len(self.references)
        out = np.zeros(n + m, dtype=POSITIONS_DTYPE)
        out["exposure"][:n], out["exptype"][:n], out["exptype"][n:] = root, "science", "psf"
        out["integration"] = np.concatenate([np.arange(1, n + 1), np.arange(1, m + 1)])
        for k, source in enumerate(sources):
            out["exposure"][n + k], out["integration"][n + k] = source.exposure, source.integration
        out["y"], out["x"] = np.concatenate([self.science, self.references]).T
        errors = np.concatenate([self.science_errors, self.references_errors])
        out["y_err"], out["x_err"] = errors.T
        for name in ("xy_cov", "brightness", "chi2", "n_fits", "status"):
            out[name] = np.concatenate(getattr(self, name))
        return out


def spanning_integrations(usable: np.ndarray) -> np.ndarray:
    """Choose the science integrations that are fitted to every image, from (nsci,) bool."""
    rows = np.flatnonzero(usable)
    chosen = np.linspace(0, len(rows) - 1, min(SPANNING, len(rows)))
    return rows[np.unique(np.rint(chosen).astype(int))]


def joint_positions(
    fit_pairs: Callable[[np.ndarray], np.ndarray],
    usable: tuple[np.ndarray, np.ndarray],
    groups: np.ndarray,
    rms: np.ndarray,
    noise: tuple[np.ndarray, np.ndarray],
    pointing: Callable[[], Pointing | None] | None = None,
) -> JointPositions:
    """Measure one position for each image instead of one shift for each pair.

    Parameters
    ----------
    fit_pairs : callable
        Takes the numbers of some science integrations, and returns their fits to every reference
        and then to every science integration that is not one of `spanning_integrations`,
        (n, nref + nother) of `gpucoron.ops.registration.FIT_DTYPE`.
    usable : (nsci,) bool, (nref,) bool
        Which images have any pixels to fit.
    groups : (nref,) int
        Exposure of each reference.
    rms : (nref + nother,) float64
        What no fit would leave of these images, as for `find_inconsistent_fits`.
    noise : (nsci, 3), (nref, 3) float64
        Standard deviations (y, x), px, of a shift by the noise of each image alone, and their
        correlation; NaN where not known.
    pointing : callable, optional
        Returns where the headers have the star, for references that cannot be measured; asked for
        only then.

    Returns
    -------
    JointPositions

    Notes
    -----
    The shift between two images is the difference of their positions, ``s_ij = a_j - b_i``, so
    that n + m positions say all that n m fits say, and more robustly. `SPANNING` science
    integrations are fitted to every reference and to all others of the exposure; where fits
    contradict each other, all integrations are fitted to all references. Positions are those of
    least squares with Huber's weights (`gpucoron.ops.positions.solve_positions`), from the fits
    that `find_inconsistent_fits` accepts.

    The references are placed by the science exposure and not by each other: the image of a
    dithered star differs in shape from one that is behind the mask's centre, so that what two
    references say of each other's place disagrees with what the science image says of both, by 0.01
    px (NIRCam) to 0.2 px (4QPM).

    The error of a position is what the image's own noise does to a shift, which is not made
    smaller by more fits: they share that noise. Where what is left of the image's shifts scatters
    more than the errors of pairs (a reduced chi-square of the closure above 1: speckles that do
    not move with the star), the excess, which is each pair's own, is added to it, divided by the
    number of fits. The covariance of x and y is that of the image's noise; the excess, and what is
    not known, has none.

    An image of which less than half of the fits are good has the position of the other images of
    its exposure, or that of the headers (status `PREDICTED`).
    """
    n, m = (len(which) for which in usable)
    spanning = spanning_integrations(usable[0])
    fits = fit_pairs(spanning)
    findings, good = _judge(fits, rms)
    if (_tried(fits) & ~good).any() and len(spanning) < usable[0].sum():
        spanning = np.flatnonzero(usable[0])
        fits = fit_pairs(spanning)[:, :m]
        findings, good = _judge(fits, rms[:m])
    others = np.setdiff1d(np.flatnonzero(usable[0]), spanning)
    return _positions(fits, good, findings, (spanning, others), usable, groups, noise, pointing)


def _tried(fits: np.ndarray) -> Any:
    return fits["status"] != LEFT_OUT


def _judge(fits: np.ndarray, reference_rms: np.ndarray) -> tuple[list[Finding], Any]:
    """Find the fits that cannot be right, and those that can, (nsci, nref) bool."""
    findings = find_inconsistent_fits(fits.ravel(), reference_rms)
    marked = mark_inconsistent(fits.ravel(), findings).reshape(fits.shape)
    return findings, marked["status"] == CONVERGED


def _positions(
    fits: Any,
    good: Any,
    findings: list[Finding],
    science: tuple[np.ndarray, np.ndarray],
    usable: tuple[np.ndarray, np.ndarray],
    groups: np.ndarray,
    noise: tuple[np.ndarray, np.ndarray],
    pointing: Callable[[], Pointing | None] | None,
) -> JointPositions:
    """Solve for positions, and complete them with those that were not measured.

    The rows of `fits` are the first of `science`, its last columns the second.
    """
    (rows, others), m, tried = science, len(usable[1]), _tried(fits)
    enough = [good.sum(axis=a) >= np.maximum(1, GOOD_SHARE * tried.sum(axis=a)) for a in (1, 0)]
    good = good & np.logical_and.outer(*enough)

    def images(of_rows: Any, of_columns: Any) -> tuple[Any, Any]:
        """Values of the science integrations, and of the references."""
        out = np.full((len(usable[0]), *of_rows.shape[1:]), np.nan)
        out[rows], out[others] = of_rows, of_columns[m:]
        return out, of_columns[:m]

    solved = solve_positions(np.stack([fits["y"], fits["x"]], axis=2), good)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = solve_positions(np.log(fits["beta"])[:, :, None], good)
    brightness = images(np.exp(logs.rows[:, 0]), np.exp(logs.columns[:, 0]))
    chi2 = _closure(solved, good, fits)
    own = noise[0][rows], np.concatenate([noise[1], noise[0][others]])
    sigmas = images(*_errors([known[:, :2] for known in own], chi2, fits, good))
    xy_cov = images(*(np.nan_to_num(known.prod(axis=1)) for known in own))
    counts = images(good.sum(axis=1), good.sum(axis=0))
    n_fits = np.nan_to_num(counts[0]).astype(int), counts[1]
    measured = [use & (count > 0) for use, count in zip(usable, n_fits, strict=True)]
    places = images(solved.rows, solved.columns)
    origin = places[0][measured[0]].mean(axis=0) if measured[0].any() else 0.0
    of_science = _predict_science(places[0] - origin, sigmas[0], measured[0], usable[0])
    of_references = _predict_references(
        places[1] - origin, sigmas[1], measured[1], usable[1], groups, pointing
    )
    status: Any = tuple(
        np.where(use, np.where(found, CONVERGED, PREDICTED), LEFT_OUT)
        for use, found in zip(usable, measured, strict=True)
    )
    covariances: Any = tuple(
        np.where(found, cov, 0.0) for found, cov in zip(measured, xy_cov, strict=True)
    )
    direct = np.tile(left_out(m), (len(usable[0]), 1))
    direct[rows] = np.where(good[:, :m], fits[:, :m], direct[rows])
    return JointPositions(
        of_science[0],
        of_references[0],
        of_science[1],
        of_references[1],
        covariances,
        brightness,
        tuple(np.nan_to_num(c) for c in images(*chi2)),
        n_fits,
        status,
        _pairs(direct, of_science, of_references, brightness, status),
        findings,
        int(tried.sum()),
    )


def _errors(own: list[Any], chi2: tuple[Any, Any], fits: Any, good: Any) -> list[Any]:
    """Return errors (y, x) of the rows' and the columns' images: their noise, and the excess."""
    return [
        np.hypot(_noise(known, fits, good, axis), _excess(c, fits, good, axis))
        for known, c, axis in zip(own, chi2, (1, 0), strict=True)
    ]


def _closure(solved: Positions, good: Any, fits: Any) -> tuple[Any, Any]:
    """Reduced chi-square of what is left of each image's shifts, by the errors of pairs."""
    variance = np.stack([fits["y_err"], fits["x_err"]], axis=2) ** 2
    ratio = np.where(good[:, :, None], solved.rest**2 / np.fmax(variance, 1e-30), 0.0)
    count = good.sum()
    free = count - good.any(axis=1).sum() - good.any(axis=0).sum() + 1
    if free <= 0:
        return np.zeros(good.shape[0]), np.zeros(good.shape[1])
    ratio = np.nan_to_num(ratio).mean(axis=2) * (count / free)
    by_row, by_column = (ratio.sum(axis=a) / np.maximum(good.sum(axis=a), 1) for a in (1, 0))
    return by_row, by_column


def _pair_errors(fits: Any, good: Any, axis: int) -> np.ndarray:
    """Median error (y, x) of the good pairs of each image, px; NaN where there are none."""
    pair = np.where(good[:, :, None], np.stack([fits["y_err"], fits["x_err"]], axis=2), np.nan)
    has = good.any(axis=axis)
    out = np.full((len(has), 2), np.nan)
    out[has] = np.nanmedian(np.compress(has, pair, axis=1 - axis), axis=axis)
    return out


def _noise(known: np.ndarray, fits: Any, good: Any, axis: int) -> np.ndarray:
    """Noise of each image (y, x); where it is not known, a share of the errors of its pairs."""
    return np.where(np.isfinite(known), known, _pair_errors(fits, good, axis) / np.sqrt(2))


def _excess(chi2: np.ndarray, fits: Any, good: Any, axis: int) -> np.ndarray:
    """What a closure that is worse than noise adds to the error of each position (y, x), px."""
    share = np.sqrt(np.fmax(0.0, chi2 - 1) / np.maximum(good.sum(axis=axis), 1))
    return share[:, None] * _pair_errors(fits, good, axis)


def _predict_science(positions: Any, errors: Any, measured: Any, usable: Any) -> tuple[Any, Any]:
    """Give science integrations that were not measured the mean position of the others."""
    lost = usable & ~measured
    middle = np.median(positions[measured], axis=0) if measured.any() else np.zeros(2)
    error = np.hypot(np.median(errors[measured], axis=0), JITTER) if measured.any() else np.nan
    return _put(positions, lost, middle), _put(errors, lost, error)


def _predict_references(
    positions: Any,
    errors: Any,
    measured: Any,
    usable: Any,
    groups: np.ndarray,
    pointing: Callable[[], Pointing | None] | None,
) -> tuple[Any, Any]:
    """Give references that were not measured the position of their exposure, or of the headers."""
    lost = usable & ~measured
    expected, uncertain = np.zeros_like(positions), np.nan
    headers = pointing() if pointing is not None and lost.any() else None
    if headers is not None:
        expected = (headers.references - headers.science)[:, ::-1]
        uncertain = POINTING_ERROR
    if measured.any():  # what acquisition adds to the headers' positions
        expected = expected + np.median(positions[measured] - expected[measured], axis=0)
    positions, errors = _put(positions, lost, expected[lost]), _put(errors, lost, uncertain)
    for group in np.unique(groups[lost]):
        own = (groups == group) & measured
        if own.any():
            same = (groups == group) & lost
            positions[same] = np.median(positions[own], axis=0)
            errors[same] = np.hypot(np.median(errors[own], axis=0), JITTER)
    return positions, errors


def _put(values: np.ndarray, which: np.ndarray, new: Any) -> np.ndarray:
    values = values.copy()
    values[which] = new
    return values


def _pairs(fits: Any, science: Any, references: Any, brightness: Any, status: Any) -> np.ndarray:
    """Fits of all pairs as the positions have them; `fits` are the good ones that were tried."""
    out = np.tile(left_out(fits.shape[1]), (len(fits), 1))
    out["y"], out["x"] = np.moveaxis(references[0][None] - science[0][:, None], 2, 0)
    both = np.hypot(references[1][None], science[1][:, None])
    out["y_err"], out["x_err"] = np.moveaxis(both, 2, 0)
    out["beta"] = brightness[1][None] / brightness[0][:, None]
    for name in ("beta_err", "residual"):
        out[name] = fits[name]
    out["n_iter"] = np.where(_tried(fits), fits["n_iter"], 0)
    lost = np.logical_or.outer(status[0] == LEFT_OUT, status[1] == LEFT_OUT)
    predicted = np.logical_or.outer(status[0] == PREDICTED, status[1] == PREDICTED)
    out["status"] = np.where(lost, LEFT_OUT, np.where(predicted, PREDICTED, CONVERGED))
    out[lost] = left_out(1)[0]
    return out
