"""PSF of an off-axis source behind a coronagraph, at any place of the detector."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import fft, sparse

from gpucoron.errors import InputError
from gpucoron.optics.coronagraph_model import (
    DIAMETER_M,
    HIGHEST_CYCLES,
    binned_pupil,
    wavefront_modes,
)
from gpucoron.optics.instruments import Filter, Instrument, load_aperture, optics_of
from gpucoron.optics.pixel_sampling import (
    SAMPLES_PER_PX,
    fwhm_of,
    integrate_pixels,
    sample_axis,
)
from gpucoron.optics.telescope import RAD, WIDTH_M, coronagraph_of, longest
from gpucoron.optics.wavefront import EXPECTED_CYCLES, EXPECTED_NM, mean_transfer

if TYPE_CHECKING:
    from gpucoron.io.exposures import ExposureMeta

__all__ = ["OffAxisPSF", "along_axes", "mask_rotation"]

_RADIUS = 7.0  # of the box by default, lambda / D
_SMEAR = 0.5  # that a part of the filter may smear the edge of the box, lambda / D
_LEAST_SAMPLES = 100  # across the pupil
_FREE = 5.7  # radii of a round mask, from which it changes the amplitude by less than 0.0015
_BATCH = 256  # images whose samples are in memory at a time
_SPACING = {"round": 1.0, "bar": 0.7, "4qpm": 0.25, "spot": 0.35}  # of the table, lambda / D


class OffAxisPSF:
    """PSF of a point source behind a coronagraph as a function of its offset from the mask.

    Computed by the optics of `gpucoron.optics.telescope`: segmented pupil, mask, Lyot stop, the
    detector's pixels and charge diffusion. Images are fractions of the light that the source
    would give *without the mask but with the Lyot stop* (STPSF's ``normalize="exit_pupil"``),
    summed over an infinite detector. That is what the photometric calibration of JWST's
    coronagraphs refers to, so a source of F Jy has the image ``F * 1e-6 / PIXAR_SR * images``,
    MJy/sr.

    Parameters
    ----------
    instrument, bandpass : Instrument, Filter
        As `gpucoron.optics.instruments.optics_of` or `choose_optics` return them.
    box : int or None, px
        Odd side of the images. None is 14 lambda / D.
    scale : (float, float) or None, arcsec
        Pixel size along x and y; None is that of the filter's aperture.
    modes_nm : (modes,) float or None
        Wavefront, in the modes of `gpucoron.optics.coronagraph_model.CoronagraphModel`
        (``StarFit.known.modes_nm``). None where it is not known.
    unknown_nm : float
        Rms of the wavefront over 1 to 40 cycles across the pupil, of which nothing is known beside
        `modes_nm`; 0 is a perfect one.

    Attributes
    ----------
    box : int, px
    source : str
        What the PSF was computed from, in words.

    Notes
    -----
    Images centred on the source are kept at the nodes of a grid of offsets, computed when first
    needed, and interpolated between them (cubic, 4 x 4 nodes). The grid's spacing is 1 lambda / D
    for round masks, 0.7 for bars, 0.25 for phase masks and 0.35 for opaque spots, where errors
    are below 0.6 % of the peak without the mask. Round masks are
    ignored beyond 5.7 of their half-transmission radii. Distortion over the box, the polarisation
    and the substrate of the mask are not modelled.

    Images are the mean over what is not known of the wavefront
    (`gpucoron.optics.wavefront.mean_transfer`), which moves light from the core to the wings. Its
    rms is 75 nm by default: 60 to 80 nm of JWST with NIRCam's short waves [1]_, more with others.
    With a perfect
    wavefront instead, fluxes measured by these images would be too low: by 4 % at 1.8 um, 0.7 % at
    4.4 um and 0.2 % at 10 um.

    References
    ----------
    .. [1] McElwain et al. 2023, PASP 135, 058001; JWST User Documentation, "Optics Performance and
       Stability".
    """

    def __init__(
        self,
        instrument: Instrument,
        bandpass: Filter,
        *,
        box: int | None = None,
        scale: tuple[float, float] | None = None,
        modes_nm: np.ndarray | None = None,
        unknown_nm: float = EXPECTED_NM,
    ):
        if box is not None and (box != int(box) or box < 3 or box % 2 == 0):
            raise InputError(f"box is {box!r}, expected an odd number of pixels, 3 or more")
        aperture = load_aperture(bandpass.aperture)
        self.instrument, self.bandpass = instrument, bandpass
        self.modes_nm, self.unknown_nm = modes_nm, unknown_nm
        self.scale = aperture.scale if scale is None else scale
        resolution = bandpass.centre_um * 1e-6 / DIAMETER_M / RAD / float(np.mean(self.scale))
        self.box = 2 * round(_RADIUS * resolution) + 1 if box is None else int(box)
        smeared = self.box / 2 / resolution * bandpass.width_um / bandpass.centre_um
        bandpass = dataclasses.replace(bandpass, n_wavelengths=math.ceil(smeared / _SMEAR))
        self._free_px = (
            _FREE * instrument.mask_radius / min(self.scale) if instrument.kind == "round" else None
        )
        farthest = self._free_px or _farthest(aperture)
        side = max(self.scale)
        turn = instrument.mask_rotation_deg
        pupil = binned_pupil(
            instrument.pupil_rotation_deg - turn,
            instrument.stop_erosion_m,
            instrument.stop_erosion_along_m,
            _samples(farthest * side * longest(turn), self.box * side, bandpass),
            turn,
        )
        axis = sample_axis(self.box)
        self._coronagraph = coronagraph_of(instrument, bandpass, pupil, self.scale, axis, axis)
        self._opd: np.ndarray | float = 0.0
        if modes_nm is not None:
            modes = wavefront_modes(pupil)
            if np.shape(modes_nm) != (len(modes),):
                raise InputError(
                    f"modes_nm has shape {np.shape(modes_nm)}, expected ({len(modes)},)"
                )
            self._opd = np.tensordot(np.asarray(modes_nm, np.float32) * 1e-9, modes, axes=1)
        self._last: tuple[Any, Any] = (None, None)
        self._table = _Table(self._node, _SPACING[instrument.kind] * resolution)
        self._transfer = self._mean_transfer(2 * axis.size)  # light beyond the box is lost
        known = "average" if modes_nm is None else "fitted"
        #: Of fluxes measured with these images, relative: what is not known of the wavefront.
        self.flux_error = 0.02 if modes_nm is None else 0.005
        self.source = (
            f"optics of {instrument.metadata['name']} {bandpass.coronmsk} {bandpass.name}, "
            f"{known} wavefront"
        )

    @classmethod
    def of(
        cls,
        meta: ExposureMeta,
        *,
        box: int | None = None,
        modes_nm: np.ndarray | None = None,
        unknown_nm: float = EXPECTED_NM,
    ) -> OffAxisPSF:
        """Make that of an exposure, by its keywords (``exposure.meta``).

        Parameters
        ----------
        meta : ExposureMeta
        box, modes_nm, unknown_nm : as for the class

        Raises
        ------
        InputError
            The coronagraph is not modelled.
        """
        known = optics_of(meta)
        if known is None:
            what = (meta.instrument, meta.filter, meta.coronmsk or meta.subarray)
            raise InputError(
                f"there is no model of {' '.join(w or '?' for w in what)}, expected --psf FILE"
            )
        return cls(
            *(known.instrument, known.bandpass), box=box, modes_nm=modes_nm, unknown_nm=unknown_nm
        )

    @property
    def pixel_sr(self) -> float:
        """Nominal solid angle of a pixel, sr."""
        return self.scale[0] * self.scale[1] * RAD**2

    def images(
        self, offsets: np.ndarray, within: np.ndarray | None = None, *, exact: bool = False
    ) -> np.ndarray:
        """Return images of sources of unit flux.

        Parameters
        ----------
        offsets : (m, 2) float, px
            Offsets (y, x) of the sources from the mask's centre.
        within : (m, 2) float or None, px
            Place (y, x) of each source in the image, from the centre of its middle pixel, -1 to 1.
            None is 0: the middle.
        exact : bool
            Compute each anew instead of interpolating in the table.

        Returns
        -------
        (m, box, box) float32
            Fraction of the light without the mask in each pixel.
        """
        offsets = _checked(offsets)
        within = np.zeros_like(offsets) if within is None else _checked(within)
        if within.shape != offsets.shape or np.any(np.abs(within) > 1):
            raise InputError(
                f"within has shape {within.shape}, expected {offsets.shape}, values from -1 to 1"
            )
        images = np.empty((len(offsets), self.box, self.box), np.float32)
        for first in range(0, len(offsets), _BATCH):
            some = slice(first, first + _BATCH)
            sampled = (self._exact if exact else self._table.samples)(offsets[some])
            images[some] = integrate_pixels(sampled, within[some], self.box)
        return images

    def throughput(self, offsets: np.ndarray, *, exact: bool = False) -> np.ndarray:
        """Return the light of sources relative to that without the mask.

        Parameters
        ----------
        offsets, exact : as for `images`

        Returns
        -------
        (m,) float64
            All light behind the Lyot stop, in the box or not, over that of the same source without
            the mask (and with the stop).
        """
        offsets = _checked(offsets)
        if exact:
            return np.array([self._node(offset)[1] for offset in offsets])
        return self._table.light(offsets)

    @functools.cached_property
    def without_mask(self) -> np.ndarray:
        """Image (box, box) of a source without the mask, in the middle of its pixel."""
        return integrate_pixels(self._free[0][None], np.zeros((1, 2)), self.box)[0]

    @functools.cached_property
    def fwhm_px(self) -> float:
        """Full width at half maximum of the PSF without the mask: of a circle of the same area."""

        def images(shifts):
            sampled = np.broadcast_to(self._free[0], (len(shifts), *self._free[0].shape))
            return integrate_pixels(sampled, shifts, self.box)

        return fwhm_of(images)

    @functools.cached_property
    def _free(self):
        """Image and light without the mask."""
        image, light = self._coronagraph.image_about_source(self._opd, (0.0, 0.0), masked=False)
        return self._scattered(image), light

    def _node(self, offset):
        """Return image, sampled about the source, and light at an offset (y, x)."""
        place, found = self._last  # light and image of one offset are often asked for in turn
        if place != tuple(offset):
            found = self._computed(offset)
            self._last = tuple(offset), found
        return found

    def _computed(self, offset):
        """Compute what `_node` returns."""
        away = math.hypot(*offset)
        reach = self._coronagraph.reach_px
        beyond = abs(offset[1]) > reach[0] or abs(offset[0]) > reach[1]
        if beyond or (self._free_px is not None and away > self._free_px):
            return self._free
        place = float(offset[1]), float(offset[0])
        image, light = self._coronagraph.image_about_source(self._opd, place)
        return self._scattered(image), light

    def _mean_transfer(self, least):
        """Return what the unknown wavefront leaves of the spectrum of `least` samples or more."""
        size = fft.next_fast_len(least)
        frequencies = fft.fftfreq(size, 1 / SAMPLES_PER_PX)
        wavelength = self.bandpass.centre_um * 1e-6
        x, y = (frequencies * (wavelength / (side * RAD)) for side in self.scale)
        separation = np.hypot(y[:, None], x[: size // 2 + 1])
        lowest = EXPECTED_CYCLES[0] if self.modes_nm is None else HIGHEST_CYCLES
        return mean_transfer(separation, wavelength, self.unknown_nm, lowest).astype(np.float32)

    def _scattered(self, image):
        """Return the mean of a sampled image over what is not known of the wavefront, float32."""
        shape = len(self._transfer), len(self._transfer)
        spectrum = fft.rfft2(image.astype(np.float32), shape) * self._transfer
        return fft.irfft2(spectrum, shape)[: len(image), : len(image)]

    def _exact(self, offsets):
        return np.array([self._node(offset)[0] for offset in offsets])


def mask_rotation(psf: Any) -> float:
    """Return the angle of a modelled mask's axes on the detector, degrees; 0 of other PSFs."""
    return float(getattr(getattr(psf, "instrument", None), "mask_rotation_deg", 0.0))


def along_axes(offsets: np.ndarray, rotation_deg: float) -> np.ndarray:
    """Return offsets (m, 2), y and x, along axes that are turned counter-clockwise."""
    if not rotation_deg:
        return offsets
    c, s = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    y, x = offsets.T
    return np.stack([c * y - s * x, c * x + s * y], axis=1)


class _Table:
    """Images and light at nodes of a grid of offsets, made when needed; cubic between them."""

    def __init__(self, node, spacing):
        self._node, self._spacing = node, spacing
        self._index: dict[tuple[int, int], int] = {}
        self._images: list[np.ndarray] = []
        self._light: list[float] = []

    def samples(self, offsets):
        """Return sampled images (m, n, n) float32."""
        index, weights = self._nodes(offsets)
        rows = np.repeat(np.arange(len(offsets)), index.shape[1])
        nodes, columns = np.unique(index, return_inverse=True)
        share = sparse.csr_array(
            (weights.ravel(), (rows, columns.ravel())), (len(offsets), len(nodes))
        )
        images = np.array([self._images[k] for k in nodes.tolist()])
        total = share @ images.reshape(len(nodes), -1)
        return total.reshape(len(offsets), *images.shape[1:])

    def light(self, offsets):
        """Return the light (m,)."""
        index, weights = self._nodes(offsets)
        return np.sum(np.array(self._light)[index] * weights, axis=1)

    def _nodes(self, offsets):
        """Return the nodes (m, 16) round each offset, and their weights."""
        scaled = offsets / self._spacing
        base = np.floor(scaled).astype(np.int64)
        along = _cubic(scaled - base)  # (m, 2, 4)
        weights = along[:, 0, :, None] * along[:, 1, None, :]
        steps = np.arange(-1, 3)
        rows, columns = (base[:, axis, None] + steps for axis in (0, 1))
        keys = np.stack(np.broadcast_arrays(rows[:, :, None], columns[:, None, :]), axis=-1)
        keys = keys.reshape(-1, 2)
        different, inverse = np.unique(keys, axis=0, return_inverse=True)
        index = np.array([self._at(*key) for key in different.tolist()], np.int64)
        shape = len(offsets), 16
        return index[inverse.reshape(-1)].reshape(shape), weights.reshape(shape).astype(np.float32)

    def _at(self, row, column):
        if (row, column) not in self._index:
            image, light = self._node((row * self._spacing, column * self._spacing))
            self._index[row, column] = len(self._images)
            self._images.append(image)
            self._light.append(light)
        return self._index[row, column]


def _cubic(t):
    """Return the weights (..., 4) of Lagrange's cubic through -1, 0, 1, 2 at t, 0 to 1."""
    weights = [
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    ]
    return np.stack(weights, axis=-1)


def _checked(offsets):
    offsets = np.asarray(offsets, np.float64)
    if offsets.ndim != 2 or offsets.shape[1] != 2 or not np.isfinite(offsets).all():
        raise InputError(
            f"offsets have shape {offsets.shape}, expected (m, 2), all finite: y and x from the "
            "mask's centre"
        )
    return offsets


def _farthest(aperture):
    """Return the largest distance along x or y from the star's nominal place to an edge, px."""
    sides = zip(aperture.reference_pixel, aperture.shape[::-1], strict=True)
    return max(max(place, size - place) for place, size in sides)


def _samples(farthest, field, bandpass):
    """Return the samples across the pupil for sources so far from the mask, and a field; arcsec."""
    shortest = (bandpass.centre_um - bandpass.width_um / 2) * 1e-6
    needed = max(farthest / 0.45, 1.25 * field) * RAD * WIDTH_M / shortest
    return 20 * math.ceil(max(needed, _LEAST_SAMPLES) / 20)
