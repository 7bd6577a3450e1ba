"""Whole runs: what they give back, what they write, and that they are the chain of the steps."""

import re

import numpy as np
import pytest
from astropy.io import fits

import gpucoron
from gpucoron.backend.device import cpu_threads
from gpucoron.core.parameters import Klip, Parameters
from gpucoron.errors import OutputError, ParameterError, UsageError
from gpucoron.io import read_exposure, read_psfmask
from gpucoron.ops.dq import DO_NOT_USE, FLUX_ESTIMATED
from gpucoron.optics.telescope import cutoff_of
from gpucoron.steps import Alignment, align_refs, klip, outlier_detection, stack_refs
from tests.helpers.tiny_sets import N_REFERENCES, N_SCIENCE, SHAPE, TinySet, complete
from tests.helpers.tiny_sets import one_thread as one_thread

N_REF = sum(N_REFERENCES)
USUAL = {"device": "cpu", "klip_truncate": 3}
PRODUCTS = {"crfints": 5, "median": 5, "psfstack": 1, "psfalign": 2, "psfsub": 2, "i2d": 1}
HDU_OF = {"data": "SCI"} | {
    name: name.upper()
    for name in ("err", "dq", "wht", "con", "var_poisson", "var_rnoise", "var_flat")
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A set that tests only read, and a run of it that wrote and kept everything."""
    tiny = TinySet(tmp_path_factory.mktemp("shared"))
    tiny.result = run(tiny, output_dir=tiny.out, save=PRODUCTS, keep=PRODUCTS, threads=1)
    return tiny


def run(tiny, **keywords):
    return gpucoron.run(tiny.asn, **USUAL | {"psfmask": tiny.mask} | keywords)


def suffixes(result):
    """Count the files of a run by kind."""
    kinds = [re.search(r"_(\w+)\.fits$", f.name)[1].rpartition("_")[2] for f in result.files]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def same(ours, theirs):
    np.testing.assert_array_equal(np.asarray(ours).astype(theirs.dtype.newbyteorder("=")), theirs)


def arrays(product):
    """Yield (kind, root, name, array) of everything in a product but medians and fits."""
    for kind in ("crfints", "psfsub", "psfstack", "i2d", "psfalign"):
        group = getattr(product, kind)
        for key, stack in (group if isinstance(group, dict) else {product.name: group}).items():
            root = key if isinstance(key, str) else key[0]  # psfsub has the KL modes, too
            for name in HDU_OF:
                if getattr(stack, name, None) is not None:
                    yield kind, root, name, getattr(stack, name)


# ---- what a run gives back and what it writes
def test_in_memory_nothing_is_written(tiny, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = tiny.sums()
    result = run(tiny)
    assert result.files == () and not list(here.iterdir()) and not tiny.out.exists()
    assert tiny.sums() == before
    product = result.product
    assert [root for root, _ in product.psfsub] == list(product.psfalign) == list(product.fits)
    assert [len(s) for s in product.psfsub.values()] == list(N_SCIENCE)
    assert len(product.crfints) == 5 and len(product.psfstack) == N_REF
    assert product.i2d.data.shape == product.wcs.shape
    assert result.device.kind == "cpu" and result.parameters.klip.truncate == 3
    assert set(result.timings) >= {"read", "outlier_detection", "align_refs", "klip", "resample"}


def test_everything_is_written_and_whole(shared, tmp_path):
    assert shared.sums() == TinySet(tmp_path).sums()  # inputs stay as they were
    assert suffixes(shared.result) == PRODUCTS
    assert sorted(f.name for f in shared.result.files) == shared.files()
    for file in shared.result.files:
        complete(file)


def test_files_hold_what_the_result_holds(shared):
    product = shared.result.product
    for kind, root, name, array in arrays(product):
        (path,) = shared.out.glob(f"{root}*_{kind}.fits")
        same(array, fits.getdata(path, HDU_OF[name]))
    sources = zip(shared.psf, N_REFERENCES, strict=True)
    names = [(p.name.replace("_calints.fits", ""), i + 1) for p, n in sources for i in range(n)]
    assert list(product.psfstack.sources) == names
    for root, image in product.median.items():
        same(image, fits.getdata(next(shared.out.glob(f"{root}*_median.fits")), "SCI"))


def test_the_table_of_fits(shared):
    for n, (root, table) in zip(N_SCIENCE, shared.result.product.fits.items(), strict=True):
        (path,) = shared.out.glob(f"{root}*_psfalign.fits")
        written = fits.getdata(path, "ALIGN")
        assert written.dtype.names == table.dtype.names
        for name in table.dtype.names:
            same(table[name], np.asarray(written[name]))
        np.testing.assert_array_equal(table["sci_integration"], np.repeat(np.arange(n) + 1, N_REF))
        np.testing.assert_array_equal(table["ref_plane"], np.tile(np.arange(N_REF) + 1, n))
        assert (table["status"] == 0).all() and (np.hypot(table["x"], table["y"]) < 3).all()
        assert (table["x_err"] > 0).all() and (table["residual"] > 0).all()


@pytest.mark.parametrize("align", ["joint", "each", "first"])
def test_shapes_of_psfalign(align, tiny):
    result = run(tiny, align=align, output_dir=tiny.out, save=["psfalign"], keep=["psfalign"])
    for n, (root, aligned) in zip(N_SCIENCE, result.product.psfalign.items(), strict=True):
        shape = (N_REF, *SHAPE) if align == "first" else (n, N_REF, *SHAPE)
        assert aligned.data.shape == aligned.err.shape == shape
        assert len(aligned.fits) == N_REF * (1 if align == "first" else n)
        (path,) = tiny.out.glob(f"{root}*_psfalign.fits")
        with fits.open(path) as hdus:
            assert hdus["SCI"].shape == shape
            assert hdus[0].header["DATAMODL"] == ("CubeModel" if align == "first" else "QuadModel")
            same(aligned.data, hdus["SCI"].data)
            same(aligned.dq, hdus["DQ"].data)
            assert np.isfinite(hdus["ERR"].data).all()


# ---- the pipeline is the chain of the steps
def chain(tiny, align="joint", preset=None, truncate=3, **alignment):
    """Do by hand what a run does before resampling; yield exposure, flagged, aligned, psfsub."""
    mask = read_psfmask(tiny.mask, SHAPE)
    exposures = [read_exposure(p, "psf") for p in tiny.psf]
    cutoff = cutoff_of(exposures[0].meta)
    stack = stack_refs(
        [outlier_detection(e.stack, preset=preset, cutoff=cutoff).stack for e in exposures]
    )
    for path in tiny.science:
        exposure = read_exposure(path, "science")
        flagged = outlier_detection(exposure.stack, preset=preset, cutoff=cutoff).stack
        parameters = {"align": align, "preset": preset, **alignment}
        plan = Alignment(flagged, stack, mask, **parameters)
        filled = flagged.replace(data=plan.science, dq=plan.science_dq)
        aligned, references, offsets = align_refs(flagged, stack, mask, **parameters), None, None
        if align == "joint":
            references, offsets = plan.in_common_frame(), plan.positions.science
        else:
            references = aligned.data
        weight = plan.klip_weight()
        errors = plan.reference_errors(None if align == "joint" else plan.fit(plan.integrations[0]))
        options = {"offsets": offsets, "weight": weight, "errors": errors}
        options["missing"] = plan.science_missing
        subtracted = klip(filled, references, truncate, **options)
        yield exposure.root, flagged, aligned, subtracted


@pytest.mark.parametrize("align", ["joint", "each", "first"])
def test_a_run_is_the_chain_of_its_steps(align, shared):
    """The pipeline streams its references; the library holds them all."""
    product = shared.result.product if align == "joint" else run(shared, align=align).product
    for root, flagged, aligned, subtracted in chain(shared, align):
        same(product.crfints[root].data, flagged.data)
        same(product.psfalign[root].data, aligned.data)
        same(product.psfalign[root].err, aligned.err)
        same(product.psfalign[root].dq, aligned.dq)
        same(product.fits[root], aligned.fits)
        same(product.psfsub[root].data, subtracted.data)
        for name in ("err", "var_ref", "var_speckle"):
            same(getattr(product.psfsub[root], name), getattr(subtracted, name))
        dq = product.psfsub[root].dq
        coefficients = np.abs(product.psfsub[root].reference_noise.coefficients)
        share = np.tensordot(coefficients, (aligned.dq & DO_NOT_USE) != 0, axes=(0, -3))
        clear = np.abs(share / coefficients.sum() - 0.5) > 0.05  # not at the limit
        estimated = (share > 0.5 * coefficients.sum()) * np.uint32(FLUX_ESTIMATED)
        same(np.where(clear, dq, 0), np.where(clear, subtracted.dq | estimated, 0))
        shared_noise = product.psfsub[root].reference_noise
        for ours, theirs in zip(shared_noise, subtracted.reference_noise, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        filled = (dq & FLUX_ESTIMATED) & ((dq & DO_NOT_USE) * FLUX_ESTIMATED) != 0
        same(filled, (flagged.dq & DO_NOT_USE) != 0)
        assert filled.any() and (aligned.dq & FLUX_ESTIMATED).any()


def test_miri_non_science_pixels_are_zero_before_the_fit(tmp_path):
    tiny = TinySet(tmp_path, "miri-4qpm")

    def border(dq):
        dq = dq.copy()
        dq[..., :3] |= np.uint32(512 | 1)
        return dq

    tiny.edit(DQ=border)
    product = run(tiny).product
    for root, flagged, aligned, subtracted in chain(tiny, zero_non_science=True):
        assert (flagged.dq[..., :3] & 512).all() and np.isnan(flagged.data[..., :3]).all()
        same(product.psfalign[root].data, aligned.data)
        same(product.psfsub[root].data, subtracted.data)
        filled = Alignment(flagged, product.psfstack, np.ones(SHAPE), zero_non_science=True)
        assert not filled.science[..., :3].any()
    # nothing of them reaches the sky
    assert product.i2d.con.any() and np.isfinite(product.i2d.data).any()
    outside = run(TinySet(tmp_path / "whole", "miri-4qpm")).product.i2d
    assert np.isfinite(product.i2d.data).sum() < np.isfinite(outside.data).sum()


# ---- parameters
def test_each_step_can_be_skipped(shared):
    full = shared.result.product
    steps = "outlier_detection align_refs klip resample".split()
    skipped = (run(shared, keep=PRODUCTS, **{f"{step}_skip": True}).product for step in steps)
    unflagged, unaligned, unsubtracted, alone = skipped
    assert unflagged.crfints == unflagged.median == {} and unflagged.i2d is not None
    assert unaligned.fits == unaligned.psfalign == unsubtracted.psfsub == unsubtracted.fits == {}
    assert np.isfinite(next(iter(unaligned.psfsub.values())).data).all()
    assert np.nanstd(unsubtracted.i2d.data) > 3 * np.nanstd(full.i2d.data)
    assert np.nanstd(unaligned.i2d.data) > np.nanstd(full.i2d.data)
    assert alone.i2ds == {}
    for name in ("i2d", "wcs"):
        with pytest.raises(UsageError, match="expected a run with resample"):
            getattr(alone, name)
    for root, stack in alone.psfsub.items():
        same(stack.data, full.psfsub[root].data)
    with pytest.raises(ParameterError, match="stack_refs.skip is true, but klip needs"):
        run(shared, stack_refs_skip=True)


@pytest.mark.parametrize(
    "skip, written",
    [
        ("outlier_detection", "psfstack psfalign psfsub i2d"),
        ("align_refs", "crfints psfstack psfsub i2d"),
        ("klip", "crfints psfstack i2d"),
        ("resample", "crfints psfstack psfalign psfsub"),
    ],
)
def test_a_skipped_step_writes_nothing_and_says_so(skip, written, tiny):
    written = {kind: PRODUCTS[kind] for kind in written.split()}
    result = run(tiny, output_dir=tiny.out, **{f"{skip}_skip": True})
    assert suffixes(result) == written and len(tiny.files()) == sum(written.values())
    last = "i2d" if skip != "resample" else "psfsub"
    header = fits.getheader(next(tiny.out.glob(f"*_{last}.fits")))
    for step, keyword in (("outlier_detection", "S_OUTLIR"), ("klip", "S_KLIP")):
        assert header[keyword] == ("SKIPPED" if skip == step else "COMPLETE")


def test_parameters_arrive_by_any_way(shared):
    ways = [
        {"klip_truncate": 2},
        {"klip": {"truncate": 2}},
        {"klip": Klip(truncate=2)},
        {"parameters": {"klip.truncate": 2}},
        {"parameters": Parameters(klip=Klip(truncate=2))},
    ]
    given = {"device": "cpu", "psfmask": shared.mask, "keep": ["psfsub"]}
    results = [gpucoron.run(shared.asn, **given, **way) for way in ways]
    assert {r.parameters.klip.truncate for r in results} == {2}
    first = next(iter(results[0].product.psfsub.values()))
    for result in results[1:]:
        same(next(iter(result.product.psfsub.values())).data, first.data)
    assert not np.array_equal(first.data, next(iter(shared.result.product.psfsub.values())).data)


def test_several_truncations_are_as_many_runs(shared, tmp_path):
    events = []
    options = {"klip_truncate": (4, 3), "output_dir": tmp_path, "save": ["psfsub", "i2d"]}
    several = run(shared, **options, progress=lambda step, *numbers: events.append(step))
    names = sorted(f.name for f in several.files)
    assert [re.search(r"_kl\d+_\w+", n)[0] for n in names] == [
        f"_kl00{k}_{kind}" for kind in ("i2d", "psfsub", "psfsub") for k in (3, 4)
    ]
    product, full = several.product, shared.result.product
    single = {3: full, 4: run(shared, klip_truncate=4).product}
    assert list(product.i2ds) == [4, 3] and product.i2d is product.i2ds[4]
    assert list(full.i2ds) == [3] and full.i2d is full.i2ds[3]
    for k, alone in single.items():
        np.testing.assert_allclose(product.i2ds[k].data, alone.i2d.data, rtol=1e-4, atol=1e-4)
        for (root, modes), stack in alone.psfsub.items():
            ours = product.psfsub[root, k]
            assert modes == k and ours is product.psfsub[f"{root}_kl00{k}"]
            np.testing.assert_allclose(ours.data, stack.data, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(ours.err, stack.err, rtol=1e-3, atol=1e-4)
            (path,) = tmp_path.glob(f"{root}*_kl00{k}_psfsub.fits")
            same(ours.data, fits.getdata(path, "SCI"))
            complete(path)
    assert events[-1] == "resample"
    assert sum("klip.truncate" in w for w in run(shared, klip_truncate="3,9").warnings) == 1


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        ({"klip_truncate": "3,x"}, ParameterError, "klip.truncate"),
        ({"klip_truncate": ()}, ParameterError, "klip.truncate"),
        ({"save": ["psfsubs"]}, UsageError, "save holds 'psfsubs'; expected some of crfints"),
        ({"keep": ["all"]}, UsageError, "keep holds 'all'"),
        ({"parameters": Parameters(), "klip_truncate": 2}, UsageError, "not both"),
        ({"preset": "webbpsf"}, ParameterError, "preset is 'webbpsf'; expected 'jwst'"),
    ],
)
def test_calls_that_ask_for_what_is_not_there(keywords, error, message, shared):
    with pytest.raises(error, match=re.escape(message)):
        gpucoron.run(shared.asn, **{"device": "cpu"} | keywords)


def test_selections(tiny):
    result = run(tiny, output_dir=tiny.out, save=["i2d", "median"], keep=["psfsub"])
    assert suffixes(result) == {"median": 5, "i2d": 1}
    product = result.product
    assert len(product.psfsub) == 2 and len(product.fits) == 2
    assert product.crfints == product.median == product.psfalign == {}
    assert product.i2ds == {} and product.psfstack is None
    # with an output folder psfalign, the largest, is not kept unless asked for
    result = run(tiny, output_dir=tiny.out)
    assert suffixes(result) == {k: v for k, v in PRODUCTS.items() if k != "median"}
    assert result.product.psfalign == {} and result.product.i2d is not None
    with pytest.raises(OutputError, match=r"exists; allow overwriting"):
        run(tiny, output_dir=tiny.out, overwrite=False)


# ---- repeatability
def test_two_runs_give_the_same(shared, tmp_path):
    """The same arrays with any number of threads; the same files but for their date."""
    threads = min(2, cpu_threads())
    result = run(shared, output_dir=tmp_path, save=PRODUCTS, keep=PRODUCTS, threads=threads)
    pairs = zip(arrays(shared.result.product), arrays(result.product), strict=True)
    for (*name, first), (*other, second) in pairs:
        assert name == other
        same(first, second)
    for first, second in (
        (shared.result.product.median, result.product.median),
        (shared.result.product.fits, result.product.fits),
    ):
        assert first.keys() == second.keys()
        for root in first:
            same(first[root], second[root])
    assert [f.name for f in shared.result.files] == [f.name for f in result.files]
    for first, second in zip(shared.result.files, result.files, strict=True):
        assert text_of(first) == text_of(second)


def text_of(path):
    """Return a file's bytes without its date and the sums that the date enters."""
    content = path.read_bytes()
    date = fits.getval(path, "DATE").encode()
    inherited = path.stem.endswith(("_crfints", "_psfsub"))  # is their ASDF extension
    assert content.count(date) == (1 if inherited else 2)
    content = content.replace(date, b"")
    return re.sub(rb"(CHECKSUM|DATASUM )= '[^']*' *", b"", content)


# ---- the preset
def test_preset_jwst(shared):
    ours, product = shared.result.product, run(shared, preset="jwst").product
    for root, flagged, aligned, subtracted in chain(shared, "first", "jwst"):
        same(product.psfalign[root].data, aligned.data)
        same(product.psfsub[root].data, subtracted.data)
        assert aligned.data.shape == (N_REF, *SHAPE) and np.isnan(aligned.err).all()
        filled = Alignment(flagged, product.psfstack, np.ones(SHAPE), preset="jwst")
        bad = np.isnan(flagged.data)
        assert not filled.science[:, 0][bad[:, 0]].any()
        assert not filled.science[:, :, 0][bad[:, :, 0]].any()
        near = Alignment(flagged, product.psfstack, np.ones(SHAPE))
        assert np.array_equal(near.science[~bad], filled.science[~bad])
        # what differs is small against the star
        difference = product.psfsub[root].data[0] - ours.psfsub[root].data[0]
        assert 0 < np.std(difference) < 0.5 * np.std(flagged.data[0][~bad[0]])
    assert product.i2d.data.shape == ours.i2d.data.shape


def test_preset_jwst_in_headers(tiny):
    pixar = fits.getval(tiny.science[0], "PIXAR_SR", "SCI")
    found = {}
    for preset in (None, "jwst"):
        options = {"save": ["i2d", "psfstack"], "resample_pixel_scale_ratio": 2.0}
        result = run(tiny, output_dir=tiny.out, preset=preset, **options)
        stack, i2d = sorted(result.files, key=lambda f: "i2d" in f.name)
        found[preset] = fits.getval(i2d, "PIXAR_SR", "SCI"), fits.getval(stack, "NINTS")
    assert found["jwst"] == (pixar, N_REFERENCES[0])
    assert found[None] == (pytest.approx(4 * pixar, rel=0.02), N_REF)
