"""pyKLIP's ``klip_dataset``: PSF subtraction of a pyKLIP dataset by gpucoron's KLIP.

Instead of ``from pyklip import parallelized``:

>>> from gpucoron.compat import pyklip as parallelized
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np

from gpucoron import __version__
from gpucoron.backend.device import cpu_threads
from gpucoron.backend.threads import limited_to
from gpucoron.compat.pyklip_images import (
    aligned,
    collapsed,
    derotated,
    high_pass_filtered,
    noise_maps,
)
from gpucoron.compat.pyklip_options import KlipOptions
from gpucoron.compat.pyklip_zones import Library, Zones, allowed_references, make_zones
from gpucoron.errors import InputError, OutputError, ParameterError, plural
from gpucoron.ops.klip_zones import klip_zones

__all__ = ["klip_dataset"]

log = logging.getLogger("gpucoron")

_FILTER_SIZE = 10  # pyKLIP's high-pass filter without a width


def klip_dataset(
    dataset: Any,
    mode: str = "ADI+SDI",
    outputdir: str = ".",
    fileprefix: str = "",
    annuli: int = 5,
    subsections: int = 4,
    movement: float = 3,
    numbasis: Any = None,
    numthreads: int | None = None,
    minrot: float = 0,
    calibrate_flux: bool = False,
    aligned_center: Any = None,
    annuli_spacing: str = "constant",
    maxnumbasis: int | None = None,
    corr_smooth: float = 1,
    spectrum: Any = None,
    psf_library: Any = None,
    highpass: bool | float = False,
    lite: bool = False,
    save_aligned: bool = False,
    restored_aligned: np.ndarray | None = None,
    save_ints: bool = False,
    dtype: Any = None,
    algo: str = "klip",
    skip_derot: bool = False,
    time_collapse: str = "mean",
    wv_collapse: str = "mean",
    verbose: bool = True,
    numchunks: int | None = None,
    min_chunk_size: int = 25,
) -> None:
    """Subtract the star's PSF from a pyKLIP dataset by KLIP, derotate, combine and save.

    Takes what `pyklip.parallelized.klip_dataset` takes, leaves in the dataset what that leaves, and
    writes its files.

    Parameters
    ----------
    dataset : pyklip.instruments.Instrument.Data
        Any pyKLIP dataset: `input` (N, ny, nx), `centers` (N, 2), `PAs`, `wvs`, `filenums`, `IWA`,
        `OWA`, `wcs`, `flipx`, and its method ``savedata``.
    mode : {"ADI", "RDI", "ADI+RDI"}
        Modes with SDI, pyKLIP's default among them, are refused.
    outputdir, fileprefix : str
        Where files go, and what their names begin with.
    annuli, subsections : int
        Number of annuli, and of sections of each.
    movement : float, pixels
        Least distance that a source moves between an image and a reference of the sequence.
    numbasis : int or sequence of int, optional
        Numbers of KL modes. Default: 1, 11, 21, ... up to the number of images or 100.
    numthreads : int, optional
        Default: all processors that the process may use.
    minrot : float, degrees
        Least rotation between an image and a reference of the sequence.
    calibrate_flux : bool
        Call the dataset's ``calibrate_output``.
    aligned_center : (x, y), pixels from 0, optional
        Where the star is put. Default: the mean of the centers for KLIP, the middle of the array
        for the output.
    annuli_spacing : {"constant", "log", "linear"}
    maxnumbasis : int, optional
        Most references of an image in a zone: those that correlate most. Default: the largest of
        `numbasis`.
    corr_smooth : float
        0: correlate the images as they are; else smoothed with a Gaussian of sigma 1 px (in
        pyKLIP, too, whatever the number).
    spectrum : None
        Refused otherwise.
    psf_library : pyklip.rdi.PSFLibrary, optional
        For RDI, prepared for this dataset.
    highpass : bool or float
        Remove low spatial frequencies first; a number is the width in pixels.
    lite : bool
        No effect: the memory is what ``lite=True`` needs. As in pyKLIP not with RDI, save_aligned
        or restored_aligned.
    save_aligned : bool
        Keep the aligned images in `aligned_and_scaled`, and centers, angles and WCSs in `old_*`.
    restored_aligned : (nwv, n, ny, nx) array, optional
        `aligned_and_scaled` of an earlier call.
    save_ints : bool
        Keep the subtracted images before they are derotated in `allints`.
    dtype : {None, ctypes.c_float, ctypes.c_double}
        Of the output: float32 (default) or float64. All is computed in float64.
    algo : {"klip", "none"}
        "none" subtracts nothing. pyKLIP's others are refused.
    skip_derot : bool
        Do not rotate.
    time_collapse, wv_collapse : str
        How images are combined: "mean", "median", "weighted-mean", "weighted-median" (over time,
        with the noise in annuli), "trimmed-mean".
    verbose : bool
        Log what is done at the level INFO of the logger ``gpucoron``.
    numchunks, min_chunk_size : int
        No effect: they divide pyKLIP's work among its processes.

    Raises
    ------
    ParameterError
        An argument that cannot be used, by name.
    InputError
        A dataset whose arrays do not fit together.
    OutputError
        `outputdir` is no folder.

    Notes
    -----
    Sets `output` (b, N / nwv, nwv, ny, nx), `output_centers`, `output_wcs` and `klipparams`, and
    with the options above `input`, `allints`, `aligned_and_scaled` and `old_*`. Writes
    ``<fileprefix>-KLmodes-all.fits``, and with several wavelengths ``-KL<n>-speccube.fits`` for
    each number of modes. The keyword GPUCORON in them has gpucoron's version; the others are those
    that the dataset writes.

    Images are aligned and derotated by cubic splines with pyKLIP's rule for NaN. NaN in a zone
    count as the image's mean there. Modes beyond the rank of the references are left out, where
    pyKLIP divides by what rounding left of them. Wavelengths are subtracted one by one.

    References
    ----------
    Soummer, Pueyo & Larkin (2012), ApJL 755, L28; Wang et al. (2015), pyKLIP, ASCL 1506.001.
    """
    _check_dataset(dataset)
    options = KlipOptions.checked(
        len(dataset.input),
        mode=mode,
        annuli=annuli,
        subsections=subsections,
        movement=movement,
        numbasis=numbasis,
        maxnumbasis=maxnumbasis,
        minrot=minrot,
        calibrate_flux=calibrate_flux,
        annuli_spacing=annuli_spacing,
        corr_smooth=corr_smooth,
        spectrum=spectrum,
        highpass=highpass,
        lite=lite,
        save_aligned=save_aligned,
        restored_aligned=restored_aligned,
        save_ints=save_ints,
        dtype=dtype,
        algo=algo,
        skip_derot=skip_derot,
        time_collapse=time_collapse,
        wv_collapse=wv_collapse,
    )
    library = _checked_library(psf_library, dataset, highpass, aligned_center, options.rdi)
    if library is not None:
        aligned_center = library.aligned_center
    center = None if aligned_center is None else _pair(aligned_center)
    folder = Path(outputdir or ".").resolve()
    if not folder.is_dir():
        raise OutputError(f"outputdir={str(outputdir)!r} is not a folder")
    with limited_to(None if numthreads is None else min(numthreads, cpu_threads())):
        _prepare(dataset, options, restored_aligned)
        weights = _reduce(dataset, options, center, library, restored_aligned)
        dataset.klipparams = options.klipparams(highpass, "{numbasis}")
        if verbose:
            log.info("klip_dataset: writing to %s", folder)
        _save(dataset, options, weights, folder / fileprefix)


def _pair(values):
    pair = np.array(values, dtype=np.float64)
    if pair.shape != (2,) or not np.isfinite(pair).all():
        raise ParameterError(f"aligned_center is {values!r}, expected x and y")
    return pair


def _check_dataset(dataset):
    shape = np.shape(dataset.input)
    if len(shape) != 3 or not shape[0]:
        raise InputError(f"dataset.input has shape {shape}, expected (N, ny, nx)")
    for name, expected in (
        ("centers", (shape[0], 2)),
        ("PAs", shape[:1]),
        ("wvs", shape[:1]),
        ("filenums", shape[:1]),
    ):
        values = np.asarray(getattr(dataset, name))
        if values.shape != expected:
            raise InputError(f"dataset.{name} has shape {values.shape}, expected {expected}")
        if not np.isfinite(values.astype(np.float64)).all():
            raise InputError(f"dataset.{name} is not finite for {_some(values)}")
    counts = np.unique(dataset.wvs, return_counts=True)[1]
    if counts.min() != counts.max():
        raise InputError(
            f"dataset.wvs: {counts.min()} to {counts.max()} images of a wavelength, expected as "
            "many of each"
        )


def _some(values):
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    return f"image {bad[0]}" if len(bad) == 1 else f"{len(bad)} images, the first {bad[0]}"


def _checked_library(library, dataset, highpass, aligned_center, rdi):
    """Return the library that RDI uses; None without RDI."""
    if not rdi:
        return None
    if library is None:
        raise ParameterError("psf_library is None, expected a pyklip.rdi.PSFLibrary for RDI")
    if library.dataset is not dataset:
        raise ParameterError(
            "psf_library is not prepared for this dataset; call its prepare_library(dataset)"
        )
    if highpass != library.highpass:
        raise ParameterError(
            f"highpass={highpass} differs from that of psf_library, {library.highpass}"
        )
    if aligned_center is not None and not np.array_equal(aligned_center, library.aligned_center):
        raise ParameterError(
            f"aligned_center={aligned_center} differs from that of psf_library, "
            f"{library.aligned_center}"
        )
    shape, expected = library.master_library.shape[1:], dataset.input.shape[1:]
    if shape != expected:
        raise ParameterError(f"psf_library has images of {shape}, the dataset of {expected}")
    if len(library.correlation) != len(dataset.input):
        raise ParameterError(
            f"psf_library has correlations with {len(library.correlation)} images of the dataset, "
            f"expected {len(dataset.input)}: their filenames must be in the library"
        )
    return library


def _prepare(dataset, options, restored_aligned):
    """Keep or restore centers, angles and WCSs, and filter the images."""
    names = ("wcs", "centers", "PAs")
    if options.save_aligned:
        for name in names:
            setattr(dataset, f"old_{name}", copy.deepcopy(getattr(dataset, name)))
    if restored_aligned is not None:
        for name in names:
            setattr(dataset, name, copy.deepcopy(getattr(dataset, f"old_{name}")))
    elif options.highpass is not False:
        size = float(_FILTER_SIZE)
        if options.highpass is not True:  # a width at half maximum in pixels
            size = dataset.input.shape[1] / options.highpass / (2 * np.sqrt(2 * np.log(2)))
        dataset.input = high_pass_filtered(dataset.input, size)


def _reduce(dataset, options, center, psf_library, restored_aligned):
    """Subtract and derotate all images; set the dataset's attributes; return weights or None."""
    wavelengths, planes = np.unique(dataset.wvs, return_inverse=True)
    new_center = np.array([s // 2 for s in dataset.input.shape[:0:-1]], dtype=np.float64)
    new_center = new_center if center is None else center
    outputs, noises, residuals, stacks = [], [], [], []
    for plane in range(len(wavelengths)):
        which = np.flatnonzero(planes == plane)
        centers = np.asarray(dataset.centers, dtype=np.float64)[which]
        middle = centers.mean(axis=0) if center is None else center
        if restored_aligned is None:
            images = np.asarray(dataset.input[which], dtype=np.float64)
            images = aligned(images, centers, middle)
        else:
            images = np.array(restored_aligned[plane], dtype=np.float64)
        zones = make_zones(
            dataset.input[which],
            centers[0],
            middle,
            dataset.IWA,
            dataset.OWA,
            options.annuli,
            options.subsections,
            options.annuli_spacing,
        )
        left = _subtracted(dataset, options, images, which, zones, psf_library)
        angles = np.zeros(len(which)) if options.skip_derot else dataset.PAs[which]
        turn = np.asarray(angles, dtype=np.float64), np.tile(middle, (len(which), 1)), new_center
        output = derotated(left, *turn, bool(dataset.flipx))
        outputs.append(output.astype(options.dtype, copy=False))
        if options.weighted:
            noise = noise_maps(np.array(left), middle, dataset.IWA, zones.outer, zones.width)
            noises.append(derotated(list(noise), *turn, bool(dataset.flipx)))
        if options.save_ints:
            residuals.append(np.array(left, dtype=options.dtype))
        if options.save_aligned:
            stacks.append(images.astype(options.dtype))
    dataset.output = outputs[0][:, :, None] if len(outputs) == 1 else np.stack(outputs, axis=2)
    dataset.output_centers = np.tile(new_center, (len(dataset.input), 1))
    dataset.output_wcs = _turned_wcs(dataset, options)
    if options.save_ints:
        dataset.allints = np.stack(residuals, axis=1)
    if options.save_aligned:
        dataset.aligned_and_scaled = np.array(stacks)
    return 1 / np.stack(noises, axis=2) ** 2 if options.weighted else None


def _subtracted(dataset, options, images, which, zones: Zones, psf_library):
    """Return the images of one wavelength without PSF, b of (n, ny, nx); NaN outside the zones."""
    library = None
    if psf_library is not None:
        good = psf_library.isgoodpsf
        library = Library(
            np.asarray(psf_library.master_library[good], dtype=np.float64),
            psf_library.correlation[which][:, good],
        )
    allowed = allowed_references(
        zones,
        images,
        np.asarray(dataset.PAs, dtype=np.float64)[which],
        library,
        adi=options.adi,
        movement=options.movement,
        minrot=options.minrot,
        most=options.maxnumbasis,
        smooth=options.smooth,
    )
    alone = int((~allowed.any(axis=2)).sum())
    if alone:
        log.warning(
            "klip_dataset: no reference that moves %g px for %s in a zone (of %d); there the "
            "result is NaN",
            options.movement,
            plural(alone, "image"),
            allowed[..., 0].size,
        )
    if options.subtract:
        references = images if library is None else np.concatenate([images, library.images])
        left = klip_zones(
            np.arange(len(images)),  # the first of the references
            references,
            zones.labels,
            options.numbasis,
            allowed=allowed,
            nan="mean",
        ).residuals
    else:
        left = [_inside(images, zones, allowed)]
    missing = np.isnan(dataset.input[which])
    if missing.any():
        for planes in left:
            planes[missing] = np.nan
    return left


def _inside(images, zones, allowed):
    """Return images that are NaN outside the zones, and where there is no reference."""
    flat, kept = images.reshape(len(images), -1), np.full((len(images), images[0].size), np.nan)
    for pixels, rows in zip(zones.pixels, allowed.any(axis=2), strict=True):
        kept[np.ix_(rows, pixels)] = flat[np.ix_(rows, pixels)]
    return kept.reshape(images.shape)


def _turned_wcs(dataset, options):
    """Return copies of the WCSs, rotated as the images are."""
    turned = np.empty(len(dataset.input), dtype=object)
    for k, wcs in enumerate(dataset.wcs):
        if wcs is None:
            continue
        turned[k] = wcs.deepcopy()
        angle = 0.0 if options.skip_derot else np.radians(dataset.PAs[k])
        cos, sin = np.cos(angle), np.sin(angle)
        cd = turned[k].wcs.cd @ np.array([[cos, sin], [-sin, cos]])
        if dataset.flipx:
            cd[:, 0] *= -1
        turned[k].wcs.cd = cd
    return turned


def _save(dataset, options, weights, prefix):
    """Combine the output and write pyKLIP's files."""
    cubes = collapsed(dataset.output, options.time_collapse, 1, weights)  # (b, nwv, ny, nx)
    keywords = {"GPUCORON": (__version__, "gpucoron version that subtracted the PSF")}
    if cubes.shape[1] > 1:
        for modes, cube in zip(options.numbasis, cubes, strict=True):
            cube = dataset.calibrate_output(cube, spectral=True) if options.calibrate_flux else cube
            dataset.savedata(
                f"{prefix}-KL{modes}-speccube.fits",
                cube,
                klipparams=dataset.klipparams.format(numbasis=modes),
                filetype="PSF Subtracted Spectral Cube",
                more_keywords=keywords,
            )
    images = collapsed(cubes, options.wv_collapse)
    if options.calibrate_flux:
        images = dataset.calibrate_output(images, spectral=False)
    modes = "[" + " ".join(map(str, options.numbasis)) + "]"
    dataset.savedata(
        f"{prefix}-KLmodes-all.fits",
        images,
        klipparams=dataset.klipparams.format(numbasis=modes),
        filetype="KL Mode Cube",
        zaxis=options.numbasis,
        more_keywords=keywords,
    )
