"""Sources through KLIP where references contain them (ADI), or in zones: by inner products."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import numpy as np

from gpucoron.backend.parallel import over_blocks, over_products
from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.eigen import RANK_TOLERANCE
from gpucoron.ops.gram_zone import (
    Solution,
    Stamps,
    Subset,
    ZoneSums,
    as_fluxes,
    moved_back,
    solve,
    solve_again,
)
from gpucoron.ops.injection import Terms
from gpucoron.ops.position_answer import PositionAnswer
from gpucoron.ops.stamps import as_stamps, moves, sheets_of

__all__ = ["GramInjection"]

_AT_ONCE = 2**25  # bytes of inner products of sources


class GramInjection:
    """What KLIP leaves of sources that are in targets and references, from inner products alone.

    Parameters
    ----------
    targets : (n, ny, nx) floating, or None
        Of one exposure, in the frame of the references. None where no reference has the source: the
        answer is linear in the source then.
    references : (nref, ny, nx) floating
        Aligned. One that is not finite throughout serves no target.
    groups : (nref,) int
        Which of a source's stamps a reference has, such as the number of its roll, from 1; that in
        the targets is 0. -1 for references of other stars.
    used : (nzones, n, nref) bool, optional
        References that serve each target in each zone. Default: all.
    zones : (ny, nx) int, optional
        Zone of each pixel, -1 in none. Default: one zone.
    optimise : (nzones, ny, nx) bool, optional
        The pixels of each zone's means and inner products. Default: its own.
    weight : (ny, nx) floating, optional
        m, as for `gpucoron.ops.eigen.KLBasis`. Default: ones.
    missing : (n, ny, nx) bool, optional
        Pixels of the targets that take no part in means and coefficients.
    fixed : (n, nref) floating, optional
        Coefficients of the references that do not depend on the images (roll subtraction).
    answer : PositionAnswer, optional
        What the registration makes of a source in an image. Default: they are not aligned anew.

    Raises
    ------
    InputError
        Shapes that do not fit, or targets that are not finite.

    Notes
    -----
    With references R and the source's stamps P without their means, the inner products become
    ``G' = G + R P^T + P R^T + P P^T``, which costs a product of a stamp with each image. With U the
    first eigenvectors of G, N the products over the pixels that a target has and q those with the
    target, its model has the coefficients ``U (U^T N U)^-1 U^T q``. Without a flux the change is
    that to first order in the source, of eigenvectors, N and q: linear, and without a new
    decomposition. With one, G' is decomposed again, and the result is that of a new subtraction to
    rounding.

    References
    ----------
    Soummer, Pueyo & Larkin 2012, ApJ 755, L28; Pueyo 2016, ApJ 824, 117 (first order).
    """

    def __init__(
        self,
        targets: Any,
        references: Any,
        groups: Any,
        *,
        used: Any = None,
        zones: Any = None,
        optimise: Any = None,
        weight: Any = None,
        missing: Any = None,
        fixed: Any = None,
        answer: PositionAnswer | None = None,
    ):
        references, groups = np.asarray(references), np.asarray(groups, dtype=np.int64)
        if references.ndim != 3 or groups.shape != (len(references),):
            raise InputError(
                f"references have shape {references.shape}, groups {groups.shape}; expected "
                "(nref, ny, nx) and (nref,)"
            )
        self.shape: tuple[int, int] = references.shape[1:]
        self.labels = np.zeros(self.shape, np.int32) if zones is None else zones
        self.labels = np.ascontiguousarray(self.labels, dtype=np.int32).ravel()
        square = np.ones(self.shape) if weight is None else np.asarray(weight, np.float64) ** 2
        if square.shape != self.shape or self.labels.size != square.size:
            raise InputError(
                f"weight has shape {square.shape}, zones {np.shape(zones)}, images {self.shape}"
            )
        self._square = np.ascontiguousarray(square.ravel())
        n_zones = int(self.labels.max(initial=0)) + 1
        self._areas = None if optimise is None else np.asarray(optimise, bool)
        n_zones = n_zones if self._areas is None else len(self._areas)
        self._fixed = None if fixed is None else np.asarray(fixed, dtype=np.float64)
        self._answer = answer
        self._note_references(references, groups, used, n_zones)
        self._note_targets(targets, missing)
        self._of_slopes: dict[int, tuple[np.ndarray, Any]] = {}
        self._solutions: dict[tuple[int, int], list[Solution]] = {}

    # ---- images

    def _note_references(self, references, groups, used, n_zones):
        """Keep the references that serve a target, as columns beside a constant."""
        finite: Any = np.isfinite(references.sum(axis=(1, 2), dtype=np.float64))
        used = np.ones((n_zones, 1, len(groups))) if used is None else used
        used = np.asarray(used, bool)
        if used.ndim != 3 or used.shape[0] != n_zones or used.shape[2] != len(groups):
            raise InputError(
                f"used has shape {used.shape}, expected ({n_zones}, n, {len(groups)}): zones, "
                "targets, references"
            )
        kept: Any = np.flatnonzero(finite & used.any(axis=(0, 1)))
        self.used, self._groups = used[:, :, kept] & finite[kept], groups[kept]
        if self._fixed is not None:
            self._fixed = self._fixed[:, kept]
        self.n_groups = 1 + max(int(groups.max(initial=0)), 0)
        self._has = (np.arange(self.n_groups)[:, None] == self._groups).astype(np.float64)
        flat = references.reshape(len(references), -1)
        slopes = 0 if self._answer is None else 2  # the last columns
        self.vectors = np.empty((flat.shape[1], 1 + len(kept) + slopes))
        if self._answer is not None:
            self.vectors[:, -2:] = self._answer.slopes.reshape(-1, 2)
        self.vectors[:, 0] = 1.0
        for column, k in enumerate(kept, start=1):
            self.vectors[:, column] = flat[k] - flat[k].mean(dtype=np.float64)

    def _note_targets(self, targets, missing):
        """Keep the targets, where references contain the source, and the pixels they lack."""
        self.linear = self._fixed is not None or not (self._groups >= 0).any()
        if targets is None and not self.linear:
            raise InputError("targets are None, expected images: references contain the source")
        n = self.used.shape[1]
        self._targets = None
        if not self.linear:
            flat = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
            if flat.shape[1] != self._square.size or n not in (1, len(flat)):
                raise InputError(
                    f"targets have shape {np.shape(targets)}, expected (n, *{self.shape})"
                )
            seen: Any = np.isfinite(flat).any(axis=1)
            if not np.isfinite(flat[seen]).all():
                raise InputError("targets have values that are not finite, expected numbers only")
            n = len(flat)
            self._targets = np.ascontiguousarray(np.where(seen[:, None], flat, 0.0).T)
            self._targets -= self._targets.mean(axis=0)
        if missing is not None:
            missing = np.asarray(missing, dtype=bool)
            if missing.shape[1:] != self.shape or n not in (1, len(missing)):
                raise InputError(f"missing has shape {missing.shape}, expected ({n}, {self.shape})")
            n = len(missing)
        if self._fixed is not None and missing is not None:
            n = len(self._fixed)
        self.n_targets = n
        self.used = np.broadcast_to(self.used, (len(self.used), n, self.used.shape[2]))
        self._note_missing(missing)

    def _note_missing(self, missing):
        """Number the pixels that any target lacks; the last column stands for one without gaps."""
        self._rows = np.full(self._square.size, -1, np.int32)
        self._lacking = np.zeros((0, self.n_targets + 1))
        if missing is None:
            return
        flat = missing.reshape(len(missing), -1) & (self._square > 0)
        some = np.flatnonzero(flat.any(axis=0))
        self._rows[some] = np.arange(len(some))
        self._lacking = np.zeros((len(some), self.n_targets + 1))
        self._lacking[:, :-1] = flat[:, some].T

    @property
    def n_zones(self) -> int:
        """Number of zones."""
        return len(self.used)

    @property
    def rolls_alone(self) -> bool:
        """Whether every reference has the source."""
        return bool((self._groups >= 0).all())

    @property
    def nbytes(self) -> int:
        """Bytes of the images that are kept."""
        return self.vectors.nbytes + (0 if self._targets is None else self._targets.nbytes)

    def without(self, stamps: Any, corners: Any) -> GramInjection:
        """Return that of the images less sources, stamps (m, g, h, w) that have their fluxes."""
        if self.linear:
            return self
        stamps, corners = as_stamps(stamps, corners, self.n_groups)
        sheets = sheets_of(stamps, corners, self.shape).reshape(self.n_groups, -1)
        if self._answer is not None:
            whole = sheets.reshape(self.n_groups, *self.shape), np.zeros((self.n_groups, 2), int)
            sheets = sheets - moves(*whole, self._answer) @ self._answer.slopes.reshape(-1, 2).T
        other = copy.copy(self)
        other.__dict__.pop("_sums", None)
        other._of_slopes, other._solutions = {}, {}
        sheets = sheets - sheets.mean(axis=1, keepdims=True)
        other.vectors, other._targets = self.vectors.copy(), self._targets - sheets[0, :, None]
        for column in 1 + np.flatnonzero(self._groups >= 0):
            other.vectors[:, column] -= sheets[self._groups[column - 1]]
        return other

    # ---- inner products of the images

    def _square_in(self, zone: int) -> np.ndarray:
        """Return squares of the weights where a zone is optimised, 0 elsewhere."""
        area = self.labels == zone if self._areas is None else self._areas[zone].ravel()
        return np.where(area, self._square, 0.0)

    @cached_property
    def _sums(self) -> list[ZoneSums]:
        return [self._sums_in(zone) for zone in range(self.n_zones)]

    def _sums_in(self, zone: int) -> ZoneSums:
        square = self._square_in(zone)
        some = np.flatnonzero(square)
        total = float(square.sum())
        end = 1 + len(self._groups)
        means = square[some] @ self.vectors[some, 1:end] / max(total, 1e-300)
        images = self._targets if self._targets is not None else np.zeros((square.size, 0))

        def multiply(block):
            pixels = some[block]
            left = self.vectors[pixels, 1:end] - means
            weighted = left * square[pixels, None]
            return np.hstack([weighted.T @ left, weighted.T @ images[pixels]])

        n = len(means)
        found = sum(over_blocks(multiply, len(some))) if some.size else np.zeros((n, n))
        products, inner = found[:, :n], found[:, n:].T
        lacks = [self._gap(zone, square, means, t) for t in range(self.n_targets)]
        target_sums = square[some] @ images[some]
        return ZoneSums(total, means, products, inner, target_sums, lacks)

    def _gap(self, zone, square, means, t):
        """Return pixels that a target lacks in a zone: weights, references and target there."""
        if not len(self._lacking):
            return None
        pixels = np.flatnonzero((self._rows >= 0) & (square > 0))
        pixels = pixels[self._lacking[self._rows[pixels], t] > 0]
        if not pixels.size:
            return None
        values = None if self._targets is None else self._targets[pixels, t]
        references = self.vectors[pixels, 1 : 1 + len(means)] - means
        return square[pixels], references, values

    def _solved(self, zone: int, truncate: int) -> list[Solution]:
        """Return the models of the targets without a source, for each set of references."""
        if (zone, truncate) not in self._solutions:
            sums, used = self._sums[zone], self.used[zone]
            sets, which = np.unique(used, axis=0, return_inverse=True)
            found = []
            for k, members in enumerate(sets):
                subset = Subset(np.flatnonzero(members), np.flatnonzero(which.ravel() == k))
                fixed = None if self._fixed is None else self._fixed[np.ix_(*subset[::-1])]
                if members.any() and sums.total > 0:
                    found.append(solve(sums, subset, truncate, RANK_TOLERANCE, fixed))
            self._solutions[zone, truncate] = found
        return self._solutions[zone, truncate]

    # ---- sources

    def terms(
        self, stamps: Any, corners: Any, truncate: int, zones: Any = None, flux: Any = None
    ) -> Terms:
        """Return what models take of sources, and where.

        Parameters
        ----------
        stamps : (m, g, h, w) floating
            Images of m sources of flux 1 in each group.
        corners : (m, g, 2) int
            Row and column of the first pixel of each stamp; it may reach over the edge.
        truncate : int
            Number of KL vectors; more than there are means all.
        zones : (m, nzones) bool, optional
            Where a source is looked at. Default: everywhere.
        flux : (m,) floating, optional
            Of sources that are added; negative for those that are taken away. Default: faint ones.

        Returns
        -------
        Terms
        """
        stamps, corners = as_stamps(stamps, corners, self.n_groups)
        if truncate < 0:
            raise ParameterError(f"truncate is {truncate}, expected 0 or more")
        m = len(stamps)
        zones = np.ones((m, self.n_zones), bool) if zones is None else np.asarray(zones, bool)
        if flux is not None:
            flux = as_fluxes(flux, m)
        slots = np.where(zones, np.cumsum(zones, axis=1) - 1, -1).astype(np.int32)
        deep = max(int(zones.sum(axis=1).max(initial=0)), 1)
        out = Terms(
            slots,
            np.zeros((m, deep, self.n_targets, self.vectors.shape[1])),
            np.zeros((m, deep, self.n_targets, self.n_groups)),
        )
        out.shares[..., 0] = 1.0
        width = (self.n_targets + 1) * (self.vectors.shape[1] + self.n_targets)
        step = max(1, _AT_ONCE // (8 * self.n_groups * width))
        for zone in range(self.n_zones):
            which = np.flatnonzero(zones[:, zone])
            for start in range(0, len(which), step):
                part = which[start : start + step]
                strength = None if flux is None else flux[part]
                self._in_zone(zone, truncate, stamps[part], corners[part], strength, part, out)
        return out

    def _in_zone(self, zone, truncate, stamps, corners, flux, part, out):
        sums, measured = self._sums[zone], self._measure(zone, stamps, corners, flux is not None)
        rows = out.slots[part, zone]
        for solution in self._solved(zone, truncate):
            references, targets = solution.subset
            has = self._has[:, references]
            again = flux is not None and self._fixed is None and (has > 0).any()
            if again:
                blocks = np.array_split(np.arange(len(part)), max(1, len(part) // 8))

                def one(block, solution=solution, has=has):
                    few = measured.some(block)
                    return solve_again(sums, solution, few, has, flux[block])

                found = over_products(one, [b for b in blocks if b.size])
                change, models = (np.concatenate(v) for v in zip(*found, strict=True))
            else:
                change = solution.first_order(sums, measured, has)
                models = np.broadcast_to(solution.models, change.shape)
            shares = -models @ has.T
            constants = measured.constants(sums, solution, shares, change)
            at = part[:, None], rows[:, None], targets[None]
            out.coefficients[(*at, 0)] = constants - change @ sums.means[references]
            for k, column in enumerate(references):
                out.coefficients[(*at, column + 1)] = change[:, :, k]
            shares = shares + (np.arange(self.n_groups) == 0)
            out.shares[at] = shares
            if measured.moves is not None:
                out.coefficients[(*at, slice(-2, None))] = shares @ measured.moves

    def _measure(self, zone, stamps, corners, pairs) -> Stamps:
        """Return the inner products of stamps with the images in a zone, and with each other."""
        from gpucoron.ops.cpu.injection import amplitudes, stamp_products

        square, (m, g, *size) = self._square_in(zone), stamps.shape
        flat, places = stamps.reshape(m * g, *size), corners.reshape(m * g, 2)
        seen = (square, self._rows, self._lacking, self.shape)
        columns = amplitudes(flat, places, self.vectors, *seen)
        columns = columns.reshape(m, g, *columns.shape[1:])
        with_targets, products = None, None
        if self._targets is not None:
            found = amplitudes(flat, places, self._targets, *seen)
            numbers = np.arange(self.n_targets)
            with_targets = found.reshape(m, g, *found.shape[1:])[:, :, numbers, numbers]
        if pairs and not self.linear:
            products = stamp_products(stamps, corners, *seen)
        found = Stamps(columns, with_targets, products)
        if self._answer is None:
            return found
        shifts = moves(flat, places, self._answer).reshape(m, g, 2)
        return moved_back(found, shifts, *self._slopes_in(zone))

    def _slopes_in(self, zone):
        """Return the products of slopes with columns (2, n + 1, c) and targets (2, n)."""
        from gpucoron.ops.cpu.injection import amplitudes

        if zone not in self._of_slopes:
            seen = (self._square_in(zone), self._rows, self._lacking, self.shape)
            slopes: Any = self._answer and np.moveaxis(self._answer.slopes, 2, 0)
            whole = np.ascontiguousarray(slopes), np.zeros((2, 2), np.int64)
            columns, targets = amplitudes(*whole, self.vectors, *seen), None
            if self._targets is not None:
                numbers = np.arange(self.n_targets)
                targets = amplitudes(*whole, self._targets, *seen)[:, numbers, numbers]
            self._of_slopes[zone] = columns, targets
        return self._of_slopes[zone]

    # ---- whole images

    def residuals(self, stamps: Any, corners: Any, truncate: int, flux: Any = None) -> np.ndarray:
        """Return what KLIP leaves of sources of flux 1, as whole images.

        Parameters
        ----------
        stamps, corners, truncate, flux
            As for `terms`.

        Returns
        -------
        (m, n, ny, nx) float64
            The change of the residuals over the flux; NaN outside of the zones.
        """
        stamps, corners = as_stamps(stamps, corners, self.n_groups)
        slots, coefficients, shares = self.terms(stamps, corners, truncate, flux=flux)
        out = np.full((len(stamps), self.n_targets, self.labels.size), np.nan)
        for m, row in enumerate(slots):
            sheet = sheets_of(stamps[m : m + 1], corners[m : m + 1], self.shape)
            sheet = sheet.reshape(self.n_groups, -1)
            for zone, slot in enumerate(row):
                pixels = np.flatnonzero(self.labels == zone)
                model = coefficients[m, slot] @ self.vectors[pixels].T
                out[m][:, pixels] = shares[m, slot] @ sheet[:, pixels] - model
        return out.reshape(len(stamps), self.n_targets, *self.shape)
