"""Images as PNG in SVG, with what is drawn over them; without any plotting library."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

__all__ = ["Stretch", "colour_bar", "picture", "png", "robust_stretch", "round_values"]

WIDTH = 480  # of a picture in its own units, whatever its size on paper
NOTHING = 255  # the palette's entry for NaN: transparent
LARGEST = 700  # pixels to a side; larger images are averaged down

# every 17th colour of matplotlib's maps of these names (public domain), linear between
PALETTES = {
    "viridis": "440154481a6c472f7d41448739568c31688e2a788e23888e"
    "1f988b22a88435b77954c5687ad151a5db36d2e21bfde725",
    "cividis": "00224e002e6c1e3a6f35456c47516c575d6d666970757575"
    "848279948e77a59c74b7a96ec8b866dbc75aeed649fee838",
}


@dataclass(frozen=True)
class Stretch:
    """From values to colours: asinh between limits, linear where `softening` is infinite."""

    low: float
    high: float
    softening: float = math.inf

    def __call__(self, values) -> np.ndarray:
        """Map to 0 ... 1."""
        scaled = self._bend(np.clip(values, self.low, self.high))
        ends = self._bend(np.array([self.low, self.high]))
        return (scaled - ends[0]) / (ends[1] - ends[0])

    def _bend(self, values):
        if math.isinf(self.softening):
            return np.asarray(values, dtype=np.float64)
        return np.arcsinh(np.asarray(values, dtype=np.float64) / self.softening)


def robust_stretch(image: np.ndarray, floor: float = -4.0) -> Stretch | None:
    """Choose limits that show noise and sources alike; None where nothing is finite.

    From `floor` standard deviations (of the quiet pixels) to the brightest pixel but one in a
    thousand, at least ten of them.
    """
    values = np.asarray(image, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    middle = float(np.median(values))
    sigma = 1.4826 * float(np.median(np.abs(values - middle)))
    high = float(np.quantile(values, 0.999))
    if sigma == 0:
        sigma = float(values.std()) or abs(middle) or 1.0
    low = max(middle + floor * sigma, float(values.min()))
    high = max(high, middle + 10 * sigma)
    return Stretch(low, high, 3 * sigma + abs(middle))


def png(indices: np.ndarray, palette: str) -> bytes:
    """Encode an image of palette indices; `NOTHING` is transparent.

    Parameters
    ----------
    indices : (ny, nx) uint8
        Row 0 at the top.
    palette : str
        Of `PALETTES`.
    """
    ny, nx = indices.shape
    rows = np.zeros((ny, nx + 1), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = indices
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", nx, ny, 8, 3, 0, 0, 0)),
        (b"PLTE", _colours(palette).tobytes()),
        (b"tRNS", bytes([255] * NOTHING + [0])),
        (b"IDAT", zlib.compress(rows.tobytes(), 7)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _colours(palette: str) -> np.ndarray:
    some = np.frombuffer(bytes.fromhex(PALETTES[palette]), np.uint8).reshape(-1, 3)
    at = np.linspace(0, NOTHING - 1, len(some))
    channels = [np.interp(np.arange(NOTHING), at, c) for c in some.T]
    every = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return np.concatenate([every, [[128, 128, 128]]]).astype(np.uint8)


def _data_url(indices, palette):
    return "data:image/png;base64," + base64.b64encode(png(indices, palette)).decode("ascii")


def _indices(image, stretch):
    with np.errstate(invalid="ignore"):
        level = stretch(np.nan_to_num(image, posinf=np.inf, neginf=-np.inf)) * (NOTHING - 1)
    return np.where(np.isnan(image), NOTHING, np.rint(level)).astype(np.uint8)


@dataclass(frozen=True)
class Frame:
    """The part of an image that a picture shows, and where its pixels come to lie.

    `box` is (x0, y0, x1, y1), whole pixels from 0, the last ones not included.
    """

    box: tuple[int, int, int, int]

    @property
    def scale(self) -> float:
        """Units of the picture per pixel."""
        return WIDTH / (self.box[2] - self.box[0])

    @property
    def height(self) -> float:
        """Of the picture, in its units."""
        return (self.box[3] - self.box[1]) * self.scale

    def place(self, x, y):
        """Where pixel x, y (its centre) lies: y upwards in the image, downwards here."""
        return (np.subtract(x, self.box[0]) + 0.5) * self.scale, (
            self.box[3] - 0.5 - np.asarray(y)
        ) * self.scale


def picture(
    image: np.ndarray,
    stretch: Stretch | None,
    *,
    palette: str = "viridis",
    label: str = "",
    box: tuple[int, int, int, int] | None = None,
    over: Iterable = (),
) -> str:
    """Draw an image as SVG.

    Parameters
    ----------
    image : (ny, nx) floating array
        Row 0 at the bottom; NaN stays empty.
    stretch : Stretch or None
        None where the image has no finite pixel.
    palette : str
        Of `PALETTES`.
    label : str
        What it shows, for those who cannot see it.
    box : (x0, y0, x1, y1), optional
        The part to show.
    over : iterable of callables
        Each is given the `Frame` and returns SVG.
    """
    ny, nx = image.shape
    frame = Frame(box or (0, 0, nx, ny))
    x0, y0, x1, y1 = frame.box
    part = np.asarray(image[y0:y1, x0:x1], dtype=np.float64)
    drawn = (
        ""
        if stretch is None
        else (
            f'<image width="{WIDTH}" height="{frame.height:.1f}" preserveAspectRatio="none" '
            f'href="{_data_url(_indices(_shrunk(part)[::-1], stretch), palette)}"/>'
        )
    )
    text = (
        ""
        if stretch is not None
        else (
            f'<text class="halo" x="{WIDTH / 2}" y="{frame.height / 2:.1f}" '
            'text-anchor="middle">no finite pixel</text>'
        )
    )
    return (
        f'<svg class="picture" viewBox="0 0 {WIDTH} {frame.height:.1f}" role="img">'
        f"<title>{escape(label)}</title>{drawn}{text}"
        f"{''.join(draw(frame) for draw in over)}</svg>"
    )


def _shrunk(image):
    """Average an image that is too large for a page."""
    step = math.ceil(max(image.shape) / LARGEST)
    if step <= 1:
        return image
    ny, nx = (-(-n // step) * step for n in image.shape)
    wide = np.full((ny, nx), np.nan)
    wide[: image.shape[0], : image.shape[1]] = image
    blocks = wide.reshape(ny // step, step, nx // step, step)
    good = np.isfinite(blocks)
    count = good.sum(axis=(1, 3))
    total = np.where(good, blocks, 0).sum(axis=(1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def colour_bar(stretch: Stretch | None, unit: str, palette: str = "viridis") -> str:
    """Draw the colours of a picture with their values."""
    if stretch is None:
        return ""
    strip = np.arange(NOTHING, dtype=np.uint8)[None]
    ticks = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="12" y2="16"/>'
        f'<text x="{min(max(x, 12), WIDTH - 12):.1f}" y="30" text-anchor="middle">'
        f"{value:g}</text>"
        for value in round_values(stretch)
        for x in [float(stretch(value)) * WIDTH]
    )
    return (
        f'<svg class="bar" viewBox="0 0 {WIDTH} 49" role="img"><title>{escape(unit)}</title>'
        f'<image width="{WIDTH}" height="12" preserveAspectRatio="none" '
        f'href="{_data_url(strip, palette)}"/>{ticks}'
        f'<text x="{WIDTH / 2}" y="44" text-anchor="middle">{escape(unit)}</text></svg>'
    )


def round_values(stretch: Stretch) -> Sequence[float]:
    """Round values that are well apart along the bar."""
    top = max(abs(stretch.low), abs(stretch.high))
    if not (math.isfinite(top) and top > 0):
        return []
    decades = range(math.floor(math.log10(top)) - 3, math.floor(math.log10(top)) + 1)
    round_ones = [m * 10.0**k for k in reversed(decades) for m in (1, 5, 2)]
    if math.isinf(stretch.softening):
        step = 10.0 ** math.floor(math.log10(stretch.high - stretch.low))
        step = min(
            (step * m for m in (0.1, 0.2, 0.5, 1, 2)),
            key=lambda s: abs((stretch.high - stretch.low) / s - 7),
        )
        first = math.ceil(stretch.low / step)
        round_ones = [k * step for k in range(first, first + 20)]
    chosen: list[float] = []
    for value in (0.0, *(s * v for v in round_ones for s in (1, -1))):
        inside = stretch.low <= value <= stretch.high
        at = stretch(np.array([value, *chosen])) if inside else None
        if inside and (np.abs(at[1:] - at[0]) >= 0.11).all():
            chosen.append(value)
    return sorted(chosen)
