"""References of a registration: their spectra, and the boxes of shifts in which they are fitted."""

from __future__ import annotations

import numpy as np

from gpucoron.backend.arrays import fft_module, to_host
from gpucoron.backend.parallel import map_items
from gpucoron.ops.fourier_shift import multiply_phases
from gpucoron.ops.registration_search import (
    DOUBTFUL,
    FAR_GAIN,
    largest,
    masked_correlation,
    whole_pixel_offsets,
)

LATTICE = 4  # px between the centres of the boxes in which the series hold


class PreparedReferences:
    """References that frames are fitted to, each with its box of shifts.

    Parameters
    ----------
    mask_term : MaskTerm
        Of `weight`; with its `ops` and its array namespace.
    weight : (ny, nx) float64
        m^2, where the images are.
    images : (n, ny, nx) floating
        The references p.
    usable : (n,) bool
        Those to fit; on the host.
    search : float, pixels
        As for `gpucoron.ops.registration.Registration`.

    Attributes
    ----------
    packed
        Spectra of m^2 p as `contract` takes them, with shift 0 at the centre of each box.
    power, sums : (n,) float64
        Of m^2 p^2 (about the weighted mean where a constant is fitted) and of m^2 p; 0 for one that
        is left out; where the images are.
    centres : (n, 2) int
        Centre (y, x) of each box, px.
    moved : (n, 2) int
        Whole pixels (y, x) by which references were moved back before they were fitted.
    """

    def __init__(self, mask_term, weight, images, usable, search):
        self._mask_term, self._weight, self.usable = mask_term, weight, usable
        self._ops, self._xp, self._search = mask_term.ops, mask_term.xp, search
        n, (ny, nx) = len(images), mask_term.shape
        self._batch_size = self._ops.batch_size(ny * nx)
        self.packed = self._ops.allocate(n, ny, nx // 2 + 1)
        self.power, self.sums = self._xp.zeros(n), self._xp.zeros(n)
        self.centres, self.moved = (np.zeros((n, 2), dtype=np.int64) for _ in range(2))
        parts = [slice(k, k + self._batch_size) for k in range(0, n, self._batch_size)]
        map_items(lambda part: self._prepare(part, images[part]), parts, self._xp)

    def __len__(self):
        return len(self.usable)

    def batches(self, indices):
        """Cut indices into batches that are worked on together."""
        return [indices[k : k + self._batch_size] for k in range(0, len(indices), self._batch_size)]

    def _prepare(self, part, images):
        """Prepare some of the references; `part` says which."""
        xp, usable = self._xp, self._xp.asarray(self.usable[part])[:, None, None]
        part = part if isinstance(part, slice) else xp.asarray(part)
        images = xp.where(usable, images, 0.0).astype(np.float64, copy=False)
        weighted = self._weight * images
        self._ops.put(self.packed, part, fft_module(weighted).rfft2(weighted))
        self.power[part] = xp.sum(weighted * images, axis=(1, 2))
        if self._mask_term.background:
            self.sums[part] = xp.sum(weighted, axis=(1, 2))
            self.power[part] -= self.sums[part] ** 2 / self._mask_term.total

    def spectra(self, r):
        """Spectra of m^2 p of some references, in their boxes."""
        return self._ops.unpack(self.packed, self._xp.asarray(r))

    def spectra_at_zero(self, r):
        """Spectra of m^2 p of some references, with shift 0 at no shift."""
        return self.phase_shifted(self.spectra(r), -self.centres[r])

    def phase_shifted(self, spectra, centres):
        """Spectra whose shift 0 is the given whole-pixel shift (y, x) of each."""
        return multiply_phases(spectra, -centres.astype(np.float64), self._mask_term.shape)

    def center_boxes(self, r, offsets):
        """Put the boxes of references at the lattice points nearest to offsets (y, x)."""
        centres = nearest_centres(offsets)
        moved = (centres != self.centres[r]).any(axis=1)
        if moved.any():
            r, centres = r[moved], centres[moved]
            turned = self.phase_shifted(self.spectra(r), centres - self.centres[r])
            self._ops.put(self.packed, self._xp.asarray(r), turned)
            self.centres[r] = centres

    def whole_pixel_peaks(self, spectra, r, frame_spectra, f):
        """Find the whole-pixel shifts (y, x) of largest C^2/B, and what they leave of R."""
        xp, frames, where = self._xp, self._xp.asarray(f), self._xp.asarray(r)
        share = (self.sums[where] / self._mask_term.total)[:, None, None]
        product = (spectra - share * self._mask_term.spectrum) * frame_spectra.spectra[
            frames
        ].conj()
        c = fft_module(product).irfft2(product, s=self._mask_term.shape)
        norm = frame_spectra.whole_pixel_norm[frames]
        score = xp.where((c > 0) & (norm > 0), c * c / xp.where(norm > 0, norm, 1.0), -np.inf)
        return whole_pixel_offsets(score, to_host(self.power[where]), self._search)

    def find_offsets(self, images, groups, frame):
        """Find the whole-pixel offset of each group from a frame, and center its boxes on it.

        References that are further away than `search` are moved by whole pixels first, so that
        the mask covers the same part of the star in both.
        """
        usable = np.flatnonzero(self.usable)
        if not usable.size:
            return
        numbers = np.unique(groups[usable])
        members = [usable[groups[usable] == number] for number in numbers]
        found = self._group_offsets(images, members, frame)
        offsets = found[np.searchsorted(numbers, groups[usable])]
        for batch in self.batches(np.arange(usable.size)):
            self.center_boxes(usable[batch], offsets[batch])

    def _group_offsets(self, images, members, frame):
        """Find the offset (y, x) of each group; move those that are far to where they are near."""
        firsts = np.array([m[0] for m in members])
        offsets, left = self._offsets(firsts, frame)
        far: set[tuple] = set()  # of groups that are far without doubt: others are tried there
        for k, offset in enumerate(offsets):
            if left[k] <= DOUBTFUL**2 and np.abs(offset).max() > self._search:
                far.add(tuple(offset.tolist()))
                self._move(images, members[k], offset)
                offsets[k], left[k] = self._offset(firsts[k], frame)
        for k in np.flatnonzero(left > DOUBTFUL**2).tolist():
            self._move(images, members[k], self._best_of(images, firsts[k], far, left[k], frame))
            offsets[k] = self._offset(firsts[k], frame)[0]
        return offsets

    def _best_of(self, images, first, offsets, left, frame):
        """Choose from offsets, and the peak of the correlation, that which leaves least."""
        image = self._xp.asarray(images[first], dtype=np.float64)
        correlation = masked_correlation(self._weight, image[None], frame.frames[0])
        best, best_left = (0, 0), FAR_GAIN * left
        for offset in sorted(offsets | {tuple(largest(correlation)[1][0].tolist())}):
            self._move(images, np.array([first]), offset)
            left = self._offset(first, frame)[1]
            if left < best_left:
                best, best_left = offset, left
        return best

    def _offsets(self, r, frame):
        """Whole-pixel offsets (y, x) of references, and the shares of their squares left."""
        offsets, left = np.zeros((len(r), 2)), np.zeros(len(r))
        for batch in self.batches(np.arange(len(r))):
            own = r[batch]
            peaks = self.whole_pixel_peaks(self.spectra(own), own, frame, np.zeros_like(own))
            offsets[batch], left[batch] = peaks
        return offsets, left / np.maximum(to_host(self.power)[r], 1e-300)

    def _offset(self, first, frame):
        offsets, left = self._offsets(np.array([first]), frame)
        return offsets[0], left[0]

    def _move(self, images, r, offset):
        """Prepare references again, moved back by a whole-pixel offset (y, x)."""
        self.moved[r] = offset
        for some in self.batches(r):
            self._prepare(some, self.in_place(images[self._xp.asarray(some)], some))

    def in_place(self, images, r):
        """Images of references `r`, moved back by the whole pixels by which they are far."""
        if not self.moved[r].any():
            return images
        moved = zip(images, self.moved[r].tolist(), strict=True)
        return self._xp.stack([self._xp.roll(i, (-y, -x), axis=(0, 1)) for i, (y, x) in moved])

    def normal_equations(self, images, errors, fits, r, frame, frame_error):
        """Return `normal_equations` of the fits of a frame to references `r`, on the host.

        `errors` are those of the pixels of each, as `gpucoron.ops.registration.Registration` has
        them.
        """
        from gpucoron.ops.registration_noise import normal_equations

        xp = self._xp
        at = np.stack([fits[r][k] for k in ("y", "x", "beta")], 1)
        at[:, :2] -= self.moved[r]
        images = xp.asarray(images[xp.asarray(r)], dtype=np.float64)
        return to_host(
            normal_equations(
                self.in_place(images, r),
                xp.asarray(frame, dtype=np.float64),
                self._weight,
                xp.asarray(at),
                self.in_place(xp.asarray(errors, dtype=np.float64), r) ** 2,
                xp.asarray(frame_error, dtype=np.float64) ** 2,
                self._mask_term.background,
            )
        )


def nearest_centres(offsets):
    """The lattice points nearest to offsets (y, x)."""
    return (LATTICE * np.rint(offsets / LATTICE)).astype(np.int64)
