"""detectron2: its pyramid and heads, of which ``tests/minimal`` has models of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import Model

CLASSES = 5
CHANNELS = {"res2": 4, "res3": 6, "res4": 8, "res5": 8}
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}


class Stages(nn.Module):
    """A backbone: one map per stride, by name."""

    def __init__(self, names: dict[str, int], channels: dict[str, int]) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(
            {name: nn.Conv2d(3, channels[name], stride, stride) for name, stride in names.items()}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: stage(x) for name, stage in self.stages.items()}


class WithHead(nn.Module):
    """A backbone and a head, which computes a loss in training."""

    def __init__(self, stages: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stages = stages
        self.head = head

    def forward(self, x: Tensor) -> Any:
        generator = torch.Generator().manual_seed(5)
        targets = torch.randint(0, CLASSES, (x.shape[0], *x.shape[2:]), generator=generator)
        return self.head(self.stages(x), torch.where(targets == 0, 255, targets))


def backbone() -> nn.Module:
    return Stages(dict(zip(CHANNELS, STRIDES.values(), strict=True)), CHANNELS)


def pyramid(
    top_block: Callable[[Any], Any] = lambda module: None, **options: Any
) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from detectron2.modeling.backbone import fpn

        channels = list(CHANNELS.values())
        return fpn.FPN(backbone(), list(CHANNELS), channels, 6, top_block=top_block(fpn), **options)

    return make


def semantic_head() -> nn.Module:
    from detectron2.modeling import SemSegFPNHead

    stages = Stages(STRIDES, dict.fromkeys(STRIDES, 6))
    return WithHead(stages, SemSegFPNHead(STRIDES, (6, 8, CLASSES)))


def deeplab_plus(classes: int | None = CLASSES) -> nn.Module:
    from detectron2.projects.deeplab.semantic_seg import DeepLabV3PlusHead

    return WithHead(backbone(), DeepLabV3PlusHead(CHANNELS, 8, classes))


def deeplab() -> nn.Module:
    from detectron2.projects.deeplab.semantic_seg import DeepLabV3Head

    stages = Stages({"res4": 8}, CHANNELS)
    return WithHead(stages, DeepLabV3Head("res4", (8, 8, CLASSES)))


_SHAPE = (2, 3, 64, 96)
# In training there is but a loss, which is a number.
MODELS: dict[str, Model] = {
    "FPN": Model(pyramid(lambda module: module.LastLevelMaxPool()), _SHAPE),
    "FPN, means": Model(
        pyramid(lambda module: module.LastLevelP6P7(8, 6), fuse_type="avg"), (2, 3, 128, 96)
    ),
    "Semantic head of Panoptic FPN": Model(semantic_head, _SHAPE),
    "Semantic head of Panoptic FPN, training": Model(
        semantic_head, _SHAPE, only_in_training=True, same_code=True
    ),
    "DeepLabV3+": Model(deeplab_plus, _SHAPE),
    "DeepLabV3+, training": Model(deeplab_plus, _SHAPE, only_in_training=True, same_code=True),
    "DeepLabV3+, decoder": Model(lambda: deeplab_plus(None), _SHAPE),
    "DeepLabV3, training": Model(deeplab, _SHAPE, only_in_training=True, same_code=True),
}
