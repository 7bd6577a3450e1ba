"""``gpucoron step``: run a single step on files."""

from __future__ import annotations

import time
from pathlib import Path

from gpucoron.cli.options import Parser, add_run_options, command_parser
from gpucoron.cli.run import read_parameters, run_console
from gpucoron.cli.streams import write_lines


def make_parser() -> Parser:
    """Build the parser of this command."""
    parser = command_parser("step")
    add_run_options(parser, "step")
    return parser


def main(argv: list[str]) -> int:
    """Run ``gpucoron step``."""
    options = make_parser().parse_args(argv)
    options.save_params = None
    start = time.perf_counter()
    with run_console(options) as console:
        from gpucoron.pipeline.run_options import RunOptions
        from gpucoron.pipeline.single_step import run_step

        logs = (options.log_file, options.log_json)
        settings = RunOptions(
            Path(options.asn or options.files[0]),
            read_parameters(options),
            options.device,
            Path(options.output_dir),
            psfmask=options.psfmask,
            overwrite=options.overwrite,
            checksums=options.checksums,
            threads=options.threads,
            memory=options.memory,
            protected=tuple(filter(None, (*options.params, options.asn, *logs))),
        )
        result = run_step(
            options.step,
            options.files,
            settings,
            association=options.asn,
            name=options.product_name,
            progress=console.progress,
        )
        console.summary(result, time.perf_counter() - start)
        if not options.quiet:
            write_lines(map(str, result.files), needed=False)
    return 0
