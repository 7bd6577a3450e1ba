"""The star's position: means, what is not known, what is refused."""

import json

import numpy as np
import pytest

from gpucoron.core.star import CombinedStar, StarPositions


def test_means_leave_out_what_is_not_known():
    star = StarPositions(
        [1.0, np.nan, 3.0], [2.0, np.nan, 2.0], [0.1, np.nan, 0.3], [0.1] * 3, "given"
    )
    assert star.mean == (2.0, 2.0) and star.mean_error == pytest.approx((0.2, 0.1))
    assert star.measured
    with pytest.raises(ValueError):
        star.x[0] = 0.0


@pytest.mark.parametrize(("place", "source"), [((1.0, 2.0), "wcs"), ((np.nan, 2.0), "model")])
def test_what_is_not_measured(place, source):
    assert not StarPositions.constant(place, 2, 0.1, source).measured


def test_a_record_is_json():
    star = StarPositions([1.0, np.nan], [2.0, 3.0], [np.nan] * 2, [0.5] * 2, "model", (4.0, 5.0))
    found = json.loads(json.dumps(star.as_record(), allow_nan=False))
    assert found["x"] == 1.0 and found["y"] == 2.5 and found["x_err"] is None
    assert found["mask"] == [4.0, 5.0]
    one = StarPositions([1.0], [2.0], [np.nan], [np.nan], "wcs")
    combined = CombinedStar(one, (10.0, -20.0), "wcs", 0.25)
    found = json.loads(json.dumps(combined.as_record(), allow_nan=False))
    assert (found["x"], found["x_err"], found["from_target_arcsec"]) == (1.0, None, None)


@pytest.mark.parametrize(
    ("arrays", "source", "problem"),
    [
        (([1.0], [1.0, 2.0], [0.0], [0.0]), "given", "y has shape"),
        (([[1.0]], [[1.0]], [[0.0]], [[0.0]]), "given", "x has shape"),
        (([1.0], [1.0], [0.0], [0.0]), "guess", "source is 'guess', expected one of given"),
    ],
)
def test_what_is_refused(arrays, source, problem):
    with pytest.raises(ValueError, match=problem):
        StarPositions(*arrays, source)
