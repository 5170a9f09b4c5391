"""The speed that one thread of a CPU is to have, held against what was measured.

``python -m benchmarks --check`` prints every goal with its figures and every cell beside its best
peer, and fails if a goal is missed or could not be held against anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .causes import Causes
from .contenders import COMPILED, EAGER, OURS, OURS_FLOAT32, PEERS, gradients
from .results import KEYS, Row, cell_of
from .runner import DIRECT
from .workloads import LAYOUTS, TINY, WORKLOADS, Cell, make_inputs


class Goal(NamedTuple):
    """``peer`` takes at least ``factor`` times as long as msr_cuda, at every size."""

    workload: str
    dtype: str
    layout: str
    direction: str
    peer: str
    factor: float


def goals_of(cells: Iterable[Cell]) -> list[Goal]:
    """Those that measuring these cells can be held against."""
    measured = {(cell.workload, cell.dtype, cell.layout) for cell in cells}
    return [goal for goal in CPU_GOALS if (goal.workload, goal.dtype, goal.layout) in measured]


class Verdict(NamedTuple):
    """A goal and what was measured: the least and the median ratio over the sizes."""

    goal: Goal
    least: float
    median: float
    sizes: int
    worst: tuple[Row, Row] | None = None  # ours and the peer's, where the ratio is least

    @property
    def met(self) -> bool:
        return self.sizes > 0 and self.least >= self.goal.factor


class _Passes(TorchDispatchMode):
    """Counts operators that read or write maps, not those that only look at one in another way.

    Attributes:
        count: of the operators.
        moved: elements of maps that they read and write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = self.moved = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        written = _maps([result])
        if written and not function.is_view:
            self.count += 1
            self.moved += sum(x.numel() for x in [*written, *_maps(args)])
        return result


def _maps(values: Iterable[Any]) -> list[torch.Tensor]:
    found = []
    for value in values:
        several = value if isinstance(value, (list, tuple)) else [value]
        found += [x for x in several if isinstance(x, torch.Tensor) and x.dim() > 2]
    return found


class Effort(NamedTuple):
    """What the plain expression of a workload does: operators over maps, and what they move."""

    passes: int
    bytes_ratio: float  # to the fewest bytes that can be moved


@cache
def eager_effort(name: str, direction: str) -> Effort:
    """Of float32 maps.

    Args:
        name: of the workload.
        direction: ``"inference"`` or ``"backward"``.
    """
    workload = WORKLOADS[name]
    cell = Cell(name, TINY[workload.rank], "float32", "NCHW")
    inputs = make_inputs(cell, torch.device("cpu"))
    if direction == "inference":
        with torch.no_grad(), _Passes() as passes:
            workload.eager(inputs)
    else:
        leaves = [x.requires_grad_() for x in inputs]
        outputs = workload.eager(leaves)
        grads = [torch.ones_like(output) for output in outputs]
        with _Passes() as passes:
            gradients(outputs, leaves, grads)
    fewest = workload.minimum_bytes(cell.size, torch.float32, direction)
    return Effort(passes.count, passes.moved * torch.float32.itemsize / fewest)


_SUM = "bilinear-add-relu"
_CATS = ("unet-cat-nearest", "unet-cat-bilinear", "head-cat")
#: What most networks run: the README has them in the second dtype, too.
IN_EVERY_DTYPE = (_SUM, *_CATS)
_DIRECTIONS = ("inference", "forward", "backward")

CPU_GOALS = (
    Goal(_SUM, "float32", "NCHW", "inference", COMPILED, 3.0),
    Goal(_SUM, "float32", "NCHW", "backward", COMPILED, 5.0),
    Goal(_SUM, "float32", "channels_last", "inference", EAGER, 2.3),
    Goal(_SUM, "float32", "channels_last", "inference", COMPILED, 1.0),
    Goal(_SUM, "float32", "channels_last", "backward", EAGER, 1.1),
    Goal(_SUM, "float32", "channels_last", "backward", COMPILED, 5.0),
    # Where eager makes more than one pass over memory, one pass is to take a third of the time.
    *(
        Goal(name, "float32", "NCHW", direction, EAGER, 3.0)
        for name in WORKLOADS
        for direction in ("inference", "backward")
        if eager_effort(name, direction).passes > 1
    ),
    *(
        Goal(name, dtype, layout, direction, peer, 1.0)
        for name in _CATS
        for dtype in ("float32", "bfloat16")
        for layout in LAYOUTS
        for direction in _DIRECTIONS
        for peer in (EAGER, COMPILED)
    ),
    *(
        Goal(name, "bfloat16", layout, direction, OURS_FLOAT32, 1.0)
        for name in IN_EVERY_DTYPE
        for layout in LAYOUTS
        for direction in _DIRECTIONS
    ),
)


def verdicts(rows: Sequence[Row], goals: Sequence[Goal] = CPU_GOALS) -> list[Verdict]:
    """Every goal against the rows of large maps: small ones cost what their calls cost."""
    small = {str(size) for size in TINY.values()}
    large = [row for row in rows if row["size"] not in small]
    found = []
    for goal in goals:
        pairs = _pairs(goal, large)
        if not pairs:
            found.append(Verdict(goal, 0.0, 0.0, 0))
            continue
        values = [_ratio(*pair) for pair in pairs]
        worst = pairs[values.index(min(values))]
        found.append(Verdict(goal, min(values), statistics.median(values), len(values), worst))
    return found


def _pairs(goal: Goal, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The rows of msr_cuda and of the peer, of every size that both were measured at."""

    def by_size(contender: str) -> dict[str, Row]:
        wanted = (goal.workload, goal.dtype, goal.layout, goal.direction, DIRECT, contender)
        keys = ("workload", "dtype", "layout", "direction", "launch", "contender")
        return {row["size"]: row for row in rows if tuple(row[key] for key in keys) == wanted}

    ours, theirs = by_size(OURS), by_size(goal.peer)
    return [(ours[size], theirs[size]) for size in ours if size in theirs]


def _ratio(ours: Row, theirs: Row) -> float:
    """Time of the peer over that of msr_cuda."""
    ratio: float = theirs["median_seconds"] / ours["median_seconds"]
    return ratio


def describe(verdict: Verdict, causes: Causes) -> str:
    """One line; of a goal that was missed, with the cause."""
    goal = verdict.goal
    what = f"{goal.workload} {goal.dtype} {goal.layout} {goal.direction} against {goal.peer}"
    if verdict.worst is None:
        return f"{what}: at least {goal.factor:g}, not measured"
    text = (
        f"{what}: at least {goal.factor:g}, measured {verdict.least:.2f} "
        f"(median {verdict.median:.2f} of {verdict.sizes}) {'met' if verdict.met else 'MISSED'}"
    )
    if verdict.met:
        return text
    limit = None
    if goal.peer == EAGER and goal.direction in ("inference", "backward"):
        limit = eager_effort(goal.workload, goal.direction).bytes_ratio
    return f"{text}; {causes.of(*verdict.worst, goal.factor, limit)}"


# ---------------------------------------------------------------------------- the best peer


class Standing(NamedTuple):
    """A direction of a cell beside the fastest of the peers that were measured with it."""

    ours: Row
    theirs: Row

    @property
    def place(self) -> str:
        """The cell, and how it was launched."""
        launch = "" if self.ours["launch"] == DIRECT else f", {self.ours['launch']}"
        return cell_of(self.ours) + launch

    @property
    def direction(self) -> str:
        direction: str = self.ours["direction"]
        return direction

    @property
    def peer(self) -> str:
        peer: str = self.theirs["contender"]
        return peer

    @property
    def ratio(self) -> float:
        """The peer's time as a multiple of ours."""
        ratio: float = self.theirs["times_ours"]
        return ratio

    @property
    def lost(self) -> bool:
        """Whether the peer is faster."""
        return self.ratio < 1.0


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Of every cell, way of launching and direction that has a peer."""
    keys = [key for key in KEYS if key != "contender"]
    ours: dict[tuple[Any, ...], Row] = {}
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(row[k] for k in keys)
        if row["contender"] == OURS:
            ours[key] = row
        if row["contender"] not in PEERS or row["times_ours"] is None:
            continue
        if key not in best or row["times_ours"] < best[key]["times_ours"]:
            best[key] = row
    return [Standing(ours[key], row) for key, row in best.items()]


def describe_standings(found: Sequence[Standing], causes: Causes) -> list[str]:
    """A line for every cell, then those that are lost by name, with the cause."""
    places: dict[str, list[Standing]] = {}
    for standing in found:
        places.setdefault(standing.place, []).append(standing)
    lines = []
    for place, own in places.items():
        texts = [f"{s.direction} {s.ratio:.2f} ({s.peer}){' LOST' * s.lost}" for s in own]
        lines.append(f"{place}: " + ", ".join(texts))
    lost = [s for s in found if s.lost]
    lines.append(f"{len(found) - len(lost)} of {len(found)} at least as fast as the best peer")
    return lines + [
        f"LOST: {s.place} {s.direction}: {s.peer} {s.ratio:.2f}; {causes.of(s.ours, s.theirs)}"
        for s in lost
    ]
