"""Known sources that are masked in registration and KLIP: what they still move, and bad regions."""

import logging

import numpy as np
import pytest
from astropy.io import fits
from stdatamodels.jwst import datamodels

import gpucoron
from gpucoron.core.parameters import Parameters
from gpucoron.io import read_exposure
from gpucoron.pipeline.exclusion import MARGIN, TOUCHED, find_exclusion, warn_of_moves
from gpucoron.simulate import simulate
from tests.helpers.tiny_sets import one_thread, only_error  # noqa: F401

REGION = "0.5,-0.2,0.2"
QUICK = ("-q", "--set", "klip.truncate=3")


def disc(image, x, y, radius):
    return np.hypot(*(np.indices(image.shape[-2:]) - np.array([y, x])[:, None, None])) <= radius


class Companion:
    """A simulated set, and the same with the noiseless image of a companion added to its pixels."""

    def __init__(self, folder, instrument, seed, separation, angle, contrast):
        options = {"shape": (80, 80), "n_science": 1, "n_integrations": 1, "n_references": 5}
        options |= {"n_reference_integrations": 1, "disk": False, "truth_scenes": True}
        planets = ((separation, angle, contrast),)
        seen, self.made = (
            simulate(folder / name, instrument, seed, planets=p, **options)
            for name, p in (("seen", planets), ("alone", ()))
        )
        self.x, self.y = seen.planets[0].pixels[self.made.science[0].stem.removesuffix("_calints")]
        clean = (
            np.load(str(m.science[0]).replace("calints.fits", "clean.npy"))
            for m in (seen, self.made)
        )
        self.image = (next(clean) - next(clean)).astype(np.float32)
        turned = np.deg2rad(angle)
        self.offsets = separation * np.sin(turned), separation * np.cos(turned)

    def products(self, **options):
        """Run without and with the companion, klip.truncate=4."""
        options |= {"device": "cpu", "psfmask": self.made.psfmask, "klip_truncate": 4}
        alone = gpucoron.run(self.made.asn, **options).product
        path, before = self.made.science[0], self.made.science[0].read_bytes()
        with fits.open(path, memmap=False) as hdus:
            hdus["SCI"].data = hdus["SCI"].data + self.image
            hdus.writeto(path, overwrite=True)
        with_it = gpucoron.run(self.made.asn, checksums=False, **options).product
        path.write_bytes(before)
        return alone, with_it

    def effect(self, **options):
        """Largest mean shift of the fits over their error; flux in psfsub over the truth."""
        alone, with_it = self.products(**options)
        (root,) = alone.fits
        one, other = alone.fits[root], with_it.fits[root]
        moved = [abs(np.mean(other[k] - one[k])) / np.mean(one[f"{k}_err"]) for k in "xy"]
        near = disc(self.image, self.x, self.y, 3)
        left = with_it.psfsub[root].data - alone.psfsub[root].data
        return max(moved), left[:, near].sum() / self.image[:, near].sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    "instrument, seed, companion, radius",
    [
        ("nircam", 3, (1.45, 70.0, 2e-5), 0.35),
        ("miri-4qpm", 4, (2.5, 255.0, 1e-3), 0.9),
    ],
)
def test_a_companion_that_is_masked_moves_nothing(tmp_path, instrument, seed, companion, radius):
    """Against the noiseless image of the companion, which alone was added to the pixels.

    Shifts in units of their error, and flux over truth, without and with the region: NIRCam 1.26,
    0.983 and 0.32, 0.994; 4QPM 2.98, 0.991 and 0.45, 0.998.
    """
    made = Companion(tmp_path, instrument, seed, *companion)
    moved, flux = made.effect()
    moved_masked, flux_masked = made.effect(exclude=[(*made.offsets, radius)])
    assert moved_masked < 0.5 * min(moved, 2.0)
    assert abs(flux_masked - 1) < 0.6 * abs(flux - 1)


@pytest.mark.parametrize("star", [None, (21.0, 18.0)])
def test_regions_lie_where_the_wcs_has_them(tiny, star):
    """Against the inverse of the GWCS."""
    science = [read_exposure(path, "science") for path in tiny.science]
    parameters = Parameters.from_sources(keywords={"exclude": REGION, "star": star})
    d_east, d_north, radius = parameters.align_refs.exclude[0]
    for exposure in science:
        header = exposure.headers["SCI"]
        x, y = (header[k] for k in ("CRPIX1", "CRPIX2"))
        if star is not None:
            first = science[0].headers["SCI"]
            x, y = star[0] + x - first["CRPIX1"], star[1] + y - first["CRPIX2"]
        with datamodels.open(exposure.path) as model:
            wcs = model.meta.wcs
        ra, dec = wcs(x - 1, y - 1, with_bounding_box=False)
        places = [
            (ra + (d_east + dx) / 3600 / np.cos(np.deg2rad(dec)), dec + (d_north + dy) / 3600)
            for dx, dy in ((0, 0), (radius, 0), (0, radius))
        ]
        (px, py), *edge = (wcs.invert(*place, with_bounding_box=False) for place in places)
        size = np.mean([np.hypot(ex - px, ey - py) for ex, ey in edge])
        found = find_exclusion(parameters, science, exposure)
        for weights, more in ((found.klip, TOUCHED), (found.registration, MARGIN)):
            surely, perhaps = (disc(weights, px, py, size + more + d) for d in (-0.1, 0.1))
            assert (weights[surely] == 0).all() and (weights[~perhaps] == 1).all() and surely.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"align": "each"}, {"align": "first"}, {"preset": "jwst"}, {"align_refs_skip": True}],
)
def test_what_is_in_a_region_changes_nothing_outside(tiny, options):
    """A blob of 30 MJy/sr: psfsub changes by at most 0.022, and by 0.47 to 0.71 without regions."""
    options = {
        "device": "cpu",
        "psfmask": tiny.mask,
        "klip_truncate": 3,
        "exclude": REGION,
    } | options
    parameters = Parameters.from_sources(keywords={"exclude": REGION})
    science = [read_exposure(path, "science") for path in tiny.science]
    regions = [find_exclusion(parameters, science, e).klip == 0 for e in science]
    before = gpucoron.run(tiny.asn, **options).product
    for exposure, region in zip(science, regions, strict=True):
        y, x = (axis.mean() for axis in np.nonzero(region))
        yy, xx = np.indices(region.shape)
        blob = 30 * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 2 / 0.8**2)
        tiny.edit(exposure.path, SCI=lambda data, blob=blob: (data + blob).astype(np.float32))
    after = gpucoron.run(tiny.asn, checksums=False, **options).product
    for exposure, region in zip(science, regions, strict=True):
        change = after.psfsub[exposure.root].data - before.psfsub[exposure.root].data
        assert np.abs(change[:, ~widened(region)]).max() < 0.05 < np.abs(change[:, region]).max()


def widened(region):
    """A region and two pixels round it, where the wings of the blob are."""
    y, x = np.nonzero(region)
    return (
        np.min(
            [
                np.hypot(*(np.indices(region.shape) - np.array(p)[:, None, None]))
                for p in zip(y, x, strict=True)
            ],
            axis=0,
        )
        <= 2
    )


@pytest.mark.parametrize(
    "prepare, region, code, text",
    [
        (None, "0.5,-0.2", 2, "align_refs.exclude is ['0.5,-0.2']; expected two offsets and a rad"),
        (None, "0,0,-1", 2, "expected two offsets and a radius above 0 in arcsec"),
        (None, "0,0,20", 2, "align_refs.exclude leaves 0.0 % of what the psfmask leaves of jw09"),
        (
            {name: None for name in ("CRPIX1", "CRPIX2", "RA_REF", "DEC_REF")},
            REGION,
            3,
            "whose position the headers do not have; expected STARCENX, STARCENY or CRPIX1, CRPIX2",
        ),
    ],
)
def test_bad_regions_are_found_before_any_work(tiny, capfd, prepare, region, code, text):
    if prepare:
        tiny.edit(*tiny.science, **prepare)
    assert tiny.command(*QUICK, "--psfmask", tiny.mask, "--exclude", region) == code
    assert text in only_error(capfd.readouterr().err)
    assert not tiny.out.exists() or not tiny.files()


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_region_outside_of_the_image_is_a_warning(tiny, capfd, words):
    """A value that begins with a minus sign is a value."""
    assert tiny.command(*QUICK, "--exclude", "-40,0.5,0.2", *words) == 0
    text = "the region -40,0.5,0.2 of align_refs.exclude lies outside of the image"
    assert capfd.readouterr().err.count(text) == len(tiny.science)


def test_images_far_apart_are_a_warning(tiny, caplog):
    exposure = read_exposure(tiny.science[0], "science")
    with caplog.at_level(logging.WARNING, "gpucoron"):
        warn_of_moves(exposure, MARGIN)
        assert not caplog.messages
        warn_of_moves(exposure, 3.04)
    (text,) = caplog.messages
    assert (
        text.startswith(f"{exposure.path.name}: images are up to 3.0 px apart") and "2.5 px" in text
    )


@pytest.mark.slow
def test_resume_knows_the_regions(tiny):
    """Other regions make everything anew; the same ones nothing."""
    options = {"device": "cpu", "klip_truncate": 3, "output_dir": tiny.out, "save": ("psfsub",)}
    times, recorded = [], []
    for region in (REGION, REGION, [(0.5, 0.2, 0.2)], None):
        gpucoron.run(tiny.asn, exclude=region, resume=True, **options)
        recorded.append(tiny.record()["parameters"]["align_refs.exclude"])
        times.append(sorted(p.stat().st_mtime_ns for p in tiny.out.glob("*_psfsub.fits")))
    assert times[0] == times[1] and times[1] != times[2] != times[3]
    assert recorded == [[[0.5, -0.2, 0.2]], [[0.5, -0.2, 0.2]], [[0.5, 0.2, 0.2]], None]
