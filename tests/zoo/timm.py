"""timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from . import Model, OnPyramid


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A model by name."""

    def make() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=3, **options)
        return model

    return make


def narrow_hrnet() -> nn.Module:
    """As many modules as published, but few channels, and no head."""
    from model_libraries import stage
    from timm.models.hrnet import HighResolutionNet

    channels = (8, 12, 16, 24)
    stages = {"stem_width": 8, "stage1": stage("BOTTLENECK", (4,))}
    for branches, modules in ((2, 1), (3, 4), (4, 3)):
        stages[f"stage{branches}"] = {
            **stage("BASIC", channels[:branches]),
            "num_modules": modules,
        }
    return HighResolutionNet(stages, head="")


def adapter() -> nn.Module:
    from timm.models.mobilenetv5 import MobileNetV5MultiScaleFusionAdapter

    part = MobileNetV5MultiScaleFusionAdapter([8, 12], 16, (5, 7), expansion_ratio=2.0)
    return OnPyramid(part, (8, 12), (4, 7))


MODELS: dict[str, Model] = {
    "HRNet": Model(narrow_hrnet, (2, 3, 64, 96)),
    "CoaT": Model(
        timm_model(
            "coat_tiny", img_size=(64, 96), embed_dims=(16, 16, 16, 16), serial_depths=(1, 1, 1, 1),
            parallel_depth=6, num_heads=8, mlp_ratios=(2, 2, 2, 2),
        ),
        (2, 3, 64, 96),
    ),
    "MobileNetV5, adapter": Model(adapter, (2, 3, 56, 84)),
    "GhostNetV2": Model(timm_model("ghostnetv2_100"), (1, 3, 64, 64), compared=False),
    "CSATv2": Model(timm_model("csatv2"), (1, 3, 256, 256), compared=False),
}  # fmt: skip
