"""Derivatives of the raw operators.

``gather`` and ``spread`` are linear in the maps and adjoint to each other, so each one's backward
calls the other's Function: derivatives of any order, all by gathering, without atomics. What a call
saves: a bitmask for a ReLU-like activation, one per map for a maximum, the places of the largest
elements for a max-pooling; its inputs only where weights need a gradient, or where the activation's
derivative has to be computed again.

One ctx-style Function per operator over dispatcher operators: on the host this costs about half of
``torch.library.register_autograd``, and forward-mode AD is refused instead of silently zero.
``GatherFunction`` is the hot one; ``ExtendedFunction`` takes what is rarer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ops, _spec
from ._extended import ExtendedFunction, Gather, ManyFunction, gather_many, raw_extended
from ._linear import GatherFunction, Plan, raw_gather
from ._losses import binary_cross_entropy, cross_entropy
from ._pyramid import PyramidFunction, pyramid

__all__ = [
    "Gather",
    "Plan",
    "binary_cross_entropy",
    "cross_entropy",
    "gather",
    "gather_into",
    "many",
    "resample_levels",
]

# Function.apply does these two steps after checks for torch.func, under which the reference runs.
# They are private to torch: without them, as a later release may be, Function.apply does it.
_unwrap_if_dead = getattr(torch._C._functorch, "unwrap_if_dead", None)
if _unwrap_if_dead is None:
    _apply_gather, _apply_extended = GatherFunction.apply, ExtendedFunction.apply
else:
    _apply_gather = super(torch.autograd.Function, GatherFunction).apply
    _apply_extended = super(torch.autograd.Function, ExtendedFunction).apply


def gather(
    plan: Plan,
    inputs: Sequence[Tensor],
    weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """Differentiable gather, weights in any dtype.

    Args:
        plan: made for maps of these shapes, strides and dtypes.
        inputs: the maps.
        weights: ``[S]``, or ``[1 or N, up to S, 1 or C]``; maps without one are not weighted.
        pixel_weights: ``[1 or N, up to S, 1, *size]``.
    """
    extended = plan.extended
    needs_grad = False
    if weights is not None or pixel_weights is not None:
        weights, pixel_weights = _as_read(plan, weights), _as_read(plan, pixel_weights)
        extended = (
            extended or pixel_weights is not None or (weights is not None and weights.dim() != 1)
        )
        if extended and weights is not None and weights.dim() == 1:
            weights = weights.view(1, -1, 1)
        for factor in (weights, pixel_weights):
            needs_grad = needs_grad or (factor is not None and factor.requires_grad)
    if torch.is_grad_enabled():
        for x in inputs:
            if needs_grad or x.requires_grad:
                return _differentiable(plan, inputs, weights, pixel_weights, extended)
    if extended:
        return raw_extended(plan, inputs, weights, pixel_weights, plan.spec)[0]
    return raw_gather(plan, inputs, weights, None, plan.spec)[0]


def _differentiable(
    plan: Plan,
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    pixel_weights: Tensor | None,
    extended: bool,
) -> Tensor:
    if plan.traced:
        inputs = _distinct(inputs)
        if extended:
            return ExtendedFunction.apply(plan.numbers(), weights, pixel_weights, *inputs)
        return GatherFunction.apply(plan.numbers(), weights, None, *inputs)
    if _unwrap_if_dead is not None:
        # What a torch.func transform left behind is a wrapper around the tensor.
        inputs = [_unwrap_if_dead(x) for x in inputs]
        if weights is not None:
            weights = _unwrap_if_dead(weights)
        if pixel_weights is not None:
            pixel_weights = _unwrap_if_dead(pixel_weights)
    if extended:
        return _apply_extended(plan, weights, pixel_weights, *inputs)
    return _apply_gather(plan, weights, None, *inputs)


def many(jobs: Sequence[Gather]) -> list[Tensor]:
    """Differentiable independent gathers in one call."""
    jobs = [_with_weights_as_read(job) for job in jobs]
    if torch.is_grad_enabled() and any(job.requires_grad() for job in jobs):
        tensors = [t for job in jobs for t in job.tensors()]
        if torch.compiler.is_compiling():
            tensors = _distinct(tensors)
            jobs = [job._replace(plan=job.plan.numbers()) for job in jobs]
        return list(ManyFunction.apply(jobs, *tensors))
    return list(gather_many(jobs)[0])


def gather_into(out: Tensor, job: Gather, accumulate: bool) -> None:
    """Writes, or adds, a gather to given memory, whose dtype and order the plan's spec tells."""
    plan, inputs, weights, pixel_weights = _with_weights_as_read(job)
    spec = plan.spec | _spec.ADD_TO_RESULT if accumulate else plan.spec
    _ops.gather_out(
        inputs, weights, pixel_weights, spec, plan.scales, plan.windows or _spec.NO_WINDOWS,
        out=out,
    )  # fmt: skip


def resample_levels(input: Tensor, levels: Sequence[Plan]) -> list[Tensor]:
    """One map at several sizes, differentiable."""
    if torch.is_grad_enabled() and input.requires_grad:
        if torch.compiler.is_compiling():
            return list(PyramidFunction.apply([level.numbers() for level in levels], input))
        return list(PyramidFunction.apply(levels, input))
    return list(pyramid(input, levels))


def _distinct(tensors: Sequence[Any]) -> list[Any]:
    """The same tensors, repeated ones as views: Dynamo takes none twice into a Function."""
    found: list[Any] = []
    for tensor in tensors:
        repeated = tensor is not None and any(tensor is other for other in found)
        found.append(tensor.view_as(tensor) if repeated else tensor)
    return found


def _as_read(plan: Plan, weights: Tensor | None) -> Tensor | None:
    """Weights in the accumulation type, without gaps."""
    if weights is None:
        return None
    accumulate = _spec.accumulation_dtype(plan.spec)
    if weights.dtype != accumulate:
        weights = weights.to(accumulate)
    return weights.contiguous()


def _with_weights_as_read(job: Gather) -> Gather:
    plan, inputs, weights, pixel_weights = job
    weights = _as_read(plan, weights)
    if weights is not None and weights.dim() == 1:
        weights = weights.view(1, -1, 1)
    return Gather(plan, inputs, weights, _as_read(plan, pixel_weights))
