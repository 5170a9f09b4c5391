"""The ways to compute a cell, and how one sample of each is taken."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import measure
from .measure import Sample
from .workloads import DTYPES, WORKLOADS, Cell, Tensors, make_inputs, memory_format

EAGER, AMP, COMPILED, OURS = ("eager", "eager+amp", "torch.compile", "msr_cuda")
#: Inductor that tries several configurations of every kernel; on CUDA only.
TUNED = "max-autotune"
#: What msr_cuda is compared with too: in 16 bits itself on the same maps in float32, and with
#: several CPU threads itself with one.
OURS_FLOAT32, OURS_ONE_THREAD = f"{OURS} float32", f"{OURS} 1 thread"
#: What others can run instead of msr_cuda.
PEERS = (EAGER, AMP, COMPILED, TUNED)
CONTENDERS = (*PEERS, OURS_FLOAT32, OURS_ONE_THREAD, OURS)
#: ``inference``: forward without gradients; ``forward``: the one that backward follows; ``step``:
#: both, as they ran one after the other.
DIRECTIONS = ("inference", "forward", "backward", "step")

Function = Callable[[Tensors], list[Tensor]]


class Reading(NamedTuple):
    """Seconds per call.

    ``seconds`` is what contenders are compared by, ``host`` what the caller waits: see
    :class:`HostWatch` and :class:`CudaWatch`.
    """

    seconds: float
    host: float


class Watch(Protocol):
    """Tells how much time passed between two marks."""

    #: What ``Reading.seconds`` and ``Reading.host`` are, for people.
    clock: str
    host_clock: str
    compared: measure.Clock

    def mark(self) -> Any: ...

    def settle(self) -> None:
        """Waits for all work: before the first mark, and before marks are compared."""

    def between(self, first: Any, last: Any) -> Reading: ...


class HostWatch:
    """For the CPU.

    One thread is compared by the CPU time of the calling thread, where all of its work is done: it
    does not count what other programs take. Several are compared by the wall clock.
    """

    host_clock = "wall clock"

    def __init__(self, threads: int) -> None:
        self.compared = time.thread_time if threads == 1 else time.perf_counter
        self.clock = "CPU time of the thread" if threads == 1 else self.host_clock

    def mark(self) -> tuple[float, float]:
        return self.compared(), time.perf_counter()

    def settle(self) -> None:
        """Nothing runs in the background."""

    def between(self, first: tuple[float, float], last: tuple[float, float]) -> Reading:
        return Reading(last[0] - first[0], last[1] - first[1])


class CudaWatch:
    """For a GPU: its own time by events; the host's until the calls returned, work not awaited."""

    #: For what is timed as a whole, and waited for.
    compared = staticmethod(time.perf_counter)
    clock = "GPU time by events"
    host_clock = "time until the call returns"

    def mark(self) -> tuple[torch.cuda.Event, float]:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event, time.perf_counter()

    def settle(self) -> None:
        torch.cuda.synchronize()

    def between(
        self, first: tuple[torch.cuda.Event, float], last: tuple[torch.cuda.Event, float]
    ) -> Reading:
        return Reading(first[0].elapsed_time(last[0]) / 1e3, last[1] - first[1])


@dataclass(frozen=True)
class Data:
    """The tensors of a cell, in several sets, so that a cache does not keep them between calls."""

    plain: list[list[Tensor]]  # maps, then parameters
    leaves: list[list[Tensor]]  # the same memory, requiring gradients
    grads: list[list[Tensor]]  # of the outputs

    @staticmethod
    def make(cell: Cell, device: torch.device, sets: int = 1) -> Data:
        """Random maps, parameters and gradients."""
        plain = [make_inputs(cell, device, seed) for seed in range(sets)]
        leaves = [[x.detach().requires_grad_() for x in maps] for maps in plain]
        dtype = DTYPES[cell.dtype]
        # Not in 16 bits, which PyTorch lacks for some modes on some devices.
        wide = torch.float32 if dtype.itemsize == 2 else dtype
        with torch.no_grad():
            outputs = WORKLOADS[cell.workload].eager([x.to(wide) for x in plain[0]])
        # In the layout of the maps: so come the gradients of a convolution behind the step.
        layout = memory_format(cell.layout, cell.size.rank)

        def normal(y: Tensor, generator: torch.Generator) -> Tensor:
            grad = torch.randn(y.shape, generator=generator, device=device)
            return grad.to(dtype).contiguous(memory_format=layout)

        grads = []
        for seed in range(sets, 2 * sets):  # other ones than of the maps
            generator = torch.Generator(device).manual_seed(seed)
            grads.append([normal(y, generator) for y in outputs])
        return Data(plain, leaves, grads)

    def in_float32(self) -> Data:
        """The same values in float32."""

        def wide(sets: list[list[Tensor]]) -> list[list[Tensor]]:
            return [[x.detach().float() for x in maps] for maps in sets]

        plain = wide(self.plain)
        leaves = [[x.detach().requires_grad_() for x in maps] for maps in plain]
        return Data(plain, leaves, wide(self.grads))

    def grads_like(self, outputs: list[Tensor]) -> list[list[Tensor]]:
        """The gradients for outputs that may have another dtype (autocast gives float32)."""
        return [[g.to(o.dtype) for g, o in zip(set_, outputs, strict=True)] for set_ in self.grads]


def sets_against_cache(bytes_per_set: int, device: torch.device) -> int:
    """How many sets of data to rotate so that the cache holds none when its turn comes.

    On a GPU three times the last-level cache (at most 32 sets). On the CPU one: there, what a layer
    reads has mostly just been written.
    """
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(32, math.ceil(3 * cache / bytes_per_set)))


def functions(cell: Cell, device: torch.device) -> dict[str, Function]:
    """The contenders of a cell. ``torch.compile`` compiles at its first calls."""
    workload = WORKLOADS[cell.workload]
    found: dict[str, Function] = {EAGER: workload.eager}
    dtype = DTYPES[cell.dtype]
    if device.type == "cuda" and dtype.itemsize == 2:

        def autocast(inputs: Tensors) -> list[Tensor]:
            with torch.autocast("cuda", dtype):
                return workload.eager(inputs)

        found[AMP] = autocast
    # Static shapes and a cache of its own for each cell: what it does best.
    torch._dynamo.reset()
    found[COMPILED] = torch.compile(workload.eager, dynamic=False)
    if device.type == "cuda":
        mode = "max-autotune-no-cudagraphs"  # all contenders are replayed as graphs alike
        found[TUNED] = torch.compile(workload.eager, dynamic=False, mode=mode)
    found[OURS] = lambda inputs: workload.fused(inputs, "kernel")
    if dtype.itemsize == 2:
        found[OURS_FLOAT32] = found[OURS]  # on other data
    if device.type == "cpu" and torch.get_num_threads() > 1:
        found[OURS_ONE_THREAD] = found[OURS]  # in another setting
    return found


def gradients(outputs: list[Tensor], leaves: Tensors, grads: list[Tensor]) -> tuple[Tensor, ...]:
    """The backward: gradients of all inputs; the graph is freed, as in training."""
    return torch.autograd.grad(outputs, leaves, grads)


class Samplers(NamedTuple):
    """Takes one sample: the mean over its calls."""

    inference: Callable[[], Reading]
    training: Callable[[], tuple[Reading, Reading]]  # forward, backward

    def with_threads(self, threads: int) -> Samplers:
        """The same samples, taken with this many CPU threads."""

        def limited(sample: Callable[[], Sample]) -> Callable[[], Sample]:
            def take() -> Sample:
                before = torch.get_num_threads()
                torch.set_num_threads(threads)
                try:
                    return sample()
                finally:
                    torch.set_num_threads(before)

            return take

        return Samplers(limited(self.inference), limited(self.training))


def direct(function: Function, data: Data, watch: Watch, min_sample: float) -> Samplers:
    """Samples of plain calls.

    Several forwards come before their backwards where the data rotates, so that a backward does not
    find in the cache what its forward left there.

    Args:
        function: the contender.
        data: one call takes one set, in turn.
        watch: the clocks.
        min_sample: seconds that a sample should last.
    """
    sets = len(data.plain)
    with torch.no_grad():
        grads = data.grads_like(function(data.plain[0]))

    def infer(times: int) -> Reading:
        with torch.no_grad():
            watch.settle()
            first = watch.mark()
            for i in range(times):
                function(data.plain[i % sets])
            last = watch.mark()
        watch.settle()
        return _mean([watch.between(first, last)], times)

    def train(times: int) -> tuple[Reading, Reading]:
        marks = []
        watch.settle()
        for chunk in _chunks(times, sets):
            first = watch.mark()
            outputs = [function(data.leaves[i]) for i in chunk]
            middle = watch.mark()
            for i, output in zip(chunk, outputs, strict=True):
                gradients(output, data.leaves[i], grads[i])
            marks.append((first, middle, watch.mark()))
            del outputs
        watch.settle()
        forward = [watch.between(first, middle) for first, middle, _ in marks]
        backward = [watch.between(middle, last) for _, middle, last in marks]
        return _mean(forward, times), _mean(backward, times)

    inferences = _calls_per_sample(lambda times: max(infer(times)), min_sample)
    steps = _calls_per_sample(lambda times: sum(map(max, train(times))), min_sample)
    return Samplers(lambda: infer(inferences), lambda: train(steps))


def graphed(function: Function, data: Data, watch: Watch, min_sample: float) -> Samplers:
    """Samples of replayed CUDA graphs: what is left when launching costs nothing.

    One graph calls the function once on every set. Takes the arguments of :func:`direct`.
    """
    sets = len(data.plain)
    with torch.no_grad():
        grads = data.grads_like(function(data.plain[0]))

    def infer() -> None:
        with torch.no_grad():
            for maps in data.plain:
                function(maps)

    def forward() -> list[list[Tensor]]:
        return [function(leaves) for leaves in data.leaves]

    def backward(outputs: list[list[Tensor]]) -> list[tuple[Tensor, ...]]:
        triples = zip(outputs, data.leaves, grads, strict=True)
        return [gradients(*triple) for triple in triples]

    # As torch asks for: some calls on a stream of their own before a capture.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            infer()
            backward(forward())
    torch.cuda.current_stream().wait_stream(stream)
    graphs = [torch.cuda.CUDAGraph() for _ in range(3)]
    with torch.cuda.graph(graphs[0]):
        infer()
    with torch.cuda.graph(graphs[1]):
        outputs = forward()
    with torch.cuda.graph(graphs[2], pool=graphs[1].pool()):
        backward(outputs)
    del outputs  # the graphs keep the memory

    def replay(which: list[torch.cuda.CUDAGraph], times: int) -> list[Reading]:
        laps = []
        watch.settle()
        for _ in range(times):
            marks = [watch.mark()]
            for graph in which:
                graph.replay()
                marks.append(watch.mark())
            laps.append(marks)
        watch.settle()
        calls = times * sets
        return [
            _mean([watch.between(marks[i], marks[i + 1]) for marks in laps], calls)
            for i in range(len(which))
        ]

    def infer_samples(times: int) -> Reading:
        (inference,) = replay(graphs[:1], times)
        return inference

    def train(times: int) -> tuple[Reading, Reading]:
        ahead, back = replay(graphs[1:], times)
        return ahead, back

    inferences = _calls_per_sample(lambda times: sets * max(infer_samples(times)), min_sample)
    steps = _calls_per_sample(lambda times: sets * sum(map(max, train(times))), min_sample)
    return Samplers(lambda: infer_samples(inferences), lambda: train(steps))


def _calls_per_sample(seconds_of: Callable[[int], float], min_sample: float) -> int:
    """How many calls make a sample; ``seconds_of`` makes some and tells what one took."""
    seconds_of(1)  # the first one allocates, chooses an algorithm or compiles
    # One alone, with everything cold, takes longer than one of many.
    some = measure.repeats_for(seconds_of(1), min_sample / 4)
    return measure.repeats_for(seconds_of(some), min_sample)


def _chunks(times: int, size: int) -> Iterator[range]:
    """``times`` calls in chunks that each take a set at most once."""
    for first in range(0, times, size):
        yield range(min(size, times - first))


def _mean(readings: list[Reading], calls: int) -> Reading:
    return Reading(*(sum(column) / calls for column in zip(*readings, strict=True)))
