"""The PSF of an off-axis source, against the simulator's images and identities."""

import numpy as np
import pytest
from scipy import fft

from gpucoron.backend.threads import limited_to
from gpucoron.optics.instruments import choose_optics, load_aperture
from gpucoron.optics.off_axis import OffAxisPSF
from gpucoron.simulate.geometry import Window
from gpucoron.simulate.scene import Scene

CASES = pytest.mark.parametrize(
    "optics",
    [
        ("nircam", "F444W", "335R"),
        ("nircam", "F182M", "210R"),
        ("nircam", "F335M", "LWB"),
        ("miri-4qpm", "F1140C", None),
        ("miri-lyot", "F2300C", None),
    ],
    ids=lambda o: "-".join(map(str, o)),
)


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices: threads would wait for each other."""
    with limited_to(1):
        yield


def places(n, farthest, seed):
    """Offsets (y, x) at random, more of them near the mask."""
    rng = np.random.default_rng(seed)
    radius, angle = farthest * rng.random(n), 2 * np.pi * rng.random(n)
    return radius[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)


@CASES
def test_images_are_those_of_a_simulated_companion(optics):
    """The simulator samples all pixels of the array at once, and integrates them with FFTs."""
    instrument, bandpass = choose_optics(*optics)
    scene = Scene(
        instrument, bandpass, Window.centred(load_aperture(bandpass.aperture), (144, 144))
    )
    psf = OffAxisPSF(instrument, bandpass, box=31)
    offsets = places(4, 40, seed=1)
    pixels = offsets + scene.window.centre[::-1]
    within = pixels - np.rint(pixels)
    exact, found = psf.images(offsets, within, exact=True), psf.images(offsets, within)
    peak = psf.without_mask.max()
    for k, pixel in enumerate(pixels):
        spectrum = scene.companions([(1.0, tuple(pixel[::-1]))], np.float32(0))
        image = scene.image(fft.rfft2(np.zeros((160, 160))), spectrum) - scene.background
        row, column = np.rint(pixel).astype(int) - 15
        cut = image[row : row + 31, column : column + 31]
        np.testing.assert_allclose(
            exact[k], cut / scene.flux_to_pixels(1.0), atol=0.006 * peak
        )  # 0.004 found: fewer wavelengths and samples of the pupil
    np.testing.assert_allclose(found, exact, atol=0.006 * peak)  # 0.004 found
