"""How good predictions are, from the confusion matrix of a whole data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Confusion:
    """How often which class was predicted for which.

    Attributes:
        counts (Tensor[K, K]): of images or pixels, int64; rows are the truth, columns the
            predictions.
    """

    counts: Tensor

    @classmethod
    def of(cls, predicted: Tensor, target: Tensor, num_classes: int) -> Confusion:
        """Of class numbers of one shape; targets that are no class are left out."""
        valid = (target >= 0) & (target < num_classes)
        pairs = target[valid] * num_classes + predicted[valid]
        counts = torch.bincount(pairs, minlength=num_classes**2)
        return cls(counts.view(num_classes, num_classes))

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return int(self.counts.trace()) / max(1, int(self.counts.sum()))

    def recall(self) -> Tensor:
        """``[K]``: the share of each class that was found; NaN for a class that did not occur."""
        counts = self.counts.double()
        return counts.diagonal() / counts.sum(1)

    def intersection_over_union(self) -> Tensor:
        """``[K]``: of each class; NaN for one that neither occurred nor was predicted."""
        counts = self.counts.double()
        hits = counts.diagonal()
        return hits / (counts.sum(0) + counts.sum(1) - hits)

    @property
    def mean_iou(self) -> float:
        """The mean of :meth:`intersection_over_union` over the classes that have one."""
        return float(self.intersection_over_union().nanmean())
