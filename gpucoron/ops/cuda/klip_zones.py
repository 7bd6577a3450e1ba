"""KLIP in zones on a GPU: products and decompositions of many zones at once."""

from __future__ import annotations

import numpy as np

from gpucoron.backend.arrays import to_host
from gpucoron.backend.cuda import cupy
from gpucoron.ops.cuda.eigen import symmetric_eigen
from gpucoron.ops.eigen import RANK_TOLERANCE
from gpucoron.ops.missing_pixels import solve_without
from gpucoron.ops.zone_sums import cut, piece_sums, zone_sums

PIECE = 1024  # pixels: the rest of a zone's last piece is filled with zeros
MEMORY = 2**28  # bytes of the images, or matrices, that are worked on at once


def sums(references, targets, areas, square, lacking):
    """Return means and inner products in all zones; see `gpucoron.ops.cpu.klip_zones.sums`."""
    cp, n_refs = cupy(), len(references)
    pieces, of = cut(areas.label, areas.members.shape[1], PIECE)
    index, filled = _padded(pieces)
    weights = filled.astype(np.float64) if square is None else np.where(filled, square[index], 0.0)
    ragged = lacking is not None or not _finite(references, targets)
    size = max(1, MEMORY // (8 * PIECE * (n_refs + len(targets))))
    parts = []
    for start in range(0, max(1, len(index)), size):
        pixels = cp.asarray(index[start : start + size])
        images = _gathered(references, targets, pixels)
        known = None
        if ragged:
            known = cp.isfinite(images)
            if lacking is not None:
                known[:, n_refs:] &= ~lacking[:, pixels].transpose(1, 0, 2)
        own = cp.asarray(weights[start : start + size])
        parts.append(piece_sums(cp.where(own[:, None] > 0, images, 0.0), n_refs, own, known))
    pieces_of = [np.flatnonzero(members[of]) for members in areas.members]
    norms = np.array([weights[own].sum() for own in pieces_of])
    return zone_sums(parts, pieces_of, n_refs, norms)


def _padded(pieces):
    """Return the pixels of pieces as (pieces, PIECE) int, and which are there."""
    index = np.zeros((len(pieces), PIECE), dtype=np.intp)
    filled = np.zeros(index.shape, dtype=bool)
    for row, there, piece in zip(index, filled, pieces, strict=True):
        row[: len(piece)], there[: len(piece)] = piece, True
    return index, filled


def _finite(references, targets):
    cp = cupy()
    return bool(cp.isfinite(references).all() & cp.isfinite(targets).all())


def _gathered(references, targets, pixels):
    """Return pixels (b, k) of references and targets, (b, m, k) float64."""
    cp = cupy()
    images = cp.concatenate([cp.take(references, pixels, axis=1), cp.take(targets, pixels, axis=1)])
    return cp.ascontiguousarray(images.transpose(1, 0, 2), dtype=np.float64)


def coefficients(sums, used, truncations, references, square, lacks):
    """Return coefficients and constants; see `gpucoron.ops.cpu.klip_zones.coefficients`.

    All decompositions of a batch have the size of all references: those that do not serve have rows
    and columns of 0.
    """
    cp, (n_zones, n, n_refs) = cupy(), used.shape
    shared = bool((used == used[:, :1]).all())  # one decomposition serves all targets of a zone
    rows = (used[:, :1] if shared else used).reshape(-1, n_refs)
    inner = sums.inner if shared else sums.inner.reshape(-1, 1, n_refs)
    zones = np.repeat(np.arange(n_zones), len(rows) // n_zones)
    factors = [cp.zeros(inner.shape) for _ in truncations]
    constants = [
        cp.where(cp.asarray(used.any(axis=2)), sums.target_means, np.nan) for _ in truncations
    ]
    size = max(1, MEMORY // (32 * n_refs**2))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        mask = cp.asarray(rows[part].astype(np.float64))
        products = sums.products[cp.asarray(zones[part])] * mask[:, :, None] * mask[:, None]
        values, vectors = symmetric_eigen(cp.ascontiguousarray(products))
        vectors *= mask[:, None]
        floor = RANK_TOLERANCE * mask.sum(axis=1) * cp.maximum(values[:, 0], 0.0)
        values = cp.where(values > floor[:, None], values, 0.0)
        amplitudes = cp.matmul(inner[part] * mask[:, None], vectors.transpose(0, 2, 1))
        amplitudes /= cp.where(values > 0, values, np.inf)[:, None]
        for factor, most in zip(factors, truncations, strict=True):
            factor[part] = cp.matmul(amplitudes[:, :, :most], vectors[:, :most])
        for place, zone in enumerate(zones[part].tolist()):
            targets = range(n) if shared else [(start + place) % n]
            for row, t in enumerate(targets):
                where = lacks.get((zone, t))
                if where is None or not used[zone, t].any():
                    continue
                images = references[:, cp.asarray(where)] - sums.means[zone][:, None]
                own = None if square is None else cp.asarray(square[where])
                solved = _without(
                    *(cp.where(cp.isfinite(images), images, 0.0), own, sums.norms[zone]),
                    *(values[place], vectors[place], amplitudes[place, row], truncations),
                )
                for factor, constant, x in zip(factors, constants, solved, strict=True):
                    factor[start + place, row] = x[1:] @ vectors[place, : len(x) - 1]
                    constant[zone, t] += x[0]
    factors = [factor.reshape(used.shape) for factor in factors]
    return factors, [
        constant - cp.matmul(factor, sums.means[:, :, None])[:, :, 0]
        for constant, factor in zip(constants, factors, strict=True)
    ]


def _without(images, square, norm, values, vectors, amplitudes, truncations):
    """Return constant and amplitudes of a target that lacks the pixels of `images`."""
    cp = cupy()
    values = values.get()
    most = min(max(truncations), int((values > 0).sum()))
    scale = np.sqrt(values[:most])
    z = cp.empty((most + 1, images.shape[1]))
    z[0] = 1.0 / np.sqrt(norm)
    z[1:] = vectors[:most] @ images / cp.asarray(scale)[:, None]
    if square is not None:
        z *= cp.sqrt(square)
    moments, amplitudes = to_host(z @ z.T), to_host(amplitudes)[:most] * scale
    solved = []
    for truncate in truncations:
        k = min(truncate, most)
        x = solve_without(amplitudes, moments, k)
        solved.append(cp.asarray(np.append(x[0] / np.sqrt(norm), x[1:] / scale[:k])))
    return solved


def residuals(
    references, targets, labels, n_zones, coefficients, constants, means, used, leave_out
):
    """Return what models leave of the targets; see `gpucoron.ops.cpu.klip_zones.residuals`."""
    cp = cupy()
    pieces, of = cut(labels, n_zones, PIECE)
    index, filled = _padded(pieces)
    n, n_refs = len(targets), len(references)
    ragged = not _finite(references, targets)
    results = [cp.full((n, len(labels)), np.nan) for _ in coefficients]
    size = max(1, MEMORY // (8 * PIECE * (n_refs + n)))
    for start in range(0, len(index), size):
        part = slice(start, start + size)
        pixels, zones = cp.asarray(index[part]), cp.asarray(of[part])
        images = _gathered(references, targets, pixels)
        images, own = images[:, :n_refs], images[:, n_refs:]
        if ragged:
            own = cp.where(cp.isfinite(own), own, np.nan)
            lost = ~cp.isfinite(images)
            images = cp.where(lost, means[zones][:, :, None], images)
            if leave_out:
                serving = cp.asarray(used[of[part]].astype(np.float64))
                own = cp.where(cp.matmul(serving, lost.astype(np.float64)) > 0, np.nan, own)
        there = cp.asarray(filled[part])
        places = pixels[there]
        for result, factor, constant in zip(results, coefficients, constants, strict=True):
            left = own - constant[zones][:, :, None] - cp.matmul(factor[zones], images)
            result[:, places] = left.transpose(1, 0, 2)[:, there]
    return results
