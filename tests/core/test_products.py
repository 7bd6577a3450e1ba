import copy
import pickle

import pytest

from gpucoron.core.products import ByExposureAndModes


def test_entries_are_found_by_exposure_and_modes_and_by_what_files_are_called():
    images = ByExposureAndModes({("a", 10): 1, ("b", 10): 2, ("a", 5): 3})
    assert images["a", 5] == images["a_kl005"] == images.get("a_kl005") == 3
    assert images["a"] == 1 and images["b"] == images.get(("b", 10)) == 2  # the first
    assert {k: ("a", k) in images for k in (5, 10, 20)} == {5: True, 10: True, 20: False}
    assert "b" in images and "c" not in images and "b_kl005" not in images and 3 not in images
    assert images.get("c", 7) == 7 and images.get(("b", 5)) is None
    assert list(images) == [("a", 10), ("b", 10), ("a", 5)] and len(images) == 3
    for other in (copy.copy(images), pickle.loads(pickle.dumps(images))):
        assert type(other) is type(images) and other == images and other["b"] == 2
    for key in ("c", ("b", 5), 10):
        with pytest.raises(KeyError):
            images[key]
