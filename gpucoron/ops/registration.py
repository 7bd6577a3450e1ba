"""Subpixel registration: fit shift and brightness between an image and many references.

For a frame f, a reference p and a weight mask m, the shift s = (sx, sy) and the brightness beta
that minimise ::

    R(s, beta, c) = sum_x m(x)^2 [p(x) - beta (S_s f)(x) - c]^2

where S_s is the Fourier shift of `gpucoron.ops.fourier_shift`. With c = 0 it is the objective of
jwst's align_refs; here its minimum is found without a Fourier transform for every trial.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import in_batches, to_host
from gpucoron.backend.device import on_gpu
from gpucoron.backend.parallel import over_items
from gpucoron.errors import InputError
from gpucoron.ops.registration_fits import (
    CONVERGED,
    FIT_DTYPE,
    INCONSISTENT,
    LEFT_OUT,
    NOT_CONVERGED,
    PREDICTED,
    left_out,
    store_fits,
)
from gpucoron.ops.registration_norm import FrameSpectra, MaskTerm, checked_mask
from gpucoron.ops.registration_references import PreparedReferences, nearest_centres
from gpucoron.ops.registration_search import FAR_GAIN, POOR, probes

if TYPE_CHECKING:
    from gpucoron.ops.registration_noise import NoiseCovariances

__all__ = [
    "CONVERGED",
    "FIT_DTYPE",
    "INCONSISTENT",
    "LEFT_OUT",
    "NOT_CONVERGED",
    "PREDICTED",
    "Registration",
    "left_out",
]

HALF_WIDTH = 2.3  # px; half a box: they overlap by 0.6 px, so that few fits change box
GRID = 15  # coarse points along each side of a box from which Newton's method starts
MAX_WALK = 12  # boxes that a fit may walk through


class Registration:
    """A plan: the references are prepared once, then frames are fitted to all of them.

    Parameters
    ----------
    references : (nref, ny, nx) floating
        The reference images, on the host or on a GPU: all is done there, and frames must be there,
        too. One that is not finite throughout is left out: its fits are NaN with the status
        `LEFT_OUT`.
    mask : (ny, nx) floating, optional
        Multiplies the residual: 1 = used, 0 = ignored, values between are weights. Default: ones.
        On the host or where the references are.
    guide : (ny, nx) floating, optional
        A frame like those to come, from which the whole-pixel part of each reference's offset is
        found. Default: no offset expected. Results do not depend on it (to rounding), speed does,
        unless a reference is further away than `search`: it is moved by whole pixels then, and the
        mask with it.
    search : float, pixels
        Offsets up to this along either axis are searched for the lowest residual, and the whole
        frame for one that leaves clearly less. 0 walks downhill from no shift to the nearest
        minimum, as jwst does.
    background : bool
        Fit a constant, too, so that a background that differs between frame and reference moves
        nothing. False leaves the objective as jwst has it.
    groups : (nref,) int, optional
        References with the same number have the same whole-pixel offset (one exposure): it is
        looked for once. Default: each its own.
    usable : (nref,) bool, optional
        Which references to fit; default: those that are finite throughout. The attribute of this
        name is on the host.

    Raises
    ------
    InputError
        Shapes that do not fit, or a mask that is not finite or leaves no more than three pixels.

    Notes
    -----
    For a given s the best beta is C/B, with C(s) = sum m^2 p S_s f and B(s) = sum m^2 (S_s f)^2
    (the weighted means of p and of S_s f taken out where the constant is fitted), and R is smallest
    where C^2/B is largest. C is a sum over the product of two spectra; B is one over the spectrum
    of f^2 on a grid of twice the size, where f^2 is exactly band-limited, and is shared by all
    references in the same box. Both are entire functions of s: within a box of 4.6 px their phases
    are Chebyshev series with Bessel coefficients, about 30 terms to rounding. A pair costs one
    pass over its spectra, then Newton's method on two polynomials with exact first and second
    derivatives. The real part that a Fourier shift of even size takes is included exactly, down to
    the corner where both frequencies are Nyquist's.

    Uncertainties are propagated from the pixels' variances where `propagate` was given them.
    Otherwise they are those of least squares, twice the residual's variance times the inverse of
    the Hessian of R, as if the whole residual were white noise.

    Tables of fits are small and always on the host. On a GPU a batch of frames is fitted to all
    references by three kernels; the host waits twice for each batch, to learn which frames are
    finite and which pairs must be followed to another box. What a pair gives does not depend on
    what else is fitted, unless it leaves most of the reference: see `_search_again` (on a GPU to
    rounding: its libraries choose the order of their sums by the size of the batch).

    References
    ----------
    .. [1] Guizar-Sicairos, Thurman & Fienup 2008, Opt. Lett. 33, 156: registration by matrix
       products in Fourier space.
    .. [2] Abramowitz & Stegun 1964, eqs. 9.1.44-9.1.45: the expansion of the phases.
    """

    def __init__(
        self,
        references,
        mask=None,
        *,
        guide=None,
        search=6.0,
        background=True,
        groups=None,
        usable=None,
    ):
        references, guide = cuda.as_device_arrays(references, guide)
        self._xp, self._on_gpu = cuda.array_namespace(references, guide), on_gpu(references)
        if references.ndim != 3:
            raise InputError(f"references have shape {references.shape}, expected (nref, ny, nx)")
        self.shape = references.shape[1:]
        mask = checked_mask(mask, self.shape)
        if self._on_gpu:
            from gpucoron.ops.cuda import registration as ops
        else:
            from gpucoron.ops.cpu import registration as ops  # type: ignore[no-redef]
        xp, self._ops, self._batch_size = self._xp, ops, ops.batch_size(mask.size)
        self.search, background = float(search), bool(background)
        weight = mask * mask
        self._mask_term = MaskTerm(ops, xp, weight, HALF_WIDTH, background)
        self._dof = max(1.0, weight.sum() ** 2 / (weight**2).sum() - 3 - background)
        self._weight = xp.asarray(weight)
        if usable is None:
            usable = xp.isfinite(references).all(axis=(1, 2))
        self.usable = to_host(usable).astype(bool)
        self._references = PreparedReferences(
            self._mask_term, self._weight, references, self.usable, self.search
        )
        points = np.linspace(-0.9, 0.9, GRID)
        polynomials = np.cos(np.outer(np.arccos(points), np.arange(self._mask_term.terms)))
        self._grid = xp.asarray(points if search > 0 else points[:0]), xp.asarray(polynomials)
        self._noise: NoiseCovariances | None = None
        self._guide: Any = None
        self._guide_fits: Any = None
        if guide is not None and self.search > 0 and bool(xp.isfinite(guide).all()):
            groups = np.arange(len(references)) if groups is None else np.asarray(groups)
            self._guide = guide
            self._guide_fits = self._center_boxes(references, guide, groups)

    @functools.cached_property
    def reference_rms(self):
        """Rms of each reference within the mask, (nref,) on the host: what no fit would leave.

        About its weighted mean where a constant is fitted.
        """
        power = np.maximum(to_host(self._references.power), 0.0)
        return np.sqrt(power / self._mask_term.total)

    @property
    def moved(self):
        """Whole pixels (y, x) by which references are further away than `search`, (nref, 2) int.

        They were moved back by these before they were fitted, and the mask covers them there.
        """
        return self._references.moved

    def _center_boxes(self, references, guide, groups):
        """Center every reference's box on the guide's fit; returns the fits."""
        guide = self._xp.asarray(guide, dtype=np.float64)
        prepared = self._references
        prepared.find_offsets(references, groups, FrameSpectra(self._mask_term, guide[None]))
        fits = self.fit(guide)
        for r in prepared.batches(np.flatnonzero(fits["status"] == CONVERGED)):
            shifts = np.stack([fits["y"][r], fits["x"][r]], axis=1)
            prepared.center_boxes(r, shifts - prepared.moved[r])
        return fits

    def propagate(self, references, errors, groups, frame, frame_error):
        """Take the uncertainties of the fits to come from those of the pixels.

        They are propagated once for each group, for a frame like those to come.

        Parameters
        ----------
        references : (nref, ny, nx) floating
            The references again.
        errors : (ngroups, ny, nx) floating
            Standard deviations of the pixels of each group's references; finite, or NaN where
            they are not known: the uncertainties are then those of least squares.
        groups : (nref,) int
            Which of `errors` is each reference's; on the host.
        frame, frame_error : (ny, nx) floating
            A frame, finite, and the standard deviations of its pixels, as `errors`.

        Returns
        -------
        NoiseCovariances
            See `gpucoron.ops.registration_noise`.
        """
        from gpucoron.ops.registration_noise import NoiseCovariances, covariances_of

        references, errors, frame, frame_error = cuda.as_device_arrays(
            references, errors, frame, frame_error
        )
        fits = self._guide_fits if frame is self._guide else self.fit(frame)
        converged = fits["status"] == CONVERGED
        members = [np.flatnonzero((groups == group) & converged) for group in np.unique(groups)]
        firsts = np.array([m[0] for m in members if m.size], dtype=np.int64)
        covariances = np.full((len(fits), 3, 3, 3), np.nan)

        def propagate(some):
            r = firsts[some]
            group = self._xp.asarray(groups[r])
            parts = self._references.normal_equations(
                references, errors[group], fits, r, frame, frame_error
            )
            for k, part in zip(r, parts, strict=True):
                covariances[groups == groups[k]] = covariances_of(*part)

        if self._on_gpu:
            in_batches(propagate, len(firsts), self._batch_size, "align_refs")
        else:
            over_items(lambda k: propagate(slice(k, k + 1)), range(len(firsts)))
        self._noise = NoiseCovariances(*np.moveaxis(covariances, 1, 0))
        return self._noise

    def fit(self, frame):
        """Fit one frame to every reference.

        Parameters
        ----------
        frame : (ny, nx) floating
            The image that is shifted, f; finite (a frame that is not is left out).

        Returns
        -------
        (nref,) structured array of `FIT_DTYPE`
            `x`, `y` (px): the shift that lays the frame onto the reference; moving the reference
            by (-x, -y) lays it onto the frame. `beta`: the factor that the frame must be
            multiplied by. `x_err`, `y_err`, `beta_err`: one standard deviation. `residual`: rms of
            the masked residual, in units of the images. `status`: 0 converged, 1 not converged, 2
            left out. `n_iter`: Newton steps.

        Raises
        ------
        InputError
            A frame of another shape.
        """
        if frame.shape != self.shape:
            raise InputError(f"frame has shape {frame.shape}, but the references have {self.shape}")
        return self.fit_many(cuda.as_device_arrays(frame)[0][None])[0]

    def fit_many(self, frames):
        """Fit every frame to every reference.

        Parameters
        ----------
        frames : (n, ny, nx) floating
            As for `fit`.

        Returns
        -------
        (n, nref) structured array of `FIT_DTYPE`

        Raises
        ------
        InputError
            Frames of another shape.
        """
        (frames,) = cuda.as_device_arrays(frames)
        if frames.shape[1:] != self.shape or frames.ndim != 3:
            raise InputError(
                f"frames have shape {frames.shape}, but the references have {self.shape}"
            )
        if on_gpu(frames) != self._on_gpu:
            raise TypeError("frames and references must be on the same device")
        fits = np.tile(left_out(len(self.usable)), (len(frames), 1))
        step = max(1, min(self._batch_size, self._ops.PAIRS // max(1, len(self.usable))))

        def fit(part):
            self._fit_batch(frames[part].astype(np.float64, copy=False), fits[part])

        in_batches(fit, len(frames), step, "align_refs")
        if self._noise is not None:
            errors = self._noise.errors
            known = np.isfinite(errors[:, 0]) & (fits["status"] != LEFT_OUT)
            for i, name in enumerate(("y_err", "x_err", "beta_err")):
                fits[name] = np.where(known, errors[:, i], fits[name])
        return fits

    def _fit_batch(self, frames, fits):
        """Fit frames that are worked on together; fills in `fits`."""
        xp, todo = self._xp, np.flatnonzero(self.usable)
        finite = np.flatnonzero(to_host(xp.isfinite(frames).all(axis=(1, 2))))
        if not (finite.size and todo.size):
            return
        if finite.size < len(frames):
            frames = frames[xp.asarray(finite)]
        frame_spectra = FrameSpectra(self._mask_term, frames)
        r, f = np.repeat(todo, finite.size), np.tile(np.arange(finite.size), todo.size)
        prepared = self._references
        rows = self._solve(frame_spectra, f, r, prepared.centres[r], prepared.packed, r)
        store_fits(fits, finite[f], r, prepared.centres[r] + prepared.moved[r], rows)
        edge = (np.abs(rows[:, :2]) > 0.95 * HALF_WIDTH).any(axis=1)
        again = np.flatnonzero((rows[:, 7] == 0) | edge)
        self._refit(frame_spectra, f[again], r[again], fits, finite)
        if self.search > 0:
            poor = rows[:, 6] > POOR * self.reference_rms[r]
            poor[again] = False
            self._search_again(frame_spectra, f[poor], r[poor], fits, finite)

    def _search_again(self, frame_spectra, f, r, fits, finite):
        """Look in the whole frame for a better fit of pairs that fit poorly.

        A few of each frame first, and all where that has helped: noise costs few searches.
        """
        tried = probes(f)
        helped = self._refit(frame_spectra, f[tried], r[tried], fits, finite)
        rest = ~tried & np.isin(f, f[tried][helped])
        self._refit(frame_spectra, f[rest], r[rest], fits, finite)

    def _refit(self, frame_spectra, f, r, fits, finite):
        """Search the whole frame for pairs and fit them there; returns which became better."""
        before = fits["residual"][finite[f], r]
        for pairs in self._references.batches(np.arange(len(r))):
            own_f, own_r = f[pairs], r[pairs]
            centres, rows = self._refit_neighbours(frame_spectra, own_f, own_r)
            store_fits(fits, finite[own_f], own_r, centres + self.moved[own_r], rows)
        return fits["residual"][finite[f], r] ** 2 < FAR_GAIN * before**2

    def _solve(self, frame_spectra, f, r, centres, packed, which):
        """Fit frames `f` to references `r`, whose spectra stand at packed[which], in their boxes.

        Returns the rows of `fit_pairs`, on the host.
        """
        xp, ops, mask_term, (ny, nx) = self._xp, self._ops, self._mask_term, self.shape
        series = ops.contract(
            packed, which, frame_spectra.packed, f, mask_term.single, 1.0 / (ny * nx), 1
        )
        if mask_term.both_even:
            corner = xp.real(ops.unpack(packed, (xp.asarray(which), ny // 2, nx // 2)))
            corner = corner * frame_spectra.corner[xp.asarray(f)]
            series -= corner[:, None, None] * mask_term.corner_series
        _, first, index = np.unique(centres @ [2**20, 1], return_index=True, return_inverse=True)
        b_series, sums = frame_spectra.boxes([tuple(c) for c in centres[first].tolist()])
        index = index * len(frame_spectra) + f
        if mask_term.background:
            share = self._references.sums[xp.asarray(r)] / mask_term.total
            series -= share[:, None, None] * sums[xp.asarray(index)]
        power = self._references.power[xp.asarray(r)]
        pairs = (series, b_series, index, power, mask_term.total, self._dof)
        return to_host(ops.fit_pairs(*pairs, *self._grid, HALF_WIDTH))

    def _refit_neighbours(self, frame_spectra, f, r):
        """Fit pairs again whose minimum is near the edge of its box, in neighbouring boxes.

        Returns the centres of the last boxes, and the fits there.
        """
        prepared = self._references
        origin = prepared.spectra_at_zero(r)
        offsets, centres = np.zeros((len(r), 2)), np.zeros((len(r), 2), dtype=np.int64)
        if self.search > 0:
            offsets[:], _ = prepared.whole_pixel_peaks(origin, r, frame_spectra, f)
        rows, active = np.empty((len(r), 9)), np.arange(len(r))
        for _ in range(MAX_WALK):
            box_centres = centres[active] = nearest_centres(offsets[active])
            packed = self._ops.pack(
                prepared.phase_shifted(origin[self._xp.asarray(active)], box_centres)
            )
            fitted = rows[active] = self._solve(
                frame_spectra, f[active], r[active], box_centres, packed, np.arange(active.size)
            )
            offsets[active] = box_centres + fitted[:, :2]
            inside = (np.abs(fitted[:, :2]) < HALF_WIDTH).all(axis=1)
            stays = (nearest_centres(offsets[active]) == box_centres).all(axis=1)
            active = active[~(inside | stays)]
            if not active.size:
                break
        return centres, rows
