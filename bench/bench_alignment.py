"""How far defects and noise move the fitted shifts, and how honest their uncertainties are.

    python bench/bench_alignment.py [--instrument nircam ...] [--seed 3] [--canonical] [--out FILE]
    python bench/bench_alignment.py --pulls --seed 101 --seeds 6 [--instrument "nircam F210M 210R"]

Simulated exposures with cosmic rays and bad pixels, the core included; "patch" adds 3x3 pixels on
the steepest slope of the core that are bad in every integration of every exposure, "single" is one
integration an exposure. With --pulls other masks and filters, too, smaller, one science exposure,
pooled over seeds; "noise" has no defects, "each" is without joint positions, and "not measured"
counts fits that are said not to be.
The truth of a fit is the same fit on the same scene without noise and defects (behind a
coronagraph the pointing is not).
"""

import shutil
import sys
import tempfile
from pathlib import Path

from common import arguments, finish, limit_threads

SIZES = {
    "shape": (200, 200),
    "n_science": 2,
    "n_integrations": 4,
    "n_references": 5,
    "n_reference_integrations": 3,
}
CANONICAL = {
    "shape": (320, 320),
    "n_science": 2,
    "n_integrations": 10,
    "n_references": 9,
    "n_reference_integrations": 4,
}
SINGLE = {**SIZES, "n_integrations": 1, "n_reference_integrations": 1}
SMALL = {**SIZES, "shape": (144, 144), "n_science": 1}
KINDS = {
    "nircam F444W 335R": ("nircam", {}),
    "nircam F210M 210R": ("nircam", {"filter": "F210M", "mask": "210R"}),
    "nircam F410M LWB": ("nircam", {"filter": "F410M", "mask": "LWB"}),
    "miri-4qpm F1140C": ("miri-4qpm", {}),
    "miri-4qpm F1550C": ("miri-4qpm", {"filter": "F1550C"}),
    "miri-lyot F2300C": ("miri-lyot", {}),
    "nircam F444W 335R faint": ("nircam", {"star_flux_jy": 0.05}),
    "miri-4qpm F1140C faint": ("miri-4qpm", {"star_flux_jy": 0.05}),
    "miri-lyot F2300C faint": ("miri-lyot", {"star_flux_jy": 0.1}),
}


def load(simulation):
    """Exposures with their noiseless scenes, (science, references), and the psfmask."""
    import numpy as np

    from gpucoron.io import read_exposure, read_psfmask

    groups = []
    for paths, role in ((simulation.science, "science"), (simulation.psf, "psf")):
        groups.append(
            [
                (read_exposure(p, role), np.load(str(p).replace("_calints.fits", "_clean.npy")))
                for p in paths
            ]
        )
    return *groups, read_psfmask(simulation.psfmask, groups[0][0][0].shape[1:])


def flagged(exposure, preset=None):
    """The exposure after outlier_detection, as in a run."""
    from gpucoron.optics.telescope import cutoff_of
    from gpucoron.steps import outlier_detection

    return outlier_detection(exposure.stack, preset=preset, cutoff=cutoff_of(exposure.meta)).stack


def clean(stack, scene):
    """The scene as a stack without noise or defects; only NON_SCIENCE pixels stay flagged."""
    import numpy as np

    return stack.replace(
        data=scene.astype(np.float32),
        err=np.ones(scene.shape, np.float32),
        dq=np.where(stack.dq & 512, stack.dq, 0).astype(np.uint32),
        var_poisson=None,
        var_rnoise=None,
        var_flat=None,
    )


def with_noise(stack, scene, rng):
    """The scene with the noise that ERR tells, and no defects."""
    import numpy as np

    err = np.where(np.isfinite(stack.err), stack.err, np.nanmedian(stack.err))
    return clean(stack, scene + rng.normal(size=scene.shape) * err).replace(err=err)


def patched(stack, image):
    """The stack with the worst patch of 3x3 pixels bad throughout."""
    import numpy as np

    y, x = np.unravel_index(np.argmax(np.hypot(*np.gradient(image))), image.shape)
    lost = np.zeros(image.shape, dtype=bool)
    lost[y - 1 : y + 2, x - 1 : x + 2] = True
    return stack.replace(
        data=np.where(lost, np.nan, stack.data),
        err=np.where(lost, np.nan, stack.err),
        dq=stack.dq | np.where(lost, 1, 0).astype(np.uint32),
    )


def fits(science, references, mask, align, zero):
    """x, y and their errors for all pairs; "jwst" fits every pair with the preset's choices."""
    import numpy as np

    from gpucoron.steps import Alignment

    preset, align = ("jwst", "each") if align == "jwst" else (None, align)
    options = {"align": align, "preset": preset, "zero_non_science": zero}
    plan = Alignment(science, references, mask, **options)
    return np.concatenate([plan.fit(i) for i in range(len(plan.science))])


def errors(found, truth):
    """rms error and rms pull along both axes."""
    import numpy as np

    out = {}
    for axis in ("x", "y"):
        difference = found[axis] - truth[axis]
        out[axis] = float(np.sqrt(np.mean(difference**2)))
        out[f"pull_{axis}"] = float(np.sqrt(np.mean((difference / found[f"{axis}_err"]) ** 2)))
    return out


def measure(instrument, seed, folder, sizes):
    """Simulate one instrument's set; errors of each way of doing it, by science exposure."""
    import numpy as np

    from gpucoron.simulate import simulate
    from gpucoron.steps import stack_refs

    simulation = simulate(folder / instrument, instrument, seed=seed, truth_scenes=True, **sizes)
    science, references, mask = load(simulation)
    zero = instrument.startswith("miri")
    rng = np.random.default_rng(seed)
    scene = np.concatenate([c for _, c in references])
    stacked = {
        preset: stack_refs([flagged(e, preset) for e, _ in references]) for preset in (None, "jwst")
    }
    results = {}
    for exposure, own in science:
        plain = clean(exposure.stack, own), clean(stacked[None], scene)
        row = results[exposure.root] = {}
        for align in ("joint", "each", "jwst"):
            preset = "jwst" if align == "jwst" else None
            truth = fits(*plain, mask, align, zero)
            unhit = flagged(exposure, preset)
            row[align] = errors(fits(unhit, stacked[preset], mask, align, zero), truth)
            both = (patched(stack, scene[0] * mask) for stack in (unhit, stacked[preset]))
            row[f"{align}, patch"] = errors(fits(*both, mask, align, zero), truth)
        raw = stack_refs([e.stack for e, _ in references])
        noisy = with_noise(exposure.stack, own, rng), with_noise(raw, scene, rng)
        row["noise alone"] = errors(*(fits(*pair, mask, "joint", zero) for pair in (noisy, plain)))
    return results


def pulls(kind, seeds, folder, single):
    """Pooled errors of one kind of sets, with defects, and with noise alone where `joint`."""
    import numpy as np

    from gpucoron.simulate import simulate
    from gpucoron.steps import stack_refs

    (instrument, options), zero = KINDS[kind], KINDS[kind][0].startswith("miri")
    sizes = SMALL | ({k: SINGLE[k] for k in SINGLE if "integrations" in k} if single else {})
    rows = {"defects": [], "defects, each": [], "noise": []}
    for seed in seeds:
        made = simulate(
            folder / f"{kind} {single} {seed}",
            instrument,
            seed,
            truth_scenes=True,
            **sizes,
            **options,
        )
        science, references, mask = load(made)
        scene = np.concatenate([c for _, c in references])
        raw = stack_refs([e.stack for e, _ in references])
        (exposure, own), rng = science[0], np.random.default_rng(seed)
        stacked = stack_refs([flagged(e) for e, _ in references])
        plain = clean(exposure.stack, own), clean(raw, scene)
        hit = flagged(exposure), stacked
        noisy = with_noise(exposure.stack, own, rng), with_noise(raw, scene, rng)
        pairs = {"defects": hit, "defects, each": hit, "noise": noisy}
        truths = {align: fits(*plain, mask, align, zero) for align in ("joint", "each")}
        for key, pair in pairs.items():
            align = "each" if key.endswith("each") else "joint"
            rows[key].append((fits(*pair, mask, align, zero), truths[align]))
        shutil.rmtree(made.directory)
    return {key: pooled(found) for key, found in rows.items()}


def pooled(pairs):
    """Errors and pulls of all fits that are good, and how many are not measured."""
    import numpy as np

    found, truth = (np.concatenate(tables) for tables in zip(*pairs, strict=True))
    good = (found["status"] == 0) & (truth["status"] == 0)
    counts = {"fits": int(good.sum()), "not measured": int((found["status"] != 0).sum())}
    return counts | (errors(found[good], truth[good]) if good.any() else {})


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--instrument", action="append", default=[])
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--canonical", action="store_true", help="the canonical NIRCam set instead")
    parser.add_argument("--pulls", action="store_true", help="pooled over seeds, more masks")
    parser.add_argument("--seeds", type=int, default=6, help="how many, with --pulls")
    options = parser.parse_args()
    limit_threads(options.threads)
    instruments = options.instrument or ["nircam", "miri-4qpm", "miri-lyot"]
    with tempfile.TemporaryDirectory() as folder:
        if options.pulls:
            seeds, results = range(options.seed, options.seed + options.seeds), {}
            for kind in options.instrument or KINDS:
                for label, single in (("several integrations", False), ("single", True)):
                    results[f"{kind}, {label}"] = pulls(kind, seeds, Path(folder), single)
                    print(kind, label, results[f"{kind}, {label}"], file=sys.stderr, flush=True)
                finish({"seeds": list(seeds), **SMALL, "pulls": results}, options.out)
            return
        if options.canonical:
            results = measure("nircam", options.seed, Path(folder), CANONICAL)
            finish({"seed": options.seed, **CANONICAL, "errors_px": results}, options.out)
            return
        results = {name: measure(name, options.seed, Path(folder), SIZES) for name in instruments}
        single = {
            name: measure(name, options.seed, Path(folder) / "single", SINGLE)
            for name in instruments
        }
    finish(
        {"seed": options.seed, **SIZES, "errors_px": results, "errors_px_single": single},
        options.out,
    )


if __name__ == "__main__":
    main()
