"""Small coronagraphic-looking scenes for the tests of registration and KLIP."""

import numpy as np


def speckles(shape, shift_yx=(0.0, 0.0), seed=0, brightness=1.0):
    """A halo and speckles, all moved by a shift: smooth, and known at any subpixel position."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    y -= shape[0] / 2 + shift_yx[0]
    x -= shape[1] / 2 + shift_yx[1]
    image = 300.0 * np.exp(-(x * x + y * y) / 2 / 4.0**2)
    reach = 0.3 * min(shape)
    for _ in range(15):
        cy, cx = rng.uniform(-reach, reach, 2)
        image += rng.uniform(-40, 100) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 2 / 1.6**2)
    return brightness * image


def read_only(*arrays):
    """Forbid writing, to prove that nothing mutates its input."""
    for array in arrays:
        array.setflags(write=False)
    return arrays if len(arrays) > 1 else arrays[0]


def changed(stack, **changes):
    """A stack with some values of some arrays exchanged: name=(index, value)."""
    arrays = {}
    for name, (index, value) in changes.items():
        arrays[name] = getattr(stack, name).copy()
        arrays[name][index] = value
    read_only(*arrays.values())
    return stack.replace(**arrays)


def gaussian(shape, x, y, peak, fwhm):
    """A round Gaussian of a full width at half maximum in pixels."""
    yy, xx = np.indices(shape)
    return peak * np.exp(-4 * np.log(2) * ((xx - x) ** 2 + (yy - y) ** 2) / fwhm**2)
