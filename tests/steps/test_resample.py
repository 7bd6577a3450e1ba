"""resample: weights, variances, ERR, GPU against CPU, and the step of the jwst package."""

import logging
import sys
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.core.stack import IntegrationStack, PlaneSource, ReferenceNoise
from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.drizzle import Drizzle, overlaps
from gpucoron.steps.resample import resample
from tests.helpers.scenes import changed, read_only
from tests.helpers.tolerances import DRIZZLE_ROUNDED, LANCZOS_REL

SHAPE, OUTPUT = (24, 21), (27, 26)
BY_TIME = {"weight_type": "exptime"}
VARIANCES = ("var_poisson", "var_rnoise", "var_flat")
#: Values with which a pixel takes no part, and others that are odd.
BAD = [
    *(("data", value) for value in (np.nan, np.inf, -np.inf)),
    *(("var_rnoise", value) for value in (np.nan, np.inf, 0.0, -2.0, 1e-39)),
    *(("dq", value) for value in (1, 512, 1 + 4)),
    *(("err", np.nan), ("var_flat", np.nan)),
]
ODD = [("err", np.inf), ("var_flat", np.inf), ("dq", 4)]


def pixel_map(angle=0.0, shape=SHAPE, output=OUTPUT):
    y, x = np.indices(shape, dtype=np.float64)
    u, v = x - (shape[1] - 1) / 2, y - (shape[0] - 1) / 2
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    out = np.stack([c * u - s * v + output[1] / 2, s * u + c * v + output[0] / 2], axis=-1)
    out.flags.writeable = False
    return out


def stack(n=3, seed=0, variances=True):
    """Integrations with some bad pixels, read-only."""
    rng = np.random.default_rng(seed)
    shape = (n, *SHAPE)
    dq = np.zeros(shape, dtype=np.uint32)
    dq[rng.uniform(size=shape) < 0.03] = 1
    dq[rng.uniform(size=shape) < 0.03] = 512
    dq[rng.uniform(size=shape) < 0.2] |= 4
    arrays = [rng.normal(10, 1, shape), rng.uniform(0.5, 1, shape)]
    arrays += [rng.uniform(0.2, 2.0, shape) for _ in range(3 * variances)]
    data, err, *variances = read_only(*(array.astype(np.float32) for array in arrays))
    return IntegrationStack(data, err, read_only(dq), *variances)


def run(device, given, maps, output=OUTPUT, **keywords):
    return device.get(resample(device.put(given), maps, output, **keywords))


def both(device, given, maps, **keywords):
    """Compare the result with the CPU's, and return it."""
    result = run(device, given, maps, **keywords)
    expected = resample(given, maps, OUTPUT, **keywords)
    assert_array_equal(result.con, expected.con)
    for name, wanted in vars(expected).items():
        found = getattr(result, name)
        if wanted is None or name.endswith("correlation"):
            assert_allclose(np.array(found, float), np.array(wanted, float), rtol=1e-6)
            continue
        dtype = {"con": np.int32, "dq": np.uint32}.get(name, np.float32)
        assert found.dtype == wanted.dtype == dtype
        assert_allclose(found, wanted, rtol=10 * DRIZZLE_ROUNDED, err_msg=name)
    return result


def assert_same_bits(a, b):
    for name, value in vars(a).items():
        assert_array_equal(np.asarray(value, float), np.asarray(getattr(b, name), float))


def test_read_noise_weighs_and_flags_count(device):
    given = stack()
    result = run(device, [given], [pixel_map(5.0)])
    good = (given.dq & 513) == 0
    d = Drizzle(OUTPUT)
    d.add(given.data, pixel_map(5.0), np.where(good, 1 / given.var_rnoise, 0))
    expected = d.result()
    assert_allclose(result.data, expected.data, rtol=1e-6)
    assert_allclose(result.wht, expected.weight, rtol=1e-6)
    assert_array_equal(result.con, expected.context)
    assert result.data.dtype == result.err.dtype == np.float32
    variances = [getattr(result, name) for name in VARIANCES]
    assert_allclose(result.err, np.sqrt(np.sum(variances, axis=0)), rtol=1e-6)
    assert result.var_ref is result.var_speckle is None


@pytest.mark.parametrize("err_from", ["auto", "var"])
def test_overlaps_can_be_shared_by_several_images(device, monkeypatch, err_from):
    maps = [pixel_map(7.0), pixel_map(-20.0)]
    others = [[stack(2, seed), stack(3, seed + 1)] for seed in (1, 5)]
    computed, known = [], {}
    monkeypatch.setattr(
        Drizzle, "overlaps", lambda self, *a, f=Drizzle.overlaps: computed.append(a) or f(self, *a)
    )
    for given in others:
        shared = run(device, given, maps, err_from=err_from, known=known)
        assert_same_bits(shared, run(device, given, maps, err_from=err_from))
    assert len(computed) == 2 + 2 * len(maps)  # once for all that share, and once for each other


@pytest.mark.parametrize("name, value", BAD)
def test_a_bad_pixel_in_any_array_takes_no_part(device, name, value):
    where = (1, 9, 10)
    clean = changed(stack(), dq=(where, 0))
    spoilt, flagged = changed(clean, **{name: (where, value)}), changed(clean, dq=(where, 1))
    result = both(device, [spoilt], [pixel_map()])
    assert_same_bits(result, run(device, [flagged], [pixel_map()]))
    assert not np.array_equal(result.wht, run(device, [clean], [pixel_map()]).wht)


@pytest.mark.parametrize("kernel", ["square", "point", "lanczos2"])
def test_dq_tells_field_and_bad_pixels_apart(device, kernel):
    """By the drizzle package, given weights of the field and of the good pixels."""
    theirs = pytest.importorskip("drizzle.resample", reason="the drizzle package is absent").Drizzle
    given, maps = [stack(2, 1), stack(3, 2)], [pixel_map(7.0), pixel_map(-20.0)]
    given = [changed(s, dq=(np.s_[:, 9:15, 8:13], 1)) for s in given]  # bad in both
    given[0] = changed(given[0], dq=(np.s_[:, :, 16:], 513))  # a border
    fields = []
    for bits in (512, 513):
        drizzle = theirs(kernel=kernel, out_shape=OUTPUT, fillval="NAN")
        for exposure, pixels in zip(given, maps, strict=True):
            for dq in exposure.dq:
                weight = ((dq & bits) == 0).astype(np.float32)
                drizzle.add_image(weight, 1.0, pixels.copy(), weight_map=weight)
        fields.append(drizzle.out_ctx.any(axis=0))
    seen, good = fields
    result = run(device, given, maps, kernel=kernel)
    good &= result.wht > 0
    assert_array_equal(result.dq, np.where(good, 0, np.where(seen, 1, 513)))
    assert set(result.dq.flat) == {0, 1, 513}


def test_other_flags_do_not_matter(device):
    given = stack()
    flagged = given.replace(dq=given.dq | np.uint32(4 + 16))
    a, b = (run(device, [s], [pixel_map()]) for s in (given, flagged))
    assert_array_equal(a.data, b.data)


def test_exposure_time_weighs(device):
    given = [stack(2, 1), stack(1, 2)]
    maps = [pixel_map(), pixel_map(7.0)]
    result = run(device, given, maps, **BY_TIME, exposure_times=[10.0, 30.0])
    middle = result.wht[8:18, 8:18]
    assert np.median(middle) == pytest.approx(2 * 10.0 + 30.0, rel=0.2)
    swapped = run(device, given, maps, **BY_TIME, exposure_times=[20.0, 60.0])
    assert_allclose(swapped.data, result.data, rtol=1e-6)
    assert_allclose(swapped.err, result.err, rtol=1e-6)


@pytest.mark.parametrize("err_from, ratio", [("auto", 1.0), ("var", 0.5)])
def test_variances_of_equal_planes_average_down(device, err_from, ratio):
    """n integrations of one variance on an aligned grid have a mean of variance / n.

    jwst divides by the square of the ratio of the scales, whatever the drops are.
    """
    shape = (4, *SHAPE)
    ones = np.ones(shape, dtype=np.float32)
    given = IntegrationStack(ones, ones, np.zeros(shape, np.uint32), 2 * ones, 3 * ones, 5 * ones)
    y, x = np.indices(SHAPE, dtype=np.float64)
    aligned = np.stack([x, y], axis=-1)
    result = run(device, [given], [aligned], SHAPE, pixel_scale_ratio=0.5, err_from=err_from)
    inner = np.s_[2:-2, 2:-2]
    for name, value in zip(VARIANCES, (2, 3, 5), strict=True):
        assert_allclose(getattr(result, name)[inner], value / 4 / ratio**2, rtol=1e-6)
    assert_allclose(result.err[inner], np.sqrt(10 / 4) / ratio, rtol=1e-6)


def test_exposures_one_by_one_and_shared_maps(device):
    given = [stack(40, 1), stack(3, 2), stack(2, 3)]
    shared = pixel_map(4.0)
    result = run(device, given, [shared, pixel_map(-3.0), shared])
    again = run(device, given, [shared.copy(), pixel_map(-3.0), shared])
    assert result.con.shape == (2, *OUTPUT)
    assert_same_bits(result, again)


def test_without_read_noise(device, caplog):
    given = [stack(3, 1).replace(var_rnoise=None), stack(2, 2).replace(var_rnoise=None)]
    with caplog.at_level(logging.INFO):
        result = run(device, given, [pixel_map()] * 2)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "2 of 2 exposures without VAR_RNOISE; the weight of their pixels is 1" in caplog.text
    assert result.wht.max() == pytest.approx(5.0, rel=1e-6)
    assert np.isnan(result.var_rnoise).all()
    covered = result.wht > 1
    expected = np.sqrt(result.var_poisson + result.var_flat)
    assert_allclose(result.err[covered], expected[covered], rtol=1e-6)


def test_one_exposure_without_read_noise_weighs_as_it_is_told(device, caplog):
    given = [stack(3, 1), stack(2, 2)]
    maps, weight = [pixel_map(), pixel_map(4.0)], 4.0
    known = np.full_like(given[1].var_rnoise, 1 / weight)
    expected = run(device, [given[0], given[1].replace(var_rnoise=known)], maps)
    without = given[1].replace(var_rnoise=None, sources=[PlaneSource("b", 1)] * 2)
    found = run(device, [given[0], without], maps, weight_without_read_noise=weight)
    assert "1 of 2 exposures without VAR_RNOISE" in caplog.text and "(b)" in caplog.text
    for name in ("data", "wht", "con"):
        assert_array_equal(getattr(found, name), getattr(expected, name))


def test_where_no_error_is_known_it_is_the_scatter_of_the_image(device, caplog):
    given = stack(variances=False)
    zero = run(device, [given.replace(err=np.zeros_like(given.err))], [pixel_map()])
    assert_array_equal(np.isfinite(zero.err), np.isfinite(zero.data))
    assert (zero.err[np.isfinite(zero.data)] > 0).all()
    assert "their ERR is the scatter of the image around them" in caplog.text


@pytest.mark.parametrize("value", [0.0, np.inf, -1.0])
def test_where_variances_do_not_tell_err_does(device, value):
    """Pixels on themselves: the error of a mean, from VAR_* or, where these say nothing, ERR."""
    given = stack(3)
    aligned = np.stack(np.indices(SHAPE, dtype=np.float64)[::-1], axis=-1)
    total = sum(getattr(given, name) for name in VARIANCES)
    given = given.replace(err=2 * np.sqrt(total))
    variances = {name: getattr(given, name).copy() for name in VARIANCES}
    for name in VARIANCES:
        variances[name][1, 4:6, 3:6] = value
    odd = given.replace(**variances)
    options = {"weight_type": "exptime", "exposure_times": [1.0]}
    found = run(device, [odd], [aligned], SHAPE, **options)
    good = ((given.dq & 513) == 0) & np.isfinite(given.data)
    own = total.astype(float)
    own[1, 4:6, 3:6] *= 4
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.sqrt(np.where(good, own, 0).sum(axis=0)) / good.sum(axis=0)
    inner = np.s_[2:-2, 2:-2]
    assert_allclose(found.err[inner], expected[inner], rtol=1e-5)


def test_err_without_variances(device, caplog):
    given = [stack(4, variances=False)]
    aligned = np.stack(np.indices(SHAPE, dtype=np.float64)[::-1], axis=-1)
    with caplog.at_level(logging.INFO):
        auto = run(device, given, [aligned], SHAPE)
        assert "no VAR_* in any exposure; their ERR counts instead" in caplog.text
        bare = run(device, given, [aligned], SHAPE, err_from="var")
        assert "ERR is NaN everywhere" in caplog.text
    assert np.isnan(bare.err).all()
    assert_array_equal(auto.data, bare.data)
    for name in VARIANCES:
        assert np.isnan(getattr(auto, name)).all()
    good = (given[0].dq & 513) == 0
    n = good.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.sqrt(np.sum(np.where(good, given[0].err, 0) ** 2, axis=0)) / n
    inner = np.s_[2:-2, 2:-2]
    assert_allclose(auto.err[inner], expected[inner], rtol=1e-5)


def test_nothing_good(device):
    given = stack().replace(dq=np.ones((3, *SHAPE), dtype=np.uint32))
    result = both(device, [given], [pixel_map()], fillval="-1")
    assert (result.data == -1).all() and not result.wht.any() and not result.con.any()
    assert np.isnan(result.err).all()


@pytest.mark.parametrize("at_once", [2**24, 2 * SHAPE[0] * SHAPE[1]])
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {**BY_TIME, "exposure_times": [10.0, 25.0, 40.0]},
        {"kernel": "point", "fillval": "-1"},
        {"kernel": "gaussian", "pixfrac": 0.8, "err_from": "var"},
        {"kernel": "turbo", "pixel_scale_ratio": 0.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("known", ["all", "no read noise", "none"])
def test_equals_the_cpu(device, monkeypatch, keywords, known, at_once):
    monkeypatch.setattr(sys.modules[resample.__module__], "GPU_PIXELS_AT_ONCE", at_once)
    given = [stack(5, 1, known != "none"), stack(1, 2, known != "none"), stack(3, 3)]
    if known != "all":
        given = [s.replace(var_rnoise=None) for s in given]
    if known == "none":
        given[2] = given[2].replace(var_poisson=None, var_flat=None)
    shared = pixel_map(4.0)
    both(device, given, [shared, pixel_map(-3.0), shared], **keywords)


@pytest.mark.parametrize("name, value", ODD)
def test_odd_pixels(device, name, value):
    given = changed(stack(), **{name: (np.s_[1, 8:10, 10], value)})
    both(device, [given], [pixel_map(3.0)])


def test_other_types_and_a_map_on_the_device(device):
    given = stack(2)
    wide = {k: getattr(given, k).astype(np.float64) for k in ("data", "err", *VARIANCES)}
    result = device.call(resample, [given.replace(**wide)], [pixel_map()], OUTPUT)
    expected = resample([given], [pixel_map()], OUTPUT)
    assert_allclose(result.data, expected.data, rtol=1e-5)
    assert_allclose(result.wht, expected.wht, rtol=1e-6)


@pytest.mark.parametrize(
    "error, keywords, message",
    [
        (ParameterError, {"weight_type": "equal"}, "weight_type is 'equal', expected 'ivm' or"),
        (ParameterError, {"err_from": "klip"}, "err_from is 'klip', expected 'auto' or 'var'"),
        (ParameterError, {"pixel_scale_ratio": 0}, "pixel_scale_ratio is 0, expected a n"),
        (ParameterError, {"kernel": "round"}, "kernel is 'round', expected one of 'square'"),
        (ParameterError, {"pixfrac": -0.1}, "pixfrac is -0.1, expected a number from 0 to 1"),
        (ParameterError, {"fillval": "x"}, "fillval is 'x', expected 'NAN', 'INDEF' or a number"),
        (InputError, BY_TIME, "needs a time for each of 1 exposures, got 0"),
        (
            InputError,
            {**BY_TIME, "exposure_times": [None]},
            "exposure 0 has exposure time None, expected seconds above 0",
        ),
        (InputError, {"pixel_maps": []}, "0 pixel maps given for 1 exposures"),
        (InputError, {"pixel_maps": [np.zeros((3, 3, 2))]}, r"pixel map 0 has shape \(3, 3, 2\)"),
        (InputError, {"stacks": [], "pixel_maps": []}, "resample got no exposure"),
    ],
)
def test_errors(error, keywords, message):
    given = {"stacks": [stack(1)], "pixel_maps": [pixel_map()], "output_shape": OUTPUT}
    with pytest.raises(error, match=message) as caught:
        resample(**given | keywords)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kernel, pixfrac, text",
    [
        ("lanczos3", 0.7, "kernel lanczos3 takes no pixfrac; 0.7 counts as 1"),
        ("lanczos3", 1.0, ""),
        ("gaussian", 0.7, ""),
    ],
)
def test_lanczos_takes_no_pixfrac(caplog, kernel, pixfrac, text):
    with caplog.at_level(logging.WARNING):
        resample([stack(1)], [pixel_map()], OUTPUT, kernel=kernel, pixfrac=pixfrac)
    assert caplog.messages == ([f"resample: {text}"] if text else [])


@pytest.mark.parametrize("kernel", ["turbo", "gaussian", "lanczos2", "lanczos3"])
def test_pixel_scale_ratio_sizes_the_drop(device, kernel):
    """On a grid twice as fine every output pixel within the image gets something."""
    given = stack(1).replace(dq=np.zeros((1, *SHAPE), np.uint32))
    fine = 2 * np.stack(np.indices(SHAPE, dtype=np.float64)[::-1], axis=-1) + 0.5
    output = (2 * SHAPE[0], 2 * SHAPE[1])
    more = {"pixel_scale_ratio": 0.5, **BY_TIME, "exposure_times": [1.0]}
    result = run(device, [given], [fine], output, kernel=kernel, **more)
    assert (result.wht[2:-2, 2:-2] > 0).all()
    assert np.isfinite(result.err[2:-2, 2:-2]).all()


# ---- errors against direct propagation


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


# ---- against the genuine step


def rms(values):
    return np.sqrt(np.nanmean(np.square(values, dtype=np.float64)))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"kernel": "point", "fillval": "-7.5"},
        {"pixfrac": 0.7, "pixel_scale_ratio": 0.5},
        {"rotation": 30.0, "weight_type": "exptime"},
        {"output_shape": [100, 120], "crpix": [40.0, 50.0], "crval": [150.2, -30.4]},
        {"kernel": "turbo", "pixel_scale_ratio": 0.7, "pixfrac": 0.8},
        {"kernel": "gaussian", "pixfrac": 0.6, "weight_type": "exptime"},
        {"kernel": "gaussian", "pixel_scale_ratio": 1.5},
        {"kernel": "lanczos2", "pixel_scale_ratio": 0.6},
        {"kernel": "lanczos3", "rotation": 20.0},
    ],
    ids=str,
)
@pytest.mark.slow
def test_equals_the_jwst_package(shared_data, parameters):
    pytest.importorskip("jwst.resample", reason="the jwst package is absent")
    from gpucoron.io.exposures import read_exposure
    from gpucoron.io.wcs import output_wcs, pixel_map, read_wcs

    paths = sorted((shared_data / "nircam_small").glob("jw0900100[23]*_calints.fits"))
    theirs = jwst_resample(paths, parameters)
    exposures = [read_exposure(path, "science") for path in paths]
    wcss = [read_wcs(e.asdf_bytes, e.path.name) for e in exposures]
    stacks = [e.stack for e in exposures]
    shapes = [s.shape for s in stacks]
    names = ("pixel_scale_ratio", "rotation", "output_shape", "crpix", "crval")
    asked = {k: parameters[k] for k in names if k in parameters}
    output = output_wcs(wcss, [e.meta for e in exposures], shapes, **asked)
    rest = {k: v for k, v in parameters.items() if k not in names}
    ours = resample(
        stacks,
        [pixel_map(w, output, s) for w, s in zip(wcss, shapes, strict=True)],
        output.shape,
        pixel_scale_ratio=output.pixel_scale_ratio,
        err_from="var",
        exposure_times=[e.meta.measurement_time for e in exposures],
        **rest,
    )
    assert ours.data.shape == theirs.data.shape
    assert_array_equal(ours.con, theirs.con)
    # the maps differ by the rounding of gwcs, 1e-9 px: slivers of weight 1e-4 by 1e-5 of theirs,
    # and lanczos reads the next entry of its table (worst seen: 7 pixels by 0.0018 of the largest)
    lanczos = parameters.get("kernel", "").startswith("lanczos")
    close = np.isclose(ours.wht, theirs.wht, rtol=1e-6, atol=1e-6 * theirs.wht.max())
    assert np.count_nonzero(~close) <= 50 * lanczos
    assert_allclose(ours.wht, theirs.wht, atol=0.003 * theirs.wht.max())
    limit = LANCZOS_REL if lanczos else 1e-6
    for name in ("data", "err", *VARIANCES):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert_array_equal(np.isnan(mine), np.isnan(other))
        assert rms(mine - other) <= limit * rms(other), name
    assert output.pixel_area_sr == pytest.approx(
        theirs.meta.photometry.pixelarea_steradians, rel=1e-12
    )


def jwst_resample(paths, parameters):
    from jwst.datamodels import ModelContainer, ModelLibrary
    from jwst.pipeline.calwebb_coron3 import to_container
    from jwst.resample import ResampleStep
    from stdatamodels.jwst import datamodels

    images = ModelContainer()
    for path in paths:
        with datamodels.open(path) as cube:
            for image in to_container(cube):
                images.append(image)
    step = ResampleStep()
    step.blendheaders = False
    for name, value in parameters.items():
        setattr(step, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel does not conserve flux
        return step.process(ModelLibrary(images, on_disk=False))
