"""``gpucoron demo``: simulate, run, and compare recovered with injected planets."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.cli.options import Parser, add_run_options, command_parser
from gpucoron.cli.run import run_console, run_one
from gpucoron.cli.streams import write_lines
from gpucoron.core.text import format_table, with_error

if TYPE_CHECKING:
    from gpucoron.pipeline.result import Result
    from gpucoron.simulate import Simulation

log = logging.getLogger("gpucoron")

_TRUNCATE = 10


def make_parser() -> Parser:
    """Build the parser of this command."""
    parser = command_parser("demo", truncate=_TRUNCATE)
    add_run_options(parser, "demo")
    return parser


def main(argv: list[str]) -> int:
    """Run ``gpucoron demo``."""
    options = make_parser().parse_args(argv)
    directory = Path(options.directory)
    with run_console(options) as console:
        simulation = _simulate(options, directory / "input")
        options.asn = simulation.asn
        options.psfmask = options.psfmask or str(simulation.psfmask)
        options.output_dir = str(directory / "products")
        options.report = options.output_dir if options.report is None else options.report
        options.star_radec = simulation.star  # for the report
        # fewer KL vectors than references, so that ERR is not 0
        options.set = [f"klip.truncate={_TRUNCATE}", *options.set]
        log.info(
            "running gpucoron %s --psfmask %s --output-dir %s %s",
            options.asn,
            options.psfmask,
            options.output_dir,
            " ".join(f"--set {s}" for s in options.set),
        )
        result = run_one(options, console)
        if not options.quiet:
            write_lines(planet_lines(result, simulation), needed=False)
            write_lines(what_to_open(result), needed=False)
    return 0


def _simulate(options: argparse.Namespace, directory: Path):
    from gpucoron.simulate import DEMO, simulate

    log.info("simulating %s exposures in %s (seed %d)", options.instrument, directory, options.seed)
    wanted: dict[str, Any] = dict(DEMO)
    if options.instrument == "miri-lyot":
        del wanted["shape"]  # the mask is as large as the cut-out
    return simulate(
        directory, options.instrument, options.seed, overwrite=options.overwrite, **wanted
    )


def planet_lines(result: Result, simulation: Simulation) -> Iterator[str]:
    """Yield the table of injected planets, as found and true; the report has the same numbers."""
    from gpucoron.analysis.photometry import find_known

    record = result.product.record
    known = [(planet.ra, planet.dec) for planet in simulation.planets]
    found = None if record is None else find_known(record, known, simulation.star)
    if not found:
        return
    yield ""
    yield "injected planets in the combined image:"
    header = ("planet", "", "separation, arcsec", "PA, deg", "flux, uJy", "SNR", "sigma")
    rows: list[tuple] = []
    for number, (truth, seen) in enumerate(zip(simulation.planets, found, strict=True), 1):
        flux = (
            with_error(1e6 * seen.flux_jy, 1e6 * seen.flux_jy_err)
            if record is not None and record.forward is not None
            else "no model"
        )
        rows += [
            (
                *(number, "found", f"{seen.separation:.3f} +- {seen.separation_err:.3f}"),
                *(f"{seen.angle:.2f} +- {seen.angle_err:.2f}", flux),
                *(f"{seen.candidate.snr:.1f}", f"{seen.candidate.significance:.1f}"),
            ),
            (
                *("", "true", f"{truth.separation:.3f}         "),
                *(f"{truth.angle:.2f}        ", f"{1e6 * truth.flux_jy:.3g}     ", "", ""),
            ),
        ]
    table = format_table(rows, header, right=tuple(range(2, 7)))
    yield from (f"  {line}" for line in table)
    yield "SNR: flux over its scatter at that separation; sigma: the same as a"
    yield "significance, which accounts for how few independent places there are (Mawet et"
    yield "al. 2014)."


def what_to_open(result: Result) -> Iterator[str]:
    """Yield which file shows the result best."""
    report = next((f for f in result.files if f.suffix == ".html"), None)
    image = next((f for f in reversed(result.files) if f.name.endswith("_i2d.fits")), None)
    yield ""
    if report is not None:
        yield f"Open the report in a browser: {report}"
    if image is not None:
        yield f"and the combined image in ds9 or jdaviz: {image}"
