"""Small calls that between them launch every kernel; each returns arrays of the device.

The tests run them under the sanitizers, without one barrier at a time, and see that nothing that a
file declares is left out. A case is a function of a `device` (see device_fixture.py), registered
under the .cu file whose kernels it is for. Keep them small: some run at a hundredth of the speed.
"""

import collections

import numpy as np

CASES = collections.defaultdict(list)


def case(file):
    """Register a function of a device for the kernels of ``kernels/<file>.cu``."""
    def register(function):
        CASES[file].append(function)
        return function
    return register


def cube(n, ny=3, nx=11, dtype=np.float32, bad=0.1):
    """Images with some NaN, and which of their pixels are good."""
    rng = np.random.default_rng(n)
    images = rng.normal(100, 30, (n, ny, nx)).astype(dtype)
    images[rng.random(images.shape) < bad] = np.nan
    return images, rng.random(images.shape) > bad


@case("median")
def medians(device):
    from gpucoron.ops.median import median

    results = []
    for dtype in (np.float32, np.float64):
        for n in (1, 5, 9, 20, 33, 100, 200, 500, 1000, 2000, 2100):
            images, good = cube(n, nx=5, dtype=dtype)
            results.append(median(device.array(images), device.array(good)))
    return results
