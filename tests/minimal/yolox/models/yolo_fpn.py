"""The neck of YOLOv3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .network_blocks import Backbone, BaseConv


class YOLOFPN(nn.Module):
    """Concatenations with the upsampled coarser level."""

    def __init__(self, in_channels: tuple[int, int, int]) -> None:
        super().__init__()
        fine, middle, coarse = in_channels
        self.backbone = Backbone(in_channels)
        self.in_features = ["dark3", "dark4", "dark5"]
        self.out1_cbl = BaseConv(coarse, middle, 1)
        self.out1 = nn.Sequential(BaseConv(2 * middle, middle, 1), BaseConv(middle, middle, 3))
        self.out2_cbl = BaseConv(middle, fine, 1)
        self.out2 = nn.Sequential(BaseConv(2 * fine, fine, 1), BaseConv(fine, fine, 3))
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(inputs)
        c3, c4, c5 = (maps[name] for name in self.in_features)
        p4 = self.out1(torch.cat([self.upsample(self.out1_cbl(c5)), c4], 1))
        p3 = self.out2(torch.cat([self.upsample(self.out2_cbl(p4)), c3], 1))
        return p3, p4, c5
