"""Files with the PSF of an off-axis source, made from the optics."""

import numpy as np
from astropy.io import fits


def effective_psf(psf, places, oversample):
    """Sample what a whole pixel has: (n, m, m), with the source in the middle.

    `psf` is an OffAxisPSF; places (n, 2) are px from the mask.
    """
    reach = (psf.box // 2 - 1) * oversample
    lag = np.arange(-reach, reach + 1) / oversample
    pixel = np.rint(lag).astype(int)
    within = pixel - lag
    out = np.empty((len(places), lag.size, lag.size))
    for y in np.unique(within):
        for x in np.unique(within):
            images = psf.images(places, np.tile([y, x], (len(places), 1)))
            rows, columns = np.flatnonzero(within == y), np.flatnonzero(within == x)
            at = (pixel[k] + psf.box // 2 for k in (rows, columns))
            out[:, rows[:, None], columns] = images[(slice(None), *np.ix_(*at))]
    return out


def grid_about(centre, step, n):
    """Places (n * n, 2) about a place (y, x)."""
    axis = (np.arange(n) - (n - 1) / 2) * step
    return np.stack(np.meshgrid(*(axis + c for c in centre), indexing="ij"), -1).reshape(-1, 2)


def write_cube(path, images, places, unit="arcsec", **keywords):
    """Write images with a table of places (y, x) in this unit."""
    y, x = np.transpose(places)
    columns = [fits.Column(n, "D", unit=unit, array=v) for n, v in (("x", x), ("y", y))]
    table = fits.BinTableHDU.from_columns(columns, name="PLACES")
    image = fits.ImageHDU(images.astype(np.float32), fits.Header(keywords), name="SCI")
    fits.HDUList([fits.PrimaryHDU(), image, table]).writeto(path, overwrite=True)
    return path


def write_stpsf(path, oversampled, oversample, pixel_arcsec, **keywords):
    """Write one image with the layout of STPSF: OVERSAMP in the primary HDU, and DET_SAMP."""
    n = oversampled.shape[-1] // oversample
    binned = oversampled.reshape(n, oversample, n, oversample).sum(axis=(1, 3))
    hdus = []
    for data, name, side in ((oversampled, "OVERSAMP", oversample), (binned, "DET_SAMP", 1)):
        header = fits.Header({"PIXELSCL": pixel_arcsec / side, "DET_SAMP": side, **keywords})
        kind = fits.ImageHDU if hdus else fits.PrimaryHDU
        hdus.append(kind(data, header))
        hdus[-1].header["EXTNAME"] = name
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def write_grid(path, images, pixels, oversample, **keywords):
    """Write effective PSFs with the layout of STPSF's ``psf_grid``, at pixels (y, x) from 0."""
    header = fits.Header({"OVERSAMP": oversample, "NUM_PSFS": len(images), **keywords})
    for k, (y, x) in enumerate(pixels):
        header[f"DET_YX{k}"] = str((float(y), float(x)))
    fits.PrimaryHDU(images, header).writeto(path, overwrite=True)
    return path
