"""Extended sources: against sums over point sources, a new drizzle, and simulated disks."""

import numpy as np
import pytest

import gpucoron
from gpucoron.analysis import forward_model
from gpucoron.analysis.extended import ExtendedSource, SkyGrid, fit_flux
from gpucoron.errors import InputError, ParameterError
from gpucoron.simulate import simulate

SMALL = {
    "shape": (96, 96),
    "n_science": 2,
    "n_integrations": 2,
    "n_references": 5,
    "n_reference_integrations": 2,
    "planets": (),
    "n_optical_states": 1,
}


def run(folder, instrument, seed, **options):
    made = simulate(folder, instrument, seed, **SMALL | options)
    return gpucoron.run(made.asn, "cpu", psfmask=made.psfmask, klip_truncate=4, progress=False)


@pytest.fixture(scope="module", params=["nircam", "miri-4qpm"])
def result(request, tmp_path_factory):
    return run(tmp_path_factory.mktemp(request.param), request.param, 5, disk=False)


def test_a_source_of_few_pixels_is_that_many_point_sources(result):
    """Small boxes of sky, each as bright as a point source of the same flux in its middle."""
    forward = result.product.forward_model
    pixel = forward.wcs.pixel_scale
    grid, image = SkyGrid((241, 241), pixel / 3), np.zeros((241, 241))
    at = np.array([[120, 60], [30, 150], [175, 118], [140, 136]])
    for y, x in at:
        image[y - 1 : y + 2, x - 1 : x + 2] = 1.0
    extended = ExtendedSource(forward, grid)
    offsets = grid.offsets()[at[:, 0], at[:, 1]]
    ours, seen = extended(image), extended.in_exposures(image)
    # 9 pixels of a third of a pixel's side: 1 pixel of surface brightness 1
    patches = forward.patches(offsets, size=9)
    found = patches.cut(ours)
    alone = [extended(np.where(_near(image, place), image, 0)) for place in at]
    np.testing.assert_allclose(np.sum(alone, axis=0), ours, atol=1e-9)  # linear
    for k, image_of_one in enumerate(alone):
        one = patches.cut(image_of_one)[k]
        expected = patches.images[k]
        good = np.isfinite(expected)
        # spread over a pixel and between pixels: the peak is lower, the sum in an aperture less so
        assert one[good].sum() == pytest.approx(expected[good].sum(), rel=0.08)
        assert one[good].max() == pytest.approx(expected[good].max(), rel=0.3)
    assert np.isfinite(found).any() and all(v.shape == (96, 96) for v in seen.values())


@pytest.mark.parametrize(("instrument", "mode"), [("nircam", "adi"), ("miri-4qpm", "adi+rdi")])
def test_with_rolls_as_references(instrument, mode, tmp_path):
    """A disk of two compact sources: those of the forward model, whose references have them.

    Their light is spread over a pixel: NIRCam's peaks are 0.874 of a point source's (worst, of
    two), with a correlation of 0.997.
    """
    made = simulate(tmp_path, instrument, 6, **SMALL | {"disk": False})
    found = gpucoron.run(
        made.asn, "cpu", klip_mode=mode, klip_truncate=3, forward_model=True, progress=False
    )
    forward = found.product.forward_model
    assert not forward.linear
    scale, image = forward.wcs.pixel_scale / 3, np.zeros((241, 241))
    for y, x in ((120, 60), (175, 118)):
        image[y - 1 : y + 2, x - 1 : x + 2] = 1.0
    offsets = SkyGrid((241, 241), scale).offsets()[[120, 175], [60, 118]]
    shown = forward_model(image, found.product, scale)
    patches = forward.patches(offsets, size=9)
    for one, expected in zip(patches.cut(shown), patches.images, strict=True):
        assert one.max() == pytest.approx(expected.max(), rel=0.2)
        assert np.corrcoef(one.ravel(), expected.ravel())[0, 1] > 0.98
    twice = forward_model(2 * image, found.product, scale)  # the limit of a faint source
    np.testing.assert_allclose(twice, 2 * shown, atol=1e-9)


def test_what_has_no_forward_model():
    with pytest.raises(InputError, match="result is NoneType, expected a product with a forward"):
        forward_model(np.ones((5, 5)), None, 0.05)


def _near(image, place):
    y, x = np.indices(image.shape)
    return np.maximum(abs(y - place[0]), abs(x - place[1])) <= 1


def test_images_on_the_detector(result):
    """Convolution at every pixel: the sum of point sources' images at the pixels' centres."""
    forward, rng = result.product.forward_model, np.random.default_rng(3)
    extended = ExtendedSource(forward)
    pixels = rng.integers(20, 76, (5, 2))
    bright = rng.uniform(0.5, 2, 5)
    planes, expected = {}, {}
    for e in forward.exposures:
        plane, total = np.zeros((96, 96)), np.zeros((96, 96))
        plane[tuple(pixels.T)] = bright
        offsets = pixels - np.array(e.mask[::-1])
        for image, flux, (y, x) in zip(
            forward.psf.images(offsets, exact=True), bright, pixels, strict=True
        ):
            half = len(image) // 2
            rows = slice(max(0, y - half), min(96, y + half + 1))
            columns = slice(max(0, x - half), min(96, x + half + 1))
            part = image[
                rows.start - y + half : rows.stop - y + half,
                columns.start - x + half : columns.stop - x + half,
            ]
            total[rows, columns] += flux * part
        planes[e.root], expected[e.root] = plane, total
    peak = forward.psf.without_mask.max() * 2
    for root, found in extended.in_exposures(planes).items():
        np.testing.assert_allclose(found, expected[root], atol=0.025 * peak)
        assert found.sum() == pytest.approx(expected[root].sum(), rel=0.12)  # in a larger box


@pytest.mark.parametrize(
    ("instrument", "seed"),
    [("nircam", 7), pytest.param("miri-lyot", 8, marks=pytest.mark.slow)],
)
def test_the_flux_of_a_simulated_disk(instrument, seed, tmp_path):
    """The simulator's ring, put into the calints and reduced: what it adds, and its flux."""
    from gpucoron.optics.instruments import choose_optics
    from gpucoron.simulate.scene import Scene

    with_disk = run(tmp_path / "disk", instrument, seed, disk=True)
    without = run(tmp_path / "none", instrument, seed, disk=False)
    forward, i2d = with_disk.product.forward_model, with_disk.product.i2d
    optics = choose_optics(instrument)
    grid = SkyGrid((240, 240), forward.wcs.pixel_scale / 2)
    ring = Scene.__new__(Scene)
    ring.instrument = optics[0]
    east, north = np.moveaxis(grid.offsets(), -1, 0)
    image = ring._ring_brightness(east, north, 77.0)
    extended = ExtendedSource(forward, grid)
    shown = extended(image)
    added = i2d.data - without.product.i2d.data
    y, x = np.indices(shown.shape) - np.reshape(forward.places([[0.0, 0.0]])[0], (2, 1, 1))
    where = np.hypot(x, y) < 40
    truth = fit_flux(added, i2d.err, shown, where=where)
    assert truth.scale == pytest.approx(1, abs=0.1)
    factor = i2d.err_correlation() or 1.0
    found = extended.measure(image, i2d.data, i2d.err, where=where, correlation=factor)
    assert abs(found.scale - 1) < 3 * found.error and found.error < 0.4


def test_what_cannot_be_is_said(result):
    forward = result.product.forward_model
    grid = SkyGrid((41, 41), 0.1)
    with pytest.raises(ParameterError, match="psf is 'many', expected one of field, one"):
        ExtendedSource(forward, grid, "many")
    with pytest.raises(InputError, match="expected one on a grid of the sky"):
        ExtendedSource(forward, None, "one").measure(*[np.ones((9, 9))] * 3)
    for image in (np.zeros((3, 3)), np.full((41, 41), np.nan)):
        with pytest.raises(InputError, match=r"expected \(41, 41\) as its grid"):
            ExtendedSource(forward, grid, "one")(image)
    with pytest.raises(InputError, match="expected arcsec above 0"):
        SkyGrid((41, 41), 0.0)
    with pytest.raises(InputError, match="the model is the same in all pixels"):
        fit_flux(np.ones((9, 9)), np.ones((9, 9)), np.ones((9, 9)))
