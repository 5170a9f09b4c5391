#!/usr/bin/env python3
"""Writes docs/support.md from a test run's own report.

python -m pytest --support-report=report.json
python build_tools/support_table.py report.json
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "support.md"

INTRODUCTION = """\
# What runs on kernels

Generated: do not edit. Every mark stands for a test that ran on kernels and held the result to the
float64 reference, in the run named at the end.

- **0** values, **1** gradients, **2** second derivatives (in float64; other dtypes go through the
  same operators). Without a remark: in {dtypes},
  each {layouts}.
- A remark lists what was tested where that is not everything: dtypes as f32, f16, bf16, f64, then
  the layouts if not all of them: C contiguous, L channels_last, S any other strides.
- **·** no test ran.
- **CUDA** columns: the CUDA kernels, compiled for the CPU and run there by the test harness, under
  the name *harness*; *GPU* where they ran on one.
"""

SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64",
         "contiguous": "C", "channels_last": "L", "strided": "S"}  # fmt: skip
#: Column groups: what a device is called.
DEVICES = {"cpu": "CPU", "harness": "CUDA, harness", "cuda": "CUDA, GPU"}

Pairs = frozenset[tuple[str, str]]  # dtype and layout


def everything(axes: dict[str, list[Any]], rank: int, order: int) -> Pairs:
    """What an order of derivative is tested with, if it is tested with all."""
    dtypes = axes["dtype"] if order < 2 else ["float64"]
    layouts = [name for name in axes["layout"] if rank > 1 or name != "channels_last"]
    return frozenset((d, n) for d in dtypes for n in layouts)


def remark(pairs: Pairs, axes: dict[str, list[Any]], rank: int) -> str:
    """Lists pairs of dtype and layout: dtypes that have the same layouts together."""
    all_layouts = [n for n in axes["layout"] if rank > 1 or n != "channels_last"]
    groups: dict[tuple[str, ...], list[str]] = {}
    for dtype in axes["dtype"]:
        layouts = tuple(name for name in all_layouts if (dtype, name) in pairs)
        if layouts:
            groups.setdefault(layouts, []).append(SHORT[dtype])
    parts = []
    for layouts, dtypes in groups.items():
        own = "" if len(layouts) == len(all_layouts) else " " + "".join(SHORT[n] for n in layouts)
        parts.append(" ".join(dtypes) + own)
    return "; ".join(parts)


def cell(found: dict[int, Pairs], axes: dict[str, list[Any]], rank: int) -> str:
    """The orders of derivative that were tested, those with the same remark together."""
    parts: list[tuple[list[str], str]] = []
    for order in axes["order"]:
        pairs = found.get(order, frozenset())
        if not pairs:
            continue
        whole = pairs >= everything(axes, rank, order)
        text = "" if whole else remark(pairs, axes, rank)
        if parts and parts[-1][1] == text:
            parts[-1][0].append(str(order))
        else:
            parts.append(([str(order)], text))
    marks = [f"{' '.join(orders)} ({text})" if text else " ".join(orders) for orders, text in parts]
    return ", ".join(marks) or "·"


def table(operator: str, report: dict[str, Any]) -> list[str]:
    """The lines of one operator's table; no columns for devices where it was not tested."""
    axes = report["axes"]
    found: dict[tuple[str, str, int], dict[int, set[tuple[str, str]]]] = {}
    for name, mode, rank, dtype, layout, device, order in report["cells"]:
        if name == operator:
            orders = found.setdefault((device, mode, rank), {})
            orders.setdefault(order, set()).add((dtype, layout))
    devices = [d for d in axes["device"] if any(key[0] == d for key in found)]
    if not devices:
        return ["No test ran."]
    columns = [(device, rank) for device in devices for rank in axes["rank"]]
    lines = [
        "| mode | " + " | ".join(f"{DEVICES[d]} {rank}-D" for d, rank in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for mode in axes["mode"]:
        if not any(key[1] == mode for key in found):
            continue
        cells = []
        for device, rank in columns:
            orders = found.get((device, mode, rank), {})
            cells.append(cell({o: frozenset(p) for o, p in orders.items()}, axes, rank))
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return lines


def document(report: dict[str, Any]) -> str:
    """The whole page."""
    axes = report["axes"]
    lines = [
        INTRODUCTION.format(dtypes=", ".join(axes["dtype"]), layouts=", ".join(axes["layout"]))
    ]
    for operator in axes["operator"]:
        lines += [f"## {operator}", "", *table(operator, report), ""]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    arguments = [*report["arguments"], "--support-report=report.json"]
    command = "python -m pytest " + shlex.join(arguments)
    lines += [
        "## How this was made", "", f"{versions}.", "", "```", command,
        "python build_tools/support_table.py report.json", "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Reads the report, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="what pytest --support-report wrote")
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="default: docs/support.md")
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text(encoding="utf-8"))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(document(report), encoding="utf-8")


if __name__ == "__main__":
    main()
