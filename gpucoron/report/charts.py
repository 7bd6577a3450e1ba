"""Line charts, scatter plots and bars as SVG; colours and fonts are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

__all__ = ["Chart", "legend"]

DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")


class Chart:
    """A pair of axes to draw in.

    Parameters
    ----------
    x, y : sequence of floats
        All that is to be seen along each axis; the limits come from their finite values.
    x_label, y_label : str
    log_y : bool
    title : str
        For those who cannot see it.
    square : bool
        One unit is as long along x as along y.
    height : int
        The width is 460.
    """

    left, right, top, bottom = 62, 12, 10, 44

    def __init__(
        self,
        x,
        y,
        x_label: str,
        y_label: str,
        *,
        log_y: bool = False,
        title: str = "",
        square: bool = False,
        height: int = 300,
    ):
        self.width, self.height, self.log_y = 460, height, log_y
        self.title, self.labels = title, (x_label, y_label)
        self.x = _limits(x, False)
        self.y = _limits(y, log_y)
        if square:
            self._make_square()
        self.parts: list[str] = []

    def _make_square(self):
        across, up = self.width - self.left - self.right, self.height - self.top - self.bottom
        unit = max((self.x[1] - self.x[0]) / across, (self.y[1] - self.y[0]) / up)
        self.x, self.y = (
            (sum(lim) / 2 - unit * n / 2, sum(lim) / 2 + unit * n / 2)
            for lim, n in ((self.x, across), (self.y, up))
        )

    def px(self, x):
        """Place along the picture of a value of x."""
        share = (np.asarray(x, float) - self.x[0]) / (self.x[1] - self.x[0])
        return self.left + share * (self.width - self.left - self.right)

    def py(self, y):
        """The same of y."""
        y = np.asarray(y, float)
        if self.log_y:
            with np.errstate(divide="ignore", invalid="ignore"):
                y = np.log10(y)
        low, high = np.log10(self.y) if self.log_y else self.y
        return (
            self.height
            - self.bottom
            - (y - low) / (high - low) * (self.height - self.top - self.bottom)
        )

    def line(self, x, y, colour: int = 0, dash: int = 0) -> None:
        """Draw a line, interrupted where a value is not finite."""
        px, py = self.px(x), self.py(y)
        path, pen = [], "M"
        for a, b in zip(px, py, strict=True):
            if math.isfinite(a) and math.isfinite(b):
                path.append(f"{pen}{a:.1f} {b:.1f}")
                pen = "L"
            else:
                pen = "M"
        self.parts.append(
            f'<path class="line c{colour}" d="{"".join(path)}" '
            f'stroke-dasharray="{DASHES[dash % len(DASHES)]}"/>'
        )

    def band(self, x, low, high, colour: int = 0) -> None:
        """Fill between two lines."""
        good = np.isfinite(low) & np.isfinite(high)
        x, low, high = (np.asarray(v)[good] for v in (x, low, high))
        px = np.r_[self.px(x), self.px(x)[::-1]]
        py = np.clip(np.r_[self.py(low), self.py(high)[::-1]], 0, self.height - self.bottom)
        d = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(px, py, strict=True))
        self.parts.append(f'<path class="area c{colour}" d="M{d}Z"/>' if d else "")

    def dots(self, x, y, colour: int = 0) -> None:
        """Scatter small dots."""
        d = "".join(
            f"M{a:.1f} {b:.1f}h0"
            for a, b in zip(self.px(x), self.py(y), strict=True)
            if math.isfinite(a) and math.isfinite(b)
        )
        self.parts.append(f'<path class="dots c{colour}" d="{d}"/>')

    def points(
        self,
        x,
        y,
        x_err=None,
        y_err=None,
        colour: int = 0,
        names: Sequence[str] = (),
        ring: bool = False,
    ) -> None:
        """Draw points with error bars; `names` show under the pointer, `ring` leaves them open."""
        bars = []
        for k, (a, b) in enumerate(zip(self.px(x), self.py(y), strict=True)):
            if not (math.isfinite(a) and math.isfinite(b)):
                continue
            for err, axis in ((x_err, 0), (y_err, 1)):
                if err is not None and math.isfinite(err[k]) and err[k] > 0:
                    low, high = ((x, y)[axis][k] - err[k], (x, y)[axis][k] + err[k])
                    bars.append(
                        f"M{self.px(low):.1f} {b:.1f}H{self.px(high):.1f}"
                        if axis == 0
                        else f"M{a:.1f} {self.py(low):.1f}V{self.py(high):.1f}"
                    )
            title = f"<title>{escape(names[k])}</title>" if names else ""
            kind = "ring" if ring else "point"
            self.parts.append(
                f'<circle class="{kind} c{colour}" cx="{a:.1f}" cy="{b:.1f}" '
                f'r="{5.5 if ring else 3}">{title}</circle>'
            )
        self.parts.append(f'<path class="error c{colour}" d="{"".join(bars)}"/>')

    def bars(self, x, y, width: float, colour: int = 0, names: Sequence[str] = ()) -> None:
        """Draw upright bars from the lower edge."""
        foot = self.height - self.bottom
        for k, (value, top) in enumerate(zip(x, self.py(y), strict=True)):
            if not math.isfinite(top):
                continue
            a, b = self.px(value - width / 2), self.px(value + width / 2)
            title = f"<title>{escape(names[k])}</title>" if names else ""
            self.parts.append(
                f'<rect class="fill c{colour}" x="{a:.1f}" y="{min(top, foot):.1f}" '
                f'width="{max(b - a, 0.6):.1f}" height="{max(foot - top, 0):.1f}">'
                f"{title}</rect>"
            )

    def text(self, x, y, text: str, anchor: str = "start", dx: float = 0, dy: float = 0) -> None:
        """Write at a place."""
        a, b = float(self.px(x)) + dx, float(self.py(y)) + dy
        if math.isfinite(a) and math.isfinite(b):
            self.parts.append(
                f'<text class="note" x="{a:.1f}" y="{b:.1f}" '
                f'text-anchor="{anchor}">{escape(text)}</text>'
            )

    def rule(self, x: float, text: str = "") -> None:
        """Draw an upright line at a value of x."""
        if not self.x[0] <= x <= self.x[1]:
            return
        a = float(self.px(x))
        self.parts.append(
            f'<path class="rule" d="M{a:.1f} {self.top}V{self.height - self.bottom}'
            f'"/><text class="note" x="{a + 4:.1f}" y="{self.top + 12}">'
            f"{escape(text)}</text>"
        )

    def svg(self, y_axis: bool = True) -> str:
        """Return the finished chart, with or without numbers along y."""
        foot, right = self.height - self.bottom, self.width - self.right
        grid, words = [], []
        for value in _ticks(*self.x):
            a = float(self.px(value))
            grid.append(f"M{a:.1f} {self.top}V{foot}")
            words.append(
                f'<text x="{a:.1f}" y="{foot + 17}" text-anchor="middle">{_number(value)}</text>'
            )
        upright = (_log_ticks(*self.y) if self.log_y else _ticks(*self.y)) if y_axis else []
        for value in upright:
            b = float(self.py(value))
            grid.append(f"M{self.left} {b:.1f}H{right}")
            words.append(
                f'<text x="{self.left - 6}" y="{b + 4:.1f}" text-anchor="end">'
                f"{_number(value)}</text>"
            )
        middle = (self.top + foot) / 2
        return (
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img">'
            f"<title>{escape(self.title or ' against '.join(self.labels[::-1]))}</title>"
            f'<path class="grid" d="{"".join(grid)}"/>'
            f'<rect class="frame" x="{self.left}" y="{self.top}" width="{right - self.left}" '
            f'height="{foot - self.top}"/>{"".join(self.parts)}{"".join(words)}'
            f'<text x="{(self.left + right) / 2}" y="{self.height - 6}" text-anchor="middle">'
            f"{escape(self.labels[0])}</text>"
            f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.labels[1])}</text></svg>"
        )


def legend(entries: Sequence[tuple[str, int, int, str]]) -> str:
    """Explain a chart: (text, colour, dash, "line", "point" or "fill") of each entry."""
    items = []
    for text, colour, dash, kind in entries:
        mark = {
            "line": f'<path class="line c{colour}" d="M1 7H29" '
            f'stroke-dasharray="{DASHES[dash % len(DASHES)]}"/>',
            "point": f'<circle class="point c{colour}" cx="15" cy="7" r="4"/>',
            "ring": f'<circle class="ring c{colour}" cx="15" cy="7" r="5"/>',
            "fill": f'<rect class="fill c{colour}" x="9" y="1" width="12" height="12"/>',
        }[kind]
        items.append(
            f'<li><svg viewBox="0 0 30 14" aria-hidden="true">{mark}</svg>{escape(text)}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _limits(values, log: bool) -> tuple[float, float]:
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not values.size:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log:
        low = max(low, high * 1e-12)
        return low / 1.25, max(high * 1.25, low * 2)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return (low if low == 0 else low - room), high + room


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(m * step for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 7)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    many = math.log10(high / low)
    marks = (1, 2, 5) if many < 2.5 else (1,)
    every = 1 if many < 7 else 2
    return [
        m * 10.0**k for k in decades if k % every == 0 for m in marks if low <= m * 10.0**k <= high
    ]


def _number(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}".replace("-", "−")
