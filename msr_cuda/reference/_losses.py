"""Losses of upsampled logits, which are written out here: no kernel spares them yet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Tensor:
    """:func:`torch.nn.functional.cross_entropy`, deterministic also with a reduction on CUDA."""
    if weight is not None:
        weight = weight.detach().to(logits.dtype)
    probabilities = target.is_floating_point()
    target = target.to(logits.dtype if probabilities else torch.int64)
    # PyTorch's own mean and sum add with atomics.
    losses = F.cross_entropy(
        logits,
        target,
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if probabilities:
        return losses.sum() / losses.numel() if losses.numel() else losses.mean()
    counted = target != ignore_index
    if weight is None:
        return losses.sum() / counted.sum().to(losses.dtype)
    of_pixel = weight[target.masked_fill(~counted, 0)]
    return losses.sum() / (of_pixel * counted).sum()


def binary_cross_entropy_with_logits(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> Tensor:
    """:func:`torch.nn.functional.binary_cross_entropy_with_logits`."""
    if weight is not None:
        weight = weight.detach().to(logits.dtype)
    if pos_weight is not None:
        pos_weight = pos_weight.detach().to(logits.dtype)
    return F.binary_cross_entropy_with_logits(
        logits, target.to(logits.dtype), weight, reduction=reduction, pos_weight=pos_weight
    )


def argmax(logits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``(index, probability)`` of the largest logit over the channels, the first among equals."""
    largest, index = logits.max(1)
    return index.to(dtype), (largest - logits.logsumexp(1)).exp()
