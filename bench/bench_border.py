"""Whether areas without data in the images bias PSF subtraction: background, and a planet's flux.

    python bench/bench_border.py [--instrument nircam ...] [--seeds 1-4] [--out FILE]

Simulated sets of two rolls with planets and without a disk, of a background that is not in
proportion to the star. The left 30 % of the images are then flagged NON_SCIENCE and set to NaN: in
all of them, or in every other reference exposure only. For each: median of psfsub at 30 to 60 and
60 to 95 px in the part that all have, and the planets' flux there (sum within 3 px less the median
at 6 to 10 px) over that of the set without border; the scatter is that of planets, rolls and seeds.
"all pixels" is KLIP as it would be without weights, which takes what the area is filled with.
"""

import tempfile
import warnings
from pathlib import Path

from common import arguments, finish, limit_threads, number_range

BORDER = 0.3  # of the columns
RINGS = ((30, 60), (60, 95))  # px
TRUNCATE = 10
SIZE = {"shape": (160, 160), "n_integrations": 3, "n_reference_integrations": 2, "disk": False}
BACKGROUND = {"background_left": 0.5, "reference_brightness": 3.0}
PLANETS = {  # separation, contrast
    "nircam": (3.0, 1e-5),
    "miri-4qpm": (5.0, 1e-4),
}
WITHOUT, EVERYWHERE, SOME, ALL_PIXELS = (
    "without border",
    "border everywhere",
    "border in every other reference exposure",
    "border everywhere, all pixels",
)


def add_border(paths):
    """Flag the left of the images of some files as NON_SCIENCE, without data."""
    import numpy as np
    from astropy.io import fits

    for path in paths:
        with fits.open(path, mode="update") as hdus:
            edge = int(BORDER * hdus["SCI"].data.shape[-1])
            hdus["DQ"].data[..., :edge] |= np.uint32(513)
            for name in ("SCI", "ERR", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"):
                hdus[name].data[..., :edge] = np.nan


def reduce(made):
    """Return psfsub of each science exposure by its name, and the stars' positions."""
    import gpucoron

    product = gpucoron.run(
        made.asn,
        psfmask=made.psfmask,
        klip_truncate=TRUNCATE,
        keep=("psfsub",),
        device="cpu",
    ).product
    return product.psfsub, product.stars


def measure(made, reduced):
    """Backgrounds by ring, and fluxes by roll and planet."""
    import numpy as np

    psfsub, stars = reduced
    rings, fluxes = [], {}
    for (root, _), stack in psfsub.items():
        good = np.where((stack.dq & 1) == 0, stack.data, np.nan)
        image = np.nanmean(good, axis=0)
        y, x = np.indices(image.shape)
        shared = x >= int(BORDER * image.shape[1]) + 5
        star = stars[root].mean
        distance = np.hypot(x - star[0] + 1, y - star[1] + 1)
        for number, planet in enumerate(made.planets):
            px, py = planet.pixels[root]
            from_planet = np.hypot(x - px, y - py)
            shared &= from_planet > 12
            around = (from_planet >= 6) & (from_planet <= 10)
            if px - 12 > BORDER * image.shape[1] and around.sum() > 190:
                value = image - np.nanmedian(image[around])
                fluxes[root, number] = float(np.nansum(value[from_planet <= 3]))
        rings.append(
            [
                float(np.nanmedian(image[shared & (distance >= a) & (distance < b)]))
                for a, b in RINGS
            ]
        )
    return np.mean(rings, axis=0).tolist(), fluxes


def measure_set(folder, instrument, seed):
    """Measure one set in all ways."""
    from gpucoron.simulate import simulate
    from gpucoron.steps import Alignment

    separation, contrast = PLANETS[instrument]
    planets = [(separation, angle, contrast) for angle in (20, 110, 200, 290)]
    options = {"planets": planets, **SIZE, **BACKGROUND}
    made = simulate(folder, instrument, seed=seed, **options)
    found = {WITHOUT: measure(made, reduce(made))}
    exposures = made.psf[::2]
    add_border(exposures)
    found[SOME] = measure(made, reduce(made))
    add_border([*made.science, *made.psf[1::2]])
    found[EVERYWHERE] = measure(made, reduce(made))
    whole = Alignment.klip_weight
    try:
        Alignment.klip_weight = lambda *_, **__: None
        found[ALL_PIXELS] = measure(made, reduce(made))
    finally:
        Alignment.klip_weight = whole
    return found


def main():
    parser = arguments(__doc__)
    parser.add_argument("--instrument", action="append", default=[], choices=PLANETS)
    parser.add_argument("--seeds", type=number_range, default="1-4", metavar="FIRST-LAST")
    args = parser.parse_args()
    limit_threads(args.threads)
    warnings.simplefilter("ignore")
    import numpy as np

    results = []
    for instrument in args.instrument or PLANETS:
        sets = []
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as folder:
                sets.append(measure_set(Path(folder), instrument, seed))
        for case in (WITHOUT, EVERYWHERE, SOME, ALL_PIXELS):
            ratios = [
                flux / one[WITHOUT][1][key] for one in sets for key, flux in one[case][1].items()
            ]
            rings = np.mean([one[case][0] for one in sets], axis=0)
            row = {
                "instrument": instrument,
                "set": case,
                "background, MJy/sr": rings.round(3).tolist(),
                "flux, mean": round(float(np.mean(ratios)), 4),
                "flux, error of the mean": round(
                    float(np.std(ratios) / max(len(ratios) - 1, 1) ** 0.5), 4
                ),
                "planets": len(ratios),
            }
            print(row, flush=True)
            results.append(row)
    finish({"seeds": list(args.seeds), "truncate": TRUNCATE, "results": results}, args.out)


if __name__ == "__main__":
    main()
