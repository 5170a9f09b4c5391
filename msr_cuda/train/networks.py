"""The network that a configuration asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import models
from ._errors import TrainingError
from .config import Config

#: Of ImageNet, as torchvision's and timm's weights expect it.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def build_network(config: Config, num_classes: int) -> nn.Module:
    """A network with random weights, which only ``torch``'s generator decides."""
    options = {
        "scales": config.scales,
        "fusion": None if config.fusion == "mixture" else config.fusion,
        "width": config.width,
        "stem_stride": config.stem_stride,
    }
    try:
        if config.task == "segmentation":
            encoder = models.multiscale_encoder(config.model, out_indices=(1, 2, 3, 4), **options)
            return models.SegmentationNet(encoder, num_classes, channels=config.decoder_channels)
        encoder = models.multiscale_encoder(config.model, out_indices=(4,), **options)
        made = models.ScaleMixtureResNet if config.fusion == "mixture" else models.MultiScaleResNet
        return made(encoder, num_classes, dropout=config.dropout)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def normalized(images: Tensor) -> Tensor:
    """Images of bytes as networks take them: float32, zero mean, unit variance over ImageNet.

    Args:
        images (Tensor[N, 3, H, W]): uint8.
    """
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (_MEAN, _STD))
    return (images.float() / 255 - mean) / std
