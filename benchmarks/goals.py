"""The speed that one thread of a CPU is to have, held against what was measured.

``python -m benchmarks --check`` prints every goal with its figures and fails if one is missed or
could not be held against anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from .contenders import COMPILED, DIRECTIONS, EAGER, OURS, OURS_FLOAT32
from .results import Row
from .runner import DIRECT
from .workloads import LAYOUTS, WORKLOADS


class Goal(NamedTuple):
    """``peer`` takes at least ``factor`` times as long as msr_cuda, at every size."""

    workload: str
    dtype: str
    layout: str
    direction: str
    peer: str
    factor: float


class Verdict(NamedTuple):
    """A goal and what was measured: the least and the median ratio over the sizes."""

    goal: Goal
    least: float
    median: float
    sizes: int

    @property
    def met(self) -> bool:
        return self.sizes > 0 and self.least >= self.goal.factor


_SUM = "bilinear-add-relu"
_CATS = tuple(name for name in WORKLOADS if "cat" in name)

CPU_GOALS = (
    Goal(_SUM, "float32", "NCHW", "inference", EAGER, 3.0),
    Goal(_SUM, "float32", "NCHW", "inference", COMPILED, 3.0),
    Goal(_SUM, "float32", "NCHW", "backward", EAGER, 3.0),
    Goal(_SUM, "float32", "NCHW", "backward", COMPILED, 5.0),
    Goal(_SUM, "float32", "channels_last", "inference", EAGER, 2.3),
    Goal(_SUM, "float32", "channels_last", "inference", COMPILED, 1.0),
    Goal(_SUM, "float32", "channels_last", "backward", EAGER, 1.1),
    Goal(_SUM, "float32", "channels_last", "backward", COMPILED, 5.0),
    *(
        Goal(name, dtype, layout, direction, peer, 1.0)
        for name in _CATS
        for dtype in ("float32", "bfloat16")
        for layout in LAYOUTS
        for direction in DIRECTIONS
        for peer in (EAGER, COMPILED)
    ),
    *(
        Goal(name, "bfloat16", layout, direction, OURS_FLOAT32, 1.0)
        for name in (_SUM, *_CATS)
        for layout in LAYOUTS
        for direction in DIRECTIONS
    ),
)


def verdicts(rows: Sequence[Row], goals: Sequence[Goal] = CPU_GOALS) -> list[Verdict]:
    """Every goal against the rows."""
    found = []
    for goal in goals:
        values = list(_ratios(goal, rows))
        if values:
            found.append(Verdict(goal, min(values), statistics.median(values), len(values)))
        else:
            found.append(Verdict(goal, 0.0, 0.0, 0))
    return found


def _ratios(goal: Goal, rows: Sequence[Row]) -> list[float]:
    """Time of the peer over that of msr_cuda, by size."""

    def times(contender: str) -> dict[str, float]:
        wanted = (goal.workload, goal.dtype, goal.layout, goal.direction, DIRECT, contender)
        keys = ("workload", "dtype", "layout", "direction", "launch", "contender")
        return {
            row["size"]: row["median_seconds"]
            for row in rows
            if tuple(row[key] for key in keys) == wanted
        }

    ours, theirs = times(OURS), times(goal.peer)
    return [theirs[size] / ours[size] for size in ours if size in theirs]


def describe(verdict: Verdict) -> str:
    """One line."""
    goal = verdict.goal
    what = f"{goal.workload} {goal.dtype} {goal.layout} {goal.direction} against {goal.peer}"
    if not verdict.sizes:
        return f"{what}: at least {goal.factor:g}, not measured"
    return (
        f"{what}: at least {goal.factor:g}, measured {verdict.least:.2f} "
        f"(median {verdict.median:.2f} of {verdict.sizes}) {'met' if verdict.met else 'MISSED'}"
    )
