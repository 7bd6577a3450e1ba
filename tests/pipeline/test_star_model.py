"""Runs that find the star by the images of a user's file, against simulated truth."""

import functools
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import gpucoron
from gpucoron.cluster.requests import make_request
from gpucoron.core.parameters import Parameters
from gpucoron.optics.instruments import INSTRUMENTS, load_aperture
from gpucoron.pipeline.run_options import RunOptions
from gpucoron.simulate import simulate
from gpucoron.simulate.geometry import Window
from gpucoron.simulate.scene import Scene
from tests.helpers.tiny_sets import one_thread, only_error  # noqa: F401

pytestmark = pytest.mark.slow

TURNS = np.arange(5) * 2 * np.pi / 5
#: Offsets from the mask, px: as few as determine a polynomial of the second order.
OFFSETS = ((0.0, 0.0), *zip(0.4 * np.cos(TURNS), 0.4 * np.sin(TURNS), strict=True))


@functools.cache
def images_of(name, shape=(72, 66)):
    """Return images of a perfect wavefront, x and y of the star in each, and of the mask.

    Their size is not that of the exposures, and the mask is elsewhere.
    """
    instrument = INSTRUMENTS[name]
    bandpass = instrument.filters[instrument.default_filter]
    scene = Scene(instrument, bandpass, Window.centred(load_aperture(bandpass.aperture), shape))
    mask = np.array(scene.window.centre)
    flat = np.zeros((scene.pupil.axis.size,) * 2)
    places = mask + np.array(OFFSETS)
    return np.array([scene.image(scene.star(1.0, flat, p)) for p in places]), places, mask


def write(path, images, places=None, mask=None, **keywords):
    """Write a file as users do: pixels count from 1."""
    hdu = fits.ImageHDU(images.astype(np.float32), name="SCI")
    if mask is not None:
        hdu.header["MASKCENX"], hdu.header["MASKCENY"] = np.add(mask, 1)
    hdu.header.update(keywords)
    hdus = fits.HDUList([fits.PrimaryHDU(), hdu])
    if places is not None:
        columns = [
            fits.Column(name, "D", array=np.add(v, 1))
            for name, v in zip("XY", np.transpose(places), strict=True)
        ]
        hdus.append(fits.BinTableHDU.from_columns(columns, name="STARS"))
    hdus.writeto(path, overwrite=True)
    return path


@pytest.mark.parametrize(
    ("name", "seed", "mask"),
    [("nircam", 1, None), ("nircam", 2, "MASKX"), ("miri-4qpm", 3, None), ("miri-lyot", 4, "X")],
)
def test_the_star_is_where_the_images_have_it(name, seed, mask, tmp_path):
    """Also where the coronagraph is one that is not known."""
    made = simulate(
        tmp_path / "input", name, seed, shape=(60, 60), n_science=1, n_integrations=2,
        n_references=3, n_reference_integrations=1, n_optical_states=1, disk=False, planets=(),
        wavefront_nm=0, drift_nm=0,
    )  # fmt: skip
    for path in (*made.science, *made.psf) if mask else ():
        fits.setval(path, "CORONMSK", value=mask)
    path = write(tmp_path / "star.fits", *images_of(name))
    result = gpucoron.run(
        made.asn, psfmask=made.psfmask, klip_truncate=2, star_model=path, device="cpu"
    )
    ((root, star),) = result.product.stars.items()
    missed = np.subtract(star.mean, np.load(made.truth)[f"star_{root}"].mean(axis=0) + 1)
    assert star.source == "model"
    assert np.hypot(*missed) < 0.05
    assert (np.abs(missed) < 3.5 * np.array(star.mean_error)).all()
    assert not [text for text in result.warnings if "star_model" in text]


def one(path, **changes):
    """Write one image; keywords may change, None leaves them out."""
    images, places, _ = images_of("nircam")
    place = {"STARCENX": places[0, 0] + 1, "STARCENY": places[0, 1] + 1}
    keywords = {k: v for k, v in (place | changes).items() if v is not None}
    return write(path, images[0], **keywords)


def several(path, change=None, **keywords):
    images, places, mask = (np.array(a) for a in images_of("nircam"))
    images, places, mask = change(images, places, mask) if change else (images, places, mask)
    return write(path, images, places, mask, **keywords)


def with_nan(images, places, mask):
    images[2, 3, 4] = np.nan
    return images, places, mask


BAD = [
    (lambda p: None, "no such file"),
    (lambda p: p.write_text("SIMPLE"), "not a FITS file"),
    (lambda p: fits.PrimaryHDU().writeto(p), "no image in SCI or the primary HDU (found: PRIMARY)"),
    (lambda p: fits.PrimaryHDU(np.ones(9)).writeto(p), "PRIMARY has shape (9,), expected images"),
    (lambda p: one(p, STARCENX=None, STARCENY=None), "does not say where the star is"),
    (lambda p: one(p, STARCENY="x"), "'x', expected two numbers: pixels from 1"),
    (lambda p: one(p, MASKCENX=3), "MASKCENX, MASKCENY are 3, None, expected two numbers"),
    (lambda p: one(p, STARCENX=7), "the images end 6 px from the star (or the mask), expected 13"),
    (lambda p: several(p, lambda i, x, m: (i, x, None)), "6 images and no mask centre"),
    (lambda p: several(p, lambda i, x, m: (i, x[1:], m)), "STARS has 5 rows, expected 6"),
    (lambda p: several(p, lambda i, x, m: (i, None, m)), "does not say where the star is"),
    (lambda p: several(p, lambda i, x, m: (i, x * np.inf, m)), "not finite, expected numbers"),
    (lambda p: several(p, lambda i, x, m: (0 * i, x, m)), "an image that is 0 everywhere"),
    (lambda p: several(p, with_nan), "not finite, expected numbers"),
]


@pytest.mark.parametrize(("make", "expected"), BAD)
def test_a_file_that_cannot_be_used_is_an_error_before_any_work(
    make, expected, tiny, tmp_path, capsys
):
    path = tmp_path / "star.fits"
    make(path)
    for words in (["-q"], ["--dry-run"]):
        assert tiny.command("--star-model", path, *words) == 3
        error = only_error(capsys.readouterr().err)
        assert expected in error and error.count(str(path)) == 1
    assert not tiny.out.exists() or tiny.files() == []


def test_a_file_has_its_full_path_on_a_cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = Parameters.from_sources(keywords={"star_model": "star.fits"})
    request = make_request(RunOptions(Path("asn.json"), parameters, output_dir=Path("out")))
    found = request.options.parameters.align_refs.star_model
    assert found == str(tmp_path / "star.fits")


def test_settings_that_do_not_go_with_a_file(tiny, tmp_path, capsys):
    path = one(tmp_path / "star.fits")
    assert tiny.command("--star-model", path, "--star", "20,18") == 2
    assert "expected one of the two" in only_error(capsys.readouterr().err)
    for words in (["--preset", "jwst"], ["--set", "klip.skip=true"]):
        assert tiny.command("--star-model", path, "--dry-run", *words) == 0
        assert f"{path}: not used" in capsys.readouterr().err


def test_a_file_that_is_changed_or_would_be_replaced(tiny, capsys):
    path = tiny.folder / f"{tiny.science[0].name.removesuffix('_calints.fits')}_c1001_psfsub.fits"
    words = "--set klip.truncate=1 --save psfsub --no-report -q --star-model".split()
    one(path)
    assert tiny.command(*words, path) == 0
    said = "_calints.fits: the images of align_refs.star_model leave"  # they have no wavefront
    assert capsys.readouterr().err.count(said) == 2
    assert tiny.record()["parameters"]["align_refs.star_model"] == str(path)
    for product in tiny.out.glob("*_psfsub.fits"):
        header = fits.getheader(product, "SCI")
        assert header["STARSRC"] == "model" and "MASKCENX" not in header
    assert tiny.command(*words, path, "--resume") == 0
    assert tiny.record()["resumed"]["taken_over"] == 2
    one(path, STARCENX=36.0)
    assert tiny.command(*words, path, "--resume") == 0
    assert f"starting over: {path.name} is not as it was" in capsys.readouterr().err
    before = path.read_bytes()
    assert tiny.command(*words, path, "--output-dir", tiny.folder) == 5
    assert path.name in only_error(capsys.readouterr().err) and path.read_bytes() == before
