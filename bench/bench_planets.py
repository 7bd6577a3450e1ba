"""Signal to noise of planets: KLIP on the whole image, and in zones.

    python bench/bench_planets.py [--seeds 2] [--modes 10] [--naco FOLDER] [--out FILE]

NIRCam sets of the simulator (320 x 320, 2 rolls of 6 integrations, 9 references of 4) with planets
at 0.6", 0.9", 1.4" and 2.2", reduced with the same number of KL modes; signal to noise in apertures
of the PSF's width against those at the same separation. With --naco a planet of peak 20 is put into
the cube of VLT/NACO beta Pictoris at 17.1 px and subtracted by ADI, beside VIP's PCA of the whole
image; VIP derotates, combines and measures both.
"""

import tempfile
from pathlib import Path

from common import arguments, finish, limit_threads

PLANETS = ((0.6, 40.0, 3e-5), (0.9, 130.0, 1e-5), (1.4, 220.0, 1e-5), (2.2, 310.0, 1e-5))
FWHM = 2.3  # px
SETTINGS = {
    "whole image": {},
    "9 annuli": {"annuli": 9},
    "9 annuli of 4 sections": {"annuli": 9, "subsections": 4},
    "the same, optimised up to 6 px around": {"annuli": 9, "subsections": 4, "optimise": 6},
}


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--modes", type=int, default=10)
    parser.add_argument("--naco", type=Path)
    options = parser.parse_args()
    limit_threads(options.threads)
    results = {"modes": options.modes, "planets": PLANETS}
    for seed in range(options.seeds):
        results[f"seed {seed}"] = simulated(seed, options.modes, options.threads)
    if options.naco:
        results["naco"] = naco(options.naco, options.modes)
    finish(results, options.out)


def simulated(seed, modes, threads):
    """Signal to noise of the planets of one set, for all settings."""
    import gpucoron
    from gpucoron.simulate import simulate

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        made = simulate(folder, seed=seed, planets=PLANETS, disk=False, n_integrations=6)
        for name, zones in SETTINGS.items():
            product = gpucoron.run(
                made.asn,
                psfmask=made.psfmask,
                klip={"truncate": modes, **zones},
                keep=("i2d",),
                device="cpu",
                threads=threads,
                progress=False,
            ).product
            found[name] = in_image(product)
    return found


def in_image(product):
    """Signal to noise of the planets in the combined image of a product."""
    from astropy import units
    from astropy.coordinates import SkyCoord

    from gpucoron.analysis.detection import aperture_snr

    star = SkyCoord(*product.star.radec, unit="deg")
    places = []
    for separation, angle, _ in PLANETS:
        at = star.directional_offset_by(angle * units.deg, separation * units.arcsec)
        places.append(tuple(map(float, product.record.wcs.sky_to_pixel(at.ra.deg, at.dec.deg))))
    return [
        aperture_snr(
            product.i2d.data,
            place,
            product.star.pixel,
            fwhm_px=FWHM,
            others=[other for other in places if other is not place],
        )[1]
        for place in places
    ]


def naco(folder, modes):
    """Signal to noise of a planet in the NACO cube, by gpucoron and by VIP."""
    import numpy as np
    from astropy.io import fits
    from vip_hci.fm import cube_inject_companions
    from vip_hci.metrics import snr
    from vip_hci.preproc import cube_derotate
    from vip_hci.psfsub import pca

    from gpucoron.ops.klip_zones import klip_zones
    from gpucoron.ops.zones import make_zones

    cube, angles, psf = (
        fits.getdata(folder / f"naco_betapic_{name}.fits").astype(np.float64)
        for name in ("cube", "pa", "psf")
    )
    psf *= 20.0 / psf.max()
    quiet = {"verbose": False}
    cube = cube_inject_companions(cube, psf, angles, 1.0, 17.1, theta=90.0, **quiet)
    place = (50.0, 67.1)
    turned = np.radians(np.subtract.outer(angles, angles))
    moves = np.hypot(np.cos(turned) - 1, np.sin(turned))

    def measure(residuals):
        image = np.nanmedian(cube_derotate(np.nan_to_num(residuals), angles), axis=0)
        return float(snr(image, place, 4.6, exclude_negative_lobes=False))

    every, found = np.arange(len(cube)), {}
    for name, numbers, movement in (
        ("whole image, all frames", (1, 1), 0.0),
        ("whole image, movement 1 px", (1, 1), 1.0),
        ("9 annuli of 4 sections, movement 1 px", (9, 4), 1.0),
    ):
        zones = make_zones(cube.shape[1:], (50, 50), *numbers, iwa=3, owa=49)
        allowed = zones.radii[:, None, None] * moves >= movement
        own = {} if movement == 0 else {"allowed": allowed}
        found[name] = measure(klip_zones(every, cube, zones.labels, modes, **own).residuals[0])
    options = {"scaling": "spat-mean", "svd_mode": "lapack", "full_output": True, **quiet}
    found["VIP's pca"] = measure(pca(cube, angles, ncomp=modes, **options)[3])
    return found


if __name__ == "__main__":
    main()
