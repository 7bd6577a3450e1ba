"""KLIP in zones: a KL basis for each zone of the image, and for each target its own references."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.backend.device import on_gpu
from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.zone_sums import Areas, Sums, find_areas
from gpucoron.ops.zones import Zones

__all__ = ["ZonedKlip", "klip_zones", "zone_products"]

LEAST_KNOWN = 0.5  # of a zone's pixels that a reference must have


class ZonedKlip(NamedTuple):
    """What KLIP in zones leaves of the targets, and how it was made.

    The residual of target t at a pixel of zone z is ``t - mean(t) - coefficients[k][z, t] @
    (references - their means)``, with the means over the pixels where the zone is optimised.
    """

    residuals: list[Any]  # (n, ny, nx) float64 for each truncation; NaN outside of the zones
    coefficients: list[Any]  # (nzones, n, nref) float64 for each truncation
    products: Any  # (nzones, nref, nref) float64, of the references without their means
    inner: Any  # (nzones, n, nref) float64, of targets and references without their means
    means: Any  # (nzones, nref) float64, of the references
    used: Any  # (nzones, n, nref) bool: references that serve each target


def klip_zones(
    targets,
    references,
    zones=None,
    truncate=50,
    *,
    allowed=None,
    optimise=None,
    weight=None,
    missing=None,
    maxnumbasis=None,
    correlation=None,
    nan="leave_out",
) -> ZonedKlip:
    """Subtract the PSF by KLIP in zones (annuli, sections), each with a KL basis of its own.

    Parameters
    ----------
    targets : (n, ny, nx) floating, or (n,) int
        Images, aligned with the references; or the numbers of the references that are the targets
        as well, as in ADI, so that no product is computed twice.
    references : (nref, ny, nx) floating
        Aligned reference images.
    zones : Zones, (ny, nx) int, or (nzones, ny, nx) bool, optional
        From `gpucoron.ops.zones.make_zones`; or the zone of each pixel, from 0, where the model is
        subtracted, -1 in none; or a mask for each zone; they do not overlap. Default: one zone, the
        whole image.
    truncate : int or sequence of int
        Number of KL modes; more than a target has references are all of them. 0 subtracts the mean.
    allowed : (n, nref) or (nzones, n, nref) bool, optional
        Which references may serve which target (in which zone): not those of its own exposure, or
        in which a companion has moved too little. On the host or a GPU. Default: all.
    optimise : (nzones, ny, nx) bool, optional
        The pixels of each zone's means and inner products; they may overlap. Default: those that
        `zones` has for this, or the zones themselves.
    weight : (ny, nx) floating, optional
        Multiplies the pixels in means and inner products: 1 = used, 0 = ignored. Default: ones.
    missing : (n, ny, nx) bool, optional
        Pixels of the targets, such as filled ones, that take no part in means and coefficients.
    maxnumbasis : int, optional
        At most so many references serve a target in a zone: those most correlated with it there.
    correlation : (n, nref) or (nzones, n, nref) floating, optional
        What `maxnumbasis` compares instead, the largest first.
    nan : {"leave_out", "mean"}
        What pixels that are not finite do. "leave_out": a pixel that some reference lacks takes no
        part in means and products of a zone, and is NaN in residuals of targets for which this
        reference is used; a reference that lacks more than half of a zone's pixels does not serve
        there; the coefficients of a target are the least-squares fit to the pixels it has. "mean":
        they count as the mean of the image in the zone, as in pyKLIP.

    Returns
    -------
    ZonedKlip
        A residual is NaN where its target is, outside of the zones, and in zones where a target has
        no references or pixels.

    Raises
    ------
    InputError
        Shapes that do not fit, or weights that are negative or not finite.
    ParameterError
        A negative truncation, a `maxnumbasis` below 1, or an unknown `nan`.
    TypeError
        Some images on the host and some on a GPU.

    Notes
    -----
    The images are read once for the inner products of all zones, and once to subtract; between
    these only (nref, nref) matrices are decomposed, one for each zone and distinct set of
    references. Means are those over the zone [1]_, so that the zones have no steps between them but
    what the modes leave. Where optimisation areas overlap, products are made of the areas that all
    zones' borders cut out, and each is read once all the same.

    With coefficients c the model is a sum of whole references, ``c @ (R - means)``; pixels with
    weight 0 are subtracted as well.

    The number of threads does not change a result.

    References
    ----------
    .. [1] Soummer, Pueyo & Larkin 2012, ApJ 755, L28; Wang et al. 2015, ASCL 1506.001 (pyKLIP);
       Lafreniere et al. 2007, ApJ 660, 770 (optimisation and subtraction zones).
    """
    truncations = _as_truncations(truncate)
    targets, references = _as_images(targets, references)
    shape = references.shape[1:]
    parts = zones.parts if isinstance(zones, Zones) and optimise is None else None
    labels, n_zones, optimise = _as_labels(zones, optimise, shape)
    if nan not in ("leave_out", "mean"):
        raise ParameterError(f"klip: nan is {nan!r}, expected 'leave_out' or 'mean'")
    if maxnumbasis is not None and maxnumbasis < 1:
        raise ParameterError(f"klip: maxnumbasis is {maxnumbasis}, expected 1 or more")
    used = _as_pairs(allowed, "allowed", (n_zones, len(targets), len(references)), bool).copy()
    lacking = _as_lacking(missing, targets, shape)
    square = _as_square(weight, shape)
    work = _device_work(references)
    flat = references.reshape(len(references), -1)
    leave_out = nan == "leave_out"
    known = _known(flat) if leave_out else None
    if targets.ndim == 1 and (known is not None or lacking is not None):
        targets = references[targets]
    areas, usable = _areas(labels, optimise, square, shape, n_zones, known, parts)
    used &= usable[:, None]
    numbers = to_host(targets).astype(np.intp) if targets.ndim == 1 else None
    images = flat[:0] if numbers is not None else targets.reshape(len(targets), -1)
    sums = work.sums(flat, images, areas, square, lacking).of_targets(numbers)
    used &= to_host(sums.totals > 0)[:, None]
    if maxnumbasis is not None:
        _limit(used, maxnumbasis, _ranking(correlation, sums, used))
    lacks = _lacking_pixels(images, lacking, areas, square) if leave_out else {}
    coefficients, constants = work.coefficients(sums, used, truncations, flat, square, lacks)
    if numbers is not None:
        images = flat[targets]
    residuals = work.residuals(
        flat, images, labels, n_zones, coefficients, constants, sums.means, used, leave_out
    )
    return ZonedKlip(
        [plane.reshape(-1, *shape) for plane in residuals],
        coefficients,
        sums.products,
        sums.inner,
        sums.means,
        cuda.array_namespace(references).asarray(used),
    )


def zone_products(images, zones=None, *, optimise=None, weight=None) -> Sums:
    """Return means and inner products of images in zones, without subtracting anything.

    Parameters
    ----------
    images : (n, ny, nx) floating
        Finite images, on the host or on a GPU.
    zones, optimise, weight
        As for `klip_zones`.

    Returns
    -------
    Sums
        `means` (nzones, n), `totals` and `products` (nzones, n, n); nothing of targets.

    Raises
    ------
    InputError
        As `klip_zones`.
    """
    (images,) = cuda.as_device_arrays(images)
    shape, flat = images.shape[1:], images.reshape(len(images), -1)
    parts = zones.parts if isinstance(zones, Zones) and optimise is None else None
    labels, n_zones, optimise = _as_labels(zones, optimise, shape)
    square = _as_square(weight, shape)
    areas, _ = _areas(labels, optimise, square, shape, n_zones, None, parts)
    return _device_work(images).sums(flat, flat[:0], areas, square, None)


def _device_work(images) -> Any:
    """Return the module that does the work where the images are."""
    if on_gpu(images):
        from gpucoron.ops.cuda import klip_zones as work
    else:
        from gpucoron.ops.cpu import klip_zones as work  # type: ignore[no-redef]
    return work


# ---- arguments


def _as_truncations(truncate) -> list[int]:
    truncations = [int(k) for k in np.atleast_1d(truncate)]
    if min(truncations, default=0) < 0:
        raise ParameterError(f"truncate is {min(truncations)}, expected 0 or more")
    return truncations


def _as_images(targets, references):
    targets, references = cuda.as_device_arrays(targets, references)
    if references.ndim != 3 or not len(references):
        raise InputError(f"klip: references have shape {references.shape}, expected (nref, ny, nx)")
    if targets.ndim == 1 and targets.dtype.kind in "iu":
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(references):
            raise InputError(f"klip: targets are numbers of references, 0 to {len(references) - 1}")
        return cuda.array_namespace(references).asarray(targets), references
    if targets.ndim != 3 or targets.shape[1:] != references.shape[1:]:
        raise InputError(
            f"klip: targets have shape {targets.shape}, references {references.shape}; expected "
            "(n, ny, nx) and (nref, ny, nx)"
        )
    on_gpu(targets, references)
    return targets, references


def _as_labels(zones, optimise, shape) -> tuple[np.ndarray, int, np.ndarray | None]:
    """Return the zone of each pixel, (pixels,) int, how many there are, and their areas."""
    if zones is None:
        return np.zeros(shape[0] * shape[1], dtype=np.intp), 1, optimise
    number = 0
    if isinstance(zones, Zones):  # of which the last ones may have no pixel
        optimise = zones.optimise if optimise is None else optimise
        zones, number = zones.labels, len(zones)
    zones = to_host(zones)
    if zones.dtype == bool and zones.shape[-2:] == shape and zones.ndim == 3 and len(zones):
        if (zones.sum(axis=0) > 1).any():
            raise InputError("klip: zones overlap; only the areas of optimise may")
        labels = np.where(zones.any(axis=0), zones.argmax(axis=0), -1)
        return labels.ravel(), len(zones), optimise
    if zones.shape != shape or zones.dtype.kind not in "iu":
        raise InputError(
            f"klip: zones have shape {zones.shape} and dtype {zones.dtype}, expected {shape} of "
            f"integers, or (nzones, {shape[0]}, {shape[1]}) of bool"
        )
    if zones.max() < 0:
        raise InputError("klip: no pixel is in any zone")
    number = max(number, int(zones.max()) + 1)
    return np.maximum(zones.ravel().astype(np.intp), -1), number, optimise


def _as_pairs(values, name, shape, dtype) -> np.ndarray:
    """Return what is said of each zone, target and reference, on the host; ones by default."""
    if values is None:
        return np.ones(shape, dtype)
    values = to_host(values)
    if values.shape not in (shape, shape[1:]):
        raise InputError(
            f"klip: {name} has shape {values.shape}, expected {shape[1:]} or {shape}: (zones,) "
            "targets, references"
        )
    return np.broadcast_to(values.astype(dtype), shape)


def _as_lacking(missing, targets, shape):
    if missing is None:
        return None
    (missing,) = cuda.as_device_arrays(missing)
    if missing.shape != (len(targets), *shape):
        raise InputError(
            f"klip: missing has shape {missing.shape}, expected {(len(targets), *shape)}"
        )
    return missing.reshape(len(missing), -1).astype(bool)


def _as_square(weight, shape) -> np.ndarray | None:
    """Return the squares of the weights, (pixels,) on the host."""
    if weight is None:
        return None
    weight = to_host(weight)
    if weight.shape != shape:
        raise InputError(f"klip: weight has shape {weight.shape}, images {shape}")
    weight = weight.astype(np.float64).ravel()
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise InputError("klip: weight is negative or not finite; expected numbers from 0 to 1")
    return weight**2


# ---- where zones are optimised, and with which references


def _known(flat) -> np.ndarray | None:
    """Return which pixels each reference has, (nref, pixels) on the host; None where all do."""
    xp = cuda.array_namespace(flat)
    if bool(xp.isfinite(flat.sum(axis=1, dtype=np.float64)).all()):
        return None
    return to_host(xp.isfinite(flat))


def _areas(labels, optimise, square, shape, n_zones, known, parts=None) -> tuple[Areas, np.ndarray]:
    """Return where zones are optimised, and the references that may serve there.

    The latter are (nzones, nref) bool, or (nzones, 1) where nothing is missing. `parts` are the
    areas of `optimise` or `labels`, where they are known.
    """
    counted = np.ones(len(labels), dtype=bool) if square is None else square > 0
    if parts is not None and known is None:
        label = parts.label if square is None else np.where(counted, parts.label, -1)
        return parts._replace(label=label), np.ones((n_zones, 1), dtype=bool)
    if optimise is None:
        area: np.ndarray = np.where(counted, labels, -1)
    else:
        area = to_host(optimise)
        if area.shape != (n_zones, *shape):
            raise InputError(
                f"klip: optimise has shape {area.shape}, expected {(n_zones, *shape)}, a mask for "
                "each zone"
            )
        area = area.astype(bool).reshape(n_zones, -1) & counted
    if known is None:
        return find_areas(area, n_zones), np.ones((n_zones, 1), dtype=bool)
    within = [area == z if area.ndim == 1 else area[z] for z in range(n_zones)]
    share = np.array([known[:, w].mean(axis=1) if w.any() else known[:, 0] * 0.0 for w in within])
    usable = share >= LEAST_KNOWN
    area = area.copy()
    for z, inside in enumerate(within):
        lost = inside & ~known[usable[z]].all(axis=0)
        if area.ndim == 1:
            area[lost] = -1
        else:
            area[z, lost] = False
    return find_areas(area, n_zones), usable


def _ranking(correlation, sums: Sums, used) -> np.ndarray:
    """Return what says which references suit a target best: their correlation, if not given."""
    if correlation is None:
        xp = cuda.array_namespace(sums.products)
        norms = xp.sqrt(xp.diagonal(sums.products, axis1=1, axis2=2))[:, None]
        return to_host(sums.inner / xp.where(norms > 0, norms, 1.0))
    return _as_pairs(correlation, "correlation", used.shape, np.float64)


def _limit(used, maxnumbasis, ranking) -> None:
    """Keep at most `maxnumbasis` references of each target and zone, in place."""
    order = np.argsort(np.where(used, ranking, -np.inf), axis=2, kind="stable")
    rest = order[..., : max(0, used.shape[2] - int(maxnumbasis))]
    np.put_along_axis(used, rest, False, axis=2)


def _lacking_pixels(images, lacking, areas: Areas, square) -> dict[tuple[int, int], np.ndarray]:
    """Return the pixels that targets lack in the zones' areas, by zone and target."""
    xp = cuda.array_namespace(images)
    lacks = {}
    for t, image in enumerate(images):
        if lacking is None and bool(xp.isfinite(image.sum(dtype=np.float64))):
            continue
        missing = ~xp.isfinite(image) if lacking is None else ~xp.isfinite(image) | lacking[t]
        where = np.flatnonzero(to_host(missing))
        for z in range(areas.n_zones):
            inside = where[areas.contains(z, where)]
            if inside.size:
                lacks[z, t] = inside
    return lacks
