"""Small calls that between them launch every kernel; each returns arrays of the device.

The tests run them under the sanitizers, without one barrier at a time, and see that nothing that a
file declares is left out. A case is a function of a `device` (see device_fixture.py), registered
under the .cu file whose kernels it is for. Keep them small: some run at a hundredth of the speed.
"""

import collections

import numpy as np

from gpucoron.ops.bad_pixels import exposure_images, fill_bad_pixels
from gpucoron.ops.chebyshev import PhaseSeries
from gpucoron.ops.cuda import registration as ops
from gpucoron.ops.cuda.drizzle_weights import pixel_weights
from gpucoron.ops.drizzle import KERNELS, Drizzle, sum_shares
from gpucoron.ops.eigen import KLBasis, klip_many
from gpucoron.ops.fourier_shift import fourier_shift
from gpucoron.ops.median import median
from gpucoron.ops.outliers import flag_outliers, unpredicted_outliers
from gpucoron.ops.registration import Registration
from tests.helpers.scenes import speckles

CASES = collections.defaultdict(list)
#: Precisions and numbers of images that choose every instantiation of the medians.
STACKS = [
    (dtype, n)
    for dtype in (np.float32, np.float64)
    for n in (1, 5, 9, 20, 33, 100, 200, 500, 1000, 2000, 2100)
]


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
    given = (cube(n, nx=5, dtype=dtype) for dtype, n in STACKS)
    return [median(device.array(images), device.array(good)) for images, good in given]


@case("outliers")
def outliers(device):
    results = []
    for dtype, n in STACKS:
        data = cube(n, nx=5, dtype=dtype, bad=0.02)[0]
        data[n // 2, 1, 2] += 1000
        err, dq = np.full_like(data, 30), np.zeros(data.shape, np.uint32)
        dq[n // 3, 2] = 1
        arrays = [device.array(a) for a in (data, err, dq)]
        found = flag_outliers(*arrays, arrays[1:2] * (n % 4), snr=3.0, neighbours=n < 300)
        results += [*found[:3], *found.variances, *found[4:]]
    return results


@case("outliers")
def suspects(device):
    """Hits in images that change: kriging, with and without neighbours that stand out."""
    rng = np.random.default_rng(5)
    results = []
    some = np.arange(63).reshape(7, 9) % 4 == 0  # corners, edges, both hits; all take a minute
    some[5, 5] = some[5, 7] = True
    for n, dtype in ((2, np.float32), (6, np.float32), (6, np.float64)):
        data = 3 * rng.normal(size=(n, 7, 9)).cumsum(axis=1).cumsum(axis=2)
        data[1, 5, 5] += 900
        data[0, 5, 7] += 900
        values = device.array(data.astype(dtype))
        everywhere = abs(values) >= 0
        suspects = (abs(values - values[n - 1]) > 3) & device.array(some)
        given = values, values * 0 + 1, everywhere, suspects
        results.append(unpredicted_outliers(*given, 3))
    return results


@case("bad_pixels")
def bad_pixels(device):
    results = []
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(6)
        images = 50 * rng.normal(size=(6, 9, 19)).cumsum(axis=1).cumsum(axis=2)
        bad = rng.random(images.shape) < 0.1
        bad[:3, 2:4, 3:6] = bad[3:, 4:, 8:] = bad[5] = True
        images = images.astype(dtype)
        images, err, bad = map(device.array, (images, np.ones_like(images), bad))
        groups = [0, 0, 0, 1, 1, 2]
        exposures = exposure_images(images, bad, groups, err)
        results += [
            *exposures[:4],
            fill_bad_pixels(images, bad, 3, groups),
            fill_bad_pixels(images, bad, 3, groups, err=err, exposures=exposures),
        ]
    return results


@case("klip")
def klips(device):
    results = []
    for n, nref, ny, nx, wanted in [(2, 5, 3, 11, [1, 3]), (1, 67, 9, 13, [2, 32, 33, 66, 67, 0])]:
        rng = np.random.default_rng(nref)
        refs, targets = rng.normal(20, 3, (n, nref, ny, nx)), rng.normal(30, 3, (n, ny, nx))
        refs[0, 1, 2, 2] = targets[0, 0, 1] = np.nan
        for planes in klip_many(device.array(refs), device.array(targets), wanted):
            results += planes
    refs = rng.normal(5, 2, (3, 50, 83))
    for n in (1, 2, 5):
        basis = KLBasis(device.array(refs))
        results += [
            basis.subtract(device.array(refs[:1].repeat(n, axis=0)), 2),
            basis.residual_std(1),
        ]
    return results


@case("fourier_shift")
def fourier_shifts(device):
    rng = np.random.default_rng(0)
    return [
        fourier_shift(device.array(rng.normal(size=(2, *shape))), rng.uniform(-3, 3, (2, 2)))
        for shape in ((2, 2), (5, 8), (17, 6), (18, 67))
    ]


@case("registration")
def registrations(device):
    results = []
    for shape in ((12, 14), (9, 13)):
        images = np.stack([speckles(shape, s) for s in ((0, 0), (0.4, -0.3), (2.4, 2.6))])
        plan = Registration(device.array(images), guide=device.array(images[0]), search=3)
        fits = plan.fit_many(device.array(images[:2]))
        results += [device.array(fits[name]) for name in ("x", "y", "beta", "residual")]
    return results


@case("registration")
def wide_contractions(device):
    """More columns than threads in a block, more rows than the table holds."""
    rng = np.random.default_rng(1)
    spectra = device.array(np.fft.rfft2(rng.normal(size=(2, 36, 410))))
    results = []
    for half_width in (2.3, 4.6):
        y, x = (PhaseSeries.of_axis(n, half_width, half_spectrum=n > 36) for n in (36, 410))
        which = np.array([0, 1, 1]), np.array([1, 0, 1])
        given = spectra, which[0], spectra, which[1], ops.tables(y, x)
        results.append(ops.contract(*given, 1.0, 1))
    return results


@case("drizzle")
def drizzles(device):
    rng = np.random.default_rng(0)
    results = []
    for k, kernel in enumerate(KERNELS):
        ratio = 2.5 if k == 1 else 0.9
        shape, output = ((40, 47), (17, 19)) if k == 1 else ((15, 17), (17, 19))
        y, x = np.indices(shape) - 7.0
        pixel_map = np.stack([(x - 0.2 * y) / ratio + 8.3, (y + 0.2 * x) / ratio + 9.1], axis=-1)
        values = rng.uniform(0.5, 2, (5, 3, *shape)).astype(np.float32)
        images, weights, *variances = (device.array(v) for v in values)
        d = Drizzle(output, kernel=kernel)
        geometry = d.overlaps(device.array(pixel_map))
        for n in range(4):
            d.add(images[:2], geometry, weights[:2], variances=[v[:2] for v in variances[:n]])
        for _ in range(9):
            d.add(images, geometry, weights, variances=variances)
        done = d.result()
        results += [done.data, done.weight, done.context, *done.variances]
        planes = images[:2].astype(np.float64)
        results += [sum_shares(geometry, planes), sum_shares(geometry, planes, squared=True)]
    return results


@case("drizzle_weights")
def drizzle_weights(device):
    images = [device.array(cube(3, bad=bad)[0]) for bad in (0.1, 0.1, 0, 0.1, 0)]
    dq = device.array((cube(4)[0] > 110).astype(np.uint32))
    results = []
    for known, by in (((), None), ((3,), 1), ((2, 3, 4), 1), ((2, 4), None)):
        variances = [images[k] if k in known else None for k in (2, 3, 4)]
        results.append(pixel_weights(*images[:2], dq, variances, np.uint32(1), by, 2.0))
    return results
