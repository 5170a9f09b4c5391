"""All weights, activations and sources, and the maximum; one gather, or many in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _ops, _spec
from . import _higher
from ._linear import (
    Adjoint,
    Plan,
    PlanNumbers,
    flat,
    made,
    packed,
    passing,
    raw_gather,
    spaced,
    twice,
)


class Gather(NamedTuple):
    """One gather: what it does, and its tensors, weights as the raw operator takes them."""

    plan: Any  # a Plan; PlanNumbers on their way into a Function
    inputs: Sequence[Tensor]
    weights: Tensor | None = None
    pixel_weights: Tensor | None = None

    def tensors(self) -> list[Tensor | None]:
        """The differentiable arguments."""
        return [self.weights, self.pixel_weights, *self.inputs]

    def with_tensors(self, tensors: Iterator[Any]) -> Gather:
        """The same gather of the next of other tensors."""
        weights, pixel_weights = next(tensors), next(tensors)
        inputs = [next(tensors) for _ in self.inputs]
        return Gather(made(self.plan, inputs), inputs, weights, pixel_weights)

    def requires_grad(self) -> bool:
        return any(t is not None and t.requires_grad for t in self.tensors())


class Backward:
    """What the backward of one gather needs, but for the tensors that it keeps."""

    def __init__(self, plan: Plan, needs: Sequence[bool]) -> None:
        """``needs``: which of a gather's ``tensors()`` need a gradient."""
        self.plan = plan
        self.size, self.spec, self.shapes = plan.size, plan.spec, plan.shapes
        self.scales, self.windows = plan.scales, plan.windows
        self.wants_weights, self.wants_pixels = needs[:2]
        self.needs = tuple(needs[2:])
        self.requests = plan.requests(self.needs)
        activation = _spec.activation_of(self.spec)
        is_max = bool(self.spec & _spec.MAX)
        # The bits of a maximum say which map it is; a leaky ReLU's would be a second set.
        self.recomputes = activation is not None and (
            activation not in _spec.BIT_ACTIVATIONS or (is_max and activation == "leaky_relu")
        )
        self.has_mask = is_max or activation in _spec.BIT_ACTIVATIONS
        self.num_indices = plan.num_max_pools
        self.is_linear = not (is_max or self.recomputes or self.num_indices)

    def kept(
        self, gather: Gather, mask: Tensor | None, indices: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The tensors to save."""
        needs_values = self.recomputes or self.wants_weights or self.wants_pixels
        return [
            gather.weights,
            gather.pixel_weights,
            mask if self.has_mask else None,
            *indices,
            *(gather.inputs if needs_values else ()),
        ]

    def gradients(self, grad: Tensor, kept: Sequence[Any]) -> list[Tensor | None]:
        """The gradients of ``gather.tensors()``."""
        weights, pixel_weights, gate, *rest = kept
        indices, values = rest[: self.num_indices], rest[self.num_indices :]
        if twice():
            return _higher.gradients(self, grad, weights, pixel_weights, gate, indices, values)
        if self.is_linear and weights is None and pixel_weights is None:
            gated = gate is not None
            adjoint = self.plan.keep((self.needs, gated), Adjoint, self.needs, gated)
            return [None, None, *adjoint.gradients(grad, gate)]
        accumulate = _spec.accumulation_dtype(self.spec)
        if self.recomputes:
            grad = _ops.gather_extended(
                values, weights, pixel_weights, None, grad, self.size,
                _spec.with_dtype(self.spec, accumulate), self.scales, self.windows,
            )[0]  # fmt: skip
        spec = _spec.replace_result(self.spec, accumulate)
        grads: list[Tensor | None] = [None] * len(self.shapes)
        left = self.requests
        if gate is None:
            weighted = max(_count(weights), _count(pixel_weights))
            left = self._pass_on(grad, weighted, grads)
        d_weights: Tensor | None = None
        if self.wants_weights or any(bits & _spec.REQUEST_WANTED for bits in left):
            wanted, d_weights = _ops.spread_extended(
                grad, gate, weights, pixel_weights, values if self.wants_weights else [], indices,
                flat(self.shapes), spec, packed(left), self.scales, self.windows,
            )  # fmt: skip
            for i, value in enumerate(spaced(wanted, left)):
                if value is not None:
                    grads[i] = value
        d_pixels: Tensor | None = None
        if self.wants_pixels:
            count, rank = pixel_weights.shape[1], len(self.size)
            d_pixels = _ops.pixel_weight_grads(
                grad, values[:count], weights, gate, spec, self.scales[: count * rank],
                self.windows[: 3 * count * rank],
            )  # fmt: skip
            if pixel_weights.shape[0] != d_pixels.shape[0]:
                d_pixels = d_pixels.sum(0, keepdim=True)
        return [d_weights if self.wants_weights else None, d_pixels, *grads]

    def _pass_on(self, grad: Tensor, weighted: int, grads: list[Tensor | None]) -> list[int]:
        """Gives maps that passed through views of ``grad``, and returns the other requests."""
        passed, left = passing(self.shapes, self.size, self.spec, self.requests, weighted)
        for one in passed:
            view = one.view(grad)
            if self.recomputes:
                # This is a tensor of our own, in the result's layout, which may not be the map's.
                channels_last = bool(self.requests[one.place] & _spec.REQUEST_CHANNELS_LAST)
                shape = self.shapes[one.place]
                if view.stride() != _spec.dense_strides(shape, channels_last):
                    left[one.place] |= _spec.REQUEST_WANTED
                    continue
            grads[one.place] = one.converted(view)
        return left


class ExtendedFunction(torch.autograd.Function):
    """``act(reduce_i w_i p_i R_i(x_i))``."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan | PlanNumbers,
        weights: Tensor | None,
        pixel_weights: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        plan = made(plan, inputs)
        gather = Gather(plan, inputs, weights, pixel_weights)
        spec = plan.spec | _spec.SAVE
        output, mask, indices = raw_extended(plan, inputs, weights, pixel_weights, spec)
        needs = ctx.needs_input_grad[1:]
        ctx.job = plan.keep(needs, Backward, needs)
        ctx.save_for_backward(*ctx.job.kept(gather, mask, indices))
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.job.gradients(grad_outputs[0], ctx.saved_tensors)


class ManyFunction(torch.autograd.Function):
    """Independent gathers, forward in one call."""

    @staticmethod
    def forward(ctx: Any, jobs: Sequence[Gather], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """``tensors``: those of all jobs, which autograd wants to see one by one."""
        given = iter(tensors)
        jobs = [job.with_tensors(given) for job in jobs]
        outputs, masks, indices = gather_many(jobs, _spec.SAVE)
        ctx.set_materialize_grads(False)
        ctx.jobs, ctx.lengths = [], []
        kept: list[Tensor | None] = []
        first = 1
        remaining = iter(indices)
        for job, mask in zip(jobs, masks, strict=True):
            count = len(job.inputs)
            needs = ctx.needs_input_grad[first : first + 2 + count]
            backward = job.plan.keep(needs, Backward, needs)
            own = backward.kept(job, mask, [next(remaining) for _ in range(backward.num_indices)])
            ctx.jobs.append(backward)
            ctx.lengths.append(len(own))
            kept += own
            first += 2 + count
        ctx.save_for_backward(*kept)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        kept = list(ctx.saved_tensors)
        found: list[Tensor | None] = [None]
        for job, length, grad in zip(ctx.jobs, ctx.lengths, grad_outputs, strict=True):
            own, kept = kept[:length], kept[length:]
            if grad is None:
                found += [None] * (2 + len(job.shapes))
            else:
                found += job.gradients(grad, own)
        return tuple(found)


def raw_extended(
    plan: Plan,
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    pixel_weights: Tensor | None,
    spec: int,
) -> tuple[Tensor, Tensor | None, Sequence[Tensor]]:
    """The result, its mask, and the places of max-poolings.

    ``spec``: the plan's, perhaps with more bits.
    """
    if plan.packed_size is not None and weights is None and pixel_weights is None:
        # It has no windows, and no tensors but maps: a faster call will do.
        return *raw_gather(plan, inputs, None, None, spec), []
    found: tuple[Tensor, Tensor, Sequence[Tensor]] = _ops.gather_extended(
        inputs, weights, pixel_weights, None, None, plan.size, spec, plan.scales,
        plan.windows or _spec.NO_WINDOWS,
    )  # fmt: skip
    return found


def gather_many(
    jobs: Sequence[Gather], bits: int = 0
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """The raw operator; ``bits`` are added to every job's.

    Scales and windows are given for all jobs or for none.
    """
    inputs: list[Tensor] = []
    weights: list[Tensor] = []
    pixel_weights: list[Tensor] = []
    specs: list[int] = []
    for job in jobs:
        inputs += job.inputs
        spec = job.plan.spec | bits
        if job.weights is not None:
            weights.append(job.weights)
            spec |= _spec.HAS_WEIGHTS
        if job.pixel_weights is not None:
            pixel_weights.append(job.pixel_weights)
            spec |= _spec.HAS_PIXEL_WEIGHTS
        specs.append(spec)
    plans = [job.plan for job in jobs]
    found: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]] = _ops.gather_many(
        inputs,
        [len(plan.shapes) for plan in plans],
        weights or inputs[:1],  # no empty list: see _spec.NO_WINDOWS
        pixel_weights or inputs[:1],
        [n for plan in plans for n in plan.size],
        specs,
        _of_all(plans, [plan.scales for plan in plans], [0.0]),
        _of_all(plans, [plan.windows for plan in plans], [1, 1, 0]) or _spec.NO_WINDOWS,
    )
    return found


def _of_all(plans: Sequence[Plan], lists: Sequence[Sequence[Any]], neutral: list[Any]) -> list[Any]:
    """One list of all jobs' entries, empty if none has any."""
    if not any(lists):
        return []
    entries: list[Any] = []
    for plan, own in zip(plans, lists, strict=True):
        entries += own or neutral * (len(plan.shapes) * len(plan.size))
    return entries


def _count(weights: Tensor | None) -> int:
    """How many of the first maps have a weight."""
    if weights is None:
        return 0
    return weights.shape[0] if weights.dim() == 1 else weights.shape[1]
