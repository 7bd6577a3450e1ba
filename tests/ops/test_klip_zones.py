"""KLIP in zones against pyKLIP and VIP in double precision, and against plain least squares."""

import ctypes

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.backend.threads import limited_to
from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.eigen import KLBasis
from gpucoron.ops.klip_zones import klip_zones, zone_products
from gpucoron.ops.zone_sums import combine_in_zones, squares_in_zones
from gpucoron.ops.zones import make_zones
from tests.helpers.scenes import read_only

SIZE, CENTER = 41, 20.0


def cube(n, seed):
    """A star with speckles that vary, and noise: (n, SIZE, SIZE)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - CENTER
    halo = 300 * np.exp(-(x * x + y * y) / 2 / 6**2)
    modes = rng.normal(size=(9, SIZE, SIZE)).cumsum(axis=1).cumsum(axis=2) / 20
    images = halo * (1 + 0.1 * rng.normal(size=(n, 1, 1)))
    images += np.tensordot(rng.normal(size=(n, 9)), modes, 1)
    return images + rng.normal(size=images.shape)


def sections(annuli, subsections, iwa, owa):
    """Zones as pyKLIP has them, and the mean radius of each."""
    from pyklip.klip import define_annuli_bounds, make_polar_coordinates

    y, x = np.mgrid[:SIZE, :SIZE] * 1.0
    r, phi = make_polar_coordinates(x, y, [CENTER, CENTER])
    labels, radii = np.full((SIZE, SIZE), -1), []
    edges = np.linspace(-np.pi, np.pi, subsections + 1)
    for start, stop in define_annuli_bounds(annuli, iwa, owa):
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            labels[(r >= start) & (r < stop) & (phi >= low) & (phi < high)] = len(radii)
            radii.append((start + stop) / 2)
    return labels, radii


def by_pyklip(images, angles, truncations, annuli, subsections, iwa, owa, movement, **options):
    """What pyKLIP leaves of images that are aligned already, (truncations, n, ny, nx)."""
    from pyklip.parallelized import klip_parallelized

    n = len(images)
    return klip_parallelized(
        images.copy(),
        np.full((n, 2), CENTER),
        angles,
        np.ones(n),
        np.arange(n),
        iwa,
        OWA=owa,
        annuli=annuli,
        subsections=subsections,
        movement=movement,
        numbasis=truncations,
        aligned_center=[CENTER, CENTER],
        numthreads=1,
        corr_smooth=0,
        dtype=ctypes.c_double,
        verbose=False,
        restored_aligned=images[None].copy(),
        **options,
    )[0]


def moved_enough(angles, radii, movement):
    """Which images may serve which target in each zone, (nzones, n, n)."""
    turned = np.radians(np.subtract.outer(angles, angles))
    moves = np.hypot(np.cos(turned) - 1, np.sin(turned))
    return np.array([radius * moves >= movement for radius in radii])


def assert_same(found, expected):
    """Compare to 1e-6 of the scatter, NaN included."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_array_equal(np.isnan(one), np.isnan(other))
        assert np.nanmax(abs(one - other)) < 1e-6 * np.nanstd(other)


@pytest.mark.parametrize(
    "mode, annuli, subsections, maxnumbasis, share_missing",
    [
        *(("ADI", 1, 1, 50, 0), ("ADI", 3, 4, 50, 0), ("ADI", 3, 4, 6, 0), ("ADI", 2, 3, 50, 3e-3)),
        *(("RDI", 1, 1, 50, 0), ("RDI", 3, 4, 50, 3e-3), ("ADI+RDI", 3, 4, 50, 0)),
    ],
)
def test_equals_pyklip(device, mode, annuli, subsections, maxnumbasis, share_missing):
    images, library = cube(11, seed=annuli), cube(8, seed=7)
    n, angles = len(images), np.linspace(0, 75, 11)
    images[np.random.default_rng(1).random(images.shape) < share_missing] = np.nan
    zones, radii = sections(annuli, subsections, 3, 19)
    options = {"mode": mode, "maxnumbasis": maxnumbasis}
    if "RDI" in mode:
        every = np.arange(len(library))
        options |= {"psf_library": library, "psf_library_good": every}
        options |= {"psf_library_corr": np.ones((n, len(every)))}
    expected = by_pyklip(images, angles, [1, 4, 7], annuli, subsections, 3, 19, 1.0, **options)
    allowed = moved_enough(angles, radii, 1.0)
    references = np.concatenate([images, library] if "RDI" in mode else [images])
    allowed = np.pad(allowed, ((0, 0), (0, 0), (0, len(references) - n)), constant_values=True)
    if mode == "RDI":
        references, allowed = library, None
    read_only(images, zones, references)
    for targets in (images, np.arange(n)) if "ADI" in mode else (images,):
        found = device.call(
            *(klip_zones, targets, references, zones, [1, 4, 7]),
            **{"allowed": allowed, "maxnumbasis": maxnumbasis, "nan": "mean"},
        )
        assert_same(found.residuals, expected)


def test_full_frame_equals_vip():
    from vip_hci.psfsub import pca

    images, modes = cube(12, 3), 5
    options = {"scaling": "spat-mean", "svd_mode": "lapack", "full_output": True, "verbose": False}
    expected = pca(images, np.linspace(0, 40, 12), ncomp=modes, **options)[3]
    assert_same(klip_zones(np.arange(12), images, None, modes).residuals, [expected])


def fitted(target, references, truncate, weight):
    """What KL modes by an SVD of weighted pixels leave, fitted to the pixels that count."""
    root = weight.ravel()
    average = np.average(references.reshape(len(references), -1), axis=1, weights=root**2)
    rows = references.reshape(len(references), -1) - average[:, None]
    u, s, _ = np.linalg.svd(rows * root, full_matrices=False)
    modes = (u / s).T[:truncate] @ rows
    columns = np.concatenate([np.ones((1, rows.shape[1])), modes]).T
    counted = np.isfinite(target.ravel()) & (root > 0)
    values = np.where(counted, target.ravel(), 0.0)
    own = root * counted
    factors = np.linalg.lstsq(columns * own[:, None], values * own, rcond=None)[0]
    return (target.ravel() - columns @ factors).reshape(target.shape)


@pytest.mark.parametrize("truncate", [1, 5, 9])
@pytest.mark.parametrize("overlap", [None, "overlap", "guard"])
def test_zones_equal_least_squares(device, truncate, overlap):
    """With weights, areas of their own, and pixels that targets or references lack."""
    rng = np.random.default_rng(truncate)
    targets, references = cube(3, 1), cube(9, 2)
    targets[0, 15:18, 20:24] = np.nan
    missing = np.zeros(targets.shape, dtype=bool)
    missing[1, 22, 10:30] = True
    references[4, 10, 12] = references[2, 30, 25] = np.nan
    zones, _ = sections(2, 3, 2, 19)
    areas = np.array([zones == z for z in range(6)])
    if overlap:
        y, x = np.mgrid[:SIZE, :SIZE]
        areas |= np.array([np.hypot(y - 4 * z - 8, x - 20) < 9 for z in range(6)])
    if overlap == "guard":  # modes of a zone from pixels around it alone
        areas &= zones != np.arange(6)[:, None, None]
    weight = rng.uniform(0.3, 1, (SIZE, SIZE)) * (rng.random((SIZE, SIZE)) > 0.02)
    found = device.call(
        *(klip_zones, targets, references, zones, [truncate, 1]),
        **{"optimise": areas if overlap else None, "weight": weight, "missing": missing},
    ).residuals[0]
    known = np.isfinite(references).all(axis=0)
    filled = np.nan_to_num(references)
    for t, target in enumerate(targets):
        counted = np.where(missing[t], np.nan, target)
        for z in range(6):
            left = fitted(counted, filled, truncate, weight * areas[z] * known)
            model = np.where(missing[t], np.nan, target - left)
            inside = (zones == z) & known & np.isfinite(model) & np.isfinite(target)
            assert_allclose(found[t][inside], left[inside], atol=1e-7)
    assert np.isnan(found[:, (zones < 0) | ~known]).all()
    assert np.isnan(found[0, 16, 21]) and np.isfinite(found[1, 22, 12])


def test_one_zone_equals_a_basis(device):
    """The whole image with everything that the full-frame basis has, and the coefficients."""
    targets, references = cube(3, 4), cube(8, 5)
    missing = np.random.default_rng(0).random(targets.shape) < 0.01
    weight = np.random.default_rng(1).random((SIZE, SIZE)) > 0.1
    factors = []
    expected = KLBasis(references, weight=weight).subtract(targets, [0, 3, 99], factors, missing)
    found = device.call(
        klip_zones, targets, references, None, [0, 3, 99], weight=weight, missing=missing
    )
    for k, (one, other) in enumerate(zip(found.residuals, expected, strict=True)):
        assert_allclose(one, other, atol=1e-8)
        assert_allclose(found.coefficients[k][0], factors[k], atol=1e-9)


def test_a_target_without_references_or_pixels_is_nan_there(device):
    targets, references, (zones, _) = cube(3, 4), cube(6, 5), sections(2, 1, 2, 18)
    targets[1] = np.nan
    targets[0, zones == 0] = np.nan
    references[3, zones == 1] = np.nan  # it does not serve there, and does nowhere else harm
    allowed = np.ones((2, 3, 6), dtype=bool)
    allowed[1, 2] = False
    found = device.call(klip_zones, targets, references, zones, 4, allowed=allowed)
    (left,) = found.residuals
    assert np.isnan(left[1]).all() and np.isfinite(left[0, zones == 1]).all()
    assert np.isnan(left[2, zones == 1]).all() and np.isfinite(left[2, zones == 0]).all()
    assert_array_equal(found.used[1, :, 3], False)
    without = device.call(
        *(klip_zones, targets, np.delete(references, 3, axis=0), zones, 4),
        **{"allowed": np.delete(allowed, 3, axis=2)},
    )
    assert_allclose(left[0, zones == 1], without.residuals[0][0, zones == 1], atol=1e-9)


def test_zones_of_which_the_last_have_no_pixel(device):
    """A star in the corner: `Zones` tell how many there are, labels alone do not."""
    images = read_only(cube(9, seed=5))
    zones = make_zones(images.shape[1:], (0.0, 0.0), 3, 8, owa=30, optimise=3.0)
    empty = ~np.isin(np.arange(len(zones)), zones.labels)
    assert empty[-1] and len(zones) == 24
    found = device.call(klip_zones, images[:3], images[3:], zones, [2])
    plain = device.call(
        *(klip_zones, images[:3], images[3:], zones.labels == np.arange(24)[:, None, None], [2]),
        optimise=zones.optimise,
    )
    assert_array_equal(found.residuals[0], plain.residuals[0])
    assert found.coefficients[0].shape == (24, 3, 6)
    assert (found.coefficients[0][empty] == 0).all() and not (
        found.coefficients[0][~empty] == 0
    ).all()


@pytest.mark.parametrize("overlap", [0.0, 3.0])
def test_products_of_zones_are_direct_sums(device, overlap):
    images, rng = read_only(cube(5, seed=6)), np.random.default_rng(2)
    zones = make_zones(images.shape[1:], (20.0, 19.0), 2, 3, optimise=overlap)
    weight = rng.uniform(0, 1, images.shape[1:])
    sums = zone_products(device.array(images), zones, weight=weight)
    found_means, products = device.get(sums.means), device.get(sums.products)
    for zone in range(len(zones)):
        inside = zones.labels == zone if overlap == 0 else zones.optimise[zone]
        own, square = images[:, inside], weight[inside] ** 2
        means = own @ square / square.sum()
        own = own - means[:, None]
        assert_allclose(found_means[zone], means, rtol=1e-10)
        assert_allclose(products[zone], (own * square) @ own.T, rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_combinations_in_zones_are_direct_sums(device, dtype):
    rng = np.random.default_rng(3)
    labels, planes = rng.integers(-1, 4, 500), read_only(rng.normal(size=(6, 500)))
    weights, constants = rng.normal(size=(5, 2, 3, 6)), rng.normal(size=(5, 2, 3))
    placed = device.array(planes)
    combined = device.get(combine_in_zones(labels, weights[:, 0], placed, dtype))
    squares = device.get(squares_in_zones(labels, weights, constants, placed))
    assert combined.dtype == dtype
    for p, zone in enumerate(labels):
        if zone < 0:
            assert (combined[:, p] == 0).all() and np.isnan(squares[:, p]).all()
            continue
        assert_allclose(combined[:, p], weights[zone, 0] @ planes[:, p], rtol=1e-5, atol=1e-5)
        expected = ((weights[zone] @ planes[:, p] - constants[zone]) ** 2).sum(axis=1)
        assert_allclose(squares[:, p], expected, rtol=1e-9)


def test_threads_and_batches_change_no_bit():
    targets, references, (zones, _) = cube(4, 1), cube(9, 2), sections(3, 4, 2, 19)
    allowed = np.random.default_rng(0).random((12, 4, 9)) > 0.2
    options = {"allowed": allowed, "truncate": [2, 6]}
    results = []
    for threads in (1, 2):
        with limited_to(threads):
            results.append(klip_zones(targets, references, zones, **options).residuals)
    results.append(
        [
            np.concatenate(
                [
                    klip_zones(
                        targets[t : t + 1],
                        references,
                        zones,
                        k,
                        allowed=allowed[:, t : t + 1],
                    ).residuals[0]
                    for t in range(4)
                ]
            )
            for k in (2, 6)
        ]
    )
    for one, two, each in zip(*results, strict=True):
        assert_array_equal(one, two)
        assert_allclose(one, each, atol=1e-9)


@pytest.mark.parametrize(
    "changes, error, text",
    [
        ({"references": np.ones((2, 5))}, InputError, "references have shape"),
        ({"targets": np.ones((2, 5, 5))}, InputError, "targets have shape"),
        ({"targets": np.array([0, 6])}, InputError, "numbers of references, 0 to 5"),
        ({"zones": np.ones((SIZE, SIZE))}, InputError, "dtype float64, expected"),
        ({"zones": np.full((SIZE, SIZE), -1)}, InputError, "no pixel is in any zone"),
        ({"zones": np.ones((2, SIZE, SIZE), bool)}, InputError, "zones overlap"),
        ({"allowed": np.ones((2, 6), bool)}, InputError, r"allowed has shape \(2, 6\)"),
        ({"weight": np.full((SIZE, SIZE), -1.0)}, InputError, "weight is negative"),
        ({"optimise": np.ones((3, 2, 2), bool)}, InputError, "optimise has shape"),
        ({"missing": np.ones((2, 2, 2), bool)}, InputError, "missing has shape"),
        ({"truncate": -1}, ParameterError, "truncate is -1"),
        ({"maxnumbasis": 0}, ParameterError, "maxnumbasis is 0"),
        ({"nan": "zero"}, ParameterError, "nan is 'zero'"),
    ],
)
def test_bad_arguments_are_refused(changes, error, text):
    given = {"targets": cube(3, 0), "references": cube(6, 1)} | changes
    with pytest.raises(error, match=text):
        klip_zones(**given)
