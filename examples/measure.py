"""Time and peak memory of several ways to compute the same thing, measured fairly.

Contenders take turns, in an order that rotates, so that a machine that slows down (heat, other
work) slows all of them; medians are compared. Memory is what PyTorch's allocators handed out: the
peak of live allocations above what was live before the call.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Timing(NamedTuple):
    """Seconds per call of one contender."""

    median: float
    samples: list[float]  # one per round


def overlap(a: Timing, b: Timing) -> bool:
    """Whether the middle halves of two series overlap: medians may then differ by chance."""
    (low_a, _, high_a), (low_b, _, high_b) = (
        statistics.quantiles(timing.samples, n=4, method="inclusive") for timing in (a, b)
    )
    return low_a <= high_b and low_b <= high_a


def interleaved(
    contenders: Mapping[str, Call],
    device: torch.device,
    *,
    rounds: int,
    seconds: float = math.inf,
    min_rounds: int = 3,
    min_sample: float = 0.02,
    tick: Call | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times the contenders in turn and returns the median of each.

    Args:
        contenders: what to call, by name.
        device: where they run; it is waited for around every sample.
        rounds: samples per contender.
        seconds: once this much time has passed no further round begins, except to reach
            ``min_rounds``.
        min_rounds: samples that a median is worth having of.
        min_sample: seconds a sample should last. Calls shorter than that are repeated, so that the
            clock and the wait for the device do not count for much.
        tick: called after each sample, for a progress bar.
        clock: seconds; for tests.
    """
    begun = clock()

    def sample(call: Call, times: int) -> float:
        synchronize(device)
        before = clock()
        for _ in range(times):
            call()
        synchronize(device)
        return (clock() - before) / times

    repeats = {}
    for name, call in contenders.items():
        call()  # the first call may allocate, choose an algorithm or compile
        once = sample(call, 1)
        repeats[name] = min(1000, math.ceil(min_sample / max(once, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for round_ in range(rounds):
        if round_ >= min_rounds and clock() - begun > seconds:
            break
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(sample(contenders[name], repeats[name]))
            if tick is not None:
                tick()
    return {name: Timing(statistics.median(times), times) for name, times in samples.items()}


def peak_of(changes: Iterable[tuple[int, int]]) -> int:
    """Peak of live bytes, from ``(time, bytes)`` events; bytes are negative where memory is freed.

    Memory that was live before the first event counts as zero, also when it is freed later.
    """
    live = peak = 0
    # Stable: events of one instant stay in the order in which they were recorded.
    for _, change in sorted(changes, key=lambda event: event[0]):
        live += change
        peak = max(peak, live)
    return peak


def peak_memory(call: Call, device: torch.device) -> int:
    """Bytes that ``call`` needs at its peak, above what is live before it.

    On CUDA the allocator keeps count. On the CPU the profiler records every allocation of PyTorch's
    allocator, and those are replayed. Scratch memory that a library allocates by itself (oneDNN,
    BLAS) is seen by neither.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del result
        return peak
    with (
        _silence_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record,
    ):
        result = call()
    del result
    events = record.profiler.kineto_results.events()
    return peak_of(
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
    )


@contextlib.contextmanager
def _silence_stderr() -> Iterator[None]:
    """Drops what C++ code writes to the error stream: some profilers report their start."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
