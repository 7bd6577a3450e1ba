"""How the noise of the pixels moves a registration, to first order."""

from __future__ import annotations

import numpy as np
import scipy.fft


def propagated_errors(reference, frame, weight, fit, reference_variance, frame_variance,
                      background):
    """Standard deviations of a fitted shift and brightness.

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
    (float, float, float)
        Standard deviations of y, x and beta; NaN where the Hessian is not positive definite.

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
    ny, nx = reference.shape
    y, x, beta = fit
    ky, kx = -2j * np.pi * np.fft.fftfreq(ny)[:, None], -2j * np.pi * np.fft.rfftfreq(nx)[None]
    if ny % 2 == 0:
        ky[ny // 2] = 0.0
    if nx % 2 == 0:
        kx[0, -1] = 0.0
    phase = np.exp(ky * y + kx * x)
    shifted = beta * scipy.fft.rfft2(frame) * phase
    factors = (1.0, ky, kx, ky * ky, ky * kx, kx * kx)
    m, my, mx, myy, mxy, mxx = (_back(shifted * k, (ny, nx)) for k in factors)
    total = weight.sum()

    def centred(image):
        return image - np.sum(weight * image) / total if background else image

    slopes = [centred(my), centred(mx), centred(m) / beta]
    left = weight * centred(reference - m)
    hessian = np.array([[np.sum(weight * a * b) for b in slopes] for a in slopes])
    second = [[myy, mxy, my / beta], [mxy, mxx, mx / beta], [my / beta, mx / beta, None]]
    for i in range(3):
        for j in range(3):
            if second[i][j] is not None:
                hessian[i, j] -= np.sum(left * second[i][j])
    spectrum = scipy.fft.rfft2(left)
    by_frame = [_back((beta * scipy.fft.rfft2(weight * s) + k * spectrum) * phase.conj(), (ny, nx))
                for s, k in zip(slopes, (beta * ky, beta * kx, -1.0), strict=True)]
    spread = np.array([[np.sum(weight**2 * a * b * reference_variance) for b in slopes]
                       for a in slopes])
    spread += np.array([[np.sum(a * b * frame_variance) for b in by_frame] for a in by_frame])
    try:
        inverse = np.linalg.inv(hessian)
        positive = (np.linalg.eigvalsh(hessian) > 0).all()
    except np.linalg.LinAlgError:
        positive = False
    if not positive:
        return np.full(3, np.nan)
    return np.sqrt(np.diag(inverse @ spread @ inverse))


def _back(spectrum, shape):
    return scipy.fft.irfft2(spectrum, s=shape)
