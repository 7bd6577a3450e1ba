"""Signal to noise of planets by gpucoron, pyKLIP and VIP with the same settings.

    python bench/bench_planets.py [--seeds 0-1] [--instrument NAME] [--modes 10] [--naco FOLDER]
                                  [--out FILE]

Simulated sets (2 rolls of 6 integrations, 9 references of 4) with planets (NIRCam at 0.6", 0.9",
1.4" and 2.2"), reduced with the same number of KL modes. pyKLIP and VIP have the aligned and filled
images of gpucoron's run (`gpucoron.compat.vip.vip_cubes`), so that KLIP, derotation and combination
are compared, and no registration. Signal to noise in apertures of the PSF's width against those at
the same separation, measured in all images by the same function; where other rolls are references
apertures on the planets' negative images, at their angle plus and minus the difference of the
rolls, do not count as noise. `mean` is the mean over planets and seeds of gpucoron over that of the
better peer, and `geometric mean` that of the ratios planet by planet.

With --naco planets of peak 20 are put into the cube of VLT/NACO beta Pictoris at 17.1 px and three
position angles, one after another, and subtracted by ADI; VIP measures all images.
"""

import contextlib
import ctypes
import io
import tempfile
from pathlib import Path

from common import arguments, finish, limit_threads, number_range, timed

#: arcsec, degrees, flux over the star's
PLANETS = {
    "nircam": ((0.6, 40.0, 3e-5), (0.9, 130.0, 1e-5), (1.4, 220.0, 1e-5), (2.2, 310.0, 1e-5)),
    "miri-4qpm": ((1.2, 40.0, 2e-4), (1.8, 130.0, 1e-4), (2.8, 220.0, 1e-4), (4.4, 310.0, 1e-4)),
}
ANNULI, SECTIONS, MOVEMENT = 9, 4, 1.0
IWA, OWA = 3, 150  # px, of the zones of simulated sets
NACO_IWA, NACO_OWA, NACO_FWHM, NACO_RADIUS = 3, 49, 4.6, 17.1  # px
NACO_ANGLES = (90.0, 210.0, 330.0)  # degrees, from +x towards +y
#: name: mode, annuli, sections
SETTINGS = {
    "RDI, whole image": ("rdi", 1, 1),
    "RDI, 9 annuli of 4 sections": ("rdi", ANNULI, SECTIONS),
    "ADI+RDI, whole image": ("adi+rdi", 1, 1),
    "ADI+RDI, 9 annuli": ("adi+rdi", ANNULI, 1),
    "ADI+RDI, 9 annuli of 4 sections": ("adi+rdi", ANNULI, SECTIONS),
}


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=number_range, default="0-1", metavar="FIRST-LAST")
    parser.add_argument("--no-sets", action="store_true", help="NACO alone")
    parser.add_argument("--instrument", choices=tuple(PLANETS), default="nircam")
    parser.add_argument("--modes", type=int, default=10)
    parser.add_argument("--naco", type=Path)
    options = parser.parse_args()
    limit_threads(1)  # of the BLAS: pyKLIP's processes and gpucoron's threads share the processors
    results = {"instrument": options.instrument, "modes": options.modes}
    results["planets"] = PLANETS[options.instrument]
    numbers = [] if options.no_sets else list(options.seeds)
    seeds = [simulated(seed, options) for seed in numbers]
    results |= {f"seed {seed}": found for seed, found in zip(numbers, seeds, strict=True)}
    if seeds:
        results["mean"] = {name: compared([s[name] for s in seeds]) for name in SETTINGS}
    if options.naco:
        results["naco"] = naco(options)
    finish(results, options.out)


def compared(found):
    """Mean signal to noise of each package, and gpucoron's over that of the better peer."""
    import numpy as np

    means = {name: float(np.mean([f[name]["snr"] for f in found])) for name in found[0]}
    best = max(value for name, value in means.items() if name != "gpucoron")
    each = [np.array([f[name]["snr"] for f in found]) for name in found[0] if name != "gpucoron"]
    own = np.array([f["gpucoron"]["snr"] for f in found])
    ratios = (own / np.maximum.reduce(each)).ravel()
    ratio = float(np.exp(np.log(ratios).mean())) if (ratios > 0).all() else float("nan")
    return means | {
        "gpucoron over the better peer": means["gpucoron"] / best,
        "geometric mean": ratio,
    }


# ---- simulated sets


def simulated(seed, options):
    """Signal to noise of the planets of one set, and seconds, for all settings and packages."""
    import numpy as np

    import gpucoron
    from gpucoron.compat.vip import vip_cubes
    from gpucoron.simulate import simulate

    found, cubes, planets = {}, None, PLANETS[options.instrument]
    with tempfile.TemporaryDirectory() as folder:
        made = simulate(
            folder, options.instrument, seed, planets=planets, disk=False, n_integrations=6
        )
        for name, (mode, annuli, sections) in SETTINGS.items():
            zones = {"annuli": annuli, "subsections": sections}
            zones |= {"iwa": IWA, "owa": OWA} if annuli > 1 else {}
            kept = []
            times = timed(
                lambda mode=mode, zones=zones, kept=kept, made=made: kept.append(
                    gpucoron.run(
                        made.asn,
                        psfmask=made.psfmask,
                        klip={"truncate": options.modes, "mode": mode, **zones},
                        keep=("i2d", "crfints", "psfstack"),
                        device="cpu",
                        threads=options.threads,
                        progress=False,
                    )
                ),
                1,
            )
            (result,) = kept
            cubes = cubes or vip_cubes(result)  # from RDI, the first
            angles = np.unique(cubes.angle_list)
            roll = float(angles.max() - angles.min()) if "adi" in mode else 0.0
            places = planets, roll
            snr = in_product(result.product, cubes.fwhm, places)
            found[name] = {"gpucoron": {"snr": snr, **times}}
            for peer in (pyklip_image, vip_image):
                images = []
                times = timed(
                    lambda p=peer, s=(mode, annuli, sections), c=cubes, k=images: k.append(
                        p(c, s, options)
                    ),
                    1,
                )
                if images[0] is not None:
                    label = peer.__name__.removesuffix("_image")
                    found[name][label] = {"snr": in_image(images[0], cubes, places), **times}
    return found


def pyklip_image(cubes, setting, options):
    """Return the combined image of pyKLIP's ``klip_dataset``."""
    import numpy as np
    from pyklip.parallelized import klip_dataset

    mode, annuli, sections = setting
    images, n = np.concatenate([cubes.cube, cubes.cube_ref]), len(cubes.cube)
    middle = (images.shape[2] // 2, images.shape[1] // 2)
    radii = (IWA, OWA) if annuli > 1 else (0, None)
    dataset, library = pyklip_dataset(images, n, middle, cubes.angle_list, *radii)
    return run_pyklip(
        klip_dataset,
        dataset,
        mode=mode.upper(),
        annuli=annuli,
        subsections=sections,
        psf_library=library,
        maxnumbasis=len(images),
        numbasis=[options.modes],
        numthreads=options.threads,
        aligned_center=list(middle),
    )


def pyklip_dataset(images, n, middle, angles, iwa, owa):
    """Return a pyKLIP dataset of the first n images, and a library of all; None without others."""
    import numpy as np
    from pyklip import rdi
    from pyklip.instruments.Instrument import GenericData

    names = np.array([f"image{k}" for k in range(len(images))])
    dataset = GenericData(images[:n], np.tile(middle, (n, 1)), angles, np.ones(n), iwa, names[:n])
    dataset.OWA, dataset.flipx = owa, False
    if len(images) == n:
        return dataset, None
    library = rdi.PSFLibrary(images, middle, names, correlation_matrix=np.eye(len(images)))
    library.prepare_library(dataset)
    return dataset, library


def run_pyklip(function, dataset, **options):
    """Call ``klip_dataset`` (pyKLIP's or gpucoron's); return the mean of what is derotated."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        function(
            dataset,
            outputdir=folder,
            fileprefix="x",
            movement=MOVEMENT,
            dtype=ctypes.c_double,
            verbose=False,
            **options,
        )
    return np.nanmean(dataset.output[0, :, 0], axis=0)


def vip_image(cubes, setting, options):
    """Return VIP's image; None for what it does not do.

    Of the whole image that is `pca` with references (RDI); in zones `pca_annular`, which takes the
    other rolls as well where they have turned enough (ADI+RDI).
    """
    from vip_hci.psfsub import pca, pca_annular

    common = {"cube_ref": cubes.cube_ref, "ncomp": options.modes, "svd_mode": "lapack"}
    common |= {"scaling": "spat-mean", "verbose": False, "collapse": "mean"}
    if setting == ("rdi", 1, 1):
        return pca(cubes.cube, cubes.angle_list, **common)
    mode, annuli, sections = setting
    if mode != "adi+rdi" or sections == 1:
        return None
    return pca_annular(
        cubes.cube,
        cubes.angle_list,
        radius_int=IWA,
        fwhm=cubes.fwhm,
        asize=(OWA - IWA) / annuli,
        n_segments=sections,
        delta_rot=MOVEMENT / cubes.fwhm,
        nproc=options.threads,
        **common,
    )


def with_negatives(planets, roll):
    """Separation and angle of planets, and of what they leave where rolls are subtracted."""
    own = [(separation, angle) for separation, angle, _ in planets]
    turns = (-roll, roll) if roll else ()
    return own, [(separation, angle + turn) for separation, angle in own for turn in turns]


def in_image(image, cubes, places):
    """Signal to noise of the planets in an image with north up and the star in its middle."""
    import numpy as np

    middle = len(image) // 2

    def pixel(separation, angle):
        turned = np.radians(angle)
        away = separation / cubes.pxscale
        return middle - away * np.sin(turned), middle + away * np.cos(turned)

    pixels = [[pixel(*place) for place in part] for part in with_negatives(*places)]
    return at_places(image, *pixels, (middle, middle), cubes.fwhm)


def in_product(product, fwhm, places):
    """Signal to noise of the planets in the combined image of a product."""
    from astropy import units
    from astropy.coordinates import SkyCoord

    star = SkyCoord(*product.star.radec, unit="deg")

    def pixel(separation, angle):
        at = star.directional_offset_by(angle * units.deg, separation * units.arcsec)
        return tuple(map(float, product.record.wcs.sky_to_pixel(at.ra.deg, at.dec.deg)))

    pixels = [[pixel(*place) for place in part] for part in with_negatives(*places)]
    return at_places(product.i2d.data, *pixels, product.star.pixel, fwhm)


def at_places(image, places, negatives, star, fwhm):
    """Signal to noise at each of some places; those and `negatives` are no noise."""
    from gpucoron.analysis.detection import aperture_snr

    return [
        aperture_snr(
            image,
            place,
            star,
            fwhm_px=fwhm,
            others=[*negatives, *(other for other in places if other is not place)],
        )[1]
        for place in places
    ]


# ---- NACO


def naco(options):
    """Signal to noise of planets in the NACO cube, by gpucoron, pyKLIP and VIP."""
    import numpy as np
    from astropy.io import fits
    from vip_hci.fm import cube_inject_companions

    cube, angles, psf = (
        fits.getdata(options.naco / f"naco_betapic_{name}.fits").astype(np.float64)
        for name in ("cube", "pa", "psf")
    )
    psf *= 20.0 / psf.max()
    rows = []
    for theta in NACO_ANGLES:
        injected = cube_inject_companions(
            cube, psf, angles, 1.0, NACO_RADIUS, theta=theta, verbose=False
        )
        turn = np.radians(theta)
        place = 50 + NACO_RADIUS * np.cos(turn), 50 + NACO_RADIUS * np.sin(turn)
        rows.append(naco_planet(injected, angles, place, options))
    return {
        "at": NACO_ANGLES,
        "each": rows,
        "mean": {name: compared([row[name] for row in rows]) for name in rows[0]},
    }


def naco_planet(cube, angles, place, options):
    """Signal to noise of one planet for all settings and packages."""
    import numpy as np
    from pyklip import parallelized
    from vip_hci.metrics import snr
    from vip_hci.preproc import cube_derotate
    from vip_hci.psfsub import pca, pca_annular

    from gpucoron.compat import pyklip as ours
    from gpucoron.ops.klip_zones import klip_zones

    found, n = {}, len(cube)

    def measured(work):
        images = []
        times = timed(lambda: images.append(work()), 1)
        value = snr(np.nan_to_num(images[0]), place, NACO_FWHM, exclude_negative_lobes=False)
        return {"snr": float(value), **times}

    def dataset():
        made, _ = pyklip_dataset(cube, n, (50, 50), angles, NACO_IWA, NACO_OWA)
        return made

    for name, numbers in (("whole image", (1, 1)), ("zones", (ANNULI, SECTIONS))):
        zones = {"mode": "ADI", "annuli": numbers[0], "subsections": numbers[1]}
        zones |= {"numbasis": [options.modes], "maxnumbasis": n, "numthreads": options.threads}
        zones |= {"aligned_center": [50, 50]}
        found[f"{name}, movement {MOVEMENT:g} px"] = {
            "gpucoron": measured(lambda z=zones: run_pyklip(ours.klip_dataset, dataset(), **z)),
            "pyklip": measured(
                lambda z=zones: run_pyklip(parallelized.klip_dataset, dataset(), **z)
            ),
        }
    common = {"ncomp": options.modes, "svd_mode": "lapack", "verbose": False, "collapse": "mean"}

    def every():
        left = klip_zones(np.arange(n), cube, None, options.modes).residuals[0]
        return cube_derotate(left, angles).mean(axis=0)

    found["whole image, all frames"] = {
        "gpucoron": measured(every),
        "vip": measured(lambda: pca(cube, angles, scaling="spat-mean", **common)),
    }
    annular = {"radius_int": NACO_IWA, "asize": (NACO_OWA - NACO_IWA) / ANNULI, "fwhm": NACO_FWHM}
    annular |= {"n_segments": SECTIONS, "delta_rot": MOVEMENT / NACO_FWHM}
    found[f"zones, movement {MOVEMENT:g} px"]["vip"] = measured(
        lambda: pca_annular(cube, angles, scaling="spat-mean", **annular, **common)
    )
    return found


if __name__ == "__main__":
    main()
