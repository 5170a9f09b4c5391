"""Weights over scales that depend on the input, and a scale that is learned.

Example::

    >>> attend = msr_cuda.nn.ScaleAttention(8, 2, per="pixel")
    >>> attend([torch.rand(1, 8, 20, 31), torch.rand(1, 8, 10, 16)]).shape
    torch.Size([1, 8, 20, 31])
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import functional
from ..functional import Size
from ._layers import check_choice, check_dims, check_maps, convolution, spatial_mean
from .image_pyramid import check_scales

GRANULARITIES = ("pixel", "image", "channel")


class ScaleAttention(nn.Module):
    r"""Sums maps of several scales with weights that a small network finds from the maps.

    .. math::
        y = \mathrm{act}\Bigl(\sum_i a_i \, R_i(x_i)\Bigr), \qquad
        a = \mathrm{softmax}_i(z_i)

    with scores :math:`z` by ``per``:

    - ``"pixel"``: :math:`z = K * \mathrm{relu}(\mathrm{cat}_i R_i(P_i x_i))`, a score for each
      scale at each position of the result. :math:`P_i` are 1×1 convolutions to ``hidden`` channels
      at each map's own size, so that only those are resampled; :math:`K` is a convolution to S
      channels.
    - ``"image"``: :math:`z = W_2 \mathrm{relu}(W_1 \mathrm{cat}_i \bar x_i)`, one score for each
      scale and image, from the means over positions.
    - ``"channel"``: :math:`z_i = W_{2,i} \mathrm{relu}(W_1 \sum_i \bar x_i)`, a score for each
      scale, image and channel.

    The last layer starts as zeros, so that the block starts as the mean over scales.

    Args:
        channels: C, of every map and of the result.
        num_scales: S, the number of maps, at most 8.
        per: ``"pixel"``, ``"image"`` or ``"channel"``.
        hidden: width of the score network. Default: ``max(8, channels // 8)``.
        kernel_size: of :math:`K`, odd; for ``"pixel"`` only.
        dims: number of spatial axes.
        mode: how maps are resampled.
        activation: as :func:`msr_cuda.resample_sum`.

    Shapes: S maps ``[N, C, *spatial_i]`` to ``[N, C, *size]``.

    Raises:
        ValueError: another number of maps; an unknown ``per``; ``kernel_size`` where it has no use.

    Source: per pixel Chen et al. 2016, "Attention to Scale: Scale-Aware Semantic Image
    Segmentation" (``kernel_size=3``), and Liu et al. 2019, "Learning Spatial Fusion for Single-Shot
    Object Detection" (ASFF, ``kernel_size=1``); per channel Li et al. 2019, "Selective Kernel
    Networks", with means over each map's own positions and without the batch norm.
    """

    def __init__(
        self,
        channels: int,
        num_scales: int,
        *,
        per: str = "pixel",
        hidden: int | None = None,
        kernel_size: int = 1,
        dims: int = 2,
        mode: str = "linear",
        activation: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("ScaleAttention", "per", per, GRANULARITIES)
        check_dims("ScaleAttention", dims)
        if per != "pixel" and kernel_size != 1:
            raise ValueError(
                f'ScaleAttention: expected kernel_size only with per="pixel", got {kernel_size} '
                f"with per={per!r}"
            )
        hidden = max(8, channels // 8) if hidden is None else hidden
        self.per = per
        self.channels = channels
        self.num_scales = num_scales
        self.mode = mode
        self.activation = activation
        if per == "pixel":
            self.compress = nn.ModuleList(
                convolution(dims, channels, hidden) for _ in range(num_scales)
            )
            self.score = convolution(dims, num_scales * hidden, num_scales, kernel_size)
        else:
            pooled = num_scales * channels if per == "image" else channels
            scores = num_scales if per == "image" else num_scales * channels
            self.squeeze = nn.Linear(pooled, hidden)
            self.score = nn.Linear(hidden, scores)
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def scores(self, maps: Sequence[Tensor], size: Size = None) -> Tensor:
        """The scores before softmax: ``[N, S, 1, *size]`` per pixel, else ``[N, S, C]``."""
        check_maps("ScaleAttention", maps, self.num_scales)
        if self.per == "pixel":
            compressed = [p(x) for p, x in zip(self.compress, maps, strict=True)]
            joined = functional.resample_cat(
                compressed, maps[0].shape[2:] if size is None else size,
                mode=self.mode, activation="relu",
            )  # fmt: skip
            found: Tensor = self.score(joined)
            return found.unsqueeze(2)
        means = [spatial_mean(x) for x in maps]
        pooled = torch.cat(means, 1) if self.per == "image" else torch.stack(means).sum(0)
        found = self.score(self.squeeze(pooled).relu())
        return found.view(len(pooled), self.num_scales, -1).expand(-1, -1, self.channels)

    def forward(self, maps: Sequence[Tensor], size: Size = None) -> Tensor:
        """The weighted sum at ``size``; None: at the size of the first map."""
        return functional.resample_sum(
            maps, size, weights=self.scores(maps, size), normalize="softmax", mode=self.mode,
            activation=self.activation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The options."""
        return (
            f"{self.channels}, num_scales={self.num_scales}, per={self.per!r}, mode={self.mode!r}"
        )


class LearnedScale(nn.Module):
    r"""Reads a pyramid at a scale that is learned.

    Sizes are integers and have no gradient. So the scale is not the size of a map, but a place
    between maps of fixed scales :math:`s_i`: with the learned :math:`\lambda` in octaves,

    .. math::
        y = \sum_i a_i \, R_i(x_i), \qquad
        a = \mathrm{softmax}_i\Bigl(-\frac{(\log_2 s_i - \lambda)^2}{2 w^2}\Bigr)

    interpolates between the neighbours of the scale :math:`2^\lambda`, and is differentiable in
    :math:`\lambda` everywhere. One instance per encoder stage gives each stage a scale of its own.

    Args:
        scales: the scale of each map, 1 to 8 different positive numbers.
        channels: None: one scale for all; C: one for each channel.
        initial: the scale it starts at. Default: ``scales[0]``.
        width: w, in octaves: how far neighbours count.
        mode: how maps are resampled.
        activation: as :func:`msr_cuda.resample_sum`.

    Shapes: S maps ``[N, C, *spatial_i]`` to ``[N, C, *size]``; the parameter ``log_scale`` is
    ``[1]`` or ``[C]``.

    Raises:
        ValueError: another number of maps, or a number that has to be positive and is not.

    Source: the softmax over scales of Chen et al. 2016 ("Attention to Scale"), its scores a
    Gaussian window over the logarithm of the scale.
    """

    log_scales: Tensor

    def __init__(
        self,
        scales: Sequence[float],
        *,
        channels: int | None = None,
        initial: float | None = None,
        width: float = 0.5,
        mode: str = "linear",
        activation: str | None = None,
    ) -> None:
        super().__init__()
        values = check_scales("LearnedScale", scales)
        if len(set(values)) != len(values):
            raise ValueError(f"LearnedScale: expected different scales, got {values}")
        start = values[0] if initial is None else initial
        for name, value in (("initial", start), ("width", width)):
            if not value > 0:
                raise ValueError(f"LearnedScale: expected {name} to be positive, got {value}")
        self.scales = values
        self.width = width
        self.mode = mode
        self.activation = activation
        logs = torch.tensor([math.log2(s) for s in values])
        self.register_buffer("log_scales", logs, persistent=False)
        self.log_scale = nn.Parameter(torch.full((channels or 1,), math.log2(start)))

    @property
    def scale(self) -> Tensor:
        """The learned scale, ``[1]`` or ``[C]``."""
        return self.log_scale.detach().exp2()

    def weights(self) -> Tensor:
        """The factors of the maps: ``[S]``, or ``[S, C]`` with a scale for each channel."""
        distance = self.log_scales.unsqueeze(1) - self.log_scale
        factors = (-distance.square() / (2 * self.width**2)).softmax(0)
        return factors.squeeze(1)  # keeps the axis where there are several channels

    def forward(self, maps: Sequence[Tensor], size: Size = None) -> Tensor:
        """The maps read at the learned scale, at ``size``; None: of the size of the first."""
        check_maps("LearnedScale", maps, len(self.scales))
        return functional.resample_sum(
            maps, size, weights=self.weights(), mode=self.mode, activation=self.activation
        )

    def extra_repr(self) -> str:
        """The scales."""
        return f"scales={self.scales}, width={self.width}, mode={self.mode!r}"
