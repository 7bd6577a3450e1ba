"""Subpixel registration: the shift and brightness that lay one image onto many references.

For a frame f, a reference p and a weight mask m, the shift s = (sx, sy) and the brightness beta
that minimise ::

    R(s, beta, c) = sum_x m(x)^2 [p(x) - beta (S_s f)(x) - c]^2

where S_s is the Fourier shift of `gpucoron.ops.fourier_shift`. With c = 0 it is the objective of
jwst's align_refs; here its minimum is found without a Fourier transform for every trial.
"""

from __future__ import annotations

import numpy as np
import scipy.fft

from gpucoron.errors import InputError
from gpucoron.ops._host import require_host
from gpucoron.ops._threads import over_items
from gpucoron.ops.chebyshev import PhaseSeries, nodes_and_projection

__all__ = ["CONVERGED", "FIT_DTYPE", "LEFT_OUT", "NOT_CONVERGED", "Registration", "left_out"]

CONVERGED, NOT_CONVERGED, LEFT_OUT = 0, 1, 2

FIT_DTYPE = np.dtype([
    ("x", "f8"), ("y", "f8"), ("beta", "f8"),
    ("x_err", "f8"), ("y_err", "f8"), ("beta_err", "f8"),
    ("residual", "f8"), ("status", "i2"), ("n_iter", "i2"),
])

LATTICE = 4  # px between the centres of the boxes in which the series hold
HALF_WIDTH = 2.3  # px; half a box: they overlap by 0.6 px, so that few fits change box
GRID = 15  # coarse points along each side of a box from which Newton's method starts
BLOCKS = 16  # into which the sum for B is cut, for threads to share
MAX_WALK = 12  # boxes that a fit may walk through


def left_out(n):
    """Fits of `n` pairs that were not tried: NaN, and the status `LEFT_OUT`."""
    fits = np.zeros(n, dtype=FIT_DTYPE)
    for name in FIT_DTYPE.names[:-2]:
        fits[name] = np.nan
    fits["status"] = LEFT_OUT
    return fits


class Registration:
    """A plan: the references are prepared once, then frames are fitted to all of them.

    Parameters
    ----------
    references : (nref, ny, nx) floating
        The reference images. One that is not finite throughout is left out: its fits are NaN with
        the status `LEFT_OUT`.
    mask : (ny, nx) floating, optional
        Multiplies the residual: 1 = used, 0 = ignored, values between are weights. Default: ones.
    guide : (ny, nx) floating, optional
        A frame like those to come, from which the whole-pixel part of each reference's offset is
        found. Default: no offset expected. Results do not depend on it (to rounding), speed does.
    search : float, pixels
        Offsets up to this along either axis are searched for the lowest residual. 0 walks downhill
        from no shift to the nearest minimum, as jwst does.
    background : bool
        Fit a constant, too, so that a background that differs between frame and reference moves
        nothing. False leaves the objective as jwst has it.
    usable : (nref,) bool, optional
        Which references to fit; default: those that are finite throughout.

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

    References
    ----------
    .. [1] Guizar-Sicairos, Thurman & Fienup 2008, Opt. Lett. 33, 156: registration by matrix
       products in Fourier space.
    .. [2] Abramowitz & Stegun 1964, eqs. 9.1.44-9.1.45: the expansion of the phases.
    """

    def __init__(self, references, mask=None, *, guide=None, search=6.0, background=True,
                 usable=None):
        require_host("registration", references, mask, guide)
        if references.ndim != 3:
            raise InputError(f"references have shape {references.shape}, expected (nref, ny, nx)")
        self.shape = ny, nx = references.shape[1:]
        mask = np.ones(self.shape) if mask is None else np.asarray(mask, dtype=np.float64)
        if mask.shape != self.shape:
            raise InputError(f"mask has shape {mask.shape}, but the references have {self.shape}")
        if not np.isfinite(mask).all() or np.count_nonzero(mask) <= 3:
            raise InputError("the mask is not finite, or leaves no more than three pixels")
        self.search = float(search)
        self._weight, self._background = mask * mask, bool(background)
        self._total = float(self._weight.sum())
        if usable is None:
            usable = np.isfinite(references).all(axis=(1, 2))
        self.usable = usable
        self._prepare_references(references)
        self._y = PhaseSeries.of_axis(ny, HALF_WIDTH, half_spectrum=False)
        self._x = PhaseSeries.of_axis(nx, HALF_WIDTH, half_spectrum=True)
        self._y2 = PhaseSeries.of_axis(2 * ny, 2 * HALF_WIDTH, half_spectrum=False)
        self._x2 = PhaseSeries.of_axis(2 * nx, 2 * HALF_WIDTH, half_spectrum=True)
        points = np.linspace(-0.9, 0.9, GRID)
        terms = max(self._y2.terms, self._x2.terms)
        polynomials = np.cos(np.outer(np.arccos(points), np.arange(terms)))
        self._grid = (points, polynomials) if search > 0 else (points[:0], polynomials)
        self._both_even = ny % 2 == 0 and nx % 2 == 0
        self._doubled = np.tile(scipy.fft.fft2(self._weight), (2, 2))[:, : nx + 1]
        if self._both_even:
            sign = (-1.0) ** np.add.outer(np.arange(ny), np.arange(nx))
            self._alternating = scipy.fft.rfft2(self._weight * sign)
        self.nodes = nodes_and_projection(self._y2.terms), nodes_and_projection(self._x2.terms)
        self._weights_at = {}
        self._errors = None
        self._centres = np.zeros((len(references), 2), dtype=np.int64)
        if guide is not None and np.isfinite(guide).all() and self.search > 0:
            self._aim(np.asarray(guide, dtype=np.float64))

    def _prepare_references(self, references):
        """Spectra of m^2 p, as separate real and imaginary planes, and the sums of m^2 p^2."""
        n, (ny, nx) = len(references), self.shape
        self._real = np.empty((n, ny, nx // 2 + 1))
        self._imag = np.empty_like(self._real)
        self._power = np.empty(n)
        self._sums = np.zeros(n)
        for r in range(n):
            image = np.asarray(references[r], dtype=np.float64)
            if not self.usable[r]:
                image = np.zeros(self.shape)
            weighted = self._weight * image
            spectrum = scipy.fft.rfft2(weighted)
            self._real[r], self._imag[r] = spectrum.real, spectrum.imag
            self._power[r] = np.sum(weighted * image)
            if self._background:
                self._sums[r] = weighted.sum()
                self._power[r] -= self._sums[r] ** 2 / self._total

    def _aim(self, guide):
        """Move every reference's box to where the guide's fit lies."""
        frame = scipy.fft.rfft2(guide)
        norm = self._whole_pixel_norm(guide)
        for r in np.flatnonzero(self.usable):
            self._move(r, self._whole_pixel_peak(r, self._spectrum(r), frame, norm))
        fits = self.fit(guide)
        for r in np.flatnonzero(fits["status"] == CONVERGED):
            self._move(r, np.array([fits["y"][r], fits["x"][r]]))

    def propagate(self, references, errors, groups, frame, frame_error):
        """Take the uncertainties of the fits to come from those of the pixels.

        They are propagated once for each group, for a frame like those to come.

        Parameters
        ----------
        references : (nref, ny, nx) floating
            The references again.
        errors : (ngroups, ny, nx) floating
            Standard deviations of the pixels of each group's references; finite.
        groups : (nref,) int
            Which of `errors` is each reference's.
        frame, frame_error : (ny, nx) floating
            A frame, and the standard deviations of its pixels; finite.
        """
        from gpucoron.ops._registration_noise import propagated_errors

        fits = self.fit(frame)
        self._errors = np.full((len(fits), 3), np.nan)
        frame = np.asarray(frame, dtype=np.float64)
        variance = np.asarray(frame_error, dtype=np.float64) ** 2

        def propagate(group):
            members = np.flatnonzero((groups == group) & (fits["status"] == CONVERGED))
            if members.size:
                fit = fits[members[0]]
                self._errors[groups == group] = propagated_errors(
                    np.asarray(references[members[0]], dtype=np.float64), frame, self._weight,
                    (fit["y"], fit["x"], fit["beta"]),
                    np.asarray(errors[group], dtype=np.float64) ** 2, variance, self._background)

        over_items(propagate, np.unique(groups))

    def _spectrum(self, r):
        return self._real[r] + 1j * self._imag[r]

    def _move(self, r, offset):
        """Put the box of a reference at the lattice point nearest to an offset (y, x)."""
        centre = (LATTICE * np.rint(offset / LATTICE)).astype(np.int64)
        if (centre != self._centres[r]).any():
            turned = self._turned(self._spectrum(r), centre - self._centres[r])
            self._real[r], self._imag[r], self._centres[r] = turned.real, turned.imag, centre

    def weights_at(self, centre):
        """Spectra of the weights, ready for B in the box round a whole-pixel shift (y, x)."""
        if centre not in self._weights_at:
            (ny, nx), shift = self.shape, np.array(centre)
            single = self._doubled[:ny, : nx // 2 + 1]
            spectra = [self._turned(self._doubled, 2 * shift, (2 * ny, 2 * nx)),
                       self._turned(single, shift)]
            if self._both_even:
                spectra.append(self._turned(self._alternating, shift))
            self._weights_at[centre] = [(s.real[None].copy(), s.imag[None].copy()) for s in spectra]
        return self._weights_at[centre]

    def _whole_pixel_norm(self, frame):
        """B at every whole-pixel shift."""
        square = scipy.fft.rfft2(frame * frame)
        nh = self.shape[1] // 2 + 1
        weights = self._doubled[: self.shape[0], :nh]
        norm = scipy.fft.irfft2(weights * square.conj(), s=self.shape)
        if self._background:
            sums = scipy.fft.irfft2(weights * scipy.fft.rfft2(frame).conj(), s=self.shape)
            norm -= sums**2 / self._total
        return norm

    def _whole_pixel_peak(self, r, spectrum, frame_spectrum, norm):
        """Find the whole-pixel shift (y, x) of largest C^2/B within the search range."""
        weights = self._doubled[: self.shape[0], : self.shape[1] // 2 + 1]
        spectrum = spectrum - self._sums[r] / self._total * weights
        c = scipy.fft.irfft2(spectrum * frame_spectrum.conj(), s=self.shape)
        score = np.where((c > 0) & (norm > 0), c * c / np.where(norm > 0, norm, 1.0), -np.inf)
        reach = [min(int(np.ceil(self.search)), (n - 1) // 2) for n in self.shape]
        rows, cols = (np.r_[-n : n + 1] for n in reach)
        window = score[np.ix_(rows, cols)]
        iy, ix = np.unravel_index(np.argmax(window), window.shape)
        return np.array([rows[iy], cols[ix]])

    def _turned(self, spectrum, centre, size=None):
        """Spectrum whose shift 0 is the given whole-pixel shift (y, x)."""
        ny, nx = self.shape if size is None else size
        angle = (np.add.outer(np.fft.fftfreq(ny, 1 / ny) * centre[0] / ny,
                              np.arange(spectrum.shape[1]) * centre[1] / nx))
        return spectrum * np.exp(2j * np.pi * angle)

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
        require_host("registration", frame)
        if frame.shape != self.shape:
            raise InputError(f"frame has shape {frame.shape}, but the references have {self.shape}")
        fits = left_out(len(self.usable))
        frame = np.asarray(frame, dtype=np.float64)
        if not np.isfinite(frame).all() or not self.usable.any():
            return fits
        prepared = _Frame(self, frame)
        todo = np.flatnonzero(self.usable)
        rows = self._solve(prepared, todo, self._centres[todo], self._real, self._imag, todo)
        self._store(fits, todo, self._centres[todo], rows)
        for r in todo[(rows[:, 7] == 0) | (np.abs(rows[:, :2]) > 0.95 * HALF_WIDTH).any(axis=1)]:
            self._fit_alone(fits, prepared, r)
        if self._errors is not None:
            known = np.isfinite(self._errors[:, 0]) & (fits["status"] != LEFT_OUT)
            for i, name in enumerate(("y_err", "x_err", "beta_err")):
                fits[name][known] = self._errors[known, i]
        return fits

    def _solve(self, prepared, pairs, centres, real, imag, which):
        """Newton's method for the pairs, whose spectra stand at real[which] and imag[which]."""
        from gpucoron.ops._registration_cpu import contract, fit_pairs

        ny, nx = self.shape
        series = contract(real, imag, which, prepared.real, prepared.imag,
                          self._y.even, self._y.odd, self._x.even, self._x.odd, 1.0 / (ny * nx), 1)
        if self._both_even:
            corner = real[which, ny // 2, -1] * prepared.corner
            series -= corner[:, None, None] * np.outer(self._y.sine, self._x.sine)
        unique, index = np.unique(centres, axis=0, return_inverse=True)
        index = index.ravel()
        norms, sums = zip(*(prepared.norm_series(tuple(c)) for c in unique), strict=True)
        if self._background:
            series -= (self._sums[pairs] / self._total)[:, None, None] * np.array(sums)[index]
        dof = max(1.0, self._total**2 / (self._weight**2).sum() - 3 - self._background)
        return fit_pairs(series, np.array(norms), index, self._power[pairs], self._total, dof,
                         *self._grid, HALF_WIDTH)

    def _store(self, fits, pairs, centres, rows):
        fits["y"][pairs], fits["x"][pairs] = centres[:, 0] + rows[:, 0], centres[:, 1] + rows[:, 1]
        for i, name in enumerate(("beta", "y_err", "x_err", "beta_err", "residual"), start=2):
            fits[name][pairs] = rows[:, i]
        fits["status"][pairs] = np.where(rows[:, 7] > 0, CONVERGED, NOT_CONVERGED)
        fits["n_iter"][pairs] = rows[:, 8]

    def _fit_alone(self, fits, prepared, r):
        """Fit a pair whose minimum is not well inside its box: search anew, then follow it."""
        origin = self._turned(self._spectrum(r), -self._centres[r])
        offset = np.zeros(2)
        if self.search > 0:
            norm = self._whole_pixel_norm(prepared.frame)
            offset = self._whole_pixel_peak(r, origin, prepared.spectrum, norm)
        for _ in range(MAX_WALK):
            centre = (LATTICE * np.rint(offset / LATTICE)).astype(np.int64)
            turned = self._turned(origin, centre)[None]
            rows = self._solve(prepared, np.array([r]), centre[None], turned.real.copy(),
                               turned.imag.copy(), np.array([0]))
            inside = (np.abs(rows[0, :2]) < HALF_WIDTH).all()
            offset = centre + rows[0, :2]
            if inside or (LATTICE * np.rint(offset / LATTICE) == centre).all():
                break
        self._store(fits, np.array([r]), centre[None], rows)


class _Frame:
    """What a fit needs of the frame alone."""

    def __init__(self, plan, frame):
        self.plan, self.frame = plan, frame
        ny, nx = plan.shape
        self.spectrum = scipy.fft.rfft2(frame)
        self.real, self.imag = self.spectrum.real.copy(), self.spectrum.imag.copy()
        self.corner = self.real[ny // 2, -1] / (ny * nx) if plan._both_even else 0.0
        square = scipy.fft.rfft2(_upsampled(self.spectrum, plan.shape) ** 2)
        self._square = square.real.copy(), square.imag.copy()
        self._series = {}

    def norm_series(self, centre):
        """Chebyshev coefficients round a whole-pixel shift (y, x): of B, and of sum m^2 S_s f."""
        if centre not in self._series:
            self._series[centre] = self._norm_series(centre)
        return self._series[centre]

    def _norm_series(self, centre):
        from gpucoron.ops._registration_cpu import contract

        plan, (ny, nx) = self.plan, self.plan.shape
        weights, first = plan.weights_at(centre), np.zeros(1, dtype=np.int64)
        norm = contract(*weights[0], first, *self._square, plan._y2.even, plan._y2.odd,
                        plan._x2.even, plan._x2.odd, 1.0 / (4 * ny * nx), BLOCKS)[0]
        singles = [contract(*w, first, self.real, self.imag, plan._y.even, plan._y.odd,
                            plan._x.even, plan._x.odd, 1.0 / (ny * nx), BLOCKS)[0]
                   for w in weights[1:]]
        sums = singles[0]
        (ty, poly_y, project_y), (tx, poly_x, project_x) = plan.nodes
        on_nodes = poly_y[:, : sums.shape[0]], poly_x[:, : sums.shape[1]].T
        values = np.zeros((len(ty), len(tx)))
        if plan._both_even:
            sums = sums - (weights[1][0][0, ny // 2, -1] * self.corner) * np.outer(
                plan._y.sine, plan._x.sine)
            sign = (-1.0) ** (sum(centre) % 2)
            sines = (sign * self.corner) * np.outer(
                np.sin(np.pi * HALF_WIDTH * ty), np.sin(np.pi * HALF_WIDTH * tx))
            values += sines * (sines * plan._total - 2.0 * on_nodes[0] @ singles[1] @ on_nodes[1])
        if plan._background:
            values -= (on_nodes[0] @ sums @ on_nodes[1]) ** 2 / plan._total
        return norm + project_y @ values @ project_x.T, sums


def _upsampled(half_spectrum, shape):
    """The image on a grid of half pixels, its Nyquist frequencies halved between both signs."""
    ny, nx = shape
    nh = nx // 2 + 1
    wide = np.zeros((2 * ny, nx + 1), dtype=np.complex128)
    top = (ny + 1) // 2
    wide[:top, :nh] = half_spectrum[:top]
    wide[-(ny - top) :, :nh] = half_spectrum[top:]
    if ny % 2 == 0:
        wide[ny // 2, :nh] = 0.5 * half_spectrum[ny // 2]
        wide[-(ny // 2), :nh] = 0.5 * half_spectrum[ny // 2]
    if nx % 2 == 0:
        wide[:, nh - 1] *= 0.5
    return 4.0 * scipy.fft.irfft2(wide, s=(2 * ny, 2 * nx))
