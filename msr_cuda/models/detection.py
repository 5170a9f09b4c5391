"""Backbones for torchvision's detectors, without torchvision.

Example::

    >>> from msr_cuda.models import multiscale_encoder, retinanet_backbone
    >>> backbone = retinanet_backbone(multiscale_encoder("resnet18")).eval()
    >>> maps = backbone(torch.rand(1, 3, 65, 97))
    >>> {name: tuple(map_.shape[2:]) for name, map_ in maps.items()}
    {'0': (9, 13), '1': (5, 7), '2': (3, 4), 'p6': (2, 2), 'p7': (1, 1)}
    >>> backbone.out_channels
    256

    detector = torchvision.models.detection.RetinaNet(backbone, num_classes=21)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import FeaturePyramidNetwork
from ._features import encoder_dims, feature_info


class MaxPoolLevel(nn.Module):
    """One more level: every second element of the coarsest.

    Source: Lin et al. 2017, "Feature Pyramid Networks", section 4.1.
    """

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """The levels and names, extended."""
        return [*results, F.max_pool2d(results[-1], 1, 2, 0)], [*names, "pool"]


class ConvLevels(nn.Module):
    """Two more levels by strided convolutions, from the coarsest.

    Args:
        channels: of every level.

    Source: P6 and P7 of Lin et al. 2017, "Focal Loss for Dense Object Detection", here from P5.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(channels, channels, 3, 2, 1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, 1)
        for layer in (self.p6, self.p7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """The levels and names, extended."""
        p6 = self.p6(results[-1])
        p7 = self.p7(p6.relu())
        return [*results, p6, p7], [*names, "p6", "p7"]


class PyramidBackbone(nn.Module):
    """A multi-scale encoder and a feature pyramid network, as torchvision's detectors take them.

    Args:
        encoder: 2-D; gives a list of maps, finest first, and has ``feature_info``:
            :func:`multiscale_encoder`, or one of timm's.
        stages: which of its maps are used, by their stage.
        out_channels: of every level; the attribute of that name is what detectors ask for.
        extra: makes more levels, see :class:`msr_cuda.nn.FeaturePyramidNetwork`.

    Shapes: ``[N, C, H, W]`` to an OrderedDict of maps ``[N, out_channels, H_k, W_k]``, finest
    first; the keys are ``"0"``, ``"1"``, ... and those of ``extra``, as in torchvision's backbones.

    Raises:
        ValueError: an encoder that is not 2-D, or that lacks a stage.
        TypeError: no encoder.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        stages: Sequence[int],
        out_channels: int = 256,
        extra: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if encoder_dims(encoder) != 2:
            raise ValueError(
                f"PyramidBackbone: expected a 2-D encoder, got dims={encoder_dims(encoder)}"
            )
        info = feature_info("PyramidBackbone", encoder)
        given = tuple(info.out_indices)
        if not set(stages) <= set(given):
            raise ValueError(
                f"PyramidBackbone: expected an encoder with the stages {tuple(stages)} in "
                f"out_indices, got {given}"
            )
        self.encoder = encoder
        self.out_channels = out_channels
        self.used = tuple(given.index(i) for i in stages)
        channels = info.channels(list(stages))
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=extra)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """The levels, finest first."""
        maps = self.encoder(x)
        used = OrderedDict((str(i), maps[place]) for i, place in enumerate(self.used))
        levels: OrderedDict[str, Tensor] = self.fpn(used)
        return levels


def retinanet_backbone(encoder: nn.Module, out_channels: int = 256) -> PyramidBackbone:
    """Five levels of reduction 8 to 128, as torchvision's RetinaNet and FCOS expect by default.

    Args:
        encoder: with the stages 2, 3 and 4.
        out_channels: of every level.
    """
    extra = ConvLevels(out_channels)
    return PyramidBackbone(encoder, stages=(2, 3, 4), out_channels=out_channels, extra=extra)


def faster_rcnn_backbone(encoder: nn.Module, out_channels: int = 256) -> PyramidBackbone:
    """Five levels of reduction 4 to 64, as torchvision's Faster R-CNN expects by default.

    Args:
        encoder: with the stages 1 to 4.
        out_channels: of every level.
    """
    extra = MaxPoolLevel()
    return PyramidBackbone(encoder, stages=(1, 2, 3, 4), out_channels=out_channels, extra=extra)
