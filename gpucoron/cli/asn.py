"""``gpucoron asn``: make associations from a folder of exposures."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpucoron.cli.options import Parser, add_logging_options, command_parser
from gpucoron.cli.run import run_console
from gpucoron.cli.streams import write_lines
from gpucoron.core.text import format_table
from gpucoron.errors import OutputError, UsageError, plural

if TYPE_CHECKING:
    from gpucoron.io.association import LeftOut
    from gpucoron.io.association_making import Proposal
    from gpucoron.io.exposure_facts import ExposureFacts

log = logging.getLogger("gpucoron")

_LONGEST = 60  # characters of a file's name in the list of what is left out


def make_parser() -> Parser:
    """Build the parser of this command."""
    parser = command_parser("asn")
    add_logging_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``gpucoron asn``."""
    options = make_parser().parse_args(argv)
    with run_console(options):
        _run(options)
    return 0


def _run(options: argparse.Namespace) -> None:
    from gpucoron.io.association_making import (
        find_exposures,
        make_associations,
        write_association,
    )

    proposals, left_out = make_associations(
        find_exposures(options.folder),
        target=options.target,
        program=options.program,
        filter=options.filter,
    )
    places = [_place(options, proposal, len(proposals)) for proposal in proposals]
    for place in places:
        if place.exists() and not options.overwrite and not options.dry_run:
            raise OutputError(f"{place} exists; expected another -o, or --overwrite")
    if options.quiet:
        _warn(proposals, left_out)
    else:
        write_lines(_lines(proposals, left_out))
    if options.dry_run:
        return
    for proposal, place in zip(proposals, places, strict=True):
        write_association(proposal.association, place, overwrite=options.overwrite)
    write_lines(map(str, places))


def _place(options: argparse.Namespace, proposal: Proposal, count: int) -> Path:
    """Return where an association goes."""
    first = Path(options.folder[0])
    folder = Path(options.output or (first if first.is_dir() else first.parent))
    if folder.is_dir():
        return folder / proposal.association.path.name
    if count > 1:
        raise UsageError(
            f"-o {options.output} names one file, but there are {count} associations; expected a "
            "folder that exists, or --target and --filter"
        )
    return folder


def _warn(proposals: Sequence[Proposal], left_out: Sequence[LeftOut]) -> None:
    """Warn of what `_lines` would say that may be wrong: notes, and files that cannot be read."""
    for proposal in proposals:
        for note in proposal.notes:
            log.warning("%s: %s", proposal.association.path.name, note)
    for name, exp_type, reason in left_out:
        if not exp_type:
            log.warning("%s is left out: %s", name, reason)


def _lines(proposals: Sequence[Proposal], left_out: Sequence[LeftOut]) -> Iterator[str]:
    for proposal in proposals:
        product = proposal.association.products[0]
        yield f"{proposal.association.path.name}: product {product.name}"
        yield from _member_lines(proposal)
        for note in proposal.notes:
            yield f"  note: {note}"
        yield ""
    if left_out:
        yield f"left out, {plural(len(left_out), 'file')}:"
        rows = [(name[-_LONGEST:], reason) for name, _, reason in left_out]
        yield from (f"  {line}" for line in format_table(rows))
        yield ""


def _member_lines(proposal: Proposal) -> Iterator[str]:
    """Yield a line for each star: how many exposures, and why they are what they are."""
    optics = proposal.science[0].optics
    yield f"  {optics}"
    rows = []
    for exptype, members in (("science", proposal.science), ("psf", proposal.references)):
        for name, own in _by_target(members).items():
            images = sum(facts.exposure.shape[0] for facts in own)
            counts = f"{plural(len(own), 'exposure')}, {plural(images, 'integration')}"
            rows.append((exptype, name, counts, _details(own)))
    yield from (f"  {line}" for line in format_table(rows))


def _by_target(members: Iterable[ExposureFacts]) -> dict[str, list[ExposureFacts]]:
    found: dict[str, list[ExposureFacts]] = {}
    for facts in members:
        found.setdefault(facts.target or "?", []).append(facts)
    return found


def _details(own: Sequence[ExposureFacts]) -> str:
    """Return in words IS_PSF, roll angles and dithers of one star's exposures."""
    kinds = {True: "IS_PSF", False: "not IS_PSF", None: "no IS_PSF"}
    parts = [" or ".join(dict.fromkeys(kinds[facts.is_psf] for facts in own))]
    rolls = sorted({round(facts.roll, 1) for facts in own if facts.roll is not None})
    if rolls:
        some = ", ".join(f"{roll:.1f}" for roll in rolls[:4]) + ", ..." * (len(rolls) > 4)
        parts.append(f"roll {some}" if len(rolls) == 1 else f"rolls {some}")
    dithers = len({facts.dither for facts in own if facts.dither is not None})
    if dithers > 1:
        parts.append(plural(dithers, "dither position"))
    return "; ".join(parts)
