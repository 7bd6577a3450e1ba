"""WCS of exposures and of their combination, against gwcs, astropy, stcal and jwst."""

import dataclasses
import io
import logging

import asdf
import numpy as np
import pytest
from astropy.io import fits

from gpucoron.errors import ExposureError, ParameterError
from gpucoron.io.asdf.extension import write_asdf
from gpucoron.io.exposures import ExposureMeta, read_exposure
from gpucoron.io.wcs import OutputWcs, output_wcs, pixel_map, read_wcs
from gpucoron.io.wcs.sregion import combine_regions, format_region, parse_region
from gpucoron.io.wcs.tan import tangent_plane

SETS = {
    "nircam_small": "jw0900100[23]*calints.fits",
    "miri_4qpm": "jw0900100[45]*calints.fits",
    "aumic_f444w": "jw0118400[12]*calints.fits",
    "awkward": "jw0900100[234]*calints.fits",
}
PLANE = OutputWcs(
    (90, 120), (60.3, 41.7), (150.2, -30.4), (1.7e-5, 1.7e-5), ((-0.8, 0.6), (0.6, 0.8)), 0.0612
)


@pytest.fixture(scope="module", params=SETS)
def exposures(request, shared_data):
    paths = sorted((shared_data / request.param).glob(SETS[request.param]))
    assert paths
    return [read_exposure(path, "science") for path in paths]


@pytest.fixture(scope="module")
def pair(shared_data):
    paths = sorted((shared_data / "nircam_small").glob(SETS["nircam_small"]))
    return [read_exposure(path, "science") for path in paths]


def layout(exposures, **keywords):
    wcss = [read_wcs(e.asdf_bytes, e.path.name) for e in exposures]
    metas, shapes = [e.meta for e in exposures], [e.stack.shape for e in exposures]
    return wcss, output_wcs(wcss, metas, shapes, **keywords)


@pytest.mark.filterwarnings("ignore")
def test_reads_what_asdf_reads(exposures):
    exposure = exposures[0]
    wcs = read_wcs(exposure.asdf_bytes, exposure.path.name)
    with asdf.open(io.BytesIO(exposure.asdf_bytes)) as file:
        whole = file["meta"]["wcs"]
        y, x = np.mgrid[-3:90:7.5, -3:80:9.5]
        np.testing.assert_array_equal(wcs.pixel_to_sky(x, y), whole(x, y))
        expected = whole(x, y, with_bounding_box=False)
    np.testing.assert_array_equal(wcs.pixel_to_sky(x, y, everywhere=True), expected)
    # the inverse polynomials of the distortion files are good to about 0.02 px
    np.testing.assert_allclose(wcs.sky_to_pixel(*expected), (x, y), atol=0.05)
    assert wcs == read_wcs(bytes(bytearray(exposure.asdf_bytes)), "again")
    assert read_wcs(exposure.asdf_bytes, "x").gwcs is wcs.gwcs


def test_different_pointings_differ(pair):
    a, b = (read_wcs(e.asdf_bytes, e.path.name) for e in pair)
    assert a != b and len({a, b, a}) == 2


NO_WCS = write_asdf({"meta": {"a": 1}})


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (None, "no ASDF extension, so no WCS; expected one from assign_wcs"),
        (b"", "no ASDF extension"),
        (b"nonsense", r"the ASDF extension cannot be read: \w+"),
        (NO_WCS, r"no WCS with two axes in the ASDF extension \(meta.wcs\)"),
    ],
)
def test_no_wcs(blob, message):
    with pytest.raises(ExposureError, match=f"x.fits: {message}") as caught:
        read_wcs(blob, "x.fits")
    assert "\n" not in str(caught.value)


def test_cut_short(pair):
    blob = pair[0].asdf_bytes
    for size in (200, len(blob) // 2, len(blob) - 700):
        with pytest.raises(ExposureError, match="x.fits: "):
            read_wcs(blob[:size], "x.fits")


def test_layout_equals_stcal(exposures):
    stcal = pytest.importorskip("stcal.alignment", reason="stcal (of jwst) is absent")
    wcss, ours = layout(exposures)
    meta = exposures[0].meta
    info = {name: getattr(meta, name) for name in ("ra_ref", "dec_ref", "roll_ref", "vparity")}
    info["v3yangle"] = meta.v3i_yang
    regions = [e.meta.s_region for e in exposures]
    theirs = stcal.util.wcs_from_sregions(regions, wcss[0].gwcs, info, pscale_ratio=1.0)
    transform = theirs.forward_transform
    assert ours.shape == theirs.array_shape
    np.testing.assert_allclose(ours.crval, transform.crval.value, atol=1e-12)
    np.testing.assert_allclose(ours.crpix, transform.crpix.value, atol=1e-7)
    np.testing.assert_allclose(ours.cdelt, transform.cdelt.value, rtol=1e-14)
    np.testing.assert_allclose(ours.pc, transform.pc.value, atol=1e-15)
    assert ours.box() == theirs.bounding_box.bounding_box(order="F")
    region = stcal.combine_sregions(
        regions, theirs.forward_transform.forward, intersect_footprint=theirs.footprint()
    )
    mine, expected = parse_region(ours.s_region)[0], parse_region(region)[0]
    assert mine.shape == expected.shape
    assert min(np.abs(np.roll(mine, k, axis=0) - expected).max() for k in range(len(mine))) < 2e-9


def test_pixel_map_equals_stcal(exposures):
    stcal = pytest.importorskip("stcal.resample.utils", reason="stcal (of jwst) is absent")
    wcss, output = layout(exposures)
    shape = exposures[0].stack.shape
    mapped = pixel_map(wcss[0], output, shape)
    assert mapped.dtype == np.float64 and mapped.shape == (*shape[1:], 2)
    expected = stcal.calc_pixmap(wcss[0].gwcs, output.to_gwcs(), shape[1:])
    np.testing.assert_allclose(mapped, expected, atol=2e-8)  # rounding of the rotations in gwcs


def test_pixel_map_is_nan_outside_the_bounding_box(pair):
    wcss, output = layout(pair)
    shape = pair[0].stack.shape
    ny, nx = shape[1:]
    wider = pixel_map(wcss[0], output, (ny + 3, nx + 2))
    assert np.isnan(wider[ny:]).all() and np.isnan(wider[:, nx:]).all()
    np.testing.assert_array_equal(wider[:ny, :nx], pixel_map(wcss[0], output, shape))


@pytest.mark.parametrize("dec", [-30.4, 0.0, 89.99, -90.0])
def test_closed_form_equals_gwcs_and_astropy(dec):
    plane = dataclasses.replace(PLANE, crval=(0.001, dec))
    gwcs = plane.to_gwcs()
    y, x = np.mgrid[-5:90:11.3, -7:120:13.1]
    sky = gwcs(x, y, with_bounding_box=False)
    np.testing.assert_allclose(plane.sky_to_pixel(*sky), (x, y), atol=2e-7)
    ra, dec_out = plane.pixel_to_sky(x, y)
    separation = np.hypot(*tangent_plane(ra, dec_out, *sky))
    assert separation.max() < 1e-11
    np.testing.assert_allclose(plane.sky_to_pixel(ra, dec_out), (x, y), atol=2e-7)
    assert np.isnan(plane.sky_to_pixel(plane.crval[0] + 180.0, -dec)).all()  # behind


def test_header_cards_mean_the_same_to_astropy():
    from astropy.wcs import WCS

    header = fits.Header([card for card in PLANE.to_header_cards()])
    y, x = np.mgrid[0:90:11.3, 0:120:13.1]
    sky = WCS(header).all_pix2world(x, y, 0)
    np.testing.assert_allclose(sky, PLANE.pixel_to_sky(x, y), atol=1e-11)
    assert list(header)[:4] == ["RADESYS", "WCSAXES", "CRPIX1", "CRPIX2"]


def test_area_follows_the_scale(pair):
    _, one = layout(pair)
    _, half = layout(pair, pixel_scale_ratio=0.5)
    _, absolute = layout(pair, pixel_scale=0.05)
    assert half.pixel_area_sr == pytest.approx(one.pixel_area_sr / 4)
    assert half.pixel_scale_ratio == 0.5
    assert absolute.pixel_area_arcsec2 == pytest.approx(0.0025)
    assert absolute.pixel_scale_ratio == pytest.approx(0.05 / one.pixel_scale, rel=1e-3)
    assert one.pixel_area_sr == pytest.approx(pair[0].meta.pixar_sr, rel=1e-3)


def test_mean_pixel_area(pair):
    wcs = read_wcs(pair[0].asdf_bytes, "x")
    y, x = np.mgrid[0:127, 0:127] + 0.5
    h = 0.01
    ra0, dec0 = pair[0].meta.ra_ref, pair[0].meta.dec_ref
    (xe, xn), (xf, xm), (ye, yn), (yf, ym) = (
        tangent_plane(*wcs.pixel_to_sky(x + dx, y + dy, everywhere=True), ra0, dec0)
        for dx, dy in ((h, 0), (-h, 0), (0, h), (0, -h))
    )
    jacobian = ((xe - xf) * (yn - ym) - (xn - xm) * (ye - yf)) / (2 * h) ** 2
    expected = abs(np.mean(jacobian)) * np.deg2rad(1) ** 2
    assert wcs.mean_pixel_area((128, 128)) == pytest.approx(expected, rel=2e-6)


def test_requested_geometry(pair):
    _, north = layout(pair, rotation=0.0)
    assert north.pc == ((-1.0, 0.0), (0.0, 1.0))
    _, placed = layout(pair, crpix=(40, 50), crval=(150.2, -30.4), output_shape=(100, 120))
    assert placed.shape == (120, 100)
    np.testing.assert_allclose(placed.sky_to_pixel(150.2, -30.4), (40, 50), atol=1e-9)


def test_missing_keywords_come_from_the_gwcs(pair, caplog):
    _, known = layout(pair)
    bare = [dataclasses.replace(e, meta=ExposureMeta()) for e in pair]
    with caplog.at_level(logging.INFO):
        _, found = layout(bare)
    assert "no polygon in S_REGION; its footprint is taken from the GWCS" in caplog.text
    assert "orientation taken from the GWCS" in caplog.text
    assert "pixel scale taken at the middle" in caplog.text
    np.testing.assert_allclose(found.crval, known.crval, atol=1e-6)
    np.testing.assert_allclose(found.pc, known.pc, atol=5e-3)
    assert found.pixel_scale == pytest.approx(known.pixel_scale, rel=2e-3)
    assert np.abs(np.subtract(found.shape, known.shape)).max() <= 2
    assert len(parse_region(found.s_region)) == 1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"crval": (10.0, 95.0)}, r"crval is \(10.0, 95.0\), expected a declination"),
        ({"crval": (330.0, 30.4)}, "expected a position less than 90 degrees away"),
        ({"output_shape": (10, 1)}, r"the output image would have shape \(1, 10\)"),
        ({"pixel_scale": 3600.0}, "the output image would have shape"),
        ({"output_wcs_file": "/no.asdf"}, "/no.asdf: no such file, expected an ASDF file"),
    ],
)
def test_parameter_errors(pair, keywords, message):
    with pytest.raises(ParameterError, match=message) as caught:
        layout(pair, **keywords)
    assert "\n" not in str(caught.value)


def write(path, **tree):
    asdf.AsdfFile(tree).write_to(path)
    return str(path)


def test_output_wcs_file(pair, tmp_path):
    _, wanted = layout(pair, rotation=30.0, pixel_scale=0.05)
    path = write(tmp_path / "a.asdf", wcs=wanted.to_gwcs(), pixel_scale=0.05)
    _, ours = layout(pair, output_wcs_file=path)
    for name in ("shape", "crpix", "crval", "cdelt", "pc", "pixel_scale"):
        assert getattr(ours, name) == getattr(wanted, name)
    nominal = np.sqrt(pair[0].meta.pixar_sr) * 180 / np.pi * 3600
    assert ours.pixel_scale_ratio == pytest.approx(0.05 / nominal)
    _, smaller = layout(pair, output_wcs_file=path, output_shape=(90, 80))
    assert smaller.shape == (80, 90)


def test_output_wcs_file_of_other_kinds(pair, tmp_path):
    import gwcs
    from astropy.modeling import models

    _, wanted = layout(pair)
    simple = wanted.to_gwcs()
    parts = (
        models.Shift(-wanted.crpix[0]) & models.Shift(-wanted.crpix[1])
        | models.AffineTransformation2D(matrix=wanted.pc)
        | models.Scale(wanted.cdelt[0]) & models.Scale(wanted.cdelt[1])
        | models.Pix2Sky_TAN()
        | models.RotateNative2Celestial(*wanted.crval, 180.0)
    )

    def with_frames(transform):
        return gwcs.WCS([(simple.input_frame, transform), (simple.output_frame, None)])

    size = {"pixel_area": wanted.pixel_scale**2, "pixel_shape": list(wanted.shape[::-1])}
    path = write(tmp_path / "b.asdf", wcs=with_frames(parts), **size)
    _, ours = layout(pair, output_wcs_file=path)
    assert ours.shape == wanted.shape
    assert ours.pixel_scale == pytest.approx(wanted.pixel_scale)
    np.testing.assert_allclose(ours.pixel_to_sky(7, 9), wanted.pixel_to_sky(7, 9), atol=1e-11)

    bent = models.Polynomial2D(2, c1_0=1, c2_0=1e-5), models.Polynomial2D(2, c0_1=1)
    bent = models.Mapping((0, 1, 0, 1)) | bent[0] & bent[1] | parts
    shape, exposed = {"array_shape": [10, 10]}, read_wcs(pair[0].asdf_bytes, "x").gwcs
    for tree, message in (
        ({"wcs": with_frames(parts)}, "no array_shape, pixel_shape or bounding_box"),
        ({"wcs": exposed, **shape}, "expected a TAN projection of the sky"),
        ({"wcs": with_frames(bent), **shape}, "not a TAN projection without distortion"),
        ({"something": 1}, "no WCS with two axes under 'wcs'"),
    ):
        path = write(tmp_path / "d.asdf", **tree)
        with pytest.raises(ParameterError, match=message):
            layout(pair, output_wcs_file=path)


def test_parse_region():
    text = "POLYGON ICRS  1.0 2.0 3.0 4.0 5.0 -6.0 POLYGON ICRS 7 8 9 10 11 12 13 14"
    first, second = parse_region(text)
    np.testing.assert_array_equal(first, [[1, 2], [3, 4], [5, -6]])
    assert second.shape == (4, 2)
    assert format_region([first]) == (
        "POLYGON ICRS  1.000000000 2.000000000 3.000000000 4.000000000 5.000000000 -6.000000000"
    )
    for bad in (None, "", "CIRCLE ICRS 1 2 3"):
        assert parse_region(bad) == []
    for bad in ("1 2 3", "a b c d e f", "nan 1 2 3 4 5"):
        assert parse_region(f"POLYGON ICRS {bad}") == []


def square(x, y, side=10.0, turn=0.0):
    c, s = np.cos(turn) * side / 2, np.sin(turn) * side / 2
    return np.array([(c - s, s + c), (c + s, s - c), (s - c, -s - c), (-c - s, c - s)]) + (x, y)


def joined(*regions, box=((-0.5, 99.5), (-0.5, 99.5))):
    text = combine_regions(regions, box, lambda x, y: (x, y), lambda x, y: (x, y))
    return parse_region(text)


def shoelace(polygon):
    x, y = polygon.T
    return 0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))


@pytest.mark.parametrize(
    ("regions", "areas"),
    [
        *(([square(20, 20)] * k, [100.0]) for k in (1, 3)),
        ([square(20, 20), square(25, 23)], [200.0 - 5 * 7]),
        ([square(20, 20), square(50, 50)], [100.0, 100.0]),
        ([square(20, 20), square(30, 20)], [200.0]),
        ([square(20, 20), square(25, 20), square(30, 20)], [200.0]),
        ([square(20, 20), square(20, 20, 4.0)], [100.0]),
        ([square(0, 0)], [5.5 * 5.5]),
        ([square(0, 0), square(0, 3)], [5.5 * 8.5]),
        ([square(20, 20), square(20, 20, turn=np.pi / 4)], [100.0 * (4 - 2 * np.sqrt(2))]),
        ([square(200, 200)], []),
    ],
)
def test_union(regions, areas):
    found = joined(*regions)
    assert sorted(-shoelace(p) for p in found) == pytest.approx(sorted(areas), abs=1e-6)


def test_union_of_many_rolls_equals_sampling():
    rng = np.random.default_rng(3)
    regions = [square(*rng.uniform(30, 70, 2), 40, turn) for turn in rng.uniform(0, 2, 9)]
    y, x = np.mgrid[0:100:0.25, 0:100:0.25] + 0.125
    inside = np.zeros(x.shape, dtype=bool)
    for region in regions:
        edges = zip(region, np.roll(region, -1, axis=0), strict=True)
        inside |= np.all(
            [(x - a[0]) * (b[1] - a[1]) - (y - a[1]) * (b[0] - a[0]) > 0 for a, b in edges], axis=0
        )
    outer = sum(-shoelace(p) for p in joined(*regions))
    assert outer == pytest.approx(inside.sum() / 16, rel=5e-3)
