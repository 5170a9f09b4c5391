"""Small calls of every kernel, for compute-sanitizer to watch; correctness is the tests' business.

    compute-sanitizer --tool memcheck python -m benchmarks.sanitizer_calls --device cuda

The calls are the table of cases of the operator tests and the workloads of the benchmarks at small
sizes, forward and backward. Their order is mixed, so that a run that must stop early has seen some
of everything.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import msr_cuda

from .machine import ROOT
from .workloads import DTYPES, WORKLOADS, Cell, Size, make_inputs

#: By number of spatial axes: rows that vector instructions fit, and rows they do not.
SIZES = {
    1: (Size(2, 16, 960), Size(1, 9, 143)),
    2: (Size(2, 16, 24, 40), Size(1, 9, 11, 13)),
    3: (Size(2, 8, 8, 12, 16), Size(1, 5, 5, 7, 9)),
}


def operator_cases() -> Sequence[Any]:
    """The table of the operator tests.

    Raises:
        ImportError: pytest, which that table imports, is missing.
    """
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    table = importlib.import_module("cases")
    return [*table.CASES, *table.WINDOW_CASES, *table.EXTENDED_CASES]


def forward_and_backward(function: Callable[[], tuple[list[Tensor], list[Tensor]]]) -> None:
    """Runs it; ``function`` returns outputs, and the leaves to differentiate by.

    Raises:
        AssertionError: something is not finite.
    """
    outputs, leaves = function()
    grads = [torch.ones_like(output) for output in outputs]
    found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
    for tensor in (*outputs, *found):
        assert tensor is None or bool(tensor.isfinite().all()), "a result is not finite"


def pyramid(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Levels of one map."""
    x = torch.randn(2, 3, 21, 34, device=device, requires_grad=True)
    sizes = [(10, 17), (42, 5), (21, 34)]
    levels = msr_cuda.resample_pyramid(x, sizes, mode="bilinear", antialias=True, impl="kernel")
    return levels, [x]


def sums_in_one_call(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """More of them than one launch takes."""
    high = torch.randn(2, 3, 8, 10, device=device, requires_grad=True)
    low = torch.randn(2, 3, 4, 5, device=device, requires_grad=True)
    jobs = [
        {"inputs": [high, low], "mode": mode, "activation": activation}
        for mode in ("nearest", "bilinear", "bicubic")
        for activation in (None, "relu", "silu", "relu6")
    ]
    return msr_cuda.resample_sum_many(jobs, impl="kernel"), [high, low]


def into_memory(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Into channels of a larger buffer, and onto what is there; then something to differentiate."""
    low = torch.randn(2, 3, 4, 5, device=device)
    buffer = torch.zeros(2, 8, 8, 10, device=device)
    for accumulate in (False, True):
        msr_cuda.resample_sum(
            [low], (8, 10), mode="bilinear", out=buffer[:, 2:5], accumulate=accumulate,
            impl="kernel",
        )  # fmt: skip
    buffer.requires_grad_()
    return [msr_cuda.resample(buffer, (4, 5), mode="area", impl="kernel")], [buffer]


def losses(
    device: torch.device, dtype: torch.dtype, mode: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Losses of upsampled logits, and a decision."""
    logits = torch.randn(2, 19, 6, 9, device=device, dtype=dtype, requires_grad=True)
    size = (23, 18)
    labels = torch.randint(0, 19, (2, *size), device=device)
    mask = torch.rand(2, 19, *size, device=device)
    outputs = [
        msr_cuda.resample_cross_entropy(
            logits, target, mode=mode, weight=torch.rand(19, device=device),
            label_smoothing=smoothing, reduction=reduction, impl="kernel",
        )
        for target, smoothing, reduction in (
            (labels, 0.0, "mean"), (labels.to(torch.uint8), 0.1, "none"), (mask, 0.1, "sum"),
        )
    ]  # fmt: skip
    for target, reduction in ((mask, "mean"), (mask < 0.5, "none")):
        outputs.append(
            msr_cuda.resample_binary_cross_entropy_with_logits(
                logits, target, mode=mode, pos_weight=mask + 0.5, reduction=reduction,
                impl="kernel",
            )
        )  # fmt: skip
    decided = msr_cuda.resample_argmax(logits, size, mode=mode, return_max=True, impl="kernel")
    assert bool((decided[1] > 0).all())
    return outputs, [logits]


def has_kernel(call: Callable[[], None]) -> bool:
    """Makes a call; False if it is refused because there is no kernel for it."""
    try:
        call()
    except RuntimeError as error:
        if 'impl="kernel"' not in str(error):
            raise
        return False
    return True


def calls(device: torch.device) -> dict[str, Callable[[], None]]:
    """Every call, by name."""
    found: dict[str, Callable[[], None]] = {}

    def add(name: str, function: Callable[[], tuple[list[Tensor], list[Tensor]]]) -> None:
        found[name] = partial(forward_and_backward, function)

    def of_case(case: Any, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        maps = case.maps(dtype, device.type, requires_grad=True)
        parameters = case.make_parameters(torch.float32, device.type, requires_grad=True)
        return [case.call(maps, parameters, "kernel")], [*maps, *parameters.values()]

    def of_cell(cell: Cell) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [x.requires_grad_() for x in make_inputs(cell, device)]
        return WORKLOADS[cell.workload].fused(leaves, "kernel"), leaves

    for several in (pyramid, sums_in_one_call, into_memory):
        add(several.__name__, partial(several, device))
    for name, dtype in DTYPES.items():
        for mode in ("nearest", "bilinear", "area"):
            add(f"losses {mode} {name}", partial(losses, device, dtype, mode))
    for case in operator_cases():
        for name in ("float32", "float16"):
            add(f"case {case.name} {name}", partial(of_case, case, DTYPES[name]))
    for name, workload in WORKLOADS.items():
        for size in SIZES[workload.rank]:
            for dtype in DTYPES:
                for layout in workload.layouts:
                    cell = Cell(name, size, dtype, layout)
                    add(str(cell), partial(of_cell, cell))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the calls; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sanitizer_calls", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--seconds", type=float, default=None, metavar="N", help="then stop")
    arguments = parser.parse_args(argv)
    begun = time.monotonic()
    names = calls(torch.device(arguments.device))
    order = list(names)
    random.Random(0).shuffle(order)
    done = without = 0
    for name in order:
        if arguments.seconds is not None and time.monotonic() - begun > arguments.seconds:
            break
        try:
            without += not has_kernel(names[name])
        except (AssertionError, RuntimeError) as error:
            raise RuntimeError(f"{name}: {error}") from error
        done += 1
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    print(f"{done} of {len(order)} calls made, forward and backward, {without} without a kernel")
    return 0 if done > without else 1


if __name__ == "__main__":
    sys.exit(main())
