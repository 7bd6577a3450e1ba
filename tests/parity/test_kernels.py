"""The preset "jwst" against the jwst package with resample kernels other than the default."""

import pytest

from gpucoron.simulate import simulate
from gpucoron.verify import verify
from tests.parity.conftest import SIMULATED

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kernel", ["lanczos3"])  # all of them: tests/steps/test_resample.py
def test_everything_is_as_promised(tmp_path, kernel):
    pytest.importorskip("jwst", reason="the jwst package is not installed (extra jwst)")
    made = simulate(tmp_path / "input", "nircam", **SIMULATED)
    sets = [f"resample.kernel={kernel}", "resample.pixel_scale_ratio=0.7"]
    report = verify(made.asn, psfmask=made.psfmask, sets=sets, output_dir=tmp_path / "verify")
    assert report.problems() == []
    assert report.parameters == {"resample.kernel": kernel, "resample.pixel_scale_ratio": 0.7}
    differences = {image.hdu: image for image in report.images if image.product == "i2d"}
    assert differences["CON"].same_bits
