"""DQ bits against astropy and the flag names of the JWST data models."""

import numpy as np
import pytest
from astropy.nddata import bitmask
from stdatamodels.jwst.datamodels.dqflags import pixel

from gpucoron.ops.dq import (
    DO_NOT_USE,
    FLAGS,
    FLUX_ESTIMATED,
    NON_SCIENCE,
    OUTLIER,
    good_pixels,
)
from gpucoron.ops.dq import interpret_bit_flags as interpret

TEXTS = [
    *"None INDEF 0 1 12 ~0 ~1 1+4 1,4 1|4 ~1+4 ~(1+4) ((1)) DO_NOT_USE ~DO_NOT_USE".split(),
    *"DO_NOT_USE,SATURATED ~(DO_NOT_USE|OUTLIER) REFERENCE_PIXEL GOOD".split(),
    *(None, "", " ", "( 1 , 4 )", "DO_NOT_USE + NON_SCIENCE"),
    *(0, 1, 12, -2, np.int64(5), [1, 4], ["DO_NOT_USE", "OUTLIER"]),
]


def test_flags_are_those_of_the_data_models():
    assert FLAGS == pixel
    assert (DO_NOT_USE, OUTLIER, NON_SCIENCE, FLUX_ESTIMATED) == (1, 16, 512, 2**28)


@pytest.mark.parametrize("flags", TEXTS, ids=repr)
def test_masks_and_good_pixels_equal_astropy(flags):
    ours = flags
    if isinstance(flags, str) and flags.strip():  # astropy 6 does not take spaces beside names
        flags = flags.replace(" ", "")
    assert interpret(ours) == bitmask.interpret_bit_flags(flags, flag_name_map=pixel)
    if isinstance(flags, list):
        return
    dq = np.array([[0, 1, 2, 3, 4], [5, 16, 513, 2**31, 2**32 - 1]], np.uint32)
    dq.flags.writeable = False
    expected = bitmask.bitfield_to_boolean_mask(dq, flags, good_mask_value=1, flag_name_map=pixel)
    found = good_pixels(dq, ours)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "flags",
    [*"1+2,4 3+4 ~ () (1 1) 1~2 DO_NOT_US 1+".split(), "a b", [3, 4], [1.5], 1.5, True],
    ids=repr,
)
def test_what_is_no_selection(flags):
    with pytest.raises((ValueError, TypeError, KeyError)):
        bitmask.interpret_bit_flags(flags, flag_name_map=pixel)
    with pytest.raises(ValueError, match="^expected "):
        interpret(flags)


def test_names_in_lower_case_and_beside_numbers():
    assert interpret("do_not_use+4") == 5
    with pytest.raises(ValueError, match="did you mean SATURATED"):
        interpret("saturate")


def test_one_value_may_be_any_mask():
    assert good_pixels(np.array([0, 8, 12, 13], np.uint32), "12").tolist() == [1, 1, 1, 0]
