"""``gpucoron info`` of associations, folders and files."""

import re

import pytest
from astropy.io import fits

from gpucoron.cli import main as cli
from tests.helpers.tiny_sets import NAME


def shown(capsys, *words):
    """Return the lines of ``gpucoron info``, which must succeed and fit 100 columns."""
    assert cli.main(["info", *map(str, words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    return lines


@pytest.mark.parametrize(
    "name, first, last",
    [
        (
            "nircam_small",
            r"sci +SCISTAR +100.0 +2023-02-25 06:00 +3 +321 +0 0 .* jw09001002001_03108_00001",
            "6 science and 6 reference integrations of 128 x 128 pixels: 12 images to register, 36",
        ),
        (
            "miri_4qpm",
            r"sci +SCISTAR +100.0 +2023-02-25 06:00 +4 +96 +0 0 +0.0 0.0 +jw09001004001_04101",
            "8 science and 15 reference integrations of 224 x 288 pixels: 23 images to register",
        ),
        (
            "aumic_f444w",
            r"sci +V-AU-MIC +63.8 +2022-10-03 05:53 +1 +1759 +0 0 +far +jw01184001001_03106",
            "2 science and 6 reference integrations of 320 x 320 pixels: 8 images to register, 12",
        ),
    ],
)
def test_members_are_shown_alike_for_an_association_and_its_folder(
    shared_data, capsys, name, first, last
):
    (asn,) = (shared_data / name).glob("*_asn.json")
    of_file, of_folder = shown(capsys, asn), shown(capsys, asn.parent)
    for lines in (of_file, of_folder):
        assert any(re.search(first, line) for line in lines)
        assert any(last in line for line in lines)
    assert of_file[4:] == of_folder[3:]


def test_dithers_and_the_star_are_those_simulated(tiny, capsys):
    rows = [line.split() for line in shown(capsys, tiny.asn) if line.startswith("  psf")]
    headers = [fits.getheader(path) for path in tiny.psf]
    shown_there = [tuple(map(float, row[-5:-3])) for row in rows]
    assert shown_there == [
        (round(1000 * h["XOFFSET"]), round(1000 * h["YOFFSET"])) for h in headers
    ]


@pytest.mark.parametrize(
    "change, note",
    [
        (lambda t: t.members(lambda n: n in names(t.science)), "without psf members the only"),
        (lambda t: t.edit(t.psf[0], FILTER="F356W"), "FILTER is F356W, but"),
        (lambda t: t.edit(t.psf[0], IS_PSF=False), "is psf, but its IS_PSF is false"),
        (
            lambda t: t.edit(t.science[1], TARGPROP="B", TARGNAME="B", TARG_RA=1.0),
            "is science of B, but ",
        ),
        (lambda t: t.psf[0].unlink(), "no such file"),
        (lambda t: t.edit_asn(also("science", "psf")), "is science and psf: it is a reference"),
        (lambda t: t.edit_asn(also("science", "target_acq")), "target_acq, which is not used"),
    ],
)
def test_what_is_odd_is_a_note(tiny, capsys, change, note):
    change(tiny)
    text = " ".join(" ".join(shown(capsys, tiny.asn)).split())
    assert "note: " in text and note in text


def names(paths):
    return [path.name for path in paths]


def also(exptype, other):
    """Return a change of an association: its first member of a type is a member of another too."""

    def change(content):
        members = content["products"][0]["members"]
        first = next(m for m in members if m["exptype"] == exptype)
        members.append({**first, "exptype": other})

    return change


def test_files(tiny, capsys):
    text = "\n".join(shown(capsys, tiny.science[0]))
    ny, nx = fits.getdata(tiny.science[0]).shape[1:]
    assert re.search(rf"SCI +3x{ny}x{nx} +float32 +MJy/sr\n", text)
    assert "EXP_TYPE" not in text and "exposure type      NRC_CORON" in text
    words = ("--psfmask", tiny.mask, "--set", "klip.truncate=2", "-q", "--no-report")
    assert tiny.command(*words) == 0
    capsys.readouterr()
    text = "\n".join(shown(capsys, tiny.out / f"{NAME}_i2d.fits"))
    assert "klip (COMPLETE), resample (COMPLETE)" in text and "star x, y" in text
    psfalign = next(tiny.out.glob("*_psfalign.fits"))
    assert re.search(rf"SCI +3x5x{ny}x{nx} +float32", "\n".join(shown(capsys, psfalign)))


@pytest.mark.parametrize(
    "content, message", [("{", "x: not valid JSON"), ("SIMPLE", "x.fits: not a FITS file")]
)
def test_what_is_neither_is_an_error(tmp_path, capsys, content, message):
    path = tmp_path / message.partition(":")[0]
    path.write_text(content)
    assert cli.main(["info", str(path)]) == 3
    assert message in capsys.readouterr().err
