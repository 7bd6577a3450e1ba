"""Exposures: every kind of file that is read, and what each bad one is told."""

import warnings

import numpy as np
import pytest
from astropy.io import fits

from gpucoron import io
from gpucoron.errors import ExposureError
from tests.helpers.makers import (
    ASDF,
    PRIMARY,
    SCI,
    alike,
    arrays,
    edit_card,
    make_calints,
    read_error,
)

VARIANCES = ["VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"]
NAMES = {"data": "SCI"} | {name.lower(): name for name in ["ERR", "DQ", *VARIANCES]}


@pytest.fixture(autouse=True)
def no_warnings_leak():
    """Let every Python warning fail a test: reading reports by the log alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jw01234001001_03102_00001_nrcalong_calints.fits"


def error_of(path, exptype="science"):
    return read_error(ExposureError, io.read_exposure, path, exptype)


def made(path, exptype="science", **options):
    """Read an exposure as `make_calints` makes it."""
    return io.read_exposure(make_calints(path, **options), exptype)


def test_everything_is_read_as_it_is(path):
    want = arrays()
    exposure = io.read_exposure(str(make_calints(path)), "PSF")
    for field, name in NAMES.items():
        got = getattr(exposure.stack, field)
        np.testing.assert_array_equal(got, want[name])
        assert type(got) is np.ndarray and got.flags.c_contiguous and got.dtype.isnative
        assert got.dtype == (np.uint32 if name == "DQ" else np.float32)
    assert (exposure.path, exposure.exptype) == (path, "psf")
    assert exposure.root == "jw01234001001_03102_00001_nrcalong"
    assert exposure.stack.sources == ((exposure.root, 1), (exposure.root, 2))
    np.testing.assert_array_equal(exposure.area, np.ones((6, 5), np.float32))
    assert exposure.int_times["integration_number"].tolist() == [1, 2]
    assert exposure.int_times.dtype["int_mid_MJD_UTC"] == np.dtype("=f8")
    assert exposure.asdf_bytes == ASDF
    assert exposure.primary_header["TARGNAME"] == "A STAR"
    assert list(exposure.headers) == ["SCI", "ERR", "DQ", "AREA", *VARIANCES, "INT_TIMES", "ASDF"]


def test_meta(path):
    meta = made(path).meta
    assert meta == io.read_meta(path)
    assert (meta.instrument, meta.filter, meta.coronmsk) == ("NIRCAM", "F444W", "MASKA335R")
    assert (meta.s_region, meta.bunit, meta.program) == (SCI["S_REGION"], "MJy/sr", "01234")
    assert (meta.exposure_time, meta.measurement_time, meta.vparity) == (20.0, 19.0, -1)
    assert type(meta.roll_ref) is float and type(meta.vparity) is int


def test_meta_that_is_missing_blank_or_elsewhere(path):
    primary = {"PUPIL": None, "CHANNEL": " ", "XPOSURE": 3, "VPARITY": 1.0}
    make_calints(path, primary=primary, sci={"XPOSURE": None})
    edit_card(path, "TMEASURE", "")
    edit_card(path, "VPARITY", "", hdu="SCI")
    meta = io.read_meta(path)
    assert (meta.pupil, meta.channel, meta.measurement_time) == (None,) * 3
    assert (meta.exposure_time, meta.vparity) == (3.0, 1)


TYPES = [("TMEASURE", "long", "number"), ("TMEASURE", True, "number"), ("VPARITY", 2.5, "integer")]


@pytest.mark.parametrize(("keyword", "value", "kind"), TYPES)
def test_meta_of_the_wrong_type(path, keyword, value, kind):
    make_calints(path, primary={keyword: value}, sci={"VPARITY": None})
    article = "an" if kind == "integer" else "a"
    assert error_of(path) == f"keyword {keyword} is {value!r}, expected {article} {kind}"


def test_a_cal_image_is_one_integration(tmp_path):
    path = make_calints(tmp_path / "jw1_nrcalong_cal.fits", (6, 5), drop=["INT_TIMES"])
    exposure = io.read_exposure(path, "science")
    assert (exposure.stack.shape, exposure.root) == ((1, 6, 5), "jw1_nrcalong")
    np.testing.assert_array_equal(exposure.stack.dq[0], arrays((6, 5))["DQ"])


def test_optional_parts_may_be_absent_or_empty(path):
    absent = made(path, drop=["AREA", *VARIANCES, "INT_TIMES", "ASDF"])
    empty = made(path, replace=dict.fromkeys(["AREA", *VARIANCES]), rows=0)
    for exposure in (absent, empty):
        assert exposure.area is exposure.int_times is None
        assert all(getattr(exposure.stack, name.lower()) is None for name in VARIANCES)
    assert absent.asdf_bytes is None and empty.headers["VAR_FLAT"]["NAXIS"] == 0


@pytest.mark.parametrize("dtype", [">f4", ">f8", "i2"])
def test_any_type_of_number(path, dtype):
    values = np.arange(60).reshape(2, 6, 5).astype(dtype)
    stack = made(path, replace={"SCI": values, "ERR": values}).stack
    np.testing.assert_array_equal(stack.err, values.astype(np.float32))
    assert stack.data.dtype == np.float32


def test_scaled_integers_with_blank(path):
    values = np.arange(60, dtype=np.int16).reshape(2, 6, 5)
    make_calints(path, replace={"SCI": values}, sci={"BLANK": 7})
    with fits.open(path, mode="update", do_not_scale_image_data=True) as opened:
        opened["SCI"].header.update({"BSCALE": 0.5, "BZERO": 100.0})
    data = io.read_exposure(path, "psf").stack.data
    assert np.isnan(data.ravel()[7]) and data.ravel()[8] == 104 and np.isnan(data).sum() == 1


def test_values_are_not_judged(path):
    sci = arrays()["SCI"].astype(np.float64)
    sci[0], sci[1, 0, :3] = np.nan, (np.inf, -np.inf, 1e300)
    data = made(path, replace={"SCI": sci}).stack.data
    assert np.isnan(data[0]).all() and np.isposinf(data[1, 0, [0, 2]]).all()
    assert np.isneginf(data[1, 0, 1]) and np.isfinite(data[1, 1:]).all()


@pytest.mark.parametrize("dtype", ["u4", "i4", "u1", "i2", "u2", "i8", "u8", "f4", "sign"])
def test_dq_of_any_type(path, dtype):
    bits = np.arange(60).reshape(2, 6, 5)
    bits = np.full_like(bits, -(2**31), "i4") if dtype == "sign" else bits.astype(dtype)
    dq = made(path, replace={"DQ": bits}).stack.dq
    assert dq.dtype == np.uint32
    np.testing.assert_array_equal(dq, bits.view("u4") if dtype == "sign" else bits)


@pytest.mark.parametrize(
    "stored, scale, zero, value",
    [
        (np.int64(7 - 2**63), 1, 2**63, 7),  # unsigned 64-bit integers, as FITS has them
        (np.int64(2**32 - 1 - 2**63), 1, 2.0**63, 2**32 - 1),
        (np.int64(2**62 + 5), 1, -(2**62), 5),
        (np.int32(-1), 1, 2**31, 2**31 - 1),
        (np.int16(3), 2**16 + 1, 0, 3 * 2**16 + 3),
        (np.int16(-32768), 1, 2**31 + 32769, 2**31 + 1),
        (np.uint8(255), 2**24 - 1, 1, 255 * (2**24 - 1) + 1),
    ],
)
def test_scaled_integers_are_exact(path, stored, scale, zero, value):
    make_calints(path, replace={"DQ": np.full((2, 6, 5), stored)})
    with fits.open(path, mode="update", do_not_scale_image_data=True, uint=False) as opened:
        opened["DQ"].header.update({"BSCALE": scale, "BZERO": zero})
    np.testing.assert_array_equal(io.read_exposure(path, "psf").stack.dq, np.full((2, 6, 5), value))


@pytest.mark.parametrize("dtype", ["u8", "i8"])
def test_integers_of_64_bits_as_pixels(path, dtype):
    values = np.arange(60, dtype=dtype).reshape(2, 6, 5)
    values[0, 0] += 2**40
    data = made(path, replace={"SCI": values}).stack.data
    np.testing.assert_array_equal(data, values.astype(np.float32))


@pytest.mark.parametrize("scale, zero", [(0.5, 0), (1, 0.5), (1, -(2**63))])
def test_integers_that_cannot_be_exact(path, scale, zero):
    make_calints(path, replace={"SCI": np.full((2, 6, 5), -(2**60) - 1)})
    with fits.open(path, mode="update", do_not_scale_image_data=True, uint=False) as opened:
        opened["SCI"].header.update({"BSCALE": scale, "BZERO": zero})
    assert "SCI has 64-bit integers with BSCALE" in error_of(path)


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, 2.0**32, 2**32, np.uint64(2**63)])
def test_dq_that_is_no_bits(path, bad):
    make_calints(path, replace={"DQ": np.full((2, 6, 5), bad)})
    assert error_of(path).startswith("DQ holds values that are not unsigned 32-bit integers")


def test_no_dq_means_good_pixels_and_a_warning(path, caplog):
    dq = made(path, drop=["DQ"]).stack.dq
    assert dq.dtype == np.uint32 and not dq.any()
    assert f"{path.name}: has no DQ data; taking all pixels as good" in caplog.text


def test_int_times_of_other_lengths_and_kinds(path, caplog):
    assert len(made(path, rows=35).int_times) == 35
    assert not caplog.text
    assert len(made(path, rows=1).int_times) == 1
    assert "INT_TIMES has 1 rows for 2 integrations" in caplog.text
    edit_card(make_calints(path), "TFORM2", "'1PD(3)  '", hdu="INT_TIMES")
    assert io.read_exposure(path, "psf").int_times is None
    assert "leaving out INT_TIMES: column 2 is '1PD(3)', expected plain numbers" in caplog.text


def test_area_of_another_shape_is_left_out(path, caplog):
    assert made(path, replace={"AREA": np.ones((9, 9))}).area is None
    assert "leaving out AREA of shape (9, 9), expected (6, 5)" in caplog.text


def test_asdf_as_an_image(path):
    old = fits.ImageHDU(np.frombuffer(ASDF, np.uint8), name="ASDF")
    assert made(path, drop=["ASDF"], extra=[old]).asdf_bytes == ASDF


# files that cannot be used

TABLE = fits.BinTableHDU(np.zeros(3, [("a", "f4")]), name="SCI")
SECOND = fits.ImageHDU(np.zeros((6, 5)), name="SCI", ver=2)
NO_ERR = "has no ERR data (found: PRIMARY, SCI, …expected errors of shape (2, 6, 5) as SCI has"
AXES = "expected (nints, ny, nx) or (ny, nx)…"
ONE = "expected at least one pixel and one integration…"


def of_shape(*shape, name="SCI", dtype=np.float32):
    return {"replace": {name: np.zeros(shape, dtype)}}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"drop": ["SCI", "ASDF"]},
            f"has no SCI extension (found: PRIMARY, ERR, DQ, AREA, {', '.join(VARIANCES)}, "
            "INT_TIMES), expected a _calints or _cal file",
        ),
        (of_shape(2, 3, 6, 5), f"SCI has 4 axes (2, 3, 6, 5), {AXES}"),
        (of_shape(5), f"SCI has 1 axes (5,), {AXES}"),
        (of_shape(0, 6, 5), f"SCI has shape (0, 6, 5), {ONE}"),
        ({"replace": {"SCI": None}}, "SCI is empty (NAXIS = 0), expected (nints, ny, nx)…"),
        ({"drop": ["SCI"], "extra": [TABLE]}, "SCI is a table, expected an image"),
        ({"extra": [SECOND]}, "has 2 SCI extensions, expected one"),
        ({"drop": ["ERR"]}, NO_ERR),
        ({"replace": {"ERR": None}}, NO_ERR),
        *(
            (
                of_shape(2, 6, 4, name=name, dtype=np.uint32 if name == "DQ" else np.float32),
                f"{name} has shape (2, 6, 4), expected (2, 6, 5) as SCI has",
            )
            for name in ["ERR", "DQ"]
        ),
    ],
)
def test_hdus_that_cannot_be_used(path, options, expected):
    alike(error_of(make_calints(path, **options)), expected)


NOT_FITS = {
    b"": "not a FITS file: is empty, expected b'SIMPLE  ='",
    b"\x89PNG\r\n" * 1000: r"not a FITS file: begins with b'\x89PNG…",
    b"\x1f\x8b" + bytes(100): "is compressed with gzip and damaged…",
}


def test_not_fits(path):
    assert error_of(path) == "no such file, expected a FITS file"
    assert error_of(path.parent) == "is a folder, expected a FITS file"
    for content, expected in NOT_FITS.items():
        path.write_bytes(content)
        alike(error_of(path), expected)
    expected = "exptype is 'background', expected 'science' or 'psf'"
    assert error_of(make_calints(path), "background") == expected


def test_cut_anywhere(path):
    """Cut at any byte, a file is never read as whole, unless whole extensions are gone."""
    content = make_calints(path).read_bytes()
    with fits.open(path) as opened:
        ends = [h.fileinfo()["datLoc"] + h.fileinfo()["datSpan"] for h in opened]
        padding = {
            h.name: range(h.fileinfo()["datLoc"] + h.size, end)
            for h, end in zip(opened, ends, strict=True)
        }
    for size in range(80, len(content), 977):
        if size in ends or any(size in r for r in padding.values()):
            continue  # cut between extensions
        path.write_bytes(content[:size])
        text = error_of(path)
        assert text.startswith("is cut short")
        assert f"file has {size} bytes" in text or f"of {size} has no END" in text
    path.write_bytes(content[: ends[1] - 1400])
    assert error_of(path).startswith("has no ERR data")  # SCI is there but for its padding


def test_cut_message_names_the_extension(path):
    content = make_calints(path).read_bytes()
    with fits.open(path) as opened:
        start = opened["DQ"].fileinfo()["datLoc"]
    path.write_bytes(content[: start + 100])
    ends = f"by its header DQ ends at byte {start + 240}, but the file has {start + 100} bytes"
    assert error_of(path) == f"is cut short: {ends}"


def test_padding_that_is_missing_gives_a_warning(path, caplog):
    content = make_calints(path, drop=["ASDF", "INT_TIMES"]).read_bytes()
    path.write_bytes(content[:-2000])
    assert io.read_exposure(path, "psf").stack.var_flat is not None
    assert "lacks the padding after the last extension, VAR_FLAT" in caplog.text


def test_bytes_after_the_end(path, caplog):
    content = make_calints(path).read_bytes()
    path.write_bytes(content + bytes(2880))
    io.read_exposure(path, "psf")
    assert not caplog.text
    path.write_bytes(content + b"rubbish")
    io.read_exposure(path, "psf")
    assert "ignoring 7 bytes after the last extension, ASDF" in caplog.text


def test_cards_that_are_not_fits_are_dropped(path, caplog):
    edit_card(make_calints(path), "TARGNAME", "= 'unfinished")
    edit_card(path, "FILTER", "'F4\x0044W'")
    exposure = io.read_exposure(path, "psf")
    assert (exposure.meta.target, exposure.meta.filter) == (None, None)
    assert "ignoring header card TARGNAME, which is not FITS" in caplog.text
    assert "ignoring header card FILTER, which is not FITS" in caplog.text
    assert len(exposure.primary_header.tostring()) % 2880 == 0


def test_unreadable_by_permission(path, monkeypatch):
    make_calints(path)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    assert error_of(path) == "cannot be read: Permission denied"


def test_makers_cover_the_keywords():
    """Keep the small files honest: each keyword that meta reads is in them."""
    keywords = {f.metadata["keyword"] for f in io.ExposureMeta.__dataclass_fields__.values()}
    assert keywords <= set(PRIMARY) | set(SCI)


def test_the_visit_by_header_or_name(tmp_path):
    """VISIT_ID counts, whatever the file is called; names tell where it is absent or says N/A."""
    path = make_calints(tmp_path / "jw01234002001_03106_00001_nrcalong_calints.fits")
    assert io.read_exposure(path, "psf").visit == "01234001001"
    for value in ("N/A", None):
        with fits.open(path, mode="update") as opened:
            opened[0].header["VISIT_ID"] = value
        assert io.read_exposure(path, "psf").visit == "01234002001"


def test_without_pixels_everything_else_is_read_and_checked(tmp_path):
    path = make_calints(tmp_path / "jw1_nrcalong_calints.fits")
    whole, light = (io.read_exposure(path, "psf", pixels=p) for p in (True, False))
    assert light.stack is None and light.shape == whole.stack.shape == whole.shape
    assert light.meta == whole.meta and light.asdf_bytes == whole.asdf_bytes
    np.testing.assert_array_equal(light.load().data, whole.load().data)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 1000])
    assert path.stat().st_size % 2880
    with pytest.raises(ExposureError):
        io.read_exposure(path, "psf", pixels=False)
    with pytest.raises(ExposureError):
        light.load()


def test_variances_that_do_not_go_with_sci_are_left_out(path, caplog):
    wrong = {"VAR_POISSON": (1, 6, 5), "VAR_RNOISE": (1, 6, 5), "VAR_FLAT": (6, 4)}
    found = made(path, replace={n: np.ones(s, np.float32) for n, s in wrong.items()}).stack
    assert found.var_poisson is found.var_rnoise is found.var_flat is None
    shapes = "(1, 6, 5), expected (2, 6, 5) as SCI has"
    assert f"{path.name}: leaving out VAR_POISSON, VAR_RNOISE of shape {shapes}" in caplog.text
    assert "leaving out VAR_FLAT of shape (6, 4), expected (2, 6, 5) as SCI has" in caplog.text
    assert caplog.text.count("leaving out") == 2


@pytest.mark.parametrize("sci", [(6, 5), (1, 6, 5)])
def test_an_image_is_like_a_cube_of_one(path, sci, caplog):
    """Tools that coadd write SCI, ERR and DQ as images or as cubes, and leave the others."""
    others = (1, *sci) if len(sci) == 2 else sci[1:]
    arrays = {n: np.full(others, 4, np.float32) for n in ("ERR", *VARIANCES)}
    arrays |= {"SCI": np.ones(sci, np.float32), "DQ": np.full(others, 4, np.uint32)}
    found = made(path, replace=arrays, rows=1).stack
    for array in (found.err, found.dq, found.var_flat):
        np.testing.assert_array_equal(array, np.full((1, 6, 5), 4))
    assert "leaving out" not in caplog.text
