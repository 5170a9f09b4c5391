"""The demo's pictures, where matplotlib is installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from demo_state import Demo, Photograph
from demo_tables import CONTENDERS, DIRECTIONS

from benchmarks.machine import machine_facts
from benchmarks.text import format_bytes, format_seconds


def pyplot(demo: Demo, what: str) -> Any:
    """Pictures without a screen; None, and a line that says so, where matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        demo.leave_out(f"{what} ({error})")
        return None


def save(demo: Demo, figure: Any, name: str) -> None:
    """Writes a figure to the output folder."""
    path = demo.output / name
    figure.savefig(path, dpi=110, bbox_inches="tight")
    demo.files.append(path)


def draw_edges(demo: Demo, rows: Sequence[tuple[Photograph, np.ndarray, np.ndarray]]) -> None:
    """Photographs, their edges before and after, and the difference."""
    plt = pyplot(demo, "the picture of the edges")
    if plt is None:
        return
    shapes = [photograph.pixels.shape for photograph, _, _ in rows]
    heights = [height / width for height, width, _ in shapes]
    figure, axes = plt.subplots(
        len(rows), 4, figsize=(13, 3.25 * sum(heights) + 0.4 * len(rows)), squeeze=False,
        layout="constrained", height_ratios=heights,
    )  # fmt: skip
    for line, (photograph, before, after) in zip(axes, rows, strict=True):
        difference = np.abs(after - before)
        line[0].imshow(photograph.pixels)
        line[0].set_title(photograph.name)
        for panel, edges, title in zip(
            line[1:3], (before, after), ("edges, PyTorch", "edges, msr_cuda"), strict=True
        ):
            panel.imshow(1 - edges, cmap="gray", vmin=0, vmax=1)
            panel.set_title(title)
        # On a fixed scale: on one of its own, even rounding would look like something.
        line[3].imshow(difference, cmap="gray", vmin=0, vmax=1)
        line[3].set_title(f"difference: at most {difference.max():.1e}")
        for panel in line:
            panel.set_xticks([])
            panel.set_yticks([])
    save(demo, figure, "edges.png")
    plt.close(figure)


def draw_measurements(demo: Demo) -> None:
    """The tables as bars."""
    plt = pyplot(demo, "the plot of the measurements")
    if plt is None or not demo.measurements:
        return
    tables = list(dict.fromkeys(m.table for m in demo.measurements))
    colours = dict(zip(CONTENDERS, ("#8c8c8c", "#d9a441", "#2a7f62"), strict=True))
    figure, axes = plt.subplots(
        len(tables), 2, figsize=(11, 2.3 * len(tables)), squeeze=False, layout="constrained"
    )
    for line, table in zip(axes, tables, strict=True):
        cells = [m for m in demo.measurements if m.table == table]
        present = [name for name in colours if any(m.contender == name for m in cells)]
        for panel, unit, value, label in (
            (line[0], "time, ms", lambda m: m.timing.median * 1e3,
             lambda m: format_seconds(m.timing.median)),
            (line[1], "peak memory, MB", lambda m: m.peak_bytes / 1e6,
             lambda m: format_bytes(m.peak_bytes)),
        ):  # fmt: skip
            for i, name in enumerate(present):
                for j, direction in enumerate(DIRECTIONS):
                    (cell,) = (m for m in cells if (m.contender, m.direction) == (name, direction))
                    place = j + (i - (len(present) - 1) / 2) * 0.8 / len(present)
                    panel.barh(
                        place, value(cell), 0.8 / len(present), color=colours[name]
                    )  # fmt: skip
                    panel.text(value(cell), place, f" {label(cell)}", va="center", fontsize=8)
            panel.set_yticks(range(len(DIRECTIONS)), DIRECTIONS)
            panel.invert_yaxis()
            panel.margins(x=0.18)
            panel.set_xlabel(unit)
            panel.spines[["top", "right"]].set_visible(False)
        about = cells[0].about
        line[0].set_title(f"{table}\n{about}", loc="left", fontsize=9)
    measured = {m.contender for m in demo.measurements}
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colour, label=name)
        for name, colour in colours.items()
        if name in measured
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)
    facts = machine_facts(demo.device)
    figure.suptitle(f"{facts['gpu'] or facts['cpu']}, torch {torch.__version__}", x=0.01, ha="left",
                    fontsize=10)  # fmt: skip
    save(demo, figure, "measurements.png")
    plt.close(figure)
