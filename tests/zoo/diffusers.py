"""diffusers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import Model


def unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=8,
        layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
    )  # fmt: skip


def denoise(model: nn.Module, x: Tensor) -> Any:
    text = torch.linspace(-1, 1, 5 * 8, dtype=x.dtype).sin().view(1, 5, 8)
    return model(x, 1, text.expand(len(x), -1, -1)).sample


def autoencoder() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    )  # fmt: skip


MODELS: dict[str, Model] = {
    "UNet2DCondition": Model(unet, (2, 3, 15, 17), denoise),
    "AutoencoderKL": Model(autoencoder, (2, 3, 32, 24), lambda model, x: model(x).sample),
}
