"""The star's absolute position, against the truth of simulated exposures and plain optics."""

import functools

import numpy as np
import pytest
from scipy import ndimage

from gpucoron.backend.threads import limited_to
from gpucoron.errors import InputError
from gpucoron.optics import coronagraph_model
from gpucoron.optics.coronagraph_model import (
    DERIVATIVE_SAMPLES,
    FIELD_SAMPLES,
    CoronagraphModel,
    Grid,
)
from gpucoron.optics.instruments import INSTRUMENTS, choose_optics, load_aperture
from gpucoron.optics.star import fit_star, spread_out
from gpucoron.optics.star_images import StarImages
from gpucoron.optics.star_search import StarSearch
from gpucoron.optics.star_symmetry import symmetry_centre
from gpucoron.optics.telescope import Coronagraph, make_pupil
from gpucoron.simulate.geometry import Window
from gpucoron.simulate.run import dither_pattern
from gpucoron.simulate.scene import Scene

MODES = pytest.mark.parametrize("name", sorted(INSTRUMENTS))


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices: threads would wait for each other."""
    with limited_to(1):
        yield


@functools.cache
def scene_of(name, bandpass, mask=None):
    instrument, bandpass = choose_optics(name, bandpass, mask)
    window = Window.centred(load_aperture(bandpass.aperture), (112, 112))
    return Scene(instrument, bandpass, window)


class Dithers:
    """Images of a dithered star with noise, where it is, and where the mask is."""

    def __init__(self, name, bandpass=None, mask=None, *, seed, nm=None, acquisition=0.3, count=4):
        scene = scene_of(name, bandpass, mask)
        self.instrument, self.bandpass = scene.instrument, scene.bandpass
        self.mask, self.scale = scene.window.centre, np.array(scene.window.aperture.scale)
        rng = np.random.default_rng(seed)
        nm = self.instrument.wavefront_nm if nm is None else nm
        wavefront = scene.wavefront(np.arange(count) / 300, nm, self.instrument.drift_nm, rng)
        miss = acquisition * rng.standard_normal(2)
        dithers = dither_pattern(count, self.instrument.dither_px)
        self.places = self.mask + miss + dithers + 0.02 * rng.standard_normal((count, 2))
        flux = 1.6 * self.instrument.star_flux_jy
        self.flux = scene.flux_to_pixels(flux)
        clean = [
            scene.image(scene.star(flux, wavefront.opd(k), place))
            for k, place in enumerate(self.places)
        ]
        self.errors = 0.2 + 2e-3 * np.array(clean)
        self.images = clean + self.errors * rng.standard_normal(self.errors.shape)
        self.origin = self.places.mean(axis=0)

    @property
    def steps(self):
        return self.places - self.origin

    def fit(self, which=slice(None), **keywords):
        parts = (a[which] for a in (self.images, self.errors, self.steps))
        return fit_star(*parts, self.instrument, self.bandpass, self.mask, **keywords)

    def miss_mas(self, fit):
        return 1000 * self.scale * (np.array(fit.position) - self.origin)

    def pull(self, fit):
        return np.abs(np.array(fit.position) - self.origin) / fit.error


CASES = [
    ("nircam", "F444W", 30, 0.5, 1, 5),
    ("nircam", "F444W", None, 0.3, 2, 10),
    ("nircam", "F410M", None, 0.0, 3, 10),
    ("miri-4qpm", "F1140C", 30, 0.15, 4, 5),
    ("miri-4qpm", "F1065C", None, 0.5, 5, 10),
    ("miri-4qpm", "F1550C", None, 0.15, 6, 10),
    ("miri-lyot", "F2300C", 30, 0.5, 7, 5),
    ("miri-lyot", "F2300C", None, 0.3, 8, 10),
]


@pytest.mark.parametrize(("name", "bandpass", "nm", "acquisition", "seed", "limit"), CASES)
def test_the_star_is_found(name, bandpass, nm, acquisition, seed, limit):
    dithers = Dithers(name, bandpass, seed=seed, nm=nm, acquisition=acquisition)
    fit = dithers.fit()
    assert fit.method == "model"
    assert np.hypot(*dithers.miss_mas(fit)) < limit
    assert (dithers.pull(fit) < 3.5).all()
    assert (np.abs(fit.mask - dithers.mask) * 1000 * dithers.scale < 30).all()
    assert np.allclose(fit.flux, dithers.flux, rtol=0.1)
    assert 0 < abs(fit.xy_cov) < fit.error[0] * fit.error[1]


@pytest.mark.parametrize("seed", [6, 8])
def test_images_that_are_not_explained_together_start_from_one_of_them(seed, monkeypatch):
    """At 1.8 um three starts end in false minima in some sets."""
    dithers = Dithers("nircam", "F182M", "210R", seed=seed, acquisition=0.5)
    fit = dithers.fit()
    assert fit.method == "model" and fit.explained
    assert np.hypot(*dithers.miss_mas(fit)) < 5
    assert (dithers.pull(fit) < 3).all()
    monkeypatch.setattr(StarSearch, "_of_one", lambda self, k, starts: (starts[0], None))
    monkeypatch.setattr("gpucoron.optics.star_search.MOST_WAVEFRONTS", 0)
    assert not dithers.fit().explained


@MODES
def test_a_model_that_is_wrong_costs_little(name):
    dithers = Dithers(name, seed=9)
    wrong = {"rotation_deg": 0.5, "radius_scale": 1.01, "stop_scale": 0.98}
    assert np.hypot(*dithers.miss_mas(dithers.fit(options=wrong))) < 10


@pytest.mark.parametrize(
    ("name", "seed", "limit"), [("nircam", 15, 5), ("miri-4qpm", 16, 5), ("miri-lyot", 17, 10)]
)
def test_what_one_star_tells_of_another(name, seed, limit):
    """Wavefront and mask of dithered images are the prior of one image of another star."""
    dithers = Dithers(name, seed=seed, count=5)
    known = dithers.fit(slice(1, None)).known
    one, alone = (
        fit_star(
            dithers.images[:1], dithers.errors[:1], np.zeros((1, 2)), dithers.instrument,
            dithers.bandpass, dithers.mask, **more,
        )
        for more in ({"known": known}, {})
    )  # fmt: skip
    miss = np.array(one.position) - dithers.places[0]
    assert np.hypot(*miss * 1000 * dithers.scale) < limit
    assert (np.abs(miss) < 3.5 * np.array(one.error)).all()
    assert max(one.error) < max(alone.error)
    assert (np.abs(one.mask - dithers.mask) < 3.5 * one.mask_error).all()


@MODES
def test_images_that_were_recentred(name):
    """Each has its own mask; that the star is less certain is said."""
    dithers = Dithers(name, seed=10)
    to = np.rint(dithers.mask)
    spectra = np.fft.fft2(dithers.images)
    moved = [
        np.fft.ifft2(ndimage.fourier_shift(s, (to - p)[::-1])).real
        for s, p in zip(spectra, dithers.places, strict=True)
    ]
    fit = fit_star(
        np.array(moved),
        dithers.errors,
        np.zeros((4, 2)),
        dithers.instrument,
        dithers.bandpass,
        tuple(to),
        recentred=True,
        mask_error_px=1.0,
    )
    assert (np.abs(np.array(fit.position) - to) < 3.5 * np.array(fit.error)).all()
    assert np.hypot(*(np.array(fit.position) - to)) < 0.15
    assert fit.mask.shape == (3, 2)
    assert max(fit.error) > max(dithers.fit().error)


def test_pixels_that_are_bad_or_not_there():
    dithers = Dithers("nircam", seed=11)
    rng = np.random.default_rng(0)
    bad = rng.random(dithers.images.shape) < 0.02
    hit = rng.random(dithers.images.shape) < 0.002
    dithers.images = np.where(bad, np.nan, dithers.images + 300.0 * hit)
    dithers.images.flags.writeable = False
    fit = dithers.fit(weight=np.ones(dithers.images.shape[1:]))
    assert np.hypot(*dithers.miss_mas(fit)) < 10
    assert (dithers.pull(fit) < 3.5).all()


def test_a_track_that_outshines_the_star_is_left_out(monkeypatch):
    dithers = Dithers("nircam", seed=15, count=5)
    known = dithers.fit(slice(1, None)).known
    x, y = np.rint(dithers.mask).astype(int)
    dithers.images[0, y + 6, x - 3 : x + 3] += 20 * dithers.images[0].max()
    fits = []
    for most in (0.02, 0.0):
        monkeypatch.setattr("gpucoron.optics.star_search.MOST_CLIPPED", most)
        fits.append(
            fit_star(
                dithers.images[:1], dithers.errors[:1], np.zeros((1, 2)), dithers.instrument,
                dithers.bandpass, dithers.mask, known=known,
            )
        )  # fmt: skip
    miss = 1000 * dithers.scale * (np.array(fits[0].position) - dithers.places[0])
    assert fits[0].method == "model" and np.hypot(*miss) < 10
    assert fits[0].misfit < 0.1 < fits[1].misfit


def test_a_star_that_is_not_there_has_no_position():
    dithers = Dithers("nircam", seed=12)
    dithers.images = dithers.errors * np.random.default_rng(1).standard_normal(dithers.errors.shape)
    fit = dithers.fit()
    assert fit.method == "none"
    assert np.isinf(fit.error).all()


def test_wavefronts_are_drawn_where_no_start_sees_the_star(monkeypatch):
    dithers = Dithers("nircam", seed=30, count=1)
    fit = dithers.fit()
    assert fit.method == "model"
    assert np.abs(dithers.miss_mas(fit)).max() < 10
    monkeypatch.setattr("gpucoron.optics.star_search.MOST_WAVEFRONTS", 0)
    assert dithers.fit().method == "none"


@pytest.mark.parametrize(("seed", "method"), [(47, "model"), (54, "symmetry")])
def test_one_image_of_a_star_far_from_the_mask(seed, method):
    """A lambda / D from it the fit may fail, and symmetry with it: the error has to say it."""
    # 47: flux and wavefront are one, so its error is large; 54: both are 1.2 px off, and agree
    dithers = Dithers("nircam", "F300M", seed=seed, acquisition=0.8, count=1)
    fit = dithers.fit()
    assert fit.method == method
    assert np.hypot(*(dithers.places[0] - dithers.mask)) > 1.3
    assert (dithers.pull(fit) < 3).all()


def test_light_that_no_model_explains_is_said():
    """A disk brighter than the speckles: symmetry, or an error of a fifth of lambda / D."""
    dithers = Dithers("nircam", seed=13)
    y, x = np.indices(dithers.images.shape[1:])
    along = np.abs(x - y - dithers.origin[0] + dithers.origin[1]) < 3
    dithers.images = dithers.images + 400.0 * along
    fit = dithers.fit()
    assert fit.misfit > 0.1
    assert fit.method == "symmetry"
    assert min(fit.error) > 0.1


def test_images_of_a_star_as_the_model():
    dithers = Dithers("nircam", seed=14, nm=30, count=9)
    images = StarImages(dithers.images, dithers.places, dithers.mask)
    assert np.hypot(*dithers.miss_mas(dithers.fit([1, 2, 4], star_model=images))) < 6
    one = StarImages(dithers.images[1], dithers.places[1])
    moved = ndimage.shift(dithers.images[1], (0.4, -0.7), order=5)[None]
    fit = fit_star(
        moved, dithers.errors[:1], np.zeros((1, 2)), dithers.instrument, dithers.bandpass,
        dithers.mask, star_model=one,
    )  # fmt: skip
    assert np.allclose(np.subtract(fit.position, dithers.places[1]), (-0.7, 0.4), atol=0.02)


@pytest.mark.parametrize("centre", [(31.3, 29.8), (30.0, 32.45)])
def test_centre_of_symmetry(centre):
    y, x = np.indices((64, 64))
    r = np.hypot(x - centre[0], y - centre[1])
    turn = np.arctan2(y - centre[1], x - centre[0])
    image = np.sinc(r / 5) ** 2 * (1 + 0.4 * r**2 / (r**2 + 9) * np.cos(2 * turn)) + 0.1
    found, asymmetry = symmetry_centre(image, (31.0, 31.0), 20)
    assert np.allclose(found, centre, atol=0.01)
    assert asymmetry < 0.02
    assert symmetry_centre(image + 0.3 * (x > centre[0]), centre, 20)[1] > 5 * asymmetry


def model_of(name, **keywords):
    instrument = INSTRUMENTS[name]
    bandpass = instrument.filters[instrument.default_filter]
    scale = load_aperture(bandpass.aperture).scale
    grid = Grid(np.arange(40, 81), np.arange(45, 80))
    return CoronagraphModel(instrument, bandpass, scale, grid, **keywords), instrument, scale


@pytest.mark.parametrize(("samples", "limit"), [(FIELD_SAMPLES, 0.02), (DERIVATIVE_SAMPLES, 0.3)])
@MODES
def test_derivatives_are_differences(name, samples, limit, monkeypatch):
    """Exactly on the pupil of the fields, by some percent on the coarser one that the fit takes."""
    monkeypatch.setattr(coronagraph_model, "DERIVATIVE_SAMPLES", samples)
    model, _, _ = model_of(name)
    rng = np.random.default_rng(15)
    modes = 0.5 * model.sigma_nm * rng.standard_normal(model.sigma_nm.size)
    star, mask = np.array([60.4, 61.3]), np.array([60.1, 61.9])

    def image(modes=modes, star=star, mask=mask):
        return model.image(model.fields(modes, star, mask))

    found = model.derivatives(model.fields(modes, star, mask), modes, star, mask)
    x, y = np.eye(2) * 0.01
    for k in (0, 5, 14, 70):
        step = np.zeros(modes.size)
        step[k] = 0.2
        expected = (image(modes=modes + step) - image(modes=modes - step)) / 0.4
        assert np.std(found[k] - expected) < limit * np.std(expected)
    for k, (key, step) in enumerate((("star", x), ("star", y), ("mask", x), ("mask", y))):
        at = star if key == "star" else mask
        expected = (image(**{key: at + step}) - image(**{key: at - step})) / 0.02
        assert np.std(found[modes.size + k] - expected) < limit * np.std(expected)


@MODES
def test_images_are_those_of_the_simulator(name):
    """The coarser pupil and fewer wavelengths change them by some percent of their rms."""
    dithers = Dithers(name, seed=16, nm=0.001)
    scene = scene_of(name, None)
    grid = Grid(np.arange(40, 73), np.arange(40, 73))
    model = CoronagraphModel(dithers.instrument, dithers.bandpass, dithers.scale, grid)
    modes = np.zeros(model.sigma_nm.size)
    for place in dithers.places[:2]:
        flat = np.zeros((200, 200), np.float32)
        expected = scene.image(scene.star(1.0, flat, place)) - scene.background
        expected = expected[40:73, 40:73] / scene.flux_to_pixels(1.0)
        found = model.image(model.fields(modes, place, dithers.mask))
        assert np.std(found - expected) < 0.1 * np.std(expected)


@MODES
def test_masks_take_stacks_of_fields(name):
    instrument = INSTRUMENTS[name]
    pupil = make_pupil(0.0, instrument.stop_erosion_m, 40)
    one = np.zeros(1)
    optics = Coronagraph(
        pupil, instrument.kind, instrument.mask_radius, [5e-6], (0.1, 0.1), one, one
    )
    rng = np.random.default_rng(17)
    fields = rng.standard_normal((3, 40, 40)) + 1j * rng.standard_normal((3, 40, 40))
    fields = fields.astype(np.complex64)
    for mask in optics.masks:
        expected = [mask(field) for field in fields]
        np.testing.assert_allclose(mask(fields), expected, atol=2e-6)


def test_dithers_that_are_far_apart_are_fitted():
    chosen = spread_out(dither_pattern(9, 1.0), 3)
    assert len(chosen) == 3 and 0 not in chosen
    assert spread_out(np.zeros((2, 2)), 3) == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": np.zeros((2, 2))}, r"steps have shape \(2, 2\), expected \(4, 2\)"),
        (
            {"steps": np.full((4, 2), -1e23)},
            r"of less than the images' size \(largest: 1e\+23 px\)",
        ),
        ({"errors": np.ones((4, 5, 5))}, "images and errors have shapes"),
        ({"images": np.full((4, 112, 112), np.nan)}, "no usable pixel within"),
        ({"mask_centre": (-70.0, 20.0)}, "expected a position on the array"),
    ],
)
def test_what_does_not_fit_together_is_one_line(change, message):
    dithers = Dithers("nircam", seed=18)
    given = {
        "images": dithers.images,
        "errors": dithers.errors,
        "steps": dithers.steps,
        "instrument": dithers.instrument,
        "bandpass": dithers.bandpass,
        "mask_centre": dithers.mask,
    }
    with pytest.raises(InputError, match=message):
        fit_star(**(given | change))


@pytest.mark.parametrize(
    ("images", "positions", "mask", "message"),
    [
        (np.ones((2, 9, 9)), np.ones((3, 2)), (4, 4), "expected"),
        (np.ones((2, 9, 9)), np.ones((2, 2)), None, "no mask centre"),
        (np.full((9, 9), np.nan), (4, 4), None, "not finite"),
    ],
)
def test_images_that_are_no_model(images, positions, mask, message):
    with pytest.raises(InputError, match=message):
        StarImages(images, positions, mask)


def test_au_mic(shared_data):
    """The publisher moved the star to (150, 174) from 0 in images whose masks are elsewhere."""
    from gpucoron.io import read_exposure

    paths = sorted((shared_data / "aumic_f444w").glob("*_calints.fits"))[:4]
    stacks = [read_exposure(p, "science").stack for p in paths]
    images = np.array([np.mean(s.data, axis=0) for s in stacks])
    errors = np.array([np.mean(s.err, axis=0) / np.sqrt(len(s.data)) for s in stacks])
    nircam = INSTRUMENTS["nircam"]
    fit = fit_star(
        images, errors, np.zeros((4, 2)), nircam, nircam.filters["F444W"], (150.0, 174.0),
        recentred=True, mask_error_px=1.0,
    )  # fmt: skip
    miss = np.subtract(fit.position, (150, 174))
    assert np.hypot(*miss) < 0.15
    assert (np.abs(miss) < 2 * np.array(fit.error)).all()
    assert max(fit.error) < 0.2
