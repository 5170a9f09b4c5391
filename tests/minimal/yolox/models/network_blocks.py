"""Convolutions, and a backbone of three levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class BaseConv(nn.Sequential):
    """Convolution, norm, activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class Backbone(nn.Module):
    """Maps at an eighth, a sixteenth and a thirty-second of the image."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        sizes = zip((3, *channels), channels, (8, 2, 2), strict=False)
        self.stages = nn.ModuleList(nn.Conv2d(n, m, k, k) for n, m, k in sizes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        for i, stage in enumerate(self.stages, 3):
            x = stage(x)
            found[f"dark{i}"] = x
        return found
