"""Injection of sources: time and exactness, and the contrast curve.

    python bench/bench_injection.py [--asn ASN --psfmask FILE] [--instrument nircam] [--places 1000]
                                    [--full N] [--vip] [--seed 0] [--out FILE]

Runs the association once in memory (simulates one without --asn), then measures, with images of
the sources at hand: `--places` injections in RDI through KLIP and into the combined image; the same
with the source in the references (ADI+RDI, inner products), each against a new KLIP of the same
images; and the contrast curve with its map. --full N adds N sources to the calints, reduces them
whole, and prints how the sums in apertures differ from those predicted. --vip times VIP's
contrast_curve (RDI by its PCA, one branch of injected sources) on the same images.
"""

import shutil
import tempfile
import time
from pathlib import Path

from common import arguments, finish, limit_threads


def places_about(record, forward, n, seed):
    """Offsets (n, 2), arcsec, where the combined image has data, from 2 FWHM on."""
    import numpy as np

    rng = np.random.default_rng(seed)
    image = next(iter(record.images.values()))
    y, x = np.nonzero(np.isfinite(image))
    far = np.hypot(x - record.star.pixel[0], y - record.star.pixel[1]) > 2 * forward.fwhm_px
    chosen = rng.integers(0, far.sum(), n)
    return forward.offsets(np.stack([y[far][chosen], x[far][chosen]], axis=1))


def timed(work, repeats=3):
    """Best wall and CPU seconds of a call, and its result."""
    best = None
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        result = work()
        spent = time.perf_counter() - start[0], time.process_time() - start[1]
        best = spent if best is None else min(best, spent)
    return best, result


def rdi(forward, offsets):
    """Time of images of sources, and of their injection."""
    from functools import partial

    import numpy as np

    truncate = max(forward.truncations)
    start = time.perf_counter()
    stamps, corners = zip(*forward._stamps(offsets, exact=False), strict=True)
    images = time.perf_counter() - start
    places = np.rint(forward.places(offsets)).astype(int) - 10
    combined = forward._combined
    spent, _ = timed(partial(combined.patches, stamps, corners, places, 21, truncate))
    return {"psf images s": images, "injection s": spent[0], "injection cpu s": spent[1]}


def adi(result, forward, offsets, truncate=20):
    """Time of injections with the source in the references, and the difference from a new KLIP."""
    import numpy as np

    from gpucoron.ops.eigen import KLBasis
    from gpucoron.ops.gram_injection import GramInjection

    science = science_of(result)
    kept = result.product.psfalign
    references = np.concatenate([a.data.mean(axis=0) if a.data.ndim == 4 else a.data
                                 for a in list(kept.values())[:1]])  # fmt: skip
    images = np.concatenate([np.nan_to_num(s.data) for s in science] + [references])
    images = images.astype(np.float64)
    counts = [len(s) for s in science]
    groups = np.r_[np.repeat(np.arange(len(science)), counts), np.full(len(references), -1)]
    allowed = groups[: sum(counts), None] != groups
    stamps, corners = (
        np.stack(parts, axis=1) for parts in zip(*forward._stamps(offsets, False), strict=True)
    )
    plan = GramInjection(images, allowed, groups, truncate)
    middle = corners + stamps.shape[2] // 2 - 10
    stamps = stamps * float(np.std(images)) * 100
    spent, got = timed(lambda: plan.residuals(stamps, corners, middle, 21), 1)
    worst, again = 0.0, 0.0
    for m in range(2):
        added = images.copy()
        for image, group in zip(added, groups, strict=True):
            if group >= 0:
                pixels, values = plan._inside(stamps[m, group], corners[m, group])
                image.ravel()[pixels] += values
        start = time.perf_counter()
        for t in (0, counts[0]):
            left = KLBasis(added[allowed[t]]).subtract(added[t : t + 1], truncate)[0]
            y, x = middle[m, groups[t]]
            part = got[m, t]
            j, i = np.nonzero(np.isfinite(part))
            worst = max(worst, float(abs(part[j, i] - left[y + j, x + i]).max() / images.std()))
        again += time.perf_counter() - start
    return {
        "injection s": spent[0],
        "injection cpu s": spent[1],
        "new KLIP s each": again / 2,
        "largest difference / std": worst,
    }


def science_of(result):
    """The science integrations of every exposure."""
    return [result.product.crfints[root] for root in result.product.psfalign]


def vip(result, forward, truncate=5):
    """Seconds of VIP's contrast curve for the science integrations and aligned references."""
    import numpy as np
    from vip_hci.metrics import contrast_curve
    from vip_hci.psfsub import pca

    kept = next(iter(result.product.psfalign.values())).data
    references = kept.mean(axis=0) if kept.ndim == 4 else kept
    cube = np.concatenate([np.nan_to_num(s.data) for s in science_of(result)])
    side = min(cube.shape[1:]) // 2 * 2 - 1
    cube, references = (np.ascontiguousarray(a[:, :side, :side]) for a in (cube, references))
    psf = np.asarray(forward.psf.without_mask, dtype=float)
    start = time.perf_counter()
    contrast_curve(
        cube, np.zeros(len(cube)), psf, fwhm=forward.fwhm_px, pxscale=0.06, starphot=1.0,
        algo=pca, cube_ref=references, ncomp=truncate, nbranch=1, plot=False, verbose=False,
    )  # fmt: skip
    return time.perf_counter() - start


def full(asn, psfmask, result, n, seed):
    """Add n sources to the calints, reduce them whole, and compare with what is predicted."""
    import numpy as np
    from astropy.io import fits

    import gpucoron
    from gpucoron.analysis.contrast import measure_contrast
    from gpucoron.ops.apertures import aperture_sums

    record, forward = result.product.record, result.product.forward_model
    contrast, rng = measure_contrast(record), np.random.default_rng(seed)
    reach = min(contrast.separation_px[-1] * 0.6, 60)
    radii = np.linspace(4 * forward.fwhm_px, reach, n)
    angles = rng.uniform(0, 2 * np.pi) + np.arange(n) * 2.4
    scale = record.wcs.pixel_scale
    offsets = scale * (radii * np.stack([np.sin(angles), np.cos(angles)])).T
    flux = 60 * np.interp(radii, contrast.separation_px, contrast.best_limit)
    with tempfile.TemporaryDirectory() as folder:
        for path in Path(asn).parent.iterdir():
            shutil.copy(path, folder)
        found = forward._stamps(offsets, exact=True)
        for exposure, (stamps, corners) in zip(forward.exposures, found, strict=True):
            (path,) = Path(folder).glob(f"{exposure.root}*calints.fits")
            with fits.open(path, "update") as hdus:
                for stamp, (y, x), amount in zip(stamps, corners, flux, strict=True):
                    ny, nx = hdus["SCI"].shape[1:]
                    rows, columns = (
                        slice(max(y, 0), y + len(stamp)),
                        slice(max(x, 0), x + len(stamp)),
                    )
                    part = stamp[max(-y, 0) : ny - y, max(-x, 0) : nx - x]
                    hdus["SCI"].data[:, rows, columns] += (amount * part).astype(np.float32)
        again = gpucoron.run(
            Path(folder) / Path(asn).name,
            "cpu",
            psfmask=psfmask,
            parameters=result.parameters,
            checksums=False,
            progress=False,
        )
    truncate, radius = max(forward.truncations), forward.fwhm_px
    change = again.product.record.images[truncate] - record.images[truncate]
    places = forward.places(offsets)
    got = aperture_sums(change, places[:, ::-1], radius)
    corners = np.rint(places).astype(int) - 10
    expected = np.zeros(n)
    for source, amount in enumerate(flux):  # of each at the places of all
        stamps, their = (
            [np.repeat(pair[k][source : source + 1], n, axis=0) for pair in found] for k in (0, 1)
        )
        patches = forward._combined.patches(stamps, their, corners, 21, truncate)
        for k, (patch, place) in enumerate(zip(patches, places - corners, strict=True)):
            expected[k] += amount * aperture_sums(patch, [place[::-1]], radius)[0]
    return [
        {"separation arcsec": r * scale, "whole run / predicted - 1": float(g / e - 1)}
        for r, g, e in zip(radii, got, expected, strict=True)
    ]


def main():
    parser = arguments(__doc__)
    parser.add_argument("--asn")
    parser.add_argument("--psfmask")
    parser.add_argument("--instrument", default="nircam")
    parser.add_argument("--places", type=int, default=1000)
    parser.add_argument("--adi-places", type=int, default=100)
    parser.add_argument("--full", type=int, default=0)
    parser.add_argument("--vip", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    limit_threads(options.threads)
    import gpucoron
    from gpucoron.analysis.contrast import measure_contrast
    from gpucoron.simulate import simulate

    with tempfile.TemporaryDirectory() as folder:
        if not options.asn:
            made = simulate(
                Path(folder) / "set", options.instrument, options.seed, planets=(), disk=False
            )
            options.asn, options.psfmask = str(made.asn), str(made.psfmask)
        result = gpucoron.run(options.asn, "cpu", psfmask=options.psfmask, progress=False)
        record, forward = result.product.record, result.product.forward_model
        offsets = places_about(record, forward, options.places, options.seed)
        results = {"places": options.places, "RDI": rdi(forward, offsets)}
        print(results, flush=True)
        results["ADI+RDI"] = adi(result, forward, offsets[: options.adi_places])
        results["ADI+RDI"]["places"] = options.adi_places
        print(results["ADI+RDI"], flush=True)
        spent, _ = timed(lambda: measure_contrast(record), 2)
        results["contrast s"] = spent[0]
        results["run s"] = sum(v for k, v in result.timings.items() if k != "contrast")
        if options.vip:
            results["VIP contrast_curve s"] = vip(result, forward)
            results["VIP / gpucoron"] = results["VIP contrast_curve s"] / results["contrast s"]
        if options.full:
            results["full"] = full(options.asn, options.psfmask, result, options.full, options.seed)
            for row in results["full"]:
                print(row, flush=True)
    finish(results, options.out)


if __name__ == "__main__":
    main()
