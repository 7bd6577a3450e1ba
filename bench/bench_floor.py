"""Where the time of a run goes, beside the least that this machine could take for it.

    python bench/bench_floor.py [--work DIR] [--threads 2] [--align each] [--out FILE]

The floor of a step is its unavoidable bytes at the measured rate of copying, reading or writing,
and its arithmetic at the measured rate of the library that does it. The set is simulated in
DIR/set if it is not there (bench_canonical.py leaves one).
"""

import tempfile
import time
from pathlib import Path

from common import arguments, finish, limit_threads, timed

MB = 1e6


def rates(folder, threads):
    """Bytes and operations a second: copying, reading, writing, products, transforms."""
    import numpy as np
    import scipy.fft

    block = np.ones(40_000_000, dtype=np.float32)
    target = np.empty_like(block)
    copy = timed(lambda: np.copyto(target, block), 5)["min_s"]
    path = folder / "probe.bin"

    def write():
        with open(path, "wb") as file:
            file.write(block.data)

    written = timed(write, 5)["median_s"]
    read = timed(path.read_bytes, 5)["median_s"]
    path.unlink()
    a = np.ones((300, 102400))
    products = timed(lambda: a @ a.T, 3)["min_s"]
    planes = np.ones((32, 320, 320))
    transform = timed(lambda: scipy.fft.rfft2(planes, workers=threads), 5)["min_s"]
    return {
        "copy_MB_s": 2 * block.nbytes / copy / MB,
        "write_MB_s": block.nbytes / written / MB,
        "read_MB_s": block.nbytes / read / MB,
        "product_Gflop_s": 300 * 300 * 102400 / products / 1e9,
        "transform_ms_per_plane": 1e3 * transform / 32,
    }


def floors(rate, sizes, files):
    """Least seconds of each step of one run."""
    npix, nref, nsci = sizes["npix"], sizes["references"], sizes["integrations"]
    fitted = nsci if sizes["align"] == "each" else sizes["exposures"]
    pairs = fitted * nref
    copy = rate["copy_MB_s"] * MB
    plane = rate["transform_ms_per_plane"] / 1e3
    images = nref + nsci
    return {
        "read": files["read"] / (rate["read_MB_s"] * MB),
        "outlier_detection": images * npix * 2 * 24 / copy,
        "align_refs": (
            pairs * npix * 16 / copy  # two half spectra of a pair
            + (pairs + 2 * nref + 6 * fitted) * plane
        ),
        "klip": (
            fitted * nref * nref * npix / (rate["product_Gflop_s"] * 1e9)
            + fitted * nref * npix * 8 * 3 / copy
        ),
        "resample": nsci * npix * 24 / copy,
        "write": files["written"] / (rate["write_MB_s"] * MB),
    }


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--align", choices=("each", "first"), default="each")
    options = parser.parse_args()
    limit_threads(options.threads)
    import gpucoron

    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        found = sorted((work / "set").glob("*_asn.json"))
        if not found:
            gpucoron.simulate.simulate(work / "set", "nircam", seed=0)
            found = sorted((work / "set").glob("*_asn.json"))
        call = {
            "device": "cpu",
            "psfmask": work / "set" / "psfmask.fits",
            "keep": (),
            "output_dir": work / "out",
            "align": options.align,
            "threads": options.threads,
            "save": ("crfints", "psfstack", "psfsub", "i2d"),
        }
        gpucoron.run(found[0], **call)
        runs = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            result = gpucoron.run(found[0], **call)
            runs.append((time.perf_counter() - start, result))
        wall, result = sorted(runs, key=lambda r: r[0])[len(runs) // 2]
        plan = gpucoron.plan(found[0], align=options.align)[0]
        files = {
            "read": sum(p.stat().st_size for p in (work / "set").glob("*_calints.fits")),
            "written": sum(p.stat().st_size for p in result.files),
        }
        rate = rates(work, options.threads)
    sizes = {
        "npix": plan.shape[0] * plan.shape[1],
        "references": plan.references,
        "integrations": sum(plan.integrations),
        "exposures": len(plan.integrations),
        "align": options.align,
    }
    least = floors(rate, sizes, files)
    table = {
        step: {
            "seconds": result.timings.get(step, 0.0),
            "floor": least[step],
            "ratio": result.timings.get(step, 0.0) / least[step],
        }
        for step in least
    }
    finish(
        {
            "threads": options.threads,
            **sizes,
            "bytes": files,
            "rates": rate,
            "steps": table,
            "wall_s": wall,
            "other_s": wall - sum(result.timings.values()),
        },
        options.out,
    )


if __name__ == "__main__":
    main()
