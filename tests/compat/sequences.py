"""Sequences of images of a star for the tests of other packages' calls, made from numbers alone."""

import numpy as np

SHAPE = (46, 50)
CENTER = (23.4, 22.2)  # x, y


def sequence(seed, n, *, angles, flux=1.0, nans=0, shape=SHAPE, center=CENTER, planet=0.0):
    """Return images (n, ny, nx) with speckles that change, their centers, and angles.

    A planet 12 px from the star is at -angle counter-clockwise from +x: derotated it is at +x.
    """
    random, star = np.random.default_rng(seed), np.random.default_rng(1)
    y, x = np.indices(shape, dtype=float)
    waves = star.normal(size=(6, 3))
    centers = np.array(center) + random.uniform(-0.7, 0.7, (n, 2))
    images = np.empty((n, *shape))
    for k, (cx, cy) in enumerate(centers):
        dx, dy = x - cx, y - cy
        r = np.hypot(dx, dy)
        amplitudes = 1 + 0.2 * random.normal(size=6)
        u, v, p = waves.T[..., None, None]
        phases = 0.5 * (u * dx + v * dy) + p
        speckles = np.einsum("a,ayx->yx", amplitudes, 1 + np.cos(phases))
        images[k] = flux * (100 * np.exp(-r / 5) * (1 + 0.2 * speckles))
        turned = np.radians(-angles[k])
        px, py = cx + 12 * np.cos(turned), cy + 12 * np.sin(turned)
        images[k] += planet * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 4)
    images += random.normal(0, 0.05, images.shape)
    for _ in range(nans):
        images[random.integers(n), random.integers(shape[0]), random.integers(shape[1])] = np.nan
    return images, centers
