"""The unit of the pixels changes no result: SCI and ERR times 2^k, VAR_* times 2^2k."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import gpucoron
from tests.helpers.tiny_sets import TinySet, one_thread  # noqa: F401

VARIANCES = ("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")


def run(tiny, weight_type):
    options = {"klip_truncate": 3, "resample_weight_type": weight_type, "device": "cpu"}
    result = gpucoron.run(tiny.asn, psfmask=tiny.mask, keep=("crfints", "psfsub", "i2d"), **options)
    return result.product, result.warnings


def scaled(tiny, k):
    """Scale the exposures; powers of two are exact."""
    one, two = (lambda a, n=n: np.ldexp(a, n * k) for n in (1, 2))
    tiny.edit(SCI=one, ERR=one, **dict.fromkeys(VARIANCES, two))


def with_companion_and_nan(tiny):
    """Put a companion, a cosmic ray and a NaN into the science exposures."""
    y, x = np.indices((36, 40))
    companion = 30 * np.exp(-((y - 9) ** 2 + (x - 30) ** 2) / 4)

    def change(sci):
        sci = (sci + companion).astype(np.float32)
        sci[0, 20, 25], sci[1, 17, 14] = 5e3, np.nan
        return sci

    tiny.edit(*tiny.science, SCI=change)


def assert_scaled(found, expected, k, weight_power):
    powers = {"data": 1, "err": 1, "wht": weight_power, "dq": 0, "con": 0}
    powers |= {name.lower(): 2 for name in VARIANCES}
    for name, power in powers.items():
        if hasattr(expected, name):
            values = getattr(found, name)
            values = np.ldexp(values, -k * power) if power else values
            assert_array_equal(values, getattr(expected, name), err_msg=name)


@pytest.mark.parametrize(
    "instrument, weight_type, k",
    [("nircam", "ivm", 50), ("nircam", "exptime", -50), ("miri-lyot", "ivm", -37)],
)
def test_products_scale_exactly(tmp_path, instrument, weight_type, k):
    tiny = TinySet(tmp_path, instrument)
    with_companion_and_nan(tiny)
    expected, warnings = run(tiny, weight_type)
    scaled(tiny, k)
    found, warnings_scaled = run(tiny, weight_type)
    assert warnings_scaled == warnings
    assert expected.i2d.con.any() and any((s.dq & 16).any() for s in expected.crfints.values())
    for name, fits in expected.fits.items():
        fits["residual"] *= 2.0**k
        for column in fits.dtype.names:
            assert_array_equal(found.fits[name][column], fits[column])
    for kind in ("crfints", "psfsub"):
        for name, stack in getattr(expected, kind).items():
            assert_scaled(getattr(found, kind)[name], stack, k, 0)
    assert_scaled(found.i2d, expected.i2d, k, -2 if weight_type == "ivm" else 0)
