"""gpucoron's products in pyKLIP's reader of JWST data, and spaceKLIP's calls on them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import gpucoron
from gpucoron.compat import pyklip as ours
from gpucoron.compat.crfints import copy_crfints
from gpucoron.errors import OutputError, UsageError
from gpucoron.simulate import simulate

pytestmark = pytest.mark.slow

klip = pytest.importorskip("pyklip.klip", reason="pyklip is not installed")
from pyklip.instruments.JWST import JWSTData  # noqa: E402

PLANETS = {  # separation (arcsec), angle (degrees E of N) and contrast
    "nircam": (1.0, 70.0, 4e-4),
    "miri-4qpm": (1.6, 200.0, 4e-3),
}
NEAR = 0.5  # px: the planet's own image is not symmetric, and turns with the roll
NEAR_ADI = 1.0  # px: and is subtracted from itself where the rolls leave it


@pytest.fixture(scope="module", params=sorted(PLANETS))
def products(request, tmp_path_factory):
    """Products of two rolls of a star with one planet, and where that is."""
    folder = tmp_path_factory.mktemp(request.param)
    made = simulate(
        folder,
        request.param,
        5,
        shape=(80, 84),
        n_science=2,
        n_integrations=2,
        n_references=3,
        n_reference_integrations=2,
        planets=(PLANETS[request.param],),
        disk=False,
    )
    saved = ("crfints", "psfsub", "i2d")
    options = {"klip_truncate": 3, "save": saved, "output_dir": folder / "out"}
    result = gpucoron.run(made.asn, psfmask=made.psfmask, **options)
    science, references = copy_crfints(result, folder / "centred")

    def named(kind):
        return [str(p) for p in sorted((folder / "out").glob(f"*_{kind}.fits"))]

    separation, angle, _ = PLANETS[request.param]
    return SimpleNamespace(
        truth=json.loads((folder / "truth.json").read_text()),
        separation=separation,
        angle=np.radians(angle),
        i2d=named("i2d"),
        psfsub=named("psfsub"),
        result=result,
        science=science,
        references=references,
        scale=np.sqrt(fits.getval(named("i2d")[0], "PIXAR_A2", "SCI")),
    )


def planet_offset(image, center, products):
    """Return how far from its place (pixels) the planet is in an image that has north up."""
    radius = products.separation / products.scale
    x = center[0] - radius * np.sin(products.angle)
    y = center[1] + radius * np.cos(products.angle)
    column, row = round(x), round(y)
    cut = np.nan_to_num(image[row - 4 : row + 5, column - 4 : column + 5])
    peak = np.unravel_index(cut.argmax(), cut.shape)
    assert cut.max() > 5 * np.nanstd(image)
    rows, columns = np.indices(cut.shape)
    near = np.clip(cut, 0, None) * (np.hypot(rows - peak[0], columns - peak[1]) < 2.5)
    found = (near * columns).sum() / near.sum(), (near * rows).sum() / near.sum()
    return np.hypot(found[0] + column - 4 - x, found[1] + row - 4 - y)


@pytest.mark.parametrize("kind", ["psfsub", "i2d"])
def test_products_open_with_centers_and_angles(products, kind):
    dataset = JWSTData(getattr(products, kind))
    turned = [
        klip.rotate(image, angle, center)
        for image, angle, center in zip(dataset.input, dataset.PAs, dataset.centers, strict=True)
    ]
    assert planet_offset(np.nanmean(turned, axis=0), dataset.centers[0], products) < NEAR


def test_copies_of_crfints_have_the_star_where_it_is(products):
    """And in the references, too, which have another star."""
    assert (len(products.science), len(products.references)) == (2, 3)
    exposures = {e["file"].rpartition("_")[0]: e for e in products.truth["exposures"]}
    for path in (*products.science, *products.references):
        exposure = exposures[Path(path).name.partition("_c1")[0]]
        header = fits.getheader(path, "SCI")
        found = np.array([header["STARCENX"], header["STARCENY"]]) - 1
        errors = np.array([header["STARERRX"], header["STARERRY"]])
        truth = np.mean(exposure["star_xy_px"], axis=0)
        assert (np.abs(found - truth) < np.maximum(3 * errors, 0.1)).all()
        original = products.result.files[0].parent / Path(path).name
        with fits.open(original) as before, fits.open(path, checksum=True) as after:
            assert [h.name for h in before] == [h.name for h in after]
            np.testing.assert_array_equal(before["SCI"].data, after["SCI"].data)
            np.testing.assert_array_equal(before["DQ"].data, after["DQ"].data)


def test_copies_that_cannot_be_made(products, tmp_path):
    with pytest.raises(OutputError, match="would replace what is copied"):
        copy_crfints(products.result, products.result.files[0].parent)
    with pytest.raises(UsageError, match="no crfints of .* among the files"):
        copy_crfints(replace(products.result, files=()), tmp_path)


def obs_of(products):
    """Return what run_obs reads of spaceKLIP's table of observations."""
    rows = []
    for kind, paths in (("SCI", products.science), ("REF", products.references)):
        for path in paths:
            header = dict(fits.getheader(path)) | dict(fits.getheader(path, "SCI"))
            names = "TELESCOP TARGPROP TARG_RA TARG_DEC INSTRUME DETECTOR FILTER PUPIL CORONMSK"
            names += " EXP_TYPE EXPSTART NINTS EFFINTTM SUBARRAY APERNAME PPS_APER PIXAR_SR BUNIT"
            row = {name: header.get(name, "NONE") for name in (*names.split(), "ROLL_REF")}
            row |= {"CWAVEL": 4.4, "DWAVEL": 1.0, "PIXSCALE": products.scale, "BLURFWHM": np.nan}
            rows.append(row | {"TYPE": kind, "FITSFILE": path, "MASKFILE": "NONE"})
    return Table(rows)


def replay_run_obs(database, kwargs, subdir):
    """Call klip_dataset as spaceKLIP's pyklippipeline.run_obs does, and read what it reads."""
    folder = Path(database.output_dir) / subdir
    folder.mkdir()
    for key, obs in database.obs.items():
        files, library = ([r["FITSFILE"] for r in obs if r["TYPE"] == t] for t in ("SCI", "REF"))
        science = [r["NINTS"] for r in obs if r["TYPE"] == "SCI"]
        maxnumbasis = np.sum(obs["NINTS"]) - science[0]
        for mode in kwargs["mode"]:
            dataset = JWSTData(np.array(files), np.array(library), highpass=False)
            for annuli in kwargs["annuli"]:
                prefix = f"{mode}_NANNU{annuli}_NSUBS1_{key}"
                ours.klip_dataset(
                    dataset=dataset,
                    aligned_center=dataset._centers[0],
                    psf_library=dataset.psflib,
                    mode=mode,
                    annuli=annuli,
                    subsections=1,
                    numbasis=kwargs["numbasis"],
                    movement=1.0,
                    calibrate_flux=False,
                    verbose=False,
                    save_ints=kwargs["save_rolls"],
                    highpass=False,
                    outputdir=str(folder),
                    maxnumbasis=maxnumbasis,
                    fileprefix=prefix,
                )
                path = folder / f"{prefix}-KLmodes-all.fits"
                with fits.open(path) as hdus:
                    hdus[0].header["MODE"] = mode
                    hdus.writeto(path, output_verify="fix", overwrite=True)
                for roll, file in enumerate(files, 1):
                    own = [k for k, f in enumerate(dataset._filenames) if Path(file).name in f]
                    rolls = np.nanmedian(dataset.allints[:, :, own], axis=(1, 2))
                    name = f"{prefix}-KLmodes-all_roll{roll}.fits"
                    fits.writeto(folder / name, rolls)


def real_run_obs(database, kwargs, subdir, monkeypatch):
    pipeline = pytest.importorskip(
        "spaceKLIP.pyklippipeline", reason="spaceKLIP is not installed", exc_type=ImportError
    )
    monkeypatch.setattr(pipeline, "parallelized", ours)  # the one import that changes
    monkeypatch.setattr(pipeline, "get_transmission", lambda obs: None)
    pipeline.run_obs(database=database, kwargs=kwargs, subdir=subdir)


@pytest.mark.parametrize("real", [False, True], ids=["replayed", "spaceKLIP"])
def test_spaceklip_runs_on_crfints(products, real, tmp_path, monkeypatch):
    files = (*products.science, *products.references)
    copies = [shutil.copy(path, tmp_path) for path in files]  # spaceKLIP changes its input
    n = len(products.science)
    own = SimpleNamespace(**vars(products) | {"science": copies[:n], "references": copies[n:]})
    database = SimpleNamespace(
        obs={"KEY": obs_of(own)},
        output_dir=str(tmp_path),
        verbose=False,
        read_jwst_s3_data=lambda paths: None,
    )
    kwargs = {"mode": ["RDI", "ADI+RDI"], "annuli": [1], "subsections": [1], "numbasis": [1, 4]}
    kwargs["save_rolls"] = True
    if real:
        real_run_obs(database, kwargs, "klipsub", monkeypatch)
    else:
        replay_run_obs(database, kwargs, "klipsub")
    for mode in kwargs["mode"]:
        path = tmp_path / "klipsub" / f"{mode}_NANNU1_NSUBS1_KEY-KLmodes-all.fits"
        images, header = fits.getdata(path, header=True)
        center = header["STARCENX"] - 1, header["STARCENY"] - 1
        assert images.shape == (2, 80, 84) and header["MODE"] == mode
        near = NEAR_ADI if "ADI" in mode else NEAR
        assert planet_offset(images[1], center, products) < near
        assert fits.getdata(str(path).replace("all.", "all_roll2.")).shape == (2, 80, 84)
