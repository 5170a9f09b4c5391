"""Parts of EDVR that need no deformable convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that pads."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


class PredeblurModule(nn.Module):
    """A pyramid of three levels, summed from the coarsest up."""

    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.conv_first = conv(3, features)
        self.stride_conv_l2 = conv(features, features, stride=2)
        self.stride_conv_l3 = conv(features, features, stride=2)
        self.resblock_l3 = conv(features, features)
        self.resblock_l2_1 = conv(features, features)
        self.resblock_l2_2 = conv(features, features)
        self.resblock_l1 = nn.ModuleList(conv(features, features) for _ in range(5))
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.lrelu = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        feat_l1 = self.lrelu(self.conv_first(x))
        feat_l2 = self.lrelu(self.stride_conv_l2(feat_l1))
        feat_l3 = self.lrelu(self.stride_conv_l3(feat_l2))
        feat_l3 = self.upsample(self.resblock_l3(feat_l3))
        feat_l2 = self.resblock_l2_1(feat_l2) + feat_l3
        feat_l2 = self.upsample(self.resblock_l2_2(feat_l2))
        for i, block in enumerate(self.resblock_l1):
            if i == 2:
                feat_l1 = feat_l1 + feat_l2
            feat_l1 = block(feat_l1)
        return feat_l1


class TSAFusion(nn.Module):
    """Weights of frames by likeness to the middle one, then of pixels by a pyramid of attention."""

    def __init__(self, features: int = 4, frames: int = 3) -> None:
        super().__init__()
        self.center_frame_idx = frames // 2
        self.temporal_attn1 = conv(features, features)
        self.temporal_attn2 = conv(features, features)
        self.feat_fusion = conv(frames * features, features, 1)
        self.max_pool = nn.MaxPool2d(3, 2, 1)
        self.avg_pool = nn.AvgPool2d(3, 2, 1)
        self.spatial_attn1 = conv(frames * features, features, 1)
        self.spatial_attn2 = conv(2 * features, features, 1)
        self.spatial_attn3 = conv(features, features)
        self.spatial_attn4 = conv(features, features, 1)
        self.spatial_attn5 = conv(features, features)
        self.spatial_attn_l1 = conv(features, features, 1)
        self.spatial_attn_l2 = conv(2 * features, features)
        self.spatial_attn_l3 = conv(features, features)
        self.spatial_attn_add1 = conv(features, features, 1)
        self.spatial_attn_add2 = conv(features, features, 1)
        self.lrelu = nn.LeakyReLU(0.1, inplace=True)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def pooled(self, x: Tensor) -> Tensor:
        """Both poolings behind each other."""
        return torch.cat([self.max_pool(x), self.avg_pool(x)], 1)

    def forward(self, aligned_feat: Tensor) -> Tensor:
        middle = self.temporal_attn1(aligned_feat[:, self.center_frame_idx])
        frames = aligned_feat.unbind(1)
        likeness = [(self.temporal_attn2(x) * middle).sum(1, keepdim=True) for x in frames]
        pairs = zip(frames, likeness, strict=True)
        weighted = torch.cat([x * torch.sigmoid(weight) for x, weight in pairs], 1)
        feat = self.lrelu(self.feat_fusion(weighted))
        attn = self.lrelu(self.spatial_attn1(weighted))
        attn = self.lrelu(self.spatial_attn2(self.pooled(attn)))
        attn_level = self.lrelu(self.spatial_attn_l1(attn))
        attn_level = self.lrelu(self.spatial_attn_l2(self.pooled(attn_level)))
        attn_level = self.lrelu(self.spatial_attn_l3(attn_level))
        attn_level = self.upsample(attn_level)
        attn = self.lrelu(self.spatial_attn3(attn)) + attn_level
        attn = self.lrelu(self.spatial_attn4(attn))
        attn = self.upsample(attn)
        attn = self.spatial_attn5(attn)
        shift = self.spatial_attn_add2(self.lrelu(self.spatial_attn_add1(attn)))
        return feat * torch.sigmoid(attn) * 2 + shift
