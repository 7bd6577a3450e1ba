"""Whole runs of simulated systems: planets relative to the star, and where headers have it."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

import gpucoron
from gpucoron.analysis.detection import detect, psf_fwhm
from gpucoron.io.asdf.extension import write_asdf
from gpucoron.io.exposures import read_exposure
from gpucoron.io.fits.headers import quiet
from gpucoron.simulate import simulate
from tests.helpers.tiny_sets import one_thread  # noqa: F401
from tests.pipeline.test_stars import wcs_of

PLANETS = {
    "nircam": ((1.0, 70.0, 4e-4), (1.6, 200.0, 3e-4)),
    "miri-4qpm": ((2.8, 255.0, 3e-3), (3.2, 345.0, 3e-3)),
}
WRONG_PX = (1.6, -1.2)  # by which a GWCS is made wrong


def shift_gwcs(path, x, y):
    """Make the GWCS of a file wrong by some pixels; its headers stay."""
    import gwcs
    from astropy.modeling.models import Shift

    own = wcs_of(read_exposure(path, "science", pixels=False)).gwcs
    first, *others = own.pipeline
    made = gwcs.WCS([gwcs.Step(first.frame, Shift(x) & Shift(y) | first.transform), *others])
    made.bounding_box = own.bounding_box
    content = np.frombuffer(write_asdf({"meta": {"wcs": made}}), np.uint8)[None]
    column = fits.Column("ASDF_METADATA", f"{content.size}B", array=content)
    with quiet(), fits.open(path, memmap=False) as hdus:
        hdus[hdus.index_of("ASDF")] = fits.BinTableHDU.from_columns([column], name="ASDF")
        hdus.writeto(path, overwrite=True)


@pytest.fixture(scope="module", params=PLANETS)
def system(request, tmp_path_factory):
    """Two rolls of a star with planets, the GWCS of the second wrong; where the stars are."""
    folder = tmp_path_factory.mktemp(request.param)
    made = simulate(
        folder / "input",
        request.param,
        5,
        shape=(80, 80),
        n_science=2,
        n_integrations=2,
        n_references=4,
        n_reference_integrations=1,
        n_optical_states=1,
        disk=False,
        planets=PLANETS[request.param],
    )
    shift_gwcs(made.science[1], *WRONG_PX)
    truth = np.load(folder / "input" / "truth.npz")
    roots = [path.name.removesuffix("_calints.fits") for path in made.science]
    stars = {root: truth[f"star_{root}"] + 1 for root in roots}
    first = [float(v) for positions in stars.values() for v in positions[0]]

    def run(**options):
        options = {"psfmask": made.psfmask, "klip_truncate": 3, "device": "cpu"} | options
        return gpucoron.run(made.asn, **options)

    nircam = request.param == "nircam"
    return SimpleNamespace(
        made=made, stars=stars, first=first, run=run, folder=folder, mas=5 if nircam else 10
    )


@pytest.fixture(scope="module")
def centered(system):
    """The run that is told where the star is."""
    return system.run(
        star=system.first, output_dir=system.folder / "out", save=["psfsub", "psfalign", "i2d"]
    )


def read_i2d(result):
    path = next(path for path in result.files if path.name.endswith("_i2d.fits"))
    with quiet(), fits.open(path) as hdus:
        return hdus["SCI"].data, hdus["SCI"].header, hdus[0].header["FILTER"]


def planets(system, image, wcs, star, filter_name):
    """Measure the planets: offset from the truth relative to the star (mas), and SNR."""
    scale = 3600 * math.sqrt(WCS.proj_plane_pixel_area(wcs).value)
    sky = [system.made.star, *((p.ra, p.dec) for p in system.made.planets)]
    pixels = np.array([wcs.all_world2pix(*place, 0) for place in sky])
    places = [tuple(place) for place in pixels[1:] - pixels[0] + star]
    for place in places:
        others = [p for p in places if p != place]
        seen = detect(image, place, star, fwhm_px=psf_fwhm(filter_name) / scale, others=others)
        offset = 1000 * scale * math.hypot(seen.x - place[0], seen.y - place[1])
        yield offset, seen.flux, seen.snr


def test_planets_relative_to_the_star(system, centered):
    """With the stars' true positions a wrong GWCS does no harm, and does much without them."""
    image, header, filter_name = read_i2d(centered)
    wcs, star = WCS(header).celestial, (header["STARCENX"] - 1, header["STARCENY"] - 1)
    found = list(planets(system, image, wcs, star, filter_name))
    assert all(offset < system.mas and snr > 8 for offset, _, snr in found), found
    by_gwcs = system.run(star=system.first, resample_center="wcs")
    product = by_gwcs.product
    place = tuple(v - 1 for v in product.star.position.mean)
    with quiet():
        wcs = WCS(fits.Header({k: v for k, v, _ in product.wcs.to_header_cards()})).celestial
    worse = list(planets(system, product.i2d.data, wcs, place, filter_name))
    assert all(a[1] > 1.05 * b[1] for a, b in zip(found, worse, strict=True)), (found, worse)
    assert product.star.center == "wcs"
    assert any("i2d has the stars of exposures apart" in text for text in by_gwcs.warnings)
    assert any("is combined about the star, which" in text for text in centered.warnings)


def test_headers_result_and_record_say_where_the_star_is(system, centered):
    combined = centered.product.star
    (path,) = (system.folder / "out").glob("*_run.json")
    record = json.loads(path.read_text())["stars"][centered.product.name]
    for root, truth in system.stars.items():
        star = centered.product.stars[root]
        np.testing.assert_allclose(np.transpose([star.x, star.y]), truth, atol=0.01)
        for suffix in ("psfsub", "psfalign"):
            (path,) = (system.folder / "out").glob(f"{root}*_{suffix}.fits")
            header = fits.getheader(path, "SCI")
            found = [header[name] for name in ("STARCENX", "STARCENY", "STARERRX", "STARERRY")]
            assert found == pytest.approx([*star.mean, *star.mean_error], abs=1e-6)
            assert header["STARSRC"] == "given"
        assert record["exposures"][root]["x"] == star.mean[0]
    _, header, _ = read_i2d(centered)
    assert (header["CENTERBY"], record["combined"]["center"]) == ("STAR", "star")
    assert (header["CRVAL1"], header["CRVAL2"]) == combined.radec
    # where the simulation's star is in both rolls by the GWCSs, one of them wrong
    skies = [
        wcs_of(read_exposure(path, "science", pixels=False)).pixel_to_sky(*(mean - 1))
        for path, mean in zip(
            system.made.science, (s.mean(axis=0) for s in system.stars.values()), strict=True
        )
    ]
    middle = SkyCoord(*np.mean(skies, axis=0), unit="deg")
    found = SkyCoord(header["STARRA"], header["STARDEC"], unit="deg")
    assert found.separation(middle).mas < 1
    target = SkyCoord(*system.made.star, unit="deg")
    east, north = (v.to_value("arcsec") for v in target.spherical_offsets_to(found))
    assert (header["STARDRA"], header["STARDDEC"]) == pytest.approx((east, north), abs=1e-4)
    assert header["STARSPRD"] == pytest.approx(
        max(SkyCoord(*s, unit="deg").separation(middle).arcsec for s in skies), rel=0.02
    )


def test_a_grid_that_is_given_stays(system, centered):
    """The star is then where the grid has its position."""
    crval = tuple(v + 2e-5 for v in system.made.star)
    grid = {"resample_crval": crval, "resample_crpix": (45, 40), "resample_output_shape": (90, 85)}
    product = system.run(star=system.first, **grid).product
    assert product.wcs.crval == crval and product.i2d.data.shape == (85, 90)
    assert product.star.radec == pytest.approx(centered.product.star.radec, abs=1e-12)
    place = [float(v) + 1 for v in product.wcs.sky_to_pixel(*product.star.radec)]
    assert product.star.position.mean == pytest.approx(place, abs=1e-5)
