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
import csv
import datetime
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import msr_cuda
from msr_cuda import functional

from .. import MODELS_CSV_NAME, MODELS_JSON_NAME, machine, measure, plots, summary
from ..contenders import HostWatch
from ..progress import Progress
from ..results import RUN_COLUMNS, run_columns, to_json, write_whole
from ..workloads import LAYOUTS
from .compare import PRECISIONS, Comparison, Settings, compare
from .table import EXPLANATION, models_table
from .zoo import SUBJECTS

COLUMNS = (*Comparison._fields, *RUN_COLUMNS)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--list", action="store_true", help="print the models, and what they lack, and stop")
    add("--model", action="append", default=[], choices=list(SUBJECTS), metavar="NAME",
        help="only this one (may be repeated): " + ", ".join(SUBJECTS))  # fmt: skip
    add("--precision", action="append", default=[], choices=list(PRECISIONS),
        help="only this one (default: float32, on CUDA amp, too)")  # fmt: skip
    add("--layout", action="append", default=[], choices=list(LAYOUTS),
        help="only this one (default: NCHW, on CUDA channels_last, too)")  # fmt: skip
    add("--device", choices=["cpu", "cuda"], default=None, help="default: cuda where there is one")
    add("--threads", type=int, default=None, help="of the CPU (default: PyTorch's)")
    add("--rounds", type=int, default=11, help="samples of each (default: 11)")
    add("--allocator", choices=["keep", "default"], default="keep",
        help="CPU: whether the C library is told to keep freed memory")  # fmt: skip
    add("--budget", type=float, default=None, metavar="SECONDS",
        help="begin no further model after this time")  # fmt: skip
    add("--out", type=Path, default=machine.ROOT / "benchmark-output", metavar="DIR",
        help="where files go (default: benchmark-output/ in the checkout)")  # fmt: skip
    add("--commit", default=None, help="what to write down where the checkout has no git")
    arguments = parser.parse_args(argv)
    for name in ("threads", "rounds"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: expected at least 1, got {value}")
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available")
    on_cuda = arguments.device == "cuda"
    arguments.precision = arguments.precision or list(PRECISIONS if on_cuda else PRECISIONS[:1])
    arguments.layout = arguments.layout or list(LAYOUTS if on_cuda else LAYOUTS[:1])
    return arguments


def watch_of(device: str) -> HostWatch:
    """One CPU thread is compared by its own time, all else by the wall clock."""
    return HostWatch(torch.get_num_threads() if device == "cpu" else 0)


def facts(arguments: argparse.Namespace, command: Sequence[str], allocator: str) -> dict[str, Any]:
    """What the figures were made on, and how."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.models", *command]),
        "machine": machine.machine_facts(torch.device(arguments.device)),
        "versions": machine.version_facts(
            "torchvision", "timm", "segmentation-models-pytorch", "ultralytics"
        ),
        "commit": arguments.commit or machine.commit(),
        "extension": msr_cuda.info()["extension"]["build"],
        "measured": {
            "clock": watch_of(arguments.device).clock,
            "rounds": arguments.rounds,
            "allocator": allocator,
        },
    }


def write(folder: Path, about: dict[str, Any], rows: Sequence[Comparison],
          left_out: Sequence[str], wrong: Sequence[str], complete: bool) -> list[Path]:  # fmt: skip
    """Both files."""
    folder.mkdir(parents=True, exist_ok=True)
    measurements = [row._asdict() for row in rows]
    content = {
        **about, "complete": complete, "measurements": measurements, "left_out": list(left_out),
        "wrong": list(wrong),
    }  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **run_columns(about)} for row in measurements)
    return [
        write_whole(folder / MODELS_JSON_NAME, to_json(content)),
        write_whole(folder / MODELS_CSV_NAME, text.getvalue()),
    ]


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
    reasons = functional.unsupported_reasons([torch.empty(1, 1, 1, device=device)])
    if reasons:
        print("there are no kernels to measure: " + "; ".join(reasons), file=sys.stderr)
        return 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    allocator = measure.prepare_allocator(device, arguments.allocator == "keep")
    about = facts(arguments, sys.argv[1:] if argv is None else argv, allocator)
    print(summary.heading(about))
    print(EXPLANATION + "\n", flush=True)
    names = arguments.model or list(SUBJECTS)
    runs = [(n, p, la) for n in names for p in arguments.precision for la in arguments.layout]
    progress = Progress(len(runs))
    rows: list[Comparison] = []
    left_out: list[str] = []
    wrong: list[str] = []
    complete = False
    for number, (name, precision, layout) in enumerate(runs, 1):
        if arguments.budget is not None and progress.seconds > arguments.budget:
            left_out.append(f"{len(runs) - number + 1} runs: {arguments.budget:g} s were up")
            break
        subject = SUBJECTS[name]

        def tell(what: str, label: str = f"{name} {precision} {layout}") -> None:
            progress.tell(f"{label}: {what}")

        if missing := subject.missing():
            left_out.append(f"{name}: missing, pip install --no-deps {' '.join(missing)}")
        else:
            try:
                clock = watch_of(device.type).compared
                settings = Settings(device, arguments.rounds, clock=clock)
                rows += compare(subject, precision, layout, settings, tell)
            except ArithmeticError as problem:
                wrong.append(str(problem))
            except Exception as problem:
                left_out.append(f"{name} {precision} {layout}: {measure.first_line(problem)}")
        progress.finish_part()
        complete = number == len(runs)
        write(arguments.out, about, rows, left_out, wrong, complete)
    paths = write(arguments.out, about, rows, left_out, wrong, complete)
    progress.clear()
    print(models_table([row._asdict() for row in rows]))
    for text in dict.fromkeys(left_out):
        print(f"left out: {text}")
    for text in wrong:
        print(f"WRONG: {text}")
    drawn, remark = plots.draw_if_possible(arguments.out)
    print("\nWritten: " + ", ".join(map(str, [*paths, *drawn])))
    if remark:
        print(remark)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
