"""Tiny exposures, damaged on purpose: strategies that change headers, data and the bytes."""

import functools
import io

from astropy.io import fits
from hypothesis import strategies as st

from tests.helpers.tiny_sets import simulated

BLOCK, CARD = 2880, 80

STRUCTURAL = (
    "SIMPLE XTENSION BITPIX NAXIS NAXIS1 NAXIS2 NAXIS3 PCOUNT GCOUNT EXTNAME EXTVER TFIELDS TFORM1 "
    "TFORM2 TTYPE1 TTYPE2 TSCAL1 TDIM1 BSCALE BZERO BLANK EXTEND GROUPS DATASUM CHECKSUM THEAP "
    "ZIMAGE ZCMPTYPE INHERIT"
).split()
READ = (
    "INSTRUME DETECTOR FILTER PUPIL CORONMSK SUBARRAY BUNIT PIXAR_SR PIXAR_A2 SUBSTRT1 SUBSTRT2 "
    "RA_REF DEC_REF ROLL_REF V3I_YANG VPARITY S_REGION PROGRAM TARGNAME DATE-OBS TIME-OBS DATE-BEG "
    "XPOSURE TMEASURE EXPSTART EXPMID EXPEND NINTS NGROUPS INTSTART INTEND CRPIX1 CRVAL1 CTYPE1 "
    "EXPOSURE OBSERVTN VISIT FILENAME R_PSFMAS CAL_VER TELAPSE CRPIX2 CRVAL2 CTYPE2 CUNIT1 CD1_1 "
    "CD2_1 CDELT1 PC1_1 A_ORDER A_0_2 B_ORDER LONPOLE RADESYS SUBSIZE1 SUBSIZE2 XOFFSET STARCENX"
).split()
VALUES = [
    *(
        "0|1|2|3|-1|-32|8|16|64|-64|7|T|F||'|''|' '|999|1000|2147483647|2147483648|4294967296|"
        "9223372036854775807|9223372036854775808|18446744073709551616|99999999999999999"
    ).split("|"),
    "9" * 60,
    "-" + "9" * 60,
    *(
        "1E400|-1E400|1E-400|1D3|1.5|NaN|Inf|0x10|1e5|+1|1_000|(1,2)|'SCI'|'ERR     '|'IMAGE   '|"
        "'BINTABLE'|'TABLE   '|'A3DTABLE'|'PRIMARY '|'1J'|'0A'|'99999999999999999999A'|"
        "'2147483648A'|'1PB(99999)'|'1QD'|'C'|'99999999D'|'GZIP_1'|'a''b'|'text&'|'\\n'|"
        "'%s %d {0}'|'caf\xe9'|'\x00'|'\x1b[31m'|'../../x'|'!!python/object/apply:os.system [id]'|"
        "'a}, b: !x {'|'POLYGON ICRS 0 0 1 0 1 1'|'POLYGON ICRS  0 0 90 0 90 80 0 80'|"
        "'POLYGON ICRS 1E400 0'|'POLYGON ICRS  0 0 0 0 0 0'|'2020-01-01'|5 / a comment|"
        "'RA---TAN'|'DEC--TAN-SIP'|'FK5'"
    ).split("|"),
    "'x' / " + "y" * 60,
    *"'unfinished|= =|1.0E+|--1".split("|"),
    "'" + "z" * 67 + "&'",
]
CARDS = [
    *(
        b"CONTINUE  'more&'|CONTINUE  'end' / of it|CONTINUE|END|END     x||HISTORY caf\xe9|"
        b"COMMENT \x00\x01|HIERARCH ESO DET CHIP = 5|hierarch lower = 'x'|lower   = 5|NOEQUAL   5|"
        b"KEY WORD= 5"
    ).split(b"|"),
    b"\xff" * 80,
    b"\0" * 80,
    b"=" * 80,
    *(
        b"LONGSTRN= 'OGIP 1.0'|EXTNAME = 'SCI     '|EXTNAME =                    5|"
        b"XTENSION= 'IMAGE   '|KEY     = 'it''s ''&'"
    ).split(b"|"),
    b"KEY     = '" + b"'" * 69,
]


@functools.cache
def originals():
    """The bytes of a science exposure, of a reference and of the psfmask."""
    made = simulated().made
    return [p.read_bytes() for p in (made.science[1], made.psf[1], made.psfmask)]


def parts(content):
    """Take a good file apart: a list of [cards, data] for each HDU."""
    found = []
    with fits.open(io.BytesIO(content)) as hdus:
        for hdu in hdus:
            header, data = (hdu.fileinfo()[name] for name in ("hdrLoc", "datLoc"))
            cards = _cards(content[header:data])
            end = cards.index(b"END".ljust(CARD))
            found.append([cards[:end], content[data : data + hdu.size]])
    return found


def joined(hdus):
    """Put a file together again, right or wrong."""
    content = b""
    for cards, data in hdus:
        header = b"".join(c.ljust(CARD)[:CARD] for c in cards) + b"END".ljust(CARD)
        content += header.ljust(-(-len(header) // BLOCK) * BLOCK)
        content += data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")
    return content


def with_card(cards, keyword, value):
    """Return cards with the value of one replaced, or the card put in at the end."""
    card = f"{keyword:8}= {value}".encode("latin1")
    places = [i for i, c in enumerate(cards) if c[:8].strip() == keyword.encode()]
    if not places:
        return [*cards, card]
    return [card if i == places[0] else c for i, c in enumerate(cards)]


values = st.one_of(
    st.sampled_from(VALUES),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
    st.text(max_size=30).map(lambda t: "'" + t.encode("latin1", "replace").decode("latin1") + "'"),
)


@st.composite
def change(draw, hdus):
    """Draw one change of a list of [cards, data]."""
    others = ["card", "card", "drop card", "double", "data", "hdu", "swap", "chain"]
    kind = draw(st.sampled_from(["value"] * 8 + others))
    i = draw(st.integers(0, len(hdus) - 1))
    cards, data = hdus[i]
    if kind == "value":
        known = [c[:8].strip().decode() for c in cards if c[8:10] == b"= "]
        keyword = draw(st.sampled_from(STRUCTURAL) | st.sampled_from(READ) | st.sampled_from(known))
        cards = with_card(cards, keyword, draw(values))
    elif kind == "card":
        at = draw(st.integers(0, len(cards)))
        card = draw(st.sampled_from(CARDS) | st.binary(max_size=CARD))
        cards = [*cards[:at], card, *cards[at:]]
    elif kind == "drop card":
        at = draw(st.integers(0, len(cards) - 1))
        cards = cards[:at] + cards[at + 1 :]
    elif kind == "double":
        at = draw(st.integers(0, len(cards) - 1))
        cards = [*cards, cards[at]]
    elif kind == "chain":
        n = draw(st.integers(1, 200))
        cards = [*cards, b"LONG    = 'begin&'", *[b"CONTINUE  'on and&'"] * n]
    elif kind == "data":
        at, more = draw(st.integers(0, len(data))), draw(st.binary(max_size=40))
        spoilt = data[:at] + more + data[at + len(more) :]
        data = draw(st.sampled_from([data[:at], spoilt, b"\xff" * len(data), data + data]))
    elif kind == "hdu":
        return hdus[:i] + hdus[i + 1 :] + draw(st.sampled_from([[], [hdus[i]] * 2]))
    elif kind == "swap":
        return [*hdus[:i], *hdus[i + 1 :], hdus[i]]
    return [*hdus[:i], [cards, data], *hdus[i + 1 :]]


class Content(bytes):
    """Bytes of a file, shown by what is not in the original."""

    def __repr__(self):
        known = {c for o in originals() for c in _cards(o)}
        return f"{len(self)} bytes with {[c for c in _cards(self) if c not in known][:20]}"


def _cards(content):
    return [content[i : i + CARD] for i in range(0, len(content), CARD)]


@st.composite
def files(draw, which=0):
    """Draw the bytes of a damaged file."""
    hdus = parts(originals()[which])
    for _ in range(draw(st.integers(0, 4))):
        if hdus:
            hdus = draw(change(hdus))
    content = joined(hdus)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(content)))
        longer = content[:at] + draw(st.binary(max_size=8)) + content[at:]
        other = content[:at] + draw(st.binary(max_size=8)) + content[at + 8 :]
        content = draw(st.sampled_from([content[:at], longer, other, content + b"\0" * 100]))
    return Content(content)
