"""Uncertainties of a registration from the noise of the pixels, to first order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import fft_module
from gpucoron.ops.fourier_shift import derivatives


def normal_equations(
    references, frame, weight, fits, reference_variances, frame_variance, background
):
    """Hessian of R at the minima of several fits, and how the noise scatters R's gradient there.

    Parameters
    ----------
    references : (n, ny, nx) float64
        p of each fit, without bad pixels.
    frame, weight : (ny, nx) float64
        f, without bad pixels, and m^2.
    fits : (n, 3) float64
        y, x (px) and beta at the minima; where the arrays are.
    reference_variances, frame_variance : (n, ny, nx), (ny, nx) float64
        Of each p, and of f, units of these squared.
    background : bool
        Whether a constant was fitted, too.

    Returns
    -------
    (n, 3, 3, 3) float64
        H, and the covariance of the gradient from the noise of p and from that of f, by
        (y, x, beta); where the arrays are.

    Notes
    -----
    At the minimum the gradient g of R vanishes. Noise changes it by ``G_p . dp + G_f . df``, and
    the minimum by ``-H^-1`` of that, so that the covariance is
    ``H^-1 (sum G_p G_p^T var_p + sum G_f G_f^T var_f) H^-1`` with H the Hessian of R.
    With M = beta S_s f, M~ and r~ M and the residual without their weighted means, and D the
    derivatives by (y, x, beta): ``G_p = -2 m^2 D M~``; f enters through M and its derivatives,
    ``G_f = 2 beta S_-s [m^2 D M~ - d(m^2 r~)]`` with d the derivatives along y and x, and for beta
    ``G_f = 2 S_-s [m^2 M~ - m^2 r~]``.
    What the residual has beyond noise, speckles that do not move with the star, is not
    random and does not count.
    """
    xp, fft, shape = cuda.array_namespace(references), fft_module(references), frame.shape
    y, x, beta = fits.T[:, :, None, None]
    ky, kx = (-xp.asarray(factors) for factors in derivatives(shape))
    k = [ky[:, None], kx[None, :]]
    phase = xp.exp(k[0] * y) * xp.exp(k[1] * x)  # (n, ny, nx // 2 + 1)
    shifted = beta * fft.rfft2(frame) * phase
    m, my, mx = fft.irfft2(xp.stack([shifted, shifted * k[0], shifted * k[1]]), s=shape)
    total = weight.sum()

    def centred(images):
        if not background:
            return images
        return images - _sums(weight * images)[:, None, None] / total

    slopes = xp.stack([centred(my), centred(mx), centred(m) / beta], axis=1)
    left = weight * centred(references - m)
    spectra = fft.rfft2(left)
    product = _counts(shape, xp) * (spectra.conj() * shifted).real
    yy, xy, xx = (
        _sums(product * (a * b).real) / weight.size  # of left with second derivatives
        for a, b in ((k[0], k[0]), (k[0], k[1]), (k[1], k[1]))
    )
    y_, x_ = (_sums(left * slope) / beta[:, 0, 0] for slope in (my, mx))
    second = xp.stack([yy, xy, y_, xy, xx, x_, y_, x_, 0.0 * yy], axis=1).reshape(-1, 3, 3)
    hessian = _products(weight * slopes, slopes) - second
    weighted = fft.rfft2(weight * slopes)
    by_frame = xp.stack(
        [
            (beta * weighted[:, 0] + beta * k[0] * spectra) * phase.conj(),
            (beta * weighted[:, 1] + beta * k[1] * spectra) * phase.conj(),
            (beta * weighted[:, 2] - spectra) * phase.conj(),
        ],
        axis=1,
    )
    by_frame = fft.irfft2(by_frame, s=shape)
    of_references = _products(weight**2 * slopes * reference_variances[:, None], slopes)
    of_frame = _products(by_frame * frame_variance, by_frame)
    return xp.stack([hessian, of_references, of_frame], axis=1)


def _counts(shape, xp):
    """How often each column of a half spectrum occurs in the whole one."""
    counts = np.full(shape[1] // 2 + 1, 2.0)
    counts[0] = 1.0
    if shape[1] % 2 == 0:
        counts[-1] = 1.0
    return xp.asarray(counts)


def _sums(images):
    """Sums over the pixels of each image."""
    return cuda.array_namespace(images).sum(images, axis=(-2, -1))


def _products(a, b):
    """Sums over the pixels of all products of two lists of images, (n, 3, ny, nx) each."""
    xp = cuda.array_namespace(a)
    return xp.stack([_sums(a * b[:, k : k + 1]) for k in range(b.shape[1])], axis=2)


class NoiseCovariances(NamedTuple):
    """What noise does to the fits of one frame to references, by (y, x, beta); NaN: not known."""

    total: np.ndarray  # (nref, 3, 3)
    references: np.ndarray  # (nref, 3, 3), of each reference alone
    frame: np.ndarray  # (nref, 3, 3), of the frame alone

    @property
    def errors(self):
        """Standard deviations of y, x and beta of each fit, (nref, 3)."""
        return _deviations(self.total)

    def errors_and_correlations(self):
        """Standard deviations of y and x, px, and their correlation: (nref, 3) of both noises."""
        out = []
        for covariances in (self.references, self.frame):
            y, x, _ = _deviations(covariances).T
            product = np.where(y * x > 0, y * x, 1.0)
            out.append(np.stack([y, x, covariances[:, 0, 1] / product], axis=1))
        return out


def _deviations(covariances):
    return np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))


def covariances_of(hessian, of_reference, of_frame):
    """Covariances (3, 3, 3) of a fit: of both noises, of the reference's and of the frame's.

    The arguments (3, 3) are from `normal_equations`, on the host. NaN where the Hessian is not
    positive definite.
    """
    if not np.isfinite(hessian).all() or not (np.linalg.eigvalsh(hessian) > 0).all():
        return np.full((3, 3, 3), np.nan)
    inverse = np.linalg.inv(hessian)
    spreads = of_reference + of_frame, of_reference, of_frame
    return np.stack([inverse @ spread @ inverse for spread in spreads])
