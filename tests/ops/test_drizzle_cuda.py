"""Drizzle on the GPU against the CPU, the drizzle package and polygons clipped one by one."""

import numpy as np
import pytest

from gpucoron.errors import InputError
from gpucoron.ops.cuda import drizzle as _drizzle_cuda
from gpucoron.ops.drizzle import KERNELS, Drizzle, overlaps
from tests.helpers import device_fixture, drizzle_oracle
from tests.helpers.cuda_on_host import build
from tests.helpers.tolerances import DRIZZLE_ROUNDED
from tests.ops.test_drizzle import (
    GEOMETRIES,
    assert_like_package_signed,
    distorted_map,
    package,
    scene,
    variances_of,
)

SHAPE, OUTPUT = (23, 27), (21, 36)


class Cpu:
    """Stands for the fixture `device` where the CPU's result is wanted."""

    array = get = staticmethod(lambda values: values)


def drizzled(
    device, images, maps, weights, output=OUTPUT, *, variances=(), weigh=1, scale=1.0, **keywords
):
    """Result of planes, each with its map, on the host: data, weight, context and variances."""
    d = Drizzle(output, **keywords)
    for k, pixel_map in enumerate(maps):
        d.add(
            device.array(images[k]),
            device.array(pixel_map),
            device.array(weights[k]),
            variances=[device.array(v[k]) for v in variances],
            weigh_variances=weigh,
            scale=scale,
        )
    return on_host(device, d)


def on_host(device, d):
    result = d.result()
    return type(result)(
        *(device.get(getattr(result, name)) for name in ("data", "weight", "context", "variances"))
    )


def assert_close(result, expected, images, weights, maps, output=OUTPUT, **keywords):
    """Equal but for products of weights and shares, which the CPU rounds to single precision."""
    np.testing.assert_array_equal(result.context, expected.context)
    terms = np.zeros(output)
    for weight, pixel_map in zip(weights, maps, strict=True):
        o = overlaps(pixel_map, output, **keywords)
        pixel = np.repeat(np.arange(terms.size), np.diff(o.pointers))
        each = np.abs(o.shares) * np.asarray(weight, dtype=float).ravel()[o.sources]
        terms += np.bincount(pixel, each, terms.size).reshape(output)
    rounding = DRIZZLE_ROUNDED * terms
    assert (np.abs(result.weight.astype(float) - expected.weight) <= rounding).all()
    np.testing.assert_array_equal(np.isnan(result.data), np.isnan(expected.data))
    known = np.isfinite(expected.data) & (expected.weight != 0)
    largest = np.nanmax(np.abs(images)) + np.abs(expected.data[known])
    gap = np.abs(result.data[known].astype(float) - expected.data[known])
    assert (gap <= 2 * rounding[known] / np.abs(expected.weight[known]) * largest).all()
    for value, wanted in zip(result.variances, expected.variances, strict=True):
        assert (value is None) == (wanted is None)
        if wanted is not None:
            np.testing.assert_array_equal(np.isnan(value), np.isnan(wanted))
            np.testing.assert_allclose(value, wanted, rtol=10 * DRIZZLE_ROUNDED)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_shares_are_those_of_the_cpu_to_the_bit(device, geometry, kernel):
    """Whether a sliver of an overlap exists decides a bit of the context."""
    pixel_map = distorted_map(SHAPE, OUTPUT, **GEOMETRIES[geometry])
    if geometry == "shifted":  # edges fall on edges
        pixel_map = np.round(pixel_map)
    expected = overlaps(pixel_map, OUTPUT, kernel=kernel, pixfrac=0.8)
    found = overlaps(device.array(pixel_map), OUTPUT, kernel=kernel, pixfrac=0.8)
    pointers, sources, shares = (
        as_rows(device, found)
        if device.name != "cpu"
        else (found.pointers, found.sources, found.shares)
    )
    np.testing.assert_array_equal(pointers, expected.pointers)
    np.testing.assert_array_equal(sources, expected.sources)
    if kernel == "gaussian" and device.name == "cuda":  # another exp
        np.testing.assert_allclose(shares, expected.shares, rtol=2e-7)
    else:
        np.testing.assert_array_equal(shares, expected.shares)


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
    images, weights = images.reshape(1, 5, *SHAPE), weights.reshape(1, 5, *SHAPE)
    maps = [distorted_map(SHAPE, OUTPUT, angle=10.0, bend=0.02)]
    given = {"kernel": kernel, "pixfrac": 0.9}
    more = {"variances": variances_of(images)[:n_variances], "weigh": min(n_variances, 1)}
    result = drizzled(device, images, maps, weights, **more, **given)
    expected = drizzled(Cpu, images, maps, weights, **more, **given)
    positive = weights.sum(axis=1)
    if kernel.startswith("lanczos"):  # variances of planes whose weights nearly cancel
        result, expected = (type(r)(r.data, r.weight, r.context, ()) for r in (result, expected))
    assert_close(result, expected, images, positive, maps, **given)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("geometry", ["rotated", "finer", "coarser"])
def test_equals_the_drizzle_package(device, geometry, kernel):
    from tests.ops import test_drizzle

    images, weights = scene(4, test_drizzle.SHAPE)
    maps = [
        distorted_map(test_drizzle.SHAPE, test_drizzle.OUTPUT, seed=k // 2, **GEOMETRIES[geometry])
        for k in range(4)
    ]
    keywords = {
        "kernel": kernel,
        "pixfrac": 0.7,
        "pixel_scale_ratio": GEOMETRIES[geometry].get("ratio", 1.0),
    }
    expected = package(images, maps, weights, **keywords)
    result = drizzled(device, images, maps, weights, test_drizzle.OUTPUT, **keywords)
    assert_like_package_signed(result, expected, images, maps, weights, **keywords)


@pytest.mark.parametrize("kernel", ["square", "point"])
def test_naive_oracle(device, kernel):
    shape, output = (9, 8), (20, 21)
    images, weights = scene(3, shape)
    maps = [
        distorted_map(shape, output, angle=20.0 * k, ratio=0.8, bend=0.1, seed=k) for k in range(3)
    ]
    data, weight, taking_part = drizzle_oracle.drizzle(
        images, maps, weights, output, kernel=kernel, pixfrac=0.9
    )
    result = drizzled(device, images, maps, weights, output, kernel=kernel, pixfrac=0.9)
    sure = ~((weight > 0) & (weight < 1e-9))
    np.testing.assert_allclose(result.weight, weight, rtol=2e-6, atol=1e-9)
    np.testing.assert_allclose(result.data[sure], data[sure], rtol=2e-6, atol=1e-6)
    bits = (result.context[0][..., None] >> np.arange(3)) & 1
    np.testing.assert_array_equal(bits[sure].astype(bool), taking_part[sure])


@pytest.mark.parametrize("angle", [0.0, 33.0])
def test_weight_and_flux_are_conserved(device, angle):
    images, weights = scene(2, SHAPE)
    output = (55, 60)
    maps = [distorted_map(SHAPE, output, angle=angle, ratio=0.8, bend=0.05)] * 2
    result = drizzled(device, images, maps, weights, output, pixfrac=0.8)
    weight, used = result.weight.astype(np.float64), weights.astype(np.float64)
    assert weight.sum() == pytest.approx(used.sum(), rel=1e-6)
    flux = np.nansum(result.data * weight)
    assert flux == pytest.approx(np.nansum(images * used), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize(
    "ratio, shape, output",
    [
        (2.2, (50, 48), (20, 19)),
        (0.2, (7, 6), (20, 19)),
        (20.0, (50, 48), (2, 3)),
    ],
)
def test_tiles_that_need_many_input_pixels_or_few(device, ratio, shape, output):
    """Above 512 they do not fit into shared memory."""
    images, weights = scene(3, shape)
    maps = [distorted_map(shape, output, angle=30.0, ratio=ratio)]
    geometry = overlaps(device.array(maps[0]), output)
    if device.is_gpu:
        most = device.get(geometry.needed)[:, 0].max()
        assert (most > _drizzle_cuda.ROOM) == (ratio > 1)
    more = {"variances": [v[None] for v in variances_of(images)]}
    result = drizzled(device, images[None], maps, weights[None], output, **more)
    expected = drizzled(Cpu, images[None], maps, weights[None], output, **more)
    assert_close(result, expected, images, [weights.sum(axis=0)], maps, output)


def test_a_tile_that_needs_both_ends_of_the_input(device):
    """The box round the pixels that it needs is larger than shared memory has bits for."""
    shape, output = (270, 260), (9, 9)
    pixel_map = np.full((*shape, 2), np.nan)
    pixel_map[0, 0], pixel_map[-1, -1], pixel_map[7, 9] = (1.2, 2.1), (7.9, 7.9), (1.0, 2.0)
    images, weights = scene(2, shape, bad=0)
    given = {"kernel": "point"}
    result = drizzled(device, images[None], [pixel_map], weights[None], output, **given)
    expected = drizzled(Cpu, images[None], [pixel_map], weights[None], output, **given)
    assert expected.context.sum() == 2 * 3
    assert_close(result, expected, images, [weights.sum(axis=0)], [pixel_map], output, **given)


@pytest.mark.parametrize("where", ["nowhere", "far", "edge", "inside"])
@pytest.mark.parametrize("kernel", ["square", "point", "turbo"])
def test_maps_with_holes(device, where, kernel):
    images, weights = scene(2, SHAPE)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=8.0, bend=0.02)
    if where == "nowhere":
        pixel_map[:] = np.nan
    elif where == "far":
        pixel_map += 500.0
    elif where == "edge":
        pixel_map[:3], pixel_map[:, -2:] = np.nan, np.nan
    else:
        pixel_map[9:12, 4:6] = np.nan
    result = drizzled(device, images, [pixel_map] * 2, weights, kernel=kernel, fillval="-2.5")
    expected = drizzled(Cpu, images, [pixel_map] * 2, weights, kernel=kernel, fillval="-2.5")
    assert_close(result, expected, images, weights, [pixel_map] * 2, kernel=kernel)
    assert result.weight.any() == (where in ("edge", "inside"))


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
    more = {"variances": [v[None] for v in odd]}
    result = drizzled(device, images[None], maps, weights[None], **more)
    expected = drizzled(Cpu, images[None], maps, weights[None], **more)
    assert not np.isfinite(expected.data[expected.weight > 0]).all()
    np.testing.assert_array_equal(np.isnan(result.data), np.isnan(expected.data))
    infinite = np.isinf(expected.data)
    np.testing.assert_array_equal(result.data[infinite], expected.data[infinite])
    np.testing.assert_allclose(result.weight, expected.weight, rtol=1e-6)
    for value, wanted in zip(result.variances, expected.variances, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=10 * DRIZZLE_ROUNDED)


@pytest.mark.parametrize("cuts", [(70,), (1, 33, 70), (31, 64, 70)])
def test_context_beyond_32_inputs_and_in_parts(device, cuts):
    shape = output = (12, 11)
    images, weights = scene(70, shape, bad=0.4)
    pixel_map = distorted_map(shape, output, angle=7.0)
    expected = Drizzle(output)
    expected.add(images, pixel_map, weights, variances=variances_of(images))
    d = Drizzle(output)
    geometry = d.overlaps(device.array(pixel_map))
    for a, b in zip((0, *cuts[:-1]), cuts, strict=True):
        d.add(
            device.array(images[a:b]),
            geometry,
            device.array(weights[a:b]),
            variances=[device.array(v[a:b]) for v in variances_of(images)],
        )
        d.result()
    result = on_host(device, d)
    assert result.context.shape == (3, *output)
    assert result.context.dtype == np.int32
    assert_close(result, on_host(Cpu, expected), images, [weights.sum(axis=0)], [pixel_map], output)


def test_launches_are_split_where_32_bits_would_not_do(device, monkeypatch):
    images, weights = scene(11, SHAPE)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=3.0)
    more = {"variances": [v[None] for v in variances_of(images)], "weigh": np.arange(1.0, 12.0)}
    whole = drizzled(device, images[None], [pixel_map], weights[None], **more)
    monkeypatch.setattr(_drizzle_cuda, "MOST_AT_ONCE", 3 * images[0].size + 1)
    parts = drizzled(device, images[None], [pixel_map], weights[None], **more)
    np.testing.assert_array_equal(parts.context, whole.context)
    np.testing.assert_allclose(parts.data, whole.data, rtol=2e-7, atol=1e-9)
    np.testing.assert_allclose(parts.weight, whole.weight, rtol=2e-7)
    for a, b in zip(parts.variances, whole.variances, strict=True):
        np.testing.assert_array_equal(a, b)  # each plane by itself


@pytest.mark.slow
@pytest.mark.parametrize("order", ["host-backward", "host-shuffled"])
def test_results_do_not_depend_on_the_order_of_threads(order):
    images, weights = scene(5, SHAPE)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=20.0)
    given = [images[None], [pixel_map], weights[None]]
    more = {"variances": [v[None] for v in variances_of(images)]}
    results = []
    for name in ("host-forward", order):
        with device_fixture.make(name) as device:
            device.emulation.flags = build.PLAIN
            results.append(drizzled(device, *given, **more))
    a, b = results
    for one, other in zip(
        (a.data, a.weight, a.context, *a.variances),
        (b.data, b.weight, b.context, *b.variances),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("which", [(), (2,), (0, 2), (1,), (2, 0, 1)])
@pytest.mark.parametrize("weigh", [0, 2, "times"])
def test_some_of_the_variances(device, which, weigh):
    images, weights = scene(3, SHAPE)
    all_of_them = variances_of(images)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=9.0)
    weigh = [10.0, 0.0, 30.0] if weigh == "times" else weigh
    results = []
    for where in (device, Cpu):
        d = Drizzle(OUTPUT)
        geometry = d.overlaps(where.array(pixel_map))
        for chosen in (which, (1,)):
            variances = [all_of_them[k] if k in chosen else None for k in range(3)]
            d.add(
                where.array(images),
                geometry,
                where.array(weights),
                variances=[None if v is None else where.array(v) for v in variances],
                weigh_variances=weigh,
                scale=0.5,
            )
        results.append(on_host(where, d))
    assert_close(*results, images, [2 * weights.sum(axis=0)], [pixel_map])


def test_weights_by_default_and_shared(device):
    images, weights = scene(3, SHAPE, bad=0)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=4.0)
    results = []
    for given in (weights[0], np.broadcast_to(weights[0], images.shape), None, np.ones(SHAPE)):
        d = Drizzle(OUTPUT)
        d.add(device.array(images), device.array(pixel_map), device.array(given))
        results.append(on_host(device, d))
    for one, other in (results[:2], results[2:]):
        np.testing.assert_array_equal(one.data, other.data)
        np.testing.assert_array_equal(one.weight, other.weight)


def test_one_plane_and_other_types(device):
    images, weights = scene(1, SHAPE, bad=0)
    pixel_map = distorted_map(SHAPE, OUTPUT, angle=4.0)
    results = []
    for image in (images[0], images.astype(np.float64), images.transpose(0, 2, 1).copy()):
        image = device.array(image)
        d = Drizzle(OUTPUT)
        d.add(
            image if image.shape[-1] == SHAPE[1] else image.transpose(0, 2, 1),
            device.array(pixel_map),
            device.array(weights),
        )
        results.append(on_host(device, d).data)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


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
    for mixed in (
        (images, device.array(pixel_map), weights),
        (device.array(images), device.array(pixel_map), weights),
    ):
        with pytest.raises(TypeError, match="on the host and on a GPU are mixed"):
            d.add(*mixed)
    d.add(images, pixel_map, weights)
    with pytest.raises(TypeError, match="on the host and on a GPU are mixed"):
        d.add(*map(device.array, (images, pixel_map, weights)))
    assert d.n_added == 2


def test_input_errors(device):
    images, weights = map(device.array, scene(2, SHAPE))
    pixel_map = device.array(distorted_map(SHAPE, OUTPUT))
    d = Drizzle(OUTPUT)
    with pytest.raises(InputError, match=r"pixel map is for images of shape \(23, 27\), but"):
        d.add(images[:, 1:], pixel_map)
    with pytest.raises(InputError, match=r"weights: shape \(2, 22, 27\) does not fit"):
        d.add(images, pixel_map, weights[:, 1:])
    with pytest.raises(InputError, match=r"pixel map has shape \(23, 27\), expected"):
        d.add(images, pixel_map[..., 0])
    assert d.n_added == 0
