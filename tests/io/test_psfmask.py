"""The psfmask: from a file, from CRDS, built in; and masks that cannot be used."""

import dataclasses
import logging
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits

from gpucoron import io
from gpucoron.errors import MaskError
from gpucoron.io import psfmask as module
from tests.helpers.makers import alike, make_calints, make_mask, read_error

SHAPE = (6, 5)


@pytest.fixture(autouse=True)
def no_crds(monkeypatch):
    """Start without any configuration of CRDS."""
    for name in ("CRDS_PATH", "CRDS_CONTEXT", "CRDS_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mask.fits"


@pytest.fixture
def exposure(tmp_path):
    return io.read_exposure(make_calints(tmp_path / "jw1_calints.fits"), "science")


def error_of(path, shape=SHAPE):
    return read_error(MaskError, io.read_psfmask, path, shape)


def good():
    return np.linspace(0, 1, 30).reshape(SHAPE)


@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", "i2", "u8", "i8"])
def test_reads_sci_as_float64(path, dtype):
    values = np.round(good()).astype(dtype)
    mask = io.read_psfmask(make_mask(path, values), SHAPE, None)
    assert mask.dtype == np.float64 and mask.flags.c_contiguous and type(mask) is np.ndarray
    np.testing.assert_array_equal(mask, values)


def test_reads_the_primary_hdu(path):
    fits.writeto(path, good())
    np.testing.assert_array_equal(io.read_psfmask(path, SHAPE), good())


@pytest.mark.parametrize("shape", [(12, 10), (5, 6), (6, 4), (1, 6, 5)])
def test_other_shapes(path, shape):
    assert error_of(make_mask(path, np.ones(shape))) == (
        f"the psfmask has shape {shape}, but the exposures have (6, 5); expected the same (give "
        "another with --psfmask)"
    )


def with_values(*values):
    mask = good()
    mask.flat[: len(values)] = values
    return mask


NUMBERS = "expected numbers of 0 or more"


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (with_values(np.nan, np.inf, -np.inf), f"has 1 NaN and 2 infinite values, {NUMBERS}"),
        (with_values(*[-0.1] * 3), f"has 3 negative values (lowest -0.1), {NUMBERS}…"),
        (0 * good(), "is 0 everywhere and leaves no pixel to fit, expected 1 where a pixel counts"),
    ],
)
def test_values_that_make_no_mask(path, mask, expected):
    alike(error_of(make_mask(path, mask)), f"the psfmask {expected}")


def test_files_that_hold_no_mask(path, tmp_path):
    assert error_of(path) == "no such file, expected a FITS file"
    assert error_of(tmp_path) == "is a folder, expected a FITS file"
    path.write_text("not FITS, but long enough to look into")
    assert error_of(path).startswith("not a FITS file: begins with b'not FITS,'")
    fits.PrimaryHDU().writeto(path, overwrite=True)
    found = "no image in SCI or the primary HDU (found: PRIMARY"
    assert error_of(path) == f"{found}), expected one of shape (6, 5)"
    assert error_of(make_mask(path, None)).startswith(f"{found}, SCI)")
    text = fits.BinTableHDU(np.array([("a",)], [("a", "S3")]), name="SCI")
    fits.HDUList([fits.PrimaryHDU(), text]).writeto(path, overwrite=True)
    assert error_of(path) == "SCI is a table, expected an image of shape (6, 5)"
    path.write_bytes(make_mask(path, good()).read_bytes()[:5900])
    assert error_of(path).startswith("is cut short: by its header SCI ends at byte")


def test_warns_of_a_mask_for_another_coronagraph(path, exposure, caplog):
    for name, expected in (("335R", ""), ("430R", "made for CORONMSK MASK430R, but the exposures")):
        make_mask(path, good(), INSTRUME="NIRCAM", CORONMSK=f"MASK{name}")
        io.read_psfmask(path, SHAPE, exposure.meta)  # MASKA335R and MASK335R are one
        assert bool(caplog.text) == bool(expected)
    assert f"mask.fits: the psfmask was {expected} have MASKA335R" in caplog.text


REAL = {"miri_psfmask_0009": (304, 320), "nircam_psfmask_0049": (640, 640)}
REAL |= {f"nircam_psfmask_{number}": (320, 320) for number in ("0003", "0019", "0027")}


@pytest.mark.parametrize(("name", "shape"), REAL.items())
def test_real_masks(shared_data, name, shape):
    path = shared_data / "psfmask" / f"jwst_{name}.fits"
    mask = io.read_psfmask(path, shape)
    assert mask.min() >= 0 and 0.9 < mask.max() <= 1
    assert f"has shape {shape}, but the exposures have (128, 128)" in error_of(path, (128, 128))


# finding


def test_find_given(path, exposure):
    with pytest.raises(MaskError, match="no such file"):
        io.find_psfmask(path, exposure)
    mask, name, how = io.find_psfmask(make_mask(path, good()), exposure)
    np.testing.assert_array_equal(mask, good())
    assert (name, how) == (str(path), f"given: {path}")


def test_find_built_in_does_not_import_crds(exposure, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "crds", None)  # an import would raise
    with caplog.at_level(logging.INFO, "gpucoron"):
        mask, name, how = io.find_psfmask(None, exposure)
    assert mask.shape == SHAPE and mask.dtype == np.float64 and (mask == 1).all()
    assert (name, how) == ("N/A", "built in: all ones (CRDS is not configured (no CRDS_PATH))")
    assert "psfmask: none given and CRDS is not configured" in caplog.text
    assert "built in: all ones, every pixel counts" in caplog.text


def test_find_without_context_or_package(exposure, monkeypatch, tmp_path):
    monkeypatch.setenv("CRDS_PATH", str(tmp_path))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "the package crds is not installed" in io.find_psfmask(None, exposure)[2]
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "crds", None)
    assert "no CRDS_SERVER_URL, no context in its cache" in io.find_psfmask(None, exposure)[2]


def fake_crds(monkeypatch, tmp_path, answer):
    """Put a stand-in in place of crds; return the list of its calls."""
    calls = []

    def getreferences(parameters, **options):
        calls.append((parameters, options))
        if isinstance(answer, BaseException):
            raise answer
        return {"psfmask": str(answer)}

    monkeypatch.setenv("CRDS_PATH", str(tmp_path))
    monkeypatch.setenv("CRDS_SERVER_URL", "https://crds.invalid")
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "crds", SimpleNamespace(getreferences=getreferences))
    return calls


def test_find_by_crds(path, exposure, monkeypatch, tmp_path):
    calls = fake_crds(monkeypatch, tmp_path, make_mask(path, good()))
    mask, name, how = io.find_psfmask(None, exposure)
    np.testing.assert_array_equal(mask, good())
    assert (name, how) == ("crds://mask.fits", "chosen by CRDS: mask.fits")
    ((parameters, options),) = calls
    assert options == {"reftypes": ["psfmask"], "observatory": "jwst"}
    assert parameters["META.INSTRUMENT.CORONAGRAPH"] == "MASKA335R"
    assert parameters["META.OBSERVATION.TIME"] == "03:04:05.000"
    assert all(isinstance(v, str) for v in parameters.values())


def test_find_by_crds_of_another_shape(path, exposure, monkeypatch, tmp_path):
    fake_crds(monkeypatch, tmp_path, make_mask(path, np.ones((9, 9))))
    with pytest.raises(MaskError, match="give another with --psfmask"):
        io.find_psfmask(None, exposure)


@pytest.mark.parametrize(
    ("answer", "how", "logged"),
    [
        ("NOT FOUND n/a", "CRDS has none for this instrument mode", ""),
        ("/cache/N/A", "CRDS has none for this instrument mode", ""),
        ("/nowhere/x.fits", "x.fits is not in the CRDS cache", "CRDS chose x.fits, which is not"),
        (ValueError("bad\ntext"), "CRDS failed", "gave no answer: ValueError bad\n"),
        (SystemExit(1), "CRDS failed", "gave no answer: SystemExit 1"),
    ],
)
def test_crds_that_does_not_help(exposure, monkeypatch, tmp_path, caplog, answer, how, logged):
    fake_crds(monkeypatch, tmp_path, answer)
    mask, name, found = io.find_psfmask(None, exposure)
    assert (mask == 1).all() and (name, found) == ("N/A", f"built in: all ones ({how})")
    assert logged in caplog.text


HEADER = {"observatory": "JWST", "sha1sum": "x", "description": "x", "derived_from": "x"}
PARKEY = (
    ("META.INSTRUMENT.FILTER", "META.INSTRUMENT.CORONAGRAPH", "META.SUBARRAY.NAME"),
    ("META.OBSERVATION.DATE", "META.OBSERVATION.TIME"),
)
SELECTOR = (
    "Match({('F444W', 'MASKA335R', 'SUB320A335R'): UseAfter({"
    "'2020-01-01 00:00:00': 'jwst_nircam_psfmask_0099.fits'})})"
)


def make_crds_cache(cache, mask):
    """Lay out the smallest cache of CRDS that has a psfmask for one filter."""
    context = "jwst_0001.pmap"
    folders = [cache / "config/jwst", cache / "mappings/jwst", cache / "references/jwst/nircam"]
    for folder in folders:
        folder.mkdir(parents=True)
    config, mappings, references = folders
    server = {f"{k}_context": context for k in ("operational", "latest", "edit")}
    server |= {"observatory": "jwst", "bad_files": "", "bad_files_list": [], "status": "cache"}
    server |= {"last_synced": "never", "force_remote_mode": False, "connected": False}
    (config / "server_config").write_text(repr(server))
    names = [context, "jwst_nircam_0001.imap", "jwst_nircam_psfmask_0001.rmap"]
    reference = {"filekind": "PSFMASK", "classes": ("Match", "UseAfter"), "parkey": PARKEY}
    headers = [
        {"mapping": "PIPELINE", "parkey": ("META.INSTRUMENT.NAME",)},
        {"mapping": "INSTRUMENT", "parkey": ("REFTYPE",)},
        {"mapping": "REFERENCE", **reference},
    ]
    selectors = [{"NIRCAM": names[1]}, {"psfmask": names[2]}, SELECTOR]
    for name, header, selector in zip(names, headers, selectors, strict=True):
        header |= HEADER | {"name": name, "instrument": "NIRCAM"}
        (mappings / name).write_text(f"header = {header}\nselector = {selector}\n")
    make_mask(references / "jwst_nircam_psfmask_0099.fits", mask)


SCRIPT = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.getaddrinfo = refuse
from gpucoron import io
for name in sys.argv[1:]:
    mask, name, how = io.find_psfmask(None, io.read_exposure(name, "science"))
    print(name, how, mask.sum())
"""


def test_real_crds_without_the_network(tmp_path):
    pytest.importorskip("crds", reason="the optional package crds is not installed")
    make_crds_cache(tmp_path / "cache", good())
    one = make_calints(tmp_path / "a_calints.fits")
    other = make_calints(tmp_path / "b_calints.fits", primary={"FILTER": "F410M"})
    env = {"CRDS_PATH": str(tmp_path / "cache"), "CRDS_IGNORE_MAPPING_CHECKSUM": "1"}
    env |= {"PATH": "", "HOME": str(tmp_path)}
    words = [sys.executable, "-c", SCRIPT, one, other]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "crds://jwst_nircam_psfmask_0099.fits chosen by CRDS: jwst_nircam_psfmask_0099.fits 15.0",
        "N/A built in: all ones (CRDS failed) 30.0",
    ], done.stderr
    assert "Traceback" not in done.stderr


def test_exposure_without_keywords_can_ask_crds(path, exposure, monkeypatch, tmp_path):
    calls = fake_crds(monkeypatch, tmp_path, make_mask(path, good()))
    bare = dataclasses.replace(exposure, meta=io.ExposureMeta(), primary_header=fits.Header())
    io.find_psfmask(None, bare)
    assert calls[0][0] == {"META.TELESCOPE": "JWST"}


@pytest.mark.parametrize(
    "padding", [np.s_[:2, :], np.s_[:, -1:], np.s_[[0, 1, -1], :], np.s_[:, [0, -1]]]
)
def test_padding_of_a_mask_counts_as_0(path, padding, caplog):
    mask = good()
    mask[padding] = np.nan
    with caplog.at_level(logging.WARNING):
        found = io.read_psfmask(make_mask(path, mask), mask.shape)
    np.testing.assert_array_equal(found, np.nan_to_num(mask))
    count = np.isnan(mask).sum()
    assert f"the psfmask is NaN in {count} pixels at its edges, which count as 0" in caplog.text


# ---- its hole


@pytest.mark.parametrize(
    ("coronmsk", "sci", "star", "moved_by"),
    [
        ("MASKA335R", {"CRPIX1": 24.0, "CRPIX2": 17.0}, None, (4, -3)),
        ("MASKA335R", {"STARCENX": 22.0, "STARCENY": 21.0, "CRPIX1": 1.0}, None, (2, 1)),
        ("MASKA335R", {"CRPIX1": 24.0, "CRPIX2": 17.0}, (18.0, 25.0), (-2, 5)),
        ("MASKALWB", {"CRPIX1": 24.0, "CRPIX2": 17.0}, None, (0, -3)),
    ],
)
def test_the_hole_is_moved_onto_the_star(coronmsk, sci, star, moved_by, path, tmp_path, caplog):
    mask = np.ones((40, 40))
    mask[15:24, 15:24] = 0.0  # its middle is at 20, 20 from 1
    calints = tmp_path / "jw1_calints.fits"
    make_calints(calints, (1, 40, 40), primary={"CORONMSK": coronmsk}, sci=sci)
    exposure = io.read_exposure(calints, "science")
    make_mask(path, mask)
    as_it_is = io.find_psfmask(path, exposure, star=star)
    np.testing.assert_array_equal(as_it_is[0], mask)
    assert ("--psfmask-center star moves it there" in caplog.text) == (np.hypot(*moved_by) > 2)
    found, name, how = io.find_psfmask(path, exposure, star=star, center="star")
    np.testing.assert_array_equal(found, np.roll(mask, moved_by[::-1], (0, 1)))
    assert name == str(path) and how.endswith(
        "moved by x, y = {}, {} px onto the star".format(*moved_by)
    )


def test_no_psfmask_to_move(exposure, caplog):
    mask, _, _ = io.find_psfmask(None, exposure, center="star")
    assert np.all(mask == 1) and "there is no psfmask" in caplog.text
