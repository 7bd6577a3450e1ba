"""Runs with KLIP in zones: where they are, what is outside, --resume, single steps, bad values."""

import numpy as np
import pytest
from astropy.io import fits

import gpucoron
from gpucoron.cli import main as cli
from gpucoron.simulate import simulate
from tests.helpers import oracles
from tests.helpers.tiny_sets import TinySet, checksums, one_thread, only_error  # noqa: F401

ZONES = {"annuli": 2, "subsections": 2, "iwa": 3, "owa": 14}
OPTIONS = {"device": "cpu", "progress": False, "klip_truncate": (1, 3), "klip": ZONES}
NON_SCIENCE, DO_NOT_USE = 512, 1


def distances(stack, star):
    y, x = np.indices(stack.shape[1:])
    return np.hypot(x - star.mean[0] + 1, y - star.mean[1] + 1)


@pytest.mark.parametrize(
    "instrument, align", [("nircam", "joint"), ("miri-4qpm", "each"), ("nircam", "first")]
)
def test_each_zone_is_klip_of_its_pixels(tmp_path, instrument, align):
    """About the measured star, from the references that psfalign has."""
    options = {"shape": (36, 40), "n_science": 1, "n_integrations": 2, "n_references": 3}
    options |= {"cosmic_rays": False, "bad_pixels": False, "acquisition_px": 0.0, "jitter_px": 0.0}
    made = simulate(tmp_path, instrument, 5, n_reference_integrations=2, planets=(), **options)
    keep = ("psfsub", "psfalign", "crfints", "i2d")
    product = gpucoron.run(made.asn, keep=keep, align=align, **OPTIONS).product
    ((root, aligned),) = product.psfalign.items()
    star, science = product.stars[root], product.crfints[root]
    assert align == "first" or star.measured
    for truncate in (1, 3):
        stack = product.psfsub[root, truncate]
        r = distances(stack, star)
        inside = (r >= 3) & (r < 14)
        assert_flags(stack, inside, (science.dq & 1 == 0).all(axis=0))
        upper = np.indices(r.shape)[0] >= star.mean[1] - 1
        for ring in (r < 8.5, r >= 8.5):
            for half in (upper, ~upper):
                area = inside & ring & half
                own = [aligned.data] * 2 if align == "first" else aligned.data
                for target, refs, left in zip(science.data, own, stack.data, strict=True):
                    expected, _ = oracles.klip(
                        target.astype(float), np.array(refs, float), truncate, area.astype(float)
                    )
                    differs = abs(left - expected)[area]
                    assert np.median(differs) < 0.02 * np.std(expected[area])
    assert np.isnan(product.i2ds[1].data).sum() > (~inside).sum() / 2


def assert_flags(stack, inside, known):
    outside = known & ~inside
    assert np.isnan(stack.data[:, outside]).all() and np.isnan(stack.err[:, outside]).all()
    assert (stack.dq[:, outside] & (NON_SCIENCE | DO_NOT_USE) == NON_SCIENCE | DO_NOT_USE).all()
    assert np.isfinite(stack.data[:, inside & known]).all()
    assert (stack.dq[:, inside & known] & NON_SCIENCE == 0).all()
    assert np.isfinite(stack.err[:, inside & known]).all()


@pytest.fixture
def tiny(tmp_path):
    return TinySet(tmp_path)


WORDS = "-q --no-report --set klip.truncate=2 --set klip.annuli=2 --set klip.subsections=3".split()


def test_a_run_goes_on_with_zones(tiny):
    words = (*WORDS, "--set", "klip.optimise=2", "--set", "klip.guard=0.06arcsec")
    words = (*words, "--set", "klip.maxnumbasis=3")
    assert tiny.command(*words) == 0
    before = {path.name: checksums(path) for path in tiny.out.glob("*.fits")}
    (image,) = tiny.out.glob("*_i2d.fits")
    (sub,) = tiny.out.glob("jw09100001*_psfsub.fits")
    with fits.open(sub) as hdus:
        assert hdus["KLREFS"].data["coefficient"].shape == (5, 6)
    image.unlink()
    sub.unlink()
    assert tiny.command(*words, "--resume") == 0
    for path in tiny.out.glob("*.fits"):
        for name, value in checksums(path).items():
            assert name in ("PRIMARY", "ASDF") or value == before[path.name][name]


def test_single_steps_use_zones(tiny):
    assert tiny.command(*WORDS, "--align", "each", "--star", "20.5,18.5") == 0
    (stack,) = tiny.out.glob("*_psfstack.fits")
    files = [*tiny.out.glob("*_crfints.fits"), *tiny.out.glob("*_psfalign.fits"), stack]
    files = [path for path in files if "0003" not in path.name.split("_")[0]]
    folder = tiny.out / "step"
    words = ["step", "klip", *map(str, files), "--output-dir", str(folder), "--device", "cpu"]
    assert cli.main([*words, *WORDS[:1], *WORDS[2:]]) == 0
    found = sorted(folder.glob("*_psfsub.fits"))
    assert len(found) == 2
    for path in found:
        (own,) = tiny.out.glob(path.name)
        one, other = (fits.getdata(p, "SCI") for p in (path, own))
        np.testing.assert_allclose(one, other, atol=2e-6 * np.nanmax(abs(other)))


def test_the_plan_names_the_zones(tiny, capsys):
    assert cli.main([str(tiny.asn), "--dry-run", *WORDS, "--set", "klip.iwa=0.2arcsec"]) == 0
    assert "zones of KLIP         2 annuli of 3 sections, from 0.2arcsec to the edge" in (
        capsys.readouterr().out
    )
    plain, zoned = (
        gpucoron.plan(tiny.asn, klip={"truncate": 2, **more})[0]
        for more in ({}, {"annuli": 9, "subsections": 4, "optimise": 5})
    )
    assert zoned.memory > plain.memory and zoned.seconds > plain.seconds
    assert plain.zones == ""


@pytest.mark.parametrize(
    "words, text",
    [
        ("--set klip.annuli=0", "klip.annuli is '0'; expected an integer"),
        ("--set klip.annuli_spacing=wide", "expected 'constant' or 'log' or 'linear'"),
        ("--set klip.iwa=5km", "klip.iwa is '5km'; expected a length of 0 or more"),
        ("--set klip.owa=-3", "klip.owa is '-3'; expected a length of 0 or more"),
        ("--set klip.maxnumbasis=0", "klip.maxnumbasis is '0'; expected an integer"),
        ("--set klip.annuli=2 --set klip.guard=3", "klip.guard is 3 px and klip.optimise 0 px"),
        ("--set klip.guard=3 --set klip.optimise=5", "klip.guard is 3.0 without zones, expected"),
        ("--set klip.optimise=5", "klip.optimise is 5.0 without zones, expected klip.annuli"),
        ("--set klip.annuli=90", "calints.fits: klip.annuli is 90: between 0 and"),
        ("--set klip.iwa=99", "calints.fits: klip.iwa is 99 px, and the farthest pixel"),
        ("--set klip.iwa=5 --set klip.owa=0.1arcsec", "klip.iwa is 5 px, klip.owa is 1.6"),
        ("--set klip.annuli=3 --preset jwst", "which the preset jwst does not have"),
    ],
)
def test_bad_values_end_before_any_work(tiny, capsys, words, text):
    assert tiny.command("-q", *words.split()) in (2, 3)
    assert text in only_error(capsys.readouterr().err)
    assert not list(tiny.out.glob("*.fits"))


def test_small_zones_are_warned_of(tiny, capsys):
    assert cli.main([str(tiny.asn), "--dry-run", *WORDS[1:], "--set", "klip.subsections=60"]) == 0
    assert "pixels for 2 KL modes" in capsys.readouterr().err
