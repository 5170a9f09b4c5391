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
from ._extended import ExtendedFunction, Gather, ManyFunction, gather_many
from ._linear import GatherFunction, Size, raw_gather
from ._pyramid import Level, PyramidFunction, pyramid

__all__ = ["Gather", "Level", "gather", "gather_into", "many", "resample_levels"]


def gather(
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    size: Size,
    spec: int,
    scales: Sequence[float],
    windows: Sequence[int] = (),
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """Differentiable gather: the raw operator's arguments, weights in any dtype.

    Args:
        inputs, size, spec, scales, windows: of the raw operator.
        weights: ``[S]``, or ``[1 or N, up to S, 1 or C]``; maps without one are not weighted.
        pixel_weights: ``[1 or N, up to S, 1, *size]``.
    """
    if weights is not None:
        weights = weights.to(_spec.accumulation_dtype(spec)).contiguous()
    if pixel_weights is not None:
        pixel_weights = pixel_weights.to(_spec.accumulation_dtype(spec)).contiguous()
    extended = (
        pixel_weights is not None
        or (weights is not None and weights.dim() != 1)
        or spec & _spec.RARE
        or (windows and _max_pools(spec, len(inputs)))
    )
    if extended and weights is not None and weights.dim() == 1:
        weights = weights.view(1, -1, 1)
    if torch.is_grad_enabled() and (
        any(x.requires_grad for x in inputs)
        or (weights is not None and weights.requires_grad)
        or (pixel_weights is not None and pixel_weights.requires_grad)
    ):
        inputs = _distinct(inputs)
        if extended:
            return ExtendedFunction.apply(
                size, spec, scales, windows, weights, pixel_weights, *inputs
            )
        return GatherFunction.apply(size, spec, scales, windows, weights, None, *inputs)
    if extended:
        return _ops.gather_extended(
            inputs,
            weights,
            pixel_weights,
            None,
            None,
            size,
            spec,
            scales,
            windows or _spec.NO_WINDOWS,
        )[0]
    return raw_gather(inputs, weights, None, size, spec, scales, windows)[0]


def _max_pools(spec: int, count: int) -> bool:
    return any(_spec.mode_of(spec, i) == _spec.MAX_POOL for i in range(count))


def many(jobs: Sequence[Gather]) -> list[Tensor]:
    """Differentiable independent gathers in one call."""
    jobs = [_in_accumulation_type(job) for job in jobs]
    if torch.is_grad_enabled() and any(job.requires_grad() for job in jobs):
        tensors = _distinct([t for job in jobs for t in job.tensors()])
        return list(ManyFunction.apply(jobs, *tensors))
    return list(gather_many(jobs)[0])


def gather_into(out: Tensor, job: Gather, accumulate: bool) -> None:
    """Writes, or adds, a gather to given memory, whose dtype and order ``job.spec`` tells."""
    job = _in_accumulation_type(job)
    spec = job.spec | _spec.ADD_TO_RESULT if accumulate else job.spec
    _ops.gather_out(
        job.inputs,
        job.weights,
        job.pixel_weights,
        spec,
        job.scales,
        job.windows or _spec.NO_WINDOWS,
        out=out,
    )


def resample_levels(input: Tensor, levels: Sequence[Level]) -> list[Tensor]:
    """One map at several sizes, differentiable."""
    if torch.is_grad_enabled() and input.requires_grad:
        return list(PyramidFunction.apply(levels, input))
    return list(pyramid(input, levels))


def _distinct(tensors: Sequence[Any]) -> Sequence[Any]:
    """The same tensors, repeated ones as views: Dynamo takes none twice into a Function."""
    if not torch.compiler.is_compiling():
        return tensors
    found: list[Any] = []
    for tensor in tensors:
        repeated = tensor is not None and any(tensor is other for other in found)
        found.append(tensor.view_as(tensor) if repeated else tensor)
    return found


def _in_accumulation_type(job: Gather) -> Gather:
    accumulate = _spec.accumulation_dtype(job.spec)
    weights, pixel_weights = job.weights, job.pixel_weights
    if weights is not None:
        weights = weights.to(accumulate).contiguous()
        weights = weights.view(1, -1, 1) if weights.dim() == 1 else weights
    if pixel_weights is not None:
        pixel_weights = pixel_weights.to(accumulate).contiguous()
    return job._replace(weights=weights, pixel_weights=pixel_weights)
