"""The hole of a psfmask: found in the real ones, compared with the star, moved onto it."""

import logging
import math

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.io.psfmask_hole import center_hole, find_hole, move_mask

# middle of the region by eye in the image, pixels from 1; NaN across a bar only
REAL = {
    "jwst_nircam_psfmask_0019.fits": (160.5, 160.5),
    "jwst_nircam_psfmask_0027.fits": (160.5, 160.5),
    "jwst_nircam_psfmask_0049.fits": (320.5, 320.5),
    "jwst_nircam_psfmask_0003.fits": (math.nan, 160.5),
    "jwst_miri_psfmask_0009.fits": (145.0, 165.0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_masks(name, shared_data):
    with fits.open(shared_data / "psfmask" / name) as hdus:
        mask = hdus["SCI"].data.astype(float)
        bar = hdus[0].header["CORONMSK"].endswith("WB")
    ny, nx = mask.shape
    for x, y in ((nx / 2, ny / 2), (nx / 2 - 9, ny / 2 + 14)):
        found = find_hole(mask, (x, y), bar)
        np.testing.assert_allclose(found, REAL[name], atol=0.01)


def soft(x, y, shape=(60, 80), radius=5.0):
    """Return a mask with a soft round hole at x, y (from 1), and a border of zeros."""
    yy, xx = np.indices(shape)
    mask = np.clip(np.hypot(xx - x + 1, yy - y + 1) - radius, 0.0, 1.0)
    mask[:4] = mask[:, :6] = 0.0
    return mask


@pytest.mark.parametrize("seed", range(3))
def test_a_mask_is_moved_onto_the_star(seed, caplog):
    random = np.random.default_rng(seed)
    hole, star = random.uniform((25, 25), (55, 35)), random.uniform((25, 25), (55, 35))
    mask = soft(*hole)
    with caplog.at_level(logging.INFO):
        found, how = center_hole(mask, (tuple(star), "given"), name="m.fits", move=True)
    away = np.subtract(find_hole(found, tuple(star)), star)
    assert np.all(np.abs(away) <= 0.65) and "onto the star" in how
    dx, dy = (int(round(v)) for v in np.subtract(star, hole))
    np.testing.assert_allclose(find_hole(move_mask(mask, dx, dy), tuple(star)), star, atol=0.65)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_moving_there_and_back():
    mask = soft(40.0, 30.0)
    again = move_mask(move_mask(mask, 7, -5), -7, 5)
    np.testing.assert_array_equal(again[5:, :-7], mask[5:, :-7])
    moved = move_mask(mask, 7, -5)
    np.testing.assert_array_equal(moved[:-5, 7:], mask[5:, :-7])
    assert np.all(moved[-5:, 7:] == mask[-1, :-7])


def test_a_bar_is_moved_across_only():
    mask = np.ones((50, 60))
    mask[20:31] = 0.0
    found, _ = center_hole(mask, ((11.0, 29.2), "given"), name="m.fits", bar=True, move=True)
    np.testing.assert_array_equal(np.flatnonzero(found[:, 0] == 0), np.arange(23, 34))


@pytest.mark.parametrize(
    ("star", "bar", "move", "said"),
    [
        ((40.0, 31.5), False, False, ""),
        ((43.0, 34.0), False, False, "5.0 px from the star at x, y = 43.0, 34.0 (CRPIX1, CRPIX2)"),
        (None, False, False, ""),
        (None, False, True, "the star's position is not known"),
    ],
)
def test_warnings(star, bar, move, said, caplog):
    mask = soft(40.0, 30.0)
    place = None if star is None else (star, "CRPIX1, CRPIX2")
    found, how = center_hole(mask, place, name="m.fits", bar=bar, move=move)
    assert found is mask and not how
    assert (said in caplog.text and caplog.text.count("m.fits") == 1) if said else not caplog.text


def test_a_mask_without_a_hole(caplog):
    mask = np.ones((30, 30))
    mask[:, :5] = mask[14, 15] = 0.0
    assert find_hole(mask, (15.0, 15.0)) is None
    found, _ = center_hole(mask, ((15.0, 15.0), "given"), name="m.fits", move=True)
    assert found is mask and "it has no hole" in caplog.text
