"""Whole runs on files of other tools: cropped, padded, coadded, compressed, without a GWCS."""

import gzip

import numpy as np
import pytest
from astropy.io import fits

import gpucoron
from gpucoron.errors import InputError, ParameterError
from gpucoron.verify.staging import stage
from tests.helpers.tiny_sets import SHAPE, TinySet, one_thread  # noqa: F401

pytestmark = pytest.mark.slow

VARIANCES = ("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
CUBES = ("SCI", "ERR", "DQ", *VARIANCES)


@pytest.fixture
def tiny(tmp_path):
    return TinySet(tmp_path)


def combined(tiny, **options):
    """Return the i2d of the exposures as they are, without PSF subtraction, and the result."""
    given = {"klip.skip": True, "outlier_detection.skip": True, **options}
    result = gpucoron.run(
        tiny.asn, psfmask=tiny.mask, parameters=given, keep=["i2d"], save=[], device="cpu"
    )
    return result.product.i2d.data, result


def grid(wcs):
    """Return the parameters that ask for the same output grid again."""
    return {
        "resample.crpix": wcs.crpix,
        "resample.crval": wcs.crval,
        "resample.output_shape": wcs.shape[::-1],
    }


def cut(tiny, left, bottom, shape):
    """Crop or pad (by NaN, as spaceKLIP does) all exposures and the mask; CRPIX follows."""
    ny, nx = shape

    def change(array):
        fill = np.nan if array.dtype.kind == "f" else 0
        border = [(0, 0)] * (array.ndim - 2) + [(40, 40), (40, 40)]
        wide = np.pad(array, border, constant_values=fill)
        return wide[..., 40 + bottom : 40 + bottom + ny, 40 + left : 40 + left + nx]

    for path in (*tiny.science, *tiny.psf):
        header = fits.getheader(path, "SCI")
        place = {"CRPIX1": header["CRPIX1"] - left, "CRPIX2": header["CRPIX2"] - bottom}
        tiny.edit(path, **dict.fromkeys(CUBES, change), **place)
    tiny.edit(tiny.mask, SCI=lambda mask: np.nan_to_num(change(mask)))


@pytest.mark.parametrize(("left", "bottom", "shape"), [(5, 4, (28, 30)), (3, -4, (45, 33))])
def test_cropped_and_padded_images_land_where_they_were(tiny, left, bottom, shape):
    whole, before = combined(tiny)
    cut(tiny, left, bottom, shape)
    image, result = combined(tiny, **grid(before.product.wcs))
    both = np.isfinite(whole) & np.isfinite(image)
    assert both.sum() > 0.5 * np.prod(np.minimum(shape, SHAPE))
    inner = both.copy()  # where all exposures contribute to both
    for axis in (0, 1):
        for by in range(-6, 7):
            inner &= np.roll(both, by, axis)
    assert inner.sum() > 20
    np.testing.assert_allclose(image[inner], whole[inner], rtol=1e-5)
    (note,) = [w for w in result.warnings if "and the GWCS is shifted accordingly" in w]
    assert note.startswith(", ".join(path.name for path in tiny.science))


def test_files_that_spaceklip_coadded(tiny):
    """SCI, ERR and DQ become one integration, others stay; extensions and keywords are added."""
    for path in (*tiny.science, *tiny.psf):
        with fits.open(path) as hdus:
            hdus["SCI"].data = np.nanmedian(hdus["SCI"].data, axis=0)[None].astype("f8")
            hdus["ERR"].data = np.sqrt(np.nanmean(hdus["ERR"].data ** 2.0, axis=0))[None]
            hdus["DQ"].data = np.bitwise_and.reduce(hdus["DQ"].data, axis=0)[None]
            hdus[0].header.update(NINTS=1, EFFINTTM=100.0)
            hdus["SCI"].header.update(STARCENX=hdus["SCI"].header["CRPIX1"])
            hdus["SCI"].header.update(STARCENY=hdus["SCI"].header["CRPIX2"])
            hdus["SCI"].header["HIERARCH CROP_SHIFTX"] = 0
            for name in ("ALIGN_SHIFT", "MASKOFFS", "CENTER_MASK"):
                hdus.append(fits.ImageHDU(np.zeros((1, 2)), name=name))
            hdus.writeto(path, overwrite=True)
    result = gpucoron.run(
        tiny.asn, psfmask=tiny.mask, output_dir=tiny.out, klip={"truncate": 1}, device="cpu"
    )
    left_out = [w for w in result.warnings if "leaving out VAR_POISSON, VAR_RNOISE, VAR_FLAT" in w]
    several = [p for p in (*tiny.science, *tiny.psf) if len(fits.getdata(p, "VAR_FLAT")) > 1]
    assert sorted(w.split(":")[0] for w in left_out) == sorted(p.name for p in several)
    i2d = next(tiny.out.glob("*_i2d.fits"))
    assert np.isfinite(fits.getdata(i2d, "SCI")).sum() > 0.8 * np.prod(SHAPE)


def test_compressed_files_give_the_same_products(tiny):
    plain, _ = combined(tiny)
    tiny.edit_asn(lambda content: _all_gz(content, tiny.folder))
    tiny.mask.write_bytes(gzip.compress(tiny.mask.read_bytes()))
    for path in (*tiny.science, *tiny.psf):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    image, _ = combined(tiny)
    np.testing.assert_array_equal(image, plain)
    staged = stage(tiny.asn, tiny.folder / "staged", tiny.mask)  # for gpucoron verify
    assert {p.name for p in (tiny.folder / "staged").glob("*calints*")} == {
        p.name for p in (*tiny.science, *tiny.psf)
    }
    assert staged.science == tuple(p.name.removesuffix("_calints.fits") for p in tiny.science)
    assert tiny.command("--save", "psfsub", "--set", "klip.truncate=1", "--no-report") == 0
    assert tiny.command("--save", "psfsub", "--set", "klip.truncate=1", "--resume") == 0
    names = {p.name.replace("_calints.fits", "_c1001_psfsub.fits") for p in tiny.science}
    assert names <= set(tiny.files())
    assert tiny.record()["resumed"]["taken_over"] == 2


def _all_gz(content, folder):
    for member in content["products"][0]["members"]:
        member["expname"] += ".gz"


def test_exposures_without_a_gwcs(tiny):
    whole, before = combined(tiny)
    tiny.edit(*tiny.science, ASDF=None)
    image, result = combined(tiny, **grid(before.product.wcs))
    assert (
        sum("the FITS WCS in the header of SCI (TAN-SIP) is used" in w for w in result.warnings)
        == 2
    )
    both = np.isfinite(whole) & np.isfinite(image)
    assert both.sum() > 0.98 * np.isfinite(whole).sum()
    assert np.nanstd((image - whole)[both]) < 1e-3 * np.nanstd(whole)
    assert tiny.command("--dry-run") == 0


def test_an_output_image_without_the_exposures(tiny):
    elsewhere = {"resample.crpix": (900, 900), "resample.output_shape": (30, 30)}
    with pytest.raises(ParameterError, match="holds no pixel of any exposure"):
        combined(tiny, **elsewhere)


def test_good_pixels_outside_of_the_output_image(tiny):
    _, result = combined(tiny, **{"resample.output_shape": (20, 50)})
    found = [w for w in result.warnings if "good pixels" in w]
    assert len(found) == 2 and tiny.science[0].name in found[0]


def test_an_i2d_that_would_be_empty(tiny):
    """An outline may overlap the output image where no good pixel does."""
    tiny.edit(*tiny.science, DQ=lambda dq: np.where(np.arange(dq.shape[-1]) > 2, dq | 1, dq))
    wcs = combined(tiny)[1].product.wcs
    corner = {"resample.output_shape": (6, 6), "resample.crval": wcs.crval}
    crpix = (wcs.crpix[0] - wcs.shape[1] / 2, wcs.crpix[1] - wcs.shape[0] / 2)
    with pytest.raises(InputError, match="i2d would be empty"):
        combined(tiny, **corner, **{"resample.crpix": crpix})
