import io

import asdf
import numpy as np
import pytest
from astropy.io import fits
from stdatamodels.jwst import datamodels

from gpucoron.io.asdf.extension import asdf_extension, meta_from_headers, write_asdf
from gpucoron.io.asdf.guard import tagged_tree
from gpucoron.io.exposures import read_exposure
from gpucoron.io.keywords import keywords
from gpucoron.io.products import Provenance, write_crfints
from tests.io.product_tools import grid

LINKS = [
    ("data", "SCI", np.dtype("f4"), (2, 3, 4)),
    ("hdrtab", "HDRTAB", np.dtype([("a", "S3"), ("b c", "f8"), ("c", "?")]), (2,)),
]


def opened(content):
    return asdf.open(io.BytesIO(content), memmap=False)


@pytest.fixture(params=["nircam_small", "miri_4qpm", "aumic_f444w"])
def source(request, shared_data):
    path = sorted((shared_data / request.param).glob("*calints.fits"))[0]
    return read_exposure(path, "science", pixels=False).asdf_bytes


def _dtype(kind):
    return kind if isinstance(kind, str) else f"S{kind[1]}"


def arrays_of(content):
    """Links as the arrays of an extension would give them."""
    links = []
    for name, node in tagged_tree(content).items():
        if isinstance(node, dict) and "source" in node:
            kind = node["datatype"]
            if not isinstance(kind, str):
                kind = [(c["name"], _dtype(c["datatype"])) for c in kind]
            extension = node["source"].removeprefix("fits:").removesuffix(",1")
            links.append((name, extension, np.dtype(kind), tuple(node["shape"])))
    return links


def test_passed_on_where_the_arrays_are_the_same(source):
    links, values = arrays_of(source), tagged_tree(source)["meta"] | {"telescope": "?"}
    values.pop("wcs")
    assert len(links) >= 6
    assert asdf_extension(source, links, values) == source
    assert asdf_extension(source, links, {}) != source
    for others in (links[1:], [*links, LINKS[1]], [(*links[0][:3], (1, 1)), *links[1:]]):
        assert asdf_extension(source, others, values) != source


def test_other_arrays_get_a_tree_with_the_same_gwcs(source):
    values = {"exposure": {"nints": 9}, "wcsinfo": {"crpix1": 1.5}}
    content = asdf_extension(source, LINKS, values)
    with opened(source) as before, opened(content) as after:
        one, two = before["meta"]["wcs"], after["meta"]["wcs"]
        x, y = np.array([0.0, 10.0, 63.2]), np.array([5.0, 7.5, 63.9])
        np.testing.assert_array_equal(one(x, y), two(x, y))
        np.testing.assert_array_equal(one.invert(*one(x, y)), two.invert(*two(x, y)))
        assert set(after["meta"]) == {"exposure", "wcsinfo", "wcs"}
        assert after["meta"]["exposure"]["nints"] == 9
        assert "err" not in after and "_fits_hash" not in after
    assert arrays_of(content) == [
        LINKS[0],
        ("hdrtab", "HDRTAB", np.dtype([("a", "S3"), ("b c", "f8"), ("c", "i1")]), (2,)),
    ]


@pytest.mark.filterwarnings("error")
def test_the_gwcs_of_a_product():
    output = grid()
    wcs = output.to_gwcs()
    with opened(asdf_extension(output, (), {"telescope": "JWST"})) as tree:
        tree.validate()
        again = tree["meta"]["wcs"]
        np.testing.assert_array_equal(again(3.0, 4.0), wcs(3.0, 4.0))
        assert tree["meta"]["telescope"] == "JWST"
        assert again.bounding_box == wcs.bounding_box and again.array_shape == grid().shape
        assert type(again.forward_transform).__name__ == "FITSImagingWCSTransform"


def test_no_source_and_no_wcs(caplog):
    for source in (None, write_asdf({"meta": {"model_type": "X"}})):
        with opened(asdf_extension(source, LINKS, {"telescope": "JWST"})) as tree:
            assert tree["meta"] == {"telescope": "JWST"}
    assert "no WCS with two axes" in caplog.text


def test_awkward_text_survives():
    title = "a: 'b' #c & *d [e] {f}, \"g\" %h 012 1e5 yes ~ 2023-01-01"
    values = {
        "program": {"title": title, "pi_name": "2023-01-01", "category": "yes"},
        "a": {"b": True, "c": 1e-14, "d": 3, "e": "012"},
    }
    with opened(asdf_extension(None, (), values)) as tree:
        assert tree["meta"] == values


def test_meta_from_headers():
    primary = {"NINTS": 3, "NGROUPS": 2**64, "S_KLIP": "COMPLETE", "NOT_JWST": 1}
    headers = {"": primary, "SCI": {"BUNIT": "MJy/sr"}, "ERR": {"BUNIT": "Jy"}}
    steps = {"exposure": {"nints": 3}, "cal_step": {"klip": "COMPLETE"}}
    assert meta_from_headers(headers) == {**steps, "bunit_data": "MJy/sr", "bunit_err": "Jy"}


@pytest.mark.parametrize(
    "rest",
    [b"  a: " + b"[" * 100_000 + b"]" * 100_000, b"  a: [unfinished", b"  ? [1, 2]\n  : 3"],
)
def test_what_cannot_be_read_is_left_out(source, caplog, rest):
    bad = source.replace(b"\nmeta:\n", b"\nmeta:\n" + rest + b"\n", 1)
    with opened(asdf_extension(bad, LINKS, {"telescope": "JWST"})) as tree:
        assert tree["meta"] == {"telescope": "JWST"}
    assert "cannot be read, so that products do not inherit it" in caplog.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("removed", [None, "PI_NAME"])
@pytest.mark.parametrize("name", ["nircam_small", "miri_4qpm", "aumic_f444w"])
def test_stdatamodels_takes_keywords_from_the_headers(name, removed, shared_data, tmp_path):
    """Whatever the input's ASDF extension says of them, which is passed on or not."""
    path = sorted((shared_data / name).glob("*calints.fits"))[0]
    exposure, product = read_exposure(path, "science"), tmp_path / "a_crfints.fits"
    exposure.primary_header["TARGNAME"] = "ANOTHER"
    if removed:
        del exposure.primary_header[removed]
    write_crfints(product, exposure, exposure.stack, Provenance("0", asn_id="c1", asn_table="t"))
    passed_on = read_exposure(product, "science", pixels=False).asdf_bytes == exposure.asdf_bytes
    assert passed_on == (name != "aumic_f444w" and not removed)  # it has extensions of its own
    with datamodels.open(product) as model, fits.open(product) as hdus:
        assert model.meta.filename == product.name and model.meta.target.catalog_name
        assert model.meta.cal_step.outlier_detection == "COMPLETE"
        assert (model.meta.program.pi_name is None) == bool(removed)
        for row in keywords():
            header = hdus[row.hdu or "PRIMARY"].header if (row.hdu or "PRIMARY") in hdus else {}
            if row.keyword in header:
                assert model[f"meta.{row.attribute}"] == header[row.keyword], row.keyword
        np.testing.assert_array_equal(model.data, exposure.stack.data)
