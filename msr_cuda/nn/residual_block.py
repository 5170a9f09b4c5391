"""The residual blocks of ResNets, in 1-D, 2-D and 3-D.

Example::

    >>> block = msr_cuda.nn.BasicBlock(8, 16, stride=2, dims=1)
    >>> block(torch.rand(2, 8, 41)).shape
    torch.Size([2, 16, 21])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, overload

from torch import Tensor, nn

from ._layers import batch_norm, check_dims, conv_norm_relu, convolution, norm_jointly


class _ResidualBlock(nn.Module):
    #: Channels of the result, in multiples of ``channels``.
    expansion: ClassVar[int]

    def __init__(self, in_channels: int, channels: int, stride: int, dims: int) -> None:
        super().__init__()
        check_dims(type(self).__name__, dims)
        out_channels = channels * self.expansion
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = conv_norm_relu(
                dims, in_channels, out_channels, 1, stride=stride, relu=False
            )
        self.relu = nn.ReLU(inplace=True)

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: list[Tensor]) -> list[Tensor]: ...
    def forward(self, x: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """One map, or maps of several sizes: batch norms then take statistics over all of them."""
        maps = [x] if isinstance(x, Tensor) else x
        pairs = zip(self.residual(maps), self.shortcut(maps), strict=True)
        sums = [self.relu(residual + shortcut) for residual, shortcut in pairs]
        return sums[0] if isinstance(x, Tensor) else sums

    def residual(self, maps: Sequence[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def shortcut(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if self.downsample is None:
            return list(maps)
        return norm_jointly(self.downsample, maps)


class BasicBlock(_ResidualBlock):
    r"""``relu(x + BN(conv3(relu(BN(conv3(x))))))``, for ResNet-18 and -34.

    The names of the parameters are torchvision's and timm's.

    Args:
        in_channels: of the input.
        channels: of the result.
        stride: of the first convolution, and of the shortcut's.
        dims: number of spatial axes.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", figure 5, left.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, dims: int = 2) -> None:
        super().__init__(in_channels, channels, stride, dims)
        self.conv1 = convolution(dims, in_channels, channels, 3, stride=stride, bias=False)
        self.bn1 = batch_norm(dims, channels)
        self.conv2 = convolution(dims, channels, channels, 3, bias=False)
        self.bn2 = batch_norm(dims, channels)

    def residual(self, maps: Sequence[Tensor]) -> list[Tensor]:
        y = [self.relu(x) for x in norm_jointly(self.bn1, [self.conv1(x) for x in maps])]
        return norm_jointly(self.bn2, [self.conv2(x) for x in y])


class Bottleneck(_ResidualBlock):
    r"""``relu(x + BN(conv1(relu(BN(conv3(relu(BN(conv1(x)))))))))``, for ResNet-50.

    The names of the parameters are torchvision's and timm's; so is the stride in the 3×3
    convolution ("ResNet v1.5").

    Args:
        in_channels: of the input.
        channels: of the 3×3 convolution; the result has four times as many.
        stride: of the 3×3 convolution, and of the shortcut's.
        dims: number of spatial axes.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", figure 5, right.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, dims: int = 2) -> None:
        super().__init__(in_channels, channels, stride, dims)
        self.conv1 = convolution(dims, in_channels, channels, bias=False)
        self.bn1 = batch_norm(dims, channels)
        self.conv2 = convolution(dims, channels, channels, 3, stride=stride, bias=False)
        self.bn2 = batch_norm(dims, channels)
        self.conv3 = convolution(dims, channels, channels * self.expansion, bias=False)
        self.bn3 = batch_norm(dims, channels * self.expansion)

    def residual(self, maps: Sequence[Tensor]) -> list[Tensor]:
        y = [self.relu(x) for x in norm_jointly(self.bn1, [self.conv1(x) for x in maps])]
        y = [self.relu(x) for x in norm_jointly(self.bn2, [self.conv2(x) for x in y])]
        return norm_jointly(self.bn3, [self.conv3(x) for x in y])
