"""A small network for single images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SRVGGNetCompact(nn.Module):
    """Convolutions at the image's size, shuffled to pixels, on top of the enlarged image."""

    def __init__(self, features: int = 6, convolutions: int = 1, upscale: int = 4) -> None:
        super().__init__()
        self.upscale = upscale
        self.body = nn.ModuleList([nn.Conv2d(3, features, 3, padding=1), nn.PReLU(features)])
        for _ in range(convolutions):
            self.body += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        self.body.append(nn.Conv2d(features, 3 * upscale**2, 3, padding=1))
        self.upsampler = nn.PixelShuffle(upscale)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.body:
            y = layer(y)
        out = self.upsampler(y)
        base = F.interpolate(x, scale_factor=float(self.upscale))
        out += base
        return out
