"""KLIP in zones: its cost against the whole image, and against pyKLIP and VIP.

    python bench/bench_zones.py [--naco FOLDER] [--peers] [--out FILE]

Cost: one call of the klip step (10 integrations at slightly different positions, 36 references of
320 x 320, errors of the references known), on the whole image and in 9 annuli of 4 sections, and
for one and for several numbers of KL modes. With --naco, which names the folder of VLT/NACO beta
Pictoris (61 frames of 101 x 101, their angles): ADI of all frames, each with references in which
a companion has moved by a pixel or more, and with --peers pyKLIP (one process as gpucoron, in
double precision; and as it comes) and VIP on the same frames. Their residuals are compared first.
"""

import resource
from pathlib import Path

from common import arguments, finish, limit_threads, timed

ANNULI, SECTIONS, MODES = 9, 4, 10
IWA, OWA, MOVEMENT = 3, 49, 1.0


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--naco", type=Path)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    limit_threads(options.threads)
    from gpucoron.backend.threads import limited_to

    with limited_to(options.threads):
        results = {"threads": options.threads, "cost": cost(options.repeats)}
        if options.naco:
            results["naco"] = naco(options)
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
        "whole image, 5 numbers of modes": {"truncate": [1, 2, 5, 10, 20]},
        "zones, 5 numbers of modes": {"truncate": [1, 2, 5, 10, 20], "zones": zones},
    }
    times = {}
    for name, own in runs.items():
        klip(stack, references, **own, **options)
        times[name] = timed(lambda own=own: klip(stack, references, **own, **options), repeats)
    times["ratio"] = times["zones"]["median_s"] / times["whole image"]["median_s"]
    times["ratio of several"] = (
        times["zones, 5 numbers of modes"]["median_s"]
        / times["whole image, 5 numbers of modes"]["median_s"]
    )
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
