"""Injection of sources: time and exactness, and the contrast curve.

    python bench/bench_injection.py [--asn ASN --psfmask FILE] [--instrument nircam] [--places 1000]
                                    [--adi-places 1000]
                                    [--full N] [--strength 60] [--vip] [--seed 0] [--out FILE]

Runs the association once in memory (simulates one without --asn), then measures, with images of
the sources at hand: `--places` injections in RDI through KLIP and into the combined image; the same
with the source in the references (a run with ADI+RDI), to first order and decomposed again, against
a new KLIP of the same images; and the contrast curve with its map. --full N adds N sources to the
calints, reduces them whole, and prints how the sums in apertures differ from those predicted: with
the star measured anew, and where it was. --vip times VIP's contrast_curve (RDI by its PCA, one
branch of injected sources) on the same images.
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


def adi(asn, psfmask, n, seed, truncate=20):
    """Time of injections with the source in the references, and the difference from a new KLIP.

    In a run with ``--mode adi+rdi``; sources have a peak of 100 standard deviations of the images.
    """
    from functools import partial

    import numpy as np

    import gpucoron
    from gpucoron.ops.eigen import KLBasis
    from gpucoron.ops.stamps import inside

    start = time.perf_counter()
    run = gpucoron.run(asn, "cpu", psfmask=psfmask, mode="adi+rdi", klip_truncate=truncate,
                       progress=False)  # fmt: skip
    results = {"run s": time.perf_counter() - start}
    record, forward = run.product.record, run.product.forward_model
    offsets = places_about(record, forward, n, seed)
    stamps, corners = zip(*forward._stamps(offsets, False), strict=True)
    places = np.rint(forward.places(offsets)).astype(int) - 10
    klip = forward.exposures[0].klip
    references = klip.vectors[:, 1 : 1 + len(klip._groups)].T.reshape(-1, *klip.shape)
    flux = np.full(n, 100 * float(references.std()) / float(np.max(stamps[0])))
    combined = forward._combined
    combined.patches([s[:2] for s in stamps], [c[:2] for c in corners], places[:2], 21, truncate)
    for name, strength in (("first order", None), ("decomposed again", flux)):
        work = partial(combined.patches, stamps, corners, places, 21, truncate, strength)
        spent, _ = timed(work, 1)
        results |= {f"{name} s": spent[0], f"{name} cpu s": spent[1]}
    targets = klip._targets.T.reshape(-1, *klip.shape)
    missing = klip._lacking[:, :-1].T.astype(bool)
    gaps = np.zeros((len(targets), klip._rows.size), bool)
    gaps[:, klip._rows >= 0] = missing[:, klip._rows[klip._rows >= 0]]
    options = {"missing": gaps.reshape(targets.shape)}
    weight = np.sqrt(klip._square).reshape(klip.shape)
    klip._answer = None  # a new KLIP of the same images aligns nothing
    source = [stamps[0][:1], corners[0][:1]]
    vectors, klip.vectors = klip.vectors, np.ascontiguousarray(klip.vectors[:, :-2])
    got = klip.residuals(*source, truncate, flux[:1])[0] * flux[0]
    klip.vectors = vectors
    sheet = np.zeros((klip.n_groups, *klip.shape))
    for image, stamp, corner in zip(sheet, stamps[0][0], corners[0][0], strict=True):
        where, part = inside(corner, stamp.shape, klip.shape)
        image[where] = flux[0] * stamp[part]
    has = np.concatenate([[0] * len(targets), klip._groups])
    images = np.concatenate([targets, references])
    start = time.perf_counter()
    added = images + np.where((has >= 0)[:, None, None], sheet[has], 0.0)
    left = [
        KLBasis(i[len(targets) :], weight=weight).subtract(i[: len(targets)], truncate, **options)
        for i in (images, added)
    ]
    results["new KLIP s each exposure"] = (time.perf_counter() - start) / 2
    differs = abs(left[1] - left[0] - got).max()
    return results | {"largest difference / std": float(differs / references.std())}


def add_to_calints(folder, forward, found, flux):
    """Add sources to the calints in a folder; `found` are their stamps and corners by exposure."""
    import numpy as np
    from astropy.io import fits

    for exposure, (stamps, corners) in zip(forward.exposures, found, strict=True):
        (path,) = Path(folder).glob(f"{exposure.root}*calints.fits")
        with fits.open(path, "update") as hdus:
            ny, nx = hdus["SCI"].shape[1:]
            for (stamp, *_), ((y, x), *_), amount in zip(stamps, corners, flux, strict=True):
                rows, columns = slice(max(y, 0), y + len(stamp)), slice(max(x, 0), x + len(stamp))
                part = stamp[max(-y, 0) : ny - y, max(-x, 0) : nx - x]
                hdus["SCI"].data[:, rows, columns] += (amount * part).astype(np.float32)


def predicted(forward, found, flux, places, radius, truncate):
    """Return the sums in apertures at all places on what is predicted of all sources together."""
    import numpy as np

    from gpucoron.ops.apertures import aperture_sums

    corners, total = np.rint(places).astype(int) - 10, np.zeros(len(places))
    for source, amount in enumerate(flux):  # of each at the places of all
        stamps, their = (
            [np.repeat(pair[k][source : source + 1], len(places), axis=0) for pair in found]
            for k in (0, 1)
        )
        patches = forward._combined.patches(stamps, their, corners, 21, truncate)
        for k, (patch, place) in enumerate(zip(patches, places - corners, strict=True)):
            total[k] += amount * aperture_sums(patch, [place[::-1]], radius)[0]
    return total


def full(asn, psfmask, result, n, strength, seed):
    """Add n sources to the calints, reduce them whole, and compare with what is predicted.

    Twice: all steps as in the first run, and with the star where the first run has it, for sources
    of this strength move the measured star, by which rolls are combined, by up to 0.2 px.
    """
    import numpy as np

    import gpucoron
    from gpucoron.analysis.contrast import measure_contrast
    from gpucoron.ops.apertures import aperture_sums

    record, forward = result.product.record, result.product.forward_model
    contrast, rng = measure_contrast(record), np.random.default_rng(seed)
    reach = min(contrast.separation_px[-1] * 0.6, 60)
    radii = np.linspace(4 * forward.fwhm_px, reach, n)
    angles = rng.uniform(0, 2 * np.pi) + np.arange(n) * 2.4
    scale, truncate = record.wcs.pixel_scale, max(forward.truncations)
    offsets = scale * (radii * np.stack([np.sin(angles), np.cos(angles)])).T
    flux = strength * np.interp(radii, contrast.separation_px, contrast.best_limit)
    places, radius = forward.places(offsets), forward.fwhm_px
    found = forward._stamps(offsets, exact=True)
    expected = predicted(forward, found, flux, places, radius, truncate)
    stars = [xy for e in forward.exposures for xy in result.product.stars[e.root].mean]
    results = {"seed": seed, "times the limit": strength, "separation arcsec": scale * radii}
    with tempfile.TemporaryDirectory() as folder:
        for path in Path(asn).parent.iterdir():
            shutil.copy(path, folder)
        add_to_calints(folder, forward, found, flux)
        for name, given in (("star measured anew", None), ("star given", stars)):
            options = {"psfmask": psfmask, "parameters": result.parameters, "star": given}
            runs = [Path(folder) / Path(asn).name, *([asn] if given else [])]
            again, *other = (
                gpucoron.run(a, "cpu", **options, checksums=False, progress=False).product
                for a in runs
            )
            before = other[0] if other else result.product
            images = again.record.images[truncate], before.record.images[truncate]
            got = aperture_sums(images[0] - images[1], places[:, ::-1], radius)
            away = got / expected - 1
            moved = [
                np.hypot(*np.subtract(again.stars[r].mean, result.product.stars[r].mean))
                for r in again.stars
            ]
            results[name] = {
                "whole run / predicted - 1": [round(v, 5) for v in away.tolist()],
                "median of absolute values": float(np.median(abs(away))),
                "largest": float(abs(away).max()),
                "star moved px": [round(float(v), 4) for v in moved],
            }
            print(name, results[name], flush=True)
    return results | {"separation arcsec": [round(float(v), 3) for v in scale * radii]}


def main():
    parser = arguments(__doc__)
    parser.add_argument("--asn")
    parser.add_argument("--psfmask")
    parser.add_argument("--instrument", default="nircam")
    parser.add_argument("--places", type=int, default=1000)
    parser.add_argument("--adi-places", type=int, default=1000, help="0: no run with ADI+RDI")
    parser.add_argument("--full", type=int, default=0)
    parser.add_argument("--strength", default="60", help="of these, in limits: A or A,B,...")
    parser.add_argument("--vip", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    limit_threads(options.threads)
    from bench_contrast import vip

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
        own = options.asn, options.psfmask, options.adi_places, options.seed
        if options.adi_places:
            results["ADI+RDI"] = adi(*own)
            results["ADI+RDI"]["places"] = options.adi_places
            print(results["ADI+RDI"], flush=True)
        spent, _ = timed(lambda: measure_contrast(record), 2)
        results["contrast s"] = spent[0]
        results["run s"] = sum(v for k, v in result.timings.items() if k != "contrast")
        if options.vip:
            results["VIP contrast_curve s"] = vip(result, 5)[0]
            results["VIP / gpucoron"] = results["VIP contrast_curve s"] / results["contrast s"]
        if options.full:
            results["full"] = [
                full(*own[:2], result, options.full, float(strength), options.seed)
                for strength in options.strength.split(",")
            ]
    finish(results, options.out)


if __name__ == "__main__":
    main()
