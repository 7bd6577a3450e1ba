"""Pieces of HTML: escaped text, tables, facts, figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["facts", "figure", "items", "missing", "number", "section", "table"]


def section(name: str, title: str, *content: str) -> str:
    """A part of the page that the navigation can jump to."""
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>{"".join(content)}</section>'


def figure(title: str, drawn: str, caption: str = "") -> str:
    """A picture or chart (HTML) with a heading and a caption (text)."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    above = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<figure>{above}{drawn}{below}</figure>"


def missing(text: str) -> str:
    """Say what is not there and why."""
    return f'<p class="missing">{escape(text)}</p>'


def items(texts: Iterable[str]) -> str:
    """A list of texts."""
    return "<ul>" + "".join(f"<li>{escape(str(t))}</li>" for t in texts) + "</ul>"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """A grid of names and values; those without a value are left out."""
    return (
        '<dl class="facts">'
        + "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
            for name, value in pairs
            if value not in (None, "", [])
        )
        + "</dl>"
    )


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    right: Iterable[int] = (),
    classes: Sequence[str] = (),
) -> str:
    """A table of texts that scrolls sideways where it is too wide; `right` are flush right."""
    right = set(right)

    def cell(tag, k, value):
        return f"<{tag}{' class=n' if k in right else ''}>{escape(str(value))}</{tag}>"

    head = "".join(cell("th", k, h) for k, h in enumerate(header))
    body = "".join(
        f'<tr class="{classes[i] if classes else ""}">'
        + "".join(cell("td", k, v) for k, v in enumerate(row))
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def number(value, digits: int = 2, nothing: str = "–") -> str:
    """A number with a true minus sign; `nothing` where it is not finite."""
    if value is None or not math.isfinite(value):
        return nothing
    return f"{value:.{digits}f}".replace("-", "−")
