"""Tables of result files, so that figures in documents are made and not typed.

    python -m benchmarks.summary FILE...            every cell, as Markdown
    python -m benchmarks.summary --ratios FILE...   least and median speed-up by kind of cell
    python -m benchmarks.summary --peers FILE...    missed goals, and cells beside their best peers
    python -m benchmarks.summary --readme [DIR]     rewrite the figures of README.md (from DIR)

FILE is a benchmarks.json, or the folder it lies in. Files are never mixed: each gets its own table
under a line that names the machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import goals
from .causes import Causes
from .contenders import CONTENDERS, DIRECTIONS, OURS
from .results import KEYS, Row, load
from .runner import DIRECT
from .text import format_seconds, markdown
from .workloads import SMALL, TINY


class Ratio(NamedTuple):
    """How many times the time of msr_cuda a peer takes, over the sizes of a kind of cell."""

    workload: str
    dtype: str
    layout: str
    direction: str
    launch: str
    contender: str
    least: float
    median: float
    sizes: int


def ratios(rows: Iterable[Row]) -> list[Ratio]:
    """One for each workload, dtype, layout, direction, way of launching and peer."""
    names = [name for name in KEYS if name != "size"]
    found: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if row["contender"] != OURS and row["times_ours"] is not None:
            key = tuple(row[name] for name in names)
            found.setdefault(key, []).append(row["times_ours"])
    return [
        Ratio(
            **dict(zip(names, key, strict=True)),
            least=min(values),
            median=statistics.median(values),
            sizes=len(values),
        )
        for key, values in found.items()
    ]


def heading(content: dict[str, Any]) -> str:
    """What a table's figures were made on, in one line."""
    machine, versions = content["machine"], content["versions"]
    if machine["gpu"]:
        where = f"{machine['gpu']}, driver {machine['gpu_driver']}, CUDA {versions['cuda']}"
    else:
        flags = " ".join(flag for flag in machine["cpu_flags"] if flag.startswith(("avx", "sve")))
        threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
        where = f"{machine['cpu']} ({flags}), {threads}, {content['measured']['clock']}"
    commit = str(content["commit"])
    shown = commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")
    return f"{where}; torch {versions['torch']}, msr_cuda {versions['msr_cuda']} at {shown}"


_NOT_LARGE = {str(size) for sizes in (SMALL, TINY) for size in sizes.values()}


def large_rows(rows: Iterable[Row]) -> list[Row]:
    """Without those of small and tiny maps."""
    return [row for row in rows if row["size"] not in _NOT_LARGE]


def first_dtype(rows: Sequence[Row]) -> str:
    """What a kind of device computes in by default: the dtype of the first row."""
    return str(rows[0]["dtype"]) if rows else ""


def cells_table(rows: Sequence[Row]) -> str:
    """Every cell: the time of msr_cuda, and how many times that its peers take."""
    peers = [
        name
        for name in CONTENDERS
        if name != OURS and any(row["contender"] == name for row in rows)
    ]
    header = ["workload", "size", "dtype", "layout"]
    directions = [name for name in DIRECTIONS if any(row["direction"] == name for row in rows)]
    for direction in directions:
        header += [direction, *(f"× {peer}" for peer in peers)]
    header += ["peak MB", *(f"peak {peer}" for peer in peers)]
    by_place: dict[tuple[str, ...], dict[tuple[str, str], Row]] = {}
    for row in rows:
        place = (row["workload"], row["size"], row["dtype"], row["layout"], row["launch"])
        by_place.setdefault(place, {})[row["contender"], row["direction"]] = row
    body = []
    for (workload, size, dtype, layout, launch), found in by_place.items():
        line = [workload if launch == DIRECT else f"{workload}, {launch}", size, dtype, layout]
        for direction in directions:
            ours = found.get((OURS, direction))
            line.append(format_seconds(ours["median_seconds"]) if ours else "-")
            line += [_ratio_text(found.get((peer, direction))) for peer in peers]
        for name in (OURS, *peers):
            peak = found.get((name, "backward"), {}).get("peak_bytes")
            line.append("-" if peak is None else f"{peak / 1e6:.1f}")
        body.append(line)
    return markdown(header, body, 4)


def _ratio_text(row: Row | None) -> str:
    return "-" if row is None or row["times_ours"] is None else f"{row['times_ours']:.2f}"


def ratios_table(found: Iterable[Ratio]) -> str:
    """The ratios of :func:`ratios`."""
    header = ["workload", "dtype", "layout", "direction", "against", "least", "median", "sizes"]
    body = [
        [
            r.workload if r.launch == DIRECT else f"{r.workload}, {r.launch}",
            r.dtype, r.layout, r.direction, r.contender,
            f"{r.least:.2f}", f"{r.median:.2f}", str(r.sizes),
        ]
        for r in found
    ]  # fmt: skip
    return markdown(header, body, 5)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.summary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--ratios", action="store_true", help="least and median over the sizes")
    parser.add_argument("--peers", action="store_true",
        help="missed goals, every cell beside its best peer, and why it is slower")  # fmt: skip
    parser.add_argument("--readme", action="store_true",
        help="rewrite the figures of README.md, from DIR or the folder they name")  # fmt: skip
    parser.add_argument("--workload", action="append", default=[], metavar="NAME")
    parser.add_argument("--dtype", action="append", default=[], metavar="NAME")
    arguments = parser.parse_args(argv)
    if arguments.readme:
        return _rewrite_readme(parser, arguments)
    if not arguments.files:
        parser.error("expected at least one FILE")
    for number, file in enumerate(arguments.files):
        try:
            content = load(file)
        except (OSError, ValueError) as error:
            print(f"python -m benchmarks.summary: {error}", file=sys.stderr)
            return 2
        rows = [
            row
            for row in content["measurements"]
            if not arguments.workload or row["workload"] in arguments.workload
            if not arguments.dtype or row["dtype"] in arguments.dtype
        ]
        print(("\n" if number else "") + heading(content) + "\n")
        if arguments.peers:
            causes = Causes(content["measurements"])
            measured = [v for v in goals.verdicts(rows) if v.sizes]
            lines = [goals.describe(v, causes) for v in measured if not v.met]
            lines += goals.describe_standings(goals.standings(rows), causes)
            print("\n".join(lines))
        else:
            print(ratios_table(ratios(rows)) if arguments.ratios else cells_table(rows))
    return 0


def _rewrite_readme(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from . import readme  # it takes its tables from here

    if (
        len(arguments.files) > 1
        or arguments.ratios
        or arguments.peers
        or arguments.workload
        or arguments.dtype
    ):
        parser.error("--readme: expected one DIR at most, and nothing else")
    try:
        folder = readme.rewrite(arguments.files[0] if arguments.files else None)
    except (OSError, ValueError) as error:
        print(f"python -m benchmarks.summary: {error}", file=sys.stderr)
        return 2
    print(f"README.md has the figures of {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
