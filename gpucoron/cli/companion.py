"""``gpucoron companion``: fit position and flux of a companion, with their posterior."""

from __future__ import annotations

import argparse
import io
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.cli.options import Parser, add_logging_options, command_parser
from gpucoron.cli.run import run_console
from gpucoron.cli.streams import write_lines
from gpucoron.core.text import format_table, with_error
from gpucoron.errors import InputError, UsageError

if TYPE_CHECKING:
    from gpucoron.analysis.companion import CompanionFit
    from gpucoron.analysis.measure import Sky
    from gpucoron.analysis.photometry import SkyCandidate
    from gpucoron.analysis.record import Record
    from gpucoron.pipeline.result import ProductResult

log = logging.getLogger("gpucoron")


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
    record, sky = _with_model(product)
    fit, entry = fit_at(record, sky, place, options)
    if not options.quiet:
        write_lines(describe(fit, entry))
    _write(paths, record, sky, (fit, entry), options)
    write_lines(map(str, paths))


def _with_model(product: ProductResult) -> tuple[Record, Sky]:
    """Return record and sky of a product that has a forward model."""
    from gpucoron.analysis.measure import locate_star

    record = product.record
    sky = locate_star(record) if record is not None and record.images else None
    if record is None or sky is None or record.forward is None:
        raise InputError(
            f"{product.name}: no forward model of a source, expected a run with klip and resample "
            "whose star and optics are known"
        )
    return record, sky


def fit_at(
    record: Record, sky: Sky, place: tuple[float, float], options: argparse.Namespace
) -> tuple[CompanionFit, SkyCandidate]:
    """Fit a companion at separation and position angle."""
    from gpucoron.analysis import photometry
    from gpucoron.analysis.candidates import find_candidates
    from gpucoron.analysis.companion import fit_companion
    from gpucoron.analysis.point_source import source_model

    truncate = max(record.images)
    field = photometry.field_of(record, sky, truncate)
    model = source_model(record, truncate, sky.fwhm_px)
    start = sky.at(*place)
    known = find_candidates(field, model).candidates
    others = [c for c in known if math.dist((c.x, c.y), start) > sky.fwhm_px]
    fit = fit_companion(
        field,
        model,
        start,
        covariance=options.covariance,
        others=others,
        walkers=options.walkers,
        steps=options.steps,
        burn_in=options.steps // 5,
        seed=options.seed,
    )
    best = float(fit.best[0]), float(fit.best[1])
    measured = photometry.measure_at(record, sky, truncate, best, others).candidate
    return fit, photometry.on_sky(record, sky, truncate, fit.as_candidate(measured), others)


def describe(fit: CompanionFit, entry: SkyCandidate) -> list[str]:
    """Return the table of a fitted companion as lines."""
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


def _write(paths, record: Record, sky: Sky, found, options) -> None:
    """Write the table and the corner plot."""
    from gpucoron.analysis import photometry
    from gpucoron.io.files import output_file
    from gpucoron.report.corner import draw_corner

    (fit, entry), truncate = found, max(record.images)
    about = photometry.described(record, sky, truncate) | {
        "covariance": fit.covariance,
        "correlation_length_px": fit.correlation_px,
        "chi2_per_pixel": fit.chi2,
        "likelihoods": fit.n_likelihoods,
        "autocorrelation_steps": fit.autocorrelation,
    }
    samples, labels = photometry.samples_on_sky(record, sky, truncate, fit.samples)
    text, picture = io.StringIO(), io.BytesIO()
    photometry.Candidates([entry]).table(about).write(text, format="ascii.ecsv")
    draw_corner(samples, labels, paths[0].stem).savefig(picture, format="png", dpi=130)
    for path, content in zip(paths, (text.getvalue().encode(), picture.getvalue()), strict=True):
        with output_file(path, options.overwrite) as file:
            file.write(content)
