"""Find the HDUs of a FITS file, every claim of their headers compared with the file's size.

astropy's own walk takes a header at its word: NAXIS = 99999999999999 keeps it busy until memory
runs out, and a card that it cannot parse fails wherever it is used next.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from astropy.io import fits
from astropy.io.fits.verify import VerifyError

from gpucoron.errors import InputError
from gpucoron.io.fits.headers import layout, quiet

__all__ = ["BLOCK", "Hdu", "walk"]

log = logging.getLogger("gpucoron")

BLOCK = 2880  # bytes
_CARD = 80
_BITPIX = (8, 16, 32, 64, -32, -64)
_MAX_BLOCKS = 8192  # of a header, 300 000 cards; what has no END by then is not a header
_MAX_HDUS = 1000
_PLAIN = re.compile(  # cards that need no parsing to be sure that astropy can parse them
    rb"(?:COMMENT|HISTORY|       ) [ -~]{72}"
    rb"|(?=[ -~]{80})(?=.{8}= )[A-Z0-9_-]+ *= *"
    rb"(?:'(?:[^']|'')*'|[TF]|[+-]?(?:\d+\.?\d*|\.\d+)(?:[ED][+-]?\d+)?) *(?:/.*)?"
)
Problem = Callable[[str], InputError]
_MAX_BAD_CARDS = 50  # beyond these a header is damaged rather than sloppy


@dataclass(frozen=True)
class Hdu:
    """One header and where its data are; `shape` is in NumPy's order, () where there are none."""

    name: str
    header: fits.Header
    kind: str  # XTENSION; IMAGE for the primary HDU
    bitpix: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int  # of data, without the padding of the last block

    @property
    def is_image(self) -> bool:
        """True for the primary HDU and image extensions."""
        return self.kind == "IMAGE"

    @property
    def empty(self) -> bool:
        """True where there are no data: NAXIS = 0, or an axis of length 0."""
        return not self.shape or 0 in self.shape

    @property
    def end(self) -> int:
        """Where the next HDU begins."""
        return self.offset + -(-self.nbytes // BLOCK) * BLOCK

    def plane(self, i: int) -> Hdu:
        """Return one image of a cube as an HDU of its own; of an image itself."""
        if len(self.shape) == 2:
            return self
        header = layout(self.header)
        header["NAXIS"] = 2
        del header["NAXIS3"]
        length = abs(self.bitpix) // 8 * self.shape[1] * self.shape[2]
        offset = self.offset + i * length
        return replace(self, header=header, shape=self.shape[1:], offset=offset, nbytes=length)


def walk(path: Path, file: BinaryIO, size: int, error: type[InputError]) -> Iterator[Hdu]:
    """Yield the HDUs of a file, each after its end has been compared with the file's `size`.

    Raises
    ------
    InputError
        (as `error`) The file is cut short, or a header makes no sense.
    """

    def problem(text: str) -> InputError:
        return error(f"{path}: {text}")

    position, last = 0, ""
    for _ in range(_MAX_HDUS):
        if position >= size:
            return
        file.seek(position)
        start = file.read(BLOCK)
        if last and not start.startswith(b"XTENSION"):
            if start.strip(b"\0 "):  # not padding
                rest = size - position
                log.warning(
                    "%s: ignoring %d bytes after the last extension, %s", path.name, rest, last
                )
            return
        file.seek(position)
        text = _header_text(file)
        if text is None:
            after = f"after {last} " if last else ""
            raise problem(
                f"is cut short or damaged: the header {after}at byte {position} "
                f"of {size} has no END"
            )
        hdu = _hdu(_read_header(path, text, problem), file.tell(), problem)
        if hdu.offset + hdu.nbytes > size:
            raise problem(
                f"is cut short: by its header {hdu.name} ends at byte "
                f"{hdu.offset + hdu.nbytes}, but the file has {size} bytes"
            )
        if hdu.end > size:
            log.warning("%s: lacks the padding after the last extension, %s", path.name, hdu.name)
        position, last = hdu.end, hdu.name
        yield hdu
    if position < size:
        raise problem(f"has more than {_MAX_HDUS} extensions, expected an exposure's")


def _header_text(file: BinaryIO) -> bytes | None:
    """Read a header from the beginning of an HDU to its data, and return what is before END."""
    blocks: list[bytes] = []
    while len(blocks) < _MAX_BLOCKS and len(block := file.read(BLOCK)) == BLOCK:
        for i in range(0, BLOCK, _CARD):
            if block[i : i + 8] == b"END     ":
                return b"".join([*blocks, block[:i]])
        blocks.append(block)
    return None


def _read_header(path: Path, text: bytes, problem: Problem) -> fits.Header:
    """Return a header without the cards that astropy cannot parse, each of which is a warning."""
    header, bad = _parsed(text)
    if len(bad) > _MAX_BAD_CARDS:
        raise problem(
            f"has a header with more than {_MAX_BAD_CARDS} cards that are "
            "not FITS, expected an undamaged one"
        )
    for name in bad:
        log.warning("%s: ignoring header card %s, which is not FITS", path.name, name)
    return header.copy()


@functools.lru_cache(maxsize=256)  # a run reads every header twice: before the work, and in it
def _parsed(text: bytes) -> tuple[fits.Header, list[str]]:
    """Return the cards that astropy can read, as a header, and the names of those it cannot."""
    with quiet():
        header = fits.Header.fromstring(text)
        if all(_PLAIN.fullmatch(text, i, i + _CARD) for i in range(0, len(text), _CARD)):
            return header, []
        bad = [i for i, card in enumerate(header.cards) if not _parses(card)]
        names = [ascii(header.cards[i].keyword)[1:-1] for i in reversed(bad)]
        for i in reversed(bad if len(bad) <= _MAX_BAD_CARDS else ()):
            del header[i]
    return header, names


def _parses(card: fits.Card) -> bool:
    """Return whether astropy can parse the value and comment of a card, as printable ASCII."""
    try:
        text = f"{card.keyword}{card.value}{card.comment}"
    except (VerifyError, ValueError):
        return False
    return text.isascii() and text.isprintable()


def _hdu(header: fits.Header, offset: int, problem: Problem) -> Hdu:
    """Make an `Hdu` of a header, whose structural keywords must be integers that make sense."""
    name, kind = header.get("EXTNAME"), header.get("XTENSION", "IMAGE")
    if not isinstance(name, str) or not name.strip():
        name = "(no name)" if "XTENSION" in header else "PRIMARY"
    name = name.strip().upper()

    def integer(keyword: str, low: int, high: int = 10**17, default: int | None = None) -> int:
        value = header.get(keyword, default)
        if type(value) is not int or not low <= value <= high:
            found = "missing" if value is None else repr(value)
            bounds = f"from {low} to {high}" if high < 10**17 else f"of {low} or more"
            raise problem(f"{keyword} of {name} is {found}, expected an integer {bounds}")
        return value

    bitpix = integer("BITPIX", -64, 64)
    if bitpix not in _BITPIX:
        raise problem(f"BITPIX of {name} is {bitpix}, expected 8, 16, 32, 64, -32 or -64")
    shape = tuple(integer(f"NAXIS{i}", 0) for i in range(integer("NAXIS", 0, 999), 0, -1))
    count = math.prod(shape) if shape else 0
    if count > 10**18:
        raise problem(
            f"{name} has {len(shape)} axes of {shape[:3]} (and so on) values by "
            "its header, more than any file holds"
        )
    groups = integer("GCOUNT", 1, default=1)
    nbytes = abs(bitpix) // 8 * groups * (integer("PCOUNT", 0, default=0) + count)
    kind = kind.strip() if isinstance(kind, str) else ""
    return Hdu(name, header, kind, bitpix, shape, offset, nbytes)
