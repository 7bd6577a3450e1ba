import io

import asdf
import numpy as np
import pytest

from gpucoron.io.asdf_tree import asdf_blob, meta_from_headers, wcs_blob
from gpucoron.io.exposures import read_exposure
from tests.io.product_tools import Grid

LINKS = [
    ("data", "SCI", np.dtype("f4"), (2, 3, 4)),
    ("hdrtab", "HDRTAB", np.dtype([("a", "S3"), ("b", "f8"), ("c", "?")]), (2,)),
]


def opened(blob):
    return asdf.open(io.BytesIO(blob), memmap=False)


@pytest.mark.parametrize("name", ["nircam_small", "miri_4qpm", "aumic_f444w"])
def test_gwcs_passes_unchanged(shared_data, name):
    path = sorted((shared_data / name).glob("*calints.fits"))[0]
    source = read_exposure(path, "science").asdf_bytes
    blob = asdf_blob(source, LINKS[:1], {"exposure": {"nints": 9}, "wcsinfo": {"crpix1": 1.5}})
    with opened(source) as before, opened(blob) as after:
        one, two = before["meta"]["wcs"], after["meta"]["wcs"]
        x, y = np.array([0.0, 10.0, 63.2]), np.array([5.0, 7.5, 63.9])
        np.testing.assert_array_equal(one(x, y), two(x, y))
        np.testing.assert_array_equal(one.invert(*one(x, y)), two.invert(*two(x, y)))
        meta = after["meta"]
        assert meta["exposure"]["nints"] == 9 and meta["wcsinfo"]["crpix1"] == 1.5
        assert meta["wcsinfo"]["lonpole"] == before["meta"]["wcsinfo"]["lonpole"]  # no keyword
        assert "crval1" not in meta["wcsinfo"] and "filename" not in meta
        assert after["data"]._source == "fits:SCI,1" and "err" not in after
        assert "_fits_hash" not in after


def test_logs_pass(shared_data):
    path = sorted((shared_data / "nircam_small").glob("*calints.fits"))[0]
    source = read_exposure(path, "science").asdf_bytes
    logged = source.replace(b"\ndata: ", b"\ncal_logs: {step: ['a: b', c]}\ndata: ", 1)
    with opened(asdf_blob(logged, (), {})) as tree:
        assert tree["cal_logs"] == {"step": ["a: b", "c"]}
    with opened(asdf_blob(logged, (), {}, keep_metadata=False)) as tree:
        assert "cal_logs" not in tree and "lonpole" not in tree["meta"].get("wcsinfo", {})


def test_unusual_layouts_go_through_asdf():
    wcs = Grid().to_gwcs()
    shared = {"a": [1, 2]}
    buffer = io.BytesIO()
    asdf.AsdfFile({"meta": {"other": shared, "again": shared, "wcs": wcs}, "top": shared}).write_to(
        buffer
    )
    for blob in (buffer.getvalue(), wcs_blob(wcs)):
        with opened(asdf_blob(blob, LINKS, {})) as tree:
            np.testing.assert_allclose(tree["meta"]["wcs"](3.0, 4.0), wcs(3.0, 4.0), rtol=1e-15)


def test_no_blob_and_no_wcs():
    with opened(asdf_blob(None, LINKS, {"telescope": "JWST"})) as tree:
        assert tree["meta"] == {"telescope": "JWST"}
    buffer = io.BytesIO()
    asdf.AsdfFile({"meta": {"model_type": "X"}}).write_to(buffer)
    with opened(asdf_blob(buffer.getvalue(), (), {"telescope": "JWST"})) as tree:
        assert tree["meta"]["telescope"] == "JWST" and "model_type" not in tree["meta"]


def test_awkward_text_survives():
    title = "a: 'b' #c & *d [e] {f}, \"g\" %h 012 1e5 yes ~ 2023-01-01"
    values = {
        "program": {"title": title, "pi_name": "2023-01-01", "category": "yes"},
        "a": {"b": True, "c": 1e-14, "d": 3, "e": "012"},
    }
    with opened(asdf_blob(None, (), values)) as tree:
        assert tree["meta"] == values


def test_meta_from_headers():
    meta = meta_from_headers(
        {
            "": {"NINTS": 3, "S_KLIP": "COMPLETE", "NOT_JWST": 1},
            "SCI": {"BUNIT": "MJy/sr"},
            "ERR": {"BUNIT": "Jy"},
        }
    )
    assert meta == {
        "exposure": {"nints": 3},
        "cal_step": {"klip": "COMPLETE"},
        "bunit_data": "MJy/sr",
        "bunit_err": "Jy",
    }


@pytest.mark.parametrize(
    "rest",
    [b"  a: " + b"[" * 100_000 + b"]" * 100_000, b"  a: [unfinished", b"  a: !<tag:nobody> {b: 1"],
)
def test_what_cannot_be_read_is_left_out(shared_data, caplog, rest):
    path = sorted((shared_data / "nircam_small").glob("*calints.fits"))[0]
    source = read_exposure(path, "science").asdf_bytes
    bad = source.replace(b"\nmeta:\n", b"\nmeta:\n" + rest + b"\n", 1)
    with opened(asdf_blob(bad, LINKS, {"telescope": "JWST"})) as tree:
        assert tree["meta"] == {"telescope": "JWST"}
    assert "cannot be read, so that products do not inherit it" in caplog.text
