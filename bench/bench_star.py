"""How well the star behind the coronagraph is found, and how honest its errors are.

    python bench/bench_star.py [--quick] [--seeds 8] [--first-seed 0] [--only NAME] [--out FILE]
    python bench/bench_star.py --filters --seeds 1 --first-seed 200 [--only NAME] [--out FILE]
    python bench/bench_star.py --undithered --seeds 3 --first-seed 410 [--only NAME] [--out FILE]

All coronagraphs of NIRCam and MIRI; with --filters every mask with every filter, four dithers, 96 x
96 px, only "header" and "science", the cases in turn, and pooled by mask; with --undithered one
exposure of the reference star, so that steps are not known ("science" has its wavefront and mask as
prior, which a run does not do). Simulated sets with noise, cosmic rays
and bad pixels: the mean of each dithered reference exposure after outlier_detection, its position
known to 0.02 px (as from the header) or 0.002 px (as from registration). Rms of the error along x
and y in mas, rms pull, and processor seconds, over the seeds. "wrong" is a model whose pupil is
turned by 0.5 degrees, whose mask is 1 % too large and whose stop is 2 % too narrow. "one image" is
one reference alone; "science alone" is the mean of a science exposure, and "science" the same with
wavefront and mask from the dithered references, as in a run.
"""

import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from common import arguments, finish, limit_threads

SETS = [
    ("nircam", "F444W", "335R"),
    ("nircam", "F410M", "335R"),
    ("nircam", "F210M", "210R"),
    ("nircam", "F444W", "430R"),
    ("nircam", "F460M", "430R"),
    ("nircam", "F210M", "SWB"),
    ("nircam", "F410M", "LWB"),
    ("miri-4qpm", "F1065C", None),
    ("miri-4qpm", "F1140C", None),
    ("miri-4qpm", "F1550C", None),
    ("miri-lyot", "F2300C", None),
]
FEW = ("nircam F444W 335R", "nircam F210M SWB", "nircam F410M LWB", "miri-4qpm F1140C", "miri-lyot")
QUICK = ("nircam F444W 335R", "miri-4qpm F1140C", "miri-lyot F2300C")
SIZES = {
    "shape": (128, 128),
    "n_science": 1,
    "n_integrations": 3,
    "n_references": 9,
    "n_reference_integrations": 2,
    "planets": (),
    "disk": False,
}
SMALL = {**SIZES, "shape": (96, 96), "n_references": 4}
UNDITHERED = {**SMALL, "n_references": 1, "n_reference_integrations": 4}
WRONG = {"rotation_deg": 0.5, "radius_scale": 1.01, "stop_scale": 0.98}
CASES = {
    "30 nm, 0.5 px": {"wavefront_nm": 30.0, "acquisition_px": 0.5},
    "default, 0.5 px": {"acquisition_px": 0.5},
    "default, 0 px": {"acquisition_px": 0.0},
}


def every_filter():
    """All masks with the filters of their channel: (instrument, filter, mask)."""
    from gpucoron.optics.instruments import MODES

    modes = {(m.name, m.mask): m for m in reversed(MODES)}.values()  # the first of each is usual
    return [(m.name, f, m.mask or None) for m in modes for f in sorted(m.filters)]


def load(simulation, kind="psf"):
    """Mean images of the exposures of a kind, their errors, and the star's true places."""
    import json

    import numpy as np

    from gpucoron.io import read_exposure
    from gpucoron.steps import outlier_detection

    truth = json.loads(simulation.truth_json.read_text())
    known = {entry["file"]: entry["star_xy_px"] for entry in truth["exposures"]}
    images, errors, places = [], [], []
    for path in getattr(simulation, kind):
        stack = outlier_detection(read_exposure(path, kind).stack).stack
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            bad = stack.dq & 1 != 0
            images.append(np.nanmean(np.where(bad, np.nan, stack.data), axis=0))
            squares = np.nansum(np.where(bad, np.nan, stack.err) ** 2, axis=0)
        count = np.maximum(np.sum(~bad, axis=0), 1)
        errors.append(np.sqrt(squares) / count)
        places.append(np.mean(known[path.name], axis=0))
    return np.array(images), np.array(errors), np.array(places)


def measure(name, bandpass, mask, case, seeds, folder, sizes):
    """Errors and pulls of one kind of set; of smaller ones nothing that a run does not do."""
    import time

    import numpy as np

    from gpucoron.optics.instruments import choose_optics, load_aperture
    from gpucoron.optics.star import fit_star
    from gpucoron.simulate import simulate
    from gpucoron.simulate.geometry import Window

    instrument, optics = choose_optics(name, bandpass, mask)
    aperture = load_aperture(optics.aperture)
    centre, few = Window.centred(aperture, sizes["shape"]).centre, sizes is not SIZES
    mas = 1000 * np.array(aperture.scale)
    variants = {
        "all": {},
        "header": {"step_error_px": 0.02},
        "wrong": {"options": WRONG},
        "one image": {},
    }
    if few:
        variants = {"header": variants["header"]}
    rows = {key: [] for key in variants}
    optics = instrument, optics, centre
    for seed in seeds:
        made = simulate(
            folder / f"{seed}",
            name,
            filter=bandpass,
            mask=mask,
            seed=seed,
            **sizes,
            **case,
        )
        images, errors, places = load(made)
        origin = places.mean(axis=0)
        rng = np.random.default_rng(seed)
        for key, keywords in variants.items():
            which = slice(0, 1) if key == "one image" else slice(None)
            sigma = keywords.get("step_error_px", 0.002) if len(places) > 1 else 0.0
            steps = places - origin + sigma * rng.standard_normal(places.shape)
            start = time.process_time()
            fit = fit_star(
                images[which],
                errors[which],
                steps[which],
                *optics,
                **{**keywords, "step_error_px": sigma},
            )
            used = time.process_time() - start
            rows[key].append(compared(fit, origin, mas, used))
            if key == "header":
                known = fit.known
        images, errors, (place,) = load(made, "science")
        shutil.rmtree(made.directory)
        alone = {} if sizes is SMALL else {"science alone": {}}
        kinds = {"science": {"known": known}} | alone
        for key, keywords in kinds.items():
            start = time.process_time()
            fit = fit_star(images, errors, np.zeros((1, 2)), *optics, **keywords)
            rows.setdefault(key, []).append(compared(fit, place, mas, time.process_time() - start))
    return {key: summary(found) for key, found in rows.items()}


def compared(fit, place, mas, used):
    """Error and pull of a fit, error of the symmetry's position, seconds, method."""
    import numpy as np

    miss = (np.array(fit.position) - place) * mas
    symmetry = (np.array(fit.symmetry) - place) * mas
    return miss, miss / (np.array(fit.error) * mas), symmetry, used, fit.method


def rms(values):
    """Root of the mean square along the first axis."""
    import numpy as np

    return np.round(np.sqrt(np.mean(np.square(values), axis=0)), 3).tolist()


def pooled(results):
    """Results of all filters and seeds of each mask and wavefront, both axes together."""
    import numpy as np

    groups = {}
    for key, found in results.items():
        mask, wavefront = key.split(", ")[0].split()[-1], key.split(", ")[1]
        if mask.startswith("F"):
            mask = key.split()[0]
        groups.setdefault(f"{mask}, {wavefront}", []).append(found)
    table = {}
    for name, every in groups.items():
        row = table[name] = {"sets": len(every)}
        for kind in every[0]:
            for value in ("rms_mas", "pull"):
                row[f"{kind}, {value}"] = rms(np.ravel([found[kind][value] for found in every]))
            row[f"{kind}, largest_mas"] = max(found[kind]["largest_mas"] for found in every)
    return table


def summary(rows):
    """Rms of errors, pulls and of symmetry's errors; median time."""
    import numpy as np

    miss, pull, symmetry = (np.array([r[k] for r in rows]) for k in range(3))
    return {
        "method": [r[4] for r in rows],
        "rms_mas": rms(miss),
        "pull": rms(pull),
        "symmetry_mas": rms(symmetry),
        "largest_mas": round(float(np.hypot(*miss.T).max()), 2),
        "cpu_s": round(float(np.median([r[3] for r in rows])), 3),
    }


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="kinds of sets whose name begins with this")
    parser.add_argument("--filters", action="store_true", help="every filter, what a run does")
    parser.add_argument("--quick", action="store_true", help="three kinds of sets, two seeds")
    parser.add_argument("--undithered", action="store_true", help="one exposure of the references")
    options = parser.parse_args()
    limit_threads(1)
    sets = {" ".join(filter(None, one)): one for one in SETS}
    count, cases = options.seeds, CASES
    if options.quick:
        sets, count = {name: sets[name] for name in QUICK}, 2
        cases = dict(list(CASES.items())[:2])
    if options.undithered:
        cases = dict(list(CASES.items())[:2])
    if options.filters:
        sets = {" ".join(filter(None, one)): one for one in every_filter()}
        cases = {key: CASES[key] for key in ("30 nm, 0.5 px", "default, 0.5 px")}
    sizes = SMALL if options.filters else UNDITHERED if options.undithered else SIZES
    wanted = tuple(options.only or (FEW if options.undithered else ("",)))
    seeds, results = range(options.first_seed, options.first_seed + count), {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, one) in enumerate(sets.items()):
            if not name.startswith(wanted):
                continue
            for label, case in (
                list(cases.items())[(number + seeds[0]) % 2 :: 2]
                if options.filters
                else cases.items()
            ):
                key = f"{name}, {label}"
                results[key] = measure(*one, case, seeds, Path(folder) / key, sizes)
                print(key, results[key], file=sys.stderr, flush=True)
                finish(
                    {
                        "seeds": list(seeds),
                        **sizes,
                        "pooled": pooled(results) if options.filters else None,
                        "results": results,
                    },
                    options.out,
                )


if __name__ == "__main__":
    main()
