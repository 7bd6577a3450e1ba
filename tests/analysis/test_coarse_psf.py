"""The PSF for maps, from images at few offsets, against those computed anew."""

import numpy as np
import pytest

from gpucoron.analysis.coarse_psf import CoarsePSF
from gpucoron.backend.threads import limited_to
from gpucoron.ops.apertures import aperture_sums
from gpucoron.optics.instruments import choose_optics
from gpucoron.optics.off_axis import OffAxisPSF


@pytest.mark.parametrize(
    ("optics", "near", "far"),
    [
        # worst seen 0.008 and 0.003, 0.03 and 0.023, 0.08 and 0.06, 0.02 and 0.001
        (("nircam", "F444W", "335R"), 0.015, 0.006),
        (("miri-4qpm", "F1140C", None), 0.05, 0.04),
        (("nircam", "F335M", "LWB"), 0.12, 0.09),
        (("miri-lyot", "F2300C", None), 0.04, 0.003),
    ],
    ids=lambda o: "-".join(map(str, o)) if isinstance(o, tuple) else None,
)
def test_sums_in_apertures(optics, near, far):
    """Errors relative to a source without the mask, from 1.5 FWHM, and from 8 FWHM."""
    with limited_to(1):
        psf = OffAxisPSF(*choose_optics(*optics))
        coarse = CoarsePSF(psf)
        rng, fwhm, middle = np.random.default_rng(1), psf.fwhm_px, psf.box // 2
        radius, angle = fwhm * rng.uniform(1.5, 12, 24), rng.uniform(0, 2 * np.pi, 24)
        offsets = radius[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
        within = rng.uniform(-0.5, 0.5, (24, 2))

        def sums(images):
            pairs = zip(images, within[:, ::-1] + middle, strict=True)
            return np.array([aperture_sums(image, [at], fwhm / 2)[0] for image, at in pairs])

        exact = sums(psf.images(offsets, within, exact=True))
        light = aperture_sums(psf.without_mask, [(middle, middle)], fwhm / 2)[0]
        for model in (coarse, coarse.with_phases(8)):
            away = np.abs(sums(model.images(offsets, within)) - exact) / light
            assert away.max() < near
            assert away[radius > 8 * fwhm].max() < far
        np.testing.assert_allclose(
            coarse.light(offsets), psf.throughput(offsets, exact=True), atol=near
        )
        in_the_middle = psf.images(offsets, exact=True)
        core = [aperture_sums(image, [(middle, middle)], fwhm / 2)[0] for image in in_the_middle]
        np.testing.assert_allclose(coarse.core(offsets), core, atol=near * light)
