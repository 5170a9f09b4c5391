"""The semantic head of Panoptic FPN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.wrappers import Conv2d


class SemSegFPNHead(nn.Module):
    """Levels are convolved and doubled until all have one size, summed, and classified.

    Args:
        strides: of each level, by name.
        channels: of the levels, of the head, and the number of classes.
        common_stride: of the logits.
        ignore_value: class that counts nothing.
    """

    def __init__(
        self,
        strides: Mapping[str, int],
        channels: tuple[int, int, int],
        common_stride: int = 4,
        ignore_value: int = 255,
        loss_weight: float = 0.5,
    ) -> None:
        super().__init__()
        inputs, hidden, classes = channels
        self.in_features = list(strides)
        self.common_stride = common_stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.scale_heads: list[nn.Module] = []  # a plain list beside the modules by name
        for name, stride in strides.items():
            layers: list[nn.Module] = []
            for k in range(max(1, (stride // common_stride).bit_length() - 1)):
                norm = nn.GroupNorm(2, hidden)
                layers.append(Conv2d(hidden if k else inputs, hidden, 3, 1, norm, F.relu))
                if stride != common_stride:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            head = nn.Sequential(*layers)
            self.add_module(name, head)
            self.scale_heads.append(head)
        self.predictor = Conv2d(hidden, classes, 1)

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None) -> Any:
        logits = self.layers(features)
        if self.training:
            return None, self.losses(logits, targets)
        return self.upsampled(logits), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """The logits."""
        pairs = zip(self.in_features, self.scale_heads, strict=True)
        first, *others = (head(features[name]) for name, head in pairs)
        for other in others:
            first = first + other
        return self.predictor(first)

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss of logits at the targets' size, in float32."""
        logits = self.upsampled(predictions.float())
        loss = F.cross_entropy(logits, targets, ignore_index=self.ignore_value)
        return {"loss_sem_seg": self.loss_weight * loss}

    def upsampled(self, logits: Tensor) -> Tensor:
        """At the images' size."""
        return F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear")
