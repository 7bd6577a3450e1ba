"""The package's apertures against the SIAF that pysiaf carries."""

import numpy as np
import pytest
import siaf_apertures

from gpucoron.optics.instruments import load_aperture
from gpucoron.simulate.geometry import Window, _to_v2v3


def test_apertures_are_those_of_the_siaf():
    pysiaf = pytest.importorskip("pysiaf", reason="pysiaf is not installed (extra siaf)")
    assert siaf_apertures.main(["--check"]) == 0
    siaf = {"NRCA": pysiaf.Siaf("NIRCam"), "MIRI": pysiaf.Siaf("MIRI")}
    x, y = np.array([10.0, 150.0, 250.0]), np.array([20.0, 100.0, 220.0])  # counted from 1
    for name in siaf_apertures.read_siaf():
        window = Window.centred(load_aperture(name), None)
        expected = siaf[name[:4]][name].sci_to_tel(x, y)
        np.testing.assert_allclose(_to_v2v3(window, x - 1, y - 1), expected, atol=1e-4)
        np.testing.assert_allclose(window.centre, np.array(load_aperture(name).reference_pixel) - 1)
