"""Named liars among FITS files: what each claims, and the one line that says so."""

import os

import numpy as np
import pytest

from gpucoron.errors import ExposureError, MaskError
from gpucoron.io.exposures import read_exposure, read_meta
from gpucoron.io.psfmask import read_psfmask
from tests.fuzz.bounds import bounded, refused
from tests.fuzz.hostile_fits import BLOCK, joined, originals, parts, with_card
from tests.helpers.tiny_sets import SHAPE

INT_TIMES = "INT_TIMES"


def sound():
    """A good exposure, taken apart."""
    return parts(originals()[0])


def changed(name="SCI", **values):
    """Return a good exposure with cards of one HDU replaced."""
    hdus = sound()
    starts = tuple(f"EXTNAME = '{name}{end}".encode() for end in (" ", "'"))
    for hdu in hdus:
        if any(card.startswith(starts) for card in hdu[0]):
            for keyword, value in values.items():
                hdu[0] = with_card(hdu[0], keyword, value)
    return joined(hdus)


def with_cards(*cards):
    hdus = sound()
    hdus[1][0] += cards
    return joined(hdus)


def endless(n, card=b""):
    """The first header without an END, and n more cards."""
    header = originals()[0][:BLOCK].replace(b"END     ", b"COMMENT ")
    return header + card.ljust(80) * n + b"END".ljust(80) * (n > 0)


def many_extensions():
    cards = (b"XTENSION= 'IMAGE   '", b"BITPIX  = %20d" % 8, b"NAXIS   = %20d" % 0, b"END")
    return originals()[0] + b"".join(c.ljust(80) for c in cards).ljust(BLOCK) * 1001


RICE = {"ZIMAGE": "T", "ZCMPTYPE": "'RICE_1'"}
TABLE = {"XTENSION": "'BINTABLE'", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 36}
BEYOND = "more than any file holds"
LIARS = {  # cards of SCI, or what makes the file
    "NAXIS1 of 10^14": ({"NAXIS1": 10**14}, "is cut short: by its header SCI ends at"),
    "product beyond 64 bits": ({"NAXIS1": 10**9, "NAXIS2": 10**9}, BEYOND),
    "999 axes": ({"NAXIS": 999}, "NAXIS999 of SCI is missing, expected an integer of 0"),
    "999 long axes": ({"NAXIS": 999} | {f"NAXIS{i}": 10**16 for i in range(1, 1000)}, BEYOND),
    "1000 axes": ({"NAXIS": 1000}, "NAXIS of SCI is 1000, expected an integer from 0 to 999"),
    "negative axis": ({"NAXIS1": -40}, "NAXIS1 of SCI is -40, expected an integer of 0 or more"),
    "axis no integer": ({"NAXIS1": 5.5}, "NAXIS1 of SCI is 5.5, expected an integer of 0 or more"),
    "axis no number": ({"NAXIS1": "'40'"}, "NAXIS1 of SCI is '40'"),
    "axis of 60 digits": ({"NAXIS1": "9" * 60}, "NAXIS1 of SCI is 9999"),
    "PCOUNT of 10^16": ({"PCOUNT": 10**16}, "is cut short: by its header SCI ends"),
    "PCOUNT negative": ({"PCOUNT": -5}, "PCOUNT of SCI is -5"),
    "PCOUNT no number": ({"PCOUNT": "'x'"}, "PCOUNT of SCI is 'x', expected an integer of 0"),
    "GCOUNT 0": ({"GCOUNT": 0}, "GCOUNT of SCI is 0, expected an integer of 1 or more"),
    "GCOUNT of 10^17": ({"GCOUNT": 10**17}, "is cut short"),
    "BITPIX 12": ({"BITPIX": 12}, "BITPIX of SCI is 12, expected 8, 16, 32, 64, -32 or -64"),
    "BITPIX -64": ({"BITPIX": -64}, "is cut short|damaged|ERR"),
    "BSCALE a text": ({"BSCALE": "'1'"}, "BSCALE of SCI is '1', expected a number"),
    "BZERO a text": (lambda: changed("DQ", BZERO="'much'"), "BZERO of DQ is 'much', expected a nu"),
    "BZERO infinite": ({"BZERO": "1E400"}, "BZERO of SCI is inf, expected a number"),
    "DQ of halves": (
        lambda: changed("DQ", BZERO="0.5"),
        "DQ holds values that are not unsigned 32-bit",
    ),
    "two SCI": (lambda: joined([*sound(), sound()[1]]), "has 2 SCI extensions"),
    "an infinite integer": ({"VPARITY": "1E400"}, "VPARITY is inf, expected a num"),
    "a number that is a text": ({"PIXAR_A2": "'big'"}, "PIXAR_A2 is 'big', expected a number"),
    "no END": (lambda: endless(0), "has no END"),
    "no END in 30 MB": (lambda: endless(400_000, b"COMMENT x"), "has no END"),
    "100 cards of noise": (lambda: with_cards(*[b"\xff" * 80] * 100), "more than 50 cards that"),
    "1001 extensions": (many_extensions, "has more than 1000 extensions"),
    "gzip": (lambda: b"\x1f\x8b\x08\x00" + bytes(100), "is compressed with gzip"),
    "tile compression": (TABLE | RICE, "SCI is a compressed image that cannot be read: ZBITPIX"),
    "a table for SCI": ({"XTENSION": "'TABLE   '"}, "SCI is a table, expected an im"),
}


@pytest.fixture
def place(tmp_path):
    return tmp_path / "x_calints.fits"


@pytest.mark.parametrize("name", LIARS)
def test_refused(name, place):
    content, text = LIARS[name]
    place.write_bytes(content() if callable(content) else changed(**content))
    refused(read_exposure, place, "science", error=ExposureError, match=text)


CONTINUED = b"CONTINUE  'bcdefghij&'"
HARMLESS = {
    "TFORM of 20 digits": lambda: changed(INT_TIMES, TFORM1="'99999999999999999999J'"),
    "TFORM of 2 GB": lambda: changed(INT_TIMES, TFORM1="'2147483648A'"),
    "TFIELDS of 10^9": lambda: changed(INT_TIMES, TFIELDS=10**9),
    "a heap": lambda: changed(INT_TIMES, TFORM1="'1PB(99999999)'"),
    "columns of one name": lambda: changed(INT_TIMES, TTYPE1="'x'", TTYPE2="'x'"),
    "CRPIX of 60 digits": lambda: changed(CRPIX1="9" * 60),
    "a keyword twice": lambda: with_cards(b"FILTER  = 'F335M   '", b"FILTER  = 5"),
    "10 000 CONTINUE cards": lambda: with_cards(b"LONG    = 'a&'", *[CONTINUED] * 10_000),
    "CONTINUE behind a number": lambda: with_cards(b"NUMBER  = 5", b"CONTINUE  'text'"),
    "20 cards of noise": lambda: with_cards(*[b"\xff" * 80] * 20),
    "50 000 COMMENT cards": lambda: with_cards(*[b"COMMENT nothing at all"] * 50_000),
    "BLANK in floats": lambda: changed(BLANK=5),
    "rubbish behind": lambda: originals()[0] + b"rubbish" * 1000,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_read_all_the_same(name, place, shown):
    good = originals()[0]
    place.write_bytes(good)
    expected = read_exposure(place, "science").stack
    place.write_bytes(HARMLESS[name]())
    with bounded():
        found = read_exposure(place, "science")
    np.testing.assert_array_equal(found.stack.data, expected.data)
    np.testing.assert_array_equal(found.stack.dq, expected.dq)
    assert len(shown.records) <= 20


@pytest.mark.parametrize("at", [0, 1, 8, 79, 80, 2879, 2880, 2881, 30_000, 100_000, -2881, -2000])
def test_cut_short_anywhere(at, place):
    place.write_bytes(originals()[0][:at])
    refused(read_exposure, place, "science", error=ExposureError)


def test_cut_short_while_it_is_used(place):
    """A memory map would kill the process here."""
    place.write_bytes(originals()[0])
    exposure = read_exposure(place, "science", pixels=False)
    os.truncate(place, 20_000)
    with pytest.raises(ExposureError, match="cut short"):
        exposure.load()


def test_a_sparse_file_of_terabytes(place):
    """The header tells the truth, and the file takes no room on the disk."""
    content = changed(NAXIS1=2**20, NAXIS2=2**20)
    sci = sound()[1]
    start = content.index(b"XTENSION")
    header = -(-(len(sci[0]) * 80 + 80) // BLOCK) * BLOCK
    place.write_bytes(content[: start + header])
    os.truncate(place, start + header + 4 * 2 * 2**40)
    refused(read_exposure, place, "science", error=ExposureError)


@pytest.mark.parametrize(
    "reading", [lambda p: read_exposure(p, "science"), read_meta, lambda p: read_psfmask(p, SHAPE)]
)
def test_pipes_and_devices(reading, place):
    os.mkfifo(place)
    for path in (place, "/dev/zero", "/dev/null"):
        problem = "is a pipe, a device or"
        refused(reading, path, error=(ExposureError, MaskError), match=problem, seconds=5)
