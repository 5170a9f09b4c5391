"""Losses of resampled logits, whose backward makes them again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ._linear import twice

#: As the raw operators number them.
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


class _OnceFunction(torch.autograd.Function):
    """A gradient as it is, which refuses to be differentiated: it depends on the logits."""

    @staticmethod
    def forward(ctx: Any, name: str, grad: Tensor, *inputs: Tensor) -> Tensor:
        ctx.name = name
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f'{ctx.name} is differentiable once; impl="reference" has derivatives of every order'
        )


def _once(name: str, d_logits: Tensor, *inputs: Tensor) -> Tensor:
    """``d_logits``; under ``create_graph=True`` it will not be differentiated silently wrong."""
    found: Tensor = _OnceFunction.apply(name, d_logits, *inputs) if twice() else d_logits
    return found


class CrossEntropyFunction(torch.autograd.Function):
    """Saves the logits, the target, and the log-sum-exp of each pixel; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        spec: int,
        ignore_index: int,
        label_smoothing: float,
        reduction: int,
    ) -> Tensor:
        loss, lse, target_sums, divisor = _ops.cross_entropy(
            logits, target, weight, spec, ignore_index, label_smoothing, reduction
        )
        ctx.save_for_backward(logits, target, weight, lse, target_sums, divisor)
        ctx.numbers = spec, ignore_index, label_smoothing
        ctx.reduced = reduction != REDUCTIONS["none"]
        result: Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        logits, target, weight, lse, target_sums, divisor = ctx.saved_tensors
        if ctx.reduced:
            grad = (grad / divisor).expand(lse.shape)
        d_logits = _ops.cross_entropy_backward(
            grad, logits, target, weight, lse, target_sums, *ctx.numbers
        )
        d_logits = _once("resample_cross_entropy", d_logits, logits, grad)
        return d_logits, None, None, None, None, None, None


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    spec: int,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Tensor:
    """Differentiable in the logits; ``weight`` is contiguous, of the accumulation type."""
    number = REDUCTIONS[reduction]
    if torch.is_grad_enabled() and logits.requires_grad:
        return CrossEntropyFunction.apply(
            logits, target, weight, spec, ignore_index, label_smoothing, number
        )
    loss: Tensor = _ops.cross_entropy(
        logits, target, weight, spec, ignore_index, label_smoothing, number
    )[0]
    return loss


class BinaryCrossEntropyFunction(torch.autograd.Function):
    """Saves the logits, the target and its factors; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        spec: int,
        reduction: int,
    ) -> Tensor:
        ctx.save_for_backward(logits, target, weight, pos_weight)
        ctx.spec, ctx.reduction = spec, reduction
        loss: Tensor = _ops.binary_cross_entropy(
            logits, target, weight, pos_weight, spec, reduction
        )
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        logits, target, weight, pos_weight = ctx.saved_tensors
        if ctx.reduction == REDUCTIONS["mean"]:
            grad = grad / target.numel()
        d_logits = _ops.binary_cross_entropy_backward(
            grad.expand(target.shape), logits, target, weight, pos_weight, ctx.spec
        )
        name = "resample_binary_cross_entropy_with_logits"
        return _once(name, d_logits, logits, grad), None, None, None, None, None


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    spec: int,
    reduction: str,
) -> Tensor:
    """Differentiable in the logits; the factors have the target's shape, perhaps by strides of 0.

    The target is floating point, bool or uint8.
    """
    number = REDUCTIONS[reduction]
    if torch.is_grad_enabled() and logits.requires_grad:
        return BinaryCrossEntropyFunction.apply(logits, target, weight, pos_weight, spec, number)
    loss: Tensor = _ops.binary_cross_entropy(logits, target, weight, pos_weight, spec, number)
    return loss
