from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version

from gpucoron.io.blend import blend, count_pointings, header_table, product_times
from gpucoron.io.keywords import keyword_order, keywords
from tests.io import keyword_facts

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    Version(version("stdatamodels")) < Version("6.0"),
    reason="the table is that of stdatamodels 6.0; an older one is installed",
)
def test_table_agrees_with_installed_stdatamodels():
    stored = keyword_facts.TARGET
    assert stored == ROOT / "gpucoron" / "io" / "keywords.json"
    assert stored.read_text() == keyword_facts.text(), "run tests/io/keyword_facts.py"


def test_every_rule_is_known():
    from gpucoron.io.blend import _RULES

    assert {k.rule for k in keywords()} - {""} <= set(_RULES)
    assert {k.type for k in keywords()} == set("snib")
    assert keyword_order("SCI")["CRPIX1"] < keyword_order("SCI")["CRPIX2"]


def times(begin, end, *numbers):
    """The keywords of an exposure's times, `numbers` for its start, middle and end."""
    date, time = begin.split("T")
    dates = {"DATE-BEG": begin, "DATE-OBS": date, "TIME-OBS": time, "DATE-END": end}
    return dates | dict(zip(("EXPSTART", "EXPMID", "EXPEND"), numbers, strict=True))


def headers(**changes):
    primary = {
        **times("2023-02-25T23:59:00.000", "2023-02-26T00:01:00.000", 10.0, 11.0, 12.0),
        **{"EFFEXPTM": 100.0, "NINTS": 3, "INTSTART": 1, "INTEND": 3},
        **{"FILTER": "F410M", "DETECTOR": "NRCALONG", "PROGRAM": "09001"},
        **dict.fromkeys("OBSERVTN VISIT VISITGRP SEQ_ID ACT_ID EXPOSURE".split(), "1"),
        "IS_PSF": False,
    }
    return {"": {**primary, **changes}, "SCI": {"XPOSURE": 100.0, "BUNIT": "MJy/sr"}}


def later(**changes):
    second = times("2023-02-26T00:05:00.000", "2023-02-26T00:09:00.000", 20.0, 22.0, 24.0)
    return headers(**second, **{"ACT_ID": "2"} | changes)


def test_rules():
    out = blend([later(FILTER="F444W"), headers()])
    primary = out[""]
    assert primary["EXPSTART"] == 10.0 and primary["EXPEND"] == 24.0 and primary["EXPMID"] == 16.5
    assert primary["EFFEXPTM"] == 200.0 and out["SCI"]["XPOSURE"] == 200.0
    assert primary["FILTER"] == "MULTIPLE" and primary["DETECTOR"] == "NRCALONG"
    assert primary["DATE-BEG"].startswith("2023-02-25") and primary["INTEND"] == 3
    assert "NINTS" not in primary and "BUNIT" not in out["SCI"]


def test_missing_and_undefined_values_do_not_count():
    from astropy.io.fits.card import Undefined

    second = later(EFFEXPTM=Undefined())
    del second[""]["EXPSTART"]
    out = blend([second, headers()])
    assert out[""]["EFFEXPTM"] == 100.0 and out[""]["EXPSTART"] == 10.0


def test_product_times_over_midnight():
    out = product_times([later(), headers()], 7)[""]
    assert (out["DATE-OBS"], out["TIME-OBS"]) == ("2023-02-25", "23:59:00.000")
    assert (out["NINTS"], out["INTSTART"], out["INTEND"]) == (7, 1, 7)
    assert "FILTER" not in out
    assert "INTSTART" not in product_times([{"": {"NINTS": 1}}], 2)[""]


def test_pointings():
    assert count_pointings([headers(), headers(), later()]) == 2
    assert count_pointings([{"": {}}, {"": {}}, {"": {}}]) == 3


def test_header_table():
    second = later(PUPIL="MASKRND", NGROUPS=5)
    table = header_table([headers(), second])
    assert table.dtype["FILTER"] == "S5" and table.dtype["NINTS"] == np.int64
    assert table.dtype["IS_PSF"].kind == "b" and table.dtype["EFFEXPTM"] == np.float64
    assert table["BUNIT"].tolist() == [b"MJy/sr"] * 2
    assert table["PUPIL"].tolist() == [b"nan", b"MASKRND"]
    assert np.isnan(table["NGROUPS"][0]) and table["NGROUPS"][1] == 5
    assert "CRPIX1" not in table.dtype.names


def test_blend_as_jwst_does(shared_data):
    pytest.importorskip("jwst", reason="the jwst package is not installed")
    from jwst.model_blender import ModelBlender
    from stdatamodels.jwst import datamodels

    from gpucoron.io.exposures import read_exposure
    from gpucoron.io.product_headers import input_headers

    paths = sorted((shared_data / "nircam_small").glob("*_03108_*calints.fits"))
    blender, result = ModelBlender(), datamodels.ImageModel((4, 4))
    for path in paths:
        with datamodels.open(path) as model:
            blender.accumulate(model)
    blender.finalize_model(result)
    ours = [input_headers(read_exposure(p, "science")) for p in paths]
    flat = result.to_flat_dict()
    blended = blend(ours)
    for row in keywords():
        if row.rule and row.keyword in blended.get(row.hdu, {}):
            assert flat[f"meta.{row.attribute}"] == blended[row.hdu][row.keyword], row.keyword
    table = header_table(ours)
    assert table.dtype.names == result.hdrtab.dtype.names
    for name in table.dtype.names:
        theirs = result.hdrtab[name]
        if theirs.dtype.kind == "f":  # theirs have the ASDF tree's last digit
            np.testing.assert_allclose(table[name], theirs, rtol=1e-13)
        else:
            mine = table[name]
            mine = np.char.decode(mine) if mine.dtype.kind == "S" else mine
            np.testing.assert_array_equal(mine, theirs)
