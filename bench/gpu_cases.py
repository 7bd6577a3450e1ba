"""The kernels at real shapes: inputs on the device, the call, and the bytes that it must move."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpucoron.backend import cuda

MB = 2**20
L2_FOUR_TIMES = 240 * MB  # what several sets of inputs hold together
POOL = 4_194_301  # a prime: no column of a stack sees the same numbers again


class Case(NamedTuple):
    """One thing to time; formulas of bytes are those of the kernels' headers."""

    name: str
    call: Callable
    sets: list
    main: str = ""  # kernels that `nbytes` are of begin with it; "" where it is the whole call's
    nbytes: float = 0.0
    flop: float = 0.0
    check: bool = False  # run the call on the host, too, and compare


class Shapes(NamedTuple):
    """Sizes of everything."""

    image: tuple = (320, 320)
    few: tuple = (4, 10, 60, 300)
    many: tuple = (2000,)
    references: int = 180
    frames: int = 40
    klip: tuple = ((20, 36), (120, 180))
    eigen: tuple = ((20, 36), (132, 36), (20, 64), (20, 128), (32, 180), (120, 180), (20, 450))
    planes: tuple = (10, 60)
    least: int = L2_FOUR_TIMES


REAL = Shapes()
TINY = Shapes((12, 14), (4,), (70,), 3, 2, ((2, 5), (1, 7)), ((2, 5),), (2,), 2000)


def all_cases(shapes=REAL):
    """Yield functions that each yield cases; what one leaves on the device can be freed."""
    yield from (
        lambda make=make: make(shapes)
        for make in (
            medians,
            outliers,
            filling,
            transforms,
            registration,
            fourier_fits,
            klip,
            eigen,
            drizzle,
            drizzle_weights,
        )
    )


# ---------------------------------------------------------------- inputs
class Numbers:
    """Normally distributed numbers, repeated from a pool: quick to make by the gigabyte."""

    def __init__(self, seed=0):
        pool = np.random.default_rng(seed).normal(size=POOL).astype(np.float32)
        self._twice = np.concatenate([pool, pool])
        self._start = itertools.count(1, 999_983)

    def __call__(self, shape, mean=0.0, sigma=1.0, dtype=np.float32):
        size, start = int(np.prod(shape)), next(self._start) % POOL
        values = np.resize(self._twice[start : start + min(size, POOL)], size)
        values *= np.float32(sigma)
        values += np.float32(mean)
        return values.reshape(shape).astype(dtype, copy=False)


def on_device(make, nbytes, least):
    """Several sets of inputs, so that the L2 cache cannot hold them."""
    cp = cuda.cupy()
    n = int(min(48, max(2, -(-least // max(1, nbytes)))))
    return [tuple(cp.asarray(a) for a in make()) for _ in range(n)]


def speckles(shape, shifts_yx, seed=0):
    """A halo with speckles at several subpixel positions, and noise."""
    y, x = np.mgrid[: shape[0], : shape[1]] - np.array(shape)[:, None, None] / 2
    reach, rng = 0.25 * min(shape), np.random.default_rng(seed)
    places = np.column_stack([rng.uniform(-reach, reach, (40, 2)), rng.uniform(5, 60, 40)])
    out = np.empty((len(shifts_yx), *shape))
    for k, (dy, dx) in enumerate(shifts_yx):
        out[k] = 3000 * np.exp(-((y - dy) ** 2 + (x - dx) ** 2) / 2 / 9.0**2)
        for cy, cx, peak in places:  # separable: two vectors
            gy, gx = (
                np.exp(-((axis - c) ** 2) / 2 / 1.8**2)
                for axis, c in ((y[:, 0], cy + dy), (x[0], cx + dx))
            )
            out[k] += 20 * peak * np.outer(gy, gx)
    return out + Numbers(seed)(out.shape, sigma=5)


# ---------------------------------------------------------------- float32 stacks
def medians(shapes):
    """Median over the integrations, with a mask."""
    from gpucoron.ops.median import median

    pixels, numbers = int(np.prod(shapes.image)), Numbers(1)
    for dtype, counts in ((np.float32, (*shapes.few, *shapes.many)), (np.float64, shapes.few[1:])):
        for n in counts:
            size = np.dtype(dtype).itemsize
            nbytes = pixels * (n * (size + 1) + size)

            def make(n=n, dtype=dtype):
                images = numbers((n, *shapes.image), 100, 30, dtype)
                return images, numbers(images.shape) > -1.28

            yield Case(
                f"median {np.dtype(dtype).name} n={n}",
                median,
                on_device(make, nbytes, shapes.least),
                "median",
                nbytes,
                check=n <= 300,
            )


def exposure(numbers, shape):
    """An exposure with noise, cosmic rays and flagged pixels: data, err, dq, three variances."""
    data = numbers(shape, 200, 10)
    data[numbers(shape) > 3.1] += 500
    dq = np.where(numbers(shape) > 2.4, 1, 0).astype(np.uint32)
    return (
        data,
        np.full(shape, 10, np.float32),
        dq,
        *(np.full(shape, v, np.float32) for v in (60, 30, 10)),
    )


def outliers(shapes):
    """Median, threshold and flagging in one: detect, then the neighbours' word."""
    from gpucoron.ops.outliers import flag_outliers

    pixels, numbers = int(np.prod(shapes.image)), Numbers(2)
    for n in shapes.few:
        nbytes = pixels * (n * 49 + 4)

        def call(data, err, dq, *variances):
            return flag_outliers(data, err, dq, variances, snr=5.0)

        yield Case(
            f"outliers, 3 variances n={n}",
            call,
            on_device(lambda n=n: exposure(numbers, (n, *shapes.image)), nbytes, shapes.least),
            "outliers.cu, detect",
            nbytes,
            check=n <= 10,
        )


def filling(shapes):
    """Bad pixels of one exposure."""
    from gpucoron.ops.bad_pixels import exposure_images, fill_bad_pixels

    numbers, n = Numbers(3), shapes.few[-1 if len(shapes.few) < 3 else 2]
    scene = speckles(shapes.image, [(0.0, 0.0)])[0]

    def make():
        images = (scene + numbers((n, *shapes.image), 0, 5)).astype(np.float32)
        bad = numbers(images.shape) > 2.6
        bad[:, numbers(shapes.image) > 2.6] = True
        return images, bad, np.full_like(images, 5)

    def call(images, bad, err):
        groups = np.zeros(n, int)
        exposures = exposure_images(images, bad, groups, err)
        return fill_bad_pixels(images, bad, 3, groups, err=err, exposures=exposures)

    yield Case(f"bad pixels of an exposure n={n}", call, on_device(make, 1, 1))


# ---------------------------------------------------------------- float64 transforms and fits
def transforms(shapes):
    """Spectra, and shifted images from them."""
    from gpucoron.ops import fourier_shift

    n, (ny, nx), numbers = shapes.references, shapes.image, Numbers(4)
    images = n * ny * nx
    sets = on_device(lambda: (numbers((n, ny, nx), 50, 20, np.float64),), 8 * images, shapes.least)
    yield Case(f"spectra of {n}", fourier_shift.spectra, sets, nbytes=16 * images, check=True)
    half = [(fourier_shift.spectra(a),) for (a,) in sets]
    shifts, cp = numbers((n, 2), 0, 0.5, np.float64), cuda.cupy()
    on_gpu, out = cp.asarray(shifts), cp.empty((n, ny, nx))
    yield Case(
        f"phases of {n}",
        lambda s: fourier_shift.multiply_phases(s, on_gpu, (ny, nx)),
        half,
        "fourier_shift",
        32 * n * ny * (nx // 2 + 1),
    )
    yield Case(
        f"shift of {n} from spectra, copied to where klip wants them",
        lambda s: fourier_shift.shift_spectra(s, on_gpu, (ny, nx), out),
        half,
        nbytes=16 * n * ny * (nx // 2 + 1) + 8 * images,
    )


def registration(shapes):
    """A batch of frames fitted to all references; the host waits twice."""
    from gpucoron.ops.registration import Registration

    cp, n, rng = cuda.cupy(), shapes.references, np.random.default_rng(5)
    references = cp.asarray(speckles(shapes.image, rng.uniform(-1.3, 1.3, (n, 2)), 1))
    frames = speckles(shapes.image, rng.normal(0, 0.01, (2 * shapes.frames, 2)), 2)
    sets = [(cp.asarray(half),) for half in np.split(frames, 2)]
    guide, groups = sets[0][0][0], np.arange(n) // 20
    yield Case(
        f"registration: preparing {n} references",
        lambda: Registration(references, guide=guide, groups=groups),
        [()],
    )
    plan = Registration(references, guide=guide, groups=groups)
    yield Case(f"registration: {shapes.frames} frames x {n} references", plan.fit_many, sets)


def fourier_fits(shapes):
    """The contraction of that batch by itself."""
    from gpucoron.ops.chebyshev import PhaseSeries
    from gpucoron.ops.cuda import registration as ops

    cp, (ny, nx), numbers = cuda.cupy(), shapes.image, Numbers(6)
    y, x = (PhaseSeries.of_axis(k, 2.3, half_spectrum=half) for k, half in ((ny, 0), (nx, 1)))
    tables, frames = ops.tables(y, x), shapes.frames
    references, own = (
        cp.fft.rfft2(cp.asarray(numbers((n, ny, nx), 0, 1, np.float64)))
        for n in (shapes.references, frames)
    )
    which = np.repeat(np.arange(shapes.references), frames).astype(np.int32)
    of_frame = np.tile(np.arange(frames), shapes.references).astype(np.int32)
    half = tables[0].shape[1] // 2
    pairs = len(which)
    spectra = 16 * ny * (nx // 2 + 1)
    which, of_frame = cp.asarray(which), cp.asarray(of_frame)
    yield Case(
        f"contract {pairs} pairs (bytes: from L2)",
        lambda: ops.contract(references, which, own, of_frame, tables, 1.0, 1),
        [()],
        "registration.cu, contract",
        pairs * (2 * spectra + 8 * (2 * half) ** 2),
        flop=4.0e6 * pairs * (ny * nx / 320**2),
    )


# ---------------------------------------------------------------- float64 linear algebra
def references_like(frames, n, shape, numbers):
    """Sets of references with some structure, on the device: (frames, n, ny, nx) float64."""
    cp = cuda.cupy()
    modes = speckles(shape, np.random.default_rng(7).uniform(-3, 3, (min(n, 12), 2)))
    base = np.tensordot(numbers((n, len(modes)), 0.3, 0.3, np.float64), modes, 1)
    base = cp.asarray(base + numbers(base.shape, 20, 5))
    out = cp.empty((frames, *base.shape))
    for k in range(frames):
        out[k] = cp.roll(base, k, axis=2)
    return out


def klip(shapes):
    """All of klip for a batch of integrations with references of their own."""
    from gpucoron.ops.eigen import klip_many

    cp, numbers, pixels = cuda.cupy(), Numbers(7), int(np.prod(shapes.image))
    for frames, n in shapes.klip:
        references = references_like(frames, n, shapes.image, numbers)
        targets = cp.asarray(numbers((frames, *shapes.image), 20, 5, np.float64))
        panels, kept = -(-n // 64), min(50, n - 1)
        rows = 64 * -(-(1 + min(kept, n - kept)) // 64)
        yield Case(
            f"klip, {frames} x {n} references, {kept} kept",
            lambda r, t, kept=kept: klip_many(r, t, [kept]),
            [(references, targets)],
            "klip.cu",
            3 * 8.0 * frames * n * pixels,
            flop=frames * pixels * (4096.0 * panels * (panels + 1) + 2 * rows * n),
            check=frames * n < 1000,
        )
        del references, targets


def eigen(shapes):
    """The decompositions by themselves, checked, and cuSOLVER's syevd for one matrix."""
    from gpucoron.ops.eigen import symmetric_eigen

    cp, numbers = cuda.cupy(), Numbers(8)
    for frames, n in shapes.eigen:
        values = numbers((frames, n, 4 * n), 0, 1, np.float64)
        values *= np.geomspace(1e4, 1, n)[:, None]
        matrices = cp.asarray(values @ values.transpose(0, 2, 1))
        yield Case(f"eigen, {frames} x {n}, checked", symmetric_eigen, [(matrices,)])
        yield Case(f"eigen, 1 x {n}, syevd", cp.linalg.eigh, [(matrices[0],)])


# ---------------------------------------------------------------- drizzle
def pixel_map(shape, output, angle=10.0):
    """A roll and a distortion of about 2 px at the edge."""
    y, x = np.indices(shape, dtype=np.float64)
    u, v = x - (shape[1] - 1) / 2, y - (shape[0] - 1) / 2
    u, v = u + 0.02 * u * u / shape[1] + 0.01 * u * v / shape[1], v + 0.015 * v * v / shape[0]
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return np.stack([c * u - s * v, s * u + c * v], axis=-1) + (np.array(output[::-1]) - 1) / 2


def drizzle(shapes):
    """Geometry, and planes added; with every kernel."""
    from gpucoron.ops.drizzle import KERNELS, Drizzle

    cp, numbers, output = cuda.cupy(), Numbers(9), tuple(int(1.16 * k) for k in shapes.image)
    mapped = cp.asarray(pixel_map(shapes.image, output))
    pixels, out_pixels = int(np.prod(shapes.image)), int(np.prod(output))
    for n in shapes.planes:

        def make(n=n):
            shape = (n, *shapes.image)
            weights = 1 / (1 + abs(numbers(shape)))
            weights[numbers(shape) > 2.3] = 0
            return numbers(shape), weights, *(1 + abs(numbers(shape)) for _ in range(3))

        sets = on_device(make, 20 * n * pixels, shapes.least)
        for kernel in KERNELS:
            plan = Drizzle(output, kernel=kernel, n_inputs=n)
            if n == shapes.planes[0]:
                yield Case(
                    f"drizzle {kernel}: geometry",
                    lambda plan=plan: plan.overlaps(mapped),
                    [()],
                    "drizzle.cu",
                )
            geometry = plan.overlaps(mapped)
            shares = int(geometry.counts.sum())
            for k in (0, 3) if kernel == "square" else (3,):

                def call(images, weights, *variances, kernel=kernel, geometry=geometry, k=k, n=n):
                    d = Drizzle(output, kernel=kernel, n_inputs=n)
                    d.add(images, geometry, weights, variances=variances[:k])
                    return d

                yield Case(
                    f"drizzle {kernel}, {n} planes, {k} variances",
                    call,
                    sets,
                    "drizzle.cu, add_planes",
                    4.0 * (2 + k) * n * pixels + 12 * shares + (16 * (2 + 2 * k) + 8) * out_pixels,
                )


def drizzle_weights(shapes):
    """Weights of the input pixels."""
    from gpucoron.ops.cuda.drizzle_weights import pixel_weights

    numbers, n = Numbers(10), shapes.planes[-1]
    pixels = n * int(np.prod(shapes.image))

    def call(data, err, dq, *variances):
        return pixel_weights(data, err, dq, list(variances), np.uint32(1), 1, 1.0)

    yield Case(
        f"drizzle weights, {n} planes, 3 variances",
        call,
        on_device(lambda: exposure(numbers, (n, *shapes.image)), 28 * pixels, shapes.least),
        "drizzle_weights",
        28 * pixels,
    )
