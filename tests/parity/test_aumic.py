"""Real data: AU Mic and its edge-on disk, behind NIRCam's round mask."""

import numpy as np
import pytest
from astropy.io import fits

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("parity-aumic_f444w")]

STAR = (150, 174)  # x, y from 0
RADII = (8, 40)  # px
#: Standard deviation in the annulus, MJy/sr: of the exposure, and of what the jwst package leaves.
ROLLS = {"jw01184001001": (49.8, 2.695), "jw01184002001": (47.9, 2.439)}


def scatter(image):
    y, x = np.indices(image.shape)
    r = np.hypot(x - STAR[0], y - STAR[1])
    return float(np.nanstd(image[(r >= RADII[0]) & (r <= RADII[1])], dtype=np.float64))


@pytest.fixture(scope="module")
def subtracted(shared_data, tmp_path_factory):
    import gpucoron

    asn = next((shared_data / "aumic_f444w").glob("*_asn.json"))
    folder = tmp_path_factory.mktemp("aumic")
    gpucoron.run(
        asn,
        device="cpu",
        output_dir=folder,
        preset="jwst",
        save=("psfsub",),
        keep=(),
        psfmask=shared_data / "psfmask" / "jwst_nircam_psfmask_0019.fits",
    )
    return folder


@pytest.mark.parametrize("roll", ROLLS)
def test_star_is_removed_to_what_jwst_leaves(shared_data, subtracted, roll):
    before, after = ROLLS[roll]
    exposure = next((shared_data / "aumic_f444w").glob(f"{roll}*_calints.fits"))
    assert scatter(fits.getdata(exposure, "SCI")[0]) == pytest.approx(before, rel=0.005)
    product = next(subtracted.glob(f"{roll}*_psfsub.fits"))
    assert scatter(fits.getdata(product, "SCI")[0]) == pytest.approx(after, rel=0.005)
