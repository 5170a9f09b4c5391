"""What times and memory are measured with, on clocks and graphs of the tests' own."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import contenders, measure, text
from benchmarks.contenders import Data, HostWatch, Reading
from benchmarks.measure import Timing

CPU = torch.device("cpu")
MB = 1_000_000


# ---------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("changes", "peak"),
    [
        ([], 0),
        ([(0, 100), (1, 50), (2, -100), (3, 70)], 150),
        ([(0, 100), (1, -100), (2, 60), (3, 60), (4, -60), (5, -60)], 120),
        ([(3, 70), (1, 50), (2, -100), (0, 100)], 150),  # by time, not as listed
        ([(5, -40), (5, 60), (5, 30)], 50),  # one instant: as listed
        ([(0, -500), (1, 200), (2, 100)], 0),  # never above what was live before
    ],
)
def test_peak_of_events(changes: list[tuple[int, int]], peak: int) -> None:
    assert measure.peak_of(changes) == peak


def test_peak_memory_of_a_known_pattern() -> None:
    def pattern() -> Tensor:
        a = torch.empty(1 * MB, dtype=torch.uint8)
        b = torch.empty(2 * MB, dtype=torch.uint8)
        del a
        c = torch.empty(4 * MB, dtype=torch.uint8)  # the peak: b and c
        del b
        return torch.cat([c[:MB], c[:MB]])  # c and 2 MB

    assert measure.peak_memory(pattern, CPU) == 6 * MB


def test_peak_memory_sees_what_the_backward_frees_and_needs() -> None:
    x = torch.ones(MB // 4, requires_grad=True)

    def forward() -> Tensor:
        with torch.no_grad():
            return x.exp().exp()

    def both() -> None:
        x.grad = None
        x.exp().exp().sum().backward()

    assert measure.peak_memory(forward, CPU) == 2 * MB  # the input of the second, and its result
    assert 3 * MB <= measure.peak_memory(both, CPU) < 4.1 * MB


def test_peak_memory_leaves_the_error_stream_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="inside"):
        measure.peak_memory(lambda: _raise(RuntimeError("inside")), CPU)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def _raise(error: Exception) -> None:
    raise error


# ---------------------------------------------------------------------------- time


class FakeClock:
    """Time that passes only when a contender spends it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contender(self, name: str, durations: list[float]) -> Callable[[], None]:
        """Takes these seconds, one call after the other, then the last for ever."""
        left = list(durations)

        def call() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_interleaved_takes_medians_and_turns() -> None:
    clock = FakeClock()
    # The first two calls of each, to warm up and to learn how long one takes, do not count.
    contenders = {
        "a": clock.contender("a", [9.0, 1.0, 1.0, 5.0, 2.0]),
        "b": clock.contender("b", [9.0, 3.0, 3.0, 4.0, 8.0]),
    }
    ticks = []
    result = measure.interleaved(
        contenders, CPU, rounds=3, clock=clock, tick=lambda: ticks.append(1)
    )
    assert result["a"] == Timing((1.0, 5.0, 2.0))
    assert result["a"].median == 2.0
    assert result["b"].median == 4.0
    assert "".join(clock.calls) == "aabb" + "ab" + "ba" + "ab"
    assert len(ticks) == 6


def test_interleaved_repeats_short_calls_and_reports_one() -> None:
    clock = FakeClock()
    contenders = {
        "short": clock.contender("short", [0.004]),
        "long": clock.contender("long", [1.0]),
    }
    result = measure.interleaved(contenders, CPU, rounds=2, min_sample=0.02, clock=clock)
    assert result["short"].median == pytest.approx(0.004)
    assert clock.calls.count("short") == 2 + 2 * 5
    assert clock.calls.count("long") == 2 + 2


def test_interleaved_stops_when_the_time_is_up_but_not_before_the_least_rounds() -> None:
    clock = FakeClock()
    contenders = {"a": clock.contender("a", [1.0])}
    result = measure.interleaved(contenders, CPU, rounds=50, seconds=7.5, clock=clock)
    assert len(result["a"].samples) == 6  # after two seconds of warming up
    result = measure.interleaved(contenders, CPU, rounds=50, seconds=0, min_rounds=4, clock=clock)
    assert len(result["a"].samples) == 4


def test_overlap_of_samples() -> None:
    slow, mixed = Timing((4.0, 5.0, 6.0)), Timing((1.0, 1.0, 9.0))
    assert not measure.overlap(slow, Timing((1.0, 2.0, 3.0)))
    assert measure.overlap(slow, mixed)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (2.5, "2.50 s"),
        (123.4, "123 s"),
        (1234.0, "1234 s"),
        (0.0125, "12.5 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (3.21e-5, "32.1 us"),
    ],
)
def test_times_are_told_with_a_unit(seconds: float, expected: str) -> None:
    assert text.format_seconds(seconds) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="signals that interrupt need POSIX")
def test_a_compiler_that_takes_too_long_is_stopped() -> None:
    def busy() -> None:
        while True:
            with contextlib.suppress(Exception):  # as compilers do
                while True:
                    pass

    with pytest.raises(TimeoutError, match="not done after"), measure.time_limit(0.05):
        busy()
    with measure.time_limit(0.05):
        pass
    time.sleep(0.1)  # it would be raised here


def test_spread_is_that_of_the_middle_half() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert timing.spread == pytest.approx(2 / 3)
    assert Timing((5.0,)).quartiles == (5.0, 5.0)


def test_turns_of_nobody() -> None:
    assert measure.take_turns({}, rounds=3) == {}


def test_bandwidth_counts_both_ways() -> None:
    assert measure.copy_bandwidth(CPU, 1 * MB, rounds=1) > 1e6


# ---------------------------------------------------------------------------- samples


class FakeWatch:
    """A clock that only the functions under test move."""

    clock = host_clock = "fake"

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        return self.now

    def settle(self) -> None:
        pass

    def between(self, first: float, last: float) -> Reading:
        return Reading(last - first, 2 * (last - first))


class Slow(torch.autograd.Function):
    """Takes 3 seconds forward and 7 backward, and writes down which set it was given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, watch: FakeWatch, log: list[str]) -> Tensor:
        watch.now += 3.0
        log.append(f"f{int(x[0])}")
        ctx.watch, ctx.log, ctx.number = watch, log, int(x[0])
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.watch.now += 7.0
        ctx.log.append(f"b{ctx.number}")
        return grad, None, None


@pytest.mark.parametrize(
    ("sets", "order"),
    [
        (1, ["f0", "b0"] * 3),
        (2, ["f0", "f1", "b0", "b1", "f0", "b0"]),
        (8, ["f0", "f1", "f2", "b0", "b1", "b2"]),
    ],
)
def test_samples_are_means_over_rotating_data(sets: int, order: list[str]) -> None:
    watch, log = FakeWatch(), []
    maps = [[torch.full((4,), float(i))] for i in range(sets)]
    leaves = [[x.clone().requires_grad_() for x in set_] for set_ in maps]
    data = Data(maps, leaves, [[torch.ones(4)] for _ in maps])
    samplers = contenders.direct(
        lambda inputs: [Slow.apply(inputs[0], watch, log)], data, watch, min_sample=55.0
    )
    log.clear()
    # A step takes 20 s by the host's clock: three of them are enough; a forward takes 6 s.
    assert samplers.training() == (Reading(3.0, 6.0), Reading(7.0, 14.0))
    assert log == order
    log.clear()
    assert samplers.inference() == Reading(3.0, 6.0)
    assert log == [f"f{i % sets}" for i in range(10)]


class FakeGraph:
    """Replays take the time that recording took."""

    def __init__(self, watch: FakeWatch) -> None:
        self.watch, self.seconds = watch, 0.0

    def pool(self) -> str:
        return "pool"

    def replay(self) -> None:
        self.watch.now += self.seconds

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        begun = self.watch.now
        yield
        self.seconds = self.watch.now - begun


def test_a_cold_call_does_not_tell_how_many_make_a_sample() -> None:
    asked: list[int] = []

    def seconds_of(times: int) -> float:
        asked.append(times)
        return {1: 50.0, 2: 5.0, 3: 1.0}[len(asked)]

    assert contenders._calls_per_sample(seconds_of, min_sample=40.0) == 40
    assert asked == [1, 1, 2]


def test_graphs_are_replayed_and_told_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, pools = FakeWatch(), []

    def capture(graph: FakeGraph, pool: str | None = None) -> AbstractContextManager[None]:
        pools.append(pool)
        return graph.record()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "Stream": lambda: stream, "current_stream": lambda: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": lambda: FakeGraph(watch), "graph": capture,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    maps = [[torch.full((4,), float(i))] for i in range(3)]
    leaves = [[x.clone().requires_grad_() for x in set_] for set_ in maps]
    data = Data(maps, leaves, [[torch.ones(4)] for _ in maps])
    log: list[str] = []
    samplers = contenders.graphed(
        lambda inputs: [Slow.apply(inputs[0], watch, log)], data, watch, min_sample=100.0
    )
    calls = len(log)
    assert samplers.inference() == pytest.approx((3.0, 6.0))
    assert samplers.training() == (pytest.approx((3.0, 6.0)), pytest.approx((7.0, 14.0)))
    assert len(log) == calls  # replays call nothing
    assert pools == [None, None, "pool"]


def test_on_the_cpu_data_stays_where_it_is() -> None:
    assert contenders.sets_against_cache(1, CPU) == 1


def test_one_thread_is_compared_by_its_own_time() -> None:
    watch = HostWatch(threads=1)
    first = watch.mark()
    time.sleep(0.05)
    reading = watch.between(first, watch.mark())
    assert reading.host >= 0.05 > reading.seconds
    assert "thread" in watch.clock
    many = HostWatch(threads=2)
    assert many.clock == many.host_clock
    first = many.mark()
    time.sleep(0.01)
    assert many.between(first, many.mark()).seconds >= 0.01
