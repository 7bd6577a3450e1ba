"""`--subtract-model`: a disk keeps its light, and files that cannot be are refused before work."""

import numpy as np
import pytest
from astropy.io import fits

import gpucoron
from gpucoron.analysis.extended import ExtendedSource, SkyGrid, fit_flux
from gpucoron.cli import main as cli
from gpucoron.optics.instruments import choose_optics
from gpucoron.simulate import simulate
from gpucoron.simulate.scene import Scene
from tests.analysis.test_extended import SMALL
from tests.helpers.tiny_sets import only_error

CARDS = {"CDELT1": -1 / 3600 / 25, "CDELT2": 1 / 3600 / 25, "BUNIT": "MJy/sr"}


def write(path, image, **keywords):
    fits.PrimaryHDU(image, fits.Header(CARDS | keywords)).writeto(path, overwrite=True)
    return path


@pytest.mark.slow
def test_the_light_of_a_disk_is_kept(tmp_path):
    """By a model of the simulator's ring, half as bright again as it is, and of its brightness."""
    made = simulate(tmp_path / "in", "nircam", 9, **SMALL, disk=True)
    options = {"psfmask": made.psfmask, "klip_truncate": 4, "progress": False}
    plain = gpucoron.run(made.asn, "cpu", **options).product
    none = simulate(tmp_path / "none", "nircam", 9, **SMALL, disk=False)
    without = gpucoron.run(none.asn, "cpu", **options | {"psfmask": none.psfmask}).product
    scene = Scene.__new__(Scene)
    scene.instrument = choose_optics("nircam")[0]
    grid = SkyGrid((241, 241), 0.04)
    image = scene._ring_brightness(*np.moveaxis(grid.offsets(), -1, 0), 77.0)
    extended = ExtendedSource(plain.forward_model, grid)
    whole = extended(image, 0)  # nothing is taken but the mean
    star = plain.forward_model.places([[0.0, 0.0]])[0]
    y, x = np.indices(whole.shape) - star[:, None, None]
    where = (np.hypot(y, x) > 8) & (np.hypot(y, x) < 40)
    kept = {}
    for factor in (0.0, 0.5, 1.0):
        path = write(tmp_path / "ring.fits", factor * image)
        one = plain
        if factor:
            one = gpucoron.run(made.asn, "cpu", subtract_model=path, **options).product
        added = one.i2d.data - without.i2d.data
        kept[factor] = fit_flux(added, np.ones_like(added), whole, where=where).scale
    assert kept[1.0] == pytest.approx(1, abs=0.03)
    assert abs(kept[1.0] - 1) < abs(kept[0.5] - 1) < abs(kept[0.0] - 1)


@pytest.mark.parametrize(
    ("image", "cards", "words", "code", "says"),
    [
        (np.ones((9, 9)), {"BUNIT": "Jy"}, [], 3, "BUNIT is 'Jy', expected MJy/sr"),
        (np.zeros((9, 9)), {}, [], 3, "is 0 everywhere"),
        (np.ones((2, 9, 9)), {}, [], 3, "has shape (2, 9, 9), expected an image (ny, nx)"),
        (np.ones((9, 9)), {"CDELT1": 1 / 3600}, [], 3, "expected squares with east to the left"),
        (np.ones((9, 9)), {"CDELT1": None, "CDELT2": None}, [], 3, "the scale of the image is not"),
        (np.ones((9, 9)), {"CRPIX1": 5000.0, "CRPIX2": 0.0}, [], 3, "nothing of the model is in"),
        (np.ones((9, 9)), {}, ["--preset", "jwst"], 2, "with the preset jwst, expected one of"),
        (np.ones((9, 9)), {}, ["--set", "klip.skip=true"], 2, "with klip.skip, expected one of"),
        (None, {}, [], 3, "no such file, expected a FITS file"),
    ],
)
def test_what_cannot_be_is_refused_before_work(image, cards, words, code, says, tiny, capsys):
    path = tiny.folder / "model.fits"
    if image is not None:
        write(path, image, **cards)
    words = ["--subtract-model", str(path), "--dry-run", *words]
    assert cli.main([str(tiny.asn), *words]) == code
    error = only_error(capsys.readouterr().err)
    assert "model.fits" in error and says in error


def test_orientation_and_centre(tmp_path):
    """A turned WCS, and the star where the file has it."""
    from gpucoron.io.sky_model import read_sky_model

    for angle in (0.0, 37.0, -120.0):
        a, s = np.deg2rad(angle), 1 / 36000
        cards = {
            "CDELT1": None,
            "CD1_1": -s * np.cos(a),
            "CD1_2": s * np.sin(a),
            "CD2_1": s * np.sin(a),
            "CD2_2": s * np.cos(a),
            "STARCENX": 4.0,
            "STARCENY": 6.0,
        }
        file = read_sky_model(write(tmp_path / "m.fits", np.ones((11, 12)), **cards))
        assert file.star == (5, 3)
        assert (file.scale, file.angle_deg) == pytest.approx((0.1, angle))
        grid = SkyGrid(file.image.shape, file.scale, file.star, file.angle_deg)
        offsets = grid.offsets()
        east, north = offsets[5, 4] - offsets[5, 3]  # one pixel along x
        np.testing.assert_allclose((east, north), (0.1 * -np.cos(a), 0.1 * np.sin(a)), atol=1e-12)
        np.testing.assert_allclose(grid.places(offsets.reshape(-1, 2))[13], (1, 1), atol=1e-9)
