"""The WCS of exposures: every kind of GWCS is read as gwcs writes it, or refused by name."""

import io

import asdf
import gwcs
import numpy as np
import pytest
from asdf.tagged import TaggedDict
from astropy import coordinates
from astropy import units as u
from astropy.modeling import models
from gwcs import coordinate_frames as cf
from gwcs.geometry import CartesianToSpherical, SphericalToCartesian

from gpucoron.errors import ExposureError
from gpucoron.io.asdf.extension import write_asdf
from gpucoron.io.exposures import read_exposure
from gpucoron.io.wcs import OutputWcs, read_wcs

DETECTOR = cf.Frame2D(name="detector", unit=(u.pix, u.pix))
V2V3 = cf.Frame2D(name="v2v3", unit=(u.arcsec, u.arcsec))


def celestial(frame=coordinates.ICRS, **options):
    return cf.CelestialFrame(reference_frame=frame(), name="world", **options)


WORLD = celestial()
SPHERE = (
    models.Scale(1 / 3600) & models.Scale(1 / 3600)
    | SphericalToCartesian(wrap_lon_at=180)
    | models.RotationSequence3D([0.1, -0.1, 30.0, -40.0, -60.0], axes_order="zyxyz")
    | CartesianToSpherical(wrap_lon_at=360)
)
SHIFTS = models.Shift(-3.5) & models.Shift(7.25)
BENT = models.Mapping((0, 1, 0, 1)) | (
    models.Polynomial2D(2, c1_0=1.0, c2_0=1e-4) & models.Polynomial2D(2, c0_1=1.0, c1_1=1e-4)
)
Y, X = np.mgrid[-20:340:7.3, -20:340:7.7]


def distorted(first, world=WORLD, **attributes):
    wcs = gwcs.WCS([(DETECTOR, first), (V2V3, SPHERE), (world, None)])
    for name, value in attributes.items():
        setattr(wcs, name, value)
    return wcs


def content_of(wcs):
    return write_asdf({"meta": {"wcs": wcs}})


def same(wcs, content=None):
    """Assert that a GWCS is read as it is, to the last bit; return what is read."""
    ours = read_wcs(content or content_of(wcs), "x.fits")
    np.testing.assert_array_equal(ours.pixel_to_sky(X, Y), wcs(X, Y))
    sky = wcs(X, Y, with_bounding_box=False)
    np.testing.assert_array_equal(ours.pixel_to_sky(X, Y, everywhere=True), sky)
    return ours


@pytest.mark.parametrize(
    "first",
    [
        SHIFTS | BENT,
        models.AffineTransformation2D([[1.1, 0.2], [-0.3, 0.9]], [4, -5]),
        models.Polynomial1D(1, c0=1, c1=2) & models.Identity(1),
        models.Pix2Sky_TAN(),
        models.Shift(1) + models.Shift(2) & models.Identity(1),
        models.Rotation2D(30.0),
    ],
)
@pytest.mark.parametrize("box", [None, ((-0.5, 99.5), (3.25, 200.5))])
def test_transforms(first, box):
    wcs = distorted(first, bounding_box=box)
    ours = same(wcs)
    assert ours.full_box() == box
    assert ours.box((300, 200)) == (box or ((-0.5, 199.5), (-0.5, 299.5)))
    assert ours.box((10, 20)) == ((-0.5, 19.5), (3.25 if box else -0.5, 9.5))  # of a smaller image
    if box:
        assert ours.box((2, 20)) == ((-0.5, 19.5), (-0.5, 1.5))  # of one beside it


def test_parameters_with_units():
    degrees = models.Multiply(1 * u.deg / u.pix) & models.Multiply(1 * u.deg / u.pix)
    shifts = models.Shift(1 * u.pix) & models.Shift(2 * u.pix)
    wcs = read_wcs(content_of(gwcs.WCS([(DETECTOR, shifts | degrees), (WORLD, None)])), "x")
    np.testing.assert_array_equal(wcs.pixel_to_sky(3.0, 4.0), (4.0, 6.0))
    np.testing.assert_array_equal(wcs.sky_to_pixel(4.0, 6.0), (3.0, 4.0))


def test_outside_the_bounding_box():
    box = ((-0.5, 99.5), (3.25, 200.5))
    wcs = read_wcs(content_of(distorted(SHIFTS, bounding_box=box)), "x")
    for x, y in ((-9.0, 5.0), (5.0, 0.0), (np.nan, 5.0)):
        assert np.isnan(wcs.pixel_to_sky(x, y)).all()
    assert np.isfinite(wcs.pixel_to_sky(-9.0, 0.0, everywhere=True)).all()


def test_old_bounding_boxes_are_lists_y_first(shared_data):
    path = next((shared_data / "aumic_f444w").glob("*calints.fits"))
    content = read_exposure(path, "science", pixels=False).asdf_bytes
    begin = content.index(b"        bounding_box:")
    end = content.index(b"        forward:", begin)
    text = b"        bounding_box:\n        - [-0.5, 99.5]\n        - [3.5, 200.0]\n"
    old = read_wcs(content[:begin] + text + content[end:], "x")
    assert old.box((320, 320)) == ((3.5, 200.0), (-0.5, 99.5))


def test_no_inverse():
    """Polynomials alone have none: gwcs iterates, or one line says what keeps it from that."""
    wcs = distorted(BENT, bounding_box=((-0.5, 99.5), (-0.5, 99.5)))
    ours = read_wcs(content_of(wcs), "x.fits")
    try:
        wanted = wcs.invert(*wcs(30.0, 40.0), with_bounding_box=False)
    except Exception:
        with pytest.raises(ExposureError, match="^x.fits: the WCS cannot be evaluated: .*$"):
            ours.sky_to_pixel(*wcs(30.0, 40.0))
    else:
        np.testing.assert_array_equal(ours.sky_to_pixel(*wcs(30.0, 40.0)), wanted)


def test_corrected_by_tweakreg(shared_data):
    """It adds a frame v2v3corr, and a transform that shares parts with others."""
    tweakwcs = pytest.importorskip("tweakwcs", reason="tweakwcs (of jwst) is absent")
    path = next((shared_data / "nircam_small").glob("*calints.fits"))
    exposure = read_exposure(path, "science", pixels=False)
    before = read_wcs(exposure.asdf_bytes, "x")
    info = {"v2_ref": 94.3, "v3_ref": -529.0, "roll_ref": exposure.meta.roll_ref}
    corrector = tweakwcs.correctors.JWSTWCSCorrector(before.gwcs, info)
    corrector.set_correction(matrix=[[1.0, 1e-4], [-1e-4, 1.0]], shift=[0.25, -0.5])
    assert "v2v3corr" in corrector.wcs.available_frames
    ours = same(corrector.wcs)
    moved = np.subtract(ours.pixel_to_sky(60.0, 60.0), before.pixel_to_sky(60.0, 60.0)) * 3600
    assert 0.1 < np.hypot(*moved) < 1.5


def test_anchors_shared_with_other_entries():
    """And links to arrays outside, which asdf cannot follow."""
    wcs = distorted(SHIFTS | BENT)
    link = {"source": "fits:SCI,1", "datatype": "float32", "byteorder": "big", "shape": [3, 4]}
    data = TaggedDict(link, "tag:stsci.edu:asdf/core/ndarray-1.1.0")
    meta = {"before": wcs.forward_transform, "wcs": wcs}
    content = write_asdf({"a": wcs.output_frame, "data": data, "meta": meta})
    assert b"*id001" in content
    same(wcs, content)


@pytest.mark.parametrize("kind", ["zlib", "bzp2"])
def test_compressed_blocks(kind):
    wcs, buffer = distorted(SHIFTS | BENT), io.BytesIO()
    asdf.AsdfFile({"meta": {"wcs": wcs}}).write_to(buffer, all_array_compression=kind)
    assert kind.encode() in buffer.getvalue()
    same(wcs, buffer.getvalue())


def test_the_wcs_of_a_resampled_image():
    plane = OutputWcs((9, 8), (3.0, 4.0), (10.0, 5.0), (1e-5, 1e-5), ((-1.0, 0.1), (0.1, 1.0)), 0.1)
    ours = same(plane.to_gwcs())
    np.testing.assert_allclose(ours.pixel_to_sky(1.0, 2.0), plane.pixel_to_sky(1.0, 2.0), 1e-12)
    np.testing.assert_allclose(ours.sky_to_pixel(10.0, 5.0), (3.0, 4.0), atol=1e-6)


@pytest.mark.parametrize(
    ("wcs", "problem"),
    [
        (celestial(coordinates.FK5), "a WCS in fk5"),
        (celestial(coordinates.Galactic), "a WCS in galactic"),
        (celestial(unit=(u.arcsec, u.arcsec)), r"a WCS with axes \(0, 1\) in arcsec, arcsec"),
        (celestial(axes_order=(1, 0)), r"a WCS with axes \(1, 0\) in deg, deg"),
        (cf.Frame2D(name="plane"), "a WCS whose output frame is 'plane'"),
        (gwcs.WCS([(DETECTOR, models.Mapping((0,))), (V2V3, None)]), "no WCS with two axes"),
    ],
)
def test_refused_by_name(wcs, problem):
    wcs = wcs if isinstance(wcs, gwcs.WCS) else distorted(SHIFTS, wcs)
    with pytest.raises(ExposureError, match=f"x.fits: {problem} in the ASDF extension") as caught:
        read_wcs(content_of(wcs), "x.fits")
    assert "expected RA and Dec in ICRS" in str(caught.value)
