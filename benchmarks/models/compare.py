"""Measures one model, swapped and not."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import msr_cuda

from .. import measure
from ..measure import Timing
from ..runner import relative_error
from ..workloads import memory_format
from .zoo import Subject, tensors_of

PLAIN, SWAPPED = "plain", "swapped"
INFERENCE, STEP = "inference", "step"
#: In full precision; "amp": under autocast, in float16 on CUDA and bfloat16 on the CPU.
PRECISIONS = ("float32", "amp")
#: How far outputs of the swapped model may be from the plain one's, relative, in norm: rounding in
#: another order, grown by all the layers behind it.
SAME_MODEL = {"float32": 1e-3, "amp": 0.05}


class Comparison(NamedTuple):
    """One direction of one model. Times in seconds, memory in bytes."""

    model: str
    size: str
    precision: str
    layout: str
    direction: str
    sites: int
    remark: str
    plain_seconds: float
    plain_q1_seconds: float
    plain_q3_seconds: float
    swapped_seconds: float
    swapped_q1_seconds: float
    swapped_q3_seconds: float
    samples: int
    speedup: float
    certain: bool
    plain_share: float
    swapped_share: float
    plain_peak_bytes: int
    swapped_peak_bytes: int
    error: float


@dataclass(frozen=True)
class Settings:
    """How to measure; ``clock`` as :class:`benchmarks.contenders.HostWatch` has it."""

    device: torch.device
    rounds: int = 11
    seconds: float = 15.0
    clock: measure.Clock = time.perf_counter


Calls = dict[str, Callable[[], object]]


def compare(
    subject: Subject, precision: str, layout: str, settings: Settings,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Comparison]:  # fmt: skip
    """Both directions of a model.

    Raises:
        ImportError: its package is missing, or does not work here.
        ArithmeticError: the swapped model computes something else.
    """
    device = settings.device
    progress("building")
    torch.manual_seed(0)
    plain = subject.build().to(device)
    x = torch.randn(subject.sizes[device.type], device=device)
    if layout == "channels_last":
        form = memory_format(layout, x.dim() - 2)
        plain, x = plain.to(memory_format=form), x.contiguous(memory_format=form)
    swapped = copy.deepcopy(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is fused, the row says
        report = msr_cuda.fuse(swapped)
    models = {PLAIN: plain, SWAPPED: swapped}
    error = _check(subject, models, x, precision)

    found = []
    for direction, make in ((INFERENCE, _inference), (STEP, _step)):
        calls = {name: make(subject, model, x, precision) for name, model in models.items()}
        progress(f"timing {direction}")
        timings = measure.interleaved(
            calls, device, rounds=settings.rounds, seconds=settings.seconds, min_sample=0.05,
            clock=settings.clock,
        )  # fmt: skip
        progress(f"share and memory of {direction}")
        shares = {name: resampling_share(call, device) for name, call in calls.items()}
        peaks = {name: measure.peak_memory(call, device) for name, call in calls.items()}
        before, after = timings[PLAIN], timings[SWAPPED]
        found.append(
            Comparison(
                subject.name, "x".join(map(str, x.shape)), precision, layout, direction,
                len(report.swapped), _remark(report), *_three(before), *_three(after),
                len(before.samples), before.median / after.median,
                not measure.overlap(before, after), shares[PLAIN], shares[SWAPPED],
                peaks[PLAIN], peaks[SWAPPED], error,
            )
        )  # fmt: skip
    return found


def _three(timing: Timing) -> tuple[float, float, float]:
    return timing.median, *timing.quartiles


def _remark(report: msr_cuda.swap.Report) -> str:
    """Which twins there are, and what was left alone."""
    if not report.swapped and not report.skipped:
        return "no site is fused: nothing here is known to msr_cuda.fuse"
    twins = [str(site.twin).rpartition(".")[2] for site in report.swapped]
    parts = [f"{twins.count(twin)} {twin}" for twin in dict.fromkeys(twins)]
    if report.skipped:
        parts.append(f"{len(report.skipped)} left alone")
    return ", ".join(parts)


def _precision(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if precision == "float32":
        return contextlib.nullcontext()
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, dtype)


def _check(subject: Subject, models: dict[str, nn.Module], x: Tensor, precision: str) -> float:
    """The swapped model's relative difference."""
    outputs = {}
    for name, model in models.items():
        # In training mode: a detector's boxes, chosen by thresholds, would differ by whole boxes.
        torch.manual_seed(0)  # the same dropout in both
        with torch.no_grad(), _precision(precision, x.device):
            outputs[name] = [y.double() for y in tensors_of(model.train()(x))]
    error = relative_error(outputs[SWAPPED], outputs[PLAIN])
    if not error <= SAME_MODEL[precision]:
        raise ArithmeticError(
            f"{subject.name}: the swapped model's outputs differ by {error:.1e}, allowed "
            f"{SAME_MODEL[precision]:.0e}"
        )
    return error


def _inference(
    subject: Subject, model: nn.Module, x: Tensor, precision: str
) -> Callable[[], object]:
    def call() -> object:
        model.eval()
        with torch.no_grad(), _precision(precision, x.device):
            return model(x)

    return call


def _step(subject: Subject, model: nn.Module, x: Tensor, precision: str) -> Callable[[], object]:
    # So small a rate that the weights, and with them the values, stay as they are.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8, momentum=0.9)

    def call() -> object:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with _precision(precision, x.device):
            loss = subject.train(model, x)
        loss.backward()
        optimizer.step()
        return loss

    return call


#: Operators that do nothing but resample: those of PyTorch, of which the plain model also needs the
#: add, cat or relu beside them, and all of ours, which have that inside.
_RESAMPLING = ("aten::upsample_", "aten::_upsample_", "msr_cuda::")


def resampling_share(call: Callable[[], object], device: torch.device) -> float:
    """The share of a call's time that operators of resampling take themselves.

    Of the device's time on CUDA, of the time of all operators on the CPU.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    call()
    with measure.silence_stderr(), profile(activities=activities, acc_events=True) as record:
        call()
        measure.synchronize(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = record.key_averages()
    total = sum(getattr(event, key) for event in averages)
    own = sum(getattr(event, key) for event in averages if event.key.startswith(_RESAMPLING))
    return own / total if total else 0.0
