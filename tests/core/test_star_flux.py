"""Flux density of the star: units, magnitudes, spectra through filters, files."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.modeling.physical_models import BlackBody
from astropy.units import K, micron
from scipy import integrate

from gpucoron.core.parameters import Parameters
from gpucoron.core.star_flux import StarFlux, band_flux
from gpucoron.errors import InputError, ParameterError
from gpucoron.io.exposures import ExposureMeta
from gpucoron.io.spectra import read_curve
from gpucoron.pipeline.star_flux import given_star_flux

META = {"instrument": "NIRCAM", "detector": "NRCALONG", "channel": "LONG", "pupil": "MASKRND"}
META |= {"coronmsk": "MASKA335R", "subarray": "SUB320A335R", "filter": "F444W"}


class _Exposure:
    """What `given_star_flux` looks at."""

    meta = ExposureMeta(**META)


def given(**keywords):
    return given_star_flux(Parameters.from_sources(keywords=keywords), _Exposure)


@pytest.mark.parametrize(
    ("text", "jy"), [("1.2Jy", 1.2), ("350 mJy", 0.35), (2, 2.0), ("5e3uJy", 5e-3), ("0.5", 0.5)]
)
def test_units(text, jy):
    assert given(star_flux=text).jy == pytest.approx(jy)


def test_magnitudes():
    flux = given(star_magnitude=2.5, vega_zero_point=100)
    assert flux.jy == pytest.approx(10) and "zero point 100 Jy" in flux.source
    assert StarFlux(1.0, np.nan, "x").as_record() == {"jy": 1.0, "error_jy": None, "source": "x"}


def test_a_spectrum_in_a_filter_is_an_integral_over_photons():
    wavelength = np.linspace(3, 6, 3001)
    star = BlackBody(4000 * K)

    def spectrum(um):
        return star(um * micron).value * 1e3

    def curve(um):
        return np.exp(-(((um - 4.4) / 0.3) ** 2))

    filter_um = np.linspace(3.4, 5.4, 2001)
    above, below = (
        integrate.quad(lambda um, f=f: f(um) * curve(um) / um, 3.4, 5.4)[0]
        for f in (spectrum, lambda um: 1.0)
    )
    found = band_flux(wavelength, spectrum(wavelength), filter_um, curve(filter_um))
    assert found == pytest.approx(above / below, rel=1e-5)


def test_files(tmp_path):
    text, table, narrow = (tmp_path / name for name in ("s.txt", "s.fits", "n.txt"))
    um, jy = np.linspace(6, 3, 31), np.linspace(1, 4, 31)  # F = 7 - um
    np.savetxt(text, np.stack([um, jy], axis=1), header="um Jy")
    np.savetxt(narrow, [[4.0, 1.0], [4.2, 1.0]])
    columns = [
        fits.Column("WAVELENGTH", "D", unit="nm", array=um * 1000),
        fits.Column("FLUX", "D", unit="mJy", array=jy * 1000),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(table)
    for path in (text, table):
        wavelength, flux = read_curve(path, "flux")
        np.testing.assert_allclose(wavelength, um[::-1])
        np.testing.assert_allclose(flux, jy[::-1])
        found = given(star_spectrum=path)
        assert found.jy == pytest.approx(7 - 4.38, abs=0.02)  # F444W: mean over photons
        assert "a box from 3.89 to 4.914 um" in found.source
    found = given(star_spectrum=text, filter_curve=narrow)
    assert found.jy == pytest.approx(7 - 4.1, abs=0.002) and "n.txt" in found.source
    with pytest.raises(InputError, match=r"n.txt: the spectrum is from 4 to 4.2 um, expected"):
        given(star_spectrum=narrow)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"star_flux": "-1"}, "analysis.star_flux is '-1'; expected a flux density above 0"),
        ({"star_flux": "3 mag"}, "expected a flux density above 0"),
        ({"star_magnitude": 3}, "analysis.star_magnitude is 3, expected analysis.vega_zero_point"),
        ({"vega_zero_point": 3}, "expected analysis.star_magnitude with it"),
        ({"filter_curve": "x"}, "expected analysis.star_spectrum with it"),
        ({"star_flux": 1, "star_spectrum": "x"}, "are both given, expected one of"),
    ],
)
def test_what_cannot_be_is_said(keywords, said):
    with pytest.raises(ParameterError, match=said):
        given(**keywords)


@pytest.mark.parametrize(
    "content", ["", "1 2\n", "a b\n", "1 2\n1 3\n", "1 2\n2 nan\n", "1 0\n2 0\n"]
)
def test_files_that_are_no_curves(tmp_path, content):
    path = tmp_path / "s.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=r"s\.txt: .*expected"):
        read_curve(path, "flux")


def test_a_flux_that_is_hardly_known_says_so():
    assert StarFlux(2.0, np.nan, "given").doubt == ""
    assert StarFlux(2.0, 0.3, "fitted").doubt == ""
    assert StarFlux(2.0, 1.2, "fitted, without dithers").doubt == (
        "the star's flux is known to 60% only (fitted, without dithers), and so are contrasts; "
        "expected --star-flux, --star-spectrum or --star-magnitude"
    )
