"""Members that cannot be used: found before any work, or left out and named."""

import os

import numpy as np
import pytest
from astropy.io import fits

import gpucoron
from gpucoron.errors import ExposureError, InputError, MaskError, OutputError
from tests.helpers.tiny_sets import one_thread  # noqa: F401

pytestmark = pytest.mark.slow

OPTIONS = {"device": "cpu", "klip_truncate": 2}


def run(tiny, **more):
    return gpucoron.run(tiny.asn, **OPTIONS, **more)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-9000])


def flip(path):
    """Change one byte of SCI, as a bad disk does."""
    with fits.open(path) as hdus:
        place = hdus["SCI"].fileinfo()["datLoc"] + hdus["SCI"].data.nbytes // 2
    put(path, place, lambda byte: byte ^ 1)


def put(path, place, change):
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] = change(content[place])
    path.write_bytes(content)


def sealed(*paths):
    """Give files the checksums of the FITS standard."""
    for path in paths:
        with fits.open(path, memmap=False) as hdus:
            hdus.writeto(path, overwrite=True, checksum=True)


def sealed_and_flipped(tiny, path):
    sealed(path)
    flip(path)


def edit(**changes):
    return lambda tiny, path: tiny.edit(path, **changes)


def narrow(array):
    return array[..., 1:]


ARRAYS = "SCI ERR DQ AREA VAR_POISSON VAR_RNOISE VAR_FLAT".split()
BAD = {
    "missing": (lambda tiny, p: p.unlink(), "no such file"),
    "empty": (lambda tiny, p: p.write_bytes(b""), "not a FITS file: is empty"),
    "cut short": (lambda tiny, p: shorten(p), "is cut short"),
    "a folder": (lambda tiny, p: (p.unlink(), p.mkdir()), "is a folder"),
    "a pipe": (lambda tiny, p: (p.unlink(), os.mkfifo(p)), "is a pipe"),
    "no SCI": (edit(SCI=None), "has no SCI extension"),
    "no ERR": (edit(ERR=None), "has no ERR data"),
    "DQ of another shape": (edit(DQ=narrow), "DQ has shape"),
    "another filter": (edit(FILTER="F335M"), "FILTER is F335M, but"),
    "another shape": (edit(**dict.fromkeys(ARRAYS, narrow)), "the image shape"),
    "all NaN": (edit(SCI=lambda a: a * np.nan), "no integration has a us"),
    "all flagged": (edit(DQ=lambda a: a | 1), "no integration has a us"),
    "damaged": (sealed_and_flipped, "the data of SCI do not go with the checksum in its header"),
}
BAD_SCIENCE = {
    "no WCS": (edit(ASDF=None, CTYPE1=None), "no ASDF extension"),
    "points elsewhere": (edit(ASDF=None, CRVAL2=-30.5), "arcmin away from"),
    "an endless outline": (edit(ASDF=None, CD1_1=1.0), "its outline"),
}
# the first science exposure is not what all others must agree with
FIRST = ("another filter", "another shape", "missing")
CASES = [("science", name, 1) for name in BAD | BAD_SCIENCE] + [("psf", name, 1) for name in BAD]
CASES += [("science", name, 0) for name in FIRST]


@pytest.mark.parametrize("kind, name, number", CASES)
def test_a_bad_member_is_left_out(kind, name, number, tiny, capsys):
    spoil, reason = (BAD | BAD_SCIENCE)[name]
    path = getattr(tiny, kind)[number]
    spoil(tiny, path)
    code = tiny.command("--skip-bad", "--set", "klip.truncate=2", "--save", "crfints,i2d")
    err = capsys.readouterr().err
    assert code == 0, err
    warning = f"{path.name} ({kind}) is left out: "
    assert err.count(warning) == 1 and reason in err
    assert str(path.parent) not in err.split(warning)[1].split("\n")[0]
    names = tiny.files()
    assert not [n for n in names if path.name.removesuffix("_calints.fits") in n]
    assert len([n for n in names if "crfints" in n]) == 4
    (i2d,) = (tiny.out / n for n in names if n.endswith("i2d.fits"))
    assert path.name not in str(fits.getheader(i2d)["HISTORY"])


@pytest.mark.parametrize("name", ["damaged", "all NaN", "cut short"])
def test_without_the_option_the_run_refuses(name, tiny):
    BAD[name][0](tiny, tiny.science[1])
    with pytest.raises(ExposureError, match=BAD[name][1]) as caught:
        run(tiny, output_dir=tiny.out)
    assert tiny.science[1].name in str(caught.value) and tiny.files() == []


def test_the_result_names_what_was_left_out(tiny):
    shorten(tiny.psf[2])
    tiny.edit(tiny.science[0], FILTER="F335M")
    product = run(tiny, skip_bad=True, keep=["i2d"]).product
    assert [(m.expname, m.exptype) for m in product.left_out] == [
        (tiny.psf[2].name, "psf"),
        (tiny.science[0].name, "science"),
    ]
    assert product.left_out[0].reason.startswith("is cut short")
    ignored = (tiny.psf[2].name, f"psf, left out: {product.left_out[0].reason}")
    assert ignored in product.record.ignored


def test_the_same_as_without_the_bad_member(tiny):
    shorten(tiny.psf[1])
    skipped = run(tiny, skip_bad=True).product
    tiny.members(lambda name: name != tiny.psf[1].name)
    without = run(tiny).product
    assert not without.left_out
    np.testing.assert_array_equal(skipped.i2d.data, without.i2d.data)


@pytest.mark.parametrize("kind", ["science", "psf"])
def test_too_few_left(kind, tiny):
    for path in getattr(tiny, kind):
        shorten(path)
    message = f"no {kind} member can be used, expected at least one "
    with pytest.raises(InputError, match=message + r"\(.*is cut short.*; .*is cut short"):
        run(tiny, skip_bad=True, output_dir=tiny.out)
    assert tiny.files() == []


def test_science_and_references_that_do_not_go_together(tiny):
    tiny.edit(*tiny.science, FILTER="F335M")
    with pytest.raises(InputError, match="no science member can be used.*FILTER is F335M"):
        run(tiny, skip_bad=True)


# ---- checksums
def test_right_checksums_pass(tiny):
    sealed(*tiny.science, *tiny.psf, tiny.mask)
    assert not run(tiny, psfmask=tiny.mask, keep=["i2d"]).warnings


def test_damage_passes_where_nobody_looks(tiny):
    sealed_and_flipped(tiny, tiny.psf[0])
    run(tiny, checksums=False, keep=["i2d"])
    assert tiny.command("--no-checksums", "--save", "i2d", "--set", "klip.truncate=2") == 0


def test_a_damaged_psfmask(tiny):
    sealed_and_flipped(tiny, tiny.mask)
    with pytest.raises(MaskError, match="psfmask.fits: the data of SCI do not go with the check"):
        run(tiny, psfmask=tiny.mask)


def test_an_edited_header_is_a_warning(tiny):
    sealed(tiny.psf[0])
    place = tiny.psf[0].read_bytes().index(b"EXTNAME = 'SCI") + 60
    put(tiny.psf[0], place, lambda byte: ord("x"))
    assert run(tiny, keep=["i2d"]).warnings[:1] == (
        f"{tiny.psf[0].name}: the header of SCI was changed after its CHECKSUM was made",
    )


def test_damage_in_any_extension(tiny):
    sealed(tiny.science[1])
    with fits.open(tiny.science[1]) as hdus:
        places = {h.name: h.fileinfo()["datLoc"] + 40 for h in hdus if h.data is not None}
    for name, place in places.items():
        put(tiny.science[1], place, lambda byte: byte ^ 16)
        with pytest.raises(ExposureError, match=f"the data of {name} do not go with"):
            run(tiny)
        put(tiny.science[1], place, lambda byte: byte ^ 16)


# ---- products and inputs
def test_a_product_never_replaces_an_input(tiny):
    name = "abc_i2d.fits"
    tiny.psf[0].rename(tiny.folder / name)

    def change(content):
        content["products"][0]["name"] = "abc"
        for member in content["products"][0]["members"]:
            if member["expname"] == tiny.psf[0].name:
                member["expname"] = name

    tiny.edit_asn(change)
    before = tiny.sums()
    with pytest.raises(OutputError, match="abc_i2d.fits would replace an input of that name"):
        run(tiny, output_dir=tiny.folder)
    assert tiny.sums() == before
