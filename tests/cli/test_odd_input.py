"""Odd input through the command line: a result, and a warning where something is amiss."""

import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
from astropy.io import fits

from tests.helpers.spoil import (
    IMAGES,
    INF,
    NAN,
    OPTIONS,
    VARIANCES,
    both,
    edit,
    given,
    named,
    only,
    prepared,
    put,
    read,
)
from tests.helpers.tiny_sets import N_REFERENCES, complete, one_thread  # noqa: F401

Odd = namedtuple("Odd", "prepare warnings check")
ODD_CASES = []


def odd(name, prepare, *warnings, check=None):
    """Register a case: prepare(tiny) does something odd; exactly these warnings are expected."""
    ODD_CASES.append(pytest.param(Odd(prepare, warnings, check), id=name))


def whole(tiny):
    """Expect every pixel of psfsub, and most of i2d, to have a value."""
    for product in read(tiny, "psfsub").values():
        assert np.isfinite(product["SCI"]).all() and np.isfinite(product["ERR"]).all()
    (i2d,) = read(tiny, "i2d").values()
    known = np.isfinite(i2d["SCI"])
    assert known.mean() > 0.7 and (np.isfinite(i2d["ERR"]) == known).all()
    assert np.nanstd(i2d["SCI"]) < 60


@pytest.mark.parametrize("case", ODD_CASES)
@pytest.mark.slow
def test_results(case, tiny, capsys):
    assert tiny.command(*OPTIONS, *prepared(case, tiny)) == 0
    out, err = capsys.readouterr()
    # images of 36 x 40 pixels are aligned within 0.1 px only where the wavefronts differ
    usual = re.compile("inconsistent|images? could")
    lines = (line for line in err.splitlines() if not usual.search(line))
    warned = [line.partition("warning: ")[2] for line in lines]
    assert len(warned) == len(case.warnings), err
    for text, line in zip(case.warnings, warned, strict=True):
        assert re.search(text, line), f"{text!r} is not in {line!r}"
    (case.check or whole)(tiny)


def exptype_in_upper_case(association):
    for member in association["products"][0]["members"]:
        member["exptype"] = member["exptype"].upper()


def background(association):
    member = {"expname": "sky_calints.fits", "exptype": "background"}
    association["products"][0]["members"].append(member)


def no_name(association):
    del association["products"][0]["name"]


odd("exptype in upper case", lambda tiny: tiny.edit_asn(exptype_in_upper_case))
odd(
    "background member",
    lambda tiny: tiny.edit_asn(background),
    r"ignoring sky_calints.fits \(background\): neither science nor psf",
)
odd(
    "product without a name",
    lambda tiny: tiny.edit_asn(no_name),
    r"product 1 has no name; using the standard one, jw09100-c1001_t001_nircam_f444w-maskrnd-",
)


def copied(kind):
    """List a copy of the first exposure of a kind as another reference."""

    def prepare(tiny):
        copy = tiny.folder / "copy_calints.fits"
        shutil.copy(named(tiny, f"{kind}0")[0], copy)
        member = {"expname": copy.name, "exptype": "psf"}
        tiny.edit_asn(lambda association: association["products"][0]["members"].append(member))

    return prepare


SAME_IMAGE = r"copy_calints.fits \(psf\) begins with the same image as jw0910000{}\S+ \({}\): "
odd(
    "science copied as a reference",
    copied("sci"),
    SAME_IMAGE.format(1, "science") + "the target is subtracted from itself",
    check=lambda tiny: None,
)
odd("a reference copied", copied("psf"), SAME_IMAGE.format(3, "psf") + "it counts twice")
names = {"CORONMSK": "MASK335R", "DETECTOR": "NRCA5", "SUBARRAY": " n/a", "PUPIL": "ANY"}
odd("keywords in another spelling", edit("psf", **names, BUNIT="MJy sr-1"))
odd(
    "a reference from elsewhere on the detector",
    edit("psf1", SUBSTRT1=1),
    r"the subarray's corner \(SUBSTRT1, SUBSTRT2\) is \(1, \d+\), but jw09100001001.* has \(\d+, ",
)


def rolls_as_references(association):
    """Let each science exposure be the reference of the other, in a product of its own."""
    rolls = [m["expname"] for m in association["products"][0]["members"][:2]]
    association["products"] = [
        {"name": roll[:13], "members": [{"expname": roll, "exptype": "science"}]} for roll in rolls
    ]
    for product, other in zip(association["products"], rolls[::-1], strict=True):
        product["members"].append({"expname": other, "exptype": "psf"})


text = "klip.truncate is 3, and there are {} reference images: "
odd(
    "rolls that are references of each other",
    lambda tiny: tiny.edit_asn(rolls_as_references),
    text.format(2),
    check=lambda tiny: [complete(tiny.out / f"jw0910000{i}001_i2d.fits") for i in (1, 2)],
)
odd(
    "one reference integration",
    only("sci", "psf1"),
    "klip.truncate is 3, and there is 1 reference image: ",
    "the star's position is not measured, .* no integration could be registered",
    "i2d is combined by the exposures' GWCSs, not about the star",
    "PSF subtraction leaves 8[67]% of the rms of jw09100001001_03108_00001_nrcalong within",
)


def errors_all_the_same(tiny):
    whole(tiny)
    for product in read(tiny, "psfsub").values():
        assert (product["ERR"] > 0).all()


def two_planes(tiny):
    whole(tiny)
    assert [len(p["SCI"]) for p in read(tiny, "psfsub").values()] == [1, 2]


def four_references(tiny):
    whole(tiny)
    (stack,) = read(tiny, "psfstack").values()
    assert len(stack["SCI"]) == sum(N_REFERENCES) - 1


def first_plane_missing(tiny):
    first = next(iter(read(tiny, "psfsub").values()))
    assert np.isnan(first["SCI"][0]).all() and np.isnan(first["ERR"][0]).all()
    assert np.isfinite(first["SCI"][1:]).all() and np.isfinite(first["ERR"][1:]).all()
    assert np.all(first["DQ"][0] & 1)
    (i2d,) = read(tiny, "i2d").values()
    assert np.isfinite(i2d["SCI"]).mean() > 0.7 and not (i2d["CON"] & 1).any()


odd(
    "fewer references than truncate",
    given("--set klip.truncate=9"),
    "klip.truncate is 9, and there are 5 reference images: all of their KL modes are used",
    check=errors_all_the_same,
)
odd(
    "one integration and a cal image",
    both(
        edit("sci0", **dict.fromkeys(IMAGES, lambda a: a[:1])),
        edit("psf0", **dict.fromkeys(IMAGES, lambda a: a[0])),
    ),
    check=two_planes,
)
for name, prepare, number in (
    ("nan", edit("psf0", SCI=put(NAN, 0)), 1),
    ("inf", edit("psf0", SCI=put(INF, 0)), 1),
    ("flagged", edit("psf1", DQ=lambda a: a | 1), 2),
):
    exposure = f"jw09100003001_0310a_0000{number}_nrcalong"
    text = f"reference without a usable pixel left out: {exposure}, integration 1"
    odd(f"one reference integration {name}", prepare, text, check=four_references)
missing = edit("sci0", SCI=put(NAN, 0))
for name, prepare in (("", missing), (" align first", both(missing, given("--align first")))):
    text = "jw09100001001_03108_00001_nrcalong: no usable pixel in integration 1, which will be NaN"
    odd(f"first science integration nan{name}", prepare, text, check=first_plane_missing)
odd("inf in science", edit("sci0", SCI=put(-INF, 0, 5, 6)))
odd("inf in a reference", edit("psf0", SCI=put(INF, 0, 5, 6)))


def flagged(tiny):
    whole(tiny)
    second = list(read(tiny, "psfsub").values())[1]
    assert second["DQ"][0, 5, 6] & 1 and not second["DQ"][1, 5, 6] & 1


odd(
    "inf in one of two integrations",
    edit("sci1", SCI=put(INF, 0, 5, 6), DQ=put(0, slice(None), 5, 6)),
    check=flagged,
)
odd(
    "inf in err and variances",
    edit(ERR=put(INF, 0, 5, 6), VAR_RNOISE=put(INF, 0, 7, 6), VAR_POISSON=put(INF, 0, 8, 6)),
)
for name, change in (("no variances", None), ("empty variances", lambda a: None)):
    text = "resample: 2 of 2 exposures without VAR_RNOISE; the weight of their pixels is 1"
    odd(name, edit(**dict.fromkeys(VARIANCES, change)), text)


def like_sane_weights(tiny):
    """Expect what the exposures would give with the VAR_RNOISE that they had."""
    whole(tiny)
    (i2d,) = read(tiny, "i2d").values()
    assert np.isfinite(i2d["WHT"]).all() and (i2d["WHT"] >= 0).all()
    assert np.bitwise_or.reduce(i2d["CON"], axis=None) == 0b11111


def weights(which, value, *index):
    return edit(which, VAR_RNOISE=put(value, *index))


for value, is_what in ((0, "0"), (-1, "negative"), (INF, "infinite"), (1e-40, "below 1.2e-38")):
    odd(
        f"read noise {is_what} in all science exposures",
        weights("sci", value),
        f"00001_.*, .*0002001_.*: VAR_RNOISE is {is_what} in every pixel; it is left out",
        "resample: 2 of 2 exposures without VAR_RNOISE; the weight of their pixels is 1",
        check=like_sane_weights,
    )
first = "jw09100001001_03108_00001_nrcalong"
odd(
    "read noise nan in one exposure",
    weights("sci0", NAN),
    f"{first}.*: VAR_RNOISE is NaN in every pixel; it is left out",
    f"1 of 2 exposures without VAR_RNOISE; the weight .* is the median of the others' .{first}",
    check=like_sane_weights,
)
odd(
    "read noise negative in an integration",
    weights("sci1", -1, 0),
    "2001_.*: VAR_RNOISE is not above 0, or infinite, in 1344 of 2688 good pixels; their weight is",
)
times = "have .* times the weight of the other exposures'"
odd(
    "read noise too small in one exposure",
    weights("sci0", 1e-30),
    f"{first}_calints.fits: its pixels {times}.*hardly anything of these",
    f"jw09100002001.*: its pixels {times}.*hardly anything of it",
)
for value, is_what in ((0, "0"), (NAN, "NaN"), (-1, "negative")):
    text = f"3_nrcalong_calints.fits: ERR is {is_what} in every pixel; it is not used"
    unknown = [f"jw0910000{k}.*: the noise of 100 % of the pixels.*is not known" for k in (1, 2)]
    odd(f"err {is_what}", edit(ERR=put(value)), text, *unknown)
odd("flat nan", edit(VAR_FLAT=put(NAN)), "0003_nrcalong.*: VAR_FLAT is NaN in every pixel; it is l")
small = edit("sci0", ERR=lambda a: a * 1e-6, SCI=lambda a: a + np.random.default_rng(0).normal(a))
odd(
    "err too small",
    small,
    f"{first}.*: outlier_detection flagged .* pixels",
    f"only 31.1% of the pixels of {first} within the psfmask are good",
    check=lambda tiny: 0,
)

odd(
    "no dq",
    both(edit(SCI=np.nan_to_num), edit(DQ=None)),
    *[
        "has no DQ data; taking all pixels as good",
        "ERR, VAR_POISSON, VAR_RNOISE, VAR_FLAT are NaN in .* good pixels; they are not used",
    ]
    * 5,
)
text = "jw0910000{}001.*no polygon in S_REGION; its footprint is taken from the GWCS"
odd("no s region", edit(S_REGION=None), text.format(1), text.format(2))
odd(
    "an S_REGION elsewhere",
    edit("sci1", S_REGION="POLYGON ICRS  10.0 9.0 10.0 9.1 10.1 9.1 10.1 9.0"),
    "jw09100002001.*S_REGION is .* px from the outline of the GWCS; the output .* by the GWCS",
)
odd("no wcs in the references", edit("psf", ASDF=None))
odd(
    "quirks of real files: ERR in float64, edges of NaN without a flag, other INT_TIMES or none",
    both(
        edit(
            ERR=lambda a: a.astype("f8"),
            SCI=lambda a: put(NAN, ..., slice(0, 2))(put(NAN, slice(None), 0)(a)),
        ),
        edit("sci0", INT_TIMES=lambda t: np.concatenate([t] * 5)),
        edit("psf0", INT_TIMES=None),
        edit("psf1", AREA=None),
    ),
)
constant = edit("psf1", SCI=put(0.0))
odd(
    "a constant reference",
    constant,
    "VAR_FLAT are NaN in 38 of 1382",
)


def built_in(tiny):
    whole(tiny)
    for path in tiny.out.glob("*_psfalign.fits"):
        assert fits.getval(path, "R_PSFMAS") == "N/A"


odd("nothing odd, no psfmask", lambda tiny: None, check=built_in)


def test_no_psfmask_is_logged(tiny, capsys, monkeypatch):
    monkeypatch.delenv("CRDS_PATH", raising=False)
    assert tiny.command("--save", "psfsub") == 0
    err = capsys.readouterr().err
    assert re.search("psfmask: none given and .*; built in: all ones, every pixel counts", err)
