"""The matched filter and the search, against direct sums and planted sources."""

import math

import numpy as np
import pytest
from scipy import stats

import gpucoron
from gpucoron.analysis.candidates import Field, find_candidates, measure
from gpucoron.analysis.detection import significance
from gpucoron.analysis.matched_filter import MatchedFilter, patch_half, standardise
from gpucoron.errors import InputError
from gpucoron.simulate import DEMO, simulate
from tests.helpers.sources import GaussianPatches

FWHM = 2.6
STAR = (58.3, 61.8)
SHAPE = (120, 117)
MODEL = GaussianPatches(FWHM)


def field(sources=(), seed=1, model=MODEL, sigma=1.0):
    image = np.random.default_rng(seed).normal(0, 1.0, SHAPE) * sigma
    image += sum(model.plane(SHAPE, *source) for source in sources)
    image.flags.writeable = False
    return Field(image, np.broadcast_to(np.asarray(sigma, float), SHAPE), STAR, FWHM)


def test_flux_is_that_of_direct_sums():
    image, weight = field([(80, 62, 9.0)]).image, np.ones(SHAPE)
    weight[60:64, 81:83] = [0, 0.3]
    filtered = MatchedFilter(MODEL, SHAPE, STAR, FWHM)
    found = filtered(image, weight)
    half = patch_half(FWHM)
    for x, y in ((80, 62), (40, 30), (2, 100)):
        yy, xx = np.mgrid[y - half : y + half + 1, x - half : x + half + 1]
        inside = (yy >= 0) & (yy < SHAPE[0]) & (xx >= 0) & (xx < SHAPE[1])
        yy, xx = yy[inside], xx[inside]
        m = np.exp(-4 * np.log(2) * ((xx - x) ** 2 + (yy - y) ** 2) / FWHM**2)
        w = weight[yy, xx]
        # weighted least squares of the image and a constant
        scaled = np.sqrt(w)[:, None] * np.stack([m, np.ones_like(m)], axis=1)
        best = np.linalg.lstsq(scaled, np.sqrt(w) * image[yy, xx], rcond=None)[0]
        error = math.sqrt(np.linalg.inv(scaled.T @ scaled)[0, 0])
        assert found.formal[y, x] == pytest.approx(best[0] / error, rel=1e-9)


def test_the_others_of_an_annulus_are_told_by_direct_sums():
    values = field(seed=3).image
    snr, mean, scatter, n = standardise(values, STAR, FWHM, [(80.0, 62.0)])
    yy, xx = np.indices(SHAPE)
    radius, angle = np.hypot(xx - STAR[0], yy - STAR[1]), np.arctan2(yy - STAR[1], xx - STAR[0])
    for x, y in ((70, 62), (58, 30)):
        r = round(math.hypot(x - STAR[0], y - STAR[1]))
        apart = np.abs(np.angle(np.exp(1j * (angle - angle[y, x]))))
        use = (np.abs(radius - r) <= 0.6 * FWHM) & (apart > 1.5 * FWHM / r)
        use &= np.hypot(xx - 80, yy - 62) >= 1.5 * FWHM
        places = use.sum() / (1.2 * FWHM**2)
        spread = values[use].std() * math.sqrt(places / (places - 1) * (1 + 1 / places))
        assert (n[y, x], mean[y, x], scatter[y, x]) == pytest.approx(
            (places, values[use].mean(), spread), rel=1e-9
        )
        assert snr[y, x] == pytest.approx((values[y, x] - mean[y, x]) / spread)


@pytest.mark.parametrize("fwhm", [2.0, 2.6, 5.0])
def test_noise_alone_is_gaussian_in_the_map(fwhm):
    """At all separations, whatever the errors are; nothing is found."""
    yy, xx = np.indices(SHAPE)
    sigma = np.where(xx < 60, 1.0, 3.0)  # one roll less covers the right half
    sigmas = []
    for seed in range(6):
        image = field(seed=seed, sigma=sigma).image
        filtered = MatchedFilter(GaussianPatches(fwhm), SHAPE, STAR, fwhm)
        found = filtered(image, 1 / sigma**2)
        assert np.nanmax(found.significance) < 5
        sigmas.append(found.significance)
    sigmas = np.array(sigmas)
    for inner, outer in ((2, 6), (6, 20)):
        ring = np.hypot(xx - STAR[0], yy - STAR[1]) / fwhm
        values = sigmas[:, (ring >= inner) & (ring < outer)]
        values = values[np.isfinite(values)]
        assert abs(values.mean()) < 0.05 and 0.9 < values.std() < 1.05
        # places are counted one FWHM apart, and the filter resolves more: errors on the safe side,
        # worst seen 0.33 (FWHM 5, close to the star)
        assert 0.25 < (values > 2.5).mean() / stats.norm.sf(2.5) < 1.5


def test_planted_sources_are_found_with_honest_errors():
    planted = [(75.3, 60.1, 300.0), (50.2, 40.7, 15.0), (20.4, 95.6, 10.0), (78.1, 63.2, 20.0)]
    pulls = []
    for seed in range(6):
        found = find_candidates(field(planted, seed), MODEL).candidates
        assert len(found) == len(planted) and not any(c.caveat for c in found)
        for x, y, flux in planted:
            near = min(found, key=lambda c: math.hypot(c.x - x, c.y - y))
            error = np.array([near.x - x, near.y - y, near.flux - flux])
            pulls.append(error / np.sqrt(np.diag(near.covariance)))
            assert near.significance > 5 and near.snr == pytest.approx(near.flux / near.flux_err)
    pulls = np.array(pulls)
    assert (np.abs(pulls.mean(axis=0)) < 0.6).all()
    assert (0.75 < pulls.std(axis=0)).all() and (pulls.std(axis=0) < 1.3).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_side_lobes_of_a_bright_source_are_no_candidates(seed):
    model = GaussianPatches(FWHM, lobes=0.03, radius=6.0)
    planted = [(80.2, 60.3, 1000.0), (40.4, 80.1, 15.0)]  # lobes of 30 sigma
    found = find_candidates(field(planted, seed, model), model).candidates
    assert len(found) == 2
    # a model whose lobes are a fifth too faint leaves remnants, which are doubtful
    wrong = GaussianPatches(FWHM, lobes=0.024, radius=6.0)
    again = find_candidates(field(planted, seed, model), wrong).candidates
    assert [round(c.flux) > 10 for c in again if not c.caveat] == [True, True]


def test_a_source_that_is_too_faint_is_measured_where_it_is_known():
    seen = [measure(field([(80.3, 60.2, 2.0)], seed), MODEL, (80, 60)) for seed in range(8)]
    assert np.mean([c.flux for c in seen]) == pytest.approx(2.0, abs=0.6)
    assert all(c.significance < 5 for c in seen)


def test_a_hot_pixel_is_unlike_a_point_source():
    image = field().image.copy()
    image[40, 80] = 60
    (found,) = find_candidates(field()._replace(image=image), MODEL).candidates
    assert found.caveat == "unlike a point source"
    assert (round(found.x), round(found.y)) == (80, 40)


@pytest.mark.parametrize("seed", [0, 2])
def test_pieces_of_a_disk_have_a_caveat_and_planets_beside_it_have_none(seed, tmp_path):
    made = simulate(tmp_path, **DEMO | {"seed": seed})
    result = gpucoron.run(made.asn, psfmask=made.psfmask, klip_truncate=5, keep=("i2d",))
    table = result.candidates()
    sure = table["caveat"] == ""
    found = [(row["dra"].value, row["ddec"].value) for row in table[sure]]
    angles = np.radians([p.angle for p in made.planets])
    truth = np.array([p.separation for p in made.planets]) * [np.sin(angles), np.cos(angles)]
    np.testing.assert_allclose(sorted(found), sorted(map(tuple, truth.T)), atol=0.05)
    if seed == 2:  # where noise makes the disk knotty
        assert (table["caveat"][~sure] == "in extended light, such as a disk").any()


def test_significance_has_the_false_alarm_rate_of_students_t():
    for snr, n in ((3.0, 4), (5.0, 10), (2.0, 200), (-3.0, 7)):
        expected = stats.norm.isf(stats.t.sf(snr, n - 1))
        assert float(significance(snr, n)) == pytest.approx(expected, rel=1e-6)
    assert 36.9 < significance(1e9, 1000) <= 37 and np.isnan(significance(5.0, 1))


VALUES = [(SHAPE, value) for value in (np.nan, 0.0, np.inf, 1e-310)]


@pytest.mark.parametrize(("shape", "value"), [*VALUES, ((1, 1), 0.0), ((3, 40), 0.0)])
def test_images_without_anything(shape, value):
    blank = Field(np.full(shape, value), np.ones(shape), STAR, FWHM)
    with np.errstate(all="ignore"):
        assert find_candidates(blank, MODEL).candidates == []


def test_nan_and_a_star_outside():
    image = field([(75, 62, 40.0)]).image.copy()
    image[:, :20] = np.nan
    image[75:80, 60:64] = np.nan
    assert len(find_candidates(field()._replace(image=image), MODEL).candidates) == 1
    find_candidates(field()._replace(star=(-50.0, 400.0)), MODEL)


def test_wrong_arguments():
    with pytest.raises(InputError, match="fwhm_px is nan, expected"):
        MatchedFilter(MODEL, SHAPE, STAR, math.nan)
    with pytest.raises(InputError, match=r"expected \(120, 117\)"):
        MatchedFilter(MODEL, SHAPE, STAR, FWHM)(np.zeros((3, 3)), np.ones((3, 3)))


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_clump_on_a_ridge_has_a_caveat_and_close_pairs_have_none(seed):
    """A ridge like an edge-on disk, brightest at a clump that exceeds its scatter."""
    yy, xx = np.indices(SHAPE)
    along, across = xx - STAR[0], yy - STAR[1]
    ridge = 9 * np.exp(-4 * np.log(2) * (across / FWHM) ** 2) * (np.abs(along) > 12)
    ridge *= np.exp(-((np.abs(along) - 25) ** 2) / 2 / 6**2)
    sources = [(83, 61.8, 12.0), (58, 20, 15.0), (30, 95, 14.0), (36.2, 95, 13.0)]
    plain = field(sources, seed=seed)
    found = find_candidates(plain._replace(image=plain.image + ridge), MODEL).candidates
    caveats = {(round(c.x), round(c.y)): c.caveat for c in found}
    near = [caveat for (x, y), caveat in caveats.items() if abs(y - STAR[1]) < 4]
    # at most the brightest, of 12 on a ridge of 9, stands out of it
    assert len(near) >= 7 and near.count("in extended light, such as a disk") >= len(near) - 1
    apart = {place: c for place, c in caveats.items() if abs(place[1] - STAR[1]) >= 4}
    assert apart == {(30, 95): "", (36, 95): "", (58, 20): ""}
