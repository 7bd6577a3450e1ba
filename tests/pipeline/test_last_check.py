"""Products out of proportion to their input, and references far from the science star."""

import logging

import numpy as np
import pytest

import gpucoron
from gpucoron.core.stack import IntegrationStack
from gpucoron.pipeline.last_check import LastCheck
from tests.helpers.tiny_sets import TinySet, one_thread  # noqa: F401

pytestmark = pytest.mark.slow

SHAPE = (3, 20, 22)
ARRAYS = ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")


def subtracted(left, flagged=0.0, subtract=True, zoned=False):
    """An exposure before and after subtraction (in a small zone) that leaves a share of its rms."""
    rng = np.random.default_rng(3)
    data = 100 + 40 * rng.normal(size=SHAPE)
    dq = np.zeros(SHAPE, np.uint32)
    dq[:, :6, :] = 512 + 1  # outside the coronagraph's field
    dq[:, 6:][rng.uniform(size=data[:, 6:].shape) < flagged] = 1
    data[dq != 0] = 1e6
    before = IntegrationStack(data=data, err=np.ones(SHAPE), dq=dq)
    after = np.where(dq != 0, data, left * (data - 100))
    if zoned:
        after[:, :, 8:], marked = np.nan, dq.copy()
        marked[:, :, 8:] |= 512 + 1
        return before, {5: before.replace(data=after, dq=marked)}
    return before, {5: before.replace(data=after), 1: before} if subtract else {}


def warnings_of(caplog, image, ratio=1.0, **options):
    mask = np.ones(SHAPE[1:])
    mask[9:12, 9:12] = 0
    check = LastCheck("product")
    check.note_subtracted("jw1_nrcalong", mask, *subtracted(**options))
    with caplog.at_level(logging.WARNING, "gpucoron"):
        check.warn({5: image} if image is not None else {}, ratio)
    return [r.getMessage() for r in caplog.records]


WHOLE = np.zeros((26, 26))
HALF = np.where(np.arange(26) < 3, 0.0, np.nan) * np.ones((26, 1))


@pytest.mark.parametrize(
    ("options", "image", "ratio", "expected"),
    [
        ({"left": 0.1}, WHOLE, 1.0, []),
        ({"left": 0.7, "flagged": 0.3}, WHOLE, 1.0, []),
        ({"left": 1.0, "subtract": False}, None, 1.0, []),
        ({"left": 0.9}, WHOLE, 1.0, ["leaves 90% of the rms of jw1_nrcalong"]),
        ({"left": 1.5}, None, 1.0, ["leaves 150% of the rms of jw1_nrcalong"]),
        ({"left": 0.1, "zoned": True}, None, 1.0, []),
        ({"left": 0.9, "zoned": True}, None, 1.0, ["leaves 90% of the rms of jw1_nrcalong"]),
        ({"left": 0.1, "flagged": 0.7}, WHOLE, 1.0, ["of the pixels of jw1_nrcalong"]),
        ({"left": 0.1}, HALF, 1.0, ["i2d has 78 finite pixels (expected: about 308"]),
        ({"left": 0.1}, HALF, 2.0, []),
        ({"left": 0.1}, np.zeros((5, 5)), 1.0, []),
    ],
)
def test_what_is_out_of_proportion_is_named(caplog, options, image, ratio, expected):
    texts = warnings_of(caplog, image, ratio, **options)
    assert len(texts) == len(expected)
    for text, part in zip(texts, expected, strict=True):
        assert text.startswith("product: ") and part in text


def run(tiny, **options):
    options |= {"psfmask": tiny.mask, "device": "cpu", "klip_truncate": 2}
    return gpucoron.run(tiny.asn, keep={"psfsub"}, **options)


def far(tiny, y, x):
    """Move all of the references' arrays."""
    tiny.edit(*tiny.psf, **dict.fromkeys(ARRAYS, lambda a: np.roll(a, (y, x), axis=(1, 2))))


@pytest.mark.parametrize("instrument", ["nircam", "miri-4qpm"])
def test_references_anywhere_in_the_frame_are_found(tmp_path, instrument):
    tiny = TinySet(tmp_path, instrument)
    near = run(tiny)
    far(tiny, -11, 9)
    found = run(tiny)
    assert near.warnings == found.warnings == ()
    for root, fits in near.product.fits.items():
        moved = found.product.fits[root]
        assert (moved["status"] == 0).all()
        np.testing.assert_allclose(moved["x"] - 9, fits["x"], atol=0.1)
        np.testing.assert_allclose(moved["y"] + 11, fits["y"], atol=0.1)
    for (root, _), images in near.product.psfsub.items():
        good = (images.dq & 1) == 0
        rms = [np.std(r.product.psfsub[root].data[good]) for r in (near, found)]
        assert rms[1] < 1.1 * rms[0]


def test_the_preset_does_not_search(tmp_path):
    tiny = TinySet(tmp_path)
    far(tiny, 0, 9)
    result = run(tiny, preset="jwst")
    assert any("inconsistent" in w for w in result.warnings)


def test_noise_is_named_and_the_run_goes_on(tmp_path):
    tiny = TinySet(tmp_path)
    rng = np.random.default_rng(1)
    tiny.edit(*tiny.psf, SCI=lambda a: rng.normal(0, 1, a.shape).astype(a.dtype))
    result = run(tiny)
    roots = list(result.product.fits)
    for root in roots:
        assert (result.product.fits[root]["status"] == 4).all()
        text = f"{root}: no image could be registered"
        assert sum(w.startswith(text) for w in result.warnings) == 1
        assert sum(f"of the rms of {root} within" in w for w in result.warnings) == 1
