"""ADI, ADI+RDI and roll subtraction in whole runs, and which references are chosen."""

import logging
import re

import numpy as np
import pytest
from astropy.io import fits
from numpy.testing import assert_allclose, assert_array_equal
from pyklip.klip import klip_math
from scipy.ndimage import shift

import gpucoron
from gpucoron.simulate import simulate
from tests.helpers.tiny_sets import TinySet, checksums, one_thread  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(tmp_path):
    return TinySet(tmp_path)


def run(tiny, **options):
    return gpucoron.run(tiny.asn, device="cpu", psfmask=tiny.mask, progress=False, **options)


def root(path):
    return path.name.removesuffix("_calints.fits")


def referenced(product, path):
    """Return the exposures that were references of one, in the order of its images."""
    table = product.positions[root(path)]
    return list(dict.fromkeys(table["exposure"][table["exposure"] != root(path)]))


def listed_twice(content):
    members = content["products"][0]["members"]
    science = [m["expname"] for m in members if m["exptype"] == "science"]
    kept = [m for m in members if m["exptype"] == "science"]
    content["products"][0]["members"] = kept + [{"expname": n, "exptype": "psf"} for n in science]


@pytest.mark.parametrize("align", ["joint", "each"])
def test_klip_by_other_rolls_is_that_of_pyklip(align, tiny):
    """ADI without psf members; no pixel is flagged, because pyKLIP knows no such thing."""
    tiny.members(lambda name: name in [p.name for p in tiny.science])
    tiny.edit(*tiny.science, DQ=lambda dq: 0 * dq, SCI=lambda sci: np.nan_to_num(sci))
    ask = {"align": align, "klip_truncate": 2, "outlier_detection_skip": True}
    product = run(tiny, **ask, checksums=False, keep=("psfalign", "psfsub")).product
    assert product.psfstack is None
    for k, path in enumerate(tiny.science):
        aligned, subtracted = product.psfalign[root(path)], product.psfsub[root(path)]
        assert aligned.data.shape[:2] == ((3, 2), (2, 3))[k]
        target = fits.getdata(path).astype(np.float64)
        for i, references in enumerate(aligned.data):
            rows = references.reshape(len(references), -1)
            expected = klip_math(target[i].ravel(), rows, np.array([2]))[:, 0]
            worst = 2e-6 if align == "each" else 2e-3  # aligned to each, or all moved once
            assert_allclose(subtracted.data[i].ravel(), expected, atol=worst * np.std(target))


def test_ways_to_ask_for_adi_give_the_same(tiny, caplog):
    caplog.set_level(logging.INFO)
    by_mode = run(tiny, mode="adi").product
    assert "not used as psf members" in caplog.text and "are the other rolls" in caplog.text
    tiny.edit_asn(listed_twice)
    words = "-q", "--save", "psfsub,i2d,psfstack,crfints", "--psfmask", str(tiny.mask)
    assert tiny.command(*words) == 0
    assert not any("psfstack" in name for name in tiny.files())
    for path in tiny.science:
        assert referenced(by_mode, path) == [root(p) for p in tiny.science if p != path]
        (written,) = tiny.out.glob(f"{root(path)}*_psfsub.fits")
        with fits.open(written) as hdus:
            assert_array_equal(hdus["SCI"].data, by_mode.psfsub[root(path)].data)
            assert (hdus[0].header["KLMODE"], hdus[0].header["KLTRUNC"]) == ("ADI", 1)
            assert {e.strip() for e in hdus["KLREFS"].data["exposure"]} == {
                root(p) for p in tiny.science if p != path
            }
    assert "klip.mode" in str(tiny.record()["parameters"])


@pytest.mark.parametrize(
    "mode, without, psf, rolls",
    [
        ("auto", (), 3, 0),
        ("adi+rdi", (), 3, 1),
        ("adi+rdi", ("psf1",), 2, 1),
        ("adi+rdi", ("sci1",), 3, 0),  # which the first exposure then has not
        ("auto", ("visit",), 0, 1),  # of all references
    ],
)
def test_references_that_are_chosen(mode, without, psf, rolls, tiny):
    visit = root(tiny.psf[0]).partition("_")[0]
    names = {"psf1": tiny.psf[1].name, "sci1": root(tiny.science[1]), "visit": visit}
    chosen = [names[name] for name in without]
    product = run(tiny, mode=mode, exclude_reference=chosen or None).product
    found = referenced(product, tiny.science[0])
    assert sum(name in map(root, tiny.psf) for name in found) == psf
    assert sum(name in map(root, tiny.science) for name in found) == rolls
    assert not any(name in found for name in map(root, (tiny.psf[1],)) if "psf1" in without)


@pytest.fixture(scope="module")
def three_rolls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rolls")
    options = {"shape": (36, 40), "n_science": 3, "n_integrations": (3, 2, 1), "roll_step": 3.0}
    options |= {"n_references": 2, "n_reference_integrations": 2, "planets": (), "disk": False}
    return simulate(folder, "miri-4qpm", 7, n_optical_states=1, **options)


@pytest.mark.parametrize(
    "movement, mode, most, warned",
    [
        (0.0, "adi", 5, False),
        (0.4, "adi", 5, False),
        (0.6, "adi+rdi", 4 + 3, True),
        (2.0, "adi+rdi", 4, True),
    ],
)
def test_movement_decides_which_rolls_serve(movement, mode, most, warned, three_rolls, caplog):
    """Rolls 3 degrees apart: half way to the nearest edge, about 9 px, that is 0.46 and 0.93 px."""
    (plan,) = gpucoron.plan(three_rolls.asn, mode=mode, klip_movement=movement)
    assert plan.references == most
    assert ("no other science exposure can be its reference" in caplog.text) == warned


def pixels(path):
    """Checksums of all but PRIMARY, which has the date, and ASDF, which repeats it."""
    return {name: sum for name, sum in checksums(path).items() if name not in ("PRIMARY", "ASDF")}


def test_resumed_after_one_exposure(tiny):
    """Bit for bit, with the other exposure read back although it is a reference."""
    words = ("-q", "--mode", "adi+rdi", "--set", "klip.truncate=2")
    assert tiny.command(*words) == 0
    before = {name: pixels(tiny.out / name) for name in tiny.files()}
    for pattern in (f"{root(tiny.science[1])}*_psfsub*", "*_i2d*"):
        for path in tiny.out.glob(pattern):
            path.unlink()
    assert tiny.command(*words, "--resume") == 0
    assert {name: pixels(tiny.out / name) for name in tiny.files()} == before


def test_plan_counts_the_rolls(tiny, capsys):
    rdi, both = (gpucoron.plan(tiny.asn, mode=mode)[0] for mode in ("rdi", "adi+rdi"))
    assert (rdi.references, both.references) == (5, 5 + 3)
    assert both.memory > rdi.memory and both.pairs > rdi.pairs
    assert tiny.command("--mode", "roll", "--dry-run") == 0
    assert re.search(r"mode +roll: the mean of the other rolls", capsys.readouterr().out)


# ---- a planet


@pytest.mark.parametrize(
    "instrument, seed, planet",
    [("nircam", 5, (1.5, 40.0, 3e-5)), ("miri-4qpm", 6, (2.8, 70.0, 5e-4))],
)
def test_a_planet_loses_what_it_subtracts_of_itself(instrument, seed, planet, tmp_path):
    """Planets alone were added to the pixels; roll subtraction gives their images less the other's.

    KLIP by other rolls (K = 1) gives nearly the same; nothing is lost where they do not overlap.
    """
    options = {"shape": (80, 80), "n_integrations": 1, "n_references": 2, "disk": False}
    options |= {"n_reference_integrations": 1, "truth_scenes": True, "bad_pixels": False}
    options |= {"cosmic_rays": False, "roll_step": 25.0}
    seen, alone = (
        simulate(tmp_path / name, instrument, seed, planets=p, **options)
        for name, p in (("seen", (planet,)), ("alone", ()))
    )
    scenes = [
        [np.load(str(p).replace("calints.fits", "clean.npy"))[0] for p in made.science]
        for made in (seen, alone)
    ]
    images = [one - other for one, other in zip(*scenes, strict=True)]
    for mode, k, allowed in (("roll", None, 0.03), ("adi", 1, 0.06)):
        ask = {"device": "cpu", "mode": mode, "klip_truncate": k, "progress": False}
        found = [gpucoron.run(m.asn, psfmask=m.psfmask, **ask).product for m in (seen, alone)]
        for n, path in enumerate(seen.science):
            name = root(path)
            left = found[0].psfsub[name].data[0] - found[1].psfsub[name].data[0]
            table = found[1].fits[name]
            move = -table["y"][0], -table["x"][0]
            expected = images[n] - shift(images[1 - n], move, order=3)
            x, y = seen.planets[0].pixels[name]
            near = np.hypot(*(np.indices(left.shape) - np.array([y, x])[:, None, None])) < 4
            flux, truth = left[near].sum(), expected[near].sum()
            assert abs(flux / truth - 1) < allowed
            assert abs(truth / images[n][near].sum() - 1) < 0.1  # the other's image is elsewhere
