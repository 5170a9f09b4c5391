"""A small classifier of its own: a pyramid, convolutions at each scale, fusion, a linear layer.

Example::

    >>> from msr_cuda.models import MultiScaleCNN
    >>> network = MultiScaleCNN(10, in_channels=1, scales=[1.0, 0.5, 0.25]).eval()
    >>> network(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..nn import ImagePyramid, make_fusion
from ..nn._layers import (
    check_dims,
    conv_norm_relu,
    initialize,
    max_pool,
    norm_jointly,
    spatial_mean,
)


class MultiScaleCNN(nn.Module):
    """Convolutions on each level of an image pyramid, fused, and classified.

    Each column is a chain of 3×3 convolution, batch norm, ReLU, with a max-pooling by 2 between
    them. The maps of the columns are fused at the size of the first scale's; one more convolution,
    the mean over positions and a linear layer follow.

    Args:
        num_classes: length of the result.
        in_channels: of the image.
        widths: channels of each convolution of a column.
        scales: 1 to 8 factors on the size of the image.
        fusion: see :func:`msr_cuda.nn.make_fusion`.
        shared: all scales have the same convolutions and batch norms, whose statistics in training
            are over all scales together; else each has a column of its own.
        dims: number of spatial axes.
        filter: of the pyramid.

    Shapes: ``[N, in_channels, *spatial]`` to logits ``[N, num_classes]``.

    Source: columns that share their weights: Farabet et al. 2013, "Learning Hierarchical Features
    for Scene Labeling"; columns of their own: Buyssens et al. 2012, "Multiscale Convolutional
    Neural Networks for Vision-Based Classification of Cells".
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 64, 128),
        scales: Sequence[float] = (1.0, 0.5, 0.25),
        fusion: str = "softmax",
        shared: bool = True,
        dims: int = 2,
        filter: str = "antialias",
    ) -> None:
        super().__init__()
        check_dims("MultiScaleCNN", dims)
        self.shared = shared
        self.pyramid = ImagePyramid(scales, filter=filter)
        self.columns = nn.ModuleList(
            _column(dims, in_channels, widths) for _ in range(1 if shared else len(scales))
        )
        self.fusion = make_fusion(fusion, scales, widths[-1], dims=dims)
        self.last = conv_norm_relu(dims, widths[-1], widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        initialize(self.columns)
        initialize(self.last)

    def forward_features(self, x: Tensor) -> Tensor:
        """``[N, C]``: what the linear layer gets."""
        levels = self.pyramid(x)
        if self.shared:
            maps = norm_jointly(self.columns[0], levels)
        else:
            maps = [column(level) for column, level in zip(self.columns, levels, strict=True)]
        return spatial_mean(self.last(self.fusion(maps)))

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        result: Tensor = self.fc(self.forward_features(x))
        return result


def _column(dims: int, in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        if i:
            layers.append(max_pool(dims))
        layers.append(conv_norm_relu(dims, in_channels, width))
        in_channels = width
    return nn.Sequential(*layers)
