"""Injected sources equal a new subtraction and a new drizzle of images with the sources added."""

import numpy as np
import pytest

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.drizzle import Drizzle
from gpucoron.ops.eigen import KLBasis
from gpucoron.ops.injection import CombinedResponse, KlipResponse

SHAPE, N = (46, 52), 3
CORNERS = np.array([[20, 30], [-3, 46], [34, -2]])  # the last two reach over the edge


def _images(seed, n):
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(n, *SHAPE)).cumsum(axis=1).cumsum(axis=2)
    return smooth / smooth.std() + 0.1 * rng.normal(size=smooth.shape)


def _with_source(images, stamp, corner):
    out = np.pad(images, ((0, 0), (9, 9), (9, 9)))
    y, x = corner + 9
    out[:, y : y + stamp.shape[0], x : x + stamp.shape[1]] += stamp
    return out[:, 9:-9, 9:-9]


def _case(seed, weighted, lacking):
    rng = np.random.default_rng(seed)
    references, targets = _images(seed, 14), _images(seed + 100, N)
    weight = rng.uniform(0.2, 1.0, SHAPE) if weighted else None
    if weighted:
        weight[:6] = 0.0
    missing = rng.random(targets.shape) < 0.03 if lacking else None
    stamps = rng.random((len(CORNERS), 9, 9))
    return references, targets, weight, missing, stamps


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lacking", [False, True])
def test_as_a_new_subtraction(seed, weighted, lacking):
    references, targets, weight, missing, stamps = _case(seed, weighted, lacking)
    basis = KLBasis(references, weight=weight)
    response = KlipResponse(basis.kl_vectors(99), weight, missing)
    for truncate in (0, 1, 5, 14):
        before = basis.subtract(targets, truncate, missing=missing)
        left = response.residuals(stamps, CORNERS, truncate)
        for stamp, corner, got in zip(stamps, CORNERS, left, strict=True):
            again = basis.subtract(_with_source(targets, stamp, corner), truncate, missing=missing)
            np.testing.assert_allclose(got + 0 * before, again - before, rtol=0, atol=1e-11)


def _rolled(angle, scale=1.0):
    """Pixel map (ny, nx, 2) of an exposure turned by some degrees."""
    y, x = np.indices(SHAPE, dtype=float) - 24.0
    turn = np.deg2rad(angle)
    out = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], -1)
    return out * scale + 30.3


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("lacking", [False, True])
def test_as_a_new_drizzle(seed, lacking):
    size, truncate, drizzle = 13, 6, {}
    rng = np.random.default_rng(seed)
    parts = []
    for k, angle in enumerate((4.0, 31.0)):
        references, targets, weight, missing, stamps = _case(seed + 7 * k, True, lacking)
        basis = KLBasis(references, weight=weight)
        weights = rng.uniform(0.5, 2.0, SHAPE) * rng.uniform(0.9, 1.1, (N, 1, 1))
        weights[0 if missing is None else missing] = 0.0  # without any: the first integration
        response = KlipResponse(basis.kl_vectors(truncate), weight, missing)
        parts.append((basis, targets, missing, stamps, weights, response, _rolled(angle)))
    for name in ("before", *range(len(CORNERS))):
        drizzle[name] = Drizzle((62, 64), kernel="square", pixfrac=0.8)
        for basis, targets, missing, stamps, weights, _, pixel_map in parts:
            images = targets
            if name != "before":
                images = _with_source(targets, 1e3 * stamps[name], CORNERS[name])
            left = basis.subtract(images, truncate, missing=missing)
            drizzle[name].add(left, pixel_map, weights.astype(np.float32))
    geometries = [drizzle["before"].overlaps(part[-1]) for part in parts]
    combined = CombinedResponse(
        [p[5] for p in parts], [p[4].astype(np.float32) for p in parts], geometries
    )
    places = np.array([[22, 30], [3, 40], [38, 8]])
    patches = combined.patches(
        [p[3] for p in parts], [CORNERS] * len(parts), places, size, truncate
    )
    for k, (patch, (y, x)) in enumerate(zip(patches, places, strict=True)):
        before, after = (drizzle[n].result().data.astype(float) for n in ("before", k))
        part = (slice(y, y + size), slice(x, x + size))
        np.testing.assert_allclose(
            patch, (after - before)[part] / 1e3, rtol=0, atol=2e-6, equal_nan=True
        )


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (InputError, lambda: KlipResponse(np.zeros(SHAPE))),
        (InputError, lambda: KlipResponse(np.zeros((2, *SHAPE)), np.ones((3, 3)))),
        (InputError, lambda: KlipResponse(np.zeros((2, *SHAPE)), None, np.zeros((1, 3, 3), bool))),
        (
            InputError,
            lambda: KlipResponse(np.zeros((2, *SHAPE))).residuals(np.ones((5, 5)), [[0, 0]], 1),
        ),
        (
            ParameterError,
            lambda: KlipResponse(np.zeros((2, *SHAPE))).residuals(np.ones((1, 5, 5)), [[0, 0]], -1),
        ),
    ],
)
def test_bad_input(error, call):
    with pytest.raises(error, match="expected|KL vectors"):
        call()
