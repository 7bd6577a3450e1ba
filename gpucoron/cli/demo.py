"""``gpucoron demo``: simulate, run, and compare recovered with injected planets."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.cli.options import add_run_options, command_parser
from gpucoron.cli.run import run_console, run_one
from gpucoron.cli.streams import write_lines
from gpucoron.core.text import format_table

if TYPE_CHECKING:
    from gpucoron.analysis.detection import Detection

log = logging.getLogger("gpucoron")

_TRUNCATE = 10


def main(argv: list[str]) -> int:
    """Run ``gpucoron demo``."""
    parser = command_parser("demo", truncate=_TRUNCATE)
    add_run_options(parser, "demo")
    options = parser.parse_args(argv)
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
        images = [Path(file) for file in result.files if str(file).endswith("_i2d.fits")]
        if images and not options.quiet:
            write_lines(planet_lines(images[0], simulation), needed=False)
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


def find_planets(
    path: Path, planets: Iterable[Any], star: tuple[float, float]
) -> tuple[list[tuple[tuple[float, float], Detection]], float]:
    """Measure position and SNR of injected planets (with ``ra`` and ``dec``) in an i2d file.

    Returns for each planet its true pixel position by the WCS of the i2d, and the detection; and
    the pixel scale in arcsec.
    """
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_scales

    from gpucoron.analysis.detection import detect, psf_fwhm
    from gpucoron.errors import ExposureError
    from gpucoron.io.fits.reading import open_fits

    file = open_fits(path, ExposureError)
    sci: Any = file.find("SCI")
    image, wcs = file.floats(sci), WCS(sci.header).celestial
    scale = float(proj_plane_pixel_scales(wcs).mean()) * 3600
    fwhm_px = psf_fwhm(str(file.hdus[0].header["FILTER"])) / scale
    skies = [star, *((p.ra, p.dec) for p in planets)]
    pixels = [wcs.all_world2pix(*sky, 0) for sky in skies]
    star_xy, *expected = ((float(x), float(y)) for x, y in pixels)
    found = []
    for xy in expected:
        others = [other for other in expected if other != xy]
        found.append((xy, detect(image, xy, star_xy, fwhm_px=fwhm_px, others=others)))
    return found, scale


def planet_lines(path, simulation) -> Iterator[str]:
    """Yield the table of injected planets: true and recovered position, SNR."""
    measured, scale = find_planets(path, simulation.planets, simulation.star)
    yield ""
    yield f"injected planets in {path}:"
    header = "planet,separation,PA,contrast,true x,y,found x,y,offset,,SNR,significance"
    rows, planets = [], zip(simulation.planets, measured, strict=True)
    for number, (truth, ((x, y), seen)) in enumerate(planets, 1):
        offset = math.hypot(seen.x - x, seen.y - y)
        rows.append(
            (
                number,
                f'{truth.separation:.2f}"',
                f"{truth.angle:.0f} deg",
                f"{truth.contrast:.1e}",
                *(f"{pixel:.2f}" for pixel in (x, y, seen.x, seen.y)),
                f"{offset:.2f} px",
                f"{1000 * offset * scale:.0f} mas",
                f"{seen.snr:.1f}",
                f"{seen.significance:.1f} sigma",
            )
        )
    table = format_table(rows, tuple(header.split(",")), right=tuple(range(1, 12)))
    yield from (f"  {line}" for line in table)
    yield "x, y: pixels of the i2d counted from 0, true positions by its WCS. SNR: aperture"
    yield "photometry over the noise at the same separation; the significance accounts for the"
    yield "small number of apertures (Mawet et al. 2014)."
