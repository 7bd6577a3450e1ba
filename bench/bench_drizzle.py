"""Drizzle of an exposure, SCI and three variances, beside the drizzle package in the same process.

    python bench/bench_drizzle.py [--integrations 10] [--size 320] [--threads 1] [--kernels square]

Checks that both agree, and times both. The package runs in one thread: with --threads 1 (default)
the processor seconds compare like with like, also where others use the machine.
"""

import warnings

from common import arguments, finish, limit_threads, timed

KERNELS = ("square", "point", "turbo", "gaussian", "lanczos2", "lanczos3")


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--integrations", type=int, default=10)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    limit_threads(options.threads)
    output = int(options.size * 1.16)
    inputs = (
        *scene(options.integrations, options.size),
        pixel_map(options.size, output, 10.0),
        output,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = {kernel: measure(inputs, kernel, options.repeats) for kernel in options.kernels}
    finish(
        {
            "shape": [options.integrations, options.size, options.size],
            "output": [output, output],
            "threads": options.threads,
            "arrays": ["SCI", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"],
            **results,
        },
        options.out,
    )


def pixel_map(size, output, angle):
    """A roll and a distortion of about 2 px at the edge."""
    import numpy as np

    y, x = np.indices((size, size), dtype=np.float64)
    u, v = x - (size - 1) / 2, y - (size - 1) / 2
    u, v = u + 0.02 * u * u / size + 0.01 * u * v / size, v + 0.015 * v * v / size
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return np.stack([c * u - s * v, s * u + c * v], axis=-1) + (output - 1) / 2 + 0.137


def scene(n, size):
    """Images, weights and variances."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (n, size, size)
    images = rng.normal(size=shape).astype(np.float32)
    variances = [rng.uniform(0.5, 2.0, shape).astype(np.float32) for _ in range(3)]
    weights = 1 / variances[1]
    weights[rng.uniform(size=shape) < 0.01] = 0
    return images, weights, variances


def run_ours(images, weights, variances, mapped, output, kernel):
    """All in one pass, the geometry included."""
    from gpucoron.ops.drizzle import Drizzle

    d = Drizzle((output, output), kernel=kernel, pixel_scale_ratio=1.0, n_inputs=len(images))
    d.add(images, mapped, weights, variances=variances)
    return d.result()


def run_package(images, weights, variances, mapped, output, kernel):
    """What a resample of each integration costs with the package: four drizzles."""
    import numpy as np
    from drizzle.resample import Drizzle

    shape = (output, output)
    d = Drizzle(kernel=kernel, out_shape=shape, fillval="NAN", max_ctx_id=len(images) - 1)
    for k, image in enumerate(images):
        d.add_image(image, 1.0, mapped, weight_map=weights[k])
        for variance in variances:
            one = Drizzle(kernel=kernel, out_shape=shape, fillval=np.nan, disable_ctx=True)
            one.add_image(np.sqrt(variance[k]), 1.0, mapped, weight_map=weights[k])
            np.square(one.out_img)
    return d


def measure(inputs, kernel, repeats):
    """Compare the results, then time the geometry, all of ours, and the package."""
    from gpucoron.ops.drizzle import overlaps

    difference = verify(run_ours(*inputs, kernel), run_package(*inputs, kernel))
    mapped, output = inputs[-2:]
    ours = timed(lambda: run_ours(*inputs, kernel), repeats)
    geometry = timed(
        lambda: overlaps(mapped, (output, output), kernel=kernel, pixel_scale_ratio=1.0), repeats
    )
    package = timed(lambda: run_package(*inputs, kernel), min(repeats, 3))
    return {
        "gpucoron": ours,
        "of that geometry": geometry,
        "drizzle": package,
        "ratio": package["median_s"] / ours["median_s"],
        "ratio_cpu": package["cpu_s"] / ours["cpu_s"],
        **difference,
    }


def verify(ours, package):
    """Return how much both differ where weights do not cancel; contexts must be equal."""
    import numpy as np

    if not np.array_equal(ours.context, package.out_ctx):
        raise SystemExit("contexts differ")
    largest = package.out_wht.max()
    sure = package.out_wht > 0.1 * largest
    expected = package.out_img[sure]
    gap = np.abs(ours.data[sure] - expected).max() / np.abs(expected).max()
    weight = np.abs(ours.weight - package.out_wht).max() / largest
    if not (gap < 2e-6 and weight < 2e-6):
        raise SystemExit(f"images differ by {gap:.1e}, weights by {weight:.1e} of the largest")
    return {"sci_difference_over_largest": float(gap), "wht_difference_over_largest": float(weight)}


if __name__ == "__main__":
    main()
