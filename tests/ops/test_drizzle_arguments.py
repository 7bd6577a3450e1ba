"""Arguments that drizzle refuses, and those that it takes."""

import numpy as np
import pytest

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.drizzle import Drizzle, fill_value, overlaps
from tests.ops.test_drizzle import OUTPUT, SHAPE, distorted_map, scene


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("kernel", "round", "'round', expected one of 'square', 'point', 'turbo', 'gau"),
        ("pixel_scale_ratio", 0, "0, expected a number from 1e-6 to 1e6, or"),
        ("pixel_scale_ratio", "x", "'x', expected a number from 1e-6 to 1e6"),
        ("pixfrac", 1.5, "1.5, expected a number from 0 to 1"),
        ("pixfrac", "much", "'much', expected a number from 0 to 1"),
        ("fillval", "empty", "'empty', expected 'NAN', 'INDEF' or a number"),
        ("output shape", (0, 4), r"\(0, 4\), expected at least 1 pixel"),
        ("output shape", 7, r"7, expected \(ny, nx\)"),
    ],
)
def test_parameter_errors(name, value, message):
    with pytest.raises(ParameterError, match=f"^{name} is {message}"):
        Drizzle(**{"output_shape": OUTPUT, name.replace(" ", "_"): value})


def test_fill_value():
    assert np.isnan([fill_value(v) for v in (None, "", "NaN", "indef", " INDEF ")]).all()
    assert fill_value("-1e3") == -1000.0


def test_input_errors(device):
    images, weights = map(device.array, scene(2))
    pixel_map = device.array(distorted_map(SHAPE, OUTPUT))
    d = Drizzle(OUTPUT)
    other = overlaps(pixel_map, OUTPUT, pixfrac=0.5)
    for message, *given in (
        (r"pixel map is for images of shape \(41, 33\), but", images[:, 1:], pixel_map),
        (r"weights: shape \(2, 40, 33\) does not fit", images, pixel_map, weights[:, 1:]),
        (r"pixel map has shape \(41, 33\), expected", images, pixel_map[..., 0]),
        (r"kernel, pixfrac and pixel_scale_ratio \(\(39, 46\), ", images, other),
    ):
        with pytest.raises(InputError, match=message):
            d.add(*given)
    with pytest.raises(InputError, match=r"weigh_variances has shape \(3,\)"):
        d.add(images, pixel_map, weigh_variances=[1.0, 2.0, 3.0])
    assert d.n_added == 0
