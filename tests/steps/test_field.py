"""Areas without data: against scipy's morphology, and what they do to the subtracted background."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import ndimage

from gpucoron.core.stack import IntegrationStack
from gpucoron.ops.dq import DO_NOT_USE, FLUX_ESTIMATED, NON_SCIENCE
from gpucoron.steps import Alignment, klip
from gpucoron.steps.field import area_in_references, empty_area, field_weight, registration_mask
from tests.helpers.scenes import read_only, speckles

SHAPE = (40, 47)
OFFSETS = [(0.4, -0.3), (-0.8, 0.2), (0.1, 0.9), (0.6, -0.5), (-0.2, -0.4)]


def box(radius):
    return np.ones((2 * radius + 1, 2 * radius + 1))


def flags_with_areas(seed):
    """NON_SCIENCE in one image only; clusters and single bad pixels in all, and in one."""
    rng = np.random.default_rng(seed)
    bad = (rng.random((3, *SHAPE)) < 0.1) | (rng.random(SHAPE) < 0.1)
    bad[:, 20:28, 5:11] = bad[0, 3:12, 30:40] = True
    flags = np.where(bad, np.uint32(DO_NOT_USE | FLUX_ESTIMATED), np.uint32(0))
    flags[1, :, -3:] = NON_SCIENCE | DO_NOT_USE
    return flags


@pytest.mark.parametrize("seed", [0, 1])
def test_areas_are_those_of_morphology(device, seed):
    flags = flags_with_areas(seed)
    # beyond the edge counts as bad, so that clusters at the edge are found
    everywhere = np.pad((flags & FLUX_ESTIMATED > 0).all(axis=0), 2, constant_values=True)
    large = ndimage.binary_dilation(ndimage.binary_erosion(everywhere, box(2)), box(2))
    expected = (large & everywhere)[2:-2, 2:-2] | (flags & NON_SCIENCE > 0).any(axis=0)
    area = empty_area(device.array(flags))
    assert_array_equal(area, expected)
    assert area[22, 8] and not area[8, 35]
    assert_array_equal(field_weight(area), ~ndimage.binary_dilation(area, box(2)))
    mask = np.random.default_rng(2).random(SHAPE)
    kept = np.where(ndimage.binary_dilation(area, box(3)), 0, mask)
    assert_array_equal(registration_mask(mask, area), kept)
    moved = area_in_references(area, np.array([(0.4, -1.7), (1.2, 0), (-0.3, -2.2)]))
    whole = [ndimage.shift(area.astype(float), s, order=0) > 0 for s in ((0, -2), (1, 0))]
    assert_array_equal(moved, whole[0] | whole[1])


def test_what_leaves_nearly_nothing_is_not_left_out(caplog):
    area, mask = np.ones(SHAPE, bool), np.ones(SHAPE)
    area[18:22, 20:27] = False
    assert field_weight(area) is None and registration_mask(mask, area) is mask
    assert caplog.text.count("they take part as filled") == 2
    nothing = np.zeros(SHAPE, bool)
    assert field_weight(nothing) is None and registration_mask(mask, nothing) is mask


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("zero", [True, False], ids=["miri", "nircam"])
@pytest.mark.parametrize("align", ["joint", "each"])
def test_a_border_without_data_leaves_the_background_unbiased(align, zero, seed):
    """A third of the image is NON_SCIENCE; the background is not in proportion to the star."""
    rng = np.random.default_rng(seed)

    def images(offsets, brightness, background):
        scene = np.array([speckles(SHAPE, o, brightness=brightness) for o in offsets]) + background
        data = (scene + rng.normal(0, 0.1, scene.shape)).astype(np.float32)
        dq = np.zeros(data.shape, np.uint32)
        dq[:, :, :16] = NON_SCIENCE | DO_NOT_USE
        data[dq > 0] = np.nan
        return IntegrationStack(*read_only(data, np.full_like(data, 0.1), dq))

    science, references = images([(0, 0), (0.01, 0)], 1, 20), images(OFFSETS, 2, 20)
    plan = Alignment(science, references, np.ones(SHAPE), align=align, zero_non_science=zero)
    filled = science.replace(data=plan.science, dq=plan.science_dq)
    aligned, offsets = plan.in_common_frame() if align == "joint" else None, None
    if align == "joint":
        offsets = plan.positions.science
    else:
        aligned = np.stack([plan.shift(plan.fit(i)) for i in range(2)])
    weight, biases = plan.klip_weight(), []
    for weights in (weight, None):
        out = klip(filled, aligned, 3, offsets=offsets, weight=weights)
        biases.append(np.abs(np.median(out.data[:, 3:-3, 22:], axis=(1, 2))).max())
    assert biases[0] < 0.03
    assert biases[1] > 1 or not zero
    assert (weight[:, 19:] == 1).all() and (weight[:, :18] == 0).all()
