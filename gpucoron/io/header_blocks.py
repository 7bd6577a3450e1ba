"""Header cards as they are in a file, those that cannot be read left out."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

from gpucoron.errors import InputError
from gpucoron.io.card import RawHeader

__all__ = ["CARD", "read_header"]

log = logging.getLogger("gpucoron")

CARD = 80  # bytes
_MAX_BAD_CARDS = 50  # beyond these a header is damaged rather than sloppy
# a card by the standard; parsing those that are not costs more than reading the pixels
_PLAIN_CARD = re.compile(
    rb"""(?: [A-Z0-9_-]+\ *=\ \ *
             (?: '(?:[\x20-&(-~]|'')*' | [TF] | [+-]?\d+\.?\d*(?:[ED][+-]?\d+)? )?
             \ *(?:/[\x20-~]*)?
       | CONTINUE\ \ '(?:[\x20-&(-~]|'')*'\ *(?:/[\x20-~]*)?
       | (?: COMMENT | HISTORY | END\ {5} | \ {8} )[\x20-~]* )\Z""",
    re.VERBOSE,
)


def read_header(
    path: Path, raw: bytes, primary: bool, error: type[InputError]
) -> tuple[RawHeader, str]:
    """Return the header of some blocks, and the name of its HDU.

    A card against the standard would raise wherever it is used next: it is left out, with a
    warning. `error` is raised where too many are.
    """
    cards = [raw[i : i + CARD] for i in range(0, len(raw), CARD)]
    end = next(i for i, card in enumerate(cards) if card.startswith(b"END     "))
    del cards[end:]
    plain = all(map(_PLAIN_CARD.match, cards))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy's remarks on harmless breaches of the standard
        good = _readable_cards(path, cards, error)
        header = RawHeader(b"".join(good).decode("ascii"))
        if not plain and not all(map(_parses, header.astropy.cards)):
            raise error(
                f"{path}: a header has a text that goes on over several cards and "
                "cannot be read, expected CONTINUE cards by the FITS standard"
            )
        name = header.get("EXTNAME")
    if not isinstance(name, str) or not name.strip():
        name = "PRIMARY" if primary else "(no name)"
    return header, name.strip().upper()


def _readable_cards(path: Path, cards: list[bytes], error) -> list[bytes]:
    """Leave out, with a warning, the cards of which astropy can make nothing."""
    good: list[bytes] = []
    bad = 0
    for card in cards:
        if card.startswith(b"CONTINUE"):
            keep = _PLAIN_CARD.match(card) and good and good[-1][10:].lstrip().startswith(b"'")
        else:
            keep = _PLAIN_CARD.match(card) or (
                card.isascii() and b"\0" not in card and _parses(card)
            )
        if keep:
            good.append(card)
        else:
            bad += 1
            if bad > _MAX_BAD_CARDS:
                raise error(
                    f"{path}: has a header with more than {_MAX_BAD_CARDS} cards that are "
                    f"not FITS, expected an undamaged one (the last: {_shown(card)})"
                )
            log.warning("%s: ignoring a header card that is not FITS: %s", path.name, _shown(card))
    return good


def _shown(card: bytes) -> str:
    return ascii(card.decode("latin1").rstrip())[1:-1]


def _parses(card) -> bool:
    from astropy.io import fits
    from astropy.io.fits.verify import VerifyError

    if isinstance(card, bytes):
        card = fits.Card.fromstring(card)
    try:
        parts = (card.keyword, card.value, card.comment)  # each is parsed on first use
    except (VerifyError, ValueError):
        return False
    return len(parts) == 3
