"""Text tables, and numbers with their errors."""

import math

__all__ = ["format_table", "with_error"]


def with_error(value: float, error: float) -> str:
    """Format a number and its error, with two digits of it: "171 +- 13"; without one the number."""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.3g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} +- {error:.{decimals}f}"


def format_table(rows: list[tuple], header: tuple | None = None, right: tuple = ()) -> list[str]:
    """Format rows as a table; columns whose number is in `right` are right-aligned."""
    cells = [[str(c) for c in row] for row in ([header] if header else []) + rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
