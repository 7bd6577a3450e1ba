"""Parameters: jwst's names and defaults, checks, and where values come from."""

import dataclasses
from pathlib import Path

import pytest

from gpucoron.core.parameters import (
    OWN,
    STEPS,
    AlignRefs,
    Klip,
    OutlierDetection,
    Parameters,
    Resample,
    describe_parameters,
)
from gpucoron.core.step_parameters import MOST_MODES
from gpucoron.errors import ParameterError


def error_of(function, *args, **kwargs):
    with pytest.raises(ParameterError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_are_those_of_jwst():
    pytest.importorskip("jwst", reason="the jwst package is not installed")
    from jwst.coron import AlignRefsStep, KlipStep, StackRefsStep
    from jwst.outlier_detection import OutlierDetectionStep
    from jwst.resample import ResampleStep

    kinds = (OutlierDetectionStep, StackRefsStep, AlignRefsStep, KlipStep, ResampleStep)
    theirs = {name: kind() for name, kind in zip(STEPS, kinds, strict=True)}
    ours = Parameters().flat()
    assert ours["align_refs.align"] == "joint"
    assert ours.pop("klip.truncate") is None
    preset = Parameters.from_sources(preset="jwst")
    assert preset.klip.truncate == theirs["klip"].truncate == MOST_MODES
    for own in OWN:
        step, _, parameter = own.partition(".")
        assert not hasattr(theirs.get(step), parameter), own
        del ours[own]
    for name, value in ours.items():
        step, _, parameter = name.partition(".")
        assert getattr(theirs[step], parameter) == value, name


@pytest.mark.parametrize(
    "truncate, references, used",
    [
        (None, [1] * 6, (4,)),
        (None, [4] * 9, (31,)),
        (None, [10, 2, 2], (3,)),
        (None, [20] * 9, (50,)),
        (None, [10], (9,)),
        (None, [1], (1,)),
        (None, [1, 1], (1,)),
        (0, [4, 4], (0,)),
        (50, [4, 4], (8,)),
        ((1, 50, 5, 8), [4, 4], (1, 8, 5)),
    ],
)
def test_numbers_of_kl_modes(truncate, references, used):
    """By default one exposure can be left out; never more than there are references, the fewest."""
    assert Klip(truncate=truncate).truncations(references) == used
    assert Klip(truncate=truncate).truncations(2 * references, references) == used
    assert Klip(truncate=truncate, mode="roll").truncations(references) == (0,)


def test_every_step_can_be_skipped_and_every_parameter_is_described():
    for name, kind in STEPS.items():
        assert kind(skip="yes").skip is True, name
    assert all(len(text) > 10 for _, _, text in describe_parameters())
    assert len(describe_parameters()) == len(Parameters().flat())


def test_parameters_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Klip().truncate = 3


@pytest.mark.parametrize(
    "text, step, name, value",
    [
        ("klip.truncate=10", "klip", "truncate", 10),
        ("klip.truncate = 1e1", "klip", "truncate", 10),
        ("klip.truncate=5,10, 20", "klip", "truncate", (5, 10, 20)),
        ("klip.skip=true", "klip", "skip", True),
        ("klip.skip=No", "klip", "skip", False),
        ("align=first", "align_refs", "align", "first"),
        ("star=151,175", "align_refs", "star", (151.0, 175.0)),
        ("star=[[151, 175], [150.5, 174]]", "align_refs", "star", (151.0, 175.0, 150.5, 174.0)),
        ("star=20 18", "align_refs", "star", (20.0, 18.0)),
        ("star=none", "align_refs", "star", None),
        ("star_model=a b.fits", "align_refs", "star_model", "a b.fits"),
        ("psfmask_center=STAR", "align_refs", "psfmask_center", "star"),
        ("resample.center=wcs", "resample", "center", "wcs"),
        ("align_refs.bad_bits=DO_NOT_USE,HOT", "align_refs", "bad_bits", "DO_NOT_USE,HOT"),
        ("outlier_detection.snr=7", "outlier_detection", "snr", "7"),
        ("outlier_detection.snr=6.0, 4", "outlier_detection", "snr", "6.0 4"),
        ("resample.output_shape=10,20", "resample", "output_shape", (10, 20)),
        ("resample.output_shape=[10 20]", "resample", "output_shape", (10, 20)),
        ("resample.crpix=none", "resample", "crpix", None),
        ("resample.crval=83.1,-66.5", "resample", "crval", (83.1, -66.5)),
        ("resample.rotation=-30", "resample", "rotation", -30.0),
        ("resample.kernel=POINT", "resample", "kernel", "point"),
        ("resample.fillval=nan", "resample", "fillval", "NAN"),
        ("resample.fillval=0", "resample", "fillval", "0"),
        ("resample.output_wcs=a b.asdf", "resample", "output_wcs", "a b.asdf"),
        ("exclude=0.5,-1.2,.3", "align_refs", "exclude", ((0.5, -1.2, 0.3),)),
        ("exclude=1 2 3; [4,5,6];", "align_refs", "exclude", ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))),
        ("align_refs.exclude=none", "align_refs", "exclude", None),
    ],
)
def test_text_is_turned_into_values(text, step, name, value):
    changed = Parameters.from_sources(sets=[text])
    found = getattr(getattr(changed, step), name)
    assert found == value and type(found) is type(value)
    untouched = {k: v for k, v in Parameters().flat().items() if k != f"{step}.{name}"}
    assert untouched.items() <= changed.flat().items()


MEANT = "did you mean 'klip.truncate'?"


@pytest.mark.parametrize(
    "text, expected",
    [
        *(
            (f"klip.truncate={bad}", f"klip.truncate is '{bad}'; expected an integer of 0 or more")
            for bad in ("ten", "2.5", "-1", "inf")
        ),
        ("klip.skip=maybe", "klip.skip is 'maybe'; expected true or false"),
        ("outlier_detection.snr=-5", "expected one or two positive numbers, such as '5.0 4.0'"),
        ("outlier_detection.snr=5 4 3", "expected one or two positive numbers, such as '5.0 4.0'"),
        ("outlier_detection.maskpt=1.5", "expected a number from 0 to 1"),
        ("outlier_detection.good_bits=~DO_NOT_US", "did you mean DO_NOT_USE?"),
        (
            "align_refs.align=all",
            "align_refs.align is 'all'; expected 'joint' or 'each' or 'first'",
        ),
        ("star=15", "align_refs.star is '15'; expected x and y in pixels counted from 1"),
        ("star=151,x", "expected x and y in pixels counted from 1"),
        ("star=1,2,3", "or x and y of several exposures"),
        ("resample.center=mask", "resample.center is 'mask'; expected 'star' or 'wcs'"),
        ("resample.kernel=round", "expected 'square' or 'point' or 'turbo' or 'gaussian'"),
        ("resample.output_shape=10", "expected two integers, nx and ny"),
        ("resample.output_shape=10,0", "expected two integers, nx and ny"),
        ("resample.pixel_scale=0", "expected a number of arcsec above 0"),
        ("resample.fillval=red", "expected NAN, INDEF or a number"),
        *(
            (
                f"align_refs.exclude={bad}",
                "expected two offsets and a radius above 0 in arcsec, all",
            )
            for bad in ("1,2", "1,2,0", "1,2,-3", "1,2,3,4", "a,b,c", "301,0,1", "1,2,3;4,5", ";")
        ),
        ("klip.truncat=3", f"klip has no parameter 'truncat'; {MEANT}"),
        ("klip.foo=3", "klip has no parameter 'foo'; expected one of skip, truncate"),
        ("klp.truncate=3", f"there is no step 'klp'; {MEANT}"),
        ("foo.bar=3", "there is no step 'foo'; expected one of outlier_detection, stack_refs, "),
        ("truncate=3", f"there is no parameter 'truncate'; {MEANT}"),
        ("resample.truncate=3", f"resample has no parameter 'truncate'; {MEANT}"),
        ("klip.truncate", "expected STEP.PARAMETER=VALUE, as klip.truncate=10"),
        ("=3", "expected STEP.PARAMETER=VALUE, as klip.truncate=10"),
    ],
)
def test_errors_say_what_was_found_and_expected(text, expected):
    message = error_of(Parameters.from_sources, sets=[text])
    assert message.startswith(f"--set {text}: ") and expected in message


def test_values_are_checked_in_the_constructor_too():
    assert "klip.truncate is True" in error_of(Klip, truncate=True)
    assert "klip.truncate is [5, 5]" in error_of(Klip, truncate=[5, 5])
    assert Klip(truncate=[5, 10]).truncate == (5, 10)
    assert "expected the name of a file" in error_of(Resample, output_wcs=3)
    assert "klip is 3; expected Klip(...)" in error_of(Parameters, klip=3)
    assert "preset is 'hst'; expected 'jwst'" in error_of(Parameters, preset="hst")
    assert Resample(output_wcs=Path("w.asdf")).output_wcs == "w.asdf"
    assert Resample(crpix=[1, 2]).crpix == (1.0, 2.0)
    assert AlignRefs(star=[(1, 2), [3, 4]]).stars == ((1.0, 2.0), (3.0, 4.0))
    one = ((1.0, 2.0, 3.0),)
    for given in ((1, 2, 3), [[1, 2, 3]], ["1,2,3"], "1,2,3", ((1, "2", 3.0),)):
        assert AlignRefs(exclude=given).exclude == one
    for wrong in ([], [[1, 2]], [1, 2], [[1, 2, 3], None], 3, {"a": 1}, ["1,2,3;4,5,6"]):
        assert "expected two offsets and a radius" in error_of(AlignRefs, exclude=wrong)


def test_only_the_first_number_of_snr_counts():
    assert OutlierDetection().threshold == 5.0
    assert OutlierDetection(snr=7).threshold == 7.0


def test_keyword_forms():
    forms = {"klip_truncate": 10, "klip.truncate": 10, "klip": {"truncate": 10}}
    for keywords in [dict([form]) for form in forms.items()] + [{"klip": Klip(truncate=10)}]:
        assert Parameters.from_sources(keywords=keywords) == Parameters(klip=Klip(truncate=10))


def test_keyword_errors_name_the_parameter():
    known = "klip has no parameter 'truncat'; did you mean 'klip.truncate'?"
    assert error_of(Parameters.from_sources, keywords={"klip_truncat": 1}) == known
    unknown = error_of(Parameters.from_sources, keywords={"trunkate": 1})
    assert unknown.startswith("there is no parameter 'trunkate'")


def test_the_preset_lies_beneath_what_is_set():
    preset = Parameters.from_sources(preset="jwst")
    assert preset.like_jwst and preset.align_refs == AlignRefs(align="first")
    assert preset.flat()["preset"] == "jwst"
    own = Parameters.from_sources(preset="jwst", keywords={"align": "each"})
    assert own.like_jwst and own.align_refs.align == "each"
    same = Parameters.from_sources(preset="jwst", keywords={"align": None})
    assert same == preset
    assert not Parameters().like_jwst


def test_later_sources_win(tmp_path):
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('preset = "jwst"\n[klip]\ntruncate = 1\n[resample]\npixfrac = 0.5\n')
    two.write_text('align = "each"\nklip.truncate = 2\n')
    files = Parameters.from_sources([one, two])
    assert (files.klip.truncate, files.resample.pixfrac) == (2, 0.5)
    assert files.preset == "jwst" and files.align_refs.align == "each"
    sets = Parameters.from_sources([one, two], ["klip.truncate=3", "klip.truncate=4"])
    assert sets.klip.truncate == 4
    keywords = Parameters.from_sources([one], ["klip.truncate=3"], keywords={"klip_truncate": 5})
    assert keywords.klip.truncate == 5


def test_toml_round_trip(tmp_path):
    sets = ["klip.truncate=3", "resample.crval=83.1,-66.5", "resample.output_shape=7,8"]
    sets += ["exclude=1,2,3;4,5,6"]
    sets += ['resample.output_wcs=a "b"\\c\x7f\u00e9.asdf', "klip.skip=true"]
    parameters = Parameters.from_sources(preset="jwst", sets=sets)
    path = tmp_path / "p.toml"
    path.write_text(parameters.to_toml(), encoding="utf-8")
    assert Parameters.from_sources([path]) == parameters
