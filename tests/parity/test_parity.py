"""The preset "jwst" against the jwst package itself, product by product."""

import itertools

import numpy as np
import pytest
from astropy.io import fits

from tests.parity.conftest import NAMES, PARAMETERS

pytestmark = pytest.mark.slow

STACKS, PLANES = ("crfints", "psfstack", "psfalign", "psfsub"), ("SCI", "ERR", "DQ")
FILES = {*STACKS, "i2d"}
COMBINED = "SCI ERR CON WHT VAR_POISSON VAR_RNOISE VAR_FLAT".split()


def test_both_wrote_the_same_files(comparison):
    names = sorted(p.name for p in comparison.theirs.glob("*.fits"))
    assert sorted(p.name for p in comparison.ours.glob("*.fits")) == names
    assert {n.removesuffix(".fits").rpartition("_")[2] for n in names} == FILES


def test_shifts(comparison):
    assert len(comparison.report.shifts) == len(comparison.pairs("psfalign"))
    for shifts in comparison.report.shifts:
        assert shifts.pairs > 0 and shifts.left_out == 0 and shifts.largest <= 1e-6


def test_all_is_compared_and_within_its_limit(comparison):
    """The limits: gpucoron/verify/expect.py; that they are kept to: test_verify.py."""
    compared = {(image.product, image.hdu) for image in comparison.report.images}
    assert compared >= {*itertools.product(STACKS, PLANES), *itertools.product(["i2d"], COMBINED)}
    assert {t.hdu for t in comparison.report.tables} >= {"HDRTAB", "INT_TIMES"}
    assert comparison.report.problems() == []
    assert comparison.report.parameters == PARAMETERS.get(comparison.name, {})


def test_runs_are_on_record(comparison):
    runs = comparison.report.runs
    for name in ("jwst", "gpucoron"):
        assert 0 < runs[name]["wall_s"] < runs[name]["process_s"]
        assert runs[name]["peak_mib"] > 50
    trial = runs["jwst"]["alignment"]
    if runs["jwst"]["version"].startswith("3.0.0") and int(runs["jwst"]["numpy"].split(".")[0]) > 1:
        assert not trial["aligns"]
        assert any("does NOT align" in line for line in comparison.report.lines())


@pytest.mark.parametrize("comparison", [name for name in NAMES if "awkward" in name], indirect=True)
def test_reference_without_pixels_is_left_out_of_both(comparison):
    (note,) = comparison.report.notes
    assert "00002_nrcalong_calints.fits: reference integration 3 of 3" in note
    (pair,) = comparison.pairs("psfstack")
    assert {len(fits.getdata(path, "SCI")) for path in pair} == {7}


# ---- real data: AU Mic and its edge-on disk, behind NIRCam's round mask
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
    "comparison", [name for name in NAMES if name == "aumic_f444w"], indirect=True
)
@pytest.mark.parametrize("roll", ROLLS)
def test_star_is_removed_to_what_jwst_leaves(comparison, shared_data, roll):
    before, after = ROLLS[roll]
    exposure = next((shared_data / "aumic_f444w").glob(f"{roll}*_calints.fits"))
    assert scatter(exposure) == pytest.approx(before, rel=0.005)
    for folder in (comparison.ours, comparison.theirs):
        product = next(folder.glob(f"{roll}*_psfsub.fits"))
        assert scatter(product) == pytest.approx(after, rel=0.005)
