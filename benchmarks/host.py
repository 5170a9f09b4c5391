"""Host time of a call: maps so tiny that nothing is computed, only called.

The chain of PyTorch functions that people write, compiled by Inductor, and our operators at every
level: the module, the public function, and the operators of the dispatcher that it ends in, called
directly (without checks, and without autograd, whose work its backward's operators do not need).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import msr_cuda

from . import contenders, measure
from .contenders import COMPILED, EAGER, Data
from .text import format_seconds
from .workloads import TINY, WORKLOADS, Cell

MODULE, FUNCTION, OPERATOR = ("nn module", "public function", "raw operators")
WAYS = (EAGER, COMPILED, MODULE, FUNCTION, OPERATOR)
NO_GRAD, FORWARD, STEP = ("no grad", "with grad", "forward+backward")
#: Forward without gradients; the forward that a backward can follow; both.
KINDS = (NO_GRAD, FORWARD, STEP)

Call = Callable[[], object]


def _sum_module() -> contenders.Function:
    module = msr_cuda.nn.ResampleSum(mode="bilinear", activation="relu")
    return lambda maps: [module(maps)]


def _cat_module() -> contenders.Function:
    module = msr_cuda.nn.ResampleCat()
    return lambda maps: [module(maps, maps[1].shape[2:])]


#: Workloads, and their twins in msr_cuda.nn.
MODULES = {"bilinear-add-relu": _sum_module, "unet-cat-nearest": _cat_module}


class HostTime(NamedTuple):
    """Seconds that the caller waits, per call."""

    workload: str
    size: str
    way: str
    kind: str
    median_seconds: float
    q1_seconds: float
    q3_seconds: float
    samples: int


class _Recorder(TorchDispatchMode):
    """Keeps the calls of our operators, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == "msr_cuda":
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def raw_calls(call: Call) -> Call:
    """The operators of ours that ``call`` ends in, with the same arguments and nothing around.

    Raises:
        RuntimeError: there were none.
    """
    with _Recorder() as record:
        call()
    if not record.calls:
        raise RuntimeError("no operator of msr_cuda was called")
    calls = record.calls

    def again() -> None:
        with torch.no_grad():
            for function, args, kwargs in calls:
                function(*args, **kwargs)

    return again


def ways(name: str) -> dict[str, contenders.Function]:
    """How a workload is called; the raw operators follow from the public function."""
    workload = WORKLOADS[name]
    return {
        EAGER: workload.eager,
        COMPILED: torch.compile(workload.eager, dynamic=False),
        MODULE: MODULES[name](),
        FUNCTION: lambda maps: workload.fused(maps, "auto"),
    }


def calls_of(function: contenders.Function, data: Data) -> dict[str, Call]:
    """One for each of :data:`KINDS`."""
    maps, leaves, grads = data.plain[0], data.leaves[0], data.grads[0]

    def no_grad() -> object:
        with torch.no_grad():
            return function(maps)

    def step() -> object:
        return contenders.gradients(function(leaves), leaves, grads)

    return {NO_GRAD: no_grad, FORWARD: lambda: function(leaves), STEP: step}


def host_times(
    device: torch.device,
    *,
    rounds: int = 15,
    min_sample: float = 0.02,
    compile_seconds: float = 120.0,
    only: Sequence[str] = WAYS,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[list[HostTime], list[str]]:
    """The times, and what was left out and why.

    Args:
        device: where the maps lie; what was launched is awaited once per sample, not per call.
        rounds, min_sample: as :func:`benchmarks.measure.interleaved`.
        compile_seconds: that torch.compile may take.
        only: some of :data:`WAYS`.
        progress: is told what is being done.
    """
    found: list[HostTime] = []
    left_out: list[str] = []
    for name in MODULES:
        cell = Cell(name, TINY[WORKLOADS[name].rank], "float32", "NCHW")
        data = Data.make(cell, device)
        torch._dynamo.reset()
        by_way = {
            way: calls_of(function, data)
            for way, function in ways(name).items()
            if way in only or (way == FUNCTION and OPERATOR in only)
        }
        if COMPILED in by_way:
            progress(f"host time of {name}: compiling")
            try:
                with measure.time_limit(compile_seconds):
                    for call in by_way[COMPILED].values():
                        call()
            except Exception as problem:
                left_out.append(f"host time, {COMPILED} of {name}: {measure.first_line(problem)}")
                del by_way[COMPILED]
        if OPERATOR in only:
            function = by_way[FUNCTION]
            by_way[OPERATOR] = {kind: raw_calls(call) for kind, call in function.items()}
        for kind in KINDS:
            progress(f"host time of {name}: {kind}")
            timings = measure.interleaved(
                {way: calls[kind] for way, calls in by_way.items() if way in only},
                device, rounds=rounds, seconds=8.0, min_sample=min_sample,
            )  # fmt: skip
            found += [
                HostTime(name, str(cell.size), way, kind, t.median, *t.quartiles, len(t.samples))
                for way, t in timings.items()
            ]
    return found, left_out


def host_table(found: Sequence[HostTime]) -> str:
    """Rows of ways, columns of kinds; in microseconds."""
    lines = []
    for name in dict.fromkeys(row.workload for row in found):
        own = [row for row in found if row.workload == name]
        title = f"{name} {own[0].size}"
        lines.append(f"  {title:<36}" + "".join(f"{kind:>18}" for kind in KINDS))
        for way in dict.fromkeys(row.way for row in own):
            by_kind = {row.kind: row for row in own if row.way == way}
            texts = (format_seconds(by_kind[kind].median_seconds) for kind in KINDS)
            lines.append(f"    {way:<34}" + "".join(f"{text:>18}" for text in texts))
    return "\n".join(lines)


def to_csv(found: Sequence[HostTime]) -> str:
    """The rows as text, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HostTime._fields)
    writer.writerows(found)
    return text.getvalue()
