"""Text tables for the reports of surgery; the core has no table library among its dependencies."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned by their widest cell; numbers to the right.

    Args:
        headers: one per column.
        rows: cells; None is shown as a dash, integers with thousands separators, floats with three digits.

    Returns:
        the lines, joined.

    Example:
        >>> print(format_table(["layer", "numbers"], [["fc", 1200]]))
        layer  numbers
        -----  -------
        fc       1,200
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(headers, *cells, strict=True)]
    right = [all(row[i] is None or isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]

    def line(texts: Sequence[str]) -> str:
        parts = (t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, cells)])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
