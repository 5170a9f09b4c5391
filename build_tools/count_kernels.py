#!/usr/bin/env python3
"""Counts the instances of every kernel template in compiled files, from their symbols.

    python build_tools/count_kernels.py build/**/*.o
    python build_tools/count_kernels.py --write docs/kernels.md build/**/*.o

The build prints the line of the first form; the second writes a table into the page that says why
there are as many.
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

BEGIN, END = "<!-- counted -->", "<!-- end -->"

# A __global__ function's host stub keeps its name; nvcc's own stubs and lambdas do not count.
_CUDA = re.compile(r"(?:^|\s)msr::(\w+_kernel)<[^(]*>\(")
# The loops of row_ops_impl.h, one function per types, counts and kinds of finish; those of several
# instruction sets have the same name.
_CPU = re.compile(
    r"(?:^|\s)msr::\(anonymous namespace\)::"
    r"(combine_count|along_row_typed|any_slice_of_pixel|along_few)<"
)


def count(symbols: str) -> dict[str, dict[str, int]]:
    """``{"CUDA": {template: instances}, "CPU": …}`` of the output of ``nm -C``.

    Lambdas, and clones that a compiler split off, are no instances of their own.
    """
    found: dict[str, collections.Counter[str]] = {
        "CUDA": collections.Counter(),
        "CPU": collections.Counter(),
    }
    for line in symbols.splitlines():
        kind, _, name = line.partition(" ")[2].partition(" ")
        if kind not in ("t", "T", "w", "W") or "{lambda" in name or "[clone" in name:
            continue
        for device, pattern in (("CUDA", _CUDA), ("CPU", _CPU)):
            match = pattern.search(name)
            if match and "__device_stub__" not in name:
                found[device][match[1]] += 1
    return {device: dict(sorted(templates.items())) for device, templates in found.items()}


def count_in(files: Sequence[Path]) -> dict[str, dict[str, int]] | None:
    """The same of object files; None where their symbols cannot be read."""
    if not files:
        return None
    try:
        done = subprocess.run(
            ["nm", "-C", "--defined-only", *map(str, files)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return count(done.stdout)


def summary(counts: dict[str, dict[str, int]]) -> str:
    """One line."""
    parts = []
    for device, templates in counts.items():
        each = ", ".join(f"{name} {number}" for name, number in templates.items())
        total = sum(templates.values())
        parts.append(f"{total} {device} kernel instances" + (f" ({each})" if each else ""))
    return "; ".join(parts)


def with_table(page: str, counts: dict[str, dict[str, int]]) -> str:
    """The page, with a table between its markers."""
    rows = ["| device | template | instances |", "|---|---|---|"]
    for device, templates in counts.items():
        rows += [f"| {device} | `{name}` | {number} |" for name, number in templates.items()]
        rows.append(f"| {device} | all | {sum(templates.values())} |")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{after}"


def main() -> int:
    """Prints the line, and writes the table where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="what the build compiled")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page with the markers")
    arguments = parser.parse_args()
    counts = count_in(arguments.files)
    if counts is None:
        print("the symbols cannot be read: is nm there?")
        return 1
    print(summary(counts))
    if arguments.write is not None:
        page = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(with_table(page, counts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
