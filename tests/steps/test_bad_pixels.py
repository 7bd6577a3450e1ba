import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.core.stack import IntegrationStack, PlaneSource
from gpucoron.steps import BadPixelFiller, ReferenceLibrary
from tests.helpers import tolerances
from tests.helpers.scenes import changed, read_only, speckles

SHAPE = (34, 37)


def stack(seed, groups, holes=True):
    """Integrations of a few exposures, the star in another place in each."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-0.6, 0.6, (max(groups) + 1, 2))
    clean = np.array(
        [speckles(SHAPE, places[g] + rng.normal(0, 0.01, 2), brightness=5) for g in groups]
    )
    err = np.sqrt(1 + 0.02 * clean.clip(0))
    data = clean + rng.normal(size=clean.shape) * err
    dq = (rng.random(data.shape) < 0.02).astype(np.uint32)
    if holes:
        dq[:, 15:19, 18:22] |= 1  # in the star's core
    dq[:, :, :2] |= 1 | 512
    err[(dq & 1) > 0] = data[(dq & 1) > 0] = np.nan
    arrays = read_only(data.astype(np.float32), err.astype(np.float32), dq)
    return IntegrationStack(*arrays, sources=tuple(PlaneSource(f"e{g}", 1) for g in groups))


def agree(device, found, expected, share=2.4e-7):
    """Equal to a share of the largest value: by default two float32 roundings."""
    found = device.get(found)
    assert found.dtype == expected.dtype
    assert_allclose(found, expected, atol=share * np.nanmax(np.abs(expected)), rtol=0)


@pytest.mark.parametrize("preset", [None, "jwst"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_devices_agree(device, preset, with_mask):
    mask = np.ones(SHAPE) if with_mask else None
    filling = BadPixelFiller(zero_non_science=with_mask, preset=preset)
    references, science = stack(0, [0, 0, 0, 1, 1, 2]), stack(1, [0, 0, 0])
    references = changed(references, data=(4, np.nan))
    expected = ReferenceLibrary(references, filling, mask=mask)
    found = ReferenceLibrary(device.put(references), filling, mask=mask)
    for name in ("groups", "usable", "err_known"):
        assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.usable[4] == (preset == "jwst")  # which fills it with zeros
    for name in ("images", "errors", "spectra", "err_spectra"):
        agree(device, getattr(found, name), getattr(expected, name))
    for got, want in zip(
        found.fill_science(device.put(science)), expected.fill_science(science), strict=True
    ):
        agree(device, got, want)


def test_double_precision_agrees_better(device):
    references = stack(2, [0, 0, 1, 1])
    double = {k: getattr(references, k).astype(np.float64) for k in ("data", "err")}
    references = references.replace(**double)
    expected = ReferenceLibrary(references, BadPixelFiller(), mask=np.ones(SHAPE))
    found = ReferenceLibrary(device.put(references), BadPixelFiller(), mask=np.ones(SHAPE))
    for name in ("images", "errors"):
        agree(device, getattr(found, name), getattr(expected, name), tolerances.FILL_REL)
