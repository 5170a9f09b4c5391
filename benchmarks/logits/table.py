"""Tables of losses and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..contenders import COMPILED, EAGER, OURS
from ..text import format_seconds, markdown
from .compare import EXPONENTIALS

EXPLANATION = (
    "× eager, × compile: how many times msr_cuda's time they take. exp: the share of msr_cuda's "
    "time that\nthe exponentials alone would take. MB: peak beyond the logits, the target and, in "
    "a step, the gradient;\nB/pixel: that per pixel of the result."
)


def logits_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per case and direction, as Markdown.

    Args:
        rows: with the fields of :class:`benchmarks.logits.compare.Comparison`.
    """
    lines: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        place = (row["case"], row["size"], f"×{row['growth']}", row["dtype"], row["layout"],
                 row["direction"])  # fmt: skip
        lines.setdefault(place, {})[row["contender"]] = row
    body = []
    for place, found in lines.items():
        ours = found[OURS]
        share = found.get(EXPONENTIALS)
        body.append(
            [
                *place,
                format_seconds(ours["seconds"]),
                *(_ratio(found.get(name)) for name in (EAGER, COMPILED)),
                "-" if share is None else f"{100 * share['times_ours']:.0f} %",
                *(_megabytes(found.get(name)) for name in (OURS, EAGER, COMPILED)),
                f"{ours['bytes_per_pixel']:.1f}",
            ]
        )
    header = [
        "", "logits", "to", "dtype", "layout", "direction", "msr_cuda", "× eager", "× compile",
        "exp", "MB", "MB eager", "MB compile", "B/pixel",
    ]  # fmt: skip
    return markdown(header, body, 6)


def _ratio(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"{row['times_ours']:.2f}"


def _megabytes(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"{row['peak_bytes'] / 1e6:.1f}"
