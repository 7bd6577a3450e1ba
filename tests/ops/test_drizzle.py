"""Drizzle against the drizzle package, and with itself.

The GPU against the CPU: test_drizzle_cuda.py.
"""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.backend.device import cpu_threads
from gpucoron.backend.threads import set_threads
from gpucoron.ops.cpu import drizzle_planes
from gpucoron.ops.drizzle import KERNELS, Drizzle, overlaps
from gpucoron.ops.drizzle_weights import pixel_weights
from tests.helpers.processes import python
from tests.helpers.scenes import read_only
from tests.helpers.tolerances import DRIZZLE_CANCELLING_VARIANCE, DRIZZLE_SUM_ABS, DRIZZLE_SUM_REL

SHAPE, OUTPUT = (41, 33), (39, 46)


def distorted_map(shape, output_shape, angle=0.0, ratio=1.0, bend=0.0, flip=False, seed=0):
    """Rotation, scale, quadratic distortion and a random offset about the middle."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape, dtype=np.float64)
    u, v = x - (shape[1] - 1) / 2, y - (shape[0] - 1) / 2
    u, v = (
        u + bend * (u * u / shape[1] + 0.5 * u * v / shape[0]),
        v + bend * (v * v / shape[0] - 0.3 * u * v / shape[1]),
    )
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    out = np.stack([(c * u - s * v) / ratio, (s * u + c * v) / ratio], axis=-1)
    out += (np.array(output_shape[::-1]) - 1) / 2 + rng.uniform(-1, 1, 2)
    if flip:
        out[..., 0] = output_shape[1] - 1 - out[..., 0]
    return out


def scene(n, shape=SHAPE, seed=1, bad=0.05):
    """Images with NaN where the weight is 0, and weights."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, *shape)).astype(np.float32)
    weights = rng.uniform(0.1, 2.0, size=images.shape).astype(np.float32)
    weights[rng.uniform(size=images.shape) < bad] = 0.0
    images[weights == 0] = np.nan
    return read_only(images, weights)


def package(images, pixel_maps, weights, output_shape=OUTPUT, fillval="NAN", **keywords):
    """The same through the drizzle package: image, weight, context."""
    library = pytest.importorskip("drizzle.resample", reason="the drizzle package is absent")
    kernel = keywords.pop("kernel", "square")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        d = library.Drizzle(kernel=kernel, out_shape=output_shape, fillval=fillval)
        for image, pixel_map, weight in zip(images, pixel_maps, weights, strict=True):
            d.add_image(image, 1.0, pixel_map, weight_map=weight, **keywords)
    return d.out_img, d.out_wht, d.out_ctx


def drizzled(
    device, images, maps, weights, output=OUTPUT, *, variances=(), weigh=1, scale=1.0, **keywords
):
    """Result of images, or stacks of images, each with its map: on the host."""
    d = Drizzle(output, **keywords)
    for k, pixel_map in enumerate(maps):
        given = device.put([images[k], pixel_map, weights[k]])
        planes = device.put([v[k] for v in variances])
        d.add(*given, variances=planes, weigh_variances=weigh, scale=scale)
    return device.get(d.result())


def absolute_terms(weights, maps, output=OUTPUT, **keywords):
    """Yield for each image the sum of the absolute terms that enter every output pixel."""
    for weight, pixel_map in zip(weights, maps, strict=True):
        o = overlaps(pixel_map, output, **keywords)
        pixel = np.repeat(np.arange(o.pointers.size - 1), np.diff(o.pointers))
        each = np.abs(o.shares) * weight.astype(float).ravel()[o.sources]
        yield np.bincount(pixel, each, o.pointers.size - 1).reshape(output)


def assert_like_package(result, expected):
    """Single precision running means round by about 1e-7 for each of some ten overlaps."""
    image, weight, context = expected
    assert_array_equal(result.context, context)
    assert_allclose(result.weight, weight, rtol=1e-6, atol=1e-7 * weight.max())
    assert_allclose(result.data, image, rtol=1e-6, atol=1e-6)


def assert_like_package_signed(device, images, maps, weights, **keywords):
    """As above where terms of a sum cancel: rounding counts beside their absolute values."""
    image, weight, context = expected = package(images, maps, weights, **keywords)
    result = drizzled(device, images, maps, weights, **keywords)
    terms, differs = np.zeros(OUTPUT), result.context ^ context
    for k, each in enumerate(absolute_terms(weights, maps, **keywords)):
        terms += each
        # the last bit of the gaussian's far outskirts decides whether anything is left of them
        assert (each[(differs[0] >> k & 1).astype(bool)] < np.finfo(np.float32).tiny).all()
    assert np.mean(differs != 0) < 0.005
    rounding = DRIZZLE_SUM_REL * terms + DRIZZLE_SUM_ABS
    assert (np.abs(result.weight.astype(float) - weight) <= rounding).all()
    sure = (terms >= np.finfo(np.float32).tiny) | (differs[0] == 0)
    assert_array_equal(result.weight[sure] == 0, weight[sure] == 0)
    covered, bare = (weight != 0) & sure, (weight == 0) & sure
    largest = np.nanmax(np.abs(images)) + np.abs(image[covered].astype(float))
    gap = np.abs(result.data[covered].astype(float) - image[covered])
    assert (gap <= rounding[covered] / np.abs(weight[covered]) * largest).all()
    assert np.isnan(result.data[bare]).all() and np.isnan(image[bare]).all()
    return result, expected


GEOMETRIES = {
    "shifted": {},
    "rotated": {"angle": 10.0, "bend": 0.02},
    "finer": {"angle": 37.0, "ratio": 0.5, "bend": 0.05, "flip": True},
    "quarter turn": {"angle": 90.0},
    "coarser": {"angle": -125.0, "ratio": 1.7, "bend": 0.03, "flip": True},
    "diagonal": {"angle": 45.0, "ratio": 0.9, "bend": 0.01},
}


@pytest.mark.parametrize("pixfrac", [1.0, 0.7, 0.2])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_the_drizzle_package(device, geometry, kernel, pixfrac):
    images, weights = scene(6)
    maps = [distorted_map(SHAPE, OUTPUT, seed=k // 2, **GEOMETRIES[geometry]) for k in range(6)]
    ratio = GEOMETRIES[geometry].get("ratio", 1.0)
    keywords = {"kernel": kernel, "pixfrac": pixfrac, "pixel_scale_ratio": ratio}
    result, expected = assert_like_package_signed(device, images, maps, weights, **keywords)
    assert np.isfinite(expected[0]).any()
    if kernel in ("square", "point", "turbo"):
        assert_like_package(result, expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -2.0), (0.5, 0.5), (-20.25, 11.0)])
def test_aligned_grids(device, shift, kernel):
    """Overlaps that rounding decides: edges of input pixels lie exactly on those of the output."""
    images, weights = scene(2)
    y, x = np.indices(SHAPE, dtype=np.float64)
    maps = [np.stack([x + shift[0], y + shift[1]], axis=-1)] * 2
    assert_like_package_signed(device, images, maps, weights, kernel=kernel)


@pytest.mark.parametrize("where", ["column", "row", "corner", "frame", "hole"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_in_the_map(device, where, kernel):
    images, weights = scene(2)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=8.0, bend=0.02)
    lost = np.zeros(SHAPE, bool)
    places = {"column": np.s_[:, 0], "row": np.s_[-2:], "corner": np.s_[:4, :4]}
    places |= {"frame": np.s_[:], "hole": np.s_[20:23, 14:16]}
    lost[places[where]] = True
    if where == "frame":
        lost[3:-2, 2:-4] = False
    pixel_map[lost] = np.nan
    keywords = {"kernel": kernel, "pixel_scale_ratio": 1.0}
    assert_like_package_signed(device, images, [pixel_map] * 2, weights, **keywords)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_but_nan_in_the_map(device, kernel):
    images, weights = scene(1)
    nowhere = [np.full((*SHAPE, 2), np.nan)]
    result = drizzled(device, images, nowhere, weights, kernel=kernel, fillval="-2.5")
    assert not result.weight.any() and not result.context.any()
    assert (result.data == -2.5).all()


@pytest.mark.parametrize("fillval", ["NAN", "INDEF", "-3.5", 0.0])
def test_fill_and_scale(device, fillval):
    images, weights = scene(2)
    maps = [distorted_map(SHAPE, OUTPUT, ratio=2.0, angle=3.0)] * 2
    expected = package(images, maps, weights, fillval=fillval, iscale=0.25)
    result = drizzled(device, images, maps, weights, fillval=fillval, scale=0.25)
    assert_like_package(result, expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_overlap_and_tiny_pixfrac(device, kernel):
    images, weights = scene(2)
    far = [distorted_map(SHAPE, OUTPUT) + 500.0] * 2
    near = [distorted_map(SHAPE, OUTPUT, angle=5.0)] * 2
    assert overlaps(far[0], OUTPUT, kernel=kernel).shares.size == 0
    for maps, keywords in ((far, {}), (near, {"pixfrac": 0.0005})):
        expected = package(images, maps, weights, kernel=kernel, **keywords)
        result = drizzled(device, images, maps, weights, kernel=kernel, **keywords)
        assert_like_package(result, expected)


@pytest.mark.parametrize("kernel", ["square", "point", "turbo"])
@pytest.mark.parametrize("pixfrac", [1.0, 0.6])
@pytest.mark.parametrize("angle", [0.0, 33.0])
def test_weight_and_flux_are_conserved(device, angle, pixfrac, kernel):
    """What lies inside the output is handed out completely."""
    images, weights = scene(2)
    output = (90, 95)
    maps = [distorted_map(SHAPE, output, angle=angle, ratio=0.8, bend=0.05)] * 2
    result = drizzled(device, images, maps, weights, output, pixfrac=pixfrac, kernel=kernel)
    weight, used = result.weight.astype(np.float64), weights.astype(np.float64)
    assert weight.sum() == pytest.approx(used.sum(), rel=1e-6)
    flux = np.nansum(result.data * weight)
    assert flux == pytest.approx(np.nansum(images * used), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("kernel", ["turbo", "gaussian", "lanczos2"])
@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.5])
def test_pixel_scale_ratio_is_measured_in_the_map(kernel, ratio):
    output = tuple(int(n / ratio) for n in SHAPE)
    pixel_map = distorted_map(SHAPE, output, angle=70.0, ratio=ratio, flip=True)
    pixel_map[:3] = np.nan
    told = overlaps(pixel_map, output, kernel=kernel, pixel_scale_ratio=ratio)
    measured = overlaps(pixel_map, output, kernel=kernel)
    assert_array_equal(measured.sources, told.sources)
    assert_allclose(measured.shares, told.shares, rtol=1e-6)


@pytest.mark.parametrize(
    "kernel, option",
    [("square", "pixel_scale_ratio"), ("lanczos3", "pixfrac"), ("point", "pixel_scale_ratio")],
)
def test_what_makes_no_difference_is_ignored(kernel, option):
    pixel_map = distorted_map(SHAPE, OUTPUT)
    d = Drizzle(OUTPUT, kernel=kernel)
    d.add(scene(1)[0], overlaps(pixel_map, OUTPUT, kernel=kernel, **{option: 0.3}))
    assert d.n_added == 1


def test_square_does_not_wait_for_other_kernels_to_be_compiled():
    code = """if True:
        import sys
        import numpy as np
        from gpucoron.ops.drizzle import overlaps
        overlaps(np.stack(np.indices((5, 5)), axis=-1) + 0.1, (5, 5))
        sys.exit("gpucoron.ops.cpu.drizzle_separable" in sys.modules)"""
    assert python("-c", code).returncode == 0


def assert_same_bits(a, b):
    for one, other in zip(vars(a).values(), vars(b).values(), strict=True):
        assert_array_equal(one, other)


def variances_of(images, seed=5):
    rng = np.random.default_rng(seed)
    arrays = tuple(rng.uniform(0.1, 4.0, images.shape).astype(np.float32) for _ in range(3))
    for array in arrays:
        array[np.isnan(images)] = np.nan
    return read_only(*arrays)


@pytest.mark.parametrize("kernel", ["square", "turbo", "gaussian", "lanczos3"])
def test_streamed_equals_whole_for_any_number_of_threads(kernel, monkeypatch):
    images, weights = scene(21)
    variances = variances_of(images)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=12.0)
    threads = cpu_threads()
    outcomes = []
    try:
        for n_threads, cuts in ((1, [0, 21]), (threads, [0, 1, 9, 21]), (threads, [0, 21])):
            set_threads(n_threads)
            monkeypatch.setattr(drizzle_planes, "PLANES_AT_ONCE", 16 if n_threads == 1 else 5)
            d = Drizzle(OUTPUT, kernel=kernel, n_inputs=1)
            geometry = d.overlaps(pixel_map)
            for a, b in zip(cuts[:-1], cuts[1:], strict=True):
                d.add(images[a:b], geometry, weights[a:b], variances=[v[a:b] for v in variances])
                d.result()
            outcomes.append(d.result())
    finally:
        set_threads(None)
    for other in outcomes[1:]:
        assert_same_bits(other, outcomes[0])


@pytest.mark.parametrize("kernel", ["square", "turbo", "lanczos3"])
@pytest.mark.parametrize("seed", [1, 2])
def test_an_exposure_equals_its_weighted_mean(device, kernel, seed):
    """SCI and WHT are linear in the planes; CON has the bits of all."""
    images, weights = scene(19, seed=seed)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=12.0, bend=0.02, seed=seed)
    total = weights.sum(axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(images * weights.astype(float), axis=0) / total
    result = drizzled(device, [images], [pixel_map], [weights], kernel=kernel)
    single = drizzled(device, [mean], [pixel_map], [total], kernel=kernel)
    for plane in (0, 7, 18):
        one = drizzled(device, images[plane:], [pixel_map], weights[plane:], kernel=kernel)
        assert_array_equal(result.context >> plane & 1, one.context)
    sure = single.weight > 0.1 * single.weight.max()  # lanczos: elsewhere terms cancel
    assert_allclose(result.weight, single.weight, atol=1e-6 * single.weight.max())
    assert_allclose(result.data[sure], single.data[sure], atol=1e-6 * np.nanmax(np.abs(images)))


@pytest.mark.parametrize("inverse_of", [None, 1])
@pytest.mark.parametrize("missing", [(), (0,), (0, 2), (2,)])
def test_weights_of_pixels(device, inverse_of, missing):
    """Against the rule as array functions, with every odd value in every array."""
    rng = np.random.default_rng(3)
    shape = (3, 41, 53)
    arrays = rng.uniform(0.5, 2, (5, *shape)).astype(np.float32)
    odd = np.float32([0, -0.0, -1, np.nan, np.inf, -np.inf, 1e-40, 2.0**-126, 1e38, 2.0**126])
    for array in arrays:
        where = rng.uniform(size=shape) < 0.1
        array[where] = rng.choice(odd, np.count_nonzero(where))
    dq = rng.choice(np.uint32([0, 1, 4, 5, 512]), shape, p=[0.8, 0.05, 0.05, 0.05, 0.05])
    data, err, *variances = arrays
    good = np.isin(dq, [0, 4]) & np.isfinite(data) & ~np.isnan(err)
    for k, variance in enumerate(variances):
        good &= ~np.isnan(variance) | (k in missing)
    expected = np.where(good, np.float32(2.5), 0)
    if inverse_of is not None:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            weight, least = 1 / variances[inverse_of], np.finfo(np.float32).tiny
            known = good & (variances[inverse_of] >= least) & (weight >= least)
            expected = np.where(known, weight, 0)
    given = device.put([*read_only(data, err, dq)])
    planes = [None if k in missing else device.array(v) for k, v in enumerate(variances)]
    found = pixel_weights(*given, planes, np.uint32(513), inverse_of, 2.5)
    assert_array_equal(device.get(found), expected)


@pytest.mark.parametrize("kernel", ["square", "turbo", "gaussian", "lanczos3"])
@pytest.mark.parametrize("by_time", [False, True])
def test_variances(device, by_time, kernel):
    """Image by image through the drizzle package, then combined by hand."""
    images, weights = scene(3)
    variances = variances_of(images)
    maps = [distorted_map(SHAPE, OUTPUT, angle=9.0 * k) for k in range(3)]
    d = Drizzle(OUTPUT, kernel=kernel, pixel_scale_ratio=1.0)
    sure = np.ones(OUTPUT, dtype=bool)
    total, summed = np.zeros((3, *OUTPUT)), np.zeros((3, *OUTPUT))
    for k, time in enumerate((10.0, 20.0, 30.0)):
        planes, weigh = [v[k] for v in variances], [time] if by_time else 1
        given = device.put([images[k], maps[k], weights[k]])
        d.add(*given, variances=device.put(planes), weigh_variances=weigh)
        drizzled = [package([v**0.5], [maps[k]], [weights[k]], kernel=kernel) for v in planes]
        if kernel == "lanczos3":  # elsewhere the terms of the sum of weights cancel
            sure &= (drizzled[0][1] == 0) | (drizzled[0][1] > 0.2)
        drizzled = [image.astype(float) ** 2 for image, _, _ in drizzled]
        factor = np.full(OUTPUT, time) if by_time else 1.0 / drizzled[1]
        for n, value in enumerate(drizzled):
            known = np.isfinite(value)
            total[n][known] += factor[known]
            summed[n][known] += (value * factor**2)[known]
    with np.errstate(invalid="ignore"):
        expected = summed / total**2
    assert sure.mean() > 0.5
    rtol = DRIZZLE_CANCELLING_VARIANCE if kernel == "lanczos3" else 2e-6
    for value, wanted in zip(device.get(d.result()).variances, expected, strict=True):
        assert_allclose(value[sure], wanted[sure], rtol=rtol)


def test_variances_missing_or_never_given():
    images, weights = scene(2)
    pixel_map = distorted_map(SHAPE, OUTPUT)
    d = Drizzle(OUTPUT)
    d.add(images, pixel_map, weights)
    assert d.result().variances == (None, None, None)
    flat = variances_of(images)[2]
    d.add(images, pixel_map, weights, variances=(None, None, flat))
    poisson, read, flat_out = d.result().variances
    assert poisson is None and read is None
    assert np.isfinite(flat_out).any()


def test_weights_by_default_and_shared(device):
    images, weights = scene(3, bad=0)
    pixel_map = device.array(distorted_map(SHAPE, OUTPUT, angle=4.0))
    results = []
    ones = np.ones(SHAPE, "=f8" if device.is_gpu else ">f8")
    for given in (weights[0], np.broadcast_to(weights[0], images.shape), None, ones):
        d = Drizzle(OUTPUT)
        d.add(device.array(images), pixel_map, device.array(given))
        results.append(device.get(d.result()))
    for one, other in (results[:2], results[2:]):
        assert_array_equal(one.data, other.data)
        assert_array_equal(one.weight, other.weight)
