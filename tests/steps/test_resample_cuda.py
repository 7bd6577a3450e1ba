"""resample on the GPU against the CPU; what it computes is tested in test_resample.py."""

import dataclasses
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.core.stack import IntegrationStack
from gpucoron.steps.resample import resample
from tests.helpers.tolerances import DRIZZLE_ROUNDED
from tests.steps.test_resample import OUTPUT, SHAPE, changed, pixel_map, stack

ARRAYS = ("data", "err", "dq", "var_poisson", "var_rnoise", "var_flat")


def moved(device, given):
    return IntegrationStack(**{name: device.array(getattr(given, name)) for name in ARRAYS})


def both(device, given, maps, **keywords):
    """Result on the device, brought to the host, and on the CPU."""
    on_device = resample([moved(device, s) for s in given], maps, OUTPUT, **keywords)
    result = {f.name: device.get(getattr(on_device, f.name)) for f in dataclasses.fields(on_device)}
    return result, dataclasses.asdict(resample(given, maps, OUTPUT, **keywords))


def assert_close(result, expected):
    assert_array_equal(result.pop("con"), expected.pop("con"))
    for name, wanted in expected.items():
        assert result[name].dtype == wanted.dtype == np.float32
        assert_array_equal(np.isnan(result[name]), np.isnan(wanted))
        assert_allclose(result[name], wanted, rtol=10 * DRIZZLE_ROUNDED, err_msg=name)


@pytest.mark.parametrize("at_once", [2**24, 2 * SHAPE[0] * SHAPE[1]])
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"weight_type": "exptime", "exposure_times": [10.0, 25.0, 40.0]},
        {"kernel": "point", "fillval": "-1"},
        {"kernel": "gaussian", "pixfrac": 0.8, "err_from": "var"},
        {"kernel": "turbo", "pixel_scale_ratio": 0.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("known", ["all", "no read noise", "none"])
def test_equals_the_cpu(device, monkeypatch, keywords, known, at_once):
    monkeypatch.setattr(sys.modules[resample.__module__], "GPU_PIXELS_AT_ONCE", at_once)
    given = [stack(5, 1, known != "none"), stack(1, 2, known != "none"), stack(3, 3)]
    if known != "all":
        given = [s.replace(var_rnoise=None) for s in given]
    if known == "none":
        given[2] = given[2].replace(var_poisson=None, var_flat=None)
    shared = pixel_map(4.0)
    assert_close(*both(device, given, [shared, pixel_map(-3.0), shared], **keywords))


@pytest.mark.parametrize(
    "name, value",
    [
        ("data", np.nan),
        ("data", -np.inf),
        ("err", np.nan),
        ("err", np.inf),
        ("var_flat", np.nan),
        ("var_flat", np.inf),
        ("var_rnoise", np.nan),
        ("var_rnoise", 0.0),
        ("var_rnoise", np.inf),
        ("var_rnoise", -2.0),
        ("dq", 1),
        ("dq", 512),
        ("dq", 5),
        ("dq", 4),
    ],
)
def test_odd_pixels(device, name, value):
    given = changed(stack(), **{name: (np.s_[1, 8:10, 10], value)})
    assert_close(*both(device, [given], [pixel_map(3.0)]))


def test_other_types_and_a_map_on_the_device(device):
    given = stack(2)
    wide = given.replace(
        **{name: getattr(given, name).astype(np.float64) for name in ARRAYS if name != "dq"}
    )
    result = resample([moved(device, wide)], [device.array(pixel_map())], OUTPUT)
    expected = resample([given], [pixel_map()], OUTPUT)
    assert_allclose(device.get(result.data), expected.data, rtol=1e-5)
    assert_allclose(device.get(result.wht), expected.wht, rtol=1e-6)


def test_nothing_good(device):
    given = stack().replace(dq=np.ones((3, *SHAPE), dtype=np.uint32))
    result, expected = both(device, [given], [pixel_map()], fillval="-1")
    assert (result["data"] == -1).all() and not result["wht"].any()
    assert_close(result, expected)
