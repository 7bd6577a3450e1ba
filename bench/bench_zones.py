"""KLIP in zones: its cost against the whole image, and against pyKLIP and VIP.

    python bench/bench_zones.py [--naco FOLDER] [--peers] [--asn ASN ... --psfmask FILE]
                                 [--no-cost] [--out FILE]

Cost: one call of the klip step (10 integrations at slightly different positions, 36 references of
320 x 320, errors of the references known), on the whole image and in 9 annuli of 4 sections, and
for one and for several numbers of KL modes. With --naco, which names the folder of VLT/NACO beta
Pictoris (61 frames of 101 x 101, their angles): ADI of all frames, each with references in which
a companion has moved by a pixel or more, and with --peers pyKLIP (one process as gpucoron, in
double precision; and as it comes) and VIP on the same frames. Their residuals are compared first.
Then whole calls of `klip_dataset`, which derotate and write as well, by gpucoron and by pyKLIP with
the same number of threads (the BLAS has one: pyKLIP's processes are fastest so), for one and for
five numbers of KL modes. With --asn whole runs with one (50) and with six (1 to 50) numbers of KL
modes, by other stars and by these and the other roll, on the whole image and in zones, in turns:
the least of processor seconds and of the seconds of steps.
"""

import resource
from pathlib import Path

from common import arguments, finish, limit_threads, process, timed

ANNULI, SECTIONS, MODES = 9, 4, 10
SEVERAL = [1, 2, 5, 10, 20]
SWEEP = [1, 2, 5, 10, 20, 50]  # of whole runs
IWA, OWA, MOVEMENT = 3, 49, 1.0


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--naco", type=Path)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--asn", type=Path, nargs="*", default=[])
    parser.add_argument("--psfmask", type=Path)
    parser.add_argument("--no-cost", action="store_true", help="whole runs and NACO alone")
    options = parser.parse_args()
    limit_threads(1 if options.peers else options.threads)
    from gpucoron.backend.threads import limited_to

    with limited_to(options.threads):
        results = {"threads": options.threads}
        if not options.no_cost:
            results["cost"] = cost(options.repeats)
        if options.naco:
            results["naco"] = naco(options)
    if options.naco and options.peers:
        results["klip_dataset"] = calls(options)
    for asn in options.asn:
        results.setdefault("runs", {})[asn.parent.name] = runs(asn, options)
    finish(results, options.out)


def cost(repeats):
    """Seconds of the klip step on the whole image and in zones."""
    import numpy as np

    from gpucoron.core.stack import IntegrationStack
    from gpucoron.ops.zones import make_zones
    from gpucoron.steps import klip
    from gpucoron.steps.psf_noise import ReferenceErrors

    rng, shape = np.random.default_rng(0), (320, 320)
    modes = rng.normal(size=(30, *shape)).cumsum(axis=1).cumsum(axis=2) / 100
    references = np.tensordot(rng.normal(size=(36, 30)), modes, 1) + rng.normal(size=(36, *shape))
    science = np.tensordot(rng.normal(size=(10, 30)), modes, 1).astype(np.float32)
    stack = IntegrationStack(science, np.ones_like(science), np.zeros(science.shape, np.uint32))
    exposures = np.repeat(np.arange(9), 4)
    errors = ReferenceErrors(np.ones((9, *shape)), exposures, np.ones(shape))
    options = {"offsets": rng.normal(0, 0.02, (10, 2)), "errors": errors}
    zones = make_zones(shape, (160, 158), ANNULI, SECTIONS)
    wide = make_zones(shape, (160, 158), ANNULI, SECTIONS, optimise=10)
    runs = {
        "whole image": {"truncate": 20},
        "zones": {"truncate": 20, "zones": zones},
        "zones, optimised up to 10 px around": {"truncate": 20, "zones": wide},
        "whole image, 5 numbers of modes": {"truncate": SEVERAL},
        "zones, 5 numbers of modes": {"truncate": SEVERAL, "zones": zones},
    }
    every: dict = {name: [] for name in runs}
    for repeat in range(repeats + 1):  # in turns: what else the machine does is in all of them
        for name, own in runs.items():
            found = timed(lambda own=own: klip(stack, references, **own, **options), 1)
            if repeat:
                every[name].append(found)
    times = {
        name: {
            "median_s": float(np.median([f["median_s"] for f in found])),
            "min_s": min(f["min_s"] for f in found),
            "cpu_s": float(np.median([f["cpu_s"] for f in found])),
            "least cpu_s": min(f["cpu_s"] for f in found),
        }
        for name, found in every.items()
    }
    whole, zoned, wide_zones = "whole image", "zones", "zones, optimised up to 10 px around"
    several = ", 5 numbers of modes"
    for key in ("median_s", "least cpu_s"):
        times[f"ratio of {key}"] = {
            "zones": times[zoned][key] / times[whole][key],
            "zones, several": times[zoned + several][key] / times[whole + several][key],
            wide_zones: times[wide_zones][key] / times[whole][key],
            "5 for 1, whole image": times[whole + several][key] / times[whole][key],
            "5 for 1, zones": times[zoned + several][key] / times[zoned][key],
        }
    return times


def naco(options):
    """Seconds of ADI on the NACO cube, and of the peers."""
    import numpy as np
    from astropy.io import fits

    from gpucoron.ops.klip_zones import klip_zones
    from gpucoron.ops.zones import make_zones

    cube, angles = (
        fits.getdata(options.naco / f"naco_betapic_{name}.fits").astype(np.float64)
        for name in ("cube", "pa")
    )
    every = np.arange(len(cube))
    turned = np.radians(np.subtract.outer(angles, angles))
    moves = np.hypot(np.cos(turned) - 1, np.sin(turned))
    results = {}
    for name, numbers in (("whole image", (1, 1)), ("zones", (ANNULI, SECTIONS))):
        zones = make_zones(cube.shape[1:], (50, 50), *numbers, iwa=IWA, owa=OWA)
        allowed = zones.radii[:, None, None] * moves >= MOVEMENT
        found = []

        def ours(zones=zones, allowed=allowed, found=found):
            found[:] = klip_zones(every, cube, zones.labels, MODES, allowed=allowed).residuals

        ours()
        results[name] = {"gpucoron": timed(ours, options.repeats)}
        if options.peers:
            peers = {"pyklip": pyklip(cube, angles, numbers, True)}
            peers["pyklip as it comes"] = pyklip(cube, angles, numbers, False)
            difference = np.nanmax(abs(peers["pyklip"].pop("left") - found[0]))
            results[name]["difference over scatter"] = difference / np.nanstd(found[0])
            peers["pyklip as it comes"].pop("left")
            results[name] |= peers
    if options.peers:
        results |= vip(cube, angles, options.repeats)
        found = klip_zones(every, cube, None, MODES).residuals[0]
        results["vip, difference over scatter"] = np.nanmax(
            abs(results.pop("left") - found)
        ) / np.nanstd(found)
        plain = timed(lambda: klip_zones(every, cube, None, MODES), options.repeats)
        results["gpucoron, every frame a reference"] = plain
    return results


def calls(options):
    """Seconds of whole calls of `klip_dataset` on the NACO cube, and the largest difference."""
    import numpy as np
    from astropy.io import fits
    from bench_planets import pyklip_dataset, run_pyklip
    from pyklip import parallelized

    from gpucoron.compat import pyklip as ours

    cube, angles = (
        fits.getdata(options.naco / f"naco_betapic_{name}.fits").astype(np.float64)
        for name in ("cube", "pa")
    )
    results = {}
    for name, numbers in (("whole image", (1, 1)), ("zones", (ANNULI, SECTIONS))):
        for modes in ([MODES], SEVERAL):
            own = {"mode": "ADI", "annuli": numbers[0], "subsections": numbers[1]}
            own |= {"numbasis": modes, "maxnumbasis": len(cube), "aligned_center": [50, 50]}
            found, rows = {}, {"gpucoron": [], "pyklip": []}
            for _ in range(options.repeats + 1):  # the first compiles, and loads
                for label, function in (("gpucoron", ours), ("pyklip", parallelized)):
                    dataset, _ = pyklip_dataset(cube, len(cube), (50, 50), angles, IWA, OWA)
                    before = resource.getrusage(resource.RUSAGE_CHILDREN)
                    row = timed(
                        lambda d=dataset, f=function, o=own: run_pyklip(
                            f.klip_dataset, d, numthreads=options.threads, **o
                        ),
                        1,
                    )
                    after = resource.getrusage(resource.RUSAGE_CHILDREN)
                    row["cpu_s"] += after.ru_utime + after.ru_stime
                    row["cpu_s"] -= before.ru_utime + before.ru_stime
                    rows[label].append(row)
                    found[label] = dataset.output
            times = {
                label: {
                    key: float(np.median([row[key] for row in own_rows[1:]]))
                    for key in ("median_s", "cpu_s")
                }
                for label, own_rows in rows.items()
            }
            times["ratio of median_s"] = times["pyklip"]["median_s"] / times["gpucoron"]["median_s"]
            times["ratio of cpu_s"] = times["pyklip"]["cpu_s"] / times["gpucoron"]["cpu_s"]
            difference = np.nanmax(abs(found["gpucoron"] - found["pyklip"]))
            times["difference over scatter"] = difference / np.nanstd(found["pyklip"])
            results[f"{name}, K = {', '.join(map(str, modes))}"] = times
    return results


def runs(asn, options):
    """Seconds of whole runs with one and with six numbers of KL modes, in turns."""
    import json
    import tempfile

    import numpy as np
    from bench_canonical import gpucoron

    kinds = {
        f"{mode}, {name}": ["--mode", mode, *zones]
        for mode in ("rdi", "adi+rdi")
        for name, zones in (
            ("whole image", []),
            ("zones", ["--set", f"klip.annuli={ANNULI}", "--set", f"klip.subsections={SECTIONS}"]),
        )
    }
    every: dict = {(name, len(modes)): [] for name in kinds for modes in (SWEEP[-1:], SWEEP)}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        for _ in range(options.repeats):
            for name, words in kinds.items():
                for modes in (SWEEP[-1:], SWEEP):
                    truncate = ["--set", "klip.truncate=" + ",".join(map(str, modes))]
                    command = gpucoron(asn, options.psfmask, output, *words, *truncate)
                    command += ["--no-save", "psfalign", "--threads", str(options.threads)]
                    found = process(command, 1, output=output)
                    (record,) = output.glob("*_run.json")
                    found |= {
                        f"{k} s": v for k, v in json.loads(record.read_text())["timings"].items()
                    }
                    every[name, len(modes)].append(found)
    results = {}
    for name in kinds:
        one, several = (
            {key: float(np.min([f[key] for f in every[name, n]])) for key in every[name, n][0]}
            for n in (1, len(SWEEP))
        )
        keys = ("cpu_s", "klip s", "resample s")
        ratios = {f"ratio of {key}": several[key] / one[key] for key in keys}
        results[name] = {"one": one, "six": several} | ratios
    return results


def pyklip(cube, angles, numbers, double):
    """Time pyKLIP on the cube; `double` in float64 on aligned frames, in one process."""
    import ctypes

    import numpy as np
    from pyklip.parallelized import klip_parallelized

    n, left = len(cube), []
    options = {"dtype": ctypes.c_double, "numthreads": 1} if double else {}
    if double:
        options["restored_aligned"] = cube[None].copy()

    def run():
        left[:] = klip_parallelized(
            *(cube.copy(), np.full((n, 2), 50.0), angles, np.ones(n), np.arange(n), IWA),
            OWA=OWA,
            mode="ADI",
            annuli=numbers[0],
            subsections=numbers[1],
            movement=MOVEMENT,
            numbasis=[MODES],
            maxnumbasis=n,
            aligned_center=[50.0, 50.0],
            verbose=False,
            **options,
        )[0]

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = timed(run, 1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    times["cpu_s"] += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return times | {"left": left[0]}


def vip(cube, angles, repeats):
    """Time VIP's PCA of the whole image, with every frame as a reference, and annular."""
    from vip_hci.psfsub import pca, pca_annular

    left = []

    def full():
        found = pca(
            cube,
            angles,
            ncomp=MODES,
            scaling="spat-mean",
            svd_mode="lapack",
            full_output=True,
            verbose=False,
        )
        left[:] = [found[3]]

    def annular():
        pca_annular(
            cube,
            angles,
            ncomp=MODES,
            fwhm=4,
            asize=5,
            n_segments=SECTIONS,
            radius_int=IWA,
            delta_rot=0.25,
            svd_mode="lapack",
            verbose=False,
        )

    return {"vip pca": timed(full, 1), "vip pca_annular": timed(annular, 1), "left": left[0]}


if __name__ == "__main__":
    main()
