"""Noise of the combined image: each source counted as it is shared, and correlated as drizzled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.stack import VARIANCES, IntegrationStack, PlaneSource, ReferenceNoise
from gpucoron.ops.dq import DO_NOT_USE, NON_SCIENCE
from gpucoron.ops.drizzle import Overlaps, overlaps, sum_shares, weighted_sums
from gpucoron.steps.speckle_correlation import (
    Speckles,
    box_factors,
    common_correlation,
    measured_correlation,
)

__all__ = ["CombinedNoise", "NoisePlanes", "Window"]

_WINDOW = 48  # output pixels, square, on which the correlation of errors is computed
_SIDES = (1, 2, 3, 4, 6, 8, 12, 16)  # of the boxes, all of which fit into the window
_SAMPLES = 24  # points along an axis of a pixel map from which its linear part is found


class NoisePlanes(NamedTuple):
    """Noise of the combined image; (ny, nx) float32, (MJy/sr)^2, NaN where nothing falls."""

    err: Any  # MJy/sr: the root of the sum of all
    own: dict[str, Any]  # the variances of `VARIANCES` that some exposure has
    var_ref: Any | None
    var_speckle: Any | None
    correlation: tuple[tuple[int, float], ...]  # side of a box, px, and factor; 0 for large areas
    speckle_correlation: tuple[tuple[int, float], ...]  # the same of var_speckle


class _Shared(NamedTuple):
    """Noise in an exposure's part of the image that others share: of its references, or its own."""

    variance: Any  # (ny, nx), not yet divided by the square of the total weight
    noise: ReferenceNoise
    turned: np.ndarray  # (2, 2) from output to input pixels
    own: tuple[
        PlaneSource, ...
    ] = ()  # integrations whose own noise this is, not that of references


class Window(NamedTuple):
    """The pixels of an exposure about the star, and their overlaps with a small output image."""

    part: tuple[slice, slice]
    overlaps: Overlaps  # on the host


@dataclass
class _Exposure:
    """Sums over the integrations of one exposure, on its own grid."""

    sums: Any  # weights, then squared weights times variances
    names: list[str]  # of these variances; "err" is what they do not tell


@dataclass
class CombinedNoise:
    """Propagates the errors of all exposures into the combined image.

    Add the planes of an exposure (`add`), then finish it (`finish`); at the end take the `result`.

    Parameters
    ----------
    output_shape : (ny, nx)
    center : (x, y) or None
        The output pixel, from 0, of the point that the references were aligned to, the star. None
        where it is not known: the references' noise of different exposures then counts as
        independent.

    Notes
    -----
    With shares a of input pixels in an output pixel, weights w and W = sum a w over all
    integrations, the noise of the science pixels is ``sum a^2 w^2 var / W^2``. The references'
    noise is common to the integrations of an exposure: it is counted once, ``sum a^2 (sum_i w_i)^2
    var / W^2`` with the variance in their mean. Exposures e and f that share references have in
    common ``2 rho c sqrt(V_e V_f)``, where c is the cosine between their coefficients, weighted
    with the references' noise, and rho the correlation of noise on two drizzled images that are
    displaced against each other: the star is in the same place, the images are turned. With drops
    of a pixel that is a cubic B-spline of the displacement in x times one of that in y. Where e is
    a reference of f (ADI), the noise of e's own pixels is in f's part as well, subtracted and
    turned; it counts by the same formula with the sign of what is subtracted, which makes the sum
    smaller where the images overlap: within two pixels over the difference of the rolls (11 px at
    10 degrees). The references' part is no less than 0: near the star errors are too large
    rather than too small. Speckles
    are wider than pixels, so the average over a drop does not reduce them, and the same in all
    exposures, turned with these about the star: ``sum_e V_e + 2 sum_e<f rho_ef sqrt(V_e V_f)`` with
    ``V_e = (sum_e a w)^2 var_e / W^2`` and rho what the speckles of the two have in common,
    measured in rings about the star (`gpucoron.steps.speckle_correlation`); without a known star
    only the first sum.
    """

    output_shape: tuple[int, int]
    center: tuple[float, float] | None = None
    _from_err: bool = False  # the noise of some pixels of the exposure is known from ERR only
    _total: Any = None  # W
    _own: dict[str, Any] = field(default_factory=dict)
    _shared: list[_Shared] = field(default_factory=list)
    _speckles: list[tuple[Any, Speckles]] = field(default_factory=list)
    _exposure: _Exposure | None = None
    _windows: list[tuple[Any, float, float]] = field(default_factory=list)

    def start(self, stack: IntegrationStack) -> None:
        """Begin an exposure: see whether its VAR_* tell the noise of all pixels that count."""
        self._exposure, self._from_err = None, bool(_untold(stack).any())

    def add(self, stack: IntegrationStack, weights: Any) -> None:
        """Add integrations of the exposure that was begun with their weights (n, ny, nx)."""
        names = [name for name in VARIANCES if getattr(stack, name) is not None]
        planes = [getattr(stack, name) for name in names]
        if self._from_err:
            xp, untold = cuda.array_namespace(stack.data), _untold(stack)
            own = xp.where(untold, _own_by_err(stack), np.float32(0))
            planes = [*(xp.where(untold, np.float32(0), plane) for plane in planes), own]
            names = [*names, "err"]
        sums = weighted_sums(weights, planes)
        if self._exposure is None:
            self._exposure = _Exposure(sums, names)
        else:
            self._exposure.sums += sums

    def finish(
        self, stack: IntegrationStack, pixel_map: Any, geometry: Overlaps, window: Window | None
    ) -> None:
        """Resample what was added; `stack` is the whole exposure, `window` from `window_of`."""
        if self._exposure is None:
            return
        (weight, *variances), names = self._exposure.sums, self._exposure.names
        xp, self._exposure = cuda.array_namespace(weight), None
        speckle, shared = _speckle_of(stack), _reference_noise_of(stack)
        linear = [weight]
        if speckle is not None:
            linear += [weight * speckle, weight * _mean_of(stack, weight)]
        squared = variances
        if shared is not None:
            squared = [*variances, weight**2 * xp.asarray(shared.variance)]
        of_exposure = sum_shares(geometry, xp.stack(linear))
        summed = sum_shares(geometry, xp.stack(squared), squared=True)
        if self._total is None:
            self._total = xp.zeros(self.output_shape)
        self._total += of_exposure[0]
        for name, plane in zip(names, summed, strict=False):
            self._own[name] = self._own[name] + plane if name in self._own else plane
        turned = _linear_part(pixel_map)
        if speckle is not None:
            total, of_speckles, of_data = of_exposure
            scale = xp.where(total > 0, 1.0 / xp.where(total > 0, total, 1.0), np.nan)
            noise = summed.sum(axis=0) * scale**2
            pattern = Speckles.of(of_data * scale, noise, of_speckles * scale, turned)
            self._speckles.append((total * of_speckles, pattern))
        if shared is not None:
            self._shared.append(_Shared(summed[len(names)], shared, turned))
            if shared.sources and stack.sources:
                own = _Shared(sum(summed[: len(names)]), shared, turned, stack.sources)
                self._shared.append(own)
        self._note_window(window, weight, sum(squared))

    def result(self, data: Any) -> NoisePlanes:
        """Return the noise of all that was added; `data` is the combined image, (ny, nx)."""
        xp = cuda.array_namespace(self._total)
        seen = self._total != 0
        scale = xp.where(seen, 1.0 / xp.where(seen, self._total, 1.0) ** 2, np.nan)
        own = {name: plane * scale for name, plane in self._own.items()}
        var_ref = self._reference_variance()
        var_ref = None if var_ref is None else var_ref * scale
        total = sum([*own.values(), *([] if var_ref is None else [var_ref])])
        speckle, factors = self._speckle_variance(data, total, scale)
        total = total if speckle is None else total + speckle
        return NoisePlanes(
            _narrow(xp.sqrt(xp.where(total > 0, total, np.nan))),
            {name: _narrow(plane) for name, plane in own.items() if name != "err"},
            _narrow(var_ref),
            _narrow(speckle),
            _correlation(self._windows),
            factors,
        )

    def _speckle_variance(self, data: Any, noise: Any, scale: Any) -> tuple[Any, tuple]:
        """Sum the speckles over exposures, and return how they are correlated in boxes."""
        if not self._speckles:
            return None, ()
        xp = cuda.array_namespace(scale)
        total = sum(plane for plane, _ in self._speckles)
        variance = total * scale
        correlation = measured_correlation(data, xp.sqrt(noise + variance), variance)
        factors, center = box_factors(correlation, _SIDES), self.center
        if center is None:
            return variance, factors
        for k, (one, pattern) in enumerate(self._speckles):
            for other, before in self._speckles[:k]:
                common = common_correlation(pattern, before, center)
                total = total + 2.0 * xp.asarray(common) * xp.sqrt(one * other)
        return total * scale, factors

    def _reference_variance(self) -> Any:
        """Sum the references' noise over exposures, with what these have in common."""
        if not self._shared:
            return None
        xp = cuda.array_namespace(self._shared[0].variance)
        total = sum(part.variance for part in self._shared if not part.own)
        for k, one in enumerate(self._shared):
            for other in self._shared[:k]:
                cosine = _cosine(one, other)
                if cosine == 0.0 or self.center is None:
                    continue
                turned = one.turned - other.turned
                overlap = xp.asarray(_overlap(turned, self.output_shape, self.center))
                total = total + 2.0 * cosine * overlap * xp.sqrt(one.variance * other.variance)
        return xp.maximum(total, 0.0)

    def window_of(self, pixel_map: Any, geometry: Overlaps) -> Window | None:
        """Return the part of a pixel map in the window about the star, and its overlaps there."""
        ny, nx = self.output_shape
        x, y = self.center or ((nx - 1) / 2, (ny - 1) / 2)
        corner = np.floor(np.round([x, y], 2) + 0.25) - _WINDOW // 2
        near = to_host(pixel_map) - corner
        inside = np.all((near > -2) & (near < _WINDOW + 2), axis=2)
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if len(rows) < 2 or len(columns) < 2:
            return None
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        window = overlaps(
            near[part],
            (_WINDOW, _WINDOW),
            kernel=geometry.kernel,
            pixfrac=geometry.pixfrac,
            pixel_scale_ratio=geometry.pixel_scale_ratio,
        )
        return Window(part, window)

    def _note_window(self, window: Window | None, weight: Any, variance: Any) -> None:
        """Keep an exposure's overlaps in the window, and the typical weight and variance there."""
        if window is None:
            return
        xp, part = cuda.array_namespace(weight), window.part
        used = weight[part][weight[part] > 0]
        if used.size:
            typical = float(xp.median(variance[part][weight[part] > 0]))
            self._windows.append((window.overlaps, float(xp.median(used)), typical))


def _untold(stack: IntegrationStack) -> Any:
    """Return the pixels that count whose VAR_* do not tell their noise, (n, ny, nx) bool."""
    xp = cuda.array_namespace(stack.data)
    known = [v for v in (getattr(stack, name) for name in VARIANCES) if v is not None]
    if not known:
        return xp.ones(stack.shape, dtype=bool)
    told, total = xp.ones(stack.shape, dtype=bool), xp.zeros_like(known[0])
    for variance in known:
        told &= xp.isfinite(variance) & (variance >= 0)
        total = total + variance
    counts = xp.isfinite(stack.data) & ((stack.dq & np.uint32(DO_NOT_USE | NON_SCIENCE)) == 0)
    return counts & ~(told & (total > 0))


def _own_by_err(stack: IntegrationStack) -> Any:
    """Return ERR^2 without what PSF subtraction has added to it, (n, ny, nx), not below 0."""
    xp, own = cuda.array_namespace(stack.err), stack.err * stack.err
    for variance in (stack.var_ref, stack.var_speckle):
        if variance is not None:
            own = own - xp.nan_to_num(variance)
    return xp.maximum(own, 0)


def _speckle_of(stack: IntegrationStack) -> Any:
    """Mean VAR_SPECKLE of an exposure's integrations, float64; None where it has none."""
    if stack.var_speckle is None:
        return None
    xp = cuda.array_namespace(stack.var_speckle)
    return xp.nan_to_num(stack.var_speckle).astype(np.float64).mean(axis=0)


def _mean_of(stack: IntegrationStack, weight: Any) -> Any:
    """Mean of an exposure's integrations, float64; 0 where no pixel has a weight."""
    xp = cuda.array_namespace(stack.data)
    finite = xp.isfinite(stack.data) & (weight > 0)
    total = xp.where(finite, stack.data, 0).sum(axis=0, dtype=np.float64)
    return total / xp.maximum(finite.sum(axis=0), 1)


def _reference_noise_of(stack: IntegrationStack) -> ReferenceNoise | None:
    """What an exposure's integrations share of the references' noise."""
    noise = stack.reference_noise
    if noise is None:
        return None
    return noise._replace(variance=np.nan_to_num(noise.variance).astype(np.float64))


def _cosine(one: _Shared, other: _Shared) -> float:
    """Cosine between the images whose noise is in two parts, all zones alike; 0 for none."""
    if one.noise.sources and other.noise.sources:
        amounts = _amounts(one), _amounts(other)
        common = sorted(set(amounts[0]) & set(amounts[1]))
        product = float(sum((amounts[0][source] * amounts[1][source]).sum() for source in common))
        squares = [sum(float((a * a).sum()) for a in own.values()) for own in amounts]
        size = float(np.sqrt(squares[0] * squares[1]))
        return product / size if size > 0 else 0.0
    if one.noise.coefficients.shape != other.noise.coefficients.shape:
        return 0.0
    a, b = ((p.noise.coefficients.T * p.noise.deviations).ravel() for p in (one, other))
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def _amounts(part: _Shared) -> dict[PlaneSource, np.ndarray]:
    """How much of the noise of each image is in a part, in any unit, for each zone.

    References are subtracted.
    """
    coefficients = part.noise.coefficients
    if part.own:
        return dict.fromkeys(part.own, -np.ones(coefficients.shape[1:]))
    values = (coefficients.T * part.noise.deviations).T
    return dict(zip(part.noise.sources, values, strict=True))


def _linear_part(pixel_map: Any) -> np.ndarray:
    """Return the linear part of the map from output to input pixels, (2, 2), by least squares."""
    steps = [max(1, n // _SAMPLES) for n in pixel_map.shape[:2]]
    sample = to_host(pixel_map[:: steps[0], :: steps[1]])
    y, x = (np.asarray(axis) for axis in np.indices(sample.shape[:2]))
    known = np.isfinite(sample).all(axis=2)
    if known.sum() < 3:
        return np.eye(2)
    design = np.column_stack([sample[known], np.ones(int(known.sum()))])
    pixels = np.stack([x[known] * steps[1], y[known] * steps[0]], axis=1)
    return np.linalg.lstsq(design, pixels.astype(np.float64), rcond=None)[0][:2].T


def _overlap(turned: np.ndarray, shape: tuple[int, int], center: tuple[float, float]) -> np.ndarray:
    """Correlation of the same input noise in two exposures' images, (ny, nx)."""
    y, x = (np.arange(n, dtype=np.float64) for n in shape)
    x, y = x[None] - center[0], y[:, None] - center[1]
    along_x, along_y = (row[0] * x + row[1] * y for row in turned)
    return _spline(along_x) * _spline(along_y)


def _spline(displacement: np.ndarray) -> np.ndarray:
    """Cubic B-spline, 1 at 0: the correlation of noise averaged over two displaced pixels."""
    d = np.abs(displacement)
    inner, outer = 1.0 - 1.5 * d**2 + 0.75 * d**3, 0.25 * np.maximum(2.0 - d, 0.0) ** 3
    return np.where(d < 1.0, inner, outer)


def _correlation(windows: Sequence[tuple[Overlaps, float, float]]) -> tuple:
    """Return scatter of means over boxes relative to that of independent pixels, by side."""
    if not windows:
        return ()
    weights: Any = sum(w * _by_output(window, window.shares) for window, w, _ in windows)
    independent = 0.0
    correlated = dict.fromkeys(_SIDES, 0.0)
    for window, _, variance in windows:
        place = np.repeat(np.arange(_WINDOW**2), np.diff(window.pointers))
        total = weights[place]
        known = total > 0
        share = np.where(known, window.shares / np.where(known, total, 1.0), 0.0)
        independent += variance * float((share**2).sum())
        n_sources = int(np.prod(window.input_shape))
        for side in _SIDES:
            box = place // _WINDOW // side * (_WINDOW // side) + place % _WINDOW // side
            key = box * n_sources + window.sources
            _, index = np.unique(key, return_inverse=True)
            sums = np.bincount(index, share)
            correlated[side] += variance * float((sums**2).sum())
    if not independent > 0:
        return ()
    squares = {side: value / independent for side, value in correlated.items()}
    # what is missing at the rim of a box is in proportion to 1 / side
    squares[0] = 2.0 * squares[_SIDES[-1]] - squares[_SIDES[-1] // 2]
    return tuple((side, float(np.sqrt(value))) for side, value in squares.items())


def _by_output(window: Overlaps, values: np.ndarray) -> np.ndarray:
    place = np.repeat(np.arange(_WINDOW**2), np.diff(window.pointers))
    return np.bincount(place, values, minlength=_WINDOW**2)


def _narrow(plane: Any) -> Any:
    return None if plane is None else plane.astype(np.float32)
