"""Drizzle on the GPU against the CPU; what both compute is tested in test_drizzle.py."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.errors import InputError
from gpucoron.ops.cuda import drizzle as _drizzle_cuda
from gpucoron.ops.drizzle import KERNELS, Drizzle, overlaps, sum_shares, weighted_sums
from tests.helpers import device_fixture
from tests.helpers.cuda_on_host import build
from tests.helpers.tolerances import DRIZZLE_ROUNDED
from tests.ops.test_drizzle import (
    GEOMETRIES,
    absolute_terms,
    assert_same_bits,
    distorted_map,
    drizzled,
    package,
    scene,
    variances_of,
)

SHAPE, OUTPUT = (23, 27), (21, 36)
CPU = device_fixture.Cpu()


def assert_close(result, expected, images, weights, maps, output=OUTPUT, **keywords):
    """Equal but for products of weights and shares, which the CPU rounds to single precision."""
    assert_array_equal(result.context, expected.context)
    rounding = DRIZZLE_ROUNDED * sum(absolute_terms(weights, maps, output, **keywords))
    assert (np.abs(result.weight.astype(float) - expected.weight) <= rounding).all()
    assert_array_equal(np.isnan(result.data), np.isnan(expected.data))
    known = np.isfinite(expected.data) & (expected.weight != 0)
    largest = np.nanmax(np.abs(images)) + np.abs(expected.data[known])
    gap = np.abs(result.data[known].astype(float) - expected.data[known])
    assert (gap <= 2 * rounding[known] / np.abs(expected.weight[known]) * largest).all()
    for value, wanted in zip(result.variances, expected.variances, strict=True):
        assert (value is None) == (wanted is None)
        if wanted is not None:
            assert_array_equal(np.isnan(value), np.isnan(wanted))
            assert_allclose(value, wanted, rtol=10 * DRIZZLE_ROUNDED)


def check(device, images, weights, pixel_map, output=OUTPUT, variances=(), weigh=1, **keywords):
    """Compare a stack of one map with the CPU's result; return that."""
    given = images[None], [pixel_map], weights[None], output
    more = {"variances": [v[None] for v in variances], "weigh": weigh, **keywords}
    result, expected = drizzled(device, *given, **more), drizzled(CPU, *given, **more)
    if keywords.get("kernel", "").startswith("lanczos"):  # weights of planes nearly cancel
        result, expected = (dataclasses.replace(r, variances=()) for r in (result, expected))
    assert_close(result, expected, images, [weights.sum(axis=0)], [pixel_map], output, **keywords)
    return expected


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("holes", [False, True])
def test_shares_are_those_of_the_cpu_to_the_bit(device, holes, geometry, kernel):
    """Whether a sliver of an overlap exists decides a bit of the context."""
    pixel_map = distorted_map(SHAPE, OUTPUT, **GEOMETRIES[geometry])
    if geometry == "shifted":  # edges fall on edges
        pixel_map = np.round(pixel_map)
    if holes:
        pixel_map[:3] = pixel_map[:, -2:] = pixel_map[9:12, 4:6] = np.nan
    expected = overlaps(pixel_map, OUTPUT, kernel=kernel, pixfrac=0.8)
    found = overlaps(device.array(pixel_map), OUTPUT, kernel=kernel, pixfrac=0.8)
    names = ("pointers", "sources", "shares")
    pointers, sources, shares = (
        as_rows(device, found) if device.is_gpu else (getattr(found, name) for name in names)
    )
    assert_array_equal(pointers, expected.pointers)
    assert_array_equal(sources, expected.sources)
    if kernel == "gaussian" and device.name == "cuda":  # another exp
        assert_allclose(shares, expected.shares, rtol=2e-7)
    else:
        assert_array_equal(shares, expected.shares)


def as_rows(device, found):
    """Pointers, sources and shares in the CPU's order from the lists by tiles."""
    starts, counts, needed, sources, shares = (
        device.get(getattr(found, name))
        for name in ("pointers", "counts", "needed", "sources", "shares")
    )
    ny, nx = found.output_shape
    y, x = np.indices((ny, nx)).reshape(2, -1)
    tile = y // 16 * -(-nx // 16) + x // 16
    slot = 256 * tile + 16 * (y % 16) + x % 16
    assert counts.sum() == counts[slot].sum()
    pointers = np.concatenate([[0], np.cumsum(counts[slot])])
    row = np.repeat(np.arange(ny * nx), counts[slot])
    number = np.arange(row.size) - pointers[row]
    at = starts[slot[row] // 32] + 32 * number + slot[row] % 32
    inputs, tile = sources[at], tile[row]
    short = (needed[:, 0] <= _drizzle_cuda.ROOM)[tile]
    inputs[short] = needed[tile[short], 1 + inputs[short]]
    return pointers, inputs, shares[at]


@pytest.mark.parametrize("n_variances", [0, 1, 2, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_the_cpu(device, kernel, n_variances):
    images, weights = scene(5, SHAPE)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=10.0, bend=0.02)
    more = {"variances": variances_of(images)[:n_variances], "weigh": min(n_variances, 1)}
    check(device, images, weights, pixel_map, **more, kernel=kernel, pixfrac=0.9)


@pytest.mark.parametrize(
    "ratio, shape, output",
    [(2.2, (50, 48), (20, 19)), (0.2, (7, 6), (20, 19)), (20.0, (50, 48), (2, 3))],
)
def test_tiles_that_need_many_input_pixels_or_few(device, ratio, shape, output):
    """Above 512 they do not fit into shared memory."""
    images, weights = scene(3, shape)
    pixel_map = distorted_map(shape, output, angle=30.0, ratio=ratio)
    geometry = overlaps(device.array(pixel_map), output)
    if device.is_gpu:
        most = device.get(geometry.needed)[:, 0].max()
        assert (most > _drizzle_cuda.ROOM) == (ratio > 1)
    check(device, images, weights, pixel_map, output, variances_of(images))


def test_a_tile_that_needs_both_ends_of_the_input(device):
    """The box round the pixels that it needs is larger than shared memory has bits for."""
    shape, output = (270, 260), (9, 9)
    pixel_map = np.full((*shape, 2), np.nan)
    pixel_map[0, 0], pixel_map[-1, -1], pixel_map[7, 9] = (1.2, 2.1), (7.9, 7.9), (1.0, 2.0)
    images, weights = scene(2, shape, bad=0)
    expected = check(device, images, weights, pixel_map, output, kernel="point")
    assert expected.context.sum() == 2 * 3


@pytest.mark.parametrize("ratio", [1.0, 2.2])
def test_values_that_are_not_numbers(device, ratio):
    """NaN of weight 0 is not read; others spoil what they touch, as on the CPU."""
    shape = (23, 27) if ratio == 1.0 else (45, 50)
    images, weights = scene(4, shape)
    images = images.copy()
    images[1, 5, 6], images[2, 12, 20], images[3, 3, 3] = np.nan, np.inf, -np.inf
    odd = [v.copy() for v in variances_of(images)]
    for k, value in enumerate((0.0, -1.0, np.inf, np.nan, 1e-41)):
        odd[0][k % 4, 8:10, 3 * k] = odd[1][k % 4, 14, 3 * k : 3 * k + 2] = value
    maps = [distorted_map(shape, OUTPUT, ratio=ratio, angle=4.0)]
    given = images[None], maps, weights[None], OUTPUT
    more = {"variances": [v[None] for v in odd]}
    result, expected = drizzled(device, *given, **more), drizzled(CPU, *given, **more)
    assert not np.isfinite(expected.data[expected.weight > 0]).all()
    assert_array_equal(np.isnan(result.data), np.isnan(expected.data))
    infinite = np.isinf(expected.data)
    assert_array_equal(result.data[infinite], expected.data[infinite])
    assert_allclose(result.weight, expected.weight, rtol=1e-6)
    for value, wanted in zip(result.variances, expected.variances, strict=True):
        assert_allclose(value, wanted, rtol=10 * DRIZZLE_ROUNDED)


@pytest.mark.parametrize("cuts", [(70,), (1, 33, 70), (31, 64, 70)])
def test_context_beyond_32_inputs_and_in_parts(device, cuts):
    shape = output = (12, 11)
    images, weights = scene(70, shape, bad=0.4)
    pixel_map = distorted_map(shape, output, angle=7.0)
    expected = Drizzle(output)
    expected.add(images, pixel_map, weights, variances=variances_of(images))
    assert_array_equal(
        expected.result().context, package(images, [pixel_map] * 70, weights, output)[2]
    )
    d = Drizzle(output)
    geometry = d.overlaps(device.array(pixel_map))
    for a, b in zip((0, *cuts[:-1]), cuts, strict=True):
        part, weight, *variances = device.put(
            [values[a:b] for values in (images, weights, *variances_of(images))]
        )
        d.add(part, geometry, weight, variances=variances)
        d.result()
    result = device.get(d.result())
    assert result.context.shape == (3, *output)
    assert result.context.dtype == np.int32
    assert_close(result, expected.result(), images, [weights.sum(axis=0)], [pixel_map], output)


def test_launches_are_split_where_32_bits_would_not_do(device, monkeypatch):
    images, weights = scene(11, SHAPE)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=3.0)
    more = {"variances": [v[None] for v in variances_of(images)], "weigh": np.arange(1.0, 12.0)}
    given = images[None], [pixel_map], weights[None], OUTPUT
    whole = drizzled(device, *given, **more)
    monkeypatch.setattr(_drizzle_cuda, "MOST_AT_ONCE", 3 * images[0].size + 1)
    parts = drizzled(device, *given, **more)
    assert_array_equal(parts.context, whole.context)
    assert_allclose(parts.data, whole.data, rtol=2e-7, atol=1e-9)
    assert_allclose(parts.weight, whole.weight, rtol=2e-7)
    for a, b in zip(parts.variances, whole.variances, strict=True):
        assert_array_equal(a, b)  # each plane by itself


@pytest.mark.slow
@pytest.mark.parametrize("order", ["host-backward", "host-shuffled"])
def test_results_do_not_depend_on_the_order_of_threads(order):
    images, weights = scene(5, SHAPE)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=20.0)
    given = images[None], [pixel_map], weights[None], OUTPUT
    more = {"variances": [v[None] for v in variances_of(images)]}
    results = []
    for name in ("host-forward", order):
        with device_fixture.make(name) as device:
            device.emulation.flags = build.PLAIN
            results.append(drizzled(device, *given, **more))
    assert_same_bits(*results)


@pytest.mark.parametrize("which", [(), (2,), (0, 2), (1,), (2, 0, 1)])
@pytest.mark.parametrize("weigh", [0, 2, "times"])
def test_some_of_the_variances(device, which, weigh):
    images, weights = scene(3, SHAPE)
    all_of_them = variances_of(images)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=9.0)
    weigh = [10.0, 0.0, 30.0] if weigh == "times" else weigh
    results = []
    for where in (device, CPU):
        d = Drizzle(OUTPUT)
        geometry = d.overlaps(where.array(pixel_map))
        for chosen in (which, (1,)):
            variances = [where.array(v) if k in chosen else None for k, v in enumerate(all_of_them)]
            more = {"variances": variances, "weigh_variances": weigh, "scale": 0.5}
            d.add(where.array(images), geometry, where.array(weights), **more)
        results.append(where.get(d.result()))
    assert_close(*results, images, [2 * weights.sum(axis=0)], [pixel_map])


def test_one_plane_and_other_types(device):
    images, weights = scene(1, SHAPE, bad=0)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=4.0)
    results = []
    turned = device.array(images.transpose(0, 2, 1).copy()).transpose(0, 2, 1)
    for image in (device.array(images[0]), device.array(images.astype(np.float64)), turned):
        d = Drizzle(OUTPUT)
        d.add(image, device.array(pixel_map), device.array(weights))
        results.append(device.get(d.result()).data)
    assert_array_equal(results[0], results[1])
    assert_array_equal(results[0], results[2])


def test_nothing_is_copied_to_the_host_but_the_map(device):
    if not device.is_gpu or device.emulation is None:
        pytest.skip("only the emulated device counts copies")
    images, weights = (device.array(a) for a in scene(5, SHAPE))
    pixel_map = distorted_map(SHAPE, OUTPUT)
    d = Drizzle(OUTPUT)
    geometry = d.overlaps(device.array(pixel_map))
    copied = device.emulation.downloads
    assert copied <= pixel_map.nbytes + 16
    uploaded = device.emulation.uploads
    d.add(images, geometry, weights, variances=[weights])
    d.result()
    assert device.emulation.downloads == copied
    assert device.emulation.uploads - uploaded == 5 * 8  # what weighs each plane


def test_mixed_devices(device):
    if not device.is_gpu:
        pytest.skip("nothing to mix")
    images, weights = scene(2, SHAPE)
    pixel_map = distorted_map(SHAPE, OUTPUT)
    d = Drizzle(OUTPUT)
    for image in (images, device.array(images)):
        with pytest.raises(TypeError, match="on the host and on a GPU are mixed"):
            d.add(image, device.array(pixel_map), weights)
    d.add(images, pixel_map, weights)
    with pytest.raises(TypeError, match="on the host and on a GPU are mixed"):
        d.add(*map(device.array, (images, pixel_map, weights)))
    assert d.n_added == 2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("ratio", [0.8, 2.5])
def test_sums_over_shares_are_products_with_a_matrix(device, kernel, ratio):
    """Also where a tile needs more input pixels than are listed, and where nothing falls."""
    rng, shape, output = np.random.default_rng(2), (37, 41), (45, 50)
    y, x = np.indices(shape) - 20.0
    pixel_map = np.stack([(x - 0.1 * y) / ratio + 20, (y + 0.1 * x) / ratio + 18], axis=-1)
    known = overlaps(pixel_map, output, kernel=kernel, pixel_scale_ratio=ratio)
    rows = np.repeat(np.arange(output[0] * output[1]), np.diff(known.pointers))
    planes = rng.uniform(1, 2, (3, *shape))
    geometry = overlaps(device.array(pixel_map), output, kernel=kernel, pixel_scale_ratio=ratio)
    for squared in (False, True):
        found = device.get(sum_shares(geometry, device.array(planes), squared))
        for plane, values in zip(found, planes, strict=True):
            terms = known.shares ** (1 + squared) * values.ravel()[known.sources]
            expected = np.bincount(rows, terms, minlength=output[0] * output[1])
            assert_allclose(plane.ravel(), expected, rtol=1e-12, atol=1e-13)
    with pytest.raises(InputError, match=r"planes have shape \(3, 5, 5\), expected \(n, 37, 41\)"):
        sum_shares(geometry, device.array(np.ones((3, 5, 5))))


def test_weights_times_planes(device):
    rng = np.random.default_rng(3)
    weights, planes = (rng.uniform(0, 2, n).astype(np.float32) for n in ((5, 9, 8), (2, 5, 9, 8)))
    weights[1, 2:5] = 0.0
    planes[0, 1, 2:5] = np.nan
    found = device.get(weighted_sums(device.array(weights), [device.array(p) for p in planes]))
    assert_allclose(found[0], weights.sum(axis=0, dtype=float), rtol=1e-12)
    for plane, values in zip(found[1:], planes, strict=True):
        terms = weights.astype(float) ** 2 * np.where(weights > 0, values, 0)
        assert_allclose(plane, terms.sum(axis=0), rtol=1e-12)
