"""Why a peer is faster in a cell: from the run's own figures if they tell, else from profiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .contenders import DIRECTIONS, OURS_FLOAT32
from .results import KEYS, Row
from .workloads import DTYPES, LAYOUTS, TINY

#: From this share of a copy's bandwidth on, the fewest bytes that must be moved take the time.
MEMORY_BOUND = 0.8
_KEYS = tuple(key for key in KEYS if key != "size")


class Cause(NamedTuple):
    """Why a peer is faster: a kind that can be counted, and what is known of this cell."""

    kind: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.details}" if self.details else self.kind


CALL = "the call itself"
SPREAD = "within the spread of the samples"
MEMORY = "the memory's limit"
FOUND = "found by profiles"
UNKNOWN = "not known"
KINDS = (CALL, SPREAD, MEMORY, FOUND, UNKNOWN)


class Finding(NamedTuple):
    """What a profile showed of some directions of a workload."""

    workload: str
    layouts: Sequence[str]
    directions: Sequence[str]
    cause: str
    dtypes: Sequence[str] = tuple(DTYPES)


_AHEAD, _DIFFERENTIATED = ("inference", "forward"), ("backward", "step")
_HALVES = ("float16", "bfloat16")

FINDINGS = (
    Finding(
        "bilinear-add-relu", ("NCHW",), _DIFFERENTIATED,
        "a quarter of the time passes the gradient on behind the mask, up to half adds up its rows "
        "behind the mask, each for two rows of the coarse map",
    ),
    Finding(
        "bifpn-down", LAYOUTS, _DIFFERENTIATED,
        "the sum and the pooled map are computed again for SiLU's derivative, so that a step keeps "
        "no map; eager keeps both",
    ),
    Finding(
        "bifpn-up", LAYOUTS, _DIFFERENTIATED,
        "the sum is computed again for SiLU's derivative, so that a step keeps no map; eager keeps "
        "it",
    ),
    Finding(
        "attention-to-scale", LAYOUTS, _DIFFERENTIATED,
        "half of the time are the gradients of the pixels' weights, for which every map is "
        "resampled again, row by row",
    ),
    Finding(
        "affine-leaky", ("channels_last",), _DIFFERENTIATED,
        "products for the gradient of the scale, and its multiplication, are passes of their own: "
        "a third of the time",
    ),
    Finding(
        "dpt-fusion", ("channels_last",), _DIFFERENTIATED,
        "half of the time its first pass waits for the gradient, which is not in the cache",
    ),
    Finding(
        "fpn-many", LAYOUTS, DIRECTIONS,
        "one call sums every level from all coarser ones, peers from the level above alone, which "
        "they wait for; a resample_sum per level does as they do",
    ),
    Finding(
        "image-pyramid", ("channels_last",), _DIFFERENTIATED,
        "the three values of a pixel are less than a vector, and are summed one by one",
    ),
    Finding(
        "unet-cat-bilinear", ("channels_last",), _AHEAD,
        "two thirds of the time are the arithmetic of the interpolation, which widens four values "
        "and rounds one, as eager's does: only a copy of its result is saved",
        _HALVES,
    ),
    *(
        Finding(
            workload, ("channels_last",), _AHEAD,
            "maps of 16 bits are widened, weighed and rounded in passes of their own over tiles of "
            "float32: of about equal time, and in float32 only one of them is there",
            _HALVES,
        )
        for workload in ("attention-to-scale", "affine-leaky")
    ),
)  # fmt: skip


ROUNDING = (
    "to round a vector to bfloat16 takes eight instructions of AVX2, to store it in float32 none"
)


class Causes:
    """The causes of what was lost in a run."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """``rows``: all of the run's: tiny cells tell what calls cost."""
        tiny = {str(size) for size in TINY.values()}
        self._calls = {
            tuple(row[key] for key in _KEYS): row["median_seconds"]
            for row in rows
            if row["size"] in tiny
        }
        self._tiny = tiny

    def of(
        self, ours: Row, theirs: Row, factor: float = 1.0, bytes_ratio: float | None = None
    ) -> Cause:
        """Why the peer is faster, or not slower by the factor that it was to be.

        Args:
            ours: the measurement of msr_cuda.
            theirs: that of the peer, of the same cell and direction.
            factor: how many times as long the peer was to take.
            bytes_ratio: how many times the fewest bytes the peer moves, where that is known.
        """
        own, other = (1e6 * row["median_seconds"] for row in (ours, theirs))
        if ours["size"] in self._tiny:
            return Cause(CALL, f"{own:.0f} µs against {other:.0f}")
        if theirs["q3_seconds"] >= factor * ours["q1_seconds"]:
            return Cause(SPREAD)
        if bytes_ratio is not None and other / own >= MEMORY_BOUND * bytes_ratio:
            return Cause(MEMORY, f"the peer moves {bytes_ratio:.1f} times the fewest bytes")
        lost = own - other / factor
        call = self._call(ours) - self._call(theirs) / factor
        if call >= lost / 2:
            return Cause(CALL, f"{call:.0f} of {lost:.0f} µs are lost on a tiny map, too")
        if (ours["copy_share"] or 0) >= MEMORY_BOUND:
            return Cause(MEMORY, f"{ours['copy_share']:.0%} of a copy's bandwidth")
        return _found(ours, theirs)

    def _call(self, row: Row) -> float:
        """Microseconds of the same call on a tiny map; 0 where that was not measured."""
        return 1e6 * self._calls.get(tuple(row[key] for key in _KEYS), 0.0)


def _found(row: Row, peer: Row) -> Cause:
    if peer["contender"] == OURS_FLOAT32:
        return Cause(FOUND, ROUNDING)
    for found in FINDINGS:
        if (
            row["workload"] == found.workload
            and row["dtype"] in found.dtypes
            and row["layout"] in found.layouts
            and row["direction"] in found.directions
        ):
            return Cause(FOUND, found.cause)
    return Cause(UNKNOWN)
