"""The table that a run prints, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

from .contenders import DIRECTIONS, OURS
from .results import Row
from .text import format_bytes, format_seconds

EXPLANATION = """\
Medians; ± is half the width of the middle half of the samples, x how many times msr_cuda's time.
inference: forward without gradients; forward: with; backward: all gradients; step: both. copy: the
share of the bandwidth of a copy that moving only the fewest bytes would have reached in that time.
peak MB: live at most above the inputs, in inference and in a step; error: of outputs, gradients,
relative to float64."""

_WIDTH = 21  # of a direction's column


def cell_text(rows: Sequence[Row]) -> str:
    """One cell, launched in one way: a line for each contender.

    Args:
        rows: of that cell and way of launching, as :attr:`benchmarks.results.Run.rows` has them.
    """
    first = rows[0]
    fewest = {row["direction"]: format_bytes(row["minimum_bytes"]) for row in rows}
    title = (
        f"{first['workload']}  {first['size']}  {first['dtype']}  {first['layout']}  "
        f"({first['launch']} calls; fewest bytes {' / '.join(fewest[d] for d in DIRECTIONS)})"
    )
    header = f"  {'':<19}" + "".join(f"{direction:>{_WIDTH}}" for direction in DIRECTIONS)
    header += f"{'copy':>18}{'host':>9}{'peak MB':>14}{'error':>17}"
    lines = [title, header]
    for name in dict.fromkeys(row["contender"] for row in rows):
        found = {row["direction"]: row for row in rows if row["contender"] == name}
        lines.append(f"  {name:<19}" + "".join(_time(found[d]) for d in DIRECTIONS) + _rest(found))
    return "\n".join(lines)


def _time(row: Row) -> str:
    """Median, spread, and multiple of ours."""
    spread = 50 * (row["q3_seconds"] - row["q1_seconds"]) / row["median_seconds"]
    text = f"{format_seconds(row['median_seconds'])} ±{spread:.0f}%"
    if row["contender"] == OURS:
        return f"{text:>{_WIDTH}}"
    ratio = "" if row["times_ours"] is None else f"{row['times_ours']:.2f}x"
    return f"{text:>{_WIDTH - 7}}{ratio:>7}"


def _rest(found: dict[str, Row]) -> str:
    copy = "/".join(f"{100 * found[d]['copy_share']:.0f}" for d in DIRECTIONS) + "%"
    host = format_seconds(found["inference"]["host_seconds"])
    peaks = [found[d]["peak_bytes"] for d in ("inference", "step")]
    peak = "-" if None in peaks else "/".join(f"{p / 1e6:.1f}" for p in peaks)
    error = "/".join(f"{found[d]['error']:.0e}" for d in ("forward", "backward"))
    return f"{copy:>18}{host:>9}{peak:>14}{error:>17}"


def by_cell(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in groups of one cell and way of launching, in order."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        place = (row["workload"], row["size"], row["dtype"], row["layout"], row["launch"])
        groups.setdefault(place, []).append(row)
    return list(groups.values())
