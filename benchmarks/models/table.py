"""Tables of whole models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..text import format_seconds, markdown


def models_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per model, precision and layout, as Markdown.

    Args:
        rows: of both directions, with the fields of :class:`benchmarks.models.compare.Comparison`.
    """
    lines: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        place: tuple[str, ...] = (row["model"], row["size"], row["precision"], row["layout"])
        lines.setdefault(place, {})[row["direction"]] = row
    body = []
    for place, found in lines.items():
        any_row = next(iter(found.values()))
        line = [*place, any_row["remark"]]
        for direction in ("inference", "step"):
            line += _columns(found.get(direction))
        body.append(line)
    header = ["model", "input", "dtype", "layout", "fused"]
    for direction in ("inference", "training step"):
        header += [direction, "swapped", "×", "share", "peak MB"]
    return markdown(header, body, 5)


EXPLANATION = (
    "share: of the time, that interpolate has in the plain model (without the add or cat beside "
    "it) → that msr_cuda's operators have (with them). ~: the middle halves of the samples overlap."
)


def _columns(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return ["-"] * 5
    mark = "" if row["certain"] else "~"
    return [
        format_seconds(row["plain_seconds"]),
        format_seconds(row["swapped_seconds"]),
        f"{mark}{row['speedup']:.2f}",
        f"{100 * row['plain_share']:.1f} → {100 * row['swapped_share']:.1f} %",
        f"{row['plain_peak_bytes'] / 1e6:.0f} → {row['swapped_peak_bytes'] / 1e6:.0f}",
    ]
