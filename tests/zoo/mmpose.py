"""mmpose: necks and backbones, some of them copies of mmdet's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from . import Model, OnPyramid
from .mmdet import SIZES, hrnet_stages


def hrnet() -> nn.Module:
    from mmpose.models import HRNet

    stages = hrnet_stages()
    stages["stage4"]["multiscale_output"] = True
    stages["upsample"] = dict(mode="bilinear", align_corners=False)
    return nn.Sequential(HRNet(stages))


def hourglass() -> nn.Module:
    from mmpose.models.backbones.hourglass import HourglassModule

    part = HourglassModule(2, (6, 6, 8), (1, 1, 1))
    return OnPyramid(part, [6], [2], lambda part, maps: part(maps[0]))


def neck(
    name: str,
    *arguments: Any,
    channels: Sequence[int],
    sizes: Sequence[int] = SIZES,
    **options: Any,
) -> nn.Module:
    """A neck by name, on as many levels as there are channels."""
    from mmpose.registry import MODELS

    part = MODELS.get(name)(*arguments, **options)
    return OnPyramid(part, channels, sizes[: len(channels)])


def hybrid_encoder() -> nn.Module:
    encoder = dict(
        self_attn_cfg=dict(embed_dims=8, num_heads=2, dropout=0.0),
        ffn_cfg=dict(embed_dims=8, feedforward_channels=16, ffn_drop=0.0),
    )
    channels = [4, 6, 8]
    return neck(
        "HybridEncoder", encoder, in_channels=channels, hidden_dim=8, use_encoder_idx=[2],
        channels=channels,
    )  # fmt: skip


_THREE, _FOUR = [4, 6, 8], [4, 6, 8, 8]
_YOLO = dict(num_csp_blocks=1, channels=_THREE)

MODELS: dict[str, Model] = {
    "FPN": Model(
        lambda: neck("FPN", _FOUR, 6, 4, channels=_FOUR, sizes=(2, 3, 8, 15)), (2, 3, 60, 90)
    ),
    "YOLOXPAFPN": Model(lambda: neck("YOLOXPAFPN", _THREE, 6, **_YOLO), (2, 3, 64, 96)),
    "CSPNeXtPAFPN": Model(
        lambda: neck("CSPNeXtPAFPN", _THREE, None, out_indices=(0, 1, 2), **_YOLO), (2, 3, 64, 96)
    ),
    "HybridEncoder": Model(hybrid_encoder, (2, 3, 64, 96)),
    "HRNet": Model(hrnet, (2, 3, 64, 96)),
    "Hourglass": Model(hourglass, (2, 3, 64, 96)),
}
