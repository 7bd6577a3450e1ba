"""A regular grid of pixels on the sky about a star."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from gpucoron.errors import InputError

__all__ = ["SkyGrid"]


@dataclass(frozen=True)
class SkyGrid:
    """Pixels of an image on the sky.

    Attributes
    ----------
    shape : (int, int)
        ny, nx.
    scale : float, arcsec
        Side of a pixel.
    star : (float, float) or None
        The star's y and x, pixels from 0; None is the middle, ``(shape - 1) / 2``.
    angle_deg : float
        Position angle of the y axis, degrees east of north; 0 is north up and east left.
    """

    shape: tuple[int, int]
    scale: float
    star: tuple[float, float] | None = None
    angle_deg: float = 0.0

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or not all(n >= 2 for n in self.shape):
            raise InputError(f"the grid has shape {self.shape}, expected (ny, nx), 2 or more each")
        if not 0 < self.scale < math.inf:
            raise InputError(f"the grid's pixel is {self.scale}, expected arcsec above 0")

    @property
    def centre(self) -> tuple[float, float]:
        """The star's y and x."""
        return self.star or ((self.shape[0] - 1) / 2, (self.shape[1] - 1) / 2)

    def offsets(self) -> np.ndarray:
        """Return where its pixels are: (ny, nx, 2), arcsec east and north of the star."""
        y, x = (g - c for g, c in zip(np.indices(self.shape), self.centre, strict=True))
        turn = math.radians(self.angle_deg)
        east = self.scale * (-x * math.cos(turn) + y * math.sin(turn))
        north = self.scale * (x * math.sin(turn) + y * math.cos(turn))
        return np.stack([east, north], axis=-1)

    def places(self, offsets: np.ndarray) -> np.ndarray:
        """Return y, x (n, 2) of offsets (n, 2) from the star, arcsec east and north."""
        east, north = np.asarray(offsets, dtype=np.float64).T / self.scale
        turn = math.radians(self.angle_deg)
        x = -east * math.cos(turn) + north * math.sin(turn)
        y = east * math.sin(turn) + north * math.cos(turn)
        return np.stack([y, x], axis=1) + self.centre

    def sampling(
        self, pixel: float, to_sky: Callable[[float, float], np.ndarray]
    ) -> sparse.csr_array:
        """Return the matrix (n, ny nx) from an image to other pixels, larger ones' means.

        Parameters
        ----------
        pixel : float, arcsec
            Side of these.
        to_sky : callable
            Offsets (n, 2) of places at dy, dx from their centres.
        """
        fine = max(1, math.ceil(pixel / self.scale - 0.1))
        steps = (np.arange(fine) + 0.5) / fine - 0.5
        total: Any = sum(self.interpolation(to_sky(dy, dx)) for dy in steps for dx in steps)
        return (total / fine**2).tocsr()

    def interpolation(self, offsets: np.ndarray) -> sparse.csr_array:
        """Return the matrix (n, ny nx) that interpolates images at offsets (n, 2); 0 beyond."""
        places, (ny, nx) = self.places(offsets), self.shape
        low = np.floor(places).astype(np.int64)
        part = places - low
        rows, columns, values = [], [], []
        number = np.arange(len(places))
        for j in (0, 1):
            for i in (0, 1):
                y, x = low[:, 0] + j, low[:, 1] + i
                inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
                share = abs(1 - j - part[:, 0]) * abs(1 - i - part[:, 1])
                rows.append(number[inside])
                columns.append((y * nx + x)[inside])
                values.append(share[inside])
        entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return sparse.csr_array(entries, (len(places), ny * nx))
