"""How honest the errors of psfsub and i2d are.

    python bench/bench_errors.py [--quick] [--instrument nircam ...] [--seeds 1-2] [--mode MODE]
        [--zones] [--preset jwst] [--out FILE]

Simulated sets without planets and disk, photon-limited (next to no drift, acquisition error 0) with
references of 0.3, 1 and 1.6 times the star, and with the default drift. Robust scatter (1.4826
times the median deviation) of values about their median in annuli about the star, in units of the
errors: of every integration of psfsub, of pixels of i2d, and of means over 4 x 4 pixels of i2d,
whose error is that of independent pixels times ERRCORR, of speckles times SPKCORR. 1 is what should
come out. --mode takes other rolls as references, --zones reduces in 5 annuli of 4 sections,
--preset jwst shows what jwst's errors give.
"""

import tempfile
import warnings
from pathlib import Path

from common import arguments, finish, limit_threads, number_range

ANNULI = ((0, 10), (10, 20), (20, 35), (35, 55), (55, 75))
SIZE = {"shape": (160, 160), "n_integrations": 6, "n_reference_integrations": 2}
ZONES = {"annuli": 5, "subsections": 4, "owa": 75}
TRUNCATIONS = {"nircam": (1, 5, 10, 15), "miri-4qpm": (1, 10, 15), "miri-lyot": (1, 10, 15)}


def cases(quick, instruments):
    """Yield name, instrument and options of the simulations."""
    for instrument in instruments or TRUNCATIONS:
        for brightness in (1.0,) if quick else (0.3, 1.0, 1.6):
            still = {"reference_brightness": brightness, "drift_nm": 0.05, "acquisition_px": 0.0}
            yield f"references {brightness} times the star", instrument, still
        yield "default drift", instrument, {"acquisition_px": 0.0}


def scatter(values):
    import numpy as np

    values = values[np.isfinite(values)]
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def by_annulus(values, errors, distance):
    """Scatter of values about their median in each annulus, in units of their errors.

    The median counts because psfsub has the mean 0 by definition: what is left of the core moves
    the rest, and an offset over errors that differ would look like scatter.
    """
    import numpy as np

    parts = [(distance >= a) & (distance < b) for a, b in ANNULI]
    return [
        scatter((values[..., part] - np.nanmedian(values[..., part])) / errors[..., part])
        for part in parts
    ]


def distances(shape, star):
    import numpy as np

    y, x = np.indices(shape)
    return np.hypot(x - star[0], y - star[1])


def boxes(image, side=4):
    """Cut an image into squares: (rows, columns, side^2)."""
    ny, nx = (n // side for n in image.shape)
    cut = image[: ny * side, : nx * side].reshape(ny, side, nx, side)
    return cut.swapaxes(1, 2).reshape(ny, nx, -1)


def of_combined(image, star):
    """Pulls of pixels, and of means over 4 x 4 pixels."""
    import numpy as np

    distance = distances(image.data.shape, star)
    speckle = np.zeros(image.err.shape) if image.var_speckle is None else image.var_speckle
    error = image.error_of_mean(boxes(image.err), boxes(speckle))
    return (
        by_annulus(image.data, image.err, distance),
        by_annulus(boxes(image.data).mean(axis=2), error, boxes(distance).mean(axis=2)),
    )


def measure(folder, instrument, seed, options, args):
    """Simulate and reduce a set; return rows (K, psfsub, i2d, bins) of pulls by annulus."""
    import numpy as np

    import gpucoron
    from gpucoron.simulate import simulate

    made = simulate(
        folder, instrument=instrument, seed=seed, planets=[], disk=False, **SIZE, **options
    )
    product = gpucoron.run(
        made.asn,
        psfmask=made.psfmask,
        klip_truncate=TRUNCATIONS[instrument],
        keep=("psfsub", "i2d"),
        device="cpu",
        preset=args.preset,
        klip={"mode": args.mode} | (ZONES if args.zones else {}),
    ).product
    rows = []
    for k, image in product.i2ds.items():
        pulls = []
        for root, star in product.stars.items():
            stack = product.psfsub[root, k]
            good = np.where((stack.dq & 1) == 0, stack.data, np.nan)
            place = [v - 1 if np.isfinite(v) else 79.5 for v in star.mean]
            pulls.append(by_annulus(good, stack.err, distances(stack.shape[1:], place)))
        star = product.star.pixel if product.star else [(n - 1) / 2 for n in image.data.shape[::-1]]
        rows.append((k, np.mean(pulls, axis=0).tolist(), *of_combined(image, star)))
    return rows


def main():
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="one brightness, one seed")
    parser.add_argument("--instrument", action="append", default=[], choices=TRUNCATIONS)
    parser.add_argument("--seeds", type=number_range, default="1-2", metavar="FIRST-LAST")
    parser.add_argument("--preset", choices=("jwst",))
    parser.add_argument("--mode", choices=("rdi", "adi", "adi+rdi", "roll"), default="rdi")
    parser.add_argument("--zones", action="store_true", help="5 annuli of 4 sections")
    args = parser.parse_args()
    limit_threads(args.threads)
    warnings.simplefilter("ignore")
    import numpy as np

    seeds = args.seeds[:1] if args.quick else args.seeds
    results = []
    print("robust scatter of value / error in annuli of", ", ".join(f"{a}-{b}" for a, b in ANNULI))
    for name, instrument, options in cases(args.quick, args.instrument):
        found = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure(Path(folder), instrument, seed, options, args))
        for rows in zip(*found, strict=True):
            means = [np.mean([row[k] for row in rows], axis=0).round(3).tolist() for k in (1, 2, 3)]
            psfsub, i2d, bins = (" ".join(f"{v:5.2f}" for v in values) for values in means)
            print(f"{instrument} {name} K={rows[0][0]}: psfsub {psfsub} | i2d {i2d} | 4x4 {bins}")
            entry = {"instrument": instrument, "set": name, "truncate": rows[0][0]}
            results.append(entry | dict(zip(("psfsub", "i2d", "bins"), means, strict=True)))
    finish(
        {
            "seeds": list(seeds),
            "mode": args.mode,
            "zones": args.zones,
            "annuli_px": ANNULI,
            "results": results,
        },
        args.out,
    )


if __name__ == "__main__":
    main()
