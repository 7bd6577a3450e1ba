"""Errors of resampled images against direct propagation and against scatter."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gpucoron.core.stack import IntegrationStack, ReferenceNoise
from gpucoron.ops.drizzle import overlaps
from gpucoron.steps.resample import resample
from tests.steps.test_resample import OUTPUT, SHAPE, VARIANCES, pixel_map, run, stack


def matrix_of(maps, **keywords):
    """Return the drizzle of each map as a dense matrix of shares (output, input)."""
    n_in, n_out = int(np.prod(SHAPE)), int(np.prod(OUTPUT))
    matrices = []
    for one in maps:
        found = overlaps(one, OUTPUT, **keywords)
        matrix = np.zeros((n_out, n_in))
        rows = np.repeat(np.arange(n_out), np.diff(found.pointers))
        np.add.at(matrix, (rows, found.sources), found.shares)
        matrices.append(matrix)
    return matrices


def with_klip_noise(given, coefficients, variances, speckle):
    """A stack after PSF subtraction, whose references have independent noise."""
    mean = coefficients.mean(axis=0)
    shared = ReferenceNoise(
        np.einsum("j,jyx->yx", mean**2, variances).astype(np.float32),
        mean,
        np.sqrt(variances.mean(axis=(1, 2))),
    )
    planes = np.broadcast_to(speckle.astype(np.float32), given.shape)
    return given.replace(var_ref=planes, var_speckle=planes, reference_noise=shared)


@pytest.mark.parametrize("kernel", ["square", "turbo", "gaussian"])
def test_errors_of_one_roll_are_those_of_direct_propagation(device, kernel):
    """Every input pixel's noise through the linear map from integrations to output pixels."""
    rng = np.random.default_rng(5)
    given = stack(4, 1).replace(dq=np.zeros((4, *SHAPE), np.uint32))
    coefficients = rng.normal(0.3, 0.2, (4, 6))
    references = rng.uniform(0.5, 2.0, (6, *SHAPE))
    speckle = rng.uniform(0.1, 0.4, SHAPE)
    noisy = with_klip_noise(given, coefficients, references, speckle)
    found = run(device, [noisy], [pixel_map(8.0)], kernel=kernel)
    (shares,) = matrix_of([pixel_map(8.0)], kernel=kernel)
    weights = (1 / given.var_rnoise.astype(np.float64)).reshape(4, -1)
    total = shares @ weights.sum(axis=0)
    seen = total > 0
    own = sum((shares**2) @ (weights[k] ** 2 * variance_of(given, k)) for k in range(4))
    mean = coefficients.mean(axis=0)
    of_references = sum(
        (shares**2) @ ((weights.sum(axis=0) * mean[j]) ** 2 * references[j].ravel())
        for j in range(6)
    )
    speckles = total * (shares @ (weights.sum(axis=0) * speckle.ravel()))
    with np.errstate(invalid="ignore", divide="ignore"):
        for name, wanted in (("var_ref", of_references), ("var_speckle", speckles)):
            plane = getattr(found, name).ravel()
            assert_allclose(plane[seen], (wanted / total**2)[seen], rtol=1e-6)
        err = np.sqrt((own + of_references + speckles) / total**2)
    assert_allclose(found.err.ravel()[seen], err[seen], rtol=1e-6)
    assert np.isnan(found.err.ravel()[~seen]).all()


def variance_of(given, k):
    return sum(getattr(given, name)[k].astype(np.float64) for name in VARIANCES).ravel()


def scatter(device, angles, same_references, n=400):
    """Measured and stated scatter of combined reference noise, which integrations share."""
    rng = np.random.default_rng(7)
    maps = [pixel_map(angle) for angle in angles]
    matrices = matrix_of(maps)
    ones = np.ones((3, *SHAPE), dtype=np.float32)
    given = IntegrationStack(ones, ones, np.zeros(ones.shape, np.uint32), None, ones, None)
    factors = np.array([0.6, 0.4, -0.2])
    rows = [
        np.tile(factors if same or not k else factors[[2, 0, 1]], (3, 1))
        for k, same in enumerate(same_references)
    ]
    stacks = [with_klip_noise(given, r, np.ones((3, *SHAPE)), np.zeros(SHAPE)) for r in rows]
    center = ((OUTPUT[1]) / 2, OUTPUT[0] / 2)
    stated = run(device, stacks, maps, center=center).var_ref
    total = sum(m.sum(axis=1) for m in matrices)
    noise = rng.normal(size=(n, 3, int(np.prod(SHAPE))))
    images = sum(
        np.einsum("j,njp->np", r[0], noise) @ m.T for r, m in zip(rows, matrices, strict=True)
    )
    inner = np.zeros(OUTPUT, bool)
    inner[9:-9, 8:-8] = True
    measured = (images[:, inner.ravel()] / total[inner.ravel()]).var()
    return measured, float(stated[inner].mean())


@pytest.mark.parametrize(
    "angles, same_references",
    [
        ((0.0,), (True,)),
        ((3.0, 3.0), (True, True)),
        ((0.0, 10.0), (True, True)),
        ((-6.0, 5.0), (True, False)),
        ((0.0, 25.0), (True, True)),
    ],
)
def test_reference_noise_is_counted_once(device, angles, same_references):
    """However many integrations share it; rolls share it near the star."""
    measured, stated = scatter(device, angles, same_references)
    assert stated == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    "angles, offset", [((0, 10), (0.3, 0.2)), ((5, -5), (0.0, 0.0)), ((20,), (0.5, 0.0))]
)
def test_errors_of_means_over_pixels(angles, offset):
    """ERRCORR times independent errors is the scatter of means over boxes of 4 x 4 pixels."""
    rng, shape, output = np.random.default_rng(3), (72, 72), (96, 96)
    maps = [pixel_map(angle, shape, output) + offset for angle in angles]
    ones, pulls = np.ones((1, *shape), np.float32), []
    for _ in range(25):
        stacks = [
            IntegrationStack(
                rng.normal(size=ones.shape).astype(np.float32),
                ones,
                np.zeros(ones.shape, np.uint32),
                var_rnoise=ones,
            )
            for _ in maps
        ]
        found = resample(stacks, maps, output)
        part = np.s_[26:70, 26:70]
        boxes = [
            a[part].reshape(11, 4, 11, 4).swapaxes(1, 2).reshape(121, 16)
            for a in (found.data, found.err**2)
        ]
        pulls.append(boxes[0].mean(axis=1) / (np.sqrt(boxes[1].sum(axis=1)) / 16))
    assert found.err_correlation(16) == pytest.approx(np.std(pulls), rel=0.05)
    assert found.err_correlation(1) == pytest.approx(1.0)
    assert found.err_correlation() > found.err_correlation(100) > found.err_correlation(16)
