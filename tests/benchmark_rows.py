"""Rows of measurements that nobody made, for the tests of what is done with them."""

from __future__ import annotations

from typing import Any

from benchmarks import runner
from benchmarks.measure import Timing
from benchmarks.results import Row, Run
from benchmarks.runner import Measurement
from benchmarks.workloads import Cell, Size, parse_size

SMALL = Size(2, 4, 10, 14)
CELL = Cell("bilinear-add-relu", SMALL, "float32", "NCHW")

FACTS = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "python -m benchmarks",
    "machine": {"cpu": "A processor", "cpu_flags": ["avx2", "fma"], "threads": 1, "gpu": None},
    "versions": {"torch": "2.13.0", "cuda": None, "msr_cuda": "0.1.0"},
    "commit": "0123456789abcdef-dirty",
    "measured": {"clock": "CPU time of the thread", "host_clock": "wall clock"},
    "copy_bytes_per_second": 1e6,
}


def measurement(contender: str, seconds: float, **changes: Any) -> Measurement:
    arguments: dict[str, Any] = dict(
        cell=CELL, direction="inference", contender=contender, launch=runner.DIRECT,
        timing=Timing((seconds, 2 * seconds, 3 * seconds)), host=Timing((seconds,) * 3),
        peak_bytes=1000, minimum_bytes=4000, error=1e-8,
    )  # fmt: skip
    return Measurement(**{**arguments, **changes})


def rows_of(*cells: tuple[str, str, str, float]) -> list[Row]:
    """``(size, contender, direction, seconds)`` as rows."""
    measurements = [
        measurement(
            contender, seconds / 2, direction=direction,
            cell=CELL._replace(size=parse_size(size)),
        )
        for size, contender, direction, seconds in cells
    ]  # fmt: skip
    return Run(FACTS, measurements).rows
