"""klip_dataset beside pyKLIP's own, on datasets of its own classes."""

import contextlib
import copy
import ctypes
import io
import os

import numpy as np
import pytest
from astropy.io import fits

from gpucoron.compat import pyklip as ours
from gpucoron.errors import GpucoronError
from tests.compat.sequences import sequence
from tests.helpers.tolerances import PYKLIP

parallelized = pytest.importorskip("pyklip.parallelized", reason="pyklip is not installed")
from pyklip import klip, rdi  # noqa: E402
from pyklip.instruments.Instrument import GenericData  # noqa: E402

N, N_LIBRARY, ALIGNED = 8, 6, (24.0, 22.0)
DOUBLE = {"dtype": ctypes.c_double, "verbose": False}


def dataset(seed=3, nans=5, owa=None, **options):
    angles = np.linspace(0, 70, N)
    images, centers = sequence(seed, N, angles=angles, nans=nans)
    names = np.array([f"science{k}" for k in range(N)])
    made = GenericData(images, centers, angles, np.ones(N), 3, names, **options)
    made.OWA = owa
    return made


def spectral_dataset(seed=4):
    """Six exposures of two wavelengths each, flipped."""
    angles, wavelengths = np.repeat(np.linspace(0, 70, 6), 2), np.tile([1.0, 1.2], 6)
    images, centers = sequence(seed, 12, angles=angles, nans=3)
    names = np.repeat([f"cube{k}" for k in range(6)], 2)
    return GenericData(images, centers, angles, wavelengths, 3, names, flipx=True)


def library(science, seed=53, nans=5):
    images, centers = sequence(seed, N_LIBRARY, angles=np.zeros(N_LIBRARY), flux=1.5, nans=nans)
    images = np.concatenate([images, science.input])
    centers = np.concatenate([centers, science.centers])
    moved = [klip.align_and_scale(i, ALIGNED, c) for i, c in zip(images, centers, strict=True)]
    names = [*(f"reference{k}" for k in range(N_LIBRARY)), *science.filenames]
    made = rdi.PSFLibrary(np.array(moved), ALIGNED, np.array(names), compute_correlation=True)
    made.prepare_library(science)
    return made


def reduce_by(function, folder, make, **options):
    """Run one of the two; return the dataset and the arrays of the files."""
    folder.mkdir()
    made = make()
    if "RDI" in options["mode"]:
        options["psf_library"] = library(made)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function(made, outputdir=str(folder), fileprefix="x", **DOUBLE, **options)
    return made, {name: fits.getdata(folder / name) for name in sorted(os.listdir(folder))}


def compare(tmp_path, make, **options):
    theirs, their_files = reduce_by(parallelized.klip_dataset, tmp_path / "a", make, **options)
    found, files = reduce_by(ours.klip_dataset, tmp_path / "b", make, **options)
    assert np.isfinite(theirs.output).mean() > 0.1
    np.testing.assert_allclose(found.output, theirs.output, atol=PYKLIP)
    assert found.output.dtype == theirs.output.dtype
    assert files.keys() == their_files.keys() and "x-KLmodes-all.fits" in files
    for name, array in files.items():
        np.testing.assert_allclose(array, their_files[name], atol=PYKLIP)
    np.testing.assert_array_equal(found.output_centers, theirs.output_centers)
    assert found.klipparams == theirs.klipparams
    for wcs, their_wcs in zip(found.output_wcs, theirs.output_wcs, strict=True):
        np.testing.assert_allclose(wcs.wcs.cd, their_wcs.wcs.cd, atol=1e-12)
    return found, theirs


@pytest.mark.parametrize("seed", [3, 7])
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "ADI", "annuli": 1, "subsections": 1, "movement": 0, "numbasis": [1, 5]},
        {"mode": "ADI", "annuli": 3, "movement": 2, "numbasis": 4, "maxnumbasis": 5},
        {"mode": "RDI", "annuli": 1, "subsections": 1, "numbasis": [1, 3, 6]},
        {"mode": "RDI", "annuli": 2, "subsections": 2, "numbasis": [1, 3]},
        {"mode": "ADI+RDI", "annuli": 2, "subsections": 1, "movement": 2, "numbasis": [2, 9]},
        {"mode": "ADI+RDI", "annuli": 4, "movement": 4, "numbasis": [1, 20]},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_zones_modes_and_choice_of_references_are_those_of_pyklip(options, seed, tmp_path):
    compare(tmp_path, lambda: dataset(seed, owa=None if seed == 3 else 19), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"annuli_spacing": "log", "time_collapse": "weighted-mean", "corr_smooth": 0, "minrot": 15},
        {"annuli_spacing": "linear", "time_collapse": "weighted-median", "highpass": True},
        {"aligned_center": [20.5, 23.0], "time_collapse": "trimmed-mean", "highpass": 5.0},
        {"algo": "none", "skip_derot": True, "time_collapse": "median"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_options(options, tmp_path):
    settings = {"mode": "ADI", "annuli": 2, "subsections": 2, "movement": 1, "numbasis": [2, 3]}
    found, theirs = compare(tmp_path, lambda: dataset(owa=21), **settings | options)
    np.testing.assert_allclose(found.input, theirs.input, atol=PYKLIP)


def drawn(seed):
    """Return a dataset, by a function, and options of klip_dataset, all drawn from a seed."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(36, 58, 2))
    center = tuple((np.array(shape[::-1]) - 1) / 2 + rng.uniform(-2, 2, 2))
    n, nans, flipped = int(rng.integers(6, 13)), int(rng.integers(0, 9)), bool(rng.integers(2))
    angles = np.sort(rng.uniform(-60, 120, n))
    iwa, owa = float(rng.uniform(0, 5)), float(rng.uniform(13, 17))

    def make():
        options = {"angles": angles, "nans": nans, "shape": shape, "center": center}
        images, centers = sequence(seed, n, **options)
        names = np.array([f"science{k}" for k in range(n)])
        made = GenericData(images, centers, angles, np.ones(n), iwa, names, flipx=flipped)
        made.OWA = owa if seed % 3 else None
        return made

    return make, {
        "mode": "ADI",
        "annuli": int(rng.integers(1, 5)),
        "subsections": int(rng.integers(1, 6)),
        "annuli_spacing": ("constant", "log")[int(rng.integers(2))],
        "movement": float(rng.uniform(0.5, 2)),
        "numbasis": sorted({int(k) for k in rng.integers(1, 10, 4)}),
        "maxnumbasis": int(rng.integers(3, n + 1)),
        "corr_smooth": int(rng.integers(2)),
        "time_collapse": ("mean", "median")[int(rng.integers(2))],
    }


@pytest.mark.parametrize("seed", [100, 101, 102, 103, 104, 105])
def test_settings_drawn_at_random(seed, tmp_path):
    """Odd and even sizes, stars beside the middle, NaN, inner radii, log spacing, several K."""
    make, options = drawn(seed)
    compare(tmp_path, make, **options)


def test_what_is_kept_of_the_images(tmp_path):
    settings = {"mode": "ADI", "annuli": 1, "subsections": 2, "movement": 1, "numbasis": [2, 3]}
    settings |= {"save_aligned": True, "save_ints": True}
    found, theirs = compare(tmp_path, dataset, **settings)
    np.testing.assert_allclose(found.allints, theirs.allints, atol=PYKLIP)
    np.testing.assert_allclose(found.aligned_and_scaled, theirs.aligned_and_scaled, atol=PYKLIP)
    again = copy.deepcopy(found)
    again.input = np.where(np.isnan(found.input), np.nan, 0)  # not looked at
    settings |= {"restored_aligned": found.aligned_and_scaled, "save_aligned": False}
    ours.klip_dataset(again, outputdir=str(tmp_path), **DOUBLE, **settings)
    np.testing.assert_allclose(again.output, theirs.output, atol=PYKLIP)


def test_spectral_cubes(tmp_path):
    options = {"mode": "ADI", "annuli": 2, "subsections": 2, "movement": 1, "numbasis": [2, 4]}
    found, _ = compare(tmp_path, spectral_dataset, **options, wv_collapse="median")
    assert found.output.shape[:3] == (2, 6, 2)
    header = fits.getheader(tmp_path / "b" / "x-KLmodes-all.fits")
    assert header["KLMODE1"] == 4 and header["PSFPARAM"].startswith("mode=ADI,annuli=2,subsect=2,")


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"mode": "ADI+SDI"}, "mode='ADI+SDI': SDI"),
        ({"mode": "PCA"}, "mode='PCA'"),
        ({"spectrum": "methane"}, "spectrum"),
        ({"algo": "nmf"}, "algo='nmf'"),
        ({"numbasis": [1.5]}, "numbasis is [1.5]"),
        ({"numbasis": [0, 1]}, "numbasis has 0"),
        ({"annuli": 0}, "annuli is 0"),
        ({"annuli": 50}, "annuli=50"),
        ({"movement": -1}, "movement is -1"),
        ({"annuli_spacing": "cubic"}, "annuli_spacing='cubic'"),
        ({"time_collapse": "mode"}, "time_collapse='mode'"),
        ({"dtype": int}, "dtype is"),
        ({"aligned_center": 3}, "aligned_center is 3"),
        ({"outputdir": "nowhere"}, "outputdir='nowhere'"),
        ({"mode": "RDI"}, "psf_library is None"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_are_named_before_any_work(options, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = dataset()
    with pytest.raises(GpucoronError) as caught:
        ours.klip_dataset(made, **{"mode": "ADI", "numbasis": 2} | options)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)
    assert made.output is None and not os.listdir(tmp_path)


def test_an_image_without_references_is_nan_and_said(tmp_path, caplog):
    made = dataset()
    ours.klip_dataset(made, "ADI", str(tmp_path), annuli=3, movement=9, numbasis=1)
    assert "no reference that moves 9 px for" in caplog.text
    assert np.isnan(made.output).any() and np.isfinite(made.output).any()
