"""How the noise of the pixels moves a registration, to first order."""

from __future__ import annotations

import numpy as np

from gpucoron import cuda
from gpucoron.ops._device_arrays import fourier
from gpucoron.ops.fourier_shift import derivatives


def normal_equations(reference, frame, weight, fit, reference_variance, frame_variance,
                     background):
    """Hessian of R at a minimum, and how the noise scatters R's gradient there.

    Parameters
    ----------
    reference, frame : (ny, nx) float64
        p and f, without bad pixels.
    weight : (ny, nx) float64
        m^2.
    fit : (float, float, float)
        y, x (px) and beta at the minimum.
    reference_variance, frame_variance : (ny, nx) float64
        Of p and f, units of these squared.
    background : bool
        Whether a constant was fitted, too.

    Returns
    -------
    (2, 3, 3) float64
        H, and the covariance of the gradient, by (y, x, beta); where the arrays are.

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
    xp, fft, shape = cuda.namespace(reference), fourier(reference), reference.shape
    y, x, beta = fit
    ky, kx = (-xp.asarray(factors) for factors in derivatives(shape))
    ky = ky[:, None]
    phase = xp.exp(ky * y + kx * x)
    shifted = beta * fft.rfft2(frame) * phase
    m, my, mx = fft.irfft2(xp.stack([shifted, shifted * ky, shifted * kx]), s=shape)
    total = weight.sum()

    def centred(image):
        return image - xp.sum(weight * image) / total if background else image

    slopes = xp.stack([centred(my), centred(mx), centred(m) / beta])
    left = weight * centred(reference - m)
    spectrum = fft.rfft2(left)
    product = _counts(shape, xp) * (spectrum.conj() * shifted).real
    yy, xy, xx = (xp.sum(product * (a * b).real) / weight.size  # of left with second derivatives
                  for a, b in ((ky, ky), (ky, kx), (kx, kx)))
    y_, x_ = xp.sum(left * my), xp.sum(left * mx)
    second = xp.stack([yy, xy, y_ / beta, xy, xx, x_ / beta, y_ / beta, x_ / beta, 0.0 * yy])
    hessian = _products(weight * slopes, slopes) - second.reshape(3, 3)
    by_frame = fft.irfft2(
        xp.stack([(beta * fft.rfft2(weight * s) + k * spectrum) * phase.conj()
                  for s, k in zip(slopes, (beta * ky, beta * kx, -1.0), strict=True)]), s=shape)
    spread = (_products(weight**2 * slopes * reference_variance, slopes)
              + _products(by_frame * frame_variance, by_frame))
    return xp.stack([hessian, spread])


def _counts(shape, xp):
    """How often each column of a half spectrum occurs in the whole one."""
    counts = np.full(shape[1] // 2 + 1, 2.0)
    counts[0] = 1.0
    if shape[1] % 2 == 0:
        counts[-1] = 1.0
    return xp.asarray(counts)


def _products(a, b):
    """Sums over the pixels of all products of two lists of images."""
    xp = cuda.namespace(a)
    return xp.stack([xp.sum(u * v) for u in a for v in b]).reshape(len(a), len(b))


def standard_deviations(hessian, spread):
    """Standard deviations of y, x and beta; NaN where the Hessian is not positive definite.

    Parameters
    ----------
    hessian, spread : (3, 3) float64
        From `normal_equations`, on the host.

    Returns
    -------
    (3,) float64
    """
    if not np.isfinite(hessian).all() or not (np.linalg.eigvalsh(hessian) > 0).all():
        return np.full(3, np.nan)
    inverse = np.linalg.inv(hessian)
    return np.sqrt(np.diag(inverse @ spread @ inverse))
