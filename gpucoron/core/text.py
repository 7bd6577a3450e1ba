"""Text tables."""

__all__ = ["format_table"]


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
