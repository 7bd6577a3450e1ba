"""Names of products: the standard one, and those of several products."""

import logging
from types import SimpleNamespace

import pytest

from gpucoron import io
from gpucoron.errors import AssociationError
from gpucoron.io.exposures import ExposureMeta
from tests.io.test_association import GOOD, GOOD2, asn_of


@pytest.fixture
def asn_path(tmp_path):
    return tmp_path / "jw_asn.json"


def meta_of(instrument="NIRCAM", filter="F444W", pupil="MASKRND", coronmsk="MASKA335R", **more):
    given = {"subarray": "SUB320A335R", "program": "01184", "target": "V* AU Mic"} | more
    return ExposureMeta(
        instrument=instrument, filter=filter, pupil=pupil, coronmsk=coronmsk, **given
    )


MIRI = meta_of("MIRI", "F1140C", None, "4QPM_1140", subarray="MASK1140")
UNNAMED = {"program": None, "target": None}


@pytest.mark.parametrize(
    ("asn", "meta", "expected"),
    [
        ({}, meta_of(), "jw10005-c1001_t001_nircam_f444w-maskrnd-sub320a335r"),
        (UNNAMED, meta_of(), "jw01184-c1001_vaumic_nircam_f444w-maskrnd-sub320a335r"),
        ({"target": "3"}, meta_of(subarray="FULL"), "jw10005-c1001_t003_nircam_f444w-maskrnd"),
        ({}, MIRI, "jw10005-c1001_t001_miri_f1140c-mask1140"),
        ({}, meta_of(pupil="F405N"), "jw10005-c1001_t001_nircam_f405n-f444w-sub320a335r"),
        ({}, meta_of(pupil=None, subarray=None), "jw10005-c1001_t001_nircam_f444w-maska335r"),
        (UNNAMED, ExposureMeta(), "jw00000-c1001_t000_unknown_clear"),
    ],
)
def test_standard_product_name(asn, meta, expected):
    given = {"program": "10005", "asn_id": "c1001", "target": "t001"} | asn
    assert io.standard_product_name(SimpleNamespace(**given), meta) == expected


def test_product_names(asn_path, caplog):
    asn = io.read_association(asn_of(asn_path, (GOOD, "mine"), (GOOD2,)))
    with caplog.at_level(logging.WARNING, "gpucoron"):
        names = io.product_names(asn, [meta_of()] * 2)
    assert names == ("mine", "jw01234-c1001_t001_nircam_f444w-maskrnd-sub320a335r")
    assert f"product 2 has no name; using the standard one, {names[1]}" in caplog.text


def test_product_names_that_come_out_the_same(asn_path):
    asn = io.read_association(asn_of(asn_path, (GOOD,), (GOOD2,)))
    with pytest.raises(AssociationError, match="products 1 and 2 would both be named jw01234-"):
        io.product_names(asn, [meta_of()] * 2)
