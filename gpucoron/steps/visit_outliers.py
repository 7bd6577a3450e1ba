"""Outliers of exposures of one integration, found by the other exposures of the same visit.

Several integrations tell cosmic rays from the star (`gpucoron.ops.outliers`). Of a single one the
neighbours of a pixel tell those that are sharper than the PSF, and no others. Where a reference
star was observed on a grid of dithers, an integration at each, the exposures tell more: a hit is in
one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.backend.parallel import over_products
from gpucoron.core.stack import VARIANCES
from gpucoron.ops import dq as dq_bits
from gpucoron.ops.fourier_shift import fourier_shift
from gpucoron.ops.registration import CONVERGED, Registration
from gpucoron.steps.bad_pixels import BadPixelFiller
from gpucoron.steps.outlier_detection import OutlierResult

__all__ = ["LEAST_EXPOSURES", "flag_by_visit"]

LEAST_EXPOSURES = 4  # of a visit, so that no two of the others have to be believed
THRESHOLD = 1.6  # times `snr`: all pixels are looked at, not suspects alone
UNSURE = 0.05  # of the predicted light, in its error
BOX, MARGIN = 24, 8  # px: predicted at a time, and the rim around it that is fitted, too
RIM = 4  # px at the edges of the image, where shifted ones are not known
CLIPPED, FITS = 4.0, 3  # standard deviations beyond which a pixel leaves a fit, and repetitions
FALLS = 5.0  # by which the threshold falls from round to round
MOST_ROUNDS = 8
# Of what a fit leaves: shares of the pixels, and how many standard deviations a Gaussian's have
QUANTILES = ((0.5, 0.6745), (0.95, 1.96))
LEAST_PIXELS = 100  # of a box
PREDICTED = 4.0  # times ERR: where more is left, the others do not predict the image


def flag_by_visit(exposures: Sequence[OutlierResult], snr: float) -> list[OutlierResult]:
    """Flag more outliers of exposures of one integration each that show the same star.

    Parameters
    ----------
    exposures : sequence of OutlierResult
        Of outlier_detection, the exposures of one visit to a reference star; on the host or on a
        GPU (they are compared on the host).
    snr : float
        A pixel is an outlier if it is brighter than predicted by more than 1.6 `snr` standard
        deviations.

    Returns
    -------
    list of OutlierResult
        With DO_NOT_USE and OUTLIER set on outliers, too, where data, err and variances are NaN. The
        same where there are fewer than four exposures.

    Notes
    -----
    The exposures are registered. In boxes of 24 px, and 8 px around them, each is fitted by the
    others, moved to it, and a constant, by least squares without what deviates by more than 4
    standard deviations (LOCI [1]_). The error of the prediction is ERR times the scatter of what is
    left in the box, in units of ERR, and a twentieth of the predicted light. Outliers must not
    predict others: the brightest are flagged first, and replaced by their prediction, then the
    threshold falls by factors of 5.

    A source near the reference star is in all exposures and no outlier. Near the star, where
    its image changes from dither to dither, only hits brighter than these changes are found.

    References
    ----------
    .. [1] Lafreniere et al. 2007, ApJ 660, 770.
    """
    stacks = [found.stack for found in exposures]
    if len(stacks) < LEAST_EXPOSURES:
        return list(exposures)
    data, err = (
        np.concatenate([to_host(getattr(stack, name)) for stack in stacks]).astype(np.float64)
        for name in ("data", "err")
    )
    dq = np.concatenate([to_host(stack.dq) for stack in stacks])
    bad = ((dq & np.uint32(dq_bits.DO_NOT_USE)) != 0) | ~np.isfinite(data) | ~(err > 0)
    found = np.zeros(bad.shape, bool)
    seen = np.flatnonzero(~bad.all(axis=(1, 2)))
    images = BadPixelFiller(zero_non_science=True).fill(
        data[seen], dq[seen], np.arange(len(seen)), err[seen]
    )
    middle = len(seen) // 2
    fits = Registration(images, guide=images[middle]).fit(images[middle])
    good = (fits["status"] == CONVERGED) & (fits["beta"] > 0)
    if good.sum() < LEAST_EXPOSURES:
        return list(exposures)
    used = seen[good]
    shifts = np.stack([fits["y"], fits["x"]], axis=1)[good]
    found[used] = _outliers(data[used], err[used], bad[used], images[good], shifts, snr)
    return [_flagged(e, f) for e, f in zip(exposures, found[:, None], strict=True)]


def _outliers(
    data: np.ndarray,
    err: np.ndarray,
    bad: np.ndarray,
    images: np.ndarray,
    shifts: np.ndarray,
    snr: float,
) -> np.ndarray:
    """Find the outliers of registered images, brightest first."""
    bad = bad.copy()
    for rim in (np.s_[:RIM], np.s_[-RIM:]):
        bad[:, rim] = bad[:, :, rim] = True
    found, lowest = np.zeros_like(bad), THRESHOLD * snr
    for _ in range(MOST_ROUNDS):
        predict = functools.partial(_predict, images, shifts, err, bad | found)
        parts = over_products(predict, range(len(images)))
        predicted, sigma = (np.stack(part) for part in zip(*parts, strict=True))
        score = np.where(bad, 0.0, (data - predicted) / sigma)
        threshold = max(lowest, np.max(score[~found], initial=0.0) / FALLS)
        new = (score > threshold) & ~found
        found |= new
        images = np.where(found, predicted, np.where(bad, images, data))
        if threshold == lowest and not new.any():
            break
    return found


def _predict(
    images: np.ndarray, shifts: np.ndarray, errs: np.ndarray, unusable: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predict image `k` by the others in boxes, and the standard deviation of each pixel."""
    image, err, bad = images[k], errs[k], unusable[k]
    others = fourier_shift(np.delete(images, k, 0), shifts[k] - np.delete(shifts, k, 0))
    terms = _windows(np.concatenate([others, np.ones((1, *image.shape))]))
    value = _windows(image[None])[:, 0]
    weight = _windows(np.where(bad, 0.0, 1 / np.where(err > 0, err, np.inf))[None])[:, 0]
    inlier = weight > 0
    for _ in range(FITS):
        weighted = terms * (weight**2 * inlier)[:, None]
        gram = weighted @ terms.transpose(0, 2, 1)
        coefficients = _solve(gram, weighted @ value[:, :, None])[:, :, 0]
        predicted = (coefficients[:, None] @ terms)[:, 0]
        left = np.where(weight > 0, np.abs(value - predicted) * weight, np.inf)
        spread = _spread(left, (weight > 0).sum(axis=1))
        inlier = left < CLIPPED * spread[:, None]
    predicted = _centres(predicted, image.shape)
    scale = _centres(np.maximum(spread, 1.0)[:, None] + np.zeros_like(left), image.shape)
    return predicted, np.hypot(np.where(bad, np.inf, err) * scale, UNSURE * predicted)


def _windows(images: np.ndarray) -> np.ndarray:
    """Cut images into boxes with their rims: (box, image, pixel), 0 outside the images."""
    pads = [(MARGIN, -n % BOX + MARGIN) for n in images.shape[1:]]
    width = BOX + 2 * MARGIN
    padded = np.pad(images, [(0, 0), *pads])
    boxes = np.lib.stride_tricks.sliding_window_view(padded, (width, width), axis=(1, 2))
    boxes = boxes[:, ::BOX, ::BOX].transpose(1, 2, 0, 3, 4)
    return boxes.reshape(-1, len(images), width**2)


def _centres(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Put the boxes' pixels together to an image, without their rims."""
    rows, columns = (-(-n // BOX) for n in shape)
    width = BOX + 2 * MARGIN
    boxes = values.reshape(rows, columns, width, width)[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    image = boxes.transpose(0, 2, 1, 3).reshape(rows * BOX, columns * BOX)
    return image[: shape[0], : shape[1]]


def _solve(gram: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Solve normal equations, without terms that a box does not have or that equal others."""
    diagonal = np.einsum("bii->bi", gram)
    size = 1 / np.sqrt(np.where(diagonal > 0, diagonal, np.inf))
    scaled = gram * size[:, :, None] * size[:, None]
    inverse = np.linalg.pinv(scaled, rcond=1e-8, hermitian=True)
    return size[:, :, None] * (inverse @ (side * size[:, :, None]))


def _spread(left: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Robust standard deviation of each box: of the middle, or of the tail if that is longer."""
    out = np.full(len(left), np.inf)
    for k in np.flatnonzero(count > LEAST_PIXELS):
        places = [int(count[k] * q) for q, _ in QUANTILES]
        values = np.partition(left[k], places)[places]
        out[k] = max(v / sigma for v, (_, sigma) in zip(values, QUANTILES, strict=True))
    return np.where(out > PREDICTED, np.inf, out)


def _flagged(exposure: OutlierResult, outlier: np.ndarray) -> OutlierResult:
    """Set the flags of outliers, and their values to NaN."""
    if not outlier.any():
        return exposure
    stack = exposure.stack
    xp = cuda.array_namespace(stack.data)
    bits = xp.asarray(outlier) * np.uint32(dq_bits.DO_NOT_USE | dq_bits.OUTLIER)
    values = {
        name: xp.where(bits != 0, array.dtype.type(np.nan), array)
        for name in ("data", "err", *VARIANCES)
        if (array := getattr(stack, name)) is not None
    }
    flagged = exposure.flagged + xp.asarray(outlier.sum(axis=(1, 2)))
    return exposure._replace(stack=stack.replace(dq=stack.dq | bits, **values), flagged=flagged)
