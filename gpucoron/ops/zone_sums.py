"""Means, inner products and combinations of images in zones, from pieces that are read once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.device import on_gpu

__all__ = [
    "Areas",
    "PieceSums",
    "Sums",
    "combine_in_zones",
    "cut",
    "find_areas",
    "piece_sums",
    "squares_in_zones",
    "zone_sums",
]


class Areas(NamedTuple):
    """The areas that zones are made of: pixels of one area are in the same zones."""

    label: np.ndarray  # (pixels,) int, -1 in none
    members: np.ndarray  # (nzones, nareas) bool: the areas of each zone

    @property
    def n_zones(self) -> int:
        """Number of zones."""
        return len(self.members)

    def contains(self, zone: int, pixels: np.ndarray) -> np.ndarray:
        """Return which of some pixels are in a zone."""
        label = self.label[pixels]
        return (label >= 0) & self.members[zone, label]


def find_areas(area: np.ndarray, n_zones: int) -> Areas:
    """Find the areas that zones are made of.

    Parameters
    ----------
    area : (pixels,) int, or (nzones, pixels) bool
        The zone of each pixel, -1 in none; or a mask for each of them.
    n_zones : int
    """
    if area.ndim == 1:
        return Areas(area, np.eye(n_zones, dtype=bool))
    packed = np.packbits(area, axis=0)
    starts = np.ones(packed.shape[1], dtype=bool)  # of runs of pixels in the same zones
    starts[1:] = False
    for bits in packed:
        starts[1:] |= bits[1:] != bits[:-1]
    runs = np.flatnonzero(starts)
    keys = np.ascontiguousarray(packed[:, runs].T)
    _, first, label = np.unique(
        keys.view(np.dtype((np.void, keys.shape[1]))).ravel(),
        return_index=True,
        return_inverse=True,
    )
    members, label = area[:, runs[first]], label[np.cumsum(starts) - 1]
    inside = members.any(axis=0)
    numbers = np.where(inside, np.cumsum(inside) - 1, -1)
    return Areas(numbers[label], members[:, inside])


def cut(label: np.ndarray, n_labels: int, size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Cut the pixels of each label into pieces of nearly equal size.

    Parameters
    ----------
    label : (pixels,) int
        From 0; negative ones do not count.
    n_labels : int
    size : int
        The most pixels of a piece.

    Returns
    -------
    list of (k,) int
        Pixels of the pieces, ascending.
    (npieces,) int
        Label of each.
    """
    small = np.int16 if n_labels < 2**15 else np.int64  # which are sorted ten times faster
    order = np.argsort(label.astype(small), kind="stable")
    bounds = np.searchsorted(label[order], np.arange(n_labels + 1))
    pieces, of = [], []
    for number, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if stop > start:
            parts = np.array_split(order[start:stop], -(-(stop - start) // size))
            pieces += parts
            of += [number] * len(parts)
    return pieces, np.array(of, dtype=np.intp)


class PieceSums(NamedTuple):
    """Sums over the pixels of pieces (b of them), about the means of each piece.

    Images are the references, then the targets; the sums of `cross`, of images and masks, are there
    only where pixels are missing.
    """

    totals: Any  # (b, m) weights of the pixels that each image has
    means: Any  # (b, m)
    products: Any  # (b, m, nref) of images and references
    ref_masks: Any = None  # (b, m, nref) of images and the masks of references
    masks: Any = None  # (b, m, nref) of the images' masks and the references' masks
    mask_refs: Any = None  # (b, m, nref) of the images' masks and references


def piece_sums(images: Any, n_refs: int, square: Any, known: Any) -> PieceSums:
    """Return sums over the pixels of pieces.

    Parameters
    ----------
    images : (b, m, pixels) float64
        References first; their means are taken off in place.
    n_refs : int
    square : (b, pixels) float64 or None
        Weights of the pixels in sums; None for ones.
    known : (b, m, pixels) bool or None
        Pixels that each image has; None for all.
    """
    xp = cuda.array_namespace(images)
    b, m, pixels = images.shape
    if known is None:
        if square is None:
            totals = xp.full((b, m), float(pixels))
            means = images.mean(axis=2)
        else:
            total = square.sum(axis=1)
            totals = xp.repeat(total[:, None], m, axis=1)
            sums = xp.matmul(images, square[:, :, None])[:, :, 0]
            means = sums / xp.where(total > 0, total, 1.0)[:, None]
        images -= means[:, :, None]
        if square is not None:
            images *= xp.sqrt(square)[:, None]
        return PieceSums(totals, means, xp.matmul(images, _turned(images[:, :n_refs])))
    masks = known.astype(np.float64)
    if square is not None:
        masks *= xp.sqrt(square)[:, None]
    images = xp.where(known, images, 0.0)
    power = masks * masks
    totals = power.sum(axis=2)
    means = (power * images).sum(axis=2) / xp.where(totals > 0, totals, 1.0)
    images = (images - means[:, :, None]) * masks
    refs, ref_masks = _turned(images[:, :n_refs]), _turned(masks[:, :n_refs])
    return PieceSums(
        totals,
        means,
        xp.matmul(images, refs),
        xp.matmul(images, ref_masks),
        xp.matmul(masks, ref_masks),
        xp.matmul(masks, refs),
    )


def _turned(images: Any) -> Any:
    return images.transpose(0, 2, 1)


class Sums(NamedTuple):
    """Means and inner products in zones, about the means of each zone."""

    means: Any  # (nzones, nref) of the references
    totals: Any  # (nzones, nref) weights of the pixels that they have
    products: Any  # (nzones, nref, nref)
    target_means: Any  # (nzones, n); NaN for a target without pixels
    inner: Any  # (nzones, n, nref) of targets and references
    norms: Any  # (nzones,) weights of all pixels of a zone

    def of_targets(self, numbers: np.ndarray | None) -> Sums:
        """Return the sums where some of the references are the targets."""
        if numbers is None:
            return self
        xp = cuda.array_namespace(self.means)
        means = xp.where(self.totals > 0, self.means, np.nan)
        rows = xp.asarray(numbers)
        return self._replace(target_means=means[:, rows], inner=self.products[:, rows])


def zone_sums(parts: list[PieceSums], pieces_of: list[np.ndarray], n_refs: int, norms: Any) -> Sums:
    """Put the sums of zones together from those of pieces.

    Parameters
    ----------
    parts : list of PieceSums
        In the order of the pieces.
    pieces_of : list of (k,) int
        The pieces of each zone.
    n_refs : int
    norms : (nzones,) float64
        Weights of all pixels of the zones.

    Notes
    -----
    With d the mean of a piece less that of the zone, products about the zone's means are those
    about the piece's plus ``w d_i d_j`` (Chan, Golub & LeVeque 1983), which loses nothing to large
    means.
    """
    xp = cuda.array_namespace(parts[0].means)
    joined = _join(xp, parts)
    zones = [_zone(xp, joined, xp.asarray(pieces), n_refs) for pieces in pieces_of]
    means, totals, products = (xp.stack(values) for values in zip(*zones, strict=True))
    lacking = totals[:, n_refs:] <= 0
    return Sums(
        means[:, :n_refs],
        totals[:, :n_refs],
        products[:, :n_refs],
        xp.where(lacking, np.nan, means[:, n_refs:]),
        products[:, n_refs:],
        norms,
    )


def _join(xp: Any, parts: list[PieceSums]) -> list[Any]:
    """Put the sums of all pieces into one array each; None where no piece has them."""
    joined: list[Any] = []
    for name in PieceSums._fields:
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            joined.append(None)
            continue
        if any(value is None for value in values):  # nothing is missing in those pieces
            values = [_whole(xp, part, name) for part in parts]
        joined.append(values[0] if len(values) == 1 else xp.concatenate(values))
    return joined


def _whole(xp, part: PieceSums, name: str) -> Any:
    """Return a sum with masks of pieces in which nothing is missing."""
    value = getattr(part, name)
    if value is not None:
        return value
    if name == "masks":
        return xp.broadcast_to(part.totals[:, :1, None], part.products.shape)
    return xp.zeros(part.products.shape)


def _zone(xp, joined: list[Any], pieces: Any, n_refs: int) -> tuple[Any, Any, Any]:
    """Return means, totals and products of a zone."""
    own: list[Any] = [None if values is None else values[pieces] for values in joined]
    totals, means, products, ref_masks, masks, mask_refs = own
    total = totals.sum(axis=0)
    mean = (totals * means).sum(axis=0) / xp.where(total > 0, total, 1.0)
    d = means - mean
    result = products.sum(axis=0)
    if masks is None:
        return mean, total, result + (totals * d).T @ d[:, :n_refs]
    left, right = d[:, :, None], d[:, None, :n_refs]
    result = result + (ref_masks * right + mask_refs * left + masks * left * right).sum(axis=0)
    return mean, total, result


def combine_in_zones(
    labels: np.ndarray, weights: np.ndarray, planes: Any, dtype: Any = np.float64
) -> Any:
    """Combine planes with the weights of each pixel's zone.

    Parameters
    ----------
    labels : (pixels,) int
        The zone of each pixel; negative in none. On the host.
    weights : (nzones, n, m) float64
        On the host.
    planes : (m, pixels) floating
        On the host or a GPU; they are read once.
    dtype : dtype
        Of the result; sums are float64.

    Returns
    -------
    (n, pixels) of `dtype`
        0 outside of the zones.
    """
    if not on_gpu(planes):
        from gpucoron.ops.cpu.zone_sums import combine_in_zones as on_host

        return on_host(labels, weights, planes, dtype)
    cp = cuda.cupy()
    out = cp.zeros((weights.shape[1], len(labels)), dtype)
    for zone, pixels in _pixels_of(labels, len(weights)):
        out[:, pixels] = cp.asarray(weights[zone]) @ planes[:, pixels]
    return out


def squares_in_zones(
    labels: np.ndarray, weights: np.ndarray, constants: np.ndarray, planes: Any
) -> Any:
    """Return sums of squares of combinations of planes, with the weights of each pixel's zone.

    Parameters
    ----------
    labels : (pixels,) int
        As for `combine_in_zones`.
    weights : (nzones, n, rows, m) float64
        On the host.
    constants : (nzones, n, rows) float64
        They are subtracted from the combinations. On the host.
    planes : (m, pixels) floating

    Returns
    -------
    (n, pixels) float64
        ``sum_rows (weights @ planes - constants)^2``; NaN outside of the zones.
    """
    if not on_gpu(planes):
        from gpucoron.ops.cpu.zone_sums import squares_in_zones as on_host

        return on_host(labels, weights, constants, planes)
    cp = cuda.cupy()
    out = cp.full((weights.shape[1], len(labels)), np.nan)
    for zone, pixels in _pixels_of(labels, len(weights)):
        sums = cp.matmul(cp.asarray(weights[zone]), planes[:, pixels])
        out[:, pixels] = ((sums - cp.asarray(constants[zone])[..., None]) ** 2).sum(axis=1)
    return out


def _pixels_of(labels: np.ndarray, n_zones: int) -> list[tuple[int, Any]]:
    """Return the zones that have pixels, and these on the GPU."""
    pieces, of = cut(labels, n_zones, len(labels))
    return [(k, cuda.cupy().asarray(p)) for k, p in zip(of.tolist(), pieces, strict=True)]
