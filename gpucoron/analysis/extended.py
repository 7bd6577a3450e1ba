"""Forward model of extended sources: what a run shows of a disk whose image on the sky is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import fft, sparse

from gpucoron.analysis.sky_grid import SkyGrid
from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.fourier_shift import fourier_shift

if TYPE_CHECKING:
    from gpucoron.analysis.forward import ExposureResponse, ForwardModel
    from gpucoron.optics.field_psf import FieldPSF

__all__ = ["Convolution", "ExtendedSource", "FluxFit", "SkyGrid", "fit_flux", "forward_model"]

_PSFS = ("field", "one")


def forward_model(
    image: Any,
    result: Any,
    grid: SkyGrid | float | None = None,
    *,
    truncate: int | None = None,
    psf: str = "field",
) -> np.ndarray:
    """Return what a run's combined image shows of a disk, or of any other source.

    Parameters
    ----------
    image : (my, mx) floating, MJy/sr, or dict of str to (ny, nx)
        Of the source on the sky before the telescope, 0 where there is nothing; or by exposure, as
        for `ExtendedSource`.
    result : ProductResult or ForwardModel
        Of a run with a forward model.
    grid : SkyGrid or float, optional
        Where the image's pixels are; a number is their side in arcsec, with north up, east left
        and the star in the middle. None for images by exposure.
    truncate : int, optional
        Number of KL vectors. Default: the largest of the run.
    psf : {"field", "one"}
        As for `ExtendedSource`.

    Returns
    -------
    (ny, nx) float64, MJy/sr
        NaN where the combined image has no data.

    Raises
    ------
    InputError
        The run has no forward model, or the image does not fit the grid.

    Notes
    -----
    The tables of the last grid are kept, so that a loop over images on one grid costs what
    `ExtendedSource` says; what that is, and how it is made, is said there.
    """
    forward = getattr(result, "forward_model", result)
    if forward is None or not hasattr(forward, "exposures"):
        raise InputError(
            f"result is {type(result).__name__}, expected a product with a forward model: a run "
            "with klip and resample whose star and optics are known"
        )
    if isinstance(grid, int | float):
        shape: Any = np.shape(image)
        grid = SkyGrid(shape, float(grid))
    return _source(forward, grid, psf)(image, truncate)


@lru_cache(maxsize=1)
def _source(forward: ForwardModel, grid: SkyGrid | None, psf: str) -> ExtendedSource:
    return ExtendedSource(forward, grid, psf)


class ExtendedSource:
    """Predicts what combined images show of extended sources on one grid, without a new run.

    Made once for a grid, then called for each image on it, as a fit of a disk's model does.

    Parameters
    ----------
    forward : ForwardModel
        Of a run (`ProductResult.forward_model`).
    grid : SkyGrid or None
        Where the pixels of the images are on the sky. None: images are those of the exposures,
        on the detector, before convolution, by the names of these.
    psf : {"field", "one"}
        How images are convolved: with the PSF of each place behind the mask, or with that far from
        the mask after they are multiplied by the mask's throughput, which is several times faster.

    Notes
    -----
    An image has surface brightness, MJy/sr. It is interpolated (linear) at the pixels of an
    exposure, each the mean of some points where the grid is finer, convolved, and goes through PSF
    subtraction and drizzle as `ForwardModel` says. All is linear in the image where references do
    not contain the source (RDI).
    """

    def __init__(self, forward: ForwardModel, grid: SkyGrid | None = None, psf: str = "field"):
        from gpucoron.optics.field_psf import FieldPSF

        if psf not in _PSFS:
            raise ParameterError(f"psf is {psf!r}, expected one of {', '.join(_PSFS)}")
        self.forward, self.grid = forward, grid
        self._exposures = {e.root: e for e in forward.exposures}
        self._at: dict[str, sparse.csr_array] = {}
        self._psf: FieldPSF = FieldPSF(forward.psf, varying=psf == "field")
        self._convolutions: dict[tuple, Convolution] = {}
        for exposure in forward.exposures:
            if grid is not None:
                self._at[exposure.root] = _sampling(forward, exposure, grid)

    def __call__(self, image: Any, truncate: int | None = None) -> np.ndarray:
        """Return what the combined image shows of a source.

        Parameters
        ----------
        image : (my, mx) floating, MJy/sr, or dict of str to (ny, nx)
            On the grid, 0 where there is nothing; without a grid, for each exposure.
        truncate : int, optional
            Number of KL vectors. Default: the largest of the run.

        Returns
        -------
        (ny, nx) float64, MJy/sr
            NaN where the combined image has no data.
        """
        forward = self.forward
        truncate = max(forward.truncations) if truncate is None else truncate
        seen = self.in_exposures(image)
        stamps, corners = [], []
        for exposure in forward.exposures:
            groups = [seen[exposure.root]]
            for root, move in getattr(exposure, "rolls", ()):
                groups.append(fourier_shift(seen[root][None], np.array([move]))[0])
            planes = np.stack(groups)
            stamps.append(planes[None] if len(planes) > 1 else planes)
            zero = np.zeros((1, len(planes), 2), np.int64)
            corners.append(zero if len(planes) > 1 else zero[:, 0])
        ny, nx = forward.wcs.shape
        first = np.zeros((1, 2), np.int64)
        kept = forward._kept(truncate)
        found = forward._combined.patches(stamps, corners, first, max(ny, nx), kept)
        return found[0, :ny, :nx]

    def measure(
        self,
        image: np.ndarray,
        data: np.ndarray,
        err: np.ndarray,
        *,
        truncate: int | None = None,
        where: np.ndarray | None = None,
        correlation: float = 1.0,
        turns: int = 11,
    ) -> FluxFit:
        """Fit the brightness of a source, with an error that has the speckles in it.

        Parameters
        ----------
        image, truncate
            As for a call, on a grid; `image` is the source's shape.
        data, err, where, correlation
            As for `fit_flux`.
        turns : int
            Angles by which the source is turned about the star, 360 degrees / (turns + 1) apart,
            and fitted again to what is left: the scatter of these is added to the error.

        Notes
        -----
        Pixels are weighted by the median error at their distance from the star. The error of a
        pixel by itself has the source's own photons and the chance of its speckles in it; weights
        from it make a source fainter than it is.
        """
        from scipy import ndimage

        if self.grid is None:
            raise InputError("the source is on the detector, expected one on a grid of the sky")
        shown, err = self(image, truncate), self._typical(err)
        options: dict[str, Any] = {"where": where, "correlation": correlation}
        fit = fit_flux(data, err, shown, **options)
        left, scales = data - fit.scale * shown - fit.level, []
        centre = np.array(self.grid.centre)
        for k in range(1, turns + 1):
            angle = 2 * math.pi * k / (turns + 1)
            turn = np.array(
                [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            )
            turned = ndimage.affine_transform(
                np.asarray(image, np.float64), turn, centre - turn @ centre, order=1
            )
            scales.append(fit_flux(left, err, self(turned, truncate), **options).scale)
        speckles = float(np.sqrt(np.mean(np.square(scales)))) if scales else 0.0
        return fit._replace(error=math.hypot(fit.error, speckles))

    def _typical(self, err: np.ndarray) -> np.ndarray:
        """Return the median of errors over rings about the star, 2 FWHM wide."""
        star = self.forward.places([[0.0, 0.0]])[0]
        away = np.hypot(*(np.indices(err.shape) - star[:, None, None]))
        ring = (away / (2 * self.forward.fwhm_px)).astype(int)
        known = np.isfinite(err) & (err > 0)
        typical = np.full(err.shape, np.nan)
        for k in np.unique(ring[known]):
            typical[known & (ring == k)] = np.median(err[known & (ring == k)])
        return typical

    def in_exposures(self, image: Any) -> dict[str, np.ndarray]:
        """Return what every exposure sees of a source before PSF subtraction: (ny, nx) float64."""
        return {
            root: self._convolution(exposure)(plane)
            for (root, exposure), plane in zip(
                self._exposures.items(), self._on_detector(image), strict=True
            )
        }

    def _on_detector(self, image: Any) -> list[np.ndarray]:
        """Return the image on the pixels of each exposure, not convolved."""
        if self.grid is None:
            return [_given(image, e) for e in self._exposures.values()]
        image = np.asarray(image, dtype=np.float64)
        if image.shape != self.grid.shape or not np.isfinite(image).all():
            raise InputError(
                f"the image has shape {image.shape}, expected {self.grid.shape} as its grid, all "
                "finite"
            )
        flat = image.ravel()
        return [
            (self._at[root] @ flat).reshape(e.klip.shape) for root, e in self._exposures.items()
        ]

    def _convolution(self, exposure: ExposureResponse) -> Convolution:
        """Return the convolution behind a mask, made once for all exposures that have it there."""
        key = (*exposure.klip.shape, *np.round(exposure.mask, 3))
        if key not in self._convolutions:
            shape = exposure.klip.shape
            self._convolutions[key] = Convolution(self._psf, shape, exposure.mask)
        return self._convolutions[key]


class Convolution:
    """Convolves an image with the PSF of each of its pixels.

    ``sum_k (c_k image) * kernel_k`` with kernels about the middle of their boxes.

    Parameters
    ----------
    psf : FieldPSF
    shape : (ny, nx)
    mask : (x, y), pixels from 0
        Centre of the mask.
    """

    def __init__(self, psf: FieldPSF, shape: tuple[int, int], mask: tuple[float, float]):
        ny, nx = shape
        y, x = (g.ravel().astype(float) for g in np.indices((ny, nx)))
        offsets = np.stack([y - mask[1], x - mask[0]], axis=1)
        self._shape = ny, nx
        terms = psf.terms(offsets)
        reach = max(kernel.shape[0] // 2 for _, kernel in terms)
        self._padded = tuple(fft.next_fast_len(n + reach, real=True) for n in (ny, nx))
        self._factors = [c.reshape(ny, nx) for c, _ in terms]
        self._kernels = [self._transform(kernel) for _, kernel in terms]

    def _transform(self, kernel: np.ndarray) -> np.ndarray:
        """Return the spectrum of a kernel whose middle is at the origin, cut to what is needed."""
        whole = np.zeros(self._padded)
        half, sides = kernel.shape[0] // 2, zip(self._shape, self._padded, strict=True)
        reach = [min(half, n - 1, padded // 2 - 1) for n, padded in sides]
        rows, columns = (np.arange(-r, r + 1) for r in reach)
        whole[rows[:, None], columns] = kernel[half + rows[:, None], half + columns]
        return fft.rfft2(whole)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the convolved image (ny, nx)."""
        total: Any = 0.0
        for factor, kernel in zip(self._factors, self._kernels, strict=True):
            total = total + fft.rfft2(image * factor, self._padded) * kernel
        ny, nx = self._shape
        return fft.irfft2(total, self._padded)[:ny, :nx]


def _given(image: Any, exposure: ExposureResponse) -> np.ndarray:
    """Return an exposure's own image, checked."""
    plane: Any = image.get(exposure.root) if isinstance(image, Mapping) else None
    shape = None if plane is None else np.shape(plane)
    if shape != tuple(exposure.klip.shape) or not np.isfinite(plane).all():
        raise InputError(
            f"the image of {exposure.root} has shape {shape}, expected {exposure.klip.shape}, all "
            "finite: a dict with an image for each exposure, or a grid on the sky"
        )
    return np.asarray(plane, dtype=np.float64)


def _sampling(forward: ForwardModel, exposure: ExposureResponse, grid: SkyGrid) -> sparse.csr_array:
    """Return what the pixels of an exposure take of those of a grid: (ny nx, my mx)."""
    ny, nx = exposure.klip.shape
    pixel = math.sqrt(exposure.pixel_area_sr) * 180 * 3600 / math.pi
    to_sky = _sky_of_pixels(forward, exposure)
    y, x = (g.ravel().astype(float) for g in np.indices((ny, nx)))
    return grid.sampling(pixel, lambda dy, dx: to_sky(y + dy, x + dx))


def _sky_of_pixels(forward: ForwardModel, exposure: ExposureResponse):
    """Return the function from y, x to offsets (n, 2) from the star, arcsec east and north.

    A polynomial of degree 3, the inverse of `sky_to_pixel` over the array.
    """
    ny, nx = exposure.klip.shape
    pixel = math.sqrt(exposure.pixel_area_sr) * 180 * 3600 / math.pi
    reach = np.linspace(-1, 1, 21) * pixel * math.hypot(ny, nx)
    offsets = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
    x, y = exposure.sky_to_pixel(*forward.sky(offsets))
    near = (abs(2 * y / ny - 1) < 1.4) & (abs(2 * x / nx - 1) < 1.4)  # NaN are not

    def terms(y, x):
        u, v = 2 * x / nx - 1, 2 * y / ny - 1
        return np.stack([u**i * v**j for i in range(4) for j in range(4 - i)], axis=-1)

    solved = np.linalg.lstsq(terms(y[near], x[near]), offsets[near], rcond=None)[0]
    return lambda y, x: terms(y, x) @ solved


class FluxFit(NamedTuple):
    """How bright a source of a given shape is."""

    scale: float  # of the model
    error: float
    level: float  # MJy/sr, a constant that is fitted with it
    chi2: float  # per pixel


def fit_flux(
    image: np.ndarray,
    err: np.ndarray,
    model: np.ndarray,
    *,
    where: np.ndarray | None = None,
    correlation: float = 1.0,
) -> FluxFit:
    """Fit the brightness of a source of known shape, and a constant, to a combined image.

    Parameters
    ----------
    image, err : (ny, nx) floating, MJy/sr
    model : (ny, nx) floating, MJy/sr
        As `ExtendedSource` returns it.
    where : (ny, nx) bool, optional
        Pixels that count. Default: all with data.
    correlation : float
        By how much the mean of a large area scatters more than that of independent pixels:
        ``ResampledImage.err_correlation`` (ERRCORRL).

    Returns
    -------
    FluxFit

    Raises
    ------
    InputError
        Fewer than three pixels, or a model that is the same in all.

    Notes
    -----
    Weights are 1 / err^2. Errors that follow the data (ERR of i2d has the source's own photons, and
    speckles as they came out) make a bright source fainter than it is: give typical ones, as
    `ExtendedSource.measure` does.
    """
    image, err, model = (np.asarray(a, dtype=np.float64) for a in (image, err, model))
    good = np.isfinite(image) & np.isfinite(model) & (err > 0) & np.isfinite(err)
    good &= True if where is None else np.asarray(where, dtype=bool)
    if np.count_nonzero(good) < 3:
        raise InputError(f"{np.count_nonzero(good)} pixels to fit a source to, expected 3 or more")
    weight = 1 / err[good]
    design = np.stack([model[good] * weight, weight], axis=1)
    normal = design.T @ design
    if not np.linalg.det(normal) > 1e-12 * normal[0, 0] * normal[1, 1]:
        raise InputError("the model is the same in all pixels, expected a source")
    covariance = np.linalg.inv(normal)
    found = covariance @ (design.T @ (image[good] * weight))
    left = image[good] * weight - design @ found
    return FluxFit(
        float(found[0]),
        float(math.sqrt(covariance[0, 0]) * correlation),
        float(found[1]),
        float(np.mean(left**2)),
    )
