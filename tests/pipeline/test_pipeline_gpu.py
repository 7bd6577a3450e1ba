"""Whole runs on a GPU, emulated or real, beside the same runs on the CPU."""

import gc

import numpy as np
import pytest
from astropy.io import fits

import gpucoron
from gpucoron.api import PRODUCTS
from gpucoron.backend.transfer import CudaBackend
from gpucoron.core.parameters import Parameters
from gpucoron.errors import DeviceMemoryError
from gpucoron.pipeline.run_options import RunOptions
from gpucoron.pipeline.single_step import run_step
from gpucoron.pipeline.subtraction import Subtraction

pytestmark = pytest.mark.slow

GPUS = pytest.mark.parametrize("device", ["host-forward", "cuda"], indirect=True)
SHUFFLED = pytest.param("host-shuffled", marks=pytest.mark.slow)
BOTH = pytest.mark.parametrize("device", ["host-forward", SHUFFLED, "cuda"], indirect=True)
SAVED = ("data", "err", "var_poisson", "var_rnoise", "var_flat")


def run(tiny, device, **options):
    options = {"klip_truncate": 3, "keep": PRODUCTS} | options
    return gpucoron.run(tiny.asn, device=device, psfmask=tiny.mask, **options)


def assert_same(ours, cpu, rel=1e-8):
    """Arrays of two results: NaN at the same places, rms of the difference within `rel`.

    What is stored is float32: a rounding there is 6e-8 of a value, so half a unit in the last place
    is allowed on top.
    """
    ours, cpu = np.asarray(ours, dtype=np.float64), np.asarray(cpu, dtype=np.float64)
    assert np.array_equal(np.isnan(ours), np.isnan(cpu))
    good = np.isfinite(cpu)
    if good.any():
        scale = np.sqrt(np.mean(cpu[good] ** 2))
        worst = np.sqrt(np.mean((ours[good] - cpu[good]) ** 2))
        assert worst <= max(rel, 6e-8) * scale, (worst, scale)


def assert_same_stacks(ours, cpu):
    assert isinstance(ours.data, np.ndarray)
    assert np.array_equal(ours.dq, cpu.dq)
    for name in SAVED:
        if getattr(cpu, name) is None:
            assert getattr(ours, name) is None
        else:
            assert_same(getattr(ours, name), getattr(cpu, name))


def compare(ours, cpu):
    """Every product of two results."""
    for a, b in zip(ours.products, cpu.products, strict=True):
        for root in b.crfints:
            assert_same_stacks(a.crfints[root], b.crfints[root])
            assert np.array_equal(a.median[root], b.median[root], equal_nan=True)
        assert_same_stacks(a.psfstack, b.psfstack)
        for root in b.psfalign:
            assert_same(a.psfalign[root].data, b.psfalign[root].data)
            assert_same(a.psfalign[root].err, b.psfalign[root].err)
            for name in "xy":
                assert np.nanmax(np.abs(a.fits[root][name] - b.fits[root][name])) < 1e-9
        for root in b.psfsub:
            assert_same_stacks(a.psfsub[root], b.psfsub[root])
        for name in ("data", "err", "wht", "con"):
            assert_same(getattr(a.i2d, name), getattr(b.i2d, name))


@BOTH
@pytest.mark.parametrize(
    "align, exclude",
    [("each", None), ("first", None), ("each", "0.5,-0.2,0.2"), ("joint", "0.5,-0.2,0.2")],
)
def test_a_run_on_the_gpu_gives_what_the_cpu_gives(device, align, exclude, tiny):
    ours = run(tiny, 0, align=align, exclude=exclude)
    assert str(ours.device) == "0"
    compare(ours, run(tiny, "cpu", align=align, exclude=exclude))


@GPUS
def test_files_written_from_the_gpu_hold_what_the_result_holds(device, tiny):
    result = run(tiny, 0, klip_truncate=(1, 3), output_dir=tiny.out)
    kinds = {path.stem.rpartition("_")[2] for path in result.files}
    assert kinds == {"crfints", "psfstack", "psfalign", "psfsub", "i2d"}
    product = result.products[0]
    for path in result.files:
        with fits.open(path, checksum=True) as file:
            root = path.name.split("_c1001")[0]
            if path.stem.endswith("psfalign"):
                kept = product.psfalign[root].data.astype(np.float32)
                assert np.array_equal(file["SCI"].data, kept)
            elif path.stem.endswith("kl003_psfsub"):
                kept = product.psfsub[root, 3]
                assert np.array_equal(file["SCI"].data, kept.data, equal_nan=True)
    assert not list(tiny.out.glob(".*"))


@GPUS
def test_several_gpus_share_the_integrations(device, tiny):
    device.have(2)
    one = run(tiny, 0)
    both = run(tiny, "0,1")
    assert str(both.device) == "0,1"
    compare(both, one)
    if device.emulation:  # cuFFT's bits depend on how many it is given
        assert np.array_equal(both.products[0].i2d.data, one.products[0].i2d.data, equal_nan=True)


@pytest.mark.parametrize("device", ["host-forward"], indirect=True)
def test_a_run_where_each_thread_has_a_default_stream(device, tiny):
    device.emulation.streams.per_thread = True
    ours = run(tiny, 0, output_dir=tiny.out)
    compare(ours, run(tiny, "cpu"))


@GPUS
@pytest.mark.parametrize("allowed", [1000, 150_000])
def test_full_memory_halves_the_batch_and_the_run_goes_on(
    device, allowed, tiny, caplog, monkeypatch
):
    # so that the plan is too bold
    monkeypatch.setattr(CudaBackend, "free_memory", lambda self: 2**40)
    whole_group = Subtraction._group
    pool = device.cupy.get_default_memory_pool()
    whole = run(tiny, 0, align="each")
    caplog.set_level("INFO", "gpucoron")

    def with_little_memory(self, share, group, aligned):
        if len(group) > fit:
            gc.collect()
            pool.free_all_blocks()  # what the pool keeps would be used in spite of the limit
            pool.set_limit(size=pool.used_bytes() + allowed)
        try:
            whole_group(self, share, group, aligned)
        finally:
            pool.set_limit(size=0)

    monkeypatch.setattr(Subtraction, "_group", with_little_memory)
    fit = 1
    result = run(tiny, 0, threads=1, align="each")
    assert "going on with 2 integrations at a time" in caplog.text
    assert "going on with 1 integration at a time" in caplog.text
    compare(result, whole)
    fit = 0
    with pytest.raises(DeviceMemoryError, match="^[^\n]*the GPU's memory is full[^\n]*$"):
        run(tiny, 0, threads=1, align="each")


@GPUS
def test_single_steps_give_what_they_give_on_the_cpu(device, tiny, tmp_path):
    def of(kind):
        return sorted(tiny.out.glob(f"*_{kind}.fits"))

    run(tiny, "cpu", align="each", output_dir=tiny.out)
    science = [next(tiny.out.glob(f"{p.name[:30]}*_crfints.fits")) for p in tiny.science]
    for step, files in (
        ("align_refs", [*science, *of("psfstack")]),
        ("klip", [*science, *of("psfalign"), *of("psfstack")]),
        ("resample", of("psfsub")),
    ):
        parameters = Parameters.from_sources(keywords={"klip_truncate": 3, "align": "each"})
        made = [
            run_step(
                step,
                files,
                RunOptions(tiny.asn, parameters, place, tmp_path / str(place), psfmask=tiny.mask),
            ).files
            for place in (0, "cpu")
        ]
        for ours, cpu in zip(*made, strict=True):
            for name in ("SCI", "ERR"):
                assert_same(fits.getdata(ours, name), fits.getdata(cpu, name))
