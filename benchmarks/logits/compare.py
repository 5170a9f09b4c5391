"""Measures one case: times in turns, peak memory, and how near the exponentials' time it comes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import measure
from ..contenders import COMPILED, EAGER, OURS
from ..runner import SAME_FUNCTION, relative_error
from ..workloads import DTYPES, memory_format
from .cases import CASES, Run

INFERENCE, STEP = "inference", "step"
#: Not a contender: the exponentials that a direction must evaluate, and nothing else.
EXPONENTIALS = "exponentials"
#: Elements, in float32: they stay in the inner caches of a CPU.
_BLOCK = 8192


class Comparison(NamedTuple):
    """One contender in one direction of a case. Times in seconds, memory in bytes.

    Attributes:
        case, size, growth, dtype, layout: see :class:`~benchmarks.logits.cases.Run`.
        direction: ``"inference"``: the forward without gradients, ``"step"``: forward and backward.
        contender: eager, torch.compile, msr_cuda, or what the exponentials alone take.
        seconds, q1_seconds, q3_seconds, samples: median and quartiles.
        times_ours: the median as a multiple of msr_cuda's.
        peak_bytes: live at most beyond the logits, the target and, in a step, the gradient.
        bytes_per_pixel: that, per pixel of the result.
        error: relative, in norm, against float64, of outputs and gradients; of a decision, the
            share of pixels that differ from float64's.
    """

    case: str
    size: str
    growth: int
    dtype: str
    layout: str
    direction: str
    contender: str
    seconds: float
    q1_seconds: float
    q3_seconds: float
    samples: int
    times_ours: float
    peak_bytes: int | None
    bytes_per_pixel: float | None
    error: float | None


@dataclass(frozen=True)
class Settings:
    """How to measure; ``clock`` as :class:`benchmarks.contenders.HostWatch` has it."""

    device: torch.device
    rounds: int = 9
    seconds: float = 20.0
    compile_seconds: float = 120.0
    against: tuple[str, ...] = (EAGER, COMPILED)
    clock: measure.Clock = time.perf_counter


Function = Callable[[Tensor], Tensor]


def compare(
    run: Run, settings: Settings, progress: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """All directions of a case, as rows of :class:`Comparison`.

    Raises:
        ArithmeticError: a contender computes something else.
    """
    case, device = CASES[run.case], settings.device
    torch.manual_seed(0)
    layout = memory_format(run.layout, run.size.rank)
    plain = torch.randn(run.size, device=device).to(DTYPES[run.dtype])
    plain = plain.contiguous(memory_format=layout)
    target = case.target(tuple(run.size), run.result).to(device)
    functions = _functions(run, target, settings)
    truth = _truth(run, plain, target)
    errors = {}
    for name, function in functions.items():
        progress(f"checking {name}")
        with measure.time_limit(settings.compile_seconds):
            errors[name] = _error(run, function, plain, truth)
        if not errors[name] <= SAME_FUNCTION:
            raise ArithmeticError(f"{run}: {name} is off by {errors[name]:.1e}")

    rows = []
    pixels = run.size.batch * math.prod(run.result)
    for direction in (INFERENCE, STEP) if case.trains else (INFERENCE,):
        calls = {name: _call(f, plain, direction) for name, f in functions.items()}
        count = case.exponentials[direction == STEP] * pixels * run.size.channels
        if count and device.type == "cpu":
            calls[EXPONENTIALS] = _exponentials(count)
        progress(f"timing {direction}")
        timings = measure.interleaved(
            calls, device, rounds=settings.rounds, seconds=settings.seconds, clock=settings.clock
        )
        progress(f"memory of {direction}")
        for name, timing in timings.items():
            peak = None
            if name != EXPONENTIALS:
                kept = plain.numel() * plain.itemsize if direction == STEP else 0
                peak = measure.peak_memory(calls[name], device) - kept
            rows.append(
                Comparison(
                    run.case, str(run.size), run.growth, run.dtype, run.layout, direction, name,
                    timing.median, *timing.quartiles, len(timing.samples),
                    timing.median / timings[OURS].median, peak,
                    None if peak is None else peak / pixels, errors.get(name),
                )._asdict()
            )  # fmt: skip
    return rows


def _functions(run: Run, target: Tensor, settings: Settings) -> dict[str, Function]:
    case, size = CASES[run.case], run.result
    torch._dynamo.reset()
    compiled = torch.compile(case.eager, dynamic=False)
    found: dict[str, Function] = {
        EAGER: lambda logits: case.eager(logits, target, size),
        COMPILED: lambda logits: compiled(logits, target, size),
        OURS: lambda logits: case.fused(logits, target, size, "kernel"),
    }
    return {name: f for name, f in found.items() if name == OURS or name in settings.against}


def _gradient(function: Function, plain: Tensor) -> tuple[Tensor, Tensor]:
    leaf = plain.detach().requires_grad_()
    loss = function(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def _truth(run: Run, plain: Tensor, target: Tensor) -> list[Tensor]:
    """The plain expression in float64: the loss and its gradient, or the decision."""
    case = CASES[run.case]
    if case.trains:
        return [*_gradient(lambda logits: case.eager(logits, target, run.result), plain.double())]
    # One image at a time: float64 takes memory.
    return [torch.cat([case.eager(x.double(), target, run.result) for x in plain.split(1)])]


def _error(run: Run, function: Function, plain: Tensor, truth: list[Tensor]) -> float:
    if not CASES[run.case].trains:
        with torch.no_grad():
            return float((function(plain) != truth[0]).double().mean())
    return relative_error(list(_gradient(function, plain)), truth)


def _call(function: Function, plain: Tensor, direction: str) -> measure.Call:
    def inference() -> Tensor:
        with torch.no_grad():
            return function(plain)

    return inference if direction == INFERENCE else lambda: _gradient(function, plain)


def _exponentials(count: int) -> measure.Call:
    """So many, of a block that stays in the cache, by PyTorch's own vector loop."""
    block = torch.linspace(-10, 0, _BLOCK)
    result = torch.empty_like(block)

    def call() -> None:
        for _ in range(-(-count // _BLOCK)):
            torch.exp(block, out=result)

    return call
