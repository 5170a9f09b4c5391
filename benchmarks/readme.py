"""The figures of README.md, made from committed result files.

``python -m benchmarks.summary --readme`` writes them. They stand between two markers, the first of
which names the folder they are made from, so that a test can make them again and compare.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import JSON_NAME, LOGITS_NAME, MODELS_NAME, goals, machine
from .causes import KINDS, Causes
from .contenders import OURS_ONE_THREAD, PEERS
from .host import HostTime
from .logits.table import EXPLANATION, logits_table
from .models.table import models_table
from .results import Row, cell_of, load
from .runner import DIRECT
from .summary import first_dtype, heading, large_rows
from .text import markdown
from .workloads import LAYOUTS, SMALL, TINY

README = machine.ROOT / "README.md"
_BEGIN = "<!-- made by `python -m benchmarks.summary --readme` from {} -->"
_END = "<!-- end of what was made -->"
_BLOCK = re.compile(
    re.escape(_BEGIN).replace(r"\{\}", "(?P<folder>[^\n]+?)") + "\n.*?" + re.escape(_END), re.DOTALL
)
#: What the name of a folder ends with that holds a run of the whole grid; runs of some of its cells
#: once more are in folders whose names go on.
GRID = "-grid"
#: What the name of a folder ends with that holds a run with several threads.
THREADS = "-threads"
#: Cells that are named where a peer is faster.
MOST_LOSSES = 12
_SHOWN = ("inference", "backward")
_PLOTS = {
    "speedup.png": "speed-up by workload",
    "roofline.png": "bytes per second against a copy",
    "memory.png": "peak memory",
    "models.png": "whole models",
    "logits.png": "losses and decisions",
}


def rewrite(folder: Path | None, readme: Path = README) -> str:
    """Replaces the figures.

    Args:
        folder: with the results; None: the one that the README names.
        readme: the file, in the root of the checkout.

    Returns:
        The folder, as the README names it.

    Raises:
        ValueError: the README has no markers, or the folder lies outside of the checkout.
    """
    text = readme.read_text(encoding="utf-8")
    found = _find(text, readme)
    if folder is None:
        name = found["folder"]
    else:
        path = folder.resolve()
        if not path.is_relative_to(readme.parent):
            raise ValueError(f"{folder}: expected a folder of the checkout {readme.parent}")
        name = path.relative_to(readme.parent).as_posix()
    made = block(readme.parent, name)
    readme.write_text(text[: found.start()] + made + text[found.end() :], encoding="utf-8")
    return name


def current(readme: Path = README) -> tuple[str, str]:
    """What stands in the README now, and the folder that it names.

    Raises:
        ValueError: the README has no markers.
    """
    found = _find(readme.read_text(encoding="utf-8"), readme)
    return found[0], found["folder"]


def _find(text: str, readme: Path) -> re.Match[str]:
    found = _BLOCK.search(text)
    if found is None:
        raise ValueError(f"{readme}: expected the markers {_BEGIN.format('DIR')} and {_END}")
    return found


def block(root: Path, name: str) -> str:
    """The text with its markers.

    Args:
        root: of the checkout.
        name: of the folder with the results, relative to it.
    """
    folder = root / name
    content = load(folder)
    rows = _direct(content)
    parts = [
        _BEGIN.format(name),
        _introduction(content, name, rows),
        speedup_table(rows),
        losses(rows),
        *whole_grid(root, name),
        *more_threads(root, name),
    ]
    if content.get("host"):
        parts += [
            "What a call on a tiny map costs, in microseconds of the host's time:",
            host_table([HostTime(**row) for row in content["host"]]),
        ]
    parts += companions(folder)
    plots = [
        f"[{about}]({name}/{file})" for file, about in _PLOTS.items() if (folder / file).exists()
    ]
    if plots:
        parts.append("Plots: " + ", ".join(plots) + ".")
    return "\n\n".join([*parts, _END])


def companions(folder: Path) -> list[str]:
    """Paragraphs and tables of what else was measured: whole models, losses and decisions."""
    parts = []
    if models := _other(folder, MODELS_NAME):
        parts += [
            f"Whole models with random weights, by `{models['command']}` ({heading(models)}):",
            models_table(models["measurements"]),
        ]
    if logits := _other(folder, LOGITS_NAME):
        parts += [
            f"Losses and decisions at the labels' resolution, by `{logits['command']}` "
            f"({heading(logits)}). {EXPLANATION}",
            logits_table(logits["measurements"]),
        ]
    return parts


def _other(folder: Path, name: str) -> dict[str, Any] | None:
    """What another command wrote, if it did."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _content(folder: Path) -> dict[str, Any] | None:
    """What a run of the benchmarks wrote there, if it did."""
    return load(folder) if (folder / JSON_NAME).exists() else None


def _direct(content: dict[str, Any]) -> list[Row]:
    """The measurements of calls that were launched one by one."""
    return [row for row in content["measurements"] if row["launch"] == DIRECT]


def _introduction(content: dict[str, Any], name: str, rows: Sequence[Row]) -> str:
    peers = ", ".join(_peers(rows))
    return (
        f"How many times msr_cuda's time others take ({peers}): large maps, the least over the "
        f"sizes.\n{heading(content)}; by `{content['command']}`.\n"
        f"All of it: [{name}/{JSON_NAME}]({name}/{JSON_NAME})."
    )


def _peers(rows: Sequence[Row]) -> list[str]:
    return [peer for peer in PEERS if any(row["contender"] == peer for row in rows)]


def speedup_table(rows: Sequence[Row]) -> str:
    """Workloads in the first dtype, then in the second where --quick has it."""
    large, peers = large_rows(rows), _peers(rows)
    least: dict[tuple[str, ...], float] = {}
    for row in large:
        if row["contender"] in peers and row["times_ours"] is not None:
            key = tuple(row[k] for k in ("workload", "dtype", "layout", "direction", "contender"))
            least[key] = min(least.get(key, float("inf")), row["times_ours"])
    layouts = [layout for layout in LAYOUTS if any(row["layout"] == layout for row in large)]
    columns = [(layout, direction) for layout in layouts for direction in _SHOWN]
    kinds = dict.fromkeys((row["workload"], row["dtype"]) for row in large)
    first = first_dtype(rows)
    body = []
    for workload, dtype in sorted(kinds, key=lambda kind: kind[1] != first):
        if dtype != first and workload not in goals.IN_EVERY_DTYPE:
            continue
        line = [workload, dtype]
        for layout, direction in columns:
            values = [least.get((workload, dtype, layout, direction, peer)) for peer in peers]
            line.append(", ".join("-" if v is None else f"{v:.2f}" for v in values))
        body.append(line)
    header = ["workload", "dtype", *(f"{layout} {direction}" for layout, direction in columns)]
    return markdown(header, body, 2)


def losses(rows: Sequence[Row]) -> str:
    """How many cells are lost to the best peer, and the kinds of cells they are of."""
    found = goals.standings(large_rows(rows))
    causes = Causes(rows)
    lost = [standing for standing in found if standing.lost]
    text = (
        f"Of {len(found)} directions of large cells, {len(found) - len(lost)} are at least as fast "
        "as the best peer"
    )
    if not lost:
        return text + "."
    worst = sorted(lost, key=lambda standing: standing.ratio)[:MOST_LOSSES]
    lines = [
        f"- {s.place}, {s.direction}: {s.peer} takes {s.ratio:.2f} of msr_cuda's time; "
        f"{causes.of(s.ours, s.theirs)}"
        for s in worst
    ]
    if len(lost) > len(worst):
        lines.append(
            f"- and {len(lost) - len(worst)} more, less so (`python -m benchmarks --check`)"
        )
    return text + "; slower are:\n\n" + "\n".join(lines)


def whole_grid(root: Path, name: str) -> list[str]:
    """How the cells of the whole grid stand, where a folder beside holds a run of it.

    Args:
        root: of the checkout.
        name: of the folder with the results that the README shows, relative to it.
    """
    runs = {
        folder.relative_to(root).as_posix(): content
        for folder in sorted((root / name).parent.glob(f"{Path(name).name}{GRID}*"))
        if (content := _content(folder))
    }
    if not runs:
        return []
    rows, wrong = _latest(list(runs.values()))
    kinds = {"large maps": large_rows(rows)}
    for kind, sizes in (("small maps", SMALL), ("tiny maps", TINY)):
        names = {str(size) for size in sizes.values()} & {row["size"] for row in rows}
        of_kind = [row for row in rows if row["size"] in names]
        kinds[f"{kind} ({', '.join(sorted(names))})"] = of_kind
    lines = []
    causes = Causes(rows)
    dtypes = dict.fromkeys(row["dtype"] for row in rows)
    for (kind, of_kind), dtype in itertools.product(kinds.items(), dtypes):
        found = goals.standings([row for row in of_kind if row["dtype"] == dtype])
        lost = [causes.of(s.ours, s.theirs).kind for s in found if s.lost]
        line = f"- {dtype}, {kind}: {len(found) - len(lost)} of {len(found)}"
        counts = [f"{cause} {lost.count(cause)}" for cause in KINDS if cause in lost]
        lines.append(line + ("; the others: " + ", ".join(counts) if counts else ""))
    lines += [f"- not timed: {text}" for text in wrong]
    sources = [
        f"`{content['command']}`\n({heading(content)}; "
        f"[{folder}/{JSON_NAME}]({folder}/{JSON_NAME}))"
        for folder, content in runs.items()
    ]
    return [
        "Directions of the whole grid that are at least as fast as the best peer "
        "([why peers are faster in the others](benchmarks/README.md#where-peers-are-faster)), by "
        + ", some cells again by ".join(sources)
        + ":",
        "\n".join(lines),
    ]


def _latest(runs: Sequence[dict[str, Any]]) -> tuple[list[Row], list[str]]:
    """The measurements of each cell from the last run that has it; what was wrong in none later."""
    rows: list[Row] = []
    wrong: list[str] = []
    for content in runs:
        measured = _direct(content)
        cells = {cell_of(row) for row in measured}
        rows = [row for row in rows if cell_of(row) not in cells] + measured
        wrong = [text for text in wrong if not any(f" {cell}: " in text for cell in cells)]
        wrong += content["wrong"]
    return rows, wrong


def more_threads(root: Path, name: str) -> list[str]:
    """What several threads gain, where a folder beside holds a run with them.

    Args:
        root: of the checkout.
        name: of the folder with the results that the README shows, relative to it.
    """
    if not (content := _content(root / (name + THREADS))):
        return []
    large = large_rows(_direct(content))
    found = goals.standings(large)
    lines = []
    for direction in _SHOWN:
        gains = sorted(
            row["times_ours"]
            for row in large
            if row["contender"] == OURS_ONE_THREAD and row["direction"] == direction
        )
        own = [standing for standing in found if standing.direction == direction]
        kept = sum(not standing.lost for standing in own)
        lines.append(
            f"- {direction}: {statistics.median(gains):.2f} times as fast as one thread, from "
            f"{gains[0]:.2f} to {gains[-1]:.2f}; {kept} of {len(own)} at least as fast as the best "
            "peer"
        )
    return [
        f"More threads, by `{content['command']}` ({heading(content)}):",
        "\n".join(lines),
    ]


def host_table(found: Sequence[HostTime]) -> str:
    """A line per way, columns by workload and kind."""
    columns = list(dict.fromkeys((row.workload, row.kind) for row in found))
    times = {(row.way, row.workload, row.kind): row.median_seconds for row in found}
    body = []
    for way in dict.fromkeys(row.way for row in found):
        values = [times.get((way, *column)) for column in columns]
        body.append([way, *("-" if v is None else f"{v * 1e6:.1f}" for v in values)])
    return markdown(["", *(f"{name}, {kind}" for name, kind in columns)], body, 1)
