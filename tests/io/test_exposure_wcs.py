"""The WCS of an exposure against its headers, and what is made of it, against astropy."""

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from gpucoron.errors import ExposureError
from gpucoron.io.asdf.extension import write_asdf
from gpucoron.io.exposure_wcs import settle_wcs
from gpucoron.io.exposures import read_exposure
from gpucoron.io.fits.headers import quiet
from gpucoron.io.wcs import header_wcs, output_wcs, read_wcs
from gpucoron.io.wcs.inverse import PolynomialInverse, fast_sky_to_pixel
from tests.helpers.tiny_sets import SHAPE, simulated

NY, NX = SHAPE
TAN = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 12.5, "CRPIX2": 30.25}
TAN |= {"CRVAL1": 150.2, "CRVAL2": -30.4}
CD = {"CD1_1": 4e-6, "CD1_2": 1.7e-5, "CD2_1": 1.65e-5, "CD2_2": -4.2e-6}
PC = {"CDELT1": 1.7e-5, "CDELT2": 1.8e-5, "PC1_1": -0.6, "PC1_2": 0.8, "PC2_1": 0.8, "PC2_2": 0.6}
BENT = {"A_ORDER": 2, "B_ORDER": 3, "A_0_2": 3e-5, "A_1_1": -2e-5, "B_2_0": 4e-5, "B_0_3": 1e-6}
SIP = TAN | CD | BENT | {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}
SWAPPED = {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": -30.4, "CRVAL2": 150.2}


@pytest.fixture(scope="module")
def pair():
    return [read_exposure(path, "science", pixels=False) for path in simulated().made.science]


def wcs_of(exposure):
    return read_wcs(exposure.asdf_bytes, exposure.path.name)


def changed(exposure, shape=None, asdf=b"", s_region="", primary=(), **sci):
    """Return an exposure with other keywords, image shape (ny, nx), ASDF extension or S_REGION."""
    header, first = exposure.headers["SCI"].copy(), exposure.primary_header.copy()
    for keyword, value in sci.items():
        header[keyword] = value
    first.update(dict(primary))
    meta = exposure.meta
    if s_region != "":
        meta = dataclasses.replace(meta, s_region=s_region)
    return dataclasses.replace(
        exposure,
        headers={**exposure.headers, "SCI": header},
        primary_header=first,
        shape=exposure.shape if shape is None else (exposure.shape[0], *shape),
        asdf_bytes=exposure.asdf_bytes if asdf == b"" else asdf,
        meta=meta,
    )


def moved(exposure, x, y, **more):
    """Return an exposure whose GWCS was corrected by x, y pixels; its headers were not."""
    import gwcs
    from astropy.modeling.models import Shift

    first, *others = wcs_of(exposure).gwcs.pipeline
    made = gwcs.WCS([gwcs.Step(first.frame, Shift(x) & Shift(y) | first.transform), *others])
    made.bounding_box = ((-0.5, NX - 0.5), (-0.5, NY - 0.5))
    return changed(exposure, asdf=write_asdf({"meta": {"wcs": made}}), **more)


# ---- the FITS WCS


@pytest.mark.parametrize(
    "keywords",
    [
        TAN | CD,
        TAN | PC,
        TAN | PC | {"LONPOLE": 150.0},
        TAN | CD | SWAPPED,
        TAN | {"CDELT1": -1.7e-5, "CDELT2": 1.7e-5, "CROTA2": 30.0},
        {
            **TAN,
            "CRVAL1": 720.1 / 2,
            "CRVAL2": 899.0 / 3600,
            "CUNIT1": "deg",
            "CUNIT2": "deg",
            **CD,
        },
        SIP,
        SIP | {"AP_ORDER": 2, "BP_ORDER": 2, "AP_1_1": 0.5},  # an inverse that is not used
        SIP | {"RADESYS": "ICRS", "CTYPE3": "", "CRPIX3": 1.0, "WCSAXES": 3},
    ],
)
def test_a_fits_wcs_means_what_it_means_to_astropy(keywords):
    header = fits.Header(keywords)
    wcs = header_wcs(header, (3, NY, NX), "x")
    with quiet():
        theirs = WCS(header, naxis=2)
    lng, lat = theirs.wcs.lng, theirs.wcs.lat
    y, x = np.mgrid[0 : NY - 1 : 7j, 0 : NX - 1 : 9j]
    expected = np.array(theirs.all_pix2world(x, y, 0))[[lng, lat]]
    found = np.array(wcs.pixel_to_sky(x, y))
    np.testing.assert_allclose(found, expected, atol=2e-13)
    np.testing.assert_allclose(wcs.sky_to_pixel(*found), (x, y), atol=1e-6)
    fast = fast_sky_to_pixel(wcs, SHAPE)
    assert isinstance(fast, PolynomialInverse)
    np.testing.assert_allclose(fast(*found), (x, y), atol=1e-6)
    ra, dec = wcs.pixel_to_sky(-3 * NX, 0.0, everywhere=True)
    assert np.isnan(fast(ra, dec)).all()
    again = read_wcs(write_asdf({"meta": {"wcs": wcs.gwcs}}), "x")
    np.testing.assert_array_equal(again.pixel_to_sky(x, y), found)
    assert again.box(SHAPE) == ((-0.5, NX - 0.5), (-0.5, NY - 0.5))


@pytest.mark.parametrize("name", ["nircam_small", "miri_4qpm"])
def test_the_fits_wcs_of_an_exposure_is_near_its_gwcs(name, shared_data):
    path = sorted((shared_data / name).glob("jw*calints.fits"))[-1]
    exposure = read_exposure(path, "science", pixels=False)
    ny, nx = exposure.shape[1:]
    y, x = np.mgrid[0 : ny - 1 : 7j, 0 : nx - 1 : 9j]
    ours = header_wcs(exposure.headers["SCI"], exposure.shape, "x")
    away = np.subtract(wcs_of(exposure).sky_to_pixel(*ours.pixel_to_sky(x, y)), (x, y))
    assert np.abs(away).max() < 0.005  # what the fit of SIP's coefficients leaves


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CTYPE1": "RA---ZPN", "CTYPE2": "DEC--ZPN"}, "CTYPE1, CTYPE2 = RA---ZPN, DEC--ZPN, exp"),
        ({"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, "CTYPE1, CTYPE2 = GLON-TAN, GLAT-TAN, exp"),
        ({"CTYPE1": "RA---TAN"}, "CTYPE1, CTYPE2 = RA---TAN, DEC--TAN-SIP"),
        ({"RADESYS": "FK5"}, "is in RADESYS FK5, expected ICRS"),
        ({"CD1_1": 0.0, "CD1_2": 0.0}, "cannot be used: "),
        ({"CRVAL2": 95.0}, "cannot be used: "),
        ({"CRPIX1": "here"}, "cannot be used: "),
        ({"A_ORDER": 10**6}, "A_ORDER is 1000000, expected an integer from 0 to 9"),
    ],
)
def test_a_fits_wcs_that_cannot_be_used(changes, message, pair):
    lost = changed(pair[0], asdf=None, **(SIP | changes))
    with pytest.raises(ExposureError, match="no ASDF extension, so no WCS, and the FITS WC") as why:
        settle_wcs(lost)
    assert message in str(why.value) and str(why.value).endswith("for all products but i2d")
    assert len(str(why.value).splitlines()) == 1


@pytest.mark.parametrize("asdf", [None, write_asdf({"meta": {"a": 1}})])
def test_without_a_gwcs_the_fits_wcs_is_used(asdf, pair, caplog):
    found = settle_wcs(changed(pair[0], asdf=asdf))
    assert "the FITS WCS in the header of SCI (TAN-SIP) is used" in caplog.text
    x, y = np.array([0.0, NX - 1]), np.array([NY - 1.0, 0])
    away = np.subtract(wcs_of(pair[0]).sky_to_pixel(*wcs_of(found).pixel_to_sky(x, y)), (x, y))
    assert np.abs(away).max() < 1e-3


# ---- WCSs that do not go together


def test_good_exposures_are_left_alone(pair, caplog):
    for exposure in pair:
        assert settle_wcs(exposure) is exposure and settle_wcs(exposure, True) is exposure
    assert not caplog.text


CUTS = {  # first pixel in the whole image, x, y; shape
    "cropped": ((4, 3), (20, 30)),
    "cropped at the far sides": ((0, 0), (30, 31)),
    "padded": ((-5, -7), (50, 50)),
    "cropped along x, padded along y": ((6, -2), (40, 30)),
}


@pytest.mark.parametrize(
    ("name", "subsize"),
    [(name, (NX, NY)) for name in CUTS]
    + [("cropped", None), ("cropped", "that of the image"), ("padded", "that of the image")],
)
def test_the_gwcs_follows_a_cut(name, subsize, pair, caplog):
    (left, bottom), shape = CUTS[name]
    header = pair[0].headers["SCI"]
    sizes = {None: (0, 0), "that of the image": shape[::-1]}.get(subsize, subsize)
    exposure = changed(
        pair[0],
        shape=shape,
        primary={"SUBSIZE1": sizes[0], "SUBSIZE2": sizes[1]},
        CRPIX1=header["CRPIX1"] - left,
        CRPIX2=header["CRPIX2"] - bottom,
    )
    found, whole = wcs_of(settle_wcs(exposure)), wcs_of(pair[0])
    x, y = np.array([5.0, 12.0]), np.array([8.0, 17.0])
    np.testing.assert_array_equal(
        found.pixel_to_sky(x, y), whole.pixel_to_sky(x + left, y + bottom)
    )
    assert f"the image is {shape[1]} x {shape[0]} pixels, not {NX} x {NY}" in caplog.text
    assert f"it begins at x, y = {left}, {bottom} of that" in caplog.text
    assert len(caplog.records) == 1
    (x1, x2), (y1, y2) = found.box(shape)  # no more than image and detector
    assert x1 == max(-0.5, -0.5 - left) and x2 == min(shape[1] - 0.5, NX - 0.5 - left)
    assert y1 == max(-0.5, -0.5 - bottom) and y2 == min(shape[0] - 0.5, NY - 0.5 - bottom)


def test_a_cut_of_a_recentred_image(pair, caplog):
    """spaceKLIP moves CRPIX to the star, too: CROP_SHIFTX, CROP_SHIFTY are the pixels cut off."""
    header = pair[0].headers["SCI"]
    keywords = {"CRPIX1": header["CRPIX1"] - 4 + 1.3, "CRPIX2": header["CRPIX2"] - 3}
    keywords |= {"HIERARCH CROP_SHIFTX": 4, "HIERARCH CROP_SHIFTY": 3}
    found = wcs_of(settle_wcs(changed(pair[0], shape=(30, 32), **keywords)))
    np.testing.assert_array_equal(
        found.pixel_to_sky(9.0, 8.0), wcs_of(pair[0]).pixel_to_sky(13.0, 11.0)
    )
    assert "the FITS WCS of its header (CRPIX, CRVAL, CD) is 1.3 px from the GWCS" in caplog.text


def test_a_cut_of_which_crpix_does_not_tell(pair, caplog):
    cut = changed(pair[0], shape=(30, 32), CRPIX1=pair[0].headers["SCI"]["CRPIX1"] - 25)
    assert settle_wcs(cut).asdf_bytes == cut.asdf_bytes
    assert "do not tell where it was cut or padded; the GWCS is used as it is" in caplog.text


@pytest.mark.parametrize("by_s_region", [False, True])
def test_a_corrected_gwcs_decides_but_with_the_preset(by_s_region, pair, caplog):
    """Of this size is what tweakreg, or a user, corrects: headers and S_REGION stay."""
    both = [settle_wcs(moved(e, 20.0, 10.0), by_s_region) for e in pair]
    used = "S_REGION, as the jwst package does" if by_s_region else "the GWCS"
    assert (
        caplog.text.count(
            f"px from the outline of the GWCS; the output image is laid out by {used}"
        )
        == 2
    )
    assert (
        caplog.text.count("the FITS WCS of its header (CRPIX, CRVAL, CD) is 22.4 px from the") == 2
    )
    wcss = [wcs_of(e) for e in both]
    metas, shapes = [e.meta for e in both], [e.shape for e in both]
    layout = output_wcs(wcss, metas, shapes, by_s_region=by_s_region)
    corners = np.vstack([w.footprint(SHAPE) for w in wcss])
    x, y = layout.sky_to_pixel(*corners.T)
    ny, nx = layout.shape  # the least corner is at 0, and half a pixel is rounded
    inside = (x > -0.6) & (x < nx + 0.6) & (y > -0.6) & (y < ny + 0.6)
    assert bool(inside.all()) != by_s_region


@pytest.mark.parametrize("by", [0.7, 1.3])
def test_differences_of_less_than_a_pixel_are_no_warning(by, pair, caplog):
    settle_wcs(moved(pair[0], by, 0.0))
    assert ("px from the GWCS" in caplog.text) == (by > 1)


def test_layout_where_s_region_is_or_lacks(pair):
    """Without S_REGION, or by another one, the image is where the GWCS's own outline puts it."""
    wcss, shapes = [wcs_of(e) for e in pair], [e.shape for e in pair]
    first = output_wcs(wcss, [e.meta for e in pair], shapes)
    other = "POLYGON ICRS  10.0 9.0 10.0 9.1 10.1 9.1 10.1 9.0"
    for text in (None, other):
        metas = [dataclasses.replace(e.meta, s_region=text) for e in pair]
        found = output_wcs(wcss, metas, shapes)
        assert found.shape == first.shape
        np.testing.assert_allclose(found.crval, first.crval, atol=1e-9)
        np.testing.assert_allclose(found.crpix, first.crpix, atol=1e-4)


def test_what_is_odd_in_several_exposures_is_collected(pair, caplog):
    odd: dict = {}
    for exposure in pair:
        settle_wcs(moved(exposure, 20.0, 10.0), odd=odd)
    ((text, names),) = odd.items()
    assert "the FITS WCS of its header (CRPIX, CRVAL, CD) is 22.4 px from the GWCS" in text
    assert names == [exposure.path.name for exposure in pair] and not caplog.text
