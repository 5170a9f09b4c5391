"""Counts what a fused model moves, and what eager PyTorch would: see :meth:`Report.measure`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _losses, functional
from ..functional import Observation
from .algebra import _pointwise
from .algebra._pointwise import Reordering


@dataclasses.dataclass
class Traffic:
    """What one site moved in a forward pass.

    Attributes:
        calls: how often the module was called.
        eager_bytes: what PyTorch's operators would have read and written.
        fused_bytes: what the fused operators read and wrote.
        eager_launches: kernels that PyTorch would have launched.
        fused_launches: fused operators that ran.
        eager_operations: multiply-adds of the convolutions that ``algebra=True`` reordered, where
            PyTorch would have done them.
        fused_operations: those that were done.
        fallback: why operators ran in plain PyTorch after all; None: they did not.
    """

    calls: int = 0
    eager_bytes: int = 0
    fused_bytes: int = 0
    eager_launches: int = 0
    fused_launches: int = 0
    eager_operations: int = 0
    fused_operations: int = 0
    fallback: str | None = None

    @property
    def saved_bytes(self) -> int:
        """Bytes that were not moved."""
        return self.eager_bytes - self.fused_bytes

    @property
    def saved_launches(self) -> int:
        """Kernels that were not launched."""
        return self.eager_launches - self.fused_launches

    @property
    def saved_operations(self) -> int:
        """Multiply-adds that were not done."""
        return self.eager_operations - self.fused_operations


class _Counter:
    """Fills in the traffic of one site, call by call."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self._eager_calls: list[tuple[int, int]] = []  # what the operators were counted with

    def add(self, observation: Observation) -> None:
        """Counts one call of an operator."""
        eager_bytes, eager_launches = _eager_cost(observation)
        self._eager_calls.append((eager_bytes, eager_launches))
        self.traffic.eager_bytes += eager_bytes
        self.traffic.eager_launches += eager_launches
        self.traffic.fused_bytes += sum(map(_nbytes, observation.inputs)) + _nbytes(
            observation.output
        )
        self.traffic.fused_launches += 1
        if observation.reasons:
            self.traffic.fallback = "; ".join(observation.reasons)

    def add_loss(self, observation: _losses.Observation) -> None:
        """Counts one loss of logits that were not upsampled."""
        logits, target, output = observation.logits, observation.target, observation.output
        size = target.shape[-(logits.dim() - 2) :]
        before = _nbytes(logits)
        upsampled = logits.shape[0] * logits.shape[1] * size.numel() * logits.element_size()
        rest = sum(map(_nbytes, (target, *observation.factors, output)))
        # PyTorch upsamples, and reads that; a cross entropy takes log-probabilities in between.
        self.traffic.eager_bytes += before + 2 * upsampled + rest
        self.traffic.eager_launches += 2
        self.traffic.fused_bytes += before + rest
        self.traffic.fused_launches += 1
        if observation.function == "resample_cross_entropy":
            self.traffic.eager_bytes += 2 * upsampled
            self.traffic.eager_launches += 1
            # The log-sum-exps.
            self.traffic.fused_bytes += logits.shape[0] * size.numel() * output.element_size()
        if observation.reasons:
            self.traffic.fallback = "; ".join(observation.reasons)

    def reorder(self, reordering: Reordering) -> None:
        """Counts the convolutions of the calls counted last, and what PyTorch does for all that.

        Those calls were counted as if PyTorch would have done them in this order.
        """
        maps, convolved, projected, output, calls, passes = reordering
        for eager_bytes, eager_launches in self._eager_calls[-calls:]:
            self.traffic.eager_bytes -= eager_bytes
            self.traffic.eager_launches -= eager_launches
        size, width = output.shape[2:], output.shape[1]
        columns = output.shape[0] * size.numel() * sum(x.shape[1] for x in maps)
        read = columns * output.element_size()
        moved, launches = _resampling_cost(maps, size)
        joined = len(maps) > 1
        self.traffic.eager_bytes += moved + 2 * read * joined + read
        self.traffic.eager_bytes += _nbytes(output) * (1 + sum(passes))
        self.traffic.eager_launches += launches + joined + 1 + len(passes)
        self.traffic.eager_operations += columns * width
        self.traffic.fused_bytes += sum(map(_nbytes, (*convolved, *projected)))
        self.traffic.fused_launches += len(projected)
        self.traffic.fused_operations += sum(x.numel() for x in convolved) * width


def of_call(observation: Observation) -> Traffic:
    """What one call of an operator moves; of its maps, shapes and dtypes are enough."""
    counter = _Counter()
    counter.traffic.calls = 1
    counter.add(observation)
    return counter.traffic


def _resampling_cost(maps: Sequence[Tensor], size: torch.Size) -> tuple[int, int]:
    """Bytes and kernels of ``interpolate``, for the maps that have another size."""
    others = [x for x in maps if x.shape[2:] != size]
    enlarged = sum(x.shape[0] * x.shape[1] * size.numel() * x.element_size() for x in others)
    return sum(map(_nbytes, others)) + enlarged, len(others)


def total(parts: Sequence[Traffic]) -> Traffic:
    """The sum of what the parts moved."""
    return Traffic(
        calls=sum(part.calls for part in parts),
        eager_bytes=sum(part.eager_bytes for part in parts),
        fused_bytes=sum(part.fused_bytes for part in parts),
        eager_launches=sum(part.eager_launches for part in parts),
        fused_launches=sum(part.fused_launches for part in parts),
        eager_operations=sum(part.eager_operations for part in parts),
        fused_operations=sum(part.fused_operations for part in parts),
        fallback=next((part.fallback for part in parts if part.fallback is not None), None),
    )


def run(
    model: nn.Module, sites: Sequence[nn.Module], inputs: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Traffic]:
    """Calls the model once and returns what each site moved."""
    counts = [_Counter() for _ in sites]
    # Sites can be nested: a call of an operator belongs to the innermost one that is running.
    running: list[_Counter] = []
    with contextlib.ExitStack() as stack:
        for site, count in zip(sites, counts, strict=True):
            stack.callback(_watch(site, count, running))

        def observe(observation: Observation) -> None:
            if running:
                running[-1].add(observation)

        def observe_reordering(reordering: Reordering) -> None:
            if running:
                running[-1].reorder(reordering)

        def observe_loss(observation: _losses.Observation) -> None:
            if running:
                running[-1].add_loss(observation)

        functional.observers.append(observe)
        stack.callback(functional.observers.remove, observe)
        _losses.observers.append(observe_loss)
        stack.callback(_losses.observers.remove, observe_loss)
        _pointwise.observers.append(observe_reordering)
        stack.callback(_pointwise.observers.remove, observe_reordering)
        stack.enter_context(torch.no_grad())
        # Compiled code tells observers nothing.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_unchanged(model))
        model(*inputs, **kwargs)
    return [count.traffic for count in counts]


def _watch(site: nn.Module, count: _Counter, running: list[_Counter]) -> Callable[[], None]:
    """Keeps ``running`` up to date while the site is called; returns what ends that."""

    def before(module: nn.Module, args: Any) -> None:
        count.traffic.calls += 1
        running.append(count)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    first = site.register_forward_pre_hook(before, prepend=True)
    last = site.register_forward_hook(after, always_call=True)

    def end() -> None:
        first.remove()
        last.remove()

    return end


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Puts buffers (running statistics) and random number generators back at the end."""
    buffers = [(b, b.clone()) for b in model.buffers()] if model.training else []
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.is_cuda}
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _eager_cost(observation: Observation) -> tuple[int, int]:
    """Bytes and kernels of the same operator in eager PyTorch."""
    output = observation.output
    size = output.shape[2:]
    moved = launches = 0
    maps = []  # of each resampled input: elements, dtype
    for x in observation.inputs:
        elements = x.shape[0] * x.shape[1] * size.numel()
        if x.shape[2:] != size or observation.function == "resample":
            moved += _nbytes(x) + elements * x.element_size()
            launches += 1
        if observation.weighted:
            moved += 2 * elements * x.element_size()
            launches += 1
        maps.append((elements, x.dtype))
    dtype = maps[0][1]
    for _, other in maps[1:]:
        dtype = torch.promote_types(dtype, other)
    result = output.numel() * dtype.itemsize
    if observation.function == "resample_cat":
        moved += sum(elements * d.itemsize for elements, d in maps) + result
        launches += 1
    else:
        elements, partial = maps[0]
        for more, other in maps[1:]:
            moved += elements * partial.itemsize + more * other.itemsize
            # A sum of maps with one batch entry stays that small.
            elements, partial = max(elements, more), torch.promote_types(partial, other)
            moved += elements * partial.itemsize
            launches += 1
    if observation.activation is not None:
        moved += 2 * result
        launches += 1
    if output.dtype != dtype:
        moved += result + _nbytes(output)
        launches += 1
    return moved, launches
