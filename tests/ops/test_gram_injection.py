"""Sources by inner products equal a new KLIP of images that have the sources in them."""

import numpy as np
import pytest

from gpucoron.core.stack import IntegrationStack
from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.eigen import KLBasis
from gpucoron.ops.gram_injection import GramInjection
from gpucoron.ops.klip_zones import klip_zones
from gpucoron.ops.stamps import sheets_of
from gpucoron.ops.zones import make_zones
from gpucoron.steps.roll_subtraction import subtract_rolls

SHAPE, N, BOX = (44, 50), 3, 9
GROUPS = np.repeat([1, 2, -1], [4, 3, 8])  # two other rolls, and references of another star
FLUX = np.array([3.0, -2.0])


def case(seed):
    """Targets, references, and stamps of two sources, the second over the edge."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(N + len(GROUPS), *SHAPE)).cumsum(axis=1).cumsum(axis=2)
    images = 4 + images / images.std() + 0.1 * rng.normal(size=images.shape)
    stamps = rng.random((2, 3, BOX, BOX)) * 0.3
    corners = np.array([[[20, 30], [23, 26], [18, 33]], [[-3, 44], [2, 40], [-5, 39]]])
    return images[:N], images[N:], stamps, corners


def added(images, groups, stamps, corners, flux):
    out = np.pad(images, ((0, 0), (BOX, BOX), (BOX, BOX)))
    for image, group in zip(out, groups, strict=True):
        if group >= 0:
            y, x = corners[group] + BOX
            image[y : y + BOX, x : x + BOX] += flux * stamps[group]
    return out[:, BOX:-BOX, BOX:-BOX]


ZONES = {"annuli": 2, "subsections": 3, "iwa": 2.0, "owa": 24.0}
CASES = {
    "adi": {},
    "adi, zones": {"zones": ZONES},
    "adi+rdi, zones": {"zones": ZONES, "rdi": True, "maxnumbasis": 6},
    "adi+rdi, missing": {"rdi": True, "missing": True, "weight": True},
    "adi+rdi, areas, missing": {"zones": ZONES | {"optimise": 3}, "rdi": True, "missing": True},
    "adi+rdi, movement": {"zones": ZONES, "rdi": True, "movement": True, "missing": True},
    "rdi, areas, missing": {"zones": ZONES | {"optimise": 3}, "adi": False, "missing": True},
    "rdi, chosen": {"zones": ZONES, "adi": False, "maxnumbasis": 5, "weight": True},
}


def prepared(seed, zones=None, rdi=False, adi=True, missing=False, weight=False, movement=False):
    """Images, what serves whom, and options of klip_zones and of GramInjection."""
    targets, references, stamps, corners = case(seed)
    rng = np.random.default_rng(seed + 50)
    kept = (GROUPS < 0) if not adi else np.ones(15, bool) if rdi else GROUPS >= 0
    made = None if zones is None else make_zones(SHAPE, (25.0, 22.0), **zones)
    allowed = np.ones((1 if made is None else len(made), N, kept.sum()), bool)
    if movement:
        allowed[:3, :, :4] = False  # the inner zones, one roll
        allowed[4, 1, 5] = False
    options = {"missing": rng.random(targets.shape) < 0.03 if missing else None}
    options["weight"] = rng.uniform(0.2, 1, SHAPE) if weight else None
    options["optimise"] = None if made is None else made.optimise
    groups = GROUPS[kept]
    return (targets, references[kept], stamps, corners), groups, allowed, made, options


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_as_a_new_klip(seed, name):
    asked = dict(CASES[name])
    most = asked.pop("maxnumbasis", None)
    (targets, references, stamps, corners), groups, allowed, made, options = prepared(seed, **asked)
    labels = None if made is None else made.labels

    def klip(flux, k, used, m=0):
        """Residuals with source m in targets and references."""
        own = np.zeros(N, int)
        images = [
            added(i, g, stamps[m], corners[m], flux)
            for i, g in ((targets, own), (references, groups))
        ]
        return klip_zones(*images, labels, k, allowed=used, **options)

    first = klip_zones(targets, references, labels, 3, allowed=allowed, maxnumbasis=most, **options)
    used = np.asarray(first.used)
    plan = GramInjection(targets, references, groups, used=used, zones=labels, **options)
    stamps, corners = stamps[:, : plan.n_groups], corners[:, : plan.n_groups]
    for k in (0, 3, 20):
        before = klip(0, k, used).residuals[0]
        exact = plan.residuals(stamps, corners, k, FLUX)
        faint = plan.residuals(stamps, corners, k)
        for m, flux in enumerate(FLUX):
            after = klip(flux, k, used, m).residuals[0]
            np.testing.assert_allclose(flux * exact[m], after - before, rtol=0, atol=1e-9)
            ends = [klip(step, k, used, m).residuals[0] for step in (1e-4, -1e-4)]
            slope = (ends[0] - ends[1]) / 2e-4
            np.testing.assert_allclose(faint[m] + 0 * slope, slope, rtol=0, atol=3e-7)


@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("name", ["adi, zones", "adi+rdi, missing"])
def test_sources_taken_away_together(seed, name):
    """What two sources change together, and one beside the other, as by new KLIPs."""
    (targets, references, stamps, corners), groups, allowed, made, options = prepared(
        seed, **CASES[name]
    )
    labels = None if made is None else made.labels
    first = klip_zones(targets, references, labels, 3, allowed=allowed, **options)
    used = np.asarray(first.used)

    def left(sources):
        images = [targets, references]
        for m in sources:
            images = [
                added(i, g, stamps[m], corners[m], -FLUX[m])
                for i, g in zip(images, (np.zeros(N, int), groups), strict=True)
            ]
        return klip_zones(*images, labels, 3, allowed=used, **options).residuals[0]

    neither, second, both = left((0, 1)), left((0,)), left(())
    plan = GramInjection(targets, references, groups, used=used, zones=labels, **options)
    stamps, corners = stamps[:, : plan.n_groups], corners[:, : plan.n_groups]
    scaled = FLUX[:, None, None, None] * stamps
    sheets = sheets_of(scaled, corners, SHAPE)[None]
    together = plan.residuals(sheets, np.zeros((1, plan.n_groups, 2), int), 3, [-1.0])[0]
    np.testing.assert_allclose(together, both - neither, rtol=0, atol=1e-9)
    one_by_one = sum(
        f * r for f, r in zip(FLUX, plan.residuals(stamps, corners, 3, -FLUX), strict=True)
    )
    assert np.nanmax(abs(one_by_one - together)) > 1e-3  # is not the same
    alone = plan.without(scaled[:1], corners[:1]).residuals(stamps[1:], corners[1:], 3, -FLUX[1:])
    np.testing.assert_allclose(FLUX[1] * alone[0], second - neither, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", [3, 4])
def test_as_full_frame_klip_and_as_roll_subtraction(seed):
    """KLBasis with missing pixels, and the mean of other rolls."""
    (targets, references, stamps, corners), groups, _, _, options = prepared(
        seed, rdi=True, missing=True, weight=True
    )
    missing, weight = options["missing"], options["weight"]
    images = [
        [
            added(i, g, stamps[0], corners[0], f)
            for i, g in ((targets, [0] * N), (references, groups))
        ]
        for f in (0.0, 5.0)
    ]
    plan = GramInjection(targets, references, groups, weight=weight, missing=missing)
    got = plan.residuals(stamps[:1], corners[:1], 4, 5.0)[0]
    before, after = (KLBasis(r, weight=weight).subtract(t, 4, missing=missing) for t, r in images)
    np.testing.assert_allclose(5 * got, after - before, rtol=0, atol=1e-9)

    rows = np.full((N, len(references)), 1 / len(references))
    plan = GramInjection(None, references, groups, fixed=rows, weight=weight, missing=missing)
    got = plan.residuals(stamps[:1], corners[:1], 0)[0]
    planes = dict.fromkeys(("err",), np.ones(targets.shape))
    left = [
        subtract_rolls(
            IntegrationStack(t, dq=np.zeros(t.shape, np.uint32), **planes),
            r,
            weight=weight,
            missing=missing,
        ).data
        for t, r in images
    ]
    np.testing.assert_allclose(5 * got, left[1] - left[0], rtol=0, atol=2e-6)  # its float32


def test_bad_input():
    targets, references, stamps, corners = case(3)
    for error, text, arguments, options in (
        (InputError, r"expected\s+\(nref", (targets, references[0], GROUPS), {}),
        (InputError, "groups", (targets, references, GROUPS[:3]), {}),
        (InputError, "targets are None", (None, references, GROUPS), {}),
        (
            InputError,
            "not finite",
            (np.where(targets > 5, np.nan, targets), references, GROUPS),
            {},
        ),
        (InputError, "used has shape", (targets, references, GROUPS), {"used": np.ones((1, 1, 2))}),
        (InputError, "missing has", (targets, references, GROUPS), {"missing": targets[:, :3] > 0}),
    ):
        with pytest.raises(error, match=text):
            GramInjection(*arguments, **options)
    plan = GramInjection(targets, references, GROUPS)
    with pytest.raises(InputError, match="stamps have shape"):
        plan.residuals(stamps[:, :1], corners, 2)
    with pytest.raises(ParameterError, match="truncate is -1"):
        plan.residuals(stamps, corners, -1)


@pytest.mark.parametrize("flux", [np.nan, np.inf, 0.0])
def test_a_flux_that_is_none_is_named(flux):
    (targets, references, stamps, corners), groups, *_ = prepared(1)
    plan = GramInjection(targets, references, groups)
    stamps, corners = stamps[:, : plan.n_groups], corners[:, : plan.n_groups]
    with pytest.raises(InputError, match=rf"flux of source 1 \(from 0\) is {flux}, expected"):
        plan.residuals(stamps, corners, 3, [1.0, flux])
