"""Tiny files for the tests of reading: exposures, masks and associations."""

import json
import warnings

import numpy as np
import pytest
from astropy.io import fits

_WORDS = """
TELESCOP=JWST DATAMODL=CubeModel INSTRUME=NIRCAM DETECTOR=NRCALONG CHANNEL=LONG FILTER=F444W
PUPIL=MASKRND CORONMSK=MASKA335R SUBARRAY=SUB320A335R EXP_TYPE=NRC_CORON PROGRAM=01234
VISIT_ID=01234001001 APERNAME=NRCA5_MASK335R DATE-OBS=2024-01-02 TIME-OBS=03:04:05.000
"""
_NUMBERS = """
SUBSTRT1=492 SUBSTRT2=1502 NINTS=2 NGROUPS=10 EFFEXPTM=20.0 TMEASURE=19.0 DURATION=21.0
EFFINTTM=10.0 EXPSTART=60000.25 EXPMID=60000.26 EXPEND=60000.27
"""
_SCI_NUMBERS = """
PIXAR_SR=9.2e-14 PIXAR_A2=0.0039 RA_REF=150.0 DEC_REF=-30.0 ROLL_REF=100.0 V3I_YANG=0.05 VPARITY=-1
XPOSURE=20.0 TELAPSE=21.0
"""


def _table(text, kind=str):
    return {key: kind(value) for key, _, value in (w.partition("=") for w in text.split())}


PRIMARY = _table(_WORDS) | {"TARGNAME": "A STAR"} | _table(_NUMBERS, json.loads)
SCI = {
    "BUNIT": "MJy/sr",
    "S_REGION": "POLYGON ICRS  " + " ".join(["150.198490788 -30.400866233"] * 4),
} | _table(_SCI_NUMBERS, json.loads)
ASDF = b"#ASDF 1.0.0\n#ASDF_STANDARD 1.5.0\n%YAML 1.1\n--- {}\n...\n"


def arrays(shape=(2, 6, 5), seed=0):
    """Return SCI, ERR, DQ and the variances of an exposure."""
    rng = np.random.default_rng(seed)
    data = {"SCI": rng.normal(size=shape), "ERR": rng.random(shape)}
    data.update({name: rng.random(shape) for name in ("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")})
    data = {name: a.astype(np.float32) for name, a in data.items()}
    data["DQ"] = rng.integers(0, 2**32, shape, dtype=np.uint32)
    return data


def int_times(rows):
    """Return an INT_TIMES table."""
    names = ["int_start_MJD_UTC", "int_mid_MJD_UTC", "int_end_MJD_UTC"]
    table = np.zeros(rows, [("integration_number", "i4"), *((n, "f8") for n in names)])
    table["integration_number"] = np.arange(1, rows + 1)
    for k, name in enumerate(names):
        table[name] = 60000 + 0.01 * np.arange(rows) + 0.001 * k
    return table


def make_calints(
    path, shape=(2, 6, 5), *, replace=None, drop=(), primary=None, sci=None, rows=None, extra=()
):
    """Write a small exposure and return its path.

    `replace` exchanges arrays by name (None gives an empty HDU), `drop` leaves HDUs out, `primary`
    and `sci` change keywords (None removes one), `rows` is the length of INT_TIMES, `extra` are
    HDUs put at the end.
    """
    data = arrays(shape) | {"AREA": np.ones(shape[-2:], np.float32)} | (replace or {})
    nints = shape[0] if len(shape) == 3 else 1
    order = ["SCI", "ERR", "DQ", "AREA", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"]
    hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(data[n], name=n) for n in order if n not in drop)]
    if "INT_TIMES" not in drop:
        hdus.append(fits.BinTableHDU(int_times(nints if rows is None else rows), name="INT_TIMES"))
    if "ASDF" not in drop:
        cell = np.frombuffer(ASDF, np.uint8)[None]
        column = fits.Column("ASDF_METADATA", f"{len(ASDF)}B", array=cell)
        hdus.append(fits.BinTableHDU.from_columns([column], name="ASDF"))
    _set(hdus[0].header, PRIMARY | {"NINTS": nints} | (primary or {}))
    for hdu in hdus:
        if hdu.name == "SCI":
            _set(hdu.header, SCI | (sci or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList([*hdus, *extra]).writeto(path, overwrite=True)
    return path


def make_mask(path, mask, **keywords):
    """Write a psfmask reference file and return its path."""
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(mask, name="SCI")]
    _set(hdus[0].header, keywords)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def make_asn(
    path, members, name="jw01234-c1001_t001_nircam_f444w", products=None, touch=True, **changes
):
    """Write an association of (expname, exptype) pairs and return its path.

    `products` gives the whole list instead; `touch` makes empty files of the members.
    """
    if products is None:
        products = [product(members, name)]
    table = _table("asn_type=coron3 asn_id=c1001 program=01234 target=t001 asn_pool=none")
    table |= {"products": products} | changes
    path.write_text(json.dumps({k: v for k, v in table.items() if v is not None}))
    for entry in products if touch else ():
        for member in entry["members"]:
            (path.parent / member["expname"]).touch()
    return path


def product(members, name=None):
    """Return one entry of the list of products."""
    entry = {"members": [{"expname": e, "exptype": t} for e, t in members]}
    return entry if name is None else {"name": name} | entry


def read_error(error, reading, path, *arguments):
    """Return the text of the error that reading gives: one line that names the file."""
    with pytest.raises(error) as caught:
        reading(path, *arguments)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def alike(text, expected):
    """Assert that a text is the expected one, in which "…" stands for any characters."""
    begin, dots, end = expected.partition("…")
    assert text.startswith(begin) and text.endswith(end) and (dots or text == expected), text


def edit_card(path, keyword, text, hdu=0):
    """Put `text` in place of a value in the file, whatever it is."""
    content = bytearray(path.read_bytes())
    with fits.open(path) as opened:
        start = opened[hdu].fileinfo()["hdrLoc"]
    while content[start : start + 8].rstrip() != keyword.encode():
        start += 80
    content[start + 10 : start + 80] = text.rjust(20).ljust(70).encode("latin1")
    path.write_bytes(content)
    return path


def _set(header, values):
    for keyword, value in values.items():
        if value is None:
            header.remove(keyword, ignore_missing=True)
        else:
            header[keyword] = value
