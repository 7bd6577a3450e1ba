"""Bright sources beside a star: they move the references, and not each other."""

import numpy as np
import pytest

import gpucoron
from gpucoron.ops.position_answer import position_answer
from gpucoron.pipeline.responses import answer_of
from gpucoron.simulate import simulate

PLANETS = {
    "nircam": [(1.2, 20.0, 8e-4), (1.9, 140.0, 8e-4), (1.6, 260.0, 8e-4)],
    "miri-lyot": [(3.6, 20.0, 3e-3), (4.2, 75.0, 3e-3), (5.0, 115.0, 3e-3)],
}


class _Alignment:
    fit_mask = np.ones((31, 30))


def test_the_star_of_the_answer_has_no_source():
    """With what is left of the images it is the answer of the star by itself."""
    y, x = np.indices((31, 30))
    star = np.exp(-((y - 15) ** 2 + (x - 14) ** 2) / 20.0)
    star -= star.mean()
    source = 3 * np.exp(-((y - 7) ** 2 + (x - 22) ** 2) / 4.0)
    targets, left = np.stack([star + source] * 2), np.stack([source, np.full_like(source, np.nan)])
    found = answer_of(targets, left, None, _Alignment, False)
    expected = position_answer(star, _Alignment.fit_mask)
    np.testing.assert_allclose(found.slopes, expected.slopes, atol=1e-12)
    np.testing.assert_allclose(found.maps, expected.maps, atol=1e-12)


@pytest.mark.parametrize("instrument", PLANETS)
def test_positions_of_bright_planets(instrument, tmp_path):
    """Without noise: where the simulator has them, by their sky coordinates.

    Worst: 0.022 px (NIRCam), 0.009 px (Lyot); 0.034 and 0.099 px where the star's slopes have the
    planets in them.
    """
    made = simulate(
        tmp_path,
        instrument,
        5,
        planets=PLANETS[instrument],
        disk=False,
        noise=False,
        bad_pixels=False,
        cosmic_rays=False,
        shape=(112, 112),
        n_integrations=1,
        n_references=5,
        n_reference_integrations=1,
    )
    result = gpucoron.run(
        made.asn, klip_truncate=4, resample_center="wcs", forward_model=True, device="cpu"
    )
    table, wcs = result.candidates(), result.product.wcs
    assert len(table) >= 3
    for planet in made.planets:
        place = np.array(wcs.sky_to_pixel(planet.ra, planet.dec))
        apart = np.hypot(table["x"].value - place[0], table["y"].value - place[1])
        assert apart.min() < 0.025
