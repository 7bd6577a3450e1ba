"""Slow and obvious versions of every op, written from the formulas alone."""

import numpy as np
from scipy.optimize import least_squares


def box_fill(image, good, box):
    """Median of the good pixels in a box cut at the edges; the box doubles until there are any."""
    out = image.copy()
    for y, x in zip(*np.nonzero(~good), strict=True):
        half = max(box // 2, 1)
        while True:
            window = np.s_[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            if good[window].any():
                out[y, x] = np.median(image[window][good[window]])
                break
            half *= 2
    return out


def raster_fill(image, bad, flagged, box):
    """Fill in reading order from the array as it changes; Python's slices decide the box."""
    out, half = image.copy(), box // 2
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if not bad[y, x]:
                continue
            window = np.s_[y - half : y + half + 1, x - half : x + half + 1]
            use = np.isfinite(out[window]) & ~flagged[window]
            out[y, x] = np.median(out[window][use]) if use.any() else 0
    return out


def fourier_shift(image, shift_yx):
    """Real part of the full complex transform, summed frequency by frequency along each axis."""
    ny, nx = image.shape
    factors = []
    for n, s in zip((ny, nx), shift_yx, strict=True):
        k = np.fft.fftfreq(n, 1 / n)
        positions = np.arange(n)
        kernel = np.exp(2j * np.pi * np.outer(positions - s, k) / n)
        factors.append(kernel @ np.exp(-2j * np.pi * np.outer(k, positions) / n) / n)
    return (factors[0] @ image @ factors[1].T).real


def registration(frame, reference, mask, start):
    """Least squares on the residual itself: (x, y, beta[, c]), and the lowest sum of squares.

    The constant c is fitted where `start` has a fourth value.
    """

    def residual(p):
        model = p[2] * fourier_shift(frame, (p[1], p[0])) + (p[3] if len(p) > 3 else 0.0)
        return (mask * (reference - model)).ravel()

    exact = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    best = least_squares(residual, start, jac="3-point", x_scale="jac", **exact)
    return best.x, 2 * best.cost


def klip(target, references, truncate, weight=None):
    """Project on the right singular vectors of the references, pixel by pixel.

    With a weight those of weighted references; the modes are made of whole references.
    """
    m = np.ones(target.size) if weight is None else weight.ravel()
    refs = references.reshape(len(references), -1)
    refs = refs - np.average(refs, axis=1, weights=m**2)[:, None]
    shares, values, vectors = np.linalg.svd(m * refs, full_matrices=False)
    vectors = vectors[:truncate]
    modes = (shares / values).T[:truncate] @ refs
    t = target.ravel() - np.average(target.ravel(), weights=m**2)
    left = refs - ((m * refs) @ vectors.T) @ modes
    model = modes.T @ (vectors @ (m * t))
    return (t - model).reshape(target.shape), left.std(axis=0).reshape(target.shape)


def klip_without(target, references, truncate, good, weight=None):
    """Least squares of KL vectors of weighted pixels and a constant, on the good pixels alone."""
    m = np.ones(target.size) if weight is None else weight.ravel()
    flat = references.reshape(len(references), -1)
    flat = flat - np.average(flat, axis=1, weights=m**2)[:, None]
    left, values, _ = np.linalg.svd(flat * m, full_matrices=False)
    vectors = (left.T @ flat / values[:, None])[:truncate]
    columns, used = np.vstack([np.ones(m.size), vectors]).T, good.ravel() & (m > 0)
    rows = (columns[used] * m[used, None], target.ravel()[used] * m[used])
    x = np.linalg.lstsq(*rows, rcond=None)[0]
    return target - (columns @ x).reshape(target.shape)


def krige(image, usable, err, y, x, table, reach):
    """Simple kriging, one dense system a pixel; `table` is the correlation by squared distance."""
    values, variances = np.full((2, len(y)), np.nan)
    all_v, all_u = np.nonzero(usable)
    for i, centre in enumerate(zip(y, x, strict=True)):
        distance = (all_v - centre[0]) ** 2 + (all_u - centre[1]) ** 2
        near = (distance > 0) & (distance <= reach**2)
        v, u = all_v[near], all_u[near]
        if len(v) < 3:
            continue
        data = image[v, u].astype(np.float64)
        noise = np.where(np.isfinite(err[v, u]), err[v, u], 0).astype(np.float64) ** 2
        signal = np.mean((data - data.mean()) ** 2) - noise.mean()
        if signal <= 0.3 * noise.mean():
            values[i], variances[i] = data.mean(), max(signal, 0)
            continue
        system = table[(v[:, None] - v) ** 2 + (u[:, None] - u) ** 2]
        system = system + max(noise.mean() / signal, 1e-4) * np.eye(len(v))
        weights = np.linalg.solve(system, table[distance[near]])
        values[i] = data.mean() + weights @ (data - data.mean())
        variances[i] = signal * max(0, 1 - weights @ table[distance[near]])
    return values, variances
