"""Parts of pages that are computed: figures of committed result files, and lists from the code."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks import JSON_NAME, TRAINING_NAME, machine
from benchmarks.host import HostTime
from benchmarks.readme import companions, host_table, speedup_table
from benchmarks.results import load
from benchmarks.runner import DIRECT
from benchmarks.summary import cells_table, heading
from benchmarks.text import markdown
from benchmarks.training import training_table
from msr_cuda.train.config import add_flags

sys.path.insert(0, str(machine.ROOT / "build_tools"))
import install_cases  # it lies in build_tools

RESULTS = machine.ROOT / "benchmarks" / "results"


def performance(folder: Path) -> str:
    """Every committed result file of the benchmarks, the newest first.

    Args:
        folder: of the page that includes the text: links start there.
    """
    parts = []
    for results in sorted({path.parent for path in RESULTS.glob("*/*.csv")}, reverse=True):
        parts.append(f"## {results.name}")
        if (results / JSON_NAME).exists():
            content = load(results)
            rows = [row for row in content["measurements"] if row["launch"] == DIRECT]
            parts.append(f"{heading(content)}; by `{content['command']}`.")
        for plot in sorted(results.glob("*.png")):
            parts.append(f"![{plot.stem}]({os.path.relpath(plot, folder)})")
        if (results / JSON_NAME).exists():
            parts += ["### Speed-ups", speedup_table(rows), "### Every cell", cells_table(rows)]
            if hosts := [HostTime(**row) for row in content.get("host") or ()]:
                parts.append("### A call on a tiny map, in microseconds of the host")
                parts.append(host_table(hosts))
        if others := companions(results):
            parts += ["### Whole models, losses and decisions", *others]
        training = results / f"{TRAINING_NAME}.json"
        if training.exists():
            content = json.loads(training.read_text(encoding="utf-8"))
            parts.append(
                "### A training, with the upsampled logits and without\n\n"
                f"{heading(content)}; by `{content['command']}`. Loss: the mean of the last tenth. "
                "Differences are those of single steps from eager's, as a share of it. The peak is "
                "that of a step, with all that the network keeps."
            )
            parts.append(training_table(content["measurements"]))
    return "\n\n".join(parts) + "\n"


def installs() -> str:
    """Every committed run of the install cases, the newest of a machine first."""
    parts = []
    for path in sorted(RESULTS.glob(f"*/{install_cases.NAME}"), reverse=True):
        content = json.loads(path.read_text(encoding="utf-8"))
        jobs = content["measured"]["MAX_JOBS"]
        tried = {row["case"] for row in content["cases"]}
        left = [case.about for case in install_cases.CASES if case.name not in tried]
        parts += [
            f"{heading(content)}; MAX_JOBS {jobs}; by `{content['command']}`.",
            install_cases.table(content["cases"]),
        ]
        if left:
            parts.append(f"Not tried in that run: {'; '.join(left)}.")
    return "\n\n".join(parts)


def train_options() -> str:
    """What ``python -m msr_cuda train`` can be told."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    rows = []
    for action in parser._actions:
        flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
        choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
        rows.append([flags, choices, action.help or ""])
    return markdown(["option", "one of", "meaning"], rows, 3) + "\n"


def write(folder: Path) -> None:
    """Writes them all."""
    pages = {
        "performance.md": performance(folder.parent),
        "install.md": installs(),
        "train_options.md": train_options(),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
