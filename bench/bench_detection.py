"""False alarms, and how true positions and fluxes of the candidates are.

    python bench/bench_detection.py [--seeds 10] [--instruments nircam,miri-4qpm,miri-lyot]
        [--parts alarms,planets,companions,likelihoods] [--brighter FACTOR] [--out FILE]

alarms: sets without planets and disk, K = 5 and all: candidates above 5 sigma and without caveat
outside the inner working angle, per set. planets: sets with six planets: how many are candidates;
mean error of flux and position, and pulls (error over stated error; 1 is right), of those above 5
sigma and of the others. companions: the same sets by the posterior of each companion; pulls of the
flux by the posterior alone, too. likelihoods: seconds of 30,000 of them, in a whole call of
`companion` for the outermost planet. --brighter multiplies the planets' contrasts; they are then
known, and excluded from the fits of the star. The file is written anew after each seed.
"""

import logging
import math
import tempfile
import time
import warnings
from pathlib import Path

from common import arguments, finish, limit_threads

INNER = {"nircam": 0.63, "miri-4qpm": 0.36, "miri-lyot": 2.16}  # arcsec
SIZE = {
    "nircam": {"shape": (128, 128), "n_integrations": 3, "n_reference_integrations": 2},
    "miri-4qpm": {"shape": (128, 128), "n_integrations": 3, "n_reference_integrations": 2},
    "miri-lyot": {"n_integrations": 3, "n_reference_integrations": 2},
}
#: Separation (arcsec), contrast: faint and bright ones.
PLANETS = {
    "nircam": ((0.7, 1e-4), (1.0, 4e-5), (1.4, 3e-5), (1.8, 2e-5), (2.3, 1e-5), (2.9, 8e-6)),
    "miri-4qpm": ((1.2, 6e-4), (1.6, 5e-4), (2.1, 3e-4), (2.7, 2e-4), (3.4, 2e-4), (4.2, 2e-4)),
    "miri-lyot": ((3.2, 8e-4), (3.9, 6e-4), (4.6, 4e-4), (5.4, 3e-4), (6.2, 3e-4), (7.2, 2e-4)),
}
TURN = 137.5  # degrees from one planet to the next


def reduce_set(folder, instrument, seed, planets, truncate, exclude=None):
    import gpucoron
    from gpucoron.simulate import simulate

    size = SIZE[instrument]
    made = simulate(folder, instrument, seed, disk=False, planets=planets, **size)
    result = gpucoron.run(
        made.asn,
        psfmask=made.psfmask,
        klip_truncate=truncate,
        device="cpu",
        forward_model=True,
        exclude=exclude,
    )
    return made, result


def alarms(instrument, seeds):
    """Candidates without caveat in sets without sources: of each K, and of each seed."""
    from gpucoron.analysis import measure, photometry

    counts = {"5": [], "all": []}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            _, result = reduce_set(Path(folder), instrument, seed, [], (5, 99))
        record = result.product.record
        sky = measure.locate_star(record)
        for name, truncate in zip(counts, sorted(record.images), strict=True):
            found = photometry.search(record, sky, truncate)[1]
            outside = [c for c in found if c.separation > INNER[instrument]]
            counts[name].append(sum(not c.doubtful for c in outside))
            for c in outside:
                print(
                    f"{instrument} seed {seed} K {truncate}: {c.separation:.2f} arcsec, "
                    f"{c.candidate.significance:.1f} sigma, {c.caveat or 'no caveat'}",
                    flush=True,
                )
        print(instrument, "seed", seed, {k: v[-1] for k, v in counts.items()}, flush=True)
    return counts


def planets(instrument, seed, made, result):
    """Rows of separation, found or not, errors and pulls, for every planet of a set."""
    import numpy as np

    from gpucoron.analysis import photometry

    rows = []
    known = [(p.ra, p.dec) for p in made.planets]
    seen = photometry.find_known(result.product.record, known)
    for truth, c in zip(made.planets, seen, strict=True):
        turn = np.deg2rad(truth.angle)
        true = truth.separation * np.array([np.sin(turn), np.cos(turn)])
        error = np.array(c.offset) - true
        row = {
            "separation": truth.separation,
            "found": bool(c.candidate.significance >= 5 and not c.doubtful),
            "caveat": c.caveat,
            "snr": c.candidate.snr,
            "flux": c.flux_jy / truth.flux_jy - 1,
            "flux_pull": (c.flux_jy - truth.flux_jy) / c.flux_jy_err,
            "error_mas": (1000 * error).tolist(),
            "pulls": (error / c.offset_err).tolist(),
        }
        rows.append(row)
        print(
            f"{instrument} seed {seed} {truth.separation:.1f} arcsec: SNR {row['snr']:.1f}, "
            f"flux {row['flux']:+.3f} ({row['flux_pull']:+.2f}), "
            f"{error[0] * 1000:+.1f} {error[1] * 1000:+.1f} mas "
            f"({row['pulls'][0]:+.2f} {row['pulls'][1]:+.2f}) {c.caveat}",
            flush=True,
        )
    return rows


def companions(made, result):
    """Significance, errors and pulls of the posteriors of all planets; None without a fit."""
    import numpy as np

    from gpucoron.errors import InputError

    rows = []
    for truth in made.planets:
        try:
            fit = result.companion(truth.separation, truth.angle, steps=400)
        except InputError:
            rows.append(None)
            continue
        c, flux = fit.entry, fit.fit.samples[:, 2]
        error = c.flux_jy - truth.flux_jy
        turned = (c.angle - truth.angle + 180) % 360 - 180
        rows.append(
            (
                c.candidate.significance,
                error / truth.flux_jy,
                error / (c.flux_jy * flux.std() / np.median(flux)),
                error / c.flux_jy_err,
                (c.separation - truth.separation) / c.separation_err,
                turned / c.angle_err,
            )
        )
    return rows


def likelihoods(made, result, least=30_000):
    """Seconds of a whole call of `companion` with so many likelihoods, of the second of two."""
    outermost = max(made.planets, key=lambda p: p.separation)
    at = outermost.separation, outermost.angle
    for _ in range(2):
        start = time.perf_counter(), time.process_time()
        fit = result.companion(*at, steps=-(-least // 64)).fit
        spent = time.perf_counter() - start[0], time.process_time() - start[1]
    return {"likelihoods": fit.n_likelihoods, "s": spent[0], "cpu s": spent[1]}


def companions_summary(rows):
    import numpy as np

    values = np.array([r for r in rows if r is not None])
    if not len(values):
        return {"fitted": 0}
    names = ("posterior", "flux", "separation", "position_angle")
    rms = np.sqrt((values[:, 2:] ** 2).mean(axis=0))
    return {
        "fitted": len(values),
        "flux_median": float(np.median(values[:, 1])),
        **{f"{name}_pull_rms": float(v) for name, v in zip(names, rms, strict=True)},
    }


def places(instrument, seed, brighter=1.0):
    """Return separation, position angle and contrast of the planets of a set."""
    return [
        (separation, (40.0 * seed + TURN * k) % 360, contrast * brighter)
        for k, (separation, contrast) in enumerate(PLANETS[instrument])
    ]


def circles(planets):
    """Return a circle of 0.4 arcsec about each planet: east, north, radius."""
    return [
        (
            separation * math.sin(math.radians(angle)),
            separation * math.cos(math.radians(angle)),
            0.4,
        )
        for separation, angle, _ in planets
    ]


def summary(rows):
    import numpy as np

    if not rows:
        return {"planets": 0}
    flux, pulls = (np.array([r[name] for r in rows]) for name in ("flux", "flux_pull"))
    error, place = (np.array([r[name] for r in rows]) for name in ("error_mas", "pulls"))
    weight = 1 / np.maximum(np.abs([1 / r["snr"] for r in rows]), 0.01) ** 2
    return {
        "planets": len(rows),
        "found": sum(r["found"] for r in rows),
        "flux_bias": float(np.average(flux, weights=weight)),
        "flux_median": float(np.median(flux)),
        "snr": [float(f([r["snr"] for r in rows])) for f in (min, np.median, max)],
        "flux_pull_rms": float(np.sqrt(np.mean(pulls**2))),
        "position_bias_mas": error.mean(axis=0).tolist(),
        "position_pull_rms": float(np.sqrt(np.mean(place**2))),
    }


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--instruments", default=",".join(INNER))
    parser.add_argument("--parts", default="alarms,planets")
    parser.add_argument("--brighter", type=float, default=1.0, metavar="FACTOR")
    options = parser.parse_args()
    limit_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    seeds = range(options.first, options.first + options.seeds)
    results, done = {name: {} for name in options.instruments.split(",")}, []
    rows = {name: ([], []) for name in results}
    for seed in seeds:
        for instrument, (seen, fitted) in rows.items():
            if "alarms" in options.parts:
                found = results[instrument].setdefault("alarms", {})
                for k, counts in alarms(instrument, [seed]).items():
                    found.setdefault(k, []).extend(counts)
            if {"planets", "companions", "likelihoods"} & set(options.parts.split(",")):
                with tempfile.TemporaryDirectory() as folder:
                    wanted = places(instrument, seed, options.brighter)
                    known = circles(wanted) if options.brighter > 1 else None
                    made, result = reduce_set(Path(folder), instrument, seed, wanted, (5,), known)
                if "planets" in options.parts:
                    seen += planets(instrument, seed, made, result)
                if "companions" in options.parts:
                    fitted += companions(made, result)
                if "likelihoods" in options.parts:
                    results[instrument]["likelihoods"] = likelihoods(made, result)
                results[instrument].update(of_planets(instrument, seen, fitted))
        done.append(seed)
        finish({"seeds": done, "results": results}, options.out)


def of_planets(instrument, seen, fitted):
    """Summaries of both parts, over all sets until now."""
    found = {}
    if seen:
        found["planets"] = summary(seen)
        found["planets found"] = summary([r for r in seen if r["found"]])
        found["planets not found"] = summary([r for r in seen if not r["found"]])
        for separation, _ in PLANETS[instrument]:
            near = [r for r in seen if r["separation"] == separation]
            found[f"planets at {separation} arcsec"] = summary(near)
    if fitted:
        found["companions without a fit"] = fitted.count(None)
        fits = [r for r in fitted if r is not None]
        found["companions above 5 sigma"] = companions_summary([r for r in fits if r[0] >= 5])
        found["companions below 5 sigma"] = companions_summary([r for r in fits if r[0] < 5])
    return found


if __name__ == "__main__":
    main()
