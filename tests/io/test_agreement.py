"""What must agree among the exposures of a product, and keywords that mean the same."""

from types import SimpleNamespace

import numpy as np
import pytest

from gpucoron import io
from gpucoron.errors import ExposureError
from gpucoron.io.agreement import same_name, same_unit, warn_of_copies, warn_of_differences
from gpucoron.io.exposures import ExposureMeta
from tests.helpers.makers import arrays, make_calints

OPTICS = {"instrument": "NIRCAM", "filter": "F444W", "pupil": "MASKRND", "coronmsk": "MASKA335R"}
OPTICS |= {"subarray": "SUB320A335R", "program": "01184", "target": "V* AU Mic"}


def fake(name, shape=(3, 8, 7), exptype="science", **keywords):
    found = ExposureMeta(
        **OPTICS | {"bunit": "MJy/sr", "pixar_a2": 0.0039, "detector": "NRCALONG"} | keywords
    )
    path = SimpleNamespace(name=name)
    return SimpleNamespace(path=path, meta=found, shape=shape, exptype=exptype, headers={})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"instrument": "MIRI"}, "INSTRUME is MIRI, but a.fits has NIRCAM"),
        ({"detector": "NRCBLONG"}, "DETECTOR is NRCBLONG, but a.fits has NRCALONG"),
        ({"filter": "F410M"}, "FILTER is F410M, but a.fits has F444W"),
        ({"pupil": "MASKBAR"}, "PUPIL is MASKBAR, but a.fits has MASKRND"),
        ({"coronmsk": "MASKA430R"}, "CORONMSK is MASKA430R, but a.fits has MASKA335R"),
        ({"subarray": "FULL"}, "SUBARRAY is FULL, but a.fits has SUB320A335R"),
        ({"bunit": "DN/s"}, "BUNIT is DN/s, but a.fits has MJy/sr"),
        ({"pixar_a2": 0.0041}, "PIXAR_A2 (arcsec2) is 0.0041, but a.fits has 0.0039"),
        ({"shape": (3, 8, 8)}, "the image shape (ny, nx) is (8, 8), but a.fits has (8, 7)"),
    ],
)
def test_members_that_differ(change, expected):
    with pytest.raises(ExposureError) as caught:
        io.check_members([fake("a.fits"), fake("b.fits"), fake("c.fits", **change)])
    assert str(caught.value) == f"c.fits: {expected}; members of one product must agree"


def test_members_that_may_differ():
    others = [fake("b.fits", shape=(1, 8, 7)), fake("c.fits", pixar_a2=0.003902)]
    others.append(fake("d.fits", bunit="mjy/sr", target="other"))
    others.append(fake("e.fits", pixar_a2=None, filter=None))
    for members in ([], [fake("a.fits")], [fake("a.fits"), *others]):
        io.check_members(members)
    others = [fake("f.fits", bunit="MJy sr-1", coronmsk="MASK335R", pixar_sr=1.0)]
    others.append(fake("g.fits", subarray="MASKA335R", exptype="psf", pixar_a2=0.0041))
    io.check_members([fake("a.fits", pixar_sr=2.0), *others])


def test_the_first_may_lack_what_others_differ_in():
    bare, one, other = fake("a.fits", coronmsk=None), fake("b.fits"), fake("c.fits")
    io.check_members([bare, one, other])
    other = fake("c.fits", coronmsk="MASKA210R")
    with pytest.raises(
        ExposureError, match=r"c\.fits: CORONMSK is MASKA210R, but b\.fits has MASK"
    ):
        io.check_members([bare, one, other])


SAME_NAMES = [
    ("MASKA335R", "MASK335R", "maska335r", "335R"),
    ("MASKALWB", "MASKLWB", "MASK_LWB"),
    ("4QPM_1065", "4QPM1065", "FQPM1065", "MASK1065"),
    ("LYOT_2300", "LYOT2300", "LYOT", "MASKLYOT"),
    ("SUB320A335R", "SUB320A335R", "MASKA335R"),
    ("NRCALONG", "NRCA5", "nrcalong"),
    ("F444W", "", "NONE", "n/a", "Unknown", "ANY", " "),
]
OTHER_NAMES = [
    ("MASKA335R", "MASKB335R"),
    ("MASKA335R", "MASKA430R"),
    ("MASK335R", "MASKLWB"),
    ("4QPM_1065", "4QPM_1140"),
    ("LYOT_2300", "4QPM_1550"),
    ("SUB320A335R", "SUB640A335R"),
    ("SUB320A335R", "SUB320B335R"),
    ("SUB320", "SUB640"),
    ("NRCALONG", "NRCBLONG"),
    ("F444W", "F410M"),
]


@pytest.mark.parametrize("names", SAME_NAMES)
def test_names_that_mean_the_same(names):
    for other in names[1:]:
        assert same_name(names[0], other) == same_name(other, names[0]) is True


@pytest.mark.parametrize("names", OTHER_NAMES)
def test_names_that_do_not(names):
    assert not same_name(*names) and not same_name(*names[::-1])


@pytest.mark.parametrize(
    ("unit", "same", "others"),
    [
        ("MJy/sr", ["MJy sr-1", "MJy / sr", "MJy.sr^-1", "MJy/steradian", "MJY/SR", "mjy/sr"], []),
        ("MJy/sr", ["1e6 Jy/sr", "N/A", ""], ["mJy/sr", "Jy/sr", "uJy/arcsec2", "MJy", "DN/s"]),
        ("DN/s", ["DN s-1", "dn/s", "DN/sec"], ["DN", "electron/s", "MJy/sr"]),
        ("electron/s", ["ELECTRONS/S", "electrons / s"], ["DN/s", "10**999999999 electron/s"]),
        ("e-/pix", ["E-/PIX"], ["e-/s"]),
    ],
)
def test_units(unit, same, others):
    assert [u for u in [*same, *others] if same_unit(unit, u)] == same
    assert [u for u in [*same, *others] if same_unit(u, unit)] == same


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"corner_x": 495},
            "the subarray's corner (SUBSTRT1, SUBSTRT2) is (495, 1502), but a.fits ",
        ),
        ({"pixar_a2": 0.00393}, "PIXAR_A2 (arcsec2) is 0.00393, but a.fits has 0.0039; "),
        ({"pixar_sr": 9.3e-14}, "PIXAR_SR (sr) is 9.3e-14, but a.fits has 9.2e-14; "),
        ({"bunit": "mjy/sr"}, "BUNIT is mjy/sr, but a.fits has MJy/sr; taken for the same unit"),
        ({"corner_x": None, "bunit": "MJy sr-1", "pixar_a2": 0.003902, "coronmsk": None}, ""),
    ],
)
def test_small_differences_are_warned_of(change, expected, caplog):
    common = {"corner_x": 492, "corner_y": 1502, "pixar_sr": 9.2e-14, "exptype": "psf"}
    members = [fake("a.fits", **common), fake("b.fits", **common | change)]
    io.check_members(members)
    warn_of_differences(members)
    assert caplog.text.count("WARNING") == bool(expected)
    assert (f"b.fits: {expected}" if expected else "") in caplog.text


def test_errors_in_another_unit(caplog):
    member = fake("a.fits")
    for unit, warnings in (("MJy sr-1", 0), ("DN/s", 1)):
        member.headers["ERR"] = {"BUNIT": unit}
        warn_of_differences([member])
        assert caplog.text.count("WARNING") == warnings
    assert "a.fits: BUNIT of ERR is DN/s, but SCI has MJy/sr" in caplog.text


@pytest.mark.parametrize("nothing", ["NONE", "N/A", "Unknown", "ANY  ", "", "   "])
def test_keywords_that_say_nothing(tmp_path, nothing):
    names = "DETECTOR CHANNEL FILTER PUPIL CORONMSK SUBARRAY SUBSTRT1 TARGNAME TMEASURE".split()
    sci = dict.fromkeys(["BUNIT", "PIXAR_A2", "S_REGION", "XPOSURE"], nothing)
    path = make_calints(tmp_path / "a.fits", primary=dict.fromkeys(names, nothing), sci=sci)
    meta = io.read_meta(path)
    for name in "detector channel filter pupil coronmsk subarray corner_x target".split():
        assert getattr(meta, name) is None
    for name in "bunit pixar_a2 s_region exposure_time measurement_time".split():
        assert getattr(meta, name) is None


CONSTANT = np.zeros((6, 5), np.float32)


@pytest.mark.parametrize(
    ("change", "warned"),
    [
        ({}, True),
        ({"primary": {"EXPSTART": None}}, True),
        ({"primary": {"EXPSTART": 60000.5}}, False),
        ({"replace": {"SCI": arrays(seed=1)["SCI"]}}, False),
        ({"replace": {"SCI": np.stack([CONSTANT, CONSTANT])}}, False),
        ({"shape": (3, 6, 5)}, False),
    ],
)
def test_copies_under_another_name(tmp_path, change, warned, caplog):
    one = io.read_exposure(make_calints(tmp_path / "a.fits"), "science", pixels=False)
    other = io.read_exposure(make_calints(tmp_path / "b.fits", **change), "psf", pixels=False)
    warn_of_copies([one, other])
    assert ("b.fits (psf) begins with the same image as a.fits (science)" in caplog.text) == warned
    assert caplog.text.count("WARNING") == warned
