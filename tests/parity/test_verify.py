"""The comparison itself: what it sees, what it lets pass, how the command ends."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.cli import main as cli
from gpucoron.errors import InputError, OutputError, ParameterError
from gpucoron.verify import PeerError, Report, command, compare_products, runs, verify
from gpucoron.verify.headers import EXPECTED_EXTENSIONS, EXPECTED_KEYWORDS, _same_polygon
from gpucoron.verify.run_jwst import step_parameters
from gpucoron.verify.staging import stage
from tests.helpers.tiny_sets import TinySet

NAME = "exp_c1001_psfsub.fits"
PAGE = Path(__file__).parents[2] / "docs" / "deviations.md"


def write(folder, data, name=NAME, err=None, dq=None, **keywords):
    folder.mkdir(exist_ok=True)
    hdus = fits.HDUList([fits.PrimaryHDU()])
    hdus[0].header.update({"DATE": folder.name, **keywords})
    err = np.zeros_like(data) if err is None else err
    dq = np.zeros(data.shape, np.uint32) if dq is None else dq
    hdus += [fits.ImageHDU(a, name=n) for n, a in (("SCI", data), ("ERR", err), ("DQ", dq))]
    hdus.writeto(folder / name, overwrite=True)


@pytest.fixture
def image():
    data = np.random.default_rng(3).normal(0, 10, (2, 8, 9)).astype(np.float32)
    data[0, 0, 0] = np.nan
    data.flags.writeable = False
    return data


def compared(tmp_path, ours=None, theirs=None, **both):
    """Compare files of two images, or those that are there."""
    for name, data in (("ours", ours), ("theirs", theirs)):
        if data is not None:
            write(tmp_path / name, data, **both)
    return compare_products(tmp_path / "ours", tmp_path / "theirs")


def test_equal_files_pass(tmp_path, image):
    report = compared(tmp_path, image, image)
    assert report.problems() == []
    assert all(i.same_bits and i.largest == 0 for i in report.images)
    assert [(d.keyword, bool(d.reason)) for d in report.keywords] == [("DATE", True)]


def test_measures(tmp_path, image):
    ours = np.array(image)
    ours[1, 2, 3] += np.float32(0.5)
    sci = compared(tmp_path, ours, image).images[0]
    gap = float(ours[1, 2, 3]) - float(image[1, 2, 3])
    assert (sci.different, sci.nan_mismatch, sci.values) == (1, 0, image.size)
    assert sci.largest == pytest.approx(gap)
    assert sci.rms == pytest.approx(gap / np.sqrt(image.size - 1))
    assert sci.rms_jwst == pytest.approx(float(np.sqrt(np.nanmean(image.astype(float) ** 2))))


@pytest.mark.parametrize("size, passes", [(1e-6, True), (1e-2, False)])
def test_psfsub_may_differ_by_its_tolerance(tmp_path, image, size, passes):
    ours = (image * np.float32(1 + size)).astype(np.float32)
    problems = compared(tmp_path, ours, image).problems()
    assert (problems == []) == passes
    assert passes or "SCI: rms(difference)/rms is 0.01, expected 0.0001" in problems[0]


@pytest.mark.parametrize(
    "name, change, text",
    [
        (
            "exp_c1001_crfints.fits",
            lambda value: np.nextafter(value, np.float32(np.inf)),
            "SCI is not equal bit for bit: 1 of 144 values differ",
        ),
        (NAME, lambda value: np.nan, "1 values are finite in only one of the two"),
    ],
)
def test_one_value_may_be_too_much(tmp_path, image, name, change, text):
    ours = np.array(image)
    ours[1, 4, 4] = change(ours[1, 4, 4])
    (problem,) = compared(tmp_path, ours, image, name=name).problems()
    assert text in problem


def test_err_that_is_rounding_noise_passes_but_no_other(tmp_path, image):
    write(tmp_path / "ours", image)
    write(tmp_path / "theirs", image, err=np.full_like(image, 1e-9))
    assert compared(tmp_path).problems() == []
    write(tmp_path / "theirs", image, err=np.full_like(image, 1e-2))
    (problem,) = compared(tmp_path).problems()
    assert "ERR: rms(difference)/rms is 1" in problem


def test_shape_dq_and_missing_file(tmp_path, image):
    write(tmp_path / "ours", image[:1], dq=np.ones((1, 8, 9), np.uint32))
    write(tmp_path / "theirs", image[1:])
    write(tmp_path / "theirs", image, name="exp_c1001_crfints.fits")
    problems = compared(tmp_path).problems()
    assert "exp_c1001_crfints.fits: gpucoron did not write it" in problems
    assert any("DQ is not equal bit for bit" in p for p in problems)
    write(tmp_path / "ours", image)
    problems = compared(tmp_path).problems()
    assert any("SCI has shape (2, 8, 9), jwst's has (1, 8, 9)" in p for p in problems)


def test_keywords(tmp_path, image):
    write(tmp_path / "ours", image, NINTS=3, FILTER="F410M", GPUCORON="0.1.0")
    write(tmp_path / "theirs", image, NINTS=2, FILTER="F410M", TARGNAME="X")
    report = compared(tmp_path)
    assert {d.keyword for d in report.keywords if d.reason} == {"DATE", "GPUCORON"}
    assert report.problems() == [
        f"{NAME}: PRIMARY NINTS is 3, jwst's is 2",
        f"{NAME}: PRIMARY TARGNAME is absent, jwst's is 'X'",
    ]


def test_polygon_may_start_at_any_corner():
    corners = ["150.1 -30.4", "150.2 -30.4", "150.2 -30.3"]
    text = "POLYGON ICRS  " + " ".join(corners)
    turned = "POLYGON ICRS  " + " ".join(corners[1:] + corners[:1])
    moved = turned.replace("150.1", "150.10001")
    assert _same_polygon(text, turned)
    assert not _same_polygon(text, moved)
    assert not _same_polygon(text, "CIRCLE ICRS  " + " ".join(corners))


def test_shifts_are_read_from_beside_the_products(tmp_path, image):
    name = "exp_c1001_psfalign.fits"
    table = np.zeros(4, [("sci_integration", "i4"), ("x", "f8"), ("y", "f8")])
    table["sci_integration"], table["x"] = [1, 1, 2, 2], [0.5, 0.25, 9, 9]
    compared(tmp_path, image, image, name=name)
    with fits.open(tmp_path / "ours" / name, mode="append") as hdus:
        hdus.append(fits.BinTableHDU(table, name="ALIGN"))
    shifts = {"exp": [[0.5, 0, 1], [0.25, 3e-6, 1]]}
    (tmp_path / "theirs" / "shifts.json").write_text(json.dumps(shifts))
    report = compared(tmp_path)
    (shifts,) = report.shifts
    assert (shifts.exposure, shifts.pairs) == ("exp", 2)
    assert shifts.largest == pytest.approx(3e-6)
    assert report.problems() == ["exp: shifts differ by 3e-06 px, expected 1e-06 at most"]


def test_report_is_valid_json_and_text(tmp_path, image):
    report = compared(tmp_path, image, image[:1])
    content = json.loads(report.to_json())
    assert content["images"][0]["largest"] is None
    assert content["problems"] == report.problems()
    assert any("shape" in line for line in report.lines())


def test_folder_without_products(tmp_path):
    with pytest.raises(InputError, match="holds no product, expected files such as"):
        compare_products(tmp_path, tmp_path)


# ---- the command


def test_jwst_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    assert cli.main(["verify", "asn.json", "--output-dir", str(tmp_path / "out")]) == 6
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "the jwst package is not installed" in captured.err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "require_jwst", lambda: None)
    (tmp_path / "gpucoron").mkdir()
    (tmp_path / "gpucoron" / "precious").touch()
    with pytest.raises(
        OutputError, match="holds gpucoron, which no earlier comparison has written"
    ):
        verify("asn.json", tmp_path)
    assert (tmp_path / "gpucoron" / "precious").exists()


def test_files_of_others_in_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "notes.txt")
    places = [tmp_path / name for name in command._EMPTIED]
    for _ in range(2):
        command._make(tmp_path, places)
        assert all(place.is_dir() and not any(place.iterdir()) for place in places)
        (places[0] / "product.fits").touch()
    assert (tmp_path / "link").read_text() == "precious"


def test_a_folder_with_its_inputs_is_not_emptied_and_links_are_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "require_jwst", lambda: None)
    tiny, folder = TinySet(tmp_path), tmp_path / "compared"
    folder.mkdir()
    (folder / command._MARK).touch()
    tiny.folder.rename(folder / "input")
    with pytest.raises(OutputError, match="is in the output folder"):
        verify(folder / "input" / tiny.asn.name, folder)
    assert len(list((folder / "input").iterdir())) > 5
    (folder / "report.txt").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("precious")
    command._make(folder, [])
    assert not (folder / "report.txt").exists() and (tmp_path / "precious").exists()


def test_parameters_are_checked_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "require_jwst", lambda: None)
    with pytest.raises(ParameterError, match="truncat"):
        verify("asn.json", tmp_path / "out", sets=["klip.truncat=3"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("expect, n_missing, code", [(False, 1, 0), (True, 1, 1), (True, 0, 0)])
def test_exit_code_of_expect(monkeypatch, capsys, expect, n_missing, code):
    from gpucoron.cli import verify as command

    missing = ["a: jwst did not write it"] * n_missing
    monkeypatch.setattr(command, "verify", lambda *a, **k: Report(missing=missing))
    asked = {"asn": "asn.json", "output_dir": "out", "psfmask": None, "set": [], "align": None}
    how = {"device": "cpu", "single_fft": False, "expect": expect}
    logging = {"quiet": True, "verbose": 0, "log_file": None}
    assert command.run_from_arguments(Namespace(**asked, **how, **logging)) == code
    shown = capsys.readouterr().out
    assert ("beyond the limit: a" in shown) == bool(code)
    assert ("within their limits" in shown) == (expect and not missing)


def test_what_a_failing_process_says(tmp_path, monkeypatch):
    class Process:
        returncode = 1

    def fake(command, **kwargs):
        with open(command[-1], "w") as record:
            json.dump({"error": "LinAlgError: no", "exit_code": 3}, record)
        return Process

    monkeypatch.setattr(runs.subprocess, "run", fake)
    with pytest.raises(PeerError, match=r"jwst failed: LinAlgError: no \(log: .*jwst.log\)"):
        runs.run_module("run_jwst", {}, tmp_path)
    with pytest.raises(InputError) as caught:
        runs.run_module("run_gpucoron", {}, tmp_path)
    assert caught.value.exit_code == 3


def test_parameters_that_jwst_is_given():
    given = {"align_refs.align": "each", "klip.truncate": 3, "outlier_detection.snr": "4.0"}
    assert step_parameters({**given, "resample.crval": (1.0, 2.0)}) == {
        "klip": {"truncate": 3},
        "resample": {"crval": [1.0, 2.0]},
        "outlier_detection": {"snr": "4.0 4.0"},
    }


# ---- what both are given


def test_staging_trims_references_without_pixels(tmp_path):
    source = TinySet(tmp_path)
    source.edit(source.psf[0], SCI=lambda data: data * np.array([1, np.nan])[:, None, None])
    staged = stage(source.asn, tmp_path / "staged", source.mask)
    assert staged.asn.name == source.asn.name
    assert len(staged.science) == 2
    (note,) = staged.notes
    assert "integration 2 of 2 has no usable pixel" in note
    trimmed = tmp_path / "staged" / source.psf[0].name
    assert not trimmed.is_symlink()
    with fits.open(trimmed) as hdus, fits.open(source.psf[0]) as whole:
        assert hdus[0].header["NINTS"] == 1
        for name in ("SCI", "ERR", "DQ", "VAR_RNOISE", "INT_TIMES"):
            assert (len(hdus[name].data), len(whole[name].data)) == (1, 2)
        np.testing.assert_array_equal(hdus["SCI"].data, whole["SCI"].data[:1])
        assert hdus["DQ"].data.dtype == np.uint32


def test_staging_writes_what_jwst_can_read(tmp_path):
    source = TinySet(tmp_path)
    names = []

    def change(table):
        product = table["products"][0]
        names.append(product.pop("name"))
        for member in product["members"]:
            member["expname"] = str(source.folder / member["expname"])
            member["exptype"] = member["exptype"].upper()

    source.edit_asn(change)
    asn = source.asn.rename(source.asn.with_suffix(".yaml"))
    asn.write_text(asn.read_text().replace("]", ",]"))
    staged = stage(asn, tmp_path / "staged")
    assert staged.asn.name == source.asn.name
    (made,) = json.loads(staged.asn.read_text())["products"]
    assert made["name"] == names[0]
    assert {m["exptype"] for m in made["members"]} == {"science", "psf"}
    assert all((tmp_path / "staged" / m["expname"]).exists() for m in made["members"])
    assert fits.getdata(staged.psfmask, "SCI").min() == 1
    assert "both use psfmask.fits" in staged.notes[0]


# ---- docs/deviations.md


def rows(heading):
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def shown(within):
    words = {None: "any difference", "polygon": "the same polygon"}
    return words[within] if within in words else f"{within:g}"


def test_the_page_says_what_the_comparison_lets_pass_word_for_word():
    assert rows("Header keywords") == [
        (r.products, r.hdu, r.keyword, shown(r.within), r.reason) for r in EXPECTED_KEYWORDS
    ]
    assert rows("Extensions") == list(EXPECTED_EXTENSIONS)
