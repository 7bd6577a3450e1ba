"""`--psf FILE`: the file's conventions, and a run with images of the optics is one without."""

import numpy as np
import pytest
from astropy.io import fits

import gpucoron
from gpucoron.cli import main as cli
from gpucoron.errors import InputError, UsageError
from gpucoron.io import read_exposure
from gpucoron.optics.instruments import load_aperture, optics_of
from gpucoron.optics.off_axis import OffAxisPSF
from gpucoron.pipeline.off_axis_psf import given_psf
from tests.helpers.psf_files import effective_psf, grid_about, write_cube, write_grid, write_stpsf
from tests.helpers.tiny_sets import only_error
from tests.optics.test_given_psf import samples

NOWHERE = np.zeros((1, 2))


@pytest.fixture
def exposure(tiny):
    return read_exposure(tiny.science[0])


@pytest.fixture
def scale(exposure):
    return float(np.mean(load_aperture(optics_of(exposure.meta).bandpass.aperture).scale))


def test_a_file_of_stpsf(exposure, scale, tmp_path, caplog):
    """Oversampled, with and without the mask in it; of the detector's pixels where there is one."""
    path, fine = tmp_path / "psf.fits", samples(60, 4)
    for mask in ("NONE", "MASKA335R"):
        write_stpsf(path, fine, 4, 1.004 * scale, CORONMSK=mask, NORMALIZ="exit_pupil")
        psf = given_psf(str(path), exposure)
        image = psf.without_mask
        assert image.shape == (15, 15)
        np.testing.assert_allclose(
            image, fine.reshape(15, 4, 15, 4).sum(axis=(1, 3)), rtol=1e-4, atol=1e-7
        )
        light = psf.throughput(np.array([[0.0, 0.0], [0.0, 60.0]]))
        through = [0.0, 1.0] if mask == "NONE" else [1.0, 1.0]
        np.testing.assert_allclose(light, through, atol=0.02)
        assert psf.source.startswith(
            "psf.fits, " + ("times" if mask == "NONE" else "with the mask")
        )
    assert "one image with the mask in it stands for sources at any distance" in caplog.text
    with fits.open(path) as hdus:
        fits.PrimaryHDU(hdus["DET_SAMP"].data).writeto(path, overwrite=True)
    binned = given_psf(str(path), exposure).without_mask
    np.testing.assert_allclose(binned, image, rtol=1e-4, atol=1e-7)


def test_a_grid_of_stpsf(exposure, tmp_path):
    """Effective PSFs at pixels of the whole detector, as written or scaled for photutils."""
    optics = OffAxisPSF.of(exposure.meta, box=15)
    fine = effective_psf(optics, np.array([[70.0, 70.0]]), 3)
    meta, mask = exposure.meta, np.array(optics_of(exposure.meta).mask_centre[::-1])
    offsets = np.array([[-9.0, -9.0], [-9.0, 9.0], [9.0, -9.0], [9.0, 9.0]])
    pixels = offsets + mask + [meta.corner_y - 1, meta.corner_x - 1]
    images = np.concatenate([fine * f for f in (1.0, 0.9, 0.8, 0.7)])
    found = []
    for norm in (1 / 9, 1.0):
        path = write_grid(tmp_path / "grid.fits", images * norm, pixels, 3)
        psf = given_psf(path, exposure)
        found.append(psf.images(offsets, exact=True))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    expected = optics.images(np.array([[70.0, 70.0]]))[0, 2:-2, 2:-2]
    for image, factor, offset in zip(found[0], (1.0, 0.9, 0.8, 0.7), offsets, strict=True):
        factor *= optics.throughput(offset[None], exact=True)[0]
        np.testing.assert_allclose(image, factor * expected, atol=1e-4 * expected.max())


def test_a_run_with_images_of_the_optics_is_one_without(tiny, exposure, scale, tmp_path):
    options = {"psfmask": tiny.mask, "klip_truncate": 2, "progress": False}
    ours = gpucoron.run(tiny.asn, "cpu", **options)
    optics = ours.product.forward_model.psf
    places = grid_about((0.0, 0.0), 2.2, 19)
    images = effective_psf(optics, places, 2)
    keywords = {"FILTER": exposure.meta.filter, "PIXELSCL": scale / 2, "EPSF": True}
    path = write_cube(tmp_path / "cube.fits", images, places * scale, **keywords)
    made = gpucoron.run(tiny.asn, "cpu", psf=path, **options)
    offsets = np.array([[0.4, 0.3], [-0.6, 0.1], [0.2, -0.7]])
    patches = [r.product.forward_model.patches(offsets, size=11).images for r in (made, ours)]
    np.testing.assert_allclose(*patches, atol=4e-3 * np.nanmax(patches[1]))
    flux = [
        r.product.forward_model.fluxes(r.product.i2d.data, r.product.i2d.err, offsets)
        for r in (made, ours)
    ]
    np.testing.assert_allclose(*np.array(flux)[:, 1], rtol=0.01)
    table, expected = (r.contrast().table() for r in (made, ours))
    ratio = table["flux"].value / expected["flux"].value  # from images at few places, and light
    assert np.median(ratio) == pytest.approx(1, abs=0.06)  # of which the box has its part: 0.044
    np.testing.assert_allclose(ratio, 1, atol=0.2)
    assert made.contrast().assumptions["psf"] == "cube.fits, with the mask in it"
    assert ours.contrast().assumptions["psf"].startswith("optics of NIRCAM")
    again = gpucoron.run(tiny.asn, "cpu", psf=made.product.forward_model.psf, **options)
    theirs = again.product.forward_model.patches(offsets, size=11).images
    np.testing.assert_array_equal(theirs, patches[0])


def spoil(**changes):
    def change(hdus):
        for keyword, value in changes.items():
            hdus["SCI"].header[keyword] = value

    return change


def without(name):
    return lambda hdus: hdus.pop(hdus.index_of(name))


def rows(hdus):
    hdus["PLACES"].data = hdus["PLACES"].data[:1]


def units(hdus):
    hdus["PLACES"].columns["x"].unit = "deg"


def nothing(hdus):
    hdus["SCI"].data = None


def nan(hdus):
    hdus["SCI"].data[1, 3, 3] = np.nan


def brighter(hdus):
    hdus["SCI"].data *= 1000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (spoil(NORMALIZ="first"), "NORMALIZ is 'first', expected 'exit_pupil'"),
        (spoil(FILTER="F356W"), "FILTER is F356W, expected F444W"),
        (spoil(PIXELSCL=-1.0), "PIXELSCL is -1.0, expected a number above 0"),
        (spoil(PIXELSCL=0.2), "PIXELSCL is 0.2, expected at most the detector's pixel"),
        (spoil(PSFCENX="left"), "PSFCENX, PSFCENY are 'left', None, expected two numbers"),
        (spoil(DET_YX0="here"), "DET_YX0 is 'here', expected '(y, x)'"),
        (spoil(DET_YX0="(1, 2)"), "1 DET_YX keywords, expected 2"),
        (without("PLACES"), "2 images and no places, expected a table PLACES"),
        (rows, "PLACES has 1 rows, expected 2"),
        (units, "TUNIT1 of PLACES is 'deg', expected arcsec or pix"),
        (nothing, "no image in SCI"),
        (nan, "1 samples of the images are not finite"),
        (brighter, "the images add up to 1e+03 to 1e+03, expected fractions"),
        (None, "no such file, expected a FITS file"),
    ],
)
def test_bad_files_are_refused_before_any_work(change, says, tiny, tmp_path, capsys):
    path = tmp_path / "psf.fits"
    if change is not None:
        images = np.array([samples(15, 1)] * 2)
        write_cube(path, images, [[0.0, 0.5], [0.5, 1.0]])
        with fits.open(path) as hdus:
            copy = fits.HDUList([h.copy() for h in hdus])
        change(copy)
        copy.writeto(path, overwrite=True)
    words = [str(tiny.asn), "--psf", str(path), "--dry-run"]
    assert cli.main(words) == 3
    error = only_error(capsys.readouterr().err)
    assert "psf.fits" in error and says in error


def test_arrays(exposure, tiny):
    psf = given_psf(samples(15, 1), exposure)
    assert psf.source.startswith("an array, times the throughput of the mask")
    for bad in (np.zeros(3), {"psf": 1}, samples(15, 1) * 9):
        with pytest.raises(InputError, match="psf"):
            gpucoron.plan(tiny.asn, psf=bad)
    with pytest.raises(UsageError, match="with client= psf is a file"):
        gpucoron.run(tiny.asn, output_dir="x", client=object(), psf=samples(15, 1))
    assert given_psf(None, exposure) is given_psf("", exposure) is None
