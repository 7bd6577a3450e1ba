"""Header cards without astropy, against astropy."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucoron.io.card import RawHeader, card_comment, card_text, card_value
from gpucoron.io.exposures import read_exposure
from gpucoron.io.headers import Cards
from tests.helpers.makers import make_calints

PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200)
WORDS = st.lists(
    st.sampled_from(["POLYGON ICRS ", "1.234567890", "it's", "&", "a/b", "''", "x" * 70])
).map(" ".join)
COMMENTS = st.text("abc xyz-[]", max_size=150).map(lambda t: " ".join(t.split()))


@settings(max_examples=500, deadline=None)
@given(WORDS | st.text("ab '&/", max_size=150) | PRINTABLE)
@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_texts_come_back(value):
    text = card_text("KEYWORD", value)
    assert len(text) % 80 == 0
    assert card_value(text) == value.rstrip()


@settings(max_examples=300, deadline=None)
@given(WORDS.filter(lambda t: not t.endswith(" ")), COMMENTS)
@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_texts_are_written_as_astropy_writes_them(value, comment):
    text = card_text("KEYWORD", value, comment)
    if len(value) > 8:
        assert text == str(fits.Card("KEYWORD", value, comment))
    if len(text) > 80 and value.count("'") == 0:
        assert card_comment(text) == fits.Card.fromstring(text).comment == comment


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**62), 2**62))
def test_numbers(value):
    text = card_text("KEYWORD", value, "a comment")
    assert text == str(fits.Card("KEYWORD", value, "a comment"))
    assert card_value(text) == fits.Card.fromstring(text).value
    assert card_comment(text) == "a comment"


@pytest.mark.parametrize(
    "card",
    [
        "KEYWORD =                      / nothing",
        "KEYWORD =",
        "KEYWORD = 'abc     '",
        "KEYWORD = ''",
        "KEYWORD =                    T / yes",
        "KEYWORD =1.5D3",
        "KEYWORD = 1.E5",
        "KEYWORD =  007",
        "KEYWORD = 1E3/c",
        "KEYWORD = (1.0, 2.0)",
        "KEYWORD = 'it''s' / it's",
        "KEYWORD = - 5",
    ],
)
@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyUserWarning")
def test_odd_cards_are_read_as_astropy_reads_them(card):
    theirs = fits.Card.fromstring(card.ljust(80))
    value = None if isinstance(theirs.value, fits.card.Undefined) else theirs.value
    assert card_value(card.ljust(80)) == value
    assert type(card_value(card.ljust(80))) is type(value)
    assert card_comment(card.ljust(80)) == theirs.comment


def test_nan_is_refused_as_by_astropy():
    with pytest.raises(ValueError):
        card_text("KEYWORD", np.nan)


def test_raw_header():
    header = fits.Header([("A", 1), ("B", "x" * 100, "long"), ("A", 2), ("C", None)])
    raw = RawHeader(header.tostring(endcard=False, padding=False))
    assert raw.get("A") == 1 and raw.get("B") == "x" * 100
    assert raw.get("C", 5) is None and raw.get("D", 5) == 5 and "B" in raw and "D" not in raw
    assert raw.current is raw
    assert raw.astropy == header and raw.astropy is raw.astropy is raw.current


def test_changes_of_headers_stick(tmp_path):
    exposure = read_exposure(make_calints(tmp_path / "jw1_calints.fits"), "psf")
    assert Cards(exposure.cards()).values["TARGNAME"] == "A STAR"
    assert isinstance(exposure.primary_header, fits.Header)
    assert exposure.headers["SCI"] is exposure.headers["SCI"]
    exposure.primary_header["TARGNAME"] = "ANOTHER"
    exposure.headers["SCI"]["BUNIT"] = "Jy"
    assert Cards(exposure.cards()).values["TARGNAME"] == "ANOTHER"
    assert exposure.cards("SCI").get("BUNIT") == "Jy"
    assert exposure.cards("ABSENT") is None
    other = dataclasses.replace(exposure, primary_header=fits.Header([("TARGNAME", "THIRD")]))
    assert other.cards().get("TARGNAME") == other.primary_header["TARGNAME"] == "THIRD"
    assert other.headers["SCI"]["BUNIT"] == "Jy"


def test_reads_without_astropy(tmp_path):
    path = make_calints(tmp_path / "jw1_calints.fits")
    code = (
        "import sys; from gpucoron.io.exposures import read_exposure;"
        f"e = read_exposure({str(path)!r}, 'psf'); e.cards('SCI').get('S_REGION');"
        "print('astropy' in sys.modules, e.primary_header['TARGNAME'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "False A STAR"
