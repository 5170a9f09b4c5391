"""The network of ESRGAN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class RRDBNet(nn.Module):
    """Convolutions at the image's size, and two more after each of two enlargements."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(features, features, 3, padding=1), nn.LeakyReLU(0.2))
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)
        self.lrelu = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        feat = self.conv_first(x)
        feat = feat + self.body(feat)
        for conv in (self.conv_up1, self.conv_up2):
            feat = self.lrelu(conv(F.interpolate(feat, scale_factor=2)))
        return self.conv_last(feat)
