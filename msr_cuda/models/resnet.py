r"""ResNets that see the image at several scales.

The trunk is a plain ResNet, with the parameter names of torchvision and timm, and runs on each
level of an image pyramid with the same weights; the maps of a stage are fused at the size of the
first scale's. With ``scales=[1.0]`` the network is that ResNet.

Example::

    >>> from msr_cuda.models import multiscale_encoder, multiscale_resnet18
    >>> network = multiscale_resnet18(scales=[1.0, 0.5], fusion="softmax", num_classes=10).eval()
    >>> network(torch.rand(1, 3, 61, 47)).shape
    torch.Size([1, 10])
    >>> encoder = multiscale_encoder("resnet18", scales=[1.0, 0.5]).eval()
    >>> [tuple(map_.shape[1:]) for map_ in encoder(torch.rand(1, 3, 61, 47))]
    [(64, 31, 24), (64, 16, 12), (128, 8, 6), (256, 4, 3), (512, 2, 2)]
    >>> encoder.feature_info.reduction()
    [2, 4, 8, 16, 32]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import BasicBlock, Bottleneck, ImagePyramid, make_fusion
from ..nn._layers import (
    batch_norm,
    check_choice,
    check_dims,
    convolution,
    initialize,
    max_pool,
    norm_jointly,
    spatial_mean,
)
from ._features import FeatureInfo

Block = type[BasicBlock] | type[Bottleneck]


class ResNetTrunk(nn.Module):
    """The convolutional part of a ResNet; gives the maps of its stages.

    Stage 0 is the stem's activation, stages 1 to 4 are the results of ``layer1`` to ``layer4``.

    Args:
        block: :class:`msr_cuda.nn.BasicBlock` or :class:`msr_cuda.nn.Bottleneck`.
        layers: how many blocks each of the four layers has.
        dims: number of spatial axes.
        in_channels: of the image.
        width: channels of the stem; layer k has ``width * 2**(k - 1)`` (times the block's
            expansion).
        stages: how many of the four layers are built, 1 to 4.
        stem_kernel, stem_stride: of the first convolution.

    Shapes: ``[N, in_channels, *spatial]`` to maps of half the size, a quarter, and so on, each
    rounded up.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition".
    """

    def __init__(
        self,
        block: Block,
        layers: Sequence[int],
        *,
        dims: int = 2,
        in_channels: int = 3,
        width: int = 64,
        stages: int = 4,
        stem_kernel: int = 7,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        check_dims("ResNetTrunk", dims)
        if not 1 <= stages <= len(layers):
            raise ValueError(f"ResNetTrunk: expected 1 to {len(layers)} stages, got {stages}")
        self.stages = stages
        self.conv1 = convolution(
            dims, in_channels, width, stem_kernel, stride=stem_stride, bias=False
        )
        self.bn1 = batch_norm(dims, width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = max_pool(dims)
        #: Of each stage, the stem's first.
        self.channels = [width]
        self.reductions = [stem_stride]
        previous = width
        for i, blocks in enumerate(layers[:stages]):
            channels = width * 2**i
            made = []
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                made.append(block(previous, channels, stride=stride, dims=dims))
                previous = channels * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*made))
            self.channels.append(previous)
            self.reductions.append(stem_stride * 2 ** (i + 1))
        initialize(self)

    def forward(self, x: Tensor, indices: Sequence[int] = (4,)) -> list[Tensor]:
        """The maps of the stages ``indices``, which ascend."""
        return self.forward_levels([x], indices)[0]

    def forward_levels(
        self, levels: Sequence[Tensor], indices: Sequence[int] = (4,)
    ) -> list[list[Tensor]]:
        """Of each of several images sizes the maps of the stages ``indices``, which ascend.

        In training, batch norms take their statistics over all levels together, as the running
        ones are that evaluation has.
        """
        x = norm_jointly(self.bn1, [self.conv1(level) for level in levels])
        x = [self.relu(map_) for map_ in x]
        stages = [x] if 0 in indices else []
        x = [self.maxpool(map_) for map_ in x]
        for i in range(1, max(indices) + 1):
            layer = self.get_submodule(f"layer{i}")
            x = layer(x) if len(x) > 1 else [layer(x[0])]
            if i in indices:
                stages.append(x)
        return [list(maps) for maps in zip(*stages, strict=True)]


class MultiScaleEncoder(nn.Module):
    r"""A ResNet on each level of an image pyramid, and the maps of its stages fused over scales.

    .. math:: y_k = \mathrm{fuse}_i \; R\bigl(f_k(T_{s_i}(x))\bigr)

    :math:`f_k` is the trunk up to stage k, the same for all scales; maps are brought to the size of
    the first scale's. Batch norms are shared too: in training their mean and variance are over the
    positions of all scales together, so that the running statistics are those it was trained with.

    Args:
        block, layers: of the trunk, see :class:`ResNetTrunk`.
        scales: 1 to 8 factors on the size of the image; the first gives the size of the maps. With
            one scale there is nothing to fuse.
        fusion: ``"sum"``, ``"softmax"``, ``"fast"``, ``"concat"``, ``"max"``, ``"attention"`` or
            ``"scale"``, see :func:`msr_cuda.nn.make_fusion`. None: only :meth:`by_scale` is of use.
        dims: number of spatial axes.
        in_channels: of the image.
        out_indices: which stages are fused and returned, ascending from 0 (the stem's) to 4. Layers
            above the last are not built.
        width, stem_kernel, stem_stride: of the trunk.
        filter: of the pyramid, see :class:`msr_cuda.nn.ImagePyramid`.

    Shapes: ``[N, in_channels, *spatial]``, of any size from one pixel, to a list of maps;
    ``feature_info`` says their channels and reductions. In training, batch norms need more than one
    value per channel at the coarsest stage of the smallest scale.

    Raises:
        ValueError: stages that do not ascend or do not exist; what the blocks reject.

    Source: the trunk with weights shared over a pyramid: Farabet et al. 2013, "Learning
    Hierarchical Features for Scene Labeling"; Chen et al. 2016, "Attention to Scale".
    """

    def __init__(
        self,
        block: Block,
        layers: Sequence[int],
        *,
        scales: Sequence[float] = (1.0, 0.5),
        fusion: str | None = "sum",
        dims: int = 2,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3, 4),
        width: int = 64,
        stem_kernel: int = 7,
        stem_stride: int = 2,
        filter: str = "antialias",
    ) -> None:
        super().__init__()
        indices = tuple(out_indices)
        if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0:
            raise ValueError(
                f"MultiScaleEncoder: expected out_indices to ascend from 0 or more, got {indices}"
            )
        self.pyramid = ImagePyramid(scales, filter=filter)
        self.trunk = ResNetTrunk(
            block,
            layers,
            dims=dims,
            in_channels=in_channels,
            width=width,
            stages=max(1, indices[-1]),
            stem_kernel=stem_kernel,
            stem_stride=stem_stride,
        )
        self.dims = dims
        self.out_indices = indices
        self.fusions = nn.ModuleList()
        if fusion is not None and len(self.pyramid.scales) > 1:
            for i in indices:
                channels = self.trunk.channels[i]
                self.fusions.append(make_fusion(fusion, scales, channels, dims=dims))
        names = ["relu", *[f"layer{i}" for i in range(1, self.trunk.stages + 1)]]
        self.feature_info = FeatureInfo(
            [
                {"num_chs": c, "reduction": r, "module": f"trunk.{name}"}
                for c, r, name in zip(
                    self.trunk.channels, self.trunk.reductions, names, strict=True
                )
            ],
            indices,
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The fused maps of the stages ``out_indices``."""
        return self._fused(self.by_scale(x))

    def forward_jointly(self, images: Sequence[Tensor]) -> list[list[Tensor]]:
        """Of each of several batches, which may differ in size, what :meth:`forward` gives.

        In training, batch norms of the trunk take their statistics over all of them together.
        """
        pyramids = [self.pyramid(x) for x in images]
        levels = [level for pyramid in pyramids for level in pyramid]
        by_scale = iter(self.trunk.forward_levels(levels, self.out_indices))
        return [self._fused([next(by_scale) for _ in pyramid]) for pyramid in pyramids]

    def _fused(self, by_scale: list[list[Tensor]]) -> list[Tensor]:
        if len(by_scale) == 1:
            return by_scale[0]
        stages = [list(maps) for maps in zip(*by_scale, strict=True)]
        return [fusion(maps) for fusion, maps in zip(self.fusions, stages, strict=True)]

    def by_scale(self, x: Tensor) -> list[list[Tensor]]:
        """Of each scale the maps of the stages ``out_indices``, before any fusion."""
        return self.trunk.forward_levels(self.pyramid(x), self.out_indices)


class Classifier(nn.Module):
    """What the classifiers share: ``encoder``, ``dropout`` and the linear layer ``fc``.

    Args:
        encoder: gives one map.
        num_classes: length of the result.
        dropout: probability with which what ``fc`` gets is zeroed in training.

    Raises:
        ValueError: the encoder gives the maps of several stages.
    """

    def __init__(
        self, encoder: MultiScaleEncoder, num_classes: int = 1000, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if len(encoder.out_indices) != 1:
            raise ValueError(
                f"{type(self).__name__}: expected an encoder with one stage in out_indices, got "
                f"{encoder.out_indices}"
            )
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(encoder.feature_info.channels()[0], num_classes)


class MultiScaleResNet(Classifier):
    """A classifier: :class:`MultiScaleEncoder`, the mean over positions, a linear layer.

    Args:
        encoder: gives one map.
        num_classes: length of the result.
        dropout: probability with which elements of the mean are zeroed in training.

    Shapes: ``[N, in_channels, *spatial]`` to logits ``[N, num_classes]``.
    """

    def forward_features(self, x: Tensor) -> Tensor:
        """``[N, C]``: what the linear layer gets; for a classifier of one's own (an SVM)."""
        (last,) = self.encoder(x)
        return spatial_mean(last)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        result: Tensor = self.fc(self.dropout(self.forward_features(x)))
        return result


class ScaleMixtureResNet(Classifier):
    r"""A classifier whose scales decide each by itself, and that adds up what they say.

    .. math::
        z_s = W \bar f(T_s(x)) + b, \qquad
        p(y \mid x) = \frac{\sum_s e^{z_{s,y}}}{\sum_{s,k} e^{z_{s,k}}}

    A scale that has nothing to say has small scores in all classes, and counts little: no other
    scale's features are mixed with its own. Trunk and linear layer are the same for all scales.
    :meth:`loss` also teaches each scale to classify alone. So an image whose objects are twice as
    large as any in training is, at half the scale, one that the network was trained for.

    Args:
        encoder: gives one map; its fusion is not used (``fusion=None``).
        num_classes: K, length of the result.
        dropout: probability with which elements of the means are zeroed in training.

    Shapes: ``[N, in_channels, *spatial]`` to logits ``[N, K]`` in evaluation; in training to the
    scores of the S scales, ``[N, S, K]``, as :meth:`loss` takes them.

    Source: scores by scale with a loss on each: Chen et al. 2016, "Attention to Scale"; shared
    weights and scores brought together over scales for sizes that were not trained: Jansson and
    Lindeberg 2022, "Scale-Invariant Scale-Channel Networks", who take the maximum or the mean.
    """

    def scores(self, x: Tensor) -> Tensor:
        """``[N, S, K]``: z of each scale."""
        means = torch.stack([spatial_mean(last) for (last,) in self.encoder.by_scale(x)], 1)
        result: Tensor = self.fc(self.dropout(means))
        return result

    @staticmethod
    def logits(scores: Tensor) -> Tensor:
        """``[N, K]``: the logarithm of the sum over scales, from ``[N, S, K]``."""
        return scores.logsumexp(1)

    def loss(self, scores: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross entropy: half of it the mixture's, half the mean over scales.

        Args:
            scores (Tensor[N, S, K]): what the network gives in training. Tensor[N, K], what it
                gives in evaluation: the mixture's cross entropy alone.
            targets (Tensor[N]): class numbers, int64.
            label_smoothing: as :func:`torch.nn.functional.cross_entropy`.
        """
        if scores.dim() == 2:
            return F.cross_entropy(scores, targets, label_smoothing=label_smoothing)
        both = torch.cat([self.logits(scores)[:, None], scores], 1)
        repeated = targets[:, None].expand(-1, both.shape[1]).flatten()
        each = F.cross_entropy(
            both.flatten(0, 1), repeated, label_smoothing=label_smoothing, reduction="none"
        ).unflatten(0, both.shape[:2])
        return (each[:, 0].mean() + each[:, 1:].mean()) / 2

    def forward(self, x: Tensor) -> Tensor:
        """Logits; in training the scores of each scale."""
        scores = self.scores(x)
        return scores if self.training else self.logits(scores)


#: Block and number of blocks by stage.
_DEPTHS: dict[str, tuple[Block, tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def multiscale_encoder(
    name: str = "resnet18", *, out_indices: Sequence[int] = (0, 1, 2, 3, 4), **options: Any
) -> MultiScaleEncoder:
    """Features by stage, as timm gives them with ``features_only=True``.

    Args:
        name: ``"resnet18"``, ``"resnet34"`` or ``"resnet50"``.
        out_indices: which stages, ascending; 0 is the stem's. Layers above the last are not built.
        **options: of :class:`MultiScaleEncoder`: ``scales``, ``fusion``, ``dims``,
            ``in_channels``, ``width``, ``stem_kernel``, ``stem_stride``, ``filter``.

    Returns:
        An encoder whose result is a list of maps, and whose ``feature_info`` describes them.

    Raises:
        ValueError: an unknown name, and what :class:`MultiScaleEncoder` rejects.
    """
    check_choice("multiscale_encoder", "name", name, tuple(_DEPTHS))
    block, layers = _DEPTHS[name]
    return MultiScaleEncoder(block, layers, out_indices=out_indices, **options)


def multiscale_resnet18(
    *, num_classes: int = 1000, dropout: float = 0.0, **options: Any
) -> MultiScaleResNet:
    """A multi-scale ResNet-18 that classifies.

    Args:
        num_classes, dropout: of :class:`MultiScaleResNet`.
        **options: of :class:`MultiScaleEncoder`: ``scales``, ``fusion``, ``dims``,
            ``in_channels``, ``width``, ``stem_kernel``, ``stem_stride``, ``filter``.

    Returns:
        The network, with random weights; those of a plain ResNet-18 load with
        :func:`msr_cuda.models.load_trunk`.
    """
    encoder = multiscale_encoder("resnet18", out_indices=(4,), **options)
    return MultiScaleResNet(encoder, num_classes, dropout=dropout)


def multiscale_resnet34(
    *, num_classes: int = 1000, dropout: float = 0.0, **options: Any
) -> MultiScaleResNet:
    """A multi-scale ResNet-34 that classifies; arguments as :func:`multiscale_resnet18`."""
    encoder = multiscale_encoder("resnet34", out_indices=(4,), **options)
    return MultiScaleResNet(encoder, num_classes, dropout=dropout)


def multiscale_resnet50(
    *, num_classes: int = 1000, dropout: float = 0.0, **options: Any
) -> MultiScaleResNet:
    """A multi-scale ResNet-50 that classifies; arguments as :func:`multiscale_resnet18`."""
    encoder = multiscale_encoder("resnet50", out_indices=(4,), **options)
    return MultiScaleResNet(encoder, num_classes, dropout=dropout)


def multiscale_speech_resnet18(
    *,
    num_classes: int = 35,
    scales: Sequence[float] = (1.0, 0.5),
    in_channels: int = 1,
    **options: Any,
) -> MultiScaleResNet:
    """A multi-scale ResNet-18 for waveforms ``[N, in_channels, time]``.

    The first convolution spans 79 samples and steps by 4: 10 ms windows at 8 kHz, as the networks
    on raw waveforms have them. A scale is a tempo and pitch: the same word, spoken slower or lower.

    Args:
        num_classes: of the classifier; 35 words has the Speech Commands data set.
        scales: of the waveform.
        in_channels: of the waveform; one is mono.
        **options: as :func:`multiscale_resnet18`, but for ``dims``.

    Source: the stem of Dai et al. 2017, "Very Deep Convolutional Neural Networks for Raw
    Waveforms", with an odd kernel.
    """
    options = {"stem_kernel": 79, "stem_stride": 4, **options}
    return multiscale_resnet18(
        num_classes=num_classes, scales=scales, in_channels=in_channels, dims=1, **options
    )
