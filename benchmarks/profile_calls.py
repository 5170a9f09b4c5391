"""The main kernels at large sizes, for a profiler: ``ncu ... python -m benchmarks.profile_calls``.

One inference and one backward of each workload, in half precision and both layouts; with ``ncu
--profile-from-start off`` nothing else is profiled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from . import contenders
from .contenders import Data
from .workloads import WORKLOADS, Cell


def profiled_cells() -> list[Cell]:
    """A large size of each workload."""
    return [
        Cell(name, workload.cuda.large[0], "float16", layout)
        for name, workload in WORKLOADS.items()
        for layout in workload.layouts
    ]


def profile_cell(cell: Cell, device: torch.device, switch: Callable[[bool], None]) -> None:
    """Calls it once unseen, so that nothing is loaded or allocated later, and once seen.

    Args:
        cell: what to compute.
        device: where.
        switch: turns the profiler on and off.
    """
    data = Data.make(cell, device)
    maps, leaves, grads = data.plain[0], data.leaves[0], data.grads[0]
    for seen in (False, True):
        with torch.no_grad():
            if seen:
                switch(True)
            WORKLOADS[cell.workload].fused(maps, "kernel")
            if seen:
                switch(False)
        outputs = WORKLOADS[cell.workload].fused(leaves, "kernel")
        if seen:
            switch(True)
        contenders.gradients(outputs, leaves, grads)
        if seen:
            switch(False)


def _cuda_profiler(on: bool) -> None:
    torch.cuda.synchronize()
    runtime = torch.cuda.cudart()
    runtime.cudaProfilerStart() if on else runtime.cudaProfilerStop()


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the calls; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile_calls", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=None, metavar="N", help="then stop")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("it needs a CUDA device")
    begun = time.monotonic()
    found = profiled_cells()
    for number, cell in enumerate(found):
        if arguments.seconds is not None and time.monotonic() - begun > arguments.seconds:
            print(f"{number} of {len(found)} cells: {arguments.seconds:g} s were up")
            break
        print(cell, flush=True)
        profile_cell(cell, torch.device("cuda"), _cuda_profiler)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
