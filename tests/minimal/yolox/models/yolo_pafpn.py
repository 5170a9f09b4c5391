"""The neck: down the levels, and up again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .network_blocks import Backbone, BaseConv


class YOLOPAFPN(nn.Module):
    """Concatenations with the upsampled coarser level, then with the halved finer one."""

    def __init__(self, in_channels: tuple[int, int, int]) -> None:
        super().__init__()
        fine, middle, coarse = in_channels
        self.backbone = Backbone(in_channels)
        self.in_features = ("dark3", "dark4", "dark5")
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0 = BaseConv(coarse, middle, 1)
        self.C3_p4 = BaseConv(2 * middle, middle, 3)
        self.reduce_conv1 = BaseConv(middle, fine, 1)
        self.C3_p3 = BaseConv(2 * fine, fine, 3)
        self.bu_conv2 = BaseConv(fine, fine, 3, 2)
        self.C3_n3 = BaseConv(2 * fine, middle, 3)
        self.bu_conv1 = BaseConv(middle, middle, 3, 2)
        self.C3_n4 = BaseConv(2 * middle, coarse, 3)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(input)
        c3, c4, c5 = (maps[name] for name in self.in_features)
        t5 = self.lateral_conv0(c5)
        t4 = self.reduce_conv1(self.C3_p4(torch.cat([self.upsample(t5), c4], 1)))
        p3 = self.C3_p3(torch.cat([self.upsample(t4), c3], 1))
        p4 = self.C3_n3(torch.cat([self.bu_conv2(p3), t4], 1))
        p5 = self.C3_n4(torch.cat([self.bu_conv1(p4), t5], 1))
        return p3, p4, p5
