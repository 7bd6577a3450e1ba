"""Single steps on files: their products are those of a whole run."""

import functools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.cli import main as cli
from gpucoron.io.step_products import PsfalignFile, product_kind, read_sources
from gpucoron.simulate import simulate
from tests.helpers.tiny_sets import TinySet

TRUNCATE = "klip.truncate=2"
#: psfsub of steps, whose psfalign is in single precision: largest difference over the largest
#: value. Worst seen: 5e-7 (NIRCam, 4QPM, seeds 0 and 11).
ROUNDING = 2e-6
#: With joint registration a run subtracts with one decomposition for all integrations, the step
#: with one for each. Worst seen: 1.4e-4.
JOINT = 1e-3
#: The same in zones, where inner products change when images are moved. Worst seen: 2.1e-3.
JOINT_ZONES = 5e-3
#: What the step takes from ERR of psfalign, and a run from the exposures.
NOISE = ("ERR", "VAR_REF", "VAR_SPECKLE", "VAR_REFMEAN", "KLREFS")


def step(name, *words):
    assert cli.main(["step", name, *map(str, words)]) == 0


@pytest.fixture(scope="module", params=[("nircam", "joint"), ("miri-4qpm", "each")])
def both(request, tmp_path_factory):
    """The products of a run, and of the five steps."""
    instrument, align = request.param
    tiny = TinySet(tmp_path_factory.mktemp("steps"), instrument)
    # in a run the references tell about the star, too; steps have their stack only
    options = ["--psfmask", tiny.mask, "--align", align, "--star", "20.5,18.5", "-q"]
    assert tiny.command(*options, "--set", TRUNCATE, "--no-report") == 0
    out, asn_id = tiny.folder.parent / "steps", tiny.asn.name.split("-")[1].split("_")[0]
    common = ["--asn", tiny.asn, "--output-dir", out, "--device", "cpu", *options]
    step("outlier_detection", *tiny.science, *tiny.psf, *common)
    science, psf = (
        [out / p.name.replace("_calints", f"_{asn_id}_crfints") for p in paths]
        for paths in (tiny.science, tiny.psf)
    )
    step("stack_refs", *psf, *common)
    stack = next(out.glob("*_psfstack.fits"))
    step("align_refs", *science, stack, *common)
    step("klip", *out.glob("*_psfalign.fits"), *science, stack, "--set", TRUNCATE, *common)
    step("resample", *sorted(out.glob("*_psfsub.fits")), *common)
    return SimpleNamespace(run=tiny.out, steps=out, align=align, tiny=tiny, common=common)


def arrays(path):
    """Return all arrays and columns of a file but the ASDF extension, and the keywords of SCI."""
    with fits.open(path) as hdus:
        found = {}
        for hdu in hdus[1:]:
            if hdu.name in ("ASDF", "HDRTAB"):
                continue
            names = hdu.data.dtype.names
            found |= (
                {(hdu.name, n): np.array(hdu.data[n]) for n in names}
                if names
                else {hdu.name: np.array(hdu.data)}
            )
        left_out = ("CHECKSUM", "DATASUM", "COMMENT", "")
        return found, {k: v for k, v in hdus["SCI"].header.items() if k not in left_out}


@pytest.mark.parametrize("mode", ["adi", "adi+rdi", "rdi"])
def test_steps_choose_the_references_of_a_run(tmp_path, mode):
    """Other rolls, and without an exposure; in align_refs, or in klip of all that was aligned."""
    tiny = TinySet(tmp_path)
    left_out = tiny.psf[0].name.removesuffix("_calints.fits")
    words = ["--psfmask", tiny.mask, "--align", "each", "--star", "20.5,18.5", "-q", "--set"]
    words = [*words, TRUNCATE, "--mode", mode]
    excluding = [*words, "--exclude-reference", left_out] if "rdi" in mode else words
    assert tiny.command(*excluding, "--no-report") == 0
    science, psf = (
        [tiny.out / p.name.replace("_calints", "_crfints") for p in paths]
        for paths in (tiny.science, tiny.psf)
    )
    for path in (*tiny.science, *tiny.psf):  # that of the run has the association's identifier
        step("outlier_detection", path, "--output-dir", tiny.out, "--device", "cpu", "-q")
    for k, own in enumerate((excluding, words)):
        out = tmp_path / f"steps{k}"
        own = [*own, "--output-dir", out, "--device", "cpu"]
        stack = []
        if "rdi" in mode:
            step("stack_refs", *psf, *own)
            stack = [next(out.glob("*_psfstack.fits"))]
        step("align_refs", *science, *stack, *own)
        klip = [*excluding, "--output-dir", out, "--device", "cpu"]
        step("klip", *out.glob("*_psfalign.fits"), *science, *stack, *klip)
        for path in tiny.science:
            root = path.name.removesuffix("_calints.fits")
            (wanted,), (found,) = (list(f.glob(f"{root}*_psfsub.fits")) for f in (tiny.out, out))
            if mode != "rdi":
                exposures = {e.strip() for e in fits.getdata(found, "KLREFS")["exposure"]}
                assert exposures and left_out not in exposures
            one, other = (fits.getdata(p, "SCI") for p in (wanted, found))
            # the fits of an image use what all references tell: left out later is not the same
            atol = 2e-6 * np.nanmax(abs(one))
            assert np.allclose(other, one, atol=atol, equal_nan=True) == (k == 0 or mode == "adi")


@pytest.mark.parametrize(
    "instrument, mode, align",
    [
        ("nircam", "rdi", "each"),
        ("nircam", "adi+rdi", "joint"),
        ("miri-4qpm", "adi", "joint"),
        ("miri-4qpm", "roll", "each"),
    ],
)
def test_steps_in_zones_with_other_rolls(tmp_path, instrument, mode, align):
    """Zones about the star, references that move enough in each: psfsub is that of a run."""
    tiny = TinySet(tmp_path, instrument)
    settings = [TRUNCATE, "klip.movement=0.3"]
    if mode != "roll":
        settings += ["klip.annuli=2", "klip.subsections=2", "klip.iwa=2", "klip.owa=0.9arcsec"]
    words = ["--psfmask", tiny.mask, "--align", align, "--star", "20.5,18.5", "-q", "--mode", mode]
    words += [word for setting in settings for word in ("--set", setting)]
    assert tiny.command(*words, "--no-report") == 0
    own = [*words, "--output-dir", tmp_path / "steps", "--device", "cpu", "--asn", tiny.asn]
    science = sorted(
        path
        for p in tiny.science
        for path in tiny.out.glob(f"{p.name.removesuffix('_calints.fits')}*_crfints.fits")
    )
    stack = list(tiny.out.glob("*_psfstack.fits")) if "rdi" in mode else []
    step("align_refs", *science, *stack, *own)
    step("klip", *(tmp_path / "steps").glob("*_psfalign.fits"), *science, *stack, *own)
    for wanted in tiny.out.glob("*_psfsub.fits"):
        (expected, _), (found, _) = (arrays(p) for p in (wanted, tmp_path / "steps" / wanted.name))
        np.testing.assert_array_equal(np.isnan(found["SCI"]), np.isnan(expected["SCI"]))
        np.testing.assert_array_equal(found["DQ"], expected["DQ"])
        outside = np.isnan(expected["SCI"][0]).mean()
        assert 0.1 < outside < 0.9 if mode != "roll" else outside == 0
        limit = JOINT_ZONES if align == "joint" else ROUNDING
        scale = np.nanmax(np.abs(expected["SCI"]))
        np.testing.assert_allclose(found["SCI"], expected["SCI"], rtol=0, atol=limit * scale)
        assert np.nanmedian(found["ERR"]) == pytest.approx(np.nanmedian(expected["ERR"]), rel=0.05)


@pytest.mark.parametrize("kind", ["crfints", "psfstack", "psfalign", "psfsub", "i2d"])
def test_products_are_those_of_a_run(both, kind):
    names = sorted(path.name for path in both.run.glob(f"*_{kind}.fits"))
    assert names == sorted(path.name for path in both.steps.glob(f"*_{kind}.fits")) != []
    for name in names:
        (wanted, header), (found, own) = arrays(both.run / name), arrays(both.steps / name)
        # of the errors below, and of psfsub in float32: 0.012 at most
        for keyword in ("ERRCORR", "ERRCORRL", "SPKCORR", "SPKCORRL"):
            assert header.pop(keyword, 1.0) == pytest.approx(own.pop(keyword, 1.0), rel=0.02)
        assert wanted.keys() == found.keys() and header == own
        for key, array in wanted.items():
            first = key if isinstance(key, str) else key[0]
            if kind not in ("psfsub", "i2d") or first not in ("SCI", *NOISE):
                np.testing.assert_array_equal(found[key], array, err_msg=f"{name} {key}")
            elif key == "SCI":
                limit = JOINT if both.align == "joint" else ROUNDING
                scale = np.nanmax(np.abs(array))
                np.testing.assert_allclose(found[key], array, rtol=0, atol=limit * scale)
            elif key == "ERR":  # of references, as psfalign has it
                assert np.nanmedian(found[key]) == pytest.approx(np.nanmedian(array), rel=0.05)


def test_resample_of_the_runs_psfsub_is_the_runs_i2d(both, tmp_path):
    files = sorted(both.run.glob("*_psfsub.fits"))
    step("resample", *files, *both.common, "--output-dir", tmp_path)
    (path,) = tmp_path.iterdir()
    for ours, wanted in zip(arrays(path), arrays(both.run / path.name), strict=True):
        np.testing.assert_equal(ours, wanted)
    history = "\n".join(map(str, fits.getheader(path)["HISTORY"]))
    assert history.rpartition("klip.truncate = ")[2].startswith("2")


def test_what_files_are(both):
    for kind in ("psfstack", "psfalign", "psfsub", "i2d"):
        assert {product_kind(p) for p in both.run.glob(f"*_{kind}.fits")} == {kind}
    assert {product_kind(p) for p in both.run.glob("*_crfints.fits")} == {"exposure"}


def test_psfalign_is_read_by_parts(both):
    path = sorted(both.run.glob("*_psfalign.fits"))[0]
    data = fits.getdata(path)
    n = 3 if data.ndim == 3 else len(data)
    file = PsfalignFile(path, (n, *data.shape[-2:]))
    assert file.each == (data.ndim == 4) and file.shape == data.shape[-3:]
    for i in range(n):
        np.testing.assert_array_equal(file.references(i), data[i] if data.ndim == 4 else data)


def test_some_references_of_psfalign(both):
    path, planes = sorted(both.run.glob("*_psfalign.fits"))[0], [3, 0]
    every = PsfalignFile(path, (3, 36, 40))
    some = every.select(planes)
    assert some.shape == (2, *every.shape[1:]) and every.shape[0] > 3
    for name in ("SCI", "ERR"):
        wanted = every.references(0, name)[planes]
        np.testing.assert_array_equal(some.references(0, name), wanted)
    np.testing.assert_array_equal(some.shifts(0), every.shifts(0)[planes])


def test_sources_name_the_planes(both):
    (path,) = both.run.glob("*_psfstack.fits")
    data, done = fits.getdata(path), 0
    for source, plane in zip(read_sources(path, len(data)), data, strict=True):
        (crfints,) = both.run.glob(f"{source.exposure}_*_crfints.fits")
        np.testing.assert_array_equal(fits.getdata(crfints)[source.integration - 1], plane)
        done += 1
    assert done == 5


def test_references_of_one_integration_are_compared_in_a_step_as_in_a_run(tmp_path):
    """Files without their visit in the name are told by VISIT_ID; a hit like the PSF is found."""
    one = {"n_integrations": 1, "n_reference_integrations": 1, "n_references": 5}
    made = simulate(tmp_path / "given", "nircam", shape=(96, 96), seed=7, **one)
    renamed = [path.with_name(f"star{k}_calints.fits") for k, path in enumerate(made.psf)]
    for path, name in zip(made.psf, renamed, strict=True):
        path.rename(name)
    with fits.open(renamed[2], mode="update") as hdus:
        y, x = np.indices((96, 96))
        hit = np.exp(-((y - 20) ** 2 + (x - 75) ** 2) / 2.5)
        hdus["SCI"].data[0] += 60 * np.nanmedian(hdus["ERR"].data) * hit.astype(np.float32)
    made.asn.write_text(
        functools.reduce(
            lambda text, pair: text.replace(pair[0].name, pair[1].name),
            zip(made.psf, renamed, strict=True),
            made.asn.read_text(),
        )
    )
    words = ["--device", "cpu", "-q", "--output-dir"]
    skip = [
        w for name in ("align_refs", "klip", "resample") for w in ("--set", f"{name}.skip=true")
    ]
    assert cli.main([str(made.asn), *skip, "--no-report", *words, str(tmp_path / "run")]) == 0
    step("outlier_detection", *made.science, *renamed, *words, tmp_path / "step")
    step("outlier_detection", renamed[2], *words, tmp_path / "alone")
    flagged = []
    for path in (*made.science, *renamed):
        root = path.name.removesuffix("_calints.fits")
        planes = [
            fits.getdata(next((tmp_path / folder).glob(f"{root}_*crfints.fits")), "DQ") & 16
            for folder in ("run", "step")
        ]
        np.testing.assert_array_equal(*planes)
        flagged.append(planes[0])
    alone = fits.getdata(next((tmp_path / "alone").glob("*_crfints.fits")), "DQ") & 16
    assert not alone[0, 20, 75] and flagged[len(made.science) + 2][0, 20, 75]


@pytest.fixture
def foreign(tiny, tmp_path):
    """psfstack and psfalign as jwst writes them: no SOURCES, ALIGN or POSITIONS."""
    datamodels = pytest.importorskip("stdatamodels.jwst.datamodels")
    references = np.concatenate([fits.getdata(p) for p in tiny.psf])

    def save(name, model, *steps):
        with datamodels.open(tiny.psf[0]) as first:
            model.update(first)
        for each in steps:
            setattr(model.meta.cal_step, each, "COMPLETE")
        model.save(tmp_path / name)
        return tmp_path / name

    filled, steps = np.nan_to_num(references), ("stack_psfs", "align_psfs")
    plain = {"err": np.ones_like(references), "dq": np.zeros(references.shape, np.uint32)}
    return (
        save("all_psfstack.fits", datamodels.CubeModel(data=references, **plain), steps[0]),
        save("each_psfalign.fits", datamodels.QuadModel(data=np.stack([filled] * 3)), *steps),
        save("first_psfalign.fits", datamodels.CubeModel(data=filled), *steps),
    )


def test_files_of_jwst(foreign, tiny, tmp_path, capsys):
    stack, each, first = foreign
    assert [product_kind(path) for path in foreign] == ["psfstack", "psfalign", "psfalign"]
    common = ["--device", "cpu", "-q", "--psfmask", tiny.mask, "--output-dir"]
    step("align_refs", tiny.science[0], stack, *common, tmp_path / "new")
    assert "has no SOURCES" in capsys.readouterr().err
    (made,) = (tmp_path / "new").iterdir()
    assert fits.getdata(made).shape == fits.getdata(each).shape
    found = []
    for path in (each, first):
        words = (tiny.science[0], path, "--set", "klip.truncate=1")
        step("klip", *words, *common, tmp_path / path.stem)
        found += [fits.getdata(p) for p in (tmp_path / path.stem).iterdir()]
    assert np.isfinite(found[0]).any()
    peak = np.nanmax(np.abs(fits.getdata(tiny.science[0])))
    np.testing.assert_allclose(*found, rtol=0, atol=ROUNDING * peak)


@pytest.mark.parametrize(
    "words, code, message",
    [
        ("stack i/a_calints.fits", 2, "STEP: invalid choice: 'stack'"),
        ("klip", 2, "FILE (see gpucoron step --help)"),
        ("klip nothing.fits", 3, "nothing.fits: no such file"),
        ("align_refs i/a_calints.fits", 2, "align_refs: no psfstack is given, expected at least"),
        ("klip i/a_calints.fits", 2, "klip: no psfalign is given, expected at least one"),
        ("stack_refs s_psfstack.fits", 2, "is of kind psfstack, but stack_refs takes: exposure"),
        ("align_refs i/a_calints.fits s_psfstack.fits t_psfstack.fits", 2, "2 files are psfstack"),
        ("align_refs i/b_calints.fits s_psfstack.fits", 3, "FILTER is"),
        ("outlier_detection i/a_calints.fits j/a_calints.fits", 3, "would be made of 2 files"),
        (
            "klip i/a_calints.fits i/c_calints.fits a_psfalign.fits",
            2,
            "c_calints.fits has no psfalign",
        ),
        ("klip i/a_calints.fits a_psfalign.fits", 3, "expected (3, nref, 36, 40) or (nref"),
        ("stack_refs i/a_calints.fits --exclude-reference b", 2, "klip.exclude_reference is 'b'"),
        ("stack_refs i/a_calints.fits --exclude-reference a", 2, "leaves none of the 1 exposures"),
        ("klip i/a_calints.fits a_psfalign.fits --mode adi+rdi", 2, "need psfstack, which says"),
        ("align_refs i/a_calints.fits --mode adi", 3, "klip.mode adi, and one science exposure"),
        ("klip i/a_calints.fits a_psfalign.fits --set klip.skip=true", 2, "klip.skip is true"),
        ("outlier_detection a_crfints.fits --output-dir .", 5, "would replace an input"),
        ("stack_refs i/a_calints.fits --product-name a/b", 5, "'a/b' is not a plain file name"),
    ],
)
def test_errors_are_one_line(tiny, monkeypatch, capsys, words, code, message):
    folder = tiny.folder.parent
    monkeypatch.chdir(folder)
    for name in ("i/a_calints", "i/b_calints", "i/c_calints", "j/a_calints", "a_crfints"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny.science[0], f"{name}.fits")
    fits.setval("i/b_calints.fits", "FILTER", value="F356W", ext=0)
    for name, keyword in (("s_psfstack", "S_PSFSTK"), ("t_psfstack", "S_PSFSTK")):
        shutil.copy(tiny.psf[0], f"{name}.fits")
        fits.setval(f"{name}.fits", keyword, value="COMPLETE", ext=0)
    with fits.open(tiny.psf[0]) as hdus:
        hdus[0].header["S_PSFALI"] = "COMPLETE"
        hdus["SCI"].data = hdus["SCI"].data[None, :, 1:]
        hdus.writeto("a_psfalign.fits")
    before = sorted(folder.rglob("*"))
    words = words.split()
    more = [] if "--output-dir" in words else ["--output-dir", "new"]
    assert cli.main(["step", *words, "-q", "--device", "cpu", *more]) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("gpucoron: error: ") and message in line
    assert [path for path in sorted(folder.rglob("*")) if path.name != "new"] == before
