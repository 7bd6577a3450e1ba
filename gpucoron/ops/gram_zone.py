"""KLIP of a zone in terms of inner products, and how it changes with a source in the images."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucoron.errors import InputError
from gpucoron.ops.missing_pixels import LEAST

__all__ = ["Solution", "Stamps", "Subset", "ZoneSums", "as_fluxes", "solve", "solve_again"]


class Subset(NamedTuple):
    """References that serve some targets."""

    references: np.ndarray  # (r,) int
    targets: np.ndarray  # (t,) int


class ZoneSums(NamedTuple):
    """Sums over the pixels of a zone, weighted with m^2; references without their means."""

    total: float  # of the weights
    means: np.ndarray  # (nref,)
    products: np.ndarray  # (nref, nref)
    inner: np.ndarray  # (n, nref) of targets and references; (0, nref) without targets
    target_sums: np.ndarray  # (n,)
    #: For each target the weights (p,) of the pixels that it lacks, references (p, nref) and target
    #: (p,) there; None without any.
    lacks: list[Any]


class Stamps(NamedTuple):
    """Inner products of the stamps of m sources in g groups, over what each of n targets has."""

    columns: np.ndarray  # (m, g, n + 1, 1 + nref): a constant, the references; last: all pixels
    with_targets: Any  # (m, g, n) or None
    products: Any  # (m, n + 1, g, g) of stamps, or None
    moves: Any = None  # (m, g, 2): how far the registration moves the images for the sources

    def some(self, which: np.ndarray) -> Stamps:
        """Return those of some sources."""
        others = (None if v is None else v[which] for v in self[1:])
        return Stamps(self.columns[which], *others)

    def cross(self, sums: ZoneSums, solution: Solution) -> tuple[np.ndarray, np.ndarray]:
        """Return products with references: of all pixels (m, g, r), of each target's (m, g, t, r).

        Both about the means, the second over the pixels that a target has.
        """
        references, targets = solution.subset
        constant = self.columns[:, :, :, :1]
        found = self.columns[:, :, :, references + 1] - constant * sums.means[references]
        of_targets = found[:, :, targets]
        if solution.gaps is not None:
            of_targets = of_targets + constant[:, :, targets] * solution.gaps
        return found[:, :, -1], of_targets

    def constants(self, sums: ZoneSums, solution: Solution, shares: Any, change: Any) -> np.ndarray:
        """Return the change of the models' constants (m, t), for references without means."""
        amounts = self.columns[:, :, solution.subset.targets, 0] / solution.totals
        found = amounts[:, 0] + np.einsum("mtg,mgt->mt", shares, amounts)
        return found if solution.gaps is None else found + (change * solution.gaps).sum(axis=2)


def moved_back(stamps: Stamps, moves: np.ndarray, columns: np.ndarray, targets: Any) -> Stamps:
    """Return the products of sources less what the registration takes away with them.

    Parameters
    ----------
    stamps : Stamps
        Their last two columns are those with the star's slopes.
    moves : (m, g, 2)
        Of the images.
    columns : (2, n + 1, 1 + nref + 2), targets : (2, n) or None
        Inner products of the slopes.
    """
    of_targets, products = stamps.with_targets, stamps.products
    if of_targets is not None:
        of_targets = of_targets - np.einsum("mga,an->mgn", moves, targets)
    if products is not None:
        mixed = np.einsum("mga,mhna->mngh", moves, stamps.columns[..., -2:])
        products = products - mixed - mixed.swapaxes(2, 3)
        products += np.einsum("mga,anb,mhb->mngh", moves, columns[..., -2:], moves)
    changed = stamps.columns - np.einsum("mga,anc->mgnc", moves, columns)
    return Stamps(changed, of_targets, products, moves)


class Solution(NamedTuple):
    """The models of some targets that share their references, and what they follow from."""

    subset: Subset
    kept: np.ndarray  # U (r, k): first eigenvectors of the products
    rest: np.ndarray  # W (r, r - k)
    gain: np.ndarray  # (r - k, k): 1 / (value of U - value of W)
    values: np.ndarray  # (k,)
    models: np.ndarray  # (t, r): coefficients
    amplitudes: np.ndarray  # y (t, k)
    inverses: np.ndarray  # (U^T N U)^-1 (t, k, k)
    across: np.ndarray  # U^T N W (t, k, r - k)
    remains: np.ndarray  # q - N U y (t, r)
    totals: np.ndarray  # (t,) weights of the pixels that targets have
    gaps: Any  # (t, r) sums of references over what targets lack, over `totals`; None without
    within: Any  # (t, r, r) products over what targets lack, about the means of the rest; or None
    inner: np.ndarray  # q (t, r)
    means: np.ndarray  # (t,) of the targets
    floor: float  # eigenvalues, over the largest, below which vectors are noise
    truncate: int
    fixed: bool

    def first_order(self, sums: ZoneSums, stamps: Stamps, has: np.ndarray) -> np.ndarray:
        """Return the derivative of the coefficients by the flux of sources, (m, t, r)."""
        if self.fixed:
            return np.zeros((len(stamps.columns), *self.models.shape))
        of_all, of_targets = stamps.cross(sums, self)
        groups = np.flatnonzero(has.any(axis=1))
        own_part = of_targets[:, 0] @ self.kept
        if not groups.size:
            right = np.matmul(self.inverses, own_part[..., None])[..., 0]
            return right @ self.kept.T
        out = np.empty((len(of_all), *self.models.shape))
        u, w, d = self.kept, self.rest, self.gain
        for t in range(len(out[0])):
            y, v = self.amplitudes[t], w.T @ self.remains[t]
            turned = np.zeros((len(out), w.shape[1]))  # Omega y: U changes by W Omega
            right = own_part[:, t].copy()
            for g in groups:
                x, ug, wg = of_all[:, g], has[g] @ u, has[g] @ w
                xu, xw, known = x @ u, x @ w, of_targets[:, g, t]
                turned += xw * (d @ (ug * y)) + wg * (xu @ (d * y).T)
                right += (xw @ (d * v[:, None])) * ug + xu * (d.T @ (v * wg))
                of_target = stamps.with_targets[:, g, self.subset.targets[t]]
                of_target = (
                    of_target - self.means[t] * stamps.columns[:, g, self.subset.targets[t], 0]
                )
                right += np.multiply.outer(of_target - known @ self.models[t], ug)
                right -= (known @ u) * (has[g] @ self.models[t])
            right -= turned @ self.across[t].T
            out[:, t] = turned @ w.T + right @ self.inverses[t].T @ u.T
        return out


def solve(
    sums: ZoneSums, subset: Subset, truncate: int, tolerance: float, fixed: Any = None
) -> Solution:
    """Solve for the models of some targets.

    Parameters
    ----------
    sums : ZoneSums
    subset : Subset
    truncate : int
    tolerance : float
        Per reference, of the largest eigenvalue: those below are noise.
    fixed : (t, r) floating, optional
        The coefficients, where they are given.
    """
    references, targets = subset
    products = sums.products[np.ix_(references, references)]
    n = len(references)
    values, vectors = np.linalg.eigh(products)
    values, vectors = values[::-1], vectors[:, ::-1]
    floor = tolerance * n
    k = min(truncate, int((values > floor * max(values[0], 0.0)).sum()))
    u, w = vectors[:, :k], vectors[:, k:]
    totals, gaps, within, inner, means = _of_targets(sums, subset)
    reduced = np.repeat((np.diag(values[:k]))[None], len(targets), axis=0)
    across = np.zeros((len(targets), k, n - k))
    if within is not None:
        reduced -= u.T @ within @ u
        across -= u.T @ within @ w
    inverses = _inverse(reduced, values[:k])
    amplitudes = np.matmul(inverses, (inner @ u)[:, :, None])[:, :, 0]
    models = amplitudes @ u.T
    remains = inner - models @ products
    if within is not None:
        remains += np.matmul(within, models[:, :, None])[:, :, 0]
    if fixed is not None:
        models = np.asarray(fixed, dtype=np.float64)
    gain = 1.0 / np.maximum(values[:k] - values[k:, None], 1e-300)
    return Solution(
        *(subset, u, w, gain, values[:k], models, amplitudes, inverses, across, remains),
        *(totals, gaps, within, inner, means, floor, truncate, fixed is not None),
    )


def _of_targets(sums: ZoneSums, subset: Subset) -> tuple[Any, Any, Any, Any, Any]:
    """Return totals, gaps, products within these, q and means of targets (see `Solution`)."""
    references, targets = subset
    totals = np.full(len(targets), sums.total)
    known = len(sums.inner) > 0
    inner = (
        sums.inner[np.ix_(targets, references)]
        if known
        else np.zeros((len(targets), len(references)))
    )
    inner, means = inner.copy(), (sums.target_sums[targets] if known else np.zeros(len(targets)))
    if all(sums.lacks[t] is None for t in targets):
        return totals, None, None, inner, means / totals
    n = len(references)
    gaps, within = np.zeros((len(targets), n)), np.zeros((len(targets), n, n))
    means = means.copy()
    for k, t in enumerate(targets):
        if sums.lacks[t] is None:
            continue
        square, images, values = sums.lacks[t]
        images = images[:, references]
        weighted = images * square[:, None]
        totals[k] -= square.sum()
        lost = weighted.sum(axis=0)
        gaps[k] = lost / totals[k] if totals[k] > 0 else 0.0
        within[k] = weighted.T @ images + np.outer(lost, gaps[k])
        if known:
            means[k] -= square @ values
            inner[k] += gaps[k] * means[k] - weighted.T @ values
    return np.maximum(totals, 1e-300), gaps, within, inner, means / np.maximum(totals, 1e-300)


def _inverse(reduced: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Invert U^T N U (..., k, k); combinations that the pixels do not tell have 0."""
    scale = np.sqrt(np.maximum(values, 1e-300))
    scale = scale[..., :, None] * scale[..., None, :]
    own, vectors = np.linalg.eigh(reduced / scale)
    inverse = np.where(own > LEAST, 1.0 / np.maximum(own, LEAST), 0.0)
    return (vectors * inverse[..., None, :]) @ np.swapaxes(vectors, -1, -2) / scale


def as_fluxes(flux: Any, m: int) -> np.ndarray:
    """Return the fluxes of m sources, (m,) float64; each has to be finite, and not 0."""
    fluxes = np.broadcast_to(np.asarray(flux, dtype=np.float64), (m,))
    odd = np.flatnonzero(~np.isfinite(fluxes) | (fluxes == 0))
    if odd.size:
        raise InputError(
            f"flux of source {odd[0]} (from 0) is {fluxes[odd[0]]}, expected a finite number, not 0"
        )
    return fluxes


def solve_again(
    sums: ZoneSums, solution: Solution, stamps: Stamps, has: np.ndarray, flux: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solve with sources in the images.

    Parameters
    ----------
    sums, solution, stamps
    has : (g, r) floating
        1 where a reference has the stamp.
    flux : (m,) floating

    Returns
    -------
    change : (m, t, r)
        Of the coefficients, over the flux.
    models : (m, t, r)
        The coefficients.
    """
    references, targets = solution.subset
    of_all, of_targets = stamps.cross(sums, solution)
    amounts = stamps.columns[:, :, :, 0]
    f = flux[:, None, None]
    pairs = stamps.products - np.einsum(
        "mgt,mht,t->mtgh", amounts, amounts, 1 / np.append(_all_totals(sums, solution), sums.total)
    )
    added = np.einsum("mgr,gs->mrs", of_all, has)
    changed = sums.products[np.ix_(references, references)] + f * (
        added + added.transpose(0, 2, 1) + f * (has.T @ pairs[:, -1] @ has)
    )
    values, vectors = np.linalg.eigh(changed)
    k = min(solution.truncate, len(references))
    values, u = values[:, ::-1][:, :k], vectors[:, :, ::-1][:, :, :k]
    good = values > solution.floor * np.maximum(values[:, :1], 0.0)
    u = u * good[:, None]
    f = f[:, :, 0]
    inner = np.empty((len(flux), len(targets), len(references)))
    for j, t in enumerate(targets):
        with_target = stamps.with_targets[:, :, t] - solution.means[j] * amounts[:, :, t]
        inner[:, j] = solution.inner[j] + f * of_targets[:, 0, j]
        inner[:, j] += f * ((with_target + f * pairs[:, t, 0]) @ has)
    right = inner @ u
    if solution.within is None:
        y = right / np.where(good, values, 1.0)[:, None]
    else:
        y = np.empty_like(right)
        for j, t in enumerate(targets):
            known = np.einsum("mgr,gs->mrs", of_targets[:, :, j] - of_all, has)
            known = known + known.transpose(0, 2, 1)
            known = f[:, :, None] * (
                known + f[:, :, None] * (has.T @ (pairs[:, t] - pairs[:, -1]) @ has)
            )
            reduced = np.swapaxes(u, 1, 2) @ (known - solution.within[j]) @ u
            reduced += np.where(good, values, 1.0)[:, None] * np.eye(k)
            inverse = _inverse(reduced, np.where(good, values, 1.0))
            y[:, j] = np.matmul(inverse, right[:, j, :, None])[:, :, 0]
    models = y @ np.swapaxes(u, 1, 2)
    return (models - solution.models) / flux[:, None, None], models


def _all_totals(sums: ZoneSums, solution: Solution) -> np.ndarray:
    """Return the weights of the pixels that each of all targets has."""
    totals = np.full(len(sums.lacks), max(sums.total, 1e-300))
    totals[solution.subset.targets] = solution.totals
    return totals
