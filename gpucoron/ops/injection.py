"""Injected sources: what KLIP leaves of them and a combined image shows, without a new run."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.drizzle import Overlaps, sum_shares
from gpucoron.ops.position_answer import PositionAnswer
from gpucoron.ops.stamps import as_stamps, inside, moves

__all__ = ["CombinedResponse", "KlipResponse", "Terms"]

_REGULAR = 1e-5  # of the weight of a pixel in an integration: differences below count as none
_AT_ONCE = 2**26  # bytes of coefficients of sources
_LEAST = 1e-6  # share of a combination of vectors in pixels that are there, below which it is 0


class Terms(NamedTuple):
    """What is left of m sources of flux 1: stamps less a combination of images, in each zone.

    In a pixel of zone z, integration n has ``shares[m, slots[m, z], n] @ stamps -
    coefficients[m, slots[m, z], n] @ vectors``.
    """

    slots: np.ndarray  # (m, nzones) int32; -1 where a zone is not looked at
    coefficients: np.ndarray  # (m, deep, n, C) of `vectors`; n is 1 where one stands for all
    shares: np.ndarray  # (m, deep, n, g) of the stamps


class KlipResponse:
    """What KLIP leaves of sources that are in the targets and not in the references.

    Parameters
    ----------
    vectors : (K, ny, nx) floating
        KL vectors: orthonormal with the product ``sum m^2 a b``, and to a constant, as
        `gpucoron.ops.eigen.KLBasis.kl_vectors` gives them.
    weight : (ny, nx) floating, optional
        m. Default: ones.
    missing : (n, ny, nx) bool, optional
        Pixels that take no part in the means and coefficients of n integrations. Default: none,
        and one integration stands for all.
    answer : PositionAnswer, optional
        What the registration makes of a source. Default: images are not aligned anew.

    Raises
    ------
    InputError
        Shapes that do not fit.

    Notes
    -----
    KLIP is linear in the target: residual(t + p) = residual(t) + residual(p), with
    ``residual(p) = p - sum_k <p, z_k> z_k`` and the normalised constant as z_0. A source is a small
    stamp, so that one inner product per KL vector over the stamp tells all. Without some pixels
    the coefficients solve ``(1 - sum_missing m^2 z_i z_j) x = sum_others m^2 p z``, as for the
    target itself. Results equal those of a new subtraction to rounding.

    References
    ----------
    Soummer, Pueyo & Larkin 2012, ApJ 755, L28, section 2.3.
    """

    def __init__(
        self,
        vectors: Any,
        weight: Any = None,
        missing: Any = None,
        answer: PositionAnswer | None = None,
    ):
        vectors = np.asarray(vectors, dtype=np.float64)
        if vectors.ndim != 3:
            raise InputError(f"KL vectors have shape {vectors.shape}, expected (K, ny, nx)")
        self.shape: tuple[int, int] = vectors.shape[1:]
        square = np.ones(self.shape) if weight is None else np.asarray(weight, np.float64) ** 2
        if square.shape != self.shape:
            raise InputError(f"weight has shape {square.shape}, KL vectors {self.shape}")
        self._square = np.ascontiguousarray(square.ravel())
        self._answer, self._first = answer, 0 if answer is None else 2
        z = np.empty((square.size, self._first + 1 + len(vectors)))
        if answer is not None:
            z[:, :2] = answer.slopes.reshape(-1, 2)
        z[:, self._first] = 1.0 / np.sqrt(square.sum())
        z[:, self._first + 1 :] = vectors.reshape(len(vectors), -1).T
        self.vectors = z
        self.labels = np.zeros(square.size, np.int32)
        self._rows, self._lacking = np.full(square.size, -1, np.int32), np.zeros((0, 1))
        self._moments: np.ndarray | None = None
        if missing is not None:
            self._note_missing(np.asarray(missing, dtype=bool))
        self._inverses: dict[int, np.ndarray] = {}
        self._of_slopes: dict[int, np.ndarray] = {}

    n_groups, n_zones, linear = 1, 1, True

    def _note_missing(self, missing: np.ndarray) -> None:
        if missing.shape[1:] != self.shape:
            raise InputError(f"missing has shape {missing.shape}, expected (n, {self.shape})")
        flat = missing.reshape(len(missing), -1) & (self._square > 0)
        some = np.flatnonzero(flat.any(axis=0))
        self._rows[some] = np.arange(len(some))
        self._lacking = np.ascontiguousarray(flat[:, some].T, dtype=np.float64)
        root = np.sqrt(self._square)[:, None]
        parts = [self.vectors[which, self._first :] * root[which] for which in flat]
        self._moments = np.stack([part.T @ part for part in parts])

    @property
    def n_vectors(self) -> int:
        """Number of KL vectors."""
        return self.vectors.shape[1] - self._first - 1

    def coefficients(self, stamps: Any, corners: Any, truncate: int) -> np.ndarray:
        """Return the coefficients of a constant and the KL vectors in the models of sources.

        Parameters
        ----------
        stamps : (m, h, w) floating
            Images of the sources, 0 outside.
        corners : (m, 2) int
            Row and column of the first pixel of each stamp; it may reach over the edge.
        truncate : int
            Number of KL vectors; more than there are means all.

        Returns
        -------
        (m, n, truncate + 1) float64
            For each integration; n is 1 without `missing`.
        """
        stamps, corners = (a[:, 0] for a in as_stamps(stamps, corners, 1))
        if truncate < 0:
            raise ParameterError(f"truncate is {truncate}, expected 0 or more")
        found = self._project(stamps, corners, truncate)
        if self._answer is None:
            return found
        if truncate not in self._of_slopes:
            whole = np.ascontiguousarray(np.moveaxis(self._answer.slopes, 2, 0))
            self._of_slopes[truncate] = self._project(whole, np.zeros((2, 2), np.int64), truncate)
        moved = moves(stamps, corners, self._answer)
        return found - np.einsum("ma,anc->mnc", moved, self._of_slopes[truncate])

    def _project(self, stamps, corners, truncate):
        """Return the coefficients of images as they are."""
        from gpucoron.ops.cpu.injection import amplitudes

        size = min(truncate, self.n_vectors) + 1
        width = self._first + size
        vectors = self.vectors if size > self.n_vectors else self.vectors[:, :width].copy()
        found = amplitudes(
            stamps, corners, vectors, self._square, self._rows, self._lacking, self.shape
        )[:, :, self._first :]
        if self._moments is None:
            return found
        return np.matmul(found.transpose(1, 0, 2), self._inverse(size)).transpose(1, 0, 2)

    def terms(
        self, stamps: Any, corners: Any, truncate: int, zones: Any = None, flux: Any = None
    ) -> Terms:
        """Return what models take of sources; as `GramInjection.terms`, for any flux."""
        stamps, corners = as_stamps(stamps, corners, 1)
        found = self.coefficients(stamps[:, 0], corners[:, 0], truncate)
        if self._answer is not None:
            moved = moves(stamps[:, 0], corners[:, 0], self._answer)[:, None]
            found = np.concatenate([np.repeat(moved, found.shape[1], axis=1), found], axis=2)
        found = np.ascontiguousarray(found)[:, None]
        slots = np.zeros((len(stamps), 1), np.int32)
        return Terms(slots, found, np.ones((*found.shape[:3], 1)))

    def _inverse(self, size: int) -> np.ndarray:
        """Return the inverses of the normal equations of each integration, (n, size, size)."""
        if size not in self._inverses:
            moments: Any = self._moments
            values, vectors = np.linalg.eigh(np.eye(size) - moments[:, :size, :size])
            inverse = np.where(values > _LEAST, 1.0 / np.maximum(values, _LEAST), 0.0)
            self._inverses[size] = (vectors * inverse[:, None]) @ vectors.transpose(0, 2, 1)
        return self._inverses[size]

    def residuals(self, stamps: Any, corners: Any, truncate: int, flux: Any = None) -> np.ndarray:
        """Return what KLIP leaves of sources, as whole images.

        Parameters
        ----------
        stamps, corners, truncate
            As for `coefficients`.
        flux
            Without effect: the answer is linear in the source.

        Returns
        -------
        (m, n, ny, nx) float64
            For each source and integration; n is 1 without `missing`.
        """
        x = self.terms(stamps, corners, truncate).coefficients[:, 0]
        stamps, corners = (a[:, 0] for a in as_stamps(stamps, corners, 1))
        models = x @ self.vectors[:, : x.shape[2]].T
        whole = np.zeros((len(stamps), *self.shape))
        for image, stamp, corner in zip(whole, stamps, corners, strict=True):
            where, part = inside(corner, stamp.shape, self.shape)
            image[where] = stamp[part]
        return whole[:, None] - models.reshape(*x.shape[:2], *self.shape)


class CombinedResponse:
    """What a drizzled image shows of sources, of which KLIP has left its part.

    Parameters
    ----------
    responses : sequence of KlipResponse or GramInjection
        Of each science exposure.
    weights : sequence of (n, ny, nx) floating
        Weights of the pixels of each exposure's integrations in the combined image, 0 where one
        takes no part. n is 1, or that of the response.
    geometries : sequence of Overlaps
        Of each exposure's pixels with those of the combined image.

    Raises
    ------
    InputError
        Shapes that do not fit.

    Notes
    -----
    The value of an output pixel is ``sum a w (p - model) / sum a w`` over exposures, integrations
    and input pixels with the shares a of drizzle. Integrations count as registered: a residual is
    not moved by the hundredths of a pixel that integrations of an exposure are apart.
    """

    def __init__(self, responses: Any, weights: Any, geometries: Any):
        self._parts = [
            _Weighted(r, np.asarray(w), g)
            for r, w, g in zip(responses, weights, geometries, strict=True)
        ]
        self.shape: tuple[int, int] = geometries[0].output_shape
        self.weight = sum(
            sum_shares(g, part.weight.reshape(1, *g.input_shape))[0]
            for part, g in zip(self._parts, geometries, strict=True)
        )

    def patches(
        self,
        stamps: Any,
        corners: Any,
        places: Any,
        size: int,
        truncate: int,
        flux: Any = None,
    ) -> np.ndarray:
        """Return patches of the combined image that show nothing but the sources.

        Parameters
        ----------
        stamps : sequence of (m, h, w) or (m, g, h, w) floating
            For each exposure, as for `terms` of its response.
        corners : sequence of (m, 2) or (m, g, 2) int
        places : (m, 2) int
            Row and column of the first pixel of each patch.
        size : int
            Side of a patch.
        truncate : int
            Number of KL vectors.
        flux : (m,) floating, optional
            As for `gpucoron.ops.gram_injection.GramInjection.terms`.

        Returns
        -------
        (m, size, size) float64
            Of flux 1. NaN outside of the image, and where nothing falls.
        """
        places = np.ascontiguousarray(places, dtype=np.int64)
        out = np.zeros((len(places), size, size))
        for part, own, corner in zip(self._parts, stamps, corners, strict=True):
            part.add(*as_stamps(own, corner, part.response.n_groups), places, truncate, flux, out)
        with np.errstate(invalid="ignore", divide="ignore"):
            return out / cut(np.where(self.weight > 0, self.weight, np.nan), places, size)


class _Weighted:
    """One exposure of a combined image: its response and the weights of its pixels."""

    def __init__(self, response: Any, weights: np.ndarray, geometry: Overlaps):
        if weights.shape[1:] != response.shape or tuple(geometry.input_shape) != response.shape:
            raise InputError(
                f"weights have shape {weights.shape}, the pixel map {geometry.input_shape}, "
                f"expected {response.shape} as the KL vectors"
            )
        self.response, self._geometry = response, geometry
        flat = weights.reshape(len(weights), -1).astype(np.float64)
        self.weight = flat.sum(axis=0)
        seen = self.weight > 0
        shares = flat[:, seen] / self.weight[seen] if seen.any() else np.ones((len(flat), 1))
        self._shares = np.median(shares, axis=1)  # of most pixels, all of whose weights are alike
        apart = abs(flat - self._shares[:, None] * self.weight).max(axis=0)
        some = np.flatnonzero(apart > _REGULAR * self.weight)
        self._rows = np.full(flat.shape[1], -1, np.int32)
        self._own = np.zeros((0, len(flat)))
        if len(flat) > 1:
            self._rows[some] = np.arange(len(some))
            self._own = np.ascontiguousarray((flat[:, some] / self.weight[some]).T)

    @cached_property
    def _zones(self) -> np.ndarray:
        """Which zones have a part in each pixel of the output, (ny, nx, nzones) bool."""
        geometry, labels = self._geometry, self.response.labels
        ny, nx = geometry.output_shape
        found = np.zeros((ny * nx, self.response.n_zones), dtype=bool)
        pixels = np.repeat(np.arange(ny * nx), np.diff(geometry.pointers))
        which = labels[geometry.sources]
        known = which >= 0
        found[pixels[known], which[known]] = True
        return found.reshape(ny, nx, -1)

    def _zones_in(self, places: np.ndarray, size: int) -> np.ndarray:
        """Return the zones that patches show, (m, nzones) bool."""
        if self.response.n_zones == 1:
            return np.ones((len(places), 1), dtype=bool)
        low = np.maximum(places, 0)
        high = np.maximum(places + size, low)
        return np.array(
            [
                self._zones[y:below, x:right].any(axis=(0, 1))
                for (y, x), (below, right) in zip(low.tolist(), high.tolist(), strict=True)
            ]
        )

    def add(self, stamps, corners, places, truncate, flux, out):
        from gpucoron.ops.cpu.injection import combined_patches

        zones = self._zones_in(places, out.shape[1])
        deep = max(1, int(zones.sum(axis=1).max(initial=0)))
        response = self.response
        step = max(1, _AT_ONCE // (8 * deep * len(self._shares) * response.vectors.shape[1]))
        for start in range(0, len(places), step):
            some = slice(start, start + step)
            strength = None if flux is None else flux[some]
            terms = response.terms(stamps[some], corners[some], truncate, zones[some], strength)
            one = terms.coefficients.shape[2] == 1
            mean = [
                np.ascontiguousarray(
                    a if one else np.einsum("n,mznc->mzc", self._shares, a)[:, :, None]
                )
                for a in terms[1:]
            ]
            combined_patches(
                np.ascontiguousarray(stamps[some]),
                np.ascontiguousarray(corners[some]),
                response.labels,
                response.vectors,
                terms,
                mean,
                self.weight,
                np.full_like(self._rows, -1) if one else self._rows,
                self._own,
                self._geometry,
                places[some],
                out[some],
            )


def cut(plane: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Cut square patches out of a plane, NaN outside of it.

    Parameters
    ----------
    plane : (ny, nx) floating
    places : (m, 2) int
        Row and column of the first pixel of each patch.
    size : int

    Returns
    -------
    (m, size, size) float64
    """
    steps = np.arange(size)
    y, x = places[:, 0, None] + steps, places[:, 1, None] + steps
    known = ((y >= 0) & (y < plane.shape[0]))[:, :, None] & ((x >= 0) & (x < plane.shape[1]))[
        :, None
    ]
    y, x = np.clip(y, 0, plane.shape[0] - 1), np.clip(x, 0, plane.shape[1] - 1)
    return np.where(known, plane[y[:, :, None], x[:, None]], np.nan)
