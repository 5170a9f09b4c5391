"""Runs one cell: checks the contenders against each other, then measures them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from msr_cuda.testing import TOLERANCES

from . import contenders, measure
from .contenders import (
    COMPILED,
    CONTENDERS,
    DIRECTIONS,
    EAGER,
    OURS,
    OURS_FLOAT32,
    OURS_ONE_THREAD,
    TUNED,
    Data,
    Function,
    Reading,
    Samplers,
    Watch,
)
from .measure import Sample, Timing
from .workloads import DTYPES, WORKLOADS, Cell

#: Largest relative error (in norm) at which a peer still computes the same function: rounding in
#: half precision at each step, also in atomics, stays below it; another mode or alignment does not.
SAME_FUNCTION = 0.05

DIRECT, GRAPH = "direct", "cuda graph"


@dataclass(frozen=True)
class Settings:
    """How to measure. Times in seconds."""

    device: torch.device
    watch: Watch
    rounds: int
    against: tuple[str, ...] = CONTENDERS
    min_sample: float = 0.02
    seconds_per_phase: float = 8.0
    compile_seconds: float = 120.0


@dataclass(frozen=True)
class Measurement:
    """One contender in one direction of one cell.

    Attributes:
        cell: what was computed.
        direction: one of :data:`contenders.DIRECTIONS`.
        contender: one of :data:`contenders.CONTENDERS`.
        launch: ``"direct"``, or ``"cuda graph"`` for replays.
        timing: what contenders are compared by.
        host: the host's time: see the watches.
        peak_bytes: live at most above the inputs; of the backward, too, in the whole step. None
            for replays, whose memory is the graph's.
        minimum_bytes: the fewest that the direction can move.
        error: relative error, in norm, of the outputs against float64; of the backward: of the
            gradients, the worst of them.
    """

    cell: Cell
    direction: str
    contender: str
    launch: str
    timing: Timing
    host: Timing
    peak_bytes: int | None
    minimum_bytes: int
    error: float

    @property
    def bandwidth(self) -> float:
        """Bytes per second, if no more than the fewest had been moved."""
        return self.minimum_bytes / self.timing.median


class Errors(NamedTuple):
    """Relative errors of a contender, in norm."""

    outputs: float
    gradients: float

    def of(self, direction: str) -> float:
        """Of what a direction gives."""
        return {"backward": self.gradients, "step": max(self)}.get(direction, self.outputs)


@dataclass
class Outcome:
    """What a cell gave.

    Attributes:
        cell: what was asked for.
        measurements: what was measured.
        left_out: peers that cannot be measured, and why.
        wrong: the same of msr_cuda.
    """

    cell: Cell
    measurements: list[Measurement] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def report(self, contender: str, problem: str) -> None:
        """Writes down that a contender fails."""
        kept = self.wrong if contender == OURS else self.left_out
        kept.append(f"{contender} of {self.cell}: {problem}")


def relative_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The worst ``|found - truth| / |truth|`` (Euclidean norms); infinite where one is NaN."""
    worst = 0.0
    for ours, true in zip(found, truth, strict=True):
        error = float((ours.double() - true).norm() / true.norm())
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


class Truth:
    """The plain expression of a cell in float64, on its first set of data."""

    def __init__(self, cell: Cell, data: Data) -> None:
        self._leaves = [x.double().requires_grad_() for x in data.plain[0]]
        self._outputs = WORKLOADS[cell.workload].eager(self._leaves)
        self.outputs = [output.detach() for output in self._outputs]

    def errors_of(self, function: Function, data: Data) -> Errors:
        """Outputs with and without gradients, and gradients, against the truth.

        ``data`` has the values of the truth's, in any dtype. Gradients are compared where both
        outputs have one sign. A relu whose argument is zero but for rounding passes the gradient in
        one of them and not in the other, and both are right.
        """
        plain, leaves = data.plain[0], data.leaves[0]
        with torch.no_grad():
            inference = function(plain)
        outputs = function(leaves)
        grads = [
            torch.where((found > 0) == (true > 0), grad, 0)
            for found, true, grad in zip(outputs, self.outputs, data.grads[0], strict=True)
        ]
        cast = [grad.to(output.dtype) for grad, output in zip(grads, outputs, strict=True)]
        found = contenders.gradients(outputs, leaves, cast)
        in_double = [grad.double() for grad in grads]
        expected = torch.autograd.grad(self._outputs, self._leaves, in_double, retain_graph=True)
        return Errors(
            max(
                relative_error(inference, self.outputs),
                relative_error([output.detach() for output in outputs], self.outputs),
            ),
            relative_error(found, expected),
        )


def run_cell(
    cell: Cell, settings: Settings, progress: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Checks the contenders of a cell, then measures those that are right."""
    outcome = Outcome(cell)
    workload, device, dtype = WORKLOADS[cell.workload], settings.device, DTYPES[cell.dtype]
    moved = workload.minimum_bytes(cell.size, dtype, "inference")
    data = Data.make(cell, device, contenders.sets_against_cache(moved, device))
    data_of = dict.fromkeys(CONTENDERS, data)
    data_of[OURS_FLOAT32] = data.in_float32()
    usable, errors = check(outcome, data_of, settings, progress)

    peaks = {}
    for name, function in usable.items():
        progress(f"memory of {name}")
        peaks[name] = _peaks(function, data_of[name], device)
    launches = {DIRECT: contenders.direct}
    if device.type == "cuda" and moved < torch.cuda.get_device_properties(device).L2_cache_size:
        launches[GRAPH] = contenders.graphed
    for launch, make in launches.items():
        samplers: dict[str, Samplers] = {}
        for name, function in usable.items():
            progress(f"warming up {name}, {launch}")
            try:
                taken = make(function, data_of[name], settings.watch, settings.min_sample)
                samplers[name] = taken.with_threads(1) if name == OURS_ONE_THREAD else taken
            except Exception as problem:
                outcome.report(name, f"{launch}: {measure.first_line(problem)}")
        timings = _time(samplers, settings, progress)
        outcome.measurements += [
            Measurement(
                cell,
                direction,
                name,
                launch,
                *timings[name, direction],
                peaks[name][direction] if launch == DIRECT else None,
                workload.minimum_bytes(
                    cell.size, torch.float32 if name == OURS_FLOAT32 else dtype, direction
                ),
                errors[name].of(direction),
            )
            for name in samplers
            for direction in DIRECTIONS
        ]
    return outcome


def check(
    outcome: Outcome,
    data_of: Mapping[str, Data],
    settings: Settings,
    progress: Callable[[str], None],
) -> tuple[dict[str, Function], dict[str, Errors]]:
    """The contenders whose results are right, and their errors; the others are reported."""
    cell = outcome.cell
    truth = Truth(cell, data_of[OURS])
    usable: dict[str, Function] = {}
    errors: dict[str, Errors] = {}
    for name, function in contenders.functions(cell, settings.device).items():
        if name != OURS and name not in settings.against:
            continue
        progress(f"checking {name}")
        limited = measure.time_limit(settings.compile_seconds)
        try:
            with limited if name in (COMPILED, TUNED) else contextlib.nullcontext():
                errors[name] = truth.errors_of(function, data_of[name])
        except Exception as problem:
            outcome.report(name, measure.first_line(problem))
            continue
        allowed = Errors(SAME_FUNCTION, SAME_FUNCTION)
        if name in (OURS, OURS_ONE_THREAD):
            allowed = _allowed(DTYPES[cell.dtype], errors.get(EAGER))
        if all(found <= most for found, most in zip(errors[name], allowed, strict=True)):
            usable[name] = function
        else:
            outputs, gradients = errors[name]
            outcome.report(
                name,
                f"relative errors of outputs {outputs:.1e}, allowed {allowed.outputs:.1e}, and of "
                f"gradients {gradients:.1e}, allowed {allowed.gradients:.1e}",
            )
    return usable, errors


def _allowed(dtype: torch.dtype, eager: Errors | None) -> Errors:
    """The errors that are right for msr_cuda."""
    bound = TOLERANCES[dtype][0]
    if eager is None or dtype.itemsize == 2:  # there eager rounds more often
        return Errors(bound, bound)
    # Sums that nearly cancel, as those for the gradients of a few weights can, lose digits in
    # whatever order they are added up: then eager's are lost, too.
    return Errors(max(bound, eager.outputs), max(bound, eager.gradients))


def _time(
    samplers: dict[str, Samplers], settings: Settings, progress: Callable[[str], None]
) -> dict[tuple[str, str], tuple[Timing, Timing]]:
    """Both clocks' timings by contender and direction."""

    def turns(kind: Mapping[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
        return measure.take_turns(kind, rounds=settings.rounds, seconds=settings.seconds_per_phase)

    found = {}
    progress("timing inference")
    for name, readings in turns({name: s.inference for name, s in samplers.items()}).items():
        found[name, "inference"] = _timings(readings)
    progress("timing forward and backward")
    for name, pairs in turns({name: s.training for name, s in samplers.items()}).items():
        forward, backward = zip(*pairs, strict=True)
        both = [Reading(*map(sum, zip(*pair, strict=True))) for pair in pairs]
        for direction, taken in zip(DIRECTIONS[1:], (forward, backward, both), strict=True):
            found[name, direction] = _timings(taken)
    return found


def _timings(readings: Iterable[Reading]) -> tuple[Timing, Timing]:
    seconds, host = zip(*readings, strict=True)
    return Timing(seconds), Timing(host)


def _peaks(function: Function, data: Data, device: torch.device) -> dict[str, int]:
    """Peak memory by direction."""
    plain, leaves = data.plain[0], data.leaves[0]
    with torch.no_grad():
        grads = data.grads_like(function(plain))[0]

    def inference() -> list[Tensor]:
        with torch.no_grad():
            return function(plain)

    def whole_step() -> object:
        outputs = function(leaves)
        return outputs, contenders.gradients(outputs, leaves, grads)

    peaks = {
        "inference": measure.peak_memory(inference, device),
        "forward": measure.peak_memory(lambda: function(leaves), device),
        "step": measure.peak_memory(whole_step, device),
    }
    return {**peaks, "backward": peaks["step"]}
