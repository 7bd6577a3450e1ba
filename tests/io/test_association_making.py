"""Associations made from folders of exposures."""

import json
import shutil

import pytest
from astropy.io import fits

from gpucoron.cli import main as cli
from gpucoron.errors import AssociationError
from gpucoron.io.association import read_association
from gpucoron.io.association_making import find_exposures, make_associations
from tests.helpers.tiny_sets import TinySet

SETS = ("aumic_f444w", "nircam_small", "miri_4qpm", "awkward")


def members(path):
    """Return (expname, exptype) of the members of the only product."""
    (product,) = json.loads(path.read_text())["products"]
    return [(m["expname"], m["exptype"]) for m in product["members"]]


def made(folder, **chosen):
    """Return (target, filter, roots' last digits of science, of psf) of each, and reasons."""
    proposals, left_out = make_associations(find_exposures([folder]), **chosen)
    found = [
        (
            p.association.target,
            p.science[0].meta.filter,
            [f.path.name for f in p.science],
            [f.path.name for f in p.references],
        )
        for p in proposals
    ]
    return found, {name: reason for name, _, reason in left_out}, proposals


@pytest.mark.parametrize("name", SETS)
def test_members_are_those_of_the_published_associations(shared_data, tmp_path, capsys, name):
    folder = tmp_path / name
    folder.mkdir()
    for file in (shared_data / name).glob("*_calints.fits"):
        (folder / file.name).symlink_to(file)
    assert cli.main(["asn", str(folder), "-q"]) == 0
    path = folder / capsys.readouterr().out.strip()
    (own,) = (shared_data / name).glob("*_asn.json")
    assert members(path) == members(own)


@pytest.mark.parametrize("instrument", ["nircam", "miri-lyot"])
def test_jwst_reads_it_and_the_members_are_those_simulated(tmp_path, capsys, instrument):
    associations = pytest.importorskip("jwst.associations")
    tiny = TinySet(tmp_path, instrument)
    tiny.asn.rename(tmp_path / "own.json")
    (tmp_path / "here").mkdir()
    assert cli.main(["asn", str(tiny.folder), "-o", str(tmp_path / "here"), "-q"]) == 0
    (path,) = (tmp_path / "here").glob("*_asn.json")
    ours = [(name.removeprefix("../input/"), kind) for name, kind in members(path)]
    assert ours == members(tmp_path / "own.json")
    with open(path) as file:
        table = associations.load_asn(file)
    assert table["asn_type"] == "coron3" and table["asn_id"] == "a3001"
    assert [m.path.resolve() for m in read_association(path).products[0].used] == [
        *(p.resolve() for p in (*tiny.science, *tiny.psf))
    ]


def test_it_runs(tiny, capsys):
    tiny.asn.unlink()
    assert cli.main(["asn", str(tiny.folder)]) == 0
    out = capsys.readouterr().out
    assert "2 exposures, 5 integrations  not IS_PSF; rolls 110.0, 120.0" in out
    tiny.asn = tiny.folder / out.splitlines()[-1]
    assert tiny.command("--psfmask", tiny.mask, "--set", "klip.truncate=2", "-q") == 0
    assert len([name for name in tiny.files() if name.endswith("_a3001_psfsub.fits")]) == 2


def renamed(tiny, source, name, **changes):
    path = tiny.folder / name
    shutil.copy(source, path)
    for keyword, value in changes.items():
        fits.setval(path, keyword, value=value, ext=0)


def test_what_is_left_out_and_why(tiny):
    science, psf = tiny.science[0], tiny.psf[0]
    reasons = {
        "a_calints.fits": ({"EXP_TYPE": "NRC_TACQ"}, "target acquisition (NRC_TACQ)"),
        "b_calints.fits": ({"EXP_TYPE": "NRC_TACONFIRM"}, "target acquisition (NRC_TACONFIRM)"),
        "c_calints.fits": ({"EXP_TYPE": "NRC_IMAGE"}, "EXP_TYPE is NRC_IMAGE, expected NRC_CORON"),
        "d_calints.fits": ({"BKGDTARG": True}, "a background exposure (BKGDTARG)"),
        "e_calints.fits": (
            {"SUBARRAY": "FULL", "DETECTOR": "NRCA1"},
            "detector NRCA1 does not see the target, NRCA2 does",
        ),
    }
    for name, (changes, _) in reasons.items():
        renamed(tiny, science, name, **changes)
    renamed(tiny, psf, "f_calints.fits", FILTER="F300M")
    renamed(tiny, psf, psf.name.replace("_calints", "_cal"))
    (tiny.folder / "g_calints.fits").write_bytes(b"SIMPLE")
    (tiny.folder / "deeper").mkdir()
    renamed(tiny, psf, f"deeper/{psf.name}")
    found, why, _ = made(tiny.folder)
    assert [own[2:] for own in found] == [(names(tiny.science), names(tiny.psf))]
    for name, (_, reason) in reasons.items():
        assert why.pop(name).startswith(reason)
    assert why.pop("f_calints.fits") == (
        "a reference, but there is no target with its filter and mask"
    )
    assert why.pop("g_calints.fits").startswith("not a FITS file")
    assert why.keys() == {psf.name.replace("_calints", "_cal"), psf.name}
    assert all(reason.startswith("the same exposure as ") for reason in why.values())


def names(paths):
    return [path.name for path in paths]


def test_one_for_each_target_and_filter(tiny):
    for path in (*tiny.science, *tiny.psf):
        name = path.name.replace("jw09100", "jw09101")
        renamed(tiny, path, name, FILTER="F356W")
    other = {"TARGPROP": "OTHER", "TARGNAME": "OTHER", "TARG_RA": 10.0}
    renamed(tiny, tiny.science[0], "other_calints.fits", **other)
    renamed(tiny, tiny.psf[0], "star_calints.fits", **other | {"TARGPROP": "B", "TARGNAME": "B"})
    found, why, proposals = made(tiny.folder)
    stars = names([*tiny.psf, tiny.folder / "star_calints.fits"])
    own = proposals[0].association.target
    assert not why
    assert found == [
        (own, "F444W", names(tiny.science), stars),
        ("OTHER", "F444W", ["other_calints.fits"], stars),
        *[
            (
                own,
                "F356W",
                *(
                    [n.replace("jw09100", "jw09101") for n in names(paths)]
                    for paths in (tiny.science, tiny.psf)
                ),
            )
        ],
    ]
    assert [p.association.asn_id for p in proposals] == ["a3001", "a3002", "a3003"]
    assert any("2 reference stars, all taken: B, " in note for note in proposals[0].notes)
    chosen, why, _ = made(tiny.folder, target="Other", filter="f444w")
    assert chosen == [found[1]] and len(why) == 7


@pytest.mark.parametrize(
    "change, note",
    [
        (lambda t: [p.unlink() for p in t.psf], "without psf members the only"),
        (lambda t: t.edit(*t.science, IS_PSF=None), "IS_PSF is missing, taken as science"),
        (lambda t: t.edit(*t.psf, PROGRAM="01234"), "references of another program are taken"),
        (lambda t: t.edit(t.science[1], **{"DATE-BEG": "2024-06-01T00:00:00.0"}), "have moved"),
    ],
)
def test_what_is_odd_is_said(tiny, capsys, change, note):
    change(tiny)
    found, why, proposals = made(tiny.folder)
    assert found[0][2] == names(tiny.science) and not why
    assert [note in text for p in proposals for text in p.notes] == [True]
    assert cli.main(["asn", str(tiny.folder), "-q", "--dry-run"]) == 0
    assert note in capsys.readouterr().err


def test_a_target_is_science_whatever_is_psf_says(tiny):
    tiny.edit(IS_PSF=None)
    star = made(tiny.folder)[2][1].association.target
    found, why, _ = made(tiny.folder, target=star.lower())
    assert found == [(star, "F444W", names(tiny.psf), names(tiny.science))] and not why


@pytest.mark.parametrize(
    "words, code, message",
    [
        ("nowhere", 3, "nowhere: no such folder, expected one with _calints files"),
        ("empty", 3, "empty: no exposure found there"),
        ("input --target Vega", 3, "no exposure of target 'Vega' (found: "),
        ("input --program 1", 3, "program 09100, not 00001"),
        ("input -o input/taken.json", 5, "input/taken.json exists; expected another -o"),
        ("two -o asn.json", 2, "there are 2 associations; expected a folder that exists"),
        ("references", 3, "all are of reference stars (IS_PSF), expected a target"),
        ("", 2, "DIR (see gpucoron asn --help)"),
    ],
)
def test_errors_are_one_line(tiny, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tiny.folder.parent)
    for name in ("empty", "two", "references"):
        (tiny.folder.parent / name).mkdir()
    (tiny.folder / "taken.json").touch()
    for path in tiny.psf:
        shutil.copy(path, "references")
    shutil.copy(tiny.science[0], "two")
    renamed(tiny, tiny.science[0], "../two/x_calints.fits", FILTER="F356W")
    assert cli.main(["asn", *words.split()]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gpucoron: error: ") and message in line


def test_associations_without_references_are_read_where_none_are_needed(tiny):
    tiny.members(lambda name: name in names(tiny.science))
    with pytest.raises(AssociationError, match="without which no PSF can be subtracted"):
        read_association(tiny.asn)
    (product,) = read_association(tiny.asn, need_references=False).products
    assert names([m.path for m in product.science]) == names(tiny.science) and not product.psf

    def both(content):
        own = content["products"][0]["members"]
        own += [{**m, "exptype": "psf"} for m in own]

    tiny.edit_asn(both)
    with pytest.raises(AssociationError, match="cannot be subtracted from itself"):
        read_association(tiny.asn)
    (product,) = read_association(tiny.asn, need_references=False).products
    assert [m.path for m in product.science] == [m.path for m in product.psf] != []
