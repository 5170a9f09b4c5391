"""Atrous spatial pyramid pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .wrappers import Conv2d


class ASPP(nn.Module):
    """A 1x1 convolution, three dilated ones and a pooled branch."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        dilations: tuple[int, int, int],
        pool_kernel_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout
        pool = nn.AdaptiveAvgPool2d(1)
        if pool_kernel_size is not None:
            pool = nn.AvgPool2d(pool_kernel_size, stride=1)
        self.convs = nn.ModuleList(
            [
                Conv2d(inputs, outputs, 1, activation=F.relu),
                *(Conv2d(inputs, outputs, 3, n, activation=F.relu) for n in dilations),
                nn.Sequential(pool, Conv2d(inputs, outputs, 1, activation=F.relu)),
            ]
        )
        self.project = Conv2d(5 * outputs, outputs, 1, activation=F.relu)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.pool_kernel_size is not None and (
            height % self.pool_kernel_size[0] or width % self.pool_kernel_size[1]
        ):
            raise ValueError(f"size {height, width} against pools of {self.pool_kernel_size}")
        branches = [branch(x) for branch in self.convs]
        pooled = F.interpolate(branches.pop(), (height, width), mode="bilinear")
        joined = self.project(torch.cat([*branches, pooled], 1))
        if self.dropout > 0:
            joined = F.dropout(joined, self.dropout, self.training)
        return joined
