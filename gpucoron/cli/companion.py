"""``gpucoron companion``: fit position and flux of a companion, with their posterior."""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.cli.options import Parser, add_logging_options, command_parser
from gpucoron.cli.run import run_console
from gpucoron.cli.streams import write_lines
from gpucoron.core.text import format_table, with_error
from gpucoron.errors import UsageError

if TYPE_CHECKING:
    from gpucoron.pipeline.companion import Companion


def make_parser() -> Parser:
    """Build the parser of this command."""
    parser = command_parser("companion")
    add_logging_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``gpucoron companion``."""
    options = make_parser().parse_args(argv)
    place = _place(options.at)
    with run_console(options) as console:
        _run(options, place, console)
    return 0


def _place(text: str) -> tuple[float, float]:
    """Return separation (arcsec) and position angle (degrees) from their text."""
    try:
        separation, angle = (float(part) for part in text.split(","))
    except ValueError:
        separation = angle = math.nan
    if not (math.isfinite(separation) and math.isfinite(angle) and separation > 0):
        raise UsageError(
            f"--at {text}: expected SEP,PA, a separation in arcsec and a position angle in degrees"
        )
    return separation, angle


def _run(options: argparse.Namespace, place: tuple[float, float], console: Any) -> None:
    from gpucoron.io.files import check_replaceable
    from gpucoron.pipeline.rerun import find_record, run_again

    find_record(options.folder)
    given = Path(options.folder)
    folder = Path(options.output_dir or (given.parent if given.is_file() else given))
    if not folder.is_dir():
        raise UsageError(f"--output-dir {folder}: no such folder")
    changed = {} if options.truncate is None else {"klip.truncate": options.truncate}
    changed |= {"psf": options.psf}
    result = run_again(
        options.folder, device=options.device, parameters=changed, progress=console.progress
    )
    product = result.product
    paths = [folder / f"{product.name}_companion.{end}" for end in ("ecsv", "png")]
    for path in paths:
        check_replaceable(path, options.overwrite)
    companion = result.companion(
        *place,
        covariance=options.covariance,
        walkers=options.walkers,
        steps=options.steps,
        seed=options.seed,
    )
    if not options.quiet:
        write_lines(describe(companion))
    _write(paths, companion, options.overwrite)
    write_lines(map(str, paths))


def describe(companion: Companion) -> list[str]:
    """Return the table of a fitted companion as lines."""
    fit, entry = companion.fit, companion.entry
    (east, north), (east_err, north_err) = entry.offset, entry.offset_err
    rows = [
        ("separation", f'{entry.separation:.4f} +- {entry.separation_err:.4f}"'),
        ("position angle", f"{entry.angle:.3f} +- {entry.angle_err:.3f} deg"),
        ("dRA, dDec", f'{east:+.4f} +- {east_err:.4f}", {north:+.4f} +- {north_err:.4f}"'),
        ("flux", f"{with_error(1e6 * entry.flux_jy, 1e6 * entry.flux_jy_err)} uJy"),
    ]
    if math.isfinite(entry.contrast):
        rows.append(("contrast", f"{entry.contrast:.3e} +- {entry.contrast_err:.1e}"))
    rows += [
        ("SNR", f"{entry.candidate.snr:.1f}"),
        ("chi2 per pixel", f"{fit.chi2:.2f}"),
        ("covariance", f"{fit.covariance}, length {fit.correlation_px:.2f} px"),
        ("likelihoods", f"{fit.n_likelihoods}, {fit.acceptance:.0%} accepted"),
    ]
    lines = format_table(rows)
    return [*lines, f"caveat: {entry.caveat}"] if entry.caveat else lines


def _write(paths: list[Path], companion: Companion, overwrite: bool) -> None:
    """Write the table and the corner plot."""
    from gpucoron.io.files import output_file

    text, picture = io.StringIO(), io.BytesIO()
    companion.table().write(text, format="ascii.ecsv")
    companion.plot().savefig(picture, format="png", dpi=130)
    for path, content in zip(paths, (text.getvalue().encode(), picture.getvalue()), strict=True):
        with output_file(path, overwrite) as file:
            file.write(content)
