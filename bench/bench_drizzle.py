"""Drizzle of an exposure, SCI and three variances, beside the drizzle package in the same process.

    python bench/bench_drizzle.py [--integrations 10] [--size 320] [--threads N] [--out FILE]

Checks that both agree, warms up, times both in turns, and prints JSON: medians and minima in
seconds and the ratio of medians.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
from drizzle.resample import Drizzle as PackageDrizzle

from gpucoron.ops.drizzle import Drizzle


def pixel_map(size, output, angle):
    """A roll and a distortion of about 2 px at the edge."""
    y, x = np.indices((size, size), dtype=np.float64)
    u, v = x - (size - 1) / 2, y - (size - 1) / 2
    u, v = u + 0.02 * u * u / size + 0.01 * u * v / size, v + 0.015 * v * v / size
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return np.stack([c * u - s * v, s * u + c * v], axis=-1) + (output - 1) / 2 + 0.137


def scene(n, size):
    rng = np.random.default_rng(0)
    shape = (n, size, size)
    images = rng.normal(size=shape).astype(np.float32)
    variances = [rng.uniform(0.5, 2.0, shape).astype(np.float32) for _ in range(3)]
    weights = 1 / variances[1]
    weights[rng.uniform(size=shape) < 0.01] = 0
    return images, weights, variances


def run_ours(images, weights, variances, mapped, output, kernel):
    d = Drizzle((output, output), kernel=kernel, n_inputs=len(images))
    d.add(images, mapped, weights, variances=variances)
    return d.result()


def run_package(images, weights, variances, mapped, output, kernel):
    """What a resample of each integration costs with the package: four drizzles."""
    shape = (output, output)
    d = PackageDrizzle(kernel=kernel, out_shape=shape, fillval="NAN", max_ctx_id=len(images) - 1)
    squares = []
    for k, image in enumerate(images):
        d.add_image(image, 1.0, mapped, weight_map=weights[k])
        for variance in variances:
            one = PackageDrizzle(kernel=kernel, out_shape=shape, fillval=np.nan, disable_ctx=True)
            one.add_image(np.sqrt(variance[k]), 1.0, mapped, weight_map=weights[k])
            squares.append(one.out_img**2)
    return d


def verify(ours, package):
    if not np.array_equal(ours.context, package.out_ctx):
        raise SystemExit("contexts differ")
    np.testing.assert_allclose(
        ours.weight, package.out_wht, rtol=2e-6, atol=1e-6 * package.out_wht.max())
    np.testing.assert_allclose(ours.data, package.out_img, rtol=1e-5, atol=2e-6)


def measure(kernel, options):
    output = int(options.size * 1.16)
    mapped = pixel_map(options.size, output, 10.0)
    inputs = (*scene(options.integrations, options.size), mapped, output, kernel)
    verify(run_ours(*inputs), run_package(*inputs))
    times = {"gpucoron": [], "drizzle": [], "geometry": []}
    for _ in range(options.repeats):
        for name, work in (("gpucoron", run_ours), ("drizzle", run_package)):
            start = time.perf_counter()
            work(*inputs)
            times[name].append(time.perf_counter() - start)
        plan = Drizzle((output, output), kernel=kernel)
        start = time.perf_counter()
        plan.overlaps(mapped)
        times["geometry"].append(time.perf_counter() - start)
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {
        "kernel": kernel, "shape": [options.integrations, options.size, options.size],
        "output": [output, output], "arrays": ["SCI", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"],
        "median_s": medians, "minimum_s": {name: min(t) for name, t in times.items()},
        "ratio": medians["drizzle"] / medians["gpucoron"],
    }


def commit():
    where = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=where, text=True,
                           capture_output=True, check=False)
    return found.stdout.strip() or None


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--integrations", type=int, default=10)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=numba.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args(argv)
    numba.set_num_threads(options.threads)
    report = {
        "bench": "drizzle", "commit": commit(), "threads": options.threads,
        "machine": platform.processor() or platform.machine(), "python": platform.python_version(),
        "versions": {n: importlib.metadata.version(n) for n in ("numpy", "numba", "drizzle")},
        "results": [measure(kernel, options) for kernel in ("square", "point")],
    }
    text = json.dumps(report, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
