"""How many cosmic rays outlier_detection finds, and how many clean pixels it flags.

    python bench/bench_outliers.py [--instrument nircam ...] [--seeds 0-9] [--counts 1 2] [--visits]
                                   [--out F]

Simulated exposures of known cosmic rays, 120 x 120, a science and a reference exposure of ten
integrations for each seed, cut into exposures of 1, 2, 3, 5 and 10. Counted are hits of more than
10 errors, and pixels that no hit touches, within and beyond 30 px of the mask; "jwst" is a preset.
The rules were made on seeds 0 to 9.

With --visits nine reference exposures of one integration each, 200 x 200: "alone" by their
neighbours, "compared" with the others of the visit.
"""

import tempfile
from pathlib import Path

from common import arguments, finish, limit_threads, number_range

CORE = 30  # px
SIZES = {
    "shape": (120, 120),
    "n_science": 1,
    "n_integrations": 10,
    "n_references": 1,
    "n_reference_integrations": 10,
    "truth_scenes": True,
}
VISIT = {
    **SIZES,
    "shape": (200, 200),
    "n_integrations": 1,
    "n_references": 9,
    "n_reference_integrations": 1,
}
KINDS = {
    "nircam": ("nircam", {}),
    "nircam-short": ("nircam", {"filter": "F200W"}),
    "miri-4qpm": ("miri-4qpm", {}),
    "miri-lyot": ("miri-lyot", {}),
}


def exposures(kind, seed, jitter, folder, sizes=SIZES):
    """Yield stack, cutoff of its images, scene without noise, hits, and the pixels of the core."""
    import numpy as np

    from gpucoron.io import read_exposure
    from gpucoron.optics.telescope import cutoff_of
    from gpucoron.simulate import simulate

    name, options = KINDS[kind]
    made = simulate(folder, name, seed=seed, jitter_px=jitter, **sizes, **options)
    truth = np.load(made.truth)
    for path in made.science + made.psf:
        root = path.name.replace("_calints.fits", "")
        exposure = read_exposure(path, "science")
        stack, cutoff = exposure.stack, cutoff_of(exposure.meta)
        nx = stack.data.shape[-1]
        hits = np.unpackbits(truth[f"cosmic_rays_{root}"], axis=-1)[..., :nx].astype(bool)
        y, x = np.indices(hits.shape[1:])
        centre = truth["mask_centre"]
        core = np.hypot(y - centre[1], x - centre[0]) < CORE
        yield stack, cutoff, np.load(path.with_name(f"{root}_clean.npy")), hits, core


def count(stack, cutoff, scene, hits, core, n, preset, rows):
    """Add an exposure, cut into pieces of n integrations, to the counts of both regions."""
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.steps import outlier_detection

    for first in range(0, len(hits) - n + 1, n):
        part = slice(first, first + n)
        piece = IntegrationStack(stack.data[part], stack.err[part], stack.dq[part])
        found = outlier_detection(piece, preset=preset, cutoff=cutoff)
        add(piece, found.stack, scene[part], hits[part], core, rows)


def add(given, found, scene, hits, core, rows):
    """Add what was found in a stack to the counts of both regions."""
    import numpy as np

    flagged = (found.dq & 16) > 0
    usable = (given.dq & 1 == 0) & np.isfinite(given.data) & np.isfinite(given.err)
    with np.errstate(invalid="ignore"):
        strong = usable & hits & (given.data - scene > 10 * given.err)
    clean = usable & ~hits
    for row, region in zip(rows, (core, ~core), strict=True):
        for name, pixels in (("hits", strong), ("clean", clean)):
            row[name] += int((pixels & region).sum())
            row[f"{name} flagged"] += int((pixels & region & flagged).sum())


def empty_rows():
    """Counts of the core, and of what is outside of it."""
    names = ("hits", "hits flagged", "clean", "clean flagged")
    return [dict.fromkeys(names, 0) for _ in range(2)]


def measure_visits(kind, jitter, seeds):
    """Count for one instrument: exposures of one integration, alone and compared in a visit."""
    from gpucoron.steps import outlier_detection
    from gpucoron.steps.visit_outliers import flag_by_visit

    table = {"alone": empty_rows(), "compared": empty_rows()}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            _, *visit = exposures(kind, seed, jitter, Path(folder), VISIT)  # without the science
        alone = [outlier_detection(stack, cutoff=cutoff) for stack, cutoff, *_ in visit]
        for name, results in (("alone", alone), ("compared", flag_by_visit(alone, 5.0))):
            for (stack, _, *truth), found in zip(visit, results, strict=True):
                add(stack, found.stack, *truth, table[name])
    return {name: {"core": rows[0], "outside": rows[1]} for name, rows in table.items()}


def measure(kind, jitter, seeds, counts):
    """Count for one instrument: preset and default, by number of integrations and region."""
    table = {(preset, n): empty_rows() for preset in ("jwst", None) for n in counts}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            for exposure in exposures(kind, seed, jitter, Path(folder)):
                for (preset, n), rows in table.items():
                    count(*exposure, n, preset, rows)
    return {
        f"{preset or 'default'}, {n} integrations": {"core": rows[0], "outside": rows[1]}
        for (preset, n), rows in table.items()
    }


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--instrument", action="append", default=[], choices=KINDS)
    parser.add_argument("--seeds", type=number_range, default="0-9", metavar="FIRST-LAST")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 3, 5, 10])
    parser.add_argument("--jitter-px", type=float, nargs="+", default=[0.01, 0.0])
    parser.add_argument("--visits", action="store_true", help="exposures of one integration")
    options = parser.parse_args()
    limit_threads(options.threads)
    results = {
        f"{kind}, jitter {jitter} px": measure_visits(kind, jitter, options.seeds)
        if options.visits
        else measure(kind, jitter, options.seeds, options.counts)
        for kind in options.instrument or KINDS
        for jitter in options.jitter_px
    }
    finish({"seeds": list(options.seeds), "counts": results}, options.out)


if __name__ == "__main__":
    main()
