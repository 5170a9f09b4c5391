"""Measures losses and decisions at the labels' resolution, from logits of a lower one.

    python -m benchmarks.logits --quick                 one size of each, minutes
    python -m benchmarks.logits                         all of them
    python -m benchmarks.logits --case argmax --size 1x19x256x512 --growth 4

Against eager PyTorch and torch.compile, side by side, in turns; results are checked against float64
before anything is timed. Everything goes into logits.json and logits.csv, with a plot beside them
if matplotlib is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch

from .. import LOGITS_NAME, command, measure, summary
from ..contenders import COMPILED, EAGER
from ..workloads import DTYPES, LAYOUTS, parse_size
from .cases import CASES, SIZES, Run
from .compare import Comparison, Settings, compare
from .table import EXPLANATION, logits_table

TABLE = command.Table(LOGITS_NAME, Comparison._fields)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ``runs`` is what it asks for."""
    parser = command.parser_of("python -m benchmarks.logits", __doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="one size of each case, contiguous")
    add("--list", action="store_true", help="print what would run, and stop")
    add("--case", action="append", default=[], choices=list(CASES), metavar="NAME",
        help="only this one (may be repeated): " + ", ".join(CASES))  # fmt: skip
    add("--dtype", action="append", default=[], choices=list(DTYPES),
        help="only this one (default: float32, on CUDA float16, too)")  # fmt: skip
    add("--layout", action="append", default=[], choices=list(LAYOUTS), help="only this one")
    add("--size", default=None, metavar="NxCxHxW", help="of the logits, instead of the built-in")
    add("--growth", type=int, default=4, help="of the labels per axis, with --size (default: 4)")
    add("--against", action="append", default=[], choices=[EAGER, COMPILED],
        help="only this one beside msr_cuda")  # fmt: skip
    add("--threads", type=int, default=1, help="of the CPU kernels (default: 1)")
    add("--rounds", type=int, default=9, help="samples of each (default: 9)")
    arguments = command.parse(parser, argv)
    if arguments.growth < 1:
        parser.error(f"--growth: expected at least 1, got {arguments.growth}")
    try:
        sizes = [(parse_size(arguments.size), arguments.growth)] if arguments.size else None
    except ValueError as error:
        parser.error(f"--{error}")
    on_cuda = arguments.device == "cuda"
    dtypes = arguments.dtype or (["float32", "float16"] if on_cuda else ["float32"])
    layouts = arguments.layout or list(LAYOUTS)
    arguments.runs = [
        Run(case, size, growth, dtype, layout)
        for case in arguments.case or CASES
        for size, growth in sizes or SIZES[arguments.device][case][: 1 if arguments.quick else None]
        for dtype in dtypes
        for layout in layouts[: 1 if arguments.quick or size.rank == 1 else None]
    ]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; returns the exit status."""
    arguments = parse(argv)
    if arguments.list:
        print("\n".join(map(str, arguments.runs)))
        return 0
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    if not command.has_kernels(device):
        return 2
    allocator = measure.prepare_allocator(device, arguments.allocator == "keep")
    measure.prepare_compiler(device)
    watch = command.watch_of(arguments.device)
    measured = {"clock": watch.clock, "rounds": arguments.rounds, "allocator": allocator}
    about = command.facts(arguments, "benchmarks.logits", argv, measured, "triton")
    print(summary.heading(about))
    print(EXPLANATION + "\n", flush=True)
    settings = Settings(
        device, arguments.rounds, against=tuple(arguments.against) or (EAGER, COMPILED),
        clock=watch.compared,
    )  # fmt: skip
    jobs = [command.Job(str(run), partial(compare, run, settings)) for run in arguments.runs]
    return command.measure_all(TABLE, jobs, arguments, about, logits_table)


if __name__ == "__main__":
    sys.exit(main())
