"""mmseg: necks and heads, and HRNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from . import Model, OnPyramid
from .mmdet import hrnet_stages


def hrnet() -> nn.Module:
    from mmseg.models import HRNet

    return nn.Sequential(HRNet(hrnet_stages()))  # its train() returns None


def pyramid() -> nn.Module:
    from mmseg.models import FPN

    channels = [4, 6, 8, 8]
    return OnPyramid(FPN(channels, 6, 4), channels, (2, 3, 8, 15))


def jpu() -> nn.Module:
    from mmseg.models import JPU

    channels = (4, 6, 8)
    return OnPyramid(JPU(channels, 6, dilations=(1, 2)), channels, (3, 8, 15))


def head(
    name: str,
    channels: Sequence[int] = (4, 6, 8, 8),
    sizes: Sequence[int] = (2, 3, 8, 15),
    call: Callable[[Any, list[Tensor]], Any] = lambda part, maps: part(maps),
    *,
    single: bool = False,
    **options: Any,
) -> nn.Module:
    """A head by name, of two classes.

    Args:
        name: its class.
        channels: of the levels of the pyramid.
        sizes: divisors of the image's size, of each level.
        call: ``call(head, levels)``.
        single: whether it takes the last level only.
    """
    from mmseg.registry import MODELS

    index = len(channels) - 1 if single else list(range(len(channels)))
    part = MODELS.get(name)(
        in_channels=channels[-1] if single else list(channels), in_index=index, channels=6,
        num_classes=2, dropout_ratio=0, norm_cfg=dict(type="BN"), **options,
    )  # fmt: skip
    return OnPyramid(part, channels, sizes, call)


def ocr_head() -> nn.Module:
    return head(
        "OCRHead", ocr_channels=4, input_transform="resize_concat",
        call=lambda part, maps: part(maps, maps[0][:, :2]),
    )  # fmt: skip


def ham_head() -> nn.Module:
    model = head("LightHamHead", ham_channels=8)
    # A factorization that starts from other numbers at each call, and in float32 only.
    model.part.hamburger = nn.Identity()
    return model


_LAST = dict(channels=(8,), sizes=(15,), single=True)

MODELS: dict[str, Model] = {
    "HRNet": Model(hrnet, (2, 3, 64, 96)),
    "HRNet, odd sizes": Model(hrnet, (2, 3, 45, 66), same_code=True),
    "FPN": Model(pyramid, (2, 3, 60, 90)),
    "JPU": Model(jpu, (2, 3, 60, 90)),
    "UPerHead": Model(lambda: head("UPerHead"), (2, 3, 60, 90)),
    "PSPHead": Model(lambda: head("PSPHead", **_LAST), (2, 3, 90, 135)),
    "ASPPHead": Model(lambda: head("ASPPHead", dilations=(1, 2, 3), **_LAST), (2, 3, 60, 90)),
    "DepthwiseSeparableASPPHead": Model(
        lambda: head(
            "DepthwiseSeparableASPPHead", (4, 8), (3, 15), c1_in_channels=4, c1_channels=4,
            align_corners=True, dilations=(1, 2, 3), single=True,
        ),
        (2, 3, 60, 90),
    ),
    "FPNHead": Model(
        lambda: head("FPNHead", sizes=(2, 4, 8, 16), feature_strides=(2, 4, 8, 16)), (2, 3, 64, 96)
    ),
    "FPNHead, odd sizes": Model(
        lambda: head("FPNHead", sizes=(2, 3, 8, 15), feature_strides=(2, 4, 8, 16)),
        (2, 3, 60, 90),
        same_code=True,
    ),
    "SegformerHead": Model(lambda: head("SegformerHead"), (2, 3, 60, 90)),
    "LightHamHead": Model(ham_head, (2, 3, 60, 90)),
    "FCNHead, resize_concat": Model(
        lambda: head("FCNHead", input_transform="resize_concat"), (2, 3, 60, 90)
    ),
    "OCRHead, resize_concat": Model(ocr_head, (2, 3, 60, 90)),
}  # fmt: skip
