"""The transforms that make up the WCS of JWST images, from ASDF nodes to functions of arrays.

Each does the arithmetic of its twin in astropy.modeling or gwcs in the same order, so that results
are the same to the last bit; only the models' overhead, and the seconds their import takes, are
gone. What is not known here raises `Unusual`: a transform, an entry of one, an array with a unit.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpucoron.io.asdf_nodes import Node, TooDeep, Unusual, array, number

__all__ = ["Builder", "NoInverse", "Transform"]

MAX_TRANSFORMS = 5000  # an instrument's pipeline has some hundred
_COMMON = {"inputs", "outputs", "name", "inverse", "bounding_box", "fixed", "bounds"}
_TAG = re.compile(r"tag:stsci\.edu:(?:asdf/transform|gwcs)/([a-z0-9_]+)-1\.\d+\.\d+")
Arrays = tuple[np.ndarray, ...]


class NoInverse(Exception):
    """A transform without inverse in closed form."""


@dataclass(frozen=True)
class Transform:
    """A function of `n_inputs` float64 arrays of one shape to `n_outputs` of them.

    `inverse` returns the inverse or raises `NoInverse`.
    """

    n_inputs: int
    n_outputs: int
    evaluate: Callable[..., Arrays]
    inverse: Callable[[], Transform]

    def then(self, other: Transform) -> Transform:
        """Return the transform that applies `other` to the results of this one."""
        if self.n_outputs != other.n_inputs:
            raise Unusual("transforms that do not fit together")
        return Transform(
            self.n_inputs,
            other.n_outputs,
            lambda *a: other.evaluate(*self.evaluate(*a)),
            lambda: other.inverse().then(self.inverse()),
        )

    def beside(self, other: Transform) -> Transform:
        """Return the transform that gives this one the first inputs, and `other` the rest."""
        n = self.n_inputs
        return Transform(
            n + other.n_inputs,
            self.n_outputs + other.n_outputs,
            lambda *a: (*self.evaluate(*a[:n]), *other.evaluate(*a[n:])),
            lambda: self.inverse().beside(other.inverse()),
        )


def _no_inverse() -> Transform:
    raise NoInverse


# ---- one function for each transform: its parameters to a Transform


def shift(offset: float) -> Transform:
    """Add a constant."""
    return Transform(1, 1, lambda x: (x + offset,), lambda: shift(-offset))


def scale(factor: float) -> Transform:
    """Multiply by a constant."""

    def inverse():
        if factor == 0:
            raise NoInverse
        return scale(1 / factor)

    return Transform(1, 1, lambda x: (factor * x,), inverse)


def identity(n: int) -> Transform:
    """Change nothing."""
    return Transform(n, n, lambda *a: a, lambda: identity(n))


def constant(value: float, n: int) -> Transform:
    """Return the same for any input."""
    return Transform(n, 1, lambda *a: (np.full(a[0].shape, value),), _no_inverse)


def remap(mapping: tuple[int, ...], n: int) -> Transform:
    """Choose, repeat, leave out and exchange inputs."""

    def inverse():
        if not set(range(n)) <= set(mapping):
            raise NoInverse
        return remap(tuple(mapping.index(i) for i in range(n)), len(mapping))

    return Transform(n, len(mapping), lambda *a: tuple(a[i] for i in mapping), inverse)


def polynomial(c: np.ndarray, domain, window) -> Transform:
    """Evaluate sum(c[i, j] x^i y^j), i + j < len(c), after scaling `domain` to `window`."""
    n = len(c)
    maps = []
    for (d0, d1), (w0, w1) in zip(domain, window, strict=True):
        maps.append(((w1 - w0) / (d1 - d0), (w0 * d1 - w1 * d0) / (d1 - d0)))

    def evaluate(x, y):
        (sx, ox), (sy, oy) = maps
        x, y = ox + sx * x, oy + sy * y
        total = 0.0
        for j in range(n - 1, -1, -1):
            row = 0.0
            for i in range(n - 1 - j, 0, -1):
                row = x * (c[i, j] + row)
            total = c[0, j] + row + total
            if j:
                total = y * total
        return (np.broadcast_to(total, x.shape) if np.ndim(total) == 0 else total,)

    return Transform(2, 1, evaluate, _no_inverse)


def affine(matrix: np.ndarray, translation: np.ndarray) -> Transform:
    """Multiply (x, y) by a matrix and add a vector."""
    augmented = np.eye(3)
    augmented[:2, :2], augmented[:2, 2] = matrix, translation

    def evaluate(x, y):
        points = np.vstack([x.ravel(), y.ravel(), np.ones(x.size)])
        u, v, _ = np.dot(augmented, points).reshape(3, *x.shape)
        return u, v

    def inverse():
        if np.linalg.det(matrix) == 0:
            raise NoInverse
        back = np.linalg.inv(matrix)
        return affine(back, -np.dot(back, translation))

    return Transform(2, 2, evaluate, inverse)


def _rotation(radians, axes: str) -> np.ndarray:
    """Return the matrix of rotations about axes one after the other."""
    matrices = []
    for angle, axis in zip(radians, axes, strict=True):
        i = "xyz".index(axis)
        a, b = (i + 1) % 3, (i + 2) % 3
        matrix = np.zeros((3, 3))
        matrix[i, i] = 1.0
        matrix[a, a] = matrix[b, b] = np.cos(angle)
        matrix[a, b] = np.sin(angle)
        matrix[b, a] = -matrix[a, b]
        matrices.append(matrix)
    return functools.reduce(np.matmul, matrices[::-1])


def rotate(radians: np.ndarray, axes: str) -> Transform:
    """Rotate vectors about axes one after the other."""
    matrix = _rotation(radians, axes)

    def evaluate(x, y, z):
        vectors = np.array([x.ravel(), y.ravel(), z.ravel()])
        return tuple(np.dot(matrix, vectors).reshape(3, *x.shape))

    return Transform(
        3, 3, evaluate, lambda: rotate(np.deg2rad(np.rad2deg(radians)[::-1] * -1), axes[::-1])
    )


def to_cartesian(wrap: int) -> Transform:
    """Longitude and latitude (degrees) to a unit vector."""

    def evaluate(lon, lat):
        lon, lat = np.deg2rad(lon), np.deg2rad(lat)
        across = np.cos(lat)
        return across * np.cos(lon), across * np.sin(lon), np.sin(lat)

    return Transform(2, 3, evaluate, lambda: to_spherical(wrap))


def to_spherical(wrap: int) -> Transform:
    """A vector to longitude and latitude (degrees), longitude up to `wrap`."""

    def evaluate(x, y, z):
        across = np.hypot(x, y)
        lat = np.rad2deg(np.arctan2(z, across))
        lon = np.rad2deg(np.arctan2(y, x))
        lon[across == 0] *= 0
        if wrap != 180:
            lon = np.mod(lon, 360.0, where=np.isfinite(lon), out=lon)
        return lon, lat

    return Transform(3, 2, evaluate, lambda: to_cartesian(wrap))


# ---- from nodes


class Builder:
    """Makes transforms of the nodes of one file, whose binary blocks it knows."""

    def __init__(self, binary: list[memoryview]):
        self.binary = binary
        self.count = 0

    def build(self, node: Node | None) -> Transform:
        """Return the transform that a node describes.

        Raises
        ------
        Unusual
            It cannot be evaluated here.
        TooDeep
            Aliases that multiply.
        """
        self.count += 1
        if self.count > MAX_TRANSFORMS:
            raise TooDeep(f"more than {MAX_TRANSFORMS} transforms")
        known = _TAG.fullmatch(node.tag or "") if node is not None else None
        maker = known and _MAKERS.get(known[1])
        if not maker or not isinstance(node.value, dict):
            raise Unusual(f"the transform {node.tag if node is not None else None}")
        function, entries = maker
        others = set(node.value) - _COMMON - entries
        if others:
            raise Unusual(f"{sorted(others)[0]} of {node.tag}")
        made = function(self, node)
        self._check_names(node, made)
        if "inverse" not in node.value:
            return made
        inverse = self.build(node.value["inverse"])
        if (inverse.n_inputs, inverse.n_outputs) != (made.n_outputs, made.n_inputs):
            raise Unusual("an inverse that does not fit")
        return Transform(made.n_inputs, made.n_outputs, made.evaluate, lambda: inverse)

    @staticmethod
    def _check_names(node, made):
        for key, n in (("inputs", made.n_inputs), ("outputs", made.n_outputs)):
            names = node.get(key)
            if names is not None and (not isinstance(names.value, list) or len(names.value) != n):
                raise Unusual(f"{key} of {node.tag}")

    def _pair(self, node):
        forward = node.get("forward")
        if forward is None or len(forward.items) != 2:
            raise Unusual(f"forward of {node.tag}")
        return [self.build(part) for part in forward.items]

    def compose(self, node):
        """Return one transform after another."""
        first, second = self._pair(node)
        return first.then(second)

    def concatenate(self, node):
        """Return two transforms side by side."""
        first, second = self._pair(node)
        return first.beside(second)

    def remap_axes(self, node):
        """Return a choice of inputs; letters for constants are not known here."""
        mapping = _integers(node.get("mapping"))
        n = _integer(node, "n_inputs", max(mapping) + 1)
        if not 0 < len(mapping) <= 16 or not 0 <= min(mapping) <= max(mapping) < n <= 16:
            raise Unusual("mapping of remap_axes")
        return remap(mapping, n)

    def identity(self, node):
        """Return the transform that changes nothing."""
        n = _integer(node, "n_dims", 1)
        if not 0 < n <= 16:
            raise Unusual("n_dims of identity")
        return identity(n)

    def constant(self, node):
        """Return a constant."""
        n = _integer(node, "dimensions", 1)
        if n not in (1, 2):
            raise Unusual("dimensions of constant")
        return constant(number(node.get("value")), n)

    def polynomial(self, node):
        """Return a polynomial of x and y."""
        c = array(node.get("coefficients"), self.binary)
        if c.ndim != 2 or c.shape[0] != c.shape[1] or not 0 < len(c) <= 32:
            raise Unusual("coefficients that are no square")
        ranges = [
            np.array([[-1.0, 1.0]] * 2)
            if node.get(key) is None
            else array(node.get(key), self.binary)
            for key in ("domain", "window")
        ]
        if any(r.shape != (2, 2) for r in ranges) or np.any(ranges[0][:, 0] == ranges[0][:, 1]):
            raise Unusual("domain or window of polynomial")
        return polynomial(c, *ranges)

    def affine(self, node):
        """Return an affine transform of the plane."""
        matrix, vector = (array(node.get(k), self.binary) for k in ("matrix", "translation"))
        if matrix.shape != (2, 2) or vector.shape not in ((2,), (1, 2)):
            raise Unusual("shape of affine")
        return affine(matrix, vector.ravel())

    def rotate_sequence_3d(self, node):
        """Return a rotation of vectors, or of positions on the sphere."""
        angles, axes = array(node.get("angles"), self.binary), _text(node, "axes_order")
        kind = _text(node, "rotation_type")
        if angles.shape != (len(axes),) or set(axes) - set("xyz") or not 0 < len(axes) <= 32:
            raise Unusual("angles of rotate_sequence_3d")
        if kind != "cartesian":
            raise Unusual(f"rotation_type {kind}")
        return rotate(np.deg2rad(angles), axes)

    def spherical_cartesian(self, node):
        """Return the way from the sphere to vectors, or back."""
        wrap, kind = _integer(node, "wrap_lon_at", 0), _text(node, "transform_type")
        makers = {"spherical_to_cartesian": to_cartesian, "cartesian_to_spherical": to_spherical}
        if wrap not in (180, 360) or kind not in makers:
            raise Unusual("entries of spherical_cartesian")
        return makers[kind](wrap)


def _text(node, key):
    found = node.get(key)
    if found is None or not isinstance(found.value, str):
        raise Unusual(f"{key} of {node.tag}")
    return found.value


def _integer(node, key, default):
    if node.get(key) is None:
        return default
    value = number(node.get(key))
    if value != int(value):
        raise Unusual(f"{key} of {node.tag}")
    return int(value)


def _integers(node):
    values = [number(n) for n in node.items] if node is not None else []
    if not values or any(v != int(v) for v in values):
        raise Unusual("expected integers")
    return tuple(map(int, values))


_MAKERS = {
    "shift": (lambda self, node: shift(number(node.get("offset"))), {"offset"}),
    "scale": (lambda self, node: scale(number(node.get("factor"))), {"factor"}),
    "compose": (Builder.compose, {"forward"}),
    "concatenate": (Builder.concatenate, {"forward"}),
    "remap_axes": (Builder.remap_axes, {"mapping", "n_inputs"}),
    "identity": (Builder.identity, {"n_dims"}),
    "constant": (Builder.constant, {"value", "dimensions"}),
    "polynomial": (Builder.polynomial, {"coefficients", "domain", "window"}),
    "affine": (Builder.affine, {"matrix", "translation"}),
    "rotate_sequence_3d": (Builder.rotate_sequence_3d, {"angles", "axes_order", "rotation_type"}),
    "spherical_cartesian": (Builder.spherical_cartesian, {"transform_type", "wrap_lon_at"}),
}
