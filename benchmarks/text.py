"""Quantities and tables, as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_seconds(seconds: float) -> str:
    """Three digits and a unit."""
    unit, value = "s", seconds
    for smaller in ("ms", "us"):
        if value < 0.9995:  # what would be rounded to less than 1.00
            unit, value = smaller, 1000 * value
    return f"{value:#.3g}".rstrip(".") + f" {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def format_bytes(count: int) -> str:
    """Megabytes, decimal."""
    return f"{count / 1e6:.1f} MB" if count < 1e8 else f"{count / 1e6:.0f} MB"


def markdown(header: Sequence[str], body: Iterable[Sequence[str]], text_columns: int) -> str:
    """A table; all but the first columns are numbers, and stand on the right."""
    lines = [
        header,
        ["---" if i < text_columns else "---:" for i in range(len(header))],
        *body,
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
