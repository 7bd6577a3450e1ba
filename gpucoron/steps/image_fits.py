"""Fits of the images of one science exposure to the references, and the positions from them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.backend.device import on_gpu
from gpucoron.ops.registration import CONVERGED, FIT_DTYPE, Registration, left_out
from gpucoron.steps.bad_pixels import ReferenceLibrary
from gpucoron.steps.fit_consistency import Finding, find_inconsistent_fits, mark_inconsistent
from gpucoron.steps.lone_hits import LEFT, MISSED, without_hits
from gpucoron.steps.positions import (
    JointPositions,
    Pointing,
    joint_positions,
    spanning_integrations,
)

__all__ = ["FITS_DTYPE", "ImageFits"]

#: One row for each fitted pair; integrations and planes count from 1.
FITS_DTYPE = np.dtype([("sci_integration", "i4"), ("ref_plane", "i4"), *FIT_DTYPE.descr])


class ImageFits:
    """Fits the integrations of one science exposure to the references.

    Parameters
    ----------
    science : (nsci, ny, nx) floating
        The integrations, filled; one that is not finite throughout is left out, not all are.
    error : (ny, nx) floating
        Standard deviations of the pixels of one; NaN where not known.
    references : ReferenceLibrary
        Where the integrations are.
    mask : (ny, nx) floating
        Weights of the pixels, on the host.
    align : {"joint", "each", "first"}
        As for `gpucoron.steps.align_refs.Alignment`.
    pointing : callable, optional
        Likewise.

    Attributes
    ----------
    usable : (nsci,) bool
        Integrations with pixels to fit; on the host.
    """

    def __init__(
        self,
        science: np.ndarray,
        error: np.ndarray,
        references: ReferenceLibrary,
        mask: np.ndarray,
        align: str,
        pointing: Callable[[], Pointing | None] | None = None,
    ):
        self._references, self.align, self._pointing = references, align, pointing
        self._n_references, like_jwst = references.shape[0], references.filling.like_jwst
        self._xp = cuda.array_namespace(science, references.images)
        self._science = science
        self.usable = to_host(self._xp.isfinite(science).all(axis=(1, 2)))
        first = int(np.argmax(self.usable))
        guide = science[first]
        images, errors, usable, groups = self._to_fit(error)
        options: dict[str, Any] = {"guide": guide, "groups": groups}
        if like_jwst:
            options = {"search": 0.0, "background": False}
        self._registration = Registration(images, mask, usable=usable, **options)
        if not like_jwst:
            errors = self._with_missed_hits(errors, images, usable, groups)
            if self.usable.sum() == 1:
                error = self._xp.hypot(error, MISSED * self._xp.abs(guide))
        self._noise = self._registration.propagate(images, errors, groups, guide, error)
        self._unsure = np.zeros((self._n_references, 2))  # added to errors (y, x), px
        self._fitted: dict[int, np.ndarray] = {}
        if self.usable.sum() == 1 and not like_jwst:
            self._take_out_hits(first, error, mask)

    def _to_fit(self, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return images that science integrations are fitted to, with what is known of them.

        They are the references, and for ``align="joint"`` the other integrations: images, errors
        of each group, which images are usable, and the group of each.
        """
        xp, references = self._xp, self._references
        spanning = spanning_integrations(self.usable)
        others = np.setdiff1d(np.flatnonzero(self.usable), spanning)
        if self.align != "joint" or not others.size:
            return references.images, references.errors, references.usable, references.groups
        more = xp.asarray(others)
        group = references.groups.max() + 1
        return (
            xp.concatenate([references.images, self._science[more]]),
            xp.concatenate([references.errors, error[None]]),
            np.append(references.usable, np.ones(len(more), dtype=bool)),
            np.append(references.groups, np.full(len(more), group)),
        )

    def _with_missed_hits(
        self, errors: np.ndarray, images: Any, usable: np.ndarray, groups: np.ndarray
    ) -> np.ndarray:
        """Add to the errors of exposures of one image the hits that nothing tells from the star."""
        planes = np.flatnonzero(usable)
        numbers, first, count = np.unique(groups[planes], return_index=True, return_counts=True)
        lone, own = numbers[count == 1], planes[first[count == 1]]
        if lone.size:
            lone, own = self._xp.asarray(lone), self._xp.asarray(own)
            errors = errors.copy()
            errors[lone] = self._xp.hypot(errors[lone], MISSED * self._xp.abs(images[own]))
        return errors

    def _take_out_hits(self, first: int, error: np.ndarray, mask: np.ndarray) -> None:
        """Fit the only image without hits that the references tell; its shifts are less sure."""
        references = self._references.images
        before = self._registration.fit(self._science[first])[: self._n_references]
        unhit = without_hits(
            to_host(self._science[first]).astype(np.float64),
            to_host(error),
            mask,
            lambda rows: to_host(references[self._xp.asarray(rows)]).astype(np.float64),
            before,
        )
        if unhit.n_pixels:
            self._science = self._science.copy()
            self._science[first] = self._xp.asarray(unhit.image)
            after = self._registration.fit(self._science[first])[: self._n_references]
            moved = np.stack([after[k] - before[k] for k in ("y", "x")], axis=1)
            self._unsure = LEFT * np.abs(np.nan_to_num(moved))

    @property
    def integrations(self) -> list[int]:
        """Which integrations (from 0) are fitted: all, or the first usable one."""
        if self.align == "first":
            return [int(np.argmax(self.usable))]
        return list(range(len(self._science)))

    @functools.cached_property
    def positions(self) -> JointPositions:
        """The position of every image, measured with ``align="joint"``."""
        plan, m, n = self._registration, self._n_references, len(self._science)

        def fit_pairs(integrations: np.ndarray) -> np.ndarray:
            return plan.fit_many(self._science[self._xp.asarray(integrations)])

        of_references, of_frame = self._noise.errors_and_correlations()
        noise = np.full((n, 3), np.nan), of_references[:m]
        covariance = noise[1].prod(axis=1)
        noise[1][:, :2] = np.hypot(noise[1][:, :2], self._unsure)
        product = noise[1][:, :2].prod(axis=1)
        noise[1][:, 2] = covariance / np.where(product > 0, product, 1.0)
        known = np.isfinite(of_frame[:m, 0])
        if known.any():
            noise[0][:] = np.median(of_frame[:m][known], axis=0)
        return joint_positions(
            fit_pairs,
            (self.usable, plan.usable[:m]),
            self._references.groups,
            plan.reference_rms,
            noise,
            self._pointing,
        )

    def judge(self, fits: np.ndarray) -> tuple[np.ndarray, list[Finding]]:
        """Find fits that converged and cannot be right.

        Parameters
        ----------
        fits : (npairs,) structured array
            `FITS_DTYPE`, of all `integrations`.

        Returns
        -------
        (npairs,) structured array, list of Finding
            The table with the status of such fits, and why. With ``align="joint"`` these were left
            out of the positions, of which the table is made.
        """
        if self.align == "joint":
            return fits, self.positions.findings
        findings = find_inconsistent_fits(fits, self._registration.reference_rms)
        return mark_inconsistent(fits, findings), findings

    def largest_move(self, fits: np.ndarray) -> float:
        """Return how far, along an axis, fits move science images against the mask at most.

        Parameters
        ----------
        fits : (npairs,) structured array
            `FITS_DTYPE`.

        Returns
        -------
        float, pixels
            Without the whole pixels by which references that are far away were moved first; 0
            where nothing was fitted.
        """
        known = fits[(fits["status"] == CONVERGED)]
        shifts = np.stack([known["y"], known["x"]], axis=1)
        shifts -= self._registration.moved[known["ref_plane"] - 1]
        return float(np.abs(shifts).max(initial=0.0))

    def fit(self, integration: int) -> np.ndarray:
        """Fit one science integration (counted from 0) to all references.

        With ``align="joint"`` a fit is what the positions of the two images say. On a GPU the first
        call fits all `integrations` together.

        Returns
        -------
        (nref,) structured array of `FITS_DTYPE`
        """
        if not self.usable[integration]:
            fits = left_out(self._n_references)
        elif self.align == "joint":
            fits = self.positions.fits[integration]
        elif on_gpu(self._science) and integration in self.integrations:
            fits = self._all_fits[integration]
        else:
            if integration not in self._fitted:
                self._fitted[integration] = self._less_sure(
                    self._registration.fit(self._science[integration])
                )
            fits = self._fitted[integration]
        return self._table(integration, fits)

    @functools.cached_property
    def _all_fits(self) -> dict[int, np.ndarray]:
        fitted = self.integrations
        fits = self._registration.fit_many(self._science[fitted[0] : fitted[-1] + 1])
        return dict(zip(fitted, map(self._less_sure, fits), strict=True))

    def _less_sure(self, fits: np.ndarray) -> np.ndarray:
        """Add to the errors of fits what hits that were taken out leave open."""
        for name, more in zip(("y_err", "x_err"), self._unsure.T, strict=True):
            fits[name] = np.hypot(fits[name], more)
        return fits

    def unshifted(self, integration: int) -> np.ndarray:
        """Return fits with zero shift, for references that are not aligned."""
        fits = left_out(self._n_references)
        fits[self._references.usable] = (0, 0, 1, 0, 0, 0, np.nan, CONVERGED, 0)
        return self._table(integration, fits)

    @staticmethod
    def _table(integration: int, fits: np.ndarray) -> np.ndarray:
        table = np.zeros(len(fits), dtype=FITS_DTYPE)
        for name in FIT_DTYPE.names:  # type: ignore[union-attr]  # it has names
            table[name] = fits[name]
        table["sci_integration"] = integration + 1
        table["ref_plane"] = np.arange(1, len(fits) + 1)
        return table
