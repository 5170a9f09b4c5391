"""Ways to bring maps of several sizes together: residual, by concatenation, or chosen by name.

Example::

    >>> fuse = msr_cuda.nn.ResidualFusion([16, 32], 24)
    >>> fuse([torch.rand(1, 16, 21, 30), torch.rand(1, 32, 11, 15)]).shape
    torch.Size([1, 24, 21, 30])
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..functional import Size
from ._layers import batch_norm, check_choice, check_dims, check_maps, convolution
from .image_pyramid import check_scales
from .resample import ResampleCat, ResampleMax, ResampleSum
from .scale_attention import LearnedScale, ScaleAttention

#: What :func:`make_fusion` makes.
FUSIONS = ("sum", "softmax", "fast", "concat", "max", "attention", "scale")


class ResidualFusion(nn.Module):
    r"""A residual connection across scales.

    .. math:: y = \mathrm{act}\Bigl(\sum_i w_i \, R_i(P_i x_i)\Bigr)

    :math:`P_i` is a 1×1 convolution where the map has another number of channels than the result,
    else the identity. It runs at the map's own size, before the resampling: the two commute, for
    resampling is linear and keeps constants, and coarse maps have fewer positions to convolve.

    Args:
        in_channels: channels of each map; the first gives the size of the result.
        channels: of the result.
        weights: None: all :math:`w_i` are 1; ``"softmax"`` or ``"fast"``: learned, and normalised
            so (BiFPN).
        dims: number of spatial axes.
        mode: how maps are resampled.
        activation: as :func:`msr_cuda.resample_sum`.

    Shapes: maps ``[N, in_channels_i, *spatial_i]`` to ``[N, channels, *size]``.

    Source: the identity shortcut of He et al. 2016, "Deep Residual Learning", across scales as in
    Lin et al. 2017, "Feature Pyramid Networks" and "RefineNet"; weights as Tan et al. 2020,
    "EfficientDet", section 3.3.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        weights: str | None = None,
        dims: int = 2,
        mode: str = "linear",
        activation: str | None = "relu",
    ) -> None:
        super().__init__()
        check_dims("ResidualFusion", dims)
        if weights is not None:
            check_choice("ResidualFusion", "weights", weights, ("softmax", "fast"))
        self.projections = nn.ModuleList(
            nn.Identity() if c == channels else convolution(dims, c, channels) for c in in_channels
        )
        self.sum = ResampleSum(
            None if weights is None else len(in_channels),
            normalize=weights,
            mode=mode,
            activation=activation,
        )

    def forward(self, maps: Sequence[Tensor], size: Size = None) -> Tensor:
        """Sums ``maps`` at ``size``; None: at the size of the first."""
        check_maps("ResidualFusion", maps, len(self.projections))
        projected = [p(x) for p, x in zip(self.projections, maps, strict=True)]
        result: Tensor = self.sum(projected, size)
        return result


class ConcatFusion(nn.Module):
    r"""Concatenates maps at one size and mixes them.

    .. math:: y = \mathrm{relu}(\mathrm{BN}(W * \mathrm{cat}_i R_i(x_i)))

    Args:
        in_channels: channels of each map; the first gives the size of the result.
        channels: of the result.
        kernel_size: of the convolution W, odd.
        dims: number of spatial axes.
        mode: how maps are resampled.

    Shapes: maps ``[N, in_channels_i, *spatial_i]`` to ``[N, channels, *size]``.

    Source: the concatenation of Ronneberger et al. 2015, "U-Net", of all scales at once as in
    Sun et al. 2019, "High-Resolution Representations for Labeling Pixels and Regions" (HRNetV2).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        kernel_size: int = 1,
        dims: int = 2,
        mode: str = "linear",
    ) -> None:
        super().__init__()
        check_dims("ConcatFusion", dims)
        self.in_channels = tuple(in_channels)
        self.cat = ResampleCat(mode=mode)
        self.conv = convolution(dims, sum(in_channels), channels, kernel_size, bias=False)
        self.norm = batch_norm(dims, channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Sequence[Tensor], size: Size = None) -> Tensor:
        """Fuses ``maps`` at ``size``; None: at the size of the first."""
        check_maps("ConcatFusion", maps, len(self.in_channels))
        result: Tensor = self.relu(self.norm(self.conv(self.cat(maps, size))))
        return result


def make_fusion(
    kind: str,
    scales: Sequence[float],
    channels: int,
    *,
    dims: int = 2,
    mode: str = "linear",
) -> nn.Module:
    """A module that fuses maps of several scales, all of ``channels``, into one of as many.

    Args:
        kind: ``"sum"``; ``"softmax"`` or ``"fast"``, sums with learned weights so normalised;
            ``"max"``; ``"concat"``, :class:`ConcatFusion`; ``"attention"``,
            :class:`ScaleAttention` per pixel; ``"scale"``, :class:`LearnedScale`.
        scales: of the maps, in their order.
        channels: of each map and of the result.
        dims: number of spatial axes.
        mode: how maps are resampled.

    Returns:
        A module called with the list of maps and, if it is not that of the first map, the size of
        the result.

    Raises:
        ValueError: an unknown ``kind``, or scales that cannot be.
    """
    check_choice("make_fusion", "kind", kind, FUSIONS)
    values = check_scales("make_fusion", scales)
    if kind == "max":
        return ResampleMax(mode=mode)
    if kind == "concat":
        return ConcatFusion([channels] * len(values), channels, dims=dims, mode=mode)
    if kind == "attention":
        return ScaleAttention(channels, len(values), dims=dims, mode=mode)
    if kind == "scale":
        return LearnedScale(values, mode=mode)
    if kind == "sum":
        return ResampleSum(mode=mode)
    return ResampleSum(len(values), normalize=kind, mode=mode)
