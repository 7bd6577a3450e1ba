"""Names of products: what is left of the names of exposures and of products in associations."""

import pytest

from gpucoron import io
from gpucoron.io.names import product_root
from tests.helpers.makers import make_asn

ROOTS = {
    "d/jw1_nrcalong_calints.fits": "jw1_nrcalong",
    **{f"jw1_nrcalong_{s}.fits": "jw1_nrcalong" for s in ("cal", "rate", "rateints", "crfints")},
    **{"star.fits": "star", "star_calints": "star", "star_v1.2_calints.fits": "star_v1.2"},
    **{"j_calints.FITS": "j", "j_CALINTS.fits": "j_CALINTS", "j_calints.fits.gz": "j"},
    **{"j_c1001_crfints.fits": "j_c1001", "j_calints_cal.fits": "j_calints"},
    **{"j-cal.fits": "j", "cal.fits": "cal", "_cal.fits": "_cal", "j_outlier_detection.fits": "j"},
}
PRODUCT_ROOTS = {
    **{"a": "a", "a_i2d": "a", "a_psfsub": "a", "a_psfstack_i2d": "a_psfstack", "a_I2D": "a_I2D"},
    **{
        "a_c1001": "a_c1001",
        "sub/a": "a",
        "../a": "a",
        "a_i2d.fits": "a",
        "a.b": "a",
        "psfsub": "psfsub",
    },
}


@pytest.mark.parametrize(("path", "root"), ROOTS.items())
def test_exposure_root(path, root):
    assert io.exposure_root(path) == root


@pytest.mark.parametrize(("name", "root"), PRODUCT_ROOTS.items())
def test_product_root(name, root, tmp_path, caplog):
    assert product_root(name) == root
    make_asn(tmp_path / "asn.json", [("a.fits", "science"), ("b.fits", "psf")], name=name)
    assert io.read_association(tmp_path / "asn.json").products[0].name == root
    expected = f"asn.json: the name of product 1 is {name}; its products are named {root}_..."
    assert (expected in caplog.text) == (name != root) == bool(caplog.records)


def test_names_are_those_of_jwst():
    pytest.importorskip("jwst", reason="the jwst package is not installed")
    from jwst.lib.suffix import KNOW_SUFFIXES
    from jwst.pipeline import Coron3Pipeline

    pipeline = Coron3Pipeline()
    own = [f"j_{suffix}.fits" for suffix in KNOW_SUFFIXES]
    for path in [*own, *(p for p in ROOTS if not p.endswith(".gz") and p != "j-cal.fits")]:
        named = pipeline.make_output_path(basepath=path, suffix="psfsub", acid="c1001")
        assert named == f"{io.exposure_root(path)}_c1001_psfsub.fits"
    for name in [*PRODUCT_ROOTS, *(f"a_{suffix}" for suffix in KNOW_SUFFIXES)]:
        pipeline.output_file = name
        assert pipeline.make_output_path(suffix="i2d") == f"{product_root(name)}_i2d.fits"
