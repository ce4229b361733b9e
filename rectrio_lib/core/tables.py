"""Rows as text, Markdown or HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

Rows = Sequence[dict[str, Any]]
SHOWN = 60  # characters of a text that an error repeats


def markdown_table(rows: Rows) -> str:
    """Return rows {column: value} as a Markdown table."""
    columns, *cells = _grid(rows)
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |" for line in lines)


def html_table(rows: Rows, caption: str = "") -> str:
    """Return rows {column: value} as an HTML table."""
    lines = [(line, "td" if number else "th") for number, line in enumerate(_grid(rows))]
    body = "".join(f"<tr>{''.join(f'<{t}>{html.escape(c)}</{t}>' for c in line)}</tr>" for line, t in lines)
    return f"<table><caption>{html.escape(caption)}</caption>{body}</table>"


def plain_table(rows: Rows) -> str:
    """Return rows {column: value} as aligned text."""
    lines = _grid(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _grid(rows: Rows) -> list[list[str]]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [columns, *([show(row.get(column, "")) for column in columns] for row in rows)]


def show(value: Any) -> str:
    """Write a value for people: three decimals, fewer for large numbers, thousands separated."""
    if isinstance(value, float):
        if 0 < abs(value) < 0.01:
            return f"{value:.2g}"
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def with_interval(mean: float, interval: tuple[float, float]) -> str:
    """Write a mean with the ends of its interval: 0.841 (0.811 to 0.871)."""
    return f"{mean:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Write the mean of several values with their sample standard deviation, if there are several: 0.84 ± 0.01."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def shortened(text: str, most: int = SHOWN) -> str:
    """Return a text as an error or a figure can show it."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
