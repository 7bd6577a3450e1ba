"""``gpucoron contrast``: the contrast curve and map of an association or of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpucoron.cli.options import Parser, add_logging_options, command_parser
from gpucoron.cli.run import run_console
from gpucoron.cli.streams import write_lines
from gpucoron.errors import AssociationError, UsageError


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
    given, settings = Path(options.run), {}
    folder = Path(options.output_dir or ".")
    if given.is_dir():
        settings = _settings_of_run(given)
        folder = Path(options.output_dir or given)
        given = settings.pop("asn")
    if options.psfmask:
        settings["psfmask"] = options.psfmask
    with run_console(options) as console:
        write_lines(map(str, _measure(given, folder, settings, options, console)), needed=False)
    return 0


def _measure(asn: Path, folder: Path, settings: dict[str, Any], options, console) -> list[Path]:
    """Run the association in memory, and write curve and map."""
    from gpucoron.core.parameters import Parameters
    from gpucoron.io.contrast import write_contrast, write_contrast_table
    from gpucoron.io.files import check_folder
    from gpucoron.pipeline.association import run_association
    from gpucoron.pipeline.contrast import contrast_of, contrast_paths, curve_and_map
    from gpucoron.pipeline.run_options import RunOptions

    parameters = Parameters.from_sources(
        sets=options.set,
        keywords=[settings.pop("parameters", {}), {"exclude": options.exclude}],
    )
    check_folder(folder, [])
    result = run_association(
        RunOptions(
            asn,
            parameters,
            options.device,
            save=frozenset(),
            forward_model=True,
            threads=options.threads,
            **settings,
        ),
        console.progress,
    )
    files = []
    for product in result.products:
        contrast = contrast_of(product, parameters, sigma=options.sigma)
        table, planes, keywords = curve_and_map(contrast)
        curve, image = contrast_paths(folder / f"{product.name}_i2d.fits")
        write_contrast_table(curve, table)
        write_contrast(image, table, planes, keywords, product.wcs)
        files += [curve, image]
    return files


def _settings_of_run(folder: Path) -> dict[str, Any]:
    """Return association, parameters and psfmask of the run that has written to a folder."""
    records = sorted(folder.glob("*_run.json"))
    if len(records) != 1:
        raise UsageError(
            f"{folder} has {len(records)} files *_run.json, expected the output folder of one run, "
            "or an association"
        )
    try:
        record = json.loads(records[0].read_text(encoding="utf-8"))
        asn, *others = (Path(entry["path"]) for entry in record["inputs"])
        masks = {Path(mask["name"]).name for mask in record["psfmasks"].values() if mask["name"]}
        parameters = dict(record["parameters"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise AssociationError(
            f"{records[0]}: {type(problem).__name__}: {problem}; expected the record of a run"
        ) from problem
    psfmask = next((path for path in others if path.name in masks), None)
    return {"asn": asn, "parameters": parameters, "psfmask": psfmask}
