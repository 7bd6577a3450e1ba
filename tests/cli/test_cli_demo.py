"""The demo: planets found in an i2d whose truth is known, and the whole of it, in small."""

import math
import re
import types
from pathlib import Path

import numpy as np
import pytest

import gpucoron
from gpucoron.analysis.detection import psf_fwhm
from gpucoron.analysis.photometry import find_known
from gpucoron.analysis.record import ExposureRecord, Record
from gpucoron.cli import demo as cli_demo
from gpucoron.cli import main as cli
from gpucoron.cli.options import command_parser
from gpucoron.io.exposures import ExposureMeta
from gpucoron.io.wcs import OutputWcs
from gpucoron.optics.instruments import INSTRUMENTS
from gpucoron.pipeline.result import Result

pytestmark = pytest.mark.slow

STAR = (150.2, -30.4)
SCALE = 0.0625  # arcsec


def record_of(planets, noise=0.1, seed=3):
    """Return the record of a run whose combined image has Gaussian planets, and their sky truth."""
    turn = ((math.cos(1), -math.sin(1)), (math.sin(1), math.cos(1)))
    wcs = OutputWcs((140, 150), (74.0, 69.0), STAR, (-SCALE / 3600, SCALE / 3600), turn, SCALE)
    image = np.random.default_rng(seed).normal(0, noise, wcs.shape)
    yy, xx = np.mgrid[:140, :150]
    sigma, truth = psf_fwhm("F444W") / SCALE / 2.3548, []
    for separation, angle, peak in planets:
        dx, dy = (separation * f(math.radians(angle)) / 3600 for f in (math.sin, math.cos))
        ra, dec = STAR[0] + dx / math.cos(math.radians(STAR[1])), STAR[1] + dy
        x, y = wcs.sky_to_pixel(ra, dec)
        image += peak * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))
        facts = {
            "separation": separation,
            "angle": angle,
            "contrast": 1e-5,
            "flux_jy": 1e-5,
            "ra": ra,
            "dec": dec,
        }
        truth.append(types.SimpleNamespace(**facts))
    science = ExposureRecord("a", "a.fits", "science", (2, 9, 9), ExposureMeta(filter="F444W"))
    return Record(exposures={"a": science}, images={5: image.astype("f4")}, wcs=wcs), truth


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_planets_are_found_where_they_are_with_the_numbers_of_the_report(seed):
    planets = ((0.95, 70.0, 20.0), (1.65, 195.0, 10.0), (3.1, 318.0, 5.0), (2.3, 20.0, 0.1))
    record, truth = record_of(planets, seed=seed)
    result = Result((gpucoron.ProductResult("a", record=record),), (), {}, (), None, None)
    found = find_known(record, [(p.ra, p.dec) for p in truth], STAR)
    table = result.candidates(STAR)
    reported = {(c["x"].value, c["y"].value): c["snr"] for c in table}
    for seen, planet in zip(found[:3], truth, strict=False):
        (east, north), turn = seen.offset, math.radians(planet.angle)
        true = planet.separation * math.sin(turn), planet.separation * math.cos(turn)
        assert math.dist((east, north), true) < 0.05 * SCALE
        assert seen.candidate.snr == reported[seen.candidate.x, seen.candidate.y] > 20
        assert "no forward model" in seen.caveat and not seen.doubtful
    last = found[3].candidate  # which is too faint to be one of the report's
    assert (last.x, last.y) not in reported
    lines = list(cli_demo.planet_lines(result, types.SimpleNamespace(planets=truth, star=STAR)))
    assert sum("no model" in line for line in lines) == 4  # no flux that is off by ten
    assert sum(bool(re.search(r"^ +true +\d\.\d{3}", line)) for line in lines) == 4
    assert max(map(len, lines)) <= 80


def test_width_of_the_psf():
    assert psf_fwhm("F444W") == pytest.approx(1.1 * 4.44e-6 / 6.5 * 206264.8, rel=1e-5)
    assert psf_fwhm("F1140C") == pytest.approx(1.1 * 11.4e-6 / 6.5 * 206264.8, rel=1e-5)


def test_the_demo_offers_every_instrument():
    actions = command_parser("demo", truncate=1)._actions
    (choices,) = (action.choices for action in actions if action.dest == "instrument")
    assert choices == list(INSTRUMENTS)


def test_the_demo_end_to_end(tmp_path, monkeypatch, capsys):
    small = {"shape": (96, 96), "n_science": 2, "n_integrations": 2}
    small |= {"n_references": 3, "n_reference_integrations": 1}
    monkeypatch.setattr("gpucoron.simulate.DEMO", small)
    assert cli.main(["demo", str(tmp_path / "d"), "--no-save", "psfalign"]) == 0
    out, err = capsys.readouterr()
    files = [line for line in out.splitlines() if line.startswith("/") and line.endswith(".fits")]
    assert len(files) == 5 + 1 + 2 + 1 and files[-1].endswith("_i2d.fits")
    assert "injected planets in" in out and out.count(" found ") == 3 == out.count(" true ")
    *_, report, image = out.splitlines()
    assert report.startswith("Open the report") and Path(report.split(": ")[1]).is_file()
    assert image.endswith(files[-1])
    # the planets that are candidates have one signal-to-noise, here and in the report
    page = Path(report.split(": ")[1]).read_text()
    rows = [
        re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr.*?</tr>", page, re.S)
    ]
    listed = {row[6] for row in rows if len(row) > 8 and "″" in row[1]}  # after significance
    planets = re.findall(r" found .* ([\d.]+) +[\d.]+\n", out)
    assert len(planets) == 3 and listed & set(planets), (planets, listed)
    assert re.search(r"  total +\d+\.\d\d", err)
