"""Annuli and sections against those of pyKLIP."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyklip.klip import define_annuli_bounds, make_polar_coordinates

from gpucoron.errors import ParameterError
from gpucoron.ops.zones import annuli_bounds, make_zones


@pytest.mark.parametrize("spacing", ["constant", "log"])
@pytest.mark.parametrize("annuli, iwa, owa", [(1, 0, 8.5), (5, 3, 23), (9, 5.5, 47.1)])
def test_annuli_are_those_of_pyklip(annuli, iwa, owa, spacing):
    expected = define_annuli_bounds(annuli, iwa, owa, spacing)
    assert_allclose(annuli_bounds(annuli, iwa, owa, spacing), expected, rtol=1e-14)


def test_linear_annuli_grow_with_their_number():
    bounds = np.array(annuli_bounds(4, 2, 22, "linear"))
    assert_allclose(np.diff(bounds, axis=1)[:, 0], [2, 4, 6, 8])
    assert bounds[-1, 1] == 22


@pytest.mark.parametrize("center", [(20.0, 18.0), (19.37, 20.81)])
@pytest.mark.parametrize("annuli, subsections", [(1, 1), (3, 4), (5, 8), (4, 3), (2, 5)])
@pytest.mark.parametrize("whole, guard", [(False, 0), (True, 0), (False, 1.5)])
def test_sections_are_those_of_pyklip(center, annuli, subsections, whole, guard):
    """Also where pixels lie on borders; without an outer radius the last annulus has the rest."""
    shape, iwa = (41, 38), 2
    y, x = np.indices(shape) * 1.0
    r, phi = make_polar_coordinates(x, y, center)
    owa = r.max() if whole else 17
    bounds = define_annuli_bounds(annuli, iwa, owa)
    if whole:
        bounds[-1] = (bounds[-1][0], 1000)
    expected = np.full(shape, -1)
    for a, (start, stop) in enumerate(bounds):
        for s in range(subsections):
            low, high = (2 * np.pi / subsections * k - np.pi for k in (s, s + 1))
            high = np.pi if s == subsections - 1 else high
            inside = (r >= start) & (r < stop) & (phi >= low) & (phi < high)
            expected[inside] = a * subsections + s
    zones = make_zones(
        *(shape, center, annuli, subsections),
        **{"iwa": iwa, "owa": None if whole else owa, "optimise": 2.5, "guard": guard},
    )
    assert_array_equal(zones.labels, expected)
    assert len(zones) == annuli * subsections
    assert_allclose(zones.radii[0], (bounds[0][0] + min(bounds[0][1], owa)) / 2)
    for zone, area in enumerate(zones.optimise):
        near = np.argwhere(expected == zone)[:, :, None, None]
        distance = np.hypot(*(near.swapaxes(0, 1) - np.indices(shape)[:, None]))
        nearest = distance.min(axis=0, initial=np.inf)
        assert_array_equal(area, (nearest <= 2.5) & ((nearest > guard) | (guard == 0)))


@pytest.mark.parametrize(
    "options, text",
    [
        (
            {"annuli": 30},
            "klip.annuli is 30: between 0 and 29.7 px an annulus would be 0.99 px wide",
        ),
        ({"iwa": 40}, "klip.iwa is 40 px, and the farthest pixel is 29.7 px"),
        ({"iwa": 9, "owa": 8}, "klip.iwa is 9 px, klip.owa is 8 px, and the farthest pixel"),
        ({"guard": 3, "optimise": 3}, "klip.guard is 3 px and klip.optimise 3 px, which leaves no"),
        ({"guard": 1}, "klip.guard is 1 px and klip.optimise 0 px"),
        ({"spacing": "cubic"}, "klip.annuli_spacing is 'cubic', expected constant or log"),
    ],
)
def test_zones_that_cannot_be_are_refused(options, text):
    with pytest.raises(ParameterError, match=text):
        make_zones((41, 38), (20, 18), **options)
