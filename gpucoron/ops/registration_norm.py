"""Terms of a registration that depend only on mask and frames: B, and the sum of m^2 S_s f."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import scipy.fft

from gpucoron.backend import cuda
from gpucoron.backend.arrays import fft_module, to_host
from gpucoron.errors import InputError
from gpucoron.ops.chebyshev import PhaseSeries, nodes_and_projection
from gpucoron.ops.fourier_shift import multiply_phases

BLOCKS = 16  # into which the sum for B is cut, for threads to share


def checked_mask(mask, shape):
    """Return a mask (ny, nx) float64 on the host, ones for None; InputError if it is no good."""
    mask = np.ones(shape) if mask is None else to_host(mask).astype(np.float64)
    if mask.shape != shape:
        raise InputError(f"mask has shape {mask.shape}, but the references have {shape}")
    if not np.isfinite(mask).all() or np.count_nonzero(mask) <= 3:
        raise InputError("the mask is not finite, or leaves no more than three pixels")
    return mask


class MaskTerm:
    """What depends on the mask alone: its spectra, for the box around any whole-pixel shift.

    `ops` is `gpucoron.ops.cpu.registration` or that of cuda, `xp` NumPy or CuPy; `weight` (ny, nx)
    float64 is m^2 on the host, `half_width` that of the boxes in pixels; with `background` a
    constant is fitted.
    """

    def __init__(self, ops, xp, weight, half_width, background):
        self.ops, self.xp, self.background, self.shape = ops, xp, background, weight.shape
        ny, nx = self.shape
        self.total = float(weight.sum())
        self.both_even = ny % 2 == 0 and nx % 2 == 0
        y, x = (
            PhaseSeries.of_axis(n, half_width, half_spectrum=half)
            for n, half in ((ny, False), (nx, True))
        )
        y2, x2 = (
            PhaseSeries.of_axis(2 * n, 2 * half_width, half_spectrum=half)
            for n, half in ((ny, False), (nx, True))
        )
        self.terms = y2.terms
        self.single, self.doubled = ops.tables(y, x), ops.tables(y2, x2)
        self.corner_series = xp.asarray(np.outer(y.sine, x.sine))
        nodes, polynomials, projection = nodes_and_projection(self.terms)
        sines = np.sin(np.pi * half_width * nodes)
        self.node_sines = xp.asarray(np.outer(sines, sines))
        self._on_nodes = xp.asarray(np.ascontiguousarray(polynomials[:, : y.terms]))
        self._projection = xp.asarray(projection)
        spectrum = np.tile(scipy.fft.fft2(weight), (2, 2))[:, : nx + 1]
        self._corner = float(spectrum[ny // 2, nx // 2].real)
        self._doubled_spectrum = xp.asarray(np.ascontiguousarray(spectrum))
        self.spectrum = xp.asarray(np.ascontiguousarray(spectrum[:ny, : nx // 2 + 1]))
        sign = (-1.0) ** np.add.outer(np.arange(ny), np.arange(nx))
        self._alternating: Any = (
            xp.asarray(scipy.fft.rfft2(weight * sign)) if self.both_even else None
        )
        self._at = {}

    def at(self, centre):
        """Packed spectra of the weights whose shift 0 is a whole-pixel shift (y, x)."""
        if centre not in self._at:
            ny, nx = self.shape
            shift = -np.array([centre], dtype=np.float64)
            spectra = [
                multiply_phases(self._doubled_spectrum[None], 2 * shift, (2 * ny, 2 * nx)),
                multiply_phases(self.spectrum[None], shift, self.shape),
            ]
            if self.both_even:
                spectra.append(multiply_phases(self._alternating[None], shift, self.shape))
            self._at[centre] = [self.ops.pack(s) for s in spectra]
        return self._at[centre]

    def corner_at(self, centre):
        """The spectrum's value where both frequencies are Nyquist's, and the sign of the turn."""
        sign = (-1.0) ** (sum(centre) % 2)
        return sign * self._corner, sign

    def on_nodes(self, series):
        """Values of series (n, terms, terms) on the Chebyshev nodes of B's."""
        return self._on_nodes @ series @ self._on_nodes.T

    def from_nodes(self, values):
        """Coefficients of the series that take these values on the nodes."""
        return self._projection @ values @ self._projection.T


class FrameSpectra:
    """Spectra of a batch of finite frames (n, ny, nx), computed once for all references."""

    def __init__(self, norm, frames):
        self.norm, self.frames = norm, frames
        ny, nx = norm.shape
        fft, xp = fft_module(frames), cuda.array_namespace(frames)
        self.spectra = fft.rfft2(frames)
        self.packed = norm.ops.pack(self.spectra)
        self.corner = xp.real(self.spectra[:, ny // 2, -1]) / (ny * nx)
        square = fft.rfft2(_upsampled(self.spectra, norm.shape) ** 2)
        self._square = norm.ops.pack(square)
        self._boxes = {}

    def __len__(self):
        return len(self.frames)

    @functools.cached_property
    def whole_pixel_norm(self):
        """B at every whole-pixel shift, (n, ny, nx)."""
        fft, shape, norm = fft_module(self.frames), self.norm.shape, self.norm
        out = fft.irfft2(norm.spectrum * fft.rfft2(self.frames**2).conj(), s=shape)
        if norm.background:
            sums = fft.irfft2(norm.spectrum * self.spectra.conj(), s=shape)
            out -= sums**2 / norm.total
        return out

    def boxes(self, centres):
        """Chebyshev coefficients round whole-pixel shifts (y, x), centres outermost.

        Returns those of B (ncentres n, terms, terms), and of the sum of m^2 S_s f.
        """
        for centre in centres:
            if centre not in self._boxes:
                self._boxes[centre] = self._box(centre)
        if len(centres) == 1:
            return self._boxes[centres[0]]
        xp = cuda.array_namespace(self.frames)
        return tuple(
            xp.concatenate(parts) for parts in zip(*(self._boxes[c] for c in centres), strict=True)
        )

    def _box(self, centre):
        norm, (ny, nx), n = self.norm, self.norm.shape, len(self)
        weights, first, each = norm.at(centre), np.zeros(n, np.int64), np.arange(n)
        b = norm.ops.contract(
            weights[0], first, self._square, each, norm.doubled, 1.0 / (4 * ny * nx), BLOCKS
        )
        sums, *alternating = (
            norm.ops.contract(w, first, self.packed, each, norm.single, 1.0 / (ny * nx), BLOCKS)
            for w in weights[1:]
        )
        values = None
        if norm.both_even:
            corner, sign = norm.corner_at(centre)
            of_frame = self.corner[:, None, None]
            sums = sums - corner * of_frame * norm.corner_series
            sines = sign * of_frame * norm.node_sines
            values = sines * (sines * norm.total - 2.0 * norm.on_nodes(alternating[0]))
        if norm.background:
            square = norm.on_nodes(sums) ** 2 / norm.total
            values = -square if values is None else values - square
        return (b if values is None else b + norm.from_nodes(values)), sums


def _upsampled(half_spectra, shape):
    """The images on a grid of half pixels, their Nyquist frequencies halved between both signs."""
    ny, nx = shape
    nh, top = nx // 2 + 1, (ny + 1) // 2
    wide = cuda.array_namespace(half_spectra).zeros(
        (len(half_spectra), 2 * ny, nx + 1), np.complex128
    )
    wide[:, :top, :nh] = half_spectra[:, :top]
    wide[:, -(ny - top) :, :nh] = half_spectra[:, top:]
    if ny % 2 == 0:
        wide[:, ny // 2, :nh] = 0.5 * half_spectra[:, ny // 2]
        wide[:, -(ny // 2), :nh] = 0.5 * half_spectra[:, ny // 2]
    if nx % 2 == 0:
        wide[:, :, nh - 1] *= 0.5
    return 4.0 * fft_module(half_spectra).irfft2(wide, s=(2 * ny, 2 * nx))
