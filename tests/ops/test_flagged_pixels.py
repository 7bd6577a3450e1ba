"""Flags of shifted images against distances between pixels."""

import numpy as np
import pytest

from gpucoron.ops.dq import DO_NOT_USE, NON_SCIENCE
from gpucoron.ops.flagged_pixels import FlaggedPixels

SHIFTS = [(0, 0), (0.05, -0.3), (-0.95, 0.5), (2.6, 0.11), (-1.5, -3.2), (0.09, 11), (-40, 0.2)]


@pytest.mark.parametrize("shift", SHIFTS)
def test_shifted_flags_by_distances(device, shift):
    """Flags reach 0.9 px along both axes; what comes from beyond the edge is NON_SCIENCE."""
    rng = np.random.default_rng(4)
    dq = np.where(rng.random((2, 9, 13)) < 0.2, rng.integers(1, 2**32, (2, 9, 13)), 0)
    flagged = FlaggedPixels(device.array(dq.astype(np.uint32)))
    near, outside = [], []
    for n, s in zip(dq.shape[1:], shift, strict=True):
        place = np.arange(n) - s  # where each pixel was
        near.append(abs(place[:, None] - np.arange(n)) < 0.9)
        outside.append((place < -0.5) | (place > n - 0.5))
    edge = outside[0][:, None] | outside[1]
    for k, image in enumerate(dq):
        expected = np.where(edge, DO_NOT_USE | NON_SCIENCE, 0)
        for bit in 2 ** np.arange(32):
            expected |= bit * ((near[0] @ ((image & bit) != 0) @ near[1].T) > 0)
        found = flagged.shifted(k, shift)
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(found, expected)
