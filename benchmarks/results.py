"""Result files: everything in JSON, one row per measurement in CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import CSV_NAME, HOST_CSV_NAME, JSON_NAME, host
from .contenders import OURS
from .host import HostTime
from .runner import Measurement
from .workloads import WORKLOADS

#: Of the columns, those that say which measurement a row is.
KEYS = ("workload", "size", "dtype", "layout", "direction", "launch", "contender")
#: Columns that are the same in every row of a run, so that rows of several files can be joined.
RUN_COLUMNS = ("device", "threads", "torch", "cuda", "msr_cuda", "commit", "date")
COLUMNS = (
    *KEYS, "median_seconds", "q1_seconds", "q3_seconds", "samples", "host_seconds", "times_ours",
    "peak_bytes", "minimum_bytes", "copy_share", "error", *RUN_COLUMNS,
)  # fmt: skip

Row = dict[str, Any]


def cell_of(row: Row) -> str:
    """The cell of a measurement, as :class:`workloads.Cell` writes itself."""
    return " ".join(row[key] for key in ("workload", "size", "dtype", "layout"))


def run_columns(facts: dict[str, Any]) -> Row:
    """The values of :data:`RUN_COLUMNS`."""
    machine, versions = facts["machine"], facts["versions"]
    return {
        "device": machine["gpu"] or machine["cpu"],
        "threads": machine["threads"],
        "torch": versions["torch"],
        "cuda": versions["cuda"],
        "msr_cuda": versions["msr_cuda"],
        "commit": facts["commit"],
        "date": facts["date"],
    }


@dataclass
class Run:
    """One run of the benchmarks.

    Attributes:
        facts: machine, versions, commit, command and how it was measured; JSON-serialisable.
        measurements: in the order in which they were made.
        left_out: what could not be measured, and why.
        wrong: cells whose results are not right.
        complete: whether every cell that was asked for was run.
        host: the host's time of tiny calls.
    """

    facts: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    complete: bool = False
    host: list[HostTime] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """One per measurement, with :data:`COLUMNS` as keys."""
        shared = run_columns(self.facts)
        rows = []
        for m in self.measurements:
            low, high = m.timing.quartiles
            rows.append(
                {
                    **m.cell._asdict(),
                    "size": str(m.cell.size),
                    "direction": m.direction,
                    "launch": m.launch,
                    "contender": m.contender,
                    "median_seconds": m.timing.median,
                    "q1_seconds": low,
                    "q3_seconds": high,
                    "samples": len(m.timing.samples),
                    "host_seconds": m.host.median,
                    "peak_bytes": m.peak_bytes,
                    "minimum_bytes": m.minimum_bytes,
                    "copy_share": m.bandwidth / self.facts["copy_bytes_per_second"],
                    "error": m.error,
                    **shared,
                }
            )
        return with_ratios(rows)

    def write(self, folder: Path) -> list[Path]:
        """Writes the files, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.rows
        samples = [
            {**row, "samples_seconds": [float(f"{s:.5g}") for s in m.timing.samples]}
            for row, m in zip(rows, self.measurements, strict=True)
        ]
        content = {
            **self.facts,
            "complete": self.complete,
            "workloads": {row["workload"]: WORKLOADS[row["workload"]].about for row in rows},
            "measurements": [
                {key: value for key, value in row.items() if key not in RUN_COLUMNS}
                for row in samples
            ],
            "host": [row._asdict() for row in self.host],
            "left_out": self.left_out,
            "wrong": self.wrong,
        }
        written = [
            write_whole(folder / JSON_NAME, to_json(content)),
            write_whole(folder / CSV_NAME, to_csv(rows)),
        ]
        if self.host:
            written.append(write_whole(folder / HOST_CSV_NAME, host.to_csv(self.host)))
        return written


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with ``times_ours``: its median as a multiple of msr_cuda's in the same place.

    None where msr_cuda was not measured.
    """
    ours = {_place(row): row["median_seconds"] for row in rows if row["contender"] == OURS}
    return [
        {**row, "times_ours": row["median_seconds"] / ours[_place(row)]}
        if _place(row) in ours
        else {**row, "times_ours": None}
        for row in rows
    ]


def _place(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in KEYS[:-1])


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as text, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(content: dict[str, Any]) -> str:
    """An object with a line for each of its values, or for each element of those that are lists."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            elements = ",\n  ".join(json.dumps(element, allow_nan=False) for element in value)
            text = f"[\n  {elements}\n ]"
        else:
            text = json.dumps(value, allow_nan=False)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_whole(path: Path, text: str) -> Path:
    """Writes a file, or leaves what was there."""
    # A run that is stopped while it writes must not leave half a file in the place of a whole one.
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def load(path: Path) -> dict[str, Any]:
    """A JSON file, or the one in a folder.

    Raises:
        ValueError: it is not one of ours.
    """
    path = path / JSON_NAME if path.is_dir() else path
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "measurements" not in content:
        raise ValueError(f"{path}: expected a {JSON_NAME} of `python -m benchmarks`")
    return content
