r"""Encoder and decoder for dense prediction, and semantic segmentation with it.

Example::

    >>> from msr_cuda.models import SegmentationNet, multiscale_encoder
    >>> encoder = multiscale_encoder("resnet18", scales=[1.0, 0.5])
    >>> network = SegmentationNet(encoder, num_classes=4, channels=32)
    >>> images, masks = torch.rand(2, 3, 75, 90), torch.randint(0, 4, (2, 75, 90))
    >>> network.loss(network(images), masks).backward()
    >>> network.eval().predict(images).shape
    torch.Size([2, 75, 90])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import functional
from ..nn import BasicBlock, ResampleSum, ResidualFusion
from ..nn._layers import check_dims, check_maps, conv_norm_relu, convolution, initialize
from ._features import encoder_dims, feature_info


class PyramidDecoder(nn.Module):
    r"""From the maps of an encoder to one map of the finest size.

    From the coarsest stage K to the finest, with residual fusion across scales,

    .. math:: d_K = B_K(P_K x_K), \qquad d_k = B_k\bigl(\mathrm{relu}(P_k x_k + R(d_{k+1}))\bigr)

    (:math:`P` a 1×1 convolution, :math:`B` a residual block), and then all levels at once,

    .. math:: y = \mathrm{relu}\Bigl(\sum_k w_k R(Q_k d_k)\Bigr)

    with :math:`Q_k` a 3×3 convolution and batch norm, and learned weights that start as ones.

    Args:
        in_channels: of each map, finest first.
        channels: of the decoder's maps and of the result.
        dims: number of spatial axes.
        mode: how maps are resampled.

    Shapes: maps ``[N, in_channels_k, *size_k]``, finest first, to ``[N, channels, *size_0]``.

    Source: the top-down path and the lateral convolutions of Lin et al. 2017, "Feature Pyramid
    Networks"; residual blocks there: Lin et al. 2017, "RefineNet"; the sum over levels: Kirillov et
    al. 2019, "Panoptic Feature Pyramid Networks".
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 128,
        *,
        dims: int = 2,
        mode: str = "linear",
    ) -> None:
        super().__init__()
        check_dims("PyramidDecoder", dims)
        self.top = convolution(dims, in_channels[-1], channels)
        self.fusions = nn.ModuleList(
            ResidualFusion([c, channels], channels, dims=dims, mode=mode) for c in in_channels[:-1]
        )
        self.blocks = nn.ModuleList(BasicBlock(channels, channels, dims=dims) for _ in in_channels)
        self.levels = nn.ModuleList(
            conv_norm_relu(dims, channels, channels, relu=False) for _ in in_channels
        )
        self.merge = ResampleSum(len(in_channels), mode=mode, activation="relu")
        initialize(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The decoded map, of the size of ``maps[0]``."""
        check_maps("PyramidDecoder", maps, len(self.blocks))
        last = self.blocks[-1](self.top(maps[-1]))
        decoded = [last]
        for i in range(len(maps) - 2, -1, -1):
            last = self.blocks[i](self.fusions[i]([maps[i], last]))
            decoded.insert(0, last)
        merged = [level(d) for level, d in zip(self.levels, decoded, strict=True)]
        result: Tensor = self.merge(merged)
        return result


class EncoderDecoder(nn.Module):
    """A multi-scale encoder, a :class:`PyramidDecoder` and a 1×1 convolution.

    Args:
        encoder: gives a list of maps, finest first, all of which the decoder takes, and has
            ``feature_info``: :func:`multiscale_encoder`, or one of timm's.
        out_channels: of the prediction.
        channels: of the decoder.
        full_size: resample the prediction to the size of the image; else it has that of the
            encoder's finest map.
        mode: how maps are resampled.

    Shapes: ``[N, C, *spatial]`` to ``[N, out_channels, *spatial]``, or smaller.
    """

    def __init__(
        self,
        encoder: nn.Module,
        out_channels: int,
        *,
        channels: int = 128,
        full_size: bool = True,
        mode: str = "linear",
    ) -> None:
        super().__init__()
        channels_by_stage = feature_info(type(self).__name__, encoder).channels()
        dims = encoder_dims(encoder)
        self.full_size = full_size
        self.mode = mode
        self.encoder = encoder
        self.decoder = PyramidDecoder(channels_by_stage, channels, dims=dims, mode=mode)
        self.head = convolution(dims, channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """The prediction."""
        prediction: Tensor = self.head(self.decoder(self.encoder(x)))
        if self.full_size:
            prediction = functional.resample(prediction, x.shape[2:], mode=self.mode)
        return prediction


class SegmentationNet(EncoderDecoder):
    """Semantic segmentation: logits of the size of the encoder's finest map.

    The loss and the decision resample the logits to the size of the target themselves
    (:func:`msr_cuda.resample_cross_entropy`, :func:`msr_cuda.resample_argmax`), so that a network
    never has to.

    Args:
        encoder, channels, mode: as :class:`EncoderDecoder`.
        num_classes: 2 or more classes of which each position has one; 1: a mask, whose logit is
            positive inside.

    Shapes: ``[N, C, *spatial]`` to logits ``[N, num_classes, *size_0]``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        *,
        channels: int = 128,
        mode: str = "linear",
    ) -> None:
        super().__init__(encoder, num_classes, channels=channels, full_size=False, mode=mode)
        self.num_classes = num_classes

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """The mean cross entropy at the size of the target.

        Args:
            logits: what the network gives.
            target (Tensor[N, *spatial]): class numbers; with one class, the mask: any dtype,
                0 outside and 1 inside.
            weight, ignore_index, label_smoothing: as :func:`torch.nn.functional.cross_entropy`;
                not for one class.

        Returns:
            Tensor: a scalar.
        """
        if self.num_classes > 1:
            return functional.resample_cross_entropy(
                logits, target, mode=self.mode, weight=weight, ignore_index=ignore_index,
                label_smoothing=label_smoothing,
            )  # fmt: skip
        if weight is not None or ignore_index != -100 or label_smoothing:
            raise ValueError(
                "SegmentationNet.loss: expected weight, ignore_index and label_smoothing only with "
                "several classes, got one of them with num_classes=1"
            )
        return functional.resample_binary_cross_entropy_with_logits(
            logits, target.unsqueeze(1), mode=self.mode
        )

    def decide(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """``[N, *size]``: the class of each position, int64.

        Args:
            logits: what the network gives.
            size: of the result.
        """
        if self.num_classes > 1:
            classes = functional.resample_argmax(logits, size, mode=self.mode)
            assert isinstance(classes, Tensor)
            return classes
        return (functional.resample(logits, size, mode=self.mode)[:, 0] > 0).long()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """``[N, *spatial]``: the class of each position of the image, int64."""
        return self.decide(self(x), x.shape[2:])
