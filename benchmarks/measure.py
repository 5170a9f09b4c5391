"""Time and peak memory of several ways to compute the same thing, measured fairly.

Contenders take turns, in an order that rotates, so that a machine that slows down (heat, other
work) slows all of them; medians are compared. Memory is what PyTorch's allocators handed out: the
peak of live allocations above what was live before the call.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]
Clock = Callable[[], float]
Sample = TypeVar("Sample")


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender, one sample per round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """What is compared."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The middle half of the samples lies between these."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """The width of the middle half, as a share of the median."""
        low, high = self.quartiles
        return (high - low) / self.median if self.median else 0.0


def overlap(a: Timing, b: Timing) -> bool:
    """Whether the middle halves of two series overlap: medians may then differ by chance."""
    (low_a, high_a), (low_b, high_b) = a.quartiles, b.quartiles
    return low_a <= high_b and low_b <= high_a


def take_turns(
    samplers: Mapping[str, Callable[[], Sample]],
    *,
    rounds: int,
    seconds: float = math.inf,
    min_rounds: int = 3,
    begun: float | None = None,
    tick: Call | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, list[Sample]]:
    """Takes samples of the contenders in turn: one of each in every round.

    Args:
        samplers: what takes one sample, by the contender's name.
        rounds: samples of each.
        seconds: once this much time has passed since ``begun`` no further round begins, except to
            reach ``min_rounds``.
        min_rounds: samples that a median is worth having of.
        begun: when it began, by ``clock``; None: now.
        tick: called after each sample, for a progress bar.
        clock: seconds; for tests.
    """
    if not samplers:
        return {}
    begun = clock() if begun is None else begun
    samples: dict[str, list[Sample]] = {name: [] for name in samplers}
    names = list(samplers)
    for round_ in range(rounds):
        if round_ >= min_rounds and clock() - begun > seconds:
            break
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(samplers[name]())
            if tick is not None:
                tick()
    return samples


def repeats_for(seconds_per_call: float, min_sample: float) -> int:
    """Calls that a sample needs, so that the clock and waiting for the device count for little."""
    return min(1000, math.ceil(min_sample / max(seconds_per_call, 1e-9)))


def interleaved(
    contenders: Mapping[str, Call],
    device: torch.device,
    *,
    rounds: int,
    seconds: float = math.inf,
    min_rounds: int = 3,
    min_sample: float = 0.02,
    tick: Call | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Times calls in turn.

    Args:
        contenders: what to call, by name.
        device: where they run; it is waited for around every sample.
        min_sample: seconds a sample should last; shorter calls are repeated.
        rounds, seconds, min_rounds, tick, clock: as :func:`take_turns`.
    """
    begun = clock()

    def sample(call: Call, times: int) -> float:
        synchronize(device)
        before = clock()
        for _ in range(times):
            call()
        synchronize(device)
        return (clock() - before) / times

    def sampler(call: Call) -> Callable[[], float]:
        call()  # the first call may allocate, choose an algorithm or compile
        times = repeats_for(sample(call, 1), min_sample)
        return lambda: sample(call, times)

    samplers = {name: sampler(call) for name, call in contenders.items()}
    samples = take_turns(
        samplers, rounds=rounds, seconds=seconds, min_rounds=min_rounds, begun=begun, tick=tick,
        clock=clock,
    )  # fmt: skip
    return {name: Timing(tuple(times)) for name, times in samples.items()}


class _OutOfTime(BaseException):
    """Not an Exception: compilers take those for a failed attempt, and go on."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError from the block once the time is up, where the platform can."""
    possible = hasattr(signal, "setitimer")  # not on Windows
    if not possible or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    except _OutOfTime:
        raise TimeoutError(f"not done after {seconds:.0f} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prepare_compiler(device: torch.device) -> None:
    """Keeps torch.compile from disturbing what is measured beside it."""
    # What it logs about itself, an error says in one line.
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    if device.type == "cpu":
        # In this process: workers would go on when a time limit is up.
        torch._inductor.config.compile_threads = 1


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message: compilers' are pages long."""
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()}".removesuffix(": ")


# ---------------------------------------------------------------------------- memory


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
        silence_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record,
    ):
        result = call()
    del result
    events = record.profiler.kineto_results.events()
    return peak_of(
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    )


@contextlib.contextmanager
def silence_stderr() -> Iterator[None]:
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


def keep_freed_memory() -> bool:
    """Tells the C library to keep memory that was freed; whether it could be told.

    By default glibc gives large blocks back to the system, and every map that is written costs the
    page faults of fresh memory. Those can take longer than the arithmetic, and how many there are
    depends on the sizes of what was freed before. Training frameworks run with allocators that
    keep memory for that reason.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    # No block of its own mapping, and never a smaller heap (-1 is the largest size_t).
    return bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, -1))


def prepare_allocator(device: torch.device, keep: bool) -> str:
    """Sets it up, and says how it is.

    Args:
        device: whose memory is allocated.
        keep: on the CPU: tell the C library to keep what was freed.
    """
    if device.type == "cuda":
        return "PyTorch's caching allocator"
    if keep and keep_freed_memory():
        return "freed memory is kept (mallopt: no mmap, no trim)"
    return "the C library's default, fresh pages for large maps"


# ---------------------------------------------------------------------------- bandwidth


def copy_bandwidth(
    device: torch.device, size: int, rounds: int = 5, clock: Clock = time.perf_counter
) -> float:
    """Bytes per second, read and written, of copying ``size`` bytes: what memory can do here."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    copy = {"copy": lambda: target.copy_(source)}
    return 2 * size / interleaved(copy, device, rounds=rounds, clock=clock)["copy"].median
