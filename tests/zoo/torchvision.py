"""torchvision. Whole detectors are swapped in test_swap_results.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import Model, OnPyramid


def pyramid() -> nn.Module:
    from torchvision.ops import FeaturePyramidNetwork

    def call(part: nn.Module, maps: list[Tensor]) -> Any:
        return part({str(i): x for i, x in enumerate(maps)})

    channels = [4, 6, 8, 8]
    return OnPyramid(FeaturePyramidNetwork(channels, 6), channels, (2, 3, 8, 15), call)


def backbone(**layers: str) -> nn.Module:
    """A short ResNet."""
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.resnet import BasicBlock, ResNet

    names = {layer: name for name, layer in layers.items()}
    return IntermediateLayerGetter(ResNet(BasicBlock, [1, 1, 1, 1]), names)


def deeplab() -> nn.Module:
    from torchvision.models.segmentation import DeepLabV3
    from torchvision.models.segmentation.deeplabv3 import ASPP

    head = nn.Sequential(ASPP(256, (2, 3, 4), 16), nn.Conv2d(16, 3, 1))
    head[0].project[3].p = 0.0
    return DeepLabV3(backbone(out="layer3", aux="layer2"), head, nn.Conv2d(128, 3, 1))


def lraspp() -> nn.Module:
    from torchvision.models.segmentation import LRASPP

    return LRASPP(backbone(low="layer1", high="layer3"), 64, 256, 3, 16)


def keypoints() -> nn.Module:
    from torchvision.models.detection.keypoint_rcnn import KeypointRCNNPredictor

    return KeypointRCNNPredictor(3, 2)


def raft() -> nn.Module:
    from torchvision.models.optical_flow import raft_small

    model: nn.Module = raft_small(weights=None)
    return model


MODELS: dict[str, Model] = {
    "FeaturePyramidNetwork": Model(pyramid, (2, 3, 60, 90)),
    "DeepLabV3": Model(deeplab, (2, 3, 65, 49)),
    "LRASPP": Model(lraspp, (2, 3, 65, 49)),
    "KeypointRCNNPredictor": Model(keypoints, (2, 3, 14, 14)),
    "RAFT, small": Model(
        raft,
        (2, 3, 128, 128),
        lambda model, x: model(x[:1], x[1:], num_flow_updates=2),
        compared=False,
    ),
}
