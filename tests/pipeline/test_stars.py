"""The star's position through a run, and exposures combined about it, against simulated truth."""

import dataclasses
import re

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord, angular_separation
from astropy.io import fits

import gpucoron
from gpucoron.core.parameters import AlignRefs, Parameters
from gpucoron.core.star import StarPositions
from gpucoron.io.exposures import read_exposure
from gpucoron.io.star import expected_star
from gpucoron.io.wcs import output_wcs, read_wcs
from gpucoron.pipeline.centering import Centering, choose_center
from gpucoron.pipeline.result import ProductResult
from gpucoron.pipeline.stars import Stars, relative_positions
from gpucoron.steps.align_refs import FITS_DTYPE
from tests.helpers.tiny_sets import one_thread, only_error, simulated  # noqa: F401


@pytest.fixture(scope="module")
def pair():
    return [read_exposure(path, "science", pixels=False) for path in simulated().made.science]


def wcs_of(exposure):
    return read_wcs(exposure.asdf_bytes, exposure.path.name)


# ---- the position in an exposure


@pytest.mark.parametrize("seed", range(3))
def test_relative_positions(seed):
    """Shifts between images at known places, some of them wrong and marked as such."""
    random = np.random.default_rng(seed)
    references, first, second = (random.normal(0, 1.5, (n, 2)) for n in (5, 2, 3))

    def table(integrations):
        fits_ = np.zeros((len(integrations), 5), FITS_DTYPE)
        shifts = (
            references - integrations[:, None] + random.normal(0, 1e-3, (len(integrations), 5, 2))
        )
        fits_["x"], fits_["y"] = np.moveaxis(shifts, -1, 0)
        fits_["x_err"] = fits_["y_err"] = 1e-3
        fits_["ref_plane"] = np.arange(1, 6)
        fits_["x"][0, 3], fits_["status"][0, 3] = 7.0, 3
        return fits_

    own, other = table(first), table(second)
    other["status"][1] = 2
    other["x"][1] = np.nan
    x, y, x_err, y_err = relative_positions(own.ravel(), other.ravel())
    np.testing.assert_allclose(np.transpose([x, y])[[0, 2]], (second - first[0])[[0, 2]], atol=5e-3)
    assert np.isnan([x[1], y_err[1]]).all() and np.all(x_err[[0, 2]] >= 1e-3)
    same = relative_positions(own.ravel(), own.ravel())
    assert np.all(same[:, 0] == 0) and np.allclose(same[:2, 1], first[1] - first[0], atol=5e-3)
    own["status"] = 1
    assert np.isnan(relative_positions(own.ravel(), other.ravel())).all()


def test_where_the_headers_have_the_star(pair):
    exposure = pair[0]
    header = exposure.headers["SCI"].copy()
    crpix, ref = (header["CRPIX1"], header["CRPIX2"]), (exposure.meta.ra_ref, exposure.meta.dec_ref)

    def found(**keywords):
        changed = header.copy()
        for keyword, value in keywords.items():
            changed[keyword] = value
        return expected_star(dataclasses.replace(exposure, headers={"SCI": changed}))

    assert found() == (crpix, "CRPIX1, CRPIX2")
    assert found(STARCENX=25.0, STARCENY=15.5) == ((25.0, 15.5), "STARCENX, STARCENY")
    assert found(STARCENX=25.0) == (crpix, "CRPIX1, CRPIX2")
    (x, y), where = found(CRPIX1="none")
    assert where == "RA_REF, DEC_REF"
    assert wcs_of(exposure).pixel_to_sky(x - 1, y - 1) == pytest.approx(ref, abs=1e-9)


# ---- the combination


@pytest.mark.parametrize(
    ("wanted", "sources", "error", "center", "said"),
    [
        ("star", ("given", "model"), 0.05, "star", ""),
        ("wcs", ("given", "model"), 0.05, "wcs", ""),
        ("star", ("wcs", "wcs"), np.nan, "wcs", ""),
        ("star", ("model", "wcs"), 0.05, "wcs", "is not measured"),
        ("star", ("model", "model"), 0.3, "wcs", "is 0.3 px (expected: below 0.2 px)"),
        ("star", ("model", "model"), np.nan, "wcs", "is not known (expected: below 0.2 px)"),
    ],
)
def test_how_exposures_are_combined(wanted, sources, error, center, said, pair, caplog):
    stars = [StarPositions.constant((20.0, 18.0), 2, error, source) for source in sources]
    assert choose_center(wanted, pair, stars) == center
    assert said in caplog.text if said else not caplog.text


@pytest.mark.parametrize("center", ["star", "wcs"])
@pytest.mark.parametrize(("by", "error", "said"), [(0.2, 0.0, 0), (0.8, 0.0, 1), (0.8, 0.3, 0)])
def test_stars_that_gwcss_have_apart(center, by, error, said, pair, caplog):
    """Where the second star is `by` pixels from where the GWCSs have the first one's position."""
    wcss = [wcs_of(exposure) for exposure in pair]
    first = np.array(expected_star(pair[0])[0])
    x, y = wcss[1].sky_to_pixel(*wcss[0].pixel_to_sky(*(first - 1)))
    places = [(*first, 0.0), (float(x) + 1 + by, float(y) + 1, error)]
    stars = [StarPositions.constant(place[:2], 2, 0.01, "wcs") for place in places]
    centering = Centering(pair, stars, wcss, center)
    centering.warn_of_differences(places)
    found = re.findall(rf" (\S+) px \({pair[1].path.name}\)", caplog.text)
    assert [float(text) for text in found] == [pytest.approx(by, abs=0.02)] * said
    skies = [
        w.pixel_to_sky(p[0] - 1, p[1] - 1) for w, p in zip(centering.wcss, places, strict=True)
    ]
    apart = np.rad2deg(float(angular_separation(*np.deg2rad([*skies[0], *skies[1]])))) * 3600
    assert apart == pytest.approx(0.0 if center == "star" else 0.063 * by, abs=2e-3)


def test_the_mean_position_is_weighted_by_time(pair):
    exposures = [
        dataclasses.replace(e, meta=dataclasses.replace(e.meta, measurement_time=seconds))
        for e, seconds in zip(pair, (300.0, 100.0), strict=True)
    ]
    wcss, place = [wcs_of(exposure) for exposure in pair], expected_star(pair[0])[0]
    stars = [
        StarPositions.constant(p, 2, 0.01, "model") for p in (place, (place[0] + 2, place[1] - 1))
    ]
    centering = Centering(exposures, stars, wcss, "star")
    skies = [w.pixel_to_sky(s.x[0] - 1, s.y[0] - 1) for w, s in zip(wcss, stars, strict=True)]
    assert centering.radec == pytest.approx(np.average(skies, axis=0, weights=(3, 1)), abs=1e-9)
    assert centering.grid({"crval": None, "crpix": (3.0, 4.0)}) == {
        "crval": centering.radec,
        "crpix": (3.0, 4.0),
    }
    meta = dataclasses.replace(pair[0].meta, measurement_time=None, exposure_time=None)
    untimed = dataclasses.replace(pair[0], meta=meta)
    centering = Centering([untimed, exposures[1]], stars, wcss, "wcs")
    assert centering.radec == pytest.approx(np.mean(skies, axis=0), abs=1e-9)
    assert centering.grid({"crval": None}) == {"crval": None}


@pytest.mark.parametrize("seed", [0, 1])
def test_star_mask_and_errors_in_the_combined_image(seed, pair):
    """Errors against the scatter of positions that have these errors."""
    random = np.random.default_rng(seed)
    mean, mask, error = random.uniform(10, 25, 2), random.uniform(10, 25, 2), np.array([0.3, 0.05])
    wcs = wcs_of(pair[0])
    output = output_wcs([wcs], [pair[0].meta], [pair[0].shape], pixel_scale_ratio=0.7)
    covariance = np.diag(error**2) + 0.6 * error.prod() * (1 - np.eye(2))
    star = StarPositions(
        *(mean[:1], mean[1:], error[:1], error[1:], "model", tuple(mask)),
        xy_cov=covariance[:1, 1],
    )
    found = Centering(pair[:1], [star], [wcs], "wcs").in_image(output)
    places = np.vstack([mean, mask, random.multivariate_normal(mean, covariance, 4000)]) - 1
    there = np.transpose(output.sky_to_pixel(*wcs.pixel_to_sky(*places.T, everywhere=True))) + 1
    assert found.position.mean == pytest.approx(there[0], abs=2e-6)
    assert found.position.mask == pytest.approx(there[1], abs=2e-6)
    assert found.position.mean_error == pytest.approx(there[2:].std(axis=0), rel=0.06)
    scatter = np.cov(there[2:].T)
    within = 0.06 * np.sqrt(scatter[0, 0] * scatter[1, 1])
    assert found.position.mean_xy_cov == pytest.approx(scatter[0, 1], abs=within)
    assert (found.position.source, found.center) == ("model", "wcs")


@pytest.mark.parametrize("x", [np.nan, 1e9, 1e300])
def test_a_star_that_is_nowhere(x, pair):
    """Headers may have CRPIX anywhere; what comes of it is nothing, or can be written."""
    wcss = [wcs_of(exposure) for exposure in pair]
    output = output_wcs(wcss, [e.meta for e in pair], [e.shape for e in pair])
    stars = [StarPositions.constant((place, 9.0), 2, np.nan, "wcs") for place in (20.0, x)]
    centering = Centering(pair, stars, wcss, "wcs")
    centering.warn_of_differences([(*star.mean, 0.0) for star in stars])
    found = centering.in_image(output)
    assert centering.wcss == wcss
    assert found is None or np.isfinite([*found.position.mean, *found.radec, found.spread]).all()


def test_a_star_away_from_the_target(pair, caplog):
    """Only one that is measured: CRPIX may be off the target, which target acquisition corrects."""
    wcss, place = [wcs_of(exposure) for exposure in pair], expected_star(pair[0])[0]
    for source in ("wcs", "model"):
        caplog.clear()
        stars = [StarPositions.constant((place[0] + 5, place[1]), 2, 0.01, source)] * 2
        centering = Centering(pair, stars, wcss, "wcs")
        centering.warn_of_differences([(*star.mean, 0.01) for star in stars])
        assert ("from TARG_RA, TARG_DEC" in caplog.text) == (source == "model")


@pytest.mark.parametrize("end", [(150.3, -30.2), (150.2, 89.9999), (0.0001, 10.0), (-0.1, 0.0)])
def test_a_wcs_that_is_turned(end, pair):
    """The position comes to the other one, distances stay, and what is around keeps its side."""
    wcs = wcs_of(pair[0])
    start = tuple(float(v) for v in wcs.pixel_to_sky(12.0, 20.0))
    turned = wcs.turned(start, end)
    x, y = np.array([12.0, 30.0, 3.0]), np.array([20.0, 5.0, 33.0])
    before, after = (SkyCoord(*w.pixel_to_sky(x, y), unit="deg") for w in (wcs, turned))
    assert after[0].separation(SkyCoord(*end, unit="deg")).mas < 1e-3
    for a, b in ((0, 1), (0, 2), (1, 2)):
        apart = before[a].separation(before[b]) - after[a].separation(after[b])
        assert abs(apart.to_value(units.mas)) < 1e-3
    np.testing.assert_allclose(turned.sky_to_pixel(after.ra.deg, after.dec.deg), (x, y), atol=1e-6)
    # along the great circle from one to the other directions are the same
    origins = SkyCoord(*start, unit="deg"), SkyCoord(*end, unit="deg")
    along = (
        origins[0].position_angle(origins[1]),
        180 * units.deg + origins[1].position_angle(origins[0]),
    )
    angles = [
        (o.position_angle(s[1]) - a).wrap_at(180 * units.deg)
        for o, s, a in zip(origins, (before, after), along, strict=True)
    ]
    assert abs((angles[0] - angles[1]).wrap_at(180 * units.deg).arcsec) < 1
    assert turned.key != wcs.key and wcs.turned(start, start).pixel_to_sky(
        1.0, 2.0
    ) == pytest.approx(wcs.pixel_to_sky(1.0, 2.0), abs=1e-12)


# ---- what is asked for


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--star", "500,3"], "500, 3, which is outside of jw09100001001"),
        (["--star", "0,3"], "0, 3, which is outside of jw09100001001"),
        (["--star", "1,2,3,4,5,6"], "has 3 positions, expected one, or one for each of 2 science"),
        (["--star", "12"], "expected x and y in pixels counted from 1"),
        (["--set", "resample.center=mask"], "expected 'star' or 'wcs'"),
    ],
)
def test_what_cannot_be_is_an_error_before_any_work(words, expected, tiny, capsys):
    assert tiny.command(*words) == 2
    assert expected in only_error(capsys.readouterr().err)
    assert not tiny.out.exists() or tiny.files() == []


def test_a_run_is_resumed_where_only_psfsub_was_saved(tiny):
    """The second exposure's position needs the fits of the first, which psfalign alone keeps."""
    words = "--star 20,18 --save psfsub,i2d --set klip.truncate=1 --no-report -q".split()
    assert tiny.command(*words) == 0
    (path,) = tiny.out.glob("*_i2d.fits")
    whole, record = fits.getdata(path, "SCI"), tiny.record()
    path.unlink()
    assert tiny.command(*words, "--resume") == 0
    np.testing.assert_array_equal(fits.getdata(path, "SCI"), whole)
    assert tiny.record()["stars"] == record["stars"]


def test_a_star_that_is_given_where_nothing_is_aligned(tiny):
    result = gpucoron.run(tiny.asn, star=(20, 18), klip_skip=True, device="cpu")
    for star in result.product.stars.values():
        assert set(star.x) == {20.0} and set(star.y) == {18.0} and star.source == "given"
    assert sum("nothing is aligned" in text for text in result.warnings) == 2


@pytest.mark.parametrize("number", [1, 2])
def test_a_star_that_is_given_where_no_alignment_is_good(number, pair, caplog):
    """An exposure that has a position of its own keeps it; another one has it from its headers."""
    fits_ = np.zeros(4, FITS_DTYPE)
    fits_["ref_plane"], fits_["status"] = np.arange(1, 5), 3
    result = ProductResult("x", fits={exposure.root: fits_ for exposure in pair})
    given = AlignRefs(star=[20, 18, 21, 19][: 2 * number])
    stars = Stars(pair, Parameters(align_refs=given), result)
    wcss = [wcs_of(exposure) for exposure in pair]
    centering = stars.center(wcss)
    assert result.stars[pair[0].root].mean == (20.0, 18.0)
    other = (21.0, 19.0) if number == 2 else expected_star(pair[1])[0]
    assert result.stars[pair[1].root].mean == pytest.approx(other)
    assert centering.center == ("star" if number == 2 else "wcs")
    assert (centering.wcss == wcss) == (number == 1)
    assert (
        f"{pair[1].path.name}: "
        + ("no alignment is good" if number == 2 else "has no good alignment in common")
        in caplog.text
    )


def test_a_psfmask_that_is_moved_onto_the_star(tiny):
    with fits.open(tiny.mask) as hdus:
        mask = hdus["SCI"].data.copy()
        hdus["SCI"].data = np.roll(mask, (3, -4), (0, 1))
        hdus.writeto(tiny.mask.with_name("off.fits"))
    options = {"psfmask": tiny.mask.with_name("off.fits"), "klip_truncate": 1, "device": "cpu"}
    as_it_is = gpucoron.run(tiny.asn, **options)
    (text,) = [text for text in as_it_is.warnings if "hole of the psfmask" in text]
    assert "4.9 px from the star" in text and "(CRPIX1, CRPIX2)" in text
    moved = gpucoron.run(tiny.asn, psfmask_center="star", **options)
    assert "moved by x, y = 4, -3 px onto the star" in moved.product.psfmask
    assert not any("hole of the psfmask" in text for text in moved.warnings)
    found = moved.product.record.mask
    np.testing.assert_array_equal(found[3:-4, 5:-5], mask[3:-4, 5:-5])
