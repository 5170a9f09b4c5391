"""mmdet: necks and backbones, as configurations name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from . import Model, OnPyramid

SIZES = (2, 4, 8, 16)


def hrnet_stages() -> dict[str, Any]:
    """As many resolutions as published, but fewer modules and channels; for all three libraries."""
    channels = (4, 6, 8, 10)
    stages = dict(
        stage1=dict(
            num_modules=1, num_branches=1, block="BOTTLENECK", num_blocks=(1,), num_channels=(2,)
        )
    )
    for branches, modules in ((2, 1), (3, 2), (4, 2)):
        stages[f"stage{branches}"] = dict(
            num_modules=modules,
            num_branches=branches,
            block="BASIC",
            num_blocks=(1,) * branches,
            num_channels=channels[:branches],
        )
    return stages


def hrnet() -> nn.Module:
    from mmdet.models import HRNet

    return nn.Sequential(HRNet(hrnet_stages()))  # its train() returns None


def hourglass() -> nn.Module:
    from mmdet.models import HourglassNet

    return nn.Sequential(
        HourglassNet(
            downsample_times=2, num_stacks=2, stage_channels=(6, 6, 8), stage_blocks=(1, 1, 1),
            feat_channel=6,
        )
    )  # fmt: skip


def neck(
    name: str,
    *arguments: Any,
    channels: Sequence[int],
    sizes: Sequence[int] = SIZES,
    **options: Any,
) -> nn.Module:
    """A neck by name, on as many levels as there are channels."""
    from mmdet.registry import MODELS

    part = MODELS.get(name)(*arguments, **options)
    return OnPyramid(part, channels, sizes[: len(channels)])


def pixel_decoder() -> nn.Module:
    from mmdet.models.layers import PixelDecoder

    channels = [4, 6, 8, 8]
    part = PixelDecoder(channels, 8, 6, norm_cfg=dict(type="GN", num_groups=2))
    return OnPyramid(part, channels, (2, 3, 8, 15), lambda part, maps: part(maps, None))


_THREE, _FOUR = [4, 6, 8], [4, 6, 8, 8]
_YOLO = dict(num_csp_blocks=1, channels=_THREE)

MODELS: dict[str, Model] = {
    "FPN": Model(
        lambda: neck("FPN", _FOUR, 6, 4, channels=_FOUR, sizes=(2, 3, 8, 15)), (2, 3, 60, 90)
    ),
    "FPN, by a factor": Model(
        lambda: neck(
            "FPN", _FOUR, 6, 5, add_extra_convs="on_input", channels=_FOUR,
            upsample_cfg=dict(scale_factor=2, mode="bilinear"),
        ),
        (2, 3, 64, 96),
    ),
    "PAFPN": Model(lambda: neck("PAFPN", _FOUR, 6, 4, channels=_FOUR), (2, 3, 64, 96)),
    "BFP": Model(
        lambda: neck(
            "BFP", 6, 4, refine_level=2, refine_type="conv", channels=(6,) * 4, sizes=(2, 3, 8, 15)
        ),
        (2, 3, 60, 90),
    ),
    "HRFPN": Model(lambda: neck("HRFPN", _FOUR, 6, channels=_FOUR), (2, 3, 64, 96)),
    "NAS-FPN": Model(
        lambda: neck("NASFPN", _THREE, 6, 5, stack_times=2, channels=_THREE), (2, 3, 128, 192)
    ),
    "PixelDecoder": Model(pixel_decoder, (2, 3, 60, 90)),
    "YOLOXPAFPN": Model(lambda: neck("YOLOXPAFPN", _THREE, 6, **_YOLO), (2, 3, 64, 96)),
    "CSPNeXtPAFPN": Model(lambda: neck("CSPNeXtPAFPN", _THREE, 6, **_YOLO), (2, 3, 64, 96)),
    "YOLOV3Neck": Model(
        lambda: neck("YOLOV3Neck", 3, (8, 6, 4), (6, 6, 4), channels=_THREE), (2, 3, 64, 96)
    ),
    "HRNet": Model(hrnet, (2, 3, 64, 96)),
    "Hourglass": Model(hourglass, (2, 3, 64, 96)),
}  # fmt: skip
