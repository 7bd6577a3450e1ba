"""Closure of the contrast curve, and its time beside that of a run and of VIP's.

    python bench/bench_contrast.py [--seeds A-B] [--instruments nircam,miri-lyot,miri-4qpm]
        [--modes rdi,adi] [--places 200] [--truncate 5,99] [--out FILE]
    python bench/bench_contrast.py --asn ASN --psfmask FILE [--truncate 5] [--repeats 3]
        [--vip] [--out FILE]

The first: sources at the limits of the curve are added to images of simulated sets without
planets, each by itself at a random place 4 to 16 FWHM from the star (from the edge of the spot,
for Lyot), and their significance against the ring of apertures before they were added is computed
as in Mawet et al. 2014; 5 in the mean, and half of them above 5, is right. With ADI the images are
those of a new subtraction (`flux` of `gpucoron.analysis.forward.ForwardModel.sweep`).

The second: whole processes of a run with and without ``--contrast``, in turn; in one more process
the contrast of a run in memory, and with --vip VIP's contrast_curve with its defaults (one branch
of sources, 3 FWHM apart; its PCA with the same references) on the same images. Processor seconds,
too, which other work on the machine changes less.
"""

import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

from common import arguments, finish, limit_threads, number_range, process

SIZE = {
    "nircam": {"shape": (128, 128), "n_integrations": 3, "n_reference_integrations": 2},
    "miri-4qpm": {"shape": (128, 128), "n_integrations": 3, "n_reference_integrations": 2},
    "miri-lyot": {"n_integrations": 3, "n_reference_integrations": 2},
}
INNER = {"miri-lyot": 2.4}  # arcsec, where it is more than 4 FWHM
SPAN = 4, 16  # FWHM
BOX = 15  # px, of the sources' images


def significance_of(image, source, corner, place, star, fwhm):
    """Gaussian sigmas of an added source against the ring of apertures before it was added."""
    import numpy as np

    from gpucoron.analysis.detection import significance
    from gpucoron.ops.apertures import aperture_sums

    y, x = place
    radius, first = np.hypot(x - star[0], y - star[1]), np.arctan2(y - star[1], x - star[0])
    angles = first + np.arange(int(2 * np.pi * radius / fwhm)) * fwhm / radius
    ring = np.stack([star[0] + radius * np.cos(angles), star[1] + radius * np.sin(angles)], -1)
    others = aperture_sums(image, ring, fwhm / 2)
    others = others[np.isfinite(others)]
    whole = image.astype(float)
    whole[tuple(slice(c, c + len(source)) for c in corner)] += source
    excess = aperture_sums(whole, ring[:1], fwhm / 2)[0] - others.mean()
    n = len(others)
    return float(significance(excess / (others.std(ddof=1) * np.sqrt(1 + 1 / n)), n))


def closure(record, seed, places=200, inner=0.0):
    """Significance (K, places) of sources at the limits of the curve of each number of KL modes."""
    import numpy as np

    from gpucoron.analysis.contrast import measure_contrast

    contrast, forward = measure_contrast(record), record.forward
    near, far = (fwhm * contrast.fwhm_px for fwhm in SPAN)
    near = max(near, inner / record.wcs.pixel_scale)
    rng = np.random.default_rng(seed)
    radii = np.sqrt(rng.uniform(near**2, max(far, 2 * near) ** 2, places))
    angles = rng.uniform(0, 2 * np.pi, places)
    offsets = record.wcs.pixel_scale * (radii * np.stack([np.sin(angles), np.cos(angles)])).T
    star, found = record.star.pixel, []
    for k, limits in zip(contrast.truncations, contrast.limit, strict=True):
        flux = np.interp(radii, contrast.separation_px, limits)
        known = np.isfinite(flux)  # near the star all of a source may be subtracted
        flux = flux[known]
        strength = None if forward.linear else flux
        (sources,) = forward.sweep(offsets[known], [k], BOX, exact=True, flux=strength)
        found.append(
            [
                significance_of(record.images[k], amount * image, *at, star, contrast.fwhm_px)
                for image, *at, amount in zip(*sources, flux, strict=True)
            ]
        )
    return found


def reduce_set(folder, instrument, seed, mode, truncate):
    import gpucoron
    from gpucoron.simulate import simulate

    size = SIZE[instrument] | ({} if mode == "rdi" else {"n_science": 3})  # 10 degrees apart
    made = simulate(folder, instrument, seed, disk=False, planets=(), **size)
    return gpucoron.run(
        made.asn, "cpu", psfmask=made.psfmask, mode=mode, klip_truncate=truncate,
        forward_model=True, progress=False,
    )  # fmt: skip


def closures(options):
    """Mean and share above 5 of every set and number of KL modes, and of all sets together."""
    import numpy as np

    results = {}
    for instrument in options.instruments.split(","):
        for mode in options.modes.split(","):
            rows, every = [], []
            for seed in number_range(options.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    result = reduce_set(Path(folder), instrument, seed, mode, options.truncate)
                record = result.product.record
                found = closure(record, seed, options.places, INNER.get(instrument, 0.0))
                for k, sigmas in zip(record.images, found, strict=True):
                    rows.append({"seed": seed, "KL modes": k, **summary(sigmas)})
                    print(instrument, mode, rows[-1], flush=True)
                every += found
                results[f"{instrument} {mode}"] = {
                    "sets": rows,
                    "all": summary(np.concatenate(every)),
                }
                found = {"seeds": options.seeds, "places": options.places, "closure": results}
                if options.out:  # after each set
                    finish(found, options.out)
    return found


def summary(sigmas):
    import numpy as np

    sigmas = np.asarray(sigmas)
    known = sigmas[np.isfinite(sigmas)]
    return {
        "places": len(known),
        "mean": round(float(known.mean()), 3),
        "above 5": round(float(np.mean(known > 5)), 3),
    }


def vip(result, truncate):
    """Seconds of VIP's contrast curve for the science integrations and aligned references."""
    import numpy as np
    from vip_hci.metrics import contrast_curve
    from vip_hci.psfsub import pca

    forward = result.product.forward_model
    kept = next(iter(result.product.psfalign.values())).data
    references = kept.mean(axis=0) if kept.ndim == 4 else kept
    cube = np.concatenate(
        [np.nan_to_num(result.product.crfints[root].data) for root in result.product.psfalign]
    )
    side = min(cube.shape[1:]) // 2 * 2 - 1
    cube, references = (np.ascontiguousarray(a[:, :side, :side]) for a in (cube, references))
    psf = np.asarray(forward.psf.without_mask, dtype=float)
    start = _now()
    contrast_curve(
        cube, np.zeros(len(cube)), psf, fwhm=forward.fwhm_px, pxscale=result.product.record.wcs.
        pixel_scale, starphot=1.0, algo=pca, cube_ref=references, ncomp=truncate, plot=False,
        verbose=False,
    )  # fmt: skip
    return _since(start)


def _now():
    return time.perf_counter(), time.process_time()


def _since(start):
    """Seconds by the clock and of the processor since `start`."""
    return [b - a for a, b in zip(start, _now(), strict=True)]


def times(options):
    """Seconds of whole processes without and with the contrast, of the contrast alone, of VIP's."""
    import numpy as np

    import gpucoron
    from gpucoron.analysis.contrast import measure_contrast

    modes = ",".join(map(str, options.truncate))
    command = [sys.executable, "-m", "gpucoron", options.asn, "--psfmask", options.psfmask]
    command += ["--set", f"klip.truncate={modes}", "--device", "cpu"]
    spent = {"run": [], "run with contrast": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):  # in turn, as a machine's speed changes
            for name, flags in (("run", []), ("run with contrast", ["--contrast"])):
                out = Path(folder) / "out"
                spent[name].append(
                    process([*command, *flags, "--output-dir", str(out)], output=out)
                )
    results = {
        f"{name} {key}": float(np.median([s[key] for s in several]))
        for name, several in spent.items()
        for key in ("median_s", "cpu_s")
    }
    pairs = zip(spent["run with contrast"], spent["run"], strict=True)
    pairs = list(pairs)
    for key, name in (("median_s", "added, over the run"), ("cpu_s", "added, processor time")):
        results[name] = float(np.median([a[key] / b[key] - 1 for a, b in pairs]))
    result = gpucoron.run(
        options.asn, "cpu", psfmask=options.psfmask, klip_truncate=options.truncate, progress=False
    )
    own = []
    for _ in range(options.repeats + 1):
        start = _now()
        measure_contrast(result.product.record)
        own.append(_since(start))
    results["contrast, first and again s, cpu s"] = own
    if options.vip:
        theirs = vip(result, max(options.truncate))
        results["VIP contrast_curve s, cpu s"] = theirs
        for k, name in enumerate(("", ", processor time")):
            results[f"VIP / first{name}"] = theirs[k] / own[0][k]
            results[f"VIP / again{name}"] = theirs[k] / min(o[k] for o in own[1:])
    return results


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--instruments", default=",".join(SIZE))
    parser.add_argument("--modes", default="rdi,adi")
    parser.add_argument("--places", type=int, default=200)
    parser.add_argument("--truncate", default="5,99")
    parser.add_argument("--asn")
    parser.add_argument("--psfmask")
    parser.add_argument("--vip", action="store_true")
    options = parser.parse_args()
    options.truncate = [int(k) for k in options.truncate.split(",")]
    limit_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    results = times(options) if options.asn else closures(options)
    finish(results, options.out)


if __name__ == "__main__":
    main()
