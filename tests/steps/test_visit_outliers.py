"""Exposures of one integration, compared with the others of a visit to a reference star."""

import numpy as np
import pytest

from gpucoron.io import read_exposure
from gpucoron.ops.fourier_shift import fourier_shift
from gpucoron.optics.telescope import cutoff_of
from gpucoron.simulate import simulate
from gpucoron.steps import outlier_detection
from gpucoron.steps.outlier_detection import OutlierResult
from gpucoron.steps.visit_outliers import LEAST_EXPOSURES, flag_by_visit
from tests.helpers.scenes import read_only, speckles

OUTLIER = 16
DITHERS = np.array([(0, 0), (0.6, -0.4), (-0.5, 0.7), (1.1, 0.3), (-0.9, -0.8), (0.2, 1.3)])


def visit(n=6, seed=0):
    """Return images of a star on a grid of dithers, ERR 1, and a source beside it."""
    from gpucoron.core.stack import IntegrationStack

    rng = np.random.default_rng(seed)
    star = speckles((72, 80), seed=seed)
    y, x = np.indices(star.shape)
    star = star + 60 * np.exp(-((y - 20) ** 2 + (x - 60) ** 2) / 2.4)
    images = fourier_shift(np.repeat(star[None], n, axis=0), DITHERS[:n])
    images += rng.normal(size=images.shape)
    images = images.astype(np.float32)
    return [
        OutlierResult(
            IntegrationStack(
                *read_only(image[None], np.ones_like(image)[None], np.zeros((1, 72, 80), np.uint32))
            ),
            image,
            np.zeros(1, int),
        )
        for image in images
    ]


def with_hit(exposures, which, y, x, height):
    out = list(exposures)
    data = out[which].stack.data.copy()
    data[0, y, x] += height
    out[which] = out[which]._replace(stack=out[which].stack.replace(data=data))
    return out


def flags(exposures):
    return np.array([(e.stack.dq[0] & OUTLIER) != 0 for e in exposures])


def test_a_hit_is_in_one_exposure_and_a_source_in_all(device):
    """Also a hit like a point source, which no neighbour tells, and two on the same pixel."""
    exposures = with_hit(visit(), 2, 40, 30, 60)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)):
        exposures = with_hit(exposures, 4, 55 + dy, 20 + dx, 50 if dy or dx else 90)
    exposures = with_hit(with_hit(exposures, 1, 30, 50, 70), 3, 30, 50, 400)
    found = device.call(flag_by_visit, exposures, 5.0)
    hit = flags(found)
    for which, y, x in ((2, 40, 30), (4, 55, 20), (4, 55, 21), (1, 30, 50), (3, 30, 50)):
        assert hit[which, y, x]
    assert hit.sum() == sum(int(e.flagged.sum()) for e in found) == 1 + 5 + 2
    for exposure, outlier in zip(found, hit, strict=True):
        assert np.isnan(exposure.stack.data[0][outlier]).all()
        assert (exposure.stack.dq[0][outlier] == 1 | OUTLIER).all()
        assert np.isfinite(exposure.stack.data[0][~outlier]).all()


def test_what_is_bad_already_is_neither_flagged_nor_believed():
    exposures = with_hit(visit(), 2, 40, 30, 1e6)
    stack = exposures[2].stack
    dq = stack.dq.copy()
    dq[0, 40, 30] = 1
    exposures[2] = exposures[2]._replace(stack=stack.replace(dq=dq))
    assert not flags(flag_by_visit(exposures, 5.0)).any()


def test_few_exposures_and_one_without_a_usable_pixel():
    few = with_hit(visit(LEAST_EXPOSURES - 1), 0, 40, 30, 500)
    assert flag_by_visit(few, 5.0) == few
    exposures = with_hit(visit(), 2, 40, 30, 60)
    stack = exposures[5].stack
    exposures[5] = exposures[5]._replace(stack=stack.replace(dq=np.ones_like(stack.dq)))
    found = flags(flag_by_visit(exposures, 5.0))
    assert found[2, 40, 30] and found.sum() == 1


def test_the_number_of_threads_changes_nothing():
    from gpucoron.backend.threads import limited_to

    exposures = with_hit(visit(seed=3), 2, 40, 30, 60)
    results = []
    for n in (1, 2):
        with limited_to(n):
            results.append(flags(flag_by_visit(exposures, 5.0)))
    np.testing.assert_array_equal(*results)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("instrument", "options", "least"),
    [
        ("nircam", {"shape": (160, 160), "seed": 3101}, 0.97),  # seeds 3001 to 3004: see the docs
        ("nircam", {"shape": (160, 160), "seed": 3102}, 0.97),
        ("miri-4qpm", {"seed": 3103}, 0.95),
    ],
)
def test_cosmic_rays_of_simulated_references(tmp_path, instrument, options, least):
    """Beyond 30 px of the mask, above 10 ERR."""
    made = simulate(
        tmp_path,
        instrument,
        n_integrations=1,
        n_reference_integrations=1,
        truth_scenes=True,
        **options,
    )
    truth = np.load(made.truth)
    before, hits, clean = [], [], []
    for path in made.psf:
        exposure, root = read_exposure(path, "psf"), path.name.replace("_calints.fits", "")
        before.append(outlier_detection(exposure.stack, cutoff=cutoff_of(exposure.meta)))
        stack, nx = exposure.stack, exposure.stack.data.shape[-1]
        hit = np.unpackbits(truth[f"cosmic_rays_{root}"], axis=-1)[0, :, :nx].astype(bool)
        y, x = np.indices(hit.shape)
        centre = truth["mask_centre"]
        used = (np.hypot(y - centre[1], x - centre[0]) > 30) & (stack.dq[0] & 1 == 0)
        scene = np.load(path.with_name(f"{root}_clean.npy"))[0]
        hits.append(hit & used & (stack.data[0] - scene > 10 * stack.err[0]))
        clean.append(used & ~hit)
    alone, compared = flags(before), flags(flag_by_visit(before, 5.0))
    hits = np.array(hits)
    assert compared[hits].mean() > max(least, alone[hits].mean())
    assert compared[np.array(clean)].mean() < 3e-4  # near hits, of which a tenth of a sigma counts
