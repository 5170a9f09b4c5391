"""The heads of DeepLabV3 and DeepLabV3+."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.aspp import ASPP
from ...layers.wrappers import Conv2d


class _Head(nn.Module):
    """What both share: the loss."""

    def __init__(self, common_stride: int, ignore_value: int, loss_weight: float) -> None:
        super().__init__()
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.loss: nn.Module = nn.CrossEntropyLoss(ignore_index=ignore_value)

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss of logits at the targets' size."""
        return {"loss_sem_seg": self.loss_weight * self.loss(self.upsampled(predictions), targets)}

    def upsampled(self, logits: Tensor) -> Tensor:
        """At the images' size."""
        return F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear")


class DeepLabV3PlusHead(_Head):
    """ASPP on the coarsest map, then one fusion with each finer one.

    Args:
        channels: of each map by name, the finest first.
        hidden: channels of every stage.
        classes: None: no logits, but maps.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        hidden: int,
        classes: int | None,
        common_stride: int = 4,
        ignore_value: int = 255,
        loss_weight: float = 0.5,
    ) -> None:
        super().__init__(common_stride, ignore_value, loss_weight)
        self.in_features = list(channels)
        self.decoder = nn.ModuleDict()
        *fine, coarsest = channels
        for name in fine:
            self.decoder[name] = nn.ModuleDict(
                {
                    "project_conv": Conv2d(channels[name], hidden // 2, 1, activation=F.relu),
                    "fuse_conv": Conv2d(hidden // 2 + hidden, hidden, 3, activation=F.relu),
                }
            )
        aspp = ASPP(channels[coarsest], hidden, (1, 2, 3))
        self.decoder[coarsest] = nn.ModuleDict({"project_conv": aspp, "fuse_conv": None})
        self.decoder_only = classes is None
        if classes is not None:
            self.predictor = Conv2d(hidden, classes, 1)

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None) -> Any:
        result = self.layers(features)
        if self.decoder_only:
            return result
        if self.training:
            return None, self.losses(result, targets)
        return self.upsampled(result), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """The logits, or the maps of the decoder."""
        result: Any = None
        for name in reversed(self.in_features):
            stage: Any = self.decoder[name]
            side = stage["project_conv"](features[name])
            if stage["fuse_conv"] is None:
                result = side
                continue
            result = F.interpolate(result, side.shape[2:], mode="bilinear")
            result = stage["fuse_conv"](torch.cat([side, result], 1))
        return result if self.decoder_only else self.predictor(result)


class DeepLabV3Head(_Head):
    """ASPP and a classifier."""

    def __init__(
        self,
        name: str,
        channels: tuple[int, int, int],
        common_stride: int = 8,
        ignore_value: int = 255,
        loss_weight: float = 0.5,
    ) -> None:
        super().__init__(common_stride, ignore_value, loss_weight)
        inputs, hidden, classes = channels
        self.in_features = [name]
        self.aspp = ASPP(inputs, hidden, (1, 2, 3))
        self.predictor = Conv2d(hidden, classes, 1)

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None) -> Any:
        (name,) = self.in_features
        logits = self.predictor(self.aspp(features[name]))
        if self.training:
            return None, self.losses(logits, targets)
        return self.upsampled(logits), {}
