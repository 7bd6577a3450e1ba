"""Real data: AU Mic and its edge-on disk, behind NIRCam's round mask."""

import numpy as np
import pytest
from astropy.io import fits

from tests.parity.conftest import SETS

pytestmark = pytest.mark.slow

STAR = (150, 174)  # x, y from 0
RADII = (8, 40)  # px
#: Standard deviation in the annulus, MJy/sr: of the exposure, and of what the jwst package leaves.
ROLLS = {"jw01184001001": (49.8, 2.695), "jw01184002001": (47.9, 2.439)}


def scatter(path):
    image = fits.getdata(path, "SCI")[0]
    y, x = np.indices(image.shape)
    r = np.hypot(x - STAR[0], y - STAR[1])
    return float(np.nanstd(image[(r >= RADII[0]) & (r <= RADII[1])], dtype=np.float64))


@pytest.mark.parametrize(
    "comparison", [s for s in SETS if s.values == ("aumic_f444w",)], indirect=True
)
@pytest.mark.parametrize("roll", ROLLS)
def test_star_is_removed_to_what_jwst_leaves(comparison, shared_data, roll):
    before, after = ROLLS[roll]
    exposure = next((shared_data / "aumic_f444w").glob(f"{roll}*_calints.fits"))
    assert scatter(exposure) == pytest.approx(before, rel=0.005)
    for folder in (comparison.ours, comparison.theirs):
        product = next(folder.glob(f"{roll}*_psfsub.fits"))
        assert scatter(product) == pytest.approx(after, rel=0.005)
