import types

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gpucoron.errors import InputError
from gpucoron.ops.cpu.outliers import deviations
from gpucoron.ops.kriging_tables import NEAR, finest_correlation, neighbours
from gpucoron.ops.outliers import flag_outliers, suspected_outliers, unpredicted_outliers
from tests.helpers.scenes import read_only
from tests.ops.test_bad_pixels import diffraction_limited


def scene(amplitude, n=4, shape=(22, 24), seed=0):
    """Integrations whose smooth image changes along a mode, in units of the noise; and errors."""
    rng = np.random.default_rng(seed)
    image, mode = diffraction_limited(2, shape, seed=seed) / 100
    strength = np.linspace(-1, 1, n)[:, None, None] if n > 1 else 0
    data = 20 * image + amplitude * strength * mode + rng.normal(size=(n, *shape))
    return data, np.ones(data.shape)


def run(device, data, err, snr=5.0, usable=None, **options):
    usable = np.ones(err.shape, bool) if usable is None else usable
    middle = np.median(data, axis=0)
    suspects = suspected_outliers(data, err, middle, usable, snr)
    arrays = read_only(data, err, usable, suspects)
    return suspects, device.call(unpredicted_outliers, *arrays, snr, **options)


RAYS = [(0, 10, 10), (0, 16, 19), (1, 5, 18), (1, 13, 14), (1, 13, 15)]


@pytest.mark.parametrize("n, amplitude, seed", [(2, 0, 0), (2, 4, 1), (3, 1, 2), (5, 8, 3)])
def test_hits_are_found_and_smooth_changes_are_not(device, n, amplitude, seed):
    data, err = scene(amplitude, n, shape=(19, 22), seed=seed)
    for place in RAYS:
        data[place] += 60.0
    suspects, sharp = run(device, data, err)
    assert all(sharp[place] for place in RAYS)
    assert sharp.sum() - len(RAYS) <= 1 + 0.005 * suspects.sum()
    assert suspects.sum() > 100 or amplitude < 2


@pytest.mark.parametrize("sign", [1, -1])
def test_of_two_integrations_the_odd_one_is_flagged(device, sign):
    """The other's image says which, whatever the sign."""
    data, err = scene(0.0, 2, seed=3)
    data[0, 12, 14] += 30 * sign
    _, sharp = run(device, data, err)
    assert np.argwhere(sharp).tolist() == [[0, 12, 14]]


def test_a_single_integration_shows_its_hits_by_the_neighbours(device):
    data, err = scene(0.0, 1, seed=4)
    data[0, 12, 14] += 60
    _, sharp = run(device, data / 20, err / 20)
    assert np.argwhere(sharp).tolist() == [[0, 12, 14]]


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_where_images_are_smooth_neighbours_tell_hits_from_noise(device, seed):
    """Hits of 15 sigma in one integration of a bright image without structure beyond 0.2."""
    rng = np.random.default_rng(seed)
    kernel = np.hypot(*np.meshgrid(np.fft.fftfreq(40), np.fft.fftfreq(42))).T < 0.2
    image = np.fft.ifft2(np.fft.fft2(rng.normal(size=(40, 42))) * kernel).real
    data = 150 * image[None] + rng.normal(size=(1, 40, 42))
    hits = np.zeros(data.shape, bool)
    hits[0, 5:36:8, 6:37:10] = True
    data[hits] += 15
    found = {
        cutoff: run(device, data, np.ones(data.shape), cutoff=cutoff)[1] for cutoff in (0.5, 0.25)
    }
    assert found[0.25][hits].sum() >= found[0.5][hits].sum() + 2
    assert not (found[0.25] & ~hits).any()


def change_without_structure_beyond(cutoff, shape, seed):
    """A change of rms 1 whose spectrum is flat up to `cutoff`, cycles per pixel."""
    frequencies = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij"))
    noise = np.random.default_rng(seed).normal(size=shape)
    change = np.fft.ifft2(np.fft.fft2(noise) * (frequencies < cutoff)).real
    return change / change.std()


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tracks_do_not_explain_themselves(device, n, seed):
    """Three pixels in a row where the image changes by 30 times the noise, next to a bad one."""
    rng = np.random.default_rng(seed)
    change = change_without_structure_beyond(0.25, (30, 32), seed)
    strength = np.linspace(0, 30, n)[:, None, None]
    data = strength * change + rng.normal(size=(n, 30, 32))
    hits = np.zeros(data.shape, bool)
    hits[1, 14:17, 15] = hits[0, 7, 20:23] = True
    data[hits] += 16
    usable = np.ones(data.shape, bool)
    usable[:, 15, 16] = usable[:, 22, 10] = False
    _, sharp = run(device, data, np.ones(data.shape), usable=usable, cutoff=0.34)
    assert sharp[hits].sum() >= 4
    # of 1100 or 2600 within; an edge, where pixels are extrapolated, is no place for such changes
    assert (sharp & ~hits)[:, 4:-4, 4:-4].sum() == 0


def by_direct_solution(data, err, place, cutoff):
    """Deviation of a pixel of the second of two integrations; neighbours are left out one by one.

    Each step solves the whole system anew for every neighbour, without it.
    """
    table = finest_correlation(cutoff)
    offsets, _ = neighbours(NEAR)
    change, variance = data[1] - data[0], err[1] ** 2 + err[0] ** 2
    points = np.array(place) + offsets
    values, noises = change[tuple(points.T)], variance[tuple(points.T)]
    mean = values.mean()
    signal = ((values - mean) ** 2).mean() - noises.mean()

    def predict(point, used):
        between = table[np.sum((points[used][:, None] - points[used]) ** 2, axis=-1)]
        system = signal * between + np.diag(noises[used])
        towards = signal * table[np.sum((points[used] - point) ** 2, axis=-1)]
        weights = np.linalg.solve(system, towards)
        return weights @ (values[used] - mean), signal - weights @ towards

    used = np.ones(len(points), bool)
    near = np.flatnonzero(np.sum(offsets**2, axis=1) <= 4)
    while True:
        worst, odd = 2.5, None
        for k in near[used[near]]:
            rest = used & (np.arange(len(points)) != k)
            value, unknown = predict(points[k], rest)
            deviation = abs(values[k] - mean - value) / np.sqrt(unknown + noises[k])
            if deviation > worst:
                worst, odd = deviation, k
        if odd is None:
            break
        used[odd] = False
    value, unknown = predict(np.array(place), used)
    total = variance[place] + unknown + (0.05 * value) ** 2
    return abs(change[place] - mean - value) / np.sqrt(total) * 1.15, (~used).sum()


@pytest.mark.parametrize("seed", range(6))
def test_deviations_are_those_of_a_direct_solution(seed):
    rng = np.random.default_rng(seed)
    change = change_without_structure_beyond(0.25, (11, 12), seed)
    err = rng.uniform(0.5, 2.0, (2, 11, 12))
    data = err * rng.normal(size=err.shape)
    data[1] += 20 * change
    data[1, 4:7, 6] += 25
    data[1, 5, 5] += 15
    place = (np.array([1]), np.array([5]), np.array([6]))
    images = data, err, np.ones(data.shape, bool)
    scores = np.zeros(1)
    deviations(images, place, np.zeros(data.shape, bool), scores, np.ones(1, bool), False, 0.3)
    expected, left_out = by_direct_solution(data, err, (5, 6), 0.3)
    assert left_out >= 1
    assert scores[0] == pytest.approx(expected, rel=1e-9)


def test_without_neighbours_a_suspect_stays(device):
    data, err = scene(0.0, 3)
    data[0, 5, 5] += 100
    usable = np.zeros(err.shape, bool)
    usable[:, 5, 5] = True
    suspects, sharp = run(device, data, err, usable=usable)
    assert_array_equal(sharp, suspects)
    assert sharp[0, 5, 5]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed, n", [(3, 2), (4, 3), (5, 8), (6, 1), (7, 20)])
def test_unpredicted_outliers_are_those_of_the_cpu(device, seed, n, dtype):
    """With unusable pixels, and suspects at the corners and edges."""
    rng = np.random.default_rng(seed)
    data, err = scene(2.0, n, shape=(15, 17), seed=seed)
    err *= rng.uniform(0.5, 2.0, err.shape)
    data[0, 0, 0] += 90
    data[-1, -1, -1] += 90
    data[-1, 12, 0] += 90
    usable = rng.random(err.shape) < 0.9
    usable[0, 0, 0] = True
    arrays = (data.astype(dtype), err.astype(dtype), 3.0, usable)
    _, sharp = run(device, *arrays)
    middle = np.median(arrays[0], axis=0)
    suspects = suspected_outliers(*arrays[:2], middle, usable, 3.0)
    expected = unpredicted_outliers(*arrays[:2], usable, suspects, 3.0)
    assert_array_equal(sharp, expected)
    assert n == 1 or expected.sum() > 0


def test_errors():
    data, err = scene(0.0)
    with pytest.raises(InputError, match="expected .n, ny, nx., the same of all"):
        unpredicted_outliers(data, err[:1], err > 0, err > 0, 5.0)


def exposure(n, dtype=np.float32, shape=(9, 13), seed=0):
    """Data, err, dq and three variances with everything in them that can be wrong."""
    rng = np.random.default_rng(seed + n)
    moving = diffraction_limited(n, shape, seed=seed) / 20
    data = (100 + moving + rng.normal(size=(n, *shape))).astype(dtype)
    err = rng.uniform(0.5, 1.5, data.shape).astype(dtype)
    dq = rng.choice(np.array([0, 0, 0, 0, 1, 4, 512, 513], np.uint32), data.shape)
    variances = [rng.uniform(size=data.shape).astype(dtype) for _ in range(3)]
    for array in (data, err, *variances):
        array[rng.random(data.shape) < 0.02] = np.nan
    for value in (np.inf, -np.inf):
        data[rng.random(data.shape) < 0.01] = value
        err[rng.random(data.shape) < 0.01] = value
    data[rng.random(data.shape) < 0.03] += 30
    data[:, 2, 3] = np.nan
    dq[:, 3, 3:5] |= 1
    return read_only(data, err, dq, *variances)


def check(device, arrays, **options):
    """The device's answer is the CPU's, bit for bit."""
    data, err, dq, *variances = arrays
    expected = flag_outliers(data, err, dq, variances, **options)
    found = device.call(flag_outliers, data, err, dq, variances, **options)
    for name, got in found._asdict().items():
        want = getattr(expected, name)
        assert_array_equal(got, want, err_msg=name)
        if name != "flagged":
            assert [np.asarray(a).dtype for a in got] == [np.asarray(a).dtype for a in want]
    return expected


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 30, 50])
def test_an_exposure_is_flagged_as_on_the_cpu(device, n, neighbours):
    expected = check(device, exposure(n), snr=5.0, neighbours=neighbours)
    assert n < 3 or expected.flagged.sum() > 0


@pytest.mark.parametrize(
    "n, dtype",
    [
        *((n, np.float32) for n in (70, 140, 300, 600, 2049)),
        *((n, np.float64) for n in (4, 40, 150)),
    ],
)
def test_every_instantiation_flags_as_the_cpu(device, n, dtype):
    check(device, exposure(n, dtype, shape=(4, 5)), snr=4.0, neighbours=n < 300)


@pytest.mark.parametrize(
    "options",
    [
        *({"good_bits": bits} for bits in (None, 0, "~DO_NOT_USE+JUMP_DET")),
        *({"maskpt": 0.0}, {"maskpt": 1.5}, {"neighbours": False, "maskpt": 0.0}, {"snr": 0.3}),
    ],
)
def test_options(device, options):
    check(device, exposure(6), **{"snr": 5.0, **options})


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_variances(device, count):
    check(device, exposure(5)[: 3 + count], snr=5.0)


@pytest.mark.parametrize("neighbours", [True, False])
def test_where_no_pixel_is_good_all_enter_the_median(device, neighbours):
    data, err, dq, *variances = exposure(5)
    arrays = data, err, dq | np.uint32(1), *variances
    expected = check(device, arrays, snr=5.0, neighbours=neighbours)
    assert np.isfinite(expected.median).mean() > 0.9
    assert np.isnan(expected.data).all()


def test_views(device):
    arrays = exposure(4)
    expected = flag_outliers(*(a[:, ::-1, 2:] for a in arrays[:3]), snr=5.0)
    found = flag_outliers(*(device.array(a)[:, ::-1, 2:] for a in arrays[:3]), snr=5.0)
    for name in ("data", "err", "dq", "median", "flagged"):
        assert_array_equal(device.get(getattr(found, name)), getattr(expected, name))


def test_nothing_is_copied_to_the_host(device):
    arrays = [device.array(a) for a in exposure(5)]
    before = getattr(getattr(device, "emulation", None), "downloads", 0)
    flag_outliers(*arrays[:3], arrays[3:], snr=5.0)
    assert getattr(getattr(device, "emulation", None), "downloads", 0) == before


@pytest.mark.parametrize(
    "change, text",
    [
        ({"err": np.ones((2, 3, 5))}, r"shapes \(2, 3, 4\), \(2, 3, 5\), \(2, 3, 4\); expected"),
        ({"data": np.ones((3, 4))}, r"expected \(n, ny, nx\)"),
        ({"dq": np.zeros((2, 3, 4), np.int64)}, "dq has dtype int64, expected uint32"),
        ({"variances": [np.ones((2, 3, 4))] * 4}, "4 variances given, expected up to three"),
    ],
)
def test_errors_say_what_was_found(change, text):
    ones = np.ones((2, 3, 4))
    arrays = {"data": ones, "err": ones, "dq": ones.astype(np.uint32), **change}
    with pytest.raises(InputError, match=text):
        flag_outliers(**arrays, snr=5.0)


def test_a_gpu_takes_one_dtype(device):
    data, err, dq = (device.array(a) for a in exposure(3)[:3])
    if device.is_gpu:
        with pytest.raises(InputError, match="dtypes float32, float64; a GPU takes one for all"):
            flag_outliers(data, err.astype(np.float64), dq, snr=5.0)
    else:
        found = flag_outliers(data, err.astype(np.float64), dq, snr=5.0, neighbours=False)
        assert found.err.dtype == np.float64


@pytest.mark.parametrize(
    "shape, fits",
    [((1024, 2048, 2047), True), ((1, 2**16, 2**16), False), ((1025, 2048, 2048), False)],
)
def test_what_32_bits_cannot_number_is_refused_on_a_gpu(shape, fits, monkeypatch):
    from gpucoron.ops.cuda import bad_pixels as _bad_pixels_cuda
    from gpucoron.ops.cuda import outliers as _outliers_cuda

    class Allocates(Exception):
        pass

    def allocate():
        raise Allocates

    monkeypatch.setattr("gpucoron.backend.cuda.cupy", allocate)
    images = np.broadcast_to(np.float32(0), shape)
    group = types.SimpleNamespace(images=images, size=1, n_pixels=1)
    text = f"an exposure of {' x '.join(map(str, shape))} has .* expected fewer than 4294967296"
    error = Allocates if fits else InputError
    with pytest.raises(error, match=None if fits else text):
        _outliers_cuda._Suspects(shape)
    with pytest.raises(error, match=None if fits else text):
        _bad_pixels_cuda.Group._by_listed(group, None, "", (), None)
