"""The demo: planets found in an i2d whose truth is known, and the whole of it, in small."""

import math
import re
import types

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from gpucoron.analysis.detection import psf_fwhm
from gpucoron.cli import demo as cli_demo
from gpucoron.cli import main as cli
from gpucoron.cli.options import command_parser
from gpucoron.optics.instruments import INSTRUMENTS

STAR = (150.2, -30.4)
SCALE = 0.0625  # arcsec


@pytest.fixture
def i2d(tmp_path):
    """Write an i2d with three Gaussian planets in noise; return its path and their truth."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval, wcs.wcs.crpix = STAR, (75.0, 70.0)
    wcs.wcs.cdelt = -SCALE / 3600, SCALE / 3600
    wcs.wcs.pc = [[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]]
    image = np.random.default_rng(3).normal(0, 0.1, (140, 150))
    yy, xx = np.mgrid[:140, :150]
    planets = []
    sigma = psf_fwhm("F444W") / SCALE / 2.3548
    for separation, angle, peak in ((0.95, 70.0, 20.0), (1.65, 195.0, 10.0), (3.1, 318.0, 5.0)):
        dx, dy = (separation * f(math.radians(angle)) / 3600 for f in (math.sin, math.cos))
        ra, dec = STAR[0] + dx / math.cos(math.radians(STAR[1])), STAR[1] + dy
        x, y = wcs.all_world2pix(ra, dec, 0)
        image += peak * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))
        facts = {"separation": separation, "angle": angle, "contrast": 1e-5, "ra": ra, "dec": dec}
        planets.append(types.SimpleNamespace(**facts))
    path = tmp_path / "a_i2d.fits"
    sci = fits.ImageHDU(image.astype(np.float32), wcs.to_header(), name="SCI")
    fits.HDUList([fits.PrimaryHDU(header=fits.Header({"FILTER": "F444W"})), sci]).writeto(path)
    return path, planets


def test_planets_are_found_where_they_are_and_have_rows(i2d):
    path, planets = i2d
    found, scale = cli_demo.find_planets(path, planets, STAR)
    assert scale == pytest.approx(SCALE, rel=1e-6)
    for place, seen in found:
        assert seen.converged and math.hypot(seen.x - place[0], seen.y - place[1]) < 0.05
        assert seen.snr > 20
    lines = list(cli_demo.planet_lines(path, types.SimpleNamespace(planets=planets, star=STAR)))
    assert sum(bool(re.search(r"^  +\d .* 0\.0\d px .* mas .* sigma$", x)) for x in lines) == 3
    assert max(map(len, lines[2:])) <= 110


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
    files = [line for line in out.splitlines() if line.endswith(".fits")]
    assert len(files) == 5 + 1 + 2 + 1 and files[-1].endswith("_i2d.fits")
    assert "injected planets in" in out and out.count("sigma\n") == 3
    assert re.search(r"  total +\d+\.\d\d", err)
