"""A recurrent network for video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicVSR(nn.Module):
    """Features are passed through the frames, backwards and forwards; each frame is enlarged.

    Nothing is aligned here: flows have no part in the fusion at the end.
    """

    def __init__(self, num_feat: int = 4) -> None:
        super().__init__()
        self.num_feat = num_feat
        self.backward_trunk = nn.Conv2d(num_feat + 3, num_feat, 3, padding=1)
        self.forward_trunk = nn.Conv2d(num_feat + 3, num_feat, 3, padding=1)
        self.fusion = nn.Conv2d(2 * num_feat, num_feat, 1)
        self.upconv1 = nn.Conv2d(num_feat, 4 * num_feat, 3, padding=1)
        self.upconv2 = nn.Conv2d(num_feat, 4 * num_feat, 3, padding=1)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(2)
        self.lrelu = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unbind(1)
        state = x.new_zeros(x.shape[0], self.num_feat, *x.shape[3:])
        behind: list[Tensor] = []
        for frame in reversed(frames):
            state = self.backward_trunk(torch.cat([frame, state], 1))
            behind.insert(0, state)
        state = torch.zeros_like(state)
        results = []
        for frame, later in zip(frames, behind, strict=True):
            state = self.forward_trunk(torch.cat([frame, state], 1))
            out = self.lrelu(self.fusion(torch.cat([later, state], 1)))
            for conv in (self.upconv1, self.upconv2):
                out = self.lrelu(self.pixel_shuffle(conv(out)))
            out = self.conv_last(out)
            base = F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)
            out += base
            results.append(out)
        return torch.stack(results, 1)
