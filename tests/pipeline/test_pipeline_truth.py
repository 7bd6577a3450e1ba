"""Whole runs on simulated exposures, against what was put into them."""

import math
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import gpucoron
from gpucoron.analysis.detection import detect, psf_fwhm
from gpucoron.simulate import simulate
from tests.helpers.tiny_sets import one_thread  # noqa: F401

pytestmark = pytest.mark.slow

PLANETS = {
    "nircam": ((1.0, 70.0, 4e-4), (1.6, 200.0, 3e-4), (2.2, 320.0, 2e-4)),
    # well inside the quadrants in both rolls
    "miri-4qpm": ((2.8, 255.0, 3e-3), (3.2, 345.0, 3e-3)),
}


@pytest.fixture(scope="module", params=PLANETS)
def system(request, tmp_path_factory):
    """A star with bright planets, seen in two rolls."""
    folder = tmp_path_factory.mktemp(request.param)
    made = simulate(
        folder / "input",
        request.param,
        6,
        shape=(96, 96),
        n_science=2,
        n_integrations=3,
        n_references=5,
        n_reference_integrations=1,
        n_optical_states=1,
        disk=False,
        planets=PLANETS[request.param],
    )
    result = gpucoron.run(
        made.asn,
        device="cpu",
        psfmask=made.psfmask,
        output_dir=folder / "out",
        klip_truncate=3,
        save=["psfsub", "i2d"],
    )
    return made, result


def offsets(image, to_pixel, made, filter_name, scale):
    """Measure every planet; return how far it is from its truth (px), and its SNR."""
    star, *places = (to_pixel(*sky) for sky in (made.star, *((p.ra, p.dec) for p in made.planets)))
    for place in places:
        seen = detect(
            image,
            place,
            star,
            fwhm_px=psf_fwhm(filter_name) / scale,
            others=[p for p in places if p != place],
        )
        assert seen.converged
        yield seen.x - place[0], seen.y - place[1], seen.snr


def test_planets_are_where_they_are_in_the_combination(system):
    made, result = system
    with fits.open(result.files[-1]) as hdus:
        header = hdus["SCI"].header
        wcs = WCS(header).celestial
        scale = 3600 * math.sqrt(wcs.proj_plane_pixel_area().value)
        found = list(
            offsets(
                hdus["SCI"].data,
                lambda *sky: tuple(float(v) for v in wcs.all_world2pix(*sky, 0)),
                made,
                hdus[0].header["FILTER"],
                scale,
            )
        )
    for dx, dy, snr in found:
        assert math.hypot(dx, dy) < 0.1 and snr > 10
    # the WCS of the result is that of the file
    np.testing.assert_allclose(
        result.product.wcs.sky_to_pixel(*made.star), wcs.all_world2pix(*made.star, 0), atol=1e-6
    )


def test_planets_are_where_they_are_in_each_roll(system):
    from stdatamodels.jwst import datamodels

    made, result = system
    for path in result.files[:2]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with datamodels.open(path) as model:
                image = model.data.mean(axis=0)
                wcs, name = model.meta.wcs, model.meta.instrument.filter
                scale = math.sqrt(model.meta.photometry.pixelarea_arcsecsq)

                def to_pixel(ra, dec, wcs=wcs):
                    return tuple(map(float, wcs.invert(ra, dec, with_bounding_box=False)))

                found = list(offsets(image, to_pixel, made, name, scale))
                root = path.name.partition("_c10")[0]
                for planet, (dx, dy, snr) in zip(made.planets, found, strict=True):
                    assert to_pixel(planet.ra, planet.dec) == pytest.approx(
                        planet.pixels[root], abs=1e-3
                    )
                    assert math.hypot(dx, dy) < 0.1 and snr > 10


def test_the_star_is_where_it_is(system):
    """By the wavefront of dithered references: to 5 mas, with errors that say so."""
    made, result = system
    truth = np.load(made.asn.parent / "truth.npz")
    for path in made.science:
        root = path.name.removesuffix("_calints.fits")
        star = result.product.stars[root]
        assert star.source == "model"
        miss = np.transpose([star.x, star.y]) - 1 - truth[f"star_{root}"]
        errors = np.transpose([star.x_err, star.y_err])
        header = fits.getheader(path, "SCI")
        mas = 1000 * math.sqrt(header["PIXAR_A2"])
        assert np.hypot(*miss.mean(axis=0)) * mas < 5
        assert (errors * mas < 10).all() and (np.abs(miss) < 3.5 * errors).all()
