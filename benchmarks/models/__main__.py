"""Measures whole models, as they are and swapped by msr_cuda.fuse, side by side in one run.

    python -m benchmarks.models                      all models whose packages are there
    python -m benchmarks.models --model smp-unet     one of them
    python -m benchmarks.models --list               which there are, and what is missing

One inference and one training step (forward, loss, backward, SGD), in turns, medians; the share of
the time that resampling has, and peak memory. Everything goes into models.json and models.csv,
with a plot beside them if matplotlib is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import MODELS_NAME, command, measure, summary
from ..workloads import LAYOUTS
from .compare import PRECISIONS, Comparison, Settings, compare
from .table import EXPLANATION, models_table
from .zoo import SUBJECTS

TABLE = command.Table(MODELS_NAME, Comparison._fields)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command.parser_of("python -m benchmarks.models", __doc__)
    add = parser.add_argument
    add("--list", action="store_true", help="print the models, and what they lack, and stop")
    add("--model", action="append", default=[], choices=list(SUBJECTS), metavar="NAME",
        help="only this one (may be repeated): " + ", ".join(SUBJECTS))  # fmt: skip
    add("--precision", action="append", default=[], choices=list(PRECISIONS),
        help="only this one (default: float32, on CUDA amp, too)")  # fmt: skip
    add("--layout", action="append", default=[], choices=list(LAYOUTS),
        help="only this one (default: NCHW, on CUDA channels_last, too)")  # fmt: skip
    add("--threads", type=int, default=None, help="of the CPU (default: PyTorch's)")
    add("--rounds", type=int, default=11, help="samples of each (default: 11)")
    arguments = command.parse(parser, argv)
    on_cuda = arguments.device == "cuda"
    arguments.precision = arguments.precision or list(PRECISIONS if on_cuda else PRECISIONS[:1])
    arguments.layout = arguments.layout or list(LAYOUTS if on_cuda else LAYOUTS[:1])
    return arguments


def print_list() -> None:
    """What there is, and what to install."""
    for subject in SUBJECTS.values():
        missing = subject.missing()
        hint = f"  (missing: pip install --no-deps {' '.join(missing)})" if missing else ""
        print(f"{subject.name}: {subject.about}{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; returns the exit status."""
    arguments = parse(argv)
    if arguments.list:
        print_list()
        return 0
    device = torch.device(arguments.device)
    if not command.has_kernels(device):
        return 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    allocator = measure.prepare_allocator(device, arguments.allocator == "keep")
    watch = command.watch_of(arguments.device)
    measured = {
        "clock": watch.clock,
        "rounds": arguments.rounds,
        "allocator": allocator,
    }
    about = command.facts(
        arguments, "benchmarks.models", argv, measured,
        "torchvision", "timm", "segmentation-models-pytorch", "ultralytics",
    )  # fmt: skip
    print(summary.heading(about))
    print(EXPLANATION + "\n", flush=True)
    names = arguments.model or list(SUBJECTS)
    settings = Settings(device, arguments.rounds, clock=watch.compared)

    def job(name: str, precision: str, layout: str) -> command.Job:
        def rows(tell: Callable[[str], None]) -> list[dict[str, Any]]:
            found = compare(SUBJECTS[name], precision, layout, settings, tell)
            return [row._asdict() for row in found]

        return command.Job(f"{name} {precision} {layout}", rows)

    missing = {name: SUBJECTS[name].missing() for name in names}
    return command.measure_all(
        TABLE,
        [
            job(name, precision, layout)
            for name in names
            for precision in arguments.precision
            for layout in arguments.layout
            if not missing[name]
        ],
        arguments, about, models_table,
        [
            f"{name}: missing, pip install --no-deps {' '.join(packages)}"
            for name, packages in missing.items()
            if packages
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
