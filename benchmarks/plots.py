"""Plots of result files, as PNG beside them; needs matplotlib (``pip install .[bench]``).

    python -m benchmarks.plots DIR...     DIR: where a run wrote its files

speedup.png: how many times msr_cuda's time the peers take. roofline.png: bytes per second against
the bandwidth of a copy. memory.png: the peak of a step. models.png: whole models;
logits.png: losses and decisions at the labels' resolution; training.png: a training with the
upsampled logits and without; if they were measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import JSON_NAME, LOGITS_NAME, MODELS_NAME, TRAINING_NAME
from .contenders import COMPILED, EAGER, OURS, PEERS, TUNED
from .results import Row, load
from .runner import DIRECT
from .summary import first_dtype, heading, large_rows
from .workloads import LAYOUTS

HOW_TO_GET_IT = "no plots: matplotlib is not installed (python -m pip install matplotlib)"
#: Pixels per inch: files stay below 200 KB.
_DPI = 80
_RATIOS = (0.5, 1, 2, 5, 10, 20, 50)
_COLORS = {
    EAGER: "#7f7f7f", "eager+amp": "#bcbd22", COMPILED: "#1f77b4", TUNED: "#17becf",
    OURS: "#d62728",
}  # fmt: skip


def available() -> bool:
    """Whether there is matplotlib."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_if_possible(folder: Path) -> tuple[list[Path], str]:
    """All plots of a folder, and what is to be said if there are none."""
    return (draw(folder), "") if available() else ([], HOW_TO_GET_IT)


def draw(folder: Path) -> list[Path]:
    """Draws what the folder has results for; returns the files."""
    written = []
    if (folder / JSON_NAME).exists():
        content = load(folder)
        # Replayed graphs have no memory of their own, and are few.
        rows = [row for row in content["measurements"] if row["launch"] == DIRECT]
        title = heading(content)
        for name, plot in {
            "speedup.png": _speedup, "roofline.png": _roofline, "memory.png": _memory
        }.items():  # fmt: skip
            if figure := plot(rows, title, content):
                written.append(_save(figure, folder / name))
    for name, plot_rows in {
        MODELS_NAME: _models, LOGITS_NAME: _logits, TRAINING_NAME: _training
    }.items():  # fmt: skip
        if (folder / f"{name}.json").exists():
            content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            if figure := plot_rows(content["measurements"], heading(content)):
                written.append(_save(figure, folder / f"{name}.png"))
    return written


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    return path


def _figure(width: float, height: float, title: str) -> Any:
    # Not pyplot: it would choose a backend for screens, and keep every figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=8)
    return figure


def _bars(
    axes: Any,
    labels: Sequence[str],
    series: Sequence[tuple[str, str, str, Sequence[float | None]]],
    begin: float = 0.0,
) -> None:
    """Groups of horizontal bars, the first group on top.

    Args:
        axes: where.
        labels: of the groups.
        series: name, color, hatch and one value per group, None where there is none.
        begin: where bars begin: 1 for ratios, so that those below one go the other way.
    """
    thickness = 0.8 / max(len(series), 1)
    for number, (name, color, hatch, values) in enumerate(series):
        places = [i + (number - (len(series) - 1) / 2) * thickness for i in range(len(labels))]
        found = [(p, v) for p, v in zip(places, values, strict=True) if v is not None]
        if found:
            axes.barh(
                [p for p, _ in found], [v - begin for _, v in found], thickness, left=begin,
                label=name, color=color, hatch=hatch, edgecolor="white", linewidth=0.3,
            )  # fmt: skip
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.3)
    if begin:
        axes.axvline(begin, color="black", linewidth=0.8)


def _median(rows: Sequence[Row], key: str, **wanted: str) -> float | None:
    """Over the sizes."""
    values = [
        row[key]
        for row in rows
        if row[key] is not None and all(row[name] == value for name, value in wanted.items())
    ]
    return statistics.median(values) if values else None


def _main_rows(rows: Sequence[Row]) -> tuple[list[Row], list[str], list[str]]:
    """Large maps in the first dtype; the layouts and workloads among them."""
    chosen = [row for row in large_rows(rows) if row["dtype"] == first_dtype(rows)]
    layouts = [name for name in LAYOUTS if any(row["layout"] == name for row in chosen)]
    return chosen, layouts, list(dict.fromkeys(row["workload"] for row in chosen))


def _speedup(rows: Sequence[Row], title: str, content: dict[str, Any]) -> Any:
    chosen, layouts, names = _main_rows(rows)
    peers = [peer for peer in PEERS if any(row["contender"] == peer for row in chosen)]
    if not peers:
        return None
    figure = _figure(11, 1.6 + 0.42 * len(names), title)
    for number, layout in enumerate(layouts, 1):
        axes = figure.add_subplot(1, len(layouts), number)
        series = [
            (
                f"{peer}, {direction}", _COLORS[peer], hatch,
                [
                    _median(chosen, "times_ours", workload=name, layout=layout, contender=peer,
                            direction=direction)
                    for name in names
                ],
            )
            for peer in peers
            for direction, hatch in (("inference", ""), ("backward", "////"))
        ]  # fmt: skip
        _bars(axes, names, series, begin=1.0)
        axes.set_xscale("log")
        axes.set_xticks(_RATIOS, [f"{ratio:g}" for ratio in _RATIOS])
        axes.set_xlabel("times msr_cuda's time, large maps")
        axes.set_title(f"{first_dtype(rows)} {layout}", fontsize=9)
        if number == 1:
            axes.legend(fontsize=7)
        else:
            axes.set_yticklabels([])
    return figure


def _roofline(rows: Sequence[Row], title: str, content: dict[str, Any]) -> Any:
    dtype = first_dtype(rows)
    chosen = [row for row in rows if row["dtype"] == dtype]
    names = [n for n in (*PEERS, OURS) if any(row["contender"] == n for row in chosen)]
    if not names:
        return None
    roof = content["copy_bytes_per_second"] / 1e9
    shown = [d for d in ("inference", "backward") if any(row["direction"] == d for row in chosen)]
    figure = _figure(5.5 * len(shown), 4.6, title)
    for number, direction in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), number)
        for name in names:
            own = [r for r in chosen if (r["contender"], r["direction"]) == (name, direction)]
            moved = [row["minimum_bytes"] for row in own]
            speed = [row["minimum_bytes"] / row["median_seconds"] / 1e9 for row in own]
            axes.scatter(moved, speed, s=14, label=name, color=_COLORS[name], alpha=0.8)
        axes.axhline(roof, color="black", linewidth=0.8)
        axes.annotate("copy", (axes.get_xlim()[0], roof), fontsize=7, va="bottom")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("fewest bytes of the cell")
        axes.set_ylabel("fewest bytes / time, GB/s")
        axes.set_title(f"{direction}, {dtype}, all sizes and layouts", fontsize=9)
        axes.grid(linewidth=0.3)
        axes.legend(fontsize=7)
    return figure


def _memory(rows: Sequence[Row], title: str, content: dict[str, Any]) -> Any:
    chosen, _, names = _main_rows(rows)
    contenders = [n for n in (*PEERS, OURS) if any(row["contender"] == n for row in chosen)]

    def megabytes(name: str, contender: str) -> float | None:
        peak = _median(chosen, "peak_bytes", workload=name, layout="NCHW", contender=contender,
                       direction="backward")  # fmt: skip
        return None if peak is None else peak / 1e6

    series = [(c, _COLORS[c], "", [megabytes(name, c) for name in names]) for c in contenders]
    if all(value is None for *_, values in series for value in values):
        return None
    figure = _figure(8, 1.4 + 0.34 * len(names), title)
    axes = figure.add_subplot()
    _bars(axes, names, series)
    axes.set_xlabel(f"peak MB of forward and backward above the inputs, {first_dtype(rows)} NCHW")
    axes.legend(fontsize=7)
    return figure


def _models(rows: Sequence[Row], title: str) -> Any:
    names = [row["model"] for row in rows if row["direction"] == "step"]
    if not names:
        return None
    figure = _figure(8, 1.6 + 0.5 * len(names), title)
    axes = figure.add_subplot()

    def speedups(direction: str) -> list[float | None]:
        found = {row["model"]: row["speedup"] for row in rows if row["direction"] == direction}
        return [found.get(name) for name in names]

    _bars(axes, names, [("inference", "#1f77b4", "", speedups("inference")),
                        ("training step", "#d62728", "", speedups("step"))], begin=1.0)  # fmt: skip
    axes.set_xlabel("the model's time over that with msr_cuda")
    axes.legend(fontsize=7)
    return figure


def _logits(rows: Sequence[Row], title: str) -> Any:
    layout = rows[0]["layout"] if rows else ""
    chosen = [r for r in rows if r["layout"] == layout and r["dtype"] == rows[0]["dtype"]]
    places = list(dict.fromkeys((r["case"], r["size"], r["direction"]) for r in chosen))
    names = [n for n in (EAGER, COMPILED, OURS) if any(r["contender"] == n for r in chosen)]
    if OURS not in names:
        return None
    found = {((r["case"], r["size"], r["direction"]), r["contender"]): r for r in chosen}
    figure = _figure(11, 1.6 + 0.42 * len(places), title)
    for number, (key, scale, about) in enumerate(
        [
            ("times_ours", 1.0, "times msr_cuda's time"),
            ("peak_bytes", 1e-6, "peak MB beyond the logits and their gradient"),
        ],
        1,
    ):
        axes = figure.add_subplot(1, 2, number)
        series = [
            (
                name, _COLORS[name], "",
                [
                    found[place, name][key] * scale if (place, name) in found else None
                    for place in places
                ],
            )
            for name in names
            if key != "times_ours" or name != OURS
        ]  # fmt: skip
        labels = [" ".join(place) for place in places]
        _bars(axes, labels, series, begin=1.0 if key == "times_ours" else 0.0)
        axes.set_xscale("log")
        if key == "times_ours":
            axes.set_xticks(_RATIOS, [f"{ratio:g}" for ratio in _RATIOS])
        else:
            axes.set_xlim(left=0.1)  # less is nothing
        axes.set_xlabel(about)
        axes.legend(fontsize=7)
        if number == 2:
            axes.set_yticklabels([])
    return figure


def _training(rows: Sequence[Row], title: str) -> Any:
    names = [name for name in (EAGER, OURS) if any(row["contender"] == name for row in rows)]
    if not names:
        return None
    figure = _figure(9, 3.4, title)
    curves, memory = figure.subplots(1, 2)
    for name, style in zip(names, ("-", ":"), strict=False):
        losses = [row["loss"] for row in rows if row["contender"] == name]
        curves.plot(losses, style, color=_COLORS[name], label=name)
    curves.set_xlabel("step")
    curves.set_ylabel("loss")
    curves.legend(fontsize=7)
    peaks = [
        max(row["peak_bytes"] or 0 for row in rows if row["contender"] == name) for name in names
    ]
    bars = memory.bar(names, [peak / 1e6 for peak in peaks], 0.5, color=[*map(_COLORS.get, names)])
    memory.bar_label(bars, fmt="%.0f", fontsize=7)
    memory.set_ylabel("peak MB of a step, whole network")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Draws; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    arguments = parser.parse_args(argv)
    if not available():
        print(HOW_TO_GET_IT, file=sys.stderr)
        return 2
    for folder in arguments.folders:
        try:
            written = draw(folder)
        except (OSError, ValueError) as error:
            print(f"python -m benchmarks.plots: {error}", file=sys.stderr)
            return 2
        if not written:
            print(f"python -m benchmarks.plots: {folder}: no results there", file=sys.stderr)
            return 2
        print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
