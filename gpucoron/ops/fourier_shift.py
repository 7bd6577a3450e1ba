"""Subpixel shifts by the Fourier shift theorem."""

from __future__ import annotations

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import fft_module, to_host
from gpucoron.backend.device import on_gpu
from gpucoron.backend.parallel import over_items
from gpucoron.errors import InputError

__all__ = [
    "fourier_shift",
    "gradient",
    "multiply_phases",
    "shift_spectra",
    "shift_variance_spectra",
    "shift_variances",
    "spectra",
]


def fourier_shift(images, shifts_yx):
    """Shift images by fractions of a pixel; edges wrap around.

    Parameters
    ----------
    images : (n, ny, nx) floating
        Finite images, on the host or on a GPU.
    shifts_yx : (n, 2) floating, pixels
        How far the content moves towards larger y and x; on either.

    Returns
    -------
    (n, ny, nx) float64
        The shifted images, where the images are.

    Raises
    ------
    InputError
        Shapes that do not fit, or an image that is not finite (it would come out all NaN).

    Notes
    -----
    The result is the real part of ``ifft2(fft2(image) * exp(-2 pi i k.s / N))``, what
    `scipy.ndimage.fourier_shift` gives. It is computed with real transforms: on the row and column
    of the Nyquist frequency of an even size the real part turns the phase into a cosine, and at
    the corner where both are Nyquist into ``cos(pi (sx + sy))``.

    On the host, images are shared among as many threads as numba may use. On a GPU the check for
    values that are not finite waits for the device; `shift_spectra` does not.

    Whole-pixel shifts are exact to rounding; a shift and its opposite give the image back for odd
    sizes, and for even sizes but for the Nyquist frequency.
    """
    images, shifts_yx = cuda.as_device_arrays(images, shifts_yx)
    if images.ndim != 3:
        raise InputError(f"images have shape {images.shape}, expected (n, ny, nx)")
    shifts_yx = to_host(shifts_yx).astype(np.float64)
    if shifts_yx.shape != (images.shape[0], 2):
        raise InputError(f"shifts have shape {shifts_yx.shape}, expected {(images.shape[0], 2)}")
    finite = to_host(cuda.array_namespace(images).isfinite(images).all(axis=(1, 2)))
    finite &= np.isfinite(shifts_yx).all(axis=1)
    if not finite.all():
        raise InputError(
            f"image or shift {int(np.flatnonzero(~finite)[0])} is not finite; fill bad pixels first"
        )
    return shift_spectra(spectra(images), shifts_yx, images.shape[1:])


def spectra(images):
    """Transform real images in double precision.

    Parameters
    ----------
    images : (n, ny, nx) floating
        Finite images.

    Returns
    -------
    (n, ny, nx // 2 + 1) complex128
        The half spectra of `scipy.fft.rfft2`.
    """
    if on_gpu(images):
        from gpucoron.ops.cuda.fourier_shift import spectra as on_device

        return on_device(images)
    n, ny, nx = images.shape
    out = np.empty((n, ny, nx // 2 + 1), dtype=np.complex128)
    rfft2 = fft_module(images).rfft2

    def transform(k):
        out[k] = rfft2(np.asarray(images[k], dtype=np.float64))

    over_items(transform, range(n))
    return out


def shift_spectra(half_spectra, shifts_yx, shape, out=None):
    """Shift images that are given as spectra, and transform them back.

    Parameters
    ----------
    half_spectra : (n, ny, nx // 2 + 1) complex128
        From `spectra`; computed once and used for many shifts.
    shifts_yx : (n, 2) float64, pixels
        One shift for each image; on the host or where the spectra are.
    shape : (ny, nx)
        Shape of the images.
    out : (n, ny, nx) float64, optional
        Where to put the result.

    Returns
    -------
    (n, ny, nx) float64
        The shifted images.
    """
    if on_gpu(half_spectra):
        from gpucoron.ops.cuda.fourier_shift import shift_spectra as on_device

        return on_device(half_spectra, shifts_yx, shape, out)
    from gpucoron.ops.cpu.fourier_shift import apply_phases

    row, column, corner = phases(np.asarray(shifts_yx, dtype=np.float64), shape)
    both_even = shape[0] % 2 == 0 and shape[1] % 2 == 0
    out = np.empty((len(half_spectra), *shape)) if out is None else out
    irfft2 = fft_module(half_spectra).irfft2

    def shift(k):  # one at a time stays in the processor's cache
        shifted = apply_phases(half_spectra[k], row[k], column[k], corner[k], both_even)
        out[k] = irfft2(shifted, s=shape, overwrite_x=True)

    over_items(shift, range(len(half_spectra)))
    return out


def multiply_phases(half_spectra, shifts_yx, shape):
    """Shift images that are given as spectra, and leave them so.

    Parameters
    ----------
    half_spectra : (n, ny, nx // 2 + 1) complex128
        From `spectra`.
    shifts_yx : (n, 2) float64, pixels
        One shift for each image; on the host or where the spectra are.
    shape : (ny, nx)
        Shape of the images.

    Returns
    -------
    (n, ny, nx // 2 + 1) complex128
        The half spectra of the shifted images.
    """
    if on_gpu(half_spectra):
        from gpucoron.ops.cuda.fourier_shift import multiply_phases as on_device

        return on_device(half_spectra, shifts_yx, shape)
    from gpucoron.ops.cpu.fourier_shift import apply_phases

    factors = phases(np.asarray(shifts_yx, dtype=np.float64), shape)
    both_even = shape[0] % 2 == 0 and shape[1] % 2 == 0
    return np.array(
        [
            apply_phases(spectrum, *pair, both_even)  # type: ignore[call-arg]
            for spectrum, *pair in zip(half_spectra, *factors, strict=True)
        ]
    )


def shift_variances(variances, shifts_yx):
    """Return the variances of shifted images whose pixels have independent noise.

    Parameters
    ----------
    variances : (n, ny, nx) floating
        Finite variances of the pixels before the shift, on the host or on a GPU.
    shifts_yx : (n, 2) floating, pixels
        The shifts, as for `fourier_shift`.

    Returns
    -------
    (n, ny, nx) float64
        Never negative.

    Notes
    -----
    A shifted pixel is ``sum_q k(p - q) image(q)`` with the shift's interpolation kernel k, so its
    variance is ``sum_q k(p - q)^2 variance(q)``: a convolution with the squared kernel, whose sum
    is 1. Of two even sizes the corner where both frequencies are Nyquist is neglected (at most
    1 / pixels of the variance).
    """
    xp = cuda.array_namespace(variances)
    planes = xp.ascontiguousarray(variances, dtype=np.float64)
    return shift_variance_spectra(fft_module(planes).rfft2(planes), shifts_yx, planes.shape[1:])


def shift_variance_spectra(half_spectra, shifts_yx, shape):
    """Return what `shift_variances` does, from spectra of the variances.

    Parameters
    ----------
    half_spectra : (n, ny, nx // 2 + 1) complex128
        From `spectra`; never changed.
    shifts_yx : (n, 2) floating, pixels
    shape : (ny, nx)

    Returns
    -------
    (n, ny, nx) float64
    """
    xp, nx = cuda.array_namespace(half_spectra), shape[1]
    along_y, along_x, _ = phases(to_host(shifts_yx).astype(np.float64), shape)
    squared_y = np.fft.fft(np.fft.ifft(along_y).real ** 2)
    squared_x = np.fft.rfft(np.fft.irfft(along_x, n=nx) ** 2)
    # all at once: cuFFT takes no single image that begins at an odd number
    moved = half_spectra * xp.asarray(squared_y)[:, :, None]
    moved *= xp.asarray(squared_x)[:, None, :]
    return xp.maximum(fft_module(moved).irfft2(moved, s=shape), 0.0)


def phases(shifts_yx, shape):
    """Separable phase factors of a shift, and the factor of the corner that is not separable.

    Parameters
    ----------
    shifts_yx : (n, 2) float64, pixels
        The shifts.
    shape : (ny, nx)
        Shape of the images.

    Returns
    -------
    (n, ny) complex128, (n, nx // 2 + 1) complex128, (n,) float64
        Factors of the rows, of the columns, and of the Nyquist corner (used only where both sizes
        are even).
    """
    ny, nx = shape
    sy, sx = shifts_yx[:, :1], shifts_yx[:, 1:]
    phase_y = np.exp(-2j * np.pi * np.fft.fftfreq(ny) * sy)
    phase_x = np.exp(-2j * np.pi * np.fft.rfftfreq(nx) * sx)
    if ny % 2 == 0:
        phase_y[:, ny // 2] = np.cos(np.pi * sy[:, 0])
    if nx % 2 == 0:
        phase_x[:, -1] = np.cos(np.pi * sx[:, 0])
    return phase_y, phase_x, np.cos(np.pi * (sx + sy))[:, 0]


def gradient(image):
    """Differentiate an image in Fourier space.

    Parameters
    ----------
    image : (ny, nx) floating
        A finite image.

    Returns
    -------
    (ny, nx) float64, (ny, nx) float64
        Its derivatives along y and x, per pixel. The Nyquist frequency of an even size has none.
    """
    xp, fft = cuda.array_namespace(image), fft_module(image)
    along_y, along_x = (xp.asarray(factors) for factors in derivatives(image.shape))
    spectrum = fft.rfft2(xp.asarray(image, dtype=np.float64))
    return (
        fft.irfft2(spectrum * along_y[:, None], s=image.shape),
        fft.irfft2(spectrum * along_x, s=image.shape),
    )


def derivatives(shape):
    """Factors by which a half spectrum is differentiated.

    Parameters
    ----------
    shape : (ny, nx)
        Shape of the image.

    Returns
    -------
    (ny,) complex128, (nx // 2 + 1,) complex128
        2 pi i times the frequencies; 0 at the Nyquist frequency of an even size. On the host.
    """
    ny, nx = shape
    along_y, along_x = 2j * np.pi * np.fft.fftfreq(ny), 2j * np.pi * np.fft.rfftfreq(nx)
    if ny % 2 == 0:
        along_y[ny // 2] = 0.0
    if nx % 2 == 0:
        along_x[-1] = 0.0
    return along_y, along_x
