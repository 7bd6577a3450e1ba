"""Runs that find the star by the images of a user's file, against simulated truth."""

import dataclasses
import functools

import numpy as np
import pytest
from astropy.io import fits

import gpucoron
from gpucoron.errors import InputError
from gpucoron.io.exposures import read_exposure
from gpucoron.io.star_model import read_star_model
from gpucoron.optics.instruments import INSTRUMENTS, load_aperture
from gpucoron.optics.star_images import StarImages
from gpucoron.pipeline.star_model import coronagraph_of
from gpucoron.simulate import simulate
from gpucoron.simulate.geometry import Window
from gpucoron.simulate.scene import Scene
from tests.helpers.tiny_sets import one_thread, only_error  # noqa: F401

THREE = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5))
NINE = [(x, y) for x in (-0.4, 0.0, 0.4) for y in (-0.4, 0.0, 0.4)]


@functools.cache
def images_of(name, offsets, shape=(64, 64)):
    """Images of a perfect wavefront: the star at these offsets from the mask, whose place is last.

    The window is not that of the exposures.
    """
    instrument = INSTRUMENTS[name]
    bandpass = instrument.filters[instrument.default_filter]
    scene = Scene(instrument, bandpass, Window.centred(load_aperture(bandpass.aperture), shape))
    mask = np.array(scene.window.centre)
    flat = np.zeros((scene.pupil.axis.size,) * 2)
    places = mask + np.array(offsets)
    return np.array([scene.image(scene.star(1.0, flat, p)) for p in places]), places, mask


def write(path, images, places=None, mask=None, **keywords):
    """Write a file as users do: pixels count from 1."""
    hdu = fits.ImageHDU(images.astype(np.float32), name="SCI")
    if mask is not None:
        hdu.header["MASKCENX"], hdu.header["MASKCENY"] = np.add(mask, 1)
    hdu.header.update(keywords)
    hdus = fits.HDUList([fits.PrimaryHDU(), hdu])
    if places is not None:
        columns = [
            fits.Column(name, "D", array=np.add(v, 1))
            for name, v in zip("XY", np.transpose(places), strict=True)
        ]
        hdus.append(fits.BinTableHDU.from_columns(columns, name="STARS"))
    hdus.writeto(path, overwrite=True)
    return path


def star_of(result, root):
    star = result.product.stars[root]
    return np.array([np.mean(star.x), np.mean(star.y)]), star


@pytest.mark.parametrize(
    ("name", "seed", "offsets"),
    [("nircam", 1, THREE), ("nircam", 2, THREE), ("miri-4qpm", 3, tuple(NINE))],
)
def test_the_star_is_where_the_images_have_it(name, seed, offsets, tmp_path):
    made = simulate(
        tmp_path / "input", name, seed, shape=(64, 64), n_science=1, n_integrations=2,
        n_references=3, n_reference_integrations=1, n_optical_states=1, disk=False, planets=(),
        wavefront_nm=0, drift_nm=0,
    )  # fmt: skip
    path = write(tmp_path / "star.fits", *images_of(name, offsets))
    result = gpucoron.run(
        made.asn, psfmask=made.psfmask, klip_truncate=2, star_model=path, device="cpu"
    )
    root = made.science[0].name.removesuffix("_calints.fits")
    found, star = star_of(result, root)
    truth = np.load(made.truth)[f"star_{root}"].mean(axis=0) + 1
    print(name, seed, found - truth, star.mean_error, star.source, star.mask)
    assert star.source == "model"
    assert np.hypot(*(found - truth)) < 0.05
    assert (np.abs(found - truth) < 3.5 * np.array(star.mean_error)).all()
