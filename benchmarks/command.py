"""What the commands that measure have in common: options, and what they write down of a run."""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import msr_cuda
from msr_cuda import functional

from . import machine, measure, plots
from .contenders import HostWatch
from .progress import Progress
from .results import RUN_COLUMNS, Row, run_columns, to_json, write_whole


def parser_of(command: str, about: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all have.

    Args:
        command: as it is called, ``python -m ...``.
        about: the help's text.
    """
    parser = argparse.ArgumentParser(
        prog=command, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default=None, help="default: cuda where there is one")
    add("--allocator", choices=["keep", "default"], default="keep",
        help="CPU: whether the C library is told to keep freed memory")  # fmt: skip
    add("--budget", type=float, default=None, metavar="SECONDS",
        help="begin nothing further after this time")  # fmt: skip
    add("--out", type=Path, default=machine.ROOT / "benchmark-output", metavar="DIR",
        help="where files go (default: benchmark-output/ in the checkout)")  # fmt: skip
    add("--commit", default=None, help="what to write down where the checkout has no git")
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None,
    counts: Sequence[str] = ("threads", "rounds"),
) -> argparse.Namespace:  # fmt: skip
    """The command line, with a device; the options ``counts`` are positive or None."""
    arguments = parser.parse_args(argv)
    for name in counts:
        value = getattr(arguments, name.replace("-", "_"))
        if value is not None and value < 1:
            parser.error(f"--{name}: expected at least 1, got {value}")
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available")
    return arguments


def has_kernels(device: torch.device) -> bool:
    """Whether there is something to measure; says so where there is not."""
    reasons = functional.unsupported_reasons([torch.empty(1, 1, 1, device=device)])
    if reasons:
        print("there are no kernels to measure: " + "; ".join(reasons), file=sys.stderr)
    return not reasons


def watch_of(device: str) -> HostWatch:
    """One CPU thread is compared by its own time, all else by the wall clock."""
    return HostWatch(torch.get_num_threads() if device == "cpu" else 0)


def _without_out(command: Sequence[str]) -> list[str]:
    """The command line but for where files went: no figure follows from that."""
    words = list(command)
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return words


def facts(
    arguments: argparse.Namespace, module: str, argv: Sequence[str] | None,
    measured: Mapping[str, Any], *packages: str,
) -> dict[str, Any]:  # fmt: skip
    """What the figures were made on, and how.

    Args:
        arguments: of :func:`parse`.
        module: that was run, as ``python -m`` has it.
        argv: its arguments; None: those of this process.
        measured: clocks, rounds, allocator.
        packages: whose versions have a part in the figures.
    """
    words = _without_out(sys.argv[1:] if argv is None else argv)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", module, *words]),
        "machine": machine.machine_facts(torch.device(arguments.device)),
        "versions": machine.version_facts(*packages),
        "commit": arguments.commit or machine.commit(),
        "extension": msr_cuda.info()["extension"]["build"],
        "measured": dict(measured),
    }


class Table(NamedTuple):
    """Files with a row for each comparison, ``<name>.json`` and ``<name>.csv``.

    Attributes:
        name: of the files.
        columns: of a row.
    """

    name: str
    columns: tuple[str, ...]

    @property
    def json_name(self) -> str:
        """In the folder of a run."""
        return f"{self.name}.json"

    def write(
        self, folder: Path, about: dict[str, Any], rows: Sequence[Row], left_out: Sequence[str],
        wrong: Sequence[str], complete: bool,
    ) -> list[Path]:  # fmt: skip
        """Both files, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            **about, "complete": complete, "measurements": list(rows), "left_out": list(left_out),
            "wrong": list(wrong),
        }  # fmt: skip
        text = io.StringIO()
        writer = csv.DictWriter(text, (*self.columns, *RUN_COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **run_columns(about)} for row in rows)
        return [
            write_whole(folder / self.json_name, to_json(content)),
            write_whole(folder / f"{self.name}.csv", text.getvalue()),
        ]


class Job(NamedTuple):
    """What a run measures at a time.

    Attributes:
        label: for people.
        rows: measures it; its argument is told what is being done. Raises ArithmeticError where
            ours computes something else than the others.
    """

    label: str
    rows: Callable[[Callable[[str], None]], Sequence[Row]]


def measure_all(
    table: Table, jobs: Sequence[Job], arguments: argparse.Namespace, about: dict[str, Any],
    as_text: Callable[[Sequence[Row]], str], left_out: Sequence[str] = (),
) -> int:  # fmt: skip
    """Runs the jobs, writes the files after each, prints the table; returns the exit status.

    Args:
        table: what is written.
        jobs: in order; one that fails is left out by name.
        arguments: of :func:`parse`.
        about: of :func:`facts`.
        as_text: makes the printed table.
        left_out: what is known beforehand not to be measured, and why.
    """
    progress = Progress(len(jobs))
    rows: list[Row] = []
    omitted, wrong = list(left_out), list[str]()
    complete = False
    for number, job in enumerate(jobs, 1):
        if arguments.budget is not None and progress.seconds > arguments.budget:
            omitted.append(f"{len(jobs) - number + 1} runs: {arguments.budget:g} s were up")
            break

        def tell(what: str, label: str = job.label) -> None:
            progress.tell(f"{label}: {what}")

        try:
            rows += job.rows(tell)
        except ArithmeticError as problem:
            wrong.append(str(problem))
        except Exception as problem:
            omitted.append(f"{job.label}: {measure.first_line(problem)}")
        progress.finish_part()
        complete = number == len(jobs)
        table.write(arguments.out, about, rows, omitted, wrong, complete)
    paths = table.write(arguments.out, about, rows, omitted, wrong, complete)
    progress.clear()
    print(as_text(rows))
    for text in omitted:
        print(f"left out: {text}")
    for text in wrong:
        print(f"WRONG: {text}")
    drawn, remark = plots.draw_if_possible(arguments.out)
    print("\nWritten: " + ", ".join(map(str, [*paths, *drawn])))
    if remark:
        print(remark)
    return 1 if wrong else 0
