"""Measures msr_cuda against eager PyTorch, autocast and torch.compile, side by side in one run.

    python -m benchmarks --quick                   a large size of the main workloads, minutes
    python -m benchmarks                           the whole grid, also batch 1 and tiny maps
    python -m benchmarks --quick --check           and hold the figures against the goals
    python -m benchmarks --quick --threads 2       several threads, and ours with one beside them
    python -m benchmarks.models                    whole models, swapped and not
    python -m benchmarks.summary DIR               tables of what a run wrote
    python -m benchmarks.plots DIR                 and plots, if matplotlib is there

Results are checked against each other before anything is timed. The table goes to standard output
cell by cell, progress to standard error, and everything into benchmarks.json, benchmarks.csv and
host.csv (the host's time of tiny calls), and plots beside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from . import command, goals, host, measure, plots, results, summary, table, workloads
from .causes import Causes
from .contenders import COMPILED, CONTENDERS, EAGER, OURS, TUNED, CudaWatch, HostWatch
from .progress import Progress, duration
from .runner import Settings, run_cell
from .workloads import DTYPES, LAYOUTS, WORKLOADS, Cell, parse_size

#: About what a cell takes, of which compiling is most: for the estimate before anything was timed.
SECONDS_PER_CELL = {"cpu": 10.0, "cuda": 40.0}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command.parser_of("python -m benchmarks", __doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a large size of the main workloads")
    add("--list", action="store_true", help="print the cells that would run, and stop")
    add("--host-only", action="store_true", help="only the host's time of tiny calls")
    add("--workload", action="append", default=[], choices=list(WORKLOADS), metavar="NAME",
        help="only this one (may be repeated): " + ", ".join(WORKLOADS))  # fmt: skip
    add("--dtype", action="append", default=[], choices=list(DTYPES), help="only this one")
    add("--layout", action="append", default=[], choices=list(LAYOUTS),
        help="only this one; NCHW: contiguous, of any rank")  # fmt: skip
    add("--size", action="append", default=[], type=_size, metavar="NxCxHxW",
        help="the finest map, instead of the grid's sizes (one to three spatial axes)")  # fmt: skip
    add("--against", action="append", default=[], choices=[c for c in CONTENDERS if c != OURS],
        help="only this contender beside msr_cuda")  # fmt: skip
    add("--threads", type=int, default=1, help="of the CPU kernels (default: 1)")
    add("--rounds", type=int, default=None, help="samples per contender (default: 9 or 15)")
    add("--compile-seconds", type=float, default=120.0, metavar="N",
        help="what torch.compile may take for one cell (default: 120)")  # fmt: skip
    add("--check", action="store_true", help="hold the figures against the goals for a CPU thread")
    arguments = command.parse(parser, argv)
    if arguments.host_only and (arguments.check or arguments.workload or arguments.size):
        parser.error("--host-only: expected no --check, --workload and --size beside it")
    if arguments.check and (arguments.device != "cpu" or arguments.threads != 1):
        parser.error("--check: the goals are those of one CPU thread (--device cpu --threads 1)")
    try:
        arguments.cells = workloads.cells(
            arguments.device, quick=arguments.quick, workloads=arguments.workload,
            dtypes=arguments.dtype, layouts=arguments.layout, sizes=arguments.size,
        )  # fmt: skip
    except ValueError as error:
        parser.error(f"--size: {error}")
    if arguments.host_only:
        arguments.cells = []
    return arguments


def _size(text: str) -> workloads.Size:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def introduction(found: dict[str, Any]) -> str:
    """The first lines of the output."""
    measured = found["measured"]
    return "\n".join(
        [
            summary.heading({**found}),
            f"compared by: {measured['clock']} (host: {measured['host_clock']})",
            f"allocator: {measured['allocator']}",
            f"copying moves {found['copy_bytes_per_second'] / 1e9:.1f} GB/s, read and written",
            table.EXPLANATION,
        ]
    )


def run(cells: Sequence[Cell], settings: Settings, found: results.Run, out: Path,
        budget: float | None, stream: TextIO | None = None) -> None:  # fmt: skip
    """Measures the cells; prints and writes each as soon as it is there."""
    progress = Progress(len(cells), stream)
    printed = 0
    for number, cell in enumerate(cells, 1):
        if budget is not None and progress.seconds > budget:
            found.left_out.append(f"{len(cells) - number + 1} cells: {budget:g} s were up")
            break

        def tell(what: str, cell: Cell = cell) -> None:
            progress.tell(f"{cell}: {what}")

        outcome = run_cell(cell, settings, tell)
        progress.finish_part()
        found.measurements += outcome.measurements
        found.left_out += outcome.left_out
        found.wrong += outcome.wrong
        found.complete = number == len(cells)
        found.write(out)
        groups = table.by_cell(found.rows)
        progress.clear()
        for group in groups[printed:]:
            print("\n" + table.cell_text(group), flush=True)
        printed = len(groups)


def run_host(settings: Settings, found: results.Run) -> None:
    """Measures tiny calls; prints the table."""
    progress = Progress(len(host.MODULES) * (1 + len(host.KINDS)))
    peers = [way for way in (EAGER, COMPILED) if way in settings.against]
    ways = [*peers, host.MODULE, host.FUNCTION, host.OPERATOR]

    def tell(what: str) -> None:
        progress.tell(what)
        progress.finish_part()

    found.host, left_out = host.host_times(
        settings.device, rounds=settings.rounds, compile_seconds=settings.compile_seconds,
        only=ways, progress=tell,
    )  # fmt: skip
    found.left_out += left_out
    progress.clear()
    print(f"\nWhat a call costs, tiny maps ({settings.watch.host_clock}):\n")
    print(host.host_table(found.host), flush=True)


def estimate(cells: Sequence[Cell], settings: Settings) -> str:
    """What a run will take, about."""
    seconds = SECONDS_PER_CELL[settings.device.type]
    if not {COMPILED, TUNED} & set(settings.against):
        seconds /= 3
    return f"{len(cells)} cells, about {duration(len(cells) * seconds)} (min:s)"


def conclude(arguments: argparse.Namespace, found: results.Run, paths: Sequence[Path]) -> int:
    """The ratios, what was left out, the goals, the plots; returns the exit status."""
    rows = found.rows
    if rows:
        print(
            "\nHow many times msr_cuda's time the others take, over the sizes of a kind of cell:\n"
        )
        print(summary.ratios_table(summary.ratios(rows)))
    for text in found.left_out:
        print(f"left out: {text}")
    for text in found.wrong:
        print(f"WRONG: {text}")
    status = 1 if found.wrong else 0
    if arguments.check:
        print("\nGoals, one thread, at every size but the tiny ones:\n")
        causes = Causes(rows)
        for verdict in goals.verdicts(rows, goals.goals_of(arguments.cells)):
            print(goals.describe(verdict, causes))
            status = status if verdict.met else 1
        standings = goals.standings(rows)
        print("\nEvery cell against the fastest peer, whose time it is to be at most:\n")
        print("\n".join(goals.describe_standings(standings, causes)))
        status = 1 if any(standing.lost for standing in standings) else status
    drawn, remark = plots.draw_if_possible(arguments.out)
    print("\nWritten: " + ", ".join(map(str, [*paths, *drawn])))
    if remark:
        print(remark)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; returns the exit status."""
    arguments = parse(argv)
    if arguments.list:
        print("\n".join(map(str, arguments.cells)))
        return 0
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    if not command.has_kernels(device):
        return 2
    allocator = measure.prepare_allocator(device, arguments.allocator == "keep")
    measure.prepare_compiler(device)
    settings = Settings(
        device,
        CudaWatch() if device.type == "cuda" else HostWatch(arguments.threads),
        arguments.rounds or (9 if arguments.quick else 15),
        tuple(arguments.against) or CONTENDERS,
        seconds_per_phase=4.0 if arguments.quick else 8.0,
        compile_seconds=arguments.compile_seconds,
    )
    size = 2**30 if device.type == "cuda" else 2**28  # far beyond any cache
    bandwidth = measure.copy_bandwidth(device, size, clock=settings.watch.compared)
    measured = {
        "clock": settings.watch.clock,
        "host_clock": settings.watch.host_clock,
        "rounds": settings.rounds,
        "allocator": allocator,
    }
    about = command.facts(arguments, "benchmarks", argv, measured, "triton")
    found = results.Run({**about, "copy_bytes_per_second": bandwidth})
    print(introduction(found.facts))
    if arguments.cells:
        print(estimate(arguments.cells, settings), flush=True)
    # Cells that were asked for by name are measured alone.
    if not arguments.workload and not arguments.size:
        run_host(settings, found)
    run(arguments.cells, settings, found, arguments.out, arguments.budget)
    return conclude(arguments, found, found.write(arguments.out))


if __name__ == "__main__":
    sys.exit(main())
