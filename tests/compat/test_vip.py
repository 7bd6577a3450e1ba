"""Cubes for VIP, given to VIP's own functions."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

import gpucoron
from gpucoron.compat.vip import vip_cubes
from gpucoron.errors import GpucoronError
from gpucoron.simulate import simulate

SEPARATION, ANGLE = 1.0, 70.0  # arcsec, degrees E of N


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return simulate(
        tmp_path_factory.mktemp("vip"),
        "nircam",
        6,
        shape=(80, 84),
        n_science=2,
        n_integrations=2,
        n_references=3,
        n_reference_integrations=2,
        planets=((SEPARATION, ANGLE, 4e-4),),
        disk=False,
    )


@pytest.fixture(scope="module")
def result(made):
    return gpucoron.run(made.asn, psfmask=made.psfmask, klip_truncate=3)


def test_pca_of_vip_has_the_planet_where_it_is(result):
    cubes = vip_cubes(result, size=61)
    pca = pytest.importorskip("vip_hci.psfsub", reason="vip_hci is not installed").pca
    image = pca(cubes.cube, cubes.angle_list, cube_ref=cubes.cube_ref, ncomp=3, verbose=False)
    radius, angle = SEPARATION / cubes.pxscale, np.radians(ANGLE)
    y, x = 30 + radius * np.cos(angle), 30 - radius * np.sin(angle)
    found = np.unravel_index(np.nanargmax(image), image.shape)
    assert np.hypot(found[0] - y, found[1] - x) < 1.0
    assert cubes.pxscale == pytest.approx(result.product.wcs.pixel_scale, rel=1e-3)


@pytest.mark.parametrize("mode", ["adi", "adi+rdi"])
def test_rolls_are_no_psf_members(result, made, mode):
    other = gpucoron.run(made.asn, psfmask=made.psfmask, klip_truncate=1, klip_mode=mode)
    cubes, expected = vip_cubes(other, size=41), vip_cubes(result, size=41)
    assert cubes.cube.shape == expected.cube.shape
    if mode == "adi":
        assert cubes.cube_ref is None
    else:
        assert np.std(cubes.cube_ref - expected.cube_ref) < 0.05 * expected.cube_ref.std()


def test_images_have_the_star_in_their_middle(result):
    cubes = vip_cubes(result)
    size = cubes.cube.shape[1]
    assert size % 2 and cubes.cube.shape[1:] == cubes.cube_ref.shape[1:]
    assert np.isfinite(cubes.cube).all() and np.isfinite(cubes.cube_ref).all()
    for images in (cubes.cube, cubes.cube_ref):
        scaled = images / images.std(axis=(1, 2), keepdims=True)
        for image in scaled:  # moved by half a pixel they differ more
            differences = {
                shift: np.std(image - ndimage.shift(scaled.mean(axis=0), shift))
                for shift in ((0, 0), (0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))
            }
            assert min(differences, key=differences.get) == (0, 0)


def test_psf_and_its_width(result):
    cubes = vip_cubes(result, size=41)
    assert cubes.psf.shape[0] % 2 and 0.8 < cubes.psf.sum() <= 1
    assert np.unravel_index(cubes.psf.argmax(), cubes.psf.shape) == (len(cubes.psf) // 2,) * 2
    from vip_hci.fm import normalize_psf

    _, _, fwhm = normalize_psf(cubes.psf, fwhm="fit", full_output=True, verbose=False)
    assert cubes.fwhm == pytest.approx(fwhm, rel=0.1)
    own = np.ones((5, 5))
    np.testing.assert_array_equal(vip_cubes(result, size=41, psf=own).psf, own)


@pytest.mark.parametrize("size", [40, 999, -1])
def test_a_size_that_does_not_fit_is_refused(result, size):
    with pytest.raises(GpucoronError, match=f"size is {size}, expected an odd number from 1 to"):
        vip_cubes(result, size=size)


def test_what_was_not_kept_is_named(result):
    product = result.product
    for lacking in ({"crfints": {}}, {"psfstack": None}, {"positions": {}}):
        changed = replace(result, products=(replace(product, **lacking),))
        with pytest.raises(GpucoronError, match="in memory; expected|no positions of images"):
            vip_cubes(changed)
