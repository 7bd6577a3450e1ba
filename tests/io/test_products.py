import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from stdatamodels.jwst import datamodels

from gpucoron.core.star import CombinedStar, StarPositions
from gpucoron.errors import OutputError
from gpucoron.io.products import (
    PsfalignWriter,
    product_path,
    write_crfints,
    write_i2d,
    write_median,
    write_psfstack,
    write_psfsub,
)
from tests.io.product_tools import FITS_FIELDS, Set, grid, layout, resampled

SETS = ("nircam_small", "miri_4qpm")
STAR = StarPositions([60.5, 61.0], [70.0, 70.5], [0.01, 0.03], [0.02, 0.02], "model", (61.0, 70.0))
HEADER_STAR = StarPositions.constant((60.0, 70.0), 2, np.nan, "wcs")
COMBINED = CombinedStar(
    StarPositions([25.5], [20.25], [0.01], [0.02], "given"), (150.2, -30.4), "star", 0.1, (0.2, -1)
)


@pytest.fixture(scope="module", params=SETS)
def data(request, shared_data):
    return Set(shared_data / request.param)


@pytest.fixture(scope="module")
def small(shared_data):
    return Set(shared_data / "nircam_small")


def fits_table(n_sci, n_ref):
    table = np.zeros(n_sci * n_ref, FITS_FIELDS)
    table["sci_integration"] = np.repeat(np.arange(n_sci) + 1, n_ref)
    table["ref_plane"] = np.tile(np.arange(n_ref) + 1, n_sci)
    table["x"], table["status"] = np.linspace(-1, 1, len(table)), 1
    return table


def write_all(data, folder):
    """Write every product of a set; return {suffix: path}."""
    science, provenance = data.science[0], data.provenance
    names = {
        s: product_path(folder, science.root, provenance.asn_id, s)
        for s in ("crfints", "psfalign", "psfsub", "median")
    }
    names |= {s: product_path(folder, data.name, None, s) for s in ("psfstack", "i2d")}
    names["quad"] = names["psfalign"].with_name("quad_psfalign.fits")
    write_crfints(names["crfints"], science, science.stack, provenance)
    subtracted = science.stack.replace(data=science.stack.data.astype(np.float64))
    write_psfsub(names["psfsub"], science, subtracted, provenance, star=STAR)
    write_median(names["median"], science, science.stack.data[0], provenance)
    write_psfstack(names["psfstack"], data.psf, data.references, provenance)
    shape = data.references.data.shape
    with PsfalignWriter(names["psfalign"], data.psf, shape, provenance) as writer:
        writer.write(0, data.references.data, None)
        writer.close(fits_table(1, shape[0]), star=HEADER_STAR)
    with PsfalignWriter(names["quad"], data.psf, (2, *shape), provenance) as writer:
        for i in (1, 0):
            writer.write(i, data.references.data + i, data.references.err)
        writer.close(fits_table(2, shape[0]), star=STAR)
    write_i2d(names["i2d"], data.science, resampled((40, 50)), grid(), provenance, star=COMBINED)
    return names


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    return write_all(data, tmp_path_factory.mktemp("products"))


# ---- what is in the files


STAR_KEYWORDS = {
    "psfsub": "60.75 70.25 0.02 0.02 model 61.0 70.0 None None",
    "quad": "60.75 70.25 0.02 0.02 model 61.0 70.0 None None",
    "psfalign": "60.0 70.0 None None wcs None None None None",
    "i2d": "25.5 20.25 0.01 0.02 given None None 150.2 STAR",
    "crfints": " ".join(["None"] * 9),
    "psfstack": " ".join(["None"] * 9),
}


@pytest.mark.parametrize("suffix", STAR_KEYWORDS)
def test_keywords_of_the_star(written, suffix):
    names = "STARCENX STARCENY STARERRX STARERRY STARSRC MASKCENX MASKCENY STARRA CENTERBY".split()
    with fits.open(written[suffix], checksum=True) as hdus:
        header = hdus["SCI"].header
        assert " ".join(str(header.get(name)) for name in names) == STAR_KEYWORDS[suffix]
        assert all(hdu.verify_checksum() == 1 for hdu in hdus)


def test_no_keyword_of_the_star_is_inherited_but_with_the_preset(shared_data, tmp_path):
    """spaceKLIP writes STARCENX into its exposures; in a product that is another position."""
    for preset, expected in ((None, 25.5), ("jwst", 33.0)):
        data = Set(shared_data / "nircam_small", preset)
        data.science[0].headers["SCI"].update(STARCENX=33.0, STARERRX=9.0)
        arguments = data.science, resampled((40, 50)), grid(), data.provenance
        write_i2d(tmp_path / "i2d.fits", *arguments, star=COMBINED)
        header = fits.getheader(tmp_path / "i2d.fits", "SCI")
        assert header["STARCENX"] == expected
        assert ("CENTERBY" in header) == (preset is None)
        with fits.open(tmp_path / "i2d.fits") as hdus:
            assert ("DQ" in hdus) == (preset is None)


def test_layout(data, written):
    shape = data.science[0].stack.shape
    n_int, n_ref = len(data.science[0].int_times), len(data.references.data)

    def images(shape, names, dtype="float32"):
        return [(name, dtype, shape) for name in names.split()]

    def stack(*shape):
        return images(shape, "SCI ERR") + images(shape, "DQ", "uint32")

    variances = "VAR_POISSON VAR_RNOISE VAR_FLAT"
    cube = stack(*shape) + images(shape[1:], "AREA") + images((n_int,), "INT_TIMES", "table")
    cube += images(shape, variances)
    assert layout(written["crfints"]) == layout(written["psfsub"]) == cube
    references = stack(n_ref, *shape[1:])
    sources = images((n_ref,), "SOURCES", "table")
    assert layout(written["psfstack"]) == references + sources
    assert layout(written["psfalign"]) == [*references, ("ALIGN", "table", (n_ref,))]
    quad = stack(2, n_ref, *shape[1:])
    assert layout(written["quad"]) == [*quad, ("ALIGN", "table", (2 * n_ref,))]
    i2d = stack(40, 50) + images((2, 40, 50), "CON", "int32")
    i2d += images((40, 50), f"WHT {variances}") + images((len(data.science),), "HDRTAB", "table")
    assert layout(written["i2d"]) == i2d
    assert layout(written["median"]) == images(shape[1:], "SCI")


@pytest.mark.filterwarnings("error")
def test_arrays_checksums_and_standard(data, written):
    for path in written.values():
        with fits.open(path, checksum=True) as hdus:  # warns where a sum is wrong
            hdus.verify("exception")
            assert [h.name for h in hdus][-1] == "ASDF"
            for hdu in hdus:
                assert "CHECKSUM" in hdu.header and "DATASUM" in hdu.header
                assert hdu.data is None or hdu.data.size
    with fits.open(written["crfints"]) as hdus:
        stack = data.science[0].stack
        for name, array in (("SCI", stack.data), ("DQ", stack.dq), ("VAR_FLAT", stack.var_flat)):
            np.testing.assert_array_equal(hdus[name].data, array)
        times = data.science[0].int_times
        for column in times.dtype.names:
            np.testing.assert_array_equal(hdus["INT_TIMES"].data[column], times[column])
    with fits.open(written["quad"]) as hdus:
        np.testing.assert_array_equal(hdus["SCI"].data[1], data.references.data + 1)
        np.testing.assert_array_equal(hdus["ERR"].data[0], data.references.err)
        assert not hdus["DQ"].data.any()
        assert hdus["ALIGN"].columns["x"].unit == "pix"
        assert "0 good" in str(hdus["ALIGN"].header["COMMENT"])
    with fits.open(written["psfalign"]) as hdus:
        assert np.isnan(hdus["ERR"].data).all()
        planes = np.arange(len(data.references.data)) + 1
        np.testing.assert_array_equal(hdus["ALIGN"].data["ref_plane"], planes)


MODELS = dict.fromkeys(("crfints", "psfstack", "psfalign", "psfsub"), "CubeModel")
MODELS |= {"quad": "QuadModel", "i2d": "ImageModel", "median": "ImageModel"}


@pytest.mark.parametrize("suffix", MODELS)
@pytest.mark.parametrize("on_assignment", [False, True])
@pytest.mark.filterwarnings("error::stdatamodels.exceptions.ValidationWarning")
def test_strict_validation(data, written, suffix, on_assignment, monkeypatch):
    monkeypatch.setenv("STRICT_VALIDATION", "true")
    strict = {"strict_validation": True, "validate_arrays": True}
    path = written[suffix]
    with datamodels.open(path, validate_on_assignment=on_assignment, **strict) as model:
        model.validate()
        assert type(model).__name__ == MODELS[suffix]
        there_and_back = model.meta.wcs.invert(*model.meta.wcs(10.0, 20.0))
        np.testing.assert_allclose(there_and_back, (10, 20), atol=0.01)
        of_references = suffix in ("psfstack", "psfalign", "quad")
        first = (data.psf if of_references else data.science)[0]
        assert model.meta.target.catalog_name == first.meta.target
        entries = [e["description"] for e in model.instance["history"]["entries"]]
        assert entries[0] == "gpucoron 9.8.7, device cpu"
        assert "parameter klip.truncate = 50" in entries
        assert any(e.startswith("input jw09001") for e in entries)


STEPS = {
    **{"crfints": "OUTLIR", "psfstack": "OUTLIR PSFSTK", "psfalign": "OUTLIR PSFSTK PSFALI"},
    **{"median": "", "psfsub": "OUTLIR KLIP", "i2d": "OUTLIR KLIP RESAMP"},
}
STATUS = {suffix: {f"S_{step}" for step in steps.split()} for suffix, steps in STEPS.items()}


@pytest.mark.parametrize("suffix", STATUS)
def test_primary_keywords(data, written, suffix):
    header = fits.getheader(written[suffix])
    provenance = data.provenance
    ours = {k for k in header if k in set().union(*STATUS.values())}
    assert ours == STATUS[suffix] and {header[k] for k in ours} <= {"COMPLETE"}
    assert header["FILENAME"] == written[suffix].name
    assert header["ASNTABLE"] == provenance.asn_table
    assert header["ASNPOOL"] == provenance.asn_pool
    assert header["GPUCORON"] == "9.8.7"
    assert header["CAL_VER"] == data.science[0].primary_header["CAL_VER"]
    assert ("R_PSFMAS" in header) == (suffix == "psfalign")


def test_inherited_keywords(data, written):
    with fits.open(written["psfsub"]) as hdus:
        before = data.science[0]
        for name in ("PRIMARY", "SCI", "ERR"):
            header = before.headers.get(name, before.primary_header)
            for keyword in set(header) - {"DATE", "FILENAME", "ASNTABLE", "ASNPOOL", ""}:
                if not keyword.startswith("NAXIS"):
                    assert hdus[name].header[keyword] == header[keyword], keyword


def test_times_are_the_products(data, written):
    n = len(data.references.data)
    for suffix in ("psfstack", "psfalign", "quad"):
        header = fits.getheader(written[suffix])
        assert (header["NINTS"], header["INTEND"]) == (n, n)
        inputs = [e.primary_header for e in data.psf]
        assert header["EXPSTART"] == min(h["EXPSTART"] for h in inputs)
        assert header["EXPEND"] == max(h["EXPEND"] for h in inputs)
        assert header["EFFEXPTM"] == pytest.approx(sum(h["EFFEXPTM"] for h in inputs), rel=1e-14)
    header = fits.getheader(written["i2d"])
    assert header["NINTS"] == sum(len(e.stack) for e in data.science)
    total = sum(e.meta.exposure_time for e in data.science)
    assert fits.getval(written["i2d"], "XPOSURE", "SCI") == pytest.approx(total, rel=1e-14)


def test_i2d_keywords(data, written):
    with fits.open(written["i2d"]) as hdus:
        primary, sci = hdus[0].header, hdus["SCI"].header
        ours = {"NDRIZ": 2, "RESWHT": "ivm", "PIXFRAC": 1.0, "PXSCLRT": 1.5}
        assert {k: primary[k] for k in ours} == ours
        areas = pytest.approx((np.deg2rad(2.6e-5) ** 2, 0.0936**2), rel=1e-12)
        assert (sci["PIXAR_SR"], sci["PIXAR_A2"]) == areas
        assert sci["S_REGION"] == grid().s_region and sci["BUNIT"] == "MJy/sr"
        assert hdus["ERR"].header["BUNIT"] == "MJy/sr"
        assert not {"CD1_1", "A_ORDER", "V2_REF", "RA_REF"} & set(sci)
        low, high = (WCS(sci).pixel_to_world(24.5, y) for y in (19, 20))
        up = low.position_angle(high).wrap_at("180d").deg
        assert sci["ROLL_REF"] - sci["V3I_YANG"] * sci["VPARITY"] == pytest.approx(up, abs=1e-3)
        assert not hdus["DQ"].data[1:].any() and hdus["DQ"].data[0, 0] == 513
        names = list(hdus["HDRTAB"].data["FILENAME"])
        assert names == [e.path.name for e in data.science]
        assert set(hdus["HDRTAB"].data["ASNTABLE"]) == {data.provenance.asn_table}


def test_i2d_tells_kernel_in_asdf(written):
    with datamodels.open(written["i2d"]) as model:
        assert model.meta.resample.kernel == "square" and model.meta.resample.fillval == "NAN"


@pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")
@pytest.mark.parametrize("suffix", MODELS)
def test_header_wcs_agrees_with_gwcs(written, suffix):
    with datamodels.open(written[suffix]) as model:
        ra, dec = model.meta.wcs(12.0, 30.0)
    header = fits.getheader(written[suffix], "SCI")
    wcs = WCS(header, naxis=2)  # a cube with SIP needs naxis=2, as every JWST cube does
    x, y = wcs.all_world2pix(ra, dec, 0)
    np.testing.assert_allclose((x, y), (12, 30), atol=0.02)


def test_skipped_steps(small, tmp_path):
    parameters = {**small.provenance.parameters, "outlier_detection.skip": True}
    provenance = dataclasses.replace(small.provenance, parameters=parameters)
    science = small.science[0]
    write_psfsub(tmp_path / "x.fits", science, science.stack, provenance)
    header = fits.getheader(tmp_path / "x.fits")
    assert header["S_OUTLIR"] == "SKIPPED" and header["S_KLIP"] == "COMPLETE"


def test_preset_jwst_keeps_first_exposures_values(shared_data, tmp_path):
    data = Set(shared_data / "nircam_small", preset="jwst")
    names = write_all(data, tmp_path)
    first = data.psf[0].primary_header
    for suffix in ("psfstack", "psfalign"):
        header = fits.getheader(names[suffix])
        assert header["NINTS"] == first["NINTS"] and header["EXPEND"] == first["EXPEND"]
    sci = fits.getheader(names["i2d"], "SCI")
    assert sci["PIXAR_SR"] == data.science[0].headers["SCI"]["PIXAR_SR"]
    assert fits.getval(names["i2d"], "NINTS") == data.science[0].primary_header["NINTS"]


def test_bare_exposure(small, tmp_path):
    """No AREA, INT_TIMES, VAR_*, ASDF; and a name, parameters and pool beyond ASCII and 72."""
    stack = small.science[0].stack.replace(var_poisson=None, var_rnoise=None, var_flat=None)
    absent = dict.fromkeys(("area", "int_times", "asdf_bytes"))
    bare = dataclasses.replace(small.science[0], headers={}, stack=stack, **absent)
    parameters = {"resample.output_wcs": "/é/" + "x" * 200}
    provenance = dataclasses.replace(small.provenance, parameters=parameters, asn_pool=None)
    write_crfints(tmp_path / "x.fits", bare, stack, provenance)
    assert [row[0] for row in layout(tmp_path / "x.fits")] == ["SCI", "ERR", "DQ"]
    with fits.open(tmp_path / "x.fits", checksum=True) as hdus:
        assert hdus["SCI"].header["BUNIT"] == hdus["ERR"].header["BUNIT"] == "MJy/sr"
        assert any("\\xe9" in line for line in hdus[0].header["HISTORY"])


def test_inputs_are_not_changed(small, tmp_path):
    science = small.science[0]
    before = science.primary_header.tostring(), science.headers["SCI"].tostring()
    arrays = [science.stack.data, science.stack.dq, science.area]
    copies = [a.copy() for a in arrays]
    for array in arrays:
        array.setflags(write=False)
    write_crfints(tmp_path / "x.fits", science, science.stack, small.provenance)
    write_i2d(tmp_path / "i.fits", small.science, resampled((40, 50)), grid(), small.provenance)
    assert before == (science.primary_header.tostring(), science.headers["SCI"].tostring())
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_no_overwrite(small, tmp_path):
    path = tmp_path / "x.fits"
    path.write_bytes(b"precious")
    science = small.science[0]
    with pytest.raises(OutputError, match="exists"):
        write_crfints(path, science, science.stack, small.provenance, overwrite=False)
    with pytest.raises(OutputError, match="exists"):
        PsfalignWriter(path, small.psf, (1, 4, 4), small.provenance, overwrite=False)
    assert path.read_bytes() == b"precious" and len(list(tmp_path.iterdir())) == 1


# ---- the jwst package reads them


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_jwst_steps_take_our_files(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("STPIPE_DISABLE_CRDS_STEPPARS", "true")
    small = Set(shared_data / "nircam_small")
    pytest.importorskip("jwst", reason="the jwst package is not installed")
    from jwst.coron.klip_step import KlipStep
    from jwst.datamodels import ModelLibrary
    from jwst.pipeline.calwebb_coron3 import to_container
    from jwst.resample import ResampleStep

    rng = np.random.default_rng(2)
    shape = small.references.data.shape
    small.references.data = rng.normal(size=shape).astype("f4")
    names = write_all(small, tmp_path)
    crfints = datamodels.open(names["crfints"])
    crfints.data = np.nan_to_num(crfints.data)
    psfsub = KlipStep.call(crfints, datamodels.open(names["psfalign"]), truncate=2)
    assert psfsub.meta.cal_step.klip == "COMPLETE"
    assert psfsub.data.shape == small.science[0].stack.shape and np.isfinite(psfsub.data).all()
    psfsub.save(tmp_path / "theirs.fits")
    with fits.open(tmp_path / "theirs.fits") as hdus:
        assert "gpucoron 9.8.7, device cpu" in list(hdus[0].header["HISTORY"])

    images = []
    for i, exposure in enumerate(small.science):
        path = tmp_path / f"{i}_psfsub.fits"
        write_psfsub(path, exposure, exposure.stack, small.provenance)
        images += list(to_container(datamodels.open(path)))
    result = ResampleStep.call(ModelLibrary(images, on_disk=False))
    assert result.meta.cal_step.resample == "COMPLETE" and result.data.shape == (148, 148)
    assert result.meta.resample.pointings == 2 and np.isfinite(result.data).sum() > 10_000
