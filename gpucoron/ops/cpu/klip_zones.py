"""KLIP in zones on the CPU: products by the BLAS in pieces of zones, then LAPACK."""

from __future__ import annotations

import numpy as np

from gpucoron.backend.parallel import BLOCK, over_blocks, over_products
from gpucoron.ops.cpu.leading_modes import leading_coefficients
from gpucoron.ops.cpu.zone_sums import gather, subtract_in_zones
from gpucoron.ops.eigen import RANK_TOLERANCE
from gpucoron.ops.missing_pixels import solve_without
from gpucoron.ops.zone_sums import cut, piece_sums, zone_sums

SIDE_BY_SIDE = 32  # targets whose leading modes are one piece of work
FEW = 4  # targets with the same references, for which leading modes are faster than LAPACK


def sums(references, targets, areas, square, lacking):
    """Return means and inner products of references and targets in all zones, `Sums`.

    `references` and `targets` are (nref, pixels) and (n, pixels); `square` (pixels,) the squares of
    the pixels' weights; `lacking` (n, pixels) where targets have no pixels, beside those that are
    not finite.
    """
    pieces, of = cut(areas.label, areas.members.shape[1], BLOCK)
    n_refs = len(references)

    def multiply(pixels):
        images = np.empty((n_refs + len(targets), len(pixels)))
        gather(references, pixels, images[:n_refs])
        gather(targets, pixels, images[n_refs:])
        known = None
        if lacking is not None or not np.isfinite(images.sum()):
            known = np.isfinite(images)
            if lacking is not None:
                known[n_refs:] &= ~lacking[:, pixels]
            known = None if known.all() else known[None]
        own = None if square is None else square[None, pixels]
        return piece_sums(images[None], n_refs, own, known)

    weights = np.array([len(p) if square is None else square[p].sum() for p in pieces])
    pieces_of = [np.flatnonzero(members[of]) for members in areas.members]
    norms = np.array([weights[own].sum() for own in pieces_of])
    parts = over_products(multiply, pieces)
    if not parts:
        parts = [piece_sums(np.zeros((1, n_refs + len(targets), 0)), n_refs, np.ones((1, 0)), None)]
    return zone_sums(parts, pieces_of, n_refs, norms)


def coefficients(sums, used, truncations, references, square, lacks):
    """Return the references' coefficients for each truncation, and the models' constants.

    They are lists of (nzones, n, nref) and (nzones, n) arrays; a constant is NaN where there is no
    model. `lacks` has the pixels that a target lacks by (zone, target).
    """
    factors = np.zeros((len(truncations), *used.shape))
    constants = np.where(used.any(axis=2), sums.target_means, np.nan)[None]
    constants = np.repeat(constants, len(truncations), axis=0)

    def solve(problem):
        zone, targets, rows = problem
        if rows is None:  # each target has its own
            left_over = _leading(sums, used, zone, targets, truncations, factors)
            problems = [(np.array([t]), np.flatnonzero(used[zone, t])) for t in left_over]
        else:
            problems = [(targets, rows)]
        for group, rows in problems:
            vectors, values = _decompose(sums.products[zone][np.ix_(rows, rows)], max(truncations))
            amplitudes = sums.inner[zone][np.ix_(group, rows)] @ vectors.T / values
            for j, most in enumerate(truncations):
                factors[j, zone, group[:, None], rows] = amplitudes[:, :most] @ vectors[:most]
            for place, t in enumerate(group.tolist()):
                where = lacks.get((zone, t))
                if where is None or not np.isfinite(sums.target_means[zone, t]):
                    continue
                scale = np.sqrt(values)
                images = references[np.ix_(rows, where)] - sums.means[zone, rows][:, None]
                modes = vectors @ images / scale[:, None]
                own = None if square is None else square[where]
                solved = _without(
                    modes, own, sums.norms[zone], amplitudes[place] * scale, truncations
                )
                for j, x in enumerate(solved):
                    factors[j, zone, t, rows] = x[1:] / scale[: len(x) - 1] @ vectors[: len(x) - 1]
                    constants[j, zone, t] += x[0]

    over_products(solve, list(_problems(used, max(truncations), lacks)))
    constants -= np.einsum("kztr,zr->kzt", factors, sums.means)
    return list(factors), list(constants)


def _problems(used, most, lacks):
    """Yield zone, targets and references of each decomposition.

    Targets that share their references with few others or none are one problem, 32 at a time, with
    None for the references: their leading modes are computed side by side, one by one.
    """
    for zone, rows in enumerate(used):
        groups: dict[bytes, list[int]] = {}
        for t, key in enumerate(np.packbits(rows, axis=1)):
            groups.setdefault(key.tobytes(), []).append(t)
        alone = []
        for group in groups.values():
            size = int(rows[group[0]].sum())
            few = len(group) <= FEW and 2 * most <= size
            if few and not any((zone, t) in lacks for t in group):
                alone += group
            elif size:
                yield zone, np.array(group), np.flatnonzero(rows[group[0]])
        for start in range(0, len(alone), SIDE_BY_SIDE):
            yield zone, np.array(alone[start : start + SIDE_BY_SIDE]), None


def _leading(sums, used, zone, targets, truncations, factors):
    """Compute coefficients of targets with references of their own; return those that failed."""
    every, of = np.unique(truncations, return_inverse=True)
    out = np.zeros((len(every), len(targets), used.shape[2]))
    good = leading_coefficients(
        np.ascontiguousarray(sums.products[zone]),
        np.ascontiguousarray(sums.inner[zone][targets]),
        used[zone][targets],
        every,
        RANK_TOLERANCE,
        out,
    )
    factors[:, zone, targets] = out[of]
    return targets[~good]


def _without(modes, square, norm, amplitudes, truncations):
    """Yield constant and amplitudes of a target without the pixels of `modes`, by truncation."""
    z = np.concatenate([np.full((1, modes.shape[1]), 1 / np.sqrt(norm)), modes])
    if square is not None:
        z *= np.sqrt(square)
    moments = z @ z.T
    for most in truncations:
        x = solve_without(amplitudes, moments, min(most, len(amplitudes)))
        x[0] /= np.sqrt(norm)
        yield x


def _decompose(products, most):
    """Return the first eigenvectors (k, n) above rounding level, and their eigenvalues."""
    values, columns = np.linalg.eigh(products)
    values, vectors = values[::-1], columns.T[::-1]
    rank = int((values > RANK_TOLERANCE * len(values) * max(values[0], 0.0)).sum())
    kept = min(most, rank)
    return np.ascontiguousarray(vectors[:kept]), values[:kept]


def residuals(
    references, targets, labels, n_zones, coefficients, constants, means, used, leave_out
):
    """Return what models leave of the targets, (n, pixels) for each truncation.

    With `leave_out` it is NaN where a reference that is used has no pixel; else such pixels have
    its mean in the zone.
    """
    results = subtract_in_zones(labels, coefficients, constants, references, targets)
    # NaN where some reference has no pixel: without it, if another zone's or target's uses it
    spoiled = np.flatnonzero(~_finite(references) & (labels >= 0))
    for zone in np.unique(labels[spoiled]):
        pixels = spoiled[labels[spoiled] == zone]
        images, own = references[:, pixels], targets[:, pixels].astype(np.float64)
        own[~np.isfinite(own)] = np.nan
        lost = ~np.isfinite(images)
        images = np.where(lost, means[zone][:, None], images)
        if leave_out:
            own[used[zone].astype(np.float64) @ lost.astype(np.float64) > 0] = np.nan
        for result, factor, constant in zip(results, coefficients, constants, strict=True):
            result[:, pixels] = own - constant[zone][:, None] - factor[zone] @ images
    return list(results)


def _finite(images):
    """Return where all images (m, pixels) are finite, (pixels,)."""
    parts = over_blocks(lambda b: np.isfinite(images[:, b].sum(axis=0)), images.shape[1])
    return np.concatenate(parts)
