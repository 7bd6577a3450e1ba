"""``gpucoron contrast``: the contrast curve and map of an association or of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpucoron.cli.options import Parser, add_logging_options, command_parser
from gpucoron.cli.run import run_console
from gpucoron.cli.streams import write_lines
from gpucoron.core.text import format_table
from gpucoron.errors import UsageError

if TYPE_CHECKING:
    from astropy.table import QTable

SEPARATIONS = (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)  # arcsec, that are printed


def make_parser() -> Parser:
    """Build the parser of this command."""
    parser = command_parser("contrast")
    add_logging_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``gpucoron contrast``."""
    options = make_parser().parse_args(argv)
    if not 0 < options.sigma < 30:
        raise UsageError(f"--sigma is {options.sigma:g}, expected a number above 0, such as 5")
    given = Path(options.run)
    folder = Path(options.output_dir or (given if given.is_dir() else "."))
    with run_console(options) as console:
        write_lines(_measure(given, folder, options, console), needed=False)
    return 0


def describe(table: QTable) -> list[str]:
    """Return some rows of a contrast curve as lines, those nearest to round separations."""
    separation = table["separation"].to_value("arcsec")
    limit = next(name for name in ("contrast", "flux", "peak") if name in table.colnames)
    header = ("separation", f"{table.meta['sigma']:g}-sigma {limit}", "throughput", "KL")
    wanted = [at for at in SEPARATIONS if separation.min() <= at <= separation.max()]
    rows = [
        (
            f'{row["separation"].value:.2f}"',
            f"{row[limit]:.2e}",
            f"{row['throughput']:.2f}",
            row["kl"],
        )
        for row in (table[int(abs(separation - at).argmin())] for at in wanted)
    ]
    return format_table(rows, header, (0, 1, 2, 3))


def _measure(given: Path, folder: Path, options, console) -> list[str]:
    """Run the association in memory, and write curve and map; return what is to be printed."""
    from gpucoron.io.contrast import write_contrast, write_contrast_table
    from gpucoron.io.files import check_folder
    from gpucoron.pipeline.contrast import contrast_of, contrast_paths, curve_and_map
    from gpucoron.pipeline.rerun import find_record, is_run, run_again

    if is_run(given):
        find_record(given)
    check_folder(folder, [])
    result = run_again(
        given,
        device=options.device,
        parameters={"exclude": options.exclude, "psf": options.psf},
        sets=options.set,
        psfmask=options.psfmask,
        threads=options.threads,
        progress=console.progress,
    )
    lines = []
    for product in result.products:
        contrast = contrast_of(product, result.parameters, sigma=options.sigma)
        table, planes, keywords = curve_and_map(contrast)
        curve, image = contrast_paths(folder / f"{product.name}_i2d.fits")
        write_contrast_table(curve, table)
        write_contrast(image, table, planes, keywords, product.wcs)
        lines += [] if options.quiet else describe(table)
        lines += [str(curve), str(image)]
    return lines
